"""The zoo: small models that fmdiff trained itself, named `zoo:NAME` where a checkpoint may stand.

Their files lie in the package, in the form of `fmdiff.runs.safetensors` and in half precision.
`scripts/zoo.py` rebuilds them. zoo.json describes each by its name:

    what        in a few words
    sha256      of the file
    bytes       its size
    parameters  numbers in the network
    step        optimiser steps done
    weights     the name of the average
    figures     [{metric, value, interval, unit, n, settings, float32, command}]; float32 is the
                value of the weights before they were rounded to half precision, or null, and
                interval is empty where there are too few samples for one
    recipe      the command that trains it
    seconds     the wall time of the training, on `hardware`
    commit      of the fmdiff that trained it
    sample      a command that samples it well
    steps       of fmdiff sample, if neither these nor a solver are chosen; null: as for any model
"""

import hashlib
import json
from pathlib import Path
from typing import Any

from fmdiff.errors import FmdiffError, nearest

FOLDER = Path(__file__).parents[1] / "zoo"
PREFIX = "zoo:"


def models() -> dict[str, dict[str, Any]]:
    """What zoo.json says of each model, by its name."""
    content: dict[str, dict[str, Any]] = json.loads((FOLDER / "zoo.json").read_text("utf-8"))
    return content


def model(name: str, option: str) -> dict[str, Any]:
    """What zoo.json says of one model. Raises FmdiffError, naming option, for an unknown name."""
    known = models()
    if name not in known:
        raise FmdiffError(f"{option} is no model of the zoo; {nearest(name, known)}")
    return known[name]


def steps(spec: str) -> int | None:
    """The steps that `fmdiff sample` takes by default for ckpt=spec; None: as for any model."""
    if not spec.startswith(PREFIX):
        return None
    number: int | None = model(spec.removeprefix(PREFIX), f"ckpt={spec}")["steps"]
    return number


def find(spec: str, option: str = "ckpt") -> Path:
    """The file of zoo:NAME, checked against zoo.json.

    Raises FmdiffError for an unknown name, and for a file that is gone or not the one described.
    """
    name = spec.removeprefix(PREFIX)
    about = model(name, f"{option}={spec}")
    path = FOLDER / f"{name}.safetensors"
    try:
        sha256 = hashlib.sha256(path.read_bytes()).hexdigest()
    except OSError as error:
        raise FmdiffError(f"{option}={spec}: {path} cannot be read: {error.strerror}") from error
    if sha256 != about["sha256"]:
        raise FmdiffError(
            f"{option}={spec}: {path} is not the file that zoo.json describes, its SHA-256 is "
            f"{sha256[:12]} and not {about['sha256'][:12]}; install fmdiff anew"
        )
    return path


def spelling(path: Path) -> str:
    """How a command line names a checkpoint file: zoo:NAME, or its path outside the zoo."""
    in_zoo = path.resolve().parent == FOLDER.resolve()
    return f"{PREFIX}{path.stem}" if in_zoo else str(path)
