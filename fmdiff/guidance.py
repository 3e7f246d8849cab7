"""Guidance: fields around fields, made from a field and labels before a solver sees them.

Every guidance here moves from a guide's answer to the model's and beyond it:

    v = guide + w (v(x_t, y) - guide),

so w = 1 is no guidance. The formula holds for every kind, since kinds are affine in each other
with the same coefficients on both sides. Where the guide is the same network, both branches are
asked in one batch; each counts as an evaluation.
"""

import functools
import math
from numbers import Real
from pathlib import Path

import torch
from torch import Tensor

from fmdiff import checkpoint
from fmdiff.errors import FmdiffError, nearest
from fmdiff.field import EDGE, Along, Around, Field
from fmdiff.formula import Formula
from fmdiff.loading import load
from fmdiff.path import Kind, expand

PERCENTILE = 0.995  # of |x| that dynamic thresholding takes for the end of the range


def unguided(field: Field, y: Tensor | None) -> Field:
    """guidance=none: the conditional branch alone (the whole field when there are no classes)."""
    return field if y is None else field.bind(y)


def cfg(
    field: Field,
    y: Tensor | None,
    w: float | str,
    interval: list[float] | None = None,
    phi: float = 0.0,
) -> Field:
    """guidance=cfg, interval and rescale: the guide is the null label's branch (see Guided).

    Raises FmdiffError when the model has no classes.
    """
    if y is None:
        raise FmdiffError(
            "guidance=cfg needs a model trained with classes, and this one was trained without; "
            "choose guidance=none, or train with data.conditional=true"
        )
    return field.bind(y) if w == 1 else Guided(field, y, w, interval, phi)


def autoguidance(
    field: Field,
    y: Tensor | None,
    w: float | str,
    ckpt: str | None,
    weights: str | float = "ema",
    trust: list[str] | tuple[str, ...] = (),
) -> Field:
    """guidance=autoguidance: the guide is a worse model of the same data.

    A smaller or less trained one, or other averages of the same run (Karras et al. 2024,
    arXiv:2406.02507). It is seen along the model's path, whatever its own is, and asked for the
    same labels if it has classes.

    Raises FmdiffError when the guide's data have another shape or other classes.
    """
    if ckpt is None:
        raise FmdiffError("guidance=autoguidance needs guidance.ckpt=RUN, the model to guide with")
    file = checkpoint.find(ckpt)
    guide = _loaded(file, file.stat().st_mtime_ns, weights, tuple(trust))
    if guide.shape != field.shape or guide.classes not in (0, field.classes):
        raise FmdiffError(
            f"guidance.ckpt={ckpt} is a model of shape {list(guide.shape)} with {guide.classes} "
            f"classes; the guided one has shape {list(field.shape)} and {field.classes} classes"
        )
    if w == 1:
        return unguided(field, y)
    net = getattr(field, "net", None)
    if net is not None:
        parameter = next(net.parameters())
        guide.to(parameter.device, parameter.dtype)
    same = type(guide.path) is type(field.path) and vars(guide.path) == vars(field.path)
    return Guided(field, y, w, guide=guide if same else Along(guide, field.path))


@functools.lru_cache(maxsize=1)  # every batch asks for it; `changed` tells a newer file apart
def _loaded(file: Path, changed: int, weights: str | float, trust: tuple[str, ...]) -> Field:
    return load(file, weights, trust)


class Guided(Around):
    """guide + w (v(x_t, y) - guide); the guide is another field or, as in classifier-free
    guidance (Ho & Salimans 2022, arXiv:2207.12598), the same with the null label.

    w: a number, or a formula of the path's time t and the straight time r. Where r lies outside
    `interval` = [lo, hi] the conditional branch alone is asked (Kynkaanniemi et al. 2024,
    arXiv:2404.07724; their noise levels are (1 - r) / r). With phi > 0 the estimate of x becomes
    phi x std(conditional) / std(x) + (1 - phi) x, std over all but the batch (Lin et al. 2023,
    arXiv:2305.08891, section 3.4).
    """

    branches = 2
    evaluations = 0  # rows asked of either network

    def __init__(
        self,
        field: Field,
        y: Tensor | None,
        w: float | str,
        interval: list[float] | None = None,
        phi: float = 0.0,
        guide: Field | None = None,
    ) -> None:
        super().__init__(field)
        self.branches, self.y, self.guide = 2, y, guide
        self.gaussian = field.gaussian and (guide is None or guide.gaussian)
        self.w: float | Formula = 1.0
        if isinstance(w, str):
            self.w = Formula(w, ("t", "r"), "guidance.w")
        elif isinstance(w, Real) and math.isfinite(w):
            self.w = float(w)
        else:
            raise FmdiffError(f"guidance.w={w}: a finite number or a formula of t and r is needed")
        if interval is not None and not (
            len(interval) == 2
            and all(isinstance(r, Real) for r in interval)
            and 0 <= interval[0] < interval[1] <= 1
        ):
            raise FmdiffError(
                f"guidance.interval={interval}: [lo,hi] with 0 <= lo < hi <= 1 is needed"
            )
        if not 0 <= phi <= 1:
            raise FmdiffError(f"guidance.phi={phi}: a number from 0 to 1 is needed")
        if phi and math.prod(field.shape) < 2:
            raise FmdiffError(f"guidance.phi={phi}: data of one dimension have no std to keep")
        self.between, self.phi = interval, phi

    def reset(self) -> None:
        self.evaluations = 0

    def inside(self, t: Tensor) -> Tensor:
        """Whether there is guidance at t: bool, shaped like t."""
        if self.between is None:
            return torch.ones_like(t, dtype=torch.bool)
        r = self.path.r(t)
        return (self.between[0] <= r) & (r <= self.between[1])

    def price(self, t: Tensor) -> int:
        return 2 if self.inside(t) else 1

    def strength(self, x: Tensor, t: Tensor) -> Tensor | float:
        """w at t, made broadcastable against x."""
        if isinstance(self.w, float):
            return self.w
        return expand(self.w(t, self.path.r(t)), x).to(x)

    def predict(self, x_t: Tensor, t: Tensor, kind: Kind) -> Tensor:
        inside = self.inside(t)
        asked: Kind = "x" if self.phi else kind
        if inside.all():
            value = self._guided(x_t, t, self.y, asked)
        elif not inside.any():
            value = self._ask(self.field, x_t, t, self.y, kind)
            asked = kind
        else:  # an adaptive solver's rows, each at its own time
            rows = inside.to(x_t.device)
            value = torch.empty_like(x_t)
            for some, answer in ((rows, self._guided), (~rows, self._conditional)):
                y = None if self.y is None else self.y[some]
                value[some] = answer(x_t[some], t[some.to(t.device)], y, asked)
        return self.path.convert(value, x_t, t, asked, kind)

    def _guided(self, x_t: Tensor, t: Tensor, y: Tensor | None, kind: Kind) -> Tensor:
        if self.guide is None:
            assert y is not None
            twice = torch.cat([t, t]) if t.ndim else t
            both = torch.cat([torch.full_like(y, self.classes), y])
            answer = self._ask(self.field, torch.cat([x_t, x_t]), twice, both, kind)
            guide, conditional = answer.chunk(2)
        else:
            guide = self._ask(self.guide, x_t, t, y if self.guide.classes else None, kind)
            conditional = self._conditional(x_t, t, y, kind)
        value = torch.lerp(guide, conditional, self.strength(x_t, t))
        if self.phi:
            usual, std = (v.flatten(1).std(1) for v in (conditional, value))
            ratio = torch.where(std > 0, usual / std, 1)  # a constant image stays as it is
            value = value * expand(self.phi * ratio + 1 - self.phi, value)
        return value

    def _conditional(self, x_t: Tensor, t: Tensor, y: Tensor | None, kind: Kind) -> Tensor:
        return self._ask(self.field, x_t, t, y, kind)

    def _ask(self, field: Field, x_t: Tensor, t: Tensor, y: Tensor | None, kind: Kind) -> Tensor:
        bound = unguided(field, y)
        before = bound.evaluations
        answer = bound.predict(x_t, t, kind)
        self.evaluations += bound.evaluations - before
        return answer

    def interval(self, kind: Kind = "v") -> tuple[float, float]:
        ends = [f.interval(kind) for f in (self.field, self.guide) if f]
        if self.phi:
            ends.append(_of_estimate(self.field, kind))
        return max(lo for lo, _ in ends), min(hi for _, hi in ends)

    def start(self, eps: Tensor, t: Tensor, first: int, seed: int) -> Tensor:
        return unguided(self.field, self.y).start(eps, t, first, seed)


def _of_estimate(field: Field, kind: Kind) -> tuple[float, float]:
    """Where `kind` can be had from a changed estimate of x: not where no noise is left."""
    lo, hi = field.interval("x")
    if kind == "x":
        return lo, hi
    edge = field.path.time_of_r(torch.tensor(1 - EDGE, dtype=torch.float64)).item()
    first, last = field.interval(kind)
    return max(lo, first), min(hi, last, edge)


class Clipped(Around):
    """A field of images whose estimate of x is kept in range, [-1, 1].

    how=data: clamped. how=dynamic: clamped to [-s, s] and divided by s, s the 99.5th percentile
    of |x| in each image, at least 1 (dynamic thresholding, Saharia et al. 2022, arXiv:2205.11487,
    section 2.3), which keeps strong guidance from saturating.
    """

    def __init__(self, field: Field, how: str) -> None:
        super().__init__(field)
        self.how = how

    def predict(self, x_t: Tensor, t: Tensor, kind: Kind) -> Tensor:
        x = self.field.predict(x_t, t, "x")
        if self.how == "dynamic":
            size = x.flatten(1).abs().quantile(PERCENTILE, dim=1).clamp(min=1)
            x = x / expand(size, x)
        return self.path.convert(x.clamp(-1, 1), x_t, t, "x", kind)

    def interval(self, kind: Kind = "v") -> tuple[float, float]:
        return _of_estimate(self.field, kind)


def clipped(field: Field, clip: str) -> Field:
    """clip=none, data or dynamic: the field itself, or Clipped.

    Raises FmdiffError for another word, and for data that are not images.
    """
    choices = ("none", "data", "dynamic")
    if clip not in choices:
        raise FmdiffError(f"clip={clip}: {nearest(clip, choices)}")
    if clip == "none":
        return field
    if len(field.shape) != 3:
        raise FmdiffError(f"clip={clip} needs images, whose range is known; choose clip=none")
    return Clipped(field, clip)
