"""The field that gives a flow map its velocity: a teacher's, or the exact one."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from fmdiff.along import along
from fmdiff.errors import FmdiffError
from fmdiff.exact import exact
from fmdiff.loading import Teacher, teacher
from fmdiff.objectives.flow_map import FlowMap
from fmdiff.source import need_gaussian
from fmdiff.training import checkpoints
from fmdiff.training.module import Training


def teach(module: Training, where: torch.device, before: Mapping[str, Any] | None = None) -> None:
    """Set the teacher or the truth of a flow map, if its `velocity=` asks for one.

    where: the device of training. before: the training part of the checkpoint that is resumed.
    Raises FmdiffError for a teacher that is missing, does not fit or is another than before, and
    for data without a closed form.
    """
    objective = module.objective
    if not isinstance(objective, FlowMap):
        return
    if objective.velocity == "exact":
        option = "objective.velocity=exact"
        instead = "; choose velocity=network, or source=normal coupling=independent"
        need_gaussian(objective.field(None, module.data.shape), option, instead)
        try:
            objective.truth = exact(module.data, objective.path)
        except FmdiffError as error:
            raise FmdiffError(f"{option}: {error}") from error
    if objective.velocity == "teacher":
        module.teacher = _teacher(module, before)
        field = module.teacher.field.to(where, torch.float32)
        objective.teacher = along(field, objective.path)


def _teacher(module: Training, before: Mapping[str, Any] | None) -> Teacher:
    """The teacher of the settings; for a resumed run, the very one that it began with."""
    ckpt = text = module.settings["objective"]["teacher"]
    was = (before or {}).get("teacher")
    if was and Path(was["file"]).is_file() and text == _text(before):
        ckpt = was["file"]  # a folder, or "last", may hold a newer one by now
    result = teacher(ckpt, checkpoints.spec(module), tuple(module.settings["trust"]))
    if was and result.about["sha256"] != was["sha256"]:
        raise FmdiffError(
            f"objective.teacher={text} has other weights than the teacher that this run began "
            f"with, {was['file']} at that time: name a copy of it, or begin a new run"
        )
    return result


def _text(before: Mapping[str, Any] | None) -> Any:
    """What `objective.teacher=` was before."""
    objective = ((before or {}).get("config") or {}).get("objective")
    return objective.get("teacher") if isinstance(objective, dict) else None
