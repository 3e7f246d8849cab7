"""Samples beside what they were given."""

import numpy as np
import pytest

from fmdiff.condition import Form
from fmdiff.pictures import given


def tiles(picture, columns, side, gap):
    """The tiles of a grid of square tiles, without captions, as (rows, columns, side, side, 3)."""
    pixels = np.asarray(picture)
    strip = (pixels.shape[0] - gap) // ((pixels.shape[0] - gap) // (side + gap)) - side - gap
    rows = [pixels[top : top + side] for top in range(gap, len(pixels) - side, side + gap + strip)]
    return np.stack(
        [
            np.stack(
                [
                    row[:, left : left + side]
                    for left in range(gap, row.shape[1] - side, side + gap)
                ]
            )
            for row in rows
        ]
    )[:, :columns]


def grid(**changes):
    """2 values of a 2 x 2 picture and 3 samples each, of 4 x 4 pixels; magnified 40 times."""
    rng = np.random.default_rng(0)
    low = np.array([[[[-1.0, 1.0], [np.nan, 0.0]]], [[[1.0, 1.0], [1.0, np.nan]]]])
    about = {
        "pixels": rng.integers(0, 256, (6, 4, 4, 1), np.uint8),
        "given": {"low": np.tile(low, (3, 1, 1, 1))},
        "forms": {"low": Form((1, 2, 2))},
        "count": 2,
    }
    about |= changes
    return about, given.images(**about)


def test_rows_are_values_and_columns_samples():
    about, picture = grid()
    scale = about["pixels"].shape[1]
    side = 4 * max(1, min(768 // (8 * scale), 160 // scale))
    found = tiles(picture, 8, side, max(2, side // 24))
    assert found.shape[:2] == (1, 8)  # two values in one row, 4 tiles each
    first = found[0, 0, ::1]
    half = side // 2
    corners = [first[a, b, 0] for a in (1, half + 1) for b in (1, half + 1)]
    assert corners == [0, 255, given.HOLE, 128]  # 0 in [-1, 1] is 127.5
    magnified = about["pixels"].repeat(side // 4, 1).repeat(side // 4, 2)
    for column, sample in ((1, 0), (2, 2), (3, 4), (5, 1), (6, 3), (7, 5)):
        assert np.array_equal(
            found[0, column], np.broadcast_to(magnified[sample], (side, side, 3))
        )


def test_the_real_image_stands_last():
    real = np.full((2, 4, 4, 1), [[[[7]]], [[[9]]]], np.uint8)
    _, picture = grid(real=real)
    side = 4 * min(768 // (5 * 4), 160 // 4)
    found = tiles(picture, 5, side, max(2, side // 24))
    assert found.shape[:2] == (2, 5)
    assert (found[0, 4] == 7).all() and (found[1, 4] == 9).all()


def test_numbers_are_written_and_missing_samples_are_white():
    _, picture = grid(
        given={"c": np.array([[0.3], [1.0]] * 3)[:5]},
        forms={"c": Form((1,))},
        pixels=np.zeros((5, 4, 4, 3), np.uint8),
    )
    _, other = grid(
        given={"c": np.array([[0.7], [1.0]] * 3)[:5]},
        forms={"c": Form((1,))},
        pixels=np.zeros((5, 4, 4, 3), np.uint8),
    )
    assert picture.size == other.size and picture.tobytes() != other.tobytes()
    side = 4 * min(768 // (8 * 4), 160 // 4)
    found = tiles(picture, 8, side, max(2, side // 24))
    assert (found[0, 7] == 255).all() and not found[0, 6].any()


@pytest.mark.parametrize(
    ("row", "form", "words"),
    [
        ([0.25], None, "0.25"),
        ([1, 2.5, np.nan], None, "1, 2.5, nan"),
        ([1, 2, 3, 4, 5], None, "1, 2, 3, 4, ..."),
        ([np.nan, np.nan], None, "unknown"),
        ([0, 1], Form((2,), levels=("red", "blue")), "blue"),
        ([0.5, 0.5], Form((2,), levels=("red", "blue")), "0.5, 0.5"),
    ],
)
def test_a_value_in_words(row, form, words):
    assert given.text(np.array(row, float), form) == words


@pytest.mark.parametrize("d", [1, 2, 3])
def test_points_are_drawn_by_value(d):
    rng = np.random.default_rng(0)
    samples, c = rng.normal(size=(60, d)), np.tile([[0.0], [1.0], [2.0]], (20, 1))
    figure = given.points(samples, {"c": c}, {"c": Form((1,))}, 3)
    titles = [ax.get_title(loc="left") for ax in figure.axes]
    assert titles == ["c=0", "c=1", "c=2"]
    if d > 1:
        for row, ax in enumerate(figure.axes):
            assert np.allclose(np.stack(ax.lines[0].get_data(), 1), samples[row::3, :2])
    assert given.points(samples, {"c": c}, {"c": Form((1,))}, 1) is None
    assert given.points(samples, {"c": c}, {"c": Form((1,))}, 60) is None
