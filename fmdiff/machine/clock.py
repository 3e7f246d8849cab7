"""Measures the time of each part of an optimiser step."""

import time

import torch

PARTS = ("data", "forward", "backward", "optimiser", "ema")


class Clock:
    """Sums the seconds in each part of optimiser steps until `take` is called.

    CUDA runs asynchronously, so there the clock measures one step in `every` and waits for the
    device after each part. On CPUs it measures every step.
    """

    def __init__(self, device: torch.device, every: int) -> None:
        self.waits, self.every = device.type == "cuda", every if device.type == "cuda" else 1
        self.seconds, self.steps = dict.fromkeys(PARTS, 0.0), 0
        self.runs, self.mark = False, 0.0

    def start(self, steps: range) -> None:
        """Begin the steps of a range, which are drawn together."""
        self.runs = steps.start // self.every != steps.stop // self.every
        if self.runs:
            self.steps += len(steps)
            self.mark = self._now()

    def lap(self, part: str) -> None:
        """Add the time since the start or the last lap to `part`."""
        if self.runs:
            now = self._now()
            self.seconds[part] += now - self.mark
            self.mark = now

    def _now(self) -> float:
        if self.waits:
            torch.cuda.synchronize()
        return time.perf_counter()

    def take(self) -> dict[str, float]:
        """Milliseconds per step by part since the last call. Empty if no step was measured."""
        if not self.steps:
            return {}
        times = {part: 1e3 * seconds / self.steps for part, seconds in self.seconds.items()}
        self.seconds, self.steps = dict.fromkeys(PARTS, 0.0), 0
        return times
