"""Sampling end to end: plans and their price, reproducibility, and the law of the samples."""

import json
from pathlib import Path

import pytest
import torch
from conftest import every_path, some_paths
from torch import nn

from fmdiff.along import Straight
from fmdiff.build import named
from fmdiff.errors import FmdiffError
from fmdiff.exact import Mixture
from fmdiff.field import NetField
from fmdiff.guidance import CFG, Unguided
from fmdiff.integration import integrate, plan
from fmdiff.path import VE, VP, CondOT, Cosine
from fmdiff.randomness import noise
from fmdiff.sampling import default_batch_size, generate, view
from fmdiff.solvers.multistep import Adams
from fmdiff.solvers.runge_kutta import RK4, Euler, Heun, Midpoint
from fmdiff.solvers.solver import Solver
from fmdiff.solvers.stochastic import EulerMaruyama

SOLVERS = {
    "euler": Euler(),
    "midpoint": Midpoint(),
    "heun": Heun(),
    "rk4": RK4(),
    "adams": Adams(4, True),
    "adams_rk4": Adams(4, True, RK4()),
    "euler_maruyama": EulerMaruyama("beta"),
}
MEANS = torch.tensor([[-2.0, -2], [-2, 2], [2, -2], [2, 2]], dtype=torch.float64)


def gmm4(path):
    covs = 0.16 * torch.eye(2, dtype=torch.float64).expand(4, 2, 2)
    return Mixture(path, torch.full((4,), 0.25).double(), MEANS, covs, torch.arange(4))


class Tiny(nn.Module):
    def __init__(self):
        super().__init__()
        self.scale = nn.Parameter(torch.tensor(0.5))

    def forward(self, x_t, t, y):
        bias = 0 if y is None else 0.1 * y.view(-1, *[1] * (x_t.ndim - 1))
        return self.scale * torch.sin(x_t + bias) + (t / 1000).view(-1, *[1] * (x_t.ndim - 1))


def network(path, prediction="v", shape=(2,), classes=4, net=None):
    return NetField(net or Tiny(), path, prediction, 2.0, 1e-5, shape, classes)


# --- plans ----------------------------------------------------------------------------------


def test_a_jump_follows_where_noise_is_left():
    """final=auto; steps counts the jump, from a noisy end as well as in place of a last step."""
    clean, noisy = gmm4(CondOT()), network(CondOT(), "x")
    assert noisy.interval() == pytest.approx((0, 0.99))
    for field, final, times, jump, nfe in (
        (clean, "auto", [0, 0.25, 0.5, 0.75, 1], False, 4),
        (clean, "solver", [0, 0.25, 0.5, 0.75, 1], False, 4),
        (clean, "denoise", [0, 0.25, 0.5, 0.75], True, 4),
        (noisy, "auto", [0, 0.33, 0.66, 0.99], True, 4),
        (noisy, "denoise", [0, 0.33, 0.66, 0.99], True, 4),
        (noisy, "solver", [0, 0.2475, 0.495, 0.7425, 0.99], False, 4),
    ):
        made = plan(field, Euler(), 4, final=final)
        assert made.times.tolist() == pytest.approx(times) and made.times.dtype == torch.float64
        assert (made.jump, made.nfe) == (jump, nfe)
    assert plan(clean, Heun(), 28).nfe == 56
    assert plan(noisy, Heun(), 28).nfe == 27 * 2 + 1
    assert plan(clean, RK4(), 10, final="denoise").nfe == 9 * 4 + 1


def test_one_step_is_one_solver_step_or_one_jump():
    assert plan(gmm4(CondOT()), Euler(), 1).times.tolist() == [0, 1]
    for field, final in ((gmm4(CondOT()), "denoise"), (network(CondOT(), "x"), "auto")):
        made = plan(field, Heun(), 1, final=final)
        assert made.times.tolist() == [0] and made.jump and made.nfe == 1


def test_a_schedule_is_a_law_of_u():
    made = plan(gmm4(CondOT()), Euler(), 4, schedule=lambda u: u**2)
    assert made.times.tolist() == [0, 0.0625, 0.25, 0.5625, 1]
    made = plan(network(CondOT(), "x"), Euler(), 3, lambda u: u**2)
    assert made.times.tolist() == pytest.approx([0, 0.99 / 4, 0.99])
    assert named("schedule", "uniform")(torch.tensor(0.3)) == torch.tensor(0.3)


@some_paths
@pytest.mark.parametrize("solver", SOLVERS.values(), ids=SOLVERS)
def test_the_plan_states_what_is_paid(path, solver):
    for field in (gmm4(path), network(path, "x")):
        for final in ("auto", "solver", "denoise"):
            for guidance, branches in ((Unguided(), 1), (CFG(2.0), 2)):
                for steps in (1, 4):
                    made = generate(
                        field, 5, solver=solver, steps=steps, final=final, guidance=guidance
                    )
                    assert made.nfe_counted == made.nfe_planned == made.plan.nfe
                    assert made.nfe_planned % branches == 0
                    assert len(made.plan.times) - 1 <= steps
                    assert made.x.shape == (5, 2) and made.x.dtype == torch.float32


@pytest.mark.parametrize("solver", [s for s in SOLVERS if s != "adams_rk4"])
@pytest.mark.parametrize(
    "guidance",
    [Unguided(), CFG(2.0), CFG(2.0, interval=[0.25, 0.7])],
    ids=["none", "cfg", "interval"],
)
def test_nfe_takes_the_most_steps_it_pays_for(solver, guidance):
    """Against trying every number of steps."""
    solver = SOLVERS[solver]
    for field in (gmm4(CondOT()), network(CondOT(), "x")):
        seen = view(guidance(field, torch.zeros(2, dtype=torch.long)), "straight")
        prices = {steps: plan(seen, solver, steps).nfe for steps in range(1, 40)}
        for nfe in (8, 9, 15, 16, 35):
            most = max(steps for steps, price in prices.items() if price <= nfe)
            made = plan(seen, solver, nfe=nfe)
            assert made.steps == most and made.nfe == prices[most] <= nfe
        made = generate(field, 3, solver=solver, nfe=20, guidance=guidance)
        assert made.nfe_counted == made.nfe_planned <= 20


def test_steps_or_nfe():
    field = gmm4(CondOT())
    assert plan(field, Euler()).nfe == 28
    with pytest.raises(FmdiffError, match="steps=4 and nfe=20 are both given"):
        plan(field, Euler(), 4, nfe=20)
    with pytest.raises(FmdiffError, match="nfe=3: one step costs 4 evaluations"):
        plan(field, RK4(), nfe=3)
    with pytest.raises(FmdiffError, match="nfe=20: an adaptive solver"):
        plan(field, named("solver", "dopri5"), nfe=20)
    assert plan(named("model", "data", gmm4_data(), CondOT()), Euler(), nfe=5).nfe == 0


def gmm4_data():
    data = named("data", "gmm4")
    data.prepare()
    return data


def test_an_adaptive_solver_takes_one_interval_unless_it_is_watched():
    """Its price is known after the run."""
    solver = named("solver", "dopri5")
    for field, final, times, jump in (
        (gmm4(CondOT()), "auto", [0, 1], False),
        (gmm4(CondOT()), "denoise", [0, 0.8], True),
        (network(CondOT(), "x"), "auto", [0, 0.99], True),
    ):
        made = plan(field, solver, 5, final=final)
        assert made.times.tolist() == pytest.approx(times)
        assert (made.jump, made.nfe) == (jump, None)
        watched = plan(field, solver, 5, final=final, trajectory=True)
        assert watched.steps == 5 and watched.nfe is None
        shown = generate(field, 3, solver=solver, steps=5, final=final, trajectory=True)
        assert len(shown.trajectory[1]) == 6 and shown.nfe_planned is None
        alone = generate(field, 3, solver=solver, steps=5, final=final)
        assert alone.nfe_counted > 5
        torch.testing.assert_close(alone.x, shown.x, rtol=0, atol=2e-3)
    assert plan(gmm4(CondOT()), solver, 1, final="denoise").nfe == 1


def test_a_solver_hears_all_the_times_before_its_first_step():
    class Listens(Euler):
        def begin(self, times, jump):
            return times.tolist()

        def step(self, field, x, t, s, state, noise):
            heard.append((t.item(), state))
            return super().step(field, x, t, s, None, noise)[0], state[1:]

    heard = []
    times = torch.tensor([0, 0.3, 1], dtype=torch.float64)
    integrate(Listens(), gmm4(CondOT()), torch.zeros(1, 2), times)
    assert heard == [(0, [0, 0.3, 1]), (0.3, [0.3, 1])]


# --- reproducibility ------------------------------------------------------------------------


@pytest.mark.parametrize("solver", ["heun", "adams", "euler_maruyama"])
@pytest.mark.parametrize("exact", [True, False], ids=["exact", "network"])
def test_equal_seeds_give_equal_bytes_and_batches_do_not_matter(solver, exact):
    field = gmm4(VP()) if exact else network(CondOT())
    made = {
        size: generate(field, 130, solver=solver, steps=5, batch_size=size) for size in (7, 64)
    }
    again = generate(field, 130, solver=solver, steps=5, batch_size=64)
    assert torch.equal(again.x, made[64].x) and torch.equal(again.y, made[64].y)
    assert torch.equal(made[7].y, made[64].y)
    torch.testing.assert_close(made[7].x, made[64].x, rtol=0, atol=1e-4)
    fewer = generate(field, 70, solver=solver, steps=5, batch_size=64)
    torch.testing.assert_close(fewer.x, made[64].x[:70], rtol=0, atol=1e-4)
    other = generate(field, 130, solver=solver, steps=5, seed=1)
    assert (other.x - made[64].x).abs().amax(1).min() > 0
    assert len(made[64].x.unique(dim=0)) == 130


def test_starts_and_increments_are_those_of_the_seed_and_index():
    """With v = 0 a network's samples are its start; with nothing but noise, W_1."""
    zero = nn.Module()
    zero.forward = lambda x_t, t, y: torch.zeros_like(x_t)
    field = network(CondOT(), "v", classes=0, net=zero)
    made = generate(field, 100, solver="euler", steps=3, seed=5, batch_size=9)
    assert torch.equal(made.x, noise(0, 100, (2,), 5, "start"))

    class Walk(Solver):
        stochastic = True

        def nfe(self, steps):
            return 0

        def step(self, field, x, t, s, state, noise):
            return x + noise(t, s), None

    walked = generate(field, 100, solver=Walk(), steps=4, seed=5, batch_size=9).x
    brownian = noise(0, 100, (2,), 5, "brownian", 0)  # the first draw is W_1
    torch.testing.assert_close(walked - made.x, brownian, rtol=1e-5, atol=1e-6)
    assert brownian.std().item() == pytest.approx(1, abs=0.15)


def test_labels_go_round_and_wrong_ones_are_refused():
    field = gmm4(CondOT())
    assert generate(field, 6, steps=1, batch_size=4).y.tolist() == [0, 1, 2, 3, 0, 1]
    made = generate(field, 200, classes=[3, 1], batch_size=7)
    assert made.y.tolist() == [3, 1] * 100
    nearest = torch.cdist(made.x.double(), MEANS).argmin(1)
    assert torch.equal(nearest, made.y)
    assert generate(field, 3, steps=1, classes=2).y.tolist() == [2, 2, 2]
    with pytest.raises(FmdiffError, match="classes"):
        generate(field, 3, classes=[4])
    plain = network(CondOT(), classes=0)
    assert generate(plain, 3).y is None
    with pytest.raises(FmdiffError, match="without classes"):
        generate(plain, 3, classes=[0])
    with pytest.raises(FmdiffError, match="guidance"):
        generate(plain, 3, guidance=CFG(2))


def test_default_batch_size_is_a_function_of_shape():
    assert default_batch_size((2,)) == 4096
    assert default_batch_size((3, 32, 32)) == 64
    for shape in ((1, 28, 28), (3, 64, 64), (3, 512, 512), (3, 1024, 1024)):
        size = default_batch_size(shape)
        assert size >= 1 and (size < 64 or size % 64 == 0)


# --- the law of the samples -----------------------------------------------------------------


def check_moments(x):
    """Mean 0, variance 4.16, fourth moment of the gmm4, all within 5 standard errors."""
    x = x.double()
    n = len(x)
    fourth = 16 + 6 * 4 * 0.16 + 3 * 0.16**2
    for values, wanted in ((x, 0), (x**2, 4.16), (x[:, :1] * x[:, 1:], 0), (x**4, fourth)):
        error = values.std(0) / n**0.5
        assert ((values.mean(0) - wanted).abs() < 5 * error + 1e-2).all()


@every_path
@pytest.mark.parametrize("coordinates", ["straight", "native"])
def test_samples_of_an_exact_field_have_its_moments(path, coordinates):
    made = generate(gmm4(path), 2000, solver="heun", steps=40, coordinates=coordinates)
    check_moments(made.x)


@every_path
def test_any_field_can_be_sampled_along_any_path(path):
    inner = VP() if isinstance(path, CondOT) else CondOT()
    for coordinates in ("straight", "native"):
        made = generate(
            gmm4(inner), 1000, solver="heun", steps=40, path=path, coordinates=coordinates
        )
        check_moments(made.x)


@pytest.mark.parametrize(
    ("path", "diffusion"),
    [(CondOT(), "beta"), (CondOT(), "path"), (VP(), "path"), (VE(), 1.0), (Cosine(), "inc_dec")],
)
def test_samples_of_the_sde_have_the_moments(path, diffusion):
    made = generate(gmm4(path), 1500, solver=EulerMaruyama(diffusion), steps=200, final="denoise")
    x = made.x.double()
    assert ((x**2).mean(0) - 4.16).abs().max() < 0.15
    assert (torch.cdist(x, MEANS).amin(1) < 1.6).double().mean() > 0.99


@every_path
@pytest.mark.parametrize("coordinates", ["straight", "native"])
def test_the_start_of_a_network_has_the_second_moment_of_the_path(path, coordinates):
    seen = view(network(path), coordinates)
    t = plan(seen, Euler(), 4).times[0]
    start = seen.start(noise(0, 20_000, (2,), 0, "start"), t, 0, 0)
    wanted = (4 * seen.path.alpha(t) ** 2 + seen.path.beta(t) ** 2).sqrt().item()
    assert start.std().item() == pytest.approx(wanted, rel=0.02)


def test_native_coordinates_of_condot_are_straight():
    a, b = (generate(gmm4(CondOT()), 20, coordinates=c, steps=5).x for c in ("straight", "native"))
    assert torch.equal(a, b)
    field = gmm4(VP())
    assert view(field, "native") is field
    assert isinstance(view(field, "straight").path, CondOT)
    assert isinstance(view(field, "native", Cosine()).path, Cosine)


@every_path
@pytest.mark.parametrize("prediction", ["x", "eps", "v", "score", "v_sh"])
@pytest.mark.parametrize("coordinates", ["straight", "native"])
def test_every_network_gives_finite_samples(path, prediction, coordinates):
    for final in ("auto", "denoise"):
        made = generate(
            network(path, prediction),
            4,
            solver="heun",
            steps=5,
            coordinates=coordinates,
            final=final,
        )
        assert made.x.isfinite().all()


def test_a_jump_gives_the_estimate_of_x():
    field = gmm4(CondOT())
    made = generate(field, 8, solver="euler", steps=4, final="denoise", dtype=torch.float64)
    bound = field.bind(made.y)
    times = torch.linspace(0, 0.75, 4, dtype=torch.float64)
    eps = noise(0, 8, (2,), 0, "start").double()
    x = integrate(Euler(), bound, bound.start(eps, times[0], 0, 0), times)
    torch.testing.assert_close(made.x, bound.predict(x, times[-1], "x"))
    assert made.x.dtype == torch.float64


@pytest.mark.parametrize("final", ["auto", "solver", "denoise"])
@pytest.mark.parametrize("prediction", ["v", "x"])
def test_a_trajectory_has_every_state(final, prediction):
    field = network(VP(), prediction, shape=(1, 4, 4))
    made = generate(
        field, 10, steps=6, final=final, trajectory=True, batch_size=4, coordinates="straight"
    )
    states, times = made.trajectory
    assert states.shape == (7, 10, 1, 4, 4) and times.shape == (7,)
    assert (times.diff() > 0).all()
    if made.plan.jump:
        assert times[-1] == 1
        assert torch.equal(states[-1], made.x)
    start = Straight(field).start(noise(0, 10, (1, 4, 4), 0, "start"), times[0], 0, 0)
    torch.testing.assert_close(states[0], start)
    assert generate(field, 2, steps=2).trajectory is None


def test_samples_that_are_not_finite_are_refused():
    class Broken(nn.Module):
        def forward(self, x_t, t, y):
            return torch.where(y.view(-1, 1) == 1, torch.nan, x_t)

    with pytest.raises(FmdiffError, match="2 of 8 samples are not finite"):
        generate(network(CondOT(), net=Broken()), 8, steps=2)


def test_progress_counts_samples_and_solvers_are_named_by_their_yaml():
    seen = []
    generate(gmm4(CondOT()), 10, batch_size=4, steps=1, solver="rk4", progress=seen.append)
    assert seen == [4, 4, 2]
    with pytest.raises(FmdiffError, match="solver"):
        generate(gmm4(CondOT()), 1, solver="heunn")


# --- the command line -----------------------------------------------------------------------

EXACT = ("model=exact", "data=gmm4", "n=4", "device=cpu", "out=samples")


def test_the_command_line_prints_the_plan_first_and_counts_the_same(command, capfd):
    assert command("sample", *EXACT, "solver=rk4", "nfe=22", "schedule=karras") == 0
    told = capfd.readouterr().out.splitlines()
    # 80 and 0.002 are the noise levels of r = 1/81 and 1/1.002
    assert told[0] == (
        "4 samples on cpu, solver rk4 (order 4), 6 steps, schedule karras, in straight "
        "coordinates from 0.01235 to 0.998 and a jump to the estimate of x, 21 evaluations each"
    )
    assert told[-4].startswith("21 evaluations per sample counted")
    report = json.loads(Path("samples/sample.json").read_text())
    assert report["nfe_planned"] == report["nfe_counted"] == 21


def test_an_adaptive_solver_writes_null(command, capfd):
    assert command("sample", *EXACT, "solver=dopri5") == 0
    assert "adaptive steps" in (told := capfd.readouterr().out)
    assert "evaluations known after the run" in told.splitlines()[0]
    report = json.loads(Path("samples/sample.json").read_text())
    assert report["nfe_planned"] is None and report["nfe_counted"] > 10


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (("steps=4", "nfe=20"), "steps=4 and nfe=20"),
        (("nfe=3", "solver=rk4"), "nfe=3: one step costs 4 evaluations"),
        (("nfe=20", "solver=dopri5"), "nfe=20: an adaptive solver"),
        (("nfe=20", "schedule=explicit"), "nfe=20: schedule=explicit has its own 3 steps"),
        (("nfe=0",), "nfe=0"),
    ],
)
def test_refusals_of_the_command_line(command, capfd, words, says):
    assert command("sample", *EXACT, *words) == 2
    assert says in capfd.readouterr().err
    assert not Path("samples/samples.npz").exists()
