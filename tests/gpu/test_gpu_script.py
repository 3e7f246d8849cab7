"""scripts/gpu.sh and its parts: time limits, going on after a stop, and the table."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT / "scripts"))

import gpu  # noqa: E402
import gpu_tests  # noqa: E402
import gpu_throughput  # noqa: E402
import speedrun  # noqa: E402
from gpu_table import table  # noqa: E402


def visit(folder, seconds=100.0, **more):
    made = gpu.Visit(folder, "cpu", True, gpu.RECIPE, time.time() + seconds, **more)
    made.work.mkdir(parents=True, exist_ok=True)
    return made


def alive(name):
    """The processes whose command line holds this name."""
    lines = [path.read_bytes() for path in Path("/proc").glob("[0-9]*/cmdline") if path.exists()]
    return [line for line in lines if name.encode() in line]


def gone(name):
    """A process that was killed ends a moment later."""
    end = time.monotonic() + 60
    while alive(name):
        assert time.monotonic() < end
        time.sleep(0.05)


# parts and their time


def test_finished_parts_are_not_run_again_and_cut_ones_are(tmp_path, capsys):
    calls = []

    def part(name, results):
        def run(_, seconds):
            calls.append((name, round(seconds)))
            return results.pop(0)

        return run

    parts = {
        "tests": (part("tests", [True]), 0.25),
        "throughput": (part("throughput", [False, True]), 0.5),
        "training": (part("training", [True]), 1.0),
    }
    assert gpu.attend(visit(tmp_path), list(parts), parts) == ["throughput"]
    assert calls == [("tests", 25), ("throughput", 50), ("training", 100)]
    assert "| throughput | 0 of 0 cases | cut |" in (tmp_path / "table.md").read_text()
    assert gpu.attend(visit(tmp_path), ["tests", "throughput"], parts) == []
    assert calls[3:] == [("throughput", 100)]  # the last of a visit has what is left
    assert "cut" not in (tmp_path / "table.md").read_text()
    assert "tests: finished before" in capsys.readouterr().out


def test_an_error_in_one_part_is_not_the_end_of_the_others(tmp_path):
    def broken(*_):
        raise OSError("the disk is full")

    parts = {"tests": (broken, 0.25), "training": (lambda *_: True, 1.0)}
    assert gpu.attend(visit(tmp_path), ["tests", "training"], parts) == ["tests"]
    assert "- tests: OSError: the disk is full." in (tmp_path / "table.md").read_text()
    assert "Traceback" in (tmp_path / "log.txt").read_text()


def test_without_time_no_part_begins(tmp_path):
    parts = {"tests": (lambda *_: pytest.fail("it began"), 0.25)}
    assert gpu.attend(visit(tmp_path, seconds=5.0), ["tests"], parts) == ["tests"]


def test_a_command_is_stopped_at_its_limit_with_all_that_it_started(tmp_path, monkeypatch):
    monkeypatch.setattr(gpu, "GRACE", 0.5)
    mark = f"3600{os.getpid()}"
    words = ["bash", "-c", f"sleep {mark} & echo began; wait"]
    begin = time.monotonic()
    assert gpu.run(words, tmp_path / "log.txt", 1.5) is None
    assert time.monotonic() - begin < 60
    gone(mark)
    assert "began" in (tmp_path / "log.txt").read_text()
    assert gpu.run(["bash", "-c", "exit 7"], tmp_path / "log.txt", 60.0) == 7


DRIVER = """
import signal, sys, time
from pathlib import Path
import gpu
out = Path(sys.argv[1])
visit = gpu.Visit(out, "cpu", True, gpu.RECIPE, time.time() + 100)

def first(visit, seconds):
    with (out / "calls").open("a") as file:
        file.write("first ")
    return True

def second(visit, seconds):
    with (out / "calls").open("a") as file:
        file.write("second ")
    words = ["sleep", sys.argv[2]]
    return gpu.run(words, out / "log.txt", seconds) == 0

signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
gpu.attend(visit, ["tests", "training"], {"tests": (first, 0.5), "training": (second, 1.0)})
"""


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_a_visit_that_was_ended_goes_on(tmp_path, number):
    words = [sys.executable, "-c", DRIVER, tmp_path]
    environment = os.environ | {"PYTHONPATH": f"{ROOT}{os.pathsep}{ROOT / 'scripts'}"}
    mark = f"3600{os.getpid()}"
    process = subprocess.Popen([*words, mark], env=environment)
    end = time.monotonic() + 300
    while not alive(f"sleep\0{mark}"):
        assert process.poll() is None and time.monotonic() < end
        time.sleep(0.05)
    process.send_signal(number)
    process.wait(60)
    if number == signal.SIGTERM:
        assert process.returncode == 143
        gone(f"sleep\0{mark}")
    for line in Path("/proc").glob("[0-9]*/cmdline"):  # what SIGKILL left
        if line.exists() and f"sleep\0{mark}".encode() in line.read_bytes():
            os.kill(int(line.parent.name), signal.SIGKILL)
    assert subprocess.run([*words, "0.01"], env=environment, check=False).returncode == 0
    assert (tmp_path / "calls").read_text().split() == ["first", "second", "second"]
    for part in ("tests", "training"):
        assert json.loads((tmp_path / f"{part}.json").read_text())["finished"]


def test_a_process_that_crashes_costs_the_throughput_one_case(tmp_path, monkeypatch):
    here, codes = visit(tmp_path), [-11, gpu.BROKEN, 0]

    def run(words, log, seconds):
        rows = here.read("throughput").get("cases", {})
        if len(codes) == 2:
            rows["b"] = {"missing": "it failed"}
        here.write("throughput", begun="a" if len(codes) == 3 else "b", cases=rows)
        return codes.pop(0)

    monkeypatch.setattr(gpu, "run", run)
    assert gpu.throughput(here, 50.0)
    assert here.read("throughput")["cases"]["a"] == {"missing": "its process ended with -11"}
    (tmp_path / "log.txt").write_text("first\nno module named x\n")
    codes[:] = [1]  # as from a package that cannot be imported
    assert not gpu.throughput(here, 50.0)
    assert here.read("throughput")["failure"] == "exit code 1, after `no module named x`"


def test_the_steps_of_training_follow_from_the_speed(tmp_path):
    here = gpu.Visit(tmp_path, "cuda", False, gpu.RECIPE, time.time() + 400)
    assert gpu.planned(here, 360.0) is None
    rows = {"a": {"network": "the recipe", "missing": "x"}, "b": {"network": "y", "seconds": 9}}
    here.write("throughput", cases=rows)
    assert gpu.planned(here, 360.0) is None
    rows["a"] = {"network": "the recipe", "seconds": 0.05}
    here.write("throughput", cases=rows)
    assert gpu.planned(here, 360.0) == int(0.93 * 300 / 0.05)


def test_what_is_asked_is_checked(tmp_path, capsys, monkeypatch):
    for variables, said in (
        ({"GPU_MINUTES": "soon"}, "GPU_MINUTES=soon: must be a positive number"),
        ({"GPU_MINUTES": "0"}, "GPU_MINUTES=0: must be a positive number"),
        ({"GPU_DEVICE": "tpu"}, "GPU_DEVICE=tpu: must be cuda or cpu"),
    ):
        assert gpu.planned_visit(tmp_path, variables) == said
    here = gpu.planned_visit(tmp_path, {"GPU_MINUTES": "2.5", "GPU_BEGAN": "1000"})
    assert (here.end, here.device, here.small, here.recipe) == (1150.0, "cuda", False, gpu.RECIPE)
    monkeypatch.setenv("GPU_DEVICE", "tpu")
    assert gpu.main([str(tmp_path)]) == 2 and gpu.main([str(tmp_path), "test"]) == 2
    assert "test: no such part" in capsys.readouterr().err


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is one")
def test_a_device_that_is_not_there_is_said(tmp_path, monkeypatch, capsys):
    for module in (gpu_tests, gpu_throughput):
        monkeypatch.setattr(sys, "argv", ["script", str(tmp_path / "x.json"), "--device=cuda"])
        assert module.main() == 2
        assert "this machine has 0 CUDA devices" in capsys.readouterr().err
    assert not (tmp_path / "x.json").exists()


def test_the_recipe_and_the_judge_are_those_of_the_speedrun():
    race = speedrun.RACES["cifar10"]
    assert race.cuda == gpu.RECIPE
    assert race.judge.split() == list(gpu.JUDGES[0][1:])


# the cases of throughput


def test_cases_that_are_there_are_not_measured_again(tmp_path, monkeypatch):
    names = [case.name for case in gpu_throughput.cases(gpu.RECIPE)]
    assert len(set(names)) == len(names)
    file, asked = tmp_path / "throughput.json", []
    file.write_text(json.dumps({"cases": {names[0]: {"seconds": 1.0}}}))

    def measure(case, where, small):
        asked.append(case.name)
        if case.name == names[2]:
            raise torch.cuda.OutOfMemoryError("too large")
        if case.name == names[3]:
            raise RuntimeError("an illegal memory access")
        return {"seconds": 2.0}

    monkeypatch.setattr(gpu_throughput, "measure", measure)
    monkeypatch.setattr(sys, "argv", ["script", str(file), "--small", "--device=cpu"])
    with pytest.raises(SystemExit) as ending:
        gpu_throughput.main()
    assert ending.value.code == gpu.BROKEN and asked == names[1:4]
    assert gpu_throughput.main() == 0 and asked == names[1:]
    content = json.loads(file.read_text())
    assert list(content["cases"]) == names == content["asked"]
    assert "too little memory" in content["cases"][names[2]]["missing"]
    assert "an illegal memory access" in content["cases"][names[3]]["missing"]


# the table

ROW = {"batch": 100, "parameters": 7, "memory": 3e9, "first_step": 20.0, "precision": "bf16"}
CONTENTS = {
    "tests": {
        "finished": True,
        "spent": 90.0,
        "machine": {
            "device": "NVIDIA X",
            "memory": 2**37,
            "cores": 16,
            "torch": "2.11",
            "python": "3.12",
        },
        "tests": {
            "t.py::test_a[cuda]": {"outcome": "passed", "seconds": 1, "text": ""},
            "t.py::test_b[cuda]": {"outcome": "failed", "seconds": 1, "text": "E   assert 1 < 0"},
        },
    },
    "throughput": {
        "finished": False,
        "spent": 300.0,
        "machine": {"product": 7e14, "copy": 4e12},
        "asked": ["a", "b", "c", "d"],
        "cases": {
            "a": ROW
            | {
                "network": "N",
                "loop": "fmdiff",
                "operations": 10**12,
                "seconds": 0.5,
                "peak": 1e15,
            },
            "b": ROW
            | {"network": "N", "loop": "L", "operations": None, "seconds": 2.0, "peak": 5e14},
            "c": {"missing": "no package"},
        },
    },
    "training": {
        "finished": True,
        "spent": 400.0,
        "recipe": "R",
        "steps": 3000,
        "max_steps": 3000,
        "seconds_of_training": 290.0,
        "images_per_second": 5100.0,
        "judgements": [
            {"metrics": {"fd_cifar10": 5.4321}, "n": 2000, "nfe": 10.0, "seconds": 30.0}
        ],
    },
}


def test_the_table_says_what_was_measured_and_what_is_missing(tmp_path):
    assert "No device was asked" in table(tmp_path)
    for part, content in CONTENTS.items():
        (tmp_path / f"{part}.json").write_text(json.dumps(content))
    text = table(tmp_path)
    for line in (
        "## NVIDIA X, 128 GiB, 16 cores, torch 2.11, Python 3.12",
        "| tests | 1 passed, 1 failed, 0 skipped | finished | 90 |",
        "| throughput | 2 of 4 cases | cut | 300 |",
        "| training | 3,000 of 3,000 steps, fd_cifar10 5.432 (2,000 samples) | finished | 400 |",
        # 200 images/s of 10^12 operations: 200 TFLOP/s, a fifth of 1000; the script has 50
        "| N | 7 | fmdiff | bf16 | 100 | 200 | 500 | 200 | 20.0% | 3 | 20 | 4.00 |",
        "| N | 7 | L | bf16 | 100 | 50 | 2000 | 50 | 10.0% | 3 | 20 | 1.00 |",
        "- test_b[cuda] failed: E   assert 1 < 0",
        "- c: no package.",
        "- d: there was no time for it.",
        "- throughput: it was cut, and the same command goes on with it.",
    ):
        assert line in text.splitlines(), line
    assert "runs at 700 TFLOP/s here, and a copy at 4 TB/s" in text
    assert "included, at 5,100 images/s" in text
    assert (
        "- fd_cifar10 5.432 from 2,000 samples of 10 evaluations, drawn and judged in 30 s" in text
    )


# the shell


@pytest.fixture
def shell(tmp_path):
    """Runs gpu.sh with a Python that only says how it was called: exit code, errors, calls."""
    python = tmp_path / "python"
    calls = tmp_path / "calls"
    python.write_text(
        '#!/bin/bash\necho "$FMDIFF_DATA|$PYTHONPATH|${CUDA_VISIBLE_DEVICES-all}|$*"'
        f" >>{calls}\n"
    )
    python.chmod(0o755)

    def run(*words, **variables):
        calls.unlink(missing_ok=True)
        named = {"PYTHON": str(python), "PYTHONPATH": "", "FMDIFF_DATA": ""}
        environment = {k: v for k, v in os.environ.items() if k != "CUDA_VISIBLE_DEVICES"}
        done = subprocess.run(
            ["bash", ROOT / "scripts" / "gpu.sh", *words],
            env=environment | named | {k: str(v) for k, v in variables.items()},
            cwd=tmp_path,
            capture_output=True,
            text=True,
        )
        lines = calls.read_text().splitlines() if calls.exists() else []
        return done.returncode, done.stderr, [line.split("|") for line in lines]

    return run


def test_the_shell_says_how_it_is_used(shell):
    for words in ((), ("--help",)):
        code, said, calls = shell(*words)
        assert code == 2 and "bash scripts/gpu.sh OUT" in said and not calls


def test_the_shell_runs_the_parts_from_the_source_tree(shell, tmp_path):
    code, said, [(_, path, devices, words)] = shell("here/out", "tests", GPU_DEVICE="cpu")
    assert code == 0, said
    assert path.split(":")[:2] == [str(ROOT), str(ROOT / "scripts")] and devices == ""
    assert words == f"{ROOT}/scripts/gpu.py {tmp_path}/here/out tests"
    assert shell("here/out")[2][0][2] == "all"


def test_the_shell_installs_wheels_once_and_unpacks_data(shell, tmp_path):
    (tmp_path / "wheels").mkdir()
    (tmp_path / "wheels" / "a-1-py3-none-any.whl").touch()
    (tmp_path / "sheets").mkdir()
    (tmp_path / "sheets" / "unpack.py").touch()
    (tmp_path / "out" / "work" / "site").mkdir(parents=True)
    variables = {"WHEELS": tmp_path / "wheels", "FMDIFF_DATA": tmp_path / "sheets"}
    code, said, calls = shell("out", **variables)
    assert code == 0, said
    pip, unpack, run = (call[-1] for call in calls)
    work = tmp_path / "out" / "work"
    assert "pip install --quiet --no-index --no-deps" in pip and pip.endswith(
        "a-1-py3-none-any.whl"
    )
    assert unpack == f"{tmp_path}/sheets/unpack.py {work}/data cifar10"
    assert run.startswith(f"{ROOT}/scripts/gpu.py ")
    assert calls[-1][0] == f"{work}/data" and f":{work}/site" in calls[-1][1]
    assert len(shell("out", **variables)[2]) == 2  # the wheels are installed


# the whole


@pytest.mark.slow
def test_a_rehearsal_on_the_cpu_does_everything(tmp_path):
    named = {"GPU_DEVICE": "cpu", "GPU_SMALL": "1", "GPU_MINUTES": "60", "PYTHON": sys.executable}
    words = ["bash", ROOT / "scripts" / "gpu.sh", tmp_path]
    done = subprocess.run(words, env=os.environ | named, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    text = (tmp_path / "table.md").read_text()
    assert text.strip() in done.stdout
    assert "4 of 4 steps, fd_" in text and "beside TorchCFM's script" in text
    cases = json.loads((tmp_path / "throughput.json").read_text())["cases"].values()
    rows = {row["parameters"] for row in cases if row.get("network") == gpu_throughput.UNET}
    assert len(rows) == 1  # the network of the script is that which fmdiff trains
    assert (tmp_path / "grid.png").stat().st_size > 1000
    again = subprocess.run(words, env=os.environ | named, capture_output=True, text=True)
    assert again.stdout.count("finished before") == 3
