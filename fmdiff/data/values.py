"""Reads the values of a condition from files: rows of numbers, arrays and pictures."""

import csv
import io
import math
import warnings
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from fmdiff import files
from fmdiff.condition import Form
from fmdiff.data import decode
from fmdiff.data.images import from_uint8
from fmdiff.errors import FmdiffError

SAMPLES = "cond_{}"  # the name of a condition's array in the samples.npz of `fmdiff sample`
LONGEST = 2**26  # bytes of a .csv file


def read(path: Path, name: str, form: Form) -> Tensor:
    """The values (K, *shape) float32 of the condition `name` in a file or a folder.

    .npy: an array of rows, or one row. .npz: the array `name`, or `cond_name` as `fmdiff sample`
    writes it, or the only one. .csv: numbers, with or without a line of names; the columns are
    the components, or the one column called `name`; an empty cell is unknown. A picture, or a
    folder of pictures in the order of their names, for a condition of pictures: levels in [-1, 1];
    the largest square in the middle is scaled if the size is another. A folder of `fmdiff sample`
    is read by its samples.npz.

    Raises FmdiffError for a file that cannot be read or does not hold such values.
    """
    option = f"cond.{name}={path}"
    if not path.exists():
        raise FmdiffError(
            f"{option} does not exist, and {form} is needed: as numbers, a file, or data:test"
        )
    if path.is_dir():
        if (path / "samples.npz").is_file():
            return read(path / "samples.npz", name, form)
        pictures = [path / file.name for file in decode.walk(path, f"cond.{name}")]
        if not pictures:
            raise FmdiffError(f"{option} holds no pictures ({', '.join(decode.SUFFIXES)})")
        return torch.stack([_picture(file, name, form) for file in pictures])
    suffix = path.suffix.lower()
    if suffix in decode.SUFFIXES:
        return _picture(path, name, form)[None]
    readers: dict[str, Callable[[Path, str, Form], Tensor]] = {
        ".npy": _npy,
        ".npz": _npz,
        ".csv": _csv,
    }
    if suffix not in readers:
        kinds = ", ".join([*readers, *decode.SUFFIXES])
        raise FmdiffError(f"{option} is of no kind that is read: {kinds}, or a folder of pictures")
    return form.rows(readers[suffix](path, name, form), option)


def _numbers(array: np.ndarray, option: str) -> Tensor:
    """An array as float32. Raises FmdiffError unless it is of numbers."""
    if array.dtype.kind not in "fiub":
        raise FmdiffError(f"{option} holds an array of {array.dtype}, and numbers are needed")
    return torch.from_numpy(np.array(array, dtype=np.float32))


def _npy(path: Path, name: str, form: Form) -> Tensor:
    option = f"cond.{name}={path}"
    try:
        with files.open_regular(path):
            # mapped, so that a header that promises more than the file holds fills no memory
            array = np.load(path, mmap_mode="r", allow_pickle=False)
    except OSError as error:
        raise FmdiffError(f"{option} cannot be read: {error.strerror or error}") from error
    except Exception as error:  # damage raises many kinds of exception in numpy
        raise FmdiffError(f"{option} is no .npy file of numbers") from error
    if not isinstance(array, np.ndarray):
        raise FmdiffError(f"{option} is no .npy file of numbers")
    return _numbers(array, option)


def _npz(path: Path, name: str, form: Form) -> Tensor:
    option, names = f"cond.{name}={path}", files.npz_names(path)
    mine = [key for key in (name, SAMPLES.format(name)) if key in names] or names
    if len(mine) > 1 and mine == names:
        raise FmdiffError(f"{option} has no array {name!r}; it holds {', '.join(names)}")
    arrays = files.read_npz(path, mine[:1], f"cond.{name}=")
    if not arrays:
        raise FmdiffError(f"{option} holds no array")
    return _numbers(arrays[mine[0]], option)


def _csv(path: Path, name: str, form: Form) -> Tensor:
    """The rows of a .csv as (K, n), in the order of the condition's elements."""
    option, size = f"cond.{name}={path}", math.prod(form.shape)
    try:
        with files.open_regular(path) as file:
            text = file.read(LONGEST + 1).decode("utf-8-sig")
        table = [row for row in csv.reader(io.StringIO(text)) if row]
    except (OSError, ValueError, csv.Error) as error:
        raise FmdiffError(f"{option} cannot be read as a table ({error})") from error
    if len(text) > LONGEST:
        raise FmdiffError(f"{option} is longer than {LONGEST:,} letters: give it as .npy")
    names = [cell.strip() for cell in table[0]] if table else []
    if any(_number(cell) is None for cell in names):
        table = table[1:]
        if size == 1 and name in names:
            column = names.index(name)
            table = [row[column : column + 1] for row in table]
    if not table:
        raise FmdiffError(f"{option} holds no row of numbers")
    rows = []
    for i, row in enumerate(table):
        if len(row) != size:
            raise FmdiffError(
                f"{option} has {len(row)} columns in row {i} (the first is row 0), and "
                f"{size} are needed for {form}"
            )
        numbers = [_number(cell) for cell in row]
        if None in numbers:
            cell = row[numbers.index(None)]
            raise FmdiffError(f"{option} holds {cell!r:.40} in row {i}, which is no number")
        rows.append(numbers)
    return torch.tensor(rows, dtype=torch.float32).view(-1, *form.shape)


def _number(cell: str) -> float | None:
    """The number in a cell, NaN if it is empty; None for another text."""
    try:
        return float(cell) if cell.strip() else math.nan
    except ValueError:
        return None


def _picture(path: Path, name: str, form: Form) -> Tensor:
    """A picture file as (C, H, W) in [-1, 1]."""
    shape = form.shape
    if len(shape) != 3 or shape[0] not in (1, 3):
        raise FmdiffError(f"cond.{name}={path} is a picture, and {form} is needed")
    square = shape[1] if shape[1] == shape[2] else None
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Pillow warns about what is refused below
            pixels = decode.pixels_of(path, square, shape[0])
    except Exception as error:  # Pillow meets a broken file with many kinds of exception
        raise FmdiffError(
            f"cond.{name}={path} cannot be read as a picture ({decode.reason(error)})"
        ) from error
    if pixels.shape != shape:
        raise FmdiffError(
            f"cond.{name}={path} has {pixels.shape[2]}x{pixels.shape[1]} pixels, and "
            f"{shape[2]}x{shape[1]} are needed"
        )
    return from_uint8(torch.from_numpy(pixels.copy()))
