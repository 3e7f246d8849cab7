"""Statistics of a reference set in a .npz file.

    mu        (d,) and
    sigma     (d, d), float64: mean and covariance of the features; the keys of pytorch-fid and
              EDM, so that each reads the other's files
    data, split, count, pixels
              name, split and number of images, and `content_hash` of them
    extractor, sha256
              name of the feature extractor and hash of its weights
    features  (count, d) float32, where stored: for KID, precision and recall, neighbours

All but the first two may be absent. Absent entries are not compared. Numbers of any real type are
read, in either order of bytes.
"""

import contextlib
import hashlib
import inspect
import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fmdiff import files
from fmdiff.errors import FmdiffError
from fmdiff.metrics.features import Features

# the entries that describe the reference set
FACTS = ("data", "split", "count", "pixels", "extractor", "sha256")


@dataclass(frozen=True, eq=False)
class Reference:
    """The mean and covariance of the features of a reference set, and its description."""

    mean: Tensor  # (d,) float64
    cov: Tensor  # (d, d) float64
    data: str | None = None
    split: str | None = None
    count: int | None = None
    pixels: str | None = None
    extractor: str | None = None
    sha256: str | None = None
    features: Tensor | None = None  # (count, d) float32

    def facts(self) -> dict[str, Any]:
        """The description of the reference set; missing entries are None."""
        return {name: getattr(self, name) for name in FACTS}


def content_hash(*parts: Tensor) -> str:
    """SHA-256 of the shape and bytes of tensors, images uint8 (N, C, H, W) say, in their order."""
    digest = hashlib.sha256()
    for part in parts:
        digest.update(repr(tuple(part.shape)).encode())
        digest.update(part.cpu().contiguous().numpy().data)
    return digest.hexdigest()


def cached(data: str, split: str, count: int, pixels: str, extractor: Features) -> Path:
    """The file in the cache: ~/.cache/fmdiff/statistics/DATA-SPLIT-COUNT-EXTRACTOR-HASH.npz.

    HASH is made from the pixels' hash and from the extractor's weights, attributes and source, so
    other images and other features have another file. $XDG_CACHE_HOME takes the place of ~/.cache.
    """
    cache = Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser()
    about = json.dumps(vars(extractor), skipkeys=True, default=lambda value: type(value).__name__)
    with contextlib.suppress(TypeError, OSError):  # a class without a source file
        about += inspect.getsource(type(extractor))
    digest = hashlib.sha256(f"{pixels}/{extractor.sha256}/{about}".encode()).hexdigest()[:16]
    name = f"{data}-{split}-{count}-{extractor.name}-{digest}.npz"
    return cache / "fmdiff" / "statistics" / name


def save(path: str | Path, reference: Reference) -> None:
    """Write a file of statistics, whole or not at all. Makes the folders above it.

    If this raises OSError, the old file is intact.
    """
    path = Path(path)
    arrays = {"mu": reference.mean.numpy(force=True), "sigma": reference.cov.numpy(force=True)}
    arrays |= {k: np.array(v) for k, v in reference.facts().items() if v is not None}
    if reference.features is not None:
        arrays["features"] = reference.features.numpy(force=True)
    path.parent.mkdir(parents=True, exist_ok=True)
    files.write_npz(path, arrays)


def load(
    path: str | Path, extractor: Features | None = None, features: bool = False, **facts: Any
) -> Reference:
    """Read the statistics in a file, for features of `extractor`, without running code in it.

    features: read them too, and refuse a file without them. facts: values of data, split, count
    and pixels. The file must not contradict these, nor the extractor's name and sha256.
    Raises FmdiffError for a file that is missing, damaged, pickled, of a wrong shape or of
    something else.
    """
    path = Path(path)
    arrays = files.read_npz(path, {"mu", "sigma", *FACTS} | ({"features"} if features else set()))
    # another program's arrays may have the names of our facts
    own = {k: arrays[k].item() for k in FACTS if k in arrays and arrays[k].ndim == 0}
    own = {k: v for k, v in own.items() if type(v) is (int if k == "count" else str)}
    for name, shape in (("mu", "(d,)"), ("sigma", "(d, d)")):
        if name not in arrays:
            raise FmdiffError(f"{path} holds no statistics: it lacks {name} {shape}")
    mean, cov = (_numbers(path, name, arrays[name]) for name in ("mu", "sigma"))
    d = mean.shape[-1] if mean.ndim else 0
    if mean.shape != (d,) or cov.shape != (d, d) or not d:
        raise FmdiffError(
            f"{path} holds mu {mean.shape} and sigma {cov.shape}, not (d,) and (d, d)"
        )
    _check_covariance(path, cov, arrays["sigma"].dtype)
    rows = arrays.get("features")
    if features:
        if rows is None:
            raise FmdiffError(f"{path} holds no features, only their mean and covariance")
        count = own.get("count", len(rows) if rows.ndim else 0)
        if rows.shape != (count, d):
            raise FmdiffError(f"{path} holds features {rows.shape}, not ({count}, {d})")
        rows = _numbers(path, "features", rows, np.float32)
    if extractor is not None:
        if d != extractor.dimension:
            raise FmdiffError(
                f"{path} holds statistics of {d} dimensions, and {extractor.name} gives "
                f"{extractor.dimension}"
            )
        facts |= {"extractor": extractor.name, "sha256": extractor.sha256}
    for name, value in facts.items():
        if name in own and own[name] != value:
            raise FmdiffError(
                f"{path} holds statistics of {name}={own[name]}, and {name}={value} is wanted"
            )
    return Reference(
        torch.from_numpy(mean),
        torch.from_numpy(cov),
        **own,
        features=None if rows is None else torch.from_numpy(rows),
    )


def _numbers(path: Path, name: str, array: np.ndarray, dtype: Any = np.float64) -> np.ndarray:
    """An array of any real type as floats of this machine."""
    with np.errstate(over="ignore"):  # a long double may be too large
        real = array.astype(dtype) if array.dtype.kind in "fiu" else np.array(np.nan)
    if not np.isfinite(real).all():
        raise FmdiffError(f"{path} holds a {name} that is not all finite real numbers")
    return real


def _check_covariance(path: Path, cov: np.ndarray, dtype: np.dtype) -> None:
    """Raises FmdiffError unless a matrix is symmetric and has no negative eigenvalue.

    Both hold up to the rounding of float32, or of its own dtype if that is coarser.
    """
    size = np.abs(cov).max()
    coarse = float(np.finfo(dtype).eps) if dtype.kind == "f" else 0.0
    if not np.allclose(cov, cov.T, atol=max(1e-6, coarse) * size):
        raise FmdiffError(f"{path} holds a sigma that is no covariance: it is not symmetric")
    shift = max(1e-5, coarse * len(cov) ** 0.5) * size or 1.0
    _, failed = torch.linalg.cholesky_ex(torch.from_numpy(cov + shift * np.eye(len(cov))))
    if failed:
        low = np.linalg.eigvalsh(cov)[0]
        raise FmdiffError(
            f"{path} holds a sigma that is no covariance: it has the negative eigenvalue {low:.3g}"
        )
