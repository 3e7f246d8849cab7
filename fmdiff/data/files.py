"""Files of the downloaded data sets: where they are and whether they are whole; no torch."""

import hashlib
import os
from collections.abc import Iterable
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from fmdiff.errors import FmdiffError


@dataclass(frozen=True)
class Source:
    """What is downloaded (`archives`: md5 by name) and read (`files`: size and md5 by name)."""

    url: str
    archive_folder: str
    archives: dict[str, str]
    folder: str
    files: dict[str, tuple[int, str]]


SOURCES = {
    "mnist": Source(
        url="https://ossci-datasets.s3.amazonaws.com/mnist/",
        archive_folder="MNIST/raw",
        archives={
            "train-images-idx3-ubyte.gz": "f68b3c2dcbeaaa9fbdd348bbdeb94873",
            "train-labels-idx1-ubyte.gz": "d53e105ee54ea40749a09fcbcd1e9432",
            "t10k-images-idx3-ubyte.gz": "9fb629c4189551a2d022fa330f9573f3",
            "t10k-labels-idx1-ubyte.gz": "ec29112dd5afa0611ce80d1b7f02629c",
        },
        folder="MNIST/raw",
        files={
            "train-images-idx3-ubyte": (47_040_016, "6bbc9ace898e44ae57da46a324031adb"),
            "train-labels-idx1-ubyte": (60_008, "a25bea736e30d166cdddb491f175f624"),
            "t10k-images-idx3-ubyte": (7_840_016, "2646ac647ad5339dbf082846283269ea"),
            "t10k-labels-idx1-ubyte": (10_008, "27ae3e4e09519cfbb04c329615203637"),
        },
    ),
    "fashion_mnist": Source(
        url="http://fashion-mnist.s3-website.eu-central-1.amazonaws.com/",
        archive_folder="FashionMNIST/raw",
        archives={
            "train-images-idx3-ubyte.gz": "8d4fb7e6c68d591d4c3dfef9ec88bf0d",
            "train-labels-idx1-ubyte.gz": "25c81989df183df01b3e8a0aad5dffbe",
            "t10k-images-idx3-ubyte.gz": "bef4ecab320f06d8554ea6380940ec79",
            "t10k-labels-idx1-ubyte.gz": "bb300cfdad3c16e7a12a480ee83cd310",
        },
        folder="FashionMNIST/raw",
        files={
            "train-images-idx3-ubyte": (47_040_016, "f4a8712d7a061bf5bd6d2ca38dc4d50a"),
            "train-labels-idx1-ubyte": (60_008, "9018921c3c673c538a1fc5bad174d6f9"),
            "t10k-images-idx3-ubyte": (7_840_016, "8181f5470baa50b63fa0f6fddb340f0a"),
            "t10k-labels-idx1-ubyte": (10_008, "15d484375f8d13e6eb1aabb0c3f46965"),
        },
    ),
    "cifar10": Source(
        url="https://www.cs.toronto.edu/~kriz/",
        archive_folder=".",
        archives={"cifar-10-python.tar.gz": "c58f30108f718f92721af3b95e74349a"},
        folder="cifar-10-batches-py",
        files={
            "data_batch_1": (31_035_704, "c99cafc152244af753f735de768cd75f"),
            "data_batch_2": (31_035_320, "d4bba439e000b95fd0a9bffe97cbabec"),
            "data_batch_3": (31_035_999, "54ebc095f3ab1f0389bbae665268c751"),
            "data_batch_4": (31_035_696, "634d18415352ddfa80567beed471001a"),
            "data_batch_5": (31_035_623, "482c414d41f54cd18b22e5b47cb7c3cb"),
            "test_batch": (31_035_526, "40351d587109b95175f43aff81a1287e"),
            "batches.meta": (158, "5ff9c542aee3614f3951f8cda6e48888"),
        },
    ),
}


def data_root(root: str | None = None) -> Path:
    """Folder of the downloaded data: `root`, else $FMDIFF_DATA, else the user's cache folder."""
    cache = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    return Path(root or os.environ.get("FMDIFF_DATA") or Path(cache, "fmdiff")).expanduser()


def _present(folder: Path, names: Iterable[str]) -> bool:
    return all((folder / name).is_file() for name in names)


def has_files(name: str, where: Path) -> bool:
    """Whether every file that is read exists under `where` (a look at names only)."""
    return _present(where / SOURCES[name].folder, SOURCES[name].files)


def available(name: str, root: str | None = None) -> bool:
    """Whether data set `name` can be used without a network: its files or archives are there."""
    source, where = SOURCES[name], data_root(root)
    return has_files(name, where) or _present(where / source.archive_folder, source.archives)


def _md5(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, lambda: hashlib.md5(usedforsecurity=False)).hexdigest()


@lru_cache
def check(name: str, where: Path) -> None:
    """Compare every file of a data set under `where` with its known size and md5 sum.

    Takes 0.1 to 0.4 s, once per process. Raises FmdiffError naming the first file that is not
    the published one.
    """
    for file, (size, md5) in SOURCES[name].files.items():
        path = where / SOURCES[name].folder / file
        actual_size, actual_md5 = path.stat().st_size, _md5(path)
        if (actual_size, actual_md5) != (size, md5):
            raise FmdiffError(
                f"data={name}: {path} is damaged (expected {size:,} bytes with md5 {md5}, found "
                f"{actual_size:,} bytes with md5 {actual_md5}); delete it and it is fetched again"
            )


def unavailable(name: str, where: Path, reason: object) -> FmdiffError:
    """The error for files that are neither there nor downloadable: what to put where."""
    source = SOURCES[name]
    folder = where / source.archive_folder
    missing = ", ".join(
        f"{file} (md5 {md5}{_state(folder / file, md5)})" for file, md5 in source.archives.items()
    )
    return FmdiffError(
        f"data={name}: {where / source.folder} lacks some of {', '.join(source.files)}, and the "
        f"download failed ({' '.join(str(reason).split())}); put {missing} from {source.url} into "
        f"{folder}, or point data.root or FMDIFF_DATA to a folder that has {source.folder}, or "
        "choose data=digits, which needs no download"
    )


def _state(archive: Path, md5: str) -> str:
    if not archive.is_file():
        return ""
    return ", already there" if _md5(archive) == md5 else ", there but damaged"


def remove_empty_folders(name: str, where: Path) -> None:
    """Undo the folders that a failed download leaves behind."""
    folder = where / SOURCES[name].folder
    while folder != where and folder.is_dir() and not any(folder.iterdir()):
        folder.rmdir()
        folder = folder.parent
