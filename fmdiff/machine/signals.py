"""Signals that end a command: an exception where nothing has to be saved, a flag in training."""

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import NoReturn

# SIGUSR1 is what a cluster sends before it takes the machine away: docs/clusters.md
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
    """Have handler(number, frame) take the signals of ENDING while the block runs."""
    if threading.current_thread() is not threading.main_thread():
        yield  # Python runs handlers in its main thread alone
        return
    before = {number: signal.signal(number, handler) for number in ENDING}
    try:
        yield
    finally:
        for number, old in before.items():
            signal.signal(number, old)
