"""A function computed in another process: its results, when it is used, and how it ends."""

import logging
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from concurrent.futures import CancelledError
from pathlib import Path

import pytest
import torch

from fmdiff.machine import aside
from fmdiff.machine.aside import Aside, Memory

MATRIX = torch.arange(12.0).view(3, 4)


def product(a, b):
    """Raises ValueError if the shapes do not fit."""
    if a.shape[1] != len(b):
        raise ValueError("shapes")
    return a @ b, torch.get_num_threads()


def own_process(a):
    return os.getpid()


def slow(seconds):
    time.sleep(seconds)
    return seconds


@pytest.fixture
def started(monkeypatch):
    """An Aside whose process is started at once. Whatever happens, it ends."""
    instances = []
    monkeypatch.setattr(aside, "START", 0.0)
    monkeypatch.setattr(aside, "SHARE", 0.0)

    def make(function):
        instances.append(Aside(function, "multiplies"))
        return instances[-1]

    yield make
    for each in instances:
        each.close()


def until(condition, seconds=200):
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def runs(pid):
    """Whether a process computes, or could: a zombie does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def process_of(instance, *arguments):
    """The process of this thread, after it has become ready."""
    instance(*arguments)
    process = instance.processes[threading.get_ident()]
    until(lambda: process.ready() or process.refuses)
    return process


def test_results_are_those_of_the_thread_and_what_the_process_raises_is_raised_here(started):
    multiply = started(product)
    process = process_of(multiply, MATRIX, MATRIX.T)
    spent, alone = multiply.spent, torch.get_num_threads()
    for n in (5, 40, 300):
        a, b = torch.randn(n, 2 * n), torch.randn(2 * n, n)
        result, threads = multiply(a, b)
        assert torch.equal(result, a @ b) and threads == alone
    result, _ = multiply(MATRIX.T, MATRIX)  # not contiguous
    assert torch.equal(result, MATRIX.T @ MATRIX)
    assert multiply.spent == spent and not multiply.alone  # nothing was computed here
    with pytest.raises(ValueError, match="shapes"):
        multiply(MATRIX, MATRIX)
    assert multiply.alone
    assert torch.equal(multiply(MATRIX, MATRIX.T)[0], MATRIX @ MATRIX.T)
    multiply.close()
    assert not runs(process.popen.pid)


def test_a_process_that_dies_is_reported_once_and_the_thread_goes_on(started, caplog):
    multiply = started(product)
    process = process_of(multiply, MATRIX, MATRIX.T)
    os.kill(process.popen.pid, signal.SIGKILL)
    with caplog.at_level(logging.WARNING, "fmdiff"):
        for _ in range(3):
            assert torch.equal(multiply(MATRIX, MATRIX.T)[0], MATRIX @ MATRIX.T)
    assert [record.getMessage() for record in caplog.records] == [
        "the process that multiplies was killed by SIGKILL; threads do so from now on"
    ]
    assert not multiply.processes


def test_a_function_of_more_than_its_arguments_is_never_left_to_a_process(started):
    number = started(own_process)
    process = process_of(number, MATRIX)
    assert process.refuses and process.popen.poll() is not None
    assert number(MATRIX) == number(MATRIX) == os.getpid()
    assert number.alone


def test_what_cannot_be_pickled_stays_in_the_thread(started):
    class Own:
        def __call__(self, a):
            return a + 1

    for function in (Own(), lambda a: a + 1):
        add = started(function)
        assert torch.equal(add(MATRIX), MATRIX + 1) and torch.equal(add(MATRIX), MATRIX + 1)
        assert add.alone and not add.processes


def test_no_process_before_it_pays(monkeypatch):
    multiply = Aside(product, "multiplies")
    multiply(MATRIX, MATRIX.T)
    assert 0 < multiply.spent < multiply.start
    multiply.spent = multiply.start + 1
    multiply.began = time.process_time() - 100 * multiply.spent  # most of the time is for others
    multiply(MATRIX, MATRIX.T)
    assert not multiply.processes and not multiply.alone


def test_close_ends_a_process_that_computes_and_its_thread(started):
    wait = started(slow)
    ends = []

    def thread():
        process_of(wait, 0.0)
        try:
            wait(1000.0)
        except CancelledError:
            ends.append("cancelled")

    waiting = threading.Thread(target=thread)
    waiting.start()
    until(lambda: wait.processes and next(iter(wait.processes.values())).expected is None)
    time.sleep(0.1)
    pid = next(iter(wait.processes.values())).popen.pid
    wait.close()
    waiting.join(20)
    assert ends == ["cancelled"] and not runs(pid)


PARENT = """
import sys, threading
sys.path[:0] = {path!r}
from fmdiff.machine import aside
from test_aside import slow, until
aside.START = aside.SHARE = 0.0
wait = aside.Aside(slow, "waits")
wait(0.0)
process = wait.processes[threading.get_ident()]
until(process.ready)
print(process.popen.pid, flush=True)
wait(1000.0)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="looks into /proc")
@pytest.mark.parametrize(
    "by", [signal.SIGKILL, pytest.param(signal.SIGINT, marks=pytest.mark.slow)]
)
def test_the_process_ends_with_its_parent(by):
    """kill -9 gives the parent no chance to end it; Ctrl-C reaches the parent alone."""
    path = [str(Path(__file__).parent), *sys.path]
    with subprocess.Popen(
        [sys.executable, "-c", PARENT.format(path=path)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    ) as parent:
        pid = int(parent.stdout.readline())
        assert runs(pid)
        os.killpg(parent.pid, by)
        parent.wait(20)
        until(lambda: not runs(pid), 20)


def test_memory_grows_and_holds_tensors_of_any_size():
    with tempfile.TemporaryFile(buffering=0) as file:
        here, there = Memory(file), Memory(file)
        for things in (
            (MATRIX, 3, None),
            (torch.empty(0, 2), "text"),
            ("no tensor",),
            (torch.randn(1000, 30), torch.arange(7), torch.rand(5, dtype=torch.float64)),
            (MATRIX.T, MATRIX[:, ::2]),
            (range(3), torch.ones(1)),
        ):
            for result, thing in zip(there.read(here.write(things)), things, strict=True):
                if isinstance(thing, torch.Tensor):
                    assert torch.equal(result, thing) and result.dtype == thing.dtype
                else:
                    assert result == thing
