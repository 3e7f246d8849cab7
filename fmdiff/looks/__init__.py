"""The colours of everything fmdiff shows, read from looks.css, their one source."""

import re
from pathlib import Path

CSS = (Path(__file__).parent / "looks.css").read_text("utf-8")


def _variables(rules: str) -> dict[str, str]:
    """The variables of a part of the style sheet by name, without their dashes."""
    return dict(re.findall(r"--([\w-]+):\s*([^;]+);", rules))


_light, _dark = CSS.split("@media (prefers-color-scheme: dark)")
LIGHT = _variables(_light)  # colours, fonts and sizes of the light theme
DARK = LIGHT | _variables(_dark)
SERIES = (
    "blue",
    "orange",
    "green",
    "purple",
    "brown",
    "red",
)  # the order in which lines take them
