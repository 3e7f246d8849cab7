"""Augmentation: the transforms are those the labels name, and networks hear of them."""

import math
from itertools import pairwise

import numpy as np
import pytest
import scipy.linalg
import scipy.ndimage
import scipy.stats
import torch
from test_data import make, numbered
from test_models import inputs, network
from test_transformers import DIT, JIT

from fmdiff.data.augment import LABELS, SHIFT, STEP, draw, inverse, transform, warp
from fmdiff.errors import FmdiffError
from fmdiff.randomness import generator

N = 20_000
FLIP_X, FLIP_Y, SCALE, TURN, STRETCH, MOVE = 0, 1, [2], [3, 4], [5, 6], [7, 8]
NETWORKS = [
    ("ddpmpp", {"channels": 16, "multipliers": [1, 2], "blocks": 1}),
    ("unet", {"channels": 16}),
    ("dit_s", DIT),
    ("jit_mnist", {**JIT, "patch": 2}),
]
every_network = pytest.mark.parametrize(("name", "keys"), NETWORKS, ids=lambda v: str(v)[:6])


def labels_of(**values):
    """One row of labels, the others zero: angle, scale, stretch, shift, x, y."""
    row = torch.zeros(1, LABELS)
    if "angle" in values:
        row[0, TURN] = torch.tensor([math.cos(values["angle"]) - 1, math.sin(values["angle"])])
    for key, place in (("x", FLIP_X), ("y", FLIP_Y), ("scale", SCALE), ("stretch", STRETCH)):
        row[0, place] = torch.as_tensor(values.get(key, 0.0))
    row[0, MOVE] = torch.as_tensor(values.get("shift", (0.0, 0.0)))
    return row


def bump(size=65):
    """A smooth image (1, 1, size, size) without a symmetry."""
    y, x = torch.meshgrid(*(torch.arange(size) - (size - 1) / 2,) * 2, indexing="ij")
    return bumps(x, y)[None, None]


def bumps(x, y):
    one = torch.exp(-(((x - 8) / 9) ** 2 + ((y + 5) / 5) ** 2) / 2)
    return 1.5 * one + torch.exp(-((x + 4) ** 2 + (y - 9) ** 2) / 50) - 1


# What is drawn


@pytest.mark.parametrize("p", [0.12, 0.5])
def test_each_transform_is_drawn_as_often_as_asked(p):
    labels = draw(N, p, generator(0, "augment", 0))
    assert labels.shape == (N, LABELS) and labels.dtype == torch.float32

    def often(rows, probability):
        assert scipy.stats.binomtest(int(rows.sum()), N, probability).pvalue > 1e-4

    often(labels[:, FLIP_X] == 1, 0.5)
    often(labels[:, FLIP_Y] == 1, p / 2)
    assert set(labels[:, :2].flatten().tolist()) == {0, 1}
    groups = [(labels[:, place] != 0).any(1) for place in (SCALE, TURN, STRETCH, MOVE)]
    for group in groups:
        often(group, p)
    often(torch.stack(groups).all(0), p**4)  # of each other they know nothing
    often(groups[0] & (labels[:, FLIP_X] == 1), p / 2)


def test_values_have_the_laws_of_the_paper():
    labels = draw(N, 1.0, generator(1, "augment", 0)).double().numpy()
    for column in (*SCALE, *MOVE):
        assert scipy.stats.kstest(labels[:, column], "norm").pvalue > 1e-4
    angle = np.arctan2(labels[:, 4], labels[:, 3] + 1)
    assert np.allclose((labels[:, 3] + 1) ** 2 + labels[:, 4] ** 2, 1, atol=1e-6)
    assert scipy.stats.kstest(angle, "uniform", (-math.pi, 2 * math.pi)).pvalue > 1e-4
    u, v = labels[:, STRETCH].T
    assert scipy.stats.kstest(np.hypot(u, v), "halfnorm").pvalue > 1e-4
    axis = np.arctan2(v, u)
    assert scipy.stats.kstest(axis, "uniform", (-math.pi, 2 * math.pi)).pvalue > 1e-4
    columns = np.stack([labels[:, 2], angle, u, v, labels[:, 7], labels[:, 8]])
    apart = np.corrcoef(columns) - np.eye(6)
    assert np.abs(apart).max() < 5 / math.sqrt(N)


# What is done


def test_the_matrix_is_the_inverse_of_the_steps_in_turn():
    labels = draw(50, 1.0, generator(2, "augment", 0)).double()
    matrix, shift = inverse(labels, 20, 30)
    for row, found, moved in zip(labels.numpy(), matrix.numpy(), shift.tolist(), strict=True):
        a, cos, sin, u, v = row[2], row[3] + 1, row[4], row[5], row[6]
        scale = 2 ** (0.2 * a) * np.eye(2)
        turn = np.array([[cos, sin], [-sin, cos]])  # anticlockwise, y down
        axis, c = np.arctan2(v, u) / 2, np.hypot(u, v)
        along = np.array([[np.cos(axis), -np.sin(axis)], [np.sin(axis), np.cos(axis)]])
        stretch = along @ np.diag([2 ** (0.2 * c), 2 ** (-0.2 * c)]) @ along.T
        np.testing.assert_allclose(np.linalg.inv(found), stretch @ turn @ scale, rtol=1e-6)
        generators = STEP * np.array([[u, v], [v, -u]])
        np.testing.assert_allclose(scipy.linalg.expm(generators), stretch, rtol=1e-9)
        assert moved == pytest.approx([30 * row[7] / 8, 20 * row[8] / 8])


@pytest.mark.parametrize(
    "values",
    [
        {"angle": 0.4},
        {"angle": -2.5},
        {"scale": 1.5},
        {"scale": -1.0},
        {"stretch": (1.2, 0.0)},
        {"stretch": (-0.7, 0.9)},
        {"shift": (0.3, -0.9)},
        {"angle": 0.9, "scale": 0.8, "stretch": (0.5, -1.0), "shift": (-0.4, 0.2)},
    ],
    ids=str,
)
def test_a_smooth_image_moves_as_its_labels_say(values):
    """Against the function itself, asked where each pixel came from, and against scipy."""
    size = 65
    x, labels = bump(size), labels_of(**values)
    found = warp(x, labels)[0, 0]
    matrix, shift = (part[0].double() for part in inverse(labels, size, size))
    row, column = torch.meshgrid(*(torch.arange(size) - (size - 1) / 2,) * 2, indexing="ij")
    places = torch.stack([column, row], 2).double() - shift
    before = places @ matrix.T
    inside = before.abs().amax(2) < (size - 5) / 2
    expected = bumps(*before.unbind(2)).float()
    assert inside.double().mean() > 0.5
    # a tenth of a pixel changes up to 0.02, and bicubic weights err by half of that
    assert (found - expected)[inside].abs().max() < 0.015
    yx = matrix.flip(0, 1).numpy()  # scipy counts rows first, from the corner
    centre = np.full(2, (size - 1) / 2)
    offset = centre - yx @ (centre + shift.flip(0).numpy())
    theirs = scipy.ndimage.affine_transform(x[0, 0].numpy(), yx, offset, order=3, mode="reflect")
    np.testing.assert_allclose(found[inside], theirs[inside.numpy()], atol=0.015)


def test_a_known_turn_scale_and_shift():
    x = bump(65)
    quarter = warp(x, labels_of(angle=math.pi / 2))
    torch.testing.assert_close(quarter, x.rot90(1, (2, 3)), atol=1e-4, rtol=0)  # anticlockwise
    moved = warp(x, labels_of(shift=(8 / 65, 24 / 65)))  # 1 pixel to the right, 3 down
    torch.testing.assert_close(moved[..., 3:, 1:], x[..., :-3, :-1], atol=1e-4, rtol=0)
    torch.testing.assert_close(moved[..., 3:, 0], x[..., :-3, 0], atol=1e-4, rtol=0)  # mirrored
    twice = warp(x, labels_of(scale=5.0))  # 2^(0.2 * 5): from the middle outwards
    torch.testing.assert_close(twice[..., ::2, ::2], x[..., 16:49, 16:49], atol=1e-4, rtol=0)
    wide = warp(x, labels_of(stretch=(5.0, 0.0)))
    torch.testing.assert_close(wide[..., 24:41, ::2], x[..., 16:49:2, 16:49], atol=1e-4, rtol=0)


def test_flips_are_exact_and_what_is_not_drawn_stays():
    x = torch.rand(6, 3, 5, 7, generator=torch.Generator().manual_seed(0)) * 2 - 1
    labels = torch.cat([labels_of(x=a, y=b) for a in (0.0, 1.0) for b in (0.0, 1.0)])
    labels = torch.cat([labels, labels_of(angle=1.0), labels_of(x=1.0, scale=1.0)])
    found = transform(x, labels)
    expected = (x[0], x[1].flip(1), x[2].flip(2), x[3].flip(1, 2))
    assert torch.equal(found[:4], torch.stack(expected))
    assert not torch.equal(found[4], x[4])
    turned = warp(torch.cat([x[4:5], x[5:].flip(3)]), labels[4:])
    torch.testing.assert_close(found[4:], turned)
    assert found.abs().max() <= 1 and found.shape == x.shape


def test_a_warp_with_labels_of_zero_is_the_identity():
    x = torch.rand(2, 1, 9, 12) * 2 - 1
    torch.testing.assert_close(warp(x, torch.zeros(2, LABELS)), x, atol=1e-5, rtol=0)


# Of a data set


def test_augmented_is_a_function_of_seed_and_step_row_by_row():
    data = make("digits", augment=0.5, batch_size=40)
    x, _ = data.batch(0, 3)
    whole, labels = data.augmented(x, 0, 3)
    assert labels.shape == (40, LABELS) and whole.shape == x.shape
    assert torch.equal(make("digits", augment=0.5, batch_size=40).augmented(x, 0, 3)[0], whole)
    for parts in ((0, 7, 40), (0, 1, 2, 25, 40)):
        for rows in (slice(a, b) for a, b in pairwise(parts)):
            part, told = data.augmented(data.batch(0, 3, rows)[0], 0, 3, rows)
            assert torch.equal(told, labels[rows]) and torch.equal(part, whole[rows])
    assert not torch.equal(data.augmented(x, 0, 4)[1], labels)
    assert not torch.equal(data.augmented(x, 1, 3)[1], labels)
    torch.testing.assert_close(whole, transform(x, labels))
    still = (labels == 0).all(1)
    assert still.any() and not still.all()
    assert torch.equal(whole[still], x[still])


def test_without_augmentation_nothing_happens():
    data = make("digits")
    x, _ = data.batch(0, 0)
    same, labels = data.augmented(x, 0, 0)
    assert same is x and labels is None
    toy = make("moons")
    x, _ = toy.batch(0, 0)
    assert toy.augmented(x, 0, 0)[0] is x and toy.augmented(x, 0, 0)[1] is None


def test_flips_are_told_of_when_there_is_augmentation():
    """flip=true would mirror images of which the network is told that they are untouched."""
    plain, told = numbered(flip=False), numbered(flip=True, augment=0.1)
    x, _ = told.batch(0, 0)
    assert torch.equal(x, plain.batch(0, 0)[0])
    many = numbered(augment=1e-9, batch_size=1000)
    x, _ = many.batch(0, 0)
    changed, labels = many.augmented(x, 0, 0)
    mirrored = labels[:, FLIP_X] == 1
    assert torch.equal(changed[mirrored], x[mirrored].flip(-1))
    assert torch.equal(changed[~mirrored], x[~mirrored])


@pytest.mark.parametrize("augment", [-0.1, 1.5, True, "0.1", math.nan])
def test_what_is_no_probability_is_refused(augment):
    with pytest.raises(FmdiffError, match=r"data\.augment=.* from 0 to 1"):
        make("digits", augment=augment)


# Of the networks


@every_network
def test_no_labels_are_labels_of_zero(name, keys):
    net = network(name, (1, 8, 8), 3, perturbed=True, **keys, augment=9)
    x = inputs((1, 8, 8), 3)
    with torch.no_grad():
        zero, none = net(*x, augment=torch.zeros(3, 9)), net(*x)
        other = net(*x, augment=torch.ones(3, 9))
    assert torch.equal(zero, none)
    assert (other - none).abs().flatten(1).amax(1).min() > 1e-3


@every_network
def test_the_layer_adds_w_a_and_no_bias(name, keys):
    """The other weights are those of the network without it, and it is 9 numbers wide."""
    net = network(name, (1, 8, 8), 3, perturbed=True, **keys, augment=9)
    without = network(name, (1, 8, 8), 3, **{**keys, "augment": 0})
    own = set(net.state_dict()) - set(without.state_dict())
    assert own == {"augment.weight" if name == "ddpmpp" else "conditioning.augment.weight"}
    weights = net.state_dict()
    layer = weights[own.pop()]
    assert layer.shape[1] == 9
    without.load_state_dict({k: v for k, v in weights.items() if k in without.state_dict()})
    x, t, y = inputs((1, 8, 8), 3)
    a = torch.randn(3, 9)
    told = net(x, t, y, augment=a)
    # the label's table is added in the same place: row y of a table moved by W a
    label = without.label if name == "ddpmpp" else without.conditioning.label
    if name != "jit_mnist":  # there the label is a token, too
        for i in range(3):
            with torch.no_grad():
                label.weight[0] = (
                    weights["label.weight" if name == "ddpmpp" else "conditioning.label.weight"][
                        y[i]
                    ]
                    + layer @ a[i]
                )
            found = without(x[i : i + 1], t[i : i + 1], torch.zeros(1, dtype=torch.int64))
            torch.testing.assert_close(found, told[i : i + 1], rtol=1e-4, atol=1e-5)


@every_network
def test_gradient_reaches_the_layer(name, keys):
    net = network(name, (1, 8, 8), 3, perturbed=True, **keys, augment=9)
    layer = net.augment if name == "ddpmpp" else net.conditioning.augment
    net(*inputs((1, 8, 8), 3)).square().sum().backward()
    assert (layer.weight.grad == 0).all()  # there, for processes that average gradients
    net(*inputs((1, 8, 8), 3), augment=torch.ones(3, 9)).square().sum().backward()
    assert layer.weight.grad.isfinite().all() and layer.weight.grad.abs().amax(0).min() > 0


@every_network
def test_a_checkpoint_that_knows_no_augmentation_still_builds(name, keys):
    from omegaconf import OmegaConf
    from test_models import CONFIGS

    from fmdiff.build import build

    spec = {**OmegaConf.to_container(OmegaConf.load(CONFIGS / f"{name}.yaml")), **keys}
    del spec["augment"]
    net = build(spec, shape=(1, 8, 8), classes=3)
    assert not any("augment" in key for key in net.state_dict())
    assert net(*inputs((1, 8, 8), 3)).shape == (3, 1, 8, 8)


def test_a_shift_is_an_eighth():
    assert SHIFT == 0.125 and pytest.approx(2**0.2) == math.exp(STEP)
