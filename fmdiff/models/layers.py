"""Parts that several networks share: time and class conditioning, normalisation, attention."""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fmdiff.models.network import require


def zeroed(layer: nn.Module) -> nn.Module:
    """Set every parameter of the layer to zero, so that its branch starts as 'no change'."""
    for parameter in layer.parameters():
        nn.init.zeros_(parameter)
    return layer


def group_norm(channels: int) -> nn.GroupNorm:
    """Group norm with up to 32 groups of at least 4 channels.

    One channel a group would be instance norm, which forgets the brightness of its map.
    """
    return nn.GroupNorm(math.gcd(32, channels // 4, channels), channels)


def attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """softmax(Q K^T / sqrt(d)) V, each (B, heads, T, d) and contiguous.

    Other strides silently take a slow path. On CPUs bfloat16 is computed in float32, because the
    backward pass of the fused kernel takes 4 times as long in bfloat16.
    """
    if v.device.type == "cpu" and v.dtype == torch.bfloat16:
        with torch.autocast("cpu", enabled=False):
            return F.scaled_dot_product_attention(q.float(), k.float(), v.float()).to(v.dtype)
    return F.scaled_dot_product_attention(q, k, v)


class Sinusoid(nn.Module):
    """Features of time: cos(w_i t) and sin(w_i t), i = 0 ... half - 1, half = features / 2.

    (B,) in [0, 1000] -> (B, features). With a highest frequency W, in radians per 1000, w_i runs
    from pi/2 to W in equal ratios, so that no feature has a slope above W / 1000. With None it is
    10000^(-i / half), as for the integer times of Vaswani et al. 2017 and Ho et al. 2020: up to
    1000 radians per 1000, which makes a field wiggle in time.

    Raises FmdiffError for a highest frequency that is not positive.
    """

    frequencies: Tensor

    def __init__(self, features: int, highest: float | None = None) -> None:
        super().__init__()
        half = features // 2
        require(
            "a positive number or null",
            lambda v: v is None or (isinstance(v, int | float) and 0 < v < math.inf),
            time_frequency=highest,
        )
        if highest is None:
            frequencies = torch.exp(-math.log(10_000) * torch.arange(half) / half)
        else:
            lowest = math.pi / 2
            frequencies = lowest * (highest / lowest) ** torch.linspace(0, 1, half) / 1000
        self.register_buffer("frequencies", frequencies, persistent=False)

    def forward(self, t: Tensor) -> Tensor:
        angles = t[:, None] * self.frequencies
        return torch.cat([angles.cos(), angles.sin()], dim=1)


class Augmentation(nn.Linear):
    """W a, for labels a (B, n) of an augmentation -> (B, width); None stands for zeros.

    There is no bias, so untouched images (a = 0) add nothing. Source: Karras et al. 2022.
    """

    def __init__(self, labels: int, width: int) -> None:
        super().__init__(labels, width, bias=False)

    def forward(self, a: Tensor | None, like: Tensor) -> Tensor:  # type: ignore[override]
        # zeros, because several processes average the gradients of all parameters
        a = like.new_zeros(len(like), self.in_features) if a is None else a
        return super().forward(a)


class Conditioning(nn.Module):
    """One vector for time, label and augmentation: MLP(sinusoid(t)) + table[y] + W a.

    `frequency` is the highest of the sinusoids, or None.

    t (B,) in [0, 1000], y (B,) in 0..classes (`classes` is the null label) or None when
    classes == 0, a (B, augment) or None for zeros -> (B, width).
    """

    def __init__(
        self,
        features: int,
        width: int,
        classes: int,
        augment: int = 0,
        frequency: float | None = None,
    ) -> None:
        super().__init__()
        self.time = nn.Sequential(
            Sinusoid(features, frequency),
            nn.Linear(features, width),
            nn.SiLU(),
            nn.Linear(width, width),
        )
        self.label = nn.Embedding(classes + 1, width) if classes else None
        self.augment = Augmentation(augment, width) if augment else None

    def forward(self, t: Tensor, y: Tensor | None, augment: Tensor | None = None) -> Tensor:
        embedding: Tensor = self.time(t)
        if self.label is not None:
            embedding = embedding + self.label(y)
        return embedding if self.augment is None else embedding + self.augment(augment, t)


class Attention(nn.Module):
    """Residual self-attention over the places of a map: h + W softmax(Q K^T / sqrt(d)) V.

    (B, C, H, W) -> the same. Heads have d = gcd(head_channels, C) channels. The layer starts as
    the identity. Source: Vaswani et al. 2017; Dhariwal & Nichol 2021.
    """

    def __init__(self, channels: int, head_channels: int) -> None:
        super().__init__()
        self.heads = channels // math.gcd(head_channels, channels)
        self.norm = group_norm(channels)
        self.qkv = nn.Conv2d(channels, 3 * channels, 1)
        self.out = zeroed(nn.Conv2d(channels, channels, 1))

    def forward(self, h: Tensor) -> Tensor:
        heads = self.qkv(self.norm(h)).unflatten(1, (3, self.heads, -1)).flatten(4)
        mixed = attend(*heads.permute(1, 0, 2, 4, 3).contiguous())  # (B, heads, places, d)
        change: Tensor = self.out(mixed.transpose(2, 3).reshape(h.shape))
        return h + change


class ResBlock(nn.Module):
    """conv(SiLU(norm(.))) twice around a shortcut, conditioned in between, then attention.

    h (B, channels_in, H, W), embedding (B, width) -> (B, channels_out, H, W). The embedding
    shifts the map before the second norm. With scale_shift it scales and shifts the map after the
    norm: norm(h) (1 + a) + b. `resample`, a layer without weights, halves or doubles the map
    before the first convolution and on the shortcut (Ho et al. 2020; Dhariwal & Nichol 2021).
    """

    def __init__(
        self,
        channels_in: int,
        channels_out: int,
        width: int,
        dropout: float,
        scale_shift: bool,
        attention: nn.Module | None = None,
        resample: nn.Module | None = None,
    ) -> None:
        super().__init__()
        self.norm_in, self.resample = group_norm(channels_in), resample or nn.Identity()
        self.conv_in = nn.Conv2d(channels_in, channels_out, 3, padding=1)
        self.scale_shift = scale_shift
        self.embed = nn.Linear(width, channels_out * (2 if scale_shift else 1))
        self.norm_out = group_norm(channels_out)
        self.dropout = nn.Dropout(dropout)
        self.conv_out = zeroed(nn.Conv2d(channels_out, channels_out, 3, padding=1))
        same = channels_in == channels_out
        self.shortcut = nn.Identity() if same else nn.Conv2d(channels_in, channels_out, 1)
        self.attention = attention or nn.Identity()

    def forward(self, h: Tensor, embedding: Tensor) -> Tensor:
        residual = self.conv_in(self.resample(F.silu(self.norm_in(h))))
        condition = self.embed(F.silu(embedding))[:, :, None, None]
        if self.scale_shift:
            scale, shift = condition.chunk(2, dim=1)
            residual = torch.addcmul(shift, self.norm_out(residual), 1 + scale)
        else:
            residual = self.norm_out(residual + condition)
        residual = self.conv_out(self.dropout(F.silu(residual)))
        out: Tensor = self.attention(self.shortcut(self.resample(h)) + residual)
        return out
