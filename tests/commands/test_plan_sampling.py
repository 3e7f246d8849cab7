"""fmdiff sample plan=true: what samples would cost, beside what they cost."""

import io
import json
import re
import subprocess
import sys
import time

import numpy as np
import pytest
from conftest import IMAGES

from fmdiff import cli
from fmdiff.commands import plan_sampling
from fmdiff.sampling import Sampler

ALONE = ("device=cpu", "threads=1")


@pytest.fixture(scope="module")
def digits(tmp_path_factory):
    """A run on digits, hardly trained."""
    out = tmp_path_factory.mktemp("digits") / "run"
    more = ("trainer.max_steps=1", "trainer.logger=csv", "trainer.progress=false")
    assert cli.main(["train", *ALONE, *IMAGES, *more, f"out={out}"]) == 0
    return out


@pytest.fixture
def planned(command, capfd, monkeypatch):
    """The lines of a plan by their first word."""
    monkeypatch.setattr(plan_sampling, "SECONDS", 0.0)

    def run(*words):
        capfd.readouterr()
        assert command("sample", *ALONE, *words, "plan=true") == 0
        lines = capfd.readouterr().out.splitlines()
        return dict(line.split(maxsplit=1) for line in lines)

    return run


def speed(said):
    """Samples a second."""
    return float(re.match(r"[\d.,e+]+", said["speed"])[0].replace(",", ""))


def test_a_plan_says_what_will_be_drawn_and_leaves_nothing(planned, digits, command, tmp_path):
    before = sorted(digits.rglob("*"))
    words = (f"ckpt={digits}", "n=50", "batch_size=20", "nfe=4")
    said = planned(*words)
    assert said["samples"] == "50 images: 3 batches of 20, 4 evaluations each"
    assert "4 evaluations each" in said["solver"]
    a_batch = float(re.search(r"\(([\d.e-]+) s a batch", said["speed"])[1])
    assert speed(said) == pytest.approx(20 / a_batch, rel=0.01)
    # the pixels and labels of 50 images of 8 x 8
    assert said["files"] == "samples.npz of 3.6 kB, and pictures"
    assert sorted(digits.rglob("*")) == before and not list(tmp_path.iterdir())
    assert command("sample", *ALONE, *words, "out=samples") == 0
    with np.load(tmp_path / "samples" / "samples.npz") as arrays:
        assert sum(a.nbytes for a in arrays.values()) == 3600
    assert json.loads((tmp_path / "samples" / "sample.json").read_text())["nfe_counted"] == 4


def test_guidance_and_adaptive_solvers_are_counted(planned, digits, command, tmp_path):
    cfg = ("guidance=cfg", "guidance.w=2")
    assert "8 evaluations each" in planned(f"ckpt={digits}", *cfg, "nfe=8")["samples"]
    words = ("model=exact", "data=gmm4", "n=64", "solver=dopri5")
    told = float(re.search(r"([\d.]+) evaluations each", planned(*words)["samples"])[1])
    assert command("sample", *ALONE, *words, "out=samples") == 0
    counted = json.loads((tmp_path / "samples" / "sample.json").read_text())["nfe_counted"]
    assert told == pytest.approx(counted, rel=1e-4)


def test_a_slow_batch_is_scaled_from_fewer_samples(planned, digits, monkeypatch):
    """The time of an evaluation times their number, which is nearly all of a batch."""
    words = (f"ckpt={digits}", "n=64", "nfe=6")
    monkeypatch.setattr(plan_sampling, "SLOW", 0.0)
    said = planned(*words)
    assert "scaled" not in said["speed"]
    evaluation = float(re.search(r"([\d.e-]+) ms an evaluation", said["speed"])[1])
    a_batch = float(re.search(r"\(([\d.e-]+) s a batch", said["speed"])[1])
    assert a_batch == pytest.approx(6 * 64 * evaluation / 1e3, rel=0.01)
    monkeypatch.setattr(plan_sampling, "LONG", 1e-9)
    assert "; tried with 1 and scaled)" in planned(*words)["speed"]
    one = plan_sampling.Trial(0.1, 0.1, None, 2, 1000)
    monkeypatch.setattr(plan_sampling, "_evaluation", lambda *_: one)
    said = planned(*words)
    # 6 evaluations of 32 times as many
    assert "(19.2 s a batch, 19.2 of CPU, 50 ms an evaluation; tried with 2" in said["speed"]


def test_a_plan_tells_the_time_of_a_batch(planned, digits, command, monkeypatch):
    """Within 15 % of real batches by CPU time, the best of three."""
    words = (f"ckpt={digits}", "n=256", "batch_size=64", "nfe=10")
    monkeypatch.setattr(plan_sampling, "SECONDS", 0.5)
    off = []
    for i in range(3):
        plan = float(re.search(r"([\d.e-]+) of CPU", planned(*words)["speed"])[1])
        marks, carry = [], Sampler.carry

        def marked(*parts, marks=marks, carry=carry):
            marks.append(time.process_time())
            return carry(*parts)

        with monkeypatch.context() as patch:
            patch.setattr(Sampler, "carry", marked)
            assert command("sample", *ALONE, *words, f"out=out{i}") == 0
        off.append(abs(plan / ((marks[-1] - marks[1]) / (len(marks) - 2)) - 1))
        if off[-1] <= 0.15:
            return
    raise AssertionError(off)


@pytest.mark.slow
def test_two_processes_share_the_batches(digits, tmp_path):
    words = (f"ckpt={digits}", "n=32", "batch_size=16", "devices=2", "nfe=4", "plan=true")
    code = subprocess.run(
        [sys.executable, "-m", "fmdiff", "sample", *ALONE, *words],
        cwd=tmp_path,
        capture_output=True,
        text=True,
    )
    assert code.returncode == 0, code.stderr
    rows = dict(line.split(maxsplit=1) for line in io.StringIO(code.stdout))
    a_batch = float(re.search(r"\(([\d.e-]+) s a batch", rows["speed"])[1])
    assert "on 2 processes of 1 CPU thread" in rows["speed"]
    assert speed(rows) == pytest.approx(32 / a_batch, rel=0.01)
    assert not list(tmp_path.iterdir())
