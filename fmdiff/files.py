"""Files that are, at every instant, the old one or the whole new one."""

import contextlib
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any


@contextlib.contextmanager
def whole(path: Path) -> Iterator[Any]:
    """A file to write to that becomes `path` at the end, unless an exception arrives first.

    Raises OSError; the old file is then intact.
    """
    part = temporary(path)
    try:
        with part.open("wb") as file:
            yield file
            sync(file)
        put(part, path)
    finally:
        part.unlink(missing_ok=True)


def temporary(path: Path) -> Path:
    return path.with_name(f"{path.name}.tmp-{os.getpid()}")


def sync(file: Any) -> None:
    file.flush()
    os.fsync(file.fileno())


def put(temporary: Path, path: Path) -> None:
    """Rename, and make the rename last."""
    os.replace(temporary, path)
    # the new file is whole and in place by now; not every file system can sync a folder
    with contextlib.suppress(OSError):
        folder = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)


def sweep(path: Path) -> None:
    """Delete temporaries beside path whose writers are dead."""
    pattern = re.compile(rf"(?:.+\.ckpt|{re.escape(path.name)})\.tmp-([1-9]\d*)")
    for file in path.parent.iterdir():
        match = pattern.fullmatch(file.name)
        if match and not _alive(int(match[1])):
            file.unlink(missing_ok=True)


def _alive(pid: int) -> bool:
    # Our own is stale too: in a container every start may have the same process id.
    if pid == os.getpid():
        return False
    try:
        os.kill(pid, 0)
    except (OSError, OverflowError) as error:
        return not isinstance(error, ProcessLookupError)
    return True
