"""data=folder: own images, through real files."""

import json
import os
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import IMAGES, PLAIN
from PIL import Image
from test_data import make

from fmdiff.data import files, folder
from fmdiff.data.images import to_uint8
from fmdiff.errors import FmdiffError
from fmdiff.runs import checkpoint
from fmdiff.runs.find import find

REAL = Path(os.environ.get("FMDIFF_DATA", "absent"))
BRIEF = ("trainer.max_steps=2", "trainer.warmup=0", *IMAGES[1:])


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("FMDIFF_DATA", str(tmp_path / "cache"))
    return tmp_path / "cache" / "folder"


@pytest.fixture
def root(tmp_path):
    """60 digits in three folders, 0, 1 and 2: the files of the package's first images."""
    images, labels = digits()
    for i, (pixels, label) in enumerate(zip(images, labels, strict=True)):
        save(tmp_path / "mine" / f"class {label}" / f"{i:03d}.png", pixels)
    return tmp_path / "mine"


def digits():
    images, labels = make("digits", only=[0, 1, 2]).train
    return images[:60, 0].numpy(), labels[:60].tolist()


def save(path, pixels, **keys):
    path.parent.mkdir(parents=True, exist_ok=True)
    image = pixels if isinstance(pixels, Image.Image) else Image.fromarray(np.asarray(pixels))
    image.save(path, **keys)
    return path


def own(root, **keys):
    return make("folder", **{"root": str(root), "size": 8, "channels": 1, "batch_size": 4} | keys)


def whole(data):
    """All pixels and labels, training and held out: sorted as bytes."""
    images = torch.cat([data.train[0], data.test[0]])
    labels = torch.cat([data.train[1], data.test[1]])
    return sorted((x.numpy().tobytes(), int(y)) for x, y in zip(images, labels, strict=True))


def noise(*shape):
    return np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)


# What arrives


def test_pixels_and_labels_arrive_as_they_lie(root):
    images, labels = digits()
    data = own(root)
    assert data.shape == (1, 8, 8) and data.classes == 3
    assert data.names == ["class 0", "class 1", "class 2"]
    assert whole(data) == sorted((x.tobytes(), y) for x, y in zip(images, labels, strict=True))
    x, y = data.batch(0, 0)
    stored = whole(data)
    for pixels, label in zip(to_uint8(x), y.tolist(), strict=True):
        assert (pixels.numpy().tobytes(), label) in stored
    exact = np.concatenate([i.numpy().ravel() for i in data.train[0]]) / 127.5 - 1
    assert data.std == pytest.approx(exact.std(), rel=1e-6)
    assert data.train[0].dtype == torch.uint8 and data.train[1].dtype == torch.int64
    assert data.references == len(data.test[1])
    assert own(root, size=None).shape == (1, 8, 8)
    assert whole(own(root, size=None)) == stored


def test_colours_of_cifar_arrive_as_they_lie(tmp_path):
    if not (REAL / "cifar-10-batches-py").is_dir():
        pytest.skip("needs CIFAR-10 in $FMDIFF_DATA")
    images, _ = make("cifar10", root=str(REAL)).test
    for i, pixels in enumerate(images[:40].permute(0, 2, 3, 1)):
        save(tmp_path / "mine" / f"{i}.{'bmp' if i % 2 else 'webp'}", pixels, lossless=True)
    data = own(tmp_path / "mine", size=32, channels=3)
    assert data.shape == (3, 32, 32) and data.classes == 0
    assert whole(data) == sorted((x.numpy().tobytes(), 0) for x in images[:40])


def test_what_is_no_image_is_not_looked_at(root):
    expected = whole(own(root))
    for name in (".hidden.png", "._000.png", "notes.txt", "images.csv"):
        (root / "class 0" / name).write_bytes(b"no image")
    (root / ".thumbnails").mkdir()
    (root / ".thumbnails" / "a.png").write_bytes(b"no image")
    (root / "empty").mkdir()
    (root / "class 1" / "loop").symlink_to(root)
    data = own(root)
    assert whole(data) == expected and data.classes == 3


# Classes


def test_folders_are_classes_where_no_image_lies_beside_them(root):
    assert own(root).classes == 3 and own(root, conditional=True).classes == 3
    data = own(root, conditional=False)
    assert data.classes == 0 and data.batch(0, 0)[1] is None
    (root / "class 1" / "deeper").mkdir()
    (root / "class 1" / "001.png").rename(root / "class 1" / "deeper" / "1.png")
    assert own(root).classes == 3 and len(whole(own(root))) == 60
    (root / "class 0" / "000.png").rename(root / "000.png")
    assert own(root).classes == 0
    with pytest.raises(FmdiffError, match=r"data\.conditional=true: .* at least two folders"):
        own(root, conditional=True).prepare()
    one = own(root / "class 1")
    assert one.classes == 0 and one.names == []
    with pytest.raises(FmdiffError, match="at least two folders"):
        own(root / "class 1", conditional=True).prepare()


def test_only_some_classes(root):
    data, everything = own(root, only=[2, 1]), whole(own(root))
    assert data.classes == 3 and whole(data) == [x for x in everything if x[1] > 0]
    exact = data.train[0].numpy() / 127.5 - 1
    assert data.std == pytest.approx(exact.std(), rel=1e-6)
    with pytest.raises(FmdiffError, match=r"data\.only=\[3\] .* from 0 to 2"):
        own(root, only=[3]).prepare()


# Held out


def test_some_are_held_out_and_stay_so(tmp_path):
    def make_folder(n):
        for i in range(n):
            save(tmp_path / "mine" / f"{i}.png", np.full((8, 8), i % 256, np.uint8))
        return own(tmp_path / "mine")

    def held(data):
        return set(data.test[0][:, 0, 0, 0].tolist())

    few = make_folder(100)
    assert 3 <= len(held(few)) <= 20 and len(few.train[1]) == 100 - len(held(few))
    assert not held(few) & set(few.train[0][:, 0, 0, 0].tolist())
    more = make_folder(200)
    assert held(few) == {i for i in held(more) if i < 100}  # by its own name alone
    seen = {int(v) for k in range(50) for v in to_uint8(more.batch(0, k)[0])[:, 0, 0, 0]}
    assert len(seen) == len(more.train[1]) and not seen & held(more)
    two = own(save(tmp_path / "two" / "a.png", noise(8, 8)).parent, batch_size=1)
    with pytest.raises(FmdiffError, match="1 images to train on and 0 to hold out"):
        two.prepare()
    save(tmp_path / "two" / "b.png", noise(8, 8))
    two = own(tmp_path / "two", batch_size=1)
    assert len(two.train[1]) == len(two.test[1]) == 1


def test_the_first_n_are_of_all_classes(root):
    assert set(own(root).examples(12)[1].tolist()) == {0, 1, 2}


# The cache


def test_the_second_run_reads_no_image(root, cache, monkeypatch, caplog):
    caplog.set_level("INFO", "fmdiff")
    before = {path: path.stat().st_mtime_ns for path in root.rglob("*")}
    first = whole(own(root))
    assert "60 images" in caplog.text and "3 classes (class 0, class 1, class 2)" in caplog.text
    assert "written to the cache" in caplog.text and "found" not in caplog.text
    (made,) = cache.iterdir()
    assert np.load(made / "images.npy", allow_pickle=False).shape == (60, 1, 8, 8)
    monkeypatch.setattr(folder, "pixels_of", None)
    assert whole(own(root)) == first and "found in the cache" in caplog.text
    assert [path.name for path in cache.iterdir()] == [made.name]  # no temporary one
    assert before == {path: path.stat().st_mtime_ns for path in root.rglob("*")}


def test_another_listing_size_or_colour_is_another_array(root, cache):
    def arrays():
        return len(list(cache.iterdir()))

    own(root).prepare()
    own(root, flip=True, batch_size=7, augment=0.1).prepare()
    assert arrays() == 1
    own(root, channels=3).prepare()
    own(root, size=16).prepare()
    assert arrays() == 3
    save(root / "class 1" / "new.png", noise(8, 8))
    assert len(whole(own(root))) == 61 and arrays() == 4
    first = next(iter(sorted(root.rglob("*.png"))))
    os.utime(first, (1, 1))
    own(root).prepare()
    assert arrays() == 5


def test_a_picture_overwritten_under_its_size_and_time_is_converted_anew(root, tmp_path):
    """The copy that keeps a time (`cp -p`, `rsync -t`) cannot keep the time of the change."""

    def fill(level):
        picture = Image.new("L", (8, 8), level)
        picture.save(path := tmp_path / "new.bmp")  # all have one size
        return path

    path = root / "class 0" / "one.bmp"
    shutil.copyfile(fill(10), path)
    os.utime(path, ns=(10**18, 10**18))
    before, status = whole(own(root)), path.stat()
    shutil.copyfile(fill(200), path)
    os.utime(path, ns=(10**18, 10**18))
    now = path.stat()
    assert (now.st_size, now.st_mtime_ns) == (status.st_size, status.st_mtime_ns)
    after = whole(own(root))
    assert (bytes([10] * 64), 0) in before and (bytes([200] * 64), 0) in after
    os.replace(fill(90), path)  # another file under the name
    os.utime(path, ns=(10**18, 10**18))
    assert (bytes([90] * 64), 0) in whole(own(root))


def test_a_copied_folder_is_converted_anew_and_gives_the_same(root, cache, tmp_path):
    first = whole(own(root))
    shutil.copytree(root, tmp_path / "copy" / "mine")
    assert whole(own(tmp_path / "copy" / "mine")) == first
    root.rename(tmp_path / "moved")
    assert whole(own(tmp_path / "moved")) == first
    (tmp_path / "moved").rename(root)  # the files are as they were
    assert whole(own(root)) == first and len(list(cache.iterdir())) == 3


@pytest.mark.parametrize("damage", ["images.npy", "about.json", "pickle"])
def test_a_damaged_array_is_made_again(root, cache, damage):
    expected = whole(own(root))
    (made,) = cache.iterdir()
    if damage == "pickle":
        np.save(made / "images.npy", np.array([{}], dtype=object))
    else:
        content = (made / damage).read_bytes()
        (made / damage).write_bytes(content[: len(content) // 2])
    assert whole(own(root)) == expected


def test_an_interrupted_conversion_leaves_nothing(root, cache, monkeypatch):
    def stop(*args):
        raise KeyboardInterrupt

    monkeypatch.setattr(folder.Bar, "__call__", stop)
    with pytest.raises(KeyboardInterrupt):
        own(root).prepare()
    assert list(cache.iterdir()) == []


def test_a_full_disk_is_said(root, cache, monkeypatch):
    def full(*args):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(folder, "head", full)
    with pytest.raises(FmdiffError, match=r"cannot be written \(No space left.* FMDIFF_DATA"):
        own(root).prepare()
    assert list(cache.iterdir()) == []


def test_the_cache_is_never_in_the_folder(root, monkeypatch):
    monkeypatch.setenv("FMDIFF_DATA", str(root / "cache"))
    with pytest.raises(FmdiffError, match=r"data\.root=.*FMDIFF_DATA to a folder elsewhere"):
        own(root).prepare()
    assert not (root / "cache").exists()


def test_what_is_too_large_for_the_device_stays_mapped(root, monkeypatch):
    data, mapped = own(root), own(root)
    monkeypatch.setattr(type(mapped), "resident", 0)
    start = mapped.array.images.data_ptr()
    x, y = mapped.batch(0, 3)
    assert mapped.train[0].data_ptr() == start
    monkeypatch.undo()
    monkeypatch.setenv("FMDIFF_DATA", str(files.data_root()))
    expected = data.batch(0, 3)
    assert torch.equal(x, expected[0]) and torch.equal(y, expected[1])


# What is refused


def broken(root):
    """Three files that are no images, each in its own way."""
    whole_file = (root / "class 0" / "000.png").read_bytes()
    (root / "class 0" / "cut.png").write_bytes(whole_file[: len(whole_file) // 2])
    (root / "class 1" / "text.jpg").write_text("no image")
    (root / "class 2" / "empty.png").touch()
    (root / "class 2" / "nowhere.png").symlink_to("absent.png")


def test_broken_images_are_counted_and_left_out_when_asked(root, cache, caplog, monkeypatch):
    expected = whole(own(root))
    broken(root)
    with pytest.raises(FmdiffError, match="4 of its 64 images cannot be read") as caught:
        own(root).prepare()
    message = str(caught.value)
    assert "data.skip_broken=true" in message and len(message.splitlines()) == 1
    assert len(re.findall(r"cut\.png|text\.jpg|empty\.png|nowhere\.png", message)) >= 3
    monkeypatch.setattr(folder, "pixels_of", None)  # what could be read is kept
    assert whole(own(root, skip_broken=True)) == expected
    assert "4 of its 64 images cannot be read" in caplog.text and "left out" in caplog.text


def test_bombs_are_not_unpacked(tmp_path, monkeypatch):
    for i in range(20):
        save(tmp_path / "mine" / f"{i}.png", noise(8, 8))
    Image.new("1", (8001, 8000)).save(tmp_path / "mine" / "bomb.png")
    Image.new("1", (20_000, 20_000)).save(tmp_path / "mine" / "bomb2.png")
    with pytest.raises(FmdiffError, match=r"2 of its 22 .*8001x8000 pixels are more than 64 mil"):
        own(tmp_path / "mine").prepare()


def test_nothing_but_broken_images(tmp_path):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "a.png").write_bytes(b"no image")
    for skip in (False, True):
        with pytest.raises(FmdiffError, match=r"none of its 1 images can be read: a\.png"):
            own(tmp_path / "mine", skip_broken=skip).prepare()


def test_images_of_several_sizes_need_a_size(root):
    save(root / "class 1" / "large.png", noise(9, 10))
    with pytest.raises(FmdiffError, match=r"data\.size=null needs images of one size.*10x9"):
        own(root, size=None).prepare()
    assert len(whole(own(root))) == 61


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ((), r"data=folder needs data\.root=PATH"),
        (("data.root=absent",), r"data\.root=\S*absent does not exist"),
        (("data.root=file.png",), r"data\.root=\S*file\.png is a file"),
        (("data.root=empty",), r"data\.root=\S*empty holds no images \(\.png, \.jpg"),
        (("data.root=mine", "data.batch_size=100"), r"data\.batch_size=100 is more than the 5\d"),
        (("data.root=mine", "data.size=0"), r"data\.size=0"),
        (("data.root=mine", "data.size=7.5"), r"data\.size=7\.5"),
        (("data.root=mine", "data.channels=2"), r"data\.channels=2: must be 1 or 3"),
        (("data.root=mine", "data.skip_broken=1"), r"data\.skip_broken=1"),
        (("data.root=mine", "data.conditional=3"), r"data\.conditional=3"),
        (("data.root=7",), r"data\.root=.*/7 does not exist"),
        (("data.root=mine/class1", "data.conditional=true"), r"at least two folders"),
    ],
    ids=str,
)
def test_a_wrong_word_is_one_sentence(command, root, capfd, words, said):
    Path("empty").mkdir()
    Path("file.png").touch()
    (root / "class 1").rename(root / "class1")
    assert command("train", *PLAIN, *BRIEF, "data=folder", "data.size=8", *words, "out=run") == 2
    error = capfd.readouterr().err.strip()
    assert re.search(said, error) and len(error.splitlines()) == 1 and "Traceback" not in error
    assert not Path("run").exists()


# Through the commands


@pytest.mark.slow
def test_train_then_sample_and_evaluate_without_the_folder(command, train, root, capfd):
    words = ("data=folder", "data.root=mine", "data.size=28", "data.channels=1")
    spec = train("run", *BRIEF, *words)["spec"]["data"]
    assert "3 classes (class 0, class 1, class 2); written" in "".join(capfd.readouterr())
    assert command("train", "resume=run", "trainer.max_steps=4") == 0
    assert "found in the cache" in "".join(capfd.readouterr())
    assert spec["shape"] == [1, 28, 28] and spec["classes"] == 3
    assert spec["std"] == pytest.approx(own(root, size=28).std, rel=1e-6)
    assert checkpoint.read(find("run"))["step"] == 4
    root.rename("moved")
    words = ("ckpt=run", "n=6", "steps=2", "device=cpu")
    assert command("sample", *words, "classes=[2]", "out=samples") == 0
    arrays = np.load("samples/samples.npz")
    assert arrays["arr_0"].shape == (6, 28, 28, 1) and arrays["labels"].tolist() == [2] * 6
    np.savez("real.npz", arr_0=noise(50, 28, 28, 1))
    words = ("ckpt=run", "n=50", "steps=1", "device=cpu", "features=mnist", "metrics=[fid]")
    assert command("evaluate", *words, "against=real.npz", "out=judged") == 0
    capfd.readouterr()
    assert command("evaluate", *words, "out=not_judged") == 2
    assert "does not exist: give a folder" in capfd.readouterr().err
    Path("moved").rename(root)
    assert command("evaluate", *words, "out=again") == 0
    assert "folder train" in "".join(capfd.readouterr())


def test_real_data_of_a_folder_is_sampled(command, root):
    words = ("data=folder", "data.root=mine", "data.size=8", "data.channels=1")
    words = ("model=data", *words, "data.batch_size=4", "n=3", "device=cpu", "out=real")
    assert command("sample", *words) == 0
    stored = [pixels for pixels, _ in whole(own(root))]
    assert all(x.tobytes() in stored for x in np.load("real/samples.npz")["arr_0"])
    assert json.loads(Path("real/sample.json").read_text())
