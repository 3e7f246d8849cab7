"""Own images: a folder of them, converted once into a memory-mapped uint8 array."""

import hashlib
import json
import logging
import os
import shutil
import tempfile
import warnings
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, BinaryIO, ClassVar, NamedTuple

import numpy as np
import torch
from torch import Tensor

from fmdiff.data import files
from fmdiff.data.images import Images
from fmdiff.errors import FmdiffError
from fmdiff.machine.progress import Bar

log = logging.getLogger("fmdiff")

SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".webp", ".gif", ".tif", ".tiff", ".ppm", ".pgm")
LARGEST = 64_000_000  # pixels of an image: more is a slip, or meant to fill the memory
HELD_OUT = 10  # one image in so many
CHUNK = 256  # images read at a time
FORMAT = 1  # of the cache: what another version wrote is not looked at


class File(NamedTuple):
    name: str  # below the root, with slashes
    size: int
    changed: int  # when, in ns

    @property
    def top(self) -> str:
        """The folder in the root that it lies in; empty: the root itself."""
        return self.name.partition("/")[0] if "/" in self.name else ""

    @property
    def order(self) -> int:
        digest = hashlib.blake2b(os.fsencode(self.name), digest_size=8).digest()
        return int.from_bytes(digest, "little")


class Converted(NamedTuple):
    images: Tensor  # uint8 (N, C, H, W), mapped: training images, then those held out
    train: int  # number of the former
    levels: Tensor  # int64 (256,), of the former
    broken: dict[str, str]  # files left out, and why


@dataclass(kw_only=True, eq=False)
class Folder(Images):
    """The images below `root`, (channels, size, size), or of their own one size (size=null).

    The largest square in the middle is scaled to `size` (Lanczos, antialiased); one of that size
    keeps its pixels. Turned as the camera says (EXIF); transparent parts are white; 16 bits
    become the nearest of 256 levels; of an animation the first picture. Hidden files are left
    out. The folders in root that hold images are the classes, in the order of their names. One
    image in 10, by the hash of its name, is held out.

    The array lies in `files.data_root()`/folder, under a hash of the names, sizes and times of
    the files; deleted, it is made again. The folder is looked at when something is asked of the
    data, not before. Raises FmdiffError for what cannot be read or used.
    """

    root: str | None
    size: int | None
    channels: int
    skip_broken: bool

    name: ClassVar[str] = "folder"
    undecided: ClassVar[bool] = True

    def __post_init__(self) -> None:
        if self.root is None:
            raise FmdiffError("data=folder needs data.root=PATH, a folder of images")
        self.require("root", str, "a folder of images", lambda v: v != "")
        if self.size is not None:
            self.require("size", int, "an integer >= 1, or null", lambda v: v >= 1)
        self.require("channels", int, "1 or 3", lambda v: v in (1, 3))
        self.require("skip_broken", bool, "true or false")
        super().__post_init__()

    def check_labels(self) -> None:
        """Later, in `listing`: sampling from a checkpoint does without the folder."""

    @property
    def path(self) -> Path:
        return Path(str(self.root)).expanduser().absolute()

    @cached_property
    def found(self) -> list[File]:
        """All images below the root, in the order of their names."""
        if not self.path.is_dir():
            what = "is a file" if self.path.exists() else "does not exist"
            raise FmdiffError(f"data.root={self.path} {what}: give a folder of images")
        found = sorted(walk(self.path))
        if not found:
            raise FmdiffError(f"data.root={self.path} holds no images ({', '.join(SUFFIXES)})")
        return found

    @cached_property
    def names(self) -> list[str]:
        """Of the classes; none if an image lies beside the folders."""
        tops = {file.top for file in self.found}
        return [] if "" in tops else sorted(tops)

    @cached_property  # type: ignore[misc]
    def labels(self) -> int:  # type: ignore[override]
        return max(1, len(self.names))

    @property
    def classes(self) -> int:
        conditional = self.labels > 1 if self.conditional is None else self.conditional
        return self.labels if conditional else 0

    @cached_property
    def listing(self) -> tuple[list[File], int]:
        """The images of the labels kept, those held out last, and how many are not; shuffled, so
        that the first n are of all classes."""
        if self.conditional and self.labels == 1:
            raise FmdiffError(
                f"data.conditional=true: data.root={self.path} must hold at least two folders of "
                "images, one a class, and no image beside them; set data.conditional=false"
            )
        super().check_labels()
        wanted = {self.names[k] for k in self.label_numbers.tolist()} if self.names else {""}
        kept = [file for file in self.found if not self.names or file.top in wanted]
        kept.sort(key=lambda file: file.order)
        out = {file for file in kept if file.order % HELD_OUT == 0}
        if not 0 < len(out) < len(kept):
            out = {kept[0]}
        return sorted(kept, key=lambda file: file in out), len(kept) - len(out)

    @cached_property  # type: ignore[misc]
    def shape(self) -> tuple[int, ...]:  # type: ignore[override]
        if self.size is None:
            return tuple(self.converted.images.shape[1:])
        return (self.channels, self.size, self.size)

    def prepare(self) -> None:
        _ = self.converted

    def read(self, train: bool) -> tuple[Tensor, Tensor]:
        whole, (listed, _) = self.converted, self.listing
        label = {name: k for k, name in enumerate(self.names)}
        labels = torch.tensor([label.get(f.top, 0) for f in listed if f.name not in whole.broken])
        split = slice(None, whole.train) if train else slice(whole.train, None)
        return whole.images[split], labels[split]

    def select(self, images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        return images, labels  # the listing has them alone

    @cached_property
    def levels(self) -> Tensor:
        return self.converted.levels

    @cached_property
    def converted(self) -> Converted:
        """The cache's array, made if it is not there; in the words of the log, which."""
        where = self.cache()
        whole, what = opened(where), "found in the cache"
        if whole is None:
            where.parent.mkdir(parents=True, exist_ok=True)
            try:
                self._convert(where)
            except OSError as error:
                raise FmdiffError(
                    f"data=folder: {where.parent} cannot be written ({error.strerror or error}); "
                    "make room there, or point FMDIFF_DATA to another folder"
                ) from error
            whole, what = opened(where), "written to the cache"
        if whole is None:
            raise FmdiffError(f"data=folder: {where} cannot be read back; is the disk whole?")
        self._check(whole)
        classes = f", {self.labels} classes ({_some(self.names)})" if self.classes else ""
        n, held = len(whole.images), len(whole.images) - whole.train
        log.info("data=folder: %d images, %d held out%s; %s, %s", n, held, classes, what, where)
        return whole

    def _check(self, whole: Converted) -> None:
        n, broken = len(whole.images), [f"{k} ({why})" for k, why in whole.broken.items()]
        said = f"{len(broken)} of its {n + len(broken)} images cannot be read: {_some(broken, 3)}"
        if broken and not self.skip_broken:
            raise FmdiffError(
                f"data.root={self.path}: {said}; repair or remove them, or leave them out by "
                "data.skip_broken=true"
            )
        if not 0 < whole.train < n:
            raise FmdiffError(
                f"data.root={self.path} has {whole.train} images to train on and "
                f"{n - whole.train} to hold out, and one of each is needed"
                + (f": {said}" if broken else "")
            )
        if broken:
            log.warning("data.root=%s: %s; left out", self.path, said)
        if self.batch_size > whole.train:
            raise FmdiffError(
                f"data.batch_size={self.batch_size} is more than the {whole.train} training "
                f"images of data.root={self.path} ({n - whole.train} are held out); choose "
                f"data.batch_size <= {whole.train}"
            )

    def cache(self) -> Path:
        """The folder of the array: never below the root."""
        root = self.path.resolve()
        text = json.dumps([FORMAT, str(root), self.size, self.channels, self.listing])
        digest = hashlib.blake2b(text.encode(), digest_size=8).hexdigest()
        place = files.data_root().absolute()
        if root in (place.resolve(), *place.resolve().parents):
            raise FmdiffError(
                f"data.root={self.path} holds {place}, where fmdiff would keep the converted "
                "images: point FMDIFF_DATA to a folder elsewhere"
            )
        return place / "folder" / f"{root.name}-{digest}"

    def _convert(self, where: Path) -> None:
        """Write images.npy and about.json, so that `where` is absent or whole at every instant."""
        listed, train = self.listing
        broken: dict[str, str] = {}
        levels, good, shape = np.zeros(256, np.int64), [0, 0], None
        temporary = Path(tempfile.mkdtemp(prefix=".new-", dir=where.parent))
        try:
            with (
                (temporary / "images.npy").open("wb") as file,
                warnings.catch_warnings(),
                ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool,
                Bar(len(listed), "image") as bar,
            ):
                warnings.simplefilter("ignore")  # of Pillow, about what is refused below
                for start in range(0, len(listed), CHUNK):
                    part = listed[start : start + CHUNK]
                    for i, pixels in enumerate(pool.map(self._pixels, part), start):
                        name = listed[i].name
                        if isinstance(pixels, str):
                            broken[name] = pixels
                            continue
                        if shape is None:
                            shape, first = pixels.shape, name
                            head(file, len(listed), shape)
                        if pixels.shape != shape:
                            raise FmdiffError(
                                f"data.size=null needs images of one size, and {first} has "
                                f"{shape[2]}x{shape[1]} pixels, {name} {pixels.shape[2]}x"
                                f"{pixels.shape[1]}; choose data.size=64, say"
                            )
                        file.write(pixels.tobytes())
                        good[i >= train] += 1
                        if i < train:
                            levels += np.bincount(pixels.ravel(), minlength=256)
                    bar(len(part))
                if shape is None:
                    raise FmdiffError(
                        f"data.root={self.path}: none of its {len(listed)} images can be read: "
                        + _some([f"{name} ({why})" for name, why in broken.items()], 3)
                    )
                file.seek(0)
                head(file, sum(good), shape)
                file.flush()
                os.fsync(file.fileno())
            about = {"train": good[0], "levels": levels.tolist(), "broken": broken}
            (temporary / "about.json").write_text(json.dumps(about))
            if where.is_dir():
                shutil.rmtree(where)  # damaged, or another process was faster
            temporary.replace(where)
        finally:
            shutil.rmtree(temporary, ignore_errors=True)

    def _pixels(self, file: File) -> np.ndarray | str:
        try:
            return pixels_of(self.path / file.name, self.size, self.channels)
        except Exception as error:  # Pillow meets a broken file with many kinds of exception
            return " ".join(f"{type(error).__name__}: {error}".split())[:100]


def walk(root: Path) -> list[File]:
    """The image files below root, hidden ones left out; a folder is entered once, linked or not.

    Raises FmdiffError for a folder that cannot be read.
    """

    def refuse(error: OSError) -> None:
        raise FmdiffError(f"data.root={root}: {error.filename} cannot be read ({error.strerror})")

    found, entered = [], set()
    for folder, inner, names in os.walk(root, onerror=refuse, followlinks=True):
        here = os.stat(folder)
        if (here.st_dev, here.st_ino) in entered:
            inner.clear()
            continue
        entered.add((here.st_dev, here.st_ino))
        inner[:] = sorted(name for name in inner if not name.startswith("."))
        prefix = Path(folder).relative_to(root)
        for name in names:
            if name.lower().endswith(SUFFIXES) and not name.startswith("."):
                try:
                    status = os.stat(os.path.join(folder, name))
                    size, changed = status.st_size, status.st_mtime_ns
                except OSError:  # a link to nothing: it will be called broken
                    size = changed = 0
                found.append(File((prefix / name).as_posix(), size, changed))
    return found


def pixels_of(path: Path, size: int | None, channels: int) -> np.ndarray:
    """The image in a file as uint8 (channels, size, size), or with size=None as large as it is.

    Raises ValueError for more than 64 million pixels, and what Pillow raises.
    """
    from PIL import Image, ImageOps

    with Image.open(path) as file:
        if file.width * file.height > LARGEST:
            raise ValueError(f"{file.width}x{file.height} pixels are more than 64 million")
        image: Image.Image = ImageOps.exif_transpose(file)
        if image.mode.startswith("I"):  # 16 bits
            level = np.asarray(image).astype(np.int64).clip(0, 65535)
            image = Image.fromarray(((level * 255 + 32767) // 65535).astype(np.uint8))
        elif image.mode == "F":
            raise ValueError("its levels are fractions, of an unknown range")
        elif image.has_transparency_data:
            image = image.convert("RGBA")
            image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
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


def head(file: BinaryIO, n: int, shape: tuple[int, ...]) -> None:
    """The header of a .npy of n images; of one length whatever n, for it is written twice."""
    about = {"descr": "|u1", "fortran_order": False, "shape": (n, *shape)}
    np.lib.format.write_array_header_1_0(file, about)


def opened(where: Path) -> Converted | None:
    """The array of a cache folder, mapped; None where there is none that is whole."""
    try:
        about: dict[str, Any] = json.loads((where / "about.json").read_text())
        # "c": the tensor may be written to and the file is not
        images = np.load(where / "images.npy", mmap_mode="c", allow_pickle=False)
        levels = torch.tensor(about["levels"])
        return Converted(torch.from_numpy(images), about["train"], levels, about["broken"])
    except (OSError, ValueError, KeyError):
        return None


def _some(words: list[str], n: int = 10) -> str:
    return ", ".join(words[:n]) + (", ..." if len(words) > n else "")
