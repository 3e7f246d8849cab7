"""Long runs under kills, full disks and company: what is kept is whole, the rest is the same."""

import contextlib
import ctypes
import errno
import gc
import multiprocessing
import os
import random
import signal
import subprocess
import time
from pathlib import Path

import pytest
import torch
import torch.utils.tensorboard
from conftest import PLAIN, POINTS, metrics
from test_checkpoint import survive_kills
from test_training import interrupt

import fmdiff
from fmdiff import cli
from fmdiff.commands import job
from fmdiff.runs import checkpoint
from fmdiff.runs.find import find
from fmdiff.runs.rows import Rows
from fmdiff.training.module import Training

# children are forked from a process that has everything imported and has computed nothing
SERVER = multiprocessing.get_context("forkserver")
SERVER.set_forkserver_preload(["fmdiff.commands.train", "torch.utils.tensorboard"])
EVERY = ("trainer.log_every=50", "trainer.validate_every=1000", "trainer.picture_every=100000")


def forked(*words):
    """A command in a child that has everything imported."""
    child = SERVER.Process(target=run, args=(os.getcwd(), dict(os.environ), words))
    child.start()
    return child


def run(folder, variables, words):
    """Run a command in silence, in this folder and environment, and end the process."""
    os.chdir(folder)
    os.environ.update(variables)
    with open(os.devnull, "w") as null:
        os.dup2(null.fileno(), 1), os.dup2(null.fileno(), 2)
        os._exit(cli.main([*map(str, words)]))


def wait(child, seconds=600):
    child.join(seconds)
    if child.is_alive():
        child.kill()
        pytest.fail(f"hung for {seconds} s")
    return child.exitcode


# Kills


@pytest.mark.slow
@pytest.mark.fault(count=500)
def test_five_hundred_kills(tmp_path):
    """SIGKILL of a writer of checkpoints, at any instant: the newest is whole"""
    survive_kills(tmp_path, 500)


def newest(run):
    return max((int(path.stem) for path in run.glob("0*.ckpt")), default=0)


def survive(train, tmp_path, kills, seed):
    """Kill a training so many times; in the end it is the one that was never killed."""
    rng, run = random.Random(seed), tmp_path / "run"
    steps = ("trainer.checkpoint_every=25", f"trainer.max_steps={max(1000, 60 * kills)}")
    words = (*POINTS, *EVERY, *steps)
    whole = train(tmp_path / "whole", *words)
    for _ in range(kills):
        before, end = newest(run), time.monotonic() + 600
        child = forked("train", *PLAIN, *words, "resume=last", f"out={run}")
        if rng.random() < 0.3:  # before it gets anywhere
            time.sleep(rng.uniform(0, 1))
        else:
            while newest(run) == before and child.is_alive():
                assert time.monotonic() < end, "hung"
                time.sleep(0.002)
            time.sleep(rng.choice([0, rng.uniform(0, 0.05)]))
        assert child.is_alive(), f"over after step {newest(run)}: exit {child.exitcode}"
        child.kill()
        child.join()
        assert child.exitcode == -signal.SIGKILL and newest(run) >= before
    assert wait(forked("train", *PLAIN, *words, "resume=last", f"out={run}")) == 0
    ended = checkpoint.read(find(run))
    assert ended["step"] == whole["step"] and ended["checksums"] == whole["checksums"]
    assert metrics(run) == metrics(tmp_path / "whole")
    assert not [path for path in run.iterdir() if ".tmp-" in path.name]


@pytest.mark.fault(count=2)
def test_two_kills_of_a_training(train, tmp_path):
    """SIGKILL of the command: the same command ends bit-identically"""
    survive(train, tmp_path, 2, seed=0)


@pytest.mark.slow
@pytest.mark.fault(count=20)
def test_twenty_kills_of_a_training(train, tmp_path):
    """SIGKILL of the command, again and again: it ends bit-identically"""
    survive(train, tmp_path, 20, seed=1)


@pytest.mark.soak
@pytest.mark.fault(count=500)
def test_five_hundred_kills_of_a_training(train, tmp_path):
    """SIGKILL of the command, 500 times: it ends bit-identically"""
    survive(train, tmp_path, 500, seed=2)


# In company


@pytest.mark.slow
@pytest.mark.fault(count=2)
def test_two_sweeps_in_one_folder_of_outputs(command, tmp_path):
    """Two sweeps started at once: each job has a folder of its own, complete"""
    import fmdiff.commands.train  # noqa: F401  # before the children are forked

    words = ("train", "-m", *PLAIN, *POINTS, "trainer.max_steps=20", "seed=1,2")
    children = [forked(*words) for _ in range(2)]
    assert [wait(child) for child in children] == [0, 0]
    runs = sorted(tmp_path.glob("outputs/*/*/[01]"))
    assert len(runs) == 4 and len({run.parent for run in runs}) == 2
    found = [checkpoint.read(run / "last.ckpt") for run in runs]
    assert {content["step"] for content in found} == {20}
    seeds = [content["training"]["config"]["seed"] for content in found]
    assert seeds == [1, 2, 1, 2]
    assert found[0]["checksums"] == found[2]["checksums"] != found[1]["checksums"]
    assert len(list(tmp_path.glob("outputs/*/*/jobs.jsonl"))) == 2


# Full disks


@pytest.fixture
def small_disk(tmp_path):
    """A file system of 2 MB of its own."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", str(folder)]
    try:
        subprocess.run(mount, check=True, capture_output=True)
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("mounting needs root")
    yield folder
    subprocess.run(["umount", "-l", str(folder)], check=True)


def fill(folder):
    with (folder / "filler").open("wb", 0) as file:
        with contextlib.suppress(OSError):
            while True:
                file.write(bytes(4096))
        with pytest.raises(OSError) as caught:
            file.write(b"0")
        assert caught.value.errno == errno.ENOSPC


@pytest.mark.fault
def test_rows_on_a_full_disk(small_disk):
    """metrics.csv on a full disk holds whole rows, and all of them once there is room"""
    path = small_disk / "metrics.csv"
    rows = Rows(path, ("step", "loss"), [])
    fill(small_disk)
    for step in range(1, 1000):
        rows.add({"step": step, "loss": "0.123456789"})
    lines = path.read_text().splitlines()
    assert len(lines) < 1000 and all(line.count(",") == 1 for line in lines)
    (small_disk / "filler").unlink()
    rows.add({"step": 1000, "loss": 1})
    lines = path.read_text().splitlines()
    assert [line.partition(",")[0] for line in lines[1:]] == [str(k) for k in range(1, 1001)]


FULL = (*POINTS, "trainer.log_every=10", "trainer.picture_every=10", "trainer.validate_every=10")
FULL += ("trainer.checkpoint_every=10", "trainer.max_steps=40", "trainer.inner_steps=1")


@pytest.mark.fault
@pytest.mark.parametrize("logger", ["csv", pytest.param("tensorboard", marks=pytest.mark.slow)])
def test_a_disk_that_is_full_for_a_while(train, tmp_path, small_disk, monkeypatch, capfd, logger):
    """A full disk: the checkpoint before it is kept, the run goes on, and nothing is lost"""
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    whole = train(tmp_path / "whole", *FULL)
    interrupt(monkeypatch, 15, lambda: fill(small_disk))
    interrupt(monkeypatch, 25, lambda: checkpoint.read(small_disk / "run" / "last.ckpt")["step"])
    interrupt(monkeypatch, 26, lambda: (small_disk / "filler").unlink())
    ended = train(small_disk / "run", *FULL, f"trainer.logger={logger}")
    said = capfd.readouterr().err
    assert "step 20 was not saved, the last one is kept" in said and "No space left" in said
    assert ended["step"] == 40 and ended["checksums"] == whole["checksums"]
    assert not [p for p in (small_disk / "run").iterdir() if ".tmp-" in p.name]


@pytest.mark.fault
def test_tensorboard_that_can_write_no_more(train, tmp_path, monkeypatch):
    """TensorBoard without space: checkpoints are written all the same"""

    def fail(*_, **__):
        raise OSError(28, "No space left on device")

    for name in ("flush", "add_scalar", "add_scalars", "add_image"):
        monkeypatch.setattr(torch.utils.tensorboard.SummaryWriter, name, fail)
    ended = train(tmp_path / "run", *FULL, "trainer.logger=tensorboard")
    assert ended["step"] == 40


@pytest.mark.fault
def test_a_disk_that_stays_full(train, tmp_path, small_disk, monkeypatch, capfd):
    """A disk full at the end: exit 1, and the checkpoint before it is whole"""
    with monkeypatch.context() as patch:
        interrupt(patch, 15, lambda: fill(small_disk))
        kept = train(small_disk / "run", *FULL, code=1)
    assert kept["step"] == 10 and "No space left" in capfd.readouterr().err
    (small_disk / "filler").unlink()
    whole = train(tmp_path / "whole", *FULL)
    assert train(small_disk / "run", *FULL, "resume=true")["checksums"] == whole["checksums"]


# Memory


def resident():
    """Megabytes of this process, without what it has freed."""
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 1e6


def growth(sizes, warm):
    """Growth after the first `warm` of measurements, by their medians: one peak is no leak."""
    after = sizes[int(len(sizes) * warm) :]
    third = len(after) // 3
    first, last = (sorted(part)[third // 2] for part in (after[:third], after[-third:]))
    return last - first


@pytest.fixture
def fast_collections():
    """What the other tests left is not gone through by every collection."""
    gc.collect()
    gc.freeze()
    yield
    gc.unfreeze()


flat = pytest.mark.usefixtures("fast_collections")


def training_growth(train, monkeypatch, run, steps, leak=0):
    sizes, kept, step = [], [], Training.optimiser_step

    def measured(self, k, parts):
        step(self, k, parts)
        kept.append(b"x" * leak)  # zeros would take no memory
        if k % (steps // 20) == 0:  # each takes as long as many steps
            sizes.append(resident())

    with monkeypatch.context() as patch:
        patch.setattr(Training, "optimiser_step", measured)
        words = ("trainer.checkpoint_every=5000", "trainer.log_every=100")
        train(run, "data=moons", "model.hidden=8", "data.batch_size=16", *words,
              "trainer.validate_every=5000", "trainer.picture_every=100000",
              f"trainer.max_steps={steps}")  # fmt: skip
    return growth(sizes, warm=0.2)


def sampling_growth(run, n, leak=0):
    sizes, kept = [], []
    field = fmdiff.load(run)

    def receive(x, y):
        kept.append(torch.ones(leak // 4) if leak else None)
        sizes.append(resident())

    fmdiff.generate(field, n=n, steps=1, solver="euler", batch_size=n // 16, receive=receive)
    return growth(sizes, warm=0.25)


@flat
@pytest.mark.slow
def test_a_leak_is_seen(train, tmp_path, monkeypatch, digits_run):
    assert training_growth(train, monkeypatch, tmp_path / "a", 1000, leak=100_000) > 20
    assert sampling_growth(digits_run, 200, leak=6_000_000) > 20


@pytest.mark.slow
@flat
def test_memory_is_flat_for_a_while(train, tmp_path, monkeypatch, digits_run):
    assert training_growth(train, monkeypatch, tmp_path / "a", 1000) < 10
    assert sampling_growth(digits_run, 200) < 10


@flat
@pytest.mark.slow
@pytest.mark.fault
def test_memory_is_flat_over_fifty_thousand_steps(train, tmp_path, monkeypatch):
    """50,000 steps take no more memory than 10,000"""
    assert training_growth(train, monkeypatch, tmp_path / "a", 50_000) < 10


def sweep_growth(command, monkeypatch, jobs):
    """Megabytes by which a sweep grows after its first jobs, and how many files stay open."""
    sizes, files, one = [], [], job.job

    def measured(name, cfg):
        one(name, cfg)
        sizes.append(resident())
        files.append(len(list(Path("/proc/self/fd").iterdir())))

    monkeypatch.setattr(job, "job", measured)
    words = (*PLAIN, *POINTS, "trainer.max_steps=5", "trainer.picture_every=1000")
    assert command("train", "-m", *words, f"seed=range({jobs})", "out=sweep") == 0
    assert len(sizes) == jobs
    return growth(sizes, warm=0.2), max(files) - files[0]


@flat
@pytest.mark.slow
def test_memory_is_flat_over_six_jobs(command, monkeypatch):
    size, files = sweep_growth(command, monkeypatch, 6)
    assert size < 10 and files <= 0


@flat
@pytest.mark.slow
@pytest.mark.fault(count=50)
def test_memory_is_flat_over_fifty_jobs(command, monkeypatch):
    """A sweep of 50 jobs takes no more memory than 10, and closes its files"""
    size, files = sweep_growth(command, monkeypatch, 50)
    assert size < 10 and files <= 0


@flat
@pytest.mark.slow
@pytest.mark.fault
def test_memory_is_flat_over_twenty_thousand_images(digits_run):
    """20,000 images take no more memory than 5,000"""
    assert sampling_growth(digits_run, 20_000) < 10
