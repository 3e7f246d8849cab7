"""Guidance: turns a field and labels into the guided field that a solver sees.

Every guidance here aims at the density p(x_t) (p(x_t | y) / p(x_t))^w. A guide stands for p(x_t);
it is the null label or a worse model. With a guide

    v = guide + w (v(x_t, y) - guide),

so w = 1 means no guidance. The formula holds for every kind, since kinds are affine in each other
with the same coefficients on both sides. A classifier gives the same without a guide, because
grad log (p(x_t | y) / p(x_t)) = grad log p(y | x_t). If the guide is the same network, both
branches are computed in one batch. Each counts as an evaluation, and so does a classifier.
"""

import math
from numbers import Real

import torch

from fmdiff.along import along
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
    label,
    named,
)
from fmdiff.custom import Strength
from fmdiff.errors import FmdiffError
from fmdiff.field import Field, NetField
from fmdiff.guided import Guided, Late, Projected, Rescaled, Scaled
from fmdiff.source import need_gaussian


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


class ClassifierFree(Unguided):
    """Guidance whose guide is the null label's branch (see fmdiff.guided.Guided).

    The guide knows nothing of y or, with `on`, all but the conditions of these names, among which
    `label` is the class. w = 1 is the conditional branch alone.

    Raises FmdiffError for an option out of range and, when called, for a model without classes and
    conditions or without those of `on`.
    """

    choice = "cfg"  # the name on the command line

    def __init__(
        self,
        w: float | str,
        interval: list[float] | None = None,
        on: list[str] | None = None,
    ) -> None:
        self.w, self.interval, self.on = Strength(w), interval, on
        if interval is not None and not (
            len(interval) == 2
            and all(isinstance(r, Real) for r in interval)
            and 0 <= interval[0] < interval[1] <= 1
        ):
            raise FmdiffError(
                f"guidance.interval={interval}: [lo,hi] with 0 <= lo < hi <= 1 is needed"
            )
        if on is not None and not (
            isinstance(on, list) and on and all(isinstance(name, str) for name in on)
        ):
            raise FmdiffError(
                f"guidance.on={on}: null or a list of names of conditions, like [label], is needed"
            )

    def __call__(self, field: Field, y: Given | None) -> Field:
        if y is None:
            raise FmdiffError(
                f"guidance={self.choice} needs a model trained with classes or conditions, and "
                "this one was trained without; choose guidance=none, or train with "
                "data.conditional=true"
            )
        names = [LABEL] * (label(y) is not None) + [*named(y)]
        if self.on is not None and not {*self.on} <= {*names}:
            raise FmdiffError(
                f"guidance.on=[{','.join(self.on)}]: the conditions of this model are "
                f"{', '.join(names)}"
            )
        return field.bind(y) if self.w == 1 else self.guided(field, y)

    def guided(self, field: Field, y: Given) -> Field:
        """The guided field for w other than 1."""
        return Guided(field, y, self.w, self.interval, on=self.on)


class CFG(ClassifierFree):
    """guidance=cfg, interval and rescale: the linear rule, and the std of images kept by phi.

    A constant w alone is an input of a network that was trained with such scales, at one branch.

    Raises FmdiffError as ClassifierFree does, for phi without images, and for a w that the network
    was not trained with.
    """

    def __init__(
        self,
        w: float | str,
        interval: list[float] | None = None,
        phi: float = 0.0,
        on: list[str] | None = None,
    ) -> None:
        super().__init__(w, interval, on)
        self.phi = phi
        if not 0 <= phi <= 1:
            raise FmdiffError(f"guidance.phi={phi}: a number from 0 to 1 is needed")

    def __call__(self, field: Field, y: Given | None) -> Field:
        if self.phi and len(field.shape) != 3 and y is not None:
            raise FmdiffError(
                f"guidance.phi={self.phi}: rescaling keeps the contrast of an image, the std of "
                "its pixels, and these data are no images; choose guidance=cfg or interval"
            )
        return super().__call__(field, y)

    def guided(self, field: Field, y: Given) -> Field:
        if self.phi:
            return Rescaled(field, y, self.w, self.phi, self.interval, self.on)
        w = self.w.value
        alone = self.interval is None and self.on is None
        if alone and isinstance(w, float) and isinstance(field, NetField) and field.scales:
            lo, hi = field.scales
            if not lo <= w <= hi:
                raise FmdiffError(
                    f"guidance.w={w:g}: this model takes w as an input, and it was trained with "
                    f"w from {lo:g} to {hi:g}"
                )
            return field.bind(y).at_scale(torch.tensor(w))
        return super().guided(field, y)


class APG(ClassifierFree):
    """guidance=apg: adaptive projected guidance (see fmdiff.guided.Projected).

    `eta` is the share of what changes along the estimate of x, `threshold` the largest norm of the
    change of x, and `momentum` the share of the changes before, which depends on the steps.

    Raises FmdiffError as ClassifierFree does.
    """

    choice = "apg"

    def __init__(
        self,
        w: float | str,
        eta: float = 0.0,
        threshold: float | None = None,
        momentum: float = 0.0,
        interval: list[float] | None = None,
        on: list[str] | None = None,
    ) -> None:
        super().__init__(w, interval, on)
        self.eta, self.threshold, self.momentum = eta, threshold, momentum
        if not (isinstance(eta, Real) and math.isfinite(eta)):
            raise FmdiffError(f"guidance.eta={eta}: a finite number is needed")
        if threshold is not None and not (isinstance(threshold, Real) and threshold > 0):
            raise FmdiffError(f"guidance.threshold={threshold}: a number > 0 or null is needed")
        if not (isinstance(momentum, Real) and -1 < momentum < 1):
            raise FmdiffError(f"guidance.momentum={momentum}: a number between -1 and 1 is needed")

    def guided(self, field: Field, y: Given) -> Field:
        parts = self.eta, self.threshold, self.momentum
        return Projected(field, y, self.w, *parts, self.interval, self.on)


class CFGZero(ClassifierFree):
    """guidance=cfg_zero: CFG-Zero* (see fmdiff.guided.Scaled).

    The guide is scaled to come nearest to the conditional branch. Up to the straight time `zero`
    samples stand still (zero-init), so the solver begins there.

    Raises FmdiffError as ClassifierFree does.
    """

    choice = "cfg_zero"

    def __init__(
        self,
        w: float | str,
        zero: float = 0.0,
        interval: list[float] | None = None,
        on: list[str] | None = None,
    ) -> None:
        super().__init__(w, interval, on)
        self.zero = zero
        if not (isinstance(zero, Real) and 0 <= zero < 1):
            raise FmdiffError(f"guidance.zero={zero}: a number from 0 to below 1 is needed")

    def need_maps(self) -> None:
        raise FmdiffError(
            "guidance=cfg_zero scales a velocity at one time, and a jump of a flow map has none: "
            "choose solver=adams, or guidance=cfg"
        )

    def guided(self, field: Field, y: Given) -> Field:
        guided = Scaled(field, y, self.w, self.interval, on=self.on)
        return Late(guided, self.zero) if self.zero else guided


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
