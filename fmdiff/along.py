"""Fields around a field: what passes on all that it does not change, and another path."""

import copy
import math

import torch
from torch import Tensor

from fmdiff.field import EDGE, Field
from fmdiff.path import CondOT, Kind, Path, expand
from fmdiff.source import need_gaussian


class Around(Field):
    """A field around a field. It passes on everything that a subclass does not change."""

    def __init__(self, field: Field) -> None:
        self.field, self.path, self.branches = field, field.path, field.branches
        self.shape, self.classes, self.only = field.shape, field.classes, field.only
        self.names, self.net = field.names, field.net
        self.gaussian, self.atoms = field.gaussian, field.atoms
        self.two_times, self.scales = field.two_times, field.scales
        self.consistency = field.consistency

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

    def bind(self, y: Tensor) -> "Along":
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
