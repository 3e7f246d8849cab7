"""A user's own classes by `_target_`: where they are looked for, and what a slip is told by."""

import json
import sys

import pytest
from conftest import PLAIN, POINTS

from fmdiff.build import importable, kind, locate, own_modules
from fmdiff.errors import FmdiffError

NET = """
from torch import nn

class Net(nn.Module):
    def __init__(self, shape, classes, width=8):
        super().__init__()
        {init}
        self.layers = nn.Sequential(nn.Linear(*shape, width), nn.Linear(width, *shape))

    def forward(self, x_t, t, y=None):
        {forward}
        return self.layers(x_t)

def net(shape, classes) -> Net:
    return Net(shape, classes)
"""
WORDS = (*PLAIN, "data=moons", "trainer.max_steps=2", "trainer.warmup=0", "out=run")


@pytest.fixture
def write(tmp_path):
    """Writes a module NAME of the user's, with YAML files for its class Net beside it."""
    names = []

    def write(name, init="", forward="", text=NET, folder=tmp_path):
        names.append(name.partition(".")[0])
        file = folder.joinpath(*name.split(".")).with_suffix(".py")
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text.format(init=init, forward=forward) if text == NET else text)
        yaml = tmp_path / "conf" / "model" / "own.yaml"
        yaml.parent.mkdir(parents=True, exist_ok=True)
        yaml.write_text(f"# A network of two layers\n_target_: {name}.Net\nwidth: 8  # units\n")
        return file

    yield write
    for module in [m for m in sys.modules if m.partition(".")[0] in names]:
        del sys.modules[module]


def run(command, *words):
    return command("train", "--config-dir=conf", "model=own", *WORDS, *words)


@pytest.mark.parametrize("place", ["", "conf"])
def test_a_package_of_the_user_is_found(command, write, tmp_path, place):
    write(f"ownpkg{place}.nets", folder=tmp_path / place)
    before = sys.path[:]
    assert run(command) == 0 and sys.path == before
    assert (
        command("sample", "--config-dir=conf", "ckpt=run", "n=4", f"trust=[ownpkg{place}.]") == 0
    )


@pytest.mark.slow
def test_other_processes_of_the_run_find_it_too(command, write, tmp_path):
    write("ranked", folder=tmp_path / "conf")
    assert run(command, "trainer.devices=2", "data.batch_size=64") == 0


def test_jobs_of_a_sweep_find_it(command, write, tmp_path):
    write("swept", folder=tmp_path / "conf")
    assert command("train", "-m", "--config-dir=conf", "model=own", *WORDS[:-1], "seed=1,2") == 0


def test_what_is_installed_comes_first(tmp_path, monkeypatch):
    (tmp_path / "json.py").write_text("raise RuntimeError")
    (tmp_path / "fmdiff").mkdir()
    (tmp_path / "fmdiff" / "path.py").write_text("raise RuntimeError")
    monkeypatch.delitem(sys.modules, "json")
    with importable(tmp_path):
        assert sys.path[-1] == str(tmp_path)
        assert locate("json.JSONDecoder", None).__module__ == json.JSONDecoder.__module__
    assert str(tmp_path) not in sys.path


BROKEN = "import math\n\nvalue = math.{}\n\nclass Net: ...\n"
SLIPS = [
    ("slip_a", NET, ("model._target_=slip_x.Net",), "there is no module 'slip_x' in"),
    ("slip_b", NET, ("model._target_=slip_b.Nett",), "has no 'Nett'; did you mean 'Net'?"),
    ("slip_c", NET, ("model._target_=slip_c.sub.Net",), "there is no module 'slip_c.sub' in"),
    ("slip_d", "import nope_nope\n", (), "slip_d.py, line 1: ModuleNotFoundError: No module"),
    ("slip_e", "x = 1\nclass Net(:\n", (), "slip_e.py, line 2: SyntaxError: invalid syntax"),
    ("slip_f", BROKEN.format("nope"), (), "slip_f.py, line 3: AttributeError: module 'math'"),
    ("slip_g", "import sys\n\nsys.exit(3)\n", (), "slip_g.py, line 3: SystemExit: 3"),
    ("slip_h", NET, ("+model.depth=3",), "slip_h.Net: Net.__init__() got an unexpected keyword"),
    ("slip_i", NET.replace("width=8", "width=8, *, depth"), (), "required keyword-only argument"),
    ("slip_j", "Net = 3\n", (), "_target_='slip_j.Net' is neither a class nor a function"),
    ("slip_k", NET, ("model._target_=Net",), "is not a public dotted name"),
]


@pytest.mark.parametrize(("name", "text", "words", "sentence"), SLIPS, ids=lambda v: str(v)[:12])
def test_a_slip_ends_in_one_sentence(command, write, capfd, tmp_path, name, text, words, sentence):
    write(name, text=text)
    assert run(command, *words) == 2
    error = capfd.readouterr().err
    assert error.count("\n") == 1 and sentence in error, error
    if "there is no module" in sentence:
        assert f"{tmp_path}" in error and f"{tmp_path}/conf" in error
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("name", "init", "forward", "line"),
    [("bug_a", "len(3)", "", 7), ("bug_b", "", "x_t.nope", 11)],
)
def test_a_bug_in_ones_own_code_is_told_apart(command, write, capfd, name, init, forward, line):
    file = write(name, init, forward)
    assert run(command) == 1
    error = capfd.readouterr().err
    assert f"fmdiff train: an error in your own code, {file}, line {line}" in error
    assert "this is a bug" not in error and "Traceback" in error


def test_help_of_an_own_choice(command, write, capfd):
    write("helped")
    assert command("train", "--config-dir=conf", "model=own", "--help") == 0
    out = capfd.readouterr().out
    assert out == "model=own: A network of two layers\n  model.width=8  units\n"


def test_the_class_that_a_target_makes(write, tmp_path):
    write("kinds", folder=tmp_path)
    with importable(tmp_path):
        net = kind("kinds.Net")
        assert kind("kinds.net") is net
        assert kind("fmdiff.exact.exact") is locate("fmdiff.exact.Mixture")
        assert kind("fmdiff.build.named") is object and kind("builtins.len") is object
        tree = {"a": {"_target_": "kinds.Net"}, "b": [{"_target_": "fmdiff.path.VP"}], "c": 1}
        assert own_modules(tree) == ["kinds."]
        with pytest.raises(FmdiffError, match="trust"):
            locate("kinds.Net", ())
    assert POINTS
