"""The U-Net for series: several channels over one axis, such as measurements in time or sound."""

from collections.abc import Sequence

import torch.nn.functional as F
from torch import Tensor, nn

from fmdiff.models.layers import zeroed
from fmdiff.models.unet import UNet, doubled


class Scales(nn.Module):
    """sum_j g_j P_j x: a linear filter of a series whose gains g_j depend on scale and channel.

    P_0 x = x, and P_j x has at each place the mean of the 2^j places around it, up to the mean of
    all. The gains are linear in SiLU(embedding) and start as zero. x (B, C, L), embedding
    (B, width) -> (B, C, L).
    """

    def __init__(self, shape: Sequence[int], width: int) -> None:
        super().__init__()
        channels, length = shape
        self.count = 1 + (length - 1).bit_length()
        self.gains = zeroed(nn.Linear(width, self.count * channels))

    def forward(self, x: Tensor, embedding: Tensor) -> Tensor:
        gains = self.gains(F.silu(embedding)).view(len(x), self.count, -1, 1)
        means = [x]
        while len(means) < self.count:
            means.append(F.avg_pool1d(means[-1], 2, ceil_mode=True))
        out: Tensor = gains[:, -1] * means.pop()
        while means:
            finer = means.pop()
            out = gains[:, len(means)] * finer + doubled(out, finer.shape[-1])
        return out


class UNet1d(UNet):
    """The layers of `UNet` along one axis, for series of any length, and a linear filter of x_t.

    x_t (B, C, L) -> (B, C, L); t, y, s and w as there. Each level has half as many places as the
    one above, rounded up, and a doubled map is cut to the length of the map that it meets. So no
    length needs padding, and odd ones lose no level. Levels of less than 4 places are left out.

    The norms of the layers forget how large a series is, and slow swings of it may be many times
    as large as fast ones. For Gaussian series every quantity of a path is a linear filter of x_t,
    so the output is the sum of `Scales` and of the layers.

    Raises FmdiffError for other data, for a level that does not exist and for a size below 1.
    """

    axes = 2
    name = "unet_1d"

    def linear_part(self, shape: Sequence[int], width: int) -> nn.Module:
        return Scales(shape, width)
