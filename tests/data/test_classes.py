"""The classes of a folder: their order, their names, what is held out of each, and resuming."""

import json
import os
import re
import shutil
import subprocess
import sys
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import IMAGES
from test_data import make
from test_folder import cache, noise, own, save  # noqa: F401

import fmdiff
from fmdiff.errors import FmdiffError
from fmdiff.runs import checkpoint
from fmdiff.runs.find import find

FOLDER = ("data=folder", "data.root=mine", "data.size=8", "data.channels=1", *IMAGES[1:])
FIRST = ("trainer.max_steps=1", "trainer.warmup=0")


def classes(root, counts):
    """A folder of grey pictures whose levels tell their class: 20 times its place in `counts`."""
    for k, (name, count) in enumerate(counts.items()):
        for i in range(count):
            save(root / name / f"{i}.png", np.full((8, 8), 20 * k, np.uint8))
    return root


def held(data):
    """How many images of each class are trained on, and how many are held out."""
    numbers = Counter(data.train[1].tolist()), Counter(data.test[1].tolist())
    return [(numbers[0][k], numbers[1][k]) for k in range(data.labels)]


def levels(data):
    """The level of the images of each label, for classes whose images are all of one level."""
    images, labels = (torch.cat(pair) for pair in zip(data.train, data.test, strict=True))
    return [images[labels == k].float().mean().item() / 20 for k in range(data.labels)]


# Order


def test_names_that_are_integers_are_sorted_as_numbers(tmp_path):
    root = classes(tmp_path / "mine", {str(k): 3 for k in range(12)})
    data = own(root)
    assert data.names == [str(k) for k in range(12)] and levels(data) == list(range(12))
    former = own(root, layout=1)
    assert former.names[:4] == ["0", "1", "10", "11"]
    assert levels(former)[:4] == [0, 1, 10, 11]
    classes(root, {"x": 1})
    assert own(root).names[:4] == ["0", "1", "10", "11"]


@pytest.mark.parametrize(
    ("names", "order"),
    [
        (["-2", "10", "9"], ["-2", "9", "10"]),
        (["01", "1", "2"], ["01", "1", "2"]),
        (["b", "A", "a"], ["A", "a", "b"]),
        (["1", "2", "²"], ["1", "2", "²"]),
        (["1e1", "2"], ["1e1", "2"]),
    ],
)
def test_the_order_of_names(tmp_path, names, order):
    assert own(classes(tmp_path / "mine", dict.fromkeys(names, 1))).names == order


# Held out


def test_a_tenth_of_each_class_is_held_out(tmp_path, caplog):
    counts = {"alone": 1, "few": 2, "many": 300, "some": 12, "usual": 40}
    data = own(classes(tmp_path / "mine", counts))
    splits = held(data)
    assert [a + b for a, b in splits] == list(counts.values())
    assert splits[0] == (1, 0) and splits[1] == (1, 1) and 15 <= splits[2][1] <= 45
    assert all(a >= 1 and b >= 1 for a, b in splits[1:])
    assert "no image of alone is held out" in caplog.text
    assert "is trained on" not in caplog.text


def test_a_class_that_is_wholly_held_out_is_said(tmp_path, caplog):
    """As the layout of version 0.1.0 did it without a word, for one image in ten."""
    root = classes(tmp_path / "mine", {"usual": 40})
    for i in range(100):
        save(tmp_path / "mine" / "rare" / f"{i}.png", noise(8, 8))
        former = own(root, layout=1)
        if held(former)[0] == (0, 1):
            break
        shutil.rmtree(tmp_path / "mine" / "rare")
    assert "no image of rare is trained on" in caplog.text
    assert held(own(root))[0] == (1, 0)


def test_the_layout_of_old_checkpoints_is_as_it_was(tmp_path):
    """The split by the hash of the name alone, and the order of names as texts."""
    root = classes(tmp_path / "mine", {str(k): 30 for k in range(11)})
    former, now = own(root, layout=1), own(root)
    out = {file for file in now.pictures if file.order % 10 == 0}
    pictures, train = former.listing
    assert set(pictures[train:]) == out
    spec = {"_target_": "fmdiff.data.folder.Folder", "root": str(root), "size": 8, "channels": 1}
    spec |= {"skip_broken": False, "batch_size": 4, "conditional": None}
    assert fmdiff.build.build(spec).listing == former.listing


# Names


def test_classes_are_asked_for_by_name(command, train, tmp_path, capfd):
    classes(tmp_path / "mine", {"cats": 20, "dogs": 20, "a b": 20})
    spec = train("run", *FOLDER, *FIRST, "data.batch_size=8")["spec"]["data"]
    assert spec["names"] == ["a b", "cats", "dogs"] and spec["files"]["count"] == 60
    capfd.readouterr()
    assert command("info", "ckpt=run") == 0
    assert "3 classes (a b, cats, dogs)" in capfd.readouterr().out
    words = ("ckpt=run", "n=4", "steps=1", "device=cpu")
    for given, labels in (("[cats]", [1] * 4), ("dogs", [2] * 4), ("['a b',2]", [0, 2, 0, 2])):
        assert command("sample", *words, f"classes={given}", "out=drawn", "overwrite=true") == 0
        assert np.load("drawn/samples.npz")["labels"].tolist() == labels
    capfd.readouterr()
    assert command("sample", *words, "classes=[cat]", "out=other") == 2
    said = capfd.readouterr().err
    assert (
        "did you mean 'cats'? Choose from: a b, cats, dogs" in said and not Path("other").exists()
    )
    field = fmdiff.load("run")
    assert field.names == ("a b", "cats", "dogs")
    assert fmdiff.generate(field, 2, steps=1, classes=["dogs"]).y.tolist() == [2, 2]
    content = checkpoint.read(find("run"))
    del content["spec"]["data"]["names"]
    checkpoint.write("old.ckpt", content)
    assert command("sample", "ckpt=old.ckpt", *words[1:], "classes=[cats]", "out=other") == 2
    assert "classes have no names here" in capfd.readouterr().err


def test_only_takes_names(train, tmp_path):
    root = classes(tmp_path / "mine", {"cats": 20, "dogs": 20, "hens": 20})
    assert own(root, only=["hens", 0]).listing == own(root, only=[0, 2]).listing
    with pytest.raises(FmdiffError, match=r"data\.only=hen: no class .* did you mean 'hens'"):
        own(root, only=["hen"]).prepare()
    assert make("cifar10", only=["cat", "truck"]).only == [3, 9]
    with pytest.raises(FmdiffError, match="a list of labels from 0 to 9"):
        make("digits", only=["three"])
    train("run", *FOLDER, *FIRST, "data.batch_size=8", "data.only=[dogs,hens]")
    assert fmdiff.load("run").only == (1, 2)


def test_captions_are_the_names(tmp_path, monkeypatch, train, command):
    from fmdiff.pictures import plots

    texts, caption = [], plots.caption
    monkeypatch.setattr(plots, "caption", lambda t, *size: texts.append(t) or caption(t, *size))
    classes(tmp_path / "mine", {"cats\n\x1b[31m": 20, "dogs": 20})
    train("run", *FOLDER, *FIRST, "data.batch_size=8", "trainer.picture_every=1")
    assert set(texts) == {"cats\\n\\x1b[31m", "dogs"}
    texts.clear()
    assert command("sample", "ckpt=run", "n=2", "steps=1", "device=cpu", "out=drawn") == 0
    assert texts == ["cats\\n\\x1b[31m", "dogs"]


# Resuming


def test_other_names_are_refused_and_other_files_warned_of(command, train, tmp_path, capfd):
    root = classes(tmp_path / "mine", {"cats": 20, "dogs": 20})
    train("run", *FOLDER, *FIRST, "data.batch_size=8")
    before = {p: p.read_bytes() for p in Path("run").rglob("*.*") if p.name != ".lock"}
    (root / "cats").rename(root / "zebras")
    capfd.readouterr()
    assert command("train", "resume=run", "trainer.max_steps=2") == 2
    said = capfd.readouterr().err
    assert "the classes ['cats', 'dogs']" in said and "now hold ['dogs', 'zebras']" in said
    assert {p: p.read_bytes() for p in before} == before
    (root / "zebras").rename(root / "cats")
    for path in sorted((root / "dogs").iterdir())[:3]:
        path.unlink()
    assert command("train", "resume=run", "trainer.max_steps=2") == 0
    said = capfd.readouterr().err
    assert "the files of the data are others" in said and "40 then, 37 now" in said
    assert command("train", "resume=run", "trainer.max_steps=3") == 0
    assert "are others" not in capfd.readouterr().err  # the new checkpoint knows these
    save(root / "cats" / "0.png", noise(8, 8))  # another size in bytes
    assert command("train", "resume=run", "trainer.max_steps=4") == 0
    assert "37 then, 37 now" in capfd.readouterr().err


def test_a_moved_or_copied_folder_has_the_same_files(tmp_path):
    root = classes(tmp_path / "mine", {"cats": 20, "dogs": 20})
    shutil.copytree(root, tmp_path / "copy")
    assert own(root).fingerprint() == own(tmp_path / "copy").fingerprint()
    assert own(root, only=[0]).fingerprint() != own(root).fingerprint()


def test_an_old_run_of_integer_names_goes_on_with_its_labels(command, train, tmp_path, capfd):
    classes(tmp_path / "mine", {str(k): 4 for k in range(11)})
    content = train("run", *FOLDER, *FIRST, "data.batch_size=8", "data.layout=1")
    assert content["spec"]["data"]["names"][2] == "10"
    for key in ("names", "files"):
        del content["spec"]["data"][key]
    for part in (content["spec"]["data"]["source"], content["training"]["config"]["data"]):
        del part["layout"]
    for name in ("0000001.ckpt", "last.ckpt"):
        checkpoint.write(Path("run") / name, content)
    for name in ("config.yaml", "overrides"):
        path = Path("run") / name
        path.write_text(re.sub(r".*layout.*\n", "", path.read_text()))
    assert command("train", "resume=run", "trainer.max_steps=2") == 0
    spec = checkpoint.read(find("run"))["spec"]["data"]
    assert spec["names"][2] == "10" and spec["source"]["layout"] == 1


# Several processes


# each waits for the others before its result is put in place, and removes slowly
CONVERT = """
import os, shutil, time
from pathlib import Path
from fmdiff.data import folder
from fmdiff.data.folder import Folder

def write_text(path, text, write=folder.write_text):
    write(path, text)
    Path(f"{os.getpid()}.ready").touch()
    for _ in range(150):
        if len(list(Path().glob("*.ready"))) == 3:
            break
        time.sleep(0.02)

def rmtree(*args, remove=shutil.rmtree, **keys):
    remove(*args, **keys)
    time.sleep(0.3)

folder.write_text, shutil.rmtree = write_text, rmtree
data = Folder(root="mine", size=8, channels=1, skip_broken=False, batch_size=4, conditional=None)
print(data.train[0].sum().item(), len(data.train[1]))
"""


def together(code, folder, count=3, **variables):
    runs = [
        subprocess.Popen(
            [sys.executable, "-c", code],
            cwd=folder,
            env=os.environ | variables,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for _ in range(count)
    ]
    said = [run.communicate(timeout=300) for run in runs]
    assert [run.returncode for run in runs] == [0] * count, said
    return [out for out, _ in said]


@pytest.mark.fault(count=3)
@pytest.mark.parametrize("locks", [True, False], ids=["locks", "no locks"])
def test_three_processes_convert_one_folder(tmp_path, cache, locks):  # noqa: F811
    classes(tmp_path / "mine", {"a": 40, "b": 40})
    code = CONVERT
    if not locks:  # as on a network file system without them; and what is there is damaged
        code = "import fcntl\ndef flock(*args):\n    raise OSError(95, 'no locks')\n"
        code += f"fcntl.flock = flock\n{CONVERT}"
        own(tmp_path / "mine").prepare()
        next(cache.iterdir()).joinpath("about.json").write_text("{")
    assert len(set(together(code, tmp_path))) == 1
    (one,) = (path for path in cache.iterdir() if not path.name.endswith(".lock"))
    assert json.loads((one / "about.json").read_text())["broken"] == {}


UNPACK = """
import time
from pathlib import Path
from fmdiff.data import files, images
from fmdiff.data.images import MNIST

content = b"0123456789"
md5 = "781e5e245d69b566979b86e28d23f2c7"
files.SOURCES["mnist"] = files.Source("", ".", {}, "raw", {name: (10, md5) for name in "abc"})

def unpack(self, train, download):
    raw = files.data_root(self.root) / "raw"
    raw.mkdir(exist_ok=True)
    with (raw / "downloads").open("a") as file:
        file.write("one\\n")
    for name in "abc":
        with (raw / name).open("wb") as file:
            for k in range(10):
                file.write(content[k : k + 1])
                file.flush()
                time.sleep(0.005)

MNIST._torchvision = unpack
MNIST(batch_size=4, conditional=False, flip=False).prepare()
print("ready")
"""


@pytest.mark.fault(count=3)
def test_three_processes_download_one_data_set(tmp_path):
    assert together(UNPACK, tmp_path, FMDIFF_DATA=str(tmp_path / "data")) == ["ready\n"] * 3
    assert (tmp_path / "data" / "raw" / "downloads").read_text() == "one\n"
    assert sorted(path.name for path in (tmp_path / "data").iterdir()) == ["raw"]


SHARED = """
import sys
from pathlib import Path
import torch
from fmdiff.metrics import reference
from fmdiff.metrics.reference import Reference
path = Path("statistics") / "a.npz"
for k in range(30):
    x = torch.full((8,), float(k), dtype=torch.float64)
    reference.save(path, Reference(x, x[:, None] * x + torch.eye(8)))
    y = reference.load(path)
    assert torch.equal(y.cov, y.mean[:, None] * y.mean + torch.eye(8))
print("ready")
"""


@pytest.mark.fault(count=3)
def test_three_processes_keep_the_same_statistics(tmp_path):
    assert together(SHARED, tmp_path) == ["ready\n"] * 3
    assert [path.name for path in (tmp_path / "statistics").iterdir()] == ["a.npz"]
