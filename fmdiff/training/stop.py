"""Ends training early and in order, by a signal or the time limit, on all ranks together."""

import math
import os
import signal
import sys
import time
from contextlib import AbstractContextManager

import torch
from lightning import pytorch as pl

from fmdiff.errors import Interrupted
from fmdiff.machine import signals
from fmdiff.machine.guard import TWICE
from fmdiff.training.module import Training
from fmdiff.training.trainer import Hooks


class Stop(Hooks):
    """Ends training on a signal or at the time limit. All ranks check the flag between steps.

    The second Ctrl-C stops at once. After SIGTERM and SIGHUP a run has the few seconds of
    `fmdiff.machine.guard` to save, or more if its steps or its checkpoints take as long. This is
    the last callback, so a rank that leaves `finish` knows that rank 0 has saved.
    """

    TIME = 1000  # larger than any signal's number
    DISK = 5e7  # bytes of a checkpoint that a slow disk takes in a second

    def __init__(self, seconds: float | None) -> None:
        self.seconds = seconds
        self.slowest = 0.0  # seconds of a batch and what came after it
        self.number = self.flag = 0  # this process's signal, and the one that all ranks agree on
        self.first = math.inf  # when this process had its first Ctrl-C

    def listening(self) -> AbstractContextManager[None]:
        """A context in which signals set the flag."""
        return signals.handling(self._receive)

    def _receive(self, number: int, frame: object) -> None:
        if number == signal.SIGINT:
            now = time.monotonic()
            if now - self.first > TWICE:
                os._exit(128 + number)
            self.first = min(self.first, now)
        self.number = number
        if number == signal.SIGHUP:
            signals.hang_up()
        print("\nsaving, then stopping; Ctrl-C again stops at once", file=sys.stderr)

    def start(self, trainer: pl.Trainer, module: Training) -> None:
        self.begin = self.mark = time.monotonic()
        tensors = [*module.net.parameters(), *module.averages.parameters()]
        size = sum(tensor.numel() * tensor.element_size() for tensor in tensors)
        self.saving = 2 * size / self.DISK  # with the optimiser's moments
        self._agree(trainer, module)

    def after_batch(self, trainer: pl.Trainer, module: Training) -> None:
        now = time.monotonic()
        if now - self.mark > self.slowest:
            self.slowest = now - self.mark
            signals.allow(1 + 1.2 * self.slowest + self.saving)
        self.mark = now
        if self.seconds is not None and time.monotonic() - self.begin > self.seconds:
            self.number = self.number or self.TIME
        self._agree(trainer, module)

    def finish(self, trainer: pl.Trainer, module: Training) -> None:
        self._agree(trainer, module)

    def _agree(self, trainer: pl.Trainer, module: Training) -> None:
        self.flag = self.number
        if trainer.world_size > 1:
            flag = torch.tensor(self.flag, device=module.device)
            torch.distributed.all_reduce(flag, op=torch.distributed.ReduceOp.MAX)
            self.flag = int(flag)
        if self.flag:
            trainer.should_stop = True

    def conclude(self, step: int, again: str) -> None:
        """Raise Interrupted if a signal ended the run. `again` is the command that goes on."""
        if self.flag and self.flag != self.TIME:
            raise Interrupted(
                f"stopped by {signal.Signals(self.flag).name} after step {step}, saved; "
                f"go on with {again}",
                self.flag,
            )
