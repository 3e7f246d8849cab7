"""Explains in one sentence why Hydra refuses an override, such as an unknown name."""

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

from hydra.core.config_loader import ConfigLoader
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException, MissingConfigException
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf, flag_override
from yaml import YAMLError

from fmdiff.build import config_folder, spec_of
from fmdiff.errors import FmdiffError, nearest
from fmdiff.settings import extras, schema

Compose = Callable[[list[str]], DictConfig]


def key_of(override: str) -> str:
    """The key or group that an override sets: `model` for `+model=unet`."""
    return override.partition("=")[0].lstrip("+~").partition("@")[0]


def choices_of(hydra_cfg: Any) -> dict[str, str | None]:
    """{group: chosen name} of the `hydra` node of a config, without Hydra's own groups."""
    choices = hydra_cfg.runtime.choices.items()
    return {group: name for group, name in choices if group.split("/")[0] != "hydra"}


# the key that names a run, by command, for words without a key
RUN_KEYS = {"train": "resume", "report": "runs"}


# commands that take conditions, under names that only the model knows
CONDITIONED = ("sample", "evaluate", "likelihood", "invert")


def added(command: str, overrides: list[str]) -> list[str]:
    """The overrides, with `++` before keys of `cond`: Hydra takes no other new ones.

    Raises FmdiffError for a condition and a command that takes none, and for one without a name.
    """
    return [_added(command, override) for override in overrides]


def _added(command: str, override: str) -> str:
    group, _, name = key_of(override).partition(".")
    if group != "cond" or override.startswith("~"):
        return override
    if command not in CONDITIONED:
        raise FmdiffError(
            f"{override}: fmdiff {command} takes no conditions; {', '.join(CONDITIONED[:-1])} and "
            f"{CONDITIONED[-1]} do"
        )
    if not name:
        raise FmdiffError(f"{override}: a condition has a name, as in cond.NAME=VALUE")
    return f"++{override.lstrip('+')}"


def texts(parser: OverridesParser, overrides: list[str]) -> list[str]:
    """The overrides, with quotes around paths and names that Hydra would not read as a text.

    These are numbers, true and false, and characters that Hydra does not know: out=2024, out=nan,
    name=on, out=\u00e4.
    """
    return [_quoted(parser, override) for override in overrides]


def _quoted(parser: OverridesParser, override: str) -> str:
    key, equals, value = override.partition("=")
    if key_of(override) not in schema.PATHS or not value or set(value) & set("'\"\\,[]{}$"):
        return override
    try:
        plain = parser.parse_override(override).value()
    except HydraException:
        plain = 0
    flag = isinstance(plain, bool) and key_of(override) == "resume"
    if flag or plain is None or not isinstance(plain, bool | int | float):
        return override
    return f'{key}{equals}"{value}"'


def check_grammar(
    parser: OverridesParser, loader: ConfigLoader, command: str, override: str, mode: RunMode
) -> None:
    """Raises FmdiffError for an override that cannot be parsed or is useless in this mode."""
    key, equals, value = override.partition("=")
    if not key or not (equals or key.startswith("~")):
        raise FmdiffError(_no_key(command, override))
    if key_of(override).partition(".")[0] == "choices":
        raise FmdiffError(f"{override}: choices says what was chosen; write GROUP=NAME")
    try:
        setting = parser.parse_override(override)
    except HydraException as error:
        raise FmdiffError(_unreadable(key.lstrip("+"), value)) from error
    if setting.is_sweep_override():
        if mode == RunMode.RUN:
            raise FmdiffError(_several(loader, command, override))
        return
    group = key_of(override)
    if setting.is_delete() or isinstance(setting.value(), str) or "." in group:
        return
    if choices := loader.get_group_options(group):  # it takes milliseconds
        more = f"; several are grid.{override}" if _in_grid(command, group) else ""
        raise FmdiffError(f"{override}: {group} takes one name{more}; {nearest(value, choices)}")


def _no_key(command: str, word: str) -> str:
    """A sentence about a word without a key, or without a value."""
    sentence = f"{word!r} is not of the form key=value or group=choice"
    bare = re.fullmatch(r"[A-Za-z_][\w.]*", word) and not Path(word).exists()
    if word.startswith("=") or bare:
        sentence += ", written without spaces"
    if command == "simulate" or word.startswith("=") or word in schema.RULES:
        return sentence
    return f"{sentence}; a run is named by {RUN_KEYS.get(command, 'ckpt')}={word}"


def _in_grid(command: str, key: str) -> bool:
    return command == "evaluate" and f"grid.{key}" in schema.RULES


def _several(loader: ConfigLoader, command: str, override: str) -> str:
    """A sentence about values with commas between them, in a command that runs once."""
    override = override.lstrip("+")
    key, _, value = override.partition("=")
    rule = schema.OWN_RULES.get(command, {}).get(key) or schema.RULES.get(key)
    cures = ["add -m to sweep"]
    if _in_grid(command, key):
        cures.append(f"write grid.{key}=[{value}] for one table")
    if loader.get_group_options(key):
        return f"{override} asks for several runs: {', or '.join(cures)}"
    try:
        items: Any = OmegaConf.to_container(OmegaConf.create(f"[{value}]"))
    except (YAMLError, ValueError):
        items = value.split(",")
    if rule is None or rule.passes(items):
        cures.append(f"write {key}=[{value}] for a list")
    if rule is None or rule.passes(value):
        cures.append(f"'{key}=\"{value}\"', with both quotes, for a text")
    decimal = re.fullmatch(r"\d+,\d+", value)
    if decimal and (rule is None or rule.passes(float(value.replace(",", ".")))):
        cures.append(f"{key}={value.replace(',', '.')} for a decimal number")
    return f"{override} asks for several runs: {', or '.join(cures)}"


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
    if owners := [] if where else _owners(parent, last):
        return f"{key} goes with {parent}={' or '.join(owners)}: choose it, too"
    if elsewhere:
        return f"unknown key {key!r}{where}; did you mean {elsewhere[0]!r}?"
    if level:
        return f"unknown key {key!r}{where}; {nearest(key, level)}"
    if where:
        options = loader.get_group_options(parent)
        others = ", ".join(name for name in options if name != choices[parent])
        return f"unknown key {key!r}{where}, which has none; another {parent} may: {others}"
    return f"unknown key {key!r}; {nearest(key, [k for k in keys if '.' not in k])}"


def _owners(group: str, key: str) -> list[str]:
    """The choices in a group of fmdiff's YAML files that have the key."""
    names = sorted(file.stem for file in (config_folder() / group).glob("*.yaml")) if group else []
    return [name for name in names if key in spec_of(group, name)]


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
