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
from fmdiff.exact import exact
from fmdiff.path import CondOT

CONFIGS = Path(__file__).parents[2] / "configs" / "data"
N = 50_000


def make(name, **keys):
    spec = OmegaConf.to_container(OmegaConf.load(CONFIGS / f"{name}.yaml"))
    return build(spec | keys)


IMAGES = ["digits", "mnist", "fashion_mnist", "cifar10", "folder", "latent"]
# see test_mixture_conditions.py, test_array.py, test_derived.py and test_paired.py
CONDITIONED = ["gmm_cond", "array", "low_resolution", "masked", "paired_folders"]
TOYS = sorted(
    path.stem for path in CONFIGS.glob("*.yaml") if path.stem not in (*IMAGES, *CONDITIONED)
)
LABELS = {"8gaussians": 8, "gmm4": 4, "two_modes": 2, "moons": 2, "rings": 4, "spirals": 2}
LABELS |= {"ar1": 1, "two_tone": 1}
LABELS |= {"checkerboard": 8, "pinwheel": 5, "swissroll": 1, "gmm": 2, "embedded": 1}
MIXTURES = ["8gaussians", "gmm", "gmm4", "two_modes"]


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


def spread(toy, x):
    """The standard deviation of draws about the mean of each coordinate, or of all alike."""
    return (x - (x.mean() if toy.centre is None else x.mean(0))).square().mean().sqrt().item()


@pytest.mark.parametrize("name", TOYS)
def test_std_of_a_toy(name):
    toy, x, _ = points(name, 10_000 if name == "embedded" else N)
    assert toy.std == pytest.approx(spread(toy, x), rel=0.01)


@pytest.mark.parametrize("name", TOYS)
def test_labels_of_a_toy(name):
    assert make(name).classes == 0
    if LABELS[name] == 1:
        with pytest.raises(FmdiffError, match=r"data\.conditional"):
            make(name, conditional=True)
        return
    toy, _, y = points(name)
    assert toy.classes == toy.labels == LABELS[name] and y.dtype == torch.int64
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
    # `_target_` and up to seven keys, of files more
    most = {"folder": 12, "paired_folders": 14, "array": 21}.get(path.stem, 8)
    assert len(path.read_text().splitlines()) <= most
    needed = {"folder": {"root": "images"}, "latent": {"autoencoder": "run"}}
    needed["array"] = {"file": "table.csv"}
    needed["paired_folders"] = {"root": "images", "given_root": "others"}
    assert make(path.stem, **needed.get(path.stem, {})).batch_size > 0


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


MATRIX = [[0.5, 0.2], [0.2, 0.3]]
OTHER = [[0.3, -0.1], [-0.1, 0.9]]
GMMS = [  # keys, weights, covariances
    ({}, [0.5, 0.5], [[[0.25, 0], [0, 0.25]]] * 2),
    ({"weights": [0.3, 0.7]}, [0.3, 0.7], [[[0.25, 0], [0, 0.25]]] * 2),
    ({"weights": [3, 7], "cov": 1}, [0.3, 0.7], [[[1, 0], [0, 1]]] * 2),
    # as many numbers as components, and as dimensions: they are variances, not a diagonal
    ({"cov": [0.1, 0.4]}, [0.5, 0.5], [[[0.1, 0], [0, 0.1]], [[0.4, 0], [0, 0.4]]]),
    ({"cov": MATRIX}, [0.5, 0.5], [MATRIX] * 2),
    ({"weights": [1, 4], "cov": [MATRIX, OTHER]}, [0.2, 0.8], [MATRIX, OTHER]),
    ({"means": [[-5], [5]]}, [0.5, 0.5], [[[0.25]]] * 2),
    ({"means": [[-5], [0], [5]], "cov": [[0.09]]}, [1 / 3] * 3, [[[0.09]]] * 3),
    ({"means": [[1, 2, 3]], "cov": [0.5]}, [1], torch.eye(3)[None] / 2),
]


@pytest.mark.parametrize(("keys", "weights", "covs"), GMMS)
def test_gmm_is_the_mixture_asked_for(keys, weights, covs):
    toy = make("gmm", conditional=len(weights) > 1, **keys)
    w, m, c = toy.mixture()
    means = torch.tensor(toy.means).double()
    assert w.tolist() == pytest.approx(weights) and torch.equal(m, means)
    torch.testing.assert_close(c, torch.as_tensor(covs, dtype=torch.float64))
    assert toy.shape == (m.shape[1],) and toy.labels == len(m)
    x, y = toy.sample(0, N, seed=4)
    x = x.double()
    y = torch.zeros(N, dtype=torch.int64) if y is None else y
    assert scipy.stats.binomtest(int((y == 0).sum()), N, weights[0]).pvalue > 1e-4
    for k in range(len(m)):
        part = x[y == k]
        n, variance = len(part), c[k].diagonal()
        assert ((part.mean(0) - m[k]).abs() < 4 * (variance / n).sqrt()).all()
        # a covariance C_ij of n draws has the variance (C_ii C_jj + C_ij^2) / n
        error = ((variance[:, None] * variance + c[k] ** 2) / n).sqrt()
        assert ((part.T.cov().reshape(c[k].shape) - c[k]).abs() < 4 * error).all()
    mean = w @ m  # of the whole: E x, and E x x^T - E x E x^T
    cov = torch.einsum("k,kij->ij", w, c + m[:, :, None] * m[:, None]) - mean[:, None] * mean
    error = (cov.diagonal() / N).sqrt()
    assert ((x.mean(0) - mean).abs() < 4 * error).all()
    assert toy.std == pytest.approx(spread(toy, x), rel=0.01)
    batch = toy.batch(0, 0)[0]
    assert batch.shape == (256, *toy.shape) and batch.dtype == torch.float32


@pytest.mark.parametrize("keys", [{"cov": [0.1, 0.4]}, {"cov": [MATRIX, OTHER]}])
def test_support_of_a_gmm_is_four_mahalanobis_distances(keys):
    toy = make("gmm", **keys)
    _, means, covs = toy.mixture()
    direction = torch.tensor([0.6, -0.8]).double()
    for k, outwards in ((0, -1), (1, 1)):  # away from the other component
        step = outwards * direction * torch.tensor([1, 0.1]).double()
        step = step / (step @ torch.linalg.solve(covs[k], step)).sqrt()
        at = torch.stack([means[k] + d * step for d in (3.99, 4.01)])
        assert toy.off_support(at).tolist() == [False, True]


def test_gmm_in_many_dimensions():
    d = 512
    means = torch.randn(3, d, generator=torch.Generator().manual_seed(0))
    half = torch.randn(d, d, generator=torch.Generator().manual_seed(1)).double()
    cov = half @ half.T / d + torch.eye(d)
    toy = make("gmm", means=means.tolist(), cov=cov.tolist(), weights=[1, 1, 8])
    assert toy.batch(0, 0)[0].shape == (256, d) and not toy.off_support(means).any()
    x, _ = toy.sample(0, 4000, seed=0)
    along = torch.linalg.eigh(cov)[1][:, [0, -1]]  # the flattest and the longest axis
    w, m, c = toy.mixture()
    values = x.double() @ along
    mean = w @ m @ along
    second = w @ ((m @ along) ** 2 + (along * (c[0] @ along)).sum(0))
    error = (second - mean**2).sqrt() / math.sqrt(len(x))
    assert ((values.mean(0) - mean).abs() < 4 * error).all()
    error = values.square().std(0) / math.sqrt(len(x))
    assert ((values.square().mean(0) - second).abs() < 4 * error).all()


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("means", [[1], [1, 2]]),
        ("means", [1, 2]),
        ("means", []),
        ("means", [[]]),
        ("means", [["a", 1]]),
        ("means", 3),
        ("means", [[1, math.inf]]),
        ("weights", [1]),
        ("weights", [1, 0]),
        ("weights", [2, -1]),
        ("weights", 1),
        ("cov", 0),
        ("cov", True),
        ("cov", [1, 2, 3]),
        ("cov", [1, 0]),
        ("cov", [[1, 0.5], [0.4, 1]]),
        ("cov", [[1, 2], [2, 1]]),
        ("cov", [[1, 1], [1, 1]]),
        ("cov", [[[1, 0], [0, 1]], [[1, 0], [0, -1]]]),
        ("cov", [[1, 0], [0]]),
        ("cov", "a"),
        ("cov", None),
    ],
)
def test_what_describes_no_mixture_is_refused(key, value):
    with pytest.raises(FmdiffError, match=rf"data\.{key}=.* must be") as refusal:
        make("gmm", **{key: value})
    assert "\n" not in str(refusal.value)


@pytest.mark.parametrize("dimension", [2, 3, 512])
@pytest.mark.parametrize("name", ["swissroll", "gmm4"])
def test_embedded_is_a_plane_in_many_dimensions(dimension, name):
    inner = make(name, conditional=LABELS[name] > 1)
    data = make("embedded", of=inner, ambient_dim=dimension, conditional=inner.conditional)
    gram = data.basis.T @ data.basis
    torch.testing.assert_close(gram, torch.eye(2).double(), rtol=0, atol=1e-14)
    assert data.shape == (dimension,) and data.classes == inner.classes
    for draw in (lambda d: d.batch(1, 7), lambda d: d.held_out(100), lambda d: d.sample(0, 99, 2)):
        (x, y), (point, label) = draw(data), draw(inner)
        assert x.shape == (len(point), dimension) and x.dtype == torch.float32
        torch.testing.assert_close(data.project(x), point, rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(x.norm(dim=1), point.norm(dim=1))
        assert (y is None) == (label is None) and (y is None or torch.equal(y, label))
        assert data.off_plane(x) < 1e-12
    assert torch.equal(make("embedded", ambient_dim=dimension).basis, data.basis)


def test_energy_outside_the_plane():
    data = make("embedded", ambient_dim=100)
    eps = torch.randn(2000, 100, generator=torch.Generator().manual_seed(0))
    # of white noise a Beta(49, 1) share is outside: 0.98, here the mean of 2,000
    assert data.off_plane(eps) == pytest.approx(0.98, abs=0.002)
    _, null = torch.linalg.qr(data.basis, mode="complete")[0].split([2, 98], dim=1)
    x = 3 * data.basis[:, :1].T + 4 * null[:, :1].T
    assert data.off_plane(x) == pytest.approx(16 / 25, abs=1e-12)


def test_embedded_takes_any_points_in_the_plane_by_name():
    of = {"_target_": "fmdiff.build.named", "group": "data", "name": "moons", "noise": 0.2}
    data = make("embedded", of=of, conditional=True, batch_size=8)
    assert type(data.plane).__name__ == "Moons" and data.plane.noise == 0.2 and data.classes == 2
    assert data.plane.batch_size == 8
    for wrong in (make("two_modes"), make("digits"), "moons"):
        with pytest.raises(FmdiffError, match=r"data\.of=.* in the plane"):
            make("embedded", of=wrong)
    with pytest.raises(FmdiffError, match=r"data\.ambient_dim=1 must be an integer >= 2"):
        make("embedded", ambient_dim=1)


# --- only some labels ----------------------------------------------------------------------------


LABELLED = sorted(name for name in TOYS if LABELS[name] > 1)


@pytest.mark.parametrize("name", LABELLED)
def test_only_keeps_some_labels_of_a_toy(name):
    kept = [1] if LABELS[name] == 2 else [LABELS[name] - 1, 1]
    (whole, x, y), part = points(name, 20_000), make(name, conditional=True, only=kept)
    assert part.classes == LABELS[name]
    drawn = [part.batch(0, 0), part.held_out(1000), part.sample(0, 20_000, 3), part.examples(1000)]
    for _, label in drawn:
        assert set(label.tolist()) == set(kept)
    few, label = drawn[2]
    if len(kept) == 2:
        assert scipy.stats.binomtest(int((label == 1).sum()), 20_000, 0.5).pvalue > 1e-4
    for k in kept:  # a label means what it meant
        means = [
            (z[w == k].double().mean(0), z[w == k].double()) for z, w in ((x, y), (few, label))
        ]
        error = sum(z.var(0) / len(z) for _, z in means).sqrt()
        assert ((means[0][0] - means[1][0]).abs() < 5 * error).all()
    assert part.std == pytest.approx(spread(part, few), rel=0.02)
    if name != "pinwheel":  # it has no off_support
        assert part.off_support(few).double().mean() < 2e-3
        dropped = x[~torch.isin(y, torch.tensor(kept))]
        assert part.off_support(dropped).double().mean() > 0.9
        assert whole.off_support(dropped).double().mean() < 2e-3


def test_only_keeps_components_with_their_weights_and_labels():
    means = [[-4], [0], [4]]
    toy = make("gmm", means=means, weights=[1, 2, 5], only=[2, 0], conditional=True)
    weights, kept_means, covs = toy.mixture()  # a component's row is its label
    assert weights.tolist() == pytest.approx([1 / 6, 0, 5 / 6])
    assert kept_means.tolist() == means and covs.shape == (3, 1, 1)
    _, y = toy.sample(0, N, 0)
    assert scipy.stats.binomtest(int((y == 2).sum()), N, 5 / 6).pvalue > 1e-4
    assert not (y == 1).any()
    x = torch.linspace(-6, 6, 50)[:, None].double()
    for only, reference in (([2, 0], [-4, 4]), ([1], [0])):
        part = make("gmm", means=means, weights=[1, 2, 5], only=only)
        field = exact(part, CondOT())
        w = part.mixture()[0][sorted(only)]
        density = sum(
            p * torch.exp(-((x[:, 0] - m) ** 2) / 0.5) / math.sqrt(0.5 * math.pi)
            for p, m in zip(w, reference, strict=True)
        )
        torch.testing.assert_close(field.log_prob(x, torch.ones(()).double()), density.log())
        assert field(x, torch.tensor(0.5).double()).isfinite().all()


def test_only_keeps_some_images():
    whole, eights = make("digits"), make("digits", only=[8, 3], batch_size=50)
    assert eights.classes == 10
    for train, split in ((True, eights.train), (False, eights.test)):
        images, labels = whole.read(train)
        chosen = (labels == 8) | (labels == 3)
        assert torch.equal(split[0], images[chosen]) and torch.equal(split[1], labels[chosen])
    n = len(eights.test[1])
    for _, y in (eights.batch(0, 3), eights.held_out(n), eights.sample(0, n, 0)):
        assert set(y.tolist()) == {3, 8}
    assert eights.examples(10**6)[0].shape == (len(eights.train[1]), 1, 8, 8)
    x = from_uint8(eights.train[0]).double()
    assert eights.std == pytest.approx(x.std(correction=0).item(), rel=1e-6)
    with pytest.raises(FmdiffError, match=f"has {n}"):
        eights.sample(0, n + 1, 0)
    assert make("digits", only=[8], conditional=False).batch(0, 0)[1] is None


@pytest.mark.parametrize("only", [[], [10], [-1], [True], [1.0], ["8"], 8, "8", [[8]]])
def test_labels_that_do_not_exist_are_refused(only):
    with pytest.raises(FmdiffError, match=r"data\.only=.* from 0 to 9"):
        make("digits", only=only)


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
    with pytest.raises(FmdiffError, match=r"n=11 .* has 10"):
        data.sample(5, 11, seed=0)
    assert numbered(conditional=False).batch(0, 0)[1] is None


def test_held_out_images_are_a_random_choice_and_always_the_same():
    """The first images of a split may all be of one class."""
    few, whole = (numbered().held_out(n)[1].tolist() for n in (4, 10))
    assert few == whole[:4] != [0, 1, 2, 3] and sorted(whole) == list(range(10))


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
