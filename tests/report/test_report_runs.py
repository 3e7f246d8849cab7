import csv
import json
import os
import re

import numpy as np
import pytest
import yaml
from conftest import PLAIN, POINTS
from test_report import METRICS, Page, check_self_contained, made, sampled, written

from fmdiff import report

JOBS = "jobs.jsonl"


# Sweeps


def test_a_real_sweep_is_one_page(command, tmp_path, capsys):
    brief = ("trainer.max_steps=4", "trainer.validate_every=2", "trainer.picture_every=4")
    words = (*POINTS, *brief, "optim.lr=2e-3", "path=condot,vp")
    assert command("train", "-m", *PLAIN, *words, "out=sweep") == 0
    capsys.readouterr()
    assert command("report", "runs=sweep") == 0
    assert capsys.readouterr().out == "sweep/report.html\n"
    found = Page(tmp_path / "sweep/report.html")
    check_self_contained(found)
    assert "2 jobs, which differ in path ." in found.words
    assert "fmdiff train -m" in found.words and "path=condot,vp" in found.words
    cells = found.words.partition("validation loss time ")[2]
    assert re.match(r"0 condot ok 4 [\d.]+ [\d.]+ s 1 vp ok 4 [\d.]+ [\d.]+ s", cells)
    assert len(found.all("div", **{"class": "frames drawn"})) == 2
    [curve] = [
        line["data-values"].split()
        for line in found.all("polyline")
        if line.get("data-label") == "1 vp" and line["data-values"].count(",") == 2
    ][:1]
    rows = list(csv.DictReader((tmp_path / "sweep/1/metrics.csv").open()))
    assert curve == [f"{row['step']},{float(row['val_loss']):.4g}" for row in rows]


def test_jobs_that_failed_or_left_nothing_are_rows_too(tmp_path):
    sweep = tmp_path / "sweep"
    made(sweep / "0", optim={"lr": 1e-3})
    made(sweep / "10", optim={"lr": 2e-3})
    lines = [
        json.dumps([10, "optim.lr=2e-3", 3, str(sweep / "10")]),
        json.dumps([0, "optim.lr=1e-3", 0, None]),
        json.dumps([2, "optim.lr=bad", 2, str(sweep / "2")]),
        "{not json",
        "[1]",
    ]
    (sweep / JOBS).write_text("\n".join(lines))
    found = written(sweep)
    assert "5 jobs, 1 of them ended well" in found.words
    for said in ("diverged", "user error"):
        assert said in found.words
    assert found.words.count("jobs.jsonl has a damaged line") == 2
    rows = found.source.partition("<tbody>")[2].partition("</tbody>")[0].split("<tr>")[1:]
    assert [re.search(r"row\">(.*?)<", row)[1] for row in rows] == ["0", "2", "10", "?", "?"]


@pytest.mark.parametrize("content", ["", "\n\n", "null", "[[], {}, 1, 2]", "[0, 1, [], {}]"])
def test_any_list_of_jobs_gives_a_page(tmp_path, content):
    (tmp_path / JOBS).write_text(content)
    assert "jobs" in written(tmp_path).words


def test_a_sweep_that_was_moved_is_found_beside_its_list(tmp_path):
    made(tmp_path / "moved/0")
    (tmp_path / "moved" / JOBS).write_text(json.dumps([0, "", 0, "elsewhere/0"]) + "\n")
    assert "500" in written(tmp_path / "moved").words


# Side by side


def test_comparison_shows_what_differs_and_what_came_of_it(tmp_path):
    a = made(tmp_path / "a/run", optim={"lr": 0.125}, seed=3)
    b = made(tmp_path / "b/run", optim={"lr": 0.25}, seed=3)
    sampled(a, metrics=METRICS)
    sampled(b, metrics={"sw2": {"value": 0.75, "n": 10}})
    for folder in (a, b):
        (folder / "config.yaml").open("a").write(f"out: {folder}\n")
    found = Page(report.compare([a, b], tmp_path / "new/c.html"))
    check_self_contained(found)
    assert found.words.startswith("a/run and b/run")
    assert "2 runs, which differ in optim.lr ." in found.words  # not in out, nor in seed
    assert "a/run 0.125 500 0.1 10 s" in found.words and "b/run 0.25 500" in found.words
    assert "sw2 0.03125 [0.03, 0.0325] 0.75" in found.words
    labels = {line.get("data-label") for line in found.all("polyline")}
    assert {"a/run", "b/run"} <= labels
    assert len([1 for image, _ in found.pictures() if "data-step" in image]) == 10


def test_the_same_run_twice_gets_two_names(tmp_path):
    a = made(tmp_path / "a")
    found = Page(report.compare([a, a], tmp_path / "c.html"))
    assert found.words.startswith("a (1) and a (2)") or "(1)" in found.words


# Quality against NFE


def grid_of(values):
    return [
        {"settings": {"solver": s, "nfe": k}, "nfe_counted": k, "metrics": {name: {"value": v}}}
        for s, name, k, v in values
    ]


@pytest.mark.parametrize("name, more", [("fid", False), ("precision", True)])
def test_the_pareto_front_is_ringed(tmp_path, name, more):
    rng = np.random.default_rng(3)
    quality = np.linspace(0.2, 1, 5)[:: 1 if more else -1]  # more evaluations help
    values = [
        (s, name, k, round(float(v), 3))
        for s in ("euler", "heun", "unipc")
        for k, v in zip((4, 8, 16, 32, 64), quality * rng.uniform(0.5, 1.5, 5), strict=True)
    ]
    to = sampled(made(tmp_path / "run"), grid=grid_of(values), metrics={})
    found = written(to.parent.parent)
    # brute force: nothing costs no more and is better, or costs less and is as good
    sign = -1 if more else 1
    best = {
        (k, v)
        for _, _, k, v in values
        if not any((m <= k and sign * w < sign * v) or (m < k and w == v) for _, _, m, w in values)
    }
    points = {}
    for line in found.all("polyline"):
        if line.get("data-label") in ("euler", "heun", "unipc"):
            pairs = zip(line["points"].split(), line["data-values"].split(), strict=True)
            points |= {p: tuple(map(float, v.split(","))) for p, v in pairs}
    rings = {f"{c['cx']},{c['cy']}" for c in found.all("circle", **{"class": "ring"})}
    assert {points[place] for place in rings} == best and 1 < len(best) < 15
    assert ("more is better" if more else "less is better") in found.words


def test_settings_beside_the_solver_make_their_own_line(tmp_path):
    grid = [
        {
            "settings": {"solver": "heun", "w": w, "steps": k},
            "nfe_counted": k,
            "metrics": {"a": {"value": k}},
        }
        for w in (1, 2)
        for k in (5, 10)
    ]
    to = sampled(made(tmp_path / "run"), grid=grid, metrics={"a": {"value": 5}})
    found = written(to.parent.parent)
    labels = [line.get("data-label") for line in found.all("polyline")]
    assert [x for x in labels if x and x.startswith("heun")] == ["heun w=1", "heun w=2"]
    assert "best a 5" in found.words


# The command


def test_the_newest_run_is_taken(command, tmp_path, capsys):
    for i, name in enumerate(("old/1", "new/2", "other/sweep/3")):
        folder = made(tmp_path / "outputs" / name)
        (folder / "last.ckpt").touch()
        os.utime(folder / "last.ckpt", (1e9 + (i == 1), 1e9 + (i == 1)))
    for words in ((), ("runs=last",)):
        assert command("report", *words) == 0
        assert capsys.readouterr().out == "outputs/new/2/report.html\n"
    found = Page(tmp_path / "outputs/new/2/report.html")
    assert found.words.startswith("new/2 fmdiff training run")


def test_several_runs_go_to_this_folder(command, tmp_path, capsys):
    made(tmp_path / "a")
    made(tmp_path / "b")
    assert command("report", "runs=[a,b]") == 0
    assert capsys.readouterr().out == "report.html\n" and (tmp_path / "report.html").is_file()
    assert command("report", "runs=[a,b]", "out=c") == 0
    assert (tmp_path / "c/report.html").is_file()
    assert command("report", "runs=a/config.yaml", "out=d/e.html") == 0  # a file in it will do
    assert Page(tmp_path / "d/e.html").words.startswith("a fmdiff")


@pytest.mark.parametrize(
    "words, says",
    [
        ((), "no run was found under outputs: give runs=RUN or runs=[A,B]"),
        (("runs=nowhere",), "runs=nowhere: no such folder"),
        (("runs=[plain,nowhere]",), "runs=plain: neither a run folder nor that of a sweep"),
        (("runs=[]",), "runs=[]: must be a folder, a list of folders"),
        (("runs=a", "out=a/config.yaml/x.html"), "out=a/config.yaml"),
    ],
)
def test_what_is_wrong_is_said_in_one_sentence(command, tmp_path, caplog, capsys, words, says):
    made(tmp_path / "a")
    (tmp_path / "plain").mkdir()
    assert command("report", *words) == 2
    assert says in caplog.text + capsys.readouterr().err


def test_the_command_names_no_folder_of_code(tmp_path):
    """Someone else may have recorded it; what is left out is said."""
    folder = made(tmp_path / "run")
    argv = ["/bin/fmdiff", "--config-dir", "my configs", "data=mine"]
    (folder / "environment.json").write_text(json.dumps({"command": argv}))
    (folder / "config.yaml").write_text(yaml.safe_dump({"trainer": {"max_steps": 1}}))
    with (folder / "overrides").open("a") as file:
        file.write("data=mine\nseed=3\n")
    source = written(folder).source
    line = source.partition("<code>")[2].partition("</code>")[0]
    assert "config" not in line and "mine" not in line and line.endswith("seed=3")
    assert "the command leaves out data=mine: it is no choice of data" in source
