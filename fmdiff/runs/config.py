"""Reads the settings of a run from config.yaml, and compares the settings of two runs."""

import math
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import yaml
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from fmdiff.build import check_text
from fmdiff.errors import FmdiffError
from fmdiff.files import open_regular

ABSENT = "(absent)"
# bounds on a file that anyone may have written; fmdiff's own files are far below them
LONGEST = 2**20  # bytes
NODES, DEPTH = 20_000, 50  # values and levels of a config.yaml
PARSER = yaml.CSafeLoader if yaml.__with_libyaml__ else yaml.SafeLoader


def load_config(folder: Path) -> DictConfig | None:
    """The config.yaml of a run folder; None if there is none.

    Anyone may have written it, and it holds plain values alone. Raises FmdiffError for a file that
    cannot be read, is not a config, or holds an alias, a tag, a `${...}` or too many values.
    """
    file = folder / "config.yaml"
    try:
        text = small_text(file)
        _check_yaml(text)
        cfg = OmegaConf.create(text) if text.strip() else OmegaConf.create()
        plain = OmegaConf.to_container(cfg)
    except (FileNotFoundError, NotADirectoryError):
        return None
    except (OSError, yaml.YAMLError, OmegaConfBaseException, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else None
        raise FmdiffError(f"{file} cannot be read: {reason or error}") from error
    if not isinstance(cfg, DictConfig) or not isinstance(plain, dict):
        raise FmdiffError(f"{file} is not a config")
    check_plain(plain, file)
    OmegaConf.set_struct(cfg, True)
    return cfg


def small_text(file: Path) -> str:
    """The text of a file of a run folder, which anyone may have written.

    Raises OSError for a file that cannot be opened, is no regular file or leads out of the folder,
    and ValueError for one that is longer than LONGEST or is not UTF-8.
    """
    with open_regular(file, file.parent) as source:
        content = source.read(LONGEST + 1)
    if len(content) > LONGEST:
        raise ValueError(f"it is longer than {LONGEST:,} bytes")
    return content.decode()


def _check_yaml(text: str) -> None:
    """Raise ValueError for YAML that is not plain, or too large. Builds nothing."""
    count = depth = 0
    for event in yaml.parse(text, Loader=PARSER):
        count += isinstance(event, yaml.NodeEvent)
        depth += isinstance(event, yaml.CollectionStartEvent)
        depth -= isinstance(event, yaml.CollectionEndEvent)
        if isinstance(event, yaml.AliasEvent):
            raise ValueError(f"it holds an alias, *{event.anchor}, and fmdiff writes none")
        if isinstance(event, yaml.ScalarEvent | yaml.CollectionStartEvent) and event.tag:
            raise ValueError(f"it holds a tag, {event.tag}, and fmdiff writes none")
        if count > NODES or depth > DEPTH:
            raise ValueError(f"it holds more than {NODES:,} values or {DEPTH} levels")


def check_plain(content: Any, where: object) -> None:
    """Raise FmdiffError unless the content of a file is dicts, lists, texts, numbers and nulls.

    A text with `${`, which OmegaConf could fill in from elsewhere, is refused too. where: names
    the file in the message.
    """
    kind = type(content)
    parts: list[Any] = []
    if kind is dict:
        parts = [*content.values(), *content]
    elif kind is list:
        parts = content
    elif kind is str:
        check_text(content, where)
    elif not (content is None or kind in (bool, int, float)):
        raise FmdiffError(f"{where} holds a {kind.__name__}, which no setting is")
    for part in parts:
        check_plain(part, where)


def settings_of(cfg: Mapping[Any, Any] | DictConfig) -> Mapping[Any, Any]:
    """The content of a config as a dict; no `${...}` is filled in."""
    return OmegaConf.to_container(cfg) if isinstance(cfg, DictConfig) else cfg  # type: ignore


def differences(
    saved: Mapping[Any, Any] | DictConfig, now: Mapping[Any, Any] | DictConfig
) -> dict[str, tuple[Any, Any]]:
    """{dotted key: (saved, now)} where two resolved configs differ, except in `choices`.

    The value of a missing key is "(absent)".
    """
    old, new = (dict(leaves(settings_of(cfg))) for cfg in (saved, now))
    return {
        key: (old.get(key, ABSENT), new.get(key, ABSENT))
        for key in [*old, *(key for key in new if key not in old)]
        if not key.startswith("choices.") and old.get(key, ABSENT) != new.get(key, ABSENT)
    }


def changes_text(changes: dict[str, tuple[Any, Any]]) -> str:
    """Describe differences for the end of a sentence."""
    return ", ".join(
        f"{key}: {saved} (saved) vs {now} (now)" for key, (saved, now) in changes.items()
    )


def leaves(node: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Yields (dotted key, value) of every value that is not a mapping, or an empty one."""
    for key, value in node.items():
        if isinstance(value, dict) and value:
            yield from leaves(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def seconds(value: Any) -> float | None:
    """Convert a duration, seconds or "hours:minutes:seconds", to seconds; null gives None.

    Raises ValueError for anything else.
    """
    if value is None:
        return None
    if isinstance(value, int | float) and 0 < value < math.inf and value is not True:
        return float(value)
    parts = re.fullmatch(r"(\d+):([0-5]?\d):([0-5]?\d)", str(value))
    if parts is None:
        raise ValueError(value)
    hours, minutes, rest = map(int, parts.groups())
    total = 3600 * hours + 60 * minutes + rest
    if total <= 0:
        raise ValueError(value)
    return float(total)
