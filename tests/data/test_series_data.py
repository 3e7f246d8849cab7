"""Series data, against autocovariances estimated from many of them and against recursions."""

import math

import pytest
import torch

from fmdiff.build import named
from fmdiff.errors import FmdiffError

LAGS = torch.arange(21)


def estimate(x):
    """The autocovariance at LAGS of series x (N, 1, L) of mean 0, and its standard errors.

    Each series gives one mean over its places, and the series are independent.
    """
    x = x[:, 0].double()
    each = torch.stack([(x[:, k:] * x[:, : x.shape[1] - k]).mean(1) for k in LAGS])
    return each.mean(1), each.std(1) / math.sqrt(x.shape[0])


@pytest.mark.parametrize(
    ("name", "keys"),
    [
        ("ar1", {}),
        ("ar1", {"phi": -0.6, "noise": 2.0, "length": 50}),
        ("ar1", {"phi": 0}),
        ("two_tone", {}),
        ("two_tone", {"spread": 0.0, "noise": 1.0, "length": 33}),
        ("two_tone", {"frequencies": [0.3, 0.05], "amplitudes": [2, 1.5], "spread": 1}),
    ],
)
def test_the_autocovariance_is_that_of_many_series(name, keys):
    data = named("data", name, **keys)
    x, y = data.sample(0, 40_000, 0)
    assert x.shape == (40_000, 1, data.length) and x.dtype == torch.float32 and y is None
    mean, se = estimate(x)
    off = ((mean - data.autocovariance(LAGS)) / se).abs()
    assert off.max() < 4, off
    assert data.axes == 2 and data.shape == (1, data.length)


@pytest.mark.parametrize("name", ["ar1", "two_tone"])
def test_series_are_stationary(name):
    data = named("data", name)
    x = data.sample(0, 40_000, 1)[0][:, 0].double()
    variance = data.autocovariance(torch.zeros(1)).item()
    bound = 5 * (x.square().std(0) / 200).max()
    assert (x.square().mean(0) - variance).abs().max() < bound
    assert (x.mean(0).abs() < 5 * math.sqrt(variance) / 200).all()
    assert data.std == pytest.approx(math.sqrt(variance)) and data.centre is None


def test_an_autoregressive_series_is_the_recursion():
    data = named("data", "ar1", length=37, phi=0.7, noise=0.3)
    x = data.draw(5, torch.Generator().manual_seed(3))[:, 0].double()
    e = torch.randn(5, 37, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    state = 0.3 / math.sqrt(1 - 0.7**2) * e[:, 0]
    for i in range(37):
        state = state if i == 0 else 0.7 * state + 0.3 * e[:, i]
        torch.testing.assert_close(x[:, i], state, rtol=1e-5, atol=1e-6)


def test_two_tones_have_two_frequencies_and_amplitudes_within_the_spread():
    data = named("data", "two_tone", length=200, noise=1e-6, spread=0.5)
    x = data.draw(50, torch.Generator().manual_seed(0))[:, 0].double()
    angles = 2 * math.pi * torch.tensor(data.frequencies, dtype=torch.float64)[:, None]
    angles = angles * torch.arange(200)
    waves = torch.cat([angles.cos(), angles.sin()])  # (4, L)
    found = torch.linalg.lstsq(waves.T, x.T)
    assert (waves.T @ found.solution - x.T).abs().max() < 1e-4
    loudness = (found.solution[:2].square() + found.solution[2:].square()).sqrt()
    share = loudness / torch.tensor(data.amplitudes)[:, None]
    assert share.min() > 0.5 and share.max() < 1.5 and share.max() - share.min() > 0.8


@pytest.mark.parametrize(
    ("name", "key", "value", "words"),
    [
        ("ar1", "length", 1, "an integer >= 2"),
        ("ar1", "phi", 1.0, "a number between -1 and 1"),
        ("ar1", "phi", "x", "a number between -1 and 1"),
        ("ar1", "noise", 0, "a number > 0"),
        ("two_tone", "noise", math.inf, "a number > 0"),
        ("two_tone", "frequencies", [0.1], "a list of two numbers between 0 and 0.5"),
        ("two_tone", "frequencies", [0.1, 0.5], "a list of two numbers between 0 and 0.5"),
        ("two_tone", "amplitudes", [1.0, -1.0], "a list of two numbers > 0"),
        ("two_tone", "amplitudes", [1.0, "a"], "a list of two numbers > 0"),
        ("two_tone", "spread", 1.5, "a number from 0 to 1"),
    ],
)
def test_a_key_out_of_range_is_named(name, key, value, words):
    with pytest.raises(FmdiffError) as refusal:
        named("data", name, **{key: value})
    assert f"data.{key}=" in str(refusal.value) and words in str(refusal.value)
