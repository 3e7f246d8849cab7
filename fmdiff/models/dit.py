"""The diffusion transformer (DiT) for images, and its parts, which JiT and series share."""

import math
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fmdiff.condition import Given
from fmdiff.errors import FmdiffError
from fmdiff.models.condition import Forms, channels_of
from fmdiff.models.layers import Conditioning, attend, zeroed
from fmdiff.models.network import Network, need_axes, sizes

TIME_FEATURES = 256
MLP_RATIO = 4
LARGEST = 2**26  # numbers in the tokens of one sample: 256 MB


def patch_grid(
    name: str, shape: Sequence[int], patch: int, width: int, heads: int
) -> tuple[int, int]:
    """The number of patches down and across an image of this shape.

    Raises FmdiffError for other data, for a patch that does not divide the image, and as
    `check_tokens` does.
    """
    need_axes(name, shape, 3)
    _, height, breadth = shape
    valid = [p for p in range(1, min(height, breadth) + 1) if height % p == breadth % p == 0]
    if type(patch) is not int or patch not in valid:
        raise FmdiffError(
            f"model.patch={patch} does not divide images of {height}x{breadth} pixels; "
            f"choose from: {', '.join(map(str, valid))}"
        )
    rows, columns = height // patch, breadth // patch
    check_tokens(rows * columns, patch, width, heads)
    return rows, columns


def check_tokens(count: int, patch: int, width: int, heads: int) -> None:
    """Check the number of tokens and their width.

    Raises FmdiffError unless a head has a multiple of 4 channels (for sine and cosine of row and
    column), and if the tokens of one sample have more than LARGEST numbers.
    """
    sizes(width=width, heads=heads)
    if width % (4 * heads):
        raise FmdiffError(
            f"model.width={width} does not fit model.heads={heads}; "
            f"choose a width that is a multiple of {4 * heads}"
        )
    if count * width > LARGEST:
        raise FmdiffError(
            f"model.patch={patch} gives {count:,} tokens of {width:,} channels: choose a "
            f"larger patch, for {LARGEST:,} numbers at most"
        )


def tokens(x: Tensor, patch: int) -> Tensor:
    """The patches of an image, (B, C, H, W) -> (B, (H / patch) (W / patch), C patch^2).

    Of a series (B, C, L) -> (B, L / patch, C patch), where the last patch is filled with zeros. A
    linear layer on them is the convolution of kernel and stride `patch`.
    """
    if x.ndim == 4:
        return F.pixel_unshuffle(x, patch).flatten(2).mT
    whole = F.pad(x, (0, -x.shape[2] % patch))
    return whole.view(*x.shape[:2], -1, patch).transpose(1, 2).flatten(2)


def joined(patches: Any, patch: int, size: Sequence[int]) -> Tensor:
    """The image (B, C, H, W) or series (B, C, L) of which these are the `tokens`.

    size (H, W) or (L,).
    """
    if len(size) == 2:
        grid = size[0] // patch, size[1] // patch
        return F.pixel_shuffle(patches.mT.unflatten(2, grid), patch)
    series: Tensor = patches.unflatten(2, (-1, patch)).transpose(1, 2).flatten(2)[..., : size[0]]
    return series


def positions(grid: Sequence[int], width: int) -> Tensor:
    """Fixed features (places, width) of the places of a grid: sin and cos of w_i place by axis.

    The last axis comes first. w_i = 10000^(-i / n), n = width / (2 axes). Source: Vaswani et al.
    2017; Peebles & Xie.
    """
    share = width // (2 * len(grid))
    frequencies = torch.exp(-math.log(10_000) * torch.arange(share) / share)
    places = torch.meshgrid(*(torch.arange(n) for n in grid), indexing="ij")
    angles = [place.flatten()[:, None] * frequencies for place in reversed(places)]
    return torch.cat([wave for angle in angles for wave in (angle.sin(), angle.cos())], dim=1)


def modulate(h: Tensor, shift: Tensor, scale: Tensor) -> Tensor:
    """h (1 + scale) + shift for h (B, T, width), shift and scale (B, width)."""
    return torch.addcmul(shift[:, None], h, 1 + scale[:, None])


def initialise(net: nn.Module) -> None:
    """DiT's initialisation: Xavier-uniform, N(0, 0.02^2) for time and label, 0 for modulation.

    The last layer is zero too. So every block starts as the identity, and the output as zero.
    """
    for name, part in net.named_modules():
        if isinstance(part, nn.Embedding):
            nn.init.normal_(part.weight, std=0.02)
        elif isinstance(part, nn.Linear):
            zeroed(part)
            if name.startswith("conditioning."):
                nn.init.normal_(part.weight, std=0.02)
            elif not name.endswith(("modulation", "last")):
                nn.init.xavier_uniform_(part.weight)


class SelfAttention(nn.Module):
    """W softmax(Q K^T / sqrt(d)) V over tokens: (B, T, width) -> the same, d = width / heads."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)

    def split(self, h: Tensor) -> tuple[Tensor, ...]:
        """Queries, keys and values, each (B, heads, T, d)."""
        heads: Tensor = self.qkv(h).unflatten(2, (3, self.heads, -1))
        return heads.permute(2, 0, 3, 1, 4).contiguous().unbind()

    def mix(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """The values of all heads, weighted and joined: (B, T, width)."""
        h: Tensor = self.out(attend(q, k, v).transpose(1, 2).flatten(2))
        return h

    def forward(self, h: Tensor) -> Tensor:
        return self.mix(*self.split(h))


class Block(nn.Module):
    """h + g A(norm(h) (1 + a) + b), then the same with the MLP for A; g, a, b = W SiLU(condition).

    h (B, T, width), condition (B, width) -> (B, T, width). `where` is passed to the attention. W
    starts as zero (adaLN-zero). Source: Peebles & Xie 2023.
    """

    def __init__(
        self, width: int, norms: Sequence[nn.Module], attention: nn.Module, mlp: nn.Module
    ) -> None:
        super().__init__()
        self.norm_attention, self.norm_mlp = norms
        self.attention, self.mlp = attention, mlp
        self.modulation = nn.Linear(width, 6 * width)

    def forward(self, h: Tensor, condition: Tensor, *where: Tensor) -> Tensor:
        shift, scale, gate, shift_mlp, scale_mlp, gate_mlp = self.modulation(
            F.silu(condition)
        ).chunk(6, dim=1)
        change = self.attention(modulate(self.norm_attention(h), shift, scale), *where)
        h = torch.addcmul(h, gate[:, None], change)
        change = self.mlp(modulate(self.norm_mlp(h), shift_mlp, scale_mlp))
        return torch.addcmul(h, gate_mlp[:, None], change)


class Final(nn.Module):
    """norm(h) (1 + a) + b, then one linear layer from each token to its patch, then the sample.

    h (B, places, width), condition (B, width) -> (B, *shape).
    """

    def __init__(self, width: int, norm: nn.Module, shape: Sequence[int], patch: int) -> None:
        super().__init__()
        self.patch, self.size, self.norm = patch, tuple(shape[1:]), norm
        self.modulation = nn.Linear(width, 2 * width)
        self.last = nn.Linear(width, shape[0] * patch ** len(self.size))

    def forward(self, h: Tensor, condition: Tensor) -> Tensor:
        shift, scale = self.modulation(F.silu(condition)).chunk(2, dim=1)
        return joined(self.last(modulate(self.norm(h), shift, scale)), self.patch, self.size)


def plain_norm(width: int) -> nn.LayerNorm:
    """Layer norm without weights, since the block's modulation scales and shifts."""
    return nn.LayerNorm(width, eps=1e-6, elementwise_affine=False)


class DiT(Network):
    """A transformer over patches, in which time and label scale, shift and gate every block.

    x_t (B, C, H, W) of about unit variance, t (B,) in [0, 1000], y (B,) in 0..classes (`classes`
    is the null label) or None when classes == 0 -> (B, C, H, W), zero at initialisation. An image
    becomes (H / patch) (W / patch) tokens of `width` channels for `depth` blocks with `heads`
    heads. The MLP has 4 width hidden units. The labels of an augmentation are `augment`,
    (B, augment) or None for zeros. The `conditions` that are vectors are added to the vector of
    time, and pictures are further channels of x_t.

    Raises FmdiffError for points, for a patch that does not divide the image, for a width that is
    not a multiple of 4 heads and for a size below 1. Source: Peebles & Xie 2023, arXiv:2212.09748.
    """

    axes = 3
    name = "dit"

    places: Tensor

    def __init__(
        self,
        *,
        shape: Sequence[int],
        classes: int,
        patch: int | None,
        width: int,
        depth: int,
        heads: int,
        augment: int = 0,  # checkpoints of 0.1.0 lack it and time_frequency
        time_frequency: float | None = None,
        second_time: bool = False,
        guided: bool = False,
        conditions: Forms = None,
    ) -> None:
        super().__init__()
        patch, grid = self.cut(shape, patch, width, heads)
        sizes(depth=depth)
        sizes(0, augment=augment)
        self.conditioning = Conditioning(
            TIME_FEATURES, width, classes, augment, time_frequency, second_time, guided, conditions
        )
        self.channels, inputs = channels_of(conditions, shape, self.name)
        self.patch, self.first = patch, nn.Linear(inputs * patch ** len(grid), width)
        self.register_buffer("places", positions(grid, width), persistent=False)
        self.blocks = nn.ModuleList()
        for _ in range(depth):
            hidden = MLP_RATIO * width
            mlp = nn.Sequential(
                nn.Linear(width, hidden), nn.GELU("tanh"), nn.Linear(hidden, width)
            )
            norms = plain_norm(width), plain_norm(width)
            self.blocks.append(Block(width, norms, SelfAttention(width, heads), mlp))
        self.final = Final(width, plain_norm(width), shape, patch)
        initialise(self)

    def cut(
        self, shape: Sequence[int], patch: Any, width: int, heads: int
    ) -> tuple[int, tuple[int, ...]]:
        """The side of a patch, and how many there are along each axis.

        Raises FmdiffError as `patch_grid` does.
        """
        return patch, patch_grid(self.name, shape, patch, width, heads)

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
        h = self.first(tokens(x_t, self.patch)) + self.places
        for block in self.blocks:
            h = block(h, condition)
        out: Tensor = self.final(h, condition)
        return out
