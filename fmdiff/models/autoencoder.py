"""Autoencoders: codecs that are learned. They lead samples into a latent space and back."""

import math
from abc import abstractmethod
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fmdiff.codec import Codec, Standard
from fmdiff.condition import Given
from fmdiff.errors import FmdiffError
from fmdiff.models.layers import group_norm
from fmdiff.models.network import Network, sizes
from fmdiff.models.unet import multiples

MOST = 10.0  # |log variance| of a latent; beyond it exp would leave float16 and hide the gradient


class Latent(Codec):
    """A codec with a latent z of shape `latent`, and the posterior q(z | x) = N(mean, variance).

    `encode` gives the mean and `decode` its inverse as far as there is one. After `standardise`
    each channel of the encoded data has mean 0 and variance 1. The first axis of `outer` and of
    `latent` is that of channels. A subclass defines `posterior` and `reconstruct`.
    """

    names: tuple[str, ...] = ()  # of the classes of the data, if they have names
    sha256 = ""  # of its checkpoint's spec and these weights

    def __init__(self, outer: Sequence[int], latent: Sequence[int]) -> None:
        super().__init__()
        self.outer, self.latent = tuple(outer), tuple(latent)
        self.pixels = len(self.outer) == 3
        self.standard = Standard(self.latent)

    @abstractmethod
    def posterior(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and log variance (B, *latent) of q(z | x), for x (B, *outer)."""

    @abstractmethod
    def reconstruct(self, z: Tensor) -> Tensor:
        """The sample (B, *outer) of a latent as `posterior` gives it, (B, *latent)."""

    def encode(self, x: Tensor) -> Tensor:
        z = self.posterior(x.to(self._dtype))[0]
        return self.standard.encode(z.to(x.dtype))

    def decode(self, z: Tensor) -> Tensor:
        return self.reconstruct(self.standard.decode(z).to(self._dtype)).to(z.dtype)

    @property
    def _dtype(self) -> torch.dtype:
        """The type of the weights, in which a codec computes whatever the type of the samples."""
        return next(self.parameters()).dtype

    def standardise(self, mean: Tensor, scale: Tensor) -> None:
        """Set mean and scale (C,) of the channels of the posterior's mean over the data."""
        self.standard = Standard.of(self.latent, mean, scale).to(mean.device)


class Learned(Latent, Network):
    """A codec that `objective=autoencoder` trains. keywords: those of its YAML, for `spec`.

    Raises FmdiffError for a latent with more numbers than a sample.
    """

    def __init__(
        self, outer: Sequence[int], latent: Sequence[int], keywords: dict[str, Any]
    ) -> None:
        super().__init__(outer, latent)
        self.keywords = keywords
        if math.prod(latent) > math.prod(outer):
            raise FmdiffError(
                f"model.latent={latent[0]}: a latent of shape {list(latent)} has more numbers "
                f"than a sample of shape {list(outer)}"
            )

    def forward(self, x_t: Tensor, t: Tensor | None = None, y: Given | None = None) -> Tensor:
        """Samples x_t (B, *outer), encoded and decoded; what other networks take plays no part."""
        return self.decode(self.encode(x_t))

    def spec(self) -> dict[str, Any]:
        target = f"{type(self).__module__}.{type(self).__qualname__}"
        return {"_target_": target, "shape": list(self.outer), **self.keywords}


def halves(parameters: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and bounded log variance, each a half of the channels (B, 2 C, ...)."""
    mean, log_variance = parameters.chunk(2, dim=1)
    return mean, log_variance.clamp(-MOST, MOST)


class LinearAutoencoder(Learned):
    """z = W (x - b) and x = V z + c, for samples of any shape, which are flattened.

    The mean squared error is least where V W projects onto the first `latent` principal components
    and the biases add the mean (Baldi & Hornik 1989): it is PCA.

    Raises FmdiffError for a latent size below 1 or above that of a sample.
    """

    def __init__(self, *, shape: Sequence[int], latent: int, classes: int = 0) -> None:
        sizes(latent=latent)
        super().__init__(shape, (latent,), {"latent": latent})
        size = math.prod(shape)
        self.encoder, self.decoder = nn.Linear(size, 2 * latent), nn.Linear(latent, size)

    def posterior(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return halves(self.encoder(x.flatten(1)))

    def reconstruct(self, z: Tensor) -> Tensor:
        x: Tensor = self.decoder(z).unflatten(1, self.outer)
        return x


class Residual(nn.Module):
    """h + conv(SiLU(norm(conv(SiLU(norm(h)))))), with a 1x1 convolution if the widths differ."""

    def __init__(self, before: int, after: int) -> None:
        super().__init__()
        self.inner = nn.Sequential(
            group_norm(before),
            nn.SiLU(),
            nn.Conv2d(before, after, 3, padding=1),
            group_norm(after),
            nn.SiLU(),
            nn.Conv2d(after, after, 3, padding=1),
        )
        self.shortcut = nn.Identity() if before == after else nn.Conv2d(before, after, 1)

    def forward(self, h: Tensor) -> Tensor:
        out: Tensor = self.shortcut(h) + self.inner(h)
        return out


class Enlarged(nn.Module):
    """A convolution of a map and each of its pixels four times: twice the height and width."""

    def __init__(self, before: int, after: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(before, after, 3, padding=1)

    def forward(self, h: Tensor) -> Tensor:
        # the convolution comes first, on a quarter of the pixels
        return F.interpolate(self.conv(h), scale_factor=2.0, mode="nearest")


class Autoencoder(Learned):
    """A convolutional autoencoder: images (B, C, H, W) and latents (B, latent, H/f, W/f).

    The first layer sees patches of `patch` x `patch` pixels, and each level but the first halves
    the map, so f = patch 2^(levels - 1). Level i has channels * multipliers[i] channels and
    `blocks` residual blocks on the way down, as many and one more on the way up.
    Source: Kingma & Welling 2014 (arXiv:1312.6114); Rombach et al. 2022 (arXiv:2112.10752).

    Raises FmdiffError for points, for sides that f does not divide and for a size below 1.
    """

    axes = 3

    def __init__(
        self,
        *,
        shape: Sequence[int],
        channels: int,
        multipliers: Sequence[int],
        blocks: int,
        latent: int,
        patch: int,
        classes: int = 0,
    ) -> None:
        if len(shape) != 3:
            raise FmdiffError(
                f"model=autoencoder takes images, but the data has shape {tuple(shape)}; "
                "choose model=linear_autoencoder for points"
            )
        multiples(multipliers)
        sizes(channels=channels, blocks=blocks, latent=latent, patch=patch)
        factor = patch * 2 ** (len(multipliers) - 1)
        if shape[1] % factor or shape[2] % factor:
            raise FmdiffError(
                f"model.patch={patch} model.multipliers={list(multipliers)} divide each side by "
                f"{factor}, and {shape[1]}x{shape[2]} pixels cannot be: give fewer levels, or "
                "another patch"
            )
        keywords = {"channels": channels, "multipliers": list(multipliers), "blocks": blocks}
        keywords |= {"latent": latent, "patch": patch}
        inner = (latent, shape[1] // factor, shape[2] // factor)
        super().__init__(shape, inner, keywords)
        widths = [channels * m for m in multipliers]
        self.encoder = nn.Sequential(
            nn.PixelUnshuffle(patch),
            nn.Conv2d(shape[0] * patch**2, widths[0], 3, padding=1),
            *self._down(widths, blocks),
            group_norm(widths[-1]),
            nn.SiLU(),
            nn.Conv2d(widths[-1], 2 * latent, 3, padding=1),
        )
        self.decoder = nn.Sequential(
            nn.Conv2d(latent, widths[-1], 3, padding=1),
            *self._up(widths, blocks + 1),
            group_norm(widths[0]),
            nn.SiLU(),
            nn.Conv2d(widths[0], shape[0] * patch**2, 3, padding=1),
            nn.PixelShuffle(patch),
        )

    @staticmethod
    def _down(widths: Sequence[int], blocks: int) -> list[nn.Module]:
        layers: list[nn.Module] = []
        for level, width in enumerate(widths):
            if level:
                layers.append(nn.Conv2d(widths[level - 1], width, 3, stride=2, padding=1))
            layers += [Residual(width, width) for _ in range(blocks)]
        return layers

    @staticmethod
    def _up(widths: Sequence[int], blocks: int) -> list[nn.Module]:
        layers: list[nn.Module] = []
        for level, width in reversed(list(enumerate(widths))):
            layers += [Residual(width, width) for _ in range(blocks)]
            if level:
                layers.append(Enlarged(width, widths[level - 1]))
        return layers

    def posterior(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return halves(self.encoder(x))

    def reconstruct(self, z: Tensor) -> Tensor:
        out: Tensor = self.decoder(z)
        return out
