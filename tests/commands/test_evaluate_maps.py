"""fmdiff evaluate of flow maps: against the exact map, and at several numbers of steps."""

import csv
import json
import re
from html import unescape
from pathlib import Path

import pytest
from conftest import POINTS
from PIL import Image

from fmdiff.build import named, spec_of
from fmdiff.commands import grid
from fmdiff.commands.grid import Row
from fmdiff.custom import from_spec
from fmdiff.exact import exact
from fmdiff.metrics import map_error
from fmdiff.metrics.metric import Metric


def row(cell, **bounds):
    """A row of a grid, with a metric for each interval."""
    metrics = {k: Metric(sum(v) / 2, 1000, interval=v) for k, v in bounds.items()}
    return Row(cell, 1.0, 1.0, metrics)


def steps(bounds, name="sw2", **more):
    return [row({**more, "steps": k}, **{name: v}) for k, v in bounds.items()]


def test_more_steps_that_are_worse_are_told_beyond_the_intervals_only():
    rows = steps({1: (2.0, 2.2), 2: (2.1, 2.6), 4: (2.3, 2.9), 8: (1.0, 1.2), 16: (1.1, 1.9)})
    assert grid.setbacks(rows) == [
        "more steps are worse by sw2: 2.1 [2, 2.2] at 1, 2.6 [2.3, 2.9] at 4"
    ]
    assert grid.setbacks(rows[:2]) == grid.setbacks(rows[3:]) == []
    # the order in which the steps were asked for does not matter
    assert grid.setbacks(rows[::-1]) == grid.setbacks(rows)


def test_a_later_best_is_what_still_later_steps_are_compared_with():
    (told,) = grid.setbacks(steps({1: (3, 4), 2: (5, 6), 4: (1, 2), 8: (3, 4)}))
    assert told.endswith("3.5 [3, 4] at 1, 5.5 [5, 6] at 2, 1.5 [1, 2] at 4, 3.5 [3, 4] at 8")


def test_steps_are_compared_within_one_sampler():
    rows = steps({1: (1, 2), 4: (3, 4)}, solver="jump") + steps({1: (9, 9.5)}, solver="euler")
    (told,) = grid.setbacks(rows)
    assert told.startswith("more steps are worse by sw2 (solver=jump): ")
    apart = steps({1: (1, 2)}, solver="jump") + steps({4: (3, 4)}, solver="euler")
    assert grid.setbacks(apart) == []
    evaluations = [row({"nfe": k}, sw2=v) for k, v in {10: (1, 2), 20: (3, 4)}.items()]
    assert grid.setbacks(evaluations)[0].startswith("more evaluations are worse by sw2: ")
    assert grid.setbacks([row({"w": k}, sw2=(k, k + 0.5)) for k in (1, 2, 3)]) == []


def test_the_direction_of_a_metric_counts():
    falls = {1: (0.8, 0.9), 4: (0.5, 0.6)}
    assert len(grid.setbacks(steps(falls, "agreement"))) == 1
    assert grid.setbacks(steps(falls)) == []
    rises = {1: (0.5, 0.6), 4: (0.8, 0.9)}
    assert grid.setbacks(steps(rises, "agreement")) == grid.setbacks(steps(rises, "nll")) == []
    assert len(grid.setbacks(steps(rises))) == 1
    silent = [Row({"steps": k}, k, 1.0, {"sw2": Metric(k, 9)}) for k in (1, 4)]
    assert grid.setbacks(silent) == []


MAP = ("objective=lsd", *POINTS[1:], "trainer.max_steps=20", "trainer.warmup=0")
QUICK = ("against=exact", "times=3", "n=200", "device=cpu", "threads=1", "out=result")
FIELDS = ["t", "s", "jumps", "rms", "rms_error", "median", "outliers"]


def content():
    """results.json of a map, checked against map_errors.csv and for what holds of any map."""
    found = json.loads(Path("result/results.json").read_text())
    with Path("result/map_errors.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert list(rows[0]) == FIELDS and len(rows) == len(found["pairs"])
    for row, pair in zip(rows, found["pairs"], strict=True):
        assert {k: float(v) for k, v in row.items() if v} == {
            k: v for k, v in pair.items() if v is not None
        }
        assert pair["t"] < pair["s"] and pair["jumps"] == 1
    assert Image.open("result/map_errors.png").size > (400, 400)
    first, bound = found["jumps"][0], found["metrics"]["w2_bound"]
    assert [row["jumps"] for row in found["jumps"]] == [1, 2, 4, 8]
    assert first["rms"] == pytest.approx(found["pairs"][2]["rms"], abs=1e-9)
    assert bound["value"] == pytest.approx(first["rms"] * bound["extra"]["std"], rel=3e-3)
    assert (found["pairs"][2]["t"], found["pairs"][2]["s"]) == (first["t"], first["s"])
    return found


@pytest.fixture
def map_run(train, tmp_path):
    train(tmp_path / "run", "data=gmm4", *MAP)
    return tmp_path / "run"


def test_a_map_against_the_exact_one(command, map_run, capfd):
    capfd.readouterr()
    assert command("evaluate", f"ckpt={map_run}", *QUICK) == 0
    found, told = content(), capfd.readouterr().out
    assert len(found["pairs"]) == 6 and len(found["rows"]) == 3
    assert all(min(pair["rms"], pair["median"]) > 0.01 for pair in found["pairs"])
    assert [*found["metrics"]] == ["w2_bound", "map_rms", "fm", "cfm", "irreducible", "gap"]
    bound = found["metrics"]["w2_bound"]
    sentence = f"one jump from noise: W2(samples, data) <= {bound['value']:.4g} +- "
    assert found["certificate"].startswith(sentence) and found["certificate"] in told
    for name in ("errors.csv", "map_errors.csv", "map_errors.png"):
        assert f"result/{name}" in told and Path("result", name).is_file()
    (table,) = re.findall(r"s \\ t.*\n(?: *[\d.]+ .*\n){3}", told)
    assert f"{found['jumps'][0]['rms']:.2g}" in table.splitlines()[1]
    # the figures are repeated from their results
    words = ("result=result/results.json", "device=cpu", "threads=1", "out=again")
    assert command("evaluate", *words) == 0
    again = json.loads(Path("again/results.json").read_text())
    assert [again[k] for k in ("pairs", "jumps", "metrics")] == [
        found[k] for k in ("pairs", "jumps", "metrics")
    ]


def test_the_report_of_a_map_shows_its_errors(command, map_run):
    assert command("evaluate", f"ckpt={map_run}", *QUICK[:-1]) == 0
    (file,) = map_run.glob("samples/*/results.json")
    found = json.loads(file.read_text())
    page, sentence = unescape((map_run / "report.html").read_text()), found["certificate"]
    assert f"<p>{sentence[0].upper()}{sentence[1:]}.</p>" in page
    assert "Error of the map against the exact one, from each time to each later one." in page
    assert 'alt="Error of the map' in page
    start, rows = page.index("Jumps in a row"), {}
    for count, cells in re.findall(r'<th scope="row">(\d)</th>(.*?)</tr>', page[start:]):
        rows.setdefault(int(count), cells)
    for jump in found["jumps"]:
        for value in (f"{jump['rms']:.4g}", f"{jump['median']:.4g}", f"{jump['outliers']:.2%}"):
            assert f">{value}" in rows[jump["jumps"]]


@pytest.mark.parametrize("path", ["condot", pytest.param("edm", marks=pytest.mark.slow)])
def test_the_exact_map_has_no_error(path):
    data, of = named("data", "8gaussians"), from_spec(spec_of("path", path))
    errors = map_error.compare(exact(data, of), exact(data, of), data, 3, 20)
    assert max(jump.rms for jump in (*errors.pairs, *errors.rows)) < 1e-9


def test_an_exact_field_has_errors_by_time_alone(command):
    """Its own map would cost minutes and show zeros."""
    assert command("evaluate", "model=exact", "data=8gaussians", *QUICK, "n=20") == 0
    assert "pairs" not in json.loads(Path("result/results.json").read_text())
    assert not Path("result/map_errors.csv").exists()


@pytest.mark.parametrize(
    "words",
    [
        ("data=gmm4", "data.conditional=true", "path=vp"),
        pytest.param(("data=two_modes", "path=edm"), marks=pytest.mark.slow),
        pytest.param(("data=two_modes", "objective.prediction=x"), marks=pytest.mark.slow),
        pytest.param(("data=8gaussians", "path=cosine"), marks=pytest.mark.slow),
    ],
    ids=["classes", "edm", "x", "cosine"],
)
def test_maps_of_every_kind_have_a_triangle(train, command, words):
    train("run", *words, *MAP)
    assert command("evaluate", "ckpt=run", *QUICK) == 0
    assert len(content()["pairs"]) == 6


def test_a_velocity_has_errors_by_time_alone(train, command):
    train("run", "data=gmm4", *MAP[1:])
    assert command("evaluate", "ckpt=run", *QUICK[:1], *QUICK[2:]) == 0
    found = json.loads(Path("result/results.json").read_text())
    assert not {"pairs", "jumps", "certificate"} & {*found}
    assert len(found["rows"]) == found["config"]["times"] == 20
    assert not Path("result/map_errors.csv").exists()


def test_a_map_of_data_without_a_closed_form_is_refused(train, command, capfd):
    train("run", "data=moons", *MAP)
    capfd.readouterr()
    assert command("evaluate", "ckpt=run", *QUICK) == 2
    error = capfd.readouterr().err
    assert "Moons has none" in error and error.count("fmdiff evaluate: ") == 1
    assert not Path("result").exists()


LATE = """
import torch
import fmdiff

def late(data, path) -> fmdiff.field.FunctionField:
    # right by one step of Euler, and 3 (1 - 1/K) off by K
    return fmdiff.field(lambda x, t: 3.0 * (t > 0) * torch.ones_like(x), path, data.shape)
"""


def test_evaluate_warns_of_steps_that_make_samples_worse(command, capfd):
    Path("late.py").write_text(LATE)
    words = ("model=exact", "model._target_=late.late", "data=gmm", "data.means=[[0,0]]")
    words += ("data.cov=1", "solver=euler", "grid.steps=[1,4]", "metrics=[sw2]", "n=300")
    assert command("evaluate", *words, "device=cpu", "threads=1", "out=result") == 0
    found = json.loads(Path("result/results.json").read_text())
    (warning,) = found["warnings"]
    assert warning.startswith("more steps are worse by sw2: ") and " at 1, " in warning
    assert f"note: {warning}" in capfd.readouterr().out
    assert warning in unescape(Path("result/report.html").read_text())
