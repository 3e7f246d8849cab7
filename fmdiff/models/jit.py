"""The transformer of "Back to basics" (JiT): large patches of pixels, made to predict x."""

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fmdiff.condition import Given, label
from fmdiff.errors import FmdiffError
from fmdiff.models.condition import Forms, channels_of
from fmdiff.models.dit import (
    MLP_RATIO,
    TIME_FEATURES,
    Block,
    Final,
    SelfAttention,
    initialise,
    patch_grid,
    positions,
    tokens,
)
from fmdiff.models.layers import Conditioning
from fmdiff.models.network import Network, sizes


class RMSNorm(nn.Module):
    """g h / sqrt(mean h^2 + 1e-6) over the last dimension. Source: Zhang & Sennrich 2019."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))

    def forward(self, h: Tensor) -> Tensor:
        # A float32 weight as an argument keeps bfloat16 from the fused kernel, with a warning.
        return F.rms_norm(h, h.shape[-1:], eps=1e-6) * self.weight


def rotation(rows: int, columns: int, size: int, still: int) -> Tensor:
    """cos and sin of the angles by which a token turns the size / 2 planes of a head.

    (2, still + rows columns, size / 2). The first `still` tokens do not turn. For the others the
    angles are w_i row, then w_i column, with w_i = 10000^(-i / quarter), quarter = size / 4.
    Source: Su et al. 2021.
    """
    frequencies = torch.exp(-math.log(10_000) * torch.arange(size // 4) / (size // 4))
    row, column = torch.meshgrid(torch.arange(rows), torch.arange(columns), indexing="ij")
    angles = torch.cat([p.flatten()[:, None] * frequencies for p in (row, column)], dim=1)
    angles = F.pad(angles, (0, 0, still, 0))
    return torch.stack([angles.cos(), angles.sin()])


def rotate(h: Tensor, turn: Tensor) -> Tensor:
    """Turn each plane (h_i, h_{i + d/2}) of h (B, heads, T, d) by turn (2, T, d / 2)."""
    cos, sin = turn
    a, b = h.chunk(2, dim=-1)
    return torch.cat([a * cos - b * sin, a * sin + b * cos], dim=-1)


class RotaryAttention(SelfAttention):
    """Self-attention in which queries and keys are normalised, then rotated by their place.

    h (B, T, width), turn (2, T, d / 2) -> (B, T, width). q . k depends on the two places only
    through their difference. Source: Su et al. 2021; Henry et al. 2020.
    """

    def __init__(self, width: int, heads: int) -> None:
        super().__init__(width, heads)
        self.norm_q, self.norm_k = RMSNorm(width // heads), RMSNorm(width // heads)

    def forward(self, h: Tensor, turn: Tensor) -> Tensor:  # type: ignore[override]
        q, k, v = self.split(h)
        return self.mix(rotate(self.norm_q(q), turn), rotate(self.norm_k(k), turn), v)


class SwiGLU(nn.Module):
    """W (SiLU(a) b), (a, b) = V h, with 2/3 of a plain MLP's hidden units.

    (B, T, width) -> the same. Source: Shazeer 2020.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        hidden = 2 * MLP_RATIO * width // 3
        self.first, self.second = nn.Linear(width, 2 * hidden), nn.Linear(hidden, width)

    def forward(self, h: Tensor) -> Tensor:
        a, b = self.first(h).chunk(2, dim=-1)
        out: Tensor = self.second(F.silu(a) * b)
        return out


class JiT(Network):
    """DiT for pixels: a narrow first layer, rotary positions, and the label as tokens too.

    x_t (B, C, H, W) of about unit variance, t (B,) in [0, 1000], y (B,) in 0..classes (`classes`
    is the null label) or None when classes == 0 -> (B, C, H, W), zero at initialisation. A patch
    is pressed through `bottleneck` channels. From block `start` on (0 is the first) there are
    `label_tokens` copies of the label's vector before the patches, each with a learned place.
    Without classes there are none. The labels of an augmentation are `augment`, (B, augment) or
    None for zeros. The `conditions` are taken as by DiT.

    Raises FmdiffError for points, for a patch that does not divide the image, for a width that is
    not a multiple of 4 heads, for a block that does not exist and for a size below 1.
    Source: Li & He 2025, arXiv:2511.13720.
    """

    axes = 3

    places: Tensor
    turn: Tensor

    def __init__(
        self,
        *,
        shape: Sequence[int],
        classes: int,
        patch: int,
        bottleneck: int,
        width: int,
        depth: int,
        heads: int,
        label_tokens: int,
        start: int,
        augment: int = 0,  # checkpoints of 0.1.0 lack it and time_frequency
        time_frequency: float | None = None,
        second_time: bool = False,
        guided: bool = False,
        conditions: Forms = None,
    ) -> None:
        super().__init__()
        grid = patch_grid("jit", shape, patch, width, heads)
        sizes(depth=depth, bottleneck=bottleneck)
        sizes(0, label_tokens=label_tokens, augment=augment, start=start)
        if start >= depth:
            raise FmdiffError(
                f"model.start={start} is not a block of model.depth={depth}; "
                f"choose from 0 to {depth - 1}"
            )
        self.start, self.patch = start, patch
        self.conditioning = Conditioning(
            TIME_FEATURES, width, classes, augment, time_frequency, second_time, guided, conditions
        )
        self.channels, inputs = channels_of(conditions, shape, "jit")
        self.press = nn.Linear(inputs * patch**2, bottleneck, bias=False)
        self.first = nn.Linear(bottleneck, width)
        still = label_tokens if classes else 0
        self.label_places = nn.Parameter(0.02 * torch.randn(still, width)) if still else None
        self.register_buffer("places", positions(grid, width), persistent=False)
        turn = rotation(*grid, width // heads, still)
        self.register_buffer("turn", turn, persistent=False)
        self.blocks = nn.ModuleList()
        for _ in range(depth):
            norms = RMSNorm(width), RMSNorm(width)
            self.blocks.append(Block(width, norms, RotaryAttention(width, heads), SwiGLU(width)))
        self.final = Final(width, RMSNorm(width), shape, patch)
        initialise(self)

    def forward(
        self,
        x_t: Tensor,
        t: Tensor,
        y: Given | None = None,
        augment: Tensor | None = None,
        s: Tensor | None = None,
        w: Tensor | None = None,
    ) -> Tensor:
        condition = self.conditioning(t, y, augment, s, w)
        x_t = x_t if self.channels is None else self.channels(x_t, y)
        h = self.first(self.press(tokens(x_t, self.patch))) + self.places
        table = self.conditioning.label
        for i, block in enumerate(self.blocks):
            if i == self.start and table is not None and self.label_places is not None:
                h = torch.cat([table(label(y))[:, None] + self.label_places, h], dim=1)
            h = block(h, condition, self.turn[:, -h.shape[1] :])
        out: Tensor = self.final(h[:, -len(self.places) :], condition)
        return out
