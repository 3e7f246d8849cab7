"""Going on with the training of a flow map, bit for bit, after it was killed."""

import os
import shutil
import signal
import subprocess
import sys

import pytest
from conftest import PLAIN, POINTS, metrics

from fmdiff.runs import checkpoint
from fmdiff.runs.find import find

EVERY = tuple(f"trainer.{name}_every=10" for name in ("log", "validate", "checkpoint"))
RUN = (
    *POINTS,
    *EVERY,
    "trainer.max_steps=40",
    "trainer.inner_steps=1",
    "trainer.picture_every=40",
)
# the command line in a process that the system kills before step 17
KILLED = """
import os, signal, sys
from fmdiff import cli
from fmdiff.training.module import Training
step = Training.optimiser_step
def killed(self, k, parts):
    if k == 17:
        os.kill(os.getpid(), signal.SIGKILL)
    step(self, k, parts)
Training.optimiser_step = killed
sys.exit(cli.main(sys.argv[1:]))
"""
KINDS = {
    "teacher": ("objective=distill", "objective.teacher=TEACHER"),
    "gap": ("objective=consistency",),
    "warmup": ("objective=scm",),
    "levels": ("objective=shortcut",),
    "forward": ("objective=meanflow", "objective.derivative=forward"),
}


def killed(cwd, *words):
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-c", KILLED, "train", *PLAIN, *map(str, words)]
    return subprocess.run(command, cwd=cwd, env=environment, check=False).returncode


@pytest.mark.fault
@pytest.mark.parametrize(
    "kind",
    [k if k in ("teacher", "gap") else pytest.param(k, marks=pytest.mark.slow) for k in KINDS],
)
def test_a_map_that_was_killed_ends_bit_identically(train, moons_run, tmp_path, kind):
    words = (*RUN, *(word.replace("TEACHER", str(moons_run)) for word in KINDS[kind]))
    assert killed(tmp_path, *words, "out=run") == -signal.SIGKILL
    assert checkpoint.read(find(tmp_path / "run"))["step"] == 10
    resumed = train(tmp_path / "run", *words, "resume=true")
    whole = train(tmp_path / "whole", *words)
    assert resumed["step"] == 40 and resumed["checksums"] == whole["checksums"]
    assert metrics(tmp_path / "run") == metrics(tmp_path / "whole")


def test_a_run_keeps_the_teacher_that_it_began_with(train, command, moons_run, tmp_path, capfd):
    """A newer checkpoint in the teacher's folder is not taken, and other weights are refused."""
    run, teacher = tmp_path / "run", tmp_path / "teacher"
    shutil.copytree(moons_run, teacher)
    first = find(teacher)
    words = (*POINTS, "objective=distill", "trainer.decay=constant", "trainer.inner_steps=1")
    begun = train(run, *words, f"objective.teacher={teacher}", "trainer.max_steps=2")
    assert begun["training"]["teacher"]["file"] == str(first)
    train(teacher, *POINTS, "trainer.ema=[0.9999,0.9]", "trainer.max_steps=61", "resume=true")
    assert find(teacher) != first
    more = ("trainer.max_steps=3", "resume=true")
    assert train(run, *words, f"objective.teacher={teacher}", *more)["step"] == 3
    shutil.move(first, tmp_path / "copy.ckpt")
    more = ("trainer.max_steps=4", "resume=true")
    capfd.readouterr()
    again = ("train", *PLAIN, *words, *more, f"out={run}", f"objective.teacher={teacher}")
    assert command(*again) == 2
    said = capfd.readouterr().err
    assert "has other weights than the teacher that this run began with" in said
    assert str(first) in said and "Traceback" not in said
    assert train(run, *words, f"objective.teacher={tmp_path}/copy.ckpt", *more)["step"] == 4
    shutil.rmtree(teacher)
    (tmp_path / "copy.ckpt").unlink()
    assert command("sample", f"ckpt={run}", "n=8", "device=cpu", "out=drawn") == 0


def test_another_length_of_the_run_is_told_to_change_its_progress(train, tmp_path, capfd):
    words = (*POINTS, "objective=consistency", "trainer.inner_steps=1")
    train(tmp_path / "run", *words, "trainer.max_steps=2")
    train(tmp_path / "run", *words, "trainer.max_steps=4", "resume=true")
    said = capfd.readouterr().err
    assert "the progress p of objective.gap and warmup goes on from 0.5 instead of 1" in said
