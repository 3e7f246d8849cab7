"""scripts/benchmark_scaling.py: what it reads from a plan, and what its experiments count."""

import sys
from pathlib import Path

import pytest
import torch

sys.path.insert(0, str(Path(__file__).parents[1] / "scripts"))

import benchmark_scaling
import scaling_bends
from benchmark_scaling import Cell

TRAIN = """\
model     unet, 48,753 parameters, 1.2 MFLOP forward and 3.6 MFLOP a step per image
memory    about 98.9 MB a device (61 MB in the trial): weights and data; with Python and its \
packages 1.02 GB of main memory a process
start-up  5.12 s to the first step (4.7 s of CPU)
speed     1,250 images/s on 2 processes of 1 CPU thread (78.1 steps/s; ms a step: data 1, \
forward 2; 11.2 of CPU)
"""
SAMPLE = """\
memory    about 9 MB a device (8 MB in the trial): weights; with Python and its packages \
512 MB of main memory a process
start-up  3 s to the first step (2.5 s of CPU)
speed     40 images/s on 1 CPU thread (0.4 s a batch, 0.32 of CPU, 2.5 ms an evaluation)
"""


def test_the_numbers_of_a_plan():
    assert benchmark_scaling.figures(TRAIN, 8) == pytest.approx(
        {
            "clock": 1 / 1250,
            "cpu": 0.0112 / 8,
            "memory": 1.02e9,
            "startup": 5.12,
            "startup_cpu": 4.7,
        }
    )
    said = benchmark_scaling.figures(SAMPLE, 16)
    assert said["cpu"] == pytest.approx(0.02) and said["memory"] == 512e6


def test_a_cell_is_a_command():
    cell = Cell("train", batch=16, processes=2)
    assert cell.share == 8 and Cell("sample", batch=16, processes=2).share == 16
    assert {"data.batch_size=16", "trainer.devices=2"} <= set(cell.words(Path("here")))
    # 8 samples of 10 ms take 80 ms: 50 steps in 4 s
    assert cell.length(0.01) == "trainer.max_steps=50"


def test_the_verdict_counts_the_cells_within_15_percent():
    taken = dict.fromkeys(("clock", "cpu", "memory", "startup", "startup_cpu"), 100.0)
    results = {
        Cell("train", batch=b): (taken, {name: v for name in taken})
        for b, v in ((1, 114.0), (2, 86.0), (4, 116.0))
    }
    lines = list(benchmark_scaling.verdict(results))
    assert all("2 of 3 cells within 15%; most off by +16%" in line for line in lines)


def test_a_bend_is_told_by_the_best_speed():
    says = scaling_bends.bend([1, 2, 4, 8], [10, 95, 100, 80], "samples")
    assert says == "best at 4 samples, 90% of it from 2 on, 80% of it at 8"


def test_operators_are_counted():
    x = torch.ones(3)
    assert scaling_bends.operators(lambda: (x + 1).exp().sum()) == 3


def test_the_experiments_run(monkeypatch):
    monkeypatch.setattr(scaling_bends, "REPEATS", 1)
    for axis, along in benchmark_scaling.cells("train", ("parameters",)).items():
        small = [Cell("train", batch=2, size=8, channels=c.channels // 8) for c in along[2:]]
        figures = [{"cpu": 0.1, "clock": 0.1}, {"cpu": 0.3, "clock": 0.3}]
        line = scaling_bends.line("train", axis, small, figures)
        assert line.startswith("train, parameters: best at") and "bound by" in line
