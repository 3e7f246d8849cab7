"""What samples are given on the command line: cond.NAME, through sample, evaluate and the rest."""

import csv
import json

import numpy as np
import pytest
import torch
import yaml
from conftest import IMAGES, PLAIN
from PIL import Image

from fmdiff import cli
from fmdiff.build import named
from fmdiff.commands.given import Known, Partners, bound
from fmdiff.condition import Condition, Form
from fmdiff.data import values
from fmdiff.errors import FmdiffError
from fmdiff.field import NetField
from fmdiff.path import CondOT
from fmdiff.settings.sentences import added

SHORT = ("trainer.max_steps=2", "trainer.validate_every=2", "trainer.picture_every=9", *PLAIN)


@pytest.fixture(scope="module")
def holes(tmp_path_factory):
    """A run on digits with a hole, by class."""
    out = tmp_path_factory.mktemp("holes") / "run"
    own = [word for word in IMAGES if word != "data=digits"]
    words = ["data=masked", "data.of.name=digits", "data.size=4", "data.conditional=true"]
    assert cli.main(["train", *words, *own, *SHORT, f"out={out}"]) == 0
    return out


@pytest.fixture(scope="module")
def plane(tmp_path_factory):
    """A run on points of the plane, of which coordinates are known."""
    out = tmp_path_factory.mktemp("plane") / "run"
    words = ["data=masked", "data.of.name=moons", "data.mode=scattered", "model=mlp"]
    assert cli.main(["train", *words, "model.hidden=8", *SHORT, f"out={out}"]) == 0
    return out


def sampled(run, out, *words):
    assert cli.main(["sample", f"ckpt={run}", "steps=1", *words, f"out={out}"]) == 0
    return np.load(out / "samples.npz")


def test_samples_have_the_conditions_of_test_images(holes, tmp_path, capsys):
    files = sampled(holes, tmp_path / "s", "n=12", "cond.known=data:test", "seed=3")
    data = named("data", "masked", of=named("data", "digits"), size=4, conditional=True)
    x, y = data.sample(0, 12, 3)
    np.testing.assert_array_equal(files["cond_known"], y.parts["known"].numpy())
    np.testing.assert_array_equal(files["labels"], y.parts["label"].numpy())
    pixels = ((x + 1) * 127.5).round().to(torch.uint8).permute(0, 2, 3, 1).numpy()
    np.testing.assert_array_equal(files["real"], pixels)
    known = ~np.isnan(files["cond_known"]).transpose(0, 2, 3, 1)
    assert (files["arr_0"][known] == pixels[known]).all()  # pasted
    assert (files["arr_0"][~known] != pixels[~known]).any()
    assert "are put in place as they are given" in capsys.readouterr().out
    assert Image.open(tmp_path / "s/given.png").width > 300


def test_without_paste_the_samples_stay_as_drawn(holes, tmp_path, capsys):
    words = ("n=4", "cond.known=data:test")
    plain = sampled(holes, tmp_path / "plain", *words, "paste=false")
    pasted = sampled(holes, tmp_path / "pasted", *words)
    known = ~np.isnan(pasted["cond_known"]).transpose(0, 2, 3, 1)
    assert (plain["arr_0"][known] != plain["real"][known]).any()
    np.testing.assert_array_equal(plain["arr_0"][~known], pasted["arr_0"][~known])
    error = json.loads((tmp_path / "plain/sample.json").read_text())["known_error"]
    off = plain["arr_0"][known] / 127.5 - plain["real"][known] / 127.5
    assert error == pytest.approx(
        np.sqrt(np.square(off).mean()), rel=0.2
    )  # clipped, in 256 levels
    assert "and stay so (paste=false)" in capsys.readouterr().out


def test_conditions_that_are_not_given_are_unknown_and_named(holes, tmp_path, capsys):
    files = sampled(holes, tmp_path / "s", "n=2")
    assert np.isnan(files["cond_known"]).all() and "real" not in files
    assert "note: cond.known not given: the samples know nothing of it" in capsys.readouterr().out


def test_a_sample_does_not_depend_on_its_batch(holes, tmp_path):
    words = ("n=10", "cond.known=data:test")
    whole = sampled(holes, tmp_path / "whole", *words)
    parts = sampled(holes, tmp_path / "parts", *words, "batch_size=4")
    for name in ("cond_known", "real", "labels"):
        np.testing.assert_array_equal(whole[name], parts[name])
    assert (np.abs(whole["arr_0"].astype(int) - parts["arr_0"]) <= 1).all()


@pytest.mark.parametrize("form", ["npy", "npz", "folder", "run"])
def test_values_come_from_files(holes, tmp_path, form):
    known = np.random.default_rng(0).uniform(-1, 1, (3, 1, 8, 8)).astype(np.float32)
    known[:, :, 2:5] = np.nan
    path = tmp_path / f"known.{form}"
    if form == "npy":
        np.save(path, known)
    elif form == "npz":
        np.savez(path, other=known[:1], known=known)
    elif form == "run":
        path.mkdir()
        np.savez(path / "samples.npz", arr_0=known, cond_known=known)
    else:
        path.mkdir()
        for i, picture in enumerate(known):
            levels = np.nan_to_num(127.5 * (picture[0] + 1)).round().astype(np.uint8)
            Image.fromarray(levels).save(path / f"{i}.png")
        known = np.nan_to_num(127.5 * (known + 1)).round().astype(np.uint8) / np.float32(127.5) - 1
    files = sampled(holes, tmp_path / "s", "n=5", "classes=1", f"cond.known={path}")
    np.testing.assert_allclose(files["cond_known"], known[[0, 1, 2, 0, 1]], atol=1e-6)
    assert "real" not in files and (files["labels"] == 1).all()


def test_values_of_points_are_a_sweep_in_one_picture(plane, tmp_path):
    files = sampled(plane, tmp_path / "s", "n=40", "cond.known=[[0.5,nan],[null,-1]]")
    wanted = np.tile([[0.5, np.nan], [np.nan, -1]], (20, 1)).astype(np.float32)
    np.testing.assert_array_equal(files["cond_known"], wanted)
    there = ~np.isnan(wanted)
    np.testing.assert_array_equal(files["arr_0"][there], wanted[there])
    assert (tmp_path / "s/given.png").is_file()
    table = tmp_path / "table.csv"
    for text in ("0.5,\n,-1\n", "a,b\n0.5,\n,-1\n"):
        table.write_text(text)
        again = sampled(plane, tmp_path / f"t{len(text)}", "n=40", f"cond.known={table}")
        np.testing.assert_array_equal(again["cond_known"], wanted)


def test_evaluate_compares_each_sample_with_its_real_image(holes, tmp_path):
    names = "metrics=[psnr,psnr_known,agreement]"
    words = ("steps=1", "n=30", "cond.known=data:test", names, f"out={tmp_path / 'e'}")
    assert cli.main(["evaluate", f"ckpt={holes}", *words]) == 0
    ours = json.loads((tmp_path / "e/results.json").read_text())
    files = sampled(holes, tmp_path / "s", "n=30", "cond.known=data:test")
    mse = np.square(files["arr_0"].astype(float) - files["real"]).mean()
    assert ours["metrics"]["psnr"]["value"] == pytest.approx(10 * np.log10(255**2 / mse))
    assert ours["metrics"]["psnr_known"]["extra"] == {"exact": True}
    assert any("the known parts are drawn with" in note for note in ours["warnings"])
    words = (f"samples={tmp_path / 's'}", "against=digits", names, f"out={tmp_path / 'f'}")
    assert cli.main(["evaluate", *words]) == 0
    again = json.loads((tmp_path / "f/results.json").read_text())
    for name, metric in ours["metrics"].items():
        assert again["metrics"][name]["value"] == metric["value"]


@pytest.mark.parametrize("command", ["likelihood", "invert"])
def test_densities_are_given_each_samples_own_condition(plane, tmp_path, command):
    def run(name, *words):
        out = tmp_path / name
        steps = "steps=2" if command == "likelihood" else "steps=[2]"
        assert cli.main([command, f"ckpt={plane}", "n=6", steps, *words, f"out={out}"]) == 0
        return np.load(out / f"{command}.npz")

    own, same = run("own"), run("same", "cond.known=data:test")
    key = "log_prob" if command == "likelihood" else "noise"
    np.testing.assert_array_equal(own[key], same[key])
    data = named("data", "masked", of=named("data", "moons"), mode="scattered")
    wanted = data.sample(0, 6, 0)[1].parts["known"]
    np.testing.assert_array_equal(own["cond_known"], wanted.numpy())
    fixed = run("fixed", "cond.known=[0.5,-0.5]")
    np.testing.assert_array_equal(fixed["cond_known"], np.tile(np.float32([0.5, -0.5]), (6, 1)))


def test_new_keys_need_no_plus():
    words = ["n=3", "cond.c=0.3", "+cond.d=1", "++cond.e=2", "~cond.c"]
    assert added("sample", words) == ["n=3", "++cond.c=0.3", "++cond.d=1", "++cond.e=2", "~cond.c"]


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["train", "cond.c=1"], "cond.c=1: fmdiff train takes no conditions; sample, evaluate"),
        (["page", "cond.c=1"], "cond.c=1: fmdiff page takes no conditions"),
        (["sample", "ckpt=zoo:moons", "cond=3"], "cond=3: a condition has a name"),
        (["sample", "ckpt=zoo:moons", "cond.c=1"], "cond.c: this model was trained without cond"),
        (["sample", "ckpt=zoo:moons", "cond.c=1,2"], "add -m to sweep, or write cond.c=[1,2]"),
        (["evaluate", "ckpt=zoo:moons", "metrics=[psnr]", "cond.c=[1"], "must close each other"),
        (["evaluate", "ckpt=zoo:digits", "metrics=[psnr]"], "say cond.NAME=data:test"),
        (["sample", "model=exact", "data=gmm4", "cond.c=1"], "was trained without conditions"),
    ],
)
def test_slips_of_any_model(words, says, capsys, caplog, tmp_path):
    out = [] if words[0] == "page" else [f"out={tmp_path / 'x'}"]
    assert cli.main([*words, *out]) == 2
    assert says in capsys.readouterr().err + caplog.text


def field(**forms):
    made = NetField(torch.nn.Identity(), CondOT(), "v", 1.0, 0.0, (2,))
    made.conditions = forms
    return made


@pytest.mark.parametrize(
    ("word", "says"),
    [
        ("low=1", "cond.low is unknown; choose from: known"),
        ("known=[1,2,3]", "cond.known has the shape [3]: a list of 2 numbers is needed"),
        ("known=abc", "cond.known=abc does not exist, and a list of 2 numbers is needed"),
        ("known=nowhere.npy", "cond.known=nowhere.npy does not exist"),
        ("known=data:all", "cond.known=data:all: choose data:test or data:train"),
        ("known=.inf", "cond.known holds an infinite number"),
        ("known=true", "cond.known=True: a list of 2 numbers is needed"),
        ("known=FOLDER", "holds no pictures"),
        ("known=FOLDER/a.png", "is a picture, and a list of 2 numbers is needed"),
        ("known=FOLDER/a.txt", "is of no kind that is read: .npy, .npz, .csv"),
        ("known=FOLDER/bad.npy", "is no .npy file of numbers"),
        ("known=FOLDER/code.npy", "is no .npy file of numbers"),
        ("known=FOLDER/text.npy", "holds an array of <U1, and numbers are needed"),
        ("known=FOLDER/two.npz", "has no array 'known'; it holds a, b"),
        ("known=FOLDER/wide.csv", "has 3 columns in row 0 (the first is row 0), and 2 are"),
        ("known=FOLDER/word.csv", "holds 'x' in row 1, which is no number"),
        ("known=FOLDER/names.csv", "holds no row of numbers"),
    ],
)
def test_slips_of_a_value(word, says, tmp_path):
    folder = tmp_path / "folder"
    (folder / "empty").mkdir(parents=True)
    Image.new("L", (2, 2)).save(folder / "a.png")
    (folder / "a.txt").write_text("1")
    (folder / "bad.npy").write_bytes(b"\x93NUMPY nonsense")
    np.save(folder / "code.npy", np.array([{"a": 1}]), allow_pickle=True)
    np.save(folder / "text.npy", np.array(["a", "b"]))
    np.savez(folder / "two.npz", a=np.zeros(2), b=np.zeros(2))
    (folder / "wide.csv").write_text("1,2,3\n")
    (folder / "word.csv").write_text("1,2\n1,x\n")
    (folder / "names.csv").write_text("a,b\n")
    name, _, value = word.partition("=")
    value = value.replace("FOLDER", str(folder / "empty" if value == "FOLDER" else folder))
    data = named("data", "masked", of=named("data", "moons"), mode="scattered")
    with pytest.raises(FmdiffError) as error:
        bound(field(known=Form((2,))), {name: yaml.safe_load(value)}, data, 4, 0)
    assert says in str(error.value)


def test_values_of_different_counts_are_refused_and_one_goes_with_all():
    of = field(a=Form((1,)), b=Form((2,)), colour=Form((2,), levels=("red", "blue")))
    words = {"a": [1, 2, 3], "b": [4, 5], "colour": ["red", "blue", "red"]}
    view, real = bound(of, words, None, 6, 0)
    assert real is None and [len(v) for v in view.values.values()] == [3, 1, 3]
    y = view.labels(None, 2, 5, 0)
    assert y.parts["a"].flatten().tolist() == [3, 1, 2]
    assert y.parts["b"].tolist() == [[4, 5]] * 3
    assert y.parts["colour"].tolist() == [[1, 0], [1, 0], [0, 1]]
    with pytest.raises(FmdiffError, match=r"row by row, and there are 3 of cond.a, 2 of cond.b"):
        bound(of, {"a": [1, 2, 3], "b": [[4, 5], [6, 7]]}, None, 6, 0)
    with pytest.raises(FmdiffError, match=r"cond.colour=green: choose from: blue, red"):
        bound(of, {"colour": "green"}, None, 6, 0)
    with pytest.raises(FmdiffError, match=r"cond.a=data:test: this model has no data"):
        bound(of, {"a": "data:test"}, None, 6, 0)


def test_a_column_of_a_table_is_taken_by_its_name(tmp_path):
    path = tmp_path / "t.csv"
    with path.open("w", newline="") as file:
        csv.writer(file).writerows([["b", "a"], [1, 2], ["", 3.5]])
    assert values.read(path, "a", Form((1,))).tolist() == [[2], [3.5]]
    rows = values.read(path, "b", Form((1,)))
    assert rows[0] == 1 and rows[1].isnan()


def test_a_picture_of_another_size_is_cut_and_scaled(tmp_path):
    pixels = np.zeros((8, 24), np.uint8)
    pixels[:, 4:20] = 255  # the square is columns 8 to 15, and the filter reaches further
    Image.fromarray(pixels).save(tmp_path / "a.png")
    value = values.read(tmp_path / "a.png", "low", Form((3, 4, 4)))
    torch.testing.assert_close(value, torch.ones(1, 3, 4, 4), atol=0.01, rtol=0)
    with pytest.raises(FmdiffError, match=r"has 24x8 pixels, and 4x2 are needed"):
        values.read(tmp_path / "a.png", "low", Form((1, 2, 4)))


def test_known_parts_replace_and_are_measured():
    of = field(known=Form((2,))).given(known=[1.0, float("nan")])
    known = Known(of, paste=True)
    y = Condition({"known": torch.tensor([[1.0, torch.nan], [1.0, torch.nan]])})
    x = known(torch.tensor([[1.5, 7.0], [1.0, 8.0]]), y)
    assert x.tolist() == [[1, 7], [1, 8]]
    assert known.gather() == pytest.approx((0.25 / 2) ** 0.5)
    plain = Known(field(low=Form((1,))), paste=True)
    assert plain(x, None) is x and plain.gather() is None


def test_partners_come_in_turn():
    partners = Partners(torch.arange(3), 2)
    assert partners(2).tolist() == [2, 0] and partners(3).tolist() == [1, 2, 0]
