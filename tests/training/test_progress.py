"""No command is silent for long: lines on the screen without a terminal, and always in its log."""

import io
import re
import sys
import time

import pytest
from conftest import PLAIN, POINTS

from fmdiff.commands.table import COMMANDS
from fmdiff.machine import progress
from fmdiff.sampling import Sampler
from fmdiff.training.log import Log
from fmdiff.training.module import Training

SHOWN = [word for word in PLAIN if word != "trainer.progress=false"]


@pytest.fixture
def often(monkeypatch):
    monkeypatch.setattr(progress, "EVERY", 0.1)


def slow(monkeypatch, owner, name, due=lambda *_: True, seconds=0.5):
    call = getattr(owner, name)

    def slower(*arguments, **more):
        if due(*arguments):
            time.sleep(seconds)
        return call(*arguments, **more)

    monkeypatch.setattr(owner, name, slower)


def at(step):
    return lambda _, k, *__: k == step


RUN = (*POINTS, "trainer.max_steps=20", "trainer.inner_steps=1", "trainer.log_every=20")
RUN += ("trainer.validate_every=20", "out=run")
LINE = r"step 7/20: loss \d[\d.]*, [1-9]\d* samples/s, \d+ s left"


def test_a_slow_training_says_how_far_it_is(command, capfd, tmp_path, monkeypatch, often):
    slow(monkeypatch, Training, "optimiser_step", lambda _, k, *__: k in (0, 7))
    assert command("train", *SHOWN, *RUN) == 0
    said, log = capfd.readouterr().err, (tmp_path / "run" / "train.log").read_text()
    for text in (said, log):
        assert re.search(LINE, text)
        assert re.search(r"step 0/20: the first step takes \d+ s so far", text)
        assert re.search(
            r"step 20/20: loss [\d.]+, val_loss [\d.]+, \d+ samples/s, 0 s left", text
        )


@pytest.mark.parametrize("words", [SHOWN, PLAIN], ids=["a bar", "no bar"])
def test_beside_a_bar_the_lines_are_in_the_log(command, tmp_path, monkeypatch, often, words):
    class Terminal(io.StringIO):
        def isatty(self):
            return True

    slow(monkeypatch, Training, "optimiser_step", at(7))
    screen = Terminal()
    monkeypatch.setattr(sys, "stderr", screen)
    assert command("train", *words, *RUN) == 0
    assert re.search(LINE, (tmp_path / "run" / "train.log").read_text())
    assert not re.search("step 7/20: loss", screen.getvalue())
    assert ("20/20" in screen.getvalue()) == (words is SHOWN)


def test_a_slow_validation_is_not_silent(command, capfd, monkeypatch, often):
    slow(monkeypatch, Log, "validate")
    assert command("train", *SHOWN, *RUN) == 0
    assert len(re.findall("step 20/20: ", capfd.readouterr().err)) >= 3


EXACT = ("model=exact", "data=gmm4", "n=64", "device=cpu", "threads=1")
WORDS = {
    "sample": EXACT,
    "evaluate": EXACT,
    "likelihood": EXACT,
    "invert": EXACT,
    "simulate": ("system=linear",),
    "train": ("data=moons",),
}


@pytest.mark.parametrize("name", WORDS)
def test_every_command_says_that_it_is_at_work(command, capfd, monkeypatch, often, name):
    monkeypatch.setitem(COMMANDS, name, lambda cfg, folder: time.sleep(0.5))
    assert command(name, *WORDS[name], "out=run") == 0
    assert f"{name}: at work for 0 s" in capfd.readouterr().err


def test_a_batch_that_takes_long_is_not_silent(command, capfd, tmp_path, monkeypatch, often):
    slow(monkeypatch, Sampler, "carry", lambda *arguments: arguments[3].start == 32)
    assert command("sample", *EXACT, "batch_size=32", "out=run") == 0
    said, log = capfd.readouterr().err, (tmp_path / "run" / "sample.log").read_text()
    assert re.search(r"32/64 samples, \d+ s left", said) and "32/64 samples, " in log
