"""Solvers on exact fields: measured order, price, and the marginals of the SDE."""

import math
from itertools import pairwise

import pytest
import torch

from fmdiff.along import Straight
from fmdiff.errors import FmdiffError
from fmdiff.exact import Mixture
from fmdiff.integration import integrate, plan
from fmdiff.path import VP, CondOT, Cosine
from fmdiff.schedules import UNIFORM
from fmdiff.solvers.multistep import Adams
from fmdiff.solvers.runge_kutta import RK4, Euler, Heun, Midpoint, RungeKutta
from fmdiff.solvers.solver import Solver
from fmdiff.solvers.stochastic import DIFFUSIONS, EulerMaruyama

ANGLES = torch.arange(8, dtype=torch.float64) * math.pi / 4
EIGHT = torch.stack([ANGLES.cos(), ANGLES.sin()], 1)


def eight_gaussians(path, radius=1.0, std=0.4):
    covs = std**2 * torch.eye(2, dtype=torch.float64).expand(8, 2, 2)
    return Mixture(path, torch.full((8,), 1 / 8).double(), radius * EIGHT, covs)


def noise(n, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(n, 2, generator=generator, dtype=torch.float64)


def solve(solver, field, x, steps):
    times = plan(field, solver, steps, UNIFORM, final="solver").times
    return integrate(solver, field, x, times)


class Kutta(RungeKutta):
    """Kutta's 3/8 rule, an independent reference of order 4."""

    order = 4
    a = ((1 / 3,), (-1 / 3, 1.0), (1.0, -1.0, 1.0))
    b = (1 / 8, 3 / 8, 3 / 8, 1 / 8)


ORDERS = [
    (Euler(), 1, (80, 160, 320)),
    (Midpoint(), 2, (40, 80, 160)),
    (Heun(), 2, (40, 80, 160)),
    (RK4(), 4, (20, 40, 80)),
    (Adams(1, False), 1, (80, 160, 320)),
    (Adams(2, False), 2, (80, 160, 320)),
    (Adams(3, False, RK4()), 3, (80, 160, 320)),
    (Adams(4, True), 3, (80, 160, 320)),
    # the corrector has one term more than the predictor
    (Adams(1, True), 2, (80, 160, 320)),
    (Adams(2, True), 3, (80, 160, 320)),
    (Adams(3, True, RK4()), 4, (80, 160, 320)),
    (Adams(2, True, RK4(), weigh=False), 2, (80, 160, 320)),
    (Adams(3, False, RK4(), weigh=False), 3, (80, 160, 320)),
    (Adams(4, False, RK4(), weigh=False), 4, (80, 160, 320)),
    (Adams(4, True, weigh=False), 3, (80, 160, 320)),
]


def name(value):
    if isinstance(value, Adams):
        return f"adams{value.order}{value.corrector}{value.start is not None}{value.weigh}"
    return type(value).__name__ if isinstance(value, Solver) else None


@pytest.mark.parametrize(("solver", "order", "steps"), ORDERS, ids=name)
def test_measured_order(solver, order, steps, record_property):
    # Adams 4 meets its asymptotic slope at these steps only where the field is smooth enough
    std = 1.0 if isinstance(solver, Adams) and solver.order == 4 and solver.start else 0.4
    field, x = eight_gaussians(CondOT(), std=std), noise(24)
    truth = solve(Kutta(), field, x, 500)
    errors = [(solve(solver, field, x, n) - truth).norm().item() for n in steps]
    slopes = [math.log2(a / b) for a, b in pairwise(errors)]
    record_property("order", slopes[-1])
    print(f"{name(solver)}: {slopes}")
    assert slopes[-1] == pytest.approx(order, abs=0.15), slopes
    if isinstance(solver, RungeKutta):
        assert solver.order == order


def test_measured_order_of_adams_with_corrector_and_full_start():
    # The corrector's own error is h^4 with a constant 13 times below the predictor's, which enters
    # as h^5 and hides it on curved fields: there the slope comes down to 4 from above.
    classical = Adams(4, True, RK4(), weigh=False)
    solver, field, x = classical, eight_gaussians(CondOT(), std=1.0), noise(12)
    truth = solve(Kutta(), field, x, 500)
    errors = [(solve(solver, field, x, n) - truth).norm().item() for n in (80, 160, 320)]
    slopes = [math.log2(a / b) for a, b in pairwise(errors)]
    print(f"adams4 corrector, RK4 start, 8 Gaussians: {slopes}")
    assert 3.85 < slopes[1] < slopes[0] < 5
    plain = solve(Adams(4, False, RK4(), weigh=False), field, x, 160)
    assert errors[1] < (plain - truth).norm() / 2  # the corrector is worth having

    def smooth(x, t):
        return torch.exp(2 * t) - x / 4

    x = torch.ones(1, 1, dtype=torch.float64)
    # x' + x/4 = exp 2t and x(0) = 1
    truth = (4 * math.exp(2) + 5 * math.exp(-1 / 4)) / 9
    grids = [torch.linspace(0, 1, n + 1, dtype=torch.float64) for n in (320, 640, 1280)]
    errors = [abs(integrate(solver, smooth, x, times).item() - truth) for times in grids]
    slopes = [math.log2(a / b) for a, b in pairwise(errors)]
    print(f"adams4 corrector, RK4 start, smooth: {slopes}")
    assert slopes[-1] == pytest.approx(4, abs=0.15), slopes


def test_solvers_on_an_equation_worked_by_hand():
    """x' = -2 x from 4 over [0, 1] in 4 steps; each step multiplies by a Taylor polynomial."""

    def field(x, t):
        return -2 * x

    times, x = torch.linspace(0, 1, 5, dtype=torch.float64), torch.tensor([4.0]).double()
    for solver, factor in (
        (Euler(), 1 / 2),
        (Midpoint(), 1 - 1 / 2 + 1 / 8),
        (Heun(), 1 - 1 / 2 + 1 / 8),
        (RK4(), 1 - 1 / 2 + 1 / 8 - 1 / 48 + 1 / 384),
    ):
        assert integrate(solver, field, x, times).item() == pytest.approx(4 * factor**4, rel=1e-12)


SOLVERS = [
    Euler(),
    Midpoint(),
    Heun(),
    RK4(),
    Adams(2, False),
    Adams(4, True),
    Adams(4, True, weigh=False),
    Adams(4, True, RK4()),
    Adams(3, False, Heun()),
    EulerMaruyama(1.0),
]


@pytest.mark.parametrize("steps", [1, 2, 3, 5, 9])
@pytest.mark.parametrize("solver", SOLVERS, ids=name)
def test_price_is_what_is_counted(solver, steps):
    field = eight_gaussians(Cosine())
    times = torch.linspace(0, 0.9, steps + 1, dtype=torch.float64)
    x = integrate(solver, field, noise(7), times, lambda t, s: (s - t).sqrt() * noise(7))
    assert x.isfinite().all()
    assert field.evaluations == 7 * solver.nfe(steps)
    assert solver.nfe(0) == 0


def test_adams_builds_its_start_from_a_yaml_mapping():
    solver = Adams(4, True, {"_target_": "fmdiff.solvers.runge_kutta.RK4"})
    assert isinstance(solver.start, RK4) and solver.nfe(10) == 12 + 7


def test_adams_is_exact_on_a_polynomial_slope_even_on_an_uneven_grid():
    times = torch.tensor([0.0, 0.1, 0.15, 0.4, 0.5, 0.8, 1.0], dtype=torch.float64)
    x = torch.zeros(1, 1, dtype=torch.float64)

    def slope(x, t):
        return (1 + 3 * t - 4 * t**3).expand(1, 1)

    for corrector in (False, True):
        end = integrate(Adams(4, corrector, RK4(), weigh=False), slope, x, times).item()
        assert end == pytest.approx(1 + 3 / 2 - 1, rel=1e-12)


def test_euler_in_straight_coordinates_is_ddim():
    """DDIM (Song et al. 2021, eq. 12, eta = 0) on the VP diffusion, written from the paper."""
    field, steps = eight_gaussians(VP()), 12
    grid = torch.linspace(0.05, 0.95, steps + 1, dtype=torch.float64)

    def alpha_bar(t):
        return torch.exp(-((1 - t) ** 2) * 19.9 / 2 - (1 - t) * 0.1)

    x = noise(9)
    ddim, bars = x, alpha_bar(grid)
    for i in range(steps):
        eps = field.predict(ddim, grid[i], "eps")
        x_hat = (ddim - (1 - bars[i]).sqrt() * eps) / bars[i].sqrt()
        ddim = bars[i + 1].sqrt() * x_hat + (1 - bars[i + 1]).sqrt() * eps
    total = bars.sqrt() + (1 - bars).sqrt()
    straight = integrate(Euler(), Straight(field), x / total[0], bars.sqrt() / total)
    torch.testing.assert_close(straight * total[-1], ddim, rtol=1e-9, atol=1e-9)


# --- the SDE --------------------------------------------------------------------------------


def brownian(shape, seed, dtype):
    generator = torch.Generator().manual_seed(seed)
    return lambda t, s: (s - t).sqrt() * torch.randn(*shape, generator=generator, dtype=dtype)


TWO = torch.tensor([[1.5, 0.5], [-1.5, -0.5]], dtype=torch.float64)
NARROW = torch.tensor([[[0.3, 0.1], [0.1, 0.2]]] * 2, dtype=torch.float64)


def check_marginal(diffusion, path, lo, hi, n):
    """From exact samples of p_lo, 1,000 steps give mean and covariance of p_hi."""
    field = Mixture(path, torch.tensor([0.6, 0.4]).double(), TWO, NARROW)
    times = torch.linspace(lo, hi, 1001, dtype=torch.float64)
    eps = torch.randn(n, 2, generator=torch.Generator().manual_seed(1))
    x = field.start(eps, times[0], 0, 2)
    x = integrate(EulerMaruyama(diffusion), field, x, times, brownian((n, 2), 3, x.dtype))
    a, b = path.alpha(times[-1]), path.beta(times[-1])
    mean = 0.6 * TWO[0] + 0.4 * TWO[1]
    spread = TWO - mean
    between = 0.6 * torch.outer(spread[0], spread[0]) + 0.4 * torch.outer(spread[1], spread[1])
    cov = a**2 * (NARROW[0] + between) + b**2 * torch.eye(2)
    x = x.double() - a * mean
    products = x[:, :, None] * x[:, None]
    assert (x.mean(0).abs() < 4 * x.std(0) / n**0.5).all()
    assert ((products.mean(0) - cov).abs() < 4 * products.std(0) / n**0.5).all()


def test_sde_keeps_the_marginals():
    check_marginal("beta", CondOT(), 0.0, 1.0, 4_000)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("diffusion", "path", "lo", "hi"),
    [
        (1.0, CondOT(), 0.0, 0.98),
        ("linear", CondOT(), 0.0, 1.0),
        ("inc_dec", CondOT(), 0.0, 1.0),
        ("beta", Cosine(), 0.0, 1.0),
        ("path", CondOT(), 0.1, 1.0),
        ("path", VP(), 0.1, 0.98),
    ],
)
def test_every_diffusion_keeps_the_marginals(diffusion, path, lo, hi):
    check_marginal(diffusion, path, lo, hi, 20_000)


def test_bias_of_euler_maruyama_halves_with_the_step():
    """On one Gaussian every step is affine, so the law of the end is known without sampling."""
    field = Mixture(
        CondOT(),
        torch.ones(1).double(),
        torch.zeros(1, 1).double(),
        torch.full((1, 1, 1), 0.25).double(),
    )
    errors = []
    for steps in (100, 200, 400):
        times = torch.linspace(0, 0.9, steps + 1, dtype=torch.float64)
        variance = 1.0
        for t, s in pairwise(times):
            one = torch.ones(1, 1).double()
            solver = EulerMaruyama(1.0)
            slope, _ = solver.step(field, one, t, s, None, lambda t, s: 0.0)
            kick, _ = solver.step(field, 0 * one, t, s, None, lambda t, s: (s - t).sqrt())
            variance = slope.item() ** 2 * variance + kick.item() ** 2
        errors.append(abs(variance - (0.9**2 * 0.25 + 0.1**2)))
    assert math.log2(errors[0] / errors[1]) == pytest.approx(1, abs=0.15)
    assert math.log2(errors[1] / errors[2]) == pytest.approx(1, abs=0.15)


def test_no_diffusion_is_euler():
    field, x = eight_gaussians(CondOT()), noise(8)
    times = torch.linspace(0, 0.9, 11, dtype=torch.float64)
    got = integrate(EulerMaruyama(0.0), field, x, times, brownian((8, 2), 0, x.dtype))
    torch.testing.assert_close(got, integrate(Euler(), field, x, times), rtol=1e-9, atol=1e-9)


def test_path_diffusion_is_that_of_the_textbook_reverse_sde():
    """VP: g^2 = rate(t) (Song et al. 2021, eq. 11)."""
    t = torch.linspace(0.05, 0.95, 10, dtype=torch.float64)
    torch.testing.assert_close(DIFFUSIONS["path"](VP(), t), 0.1 + (1 - t) * 19.9)
    torch.testing.assert_close(DIFFUSIONS["path"](CondOT(), t), 2 * (1 - t) / t)


def test_an_infinite_diffusion_at_the_start_is_left_out():
    field, x = eight_gaussians(CondOT()), noise(50)
    times = torch.linspace(0, 1, 21, dtype=torch.float64)
    end = integrate(EulerMaruyama("path"), field, x, times, brownian((50, 2), 0, x.dtype))
    assert end.isfinite().all() and end.abs().max() < 4


@pytest.mark.parametrize("diffusion", ["betta", -1.0, float("inf"), float("nan")])
def test_a_wrong_diffusion_is_refused(diffusion):
    with pytest.raises(FmdiffError, match=r"solver\.diffusion"):
        EulerMaruyama(diffusion)
