"""Exponential integrators on exact fields: order, the ends, and diffusers' schedulers."""

import functools
import inspect
import math
from itertools import pairwise

import diffusers
import pytest
import torch
from conftest import every_path
from test_solvers import Kutta, eight_gaussians, noise

from fmdiff.along import Along, Straight
from fmdiff.build import build, config_folder, locate, spec_of
from fmdiff.errors import FmdiffError
from fmdiff.integration import integrate, plan
from fmdiff.path import VP, CondOT, Cosine
from fmdiff.solvers.exponential import DEIS, DPM2, DPMpp, UniPC, ddim, moments, weights
from fmdiff.solvers.multistep import Adams
from fmdiff.solvers.runge_kutta import RK4, Euler
from fmdiff.solvers.stochastic import EulerMaruyama

pytestmark = pytest.mark.filterwarnings("ignore:__array:DeprecationWarning")  # of diffusers
EVERY = {
    "dpm_2": DPM2(),
    "dpmpp_2m": DPMpp(2, True),
    "dpmpp_3m": DPMpp(3, True),
    "dpmpp_3m_rk4": DPMpp(3, True, RK4()),
    "unipc_bh1": UniPC(3, True, "bh1", True),
    "unipc_bh2": UniPC(3, True, "bh2", True),
    "unipc_rk4": UniPC(3, True, "bh2", True, RK4()),
    "deis": DEIS(3, "log_rho", True),
    "deis_rho": DEIS(3, "rho", True),
}
every_solver = pytest.mark.parametrize("solver", EVERY.values(), ids=EVERY)


def grid(lo, hi, n):
    return torch.linspace(lo, hi, n + 1, dtype=torch.float64)


@functools.cache
def exactly(lo, hi):
    """A field, six states at lo, and where they are at hi."""
    field, x = eight_gaussians(CondOT()), noise(6)
    return field, x, integrate(Kutta(), field, x, grid(lo, hi, 600))


def walk(solver, field, x, times):
    """Every state, the solver knowing how many steps there are."""
    state, states = solver.begin(times), []
    for t, s in pairwise(times):
        x, state = solver.step(field, x, t, s, state, None)
        states.append(x)
    return states


LOWERED = {k: v for k, v in EVERY.items() if k != "dpm_2"} | {
    "adams": Adams(4, False, lower_order_final=True),
}


@pytest.mark.parametrize("solver", LOWERED.values(), ids=LOWERED)
@pytest.mark.parametrize("steps", [4, 7])
def test_a_jump_is_the_last_step_when_orders_are_lowered(solver, steps):
    """A step to beta = 0 has order 1, so it ends at x_hat as the jump does, on any field."""
    field, x = eight_gaussians(CondOT()), noise(6)
    times = torch.linspace(0, 0.9, steps, dtype=torch.float64)
    whole = integrate(solver, field, x, torch.cat([times, torch.ones(1)]))
    jumped = field.predict(integrate(solver, field, x, times, jump=True), times[-1], "x")
    torch.testing.assert_close(jumped, whole, rtol=1e-9, atol=1e-9)
    early = field.predict(integrate(solver, field, x, times), times[-1], "x")
    assert (early - whole).abs().max() > 1e-3


# --- order ----------------------------------------------------------------------------------

ORDERS = {
    "dpm_2": (DPM2(), 2),
    "dpmpp_1": (DPMpp(1, False), 1),
    "dpmpp_2m": (DPMpp(2, False), 2),  # one step of first order costs nothing of the second
    "dpmpp_2m_rk4": (DPMpp(2, False, RK4()), 2),
    "dpmpp_3m_rk4": (DPMpp(3, False, RK4()), 3),
    "unip_1": (UniPC(1, False, "bh2", False), 1),
    "unip_2_bh1": (UniPC(2, False, "bh1", False, RK4()), 2),
    "unip_3": (UniPC(3, False, "bh2", False, RK4()), 3),
    "unipc_1_bh1": (UniPC(1, True, "bh1", False), 2),
    "unipc_1_bh2": (UniPC(1, True, "bh2", False), 2),
    "unipc_2_bh1": (UniPC(2, True, "bh1", False, RK4()), 3),
    "unipc_2_bh2": (UniPC(2, True, "bh2", False, RK4()), 3),
    "unipc_3_bh1": (UniPC(3, True, "bh1", False, RK4()), 4),
    "unipc_3_bh2": (UniPC(3, True, "bh2", False, RK4()), 4),
    "deis_1": (DEIS(1, "log_rho", False), 1),
    "deis_2": (DEIS(2, "log_rho", False), 2),
    "deis_2_rho": (DEIS(2, "rho", False), 2),
    "deis_3": (DEIS(3, "log_rho", False, RK4()), 3),
    "deis_3_rho": (DEIS(3, "rho", False, RK4()), 3),
}


@pytest.mark.parametrize(("solver", "order"), ORDERS.values(), ids=ORDERS)
def test_measured_order(solver, order):
    # between the ends, where steps are small in lam too
    field, x, truth = exactly(0.1, 0.9)
    errors = [
        (integrate(solver, field, x, grid(0.1, 0.9, n)) - truth).norm().item() for n in (160, 320)
    ]
    slope = math.log2(errors[0] / errors[1])
    print(f"order {slope:.3f}")
    assert slope == pytest.approx(order, abs=0.15), errors


def of_full_order(name):
    """The solver of a YAML, without what it does at the cost of its order."""
    spec = spec_of("solver", name)
    keys = inspect.signature(locate(spec["_target_"])).parameters
    classical = {"start": spec_of("solver", "rk4"), "limit": None, "lower_order_final": False}
    return build({**spec, **{key: value for key, value in classical.items() if key in keys}})


def fixed_steps():
    """The YAML files of solvers of the ODE that take the steps they are given."""
    names = sorted(path.stem for path in (config_folder() / "solver").glob("*.yaml"))
    classes = {name: locate(spec_of("solver", name)["_target_"]) for name in names}
    free = ("stochastic", "adaptive", "maps", "one_way")
    return [name for name in names if not any(getattr(classes[name], trait) for trait in free)]


@pytest.mark.parametrize("name", fixed_steps())
def test_every_solver_has_the_order_it_declares(name):
    """A corrector may add to it. A new YAML is measured here by itself."""
    solver, (field, x, truth) = of_full_order(name), exactly(0.1, 0.9)
    errors = [
        (integrate(solver, field, x, grid(0.1, 0.9, n)) - truth).norm().item() for n in (80, 160)
    ]
    slope = math.log2(errors[0] / errors[1])
    print(f"{name}: order {slope:.3f}, declared {solver.order}")
    assert solver.order - 0.15 < slope < solver.order + 1.15, errors


@pytest.mark.parametrize("solver", [DPMpp(3, False), DEIS(3, "log_rho", False)])
def test_a_start_of_lower_order_leaves_order_two(solver):
    field, x, truth = exactly(0.1, 0.9)
    errors = [
        (integrate(solver, field, x, grid(0.1, 0.9, n)) - truth).norm().item() for n in (320, 640)
    ]
    assert math.log2(errors[0] / errors[1]) == pytest.approx(2, abs=0.25)


@every_solver
def test_equal_steps_from_end_to_end_have_order_two(solver):
    # beside the ends lam moves by about log 2 a step however many there are, so no polynomial in
    # it does better there
    field, x, truth = exactly(0, 1)
    errors = [
        (integrate(solver, field, x, grid(0, 1, n)) - truth).norm().item() for n in (80, 160)
    ]
    assert 1.6 < math.log2(errors[0] / errors[1]) < 2.4, errors


# --- the formulas ---------------------------------------------------------------------------


@pytest.mark.parametrize("h", [-3.0, -0.2, 0.01, 0.7, 5.0])
def test_moments_are_the_integrals_they_say(h):
    from scipy.integrate import quad

    got = moments(h, 3)
    for k in range(3):
        want = quad(lambda u, k=k: h * math.exp((u - 1) * h) * u**k, 0, 1, epsabs=1e-14)[0]
        assert got[k] == pytest.approx(want, rel=1e-9)
    assert moments(math.inf, 3) == [1, 1, 1]


def test_weights_integrate_a_parabola_against_the_exponential():
    from scipy.integrate import quad

    nodes, lo, hi = (-0.9, -0.4, 0.1), 0.1, 0.8
    w = weights(nodes, lo, hi, moments(hi - lo, 3))

    def parabola(lam):
        return 2 - lam + 3 * lam**2

    want = quad(lambda lam: math.exp(lam - hi) * parabola(lam), lo, hi)[0]
    got = sum(c * parabola(z) for c, z in zip(w, nodes, strict=True))
    assert got == pytest.approx(want)


def test_weights_solve_their_equations_with_four_nodes_in_any_order():
    nodes, lo, hi, m = [0.3, -1.1, 0.7, 2.0], -1.1, 0.7, [0.4, -0.2, 1.3, 0.9]
    u = (torch.tensor(nodes, dtype=torch.float64) - lo) / (hi - lo)
    powers = u ** torch.arange(4)[:, None]
    want = torch.linalg.solve(powers, torch.tensor(m, dtype=torch.float64))
    assert weights(nodes, lo, hi, m) == pytest.approx(want.tolist(), rel=1e-12)


@pytest.mark.parametrize(
    "solver",
    [DPMpp(1, True), UniPC(1, False, "bh1", True), DEIS(1, "log_rho", True), DEIS(1, "rho", True)],
)
def test_first_order_is_euler_in_straight_coordinates(solver):
    field, x, times = eight_gaussians(CondOT()), noise(9), grid(0, 1, 7)
    want = integrate(Euler(), field, x, times)
    torch.testing.assert_close(integrate(solver, field, x, times), want, rtol=0, atol=1e-12)


def test_dpmpp_2m_is_algorithm_2_of_its_paper():
    field, x, times = eight_gaussians(Cosine()), noise(5), grid(0.1, 0.9, 6)
    state, last, before = x, None, None
    for t, s in pairwise(times):
        a, b = field.path.alpha, field.path.beta
        x_hat = field.predict(state, t, "x")
        h = (a(s) / b(s)).log() - (a(t) / b(t)).log()
        slope = x_hat
        if last is not None:
            ratio = before / h
            slope = (1 + 1 / (2 * ratio)) * x_hat - 1 / (2 * ratio) * last
        state, last, before = b(s) / b(t) * state + a(s) * (1 - (-h).exp()) * slope, x_hat, h
    got = integrate(DPMpp(2, False), field, x, times)
    torch.testing.assert_close(got, state, rtol=1e-12, atol=1e-12)


def test_dpm_2_is_the_algorithm_of_its_paper():
    field, x, times = eight_gaussians(VP()), noise(5), grid(0.1, 0.9, 6)
    state, path = x, field.path
    for t, s in pairwise(times):
        lam_t, lam_s = path.logsnr(t) / 2, path.logsnr(s) / 2
        h = lam_s - lam_t
        m = path.time_of_logsnr(lam_t + lam_s)
        u = path.alpha(m) / path.alpha(t) * state - path.beta(m) * torch.expm1(
            h / 2
        ) * field.predict(state, t, "eps")
        state = path.alpha(s) / path.alpha(t) * state - path.beta(s) * torch.expm1(
            h
        ) * field.predict(u, m, "eps")
    got = integrate(DPM2(), field, x, times)
    torch.testing.assert_close(got, state, rtol=1e-9, atol=1e-9)


# --- ends, coordinates, price ---------------------------------------------------------------


@every_path
@every_solver
def test_every_path_is_walked_from_end_to_end(path, solver):
    native = eight_gaussians(path)
    for field in (native, Straight(native)):
        times = plan(field, solver, 12, final="solver").times
        x = field.start(noise(40).float(), times[0], 0, 1).double()
        end = integrate(solver, field, x, times) / field.path.row("x_t", times[-1])[0]
        assert end.isfinite().all() and end.norm(dim=1).max() < 3


@pytest.mark.parametrize("solver", [s for s in EVERY.values() if not vars(s).get("start")])
def test_coordinates_do_not_matter(solver):
    straight = eight_gaussians(CondOT())
    other = Along(straight, VP())
    times, x = grid(0.1, 0.95, 9), noise(5)
    a, b = other.path.row("x_t", times)
    want = integrate(solver, straight, x, a / (a + b))
    got = integrate(solver, other, (a + b)[0] * x, times) / (a + b)[-1]
    torch.testing.assert_close(got, want, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("name", sorted(EVERY.keys() - {"dpm_2", "deis_rho"}))
def test_the_last_step_into_the_data_gives_the_estimate_of_x(name):
    # the other two have their full order there
    field, seen = eight_gaussians(CondOT()), []
    predict = field.predict
    field.predict = lambda *a: seen.append(predict(*a)) or seen[-1]
    end = integrate(EVERY[name], field, noise(5), grid(0, 1, 6))
    torch.testing.assert_close(end, seen[-1], rtol=0, atol=1e-14)


def test_a_start_without_data_is_a_step_of_first_order():
    field, x, times = eight_gaussians(CondOT()), noise(5), grid(0, 0.2, 1)
    want = ddim(field.path, x, *times, field.predict(x, times[0], "x"))
    for solver in (DPMpp(3, True), UniPC(3, True, "bh2", True), DEIS(3, "rho", True)):
        assert torch.equal(integrate(solver, field, x, times), want)


@pytest.mark.parametrize("steps", [1, 2, 3, 9])
@every_solver
def test_price_is_what_is_counted(solver, steps):
    field = eight_gaussians(CondOT())
    integrate(solver, field, noise(7), grid(0, 1, steps))
    assert field.evaluations == 7 * solver.nfe(steps)
    assert solver.nfe(0) == 0


def test_states_keep_their_precision():
    field = eight_gaussians(CondOT())
    for solver in EVERY.values():
        assert integrate(solver, field, noise(3).float(), grid(0, 1, 4)).dtype == torch.float32


def test_wrong_options_are_refused():
    with pytest.raises(FmdiffError, match=r"solver\.order=4"):
        DPMpp(4, True)
    with pytest.raises(FmdiffError, match=r"solver\.variant=bh3.*bh1, bh2"):
        UniPC(2, True, "bh3", True)
    with pytest.raises(FmdiffError, match=r"solver\.polynomial=t: .*log_rho, rho"):
        DEIS(2, "t", True)
    with pytest.raises(FmdiffError, match=r"solver\.start=EulerMaruyama"):
        DPMpp(2, True, EulerMaruyama(1.0))


# --- diffusers ------------------------------------------------------------------------------

# "leading" spacing stays within the noise levels of the continuous path
COMMON = {"timestep_spacing": "leading", "steps_offset": 1, "prediction_type": "sample"}


class FullThird(diffusers.DPMSolverMultistepScheduler):
    """Its third-order update with the second derivative whole instead of halved."""

    def multistep_dpm_solver_third_order_update(self, outputs, *args, sample, **kwargs):
        halved = super().multistep_dpm_solver_third_order_update(
            outputs, *args, sample=sample, **kwargs
        )
        levels = self.sigmas[self.step_index - 2 : self.step_index + 2]
        m2, m1, m0 = outputs[-3:]
        h1, h0, h = (-levels.log()).diff()
        curve = ((m0 - m1) / h0 - (m1 - m2) / h1) / (h0 + h1) * h**2
        alpha = (1 + levels[-1] ** 2) ** -0.5
        return halved - alpha * ((torch.exp(-h) - 1 + h) / h**2 - 0.5) * curve


def theirs(scheduler, n, field, x):
    """States of a scheduler, the noise levels it used as our times, and x at the first of them."""
    scheduler.set_timesteps(n)
    scheduler.sigmas = scheduler.sigmas.double()  # their levels, in our precision
    levels = scheduler.sigmas
    times = field.path.time_of_logsnr(-2 * levels.log())
    states = []
    for i, step in enumerate(scheduler.timesteps):
        x_hat = field.predict(x, times[i], "x")
        x = scheduler.step(x_hat, step, x).prev_sample
        states.append(x)
    return states, times


def dpm(order, **more):
    scheduler = FullThird if order == 3 else diffusers.DPMSolverMultistepScheduler
    return scheduler(solver_order=order, algorithm_type="dpmsolver++", **COMMON, **more)


def unipc(order, variant="bh2", **more):
    scheduler = diffusers.UniPCMultistepScheduler
    return scheduler(solver_order=order, solver_type=variant, **COMMON, **more)


def deis(order, **more):
    return diffusers.DEISMultistepScheduler(solver_order=order, **COMMON, **more)


NONE = {"disable_corrector": list(range(100))}
NOISE = {"final_sigmas_type": "sigma_min"}
UNTIL_NOISE = {**NOISE, "lower_order_final": False}
PAIRS = {
    "dpmpp_1": (dpm(1), 9, DPMpp(1, True)),
    "dpmpp_2m": (dpm(2), 9, DPMpp(2, True)),
    "dpmpp_2m_noisy_end": (dpm(2, **UNTIL_NOISE), 18, DPMpp(2, False)),
    "dpmpp_3m": (dpm(3), 9, DPMpp(3, True)),
    "dpmpp_3m_full_until_noise": (dpm(3, **UNTIL_NOISE), 18, DPMpp(3, False)),
    "unip_3_is_dpmpp_3m": (unipc(3, **NONE), 9, DPMpp(3, True)),
    "unip_2_is_dpmpp_2m": (unipc(2, **NONE), 9, DPMpp(2, True)),
    **{f"unipc_{p}": (unipc(p), 9, UniPC(p, True, "bh2", True)) for p in (1, 2, 3)},
    # its bh1 gives NaN in the step into zero noise
    **{
        f"unipc_{p}_bh1": (unipc(p, "bh1", **NOISE), 9, UniPC(p, True, "bh1", True))
        for p in (1, 2, 3)
    },
    "unipc_3_until_noise": (unipc(3, **UNTIL_NOISE), 18, UniPC(3, True, "bh2", False)),
    "deis_1": (deis(1), 9, DEIS(1, "log_rho", True)),
    "deis_2": (deis(2), 9, DEIS(2, "log_rho", True)),
    "deis_3": (deis(3), 9, DEIS(3, "log_rho", True)),
    "deis_3_full": (deis(3, lower_order_final=False), 18, DEIS(3, "log_rho", False)),
}


@pytest.mark.parametrize(("scheduler", "n", "solver"), PAIRS.values(), ids=PAIRS)
def test_agrees_with_diffusers_state_by_state(scheduler, n, solver):
    field, x = eight_gaussians(VP()), noise(6)
    states, times = theirs(scheduler, n, field, x)
    ours = walk(solver, field, x, times)
    worst = (torch.stack(ours) - torch.stack(states)).abs().max().item()
    print(f"largest difference {worst:.1e}")
    # DPMSolverMultistepScheduler.step works in float32
    assert worst < (1e-6 if isinstance(scheduler, diffusers.DPMSolverMultistepScheduler) else 1e-9)
    assert solver.nfe(n) == n == len(states)


def test_the_third_order_of_diffusers_halves_a_derivative():
    field, x = eight_gaussians(VP()), noise(6)
    plain = diffusers.DPMSolverMultistepScheduler(
        solver_order=3, algorithm_type="dpmsolver++", **COMMON
    )
    states, times = theirs(plain, 18, field, x)
    ours = walk(DPMpp(3, False), field, x, times)
    assert (ours[1] - states[1]).abs().max() < 1e-6 < 1e-4 < (ours[-1] - states[-1]).abs().max()
