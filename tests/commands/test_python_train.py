"""fmdiff.train: the command from Python, which leaves the process as it found it."""

import logging
import os
import signal
import subprocess
import sys
import threading
import warnings

import pytest
import torch
from conftest import PLAIN, POINTS
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from omegaconf import OmegaConf

import fmdiff
from fmdiff.errors import Diverged, FmdiffError

WORDS = (*PLAIN, *POINTS, "trainer.max_steps=3", "trainer.warmup=0")


@pytest.fixture
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


def state():
    """What a process has one of and training changes."""
    loggers = [logging.getLogger(name) for name in ("", "fmdiff", "lightning.pytorch")]
    return {
        "logging": [(logger.level, logger.handlers[:]) for logger in loggers],
        "hydra": (GlobalHydra.instance().is_initialized(), HydraConfig.instance().cfg),
        "resolvers": OmegaConf.has_resolver("choices"),
        "process": (sys.argv[:], os.getcwd(), sys.path[:], dict(os.environ)),
        "signals": [signal.getsignal(n) for n in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)],
        "warnings": warnings.filters[:],
        "threads": (torch.get_num_threads(), threading.excepthook),
        "random": torch.get_rng_state().tolist(),
    }


def test_it_returns_the_run(here, capfd):
    run = fmdiff.train(*WORDS, "out=run")
    assert run.folder == here / "run" and run.checkpoint.name == "0000003.ckpt"
    assert fmdiff.generate(run.field("raw"), n=4, steps=2).x.shape == (4, 2)
    assert (here / "run" / "config.yaml").exists()
    assert "3 steps done" in (here / "run" / "train.log").read_text()
    assert capfd.readouterr().out == ""


def test_it_is_the_command(here, command):
    run = fmdiff.train(*WORDS, "out=a")
    assert command("train", *WORDS, "out=b") == 0
    raw = [dict(fmdiff.load(f, "raw").net.state_dict()) for f in (run.folder, here / "b")]
    assert all(torch.equal(value, raw[1][name]) for name, value in raw[0].items())


def test_nothing_is_left_behind_and_it_works_again(here):
    fmdiff.train(*WORDS)  # imports what it needs
    before = state()
    first, second = fmdiff.train(*WORDS), fmdiff.train(*WORDS)
    assert first.folder != second.folder
    for words in (["seed=x"], ["model._target_=nope.Net"]):
        with pytest.raises(FmdiffError):
            fmdiff.train(*WORDS, *words)
    after = state()
    for key, value in before.items():
        assert after[key] == value, key


def test_it_runs_inside_a_program_of_hydra(here):
    HydraConfig.instance().cfg = OmegaConf.create({"theirs": 1})
    try:
        fmdiff.train(*WORDS)
        assert HydraConfig.instance().cfg == {"theirs": 1}
    finally:
        HydraConfig.instance().cfg = None


def test_it_runs_in_another_thread(here):
    runs = []
    thread = threading.Thread(target=lambda: runs.append(fmdiff.train(*WORDS)))
    thread.start()
    thread.join()
    assert runs[0].checkpoint.exists()


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (("seed=1,2",), "seed=1,2 asks for several runs"),
        (("-m", "seed=1,2"), "not -m"),
        (("--cfg", "job"), "not --cfg job"),
        (("--help",), "not --help"),
        (("hydra.mode=MULTIRUN",), "not hydra.mode=MULTIRUN"),
        (("plan=true",), "plan=true trains nothing"),
        (("optim.lr=0",), "optim.lr=0: must be a number > 0"),
        (("modl=mlp",), "unknown key 'modl'"),
        (("moons",), "'moons' is not of the form key=value"),
        (("--nope",), "--nope"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, tuple) else "",
)
def test_a_refusal_is_raised_and_leaves_nothing(here, words, sentence):
    with pytest.raises(FmdiffError) as caught:
        fmdiff.train(*words)
    assert sentence in str(caught.value)
    assert not any(here.iterdir())


def test_a_diverged_run_says_so(here):
    with pytest.raises(Diverged):
        fmdiff.train(*WORDS, "optim.lr=1e30", "trainer.clip=null", "out=run")
    assert "is not finite" in (here / "run" / "train.log").read_text()


OWN = """
from torch import nn

class Net(nn.Module):
    def __init__(self, shape, classes):
        super().__init__()
        self.layer = nn.Linear(*shape, *shape)

    def forward(self, x_t, t, y=None):
        {}
        return self.layer(x_t)
"""


def test_an_own_network_of_the_working_folder(here):
    (here / "own_net.py").write_text(OWN.format(""))
    (here / "conf" / "model").mkdir(parents=True)
    (here / "conf" / "model" / "own.yaml").write_text("_target_: own_net.Net\n")
    run = fmdiff.train(*PLAIN, "--config-dir=conf", "model=own", "data=moons",
                       "trainer.max_steps=1", "trainer.warmup=0")  # fmt: skip
    assert run.field().net is not None and "own_net" in sys.modules
    assert str(here) not in sys.path


@pytest.mark.slow
def test_it_works_in_a_notebook(here):
    """A loop of asyncio runs, and the streams are not files."""
    code = (
        "import asyncio, io, sys\n"
        "async def cell():\n"
        "    import fmdiff\n"
        "    sys.stdout, sys.stderr = io.StringIO(), io.StringIO()\n"
        f"    for k in range(2): run = fmdiff.train(*{WORDS!r}, f'seed={{k}}')\n"
        "    return run.checkpoint\n"
        "sys.__stdout__.write(str(asyncio.run(cell())))\n"
    )
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert ran.returncode == 0 and ran.stdout.endswith("0000003.ckpt"), ran.stderr
