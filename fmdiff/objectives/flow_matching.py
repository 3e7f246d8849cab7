"""Regression on a conditional quantity: flow matching, score matching and denoising."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from fmdiff.condition import Given
from fmdiff.errors import FmdiffError, nearest
from fmdiff.models.network import answer
from fmdiff.objectives.objective import Objective
from fmdiff.objectives.weighting import WEIGHTINGS, Level
from fmdiff.path import Kind, Path, expand
from fmdiff.source import Source

PREDICTIONS = ("x", "eps", "v", "score", "v_sh")
# functions of an error (B, D) and the huber constant: (B,). Only l2 is minimised by the field v
DISTANCES: dict[str, Callable[[Tensor, float], Tensor]] = {
    "l2": lambda error, c: error.square().mean(1),
    "l1": lambda error, c: error.abs().mean(1),
    # Song & Dhariwal 2024 (arXiv:2310.14189): c is their c / sqrt(D)
    "pseudo_huber": lambda error, c: (error.square().mean(1) + c * c).sqrt() - c,
}


class FlowMatching(Objective):
    """The network predicts one quantity of a path, and the loss compares another.

    For fixed x_t the conversion from quantity a to quantity b is affine with slope q(t), so

        loss = w(t) distance(q(t) (a_theta(x_t, t) - a)),

    which is w |b_theta - b|^2 for distance=l2. prediction=v is conditional flow matching (Lipman
    et al. 2023, eq. 9), score is denoising score matching (Vincent 2011), and eps is DDPM (Ho et
    al. 2020, eq. 14).

    With loss=None the weighting decides the space. If it has none, the network's output is
    compared at unit scale, q = 1 / scale(t), which keeps the loss finite on every path. A
    prediction of x would forget the small noise levels there, so it is compared as the velocity
    x - eps on the straight path, q = 1 / (1 - r). `floor` bounds alpha, beta and the determinants
    of the conversion, in the loss only. Times are kept in [t_eps, 1 - t_eps].

    Raises FmdiffError for an unknown name and for what cannot be combined.
    """

    def __init__(
        self,
        path: Path,
        data_std: float,
        prediction: Kind,
        loss: Kind | None,
        floor: float,
        t_eps: float,
        weighting: str = "none",
        gamma: float = 5.0,
        bias: float = 2.0,
        distance: str = "l2",
        huber: float = 0.01,
        precondition: bool = False,
        source: Source | None = None,
        coupled: bool = False,
    ) -> None:
        for option, value, choices in (
            ("prediction", prediction, PREDICTIONS),
            ("loss", loss or prediction, PREDICTIONS),
            ("weighting", weighting, WEIGHTINGS),
            ("distance", distance, DISTANCES),
        ):
            if value not in choices:
                raise FmdiffError(
                    f"objective.{option}={value} is unknown; {nearest(value, choices)}"
                )
        super().__init__(path, data_std, t_eps, source, coupled)
        self.prediction, self.precondition = prediction, precondition
        self.weighting, self.gamma, self.bias = weighting, gamma, bias
        self.loss, self.floor = loss or WEIGHTINGS[weighting].space, floor
        self._distance, self.huber = distance, huber

    def __call__(
        self, net: nn.Module, x: Tensor, y: Given | None, eps: Tensor, t: Tensor
    ) -> Tensor:
        x_t, target = self.path.mix(x, eps, t), self.path.mix(x, eps, t, self.prediction)
        error = self.field(net, x.shape[1:], y=y).output(x_t, t) - target
        return self.weight(t) * self.distance(expand(self.slope(t), error) * error)

    def slope(self, t: Tensor) -> Tensor:
        """q(t), from the network's prediction to the space of the loss; shaped like t."""
        if self.loss is None and self.prediction == "x" and not self.precondition:
            return 1 / (1 - self.path.r(t)).clamp(min=self.floor)
        if self.loss is None:
            return 1 / self.field(None, ()).scale(t)
        one, zero = torch.ones_like(t), torch.zeros_like(t)
        return self.path.convert(one, zero, t, self.prediction, self.loss, self.floor)

    def weight(self, t: Tensor) -> Tensor:
        """w(t), shaped like t."""
        a, b = (c.clamp(min=self.floor) for c in self.path.row("x_t", t))
        d_a, d_b = self.path.row("v", t)
        level = Level((a / b) ** 2, 2 * (d_a / a - d_b / b), self.data_std, self.gamma, self.bias)
        return WEIGHTINGS[self.weighting].weight(level)

    def distance(self, error: Tensor) -> Tensor:
        """The distance of an error (B, *shape) from 0, a mean over its elements: (B,)."""
        return DISTANCES[self._distance](error.flatten(1), self.huber)

    # The same loss in a form that trains faster.

    def terms(
        self, x: Tensor, y: Given | None, eps: Tensor, t: Tensor
    ) -> tuple[Given | None, ...]:
        """The parts of the loss w distance(c F(z, time, y) + g) besides the network's output F.

        a_theta = scale F + skipped, so c = q scale and g = q (skipped - a). The shapes are z, g
        (B, *shape), time, w (B,) and c (B, 1, ...). The last is w q^2 (B,), for `mse`.
        No gradient is needed here, so the terms of many steps are computed at once.
        """
        field = self.field(None, x.shape[1:])
        x_t = self.path.mix(x, eps, t)
        rest = field.skip(x_t, t) - self.path.mix(x, eps, t, self.prediction)
        q = self.slope(t)
        z, time = field.inputs(x_t, t)
        c, w = expand(q * field.scale(t), x_t), self.weight(t)
        return z, time, y, c, expand(q, x_t) * rest, w, w * q * q

    def compare(self, net: nn.Module, *terms: Any) -> Tensor:
        z, time, y, c, g, w, _ = terms
        loss: Tensor = w * self.distance(torch.addcmul(g, c, answer(net, z, time, y)))
        return loss

    def mse(self, losses: Tensor, *terms: Any) -> Tensor:
        """|a_theta - a|^2 / D (B,), as the loss is w q^2 times that; NaN for other distances."""
        factor = terms[-1]
        if self._distance != "l2":
            return super().mse(losses)
        return torch.where(factor > 0, losses / factor, 0.0)
