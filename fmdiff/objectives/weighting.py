"""Weightings w(t) of a loss over noise levels: `objective.weighting=`.

Each is the weight that its paper gives to the squared error of x or eps, under a uniform law of
time. With loss=null that space is used. `floor` bounds alpha and beta from below.
"""

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from fmdiff.path import Kind


class Level(NamedTuple):
    """The arguments of a weighting. Each tensor is shaped like t."""

    snr: Tensor  # alpha^2 / beta^2
    d_logsnr: Tensor  # derivative of log snr, = 2 (alpha'/alpha - beta'/beta)
    data_std: float
    gamma: float
    bias: float


class Weighting(NamedTuple):
    """A weight, and the quantity whose squared error it weights."""

    space: Kind | None  # the space of the squared error in its paper
    weight: Callable[[Level], Tensor]


WEIGHTINGS: dict[str, Weighting] = {
    "none": Weighting(None, lambda at: torch.ones_like(at.snr)),
    # the squared error of eps, written for x (Salimans & Ho 2022, arXiv:2202.00512)
    "snr": Weighting("x", lambda at: at.snr),
    # Hang et al. 2023 (arXiv:2303.09556)
    "min_snr": Weighting("x", lambda at: at.snr.clamp(max=at.gamma)),
    # Karras et al. 2022 (arXiv:2206.00364, table 1): (sigma^2 + s^2) / (sigma s)^2
    "edm": Weighting("x", lambda at: at.snr + 1 / at.data_std**2),
    # SiD2 (Hoogeboom et al. 2024, arXiv:2410.19324), after Kingma & Gao 2023
    "sigmoid": Weighting(
        "eps", lambda at: at.d_logsnr / 2 * torch.sigmoid(at.bias - at.snr.log())
    ),
    # g^2 / 2 times the score's error (Song et al. 2021, arXiv:2101.09258): a bound on -log p
    "likelihood": Weighting("eps", lambda at: at.d_logsnr / 2),
}
