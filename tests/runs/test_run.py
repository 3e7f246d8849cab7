import json
import logging
import os
import signal
import subprocess
import sys

import pytest
from conftest import PLAIN
from omegaconf import OmegaConf

from fmdiff.errors import FmdiffError
from fmdiff.runs import resume
from fmdiff.runs.config import differences
from fmdiff.runs.folder import load_config, new_folder, open_run, write_config

BASE = {
    "trust": [],
    "choices": {"data": "moons", "model": "mlp"},
    "data": {"_target_": "fmdiff.data.toy.Moons", "batch_size": 256},
    "optim": {"_target_": "torch.optim.Adam", "lr": 1e-3, "betas": [0.9, 0.999]},
    "trainer": {"max_steps": 100, "max_time": None, "clip": 1.0, "inner_steps": None},
    "seed": 0,
    "device": "auto",
    "threads": None,
    "name": "moons-mlp",
    "out": None,
    "resume": None,
    "init": None,
    "overwrite": False,
}
SAMPLE = {
    "choices": {"data": "gmm4", "model": "exact"},
    "ckpt": None,
    "steps": 28,
    "seed": 0,
    "device": "auto",
    "threads": None,
    "name": None,
    "out": None,
    "overwrite": False,
}


def config(base=BASE, **changes):
    cfg = OmegaConf.create(base)
    for key, value in changes.items():
        OmegaConf.update(cfg, key.replace("__", "."), value)
    OmegaConf.set_struct(cfg, True)
    return cfg


@pytest.fixture(autouse=True)
def cwd(tmp_path, monkeypatch, caplog):
    monkeypatch.chdir(tmp_path)
    caplog.set_level(logging.INFO, "fmdiff")
    return tmp_path


def finished(cfg, command="train", checkpoint=True):
    """The folder of a run that was opened and closed."""
    run = open_run(cfg, command, ["seed=0"])
    if checkpoint:
        (run.folder / "last.ckpt").write_text("weights")
    run.close()
    return run.folder


# Which folder


def test_runs_that_start_in_one_second_get_their_own_folders(cwd):
    folders = [finished(config()) for _ in range(3)]
    assert len(set(folders)) == 3
    assert {folder.parent.as_posix() for folder in folders} == {"outputs/moons-mlp"}


def test_new_folder_is_unique(cwd):
    assert len({new_folder(cwd / "parent") for _ in range(12)}) == 12


def test_contents(cwd):
    cfg = config(out="run")
    run = open_run(cfg, "train", ["seed=0", "out=run"])
    logging.getLogger("fmdiff").info("a message")
    run.close()
    logging.getLogger("fmdiff").info("another")
    assert load_config(run.folder) == cfg
    assert (run.folder / "overrides").read_text() == "seed=0\nout=run\n"
    environment = json.loads((run.folder / "environment.json").read_text())
    assert "torch" in environment["packages"] and environment["python"]
    log = (run.folder / "train.log").read_text()
    assert "a message" in log and "another" not in log
    assert not list(run.folder.glob("*.tmp*"))


def test_samples_lie_in_the_run_they_come_from(cwd):
    trained = finished(config(out="runs/a"))
    cfg = config(SAMPLE, ckpt="runs/a/last.ckpt")
    folder = finished(cfg, "sample")
    assert folder.parent == trained / "samples"
    assert cfg.ckpt == "runs/a/last.ckpt"
    assert finished(config(SAMPLE), "sample").parent.as_posix() == "outputs/exact-gmm4"


def test_a_run_in_a_folder_with_spaces_and_equals_signs(cwd):
    assert finished(config(out="a b/c=d/é")) == resume.Path("a b/c=d/é")


# What it refuses, without writing


@pytest.mark.parametrize("out", ["file", "file/below"])
@pytest.mark.fault
def test_unwritable(cwd, out):
    (cwd / "file").write_text("")
    with pytest.raises(FmdiffError, match=f"out={out} cannot be written to"):
        open_run(config(out=out), "train")
    assert [path.name for path in cwd.iterdir()] == ["file"]


def test_a_second_run_in_the_same_out(cwd):
    folder = finished(config(out="run"))
    before = {path: path.read_bytes() for path in folder.iterdir()}
    with pytest.raises(FmdiffError, match=r"holds a run already: resume=true .* overwrite=true"):
        open_run(config(out="run"), "train")
    assert {path: path.read_bytes() for path in folder.iterdir()} == before


def test_checkpoints_alone_count_as_results(cwd):
    (cwd / "run").mkdir()
    (cwd / "run" / "0000100.ckpt").write_text("weights")
    with pytest.raises(FmdiffError, match="holds a run already"):
        open_run(config(out="run"), "train")


def test_an_existing_folder_without_results_is_taken(cwd):
    (cwd / "run").mkdir()
    (cwd / "run" / "notes.txt").write_text("mine")
    finished(config(out="run"))
    assert (cwd / "run" / "notes.txt").read_text() == "mine"


def test_overwrite_replaces_the_results(cwd):
    (finished(config(out="run")) / "notes.txt").write_text("mine")
    folder = finished(config(out="run", overwrite=True, seed=1), checkpoint=False)
    assert load_config(folder).seed == 1 and not (folder / "last.ckpt").exists()
    assert (folder / "notes.txt").exists() and not (folder / ".replaced").exists()


def test_a_discarded_overwrite_brings_the_results_back(cwd):
    folder = finished(config(out="run"))
    run = open_run(config(out="run", overwrite=True, seed=1), "train")
    run.close(discard=True)
    assert (folder / "last.ckpt").read_text() == "weights" and load_config(folder).seed == 0


def test_discard_keeps_what_came_of_the_run(cwd):
    run = open_run(config(out="run"), "train")
    (run.folder / "last.ckpt").write_text("weights")
    run.close(discard=True)
    assert (run.folder / "config.yaml").exists() and (run.folder / "last.ckpt").exists()


def test_discard_removes_the_folders_made(cwd):
    open_run(config(), "train").close(discard=True)
    open_run(config(out="a/b/c"), "train").close(discard=True)
    assert not any(cwd.iterdir())


def test_samples_of_the_same_settings_may_be_made_again(cwd):
    folder = finished(config(SAMPLE, out="s"), "sample", checkpoint=False)
    (folder / "samples.npz").write_text("points")
    finished(config(SAMPLE, out="s", device="cpu", threads=2), "sample", checkpoint=False)
    with pytest.raises(FmdiffError, match=r"other settings \(steps: 28 \(saved\) vs 30 \(now\)\)"):
        open_run(config(SAMPLE, out="s", steps=30), "sample")
    finished(config(SAMPLE, out="s", steps=30, overwrite=True), "sample", checkpoint=False)


def test_a_discarded_repetition_leaves_the_samples(cwd):
    folder = finished(config(SAMPLE, out="s"), "sample", checkpoint=False)
    (folder / "grid.png").write_text("image")
    before = {path.name for path in folder.iterdir()}
    open_run(config(SAMPLE, out="s", device="cuda"), "sample").close(discard=True)
    assert {path.name for path in folder.iterdir()} | {".lock"} == before


@pytest.mark.parametrize(
    ("command", "base"), [("train", BASE), ("sample", SAMPLE), ("evaluate", SAMPLE)]
)
def test_what_failed_before_it_had_a_result_blocks_nothing(cwd, command, base, caplog):
    folder = finished(config(base, out="run"), command, checkpoint=False)
    (folder / "metrics.csv").write_text("step,loss\n")
    (folder / "tensorboard").mkdir()
    (folder / "tensorboard" / "events.out.tfevents.1").write_text("events")
    (folder / f"{command}.log").write_text("this is a bug\n")
    run = open_run(config(base, out="run", seed=1), command)
    logging.getLogger("fmdiff").info("once more")
    run.close()
    log = (folder / f"{command}.log").read_text()
    assert load_config(folder).seed == 1 and "a bug" in log and "once more" in log
    # and for the other commands, and resume=true
    other, name = (SAMPLE, "sample") if base is BASE else (BASE, "train")
    open_run(config(other, out="run"), name).close()
    open_run(config(BASE, out="run", seed=2, resume=True), "train").close()
    assert "nothing to resume in run: starting a new run" in caplog.text


@pytest.mark.parametrize(
    "result",
    ["0000100.ckpt", "samples.npz", "results.json", "samples/a/grid.png", "averages/1.pt", "a.md"],
)
def test_a_result_blocks_other_settings(cwd, result):
    folder = finished(config(SAMPLE, out="run"), "sample", checkpoint=False)
    (folder / result).parent.mkdir(parents=True, exist_ok=True)
    (folder / result).write_text("worth something")
    with pytest.raises(FmdiffError, match="other settings"):
        open_run(config(SAMPLE, out="run", seed=1), "sample")


def test_rows_of_metrics_are_a_result(cwd):
    folder = finished(config(out="run"), checkpoint=False)
    (folder / "metrics.csv").write_text("step,loss\n100,0.5\n")
    with pytest.raises(FmdiffError, match="holds a run already"):
        open_run(config(out="run"), "train")


def test_samples_do_not_overwrite_a_run(cwd):
    finished(config(out="run"))
    with pytest.raises(FmdiffError, match="results of another command"):
        open_run(config(SAMPLE, out="run", overwrite=True), "sample")


@pytest.mark.fault
def test_a_broken_config_is_named(cwd):
    (finished(config(out="run")) / "config.yaml").write_text("a: [")
    with pytest.raises(FmdiffError, match=r"run/config\.yaml cannot be read"):
        open_run(config(out="run", resume=True), "train")


# Locking


@pytest.mark.fault
def test_one_run_at_a_time(cwd):
    run = open_run(config(out="run"), "train")
    with pytest.raises(FmdiffError, match=f"in use by process {os.getpid()} on"):
        open_run(config(out="run", resume=True), "train")
    run.close()
    open_run(config(out="run", resume=True), "train").close()


HOLD = """
import sys, time
from omegaconf import OmegaConf
from fmdiff.runs.folder import open_run
run = open_run(OmegaConf.load("config.yaml"), "train")
print("held", flush=True)
time.sleep(60)
"""


@pytest.mark.fault
def test_a_killed_run_lets_go(cwd):
    OmegaConf.save(config(out="run"), cwd / "config.yaml")
    with subprocess.Popen(
        [sys.executable, "-c", HOLD], stdout=subprocess.PIPE, text=True
    ) as holder:
        assert holder.stdout.readline() == "held\n"
        with pytest.raises(FmdiffError, match=f"process {holder.pid}"):
            open_run(config(out="run", resume=True), "train")
        holder.send_signal(signal.SIGKILL)
    open_run(config(out="run", resume=True), "train").close()


# Resuming


def test_differences():
    saved, now = config(), config(seed=1, optim__betas=[0.9, 0.99], choices__data="rings")
    assert differences(saved, now) == {
        "seed": (0, 1),
        "optim.betas": ([0.9, 0.999], [0.9, 0.99]),
    }
    more = OmegaConf.merge(OmegaConf.to_container(config()), {"data": {"noise": 0.1}})
    assert differences(config(), more) == {"data.noise": ("(absent)", 0.1)}
    assert differences(more, config()) == {"data.noise": (0.1, "(absent)")}
    assert differences(config(), config()) == {}


def test_resume_in_out(cwd):
    folder = finished(config(out="run"))
    for how in (True, "last", "run"):
        run = open_run(config(out="run", resume=how, trainer__max_steps=200), "train")
        run.close()
        assert run.folder == folder and load_config(folder).trainer.max_steps == 200
    assert (folder / "last.ckpt").exists()


@pytest.mark.parametrize("how", [True, "last"])
def test_nothing_to_resume_starts_a_new_run(cwd, caplog, how):
    assert finished(config(out="run", resume=how)).name == "run"
    assert "nothing to resume in run: starting a new run" in caplog.text


def test_resume_last_finds_the_newest_run_of_the_same_settings(cwd, caplog):
    old = finished(config())
    same = finished(config(trainer__max_steps=50))
    finished(config(seed=1))
    assert old != same
    assert resume.resume_folder(config(resume="last", device="cpu")) == same
    assert resume.resume_folder(config(resume="last", optim__lr=0.1)) is None
    assert "nothing to resume in outputs/moons-mlp" in caplog.text


def test_resume_needs_a_run(cwd):
    with pytest.raises(FmdiffError, match="resume=true needs out=RUN"):
        resume.resume_folder(config(resume=True))
    with pytest.raises(FmdiffError, match="resume=nope: not a run folder"):
        resume.resume_folder(config(resume="nope"))
    finished(config(out="run"))
    with pytest.raises(FmdiffError, match="resume=run and out=other differ"):
        resume.resume_folder(config(resume="run", out="other"))
    assert resume.resume_folder(config(resume="run", out="./x/../run")) == resume.Path("run")


@pytest.mark.parametrize(
    ("key", "value"),
    [("seed", 1), ("data.batch_size", 32), ("optim.betas", [0.5, 0.9]), ("trainer.clip", None)],
)
def test_another_run_is_not_resumed(cwd, key, value):
    folder = finished(config(out="run"))
    before = (folder / "config.yaml").read_text()
    with pytest.raises(FmdiffError, match=rf"other settings: {key}: .* \(saved\) vs .* \(now\)"):
        open_run(config(resume="run", **{key.replace(".", "__"): value}), "train")
    assert (folder / "config.yaml").read_text() == before


def test_allowed_changes_are_said(cwd, caplog):
    folder = finished(config(out="run"))
    open_run(config(resume="run", optim__lr=0.1), "train").close()
    assert load_config(folder).optim.lr == 0.1
    assert "resuming run with optim.lr: 0.001 (saved) vs 0.1 (now)" in caplog.text


def test_what_null_stood_for_is_kept(cwd):
    folder = finished(config(out="run"))
    write_config(folder, config(out="run", threads=3, trainer__inner_steps=25))
    cfg = config(resume="run")
    open_run(cfg, "train").close()
    assert (cfg.threads, cfg.trainer.inner_steps) == (3, 25)
    with pytest.raises(FmdiffError, match=r"trainer.inner_steps: 25 \(saved\) vs 5 \(now\)"):
        open_run(config(resume="run", trainer__inner_steps=5), "train")


# A command that fails


BROKEN = """
from fmdiff.data.toy import Moons
from fmdiff.solvers.runge_kutta import Heun

class Data(Moons):
    def batches(self, *args, **more):
        raise ZeroDivisionError("mine")

class Solver(Heun):
    def step(self, *args, **more):
        raise ZeroDivisionError("mine")
"""


@pytest.mark.parametrize("name", ["train", "sample", "evaluate"])
def test_a_failed_try_does_not_block_the_next(command, cwd, monkeypatch, capfd, name):
    (cwd / "broken_parts.py").write_text(BROKEN)
    monkeypatch.syspath_prepend(cwd)
    words = "data=gmm4", "model=exact", "solver=heun", "n=20", "steps=2"
    part = "solver._target_"
    broken = "broken_parts.Solver"
    if name == "train":
        words, part = (*PLAIN, "data=moons", "trainer.max_steps=2"), "data._target_"
        broken = "broken_parts.Data"
    words = (*words, "device=cpu", "out=run")
    assert command(name, *words, f"{part}={broken}") == 1
    assert "ZeroDivisionError: mine" in capfd.readouterr().err
    assert command(name, *words, "seed=1") == 0
    log = (cwd / "run" / f"{name}.log").read_text()
    assert "ZeroDivisionError: mine" in log and load_config(cwd / "run").seed == 1
    assert command(name, *words, "seed=2") == 2  # now there are results
