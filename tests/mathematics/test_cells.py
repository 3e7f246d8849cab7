"""Every cell of solver x path x prediction: a small network, trained and sampled for real."""

import functools

import pytest
import torch
from conftest import SOME
from omegaconf import OmegaConf

from fmdiff.along import Straight
from fmdiff.build import config_folder, named
from fmdiff.custom import from_spec
from fmdiff.errors import FmdiffError
from fmdiff.integration import integrate, plan
from fmdiff.objectives.flow_matching import PREDICTIONS
from fmdiff.randomness import generator, noise
from fmdiff.sampling import generate

N, STEPS = 32, 12


def choices(group):
    return sorted(file.stem for file in (config_folder() / group).glob("*.yaml"))


PATHS, SOLVERS = choices("path"), choices("solver")
SOLVERS.remove("jump")  # of maps, in test_jump
SOLVERS.remove("fitted")  # to a model, in test_fitted_solver
CHEAP = [pytest.param(path, marks=[pytest.mark.slow] * (path not in SOME)) for path in PATHS]
CHANGES = {
    "custom": {"alpha": "t^1.5", "beta": "1-t^2"},  # its YAML's formulas are the cosine path
    "dopri5": {"rtol": 1e-2, "atol": 1e-2},  # the other solvers have 12 steps
}


@functools.cache
def trained(path, prediction, source="normal", coupling="independent"):
    """The field of a network after 60 steps on the gmm4, which is of scale 2."""
    spec = OmegaConf.to_container(OmegaConf.load(config_folder() / "path" / f"{path}.yaml"))
    data, pairs = named("data", "gmm4"), named("coupling", coupling)
    objective = named(
        "objective",
        "flow_matching",
        from_spec({**spec, **CHANGES.get(path, {})}),
        data.std,
        prediction=prediction,
        source=named("source", source),
        coupled=not pairs.independent,
    )
    torch.manual_seed(0)  # the initial weights
    net = named("model", "mlp", shape=data.shape, classes=0, hidden=16)
    optimizer = named("optim", "adam", net.parameters(), lr=1e-2)
    law = named("time", "uniform")
    for k in range(60):
        x, y = data.batch(0, k)
        eps = torch.randn(x.shape, generator=generator(0, "eps", k))
        eps = objective.source.batch(eps, 0, k)
        if not pairs.independent:
            eps = eps[pairs(x, eps, y, 0, k)]
        t = objective.time(law(len(x), generator(0, "time", k)))
        loss = objective(net, x, y, eps, t).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return objective.field(net, data.shape)


@functools.cache
def reference(path, prediction):
    return generate(trained(path, prediction), N, solver="rk4", steps=40).x


@pytest.mark.parametrize("path", CHEAP)
@pytest.mark.parametrize("prediction", PREDICTIONS)
@pytest.mark.parametrize("name", SOLVERS)
def test_every_cell_samples_the_data_at_the_price_it_said(name, prediction, path):
    field, solver = trained(path, prediction), named("solver", name, **CHANGES.get(name, {}))
    made = generate(field, N, solver=solver, steps=STEPS)
    assert made.x.shape == (N, 2) and made.x.dtype == torch.float32
    assert made.x.isfinite().all()
    if solver.adaptive:
        assert made.nfe_planned is None and made.nfe_counted >= 8
    else:
        assert made.nfe_planned == made.nfe_counted >= STEPS
    # noise is of scale 1, and a wrong coefficient is off by factors
    scale = field.data_std
    assert scale / 2 < made.x.square().mean().sqrt() < 2.5 * scale
    # networks of x and v_sh are well conditioned from end to end, so 12 steps are near the truth
    if prediction in ("x", "v_sh") and not solver.stochastic:
        off = (made.x - reference(path, prediction)).norm(dim=1).median()
        assert off < 0.3 * scale
    if solver.stochastic:
        assert (made.x - reference(path, prediction)).norm(dim=1).median() > 0.1 * scale


FIRST = {
    "adams": {"order": 1, "corrector": False},
    "ddpm": {"eta": 0.0},
    "deis": {"order": 1},
    "dpmpp_2m": {"order": 1},
    "dpmpp_2m_sde": {"order": 1, "eta": 0.0},
    "euler_maruyama": {"diffusion": 0.0},
    "unipc": {"order": 1, "corrector": False},
}


@pytest.mark.parametrize("path", CHEAP)
@pytest.mark.parametrize("prediction", PREDICTIONS)
def test_all_of_first_order_are_euler_in_straight_coordinates(prediction, path):
    field = Straight(trained(path, prediction).to("cpu", torch.float64))
    euler = named("solver", "euler")
    times = plan(field, euler, 6, final="solver").times
    x = field.start(noise(0, N, (2,), 0, "start").double(), times[0], 0, 0)
    with torch.no_grad():
        want = integrate(euler, field, x, times)
        for name, changes in FIRST.items():
            solver = named("solver", name, **changes)
            got = integrate(solver, field, x, times, lambda t, s: torch.zeros_like(x))
            torch.testing.assert_close(got, want, rtol=1e-9, atol=1e-9, msg=name)


@pytest.mark.parametrize(
    "model", [{"source": "hypersphere"}, {"source": "truncated"}, {"coupling": "ot"}], ids=str
)
@pytest.mark.parametrize("name", SOLVERS)
def test_only_an_ode_is_solved_without_a_score(name, model):
    field, solver = trained("condot", "v", **model), named("solver", name)
    if solver.stochastic:
        said = "a stochastic solver needs a normal source independent of x"
        with pytest.raises(FmdiffError, match=said):
            generate(field, N, solver=solver, steps=STEPS)
    else:
        rms = generate(field, N, solver=solver, steps=STEPS).x.square().mean().sqrt()
        assert field.data_std / 2 < rms < 2 * field.data_std
