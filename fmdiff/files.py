"""Writes files whole or not at all, and reads them without running code.

A folder may come from someone else, so nothing here writes through a link or to what is no regular
file. What is read on the word of a folder lies in that folder (`root`).
"""

import contextlib
import errno
import fcntl
import json
import logging
import os
import re
import secrets
import stat
import zipfile
from collections.abc import Container, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

from fmdiff.errors import FmdiffError

if TYPE_CHECKING:  # --help writes no arrays and need not wait for numpy
    import numpy as np

log = logging.getLogger("fmdiff")

UNPACKED = 100  # an archive may unpack to this many times its size,
LARGE = 2**30  # or to this many bytes


# Reading


def open_regular(path: Path, root: Path | None = None) -> BinaryIO:
    """Open a regular file for reading; a pipe or a device raises OSError and never blocks.

    root: a folder that the file must lie in after all links are followed, or OSError is raised.
    """
    if root is not None and not inside(path, root):
        raise OSError(errno.ELOOP, f"a link leads out of {root}", str(path))
    return _open(path, os.O_RDONLY)


def _open(path: Path, flags: int) -> BinaryIO:
    """Open a file, unbuffered if it is for writing. Raises OSError if it is no regular file."""
    descriptor = os.open(path, flags | os.O_NONBLOCK | os.O_CLOEXEC, 0o666)
    kind = os.fstat(descriptor).st_mode
    if not stat.S_ISREG(kind):
        os.close(descriptor)
        if stat.S_ISDIR(kind):
            raise OSError(errno.EISDIR, os.strerror(errno.EISDIR), str(path))
        raise OSError(errno.EINVAL, "it is no regular file", str(path))
    os.set_blocking(descriptor, True)
    if flags == os.O_RDONLY:
        return os.fdopen(descriptor, "rb")
    return os.fdopen(descriptor, "ab", buffering=0)


def inside(path: Path, root: Path) -> bool:
    """Whether a path lies in a folder or is that folder, after all links are followed."""
    try:
        return path.resolve().is_relative_to(root.resolve())
    except (OSError, RuntimeError):  # links that lead in a circle
        return False


def read_bytes(path: Path, root: Path | None = None) -> bytes:
    """The content of a file; see `open_regular`."""
    with open_regular(path, root) as file:
        return file.read()


def read_text(path: Path, root: Path | None = None, errors: str = "strict") -> str:
    """The content of a UTF-8 file, as `read_bytes`. Raises UnicodeDecodeError (a ValueError).

    errors: "replace" replaces bytes that are not UTF-8.
    """
    return read_bytes(path, root).decode("utf-8", errors).replace("\r\n", "\n")


# Writing


@contextlib.contextmanager
def whole(path: Path) -> Iterator[BinaryIO]:
    """A file to write and read, which becomes `path` at the end unless an exception is raised.

    At every instant `path` is the old file or the whole new one. If this raises OSError, the old
    file is intact. A link at `path` is replaced and not followed.
    """
    part = temporary(path)
    with part.open("x+b") as file:
        try:
            with contextlib.suppress(OSError):  # not every file system has locks
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)  # `sweep` leaves it alone
            yield file
            sync(file)
            put(part, path)
        finally:
            part.unlink(missing_ok=True)


def append(path: Path) -> BinaryIO:
    """Open a file to write at its end, unbuffered. It is made if it is missing.

    Raises OSError for a link and for what is no regular file.
    """
    return _open(path, os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_NOFOLLOW)


def shared(file: BinaryIO) -> bool:
    """Whether an open file has another name too, by a hard link."""
    return os.fstat(file.fileno()).st_nlink > 1


def blank(path: Path) -> BinaryIO:
    """Open a new file in place of an old one, if there is one. Raises OSError."""
    path.unlink(missing_ok=True)
    return path.open("xb")


def make_folder(path: Path) -> Path:
    """Make a folder in one that exists, if it is missing. Raises OSError if it is a link."""
    with contextlib.suppress(FileExistsError):
        path.mkdir()
    if path.is_symlink():
        raise OSError(errno.ELOOP, "it is a link", str(path))
    if not path.is_dir():
        raise OSError(errno.ENOTDIR, "it is no folder", str(path))
    return path


@contextlib.contextmanager
def lock(path: Path) -> Iterator[None]:
    """Hold the lock of a file, which is deleted at the end; waits while another process holds it.

    Without a warning there is no lock on a file system that has none. Raises OSError if the file
    cannot be made.
    """
    while True:
        file = append(path)
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            log.info("waiting for another process, which holds %s", path)
            fcntl.flock(file, fcntl.LOCK_EX)
        except OSError:
            break
        with contextlib.suppress(FileNotFoundError):  # the holder before has deleted it
            if os.path.samestat(os.fstat(file.fileno()), os.lstat(path)):
                break
        file.close()
    with file:
        try:
            yield
        finally:
            path.unlink(missing_ok=True)


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
    """A name that nobody can guess, under which a file is written before it is put at `path`."""
    return path.with_name(f"{path.name}.tmp-{secrets.token_hex(8)}")


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
    """Delete the temporary files beside path that dead processes of this user have left.

    They have names that only `temporary` gives, and no process holds their lock.
    """
    pattern = re.compile(rf"(?:.+\.ckpt|{re.escape(path.name)})\.tmp-[0-9a-f]{{16}}")
    for file in path.parent.iterdir():
        if not pattern.fullmatch(file.name):
            continue
        # OSError: a link, no regular file, or another process writes it
        with contextlib.suppress(OSError), append(file) as part:
            fcntl.flock(part, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if os.fstat(part.fileno()).st_uid == os.geteuid():
                file.unlink()


# Archives


def npz_names(path: Path) -> list[str]:
    """The names of the arrays in a .npz. Empty for other files, which `read_npz` refuses."""
    try:
        with open_regular(path) as file, zipfile.ZipFile(file) as archive:
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
        with open_regular(path) as file, zipfile.ZipFile(file) as archive:
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
