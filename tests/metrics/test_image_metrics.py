import math
import warnings

import numpy as np
import pytest
import torch
from torch import nn

from fmdiff.errors import FmdiffError
from fmdiff.metrics.frechet import Moments, frechet_distance, frechet_of_features
from fmdiff.metrics.kernel import kernel_distance, mmd2
from fmdiff.metrics.manifold import memorisation, nearest, precision_recall, radii
from fmdiff.metrics.score import inception_score


def normal(n, d, seed, mean=0.0, std=1.0):
    return mean + std * torch.randn(n, d, generator=torch.Generator().manual_seed(seed))


class Net(nn.Module):
    """uint8 images (B, 1, 8, 8) to features (B, 24), by random weights."""

    num_features = 24

    def __init__(self):
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(0)
            self.layers = nn.Sequential(
                nn.Conv2d(1, 16, 3, stride=2),
                nn.SiLU(),
                nn.Flatten(),
                nn.Linear(144, 64),
                nn.SiLU(),
                nn.Linear(64, 24),
            )

    @torch.no_grad()
    def forward(self, pixels):
        return 50 * self.layers(pixels / 127.5 - 1)


def images(n, seed, width=40):
    """Bars of random place and brightness."""
    drawn = torch.Generator().manual_seed(seed)
    pixels = torch.randint(0, width, (n, 1, 8, 8), generator=drawn)
    column = torch.randint(0, 8, (n, 1, 1, 1), generator=drawn)
    return torch.where(torch.arange(8) == column, pixels + 120, pixels).to(torch.uint8)


@pytest.fixture(scope="module")
def net():
    return Net()


@pytest.fixture(scope="module")
def pair(net):
    return net(images(1500, 0)), net(images(1300, 1, width=45))


# agreement with torch-fidelity and torchmetrics


def test_frechet_against_torch_fidelity(pair):
    from torch_fidelity.metric_fid import fid_features_to_statistics, fid_statistics_to_metric

    theirs = fid_statistics_to_metric(
        *(fid_features_to_statistics(f.double()) for f in pair), False
    )
    assert frechet_of_features(*pair) == pytest.approx(
        theirs["frechet_inception_distance"], rel=1e-9
    )


def test_frechet_against_torchmetrics(net):
    from torchmetrics.image.fid import FrechetInceptionDistance

    metric = FrechetInceptionDistance(feature=net)
    ours = Moments(24), Moments(24)
    for real, seed in ((True, 0), (False, 1)):
        for batch in images(500, seed, width=40 + 30 * seed).split(64):
            metric.update(batch, real=real)
            ours[not real].add(net(batch))
    assert frechet_distance(*ours) == pytest.approx(metric.compute().item(), rel=1e-5)


@pytest.mark.parametrize("size", [1000, 150])
def test_kernel_against_torch_fidelity(pair, size):
    from torch_fidelity.metric_kid import kid_features_to_metric

    options = {"kid_subsets": 12, "kid_subset_size": size, "rng_seed": 7, "verbose": False}
    theirs = kid_features_to_metric(*(f.double() for f in pair), **options)
    ours = kernel_distance(*pair, subsets=12, size=size, seed=7)
    assert ours.mean == pytest.approx(theirs["kernel_inception_distance_mean"], rel=1e-9)
    assert ours.std == pytest.approx(theirs["kernel_inception_distance_std"], rel=1e-6)


def test_defaults_are_those_of_torch_fidelity():
    from inspect import signature

    from torch_fidelity.defaults import DEFAULTS

    kid, score = signature(kernel_distance).parameters, signature(inception_score).parameters
    assert kid["subsets"].default == DEFAULTS["kid_subsets"]
    assert kid["size"].default == DEFAULTS["kid_subset_size"]
    assert kid["seed"].default == score["seed"].default == DEFAULTS["rng_seed"]
    assert score["splits"].default == DEFAULTS["isc_splits"]
    assert DEFAULTS["samples_shuffle"]
    assert signature(precision_recall).parameters["k"].default == DEFAULTS["prc_neighborhood"]


@pytest.mark.parametrize("seed", [2020, None])
@pytest.mark.parametrize("n", [1000, 997])
def test_score_against_torch_fidelity(seed, n):
    from torch_fidelity.metric_isc import isc_features_to_metric

    logits = normal(n, 10, 0, std=4)
    theirs = isc_features_to_metric(logits, 10, shuffle=seed is not None)
    ours = inception_score(logits, seed=seed)
    assert ours.mean == pytest.approx(theirs["inception_score_mean"], rel=1e-12)
    assert ours.std == pytest.approx(theirs["inception_score_std"], rel=1e-9)


@pytest.mark.parametrize("rows", [10_000, 100])
@pytest.mark.parametrize("k", [1, 3])
def test_precision_and_recall_against_torch_fidelity(pair, k, rows, monkeypatch):
    """The same counts; in their float32 a few images at the edge of a ball may differ."""
    from torch_fidelity.metric_prc import prc_features_to_metric

    monkeypatch.setattr("fmdiff.metrics.manifold.ROWS", rows)
    options = {"prc_neighborhood": k, "prc_batch_size": 10_000, "save_cpu_ram": False}
    for dtype, off in ((torch.float64, 0), (torch.float32, 2)):
        theirs = prc_features_to_metric(*(f.to(dtype) for f in pair), **options, verbose=False)
        ours = precision_recall(*pair, k)
        assert 0.1 < ours.recall < ours.precision < 1
        assert ours.precision == pytest.approx(theirs["precision"], abs=(off + 0.1) / 1500)
        assert ours.recall == pytest.approx(theirs["recall"], abs=(off + 0.1) / 1300)


@pytest.mark.parametrize(("size", "processes"), [(7, 1), (64, 1), (64, 2), (7, 4)])
def test_batches_and_processes_do_not_matter(net, size, processes):
    """Every metric, of images seen in parts of consecutive images each in batches of `size`."""
    pixels, real = images(330, 0), net(images(300, 1, width=70))
    head = normal(24, 10, 2)

    def all_metrics(features, seen):
        kernel, score = kernel_distance(features, real, 5, 200), inception_score(features @ head)
        close = memorisation(features, real[:200], real[200:])
        return [
            frechet_distance(seen, Moments(24).add(real)),
            kernel.mean,
            score.mean,
            *precision_recall(features, real)[:2],
            close.ratio,
            close.share,
        ]

    whole = net(pixels)
    parts = pixels.tensor_split(processes)
    features = [torch.cat([net(batch) for batch in part.split(size)]) for part in parts]
    seen = Moments(24)
    for part in features:
        mine = Moments(24)
        for batch in part.split(size):
            mine.add(batch)
        seen.merge(mine)
    expected = all_metrics(whole, Moments(24).add(whole))
    assert all_metrics(torch.cat(features), seen) == pytest.approx(expected, rel=1e-6)


# the kernel distance


def test_kernel_by_its_definition():
    """Sums over pairs, one at a time."""
    x, y = (normal(n, 3, n).double() for n in (5, 4))

    def k(a, b):
        return (float(a @ b) / 3 + 1) ** 3

    within = [
        np.mean([k(a, b) for i, a in enumerate(s) for j, b in enumerate(s) if i != j])
        for s in (x, y)
    ]
    exact = sum(within) - 2 * np.mean([k(a, b) for a in x for b in y])
    assert mmd2(x, y) == pytest.approx(exact, rel=1e-12)


def test_kernel_is_unbiased():
    """On the line k(x, y) = 1 + 3 xy + 3 x^2 y^2 + x^3 y^3, so MMD^2 = sum c_j (moment gaps)^2.

    N(0, 1) against N(1, 1): moments 0, 1, 0 and 1, 2, 4: 3 + 3 + 16 = 22.
    """
    values = [
        mmd2(normal(20, 1, 2 * i).double(), normal(20, 1, 2 * i + 1, mean=1).double())
        for i in range(4000)
    ]
    error = np.std(values) / math.sqrt(len(values))
    assert error < 0.5
    assert abs(np.mean(values) - 22) < 4 * error


@pytest.mark.slow
@pytest.mark.parametrize(("mean", "much"), [(0.5, 1.2), (0, 2.6)])
@pytest.mark.parametrize("size", [120, 60])
def test_the_error_of_the_kernel_distance_is_that_of_fresh_samples(mean, much, size):
    """Std of 200 values of fresh sets; for equal laws the error may be too large, not small."""
    found = [
        kernel_distance(normal(120, 3, 2 * i), normal(150, 3, 2 * i + 1, mean), 20, size)
        for i in range(200)
    ]
    true = np.std([f.mean for f in found])
    said = math.sqrt(np.mean([f.error**2 for f in found]))
    assert 0.8 < said / true < much


def test_small_sets_give_small_subsets():
    a, b = normal(60, 4, 0), normal(40, 4, 1)
    found = kernel_distance(a, b, subsets=3)
    assert (found.subsets, found.size) == (3, 40)
    whole = kernel_distance(a[:40], b)
    assert (whole.subsets, whole.size, whole.std) == (1, 40, 0)
    assert whole.mean == pytest.approx(mmd2(a[:40].double(), b.double()))
    with pytest.raises(FmdiffError, match="n=1: the kernel distance needs n to be at least 2"):
        kernel_distance(a[:1], b)


def test_the_seed_chooses_the_subsets():
    a, b = normal(60, 4, 0), normal(60, 4, 1)
    assert kernel_distance(a, b, 5, 20) == kernel_distance(a, b, 5, 20)
    assert kernel_distance(a, b, 5, 20) != kernel_distance(a, b, 5, 20, seed=1)


# the score


def test_score_of_certain_and_of_blind_classifiers():
    """K for certain answers spread evenly over K classes, 1 for answers that never change."""
    answers = torch.arange(1000) % 8
    certain = torch.where(answers[:, None] == torch.arange(8), 0.0, -torch.inf)
    assert inception_score(certain, seed=None).mean == pytest.approx(8, rel=1e-3)
    assert inception_score(normal(1, 8, 0).expand(1000, 8)) == pytest.approx((1, 0, 10), abs=1e-12)


def test_score_of_two_answers():
    """p = (q, 1 - q) or its mirror, half each: IS = exp(log 2 - H(q))."""
    q = 0.9
    p = torch.tensor([[q, 1 - q], [1 - q, q]]).double().repeat(50, 1)
    entropy = -(q * math.log(q) + (1 - q) * math.log(1 - q))
    score = inception_score(p.log(), splits=5, seed=None)
    assert score.mean == pytest.approx(math.exp(math.log(2) - entropy))


def test_more_splits_than_images_are_refused():
    with pytest.raises(FmdiffError, match="n=9: an Inception Score in 10 splits needs n >= 10"):
        inception_score(normal(9, 4, 0))


# neighbours


def test_precision_and_recall_of_known_sets():
    """Squares of a grid: a ball reaches to the side neighbours of its centre and no farther."""
    grid = torch.cartesian_prod(torch.arange(20.0), torch.arange(20.0))
    half = grid[grid[:, 0] < 10]
    # samples on half of the grid: all of them real, the real ones beside the half are reached
    found = precision_recall(half, grid, k=2)
    assert found.precision == 1
    assert found.recall == 11 / 20
    apart = precision_recall(grid + 100, grid)
    assert apart.precision == apart.recall == 0
    assert precision_recall(grid, grid)[:2] == (1, 1)


def test_too_few_images_for_the_neighbours():
    with pytest.raises(FmdiffError, match="at least 4 generated images"):
        precision_recall(normal(3, 2, 0), normal(9, 2, 1))
    with pytest.raises(FmdiffError, match="at least 4 real images"):
        precision_recall(normal(9, 2, 0), normal(3, 2, 1))


@pytest.mark.parametrize("rows", [1024, 10])
def test_nearest_against_a_tree(rows, monkeypatch):
    from scipy.spatial import cKDTree

    monkeypatch.setattr("fmdiff.metrics.manifold.ROWS", rows)
    queries, keys = normal(95, 3, 0).double(), normal(50, 3, 1).double()
    distance, index = nearest(queries, keys)
    exact, place = cKDTree(keys).query(queries)
    np.testing.assert_allclose(distance, exact, rtol=1e-6)
    np.testing.assert_array_equal(index, place)
    # of the keys themselves: the second of the tree
    exact, place = cKDTree(keys).query(keys, k=[2])
    distance, index = nearest(keys, keys, skip=torch.arange(50))
    np.testing.assert_allclose(distance, exact[:, 0], rtol=1e-6)
    np.testing.assert_array_equal(index, place[:, 0])
    np.testing.assert_allclose(radii(keys, 1), exact[:, 0], rtol=1e-6)


def test_fresh_samples_are_not_called_copies():
    """The share is `level` and the authenticities agree, up to their standard errors."""
    found = [
        memorisation(
            normal(400, 5, 3 * i), normal(500, 5, 3 * i + 1), normal(400, 5, 3 * i + 2), 0.1
        )
        for i in range(120)
    ]
    shares = np.array([f.share for f in found])
    error = shares.std() / math.sqrt(120)
    assert abs(shares.mean() - 0.1) < 4 * error
    assert np.mean([f.share_error for f in found]) == pytest.approx(shares.std(), rel=0.2)
    assert np.mean([f.ratio for f in found]) == pytest.approx(1, abs=0.02)
    gaps = np.array([f.authenticity - f.held_out_authenticity for f in found])
    assert abs(gaps.mean()) < 4 * gaps.std() / math.sqrt(120)


def test_copies_are_found():
    """A third of the samples are training points moved by a hundredth of their spacing."""
    train, held_out = normal(500, 5, 0), normal(300, 5, 1)
    copies = train[100:200] + normal(100, 5, 2, std=0.01)
    found = memorisation(torch.cat([copies, normal(200, 5, 3)]), train, held_out)
    assert torch.equal(found.neighbour[:100], torch.arange(100, 200))
    assert found.distance[:100].max() < found.threshold
    assert 1 / 3 <= found.share < 1 / 3 + 0.03
    assert found.share > 0.01 + 10 * found.share_error
    assert found.authenticity == pytest.approx(2 / 3 * found.held_out_authenticity, abs=0.06)
    assert found.ratio < 1
    exact = memorisation(train[:50], train, held_out)
    assert exact.share == 1
    assert exact.authenticity == 0
    # far from everything is no copy
    assert memorisation(held_out + 9, train, held_out).share == 0


def test_authenticity_by_its_definition():
    train, held_out, samples = normal(40, 2, 0), normal(30, 2, 1), normal(50, 2, 2)
    between = torch.cdist(train.double(), train.double()).fill_diagonal_(torch.inf)
    distance = torch.cdist(samples.double(), train.double())
    exact = np.mean([row.min() > between[row.argmin()].min() for row in distance])
    assert memorisation(samples, train, held_out).authenticity == pytest.approx(exact)


def test_no_images_have_no_neighbours():
    some, none = normal(5, 2, 0), normal(0, 2, 0)
    for sets in ((none, some, some), (some, some[:1], some), (some, some, none)):
        with pytest.raises(FmdiffError, match="nearest neighbours need"):
            memorisation(*sets)


def test_nothing_warns(pair):
    with warnings.catch_warnings(record=True) as raised:
        warnings.simplefilter("always")
        kernel_distance(*pair, 2, 100)
        precision_recall(*pair)
        inception_score(pair[0])
        memorisation(pair[0], pair[1][:700], pair[1][700:])
    assert not raised
