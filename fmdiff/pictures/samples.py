"""The pictures of samples of any kind: grids, scatters, corners, series, fans and animations."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from fmdiff import files
from fmdiff.codec import Codec
from fmdiff.data.base import Data
from fmdiff.data.images import to_uint8
from fmdiff.pictures import animate, arrays, plots, series, table

if TYPE_CHECKING:
    from matplotlib.figure import Figure

GRID = 100  # images in the grid
COLUMNS = 16  # images in a row above their counterparts
SINGLES = "png"  # the folder of single images, which holds nothing else
REAL = 2000  # samples of the data behind an animation
SERIES = "series.png"
TITLES = {"trajectory": "samples", "x_hat": "estimates of x"}

Watch = tuple[Tensor, Tensor]  # frames (F, n, *shape) and their times (F,)
Arrows = Callable[[Tensor, Tensor], Tensor]  # points (G, 2), times (F,) -> velocities (F, G, 2)


def captions(labels: Tensor | None, names: Sequence[str]) -> list[object] | None:
    """The labels (n,) as names or, without names, as numbers; None without labels."""
    if labels is None:
        return None
    return [names[y] if names else y for y in labels.tolist()]


def in_pairs(x: Tensor, x_hat: Tensor) -> Image.Image:
    """A grid with rows of images x (n, C, H, W) in [-1, 1], each above its own of x_hat."""
    rows = zip(x.split(COLUMNS), x_hat.split(COLUMNS), strict=True)
    pixels = to_uint8(torch.cat([torch.cat(row) for row in rows]).cpu())
    return plots.grid(pixels.numpy(), columns=min(COLUMNS, len(x)))


def image_files(
    pixels: np.ndarray, labels: Tensor | None, folder: Path, each: bool, names: Sequence[str] = ()
) -> list[str]:
    """Write grid.png of images uint8 (n, H, W, C), and each to png/000000.png ... Returns names.

    Single images of an earlier run that are more than n are deleted.
    """
    first = slice(0, GRID)
    words = None if labels is None else captions(labels[first], names)
    plots.save(plots.grid(pixels[first], words), folder / "grid.png")
    if not each:
        return ["grid.png"]
    singles = files.make_folder(folder / SINGLES)
    for path in singles.glob("[0-9]" * 6 + ".png"):
        path.unlink()
    for i, image in enumerate(pixels):
        plain = image[..., 0] if image.shape[-1] == 1 else image
        plots.save(Image.fromarray(plain), singles / f"{i:06d}.png")
    return ["grid.png", f"{SINGLES}/000000.png ... {len(pixels) - 1:06d}.png"]


def figure(
    kind: str,
    x: np.ndarray,
    real: np.ndarray | None = None,
    title: str = "samples",
    codec: Codec | None = None,
) -> "Figure | Image.Image":
    """The picture of points, series or arrays x (n, ...) beside real ones (m, ...).

    codec: that of the samples, which may name their columns. Raises FmdiffError when samples are
    not finite.
    """
    if kind == "arrays":
        return arrays.grid(x, arrays.span(x if real is None else real))
    names = () if codec is None else codec.column_names
    if kind == "series":
        return series.series(x, real, title, names)
    if _tabular(x, codec):
        return table.corner(x, real, title, names, codec.levels if codec else None)
    return plots.scatter(x, real, title)


def _tabular(points: np.ndarray, codec: Codec | None) -> bool:
    """Whether points (n, d) are drawn as a table rather than as a scatter or a histogram."""
    named = codec is not None and bool(codec.column_names)
    return points.shape[1] > (1 if named else 2)


def array_files(
    x: np.ndarray, kind: str, data: Data | None, folder: Path, codec: Codec | None = None
) -> list[str]:
    """Write series.png of series (n, C, L) or grid.png of arrays. Returns its name."""
    name = SERIES if kind == "series" else "grid.png"
    plots.save(figure(kind, x, _real(data, len(x)), codec=codec), folder / name)
    return [name]


def point_files(
    points: np.ndarray,
    data: Data | None,
    folder: Path,
    trajectory: Watch | None,
    codec: Codec | None = None,
) -> list[str]:
    """Write scatter.png of points (n, d) and fan.png of 1-D trajectories. Returns the names.

    With a trajectory they have the frame of its animations. Points of more than two dimensions,
    and those with names of their columns in `codec`, have corner.png in place of scatter.png.
    """
    real = _real(data, len(points))
    if _tabular(points, codec):
        plots.save(figure("points", points, real, codec=codec), folder / "corner.png")
        return ["corner.png"]
    within = None if trajectory is None else _frame(trajectory, _real(data))
    plots.save(plots.scatter(points, real, within=within), folder / "scatter.png")
    if trajectory is None or points.shape[1] != 1:
        return ["scatter.png"]
    states, times = (tensor.double().numpy() for tensor in trajectory)
    plots.save(plots.fan(states, times, real, points, within), folder / "fan.png")
    return ["scatter.png", "fan.png"]


def films(
    watches: Mapping[str, Watch],
    folder: Path,
    form: str,
    data: Data | None = None,
    arrows: Arrows | None = None,
    kind: str | None = None,
) -> list[str]:
    """Write the animations of samples in the format `form`. Returns the names of the files.

    watches: the trajectory of samples and, if there are any, the estimates x_hat of x. arrows:
    computes the velocities that a third animation, of 2-D samples, shows. kind: that of the
    samples, by default points, series or images by their shape.
    """
    thin = {name: _thinned(watch) for name, watch in watches.items()}
    kind = kind or {3: "points", 4: "series", 5: "images"}[thin["trajectory"][0].ndim]
    if kind == "points":
        movies = _of_points(thin, data, arrows)
    else:
        movies = _of_images(thin) if kind == "images" else _of_arrays(thin, data, kind)
    for name, frames in movies.items():
        _, times = thin[name if name in thin else "trajectory"]
        animate.animation(frames, folder / f"{name}.{form}", times=times.tolist())
    return [f"{name}.{form}" for name in movies]


def _of_images(watches: Mapping[str, Watch]) -> dict[str, list[Image.Image]]:
    movies = {}
    for name, (frames, times) in watches.items():
        pixels = np.stack([to_uint8(frame).numpy() for frame in frames])
        movies[name] = animate.image_frames(pixels, times.tolist())
    return movies


def _of_arrays(
    watches: Mapping[str, Watch], data: Data | None, kind: str
) -> dict[str, list[Image.Image]]:
    """The frames of series or of arrays that are no images."""
    real, movies = _real(data), {}
    within = None
    if kind == "arrays":
        within = arrays.span(watches["trajectory"][0][-1].numpy() if real is None else real)
    for name, (frames, at) in watches.items():
        x, times = frames.numpy(), at.tolist()
        if within is None:
            movies[name] = series.series_frames(x, times, real, TITLES[name])
            continue
        maps = [arrays.maps(states, within) for states in x]
        tiles = np.stack([tiles for tiles, _ in maps])
        movies[name] = animate.image_frames(tiles, times, columns=maps[0][1])
    return movies


def _of_points(
    watches: Mapping[str, Watch], data: Data | None, arrows: Arrows | None
) -> dict[str, list[Image.Image]]:
    real = _real(data)
    states, times = watches["trajectory"]
    within = _frame(watches["trajectory"], real)
    movies = {}
    for name, (frames, at) in watches.items():
        points = frames.numpy()
        movies[name] = animate.point_frames(points, at.tolist(), real, within, TITLES[name])
    if arrows and states.shape[2] == 2:
        mesh = animate.mesh(within)
        u = mesh, arrows(torch.from_numpy(mesh), times).numpy()
        title = "velocity and samples"
        movies["field"] = animate.point_frames(
            states.numpy(), times.tolist(), real, within, title, u
        )
    return movies


def _real(data: Data | None, n: int = REAL) -> np.ndarray | None:
    """n samples of the data, or as many as it has."""
    if data is None:
        return None
    return data.sample(0, min(n, data.references or n), 1)[0].numpy()


def _frame(trajectory: Watch, real: np.ndarray | None) -> plots.Box:
    """The box that the still pictures and the animations of a run share."""
    return animate.box(trajectory[0].double().numpy(), real)


def _thinned(watch: Watch) -> Watch:
    frames, times = watch
    indices = torch.from_numpy(animate.frame_indices(len(times)))
    return frames[indices], times[indices]
