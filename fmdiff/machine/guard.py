"""A small process that ends another one in which something blocks, so that its signals do not act.

Python runs the handler of a signal between two of its own instructions. It waits for a collective
whose other ranks hang, a native call or a stuck disk. The system's part of the handler writes the
signal's number to a pipe all the same, and this process reads it there. fmdiff.machine.signals
starts it as a script. It imports nothing of fmdiff, so that it starts in some 20 ms.

A byte on stdin is a signal's number, or CALM, or LONGER + the seconds a signal may take. What it
writes to stdout, an exit code, asks a thread of the process to end it. A process that does not
obey, as a native call keeps Python's lock, is killed.
"""

import contextlib
import math
import os
import select
import signal
import sys
import time

CALM = 0  # the process has come to the end of what a signal may interrupt
LONGER = 64  # larger than any signal's number
PATIENCE = 3.5  # seconds from SIGTERM or SIGHUP to the end
AGAIN = 0.5  # seconds from the second Ctrl-C to the end
# seconds within which a second Ctrl-C is torchrun's repetition of the first, and the run may save
TWICE = 1.0 if "TORCHELASTIC_RUN_ID" in os.environ else 0.0
OBEYS = 0.4  # seconds in which the thread ends the process


class Guard:
    """Finds out from the signals of a process when it must have ended, in monotonic seconds."""

    def __init__(self) -> None:
        self.patience = PATIENCE
        self.calm()

    def calm(self) -> None:
        """Forget the signals so far."""
        self.deadline, self.interrupt, self.last = math.inf, math.inf, 0

    def receive(self, message: int, now: float) -> None:
        """Take a byte that came at a time."""
        if message == CALM:
            self.calm()
        elif message > LONGER:
            self.patience = max(PATIENCE, message - LONGER)
        elif message == signal.SIGINT:
            if now - self.interrupt > TWICE:
                self.end_at(now + AGAIN, message)
            self.interrupt = min(self.interrupt, now)
        elif message in (signal.SIGTERM, signal.SIGHUP):
            self.end_at(now + self.patience, message)

    def end_at(self, deadline: float, number: int) -> None:
        """Let the process end at this time, unless it must earlier."""
        if deadline < self.deadline:
            self.deadline, self.last = deadline, number


def watch(parent: int) -> None:
    """Read stdin until the parent has ended, or end it."""
    guard = Guard()
    while os.getppid() == parent:
        wait = min(10.0, max(0.0, guard.deadline - time.monotonic()))
        if select.select([0], [], [], wait)[0]:
            message = os.read(0, 1)
            if not message:
                return
            guard.receive(message[0], time.monotonic())
        elif time.monotonic() >= guard.deadline:
            name = signal.Signals(guard.last).name
            with contextlib.suppress(OSError):  # the terminal is closed
                print(f"\nfmdiff: ended at once by {name}, as something blocks", file=sys.stderr)
            os.write(1, bytes([128 + guard.last]))
            time.sleep(OBEYS)
            if os.getppid() == parent:
                os.kill(parent, signal.SIGKILL)
            return


if __name__ == "__main__":
    watch(int(sys.argv[1]))
