"""The columns of a table: numbers, or texts as the numbers of their levels."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from fmdiff.errors import FmdiffError

MISSING = frozenset(
    ("", "NA", "N/A", "n/a", "#N/A", "<NA>", "NaN", "nan", "NULL", "null", "None", "NAN")
)


@dataclass(frozen=True)
class Column:
    """The values of one column (N,).

    Without `levels` they are numbers, float64, and NaN where one is missing. With levels they are
    texts: int64 numbers in `levels`, and -1 where one is missing.
    """

    values: np.ndarray
    levels: tuple[str, ...] | None = None

    @property
    def missing(self) -> np.ndarray:
        """Which values are missing, bool (N,)."""
        return np.isnan(self.values) if self.levels is None else self.values < 0

    def take(self, rows: np.ndarray) -> "Column":
        """The column of some rows alone."""
        return Column(self.values[rows], self.levels)

    def categories(self) -> "Column":
        """The column with levels. Numbers become texts, in the order of the numbers."""
        if self.levels is not None:
            return self
        numbers = np.unique(self.values[~self.missing])
        codes = np.searchsorted(numbers, self.values).astype(np.int64)
        codes[self.missing] = -1
        return Column(codes, tuple(spelling(number) for number in numbers.tolist()))

    def recoded(self, levels: Sequence[str], title: str) -> "Column":
        """The column with the given levels. Raises FmdiffError for a text that is not among them.

        title: the beginning of the message, with the name of the column.
        """
        own = self.categories()
        places = {level: place for place, level in enumerate(levels)}
        assert own.levels is not None
        foreign = [level for level in own.levels if level not in places]
        if foreign:
            raise FmdiffError(f"{title} holds {some(foreign)}, and its levels are {some(levels)}")
        table = np.array([*(places[level] for level in own.levels), -1], np.int64)
        return Column(table[own.values], tuple(levels))


class Table(Protocol):
    """A file of named columns of one length."""

    title: str  # the option and the path, for messages

    @property
    def names(self) -> tuple[str, ...]:
        """The names of the columns, in their order."""

    def read(self, names: Sequence[str]) -> dict[str, Column]:
        """Some columns by name. Raises FmdiffError for a file that cannot be read."""


def coded(places: Mapping[str, int], codes: np.ndarray) -> Column:
    """The column of texts that are numbered in the order of their coming.

    places: the number of each text. The levels are sorted, and texts that stand for a missing
    value (`MISSING`) become -1. codes: the number of the text of each row; -1 if it is missing.
    """
    levels = sorted(text for text in places if text not in MISSING)
    order = np.full(len(places) + 1, -1, np.int64)  # the last is that of the code -1
    for place, level in enumerate(levels):
        order[places[level]] = place
    return Column(order[codes], tuple(levels))


def spelling(number: float) -> str:
    """A number as the name of a level: 3 rather than 3.0."""
    return str(int(number)) if number.is_integer() and abs(number) < 1e16 else repr(number)


def some(names: Iterable[object], most: int = 8) -> str:
    """The first few of some names, for a message."""
    words = [str(name) for name in names]
    return ", ".join(words[:most]) + (f" and {len(words) - most} more" if words[most:] else "")
