"""Times a few steps of a run and discards them."""

import tempfile
import time
from dataclasses import replace
from pathlib import Path

import torch
from lightning import pytorch as pl

from fmdiff.training.module import Training
from fmdiff.training.trainer import Chunks, Hooks, fitter, quiet

SECONDS = 5.0  # seconds of the timed trial, after the warm-up
WARM = 2  # warm-up steps; one if a step takes longer than SECONDS


class Trial(Hooks):
    """Stops training after SECONDS seconds, and measures `speed` in steps a second."""

    speed = 0.0

    def start(self, trainer: pl.Trainer, module: Training) -> None:
        self.begin, self.first = time.perf_counter(), 0

    def after_batch(self, trainer: pl.Trainer, module: Training) -> None:
        if module.device.type == "cuda":
            torch.cuda.synchronize()
        now = time.perf_counter()
        if not self.first and (module.step >= WARM or now - self.begin > SECONDS):
            self.begin, self.first = now, module.step
            module.clock.take()
        elif self.first:
            self.speed = (module.step - self.first) / (now - self.begin)
            trainer.should_stop = now - self.begin > SECONDS


def steps_per_second(module: Training, device: torch.device) -> float:
    """Measure the speed on one device. The module's clock then has the parts of a step."""
    quiet()
    size = module.options.steps_per_batch(points=len(module.data.shape) == 1)
    # times the parts of every step, on CUDA too
    module.options = replace(module.options, log_every=1, devices=1)
    trial = Trial()
    with tempfile.TemporaryDirectory() as folder:
        trainer = fitter(module.options, device, [trial], Path(folder))
        try:
            trainer.fit(module, Chunks(0, max(module.options.max_steps, WARM + size), size))
        finally:
            module.batches.close()
    return trial.speed
