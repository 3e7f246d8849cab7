"""Animations: images, points and vector fields along the way from noise to data.

Axes, colours and the place of the time are the same in all frames, as one figure is redrawn with
other points.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from fmdiff import files
from fmdiff.errors import FmdiffError
from fmdiff.pictures import plots
from fmdiff.pictures.plots import Box
from fmdiff.pictures.style import DATA, FRAME, SAMPLES, entitle, panels

if TYPE_CHECKING:
    from matplotlib.axes import Axes

FRAMES = 100  # frames of an animation
FRAME_TIME = 60  # milliseconds
DPI = 110  # gives a third of the pixels of a still picture
ARROWS = 20  # arrows along the longer side
TILE_WIDTH = 100  # pixels to which an image may be magnified
EXACT_COLORS = 64  # of a GIF's 256 colours
ANIMATED = {".gif": "GIF", ".png": "PNG", ".apng": "PNG", ".webp": "WEBP"}
BULK = 0.01, 0.99  # quantiles of the noise that a frame shows
REACH = 0.5  # of the size of the data, that noise may add to a frame on each side


def frame_indices(times: int) -> np.ndarray:
    """The indices of the times that get a frame: at most 100, with the first and the last."""
    return np.unique(np.linspace(0, times - 1, FRAMES).round().astype(int))


def image_frames(
    trajectories: np.ndarray,
    times: Sequence[float],
    labels: Sequence | None = None,
    columns: int | None = None,
    scale: int | None = None,
) -> list[Image.Image]:
    """One grid per time with the time under it. trajectories: uint8 (F, N, H, W, C).

    scale: by default images become about 100 pixels wide, as films of noise compress badly.
    """
    scale = scale or max(1, TILE_WIDTH // trajectories.shape[3])
    frames = []
    for images, t in zip(trajectories, times, strict=True):
        tiles = plots.grid(images, labels, columns, scale)
        frame = Image.new("RGB", (tiles.width, tiles.height + 24), "white")
        frame.paste(tiles)
        frame.paste(plots.caption(f"t = {t:.2f}", tiles.width, 22, 15), (0, tiles.height))
        frames.append(frame)
    return frames


def box(trajectories: np.ndarray, data: np.ndarray | None = None) -> Box:
    """The frame of all pictures of a way from noise to data: the data and the bulk of the noise.

    trajectories: (F, N, d), data: (M, d), by default the last states. Of the noise it holds 98 %
    in each coordinate, as far as these reach at most half of the data's size beyond the data.
    """
    start, end = (plots.finite(trajectories[i], "samples") for i in (0, -1))
    low, high = plots.limits(end if data is None else plots.finite(data, "data points"), end)
    reach = REACH * (high - low).max()
    lowest, highest = np.quantile(start[:, :2], BULK, axis=0)
    return (
        np.minimum(low, np.maximum(lowest, low - reach)),
        np.maximum(high, np.minimum(highest, high + reach)),
    )


def mesh(within: Box) -> np.ndarray:
    """Points (G, 2) of a square grid in a box, 20 along its longer side."""
    low, high = within
    step = (high - low).max() / ARROWS
    x, y = (np.arange(low[i] + step / 2, high[i], step) for i in range(2))
    return np.stack(np.meshgrid(x, y), -1).reshape(-1, 2)


def point_frames(
    trajectories: np.ndarray,
    times: Sequence[float],
    data: np.ndarray | None = None,
    within: Box | None = None,
    name: str = "samples",
    arrows: tuple[np.ndarray, np.ndarray] | None = None,
) -> list[Image.Image]:
    """One picture of the points per time, on the axes `within`, by default their `box`.

    trajectories: (F, N, d); for d > 2 the first two coordinates are drawn. data: (M, d), in grey
    behind the points. arrows: a `mesh` (G, 2) and the velocities there (F, G, 2). They are drawn
    under the points where the velocities are finite.

    Raises FmdiffError when points are not finite.
    """
    clouds = [
        plots.finite(points, f"{name} at t = {t:.3g}")
        for points, t in zip(trajectories, times, strict=True)
    ]
    data = None if data is None else plots.finite(data, "data points")
    low, high = within or box(trajectories, data)
    d = clouds[0].shape[1]
    width, height = (4.6, 2.8) if d == 1 else plots.extent(low, high, 1)
    names = ("$x$", "density") if d == 1 else ("$x_1$", "$x_2$")
    see = " ".join(
        sentence
        for sentence, shown in (
            ("t = 0 is noise, t = 1 data.", True),
            ("Grey: the data.", data is not None),
            ("Arrows: velocities.", arrows is not None),
        )
        if shown
    )
    figure, [ax] = panels(width, height, see=see)
    figure.set_dpi(DPI)
    if d == 1:
        ax.set_ylim(0, _top(clouds, low, high, data))
    elif data is not None:
        plots.cloud(ax, data, low, high, FRAME)
    vectors = arrows and arrow_vectors(*arrows)

    frames = []
    for k, (points, t) in enumerate(zip(clouds, times, strict=True)):
        background = ax.get_children()
        if arrows and vectors is not None:
            _quiver(ax, arrows[0], vectors[k])
        if d == 1:
            plots.histogram(ax, points, low, high, data)
        else:
            plots.cloud(ax, points, low, high, SAMPLES)
        title = f"$t = {t:.2f}$: {plots.headline(name, points, low, high)}"
        entitle(ax, title, *names)
        frames.append(plots.render(figure))
        figure.set_layout_engine("none")  # the axes stay where the first frame has them
        for artist in set(ax.get_children()) - set(background):
            artist.remove()
    return frames


def _top(
    clouds: list[np.ndarray], low: np.ndarray, high: np.ndarray, data: np.ndarray | None
) -> float:
    """The upper end of the axis of densities.

    Bars more than twice as tall as those of the last frame and of the data are cut.
    """
    edges = plots.bins(clouds[0], low, high)
    tallest = [plots.density(points, edges).max() for points in clouds]
    last = max(tallest[-1], 0.0 if data is None else plots.density(data, edges).max())
    return 1.05 * float(min(max(*tallest, last), 2 * last))


def arrow_vectors(points: np.ndarray, u: np.ndarray) -> np.ndarray:
    """Velocities (F, G, 2) as arrows that are no longer than the distance of the points (G, 2).

    The length is that distance times tanh(|u| / (2 median |u|)), with the median over all frames.
    Without tanh, arrows near the data would cover all, as |u| grows like 1 / (1 - r) there.
    """
    step = np.ptp(points, axis=0).max() / (ARROWS - 1)
    speed = np.linalg.norm(u, axis=-1, keepdims=True)
    finite = np.isfinite(speed)
    usual = np.median(speed[finite]) if finite.any() else 1.0
    with np.errstate(invalid="ignore"):  # no arrow where u = 0
        return u / speed * step * np.tanh(speed / (2 * usual))


def _quiver(ax: "Axes", points: np.ndarray, vectors: np.ndarray) -> None:
    finite = np.isfinite(vectors).all(-1)
    ax.quiver(
        *points[finite].T,
        *vectors[finite].T,
        angles="xy",
        scale_units="xy",
        scale=1,  # lengths are in the data's units
        pivot="mid",
        width=0.0028,
        color=DATA,
    )


def animation(
    frames: Sequence[Image.Image],
    path: Path,
    milliseconds: int = FRAME_TIME,
    hold: int = 1500,
    times: Sequence[float] = (),
) -> None:
    """Write frames as a GIF, APNG or WebP, chosen by the suffix, repeating for ever.

    Each frame shows for `milliseconds`, and the last for `hold`. A GIF counts in hundredths of a
    second and has 256 colours, the same in all frames. The other formats are exact. A frame equal
    to the one before it prolongs that one.

    times: the value of t in each frame. They are stored in the file as a comment, for the slider
    of a report.

    Raises FmdiffError without frames and for another suffix.
    """
    if not frames:
        raise FmdiffError("an animation needs at least one frame")
    form = plots.file_format(path, ANIMATED)
    if form == "GIF":
        frames = _one_palette(frames)
    with files.whole(path) as file:
        frames[0].save(
            file,
            **_comment(form, times),
            format=form,
            save_all=True,
            append_images=list(frames[1:]),
            duration=[milliseconds] * (len(frames) - 1) + [hold],
            loop=0,
            lossless=True,  # WebP: pixels as drawn; the other formats ignore it
            optimize=False,  # GIF: Pillow 13 mixes up some greys when it drops unused ones
        )


def _comment(form: str, times: Sequence[float]) -> dict[str, Any]:
    """The keyword of Pillow that stores the times in a file of this format."""
    text = "t " + " ".join(f"{t:.6g}" for t in times)
    if not times:
        return {}
    if form == "PNG":
        info = PngInfo()
        info.add_text("comment", text)
        return {"pnginfo": info}
    return {"comment" if form == "GIF" else "xmp": text.encode()}


def _one_palette(frames: Sequence[Image.Image]) -> list[Image.Image]:
    """The frames in 256 colours chosen for a few of them at once, so that nothing flickers.

    Grey frames are exact. Of other frames the most frequent colours are exact, white among them.
    The other colours share the rest of the palette.
    """
    if all(not np.ptp(np.asarray(frame), axis=2).any() for frame in frames):
        return [frame.convert("L") for frame in frames]
    few = [frames[i] for i in np.unique(np.linspace(0, len(frames) - 1, 6).astype(int))]
    together = Image.fromarray(np.concatenate([np.asarray(frame) for frame in few]))
    counts: list[Any] = sorted(together.getcolors(2**24) or [], reverse=True)
    shares = together.quantize(256 - EXACT_COLORS).getpalette() or []
    colors = [color for _, color in counts[:EXACT_COLORS]]
    colors += zip(*[iter(shares)] * 3, strict=True)
    # Pillow looks colours up rounded down to multiples of 4: 250 would be nearer to white than 255
    apart: dict[tuple, tuple] = {}
    for color in colors:
        apart.setdefault(tuple(channel >> 3 for channel in color), color)
    palette = Image.new("P", (1, 1))
    palette.putpalette([channel for color in apart.values() for channel in color])
    return [frame.quantize(palette=palette, dither=Image.Dither.NONE) for frame in frames]
