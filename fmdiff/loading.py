"""From a checkpoint, or from data, to a field; with torch alone."""

from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from fmdiff.build import build
from fmdiff.classifier import Classifier
from fmdiff.ema import POWER, power
from fmdiff.errors import FmdiffError
from fmdiff.field import Field, NetField
from fmdiff.path import from_spec
from fmdiff.runs import averages, checkpoint


def load(ckpt: str | Path, weights: str | float = "ema", trust: tuple[str, ...] = ()) -> NetField:
    """The field a checkpoint holds; ckpt is a file, a run folder or `last`.

    weights: `ema` (the first average), `raw`, the decay of one of the averages, or `power:WIDTH`,
    reconstructed where it is not stored (see `reconstruction`). Code named by the checkpoint comes
    only from fmdiff, torch.optim and the prefixes in `trust`.

    Raises FmdiffError for a missing, damaged or foreign checkpoint and for unknown weights.
    """
    file = checkpoint.find(ckpt)
    return _a_field(restore(checkpoint.read(file), weights, trust, file.parent))


def load_classifier(
    ckpt: str | Path, weights: str | float = "ema", trust: tuple[str, ...] = ()
) -> Classifier:
    """The classifier a checkpoint of objective=classification holds; see `load`.

    Raises FmdiffError for a checkpoint of a model that samples.
    """
    file = checkpoint.find(ckpt)
    found = restore(checkpoint.read(file), weights, trust, file.parent)
    if not isinstance(found, Classifier):
        raise FmdiffError(
            f"guidance.ckpt={ckpt} holds a model that samples, and a classifier is needed: "
            "train one with objective=classification"
        )
    return found


# what a checkpoint that fmdiff wrote has; whose checksums match may be written by others
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
            "source": dict,
        },
    },
}


def check_form(content: dict, form: dict = FORM, parent: str = "") -> None:
    """Raise FmdiffError, naming the first part that is missing or of another type."""
    for name, kind in form.items():
        part, key = content.get(name), parent + name
        if not isinstance(part, dict if isinstance(kind, dict) else kind):
            raise FmdiffError(f"this checkpoint is not as fmdiff writes it: {key} is {part!r:.60}")
        if isinstance(kind, dict):
            check_form(part, kind, f"{key}.")


def _a_field(found: Any) -> Any:
    if isinstance(found, Classifier):
        raise FmdiffError(
            "this checkpoint holds a classifier, which cannot be sampled; it leads another model "
            "by guidance=classifier guidance.ckpt=RUN"
        )
    return found


def named(content: dict, weights: str | float = "ema") -> str:
    """The name, in a checkpoint, of the weights that `weights` means, stored or not."""
    averages = [name for name in content["weights"] if name != "raw"]
    if weights == "ema":
        return (averages or ["raw"])[0]
    name = str(weights)
    if not name.startswith(POWER):
        return name
    try:
        return power(float(name.removeprefix(POWER)))  # 0.10 is 0.1
    except ValueError:
        raise FmdiffError(f"weights={weights}: power:WIDTH takes a number") from None


def weights_of(content: dict, weights: str | float, run: Path | None) -> dict[str, Tensor]:
    """The chosen state dict; run is the folder the checkpoint lies in."""
    stored, name = content["weights"], named(content, weights)
    if name in stored:
        return stored[name]
    if name.startswith(POWER):
        return averages.reconstruct(content, run, float(name.removeprefix(POWER)))
    raise FmdiffError(f"weights={weights}: this checkpoint holds {', '.join(stored)}")


def restore(
    content: dict,
    weights: str | float = "ema",
    trust: tuple[str, ...] = (),
    run: Path | None = None,
) -> Any:
    """What a checkpoint's content holds: a NetField or a Classifier.

    run: the folder of the checkpoint, where the snapshots of its power averages are.
    """
    if "spec" not in content:
        raise FmdiffError("this is a snapshot of averages alone: give the run or a checkpoint")
    check_form(content)
    spec, state = content["spec"], weights_of(content, weights, run)
    shape, classes = tuple(spec["data"]["shape"]), spec["data"]["classes"]
    try:
        net = build(spec["model"], trust=trust, shape=shape, classes=classes)
        net.load_state_dict(state)
        source, coupling = (
            build(spec.get(group, {"_target_": usual}), trust=trust)
            for group, usual in (
                ("source", "fmdiff.source.Normal"),
                ("coupling", "fmdiff.coupling.Independent"),
            )
        )
        objective = build(
            spec["objective"],
            trust=trust,
            path=from_spec(spec["path"], trust),
            data_std=spec["data"]["std"],
            source=source,
            coupled=not coupling.independent,
        )
        field = objective.field(net.eval().requires_grad_(False), shape, classes)
        field.kept = tuple(spec["data"]["source"].get("only") or ())
    except (FmdiffError, MemoryError, torch.OutOfMemoryError):
        raise
    except Exception as error:  # what is wrong with a forged one has many kinds
        said = " ".join(f"{type(error).__name__}: {error}".split())
        raise FmdiffError(f"this checkpoint's model cannot be built of it: {said:.300}") from error
    return field


class Opened(NamedTuple):
    """What ckpt=, or model= with data=, names."""

    field: Field
    data: Any  # the data set it stands for, or None
    about: dict[str, Any] | None  # of a checkpoint: path, step, weights, the average they are


def opened(settings: dict, data: bool = False) -> Opened:
    """The field that `ckpt=`, or `model=` with `data=`, names, and the data it stands for.

    Of an image checkpoint the data are None unless asked for: it is sampled without them.
    """
    if settings["ckpt"]:
        file = checkpoint.find(settings["ckpt"])
        content = checkpoint.read(file)
        trust = tuple(settings["trust"])
        weights = settings["weights"]
        field = _a_field(restore(content, weights, trust, file.parent))
        about = {"path": str(file), "step": content["step"], "weights": weights}
        about["average"] = named(content, weights)
        wanted = data or len(field.shape) == 1
        source = build(content["spec"]["data"]["source"], trust=trust) if wanted else None
        return Opened(field, source, about)
    found = build(settings["data"])
    found.prepare()
    path = from_spec(settings["path"] or {"_target_": "fmdiff.path.CondOT"})
    return Opened(build(settings["model"], found, path), found, None)
