"""What figures were computed from, as digests: they hold for other runs only if all agree."""

import contextlib
import hashlib
import inspect
import json
import sys
from pathlib import Path
from typing import Any

from torch import Tensor

from fmdiff import __version__
from fmdiff.build import own_modules
from fmdiff.commands.fits import checksum
from fmdiff.commands.stage import Stage
from fmdiff.exact import RealData
from fmdiff.guidance import Unguided
from fmdiff.loading import guidance
from fmdiff.metrics.judge import STANDING, Judge
from fmdiff.runs.content import identity
from fmdiff.runs.resume import INCIDENTAL

# settings that choose cells and seeds, or where results go
APART = INCIDENTAL | {"grid", "repeats", "result", "name"}


def origin(stage: Stage, jury: Judge) -> dict[str, str]:
    """The digests of what the draws of a grid have in common, by what they are of.

    Raises FmdiffError for a guiding model that cannot be loaded.
    """
    settings = stage.settings
    leads = bool(settings["guidance"].get("ckpt"))
    leader = guidance(settings["guidance"]) if leads else Unguided()
    shared = {name: settings[name] for name in settings.keys() - APART}
    return {
        "version of fmdiff": __version__,
        "model": _digest([checksum(stage.field, leader), _content(stage)]),
        "reference": jury.digest(),
        "choice of settings": _digest(shared),
        "code of your own": _digest(_code(settings)),
        "device": stage.where.type,
    }


def _digest(content: Any) -> str:
    text = json.dumps(content, sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()


def _content(stage: Stage) -> str:
    """The digest of the numbers of a model without a checkpoint."""
    if stage.about is not None:
        return ""
    tensors = {k: v for k, v in vars(stage.field).items() if isinstance(v, Tensor)}
    if isinstance(stage.field, RealData):
        data = stage.field.data
        tensors["data"] = data.sample(0, data.references or STANDING, 0)[0]
    return identity({}, tensors)


def _code(settings: dict[str, Any]) -> dict[str, str]:
    """The source of the modules of the user's classes, those of the checkpoint included."""
    prefixes = (*own_modules(settings), *settings["trust"])
    code = {}
    for name, module in list(sys.modules.items()):
        if f"{name}.".startswith(prefixes):
            with contextlib.suppress(TypeError, OSError):  # it has no source
                code[name] = Path(inspect.getsourcefile(module) or "").read_text("utf-8")
    return code
