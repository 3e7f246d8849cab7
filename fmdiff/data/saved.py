"""Reads samples from files, written by `fmdiff sample` or by another program."""

import warnings
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from fmdiff import files
from fmdiff.data import decode
from fmdiff.errors import FmdiffError

LARGEST = 1e150  # float64 can square and add such numbers


def read(path: Path, option: str, channels: int = 1) -> tuple[Tensor, Tensor | None]:
    """Read images uint8 (N, H, W, C) or numbers, and labels int64 or None.

    Numbers are points (N, d), series (N, C, L) or arrays (N, C, H, W). They are float64 if the
    file's are wider than float32, and float32 otherwise.

    A .npz holds them as `arr_0` (and `labels`), and a folder of `fmdiff sample` is read by its
    samples.npz. Another folder holds image files of one size, in itself
    or in its folders, read in the order of their names. They are grey, C = 1, if all files are
    grey and channels = 1.
    Raises FmdiffError, naming `option`, for anything else.
    """
    if (path / "samples.npz").is_file():
        path = path / "samples.npz"
    if path.is_dir():
        return _folder(path, option, channels), None
    arrays = files.read_npz(path, ("arr_0", "labels"), f"{option}=")
    if "arr_0" not in arrays:
        names = ", ".join(files.npz_names(path)) or "nothing"
        raise FmdiffError(f"{option}={path} holds {names}, and samples are arr_0")
    x, y = arrays["arr_0"], arrays.get("labels")
    images = x.dtype == np.uint8 and x.ndim == 4 and x.shape[-1] in (1, 3)
    if not (images or (x.dtype.kind == "f" and 2 <= x.ndim <= 4)) or not x.size:
        raise FmdiffError(
            f"{option}={path} holds arr_0 of {x.dtype} {x.shape}: images are uint8 (N, H, W, 1 or "
            "3), points float (N, d), series float (N, C, L), other arrays float (N, C, H, W)"
        )
    if y is not None and (y.shape != (len(x),) or y.dtype.kind not in "iu"):
        raise FmdiffError(f"{option}={path} holds labels of {y.dtype} {y.shape}, not ({len(x)},)")
    if y is not None and y.min() < 0:
        raise FmdiffError(
            f"{option}={path} holds the label {y.min()} in row {y.argmin()} (the first is row 0): "
            "labels are 0 or above"
        )
    labels = None if y is None else torch.from_numpy(y.astype(np.int64))
    return torch.from_numpy(x) if images else _numbers(x, f"{option}={path}"), labels


def partners(path: Path, x: Tensor, option: str) -> tuple[Tensor, Tensor | None] | None:
    """The real images that images x of a file stand for, and which pixels of these were given.

    Both are like x, uint8 and bool (N, H, W, C). They are the arrays `real` and `cond_known` of
    `fmdiff sample`; None if the file has no `real`. Raises FmdiffError for other shapes.
    """
    path = path / "samples.npz" if path.is_dir() else path
    if "real" not in files.npz_names(path):
        return None
    arrays = files.read_npz(path, ("real", "cond_known"), f"{option}=")
    real, known = arrays["real"], arrays.get("cond_known")
    if real.dtype != np.uint8 or real.shape != tuple(x.shape):
        raise FmdiffError(
            f"{option}={path} holds real of {real.dtype} {real.shape}, and images of "
            f"{tuple(x.shape)} stand for as many real ones"
        )
    if known is None or known.dtype.kind != "f" or known.ndim != 4:
        return torch.from_numpy(real), None
    there = torch.from_numpy(~np.isnan(known)).permute(0, 2, 3, 1)
    return torch.from_numpy(real), there if there.shape == x.shape else None


def shape_of(x: Tensor) -> tuple[tuple[int, ...], str]:
    """The shape of one of the samples that `read` returns, channels first, and what they are."""
    if x.dtype == torch.uint8:
        *size, channels = x.shape[1:]
        return (channels, *size), "images"
    return tuple(x.shape[1:]), {2: "points", 3: "series", 4: "arrays"}[x.ndim]


def _numbers(x: np.ndarray, name: str) -> Tensor:
    """x (N, ...). Raises FmdiffError for a number that is not finite or cannot be squared."""
    flat = x.reshape(len(x), -1)
    wrong = ~(np.abs(flat.astype(np.float64)) <= LARGEST)
    if wrong.any():
        row, column = np.argwhere(wrong)[0]
        count = wrong.any(1).sum()
        raise FmdiffError(
            f"{name} holds {flat[row, column]} in row {row} (the first is row 0): points are "
            f"finite numbers up to {LARGEST:g}, and {count} of its {len(x)} rows are not"
        )
    return torch.from_numpy(x.astype(np.float64 if x.dtype.itemsize > 4 else np.float32))


def _folder(path: Path, option: str, channels: int) -> Tensor:
    """The pictures in a folder and in the folders below it."""
    pictures = decode.walk(path, option)
    if not pictures:
        raise FmdiffError(f"{option}={path} holds no images ({', '.join(decode.SUFFIXES)})")
    images: list[np.ndarray] = []
    for file in pictures:
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # Pillow warns about what is refused below
                image = decode.pixels_of(path / file.name)
        except Exception as error:  # Pillow meets a broken file with many kinds of exception
            raise FmdiffError(
                f"{path / file.name} cannot be read as an image ({decode.reason(error)})"
            ) from error
        if images and image.shape[1:] != images[0].shape[1:]:
            raise FmdiffError(
                f"{path / file.name} has {image.shape[2]}x{image.shape[1]} pixels, and "
                f"{pictures[0].name} {images[0].shape[2]}x{images[0].shape[1]}: one size is needed"
            )
        images.append(image)
    channels = max(channels, *(len(image) for image in images))
    shape = (channels, *images[0].shape[1:])
    same = np.stack([np.broadcast_to(image, shape) for image in images])
    return torch.from_numpy(same.transpose(0, 2, 3, 1).copy())
