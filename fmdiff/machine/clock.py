"""Where the time of an optimiser step goes."""

import time

import torch

PARTS = ("data", "forward", "backward", "optimiser", "ema")


class Clock:
    """Seconds spent in the parts of optimiser steps, summed until they are taken.

    CUDA works on while Python does, so there only one step in `every` is measured, with a wait
    for the device after each part; on CPUs every step is.
    """

    def __init__(self, device: torch.device, every: int) -> None:
        self.waits, self.every = device.type == "cuda", every if device.type == "cuda" else 1
        self.spent, self.steps, self.runs, self.mark = dict.fromkeys(PARTS, 0.0), 0, False, 0.0

    def start(self, steps: range) -> None:
        """Steps that are taken together begin."""
        self.runs = steps.start // self.every != steps.stop // self.every
        if self.runs:
            self.steps += len(steps)
            self.mark = self._now()

    def lap(self, part: str) -> None:
        """What passed since the start or the last lap was spent in `part`."""
        if self.runs:
            now = self._now()
            self.spent[part] += now - self.mark
            self.mark = now

    def _now(self) -> float:
        if self.waits:
            torch.cuda.synchronize()
        return time.perf_counter()

    def take(self) -> dict[str, float]:
        """Milliseconds per step since the last time, by part; nothing where none was measured."""
        if not self.steps:
            return {}
        taken = {part: 1e3 * seconds / self.steps for part, seconds in self.spent.items()}
        self.spent, self.steps = dict.fromkeys(PARTS, 0.0), 0
        return taken
