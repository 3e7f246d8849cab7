"""Reads pictures: finds picture files and decodes their pixels. No other file opens pictures.

data=folder, samples=DIR and against=DIR all read through `pixels_of`, so the distance between
equal pictures is 0 however they are given. Pictures may come from anyone: what would take much
memory is refused before it is decoded, and no other program is run (as Pillow does for EPS).
"""

import contextlib
import hashlib
import os
import re
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, NamedTuple

import numpy as np

from fmdiff.errors import FmdiffError
from fmdiff.files import open_regular

if TYPE_CHECKING:  # without pictures nobody need wait for Pillow
    from PIL.Image import Image

SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".webp", ".gif", ".tif", ".tiff", ".ppm", ".pgm")
FORMATS = ("PNG", "JPEG", "BMP", "WEBP", "GIF", "TIFF", "PPM")  # Pillow's names of these
LARGEST = 64_000_000  # pixels of an image: more is a mistake or an attack on the memory
BYTES = 2**28  # bytes of a file
USUAL = 2**24  # so many pixels may have any file size;
PER_BYTE = 100  # larger images have at most so many pixels for each byte of their file
FILM = 4 * LARGEST  # pixels of all frames of an animation
AT_ONCE = 2**22  # images of more pixels are decoded one after the other
TILE = 322, 323  # TIFF's tags of the width and height of a tile


class File(NamedTuple):
    """A picture file below a folder."""

    name: str  # path below the root, with slashes
    size: int
    modified: int  # the time in ns that programs may set back
    changed: int  # the time in ns that no program sets: of the last change of the file or its name

    @property
    def top(self) -> str:
        """The top-level folder that the file lies in; empty for the root itself."""
        return self.name.partition("/")[0] if "/" in self.name else ""

    @property
    def order(self) -> int:
        """A hash of the name. Files are shuffled and held out by it."""
        digest = hashlib.blake2b(os.fsencode(self.name), digest_size=8).digest()
        return int.from_bytes(digest, "little")


def walk(root: Path, option: str = "data.root") -> list[File]:
    """The picture files below root in the order of their names, without hidden ones.

    A folder is entered once, even if links lead to it, and a link to a folder around root is not
    entered. Raises FmdiffError, naming `option`, for a folder that cannot be read.
    """

    def refuse(error: OSError) -> None:
        raise FmdiffError(f"{option}={root}: {error.filename} cannot be read ({error.strerror})")

    pictures: list[File] = []
    around = [os.stat(folder) for folder in root.resolve().parents]
    entries = {(folder.st_dev, folder.st_ino) for folder in around}
    for folder, inner, names in os.walk(root, onerror=refuse, followlinks=True):
        here = os.stat(folder)
        if (here.st_dev, here.st_ino) in entries:
            inner.clear()
            continue
        entries.add((here.st_dev, here.st_ino))
        inner[:] = sorted(name for name in inner if not name.startswith("."))
        prefix = Path(folder).relative_to(root)
        for name in names:
            if name.lower().endswith(SUFFIXES) and not name.startswith("."):
                try:
                    status = os.stat(os.path.join(folder, name))
                    about = status.st_size, status.st_mtime_ns, status.st_ctime_ns
                except OSError:  # a link to nothing, which cannot be read later
                    about = 0, 0, 0
                pictures.append(File((prefix / name).as_posix(), *about))
    return sorted(pictures)


@contextlib.contextmanager
def open_picture(path: Path) -> Iterator["Image"]:
    """The picture in a file, for reading; see `picture`. Raises OSError for no regular file."""
    with open_regular(path) as file, picture(file) as image:
        yield image


def picture(file: BinaryIO) -> "Image":
    """The picture in an open file, not yet decoded.

    Raises ValueError if it would take much memory, and what Pillow raises.
    """
    from PIL import Image

    size = file.seek(0, os.SEEK_END)
    file.seek(0)
    if size > BYTES:
        raise ValueError(f"its {size:,} bytes are more than {BYTES // 10**6} million")
    image = Image.open(file, formats=FORMATS)
    pixels, shape = image.width * image.height, f"{image.width}x{image.height}"
    tags: Any = vars(image).get("tag_v2") or {}  # of a TIFF
    tile = tags.get(TILE[0], 1) * tags.get(TILE[1], 1)
    if max(pixels, tile) > LARGEST:
        raise ValueError(f"{shape} pixels are more than 64 million")
    if max(pixels, tile) > max(USUAL, PER_BYTE * size):
        raise ValueError(f"{shape} pixels in {size:,} bytes look like an attack on the memory")
    return image


def frames(image: Any) -> int:
    """The number of frames of an animation. Raises ValueError if all of them would take long."""
    count: int = image.n_frames
    if count * image.width * image.height > FILM:
        raise ValueError(f"its {count:,} frames are too many")
    return count


def _is_grey(image: "Image") -> bool:
    """Whether the mode, or every colour of a palette that occurs, is a level of grey."""
    if image.mode not in ("P", "PA"):
        return image.mode in ("1", "L", "LA", "La") or image.mode.startswith("I")
    colours = np.reshape(image.getpalette("RGB") or [], (-1, 3))
    numbers = np.unique(np.asarray(image.getchannel(0) if image.mode == "PA" else image))
    numbers = numbers[numbers < len(colours)]
    return bool((colours[numbers] == colours[numbers, :1]).all())


def _on_white(image: "Image", mode: str) -> "Image":
    """A picture with transparency on white, in mode L or RGB. It is done in strips of few rows."""
    from PIL import Image

    flat, rows = Image.new(mode, image.size), 1 + AT_ONCE // 4 // image.width
    for top in range(0, image.height, rows):
        box = (0, top, image.width, min(top + rows, image.height))
        strip = image.crop(box).convert("RGBA")
        white = Image.new("RGBA", strip.size, "white")
        flat.paste(Image.alpha_composite(white, strip).convert(mode), box)
    return flat


_LARGE_ONE = threading.Lock()  # held by the thread that decodes a large image


def pixels_of(path: Path, size: int | None = None, channels: int | None = None) -> np.ndarray:
    """The picture in a file as uint8 (channels, size, size), or (channels, H, W) with size=None.

    The largest square in the middle is scaled to `size` (Lanczos, antialiased). A square of that
    size keeps its pixels. The picture is turned by its EXIF orientation, transparent parts become
    white, 16-bit levels become the nearest of 256, and of an animation the first frame is taken.
    channels: 1, 3, or None, which is 1 for a grey file, with a palette or not, and 3 for others.

    Raises ValueError for a picture that would take much memory, OSError for what is no regular
    file, and what Pillow raises.
    """
    with open_picture(path) as image:
        large = image.width * image.height > AT_ONCE
        with _LARGE_ONE if large else contextlib.nullcontext():
            return _pixels(image, size, channels)


def _pixels(image: "Image", size: int | None, channels: int | None) -> np.ndarray:
    """See `pixels_of`."""
    from PIL import Image, ImageOps

    ImageOps.exif_transpose(image, in_place=True)
    channels = channels or (1 if _is_grey(image) else 3)
    mode = "L" if channels == 1 else "RGB"
    if image.mode == "F":
        raise ValueError("its levels are fractions, of an unknown range")
    if image.mode.startswith("I"):  # 16 bits
        level = np.asarray(image).astype(np.int32).clip(0, 65535)
        image = Image.fromarray(((level * 255 + 32767) // 65535).astype(np.uint8))
    if image.has_transparency_data:
        image = _on_white(image, mode)
    image = image.convert(mode)
    if size is not None:
        side = min(image.size)
        left, top = (image.width - side) // 2, (image.height - side) // 2
        box = (left, top, left + side, top + side)
        if side == size:
            image = image.crop(box)
        else:
            image = image.resize((size, size), Image.Resampling.LANCZOS, box)
    return np.asarray(image).reshape(image.height, image.width, channels).transpose(2, 0, 1)


def reason(error: Exception) -> str:
    """Why a file cannot be read, in about 100 characters."""
    if type(error).__name__ == "UnidentifiedImageError":
        return f"it is no picture in the format {', '.join(FORMATS[:-1])} or {FORMATS[-1]}"
    if bomb := re.search(r"\((\d+) pixels\)", str(error)):  # Pillow's own limit
        return f"its {int(bomb[1]):,} pixels are more than 64 million"
    return " ".join(f"{type(error).__name__}: {error}".split())[:100]
