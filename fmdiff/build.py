"""From a YAML's `_target_` to the object: the one place where names become code."""

import importlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fmdiff.errors import FmdiffError, nearest

# All that a `_target_` found in a file may name: classes defined here, and a few functions. Others
# would read configs, command lines or files of the author's choice.
PARTS: tuple[str, ...] = ("path", "custom", "source", "coupling", "times", "objectives")
PARTS += ("models", "optim", "data", "exact", "solvers")
PARTS += ("schedules", "fitted", "guidance", "systems", "metrics.features", "metrics.inception")
SAFE = (*(f"fmdiff.{part}." for part in PARTS), "torch.optim.")
FUNCTIONS: tuple[str, ...] = ("fmdiff.build.named", "fmdiff.exact.exact", "fmdiff.exact.empirical")
FUNCTIONS += ("fmdiff.exact.real_data",)


def locate(target: str, trust: tuple[str, ...] | None = None) -> Any:
    """The class or function a dotted name stands for.

    trust=None: the user composed the name, anything importable is taken. Otherwise the name came
    out of a file and must be of a part of fmdiff, of torch.optim or of a prefix the user trusts.

    Raises FmdiffError for a name that is not allowed or does not exist.
    """
    module, _, name = str(target).rpartition(".")
    refused = FmdiffError(
        f"the file names {target!r}, which is no part of fmdiff's models; if you trust "
        f"its author and have the code, say trust=[{module}.]"
    )
    vouched = trust is None or str(target).startswith(tuple(trust))
    if not (vouched or str(target).startswith(SAFE) or target in FUNCTIONS):
        raise refused
    if any(part.startswith("_") for part in str(target).split(".")) or not module:
        raise FmdiffError(f"_target_={target!r} is not a public dotted name like package.Class")
    try:
        found = getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError) as error:
        raise FmdiffError(f"_target_={target!r} cannot be found: {error}") from error
    ours = isinstance(found, type) and f"{found.__module__}.".startswith(SAFE)
    if not (vouched or ours or target in FUNCTIONS):  # something imported there
        raise refused
    return found


def vouch(tree: Any, trust: tuple[str, ...]) -> Any:
    """What a file says, its `trust` ours; FmdiffError if it names code that a file may not."""
    if isinstance(tree, Mapping):
        if "_target_" in tree:
            locate(tree["_target_"], trust)
        return {k: list(trust) if k == "trust" else vouch(v, trust) for k, v in tree.items()}
    return [vouch(item, trust) for item in tree] if isinstance(tree, list) else tree


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
    if trust is not None and "trust" in keywords:
        keywords["trust"] = trust
    factory = locate(spec["_target_"], trust)
    try:
        return factory(*args, **keywords, **extra)
    except TypeError as error:
        if error.__traceback__ and error.__traceback__.tb_next is not None:
            raise  # raised inside the constructor: a bug, not a wrong keyword
        raise FmdiffError(f"{spec['_target_']}: {error}") from error


def named(group: str, name: str, *args: Any, **changes: Any) -> Any:
    """The object configs/GROUP/NAME.yaml describes, some of its keys changed.

    It may be asked for by a file, so only our own YAML files and what they name are taken.
    """
    from omegaconf import OmegaConf

    folder = config_folder() / group
    outside = Path(group).name != group or Path(name).name != name
    if outside or not (folder / f"{name}.yaml").is_file():
        raise FmdiffError(
            f"unknown {group} {name!r}; {nearest(name, (p.stem for p in folder.glob('*.yaml')))}"
        )
    spec = OmegaConf.to_container(OmegaConf.load(folder / f"{name}.yaml"))
    return build({**spec, **changes}, *args, trust=())  # type: ignore[dict-item]


def config_folder() -> Path:
    """Our configs: fmdiff/configs when installed, ../configs in a checkout."""
    package = Path(__file__).resolve().parent
    return next(p for p in (package / "configs", package.parent / "configs") if p.is_dir())
