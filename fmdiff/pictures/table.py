"""Pictures of tables (N, d): the histogram of each column and the scatter of each pair."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

from fmdiff.pictures import plots
from fmdiff.pictures.style import DATA, INK, LABEL, SAMPLES, TITLE, panels

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

COLUMNS = 8  # columns of a corner plot
DRAWN = 2000  # rows in a scatter
BULK = 0.005, 0.995  # quantiles that the axes hold, and a tenth more
LEVELS = 6  # categories that are named along an axis
LETTERS = 10  # of a name along an axis
BARS = 30  # of a histogram, at most
JITTER = 0.32  # by which rows of a category are spread


def corner(
    samples: np.ndarray,
    data: np.ndarray | None = None,
    title: str = "samples",
    names: Sequence[str] = (),
    levels: Mapping[str, Sequence[str]] | None = None,
) -> "Figure":
    """Plot columns against each other: samples below the diagonal and, mirrored, data above it.

    samples (N, d), data (M, d). On the diagonal are the histograms of both. The first eight
    columns are drawn. names: those of the columns. levels: the names of the categories of columns
    that hold their numbers, by column. Axes hold 99 % of the data, and a tenth more.

    Raises FmdiffError when samples are not finite.
    """
    samples = plots.finite(samples, "samples")
    data = None if data is None else plots.finite(data, "data points")
    d = min(samples.shape[1], COLUMNS)
    words = [plots.shortened(name) for name in names] or [f"$x_{{{i + 1}}}$" for i in range(d)]
    categories = [(levels or {}).get(name, ()) for name in names] or [()] * d
    ranges = [
        limits(samples[:, j], None if data is None else data[:, j], len(categories[j]))
        for j in range(d)
    ]
    size = max(1.05, min(1.9, 5.6 / d))
    figure, axes = panels(size * d + 0.5, size * d + 0.45, d, see=_see(data), rows=d)
    head = headline(title, samples, ranges)
    figure.suptitle(head, x=0.01, ha="left", fontsize=TITLE, color=INK)
    for k, ax in enumerate(axes):
        i, j = divmod(k, d)
        if i == j:
            real = None if data is None else data[:, j]
            diagonal(ax, samples[:, j], real, ranges[j], len(categories[j]))
        elif i > j:
            pair(ax, samples, (j, i), ranges, categories, SAMPLES)
        elif data is not None:
            pair(ax, data, (j, i), ranges, categories, DATA)
        else:
            ax.set_visible(False)
        if j == 0:
            ax.set_ylabel(words[i], fontsize=LABEL, color=INK, parse_math=not names)
        if i == d - 1:
            ax.set_xlabel(words[j], fontsize=LABEL, color=INK, parse_math=not names)
        number(ax, categories[j], categories[i] if i != j else ())
        ax.xaxis.set_visible(i == d - 1)
        ax.yaxis.set_visible(j == 0)
    figure.align_ylabels(axes)
    return figure


def _see(data: np.ndarray | None) -> str:
    if data is None:
        return "On the diagonal the histogram of each column, below it each pair of columns."
    return (
        "Blue, below the diagonal: samples. Grey, above it: the data, mirrored. Good samples are "
        "the mirror image of the data, and on the diagonal they have its outline."
    )


def limits(samples: np.ndarray, data: np.ndarray | None, levels: int = 0) -> tuple[float, float]:
    """The range of the axis of a column, samples (N,) and data (M,), of so many categories."""
    if levels:
        return -0.6, levels - 0.4
    reference = samples if data is None else data
    low, high = np.quantile(reference, BULK)
    reach = 0.1 * (high - low)
    every = [reference, samples]
    low = max(low - reach, min(x.min() for x in every))
    high = min(high + reach, max(x.max() for x in every))
    margin = 0.05 * (high - low) or max(0.5, 0.05 * abs(low))
    return float(low - margin), float(high + margin)


def headline(name: str, x: np.ndarray, ranges: Sequence[tuple[float, float]]) -> str:
    """A title with the number of rows, how many lie outside, and which columns are drawn."""
    n, d = x.shape
    low, high = np.array(ranges).T
    beyond = ((x[:, : len(ranges)] < low) | (x[:, : len(ranges)] > high)).any(axis=1).sum()
    outside = f", {int(beyond):,} outside" if beyond else ""
    few = f", columns 1 to {len(ranges)} of {d}" if d > len(ranges) else ""
    drawn = f", {DRAWN:,} drawn in each pair" if n > DRAWN else ""
    return f"{name} (n={n:,}{outside}{drawn}){few}"


def diagonal(
    ax: "Axes",
    samples: np.ndarray,
    data: np.ndarray | None,
    within: tuple[float, float],
    levels: int,
) -> None:
    """Draw the histogram of a column of samples (N,) over that of the data (M,)."""
    low, high = (np.array([edge]) for edge in within)
    bars = min(BARS, len(plots.bins(samples[:, None], low, high)) - 1)
    edges = np.arange(levels + 1) - 0.5 if levels else np.linspace(*within, bars + 1)
    real = None if data is None else data[:, None]
    plots.histogram(ax, samples[:, None], low, high, real, edges=edges)
    ax.set_yticks([])


def pair(
    ax: "Axes",
    x: np.ndarray,
    columns: tuple[int, int],
    ranges: Sequence[tuple[float, float]],
    categories: Sequence[Sequence[str]],
    color: str,
) -> None:
    """Draw two columns of x (N, d) as dots. Rows of a category are spread about its number."""
    values = x[:DRAWN, list(columns)]
    rng = np.random.default_rng(0)
    for k, column in enumerate(columns):
        if categories[column]:
            values[:, k] += rng.uniform(-JITTER, JITTER, len(values))
    low, high = np.array([ranges[column] for column in columns]).T
    plots.cloud(ax, values, low, high, color)
    ax.set(aspect="auto")


def number(ax: "Axes", across: Sequence[str], up: Sequence[str]) -> None:
    """Put few numbers, or the names of some categories, along the axes."""
    from matplotlib.ticker import MaxNLocator

    for axis, names, turn in ((ax.xaxis, across, 45), (ax.yaxis, up, 0)):
        if names:
            places = range(0, len(names), -(-len(names) // LEVELS))
            words = [plots.shortened(names[k], LETTERS) for k in places]
            axis.set_ticks(list(places), words, parse_math=False)
        elif len(axis.get_ticklocs()):
            axis.set_major_locator(MaxNLocator(3))
        if names and turn:
            ax.tick_params("x", rotation=turn)
