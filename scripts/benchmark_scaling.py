"""How training and sampling scale, beside what plan=true says: see benchmark.py scaling.

Every cell is the real command in a process of its own, and the same command with plan=true. They
take turns, repeat after repeat, so that a ratio compares what ran side by side. The marks in a
command are those of scaling_probe.py.
"""

import json
import os
import re
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch

from fmdiff import tables

AXES = ("batch", "resolution", "parameters", "processes")
COMMANDS = ("train", "sample")
SECONDS = 4.0  # of CPU that the steps of a cell should take
NFE = 10  # evaluations of a sample
WITHIN = 0.15  # of the measured value, a plan is right
PREFIX = {"": 1.0, "k": 1e3, "M": 1e6, "G": 1e9}
Figures = dict[str, float]


@dataclass(frozen=True)
class Cell:
    """A setting: images of `size` pixels a side and a U-Net of so many channels."""

    command: str
    batch: int = 16
    size: int = 32
    channels: int = 16
    processes: int = 1

    def name(self) -> str:
        """The cell in a table."""
        return (
            f"{self.command}, batch {self.batch}, {self.size} px, {self.channels} channels, "
            f"{self.processes} process{'es' * (self.processes > 1)}"
        )

    @property
    def share(self) -> float:
        """The samples of a step or of a batch in one process."""
        return self.batch / (self.processes if self.command == "train" else 1)

    def run(self, folder: Path) -> Path:
        """The training run of this size and these channels."""
        return folder / f"run_{self.size}_{self.channels}"

    def words(self, folder: Path) -> list[str]:
        """The words of the command, without its length."""
        threads = [] if torch.cuda.is_available() else ["threads=1"]
        if self.command == "sample":
            return [
                "sample",
                f"ckpt={self.run(folder)}",
                f"batch_size={self.batch}",
                f"devices={self.processes}",
                f"nfe={NFE}",
                *threads,
            ]
        return [
            "train",
            "data=folder",
            f"data.root={folder / 'images'}",
            f"data.size={self.size}",
            f"data.batch_size={self.batch}",
            "model=unet",
            f"model.channels={self.channels}",
            f"model.head_channels={self.channels}",
            f"trainer.devices={self.processes}",
            "trainer.progress=false",
            *threads,
        ]

    def length(self, seconds: float) -> str:
        """The word for the length of a run, if a sample costs so many seconds of CPU."""
        count = max(4, min(60, int(SECONDS / (seconds * self.share))))
        if self.command == "train":
            return f"trainer.max_steps={count}"
        return f"n={self.batch * self.processes * min(count, 8)}"


def cells(command: str, axes: Iterable[str]) -> dict[str, list[Cell]]:
    """The cells of a command by axis."""
    base = Cell(command)
    along = {
        "batch": [replace(base, batch=b) for b in (1, 4, 16, 64)],
        "resolution": [replace(base, size=s) for s in (16, 32, 64, 128)],
        "parameters": [replace(base, channels=c) for c in (8, 16, 32, 64)],
        "processes": [replace(base, processes=p) for p in (1, 2)],
    }
    return {axis: along[axis] for axis in axes}


# --- measuring ------------------------------------------------------------------------------


def images(folder: Path) -> None:
    """Write 256 images of 128 pixels a side: sums of a few waves."""
    from PIL import Image

    folder.mkdir()
    draws = np.random.default_rng(0)
    grid = np.stack(np.meshgrid(*[np.linspace(0, 2 * np.pi, 128)] * 2))
    for i in range(256):
        waves = draws.integers(1, 9, (3, 2)) @ grid.reshape(2, -1)
        pixels = 127.5 * (1 + np.sin(waves + draws.uniform(0, 6, (3, 1))))
        Image.fromarray(pixels.T.reshape(128, 128, 3).astype(np.uint8)).save(
            folder / f"{i:03d}.png"
        )


def call(words: Sequence[str]) -> str:
    """What a command says. Raises SystemExit if it fails."""
    process = subprocess.run(words, capture_output=True, text=True, check=False)
    if process.returncode:
        raise SystemExit(f"{' '.join(words)}\n{process.stdout}{process.stderr}")
    return process.stdout


def planned(cell: Cell, folder: Path, *more: str) -> Figures:
    """What plan=true says of a cell."""
    words = [sys.executable, "-m", "fmdiff", *cell.words(folder), *more, "plan=true"]
    return figures(call(words), cell.share)


def figures(text: str, share: float) -> Figures:
    """The numbers of a plan. share: see Cell.

    clock, cpu: seconds a sample, of all processes together by the clock. memory: bytes of a
    process. startup, startup_cpu: seconds.
    """
    rows = dict(re.findall(r"^(\S+) +(.*)$", text, re.MULTILINE))
    speed = float(re.match(r"[\d.,e+]+", rows["speed"])[0].replace(",", ""))  # type: ignore[index]
    cpu = re.search(r"([\d.e+-]+) of CPU", rows["speed"])
    unit = 1e-3 if "steps/s" in rows["speed"] else 1.0
    number, prefix = re.search(r"packages ([\d.]+) (\w?)B", rows["memory"]).groups()  # type: ignore[union-attr]
    clock, of_cpu = re.match(r"([\d.e+]+) s.*\(([\d.e+]+) s", rows["start-up"]).groups()  # type: ignore[union-attr]
    return {
        "clock": 1 / speed,
        "cpu": unit * float(cpu[1]) / share,  # type: ignore[index]
        "memory": float(number) * PREFIX[prefix],
        "startup": float(clock),
        "startup_cpu": float(of_cpu),
    }


def measured(cell: Cell, folder: Path, length: str) -> Figures:
    """What the command of a cell takes."""
    with tempfile.TemporaryDirectory() as scratch:
        out = Path(scratch) / "figures.json"
        target = cell.run(folder) if cell.command == "train" else Path(scratch) / "samples"
        words = [f"out={target}", "overwrite=true", length]
        probe = Path(__file__).with_name("scaling_probe.py")
        call([sys.executable, str(probe), str(out), *cell.words(folder), *words])
        said = json.loads(out.read_text("utf-8"))
    # by the clock a step is of all processes, a batch of sampling of one
    parts = cell.processes if cell.command == "sample" else 1
    return {
        "clock": said["clock"] / parts,
        "cpu": said["cpu"] * (1 if cell.command == "sample" else cell.processes),
        "memory": said["memory"],
        "startup": said["startup"][0],
        "startup_cpu": said["startup"][1],
    }


def pairs(cell: Cell, folder: Path) -> tuple[Figures, Figures]:
    """What a cell takes, and what the plan says."""
    more = [f"n={cell.batch * cell.processes}"] if cell.command == "sample" else []
    plan = planned(cell, folder, *more)
    return measured(cell, folder, cell.length(plan["cpu"])), plan


def medians(values: Sequence[Figures]) -> Figures:
    """The median of each figure."""
    return {name: statistics.median(v[name] for v in values) for name in values[0]}


# --- the table ------------------------------------------------------------------------------

# what a table shows: heading, figure, its unit in bytes or seconds, and whether it is a rate
COLUMNS = (
    ("samples/s", "clock", 1.0, True),
    ("CPU ms a sample", "cpu", 1e-3, False),
    ("MB a process", "memory", 1e6, False),
    ("start-up s", "startup", 1.0, False),
    ("start-up CPU s", "startup_cpu", 1.0, False),
)


def row(cell: Cell, taken: Figures, plan: Figures) -> list[str]:
    """A cell of the table: measured, planned and their ratio for each column."""
    values = [cell.name()]
    for _, name, unit, rate in COLUMNS:
        a, b = (1 / v[name] if rate else v[name] / unit for v in (taken, plan))
        values += [f"{a:.4g}", f"{b:.4g}", f"{b / a:.2f}"]
    return values


def verdict(results: dict[Cell, tuple[Figures, Figures]]) -> Iterator[str]:
    """How many cells the plan predicts, and how far it is off at most, by column."""
    for heading, name, *_ in COLUMNS:
        off = {cell: plan[name] / taken[name] - 1 for cell, (taken, plan) in results.items()}
        right = sum(abs(value) <= WITHIN for value in off.values())
        worst = max(off, key=lambda cell: abs(off[cell]))
        yield (
            f"{heading}: {right} of {len(off)} cells within {WITHIN:.0%}; most off by "
            f"{off[worst]:+.0%} ({worst.name()})"
        )


def scaling(
    commands: Sequence[str], axes: Sequence[str], repeats: int, bends: bool, out: str
) -> None:
    """Print the table of the cells and, with `bends`, where each axis bends and why."""
    chosen = {command: cells(command, axes) for command in commands}
    unique = [c for by in chosen.values() for along in by.values() for c in along]
    unique = list(dict.fromkeys(unique))
    lacking = [replace(c, command="train", batch=16, processes=1) for c in unique]
    with tempfile.TemporaryDirectory(prefix="fmdiff-scaling-") as name:
        folder = Path(name)
        images(folder / "images")
        for cell in dict.fromkeys(lacking):
            if cell not in unique:  # sampling needs a checkpoint
                measured(cell, folder, "trainer.max_steps=1")
        taken: dict[Cell, list[tuple[Figures, Figures]]] = {cell: [] for cell in unique}
        for k in range(repeats):
            for cell in sorted(unique, key=lambda c: COMMANDS.index(c.command)):
                taken[cell].append(pairs(cell, folder))
                both = ", ".join(row(cell, *taken[cell][-1]))
                print(f"repeat {k + 1}: {both}", file=sys.stderr, flush=True)
    results = {
        cell: (medians([a for a, _ in values]), medians([b for _, b in values]))
        for cell, values in taken.items()
    }
    headings = ["cell"]
    for heading, *_ in COLUMNS:
        headings += [heading, "plan", "ratio"]
    print(tables.as_markdown([headings, *(row(cell, *pair) for cell, pair in results.items())]))
    print()
    for line in verdict(results):
        print(line)
    print(
        f"\nMedians of {repeats}; load {os.getloadavg()[0]:.1f} on {os.cpu_count()} cores, "
        f"torch {torch.__version__}"
    )
    if out:
        kept = {cell.name(): pair for cell, pair in results.items()}
        Path(out).write_text(json.dumps(kept, indent=1), encoding="utf-8")
    if bends:
        from scaling_bends import line

        print()
        for command, by in chosen.items():
            for axis, along in by.items():
                speeds = [results[cell][0] for cell in along]
                print(line(command, axis, along, speeds), flush=True)
