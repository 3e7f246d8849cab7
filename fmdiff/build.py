"""From a YAML's `_target_` to the object: the one place where names become code."""

import importlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fmdiff.errors import FmdiffError, nearest

SAFE = ("fmdiff.", "torch.optim.")  # all that a `_target_` found in a checkpoint may name


def locate(target: str, trust: tuple[str, ...] | None = None) -> Any:
    """The class or function a dotted name stands for.

    trust=None: the user composed the name, anything importable is taken. Otherwise the name came
    out of a file and must start with `fmdiff.`, `torch.optim.` or a prefix the user trusts.

    Raises FmdiffError for a name that is not allowed or does not exist.
    """
    if trust is not None and not target.startswith((*SAFE, *trust)):
        raise FmdiffError(
            f"the checkpoint names {target!r}, which is not part of fmdiff; if you trust its "
            f"author and have the code, say trust=[{target.rpartition('.')[0]}.]"
        )
    module, _, name = target.rpartition(".")
    if any(part.startswith("_") for part in target.split(".")) or not module:
        raise FmdiffError(f"_target_={target!r} is not a public dotted name like package.Class")
    try:
        return getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError) as error:
        raise FmdiffError(f"_target_={target!r} cannot be found: {error}") from error


def build(spec: Mapping, *args: Any, trust: tuple[str, ...] | None = None, **extra: Any) -> Any:
    """The object a mapping with `_target_` describes: its other keys are keyword arguments.

    Nested mappings with a `_target_` are built first. `args` and `extra` come from the program
    (a path for an objective, a data shape for a network) and are never written in a YAML.
    """
    keywords = {
        name: build(value, trust=trust)
        if isinstance(value, Mapping) and "_target_" in value
        else value
        for name, value in spec.items()
        if name != "_target_"
    }
    factory = locate(spec["_target_"], trust)
    try:
        return factory(*args, **keywords, **extra)
    except TypeError as error:
        if error.__traceback__ and error.__traceback__.tb_next is not None:
            raise  # raised inside the constructor: a bug, not a wrong keyword
        raise FmdiffError(f"{spec['_target_']}: {error}") from error


def named(group: str, name: str, *args: Any, **changes: Any) -> Any:
    """The object configs/GROUP/NAME.yaml describes, some of its keys changed."""
    from omegaconf import OmegaConf

    folder = config_folder() / group
    if not (folder / f"{name}.yaml").is_file():
        raise FmdiffError(
            f"unknown {group} {name!r}; {nearest(name, (p.stem for p in folder.glob('*.yaml')))}"
        )
    spec = OmegaConf.to_container(OmegaConf.load(folder / f"{name}.yaml"))
    return build({**spec, **changes}, *args)  # type: ignore[dict-item]


def config_folder() -> Path:
    """Our configs: fmdiff/configs when installed, ../configs in a checkout."""
    package = Path(__file__).resolve().parent
    return next(p for p in (package / "configs", package.parent / "configs") if p.is_dir())
