"""Metrics of images that each stand for one real image, like a completed digit for the whole."""

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from fmdiff.errors import FmdiffError
from fmdiff.metrics.features import Features, read
from fmdiff.metrics.frechet import gather
from fmdiff.metrics.images import BATCH, ImageMetrics, Pool
from fmdiff.metrics.metric import Metric

NAMES = ("psnr", "psnr_known")
PEAK = 255.0  # the largest difference of two pixels
EQUAL = 100.0  # decibels in place of infinitely many, which results.json cannot hold
DECIBELS = 10 / math.log(10)


class PairedMetrics(ImageMetrics):
    """The metrics of `ImageMetrics`, and those of pairs of a sample and a real image.

    psnr: 10 log10(255^2 / MSE) of the pixels of all pairs, in decibels; 100 for equal images.
    psnr_known: the same of the pixels that the sample was given. agreement: the share of samples
    in which the classifier sees the class that it sees in the real image.
    """

    of_labels = ("confidence", "classes")

    def __init__(self, names: Sequence[str], extractor: Features, *args: Any, **keys: Any) -> None:
        others = [name for name in names if name not in NAMES]
        keys["classes"] = extractor.classes  # those of the classifier, whatever the samples' are
        super().__init__(others, extractor, *args, **keys)
        # in the order asked for
        self.names += [name for name in dict.fromkeys(names) if name in NAMES]

    def clear(self) -> None:
        super().clear()
        self.errors: dict[str, list[Tensor]] = {name: [] for name in NAMES}

    def add(
        self,
        pixels: Tensor,
        y: Tensor | None = None,
        real: Tensor | None = None,
        known: Tensor | None = None,
    ) -> None:
        """Add images uint8 (B, H, W, C) and the real ones they stand for, of the same shape.

        known: which pixels were given, bool (B, H, W, C). The classes y (B,) are not used.
        """
        if real is None:
            raise FmdiffError("metrics of pairs need the real image of each sample")
        seen: list[Tensor] = []
        for part in real.split(BATCH):
            _, logits = read(self.extractor, part)
            if logits is not None:
                seen.append(logits.argmax(1).cpu())
        super().add(pixels, torch.cat(seen) if seen else None)
        square = (pixels.cpu().double() - real.cpu().double()).square()
        self.errors["psnr"].append(_sums(square, torch.ones_like(square)))
        if known is not None:
            self.errors["psnr_known"].append(_sums(square, known.cpu().double()))

    def _psnr(self, samples: Pool) -> dict[str, Metric]:
        return {"psnr": self._ratio("psnr")}

    def _psnr_known(self, samples: Pool) -> dict[str, Metric]:
        return {"psnr_known": self._ratio("psnr_known")}

    def _ratio(self, name: str) -> Metric:
        """The ratio of a kind of pixels, from sums of squares and counts (n, 2)."""
        if not self.errors[name]:
            raise FmdiffError(f"metrics=[{name}] needs samples whose pixels are given in part")
        sums = torch.cat(self.errors[name])
        sums = gather(sums) if self.spread else sums
        squares, counts = sums.unbind(1)
        mse = (squares.sum() / counts.sum()).item()
        reference = "the real image of each sample"
        if not mse:
            return Metric(EQUAL, len(sums), reference=reference, extra={"exact": True})
        # the error of a ratio of sums, carried over to the logarithm
        off = (squares - mse * counts) / counts.mean()
        se = DECIBELS * (off.std(correction=0) / math.sqrt(len(sums))).item() / mse
        return Metric(DECIBELS * math.log(PEAK**2 / mse), len(sums), se=se, reference=reference)

    def _agreement(self, samples: Pool) -> dict[str, Metric]:
        assert samples.logits is not None and samples.y is not None
        right = (samples.logits.argmax(1) == samples.y).double().mean().item()
        text = "the classes seen in the real images"
        return {"agreement": self._share(right, len(samples.y), reference=text)}


def _sums(square: Tensor, weight: Tensor) -> Tensor:
    """The sums of weighted squares and of weights of each image: (B, 2)."""
    return torch.stack([(square * weight).flatten(1).sum(1), weight.flatten(1).sum(1)], 1)
