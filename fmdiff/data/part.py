"""The rows of a file that are trained on, or held out, as a network sees them."""

from collections.abc import Mapping
from functools import cached_property

import numpy as np
import torch
from torch import Tensor

from fmdiff.codec import Codec, Standard, frozen
from fmdiff.condition import Form
from fmdiff.data.base import Device
from fmdiff.data.content import Content
from fmdiff.data.mapped import Numbers, Source
from fmdiff.data.selection import chunks
from fmdiff.data.shards import Shards
from fmdiff.data.table import Table
from fmdiff.errors import FmdiffError

CHUNK = 1 << 24  # numbers that are read at a time


class Part:
    """Some rows of a content, by their numbers in it; encoded, and in memory if they fit.

    bytes: whether the samples are pixels, which stay uint8. source: reads them from their file
    where they do not fit.
    """

    def __init__(
        self,
        content: Content,
        numbers: Numbers,
        codec: Codec | None,
        bytes: bool,
        source: Source | None = None,
    ) -> None:
        self.content, self.numbers, self.codec, self.bytes = content, numbers, codec, bytes
        self.source = source
        self.label = torch.zeros(0, dtype=torch.int64)
        self.x: Tensor | None = None
        self.conditions: dict[str, Tensor] = {}
        if source is None:
            assert isinstance(numbers, np.ndarray)
            self.label = self._labels(numbers)
            self.x = torch.cat([self.encoded(x) for x in chunks(content.x, numbers)])
            self.conditions = {
                name: torch.cat([part.float() for part in chunks(rows, numbers)])
                for name, rows in content.conditions.items()
            }

    def __len__(self) -> int:
        return len(self.numbers)

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of an encoded sample."""
        return (self.codec.width,) if isinstance(self.codec, Table) else self.content.x.shape

    @property
    def nbytes(self) -> int:
        """The bytes of the rows in memory; infinite if they stay in the file."""
        return (1 << 62) if self.x is None else self.x.nbytes

    def to(self, device: Device) -> None:
        """Move the rows that are in memory to a device."""
        if self.x is not None and self.x.device != torch.device(device):
            self.x, self.label = self.x.to(device), self.label.to(device)
            self.conditions = {name: part.to(device) for name, part in self.conditions.items()}

    def encoded(self, x: Tensor) -> Tensor:
        """Rows as the file has them, encoded as float32; pixels stay as they are."""
        if self.bytes:
            return x
        x = x.float() if x.dtype == torch.uint8 else x
        return (x if self.codec is None else self.codec.encode(x)).float()

    def take(self, index: Tensor) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
        """x, labels and conditions of rows by their places in this part (B,)."""
        if self.x is not None:
            index = index.to(self.x.device)
            conditions = {name: part[index] for name, part in self.conditions.items()}
            return self.x[index], self.label[index], conditions
        assert self.source is not None
        numbers = self.numbers[index.numpy()]
        return self._ready(self.source.take(numbers), numbers)

    def stream(
        self, shards: Shards, seed: int, step: int, size: int, rows: slice
    ) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
        """x, labels and conditions of some rows of training step `step`."""
        assert self.source is not None
        return self._ready(*self.source.read(shards, seed, step, size, rows))

    def _ready(
        self, tensors: dict[str, Tensor], numbers: np.ndarray
    ) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
        conditions = {name: tensors[name].float() for name in self.content.conditions}
        return self.encoded(tensors[""]), self._labels(numbers), conditions

    def _labels(self, numbers: np.ndarray) -> Tensor:
        label = self.content.label
        values = np.zeros(len(numbers)) if label is None else label.values[numbers]
        return torch.from_numpy(values.astype(np.int64))

    @cached_property
    def sample(self) -> Tensor:
        """Encoded rows that stand for all, or all in memory; pixels as float64 in [-1, 1]."""
        x = self.x
        if x is None:
            assert self.source is not None
            x = self.encoded(self.source.sample(self.numbers))
        return x.double() / 127.5 - 1 if self.bytes else x

    def forms(self, levels: Mapping[str, tuple[str, ...]]) -> dict[str, Form]:
        """The conditions by name. levels: the names behind those that are one-hot."""
        forms = {}
        for name, rows in self.content.conditions.items():
            shape = tuple(rows.shape)
            if name in levels:
                forms[name] = Form(shape, levels=levels[name])
                continue
            part = self.conditions.get(name)
            if part is None:
                assert self.source is not None
                part = self.source.sample(self.numbers, name).float()
            mean, std = channel_moments(part.double())
            forms[name] = Form(shape, tuple(mean.tolist()), tuple(std.tolist()))
        return forms

    def constant(self, codec: Codec | None) -> list[str]:
        """The names of the columns that do not vary, or of the channels."""
        if isinstance(codec, Table):
            return list(codec.constant)
        if isinstance(codec, Standard) and self.x is not None:
            values = self.x.transpose(0, 1).flatten(1)
            same = (values == values[:, :1]).all(1)
            return [f"channel {channel}" for channel in torch.nonzero(same)[:, 0].tolist()]
        return []

    def duplicates(self, held: "Part") -> str:
        """A sentence on rows that are equal, "" if there are none or if the file is too large."""
        if self.x is None or held.x is None:
            return ""
        ours, theirs = fingerprints(self.x), fingerprints(held.x)
        n = len(ours) + len(theirs) - len(torch.cat([ours, theirs]).unique())
        shared = int(torch.isin(theirs, ours).sum())
        if not n:
            return ""
        return f"{n} rows are duplicates of others, and {shared} held-out rows are trained on too"


def codec_of(
    content: Content,
    numbers: Numbers,
    standardise: bool,
    bytes: bool,
    source: Source | None = None,
) -> Codec | None:
    """The codec of the rows of these numbers; None for pixels, and without `standardise`.

    Raises FmdiffError for rows that are all equal.
    """
    shape = content.x.shape
    if bytes or not (standardise or content.names):
        return None
    if source is not None:
        parts = [source.sample(numbers)]
    else:
        assert isinstance(numbers, np.ndarray)
        parts = list(chunks(content.x, numbers))
    if len(shape) == 1 and source is None:
        names = content.names or [f"x{k + 1}" for k in range(shape[0])]
        x = torch.cat([part.double() for part in parts])
        table = Table.of(x, names, content.categories, standardise)
        if not table.width:
            raise FmdiffError(f"{content.title} is constant: there is nothing to learn")
        return frozen(table)
    count = sum(part.numel() for part in parts) / shape[0]
    mean = torch.stack([_channels(part).sum(1) for part in parts]).sum(0) / count
    squares = [(_channels(part) - mean[:, None]).square().sum(1) for part in parts]
    scale = (torch.stack(squares).sum(0) / count).sqrt()
    if not (scale > 0).any():
        raise FmdiffError(f"{content.title} is constant: there is nothing to learn")
    return frozen(Standard.of(shape, mean, scale))


def _channels(x: Tensor) -> Tensor:
    """x (B, C, ...) as float64 (C, B ...)."""
    return x.double().transpose(0, 1).flatten(1)


def moments(x: Tensor) -> tuple[Tensor, float]:
    """The mean (*shape) of x (B, *shape), float64, and the standard deviation about it.

    It is the mean of each component of points, and of each channel of others.
    """
    mean = _channels(x).mean(1)
    mean = mean.view(-1, *(1,) * (x.ndim - 2))
    std = (x - mean).square().mean().sqrt().item()
    return mean.expand(x.shape[1:]), std


def channel_moments(x: Tensor) -> tuple[Tensor, Tensor]:
    """Means and standard deviations (C,) of what is known of x (B, C, ...), 0 and 1 of nothing."""
    known = _channels(x)
    count = known.isnan().logical_not().sum(1).clamp(min=1)
    mean = known.nansum(1) / count
    std = (((known - mean[:, None]) ** 2).nansum(1) / count).sqrt()
    return mean, torch.where(std > 0, std, 1)


def fingerprints(x: Tensor) -> Tensor:
    """A number (N,) int64 of each row of x; equal rows have equal ones, others hardly ever."""
    flat = x.flatten(1)
    flat = flat if flat.dtype == torch.uint8 else (flat + 0.0).view(torch.int32)  # -0 is 0
    draws = torch.Generator().manual_seed(1)
    high = 2**62
    weights = torch.randint(-high, high, (flat.shape[1],), generator=draws) | 1
    size = max(1, CHUNK // flat.shape[1])
    parts = [(part.cpu().long() * weights).sum(1) for part in flat.split(size)]
    return torch.cat(parts)
