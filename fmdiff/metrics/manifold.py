"""Neighbours in feature space: precision, recall, and how close samples are to training data.

Distances are Euclidean and float64. From float32 products, the distance of an image to its copy
would be about 1e-3 of its norm. They are taken in blocks of rows, so 10,000 against 10,000 at
d = 2048 needs about 1 GB.
"""

from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from fmdiff.errors import FmdiffError

ROWS = 1024  # rows of a distance matrix in memory at a time


class Coverage(NamedTuple):
    """Precision and recall with k nearest neighbours."""

    precision: float
    recall: float
    k: int


def precision_recall(generated: Tensor, real: Tensor, k: int = 3) -> Coverage:
    """Shares of samples inside the other set's manifold, features (n, d) and (m, d).

    The manifold of a set is the union of closed balls around its members, each reaching to the
    member's k-th nearest other member:

        precision = share of generated features in the manifold of the real ones (quality),
        recall    = share of real features in the manifold of the generated ones (variety).

    Both grow with the number of samples that span the manifold, so compare at one n and m.
    Raises FmdiffError for k or fewer samples (Kynkaanniemi et al., 2019, equations 1 and 2).
    """
    for name, features in (("generated", generated), ("real", real)):
        if len(features) <= k:
            raise FmdiffError(
                f"n={len(features)}: precision and recall with k={k} neighbours need "
                f"at least {k + 1} {name} images"
            )
    generated, real = _double(generated, real)
    around_generated, around_real = radii(generated, k), radii(real, k)
    precise, recalled = [], torch.zeros(len(real), dtype=torch.bool, device=real.device)
    for rows, distance in _blocks(generated, real):
        precise.append((distance <= around_real).any(1))
        recalled |= (distance <= around_generated[rows, None]).any(0)
    precision, recall = torch.cat(precise).double().mean(), recalled.double().mean()
    return Coverage(precision.item(), recall.item(), k)


def radii(features: Tensor, k: int) -> Tensor:
    """Distance (n,) of each row of (n, d) to its k-th nearest other row."""
    # k + 1, as a row is its own nearest neighbour
    return torch.cat([d.kthvalue(k + 1).values for _, d in _blocks(features, features)])


def nearest(queries: Tensor, keys: Tensor, skip: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Distance (n,) and index (n,) of the nearest row of keys (m, d) to each of queries (n, d).

    skip (n,): the index of a key to ignore, for queries that are keys themselves.
    """
    queries, keys = _double(queries, keys)
    minima = []
    for rows, distance in _blocks(queries, keys):
        if skip is not None:
            distance.scatter_(1, skip[rows, None].to(distance.device), torch.inf)
        minima.append(distance.min(1))
    distances, indices = zip(*minima, strict=True)
    return torch.cat(distances), torch.cat(indices)


def _double(a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    return a.double(), b.to(a.device, torch.float64)


def _blocks(a: Tensor, b: Tensor) -> Iterator[tuple[slice, Tensor]]:
    """Yields slices of rows of a and their distances (rows, len(b)) to all of b."""
    for start in range(0, len(a), ROWS):
        rows = slice(start, start + ROWS)
        yield rows, torch.cdist(a[rows], b)


class Memorisation(NamedTuple):
    """How near generated images are to training images.

    In brackets: the value of a model that has learnt the distribution and copies nothing.
    """

    generated: float  # median distance of a generated image to its nearest training image
    held_out: float  # the same of held-out images
    ratio: float  # generated / held_out [1]
    threshold: float  # the `level` quantile of the held-out distances
    share: float  # share of generated images nearer than the threshold [level]
    share_error: float  # standard error of share - level, from both sets' choice, if it were 0
    authenticity: float  # see `memorisation` [that of held-out images, the next]
    held_out_authenticity: float
    neighbour: Tensor  # (n,) index of the nearest training image of each generated one
    distance: Tensor  # (n,) the distance to it


def memorisation(
    generated: Tensor, train: Tensor, held_out: Tensor, level: float = 0.01
) -> Memorisation:
    """Whether generated images are nearer to training images than fresh real images are.

    generated (n, d), train (m, d) and held_out (l, d): features of one extractor. held_out are of
    real images that were not trained on. With D(g) the distance of g to the nearest training
    image:

        threshold = the `level` quantile of D over held_out,
        share = share of generated images with D(g) < threshold,
        authenticity = share of generated images g that are farther from their nearest training
            image x than x is from its own nearest other training image (Alaa et al., 2022).

    A share well above `level`, in units of share_error, or an authenticity well below that of
    held-out images, is a sign of copying. A ratio above 1 or a share of 0 is no sign of health:
    blurred and wrong images are far from everything. Copies of training images that are not in
    `train` go unnoticed.
    Raises FmdiffError for an empty set or fewer than 2 training images.
    """
    if len(train) < 2 or not len(generated) or not len(held_out):
        raise FmdiffError(
            f"nearest neighbours need generated, held-out and 2 training images, not "
            f"{len(generated)}, {len(held_out)} and {len(train)}"
        )
    distance, index = nearest(generated, train)
    real, real_index = nearest(held_out, train)
    # distances between training images are needed only for the nearest ones
    used, place = torch.cat([index, real_index]).unique(return_inverse=True)
    between = nearest(train[used.to(train.device)], train, skip=used)[0].to(distance)[place]
    authentic = (torch.cat([distance, real]) > between).double()
    threshold = real.quantile(level)
    middle, real_middle = distance.median().item(), real.median().item()
    return Memorisation(
        generated=middle,
        held_out=real_middle,
        ratio=middle / real_middle if real_middle else float("nan"),
        threshold=threshold.item(),
        share=(distance < threshold).double().mean().item(),
        share_error=(level * (1 - level) * (1 / len(distance) + 1 / len(real))) ** 0.5,
        authenticity=authentic[: len(distance)].mean().item(),
        held_out_authenticity=authentic[len(distance) :].mean().item(),
        neighbour=index,
        distance=distance,
    )
