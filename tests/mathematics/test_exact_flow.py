"""The exact flow of closed-form fields against formulas, other integrators and its own laws."""

import math

import numpy as np
import pytest
import torch
from conftest import COVS, MEANS, PATHS, WEIGHTS, every_path
from scipy.integrate import solve_ivp
from torch.func import jvp

from fmdiff.along import Straight
from fmdiff.errors import Failed
from fmdiff.exact import Empirical, Mixture
from fmdiff.field import FunctionField
from fmdiff.path import CondOT, expand
from fmdiff.solvers.mean_velocity import mean_velocity

LABELS = torch.tensor([0, 1, 0])
Y = torch.tensor([0, 1, 2, 0, 1, 2])  # two components, one, and all of them
POINTS = torch.tensor([[1.0, 0.3], [-0.7, 1.1], [-0.2, -1.4]], dtype=torch.float64)


def mixture(path, y=None):
    return Mixture(path, WEIGHTS, MEANS, COVS, LABELS, y)


def three_points(path, y=None):
    return Empirical(path, POINTS, LABELS, 2, y)


def double(value):
    return torch.as_tensor(value, dtype=torch.float64)


def states(path, t, n=6, seed=0):
    """States (n, 2) at times t () or (n,) where p_t has its mass."""
    generator = torch.Generator().manual_seed(seed)
    x = MEANS[torch.randint(3, (n,), generator=generator)]
    noise = torch.randn(2, n, 2, generator=generator, dtype=torch.float64)
    return path.mix(x + 0.7 * noise[0], noise[1], t)


def size(path, t):
    return path.alpha(t) + path.beta(t)


def near(path, one, other, t, limit=1e-9):
    """Whether states at t () or (n,) agree in straight coordinates."""
    return ((one - other) / expand(size(path, t), one)).abs().max() < limit


def integral(field, x, t, s):
    """The states at s of x at t by scipy's LSODA, in the field's own coordinates."""

    def velocity(time, flat):
        at = torch.from_numpy(flat).view_as(x)
        return field(at, double(time)).flatten().numpy()

    found = solve_ivp(
        velocity, (t.item(), s.item()), x.flatten().numpy(), "LSODA", rtol=1e-12, atol=1e-13
    )
    assert found.success
    return torch.from_numpy(found.y[:, -1]).view_as(x)


@every_path
@pytest.mark.parametrize(("t", "s"), [(0.1, 0.9), (0.8, 0.15)])
def test_the_flow_is_that_of_another_integrator(path, t, s):
    t, s = double(t), double(s)
    field, x = mixture(path, Y), states(path, t)
    assert near(path, field.flow(x, t, s), integral(field, x, t, s), s)


@every_path
@pytest.mark.parametrize("y", [None, Y], ids=["all", "labels"])
def test_the_flow_comes_back_and_its_parts_make_the_whole(path, y):
    field = mixture(path, y)
    t = double([0.0, 0.0, 0.2, 0.5, 0.9, 1.0])
    m = double([0.5, 1.0, 0.1, 0.9, 0.3, 0.6])
    s = double([1.0, 0.4, 0.7, 0.6, 0.0, 0.0])
    x = states(path, t)
    middle, end = field.flow(x, t, m), field.flow(x, t, s)
    assert near(path, field.flow(end, s, t), x, t)
    assert near(path, field.flow(middle, m, s), end, s)
    assert ((end - x).abs() > 1e-3).any(1).all()


@every_path
@pytest.mark.parametrize(("t", "s"), [(0.0, 1.0), (0.3, 0.7), (1.0, 0.2)])
def test_the_flow_of_one_gaussian_is_a_formula(path, t, s):
    t, s = double(t), double(s)
    x = states(path, t)
    spread, axes = torch.linalg.eigh(COVS[1])
    (a_t, b_t), (a_s, b_s) = path.row("x_t", t), path.row("x_t", s)
    ratio = ((a_s**2 * spread + b_s**2) / (a_t**2 * spread + b_t**2)).sqrt()
    wanted = a_s * MEANS[1] + (ratio * ((x - a_t * MEANS[1]) @ axes)) @ axes.T
    alone = Mixture(path, WEIGHTS[1:2], MEANS[1:2], COVS[1:2])
    for field in (alone, mixture(path, torch.ones(6, dtype=torch.long))):
        assert near(path, field.flow(x, t, s), wanted, s, 1e-12)
    other = double([0.0, 1.0, 0.0])  # components without weight cannot explain a sample
    assert near(path, Mixture(path, other, MEANS, COVS).flow(x, t, s), wanted, s, 1e-12)


@pytest.mark.parametrize("field", [mixture(CondOT(), Y).select(torch.tensor([1, 4]))])
def test_the_integrator_gives_the_formula_of_one_gaussian(field):
    t, s = double([0.0, 0.9]), double([1.0, 0.1])
    x = states(CondOT(), t, 2)
    formula, numbers = field.predict(x, t, "straight", s), mean_velocity(field, x, t, s - t)
    torch.testing.assert_close(numbers, formula, rtol=0, atol=1e-11)


@every_path
def test_all_paths_have_one_flow(path):
    t, s = double([0.0, 0.2, 0.4, 0.6, 0.8, 1.0]), double([0.5, 0.9, 0.6, 1.0, 0.3, 0.7])
    field, x = mixture(path, Y), states(path, t)
    z, r, q = x / size(path, t)[:, None], path.r(t), path.r(s)
    wanted = size(path, s)[:, None] * mixture(CondOT(), Y).flow(z, r, q)
    assert near(path, field.flow(x, t, s), wanted, s, 1e-12)
    assert near(path, Straight(field).flow(z, r, q), wanted / size(path, s)[:, None], q * 0, 1e-9)


def quadrature(field, x, t, s):
    """The mean of the straight velocity over the flow, by ten Gauss nodes in straight time."""
    path = field.path
    nodes, weights = np.polynomial.legendre.leggauss(10)
    mean = torch.zeros_like(x)
    for node, weight in zip((1 + nodes) / 2, weights / 2, strict=True):
        between = path.time_of_r(path.r(t) + node * (path.r(s) - path.r(t)))
        at = field.flow(x, t, between)
        mean += weight * field.predict(at, between, "straight")
    return mean


@pytest.mark.parametrize("make", [mixture, three_points])
@pytest.mark.parametrize("name", ["condot", "vp", "edm"])
def test_the_mean_velocity_is_a_mean_however_near_the_times_are(make, name):
    path = PATHS[name]
    for gap in (0.0, 1e-12, 1e-9, 1e-6, 1e-4, 1e-2, -1e-12, -1e-6, -1e-2):
        t = double([0.05, 0.3, 0.5, 0.6, 0.7, 0.9])
        field, x = make(path, Y), states(path, t)
        u = field.predict(x, t, "straight", t + gap)
        torch.testing.assert_close(u, quadrature(field, x, t, t + gap), rtol=1e-9, atol=1e-9)
        if gap == 0:
            v = field.predict(x, t, "straight")
            torch.testing.assert_close(u, v, rtol=1e-14, atol=1e-14)


@every_path
@pytest.mark.parametrize("make", [mixture, three_points])
def test_from_a_time_to_itself_it_is_the_field(path, make):
    t = double([0.1, 0.3, 0.5, 0.6, 0.7, 0.9])
    field, x = make(path, Y), states(path, t)
    for kind in ("x", "eps", "v", "score", "v_sh", "straight"):
        here, there = field.predict(x, t, kind, t), field.predict(x, t, kind)
        torch.testing.assert_close(here, there, rtol=1e-11, atol=1e-11)
    torch.testing.assert_close(field.mean_velocity(x, t, t), field(x, t), rtol=1e-12, atol=1e-12)
    assert torch.equal(field.flow(x, t, t), field.flow(x, t, t.clone()))
    assert near(path, field.flow(x, t, t), x, t, 1e-14)


@pytest.mark.parametrize("name", ["condot", "vp", "cosine", "edm"])
def test_the_prediction_of_x_at_the_end_is_the_sample(name):
    """The consistency function: z + (1 - r) u, here on paths that end without noise."""
    path = PATHS[name]
    t = double([0.0, 0.1, 0.3, 0.5, 0.7, 0.9])
    field, x, one = mixture(path, Y), states(path, t), double(1.0)
    z, r = x / size(path, t)[:, None], path.r(t)[:, None]
    wanted = z + (1 - r) * field.predict(x, t, "straight", one)
    torch.testing.assert_close(field.predict(x, t, "x", one), wanted, rtol=0, atol=1e-12)
    if path.beta(one) == 0:
        torch.testing.assert_close(field.flow(x, t, one), wanted, rtol=0, atol=1e-12)


def test_quantiles_stay_on_the_line():
    """In one dimension the flow carries p_t to p_s, so F_s(X(x, t, s)) = F_t(x)."""
    weights, means, variances = double([0.3, 0.5, 0.2]), double([-1.0, 0.2, 1.5]), double(0.04)
    for name in ("condot", "vp", "edm"):
        path = PATHS[name]
        covs = variances.expand(3, 1, 1)
        field = Mixture(path, weights, means[:, None], covs)

        def below(x, t, path=path):
            a, b = path.row("x_t", t)
            scaled = (x - a * means) / (a**2 * variances + b**2).sqrt()
            return torch.special.ndtr(scaled) @ weights

        t, s = double(0.1), double(0.97)
        x = size(path, t) * torch.linspace(-1.5, 1.5, 31, dtype=torch.float64)[:, None]
        forth = field.flow(x, t, s)
        torch.testing.assert_close(below(forth, s), below(x, t), rtol=0, atol=1e-11)
        assert below(x, t).min() < 0.1 < 0.9 < below(x, t).max()


def jacobian(flow, x):
    """dX/dx (n, 2, 2), both columns by one call: the flow takes the rows of x twice."""
    axes = torch.eye(2).double().repeat_interleave(len(x), 0)
    columns = jvp(flow, (x.repeat(2, 1),), (axes,))[1]
    return columns.view(2, len(x), 2).permute(1, 2, 0)


@pytest.mark.parametrize("name", ["condot", pytest.param("edm", marks=pytest.mark.slow)])
@pytest.mark.parametrize("y", [pytest.param(None, marks=pytest.mark.slow, id="all"), Y])
def test_the_density_follows_the_flow(name, y):
    """log p_s(X) + log |det dX/dx| = log p_t(x), so samples of p_t become samples of p_s."""
    path, t, s = PATHS[name], double(0.2), double(0.95)
    field, x = mixture(path, y), states(path, t)
    there = field.log_prob(field.flow(x, t, s), s)
    twice = field if y is None else mixture(path, y.repeat(2))
    change = torch.linalg.slogdet(jacobian(lambda x: twice.flow(x, t, s), x))[1]
    torch.testing.assert_close(there + change, field.log_prob(x, t), rtol=0, atol=1e-9)
    assert change.abs().min() > 1e-3


@pytest.mark.parametrize("make", [mixture, three_points])
@pytest.mark.parametrize(
    ("name", "gap"),
    [
        ("condot", 0.05),
        ("vp", -0.02),
        pytest.param("cosine", 0.4, marks=pytest.mark.slow),
        pytest.param("edm", -0.3, marks=pytest.mark.slow),
        pytest.param("edm", 0.4, marks=pytest.mark.slow),
    ],
)
def test_derivatives_of_the_flow(name, gap, make):
    """dX/ds = v(X, s), dX/dt = -(dX/dx) v(x, t), and dX/dx by differences."""
    path = PATHS[name]
    t = double([0.31, 0.35, 0.4, 0.45, 0.49, 0.55])
    s = t + gap
    field, x, one = make(path, Y), states(path, t), torch.ones(6, dtype=torch.float64)
    end, slope = jvp(lambda s: field.flow(x, t, s), (s,), (one,))
    torch.testing.assert_close(slope, field(end, s), rtol=1e-9, atol=1e-9)
    slope = jvp(lambda t: field.flow(x, t, s), (t,), (one,))[1]
    along = jvp(lambda x: field.flow(x, t, s), (x,), (field(x, t),))[1]
    torch.testing.assert_close(slope, -along, rtol=1e-9, atol=1e-9)
    h = 1e-5 * size(path, t)[:, None] * double([0.6, -0.8])
    along = jvp(lambda x: field.flow(x, t, s), (x,), (h,))[1]
    steps = (field.flow(x + h, t, s) - field.flow(x - h, t, s)) / 2
    torch.testing.assert_close(along, steps, rtol=1e-6, atol=1e-10)


@pytest.mark.parametrize("make", [mixture, three_points])
@pytest.mark.parametrize(
    "gap",
    [
        pytest.param(0.5, marks=pytest.mark.slow),
        pytest.param(-0.3, marks=pytest.mark.slow),
        0.01,
        1e-5,
        1e-9,
        0.0,
        -1e-5,
    ],
)
def test_derivatives_of_the_mean_velocity(make, gap):
    """(s - t) du/ds = v(X, s) - u and u = v + (s - t)(du/dt + v . grad u) on the straight path.

    Where s is near t, du/ds is half the acceleration Dv/Dt, and du/dt + v . grad u as well.
    """
    t = double([0.05, 0.31, 0.35, 0.4, 0.45, 0.49])
    s, one = t + gap, torch.ones(6, dtype=torch.float64)
    field, x = make(CondOT(), Y), states(CondOT(), t)
    v = field(x, t)

    def u(x, t, s):
        return field.predict(x, t, "straight", s)

    value, by_end = jvp(lambda s: u(x, t, s), (s,), (one,))
    by_start = jvp(lambda x, t: u(x, t, s), (x, t), (v, one))[1]
    last = field(field.flow(x, t, s), s)
    torch.testing.assert_close(gap * by_end, last - value, rtol=0, atol=1e-9)
    torch.testing.assert_close(gap * by_start, value - v, rtol=0, atol=1e-9)
    if abs(gap) < 1e-8:
        half = jvp(field, (x, t), (v, one))[1] / 2
        torch.testing.assert_close(by_end, half, rtol=0, atol=1e-7)
        torch.testing.assert_close(by_start, half, rtol=0, atol=1e-7)
        assert half.abs().max() > 1e-2


@pytest.mark.parametrize("name", ["condot", "vp", "edm"])
@pytest.mark.parametrize("y", [None, Y], ids=["all", "labels"])
def test_the_flow_of_three_points(name, y):
    path = PATHS[name]
    field, t = three_points(path, y), double(0.1)
    s = path.time_of_r(double(0.97))
    x = states(path, t)
    end = field.flow(x, t, s)
    assert near(path, end, integral(field, x, t, s), s)
    assert near(path, field.flow(end, s, t), x, t)


@pytest.mark.parametrize("name", ["condot", "vp"])
def test_the_flow_towards_points_ends_with_the_jump(name):
    path = PATHS[name]
    field, one, zero = three_points(path, Y), double(1.0), double(0.0)
    t = double([0.0, 0.1, 0.3, 0.5, 0.7, 0.9])
    edge = double(field.interval()[1])
    x = states(path, t)
    before, end = field.flow(x, t, edge), field.flow(x, t, one)
    guess = field.predict(before, edge, "x")
    torch.testing.assert_close(end, guess, rtol=0, atol=1e-9)
    assert torch.cdist(end, POINTS).min(1).values.max() < 1e-9
    later = path.time_of_r(double(0.9995))
    between = field.flow(x, t, later)  # half-way on a line
    z = (before / size(path, edge) + guess) / 2
    assert near(path, between, size(path, later) * z, later, 1e-6)
    torch.testing.assert_close(field.flow(between, later, one), end, rtol=0, atol=1e-8)
    torch.testing.assert_close(field.flow(end, one, one), end, rtol=0, atol=1e-14)
    assert field.flow(between, later, zero).isfinite().all()
    assert field.flow(end, one, zero).isfinite().all()


def test_a_mixture_of_points_flows_like_the_points():
    t, s = double([0.0, 0.1, 0.3, 0.5, 0.7, 0.9]), double([1.0, 0.9, 0.9, 0.1, 1.0, 0.0])
    x, third = states(CondOT(), t), torch.ones(3, dtype=torch.float64)
    singular = Mixture(CondOT(), third, POINTS, torch.zeros(3, 2, 2).double(), LABELS, Y)
    torch.testing.assert_close(
        singular.flow(x, t, s), three_points(CondOT(), Y).flow(x, t, s), rtol=0, atol=1e-9
    )


def test_images_flow_like_their_rows_of_numbers():
    generator = torch.Generator().manual_seed(3)
    images = torch.randn(5, 1, 2, 3, generator=generator)
    x = torch.randn(4, 1, 2, 3, generator=generator, dtype=torch.float64)
    t, s = double([0.0, 0.2, 0.5, 0.8]), double([1.0, 0.7, 0.1, 0.9])
    flat = Empirical(PATHS["vp"], images.flatten(1), None, 0).flow(x.flatten(1), t, s)
    whole = Empirical(PATHS["vp"], images, None, 0).flow(x, t, s)
    torch.testing.assert_close(whole.flatten(1), flat, rtol=0, atol=1e-12)


@pytest.mark.parametrize("make", [mixture, three_points])
def test_states_at_several_times_come_from_one_flow(make):
    t, ends = double(0.1), double([0.1, 0.3, 0.8, 0.99])
    field = make(PATHS["vp"], Y)
    x = states(PATHS["vp"], t)
    several = field.flow_through(x, t, ends)
    assert several.shape == (4, 6, 2)
    for state, s in zip(several, ends, strict=True):
        assert near(PATHS["vp"], state, field.flow(x, t, s), s)


@pytest.mark.parametrize("make", [mixture, three_points])
def test_float32_is_computed_in_float64(make):
    path = PATHS["edm"]
    t, s = torch.tensor([0.0, 0.1, 0.3, 0.5, 0.7, 0.9]), torch.tensor(1.0)
    field, x = make(path, Y), states(path, t.double()).float()
    for value, wanted in (
        (field.flow(x, t, s), field.flow(x.double(), t.double(), s.double())),
        (field.predict(x, t, "x", s), field.predict(x.double(), t.double(), "x", s.double())),
    ):
        assert value.dtype == torch.float32
        assert torch.equal(value, wanted.float())


def test_samples_do_not_influence_each_other_and_count_once():
    t, s = double([0.0, 0.1, 0.3, 0.5, 0.7, 0.9]), double(0.8)
    field, x = mixture(CondOT(), Y), states(CondOT(), t)
    whole = field.predict(x, t, "v", s)
    assert field.evaluations == 6
    for i in range(6):
        alone = field.select(torch.tensor([i])).predict(x[i : i + 1], t[i : i + 1], "v", s)
        torch.testing.assert_close(alone, whole[i : i + 1], rtol=0, atol=1e-10)
    same = double(0.3)
    torch.testing.assert_close(
        field.flow(x, same, s), field.flow(x, same.expand(6), s.expand(6)), rtol=0, atol=1e-14
    )


def test_a_narrow_mixture_keeps_its_accuracy():
    """Stds of 1e-3 beside means of 1: the last part of the flow is a thousandth of the time."""
    field = Mixture(CondOT(), WEIGHTS, MEANS, 1e-6 * COVS)
    x, zero, one = states(CondOT(), double(0.0)), double(0.0), double(1.0)
    end = field.flow(x, zero, one)
    back = field.flow(end, one, zero)
    # the way back stretches what was pressed together a thousandfold
    torch.testing.assert_close(back, x, rtol=0, atol=2e-8)
    nearest = torch.cdist(end, MEANS).min(1).values
    assert nearest.max() < 5e-3


def test_a_field_that_is_not_finite_is_refused():
    def broken(x, t):
        return x * math.nan

    x = torch.ones(2, 1, dtype=torch.float64)
    with pytest.raises(Failed, match="past the straight time 0:"):
        mean_velocity(FunctionField(broken, CondOT(), (1,)), x, double([0.0, 0.0]), double([1, 1]))
