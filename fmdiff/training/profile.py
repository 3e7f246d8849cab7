"""profile=true measures the time of a step, operation by operation."""

import logging
import tempfile
from pathlib import Path

import torch
from lightning import pytorch as pl

from fmdiff import files
from fmdiff.training.module import Training
from fmdiff.training.trainer import Hooks

log = logging.getLogger("fmdiff")


class Profile(Hooks):
    """Writes trace.json.gz of a few Lightning batches, and prints the slowest operations.

    Open the trace in ui.perfetto.dev or chrome://tracing.
    """

    BEFORE, MEASURED = 5, 3  # batches

    def __init__(self, folder: Path) -> None:
        self.path = folder / "trace.json.gz"
        self.profiler: torch.profiler.profile | None = None
        self.batches = 0

    def start(self, trainer: pl.Trainer, module: Training) -> None:
        if trainer.is_global_zero:
            self.profiler = torch.profiler.profile(
                schedule=torch.profiler.schedule(
                    wait=self.BEFORE - 1, warmup=1, active=self.MEASURED, repeat=1
                ),
                on_trace_ready=self._write,
            )
            self.profiler.start()

    def _write(self, profiler: torch.profiler.profile) -> None:
        with tempfile.TemporaryDirectory() as scratch, files.whole(self.path) as file:
            trace = Path(scratch) / self.path.name  # compressed if the name ends in .gz
            profiler.export_chrome_trace(str(trace))
            file.write(trace.read_bytes())
        log.info("%s holds the trace of %d batches", self.path, self.MEASURED)
        by = f"self_{'cuda' if torch.cuda.is_available() else 'cpu'}_time_total"
        log.info("%s", profiler.key_averages().table(sort_by=by, row_limit=15))

    def after_batch(self, trainer: pl.Trainer, module: Training) -> None:
        if self.profiler is not None:
            self.profiler.step()
            self.batches += 1

    def finish(self, trainer: pl.Trainer, module: Training) -> None:
        if self.profiler is not None:
            self.profiler.stop()
            if self.batches < self.BEFORE + self.MEASURED:
                log.warning("profile=true: no trace, the run was too short for one")
