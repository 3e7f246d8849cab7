"""Builds objects from the `_target_` of a YAML: the one place where names become code."""

import contextlib
import importlib
import inspect
import os
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, TypeVar

from fmdiff.errors import FmdiffError, culprit, nearest, users

# A `_target_` in a file may only name one of FUNCTIONS, or a class that is defined in one of these
# modules or packages and derives from the class beside it. Other names could read configs, command
# lines or files of the author's choice.
CONTRACTS = {
    "fmdiff.codec": "fmdiff.codec.Codec",
    "fmdiff.path": "fmdiff.path.Path",
    "fmdiff.custom": "fmdiff.path.Path",
    "fmdiff.source": "fmdiff.source.Source",
    "fmdiff.coupling": "fmdiff.coupling.Coupling",
    "fmdiff.times": "fmdiff.times.Law",
    "fmdiff.exact": "fmdiff.field.Field",
    "fmdiff.systems": "fmdiff.systems.System",
    "fmdiff.guidance": "fmdiff.guidance.Unguided",
    "fmdiff.schedules": "fmdiff.schedules.Schedule",
    "fmdiff.fitted": "fmdiff.schedules.Schedule",
    "fmdiff.fitted.solver": "fmdiff.solvers.solver.Solver",
    "fmdiff.optim": "torch.optim.Optimizer",
    "fmdiff.solvers": "fmdiff.solvers.solver.Solver",
    "fmdiff.objectives": "fmdiff.objectives.objective.Objective",
    "fmdiff.models": "torch.nn.Module",
    "fmdiff.data": "fmdiff.data.base.Data",
    "fmdiff.data.table": "fmdiff.codec.Codec",
    "fmdiff.metrics": "fmdiff.metrics.features.Features",
    "torch.optim": "torch.optim.Optimizer",
}
Kinds = dict[str, tuple[str, ...]]
# The kinds of what a file may name under the key of a group, and inside one of these.
GROUPS: Kinds = {
    "data": ("fmdiff.data.base.Data",),
    "path": ("fmdiff.path.Path",),
    "source": ("fmdiff.source.Source",),
    "coupling": ("fmdiff.coupling.Coupling",),
    "objective": ("fmdiff.objectives.objective.Objective",),
    "model": ("torch.nn.Module", "fmdiff.field.Field"),
    "solver": ("fmdiff.solvers.solver.Solver",),
    "schedule": ("fmdiff.schedules.Schedule",),
    "guidance": ("fmdiff.guidance.Unguided",),
    "features": ("fmdiff.metrics.features.Features",),
    "codec": ("fmdiff.codec.Codec",),
}
INNER: Kinds = {"of": GROUPS["data"]}
FUNCTIONS = (
    "fmdiff.build.named",
    "fmdiff.exact.exact",
    "fmdiff.exact.empirical",
    "fmdiff.exact.real_data",
)
ADDED = "FMDIFF_IMPORT"  # passes the folders of `importable` to the other processes of a run
T = TypeVar("T")


class Described:
    """Shows an object that a YAML describes as the call that makes it: VP(rate_min=0.1, ...).

    A parameter's value is the attribute of its name, or of _name if a method has the name.
    """

    def __repr__(self) -> str:
        values = {name.removeprefix("_"): value for name, value in vars(self).items()}
        names = [name for name in inspect.signature(type(self)).parameters if name in values]
        words = ", ".join(f"{name}={values[name]!r}" for name in names)
        return f"{type(self).__name__}({words})"


def of_class(thing: object, base: type[T]) -> T:
    """Return the thing itself. Raises FmdiffError unless its class derives from `base`."""
    if isinstance(thing, base):
        return thing
    maker: Any = thing if inspect.isroutine(thing) or inspect.isclass(thing) else type(thing)
    raise FmdiffError(f"{maker.__name__} must derive from {base.__module__}.{base.__name__}")


@contextlib.contextmanager
def importable(*folders: Path) -> Iterator[None]:
    """Let a `_target_` name modules in these folders. Installed modules come first."""
    before, path = os.environ.get(ADDED), list(sys.path)
    names = [*filter(None, (before or "").split(os.pathsep)), *map(os.path.abspath, folders)]
    sys.path += [name for name in dict.fromkeys(names) if name not in sys.path]
    os.environ[ADDED] = os.pathsep.join(names)
    importlib.invalidate_caches()
    try:
        yield
    finally:
        sys.path[:] = path
        os.environ.pop(ADDED)
        if before is not None:
            os.environ[ADDED] = before


def contract(module: str) -> str | None:
    """The base class of what a file may name in this module, or None if it may name nothing."""
    parts = module.split(".")
    prefixes = (".".join(parts[:n]) for n in range(len(parts), 0, -1))
    return next((CONTRACTS[prefix] for prefix in prefixes if prefix in CONTRACTS), None)


def locate(target: str, trust: tuple[str, ...] | None = None) -> Any:
    """The class or function of a dotted name.

    With trust=None the user wrote the name, and anything importable is allowed. Otherwise it comes
    from a file. Then CONTRACTS or FUNCTIONS must allow it, or it needs a prefix the user trusts.

    Raises FmdiffError for a name that is not allowed, does not exist or cannot be imported.
    """
    module, _, name = str(target).rpartition(".")
    refusal = FmdiffError(
        f"the file names {target!r}, which is no part of fmdiff's models; if you trust "
        f"its author and have the code, say trust=[{module}.]"
    )
    free = trust is None or str(target).startswith(tuple(trust)) or target in FUNCTIONS
    if not free and contract(module) is None:
        raise refusal
    if any(part.startswith("_") for part in str(target).split(".")) or not module:
        raise FmdiffError(f"_target_={target!r} is not a public dotted name like package.Class")
    part = _imported(target, module, name)
    if not (free or _allowed(part)):  # imported there, or of another base
        raise refusal
    return part


def _allowed(part: Any) -> bool:
    base = contract(part.__module__) if isinstance(part, type) else None
    return base is not None and issubclass(part, locate(base))


def _imported(target: str, module: str, name: str) -> Any:
    """The attribute `name` of a module. Raises FmdiffError that says where it was searched for."""
    try:
        part = importlib.import_module(module)
    except ModuleNotFoundError as error:
        if error.name and f"{module}.".startswith(f"{error.name}."):
            raise FmdiffError(
                f"_target_={target!r} cannot be found: there is no module {error.name!r} in "
                f"{_searched()}"
            ) from error
        raise _broken(target, error) from error
    except (Exception, SystemExit) as error:
        raise _broken(target, error) from error
    try:
        return getattr(part, name)
    except AttributeError as error:
        public = [n for n, value in vars(part).items() if inspect.isclass(value) and n[0] != "_"]
        where = vars(part).get("__file__") or "a folder"
        raise FmdiffError(
            f"_target_={target!r} cannot be found: {module} ({where}) has no {name!r}"
            + (f"; {nearest(name, public)}" if public else "")
        ) from error


def _searched() -> str:
    """The places where modules are searched for: the user's folders and what is installed."""
    folders = dict.fromkeys(os.path.abspath(folder) for folder in sys.path if users(folder))
    return " or ".join([*folders, "what is installed"])


def _broken(target: str, error: BaseException) -> FmdiffError:
    if isinstance(error, SyntaxError):
        place = f"{error.filename}, line {error.lineno}"
    else:
        place = culprit(error, anyone=True) or "its module"
    return FmdiffError(
        f"_target_={target!r} cannot be imported: {place}: {type(error).__name__}: "
        f"{error.msg if isinstance(error, SyntaxError) else error}"
    )


def kind(target: str, trust: tuple[str, ...] | None = None) -> type:
    """The class of what `build` makes of a target: itself, or a function's return annotation.

    It is `object` for a function without one. Raises FmdiffError as `locate` does.
    """
    part = locate(target, trust)
    if not isinstance(part, type):
        result = inspect.get_annotations(part).get("return") if callable(part) else None
        part = (
            vars(sys.modules[part.__module__]).get(result) if isinstance(result, str) else result
        )
    return part if isinstance(part, type) and part is not Any else object


def own_modules(tree: Any) -> list[str]:
    """The `trust=` that a file with this content needs: the modules of the user's classes."""
    nodes = tree.values() if isinstance(tree, Mapping) else tree if isinstance(tree, list) else ()
    names = [name for node in nodes for name in own_modules(node)]
    target = str(tree["_target_"]) if isinstance(tree, Mapping) and "_target_" in tree else None
    if target and target not in FUNCTIONS and not _allowed(locate(target)):
        names.insert(0, f"{target.rpartition('.')[0]}.")
    return list(dict.fromkeys(names))


def vouch(tree: Any, trust: tuple[str, ...], where: object) -> Any:
    """The content of a file with the user's `trust` in place of its own. where: names the file.

    A `_target_` may stand under the key of a group of GROUPS and be of its kind, or be code that
    the user trusts, with whatever is below it. Raises FmdiffError for others, and for a text with
    `${`, which OmegaConf could fill in from elsewhere.
    """
    return _vouched("", tree, GROUPS, trust, where)


def check_text(text: str, where: object) -> None:
    """Raises FmdiffError for a text with `${`, which OmegaConf could fill in. where: its file."""
    if "${" in text:
        raise FmdiffError(f"{where} holds {text!r:.80}, and ${{...}} is not taken from a file")


def _vouched(
    key: str, tree: Any, kinds: Kinds | None, trust: tuple[str, ...], where: object
) -> Any:
    if isinstance(tree, str):
        check_text(tree, where)
    if isinstance(tree, list):
        return [_vouched(key, item, kinds, trust, where) for item in tree]
    if not isinstance(tree, Mapping):
        return tree
    if "_target_" in tree:
        target = tree["_target_"]
        locate(target, trust)
        trusted = str(target).startswith(trust)
        if kinds is not None and not trusted and not _is_of(tree, kinds.get(key, ())):
            raise FmdiffError(f"{where} names {target!r}, which is no {key or 'part'}")
        kinds = None if trusted else INNER
    return {
        name: list(trust) if name == "trust" else _vouched(name, value, kinds, trust, where)
        for name, value in tree.items()
    }


def _is_of(spec: Mapping[str, Any], bases: tuple[str, ...]) -> bool:
    """Whether a spec of a file describes an object of one of these classes."""
    if spec["_target_"] == "fmdiff.build.named":
        return bases == GROUPS["data"] and spec.get("group") == "data"
    return issubclass(kind(spec["_target_"]), tuple(locate(base) for base in bases))


def build(
    spec: Mapping[str, Any],
    *args: Any,
    trust: tuple[str, ...] | None = None,
    base: type = object,
    **extra: Any,
) -> Any:
    """Build what a mapping with `_target_` describes. Its other keys are keyword arguments.

    Nested mappings with a `_target_` are built first. `args` and `extra` come from the program
    (a path for an objective, a data shape for a network) and are never written in a YAML.
    Raises FmdiffError if the object is no `base`.
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
    if not callable(factory):
        raise FmdiffError(f"_target_={spec['_target_']!r} is neither a class nor a function")
    if isinstance(factory, type) and not issubclass(factory, base):
        of_class(factory, base)
    try:
        return of_class(factory(*args, **keywords, **extra), base)
    except TypeError as error:
        if error.__traceback__ and error.__traceback__.tb_next is not None:
            raise  # raised inside the constructor: a bug, not a wrong keyword
        raise FmdiffError(f"{spec['_target_']}: {error}") from error


def named(group: str, name: str, *args: Any, **changes: Any) -> Any:
    """The object that configs/GROUP/NAME.yaml describes, with `changes` of its keys.

    A file may call this function, so only fmdiff's own YAML files and what they name are allowed.
    """
    return build({**spec_of(group, name), **changes}, *args, trust=())


def spec_of(group: str, name: str) -> dict[str, Any]:
    """The content of configs/GROUP/NAME.yaml. Raises FmdiffError if there is no such file."""
    from omegaconf import OmegaConf

    folder = config_folder() / group
    outside = Path(group).name != group or Path(name).name != name
    if outside or not (folder / f"{name}.yaml").is_file():
        raise FmdiffError(
            f"unknown {group} {name!r}; {nearest(name, (p.stem for p in folder.glob('*.yaml')))}"
        )
    spec = OmegaConf.to_container(OmegaConf.load(folder / f"{name}.yaml"))
    assert isinstance(spec, dict)
    return {str(key): value for key, value in spec.items()}


def config_folder() -> Path:
    """The folder of configs: fmdiff/configs if installed, ../configs in a checkout."""
    package = Path(__file__).resolve().parent
    return next(p for p in (package / "configs", package.parent / "configs") if p.is_dir())
