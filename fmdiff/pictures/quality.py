"""The picture of a grid of `fmdiff evaluate`: quality against evaluations."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from fmdiff.pictures.plots import COLORS, DATA, INK, panels

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Point = tuple[float, float]  # evaluations per sample and the metric


def figure(
    name: str,
    lines: Mapping[str, Sequence[Point]],
    front: Sequence[Point],
    floor: float | None,
) -> "Figure":
    """Plot the metric `name` against evaluations, a line per sampler.

    front: the points that no other beats, marked by rings. floor: the metric of real data.
    """
    picture, [ax] = panels(5.2, 3.4)
    for (label, points), color in zip(lines.items(), COLORS * 9, strict=False):
        ax.plot(*zip(*sorted(points), strict=True), "o-", ms=3, lw=1, color=color, label=label)
    ax.plot(*zip(*front, strict=True), "o", ms=8, mfc="none", mec=INK, mew=0.8)
    _scale(ax, [point for points in lines.values() for point in points])
    if floor is not None:
        ax.axhline(floor, color=DATA, lw=0.8, ls="--", label="real data")
    ax.set_title(f"{name} by evaluations; rings: no better for less", fontsize=9, color=INK)
    ax.set_xlabel("evaluations per sample", fontsize=8, color=INK)
    ax.tick_params(which="both", labelsize=7)
    ax.legend(frameon=False, fontsize=7, labelcolor=INK)
    return picture


def _scale(ax: "Axes", points: Sequence[Point]) -> None:
    """Use logarithmic axes if all values allow it, with a tick at every number of evaluations."""
    from matplotlib.ticker import FuncFormatter, NullLocator

    ax.set_xscale("log")
    ax.set_xticks(sorted({nfe for nfe, _ in points}), minor=False)
    ax.xaxis.set_minor_locator(NullLocator())
    ax.xaxis.set_major_formatter("{x:g}")
    if all(value > 0 for _, value in points):
        ax.set_yscale("log")
        for formatter in (ax.yaxis.set_major_formatter, ax.yaxis.set_minor_formatter):
            formatter(FuncFormatter(lambda v, _: f"{v:g}" if f"{v:e}"[0] in "1235" else ""))
