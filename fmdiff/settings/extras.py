"""Optional packages that a setting needs, and how to get them."""

from importlib.util import find_spec
from typing import Any

from fmdiff.errors import FmdiffError

# a setting, the module that it imports, the extra of fmdiff that brings it, and what else to do
NEEDS = (
    ("optim=schedule_free", "schedulefree", "schedule-free", "optim=adam, adamw or muon"),
    ("trainer.logger=wandb", "wandb", "wandb", "trainer.logger=tensorboard or csv"),
    (
        "features=inception",
        "torch_fidelity",
        "fid",
        "features=mnist, fashion_mnist or cifar10",
    ),
)


def check(cfg: Any) -> None:
    """Raises FmdiffError if cfg holds a setting whose package is not installed."""
    trainer = cfg.get("trainer") or {}
    settings = {
        f"trainer.logger={trainer.get('logger')}",
        *(f"{group}={cfg.get('choices', {}).get(group)}" for group in ("features", "optim")),
    }
    for setting, module, extra, instead in NEEDS:
        if setting in settings and find_spec(module) is None:
            raise FmdiffError(f"{sentence(setting, module, extra)}, or choose {instead}")


def sentence(setting: str, module: str, extra: str) -> str:
    """The sentence about a package that is missing."""
    return f"{setting} needs {module.replace('_', '-')}: pip install 'fmdiff[{extra}]'"
