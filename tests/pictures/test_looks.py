"""The colours of fmdiff: contrast by WCAG 2, and distances as colour-blind eyes see them."""

import re
from itertools import combinations
from pathlib import Path

import numpy as np
import pytest

from fmdiff import looks

THEMES = {"light": looks.LIGHT, "dark": looks.DARK}
WORDS = ("ink", "muted", "accent", *looks.SERIES, *(f"rank{i}" for i in range(5)))
# of linear RGB: Machado, Oliveira and Fernandes (2009), severity 1.0
EYES = {
    "usual": np.eye(3),
    "protanopia": np.array(
        [
            [0.152286, 1.052583, -0.204868],
            [0.114503, 0.786281, 0.099216],
            [-0.003882, -0.048116, 1.051998],
        ]
    ),
    "deuteranopia": np.array(
        [
            [0.367322, 0.860646, -0.227968],
            [0.280085, 0.672501, 0.047413],
            [-0.011820, 0.042940, 0.968881],
        ]
    ),
}
XYZ = np.array(  # of linear sRGB, IEC 61966-2-1
    [
        [0.4124564, 0.3575761, 0.1804375],
        [0.2126729, 0.7151522, 0.0721750],
        [0.0193339, 0.1191920, 0.9503041],
    ]
)


def linear(color: str) -> np.ndarray:
    """The linear RGB of a colour #rrggbb."""
    c = np.array([int(color[i : i + 2], 16) for i in (1, 3, 5)]) / 255
    return np.where(c <= 0.04045, c / 12.92, ((c + 0.055) / 1.055) ** 2.4)


def contrast(a: str, b: str) -> float:
    """The contrast ratio of WCAG 2.2, between 1 and 21."""
    light, dark = sorted((float(XYZ[1] @ linear(color)) for color in (a, b)), reverse=True)
    return (light + 0.05) / (dark + 0.05)


def lab(rgb: np.ndarray) -> np.ndarray:
    """CIELAB of linear RGB, with the white of sRGB."""
    ratio = XYZ @ np.clip(rgb, 0, 1) / XYZ.sum(1)
    f = np.where(ratio > (6 / 29) ** 3, np.cbrt(ratio), ratio / (3 * (6 / 29) ** 2) + 4 / 29)
    return np.array([116 * f[1] - 16, 500 * (f[0] - f[1]), 200 * (f[1] - f[2])])


def distance(a: str, b: str, eyes: str) -> float:
    """The distance of two colours in CIELAB (CIE 1976)."""
    return float(np.linalg.norm(lab(EYES[eyes] @ linear(a)) - lab(EYES[eyes] @ linear(b))))


def test_the_measures_agree_with_known_values():
    assert contrast("#000000", "#ffffff") == pytest.approx(21, abs=1e-4)
    assert contrast("#777777", "#ffffff") == pytest.approx(4.48, abs=0.005)  # WCAG's example
    np.testing.assert_allclose(lab(linear("#ff0000")), (53.24, 80.09, 67.20), atol=0.02)
    # what the test below would refuse: a pair that only usual eyes tell apart
    assert distance("#9a6a1e", "#6a7d22", "usual") > 20
    assert distance("#9a6a1e", "#6a7d22", "protanopia") < 10


@pytest.mark.parametrize("theme", THEMES)
@pytest.mark.parametrize("ground", ["paper", "surface"])
@pytest.mark.parametrize("word", WORDS)
def test_words_can_be_read(theme, ground, word):
    assert contrast(THEMES[theme][word], THEMES[theme][ground]) >= 4.5


@pytest.mark.parametrize("theme", THEMES)
def test_warnings_can_be_read(theme):
    for word in ("warn", "ink"):
        assert contrast(THEMES[theme][word], THEMES[theme]["warn-surface"]) >= 4.5


@pytest.mark.parametrize("theme", THEMES)
@pytest.mark.parametrize("eyes", EYES)
def test_series_are_told_apart(theme, eyes):
    colors = {name: THEMES[theme][name] for name in looks.SERIES}
    pairs = {(a, b): distance(colors[a], colors[b], eyes) for a, b in combinations(colors, 2)}
    least = min(pairs, key=lambda pair: pairs[pair])
    assert pairs[least] > 12, (least, pairs[least])
    first = [pairs[pair] for pair in combinations(looks.SERIES[:2], 2)]
    assert min(first) > 40  # the pair that most plots show


def test_both_themes_name_the_same_colours():
    light = {name for name, value in looks.LIGHT.items() if value.startswith("#")}
    dark = {name for name in light if looks.DARK[name] != looks.LIGHT[name]}
    assert light == dark
    assert looks.LIGHT["blue"] in looks.CSS and re.fullmatch(r"#[0-9a-f]{6}", looks.LIGHT["blue"])
    assert set(looks.SERIES) < light


def test_the_page_about_looks_names_these_colours():
    page = (Path(__file__).parents[2] / "docs/looks.md").read_text("utf-8")
    table = page[page.index("| colour |") : page.index("The hues follow")]
    known = {*looks.LIGHT.values(), *looks.DARK.values()}
    assert set(re.findall(r"#[0-9a-f]{6}", table)) <= known
    for name in (*looks.SERIES, "ink", "muted", "accent", "paper", "surface"):
        assert f"`{name}`" in table and looks.LIGHT[name] in table
