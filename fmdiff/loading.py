"""From a checkpoint, or from data, to a field; with torch alone."""

from pathlib import Path
from typing import Any

from fmdiff import checkpoint
from fmdiff.build import build
from fmdiff.errors import FmdiffError
from fmdiff.field import Field, NetField
from fmdiff.path import from_spec


def load(ckpt: str | Path, weights: str | float = "ema", trust: tuple[str, ...] = ()) -> NetField:
    """The field a checkpoint holds; ckpt is a file, a run folder or `last`.

    weights: `ema` (the first average), `raw`, or the decay of one of the averages. Code named by
    the checkpoint comes only from fmdiff, torch.optim and the prefixes in `trust`.

    Raises FmdiffError for a missing, damaged or foreign checkpoint and for unknown weights.
    """
    return restore(checkpoint.read(checkpoint.find(ckpt)), weights, trust)


def restore(content: dict, weights: str | float = "ema", trust: tuple[str, ...] = ()) -> NetField:
    """The field of a checkpoint's content."""
    spec, stored = content["spec"], content["weights"]
    averages = [name for name in stored if name != "raw"]
    name = (averages or ["raw"])[0] if weights == "ema" else str(weights)
    if name not in stored:
        raise FmdiffError(f"weights={weights}: this checkpoint holds {', '.join(stored)}")
    shape, classes = tuple(spec["data"]["shape"]), spec["data"]["classes"]
    net = build(spec["model"], trust=trust, shape=shape, classes=classes)
    net.load_state_dict(stored[name])
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
    return field


def opened(settings: dict) -> tuple[Field, Any]:
    """The field that `ckpt=`, or `model=` with `data=`, names, and the data it stands for.

    Of an image checkpoint the data are None: it is sampled without them.
    """
    if settings["ckpt"]:
        content = checkpoint.read(checkpoint.find(settings["ckpt"]))
        trust = tuple(settings["trust"])
        field = restore(content, settings["weights"], trust)
        points = len(field.shape) == 1
        return field, build(content["spec"]["data"]["source"], trust=trust) if points else None
    data = build(settings["data"])
    data.prepare()
    path = from_spec(settings["path"] or {"_target_": "fmdiff.path.CondOT"})
    return build(settings["model"], data, path), data
