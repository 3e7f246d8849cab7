"""Rows of large files: the order of windows, what is read when, and what damage ends in."""

import os
import threading
from itertools import pairwise
from math import sqrt

import numpy as np
import pytest
import torch

from fmdiff.data import shards as module
from fmdiff.data.extent import STRETCH, STRETCHES, Extent
from fmdiff.data.shards import Shards
from fmdiff.errors import FmdiffError
from fmdiff.randomness import Windows

# The order


def walk(windows, batch_size, epochs):
    """Shards and places in the order of training, as pairs (window, place)."""
    visits = []
    for step in range(-(-epochs * windows.rows // batch_size)):
        for window, places in windows.places(step, batch_size):
            visits += [(window, place) for place in range(places.start, places.stop)]
    return visits[: epochs * windows.rows]


@pytest.mark.parametrize("counts", [[1], [5], [4, 4, 4, 2], [3, 1, 7, 2, 5, 1, 1]])
@pytest.mark.parametrize("size", [1, 3, 100])
@pytest.mark.parametrize("batch_size", [1, 4, 50])
def test_an_epoch_visits_each_row_once_window_by_window(counts, size, batch_size):
    windows = Windows(7, torch.tensor(counts), size)
    n, number = sum(counts), -(-len(counts) // size)
    visits = walk(windows, batch_size, 3)
    starts = np.append(0, np.cumsum(counts))
    for epoch in range(3):
        rows = []
        for window, place in visits[epoch * n : (epoch + 1) * n]:
            assert window // number == epoch
            inside = torch.cat(
                [torch.arange(starts[k], starts[k + 1]) for k in windows.shards(window)]
            )
            rows.append(int(inside[windows.order(window)][place]))
        assert sorted(rows) == list(range(n))
    assert all(0 <= after[0] - before[0] <= 1 for before, after in pairwise(visits))


def test_the_order_is_a_function_of_seed_and_epoch():
    counts = torch.full((40,), 30)
    first, again = Windows(0, counts, 8), Windows(0, counts, 8)
    late = [again.shards(k).tolist() for k in range(15, -1, -1)][::-1]
    assert [first.shards(k).tolist() for k in range(16)] == late
    assert torch.equal(first.order(3), again.order(3))
    assert not torch.equal(first.order(3), first.order(4))
    epochs = [
        [shard for k in range(5) for shard in windows.shards(5 * e + k).tolist()]
        for windows in (first, Windows(1, counts, 8))
        for e in range(3)
    ]
    assert len({tuple(epoch) for epoch in epochs}) == 6
    assert all(sorted(epoch) == list(range(40)) for epoch in epochs)


def test_a_step_straddles_windows_and_epochs():
    windows = Windows(0, torch.tensor([4, 4, 4, 4]), 2)
    assert list(windows.places(0, 6)) == [(0, slice(0, 6))]
    assert list(windows.places(1, 6)) == [(0, slice(6, 8)), (1, slice(0, 4))]
    assert list(windows.places(2, 6)) == [(1, slice(4, 8)), (2, slice(0, 2))]
    assert list(windows.places(0, 20)) == [(0, slice(0, 8)), (1, slice(0, 8)), (2, slice(0, 4))]


def test_the_share_of_a_kind_in_a_window_spreads_as_the_docstring_says():
    """A file in the order of its classes: 20 of 200 shards are of one class."""
    windows, p, m, size = Windows(0, torch.full((200,), 10), 10), 0.1, 200, 10
    shares = torch.tensor([(windows.shards(k) < 20).float().mean() for k in range(4000)])
    spread = sqrt(p * (1 - p) * (m - size) / (size * (m - 1)))
    assert shares.mean().item() == pytest.approx(p, abs=1e-6)  # whole epochs
    assert shares.std().item() == pytest.approx(spread, rel=4 * sqrt(0.5 / 4000) + 0.01)


# Where rows lie


@pytest.fixture
def small(monkeypatch):
    """Shards of 4 rows of 8 bytes, windows of 3 shards."""
    monkeypatch.setattr(Shards, "shard", 35)
    monkeypatch.setattr(Shards, "size", 3)


def numbered(path, n, dtype=np.float32, shape=(2,)):
    """A .npy of n rows, each full of its number, mapped."""
    np.save(
        path,
        np.broadcast_to(np.arange(n).reshape(-1, *[1] * len(shape)), (n, *shape)).astype(dtype),
    )
    return np.load(path, mmap_mode="r")


def rows_of(shards, step, batch_size, rows=slice(None), seed=0):
    (x,), numbers = shards.take(seed, step, batch_size, rows)
    x = torch.as_tensor(np.asarray(x, float).reshape(len(x), -1))
    assert (x == numbers[:, None]).all()
    return numbers.tolist()


def test_mapped_arrays_are_located_in_their_files(tmp_path):
    array = numbered(tmp_path / "a.npy", 50, ">i4", (3,))
    for part in (array, array[7:20], np.asarray(array)[10:], array.reshape(50, 3, 1)):
        extent = Extent.of(part)
        raw = np.fromfile(tmp_path / "a.npy", np.uint8, extent.nbytes, offset=extent.offset)
        assert np.array_equal(extent.values(raw.reshape(-1, extent.row_bytes)), part)
    for no in (array[:, 1:], array[::2], np.array(array), array[:0]):
        assert Extent.of(no) is None
    tensor = torch.randn(40, 5).bfloat16()
    torch.save({"x": tensor}, tmp_path / "a.pt")
    mapped = torch.load(tmp_path / "a.pt", weights_only=True, mmap=True)["x"]
    extent = Extent.of(mapped[3:])
    raw = np.fromfile(tmp_path / "a.pt", np.uint8, extent.nbytes, offset=extent.offset)
    assert torch.equal(extent.values(raw.reshape(-1, 10)), tensor[3:])
    assert Extent.of(tensor) is None


# What training is given


@pytest.mark.parametrize("n", [1, 11, 12, 40])
@pytest.mark.parametrize("batch_size", [1, 5, 30])
def test_an_epoch_of_a_file_has_each_row_once_but_those_left_out(tmp_path, small, n, batch_size):
    array = numbered(tmp_path / "a.npy", n)
    for out in ([], [0], list(range(4, 9)), list(range(0, n, 3))):
        wanted = sorted(set(range(n)) - set(out))
        if not wanted:
            continue
        shards = Shards([Extent.of(array)], np.array(out, np.int64)[np.array(out, int) < n])
        assert len(shards) == len(wanted)
        steps = -(-2 * len(wanted) // batch_size)
        visits = [row for k in range(steps) for row in rows_of(shards, k, batch_size)]
        for epoch in range(2):
            assert sorted(visits[epoch * len(wanted) : (epoch + 1) * len(wanted)]) == wanted
        shards.close()


def test_a_step_is_the_same_whatever_was_asked_before(tmp_path, small):
    array = numbered(tmp_path / "a.npy", 100)
    shards = Shards([Extent.of(array)])
    steps = {k: rows_of(shards, k, 7) for k in range(40)}
    for k in (39, 3, 17, 16, 18, 2, 25, 0):
        assert rows_of(shards, k, 7) == steps[k]
        other = Shards([Extent.of(array)])
        assert rows_of(other, k, 7) == steps[k]
        assert rows_of(other, k, 7, slice(0, 3)) + rows_of(other, k, 7, slice(3, 7)) == steps[k]
        other.close()
    assert rows_of(shards, 3, 7, seed=1) != steps[3]
    assert rows_of(shards, 3, 7) == steps[3]
    shards.close()


def test_arrays_go_together(tmp_path, small):
    x, y = numbered(tmp_path / "x.npy", 60), numbered(tmp_path / "y.npy", 60, np.int16, ())
    shards = Shards([Extent.of(x), Extent.of(y)], np.arange(10, 20))
    for step in range(12):
        (a, b), numbers = shards.take(0, step, 9)
        assert a.dtype == np.float32 and b.dtype == np.int16 and a.shape == (9, 2)
        assert np.array_equal(a[:, 0], b) and np.array_equal(b, numbers)
    shards.close()


def test_two_windows_are_in_memory_and_the_next_is_read_ahead(tmp_path, small, monkeypatch):
    array = numbered(tmp_path / "a.npy", 240)  # 20 windows of 12 rows
    read, memory = [], []
    whole, make = Shards._read, Shards._memory
    monkeypatch.setattr(Shards, "_read", lambda s, k, m: read.append(k) or whole(s, k, m))
    monkeypatch.setattr(Shards, "_memory", lambda s: memory.append(1) or make(s))
    shards = Shards([Extent.of(array)])
    rows_of(shards, 0, 1)
    assert read == [0]  # less than an eighth of 12 rows
    for step in range(1, 200):
        rows_of(shards, step, 1)
        assert len(shards.held) <= 2
        if step % 12 >= 2:
            assert step // 12 + 1 in shards.held  # it is read while training is at `step`
        rows_of(shards, step - 1, 1)  # a coupling is ahead of training
    while any(not future.done() for future in shards.held.values()):
        pass
    assert read == list(range(len(read))) and len(memory) == 2
    shards.close()


def test_threads_may_share_it(tmp_path, small):
    array = numbered(tmp_path / "a.npy", 300)
    shards, alone = Shards([Extent.of(array)]), Shards([Extent.of(array)])
    expected = [rows_of(alone, k, 7) for k in range(80)]
    results: dict = {}

    def work(offset):
        for k in range(offset, 80, 2):
            results[k] = rows_of(shards, k, 7)

    workers = [threading.Thread(target=work, args=(i,)) for i in range(2)]
    [w.start() for w in workers]
    [w.join() for w in workers]
    assert [results[k] for k in range(80)] == expected
    shards.close()
    alone.close()


def test_closing_ends_the_threads_and_frees_files(tmp_path, small):
    array = numbered(tmp_path / "a.npy", 300)
    before, files = threading.active_count(), len(os.listdir("/proc/self/fd"))
    shards = Shards([Extent.of(array)])
    expected = rows_of(shards, 5, 7)
    assert threading.active_count() > before
    shards.close()
    shards.close()
    assert threading.active_count() == before and len(os.listdir("/proc/self/fd")) == files
    assert rows_of(shards, 5, 7) == expected
    shards.close()


def test_shards_have_bounds(tmp_path):
    narrow = Extent(tmp_path / "a", 0, 10**10, (), np.dtype(np.uint8))
    wide = Extent(tmp_path / "a", 0, 1000, (3, 4000, 4000), np.dtype(np.float32))
    normal = Extent(tmp_path / "a", 128, 3_495_253, (3, 32, 32), np.dtype(np.float16))
    assert Shards([narrow]).length == 1 << 16 and Shards([wide]).length == 1
    assert Shards([normal]).length == (8 << 20) // 6144
    assert len(Shards([narrow])) == 10**10


# What stands for a large file


def test_a_small_file_is_its_own_sample(tmp_path):
    array = numbered(tmp_path / "a.npy", 5000, np.float64, (2,))
    sample, numbers = Extent.of(array).sample
    assert np.array_equal(sample, array) and np.array_equal(numbers, np.arange(5000))


def test_a_sample_is_spread_over_a_large_file(tmp_path):
    n, row = 40_000, 4096
    array = np.memmap(tmp_path / "a.bin", np.float32, "w+", 64, (n, row // 4))  # sparse
    array[:] = 0
    array[:, 0] = np.arange(n)
    array.flush()
    sample, numbers = Extent.of(array).sample
    assert len(sample) == STRETCHES * STRETCH // row and np.array_equal(sample[:, 0], numbers)
    assert len(np.unique(numbers)) == len(numbers)
    # one stretch in each part, so the mean of what grows along the file is known to 1 / parts
    assert abs(numbers.mean() - n / 2) < n / STRETCHES
    share = np.histogram(numbers, 64, (0, n))[0]
    assert share.min() > 0.9 * len(numbers) / 64


def test_a_digest_is_of_the_numbers_and_not_of_the_file(tmp_path):
    array = numbered(tmp_path / "a.npy", 50)
    digest = Extent.of(array).digest
    np.save(tmp_path / "b.npy", array)
    os.utime(tmp_path / "b.npy", (1, 1))
    assert Extent.of(np.load(tmp_path / "b.npy", mmap_mode="r")).digest == digest
    for change in (array[:-1], array.reshape(100, 1), array + np.eye(50, 2, dtype=np.float32)):
        np.save(tmp_path / "c.npy", change)
        assert Extent.of(np.load(tmp_path / "c.npy", mmap_mode="r")).digest != digest


# Damage


def test_a_file_that_is_cut_off_or_gone_is_said(tmp_path, small):
    array = numbered(tmp_path / "a.npy", 60)
    shards = Shards([Extent.of(array)])
    os.truncate(tmp_path / "a.npy", 400)
    with pytest.raises(FmdiffError, match=r"a\.npy cannot be read: its last row is cut off"):
        shards.take(0, 0, 4)
    (tmp_path / "a.npy").unlink()
    with pytest.raises(FmdiffError, match=r"a\.npy cannot be read: No such file"):
        shards.take(0, 0, 4)


def test_a_file_that_is_cut_off_during_training_is_said(tmp_path, small, monkeypatch):
    array = numbered(tmp_path / "a.npy", 240)
    shards = Shards([Extent.of(array)])
    rows_of(shards, 0, 1)
    os.truncate(tmp_path / "a.npy", 128)
    with pytest.raises(FmdiffError, match=r"a\.npy cannot be read: it ends at byte"):
        for step in range(1, 40):
            shards.take(0, step, 4)
    shards.close()


def test_the_quarter_of_the_memory_decides(monkeypatch):
    monkeypatch.setattr(module.device, "memory", lambda: 8000)
    assert Shards.large(2001) and not Shards.large(2000)
