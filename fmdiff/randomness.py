"""Randomness as a function of (seed, purpose, counters), never of hidden generator state.

Every draw uses the functions below. So a run resumed at step k draws what the uninterrupted run
drew, a batch is the same on 1 or N devices, and sample i of a seed gets the same noise whatever
the batch size.
"""

import hashlib
from collections.abc import Iterator
from functools import lru_cache

import torch
from torch import Tensor

BLOCK = 64  # sampling noise is drawn for this many consecutive sample indices at a time


def key(seed: int, purpose: str, *counters: int) -> int:
    """A 63-bit seed from (seed, purpose, counters); the same on every machine and version."""
    text = "/".join(map(str, (seed, purpose, *counters)))
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "little") >> 1


def generator(
    seed: int, purpose: str, *counters: int, device: torch.device | str = "cpu"
) -> torch.Generator:
    """A fresh generator seeded by (seed, purpose, counters)."""
    return torch.Generator(device).manual_seed(key(seed, purpose, *counters))


@lru_cache(maxsize=4)
def permutation(seed: int, epoch: int, n: int) -> Tensor:
    """The order (n,) in which an epoch visits the n training examples."""
    return torch.randperm(n, generator=generator(seed, "permutation", epoch))


def positions(seed: int, step: int, batch_size: int, n: int) -> Tensor:
    """Indices (batch_size,) of the examples that training step `step` takes.

    Step k takes places k*B ... k*B + B - 1 of the endless sequence of permuted epochs. So every
    example is seen once per epoch whatever the batch size, and a batch may straddle two epochs.
    """
    places = torch.arange(step * batch_size, (step + 1) * batch_size)
    epochs = places // n
    parts = []
    for epoch in range(int(epochs[0]), int(epochs[-1]) + 1):
        parts.append(permutation(seed, epoch, n)[places[epochs == epoch] % n])
    return torch.cat(parts)


class Windows:
    """The order in which epochs visit rows that are read from a disk in shards.

    A shard is a stretch of a file. Each epoch permutes the M shards, and takes them in windows of
    `size` shards. Within a window it permutes the rows. All of it is a function of (seed, epoch),
    every row is visited once per epoch, and a batch may straddle windows and epochs.

    How far that is from a permutation of all rows: rows of one shard are visited at most a window
    apart, size / M of an epoch; other pairs of rows come in any order. So if the shards of a file
    differ, the windows differ too. Where the rows of a share p of the shards are of a kind (a
    class, in a file sorted by class), the share of the kind in a window has mean p and standard
    deviation sqrt(p (1 - p) (M - size) / (size (M - 1))), for shards of equal length: 0.037 for
    p = 0.1 and 64 of many shards. A batch of B independent rows has sqrt(p (1 - p) / B), 0.019 for
    B = 256, but anew in each batch. In a file whose rows are independent nothing differs.

    counts: the number of rows of each shard, none of them 0.
    """

    def __init__(self, seed: int, counts: Tensor, size: int) -> None:
        self.seed, self.counts, self.size = seed, counts, size
        self.rows = int(counts.sum())
        self.number = -(-len(counts) // size)  # windows per epoch
        self.layouts: dict[int, tuple[Tensor, Tensor]] = {}

    def layout(self, epoch: int) -> tuple[Tensor, Tensor]:
        """The shards (M,) in the order of an epoch, and the ends of its windows (number,)."""
        layout = self.layouts.get(epoch)
        if layout is None:
            draws = generator(self.seed, "shards", epoch)
            order = torch.randperm(len(self.counts), generator=draws)
            last = torch.arange(1, self.number + 1).mul(self.size).clamp(max=len(order)) - 1
            layout = order, self.counts[order].cumsum(0)[last]
            near = {k: v for k, v in self.layouts.items() if abs(k - epoch) == 1}
            self.layouts = near | {epoch: layout}
        return layout

    def shards(self, window: int) -> Tensor:
        """The shards of a window, in the order of the file. The next epoch counts windows on."""
        epoch, part = divmod(window, self.number)
        order = self.layout(epoch)[0]
        return order[part * self.size : (part + 1) * self.size].sort().values

    def order(self, window: int) -> Tensor:
        """The order (n,) in which the n rows of a window, one shard after another, are visited."""
        n = int(self.counts[self.shards(window)].sum())
        return torch.randperm(n, generator=generator(self.seed, "window", window))

    def places(self, step: int, batch_size: int) -> Iterator[tuple[int, slice]]:
        """Windows and the places in their orders that training step `step` takes."""
        first, stop = step * batch_size, (step + 1) * batch_size
        while first < stop:
            epoch, place = divmod(first, self.rows)
            ends = self.layout(epoch)[1]
            part = int(torch.searchsorted(ends, place, right=True))
            start = int(ends[part - 1]) if part else 0
            count = min(stop - first, int(ends[part]) - place)
            yield epoch * self.number + part, slice(place - start, place - start + count)
            first += count


def noise(
    start: int, stop: int, shape: tuple[int, ...], seed: int, purpose: str, step: int = 0
) -> Tensor:
    """Standard normal noise (stop - start, *shape), float32, of samples start ... stop - 1.

    It is drawn on the CPU in blocks of 64 indices, each by its own generator. So row i depends on
    (seed, purpose, step, i) alone.
    """
    blocks = range(start // BLOCK, -(-stop // BLOCK))
    rows = [
        torch.randn(BLOCK, *shape, generator=generator(seed, purpose, block, step))
        for block in blocks
    ]
    first = start - blocks.start * BLOCK
    return torch.cat(rows)[first : first + stop - start]


class Brownian:
    """Brownian motion W on [0, 1] of samples start ... stop - 1: row i depends on (seed, i, t).

    Levy's construction by halves: W_0 = 0, W_1 = Z_0, and at the middle of an interval [a, b]

        W = (W_a + W_b) / 2 + sqrt(b - a) / 2 Z_node.

    Within a leaf, an interval of length 2^-DEPTH, at a + f (b - a),

        W = (1 - f) W_a + f W_b + sqrt(f (1 - f) (b - a)) Z_leaf.

    So the joint law is exact at times of which no two lie inside the same leaf, and all choices of
    steps see the same path. The intervals around the last time are kept. So S increasing times
    cost at most (DEPTH + 1) S draws, and about (DEPTH + 2 - log2 S) S in equal steps.

    Raises ValueError for a time outside [0, 1].
    """

    DEPTH = 20

    def __init__(self, start: int, stop: int, shape: tuple[int, ...], seed: int) -> None:
        self.rows, self.shape, self.seed = (start, stop), shape, seed
        one = self._draw(0)
        # from the root inwards: an interval, W at its ends, the number of its node
        self.around = [(0.0, 1.0, torch.zeros_like(one), one, 1)]
        self.middles: list[Tensor] = []  # W in the middles of the outer ones
        self.last = 0.0, torch.zeros_like(one)

    def __call__(self, t: Tensor, s: Tensor) -> Tensor:
        """The increment W_s - W_t (stop - start, *shape), float64 on the CPU."""
        before = self.at(float(t))
        return self.at(float(s)) - before

    def at(self, t: float) -> Tensor:
        """W_t (stop - start, *shape), float64 on the CPU."""
        if not 0 <= t <= 1:
            raise ValueError(f"t={t} is not in [0, 1]")
        if self.last[0] != t:
            self.last = t, self._find(t)
        return self.last[1]

    def _find(self, t: float) -> Tensor:
        while not self.around[-1][0] <= t <= self.around[-1][1]:
            self.around.pop()
        self.middles = self.middles[: len(self.around)]
        while True:
            a, b, w_a, w_b, node = self.around[-1]
            if t in (a, b):
                return w_a if t == a else w_b
            if node >= 2**self.DEPTH:
                return self._between((t - a) / (b - a))
            if len(self.middles) < len(self.around):
                self.middles.append(self._between(0.5))
            m, w = (a + b) / 2, self.middles[-1]
            half = (a, m, w_a, w, 2 * node) if t < m else (m, b, w, w_b, 2 * node + 1)
            self.around.append(half)

    def _between(self, f: float) -> Tensor:
        """W at the fraction f of the innermost interval, from its node's draw."""
        a, b, w_a, w_b, node = self.around[-1]
        spread: float = (f * (1 - f) * (b - a)) ** 0.5
        return w_a + f * (w_b - w_a) + spread * self._draw(node)

    def _draw(self, node: int) -> Tensor:
        return noise(*self.rows, self.shape, self.seed, "brownian", node).double()
