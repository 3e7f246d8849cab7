"""docs/files.md lists what a run, its checkpoint, its samples and its results really hold."""

import csv
import json
import re

import pytest
import torch
from blocks import ROOT
from conftest import POINTS, logging_restored

from fmdiff import cli

PAGE = (ROOT / "docs" / "files.md").read_text("utf-8")
ALL = (
    "trainer.max_steps=60",
    "trainer.checkpoint_every=40",
    "trainer.picture_every=60",
    "trainer.validate_every=60",
    "trainer.log_every=30",
    "trainer.power_ema=[0.05]",
    "trainer.metrics=[sw2]",
    "trainer.metrics_n=20",
    "trainer.best=sw2",
    "trainer.progress=false",
)
OF_EVERY_FOLDER = {"config.yaml", "overrides", "environment.json", "report.html"}


def listed(heading):
    """The names in the first column of the tables below a heading."""
    text = re.split(rf"^#+ {re.escape(heading)}$", PAGE, flags=re.MULTILINE)[1]
    rows = re.findall(r"^\| (`.+?) \|", re.split(r"^#", text, flags=re.MULTILINE)[0], re.MULTILINE)
    return set(re.findall(r"`([^`]+)`", " ".join(rows)))


def names(folder):
    """The names in a folder; that of a step's checkpoint is the one of the page."""
    seen = (path.name for path in folder.iterdir() if not path.name.startswith("."))
    return {re.sub(r"^\d+\.ckpt", "0000040.ckpt", name) for name in seen}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A run with everything switched on, and what sample and evaluate make of it."""
    folder = tmp_path_factory.mktemp("files")
    lines = [
        ["train", *POINTS, *ALL, f"out={folder / 'run'}"],
        ["sample", f"ckpt={folder / 'run'}", "n=20", "trajectory=true", "metrics=[sw2]"],
        ["evaluate", f"ckpt={folder / 'run'}", "n=20", "grid.steps=[1,2]", "metrics=[sw2]"],
    ]
    lines[1] += ["steps=2", f"out={folder / 'samples'}"]
    lines[2].append(f"out={folder / 'grid'}")
    with logging_restored():
        for words in lines:
            assert cli.main([*words, "device=cpu", "threads=1"]) == 0
    return folder


def test_the_run_folder(folder):
    assert names(folder / "run") == listed("The run folder")


def test_metrics_csv(folder):
    with (folder / "run" / "metrics.csv").open(newline="") as file:
        columns = next(csv.reader(file))
    assert {name for name in columns if name != "sw2"} == listed("metrics.csv")


def test_a_checkpoint(folder):
    content = torch.load(folder / "run" / "last.ckpt", weights_only=True)
    assert content.keys() == listed("Checkpoints")
    text = PAGE.partition("## Checkpoints")[2].partition("## Samples")[0]
    for part in ("spec", "weights", "training"):
        row = next(row for row in text.splitlines() if row.startswith(f"| `{part}`"))
        words = set(re.findall(r"`([^`]+)`", row)[1:])
        assert words - {"schedule_free"} == content[part].keys()  # of another optimiser


def test_samples(folder):
    # of images, tables, series and conditions
    optional = {"grid.png", "png", "corner.png", "samples.csv", "series.png", "given.png"}
    assert names(folder / "samples") == listed("Samples") - optional | OF_EVERY_FOLDER
    content = json.loads((folder / "samples" / "sample.json").read_text())
    assert content.keys() == listed("sample.json")


def test_results(folder):
    for place in ("samples", "grid"):
        content = json.loads((folder / place / "results.json").read_text())
        assert content.keys() <= listed("results.json")
    assert content.keys() == listed("results.json")
    entry = content["grid"][0]
    row = next(row for row in PAGE.splitlines() if row.startswith("| `grid`"))
    assert set(re.findall(r"`([^`]+)`", row)[1:]) == entry.keys()
    text = PAGE.partition("A metric has ")[2].partition("\n\n")[0]
    assert entry["metrics"]["sw2"].keys() <= set(re.findall(r"`(\w+)`", text))
    assert {"table.csv", "table.md", "quality.png", "cells.json"} <= names(folder / "grid")
