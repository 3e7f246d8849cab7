"""The U-Net: for images from digits of 8x8 to CIFAR-10's usual network, and for series."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fmdiff.condition import Given
from fmdiff.errors import FmdiffError
from fmdiff.models.condition import Forms, channels_of
from fmdiff.models.layers import (
    Attention,
    Conditioning,
    ResBlock,
    convolution,
    group_norm,
    zeroed,
)
from fmdiff.models.network import (
    Network,
    even,
    flags,
    integers,
    need_axes,
    require,
    share,
    sizes,
)

SMALLEST = 4  # a map is not halved below this many places a side


def resolutions(size: Sequence[int], levels: int) -> list[tuple[int, ...]]:
    """The sizes of at most `levels` maps, each half as large as the one before, and >= 4.

    size (H, W) of images, which are halved while both sides are even, or (L,) of series, of which
    half an odd length is rounded up.
    """
    maps = [tuple(size)]
    while len(maps) < levels:
        halves = tuple(-(-n // 2) for n in maps[-1])
        even_sides = len(size) == 1 or all(n % 2 == 0 for n in maps[-1])
        if not even_sides or min(halves) < SMALLEST:
            break
        maps.append(halves)
    return maps


def multiples(multipliers: Sequence[int]) -> None:
    """Raises FmdiffError unless there is an integer >= 1 for each level."""
    allowed = "a list of integers >= 1, one for each level"
    require(allowed, lambda v: integers(v) and len(v) > 0, multipliers=multipliers)


def plan(
    name: str,
    shape: Sequence[int],
    multipliers: Sequence[int],
    attention: Sequence[int],
    axes: int = 3,
) -> tuple[int, set[int]]:
    """How many of the levels fit samples of this shape, and which of them have attention.

    Raises FmdiffError for a shape without `axes` axes, without levels and for a level that does
    not exist.
    """
    need_axes(name, shape, axes)
    multiples(multipliers)
    require("a list of levels like [-1]", lambda v: integers(v, -math.inf), attention=attention)
    levels = len(resolutions(shape[1:], len(multipliers)))
    absent = [level for level in attention if not -levels <= level < levels]
    if absent:
        raise FmdiffError(
            f"model.attention={list(attention)} names level {absent[0]}, but data of shape "
            f"{tuple(shape)} has levels 0 to {levels - 1} (-1 is the lowest)"
        )
    return levels, {level % levels for level in attention}


@dataclass(frozen=True)
class Stages:
    """The residual blocks of every level, and the layers that halve and double the maps."""

    block: Callable[[int, int, bool], ResBlock]  # channels in and out, whether with attention
    widths: Sequence[int]  # channels of the levels
    blocks: int  # of a level on the way down; one more on the way up
    attentive: set[int]  # the levels with attention
    conv_resample: bool
    axes: int = 2  # 1 for maps (B, C, L), 2 for (B, C, H, W)

    def down(self, channels: int) -> tuple[nn.ModuleList, nn.ModuleList, list[int]]:
        """Stages and halvings from a map of `channels`, and the channels of every map."""
        stages, shrink, conv = nn.ModuleList(), nn.ModuleList(), convolution(self.axes)
        pool = nn.AvgPool2d(2) if self.axes == 2 else nn.AvgPool1d(2, ceil_mode=True)
        skips = [current := channels]
        for level, width in enumerate(self.widths):
            if level:
                shrink.append(
                    conv(current, current, 3, stride=2, padding=1) if self.conv_resample else pool
                )
                skips.append(current)
            stage = nn.ModuleList()
            for _ in range(self.blocks):
                stage.append(self.block(current, width, level in self.attentive))
                skips.append(current := width)
            stages.append(stage)
        return stages, shrink, skips

    def up(self, skips: list[int]) -> tuple[nn.ModuleList, nn.ModuleList, int]:
        """Stages and doublings that take the maps `skips` back, and the channels of the last."""
        stages, grow, current = nn.ModuleList(), nn.ModuleList(), skips[-1]
        conv = convolution(self.axes)
        for level, width in reversed(list(enumerate(self.widths))):
            if level < len(self.widths) - 1:
                grow.append(
                    conv(current, current, 3, padding=1) if self.conv_resample else nn.Identity()
                )
            stage = nn.ModuleList()
            for _ in range(self.blocks + 1):
                stage.append(self.block(current + skips.pop(), width, level in self.attentive))
                current = width
            stages.append(stage)
        return stages, grow, current


def doubled(h: Tensor, places: int) -> Tensor:
    """h (B, C, ..., n), each value repeated along every axis; the last is cut to `places`."""
    h = F.interpolate(h, scale_factor=2.0, mode="nearest")
    return h if h.shape[-1] == places else h[..., :places]


class UNet(Network):
    """A U-Net of residual blocks and attention that fits its number of levels to the image.

    x_t (B, C, H, W) of about unit variance, t (B,) in [0, 1000], y (B,) in 0..classes (`classes`
    is the null label) or None when classes == 0 -> (B, C, H, W), zero at initialisation. Level i
    has channels * multipliers[i] channels and `blocks` residual blocks (one more on the way up).
    Levels below an odd map, or with a map below 4x4, are left out. `attention` lists the levels
    with attention: 0 is the full image, -1 the lowest map. The middle always has it. Time has
    `time_features` features (as many as channels when None), and its vector has 4 times as many.
    Without conv_resample a map is only halved by its mean and doubled by repetition. The labels of
    an augmentation are `augment`, (B, augment) or None for zeros. The `conditions` that are
    vectors are added to the vector of time, and pictures are further channels of x_t.

    Raises FmdiffError for other data, for a level that does not exist and for a size below 1.
    Source: Ho et al. 2020; Dhariwal & Nichol 2021.
    """

    axes = 3
    name = "unet"

    def __init__(
        self,
        *,
        shape: Sequence[int],
        classes: int,
        channels: int,
        multipliers: Sequence[int],
        blocks: int,
        attention: Sequence[int],
        head_channels: int,
        dropout: float,
        scale_shift: bool,
        time_features: int | None = None,  # checkpoints of 0.1.0 lack it and what follows
        conv_resample: bool = True,
        augment: int = 0,
        time_frequency: float | None = None,
        second_time: bool = False,
        guided: bool = False,
        conditions: Forms = None,
    ) -> None:
        super().__init__()
        levels, attentive = plan(self.name, shape, multipliers, attention, self.axes)
        axes = len(shape) - 1
        conv = convolution(axes)
        sizes(blocks=blocks, head_channels=head_channels)
        sizes(0, augment=augment)
        share(dropout=dropout)
        flags(scale_shift=scale_shift, conv_resample=conv_resample)
        if time_features:
            even(time_features=time_features)
            sizes(channels=channels)
        else:
            even(channels=channels)
        widths = [channels * m for m in multipliers[:levels]]
        features = time_features or channels
        embedding = 4 * features

        def block(channels_in: int, channels_out: int, attend: bool) -> ResBlock:
            heads = Attention(channels_out, head_channels, axes) if attend else None
            ends = channels_in, channels_out
            return ResBlock(*ends, embedding, dropout, scale_shift, heads, axes=axes)

        stages = Stages(block, widths, blocks, attentive, conv_resample, axes)
        self.conditioning = Conditioning(
            features, embedding, classes, augment, time_frequency, second_time, guided, conditions
        )
        self.channels, inputs = channels_of(conditions, shape, self.name)
        self.first = conv(inputs, channels, 3, padding=1)
        self.down, self.shrink, skips = stages.down(channels)
        lowest = skips[-1]
        self.middle = nn.ModuleList([block(lowest, lowest, True), block(lowest, lowest, False)])
        self.up, self.grow, current = stages.up(skips)
        self.last = nn.Sequential(
            group_norm(current), nn.SiLU(), zeroed(conv(current, shape[0], 3, padding=1))
        )
        self.linear = self.linear_part(shape, embedding)

    def linear_part(self, shape: Sequence[int], width: int) -> nn.Module | None:
        """A layer of x_t and the vector (B, width) that is added to the output; None: nothing."""
        return None

    def forward(
        self,
        x_t: Tensor,
        t: Tensor,
        y: Given | None = None,
        augment: Tensor | None = None,
        s: Tensor | None = None,
        w: Tensor | None = None,
    ) -> Tensor:
        embedding = self.conditioning(t, y, augment, s, w)
        inputs = x_t if self.channels is None else self.channels(x_t, y)
        skips = [h := self.first(inputs)]
        for level, stage in enumerate(self.down):
            if level:
                skips.append(h := self.shrink[level - 1](h))
            for block in stage.children():
                skips.append(h := block(h, embedding))
        for block in self.middle:
            h = block(h, embedding)
        for level, stage in enumerate(self.up):
            if level:
                h = self.grow[level - 1](doubled(h, skips[-1].shape[-1]))
            for block in stage.children():
                h = block(torch.cat([h, skips.pop()], dim=1), embedding)
        out: Tensor = self.last(h)
        return out if self.linear is None else out + self.linear(x_t, embedding)
