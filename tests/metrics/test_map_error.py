"""The error of a flow map against the exact one: closed forms of one Gaussian, and what it bounds.

The maps of the tests are written out here: X = alpha_s m + sqrt(S_s / S_t) (x - alpha_t m) with
S = alpha^2 c + beta^2, for data N(m, c I).
"""

import math

import pytest
import torch
from conftest import PATHS

from fmdiff.build import named
from fmdiff.errors import FmdiffError
from fmdiff.exact import exact
from fmdiff.field import Field
from fmdiff.metrics import distances, map_error
from fmdiff.metrics.map_error import compare
from fmdiff.path import EDM

MEAN, VARIANCE, N = torch.tensor([1.0, -2.0], dtype=torch.float64), 0.25, 4000
SHIFT = torch.tensor([0.3, -0.4], dtype=torch.float64)  # of length 0.5


class Gaussian(Field):
    """The map of N(MEAN, variance I), followed by a function of its end."""

    two_times = True

    def __init__(self, path, variance=VARIANCE, after=lambda x, s: x):
        self.path, self.shape, self.variance, self.after = path, (2,), variance, after

    def spread(self, t):
        alpha, beta = self.path.row("x_t", t)
        return alpha**2 * self.variance + beta**2

    def flow(self, x_t, t, s):
        alpha_t, alpha_s = self.path.alpha(t), self.path.alpha(s)
        factor = (self.spread(s) / self.spread(t)).sqrt()
        return self.after(alpha_s * MEAN + factor * (x_t - alpha_t * MEAN), s)

    def interval(self, kind="v"):
        return 0.0, 1.0


def data(means=((1.0, -2.0),), cov=VARIANCE):
    return named("data", "gmm", means=[list(mean) for mean in means], cov=cov)


def errors_of(path, n=N, seed=0, times=4, **more):
    return compare(Gaussian(path, **more), Gaussian(path), data(), times, n, seed)


paths = pytest.mark.parametrize("name", ["condot", "vp", "edm"])


@paths
def test_a_shift_of_the_map_is_its_error(name):
    path = PATHS[name]
    errors = errors_of(path, after=lambda x, s: x + SHIFT)
    assert len(errors.pairs) == 4 * 5 / 2
    for pair in errors.pairs:
        s = torch.tensor(pair.s, dtype=torch.float64)
        wanted = 0.5 / (path.alpha(s) + path.beta(s)).item() / data().std
        assert pair.rms == pytest.approx(wanted, rel=1e-12)
        assert pair.median == pytest.approx(wanted, rel=1e-12)
        assert pair.rms_error < 1e-12 and pair.outliers is None


@paths
def test_the_errors_of_a_gaussian_of_another_variance(name):
    """rms^2 = d S_t (sqrt(S'_s/S'_t) - sqrt(S_s/S_t))^2; in the plane median^2 = rms^2 log 2."""
    path, other = PATHS[name], 0.49
    errors = errors_of(path, variance=other, n=20_000)
    exact, wrong = Gaussian(path), Gaussian(path, other)
    sizes = set()
    for pair in errors.pairs:
        t, s = (torch.tensor(a, dtype=torch.float64) for a in (pair.t, pair.s))
        stretch = [(field.spread(s) / field.spread(t)).sqrt() for field in (wrong, exact)]
        size = (2 * exact.spread(t)).sqrt() * abs(stretch[0] - stretch[1])
        wanted = (size / (path.alpha(s) + path.beta(s))).item() / data().std
        assert abs(pair.rms - wanted) < 4.5 * pair.rms_error
        # the relative error of the mean of squares of 2 d.o.f. is 1/sqrt(n), of its root half
        assert pair.rms_error == pytest.approx(wanted / 2 / math.sqrt(20_000), rel=0.1)
        assert pair.median == pytest.approx(wanted * math.sqrt(math.log(2)), rel=0.03)
        sizes.add(round(wanted, 6))
    assert len(sizes) == len(errors.pairs)  # so t and s are not confused


@paths
def test_the_times_are_equal_parts_of_straight_time(name):
    path = PATHS[name]
    starts, ends, rms = map_error.triangle(errors_of(path).pairs, "rms")
    r = path.r(torch.tensor([*starts, ends[-1]], dtype=torch.float64))
    assert r.diff() == pytest.approx((r[-1] - r[0]).expand(4) / 4, abs=1e-9)
    assert starts[0] == 0 and ends[-1] == 1 and starts[1:] == ends[:-1]
    for i, row in enumerate(rms):
        assert [math.isnan(value) for value in row] == [False] * (i + 1) + [True] * (3 - i)


def test_the_exact_map_has_no_error_in_any_number_of_jumps():
    errors = errors_of(PATHS["vp"])
    assert [row.jumps for row in errors.rows] == [1, 2, 4, 8]
    assert max(row.rms for row in (*errors.rows, *errors.pairs)) < 1e-12


def test_jumps_in_a_row_add_their_shifts():
    """On the straight path a shift before a jump is scaled by sqrt(S_s / S_t)."""
    path = PATHS["condot"]
    errors = errors_of(path, after=lambda x, s: x + SHIFT)
    spread = Gaussian(path).spread
    for row in errors.rows:
        ends = torch.linspace(0, 1, row.jumps + 1, dtype=torch.float64)[1:]
        wanted = 0.5 * (spread(ends[-1]) / spread(ends)).sqrt().sum().item() / data().std
        assert row.rms == pytest.approx(wanted, rel=1e-12)
        assert (row.t, row.s) == (0, 1)


def test_the_standard_error_is_that_of_repeated_draws():
    rows = [errors_of(PATHS["condot"], 300, seed, 1, variance=1.0).rows[0] for seed in range(60)]
    rms = torch.tensor([row.rms for row in rows])
    error = sum(row.rms_error for row in rows) / len(rows)
    assert rms.std().item() == pytest.approx(error, rel=0.3)  # 3 of its own standard errors


# the last of these paths begins with much of the data
@pytest.mark.parametrize("path", [PATHS["vp"], EDM(0.002, 0.5, 7.0)], ids=["vp", "edm"])
def test_the_states_are_of_the_path_and_the_seed_chooses_them(path):
    """The map sees exact states of p_t: their mean and variance are those of the path."""
    states = {}

    class Witness(Gaussian):
        def flow(self, x_t, t, s):
            states[t.item()] = x_t
            return super().flow(x_t, t, s)

    field = Witness(path)
    compare(field, Gaussian(path), data(), 4, N)
    assert len(states) == 4 + 4  # by 8 jumps in a row there are four more
    for t, x in states.items():
        at = torch.tensor(t, dtype=torch.float64)
        size = field.spread(at).sqrt().item()
        assert (x.mean(0) - path.alpha(at) * MEAN).abs().max() < 4 * size / math.sqrt(N)
        assert x.std(0).tolist() == pytest.approx([size] * 2, rel=0.06)
    first, again, other = (errors_of(path, seed=k, variance=1.0).rows[0].rms for k in (0, 0, 1))
    assert first == again != other


def certificate_of(name, **more):
    path = PATHS[name]
    errors = errors_of(path, **more)
    bound = map_error.metrics(errors, path, N)["w2_bound"]
    return bound, map_error.certificate(errors, bound, path)


@paths
def test_the_certificate_of_a_shift_is_its_w2(name):
    """W2(N(m, C), N(m + c, C)) = |c|, in the units of the data."""
    bound, _ = certificate_of(name, after=lambda x, s: x + SHIFT)
    assert bound.value == pytest.approx(0.5, rel=1e-12) and bound.se < 1e-12


@paths
def test_the_certificate_of_a_stretch_is_its_w2(name):
    """W2(N(m, a^2 I), N(m, b^2 I)) = sqrt(d) |a - b|."""
    path, ends = PATHS[name], torch.tensor([0.0, 1.0], dtype=torch.float64)
    bound, _ = certificate_of(name, variance=0.49)
    first, last = Gaussian(path, 0.49).spread(ends)
    stds = [(last / first * Gaussian(path).spread(ends[0])).sqrt(), VARIANCE**0.5]
    if name == "edm":  # its last states hold noise
        stds[1] = math.sqrt(VARIANCE + 0.002**2)
    wanted = math.sqrt(2) * abs(stds[0] - stds[1]).item()
    assert abs(bound.value - wanted) < 4.5 * bound.se and bound.se < 0.02 * wanted
    low, high = bound.interval
    assert low < bound.value < high


def test_the_certificate_is_above_the_w2_of_a_turn():
    """Turned by 90 degrees about its mean, a round Gaussian stays as it is: W2 = 0."""

    def turn(x, s):
        return MEAN + (x - MEAN) @ torch.tensor([[0.0, 1.0], [-1.0, 0.0]], dtype=torch.float64)

    bound, _ = certificate_of("condot", after=turn)
    wanted = math.sqrt(2 * 2 * VARIANCE)  # |x - Rx|^2 = 2 |x|^2
    assert abs(bound.value - wanted) < 4.5 * bound.se
    x = turn(MEAN + 0.5 * torch.randn(1000, 2, dtype=torch.float64), 1)
    assert distances.wasserstein2(x, data().sample(0, 1000, 0)[0].double()) < bound.value / 3


@pytest.mark.parametrize(
    ("name", "start", "end"),
    [
        ("condot", "noise", "data"),
        ("vp", "exact states at t=0 (r=0.00653)", "data"),
        ("edm", "exact states at t=0 (r=0.0123)", "data with the noise of t=1 (1-r=0.002)"),
        ("lipman", "noise", "data with the noise of t=1 (1-r=0.0099)"),
    ],
)
def test_the_certificate_says_what_is_bounded(name, start, end):
    bound, told = certificate_of(name, variance=0.49)
    assert told.startswith(f"one jump from {start}: W2(samples, {end}) <= {bound.value:.4g} +- ")
    assert told.endswith("of the data's std")
    assert f"{bound.value / data().std:.2g}"[:3] in told


def test_outliers_lie_beyond_half_the_distance_of_two_modes():
    modes = data(((0, 0), (3, 0), (0, 8)), 0.01)
    assert map_error.apart(modes) == pytest.approx(1.5 / modes.std)
    assert map_error.apart(data()) is None
    assert map_error.apart(data(((1, 1), (1, 1)), 0.01)) is None
    row = map_error._row(torch.tensor([0.1, 0.2, 0.3, 0.4, 0.7]), 0.0, 1.0, 1, 0.5)
    assert row.outliers == pytest.approx(0.2) and row.median == pytest.approx(0.3)


def test_the_mean_over_pairs():
    errors = errors_of(PATHS["condot"], variance=0.49)
    metric = map_error.metrics(errors, PATHS["condot"], N)["map_rms"]
    mean = sum(pair.rms**2 for pair in errors.pairs) / 10
    assert metric.value == pytest.approx(math.sqrt(mean))
    least, most = (f(p.rms_error / p.rms for p in errors.pairs) for f in (min, max))
    assert least <= metric.se / metric.value <= most


def test_a_map_that_jumps_to_the_data_alone_is_compared_there():
    path = PATHS["condot"]
    field = Gaussian(path, after=lambda x, s: x + SHIFT * (1 + 9 * (s < 1)))
    field.consistency = True
    errors = compare(field, Gaussian(path), data(), 4, 50)
    assert [pair.s for pair in errors.pairs] == [1] * 4
    assert [row.jumps for row in errors.rows] == [1]
    for row in (*errors.pairs, *errors.rows):
        assert row.rms == pytest.approx(0.5 / data().std, rel=1e-12)


def test_states_that_are_not_finite_are_refused():
    with pytest.raises(FmdiffError, match=r"not finite, from t=0 to s=0\.25: its weights"):
        errors_of(PATHS["condot"], after=lambda x, s: x / 0)


def test_the_labels_of_a_conditional_map_are_bound():
    """Within a class this mixture is one Gaussian, and its ends are about that class's mean."""
    both = named("data", "gmm", means=[[-4, 0], [4, 0]], cov=0.25, conditional=True)
    alike = named("data", "gmm", means=[[-4, 0], [4, 0]], cov=0.25)
    field, blind = (exact(each, PATHS["condot"]) for each in (both, alike))
    assert compare(field, field, both, 2, 40).rows[0].rms < 1e-9
    row = compare(blind, field, both, 2, 40).rows[0]
    # the label chooses the mode whatever the noise, which alone would choose the other for half
    assert 0.3 < row.outliers < 0.7
