"""Models of finitely many times are sampled at these times, as DDPM was."""

import math
from itertools import pairwise

import pytest
import torch
from test_solvers import eight_gaussians, noise

from fmdiff.build import build, spec_of
from fmdiff.errors import FmdiffError
from fmdiff.loading import restore
from fmdiff.path import VP, CondOT, Path
from fmdiff.randomness import Brownian
from fmdiff.runs.content import Checkpoint
from fmdiff.sampling import Sampler, generate
from fmdiff.solvers.stochastic import DPMppSDE


def discrete(path: Path, steps: int):
    """An exact field that stands for a model of `steps` times, and these times."""
    field = eight_gaussians(path)
    t = 1 - torch.arange(steps, 0, -1, dtype=torch.float64) / steps
    field.atoms = path.r(t)
    return field, t


def algorithm_2(field, x, z, steps, larger):
    """Ho et al. 2020, algorithm 2, in their variables: x_T, ..., x_0, and z_t of step t."""
    kept = [1.0] + [field.path.alpha(torch.tensor(1 - t / steps, dtype=torch.float64)).item() ** 2
                    for t in range(1, steps + 1)]  # fmt: skip
    for t in range(steps, 0, -1):
        share = kept[t] / kept[t - 1]  # their alpha_t
        beta = 1 - share
        eps = field.predict(x, torch.tensor(1 - t / steps, dtype=torch.float64), "eps")
        x = (x - beta / math.sqrt(1 - kept[t]) * eps) / math.sqrt(share)
        if t > 1:
            variance = beta if larger else (1 - kept[t - 1]) / (1 - kept[t]) * beta
            x = x + math.sqrt(variance) * z[t]
    return x


@pytest.mark.parametrize("coordinates", ["native", "straight"])
@pytest.mark.parametrize("variance", ["smaller", "larger"])
@pytest.mark.parametrize("steps", [4, 20])
def test_ddpm_is_algorithm_2(steps, variance, coordinates):
    field, _ = discrete(VP(), steps)
    sampler = Sampler(
        solver=DPMppSDE(1, 1.0, variance=variance),
        steps=steps,
        coordinates=coordinates,
        dtype=torch.float64,
    )
    flow = sampler.seen(field, None)
    layout = sampler.plan(flow)
    assert layout.nfe == layout.steps == steps
    walk = Brownian(0, 6, (2,), 3)
    pairs = list(pairwise(layout.times))
    z = {steps - k: walk(t, s) / (s - t).sqrt() for k, (t, s) in enumerate(pairs)}
    x = noise(6)
    wanted = algorithm_2(field, x, z, steps, variance == "larger")
    a, b = flow.path.row("x_t", layout.times[0])
    scale = 1.0 if coordinates == "native" else VP().row("x_t", torch.zeros(1).double())
    if coordinates == "straight":
        scale = (a + b) / (scale[0] + scale[1])
    got = sampler.carry(flow, layout, range(6), 3, x * scale)
    torch.testing.assert_close(got, wanted, rtol=1e-6, atol=1e-6)


def test_ddpm_takes_the_times_of_training_unless_it_is_told_others():
    field, t = discrete(VP(), 20)
    r = VP().r(t)
    for how in ({"solver": "ddpm"}, {"solver": "heun", "schedule": "trained"}):
        flow = Sampler(**how, steps=20).seen(field, None)
        times = Sampler(**how, steps=20).plan(flow).times
        torch.testing.assert_close(times, r, rtol=0, atol=1e-12)
    assert Sampler(solver="ddpm").plan(flow).steps == 20  # all of them, as they are below 28
    some = Sampler(solver="ddpm", steps=5).plan(flow).times
    torch.testing.assert_close(some, r[::4], rtol=0, atol=1e-12)
    assert Sampler(solver="ddpm", nfe=1000).plan(flow).nfe == 20
    assert Sampler(solver="ddpm", nfe=7).plan(flow).nfe == 7
    for other in ({"solver": "heun"}, {"solver": "ddpm", "schedule": "uniform"}):
        plain = Sampler(**other, steps=20).plan(flow).times
        assert (plain[1:].diff() - plain[1] + plain[0]).abs().max() < 0.05
    assert not torch.isin(Sampler(solver="ddpm", steps=3).plan(flow).times, r, invert=True).any()


def test_a_first_time_of_pure_noise_is_left_out_where_eps_says_nothing():
    field, t = discrete(CondOT(), 10)
    assert Sampler(solver="ddpm").plan(field).times.tolist() == t.tolist()  # x is known there
    field.interval = lambda kind="v": (0.01, 0.99)
    assert Sampler(solver="ddpm").plan(field).times.tolist() == t[1:].tolist()


def test_what_cannot_be_is_refused():
    field, _ = discrete(VP(), 20)
    with pytest.raises(FmdiffError, match="steps=21: schedule=trained has the 20 times"):
        generate(field, 2, solver="ddpm", steps=21)
    with pytest.raises(FmdiffError, match="trained at all times"):
        generate(eight_gaussians(VP()), 2, schedule="trained")
    with pytest.raises(FmdiffError, match=r"solver\.variance=large: did you mean 'larger'"):
        DPMppSDE(1, 1.0, variance="large")
    with pytest.raises(FmdiffError, match=r"it goes with solver\.order=1"):
        DPMppSDE(2, 1.0, variance="larger")
    with pytest.raises(FmdiffError, match=r"time\.steps=10+ must be an integer from 1 to"):
        build({"_target_": "fmdiff.times.Discrete", "steps": 10**12, "stratified": False})


def content(time, place):
    """A checkpoint of experiment=ddpm with its time law in the spec or in the settings alone."""
    model = {**spec_of("model", "mlp"), "hidden": 16}
    objective = {**spec_of("objective", "flow_matching"), "prediction": "eps", "loss": "eps"}
    data = {"name": "moons", "shape": [2], "classes": 0, "std": 1.0, "source": {}}
    spec = {"model": model, "path": spec_of("path", "vp"), "objective": objective, "data": data}
    weights = {"raw": build(model, shape=(2,), classes=0).state_dict()}
    training = {"config": {"time": time}} if place == "config" else None
    spec |= {"time": time} if place == "spec" else {}
    return Checkpoint(5, spec, weights, training)


@pytest.mark.parametrize("place", ["spec", "config"])
def test_a_checkpoint_knows_its_times(place):
    time = {"_target_": "fmdiff.times.Discrete", "steps": 20, "stratified": False}
    field = restore(content(time, place))
    t = field.t_eps + (1 - 2 * field.t_eps) * torch.arange(20, dtype=torch.float64) / 20
    torch.testing.assert_close(field.atoms, field.path.r(t))
    made = generate(field, 3, solver="ddpm")
    assert made.nfe_counted == 20 and made.plan.times[0] == field.path.r(t[0])
    asked = []
    field.net.register_forward_pre_hook(lambda net, args: asked.append(args[1][0].item()))
    generate(field, 3, solver="ddpm", coordinates="native")
    assert asked == pytest.approx((1000 * t).tolist(), abs=1e-3)


def test_other_laws_have_no_such_times():
    for time in ({"_target_": "fmdiff.times.Uniform", "stratified": False}, None):
        assert restore(content(time, "spec")).atoms is None
    assert restore(content(None, "nowhere")).atoms is None
