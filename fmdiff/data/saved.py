"""Samples that lie in files: what `fmdiff sample` wrote, or another program."""

from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from fmdiff import files
from fmdiff.errors import FmdiffError

LARGEST = 4096  # pixels a side
IMAGES = (".png", ".jpg", ".jpeg", ".webp", ".bmp")


def read(path: Path, option: str) -> tuple[Tensor, Tensor | None]:
    """Samples, images uint8 (N, H, W, C) or points float32 (N, d), and labels int64 or None.

    A .npz holds them as `arr_0` (and `labels`), a folder as image files of one size, in the order
    of their names. Raises FmdiffError, naming `option`, for all else.
    """
    if path.is_dir():
        return _folder(path, option), None
    arrays = files.read_npz(path, ("arr_0", "labels"), f"{option}=")
    if "arr_0" not in arrays:
        held = ", ".join(files.npz_names(path)) or "nothing"
        raise FmdiffError(f"{option}={path} holds {held}, and samples are arr_0")
    x, y = arrays["arr_0"], arrays.get("labels")
    images = x.dtype == np.uint8 and x.ndim == 4 and x.shape[-1] in (1, 3)
    if not (images or (x.dtype.kind == "f" and x.ndim == 2)) or not len(x):
        raise FmdiffError(
            f"{option}={path} holds arr_0 of {x.dtype} {x.shape}: images are uint8 (N, H, W, 1 or "
            "3), points float (N, d)"
        )
    if y is not None and (y.shape != (len(x),) or y.dtype.kind not in "iu"):
        raise FmdiffError(f"{option}={path} holds labels of {y.dtype} {y.shape}, not ({len(x)},)")
    labels = None if y is None else torch.from_numpy(y.astype(np.int64))
    return torch.from_numpy(x if images else x.astype(np.float32)), labels


def _folder(path: Path, option: str) -> Tensor:
    files = sorted(p for p in path.iterdir() if p.suffix.lower() in IMAGES)
    if not files:
        raise FmdiffError(f"{option}={path} holds no images ({', '.join(IMAGES)})")
    pixels: list[np.ndarray] = []
    for file in files:
        try:
            with Image.open(file) as image:
                if max(image.size) > LARGEST:
                    raise FmdiffError(f"{file} is larger than {LARGEST} pixels a side")
                grey = image.mode in ("1", "L", "I", "I;16")
                array = np.asarray(image.convert("L" if grey else "RGB"))
        except FmdiffError:
            raise
        except Exception as error:  # Pillow meets a broken file with many kinds of exception
            raise FmdiffError(
                f"{file} cannot be read as an image ({type(error).__name__})"
            ) from error
        array = array[..., None] if grey else array
        if pixels and array.shape != pixels[0].shape:
            raise FmdiffError(
                f"{file} is {array.shape}, and {files[0].name} is {pixels[0].shape}: one size and "
                "colour is needed"
            )
        pixels.append(array)
    return torch.from_numpy(np.stack(pixels))
