import math
from itertools import pairwise

import mpmath
import numpy as np
import pytest
import torch
from scipy.linalg import sqrtm
from torch import distributed, multiprocessing

from fmdiff.errors import FmdiffError
from fmdiff.metrics.frechet import (
    Gaussian,
    Moments,
    few_samples,
    frechet_distance,
    frechet_interval,
    frechet_of_features,
    gather,
    root_trace,
)


def normal(n, d, seed, mean=0.0, std=1.0):
    drawn = torch.randn(n, d, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    return mean + std * drawn


def covariance(d, seed, rank=None):
    """A random covariance with eigenvalues between about 1e-3 and 1, or of lower rank."""
    turn = torch.linalg.qr(normal(d, d, seed))[0]
    values = torch.logspace(-3, 0, d, dtype=torch.float64)
    values[: d - (d if rank is None else rank)] = 0
    return turn * values @ turn.T


def moments(features):
    return Moments(features.shape[1]).add(features)


# the distance


def test_on_the_line():
    """(m1 - m2)^2 + (s1 - s2)^2."""
    a, b = (Gaussian(torch.tensor([m]), torch.tensor([[s * s]])) for m, s in ((1.0, 2), (-2, 5)))
    assert frechet_distance(a, b) == pytest.approx(3**2 + 3**2, abs=1e-12)


@pytest.mark.parametrize("d", [1, 7, 64])
def test_commuting_covariances(d):
    """|m1 - m2|^2 + sum (sqrt(l1) - sqrt(l2))^2 for covariances with the same eigenvectors."""
    turn = torch.linalg.qr(normal(d, d, 0))[0]
    one, two = normal(1, d, 1)[0].exp(), normal(1, d, 2)[0].exp()
    m1, m2 = normal(2, d, 3)
    a, b = (Gaussian(m, turn * values @ turn.T) for m, values in ((m1, one), (m2, two)))
    exact = (m1 - m2).square().sum() + (one.sqrt() - two.sqrt()).square().sum()
    assert frechet_distance(a, b) == pytest.approx(exact.item(), rel=1e-12)


@pytest.mark.parametrize("ranks", [(16, 16), (16, 6), (6, 16), (6, 9)])
def test_general_covariances_in_high_precision(ranks):
    """tr (A B)^{1/2} from the eigenvalues of A B in 40 digits; 1e-12 also where they are 0."""
    a, b = (covariance(16, seed, rank) for seed, rank in enumerate(ranks))
    with mpmath.workdps(40):
        # the matrices of lower rank have it up to rounding: the sum of the exact roots would
        # hold those of 1e-17, so the largest min(ranks) are what is meant
        values, _ = mpmath.eig(mpmath.matrix(a.tolist()) * mpmath.matrix(b.tolist()))
        largest = sorted((mpmath.re(v) for v in values), reverse=True)[: min(ranks)]
        exact = float(sum(mpmath.sqrt(v) for v in largest))
    assert root_trace(a, b).item() == pytest.approx(exact, rel=1e-11)
    assert root_trace(b, a).item() == pytest.approx(exact, rel=1e-11)


def test_general_covariances_against_scipy():
    a, b = (Gaussian(normal(1, 40, s)[0], covariance(40, s)) for s in (0, 1))
    root = sqrtm((a.cov @ b.cov).numpy()).real
    exact = (a.mean - b.mean).square().sum() + a.cov.trace() + b.cov.trace() - 2 * np.trace(root)
    assert frechet_distance(a, b) == pytest.approx(exact.item(), rel=1e-9)


def test_equal_sets_are_at_distance_0():
    for features in (normal(500, 16, 0), normal(10, 16, 0), torch.ones(5, 3)):
        scale = moments(features).cov.trace().item()
        one = moments(features)
        assert abs(frechet_distance(one, one)) <= 1e-12 * scale
        assert abs(frechet_of_features(features, features.clone())) <= 1e-12 * scale


def test_a_shift_and_a_scale():
    f = normal(300, 8, 0)
    shift = torch.arange(8.0).double()
    assert frechet_of_features(f, f + shift) == pytest.approx(shift.square().sum().item())
    # (s - 1)^2 tr C about the mean
    scaled = 3 * (f - f.mean(0)) + f.mean(0)
    assert frechet_of_features(f, scaled) == pytest.approx(4 * moments(f).cov.trace().item())


def test_fewer_samples_than_dimensions():
    """The small Gram matrix, the covariances, and scipy's root of their product."""
    a, b = normal(12, 50, 0), normal(17, 50, 1, mean=0.3, std=2)
    value = frechet_of_features(a, b)
    one, two = moments(a), moments(b)
    assert frechet_distance(one, two) == pytest.approx(value, rel=1e-12)
    # the root of a singular product is good to about 1e-6
    root = sqrtm(np.cov(a.T) @ np.cov(b.T)).real
    gap = (a.mean(0) - b.mean(0)).square().sum().item()
    exact = gap + np.trace(np.cov(a.T) + np.cov(b.T) - 2 * root)
    assert value == pytest.approx(exact, rel=1e-5)


def test_it_tends_to_the_distance_of_the_laws():
    """Features of known Gaussians; a sample of n is off by O(1/sqrt n) and biased by O(1/n)."""
    c1, c2 = covariance(4, 0), covariance(4, 1)
    exact = frechet_distance(Gaussian(torch.zeros(4), c1), Gaussian(torch.ones(4), c2))
    f1 = normal(200_000, 4, 0) @ torch.linalg.cholesky(c1).T
    f2 = normal(200_000, 4, 1) @ torch.linalg.cholesky(c2).T + 1
    assert frechet_of_features(f1, f2) == pytest.approx(exact, rel=0.01)


def test_too_few_samples():
    for n in (0, 1):
        with pytest.raises(FmdiffError, match=f"n={n}: a covariance needs n to be at least 2"):
            frechet_of_features(normal(n, 3, 0), normal(5, 3, 1))
    assert few_samples(65, 64) is None
    assert "rank-deficient" in few_samples(64, 64)


def test_other_dimensions_are_refused():
    with pytest.raises(ValueError, match="3 and 4 dimensions"):
        frechet_distance(moments(normal(5, 3, 0)), moments(normal(5, 4, 0)))


# moments


def batches(features, size):
    seen = Moments(features.shape[1])
    for batch in features.split(size):
        seen.add(batch)
    return seen


@pytest.mark.parametrize("size", [1, 7, 64, 1000])
def test_batches_do_not_matter(size):
    """Against numpy in one go, with a mean a million standard deviations away from 0."""
    f = normal(1000, 5, 0, mean=1e6)
    seen = batches(f, size)
    assert seen.n == 1000
    torch.testing.assert_close(seen.mean, f.mean(0), rtol=1e-15, atol=0)
    np.testing.assert_allclose(seen.cov, np.cov((f - 1e6).T), rtol=0, atol=1e-8)


@pytest.mark.parametrize("processes", [1, 2, 4])
@pytest.mark.parametrize("size", [7, 64])
def test_parts_do_not_matter(processes, size):
    f = normal(997, 6, 0, mean=3).float()
    reference = Gaussian(torch.zeros(6), torch.eye(6))
    whole = frechet_distance(moments(f), reference)
    seen = Moments(6)
    for rank in range(processes):
        seen.merge(batches(f[rank::processes], size))
    assert seen.n == 997
    assert frechet_distance(seen, reference) == pytest.approx(whole, rel=1e-12)


def test_nothing_adds_nothing():
    seen = moments(normal(5, 3, 0))
    before = seen.cov
    seen.add(torch.zeros(0, 3)).merge(Moments(3))
    assert seen.n == 5
    assert torch.equal(seen.cov, before)
    assert torch.equal(Moments(3).merge(seen).cov, before)


def test_alone_there_is_nothing_to_reduce():
    seen = moments(normal(5, 3, 0))
    before = seen.cov
    assert torch.equal(seen.reduce().cov, before)
    rows = torch.arange(3)
    assert gather(rows) is rows


def process(rank, folder, features, places):
    torch.set_num_threads(1)
    store = f"file://{folder}/store"
    distributed.init_process_group("gloo", init_method=store, rank=rank, world_size=len(places))
    mine = features[places[rank]]
    seen = batches(mine, 7).reduce()
    torch.save((seen.n, seen.mean, seen.cov, gather(mine)), f"{folder}/{rank}")
    distributed.destroy_process_group()


@pytest.mark.parametrize("ends", [(0, 180, 301), (0, 7, 150, 150, 301)], ids=("two", "four"))
def test_processes_join(tmp_path, ends):
    """Two and four processes of unequal shares, one of them empty, by gloo."""
    f = normal(301, 6, 0, mean=50).float()
    places = [slice(*pair) for pair in pairwise(ends)]
    multiprocessing.start_processes(
        process, (str(tmp_path), f, places), nprocs=len(places), start_method="fork"
    )
    whole = moments(f)
    reference = Gaussian(torch.zeros(6), torch.eye(6))
    found = [torch.load(tmp_path / str(rank)) for rank in range(len(places))]
    for n, mean, cov, rows in found:
        assert n == 301
        assert torch.equal(mean, found[0][1])
        assert torch.equal(cov, found[0][2])
        assert torch.equal(rows, f)
    torch.testing.assert_close(cov, whole.cov, rtol=1e-11, atol=1e-12)
    assert frechet_distance(Gaussian(mean, cov), reference) == pytest.approx(
        frechet_distance(whole, reference), rel=1e-12
    )


# intervals


def test_the_interval_holds_the_truth():
    """90 % intervals of 100 draws from a known Gaussian hold its distance in about 90 %."""
    d, n = 3, 400
    cov = covariance(d, 0)
    law = Gaussian(torch.full((d,), 0.2).double(), cov)
    reference = Gaussian(torch.zeros(d).double(), 2 * cov)
    truth = frechet_distance(law, reference)
    root = torch.linalg.cholesky(cov)
    found = [
        frechet_interval(normal(n, d, seed) @ root.T + 0.2, reference, 60, seed, level=0.9)
        for seed in range(100)
    ]
    held = np.mean([f.low < truth < f.high for f in found])
    assert abs(held - 0.9) < 4 * math.sqrt(0.9 * 0.1 / 100)
    values = np.array([f.value for f in found])
    assert np.mean([f.error for f in found]) == pytest.approx(values.std(), rel=0.25)
    spread = values.std() / math.sqrt(len(values))
    assert abs(np.mean([f.bias for f in found]) - (values.mean() - truth)) < 4 * spread


REFERENCE = Gaussian(torch.zeros(4).double(), torch.eye(4).double())


def test_an_interval_of_sets_that_happen_to_be_close_reaches_the_truth():
    """Of the 5 % of sets that are closest, the basic bootstrap ends below the truth in all."""
    sets = [normal(200, 4, seed, mean=0.15) for seed in range(300)]
    sets.sort(key=lambda x: frechet_distance(moments(x), REFERENCE))
    ends = [frechet_interval(x, REFERENCE).high for x in sets[:15]]
    assert np.mean(np.array(ends) >= 0.3**2) > 0.4


@pytest.mark.slow
@pytest.mark.parametrize(("n", "mean"), [(40, 1.0), (200, 0.3), (200, 1.0)])
def test_means_that_differ_are_covered(n, mean):
    """Of 600 intervals of 95 % fewer than 553 cover with probability 0.2 %."""
    found = [frechet_interval(normal(n, 4, k, mean / 2), REFERENCE, seed=k) for k in range(600)]
    assert np.mean([f.low <= mean**2 <= f.high for f in found]) >= 553 / 600


def test_the_bias_of_few_samples_is_seen():
    """A sample of the reference's own law: the value is all bias, and `bias` about as large."""
    reference = Gaussian(torch.zeros(8).double(), torch.eye(8).double())
    found = frechet_interval(normal(500, 8, 0), reference, 100)
    assert found.value > 0
    assert found.bias == pytest.approx(found.value, rel=0.5)


def test_repeats_are_those_of_a_plain_bootstrap():
    """The turned rows give what resampled features give, here with a singular reference."""
    f = normal(30, 4, 0, mean=1)
    reference = Gaussian(torch.zeros(4).double(), covariance(4, 1, rank=3))
    found = frechet_interval(f, reference, 400, seed=3)
    rows = torch.randint(30, (400, 30), generator=torch.Generator().manual_seed(0))
    plain = torch.tensor([frechet_distance(moments(f[r]), reference) for r in rows])
    assert found.error == pytest.approx(plain.std().item(), rel=0.2)
    error = plain.std().item() / math.sqrt(400)
    assert abs(found.value + found.bias - plain.mean().item()) < 4 * 1.5 * error
    assert found == frechet_interval(f, reference, 400, seed=3)
    assert found != frechet_interval(f, reference, 400, seed=4)


@pytest.mark.slow
def test_2048_dimensions_as_by_eigenvalues():
    """torchmetrics' route is the general eigenvalue problem of C_a C_b."""
    from torchmetrics.image.fid import _compute_fid

    d = 2048
    scale = torch.logspace(0, -2, d, dtype=torch.float64)
    a, b = (moments(normal(5 * d, d, seed) * scale) for seed in (0, 1))
    theirs = float(_compute_fid(a.mean, a.cov, b.mean, b.cov))
    assert frechet_distance(a, b) == pytest.approx(theirs, rel=1e-8)
