"""Data around other data: smaller images and holes, as conditions of the samples."""

import math

import numpy as np
import pytest
import torch

from fmdiff.build import named
from fmdiff.condition import label
from fmdiff.data.derived import Masked
from fmdiff.errors import FmdiffError


def make(name, **changes):
    of = changes.pop("of", "digits")
    return named("data", name, of=named("data", of), **changes)


def parts(batch):
    x, y = batch
    [(name, value)] = [(k, v) for k, v in y.parts.items() if k != "label"]
    return x, name, value


def ways(data):
    """x and the condition of every way to samples."""
    yield data.batch(3, 5)
    yield data.held_out(40)
    yield data.sample(10, 50, 1)
    yield data.examples(30)


def test_low_resolution_is_the_mean_of_blocks():
    for batch in ways(make("low_resolution", size=4)):
        x, name, low = parts(batch)
        blocks = x.numpy().reshape(len(x), 1, 4, 2, 4, 2).mean((3, 5))
        assert name == "low" and low.dtype == torch.float32
        np.testing.assert_allclose(low.numpy(), blocks, atol=1e-6)


def test_low_resolution_of_a_size_that_does_not_divide_weighs_each_row_by_what_overlaps():
    """The 8 rows onto 3: rows floor(8 i / 3) ... ceil(8 (i + 1) / 3) - 1, as adaptive pooling."""
    x, _, low = parts(make("low_resolution", size=3).held_out(4))
    edges = [(8 * i // 3, -(-8 * (i + 1) // 3)) for i in range(3)]
    for i, (top, bottom) in enumerate(edges):
        for j, (left, right) in enumerate(edges):
            block = x[:, :, top:bottom, left:right].mean((2, 3))
            torch.testing.assert_close(low[:, :, i, j], block)


@pytest.mark.parametrize("mode", ["center", "random", "outside", "half", "scattered"])
def test_what_is_known_is_x_itself(mode):
    for batch in ways(make("masked", mode=mode, size=4)):
        x, name, known = parts(batch)
        hole = known.isnan()
        assert name == "known" and torch.equal(known[~hole], x[~hole])
        assert hole.any() and not hole.all()


def boxes(known):
    """Top, left, height and width of the hole of each picture, which must be a whole box."""
    for picture in known[:, 0].isnan().numpy():
        rows, columns = np.nonzero(picture.any(1))[0], np.nonzero(picture.any(0))[0]
        box = picture[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
        assert box.all() and picture.sum() == box.sum()
        yield rows[0], columns[0], *box.shape


def test_holes_in_the_middle_and_around_it():
    _, _, known = parts(make("masked", mode="center", size=4).batch(0, 0))
    assert set(boxes(known)) == {(2, 2, 4, 4)}
    _, _, outside = parts(make("masked", mode="outside", size=4).batch(0, 0))
    assert torch.equal(outside.isnan(), ~known.isnan())


def test_boxes_anywhere_lie_everywhere_equally_often():
    """Of 25 places each has a share of 1 / 25: chi squared with 24 degrees, 99.9 % below 51.2."""
    data = make("masked", mode="random", size=4, batch_size=2000)
    places = list(boxes(parts(data.batch(0, 0))[2]))
    assert {place[2:] for place in places} == {(4, 4)}
    counts = np.zeros((5, 5))
    for top, left, _, _ in places:
        counts[top, left] += 1
    assert ((counts - 80) ** 2 / 80).sum() < 51.2


def test_halves_are_all_four():
    data = make("masked", mode="half", batch_size=2000)
    places = list(boxes(parts(data.batch(0, 0))[2]))
    assert {*places} == {(0, 0, 4, 8), (4, 0, 4, 8), (0, 0, 8, 4), (0, 4, 8, 4)}
    shares = [places.count(place) / 2000 for place in set(places)]
    assert max(abs(share - 0.25) for share in shares) < 4 * math.sqrt(0.25 * 0.75 / 2000)


@pytest.mark.parametrize("rate", [0.0, 0.2, 1.0])
def test_coordinates_of_points_are_hidden_at_the_rate(rate):
    data = make("masked", of="gmm4", mode="scattered", rate=rate, batch_size=5000)
    x, _, known = parts(data.batch(0, 0))
    assert known.shape == x.shape == (5000, 2)
    share = known.isnan().float().mean().item()
    assert abs(share - rate) <= 4 * math.sqrt(rate * (1 - rate) / 10_000)


def test_all_channels_are_hidden_at_once():
    data = make("masked", mode="scattered", rate=0.5)
    hole = data.hole(torch.rand(3, 64))
    x = torch.rand(3, 3, 8, 8)
    known = data.derive(x, torch.zeros(3, 64) + (~hole).flatten(1))
    for channel in known.unbind(1):
        assert torch.equal(channel.isnan(), hole)


@pytest.mark.parametrize("mode", ["random", "half", "scattered"])
def test_holes_are_functions_of_seed_step_and_index(mode):
    data, again = (make("masked", mode=mode, size=4) for _ in range(2))
    known = parts(data.batch(1, 7))[2]
    same = parts(again.batch(1, 7, slice(8, 24)))[2]
    assert torch.equal(known[8:24].isnan(), same.isnan())
    for other in (data.batch(2, 7), data.batch(1, 8)):
        assert not torch.equal(known.isnan(), parts(other)[2].isnan())
    whole = parts(data.sample(0, 200, 3))[2]
    assert torch.equal(whole[70:150].isnan(), parts(again.sample(70, 150, 3))[2].isnan())
    mine, other = (parts(one.held_out(9))[2].isnan() for one in (data, again))
    assert torch.equal(mine, other)


def test_the_samples_are_those_of_the_data_within():
    data = make("masked", size=4, only=[1, 3], conditional=True)
    inner = named("data", "digits", only=[1, 3], batch_size=data.batch_size)
    for (x, y), (same, _) in zip(ways(data), ways(inner), strict=True):
        assert torch.equal(x, same) and set(label(y).tolist()) == {1, 3}
    assert data.std == inner.std and data.shape == (1, 8, 8) and data.classes == 10
    assert data.training_size == len(inner.train[0]) and data.references == inner.references
    plain = make("masked", mode="half")
    assert plain.classes == 0 and label(plain.batch(0, 0)[1]) is None


def test_the_form_has_the_moments_of_what_is_known():
    data = make("masked", mode="outside", size=4)
    form = data.conditions["known"]
    box = data.examples(4096)[0][:, :, 2:6, 2:6].double()
    assert form.shape == (1, 8, 8)
    assert form.mean == pytest.approx([box.mean().item()], rel=1e-6)
    assert form.std == pytest.approx([box.std(correction=0).item()], rel=1e-6)
    points = make("masked", of="gmm4", mode="scattered", rate=1.0).conditions["known"]
    assert points.mean == (0, 0) and points.std == (1, 1)


@pytest.mark.parametrize(
    ("name", "changes", "says"),
    [
        ("low_resolution", {"size": 0}, "data.size=0 must be an integer >= 1"),
        ("low_resolution", {"size": 8}, "needs images of more pixels a side"),
        ("low_resolution", {"size": 1, "of": "moons"}, r"samples of shape \[2\]"),
        ("masked", {"size": 9}, r"must fit into samples of shape \[1, 8, 8\]"),
        ("masked", {"mode": "centre"}, "must be center, random, outside, half, scattered"),
        ("masked", {"rate": 1.5}, "data.rate=1.5 must be a number from 0 to 1"),
        ("masked", {"of": "moons"}, "choose data.mode=scattered"),
        ("masked", {"conditional": True, "of": "swissroll"}, "has no classes"),
    ],
)
def test_slips(name, changes, says):
    with pytest.raises(FmdiffError, match=says):
        make(name, **{"size": 4} | changes).batch(0, 0)


def test_what_is_no_data_set_or_changes_pictures_later_is_refused():
    with pytest.raises(FmdiffError, match=r"data.of=3 must be a data set"):
        named("data", "masked", of=3)
    with pytest.raises(FmdiffError, match=r"data.of.augment=0.1 .* set it to 0"):
        named("data", "masked", of=named("data", "digits", augment=0.1))


def test_axes_are_told_by_the_data_within():
    def axes(**of):
        return Masked.axes_of({"of": {"_target_": "fmdiff.build.named", "group": "data"} | of})

    assert axes(name="mnist") == 3 and axes(name="moons") == 1
    assert axes(name="masked") == 3  # whose own data are mnist
    assert Masked.axes_of({"of": {"_target_": "fmdiff.data.toy.Moons"}}) == 1
