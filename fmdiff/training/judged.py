"""Metrics of samples during training, and the checkpoint that is best by one of them."""

import logging
import math
from pathlib import Path

import torch
from lightning import pytorch as pl
from torch import Tensor

from fmdiff.condition import Given, label
from fmdiff.data.images import to_uint8
from fmdiff.errors import FmdiffError
from fmdiff.machine import processes
from fmdiff.metrics.judge import Judge, judge
from fmdiff.metrics.metric import Metric
from fmdiff.metrics.reconstruction import Reconstructions
from fmdiff.metrics.results import MORE
from fmdiff.runs import checkpoint
from fmdiff.runs.rows import rows_up_to
from fmdiff.sampling import generate, preview_steps
from fmdiff.training.checkpoints import content
from fmdiff.training.given import asked_of_data
from fmdiff.training.module import Training
from fmdiff.training.options import TrainerOptions
from fmdiff.training.trainer import Hooks

log = logging.getLogger("fmdiff")


def judge_of(module: Training, device: torch.device) -> Judge | Reconstructions | None:
    """The judge for `trainer.metrics=`; None without metrics, and on all ranks but rank 0.

    Raises FmdiffError if `trainer.best` is not among the metrics.
    """
    if processes.rank():
        return None
    options, settings, data = module.options, module.settings, module.data
    instance: Judge | Reconstructions | None = None
    if options.metrics and not module.classifies:
        keys = {name: settings.get(name) for name in ("features", "against")}
        keys["metrics"] = options.metrics
        user = data.user
        if module.autoencodes:
            instance = Reconstructions(options.metrics, keys, user, device)
        else:
            about = user, data.outer, data.classes
            instance = judge(keys, *about, 0, device, kind=data.kind)
        instance.check(options.metrics_n)
    names = instance.columns if instance is not None else ()
    if options.best and options.best not in names:
        raise FmdiffError(
            f"trainer.best={options.best}: the metrics of this run are "
            + (", ".join(names) or "none: say trainer.metrics=")
        )
    return instance


class SampleMetrics(Hooks):
    """Measures samples of the averaged weights at intervals, and writes best.ckpt by one metric.

    It must come before Log, which takes the values and writes them.
    """

    def __init__(
        self, folder: Path, options: TrainerOptions, judge: Judge | Reconstructions | None
    ) -> None:
        self.folder, self.every, self.n = folder, options.metrics_every, options.metrics_n
        self.last, self.judge = options.max_steps, judge
        self.by, self.best = options.best, math.inf
        self.columns: list[str] = judge.columns if judge is not None else []
        self.values: dict[str, float] = {}
        self.notes: set[str] = set()  # notes of the judge that are in the log

    def start(self, trainer: pl.Trainer, module: Training) -> None:
        if self.by is None:
            return
        for row in rows_up_to(self.folder / "metrics.csv", module.step):
            if value := row.get(self.by):
                self.best = min(self.best, self._rank(float(value)))

    def after_batch(self, trainer: pl.Trainer, module: Training) -> None:
        due = module.step % self.every == 0 or module.step == self.last
        if self.judge is None or not (due and trainer.is_global_zero):
            return
        try:
            self.values = self.measure(module, self.judge)
        except Exception as error:  # a failed metric must not end the run
            reason = str(error) if isinstance(error, FmdiffError) else repr(error)
            log.warning("no metrics at step %d: %s", module.step, reason)
            return
        text = ", ".join(f"{name} {value:.4g}" for name, value in self.values.items())
        log.info("step %d: %s", module.step, text)
        if self.by is None or self.by not in self.values:
            return
        if (rank := self._rank(self.values[self.by])) < self.best:
            try:
                checkpoint.write(self.folder / "best.ckpt", content(module))
                self.best = rank
            except OSError as error:
                log.warning("best.ckpt was not written, the last one is kept: %s", error)

    def measure(self, module: Training, judge: Judge | Reconstructions) -> dict[str, float]:
        """The metrics by name, of fresh samples or of an autoencoder's reconstructions."""
        if isinstance(judge, Reconstructions):
            metrics: dict[str, Metric] = judge.results(module.field(), self.n)
        else:
            metrics = self.of_samples(module, judge)
        for note in dict.fromkeys(judge.warnings):
            if note not in self.notes:
                log.info("note: %s", note)
        self.notes |= set(judge.warnings)
        judge.warnings.clear()
        return {name: metric.value for name, metric in metrics.items()}

    def of_samples(self, module: Training, judge: Judge) -> dict[str, Metric]:
        """The metrics of fresh samples, by name. Warns of those that cannot be computed."""
        reasons = list[str]()
        field, classes = asked_of_data(module.field(), module.data, self.n)
        images = field.kind == "images"
        judge.clear()

        def receive(x: Tensor, y: Given | None) -> None:
            judge.add(to_uint8(x) if images else x, label(y))

        generate(
            field,
            self.n,
            classes=classes,
            receive=receive,
            steps=preview_steps(field),
            device=module.device,
        )
        metrics = judge.results(reasons)
        for reason in reasons:
            log.warning("step %d: no %s", module.step, reason)
        return metrics

    def take(self) -> dict[str, float]:
        """Return the values since the last call."""
        values, self.values = self.values, {}
        return values

    def _rank(self, value: float) -> float:
        """Change the sign of a value if more is better, so that less is better."""
        return -value if self.by in MORE else value
