import json
import math

import numpy as np
import pytest
import torch
from scipy.stats import binomtest

from fmdiff.build import named
from fmdiff.errors import FmdiffError
from fmdiff.metrics import points
from fmdiff.metrics.metric import Metric, wilson
from fmdiff.metrics.points import floor, measures, modes, nll, off_support, point_metrics, usual


def line(**keys):
    """0.75 N(-2, 0.5) + 0.25 N(2, 0.5), or another mixture."""
    mixture = {"means": [[-2.0], [2.0]], "weights": [3, 1], "cov": 0.5} | keys
    return named("data", "gmm", **mixture)


def draws(data, n, seed):
    return data.sample(0, n, seed)[0]


# --- negative log-likelihood ---------------------------------------------------------------------


def test_nll_of_one_gaussian_is_its_entropy():
    """H(N(m, C)) = 1/2 log det(2 pi e C); samples scaled by s about m: H + (s^2 - 1) d / 2."""
    cov = torch.tensor([[2.0, 0.5], [0.5, 1.0]])
    data = named("data", "gmm", means=[[1.0, -1.0]], weights=None, cov=cov.tolist())
    entropy = 0.5 * torch.logdet(2 * math.pi * math.e * cov).item()
    x, y = draws(data, 10_000, 0), draws(data, 10_000, 1)
    metric = nll(x, y, data)
    # -log p(x) = constant + chi^2_2 / 2 has the standard deviation 1
    assert metric.se == pytest.approx(0.01, rel=0.05)
    assert abs(metric.value - entropy) < 4 * metric.se
    assert abs(metric.extra["entropy"] - entropy) < 4 * metric.extra["entropy_se"]
    assert abs(metric.extra["difference"]) < 4 * metric.extra["difference_se"]
    mean = torch.tensor([1.0, -1.0])
    wide = nll(mean + 2 * (x - mean), y, data)
    assert abs(wide.value - entropy - 3) < 4 * wide.se


def test_nll_of_a_mixture_is_its_entropy():
    """The entropy by the trapezoidal rule over a fine grid."""
    data = line()
    grid = torch.linspace(-12, 12, 100_001, dtype=torch.float64)

    def normal(m):
        return (-((grid - m) ** 2)).exp() / math.sqrt(math.pi)  # variance 1/2

    p = 0.75 * normal(-2) + 0.25 * normal(2)
    entropy = -torch.trapezoid(torch.xlogy(p, p), grid).item()
    metric = nll(draws(data, 20_000, 0), draws(data, 20_000, 1), data)
    assert abs(metric.value - entropy) < 4 * metric.se
    assert metric.interval == pytest.approx(
        (metric.value - 1.96 * metric.se, metric.value + 1.96 * metric.se)
    )


# --- mode weights --------------------------------------------------------------------------------


def test_mode_weights_of_known_shares():
    """7 of 10 points deep in one mode, 3 in the other: shares 0.7 and 0.3, weights 3/4 and 1/4."""
    x = torch.tensor([[-5.0]] * 700 + [[5.0]] * 300)
    metric = modes(x, x, line())
    assert metric.extra["shares"] == pytest.approx([0.7, 0.3], abs=1e-9)
    assert metric.value == pytest.approx(0.05)
    assert metric.se == pytest.approx(math.sqrt(0.7 * 0.3 / 1000))
    assert metric.interval[0] < 0.05 < metric.interval[1]


def test_mode_weights_of_overlapping_modes_are_unbiased():
    """Counting the nearer mode would give the heavy one of +-0.5 0.70, not 3/4; d' = 1.41."""
    data = line(means=[[-0.5], [0.5]])
    metric = modes(draws(data, 50_000, 0), None, data)
    assert metric.value < 4 * math.sqrt(0.75 * 0.25 / 50_000)


def test_a_lost_mode_is_off_by_its_weight():
    x = torch.full((500, 1), -2.0)
    metric = modes(x, x, line())
    assert metric.value == pytest.approx(0.25, abs=1e-4)
    assert 0.2 < metric.interval[0] < 0.25 == pytest.approx(metric.interval[1])


def test_modes_left_out_by_only_have_no_weight():
    data = named("data", "8gaussians", only=[0, 3])
    metric = modes(draws(data, 5000, 0), None, data)
    assert metric.extra["weights"] == [0.5, 0.5]
    assert metric.value < 4 * math.sqrt(0.25 / 5000)


def test_the_interval_of_mode_weights_covers():
    """Samples of weights 0.6, 0.4 against 3/4, 1/4: the true error is 0.15."""
    data, other = line(), line(weights=[6, 4])
    inside = 0
    for seed in range(100):
        low, high = modes(draws(other, 400, seed), None, data).interval
        inside += low <= 0.15 <= high
    assert inside >= 93  # Bonferroni over two components that are one: 97.5 %


# --- off the support -----------------------------------------------------------------------------


def test_off_support_of_squares():
    """Uniform points of [-4, 4]^2 are in light squares half the time."""
    data = named("data", "checkerboard")
    x = 8 * torch.rand(4000, 2, generator=torch.Generator().manual_seed(0)) - 4
    metric = off_support(x, draws(data, 4000, 0), data)
    assert abs(metric.value - 0.5) < 4 * metric.se
    assert metric.se == pytest.approx(math.sqrt(0.25 / 4000), rel=0.01)
    assert metric.extra["real"] == 0


@pytest.mark.parametrize(("count", "n"), [(0, 50), (3, 50), (50, 50), (210, 1000)])
def test_wilson_is_scipys(count, n):
    expected = binomtest(count, n).proportion_ci(method="wilson")
    assert wilson(count / n, n) == pytest.approx(tuple(expected), abs=1e-5)


# --- all of them ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "more"),
    [
        ("moons", {"off_support"}),
        ("8gaussians", {"nll", "modes", "off_support"}),
        ("pinwheel", set()),
    ],
)
def test_what_a_data_set_allows(name, more):
    usual_ones = {"sw2", "w2", "mmd2", "energy"} | more
    data = named("data", name)
    assert set(measures(data)) == usual_ones | {"ks", "correlation"}
    assert set(usual(data, data.shape)) == usual_ones


def test_exact_samples_are_at_the_floor_and_others_are_not():
    data, n = named("data", "gmm4"), 500
    names = list(measures(data))
    exact = point_metrics(names, draws(data, n, 7), data, n)
    moved = point_metrics(names, draws(data, n, 7) + 3, data, n)
    for name in set(names) - {"nll", "modes", "off_support", "correlation"}:
        # |value| of one set: the floor is its median
        assert abs(exact[name].value) < 4 * exact[name].floor
        assert moved[name].value > 4 * moved[name].floor
        assert moved[name].interval[0] > 0
    assert abs(exact["nll"].value - exact["nll"].floor) < 4 * exact["nll"].se
    assert moved["nll"].value > moved["nll"].floor + 4 * moved["nll"].se
    assert moved["off_support"].value > moved["off_support"].floor + 4 * moved["off_support"].se
    assert exact["modes"].value < 4 * exact["modes"].floor
    assert moved["modes"].value == pytest.approx(0.75, abs=0.01)  # all are nearest to (2, 2)


def test_floors_are_medians_of_real_sets():
    """Between exact sets the value is below the floor half the time."""
    data = named("data", "two_modes")
    for name in ("sw2", "energy"):
        value = measures(data)[name].value
        values = [value(draws(data, 200, 2 * i), draws(data, 200, 2 * i + 1)) for i in range(200)]
        limit = floor(name, data, 200)
        # the median of 8 or 32 values: a rank within 3.5 sd of the middle
        share = 0.5 * 3.5 / math.sqrt(measures(data)[name].pairs)
        low, high = np.quantile(values, [max(0, 0.5 - share), min(1, 0.5 + share)])
        assert low <= limit <= high


def test_real_data_are_not_their_own_reference():
    data = named("data", "two_modes")
    metric = point_metrics(["sw2"], draws(data, 100, 0), data, 100, seed=0)["sw2"]
    assert metric.value > 0.2 * metric.floor


def test_the_same_seed_gives_the_same_report():
    data = named("data", "moons")
    x = draws(data, 300, 3)
    first, second, other = (
        point_metrics(["sw2", "energy"], x, data, 200, seed)["sw2"].as_dict() for seed in (0, 0, 1)
    )
    assert first == second
    assert first["value"] != other["value"]
    assert first["n"] == 200  # the first 200 of 300


def test_exact_wasserstein_tells_the_rows_it_took(monkeypatch):
    data = named("data", "moons")
    monkeypatch.setattr(points.distances, "ASSIGNED", 100)
    metric = point_metrics(["w2"], draws(data, 300, 3), data, 300)["w2"]
    assert metric.n == 100
    assert metric.reference == "100 of 300 fresh points of Moons, seed 0"


def test_a_row_is_json():
    metric = Metric(1.0, 5, se=math.nan, interval=(0.0, 2.0), extra={"list": [1, math.inf]})
    row = json.loads(json.dumps(metric.as_dict(), allow_nan=False))
    assert row == {
        **{"value": 1.0, "n": 5, "se": None, "interval": [0.0, 2.0]},
        "extra": {"list": [1, None]},
    }
    assert Metric(1.0, 5).as_dict() == {"value": 1.0, "n": 5}


def test_errors_name_the_option():
    data = named("data", "moons")
    x = draws(data, 100, 0)
    with pytest.raises(FmdiffError, match=r"metrics=\[nll\].*energy, ks, mmd2, off_support, sw2"):
        point_metrics(["nll"], x, data, 100)
    with pytest.raises(FmdiffError, match="n=200 must be"):
        point_metrics(["sw2"], x, data, 200)
    x[3, 1] = math.nan
    with pytest.raises(FmdiffError, match="1 of n=100 samples are not finite"):
        point_metrics(["sw2"], x, data, 100)
    with pytest.raises(FmdiffError, match="shape"):
        point_metrics(["sw2"], x[:, :1], data, 100)


def test_nll_floor_is_the_entropy():
    data = line(means=[[0.0]], weights=None, cov=1.0)
    entropy = 0.5 * math.log(2 * math.pi * math.e)
    assert floor("nll", data, 2000) == pytest.approx(entropy, abs=0.02)
