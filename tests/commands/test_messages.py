"""What a new user types wrong, and what the message says of the reason and the cure."""

import os
import shutil
import signal
import subprocess
from pathlib import Path

import numpy as np
import pytest
from conftest import PLAIN

from fmdiff.training.module import Training

BRIEF = ("simulate", "system=linear", "steps=2")


@pytest.mark.parametrize(
    "name", ["2024", "nan", "\u00e4", "1e3", "on", "true", "inf", "a=b", "0x1f"]
)
def test_a_folder_may_have_any_name(command, tmp_path, name):
    assert command(*BRIEF, f"out={name}") == 0
    assert (tmp_path / name / "steps.csv").is_file()
    assert command(*BRIEF, f"name={name}") == 0
    assert len(list((tmp_path / "outputs" / name).glob("*/steps.csv"))) == 1


def test_null_is_no_name_and_quotes_stay(command, tmp_path):
    assert command(*BRIEF, "out=null", "name=n") == 0
    assert command(*BRIEF, 'out="a,b"') == 0
    assert (tmp_path / "a,b/steps.csv").is_file() and not (tmp_path / "null").exists()


@pytest.mark.parametrize(
    "words, says",
    [
        (("info", "runs/a"), "a run is named by ckpt=runs/a"),
        (("report", "runs/a"), "a run is named by runs=runs/a"),
        (("sample", "ckpt", "=", "a"), "written without spaces"),
        (("sample", "--ckpt", "a"), "a setting is written ckpt=VALUE, without dashes"),
        (("sample", "ckpt=a", "steps=[4,8]"), "for several runs add -m and write steps=4,8"),
        (("evaluate", "ckpt=a", "steps=[4,8]"), "several are grid.steps=[4,8]"),
        (("evaluate", "ckpt=a", "solver=[euler,heun]"), "several are grid.solver=[euler,heun]"),
        (("evaluate", "ckpt=a", "solver=euler,heun"), "or write grid.solver=[euler,heun]"),
        (("train", "optim.lr=0,001"), "or optim.lr=0.001 for a decimal number"),
        (("simulate", "solver=euler_maruyama"), "random systems, like system=ou"),
        (("simulate", "solver=deis"), "solver=deis needs a score"),
        (("simulate", "system=formula", "system.x0=1", f"system.u=0x{'f' * 260}"), "a formula"),
    ],
)
def test_a_message_names_a_cure_that_works(command, caplog, capsys, words, says):
    assert command(*words) == 2
    assert says in caplog.text + capsys.readouterr().err


@pytest.mark.parametrize("value", ["solver=euler,heun", "steps=4,8"])
def test_several_values_need_a_sweep_and_nothing_else(command, caplog, capsys, value):
    assert command("sample", "model=exact", "data=gmm4", value) == 2
    said = caplog.text + capsys.readouterr().err
    assert said.rstrip().endswith("asks for several runs: add -m to sweep")


def test_a_file_of_a_run_is_no_checkpoint(command, moons_run, caplog, capsys):
    assert command("info", f"ckpt={moons_run / 'config.yaml'}") == 2
    said = caplog.text + capsys.readouterr().err
    assert "is no checkpoint; checkpoints nearby:" in said and "damaged" not in said


def test_single_pictures_have_a_folder_and_their_run_can_be_evaluated(command, tmp_path):
    words = ("model=data", "data=digits", "device=cpu", "threads=1", "png=true", "out=run")
    assert command("sample", *words, "n=30") == 0
    assert command("sample", *words, "n=20", "overwrite=true") == 0
    singles = sorted(path.name for path in (tmp_path / "run/png").iterdir())
    assert singles == [f"{i:06d}.png" for i in range(20)]
    assert not list((tmp_path / "run").glob("0*.png"))
    from fmdiff.data import saved

    whole, labels = saved.read(tmp_path / "run", "samples")
    single, _ = saved.read(tmp_path / "run/png", "samples")
    np.testing.assert_array_equal(whole.numpy(), single.numpy())
    assert labels is not None and len(labels) == 20


def test_the_demo_leaves_earlier_results_alone(tmp_path):
    """With a stand-in for fmdiff that only makes the folders that it is told to write to."""
    tools = tmp_path / "bin"
    tools.mkdir()
    (tools / "fmdiff").write_text(
        '#!/bin/bash\nfor word in "$@"; do case $word in out=*) mkdir -p "${word#out=}"; '
        'echo new > "${word#out=}/file";; esac; done\n'
    )
    (tools / "fmdiff").chmod(0o755)
    script = Path(__file__).parents[2] / "scripts/demo.sh"
    env = os.environ | {"PATH": f"{tools}:{os.environ['PATH']}"}
    (tmp_path / "outputs/demo/moons").mkdir(parents=True)
    thesis = tmp_path / "outputs/demo/moons/thesis"
    thesis.write_text("old")
    for number in (2, 3):
        done = subprocess.run(
            ["bash", script], cwd=tmp_path, env=env, capture_output=True, text=True
        )
        assert done.returncode == 0 and f"these go to outputs/demo-{number}" in done.stdout
        assert (tmp_path / f"outputs/demo-{number}/digits/file").is_file()
    assert thesis.read_text() == "old" and not (thesis.parent / "file").exists()


@pytest.mark.parametrize(
    "words", [("info", "ckpt=s"), ("train", "resume=s"), ("sample", "ckpt=s")]
)
def test_a_job_of_a_sweep_is_to_be_chosen(command, caplog, capsys, tmp_path, moons_run, words):
    for job in ("10", "2"):
        shutil.copytree(moons_run, tmp_path / "s" / job)
    assert command(*words) == 2
    said = caplog.text + capsys.readouterr().err
    assert f"{words[1]} is the folder of a sweep; choose a job: s/2, s/10" in said


@pytest.mark.parametrize("folder", ["own", "."])
@pytest.mark.parametrize("error", [KeyboardInterrupt, MemoryError])
def test_how_to_go_on_names_the_folder_of_ones_own_files(
    command, capfd, tmp_path, monkeypatch, folder, error
):
    (tmp_path / folder / "model").mkdir(parents=True)
    text = "_target_: fmdiff.models.mlp.MLP\nhidden: 8\nlayers: 1\nfrequencies: 0\nscale: 1.0\n"
    (tmp_path / folder / "model" / "mine.yaml").write_text(text)
    step = Training.optimiser_step

    def stopped(self, k, *more):
        if k == 15 and error is KeyboardInterrupt:
            signal.raise_signal(signal.SIGTERM)
        elif k == 15:
            raise error
        return step(self, k, *more)

    monkeypatch.setattr(Training, "optimiser_step", stopped)
    run = ("data=moons", "model=mine", "out=run", "trainer.max_steps=20", "trainer.inner_steps=1")
    run += ("trainer.checkpoint_every=10", f"--config-dir={folder}")
    assert command("train", *PLAIN, *run) == (143 if error is KeyboardInterrupt else 1)
    monkeypatch.undo()
    hint = f"go on with fmdiff train resume=run --config-dir={folder}"
    said = capfd.readouterr().err
    assert hint in said
    monkeypatch.chdir(tmp_path)
    assert command(*hint.split()[4:]) == 0 and command("train", "resume=run") == 2
