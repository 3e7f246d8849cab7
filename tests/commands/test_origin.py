"""Figures of a grid that goes on belong to the model, reference and settings they came from."""

import json
import os
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import POINTS, forget_modules
from PIL import Image

from fmdiff.runs import checkpoint

CPU = ("device=cpu", "threads=1")
GRID = ("grid.nfe=[2,4]", "metrics=[sw2]", "n=300", *CPU)


def report(folder="judged"):
    return json.loads(Path(folder, "results.json").read_text())


def figures(folder="judged"):
    return [row["metrics"]["sw2"]["value"] for row in report(folder)["grid"]]


@pytest.fixture(scope="session")
def two_models(tmp_path_factory):
    """The files of two models of one run: hardly trained, and other weights at a later step."""
    from conftest import _trained

    folder = tmp_path_factory.mktemp("two")
    run = _trained(folder / "run", *POINTS, "trainer.max_steps=5")
    first = run / "0000005.ckpt"
    content = checkpoint.read(first)
    for state in content["weights"].values():
        for value in state.values():
            value.mul_(1.5) if value.is_floating_point() else None
    checkpoint.write(folder / "later.ckpt", content | {"step": 400})
    return first, folder / "later.ckpt"


@pytest.mark.parametrize("name", ["best.ckpt", "export.safetensors"])
def test_a_grid_that_goes_on_is_of_the_weights_that_its_file_holds(
    command, two_models, capfd, tmp_path, name
):
    """Training goes on and overwrites best.ckpt, or an export, under the same name."""
    first, later = two_models

    def put(source):
        if name.endswith(".ckpt"):
            shutil.copy(source, tmp_path / name)
        else:
            words = (f"ckpt={source}", f"export={tmp_path / name}", "overwrite=true")
            assert command("info", *words[:2]) == 0

    put(first)
    words = ("evaluate", f"ckpt={name}", *GRID)
    assert command(*words, "out=judged") == 0
    before = figures()
    assert command(*words, "out=judged") == 0 and figures() == before
    assert "computed anew" not in capfd.readouterr().out
    (tmp_path / name).unlink()
    put(later)
    assert command(*words, "out=judged") == 0
    assert "judged/cells.json holds figures of another model: all are" in capfd.readouterr().out
    assert command(*words, "out=fresh") == 0
    assert figures() == figures("fresh") != before
    about = report()["checkpoint"]
    assert about["step"] == 400 and re.fullmatch("[0-9a-f]{64}", about["sha256"])


@pytest.mark.parametrize("change", ["n=200", "seed=5", "repeats=2", "weights=raw", "solver=euler"])
def test_a_grid_whose_config_is_gone_is_of_its_settings(command, two_models, tmp_path, change):
    """Without config.yaml nothing is compared before the command starts."""
    words = ("evaluate", f"ckpt={two_models[0]}", *GRID)
    assert command(*words, "out=judged") == 0
    (tmp_path / "judged/config.yaml").unlink()
    kept = [word for word in words if word.partition("=")[0] != change.partition("=")[0]]
    assert command(*kept, change, "out=judged") == 0
    assert command(*kept, change, "out=fresh") == 0
    assert report()["grid"][0]["metrics"] == report("fresh")["grid"][0]["metrics"]


def as_before(path, write):
    """Write a file again, with the size and times that it had."""
    before = path.stat()
    write()
    assert path.stat().st_size == before.st_size
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))


def test_a_reference_of_the_same_name_size_and_time_is_read_again(command, two_models, capfd):
    path = Path("truth.npz")
    points = np.random.default_rng(0).normal(size=(300, 2))
    np.savez(path, arr_0=points)
    words = ("evaluate", f"ckpt={two_models[0]}", *GRID, "against=truth.npz", "out=judged")
    assert command(*words) == 0
    before = figures()
    as_before(path, lambda: np.savez(path, arr_0=points + 9))
    assert command(*words) == 0
    assert min(figures()) > max(before) + 5
    assert "holds figures of another reference: all are" in capfd.readouterr().out


def test_a_folder_of_pictures_with_another_content_is_another_reference(command, digits_run):
    """The features of its pictures are cached, by their pixels."""
    draw = np.random.default_rng(0)

    def picture(low, high):
        Image.fromarray(draw.integers(low, high, (8, 8), dtype=np.uint8)).save("real/3.bmp")

    os.mkdir("real")
    for i in range(6):
        Image.fromarray(draw.integers(0, 99, (8, 8), dtype=np.uint8)).save(f"real/{i}.bmp")
    words = (f"ckpt={digits_run}", "against=real", "features=blocks", "metrics=[fid]", *CPU)
    words = ("evaluate", own_features("blocks"), *words, "grid.steps=[1,2]", "n=8", "out=judged")
    assert command(*words) == 0
    before = [row["metrics"] for row in report()["grid"]]
    as_before(Path("real/3.bmp"), lambda: picture(150, 255))
    assert command(*words) == 0
    after = [row["metrics"] for row in report()["grid"]]
    assert all(
        a["fd_blocks"]["value"] != b["fd_blocks"]["value"]
        for a, b in zip(after, before, strict=True)
    )


FEATURES = """
from fmdiff.metrics.features import Features

class Blocks(Features):
    name, distance, dimension, sha256 = "blocks", "fd_blocks", 4, "0" * 64

    def __init__(self, scale):
        self.scale = scale

    def __call__(self, pixels):
        x = pixels.float().mean(3).unflatten(1, (2, -1)).unflatten(3, (2, -1))
        return self.scale * x.mean((2, 4)).flatten(1) ** POWER, None
"""


def own_features(name, power=1.0):
    """An extractor of the user's own, in the folder of the command: the option that names it."""
    Path("own/features").mkdir(parents=True, exist_ok=True)
    Path(f"{name}_of_mine.py").write_text(FEATURES.replace("POWER", str(power)))
    yaml = f"_target_: {name}_of_mine.Blocks\nscale: 1.0\n"
    Path(f"own/features/{name}.yaml").write_text(yaml)
    return "--config-dir=own"


@pytest.mark.parametrize("change", ["scale", "source"])
def test_features_of_another_preprocessing_are_not_those_in_the_cache(
    command, tmp_path, monkeypatch, change
):
    """The weights, of which there are none, have the same hash in both."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    words = ("evaluate", own_features("blocks"), "model=data", "data=digits", "n=40", *CPU)
    words = (*words, "metrics=[fid]", "features=blocks")

    def value(out, *more):
        assert command(*words, *more, f"out={out}") == 0
        return report(out)["metrics"]["fd_blocks"]["value"]

    first = value("first")
    if change == "scale":
        assert value("second", "features.scale=3") == pytest.approx(9 * first)
        return
    own_features("blocks", power=2.0)
    forget_modules(tmp_path)
    cached = value("second")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "empty"))
    assert value("third") == cached != first


def test_labels_that_are_left_out_have_features_of_their_own(command, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    words = ("evaluate", own_features("blocks"), "model=data", "data=digits", "n=20", *CPU)
    words = (*words, "metrics=[fid]", "features=blocks", "overwrite=true", "out=judged")
    found = []
    for only in ("null", "[0,1]", "[0,2]"):
        assert command(*words, f"data.only={only}") == 0
        metric = report()["metrics"]["fd_blocks"]
        found.append((metric["value"], metric["reference"]))
    assert len(set(found)) == 3


def test_a_grid_of_an_own_class_follows_its_source(command, tmp_path, capfd):
    own_features("blocks")
    words = ("evaluate", "--config-dir=own", "model=data", "data=digits", "n=20", *CPU)
    words = (*words, "metrics=[fid]", "features=blocks", "repeats=2", "out=judged")
    assert command(*words) == 0
    before = report()["metrics"]["fd_blocks"]["value"]
    own_features("blocks", power=2.0)
    forget_modules(tmp_path)
    assert command(*words) == 0
    assert report()["metrics"]["fd_blocks"]["value"] > 10 * before
    assert "another code of your own" in capfd.readouterr().out


def test_a_grid_of_another_guide_is_computed_anew(command, two_models, tmp_path, capfd):
    first, later = two_models
    shutil.copy(first, tmp_path / "guide.ckpt")
    guided = ("guidance=autoguidance", "guidance.ckpt=guide.ckpt", "guidance.w=2")
    words = ("evaluate", f"ckpt={first}", *guided, *GRID)
    assert command(*words, "out=judged") == 0
    before = figures()
    shutil.copy(later, tmp_path / "guide.ckpt")
    assert command(*words, "out=judged") == 0
    assert figures() != before
    assert "holds figures of another model: all are" in capfd.readouterr().out


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("OLD", "does not say what its figures were computed from, as an earlier fmdiff: all"),
        ("{", "cannot be read: all are computed anew"),
        ('{"of": {"model": "x"}, "draws": 3}', "cannot be read: all are computed anew"),
    ],
)
def test_figures_of_unknown_origin_are_not_used(command, two_models, capfd, text, says):
    words = ("evaluate", f"ckpt={two_models[0]}", *GRID, "out=judged")
    assert command(*words) == 0
    before, path = figures(), Path("judged/cells.json")
    if text == "OLD":  # the form of earlier versions, with figures that cannot be
        draws = json.loads(path.read_text())["draws"]
        for draw in draws.values():
            draw["metrics"]["sw2"]["value"] = -1.0
        text = json.dumps(draws)
    path.write_text(text)
    assert command(*words) == 0
    assert figures() == before and f"{path} {says}" in capfd.readouterr().out


def test_warnings_belong_to_the_figures_that_are_used_again(command, digits_run):
    words = ("evaluate", own_features("blocks"), f"ckpt={digits_run}", "features=blocks", *CPU)
    words = (*words, "metrics=[fid]", "grid.steps=[1,2]", "n=4", "out=judged")
    assert command(*words) == 0
    before = report()["warnings"]
    assert any("rank-deficient" in text for text in before)
    assert command(*words) == 0 and report()["warnings"] == before


def test_a_repetition_says_what_is_no_longer_the_same(command, two_models, tmp_path, capfd):
    first, later = two_models
    shutil.copy(first, tmp_path / "best.ckpt")
    points = np.random.default_rng(0).normal(size=(300, 2))
    np.savez("truth.npz", arr_0=points)
    words = ("ckpt=best.ckpt", "against=truth.npz", "metrics=[sw2]", "n=300", *CPU)
    assert command("evaluate", *words, "out=then") == 0
    again = ("evaluate", "result=then/results.json", *CPU, "overwrite=true", "out=now")
    capfd.readouterr()
    assert command(*again) == 0
    assert "note: " not in capfd.readouterr().out
    shutil.copy(later, tmp_path / "best.ckpt")
    np.savez("truth.npz", arr_0=points + 1)
    assert command(*again) == 0
    told = capfd.readouterr().out
    assert "holds another model now than then: step 5 then, step 400 now" in told
    assert "note: against=truth.npz has another content now than then" in told
    np.savez("s.npz", arr_0=points)
    words = ("samples=s.npz", "against=truth.npz", "metrics=[sw2]", *CPU)
    assert command("evaluate", *words, "out=files") == 0
    np.savez("s.npz", arr_0=points + 2)
    assert command(*again[:1], "result=files/results.json", *again[2:]) == 0
    told = capfd.readouterr().out
    assert "note: samples=s.npz has another content now than then" in told
    assert "against=truth.npz has" not in told


def test_times_fitted_to_another_prediction_of_the_same_weights_are_not_used(
    command, two_models, tmp_path, capfd
):
    """An export is overwritten by one whose network predicts x, with equal weights."""
    content = checkpoint.read(two_models[0])
    checkpoint.write(tmp_path / "model.ckpt", content)
    words = ("sample", "ckpt=model.ckpt", "n=8", "steps=3", "solver=euler", "schedule=fitted")
    words = (*words, "schedule.reference=20", *CPU)
    assert command(*words, "out=a") == 0
    content["spec"]["objective"]["prediction"] = "x"
    checkpoint.write(tmp_path / "model.ckpt", content)
    capfd.readouterr()
    assert command(*words, "out=b") == 0
    assert "fitted anew" in capfd.readouterr().out


def test_n_samples_of_a_file_are_a_random_choice(command, capfd):
    """Its first rows need not be like the others."""
    x = torch.arange(1000).float()[:, None].expand(-1, 2) / 1000
    np.savez("sorted.npz", arr_0=x.numpy())
    np.savez("mixed.npz", arr_0=x[torch.randperm(1000)].numpy())
    words = (
        "evaluate",
        "samples=sorted.npz",
        "against=mixed.npz",
        "metrics=[sw2]",
        "n=200",
        *CPU,
    )
    assert command(*words, "out=judged") == 0
    assert report()["metrics"]["sw2"]["value"] < 0.1
    assert "n=200 of the 1,000 samples of sorted.npz, chosen by seed=0" in capfd.readouterr().out
