"""The Frechet distance between two sets of features, each taken as a Gaussian.

    FD = |m_a - m_b|^2 + tr C_a + tr C_b - 2 tr (C_a C_b)^{1/2},

m is the mean and C the covariance (over n - 1) of a set of features (n, d). FD is the squared W2
distance of N(m_a, C_a) and N(m_b, C_b) (Dowson & Landau, 1982). It is called FID if the features
are those of the Inception network (Heusel et al., 2017). All computations are float64.

FD of n samples is too large by about a constant over n, and the constant grows with d
(Chong & Forsyth, 2020). Only values of one n, against one reference, can be compared.
"""

from typing import NamedTuple, Protocol

import torch
from torch import Tensor, distributed

from fmdiff.errors import FmdiffError
from fmdiff.randomness import generator


class Normal(Protocol):
    """The attributes that a distance needs. `Moments`, `Gaussian` and `Reference` have them."""

    @property
    def mean(self) -> Tensor:
        """The mean (d,)."""

    @property
    def cov(self) -> Tensor:
        """The covariance (d, d)."""


class Gaussian(NamedTuple):
    """A Gaussian by its mean (d,) and covariance (d, d)."""

    mean: Tensor
    cov: Tensor


class Moments:
    """Number n, mean (d,) and scatter (d, d) of features that arrive in batches, float64.

    The scatter is S = sum_i (f_i - mean)(f_i - mean)^T. Two sets are joined as

        S = S_1 + S_2 + n_1 n_2 / (n_1 + n_2) delta delta^T,   delta = mean_2 - mean_1,

    so no large numbers cancel and the result does not depend on the batches, up to rounding
    (Chan, Golub & LeVeque, 1983). `device` must support float64. For `reduce`, the process group
    must be able to send from it.
    """

    def __init__(self, dimension: int, device: str | torch.device = "cpu") -> None:
        self.n = 0
        self.mean = torch.zeros(dimension, dtype=torch.float64, device=device)
        self.scatter = torch.zeros(dimension, dimension, dtype=torch.float64, device=device)

    def add(self, features: Tensor) -> "Moments":
        """Add a batch (B, d) of any floating type."""
        features = features.detach().to(self.mean)
        n, mean = len(features), features.mean(0)
        if n:
            centred = features - mean
            self._join(n, mean, centred)
        return self

    def merge(self, other: "Moments") -> "Moments":
        """Add the samples of `other`."""
        if other.n:
            self.scatter += other.scatter.to(self.scatter)
            self._join(other.n, other.mean.to(self.mean), self.mean.new_empty(0, len(self.mean)))
        return self

    def _join(self, n: int, mean: Tensor, centred: Tensor) -> None:
        total, delta = self.n + n, mean - self.mean
        rows = torch.cat([centred, delta[None] * (self.n * n / total) ** 0.5])
        self.scatter.addmm_(rows.T, rows)
        self.mean += delta * (n / total)
        self.n = total

    @property
    def cov(self) -> Tensor:
        """S / (n - 1). Raises FmdiffError for fewer than 2 samples."""
        if self.n < 2:
            raise FmdiffError(f"n={self.n}: a covariance needs n to be at least 2")
        return self.scatter / (self.n - 1)

    def reduce(self) -> "Moments":
        """Replace the moments by those of the samples of all processes, the same on each.

        Every process of the default group must call this, even without samples. Without
        torch.distributed it does nothing.
        """
        if not _spread():
            return self
        sums = torch.cat([self.mean * self.n, self.mean.new_tensor([self.n])])
        distributed.all_reduce(sums)
        n = round(sums[-1].item())
        mean = sums[:-1] / max(n, 1)
        delta = self.mean - mean
        self.scatter.addr_(delta, delta, alpha=self.n)
        distributed.all_reduce(self.scatter)
        self.n, self.mean = n, mean
        return self


def _spread() -> bool:
    return distributed.is_available() and distributed.is_initialized()


def gather(rows: Tensor) -> Tensor:
    """The rows (n_rank, ...) of all processes, in the order of their ranks, on each of them.

    Metrics that need the features themselves use it. n_rank may differ and be 0. Without
    torch.distributed it returns `rows`.
    """
    if not _spread():
        return rows
    mine = torch.tensor([len(rows)], device=rows.device)
    sizes = [torch.zeros_like(mine) for _ in range(distributed.get_world_size())]
    distributed.all_gather(sizes, mine)
    padded = rows.new_zeros(int(max(sizes)), *rows.shape[1:])
    padded[: len(rows)] = rows
    parts = [torch.empty_like(padded) for _ in sizes]
    distributed.all_gather(parts, padded)
    return torch.cat([part[: int(size)] for part, size in zip(parts, sizes, strict=True)])


def frechet_distance(a: Normal, b: Normal) -> float:
    """FD of two Gaussians. For equal ones it is 0 up to rounding of either sign (-1e-10, say).

    Raises ValueError for different dimensions, FmdiffError for fewer than 2 samples.
    """
    if a.mean.shape != b.mean.shape:
        raise ValueError(f"features of {len(a.mean)} and {len(b.mean)} dimensions")
    mean, cov = a.mean.double(), a.cov.double()
    other = b.cov.to(cov)
    gap = (mean - b.mean.to(mean)).square().sum() + cov.trace() + other.trace()
    return (gap - 2 * root_trace(cov, other)).item()


def root_trace(a: Tensor, b: Tensor) -> Tensor:
    """tr (A B)^{1/2} () of covariances (d, d): the sum of the square roots of A B's eigenvalues.

    With A = R R^T these are the eigenvalues of the symmetric R^T B R, and zeros. R is taken from
    the matrix of lower rank. Otherwise R^T B R has null directions, and each would add the root of
    a rounding error, 1e-8.
    """
    r, q = _factor(a), _factor(b)
    return _roots(r.T @ b @ r if r.shape[1] <= q.shape[1] else q.T @ a @ q)


def _factor(c: Tensor) -> Tensor:
    """R (d, rank) with C = R R^T: from Cholesky, or from the positive eigenvalues."""
    root, failed = torch.linalg.cholesky_ex(c)
    if not failed:
        return root
    values, vectors = torch.linalg.eigh(c)
    positive = values > len(c) * torch.finfo(c.dtype).eps * values[-1]
    return vectors[:, positive] * values[positive].sqrt()


def _roots(c: Tensor) -> Tensor:
    return torch.linalg.eigvalsh(c).clamp(min=0).sqrt().sum()


def frechet_of_features(a: Tensor, b: Tensor) -> float:
    """FD of two sets of features (n_a, d), (n_b, d).

    If both have fewer samples than dimensions, no covariance is formed: tr (C_a C_b)^{1/2} is the
    sum of the singular values of the small A B^T (n_a, n_b), with A, B the centred features over
    sqrt(n - 1). Raises FmdiffError for fewer than 2 samples.
    """
    d = a.shape[1]
    if not 2 <= min(len(a), len(b)) <= max(len(a), len(b)) < d:
        return frechet_distance(Moments(d, a.device).add(a), Moments(d, a.device).add(b))
    a, b = a.double(), b.to(a.device, torch.float64)
    gap = (a.mean(0) - b.mean(0)).square().sum()
    a, b = ((f - f.mean(0)) / (len(f) - 1) ** 0.5 for f in (a, b))
    trace = torch.linalg.svdvals(a @ b.T).sum()
    return (gap + a.square().sum() + b.square().sum() - 2 * trace).item()


def few_samples(n: int, dimension: int) -> str | None:
    """The warning about an FD of n samples with a singular covariance; None otherwise."""
    if n > dimension:
        return None
    return (
        f"n={n} samples of {dimension} dimensions: the covariance is rank-deficient and the "
        "distance far too large; compare it with distances of the same n only"
    )


class Interval(NamedTuple):
    """A Frechet distance with its uncertainty."""

    value: float  # FD of the samples themselves
    error: float  # its standard error
    bias: float  # estimate of E[value] - FD of infinitely many samples
    low: float  # the bootstrap interval; it subtracts the bias once
    high: float


def frechet_interval(
    features: Tensor, reference: Normal, repeats: int = 200, seed: int = 0, level: float = 0.95
) -> Interval:
    """The uncertainty of FD(features, reference) due to the choice of the n samples (n, d).

    Bootstrap (Efron, 1979): FD* of `repeats` sets of n rows, drawn with replacement from `seed`;
    error = std FD*, bias = mean FD* - FD, and with q the quantiles of FD* the interval is
    [2 FD - q_{(1 + level)/2}, max(2 FD - q_{(1 - level)/2}, q_{(1 + level)/2} - 2 bias)]. The
    basic bootstrap interval ends at the first of the two values. It is too low for sets that
    happen to be close to the reference, as FD* of these varies less: of Gaussians whose means
    differ, the basic interval of 95 % covers 91 to 93 %. The second value is the end of the
    percentile interval, less the biases of FD and FD*. The reference is taken as exact.

    A set of n draws holds 0.63 n different rows, so n must be many times d. Below about 10 d the
    bias is no longer small, and the interval cannot be trusted. A repeat costs n d^2 + 2 d^3
    operations: milliseconds at d = 64, seconds at d = 2048 (compare several seeds of sampling
    there instead). Raises FmdiffError for fewer than 2 samples.
    """
    n, d = features.shape
    value = frechet_distance(Moments(d, features.device).add(features), reference)
    cov = reference.cov.to(features.device, torch.float64)
    # R^T C R is the covariance of the rows f R, so R is applied once
    root = _factor(cov)
    f = features.double() - reference.mean.to(cov)
    turned, squares = f @ root, f.square().sum(1)
    draws = generator(seed, "bootstrap")
    values = []
    for _ in range(repeats):
        count = torch.randint(n, (n,), generator=draws).bincount(minlength=n).to(f)
        m = count @ f / n
        spread = (count @ squares - n * m @ m) / (n - 1)
        rows = turned - m @ root
        trace = _roots((rows * count[:, None]).T @ rows / (n - 1))
        values.append((m @ m + spread + cov.trace() - 2 * trace).item())
    repetitions = torch.tensor(values, dtype=torch.float64)
    tails = torch.tensor([(1 + level) / 2, (1 - level) / 2], dtype=torch.float64)
    upper, lower = repetitions.quantile(tails).tolist()
    bias = repetitions.mean().item() - value
    high = max(2 * value - lower, upper - 2 * bias)
    return Interval(value, repetitions.std().item(), bias, 2 * value - upper, high)
