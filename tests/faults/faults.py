"""What is done to files, memory, disk, network and clock by the rows of fault_table."""

import contextlib
import fcntl
import os
import pickle
import resource
import shutil
import zipfile
from collections.abc import Callable
from datetime import datetime
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch

from fmdiff.data.files import SOURCES
from fmdiff.runs import checkpoint
from fmdiff.runs import folder as run_folder
from fmdiff.training.module import Training

Broken = Callable[[pytest.MonkeyPatch], Any]


class Case(NamedTuple):
    line: str
    code: int
    says: tuple[str, ...]  # each is printed
    given: Callable[[], None] | None = None  # done to the folder before
    broken: Broken | None = None  # what fails meanwhile; may return a context
    how: str = ""  # both of them in words


class Row(NamedTuple):
    number: int
    title: str
    cases: tuple[Case, ...] = ()
    note: str = ""
    tests: tuple[str, ...] = ()  # that try it beside or in place of the cases


POINTS = "model.hidden=16 data.batch_size=64"
UNET = "model=unet model.channels=8 model.multipliers=[1,2] model.head_channels=8"
# the runs that lie in the folder of every row, the last one the newest
RUNS = {
    "digits": f"data=digits {UNET} data.batch_size=8 trainer.max_steps=1",
    "eight": f"source=data source.data=8gaussians {POINTS} trainer.max_steps=1",
    "moons": f"{POINTS} trainer.max_steps=60 trainer.checkpoint_every=40",
}
SAMPLE, TRAIN = "fmdiff sample ckpt=moons n=4", f"fmdiff train {POINTS}"
OF_FILES = "fmdiff evaluate features=mnist metrics=[fid]"
INCEPTION = "fmdiff evaluate samples=made.npz against=real.npz features=inception"
SIZE = "95,628,359 bytes"


# What is done to files


def _bytes() -> bytes:
    return Path("moons/last.ckpt").read_bytes()


def damaged() -> None:
    whole = _bytes()
    Path("cut.ckpt").write_bytes(whole[: len(whole) // 2])
    Path("empty.ckpt").write_bytes(b"")
    Path("text.ckpt").write_text("these are no weights\n")
    with zipfile.ZipFile("moons/last.ckpt") as archive:
        member = max(
            (m for m in archive.infolist() if "/data/" in m.filename), key=lambda m: m.file_size
        )
        with archive.open(member) as file:
            inside = file.read(64)
    flipped = bytearray(whole)
    flipped[whole.index(inside) + 9] ^= 4
    Path("flip.ckpt").write_bytes(flipped)


class Code:
    def __reduce__(self):
        return os.system, ("touch it_was_run",)


def foreign() -> None:
    torch.save({"weights": Code()}, "code.ckpt")
    Path("code.pkl").write_bytes(pickle.dumps(Code()))
    torch.save({"state_dict": {"w": torch.zeros(3)}, "epoch": 3}, "other.ckpt")
    torch.save(checkpoint.read("moons/last.ckpt") | {"version": 2}, "newer.ckpt")


def newest_broken() -> None:
    newest = _bytes()
    Path("moons/last.ckpt").unlink()
    Path("moons/0000060.ckpt").write_bytes(newest[:30_000])
    Path("moons/last.ckpt").write_bytes(newest[:30_000])
    Path("moons/last-v1.ckpt").write_bytes(newest[:1000])


def mnist_of_zeros() -> None:
    """Files of the right sizes, which hold nothing."""
    folder = Path("data", SOURCES["mnist"].folder)
    folder.mkdir(parents=True)
    for name, (size, _) in SOURCES["mnist"].files.items():
        with (folder / name).open("wb") as file:
            file.truncate(size)


def images() -> None:
    draws = np.random.default_rng(0)
    pixels = draws.integers(0, 256, (40, 28, 28, 1), np.uint8)
    np.savez("real.npz", arr_0=pixels[20:])
    np.savez("made.npz", arr_0=pixels[:20])
    np.savez("one.npz", arr_0=pixels[:1])
    np.savez("floats.npz", arr_0=pixels.astype(np.float32) / 255)
    np.savez("rgb.npz", arr_0=draws.integers(0, 256, (20, 32, 32, 3), np.uint8))
    np.savez("few_dims.npz", mu=np.zeros(64), sigma=np.eye(64))
    np.savez("inception.npz", mu=np.zeros(96), sigma=np.eye(96), extractor="inception")
    Path("other.pth").write_bytes(bytes(1000))


def in_the_way() -> None:
    Path("file").write_text("")


def odd_names() -> None:
    shutil.copytree("moons", "my runs/a=b (1)/é")


# What is made to fail


@contextlib.contextmanager
def held():
    with Path("moons/.lock").open("a+") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


@contextlib.contextmanager
def small_files():
    """No file can grow beyond 40 kB, as if the disk were full."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (40_000, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def full_once(patch: pytest.MonkeyPatch) -> None:
    write, calls = checkpoint.write, []

    def once(path, content):
        calls.append(path)
        if len(calls) == 1:
            raise OSError(28, "No space left on device")
        write(path, content)

    patch.setattr(checkpoint, "write", once)


def no_memory(patch: pytest.MonkeyPatch) -> None:
    step = Training.optimiser_step

    def fails(self, k, parts):
        if k == 75:
            raise torch.OutOfMemoryError(
                "CUDA out of memory. Tried to allocate 2.50 GiB. GPU 0 has a total capacity of "
                "8.00 GiB of which 1.21 GiB is free."
            )
        step(self, k, parts)

    patch.setattr(Training, "optimiser_step", fails)


def no_network(patch: pytest.MonkeyPatch) -> None:
    for name in ("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY"):
        patch.setenv(name, "http://127.0.0.1:9")


def one_gpu(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(torch.cuda, "is_available", lambda: True)
    patch.setattr(torch.cuda, "device_count", lambda: 1)


def stopped_clock(patch: pytest.MonkeyPatch) -> None:
    class Clock(datetime):
        @classmethod
        def now(cls, tz=None):
            return cls(2026, 1, 31, 12, tzinfo=tz)

    patch.setattr(run_folder, "datetime", Clock)


@contextlib.contextmanager
def prepared(case: Case):
    """The case as it is to be tried: the folder prepared, and what fails, failing."""
    if case.given:
        case.given()
    with pytest.MonkeyPatch.context() as patch, contextlib.ExitStack() as stack:
        patch.setattr(torch.cuda, "is_available", lambda: False)
        patch.setattr(torch.cuda, "device_count", lambda: 0)
        patch.setenv("XDG_CACHE_HOME", str(Path("cache").absolute()))
        for name in ("FMDIFF_INCEPTION", "TORCH_HOME", "COLUMNS"):
            patch.delenv(name, raising=False)
        if case.broken:
            context = case.broken(patch)
            if hasattr(context, "__enter__"):
                stack.enter_context(context)
        yield
