"""The settings of a run, as config.yaml holds them, and the differences between two of them."""

import math
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf
from yaml import YAMLError

from fmdiff.errors import FmdiffError

ABSENT = "(absent)"


def load_config(folder: Path) -> DictConfig | None:
    """The config.yaml of a run folder; None without one.

    Raises FmdiffError for one that cannot be read or is no config.
    """
    try:
        cfg = OmegaConf.load(folder / "config.yaml")
    except (FileNotFoundError, NotADirectoryError):
        return None
    except (OSError, YAMLError) as error:
        raise FmdiffError(f"{folder / 'config.yaml'} cannot be read: {error}") from error
    if not isinstance(cfg, DictConfig):
        raise FmdiffError(f"{folder / 'config.yaml'} is not a config")
    OmegaConf.set_struct(cfg, True)
    return cfg


def differences(saved: DictConfig, now: DictConfig) -> dict[str, tuple[Any, Any]]:
    """{dotted key: (saved, now)} where two resolved configs differ, except in `choices`.

    A key that only one of them has counts as "(absent)" in the other.
    """
    old, new = (dict(leaves(OmegaConf.to_container(cfg))) for cfg in (saved, now))
    return {
        key: (old.get(key, ABSENT), new.get(key, ABSENT))
        for key in [*old, *(key for key in new if key not in old)]
        if not key.startswith("choices.") and old.get(key, ABSENT) != new.get(key, ABSENT)
    }


def changes_text(changes: dict[str, tuple[Any, Any]]) -> str:
    """Differences in words, for the end of a sentence."""
    return ", ".join(
        f"{key}: {saved} (saved) vs {now} (now)" for key, (saved, now) in changes.items()
    )


def leaves(node: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """(dotted key, value) of every value that is not a mapping; an empty mapping is a value."""
    for key, value in node.items():
        if isinstance(value, dict) and value:
            yield from leaves(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def seconds(value: Any) -> float | None:
    """A duration, seconds or "hours:minutes:seconds", in seconds; None for null.

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
