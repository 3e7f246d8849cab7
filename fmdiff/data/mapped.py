"""The rows of a content that stays in its file, as it is too large for the memory."""

import numpy as np
import torch
from torch import Tensor

from fmdiff.data.content import Content
from fmdiff.data.extent import Extent
from fmdiff.data.shards import Shards
from fmdiff.data.stored import Rows
from fmdiff.errors import FmdiffError
from fmdiff.randomness import generator

SAMPLE = 1 << 14  # rows that stand for some rows of a file
MANY = 1 << 23  # of more rows no permutation is drawn, and
MOST_HELD = 1 << 17  # so many are held out at most


class Without:
    """The numbers 0 ... n - 1 but those of `out`, in increasing order, without a list of them.

    out: no number twice, in any order.
    """

    def __init__(self, n: int, out: np.ndarray) -> None:
        self.n, self.out = n, np.sort(out.astype(np.int64))
        self.before = self.out - np.arange(len(self.out))  # how many numbers precede each of out

    def __len__(self) -> int:
        return self.n - len(self.out)

    def __getitem__(self, places: np.ndarray | slice) -> np.ndarray:
        """The numbers at some places in this order."""
        if isinstance(places, slice):
            places = np.arange(*places.indices(len(self)))
        return places + np.searchsorted(self.before, places, side="right")

    def among(self, numbers: np.ndarray) -> np.ndarray:
        """Whether numbers are among these, bool."""
        if not len(self.out):
            return np.ones(len(numbers), bool)
        near = np.searchsorted(self.out, numbers)
        return self.out[np.minimum(near, len(self.out) - 1)] != numbers


Numbers = np.ndarray | Without


def halves(numbers: Numbers, share: float, seed: int) -> tuple[Numbers, np.ndarray]:
    """Some rows without those that are held out, and these: a random share.

    At least one is held out, and not all if there are two. Of more than 8 million rows at most
    131,072 are. Which these are does not depend on the memory of the machine.
    """
    n = len(numbers)
    count = min(max(1, round(share * n)), n - 1)
    draws = generator(seed, "hold_out")
    if n <= MANY:
        places = torch.randperm(n, generator=draws)[:count].numpy()
    else:
        count = min(count, MOST_HELD)
        many = torch.randint(n, (2 * count,), generator=draws).numpy()
        values, first = np.unique(many, return_index=True)
        places = values[np.argsort(first)[:count]]
    held = numbers[np.sort(places)]
    if isinstance(numbers, Without):
        return Without(numbers.n, np.concatenate([numbers.out, held])), held
    return np.setdiff1d(numbers, held, assume_unique=True), held


class Source:
    """The arrays of a content, each with where its rows lie if its file is mapped."""

    def __init__(self, content: Content) -> None:
        self.content = content
        arrays = {"": content.x, **content.conditions}
        extents = {name: Extent.of(rows.values) for name, rows in arrays.items()}
        self.arrays: dict[str, Rows] = arrays
        self.extents = {name: extent for name, extent in extents.items() if extent is not None}

    @property
    def digests(self) -> list[str]:
        """A digest of each array that is mapped."""
        return [extent.digest for extent in self.extents.values()]

    def shards(self, numbers: Numbers, stream: bool | None) -> Shards | None:
        """What reads these rows ahead; None without `stream`, or if the file is not mapped.

        Raises FmdiffError if `stream` is true, and the file is not mapped.
        """
        if stream is False or "" not in self.extents:
            if stream:
                raise FmdiffError(
                    f"data.stream=true: {self.content.title} cannot be read in pieces; save it "
                    "as a .npy, row by row"
                )
            return None
        if isinstance(numbers, Without):
            return Shards(list(self.extents.values()), numbers.out)
        wanted = np.zeros(len(self.content.x), bool)
        wanted[numbers] = True
        return Shards(list(self.extents.values()), np.flatnonzero(~wanted))

    def read(
        self, shards: Shards, seed: int, step: int, size: int, rows: slice
    ) -> tuple[dict[str, Tensor], np.ndarray]:
        """The rows of training step `step` by the names of the arrays, and their numbers."""
        columns, numbers = shards.take(seed, step, size, rows)
        parts = dict(zip(self.extents, columns, strict=True))
        return self._tensors(parts, numbers.numpy()), numbers.numpy()

    def take(self, numbers: np.ndarray) -> dict[str, Tensor]:
        """The rows of some numbers by the names of the arrays."""
        parts = {name: extent.take(numbers) for name, extent in self.extents.items()}
        return self._tensors(parts, numbers)

    def _tensors(
        self, parts: dict[str, np.ndarray | Tensor], numbers: np.ndarray
    ) -> dict[str, Tensor]:
        """Rows as tensors. Those of arrays in memory are taken here.

        Raises FmdiffError if a sample has a missing or an infinite value.
        """
        tensors = {
            name: rows.tensor(parts[name]) if name in parts else rows[numbers]
            for name, rows in self.arrays.items()
        }
        if self.content.x.floating:
            self._check(tensors[""], numbers)
        return tensors

    def _check(self, x: Tensor, numbers: np.ndarray) -> None:
        if x.sum().isfinite():  # the quick way: none is missing, as that would show in the sum
            return
        finite = x.flatten(1).isfinite().all(1)
        if not finite.all():
            row = numbers[int((~finite).nonzero()[0])]
            raise FmdiffError(
                f"{self.content.title} holds a missing or an infinite value in row {row:,} (the "
                "first is row 0), and is too large to be looked through: correct it"
            )

    def sample(self, numbers: Numbers, name: str = "") -> Tensor:
        """Rows of an array that stand for those of these numbers; see `Extent.sample`."""
        rows, extent = self.arrays[name], self.extents.get(name)
        if extent is None or not isinstance(numbers, Without):
            chosen = numbers[:: -(-len(numbers) // SAMPLE)]
            return rows[chosen] if extent is None else rows.tensor(extent.take(chosen))
        values, places = extent.sample
        among = numbers.among(places)
        x = rows.tensor(values[among])
        if not name and rows.floating:
            self._check(x, places[among])
        return x
