"""The contract of objectives: the loss of a training step, and the field that it trains."""

import math
from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import Any

import torch
from torch import Generator, Tensor, nn

from fmdiff.build import Described
from fmdiff.codec import Codec
from fmdiff.condition import Form, Given
from fmdiff.errors import FmdiffError
from fmdiff.field import NetField
from fmdiff.path import Kind, Path
from fmdiff.source import Normal, Source

Law = Callable[[int, Generator], Tensor]  # (n, generator) -> draws (n,) in [0, 1] of a time law
Generators = Callable[[str], Generator]  # a purpose -> the generator of its draws


class Objective(Described):
    """A loss of pairs (x, eps) at time t. To write your own, derive a class with `__call__`.

    A YAML gives its own keys; path, data_std, source and coupled come from the run. data_std is
    the standard deviation of the data, and coupled tells whether eps depends on x.

    Raises FmdiffError for t_eps out of range.
    """

    logits = False  # whether its networks return logits, not a quantity of the path
    autoencodes = False  # whether its networks are codecs, as those of models/autoencoder.py
    prediction: Kind = "v"  # the quantity that the network predicts, for `field`
    precondition = False  # see field.NetField
    two_times = False  # whether its networks take a second time s, for jumps from t to s
    guidance: Sequence[float] | None = None  # the scales, if its networks take one as an input
    classes = 0  # of the data, set by the run
    # of a training step per sample: passes of the network without and with gradient, and of the
    # teacher's network
    evaluations: tuple[float, float, float] = (0.0, 1.0, 0.0)
    # the mean of the data (*shape), set by the run; None stands for 0. No argument, so that
    # objectives of one's own need not name it
    data_mean: Tensor | None = None
    # what samples are conditioned on besides the label, and their codec: set like `data_mean`
    conditions: Mapping[str, Form] = MappingProxyType({})
    codec: Codec | None = None

    def __init__(
        self,
        path: Path,
        data_std: float,
        t_eps: float = 0.0,
        source: Source | None = None,
        coupled: bool = False,
    ) -> None:
        if not 0 <= t_eps < 0.5:
            raise FmdiffError(f"objective.t_eps={t_eps} must lie in [0, 0.5)")
        self.path, self.data_std, self.t_eps = path, data_std, t_eps
        self.source, self.coupled = source or Normal(), coupled

    def __call__(
        self, net: nn.Module, x: Tensor, y: Given | None, eps: Tensor, t: Tensor
    ) -> Tensor:
        """The loss of each example (B,) for x, eps (B, *shape), y (B,) and t (B,).

        What else `times` returns comes after t.
        """
        raise FmdiffError(
            f"objective: {type(self).__name__} must define __call__(self, net, x, y, eps, t), "
            "which returns the loss of each example"
        )

    def field(
        self,
        net: nn.Module | None,
        shape: Sequence[int],
        classes: int = 0,
        y: Given | None = None,
    ) -> NetField:
        """The network as a field of this path. net=None suffices if only the scales matter."""
        field = NetField(
            net,
            self.path,
            self.prediction,
            self.data_std,
            self.t_eps,
            tuple(shape),
            classes,
            y,
            self.precondition,
            self.source,
            self.coupled,
            self.data_mean,
        )
        field.conditions, field.codec = self.conditions, self.codec
        return field

    @property
    def samples(self) -> bool:
        """Whether its networks are fields, which can be sampled."""
        return not (self.logits or self.autoencodes)

    @property
    def inputs(self) -> dict[str, Any]:
        """The keywords that make a network take what else this objective gives it."""
        names = {"second_time": self.two_times, "guided": self.guidance is not None}
        inputs: dict[str, Any] = {name: True for name, needed in names.items() if needed}
        return inputs | ({"conditions": self.conditions} if self.conditions else {})

    def time(self, u: Tensor) -> Tensor:
        """Map draws u in [0, 1] of a time law into [t_eps, 1 - t_eps]."""
        return self.t_eps + (1 - 2 * self.t_eps) * u

    def times(
        self, n: int, law: Law, generators: Generators, progress: float
    ) -> tuple[Tensor, ...]:
        """The times t (n,) of a step, and what else it needs that depends on no data, (n, *) each.

        law(n, generator) draws from the time law. generators(purpose) is the generator of a
        purpose at this step. progress is the share of the training that lies behind.
        """
        return (self.time(law(n, generators("time"))),)

    def terms(
        self, x: Tensor, y: Given | None, eps: Tensor, t: Tensor
    ) -> tuple[Given | None, ...]:
        """The arguments of `compare` besides the network, each with B rows or None.

        Training computes the terms of many steps at once and without gradients. By default they
        are the arguments of `__call__`. An objective may compute here all that needs no network.
        """
        return x, y, eps, t

    def compare(self, net: nn.Module, *terms: Any) -> Tensor:
        """The loss of each example (B,) from its terms, equal to `__call__` up to rounding.

        Raises FmdiffError if `__call__` does not return such a loss.
        """
        loss, n = self(net, *terms), next(len(part) for part in terms if part is not None)
        if not isinstance(loss, Tensor) or loss.shape != (n,):
            what = list(loss.shape) if isinstance(loss, Tensor) else type(loss).__name__
            raise FmdiffError(
                f"objective: {type(self).__name__} must return a loss per example, of shape "
                f"[{n}], and returned {what}"
            )
        return loss

    def assess(self, net: nn.Module, *terms: Any) -> tuple[Tensor, Tensor]:
        """What `compare` and `mse` give, for an objective that knows both at once."""
        losses = self.compare(net, *terms)
        return losses, self.mse(losses.detach(), *terms)

    def mse(self, losses: Tensor, *terms: Any) -> Tensor:
        """The mean squared error of the prediction per example (B,), from losses and terms.

        It is what papers print, without the weights and scales of the loss. NaN if it is unknown.
        """
        return torch.full_like(losses, math.nan)
