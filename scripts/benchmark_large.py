"""How fast rows of a large file reach training, beside the bare disk and random gathers.

    python scripts/benchmark_large.py FOLDER [--gigabytes 4] [--seconds 10]

Writes a .npy of random float16 images (N, 3, 32, 32) into FOLDER, reads it in three ways, and
deletes it. Before each reading the file is dropped from the system's cache, so that the disk is
measured and not the memory. All three run one after another, so that ratios hold on a machine that
does other things too:

    sequential    the bare reading of the file, 8 MiB at a time
    shards        batches of 256 rows by data=array data.stream=true, as training takes them
    gathers       the same by data.stream=false: random rows of the mapped file

Prints GB/s, samples/s and the ratio to the first, with the memory that each holds at its end.
"""

import argparse
import os
import time
from pathlib import Path

import numpy as np

from fmdiff.data.array import Array
from fmdiff.data.extent import Extent

SHAPE = (3, 32, 32)
PIECE = 8 << 20


def write(path: Path, size: int) -> Extent:
    """A .npy of about `size` bytes, and where its rows lie."""
    rng, n = np.random.default_rng(0), size // (2 * int(np.prod(SHAPE)))
    array = np.lib.format.open_memmap(path, "w+", np.float16, (n, *SHAPE))
    for first in range(0, n, 1 << 14):
        part = array[first : first + (1 << 14)]
        part[:] = rng.standard_normal(part.shape, np.float32)
        array.flush()
    extent = Extent.of(array)
    assert extent is not None
    return extent


def drop(path: Path) -> None:
    """Let the system forget what it holds of a file."""
    with path.open("rb") as file:
        os.fsync(file.fileno())
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def memory() -> float:
    """The memory of this process, in MB."""
    return int(Path("/proc/self/statm").read_text("utf-8").split()[1]) * 4096 / 1e6


def sequential(extent: Extent, seconds: float) -> tuple[float, float]:
    """The bytes that are read in this time, and the time."""
    raw = np.empty((PIECE // extent.row_bytes, extent.row_bytes), np.uint8)
    descriptor, first, start = extent.descriptor(), 0, time.perf_counter()
    while time.perf_counter() - start < seconds and first + len(raw) <= extent.count:
        extent.read(descriptor, first, raw)
        first += len(raw)
    os.close(descriptor)
    return first * extent.row_bytes, time.perf_counter() - start


def batches(extent: Extent, seconds: float, stream: bool) -> tuple[float, float]:
    """The bytes of the batches that are taken in this time, and the time."""
    data = Array(file=str(extent.path), batch_size=256, conditional=None, stream=stream)
    if not stream:
        data.source = data._source(data.content, True)  # as if it were larger than the memory
    _ = data.std
    drop(extent.path)
    step, start = 0, time.perf_counter()
    while time.perf_counter() - start < seconds and 256 * (step + 1) <= data.training_size:
        data.batch(0, step)
        step += 1
    used = time.perf_counter() - start
    if data.shards is not None:
        data.shards.close()
    return 256 * step * extent.row_bytes, used


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--gigabytes", type=float, default=4.0)
    parser.add_argument("--seconds", type=float, default=10.0)
    options = parser.parse_args()
    path = options.folder / "benchmark_large.npy"
    try:
        extent = write(path, int(options.gigabytes * 1e9))
        base = None
        print(f"{'way':12}{'GB/s':>8}{'samples/s':>12}{'ratio':>8}{'MB held':>10}")
        for way in ("sequential", "shards", "gathers", "shards", "sequential"):
            drop(path)
            if way == "sequential":
                size, used = sequential(extent, options.seconds)
            else:
                size, used = batches(extent, options.seconds, way == "shards")
            rate = size / used
            base = base or rate
            samples = rate / extent.row_bytes
            print(f"{way:12}{rate / 1e9:8.3f}{samples:12,.0f}{rate / base:8.2f}{memory():10,.0f}")
    finally:
        path.unlink(missing_ok=True)


if __name__ == "__main__":
    main()
