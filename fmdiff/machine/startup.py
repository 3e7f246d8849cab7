"""How long a command has been running, which at its first step is its start-up time."""

import contextlib
import os
import time
from pathlib import Path

_loaded = time.monotonic()
# clock and CPU seconds at the end of the last command of this process
_end: tuple[float, float] | None = None


def elapsed() -> tuple[float, float]:
    """The seconds of clock and of CPU that the command has taken so far.

    The first command of a process begins with the process, imports included, and each later one
    at the end of the one before.
    """
    if _end is None:
        return _age(), time.process_time()
    return time.monotonic() - _end[0], time.process_time() - _end[1]


def over() -> None:
    """A command has ended."""
    global _end
    _end = time.monotonic(), time.process_time()


def _age() -> float:
    """The seconds since this process was created, or on other systems than Linux was loaded."""
    with contextlib.suppress(OSError, AttributeError):
        ticks = Path("/proc/self/stat").read_text("utf-8").rpartition(")")[2].split()[19]
        return time.clock_gettime(time.CLOCK_BOOTTIME) - int(ticks) / os.sysconf("SC_CLK_TCK")
    return time.monotonic() - _loaded
