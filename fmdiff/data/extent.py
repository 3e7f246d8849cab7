"""Where the rows of an array lie in a file, for files too large to be read whole."""

import hashlib
import os
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from math import prod
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from fmdiff.errors import FmdiffError
from fmdiff.files import open_regular
from fmdiff.randomness import generator

STRETCHES = 1024  # places of a file that stand for the whole of it,
STRETCH = 1 << 14  # each of so many bytes, or of one row
READERS = 8  # stretches that are read at the same time


@dataclass(frozen=True)
class Extent:
    """`count` rows of a shape and a type that lie one after another in a file, from a byte on."""

    path: Path
    offset: int
    count: int
    shape: tuple[int, ...]
    dtype: np.dtype | torch.dtype

    @classmethod
    def of(cls, array: np.ndarray | Tensor) -> "Extent | None":
        """Where the rows of a mapped array lie; None if it is not mapped, or not row by row."""
        if isinstance(array, Tensor):
            where = _mapped(array.data_ptr()) if array.is_contiguous() else None
        else:
            where = _origin(array) if array.flags.c_contiguous else None
        if where is None or not array.shape or not len(array):
            return None
        return cls(*where, len(array), tuple(array.shape[1:]), array.dtype)

    @property
    def row_bytes(self) -> int:
        """The bytes of a row."""
        return self.dtype.itemsize * prod(self.shape)

    @property
    def nbytes(self) -> int:
        """The bytes of all rows."""
        return self.count * self.row_bytes

    def values(self, raw: np.ndarray) -> np.ndarray | Tensor:
        """Rows (n, *shape) of the array's type, from their bytes (n, row_bytes)."""
        if isinstance(self.dtype, torch.dtype):
            return torch.from_numpy(raw).view(self.dtype).view(-1, *self.shape)
        return raw.view(self.dtype).reshape(-1, *self.shape)

    def descriptor(self) -> int:
        """A descriptor of the file. Raises FmdiffError if it is missing or has not all rows."""
        try:
            with open_regular(self.path) as file:
                size = os.fstat(file.fileno()).st_size
                if size < self.offset + self.nbytes:
                    raise self.unreadable(f"its last row is cut off at byte {size:,}")
                return os.dup(file.fileno())
        except OSError as error:
            raise self.unreadable(error.strerror or str(error)) from error

    def read(self, descriptor: int, first: int, raw: np.ndarray) -> None:
        """Fill `raw` (n, row_bytes) with rows first ... first + n - 1.

        Raises FmdiffError if the file ends before them or cannot be read.
        """
        view, place = raw.reshape(-1).data, self.offset + first * self.row_bytes
        try:
            while view:
                n = os.preadv(descriptor, [view], place)
                if n == 0:
                    raise self.unreadable(f"it ends at byte {place:,}")
                view, place = view[n:], place + n
        except OSError as error:
            raise self.unreadable(error.strerror or str(error)) from error

    def unreadable(self, reason: str) -> FmdiffError:
        """The error for rows that cannot be read."""
        return FmdiffError(f"{self.path} cannot be read: {reason}")

    def take(self, numbers: np.ndarray) -> np.ndarray | Tensor:
        """The rows of some numbers, read one by one, so that the memory does not grow."""
        return self.values(self._pieces(numbers, np.ones_like(numbers)))

    @cached_property
    def sample(self) -> tuple[np.ndarray | Tensor, np.ndarray]:
        """Rows that stand for all of them in statistics, and their numbers.

        They are all rows of a small file. Of a larger one they are 1,024 stretches of 16 KiB (at
        least a row each): one at a random place in each 1,024th of the file, always the same. So
        they take a second to read, and a file whose parts differ is represented in all its parts.
        """
        raw, numbers = self._stretches
        return self.values(raw), numbers

    @cached_property
    def digest(self) -> str:
        """A digest of the number of rows and of the bytes of `sample`.

        A change elsewhere in a large file is not noticed. The name and the time of the file do not
        matter, as a copy of it is the same data.
        """
        about = f"{self.count} {self.shape} {self.dtype}".encode()
        digest = hashlib.blake2b(about, digest_size=16)
        digest.update(self._stretches[0].data)
        return digest.hexdigest()

    @cached_property
    def _stretches(self) -> tuple[np.ndarray, np.ndarray]:
        """The bytes of the rows of `sample`, and their numbers."""
        length = max(1, STRETCH // max(1, self.row_bytes))
        number = min(STRETCHES, -(-self.count // length))
        borders = np.arange(number + 1) * self.count // number
        if self.count <= STRETCHES * length:
            firsts, lengths = borders[:-1], np.diff(borders)
        else:
            free = np.diff(borders) - length + 1
            draws = torch.rand(number, generator=generator(0, "stretches"), dtype=torch.float64)
            firsts = borders[:-1] + (draws.numpy() * free).astype(np.int64)
            lengths = np.full(number, length)
        places = lengths.cumsum() - lengths
        numbers = np.arange(int(lengths.sum())) + np.repeat(firsts - places, lengths)
        return self._pieces(firsts, lengths), numbers

    def _pieces(self, firsts: np.ndarray, lengths: np.ndarray) -> np.ndarray:
        """The bytes of some rows after each of `firsts`, one piece after another."""
        places = lengths.cumsum() - lengths
        raw = np.empty((int(lengths.sum()), self.row_bytes), np.uint8)
        descriptor = self.descriptor()
        try:
            if hasattr(os, "posix_fadvise"):  # without it the system reads on after each piece
                os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_RANDOM)
            with ThreadPoolExecutor(READERS) as pool:
                pieces = zip(firsts.tolist(), places.tolist(), lengths.tolist(), strict=True)
                jobs = [
                    pool.submit(self.read, descriptor, first, raw[place : place + n])
                    for first, place, n in pieces
                ]
                for job in jobs:
                    job.result()
        finally:
            os.close(descriptor)
        return raw


def _origin(array: np.ndarray) -> tuple[Path, int] | None:
    """The file of a mapped array, and the byte at which the array begins."""
    base: object = array
    while isinstance(base, np.ndarray) and isinstance(base.base, np.ndarray):
        base = base.base
    if not (isinstance(base, np.memmap) and base.filename):
        return None
    inside = array.__array_interface__["data"][0] - base.__array_interface__["data"][0]
    return Path(base.filename), base.offset + inside


def _mapped(address: int) -> tuple[Path, int] | None:
    """The file that is mapped at an address, and the byte; None where the system cannot tell."""
    try:
        lines = Path("/proc/self/maps").read_text("utf-8", errors="replace").splitlines()
    except OSError:
        return None
    for line in lines:
        ends, _, offset, _, inode, *name = line.split(maxsplit=5)
        first, stop = (int(end, 16) for end in ends.split("-"))
        if first <= address < stop:
            path = Path(name[0]) if name and inode != "0" else None
            exists = path is not None and path.is_file()
            return (path, int(offset, 16) + address - first) if path and exists else None
    return None
