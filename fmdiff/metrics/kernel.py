"""The kernel distance between two sets of features. Of Inception's features it is the KID."""

from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from fmdiff.errors import FmdiffError


class Kernel(NamedTuple):
    """A kernel distance over subsets of the samples."""

    mean: float
    std: float  # of the subsets' values: what torch-fidelity prints after "+-"
    error: float  # standard error of the mean, for the choice of the samples and of the subsets
    subsets: int
    size: int  # samples per subset, at most as many as there are


def kernel_distance(
    a: Tensor, b: Tensor, subsets: int = 100, size: int = 1000, seed: int = 2020
) -> Kernel:
    """KID of features (n_a, d), (n_b, d): the mean of `mmd2` over random subsets of both.

    A subset takes min(size, n_a, n_b) rows of each set without replacement. `seed` is given to
    NumPy's RandomState, so the subsets are those of torch-fidelity with the same seed. The value
    is unbiased for any size, and may be below 0. Subsets share rows, so std/sqrt(subsets) is the
    error of their choice alone. If a subset is the whole set, that is a tenth of the whole error.
    The choice of the samples adds, to first order (Hoeffding's projection):

        error^2 = std^2 / subsets + 4 var_i(u_i) / n_a + 4 var_j(w_j) / n_b,

    u_i = mean_{i'} k(a_i, a_i') - mean_j k(a_i, b_j) and w_j likewise. The variances are those in
    a subset, which makes the error somewhat too large for sets of equal laws.
    Raises FmdiffError for fewer than 2 samples (Binkowski et al., 2018).
    """
    a, b = a.double(), b.to(a.device, torch.float64)
    size = min(size, len(a), len(b))
    if size < 2:
        raise FmdiffError(f"n={size}: the kernel distance needs n to be at least 2")
    if len(a) == len(b) == size:
        subsets = 1  # each would be the whole of both
    random = np.random.RandomState(seed)
    subset_values = []
    for _ in range(subsets):
        rows, others = (random.choice(len(s), size, replace=False) for s in (a, b))
        subset_values.append(_compare(a[torch.from_numpy(rows)], b[torch.from_numpy(others)]))
    values, of_a, of_b = torch.tensor(subset_values, dtype=torch.float64).T
    std = values.std(correction=0).item()
    samples = 4 * (of_a.mean() / len(a) + of_b.mean() / len(b)).item()
    error = (std**2 / subsets + samples) ** 0.5
    return Kernel(values.mean().item(), std, error, subsets, size)


def mmd2(x: Tensor, y: Tensor) -> float:
    """The unbiased squared maximum mean discrepancy of x (m, d), y (n, d), float64,

        sum_{i != j} k(x_i, x_j) / m(m-1) + sum_{i != j} k(y_i, y_j) / n(n-1)
            - 2 sum_{ij} k(x_i, y_j) / mn,      k(x, y) = (x.y / d + 1)^3

    (Gretton et al., 2012, equation 3; Binkowski et al., 2018, for the kernel).
    """
    return _compare(x, y)[0]


def _compare(x: Tensor, y: Tensor) -> tuple[float, float, float]:
    """mmd2, and the variances of u_i and w_j."""
    across = _kernel(x, y)
    in_x, in_y = ((k.sum(1) - k.diagonal()) / (len(k) - 1) for k in (_kernel(x, x), _kernel(y, y)))
    u, w = in_x - across.mean(1), in_y - across.mean(0)
    return (u.mean() + w.mean()).item(), u.var().item(), w.var().item()


def _kernel(x: Tensor, y: Tensor) -> Tensor:
    k = (x @ y.T).div_(x.shape[1]).add_(1)
    return k * k * k  # pow(3) is ten times slower
