"""Logs the training and validation loss: the progress bar, metrics.csv and the logger."""

import contextlib
import logging
import math
import statistics
import time
from collections import deque
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from lightning import pytorch as pl
from torch import Generator, Tensor

from fmdiff.condition import Given, label
from fmdiff.machine.clock import PARTS
from fmdiff.machine.cost import peak
from fmdiff.machine.progress import Activity, note
from fmdiff.randomness import generator
from fmdiff.runs.rows import Rows, elapsed, rows_up_to
from fmdiff.training.judged import SampleMetrics
from fmdiff.training.module import Training
from fmdiff.training.options import TrainerOptions
from fmdiff.training.trainer import Hooks

log = logging.getLogger("fmdiff")

BINS = 5  # bins of equal width in t, for the validation loss
AT_ONCE = 100  # held-out samples in a batch


class Log(Hooks):
    """Writes losses to the progress bar, metrics.csv and the logger."""

    TRAINING = ("loss", "mse", "grad_norm", "lr")
    COSTS = ("transport_cost", "independent_cost")  # mean |x - eps|^2 with a coupling, without
    VALIDATION = ("val_loss", "val_mse", *(f"val_loss_{i}" for i in range(BINS)))
    CLOCK = ("seconds", "samples_per_second", "utilisation", *(f"ms_{part}" for part in PARTS))

    def __init__(self, folder: Path, options: TrainerOptions, metrics: SampleMetrics) -> None:
        self.path, self.options, self.metrics = folder / "metrics.csv", options, metrics
        self.bar: Any = None
        self.progress = Steps(self)
        # held-out x, y, eps and times, after they have been drawn
        self.validation: tuple[Any, ...] | None = None
        # the share of the device's peak rate at one sample a second; None if unknown
        self.utilisation: float | None = None
        self.losses: deque[float] = deque(maxlen=9)  # the losses of the last rows

    def start(self, trainer: pl.Trainer, module: Training) -> None:
        if not trainer.is_global_zero:
            return
        progress = trainer.fit_loop.epoch_loop.manual_optimization.optim_step_progress.total
        progress.ready = progress.completed = module.step  # global_step continues after a resume
        costs = self.COSTS if module.batches.coupling.permutes else ()
        self.columns = ("step", *self.TRAINING, *self.VALIDATION, *self.CLOCK)
        self.columns += (*costs, *self.metrics.columns)
        self.mark = time.perf_counter()
        self.begin = self.mark - elapsed(rows_up_to(self.path, module.step))
        self.mark_step = self.first = module.step
        rate = peak(module.device, self.options.precision)
        if rate is not None:
            self.utilisation = module.operations() / rate / trainer.world_size
        self.rows = Rows(self.path, self.columns, self.before(module.step))
        if self.options.progress:
            from tqdm import tqdm

            self.bar = tqdm(
                total=self.options.max_steps,
                initial=module.step,
                unit="step",
                disable=None,
                dynamic_ncols=True,
            )
        self.module = module
        self.progress.on_screen = self.options.progress and self.bar.disable
        self.progress.begin()

    def before(self, step: int) -> list[dict[str, Any]]:
        """The rows up to this step, without values that were due only at the end of that run."""
        rows = rows_up_to(self.path, step)
        if not rows or int(rows[-1]["step"]) < step:
            return rows
        groups = {
            "log": (*self.TRAINING, *self.COSTS),
            "metrics": self.metrics.columns,
            "validate": self.VALIDATION,
        }
        early = [name for name in groups if step % self.options.every(name)]
        if len(early) == len(groups):
            return rows[:-1]
        rows[-1] |= {column: "" for name in early for column in groups[name]}
        return rows

    def after_batch(self, trainer: pl.Trainer, module: Training) -> None:
        last = module.step == self.options.max_steps
        due = module.step % self.options.log_every == 0
        values = self.means(module) if due or last else {}
        if due:  # at the end it is kept, as a longer run needs these steps in its next row
            module.tally.clear()
        if not trainer.is_global_zero:
            return
        if due and self.options.spike:
            self.watch(module, values["loss"], self.options.spike)
        if module.step % self.options.validate_every == 0 or last:
            values |= self.validate(module)
        values |= self.metrics.take()
        if self.bar is not None:
            with contextlib.suppress(OSError):  # the terminal is closed, and SIGHUP will follow
                self.bar.update(module.step - self.bar.n)
        if values:
            self.report(trainer, module, values)

    def means(self, module: Training) -> dict[str, float]:
        """The means per step since the last report, and the learning rate."""
        tally = module.tally
        values = {
            "loss": tally.mean(tally.loss),
            "grad_norm": tally.mean(tally.norm),
            "lr": module.learning_rate(module.step - 1),
        }
        if module.batches.coupling.permutes:
            costs = tally.mean(tally.transport), tally.mean(tally.independent)
            values |= dict(zip(self.COSTS, costs, strict=True))
        if math.isfinite(mse := tally.mean(tally.mse)):  # not every objective has one
            values["mse"] = mse
        return values

    def watch(self, module: Training, loss: float, factor: float) -> None:
        """Warn of spikes: steps since the last row whose loss was `factor` times the usual.

        The usual loss is the median of the last rows.
        """
        if module.spikes:
            k, worst = max(module.spikes, key=lambda spike: spike[1])
            log.warning(
                "step %d (seed %d): loss %.4g is %.3g times the usual; %d such steps since the "
                "last row",
                k,
                module.seed,
                worst,
                factor * worst / module.spike_above,
                len(module.spikes),
            )
            module.spikes.clear()
        if math.isfinite(loss):
            self.losses.append(loss)
        usual = statistics.median(self.losses) if self.losses else 0
        module.spike_above = factor * usual if usual > 0 else math.inf

    def report(self, trainer: pl.Trainer, module: Training, values: Mapping[str, float]) -> None:
        """Write a row, pass it to the logger, and show the user how far the run is."""
        now = time.perf_counter()
        steps, self.mark_step = module.step - self.mark_step, module.step
        speed = steps * module.data.batch_size / (now - self.mark)
        self.mark = now
        clock = {f"ms_{part}": ms for part, ms in module.clock.take().items()}
        if self.utilisation:
            clock["utilisation"] = self.utilisation * speed
        self.rows.add(
            {
                "step": module.step,
                **{k: f"{v:.7g}" for k, v in values.items()},
                "seconds": f"{now - self.begin:.3f}",
                "samples_per_second": f"{speed:.1f}",
                **{k: f"{v:.4g}" for k, v in clock.items()},
            }
        )
        if trainer.logger:
            figures = {**values, "samples_per_second": speed, **clock}
            trainer.logger.log_metrics(figures, step=module.step)
        losses = {k: values[k] for k in ("loss", "val_loss") if k in values}
        self.tell(module.step, losses, speed)

    def tell(self, step: int, losses: Mapping[str, float], speed: float) -> None:
        """Show the losses beside the progress bar and, now and then, in a line."""
        if self.bar is not None and not self.bar.disable:
            text = ", ".join(f"{name} {loss:.4g}" for name, loss in losses.items())
            with contextlib.suppress(OSError):
                self.bar.set_postfix_str(text)
        if step % (10 * self.options.log_every) == 0 or "val_loss" in losses:
            note(self.progress.text(losses, speed), self.progress.on_screen)

    @torch.no_grad()
    def validate(self, module: Training) -> dict[str, float]:
        """The loss of the averaged weights on held-out data at fixed (t, eps), total and by t."""
        if self.validation is None:
            self.validation = self.draw_validation(module)
        x, y, eps, *times = self.validation
        losses, squares, net = [], [], module.average()
        for start in range(0, len(x), AT_ONCE):
            part = slice(start, start + AT_ONCE)
            labels = None if y is None else y[part]
            columns = (column[part] for column in times)
            terms = module.objective.terms(x[part], labels, eps[part], *columns)
            loss, mse = module.objective.assess(net, *terms)
            losses.append(loss)
            squares.append(mse)
        loss, mse = (torch.cat(parts).float().cpu() for parts in (losses, squares))
        means = [loss.mean(), mse.mean(), *(c.mean() for c in loss.chunk(BINS))]
        bins = zip(self.VALIDATION, means, strict=False)  # a few samples fill fewer bins
        return {name: mean.item() for name, mean in bins if not (mean.isnan() and "mse" in name)}

    def draw_validation(self, module: Training) -> tuple[Any, ...]:
        """Draw x, y, eps and times for validation, always the same, coupled as in training.

        The times t are those of equal shares of [0, 1], in increasing order.
        """
        batches, data = module.batches, module.data
        y: Given | None
        if batches.pairs is not None:
            x, y, eps = batches.pairs.held_out(module.device)
        else:
            x, y = data.held_out(2000 if len(data.shape) == 1 else 200, module.device)
            draws, size = generator(0, "validation"), data.batch_size
            eps = batches.source.sample(torch.randn(x.shape, generator=draws).to(x), 0, 0)
            index, known = [], label(y)
            for start in range(0, len(x), size):
                part = slice(start, start + size)
                labels = None if known is None else known[part]
                index.append(start + batches.coupling(x[part], eps[part], labels, 0, 0))
            eps = eps[torch.cat(index)]

        def law(n: int, draws: Generator) -> Tensor:
            return (torch.randperm(n, generator=draws) + 0.5) / n

        def draws_of(purpose: str) -> Generator:
            return generator(0, f"validation {purpose}")

        times = module.objective.times(len(x), law, draws_of, 1.0)
        order = times[0].argsort(stable=True)
        return x, y, eps, *(column[order].to(x) for column in times)

    def finish(self, trainer: pl.Trainer, module: Training) -> None:
        if trainer.is_global_zero:
            self.rows.write()
        self.close()

    def on_exception(self, trainer, module, error) -> None:
        """End the progress bar, so that the next output has a line of its own."""
        self.close()

    def close(self) -> None:
        """End the progress bar."""
        self.progress.finish()
        if self.bar is not None:
            with contextlib.suppress(OSError):
                self.bar.close()


class Steps(Activity):
    """How far a training is, in a line: step, loss, speed and the time left."""

    def __init__(self, log: Log) -> None:
        self.log = log

    def line(self) -> str:
        """The line between two rows of metrics.csv, with the mean loss since the last one."""
        module, log = self.log.module, self.log
        loss = module.tally.mean(module.tally.loss)
        seconds = time.perf_counter() - log.begin
        speed = (module.step - log.first) * module.data.batch_size / seconds
        return self.text({"loss": loss} if math.isfinite(loss) else {}, speed)

    def text(self, losses: Mapping[str, float], speed: float) -> str:
        """The line. speed: samples a second."""
        step, last, first = self.log.module.step, self.log.options.max_steps, self.log.first
        seconds = time.perf_counter() - self.log.begin
        if step == first:
            return f"step {step}/{last}: the first step takes {seconds:.0f} s so far"
        words = [f"{name} {loss:.4g}" for name, loss in losses.items()]
        words += [
            f"{speed:.0f} samples/s",
            f"{(last - step) * seconds / (step - first):.0f} s left",
        ]
        return f"step {step}/{last}: {', '.join(words)}"
