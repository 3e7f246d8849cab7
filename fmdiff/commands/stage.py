"""The stage of a command: the field that settings name, its data, a device, a sample size."""

from dataclasses import dataclass
from typing import Any

import torch

from fmdiff.build import spec_of
from fmdiff.codec import Codec
from fmdiff.commands.given import Real, bound, needs_data
from fmdiff.data.base import Data
from fmdiff.errors import FmdiffError
from fmdiff.field import Field
from fmdiff.loading import subject
from fmdiff.machine import device, processes
from fmdiff.sampling import default_batch_size, usual_solver


@dataclass(frozen=True, kw_only=True)
class Stage:
    """A field on a device, with the data it stands for and a number of samples."""

    settings: dict[str, Any]
    where: torch.device
    field: Field
    data: Data | None
    about: dict[str, Any] | None  # the checkpoint's path, step, weights, average, sha256
    n: int  # samples
    size: int  # samples at a time
    real: Real | None = None  # those whose conditions the samples are given

    @property
    def kind(self) -> str:
        """What the samples are to a user: points, series, images or arrays."""
        return self.field.kind

    @property
    def codec(self) -> Codec | None:
        """What decodes the samples, and names their columns."""
        return self.field.codec or (None if self.data is None else self.data.codec)

    @property
    def images(self) -> bool:
        """Whether the samples are images, in [-1, 1]."""
        return self.kind == "images"


def set_up(
    settings: dict[str, Any],
    where: torch.device,
    points: int,
    images: int,
    data: bool = True,
    series: int | None = None,
) -> Stage:
    """Build the stage that settings describe.

    points, images: the default numbers of samples; arrays have that of images, and so have series
    without their own. data: whether the data are needed. Those of images are not loaded otherwise,
    and others are if they can be.

    A setting solver=null becomes the solver that suits the field. Raises FmdiffError for a model
    or data that cannot be loaded.
    """
    words = settings.get("cond") or {}
    field, source, about = subject(settings, data=data or needs_data(words))
    if "solver" in settings and settings["solver"] is None:
        name, keys = usual_solver(field)
        settings["solver"] = spec_of("solver", name) | keys
        settings["choices"] = settings["choices"] | {"solver": name}
    usual = {"points": points, "series": series or images}.get(field.kind, images)
    n = settings["n"] or usual
    size = min(settings["batch_size"] or default_batch_size(field.shape), n)
    field, real = bound(field, words, source, n, settings["seed"])
    parts = {"field": field, "data": source, "about": about, "real": real}
    return Stage(settings=settings, where=where, n=n, size=size, **parts)


def place(settings: dict[str, Any], alone: str | None = None) -> torch.device:
    """Choose this process's device, for a command that several processes may share.

    alone: the beginning of a sentence about a setting that needs a single process, if any.

    Raises FmdiffError if this machine has too few devices, or if only one process may run this.
    """
    where = device.pick(settings["device"])
    device.enough(where, settings["devices"], "devices")
    if alone and settings["devices"] > 1:
        raise FmdiffError(f"{alone} one process: devices must be 1")
    return processes.join(where)
