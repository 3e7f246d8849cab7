"""data=array: the user's own points, series and arrays, from a file."""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from fmdiff.codec import Codec
from fmdiff.condition import Form
from fmdiff.data import content as contents
from fmdiff.data import selection
from fmdiff.data.base import Batch, Data, Device, far
from fmdiff.data.columns import some
from fmdiff.data.content import Content, Roles
from fmdiff.data.images import from_uint8
from fmdiff.data.mapped import Numbers, Source, Without, halves
from fmdiff.data.part import Part, codec_of, moments
from fmdiff.data.shards import Shards
from fmdiff.data.stored import headers
from fmdiff.errors import FmdiffError
from fmdiff.randomness import generator, positions

log = logging.getLogger("fmdiff")

RESIDENT = 2 << 30  # samples of up to so many bytes are moved to the device


@dataclass(kw_only=True, eq=False)
class Array(Data):
    """Samples (N, *shape) of a file: points (d,), series (C, L) or arrays (C, H, W).

    Tables (.csv, .tsv, .txt, .parquet) have columns, and each row is a point. A file of arrays
    (.npy, .npz, .safetensors, .pt) holds samples along its first axis. Integers and floats of any
    width are taken; bytes of shape (N, 1 or 3, H, W) or (N, H, W, 1 or 3) are pixels unless
    `pixels` is false.

    key: the array of samples, if the file holds several. columns: the features; None for all
    columns that are nothing else. label: the column or array of class labels, integers or texts.
    cond: those of conditions, numbers (N, *shape) or texts. categorical: features that are
    categories rather than numbers. standardise: to mean 0 and standard deviation 1, per feature of
    points and per channel of others; samples come back in the units of the file.

    Held out are the rows that the column `split` marks by 1, true or test, or all of the file
    `test`, or else the share `hold_out` of the rows, chosen by `seed`. missing: what becomes of
    rows with missing features: error, drop, or mean (the column's, or its most common category).
    A missing condition is not known, and is no error.

    The file is read when the data are first needed; sampling from a checkpoint needs no file.
    Raises FmdiffError for what cannot be used.
    """

    file: str | None
    key: str | None = None
    columns: list[str] | None = None
    label: str | None = None
    cond: list[str] | None = None
    categorical: list[str] | None = None
    standardise: bool = True
    pixels: bool | None = None
    hold_out: float = 0.1
    seed: int = 0
    split: str | None = None
    test: str | None = None
    missing: str = "error"
    delimiter: str | None = None
    header: bool | None = None
    decimal: str | None = None
    stream: bool | None = None

    undecided: ClassVar[bool] = True

    def __post_init__(self) -> None:
        if self.file is None:
            raise FmdiffError("data=array needs data.file=PATH, a .csv, .parquet or .npy, say")
        self.require("file", str, "a file", lambda v: v != "")
        for name in ("key", "label", "split", "test"):
            if getattr(self, name) is not None:
                self.require(name, str, "a name, or null", lambda v: v != "")
        for name in ("columns", "cond", "categorical"):
            if getattr(self, name) is not None:
                self.require(name, list, "a list of names, or null", _names)
        for name in ("pixels", "header", "stream"):
            if getattr(self, name) is not None:
                self.require(name, bool, "true, false or null")
        self.require("standardise", bool, "true or false")
        self.require("hold_out", float, "a number between 0 and 1", lambda v: 0 < v < 1)
        self.require("seed", int, "an integer >= 0", lambda v: v >= 0)
        self.require("missing", str, "error, drop or mean", lambda v: v in selection.WAYS)
        if self.decimal is not None:
            self.require("decimal", str, "',' or '.', or null", lambda v: v in (",", "."))
        if self.delimiter is not None:
            self.require("delimiter", str, "one character, tab or space, or null", _delimiter)
        if self.split and self.test:
            raise FmdiffError(
                f"data.split={self.split} data.test={self.test}: both hold rows out; choose one"
            )
        contents.check_conditions(self.cond or [])
        super().__post_init__()

    def check_labels(self) -> None:
        """Does nothing. `content` checks later, as sampling from a checkpoint needs no file."""

    @classmethod
    def axes_of(cls, settings: Mapping[str, Any]) -> int | None:
        """How many axes a sample has, from the header of the file; None if it cannot be read."""
        path = Path(str(settings.get("file") or "")).expanduser()
        if path.suffix.lower() in contents.TABLES:
            return 1
        try:
            roles = Roles(
                settings.get("key"), None, settings.get("label"), settings.get("cond") or ()
            )
            parts = headers(path, "data.file")
            shape = parts[contents.sample_key(parts, "data.file", roles)].shape
        except (FmdiffError, KeyError):
            return None  # the error is raised when the file is read
        return max(1, len(shape) - 1)

    # The files

    @cached_property  # type: ignore[misc]
    def axes(self) -> int:  # type: ignore[override]
        """How many axes a sample has."""
        return len(self.content.x.shape)

    @property
    def path(self) -> Path:
        """The file as an absolute path."""
        return Path(str(self.file)).expanduser().absolute()

    @property
    def test_path(self) -> Path | None:
        """The file of the held-out samples as an absolute path."""
        return None if self.test is None else Path(self.test).expanduser().absolute()

    @cached_property
    def content(self) -> Content:
        """What the file holds. Raises FmdiffError for what cannot be used."""
        content = self._read(self.path, f"data.file={self.file}", self.split)
        self._check(content)
        return content

    @cached_property
    def held_content(self) -> Content | None:
        """What the file of the held-out samples holds, coded as `content` is."""
        if self.test_path is None:
            return None
        other = self._read(self.test_path, f"data.test={self.test}", None)
        return selection.conform(other, self.content)

    def _read(self, path: Path, title: str, split: str | None) -> Content:
        text = {"delimiter": self.delimiter, "header": self.header, "decimal": self.decimal}
        listed = (self.cond or (), self.categorical or (), split)
        content = contents.read(
            path, title, Roles(self.key, self.columns, self.label, *listed), text
        )
        content.x.last = self.pixels is not False and content.pixels_last
        return content

    def _check(self, content: Content) -> None:
        """Raises FmdiffError for samples of too many axes, one row, or pixels that are none."""
        if len(content.x.shape) > 3:
            raise FmdiffError(
                f"{content.title} has samples of shape {content.x.shape}: points (d,), series "
                "(C, L) or arrays (C, H, W) are needed"
            )
        if len(content.x) < 2:
            raise FmdiffError(
                f"{content.title} has 1 row, and 2 are needed: one to train on, one held out"
            )
        if self.pixels and not content.pixels:
            raise FmdiffError(
                f"data.pixels=true: {content.title} holds {content.x.dtype} of shape "
                f"{('N', *content.x.shape)}, and pixels are uint8 (N, 1 or 3, H, W) or "
                "(N, H, W, 1 or 3)"
            )

    @cached_property
    def bytes(self) -> bool:
        """Whether the samples are pictures, uint8 pixels that stand for [-1, 1]."""
        return self.pixels is not False and self.content.pixels

    def fingerprint(self) -> dict[str, Any]:
        paths = [path for path in (self.path, self.test_path) if path is not None]
        count = len(self.content.x) + (len(self.held_content.x) if self.held_content else 0)
        if self.source is not None and (digests := self.source.digests):
            return {"count": count, "digest": " ".join(digests)}
        return {"count": count, "digest": selection.digest(paths)}

    # Labels and conditions

    @cached_property  # type: ignore[misc]
    def names(self) -> Sequence[str]:  # type: ignore[override]
        """The names of the classes; none if they are 0, 1, ... K - 1."""
        levels = () if self.content.label is None else self.content.label.levels or ()
        return () if list(levels) == [str(k) for k in range(len(levels))] else levels

    @cached_property  # type: ignore[misc]
    def labels(self) -> int:  # type: ignore[override]
        label = self.content.label
        return 1 if label is None else max(1, len(label.levels or ()))

    @property
    def classes(self) -> int:
        conditional = self.labels > 1 if self.conditional is None else self.conditional
        return self.labels if conditional else 0

    @cached_property
    def conditions(self) -> dict[str, Form]:  # type: ignore[override]
        """The conditions by name, with the moments of the training rows."""
        return self.train.forms(self.content.levels)

    # The samples

    @cached_property
    def parts(self) -> tuple[Part, Part]:
        """The rows to train on, and those held out."""
        content, other = self.content, self.held_content
        if self.conditional and content.label is None:
            raise FmdiffError("data.conditional=true needs data.label=NAME, the column of labels")
        super().check_labels()
        training: Numbers = self._usable(content)
        if other is not None:
            held, source = self._usable(other), other
        elif content.held is None:
            (training, held), source = halves(training, self.hold_out, self.seed), content
        else:
            training = training[:]
            marked = content.held[training]
            held, training, source = training[marked], training[~marked], content
        for rows, what in ((training, "train on"), (held, "hold out")):
            if not len(rows):
                raise FmdiffError(
                    f"{content.title} has {len(training)} rows to train on and {len(held)} "
                    f"held out, and none are left to {what}"
                )
        if self.missing == "mean":
            selection.fill([content, source], training[:])
        codec = codec_of(content, training, self.standardise, self.bytes, self.source)
        where = self.source if source is content else self._source(source)
        parts = (
            Part(content, training, codec, self.bytes, self.source),
            Part(source, held, codec, self.bytes, where),
        )
        self._tell(parts, codec)
        return parts

    @cached_property
    def source(self) -> Source | None:
        """What reads the rows from their file; None if they are in memory."""
        return self._source(self.content, self.stream is True)

    def _source(self, content: Content, stream: bool = False) -> Source | None:
        stays = stream or selection.large(content, self.bytes)
        return Source(content) if stays else None

    @cached_property
    def shards(self) -> Shards | None:
        if self.source is None:
            return None
        return self.source.shards(self.train.numbers, self.stream)

    def _usable(self, content: Content) -> Numbers:
        """The numbers of the rows of a content that can be used, and that `only` keeps."""
        stays = self.source is not None if content is self.content else self._source(content)
        if stays and self.missing == "error" and self.only is None:
            return Without(len(content.x), np.zeros(0, np.int64))
        wanted = np.ones(len(content.x), bool)
        if self.only is not None and content.label is not None:
            wanted = np.isin(content.label.values, self.label_numbers.numpy())
        if stays:
            if self.missing != "error":
                raise FmdiffError(
                    f"data.missing={self.missing}: {content.title} is too large to be looked "
                    "through; correct it, and choose data.missing=error"
                )
            return np.flatnonzero(wanted)
        return selection.usable(content, self.missing, wanted)

    @property
    def train(self) -> Part:
        """The rows to train on."""
        return self.parts[0]

    @property
    def held(self) -> Part:
        """The rows that are held out."""
        return self.parts[1]

    def _tell(self, parts: tuple[Part, Part], codec: Codec | None) -> None:
        """Log what the file holds, and what is remarkable about it."""
        train, held = parts
        words = [f"{len(train) + len(held)} samples of shape {self.content.x.shape}"]
        words += ["(pixels)"] * self.bytes
        words += [f"{len(held)} of them held out"]
        if self.classes:
            words += [f"{self.classes} classes ({some(self.names or range(self.classes))})"]
        if self.content.conditions:
            words += [f"conditions {some(self.content.conditions)}"]
        log.info("data=array: %s", ", ".join(words))
        if constant := train.constant(codec):
            log.warning(
                "data=array: %s constant, and samples return that constant",
                f"{some(constant)} {'is' if len(constant) == 1 else 'are'}",
            )
        if notes := train.duplicates(held):
            log.warning("data=array: %s", notes)

    @cached_property
    def codec(self) -> Codec | None:  # type: ignore[override]
        return self.train.codec

    @cached_property  # type: ignore[misc]
    def shape(self) -> tuple[int, ...]:  # type: ignore[override]
        return self.train.shape

    @property
    def training_size(self) -> int:
        return len(self.train)

    def comparable(self, x: Tensor) -> Tensor:
        return x if self.codec is None else self.codec.encode(x)

    @cached_property
    def moments(self) -> tuple[Tensor | None, float]:
        """`centre` and `std`, over the rows to train on, or over a sample of many."""
        x = self.train.sample
        mean, std = moments(x)
        if self.bytes or not far(mean, std):
            return None, x.double().std(correction=0).item()
        return mean, std

    @property
    def centre(self) -> Tensor | None:
        return self.moments[0]

    @cached_property
    def std(self) -> float:
        return self.moments[1]

    def batch(
        self, seed: int, step: int, rows: slice = slice(None), device: Device = "cpu"
    ) -> Batch:
        part = self.train
        if self.shards is not None:
            return self._ready(part.stream(self.shards, seed, step, self.batch_size, rows), device)
        if part.nbytes <= RESIDENT:
            part.to(device)
        index = positions(seed, step, self.batch_size, len(part))[rows]
        return self._batch(part, index, device)

    def _batch(self, part: Part, index: Tensor, device: Device) -> Batch:
        return self._ready(part.take(index), device)

    def _ready(self, parts: tuple[Tensor, Tensor, dict[str, Tensor]], device: Device) -> Batch:
        x, label, conditions = parts
        x = from_uint8(x.to(device)) if self.bytes else x
        return self.with_labels(x, label, device, **conditions)

    def held_out(self, n: int, device: Device = "cpu") -> Batch:
        order = torch.randperm(len(self.held), generator=generator(0, "held_out"))[:n]
        return self._batch(self.held, order, device)

    @property
    def references(self) -> int:  # type: ignore[override]
        return len(self.held)

    def sample(self, start: int, stop: int, seed: int) -> Batch:
        """Held-out rows start ... stop - 1 in the order of a seed; fewer if there are fewer."""
        order = torch.randperm(len(self.held), generator=generator(seed, "reference"))
        x, y = self._batch(self.held, order[start:stop], "cpu")
        return (x if self.codec is None else self.codec.decode(x)), y

    def examples(self, n: int) -> Batch:
        return self._batch(self.train, torch.arange(min(n, len(self.train))), "cpu")


def _names(values: list[Any]) -> bool:
    return all(isinstance(value, str) and value for value in values)


def _delimiter(value: str) -> bool:
    return len(value) == 1 or value in ("tab", "space")
