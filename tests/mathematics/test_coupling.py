"""Couplings against POT, brute force and closed forms."""

import itertools
import math
import sys
from pathlib import Path

import numpy as np
import pytest
import scipy.optimize
import scipy.stats
import torch

import fmdiff
from fmdiff.build import named
from fmdiff.coupling import OT, Independent, Sinkhorn, potentials, transport_cost
from fmdiff.errors import FmdiffError
from fmdiff.exact import Mixture
from fmdiff.inversion import shape_of
from fmdiff.path import Cosine
from fmdiff.randomness import generator, noise
from fmdiff.sampling import Sampler

CONFIGS = Path(__file__).parents[2] / "configs" / "coupling"
NAMES = sorted(path.stem for path in CONFIGS.glob("*.yaml"))


def batch(n, shape=(2,), seed=0):
    """Data of two clumps, a standard normal source and three kinds of label."""
    x = noise(0, n, shape, seed, "data")
    x = x + torch.where(x > 0, 2.0, -3.0)
    y = torch.randint(3, (n,), generator=generator(seed, "labels"))
    return x, noise(0, n, shape, seed, "eps"), y


def squared_distances(x, eps):
    a, b = (v.flatten(1).double().numpy() for v in (x, eps))
    return ((a[:, None] - b[None]) ** 2).sum(-1)


@pytest.fixture(scope="module")
def pot():
    return pytest.importorskip("ot")


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("shape", [(2,), (1, 3, 3)])
def test_an_index_is_a_function_of_batch_seed_and_step(name, shape):
    x, eps, y = batch(20, shape)
    coupling = named("coupling", name)
    for labels in (None, y):
        index = coupling(x, eps, labels, 3, 5)
        assert index.shape == (20,) and index.dtype == torch.int64
        assert index.min() >= 0 and index.max() < 20
        torch.rand(1)
        assert torch.equal(index, named("coupling", name)(x, eps, labels, 3, 5))
    assert coupling.independent == (name == "independent")


def test_sinkhorn_draws_anew_for_each_seed_and_step():
    x, eps, _ = batch(50)
    coupling = named("coupling", "sinkhorn")
    drawn = [coupling(x, eps, None, *when) for when in ((0, 0), (0, 1), (1, 0))]
    for a, b in itertools.combinations(drawn, 2):
        assert not torch.equal(a, b)


@pytest.mark.parametrize("name", NAMES)
def test_pairs_stay_within_a_class(name):
    x, eps, y = batch(60)
    index = named("coupling", name)(x, eps, y, 0, 0)
    assert torch.equal(y[index], y)  # the noise at the places of a class stays there


@pytest.mark.parametrize("name", ["independent", "ot"])
def test_permutations_use_each_noise_once(name):
    x, eps, y = batch(60)
    for labels in (None, y):
        index = named("coupling", name)(x, eps, labels, 0, 0)
        assert torch.equal(index.sort().values, torch.arange(60))
    assert torch.equal(Independent()(x, eps, y, 0, 0), torch.arange(60))


def test_transport_cost_is_the_mean_over_samples_of_the_sum_over_dimensions():
    x = torch.tensor([[[1.0, 2.0]], [[0.0, -1.0]]])
    eps = torch.tensor([[[0.0, 0.0]], [[2.0, 1.0]]])
    assert transport_cost(x, eps).item() == pytest.approx((1 + 4 + 4 + 4) / 2)


@pytest.mark.parametrize("seed", range(5))
def test_ot_is_the_best_of_all_permutations(seed):
    x, eps, _ = batch(6, seed=seed)
    costs = squared_distances(x, eps)
    best = min(itertools.permutations(range(6)), key=lambda p: costs[range(6), p].sum())
    assert OT()(x, eps, None, 0, 0).tolist() == list(best)


@pytest.mark.parametrize(("n", "shape"), [(100, (2,)), (64, (1, 8, 8)), (50, (1,))])
def test_ot_costs_what_pot_finds(pot, n, shape):
    x, eps, y = batch(n, shape)
    cost = transport_cost(x, eps[OT()(x, eps, None, 0, 0)]).item()
    assert cost == pytest.approx(pot.emd2([], [], squared_distances(x, eps)), rel=1e-5)
    within = transport_cost(x, eps[OT()(x, eps, y, 0, 0)]).item()
    by_class = sum(
        (y == c).sum().item() / n * pot.emd2([], [], squared_distances(x[y == c], eps[y == c]))
        for c in range(3)
    )
    assert within == pytest.approx(by_class, rel=1e-5)
    assert cost < within < transport_cost(x, eps).item()


def test_ot_on_the_line_sorts():
    x, eps, _ = batch(100, (1,))
    index = OT()(x, eps, None, 0, 0)
    assert torch.equal(index[x[:, 0].argsort()], eps[:, 0].argsort())


def cloud(kind, n, d, seed):
    """Data and noise (n, d) on which searches differ: even, clustered, repeated, far away."""
    x, eps = (noise(0, n, (d,), seed, name) for name in ("data", "eps"))
    if kind == "clusters":  # tight, of other weights in the data than in the noise
        centres = 5 * noise(0, 8, (d,), seed, "centres")
        x = centres[noise(0, n, (), seed, "a").abs().mul(2).long().clamp(max=7)] + 1e-3 * x
        eps = centres[noise(0, n, (), seed, "b").abs().mul(3).long().clamp(max=7)] + 1e-3 * eps
    elif kind == "duplicates":
        x, eps = x.round(), eps.round()
    elif kind == "equal":
        x = torch.ones_like(x)
    elif kind == "far":
        x, eps = 1e4 + x, 1e-4 * eps
    elif kind == "outlier":
        x[0] = 1e6
    return x, eps


KINDS = ("even", "clusters", "duplicates", "equal", "far", "outlier")


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("n", [1, 2, 3, 17, 97, 150])
def test_ot_costs_what_the_plain_search_finds(kind, n):
    for d, seed in itertools.product((1, 2, 64), range(3)):
        x, eps = cloud(kind, n, d, seed)
        index = OT()(x, eps, None, 0, 0)
        assert torch.equal(index.sort().values, torch.arange(n))
        costs = squared_distances(x, eps)
        best = costs[scipy.optimize.linear_sum_assignment(costs)].sum()
        assert costs[range(n), index].sum() == pytest.approx(best, rel=1e-9, abs=1e-300)


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("n", "d"), [(256, 1), (256, 2), (256, 3), (256, 784), (1024, 2)])
def test_ot_costs_what_the_plain_search_finds_in_large_batches(kind, n, d):
    for seed in range(8 if n == 256 else 1):
        x, eps = cloud(kind, n, d, seed)
        costs = squared_distances(x, eps)
        best = costs[scipy.optimize.linear_sum_assignment(costs)].sum()
        found = costs[range(n), OT()(x, eps, None, 0, 0)].sum()
        assert found == pytest.approx(best, rel=1e-9, abs=1e-300)


@pytest.mark.parametrize("kind", KINDS)
def test_potentials_are_finite_and_nearly_the_dual_optimum(kind):
    """sum f + sum g is the least cost where all cost_ij >= f_i + g_j (linear programming)."""
    x, eps = cloud(kind, 120, 2, 0)
    cost = torch.from_numpy(squared_distances(x, eps))
    f, g = potentials(cost.float())
    assert f.isfinite().all() and g.isfinite().all()
    if kind == "even":
        left = cost - f[:, None] - g
        least = cost.numpy()[scipy.optimize.linear_sum_assignment(cost.numpy())].sum()
        assert left.min() > -0.02 * cost.mean()
        assert abs(least - (f.sum() + g.sum())) < 0.02 * cost.mean() * len(x)


def test_potentials_beyond_float32_are_none():
    assert all((h == 0).all() for h in potentials(torch.full((3, 3), float("inf"))))


def test_sinkhorn_plan_has_uniform_marginals():
    x, eps, _ = batch(100)
    plan = Sinkhorn(0.1, 1000).plan(x, eps)
    uniform = torch.full((100,), 0.01, dtype=torch.float64)
    torch.testing.assert_close(plan.sum(1), uniform, rtol=1e-12, atol=0)
    torch.testing.assert_close(plan.sum(0), uniform, rtol=1e-9, atol=0)


def test_the_default_plan_has_nearly_uniform_marginals():
    x, eps, _ = batch(256)
    plan = named("coupling", "sinkhorn").plan(x, eps)
    assert (plan.sum(0) * 256 - 1).abs().max() < 0.05


@pytest.mark.parametrize("reg", [0.05, 0.5])
def test_sinkhorn_plan_is_that_of_pot(pot, reg):
    x, eps, _ = batch(60)
    costs = squared_distances(x, eps)
    exact = pot.sinkhorn(
        [], [], costs, reg * costs.mean(), "sinkhorn_log", numItermax=10_000, stopThr=1e-13
    )
    ours = Sinkhorn(reg, 3000).plan(x, eps).numpy()
    np.testing.assert_allclose(ours, exact, rtol=0, atol=1e-9)
    assert exact.max() > 20 * abs(ours - exact).max()


def test_sinkhorn_lies_between_ot_and_independent():
    x, eps, _ = batch(50)
    costs = torch.from_numpy(squared_distances(x, eps))
    best = transport_cost(x.double(), eps.double()[OT()(x, eps, None, 0, 0)])
    cost = [(Sinkhorn(r, 3000).plan(x, eps) * costs).sum() for r in (0.002, 0.1, 1.0, 1e5)]
    assert cost == sorted(cost)
    assert cost[0].item() == pytest.approx(best.item(), rel=0.01)
    assert cost[-1].item() == pytest.approx(costs.mean().item(), rel=1e-3)  # eps independent of x
    torch.testing.assert_close(
        Sinkhorn(1e7, 10).plan(x, eps), torch.full_like(costs, 1 / 50**2), rtol=1e-5, atol=0
    )


def test_sinkhorn_draws_follow_the_rows_of_the_plan():
    x, eps, _ = batch(6)
    coupling, n = Sinkhorn(0.3, 20), 1500
    plan = coupling.plan(x, eps).numpy() * 6
    drawn = np.stack([coupling(x, eps, None, 0, step).numpy() for step in range(n)])
    counts = np.stack([np.bincount(row, minlength=6) for row in drawn.T])
    assert ((plan > 0.1) & (plan < 0.9)).sum() >= 6  # the draws are not foregone
    low, high = scipy.stats.binom(n, plan).interval(1 - 1e-5)
    assert ((counts >= low) & (counts <= high)).all()


@pytest.mark.parametrize(
    ("key", "value"), [("reg", 0.0), ("reg", -1.0), ("iterations", 0), ("iterations", 1.5)]
)
def test_bad_keys_are_refused_by_name(key, value):
    with pytest.raises(FmdiffError, match=rf"coupling\.{key}={value} must be"):
        named("coupling", "sinkhorn", **{key: value})


def test_without_scipy_the_user_is_told_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "scipy.optimize", None)
    with pytest.raises(FmdiffError, match="pip install scipy"):
        OT()(*batch(4)[:2], None, 0, 0)


# Straightness of a field's own trajectories


@pytest.mark.parametrize("coordinates", ["straight", "native"])
def test_straightness_of_the_flow_of_a_gaussian_is_the_closed_form(coordinates):
    """Data N(m, s^2 I) on the straight path: z_t = t m + c(t) eps, c^2 = (1 - t)^2 + t^2 s^2.

    So x_1 - x_0 - v = (s - 1 - c') eps. The integral of c'^2 over [0, 1] is 1 + s^2 - pi s / 2,
    and S = |eps|^2 (1 + s^2 - pi s / 2 - (s - 1)^2) = |eps|^2 s (2 - pi / 2). On the cosine path
    c^2 = cos^2 + s^2 sin^2 has no such form, but its states at equal noise levels are the same.
    """
    mean, s = torch.tensor([[1.0, -2.0, 0.5]], dtype=torch.float64), 0.4
    cov = s * s * torch.eye(3, dtype=torch.float64)[None]
    path = Cosine() if coordinates == "straight" else fmdiff.path.CondOT()
    field = Mixture(path, torch.ones(1, dtype=torch.float64), mean, cov)
    sampler = Sampler(steps=400, dtype=torch.float64, coordinates=coordinates)
    shape = shape_of(field, sampler, 3, 500)
    eps = noise(0, 500, (3,), 3, "start").double()
    wanted = eps.square().sum(1).mean().item() * s * (2 - math.pi / 2)
    assert shape.straightness == pytest.approx(wanted, rel=1e-4)
    whole = (mean + (s - 1) * eps).square().sum(1).mean().item()
    assert shape.relative == pytest.approx(wanted / whole, rel=1e-4)


def test_straight_trajectories_have_no_straightness_left():
    """z_t = z_0 + t (m + (s - 1) z_0), whose velocity at x is m + (s - 1) z_0."""
    m, s = 2.0, 0.3

    def velocity(x, t):
        return m + (s - 1) * (x - t * m) / (1 + t * (s - 1))

    field = fmdiff.field(velocity, "condot", (2,))
    shape = shape_of(field, Sampler(steps=20, dtype=torch.float64), 0)
    assert shape.straightness < 1e-12 and shape.turning < 1e-6
    bent = fmdiff.field(lambda x, t: velocity(x, t) + t, "condot", (2,))
    # one more step of length t: (1/2 - t)^2 has the mean 1 / 12 in each coordinate, at s = 1
    s = 1.0
    shape = shape_of(bent, Sampler(steps=400, dtype=torch.float64), 0)
    assert shape.straightness == pytest.approx(2 / 12, rel=1e-4)
