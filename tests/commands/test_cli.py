import errno
import json
import logging
import math
import os
import re
import resource
import signal
import subprocess
import sys

import pytest
from omegaconf import OmegaConf

from fmdiff import cli
from fmdiff.build import config_folder
from fmdiff.commands.table import COMMANDS
from fmdiff.errors import Diverged, Failed, FmdiffError, Interrupted
from fmdiff.runs.config import seconds
from fmdiff.settings import help
from fmdiff.settings.compose import parse
from fmdiff.settings.sentences import key_of

# a choice of each group the commands name, should fmdiff have none of that name
STAND_INS = (
    "path/condot",
    "time/uniform",
    "objective/flow_matching",
    "optim/adam",
    "solver/heun",
    "solver/euler",
    "schedule/uniform",
    "guidance/none",
)
USER_FILES = {
    "mine.py": (
        "from torch import nn\nfrom fmdiff.data.base import Data\n"
        "from fmdiff.models.network import Network\n\n"
        "class Net(nn.Module): ...\n"
        "class Flat(Network): axes = 1\n"
        "class Wide(Network): axes = 3\n"
        "class Heart(Data): shape = (2,)\n"
        "class Faces(Data): shape = (3, 8, 8)\n"
        "class Table(Data):\n"
        "    axes = None\n"
        "    @classmethod\n"
        "    def axes_of(cls, settings): return settings['axes']\n"
    ),
    "model/flat.yaml": "_target_: mine.Flat\n",
    "model/wide.yaml": "_target_: mine.Wide\n",
    "data/heart.yaml": "_target_: mine.Heart\n",
    "data/faces.yaml": "_target_: mine.Faces\n",
    "data/table.yaml": "_target_: mine.Table\naxes: 1\n",
    "model/mine.yaml": "_target_: mine.Net\nwidth: 8\nrate: 0.5\nflag: true\nsizes: [1, 2]\n",
    "model/ideal.yaml": "_target_: fmdiff.exact.Mixture\n",
    "optim/mine.yaml": "_target_: mine.Optimiser\nlr: 0.01\n",
    "experiment/mine.yaml": (
        "# @package _global_\ndefaults:\n  - override /model: mine\n  - override /data: rings\n"
        "seed: 7\n"
    ),
}


@pytest.fixture(scope="session")
def user_configs(tmp_path_factory):
    folder = tmp_path_factory.mktemp("configs")
    ours = {f"{name}.yaml": "_target_: stand.In\n" for name in STAND_INS}
    ours["optim/adam.yaml"] += "lr: 0.001\n"
    missing = {n: t for n, t in ours.items() if not (config_folder() / n).exists()}
    for name, text in {**missing, **USER_FILES}.items():
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text(text)
    return folder


@pytest.fixture
def restored_logging():
    """Hydra configures the root logger anew for each job."""
    root, ours = logging.getLogger(), logging.getLogger("fmdiff")
    before = root.handlers[:], root.level, ours.level
    yield
    root.handlers[:] = before[0]
    root.setLevel(before[1])
    ours.setLevel(before[2])


@pytest.fixture
def fmdiff(tmp_path, monkeypatch, capfd, user_configs, restored_logging):
    """Runs a command line in an empty folder: (exit code, stdout, stderr)."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("FMDIFF_DATA", str(tmp_path / "no_data"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "no_cache"))
    monkeypatch.setenv("GOMP_SPINCOUNT", "20000")

    def run(*words, own=True):
        flags = ["--config-dir", str(user_configs)] if own else []
        code = cli.main([*words, *flags])
        return (code, *capfd.readouterr())

    return run


@pytest.fixture
def calls(monkeypatch):
    """Stands in for the commands; the (name, cfg, folder) of each call."""
    seen = []

    def train(cfg, folder):
        seen.append(("train", cfg, folder))
        (folder / "last.ckpt").write_text("weights")

    def sample(cfg, folder):
        seen.append(("sample", cfg, folder))

    def info(cfg):
        seen.append(("info", cfg, None))

    for function in (train, sample, info):
        function.__doc__ = COMMANDS[function.__name__].__doc__
        monkeypatch.setitem(COMMANDS, function.__name__, function)
    return seen


def raising(monkeypatch, error, name="train"):
    def train(cfg, folder):
        raise error

    monkeypatch.setitem(COMMANDS, name, train)


# Without Hydra


@pytest.mark.parametrize("words", [(), ("--help",), ("-h",)])
def test_overview_names_every_command(fmdiff, words):
    code, out, err = fmdiff(*words, own=False)
    assert code == 0 and err == ""
    assert all(f"  {name} " in out for name in COMMANDS)


def test_version(fmdiff):
    assert fmdiff("--version", own=False) == (0, "fmdiff 0.1.0\n", "")
    assert fmdiff("train", "--version", own=False)[:2] == (0, "fmdiff 0.1.0\n")


def test_unknown_command_names_the_nearest(fmdiff):
    code, out, err = fmdiff("trian", own=False)
    assert code == 2 and out == ""
    assert "unknown command 'trian'; did you mean 'train'?" in err and err.count("\n") == 1


def test_help_of_a_command(fmdiff):
    code, out, _ = fmdiff("train", "--help")
    assert code == 0
    assert "moons" in out and "mine" in out  # a choice of ours and of --config-dir
    assert "trainer.max_steps=8000" in out and "fmdiff train -m" in out
    assert max(map(len, out.splitlines())) <= 99


def test_every_command_has_a_yaml_whose_keys_are_explained():
    for name in COMMANDS:
        text = (config_folder() / f"{name}.yaml").read_text()
        plain = [line for line in text.splitlines() if line[:1].isalpha()]
        assert [line for line in plain if "#" not in line and line != "defaults:"] == [
            line for line in plain if line == "model: null"
        ]


CHOICES = sorted(config_folder().glob("*/*.yaml"))


@pytest.mark.parametrize(
    "file",
    # the keys of an experiment are those of the groups it chooses
    [file for file in CHOICES if file.parent.name != "experiment"],
    ids=lambda file: f"{file.parent.name}={file.stem}",
)
def test_every_key_of_a_choice_is_explained(file):
    lines = [line for line in file.read_text().splitlines() if line[0].isalpha()]
    rest = [line for line in lines if not line.startswith(("_target_:", "defaults:"))]
    assert all("  # " in line for line in rest)


def test_help_of_every_choice():
    for name in COMMANDS:
        groups = help._groups(name, [config_folder()])
        for file in CHOICES:
            group, choice = file.parent.name, file.stem
            if group not in groups:
                continue
            text = help.of_choices(name, [f"{group}={choice}"], [config_folder()])
            assert text.startswith(f"{group}={choice}") and max(map(len, text.splitlines())) <= 99
            for key in OmegaConf.load(file):
                inner = f"  {key}" if group == "experiment" else f"  {group}.{key}"
                assert key in ("_target_", "defaults") or inner in text, (text, key)


def test_help_of_choices(fmdiff):
    code, out, err = fmdiff("sample", "solver=adams", "steps=5", "data=gmm4", "--help", own=False)
    assert (code, err) == (0, "")
    assert re.search(r"^solver=adams: .+\n  solver.order=5 +1 to 6\n", out)
    assert "\n\ndata=gmm4: " in out and "  data.scale=2.0 " in out and "steps=5" not in out
    code, out, _ = fmdiff("simulate", "--help", "system=formula", own=False)
    assert code == 0 and re.search(r"\n  system.u +a formula of x and t", out)
    assert fmdiff("sample", "solver=", "--help", own=False)[1].startswith("  solver=  adams ddpm")
    out = fmdiff("train", "experiment=mine", "--help")[1]
    assert "  model=mine\n" in out and "  data=rings\n" in out and "  seed=7" in out


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        ("sample solver=adms --help", "unknown solver 'adms'; did you mean 'adams'?"),
        ("sample slver=adams --help", "unknown key 'slver'; did you mean 'solver'?"),
        ("sample optim=adam --help", "unknown key 'optim'"),
        ("simulate system=formula", "fmdiff simulate system=formula --help says what it is"),
        ("info", "ckpt= is needed; fmdiff info --help says what it is"),
    ],
)
def test_sentences_about_help(fmdiff, words, sentence):
    code, out, err = fmdiff(*words.split(), own=False)
    assert (code, out) == (2, "") and sentence in err and err.count("\n") == 1


IMPORTS = """
import sys
from fmdiff.cli import main
codes = [main(words) for words in ([], ["--help"], ["--version"], ["nope"], ["train", "--help"])]
assert main(["train", "model=mlp", "--help"]) == 0
assert codes == [0, 0, 0, 2, 0], codes
from fmdiff.cli import main
main(["train", "seed=x"])
heavy = {"torch", "lightning", "numpy", "matplotlib"} & sys.modules.keys()
assert not heavy, heavy
assert main(["train", "--cfg", "job"]) == 0 and "torch" not in sys.modules
"""


def test_help_and_errors_import_nothing_heavy(tmp_path):
    subprocess.run([sys.executable, "-c", IMPORTS], cwd=tmp_path, check=True, capture_output=True)


@pytest.mark.parametrize(
    ("words", "limit"), [(["--help"], 0.4), (["nope"], 0.4), (["train", "--help"], 1.2)]
)
def test_start_up_time(tmp_path, words, limit):
    def cpu_seconds():
        used = resource.getrusage(resource.RUSAGE_CHILDREN)
        return used.ru_utime + used.ru_stime

    before = cpu_seconds()
    subprocess.run([sys.executable, "-m", "fmdiff", *words], cwd=tmp_path, capture_output=True)
    assert cpu_seconds() - before < limit


def test_a_closed_pipe_is_quiet(tmp_path):
    command = f"{sys.executable} -m fmdiff train --help | true"
    done = subprocess.run(command, shell=True, cwd=tmp_path, capture_output=True, check=True)
    assert done.stderr == b""


# User errors


ERRORS = [
    ("sample solver=huen", "unknown solver 'huen'; did you mean 'heun'?", "euler"),
    ("train path=nope", "unknown path 'nope'", "condot"),
    ("train pth=condot", "unknown key 'pth'; did you mean 'path'?"),
    ("train lr=1", "unknown key 'lr'; did you mean 'optim.lr'?"),
    ("train model=mine model.widht=3", "'model.widht' of model=mine; did you mean 'model.width'?"),
    ("train model=mine model.width.x=3", "unknown key 'model.width.x'"),
    ("sample guidance.strength=2", "unknown key 'guidance.strength' of guidance=none"),
    ("sample optim=adam", "unknown key 'optim'"),
    ("sample solver@x=heun", "unknown key 'solver@x'"),
    ("train ~nope", "unknown key 'nope'"),
    ("train +seed=3", "seed exists: write seed= without the +"),
    ("train moons", "'moons' is not of the form key=value"),
    ("train =3", "'=3' is not of the form key=value"),
    ("train data=null", "data=null: data takes one name", "moons"),
    ("train data=[moons,rings]", "data takes one name", "moons"),
    ("train optim.lr=a=b", "optim.lr=a=b cannot be read", "'optim.lr=\"a=b\"'"),
    ("train optim.lr=f(x)", "optim.lr=f(x) cannot be read", "'optim.lr=\"f(x)\"'"),
    ("train trainer.ema=[0.9", "trainer.ema=[0.9: an [ and a ] must close each other"),
    ("train seed=1,2", "seed=1,2 asks for several runs: add -m"),
    ("train name=${nope}", "cannot be filled in", "nope"),
    ("train --nope", "--nope"),
    ("train --resolve", "--resolve goes with --cfg"),
    ("train -m --cfg job", "only one of"),
    ("train --experimental-rerun x", "--experimental-rerun is not supported"),
    ("sample", "neither is given"),
    ("sample ckpt=x model=ideal data=gmm4", "both are given"),
    ("sample model=ideal", "model=ideal needs data=NAME"),
    ("sample model=unet data=digits", "model=unet is a network"),
    ("train model=ideal data=moons", "model=ideal has nothing to train"),
    ("sample ckpt=nope", "ckpt=nope does not exist"),
    ("info", "ckpt= is needed"),
    ("train resume=nope", "resume=nope: not a run folder"),
    ("train resume=true", "resume=true needs out=RUN"),
]


@pytest.mark.parametrize("case", ERRORS, ids=[case[0] for case in ERRORS])
def test_user_error(fmdiff, calls, tmp_path, case):
    words, *parts = case
    code, out, err = fmdiff(*words.split())
    assert code == 2 and out == ""
    assert err.startswith(f"fmdiff {words.split()[0]}: ") and err.count("\n") == 1, err
    assert all(part in err for part in parts), err
    assert not calls and not any(tmp_path.iterdir())


VALUES = [
    ("sample ckpt=x steps=abc", "steps=abc: must be an integer >= 1"),
    ("sample ckpt=x steps=2.5", "steps=2.5: must be an integer >= 1"),
    ("sample ckpt=x steps=0", "steps=0: must be an integer >= 1"),
    ("sample ckpt=x steps=true", "steps=true: must be an integer >= 1"),
    ("sample ckpt=x steps=nan", "steps=nan: must be an integer >= 1"),
    ("sample ckpt=x steps=[28]", "steps=[28]: must be an integer >= 1"),
    ("sample ckpt=x nfe=0", "nfe=0: must be an integer >= 1, or null"),
    ("sample ckpt=x clip=image", "clip=image: must be none or data or dynamic"),
    ("sample ckpt=x n=0", "n=0: must be an integer >= 1, or null"),
    ("sample ckpt=x classes=[-1]", "classes=[-1]: must be a class"),
    ("sample ckpt=x classes=[0,1.5]", "classes=[0,1.5]: must be a class"),
    ("sample ckpt=x weights=1.5", "weights=1.5: must be ema, raw or"),
    ("sample ckpt=x final=last", "final=last: must be auto or solver or denoise"),
    ("sample ckpt=x dtype=fp16", "dtype=fp16: must be float32 or float64"),
    ("sample ckpt=x trajectory=3", "trajectory=3: must be true or false"),
    ("train seed=-1", "seed=-1: must be an integer >= 0"),
    ("train device=gpu", "device=gpu: must be auto, cpu, cuda or cuda:N"),
    ("train trust=mine", "trust=mine: must be a list"),
    ("train optim.lr=nan", "optim.lr=nan: must be a number > 0"),
    ("train optim.lr=0", "optim.lr=0: must be a number > 0"),
    ("train data.batch_size=0", "data.batch_size=0: must be an integer >= 1"),
    ("train trainer.precision=16-mixed", "trainer.precision=16-mixed: must be fp32 or tf32"),
    ("train trainer.max_time=1h", "trainer.max_time=1h: must be seconds or"),
    ("train trainer.ema=0.9", "trainer.ema=0.9: must be a list of numbers between 0 and 1"),
    ("train trainer.ema=[1.0]", "trainer.ema=[1.0]: must be a list of numbers between 0 and 1"),
    ("train trainer.clip=-1", "trainer.clip=-1: must be a number > 0, or null"),
    ("train trainer.label_dropout=2", "trainer.label_dropout=2: must be a number from 0 to 1"),
    ("train model=mine data=moons model.width=x",
      "model.width=x: must be a number like its default 8"),
    ("train model=mine data=moons model.rate=nan", "model.rate=nan: must be a number"),
    ("train model=mine data=moons model.flag=1", "model.flag=1: must be true or false like"),
    ("train model=mine data=moons model.sizes=1",
      "model.sizes=1: must be a list like its default [1,2]"),
]  # fmt: skip


@pytest.mark.parametrize(("words", "sentence"), VALUES, ids=[case[0] for case in VALUES])
def test_refused_value(fmdiff, calls, tmp_path, words, sentence):
    code, _, err = fmdiff(*words.split())
    assert (code, err.partition(": ")[2].strip().startswith(sentence)) == (2, True), err
    assert err.count("\n") == 1 and not calls and not any(tmp_path.iterdir())


def test_accepted_values(fmdiff, calls):
    words = "model.width=9 model.rate=1 model.flag=false seed=3 trainer.ema=[0.9,0.99]"
    words += " trainer.max_time=00:10:00 trainer.clip=null optim.lr=1 threads=2"
    code, _, err = fmdiff("train", "model=mine", "data=moons", *words.split())
    assert code == 0, err
    assert calls[0][1].trainer.max_time == "00:10:00"


@pytest.mark.parametrize(
    ("given", "expected"), [(None, None), (90, 90.0), ("00:01:30", 90.0), ("100:00:00", 360000.0)]
)
def test_seconds(given, expected):
    assert seconds(given) == expected


@pytest.mark.parametrize("given", [0, -1, "00:00:00", "1:2", "x", math.nan, math.inf, True])
def test_seconds_refuses(given):
    with pytest.raises(ValueError):
        seconds(given)


# Choices that follow from others


@pytest.mark.parametrize(
    ("words", "data", "model"),
    [
        ("", "moons", "mlp"),
        ("data=rings", "rings", "mlp"),
        ("data=digits", "digits", "unet"),
        ("model=mlp", "moons", "mlp"),
        ("model=unet", "digits", "unet"),
        ("model=mine data=moons", "moons", "mine"),
        ("model=mine", "moons", "mine"),
        ("model=flat", "moons", "flat"),
        ("model=wide", "digits", "wide"),
        ("data=heart", "heart", "mlp"),
        ("data=heart model=unet", "heart", "unet"),
        ("data=faces", "faces", "unet"),
        ("data=ar1", "ar1", "unet_1d"),
        ("model=dit_1d", "ar1", "dit_1d"),
        ("model=residual_mlp", "moons", "residual_mlp"),
        ("data=table", "table", "residual_mlp"),
        ("data=table data.axes=2", "table", "unet_1d"),
        ("data=table model=mlp", "table", "mlp"),
        ("experiment=mine data=table", "table", "mine"),
        ("experiment=mine", "rings", "mine"),
        ("experiment=mine data=digits", "digits", "mine"),
    ],
)
def test_data_and_model_fit(fmdiff, calls, words, data, model):
    code, _, err = fmdiff("train", *words.split())
    choices = calls[0][1].choices
    assert (code, choices.data, choices.model) == (0, data, model)
    assert calls[0][1].name == f"{data}-{choices.path}-{model}"
    assert ("is not given: taking" in err) == (
        words
        in (
            "data=digits",
            "model=unet",
            "model=wide",
            "data=faces",
            "data=ar1",
            "model=dit_1d",
            "data=table",
            "data=table data.axes=2",
        )
    )


def test_mnist_if_found(fmdiff, calls, monkeypatch):
    monkeypatch.setattr("fmdiff.data.files.available", lambda name: name == "mnist")
    code, _, err = fmdiff("train", "model=unet")
    assert code == 0 and calls[0][1].choices.data == "mnist" and "data=mnist" in err


# Running


def test_cfg_is_what_the_run_writes(fmdiff, calls, tmp_path):
    words = ("train", "data=rings", "optim.lr=1e-4", "trainer.max_time=10:00:00")
    _, shown, _ = fmdiff(*words, "--cfg", "job", "--resolve")
    assert not calls and not any(tmp_path.iterdir())
    assert fmdiff(*words)[0] == 0
    folder = calls[0][2]
    assert (folder / "config.yaml").read_text() == shown
    assert (folder / "overrides").read_text().splitlines() == list(words[1:])
    assert OmegaConf.load(folder / "config.yaml") == calls[0][1]
    assert {
        "config.yaml",
        "overrides",
        "environment.json",
        "train.log",
        "last.ckpt",
        ".lock",
        "report.html",
    } == {path.name for path in folder.iterdir()}


def test_resuming_repeats_what_the_run_was_told(fmdiff, calls):
    assert fmdiff("train", "data=rings", "seed=3", "out=run")[0] == 0
    code, _, err = fmdiff("train", "resume=run", "trainer.max_steps=9")
    assert code == 0 and "trainer.max_steps: 8000 (saved) vs 9 (now)" in err
    assert (calls[1][1].data, calls[1][1].seed) == (calls[0][1].data, 3)
    code, _, err = fmdiff("train", "resume=true", "out=run", "seed=4")
    assert code == 2 and "run is a run of other settings: seed: 3 (saved) vs 4 (now)" in err
    assert len(calls) == 2


def test_the_same_sweep_again_resumes_its_jobs(fmdiff, calls):
    for _ in range(2):
        assert fmdiff("train", "-m", "seed=1,2", "out=s", "resume=last")[0] == 0
    assert [call[2] for call in calls[:2]] == [call[2] for call in calls[2:]]


def test_flags_may_stand_anywhere(fmdiff, calls):
    code, out, _ = fmdiff("train", "seed=3", "--cfg", "job", "data=rings", "-p", "data")
    assert code == 0 and "Rings" in out
    assert parse(["a=1", "-m", "b=2"])[1] == ["-m"]
    assert [key_of(o) for o in ("+a.b=1", "~c", "d@e=f", "++g=1")] == ["a.b", "c", "d", "g"]


@pytest.mark.parametrize("words", ["--hydra-help", "--info searchpath", "--cfg hydra"])
def test_hydra_flags(fmdiff, calls, tmp_path, words):
    code, _, err = fmdiff("train", *words.split())
    assert code == 0 and not calls and "Traceback" not in err
    assert not any(tmp_path.iterdir())


def test_info_has_no_folder(fmdiff, calls, tmp_path):
    assert fmdiff("info", "ckpt=x")[0] == 0
    assert calls[0][1].ckpt == "x" and not any(tmp_path.iterdir())


def test_openmp_spinning_is_bounded(fmdiff, calls, monkeypatch):
    monkeypatch.delenv("GOMP_SPINCOUNT")
    fmdiff("--version")
    assert os.environ["GOMP_SPINCOUNT"] == "20000"
    monkeypatch.delenv("GOMP_SPINCOUNT")
    monkeypatch.setenv("OMP_WAIT_POLICY", "passive")
    fmdiff("--version")
    assert "GOMP_SPINCOUNT" not in os.environ


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (FmdiffError("batch=7 is bad"), 2),
        (Diverged("loss is nan"), 3),
        (Interrupted("saved", signal.SIGTERM), 143),
        (Interrupted("saved", signal.SIGINT), 130),
        (KeyboardInterrupt(), 130),
        (BrokenPipeError(), 141),
        (Failed("no room"), 1),
        (OSError(errno.ENOSPC, "No space left on device"), 1),
        (MemoryError("no memory"), 1),
        (ZeroDivisionError("oops"), 1),
    ],
)
def test_exit_code(fmdiff, monkeypatch, tmp_path, error, code):
    raising(monkeypatch, error)
    given, _, err = fmdiff("train", "out=run")
    assert given == code
    assert err.count("Traceback") == isinstance(error, ZeroDivisionError)
    assert err.count(str(error) or "fmdiff") <= 1
    # a user error, and an end with nothing to save, leave nothing behind
    empty = code in (2, 141) or isinstance(error, KeyboardInterrupt)
    assert (tmp_path / "run").exists() != empty
    if isinstance(error, FmdiffError):
        assert err == f"fmdiff train: {error}\n"
    if isinstance(error, OSError | MemoryError) and not empty:
        assert "there is no checkpoint yet" in err and "this is a bug" not in err
    elif not empty:
        assert str(error) in (tmp_path / "run" / "train.log").read_text()


# Sweeps


def test_sweep(fmdiff, calls, tmp_path):
    code, out, _ = fmdiff("train", "-m", "data=moons,rings", "optim.lr=1e-3,1e-4", "out=s")
    assert code == 0
    assert [(cfg.choices.data, cfg.optim.lr) for _, cfg, _ in calls] == [
        ("moons", 1e-3), ("moons", 1e-4), ("rings", 1e-3), ("rings", 1e-4)
    ]  # fmt: skip
    assert [folder for _, _, folder in calls] == [tmp_path / "s" / str(job) for job in range(4)]
    table = out.splitlines()[-5:]
    assert table[0].split() == ["job", "result", "folder", "overrides"]
    assert all(" ok " in row for row in table[1:]) and "data=rings optim.lr=0.0001" in table[4]


def test_sweep_has_a_dated_folder(fmdiff, calls, tmp_path):
    assert fmdiff("train", "-m", "seed=1,2")[0] == 0
    (sweep,) = (tmp_path / "outputs" / calls[0][1].name).iterdir()
    assert [folder for _, _, folder in calls] == [sweep / "0", sweep / "1"]


def test_sweep_goes_on_after_a_failed_job(fmdiff, monkeypatch, tmp_path):
    errors = [ZeroDivisionError("oops"), Diverged("loss is nan"), None, FmdiffError("no")]

    def train(cfg, folder):
        if errors[cfg.seed]:
            raise errors[cfg.seed]

    monkeypatch.setitem(COMMANDS, "train", train)
    code, out, err = fmdiff("train", "-m", "seed=0,1,2,3", "out=s")
    assert code == 3 and err.count("Traceback") == 1
    results = [re.split("  +", row)[1] for row in out.splitlines()[-4:]]
    assert results == ["failed", "diverged", "ok", "user error"]
    jobs = [json.loads(line) for line in (tmp_path / "s" / "jobs.jsonl").read_text().splitlines()]
    assert [job[2] for job in jobs] == [1, 3, 0, 2]


def test_a_signal_ends_a_sweep(fmdiff, monkeypatch, tmp_path):
    raising(monkeypatch, Interrupted("saved", signal.SIGTERM))
    code, out, _ = fmdiff("train", "-m", "seed=0,1", "out=s")
    assert code == 143 and "interrupted" in out and not (tmp_path / "s" / "1").exists()


@pytest.mark.parametrize(
    "words",
    [
        "data=moons,nope",
        "seed=1,x",
        "lr=1,2",
        "data=moons,digits",
        "model=mlp,unet",
        "hydra.mode=X",
    ],
)
def test_an_error_in_any_job_stops_a_sweep_before_it_starts(fmdiff, calls, tmp_path, words):
    code, _, err = fmdiff("train", "-m", *words.split())
    assert code == 2 and err.count("\n") == 1 and not calls and not any(tmp_path.iterdir())


def test_no_sweep_under_torchrun(fmdiff, calls, monkeypatch, tmp_path):
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("RANK", "0")
    code, _, err = fmdiff("train", "-m", "seed=1,2")
    assert code == 2 and "torchrun" in err and not any(tmp_path.iterdir())


# The other processes of a run


def test_worker_gets_the_same_config(fmdiff, calls):
    assert fmdiff("train", "seed=5")[0] == 0
    _, cfg, folder = calls[0]
    before = sorted(folder.iterdir())
    assert fmdiff("train", "--worker", str(folder), own=False)[0] == 0
    assert calls[1] == ("train", cfg, folder) and sorted(folder.iterdir()) == before


def test_worker_leaves_what_all_ranks_know_to_rank_0(fmdiff, calls, monkeypatch):
    fmdiff("train", "out=run")
    raising(monkeypatch, Diverged("loss is nan"))
    assert fmdiff("train", "--worker", "run", own=False) == (0, "", "")
    raising(monkeypatch, FmdiffError("no such device"))
    codes = []  # a worker that fails leaves at once
    monkeypatch.setattr("os._exit", codes.append)
    _, _, message = fmdiff("train", "--worker", "run", own=False)
    assert codes == [2] and message == "fmdiff train: no such device\n"


# Completion


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("fmdiff ", set(COMMANDS)),
        ("fmdiff t", {"train"}),
        ("fmdiff sample data=m", {"data=masked", "data=mnist", "data=moons"}),
        ("/opt/train/fmdiff train data=moo", {"data=moons"}),
        ("fmdiff train --config-dir CONFIGS model=mi", {"model=mine"}),
        ("fmdiff train --config-dir CONFIGS trainer.max_s", {"trainer.max_steps="}),
        ("fmdiff train --config-dir CONFIGS name=", set()),
        ("fmdiff nope x", set()),
    ],
)
@pytest.mark.parametrize("shell", ["bash", "fish"])
def test_completion(fmdiff, monkeypatch, user_configs, line, expected, shell):
    line = line.replace("CONFIGS", str(user_configs))
    monkeypatch.setenv("COMP_LINE", line)
    monkeypatch.setenv("COMP_POINT", str(len(line)))
    code, out, err = fmdiff("-sc", f"query={shell}", own=False)
    assert (code, set(out.split()), err) == (0, expected, "")


def test_completion_can_be_installed(fmdiff):
    code, out, _ = fmdiff("-sc", "install=bash", own=False)
    assert code == 0 and "hydra_bash_completion" in out
