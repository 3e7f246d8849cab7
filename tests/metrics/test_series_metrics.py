"""Metrics of series against the closed forms of autoregressive and periodic series."""

import math
from itertools import pairwise

import numpy as np
import pytest
import torch

from fmdiff.metrics.series import autocovariance, features, spectrum

PHI, SCALE = 0.7, 1.5
VARIANCE = SCALE**2 / (1 - PHI**2)


def ar1(n, length, seed, phi=PHI, channels=1):
    """Stationary x_t = phi x_{t-1} + SCALE e_t: (n, channels, length)."""
    rng = np.random.default_rng(seed)
    x = np.empty((n, channels, length))
    x[..., 0] = rng.normal(0, SCALE / math.sqrt(1 - phi**2), (n, channels))
    for t in range(1, length):
        x[..., t] = phi * x[..., t - 1] + rng.normal(0, SCALE, (n, channels))
    return torch.from_numpy(x)


def close(values, expected, errors, most=4.5):
    assert (np.abs(np.asarray(values) - expected) / np.asarray(errors)).max() < most


def test_autocovariance_of_ar1_is_its_closed_form():
    """g(k) = phi^k SCALE^2 / (1 - phi^2), here in units of the variance."""
    metric = autocovariance(ar1(4000, 48, 0), ar1(4000, 48, 1))
    expected = PHI ** np.arange(21)
    close(metric.extra["samples"], expected, metric.extra["errors"])
    close(metric.extra["real"], expected, metric.extra["errors"])
    assert metric.extra["standard_errors"] < 4 and metric.interval[0] == 0


def test_the_errors_of_the_autocovariance_are_those_of_repeated_draws():
    draws = [autocovariance(ar1(60, 24, 2 * k), ar1(60, 24, 2 * k + 1)) for k in range(80)]
    gaps = np.array([np.subtract(m.extra["samples"], m.extra["real"]) for m in draws])
    stated = np.array([m.extra["errors"] for m in draws]).mean(0)
    assert np.abs(gaps.std(0) / stated - 1).max() < 0.3  # 80 draws tell a std to 8 %


def test_another_coefficient_is_seen_at_its_lag():
    """phi = 0.7 against 0.5 of one variance: phi^k differ by 0.24 at k = 2, the most."""
    other = ar1(4000, 48, 2, phi=0.5) / math.sqrt(SCALE**2 / 0.75) * math.sqrt(VARIANCE)
    metric = autocovariance(other, ar1(4000, 48, 3))
    assert metric.extra["worst"] == "lag 2"
    assert abs(metric.value - (0.49 - 0.25)) < 4 * metric.se
    assert metric.interval[0] < 0.24 < metric.interval[1]
    assert metric.extra["standard_errors"] > 10


def test_the_mean_of_the_data_is_taken_from_both_sets():
    x, y = ar1(2000, 30, 0), ar1(2000, 30, 1)
    metric = autocovariance(x + 100, y + 100)
    assert metric.value == pytest.approx(autocovariance(x, y).value, abs=1e-6)
    moved = autocovariance(x + 2 * math.sqrt(VARIANCE), y)
    assert moved.value == pytest.approx(4, abs=0.3)  # the square of the shift at every lag


def test_spectrum_of_ar1_is_its_closed_form():
    """E |sum x_t e^-iwt|^2 / L = sum_|k|<L (1 - |k| / L) g(k) cos(w k), and f(w) as L grows."""
    length = 40
    metric = spectrum(ar1(4000, length, 0), ar1(4000, length, 1))
    k, w = np.arange(1 - length, length), 2 * np.pi * np.arange(length // 2 + 1) / length
    kernel = (1 - np.abs(k) / length) * PHI ** np.abs(k)  # in units of the variance
    twice = np.where((w > 0) & (w < np.pi - 1e-9), 2, 1)
    expected = twice * (kernel * np.cos(np.outer(w, k))).sum(1) / length
    close(metric.extra["samples"], expected, metric.extra["errors"])
    assert sum(metric.extra["samples"]) == pytest.approx(1, abs=0.05)  # Parseval


def test_long_series_have_the_density_of_the_spectrum():
    """f(w) = SCALE^2 / |1 - phi e^-iw|^2, within the leakage O(1 / L)."""
    length = 2048
    metric = spectrum(ar1(300, length, 0), ar1(300, length, 1))
    w = 2 * np.pi * np.arange(length // 2 + 1) / length
    density = SCALE**2 / np.abs(1 - PHI * np.exp(-1j * w)) ** 2 / VARIANCE
    edges = np.linspace(0, len(w), 33).round().astype(int)
    shares = np.array([2 * density[a:b].sum() / length for a, b in pairwise(edges)])
    close(metric.extra["samples"][1:-1], shares[1:-1], metric.extra["errors"][1:-1], 5.0)


def test_a_tone_at_another_frequency_is_the_power_it_moves():
    """Tones of one variance at 3 / 32 and 5 / 32: all power stands in another place."""
    t = torch.arange(32)

    def tone(j, seed):
        phase = 2 * math.pi * torch.rand(500, 1, generator=torch.Generator().manual_seed(seed))
        return torch.cos(2 * math.pi * j * t / 32 + phase)[:, None]

    metric = spectrum(tone(3, 0), tone(5, 1))
    assert metric.value == pytest.approx(1, abs=1e-2)
    assert spectrum(tone(3, 2), tone(3, 3)).value == pytest.approx(0, abs=1e-2)
    assert metric.extra["samples"][3] == pytest.approx(1, abs=1e-2)


def test_channels_are_compared_each_with_its_own():
    x, y = ar1(1000, 24, 0, channels=2), ar1(1000, 24, 1, channels=2)
    wrong = x.clone()
    wrong[:, 1] *= 1.5
    metric = autocovariance(wrong, y)
    assert metric.extra["worst"].endswith("of channel 2")
    assert abs(metric.value - 1.25) < 5 * metric.se
    y[:, 0] = 3.0  # a constant channel of the data has no unit of its own
    assert math.isfinite(spectrum(wrong, y).value)


def test_features_are_the_values_themselves_up_to_256_places():
    x = torch.randn(5, 2, 30)
    assert torch.equal(features(x), x.flatten(1))
    long = torch.arange(1000.0).repeat(3, 1).view(3, 1, 1000)
    places = features(long)
    assert places.shape == (3, 256)
    assert places[0, 0] == 0 and places[0, -1] == 999
    assert places[0].diff().min() >= 3 and places[0].diff().max() <= 4
