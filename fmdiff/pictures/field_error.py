"""The picture of `fmdiff evaluate against=exact`: squared errors of a field by time."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from fmdiff.pictures.plots import DATA, INK, SAMPLES, panels

if TYPE_CHECKING:
    from matplotlib.figure import Figure

LEAST = 1e-20  # smaller values, such as an exact field's rounding errors, are drawn at this height


def figure(
    times: Sequence[float],
    cfm: Sequence[float],
    irreducible: Sequence[float],
    fm: Sequence[float],
    kind: str,
) -> "Figure":
    """Plot the CFM loss, its irreducible part and the FM loss of the quantity `kind` by time."""
    picture, [ax] = panels(4.6, 3.0)
    for label, values, color, style in (
        ("CFM loss", cfm, DATA, "-"),
        ("irreducible", irreducible, DATA, "--"),
        ("FM loss", fm, SAMPLES, "-"),
    ):
        heights = [max(value, LEAST) for value in values]
        ax.semilogy(times, heights, label=label, color=color, linestyle=style)
    ax.set_title(f"squared error of {kind} by time", fontsize=9, color=INK)
    ax.set_xlabel("$t$", fontsize=8, color=INK)
    ax.legend(frameon=False, fontsize=7, labelcolor=INK)
    return picture
