"""Signals, several processes and machines, and going on exactly where a run was left."""

import contextlib
import csv
import functools
import json
import math
import multiprocessing
import os
import random
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from conftest import CLOCKED, PLAIN, POINTS, metrics, vector

from fmdiff import cli
from fmdiff.errors import FmdiffError
from fmdiff.machine import processes
from fmdiff.runs import checkpoint
from fmdiff.runs.find import find
from fmdiff.training.batches import Batches
from fmdiff.training.module import Training

# processes that have imported all there is to import
FORK = multiprocessing.get_context("forkserver")
FORK.set_forkserver_preload(
    ["fmdiff.commands.train", "fmdiff.commands.evaluate", "fmdiff.report", "tensorboard"]
)
HUNG = 500  # seconds; of a machine that does much else
CODES = {signal.SIGTERM: 143, signal.SIGINT: 130, signal.SIGUSR1: 138, signal.SIGHUP: 129}
RUN = (
    "train",
    *PLAIN,
    *POINTS,
    "trainer.max_steps=40",
    "trainer.inner_steps=1",
    *(f"trainer.{name}_every=10" for name in ("log", "validate", "checkpoint")),
    "trainer.picture_every=20",
    "trainer.keep=null",
)


def planted(place, at, action):
    """Let action() happen, once, where a run comes to `place` (at step `at`)."""
    from fmdiff import sampling
    from fmdiff.commands import train
    from fmdiff.training import log, pictures

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
        "start": lambda: around(train, "judge_of", lambda *_: True),
        "step": lambda: around(Training, "optimiser_step", lambda _, k, *__: k == at),
        "validation": lambda: around(log.Log, "validate", lambda _, m: m.step == at),
        "picture": lambda: around(pictures, "generate", lambda *_: True),
        "sampling": lambda: around(sampling.Sampler, "carry", lambda *given: given[3].start >= at),
    }[place]()


def refuse():
    raise FmdiffError("3 of 64 samples are not finite")


def send(numbers, pause=1.5):
    for number in numbers:
        os.kill(os.getpid(), number)
        time.sleep(pause * (len(numbers) > 1))


def as_rank(cwd, words, variables, fault):
    """In a process of its own: the command line, as rank RANK of a world, and its fault."""
    number = variables.get("RANK", variables.get("SLURM_PROCID", "0"))
    said = os.open(cwd / f"said{number}", os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(said, 1)
    os.dup2(said, 2)
    os.chdir(cwd)
    os.environ |= variables
    torch.set_num_threads(1)
    place, at, numbers, ranks = fault
    if callable(place):
        place()
    elif place and number in ranks:
        planted(place, at, functools.partial(send, numbers) if numbers else refuse)
    sys.exit(cli.main(list(map(str, words))))


def ranks(count, cwd, *words, fault=(None, 0, (), ""), variables=None):
    """The exit codes of `count` processes, as torchrun starts them; what they said is in said*."""
    variables = variables or [{}]
    if count > len(variables):
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


def start(cwd, *words, module="fmdiff", **streams):
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", module, *map(str, words)]
    return subprocess.Popen(command, cwd=cwd, env=environment, text=True, **streams)


def wait_for(process, *paths):
    end = time.monotonic() + HUNG
    while not any(path.exists() for path in paths):
        assert process.poll() is None and time.monotonic() < end
        time.sleep(0.02)


def workers(cwd):
    """The ids of the processes that a run in cwd has started."""
    found = []
    for path in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            words = (path / "cmdline").read_bytes().split(b"\0")
            if b"--worker" in words and os.readlink(path / "cwd") == str(cwd):
                found.append(int(path.name))
    return found


def gone(cwd):
    """Whether they all come to their end."""
    end = time.monotonic() + HUNG
    while workers(cwd) and time.monotonic() < end:
        time.sleep(0.2)
    return not workers(cwd)


def said(cwd):
    return "".join(path.read_text() for path in sorted(cwd.glob("said*")))


def newest(folder):
    return checkpoint.read(find(folder))


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


# Going on


@pytest.mark.slow
@pytest.mark.fault
def test_killed_in_mid_run_the_same_command_ends_bit_identically(train, tmp_path):
    intervals = ("trainer.checkpoint_every=100", "trainer.log_every=40", "trainer.keep=null")
    words = (*POINTS, *intervals, "trainer.max_steps=1000", "trainer.validate_every=500")
    run = tmp_path / "run"
    process = start(tmp_path, "train", *PLAIN, *words, "resume=last", f"out={run}")
    wait_for(process, run / checkpoint.name(100), run / checkpoint.name(200))
    process.kill()
    assert process.wait() == -signal.SIGKILL
    assert 100 <= checkpoint.read(find(run))["step"] < 1000
    resumed = train(run, *words, "resume=last")
    whole = train(tmp_path / "whole", *words)
    assert resumed["step"] == 1000 and resumed["checksums"] == whole["checksums"]
    assert metrics(run) == metrics(tmp_path / "whole")


def events(folder):
    """What TensorBoard shows of a run: (step, value) by tag."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    found = EventAccumulator(str(folder / "tensorboard")).Reload()
    return {
        tag: [(event.step, event.value) for event in found.Scalars(tag)]
        for tag in found.Tags()["scalars"]
        if tag not in CLOCKED
    }


@pytest.mark.slow
@pytest.mark.fault
def test_rows_after_the_last_checkpoint_are_written_once(tmp_path):
    words = (*RUN, "trainer.logger=tensorboard", "trainer.log_every=3", "trainer.metrics_every=9")
    assert ranks(1, tmp_path, *words, "out=whole") == [0]
    killed = ("step", 28, (signal.SIGKILL,), "0")
    assert ranks(1, tmp_path, *words, "out=run", fault=killed) == [-signal.SIGKILL]
    assert newest(tmp_path / "run")["step"] == 20
    assert ranks(1, tmp_path, *words, "out=run", "resume=true") == [0]
    same(tmp_path / "run", tmp_path / "whole")
    shown = events(tmp_path / "run")
    assert shown == events(tmp_path / "whole")
    assert [step for step, _ in shown["loss"]] == [*range(3, 40, 3), 40]


@pytest.mark.slow
@pytest.mark.fault
@pytest.mark.parametrize("every", [10, 5, 4])
def test_rows_of_a_run_made_longer_are_those_of_the_longer_run(tmp_path, every):
    words = (*RUN, "trainer.decay=constant", "trainer.logger=tensorboard")
    words += (
        f"trainer.log_every={every}",
        "trainer.validate_every=20",
        "trainer.picture_every=20",
    )
    assert ranks(1, tmp_path, *words, "out=whole") == [0]
    assert ranks(1, tmp_path, *words, "out=run", "trainer.max_steps=15") == [0]
    assert metrics(tmp_path / "run")[-1]["step"] == "15"
    (tmp_path / "run" / "samples" / "step_0000015.png").unlink()
    assert ranks(1, tmp_path, *words, "out=run", "resume=true") == [0]
    same(tmp_path / "run", tmp_path / "whole")
    shown, wanted = events(tmp_path / "run"), events(tmp_path / "whole")
    assert shown["loss"] == wanted["loss"]


# One run on other numbers of devices


@pytest.mark.slow
@pytest.mark.fault
@pytest.mark.parametrize(("before", "after"), [(1, 2), (2, 1)])
def test_a_run_goes_on_with_another_number_of_devices(whole, tmp_path, before, after):
    fault = ("step", 21, (signal.SIGUSR1,), "0")
    assert ranks(before, tmp_path, *RUN, "out=run", fault=fault)[0] == 138
    assert ranks(after, tmp_path, *RUN, "out=run", "resume=true") == [0] * after
    found, wanted = newest(tmp_path / "run"), newest(whole(before))
    for name, weights in wanted["weights"].items():
        a, b = vector(weights), vector(found["weights"][name])
        assert ((a - b).norm() / a.norm()).item() < 1e-5
    for ours, theirs in zip(metrics(tmp_path / "run"), metrics(whole(before)), strict=True):
        for name, value in ours.items():
            assert not value or float(theirs[name]) == pytest.approx(float(value), rel=1e-4)


def kept_draws():
    draw = Batches.draw

    def kept(self, steps, rows):
        found = draw(self, steps, rows)
        size, n = len(found[0]) // len(steps), processes.world()
        for i, k in enumerate(steps):
            of_step = [f if f is None else f[i * size : (i + 1) * size].clone() for f in found]
            torch.save(of_step, f"{n}-{k}-{processes.rank()}.pt")
        return found

    Batches.draw = kept


@pytest.mark.slow
def test_the_global_batch_is_that_of_one_device(tmp_path):
    words = ("train", *PLAIN, *POINTS, "data=8gaussians", "data.conditional=true", "coupling=ot")
    words += ("trainer.max_steps=3", "trainer.label_dropout=0.5")
    for count in (1, 2):
        fault = (kept_draws, 0, (), "")
        assert ranks(count, tmp_path, *words, f"out=run{count}", fault=fault) == [0] * count
    for k in range(3):
        alone = torch.load(tmp_path / f"1-{k}-0.pt")
        parts = [torch.load(tmp_path / f"2-{k}-{rank}.pt") for rank in range(2)]
        for one, *two in zip(alone, *parts, strict=True):
            assert one is two[0] is None or torch.equal(one, torch.cat(two))


# Faults that ranks share


def spoiled():
    draw = Batches.draw

    def spoil(self, steps, rows):
        x, *rest = draw(self, steps, rows)
        if processes.rank() == 1:
            for k, part in zip(steps, x.split(len(x) // len(steps)), strict=True):
                if k in (3, 5):
                    part.fill_(math.nan)
        return x, *rest

    Batches.draw = spoil


@pytest.mark.slow
@pytest.mark.fault
def test_ranks_skip_or_diverge_together(tmp_path):
    words = (*RUN, "trainer.max_steps=10")
    fault = (spoiled, 0, (), "")
    assert ranks(2, tmp_path, *words, "out=a", "trainer.skip_nonfinite=2", fault=fault) == [0, 0]
    assert said(tmp_path).count("is not finite, skipped") == 2
    assert vector(newest(tmp_path / "a")["weights"]["raw"]).isfinite().all()
    assert ranks(2, tmp_path, *words, "out=b", "trainer.skip_nonfinite=1", fault=fault) == [3, 0]
    assert said(tmp_path).count("step 5 (seed 0)") == 1 and "Traceback" not in said(tmp_path)


# Started by fmdiff itself


def two(cwd, *words, **streams):
    words = (*RUN, "trainer.devices=2", "out=run", *words)
    return start(cwd, *words, stderr=subprocess.PIPE, **streams)


@pytest.mark.slow
@pytest.mark.fault
def test_a_killed_rank_ends_the_run_and_is_named(tmp_path):
    process = two(tmp_path, "trainer.max_steps=1000000")
    wait_for(process, tmp_path / "run" / checkpoint.name(20))
    (worker,) = workers(tmp_path)
    os.kill(worker, signal.SIGKILL)
    err = process.communicate(timeout=HUNG)[1]
    assert process.returncode == 1 and "Traceback" not in err
    assert "rank 1 was killed by SIGKILL; run/rank1.log says more; resume=run goes on" in err
    assert (tmp_path / "run" / "rank1.log").is_file() and newest(tmp_path / "run")["step"] >= 20


@pytest.mark.slow
@pytest.mark.fault
def test_a_killed_rank_0_takes_the_others_along(tmp_path):
    process = two(tmp_path, "trainer.max_steps=1000000")
    wait_for(process, tmp_path / "run" / checkpoint.name(20))
    process.kill()
    process.communicate(timeout=HUNG)
    assert gone(tmp_path) and newest(tmp_path / "run")["step"] >= 20


@pytest.mark.slow
@pytest.mark.fault
def test_ctrl_c_in_a_terminal_reaches_all_processes_and_saves(tmp_path):
    process = two(tmp_path, "trainer.max_steps=1000000", start_new_session=True)
    wait_for(process, tmp_path / "run" / checkpoint.name(20))
    os.killpg(process.pid, signal.SIGINT)
    err = process.communicate(timeout=HUNG)[1]
    assert process.returncode == 130 and "stopped by SIGINT after step" in err
    assert "Traceback" not in err and gone(tmp_path)
    assert not (tmp_path / "run" / "rank1.log").exists()


@pytest.mark.slow
@pytest.mark.fault
def test_a_signal_to_a_rank_that_is_only_starting_ends_the_run(tmp_path):
    process = two(tmp_path)
    wait_for(process, tmp_path / "run" / "rank1.log")
    os.kill(workers(tmp_path)[0], signal.SIGTERM)
    err = process.communicate(timeout=HUNG)[1]
    assert process.returncode == 143 and "Traceback" not in err and gone(tmp_path)


@pytest.mark.slow
@pytest.mark.fault
def test_a_sweep_of_two_processes_each_goes_on_after_a_failure(train, tmp_path):
    words = (*PLAIN, *POINTS, "trainer.max_steps=200", "trainer.checkpoint_every=100")
    one = train(tmp_path / "one", *words)
    sweep = ("optim.lr=1e-3,1e30,3e-4", "trainer.devices=2", "out=sweep")
    process = start(tmp_path, "train", "-m", *words, *sweep, stdout=subprocess.PIPE)
    table = process.communicate(timeout=HUNG)[0].splitlines()[-3:]
    assert process.returncode == 3
    assert [row.split()[:2] for row in table] == [["0", "ok"], ["1", "diverged"], ["2", "ok"]]
    two, other = (newest(tmp_path / "sweep" / job) for job in "02")
    for name, weights in one["weights"].items():
        a, b, c = map(vector, (weights, two["weights"][name], other["weights"][name]))
        assert ((a - b).norm() / a.norm()).item() < 1e-3 < ((a - c).norm() / a.norm()).item()
    for ours, theirs in zip(
        metrics(tmp_path / "one"), metrics(tmp_path / "sweep" / "0"), strict=True
    ):
        for name, value in ours.items():
            assert not value or float(theirs[name]) == pytest.approx(float(value), rel=1e-3)


# Started from outside


def free_port():
    with socket.socket() as bound:
        bound.bind(("127.0.0.1", 0))
        return bound.getsockname()[1]


@pytest.mark.slow
@pytest.mark.parametrize("nodes", [1, 2])
def test_torchrun_on_one_machine_and_on_two(whole, tmp_path, nodes):
    port = free_port()
    agents = [
        start(
            tmp_path,
            f"--nnodes={nodes}",
            f"--nproc_per_node={2 // nodes}",
            f"--node_rank={node}",
            "--master_addr=127.0.0.1",
            f"--master_port={port}",
            "-m",
            "fmdiff",
            *RUN,
            "name=here",
            module="torch.distributed.run",
            stderr=subprocess.PIPE,
        )
        for node in range(nodes)
    ]
    err = "".join(agent.communicate(timeout=HUNG)[1] for agent in agents)
    assert [agent.returncode for agent in agents] == [0] * nodes, err
    (run,) = (tmp_path / "outputs" / "here").iterdir()
    same(run, whole(2))
    assert err.count("40 steps done") == 1 == (run / "train.log").read_text().count("40 steps")
    assert len(list(run.glob("*.log"))) == 1


@pytest.mark.slow
def test_srun(whole, tmp_path):
    tasks = {"SLURM_STEP_NUM_TASKS": "2", "SLURM_STEP_NUM_NODES": "1", "SLURM_JOB_ID": "7"}
    tasks |= {"SLURM_STEP_NODELIST": "localhost", "MASTER_PORT": str(free_port())}
    numbers = [{"SLURM_PROCID": str(i), "SLURM_LOCALID": str(i)} for i in range(2)]
    assert ranks(2, tmp_path, *RUN, "out=run", variables=[tasks | n for n in numbers]) == [0, 0]
    same(tmp_path / "run", whole(2))


@pytest.mark.parametrize(
    ("nodes", "first"),
    [("gpu[07-09,12]", "gpu07"), ("a-b3,c", "a-b3"), ("n1", "n1"), ("n[4,6]", "n4")],
)
def test_the_first_machine_of_srun_is_met_at(monkeypatch, nodes, first):
    for name in processes.VARIABLES:
        monkeypatch.delenv(name, raising=False)
    said = {"PROCID": 5, "LOCALID": 1, "STEP_NUM_TASKS": 8, "STEP_NUM_NODES": 2, "JOB_ID": 123456}
    for name, value in (said | {"STEP_NODELIST": nodes}).items():
        monkeypatch.setenv(f"SLURM_{name}", str(value))
    monkeypatch.setattr(os, "environ", os.environ.copy())
    processes.adopt_srun()
    names = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
    assert [os.environ[name] for name in names] == ["5", "1", "8", "4", first, "23456"]


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (("train", "trainer.devices=3"), "trainer.devices=3: 2 processes were started"),
        (("simulate",), "this runs in one process, and 2 were started"),
    ],
)
def test_other_numbers_than_were_started_are_refused(command, monkeypatch, capfd, words, says):
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("RANK", "1")
    assert command(*words) == 2 and says in capfd.readouterr().err


# Sampling

EXACT = ("model=exact", "data=gmm4", "device=cpu", "threads=1", "steps=4")


def figures(folder):
    """What evaluate and sample have found."""
    return json.loads((folder / "results.json").read_text())["metrics"]


@pytest.mark.slow
@pytest.mark.parametrize("solver", ["heun", "euler_maruyama", "dopri5"])
def test_samples_of_two_processes_are_those_of_one(tmp_path, solver):
    words = (
        "sample",
        *EXACT,
        "n=1000",
        "batch_size=64",
        f"solver={solver}",
        "metrics=[sw2,modes]",
    )
    words = [w for w in words if solver != "dopri5" or w != "steps=4"]
    for count in (1, 2):
        assert ranks(count, tmp_path, *words, f"out=run{count}") == [0] * count, said(tmp_path)
    one, two = tmp_path / "run1", tmp_path / "run2"
    for name in ("samples.npz", "scatter.png"):
        assert (one / name).read_bytes() == (two / name).read_bytes()
    assert figures(one) == figures(two)
    counts = [json.loads((run / "sample.json").read_text())["nfe_counted"] for run in (one, two)]
    assert counts[0] == pytest.approx(counts[1], rel=1e-12)
    assert said(tmp_path).count("evaluations per sample counted") == 1


@pytest.mark.slow
def test_images_of_two_processes_started_here_are_those_of_one(digits_run, tmp_path):
    words = ("sample", f"ckpt={digits_run}", "n=20", "batch_size=6", "steps=2", "png=true")
    words += ("device=cpu", "threads=1")
    for count in (1, 2):
        process = start(tmp_path, *words, f"devices={count}", f"out=run{count}")
        assert process.wait(HUNG) == 0
    one, two = tmp_path / "run1", tmp_path / "run2"
    names = sorted(path.name for path in one.iterdir())
    assert names == sorted(path.name for path in two.iterdir()) and "000019.png" in names
    for name in names:
        if name.endswith((".png", ".npz")):
            assert (one / name).read_bytes() == (two / name).read_bytes()


@pytest.mark.slow
def test_two_processes_evaluate_what_one_does(tmp_path):
    words = ("evaluate", *EXACT[:-1], "n=1000", "batch_size=64", "grid.steps=[2,4]", "repeats=2")
    for count in (1, 2):
        assert ranks(count, tmp_path, *words, f"out=run{count}") == [0] * count, said(tmp_path)
    one, two = tmp_path / "run1", tmp_path / "run2"
    assert figures(one) == figures(two)
    tables = []
    for run in (one, two):
        with (run / "table.csv").open(newline="") as file:
            tables.append([{**row, "seconds": ""} for row in csv.DictReader(file)])
    assert tables[0] == tables[1] and len(tables[0]) == 2


@pytest.mark.slow
@pytest.mark.fault
@pytest.mark.parametrize("command", ["sample", "evaluate"])
def test_samples_that_one_rank_refuses_are_refused_by_all(tmp_path, command):
    words = (command, *EXACT, "n=1000", "batch_size=64", "out=run")
    codes = ranks(2, tmp_path, *words, fault=("sampling", 640, (), "1"))
    assert codes == [2, 2] and not (tmp_path / "run" / "samples.npz").exists()
    assert "3 of 64 samples are not finite" in said(tmp_path)


def test_more_processes_than_batches_are_refused(command, capfd):
    assert command("sample", *EXACT, "n=100", "batch_size=64", "devices=3", "out=run") == 2
    said = capfd.readouterr().err
    assert "devices=3: 100 samples in batches of 64 are work for 2 of 3 processes" in said
    assert not Path("run").exists()


# Spikes of the loss


def spike(monkeypatch, at, times):
    noise = Batches.noise

    def larger(self, k):
        return noise(self, k) * (times if k == at else 1)

    monkeypatch.setattr(Batches, "noise", larger)


@pytest.mark.fault
def test_a_spike_of_the_loss_is_warned_of(train, tmp_path, monkeypatch, capfd):
    spike(monkeypatch, 27, 10)
    words = (*POINTS, "trainer.max_steps=40", "trainer.log_every=10")
    train(tmp_path / "run", *words)
    said = capfd.readouterr().err
    assert said.count("times the usual; 1 such steps") == 1 and "step 27 (seed 0): loss " in said
    train(tmp_path / "quiet", *words, "trainer.spike=null")
    assert "times the usual" not in capfd.readouterr().err


@pytest.mark.parametrize(
    "prediction", ["v", *(pytest.param(p, marks=pytest.mark.slow) for p in ("x", "eps"))]
)
def test_plain_noise_is_no_spike(train, tmp_path, capfd, prediction):
    words = (*POINTS, "data.batch_size=8", "trainer.max_steps=2000", "trainer.validate_every=2000")
    train(tmp_path / "run", *words, f"objective.prediction={prediction}")
    assert "times the usual" not in capfd.readouterr().err
