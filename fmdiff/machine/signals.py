"""Handles signals that end a command: by an exception or, in training, by a flag."""

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import NoReturn

# clusters send SIGUSR1 before they take the machine away: docs/clusters.md
ENDING = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)


class SignalEnd(KeyboardInterrupt):
    """A signal ended a command that had nothing to save. Exit 128 + the signal's number."""

    def __init__(self, number: int) -> None:
        super().__init__(f"interrupted by {signal.Signals(number).name}")
        self.code = 128 + number


def end(number: int, frame: object) -> NoReturn:
    """A handler that ends the command by raising SignalEnd."""
    raise SignalEnd(number)


@contextmanager
def handling(handler: Callable[[int, object], object]) -> Iterator[None]:
    """Let handler(number, frame) handle the signals of ENDING while the block runs."""
    if threading.current_thread() is not threading.main_thread():
        yield  # only Python's main thread may set handlers
        return
    before = {number: signal.signal(number, handler) for number in ENDING}
    try:
        yield
    finally:
        for number, old in before.items():
            signal.signal(number, old)


def exit_code(error: KeyboardInterrupt) -> int:
    """128 + the number of the signal that interrupted a command."""
    return error.code if isinstance(error, SignalEnd) else 130
