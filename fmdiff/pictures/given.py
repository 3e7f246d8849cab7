"""Pictures of samples beside what they were given."""

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from fmdiff.condition import Form
from fmdiff.pictures.plots import CAPTION, cloud, extent, grid, histogram, limits
from fmdiff.pictures.style import SAMPLES, entitle, panels

if TYPE_CHECKING:
    from matplotlib.figure import Figure

HOLE = 128  # the level of grey of what is unknown
TILES = 100  # in a grid
ACROSS = 9  # tiles in a row, unless one value needs more
DRAWN = 8  # samples of one value in a grid
PLOTS = 6  # values whose points are drawn
LETTER = 6  # pixels of a letter, about

Given = Mapping[str, np.ndarray]  # name -> (n, *shape)


def text(row: np.ndarray, form: Form | None = None) -> str:
    """One value of a vector condition in words: its level, its numbers, or `unknown`."""
    flat = np.asarray(row, np.float64).ravel()
    if np.isnan(flat).all():
        return "unknown"
    if form is not None and form.levels and np.isin(flat, (0, 1)).all() and flat.sum() == 1:
        return form.levels[int(flat.argmax())]
    return ", ".join(f"{v:.3g}" for v in flat[:4]) + (", ..." if len(flat) > 4 else "")


def images(
    pixels: np.ndarray,
    given: Given,
    forms: Mapping[str, Form],
    count: int,
    real: np.ndarray | None = None,
    labels: Sequence[object] | None = None,
) -> Image.Image:
    """Arrange each value of the conditions, samples that were given it, and the real image.

    pixels: uint8 (n, H, W, C). given: by name (n, *shape), pictures in [-1, 1], NaN where unknown,
    which becomes grey. count: after how many samples the values begin anew. real: images like
    pixels, or None. labels: n captions, or None. The size of a tile is that of the largest
    picture; smaller ones are enlarged without smoothing.
    """
    n = len(pixels)
    count = min(count, n)
    each = min(DRAWN, -(-n // count))
    shapes = [form.shape[1:] for form in forms.values() if len(form.shape) == 3]
    size = np.max([*shapes, pixels.shape[1:3]], 0)
    width = len(given) + each + (real is not None)
    tiles: list[np.ndarray] = []
    words: list[object] = []
    for row in range(min(count, max(1, TILES // width))):
        for name, rows in given.items():
            picture = rows[row].ndim == 3
            tiles.append(
                _enlarged(_pixels(rows[row]), size)
                if picture
                else _written(text(rows[row], forms.get(name)), size)
            )
            words.append(name)
        for i in range(row, row + each * count, count):
            blank = np.full((*size, 3), 255, np.uint8)
            tiles.append(_enlarged(pixels[i], size) if i < n else blank)
            words.append("" if i >= n else "sample" if labels is None else labels[i])
        if real is not None:
            tiles.append(_enlarged(real[row % len(real)], size))
            words.append("real")
    columns = width * max(1, ACROSS // width)
    return grid(np.stack(tiles), words, columns)


def _pixels(picture: np.ndarray) -> np.ndarray:
    """A picture (C, H, W) in [-1, 1] as uint8 (H, W, C), grey where it is NaN."""
    levels = np.round(127.5 * (np.clip(picture, -1, 1) + 1))
    return np.where(np.isnan(picture), HOLE, levels).astype(np.uint8).transpose(1, 2, 0)


def _enlarged(pixels: np.ndarray, size: np.ndarray) -> np.ndarray:
    """Pixels (h, w, C) as a tile (H, W, 3), each repeated."""
    rows, columns = (np.arange(s) * k // s for s, k in zip(size, pixels.shape, strict=False))
    tile = pixels[rows][:, columns]
    colours = tile if tile.shape[2] in (1, 3) else tile[..., :1]
    return np.broadcast_to(colours, (*size, 3))


def _written(words: str, size: np.ndarray) -> np.ndarray:
    """A white tile with words in the middle, of which those that fit are seen."""
    height, width = map(int, size)
    tile = Image.new("RGB", (width, height), "white")
    font = ImageFont.load_default(max(7, min(14, width // max(2, len(words)) * 2)))
    draw = ImageDraw.Draw(tile)
    draw.text((width / 2, height / 2), words, fill=CAPTION, font=font, anchor="mm")
    return np.asarray(tile)


def points(
    samples: np.ndarray,
    given: Given,
    forms: Mapping[str, Form],
    count: int,
    data: np.ndarray | None = None,
) -> "Figure | None":
    """Plot the samples (n, d) of each value apart, in a row; None unless several can be drawn.

    count: after how many samples the values begin anew. data: real points (m, d), which the frame
    holds as well.
    """
    d = samples.shape[1]
    if not 2 <= count <= max(2, len(samples) // 4):
        return None
    low, high = limits(samples if data is None else data, samples)
    columns = min(count, PLOTS)
    more = f" of {count}" if count > columns else ""
    see = f"The samples of {columns}{more} values, one beside the other."
    width, height = (2.2 * columns, 2.4) if d == 1 else extent(low, high, columns)
    scale = min(1.0, 2.6 * columns / width)
    figure, axes = panels(width * scale, height * scale + 0.2, columns, see=see)
    for row, ax in enumerate(axes):
        part = samples[row::count]
        title = "; ".join(f"{name}={text(v[row], forms.get(name))}" for name, v in given.items())
        if d == 1:
            histogram(ax, part, low, high, None)
        else:
            cloud(ax, part, low, high, SAMPLES)
        entitle(ax, title[: math.ceil(40 / columns) + 12], "$x$" if d == 1 else "$x_1$")
        ax.tick_params(labelleft=row == 0)
    return figure
