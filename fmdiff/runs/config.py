"""Reads the settings of a run from config.yaml, and compares the settings of two runs."""

import math
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf
from yaml import YAMLError

from fmdiff.errors import FmdiffError
from fmdiff.files import read_text

ABSENT = "(absent)"


def load_config(folder: Path) -> DictConfig | None:
    """The config.yaml of a run folder; None if there is none.

    Raises FmdiffError for a file that cannot be read or is not a config.
    """
    try:
        cfg = OmegaConf.create(read_text(folder / "config.yaml", folder))
    except (FileNotFoundError, NotADirectoryError):
        return None
    except (OSError, ValueError, YAMLError) as error:
        raise FmdiffError(f"{folder / 'config.yaml'} cannot be read: {error}") from error
    if not isinstance(cfg, DictConfig):
        raise FmdiffError(f"{folder / 'config.yaml'} is not a config")
    OmegaConf.set_struct(cfg, True)
    return cfg


def differences(saved: DictConfig, now: DictConfig) -> dict[str, tuple[Any, Any]]:
    """{dotted key: (saved, now)} where two resolved configs differ, except in `choices`.

    The value of a missing key is "(absent)".
    """
    old, new = (dict(leaves(OmegaConf.to_container(cfg))) for cfg in (saved, now))
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
