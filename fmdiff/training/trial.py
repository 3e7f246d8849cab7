"""Times a few steps of a run and discards them."""

import tempfile
import time
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from lightning import pytorch as pl

from fmdiff.machine import cost, processes, startup
from fmdiff.training.module import Training
from fmdiff.training.trainer import Chunks, Hooks, fitter, quiet

SECONDS = 5.0  # seconds of the timed trial, after the warm-up
WARM = 2  # warm-up steps; one if a step takes longer than SLOW
# seconds of a step above which fewer samples are tried, on CPUs and without other programs
SLOW = 3.0
HEAVY = 2e10  # operations of a step that is tried whole without asking how long it takes
FIXED = ("optimiser", "ema")  # parts of a step that do not depend on the number of samples


@dataclass(frozen=True)
class Pace:
    """What a trial measured in this process, of steps as large as the run's."""

    seconds: float  # of a step
    cpu: float  # seconds of CPU of a step
    parts: dict[str, float]  # milliseconds of a step by part
    samples: int  # in a step of the trial; fewer than in one of the run if that is slow
    startup: tuple[float, float]  # seconds of clock and of CPU until the first step
    absent: int = 0  # bytes that a step of the run takes beyond one of the trial

    def of(self, samples: int) -> "Pace":
        """The pace of steps of more samples, of which each costs the same.

        The optimiser and the averages do not depend on their number.
        """
        fixed, ratio = self.fixed, samples / self.samples
        seconds = fixed + (self.seconds - fixed) * ratio
        parts = {k: ms if k in FIXED else ms * ratio for k, ms in self.parts.items()}
        cpu = self.cpu * seconds / self.seconds
        return replace(self, seconds=seconds, cpu=cpu, parts=parts)

    @property
    def alone(self) -> float:
        """The share of the time of a step that it would take without other programs."""
        return min(1.0, self.cpu / torch.get_num_threads() / self.seconds)

    @property
    def fixed(self) -> float:
        """The seconds of a step that do not depend on the number of its samples."""
        return sum(self.parts.get(part, 0.0) for part in FIXED) / 1e3


class Trial(Hooks):
    """Stops training after `limit` seconds, and measures the time of a step.

    On a busy machine it goes on until it has had half of them, at most three times as long. All
    processes stop at the same step.
    """

    def __init__(self, limit: float, warm: int) -> None:
        self.limit, self.warm = limit, warm
        self.startup = (0.0, 0.0)
        self.steps, self.seconds, self.cpu = 0, 0.0, 0.0

    def start(self, trainer: pl.Trainer, module: Training) -> None:
        self.startup = startup.elapsed()
        self.begin, self.first = time.perf_counter(), 0
        self.cpu_begin = time.process_time()

    def after_batch(self, trainer: pl.Trainer, module: Training) -> None:
        if module.device.type == "cuda":
            torch.cuda.synchronize()
        now, cpu = time.perf_counter(), time.process_time()
        if not self.first and self._agreed(module.step >= self.warm or now - self.begin > SLOW):
            self.begin, self.cpu_begin, self.first = now, cpu, module.step
            module.clock.take()
        elif self.first:
            self.steps = module.step - self.first
            self.seconds, self.cpu = now - self.begin, cpu - self.cpu_begin
            idle = self.cpu < self.limit / 2 and self.seconds < 3 * self.limit
            trainer.should_stop = self._agreed(self.seconds > self.limit and not idle)

    def _agreed(self, answer: bool) -> bool:
        """The answer of rank 0."""
        return bool(processes.gather(answer)[0])


def pace(module: Training, device: torch.device, work: int, kept: int) -> Pace:
    """Measure the steps of a run, in all its processes.

    A step that would take long on CPUs is tried with fewer samples, and the result is scaled.
    work: operations of a step per sample. kept: bytes that a sample's forward pass keeps.
    """
    quiet()
    data, options, whole = module.data, module.options, module.data.batch_size
    size = options.steps_per_batch(points=len(data.shape) == 1)
    # times the parts of every step, on CUDA too
    module.options = replace(options, log_every=1)
    count = max(1, processes.world())
    micro = whole // count // options.accumulate
    heavy = work * whole // count > HEAVY
    if device.type == "cuda" or not heavy or micro == 1 or options.compile:
        return _tried(module, device, size, SECONDS, WARM)
    module.options = replace(module.options, accumulate=1)
    module.batches.accumulate, data.batch_size = 1, 2 * count
    first = _tried(module, device, 1, 0.0, 1)
    before = cost.most()
    rows = int(2 * (SLOW / first.alone - first.fixed) / (first.seconds - first.fixed))
    rows = max(2, min(processes.gather(rows)))
    if rows < whole // count:
        data.batch_size = count * min(rows, micro)
        second = _tried(module, device, size, SECONDS, 1)
        absent = _absent(data.batch_size // count, micro, kept, before)
    data.batch_size = whole
    module.options = replace(module.options, accumulate=options.accumulate)
    module.batches.accumulate = options.accumulate
    if rows >= whole // count:
        return replace(_tried(module, device, size, SECONDS, 1), startup=first.startup)
    return replace(second.of(whole), startup=first.startup, absent=absent)


def _tried(module: Training, device: torch.device, size: int, limit: float, warm: int) -> Pace:
    """Do steps for `limit` seconds, `size` of them at least, after `warm` others."""
    trial = Trial(limit, warm)
    with tempfile.TemporaryDirectory() as folder:
        trainer = fitter(module.options, device, [trial], Path(folder))
        try:
            trainer.fit(module, Chunks(0, max(module.options.max_steps, warm + size), size))
        finally:
            module.batches.close()
    seconds, cpu = trial.seconds / trial.steps, trial.cpu / trial.steps
    parts, samples = module.clock.take(), module.data.batch_size
    return Pace(seconds, cpu, parts, samples, trial.startup)


def _absent(rows: int, micro: int, kept: int, before: int | None) -> int:
    """The bytes that a micro-batch of a run takes beyond the `rows` samples that were tried.

    kept: bytes that a sample's forward pass keeps. It takes up to half of that for workspace too.
    before: the most memory of this process when two samples had been tried.
    """
    largest, each = cost.most(), 1.25 * kept
    if rows > 2 and largest is not None and before is not None:
        each = min(max((largest - before) / (rows - 2), kept), 1.5 * kept)
    return round(each * (micro - rows))
