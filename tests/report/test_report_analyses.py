"""The pages of simulate, likelihood, invert and grids, and charts that can be read."""

import csv
import json
import re
from pathlib import Path

import matplotlib
import numpy as np
import pytest
from conftest import PLAIN, POINTS
from PIL import ImageFont
from test_report import Page, check_self_contained, made, sampled, written

from fmdiff.report import charts
from fmdiff.report.charts import Line, chart

FONT = ImageFont.truetype(Path(matplotlib.get_data_path()) / "fonts/ttf/DejaVuSans.ttf", 110)


# The commands and their pages


def copied(found):
    return found.source.partition("<code>")[2].partition("</code>")[0].replace("&#x27;", "'")


def test_the_page_of_a_simulation(command, tmp_path, capsys):
    words = ("system=circular", "system.x0=[[1,0],[0,2]]", "steps=4", "animation=true")
    assert command("simulate", *words, "out=run") == 0
    found = Page(tmp_path / "run/report.html")  # written by the command itself
    check_self_contained(found)
    assert copied(found) == f"fmdiff simulate {' '.join(words)}".replace(
        "system.x0=[[1,0],[0,2]]", "'system.x0=[[1,0],[0,2]]'"
    )
    assert "fmdiff simulation" in found.words
    assert "The system circular" in found.words and "omega = 1.0" in found.words
    rows = list(csv.DictReader((tmp_path / "run/steps.csv").open()))
    assert f"{float(rows[0]['x_next2']):.4g}" in found.words and "Steps (steps.csv)" in found.words
    [slider] = found.all("input")
    assert slider["data-unit"] == "t" and slider["data-steps"] == "0.25 0.5 0.75 1"
    assert len(list(found.pictures())) == 1 + 4


def test_the_page_of_a_table_of_errors(command, tmp_path):
    words = ("system=linear", "steps=[4,8]", "solvers=[euler,heun]")
    assert command("simulate", *words, "out=run") == 0
    found = Page(tmp_path / "run/report.html")
    for title in ("Errors of the solvers (errors.csv)", "Errors at equal numbers of evaluations"):
        assert title in found.words
    assert "by the solvers euler, heun" in found.words


def test_likelihood_and_inversion_write_into_the_page_of_their_run(command, moons_run):
    brief = ("n=6", "device=cpu", "threads=1", f"ckpt={moons_run}")
    assert command("likelihood", *brief, "steps=2") == 0
    assert command("invert", *brief, "steps=[2,3]", "solvers=[euler,heun]") == 0
    found = Page(moons_run / "report.html")
    [name] = sorted(moons_run.glob("samples/*/likelihood.json"))[-1:]
    nll = json.loads(name.read_text())["nll"]
    assert "Likelihood log p(x) of " in found.words and f"{nll:.4g}" in found.words
    assert "Inversion To noise and back" in found.words and "rms error" in found.words
    labels = {line.get("data-label") for line in found.all("polyline")}
    assert {"euler", "heun"} <= labels
    assert copied(found).startswith("fmdiff train")


@pytest.mark.parametrize("name", ["likelihood", "invert"])
def test_a_command_without_a_run_has_its_own_page(command, tmp_path, name):
    words = ("model=exact", "data=gmm4", "n=4", "out=run", "device=cpu", "threads=1")
    steps = "steps=2" if name == "likelihood" else "steps=[2]"
    assert command(name, *words, steps) == 0
    found = Page(tmp_path / "run/report.html")
    assert copied(found).startswith(f"fmdiff {name} model=exact data=gmm4")
    assert f"fmdiff {name[:6]}" in found.words


def test_samples_with_metrics_are_repeated_by_sample(command, tmp_path):
    words = ("model=exact", "data=gmm4", "n=60", "steps=2", "metrics=[energy]", "device=cpu")
    assert command("sample", *words, "threads=1", "out=run") == 0
    assert copied(Page(tmp_path / "run/report.html")).startswith("fmdiff sample model=exact")


@pytest.mark.parametrize("content", ["{}", "[]", '{"rows": [1, {"nfe": "x"}]}', "{", "\0"])
def test_odd_files_are_no_end_of_a_page(tmp_path, content):
    folder = made(tmp_path / "run")
    to = sampled(folder)
    for name in ("likelihood.json", "invert.json"):
        (to / name).write_text(content)
    assert "500 steps" in written(folder).words


def test_a_resumed_run_counts_its_whole_time(command, tmp_path):
    brief = ("trainer.log_every=5", "trainer.validate_every=20", "out=run")
    assert command("train", *PLAIN, *POINTS, *brief, "trainer.max_steps=20") == 0
    file = tmp_path / "run/metrics.csv"
    first = float(list(csv.DictReader(file.open()))[-1]["seconds"])
    text = re.sub(rf"{first:.3f}", "1000.000", file.read_text())  # as if it had taken long
    file.write_text(text)
    assert command("train", "resume=run", "trainer.max_steps=40") == 0
    seconds = [float(row["seconds"]) for row in csv.DictReader(file.open())]
    assert min(seconds[4:]) > 1000 and seconds[4:] == sorted(seconds[4:])
    words = Page(tmp_path / "run/report.html").words
    assert "40 steps of 64 samples took 16 min" in words
    assert f"{40 * 64 / seconds[-1]:.4g} samples a second" in words


def test_the_time_of_a_run_that_an_earlier_version_resumed(tmp_path):
    folder = made(tmp_path / "run", steps=400)
    rows = (folder / "metrics.csv").read_text().splitlines()
    values = [row.split(",") for row in rows]
    for row, seconds in zip(values[1:], (20.0, 40.0, 5.0, 15.0), strict=True):
        row[-2] = str(seconds)  # 0 again after step 200
    (folder / "metrics.csv").write_text("\n".join(map(",".join, values)) + "\n")
    found = written(folder)
    assert "took 55 s" in found.words and f"{400 * 64 / 55:.4g} samples a second" in found.words


# Grids


def test_a_grid_opens_its_page_and_ends_its_command(command, tmp_path, capsys):
    words = ("model=exact", "data=gmm4", "n=200", "metrics=[sw2]", "device=cpu", "threads=1")
    assert command("evaluate", *words, "grid.solver=[euler,heun]", "grid.nfe=[2,4]", "out=g") == 0
    said = capsys.readouterr().out
    results = json.loads((tmp_path / "g/results.json").read_text())["grid"]
    best = min(results, key=lambda row: row["metrics"]["sw2"]["value"])
    end = said[said.index("quality.png") :]
    for row in results:
        value, settings = row["metrics"]["sw2"]["value"], row["settings"]
        assert re.search(rf"{settings['solver']} +{settings['nfe']} .*{value:.4g}", end)
    name = f"solver={best['settings']['solver']} nfe={best['settings']['nfe']}"
    low, high = best["metrics"]["sw2"]["interval"]
    near = sum(low <= row["metrics"]["sw2"]["value"] <= high for row in results) - 1
    close = f"{near} of 3 others lie within its interval"
    assert f"best sw2: {best['metrics']['sw2']['value']:.4g}, {name}; {close}" in end
    found = Page(tmp_path / "g/report.html")
    top = found.words[: found.words.index("Copy")]
    assert f"has {name.replace(' ', ', ')}" in top
    for row in results:
        assert f"{row['metrics']['sw2']['value']:.4g}" in top


# Charts


def texts_of(svg):
    """(left, right, top, bottom) of each upright text of a chart, in the widest usual font."""
    boxes = []
    pattern = r'<text class="([\w ]+)" x="([-\d.]+)" y="([-\d.]+)"([^>]*)>([^<]*)<'
    for look, x, y, rest, text in re.findall(pattern, svg):
        x, y = float(x), float(y)
        _, top, size, bottom = (part / 10 for part in FONT.getbbox(text, anchor="ls"))
        if "rotate" in rest:  # written upwards: (x, y) becomes (y, -x)
            boxes.append((look, (y + top, y + bottom, -x - size / 2, -x + size / 2)))
            continue
        left = x - size * (0.5 if "middle" in rest else 1 if '"end"' in rest else 0)
        boxes.append((look, (left, left + size, y + top, y + bottom)))
    return boxes


def overlap(a, b):
    return a[0] < b[1] and b[0] < a[1] and a[2] < b[3] and b[2] < a[3]


@pytest.mark.parametrize(
    "values",
    [
        (1.02e-4, 1.27e-4),
        (1.2e-7, 3.4e-5),
        (0.1234, 0.1299),
        (-12345.0, 98765.0),
        (0.001, 900.0),
        (1e-12, 1e12),
    ],
)
@pytest.mark.parametrize("xs", [(4, 8, 16, 32), (1, 20000), tuple(range(100, 1300, 100))])
@pytest.mark.parametrize("log", [True, False])
def test_no_text_of_a_chart_overprints_another(values, xs, log):
    points = list(zip(xs, np.linspace(*values, len(xs)).tolist(), strict=True))
    svg = chart(
        [Line("a", points, "s0", True)],
        "t",
        "network evaluations",
        "memorisation of samples",
        log,
        None,
    )
    boxes = [box for look, box in texts_of(svg) if look == "tick"]
    assert len(boxes) >= 5
    for i, a in enumerate(boxes):
        assert a[0] >= -1
        assert not any(overlap(a, b) for b in boxes[i + 1 :]), (a, svg)


@pytest.mark.parametrize("log", [True, False])
def test_ticks_stand_where_points_are(log):
    points = [(4.0, 1.0), (8.0, 0.5), (28.0, 0.3), (32.0, 0.2)]
    svg = chart([Line("a", points, "s0", True)], "t", "NFE", "sw2", log_x=log)
    bottom = charts.HEIGHT - charts.BOTTOM
    ticks = re.findall(rf'<path class="axis" d="M([\d.]+) {bottom}v4"/>', svg)
    dots = re.findall(r'<circle class="s0" cx="([\d.]+)"', svg)
    assert ticks == dots and len(dots) == 4
    assert re.search(r'text-anchor="middle">4<', svg) and re.search(r">8<", svg)


# Sweeps


@pytest.mark.parametrize(
    "group, change",
    [
        ("path", {"path": {"_target_": "fmdiff.path.VP"}}),
        ("objective", {"objective": {"prediction": "x"}}),
        ("source", {"source": {"_target_": "fmdiff.source.Uniform"}}),
        ("data", {"data": {"_target_": "fmdiff.data.toy.Rings"}}),
        (None, {"optim": {"lr": 5.0}}),
    ],
)
def test_losses_of_different_kinds_are_not_compared_silently(tmp_path, capsys, group, change):
    from fmdiff.commands.job import print_sweep

    made(tmp_path / "s/0", optim={"lr": 1e-3})
    made(tmp_path / "s/1", **change)
    lines = [json.dumps([i, f"x={i}", 0, str(tmp_path / f"s/{i}")]) for i in range(2)]
    (tmp_path / "s/jobs.jsonl").write_text("\n".join(lines) + "\n")
    words = written(tmp_path / "s").words
    assert print_sweep(tmp_path / "s") == 0
    said = capsys.readouterr().out
    assert "validation loss" in said and said.count("0.1 ") >= 2 and "validation loss" in words
    sentence = f"The validation losses do not compare: these runs differ in {group}."
    assert (sentence in words) == (sentence in said) == (group is not None)
    assert ("lowest validation loss" in words) == (group is None)
