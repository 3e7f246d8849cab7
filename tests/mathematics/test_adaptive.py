"""Adaptive steps on exact fields: tolerance, price, and samples that do not see each other."""

import math
from itertools import pairwise

import numpy as np
import pytest
import torch
from test_solvers import RungeKutta, eight_gaussians, noise

from fmdiff.along import Along, Straight
from fmdiff.errors import FmdiffError
from fmdiff.exact import Mixture
from fmdiff.integration import integrate
from fmdiff.path import VP, CondOT, Cosine
from fmdiff.solvers.adaptive import Dopri5

ENDS = torch.tensor([0.0, 1.0], dtype=torch.float64)


def dopri5(tol, max_nfe=2000):
    return Dopri5(tol, tol, max_nfe)


def solve(solver, field, x, times=ENDS):
    return integrate(solver, field, x, times)


@pytest.fixture(scope="module")
def truth():
    field, x = eight_gaussians(CondOT()), noise(16)
    return field, x, solve(dopri5(1e-12, 10_000), field, x)


def test_the_reference_is_that_of_torchdiffeq(truth):
    torchdiffeq = pytest.importorskip("torchdiffeq")
    field, x, end = truth
    theirs = torchdiffeq.odeint(
        lambda t, x: field(x, t), x, ENDS, rtol=1e-12, atol=1e-12, method="dopri5"
    )[-1]
    difference = (theirs - end).abs().max().item()
    print(f"largest difference {difference:.1e}")
    assert difference < 1e-9


def test_the_tableau_is_that_of_scipy():
    from scipy.integrate import RK45

    for i, row in enumerate(Dopri5.a[:-1]):
        np.testing.assert_allclose(row, RK45.A[i + 1][: i + 1], rtol=1e-15)
        assert sum(row) == pytest.approx(RK45.C[i + 1], rel=1e-14)
    np.testing.assert_allclose(Dopri5.a[-1], RK45.B, rtol=1e-15)
    np.testing.assert_allclose(np.abs(Dopri5.d), np.abs(RK45.E), rtol=1e-13)


def test_declared_order_is_that_of_its_fixed_steps():
    class Fixed(RungeKutta):
        a, b = Dopri5.a[:-1], Dopri5.a[-1]

    def smooth(x, t):
        return torch.exp(2 * t) - x / 4

    # x' + x/4 = exp 2t and x(0) = 1
    truth = (4 * math.exp(2) + 5 * math.exp(-1 / 4)) / 9
    x = torch.ones(1, 1, dtype=torch.float64)
    grids = [torch.linspace(0, 1, n + 1, dtype=torch.float64) for n in (10, 20, 40)]
    errors = [abs(integrate(Fixed(), smooth, x, times).item() - truth) for times in grids]
    slopes = [math.log2(a / b) for a, b in pairwise(errors)]
    print(slopes)
    assert slopes[-1] == pytest.approx(Dopri5.order, abs=0.15), slopes


def test_every_sample_reaches_the_tolerance(truth):
    field, x, end = truth
    errors = []
    for tol in (1e-3, 1e-5, 1e-7):
        off = solve(dopri5(tol), field, x) - end
        scaled = (off / (tol + tol * end.abs())).square().mean(1).sqrt()
        print(f"tol {tol}: worst sample {scaled.max().item():.2g} tolerances")
        assert scaled.median() < 4 and scaled.square().mean().sqrt() < 10
        errors.append(off.abs().max().item())
    assert errors[1] < errors[0] / 10 and errors[2] < errors[1] / 10


def test_price_is_what_is_counted_and_falls_with_the_tolerance(truth):
    field, x, _ = truth
    paid = []
    for tol in (1e-3, 1e-6, 1e-9):
        field.reset()
        solver = dopri5(tol)
        _, (_, _, spent) = solver.step(field, x, *ENDS, None, None)
        assert field.evaluations == spent.sum()  # a sample that has arrived is not asked again
        assert (spent % 6 == 2).all()  # two to begin, six a step: the last slope is used again
        assert spent.min() < spent.max() or tol == 1e-3
        paid.append(spent.max().item())
    assert paid == sorted(paid) and paid[0] < 40
    assert solver.nfe(0) == 0
    with pytest.raises(FmdiffError, match="known after the run"):
        solver.nfe(3)


def test_a_sample_does_not_see_its_neighbours(truth):
    field, x, _ = truth
    hard = torch.cat([x, 30 * noise(3, 1)])  # far outside, where other steps are needed
    together = solve(dopri5(1e-5), field, hard)
    alone = torch.cat([solve(dopri5(1e-5), field, row[None]) for row in hard])
    torch.testing.assert_close(together, alone, rtol=0, atol=1e-12)
    # nor does its budget
    spent = dopri5(1e-5).step(field, hard, *ENDS, None, None)[1][2]
    easy = spent.argmin()
    assert spent.min() < spent.max()
    solve(dopri5(1e-5, spent.min().item()), field, hard[easy][None])


def test_stops_on_the_way_lie_on_the_same_curve(truth):
    field, x, end = truth
    times, seen = torch.tensor([0.0, 0.3, 0.31, 0.7, 1.0], dtype=torch.float64), []
    field.reset()
    got = integrate(dopri5(1e-8), field, x, times, observe=lambda t, x: seen.append(x))
    torch.testing.assert_close(got, end, rtol=0, atol=1e-6)
    stops, paid = len(times) - 2, field.evaluations / len(x)
    field.reset()
    middle = solve(dopri5(1e-8), field, x, torch.tensor([0.0, 0.31], dtype=torch.float64))
    torch.testing.assert_close(seen[1], middle, rtol=0, atol=1e-7)
    field.reset()
    solve(dopri5(1e-8), field, x)
    # a stop costs little: slope and length of step go on behind it
    assert paid < field.evaluations / len(x) + 12 * stops


@pytest.mark.parametrize("path", [VP(), Cosine()], ids=["vp", "cosine"])
def test_other_paths_in_their_own_and_in_straight_coordinates(path, truth):
    straight, x, _ = truth
    times = torch.tensor([0.05, 0.95], dtype=torch.float64)
    field = Along(straight, path)
    a, b = path.row("x_t", times)
    want = solve(dopri5(1e-9), straight, x, a / (a + b))
    for dtype, tol, near in ((torch.float64, 1e-9, 1e-6), (torch.float32, 1e-5, 5e-3)):
        got = solve(dopri5(tol), field, ((a + b)[0] * x).to(dtype), times)
        assert got.dtype == dtype
        torch.testing.assert_close(got / (a + b)[-1], want.to(dtype), rtol=0, atol=near)
    assert isinstance(Straight(field).path, CondOT)


def test_linear_equation_and_images():
    class Decay(Mixture):
        def __init__(self):
            pass

        def __call__(self, x, t):
            return -2 * x * (1 + t.reshape(-1, 1, 1, 1))

    x = torch.linspace(0.1, 4, 24, dtype=torch.float64).reshape(2, 3, 2, 2)
    got = solve(dopri5(1e-10), Decay(), x)
    torch.testing.assert_close(got, x * math.exp(-3), rtol=1e-8, atol=0)


def test_too_few_evaluations_and_wrong_tolerances_are_refused(truth):
    field, x, _ = truth
    with pytest.raises(
        FmdiffError, match=r"solver\.max_nfe=20 .*t=1: at t=0\.\d+ .*solver\.rtol=1e-05"
    ):
        solve(dopri5(1e-5, 20), field, x)
    with pytest.raises(FmdiffError, match=r"solver\.max_nfe=50 "):
        solve(dopri5(1e-5, 50), lambda x, t: x * math.nan, x)
    for rtol, atol, name in ((0, 1e-5, "rtol"), (1e-5, -1, "atol"), (math.nan, 1, "rtol")):
        with pytest.raises(FmdiffError, match=rf"solver\.{name}="):
            Dopri5(rtol, atol, 100)
