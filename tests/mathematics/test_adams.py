"""Adams: its bounds under guidance on exact targets, order, options, price, independent rows."""

import math
import sys
from itertools import pairwise
from pathlib import Path

import pytest
import torch

from fmdiff.along import Straight
from fmdiff.build import named
from fmdiff.errors import FmdiffError
from fmdiff.guidance import CFG
from fmdiff.integration import integrate, plan
from fmdiff.path import CondOT
from fmdiff.solvers.multistep import Adams, newton
from fmdiff.solvers.runge_kutta import RK4, Euler, Heun

sys.path.insert(0, str(Path(__file__).parents[2] / "scripts"))
import adams_guidance
import targets

WEIGHED = Adams(4, True)


class Prescribed:
    """A guided field whose slope depends on the time alone: slopes[k] (B,) at times[k]."""

    branches = 2

    def __init__(self, times, slopes):
        self.table = dict(zip(times.tolist(), slopes, strict=False))

    def __call__(self, x, t):
        return self.table[t.item()][:, None]


def grid(*times):
    return torch.tensor(times, dtype=torch.float64)


# --- under guidance -------------------------------------------------------------------------


def check(target, path, w, questions, n=64, tolerance=1e-8):
    """At 10 questions (w >= 3: 20) and more; with fewer Euler and the 2M methods can be ahead."""
    case = targets.case(target, path, w, n, tolerance)
    errors = adams_guidance.cell(case, questions)
    if questions >= (10 if w < 3 else 20):
        best = min(errors["euler"], errors["heun"], errors["dpmpp_2m"])
        assert errors["adams"] <= best, errors
    return errors


@pytest.mark.parametrize("w", adams_guidance.SCALES)
def test_adams_holds_its_own_under_guidance(w):
    found = {k: check("eight_gaussians", "condot", w, k) for k in adams_guidance.asked(w)}
    if w == 7:  # what the weights are for
        assert found[10]["classical"] > 100 * found[10]["adams"]
        assert found[50]["adams"] < found[50]["heun"] / 3


@pytest.mark.parametrize("w", [1.0, 7.0])
def test_adams_holds_its_own_in_64_dimensions(w):
    for questions in (10, 20) if w == 1 else (5, 10, 20):
        check("mixture64_1", "condot", w, questions, 8, 1e-6)


@pytest.mark.slow
@pytest.mark.parametrize("w", adams_guidance.SCALES)
@pytest.mark.parametrize("path", targets.PATHS)
@pytest.mark.parametrize("target", targets.TARGETS)
def test_the_full_table(target, path, w):
    for questions in adams_guidance.asked(w):
        check(target, path, w, questions)


def test_the_fine_solution_is_fine():
    """Against 1,000 steps of RK4, and classes are where they are asked for."""
    case = targets.case("eight_gaussians", "condot", 3.0, 16)
    assert targets.error(case, RK4(), 4_000) < 1e-6
    angle = torch.atan2(case.truth[:, 1], case.truth[:, 0]) / (math.pi / 4)
    assert torch.equal(angle.round().long() % 8, torch.arange(16) % 8)


# --- the weights ----------------------------------------------------------------------------


def test_the_weights_worked_by_hand():
    """Slopes 1, 2, 4 in steps of 1: N = (2, 1), then (4, 2, 1).

    The corrector of the first step has the terms D = 1 and 1/2, so that Euler's step has a fifth
    of the weight. The third slope was missed by 2 (degree 0; by 1 the time before) and by 1
    (degree 1), so E = 5 and 1. The corrector of the second step has the terms 2, 1 and -1/12.
    """
    times = grid(0, 1, 2, 3)
    field = Prescribed(times, [grid(1), grid(2), grid(4)])
    x = torch.zeros(1, 1, dtype=torch.float64)
    assert integrate(WEIGHED, field, x, times[:2]).item() == pytest.approx(1)
    assert integrate(WEIGHED, field, x, times[:3]).item() == pytest.approx(1.4 + 2, rel=1e-14)
    second = 1.4 + 2 + (1 * 145 - 144 / 12) / (1 / 4 + 1 + 144)
    third = second + 4 + 2 / 2 * 5**2 / (1 + 5**2)
    assert integrate(WEIGHED, field, x, times).item() == pytest.approx(third, rel=1e-14)
    plain = integrate(Adams(4, False), field, x, times).item()
    assert plain == pytest.approx(1 + 2 + 4 + 25 / 26, rel=1e-14)


def test_on_a_rough_field_high_degrees_have_little_weight():
    """The slopes are random vectors."""
    times = torch.linspace(0, 1, 31, dtype=torch.float64)
    slopes = torch.randn(30, 4, 64, generator=torch.Generator().manual_seed(0)).double()
    table = dict(zip(times.tolist(), slopes, strict=False))
    x = torch.zeros(4, 64, dtype=torch.float64)

    def field(x, t):
        return table[t.item()]

    ends = [Euler(), Adams(5, False), Adams(5, False, weigh=False)]
    euler, weighed, classical = (integrate(solver, field, x, times) for solver in ends)
    assert (classical - euler).std() > 4 * (weighed - euler).std()


def test_a_field_without_change_has_no_errors_to_weigh():
    times = grid(0, 1, 2, 3, 4)
    field = Prescribed(times, [grid(2, 0)] * 4)
    x = torch.zeros(2, 1, dtype=torch.float64)
    assert integrate(WEIGHED, field, x, times).flatten().tolist() == pytest.approx([8.0, 0.0])
    single = Prescribed(times, [grid(2, 0).float()] * 4)
    assert integrate(WEIGHED, single, x.float(), times).flatten().tolist() == pytest.approx([8, 0])


def test_rows_do_not_influence_each_other():
    case = targets.case("eight_gaussians", "condot", 7.0)
    times = torch.linspace(0, 1, 11, dtype=torch.float64)
    together = integrate(WEIGHED, case.field, case.start, times)
    for i in (0, 5, 30):
        field = Straight(CFG(7.0)(targets.eight_gaussians(CondOT()), torch.tensor([i % 8])))
        alone = integrate(WEIGHED, field, case.start[i : i + 1], times)
        torch.testing.assert_close(alone, together[i : i + 1], rtol=0, atol=1e-9)


@pytest.mark.parametrize("corrector", [False, True])
def test_the_order_is_kept_where_a_guided_field_is_smooth(corrector):
    def field(x, t):
        return torch.exp(2 * t) - x / 4

    class Smooth:
        branches = 2
        __call__ = staticmethod(field)

    x = torch.ones(1, 1, dtype=torch.float64)
    truth = (4 * math.exp(2) + 5 * math.exp(-1 / 4)) / 9  # x' + x/4 = exp 2t and x(0) = 1
    solver, errors = Adams(3, corrector, RK4()), []
    for n in (80, 160, 320):
        end = integrate(solver, Smooth(), x, torch.linspace(0, 1, n + 1, dtype=torch.float64))
        errors.append(abs(end.item() - truth))
    slopes = [math.log2(a / b) for a, b in pairwise(errors)]
    assert slopes[-1] == pytest.approx(3 + corrector, abs=0.15), slopes


# --- the classical method and its options ---------------------------------------------------


def test_the_classical_method_from_the_textbook():
    """Order 4 in PEC mode with the weights of the tables, on an even grid after RK4 steps."""

    def field(x, t):
        return torch.cos(3 * x) - t * x

    h, x = 1 / 16, torch.linspace(-1, 1, 5, dtype=torch.float64)[:, None]
    times = torch.linspace(0, 1, 17, dtype=torch.float64)
    got = integrate(Adams(4, True, RK4(), weigh=False), field, x, times)
    slopes, before = [], None
    for i, (t, s) in enumerate(pairwise(times)):
        if i < 3:
            slopes.append(field(x, t))
            x = RK4().step(field, x, t, s, None, None)[0]
            continue
        f = [field(x, t), *slopes[::-1]]  # the newest first
        if before is not None:
            x = before + h / 24 * (9 * f[0] + 19 * f[1] - 5 * f[2] + f[3])
        before, slopes = x, [*slopes, f[0]]
        x = x + h / 24 * (55 * f[0] - 59 * f[1] + 37 * f[2] - 9 * f[3])
    torch.testing.assert_close(got, x, rtol=1e-11, atol=1e-11)


def test_newtons_integrals_are_exact_for_a_cubic_on_uneven_nodes():
    nodes, t, s = [0.4, 0.15, 0.1, 0.0], 0.4, 0.55
    integrals = newton([grid(u).numpy() for u in nodes[:3]], grid(t).numpy(), grid(s).numpy())
    values = [1 + u - 3 * u**3 for u in nodes]
    table, differences = values, [values[0]]
    for k in range(1, 4):
        table = [(a - b) / (nodes[i] - nodes[i + k]) for i, (a, b) in enumerate(pairwise(table))]
        differences.append(table[0])
    got = sum(c[0] * d for c, d in zip(integrals, differences, strict=True))
    assert got == pytest.approx(s - t + (s**2 - t**2) / 2 - 3 * (s**4 - t**4) / 4)


def test_lower_order_final():
    """Slopes 1, 2, 4 in steps of 1: Euler at last; the corrector keeps its order."""
    times = grid(0, 1, 2, 3)
    field = Prescribed(times, [grid(1), grid(2), grid(4)])
    x = torch.zeros(1, 1, dtype=torch.float64)
    solver = Adams(2, True, lower_order_final=True, weigh=False)
    assert integrate(solver, field, x, times).item() == pytest.approx(1.5 + 3 + 4)
    full = 1.5 + 3 + 4 + (4 - 2) / 2
    assert integrate(Adams(2, True, weigh=False), field, x, times).item() == pytest.approx(full)
    end = integrate(Adams(4, True, lower_order_final=True), field, x, times[:2]).item()
    assert end == pytest.approx(1)


def test_backwards_and_a_single_step():
    def field(x, t):
        return 3 * t**2 + 0 * x

    x = torch.ones(1, 1, dtype=torch.float64)
    times = torch.linspace(1, 0, 8, dtype=torch.float64)
    assert integrate(Adams(3, True, RK4()), field, x, times).item() == pytest.approx(0)
    assert WEIGHED.step(field, x, *grid(0.5, 0.7), None, None)[0].item() == pytest.approx(1.15)


@pytest.mark.parametrize("start", [None, Heun(), RK4()])
@pytest.mark.parametrize("steps", [1, 2, 3, 4, 9])
def test_price_under_guidance(start, steps):
    field = targets.eight_gaussians(CondOT())
    guided = Straight(CFG(3.0)(field, torch.arange(6)))
    solver = Adams(4, True, start)
    made = plan(guided, solver, steps)
    guided.reset()
    integrate(solver, guided, torch.randn(6, 2, dtype=torch.float64), made.times)
    assert guided.evaluations == 6 * made.nfe == 6 * 2 * solver.nfe(steps)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"order": 0}, r"solver\.order=0: choose 1 to 6"),
        ({"order": 7}, r"solver\.order=7: choose 1 to 6"),
        ({"start": {"_target_": "fmdiff.solvers.multistep.Adams", "order": 2, "corrector": True}},
         r"solver\.start=Adams: choose a Runge-Kutta solver or null"),
    ],
)  # fmt: skip
def test_what_is_refused(changes, message):
    with pytest.raises(FmdiffError, match=message):
        named("solver", "adams", **changes)
