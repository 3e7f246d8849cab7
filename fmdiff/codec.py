"""Codecs: between the samples that a user knows and what a model learns.

A table is standardised by column, and a picture may be encoded into a latent space. A codec does
both ways. It travels in the checkpoint, so that samples come back as the user knows them.
"""

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from fmdiff.errors import FmdiffError


class Codec(nn.Module):
    """The base class. `outer` is the shape of a sample as the user knows it.

    `encode` and `decode` take and return batches, (B, *outer) and (B, *shape).
    """

    outer: tuple[int, ...]
    pixels = False  # whether the user's samples are images in [-1, 1]
    column_names: tuple[str, ...] = ()  # of the components of points, if they have names
    levels: dict[str, tuple[str, ...]]  # the names behind the numbers of a column, by its name

    def __init__(self) -> None:
        super().__init__()
        self.levels = {}

    def encode(self, x: Tensor) -> Tensor:
        """What a model learns of the user's samples x (B, *outer): (B, *shape)."""
        raise NotImplementedError

    def decode(self, z: Tensor) -> Tensor:
        """The user's samples (B, *outer) of what a model gives, z (B, *shape)."""
        raise NotImplementedError

    def log_det(self) -> float | None:
        """log |det dz/dx|, which log p(x) adds to log p(z); None if there is none."""
        return None

    def spec(self) -> dict[str, Any]:
        """The `_target_` and the plain keywords that build it; its tensors are its state."""
        raise NotImplementedError


class Standard(Codec):
    """z = (x - mean) / scale for each component of points, or each channel of arrays.

    shape: that of x and of z. The moments are buffers (C,) float64, to be loaded or set by `of`.
    """

    mean: Tensor
    scale: Tensor

    def __init__(self, shape: Sequence[int]) -> None:
        super().__init__()
        if not shape or not all(type(n) is int and n >= 1 for n in shape):
            raise FmdiffError(f"a codec of shape {shape!r:.80} cannot be built")
        self.outer = tuple(shape)
        self.register_buffer("mean", torch.zeros(shape[0], dtype=torch.float64))
        self.register_buffer("scale", torch.ones(shape[0], dtype=torch.float64))

    @classmethod
    def of(cls, shape: Sequence[int], mean: Tensor, scale: Tensor) -> "Standard":
        """The codec with these moments (C,). A scale of 0, of what is constant, counts as 1."""
        codec = cls(shape)
        codec.mean.copy_(mean)
        codec.scale.copy_(torch.where(scale > 0, scale, 1))
        return codec

    def _moments(self, x: Tensor) -> tuple[Tensor, Tensor]:
        places = (-1, *(1,) * (len(self.outer) - 1))
        return self.mean.view(places).to(x.device), self.scale.view(places).to(x.device)

    def encode(self, x: Tensor) -> Tensor:
        mean, scale = self._moments(x)
        # in place after a conversion: a difference of two types takes eight times as long
        return x.to(torch.float64, copy=True).sub_(mean).div_(scale).to(x.dtype)

    def decode(self, z: Tensor) -> Tensor:
        mean, scale = self._moments(z)
        return z.to(torch.float64, copy=True).mul_(scale).add_(mean).to(z.dtype)

    def log_det(self) -> float:
        places = math.prod(self.outer[1:])
        return -places * self.scale.log().sum().item()

    def spec(self) -> dict[str, Any]:
        return {"_target_": "fmdiff.codec.Standard", "shape": list(self.outer)}


def kind_of(outer: Sequence[int], codec: Codec | None = None) -> str:
    """What samples of the shape `outer` are to a user: points, series, images or arrays.

    (d,) are points and (C, L) series. (C, H, W) are images in [-1, 1], or arrays of other numbers.
    """
    if len(outer) < 3:
        return "points" if len(outer) == 1 else "series"
    return "images" if codec is None or codec.pixels else "arrays"


def frozen(codec: Codec) -> Codec:
    """The codec in evaluation mode and without gradients."""
    return codec.eval().requires_grad_(False)
