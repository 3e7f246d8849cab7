"""Measures the memory and open files of long commands: 20,000 steps, 200,000 points, 50 jobs.

python scripts/soak.py [FOLDER]

Each command runs in a process of its own, and /proc is read once a second. A line per command:
the resident memory at a fifth, at half and at the end of its time, its peak, and the open files.
"""

import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import NamedTuple

PAGE = os.sysconf("SC_PAGE_SIZE")
SECONDS = 1.0  # between two looks
TOY = ("device=cpu", "threads=1", "data=moons", "model.hidden=64", "data.batch_size=128")
COMMANDS = {
    "20,000 steps": ("train", *TOY, "trainer.max_steps=20000", "out=steps"),
    "200,000 points to disk": (
        "sample", "ckpt=steps", "n=200000", "device=cpu", "threads=1", "out=points",
    ),
    "50 jobs in one sweep": (
        "train", "-m", *TOY, "trainer.max_steps=200", "trainer.picture_every=100",
        f"seed={','.join(map(str, range(50)))}", "out=sweep",
    ),
}  # fmt: skip


class Look(NamedTuple):
    """What /proc says of a process: megabytes of resident memory, open files and threads."""

    megabytes: float
    files: int
    threads: int


def look(pid: int) -> Look:
    """Read /proc. Raises OSError if the process has ended."""
    process = Path("/proc", str(pid))
    pages = int((process / "statm").read_text().split()[1])
    return Look(
        pages * PAGE / 1e6,
        len(list((process / "fd").iterdir())),
        len(list((process / "task").iterdir())),
    )


def watched(words: tuple[str, ...], folder: Path) -> tuple[int, float, list[Look]]:
    """Run a command: its exit code, its seconds, and a look at it each second."""
    begin, looks = time.monotonic(), []
    with (folder / f"{words[0]}.txt").open("w") as output:
        process = subprocess.Popen(
            [sys.executable, "-m", "fmdiff", *words], cwd=folder, stdout=output, stderr=output
        )
        while process.poll() is None:
            try:
                looks.append(look(process.pid))
            except OSError:
                break
            time.sleep(SECONDS)
    return process.wait(), time.monotonic() - begin, [one for one in looks if one.files]


def main() -> None:
    """Run the commands one after the other, in the folder that is named or in a new one."""
    folder = Path(sys.argv[1] if len(sys.argv) > 1 else tempfile.mkdtemp(prefix="fmdiff-soak-"))
    for name, words in COMMANDS.items():
        code, seconds, looks = watched(words, folder)
        marks = [looks[len(looks) * part // 10] for part in (2, 5)] + looks[-1:]
        sizes = " ".join(f"{mark.megabytes:.0f}" for mark in marks)
        peak = max(one.megabytes for one in looks)
        files = " ".join(str(mark.files) for mark in marks)
        print(
            f"{name}: exit {code} in {seconds:.0f} s; MB at 20 %, 50 %, end: {sizes} (peak "
            f"{peak:.0f}); open files: {files} (most {max(one.files for one in looks)}); "
            f"threads: {' '.join(str(mark.threads) for mark in marks)}",
            flush=True,
        )


if __name__ == "__main__":
    main()
