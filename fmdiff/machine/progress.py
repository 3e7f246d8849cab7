"""Shows how far a command is: by a bar on a terminal, and by lines elsewhere and in its log."""

import logging
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import TracebackType

from fmdiff.machine import processes

EVERY = 20.0  # seconds after which a command that has shown nothing logs a line
log = logging.getLogger("fmdiff")
_activities: list["Activity"] = []  # of the running command, the innermost last
_last = 0.0  # monotonic time of the last line


class Activity:
    """Something that takes long, from `begin` to `finish`.

    on_screen: whether its lines are shown. They are in the command's log in any case.
    """

    on_screen = True

    def line(self) -> str:
        """How far it is."""
        raise NotImplementedError

    def begin(self) -> None:
        """Let lines be about this from now on."""
        _activities.append(self)

    def finish(self) -> None:
        """Let lines be about what goes on around this."""
        if self in _activities:
            _activities.remove(self)


def note(line: str, on_screen: bool = True) -> None:
    """Log a line about the progress; with on_screen=False only to the file of the command."""
    global _last
    _last = time.monotonic()
    if on_screen:
        log.info(line)
        return
    record = log.makeRecord(log.name, logging.INFO, __file__, 0, line, (), None)
    for handler in logging.getLogger().handlers:
        screen = isinstance(handler, logging.StreamHandler) and handler.stream in (
            sys.stdout,
            sys.stderr,
        )
        if not screen:
            handler.handle(record)


@contextmanager
def pulse(command: str) -> Iterator[None]:
    """Note a line about the command whenever there was none for EVERY seconds."""
    global _last
    if processes.rank():
        yield  # rank 0 speaks for all
        return
    begin = _last = time.monotonic()
    over = threading.Event()

    def watch() -> None:
        while not over.wait(max(0.01, _last + EVERY - time.monotonic())):
            now = time.monotonic()
            if now - _last < EVERY:
                continue
            if _activities:
                note(_activities[-1].line(), _activities[-1].on_screen)
            else:
                note(f"{command}: at work for {now - begin:.0f} s")

    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()
        _activities.clear()


class Bar(Activity):
    """A progress bar on a terminal; elsewhere, and in the command's log, lines.

    n: the total number of units. visible: False for a process that shows nothing.
    """

    def __init__(self, n: int, unit: str = "sample", visible: bool = True) -> None:
        from tqdm import tqdm

        self.bar = tqdm(total=n, unit=unit, disable=None if visible else True, leave=False)
        self.unit, self.n, self.count = unit, n, 0
        self.on_screen = visible and self.bar.disable
        self.start = time.monotonic()
        self.begin()

    def __call__(self, count: int) -> None:
        """Record that `count` more units are finished."""
        self.bar.update(count)
        self.count += count

    def line(self) -> str:
        """How many units are finished, and how long the others take."""
        seconds, text = time.monotonic() - self.start, f"{self.count:,}/{self.n:,} {self.unit}s"
        if not self.count:
            return f"{text} after {seconds:.0f} s"
        return f"{text}, {seconds * (self.n / self.count - 1):.0f} s left"

    def close(self) -> None:
        """Remove the bar from the terminal."""
        self.finish()
        self.bar.close()

    def __enter__(self) -> "Bar":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()
