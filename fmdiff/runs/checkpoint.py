"""Checkpoint files are written whole or not at all, verified when read, and never run code.

`fmdiff.runs.content` describes their content.
"""

import contextlib
import errno
import os
import pickle
import re
import shutil
import zipfile
from collections import OrderedDict
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

import torch
from torch import Tensor

from fmdiff import files
from fmdiff.errors import FmdiffError
from fmdiff.runs import safetensors
from fmdiff.runs.content import FORMAT, VERSION, Damaged, digest

LAST = "last.ckpt"
NUMBERED = re.compile(r"(\d{7,})\.ckpt")


def name(step: int) -> str:
    """The file name of the checkpoint of a step."""
    return f"{step:07d}.ckpt"


def write(path: str | Path, content: dict) -> None:
    """Write content to path so that at every instant path is the old file or the whole new one.

    content: dicts (keys str or int), lists, tuples, str, int, float, bool, None and dense tensors
    of any dtype, shape and device. Tensors are stored on the CPU; of a view only its own elements.
    Format, version and checksums are added. A process writes one checkpoint of a folder at a time.

    Raises TypeError, naming the dotted key, for another type, before anything is written.
    Raises OSError if the file cannot be written; the old one is then intact.
    """
    path = Path(path)
    plain = _plain({**content, "checksums": {}}, "", {})
    checksums: dict[str, str] = {}
    for key, tensor in _tensors(plain):
        if key in checksums:
            raise TypeError(f"checkpoint content holds two tensors called {key!r}")
        checksums[key] = digest(tensor)
    plain |= {"format": FORMAT, "version": VERSION, "checksums": checksums}
    files.sweep(path)
    try:
        with files.whole(path) as file:
            try:
                torch.save(plain, file)
            except RuntimeError as error:
                # closing a half-written archive fails again and hides the first error
                first = error.__context__
                raise first if isinstance(first, OSError) else error from None
            files.sync(file)
            file.seek(0)
            _check_archive(Path(file.name), file)
    except Damaged as error:
        raise OSError(errno.EIO, f"written but not read back ({error})", str(path)) from error


def link_last(numbered: Path) -> None:
    """Make `last.ckpt` beside a numbered checkpoint a hard link to it, or a copy without links.

    If this raises OSError, the old `last.ckpt` is intact.
    """
    last = numbered.with_name(LAST)
    temporary = files.temporary(last)
    try:
        os.link(numbered, temporary)
    except OSError:
        with numbered.open("rb") as source, files.whole(last) as file:
            shutil.copyfileobj(source, file)
        return
    try:
        files.put(temporary, last)
    finally:
        # renaming one link of a file onto another of the same file succeeds and leaves both
        temporary.unlink(missing_ok=True)


def read(path: str | Path, map_location: str | torch.device = "cpu") -> dict:
    """Read a checkpoint and check every tensor against its checksum, without running code.

    A .safetensors file is one that `export` wrote. Raises FmdiffError for a file that is missing,
    damaged (Damaged, naming the tensor if known), foreign, of a newer format, or asks for code.
    """
    path = Path(path)
    torch.empty(0, device=map_location)  # a missing device must not look like a bad file
    if path.suffix == safetensors.SUFFIX:
        return safetensors.read(path, map_location)
    try:
        file = files.open_regular(path)
    except OSError as error:
        raise FmdiffError(f"checkpoint {path} cannot be opened: {error.strerror}") from error
    with file:
        _check_archive(path, file)
        content = _load(path, file, map_location)
    if not isinstance(content, dict) or content.get("format") != FORMAT:
        holds = f"keys {list(content)[:8]}" if isinstance(content, dict) else type(content)
        raise FmdiffError(f"{path} is not an fmdiff checkpoint (it holds {holds})")
    if content.get("version") != VERSION:  # 1 is the first
        newer = f"a newer fmdiff (format version {content.get('version')}, this is {VERSION})"
        raise FmdiffError(f"checkpoint {path} was written by {newer}")
    try:
        fault = _tensor_fault(content)
    except RecursionError:
        fault = "it nests too deeply"
    if fault:
        raise Damaged(path, fault)
    return content


# Content


def _plain(value: Any, key: str, copies: dict[Any, Tensor]) -> Any:
    """value with plain dicts and compact CPU tensors; `copies` keeps shared tensors shared."""
    if isinstance(value, Tensor):
        return _compact(value, key, copies)
    if value is None or type(value) in (bool, int, float, str):
        return value
    if type(value) in (list, tuple):
        return type(value)(_plain(v, f"{key}.{i}", copies) for i, v in enumerate(value))
    if type(value) in (dict, OrderedDict):
        for k in value:
            if type(k) not in (str, int):
                raise TypeError(f"checkpoint content at {key!r} has the key {k!r}, not str or int")
        return {k: _plain(v, f"{key}.{k}" if key else str(k), copies) for k, v in value.items()}
    raise TypeError(
        f"checkpoint content at {key!r} is a {type(value).__module__}.{type(value).__qualname__}; "
        "only plain containers, str, int, float, bool, None and dense tensors can be read back"
    )


def _dense(tensor: Tensor) -> bool:
    plain = type(tensor) in (Tensor, torch.nn.Parameter) and tensor.layout == torch.strided
    return plain and not tensor.is_quantized and not tensor.is_meta


def _compact(tensor: Tensor, key: str, copies: dict[Any, Tensor]) -> Tensor:
    if not _dense(tensor):
        raise TypeError(f"checkpoint content at {key!r} is not a plain dense tensor")
    storage = tensor.untyped_storage()
    place = (storage.data_ptr(), tensor.device, tensor.dtype, tensor.is_conj(), tensor.is_neg())
    view = (*place, tensor.storage_offset(), tensor.shape, tensor.stride())
    if view not in copies:
        compact = tensor.detach().cpu().resolve_conj().resolve_neg()
        if compact.untyped_storage().nbytes() != compact.nbytes:
            compact = compact.clone()
        copies[view] = compact
    return copies[view]


def _tensors(value: Any, key: str = "") -> Iterator[tuple[str, Tensor]]:
    """(dotted path, tensor) of every tensor in nested containers."""
    if isinstance(value, Tensor):
        yield key, value
    elif isinstance(value, dict | list | tuple):
        items = value.items() if isinstance(value, dict) else enumerate(value)
        for k, v in items:
            yield from _tensors(v, f"{key}.{k}" if key else str(k))


def _tensor_fault(content: dict) -> str | None:
    """Describes the first tensor that does not match its checksum; None if all match."""
    checksums = content.get("checksums")
    if not isinstance(checksums, dict):
        return "it has no checksums"
    if shared(content):
        return "a part of it stands in two places"
    missing = set(checksums)
    for key, tensor in _tensors(content):
        if key not in checksums:
            return f"tensor {key!r} has no checksum"
        # a tensor must not be larger than the data stored for it
        whole = _dense(tensor) and tensor.untyped_storage().nbytes() == tensor.nbytes
        if not whole or digest(tensor) != checksums[key]:
            return f"tensor {key!r} does not match its checksum"
        missing.discard(key)
    return f"tensor {min(missing)!r} is missing" if missing else None


def shared(value: Any, seen: set[int] | None = None) -> bool:
    """Whether a container occurs twice, which could make a small file endless to walk."""
    seen = set() if seen is None else seen
    if not (isinstance(value, dict | list | tuple) and value):
        return False
    if id(value) in seen:
        return True
    seen.add(id(value))
    return any(shared(v, seen) for v in (value.values() if isinstance(value, dict) else value))


# Reading


def _check_archive(path: Path, file: BinaryIO) -> None:
    """Raise Damaged unless file is a zip archive whose members all match their CRC-32."""
    size, head = os.fstat(file.fileno()).st_size, file.read(4)
    try:
        if not zipfile.is_zipfile(file):
            if b"PK\x03\x04".startswith(head):
                raise Damaged(path, f"it was cut short (it ends after {size:,} bytes)")
            raise Damaged(path, f"its {size:,} bytes are no checkpoint (they begin {head!r})")
        with zipfile.ZipFile(file) as archive:
            names = archive.namelist()
            members = archive.infolist()
            packed = [m.filename for m in members if m.compress_type]  # fmdiff never compresses
            if not packed and sum(m.file_size for m in members) > size:
                raise Damaged(path, "the parts of its zip archive lie upon each other")
            bad = packed[0] if packed else archive.testzip()
    except Damaged:
        raise
    except Exception as error:  # zipfile raises some ten kinds of exception for a wrong byte
        raise Damaged(path, f"its zip archive is broken ({type(error).__name__})") from error
    if bad is not None:
        raise Damaged(path, _blame(path, bad))
    if not any(n.endswith("/data.pkl") for n in names):
        some = ", ".join(names[:4]) or "nothing"
        raise FmdiffError(f"{path} is not an fmdiff checkpoint (a zip archive of {some})")


def _blame(path: Path, member: str) -> str:
    """Name the tensor stored in a bad member of the archive, or else the member."""
    with contextlib.suppress(Exception):
        content = torch.load(path, mmap=True, weights_only=True) if "/data/" in member else {}
        if content and (fault := _tensor_fault(content)):
            return fault
    return f"its part {member!r} is not as it was written"


def _load(path: Path, file: BinaryIO, map_location: str | torch.device) -> Any:
    # The file is not mapped: a page could be read from the disk again after it was verified.
    # torch's own messages advise unsafe loading, so none of them is passed on.
    file.seek(0)
    try:
        return torch.load(file, map_location=map_location, weights_only=True, mmap=False)
    except pickle.UnpicklingError as error:
        name = re.search(r"GLOBAL ([\w.]+)", str(error))
        raise FmdiffError(
            f"{path} is refused: it asks for code to be run "
            f"({name[1] if name else 'not named'}), and an fmdiff checkpoint holds plain data"
        ) from None
    except Exception as error:
        if isinstance(error, MemoryError) or "memory" in str(error):
            raise
        raise Damaged(path, f"torch cannot read it ({type(error).__name__})") from error
