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
FALSE_ALARM = 0.001  # how often `Memorisation.chance` is below this if nothing is copied


class Coverage(NamedTuple):
    """Precision and recall with k nearest neighbours, and their standard errors."""

    precision: float
    recall: float
    k: int
    precision_error: float
    recall_error: float


def precision_recall(generated: Tensor, real: Tensor, k: int = 3) -> Coverage:
    """Shares of samples inside the other set's manifold, features (n, d) and (m, d).

    The manifold of a set is the union of closed balls around its members, each reaching to the
    member's k-th nearest other member:

        precision = share of generated features in the manifold of the real ones (quality),
        recall    = share of real features in the manifold of the generated ones (variety).

    Both grow with the number of samples that span the manifold, so compare at one n and m. The
    errors are for the choice of both sets at these n and m.
    Raises FmdiffError for k or fewer samples (Kynkaanniemi et al., 2019, equations 1 and 2).
    """
    for name, features in (("generated", generated), ("real", real)):
        if len(features) <= k:
            raise FmdiffError(
                f"n={len(features)}: precision and recall with k={k} neighbours need "
                f"at least {k + 1} {name} images"
            )
    generated, real = _double(generated, real)
    precise, recalled = Manifold(real, k, len(generated)), Manifold(generated, k, len(real))
    for rows, distance in _blocks(generated, real):
        precise.add(distance, rows, slice(None))
        recalled.add(distance.T, slice(None), rows)
    precision, precision_error = precise.share()
    recall, recall_error = recalled.share()
    return Coverage(precision, recall, k, precision_error, recall_error)


class Manifold:
    """The balls around `members` (m, d), and which of `count` queries lie inside any of them.

    The error of this share is for the choice of the queries, p (1 - p) / count, and of the
    members. That is the jackknife's: without member j its own ball is gone, and the balls that it
    bounded reach to the next neighbour. Of the squared changes only the products of different
    queries count. The others are of the choice of the queries, which would be counted twice.
    """

    def __init__(self, members: Tensor, k: int, count: int) -> None:
        reach = min(k + 2, len(members))  # a row is its own nearest neighbour
        nearest = [d.topk(reach, largest=False) for _, d in _blocks(members, members)]
        distances = torch.cat([part.values for part in nearest])
        self.radii, self.next_radii = distances[:, k], distances[:, -1]
        self.bounds = torch.cat([part.indices for part in nearest])[:, : k + 1]
        self.inside = torch.zeros(count, dtype=torch.int64, device=members.device)  # balls, number
        self.ball = torch.zeros_like(self.inside)  # the sum of their indices
        self.beyond: list[Tensor] = []  # (query, ball) that reaches it only with its next radius

    def add(self, distance: Tensor, queries: slice, members: slice) -> None:
        """Add the distances (queries, members) of some of both."""
        inside = distance <= self.radii[members]
        index = torch.arange(len(self.radii), device=distance.device)[members]
        self.inside[queries] += inside.sum(1)
        self.ball[queries] += (inside * index).sum(1)
        beyond = ((distance <= self.next_radii[members]) & ~inside).nonzero()
        self.beyond.append(beyond + beyond.new_tensor([queries.start or 0, members.start or 0]))

    def share(self) -> tuple[float, float]:
        """The share of queries inside, and its standard error."""
        count, m = len(self.inside), len(self.radii)
        query, ball = torch.cat(self.beyond).T
        bounds = self.bounds[ball]  # without any of these others the ball reaches the query
        only = self.inside == 1
        rescued = torch.zeros_like(only)
        rescued[query[(bounds == self.ball[query, None]).any(1)]] = True
        lost = self.ball[only & ~rescued].bincount(minlength=m)
        outside = (self.inside[query] == 0)[:, None] & (bounds != ball[:, None])
        new = (query[:, None] * m + bounds)[outside].unique() % m
        gained = new.bincount(minlength=m)
        change = (gained - lost).double()
        squares = change.square() - (gained + lost)  # pairs of different queries
        members = (m - 1) / m * (squares.sum() - change.sum() ** 2 / m).item() / count**2
        p = (self.inside > 0).double().mean().item()
        return p, (p * (1 - p) / count + max(members, 0.0)) ** 0.5


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
    threshold: float  # a held-out distance: that of rank about `level` times their number
    level: float  # the rank of the threshold, over the number of held-out images plus 1
    share: float  # share of generated images nearer than the threshold [level]
    chance: float  # probability of this share or a larger one, if nothing is copied
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

        threshold = the r-th smallest D over held_out, r = level (l + 1), rounded, at least 1,
        share = share of generated images with D(g) < threshold,
        authenticity = share of generated images g that are farther from their nearest training
            image x than x is from its own nearest other training image (Alaa et al., 2022).

    A small chance, or an authenticity well below that of held-out images, is a sign of copying.
    Without copies the D of generated and held-out images are draws of one law, so their order is
    random. Then x or more generated images are below the threshold if at most r - 1 of the
    x + r - 1 smallest D are held-out ones, which has a hypergeometric probability at any n and l.
    This takes images as independent, and held-out ones as no nearer to `train` than others are.
    A ratio above 1 or a share of 0 is no sign of health:
    blurred and wrong images are far from everything. Copies of training images that are not in
    `train` go unnoticed.
    Raises FmdiffError for an empty set or fewer than 2 training images.
    """
    from scipy.stats import hypergeom

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
    rank = max(1, round(level * (len(real) + 1)))
    level = rank / (len(real) + 1)
    threshold = real.kthvalue(rank).values
    near = int((distance < threshold).sum())
    both = len(distance) + len(real)
    middle, real_middle = distance.median().item(), real.median().item()
    return Memorisation(
        generated=middle,
        held_out=real_middle,
        ratio=middle / real_middle if real_middle else float("nan"),
        threshold=threshold.item(),
        level=level,
        share=near / len(distance),
        chance=float(hypergeom.cdf(rank - 1, both, len(real), near + rank - 1)),
        share_error=(level * (1 - level) * (1 / len(distance) + 1 / len(real))) ** 0.5,
        authenticity=authentic[: len(distance)].mean().item(),
        held_out_authenticity=authentic[len(distance) :].mean().item(),
        neighbour=index,
        distance=distance,
    )
