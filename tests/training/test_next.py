"""The line printed after training names a command that works."""

import re
import shlex
import sys

import pytest
from conftest import PLAIN, POINTS

NETWORK = """
import torch

class Net(torch.nn.Module):
    def __init__(self, shape, classes):
        super().__init__()
        self.linear = torch.nn.Linear(*shape, *shape)

    def forward(self, x_t, t, y=None, s=None):
        return self.linear(x_t)
"""


@pytest.fixture
def after(command, capfd):
    """Trains; the words of the command printed next, without `fmdiff`."""

    def train(*words):
        capfd.readouterr()
        assert command("train", *PLAIN, "trainer.max_steps=1", *words) == 0
        line = re.search(r"1 steps done; next: (.*)", capfd.readouterr().err)[1]
        program, *following = shlex.split(line)
        assert program == "fmdiff"
        return following

    return train


def test_a_run_is_sampled(after, command, tmp_path):
    following = after(*POINTS, f"out={tmp_path / 'my runs'}")
    assert following == ["sample", f'ckpt="{tmp_path / "my runs"}"']
    assert command(*following, "n=4", "device=cpu") == 0


@pytest.mark.parametrize("place", [".", "configs"])
def test_a_network_of_the_user_is_sampled_with_trust(after, command, tmp_path, place):
    """Its class lies in the working folder or beside its YAML."""
    package = f"own_{'beside' if place == 'configs' else 'here'}"
    (tmp_path / "configs" / "model").mkdir(parents=True)
    (tmp_path / place / package).mkdir()
    (tmp_path / place / package / "nets.py").write_text(NETWORK)
    yaml = tmp_path / "configs" / "model" / "own.yaml"
    yaml.write_text(f"_target_: {package}.nets.Net\n")
    following = after("--config-dir=configs", "model=own", "data=moons", "out=run")
    assert following[:3] == ["sample", "ckpt=run", f"trust=[{package}.nets.]"]
    assert following[3:] == [f"--config-dir={tmp_path / 'configs'}"] * (place == "configs")
    for name in [name for name in sys.modules if name.startswith(package)]:
        del sys.modules[name]
    assert command(*following, "n=4", "device=cpu") == 0


def test_a_classifier_leads_another_model(after, command):
    classes = ("data.conditional=true", "data.batch_size=64")
    model = after("data=moons", "model.hidden=16", *classes, "out=model")[-1]
    words = ("data=moons", "model=mlp_classifier", "objective=classification", *classes)
    following = after(*words, "out=classifier")
    assert following[:3] == ["sample", "ckpt=MODEL", "guidance=classifier"]
    assert following[3:] == ["guidance.ckpt=classifier"]
    following[1] = model
    assert command(*following, "n=4", "device=cpu") == 0
