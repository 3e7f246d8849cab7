"""The network for tables: linear layers in residual blocks, for points of many coordinates."""

from collections.abc import Sequence

import torch.nn.functional as F
from torch import Tensor, nn

from fmdiff.condition import Given
from fmdiff.models.condition import Forms, channels_of
from fmdiff.models.layers import Conditioning, zeroed
from fmdiff.models.network import Network, need_axes, share, sizes

TIME_FEATURES = 64


class ResidualBlock(nn.Module):
    """h + W2 dropout(SiLU(W1 (norm(h) (1 + a) + b))), where a, b = W SiLU(embedding).

    h and embedding (B, width) -> (B, width). W2 starts as zero. Source: Gorishniy et al. 2021 (the
    residual network for tables); Peebles & Xie 2023 (the conditioning).
    """

    def __init__(self, width: int, dropout: float) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width, elementwise_affine=False)
        self.modulation = nn.Linear(width, 2 * width)
        self.first, self.second = nn.Linear(width, width), zeroed(nn.Linear(width, width))
        self.dropout = nn.Dropout(dropout)

    def forward(self, h: Tensor, embedding: Tensor) -> Tensor:
        scale, shift = self.modulation(F.silu(embedding)).chunk(2, dim=1)
        inner = self.first(self.norm(h) * (1 + scale) + shift)
        change: Tensor = self.second(self.dropout(F.silu(inner)))
        return h + change


class ResidualMLP(Network):
    """`blocks` residual blocks of `width` units, in which time and label scale and shift.

    x_t (B, D) of about unit variance, t (B,) in [0, 1000], y (B,) in 0..classes (`classes` is the
    null label) or None when classes == 0 -> (B, D), zero at initialisation. A multiple of x_t for
    each coordinate, by time and label, is added to the output, since far from the data every
    quantity of a path is linear in x_t. The `conditions` are vectors, added to the vector of time.

    Raises FmdiffError for other data, for conditions that are no vectors and for a size below 1.
    """

    axes = 1

    def __init__(
        self,
        *,
        shape: Sequence[int],
        classes: int,
        width: int,
        blocks: int,
        dropout: float,
        time_frequency: float | None = None,
        second_time: bool = False,
        guided: bool = False,
        conditions: Forms = None,
    ) -> None:
        super().__init__()
        need_axes("residual_mlp", shape, 1)
        channels_of(conditions, shape, "residual_mlp")
        sizes(width=width, blocks=blocks)
        share(dropout=dropout)
        (size,) = shape
        self.conditioning = Conditioning(
            TIME_FEATURES, width, classes, 0, time_frequency, second_time, guided, conditions
        )
        self.first = nn.Linear(size, width)
        self.blocks = nn.ModuleList(ResidualBlock(width, dropout) for _ in range(blocks))
        self.norm, self.last = nn.LayerNorm(width), zeroed(nn.Linear(width, size))
        self.skip = zeroed(nn.Linear(width, size))

    def forward(
        self,
        x_t: Tensor,
        t: Tensor,
        y: Given | None = None,
        s: Tensor | None = None,
        w: Tensor | None = None,
    ) -> Tensor:
        embedding = self.conditioning(t, y, None, s, w)
        h = self.first(x_t)
        for block in self.blocks:
            h = block(h, embedding)
        out: Tensor = self.last(F.silu(self.norm(h))) + self.skip(F.silu(embedding)) * x_t
        return out
