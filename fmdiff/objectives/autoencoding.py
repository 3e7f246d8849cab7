"""The loss of autoencoders, whose latent space other models then learn."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from fmdiff.condition import Given
from fmdiff.errors import FmdiffError, nearest
from fmdiff.models.autoencoder import Latent
from fmdiff.objectives.flow_matching import DISTANCES
from fmdiff.objectives.objective import Objective
from fmdiff.path import Path
from fmdiff.source import Source

# a network's maps of images x (B, C, H, W), from fine to coarse: (B, C_i, H_i, W_i) each
Maps = Callable[[Tensor], Sequence[Tensor]]
SMALL = 1e-6  # added to the squared length of a vector of features before it is divided


class Autoencoding(Objective):
    """Reconstruction, with a price on what the latent tells and on features that differ:

        z = mean(x) + std(x) eps,    x_hat = reconstruct(z),
        loss = distance(x_hat - x) + kl_weight KL(q(z | x) || N(0, 1)) / D
               + perceptual_weight d(x_hat, x),

    D the numbers of a sample. eps is the first numbers of the noise of the training step. With
    kl_weight=0 the autoencoder is deterministic, z = mean(x). d is `perceptual`, by the features
    of the network named `features`, which the run hands in as `maps`. Time, path and labels play
    no part.

    Raises FmdiffError for an unknown distance and for a weight below 0.
    Source: Kingma & Welling 2014 (arXiv:1312.6114); Rombach et al. 2022 (arXiv:2112.10752).
    """

    autoencodes = True
    maps: Maps | None = None  # of the network `features`, set by the run

    def __init__(
        self,
        path: Path,
        data_std: float,
        distance: str,
        kl_weight: float,
        perceptual_weight: float,
        features: str | None = None,
        source: Source | None = None,
        coupled: bool = False,
    ) -> None:
        super().__init__(path, data_std, source=source, coupled=coupled)
        if distance not in DISTANCES:
            raise FmdiffError(
                f"objective.distance={distance} is unknown; {nearest(distance, DISTANCES)}"
            )
        for name, value in (("kl", kl_weight), ("perceptual", perceptual_weight)):
            if not isinstance(value, int | float) or isinstance(value, bool) or not value >= 0:
                raise FmdiffError(f"objective.{name}_weight={value} must be a number >= 0")
        self._distance, self.kl_weight = distance, kl_weight
        self.perceptual_weight, self.features = perceptual_weight, features

    def field(  # type: ignore[override]  # the one objective whose network is a codec
        self,
        net: nn.Module | None,
        shape: Sequence[int],
        classes: int = 0,
        y: Given | None = None,
    ) -> Latent:
        """The network, which encodes and decodes."""
        assert isinstance(net, Latent)
        return net

    @property
    def inputs(self) -> dict[str, Any]:
        return {}  # conditions play no part

    def __call__(
        self, net: nn.Module, x: Tensor, y: Given | None, eps: Tensor, t: Tensor
    ) -> Tensor:
        return self.assess(net, x, y, eps, t)[0]

    def assess(self, net: nn.Module, *terms: Any) -> tuple[Tensor, Tensor]:
        """The loss and the squared error, each (B,), of the reconstruction of x."""
        x, _, eps, *_ = terms
        codec = self.field(net, x.shape[1:])
        mean, log_variance = codec.posterior(x)
        noise = eps.flatten(1)[:, : mean[0].numel()].view_as(mean)
        z = torch.addcmul(mean, noise, (log_variance / 2).exp()) if self.kl_weight else mean
        x_hat = codec.reconstruct(z)
        error = whole(x_hat - x).flatten(1)
        losses = DISTANCES[self._distance](error, HUBER)
        if self.kl_weight:
            losses = losses + self.kl_weight / error.shape[1] * divergence(mean, log_variance)
        if self.maps is not None:
            losses = losses + self.perceptual_weight * perceptual(self.maps, x_hat, x)
        return losses, error.detach().square().mean(1)


HUBER = 0.03  # errors well above it count as in l1, below it as in l2; the data lie in [-1, 1]


def whole(x: Tensor) -> Tensor:
    """x, in float32 if it is of 16 bits, in which sums of many numbers are poor."""
    return x.to(torch.promote_types(x.dtype, torch.float32))


def divergence(mean: Tensor, log_variance: Tensor) -> Tensor:
    """KL(N(mean, variance) || N(0, 1)) (B,), a sum over all numbers of (B, ...)."""
    terms = mean.square() + log_variance.exp() - 1 - log_variance
    return whole(terms).flatten(1).sum(1) / 2


def perceptual(maps: Maps, x_hat: Tensor, x: Tensor) -> Tensor:
    """The mean over maps of |f(x_hat) - f(x)|^2 at a place, f of length 1: (B,), from 0 to 4.

    Source: Zhang et al. 2018 (arXiv:1801.03924), without its learned weights.
    """
    with torch.no_grad():
        real = [unit(f) for f in maps(x)]
    pairs = zip(maps(x_hat), real, strict=True)
    return torch.stack([(unit(f) - g).square().sum(1).mean((1, 2)) for f, g in pairs]).mean(0)


def unit(features: Tensor) -> Tensor:
    """Features (B, C, H, W) with length 1 at each place."""
    length = whole(features).square().sum(1, keepdim=True).add(SMALL).sqrt()
    return features / length
