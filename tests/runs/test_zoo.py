"""The models of the zoo: their files, what zoo.json says of them, and how they are named."""

import hashlib
import json
import shutil

import numpy as np
import pytest
import torch
from safetensors import safe_open

import fmdiff
from fmdiff.build import named
from fmdiff.errors import FmdiffError
from fmdiff.runs import checkpoint, safetensors, zoo
from fmdiff.runs.content import Checkpoint
from fmdiff.runs.find import find

MODELS = zoo.models()


@pytest.fixture
def copy(tmp_path, monkeypatch):
    """A copy of the zoo that a test may change."""
    folder = shutil.copytree(zoo.FOLDER, tmp_path / "zoo")
    monkeypatch.setattr(zoo, "FOLDER", folder)
    return folder


@pytest.mark.parametrize("name", MODELS)
def test_zoo_json_describes_the_file(name):
    about, path = MODELS[name], zoo.FOLDER / f"{name}.safetensors"
    data = path.read_bytes()
    assert (len(data), hashlib.sha256(data).hexdigest()) == (about["bytes"], about["sha256"])
    with safe_open(path, "numpy") as file:
        stored = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
        metadata = json.loads(file.metadata()["fmdiff"])
    assert {tensor.dtype for tensor in stored.values()} == {np.dtype("float16")}
    assert (metadata["step"], metadata["weights"]) == (about["step"], about["weights"])
    assert "/" not in json.dumps(metadata), "a path of the machine that trained it"
    field = fmdiff.load(f"zoo:{name}")
    weights = field.net.state_dict()
    assert sum(p.numel() for p in field.net.parameters()) == about["parameters"]
    for key, tensor in stored.items():
        assert weights[key].dtype == torch.float32
        assert np.array_equal(weights[key].numpy(), tensor.astype(np.float32))


def test_the_zoo_is_small_and_holds_nothing_else():
    names = {path.name for path in zoo.FOLDER.iterdir()}
    assert names == {"zoo.json", *(f"{name}.safetensors" for name in MODELS)}
    assert sum(about["bytes"] for about in MODELS.values()) < 25e6


@pytest.mark.parametrize("name", MODELS)
def test_half_precision_does_not_move_the_figures(name):
    rows = MODELS[name]["figures"]
    assert any(row["float32"] is not None for row in rows)
    for row in rows:
        low, high = row["interval"] or (0, row["value"] / 10)
        assert 0 <= low < high
        if row["float32"] is not None:
            assert abs(row["value"] - row["float32"]) < 0.2 * (high - low), row


SHARES = {
    name: row["value"]
    for name, about in MODELS.items()
    for row in about["figures"]
    if row["metric"] == "off_support"
}


@pytest.mark.parametrize("name", SHARES)
def test_the_figure_of_points_is_reached_again(name):
    """The share off the data's support, of 10,000 samples of a seed that zoo.json has not used."""
    field = fmdiff.load(f"zoo:{name}")
    x = fmdiff.generate(field, n=10_000, solver="heun", steps=28, seed=99).x
    off = named("data", name).off_support(x).float().mean().item()
    error = (SHARES[name] * (1 - SHARES[name]) / 10_000) ** 0.5
    assert off == pytest.approx(SHARES[name], abs=4 * error)


def test_an_unknown_name_gets_the_valid_ones():
    with pytest.raises(FmdiffError) as error:
        fmdiff.load("zoo:mnst")
    choices = ", ".join(sorted(MODELS))
    expected = (
        f"ckpt=zoo:mnst is no model of the zoo; did you mean 'mnist'? Choose from: {choices}"
    )
    assert str(error.value) == expected
    with pytest.raises(FmdiffError, match="init=zoo: is no model of the zoo; choose from: "):
        find("zoo:", option="init")


def test_a_file_that_is_not_the_one_described_is_refused(copy):
    path = copy / "digits.safetensors"
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    with pytest.raises(FmdiffError, match=r"ckpt=zoo:digits: .* its SHA-256 is .* install fmdiff"):
        fmdiff.load("zoo:digits")
    path.unlink()
    with pytest.raises(FmdiffError, match=r"digits\.safetensors cannot be read: No such file"):
        fmdiff.load("zoo:digits")


def test_a_file_has_one_spelling(copy, tmp_path):
    (tmp_path / "link").symlink_to(copy)
    assert zoo.spelling(tmp_path / "link" / "moons.safetensors") == "zoo:moons"
    assert zoo.spelling(tmp_path / "run" / "last.ckpt") == str(tmp_path / "run" / "last.ckpt")


def test_half_precision_is_read_back_rounded(moons_run, command, tmp_path):
    for name, words in {"single": (), "half": ("half=true",)}.items():
        file = f"export={name}.safetensors"
        assert command("info", f"ckpt={moons_run}", file, *words) == 0
    single, half = (checkpoint.read(f"{name}.safetensors") for name in ("single", "half"))
    for key, value in single["weights"]["0.9999"].items():
        assert torch.equal(half["weights"]["0.9999"][key], value.half().float())
    numbers = sum(value.numel() for value in single["weights"]["0.9999"].values())
    sizes = [(tmp_path / f"{name}.safetensors").stat().st_size for name in ("single", "half")]
    assert sizes[0] - sizes[1] == pytest.approx(2 * numbers, rel=0.02)
    assert fmdiff.generate(fmdiff.load("half.safetensors"), n=8, steps=4).x.dtype == torch.float32


def test_a_weight_beyond_half_precision_is_refused(moons_run, tmp_path):
    content = Checkpoint.of(checkpoint.read(find(moons_run)))
    state = {"big": torch.tensor([1.0, 7e4])}
    with pytest.raises(FmdiffError, match="half=true: big holds numbers beyond 65504"):
        safetensors.write(tmp_path / "f.safetensors", content, "raw", state, False, half=True)
    assert not list(tmp_path.iterdir())
