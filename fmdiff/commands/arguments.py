"""Reads from settings how a field is sampled and how its network is computed."""

import logging
from typing import Any

import torch

from fmdiff.build import build
from fmdiff.commands.fits import with_fits
from fmdiff.commands.stage import Stage
from fmdiff.custom import from_spec
from fmdiff.errors import FmdiffError
from fmdiff.guidance import Unguided
from fmdiff.integration import check_steps
from fmdiff.loading import guidance
from fmdiff.machine import device, processes
from fmdiff.machine.precision import hasten
from fmdiff.sampling import Sampler

log = logging.getLogger("fmdiff")
COMPILED = 5000  # from so many samples on, compiling is worth its minute on CUDA


def sampler(stage: Stage, settings: dict[str, Any]) -> Sampler:
    """The sampler that settings describe for the stage's field.

    Sets how the networks compute. What must be fitted, times or a solver, is read from beside the
    checkpoint, or fitted and written there.

    Raises FmdiffError for settings that do not go together.
    """
    precision, compiled = settings["precision"], settings["compile"]
    if precision != "fp32" and settings["dtype"] == "float64":
        raise FmdiffError(f"precision={precision} does not go with dtype=float64: leave one out")
    if compiled is None and stage.n < COMPILED:
        compiled = False
    along = settings["path"] and settings["ckpt"]  # without a checkpoint the field has it
    names = ("steps", "nfe", "coordinates", "final", "clip")
    choice = Sampler(
        **{name: settings[name] for name in names},
        solver=build(settings["solver"]),
        schedule=settings["schedule"] and build(settings["schedule"]),
        guidance=guidance(settings["guidance"]),
        path=from_spec(settings["path"]) if along else None,
        batch_size=stage.size,
        device=stage.where,
        dtype=getattr(torch, settings["dtype"]),
    )
    if not settings.get("trajectory"):  # its frames are the steps
        check_steps(choice.solver_of(stage.field), settings["steps"])
    w = settings["guidance"].get("w")
    if isinstance(w, int | float) and w < 0 and processes.rank() == 0:
        log.warning(
            "guidance.w=%g is negative, which leads samples away from what they are guided to; "
            "0 is the guide alone, 1 no guidance",
            w,
        )
    compute(stage, choice.guidance, precision, compiled)
    return with_fits(choice, stage.field, settings, stage.about)


def compute(stage: Stage, leader: Unguided, precision: str, compiled: bool | None) -> None:
    """Set the precision of the networks of the field and its guide, and compile them if so."""
    for part in filter(None, (stage.field, leader.guide)):
        hasten(part, precision, compiled, stage.where)


def use_threads(stage: Stage, devices: int = 1) -> None:
    """Set the number of CPU threads to threads=, or to the default for these batches.

    devices: the number of processes that share the cores.
    """
    net, count = stage.field.net, stage.settings["threads"]
    if stage.where.type != "cpu" or (net is None and count is None):
        return
    parameters = 0 if net is None else sum(p.numel() for p in net.parameters())
    rule = device.threads(parameters, stage.size, stage.field.shape) // devices
    torch.set_num_threads(count or max(1, rule))
