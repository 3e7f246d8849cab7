"""Pictures of arrays (N, C, H, W) that are no images: a map of each channel."""

import numpy as np
from PIL import Image

from fmdiff.errors import FmdiffError
from fmdiff.pictures import plots

CHANNELS = 8  # maps of a sample
TILES = 100  # maps in a grid, at most, if four samples have fewer
BULK = 0.01, 0.99  # quantiles of a channel that have the first and the last colour
SEE = (
    "the channels of a sample stand side by side, from dark at the 1 % quantile of the data to "
    "light at the 99 %"
)

Range = tuple[np.ndarray, np.ndarray]  # (C,) each: the values of the first and the last colour


def span(x: np.ndarray) -> Range:
    """The values of the first and the last colour of each channel, from arrays (N, C, H, W).

    Raises FmdiffError for another shape and for values that are not finite.
    """
    if x.ndim != 4 or 0 in x.shape or not np.isfinite(x).all():
        raise FmdiffError(f"arrays to be drawn must be finite (N, C, H, W), not {x.shape}")
    low, high = np.quantile(x.swapaxes(0, 1).reshape(x.shape[1], -1), BULK, axis=1)
    return low, np.where(high > low, high, low + 1)


def grid(x: np.ndarray, within: Range | None = None, scale: int | None = None) -> Image.Image:
    """Draw the first arrays of x (N, C, H, W), with up to eight channels of each side by side.

    within: the `span` of the colours, by default that of x. scale: see `plots.grid`.
    """
    tiles, columns = maps(x, within or span(x))
    return plots.grid(tiles, columns=columns, scale=scale)


def maps(x: np.ndarray, within: Range) -> tuple[np.ndarray, int]:
    """Tiles uint8 (T, H, W, 3) of the first arrays, and how many make a row of whole samples."""
    channels = min(x.shape[1], CHANNELS)
    count = min(len(x), max(4, TILES // channels))
    low, high = (edge[:channels, None, None] for edge in within)
    with np.errstate(invalid="ignore"):
        shares = (x[:count, :channels] - low) / (high - low)
    tiles = _colored(np.nan_to_num(shares)).reshape(-1, *x.shape[2:], 3)
    across = max(1, round((count / channels) ** 0.5))
    return tiles, min(across, count) * channels


def _colored(shares: np.ndarray) -> np.ndarray:
    """Colours uint8 (..., 3) of values from 0 to 1."""
    import matplotlib

    colors = matplotlib.colormaps["viridis"](np.linspace(0, 1, 256))[:, :3]
    table = (255 * colors).round().astype(np.uint8)
    return table[(shares.clip(0, 1) * 255).round().astype(int)]
