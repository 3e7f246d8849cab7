"""Still pictures: image grids, points and trajectories.

Image grids need numpy and Pillow alone. Functions that draw points import matplotlib without
pyplot, so there is no global state, and equal inputs give equal bytes.
"""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from fmdiff import files
from fmdiff.errors import FmdiffError, printable
from fmdiff.pictures.style import DATA, SAMPLES, THICK, THIN, entitle, panels

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

CAPTION = "#333333"  # under the tiles of a grid
GRID_WIDTH, TILE_WIDTH = 768, 160  # the largest widths of a magnified grid and of its tiles
NAME = 24  # letters of the name of a column along an axis
LINES = 300  # trajectories drawn in a fan; more of them hide each other

Box = tuple[np.ndarray, np.ndarray]  # the lowest and the highest corner

STILL = {".png": "PNG", ".webp": "WEBP", ".jpg": "JPEG", ".jpeg": "JPEG"}
# the field in which matplotlib would store its version or the date
STAMPS = {".png": "Software", ".pdf": "CreationDate", ".svg": "Date"}


def grid(
    images: np.ndarray,
    labels: Sequence | None = None,
    columns: int | None = None,
    scale: int | None = None,
) -> Image.Image:
    """Arrange images row by row. Small ones are magnified by an integer without smoothing.

    images: uint8 (N, H, W, C), C = 1 or 3. labels: N captions, written under the tiles.
    columns: by default near sqrt(N), and a divisor of N if one is near. scale: by default the grid
    becomes about 768 pixels wide. Returns an RGB picture.

    Raises FmdiffError for another dtype or shape, no image, or a wrong number of labels.
    """
    images = np.asarray(images)
    if images.dtype != np.uint8 or images.ndim != 4 or images.shape[-1] not in (1, 3):
        raise FmdiffError(
            f"a grid takes uint8 images (N, H, W, 1 or 3), not {images.dtype} {images.shape}"
        )
    n, height, width, _ = images.shape
    if n == 0:
        raise FmdiffError("a grid needs at least one image, n=0 was given")
    if labels is not None and len(labels) != n:
        raise FmdiffError(f"{len(labels)} labels were given for {n} images")
    for name, value in (("columns", columns), ("scale", scale)):
        if value is not None and value < 1:
            raise FmdiffError(f"{name}={value} of an image grid must be at least 1")

    root = math.isqrt(n - 1) + 1
    near = next((c for c in range(root, 2 * root) if n % c == 0), root)
    columns = min(columns or near, n)
    scale = scale or max(1, min(GRID_WIDTH // (columns * width), TILE_WIDTH // width))
    images = np.broadcast_to(images, (n, height, width, 3)).repeat(scale, 1).repeat(scale, 2)
    _, height, width, _ = images.shape
    gap = max(2, width // 24)
    font_size = min(14, max(9, width // 5))
    strip = font_size + 3 if labels is not None else 0

    rows = -(-n // columns)
    size = (gap + columns * (width + gap), gap + rows * (height + strip + gap))
    picture = Image.new("RGB", size, "white")
    for i, tile in enumerate(images):
        left = gap + i % columns * (width + gap)
        top = gap + i // columns * (height + strip + gap)
        picture.paste(Image.fromarray(tile), (left, top))
        if labels is not None:
            text = caption(printable(labels[i]), width, strip, font_size)
            picture.paste(text, (left, top + height))
    return picture


def caption(text: str, width: int, height: int, font_size: int) -> Image.Image:
    """Draw centred text on white, cut at the edges so that it does not reach its neighbours."""
    strip = Image.new("RGB", (width, height), "white")
    font = ImageFont.load_default(font_size)
    start = max(0.0, (width - font.getlength(text)) / 2)
    ImageDraw.Draw(strip).text((start, height / 2), text, fill=CAPTION, font=font, anchor="lm")
    return strip


def shortened(name: str, letters: int = NAME) -> str:
    """A name from a file on one line, cut after so many letters."""
    text = printable(name)
    return text if len(text) <= letters else f"{text[: letters - 1]}\u2026"


def scatter(
    points: np.ndarray,
    data: np.ndarray | None = None,
    title: str = "samples",
    within: Box | None = None,
) -> "Figure":
    """Plot samples beside the data on the same axes; in one dimension, the histograms of both.

    points, data: (N, d). For d > 2 the first two coordinates are drawn, as the title says. The
    axes are those of `within`; by default they reach a quarter beyond the data (without data,
    beyond the bulk of the samples). The title counts the samples outside.

    Raises FmdiffError when samples are not finite.
    """
    points = finite(points, "samples")
    data = None if data is None else finite(data, "data points")
    low, high = within or (limits(points) if data is None else limits(data, points))
    title = headline(title, points, low, high)
    if len(low) == 1:
        see = "" if data is None else "Good samples have the outline of the data."
        figure, [ax] = panels(4.6, 2.8, see=see)
        histogram(ax, points, low, high, data)
        entitle(ax, title, "$x$", "density", legend=data is not None)
        return figure
    columns = 1 if data is None else 2
    see = "" if data is None else "Good samples lie where the data lie, and as densely."
    figure, axes = panels(*extent(low, high, columns), columns, see=see)
    cloud(axes[0], points, low, high, SAMPLES)
    entitle(axes[0], title, "$x_1$", "$x_2$")
    if data is not None:
        cloud(axes[1], data, low, high, DATA)
        entitle(axes[1], "data", "$x_1$")
        axes[1].tick_params(labelleft=False)
    return figure


def fan(
    trajectories: np.ndarray,
    times: np.ndarray,
    data: np.ndarray | None = None,
    ends: np.ndarray | None = None,
    within: Box | None = None,
) -> "Figure":
    """Plot 1-D trajectories against t, coloured by their ends, and the histogram of the ends.

    trajectories: (S + 1, N, 1). times: (S + 1,). data: (M, 1), drawn behind the histogram of ends
    (M, 1), which are by default those of the trajectories. At most 300 lines are drawn.
    within: the range of x; by default that of all states.

    Raises FmdiffError for another shape, or when states are not finite.
    """
    from matplotlib.collections import LineCollection

    trajectories = np.asarray(trajectories, np.float64)
    times = np.asarray(times, np.float64)
    if trajectories.ndim != 3 or trajectories.shape[2] != 1 or len(times) != len(trajectories):
        raise FmdiffError(
            "a fan takes 1-D trajectories (S + 1, N, 1) with S + 1 times, "
            f"not {trajectories.shape} with {len(times)}"
        )
    end = finite(trajectories[-1] if ends is None else ends, "samples")
    data = None if data is None else finite(data, "data points")
    states = finite(trajectories.reshape(-1, 1), "states of the trajectories")
    low, high = within or limits(states)
    lines = trajectories[:, :LINES, 0]
    count = lines.shape[1]

    see = (
        "Each line is a sample on its way from noise (t = 0) to data, coloured by its end. "
        f"Right: where all samples end{'' if data is None else '; grey: the data'}."
    )
    figure, [ax, side] = panels(5.6, 3.0, 2, ratios=(4, 1), see=see)
    segments = np.stack([np.broadcast_to(times[:, None], lines.shape), lines], axis=-1)
    ax.add_collection(
        LineCollection(
            list(segments.swapaxes(0, 1)),
            array=lines[-1],
            cmap="viridis",
            # without the yellow end of the map, which is too light on white
            clim=(lines[-1].min(), lines[-1].min() + np.ptp(lines[-1]) / 0.8),
            linewidths=THIN,
            alpha=float(np.clip(6 / math.sqrt(count), 0.25, 0.8)),
        )
    )
    ax.set(xlim=(times.min(), times.max()), ylim=(low[0], high[0]))
    title = headline("trajectories", end, low, high)
    entitle(ax, title + (f", {count} drawn" if count < len(end) else ""), "$t$", "$x_t$")
    histogram(side, end, low, high, data, orientation="horizontal")
    side.set(xticks=[])
    side.tick_params(labelleft=False, left=False)
    for edge in ("top", "right", "bottom"):
        side.spines[edge].set_visible(False)
    entitle(side, f"$t = {times[-1]:.3g}$")
    return figure


def finite(points: np.ndarray, what: str) -> np.ndarray:
    """Convert points (N, d) to float64.

    what: a noun for them in messages. Raises FmdiffError for another shape, no points, and points
    that are not finite.
    """
    points = np.asarray(points, np.float64)
    if points.ndim != 2 or 0 in points.shape:
        raise FmdiffError(f"{what} to be drawn must have the shape (N, d), not {points.shape}")
    bad = int((~np.isfinite(points)).any(axis=1).sum())
    if bad:
        raise FmdiffError(
            f"{bad} of {len(points)} {what} are not finite (NaN or infinity) and cannot be drawn"
        )
    return points


def limits(reference: np.ndarray, *others: np.ndarray) -> Box:
    """A box around the (first two) coordinates of all points, bounded by the reference's bulk.

    It reaches at most a quarter of the bulk's size beyond it, so outliers do not shrink the rest.
    """
    low, high = np.quantile(reference[:, :2], (0.001, 0.999), axis=0)
    reach = 0.25 * ((high - low).max() or 1.0)
    points = np.concatenate([p[:, :2] for p in (reference, *others)])
    low, high = np.maximum(points.min(0), low - reach), np.minimum(points.max(0), high + reach)
    margin = 0.05 * ((high - low).max() or 1.0)
    return low - margin, high + margin


def headline(name: str, points: np.ndarray, low: np.ndarray, high: np.ndarray) -> str:
    """A title with the name, the number of points, how many lie outside, and the coordinates."""
    n, d = points.shape
    outside = int(((points[:, :2] < low) | (points[:, :2] > high)).any(axis=1).sum())
    return (
        f"{name} (n={n:,}{f', {outside:,} outside' if outside else ''})"
        f"{f', coordinates 1 and 2 of {d}' if d > 2 else ''}"
    )


def extent(low: np.ndarray, high: np.ndarray, columns: int) -> tuple[float, float]:
    """The width and height in inches at which axes of equal aspect fill the figure."""
    width, height = 3.4 * (high - low) / (high - low).max()
    return columns * float(width) + 0.2 * columns + 0.35, float(height) + 0.75


def cloud(ax: "Axes", points: np.ndarray, low: np.ndarray, high: np.ndarray, color: str) -> None:
    """Draw the first two coordinates of points (N, d) as dots; many dots are small and faint."""
    n = len(points)
    ax.plot(
        *points[:, :2].T,
        linestyle="",
        marker="o",
        markersize=float(np.clip(60 / math.sqrt(n), 1.4, 4.0)),
        markeredgewidth=0,
        alpha=float(np.clip(40 / math.sqrt(n), 0.15, 0.8)),
        color=color,
    )
    ax.set(xlim=(low[0], high[0]), ylim=(low[1], high[1]), aspect="equal")


def histogram(
    ax: "Axes",
    points: np.ndarray,
    low: np.ndarray,
    high: np.ndarray,
    data: np.ndarray | None,
    orientation: Literal["vertical", "horizontal"] = "vertical",
    edges: np.ndarray | None = None,
) -> None:
    """Draw the histogram of points (N, 1), over that of the data (M, 1) if given.

    edges: those of the bars, by default `bins`.
    """
    edges = bins(points, low, high) if edges is None else edges

    def draw(values: np.ndarray, **look) -> None:
        ax.hist(edges[:-1], bins=list(edges), weights=density(values, edges), **look)

    if data is not None:
        draw(data, color=DATA, alpha=0.45, label="data", orientation=orientation)
        look = {"histtype": "step", "linewidth": THICK, "label": "samples"}
        draw(points, color=SAMPLES, orientation=orientation, **look)
    else:
        draw(points, color=SAMPLES, alpha=0.8, orientation=orientation)
    ax.set(**{"xlim" if orientation == "vertical" else "ylim": (low[0], high[0])})


def bins(points: np.ndarray, low: np.ndarray, high: np.ndarray) -> np.ndarray:
    """The edges of a histogram of points (N, 1) between low and high."""
    return np.linspace(low[0], high[0], int(np.clip(1.5 * math.sqrt(len(points)), 12, 100)) + 1)


def density(values: np.ndarray, edges: np.ndarray) -> np.ndarray:
    """The heights of the bars. Values (N, 1) outside the edges count in the total."""
    return np.histogram(values[:, 0], edges)[0] / (len(values) * (edges[1] - edges[0]))


def render(figure: "Figure") -> Image.Image:
    """Draw the figure as an RGB picture."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    return Image.fromarray(np.asarray(canvas.buffer_rgba())[..., :3].copy())


def save(picture: "Image.Image | Figure", path: Path) -> None:
    """Write a picture (.png .webp .jpg) or a figure (.png .pdf .svg), whole or not at all.

    Equal pictures give equal bytes, as neither the date nor the program is stored.

    Makes the folder if needed. Raises FmdiffError for another suffix.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    if isinstance(picture, Image.Image):
        form = file_format(path, STILL)
        with files.whole(path) as file:
            picture.save(file, format=form)
        return
    import matplotlib

    stamp = file_format(path, STAMPS)
    # an SVG names its parts by hashes, salted with a random number by default
    with files.whole(path) as file, matplotlib.rc_context({"svg.hashsalt": "fmdiff"}):
        picture.savefig(file, format=path.suffix[1:].lower(), metadata={stamp: None})


def file_format(path: Path, formats: dict[str, str]) -> str:
    """The format of path's suffix. Raises FmdiffError for a suffix that is not in formats."""
    suffix = path.suffix.lower()
    if suffix not in formats:
        raise FmdiffError(f"{str(path)!r} must end in one of {', '.join(formats)}")
    return formats[suffix]
