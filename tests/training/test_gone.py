"""A run folder that is deleted or moved while a command works in it: a sentence, and exit 1."""

import os
import shutil
import signal

import pytest
from conftest import PLAIN, POINTS

from fmdiff.runs import checkpoint
from fmdiff.sampling import Sampler
from fmdiff.training.module import Training

RUN = ("train", *PLAIN, *POINTS, "trainer.max_steps=200", "trainer.inner_steps=1", "out=run")
RUN += tuple(f"trainer.{name}_every=10" for name in ("log", "validate", "checkpoint", "picture"))


def delete():
    shutil.rmtree("run")


def move():
    os.rename("run", "moved")


def replace():
    move()
    os.mkdir("run")


def at(monkeypatch, owner, name, action, due=lambda *_: True):
    """Let action() happen once, before a call of owner.name that is due."""
    call, calls = getattr(owner, name), []

    def wrapped(*arguments, **more):
        if due(*arguments) and not calls:
            calls.append(True)
            action()
        return call(*arguments, **more)

    monkeypatch.setattr(owner, name, wrapped)


@pytest.mark.fault
@pytest.mark.parametrize("action", [delete, move, replace])
@pytest.mark.parametrize("logger", ["csv", "tensorboard"])
def test_a_training_ends_at_the_first_failed_save(
    command, capfd, tmp_path, monkeypatch, action, logger
):
    at(monkeypatch, Training, "optimiser_step", action, lambda _, k, *__: k == 25)
    steps = []
    at(monkeypatch, Training, "optimiser_step", lambda: steps.append(1), lambda _, k, *__: k > 30)
    assert command(*RUN, f"trainer.logger={logger}") == 1
    said = capfd.readouterr().err
    assert "fmdiff train: run is gone: it was deleted or moved while the command ran" in said
    assert "Traceback" not in said and not steps
    assert not list((tmp_path / "run").glob("*.ckpt"))
    if action is not delete:
        assert checkpoint.read(tmp_path / "moved" / "last.ckpt")["step"] == 20


@pytest.mark.fault
def test_a_signal_after_the_folder_is_gone(command, capfd, monkeypatch):
    def both():
        delete()
        os.kill(os.getpid(), signal.SIGTERM)

    at(monkeypatch, Training, "optimiser_step", both, lambda _, k, *__: k == 25)
    assert command(*RUN) == 1
    said = capfd.readouterr().err
    assert "run is gone" in said and "Traceback" not in said and "saved; go on" not in said


@pytest.mark.fault
@pytest.mark.parametrize("interrupted", [False, True])
def test_other_commands_say_it_too(command, capfd, monkeypatch, interrupted):
    def action():
        delete()
        if interrupted:
            os.kill(os.getpid(), signal.SIGTERM)

    at(monkeypatch, Sampler, "carry", action)
    words = ("model=exact", "data=gmm4", "n=16", "steps=2", "device=cpu", "out=run")
    assert command("sample", *words) == (143 if interrupted else 1)
    said = capfd.readouterr().err
    assert ("run is gone" in said) != interrupted and "Traceback" not in said
