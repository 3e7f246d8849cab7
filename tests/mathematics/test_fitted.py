"""schedule=fitted: the times against brute force, what they gain, where they lie, refusals."""

import json
import shutil
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import PLAIN
from test_schedules import mixture, network

from fmdiff.build import named
from fmdiff.errors import FmdiffError
from fmdiff.exact import Mixture
from fmdiff.fitted import times as fitted
from fmdiff.fitted.times import FIXED, Fitted, Model, Trajectories
from fmdiff.guidance import CFG
from fmdiff.integration import plan
from fmdiff.loading import load
from fmdiff.path import EDM, VP, CondOT
from fmdiff.runs import checkpoint
from fmdiff.runs.find import find
from fmdiff.sampling import Sampler, generate
from fmdiff.schedules import Explicit, NoiseLevels, Power
from fmdiff.solvers.runge_kutta import Euler

BRIEF = ("n=8", "steps=3", "solver=euler", "schedule=fitted", "schedule.reference=20", *PLAIN[:2])


def model(field, solver, **changes):
    return Model(field, Sampler(solver=solver, **{"dtype": torch.float64} | changes), 1)


def gaussian(stds):
    """Independent normal coordinates, as an exact field."""
    stds = torch.tensor(stds, dtype=torch.float64)
    one, mean = torch.ones(1, dtype=torch.float64), torch.zeros(1, len(stds), dtype=torch.float64)
    return Mixture(CondOT(), one, mean, torch.diag(stds**2)[None])


def euler_error(times, stds):
    """RMS over z ~ N(0, 1) of Euler's end less s z, where x' = x (r s^2 - (1 - r)) / std_r^2."""
    total = 0.0
    for s in stds:
        end = 1.0
        for t, u in pairwise(times):
            end *= 1 + (u - t) * (t * s**2 - (1 - t)) / (t**2 * s**2 + (1 - t) ** 2)
        total += (end - s) ** 2
    return (total / len(stds)) ** 0.5


@pytest.mark.parametrize("stds", [(1.0, 3.0), (0.02, 0.04)])
def test_two_steps_of_euler_are_those_of_a_brute_force_search(stds):
    grid = np.linspace(0.001, 0.999, 999)
    errors = [euler_error((0, t, 1), stds) for t in grid]
    best = grid[np.argmin(errors)]
    assert abs(best - 0.5) > 0.2  # 0.264 and 0.966
    found = Fitted(1024, 50, 0).fit(model(gaussian(stds), Euler(), steps=2))
    assert found["of"] == "fitted" and len(found["times"]) == 3
    assert found["times"][1] == pytest.approx(best, abs=0.03)
    assert euler_error(found["times"], stds) < 1.003 * min(errors)
    assert found["error"]["fitted"] == pytest.approx(min(errors), rel=0.06)


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    from conftest import _trained

    words = ("data=moons", "model.hidden=64", "trainer.max_steps=600", "trainer.ema=[0.99]")
    return _trained(tmp_path_factory.mktemp("fitted") / "run", *words)


@pytest.mark.parametrize("solver", ["adams", pytest.param("euler", marks=pytest.mark.slow)])
def test_fitted_beats_every_fixed_law_on_other_noise(trained, solver):
    field, solver = load(trained), named("solver", solver)
    found = Fitted(512, 100, 0).fit(model(field, solver, nfe=5, dtype=torch.float32))
    fine = generate(field, 2000, solver="rk4", steps=100, seed=3).x
    laws = FIXED | {"fitted": Explicit(found["times"])}
    errors = {}
    for name, law in laws.items():
        made = generate(field, 2000, solver=solver, steps=5, schedule=law, seed=3)
        assert made.nfe_counted == 5
        errors[name] = (made.x - fine).square().mean().sqrt().item()
    assert found["of"] == "fitted"
    ours = errors.pop("fitted")
    assert ours < 0.97 * min(errors.values()) and ours < 0.8 * errors["karras"]


def test_times_that_do_not_hold_on_other_noise_are_refused(monkeypatch):
    monkeypatch.setattr(fitted, "search", lambda model, *_: model.layout(Power(9)))
    asked = model(gaussian((1.0, 0.2)), Euler(), steps=4)
    found = Fitted(64, 50, 0).fit(asked)
    assert found["of"] in FIXED and found["error"]["fitted"] > found["error"][found["of"]]
    assert found["times"] == asked.layout(FIXED[found["of"]]).times.tolist()


@pytest.mark.parametrize("law", FIXED.values(), ids=FIXED)
@pytest.mark.parametrize(
    ("field", "changes"),
    [
        (mixture(CondOT()), {}),
        (mixture(CondOT()), {"final": "denoise"}),
        (mixture(VP()), {"coordinates": "native"}),
        (mixture(EDM(0.002, 80.0, 7.0)), {"coordinates": "native"}),
        (network(CondOT(), "x"), {}),
        (network(CondOT(), "x"), {"final": "solver"}),
        (network(VP(), "eps"), {"path": CondOT()}),
    ],
)
def test_explicit_takes_the_times_for_the_same_plan(law, field, changes):
    asked = model(field, named("solver", "heun"), steps=5, **changes)
    made = asked.layout(law)
    for given in (made, asked.of_lengths(asked.lengths(made))):
        explicit = Explicit(asked.explicit(given.times))
        pasted = plan(asked.flow, asked.sampler.solver, None, explicit, asked.sampler.final)
        assert pasted.times.tolist() == given.times.tolist()
        assert (pasted.jump, pasted.nfe) == (given.jump, given.nfe)
    assert (given.jump, given.nfe) == (asked.base.jump, asked.base.nfe)
    if not isinstance(law, NoiseLevels):  # whose levels end within the interval
        assert torch.allclose(given.times, made.times, atol=2e-3)


def test_lengths_of_many_steps_are_interpolated(monkeypatch):
    monkeypatch.setattr(fitted, "LENGTHS", 12)
    found = Fitted(32, 50, 0).fit(model(gaussian((1.0, 0.2)), Euler(), steps=30))
    assert len(found["times"]) == 31
    assert all(t < s for t, s in pairwise(found["times"]))


# --- the command line -----------------------------------------------------------------------


@pytest.fixture
def run(moons_run, tmp_path):
    copy = tmp_path / "moons"
    shutil.copytree(moons_run, copy, ignore=shutil.ignore_patterns("schedules"))
    return copy


def drawn(folder):
    return np.load(f"{folder}/samples.npz")["arr_0"]


def test_times_are_stored_used_again_and_pasted(command, run, capfd):
    words = ("sample", f"ckpt={run}", "guidance=none", *BRIEF)
    assert command(*words, "out=a") == 0
    told = capfd.readouterr().out
    [file] = (run / "schedules").iterdir()
    assert file.name.startswith("Euler-3-steps-straight-") and f"stored in {file}" in told
    assert "evaluations of each" in told and "fitted" in told
    stored = json.loads(file.read_text())
    assert stored["step"] == 60 and stored["for"]["steps"] == 3
    before = file.stat().st_mtime_ns
    assert command(*words, "out=b") == 0
    told = capfd.readouterr().out
    assert f"schedule fitted: {file}\n" in told and "evaluations of each" not in told
    assert file.stat().st_mtime_ns == before
    times = ",".join(map(str, stored["times"]))
    explicit = ("schedule=explicit", f"schedule.times=[{times}]", "solver=euler", "n=8")
    assert command("sample", f"ckpt={run}", *explicit, *PLAIN[:2], "out=c") == 0
    for other in ("b", "c"):
        assert (drawn("a") == drawn(other)).all()
    assert command("sample", f"ckpt={run}", *BRIEF[:1], *BRIEF[2:], "nfe=3", "out=d") == 0
    assert (drawn("a") == drawn("d")).all()  # 3 evaluations are 3 steps
    assert command(*words, "coordinates=native", "final=denoise", "out=e") == 0
    assert len(list((run / "schedules").iterdir())) == 2


def test_times_of_other_weights_are_not_used(command, run, capfd):
    words = ("sample", f"ckpt={run}", *BRIEF)
    assert command(*words, "out=a") == 0
    [file] = (run / "schedules").iterdir()
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
    assert new["step"] == 61 and new["checksum"] != old["checksum"]
    assert new["error"] != old["error"]
    assert command(*words, "dtype=float64", "precision=fp32", "out=c") == 0  # not other weights
    assert f"schedule fitted: {file}" in capfd.readouterr().out


@pytest.mark.parametrize("text", ["{", '{"times": [0, 1]}'])
def test_a_file_that_cannot_be_read_is_replaced(command, run, capfd, text):
    assert command("sample", f"ckpt={run}", *BRIEF, "out=a") == 0
    [file] = (run / "schedules").iterdir()
    whole = file.read_text()
    file.write_text(text)
    assert command("sample", f"ckpt={run}", *BRIEF, "out=b") == 0
    assert f"{file} cannot be read: fitted anew" in capfd.readouterr().out
    assert file.read_text() == whole and (drawn("a") == drawn("b")).all()


@pytest.mark.slow
def test_where_nothing_can_be_written_times_are_used_all_the_same(command, run, capfd):
    (run / "schedules").write_text("in the way")
    assert command("sample", f"ckpt={run}", *BRIEF, "out=a") == 0
    assert f"not stored: {run}/schedules" in capfd.readouterr().out
    assert len(drawn("a")) == 8
    assert command("sample", "model=exact", "data=gmm4", *BRIEF, "out=b") == 0
    assert "not stored: there is no checkpoint" in capfd.readouterr().out


def test_a_grid_of_evaluate_fits_each_of_its_settings(command, run):
    words = (*BRIEF[:1], *BRIEF[4:], "metrics=[sw2]", "out=judged", "grid.steps=[2,3]")
    grid = ("schedule=fitted", "grid.solver=[euler,heun,dopri5]")
    assert command("evaluate", f"ckpt={run}", *words, *grid) == 0
    names = sorted(file.name[:13] for file in (run / "schedules").iterdir())
    assert names == ["Euler-2-steps", "Euler-3-steps", "Heun-2-steps-", "Heun-3-steps-"]
    assert len(Path("judged/table.csv").read_text().splitlines()) == 5  # without dopri5


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (("solver=dopri5", "steps=null"), "this one is adaptive: choose euler, heun"),
        (("solver=ddpm",), "this one is stochastic"),
        (("steps=1",), "needs two steps or more, and this is 1"),
        (("steps=null", "nfe=3", "solver=heun"), "needs two steps or more, and this is 1"),
        (("schedule.n=1",), "schedule.n=1"),
        (("schedule.reference=3",), "schedule.reference=3"),
    ],
)
def test_refusals(command, run, capfd, words, says):
    assert command("sample", f"ckpt={run}", *BRIEF, *words, "out=a") == 2
    assert says in capfd.readouterr().err
    assert not (run / "schedules").exists() and not Path("a").exists()


def test_an_nfe_that_depends_on_the_times_is_refused():
    field = gaussian((1.0, 0.2))
    field.classes, field.label = 1, torch.zeros(1, dtype=torch.long)
    with pytest.raises(FmdiffError, match="nfe=9: under this guidance what steps cost"):
        model(field, Euler(), nfe=9, guidance=CFG(2.0, [0.3, 0.6]))
    assert model(field, Euler(), nfe=10, guidance=CFG(2.0)).base.steps == 5


def test_errors_are_those_of_the_samples_that_generate_gives():
    """The RMS distance of both, over batches of every size."""
    field = mixture(CondOT())
    asked = model(field, Euler(), steps=4)
    seen = Trajectories(asked, 70, 200, 100)
    common = {"n": 200, "seed": 1, "dtype": torch.float64}
    fine = generate(field, solver="dopri5", **common).x[70:]
    ends = generate(field, solver="euler", steps=4, **common).x[70:]
    far = (ends - fine).square().mean().sqrt().item()
    assert seen.error(asked.sampler, asked.base) == pytest.approx(far, rel=1e-4)
