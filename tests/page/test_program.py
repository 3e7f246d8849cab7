"""A program does what its solver does, on exact fields and networks, for every path."""

import json
import math
from dataclasses import replace

import pytest
import torch

from fmdiff import randomness
from fmdiff.build import config_folder, spec_of
from fmdiff.custom import from_spec
from fmdiff.errors import FmdiffError
from fmdiff.exact import Mixture
from fmdiff.field import NetField
from fmdiff.guidance import CFG
from fmdiff.models.mlp import MLP
from fmdiff.page.program import Normal, Question, State, record, total
from fmdiff.path import VP, CondOT, Cosine
from fmdiff.sampling import UNGUIDED, Sampler
from fmdiff.solvers.adaptive import Dopri5
from fmdiff.solvers.jump import Jump
from fmdiff.solvers.multistep import Adams
from fmdiff.solvers.runge_kutta import RK4
from fmdiff.solvers.stochastic import EulerMaruyama
from fmdiff.source import Hypersphere

ADAPTIVE = {"dopri5", "fitted"}  # the latter has no steps of its own
MAPS = {"jump"}
SOLVERS = sorted({path.stem for path in (config_folder() / "solver").glob("*.yaml")} - ADAPTIVE)
PATHS = ("condot", "cosine", "vp", "ve", "polynomial")
N = 5
ALPHA = math.exp(-20.1 / 4)  # of VP at t = 0


def mixture(path, labels=False):
    means = torch.tensor([[2.0, 0.5], [-1.0, -1.5], [0.3, 2.0]])
    covs = torch.tensor([[0.3, 0.1], [0.1, 0.2]]).expand(3, 2, 2)
    weights = torch.tensor([0.5, 0.3, 0.2])
    return Mixture(path, weights, means, covs, torch.arange(3) if labels else None)


def network(path, classes=0, maps=False, source=None):
    torch.manual_seed(3)
    options = {"second_time": True} if maps else {}
    sizes = {"hidden": 16, "layers": 2, "frequencies": 8, "scale": 1.0}
    net = MLP(shape=(2,), classes=classes, **sizes, **options).double()
    for parameter in net.parameters():  # the last layer begins at 0
        torch.nn.init.normal_(parameter, std=0.2)
    mean = torch.tensor([0.4, -0.2], dtype=torch.float64)
    field = NetField(net, path, "v", 1.3, 0.0, (2,), classes, source=source, data_mean=mean)
    field.two_times = maps
    return field


def solver_named(name):
    solver = Sampler(solver=name).solver
    return Adams(5, True, weigh=False) if name == "adams" else solver


def both(sampler, field, classes=None):
    """(the values of the program, the real samples with their trajectory) from one noise."""
    real = sampler.draw(field, N, seed=4, classes=classes, trajectory=True)
    program = record(sampler, field)
    y = sampler.guidance.labels(field, classes, 0, N, 4)
    guided = sampler.guidance(field, y)
    eps = randomness.noise(0, N, field.shape, 4, "start").double()
    flow = sampler.seen(field, y)
    x = flow.start(eps, sampler.plan(flow).times[0], 0, 4)
    if program.scale is not None:
        torch.testing.assert_close(program.scale * eps + program.shift, x, rtol=1e-12, atol=1e-12)
    walk = randomness.Brownian(0, N, field.shape, 4)
    values = program.run(guided.predict, x, walk)
    return program, values, real


def same(program, values, real):
    states, times = real.trajectory
    numbers = [i for i, item in enumerate(program.items) if isinstance(item, State)]
    for i, state, t in zip(numbers, states, times, strict=True):
        assert program.items[i].t == t
        torch.testing.assert_close(program.items[i].size * values[i], state, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(values[-1], real.x, rtol=1e-9, atol=1e-9)
    estimates, at = real.x_hat
    assert [t for t, _ in program.estimates] == at.tolist()
    for (_, row), estimate in zip(program.estimates, estimates, strict=True):
        torch.testing.assert_close(total(row, values), estimate, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("coordinates", ["straight", "native"])
@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("name", SOLVERS)
def test_a_program_does_what_its_solver_does(name, path, coordinates):
    path = from_spec(spec_of("path", path))
    sampler = Sampler(
        solver=solver_named(name), steps=9, coordinates=coordinates, dtype=torch.float64
    )
    same(*both(sampler, mixture(path)))


@pytest.mark.parametrize("name", SOLVERS)
@pytest.mark.parametrize("prediction", ["v", "x"])
def test_a_program_does_what_its_solver_does_to_a_network(name, prediction):
    field = network(VP(), maps=name in MAPS)
    field.prediction = prediction
    program, *rest = both(Sampler(solver=solver_named(name), steps=7, dtype=torch.float64), field)
    same(program, *rest)
    r = ALPHA / (ALPHA + math.sqrt(1 - ALPHA**2))
    assert program.kind == prediction
    assert program.scale == pytest.approx(math.hypot(1 - r, 1.3 * r))
    assert program.shift.tolist() == pytest.approx([0.4 * r, -0.2 * r])


SETTINGS = {
    "another path": {"path": "cosine"},
    "a schedule": {"schedule": "karras", "nfe": 15},
    "one step": {"steps": 1},
    "no jump": {"final": "solver"},
    "a jump": {"final": "denoise"},
    "evaluations": {"nfe": 9},
    "a start": {"solver": Adams(5, True, start=RK4(), weigh=False)},
    "noise of jumps": {"solver": Jump(0.6)},
    "a formula": {"solver": EulerMaruyama("sin(pi*t)", until=0.8, last="tweedie")},
}


@pytest.mark.parametrize("what", SETTINGS)
def test_a_program_follows_every_setting(what):
    options = {"solver": "heun", "dtype": torch.float64, **SETTINGS[what]}
    if "nfe" not in options:
        options.setdefault("steps", 6)
    same(*both(Sampler(**options), network(CondOT(), maps=True)))


@pytest.mark.parametrize("classes", [0, 2])
def test_a_program_asks_the_guided_field(classes):
    field = network(Cosine(), classes=3)
    sampler = Sampler(solver="dpmpp_2m", steps=8, guidance=CFG(2.5), dtype=torch.float64)
    program, values, real = both(sampler, field, classes)
    same(program, values, real)
    assert program.w == 2.5
    unguided, others, _ = both(replace(sampler, guidance=UNGUIDED), field, classes)
    assert unguided.w is None
    assert unguided.items == program.items
    assert (others[-1] - values[-1]).abs().max() > 0.01


def test_rows_are_short():
    program = record(Sampler(solver="heun", steps=50), mixture(VP()))
    questions = [item for item in program.items if isinstance(item, Question)]
    assert len(program.states) == 51
    assert len(questions) == 2 * 50
    assert program.kind == "straight"
    assert max(len(item.row) for item in program.items if not isinstance(item, Normal)) == 3
    assert len(json.dumps(program.data())) < 20_000


def test_the_data_hold_the_program():
    program = record(Sampler(solver=Jump(0.6), steps=3), network(CondOT(), maps=True))
    data = json.loads(json.dumps(program.data()))
    start, question, normal, state = data["items"][:4]
    assert start == {"t": 0.0, "row": [], "size": 1.0}
    assert data["kind"] == "v"
    assert 1 / 3 < question["s"] < 1
    assert normal == {"t": 0.0, "s": pytest.approx(1 / 3)}
    assert state["row"][::2] == [0, 1, 2]
    assert (data["scale"], data["shift"]) == (1.0, None)


def test_a_start_that_is_more_than_noise_has_no_scale():
    assert record(Sampler("heun", steps=2), network(CondOT(), source=Hypersphere())).scale is None
    assert record(Sampler("heun", steps=2), mixture(VP())).scale is None
    assert record(Sampler("heun", steps=2), mixture(CondOT())).scale == 1.0


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"solver": Dopri5(1e-5, 1e-5, 100)}, "Dopri5 takes steps that depend on the samples"),
        ({"solver": "adams", "steps": 9}, "solver.weigh=false"),
        ({"guidance": "rescale"}, "guidance=CFG: a page guides by"),
        ({"guidance": CFG(2.0, on=["label"])}, "guidance=CFG: a page guides by"),
        ({"guidance": "apg"}, "guidance=APG: a page guides by"),
        ({"guidance": CFG("2*t")}, "with a number for w"),
        ({"guidance": CFG(2.0, interval=[0.2, 0.8])}, "with a number for w"),
        ({"clip": "data"}, "a page cannot clip"),
    ],
)
def test_what_is_no_fixed_sum_is_refused_in_a_sentence(options, says):
    with pytest.raises(FmdiffError, match=says):
        record(Sampler(**options), network(CondOT(), classes=3))
