"""The network for points: a few linear layers, so that a training step takes milliseconds."""

from collections.abc import Sequence
from math import isfinite

import torch
from torch import Tensor, nn

from fmdiff.condition import Given, label
from fmdiff.errors import FmdiffError, nearest
from fmdiff.models.condition import Forms, channels_of, embedded
from fmdiff.models.layers import MapInputs, Sinusoid, zeroed
from fmdiff.models.network import Network, flags, need_axes, require, sizes
from fmdiff.randomness import generator

TIME_FEATURES = 64
ACTIVATIONS = {"silu": nn.SiLU, "relu": nn.ReLU, "selu": nn.SELU}


class MLP(Network):
    """`layers` hidden layers with one `activation` on [x_t, cos and sin of x_t F, sinusoid(t)].

    x_t (B, D) of about unit variance, t (B,) in [0, 1000], y (B,) in 0..classes (`classes` is the
    null label) or None when classes == 0 -> (B, D), zero at initialisation. F (D, frequencies) has
    fixed entries from N(0, scale^2) and is stored with the weights. The label's vector and those
    of the `conditions` are added in the first layer. With `skip` a multiple of x_t, linear in
    sinusoid(t), is added to the output, since far from the data every quantity of a path is linear
    in x_t. A map adds `MapInputs` to the first layer and to that multiple.

    Raises FmdiffError for images, for conditions that are no vectors, for an unknown activation
    and for a size below 1. Source: Tancik et al. 2020 (Fourier features).
    """

    axes = 1

    fourier: Tensor

    def __init__(
        self,
        *,
        shape: Sequence[int],
        classes: int,
        hidden: int,
        layers: int,
        frequencies: int,
        scale: float,
        activation: str = "silu",  # checkpoints of 0.1.0 lack it and what follows
        skip: bool = False,
        time_frequency: float | None = None,
        second_time: bool = False,
        guided: bool = False,
        conditions: Forms = None,
    ) -> None:
        super().__init__()
        if activation not in list(ACTIVATIONS):
            raise FmdiffError(
                f"model.activation={activation} is unknown; {nearest(activation, ACTIVATIONS)}"
            )
        need_axes("mlp", shape, 1)
        sizes(hidden=hidden, layers=layers)
        sizes(0, frequencies=frequencies)
        flags(skip=skip)
        require(
            "a finite number", lambda v: isinstance(v, int | float) and isfinite(v), scale=scale
        )
        (size,) = shape
        draws = generator(0, "fourier")
        normal = torch.randn(size, frequencies, generator=draws, device="cpu")
        self.register_buffer("fourier", scale * normal)
        self.time = Sinusoid(TIME_FEATURES, time_frequency)
        self.first = nn.Linear(size + 2 * frequencies + TIME_FEATURES, hidden)
        self.label = nn.Embedding(classes + 1, hidden) if classes else None
        self.map = MapInputs(TIME_FEATURES, hidden, second_time, guided)
        self.skip = zeroed(nn.Linear(TIME_FEATURES, 1)) if skip else None
        self.skip_map = MapInputs(TIME_FEATURES, 1, second_time and skip, guided and skip)
        act = ACTIVATIONS[activation]
        rest = [part for _ in range(layers - 1) for part in (act(), nn.Linear(hidden, hidden))]
        self.rest = nn.Sequential(*rest, act(), zeroed(nn.Linear(hidden, size)))
        channels_of(conditions, shape, "mlp")
        self.embedded = embedded(conditions, hidden)

    def forward(
        self,
        x_t: Tensor,
        t: Tensor,
        y: Given | None = None,
        s: Tensor | None = None,
        w: Tensor | None = None,
    ) -> Tensor:
        time, features = self.time(t), [x_t]
        if self.fourier.shape[1]:
            angles = x_t @ self.fourier
            features += [angles.cos(), angles.sin()]
        h = self.map(self.first(torch.cat([*features, time], dim=1)), t, s, w)
        if self.label is not None:
            h = h + self.label(label(y))
        if self.embedded is not None:
            h = h + self.embedded(y, h)
        out: Tensor = self.rest(h)
        if self.skip is None:
            return out
        factor: Tensor = self.skip_map(self.skip(time), t, s, w)
        return out + factor * x_t


class MLPClassifier(MLP):
    """The same layers, ending in logits (B, classes).

    Raises FmdiffError for images, an unknown activation and a size below 1.
    """

    logits = True

    def __init__(
        self,
        *,
        shape: Sequence[int],
        classes: int,
        hidden: int,
        layers: int,
        frequencies: int,
        scale: float,
        activation: str,
        time_frequency: float | None = None,  # checkpoints of 0.1.0 lack it
    ) -> None:
        if len(shape) != 1:
            raise FmdiffError(
                f"model=mlp_classifier takes points, but the data has shape {tuple(shape)}; "
                "choose model=classifier for images"
            )
        super().__init__(
            shape=shape,
            classes=0,
            hidden=hidden,
            layers=layers,
            frequencies=frequencies,
            scale=scale,
            activation=activation,
            time_frequency=time_frequency,
        )
        self.rest[-1] = nn.Linear(hidden, classes)
