"""Signals, several processes and machines, and going on exactly where a run was left."""

import functools
import multiprocessing
import os
import random
import signal
import sys
import time

import pytest
import torch
from conftest import PLAIN, POINTS, metrics

from fmdiff import checkpoint, cli

# processes that have imported all there is to import
FORK = multiprocessing.get_context("forkserver")
FORK.set_forkserver_preload(["fmdiff.fit", "fmdiff.evaluate", "fmdiff.report", "tensorboard"])
HUNG = 200  # seconds
CODES = {signal.SIGTERM: 143, signal.SIGINT: 130, signal.SIGUSR1: 138}
RUN = (
    *("train", *PLAIN, *POINTS, "trainer.max_steps=40", "trainer.inner_steps=1"),
    *(f"trainer.{name}_every=10" for name in ("log", "validate", "checkpoint")),
    *("trainer.picture_every=20", "trainer.keep=null"),
)


def planted(place, at, action):
    """Let action() happen, once, where a run comes to `place` (at step `at`)."""
    from fmdiff import callbacks, fit, sampling
    from fmdiff.training import Training

    def around(owner, name, due):
        call, done = getattr(owner, name), []

        @functools.wraps(call)
        def wrapped(*given, **more):
            if due(*given) and not done:
                done.append(True)
                action()
            return call(*given, **more)

        setattr(owner, name, wrapped)

    {
        "start": lambda: around(fit, "judged", lambda *_: True),
        "step": lambda: around(Training, "optimiser_step", lambda _, k, *__: k == at),
        "validation": lambda: around(callbacks.Log, "validate", lambda _, m: m.step == at),
        "picture": lambda: around(callbacks, "generate", lambda *_: True),
        "sampling": lambda: around(sampling, "_one_batch", lambda *given: given[3] >= at),
    }[place]()


def send(numbers, pause=1.5):
    for number in numbers:
        os.kill(os.getpid(), number)
        time.sleep(pause * (len(numbers) > 1))


def as_rank(cwd, words, variables, fault):
    """In a process of its own: the command line, as rank RANK of a world, and its fault."""
    number = variables.get("RANK", "0")
    said = os.open(cwd / f"said{number}", os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(said, 1)
    os.dup2(said, 2)
    os.chdir(cwd)
    os.environ |= variables
    torch.set_num_threads(1)
    place, at, numbers, ranks = fault
    if place and number in ranks:
        planted(place, at, functools.partial(send, numbers))
    sys.exit(cli.main(list(map(str, words))))


def ranks(count, cwd, *words, fault=(None, 0, (), "")):
    """The exit codes of `count` processes, as torchrun starts them; what they said is in said*."""
    variables = [{}]
    if count > 1:
        store = torch.distributed.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
        shared = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(store.port)}
        shared |= {"TORCHELASTIC_USE_AGENT_STORE": "True"}
        shared |= {"WORLD_SIZE": str(count), "LOCAL_WORLD_SIZE": str(count)}
        variables = [{**shared, "RANK": str(i), "LOCAL_RANK": str(i)} for i in range(count)]
    started = [FORK.Process(target=as_rank, args=(cwd, words, v, fault)) for v in variables]
    for process in started:
        process.start()
    end = time.monotonic() + HUNG
    for process in started:
        process.join(max(0, end - time.monotonic()))
    hung = [process.exitcode is None for process in started]
    for process in started:
        process.kill()
        process.join()
    assert not any(hung), "hung: " + said(cwd)
    return [process.exitcode for process in started]


def said(cwd):
    return "".join(path.read_text() for path in sorted(cwd.glob("said*")))


def newest(folder):
    return checkpoint.read(checkpoint.find(folder))


def same(run, whole):
    """Weights, averages, optimiser, rows and pictures, bit for bit."""
    assert newest(run)["checksums"] == newest(whole)["checksums"]
    assert metrics(run) == metrics(whole)
    pictures = sorted(path.name for path in (whole / "samples").glob("*.png"))
    assert pictures == ["step_0000020.png", "step_0000040.png"]
    for name in pictures:
        assert (run / "samples" / name).read_bytes() == (whole / "samples" / name).read_bytes()


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """The run that nothing interrupts, of so many processes."""

    @functools.cache
    def made(count):
        cwd = tmp_path_factory.mktemp(f"whole{count}")
        assert ranks(count, cwd, *RUN, "out=run") == [0] * count, said(cwd)
        return cwd / "run"

    return made


# Signals

TARGETS = [(1, "0"), (2, "0"), (2, "1"), (2, "01")]


@pytest.mark.slow
@pytest.mark.fault
@pytest.mark.parametrize("number", CODES, ids=lambda n: n.name)
@pytest.mark.parametrize(("count", "to"), TARGETS, ids=lambda v: str(v))
def test_a_signal_at_any_step_saves_and_the_rest_is_bit_identical(
    whole, tmp_path, count, to, number
):
    at = random.Random(f"{count}{to}{number}").randrange(39)
    codes = ranks(count, tmp_path, *RUN, "out=run", fault=("step", at, (number,), to))
    assert codes == [CODES[number], 0][:count], said(tmp_path)
    assert newest(tmp_path / "run")["step"] == at + 1
    assert said(tmp_path).count("Traceback") == 0
    assert said(tmp_path).count(f"stopped by {number.name} after step {at + 1}, saved") == 1
    assert ranks(count, tmp_path, *RUN, "out=run", "resume=true") == [0] * count
    same(tmp_path / "run", whole(count))


@pytest.mark.slow
@pytest.mark.fault
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT], ids=lambda n: n.name)
@pytest.mark.parametrize("place", ["validation", "picture"])
def test_a_signal_between_steps_is_waited_with_until_it_is_done(whole, tmp_path, place, number):
    codes = ranks(2, tmp_path, *RUN, "out=run", fault=(place, 20, (number,), "0"))
    assert codes == [CODES[number], 0] and newest(tmp_path / "run")["step"] == 20
    assert ranks(2, tmp_path, *RUN, "out=run", "resume=true") == [0, 0]
    same(tmp_path / "run", whole(2))


@pytest.mark.slow
@pytest.mark.fault
@pytest.mark.parametrize("number", CODES, ids=lambda n: n.name)
def test_a_signal_before_the_first_step_leaves_nothing(whole, tmp_path, number):
    words = (*RUN, "out=run", "resume=true")
    assert ranks(1, tmp_path, *words, fault=("start", 0, (number,), "0")) == [CODES[number]]
    assert not (tmp_path / "run").exists()
    assert said(tmp_path).endswith(f"fmdiff train: interrupted by {number.name}\n")
    assert ranks(1, tmp_path, *words) == [0]
    same(tmp_path / "run", whole(1))


@pytest.mark.slow
@pytest.mark.fault
def test_the_second_ctrl_c_quits_at_once(tmp_path):
    twice = ("step", 13, (signal.SIGINT, signal.SIGINT), "0")
    assert ranks(1, tmp_path, *RUN, "out=run", fault=twice) == [130]
    assert newest(tmp_path / "run")["step"] == 10


@pytest.mark.slow
@pytest.mark.fault
@pytest.mark.parametrize("number", CODES, ids=lambda n: n.name)
@pytest.mark.parametrize("command", ["sample", "evaluate"])
def test_a_signal_while_sampling_leaves_no_results(tmp_path, command, number):
    words = (command, "model=exact", "data=gmm4", "n=600", "batch_size=64", "steps=4", "out=s")
    words += ("device=cpu", "threads=1")
    assert ranks(1, tmp_path, *words, fault=("sampling", 256, (number,), "0")) == [CODES[number]]
    assert not (tmp_path / "s").exists() and "Traceback" not in said(tmp_path)
    assert ranks(1, tmp_path, *words) == [0]
    assert (tmp_path / "s" / "report.html").is_file()
