"""A folder of the user's images, converted once into a memory-mapped uint8 array."""

import contextlib
import hashlib
import json
import logging
import os
import re
import shutil
import tempfile
import warnings
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, BinaryIO, ClassVar, NamedTuple

import numpy as np
import torch
from torch import Tensor

from fmdiff.data import files
from fmdiff.data.decode import SUFFIXES, File, pixels_of, reason, walk
from fmdiff.data.extent import Extent
from fmdiff.data.images import Images
from fmdiff.data.shards import Shards
from fmdiff.errors import FmdiffError
from fmdiff.files import lock, read_text, sync, write_text
from fmdiff.machine.progress import Bar

log = logging.getLogger("fmdiff")

HELD_OUT = 10  # one image in so many
CHUNK = 256  # images read at a time
FORMAT = 1  # version of the cache; other versions are ignored


class Converted(NamedTuple):
    """The array of all images."""

    images: Tensor  # uint8 (N, C, H, W), memory-mapped: training images, then held-out ones
    rows: Extent | None  # where the training images lie
    train: int  # number of training images
    levels: Tensor  # int64 (256,), counts of the training images' levels
    broken: dict[str, str]  # files that were left out, with the reason


@dataclass(kw_only=True, eq=False)
class Folder(Images):
    """The images below `root`, (channels, size, size), or of their own one size (size=null).

    `decode.pixels_of` decodes each file. Hidden files are left out. The folders in root that hold
    images are the classes, in the order of their names; if all names are integers, in the order of
    these. One image in 10 of each class is held out, chosen by the hash of its name: at least one,
    and not all, of a class with two images or more.

    layout: 1 is that of version 0.1.0, for its checkpoints. Integers are sorted like other names,
    and one image in 10 of all is held out, which may be all of a small class.

    stream: whether `shards` reads the array ahead, in another order than that of `Images`. null:
    if it is larger than a quarter of the memory. A run keeps what null was when it began.

    The array lies in `files.data_root()`/folder, under a hash of the names, sizes and times of the
    files. If it is deleted, or the root is copied, the images are converted again. The folder is
    read when the data are first needed. Raises FmdiffError for images that cannot be read or used.
    """

    root: str | None
    size: int | None
    channels: int
    skip_broken: bool
    layout: int = 1  # checkpoints of 0.1.0 lack it
    stream: bool | None = None  # checkpoints of 0.1.0 lack it

    name: ClassVar[str] = "folder"
    undecided: ClassVar[bool] = True

    def __post_init__(self) -> None:
        if self.root is None:
            raise FmdiffError("data=folder needs data.root=PATH, a folder of images")
        self.require("root", str, "a folder of images", lambda v: v != "")
        if self.size is not None:
            self.require("size", int, "an integer >= 1, or null", lambda v: v >= 1)
        self.require("channels", int, "1 or 3", lambda v: v in (1, 3))
        self.require("skip_broken", bool, "true or false")
        self.require("layout", int, "1 or 2", lambda v: v in (1, 2))
        if self.stream is not None:
            self.require("stream", bool, "true, false or null")
        super().__post_init__()

    def check_labels(self) -> None:
        """Does nothing. `listing` checks later, as sampling from a checkpoint needs no folder."""

    @property
    def path(self) -> Path:
        """The root as an absolute path."""
        return Path(str(self.root)).expanduser().absolute()

    @cached_property
    def pictures(self) -> list[File]:
        """All images below the root, in the order of their names."""
        if not self.path.is_dir():
            what = "is a file" if self.path.exists() else "does not exist"
            raise FmdiffError(f"data.root={self.path} {what}: give a folder of images")
        pictures = walk(self.path)
        if not pictures:
            raise FmdiffError(f"data.root={self.path} holds no images ({', '.join(SUFFIXES)})")
        return pictures

    @cached_property  # type: ignore[misc]
    def names(self) -> list[str]:  # type: ignore[override]
        """The names of the classes; none if an image lies beside the folders."""
        tops = {file.top for file in self.pictures}
        if "" in tops:
            return []
        integers = self.layout > 1 and all(re.fullmatch(r"-?\d+", top, re.ASCII) for top in tops)
        return sorted(sorted(tops), key=int if integers else None)

    @cached_property  # type: ignore[misc]
    def labels(self) -> int:  # type: ignore[override]
        return max(1, len(self.names))

    @property
    def classes(self) -> int:
        conditional = self.labels > 1 if self.conditional is None else self.conditional
        return self.labels if conditional else 0

    @cached_property
    def listing(self) -> tuple[list[File], int]:
        """The images whose labels `only` keeps, and how many of them are for training.

        They are shuffled, so that the first n are of all classes. Held-out images come last.
        """
        if self.conditional and self.labels == 1:
            raise FmdiffError(
                f"data.conditional=true: data.root={self.path} must hold at least two folders of "
                "images, one a class, and no image beside them; set data.conditional=false"
            )
        super().check_labels()
        tops = {self.names[k] for k in self.label_numbers.tolist()} if self.names else {""}
        usable = [file for file in self.pictures if not self.names or file.top in tops]
        usable.sort(key=lambda file: file.order)
        groups: dict[str, list[File]] = {}
        for file in usable:
            groups.setdefault(file.top if self.names and self.layout > 1 else "", []).append(file)
        out = {file for group in groups.values() for file in self._held_out(group)}
        return sorted(usable, key=lambda file: file in out), len(usable) - len(out)

    def _held_out(self, group: list[File]) -> list[File]:
        """Those that are held out of some files, which are sorted by their hash."""
        out = [file for file in group if file.order % HELD_OUT == 0]
        if 0 < len(out) < len(group):
            return out
        return group[:1] if len(group) > 1 or self.layout == 1 else []

    def fingerprint(self) -> dict[str, Any]:
        names = [(file.name, file.size) for file in sorted(self.listing[0])]
        digest = hashlib.blake2b(json.dumps(names).encode(), digest_size=16).hexdigest()
        return {"count": len(names), "digest": digest}

    @cached_property  # type: ignore[misc]
    def shape(self) -> tuple[int, ...]:  # type: ignore[override]
        if self.size is None:
            return tuple(self.array.images.shape[1:])
        return (self.channels, self.size, self.size)

    def prepare(self) -> None:
        _ = self.array

    def read(self, train: bool) -> tuple[Tensor, Tensor]:
        array = self.array
        labels = self._labels(array)
        split = slice(None, array.train) if train else slice(array.train, None)
        return array.images[split], labels[split]

    def select(self, images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        return images, labels  # the listing has no others

    @cached_property
    def levels(self) -> Tensor:
        return self.array.levels

    @cached_property
    def shards(self) -> Shards | None:
        rows = self.array.rows
        if rows is None or not (Shards.large(rows.nbytes) if self.stream is None else self.stream):
            return None
        return Shards([rows])

    @cached_property
    def array(self) -> Converted:
        """All images as one array, from the cache; logs if they must be converted first."""
        where = self.cache()
        array, what = load(where), "found in the cache"
        if array is None:
            try:
                where.parent.mkdir(parents=True, exist_ok=True)
                with lock(where.with_name(f"{where.name}.lock")):
                    array = load(where)  # another process may have converted them meanwhile
                    if array is None:
                        array, what = self._convert(where), "written to the cache"
            except OSError as error:
                raise FmdiffError(
                    f"data=folder: {where.parent} cannot be written ({error.strerror or error}); "
                    "make room there, or point FMDIFF_DATA to another folder"
                ) from error
        if array is None:
            raise FmdiffError(f"data=folder: {where} cannot be read back; is the disk whole?")
        self._check(array)
        classes = f", {self.labels} classes ({_some(self.names)})" if self.classes else ""
        n, held = len(array.images), len(array.images) - array.train
        log.info("data=folder: %d images, %d held out%s; %s, %s", n, held, classes, what, where)
        self._warn_of_classes(array)
        return array

    def _labels(self, array: Converted) -> Tensor:
        """The labels of the images of the array (N,)."""
        number = {name: k for k, name in enumerate(self.names)}
        whole = [file for file in self.listing[0] if file.name not in array.broken]
        return torch.tensor([number.get(file.top, 0) for file in whole])

    def _warn_of_classes(self, array: Converted) -> None:
        """Log the classes of which no image is trained on, or none held out."""
        labels = self._labels(array)
        splits = {"trained on": labels[: array.train], "held out": labels[array.train :]}
        for what, split in splits.items() if self.classes else ():
            rest = set(self.label_numbers.tolist()) - set(split.tolist())
            if names := [self.names[k] for k in sorted(rest)]:
                log.warning("data.root=%s: no image of %s is %s", self.path, _some(names), what)

    def _check(self, array: Converted) -> None:
        """Raises FmdiffError if the array cannot be used for training."""
        n, broken = len(array.images), [f"{k} ({why})" for k, why in array.broken.items()]
        unreadable = (
            f"{len(broken)} of its {n + len(broken)} images cannot be read: {_some(broken, 3)}"
        )
        if broken and not self.skip_broken:
            raise FmdiffError(
                f"data.root={self.path}: {unreadable}; repair or remove them, or leave them out "
                "by data.skip_broken=true"
            )
        if not 0 < array.train < n:
            raise FmdiffError(
                f"data.root={self.path} has {array.train} images to train on and "
                f"{n - array.train} to hold out, and one of each is needed"
                + (f": {unreadable}" if broken else "")
            )
        if broken:
            log.warning("data.root=%s: %s; left out", self.path, unreadable)
        if self.batch_size > array.train:
            raise FmdiffError(
                f"data.batch_size={self.batch_size} is more than the {array.train} training "
                f"images of data.root={self.path} ({n - array.train} are held out); choose "
                f"data.batch_size <= {array.train}"
            )

    def cache(self) -> Path:
        """The folder of the array. It is never below the root."""
        root = self.path.resolve()
        text = json.dumps([FORMAT, str(root), self.size, self.channels, self.listing])
        digest = hashlib.blake2b(text.encode(), digest_size=8).hexdigest()
        place = files.data_root().absolute()
        if root in (place.resolve(), *place.resolve().parents):
            raise FmdiffError(
                f"data.root={self.path} holds {place}, where fmdiff would keep the converted "
                "images: point FMDIFF_DATA to a folder elsewhere"
            )
        return place / "folder" / f"{root.name}-{digest}"

    def _convert(self, where: Path) -> Converted | None:
        """Write images.npy and about.json, and return the array; None if it cannot be read back.

        If another process was faster, where there are no locks, its array is taken.
        """
        folder = Path(tempfile.mkdtemp(prefix=".new-", dir=where.parent))
        try:
            with (folder / "images.npy").open("wb") as file, warnings.catch_warnings():
                warnings.simplefilter("ignore")  # Pillow warns about what is refused below
                about = self._write(file)
                sync(file)
            write_text(folder / "about.json", json.dumps(about))
            array = load(folder)  # it stays mapped, whatever becomes of the folder's name
            put(folder, where)
            return load(where) or array
        finally:
            shutil.rmtree(folder, ignore_errors=True)

    def _write(self, file: BinaryIO) -> dict[str, Any]:
        """Write the array of all images to a file. Returns the content of about.json."""
        pictures, train = self.listing
        broken: dict[str, str] = {}
        levels, counts = np.zeros(256, np.int64), [0, 0]
        shape: tuple[int, ...] | None = None
        with (
            ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool,
            Bar(len(pictures), "image") as bar,
        ):
            for start in range(0, len(pictures), CHUNK):
                part = pictures[start : start + CHUNK]
                for i, pixels in enumerate(pool.map(self._pixels, part), start):
                    name = pictures[i].name
                    if isinstance(pixels, str):
                        broken[name] = pixels
                        continue
                    if shape is None:
                        shape, first = pixels.shape, name
                        head(file, len(pictures), shape)
                    if pixels.shape != shape:
                        raise FmdiffError(
                            f"data.size=null needs images of one size, and {first} has "
                            f"{shape[2]}x{shape[1]} pixels, {name} {pixels.shape[2]}x"
                            f"{pixels.shape[1]}; choose data.size=64, say"
                        )
                    file.write(pixels.tobytes())
                    counts[i >= train] += 1
                    if i < train:
                        levels += np.bincount(pixels.ravel(), minlength=256)
                bar(len(part))
        if shape is None:
            raise FmdiffError(
                f"data.root={self.path}: none of its {len(pictures)} images can be read: "
                + _some([f"{name} ({why})" for name, why in broken.items()], 3)
            )
        file.seek(0)
        head(file, sum(counts), shape)
        return {"train": counts[0], "levels": levels.tolist(), "broken": broken}

    def _pixels(self, file: File) -> np.ndarray | str:
        """The pixels of a file, or why it cannot be read."""
        try:
            return pixels_of(self.path / file.name, self.size, self.channels)
        except Exception as error:  # Pillow meets a broken file with many kinds of exception
            return reason(error)


def head(file: BinaryIO, n: int, shape: tuple[int, ...]) -> None:
    """Write the header of a .npy of n images. Its length does not depend on n."""
    about = {"descr": "|u1", "fortran_order": False, "shape": (n, *shape)}
    np.lib.format.write_array_header_1_0(file, about)


def put(folder: Path, where: Path) -> None:
    """Rename a cache folder to `where`, unless a whole one is there by now. Raises OSError."""
    for _ in range(10):
        try:
            folder.replace(where)
            return
        except OSError:
            if load(where) is not None:
                return
            if not where.is_dir():
                raise
        # a damaged one; without locks, another process may put a whole one there meanwhile
        aside = Path(tempfile.mkdtemp(prefix=".old-", dir=where.parent))
        with contextlib.suppress(OSError):
            where.replace(aside)
            if load(aside) is not None:
                aside.replace(where)
        shutil.rmtree(aside, ignore_errors=True)


def load(where: Path) -> Converted | None:
    """The array of a cache folder, mapped into memory; None if it is missing or damaged."""
    try:
        about: dict[str, Any] = json.loads(read_text(where / "about.json"))
        # "c" is copy on write: the tensor is writable and the file stays as it is
        images = np.load(where / "images.npy", mmap_mode="c", allow_pickle=False)
        levels = torch.tensor(about["levels"])
        train = about["train"]
        rows = Extent.of(images[:train])
        return Converted(torch.from_numpy(images), rows, train, levels, about["broken"])
    except (OSError, ValueError, KeyError):
        return None


def _some(words: list[str], n: int = 10) -> str:
    return ", ".join(words[:n]) + (", ..." if len(words) > n else "")
