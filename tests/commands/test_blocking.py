"""A command always ends by a signal: in five seconds, whatever blocks, and all its processes."""

import collections
import ctypes
import itertools
import os
import signal
import socket
import subprocess
import threading
import time
from pathlib import Path

import pytest
from test_processes import (
    FORK,
    HUNG,
    RUN,
    as_rank,
    gone,
    newest,
    ranks,
    said,
    start,
    wait_for,
    workers,
)

from fmdiff.machine import guard, signals
from fmdiff.runs import checkpoint
from fmdiff.sampling import Sampler
from fmdiff.training.batches import Batches
from fmdiff.training.module import Training

PATIENCE = 5.0  # seconds to the end, as promised
SLOW = 3.0  # seconds that a busy machine may add
STEP = 13  # of RUN, which saves every 10 steps


def around(owner, name, block, due=lambda *_: True):
    """Let block() run where a call of owner.name is due."""
    call = getattr(owner, name)

    def blocked(*arguments, **more):
        if due(*arguments):
            Path("blocked").touch()
            block()
        return call(*arguments, **more)

    setattr(owner, name, blocked)


def for_ever():
    while True:
        ctypes.CDLL(None).usleep(900_000)


def with_the_lock():
    collections.deque(itertools.repeat(0), maxlen=0)


def deadlock():
    lock = threading.Lock()
    lock.acquire()
    lock.acquire()


def at_step(_, k, *__):
    return k == STEP


def native():
    around(Training, "optimiser_step", with_the_lock, at_step)


def native_without_lock():
    around(Training, "optimiser_step", for_ever, at_step)


def lock():
    around(Training, "optimiser_step", deadlock, at_step)


def collective():
    if os.environ["RANK"] == "1":
        around(Training, "optimiser_step", for_ever, at_step)


def save():
    around(checkpoint, "write", for_ever, lambda path, _: "0000020" in str(path))


def data_thread():
    around(Batches, "match", deadlock, lambda _, block: block == 1)  # from step 25 on


def sampling():
    around(Sampler, "carry", with_the_lock)


class Processes:
    """Ranks of a command that block, and what becomes of them."""

    def __init__(self, cwd, words, place, count=1):
        from torch.distributed import TCPStore

        self.cwd = cwd
        variables = [{}]
        if count > 1:
            self.store = TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
            shared = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(self.store.port)}
            shared |= {"TORCHELASTIC_USE_AGENT_STORE": "True"}
            shared |= {"WORLD_SIZE": str(count), "LOCAL_WORLD_SIZE": str(count)}
            variables = [{**shared, "RANK": str(i), "LOCAL_RANK": str(i)} for i in range(count)]
        fault = (place, 0, (), "")
        self.all = [FORK.Process(target=as_rank, args=(cwd, words, v, fault)) for v in variables]
        for process in self.all:
            process.start()

    def wait(self, name="blocked", seconds=200):
        end = time.monotonic() + seconds
        while not (self.cwd / name).exists():
            assert time.monotonic() < end and all(p.exitcode is None for p in self.all)
            time.sleep(0.05)
        time.sleep(1)

    def signal(self, *numbers, to=(0,)):
        """Send them 1.5 s apart: the seconds from the last one to the end of these ranks."""
        for i, number in enumerate(numbers):
            time.sleep(1.5 * (i > 0))
            for rank in to:
                os.kill(self.all[rank].pid, number)
        begin = time.monotonic()
        for rank in to:
            self.all[rank].join(60)
        return time.monotonic() - begin

    def end(self):
        for process in self.all:
            process.kill()
            process.join()


@pytest.fixture
def processes(tmp_path):
    started = []

    def start(*words):
        started.append(Processes(tmp_path, *words))
        return started[-1]

    yield start
    for each in started:
        each.end()


ENDS = {
    "SIGTERM": ((signal.SIGTERM,), 143),
    "SIGHUP": ((signal.SIGHUP,), 129),
    "twice": ((signal.SIGINT, signal.SIGINT), 130),
    "then SIGTERM": ((signal.SIGINT, signal.SIGTERM), 143),
}
SAMPLE = ("sample", "model=exact", "data=gmm4", "n=64", "device=cpu", "threads=1", "out=run")


@pytest.mark.slow
@pytest.mark.fault
@pytest.mark.parametrize("how", ["SIGTERM", "twice"])
@pytest.mark.parametrize("place", [native_without_lock, lock, save, data_thread, native])
def test_a_training_in_which_something_blocks_ends(processes, tmp_path, place, how):
    threads = place is data_thread
    blocked = processes((*RUN, "out=run", f"coupling={'ot' if threads else 'independent'}"), place)
    blocked.wait("run/0000020.ckpt" if threads else "blocked")
    numbers, code = ENDS[how]
    assert blocked.signal(*numbers) < PATIENCE + SLOW, said(tmp_path)
    # while a native call keeps Python's lock, nothing but SIGKILL ends it
    assert blocked.all[0].exitcode == (-signal.SIGKILL if place is native else code)
    assert newest(tmp_path / "run")["step"] == (20 if threads else 10)


@pytest.mark.slow
@pytest.mark.fault
@pytest.mark.parametrize("how", ENDS)
def test_rank_0_ends_though_another_rank_hangs(processes, tmp_path, how):
    blocked = processes((*RUN, "out=run"), collective, 2)
    blocked.wait()
    numbers, code = ENDS[how]
    assert blocked.signal(*numbers) < PATIENCE + SLOW, said(tmp_path)
    assert blocked.all[0].exitcode == code and newest(tmp_path / "run")["step"] == 10


@pytest.mark.fault
def test_a_blocked_sample_ends_by_sigterm(processes, tmp_path):
    blocked = processes(SAMPLE, sampling)
    blocked.wait()
    assert blocked.signal(signal.SIGTERM) < PATIENCE + SLOW
    assert blocked.all[0].exitcode == -signal.SIGKILL
    assert "ended at once by SIGTERM, as something blocks" in said(tmp_path)


FAULTY = """
import os

import torch
from fmdiff.models.network import Network


class Faulty(Network):
    axes = 1

    def __init__(self, *, shape, classes, how):
        super().__init__()
        self.layer, self.how, self.calls = torch.nn.Linear(2, 2), how, 0

    def forward(self, x_t, t, y=None):
        self.calls += self.training
        if os.environ.get("RANK") == "1" and self.calls == 25:
            if self.how == "error":
                raise ValueError("of rank 1")
            torch.empty(10**15)
        return self.layer(x_t)
"""


@pytest.fixture
def faulty(tmp_path):
    """--config-dir of a network that fails in rank 1: model=faulty model.how=error or memory."""
    (tmp_path / "own" / "model").mkdir(parents=True)
    (tmp_path / "own" / "faulty.py").write_text(FAULTY)
    text = "_target_: faulty.Faulty\nhow: none\n"
    (tmp_path / "own" / "model" / "faulty.yaml").write_text(text)
    return "--config-dir=own", "model=faulty", "trainer.max_steps=1000000"


@pytest.mark.slow
@pytest.mark.fault
@pytest.mark.parametrize("how", ["error", "memory"])
def test_a_rank_that_fails_ends_all(tmp_path, faulty, how):
    words = [word for word in RUN[1:] if not word.startswith("model.")]
    two = ("train", *words, "trainer.devices=2", "out=run", *faulty, f"model.how={how}")
    process = start(tmp_path, *two, stderr=subprocess.PIPE)
    said = process.communicate(timeout=HUNG)[1]
    assert process.returncode == 1 and gone(tmp_path)
    assert "rank 1 ended with 1; run/rank1.log says more; resume=run goes on" in said
    log = (tmp_path / "run" / "rank1.log").read_text()
    assert ("of rank 1" if how == "error" else "out of memory") in log
    assert newest(tmp_path / "run")["step"] >= 10


@pytest.mark.slow
@pytest.mark.fault
@pytest.mark.parametrize("to", ["rank 0", "all"])
def test_a_stopped_rank_ends_with_the_others(tmp_path, to):
    words = (*RUN, "trainer.devices=2", "out=run", "trainer.max_steps=1000000")
    process = start(tmp_path, *words, stderr=subprocess.PIPE, start_new_session=True)
    wait_for(process, tmp_path / "run" / checkpoint.name(20))
    (worker,) = workers(tmp_path)
    os.kill(worker, signal.SIGSTOP)
    time.sleep(1)
    begin = time.monotonic()
    if to == "all":
        os.killpg(process.pid, signal.SIGTERM)
    else:
        process.send_signal(signal.SIGTERM)
    said = process.communicate(timeout=HUNG)[1]
    assert time.monotonic() - begin < PATIENCE + SLOW and process.returncode == 143
    assert "ended at once by SIGTERM" in said and "Traceback" not in said and gone(tmp_path)


@pytest.mark.slow
@pytest.mark.fault
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP], ids=lambda n: n.name)
def test_a_signal_to_the_whole_group_saves(tmp_path, number):
    words = (*RUN, "trainer.devices=2", "out=run", "trainer.max_steps=1000000")
    process = start(tmp_path, *words, stderr=subprocess.PIPE, start_new_session=True)
    wait_for(process, tmp_path / "run" / checkpoint.name(20))
    os.killpg(process.pid, number)
    said = process.communicate(timeout=HUNG)[1]
    assert process.returncode == 128 + number and "Traceback" not in said and gone(tmp_path)
    assert f"stopped by {number.name} after step {newest(tmp_path / 'run')['step']}," in said


@pytest.mark.fault
def test_a_port_in_use_is_named(tmp_path):
    with socket.socket() as bound:
        bound.bind(("", 0))
        bound.listen()
        shared = {"WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2", "RANK": "0", "LOCAL_RANK": "0"}
        shared |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(bound.getsockname()[1])}
        assert ranks(1, tmp_path, *RUN, "out=run", variables=[shared]) == [2]
    sentence = f"MASTER_PORT={shared['MASTER_PORT']} is in use on this machine; choose another"
    assert sentence in said(tmp_path) and "Traceback" not in said(tmp_path)
    assert not (tmp_path / "run").exists()


def test_a_guard_counts_signals(monkeypatch):
    soon = guard.Guard()
    soon.receive(signal.SIGINT, 10.0)
    soon.receive(signal.SIGINT, 10.1)
    assert (soon.deadline, soon.last) == (10.1 + guard.AGAIN, signal.SIGINT)
    monkeypatch.setattr(guard, "TWICE", 1.0)  # as torchrun sets it
    now = guard.Guard()
    now.receive(signal.SIGINT, 10.0)
    now.receive(signal.SIGINT, 10.5)  # torchrun's repetition
    assert now.deadline == float("inf")
    now.receive(signal.SIGINT, 12.0)
    assert (now.deadline, now.last) == (12.0 + guard.AGAIN, signal.SIGINT)
    now.receive(signal.SIGTERM, 12.1)  # does not delay the end
    assert (now.deadline, now.last) == (12.0 + guard.AGAIN, signal.SIGINT)
    now.receive(guard.CALM, 12.2)
    now.receive(guard.LONGER + 30, 12.3)
    now.receive(signal.SIGHUP, 13.0)
    assert (now.deadline, now.last) == (43.0, signal.SIGHUP)
    now.receive(guard.CALM, 13.1)
    now.receive(signal.SIGUSR1, 14.0)  # saves, however long that takes
    assert now.deadline == float("inf")


def test_nohup_is_respected():
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with signals.handling(signals.end):
            assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
            assert signal.getsignal(signal.SIGTERM) is signals.end
        assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGHUP, before)
