"""The picture of a flow map against the exact one: its error by start and end of the jump."""

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from fmdiff.pictures.field_error import LEAST
from fmdiff.pictures.style import INK, LABEL, TICK, entitle, panels

if TYPE_CHECKING:
    from matplotlib.figure import Figure

NUMBERED = 24  # parts of time up to which each cell has its numbers
CELL = 0.46  # inches


def figure(
    starts: Sequence[float],
    ends: Sequence[float],
    rms: Sequence[Sequence[float]],
    median: Sequence[Sequence[float]],
    unit: str,
) -> "Figure":
    """Draw the triangle t < s: the rms of each jump from t to s in colour, and two numbers.

    rms, median: one row for each of `ends`, one value for each of `starts`, NaN where t >= s. The
    upper number is the rms and the lower one the median. unit: that of the errors.
    """
    from matplotlib.colors import LogNorm

    values = np.maximum(np.array(rms, np.float64), LEAST)  # NaN stays NaN
    low, high = np.nanmin(values), np.nanmax(values)
    width, height = (CELL * min(max(n, 6), NUMBERED) for n in (len(starts), len(ends)))
    picture, [ax] = panels(
        width + 1.6, height + 0.9, see="A cell is one jump; dark jumps are good."
    )
    norm = LogNorm(low, high if high > low else low * 10)
    image = ax.imshow(values, cmap="cividis", norm=norm, origin="lower", aspect="equal")
    if len(starts) <= NUMBERED:
        for (i, j), value in np.ndenumerate(values):
            if not math.isnan(value):
                color = "white" if norm(value) < 0.5 else "black"
                look: dict[str, Any] = {"ha": "center", "color": color}
                ax.text(j, i + 0.04, number(rms[i][j]), va="bottom", fontsize=6.5, **look)
                ax.text(j, i - 0.08, number(median[i][j]), va="top", fontsize=5.5, **look)
    every = math.ceil(len(starts) / NUMBERED)
    for axis, times in ((ax.xaxis, starts), (ax.yaxis, ends)):
        places = range(0, len(times), every)
        axis.set_ticks(places, [f"{times[i]:.3g}" for i in places])
    entitle(ax, "error from $t$ to $s$: rms, and median below", "start $t$", "end $s$")
    bar = picture.colorbar(image, ax=ax, shrink=0.8)
    bar.set_label(f"rms $|X_\\theta - X|$ / {unit}", fontsize=LABEL, color=INK)
    bar.ax.tick_params(which="both", labelsize=TICK, labelcolor=INK)
    return picture


def number(value: float) -> str:
    """Format an error in one or two digits, short enough for a cell: .11, 1.2, 12, 3e-4, 0."""
    if value < LEAST:
        return "0"
    if 0.001 <= value < 99:
        return f"{value:#.2g}".removeprefix("0").removesuffix(".")
    mantissa, _, power = f"{value:.0e}".partition("e")
    return f"{mantissa}e{int(power)}"
