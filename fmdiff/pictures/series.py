"""Pictures of series (N, C, L): lines with bands of quantiles beside those of the data."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image

from fmdiff.errors import FmdiffError
from fmdiff.pictures import plots
from fmdiff.pictures.style import DATA, INK, LABEL, LINE, SAMPLES, THICK, THIN, entitle, panels

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

CHANNELS = 4  # rows of a picture
LINES = 5  # single series in a panel; more of them hide the bands
BANDS = (0.05, 0.95), (0.25, 0.75)
BULK = 0.001, 0.999  # quantiles of all values that the axes hold
REACH = 0.1  # of their distance, that axes reach beyond them
DPI = 110  # of animations
SHADES = 0.16, 0.26  # how opaque the bands are, from the outer to the inner one

Range = tuple[float, float]


def series(
    samples: np.ndarray,
    data: np.ndarray | None = None,
    title: str = "samples",
    names: Sequence[str] = (),
) -> "Figure":
    """Plot series beside those of the data: bands of quantiles, the median, and five series.

    samples (N, C, L), data (M, C, L). The first four channels are drawn, a row each. Axes have the
    range of the data (without data, of the samples), and samples reach at most a tenth beyond
    it. The title counts those that leave it. names: those of the channels.

    Raises FmdiffError for another shape and when samples are not finite.
    """
    samples = finite(samples, "samples")
    data = None if data is None else finite(data, "series of the data")
    channels = samples.shape[1]
    rows, columns = min(channels, CHANNELS), 1 if data is None else 2
    ranges = limits(samples, data)
    figure, axes = panels(
        4.6 if data is None else 7.4, 0.75 + 1.7 * rows, columns, see=_see(data), rows=rows
    )
    head = headline(title, samples, ranges)
    for c in range(rows):
        row, first, last = axes[c * columns : (c + 1) * columns], c == 0, c == rows - 1
        draw(row[0], samples[:, c], SAMPLES, ranges[c])
        if data is not None:
            outline(row[0], data[:, c])
            draw(row[1], data[:, c], DATA, ranges[c])
            entitle(row[1], "data" if first else "", "place" if last else "")
            row[1].tick_params(labelleft=False)
        entitle(row[0], head if first else "", "place" if last else "")
        word = channel_name(names, c, channels)
        row[0].set_ylabel(word, fontsize=LABEL, color=INK, parse_math=not names)
        if not last:
            for ax in row:
                ax.tick_params(labelbottom=False)
    return figure


def _see(data: np.ndarray | None) -> str:
    see = "Shades: 90 % and 50 % of all series at each place, with the median and five series."
    if data is None:
        return see
    return see + " Dashed: the 90 % of the data; good samples fill it, and their lines look alike."


def finite(x: np.ndarray, what: str) -> np.ndarray:
    """Convert series (N, C, L) to float64.

    what: a noun for them in messages. Raises FmdiffError for another shape, no series, and series
    that are not finite.
    """
    x = np.asarray(x, np.float64)
    if x.ndim != 3 or 0 in x.shape:
        raise FmdiffError(f"{what} to be drawn must have the shape (N, C, L), not {x.shape}")
    bad = int((~np.isfinite(x)).any(axis=(1, 2)).sum())
    if bad:
        raise FmdiffError(
            f"{bad} of {len(x)} {what} are not finite (NaN or infinity) and cannot be drawn"
        )
    return x


def limits(samples: np.ndarray, data: np.ndarray | None) -> list[Range]:
    """The range of each channel's axis."""
    ranges = []
    for c in range(samples.shape[1]):
        reference = samples[:, c] if data is None else data[:, c]
        low, high = np.quantile(reference, BULK)
        reach = REACH * (high - low or 1.0)
        every = [reference, samples[:, c]]
        low = max(low - reach, min(x.min() for x in every))
        high = min(high + reach, max(x.max() for x in every))
        margin = 0.05 * (high - low or 1.0)
        ranges.append((float(low - margin), float(high + margin)))
    return ranges


def headline(name: str, x: np.ndarray, ranges: Sequence[Range]) -> str:
    """A title with the number of series, how many leave the axes, and the channels."""
    n, channels, _ = x.shape
    low, high = np.array(ranges)[:CHANNELS].T[..., None]
    beyond = ((x[:, :CHANNELS] < low) | (x[:, :CHANNELS] > high)).any(axis=(1, 2))
    outside = f", {int(beyond.sum()):,} reach outside" if beyond.any() else ""
    few = f", channels 1 to {CHANNELS} of {channels}" if channels > CHANNELS else ""
    return f"{name} (n={n:,}{outside}){few}"


def channel_name(names: Sequence[str], c: int, channels: int) -> str:
    """The name of channel c for an axis."""
    if names:
        return plots.shortened(names[c])
    return "$x$" if channels == 1 else f"$x_{{{c + 1}}}$"


def draw(ax: "Axes", x: np.ndarray, color: str, within: Range) -> None:
    """Draw bands of quantiles, the median and the first series of one channel, x (N, L)."""
    places = np.arange(x.shape[1])
    for band, shade in zip(BANDS, SHADES, strict=True):
        low, high = np.quantile(x, band, axis=0)
        ax.fill_between(places, low, high, color=color, alpha=shade, linewidth=0)
    ax.plot(places, np.quantile(x, 0.5, axis=0), color=color, linewidth=THICK)
    ax.plot(places, x[:LINES].T, color=color, linewidth=THIN, alpha=0.75)
    ax.set(xlim=(0, max(x.shape[1] - 1, 1)), ylim=within)


def outline(ax: "Axes", x: np.ndarray) -> None:
    """Draw the outer band of the data, x (N, L), as two dashed lines."""
    for line in np.quantile(x, BANDS[0], axis=0):
        ax.plot(line, color=DATA, linewidth=LINE, linestyle=(0, (4, 2)))


def series_frames(
    trajectories: np.ndarray,
    times: Sequence[float],
    data: np.ndarray | None = None,
    name: str = "samples",
) -> list[Image.Image]:
    """One picture of the first channel of series per time, on the same axes.

    trajectories: (F, N, C, L). data: (M, C, L), whose outer band is dashed.
    Raises FmdiffError when series are not finite.
    """
    states = [
        finite(x, f"{name} at t = {t:.3g}")[:, :1]
        for x, t in zip(trajectories, times, strict=True)
    ]
    real = None if data is None else finite(data, "series of the data")[:, :1]
    [(low, high)] = limits(states[-1], real)
    start = np.quantile(states[0], (0.01, 0.99))
    reach = 0.5 * (high - low)
    within = max(low - reach, min(low, start[0])), min(high + reach, max(high, start[1]))
    see = "t = 0 is noise, t = 1 data. Shades: 90 % and 50 % of all series."
    see += "" if data is None else " Dashed: 90 % of the data."
    figure, [ax] = panels(4.6, 2.8, see=see)
    figure.set_dpi(DPI)
    if real is not None:
        outline(ax, real[:, 0])
    many = f", channel 1 of {trajectories.shape[2]}" if trajectories.shape[2] > 1 else ""
    frames = []
    for x, t in zip(states, times, strict=True):
        background = ax.get_children()
        draw(ax, x[:, 0], SAMPLES, within)
        entitle(ax, f"$t = {t:.2f}$: {headline(name, x, [within])}{many}", "place", "$x$")
        frames.append(plots.render(figure))
        figure.set_layout_engine("none")  # the axes stay where the first frame has them
        for artist in set(ax.get_children()) - set(background):
            artist.remove()
    return frames
