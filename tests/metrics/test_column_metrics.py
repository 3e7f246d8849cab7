"""Metrics of columns against scipy and NumPy, and against their sampling law."""

import math

import numpy as np
import pytest
import torch
from scipy import stats

from fmdiff.errors import FmdiffError
from fmdiff.metrics.columns import correlation, ks, smirnov


def table(n, seed, rho=0.6):
    """A normal column, one of heavy tails that goes with it, a category and a constant."""
    rng = np.random.default_rng(seed)
    z = rng.multivariate_normal([0, 0], [[1, rho], [rho, 1]], n)
    tail = np.sign(z[:, 1]) * np.abs(z[:, 1]) ** 2
    category = rng.choice(3, n, p=[0.5, 0.3, 0.2])
    return torch.from_numpy(np.stack([z[:, 0], tail, category, np.full(n, 7.0)], 1))


def test_distances_and_p_values_are_scipys():
    a, b = table(700, 0), table(500, 1)
    metric = ks(a, b)
    expected = [stats.ks_2samp(a[:, j], b[:, j], method="asymp") for j in range(4)]
    assert metric.extra["distances"] == pytest.approx([e.statistic for e in expected], abs=1e-12)
    worst = max(expected, key=lambda e: e.statistic)
    assert metric.value == pytest.approx(worst.statistic, abs=1e-12)
    effective = 700 * 500 / 1200
    assert metric.extra["p"] == pytest.approx(
        min(1, 4 * stats.kstwobign.sf(worst.statistic * math.sqrt(effective))), rel=1e-6
    )


@pytest.mark.parametrize("x", [0.1, 0.3, 0.5, 0.8, 1.36, 2.0, 4.0])
def test_smirnovs_law_is_scipys(x):
    assert smirnov(x) == pytest.approx(stats.kstwobign.sf(x), abs=1e-12)


def test_equal_laws_are_rejected_as_often_as_stated():
    """p < 0.05 in at most about 5 % of 120 pairs: 14 is the 99.9 % quantile of that."""
    rejected = sum(
        ks(table(300, 2 * k), table(300, 2 * k + 1)).extra["p"] < 0.05 for k in range(120)
    )
    assert rejected <= 14


def test_a_moved_column_is_named_and_its_distance_covered():
    """N(1/2, 1) against N(0, 1): sup |F - G| = 2 Phi(1/4) - 1."""
    a, b = table(5000, 0), table(5000, 1)
    a[:, 0] += 0.5
    metric = ks(a, b, ("height", "income", "colour", "year"))
    assert metric.extra["worst"] == "'height'"
    truth = 2 * stats.norm.cdf(0.25) - 1
    assert metric.interval[0] < truth < metric.interval[1]
    assert abs(metric.value - truth) < 4 * metric.se
    assert metric.extra["p"] < 1e-6


def test_correlations_are_numpys():
    a, b = table(900, 0), table(800, 1, rho=-0.2)
    metric = correlation(a, b, ("height", "income", "colour", "year"))
    first, second = (np.corrcoef(x[:, :3].numpy().T)[np.triu_indices(3, 1)] for x in (a, b))
    assert metric.extra["samples"] == pytest.approx(first.tolist(), abs=1e-12)
    assert metric.extra["real"] == pytest.approx(second.tolist(), abs=1e-12)
    assert metric.value == pytest.approx(np.abs(first - second).max(), abs=1e-12)
    assert metric.extra["worst"] == "'height' and 'income'"  # the constant column is left out


def test_categories_are_correlated_level_by_level():
    """A column that depends on the middle of three levels, which no order of them shows."""
    a, b = table(4000, 0), table(4000, 1)
    a[:, 0] += 2 * (a[:, 2] == 1)
    levels = {"colour": ("red", "green", "blue")}
    metric = correlation(a, b, ("height", "income", "colour", "year"), levels)
    assert metric.extra["worst"] == "'height' and 'colour' is 'green'"
    expected = np.corrcoef(a[:, 0], a[:, 2] == 1)[0, 1] - np.corrcoef(b[:, 0], b[:, 2] == 1)[0, 1]
    assert metric.value == pytest.approx(abs(expected), abs=1e-12)


def test_the_error_of_a_normal_correlation_is_its_closed_form():
    """(1 - r^2) / sqrt(n) for normal columns (Fisher, 1915), here of the difference of two."""
    a, b = table(20_000, 0)[:, :2], table(20_000, 1)[:, :2]
    for x in (a, b):
        x[:, 1] = x[:, 1].sign() * x[:, 1].abs().sqrt()  # the normal column again
    metric = correlation(a, b)
    assert metric.se == pytest.approx(math.sqrt(2 / 20_000) * (1 - 0.36), rel=0.05)


def test_the_error_of_a_correlation_is_that_of_repeated_draws():
    draws = [correlation(table(300, 2 * k), table(300, 2 * k + 1)) for k in range(80)]
    gaps = np.array([np.subtract(m.extra["samples"], m.extra["real"]) for m in draws])
    stated = np.array([m.extra["errors"] for m in draws]).mean(0)
    assert np.abs(gaps.std(0) / stated - 1).max() < 0.3  # 80 draws tell a std to 8 %


def test_samples_that_do_not_vary_have_no_correlation():
    a, b = table(500, 0), table(500, 1)
    a[:, 0] = 2.0
    metric = correlation(a, b)
    assert metric.extra["samples"][0] == 0
    with pytest.raises(FmdiffError, match="two columns that vary"):
        correlation(a, b[:, 2:])
