"""Gaussian mixtures as data: fixed patterns, and data=gmm from the lists of a config."""

import math
import reprlib
from abc import abstractmethod
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Generator, Tensor

from fmdiff.condition import Form
from fmdiff.data.base import Batch, Device, Toy, far
from fmdiff.errors import FmdiffError

LARGEST = 2**27  # numbers in the covariances of a mixture: 1 GB


def plane(*coordinates: Tensor) -> Tensor:
    """Points (..., d) from their d coordinates (...)."""
    return torch.stack(coordinates, dim=-1)


class GaussianMixture(Toy):
    """p(x) = sum_k w_k N(x; m_k, C_k); label k."""

    @abstractmethod
    def components(self) -> tuple[Tensor, Tensor, Tensor]:
        """w (K,), m (K, D) and C (K, D, D) of every label, float64: D numbers for `draw`."""

    def joint(self) -> tuple[Tensor, Tensor, Tensor]:
        """The exact density of what `draw` returns, float64.

        Component k has label k. Labels that `only` leaves out have weight 0.
        """
        weights, means, covs = self.components()
        own = self.label_numbers
        weights = torch.zeros_like(weights).index_copy(0, own, weights[own])
        return weights / weights.sum(), means, covs

    def mixture(self) -> tuple[Tensor, Tensor, Tensor]:
        """The exact density of x: w (K,), means (K, d) and covariances (K, d, d), float64."""
        (weights, means, covs), d = self.joint(), self.shape[0]
        return weights, means[:, :d], covs[:, :d, :d]

    @cached_property
    def moments(self) -> tuple[Tensor | None, float]:
        weights, means, covs = self.mixture()
        mean, spread = weights @ means, covs.diagonal(dim1=1, dim2=2)
        std = (weights @ ((means - mean).square() + spread).mean(1)).sqrt().item()
        if far(mean, std):
            return mean, std
        square = weights @ (means.square() + spread).mean(1)
        return None, (square - (weights @ means.mean(1)) ** 2).sqrt().item()

    @cached_property
    def _means(self) -> Tensor:
        return self.components()[1].float()

    @cached_property
    def _factors(self) -> Tensor:
        """L_k with C_k = L_k L_k^T: (K, D, D), or (K, 1) factors if all C_k are multiples of I."""
        factors = torch.linalg.cholesky(self.components()[2])
        stds = factors[:, 0, 0]
        round_ones = torch.equal(factors, stds[:, None, None] * torch.eye(*self.drawn))
        return (stds[:, None] if round_ones else factors).float()

    def draw(self, n: int, generator: Generator) -> tuple[Tensor, Tensor]:
        label = self.draw_labels(n, generator)
        eps = torch.randn(n, *self.drawn, generator=generator)
        if self._factors.ndim == 2:
            return self._means[label] + self._factors[label] * eps, label
        offsets = torch.einsum("kde,ne->nkd", self._factors, eps)
        return self._means[label] + offsets[torch.arange(n), label], label

    def off_support(self, x: Tensor) -> Tensor:
        """Which of x (B, d) lie at a Mahalanobis distance > 4 from every component: bool (B,).

        Draws of distant components do with probability P(chi^2_d > 16): 0.034 % in the plane,
        0.006 % on the line, and 100 % in hundreds of dimensions.
        """
        own, d = self.label_numbers, self.shape[0]
        means, factors = self._means[own, :d].to(x), self._factors[own].to(x)
        near = []
        for part in x.split(1024):
            offset = part - means[:, None]  # (K, B, d)
            if factors.ndim == 2:
                offset = offset / factors[:, None]
            else:
                part_of_x = factors[:, :d, :d]  # the factor of the covariance of x
                offset = torch.linalg.solve_triangular(part_of_x, offset.mT, upper=False).mT
            near.append(offset.norm(dim=-1).amin(0))
        return torch.cat(near) > 4


@dataclass(kw_only=True, eq=False)
class GMM(GaussianMixture):
    """The mixture of any `means`, `weights` and `cov`, in any dimension: see mixture.components.

    It is that of (x, c), where the condition c is the last `given` coordinates and x the others.
    Raises FmdiffError if the keys do not describe a mixture.
    """

    means: list[list[float]]
    weights: list[float] | None
    cov: float | list
    given: int = 0  # checkpoints of 0.1.0 lack it

    def __post_init__(self) -> None:
        self._components = components(self.means, self.weights, self.cov)
        self.labels, width = self._components[1].shape
        self.require("given", int, "an integer >= 0", lambda v: v >= 0)
        if self.given >= width:
            raise FmdiffError(
                f"data.given={self.given} must be below {width}, the number of coordinates in "
                "data.means: those that are not given are x"
            )
        self.shape = (width - self.given,)
        super().__post_init__()

    def components(self) -> tuple[Tensor, Tensor, Tensor]:
        return self._components

    @property
    def drawn(self) -> tuple[int, ...]:
        return (self.shape[0] + self.given,)

    @cached_property
    def conditions(self) -> dict[str, Form]:  # type: ignore[override]  # computed once
        if not self.given:
            return {}
        (weights, means, covs), d = self.joint(), self.shape[0]
        mean, spread = weights @ means[:, d:], covs.diagonal(dim1=1, dim2=2)[:, d:]
        std = (weights @ ((means[:, d:] - mean).square() + spread)).sqrt()
        return {"c": Form((self.given,), tuple(mean.tolist()), tuple(std.tolist()))}

    def with_labels(self, x: Tensor, label: Tensor, device: Device, **parts: Tensor) -> Batch:
        if self.given:
            x, parts["c"] = (p.contiguous() for p in x.tensor_split([self.shape[0]], dim=1))
        return super().with_labels(x, label, device, **parts)

    @cached_property
    def _weights(self) -> Tensor:
        return self.mixture()[0]

    def draw_labels(self, n: int, generator: Generator) -> Tensor:
        return torch.multinomial(self._weights, n, replacement=True, generator=generator)


@dataclass(kw_only=True, eq=False)
class Pattern(GaussianMixture):
    """p(x) = 1/K sum_k N(x; scale m_k, noise^2 I), m_k the rows of `pattern`."""

    scale: float
    noise: float

    def __post_init__(self) -> None:
        super().__post_init__()
        self.require("scale", int | float, "a number > 0", lambda v: v > 0)
        self.require("noise", int | float, "a number > 0", lambda v: v > 0)

    @abstractmethod
    def pattern(self) -> Tensor:
        """The means (K, d) at scale 1, float64."""

    def components(self) -> tuple[Tensor, Tensor, Tensor]:
        means = self.scale * self.pattern()
        k, d = means.shape
        covs = self.noise**2 * torch.eye(d, dtype=torch.float64).repeat(k, 1, 1)
        return torch.full((k,), 1 / k, dtype=torch.float64), means, covs


class EightGaussians(Pattern):
    """m_k = (cos(pi k / 4), sin(pi k / 4)), k = 0 ... 7."""

    labels = 8

    def pattern(self) -> Tensor:
        angle = torch.arange(8, dtype=torch.float64) * math.pi / 4
        return plane(angle.cos(), angle.sin())


class FourGaussians(Pattern):
    """m_k = (+-1, +-1)."""

    labels = 4

    def pattern(self) -> Tensor:
        return torch.tensor([[-1, -1], [-1, 1], [1, -1], [1, 1]], dtype=torch.float64)


class TwoModes(Pattern):
    """m_k = +-1 on the line: shape (1,)."""

    shape = (1,)
    labels = 2

    def pattern(self) -> Tensor:
        return torch.tensor([[-1], [1]], dtype=torch.float64)


def components(means: Any, weights: Any, cov: Any) -> tuple[Tensor, Tensor, Tensor]:
    """Weights (K,), means (K, d) and covariances (K, d, d) of a mixture, float64.

    means: K points of d numbers. weights: K positive numbers, divided by their sum; None for equal
    weights. cov: a number c for C_k = c I; K numbers for C_k = c_k I (a flat list is never a
    diagonal, even if K = d); one d x d matrix for all; or K matrices. The matrices must be
    symmetric and positive definite. Raises FmdiffError for anything else.
    """
    m = _tensor(means)
    if m is None or m.ndim != 2 or not m.numel():
        raise FmdiffError(
            f"data.means={reprlib.repr(means)} must be a list of points of one length, such as "
            "[[-2,0],[2,0]]"
        )
    k, d = m.shape
    if k * d * d > LARGEST:
        raise FmdiffError(
            f"data.means: the covariances of {k:,} points in {d:,} dimensions have "
            f"{k * d * d:,} numbers, and {LARGEST:,} are the most"
        )
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
