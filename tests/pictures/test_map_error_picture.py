"""The picture of a flow map against the exact one."""

import math

import pytest
from PIL import Image

from fmdiff.pictures import plots
from fmdiff.pictures.map_error import NUMBERED, figure, number

RMS = [[0.25, math.nan, math.nan], [0.5, 0.031, math.nan], [1.5, 0.75, 4e-4]]
MEDIAN = [[0.1, math.nan, math.nan], [0.2, 0.02, math.nan], [0.3, 0.4, 0.0]]


def test_each_cell_has_its_rms_and_its_median():
    picture = figure([0.0, 0.25, 0.5], [0.25, 0.5, 1.0], RMS, MEDIAN, "std of the data")
    ax, bar = picture.axes
    texts = {}
    for text in ax.texts:
        x, y = text.get_position()
        texts.setdefault((round(x), round(y)), []).append(text.get_text())
    assert texts == {
        (0, 0): [".25", ".10"],
        (0, 1): [".50", ".20"],
        (1, 1): [".031", ".020"],
        (0, 2): ["1.5", ".30"],
        (1, 2): [".75", ".40"],
        (2, 2): ["4e-4", "0"],
    }
    assert [label.get_text() for label in ax.get_xticklabels()] == ["0", "0.25", "0.5"]
    assert [label.get_text() for label in ax.get_yticklabels()] == ["0.25", "0.5", "1"]
    assert (ax.get_xlabel(), ax.get_ylabel()) == ("start $t$", "end $s$")
    assert "rms" in ax.get_title("left") and "median" in ax.get_title("left")
    assert "std of the data" in bar.get_ylabel()
    # the first end lies at the bottom, and larger errors are lighter
    assert ax.images[0].origin == "lower"
    norm, colors = ax.images[0].norm, ax.images[0].cmap
    assert norm(1.5) == 1 and norm(4e-4) == 0 and sum(colors(1.0)[:3]) > sum(colors(0.0)[:3]) + 1


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0.0, "0"),
        (1e-25, "0"),
        (3.4e-5, "3e-5"),
        (0.0123, ".012"),
        (0.3, ".30"),
        (0.999, "1.0"),
        (12.3, "12"),
        (98.9, "99"),
        (250.0, "2e2"),
    ],
)
def test_numbers_are_short(value, text):
    assert number(value) == text


def test_no_error_one_end_and_many_times_are_drawn(tmp_path):
    zero = [[0.0, math.nan], [0.0, 0.0]]
    row = [[0.1, 0.2, 0.3]]
    n = NUMBERED + 6
    many = [[0.1 if t <= s else math.nan for t in range(n)] for s in range(n)]
    for starts, ends, values in (
        ([0.0, 0.5], [0.5, 1.0], zero),
        ([0.0, 0.3, 0.6], [1.0], row),
        (list(range(n)), list(range(1, n + 1)), many),
    ):
        picture = figure(starts, ends, values, values, "std of the data")
        assert len(picture.axes[0].texts) == (0 if values is many else 6)
        plots.save(picture, tmp_path / "a.png")
        assert Image.open(tmp_path / "a.png").size > (400, 400)
