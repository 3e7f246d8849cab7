"""From a checkpoint to a field, with torch alone."""

from pathlib import Path

from fmdiff import checkpoint
from fmdiff.build import build
from fmdiff.errors import FmdiffError
from fmdiff.field import NetField


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
    path = build(spec["path"], trust=trust)
    objective = build(spec["objective"], trust=trust, path=path, data_std=spec["data"]["std"])
    return objective.field(net.eval().requires_grad_(False), shape, classes)
