import math

import numpy as np
import pytest
import torch
from scipy.optimize import linear_sum_assignment
from scipy.stats import energy_distance, norm, wasserstein_distance

from fmdiff.metrics import distances
from fmdiff.metrics.distances import (
    BANDWIDTHS,
    energy,
    mmd2,
    noise_floor,
    sliced_wasserstein2,
    sw2,
    w2,
    wasserstein2,
)
from fmdiff.metrics.subset import thin
from fmdiff.randomness import generator


def normal(n, d, seed, mean=0.0, std=1.0):
    return mean + std * torch.randn(n, d, generator=generator(seed, "normal"))


def test_one_dimension_is_the_optimal_assignment():
    a, b = normal(60, 1, 0), normal(60, 1, 1, mean=0.5, std=2)
    cost = (a - b.T).double().square().numpy()
    optimum = math.sqrt(cost[linear_sum_assignment(cost)].mean())
    assert sliced_wasserstein2(a, b) == pytest.approx(optimum, rel=1e-5)


def test_one_dimension_against_scipy():
    """All gaps of a shifted set are equal, so that W1 (scipy) is W2."""
    a = normal(500, 1, 0)
    b = a[torch.randperm(500)] - 0.7
    assert sliced_wasserstein2(a, b) == pytest.approx(
        wasserstein_distance(a[:, 0].numpy(), b[:, 0].numpy()), rel=1e-5
    )


def test_gaussians_on_the_line():
    """W2(N(0, 1), N(m, s^2))^2 = m^2 + (s - 1)^2."""
    a, b = normal(100_000, 1, 0), normal(100_000, 1, 1, mean=1.5, std=3)
    assert sliced_wasserstein2(a, b) == pytest.approx(math.sqrt(1.5**2 + 2**2), rel=0.01)


@pytest.mark.parametrize("d", [2, 5])
def test_shifted_gaussians(d):
    """SW2(N(0, I), N(m, I)) = |m| / sqrt(d)."""
    shift = torch.arange(1.0, d + 1)
    a, b = normal(5000, d, 0), normal(5000, d, 1) + shift
    value = sliced_wasserstein2(a, b, projections=1024)
    # standard errors: directions 1 to 2 %, point sets 2 % of |m| at most
    assert value == pytest.approx(shift.norm().item() / math.sqrt(d), rel=0.05)


def test_it_is_a_distance_of_sets():
    a, b = normal(300, 2, 0), normal(300, 2, 1, std=2)
    assert sliced_wasserstein2(a, a[torch.randperm(300)]) == 0
    assert sliced_wasserstein2(a, b) == sliced_wasserstein2(b, a) > 0.1
    assert sliced_wasserstein2(3 * a, 3 * b) == pytest.approx(3 * sliced_wasserstein2(a, b))


def test_only_the_seed_and_the_dimension_choose_directions():
    a, b = normal(300, 2, 0), normal(300, 2, 1)
    before = torch.random.get_rng_state()
    assert sliced_wasserstein2(a, b, 3, seed=1) == sliced_wasserstein2(a, b, 3, seed=1)
    assert sliced_wasserstein2(a, b, 3, seed=1) != sliced_wasserstein2(a, b, 3, seed=2)
    assert torch.equal(before, torch.random.get_rng_state())


def test_unequal_sets_are_refused():
    with pytest.raises(ValueError, match="one shape"):
        sliced_wasserstein2(torch.zeros(3, 2), torch.zeros(4, 2))


def test_noise_floor_of_the_uniform_law():
    """E W2^2 of two sets of n from U(0, 1) is 2/n int F(1 - F)/f = 1/(3n), to first order."""
    n = 1000

    def draw(n, seed):
        return torch.rand(n, 1, generator=torch.Generator().manual_seed(seed))

    squares = [sliced_wasserstein2(draw(n, 2 * i), draw(n, 2 * i + 1)) ** 2 for i in range(400)]
    error = np.std(squares) / math.sqrt(len(squares))
    assert abs(np.mean(squares) - 1 / (3 * n)) < 5 * error
    floor = noise_floor(draw, n, pairs=400)
    assert floor == pytest.approx(np.median(np.sqrt(squares)))


# --- exact W2 ------------------------------------------------------------------------------------


@pytest.mark.parametrize("d", [1, 2, 6])
def test_a_translation_costs_its_length(d):
    """W2(a, a + m) = |m| for any set: the mean of |a_i - b_s(i)|^2 is least at the mean shift."""
    a, shift = normal(200, d, 0), torch.arange(1.0, d + 1)
    moved = (a + shift)[torch.randperm(200)]
    assert wasserstein2(a, moved) == pytest.approx(shift.norm().item(), rel=1e-5)
    assert w2(a, moved).value == pytest.approx(shift.norm().item(), rel=1e-5)


def test_exact_distance_against_sorting_and_pot():
    import ot

    a, b = normal(150, 1, 0), normal(150, 1, 1, mean=0.5, std=2)
    by_rank = (a.sort(0).values - b.sort(0).values).square().mean().sqrt().item()
    assert wasserstein2(a, b) == pytest.approx(by_rank, rel=1e-6)
    a, b = normal(120, 3, 0), normal(120, 3, 1, mean=0.5, std=2)
    cost = ot.dist(a.double().numpy(), b.double().numpy())
    assert wasserstein2(a, b) == pytest.approx(math.sqrt(ot.emd2([], [], cost)), rel=1e-6)


def test_larger_sets_are_thinned(monkeypatch):
    monkeypatch.setattr(distances, "ASSIGNED", 50)
    a, b = normal(90, 2, 0), normal(90, 2, 1)
    first, second = thin(a, b, 50)
    assert wasserstein2(a, b) == pytest.approx(wasserstein2(first, second))
    assert w2(a, b).value == wasserstein2(a, b)
    assert w2(a, b).n == 50
    monkeypatch.setattr(distances, "PAIRED", 50)
    assert energy(a, b).value == pytest.approx(energy(first, second).value, rel=1e-4)
    assert energy(a, b).n == 50


def test_potentials_are_optimal():
    """v_j - v_i <= c_ij - c_ii, with equality on the diagonal: u + v sum to the cost (duality)."""
    cost = distances._assigned(normal(100, 2, 0), normal(100, 2, 1))
    v = distances._shortest(cost - cost.diagonal()[:, None])
    u = cost.diagonal() - v
    assert (u[:, None] + v - cost).max() < 1e-4 * cost.max()


# --- kernels -------------------------------------------------------------------------------------


def every_pair(kernel, a, b):
    """The unbiased statistic by its definition, a pair at a time in float64."""
    a, b = a.double(), b.double()

    def mean(x, y, same):
        k = kernel((x[:, None] - y).square().sum(-1))
        return (k.sum() - k.trace()) / (k.numel() - len(k)) if same else k.mean()

    return (mean(a, a, True) + mean(b, b, True) - 2 * mean(a, b, False)).item()


def test_mmd_is_its_definition():
    """Far from the origin too: the sets are centred before float32 squares their distances."""
    a, b = normal(150, 3, 0) + 1000, normal(130, 3, 1, mean=0.5) + 1000
    scale = torch.pdist(b.double()).median().item()

    def kernel(square):
        return sum((-square / (2 * (c * scale) ** 2)).exp() for c in BANDWIDTHS) / len(BANDWIDTHS)

    metric = mmd2(a, b)
    assert metric.value == pytest.approx(every_pair(kernel, a, b), abs=1e-6)
    assert metric.extra["bandwidths"] == pytest.approx([c * scale for c in BANDWIDTHS])


def test_energy_distance_against_scipy():
    """scipy: the root of 2 E|x - y| - E|x - x'| - E|y - y'| with x = x' among the pairs."""
    a, b = normal(150, 1, 0), normal(130, 1, 1, mean=0.5)
    own = sum(torch.pdist(s.double()).mean().item() / len(s) for s in (a, b))
    expected = energy_distance(a[:, 0].numpy(), b[:, 0].numpy()) ** 2
    assert energy(a, b).value + own == pytest.approx(expected, rel=1e-5)
    plane = normal(150, 2, 0), normal(130, 2, 1, std=2)
    assert energy(*plane).value == pytest.approx(every_pair(lambda s: -s.sqrt(), *plane), rel=1e-5)


def mmd2_of_gaussians(d, m, s, scale):
    """Of N(m 1, s^2 I) and N(0, I): E k = (c^2/(c^2 + v))^(d/2) exp(-|m|^2 / (2 (c^2 + v)))."""

    def mean(c, v, square):
        return (c**2 / (c**2 + v)) ** (d / 2) * math.exp(-square / (2 * (c**2 + v)))

    return np.mean(
        [
            mean(c * scale, 2, 0) + mean(c * scale, 2 * s**2, 0)
            - 2 * mean(c * scale, 1 + s**2, d * m**2)
            for c in BANDWIDTHS
        ]
    )  # fmt: skip


def energy_of_gaussians(m, s):
    """Of N(m, s^2) and N(0, 1), by the mean of |N(m, v)|."""

    def mean(m, v):
        return math.sqrt(2 * v / math.pi) * math.exp(-(m**2) / (2 * v)) + m * (
            1 - 2 * norm.cdf(-m / math.sqrt(v))
        )

    return 2 * mean(m, 1 + s**2) - mean(0, 2) - mean(0, 2 * s**2)


# --- unbiased values, and intervals that cover ---------------------------------------------------

LAWS = [(0.0, 1.0), (0.2, 1.0), (0.5, 1.5)]  # N(m, s^2 I) against N(0, I)


def repeated(measure, n, d, m, s, times=100):
    pairs = [(normal(n, d, 2 * i, m, s), normal(n, d, 2 * i + 1)) for i in range(times)]
    return [measure(a, b) for a, b in pairs]


def covered(metrics, truth):
    return sum(metric.interval[0] <= truth <= metric.interval[1] for metric in metrics)


# of 100 intervals of 95 % fewer than 88 cover with probability 0.2 %


@pytest.mark.parametrize(("m", "s"), LAWS)
@pytest.mark.parametrize("name", ["mmd2", "energy"])
def test_kernel_distances_are_unbiased_and_covered(name, m, s):
    n, d = 200, 2 if name == "mmd2" else 1
    if name == "mmd2":
        truth = mmd2_of_gaussians(d, m, s, scale=1.5)
        metrics = repeated(lambda a, b: mmd2(a, b, scale=1.5), n, d, m, s)
    else:
        truth = energy_of_gaussians(m, s)
        metrics = repeated(energy, n, d, m, s)
    values = [metric.value for metric in metrics]
    assert abs(np.mean(values) - truth) < 4 * np.std(values) / 10
    assert covered(metrics, truth) >= 88
    # where the laws agree se is sqrt(2) times the error, less its own
    ratio = np.mean([metric.se for metric in metrics]) / np.std(values)
    assert 0.75 < ratio < 1.7


@pytest.mark.slow
@pytest.mark.parametrize(("m", "s"), LAWS)
@pytest.mark.parametrize(("measure", "n", "d"), [(sw2, 300, 1), (sw2, 300, 2), (w2, 150, 2)])
def test_wasserstein_intervals_cover(measure, n, d, m, s):
    """W2^2 = d (m^2 + (s - 1)^2), and SW2^2 is 1/d of it."""
    truth = math.sqrt((d if measure is w2 else 1) * (m**2 + (s - 1) ** 2))
    metrics = repeated(measure, n, d, m, s)
    assert covered(metrics, truth) >= 88
    squares = [metric.value**2 for metric in metrics]
    ratio = np.mean([2 * metric.value * metric.se for metric in metrics]) / np.std(squares)
    assert 0.75 < ratio < 2


def test_intervals_of_different_laws_leave_zero_out():
    for measure in (sw2, w2, mmd2, energy):
        low, high = measure(normal(300, 2, 0, mean=1), normal(300, 2, 1)).interval
        assert 0 < low < high


def test_equal_sets():
    a = normal(100, 2, 0)
    assert sw2(a, a).value == w2(a, a).value == 0
    assert mmd2(a, a).interval[0] <= 0 <= mmd2(a, a).interval[1]
