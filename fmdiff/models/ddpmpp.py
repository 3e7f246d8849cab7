"""DDPM++, the U-Net that "Elucidating the design space" (EDM) trains on CIFAR-10."""

import math
from collections.abc import Sequence
from functools import partial

import torch
from torch import Tensor, nn

from fmdiff.condition import Given, label
from fmdiff.models.condition import Forms, channels_of, embedded
from fmdiff.models.layers import (
    Attention,
    Augmentation,
    MapInputs,
    ResBlock,
    Sinusoid,
    group_norm,
    zeroed,
)
from fmdiff.models.network import Network, even, share, sizes
from fmdiff.models.unet import plan


class Block(ResBlock):
    """A residual block whose sums are divided by sqrt(2), so that they keep the variance 1.

    h (B, channels_in, H, W), embedding (B, width) -> (B, channels_out, H', W'). A block that
    halves or doubles the map has a 1x1 convolution on its shortcut. Attention has one head.
    """

    def __init__(
        self,
        channels_in: int,
        channels_out: int,
        width: int,
        dropout: float,
        attend: bool = False,
        resample: nn.Module | None = None,
    ) -> None:
        super().__init__(
            channels_in, channels_out, width, dropout, scale_shift=False, resample=resample
        )
        if resample is not None:
            self.shortcut = nn.Conv2d(channels_in, channels_out, 1)
        self.mix = Attention(channels_out, channels_out) if attend else None

    def forward(self, h: Tensor, embedding: Tensor) -> Tensor:
        h = super().forward(h, embedding) / math.sqrt(2)
        return h if self.mix is None else self.mix(h) / math.sqrt(2)


def initialise(net: nn.Module) -> None:
    """EDM's initialisation: Xavier-uniform, smaller for attention, zero for output layers."""
    for name, part in net.named_modules():
        if isinstance(part, nn.GroupNorm):
            part.eps = 1e-6
        elif isinstance(part, nn.Conv2d | nn.Linear):
            zeroed(part)
            if not name.endswith(("conv_out", "mix.out", "last.2")):
                gain = math.sqrt(0.2) if name.endswith("mix.qkv") else 1.0
                nn.init.xavier_uniform_(part.weight, gain)


class DDPMpp(Network):
    """A U-Net whose maps are halved and doubled inside residual blocks of constant variance.

    x_t (B, C, H, W) of about unit variance, t (B,) in [0, 1000], y (B,) in 0..classes (`classes`
    is the null label) or None when classes == 0 -> (B, C, H, W), zero at initialisation. Level i
    has channels * multipliers[i] channels and `blocks` residual blocks (one more on the way up).
    Levels below an odd map, or with a map below 4x4, are left out. `attention` lists the levels (0
    is the full image, -1 the lowest map) with attention: in every block on the way down and in the
    last on the way up. The middle always has it. The label and the `augment` labels of an
    augmentation, (B, augment) or None for zeros, are added to the features of time, as are the
    `conditions` that are vectors. Pictures are further channels of x_t.

    Raises FmdiffError for points, for a level that does not exist and for a size below 1.
    Source: Song et al. 2021, arXiv:2011.13456; Karras et al. 2022, arXiv:2206.00364.
    """

    axes = 3

    def __init__(
        self,
        *,
        shape: Sequence[int],
        classes: int,
        channels: int,
        multipliers: Sequence[int],
        blocks: int,
        attention: Sequence[int],
        dropout: float,
        augment: int = 0,  # checkpoints of 0.1.0 lack it and time_frequency
        time_frequency: float | None = None,
        second_time: bool = False,
        guided: bool = False,
        conditions: Forms = None,
    ) -> None:
        super().__init__()
        levels, attentive = plan("ddpmpp", shape, multipliers, attention)
        even(channels=channels)
        sizes(blocks=blocks)
        sizes(0, augment=augment)
        share(dropout=dropout)
        widths = [channels * m for m in multipliers[:levels]]
        width = 4 * channels
        block = partial(Block, width=width, dropout=dropout)
        self.time = Sinusoid(channels, time_frequency)
        self.label = nn.Embedding(classes + 1, channels) if classes else None
        self.augment = Augmentation(augment, channels) if augment else None
        self.embed = nn.Sequential(nn.Linear(channels, width), nn.SiLU(), nn.Linear(width, width))
        self.map = MapInputs(channels, width, second_time, guided)
        self.embedded = embedded(conditions, channels)
        self.channels, inputs = channels_of(conditions, shape, "ddpmpp")
        self.first, self.down = nn.Conv2d(inputs, channels, 3, padding=1), nn.ModuleList()
        skips = [current := channels]
        for level, wide in enumerate(widths):
            if level:
                self.down.append(block(current, current, resample=nn.AvgPool2d(2)))
                skips.append(current)
            for _ in range(blocks):
                self.down.append(block(current, wide, attend=level in attentive))
                skips.append(current := wide)

        self.middle = nn.ModuleList(
            [block(current, current, attend=True), block(current, current)]
        )

        self.up = nn.ModuleList()
        for level, wide in reversed(list(enumerate(widths))):
            if level < levels - 1:
                self.up.append(block(current, current, resample=nn.Upsample(scale_factor=2.0)))
            for i in range(blocks + 1):
                attend = level in attentive and i == blocks
                self.up.append(block(current + skips.pop(), wide, attend=attend))
                current = wide
        self.last = nn.Sequential(
            group_norm(current), nn.SiLU(), zeroed(nn.Conv2d(current, shape[0], 3, padding=1))
        )
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
        features = self.time(t)
        if self.label is not None:
            features = features + self.label(label(y))
        if self.embedded is not None:
            features = features + self.embedded(y, features)
        if self.augment is not None:
            features = features + self.augment(augment, t)
        embedding = self.map(self.embed(features), t, s, w)
        x_t = x_t if self.channels is None else self.channels(x_t, y)
        skips = [h := self.first(x_t)]
        for block in self.down:
            skips.append(h := block(h, embedding))
        for block in self.middle:
            h = block(h, embedding)
        for block in self.up:
            if not isinstance(block.resample, nn.Upsample):
                h = torch.cat([h, skips.pop()], dim=1)
            h = block(h, embedding)
        out: Tensor = self.last(h)
        return out
