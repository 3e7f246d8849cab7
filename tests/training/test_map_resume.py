"""Going on with the training of a flow map, bit for bit, after it was killed."""

import os
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
