"""Handles signals that end a command: by an exception or, in training, by a flag.

If the command does not end, as something blocks, the process of `fmdiff.machine.guard` ends it.
"""

import contextlib
import os
import signal
import stat
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import NoReturn

from fmdiff.machine import guard

# SIGHUP is a closed terminal; clusters send SIGUSR1 before they take the machine away:
# docs/clusters.md
ENDING = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1, signal.SIGHUP)


class SignalEnd(KeyboardInterrupt):
    """A signal ended a command that had nothing to save. Exit 128 + the signal's number."""

    def __init__(self, number: int) -> None:
        super().__init__(f"interrupted by {signal.Signals(number).name}")
        self.code = 128 + number


def end(number: int, frame: object) -> NoReturn:
    """A handler that ends the command by raising SignalEnd."""
    if number == signal.SIGHUP:
        hang_up()
    raise SignalEnd(number)


@contextmanager
def handling(handler: Callable[[int, object], object]) -> Iterator[None]:
    """Let handler(number, frame) handle the signals of ENDING while the block runs.

    SIGHUP stays ignored in a process that nohup started.
    """
    if threading.current_thread() is not threading.main_thread():
        yield  # only Python's main thread may set handlers
        return
    watch = _watch()
    before = {
        number: signal.signal(number, handler)
        for number in ENDING
        if number != signal.SIGHUP or signal.getsignal(number) is not signal.SIG_IGN
    }
    descriptor = signal.set_wakeup_fd(watch, warn_on_full_buffer=False)
    try:
        yield
    finally:
        signal.set_wakeup_fd(descriptor)
        for number, old in before.items():
            signal.signal(number, old)
        if descriptor != watch:  # of an outer block
            _tell(guard.CALM)


def allow(seconds: float) -> None:
    """Let a command take so long to end after SIGTERM or SIGHUP, if that is more than usual."""
    _tell(guard.LONGER + max(1, min(190, round(seconds))))


def hang_up() -> None:
    """Let what would be printed to a closed terminal go nowhere; there it is an error."""
    for descriptor in (1, 2):
        if stat.S_ISCHR(os.fstat(descriptor).st_mode) and not os.isatty(descriptor):
            os.dup2(os.open(os.devnull, os.O_WRONLY), descriptor)


def exit_code(error: KeyboardInterrupt) -> int:
    """128 + the number of the signal that interrupted a command."""
    return error.code if isinstance(error, SignalEnd) else 130


# id of this process -> where its guard reads; a forked process has none
_pipes: dict[int, int] = {}
os.register_at_fork(after_in_child=lambda: signal.set_wakeup_fd(-1))


def _watch() -> int:
    """The file to which signals are written for the guard, which is started; -1 without one."""
    if os.getpid() not in _pipes:
        _pipes.clear()
        _pipes[os.getpid()] = -1
        with contextlib.suppress(OSError):  # too many processes
            command = [sys.executable, "-I", "-S", guard.__file__, str(os.getpid())]
            pipe = subprocess.PIPE
            process = subprocess.Popen(
                command, bufsize=0, stdin=pipe, stdout=pipe, start_new_session=True
            )
            assert process.stdin is not None
            os.set_blocking(process.stdin.fileno(), False)
            _pipes[os.getpid()] = process.stdin.fileno()
            threading.Thread(target=_obey, args=(process,), daemon=True).start()
    return _pipes[os.getpid()]


def _obey(process: subprocess.Popen) -> None:
    """End this process with the exit code that its guard writes."""
    assert process.stdout is not None
    if code := process.stdout.read(1):
        os._exit(code[0])


def _tell(message: int) -> None:
    pipe = _pipes.get(os.getpid(), -1)
    if pipe >= 0:
        with contextlib.suppress(OSError):  # the guard has ended
            os.write(pipe, bytes([message]))
