"""`fmdiff zoo`, and zoo:NAME in the options of every command."""

import json

import numpy as np
import pytest
from conftest import IMAGES, POINTS
from omegaconf import OmegaConf

from fmdiff.runs import checkpoint, zoo

MODELS = zoo.models()


def package():
    """The package's files and when they were last written."""
    return {
        p: p.stat().st_mtime_ns
        for p in zoo.FOLDER.parent.rglob("*")
        if "__pycache__" not in str(p)
    }


def test_the_list_says_what_zoo_json_says(command, capfd):
    assert command("zoo") == 0
    out = capfd.readouterr().out
    for name, about in MODELS.items():
        part = next(part for part in out.split("\n\n") if part.startswith(f"zoo:{name}: "))
        for text in (about["what"], about["sha256"], about["recipe"], about["commit"]):
            assert text in part
        assert f"{about['parameters']:,}" in part and f"{about['seconds'] / 60:.1f} min" in part
        for row in about["figures"]:
            ends = ", ".join(f"{end:.4g}" for end in row["interval"])
            assert f"{row['metric']} {row['value']:.4g}" + (f" [{ends}]" if ends else "") in part
    assert command("zoo", "name=digits") == 0
    part = next(part for part in out.split("\n\n") if part.startswith("zoo:digits: "))
    assert capfd.readouterr().out.rstrip() == part.rstrip()


def test_an_unknown_name_ends_in_a_sentence(command, capfd, tmp_path):
    for words in (("zoo", "name=digit"), ("sample", "ckpt=zoo:digit")):
        assert command(*words) == 2
        err = capfd.readouterr().err
        assert "digit is no model of the zoo; did you mean 'digits'? Choose from: " in err
        assert err.count("\n") == 1
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("ckpt", ["zoo:digits", str(zoo.FOLDER / "digits.safetensors")])
def test_samples_lie_in_outputs_and_not_in_the_package(command, tmp_path, ckpt):
    before = package()
    assert command("sample", f"ckpt={ckpt}", "n=4", "steps=2", "device=cpu") == 0
    (folder,) = (tmp_path / "outputs" / "zoo-digits").iterdir()
    assert (folder / "grid.png").is_file() and (folder / "report.html").is_file()
    assert OmegaConf.load(folder / "config.yaml").ckpt == "zoo:digits"
    about = json.loads((folder / "sample.json").read_text())["checkpoint"]
    assert (about["path"], about["step"]) == ("zoo:digits", MODELS["digits"]["step"])
    assert package() == before


def test_a_model_has_its_own_number_of_steps(command, capfd):
    words = ("ckpt=zoo:mnist", "n=1", "device=cpu")
    assert command("sample", *words) == 0
    steps = MODELS["mnist"]["steps"]
    assert steps < 28 and f"{steps} steps" in capfd.readouterr().out
    assert command("sample", *words, "steps=1") == 0
    assert " 1 step," in capfd.readouterr().out
    assert command("sample", *words, "solver=euler") == 0
    assert " 28 steps," in capfd.readouterr().out


@pytest.mark.parametrize(
    "words",
    [
        "evaluate ckpt=zoo:moons metrics=[sw2] n=100 steps=2",
        "likelihood ckpt=zoo:moons n=4 steps=2",
        "invert ckpt=zoo:moons n=4 steps=[2]",
    ],
)
def test_other_commands_take_it(command, tmp_path, words):
    assert command(*words.split(), "device=cpu") == 0
    (folder,) = (tmp_path / "outputs" / "zoo-moons").iterdir()
    assert OmegaConf.load(folder / "config.yaml").ckpt == "zoo:moons"


def test_a_result_is_repeated(command, tmp_path, capfd):
    words = ("ckpt=zoo:moons", "metrics=[off_support]", "n=500", "steps=4", "device=cpu", "out=a")
    assert command("evaluate", *words) == 0
    capfd.readouterr()
    assert command("evaluate", "result=a/results.json", "device=cpu", "out=b") == 0
    out = capfd.readouterr().out
    a, b = (json.loads((tmp_path / name / "results.json").read_text()) for name in "ab")
    assert a["metrics"] == b["metrics"] and " then, " in out and "note: ckpt" not in out


def test_a_guide_may_come_from_it(command, tmp_path):
    words = ("n=2", "steps=2", "device=cpu", "out=s")
    guided = ("guidance=autoguidance", "guidance.ckpt=zoo:digits", "guidance.weights=ema")
    assert command("sample", "ckpt=zoo:digits", *guided, *words) == 0
    assert np.load(tmp_path / "s" / "samples.npz")["arr_0"].shape == (2, 8, 8, 1)


def test_a_run_starts_from_it(train, tmp_path):
    stored = checkpoint.read(zoo.FOLDER / "moons.safetensors")
    spec = stored["spec"]["model"]
    model = [f"model.{key}={value}" for key, value in spec.items() if key != "_target_"]
    words = ("data=moons", *model, "trainer.max_steps=1", "optim.lr=1e-12", "init=zoo:moons")
    weights = train(tmp_path / "run", *words)["weights"]["raw"]
    (state,) = stored["weights"].values()
    for key, value in state.items():
        assert np.allclose(weights[key], value, atol=1e-9)


def test_it_teaches_a_map_and_the_run_is_resumed(train, tmp_path):
    words = (*IMAGES, "objective=distill", "objective.teacher=zoo:digits")
    content = train(tmp_path / "run", *words, "trainer.max_steps=1")
    assert content["training"]["teacher"]["file"] == str(zoo.FOLDER / "digits.safetensors")
    assert content["spec"]["objective"]["teacher"] == "zoo:digits"
    content = train(tmp_path / "run", *words, "trainer.max_steps=2", "resume=true")
    assert content["step"] == 2


def test_its_flow_makes_pairs(train, tmp_path):
    words = ("coupling=reflow", "coupling.ckpt=zoo:moons", "coupling.n=64", "coupling.steps=2")
    assert train(tmp_path / "run", *POINTS, *words, "trainer.max_steps=1")["step"] == 1


@pytest.mark.parametrize(
    ("line", "shell", "expected"),
    [
        ("fmdiff sample ckpt=z", "bash", {f"ckpt=zoo:{name}" for name in MODELS}),
        ("fmdiff sample ckpt=zoo:mn", "bash", {"mnist", "mnist_map"}),
        ("fmdiff train init=zoo:mn", "fish", {"init=zoo:mnist", "init=zoo:mnist_map"}),
        ("fmdiff train objective.teacher=zoo:d", "fish", {"objective.teacher=zoo:digits"}),
    ],
)
def test_a_name_is_completed(command, capfd, monkeypatch, line, shell, expected):
    monkeypatch.setenv("COMP_LINE", line)
    monkeypatch.setenv("COMP_POINT", str(len(line)))
    assert command("-sc", f"query={shell}") == 0
    assert set(capfd.readouterr().out.split()) == expected
