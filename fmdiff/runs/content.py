"""The format of a checkpoint.

A checkpoint file is `torch.save` of one dict of plain containers and tensors:

    step       int, optimiser steps done
    spec       nested dict, everything needed to rebuild the field: see FORM
    weights    {"raw": state_dict, "0.9999": state_dict of that EMA, ...}
    training   optimizer, loops, config ...; absent in an exported file
    checksums  {dotted path of a tensor: SHA-256 of its dtype, shape and bytes}
    format     "fmdiff"
    version    1
"""

import ctypes
import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from fmdiff.ema import POWER, power
from fmdiff.errors import FmdiffError

FORMAT, VERSION = "fmdiff", 1
# the parts that sampling needs, with their types; a _target_ names a class
FORM: dict[str, Any] = {
    "step": int,
    "weights": dict,
    "spec": {
        "model": dict,
        "path": dict,
        "objective": dict,
        "data": {
            "name": str,
            "shape": list,
            "classes": int,
            "std": (int, float),
            "source": dict,  # settings of the data set
        },
    },
}


class Damaged(FmdiffError):
    """The bytes of a checkpoint differ from those that were written."""

    def __init__(self, path: Path, reason: str) -> None:
        super().__init__(f"checkpoint {path} is damaged: {reason}")


@dataclass(frozen=True, eq=False)
class Checkpoint:
    """The content of a checkpoint. `of` checks its form, and `content` is what is written.

    spec may also hold `source` and `coupling`, which checkpoints of the first versions lack.
    """

    step: int
    spec: dict[str, Any]
    weights: dict[str, dict[str, Tensor]]
    training: dict[str, Any] | None = None  # None if the run cannot be resumed
    version: int = VERSION

    @classmethod
    def of(cls, content: Mapping[str, Any]) -> "Checkpoint":
        """Check the content of a file and make it a checkpoint.

        Others may have written a file with correct checksums. Raises FmdiffError, naming the first
        part that is missing or of another type, and for a snapshot of averages.
        """
        if "spec" not in content:
            raise FmdiffError("this is a snapshot of averages alone: give the run or a checkpoint")
        _check(content, FORM)
        return cls(
            content["step"],
            content["spec"],
            content["weights"],
            content.get("training"),
            content.get("version", VERSION),
        )

    def content(self) -> dict[str, Any]:
        """The dict to write. `checkpoint.write` adds format, version and checksums."""
        content = {"step": self.step, "spec": self.spec, "weights": self.weights}
        return content if self.training is None else content | {"training": self.training}

    def name_of(self, weights: str | float = "ema") -> str:
        """The name of the weights that `weights=` asks for, whether they are stored or not.

        ema: the first average, or raw if there is none. Raises FmdiffError for power:WIDTH if the
        width is not a number.
        """
        if weights == "ema":
            return next((name for name in self.weights if name != "raw"), "raw")
        name = str(weights)
        if not name.startswith(POWER):
            return name
        try:
            return power(float(name.removeprefix(POWER)))  # 0.10 and 0.1 are one name
        except ValueError:
            raise FmdiffError(f"weights={weights}: power:WIDTH takes a number") from None


def _check(content: Mapping[str, Any], form: Mapping[str, Any], parent: str = "") -> None:
    for name, kind in form.items():
        part, key = content.get(name), parent + name
        if not isinstance(part, dict if isinstance(kind, dict) else kind):
            raise FmdiffError(f"this checkpoint is not as fmdiff writes it: {key} is {part!r:.60}")
        if isinstance(kind, dict):
            _check(part, kind, f"{key}.")


def identity(spec: Mapping[str, Any], weights: Mapping[str, Tensor]) -> str:
    """The SHA-256 of a model: of its spec, and of the names and values of its weights."""
    parts = [json.dumps(spec, sort_keys=True, default=str)]
    parts += [f"{name} {digest(weights[name])}" for name in sorted(weights)]
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()


def digest(tensor: Tensor) -> str:
    """The SHA-256 of a tensor's dtype, shape and bytes, in hexadecimal."""
    tensor = tensor.detach().cpu().contiguous()
    digest = hashlib.sha256(f"{tensor.dtype} {list(tensor.shape)} ".encode())
    if tensor.nbytes:
        digest.update((ctypes.c_char * tensor.nbytes).from_address(tensor.data_ptr()))
    return digest.hexdigest()
