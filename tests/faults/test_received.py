"""A file from someone else is data: nothing in it is run, and nothing is read or written for it.

Every case is a command line in a fresh process, beside a canary: code that would make a folder, a
YAML and a checkpoint that name it, and a secret in the environment.
"""

import json
import os
import resource
import shlex
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import ClassVar

import pytest
import torch
from omegaconf import OmegaConf
from safetensors.torch import save_file

import fmdiff
from fmdiff.build import build, config_folder
from fmdiff.errors import FmdiffError
from fmdiff.report.read import read_run
from fmdiff.report.run import repeat, repeat_sweep
from fmdiff.runs import checkpoint, resume, safetensors
from fmdiff.runs.bounded import bounded
from fmdiff.runs.content import Checkpoint

MEMORY = 6 * 2**30  # bytes that a process may take
LONGEST = 20  # seconds of a command
EVIL = "import os\nos.makedirs(os.environ['CANARY'], exist_ok=True)\nclass Net: pass\n"
RESULT = {"format": 1, "command": "evaluate", "metrics": {"sw2": {"value": 1.0}}}
SMALL = {"n": 100, "steps": 2, "metrics": ["sw2"], "device": "cpu"}


def run_all(lines):
    """Runs command lines in this process; prints their codes, messages and seconds as JSON."""
    import contextlib
    import io

    from fmdiff import cli

    touched = []

    def watch(event, args):
        if event in ("open", "import") and "canary" in str(args[0]):
            touched.append(str(args[0]))

    def late(number, frame):
        raise TimeoutError("too long")

    sys.addaudithook(watch)
    signal.signal(signal.SIGALRM, late)
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
    outcomes = []
    for words in lines:
        text, begin, code = io.StringIO(), time.perf_counter(), "raised"
        touched.clear()
        signal.alarm(LONGEST)
        try:
            with contextlib.redirect_stderr(text), contextlib.redirect_stdout(text):
                code = cli.main(words)
        except BaseException as error:
            text.write(f"{type(error).__name__}: {error}")
        signal.alarm(0)
        seconds = time.perf_counter() - begin
        outcomes.append([code, text.getvalue(), list(touched), round(seconds, 1)])
    print(json.dumps(outcomes))


class Place:
    """A folder with the canary, a good run and what is made of it."""

    def __init__(self, folder, run):
        self.folder, self.run = folder, run
        self.canary = folder / "canary"
        (folder / "outside").mkdir()
        (folder / "outside" / "evil_canary.py").write_text(EVIL)
        evil = "_target_: evil_canary.Net\n"
        (folder / "outside" / "canary.yaml").write_text(evil)
        (folder / "outside" / "canary.txt").write_text("SECRET-OF-THE-FILE")
        (folder / "work").mkdir()

    def path(self, name):
        return self.folder / "work" / name

    def received(self, name, line="", config=None, overrides=None):
        """A copy of the run with another line in its overrides, or with other files.

        The content of a file is bytes, or a function that makes something at its path.
        """
        place = self.path(name)
        shutil.copytree(self.run, place)
        with (place / "overrides").open("a") as file:
            file.write(line)
        for path, content in ((place / "config.yaml", config), (place / "overrides", overrides)):
            if content is not None:
                path.unlink()
                path.write_bytes(content) if isinstance(content, bytes) else content(path)
        return ["train", f"resume={place.name}", "trainer.max_steps=61", "device=cpu"]

    def result(self, name, **config):
        """A results.json of someone else, to be repeated."""
        text = json.dumps(RESULT | {"config": SMALL | self.exact | config}, default=str)
        self.path(f"{name}.json").write_text(text)
        return ["evaluate", f"result={name}.json", f"out=out-{name}"]

    exact: ClassVar[dict] = {
        "model": {"_target_": "fmdiff.exact.exact"},
        "data": {
            "_target_": "fmdiff.data.toy.FourGaussians",
            "scale": 2.0,
            "noise": 0.2,
            "batch_size": 64,
        },
        "choices": {"solver": "heun", "schedule": "uniform", "guidance": "none"},
        "solver": {"_target_": "fmdiff.solvers.runge_kutta.Heun"},
    }

    def model(self, name, command="info", training=None, **spec):
        """A checkpoint whose spec is changed, with right checksums."""
        content = checkpoint.read(self.run / "last.ckpt")
        for key, value in spec.items():
            if key == "data":
                content["spec"]["data"] |= value
            elif value.keys() & {"_target_"}:
                content["spec"][key] = value
            else:
                content["spec"][key] |= value
        if training is not None:
            content["training"] = training
        checkpoint.write(self.path(f"{name}.ckpt"), content)
        more = [] if command == "info" else ["n=4", "steps=2", "device=cpu", f"out=out-{name}"]
        return [command, f"ckpt={name}.ckpt", *more]

    def outcomes(self, lines):
        """[[exit code, what was printed, opened files of the canary, seconds], ...]"""
        environment = os.environ | {
            "CANARY": str(self.canary),
            "CANARY_SECRET": "SECRET-OF-THE-SHELL",
            "PYTHONPATH": os.pathsep.join(
                [str(self.folder / "outside"), os.path.dirname(__file__)]
            ),
            "OMP_NUM_THREADS": "1",
        }
        name = __name__.rpartition(".")[2]
        code = f"import json, sys, {name} as test; test.run_all(json.load(sys.stdin))"
        process = subprocess.run(
            [sys.executable, "-W", "ignore", "-c", code],
            input=json.dumps(lines),
            capture_output=True,
            text=True,
            cwd=self.folder / "work",
            env=environment,
            timeout=500,
        )
        assert process.returncode == 0, process.stderr[-2000:]
        return json.loads(process.stdout.splitlines()[-1])

    def refuses(self, cases):
        """Each case (words, parts of the sentence) is refused, and the canary is left alone."""
        outcomes = self.outcomes([[str(word) for word in words] for words, *_ in cases.values()])
        failures = []
        for (name, (_, *parts)), (code, text, touched, seconds) in zip(
            cases.items(), outcomes, strict=True
        ):
            said = [line for line in text.splitlines() if line.startswith(("fmdiff ", "Error"))]
            right = code == 2 and any(all(p in line for p in parts) for line in said)
            clean = "Traceback" not in text and "SECRET-OF" not in text and not touched
            if not (right and clean and seconds < LONGEST):
                failures.append((name, code, text[-300:], touched, seconds))
        if os.environ.get("SHOW"):
            for name, (code, text, touched, seconds) in zip(cases, outcomes, strict=True):
                print(f"{name}: exit {code}, {seconds} s, touched {len(touched)}: {text[-160:]!r}")
        assert not failures, failures
        assert not self.canary.exists()


@pytest.fixture
def place(tmp_path, moons_run):
    return Place(tmp_path, moons_run)


def outward(place, group):
    """The way from a group's folder to the YAML of the canary."""
    return os.path.relpath(place.folder / "outside" / "canary", config_folder() / group)


@pytest.mark.fault
def test_a_recipe_chooses_by_name_alone(place):
    far = place.folder / "outside" / "canary"
    nested = {"_target_": "fmdiff.models.mlp.MLP", "hidden": 10**6}
    big = {"_target_": "fmdiff.build.named", "group": "model", "name": "mlp", "hidden": 10**6}
    cases = {}
    for group in ("solver", "schedule", "guidance"):
        for way, name in (("relative", outward(place, group)), ("absolute", str(far))):
            words = place.result(f"{group}-{way}", grid={group: [name]})
            cases[f"grid {group} {way}"] = (words, f"unknown {group}", ".json")
    cases |= {
        "grid of another key": (place.result("key", grid={"../x": [1]}), "grid", ".json"),
        "grid is a text": (place.result("text", grid="solver"), "grid", ".json"),
        "choices is a list": (place.result("list", choices=["heun"]), "choices", ".json"),
        "secret": (place.result("secret", n="${oc.env:CANARY_SECRET}"), "${", ".json"),
        "secret in a list": (place.result("deep", metrics=["${oc.env:HOME}"]), "${", ".json"),
        "network as a solver": (place.result("net", solver=nested), "is no solver", ".json"),
        "network by name": (place.result("named", schedule=big), "is no schedule", ".json"),
        "network inside": (
            place.result("inner", guidance={"_target_": "fmdiff.guidance.CFG", "w": nested}),
            "which is no w",
        ),
        "trust": (
            place.result("trust", trust=["evil_"], solver={"_target_": "evil_canary.Net"}),
            "trust=[",
        ),
    }
    for name, text in (
        ("nested", "[" * 200_000),
        ("binary", "\0\0\0"),
        ("figures", json.dumps(RESULT | {"config": SMALL, "metrics": {"sw2": "high"}})),
    ):
        place.path(f"{name}.json").write_text(text)
        words = ["evaluate", f"result={name}.json", "out=x"]
        cases[f"file: {name}"] = (words, f"{name}.json is no results.json")
    place.refuses(cases)


LINES = {
    "trust": "trust=[os.]",
    "trust added": "+trust=[os.]",
    "added group": "+model=unet",
    "added key": "+model.new=1",
    "deletion": "~model.hidden",
    "override": "override model=unet",
    "at another place": "model@hydra.launcher=mlp",
    "a sub-group": "data/more=moons",
    "hydra": "hydra/launcher=basic",
    "hydra's key": "hydra.run.dir=/tmp",
    "search path": "hydra.searchpath=[file:///tmp]",
    "code": "model._target_=os.mkdir",
    "code inside": "data={_target_:os.mkdir}",
    "flag": "--config-dir=../outside",
    "flag with a blank": "--config-dir ../outside",
    "a multirun": "-m",
    "secret": "name=${oc.env:CANARY_SECRET}",
    "secret inside": "data.root=x${oc.env:CANARY_SECRET}",
    "choices": "choices.model=unet",
    "a dict for a group": "model={hidden:3}",
    "a list for a group": "model=[mlp]",
    "control characters": "seed=0\x1b[2J\x07${x}",
}


@pytest.mark.fault
def test_the_overrides_of_a_folder_choose_by_name_alone(place):
    cases = {}
    for i, (name, line) in enumerate(LINES.items()):
        words = place.received(f"run{i}", f"{line}\n")
        cases[name] = (words, f"run{i}/overrides", "is not taken from a file")
    for group in ("source", "model", "experiment", "data", "optim", "trainer"):
        for way in (outward(place, group), str(place.folder / "outside" / "canary"), "x/../moons"):
            for quote in ("", "'", '"') if group == "source" else ("",):
                name = f"{group}{len(cases)}"
                words = place.received(name, f"{group}={quote}{way}{quote}\n")
                # nothing else compares the settings of such a folder
                (place.path(name) / "config.yaml").write_text("")
                cases[f"{name} {way[:3]}"] = (
                    words,
                    f"{name}/overrides",
                    f"is no choice of {group}",
                )
    place.refuses(cases)


def bomb(levels=9):
    lines = ["a0: &a0 [" + "x, " * 9 + "x]"]
    lines += [f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 9)}]" for i in range(1, levels)]
    return "\n".join(lines).encode()


@pytest.mark.fault
def test_the_settings_of_a_folder_are_plain(place):
    texts = {
        "aliases": (bomb(), "alias"),
        "tag": (b"seed: !!python/object/apply:os.mkdir [x]\n", "tag"),
        "set": (b"seed: !!set {a}\n", "tag"),
        "deep": (b"a: " + b"[" * 100_000, "cannot be read"),
        "wide": (b"a: [" + b"0," * 400_000 + b"0]", "values"),
        "long": (b"a: " + b"x" * 2_000_000, "longer"),
        "not UTF-8": (b"name: \xff\xfe\n", "cannot be read"),
        "NUL": (b"seed: 0\0\n", "cannot be read"),
        "secret": (b"threads: ${oc.env:CANARY_SECRET}\n", "${"),
        "secret inside": (b"trainer: {inner_steps: '${oc.env:HOME}'}\n", "${"),
        "no keys": (b"- 1\n", "is not a config"),
        "key of no text": (b"? [a]\n: 1\n", "cannot be read"),
        "link": (lambda path: path.symlink_to("../../outside/canary.txt"), "cannot be read"),
        "pipe": (os.mkfifo, "cannot be read"),
    }
    cases = {}
    for i, (name, (content, part)) in enumerate(texts.items()):
        words = place.received(f"run{i}", config=content)
        cases[name] = (words, f"run{i}/config.yaml", part)
        if name in ("aliases", "deep"):  # the other commands that read it
            cases[f"{name}, out"] = (["sample", "ckpt=run0", f"out=run{i}"], "config.yaml", part)
    for i, content in enumerate(
        (b"\0\0\0\n", b"\xff\xfe=1\n", lambda path: path.symlink_to("../../outside/canary.txt"))
    ):
        words = place.received(f"o{i}", overrides=content)
        cases[f"overrides {i}"] = (words, f"o{i}/overrides")
    place.refuses(cases)


@pytest.mark.fault
def test_a_checkpoint_builds_no_more_than_it_holds(place):
    huge = {"_target_": "fmdiff.models.jit.RMSNorm", "width": 3 * 10**9}
    dit = {"_target_": "fmdiff.models.dit.DiT", "patch": 1, "width": 64, "depth": 1, "heads": 4}
    jit = {"_target_": "fmdiff.models.jit.JiT", "patch": 4, "bottleneck": 8, "width": 64}
    jit |= {"depth": 1, "heads": 4, "label_tokens": 10**9, "start": 0}
    named = {"_target_": "fmdiff.build.named", "group": "model", "name": "mlp", "hidden": 10**6}
    gmm = {"_target_": "fmdiff.data.mixture.GMM", "means": [[0.0] * 30_000], "weights": None}
    images = {"shape": [1, 8192, 8192], "classes": 0}
    far = "far larger"
    place.refuses(
        {
            "wide": (place.model("wide", model={"hidden": 30_000}), "wide.ckpt", far),
            "beyond all": (
                place.model("beyond", model={"hidden": 10**12}),
                "beyond.ckpt",
            ),
            "long": (place.model("long", model={"layers": 10**6, "hidden": 1}), far),
            "many features": (place.model("features", model={"frequencies": 10**9}), far),
            "classes": (place.model("classes", data={"classes": 900_000}), far),
            "too many classes": (
                place.model("most", data={"classes": 10**12}),
                "checkpoint most.ckpt",
                "data.classes",
            ),
            "shape": (place.model("shape", data={"shape": [3, 10**6, 10**6]}), "data.shape"),
            "shape of none": (place.model("none", data={"shape": []}), "data.shape"),
            "shape below 0": (place.model("below", data={"shape": [-1, 2, 3]}), "data.shape"),
            "std": (place.model("std", data={"std": float("nan")}), "data.std"),
            "tokens": (place.model("tokens", model=dit, data=images), "tokens"),
            "label tokens": (
                place.model("labels", model=jit, data={"shape": [1, 8, 8], "classes": 2}),
                far,
            ),
            "network inside": (
                place.model("inside", path={"_target_": "fmdiff.path.CondOT", "x": huge}),
                "which is no x",
            ),
            "network elsewhere": (place.model("else", source=huge), "which is no source"),
            "network by name": (place.model("named", coupling=named), "which is no coupling"),
            "mixture": (
                place.model(
                    "gmm",
                    "sample",
                    data={"source": gmm | {"cov": 1.0, "batch_size": 4}},
                ),
                "numbers",
            ),
            "other data": (
                place.model(
                    "pictures",
                    "sample",
                    data={
                        "source": {
                            "_target_": "fmdiff.data.folder.Folder",
                            "root": str(place.folder / "outside"),
                            "size": None,
                            "channels": 1,
                            "skip_broken": True,
                        }
                    },
                ),
                "its data are others",
            ),
            "settings": (place.model("settings", training={"config": []}), "training.config"),
            "number": (
                place.model(
                    "number",
                    path={
                        "_target_": "fmdiff.custom.Custom",
                        "alpha": "0x" + "f" * 290,
                        "beta": "1-t",
                    },
                ),
                "path.alpha",
            ),
        }
    )


@pytest.mark.fault
def test_a_folder_is_the_run_of_its_checkpoint(place):
    """Neither an empty config.yaml nor a part of it makes other settings the same run."""
    cases = {}
    for name, text in (("empty", b""), ("part", b"seed: 0\ntrainer: {max_steps: 60}\n")):
        words = [*place.received(name, config=text), "data=rings", "seed=3"]
        cases[name] = (words, "run of other settings", "seed: 0 (saved) vs 3 (now)", "Moons")
    alone = place.received("alone", config=b"", overrides=b"")
    cases["no overrides"] = (alone, "run of other settings", "model.hidden")
    place.refuses(cases)


# In this process


def files_of(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}


@pytest.mark.fault
@pytest.mark.parametrize("steps", [5, 60])
def test_a_finished_run_keeps_its_files(place, command, capfd, steps, monkeypatch):
    place.received("run")
    monkeypatch.chdir(place.folder / "work")
    before = files_of(place.path("run"))
    assert command("train", "resume=run", f"trainer.max_steps={steps}", "optim.lr=1") == 0
    assert "has its 60 steps already; raise trainer.max_steps" in capfd.readouterr().err
    assert {**files_of(place.path("run")), ".lock": b""} == {**before, ".lock": b""}


@pytest.mark.fault
def test_python_returns_a_finished_run(place, monkeypatch):
    place.received("run")
    monkeypatch.chdir(place.folder / "work")
    trained = fmdiff.train("resume=run", "trainer.max_steps=5")
    assert trained.folder == place.path("run") and trained.checkpoint.name == "0000060.ckpt"


@pytest.mark.fault
def test_the_copy_box_offers_what_resume_takes(place):
    lines = [line for line in LINES.values() if "config" not in line]
    place.received("run", "".join(f"{line}\n" for line in lines))
    argv = ["fmdiff", "-m", "data=moons,rings", "--config-dir", "/evil", "--config-dir=/evil"]
    about = json.dumps({"command": [*argv, *lines, "model=../../evil", "optim.lr=1e-3,1e-4"]})
    (place.path("run") / "environment.json").write_text(about)
    run = read_run(place.path("run"))
    said = repeat(run).split()
    own = (place.run / "overrides").read_text().split()
    assert said == ["fmdiff", "train", *(shlex.quote(o) for o in own if o[:4] != "out=")]
    assert repeat_sweep(run) == "fmdiff train -m data=moons,rings optim.lr=1e-3,1e-4"


@pytest.mark.fault
def test_the_newest_run_of_these_settings_is_found_past_a_broken_one(
    tmp_path, monkeypatch, caplog
):
    monkeypatch.chdir(tmp_path)
    settings = OmegaConf.create({"seed": 0, "resume": "last", "out": None, "name": "runs"})
    for day, text in (("1", OmegaConf.to_yaml(settings)), ("2", "a: *b"), ("3", "\0")):
        (tmp_path / "outputs" / "runs" / day).mkdir(parents=True)
        (tmp_path / "outputs" / "runs" / day / "config.yaml").write_text(text)
    assert resume.resume_folder(settings) == Path("outputs/runs/1")
    assert caplog.text.count("passed over") == 2


@pytest.mark.fault
def test_a_resumed_model_is_no_larger_than_its_checkpoint(place, command, capfd, monkeypatch):
    """Overrides, config.yaml and checkpoint agree, and its weights are of a smaller network."""
    monkeypatch.chdir(place.folder / "work")
    place.received("run", "model.hidden=30000\n")
    for path in place.path("run").glob("*.ckpt"):
        content = checkpoint.read(path)
        content["training"]["config"]["model"]["hidden"] = 30_000
        checkpoint.write(path, content)
    assert command("train", "resume=run", "trainer.max_steps=61") == 2
    assert "far larger" in capfd.readouterr().err


@pytest.mark.fault
@pytest.mark.parametrize("value", ["many", -1, 10**9, {"a": 1}])
def test_threads_come_from_a_file_within_bounds(place, command, capfd, monkeypatch, value):
    monkeypatch.chdir(place.folder / "work")
    words = place.received("run")
    for path in place.path("run").glob("*.ckpt"):
        content = checkpoint.read(path)
        content["training"]["config"]["threads"] = value
        checkpoint.write(path, content)
    lines = (place.path("run") / "overrides").read_text().splitlines()
    lines = [line for line in lines if not line.startswith("threads=")]
    (place.path("run") / "overrides").write_text("\n".join(lines))
    assert command(*words) == 2
    said = capfd.readouterr().err
    assert "threads=" in said or "threads.a" in said


@pytest.mark.fault
def test_an_exported_file_without_a_name_is_damaged(place):
    about = {"version": 1, "step": 1, "spec": {}}
    tensors = {"a": torch.ones(2)}
    about["sha256"] = safetensors._sha256(about, tensors)
    save_file(tensors, place.path("f.safetensors"), {"fmdiff": json.dumps(about)})
    with pytest.raises(FmdiffError, match=r"f\.safetensors is damaged"):
        checkpoint.read(place.path("f.safetensors"))


@pytest.mark.fault
@pytest.mark.parametrize(
    "weights",
    [
        {},
        {"raw": []},
        {"raw": {"a": 1}},
        {"evil": {}},
        {"1.0": {}},
        {"power:x": {}},
        {"raw": {1: 2}},
    ],
)
def test_weights_of_a_checkpoint_have_names_and_tensors(place, weights):
    content = checkpoint.read(place.run / "last.ckpt")
    with pytest.raises(FmdiffError, match="not as fmdiff writes it: weights"):
        Checkpoint.of(content | {"weights": weights})


def test_a_class_that_the_user_trusts_is_built_as_it_is():
    spec = {"_target_": "test_received.Wide", "shape": (2,), "classes": 0}
    state = {"a": torch.ones(1)}
    with bounded(spec, state):
        assert build(spec).first.weight.numel() == 4_000_000
    ours = {"_target_": "fmdiff.models.mlp.MLP"}
    with pytest.raises(FmdiffError, match="far larger than the 1 numbers"), bounded(ours, state):
        Wide((2,), 0)
    assert Wide((2,), 0).first.weight.numel() == 4_000_000  # the bound has ended


class Wide(torch.nn.Module):
    def __init__(self, shape, classes):
        super().__init__()
        self.first = torch.nn.Linear(2_000, 2_000)
