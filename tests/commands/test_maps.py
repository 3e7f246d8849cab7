"""Flow maps through the commands: the default way of sampling, its record, and what is refused."""

import json
from pathlib import Path

import numpy as np
import pytest
from conftest import _trained

import fmdiff
from fmdiff.commands.info import how_to_sample
from fmdiff.sampling import AHEAD, JOINED

SMALL = ("model.hidden=16", "data.batch_size=64", "trainer.max_steps=20", "trainer.warmup=0")
CPU = ("device=cpu", "threads=1", "n=64")


@pytest.fixture(scope="session")
def map_run(tmp_path_factory):
    """A map with classes, which takes scales of guidance from 1 to 3."""
    words = ("data=gmm4", "data.conditional=true", "objective=lsd", "objective.guidance=[1,3]")
    previews = ("trainer.picture_every=20", "trainer.metrics=[sw2]", "trainer.metrics_every=20")
    return _trained(tmp_path_factory.mktemp("map") / "run", *words, *previews, *SMALL)


@pytest.fixture(scope="session")
def consistency_run(tmp_path_factory):
    words = ("data=gmm4", "objective=consistency", *SMALL)
    return _trained(tmp_path_factory.mktemp("consistency") / "run", *words)


@pytest.fixture
def sample(command, capsys):
    """Samples with `words`: sample.json, and what was printed."""

    def run(ckpt, *words, out="samples"):
        words = (f"ckpt={ckpt}", *CPU, *words, f"out={out}", "overwrite=true")
        assert command("sample", *words) == 0
        return json.loads(Path(out, "sample.json").read_text()), capsys.readouterr().out

    return run


@pytest.fixture
def refused(command, capsys, caplog):
    """Runs what is refused: the sentence on stderr. Nothing is written."""

    def run(*words):
        before = sorted(Path().rglob("*"))
        assert command(*words) == 2
        *others, line = (caplog.text + capsys.readouterr().err).strip().splitlines()
        assert sorted(Path().rglob("*")) == before
        assert all(other.startswith("ckpt=") for other in others)  # which checkpoint is taken
        caplog.clear()
        return line

    return run


def test_a_run_shows_jumps_of_its_map(map_run):
    """The pictures and metrics of training are those of four jumps."""
    assert [path.name for path in (map_run / "samples").iterdir()] == ["step_0000020.png"]
    assert "sw2" in (map_run / "metrics.csv").read_text().splitlines()[0]
    assert "no picture" not in (map_run / "train.log").read_text()


def test_sampling_a_map_jumps_four_times(sample, map_run):
    report, text = sample(map_run)
    assert report["nfe_planned"] == report["nfe_counted"] == report["steps"] == 4
    assert report["config"]["solver"] == {"_target_": "fmdiff.solvers.jump.Jump", "noise": 0.0}
    assert report["config"]["choices"]["solver"] == "jump"
    assert "solver jump (of a flow map), 4 steps, schedule uniform" in text
    assert "from 0 to 1, 4 evaluations each" in text and "note:" not in text
    again = fmdiff.generate(fmdiff.load(map_run), 64, batch_size=64)
    np.testing.assert_allclose(np.load("samples/samples.npz")["arr_0"], again.x, atol=1e-5)


def test_what_is_chosen_wins(sample, map_run, moons_run):
    report, text = sample(map_run, "solver=heun")
    assert report["nfe_counted"] == 56 and "solver heun (order 2), 28 steps" in text
    report, _ = sample(map_run, "solver=jump", "solver.noise=0.5", "steps=2", "schedule=karras")
    assert report["nfe_counted"] == 2 and report["config"]["solver"]["noise"] == 0.5
    report, _ = sample(map_run, "nfe=3", "coordinates=native")
    assert report["nfe_counted"] == report["steps"] == 3
    report, text = sample(moons_run)  # a velocity network
    assert report["config"]["choices"]["solver"] == "adams" and report["nfe_counted"] == 28
    assert report["config"]["solver"]["_target_"] == "fmdiff.solvers.multistep.Adams"


def test_guidance_of_a_map(sample, map_run, refused):
    """The scale is an input where it was trained so, and else two branches, which a line says."""
    report, text = sample(map_run, "guidance=cfg", "guidance.w=2")
    assert report["nfe_counted"] == 4 and JOINED not in text
    words = ("guidance=interval", "guidance.w=2", "guidance.interval=[0,1]")
    report, text = sample(map_run, *words)
    assert report["nfe_counted"] == 8 and f"note: {JOINED}\n" in text
    words = ("sample", f"ckpt={map_run}", *CPU, "guidance=cfg", "guidance.w=4", "out=other")
    assert "guidance.w=4: this model takes w as an input" in refused(*words)


def test_a_consistency_map_jumps_to_the_data(sample, consistency_run):
    """In every step, and noise is added again; an explicit solver that does not is noted."""
    report, text = sample(consistency_run)
    assert report["config"]["solver"]["noise"] == 1.0 and report["nfe_counted"] == 4
    assert "note:" not in text
    assert f"note: {AHEAD}\n" in sample(consistency_run, "solver=jump")[1]
    assert "note:" not in sample(consistency_run, "solver=jump", "steps=1")[1]
    assert how_to_sample(fmdiff.load(consistency_run)) == "solver=jump solver.noise=1 steps=4"


@pytest.mark.parametrize(
    "words",
    [
        ("solver=heun", "steps=3"),
        ("solver=dopri5",),
        ("solver=dpmpp_2m_sde", "steps=3"),
        ("trajectory=true", "steps=3"),
        ("schedule=fitted", "schedule.n=8", "steps=2"),
        ("schedule=explicit", "schedule.times=[0,0.3,1]"),
        ("path=vp", "steps=2"),
        ("path=edm", "steps=2", "coordinates=native"),
    ],
    ids=" ".join,
)
def test_a_map_is_sampled_in_every_way(sample, map_run, words):
    report, _ = sample(map_run, *words)
    planned = report["nfe_planned"]
    assert planned is None or planned == report["nfe_counted"]
    assert np.isfinite(np.load("samples/samples.npz")["arr_0"]).all()


def test_a_map_has_likelihoods_and_codes(command, map_run):
    """On its diagonal it is a field like any other."""
    words = (f"ckpt={map_run}", "device=cpu", "threads=1", "n=8")
    assert command("likelihood", *words, "steps=4", "out=likelihood") == 0
    assert command("invert", *words, "steps=[4]", "solvers=[heun]", "out=codes") == 0


def test_a_grid_of_solvers_of_a_map(command, map_run):
    words = ("metrics=[sw2]", "grid.solver=[jump,heun]", "grid.steps=[1,2]", "out=grid")
    assert command("evaluate", f"ckpt={map_run}", *CPU, *words) == 0
    result = json.loads(Path("grid/results.json").read_text())
    costs = {(row["settings"]["solver"], row["nfe_counted"]) for row in result["grid"]}
    assert costs == {("jump", 1), ("jump", 2), ("heun", 2), ("heun", 4)}
    assert result["config"]["choices"]["solver"] == "jump"
    words = ("guidance=interval", "guidance.w=2", "metrics=[sw2]", "out=guided")
    assert command("evaluate", f"ckpt={map_run}", *CPU, *words) == 0
    assert JOINED in json.loads(Path("guided/results.json").read_text())["warnings"]


def test_info_tells_what_a_map_is(command, map_run, moons_run, capsys):
    assert command("info", f"ckpt={map_run}") == 0
    text = capsys.readouterr().out
    assert "gives the mean velocity from t to a time s, for solver=jump" in text
    assert "guidance.w from 1 to 3 is an input, at one evaluation" in text
    assert text.endswith(" solver=jump steps=4 guidance=cfg guidance.w=2\n")
    assert command("info", f"ckpt={moons_run}") == 0
    text = capsys.readouterr().out
    assert "flow map" not in text and text.endswith(" solver=adams steps=28\n")


def test_help_says_what_the_default_is(command, capsys):
    for name in ("sample", "evaluate"):
        assert command(name, "--help") == 0
        text = capsys.readouterr().out
        assert "solver=null" in text and "null: adams, or for a flow map jump" in text


def test_what_a_velocity_network_is_refused(refused, moons_run):
    for words in ((), ("solver.noise=0.5",), ("steps=2",)):
        line = refused("sample", f"ckpt={moons_run}", *CPU, "solver=jump", *words, "out=other")
        assert "solver=jump needs a flow map, and this is a velocity alone" in line
        assert "objective=flow_map init=RUN" in line
    words = ("sample", f"ckpt={moons_run}", *CPU, "solver.noise=1", "out=other")
    assert "solver.noise goes with solver=jump: choose it, too" in refused(*words)


@pytest.mark.parametrize(
    ("command_words", "says"),
    [
        (("sample", "solver=jump", "solver.noise=2"), "solver.noise=2: must be a number from 0"),
        (("sample", "steps=2", "nfe=2"), "steps=2 and nfe=2 are both given"),
        (("sample", "steps=0"), "steps=0: must be an integer >= 1"),
        (("sample", "solver=jumps"), "solver"),
        (("sample", "solver=jump", "solver.eta=1"), "solver.eta"),
        (("sample", "schedule=explicit", "schedule.times=[0,0.7,0.3,1]"), "must increase"),
        (("sample", "schedule=trained"), "schedule=trained: this model was trained at all times"),
        (("likelihood", "solver=jump"), "Jump leads from noise to data alone"),
        (("invert", "solvers=[jump]"), "Jump leads from noise to data alone"),
    ],
)
def test_slips_are_told_in_one_line(refused, map_run, command_words, says):
    name, *words = command_words
    assert says in refused(name, f"ckpt={map_run}", "device=cpu", "n=8", *words, "out=other")


def test_systems_are_no_maps(refused):
    assert "solver=jump needs a flow map" in refused("simulate", "solver=jump", "out=other")
