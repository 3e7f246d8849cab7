"""SDE solvers on exact fields: laws, orders, the papers' algorithms and diffusers' schedulers."""

import math
from itertools import pairwise

import diffusers
import pytest
import torch
from omegaconf import OmegaConf
from test_solvers import eight_gaussians, noise

from fmdiff.along import Straight
from fmdiff.build import build, config_folder, named
from fmdiff.errors import FmdiffError
from fmdiff.exact import Mixture
from fmdiff.integration import integrate
from fmdiff.path import EDM, VE, VP, CondOT, Cosine
from fmdiff.randomness import Brownian
from fmdiff.sampling import Sampler, generate
from fmdiff.schedules import Karras
from fmdiff.solvers.exponential import DPMpp
from fmdiff.solvers.runge_kutta import Euler, Heun
from fmdiff.solvers.stochastic import (
    DIFFUSIONS,
    Churn,
    DPMppSDE,
    EulerMaruyama,
    PredictorCorrector,
    normals,
)

pytestmark = pytest.mark.filterwarnings("ignore:__array:DeprecationWarning")  # of diffusers
ALWAYS = (0.0, float("inf"), 1.0)  # s_min, s_max, s_noise
NAMES = ("euler_maruyama", "ddpm", "dpmpp_2m_sde", "edm_churn", "predictor_corrector")


def grid(lo, hi, n):
    return torch.linspace(lo, hi, n + 1, dtype=torch.float64)


def at(t):
    return torch.tensor(t, dtype=torch.float64)


def walk(solver, field, x, times, noise=None):
    """The last state, the solver knowing where its steps end."""
    state = solver.begin(times)
    for t, s in pairwise(times):
        x, state = solver.step(field, x, t, s, state, noise)
    return x


def brownian(shape, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return lambda t, s: (
        (s - t).sqrt() * torch.randn(*shape, generator=generator, dtype=torch.float64)
    )


def silent(t, s):
    raise AssertionError("noise was asked for")


# --- the law of the samples -----------------------------------------------------------------

TWO = torch.tensor([[1.5, 0.5], [-1.5, -0.5]], dtype=torch.float64)
NARROW = torch.tensor([[[0.3, 0.1], [0.1, 0.2]]] * 2, dtype=torch.float64)


def check_marginal(solver, path, lo, hi, n, steps):
    """From exact samples of p_lo, mean and covariance of p_hi, within 4 standard errors."""
    field = Mixture(path, torch.tensor([0.6, 0.4]).double(), TWO, NARROW)
    times = grid(lo, hi, steps)
    eps = torch.randn(n, 2, generator=torch.Generator().manual_seed(1)).double()
    x = walk(solver, field, field.start(eps, times[0], 0, 2), times, brownian((n, 2), 3))
    a, b = path.alpha(times[-1]), path.beta(times[-1])
    mean = 0.6 * TWO[0] + 0.4 * TWO[1]
    spread = TWO - mean
    between = 0.6 * torch.outer(spread[0], spread[0]) + 0.4 * torch.outer(spread[1], spread[1])
    cov = a**2 * (NARROW[0] + between) + b**2 * torch.eye(2)
    x = x - a * mean
    products = x[:, :, None] * x[:, None]
    assert (x.mean(0).abs() < 4 * x.std(0) / n**0.5).all()
    assert ((products.mean(0) - cov).abs() < 4 * products.std(0) / n**0.5).all()


LAWS = {
    "constant": (EulerMaruyama(1.0), CondOT(), 0.0, 0.9),
    "path": (EulerMaruyama("path"), CondOT(), 0.1, 1.0),
    "linear_vp": (EulerMaruyama("linear"), VP(), 0.0, 0.98),
    "inc_dec": (EulerMaruyama("inc_dec"), CondOT(), 0.0, 1.0),
    "formula": (EulerMaruyama("2*(1-t)"), Cosine(), 0.0, 1.0),
    "until_mean": (EulerMaruyama(1.5, until=0.8, last="mean"), CondOT(), 0.0, 1.0),
    "ddpm": (DPMppSDE(1, 1.0), CondOT(), 0.0, 1.0),
    "ddpm_vp": (DPMppSDE(1, 1.0), VP(), 0.0, 1.0),
    "dpmpp_2m_sde": (DPMppSDE(2, 1.0), CondOT(), 0.0, 1.0),
    "dpmpp_2m_sde_half_ve": (DPMppSDE(2, 0.5), VE(0.01, 20.0), 0.0, 1.0),
    "edm_churn": (Churn(40.0, *ALWAYS), CondOT(), 0.0, 1.0),
    "edm_churn_edm": (Churn(40.0, *ALWAYS), EDM(0.01, 20.0, 7.0), 0.0, 1.0),
    "pc_ddpm": (PredictorCorrector("ddpm", 1, 0.08), CondOT(), 0.0, 1.0),
    "pc_em": (PredictorCorrector("euler_maruyama", 2, 0.08), Cosine(), 0.0, 1.0),
}


@pytest.mark.parametrize(("solver", "path", "lo", "hi"), LAWS.values(), ids=LAWS)
def test_every_sde_keeps_the_marginals(solver, path, lo, hi):
    check_marginal(solver, path, lo, hi, 4_000, 200)


@pytest.mark.slow
@pytest.mark.parametrize(("solver", "path", "lo", "hi"), LAWS.values(), ids=LAWS)
def test_every_sde_keeps_the_marginals_more_sharply(solver, path, lo, hi):
    check_marginal(solver, path, lo, hi, 20_000, 1_000)


def test_noise_without_the_score_is_found_out():
    broken = EulerMaruyama(1.0)
    step = broken.step

    def without(field, x, t, s, state, noise):
        ahead, state = step(field, x, t, s, state, lambda t, s: 0 * x)
        score = field.predict(x, t, "score")
        return ahead - (s - t) / 2 * score + noise(t, s), state

    broken.step = without
    with pytest.raises(AssertionError):
        check_marginal(broken, CondOT(), 0.0, 0.9, 4_000, 200)


def end_variance(solver, path, times, v=0.25, each=1):
    """The variance at the end, from p at the start, for x ~ N(0, v): every step is linear in the

    state and the draws, so that the responses to the start and to each draw tell the whole law.
    """
    one = torch.ones(1).double()
    field = Mixture(path, one, torch.zeros(1, 1).double(), v * one[None, None])
    x = torch.zeros(1 + each * (len(times) - 1), 1).double()
    x[0] = (path.alpha(times[0]) ** 2 * v + path.beta(times[0]) ** 2).sqrt()
    rows = iter(range(1, len(x)))

    def unit(t, s):
        z = torch.zeros_like(x)
        z[next(rows)] = (s - t).sqrt()
        return z

    return walk(solver, field, x, times, unit).square().sum().item()


WEAK = {
    "constant": (EulerMaruyama(1.0), CondOT(), 0.0, 0.9, 1),
    "linear": (EulerMaruyama("linear"), CondOT(), 0.0, 1.0, 1),
    "path_vp": (EulerMaruyama("path"), VP(), 0.05, 0.9, 1),
    "ddpm": (DPMppSDE(1, 1.0), CondOT(), 0.0, 0.9, 1),
    "ddpm_vp": (DPMppSDE(1, 1.0), VP(), 0.05, 0.9, 1),
    "dpmpp_2m_sde": (DPMppSDE(2, 1.0), CondOT(), 0.1, 0.9, 2),
    "dpmpp_2m_sde_vp": (DPMppSDE(2, 1.0), VP(), 0.05, 0.9, 2),
    "dpmpp_2m_sde_half": (DPMppSDE(2, 0.5), CondOT(), 0.1, 0.9, 2),
    "edm_churn": (Churn(10.0, *ALWAYS), CondOT(), 0.0, 1.0, 2),
    "edm_churn_vp": (Churn(10.0, *ALWAYS), VP(), 0.1, 0.9, 2),
}


@pytest.mark.parametrize(("solver", "path", "lo", "hi", "order"), WEAK.values(), ids=WEAK)
def test_weak_order(solver, path, lo, hi, order):
    truth = (path.alpha(at(hi)) ** 2 / 4 + path.beta(at(hi)) ** 2).item()
    errors = [end_variance(solver, path, grid(lo, hi, n)) - truth for n in (50, 100, 200)]
    slopes = [math.log2(a / b) for a, b in pairwise(errors)]
    print(f"errors {errors}, slopes {slopes}")
    assert slopes[-1] == pytest.approx(order, abs=0.15), errors


@pytest.mark.parametrize("snr", [0.1, 0.3])
def test_many_corrections_reach_the_law_of_langevin_steps(snr):
    """x <- x + e score + sqrt(2 e) z has the variance S / (1 - e / 2S) where the law's is S."""
    t, s = at(0.6), at(0.6 + 1e-9)
    solver = PredictorCorrector("ddpm", 600, snr)
    law, e = 0.6**2 / 4 + 0.4**2, 2 * (snr * 0.4) ** 2
    got = end_variance(solver, CondOT(), torch.stack([t, s]), each=601)
    assert got == pytest.approx(law / (1 - e / (2 * law)), rel=1e-4)


STRONG = {
    "constant": EulerMaruyama(1.0),
    "formula": EulerMaruyama("0.5+t"),
    "ddpm": DPMppSDE(1, 1.0),
    "dpmpp_2m_sde": DPMppSDE(2, 1.0),
    "edm_churn": Churn(10.0, *ALWAYS),
}


@pytest.mark.parametrize("solver", STRONG.values(), ids=STRONG)
def test_strong_order_by_refining_one_path(solver):
    """Additive noise: order 1 (Kloeden & Platen 1992, section 10.2)."""
    field, x = eight_gaussians(CondOT()), noise(128)
    ends = [
        walk(solver, field, x, grid(0.25, 0.75, steps), Brownian(0, 128, (2,), 7))
        for steps in (32, 64, 128, 512)
    ]
    errors = [(end - ends[-1]).norm(dim=1).mean().item() for end in ends[:-1]]
    slopes = [math.log2(a / b) for a, b in pairwise(errors)]
    print(f"errors {errors}, slopes {slopes}")
    # what order 1 makes of a reference that is itself of 512 steps
    assert slopes[-1] == pytest.approx(math.log2(7 / 3), abs=0.15), slopes
    other = walk(solver, field, x, grid(0.25, 0.75, 128), Brownian(0, 128, (2,), 8))
    assert (other - ends[-1]).norm(dim=1).mean() > 10 * errors[-1]  # another path ends elsewhere


# --- against others -------------------------------------------------------------------------


def test_ddpm_is_the_scheduler_of_diffusers():
    """Mean and variance ("fixed_small") of every step, its levels taken from our path."""
    path, steps = VP(), 20
    times = grid(0.02, 0.97, steps)  # from the noisiest
    bars = path.alpha(times) ** 2
    betas = 1 - bars.flip(0) / torch.cat([torch.ones(1).double(), bars.flip(0)[:-1]])
    scheduler = diffusers.DDPMScheduler(
        num_train_timesteps=steps + 1,
        trained_betas=betas.numpy(),
        variance_type="fixed_small",
        prediction_type="sample",
        clip_sample=False,
    )
    field, x = eight_gaussians(path), noise(6)
    theirs, ours = x, x
    for i, (t, s) in enumerate(pairwise(times)):
        k = steps - i
        variance = float(scheduler._get_variance(k))
        share = (path.alpha(t) * path.beta(s) / (path.alpha(s) * path.beta(t))) ** 2
        assert variance == pytest.approx(float(path.beta(s) ** 2 * (1 - share)), rel=1e-3)
        same = torch.Generator().manual_seed(k)
        z = torch.randn(6, 2, generator=same, dtype=torch.float64)
        same.manual_seed(k)
        theirs = scheduler.step(field.predict(theirs, t, "x"), k, theirs, same).prev_sample
        ours, _ = DPMppSDE(1, 1.0).step(
            field, ours, t, s, None, lambda t, s, z=z: (s - t).sqrt() * z
        )
    assert (ours - x).norm() > 1
    torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4)  # its levels are float32


@pytest.mark.parametrize("order", [1, 2])
def test_dpmpp_2m_sde_is_the_scheduler_of_diffusers(order):
    scheduler = diffusers.DPMSolverMultistepScheduler(
        solver_order=order,
        algorithm_type="sde-dpmsolver++",
        timestep_spacing="leading",
        steps_offset=1,
        prediction_type="sample",
        lower_order_final=False,
        final_sigmas_type="sigma_min",
    )
    scheduler.set_timesteps(18)
    scheduler.sigmas = scheduler.sigmas.double()
    field, x = eight_gaussians(VP()), noise(6)
    times = field.path.time_of_logsnr(-2 * scheduler.sigmas.log())
    theirs, ours, state = x, x, None
    for k, (t, s) in enumerate(pairwise(times)):
        z = noise(6, 100 + k)
        x_hat = field.predict(theirs, t, "x")
        theirs = scheduler.step(
            x_hat, scheduler.timesteps[k], theirs, variance_noise=z
        ).prev_sample
        ours, state = DPMppSDE(order, 1.0).step(
            field, ours, t, s, state, lambda t, s, z=z: (s - t).sqrt() * z
        )
    worst = (ours - theirs).abs().max().item()
    print(f"largest difference {worst:.1e}")
    assert worst < 1e-5  # its step works in float32


def algorithm_2(field, x, levels, z, s_churn, s_min, s_max, s_noise):
    """Karras et al. 2022, algorithm 2, in their variables: levels fall, and end with 0."""
    n = len(levels) - 1
    for i in range(n):
        gamma = min(s_churn / n, 2**0.5 - 1) if s_min <= levels[i] <= s_max else 0
        hat = levels[i] + gamma * levels[i]
        x = x + (hat**2 - levels[i] ** 2).sqrt() * s_noise * z[i]

        def d(x, level):
            t = field.path.time_of_logsnr(-2 * level.log())
            return (x - field.predict(x, t, "x")) / level

        first = d(x, hat)
        ahead = x + (levels[i + 1] - hat) * first
        if levels[i + 1] != 0:
            ahead = x + (levels[i + 1] - hat) * (first + d(ahead, levels[i + 1])) / 2
        x = ahead
    return x


@pytest.mark.parametrize(
    "options", [(0.0, *ALWAYS), (9.0, *ALWAYS), (4.0, 0.3, 3.0, 1.05)], ids=str
)
def test_edm_churn_is_algorithm_2(options):
    n, z = 12, [noise(5, 50 + i) for i in range(12)]
    path = EDM(0.02, 10.0, 7.0)
    field = eight_gaussians(EDM(0.002, 80.0, 7.0))
    levels = torch.cat([path.beta(grid(0, 1, n - 1)), torch.zeros(1).double()])
    wanted = algorithm_2(field, 10 * noise(5), levels, z, *options)
    for ours in (field, Straight(field)):
        times = ours.path.time_of_logsnr(-2 * levels[:-1].log())
        draws, solver, state = iter(z), Churn(*options), n
        x = 10 * noise(5) * ours.path.alpha(times[0])
        for k, (t, s) in enumerate(pairwise(times)):
            x, state = solver.step(ours, x, t, s, state, lambda t, s, z=z[k]: (s - t).sqrt() * z)
        if options[0] == 0:  # the last level is left with an Euler step: x_hat
            got = ours.predict(x, times[-1], "x")
        else:
            hat = levels[-2]
            gamma = min(options[0] / n, 2**0.5 - 1) if options[1] <= hat <= options[2] else 0
            up = ours.path.time_of_logsnr(-2 * ((1 + gamma) * hat).log())
            y = x / ours.path.alpha(times[-1])
            y = y + options[3] * ((2 + gamma) * gamma) ** 0.5 * hat * z[-1]
            got = ours.predict(ours.path.alpha(up) * y, up, "x")
        torch.testing.assert_close(got, wanted, rtol=1e-7, atol=1e-7)
        assert next(draws) is z[0]


@pytest.mark.parametrize("coordinates", ["native", "straight"])
@pytest.mark.parametrize("steps", [12, 18])
def test_edm_churn_spreads_its_noise_over_all_steps_of_a_run(steps, coordinates):
    """The paper's N counts the step to sigma = 0, which is the jump to the estimate of x here."""
    options = 4.0, 0.01, 60.0, 1.003  # no noise is added at the first level and at the last
    field = eight_gaussians(EDM(0.002, 80.0, 7.0))
    sampler = Sampler(
        solver=Churn(*options),
        steps=steps,
        schedule=Karras(0.002, 80.0, 7.0),
        coordinates=coordinates,
        dtype=torch.float64,
    )
    flow = sampler.seen(field, None)
    layout = sampler.plan(flow)
    assert layout.steps == steps and layout.jump
    ramp = torch.linspace(80 ** (1 / 7), 0.002 ** (1 / 7), steps, dtype=torch.float64)
    levels = torch.cat([ramp**7, torch.zeros(1).double()])
    walk = Brownian(0, 6, (2,), 3)
    z = [walk(t, s) / (s - t).sqrt() for t, s in pairwise(layout.times)]
    x = 80 * noise(6)
    wanted = algorithm_2(field, x, levels, [*z, torch.zeros(6, 2)], *options)
    first = flow.path.alpha(layout.times[0])
    got = sampler.carry(flow, layout, range(6), 3, first * x)
    torch.testing.assert_close(got, wanted, rtol=1e-6, atol=1e-6)


def test_edm_churn_without_churn_is_heun_in_the_noise_level():
    """The EDM path with rho = 1 has the noise level for its time, up to a line."""
    field, times = eight_gaussians(EDM(0.05, 8.0, 1.0)), grid(0, 1, 15)
    x = 8 * noise(6)
    got = walk(Churn(0.0, *ALWAYS), field, x, times, silent)
    torch.testing.assert_close(got, integrate(Heun(), field, x, times), rtol=1e-9, atol=1e-9)


def test_no_eta_is_the_ode():
    field, x, times = eight_gaussians(CondOT()), noise(6), grid(0, 1, 9)
    got = walk(DPMppSDE(1, 0.0), field, x, times, silent)
    torch.testing.assert_close(got, integrate(Euler(), field, x, times), rtol=1e-9, atol=1e-9)
    got = walk(DPMppSDE(2, 0.0), field, x, times, silent)
    wanted = integrate(DPMpp(2, False), field, x, times)
    torch.testing.assert_close(got, wanted, rtol=1e-9, atol=1e-9)


def test_no_correction_is_the_predictor():
    field, x, times = eight_gaussians(CondOT()), noise(6), grid(0, 1, 9)
    for predictor in ("ddpm", "euler_maruyama"):
        alone = walk(named("solver", predictor), field, x, times, brownian((6, 2)))
        got = walk(PredictorCorrector(predictor, 0, 0.2), field, x, times, brownian((6, 2)))
        torch.testing.assert_close(got, alone)
        more = walk(PredictorCorrector(predictor, 1, 0.2), field, x, times, brownian((6, 2)))
        assert (more - alone).norm() > 0.1


def test_one_correction_by_hand():
    """Of p_t = N(0, S) with no step to speak of: x - e x / S + sqrt(2 e) z, e = 2 (0.2 beta)^2."""
    one = torch.ones(1).double()
    field = Mixture(CondOT(), one, torch.zeros(1, 1).double(), one[None, None])
    t, s, x, z = at(0.5), at(0.5 + 1e-12), one[None], 0.7
    got, _ = PredictorCorrector("ddpm", 1, 0.2).step(
        field, x, t, s, None, lambda t, s: (s - t).sqrt() * z
    )
    assert got.item() == pytest.approx(1 - 0.02 / 0.5 + 0.2 * z, abs=1e-5)


# --- options --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("make", "ode"),
    [
        (lambda until: EulerMaruyama(1.0, until), Euler()),
        (lambda until: DPMppSDE(1, 1.0, until), Euler()),  # DDIM, in straight coordinates
        (lambda until: Churn(20.0, *ALWAYS, until), Churn(0.0, *ALWAYS)),
    ],
    ids=["euler_maruyama", "ddpm", "edm_churn"],
)
def test_after_until_the_noise_is_off(make, ode):
    field, x, times = eight_gaussians(CondOT()), noise(6), grid(0.1, 0.9, 8)
    split = 4
    before = walk(make(1.0), field, x, times[: split + 1], brownian((6, 2)))
    x_split = before
    for t, s in pairwise(times[split:]):
        before, _ = ode.step(field, before, t, s, None, silent)
    draws = brownian((6, 2))
    state = None
    y, solver = x, make(times[split].item())
    for k, (t, s) in enumerate(pairwise(times)):
        state = solver.begin(times[: split + 1]) if k == 0 else state
        y, state = solver.step(field, y, t, s, state, draws if k < split else silent)
        if k == split - 1:
            torch.testing.assert_close(y, x_split)
    torch.testing.assert_close(y, before, rtol=1e-9, atol=1e-9)


def test_the_last_step():
    """On VP in its own time, from a law N(0, 1/4): the three rules by their formulas."""
    one = torch.ones(1).double()
    path = VP()
    field = Mixture(path, one, torch.zeros(1, 1).double(), 0.25 * one[None, None])
    x, t, s = one[None], at(0.9), at(0.97)
    h, law = 0.07, path.alpha(t) ** 2 / 4 + path.beta(t) ** 2
    score, x_hat = -1 / law, path.alpha(t) / 4 / law
    rate = path.d_alpha(t) / path.alpha(t)
    v = rate + path.beta(t) * (path.beta(t) * rate - path.d_beta(t)) * score
    eps = -path.beta(t) * score
    wanted = {
        "euler": 1 + h * v,
        "mean": 1 + h * (v + 2 * score),
        "tweedie": path.alpha(s) * x_hat + path.beta(s) * eps,
    }
    for last, value in wanted.items():
        times = torch.stack([at(0.8), t, s])
        solver = EulerMaruyama(2.0, last=last)
        got, _ = solver.step(field, x, t, s, solver.begin(times), silent)
        assert got.item() == pytest.approx(value.item(), rel=1e-9)
        with pytest.raises(AssertionError, match="noise"):
            solver.step(field, x, times[0], t, solver.begin(times), silent)
    end, _ = EulerMaruyama(2.0, last="tweedie").step(field, x, t, at(1.0), None, silent)
    assert end.item() == pytest.approx(x_hat.item())


def test_a_formula_is_the_diffusion_it_spells():
    t = grid(0.05, 0.95, 9)
    for text, name in (("sqrt(1-t)", "linear"), ("sin(pi*t)", "inc_dec")):
        torch.testing.assert_close(
            EulerMaruyama(text).squared(CondOT(), t), DIFFUSIONS[name](CondOT(), t)
        )
    torch.testing.assert_close(
        EulerMaruyama("sqrt(2*(1-t)/t)").squared(CondOT(), t), DIFFUSIONS["path"](CondOT(), t)
    )
    torch.testing.assert_close(EulerMaruyama("t").squared(CondOT(), t), t**2)
    torch.testing.assert_close(EulerMaruyama("linear").squared(VP(), t), 1 - t)  # a name wins


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(("lo", "hi"), [(0.0, 1.0), (0.1, 0.9)])
def test_price_is_what_is_counted(name, lo, hi):
    solver = named("solver", name)
    for steps in (1, 2, 5):
        field = eight_gaussians(CondOT())
        x = walk(solver, field, noise(7), grid(lo, hi, steps), brownian((7, 2)))
        assert x.isfinite().all()
        assert field.evaluations == 7 * solver.nfe(steps)
    assert solver.nfe(0) == 0


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("path", [CondOT(), VP(), VE()], ids=["condot", "vp", "ve"])
def test_samples_do_not_depend_on_their_batch(name, path):
    field = eight_gaussians(path)
    for coordinates in ("straight", "native"):
        more = {"solver": name, "steps": 6, "coordinates": coordinates, "dtype": torch.float64}
        whole = generate(field, 70, **more)
        assert whole.nfe_counted == whole.nfe_planned
        parts = generate(field, 70, batch_size=45, **more)
        torch.testing.assert_close(parts.x, whole.x, rtol=1e-9, atol=1e-9)
        assert (generate(field, 70, seed=1, **more).x - whole.x).abs().amax(1).min() > 0


@pytest.mark.parametrize("name", NAMES)
def test_configs_are_short_and_build(name):
    spec = OmegaConf.to_container(OmegaConf.load(config_folder() / "solver" / f"{name}.yaml"))
    assert 2 <= len(spec) <= 7
    solver = build(spec)
    assert solver.stochastic and solver.asks in ("x", "straight")


@pytest.mark.parametrize(
    ("name", "options", "said"),
    [
        ("euler_maruyama", {"diffusion": "linaer"}, "diffusion=linaer.*linear"),
        ("euler_maruyama", {"diffusion": "1/(t-0.5)"}, "diffusion=.*finite"),
        ("euler_maruyama", {"diffusion": "x+t"}, "diffusion=.*unknown name 'x'"),
        ("euler_maruyama", {"diffusion": "__import__('os')"}, "diffusion="),
        ("euler_maruyama", {"until": -1.0}, "until=-1"),
        ("euler_maruyama", {"last": "mode"}, "last=mode.*tweedie"),
        ("ddpm", {"order": 3}, "order=3"),
        ("ddpm", {"eta": -0.1}, "eta=-0.1"),
        ("dpmpp_2m_sde", {"until": float("nan")}, "until=nan"),
        ("edm_churn", {"s_churn": -1}, "s_churn=-1"),
        ("edm_churn", {"s_noise": float("nan")}, "s_noise=nan"),
        ("predictor_corrector", {"predictor": "heun"}, "predictor=heun.*ddpm"),
        ("predictor_corrector", {"corrections": 1.5}, "corrections=1.5"),
        ("predictor_corrector", {"corrections": -1}, "corrections=-1"),
        ("predictor_corrector", {"snr": 1.0}, "snr=1"),
    ],
)
def test_wrong_options_are_refused(name, options, said):
    with pytest.raises(FmdiffError, match=f"solver.{said}"):
        named("solver", name, **options)


def test_normals_are_independent_and_of_variance_1():
    walk = Brownian(0, 4000, (1,), 0)
    draws = torch.cat(normals(walk, at(0.2), at(0.5), 3), 1)
    assert ((draws.T @ draws / 4000 - torch.eye(3)).abs() < 4 * (2 / 4000) ** 0.5).all()
