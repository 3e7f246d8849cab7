"""What a file of data=array holds: samples, their labels and their conditions."""

import logging
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from fmdiff.condition import LABEL
from fmdiff.data.columns import Column, Table, some
from fmdiff.data.delimited import Delimited, grouped
from fmdiff.data.parquet import Parquet
from fmdiff.data.stored import ARRAYS, Header, Rows, headers, rows, texts
from fmdiff.errors import FmdiffError, nearest

log = logging.getLogger("fmdiff")

TABLES = (".csv", ".tsv", ".txt", ".parquet")
TRAINED, HELD = ("0", "false", "train"), ("1", "true", "test")
PIXELS = (1, 3)  # channels of pictures
MOST = 10_000  # classes, and levels of a column


@dataclass(frozen=True)
class Roles:
    """Which parts of a file are what, by name; see `array.Array`."""

    key: str | None = None
    columns: Sequence[str] | None = None
    label: str | None = None
    cond: Sequence[str] = ()
    categorical: Sequence[str] = ()
    split: str | None = None

    @property
    def others(self) -> list[str]:
        """The names of what is no feature."""
        return [name for name in (self.label, *self.cond, self.split) if name is not None]


@dataclass
class Content:
    """N samples as a user knows them.

    x: (N, *shape); missing values are NaN, and a category is the number of its level. label: class
    labels, with levels. conditions: numbers (N, *shape), NaN if unknown; levels: the names behind
    those that are one-hot. held: which are held out (N,). names, categories: of the columns of a
    table, and of the levels of its categories by the name of the column.
    """

    title: str
    x: Rows
    label: Column | None = None
    conditions: dict[str, Rows] = field(default_factory=dict)
    levels: dict[str, tuple[str, ...]] = field(default_factory=dict)
    held: np.ndarray | None = None
    names: tuple[str, ...] = ()
    categories: dict[str, tuple[str, ...]] = field(default_factory=dict)

    @property
    def pixels_last(self) -> bool:
        """Whether the samples are bytes (H, W, C) of grey or colour pictures."""
        shape = tuple(self.x.values.shape[1:])
        last = len(shape) == 3 and shape[0] not in PIXELS and shape[2] in PIXELS
        return self.x.dtype == "uint8" and last

    @property
    def pixels(self) -> bool:
        """Whether the samples are bytes (C, H, W) of grey or colour pictures."""
        shape = self.x.shape
        return self.x.dtype == "uint8" and len(shape) == 3 and shape[0] in PIXELS


def read(path: Path, title: str, roles: Roles, text: Mapping[str, Any]) -> Content:
    """The content of a file. Raises FmdiffError for a file that does not hold what `roles` name.

    title: the option and the path, for messages. text: the keywords of `Delimited`.
    """
    kind = path.suffix.lower()
    if kind in TABLES:
        table = Parquet(path, title) if kind == ".parquet" else Delimited(path, title, **text)
        return _of_table(table, roles)
    if kind not in ARRAYS:
        raise FmdiffError(f"{title} is no {', '.join((*ARRAYS, *TABLES))} file")
    return _of_arrays(headers(path, title), title, roles)


# Tables


def _of_table(table: Table, roles: Roles) -> Content:
    names, title = table.names, table.title
    if roles.key is not None:
        raise FmdiffError(f"data.key={roles.key}: a table has columns; choose data.columns=[...]")
    asked: dict[str, Sequence[str]] = {
        "columns": roles.columns or (),
        "label": [roles.label] if roles.label else (),
    }
    asked |= {"cond": roles.cond, "categorical": roles.categorical}
    asked |= {"split": [roles.split] if roles.split else ()}
    for option, values in asked.items():
        for name in values:
            if name not in names:
                raise FmdiffError(
                    f"data.{option}: {title} has no column {name}; {nearest(name, names)}"
                )
    features = [name for name in roles.columns or names if name not in roles.others]
    if not features:
        raise FmdiffError(f"{title} has no columns left to learn; its columns are {some(names)}")
    columns = table.read(list(dict.fromkeys([*features, *roles.others])))
    ready = {name: _feature(name, columns[name], title, roles) for name in features}
    x = np.stack([_numbers(column) for column in ready.values()], axis=1)
    content = Content(title, Rows(x), names=tuple(features))
    content.categories = {k: c.levels for k, c in ready.items() if c.levels is not None}
    if roles.label:
        content.label = classes(columns[roles.label], f"{title}: data.label={roles.label}")
    for name in roles.cond:
        column = columns[name]
        if column.levels is not None or name in roles.categorical:
            column = _few(column.categories(), f"{title}: data.cond={name}")
            assert column.levels is not None
            content.levels[name] = column.levels
            content.conditions[name] = Rows(one_hot(column))
        else:
            content.conditions[name] = Rows(column.values[:, None])
    if roles.split:
        content.held = halves(
            columns[roles.split].categories(), f"{title}: data.split={roles.split}"
        )
    return content


def _feature(name: str, column: Column, title: str, roles: Roles) -> Column:
    """The column of a feature. Raises FmdiffError for texts that are no numbers."""
    if name in roles.categorical:
        return _few(column.categories(), f"{title}: data.categorical={name}")
    if column.levels is None:
        return column
    if example := grouped(column):
        raise FmdiffError(
            f"{title}: the column {name} holds numbers like {example}; say which character is "
            "before the decimals, data.decimal=',' (1,5 is one and a half) or data.decimal=. "
            "(1,500 is fifteen hundred)"
        )
    raise FmdiffError(
        f"{title}: the column {name} holds texts ({some(column.levels, 4)}); choose "
        f"data.categorical=[{name}], data.label={name} or data.cond=[{name}], or leave it out by "
        "data.columns=[...]"
    )


def _numbers(column: Column) -> np.ndarray:
    """The values of a column as float64 (N,): numbers of levels, NaN where one is missing."""
    return np.where(column.missing, np.nan, column.values).astype(np.float64)


def one_hot(column: Column) -> np.ndarray:
    """A column of levels as float32 (N, K), NaN in the rows that are missing."""
    assert column.levels is not None
    table = np.vstack([np.eye(len(column.levels)), np.full((1, len(column.levels)), np.nan)])
    return table.astype(np.float32)[column.values]


def _few(column: Column, title: str) -> Column:
    """A column whose levels are not too many. Raises FmdiffError for others."""
    assert column.levels is not None
    if len(column.levels) > MOST:
        raise FmdiffError(
            f"{title} has {len(column.levels):,} different values, and {MOST:,} are the most"
        )
    return column


def classes(column: Column, title: str) -> Column:
    """A column as class labels. Raises FmdiffError for a missing one and for fractions."""
    if (
        column.levels is None
        and not (column.values == np.round(column.values))[~column.missing].all()
    ):
        raise FmdiffError(
            f"{title} holds numbers that are no integers, and classes are integers or texts; "
            "choose data.cond for numbers"
        )
    return _few(column.categories(), title)


def halves(column: Column, title: str) -> np.ndarray:
    """Which rows are held out, bool (N,). Raises FmdiffError for values that do not tell."""
    levels = [level.strip().lower() for level in column.levels or ()]
    if column.missing.any() or set(levels) - {*TRAINED, *HELD}:
        others = "a missing value" if column.missing.any() else some(column.levels or ())
        raise FmdiffError(
            f"{title} holds {others}: 1, true or test hold a row out, 0, false or train do not"
        )
    return np.array([level in HELD for level in levels])[column.values]


# Arrays


def _of_arrays(parts: dict[str, Header], title: str, roles: Roles) -> Content:
    for option in ("columns", "categorical"):
        value = roles.columns if option == "columns" else roles.categorical
        if value:
            raise FmdiffError(
                f"data.{option}={list(value)}: {title} is no table and has no columns"
            )
    asked: dict[str, Sequence[str]] = {
        "key": [roles.key] if roles.key else (),
        "label": [roles.label] if roles.label else (),
    }
    asked |= {"cond": roles.cond, "split": [roles.split] if roles.split else ()}
    for option, values in asked.items():
        for name in values:
            if list(parts) == [""]:
                raise FmdiffError(f"data.{option}={name}: {title} holds one array without a name")
            if name not in parts:
                raise FmdiffError(
                    f"data.{option}: {title} has no array {name}; {nearest(name, parts)}"
                )
    key = sample_key(parts, title, roles)
    content = Content(title, rows(parts[key], key or "the array", title))
    for name in roles.others:
        if parts[name].shape[:1] != parts[key].shape[:1]:
            raise FmdiffError(
                f"{title}: {name} has the shape {parts[name].shape} and {key} "
                f"{parts[key].shape}; both need one row for each sample"
            )
    if roles.label:
        column = _column(parts[roles.label], roles.label, title)
        content.label = classes(column, f"{title}: data.label={roles.label}")
    for name in roles.cond:
        if texts(parts[name]):
            column = _few(_column(parts[name], name, title), f"{title}: data.cond={name}")
            assert column.levels is not None
            content.levels[name] = column.levels
            content.conditions[name] = Rows(one_hot(column))
        else:
            content.conditions[name] = rows(parts[name], name, title)
    if roles.split:
        column = _column(parts[roles.split], roles.split, title)
        content.held = halves(column.categories(), f"{title}: data.split={roles.split}")
    return content


def sample_key(parts: Mapping[str, Header], title: str, roles: Roles) -> str:
    """The name of the array of samples. Raises FmdiffError if several are possible."""
    if roles.key is not None:
        return roles.key
    left = [name for name in parts if name not in roles.others]
    if len(left) != 1:
        listed = ", ".join(f"{name} {parts[name].shape}" for name in left[:8]) or "none"
        raise FmdiffError(f"{title} holds the arrays {listed}; choose one by data.key=NAME")
    return left[0]


def _column(header: Header, name: str, title: str) -> Column:
    """An array (N,) of integers, numbers or texts as a column."""
    if len(header.shape) != 1 and header.shape[1:] != (1,):
        raise FmdiffError(f"{title}: {name} has the shape {header.shape}, and (N,) is needed")
    if texts(header):
        values = np.asarray(header.load()).astype(np.str_).reshape(-1)
        levels, codes = np.unique(values, return_inverse=True)
        return Column(codes.astype(np.int64), tuple(levels.tolist()))
    return Column(rows(header, name, title)[:].double().numpy().reshape(-1))


def check_conditions(names: Sequence[str]) -> None:
    """Raises FmdiffError for names of conditions that cannot be typed as cond.NAME."""
    for name in names:
        if name == LABEL or not re.fullmatch(r"[A-Za-z_]\w*", name, re.ASCII):
            raise FmdiffError(
                f"data.cond: the name {name!r} cannot be typed as cond.NAME; rename it, with "
                f"letters, digits and _, and not {LABEL}"
            )
