"""Reads arrays of any shape and type, mapped into memory where the file allows it."""

import json
import os
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from fmdiff import files
from fmdiff.errors import FmdiffError

ARRAYS = (".npy", ".npz", ".safetensors", ".pt", ".pth")
WIDE = "iuf"  # kinds of numpy's types that hold numbers
# numpy's names of the types of .safetensors; it has none for bfloat16, which is read as bytes
NUMBERS = {"U8": "u1", "I8": "i1", "BOOL": "?", "BF16": "V2"}
NUMBERS |= {f"{kind}{8 * n}": f"<{kind.lower()}{n}" for kind in "IUF" for n in (2, 4, 8)}
LOCAL = 30  # bytes of a local header of a .zip, without name and extra


class Rows:
    """An array (N, *shape) of which rows are read as tensors; it may be mapped into memory.

    last: the channels stand last in `values`, and first in what is read.
    """

    def __init__(self, values: np.ndarray | Tensor, last: bool = False) -> None:
        self.values, self.last = values, last

    def __len__(self) -> int:
        return len(self.values)

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of one row; a number counts as (1,)."""
        shape = tuple(self.values.shape[1:]) or (1,)
        return (shape[-1], *shape[:-1]) if self.last else shape

    @property
    def nbytes(self) -> int:
        """The bytes of the array on the disk."""
        return self.values.nbytes

    @property
    def dtype(self) -> str:
        """The name of the type, without the order of its bytes."""
        name = str(self.values.dtype).removeprefix("torch.").lstrip("<>=|")
        return "bfloat16" if name == "V2" else name

    @property
    def floating(self) -> bool:
        """Whether the numbers may be NaN or infinite."""
        return not self.dtype.startswith(("int", "uint"))

    def __getitem__(self, index: slice | Tensor | np.ndarray) -> Tensor:
        """Rows (B, *shape): uint8 as they are, else float32 or, for wider types, float64."""
        if isinstance(self.values, Tensor):
            return self.tensor(self.values[index])
        return self.tensor(self.values[index.numpy() if isinstance(index, Tensor) else index])

    def tensor(self, part: np.ndarray | Tensor) -> Tensor:
        """Rows of the array's own type, such as those of `values`, as `[]` returns them."""
        x = _native(part) if isinstance(part, np.ndarray) else part
        if x.dtype != torch.uint8:
            narrow = x.element_size() < 4 or x.dtype == torch.float32
            x = x.to(torch.float32 if narrow else torch.float64)
        x = x.movedim(-1, 1) if self.last else x
        return x.reshape(-1, *self.shape)


def _native(array: np.ndarray) -> Tensor:
    """A copy of an array in the order of bytes and of axes that tensors have."""
    copy = np.array(array, array.dtype.newbyteorder("="), order="C")
    if copy.dtype.kind == "V":  # two bytes of a bfloat16, which numpy lacks
        return torch.from_numpy(copy.view(np.int16)).view(torch.bfloat16)
    return torch.from_numpy(copy)


@dataclass(frozen=True)
class Header:
    """What is known of an array before it is read, and how it is read."""

    shape: tuple[int, ...]
    dtype: str
    load: Callable[[], np.ndarray | Tensor]


def headers(path: Path, title: str) -> dict[str, Header]:
    """The arrays of a file by name; that of a .npy, and a tensor alone in a .pt, have the name "".

    The numbers are not read yet. Raises FmdiffError for a file that is missing, damaged or of
    another kind, and for what could run code. title: the option and the path, for messages.
    """
    reader = {".npy": _npy, ".npz": _npz, ".safetensors": _safetensors}.get(
        path.suffix.lower(), _pt
    )
    try:
        files.open_regular(path).close()
        return reader(path, title)
    except FmdiffError:
        raise
    except OSError as error:
        raise FmdiffError(f"{title} cannot be read: {error.strerror or error}") from error
    except MemoryError as error:
        raise FmdiffError(f"{title} is refused: it asks for more memory than there is") from error
    except Exception as error:  # damage raises many kinds of exception in numpy and torch
        raise FmdiffError(
            f"{title} is damaged or no {path.suffix} file ({type(error).__name__})"
        ) from error


def rows(header: Header, name: str, title: str) -> Rows:
    """The array of a header. Raises FmdiffError for what are no real numbers, or no rows of them.

    name: what a message calls the array.
    """
    try:
        values = header.load()
    except FmdiffError:
        raise
    except Exception as error:
        raise FmdiffError(f"{title} cannot be read ({type(error).__name__}: {error})") from error
    if isinstance(values, np.ndarray):
        if values.dtype.kind == "b":
            values = values.view(np.uint8).astype(np.int8)
        right = values.dtype.kind in WIDE or values.dtype == "V2"
    else:
        if values.dtype == torch.bool:
            values = values.to(torch.int8)
        right = not values.dtype.is_complex and not values.is_quantized
    if not right:
        hint = "; give real and imaginary part as two channels" * ("complex" in header.dtype)
        raise FmdiffError(f"{title}: {name} holds {header.dtype}, and data are real numbers{hint}")
    if not values.ndim:
        raise FmdiffError(f"{title}: {name} is a single number, and data are rows (N, ...)")
    if 0 in values.shape:
        raise FmdiffError(f"{title}: {name} is empty, of shape {tuple(values.shape)}")
    return Rows(values)


def texts(header: Header) -> bool:
    """Whether an array holds texts, of a fixed length."""
    return header.dtype.lstrip("<>=|")[:1] in ("U", "S")


def _npy(path: Path, title: str) -> dict[str, Header]:
    with files.open_regular(path) as file:
        shape, fortran, dtype = _npy_header(file)
        offset = file.tell()
    return {"": _numpy_header(path, title, shape, fortran, dtype, offset)}


def _npy_header(file) -> tuple[tuple[int, ...], bool, np.dtype]:  # type: ignore[no-untyped-def]
    """Shape, order and type of a .npy."""
    version = np.lib.format.read_magic(file)
    first = version == (1, 0)
    read = np.lib.format.read_array_header_1_0 if first else np.lib.format.read_array_header_2_0
    shape, fortran, dtype = read(file)
    return shape, fortran, dtype


def _numpy_header(
    path: Path, title: str, shape: tuple[int, ...], fortran: bool, dtype: np.dtype, offset: int
) -> Header:
    """The header of an array that lies in a file as it is. It is mapped when it is opened."""
    if dtype.hasobject:
        return Header(shape, "object", _refusal(title))
    size = dtype.itemsize * int(np.prod([float(n) for n in shape]))
    if offset + size > path.stat().st_size:
        raise FmdiffError(
            f"{title} is cut off: {tuple(shape)} of {dtype} need {size:,} bytes, and it has "
            f"{path.stat().st_size - offset:,}"
        )

    def opened() -> np.ndarray:
        if not size:
            return np.empty(shape, dtype)
        order = "F" if fortran else "C"
        return np.memmap(path, dtype, "r", offset, shape, order)  # type: ignore[call-overload]

    return Header(shape, str(dtype), opened)


def _refusal(title: str) -> Callable[[], np.ndarray]:
    """What stands for an array of Python objects: it raises FmdiffError."""

    def opened() -> np.ndarray:
        raise FmdiffError(f"{title} holds Python objects, which are refused: they are code")

    return opened


def _npz(path: Path, title: str) -> dict[str, Header]:
    result = {}
    with files.open_regular(path) as file, zipfile.ZipFile(file) as archive:
        for member in archive.infolist():
            name = member.filename.removesuffix(".npy")
            with archive.open(member) as data:
                try:
                    shape, fortran, dtype = _npy_header(data)
                except ValueError:
                    continue  # it is no array
                ahead = data.tell()
            if member.compress_type == zipfile.ZIP_STORED:
                file.seek(member.header_offset)
                local = file.read(LOCAL)
                lengths = (
                    int.from_bytes(local[26:28], "little"),
                    int.from_bytes(local[28:], "little"),
                )
                offset = member.header_offset + LOCAL + sum(lengths) + ahead
                result[name] = _numpy_header(path, title, shape, fortran, dtype, offset)
            else:
                unpack = _refusal(title) if dtype.hasobject else _unpacked(path, name, title)
                result[name] = Header(shape, str(dtype), unpack)
    if not result:
        raise FmdiffError(f"{title} holds no arrays")
    return result


def _unpacked(path: Path, name: str, title: str) -> Callable[[], np.ndarray]:
    """What reads a compressed array of a .npz, if it is not too large."""
    option = title.removesuffix(str(path))
    return lambda: files.read_npz(path, (name,), option)[name]


def _safetensors(path: Path, title: str) -> dict[str, Header]:
    from safetensors import safe_open

    with safe_open(path, "np") as checked:  # raises for offsets that lead out of the file
        names = list(checked.keys())
    if not names:
        raise FmdiffError(f"{title} holds no arrays")
    with files.open_regular(path) as file:
        length = int.from_bytes(file.read(8), "little")
        table = json.loads(file.read(length))
    result = {}
    for name in names:
        about = table[name]
        if about["dtype"] not in NUMBERS:
            raise FmdiffError(f"{title}: {name} holds {about['dtype']}, and data are real numbers")
        shape, dtype = tuple(about["shape"]), np.dtype(NUMBERS[about["dtype"]])
        start = 8 + length + about["data_offsets"][0]
        result[name] = _numpy_header(path, title, shape, False, dtype, start)
    return result


def _pt(path: Path, title: str) -> dict[str, Header]:
    content = _torch(path, title)
    if isinstance(content, Tensor):
        content = {"": content}
    elif isinstance(content, list | tuple):
        content = dict(enumerate(content))
    elif not isinstance(content, dict):
        raise FmdiffError(f"{title} holds a {type(content).__name__}, and data are plain tensors")
    result = {}
    for name, value in content.items():
        if isinstance(value, Tensor) and value.layout == torch.strided and not value.is_meta:
            tensor = value.detach()
            if tensor.nbytes > max(files.LARGE, files.UNPACKED * os.path.getsize(path)):
                raise FmdiffError(
                    f"{title} is refused: it would unpack to {tensor.nbytes:,} bytes"
                )

            def opened(tensor: Tensor = tensor) -> Tensor:
                return tensor

            result[str(name)] = Header(tuple(tensor.shape), str(tensor.dtype)[6:], opened)
    if not result:
        raise FmdiffError(f"{title} holds no plain tensors")
    return result


def _torch(path: Path, title: str) -> object:
    """The content of a .pt, mapped if its format allows it; no code of it is run."""
    try:
        with files.open_regular(path) as file:
            mapped = zipfile.is_zipfile(file)
        return torch.load(path, map_location="cpu", weights_only=True, mmap=mapped)
    except Exception as error:
        if "weights_only" in str(error) or "Unsupported" in str(error):
            raise FmdiffError(
                f"{title} holds Python objects, which are refused: they are code; save plain "
                "tensors by torch.save({'x': x}, ...)"
            ) from None
        raise
