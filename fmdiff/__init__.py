"""fmdiff: train and sample flow-matching and diffusion models.

import fmdiff
field = fmdiff.load("outputs/...", weights="ema")
samples = fmdiff.generate(field, n=64, solver="heun", steps=28, seed=0)
log_p = fmdiff.log_prob(field, samples.x)
"""

import importlib

__version__ = "0.1.0"

# name -> module; torch is imported only when one of them is first used
_PUBLIC = {
    "load": "fmdiff.loading",
    "generate": "fmdiff.sampling",
    "log_prob": "fmdiff.likelihood",
    "train": "fmdiff.commands.python",
    "FmdiffError": "fmdiff.errors",
}
__all__ = ["FmdiffError", "generate", "load", "log_prob", "path", "train"]


def __getattr__(name: str):
    if name in _PUBLIC:
        return getattr(importlib.import_module(_PUBLIC[name]), name)
    try:
        return importlib.import_module(f"fmdiff.{name}")
    except ModuleNotFoundError:
        raise AttributeError(f"module 'fmdiff' has no attribute {name!r}") from None
