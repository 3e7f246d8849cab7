"""Training on files that are read ahead: what is learned from, and going on after kill -9."""

import os
import signal
import subprocess
import sys

import numpy as np
import pytest
import torch
from conftest import PLAIN, metrics
from PIL import Image
from test_data import make

from fmdiff.data import mapped
from fmdiff.data.mapped import Without, halves
from fmdiff.data.shards import Shards
from fmdiff.errors import FmdiffError
from fmdiff.runs import checkpoint
from fmdiff.runs.find import find

N = 300
EVERY = tuple(f"trainer.{name}_every=10" for name in ("log", "validate", "checkpoint"))
RUN = (
    "data=array",
    "data.file=../a.npy",
    "data.stream=true",
    "data.batch_size=16",
    "model=mlp",
    "model.hidden=16",
    *EVERY,
    "trainer.max_steps=40",  # 640 of 270 rows an epoch, in windows of 60
    "trainer.inner_steps=1",
    "trainer.picture_every=1000",
)
# the command line with small windows, in a process that the system kills before step 27
KILLED = """
import os, signal, sys
from fmdiff import cli
from fmdiff.data.shards import Shards
from fmdiff.training.module import Training
Shards.shard, Shards.size = 240, 3
step = Training.optimiser_step
def killed(self, k, parts):
    if k == 27:
        os.kill(os.getpid(), signal.SIGKILL)
    step(self, k, parts)
Training.optimiser_step = killed
sys.exit(cli.main(sys.argv[1:]))
"""


@pytest.fixture
def small(monkeypatch):
    """Shards of 20 rows of 12 bytes, 3 of them a window."""
    monkeypatch.setattr(Shards, "shard", 240)
    monkeypatch.setattr(Shards, "size", 3)


@pytest.fixture
def file(tmp_path):
    """Rows whose second number is that of the row."""
    x = np.random.default_rng(0).normal(3, 2, (N, 3)).astype(np.float32)
    x[:, 1] = np.arange(N)
    np.save(tmp_path / "a.npy", x)
    return tmp_path / "a.npy"


def own(path, **keys):
    return make("array", **({"file": str(path), "batch_size": 16} | keys))


def numbers(data, step, rows=slice(None)):
    """The numbers of the rows of a batch."""
    x, _ = data.batch(0, step, rows)
    return data.codec.decode(x)[:, 1].round().int().tolist()


def test_an_epoch_has_each_training_row_once_and_none_that_is_held_out(file, small):
    data = own(file, stream=True)
    held = data.codec.decode(data.held_out(1000)[0])[:, 1].round().int().tolist()
    assert len(held) == 30 and data.training_size == 270
    visits = [row for step in range(34) for row in numbers(data, step)]
    for epoch in (visits[:270], visits[270:540]):
        assert sorted([*epoch, *held]) == list(range(N))
    assert visits[:270] != visits[270:540]
    assert numbers(data, 5, slice(0, 8)) + numbers(data, 5, slice(8, 16)) == numbers(data, 5)
    data.shards.close()


def test_what_is_held_out_and_learned_does_not_depend_on_the_memory(file, small, monkeypatch):
    inside = own(file)
    assert inside.shards is None
    few = inside.held_out(1000)[0], inside.std, inside.codec.mean, inside.codec.scale
    monkeypatch.setattr("fmdiff.machine.device.memory", lambda: 4000)
    outside = own(file)
    assert outside.shards is not None and own(file, stream=False).shards is None
    for one, other in zip(few, (outside.held_out(1000)[0], outside.std), strict=False):
        torch.testing.assert_close(torch.as_tensor(one), torch.as_tensor(other))
    torch.testing.assert_close(few[2], outside.codec.mean)
    assert torch.allclose(few[3], outside.codec.scale)


def test_labels_and_conditions_come_with_their_rows(tmp_path, small):
    x = np.arange(N, dtype=np.float32)[:, None] * np.ones(3, np.float32)
    np.savez(tmp_path / "a.npz", x=x, y=np.arange(N) % 3, c=np.arange(N)[:, None] / 7)
    keys = {"key": "x", "label": "y", "cond": ["c"], "standardise": False, "stream": True}
    for more in ({}, {"only": [0, 2]}):
        data = own(tmp_path / "a.npz", **keys, **more)
        seen = []
        for step in range(30):
            z, y = data.batch(0, step)
            assert torch.equal(y.parts["label"], (z[:, 0] % 3).long())
            torch.testing.assert_close(y.parts["c"], z[:, :1] / 7)
            seen += z[:, 0].int().tolist()
        assert {int(k) % 3 for k in seen} == {*(more.get("only") or range(3))}
        size = data.training_size
        assert len({*seen[:size]}) == size
        data.shards.close()


def test_a_missing_value_in_a_large_file_is_said_when_it_is_met(file, small, monkeypatch):
    x = np.load(file)
    x[77, 2] = np.nan
    np.save(file, x)
    with pytest.raises(
        FmdiffError, match=r"a\.npy holds a missing or an infinite value in row 77"
    ):
        _ = own(file, stream=True).std
    monkeypatch.setattr(mapped.Source, "sample", lambda *_: torch.randn(50, 3))  # met later
    data = own(file, stream=True)
    with pytest.raises(FmdiffError, match="in row 77"):
        [data.batch(0, step) for step in range(34)]
    data.shards.close()


def test_a_table_cannot_be_read_in_pieces(tmp_path):
    (tmp_path / "a.csv").write_text("a,b\n" + "1,2\n3,5\n" * 20)
    with pytest.raises(FmdiffError, match=r"data\.stream=true: .*a\.csv cannot be read in pieces"):
        _ = own(tmp_path / "a.csv", stream=True).shards


@pytest.mark.parametrize("out", [[], [0], [5, 1, 2], [9], list(range(10))])
def test_numbers_without_some_need_no_list(out):
    rest = [k for k in range(10) if k not in out]
    rows = Without(10, np.array(out, int))
    assert (
        len(rows) == len(rest)
        and rows[:].tolist() == rest
        and rows[1:-1:2].tolist() == rest[1:-1:2]
    )
    assert rows.among(np.arange(10)).tolist() == [k in rest for k in range(10)]


@pytest.mark.parametrize("many", [False, True])
def test_a_random_share_is_held_out(many, monkeypatch):
    if many:
        monkeypatch.setattr(mapped, "MANY", 100)
        monkeypatch.setattr(mapped, "MOST_HELD", 400)
    for numbers in (Without(10_000, np.arange(50)), np.arange(50, 10_000)):
        rest, held = halves(numbers, 0.1, 0)
        assert len(held) == (400 if many else 995)
        assert sorted([*rest[:], *held]) == list(range(50, 10_000))
        assert abs(held.mean() - 5025) < 4 * 2872 / len(held) ** 0.5
        assert not np.array_equal(halves(numbers, 0.1, 1)[1], held)


def test_pictures_of_a_folder_come_with_their_classes(tmp_path, small, monkeypatch):
    monkeypatch.setenv("FMDIFF_DATA", str(tmp_path / "cache"))
    for k in range(60):
        path = tmp_path / "pictures" / "ab"[k % 2] / f"{k}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.full((8, 8), k, np.uint8)).save(path)
    keys = {"root": str(tmp_path / "pictures"), "size": 8, "channels": 1, "batch_size": 9}
    data, other = make("folder", **keys, stream=True), make("folder", **keys)
    assert other.shards is None and len(data.shards) == data.training_size
    size, seen = data.training_size, []
    for step in range(-(-2 * size // 9)):
        x, y = data.batch(0, step)
        level = x[:, 0, 3, 5].add(1).mul(127.5).round().int()
        assert (x == x[:, :, :1, :1]).all() and torch.equal(y, level.long() % 2)
        seen += level.tolist()
    trained = sorted({int(k) for k in other.train[0][:, 0, 0, 0]})
    assert sorted(seen[:size]) == trained == sorted(seen[size : 2 * size])
    data.shards.close()
    monkeypatch.setattr("fmdiff.machine.device.memory", lambda: 4 * size * 64 - 1)
    assert make("folder", **keys).shards is not None


# The command


@pytest.mark.fault
def test_a_run_that_was_killed_in_a_window_ends_bit_identically(train, file, small, tmp_path):
    (tmp_path / "at").mkdir()
    command = [sys.executable, "-c", KILLED, "train", *PLAIN, *RUN, "out=../run"]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    ended = subprocess.run(command, cwd=tmp_path / "at", env=environment, check=False)
    assert ended.returncode == -signal.SIGKILL
    assert checkpoint.read(find(tmp_path / "run"))["step"] == 20  # 320 rows: the second epoch
    os.chdir(tmp_path / "at")
    resumed = train(tmp_path / "run", *RUN, "resume=true")
    whole = train(tmp_path / "whole", *RUN)
    assert resumed["step"] == 40 and resumed["checksums"] == whole["checksums"]
    assert metrics(tmp_path / "run") == metrics(tmp_path / "whole")


def test_a_run_keeps_how_its_rows_were_read(train, file, small, tmp_path, monkeypatch, capfd):
    """Another machine would decide otherwise, and the order would be another."""
    (tmp_path / "at").mkdir()
    os.chdir(tmp_path / "at")
    words = [word for word in RUN if not word.startswith("data.stream")]
    with monkeypatch.context() as machine:
        machine.setattr("fmdiff.machine.device.memory", lambda: 4000)
        part = train(tmp_path / "run", *words, "trainer.max_steps=20", "trainer.decay=constant")
    assert part["training"]["config"]["data"]["stream"] is True
    more = ("trainer.decay=constant", "resume=true")
    resumed = train(tmp_path / "run", *words, *more)
    assert resumed["training"]["config"]["data"]["stream"] is True
    whole = train(tmp_path / "whole", *RUN, "trainer.decay=constant")
    assert resumed["checksums"] == whole["checksums"]
    capfd.readouterr()
    train(tmp_path / "run", *words, "data.stream=false", "trainer.max_steps=50", *more, code=2)
    assert "data.stream: True (saved) vs False (now)" in capfd.readouterr().err
