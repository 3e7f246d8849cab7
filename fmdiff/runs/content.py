"""The format of a checkpoint.

A checkpoint file is `torch.save` of one dict of plain containers and tensors:

    step       int, optimiser steps done
    spec       nested dict, everything needed to rebuild the field: see FORM
    weights    {"raw": state_dict, "0.9999": state_dict of that EMA, ...}
    codec      state_dict of what decodes the samples; absent if nothing does
    training   optimizer, loops, config ...; absent in an exported file
    checksums  {dotted path of a tensor: SHA-256 of its dtype, shape and bytes}
    format     "fmdiff"
    version    1
"""

import ctypes
import hashlib
import json
import math
import reprlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fmdiff.condition import Form
from fmdiff.ema import POWER, SCHEDULE_FREE, power
from fmdiff.errors import FmdiffError

FORMAT, VERSION = "fmdiff", 1
TITLE = "this checkpoint"  # in messages, if its file is not known
# bounds on what a file may ask for
LARGEST = 2**26  # numbers in one sample: 3 x 4096 x 4096 and more
MOST = 10**6  # classes
LAST = 2**53  # steps
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
            # and mean, a list: see `data_mean`; conditions: their forms by name; codec: its spec
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

    spec may also hold `source`, `coupling` and `time`, which those of the first versions lack.
    """

    step: int
    spec: dict[str, Any]
    weights: dict[str, dict[str, Tensor]]
    training: dict[str, Any] | None = None  # None if the run cannot be resumed
    codec: dict[str, Tensor] | None = None  # the state of the codec that spec.data.codec builds
    version: int = VERSION
    title: str = TITLE  # what messages call it: "checkpoint PATH"

    @classmethod
    def of(cls, content: Mapping[str, Any], path: Path | None = None) -> "Checkpoint":
        """Check the content of a file and make it a checkpoint. path: of the file, for messages.

        Others may have written a file with correct checksums. Raises FmdiffError, naming the first
        part that is missing, of another type or beyond all sizes, and for a snapshot of averages.
        """
        title = cls.title if path is None else f"checkpoint {path}"
        if "spec" not in content:
            raise FmdiffError(
                f"{path or 'this'} is a snapshot of averages alone: give the run or a checkpoint"
            )
        _check(content, FORM, title)
        for key, value, right in _ranges(content):
            if not right:
                raise _unlike(key, value, title)
        return cls(
            content["step"],
            content["spec"],
            content["weights"],
            content.get("training"),
            content.get("codec"),
            content.get("version", VERSION),
            title,
        )

    def content(self) -> dict[str, Any]:
        """The dict to write. `checkpoint.write` adds format, version and checksums."""
        content = {"step": self.step, "spec": self.spec, "weights": self.weights}
        more = {"training": self.training, "codec": self.codec}
        return content | {name: part for name, part in more.items() if part is not None}

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


def _check(
    content: Mapping[str, Any], form: Mapping[str, Any], title: str, parent: str = ""
) -> None:
    for name, kind in form.items():
        part, key = content.get(name), parent + name
        if not isinstance(part, dict if isinstance(kind, dict) else kind):
            raise _unlike(key, part, title)
        if isinstance(kind, dict):
            _check(part, kind, title, f"{key}.")


def identity(spec: Mapping[str, Any], weights: Mapping[str, Tensor]) -> str:
    """The SHA-256 of a model: of its spec, and of the names and values of its weights."""
    parts = [json.dumps(spec, sort_keys=True, default=str)]
    parts += [f"{name} {digest(weights[name])}" for name in sorted(weights)]
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()


def _ranges(content: Mapping[str, Any]) -> Iterator[tuple[str, Any, bool]]:
    """Parts of a checkpoint that passed `_check`: the key, the value, and whether it can be so."""
    data, training = content["spec"]["data"], content.get("training")
    shape, classes = data["shape"], data["classes"]
    yield "step", content["step"], 0 <= content["step"] <= LAST
    sizes = len(shape) in (1, 2, 3) and all(type(n) is int and 1 <= n <= LARGEST for n in shape)
    yield "spec.data.shape", shape, sizes and math.prod(shape) <= LARGEST
    yield "spec.data.classes", classes, 0 <= classes <= MOST
    yield "spec.data.std", data["std"], 0 <= data["std"] < math.inf
    yield "weights", content["weights"], bool(content["weights"])
    for name, state in content["weights"].items():
        yield f"weights.{name}", state, _is_state(state) and _is_name(name)
    codec = content.get("codec")
    yield "codec", codec, codec is None or _is_state(codec)
    named = data.get("conditions") or {}
    plain = isinstance(named, dict) and all(str(name).isidentifier() for name in named)
    yield "spec.data.conditions", named, plain
    yield "training", training, training is None or isinstance(training, dict)
    if training:
        config = training.get("config", {})
        yield "training.config", config, isinstance(config, dict)
        trainer = config.get("trainer", {})
        yield "training.config.trainer", trainer, isinstance(trainer, dict)
        teacher = training.get("teacher")
        yield "training.teacher", teacher, teacher is None or _is_teacher(teacher)


def _is_state(state: Any) -> bool:
    """Whether it holds tensors by name."""
    return isinstance(state, dict) and all(
        isinstance(key, str) and isinstance(value, Tensor) for key, value in state.items()
    )


def _is_name(name: Any) -> bool:
    """Whether it names weights: raw, schedule_free, a decay, or power:WIDTH."""
    try:
        return name in ("raw", SCHEDULE_FREE) or 0 < float(str(name).removeprefix(POWER)) < 1
    except ValueError:
        return False


def _is_teacher(value: Any) -> bool:
    """Whether it tells which checkpoint taught a run, as `loading.Teacher.about` does."""
    return isinstance(value, dict) and all(
        isinstance(value.get(name), str) for name in ("file", "sha256")
    )


def _unlike(key: str, value: Any, title: str) -> FmdiffError:
    return FmdiffError(f"{title} is not as fmdiff writes it: {key} is {reprlib.repr(value)}")


def data_mean(spec: Mapping[str, Any], title: str = TITLE) -> Tensor | None:
    """The mean of the data (*shape) that a spec names, float64; None if it names none.

    title: what a message calls the checkpoint. Raises FmdiffError unless it is a list of finite
    numbers of the shape of the data.
    """
    data = spec["data"]
    mean = data.get("mean")  # missing in checkpoints from before data were centred
    if mean is None:
        return None
    try:
        value = torch.tensor(mean, dtype=torch.float64)
    except (TypeError, ValueError, RuntimeError):
        value = torch.tensor(math.nan)
    if list(value.shape) != data["shape"] or not value.isfinite().all():
        raise _unlike("spec.data.mean", mean, title)
    return value


def forms(spec: Mapping[str, Any], title: str = TITLE) -> dict[str, Form]:
    """The conditions that a spec names. Raises FmdiffError for a form that is none."""
    named = spec["data"].get("conditions") or {}
    return {name: Form.of(form, title) for name, form in named.items()}


def digest(tensor: Tensor) -> str:
    """The SHA-256 of a tensor's dtype, shape and bytes, in hexadecimal."""
    tensor = tensor.detach().cpu().contiguous()
    digest = hashlib.sha256(f"{tensor.dtype} {list(tensor.shape)} ".encode())
    if tensor.nbytes:
        digest.update((ctypes.c_char * tensor.nbytes).from_address(tensor.data_ptr()))
    return digest.hexdigest()
