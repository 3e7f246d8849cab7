"""Writes files whole or not at all, and reads them without running code."""

import contextlib
import json
import os
import re
import zipfile
from collections.abc import Container, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

from fmdiff.errors import FmdiffError

if TYPE_CHECKING:  # --help writes no arrays and need not wait for numpy
    import numpy as np

UNPACKED = 100  # an archive may unpack to this many times its size,
LARGE = 2**30  # or to this many bytes


@contextlib.contextmanager
def whole(path: Path) -> Iterator[BinaryIO]:
    """A file to write to, which becomes `path` at the end unless an exception is raised.

    At every instant `path` is the old file or the whole new one. If this raises OSError, the old
    file is intact.
    """
    part = temporary(path)
    try:
        with part.open("wb") as file:
            yield file
            sync(file)
        put(part, path)
    finally:
        part.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    """Write text to path as UTF-8, whole or not at all."""
    with whole(path) as file:
        file.write(text.encode())


def write_json(path: Path, content: Any) -> None:
    """Write content as indented JSON; values that JSON lacks are written as `str`."""
    write_text(path, json.dumps(content, indent=2, default=str) + "\n")


def write_npz(path: Path, arrays: "dict[str, np.ndarray]") -> None:
    """Write arrays by name as a .npz, whole or not at all."""
    import numpy as np

    with whole(path) as file:
        np.savez(file, **arrays)  # type: ignore[arg-type]


def temporary(path: Path) -> Path:
    """The name under which this process writes a file before it is put at `path`."""
    return path.with_name(f"{path.name}.tmp-{os.getpid()}")


def sync(file: BinaryIO) -> None:
    """Make sure that what was written to an open file is on the disk."""
    file.flush()
    os.fsync(file.fileno())


def put(temporary: Path, path: Path) -> None:
    """Rename temporary to path, and make sure that the new name is on the disk."""
    os.replace(temporary, path)
    # the new file is in place by now, and not every file system can sync a folder
    with contextlib.suppress(OSError):
        folder = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)


def sweep(path: Path) -> None:
    """Delete the temporary files beside path whose processes are dead."""
    pattern = re.compile(rf"(?:.+\.ckpt|{re.escape(path.name)})\.tmp-([1-9]\d*)")
    for file in path.parent.iterdir():
        match = pattern.fullmatch(file.name)
        if match and not _alive(int(match[1])):
            file.unlink(missing_ok=True)


def _alive(pid: int) -> bool:
    # A file of our own id is stale too: in a container every start may have the same one.
    if pid == os.getpid():
        return False
    try:
        os.kill(pid, 0)
    except (OSError, OverflowError) as error:
        return not isinstance(error, ProcessLookupError)
    return True


def npz_names(path: Path) -> list[str]:
    """The names of the arrays in a .npz. Empty for other files, which `read_npz` refuses."""
    try:
        with zipfile.ZipFile(path) as archive:
            return [name.removesuffix(".npy") for name in archive.namelist()]
    except Exception:
        return []


def read_npz(path: Path, names: Container[str], option: str = "") -> "dict[str, np.ndarray]":
    """Read arrays of an untrusted .npz by name, without running code or filling the memory.

    names: the arrays to read, if the file has them. option: the text before the path in messages,
    like "samples=". Raises FmdiffError for a file that is missing, damaged or no .npz, that holds
    Python objects (they are code) or that would be too large when unpacked.
    """
    import numpy as np

    try:
        with path.open("rb") as file, zipfile.ZipFile(file) as archive:
            members = {m.filename.removesuffix(".npy"): m for m in archive.infolist()}
            parts = {name: member for name, member in members.items() if name in names}
            size = sum(member.file_size for member in parts.values())
            if size > max(LARGE, UNPACKED * os.fstat(file.fileno()).st_size):
                raise FmdiffError(f"{option}{path} is refused: it would unpack to {size:,} bytes")
            arrays = {}
            for name, member in parts.items():
                with archive.open(member) as data:
                    arrays[name] = np.lib.format.read_array(data, allow_pickle=False)
            return arrays
    except FmdiffError:
        raise
    except OSError as error:
        raise FmdiffError(f"{option}{path} cannot be read: {error.strerror or error}") from error
    except Exception as error:  # damage raises many kinds of exception in zipfile and numpy
        if "allow_pickle" in str(error):
            raise FmdiffError(
                f"{option}{path} is no .npz of plain arrays (pickled objects are refused: they "
                "are code)"
            ) from None
        raise FmdiffError(
            f"{option}{path} is damaged or no .npz file ({type(error).__name__})"
        ) from error
