"""What the plans of training and of sampling have in common: their processes and their words."""

import contextlib
import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path

import torch
from omegaconf import DictConfig

from fmdiff.machine import processes
from fmdiff.runs.folder import write_config

BUSY = 0.8  # the share of a core below which other programs slow a trial down


@contextlib.contextmanager
def together(command: str, cfg: DictConfig, count: int, where: torch.device) -> Iterator[None]:
    """Run the block as rank 0 of the processes of a command, which all make the same plan."""
    if count == 1 or processes.world() > 1:  # nobody is to be started
        with processes.group(command, Path(), count, where):
            yield
        return
    with tempfile.TemporaryDirectory(prefix="fmdiff-plan-") as name:
        write_config(Path(name), cfg)
        with processes.group(command, Path(name), count, where):
            yield


def show(rows: dict[str, str], notes: Iterable[str]) -> None:
    """Print the lines of a plan by their first word, and its notes. Empty lines are left out."""
    width = max(map(len, rows))
    for name, value in rows.items():
        if value:
            print(f"{name:<{width}}  {value}")
    for note in notes:
        print(f"{'note':<{width}}  {note}")


def busy(where: torch.device, seconds: float, cpu: float) -> Iterator[str]:
    """Yields a note if other programs slowed a trial of so many seconds of clock and CPU down.

    Several threads of one trial wait for each other, so that their share tells nothing.
    """
    if where.type == "cpu" and torch.get_num_threads() == 1 and cpu < BUSY * seconds:
        yield (
            f"this machine is busy: the trial had {cpu / seconds:.0%} of a core; without other "
            f"programs it is about {seconds / cpu:.1f} times as fast"
        )


def begun(startup: tuple[float, float]) -> str:
    """The line about the start. startup: seconds of clock and of CPU."""
    return f"{startup[0]:.3g} s to the first step ({startup[1]:.3g} s of CPU)"


def memory(where: torch.device, share: int, main: int | None, origin: str, what: str) -> str:
    """The line about memory.

    share: bytes of a device without Python. main: bytes of main memory of a process, Python and
    its packages included; None if unknown. origin: where the share is from. what: it consists of.
    """
    rest = "Python itself on top"
    if main is not None:
        rest = f"with Python and its packages {engineering(main)}B of main memory a process"
    return f"about {engineering(share)}B a device ({origin}): {what}; {rest}"


def noun(shape: tuple[int, ...]) -> str:
    """What a sample of this shape is called."""
    return {1: "point", 3: "image"}.get(len(shape), "sample")


def place(where: torch.device, count: int = 1) -> str:
    """The device, or the CPU threads of `count` processes."""
    if where.type == "cuda":
        name = torch.cuda.get_device_name(where)
        return name if count == 1 else f"{count} {name}"
    threads = torch.get_num_threads()
    text = f"{threads} CPU thread{'s' * (threads > 1)}"
    return text if count == 1 else f"{count} processes of {text}"


def engineering(value: float) -> str:
    """Format a number like 1.23 M, to be followed by a unit."""
    for factor, prefix in ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k")):
        if value >= factor:
            return f"{value / factor:.3g} {prefix}"
    return f"{value:.3g} "


def clock(seconds: float) -> str:
    """Format a time like 3 h 05 min."""
    if seconds < 120:
        return f"{seconds:.0f} s"
    hours, minutes = divmod(round(seconds / 60), 60)
    days, hours = divmod(hours, 24)
    return f"{days} d {hours} h" if days else f"{hours} h {minutes:02d} min"
