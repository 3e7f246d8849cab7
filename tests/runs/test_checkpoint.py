"""Checkpoint files survive kills, full disks and flipped bytes, and never run code."""

import errno
import fcntl
import logging
import multiprocessing
import os
import pickle
import random
import resource
import signal
import time
import zipfile
from collections import OrderedDict
from pathlib import Path
from types import SimpleNamespace

import numpy
import pytest
import torch
from omegaconf import OmegaConf

from fmdiff.errors import FmdiffError
from fmdiff.runs import checkpoint
from fmdiff.runs.find import find, newest_good


def content(step=7, size=50):
    generator = torch.Generator().manual_seed(step)
    raw = OrderedDict(
        weight=torch.randn(size, 3, generator=generator),
        half=torch.randn(5, generator=generator).bfloat16(),
        count=torch.tensor(step),
    )
    return {
        "step": step,
        "spec": {"path": {"_target_": "fmdiff.path.CondOT"}, "shape": (1, 8, 8), "std": 0.5},
        "weights": {"raw": raw, "0.9999": {k: v.clone() for k, v in raw.items()}},
        "training": {"optimizer": [{"state": {0: {"step": torch.tensor(3.0)}}, "lr": 1e-3}]},
    }


def same(a, b):
    """Equal to the last bit, NaN included; dict kinds apart."""
    if isinstance(a, torch.Tensor):
        bits = [t.detach().contiguous().reshape(-1).view(torch.uint8) for t in (a, b)]
        return a.dtype == b.dtype and a.shape == b.shape and torch.equal(*bits)
    if isinstance(a, dict):
        return list(a) == list(b) and all(same(a[k], b[k]) for k in a)
    if isinstance(a, list | tuple):
        return type(a) is type(b) and len(a) == len(b) and all(map(same, a, b))
    return type(a) is type(b) and (a == b or a != a)


def without_header(read):
    return {k: v for k, v in read.items() if k not in ("format", "version", "checksums")}


def temporaries(folder):
    return [p.name for p in folder.iterdir() if ".tmp-" in p.name]


@pytest.fixture
def path(tmp_path):
    checkpoint.write(tmp_path / "a.ckpt", content())
    return tmp_path / "a.ckpt"


@pytest.fixture
def old(path):
    """A checkpoint that must survive the test, with nothing beside it."""
    yield path
    assert os.listdir(path.parent) == ["a.ckpt"]
    assert same(without_header(checkpoint.read(path)), content())


# The content comes back


def test_round_trip_is_bit_identical(tmp_path):
    path = tmp_path / checkpoint.name(7)
    dtypes = [torch.float64, torch.float16, torch.bfloat16, torch.int8, torch.uint8, torch.bool]
    dtypes += [torch.complex64, torch.float8_e4m3fn, torch.uint16]
    odd = {
        "dtypes": [torch.tensor([[1, 0], [1, 1]]).to(d) for d in dtypes],
        "nan": torch.tensor([float("nan"), float("inf"), -0.0]),
        "empty": torch.zeros(0, 4),
        "scalars": [None, True, -3, 2**80, 1e-300, float("nan"), "ünï", ()],
        "parameter": torch.nn.Parameter(torch.ones(2)),
        "conjugate": torch.tensor([1 + 2j]).conj(),
    }
    checkpoint.write(path, content() | odd)
    checkpoint.write(tmp_path / "b.ckpt", content() | odd)
    assert path.read_bytes() == (tmp_path / "b.ckpt").read_bytes()
    odd["conjugate"] = torch.tensor([1 - 2j])
    read = checkpoint.read(path)
    assert same(without_header(read), content() | odd)
    assert type(read["parameter"]) is torch.Tensor and not read["parameter"].requires_grad
    assert (read["format"], read["version"]) == ("fmdiff", 1)
    assert path.name == "0000007.ckpt"
    export = {k: v for k, v in read.items() if k != "training"}
    checkpoint.write(path, export)  # what was read can be written again
    assert same(without_header(checkpoint.read(path)), without_header(export))


def test_views_are_compact_and_shared_tensors_stay_shared(tmp_path):
    path = tmp_path / "views.ckpt"
    big = torch.randn(1000, 1000)
    image = torch.randn(64, 3, 32, 32).to(memory_format=torch.channels_last)
    views = {"row": big[3], "column": big[:, 3], "wide": torch.ones(1).expand(9), "image": image}
    checkpoint.write(path, views | {"tied": image, "tied_too": image[:]})
    assert path.stat().st_size < 1.1 * image.nbytes + 50_000
    read = checkpoint.read(path)
    assert all(same(read[k], v) for k, v in views.items())
    assert read["tied"].data_ptr() == read["tied_too"].data_ptr() == read["image"].data_ptr()
    assert read["image"].stride() == image.stride()
    assert read["wide"].stride() == (1,)


class Text(str):
    pass


UNREADABLE = [SimpleNamespace(a=1), Text("str of another class"), {1, 2}, {(1, 2): 3}, Path("x")]
UNREADABLE += [torch.float32, torch.Size([2]), torch.eye(2).to_sparse(), torch.ones(2).to("meta")]
UNREADABLE += [numpy.float64(1), numpy.ones(2), OmegaConf.create({"a": [1]})]


@pytest.mark.parametrize("bad", UNREADABLE, ids=lambda bad: type(bad).__name__)
def test_what_could_not_be_read_back_is_rejected_by_name(old, bad):
    with pytest.raises(TypeError, match=r"'spec\.model\.1\.bad'"):
        checkpoint.write(old, content(2) | {"spec": {"model": [0, {"bad": bad}]}})
    with pytest.raises(TypeError, match=r"two tensors called 'a\.b'"):
        checkpoint.write(old, {"a.b": torch.ones(1), "a": {"b": torch.ones(1)}})


# Damage is named, never loaded


def damaged(path, data):
    path.write_bytes(data)
    with pytest.raises(checkpoint.Damaged) as caught:
        checkpoint.read(path)
    text = str(caught.value)
    assert str(path) in text and "damaged" in text and "\n" not in text
    return text


@pytest.mark.fault
def test_truncation_is_named(path):
    checkpoint.write(path, content(size=5000))
    whole = path.read_bytes()
    for kept in (0, 1, 30, len(whole) // 100, len(whole) // 2, len(whole) * 999 // 1000):
        assert f"cut short (it ends after {kept:,} bytes" in damaged(path, whole[:kept])
    damaged(path, whole[:-1])
    damaged(path, bytes(len(whole)))  # as a power cut leaves files on some file systems
    damaged(path, whole[: len(whole) // 2] + bytes(len(whole) - len(whole) // 2))


@pytest.mark.fault
def test_no_flipped_byte_gives_other_content(path):
    whole, truth = path.read_bytes(), checkpoint.read(path)
    generator = random.Random(0)
    harmless = 0
    for offset in sorted(generator.sample(range(len(whole)), 500)):
        mask = generator.choice([0xFF, 1, 1 << generator.randrange(8)])
        path.write_bytes(whole[:offset] + bytes([whole[offset] ^ mask]) + whole[offset + 1 :])
        try:
            read = checkpoint.read(path)
        except FmdiffError as error:
            assert str(path) in str(error)
        else:
            harmless += 1  # padding and unused fields of the archive
            assert same(read, truth), offset
    assert harmless < 450


@pytest.mark.fault
def test_a_flip_in_a_tensor_names_the_tensor(path):
    marked = torch.full((40,), 0x51515151, dtype=torch.int32)
    checkpoint.write(path, content() | {"weights": {"raw": {"layer.0.bias": marked}}})
    whole = bytearray(path.read_bytes())
    whole[whole.index(b"QQQQQQQQ") + 50] ^= 4
    assert "tensor 'weights.raw.layer.0.bias'" in damaged(path, bytes(whole))


def endless():
    """A list that stands twice in a list that stands twice in a list ..."""
    found = [0]
    for _ in range(60):
        found = [found, found]
    return found


@pytest.mark.filterwarnings("ignore:Validating sparse")
@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda c: c["weights"]["raw"].update(weight=torch.ones(50, 3)), "'weights.raw.weight'"),
        (lambda c: c["weights"]["raw"].update(half=torch.ones(5)), "'weights.raw.half'"),
        (lambda c: c["weights"]["raw"].pop("weight"), "'weights.raw.weight' is missing"),
        (lambda c: c.update(more=torch.ones(1)), "'more' has no checksum"),
        (lambda c: c.update(more=torch.eye(2).to_sparse()), "'more' has no checksum"),
        (lambda c: c["weights"].update(raw=torch.eye(2).to_sparse()), "'weights.raw'"),
        (lambda c: c.pop("checksums"), "no checksums"),
        (lambda c: c["spec"].update(spec=c["spec"]), "two places"),
        (lambda c: c["spec"].update(endless=endless()), "two places"),
        (lambda c: c.update(more=torch.ones(1).expand(10**13)), "'more' has no checksum"),
        (
            lambda c: c["weights"]["raw"].update(weight=torch.ones(1).expand(10**13)),
            "'weights.raw.weight' does not match",
        ),
    ],
)
@pytest.mark.fault
def test_content_that_is_not_as_its_checksums_say(path, change, reason):
    changed = torch.load(path, weights_only=True)
    change(changed)
    torch.save(changed, path)
    assert reason in damaged(path, path.read_bytes())


@pytest.mark.fault
def test_content_without_end_is_damage(path):
    """A pickle written by hand: lists in lists, deeper than Python walks."""
    with zipfile.ZipFile(path) as archive:
        parts = {name: archive.read(name) for name in archive.namelist()}
    known = {"format": "fmdiff", "version": 1, "step": 1, "checksums": {}}
    start = pickle.dumps(known, 2)[:-1] + b"X\x04\x00\x00\x00deep"
    with zipfile.ZipFile(path, "w") as archive:
        for name, data in parts.items():
            pickled = start + b"]" * 5000 + b"a" * 4999 + b"s."
            archive.writestr(name, pickled if name.endswith("data.pkl") else data)
    assert "deep" in damaged(path, path.read_bytes())


@pytest.mark.fault
def test_parts_that_lie_upon_each_other_are_damage(path):
    """A directory that lists one part often: a small file would be hours of reading."""
    whole = path.read_bytes()
    start = whole.index(b"PK\x01\x02")
    end = whole.rindex(b"PK\x05\x06")
    count = int.from_bytes(whole[end + 10 : end + 12], "little")
    directory = whole[start : whole.index(b"PK\x06\x06") if b"PK\x06\x06" in whole else end]
    tail = b"PK\x05\x06" + bytes(4) + (count * 50).to_bytes(2, "little") * 2
    tail += (len(directory) * 50).to_bytes(4, "little") + start.to_bytes(4, "little") + bytes(2)
    assert "upon each other" in damaged(path, whole[:start] + directory * 50 + tail)


def refused(path, match):
    with pytest.raises(FmdiffError, match=match) as caught:
        checkpoint.read(path)
    assert "\n" not in str(caught.value) and "weights_only" not in str(caught.value)


@pytest.mark.fault
def test_files_of_other_programs(path):
    torch.save({"state_dict": {"w": torch.ones(2)}, "epoch": 3}, path)
    refused(path, r"not an fmdiff checkpoint .*'state_dict', 'epoch'")
    torch.save(torch.ones(2), path)
    refused(path, r"not an fmdiff checkpoint .*Tensor")
    torch.save({"format": "fmdiff", "version": 2, "anything": 1}, path)
    refused(path, r"newer fmdiff \(format version 2, this is 1\)")
    torch.save({"a": torch.ones(2)}, path, _use_new_zipfile_serialization=False)
    refused(path, "no checkpoint")
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("notes/readme.txt", "hello")
    refused(path, r"not an fmdiff checkpoint .*notes/readme\.txt")
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("archive/data.pkl", bytes(10**6))
    refused(path, "data.pkl' is not as it was written")
    path.write_bytes(b"Dear reader,\nthis is no checkpoint.\n")
    refused(path, "no checkpoint")
    refused(path.parent, "cannot be opened: Is a directory")
    refused(path.with_name("none.ckpt"), "cannot be opened: No such file")


class Evil:
    def __init__(self, marker):
        self.marker = marker

    def __reduce__(self):
        return os.mkdir, (str(self.marker),)


@pytest.mark.parametrize("how", ["pickle", "zip", "legacy", "key"])
@pytest.mark.fault
def test_code_in_a_checkpoint_is_never_run(tmp_path, how):
    path, marker = tmp_path / "a.ckpt", tmp_path / "marker"
    evil = Evil(marker)
    if how == "pickle":
        path.write_bytes(pickle.dumps(evil))
    elif how == "key":
        torch.save({"format": "fmdiff", "version": 1, "step": 1, "checksums": {}, "a": evil}, path)
    else:
        torch.save(evil, path, _use_new_zipfile_serialization=how == "zip")
    refused(
        path, "refused: it asks for code .*mkdir" if how in ("zip", "key") else "no checkpoint"
    )
    with pytest.raises(FmdiffError):
        newest_good(path.rename(tmp_path / checkpoint.LAST).parent)
    assert not marker.exists()


# Writing


@pytest.mark.parametrize("function", ["replace", "fsync"])
@pytest.mark.fault
def test_a_failing_write_leaves_the_old_file(old, monkeypatch, function):
    def fail(*args):
        raise OSError(errno.EIO, "no")

    with monkeypatch.context() as patch, pytest.raises(OSError, match="no"):
        patch.setattr(os, function, fail)
        checkpoint.write(old, content(2))


@pytest.mark.parametrize("missing", [10, 1000, 500_000, 999_000])
@pytest.mark.fault
def test_a_full_disk_leaves_the_old_file_and_says_why(old, missing):
    checkpoint.write(old, content(2, size=50_000))
    room = old.stat().st_size - missing
    checkpoint.write(old, content())
    limit = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (room, limit[1]))
    try:
        with pytest.raises(OSError) as caught:
            checkpoint.write(old, content(2, size=50_000))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limit)
    assert caught.value.errno == errno.EFBIG


@pytest.mark.fault
def test_a_file_that_does_not_read_back_is_not_kept(old, monkeypatch):
    def lossy(content, file):
        torch.serialization.save(content, file)
        file.seek(3000)
        file.write(bytes(400))
        file.seek(0, os.SEEK_END)

    with monkeypatch.context() as patch, pytest.raises(OSError, match="not read back"):
        patch.setattr(torch, "save", lossy)
        checkpoint.write(old, content(2))


def test_only_temporaries_of_dead_writers_are_swept(tmp_path):
    """Files of other names, another process's unfinished file and a link stay."""
    code = "15a0c3" * 2 + "beef"
    stale = [f"0000001.ckpt.tmp-{code}", f"model.tmp-{code}"]
    others = [f"notes.tmp-{code}", "a.ckpt.tmp-0", "thesis.ckpt.tmp-4711", f"a.ckpt.tmp-{code}0"]
    for name in stale + others:
        (tmp_path / name).write_bytes(b"half")
    (tmp_path / f"link.ckpt.tmp-{code}").symlink_to(tmp_path / "a.ckpt.tmp-0")
    live = f"live.ckpt.tmp-{code}"
    with (tmp_path / live).open("wb") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        checkpoint.write(tmp_path / "model", content())
    assert sorted(os.listdir(tmp_path)) == sorted(
        [*others, live, f"link.ckpt.tmp-{code}", "model"]
    )


def test_link_last(tmp_path, monkeypatch):
    first, second = (tmp_path / checkpoint.name(step) for step in (1, 2))
    last = tmp_path / checkpoint.LAST
    for path in (first, second, second):
        if not path.exists():
            checkpoint.write(path, content(int(path.stem)))
        checkpoint.link_last(path)
        assert last.samefile(path)
    assert not temporaries(tmp_path)

    def unsupported(*args):
        raise OSError(errno.EPERM, "no links here")

    monkeypatch.setattr(os, "link", unsupported)
    checkpoint.link_last(first)
    assert not last.samefile(first) and last.read_bytes() == first.read_bytes()
    with pytest.raises(FileNotFoundError):
        checkpoint.link_last(tmp_path / checkpoint.name(3))
    assert last.read_bytes() == first.read_bytes() and not temporaries(tmp_path)


def kill_content(step):
    return {"step": step, "weights": {"w": torch.full((30_000,), step)}}


def write_for_ever(folder, step):
    while True:
        step += 1
        path = folder / checkpoint.name(step)
        checkpoint.write(path, kill_content(step))
        checkpoint.link_last(path)


def survive_kills(folder, count):
    """SIGKILL a writer of checkpoints `count` times and read what it left after each."""
    fork, generator = multiprocessing.get_context("fork"), random.Random(count)
    start = time.perf_counter()
    checkpoint.write(folder / checkpoint.name(0), kill_content(0))
    took = time.perf_counter() - start
    step = orphans = 0
    for _ in range(count):
        child = fork.Process(target=write_for_ever, args=(folder, step))
        child.start()
        time.sleep(0.01 + generator.uniform(0, 6) * took)
        os.kill(child.pid, signal.SIGKILL)
        child.join()
        orphans += len(temporaries(folder))
        for path in folder.glob("*.ckpt"):
            good = checkpoint.read(path)
            assert (good["weights"]["w"] == good["step"]).all()
        newest, good = newest_good(folder)
        assert good["step"] >= step
        step = good["step"]
        for path in set(folder.glob("0*.ckpt")) - {newest}:
            path.unlink()
    assert step and orphans  # or no kill fell into a write
    checkpoint.write(folder / checkpoint.name(step + 1), content(step + 1))
    assert not temporaries(folder)


@pytest.mark.fault(count=30)
def test_thirty_kills(tmp_path):
    """SIGKILL at any instant: the newest checkpoint is whole, and nothing is left for long."""
    survive_kills(tmp_path, 30)


# Looking for a checkpoint


def run_folder(folder, *steps, age=0):
    folder.mkdir(parents=True)
    for step in steps:
        path = folder / checkpoint.name(step)
        checkpoint.write(path, content(step))
        os.utime(path, (1e9 - age, 1e9 - age))
        checkpoint.link_last(path)
    return folder


def cut(path):
    data = path.read_bytes()
    path.unlink()  # not its other link
    path.write_bytes(data[: len(data) // 2])


@pytest.mark.fault
def test_newest_good_goes_by_step_and_falls_back(tmp_path, caplog):
    assert newest_good(tmp_path) is None
    run = run_folder(tmp_path / "run", 9, 10_000_000, 800)  # last.ckpt is step 800
    (run / "0000900.ckpt.tmp-1").write_bytes(b"half")
    (run / "other.ckpt").write_bytes(b"not ours")
    path, read = newest_good(run)
    assert (path.name, read["step"]) == ("10000000.ckpt", 10_000_000)
    assert not caplog.records
    cut(path)
    path, read = newest_good(run)
    assert (path.name, read["step"]) == ("0000800.ckpt", 800)
    assert "10000000.ckpt is damaged" in caplog.text and "falling back to" in caplog.text
    cut(path)  # last.ckpt is now the only good copy of step 800
    path, read = newest_good(run)
    assert (path.name, read["step"]) == ("last.ckpt", 800)
    cut(path)
    assert newest_good(run)[0].name == "0000009.ckpt"
    cut(run / "0000009.ckpt")
    with pytest.raises(FmdiffError, match=r"no checkpoint in .*run can be read: .*damaged"):
        newest_good(run)


def test_a_newer_format_is_not_passed_over(tmp_path):
    run = run_folder(tmp_path / "run", 1)
    torch.save({"format": "fmdiff", "version": 2, "step": 2}, run / checkpoint.name(2))
    with pytest.raises(FmdiffError, match="newer fmdiff"):
        newest_good(run)


def test_find_a_file_or_a_run(tmp_path, caplog):
    caplog.set_level(logging.INFO)
    run = run_folder(tmp_path / "run = ünï", 1, 20)
    assert find(str(run / "0000001.ckpt")) == run / "0000001.ckpt"
    assert find(run) == run / "0000020.ckpt"
    assert "using" in caplog.text and "0000020.ckpt" in caplog.text and "step 20" in caplog.text
    for path in run.glob("0*.ckpt"):
        path.unlink()
    assert find(run) == run / "last.ckpt"


def test_find_last(tmp_path):
    outputs = tmp_path / "outputs"
    with pytest.raises(FmdiffError, match="no run under"):
        find("last", outputs)
    run_folder(outputs / "moons" / "2025-01-01_00-00-00", 5000, age=300)
    run_folder(outputs / "mnist" / "2025-01-02_00-00-00", 10, age=200)
    run_folder(outputs / "a" / "2024-01-02_00-00-00", age=0)  # started, no checkpoint yet
    assert find("last", outputs).parts[-3:-1] == ("mnist", "2025-01-02_00-00-00")
    job = run_folder(outputs / "sweep" / "2025-01-03_00-00-00" / "1", 3, age=100)
    assert find("last", str(outputs)) == job / "0000003.ckpt"


def test_what_is_not_found_lists_what_is_near(tmp_path):
    outputs = tmp_path / "outputs"
    run_folder(outputs / "moons" / "b", *range(1, 9))
    run_folder(tmp_path / "elsewhere" / "run", 4)
    for spec in (outputs / "moons" / "typo", outputs / "moons", outputs / "mons" / "b" / "x.ckpt"):
        with pytest.raises(FmdiffError) as caught:
            find(spec, outputs)
        text = str(caught.value)
        assert f"ckpt={spec} " in text and text.count(".ckpt, ") == 4 and "moons/b/" in text
    with pytest.raises(FmdiffError, match=r"does not exist; .*nearby: .*run/0000004\.ckpt"):
        find(tmp_path / "elsewhere" / "run" / checkpoint.name(5), outputs)
    with pytest.raises(FmdiffError, match="no checkpoint was found nearby"):
        find(tmp_path / "no" / "such" / "place" / "x.ckpt", tmp_path / "no")
