import math
import re
from itertools import pairwise

import numpy as np
import pytest

from fmdiff.report import charts
from fmdiff.report.charts import Axis, Line, chart, short


def places(svg):
    """[(x, y)] of the points of each line, in pixels."""
    lines = re.findall(r'<polyline class="\w+" points="([^"]*)" data-label', svg)
    return [[tuple(map(float, p.split(","))) for p in line.split(" ")] for line in lines]


@pytest.mark.parametrize("log", [False, True])
@pytest.mark.parametrize(
    "least, most", [(0.123, 0.13), (1e-7, 3e4), (0.6, 0.9), (3, 17), (20, 90000), (1e-9, 2e-9)]
)
def test_ticks_are_round_and_in_range(least, most, log):
    ticks = Axis(least, most, 0, 100, log).ticks()
    assert 2 <= len(ticks) <= 10
    slack = 1e-6 * (most - least)
    assert all(least - slack <= tick <= most + slack for tick in ticks)
    assert all(a < b for a, b in pairwise(ticks))
    for tick in ticks:  # at most three digits
        assert float(f"{tick:.2e}") == pytest.approx(tick, rel=1e-9)


def test_positions_are_affine_in_the_value_or_in_its_logarithm():
    points = [(1, 0.5), (2, 0.25), (3, 1.0)]
    [[a, b, c]] = places(chart([Line("a", points, "s0")], "loss", log_y=False))
    assert (b[0] - a[0]) == pytest.approx(c[0] - b[0], abs=0.2)
    assert (b[1] - a[1]) / (a[1] - c[1]) == pytest.approx(0.5, abs=0.02) and c[1] < a[1] < b[1]
    points = [(1, 0.1), (10, 1.0), (100, 100.0)]
    [[a, b, c]] = places(chart([Line("a", points, "s0")], "loss", log_x=True))
    assert (b[0] - a[0]) == pytest.approx(c[0] - b[0], abs=0.2)  # factors of ten
    assert (b[1] - c[1]) == pytest.approx(2 * (a[1] - b[1]), abs=0.3)  # chosen: a wide range


@pytest.mark.parametrize(
    "values, log",
    [([0.6, 0.9], False), ([0.01, 1.0], True), ([0, 1.0], False), ([-1, 1000.0], False)],
)
def test_a_logarithmic_axis_is_chosen_where_it_helps(values, log):
    svg = chart([Line("a", list(enumerate(values)), "s0")], "loss", y_label="loss")
    assert ("loss (log)" in svg) == log


ODD_CURVES = {
    "one": [(100, 0.5)],
    "constant": [(1, 0.0), (2, 0.0)],
    "huge": [(0, 1e300), (1e9, -1e300)],
    "tiny": [(1, 5e-324), (2, 1e-320)],
    "same step": [(7, 1.0), (7, 2.0)],
    "back": [(9, 1.0), (3, 2.0), (5, 1e-3)],
}


@pytest.mark.parametrize("log", [False, True, None])
@pytest.mark.parametrize("curve", ODD_CURVES.values(), ids=ODD_CURVES)
def test_any_finite_curve_can_be_drawn_inside_the_frame(curve, log):
    svg = chart([Line("a", curve, "s0")], "odd", log_x=bool(log), log_y=log)
    for line in places(svg):
        for x, y in line:
            assert charts.LEFT - 1 <= x <= charts.WIDTH and 0 <= y <= charts.HEIGHT
    assert chart([], "none") == "" and chart([Line("a", [], "s0")], "none") == ""


def test_labels_stand_apart_and_inside():
    lines = [Line(f"run {i}", [(0, 1.0), (1, 1.0 + i / 1000)], f"s{i}") for i in range(8)]
    svg = chart(lines, "loss")
    ys = [float(y) for y in re.findall(r'<text class="label s\d" x="[\d.]+" y="([\d.]+)"', svg)]
    assert len(ys) == 8 and min(np.diff(sorted(ys))) > 10
    assert min(ys) > 0 and max(ys) < charts.HEIGHT


def test_a_long_curve_keeps_its_ends():
    curve = [(i, math.exp(-i / 1e4)) for i in range(50_000)]
    svg = chart([Line("a", curve, "s0")], "loss")
    values = re.search(r'data-values="([^"]*)"', svg)[1].split(" ")
    assert len(values) <= charts.POINTS
    assert values[0] == "0,1" and values[-1].startswith("49999,")


@pytest.mark.parametrize("value", [0.0, 0.5, 1234.5, -3.25e-7, 1e-4, 12345, 2.5e6, 8e12, 5e-324])
def test_short_numbers_keep_four_digits(value):
    text = short(value)
    size = {"k": 1e3, "M": 1e6, "G": 1e9}.get(text[-1], 1)
    assert float(text.rstrip("kMG")) * size == pytest.approx(value, rel=6e-4)
    assert len(text) <= 9
