"""Arrays in a .npz of anybody's, read without running code and without filling the memory."""

import os
import zipfile
from collections.abc import Container
from pathlib import Path

import numpy as np

from fmdiff.errors import FmdiffError

PACKED = 100  # an archive may unpack to so many times its size,
LARGE = 2**30  # or to so many bytes


def names(path: Path) -> list[str]:
    """Of the arrays in a .npz; none of anything else, which `read` is to report."""
    try:
        with zipfile.ZipFile(path) as archive:
            return [name.removesuffix(".npy") for name in archive.namelist()]
    except Exception:
        return []


def read(path: Path, wanted: Container[str], what: str = "") -> dict[str, np.ndarray]:
    """The arrays of a .npz by name, those that are wanted alone.

    what: put before the path in a sentence, like "samples=". Raises FmdiffError for a file that
    is missing, damaged, no .npz, of Python objects (they are code) or of too much when unpacked.
    """
    try:
        with path.open("rb") as file, zipfile.ZipFile(file) as archive:
            members = {m.filename.removesuffix(".npy"): m for m in archive.infolist()}
            found = {name: member for name, member in members.items() if name in wanted}
            size = sum(member.file_size for member in found.values())
            if size > max(LARGE, PACKED * os.fstat(file.fileno()).st_size):
                raise FmdiffError(f"{what}{path} is refused: it would unpack to {size:,} bytes")
            arrays = {}
            for name, member in found.items():
                with archive.open(member) as data:
                    arrays[name] = np.lib.format.read_array(data, allow_pickle=False)  # type: ignore[arg-type]
            return arrays
    except FmdiffError:
        raise
    except OSError as error:
        raise FmdiffError(f"{what}{path} cannot be read: {error.strerror or error}") from error
    except Exception as error:  # zipfile and numpy meet a wrong byte with many kinds of exception
        if "allow_pickle" in str(error):
            raise FmdiffError(
                f"{what}{path} is no .npz of plain arrays (pickled objects are refused: they are "
                "code)"
            ) from None
        raise FmdiffError(
            f"{what}{path} is damaged or no .npz file ({type(error).__name__})"
        ) from error
