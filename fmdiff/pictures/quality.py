"""The picture of a grid of `fmdiff evaluate`: quality against evaluations."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from fmdiff.pictures.style import DATA, INK, LINE, entitle, logarithmic, panels, series

if TYPE_CHECKING:
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
    see = "Ringed: no other setting is both cheaper and better."
    if floor is not None:
        see += " Dashed: real data in place of samples."
    picture, [ax] = panels(5.2, 3.4, see=see)
    for i, (label, points) in enumerate(lines.items()):
        ax.plot(*zip(*sorted(points), strict=True), label=label, **series(i))
    ax.plot(*zip(*front, strict=True), "o", ms=9, color=INK, mfc="none", mew=LINE)
    every = [point for points in lines.values() for point in points]
    logarithmic(ax, (nfe for nfe, _ in every), up=all(value > 0 for _, value in every))
    if floor is not None:
        ax.axhline(floor, color=DATA, lw=LINE, ls="--", label="real data")
    entitle(ax, f"{name} by cost", "evaluations per sample", name, legend=True)
    return picture
