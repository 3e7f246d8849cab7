"""Metrics of what an autoencoder makes of real samples that it was not trained on.

Samples of a model in its latent space can hardly be better than these reconstructions.
"""

import math
from typing import Any

import torch
from torch import Tensor

from fmdiff.codec import Codec
from fmdiff.condition import label
from fmdiff.data.base import Data
from fmdiff.data.images import to_uint8
from fmdiff.errors import FmdiffError
from fmdiff.metrics.judge import Judge, judge
from fmdiff.metrics.metric import Metric, Metrics

AT_ONCE = 250  # samples that are encoded together
RANGE = 2.0  # from the darkest to the lightest pixel, -1 to 1
EXACT = 100.0  # PSNR in dB of images that are equal; it would be infinite
USUAL = {"images": ("fid",), "points": ("sw2",)}  # what compares all of them, by their kind
PAIRED = {"psnr": "of images", "mse": "of points"}  # what compares a sample with its own image


def squared_error(x: Tensor, x_hat: Tensor) -> Tensor:
    """The mean squared error (B,), float64, of each sample of x and x_hat (B, *shape)."""
    return (x.double() - x_hat.double()).square().flatten(1).mean(1)


def psnr(x: Tensor, x_hat: Tensor) -> Tensor:
    """The peak signal-to-noise ratio (B,) in dB of images in [-1, 1], at most 100.

    10 log10(2^2 / mse), for x_hat clamped to [-1, 1].
    """
    error = squared_error(x, x_hat.clamp(-1, 1))
    return (10 * torch.log10(RANGE**2 / error)).clamp(max=EXACT)


class Reconstructions:
    """Judges an autoencoder by the first samples that `data.sample` gives, the test images.

    names: psnr for images or mse for points, and the metrics of samples by name (fid, sw2, ...),
    which compare the reconstructions with the real data as they compare samples; null takes psnr
    and fid, or mse and sw2. settings: features and against, as of the metrics of samples.
    """

    def __init__(
        self,
        names: list[str] | None,
        settings: dict[str, Any],
        data: Data,
        device: str | torch.device,
        seed: int = 0,
    ) -> None:
        self.images = data.kind == "images"
        self.data, self.device, self.seed = data, device, seed
        own = "psnr" if self.images else "mse"
        names = names or [own, *USUAL.get(data.kind, ())]
        if wrong := [name for name in names if name in PAIRED and name != own]:
            raise FmdiffError(f"metrics=[{wrong[0]}] is {PAIRED[wrong[0]]}; choose {own}")
        self.paired = own if own in names else None
        self.others = [name for name in names if name != own]
        self.judge: Judge | None = None
        if self.others:
            keys = {**settings, "metrics": self.others}
            about = data, data.outer, data.classes, seed, device
            self.judge = judge(keys, *about, kind=data.kind)

    @property
    def columns(self) -> list[str]:
        """The names of the metrics."""
        paired = [self.paired] if self.paired else []
        return paired + (self.judge.columns if self.judge else [])

    @property
    def warnings(self) -> list[str]:
        """What a reader of the metrics must know."""
        return self.judge.warnings if self.judge else []

    def digest(self) -> str:
        """A SHA-256 of what the reconstructions are compared with besides their own samples."""
        return self.judge.digest() if self.judge else ""

    def check(self, n: int) -> None:
        """Raises FmdiffError if n samples are too few for these metrics."""
        if self.judge:
            self.judge.check(n)

    @torch.no_grad()
    def results(self, codec: Codec, n: int) -> Metrics:
        """The metrics of n reconstructions, fewer if there are fewer real samples."""
        n = min(n, self.data.references or n)
        codec, values = codec.to(self.device), list[Tensor]()
        if self.judge:
            self.judge.clear()
        for start in range(0, n, AT_ONCE):
            x, y = self.data.sample(start, min(start + AT_ONCE, n), self.seed)
            x_hat = codec.decode(codec.encode(x.to(self.device))).cpu()
            values.append((psnr if self.images else squared_error)(x, x_hat))
            if self.judge:
                self.judge.add(to_uint8(x_hat) if self.images else x_hat, label(y))
        metrics = Metrics()
        if self.paired:
            value = torch.cat(values)
            se = value.std().item() / math.sqrt(n)
            metrics[self.paired] = Metric(value.mean().item(), n, se=se, reference="themselves")
        return Metrics(metrics | (self.judge.results() if self.judge else {}))
