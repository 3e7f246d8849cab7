"""scripts/flow_maps.py and docs/flow_maps.md: what they train, measure and say."""

import sys
from pathlib import Path

import pytest
import torch

from fmdiff.build import build, named, spec_of
from fmdiff.exact import exact
from fmdiff.path import CondOT

sys.path.insert(0, str(Path(__file__).parents[2] / "scripts"))
import flow_maps

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def truth():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(flow_maps, "N", 1000)
        return flow_maps.Truth("8gaussians")


def test_the_exact_map_is_at_distance_0_at_the_noise_floor_and_on_the_support(truth):
    values = truth.measures(truth.x.float(), True)
    assert values["distance"] < 1e-6
    assert 0.4 < values["sw2"] < 1.6
    assert values["off"] < 0.5  # of a Gaussian exp(-8) = 0.03 % lies beyond 4 deviations


def test_a_shift_shows_in_every_measure(truth):
    shift = torch.tensor([3.0, 4.0])  # of length 5, and the std is 3.55
    values = truth.measures(truth.x.float() + shift, True)
    assert values["distance"] == pytest.approx(5 / truth.data.std, rel=1e-4)
    # over directions the mean square of a projection of the shift is half its square
    assert values["sw2"] * truth.floor == pytest.approx(5 / 2**0.5, rel=0.15)
    assert 1 < values["off"] < 100
    assert "distance" not in truth.measures(truth.x.float(), False)


def test_one_euler_step_of_the_exact_field_leads_to_the_mean_and_eight_come_near(
    truth, monkeypatch
):
    field = exact(named("data", "8gaussians"), CondOT())
    monkeypatch.setattr(flow_maps.fmdiff, "load", lambda run: field)
    values = flow_maps.measured([Path()] * 4, "velocity", truth)
    # x = eps + v(eps, 0) = E[x] = 0, and the data lie at distance 5
    assert values["distance"][0] == pytest.approx(5 / truth.data.std, rel=0.01)
    assert values["off"][0] == 100
    assert values["distance"] == sorted(values["distance"], reverse=True)
    assert values["distance"][3] < 0.1 and values["sw2"][3] < values["sw2"][0] / 4


@pytest.fixture
def commands(monkeypatch):
    """The trainings that the script asks for, by the name of their run; each costs 10 s."""
    asked = {}
    monkeypatch.setattr(
        flow_maps, "trained", lambda run, *words: asked.setdefault(run.name, words) and 10.0
    )
    return asked


def test_progressive_distillation_halves_the_jumps_and_teaches_by_the_last_student(commands):
    places, cpu = flow_maps.runs(Path("out"), "moons", "progressive", 1, 4000)
    assert [run.name for run in places] == [f"moons-progressive-1-{k}" for k in (1, 2, 4, 8)]
    assert cpu == 50
    last = Path("out/moons-velocity-1")
    for jumps, (name, words) in zip((16, 8, 4, 2, 1), commands.items(), strict=True):
        assert name == f"moons-progressive-1-{jumps}"
        assert {f"objective.jumps={jumps}", f"objective.teacher={last}", f"init={last}"} < {*words}
        assert {"data=moons", "seed=1", "trainer.max_steps=800"} < {*words}
        last = Path("out") / name


@pytest.mark.parametrize(
    ("preset", "words"),
    [
        ("velocity", {"trainer.max_steps=4000"}),
        ("velocity_2", {"trainer.max_steps=8000"}),
        ("imf", {"trainer.max_steps=4000", "objective=imf"}),
        (
            "distill",
            {
                "trainer.max_steps=4000",
                "objective=distill",
                "objective.teacher=out/moons-velocity-0",
                "init=out/moons-velocity-0",
            },
        ),
    ],
)
def test_all_others_have_as_many_steps_each_in_one_run(commands, preset, words):
    places, cpu = flow_maps.runs(Path("out"), "moons", preset, 0, 4000)
    assert cpu == 10 and {run.name for run in places} == set(commands) == {f"moons-{preset}-0"}
    assert {*commands[f"moons-{preset}-0"]} == words | {"data=moons", "seed=0"}


def test_the_table_has_means_ranges_and_the_counts_that_are_worse():
    rows = {
        ("moons", "lsd", 0): {"cpu": [60.0], "sw2": [1.0, 1.2, 0.9, 1.05]},
        ("moons", "lsd", 1): {"cpu": [62.0], "sw2": [2.0, 1.4, 1.1, 1.15]},
        ("moons", "imf", 0): {"cpu": [50.0], "sw2": [1.0, 1.2, 0.9, 1.0]},
    }
    lines = flow_maps.table(rows).splitlines()
    assert lines[0] == "### moons: sliced W2, in noise floors"
    assert lines[4] == (
        "| lsd | 2 | 61 | 1.50 (1.00 to 2.00) | 1.30 (1.20 to 1.40) | 1.00 (0.90 to 1.10) "
        "| 1.10 (1.05 to 1.15) |  |"
    )
    assert lines[5] == "| imf | 1 | 50 | 1.00 | 1.20 | 0.90 | 1.00 | K=2, K=8 |"
    assert len(lines) == 6  # no table for a measure that nobody has


def test_a_row_without_a_distance_after_the_first_count_has_dashes():
    rows = {("8gaussians", "scm", 0): {"cpu": [60.0], "distance": [0.1]}}
    assert flow_maps.table(rows).splitlines()[4] == "| scm | 1 | 60 | 0.100 | - | - | - |  |"


def test_what_is_there_is_not_made_again(tmp_path):
    first = flow_maps.once(tmp_path / "cell.json", lambda: {"sw2": [1.5]})
    again = flow_maps.once(tmp_path / "cell.json", lambda: {"sw2": [9.0]})
    assert again == first == {"sw2": [1.5]}


def presets():
    """The rows of the table of presets in docs/flow_maps.md, as lists of their cells."""
    page = (ROOT / "docs" / "flow_maps.md").read_text(encoding="utf-8")
    table = page.split("## Presets")[1].split("\n## ")[0]
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in table.splitlines()]
    return {row[0].strip("`"): row[1:] for row in rows if row and row[0].startswith("`")}


@pytest.mark.parametrize("name", [*presets()])
def test_the_page_tells_the_target_and_the_evaluations_of_a_preset(name):
    target, velocity, *_, without, gradient, taught = presets()[name]
    keys = spec_of("objective", "flow_map") | spec_of("objective", name)
    del keys["defaults"]
    keys["teacher"] = "RUN" if velocity == "teacher" else None
    objective = build(keys, path=CondOT(), data_std=1.0)
    assert (target, velocity) == (objective.target, objective.velocity)
    assert (float(without), float(gradient), float(taught)) == objective.evaluations


def test_the_page_has_every_preset():
    files = (ROOT / "configs" / "objective").glob("*.yaml")
    maps = {file.stem for file in files if "  - flow_map " in file.read_text()}
    assert {*presets()} == maps
