"""The one style of all figures: colours, sizes, axes, titles and the sentence below them.

docs/looks.md describes it.
"""

import math
import textwrap
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any, Literal

from fmdiff.looks import LIGHT, SERIES

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

SAMPLES, EXACT = LIGHT["blue"], LIGHT["orange"]
COLORS = tuple(LIGHT[name] for name in SERIES)  # of lines, in this order
MARKERS = "os^Dv*"  # of the same lines, so that colour is never alone
DATA, INK, FRAME = LIGHT["muted"], LIGHT["ink"], LIGHT["frame"]
TITLE, LABEL, TICK = 9, 8, 7  # points; sentences and legends are as small as ticks
THIN, LINE, THICK = 0.6, 1.0, 1.4  # points: frames and many lines, one line, what is compared with
DPI = 200
LETTERS = 18  # letters of a sentence in an inch
LEADING = 0.14  # inches of a line of it
MANY = 50  # lines
TICKS = 6  # numbers along an axis of given values


def panels(
    width: float,
    height: float,
    columns: int = 1,
    ratios: Sequence[float] | None = None,
    see: str = "",
    rows: int = 1,
) -> tuple["Figure", list["Axes"]]:
    """A white figure of width x height inches with a row of quiet axes, or row after row of them.

    see: a sentence below the axes that says what to see, for which the figure grows.
    """
    from matplotlib.figure import Figure

    lines = textwrap.wrap(see, int(width * LETTERS))
    size = (width, height + len(lines) * LEADING)
    figure = Figure(figsize=size, dpi=DPI, facecolor="white", layout="constrained")
    grid = figure.subplots(rows, columns, squeeze=False, gridspec_kw={"width_ratios": ratios})
    axes = list(grid.flat)
    for ax in axes:
        ax.tick_params(length=2.5, width=THIN, color=FRAME, labelcolor=INK, labelsize=TICK)
        ax.locator_params(nbins=5)
        for spine in ax.spines.values():
            spine.set(color=FRAME, linewidth=THIN)
    if lines:
        figure.supxlabel("\n".join(lines), x=0.01, ha="left", fontsize=TICK, color=DATA)
    return figure, axes


def entitle(ax: "Axes", title: str, x: str = "", y: str = "", legend: bool = False) -> None:
    """Give axes a title, names for x and y and, if something has a label, a legend."""
    ax.set_title(title, loc="left", fontsize=TITLE, color=INK)
    ax.set_xlabel(x, fontsize=LABEL, color=INK)
    ax.set_ylabel(y, fontsize=LABEL, color=INK)
    if legend and ax.get_legend_handles_labels()[0]:
        # "best" asks every point
        place: Literal["best", "upper left"] = "best" if len(ax.lines) < MANY else "upper left"
        ax.legend(loc=place, edgecolor="none", framealpha=0.85, fontsize=TICK, labelcolor=INK)


def series(i: int) -> dict[str, Any]:
    """The look of line i of several: later ones are thinner, so that equal lines are all seen."""
    order = i % len(COLORS)
    return {
        "color": COLORS[order],
        "marker": MARKERS[order],
        "linestyle": "-" if i < len(COLORS) else "--",
        "markersize": 5.5 - 0.4 * order,
        "linewidth": 1.8 - 0.2 * order,
        "zorder": 2 + 0.1 * order,
    }


def logarithmic(ax: "Axes", places: Iterable[float], up: bool) -> None:
    """Use a logarithmic x axis with ticks at some of the places and, if `up`, such a y axis."""
    from matplotlib.ticker import FuncFormatter, NullLocator

    values = sorted(set(places))
    ax.set_xscale("log")
    ax.set_xticks(values[:: math.ceil(len(values) / TICKS)], minor=False)
    ax.xaxis.set_minor_locator(NullLocator())
    ax.xaxis.set_major_formatter("{x:g}")
    if up:
        ax.set_yscale("log")
        low, high = ax.get_ylim()
        if high / low < 1000:
            for formatter in (ax.yaxis.set_major_formatter, ax.yaxis.set_minor_formatter):
                formatter(FuncFormatter(lambda v, _: f"{v:g}" if f"{v:e}"[0] in "1235" else ""))
    ax.tick_params(which="both", labelsize=TICK, labelcolor=INK)
