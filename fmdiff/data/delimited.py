"""Reads tables of text: .csv, whatever separates the values."""

import csv
import io
import itertools
import logging
import math
import re
from collections.abc import Iterator, Sequence
from functools import cached_property
from pathlib import Path

import numpy as np

from fmdiff.data.columns import MISSING, Column, coded, some
from fmdiff.errors import FmdiffError
from fmdiff.files import open_regular

log = logging.getLogger("fmdiff")

DELIMITERS = ("\t", ";", "|", ",", " ")  # in the order in which they are tried
HEAD = 1 << 16  # characters that show the delimiter
CHUNK = 512  # rows that are read at a time: they stay in the processor's cache
GROUPED = re.compile(r"[+-]?\d{1,3}([,.' ]\d{3})+([.,]\d+)?|[+-]?\d+,\d+")  # 1,234.5 and 1,5
WORDS = {"tab": "\t", "space": " "}


class Delimited:
    """A .csv file in UTF-8, or in UTF-16 with a byte order mark; values may be quoted by ".

    delimiter: the character between values; None tries tabs, semicolons, bars, commas and spaces.
    header: whether the first row holds the names; None: unless it holds numbers alone. Without a
    header the columns are x1, x2 .... decimal: the character before the decimals, while the other
    one (a comma for ".", a point for ",") groups the digits; None: a point, and nothing groups.
    """

    def __init__(
        self,
        path: Path,
        title: str,
        delimiter: str | None = None,
        header: bool | None = None,
        decimal: str | None = None,
    ) -> None:
        self.path, self.title, self.decimal = path, title, decimal
        self.header = header
        self.given = WORDS.get(delimiter, delimiter) if delimiter else None

    @property
    def names(self) -> tuple[str, ...]:
        """The names of the columns, in their order."""
        return tuple(self.places)

    @cached_property
    def sample(self) -> list[str]:
        """The first lines of the file. Raises FmdiffError if there are none."""
        with self._open() as file:
            try:
                text = file.read(HEAD)
            except UnicodeDecodeError as error:
                raise self._encoding(error) from error
        lines = io.StringIO(text, newline="").readlines()
        if len(text) == HEAD and len(lines) > 1:
            lines.pop()  # it may be cut
        if not any(line.strip() for line in lines):
            raise FmdiffError(f"{self.title} is empty")
        return lines

    @cached_property
    def delimiter(self) -> str:
        """The character between values: the first one that gives rows of one length above 1."""
        if self.given:
            return self.given
        widths: dict[str, list[int]] = {}
        for delimiter in DELIMITERS:
            try:
                rows = list(csv.reader(self.sample, delimiter=delimiter, skipinitialspace=True))
            except csv.Error:
                continue
            widths[delimiter] = [len(row) for row in rows[:100] if row]
            if widths[delimiter][0] > 1 and len(set(widths[delimiter])) == 1:
                return delimiter
        others = [d for d in DELIMITERS[:-1] if d in widths]  # texts in one column have spaces
        best = max(others, key=lambda delimiter: widths[delimiter][0], default=",")
        return best if best in widths and widths[best][0] > 1 else ","

    @cached_property
    def first(self) -> list[str]:
        """The values of the first row."""
        return next(self._rows())

    @cached_property
    def named(self) -> bool:
        """Whether the first row holds the names. Raises FmdiffError where that is doubtful."""
        if self.header is not None:
            return self.header
        numbers = [text for text in self.first if number(text, self.decimal)]
        rest = [t for t in self.first if t.strip() not in MISSING and t not in numbers]
        if numbers and rest:
            raise FmdiffError(
                f"{self.title}: the first row, {some(self.first)}, may be names or values; say "
                "data.header=true or false"
            )
        return not numbers

    @cached_property
    def places(self) -> dict[str, int]:
        """The place of each named column. Raises FmdiffError for names that are no names."""
        if not self.named:
            return {f"x{place + 1}": place for place in range(len(self.first))}
        names = [name.strip() for name in self.first]
        if names[0].startswith("#"):  # as numpy.savetxt writes a header
            names[0] = names[0].lstrip("# ")
        places = {name: place for place, name in enumerate(names) if name or place}
        if len(names) > 1 and not names[0]:
            log.warning(
                "%s: the first column has no name, as an index; it is left out", self.title
            )
        if not all(places) or not places:
            raise FmdiffError(
                f"{self.title}: column {names.index('', 1) + 1 if names[1:] else 1} of "
                f"{len(names)} has no name; give it one in the first row"
            )
        if len(places) < len(names) - (not names[0]):
            twice = [name for name in places if names.count(name) > 1]
            raise FmdiffError(f"{self.title}: several columns have the name {some(twice)}")
        return places

    def read(self, names: Sequence[str]) -> dict[str, Column]:
        """Some columns by name. Raises FmdiffError for a file that cannot be read."""
        builders = {name: _Builder(self.decimal) for name in names}
        self._fill(builders)
        # texts that began as numbers, like 01, are read again as they are written
        late = {name: _Builder(None, {}) for name, b in builders.items() if b.late}
        if late:
            self._fill(late)
        return {name: late.get(name, builder).column() for name, builder in builders.items()}

    def _fill(self, builders: "dict[str, _Builder]") -> None:
        width, n = len(self.first), 0
        rows = itertools.islice(self._rows(), int(self.named), None)
        while chunk := list(itertools.islice(rows, CHUNK)):
            if set(map(len, chunk)) != {width}:
                wrong = next(i for i, row in enumerate(chunk) if len(row) != width)
                raise FmdiffError(
                    f"{self.title}: row {n + wrong + 1}{' after the header' * self.named} has "
                    f"{len(chunk[wrong])} values, and the first row has {width}; the delimiter is "
                    f"{self.delimiter!r} (data.delimiter=)"
                )
            columns = list(zip(*chunk, strict=True))
            for name, builder in builders.items():
                builder.add(columns[self.places[name]])
            n += len(chunk)
        if not n:
            raise FmdiffError(f"{self.title} has a header and no rows")

    def _rows(self) -> Iterator[list[str]]:
        """The rows of the file, without empty lines."""
        delimiter = self.delimiter
        with self._open() as file:
            rows = csv.reader(file, delimiter=delimiter, skipinitialspace=True)
            try:
                yield from (row for row in rows if len(row) > 1 or (row and row[0].strip()))
            except UnicodeDecodeError as error:
                raise self._encoding(error) from error
            except csv.Error as error:
                raise FmdiffError(
                    f"{self.title} cannot be read after line {rows.line_num}: {error}; is a quote "
                    "not closed?"
                ) from error

    def _open(self) -> io.TextIOWrapper:
        try:
            file = open_regular(self.path)
        except OSError as error:
            raise FmdiffError(f"{self.title} cannot be read: {error.strerror or error}") from error
        mark = file.read(2)
        file.seek(0)
        encoding = "utf-16" if mark in (b"\xff\xfe", b"\xfe\xff") else "utf-8-sig"
        return io.TextIOWrapper(file, encoding, newline="")

    def _encoding(self, error: UnicodeDecodeError) -> FmdiffError:
        return FmdiffError(
            f"{self.title} is no text in {error.encoding.upper()}: it holds the byte "
            f"{error.object[error.start]:#04x}; save the table as UTF-8"
        )


def numbers(texts: Sequence[str], decimal: str | None = None) -> np.ndarray | None:
    """Texts as float64 (N,), NaN where one is missing; None if one is neither."""
    if decimal:
        group = "." if decimal == "," else ","
        texts = [text.replace(group, "").replace(decimal, ".") for text in texts]
    try:
        values = np.fromiter(map(float, texts), np.float64, len(texts))
    except ValueError:
        try:
            values = np.array([math.nan if t.strip() in MISSING else float(t) for t in texts])
        except ValueError:
            return None
    return None if "_" in "".join(texts) else values  # Python reads 1_000 as a number


def number(text: str, decimal: str | None = None) -> bool:
    """Whether a text is a number, and not one that stands for a missing value."""
    return text.strip() not in MISSING and numbers([text], decimal) is not None


def grouped(column: Column) -> str | None:
    """A text of a column whose texts are all numbers with commas, like 1,234; None otherwise."""
    if not column.levels or not all(
        GROUPED.fullmatch(level) or number(level) for level in column.levels
    ):
        return None
    return next(level for level in column.levels if not number(level))


class _Builder:
    """Puts a column together from its texts, chunk by chunk: numbers as long as all are."""

    def __init__(self, decimal: str | None, index: dict[str, int] | None = None) -> None:
        self.decimal, self.index, self.late = decimal, index, False
        self.parts: list[np.ndarray] = []

    def add(self, texts: Sequence[str]) -> None:
        """Add the texts of the next rows."""
        if self.index is None:
            values = numbers(texts, self.decimal)
            if values is not None:
                self.parts.append(values)
                return
            self.index, self.late, self.parts = {}, bool(self.parts), []
        if self.late:
            return
        index = self.index
        codes = [index.setdefault(text.strip(), len(index)) for text in texts]
        self.parts.append(np.array(codes, np.int64))

    def column(self) -> Column:
        """The column of all that was added."""
        values = np.concatenate(self.parts)
        return Column(values) if self.index is None else coded(self.index, values)
