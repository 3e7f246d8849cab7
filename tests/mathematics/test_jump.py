"""Jumps of a flow map: exact for every number of steps, at the right law with noise added anew."""

import copy

import pytest
import torch
from conftest import COVS, MEANS, WEIGHTS, every_path, some_paths
from torch import nn

from fmdiff.build import config_folder, named
from fmdiff.errors import FmdiffError
from fmdiff.exact import Mixture
from fmdiff.field import Field, NetField
from fmdiff.guidance import CFG, Autoguidance, Unguided
from fmdiff.integration import integrate, plan
from fmdiff.inversion import encode
from fmdiff.likelihood import log_prob
from fmdiff.path import EDM, VP, CondOT, Cosine, expand
from fmdiff.randomness import Brownian
from fmdiff.sampling import Sampler, generate, view
from fmdiff.solvers.jump import Jump
from fmdiff.solvers.runge_kutta import Heun

MEAN = torch.tensor([1.0, -0.5], dtype=torch.float64)
VARIANCE = torch.tensor([0.5, 0.05], dtype=torch.float64)
SCHEDULES = sorted(path.stem for path in (config_folder() / "schedule").glob("*.yaml"))
SCHEDULES.remove("fitted")
GUIDANCE = {"none": Unguided(), "cfg": CFG(2.0), "interval": CFG(2.0, interval=[0.2, 0.5])}


class Gaussian(Field):
    """The map of one Gaussian N(m, diag c) in closed form, by label if there are classes.

    X = alpha_s m + sqrt(S_s / S_t) (x - alpha_t m) on each axis, S = alpha^2 c + beta^2.
    """

    two_times = True

    def __init__(self, path, classes=0, y=None, gaussian=True):
        self.path, self.shape, self.classes, self.y = path, (2,), classes, y
        self.gaussian = gaussian

    def ends(self, x, t, s):
        """The state at s (), and its derivative in s."""
        t = expand(t, x)
        m = MEAN if self.y is None else MEAN * (1 + self.y)[:, None]
        (a, b), (a_s, b_s), (d_a, d_b) = (
            self.path.row("x_t", t),
            self.path.row("x_t", s),
            self.path.row("v", s),
        )
        spread = (a_s**2 * VARIANCE + b_s**2).sqrt() / (a**2 * VARIANCE + b**2).sqrt()
        slope = (a_s * d_a * VARIANCE + b_s * d_b) / (a_s**2 * VARIANCE + b_s**2) * spread
        return a_s * m + spread * (x - a * m), d_a * m + slope * (x - a * m)

    def predict(self, x_t, t, kind, s=None):
        self.evaluations += len(x_t)
        x, time = x_t.double(), expand(t, x_t)
        if s is None or bool((s == t).all()):
            straight = self.path.convert(self.ends(x, t, time)[1], x, t, "v", "straight")
        else:
            sizes = [sum(self.path.row("x_t", expand(u, x))) for u in (t, s)]
            ahead = self.ends(x, t, expand(s, x))[0] / sizes[1]
            h = self.path.r(expand(s, x)) - self.path.r(time)
            straight = (ahead - x / sizes[0]) / h
        return self.path.convert(straight, x, t, "straight", kind).to(x_t)

    def interval(self, kind="v"):
        return 0.0, 1.0

    def start(self, eps, t, first, seed):
        a, b = self.path.row("x_t", t)
        m = MEAN if self.y is None else MEAN * (1 + self.y)[:, None]
        return (a * m + (a**2 * VARIANCE + b**2).sqrt() * eps).to(eps)

    def bind(self, y):
        bound = copy.copy(self)
        bound.y, bound.evaluations = y, 0
        return bound

    def to(self, device, dtype):
        return self


def truth(field, x, t=0.0, s=1.0):
    """X(x, t, s) of the field's path."""
    t, s = (torch.as_tensor(time, dtype=torch.float64) for time in (t, s))
    return field.ends(x, t, s)[0]


EPS = torch.randn(50, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
EXACT = {"eps": EPS, "dtype": torch.float64, "solver": "jump"}


def started(field):
    return field.start(EPS, torch.zeros((), dtype=torch.float64), 0, 0)


# --- without noise --------------------------------------------------------------------------


@every_path
def test_the_map_of_the_tests_is_the_flow_of_its_field(path):
    """By Runge-Kutta; and its mean velocity tends to the field's."""
    field = Gaussian(path)
    t, s = (path.time_of_r(torch.tensor(r, dtype=torch.float64)) for r in (0.3, 0.8))
    times = path.time_of_r(torch.linspace(0.3, 0.8, 21, dtype=torch.float64))
    x = field.start(EPS, t, 0, 0)
    fine = integrate(named("solver", "rk4"), field, x, times)
    torch.testing.assert_close(field.flow(x, t, s), fine, rtol=0, atol=1e-5)
    near = field.predict(x, t, "straight", t + 1e-6)
    torch.testing.assert_close(near, field.predict(x, t, "straight"), rtol=1e-4, atol=1e-4)


@every_path
@pytest.mark.parametrize("coordinates", ["straight", "native"])
@pytest.mark.parametrize("steps", [1, 2, 3, 8])
def test_the_jump_with_the_exact_map_is_exact(path, coordinates, steps):
    """To the end of the path by final=solver, and to the data where they are at that end."""
    field = Gaussian(path)
    end = truth(field, started(field))
    size = sum(path.row("x_t", torch.ones((), dtype=torch.float64)))
    how = EXACT | {"coordinates": coordinates, "steps": steps}
    result = generate(field, final="solver", **how)
    unit = size if coordinates == "straight" else 1
    torch.testing.assert_close(result.x * unit, end, rtol=0, atol=1e-9)
    assert result.nfe_planned == result.nfe_counted == result.plan.steps == steps
    result = generate(field, **how)
    left = 1 - path.r(torch.ones((), dtype=torch.float64)).item()
    # of a path with a noisy end the last jump goes on to the data in a straight line
    torch.testing.assert_close(result.x, end / size, rtol=0, atol=1e-9 + 4 * left)
    assert result.nfe_planned == result.nfe_counted == result.plan.steps == steps


@every_path
@pytest.mark.parametrize("noise", [0.0, 0.6, 1.0])
def test_coordinates_change_nothing(path, noise):
    """At the same noise levels; the draws of noise are the same, too."""
    field = Gaussian(path)
    how = EXACT | {"solver": Jump(noise), "steps": 4, "schedule": "karras"}
    a, b = (generate(field, coordinates=c, **how).x for c in ("straight", "native"))
    torch.testing.assert_close(a, b, rtol=0, atol=1e-6)


@pytest.mark.parametrize("path", [EDM(0.002, 80.0, 7.0), VP(), CondOT()], ids=str)
def test_a_single_jump_goes_from_the_start_to_the_data(path):
    """x + (1 - r) u in straight coordinates, whatever the path leaves at its end."""
    field, zero = Gaussian(path), torch.zeros((), dtype=torch.float64)
    x, one = started(field), torch.ones((), dtype=torch.float64)
    u = field.predict(x, zero, "straight", one)
    expected = x / sum(path.row("x_t", zero)) + (1 - path.r(zero)) * u
    for coordinates in ("straight", "native"):
        result = generate(field, steps=1, coordinates=coordinates, **EXACT)
        torch.testing.assert_close(result.x, expected, rtol=0, atol=1e-12)
        assert result.plan.jump and len(result.plan.times) == 1 and result.nfe_counted == 1


# --- with noise -----------------------------------------------------------------------------


@every_path
@pytest.mark.parametrize("noise", [0.0, 0.3, 0.8, 1.0])
@pytest.mark.parametrize("coordinates", ["straight", "native"])
def test_a_jump_keeps_the_law_whatever_the_noise(path, noise, coordinates):
    """x_s = a x_t + b z + c of one Gaussian: a^2 Var x_t + b^2 = Var x_s, to rounding."""
    field = view(Gaussian(path), coordinates)
    path = field.path
    t, s = (path.time_of_r(torch.tensor(r, dtype=torch.float64)) for r in (0.2, 0.7))
    solver = Jump(noise)

    def ahead(x, z):
        x, z = (torch.full((1, 2), value, dtype=torch.float64) for value in (x, z))
        return solver.step(field, x, t, s, None, lambda a, b: (b - a).sqrt() * z)[0]

    c = ahead(0.0, 0.0)
    a, b = ahead(1.0, 0.0) - c, ahead(0.0, 1.0) - c
    (alpha, beta), (alpha_s, beta_s) = path.row("x_t", t), path.row("x_t", s)
    before, after = (p**2 * VARIANCE + q**2 for p, q in ((alpha, beta), (alpha_s, beta_s)))
    torch.testing.assert_close((a**2 * before + b**2)[0], after, rtol=1e-10, atol=0)
    torch.testing.assert_close((a * alpha * MEAN + c)[0], alpha_s * MEAN, rtol=1e-10, atol=1e-10)
    left = alpha_s * (1 / field.end() - 1)  # of the path's end; no jump ends at less noise
    fresh = noise**2 * beta_s**2 if noise < 1 else beta_s**2 - left**2
    torch.testing.assert_close(b[0] ** 2, fresh.expand(2), rtol=1e-9, atol=1e-12)


def test_full_noise_is_multistep_consistency_sampling():
    """Algorithm 1 of Song et al. 2023: f(x, t) is at the level 0.002, and noise is added to it."""
    path = EDM(0.002, 80.0, 7.0)
    field, draws = Gaussian(path), []
    times = torch.linspace(0, 1, 5, dtype=torch.float64)[:-1]

    def noise(t, s):
        draws.append(
            torch.randn(50, 2, dtype=torch.float64, generator=torch.manual_seed(len(draws)))
        )
        return draws[-1] * (s - t).sqrt()

    x = integrate(Jump(1.0), field, started(field), times, noise)
    state, before, one = started(field), times[0], torch.ones((), dtype=torch.float64)
    for s, z in zip(times[1:], draws, strict=True):
        state = field.flow(state, before, one)
        state, before = state + (path.beta(s) ** 2 - 0.002**2).sqrt() * z, s
    torch.testing.assert_close(x, state, rtol=0, atol=1e-9)


def test_noise_between_is_gamma_sampling():
    """CTM's: to the level sqrt(1 - gamma^2) of the next one, then noise gamma of it."""
    path, gamma = EDM(0.002, 80.0, 7.0), 0.6
    field, z = Gaussian(path), torch.randn(50, 2, dtype=torch.float64)
    t, s = torch.tensor([0.2, 0.5], dtype=torch.float64)
    x = field.start(EPS, t, 0, 0)
    result, _ = Jump(gamma).step(field, x, t, s, None, lambda a, b: (b - a).sqrt() * z)
    level = path.beta(s)
    between = path.time_of_logsnr(-2 * (0.8 * level).log())
    expected = truth(field, x, t, between) + gamma * level * z
    torch.testing.assert_close(result, expected, rtol=0, atol=1e-9)


def test_noise_is_that_of_the_sample():
    """Not of its batch: the same seed, other batch sizes; and every jump draws its own."""
    field, how = Gaussian(VP()), {"solver": Jump(1.0), "steps": 4}
    whole, parts = (generate(field, 9, **how, batch_size=size).x for size in (9, 4))
    torch.testing.assert_close(whole, parts, rtol=0, atol=1e-6)
    assert (generate(field, 9, seed=1, **how).x - whole).abs().min() > 1e-6
    still = generate(field, 9, solver="jump", steps=4).x
    assert (still - whole).abs().min() > 1e-6


# --- plans ----------------------------------------------------------------------------------


class Short(Gaussian):
    """A field that cannot be asked at the end, as one of a network that predicts x."""

    def interval(self, kind="v"):
        return 0.0, 0.99


def test_the_last_jump_takes_the_rest_of_the_way():
    """K jumps are K evaluations. By final=solver they end where the field does."""
    explicit, short = ({"times": times} for times in ([0, 0.5, 1], [0, 0.5]))
    edm, whole = EDM(0.002, 80.0, 7.0), [0, 0.5, 1]
    for field, times, final, expected in (
        (Gaussian(CondOT()), None, "auto", [0, 0.5]),
        (Gaussian(CondOT()), None, "denoise", [0, 0.5]),
        (Gaussian(CondOT()), None, "solver", whole),
        (Gaussian(CondOT()), explicit, "auto", [0, 0.5]),
        (Gaussian(CondOT()), explicit, "solver", whole),
        (Gaussian(CondOT()), short, "auto", [0, 0.5]),
        (Short(CondOT()), None, "auto", [0, 0.5]),
        (Short(CondOT()), explicit, "auto", [0, 0.5]),
        (Short(CondOT()), None, "solver", [0, 0.495, 0.99]),
        (Gaussian(edm), None, "auto", [0, 0.5]),
        (Gaussian(edm), explicit, "auto", [0, 0.5]),
        (Gaussian(edm), None, "solver", whole),
    ):
        law = times and named("schedule", "explicit", **times)
        layout = plan(field, Jump(), None if times else 2, law, final)
        assert layout.times.tolist() == expected and layout.jump == (final != "solver")
        assert layout.steps == layout.nfe == 2
    quadratic = plan(Short(CondOT()), Jump(), 2, lambda u: u**2)
    assert quadratic.times.tolist() == [0, 0.25]
    karras = plan(Gaussian(edm), Jump(), 2, named("schedule", "karras"))
    assert karras.times.tolist() == pytest.approx([0, 0.5])  # its law, the end left out


def test_four_jumps_are_the_default():
    assert plan(Gaussian(CondOT()), Jump()).nfe == 4
    assert plan(Gaussian(CondOT()), Heun()).steps == 28
    assert plan(Gaussian(CondOT()), Jump(), nfe=7).steps == 7
    with pytest.raises(FmdiffError, match="steps=4 and nfe=4 are both given"):
        plan(Gaussian(CondOT()), Jump(), 4, nfe=4)


@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("guidance", GUIDANCE.values(), ids=GUIDANCE)
def test_planned_is_counted(schedule, guidance):
    field = Gaussian(VP(), classes=2)
    field.atoms = VP().r(torch.linspace(0, 0.99, 50, dtype=torch.float64))
    times = {"times": [0.1, 0.2, 0.3, 1]} if schedule == "explicit" else {}
    law = named("schedule", schedule, **times)
    for solver in (Jump(), Jump(0.5)):
        for coordinates in ("straight", "native"):
            for final in ("auto", "solver"):
                if final == "solver" and schedule == "trained":
                    continue
                how = {"solver": solver, "schedule": law, "coordinates": coordinates}
                result = generate(field, 3, steps=3, final=final, guidance=guidance, **how)
                assert result.x.isfinite().all() and result.plan.steps == 3
                assert result.nfe_counted == result.nfe_planned == result.plan.nfe
    if schedule not in ("explicit", "trained"):
        result = generate(field, 3, nfe=7, guidance=guidance, schedule=law, solver="jump")
        assert result.nfe_counted == result.nfe_planned <= 7


def test_the_way_of_a_jump_is_watched_for_nothing():
    field, how = Gaussian(VP()), {"solver": "jump", "steps": 3}
    alone, watched = (generate(field, 5, trajectory=flag, **how) for flag in (False, True))
    assert torch.equal(alone.x, watched.x) and alone.nfe_counted == watched.nfe_counted == 3
    states, times = watched.trajectory
    assert len(states) == 4 and times[-1] == 1 and len(watched.x_hat[0]) == 3
    torch.testing.assert_close(states[-1], watched.x)


def test_fitted_times_suit_jumps():
    """The map is exact, so that all times are as good; but they are found."""
    fitted = named("schedule", "fitted", n=4, reference=20)
    for field in (Gaussian(VP()), Short(CondOT())):
        model = fitted.model(field, Sampler(solver="jump", steps=3))
        result = fitted.fit(model)
        assert len(result["times"]) == 4 and result["times"][-1] == 1
        law = named("schedule", "explicit", times=result["times"])
        assert generate(field, 3, solver="jump", schedule=law).nfe_counted == 3


# --- guidance -------------------------------------------------------------------------------


def test_guidance_combines_the_ends_of_two_jumps():
    """X = X_guide + w (X_cond - X_guide), from the same state; only inside its interval."""
    field = Gaussian(CondOT(), classes=2)
    y = torch.tensor([0, 1]).repeat(25)
    guide, conditional = (field.bind(label) for label in (torch.full_like(y, 2), y))
    x, expected = started(guide), started(conditional)
    x = expected
    for t, s in ((0.0, 0.5), (0.5, 1.0)):
        x_0, x_1 = (truth(branch, x, t, s) for branch in (guide, conditional))
        x = x_0 + 3 * (x_1 - x_0)
    result = generate(field, steps=2, guidance=CFG(3.0), classes=[0, 1], **EXACT)
    torch.testing.assert_close(result.x, x, rtol=0, atol=1e-9)
    assert result.nfe_counted == 4
    x = truth(conditional, expected, 0.0, 0.5)
    x_0, x_1 = (truth(branch, x, 0.5, 1.0) for branch in (guide, conditional))
    late = CFG(3.0, interval=[0.4, 1.0])
    result = generate(field, steps=2, guidance=late, classes=[0, 1], **EXACT)
    torch.testing.assert_close(result.x, x_0 + 3 * (x_1 - x_0), rtol=0, atol=1e-9)
    assert result.nfe_counted == result.nfe_planned == 3


def test_a_guide_of_its_own_must_be_a_map():
    field, guide = Gaussian(CondOT(), classes=2), Gaussian(Cosine(), classes=2)
    result = generate(field, 4, solver="jump", steps=2, guidance=Autoguidance(2.0, guide))
    assert result.nfe_counted == 4
    guide.two_times = False
    with pytest.raises(FmdiffError, match="the guide is a velocity alone, and solver=jump needs"):
        generate(field, 4, solver="jump", guidance=Autoguidance(2.0, guide))
    assert generate(field, 4, solver="heun", guidance=Autoguidance(2.0, guide)).x.isfinite().all()


class Scaled(nn.Module):
    """A network whose answer tells what it was given."""

    def forward(self, x_t, t, y=None, s=None, w=None):
        out = torch.zeros_like(x_t)
        return out if w is None else out + w[:, None]


def scaled():
    field = NetField(Scaled(), CondOT(), "v", 1.0, 1e-5, (2,), classes=2)
    field.two_times, field.scales = True, (1.0, 4.0)
    return field


def test_a_scale_that_the_network_takes_costs_one_branch():
    field, how = scaled(), {"eps": EPS.float(), "solver": "jump", "steps": 2}
    for w, expected in ((1.0, 0.0), (3.0, 3.0)):
        result = generate(field, guidance=CFG(w), **how)
        torch.testing.assert_close(result.x, EPS.float() + 2**0.5 * expected)  # the scale of v
        assert result.nfe_counted == result.nfe_planned == 2
    for w in (0.5, 5.0):
        with pytest.raises(FmdiffError, match=f"guidance.w={w:g}: .* with w from 1 to 4"):
            generate(field, guidance=CFG(w), **how)
    # what the network was not trained with takes two branches of the plain map
    for guidance in (CFG(3.0, interval=[0.0, 0.5]), CFG("1+t")):
        assert generate(field, guidance=guidance, **how).nfe_counted > 2
    for solver in ("heun", "dopri5"):  # the rows of the latter end one by one
        assert generate(field, 5, solver=solver, guidance=CFG(3.0)).x.isfinite().all()


# --- the default, and what is refused -------------------------------------------------------


def test_a_network_that_is_a_map_jumps_by_default():
    """An exact field does not: there a jump is no cheaper than an ODE."""
    field = scaled()
    assert generate(field, 3).nfe_counted == 4
    assert generate(field, 3, solver="heun").nfe_counted == 56
    assert generate(field, 3, solver=Heun(), steps=2).nfe_counted == 4
    assert Sampler(steps=2).draw(field, 3).nfe_counted == 2
    assert Sampler().plan(field).nfe == Sampler().plan(view(field, "native")).nfe == 4
    assert generate(Gaussian(CondOT()), 3).nfe_counted == 28


def test_a_velocity_alone_does_not_jump():
    field = Gaussian(CondOT())
    field.two_times = False
    with pytest.raises(FmdiffError) as error:
        generate(field, 3, solver="jump")
    assert str(error.value) == (
        "solver=jump needs a flow map, and this is a velocity alone: choose another solver, like "
        "heun, or train a map with objective=flow_map init=RUN"
    )


def test_noise_needs_a_normal_source():
    field = Gaussian(CondOT(), gaussian=False)
    assert generate(field, 3, solver="jump").x.isfinite().all()
    with pytest.raises(FmdiffError, match=r"a normal source .*; choose solver\.noise=0$"):
        generate(field, 3, solver=Jump(0.5))
    for noise in (-0.1, 2, float("nan")):
        with pytest.raises(FmdiffError, match=f"solver.noise={noise}: a number from 0 to 1"):
            Jump(noise)


def test_jumps_have_no_way_back():
    field = Gaussian(CondOT())
    with pytest.raises(FmdiffError, match="Jump leads from noise to data alone"):
        log_prob(field, EPS, solver="jump")
    with pytest.raises(FmdiffError, match="needs a flow map"):
        encode(field, EPS, Jump(), 3)


# --- the exact map of a mixture -------------------------------------------------------------


def mixture(path):
    return Mixture(path, WEIGHTS, MEANS, COVS, torch.tensor([0, 1, 0]))


@some_paths
@pytest.mark.parametrize("steps", [1, 2, 3, 8])
def test_jumps_of_a_mixture_end_where_its_flow_does(path, steps):
    """In both coordinates, with classes and without: 1e-9 from one jump of all the way."""
    field, zero, one = mixture(path), *torch.tensor([0.0, 1.0], dtype=torch.float64)
    y = torch.tensor([0, 1, 2] * 4)
    for branch in (field, field.bind(y)):
        x = branch.start(EPS[:12], zero, 0, 0)
        end = branch.flow(x, zero, one)
        for coordinates, size in (("straight", sum(path.row("x_t", one))), ("native", 1)):
            flow = view(branch, coordinates)
            layout = plan(flow, Jump(), steps, final="solver")
            begin = x / sum(path.row("x_t", zero)) if coordinates == "straight" else x
            jumped = integrate(Jump(), flow, begin, layout.times) * size
            torch.testing.assert_close(jumped, end, rtol=0, atol=1e-9)


def energy(x, y):
    """2 E|x - y| - E|x - x'| - E|y - y'|, which is 0 for equal laws alone."""
    return (
        2 * torch.cdist(x, y).mean() - torch.cdist(x, x).mean() - torch.cdist(y, y).mean()
    ).item()


@pytest.mark.parametrize("path", [CondOT(), EDM(0.002, 80.0, 7.0)], ids=["condot", "edm"])
@pytest.mark.parametrize("noise", [0.0, 0.5, 1.0])
def test_jumps_of_a_mixture_have_its_law_whatever_the_noise(path, noise):
    """On the way and at the data, where 1,500 independent samples differ by 0.002."""
    field, n = mixture(path), 1500
    times = path.time_of_r(torch.tensor([0.0, 0.3, 0.6], dtype=torch.float64))
    eps = torch.randn(2, n, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    x = field.start(eps[0], times[0], 0, 0)
    walk = Brownian(0, n, (2,), 3)
    x = integrate(Jump(noise), field, x, times, walk)
    data, size = field.sample(n, 2 * n, 5).double(), sum(path.row("x_t", times[-1]))
    assert energy(x / size, path.mix(data, eps[1], times[-1]) / size) < 0.006
    x = Jump(noise).arrival(field, x, times[-1])
    assert energy(x, data) < 0.006
    torch.testing.assert_close(x.mean(0), data.mean(0), rtol=0, atol=0.15)
    torch.testing.assert_close(x.T.cov(), data.T.cov(), rtol=0, atol=0.25)
