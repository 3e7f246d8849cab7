"""Where the time of an optimiser step goes."""

import time

import torch

PARTS = ("data", "forward", "backward", "optimiser", "ema")


class Clock:
    """Seconds in the parts of optimiser steps, summed until `take` asks for them.

    CUDA works on while Python does, so there the clock measures one step in `every` and waits for
    the device after each part; on CPUs it measures every step.
    """

    def __init__(self, device: torch.device, every: int) -> None:
        self.waits, self.every = device.type == "cuda", every if device.type == "cuda" else 1
        self.seconds, self.steps = dict.fromkeys(PARTS, 0.0), 0
        self.runs, self.mark = False, 0.0

    def start(self, steps: range) -> None:
        """Steps that are drawn together begin."""
        self.runs = steps.start // self.every != steps.stop // self.every
        if self.runs:
            self.steps += len(steps)
            self.mark = self._now()

    def lap(self, part: str) -> None:
        """Count the time since the start or the last lap to `part`."""
        if self.runs:
            now = self._now()
            self.seconds[part] += now - self.mark
            self.mark = now

    def _now(self) -> float:
        if self.waits:
            torch.cuda.synchronize()
        return time.perf_counter()

    def take(self) -> dict[str, float]:
        """Milliseconds per step since the last call, by part; empty if no step was measured."""
        if not self.steps:
            return {}
        times = {part: 1e3 * seconds / self.steps for part, seconds in self.seconds.items()}
        self.seconds, self.steps = dict.fromkeys(PARTS, 0.0), 0
        return times
