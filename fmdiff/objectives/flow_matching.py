"""Regression on a conditional quantity: flow matching, score matching, denoising in one rule."""

from collections.abc import Callable

import torch
from torch import Tensor, nn

from fmdiff.errors import FmdiffError, nearest
from fmdiff.field import NetField
from fmdiff.objectives.weighting import WEIGHTINGS, Level
from fmdiff.path import Kind, Path, expand
from fmdiff.source import Normal, Source

PREDICTIONS = ("x", "eps", "v", "score", "v_sh")
# of an error (B, D) and the huber constant: (B,). Only l2 has the field v as its minimiser
DISTANCES: dict[str, Callable[[Tensor, float], Tensor]] = {
    "l2": lambda error, c: error.square().mean(1),
    "l1": lambda error, c: error.abs().mean(1),
    # Song & Dhariwal 2024 (arXiv:2310.14189): c is their c / sqrt(D)
    "pseudo_huber": lambda error, c: (error.square().mean(1) + c * c).sqrt() - c,
}


class FlowMatching:
    """Predict one quantity of a path, be judged in another.

    For fixed x_t the conversion from quantity a to quantity b is affine with slope q(t), so

        loss = w(t) distance(q(t) (a_theta(x_t, t) - a)),

    which is w |b_theta - b|^2 for distance=l2. prediction=v is conditional flow matching (Lipman
    et al. 2023, eq. 9), score denoising score matching (Vincent 2011), eps DDPM (Ho et al. 2020,
    eq. 14). loss=None: the space of the weighting, or without one the network's own output at unit
    scale, q = 1 / scale(t), which keeps the loss finite on every path; for x, which at unit scale
    forgets the small noise levels, the velocity x - eps on the straight path, q = 1 / (1 - r).
    `floor` bounds alpha, beta and the determinants of the conversion, in the loss only; times are
    kept in [t_eps, 1 - t_eps].

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
        for option, given, choices in (
            ("prediction", prediction, PREDICTIONS),
            ("loss", loss or prediction, PREDICTIONS),
            ("weighting", weighting, WEIGHTINGS),
            ("distance", distance, DISTANCES),
        ):
            if given not in choices:
                raise FmdiffError(
                    f"objective.{option}={given} is unknown; {nearest(given, choices)}"
                )
        if not 0 <= t_eps < 0.5:
            raise FmdiffError(f"objective.t_eps={t_eps} must lie in [0, 0.5)")
        self.path, self.data_std, self.prediction = path, data_std, prediction
        self.weighting = WEIGHTINGS[weighting]
        self.loss = loss or self.weighting.space
        self.floor, self.t_eps = floor, t_eps
        self.gamma, self.bias = gamma, bias
        self.distance, self.huber = DISTANCES[distance], huber
        self.precondition = precondition
        self.source, self.coupled = source or Normal(), coupled

    def field(
        self, net: nn.Module | None, shape, classes: int = 0, y: Tensor | None = None
    ) -> NetField:
        """The network, or None if only its scales matter, as a field of this path."""
        return NetField(
            net,
            self.path,
            self.prediction,
            self.data_std,
            self.t_eps,
            shape,
            classes,
            y,
            self.precondition,
            self.source,
            self.coupled,
        )

    def time(self, u: Tensor) -> Tensor:
        """Draws u in [0, 1] of a time law, shrunk into [t_eps, 1 - t_eps]."""
        return self.t_eps + (1 - 2 * self.t_eps) * u

    def slope(self, t: Tensor, field: NetField) -> Tensor:
        """q(t), from the network's prediction to the space of the loss; shaped like t."""
        if self.loss is None and self.prediction == "x" and not self.precondition:
            return 1 / (1 - self.path.r(t)).clamp(min=self.floor)
        if self.loss is None:
            return 1 / field.scale(t)
        one, zero = torch.ones_like(t), torch.zeros_like(t)
        return self.path.convert(one, zero, t, self.prediction, self.loss, self.floor)

    def weight(self, t: Tensor) -> Tensor:
        """w(t), shaped like t."""
        a, b = (c.clamp(min=self.floor) for c in self.path.row("x_t", t))
        d_a, d_b = self.path.row("v", t)
        level = Level((a / b) ** 2, 2 * (d_a / a - d_b / b), self.data_std, self.gamma, self.bias)
        return self.weighting.weight(level)

    def __call__(self, net: nn.Module, x: Tensor, y: Tensor | None, eps: Tensor, t: Tensor):
        """The loss of each example (B,): x, eps (B, *shape), t (B,) in [t_eps, 1 - t_eps]."""
        return self.judge(net, *self.terms(x, y, eps, t))

    def terms(self, x: Tensor, y: Tensor | None, eps: Tensor, t: Tensor) -> tuple:
        """All of the loss but the network's output F: it is w distance(c F(seen, time, y) + g).

        a_theta = scale F + skipped, so c = q scale and g = q (skipped - a): seen, g (B, *shape),
        time, w (B,), c (B, 1, ...). No gradient passes here, so the terms of many steps are worked
        out at once.
        """
        field = self.field(None, x.shape[1:])
        x_t = self.path.mix(x, eps, t)
        rest = field.skipped(x_t, t) - self.path.mix(x, eps, t, self.prediction)
        q = self.slope(t, field)
        seen, time = field.given(x_t, t)
        c = expand(q * field.scale(t), x_t)
        return seen, time, y, c, expand(q, x_t) * rest, self.weight(t)

    def judge(self, net, seen, time, y, c, g, w) -> Tensor:
        """The loss of each example (B,) from its terms."""
        error = torch.addcmul(g, c, net(seen, time, y))
        return w * self.distance(error.flatten(1), self.huber)
