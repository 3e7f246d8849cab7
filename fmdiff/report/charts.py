"""Line charts as inline SVG, drawn for the width of a phone and coloured by the page's CSS."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from itertools import pairwise

from fmdiff.report.read import Curve

WIDTH, HEIGHT = 344, 220  # of the view box, about CSS pixels
LEFT, TOP, BOTTOM = 46, 10, 34  # LEFT: at least, long numbers take more
LETTER = 5.9  # width of a letter of the labels
DIGIT = 7.0  # width of a digit of the ticks, in the widest of the page's fonts
TITLE = 14  # width of the title of the values, which is written upwards
MARKED = 12  # different steps up to which each has its tick
POINTS = 400  # points of a line that are drawn
LOG_FROM = 4.0  # the ratio of largest to smallest from which a logarithmic axis helps


@dataclass
class Line:
    """A curve with its name at its end. `look` is a class of the style sheet."""

    label: str
    points: Curve
    look: str
    dots: bool = False


@dataclass
class Axis:
    """A range of values on low..high pixels. `log` needs positive values."""

    least: float
    most: float
    low: float
    high: float
    log: bool = False

    def __call__(self, value: float) -> float:
        f = math.log if self.log else float
        share = (f(value) - f(self.least)) / (f(self.most) - f(self.least))
        return self.low + share * (self.high - self.low)

    def ticks(self) -> list[float]:
        """Three to seven round values in the range."""
        values = self._ticks(self.log and self.most / self.least > LOG_FROM)
        return values if len(values) > 2 else self._ticks(log=False)

    def _ticks(self, log: bool) -> list[float]:
        least, most = self.least, self.most
        if log:
            first, last = math.floor(math.log10(least)), math.ceil(math.log10(most))
            every = max(1, math.ceil((last - first) / 6))
            steps = (1, 2, 5) if last - first <= 2 else (1, 3) if last - first <= 3 else (1,)
            values = [10.0**k * m for k in range(first, last + 1, every) for m in steps]
        else:
            wide = (most - least) / 5
            unit = 10 ** math.floor(math.log10(wide))
            step = next(m * unit for m in (1, 2, 2.5, 5, 10) if m * unit >= wide)
            first = math.ceil(least / step - 1e-9)
            values = [k * step for k in range(first, math.floor(most / step + 1e-9) + 1)]
        reach = 1e-9 * (most - least)
        return [value for value in values if least - reach <= value <= most + reach]


def short(value: float) -> str:
    """Format a number for a tick or a readout: 1234567 as 1.2M, 0.00012 as 1.2e-4."""
    for size, letter in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if abs(value) >= 10 * size or (abs(value) >= size and value % (size / 10) == 0):
            return f"{value / size:.4g}{letter}"
    text = f"{value:.4g}"
    if "e" in text or (value and abs(value) < 1e-3):
        mantissa, _, power = f"{value:.3g}".partition("e")
        if not power:
            mantissa, _, power = f"{value:e}".partition("e")
            mantissa = f"{float(mantissa):.3g}"
        text = f"{mantissa}e{int(power)}"
    return text


def in_words(value: float) -> str:
    """Format a number for a sentence: 3,424 and 0.6405."""
    return f"{value:,.0f}" if abs(value) >= 1000 else short(value)


@dataclass
class Frame:
    """The axes of a chart with their titles, from `left` to `right`.

    marks: the places of points, if there are few, which have the ticks then.
    """

    across: Axis
    up: Axis
    left: float
    right: float
    marks: Sequence[float]
    x_label: str
    y_label: str

    def rules(self) -> str:
        """A horizontal line and a number for each tick of the values."""
        return "".join(
            f'<path class="rule" d="M{self.left:.1f} {self.up(y):.1f}H{self.right:.1f}"/>'
            f'<text class="tick" x="{self.left - 6:.1f}" y="{self.up(y) + 3.5:.1f}" '
            f'text-anchor="end">{short(y)}</text>'
            for y in self.up.ticks()
        )

    def axis(self) -> str:
        """The horizontal axis with its ticks. Numbers that would overlap are left out."""
        axis = f'<path class="axis" d="M{self.left:.1f} {HEIGHT - BOTTOM}H{self.right:.1f}"/>'
        end = -math.inf
        for x in self.marks or self.across.ticks():
            text, place = short(x), self.across(x)
            axis += f'<path class="axis" d="M{place:.1f} {HEIGHT - BOTTOM}v4"/>'
            if place - len(text) * DIGIT / 2 > end + 4:
                axis += (
                    f'<text class="tick" x="{place:.1f}" y="{HEIGHT - BOTTOM + 16}" '
                    f'text-anchor="middle">{text}</text>'
                )
                end = place + len(text) * DIGIT / 2
        return axis

    def titles(self) -> str:
        """The names of both axes."""
        return (
            f'<text class="tick" x="{(self.left + self.right) / 2:.0f}" y="{HEIGHT - 4}" '
            f'text-anchor="middle">{escape(self.x_label)}'
            f"{' (log)' if self.across.log else ''}</text>"
            f'<text class="tick" x="{-(TOP + HEIGHT - BOTTOM) / 2:.0f}" y="9" '
            f'transform="rotate(-90)" text-anchor="middle">{escape(self.y_label)}'
            f"{' (log)' if self.up.log and self.y_label else ''}</text>"
        )


def chart(
    lines: Sequence[Line],
    title: str,
    x_label: str = "step",
    y_label: str = "",
    log_x: bool = False,
    log_y: bool | None = None,
    front: Curve = (),  # type: ignore[assignment]
) -> str:
    """Draw lines as an <svg>, or '' without points. log_y: None is logarithmic where that helps.

    front: the points of the Pareto front, which are ringed and joined.
    """
    lines = [line for line in lines if line.points]
    if not lines:
        return ""
    xs = [x for line in lines for x, _ in line.points]
    ys = [y for line in lines for _, y in line.points]
    positive = min(ys) > 0
    log_y = positive and (max(ys) / min(ys) > LOG_FROM if log_y is None else log_y)
    several = len(lines) > 1  # then they are labelled
    room = max(len(_cut(line.label)) for line in lines) * LETTER + 12 if several else 12
    up = _axis(ys, HEIGHT - BOTTOM, TOP, log_y)
    left = max(LEFT, TITLE + max(len(short(y)) for y in up.ticks()) * DIGIT + 6)
    across = _axis(xs, left, WIDTH - room, log_x and min(xs) > 0, 0 if log_x else None)
    places = sorted(set(xs))
    marks = places if len(places) <= MARKED else []
    frame = Frame(across, up, left, WIDTH - room, marks, x_label, y_label)
    curves = "".join(_line(line, across, up) for line in lines)
    if front:
        way = " ".join(f"{across(x):.1f},{up(y):.1f}" for x, y in front)
        rings = "".join(
            f'<circle class="ring" cx="{across(x):.1f}" cy="{up(y):.1f}" r="6"/>' for x, y in front
        )
        curves = f'<polyline class="front" points="{way}"/>{curves}{rings}'
    labels = _labels(lines, across, up) if several else ""
    summary = f"{title}: " + "; ".join(
        f"{line.label} from {short(line.points[0][1])} to {short(line.points[-1][1])}"
        for line in lines[:8]
    )
    return (
        f'<svg class="chart enlarges" viewBox="0 0 {WIDTH} {HEIGHT}" role="img" tabindex="0" '
        f'aria-label="{escape(summary)}" data-x="{escape(x_label)}">'
        f"{frame.rules()}{frame.axis()}{frame.titles()}"
        f'{curves}{labels}<path class="cursor" d="" visibility="hidden"/></svg>'
    )


def _axis(values: list[float], low: float, high: float, log: bool, pad: int | None = 1) -> Axis:
    least, most = min(values), max(values)
    if least == most:
        least, most = (
            (least / 2, most * 2) if log else (least - abs(least or 1) / 2, most + abs(most or 1))
        )
    elif log:
        reach = (most / least) ** 0.06
        least, most = least / reach, most * reach
    elif pad:
        reach = (most - least) * 0.06
        least, most = (least if least == 0 else least - reach), most + reach
    return Axis(least, most, low, high, log)


def _line(line: Line, across: Axis, up: Axis) -> str:
    points = line.points
    if len(points) > POINTS:
        stride = (len(points) - 1) / (POINTS - 1)
        points = [points[round(i * stride)] for i in range(POINTS)]
    way = " ".join(f"{across(x):.1f},{up(y):.1f}" for x, y in points)
    values = " ".join(f"{x:g},{y:.4g}" for x, y in points)
    dots = ""
    if line.dots or len(points) == 1:
        dots = "".join(
            f'<circle class="{line.look}" cx="{across(x):.1f}" cy="{up(y):.1f}" r="2.5"/>'
            for x, y in points
        )
    return (
        f'<polyline class="{line.look}" points="{way}" data-label="{escape(line.label)}" '
        f'data-values="{values}"/>{dots}'
    )


def _labels(lines: Sequence[Line], across: Axis, up: Axis) -> str:
    """Write each line's name beside its end. Names that would overlap are moved apart."""
    ends = sorted((up(line.points[-1][1]), i) for i, line in enumerate(lines))
    places = [y for y, _ in ends]
    for _ in range(50):
        for i, (a, b) in enumerate(pairwise(places)):
            if b - a < 12:
                middle = (a + b) / 2
                places[i], places[i + 1] = middle - 6.05, middle + 6.05
        places = [min(max(y, TOP + 2), HEIGHT - BOTTOM) for y in places]
    return "".join(
        f'<text class="label {lines[i].look}" x="{across.high + 6:.1f}" y="{y + 3.5:.1f}">'
        f"{escape(_cut(lines[i].label))}</text>"
        for y, (_, i) in zip(places, ends, strict=True)
    )


def _cut(label: str) -> str:
    return label if len(label) <= 18 else f"{label[:17]}…"
