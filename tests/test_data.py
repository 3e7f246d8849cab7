import math
from dataclasses import dataclass
from pathlib import Path

import pytest
import scipy.stats
import torch
from omegaconf import OmegaConf

from fmdiff.build import build
from fmdiff.data.images import Images, from_uint8, to_uint8
from fmdiff.errors import FmdiffError

CONFIGS = Path(__file__).parents[1] / "configs" / "data"
N = 50_000


def make(name, **keys):
    spec = OmegaConf.to_container(OmegaConf.load(CONFIGS / f"{name}.yaml"))
    return build(spec | keys)


IMAGES = ["digits", "mnist", "fashion_mnist", "cifar10"]
TOYS = sorted(path.stem for path in CONFIGS.glob("*.yaml") if path.stem not in IMAGES)
LABELS = {"8gaussians": 8, "gmm4": 4, "two_modes": 2, "moons": 2, "rings": 4, "spirals": 2}
LABELS |= {"checkerboard": 8, "pinwheel": 5, "swissroll": 1}
MIXTURES = ["8gaussians", "gmm4", "two_modes"]


def equal(a, b):
    return all(
        torch.equal(x, y) if x is not None else y is None for x, y in zip(a, b, strict=True)
    )


def points(name, n=N):
    toy = make(name, conditional=LABELS[name] > 1)
    x, y = toy.sample(0, n, seed=3)
    return toy, x.double(), y


# --- laws all data sets share -------------------------------------------------------------------


@pytest.mark.parametrize("name", [*TOYS, "digits"])
def test_a_batch_is_a_function_of_seed_and_step(name):
    data = make(name, batch_size=10)
    whole = x, y = data.batch(1, 7)
    assert x.shape == (10, *data.shape) and x.dtype == torch.float32
    assert (y is None) == (data.classes == 0)
    data.batch(1, 8)
    assert equal(whole, make(name, batch_size=10).batch(1, 7))
    assert not torch.equal(x, data.batch(1, 8)[0])
    assert not torch.equal(x, data.batch(2, 7)[0])
    for rows in (slice(0, 4), slice(4, 10)):
        part = data.batch(1, 7, rows)
        assert equal(part, (x[rows], y if y is None else y[rows]))


@pytest.mark.parametrize("name", [*TOYS, "digits"])
def test_row_i_of_a_sample_depends_on_the_seed_and_i(name):
    data = make(name)
    x, _ = data.sample(0, 200, seed=1)
    assert torch.equal(data.sample(70, 150, seed=1)[0], x[70:150])
    assert not torch.equal(data.sample(0, 200, seed=2)[0], x)
    held_out, _ = data.held_out(200)
    assert torch.equal(data.held_out(100)[0], held_out[:100])
    assert not torch.equal(held_out, x)


@pytest.mark.parametrize("name", TOYS)
def test_std_of_a_toy(name):
    toy, x, _ = points(name)
    assert toy.std == pytest.approx(x.std().item(), rel=0.01)


@pytest.mark.parametrize("name", TOYS)
def test_labels_of_a_toy(name):
    assert make(name).classes == 0
    if LABELS[name] == 1:
        with pytest.raises(FmdiffError, match=r"data\.conditional"):
            make(name, conditional=True)
        return
    toy, _, y = points(name)
    assert toy.classes == LABELS[name] and y.dtype == torch.int64
    counts = y.bincount(minlength=toy.classes)
    assert len(counts) == toy.classes and scipy.stats.chisquare(counts).pvalue > 1e-4


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("batch_size", 0),
        ("batch_size", 2.5),
        ("batch_size", True),
        ("noise", 0),
        ("noise", "a"),
        ("conditional", "yes"),
    ],
)
def test_bad_keys_are_named(key, value):
    with pytest.raises(FmdiffError, match=rf"data\.{key}={value} must be"):
        make("moons", **{key: value})


@pytest.mark.parametrize("path", sorted(CONFIGS.glob("*.yaml")), ids=lambda path: path.stem)
def test_configs_are_short_and_build(path):
    assert len(path.read_text().splitlines()) <= 6
    assert make(path.stem).batch_size > 0


# --- toys ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", MIXTURES)
def test_draws_have_the_moments_of_their_mixture(name):
    toy, x, y = points(name)
    weights, means, covs = toy.mixture()
    assert weights.dtype == means.dtype == covs.dtype == torch.float64
    assert weights.sum() == pytest.approx(1) and means.shape == (toy.labels, *toy.shape)
    for k in range(toy.labels):
        mode = x[y == k]
        n, variance = len(mode), covs[k].diagonal()
        assert ((mode.mean(0) - means[k]).abs() < 5 * (variance / n).sqrt()).all()
        cov = mode.T.cov().reshape(covs[k].shape)
        # the standard error of a variance is var sqrt(2/n), of a covariance less
        assert ((cov - covs[k]).abs() < 5 * variance.max() * math.sqrt(2 / n)).all()


def test_mixtures_are_the_documented_ones():
    _, means, covs = make("8gaussians").mixture()
    assert torch.allclose(means.norm(dim=1), torch.full((8,), 5.0).double())
    assert torch.allclose(
        (means - means.roll(1, 0)).norm(dim=1), 10 * torch.sin(covs.new_tensor(math.pi / 8))
    )
    assert torch.allclose(covs, 0.1 * torch.eye(2).double().expand(8, 2, 2))
    _, means, covs = make("gmm4").mixture()
    assert {tuple(m) for m in means.tolist()} == {(-2, -2), (-2, 2), (2, -2), (2, 2)}
    assert torch.allclose(covs, 0.16 * torch.eye(2).double().expand(4, 2, 2))
    _, means, covs = make("two_modes").mixture()
    assert means.tolist() == [[-5], [5]] and torch.allclose(covs, torch.tensor(0.09).double())


@pytest.mark.parametrize("name", MIXTURES)
def test_share_of_a_mixture_beyond_four_stds(name):
    toy, x, _ = points(name)
    share = scipy.stats.chi2.sf(16, x.shape[1])
    count = toy.off_support(x).sum().item()
    assert scipy.stats.binomtest(count, N, share).pvalue > 1e-4
    assert toy.off_support(torch.full((1, *toy.shape), 9.0)).all()


def distance_to_the_arcs(x):
    def upper_half_circle(p):
        ends = torch.hypot(p[:, 0].abs() - 1, p[:, 1])
        return torch.where(p[:, 1] >= 0, (p.norm(dim=1) - 1).abs(), ends)

    return torch.minimum(upper_half_circle(x), upper_half_circle(x.new_tensor([1, 0.5]) - x))


def test_moons():
    toy, x, y = points("moons")
    # E x = (1/2, 1/4); E x_i^2 of the first moon is 1/2 + noise^2
    standard_error = x.std(0) / math.sqrt(N)
    assert ((x.mean(0) - x.new_tensor([0.5, 0.25])).abs() < 5 * standard_error).all()
    first, second = x[y == 0], x.new_tensor([1, 0.5]) - x[y == 1]
    for moon in (first, second):
        square = moon.square()
        standard_error = square.std(0) / math.sqrt(len(moon))
        assert ((square.mean(0) - 0.5025).abs() < 5 * standard_error).all()
        away_from_the_ends = moon[moon[:, 1] > 0.3]
        noise = away_from_the_ends.norm(dim=1).std()
        assert abs(noise - 0.05) < 5 * 0.05 / math.sqrt(2 * len(away_from_the_ends))
    box = 4 * torch.rand(5000, 2, generator=torch.Generator().manual_seed(0)) - 1.5
    for sample in (x, box):
        distance = distance_to_the_arcs(sample)
        clear = (distance - 0.2).abs() > 1e-4  # off_support takes the arcs at finitely many points
        assert torch.equal(toy.off_support(sample)[clear], (distance > 0.2)[clear])
    assert toy.off_support(x).double().mean() < 5e-4 and toy.off_support(box).double().mean() > 0.5


def test_checkerboard():
    toy, x, y = points("checkerboard")
    assert not toy.off_support(x).any()
    squares = (x / 2 + 2).floor().long()
    assert len({tuple(s) for s in squares.tolist()}) == 8
    for label in range(8):
        assert len(squares[y == label].unique(dim=0)) == 1
    inside = (x / 2).numpy() % 1
    assert scipy.stats.kstest(inside[:, 0], "uniform").pvalue > 1e-4
    assert scipy.stats.kstest(inside[:, 1], "uniform").pvalue > 1e-4
    board = 8 * torch.rand(20_000, 2, generator=torch.Generator().manual_seed(0)) - 4
    assert scipy.stats.binomtest(toy.off_support(board).sum().item(), 20_000, 0.5).pvalue > 1e-4
    wrong = torch.tensor([[-3.0, -1.0], [5.0, 1.0], [-5.0, -5.0], [1.0, 4.5]])
    assert toy.off_support(wrong).all() and not toy.off_support(torch.tensor([[-3.0, -3.0]])).any()


def test_rings():
    toy, x, y = points("rings")
    for k in range(4):
        radius = x[y == k].norm(dim=1)
        # E |x| = k + noise^2 / (2k) to leading order
        expected = k + 1 + 0.08**2 / (2 * (k + 1))
        assert abs(radius.mean() - expected) < 5 * 0.08 / math.sqrt(len(radius))
        assert radius.std() == pytest.approx(0.08, rel=0.05)
    assert toy.off_support(x).double().mean() < 5e-4
    assert toy.off_support(torch.tensor([[0.0, 1.5], [0.0, 0.0], [4.5, 0.0]])).all()


@pytest.mark.parametrize(("name", "turns"), [("swissroll", 3.5), ("spirals", 3.0)])
def test_spirals_follow_their_equation(name, turns):
    toy, x, y = points(name, 2000)
    assert (
        toy.off_support(x).double().mean()
        < 5e-3
        < toy.off_support(-1.02 * x.flip(1)).double().mean()
    )
    toy = make(name, noise=1e-7, conditional=toy.conditional)
    x, y = toy.sample(0, 2000, seed=0)
    a = turns * x.norm(dim=1)  # radius a / turns at angle a, the second arm turned by pi
    if y is not None:
        a = a + math.pi * y
    unit = torch.stack((a.cos(), a.sin()), 1)
    assert torch.allclose(x, unit * x.norm(dim=1, keepdim=True), atol=1e-5)
    assert 3 < x.norm(dim=1).max() < 4.1


def test_pinwheel():
    _, x, y = points("pinwheel")
    square = x.square().sum(1)  # E |x|^2 = 4 (1 + 0.3^2 + 0.1^2)
    assert abs(square.mean() - 4.4) < 5 * square.std() / math.sqrt(N)
    for k in range(5):  # every arm is the first one, turned
        back = torch.tensor(-2 * math.pi * k / 5)
        turn = torch.stack((back.cos(), -back.sin(), back.sin(), back.cos())).view(2, 2).double()
        arm, first = x[y == k] @ turn.T, x[y == 0]
        error = ((arm.var(0) + first.var(0)) / len(arm)).sqrt()
        assert ((arm.mean(0) - first.mean(0)).abs() < 5 * error).all()


# --- images -------------------------------------------------------------------------------------


@dataclass(kw_only=True, eq=False)
class Numbered(Images):
    """Ten images whose pixels tell their number (the label) and whether they are mirrored."""

    shape = (2, 1, 3)

    def read(self, train):
        number = torch.arange(10, dtype=torch.uint8)
        row = torch.stack((number, number + 100, number + 200), 1)
        return row.view(10, 1, 1, 3).repeat(1, 2, 1, 1), number.long()


def numbered(**keys):
    return Numbered(**{"batch_size": 4, "conditional": True, "flip": False} | keys)


def test_every_image_is_visited_once_per_epoch():
    data = numbered()
    seen = torch.cat([data.batch(0, step)[1] for step in range(10)])
    for epoch in seen.view(4, 10):
        assert sorted(epoch.tolist()) == list(range(10))
    assert not torch.equal(seen[:10], seen[10:20])
    assert sorted(numbered(batch_size=25).batch(0, 0)[1].bincount().tolist()) == [2] * 5 + [3] * 5


def test_flips():
    data = numbered(flip=True, batch_size=1000)
    (x, y), (plain, _) = data.batch(0, 5), numbered(batch_size=1000).batch(0, 5)
    mirrored = x[:, 0, 0, 0] > x[:, 0, 0, 2]
    assert scipy.stats.binomtest(mirrored.sum().item(), 1000, 0.5).pvalue > 1e-4
    assert torch.equal(x[mirrored], plain[mirrored].flip(-1))
    assert torch.equal(x[~mirrored], plain[~mirrored])
    assert torch.equal(to_uint8(plain)[:, 0, 0, 0].long(), y)
    assert torch.equal(data.batch(0, 5, slice(300, 700))[0], x[300:700])
    other = data.batch(0, 6)[0]
    assert not torch.equal(mirrored, other[:, 0, 0, 0] > other[:, 0, 0, 2])


def test_references_are_the_test_split_in_an_order_of_the_seed():
    data = numbered()
    _, y = data.sample(0, 10, seed=0)
    assert sorted(y.tolist()) == list(range(10)) and y.tolist() != list(range(10))
    assert data.held_out(4)[1].tolist() == [0, 1, 2, 3]
    with pytest.raises(FmdiffError, match=r"n=11 .* has 10"):
        data.sample(5, 11, seed=0)
    assert numbered(conditional=False).batch(0, 0)[1] is None


def test_digits():
    data = make("digits")
    (images, labels), (test_images, test_labels) = data.train, data.test
    assert images.shape == (1500, 1, 8, 8) and test_images.shape == (297, 1, 8, 8)
    assert images.dtype == torch.uint8 and labels[:10].tolist() == list(range(10))
    counts = torch.cat((labels, test_labels)).bincount()  # as published by UCI
    assert counts.tolist() == [178, 182, 177, 183, 181, 182, 181, 179, 174, 180]
    first = images[0, 0].double() / 255 * 16  # the first row of sklearn.datasets.load_digits
    assert first[0].round().tolist() == [0, 0, 5, 13, 9, 1, 0, 0]
    assert images.unique().tolist() == [round(level * 255 / 16) for level in range(17)]
    x = from_uint8(images).double()
    assert data.std == pytest.approx(x.std(correction=0).item(), rel=1e-6)
    x, y = data.batch(0, 0)
    assert x.shape == (64, 1, 8, 8) and y.shape == (64,) and data.classes == 10
    assert x.min() == -1 and x.max() == 1


def test_uint8_round_trip():
    pixels = torch.arange(256, dtype=torch.uint8).view(1, 1, 16, 16)
    assert torch.equal(to_uint8(from_uint8(pixels)), pixels.permute(0, 2, 3, 1))
    x = torch.tensor([-7.0, -1.01, -1.0, 0.0, 1.0, 1.01, 3.5, 1e9]).view(1, 1, 2, 4)
    assert to_uint8(x).flatten().tolist() == [0, 0, 0, 128, 255, 255, 255, 255]
    images = torch.rand(2, 3, 4, 5) * 2 - 1
    assert to_uint8(images).shape == (2, 4, 5, 3)
    assert to_uint8(images)[1, 2, 3, 0] == round((images[1, 0, 2, 3].item() + 1) * 127.5)
    assert (from_uint8(to_uint8(images)).permute(0, 3, 1, 2) - images).abs().max() <= 1.001 / 255
