import math

import numpy as np
import pytest
import torch
from scipy.optimize import linear_sum_assignment
from scipy.stats import wasserstein_distance

from fmdiff.metrics.distances import noise_floor, sliced_wasserstein2


def normal(n, d, seed, mean=0.0, std=1.0):
    return mean + std * torch.randn(n, d, generator=torch.Generator().manual_seed(seed))


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
    value = sliced_wasserstein2(a, b, projections=4096)
    # standard errors: directions 1 %, point sets 2 % of |m| at most
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
