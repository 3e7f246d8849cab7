"""Pairs of pictures from two folders: the model makes the one and is given the other."""

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path, PurePosixPath
from typing import Any, ClassVar

import torch
from torch import Tensor

from fmdiff.condition import Form
from fmdiff.data.decode import File
from fmdiff.data.derived import EXAMPLES, form_of
from fmdiff.data.folder import Folder
from fmdiff.data.images import from_uint8
from fmdiff.errors import FmdiffError

LISTED = 10  # missing files that a message names


@dataclass(kw_only=True, eq=False)
class PairedFolders(Folder):
    """The images below `root`, each with the condition `given`: that of its name in `given_root`.

    Names are paths below the folders, without suffix: a/1.png goes with a/1.jpg. Both pictures of
    a pair are trained on, or both held out. For the rest see `Folder`.
    Raises FmdiffError for pictures without a partner, and for several of one name.
    """

    given_root: str | None
    given_size: int | None
    given_channels: int | None

    condition: ClassVar[str] = "given"

    def __post_init__(self) -> None:
        if self.root is None or self.given_root is None:
            raise FmdiffError(
                "data=paired_folders needs data.root=PATH, a folder of images to make, and "
                "data.given_root=PATH, a folder of images to be given"
            )
        self.require("given_root", str, "a folder of images", lambda v: v != "")
        if self.given_size is not None:
            self.require("given_size", int, "an integer >= 1, or null", lambda v: v >= 1)
        if self.given_channels is not None:
            self.require("given_channels", int, "1, 3 or null", lambda v: v in (1, 3))
        super().__post_init__()
        if self.augment:
            raise FmdiffError(
                f"data.augment={self.augment} would change the pictures of a pair apart: set "
                "data.augment=0"
            )

    @cached_property
    def given(self) -> Folder:
        """The pictures that the model is given, in the order of `listing`."""
        folder = Folder(
            root=self.given_root,
            size=self.size if self.given_size is None else self.given_size,
            channels=self.channels if self.given_channels is None else self.given_channels,
            skip_broken=self.skip_broken,
            batch_size=self.batch_size,
            conditional=False,
        )
        if not folder.path.is_dir():
            what = "is a file" if folder.path.exists() else "does not exist"
            raise FmdiffError(f"data.given_root={folder.path} {what}: give a folder of images")
        pictures, train = self.listing
        folder.listing = self._partners(pictures, folder), train
        return folder

    def _partners(self, pictures: list[File], other: Folder) -> list[File]:
        """The partner of each picture. Raises FmdiffError for pictures without one."""
        ours = _by_name(pictures, "data.root", self.path)
        theirs = _by_name(other.pictures, "data.given_root", other.path)
        alone = [f"{self.path / ours[name].name}" for name in ours if name not in theirs]
        if self.only is None:
            alone += [f"{other.path / theirs[name].name}" for name in theirs if name not in ours]
        if alone:
            more = f" and {len(alone) - LISTED} more" if len(alone) > LISTED else ""
            raise FmdiffError(
                f"data.root={self.path} and data.given_root={other.path} must hold pictures of "
                f"the same names, and {len(alone)} have no partner: "
                f"{', '.join(alone[:LISTED])}{more}"
            )
        return [theirs[name] for name in ours]

    @cached_property
    def conditions(self) -> dict[str, Form]:
        """The condition `given`, with its mean and scale by channel."""
        return {self.condition: form_of(from_uint8(self.given_images(True)[:EXAMPLES]))}

    def fingerprint(self) -> dict[str, Any]:
        about, given = super().fingerprint(), self.given.fingerprint()
        digests = f"{about['digest']}/{given['digest']}".encode()
        return about | {"digest": hashlib.blake2b(digests, digest_size=16).hexdigest()}

    @property
    def shards(self) -> None:  # type: ignore[override]
        """None: pairs are not read ahead, however large the arrays."""

    def prepare(self) -> None:
        super().prepare()
        self.given.prepare()

    def read(self, train: bool) -> tuple[Tensor, Tensor]:
        rows = self._whole(train)[0]
        return self.array.images[rows], self._labels(self.array)[rows]

    def given_images(self, train: bool) -> Tensor:
        """The partners of the images of a split: uint8 (N, C, H, W)."""
        return self.given.array.images[self._whole(train)[1]]

    @cached_property
    def _given(self) -> dict[bool, Tensor]:
        return {train: self.given_images(train) for train in (True, False)}

    def parts(self, index: Tensor, train: bool) -> dict[str, Tensor]:
        return {self.condition: from_uint8(self._given[train][index.cpu()])}

    def _whole(self, train: bool) -> tuple[Any, Any]:
        """The rows of both arrays that hold the pairs of a split of which both can be read."""
        pictures, count = self.listing
        broken = self.array.broken, self.given.array.broken
        if not any(broken):
            part = slice(None, count) if train else slice(count, None)
            return part, part
        rows, places = ([], []), [0, 0]  # type: tuple[list[int], list[int]], list[int]
        for i, pair in enumerate(zip(pictures, self.given.listing[0], strict=True)):
            whole = [file.name not in lost for file, lost in zip(pair, broken, strict=True)]
            if all(whole) and (i < count) == train:
                rows[0].append(places[0])
                rows[1].append(places[1])
            places = [place + ok for place, ok in zip(places, whole, strict=True)]
        if not rows[0]:
            raise FmdiffError(
                f"data.root={self.path}: no pair is left to {'train on' if train else 'hold out'} "
                "without those that cannot be read"
            )
        return torch.tensor(rows[0]), torch.tensor(rows[1])


def _by_name(pictures: Iterable[File], option: str, root: Path) -> dict[str, File]:
    """Pictures by their names without suffix. Raises FmdiffError for two of one name."""
    names: dict[str, File] = {}
    for file in pictures:
        name = str(PurePosixPath(file.name).with_suffix(""))
        if name in names:
            raise FmdiffError(
                f"{option}={root} holds {names[name].name} and {file.name}, and a pair has one "
                "picture of a name; remove one of them"
            )
        names[name] = file
    return names
