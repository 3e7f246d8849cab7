"""Guidance: turns a field and labels into the guided field that a solver sees.

Every guidance here aims at the density p(x_t) (p(x_t | y) / p(x_t))^w. A guide stands for p(x_t);
it is the null label or a worse model. With a guide

    v = guide + w (v(x_t, y) - guide),

so w = 1 means no guidance. The formula holds for every kind, since kinds are affine in each other
with the same coefficients on both sides. A classifier gives the same without a guide, because
grad log (p(x_t | y) / p(x_t)) = grad log p(y | x_t). If the guide is the same network, both
branches are computed in one batch. Each counts as an evaluation, and so does a classifier.
"""

import copy
from numbers import Real

import torch
from torch import Tensor

from fmdiff.along import Around, along, of_estimate
from fmdiff.build import Described, of_class
from fmdiff.classifier import Classifier, Tilted
from fmdiff.condition import (
    LABEL,
    Classes,
    Given,
    alike,
    classes_in_turn,
    described,
    given,
    join,
    label,
    named,
    null,
    within,
)
from fmdiff.custom import Strength
from fmdiff.errors import FmdiffError
from fmdiff.field import Field, NetField
from fmdiff.path import Kind, expand
from fmdiff.source import need_gaussian

FLAT = 1e-5  # an image whose std is a smaller share of its size is constant up to rounding


class Unguided(Described):
    """guidance=none: the conditional branch alone (the whole field when there are no classes).

    The base class of every guidance. `leader` names the parameter that takes the guiding model. A
    YAML gives that model by ckpt, weights and trust, for `fmdiff.loading.guidance` to load.
    """

    leader: str | None = None
    guide: Field | None = None
    classifier: Classifier | None = None
    differentiable = True  # whether the guided v can be differentiated, as a likelihood needs

    def labels(
        self, field: Field, classes: Classes, start: int, stop: int, seed: int
    ) -> Given | None:
        """What samples start ... stop - 1 of the field are bound to."""
        return field.labels(classes, start, stop, seed)

    def need_maps(self) -> None:
        """Raises FmdiffError unless this guidance can guide the jumps of a flow map."""

    def __call__(self, field: Field, y: Given | None) -> Field:
        """The field to integrate for labels y (B,)."""
        return field if y is None else field.bind(y)


class CFG(Unguided):
    """guidance=cfg, interval and rescale: the guide is the null label's branch (see Guided).

    The guide knows nothing of y or, with `on`, all but the conditions of these names, among which
    `label` is the class. A constant w alone is an input of a network that was trained with such
    scales, at one branch.

    Raises FmdiffError for an option out of range and, when called, for a model without classes and
    conditions or without those of `on`, and for a w that its network was not trained with.
    """

    def __init__(
        self,
        w: float | str,
        interval: list[float] | None = None,
        phi: float = 0.0,
        on: list[str] | None = None,
    ) -> None:
        self.w, self.interval, self.phi, self.on = Strength(w), interval, phi, on
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
        if on is not None and not (
            isinstance(on, list) and on and all(isinstance(name, str) for name in on)
        ):
            raise FmdiffError(
                f"guidance.on={on}: null or a list of names of conditions, like [label], is needed"
            )

    def __call__(self, field: Field, y: Given | None) -> Field:
        if y is None:
            raise FmdiffError(
                "guidance=cfg needs a model trained with classes or conditions, and this one was "
                "trained without; choose guidance=none, or train with data.conditional=true"
            )
        if self.phi and len(field.shape) != 3:
            raise FmdiffError(
                f"guidance.phi={self.phi}: rescaling keeps the contrast of an image, the std of "
                "its pixels, and these data are no images; choose guidance=cfg or interval"
            )
        names = [LABEL] * (label(y) is not None) + [*named(y)]
        if self.on is not None and not {*self.on} <= {*names}:
            raise FmdiffError(
                f"guidance.on=[{','.join(self.on)}]: the conditions of this model are "
                f"{', '.join(names)}"
            )
        w = self.w.value
        if w == 1:
            return field.bind(y)
        alone = self.interval is None and not self.phi and self.on is None
        if alone and isinstance(w, float) and isinstance(field, NetField) and field.scales:
            lo, hi = field.scales
            if not lo <= w <= hi:
                raise FmdiffError(
                    f"guidance.w={w:g}: this model takes w as an input, and it was trained with "
                    f"w from {lo:g} to {hi:g}"
                )
            return field.bind(y).at_scale(torch.tensor(w))
        return Guided(field, y, self.w, self.interval, self.phi, on=self.on)


class Autoguidance(Unguided):
    """guidance=autoguidance: the guide is a worse model of the same data.

    The guide may be smaller or less trained, or use other averages of the same run (Karras et al.
    2024, arXiv:2406.02507). It is converted to the model's path, and it gets the same labels if
    it has classes, and those conditions that it has. Messages call it `origin`.

    Raises FmdiffError, when called, if the guide's data have another shape or other classes, or
    conditions that the model lacks.
    """

    leader = "guide"
    guide: Field

    def __init__(self, w: float | str, guide: Field, origin: str = "the guide") -> None:
        self.w, self.guide, self.origin = Strength(w), of_class(guide, Field), origin

    def need_maps(self) -> None:
        if not self.guide.two_times:
            raise FmdiffError(
                f"{self.origin} is a velocity alone, and solver=jump needs a flow map for the "
                "guide, too: give one in guidance.ckpt, or choose solver=heun"
            )

    def __call__(self, field: Field, y: Given | None) -> Field:
        guide = self.guide
        if guide.shape != field.shape or guide.classes not in (0, field.classes):
            raise FmdiffError(
                f"{self.origin} is a model of shape {list(guide.shape)} with "
                f"{guide.classes} classes; the guided one has shape {list(field.shape)} and "
                f"{field.classes} classes"
            )
        shared = {name: f for name, f in field.conditions.items() if name in guide.conditions}
        if not alike(guide.conditions, shared):
            raise FmdiffError(
                f"{self.origin} has {described(guide.conditions)}; the guided model has "
                f"{described(field.conditions)}"
            )
        if self.w == 1:
            return super().__call__(field, y)
        guide.to(*_place(field))
        return Guided(field, y, self.w, guide=along(guide, field.path))


class ByClassifier(Unguided):
    """guidance=classifier: a classifier of noisy data guides a model, with or without classes.

    See Tilted. objective=classification trains the classifier. Messages call it `origin`.

    Raises FmdiffError, when called, if the classifier's data have another shape or other
    classes, and for a model whose source is not normal and independent of x.
    """

    leader = "classifier"
    classifier: Classifier
    differentiable = False

    def __init__(
        self, w: float | str, classifier: Classifier, origin: str = "the classifier"
    ) -> None:
        self.w, self.origin = Strength(w), origin
        self.classifier = of_class(classifier, Classifier)

    def labels(
        self, field: Field, classes: Classes, start: int, stop: int, seed: int
    ) -> Given | None:
        if field.classes:
            return field.labels(classes, start, stop, seed)
        labels = classes_in_turn(classes, self.classifier, field.only, start, stop)
        return given(labels, named(field.labels(None, start, stop, seed)))

    def need_maps(self) -> None:
        raise FmdiffError(
            "guidance=classifier changes the velocity at one time, and a jump of a flow map has "
            "none: choose solver=heun, or guidance=cfg"
        )

    def __call__(self, field: Field, y: Given | None) -> Field:
        guide = self.classifier
        if guide.shape != field.shape or field.classes not in (0, guide.classes):
            raise FmdiffError(
                f"{self.origin} is a classifier of {guide.classes} classes for data "
                f"of shape {list(guide.shape)}; the guided model has shape {list(field.shape)} "
                f"and {field.classes} classes"
            )
        need_gaussian(field, "guidance=classifier")
        guide.to(*_place(field))
        assert y is not None
        return Tilted(field, y, self.w, guide)


def _place(field: Field) -> tuple[torch.device | str, torch.dtype]:
    """The device and dtype of a field's network, or the CPU and float32 without a network."""
    parameter = None if field.net is None else next(field.net.parameters(), None)
    return ("cpu", torch.float32) if parameter is None else (parameter.device, parameter.dtype)


class Guided(Around):
    """The guided field guide + w (v(x_t, y) - guide).

    The guide is another field or, in classifier-free guidance (Ho & Salimans 2022,
    arXiv:2207.12598), the same field without the label and conditions of y, or without those of
    `on`. If r lies outside `interval` = [lo, hi], only the conditional branch is computed
    (Kynkaanniemi et al. 2024, arXiv:2404.07724; their noise levels are (1 - r) / r). With phi > 0
    the estimate of x becomes phi x std(conditional) / std(x) + (1 - phi) x, where std is taken
    over each sample (Lin et al. 2023, arXiv:2305.08891, section 3.4).
    """

    evaluations = 0  # rows evaluated by either network

    def __init__(
        self,
        field: Field,
        y: Given | None,
        w: Strength,
        interval: list[float] | None = None,
        phi: float = 0.0,
        guide: Field | None = None,
        on: list[str] | None = None,
    ) -> None:
        super().__init__(field)
        self.branches, self.y, self.w, self.guide, self.on = 2, y, w, guide, on
        self.gaussian = field.gaussian and (guide is None or guide.gaussian)
        self.ends, self.phi = interval, phi

    def reset(self) -> None:
        self.evaluations = 0

    def select(self, rows: Tensor) -> "Guided":
        part = copy.copy(self)
        part.y = None if self.y is None else self.y[rows]
        return part

    def prior(self, z: Tensor, t: Tensor) -> Tensor:
        return self._branch().prior(z, t)

    def inside(self, t: Tensor) -> Tensor:
        """Whether there is guidance at t: bool, shaped like t."""
        if self.ends is None:
            return torch.ones_like(t, dtype=torch.bool)
        r = self.path.r(t)
        return (self.ends[0] <= r) & (r <= self.ends[1])

    def price(self, t: Tensor) -> int:
        return 2 if self.inside(t) else 1

    def predict(self, x_t: Tensor, t: Tensor, kind: Kind, s: Tensor | None = None) -> Tensor:
        inside = self.inside(t)
        answered: Kind = "x" if self.phi else kind
        if inside.all():
            value = self._guided(x_t, t, self.y, answered, s)
        elif not inside.any():
            value = self._ask(self.field, x_t, t, self.y, kind, s)
            answered = kind
        else:  # an adaptive solver's rows, each at its own time
            rows = inside.to(x_t.device)
            value = torch.empty_like(x_t)
            for some, answer in ((rows, self._guided), (~rows, self._conditional)):
                y = None if self.y is None else self.y[some]
                end = s if s is None or not s.ndim else s[some.to(s.device)]
                value[some] = answer(x_t[some], t[some.to(t.device)], y, answered, end)
        return self.path.convert(value, x_t, t, answered, kind)

    def _guided(
        self, x_t: Tensor, t: Tensor, y: Given | None, kind: Kind, s: Tensor | None
    ) -> Tensor:
        if self.guide is None:
            assert y is not None
            twice, ends = (torch.cat([a, a]) if a is not None and a.ndim else a for a in (t, s))
            assert twice is not None
            both = join([null(y, self.classes, self.on), y])
            answer = self._ask(self.field, torch.cat([x_t, x_t]), twice, both, kind, ends)
            guide, conditional = answer.chunk(2)
        else:
            guide = self._ask(
                self.guide, x_t, t, within(y, self.guide.classes, self.guide.conditions), kind, s
            )
            conditional = self._conditional(x_t, t, y, kind, s)
        value = torch.lerp(guide, conditional, self.w(self.path, x_t, t))
        if self.phi:
            usual, std = (v.flatten(1).std(1) for v in (conditional, value))
            least = FLAT * value.flatten(1).square().mean(1).sqrt()
            ratio = torch.where(std > least, usual / std, 1)  # a constant image stays as it is
            value = value * expand(self.phi * ratio + 1 - self.phi, value)
        return value

    def _conditional(
        self, x_t: Tensor, t: Tensor, y: Given | None, kind: Kind, s: Tensor | None
    ) -> Tensor:
        return self._ask(self.field, x_t, t, y, kind, s)

    def _ask(
        self,
        field: Field,
        x_t: Tensor,
        t: Tensor,
        y: Given | None,
        kind: Kind,
        s: Tensor | None,
    ) -> Tensor:
        branch = field if y is None else field.bind(y)
        before = branch.evaluations
        answer = branch.predict(x_t, t, kind, s)
        self.evaluations += branch.evaluations - before
        return answer

    def interval(self, kind: Kind = "v") -> tuple[float, float]:
        ends = [f.interval(kind) for f in (self.field, self.guide) if f]
        if self.phi:
            ends.append(of_estimate(self.field, kind))
        return max(lo for lo, _ in ends), min(hi for _, hi in ends)

    def start(self, eps: Tensor, t: Tensor, first: int, seed: int) -> Tensor:
        return self._branch().start(eps, t, first, seed)

    def _branch(self) -> Field:
        return self.field if self.y is None else self.field.bind(self.y)
