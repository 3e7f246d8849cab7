"""docs/extending.md, word for word: every file and command in it, and every slip in its table."""

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

import fmdiff

TEXT = (Path(fmdiff.__file__).parents[1] / "docs" / "extending.md").read_text()
FILES = dict(re.findall(r"^`([\w./]+)`:\n\n```(?:python|yaml)\n(.*?)^```$", TEXT, re.M | re.S))
BLOCKS = [block.splitlines() for block in re.findall(r"^```sh\n(.*?)^```$", TEXT, re.M | re.S)]
NAMES = ["path", "network", "map", "solver", "data", "metric", "objective"]
SLIPS = dict(re.findall(r"^\| ([^|]+) \| `([^|]+)` \|$", TEXT, re.M))
BRIEF = {
    "train": "trainer.max_steps=20 trainer.warmup=0 trainer.logger=csv trainer.progress=false",
    "sample": "n=50 steps=3",
    "evaluate": "n=50",
}
PLAIN = "device=cpu threads=1"

TRAIN = "train --config-dir configs out=run"
TRUST = "trust=[mine.]"
# each slip in the table: the file, what stands in it and what one writes instead, and the command
CASES = {
    "a path without its base class": (
        "mine/paths.py",
        "(Path)",
        "",
        f"{TRAIN} path=exponential data=moons",
    ),
    "a path without `beta`": (
        "mine/paths.py",
        "def beta",
        "def gamma",
        f"{TRAIN} path=exponential data=moons",
    ),
    "a path that runs from data to noise": (
        "mine/paths.py",
        "return torch.expm1",
        "return 1 - torch.expm1",
        f"{TRAIN} path=exponential data=moons",
    ),
    "a path that returns a number": (
        "mine/paths.py",
        "1 - self.alpha(t)",
        "0.5",
        f"{TRAIN} path=exponential data=moons",
    ),
    "a path in another precision than t": (
        "mine/paths.py",
        "1 - self.alpha(t)",
        "1 - self.alpha(t).float()",
        f"{TRAIN} path=exponential data=moons",
    ),
    "a network without its base class": (
        "mine/networks.py",
        FILES["mine/networks.py"].partition("class ")[2],
        "Tanh:\n    def __init__(self, shape, classes, width):\n        pass\n",
        f"{TRAIN} model=tanh data=moons",
    ),
    "a network without `forward`": (
        "mine/networks.py",
        "def forward",
        "def call",
        f"{TRAIN} model=tanh data=moons",
    ),
    "a network that takes no `classes`": (
        "mine/networks.py",
        "classes: int, width",
        "width",
        f"{TRAIN} model=tanh data=moons",
    ),
    "a network without a second time as a flow map": (
        "mine/networks.py",
        "",
        "",
        f"{TRAIN} model=tanh objective=lsd data=moons",
    ),
    "a network whose output has another shape": (
        "mine/networks.py",
        "nn.Linear(width, shape[0])",
        "nn.Linear(width, 1)",
        f"{TRAIN} model=tanh data=moons",
    ),
    "a checkpoint of a network of one's own without `trust=`": (
        "mine/networks.py",
        "",
        "",
        "sample ckpt=trained out=samples",
    ),
    "a solver without its base class": (
        "mine/solvers.py",
        "(Solver)",
        "",
        "sample --config-dir configs model=exact data=gmm4 solver=ralston out=samples",
    ),
    "a solver without `step`": (
        "mine/solvers.py",
        "def step",
        "def stride",
        "sample --config-dir configs model=exact data=gmm4 solver=ralston out=samples",
    ),
    "a step that returns x alone": (
        "mine/solvers.py",
        "/ 4, state",
        "/ 4",
        "sample --config-dir configs model=exact data=gmm4 solver=ralston out=samples",
    ),
    "a data set without its base class": (
        "mine/data.py",
        "(Toy)",
        "",
        f"{TRAIN} data=annulus",
    ),
    "a data set without `draw`": (
        "mine/data.py",
        "def draw",
        "def points",
        f"{TRAIN} data=annulus",
    ),
    "points of another dimension": (
        "mine/data.py",
        "radius * angle.sin()]",
        "radius, angle]",
        f"{TRAIN} data=annulus",
    ),
    "points that are no tensor": (
        "mine/data.py",
        "dim=1)\n\n",
        "dim=1).numpy()\n\n",
        f"{TRAIN} data=annulus",
    ),
    "features without their base class": (
        "mine/features.py",
        "(Features)",
        "",
        "evaluate --config-dir configs model=data data=digits features=blocks out=judged",
    ),
    "features without `dimension`": (
        "mine/features.py",
        'name, distance, dimension = "blocks", "fd_blocks", 16',
        'name, distance = "blocks", "fd_blocks"',
        "evaluate --config-dir configs model=data data=digits features=blocks out=judged",
    ),
    "features of another number": (
        "mine/features.py",
        ", 4).flatten(1)",
        ", 3).flatten(1)",
        "evaluate --config-dir configs model=data data=digits features=blocks out=judged",
    ),
    "an objective without its base class": (
        "mine/objectives.py",
        FILES["mine/objectives.py"].partition("class ")[2].partition("def __call__")[0],
        "Angle:\n    def __init__(self, **run) -> None:\n        pass\n\n    ",
        f"{TRAIN} objective=angle data=moons",
    ),
    "an objective without `__call__`": (
        "mine/objectives.py",
        "def __call__",
        "def loss",
        f"{TRAIN} objective=angle data=moons",
    ),
    "a loss that is one number": (
        "mine/objectives.py",
        ".flatten(1).mean(1) + self.weight * angle",
        ".mean()",
        f"{TRAIN} objective=angle data=moons",
    ),
    "a key that the class does not take": (
        "configs/path/exponential.yaml",
        "rate",
        "speed",
        f"{TRAIN} path=exponential data=moons",
    ),
    "a class that is not where `_target_` says": (
        "configs/path/exponential.yaml",
        "mine.paths",
        "mine.path",
        f"{TRAIN} path=exponential data=moons",
    ),
}


@pytest.fixture
def folder(command, tmp_path, monkeypatch):
    """The working folder of the page, in which `command` runs; nothing of it stays imported."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    for name, content in FILES.items():
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content)
    yield tmp_path
    for name in [name for name in sys.modules if name.partition(".")[0] == "mine"]:
        del sys.modules[name]


def words_of(line):
    """The words of a command line of the page, made brief."""
    words = shlex.split(line)
    words = words[1:] if words[0] == "fmdiff" else words
    return [*words, *BRIEF[words[0]].split(), *PLAIN.split()]


def test_every_part_has_an_example_of_at_most_15_lines():
    assert len(BLOCKS) == len(NAMES) and len(FILES) == 2 * len(NAMES)
    for name, content in FILES.items():
        assert len(content.splitlines()) <= 15, name


@pytest.mark.parametrize("block", BLOCKS, ids=NAMES)
def test_every_example_runs_as_it_stands(command, folder, block):
    for line in block:
        assert command(*words_of(line)) == 0, line


def test_the_installed_command_finds_the_classes_too(folder):
    program = Path(sys.executable).with_name("fmdiff")
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
    words = [program, *words_of(BLOCKS[NAMES.index("network")][0])]
    ran = subprocess.run(words, cwd=folder, env=environment, capture_output=True, text=True)
    assert ran.returncode == 0, ran.stderr
    assert (folder / "runs" / "network" / "last.ckpt").exists()


def test_every_slip_of_the_table_is_tried():
    assert list(SLIPS) == list(CASES)


@pytest.mark.parametrize("slip", CASES)
def test_a_slip_ends_in_the_sentence_of_the_table(command, folder, slip, capfd):
    name, old, new, line = CASES[slip]
    if "ckpt=trained" in line:
        assert command(*words_of(f"{TRAIN} model=tanh data=moons out=trained")) == 0
    content = (folder / name).read_text()
    assert old in content
    (folder / name).write_text(content.replace(old, new))
    capfd.readouterr()
    code = command(*words_of(line))
    error = capfd.readouterr().err
    assert "Traceback" not in error and code == 2, error
    sentence = error.strip().splitlines()[-1]
    assert sentence.startswith(f"fmdiff {line.split()[0]}: ")
    pattern = ".*".join(map(re.escape, SLIPS[slip].split("...")))
    assert re.search(pattern, sentence), sentence
    assert not list(folder.glob("run/*.ckpt"))


def test_a_velocity_network_of_the_page_becomes_a_flow_map(command, folder, capfd):
    assert command(*words_of(f"{TRAIN} model=tanh data=moons out=runs/network")) == 0
    become = f"{TRAIN} model=tanh_map objective=lsd data=moons init=runs/network"
    assert command(*words_of(become)) == 0
    assert "its network learns the end of a jump" in capfd.readouterr().err


def test_a_slip_that_is_mended_runs_in_the_same_folder(command, folder):
    name, old, new, line = CASES["a network whose output has another shape"]
    content = (folder / name).read_text()
    (folder / name).write_text(content.replace(old, new))
    assert command(*words_of(line)) == 2
    (folder / name).write_text(content)
    for module in ("mine.networks", "mine"):
        del sys.modules[module]
    assert command(*words_of(line)) == 0
