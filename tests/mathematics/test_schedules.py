"""Step schedules: their laws, their place on a field's interval, and what they refuse."""

import math

import pytest
import torch
from conftest import every_path

from fmdiff.along import Straight
from fmdiff.build import config_folder, named
from fmdiff.errors import FmdiffError
from fmdiff.exact import Mixture
from fmdiff.field import NetField
from fmdiff.integration import plan
from fmdiff.path import EDM, VE, VP, CondOT
from fmdiff.sampling import generate
from fmdiff.solvers.runge_kutta import Euler, Heun

U = torch.linspace(0, 1, 101, dtype=torch.float64)
NAMES = sorted(file.stem for file in (config_folder() / "schedule").glob("*.yaml"))
NAMES.remove("fitted")  # no law: tests/test_fitted.py
NAMES.remove("trained")  # the times of a model: test_trained.py
RELATIVE = ("uniform", "quadratic", "power", "ratio", "gradual", "cosine", "shifted")
# eq. 5 of Karras et al. 2022 in plain Python: 18 levels from 80 to 0.002 with rho 7
KARRAS_18 = [
    80,
    57.586,
    40.7856,
    28.3746,
    19.3525,
    12.9101,
    8.40094,
    5.31519,
    3.25682,
    1.92334,
    1.08817,
    0.585348,
    0.296442,
    0.139516,
    0.0599473,
    0.0229345,
    0.00752802,
    0.002,
]


def mixture(path):
    means = torch.tensor([[-1.0, 0.5], [1.0, 0]], dtype=torch.float64)
    covs = 0.1 * torch.eye(2, dtype=torch.float64).expand(2, 2, 2)
    return Mixture(path, torch.ones(2).double() / 2, means, covs)


def network(path, prediction):
    """Solved from r = lo to 0.99 where the prediction is not finite before."""
    net = torch.nn.Module()
    net.forward = lambda x_t, t, y: torch.tanh(x_t)
    return NetField(net, path, prediction, 1.0, 1e-5, (2,))


def levels(times):
    return (1 - times) / times


@pytest.mark.parametrize("name", NAMES)
def test_every_law_increases_within_0_and_1(name):
    r = named("schedule", name)(U)
    assert (r.diff() > 0).all() and r.shape == U.shape and r.dtype == U.dtype
    if name in ("karras", "logsnr"):
        assert levels(r)[[0, -1]].tolist() == pytest.approx([80, 0.002], rel=1e-12)
    else:
        assert r[[0, -1]].tolist() == [0, 1]


@pytest.mark.parametrize(
    ("name", "keys", "at"),
    [
        ("uniform", {}, {0.25: 0.25}),
        ("quadratic", {"end": "start"}, {0.1: 0.01, 0.5: 0.25}),
        ("quadratic", {"end": "end"}, {0.1: 0.19, 0.5: 0.75}),
        ("power", {"p": 1.5}, {0.19: 1 - 0.729, 0.75: 0.875}),
        ("power", {"p": 0.5}, {0.75: 0.5}),
        ("ratio", {"p": 0.9, "q": 1.3}, {0.5: 1 / (1 + 2**-0.4), 0.2: 0.2389568}),
        ("ratio", {"p": 1, "q": 1}, {0.3: 0.3}),
        ("ratio", {"p": 2, "q": 1}, {0.5: 1 / 3}),
        ("gradual", {"limit": 2}, {0.5: 2 / 3}),
        ("cosine", {}, {1 / 3: 0.25, 0.5: 0.5}),
        ("shifted", {"shift": 3}, {0.5: 0.25, 0.9: 0.75}),  # Esser et al. 2024: t' = 3t/(1+2t)
        ("logsnr", {"noise_min": 0.01, "noise_max": 100}, {0.5: 0.5, 0.25: 1 / 11}),
        ("karras", {"noise_min": 1, "noise_max": 9, "rho": 2}, {0.5: 1 / 5}),
        ("explicit", {"times": [0, 0.2, 1]}, {0.5: 0.2, 0.25: 0.1, 0.75: 0.6}),
    ],
)
def test_laws_have_their_values(name, keys, at):
    law = named("schedule", name, **keys)
    for u, r in at.items():
        assert law(torch.tensor(u, dtype=torch.float64)).item() == pytest.approx(r, rel=1e-5)


def test_gradual_is_nearly_uniform_for_few_steps():
    """q = 1 + S / (S + 15): 1.25 for 5 steps, 1.5 for 15."""
    law = named("schedule", "gradual", limit=2.0)
    for steps, q in ((5, 1.25), (15, 1.5)):
        made = plan(mixture(CondOT()), Euler(), steps, law)
        u = torch.arange(steps + 1, dtype=torch.float64) / steps
        torch.testing.assert_close(made.times, u / (u + (1 - u) ** q))


def test_adams_has_other_laws_for_networks_that_predict_x():
    made = plan(network(CondOT(), "x"), named("solver", "adams"), 5)
    law = named("schedule", "ratio", p=1.5, q=2.0)
    assert torch.equal(made.times, plan(network(CondOT(), "x"), Euler(), 5, law).times)
    made = plan(network(CondOT(), "v"), named("solver", "adams"), 5)
    law = named("schedule", "gradual")
    assert torch.equal(made.times, plan(network(CondOT(), "v"), Euler(), 5, law).times)


def test_quadratic_is_dense_at_the_end_it_names():
    for end, first in (("start", True), ("end", False)):
        steps = named("schedule", "quadratic", end=end)(U).diff()
        assert (steps[0] < steps[-1]) == first


def test_karras_has_edm_s_levels_and_price():
    """18 steps are 18 levels and a jump to 0: the 35 evaluations Karras et al. 2022 report."""
    made = plan(mixture(CondOT()), Heun(), 18, named("schedule", "karras"))
    assert levels(made.times).tolist() == pytest.approx(KARRAS_18, rel=1e-5)
    assert made.jump and made.nfe == 35 and made.steps == 18


def test_karras_on_its_own_path_is_uniform():
    path = EDM(0.002, 80.0, 7.0)
    for schedule in ("karras", "uniform"):
        made = plan(mixture(path), Euler(), 10, named("schedule", schedule))
        assert made.times.tolist() == pytest.approx([k / 9 for k in range(10)], abs=1e-9)
    seen = plan(Straight(mixture(path)), Euler(), 10, named("schedule", "karras"))
    wanted = path.beta(torch.linspace(0, 1, 10, dtype=torch.float64))
    torch.testing.assert_close(levels(seen.times), wanted, rtol=1e-9, atol=0)


def test_logsnr_is_uniform_in_log_snr_between_the_ends():
    for path, most, least in ((VE(), 50, 0.01), (CondOT(), 80, 0.002)):
        made = plan(mixture(path), Euler(), 9, named("schedule", "logsnr"))
        logsnr = path.logsnr(made.times)
        steps = logsnr.diff()
        torch.testing.assert_close(steps, steps.mean().expand(8), rtol=1e-8, atol=0)
        ends = [-2 * math.log(most), -2 * math.log(least)]
        assert logsnr[[0, -1]].tolist() == pytest.approx(ends)


@pytest.mark.parametrize("name", ["karras", "logsnr"])
def test_noise_levels_end_where_the_field_does(name):
    """A score network on CondOT may be asked from r = 0.01 to 0.99: levels 99 to 1/99."""
    field, schedule = network(CondOT(), "score"), named("schedule", name)
    made = plan(field, Euler(), 6, schedule)
    assert levels(made.times)[[0, -1]].tolist() == pytest.approx([80, 1 / 99])
    assert made.times[-1] == field.interval()[1]
    schedule = named("schedule", name, noise_min=0.5, noise_max=300.0)
    made = plan(field, Euler(), 6, schedule)
    assert levels(made.times)[[0, -1]].tolist() == pytest.approx([99, 0.5])
    with pytest.raises(FmdiffError, match=r"noise_max=0.001 do not meet .* 0.0101 to 99"):
        plan(field, Euler(), 6, named("schedule", name, noise_min=1e-4, noise_max=1e-3))


@every_path
@pytest.mark.parametrize("name", sorted(set(NAMES) - {"explicit"}))
def test_times_start_and_end_exactly(path, name):
    schedule = named("schedule", name)
    for field in (mixture(path), Straight(mixture(path)), network(path, "x")):
        lo, hi = field.interval("v")
        for steps in (2, 7):
            made = plan(field, Euler(), steps, schedule)
            assert (made.times.diff() > 0).all() and len(made.times) + made.jump == steps + 1
            assert lo <= made.times[0] and made.times[-1] <= hi
            if name in RELATIVE:
                assert (made.times[0], made.times[-1]) == (lo, hi)
        jump = plan(field, Euler(), 1, schedule, final="denoise")
        assert len(jump.times) == 1 and jump.jump and jump.nfe == 1


def test_a_shift_is_applied_once():
    """The levels of equal steps, times the shift; not the square of it, on any path."""
    u = torch.linspace(0, 1, 6, dtype=torch.float64)[1:-1]
    for field in (mixture(CondOT()), Straight(mixture(VP()))):
        lo, hi = field.interval("v")
        times = plan(field, Euler(), 5, named("schedule", "shifted", shift=4.0)).times
        r = (times[1:-1] - lo) / (hi - lo)
        torch.testing.assert_close(levels(r), 4 * levels(u), rtol=1e-9, atol=0)


def test_explicit_times_are_those_given():
    schedule = named("schedule", "explicit", times=[0, 0.3, 0.9, 1])
    clean, noisy = mixture(CondOT()), network(CondOT(), "x")
    made = plan(clean, Heun(), None, schedule)
    assert made.times.tolist() == [0, 0.3, 0.9, 1] and not made.jump and made.nfe == 6
    for field, final in ((clean, "denoise"), (noisy, "auto"), (noisy, "denoise")):
        made = plan(field, Heun(), 3, schedule, final)  # a last 1 is reached by the jump
        assert made.times.tolist() == [0, 0.3, 0.9] and made.jump and made.nfe == 5
    made = plan(clean, Heun(), None, named("schedule", "explicit", times=[0.1, 0.5]))
    assert made.times.tolist() == [0.1, 0.5] and made.jump and made.nfe == 3
    with pytest.raises(FmdiffError, match=r"schedule\.times has 3 steps"):
        plan(clean, Heun(), 4, schedule)
    with pytest.raises(FmdiffError, match=r"solved from 0 to 0.99"):
        plan(noisy, Heun(), None, schedule, "solver")
    with pytest.raises(FmdiffError, match=r"solved from 0.01 to 0.99, and a last time 1"):
        plan(network(CondOT(), "score"), Heun(), None, schedule)
    with pytest.raises(FmdiffError, match="nfe=9: schedule=explicit has its own 3 steps"):
        plan(clean, Heun(), schedule=schedule, nfe=9)


@pytest.mark.parametrize(
    ("name", "keys", "says"),
    [
        ("quadratic", {"end": "middle"}, r"schedule.end=middle: .*end, start"),
        ("power", {"p": 0}, "schedule.p=0"),
        ("ratio", {"q": -1}, "schedule.q=-1"),
        ("ratio", {"p": math.inf}, "schedule.p=inf"),
        ("gradual", {"half": 0}, "schedule.half=0"),
        ("shifted", {"shift": 0}, "schedule.shift=0"),
        ("karras", {"rho": 0}, "schedule.rho=0"),
        ("karras", {"noise_min": 0}, "schedule.noise_min=0 and schedule.noise_max=80"),
        ("logsnr", {"noise_min": 3, "noise_max": 2}, "0 < noise_min < noise_max"),
        ("explicit", {"times": [0, 0.5, 0.5, 1]}, r"times=\[0,0.5,0.5,1\] must increase"),
        ("explicit", {"times": [0, 1.5]}, "from 0 to 1"),
        ("explicit", {"times": [0.5]}, "two numbers or more"),
        ("explicit", {"times": [0, "x"]}, "two numbers or more"),
        ("explicit", {"times": [0, math.nan]}, "two numbers or more"),
    ],
)
def test_wrong_keys_are_refused(name, keys, says):
    with pytest.raises(FmdiffError, match=says):
        named("schedule", name, **keys)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("coordinates", ["straight", "native"])
def test_every_schedule_samples_the_mixture(name, coordinates):
    """Per component: half of the samples, mean (-1, 0.5) or (1, 0), variance 0.1."""
    schedule = named("schedule", name)
    if name == "explicit":
        schedule = named("schedule", name, times=[k / 60 for k in range(61)])
    made = generate(
        mixture(VP() if name != "explicit" else CondOT()),
        1500,
        solver="heun",
        steps=60,
        schedule=schedule,
        coordinates=coordinates,
    )
    x = made.x.double()
    near = (x[:, 0] > 0).double()
    assert near.mean() == pytest.approx(0.5, abs=0.06)
    for mean, share in (((-1.0, 0.5), near == 0), ((1.0, 0.0), near == 1)):
        assert x[share].mean(0).tolist() == pytest.approx(mean, abs=0.06)
        assert x[share].var(0).tolist() == pytest.approx([0.1, 0.1], abs=0.025)


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (("schedule=explicit", "schedule.times=[0,0.6,0.5,1]"), "must increase"),
        (("schedule=explicit", "steps=9"), "schedule.times has 3 steps"),
        (("schedule=karras", "schedule.noise_min=90"), "0 < noise_min < noise_max"),
        (("schedule=power", "schedule.p=-1"), "schedule.p=-1"),
        (("schedule=quadratic", "schedule.end=both"), "schedule.end=both"),
        (("schedule=cosin",), "did you mean 'cosine'"),
    ],
)
def test_refusals_of_the_command_line(command, capfd, words, says):
    assert command("sample", "model=exact", "data=gmm4", "n=4", "device=cpu", *words) == 2
    assert says in capfd.readouterr().err
