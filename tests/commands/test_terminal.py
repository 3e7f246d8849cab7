"""A closed terminal saves the run, and whatever ends a run, no process of it stays."""

import contextlib
import fcntl
import os
import pty
import signal
import subprocess
import termios
import time
from pathlib import Path

import pytest
from test_processes import HUNG, RUN, newest, ranks, start, wait_for, workers

from fmdiff.runs import checkpoint

LONG = (*RUN, "out=run", "trainer.max_steps=1000000")
CODES = {
    "Ctrl-C": 130,
    "Ctrl-C twice": 130,
    "SIGTERM": 143,
    "SIGHUP": 129,
    "SIGUSR1": 138,
    "SIGKILL": -signal.SIGKILL,
    "SIGKILL of rank 1": 1,
}


def alive(cwd):
    """The ids of all processes that work in cwd, guards of signals too."""
    found = []
    for path in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            if os.readlink(path / "cwd") == str(cwd):
                found.append(int(path.name))
    return found


def all_end(cwd, seconds=20):
    end = time.monotonic() + seconds
    while alive(cwd) and time.monotonic() < end:
        time.sleep(0.1)
    return not alive(cwd)


def foreground(cwd, *words):
    """A command in the foreground of a terminal of its own, and the terminal's other side."""
    master, terminal = pty.openpty()

    def control():
        fcntl.ioctl(0, termios.TIOCSCTTY, 0)

    streams = {"stdin": terminal, "stdout": terminal, "stderr": terminal}
    process = start(cwd, *words, **streams, start_new_session=True, preexec_fn=control)
    os.close(terminal)
    return process, master


@pytest.mark.slow
@pytest.mark.fault
@pytest.mark.parametrize("devices", [1, 2])
def test_a_terminal_that_is_closed_saves_the_run(tmp_path, devices):
    process, master = foreground(tmp_path, *LONG, f"trainer.devices={devices}")
    os.set_blocking(master, False)
    end = time.monotonic() + HUNG
    while not (tmp_path / "run" / checkpoint.name(20)).exists():
        assert process.poll() is None and time.monotonic() < end
        with contextlib.suppress(BlockingIOError):
            os.read(master, 4096)
        time.sleep(0.02)
    os.close(master)
    assert process.wait(HUNG) == 129
    assert all_end(tmp_path)
    step = newest(tmp_path / "run")["step"]
    log = (tmp_path / "run" / "train.log").read_text()
    assert f"stopped by SIGHUP after step {step}, saved; go on with fmdiff train resume=run" in log
    assert "Traceback" not in log
    words = ("train", "resume=run", f"trainer.max_steps={step + 10}", f"trainer.devices={devices}")
    assert ranks(1, tmp_path, *words) == [0]
    assert newest(tmp_path / "run")["step"] == step + 10


@pytest.mark.slow
@pytest.mark.fault
@pytest.mark.parametrize("how", CODES)
def test_no_process_of_a_run_stays(tmp_path, how):
    process = start(tmp_path, *LONG, "trainer.devices=2", stderr=subprocess.DEVNULL)
    wait_for(process, tmp_path / "run" / checkpoint.name(20))
    assert len(alive(tmp_path)) >= 4  # two ranks, each with its guard
    if how == "SIGKILL of rank 1":
        os.kill(workers(tmp_path)[0], signal.SIGKILL)
    elif how.startswith("Ctrl-C"):
        for number in range(1 + how.endswith("twice")):
            time.sleep(0.3 * number)
            process.send_signal(signal.SIGINT)
    else:
        process.send_signal(signal.Signals[how])
    code = process.wait(HUNG)
    # a Ctrl-C that comes when the run is saved and Python is ending is 130 too, to a shell
    assert CODES[how] == (130 if code == -signal.SIGINT else code)
    assert all_end(tmp_path)


@pytest.mark.slow
@pytest.mark.fault
def test_no_process_of_a_whole_run_stays(tmp_path):
    assert start(tmp_path, *RUN, "out=run", "trainer.devices=2").wait(HUNG) == 0
    assert all_end(tmp_path)
