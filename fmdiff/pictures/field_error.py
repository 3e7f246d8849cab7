"""The picture of `fmdiff evaluate against=exact`: squared errors of a field by time."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from fmdiff.pictures.style import DATA, INK, LINE, SAMPLES, THICK, TICK, entitle, panels

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
    see = "FM loss: the field's own error. No field has a CFM loss below the irreducible part."
    picture, [ax] = panels(4.6, 3.0, see=see)
    for label, values, color, style, width in (
        ("CFM loss", cfm, DATA, "-", LINE),
        ("irreducible", irreducible, DATA, "--", LINE),
        ("FM loss", fm, SAMPLES, "-", THICK),
    ):
        heights = [max(value, LEAST) for value in values]
        ax.semilogy(times, heights, label=label, color=color, linestyle=style, linewidth=width)
    ax.tick_params(which="both", labelsize=TICK, labelcolor=INK)
    entitle(ax, f"error of {kind} by time", "$t$", "mean squared error", legend=True)
    return picture
