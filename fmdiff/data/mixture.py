"""From the lists of a config to the weights, means and covariances of a Gaussian mixture."""

import reprlib
from typing import Any

import torch
from torch import Tensor

from fmdiff.errors import FmdiffError


def components(means: Any, weights: Any, cov: Any) -> tuple[Tensor, Tensor, Tensor]:
    """Weights (K,), means (K, d) and covariances (K, d, d) of a mixture, float64.

    means: K points of d numbers. weights: K positive numbers, divided by their sum; None: equal.
    cov: a number c for C_k = c I; a list of K numbers, C_k = c_k I (a flat list is never a
    diagonal, whatever d is); one d x d matrix for all; or a list of K matrices, which must be
    symmetric and positive definite. Raises FmdiffError for anything else.
    """
    m = _tensor(means)
    if m is None or m.ndim != 2 or not m.numel():
        raise FmdiffError(
            f"data.means={reprlib.repr(means)} must be a list of points of one length, such as "
            "[[-2,0],[2,0]]"
        )
    k, d = m.shape
    w = torch.ones(k, dtype=torch.float64) if weights is None else _tensor(weights)
    if w is None or w.shape != (k,) or not (w > 0).all():
        raise FmdiffError(
            f"data.weights={reprlib.repr(weights)} must be null or a list of {k} positive "
            f"numbers, one for each of the {k} points in data.means"
        )
    return w / w.sum(), m, _covariances(cov, k, d)


def _covariances(cov: Any, k: int, d: int) -> Tensor:
    c, eye = _tensor(cov), torch.eye(d, dtype=torch.float64)
    if c is None or c.shape not in {(), (k,), (d, d), (k, d, d)}:
        raise FmdiffError(
            f"data.cov={reprlib.repr(cov)} must be a number, a list of {k} numbers, a {d} x {d} "
            f"matrix or a list of {k} such matrices, for {k} means in {d} dimensions"
        )
    covs = c[..., None, None] * eye if c.ndim < 2 else c
    covs = covs.expand(k, d, d)
    if not torch.allclose(covs, covs.mT) or torch.linalg.cholesky_ex(covs).info.any():
        raise FmdiffError(
            f"data.cov={reprlib.repr(cov)} must be symmetric and positive definite (a number: > 0)"
        )
    return covs.contiguous()


def _tensor(value: Any) -> Tensor | None:
    """Nested lists of finite numbers as float64; None for anything else, ragged lists included."""
    if not isinstance(value, (int, float, list)) or isinstance(value, bool):
        return None
    try:
        tensor = torch.tensor(value, dtype=torch.float64)
    except (ValueError, TypeError, RuntimeError):
        return None
    return tensor if tensor.isfinite().all() else None
