"""The cache of coupling=reflow: the pairs of a teacher, made once.

A pair is noise eps and X(eps), where the teacher's ODE leads it (Liu et al. 2023,
arXiv:2209.03003). With classes all of them take turns, as in `fmdiff sample`, and with other
conditions pairs have those of training samples. The folder
`files.data_root()`/reflow/DATA-HASH holds

    pairs.npy   (m, 2, *shape) float32: eps and X(eps) of every pair, mapped into memory
    about.json  what the pairs follow from, the SHA-256 of each block of pairs, and the
                straightness of the teacher

HASH is made of the teacher's weights, the solver, its steps, the guidance, the number of pairs,
their classes and the seed. Each block is written when it is done, so a process that goes on after
another was killed makes the rest alone. The folder can be deleted at any time; then the pairs are
made again.
"""

import errno
import hashlib
import io
import json
import logging
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from fmdiff import files
from fmdiff.build import spec_of
from fmdiff.condition import Given
from fmdiff.coupling import Pairs, Reflow
from fmdiff.data.base import Data
from fmdiff.data.files import data_root
from fmdiff.machine.progress import Bar
from fmdiff.sampling import default_batch_size

log = logging.getLogger("fmdiff")

FORMAT = 1  # version of the cache; other versions are ignored
POINTS, IMAGES = 2**17, 50_000  # pairs by default
HELD_OUT_POINTS, HELD_OUT_IMAGES = 2000, 200  # pairs beside them, for validation


class About(NamedTuple):
    """The content of about.json: what the pairs follow from, and what is known of them."""

    key: dict[str, Any]
    straightness: float
    checksums: list[str]


@dataclass(frozen=True, eq=False)
class Recipe:
    """All that the pairs of a run follow from, but for the teacher itself.

    teacher: the SHA-256 of the teacher. name: of the data, for the folder. spec: their settings,
    on which pairs with conditions depend.
    """

    coupling: Reflow
    data: Data
    name: str
    teacher: str
    spec: Mapping[str, Any] | None = None

    @property
    def n(self) -> int:
        """The number of pairs to train on."""
        return self.coupling.n or (POINTS if self.data.axes == 1 else IMAGES)

    @property
    def total(self) -> int:
        """The number of all pairs."""
        return self.n + (HELD_OUT_POINTS if self.data.axes == 1 else HELD_OUT_IMAGES)

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of one sample."""
        return tuple(self.data.shape)

    @property
    def size(self) -> int:
        """The number of pairs in a block, which are computed at once."""
        return default_batch_size(self.shape)

    @property
    def classes(self) -> list[int] | None:
        """The labels that take turns."""
        return self.data.label_numbers.tolist() if self.data.classes else None

    @cached_property
    def key(self) -> dict[str, Any]:
        """What the pairs follow from."""
        coupling = self.coupling
        return {
            "format": FORMAT,
            "teacher": str(self.teacher),
            "solver": spec_of("solver", coupling.solver),
            "steps": coupling.steps,
            "w": coupling.w,
            "n": self.n,
            "total": self.total,
            "seed": coupling.seed,
            "shape": list(self.shape),
            "classes": self.classes,
            **self.conditions,
        }

    @property
    def conditions(self) -> dict[str, Any]:
        """What the conditions of pairs follow from besides the seed; empty without any."""
        if not self.data.conditions:
            return {}
        return {"data": dict(self.spec or {}), "files": self.data.fingerprint()}

    def given(self, rows: range) -> Given | None:
        """The labels and conditions for which the teacher is asked for the pairs of these numbers.

        Labels alone take turns. With conditions pair i has what row i of all batches of training,
        with the seed of the pairs, has.
        """
        if self.data.conditions:
            size = self.data.batch_size
            steps = range(rows.start // size, -(-rows.stop // size))
            y = self.data.batches(self.coupling.seed, steps)[1]
            assert y is not None
            first = rows.start - steps.start * size
            return y[first : first + len(rows)]
        if self.classes is None:
            return None
        return torch.tensor(self.classes)[torch.arange(rows.start, rows.stop) % len(self.classes)]

    @cached_property
    def folder(self) -> Path:
        """The folder of the pairs in the cache."""
        text = json.dumps(self.key, sort_keys=True)
        digest = hashlib.blake2b(text.encode(), digest_size=8).hexdigest()
        return data_root().absolute() / "reflow" / f"{self.name}-{digest}"

    @property
    def blocks(self) -> list[range]:
        """The numbers of the pairs of each block."""
        total, size = self.total, self.size
        return [range(i, min(i + size, total)) for i in range(0, total, size)]

    @cached_property
    def head(self) -> bytes:
        """The header of pairs.npy."""
        head = io.BytesIO()
        about = {"descr": "<f4", "fortran_order": False, "shape": (self.total, 2, *self.shape)}
        np.lib.format.write_array_header_1_0(head, about)
        return head.getvalue()

    @property
    def bytes(self) -> int:
        """The size of one pair on the disk."""
        return 8 * math.prod(self.shape)

    def about(self) -> About:
        """The content of about.json; without a checksum if it is missing, damaged or of others."""
        try:
            about = About(**json.loads(files.read_text(self.folder / "about.json", self.folder)))
            if about.key == self.key and len(about.checksums) <= len(self.blocks):
                return about._replace(straightness=float(about.straightness))
        except (OSError, ValueError, TypeError, RecursionError):
            pass
        return About(self.key, math.nan, [])

    def load(self) -> Pairs | None:
        """The pairs in the cache, verified and mapped into memory; None if they are not whole."""
        about = self.about()
        if len(about.checksums) < len(self.blocks):
            return None
        array = self.read(about.checksums)
        if array is None:
            log.warning("%s is damaged: its pairs are made again", self.folder)
            return None
        eps, x = torch.from_numpy(array).unbind(1)
        return Pairs(
            eps, x, self.given(range(self.total)), self.n, self.teacher, about.straightness
        )

    def read(self, checksums: list[str]) -> np.ndarray | None:
        """The pairs of the first blocks (k, 2, *shape), if they have these checksums."""
        rows = sum(map(len, self.blocks[: len(checksums)]))
        try:
            with files.open_regular(self.folder / "pairs.npy", self.folder) as file:
                if file.read(len(self.head)) != self.head:
                    return None
                shape = (rows, 2, *self.shape)
                # "c" is copy on write: the tensor is writable and the file stays as it is
                array = np.memmap(file, np.float32, "c", len(self.head), shape)
        except (OSError, ValueError):
            return None
        whole = all(
            hashlib.sha256(array[block.start : block.stop].data).hexdigest() == checksum
            for block, checksum in zip(self.blocks, checksums, strict=False)
        )
        return array if whole else None


def make(
    recipe: Recipe, block: Callable[[range], Tensor], straightness: Callable[[], float]
) -> None:
    """Make the pairs that the cache lacks, and write each block when it is done.

    block: gives the pairs of these numbers (k, 2, *shape), float32 on the CPU. straightness: that
    of the teacher. Raises OSError.
    """
    folder = files.make_folder(recipe.folder)
    path, about = folder / "pairs.npy", recipe.about()
    if not about.checksums or recipe.read(about.checksums) is None:
        path.unlink(missing_ok=True)
        about = About(recipe.key, straightness(), [])
    checksums = list(about.checksums)
    start = sum(map(len, recipe.blocks[: len(checksums)]))
    with files.append(path) as file, Bar(recipe.total, "pair") as bar:
        bar(start)
        file.truncate(len(recipe.head) + start * recipe.bytes if start else 0)
        if not start:
            _write(file, recipe.head)
        for rows in recipe.blocks[len(checksums) :]:
            content = block(rows).numpy().astype("<f4").tobytes()
            _write(file, content)
            files.sync(file)
            checksums.append(hashlib.sha256(content).hexdigest())
            now = about._replace(checksums=checksums)
            files.write_text(folder / "about.json", json.dumps(now._asdict()))
            bar(len(rows))


def _write(file: Any, content: bytes) -> None:
    """Write all of it to an unbuffered file, which may take less at a time."""
    rest = memoryview(content)
    while rest:
        written = file.write(rest)
        if not written:
            raise OSError(errno.ENOSPC, "no space left")
        rest = rest[written:]
