"""Rows of files larger than the memory, read in large pieces while training goes on.

A gather of random rows from a mapped file reads the disk page by page, and what it has read stays
in the memory of the process. Here rows come in shards of 8 MiB, 64 of them a window, in the order
of `randomness.Windows`. Threads read the next window while training takes its rows from the
current one. So training goes at the speed of the disk, with two windows in memory.
"""

import contextlib
import os
import threading
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import ClassVar, NamedTuple

import numpy as np
import torch
from torch import Tensor

from fmdiff.data.extent import Extent
from fmdiff.errors import FmdiffError
from fmdiff.machine import device
from fmdiff.randomness import Windows

READERS = 4  # shards that are read at the same time


class Window(NamedTuple):
    """The rows of some shards, one shard after another."""

    parts: list[np.ndarray]  # bytes (n, row_bytes) of each array, also of rows that are left out
    numbers: Tensor  # the number (n,) in the file of each of these rows
    order: Tensor  # the places in `parts` of the rows to train on, in the order of training


class Shards:
    """Rows for training steps from arrays in files. Each array has one row for each sample.

    out: the rows that are left out, such as those held out, in increasing order.

    Two windows are in memory: that of the last rows, and the next or the one before. The next is
    read once an eighth of its predecessor has been taken, as a coupling wants the rows of some
    steps in advance. Several processes of a run read the same windows. Threads may share it.

    Raises FmdiffError for a file that cannot be read.
    """

    shard: ClassVar[int] = 8 << 20  # the bytes of a shard,
    most: ClassVar[int] = 1 << 16  # and its rows at most
    size: ClassVar[int] = 64  # shards of a window

    def __init__(self, extents: Sequence[Extent], out: np.ndarray | None = None) -> None:
        self.extents, n = list(extents), extents[0].count
        self.count, self.out = n, np.zeros(0, np.int64) if out is None else out
        width = sum(extent.row_bytes for extent in extents)
        self.length = max(1, min(self.shard // max(1, width), self.most, n))  # rows of a shard
        borders = np.append(np.arange(0, n, self.length), n)
        counts = np.diff(borders) - np.diff(np.searchsorted(self.out, borders))
        self.firsts = borders[:-1][counts > 0]  # the first row of each shard that has any
        self.counts = torch.from_numpy(counts[counts > 0])
        self.windows: Windows | None = None
        self.lock = threading.Lock()
        self.held: dict[int, Future[Window]] = {}  # two at most
        self.spare: list[list[np.ndarray]] = []  # memory of windows that are over
        self.descriptors: list[int] = []
        self.pool: ThreadPoolExecutor | None = None

    @staticmethod
    def large(nbytes: int) -> bool:
        """Whether so many bytes are more than a quarter of the memory."""
        return nbytes > device.memory() // 4

    def __len__(self) -> int:
        """The number of rows that an epoch visits."""
        return int(self.counts.sum())

    def take(
        self, seed: int, step: int, batch_size: int, rows: slice = slice(None)
    ) -> tuple[list[np.ndarray | Tensor], Tensor]:
        """The rows of training step `step` from each array, and their numbers (B,) in the file.

        It is a function of (seed, step) alone. rows: the part of the batch that is wanted, without
        a stride.
        """
        start, stop, _ = rows.indices(batch_size)
        pieces, numbers, done = [], [], 0
        with self.lock:
            if self.windows is None or self.windows.seed != seed:
                self._forget()
                self.windows = Windows(seed, self.counts, self.size)
            for window, places in self.windows.places(step, batch_size):
                shift = places.start - done
                done += places.stop - places.start
                mine = slice(max(places.start, start + shift), min(places.stop, stop + shift))
                if mine.start < mine.stop:
                    held = self._window(window)
                    index = held.order[mine]
                    numbers.append(held.numbers[index])
                    pieces.append([part.take(index.numpy(), 0) for part in held.parts])
                    if 8 * places.stop >= len(held.order):
                        self._begin(window + 1)
        columns = [np.concatenate(column) for column in zip(*pieces, strict=True)]
        values = [e.values(raw) for e, raw in zip(self.extents, columns, strict=True)]
        return values, torch.cat(numbers)

    def close(self) -> None:
        """End the threads and free the memory. A later `take` begins again."""
        with self.lock:
            self._forget()
            if self.pool is not None:
                self.pool.shutdown()
                self.pool = None
            while self.descriptors:
                os.close(self.descriptors.pop())

    def _forget(self) -> None:
        self._drop(set())
        self.spare.clear()
        self.windows = None

    def _drop(self, keep: set[int]) -> None:
        """Give the memory of all windows back but of these, once nothing is read into it."""
        for number in self.held.keys() - keep:
            future = self.held.pop(number)
            with contextlib.suppress(FmdiffError):
                self.spare.append(future.result().parts)

    def _window(self, number: int) -> Window:
        """A window, which is read now unless it is in memory or under way."""
        if number not in self.held:
            near = [n for n in (number + 1, number - 1) if n in self.held]
            self._drop(set(near[:1]))
            self._submit(number)
        try:
            return self.held[number].result()
        except FmdiffError:
            del self.held[number]
            raise

    def _begin(self, number: int) -> None:
        """Let a window be read ahead, after the one before it."""
        if number not in self.held:
            self._drop({number - 1})
            self._submit(number)

    def _submit(self, number: int) -> None:
        if self.pool is None:
            self.descriptors = [extent.descriptor() for extent in self.extents]
            # beside the readers, two windows may wait for theirs
            self.pool = ThreadPoolExecutor(READERS + 2, "fmdiff-shards")
        memory = self.spare.pop() if self.spare else self._memory()
        self.held[number] = self.pool.submit(self._read, number, memory)

    def _memory(self) -> list[np.ndarray]:
        """Memory for a window."""
        n = min(self.count, self.size * self.length)
        return [np.empty((n, extent.row_bytes), np.uint8) for extent in self.extents]

    def _read(self, number: int, memory: list[np.ndarray]) -> Window:
        """Read a window into memory that may be larger."""
        assert self.windows is not None and self.pool is not None
        firsts = self.firsts[self.windows.shards(number).numpy()]
        lengths = np.minimum(self.length, self.count - firsts)
        places = lengths.cumsum() - lengths  # where each shard begins in the window
        jobs = [
            self.pool.submit(extent.read, descriptor, first, part[place : place + n])
            for extent, descriptor, part in zip(
                self.extents, self.descriptors, memory, strict=True
            )
            for first, n, place in zip(firsts.tolist(), lengths, places, strict=True)
        ]
        total = int(lengths.sum())
        numbers = np.arange(total) + np.repeat(firsts - places, lengths)
        wanted = np.ones(total, bool)
        for first, n, place in zip(firsts, lengths, places, strict=True):
            out = self.out[slice(*np.searchsorted(self.out, (first, first + n)))]
            wanted[place + out - first] = False
        order = torch.from_numpy(np.flatnonzero(wanted))[self.windows.order(number)]
        for job in jobs:
            job.result()
        return Window(memory, torch.from_numpy(numbers), order)
