"""Weights as a .safetensors file, which any program can read and `ckpt=` accepts.

The metadata are JSON under the one key `fmdiff`:

    version    1
    step       optimiser steps done
    weights    the name of the average, or raw
    spec       as in a checkpoint, everything needed to rebuild the field
    sha256     of all this and of every tensor's SHA-256 (`content.digest`), see `_sha256`

The tensors of what decodes the samples stand beside the weights, under names with `codec:`.
"""

import hashlib
import json
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fmdiff import files
from fmdiff.errors import FmdiffError
from fmdiff.runs.content import FORMAT, Checkpoint, Damaged, digest

SUFFIX, VERSION = ".safetensors", 1
CODEC = "codec:"  # prefix of the tensors of what decodes the samples


def write(
    path: Path,
    checkpoint: Checkpoint,
    name: str,
    state: dict[str, Tensor],
    overwrite: bool,
    half: bool = False,
) -> None:
    """Write state, the weights of that name of a checkpoint, with the checkpoint's spec.

    half: round floating point to float16, half the size. At every instant path is the old file or
    the whole new one. Raises FmdiffError for a path that cannot be written, has another extension,
    or exists and must not be overwritten, and for a weight that float16 does not reach.
    """
    from safetensors.torch import save

    if path.suffix != SUFFIX:
        raise FmdiffError(f"export={path} must end in {SUFFIX}")
    if path.exists() and not overwrite:
        raise FmdiffError(f"export={path} exists: choose another name or say overwrite=true")
    # the format has no shared tensors, so they are stored twice
    tensors = {key: value.detach().cpu().contiguous().clone() for key, value in state.items()}
    if half:
        tensors = {key: _half(key, value) for key, value in tensors.items()}
    codec = checkpoint.codec or {}
    tensors |= {CODEC + key: value.cpu().contiguous().clone() for key, value in codec.items()}
    about = {"version": VERSION, "step": checkpoint.step, "weights": name}
    about["spec"] = checkpoint.spec
    about["sha256"] = _sha256(about, tensors)
    data = save(tensors, {FORMAT: json.dumps(about)})  # one key, as the order of several varies
    try:
        with files.whole(path) as file:
            file.write(data)
    except OSError as error:
        raise FmdiffError(f"export={path} cannot be written: {error.strerror}") from error


def read(path: Path, map_location: str | torch.device = "cpu") -> dict[str, Any]:
    """Read an exported file as a checkpoint's content without `training`, float16 as float32.

    Raises FmdiffError for a file that is missing, damaged (Damaged), of another program or of a
    newer format.
    """
    from safetensors.torch import load

    try:
        data = files.read_bytes(path)
        size = int.from_bytes(data[:8], "little")
        header = json.loads(data[8 : 8 + size]) if size <= len(data) - 8 else {}
        tensors = load(data)
    except OSError as error:
        raise FmdiffError(f"checkpoint {path} cannot be opened: {error.strerror}") from error
    except MemoryError:
        raise
    except Exception as error:  # damage raises many kinds of exception
        raise Damaged(path, f"it is no {SUFFIX} file ({type(error).__name__})") from error
    metadata = (header.get("__metadata__") or {}).get(FORMAT)
    if metadata is None:
        some = ", ".join(list(tensors)[:4]) or "nothing"
        raise FmdiffError(f"{path} was not exported by fmdiff (it holds {some})")
    try:
        about: dict[str, Any] = json.loads(metadata)
        version, sha256, name = about["version"], about.pop("sha256"), str(about["weights"])
        right = _sha256(about, tensors) == sha256
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise Damaged(path, "its metadata cannot be read") from error
    if not right:
        raise Damaged(path, "it does not match its checksum")
    if version != VERSION:
        raise FmdiffError(f"{path} was written by a newer fmdiff (version {version})")
    weights = {
        key: (value.float() if value.dtype == torch.float16 else value).to(map_location)
        for key, value in tensors.items()
    }
    codec = {key.removeprefix(CODEC): weights.pop(key) for key in tensors if key.startswith(CODEC)}
    content = about | {"format": FORMAT, "weights": {name: weights}}
    return content | {"codec": codec} if codec else content


def _half(key: str, value: Tensor) -> Tensor:
    """A tensor rounded to float16; one of integers as it is."""
    if not value.is_floating_point():
        return value
    rounded = value.half()
    if not torch.equal(rounded.isfinite(), value.isfinite()):
        raise FmdiffError(f"half=true: {key} holds numbers beyond {torch.finfo(torch.half).max:g}")
    return rounded


def _sha256(about: dict[str, Any], tensors: dict[str, Tensor]) -> str:
    """SHA-256 of the JSON, its keys sorted, of about and {name: digest} of the tensors."""
    digests = {key: digest(value) for key, value in tensors.items()}
    return hashlib.sha256(json.dumps([about, digests], sort_keys=True).encode()).hexdigest()
