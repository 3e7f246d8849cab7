"""Regression on a conditional quantity: flow matching, score matching, denoising in one rule."""

import torch
from torch import Tensor, nn

from fmdiff.errors import FmdiffError, nearest
from fmdiff.field import NetField
from fmdiff.path import Kind, Path

PREDICTIONS = ("x", "eps", "v", "score", "v_sh")


class FlowMatching:
    """Predict one quantity of a path, be judged in another.

    For fixed x_t the conversion from quantity a to quantity b is affine with slope q(t), so

        loss = q(t)^2 mean |a_theta(x_t, t) - a|^2 = mean |b_theta - b|^2.

    prediction=v is conditional flow matching (Lipman et al. 2023, eq. 9), score denoising score
    matching (Vincent 2011), eps DDPM (Ho et al. 2020, eq. 14). loss=None: the prediction's own
    space, and eps for the score, whose own loss diverges like 1/beta^2 at t = 1. `floor` bounds
    the determinants of the conversion, in the loss only; times are kept in [t_eps, 1 - t_eps].
    """

    def __init__(
        self,
        path: Path,
        data_std: float,
        prediction: Kind,
        loss: Kind | None,
        floor: float,
        t_eps: float,
    ) -> None:
        loss = loss or ("eps" if prediction == "score" else prediction)
        for option, kind in (("prediction", prediction), ("loss", loss)):
            if kind not in PREDICTIONS:
                raise FmdiffError(
                    f"objective.{option}={kind} is unknown; {nearest(kind, PREDICTIONS)}"
                )
        if not 0 <= t_eps < 0.5:
            raise FmdiffError(f"objective.t_eps={t_eps} must lie in [0, 0.5)")
        self.path, self.data_std = path, data_std
        self.prediction, self.loss = prediction, loss
        self.floor, self.t_eps = floor, t_eps

    def field(self, net: nn.Module, shape, classes: int = 0, y: Tensor | None = None) -> NetField:
        """The network as a field of this path and prediction."""
        return NetField(
            net, self.path, self.prediction, self.data_std, self.t_eps, shape, classes, y
        )

    def time(self, u: Tensor) -> Tensor:
        """Draws u in [0, 1] of a time law, shrunk into [t_eps, 1 - t_eps]."""
        return self.t_eps + (1 - 2 * self.t_eps) * u

    def weight(self, t: Tensor) -> Tensor:
        """q(t)^2, the squared slope from the prediction to the loss space; shaped like t."""
        one, zero = torch.ones_like(t), torch.zeros_like(t)
        return self.path.convert(one, zero, t, self.prediction, self.loss, self.floor) ** 2

    def __call__(self, net: nn.Module, x: Tensor, y: Tensor | None, eps: Tensor, t: Tensor):
        """The loss of each example (B,): x, eps (B, *shape), t (B,) in [t_eps, 1 - t_eps]."""
        x_t = self.path.mix(x, eps, t)
        target = self.path.mix(x, eps, t, self.prediction)
        value = self.field(net, x.shape[1:], y=y).output(x_t, t)
        return self.weight(t) * (value - target).square().flatten(1).mean(1)
