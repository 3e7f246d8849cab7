"""Fields around a field: what passes on all that it does not change, another path, a range."""

import copy
import math

import torch
from torch import Tensor

from fmdiff.condition import Given
from fmdiff.errors import FmdiffError, nearest
from fmdiff.field import EDGE, Field
from fmdiff.path import CondOT, Kind, Path, expand
from fmdiff.source import need_gaussian

PERCENTILE = 0.995  # dynamic thresholding takes this quantile of |x| for the end of the range


class Around(Field):
    """A field around a field. It passes on everything that a subclass does not change."""

    def __init__(self, field: Field) -> None:
        self.field, self.path, self.branches = field, field.path, field.branches
        self.shape, self.classes, self.only = field.shape, field.classes, field.only
        self.names, self.net = field.names, field.net
        self.gaussian, self.atoms = field.gaussian, field.atoms
        self.by_estimate = field.by_estimate
        self.two_times, self.scales = field.two_times, field.scales
        self.consistency, self.codec = field.consistency, field.codec
        self.conditions, self.values = field.conditions, field.values

    @property
    def evaluations(self) -> int:
        return self.field.evaluations

    @evaluations.setter
    def evaluations(self, count: int) -> None:
        self.field.evaluations = count

    def reset(self) -> None:
        self.field.reset()

    def price(self, t: Tensor) -> int:
        return self.field.price(t)

    def interval(self, kind: Kind = "v") -> tuple[float, float]:
        return self.field.interval(kind)

    def end(self) -> Tensor:
        return self.field.end()

    def start(self, eps: Tensor, t: Tensor, first: int, seed: int) -> Tensor:
        return self.field.start(eps, t, first, seed)

    def select(self, rows: Tensor) -> Field:
        inner = self.field.select(rows)
        if inner is self.field:
            return self
        part = copy.copy(self)
        part.field = inner
        return part

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.field!r})"


class Along(Around):
    """A field seen along another path: an exact change of coordinates.

    All Gaussian paths share the straight one. Times correspond by r = alpha / (alpha + beta), and
    x_t / (alpha + beta) is the same point on each. The inner field predicts "straight", which is
    finite wherever the field is.
    """

    def __init__(self, field: Field, path: Path) -> None:
        super().__init__(field)
        self.path = path

    def _inner(self, u: Tensor) -> tuple[Tensor, Tensor]:
        """The inner time, and the ratio of the inner to the outer state, at the outer time u."""
        t = self.field.path.time_of_r(self.path.r(u))
        inner, outer = self.field.path, self.path
        return t, (inner.alpha(t) + inner.beta(t)) / (outer.alpha(u) + outer.beta(u))

    def predict(self, x_t: Tensor, t: Tensor, kind: Kind, s: Tensor | None = None) -> Tensor:
        if kind == "score":
            need_gaussian(self, "the score")
        inner, scale = self._inner(t)
        state = (expand(scale, x_t) * x_t).to(x_t)
        end = None if s is None else self._inner(s)[0]
        if kind in ("x", "eps"):  # the same on every path
            return self.field.predict(state, inner, kind, end)
        straight = self.field.predict(state, inner, "straight", end)
        return self.path.convert(straight, x_t, t, "straight", kind)

    def price(self, t: Tensor) -> int:
        return self.field.price(self._inner(t)[0])

    def interval(self, kind: Kind = "v") -> tuple[float, float]:
        ends = torch.tensor(self.field.interval("straight"), dtype=torch.float64)
        lo, hi = self.path.time_of_r(self.field.path.r(ends))
        if not all(torch.isfinite(c) for c in self.path.row(kind, hi)):
            hi = hi.clamp(max=self.path.time_of_r(1 - EDGE * torch.ones_like(hi)))
        return lo.item(), hi.item()

    def start(self, eps: Tensor, t: Tensor, first: int, seed: int) -> Tensor:
        inner, scale = self._inner(t)
        return self.field.start(eps, inner, first, seed) / scale

    def prior(self, z: Tensor, t: Tensor) -> Tensor:
        inner, scale = self._inner(t)
        return self.field.prior(scale * z, inner) + math.prod(self.shape) * scale.log()

    def bind(self, y: Given) -> "Along":
        return Along(self.field.bind(y), self.path)

    def __repr__(self) -> str:
        return f"Along({self.field!r}, {self.path!r})"


def Straight(field: Field) -> Field:
    """The field in straight coordinates x_r = r x + (1 - r) eps, where v is `straight`."""
    return field if isinstance(field.path, CondOT) else Along(field, CondOT())


def along(field: Field, path: Path) -> Field:
    """The field along this path: itself, if that is its own."""
    same = type(field.path) is type(path) and vars(field.path) == vars(path)
    return field if same else Along(field, path)


def of_estimate(field: Field, kind: Kind) -> tuple[float, float]:
    """The interval on which `kind` follows from a changed estimate of x, which needs noise."""
    lo, hi = field.interval("x")
    if kind == "x":
        return lo, hi
    edge = field.path.time_of_r(torch.tensor(1 - EDGE, dtype=torch.float64)).item()
    first, last = field.interval(kind)
    return max(lo, first), min(hi, last, edge)


class Clipped(Around):
    """A field of images whose estimate of x is kept in [-1, 1].

    how=data clamps x. how=dynamic clamps x to [-s, s] and divides it by s, where s is the 99.5th
    percentile of |x| in each image, at least 1. This dynamic thresholding (Saharia et al. 2022,
    arXiv:2205.11487, section 2.3) keeps strong guidance from saturating.
    """

    def __init__(self, field: Field, how: str) -> None:
        super().__init__(field)
        self.how = how

    def predict(self, x_t: Tensor, t: Tensor, kind: Kind, s: Tensor | None = None) -> Tensor:
        x = self.field.predict(x_t, t, "x", s)
        if self.how == "dynamic":
            size = x.flatten(1).abs().quantile(PERCENTILE, dim=1).clamp(min=1)
            x = x / expand(size, x)
        return self.path.convert(x.clamp(-1, 1), x_t, t, "x", kind)

    def interval(self, kind: Kind = "v") -> tuple[float, float]:
        return of_estimate(self.field, kind)


def in_range(field: Field, clip: str) -> Field:
    """The field itself for clip=none, and Clipped for clip=data or dynamic.

    Raises FmdiffError for any other clip, and for data that are not images.
    """
    choices = ("none", "data", "dynamic")
    if clip not in choices:
        raise FmdiffError(f"clip={clip}: {nearest(clip, choices)}")
    if clip == "none":
        return field
    if len(field.shape) != 3:
        raise FmdiffError(f"clip={clip} needs images, whose range is known; choose clip=none")
    return Clipped(field, clip)
