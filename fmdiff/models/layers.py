"""Parts that several networks share: time and class conditioning, normalisation, attention."""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd import forward_ad

from fmdiff.condition import Given, label
from fmdiff.errors import FmdiffError
from fmdiff.models.condition import Forms, embedded
from fmdiff.models.network import require
from fmdiff.randomness import generator

# The highest frequency in the features of s - t, in radians per unit of time. With 50 training
# towards the lagrangian target, which holds (s - t) du/ds, diverges.
HIGHEST = 5.0
GUIDANCE = 100  # by how much of time, of 1000, a unit of the guidance scale counts


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


def convolution(axes: int) -> type[nn.Conv1d] | type[nn.Conv2d]:
    """The convolution of maps (B, C, L) of one axis, or (B, C, H, W) of two."""
    return nn.Conv1d if axes == 1 else nn.Conv2d


def attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """softmax(Q K^T / sqrt(d)) V, each (B, heads, T, d) and contiguous.

    Other strides silently take a slow path. On CPUs bfloat16 is computed in float32, because the
    backward pass of the fused kernel takes 4 times as long in bfloat16. The fused kernels have no
    forward-mode derivatives, so under torch.func.jvp the formula is computed as it stands.
    """
    duals = map(forward_ad.unpack_dual, (q, k, v))
    if any(dual.tangent is not None for dual in duals):
        return (q @ k.mT / math.sqrt(q.shape[-1])).softmax(-1) @ v
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


class Offset(nn.Module):
    """e(d) = W2 SiLU(W1 [sin(w_i d), 1 - cos(w_i d)]), without biases, so that e(0) = 0 exactly.

    d (B,), of which 1000 are a unit of time -> (B, width). The w_i are those of `Sinusoid`, up to
    HIGHEST. W2 starts as zero, so e does. W1 has a generator of its own, and neither is in an
    nn.Linear. So a network with an offset draws the same other weights as one without.
    """

    frequencies: Tensor

    def __init__(self, features: int, width: int, purpose: str) -> None:
        super().__init__()
        frequencies = Sinusoid(features, HIGHEST).frequencies
        self.register_buffer("frequencies", frequencies, persistent=False)
        inputs, hidden = 2 * len(frequencies), max(features, width)
        normal = torch.randn(hidden, inputs, generator=generator(0, purpose), device="cpu")
        self.inner = nn.Parameter(normal / math.sqrt(inputs))
        self.outer = nn.Parameter(torch.zeros(width, hidden))

    def forward(self, d: Tensor) -> Tensor:
        angles = d[:, None] * self.frequencies
        features = torch.cat([angles.sin(), 1 - angles.cos()], dim=1)
        return F.linear(F.silu(F.linear(features, self.inner)), self.outer)


class MapInputs(nn.Module):
    """Adds to a vector (B, width) what only a flow map knows: e(s - t) + e'(100 (w - 1)).

    t and s (B,) in [0, 1000] and the scale of guidance w (B,); None adds nothing, as do s = t and
    w = 1. Raises FmdiffError for an input that the network was not built for.
    """

    def __init__(self, features: int, width: int, second_time: bool, guided: bool) -> None:
        super().__init__()
        self.second = Offset(features, width, "second_time") if second_time else None
        self.guidance = Offset(features, width, "guided") if guided else None

    def forward(self, vector: Tensor, t: Tensor, s: Tensor | None, w: Tensor | None) -> Tensor:
        if s is not None:
            vector = vector + self._built(self.second, "second_time")(s - t)
        if w is not None:
            vector = vector + self._built(self.guidance, "guided")(GUIDANCE * (w - 1))
        return vector

    @staticmethod
    def _built(offset: Offset | None, keyword: str) -> Offset:
        if offset is None:
            raise FmdiffError(f"the network was built without {keyword}=True: it is no such map")
        return offset


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
    """One vector for time, label, vectors and augmentation: MLP(sinusoid(t)) + table[y] + e + W a.

    e is the sum of the embeddings of those `conditions` that are vectors, see models/condition.py.
    `frequency` is the highest of the sinusoids, or None.

    t (B,) in [0, 1000], y with labels (B,) in 0..classes (`classes` is the null label) or None
    without classes and conditions, a (B, augment) or None for zeros -> (B, width). `MapInputs`
    adds s and w.
    """

    def __init__(
        self,
        features: int,
        width: int,
        classes: int,
        augment: int = 0,
        frequency: float | None = None,
        second_time: bool = False,
        guided: bool = False,
        conditions: Forms = None,
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
        self.map = MapInputs(features, width, second_time, guided)
        self.embedded = embedded(conditions, width)

    def forward(
        self,
        t: Tensor,
        y: Given | None,
        augment: Tensor | None = None,
        s: Tensor | None = None,
        w: Tensor | None = None,
    ) -> Tensor:
        embedding: Tensor = self.map(self.time(t), t, s, w)
        if self.label is not None:
            embedding = embedding + self.label(label(y))
        if self.embedded is not None:
            embedding = embedding + self.embedded(y, embedding)
        return embedding if self.augment is None else embedding + self.augment(augment, t)


class Attention(nn.Module):
    """Residual self-attention over the places of a map: h + W softmax(Q K^T / sqrt(d)) V.

    (B, C, H, W), or (B, C, L) with axes = 1 -> the same. Heads have d = gcd(head_channels, C)
    channels. The layer starts as the identity. Source: Vaswani et al. 2017; Dhariwal & Nichol
    2021.
    """

    def __init__(self, channels: int, head_channels: int, axes: int = 2) -> None:
        super().__init__()
        conv = convolution(axes)
        self.heads = channels // math.gcd(head_channels, channels)
        self.norm = group_norm(channels)
        self.qkv = conv(channels, 3 * channels, 1)
        self.out = zeroed(conv(channels, channels, 1))

    def forward(self, h: Tensor) -> Tensor:
        heads = self.qkv(self.norm(h)).unflatten(1, (3, self.heads, -1)).flatten(4)
        mixed = attend(*heads.permute(1, 0, 2, 4, 3).contiguous())  # (B, heads, places, d)
        change: Tensor = self.out(mixed.transpose(2, 3).reshape(h.shape))
        return h + change


class ResBlock(nn.Module):
    """conv(SiLU(norm(.))) twice around a shortcut, conditioned in between, then attention.

    h (B, channels_in, H, W), embedding (B, width) -> (B, channels_out, H, W), or (B, C, L) with
    axes = 1. The embedding shifts the map before the second norm. With scale_shift it scales and
    shifts the map after the norm: norm(h) (1 + a) + b. `resample`, a layer without weights, halves
    or doubles the map before the first convolution and on the shortcut (Ho et al. 2020; Dhariwal &
    Nichol 2021).
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
        axes: int = 2,
    ) -> None:
        super().__init__()
        conv = convolution(axes)
        self.norm_in, self.resample = group_norm(channels_in), resample or nn.Identity()
        self.conv_in = conv(channels_in, channels_out, 3, padding=1)
        self.scale_shift = scale_shift
        self.embed = nn.Linear(width, channels_out * (2 if scale_shift else 1))
        self.norm_out = group_norm(channels_out)
        self.dropout = nn.Dropout(dropout)
        self.conv_out = zeroed(conv(channels_out, channels_out, 3, padding=1))
        same = channels_in == channels_out
        self.shortcut = nn.Identity() if same else conv(channels_in, channels_out, 1)
        self.attention = attention or nn.Identity()

    def forward(self, h: Tensor, embedding: Tensor) -> Tensor:
        residual = self.conv_in(self.resample(F.silu(self.norm_in(h))))
        condition = self.embed(F.silu(embedding))[(..., *[None] * (h.ndim - 2))]
        if self.scale_shift:
            scale, shift = condition.chunk(2, dim=1)
            residual = torch.addcmul(shift, self.norm_out(residual), 1 + scale)
        else:
            residual = self.norm_out(residual + condition)
        residual = self.conv_out(self.dropout(F.silu(residual)))
        out: Tensor = self.attention(self.shortcut(self.resample(h)) + residual)
        return out
