"""Which rows of a file are used, and which of these are held out."""

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from fmdiff.data.columns import some
from fmdiff.data.content import Content
from fmdiff.data.shards import Shards
from fmdiff.data.stored import Rows
from fmdiff.errors import FmdiffError
from fmdiff.files import open_regular

WAYS = ("error", "drop", "mean")  # what becomes of rows with missing values
CHUNK = 1 << 22  # numbers that are read at a time
WHOLE = 1 << 26  # bytes of a file that are all in its digest


def large(content: Content, pixels: bool) -> bool:
    """Whether a content takes more than a quarter of the memory, and stays in its file."""
    n, size = len(content.x), width(content.x.shape) * (1 if pixels else 4)
    size += sum(4 * width(rows.shape) for rows in content.conditions.values())
    return Shards.large(n * size)


def width(shape: Sequence[int]) -> int:
    """The numbers in a sample of a shape."""
    return int(np.prod(shape))


def chunks(rows: Rows, numbers: np.ndarray) -> Iterator[Tensor]:
    """Rows by their numbers, in parts that take little memory."""
    size = max(1, CHUNK // width(rows.shape))
    for start in range(0, len(numbers), size):
        part = numbers[start : start + size]
        first, stop = int(part[0]), int(part[-1]) + 1
        yield rows[slice(first, stop) if stop - first == len(part) else part]


def usable(content: Content, missing: str, wanted: np.ndarray) -> np.ndarray:
    """The numbers of the rows that can be used, of those `wanted` (bool).

    missing: one of `WAYS`. Raises FmdiffError for infinite values, and for missing ones if it is
    error.
    """
    numbers = np.flatnonzero(wanted)
    gaps = np.zeros(len(numbers), bool)
    absent, infinite = Tally(content), Tally(content)
    if content.x.floating:
        start = 0
        for x in chunks(content.x, numbers):
            gaps[start : start + len(x)] = absent.add(x.isnan())
            infinite.add(x.isinf())
            start += len(x)
    for name, rows in content.conditions.items():
        for part in chunks(rows, numbers) if rows.floating else ():
            infinite.add(part.isinf(), name)
    if infinite.total:
        raise FmdiffError(f"{content.title} holds {infinite.text('infinite')}: correct them")
    if content.label is not None:
        unlabelled = content.label.missing[numbers]
        absent.add(torch.from_numpy(unlabelled), "the label")
        if missing == "mean" and unlabelled.any():
            raise FmdiffError(
                f"{content.title} has {unlabelled.sum():,} rows without a label, which has no "
                "mean; data.missing=drop leaves them out"
            )
        gaps |= unlabelled
    if absent.total and missing == "error":
        raise FmdiffError(
            f"{content.title} holds {absent.text('missing')}: data.missing=drop leaves out these "
            f"{gaps.sum():,} of {len(gaps):,} rows, and data.missing=mean puts the mean of a "
            "column, or its most common category, in their place"
        )
    return numbers[~gaps] if missing == "drop" else numbers


class Tally:
    """Counts values of a kind, by the names of the columns if there are names."""

    def __init__(self, content: Content) -> None:
        self.names, self.total = content.names, 0
        self.counts: dict[str, int] = {}

    def add(self, where: Tensor, name: str = "") -> np.ndarray:
        """Count where a mask (B, ...) is true. Returns the rows that have any, bool (B,)."""
        flat = where.flatten(1) if where.ndim > 1 else where[:, None]
        rows = flat.any(1)
        if rows.any():
            self.total += int(flat.sum())
            names = [name] if name or not self.names else self.names
            columns = flat.sum(0) if len(names) == flat.shape[1] else flat.sum().view(1)
            for column, count in zip(names, columns.tolist(), strict=True):
                if count:
                    self.counts[column] = self.counts.get(column, 0) + count
        return rows.numpy()

    def text(self, kind: str) -> str:
        """Such as: 12 missing values (age 10, income 2)."""
        listed = some([f"{name} {count:,}" for name, count in self.counts.items() if name])
        value = "value" if self.total == 1 else "values"
        return f"{self.total:,} {kind} {value}" + (f" ({listed})" if listed else "")


def fill(contents: Sequence[Content], numbers: np.ndarray) -> None:
    """Put means in the place of missing values: those of the rows `numbers` of the first content.

    They are means of columns or channels; a category becomes the most common one.
    """
    first = contents[0]
    x = first.x[numbers].double()
    flat = x.transpose(0, 1).flatten(1)
    values = flat.nanmean(1)
    for name in first.categories:
        column = first.names.index(name)
        codes = flat[column][~flat[column].isnan()].long()
        if len(codes):
            values[column] = codes.bincount().argmax()
    values = values.nan_to_num().view(-1, *(1,) * (x.ndim - 2))
    for content in {id(content): content for content in contents}.values():
        every = content.x[:].double()
        content.x = Rows(torch.where(every.isnan(), values, every))


def conform(other: Content, content: Content) -> Content:
    """The content of a second file, coded as the first one is.

    Raises FmdiffError for samples of another shape, and for a category that the first file lacks.
    """
    title = other.title
    if other.x.shape != content.x.shape or other.names != content.names:
        ours, theirs = (some(c.names) or c.x.shape for c in (content, other))
        raise FmdiffError(f"{title} has samples of {theirs}, and the training data of {ours}")
    if other.label is not None and content.label is not None:
        other.label = other.label.recoded(content.label.levels or (), f"{title}: the label")
    if other.categories:
        x = other.x[:].double()
        for name, levels in other.categories.items():
            column = other.names.index(name)
            places = torch.tensor(_places(levels, content.categories, name, title)).double()
            known = ~x[:, column].isnan()
            x[known, column] = places[x[known, column].long()]
        other.x, other.categories = Rows(x), content.categories
    for name, rows in other.conditions.items():
        if name in other.levels and name in content.levels:
            wide = torch.zeros(len(rows), len(content.levels[name]))
            wide[:, _places(other.levels[name], content.levels, name, title)] = rows[:]
            wide[rows[:].isnan().any(1)] = torch.nan
            other.conditions[name] = Rows(wide)
        elif rows.shape != content.conditions[name].shape:
            raise FmdiffError(
                f"{title}: {name} has the shape {rows.shape}, and "
                f"{content.conditions[name].shape} in the training data"
            )
    return other


def _places(
    levels: Sequence[str], ours: Mapping[str, Sequence[str]], name: str, title: str
) -> list[int]:
    """The places of some levels of a column among those of the training data."""
    known = list(ours.get(name, ()))
    foreign = [level for level in levels if level not in known]
    if foreign:
        raise FmdiffError(
            f"{title}: the column {name} holds {some(foreign)}, and that of the training data "
            f"{some(known)}"
        )
    return [known.index(level) for level in levels]


def digest(paths: Sequence[Path]) -> str:
    """A digest of what some files hold. Of a large one it is that of its ends and its size."""
    result = hashlib.blake2b(digest_size=16)
    for path in paths:
        with open_regular(path) as file:
            size = file.seek(0, 2)
            result.update(f"{size} ".encode())
            for start in (0, max(0, size - WHOLE // 2)):
                file.seek(start)
                result.update(file.read(WHOLE // 2))
    return result.hexdigest()
