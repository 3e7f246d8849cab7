"""The pictures of a run of fmdiff sample, from arrays alone."""

import numpy as np
import pytest
import torch
from PIL import Image

from fmdiff.build import named
from fmdiff.pictures import samples


@pytest.mark.parametrize("channels", [1, 3])
def test_images_are_written_together_and_one_by_one(tmp_path, channels):
    pixels = np.random.default_rng(0).integers(0, 256, (12, 8, 8, channels), np.uint8)
    assert samples.image_files(pixels, None, tmp_path, each=False) == ["grid.png"]
    plain = (tmp_path / "grid.png").read_bytes()
    labels = torch.arange(12)
    names = samples.image_files(pixels, labels, tmp_path, each=True)
    assert names == ["grid.png", "png/000000.png ... 000011.png"]
    assert (tmp_path / "grid.png").read_bytes() != plain  # the labels stand below the images
    for i, image in enumerate(pixels):
        stored = np.asarray(Image.open(tmp_path / f"png/{i:06d}.png"))
        assert np.array_equal(stored.reshape(image.shape), image)
    assert len(list(tmp_path.rglob("*"))) == 14  # no temporary file is left


def test_points_are_scattered_and_lines_fan_out(tmp_path):
    points = np.random.default_rng(0).normal(size=(30, 2)).astype(np.float32)
    assert samples.point_files(points, named("data", "gmm4"), tmp_path, None) == ["scatter.png"]
    states, times = torch.randn(4, 30, 1), torch.linspace(0, 1, 4)
    line = states[-1].numpy()
    names = samples.point_files(line, None, tmp_path, (states, times))
    assert names == ["scatter.png", "fan.png"]
    assert all(Image.open(tmp_path / name).width > 500 for name in names)
    flat = torch.randn(4, 30, 2), times
    assert samples.point_files(points, None, tmp_path, flat) == ["scatter.png"]


def test_films_show_what_is_there(tmp_path):
    times = torch.linspace(0, 1, 3)
    watches = {
        "trajectory": (torch.randn(3, 20, 2), times),
        "x_hat": (torch.randn(2, 20, 2), times[:2]),
    }
    questions = []

    def arrows(points, at):
        questions.append((points, at))
        return torch.ones(len(at), *points.shape)

    names = samples.films(watches, tmp_path, "gif", None, arrows)
    assert names == ["trajectory.gif", "x_hat.gif", "field.gif"]
    for name, frames in zip(names, (3, 2, 3), strict=True):
        with Image.open(tmp_path / name) as film:
            assert film.n_frames == frames
    [(points, at)] = questions
    assert points.shape[1] == 2 and torch.equal(at, times)
    images = {"trajectory": (torch.rand(3, 4, 1, 8, 8), times)}
    assert samples.films(images, tmp_path, "webp") == ["trajectory.webp"]


def test_a_long_way_is_shown_in_a_hundred_frames(tmp_path):
    times = torch.linspace(0, 1, 251)
    images = {"trajectory": (torch.rand(251, 1, 1, 2, 2), times)}
    [name] = samples.films(images, tmp_path, "png")
    with Image.open(tmp_path / name) as film:
        assert film.n_frames == 100
