"""Gaussian mixtures given some of their coordinates: the algebra, without fields and times."""

from typing import NamedTuple

import torch
from torch import Tensor

from fmdiff.errors import FmdiffError


class Posterior(NamedTuple):
    """The mixtures of x of those rows of a batch in which the same coordinates are known.

    A row has weights and means of its own. The covariances are those of all these rows.
    """

    rows: Tensor  # (R,) int64
    log_weights: Tensor  # (R, K)
    means: Tensor  # (R, K, d)
    variances: Tensor  # (K, d), 0 along known coordinates
    axes: Tensor  # (K, d, d), whose columns are the axes of these variances
    points: Tensor | None  # (R, d), the known coordinates of x and NaN for the others, if any is


def posteriors(
    log_weights: Tensor, means: Tensor, covs: Tensor, values: Tensor, d: int
) -> list[Posterior]:
    """The law of the first d of D coordinates, given those of `values` (B, D) that are not NaN.

    log_weights (K,), means (K, D), covs (K, D, D) describe the mixture of all D coordinates. With
    o for the known coordinates and z for the others, component k has

        weight w_k N(o; m_o, C_oo),  mean m_z + C_zo C_oo^-1 (o - m_o),  covariance
        C_zz - C_zo C_oo^-1 C_oz

    (Bishop 2006, section 2.3). A known coordinate of the first d is o itself, without variance.
    Everything is float64. Raises FmdiffError if the known coordinates have no density.
    """
    known = ~values.isnan()
    if bool((known == known[:1]).all()):
        kinds, kind = known[:1], torch.zeros(len(values), dtype=torch.int64)
    else:
        kinds, kind = torch.unique(known, dim=0, return_inverse=True)
    result = []
    for i, coordinates in enumerate(kinds):
        rows = (kind == i).nonzero().flatten()
        result.append(_posterior(log_weights, means, covs, values[rows], coordinates, rows, d))
    return result


def _posterior(
    log_weights: Tensor,
    means: Tensor,
    covs: Tensor,
    values: Tensor,
    known: Tensor,
    rows: Tensor,
    d: int,
) -> Posterior:
    """The posterior of rows that know the coordinates `known` (D,), a mask."""
    seen, free = known.nonzero().flatten(), (~known[:d]).nonzero().flatten()
    among = covs[:, seen][:, :, seen]
    root, failed = torch.linalg.cholesky_ex(among)  # C_oo = L L^T
    if bool(failed.any()):
        raise FmdiffError("the coordinates that are given have no density in this mixture")
    offset = (values[:, None, seen] - means[:, seen]).permute(1, 2, 0)  # (K, o, R)
    white = torch.linalg.solve_triangular(root, offset, upper=False)
    scale = root.diagonal(dim1=1, dim2=2).log().sum(1)
    log_density = -0.5 * white.square().sum(1) - scale[:, None]  # up to a constant
    gain = torch.linalg.solve_triangular(root, covs[:, seen][:, :, free], upper=False)
    schur = covs[:, free][:, :, free] - gain.mT @ gain
    count = len(free)
    mean = values[:, None, :d].expand(-1, len(means), -1).clone()
    mean[:, :, free] = means[:, free] + torch.einsum("kof,kor->rkf", gain, white)
    variances, axes = covs.new_zeros(len(means), d), covs.new_zeros(len(means), d, d)
    variances[:, :count], turned = torch.linalg.eigh(schur)
    axes[:, free, :count] = turned
    axes[:, seen[seen < d], torch.arange(count, d)] = 1
    weights = (log_weights + log_density.T).log_softmax(-1)
    points = values[:, :d] if count < d else None
    return Posterior(rows, weights, mean, variances.clamp(min=0), axes, points)
