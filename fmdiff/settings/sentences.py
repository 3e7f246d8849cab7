"""Explains in one sentence why Hydra refuses an override, such as an unknown name."""

import re
from collections.abc import Callable
from typing import Any

from hydra.core.config_loader import ConfigLoader
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException, MissingConfigException
from hydra.types import RunMode
from omegaconf import DictConfig, flag_override

from fmdiff.errors import FmdiffError, nearest
from fmdiff.settings import extras

Compose = Callable[[list[str]], DictConfig]


def key_of(override: str) -> str:
    """The key or group that an override sets: `model` for `+model=unet`."""
    return override.partition("=")[0].lstrip("+~").partition("@")[0]


def choices_of(hydra_cfg: Any) -> dict[str, str | None]:
    """{group: chosen name} of the `hydra` node of a config, without Hydra's own groups."""
    choices = hydra_cfg.runtime.choices.items()
    return {group: name for group, name in choices if group.split("/")[0] != "hydra"}


def check_grammar(
    parser: OverridesParser, loader: ConfigLoader, override: str, mode: RunMode
) -> None:
    """Raises FmdiffError for an override that cannot be parsed or is useless in this mode."""
    key, equals, value = override.partition("=")
    if not key or not (equals or key.startswith("~")):
        raise FmdiffError(f"{override!r} is not of the form key=value or group=choice")
    if key_of(override).partition(".")[0] == "choices":
        raise FmdiffError(f"{override}: choices says what was chosen; write GROUP=NAME")
    try:
        setting = parser.parse_override(override)
    except HydraException as error:
        raise FmdiffError(_unreadable(key, value)) from error
    if setting.is_sweep_override():
        if mode == RunMode.RUN:
            raise FmdiffError(
                f"{override} asks for several runs: add -m to sweep, or write {key}=[...] for "
                f"a list and '{key}=\"{value}\"', with both quotes, for a text"
            )
        return
    group = key_of(override)
    if setting.is_delete() or isinstance(setting.value(), str) or "." in group:
        return
    if choices := loader.get_group_options(group):  # it takes milliseconds
        raise FmdiffError(f"{override}: {group} takes one name; {nearest(value, choices)}")


def refusal(compose: Compose, loader: ConfigLoader, error: Exception, overrides: list[str]) -> str:
    """Explain why Hydra does not compose these overrides."""
    if isinstance(error, MissingConfigException) and error.options:
        group, _, name = str(error.missing_cfg_file).rpartition("/")
        if group == "hydra/launcher" and name.startswith("submitit"):
            return extras.sentence(f"{group}={name}", "submitit", "slurm")
        return f"unknown {group} {name!r}; {nearest(name, error.options)}"
    match = re.match(r"Could not (override|delete|append)[^']*'([^'=]+)", str(error))
    if match and match[1] == "append":
        return f"{match[2]} exists: write {match[2]}= without the +"
    if match and (sentence := _unknown_key(compose, loader, match[2], overrides)):
        return sentence
    return one_line(error)


def _unknown_key(
    compose: Compose, loader: ConfigLoader, key: str, overrides: list[str]
) -> str | None:
    group = key.partition("@")[0]
    cfg = compose([o for o in overrides if key_of(o) not in (key, group)])
    choices = choices_of(cfg.hydra)
    with flag_override(cfg, ["struct", "readonly"], [False, False]):
        del cfg["hydra"]
    keys = [name for name in dotted(cfg) if not name.startswith("choices")]
    if key in keys:
        return None
    parent, _, last = key.rpartition(".")
    level = [name for name in keys if name.rpartition(".")[0] == parent]
    where = f" of {parent}={choices[parent]}" if choices.get(parent) else ""
    elsewhere = [name for name in keys if name.rpartition(".")[2] == last]
    if elsewhere:
        return f"unknown key {key!r}{where}; did you mean {elsewhere[0]!r}?"
    if level:
        return f"unknown key {key!r}{where}; {nearest(key, level)}"
    if where:
        others = ", ".join(loader.get_group_options(parent))
        return f"unknown key {key!r}{where}, which has none; another {parent} may: {others}"
    return f"unknown key {key!r}; {nearest(key, [k for k in keys if '.' not in k])}"


def dotted(node: Any, prefix: str = "") -> list[str]:
    """The dotted names of all keys of a config that can be overridden."""
    if not isinstance(node, DictConfig) or node._is_none() or node._is_interpolation():
        return []
    names = []
    for key in node:
        if key != "_target_":
            names += [f"{prefix}{key!s}", *dotted(node._get_node(key), f"{prefix}{key!s}.")]
    return names


def _unreadable(key: str, value: str) -> str:
    for opening, closing in ("[]", "{}"):
        if value.count(opening) != value.count(closing):
            return f"{key}={value}: an {opening} and a {closing} must close each other"
    return (
        f"{key}={value} cannot be read: a text with = ( ) or , needs both kinds of quotes in a "
        f"shell, '{key}=\"{value.strip(chr(34) + chr(39))}\"'"
    )


def one_line(error: Exception) -> str:
    """The message of a library's error and its cause, without advice about that library."""
    lines = [*str(error).splitlines(), *str(error.__cause__ or "").splitlines()]
    useful = [line.strip() for line in lines if line.strip() and "object_type=" not in line]
    return "; ".join(useful) or type(error).__name__
