"""solver=fitted: the family, the least-squares problem, the gain, where it lies, refusals."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import PLAIN
from test_schedules import mixture, network

from fmdiff.along import Straight
from fmdiff.errors import FmdiffError
from fmdiff.exact import Mixture
from fmdiff.fitted import sensitivity
from fmdiff.fitted import solver as fitted_solver
from fmdiff.fitted.sensitivity import Runs, directions, linear, numbers, with_numbers
from fmdiff.fitted.solver import FittedSolver, compare, search
from fmdiff.fitted.times import Trajectories
from fmdiff.guidance import APG, CFG
from fmdiff.page.program import record
from fmdiff.path import VP, CondOT
from fmdiff.runs import checkpoint
from fmdiff.runs.find import find
from fmdiff.sampling import Sampler, generate
from fmdiff.schedules import Power, Uniform
from fmdiff.solvers.linear import Linear, bashforth

BRIEF = ("n=8", "solver=fitted", "solver.reference=20", "solver.n=16", *PLAIN[:2])
DOUBLE = {"dtype": torch.float64}


def gaussian(stds):
    """Independent normal coordinates, as an exact field."""
    stds = torch.tensor(stds, dtype=torch.float64)
    one, mean = torch.ones(1, dtype=torch.float64), torch.zeros(1, len(stds), dtype=torch.float64)
    return Mixture(CondOT(), one, mean, torch.diag(stds**2)[None])


# --- the family


@pytest.mark.parametrize("name", ["euler", "midpoint", "heun", "rk4", "dpmpp_2m", "deis", "unipc"])
@pytest.mark.parametrize("field", [mixture(CondOT()), mixture(VP()), network(CondOT(), "x")])
def test_other_solvers_are_members(name, field):
    """The same samples by a solver and by its numbers, along any law, with or without a jump."""
    sampler = Sampler(solver=name, steps=5, schedule=Power(1.3), **DOUBLE)
    flow = Straight(field)
    numbered = linear(flow, sampler.solver, sampler.plan(flow))
    ours = Sampler(solver=numbered, **DOUBLE).draw(field, 20, seed=3)
    theirs = sampler.draw(field, 20, seed=3)
    assert ours.nfe_counted == theirs.nfe_counted == len(numbered.weights)
    assert torch.allclose(ours.x, theirs.x, rtol=0, atol=1e-11)


def test_bashforth_has_the_weights_of_textbooks():
    """Equal steps of 1/4: x_i + h (23 v_i - 16 v' + 5 v'') / 12, and a jump x + (1 - t) v."""
    solver = bashforth(torch.linspace(0, 0.75, 4, dtype=torch.float64), 3, True)
    differences = np.diff(
        [[1, 0, 0, 0, 0], *([*row, 0, 0, 0, 0][:5] for row in solver.weights)], axis=0
    )
    expected = [[0, 3, 0, 0, 0], [0, -1.5, 4.5, 0, 0], [0, 1.25, -4, 5.75, 0], [0, 0, 0, 0, 3]]
    assert np.allclose(12 * differences, expected, atol=1e-12)
    assert solver.times == [0, 0.25, 0.5, 0.75, 1]


def test_bashforth_is_exact_for_parabolas_in_unequal_steps():
    times = torch.tensor([0.0, 0.1, 0.4, 0.5, 0.9, 1.0], dtype=torch.float64)
    solver = bashforth(times, 3, False)
    for power in range(3):
        slopes = times[:-1].numpy() ** power
        states = [row[0] * 7 + np.dot(row[1:], slopes[: len(row) - 1]) for row in solver.weights]
        steps = np.diff(states[1:])
        assert np.allclose(steps, np.diff(times.numpy() ** (power + 1) / (power + 1))[2:])


@pytest.mark.parametrize(
    ("times", "weights", "says"),
    [
        ([0.0, 1.0], [[1.0]], "weights must be 1 rows, of 2, 3"),
        ([0.0, 1.0], [[1.0, float("nan")]], "weights must be"),
        ([0.0, 1.0], "weights", "weights must be"),
        ([0.0, 0.5, 0.4], [[1.0, 1.0], [1.0, 1.0, 1.0]], "times must not decrease"),
        ([0.0, 1.5], [[1.0, 1.0]], "from 0 to 1"),
        ([0.0], [], "two numbers"),
        ([True, 1.0], [[1.0, 1.0]], "two numbers"),
    ],
)
def test_numbers_that_are_no_solver(times, weights, says):
    with pytest.raises(FmdiffError, match=says):
        Linear(times, weights)


def test_a_solver_of_numbers_keeps_to_its_own_steps():
    solver, field = (
        bashforth(torch.linspace(0, 1, 4, dtype=torch.float64), 2, False),
        mixture(CondOT()),
    )
    assert Sampler(solver=solver, steps=3, nfe=3).draw(field, 2).plan.steps == 3
    for words in ({"steps": 4}, {"nfe": 2}, {"schedule": Uniform()}):
        with pytest.raises(FmdiffError, match="has its own 3 steps, of 3 evaluations"):
            generate(field, 2, solver=solver, **words)
    with pytest.raises(FmdiffError, match="the model is solved from 0"):
        generate(network(VP(), "eps"), 2, solver=solver)
    with pytest.raises(FmdiffError, match="leave schedule out"):
        solver.begin(torch.tensor([0.0, 0.5, 1.0]))


def test_a_page_can_play_it():
    solver = bashforth(torch.linspace(0, 1, 5, dtype=torch.float64), 3, False)
    program = record(Sampler(solver=solver, **DOUBLE), mixture(CondOT()))
    assert [state.t for state in program.states][1:] == solver.times[1:]


# --- the least-squares problem


def problem(steps=4):
    field = mixture(CondOT())
    solver = bashforth(torch.linspace(0, 1, steps + 1, dtype=torch.float64), 3, False)
    model = FittedSolver(8, 50, 0).model(field, Sampler(steps=steps, **DOUBLE))
    return solver, Trajectories(model, 0, 8, 50)


def test_columns_are_the_derivatives_of_the_end():
    """J against automatic differentiation of the sum, written out."""
    solver, seen = problem()
    [(field, rows, truth)] = seen.parts
    start = seen.start(field, rows, torch.zeros(()))

    def end(values):
        times, at = [torch.zeros(()), *values[:3]], 3
        x, slopes = start, []
        for i in range(4):
            slopes.append(field(x, times[i]))
            w = values[at : at + i + 2]
            x, at = (
                w[0] * start + sum(b * v for b, v in zip(w[1:], slopes, strict=True)),
                at + i + 2,
            )
        return (x - truth).flatten()

    runs = Runs(field, start, truth, solver)
    assert torch.allclose(runs.rest, end(numbers(solver)), atol=1e-12)
    moves = directions(runs.gram, 4)
    exact = torch.autograd.functional.jacobian(end, numbers(solver)) @ moves
    ours = runs.columns(moves)
    assert ours.shape == exact.shape == (8 * truth[0].numel(), 3 + 2 + 3 + 4 + 5)
    off = (ours - exact).norm(dim=0) / exact.norm(dim=0)
    assert off.max() < 0.05 and off.median() < 0.01
    assert torch.allclose(ours[:, -5:], exact[:, -5:], atol=1e-10)  # the last row is linear


def test_moves_of_a_row_are_orthonormal_states():
    solver, seen = problem()
    [(field, rows, truth)] = seen.parts
    runs = Runs(field, seen.start(field, rows, torch.zeros(())), truth, solver)
    last = runs.columns(directions(runs.gram, 4))[:, -5:]
    products = last.T @ last
    assert torch.allclose(products / products[0, 0], torch.eye(5, dtype=torch.float64), atol=1e-4)


def test_a_step_of_the_last_row_alone_is_linear_least_squares(monkeypatch):
    """Of one free row, the undamped step is what numpy finds at once."""
    solver, seen = problem(2)
    monkeypatch.setattr(
        sensitivity, "directions", lambda gram, steps: directions(gram, steps)[:, -3:]
    )
    monkeypatch.setattr(
        Runs,
        "columns",
        lambda runs, moves: torch.stack(
            [runs._of_row(1, move[-3:].tolist()) for move in moves.T], 1
        ),
    )
    system = sensitivity.System.of(seen, solver)
    ours = system.solution(solver, 0.0, 1.0)
    [(field, rows, truth)] = seen.parts
    basis = Runs(field, seen.start(field, rows, torch.zeros(())), truth, solver).basis
    matrix = np.stack([vector.flatten().numpy() for vector in basis], 1)
    expected = np.linalg.lstsq(matrix, truth.flatten().numpy(), rcond=None)[0]
    assert np.allclose(ours.weights[1], expected, atol=1e-5)
    assert ours.weights[0] == solver.weights[0] and ours.times == solver.times


def test_numbers_there_and_back():
    solver = problem()[0]
    assert numbers(solver).numel() == 4 * 7 // 2 + 3
    again = with_numbers(solver, numbers(solver))
    assert (again.times, again.weights) == (solver.times, solver.weights)
    most = bashforth(torch.linspace(0, 1, fitted_solver.MOST + 1, dtype=torch.float64), 2, False)
    assert numbers(most).numel() < 200


# --- what is gained


def test_two_normal_coordinates_are_solved_exactly():
    """v is linear there, and two steps have the weights to end at s z for two stds s."""
    field = gaussian((1.0, 0.2))
    sampler = FittedSolver(64, 100, 0).fitted_to(field, Sampler(nfe=2, **DOUBLE))
    eps = torch.randn(50, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(5))
    x = sampler.draw(field, eps=eps).x
    assert torch.allclose(x, eps * torch.tensor([1.0, 0.2]), atol=1e-4)


@pytest.mark.parametrize("nfe", [4, 6])
def test_it_beats_the_default_on_other_noise(nfe):
    field = mixture(CondOT())
    sampler = FittedSolver(1024, 50, 0).fitted_to(field, Sampler(nfe=nfe, **DOUBLE))
    common = {"n": 500, "seed": 3, **DOUBLE}
    fine = generate(field, solver="dopri5", **common).x
    made = sampler.draw(field, 500, seed=3)
    assert made.nfe_counted == nfe
    errors = [
        (x - fine).square().mean().sqrt().item()
        for x in (made.x, generate(field, solver="adams", nfe=nfe, **common).x)
    ]
    assert errors[0] < 0.6 * errors[1]


def test_guidance_is_part_of_what_is_fitted():
    means = torch.tensor([[-1.0, 0.5], [1.0, 0]], dtype=torch.float64)
    covs = 0.1 * torch.eye(2, dtype=torch.float64).expand(2, 2, 2)
    field = Mixture(CondOT(), torch.ones(2).double() / 2, means, covs, torch.arange(2))
    plain = Sampler(nfe=8, guidance=CFG(3.0), **DOUBLE)
    sampler = FittedSolver(128, 50, 0).fitted_to(field, plain)
    assert len(sampler.solver.weights) == 4  # of two evaluations each
    fine = replace(plain, solver="rk4", nfe=None, steps=100).draw(field, 200, seed=3).x
    made = sampler.draw(field, 200, seed=3)
    assert made.nfe_counted == 8
    usual = replace(plain, solver="adams").draw(field, 200, seed=3).x
    assert (made.x - fine).norm() < 0.6 * (usual - fine).norm()


def test_a_search_never_leaves_its_start_for_worse_and_its_error_is_true():
    training = problem()[1]
    model = training.model
    test = Trajectories(model, 8, 16, 50)
    error, found = search(model, training, test)
    first = min(fitted_solver.error_of(test, start) for start in fitted_solver.starts(model))
    assert error <= first and error == fitted_solver.error_of(test, found)


def test_the_default_is_taken_where_it_is_better(monkeypatch):
    solver, training = problem()
    model = training.model
    monkeypatch.setattr(fitted_solver, "search", lambda *_: (9.0, solver))
    entry = compare(model, training, training)
    assert entry["of"] == "adams" and entry["weights"] is None and entry["error"]["fitted"] == 9.0
    sampler = fitted_solver.chosen(Sampler(nfe=4), entry)
    assert type(sampler.solver).__name__ == "Adams" and sampler.nfe == 4


@pytest.mark.parametrize("final", ["auto", "solver", "denoise"])
@pytest.mark.parametrize("kind", ["x", "v", "eps"])
def test_it_ends_where_its_model_ends(kind, final):
    field = network(CondOT() if kind != "eps" else VP(), kind)
    sampler = Sampler(steps=3, final=final, **DOUBLE)
    solver = FittedSolver(16, 40, 0).fitted_to(field, sampler).solver
    flow = Straight(field)
    lo, hi = flow.interval()
    jump = final != "solver" and (hi < 1 or final == "denoise")
    assert lo <= solver.times[0] <= 1 / 81 and solver.times[-1] == (1.0 if jump else hi)
    assert solver.times[-2] <= hi and len(solver.weights) == 3


# --- the command line


@pytest.fixture
def run(moons_run, tmp_path):
    copy = tmp_path / "moons"
    shutil.copytree(moons_run, copy, ignore=shutil.ignore_patterns("schedules", "solvers"))
    return copy


def drawn(folder):
    return np.load(f"{folder}/samples.npz")["arr_0"]


def test_solvers_are_stored_and_used_again(command, run, capfd):
    words = ("sample", f"ckpt={run}", *BRIEF)
    assert command(*words, "nfe=3", "out=a") == 0
    told = capfd.readouterr().out
    [file] = (run / "solvers").iterdir()
    assert "3-steps-straight-" in file.name and f"stored in {file}" in told
    assert "fitting times and weights of 3 steps to 16 trajectories" in told
    assert "solver fitted (fitted weights), 3 steps, schedule of its own" in told
    stored = json.loads(file.read_text())
    assert stored["for"]["steps"] == 3 and len(stored["weights"]) == 3 and stored["of"] == "fitted"
    assert command(*words, "steps=3", "out=b") == 0  # 3 evaluations are 3 steps
    told = capfd.readouterr().out
    assert f"solver fitted: {file}\n" in told and "fitting" not in told
    assert (drawn("a") == drawn("b")).all()
    assert command(*words, "nfe=4", "final=denoise", "out=c") == 0
    assert len(list((run / "solvers").iterdir())) == 2


def test_solvers_of_other_weights_are_not_used(command, run, capfd):
    words = ("sample", f"ckpt={run}", *BRIEF, "nfe=3")
    assert command(*words, "out=a") == 0
    [file] = (run / "solvers").iterdir()
    old = json.loads(file.read_text())
    content = checkpoint.read(newest := find(run))
    for state in content["weights"].values():
        for tensor in state.values():
            tensor.mul_(1.5) if tensor.is_floating_point() else None
    checkpoint.write(newest, content | {"step": 61})
    capfd.readouterr()
    assert command(*words, "out=b") == 0
    assert f"{file} is of other weights, those of step 60: fitted anew" in capfd.readouterr().out
    new = json.loads(file.read_text())
    assert new["step"] == 61 and new["weights"] != old["weights"]


def test_what_is_fitted_to_the_zoo_lies_among_the_outputs(command):
    words = ("sample", "ckpt=zoo:moons", *BRIEF[:-2], "nfe=2", "out=a")
    assert command(*words) == 0
    [file] = Path("outputs/zoo-moons/solvers").iterdir()
    assert json.loads(file.read_text())["for"]["steps"] == 2


def tampered(text, change):
    return json.dumps(json.loads(text) | change) if isinstance(change, dict) else change


@pytest.mark.parametrize(
    "change",
    [
        "{",
        {"weights": [[1.0, 0.5]]},
        {"weights": [[1.0, float("inf")]] * 3},
        {"times": [0.0, 0.9, 0.5, 1.0]},
        {"weights": None, "of": "../evil"},
        {"weights": None, "of": "fitted"},
    ],
)
def test_a_file_that_cannot_be_read_is_replaced(command, run, capfd, change):
    words = ("sample", f"ckpt={run}", *BRIEF, "nfe=3")
    assert command(*words, "out=a") == 0
    [file] = (run / "solvers").iterdir()
    whole = file.read_text()
    file.write_text(tampered(whole, change))
    assert command(*words, "out=b") == 0
    assert f"{file} cannot be read: fitted anew" in capfd.readouterr().out
    assert file.read_text() == whole and (drawn("a") == drawn("b")).all()


def test_a_grid_of_evaluate_fits_each_of_its_settings(command, run):
    words = (*PLAIN[:2], "n=50", "metrics=[sw2]", "out=judged", "grid.nfe=[3,4]")
    grid = ("solver.reference=20", "solver.n=16", "solver=fitted", "grid.solver=[fitted,heun]")
    assert command("evaluate", f"ckpt={run}", *words, *grid) == 0
    assert len(list((run / "solvers").iterdir())) == 2


@pytest.mark.parametrize(
    ("words", "says"),
    [
        ((), "fitted to a number of steps: give nfe= or steps="),
        (("nfe=18",), "solver=fitted has 2 to 17 steps, and this is 18: give fewer"),
        (("steps=1",), "solver=fitted needs two steps or more, and this is 1"),
        (("nfe=4", "schedule=ratio"), "has its own times: leave schedule out"),
        (("nfe=4", "schedule=fitted"), "has its own times: leave schedule out"),
        (("nfe=4", "coordinates=native"), "runs in straight coordinates"),
        (("nfe=4", "solver.n=1"), "solver.n=1"),
        (("nfe=4", "solver.reference=3"), "solver.reference=3"),
    ],
)
def test_refusals(command, run, capfd, words, says):
    assert command("sample", f"ckpt={run}", *BRIEF, *words, "out=a") == 2
    assert says in capfd.readouterr().err
    assert not (run / "solvers").exists()


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (("likelihood", "ckpt=RUN", "n=2", "solver=fitted"), "from noise to data alone"),
        (("invert", "ckpt=RUN", "n=2", "solvers=[fitted]"), "from noise to data alone"),
        (("simulate", "system=linear", "solver=fitted"), "is fitted to a model"),
    ],
)
def test_commands_that_it_is_not_for(command, run, capfd, words, says):
    assert command(*(word.replace("RUN", str(run)) for word in words), "out=a") == 2
    assert says in capfd.readouterr().err


def test_a_flow_map_is_refused():
    field = network(CondOT(), "v")
    field.two_times = True
    with pytest.raises(FmdiffError, match="this is a flow map, which solver=jump"):
        FittedSolver(None, 50, 0).model(field, Sampler(nfe=4))


def test_a_velocity_that_remembers_is_refused():
    means = torch.tensor([[-1.0, 0.5], [1.0, 0]], dtype=torch.float64)
    covs = 0.1 * torch.eye(2, dtype=torch.float64).expand(2, 2, 2)
    field = Mixture(CondOT(), torch.ones(2).double() / 2, means, covs, torch.arange(2))
    with pytest.raises(FmdiffError, match="momentum remembers the way"):
        FittedSolver(None, 50, 0).model(field, Sampler(steps=4, guidance=APG(2.0, momentum=-0.5)))


def test_in_python_it_has_to_be_fitted_first():
    with pytest.raises(FmdiffError, match="before they are fitted to a model"):
        generate(mixture(CondOT()), 2, solver="fitted", nfe=4)
