"""Reads an autoencoder in the folder format of the diffusers library, without running code."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from torch import Tensor

from fmdiff import files
from fmdiff.errors import FmdiffError

PREFIX = "diffusers:"  # of what data.autoencoder names
CONFIG, WEIGHTS = "config.json", "diffusion_pytorch_model.safetensors"
PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".pkl")
CLASS = "AutoencoderKL"


class Stored(NamedTuple):
    """The content of a folder: the config, which is data, and the weights by name."""

    config: dict[str, Any]
    weights: Mapping[str, Tensor]


def read(folder: Path, option: str) -> Stored:
    """The config and the weights of a folder. option: the setting that names it, for messages.

    Raises FmdiffError for a folder without these files, with another class than AutoencoderKL, and
    for weights that are a pickle, which could run code.
    """
    from safetensors.torch import load

    where = f"{option}={PREFIX}{folder}"
    if not folder.is_dir():
        raise FmdiffError(f"{where} is no folder: give one with {CONFIG} and {WEIGHTS}")
    try:
        config = json.loads(files.read_text(folder / CONFIG, folder))
    except (OSError, ValueError, RecursionError) as error:
        raise FmdiffError(f"{where}: {CONFIG} cannot be read ({_reason(error)})") from error
    kind = config.get("_class_name") if isinstance(config, dict) else None
    if kind != CLASS:
        raise FmdiffError(f"{where}: {CONFIG} is of {kind!r:.80}, and only {CLASS} is taken")
    file = folder / WEIGHTS
    if not file.is_file():
        pickles = sorted(p.name for p in folder.iterdir() if p.suffix in PICKLES)
        raise FmdiffError(
            f"{where} lacks {WEIGHTS}"
            + (
                f", and {pickles[0]} is a pickle, which can run code: save it anew with "
                "save_pretrained(FOLDER, safe_serialization=True)"
                if pickles
                else ""
            )
        )
    try:
        return Stored(config, load(files.read_bytes(file, folder)))
    except Exception as error:  # safetensors has an exception of its own for damage
        raise FmdiffError(f"{where}: {WEIGHTS} cannot be read ({_reason(error)})") from error


def _reason(error: Exception) -> str:
    if isinstance(error, OSError):
        return error.strerror or str(error)
    return f"{type(error).__name__}: {error}"[:200]
