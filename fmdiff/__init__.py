"""fmdiff: train and sample flow-matching and diffusion models.

import fmdiff
field = fmdiff.load("outputs/...", weights="ema")
samples = fmdiff.generate(field, n=64, steps=28, seed=0)
log_p = fmdiff.log_prob(field, samples.x)
"""

import importlib
import logging
from typing import Any

from fmdiff.errors import one_line

__version__ = "0.1.0"

logging.getLogger("fmdiff").addFilter(one_line)

# name -> module; torch is imported only when one of them is first used
_PUBLIC = {
    "load": "fmdiff.loading",
    "generate": "fmdiff.sampling",
    "Sampler": "fmdiff.sampling",
    "log_prob": "fmdiff.likelihood",
    "train": "fmdiff.commands.python",
    "FmdiffError": "fmdiff.errors",
}
# modules that can be reached as fmdiff.NAME; fmdiff.field is also callable, see field.py
_MODULES = (
    "classifier",
    "coupling",
    "custom",
    "data",
    "exact",
    "field",
    "fitted",
    "guidance",
    "integration",
    "inversion",
    "likelihood",
    "metrics",
    "models",
    "objectives",
    "path",
    "randomness",
    "sampling",
    "schedules",
    "solvers",
    "source",
    "systems",
    "times",
    "trajectory",
)
__all__ = [*_PUBLIC, *_MODULES]


def __getattr__(name: str) -> Any:
    if name in _PUBLIC:
        return getattr(importlib.import_module(_PUBLIC[name]), name)
    try:
        return importlib.import_module(f"fmdiff.{name}")
    except ModuleNotFoundError:
        raise AttributeError(f"module 'fmdiff' has no attribute {name!r}") from None


def __dir__() -> list[str]:
    return sorted({"__version__", *_PUBLIC, *_MODULES})
