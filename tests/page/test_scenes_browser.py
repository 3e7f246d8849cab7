"""The scenes of a live page: each control is moved, and the numbers are those of Python."""

import csv
import math

import pytest

from fmdiff.page.brownian import brownian_scene
from fmdiff.page.page import write_page

pytestmark = pytest.mark.slow


def opened(show, tmp_path, scene, **settings):
    """A page of one scene, and a function that returns its state."""
    path = tmp_path / "page.html"
    write_page([scene], path, "A scene", "fmdiff page")
    page = show(path, **settings)
    # typed arrays become lists
    return page, lambda: page.evaluate(
        """kind => JSON.parse(JSON.stringify(fm.state[kind],
          (key, value) => ArrayBuffer.isView(value) ? [...value] : value))""",
        scene.kind,
    )


def steps_of(folder):
    """steps.csv of `fmdiff simulate` as a list of rows of numbers."""
    with (folder / "steps.csv").open(newline="") as file:
        return [{k: float(v) for k, v in row.items()} for row in csv.DictReader(file)]


def test_brownian_paths_are_those_of_simulate(show, tmp_path, command):
    page, state = opened(show, tmp_path, brownian_scene())
    start = state()
    assert len(start["paths"]) == 3 and start["theta"] == 0 and start["steps"] == 200
    page.get_by_role("slider", name="pull back").fill("3")
    page.get_by_role("slider", name="noise").fill("0.7")
    page.get_by_role("slider", name="start x").fill("2.5")
    page.get_by_role("slider", name="steps").fill("2")
    page.get_by_role("button", name="New path").click()
    now = state()
    assert (now["theta"], now["sigma"], now["x0"], now["steps"]) == (2, 0.7, [2.5], 20)
    assert len(now["paths"]) == 4
    noise = ",".join(map(repr, now["noise"][3]))
    words = ("system=ou", "system.theta=2", "system.diffusion=0.7", "system.x0=2.5")
    assert command("simulate", *words, f"noise=[{noise}]", "out=run") == 0
    python = [row["x_next"] for row in steps_of(tmp_path / "run")]
    assert now["paths"][3] == pytest.approx([2.5, *python], abs=1e-9)
    assert now["mean"][-1] == pytest.approx(2.5 * math.exp(-2), abs=1e-9)
    assert now["variance"][-1] == pytest.approx(0.49 * (1 - math.exp(-4)) / 4, abs=1e-9)


def test_brownian_paths_have_their_law(show, tmp_path):
    page, state = opened(show, tmp_path, brownian_scene())
    for _ in range(10):
        page.get_by_role("button", name="100 paths").click()
    sample = state()["sample"]
    n = sample["n"]
    assert n == 1003
    assert abs(sample["mean"]) < 4 / n**0.5 and abs(sample["variance"] - 1) < 4 * (2 / n) ** 0.5
    for share, exact in zip(sample["inside"], (0.6827, 0.9545), strict=True):
        assert abs(share - exact) < 4 * (exact * (1 - exact) / n) ** 0.5
    assert (
        page.get_by_role("table").locator("tr", has_text="variance").inner_text().split()[1] == "1"
    )
    page.get_by_role("button", name="Clear").click()
    assert state()["paths"] == []
    page.locator("canvas").first.click()
    assert len(state()["paths"]) == 1
