"""Networks that classify noisy data."""

from collections.abc import Sequence

import torch.nn.functional as F
from torch import Tensor, nn

from fmdiff.condition import Given
from fmdiff.errors import FmdiffError
from fmdiff.models.layers import Conditioning, ResBlock, group_norm
from fmdiff.models.network import Network, even, share, sizes
from fmdiff.models.unet import multiples, resolutions


class ImageClassifier(Network):
    """The downward half of a U-Net, followed by the mean over the lowest map.

    x_t (B, C, H, W) of at most unit variance, t (B,) in [0, 1000] -> logits (B, classes). Level i
    has channels * multipliers[i] channels and `blocks` residual blocks.

    Raises FmdiffError for points and for a size below 1.
    """

    axes = 3

    logits = True

    def __init__(
        self,
        *,
        shape: Sequence[int],
        classes: int,
        channels: int,
        multipliers: Sequence[int],
        blocks: int,
        dropout: float,
        time_frequency: float | None = None,  # checkpoints of 0.1.0 lack it
    ) -> None:
        super().__init__()
        if len(shape) != 3:
            raise FmdiffError(
                f"model=classifier takes images, but the data has shape {tuple(shape)}; "
                "choose model=mlp_classifier for points"
            )
        multiples(multipliers)
        even(channels=channels)
        sizes(blocks=blocks)
        share(dropout=dropout)
        levels = len(resolutions(shape[1:], len(multipliers)))
        embedding, current = 4 * channels, channels
        self.conditioning = Conditioning(channels, embedding, 0, frequency=time_frequency)
        self.first = nn.Conv2d(shape[0], channels, 3, padding=1)
        self.levels = nn.ModuleList()
        for width in (channels * m for m in multipliers[:levels]):
            stage = nn.ModuleList()
            for _ in range(blocks):
                stage.append(ResBlock(current, width, embedding, dropout, scale_shift=True))
                current = width
            self.levels.append(stage)
        self.norm, self.last = group_norm(current), nn.Linear(current, classes)

    def forward(self, x_t: Tensor, t: Tensor, y: Given | None = None) -> Tensor:
        embedding, h = self.conditioning(t, None), self.first(x_t)
        for i, stage in enumerate(self.levels):
            if i:
                h = F.avg_pool2d(h, 2)
            for block in stage.children():
                h = block(h, embedding)
        logits: Tensor = self.last(F.silu(self.norm(h)).mean((2, 3)))
        return logits
