# Reached: see EXPERIMENTS.md. The strengths below were fixed before this script first ran.
"""Do the distances of the embedded features grow with what is wrong?

python scripts/sanity_features.py mnist cifar10    needs the data sets, minutes of one core each

The Frechet distance to all training images of the test images, and of 5,000 training images that
are made worse: by noise, by blur, by a wrong balance of the classes and by missing classes. Prints
Markdown, and exits with 1 where a distance does not grow with the strength.
"""

import sys
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor

from fmdiff.build import named
from fmdiff.metrics.frechet import Moments, frechet_distance
from fmdiff.metrics.images import features_of
from fmdiff.metrics.judge import split_features

N = 5000
NOISE = (8, 16, 32, 64)  # standard deviation in grey levels of 255
BLUR = (0.5, 0.75, 1.0, 1.5)  # standard deviation in pixels
BALANCE = (0.75, 0.5, 0.25, 0.1)  # share of the images of classes 0 to 4 that is kept
MISSING = (1, 2, 3, 5)  # classes left out, from 0 on


def noisy(pixels: Tensor, std: float) -> Tensor:
    noise = torch.randn(pixels.shape, generator=torch.Generator().manual_seed(0))
    return (pixels + std * noise).round().clamp(0, 255).to(torch.uint8)


def blurred(pixels: Tensor, std: float) -> Tensor:
    at = torch.arange(-4, 5)
    row = torch.exp(-(at**2) / (2 * std**2))
    kernel = torch.outer(row, row) / row.sum() ** 2
    x = pixels.permute(0, 3, 1, 2).float()
    padded = F.pad(x.flatten(0, 1)[:, None], (4, 4, 4, 4), mode="replicate")
    out = F.conv2d(padded, kernel[None, None]).view_as(x)
    return out.permute(0, 2, 3, 1).round().to(torch.uint8)


def rows(name: str) -> bool:
    """Print the table of a data set; whether every row grows."""
    data, extractor = named("data", name), named("features", name)
    train, test = (split_features(extractor, data, split) for split in ("train", "test"))
    assert train.pixels is not None and train.labels is not None
    assert test.features is not None and train.features is not None
    dimension = extractor.dimension

    def distance(features: Tensor) -> float:
        return frechet_distance(Moments(dimension).add(features), train.moments)

    order = torch.randperm(len(train.labels), generator=torch.Generator().manual_seed(0))
    few = order[:N]
    pixels, features = train.pixels[few], train.features

    def unbalanced(keep: float) -> float:
        u = torch.rand(len(order), generator=torch.Generator().manual_seed(1))
        kept = order[((train.labels[order] >= 5) | (u < keep))]
        return distance(features[kept[:N]])

    def without(classes: int) -> float:
        return distance(features[order[train.labels[order] >= classes][:N]])

    clean = distance(features[few])
    noise = torch.randint(0, 256, pixels[:2000].shape, dtype=torch.uint8)
    print(
        f"\n{name}, fd_{name}: {N:,} training images {clean:.3f}, test images "
        f"{distance(test.features):.3f}, uniform noise "
        f"{distance(features_of(extractor, noise)):.1f}\n"
    )
    print("| made worse by | strengths | distances |\n|---|---|---|")
    growing = True
    for what, strengths, found in (
        ("noise", NOISE, [distance(features_of(extractor, noisy(pixels, s))) for s in NOISE]),
        ("blur", BLUR, [distance(features_of(extractor, blurred(pixels, s))) for s in BLUR]),
        ("classes 0-4 kept", BALANCE, [unbalanced(s) for s in BALANCE]),
        ("classes missing", MISSING, [without(s) for s in MISSING]),
    ):
        growing &= all(a < b for a, b in pairwise([clean, *found]))
        shown = (", ".join(f"{v:g}" for v in strengths), ", ".join(f"{v:.3g}" for v in found))
        print(f"| {what} | {shown[0]} | {shown[1]} |", flush=True)
    return growing


if __name__ == "__main__":
    torch.set_num_threads(1)
    sys.exit(not all([rows(name) for name in sys.argv[1:] or ("mnist", "cifar10")]))
