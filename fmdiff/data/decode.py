"""Reads the user's pictures: finds picture files and decodes their pixels.

data=folder, samples=DIR and against=DIR all read through `pixels_of`, so the distance between
equal pictures is 0 however they are given.
"""

import hashlib
import os
from pathlib import Path
from typing import NamedTuple

import numpy as np

from fmdiff.errors import FmdiffError

SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".webp", ".gif", ".tif", ".tiff", ".ppm", ".pgm")
LARGEST = 64_000_000  # pixels of an image: more is a mistake or an attack on the memory


class File(NamedTuple):
    """A picture file below a folder."""

    name: str  # path below the root, with slashes
    size: int
    changed: int  # time of the last change, in ns

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

    A folder is entered once, even if links lead to it. Raises FmdiffError, naming `option`, for a
    folder that cannot be read.
    """

    def refuse(error: OSError) -> None:
        raise FmdiffError(f"{option}={root}: {error.filename} cannot be read ({error.strerror})")

    pictures: list[File] = []
    entries: set[tuple[int, int]] = set()
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
                    size, changed = status.st_size, status.st_mtime_ns
                except OSError:  # a link to nothing, which cannot be read later
                    size = changed = 0
                pictures.append(File((prefix / name).as_posix(), size, changed))
    return sorted(pictures)


def pixels_of(path: Path, size: int | None = None, channels: int | None = None) -> np.ndarray:
    """The picture in a file as uint8 (channels, size, size), or (channels, H, W) with size=None.

    The largest square in the middle is scaled to `size` (Lanczos, antialiased). A square of that
    size keeps its pixels. The picture is turned by its EXIF orientation, transparent parts become
    white, 16-bit levels become the nearest of 256, and of an animation the first frame is taken.
    channels: 1, 3, or None, which is 1 for a grey file and 3 for others.

    Raises ValueError for more than 64 million pixels, and what Pillow raises.
    """
    from PIL import Image, ImageOps

    with Image.open(path) as file:
        if file.width * file.height > LARGEST:
            raise ValueError(f"{file.width}x{file.height} pixels are more than 64 million")
        image: Image.Image = ImageOps.exif_transpose(file)
        grey = image.mode in ("1", "L", "LA", "La") or image.mode.startswith("I")
        if image.mode.startswith("I"):  # 16 bits
            level = np.asarray(image).astype(np.int64).clip(0, 65535)
            image = Image.fromarray(((level * 255 + 32767) // 65535).astype(np.uint8))
        elif image.mode == "F":
            raise ValueError("its levels are fractions, of an unknown range")
        elif image.has_transparency_data:
            image = image.convert("RGBA")
            image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
        channels = channels or (1 if grey else 3)
        image = image.convert("L" if channels == 1 else "RGB")
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
    """Why a file cannot be read, in at most 100 characters."""
    return " ".join(f"{type(error).__name__}: {error}".split())[:100]
