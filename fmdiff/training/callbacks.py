"""What happens between optimiser steps: reports, pictures, checkpoints."""

import contextlib
import csv
import logging
import math
import statistics
import time
from collections import deque
from pathlib import Path
from typing import Any

import numpy as np
import torch
from lightning.pytorch import Callback

from fmdiff.data.images import to_uint8
from fmdiff.errors import FmdiffError
from fmdiff.machine.clock import PARTS
from fmdiff.machine.cost import operations, peak
from fmdiff.metrics.results import MORE
from fmdiff.pictures import plots
from fmdiff.randomness import generator
from fmdiff.runs import averages, checkpoint
from fmdiff.runs.rows import Rows, rows_up_to
from fmdiff.sampling import generate

log = logging.getLogger("fmdiff")

BINS = 5  # of equal width in t, for the validation loss
VALIDATED = 100  # held-out samples at a time


class Log(Callback):
    """The progress bar, metrics.csv and the logger: training and validation loss."""

    columns = (
        *("step", "loss", "grad_norm", "lr", "val_loss"),
        *(f"val_loss_{i}" for i in range(BINS)),
        *("seconds", "samples_per_second", "utilisation"),
        *(f"ms_{part}" for part in PARTS),  # of a step
    )
    costs = ("transport_cost", "independent_cost")  # mean |x - eps|^2 with a coupling, without

    def __init__(self, folder: Path, options: dict) -> None:
        self.path, self.options = folder / "metrics.csv", options
        self.bar: Any = None
        self.fixed: Any = None  # held-out x, y, eps and t
        # of the peak rate of the device that one sample a second takes; None: not known
        self.utilisation: float | None = None
        self.losses: deque[float] = deque(maxlen=9)  # of the last rows

    def on_train_start(self, trainer, module) -> None:
        if not trainer.is_global_zero:
            return
        progress = trainer.fit_loop.epoch_loop.manual_optimization.optim_step_progress.total
        progress.ready = progress.completed = module.step  # global_step counts on after a resume
        if not module.coupling.independent:
            self.columns = (*self.columns, *self.costs)
        if module.judge is not None:
            self.columns = (*self.columns, *module.judge.columns)
        self.begin = self.mark = time.perf_counter()
        self.marked = self.first = module.step
        rate = peak(module.device, module.options["precision"])
        if rate is not None:
            data = module.data
            work = 3 * operations(module.net, data.shape, data.classes)
            self.utilisation = work / rate / trainer.world_size
        self.rows = Rows(self.path, self.columns, self.before(module))
        if self.options["progress"]:
            from tqdm import tqdm

            self.bar = tqdm(
                total=self.options["max_steps"],
                initial=module.step,
                unit="step",
                disable=None,
                dynamic_ncols=True,
            )

    def on_train_batch_end(self, trainer, module, outputs, batch, batch_idx) -> None:
        values: dict[str, float] = {}
        last = module.step == self.options["max_steps"]
        due = module.step % self.options["log_every"] == 0
        if due or last:
            steps = module.sums[2] or math.nan  # all skipped
            loss, norm, _, *costs = (value / steps for value in module.sums)
            values |= {
                "loss": loss,
                "grad_norm": norm,
                "lr": module.learning_rate(module.step - 1),
            }
            if not module.coupling.independent:
                values |= dict(zip(self.costs, costs, strict=True))
            if due:  # else a longer run would lack these steps in its next row
                module.sums[:] = [0.0] * len(module.sums)
        if not trainer.is_global_zero:
            return
        if due and self.options["spike"]:
            self.watch(module, values["loss"])
        if module.step % self.options["validate_every"] == 0 or last:
            values |= self.validate(module)
        values |= module.measured
        module.measured = {}
        if self.bar is not None:
            self.bar.update(module.step - self.bar.n)
        if values:
            self.report(trainer, module, values)

    def before(self, module) -> list[dict]:
        """The rows up to this step, without what was written as a run ended that now goes on."""
        rows = rows_up_to(self.path, module.step)
        if not rows or int(rows[-1]["step"]) < module.step:
            return rows
        judged = module.judge.columns if module.judge else ()
        groups = {"log": ("loss", "grad_norm", "lr", *self.costs), "metrics": judged}
        groups["validate"] = [name for name in self.columns if name.startswith("val_loss")]
        passed = [name for name in groups if module.step % self.options[f"{name}_every"]]
        if len(passed) == len(groups):
            return rows[:-1]
        rows[-1] |= {column: "" for name in passed for column in groups[name]}
        return rows

    def watch(self, module, loss: float) -> None:
        """Warn of the steps since the last row whose loss was far above the usual.

        The usual is the median of the last rows' losses.
        """
        if module.spikes:
            k, worst = max(module.spikes, key=lambda spike: spike[1])
            log.warning(
                "step %d (seed %d): loss %.4g is %.3g times the usual; %d such steps since the "
                "last row",
                *(k, module.seed, worst, self.options["spike"] * worst / module.spike_above),
                len(module.spikes),
            )
            module.spikes.clear()
        if math.isfinite(loss):
            self.losses.append(loss)
        usual = statistics.median(self.losses) if self.losses else 0
        module.spike_above = self.options["spike"] * usual if usual > 0 else math.inf

    def report(self, trainer, module, values: dict[str, float]) -> None:
        now = time.perf_counter()
        steps, self.marked = module.step - self.marked, module.step
        speed = steps * module.data.batch_size / (now - self.mark)
        self.mark = now
        split = {f"ms_{part}": ms for part, ms in module.clock.take().items()}
        if self.utilisation:
            split["utilisation"] = self.utilisation * speed
        self.rows.add(
            {
                "step": module.step,
                **{k: f"{v:.7g}" for k, v in values.items()},
                "seconds": f"{now - self.begin:.3f}",
                "samples_per_second": f"{speed:.1f}",
                **{k: f"{v:.4g}" for k, v in split.items()},
            }
        )
        if trainer.logger:
            logged = {**values, "samples_per_second": speed, **split}
            trainer.logger.log_metrics(logged, step=module.step)
        line = ", ".join(f"{k} {values[k]:.4g}" for k in ("loss", "val_loss") if k in values)
        if self.bar is not None and not self.bar.disable:
            self.bar.set_postfix_str(line)
        elif self.options["progress"] and (
            module.step % (10 * self.options["log_every"]) == 0 or "val_loss" in values
        ):
            left = (self.options["max_steps"] - module.step) * (now - self.begin)
            left /= max(1, module.step - self.first)
            log.info(
                "step %d/%d: %s, %.0f samples/s, %.0f s left",
                *(module.step, self.options["max_steps"], line, speed, left),
            )

    @torch.no_grad()
    def validate(self, module) -> dict[str, float]:
        """The averaged weights' loss on held-out data at fixed (t, eps), whole and by time."""
        if self.fixed is None:
            x, y = module.data.held_out(
                2000 if len(module.data.shape) == 1 else 200, module.device
            )
            draws, size = generator(0, "validation"), module.data.batch_size
            eps = module.source.sample(torch.randn(x.shape, generator=draws).to(x), 0, 0)
            parts = [slice(i, i + size) for i in range(0, len(x), size)]  # as in training
            index = [
                part.start
                + module.coupling(x[part], eps[part], None if y is None else y[part], 0, 0)
                for part in parts
            ]
            eps = eps[torch.cat(index)]
            t = ((torch.arange(len(x)) + 0.5) / len(x)).to(x)
            self.fixed = x, y, eps, module.objective.time(t)
        losses, net = [], module.field().net
        for start in range(0, len(self.fixed[0]), VALIDATED):
            part = slice(start, start + VALIDATED)
            losses.append(
                module.objective(net, *(v if v is None else v[part] for v in self.fixed))
            )
        loss = torch.cat(losses).float().cpu()
        bins = {f"val_loss_{i}": c.mean().item() for i, c in enumerate(loss.chunk(BINS))}
        return {"val_loss": loss.mean().item(), **bins}

    def on_train_end(self, trainer, module) -> None:
        if trainer.is_global_zero:
            self.rows.write()
        self.close()

    def on_exception(self, trainer, module, exception) -> None:
        self.close()

    def close(self) -> None:
        if self.bar is not None:
            self.bar.close()


class Pictures(Callback):
    """Samples of the averaged weights from the same noise every so many steps."""

    def __init__(self, folder: Path, every: int) -> None:
        self.folder, self.every = folder / "samples", every

    def on_train_batch_end(self, trainer, module, outputs, batch, batch_idx) -> None:
        due = module.step % self.every == 0 or module.step == module.options["max_steps"]
        if not (due and trainer.is_global_zero) or module.classifies:
            return
        try:
            self.picture(trainer, module)
        except (FmdiffError, OSError) as error:  # a picture is not worth a run
            log.warning("no picture at step %d: %s", module.step, error)

    def picture(self, trainer, module) -> None:
        images = len(module.data.shape) == 3
        samples = generate(module.field(), 64 if images else 2000, steps=14, device=module.device)
        if images:
            y = None if samples.y is None else samples.y.tolist()
            picture: Any = plots.grid(to_uint8(samples.x).numpy(), y)
        else:
            real = module.data.held_out(2000)[0].numpy()
            picture = plots.scatter(samples.x.numpy(), real, title=f"step {module.step}")
        self.folder.mkdir(exist_ok=True)
        plots.save(picture, self.folder / f"step_{module.step:07d}.png")
        board: Any = getattr(trainer.logger, "experiment", None)
        if hasattr(board, "add_image"):
            pixels = np.asarray(picture if images else plots.render(picture))
            board.add_image("samples", pixels, module.step, dataformats="HWC")


class Judged(Callback):
    """Metrics of the averaged weights every so many steps, and best.ckpt by one of them.

    Stands before Log, which writes the values down.
    """

    def __init__(self, folder: Path, options: dict) -> None:
        self.folder, self.every, self.n = folder, options["metrics_every"], options["metrics_n"]
        self.by, self.best = options["best"], math.inf

    def on_train_start(self, trainer, module) -> None:
        file = self.folder / "metrics.csv"
        if self.by is None or not (module.step and file.is_file()):
            return
        with file.open(newline="") as rows:
            for row in csv.DictReader(rows):
                if row.get(self.by) and int(row["step"]) <= module.step:
                    self.best = min(self.best, self._rank(float(row[self.by])))

    def on_train_batch_end(self, trainer, module, outputs, batch, batch_idx) -> None:
        due = module.step % self.every == 0 or module.step == module.options["max_steps"]
        if not (due and trainer.is_global_zero) or module.judge is None:
            return
        images, judge = len(module.data.shape) == 3, module.judge
        judge.clear()

        def receive(x, y) -> None:
            judge.add(to_uint8(x) if images else x, y)

        try:
            generate(module.field(), self.n, steps=14, device=module.device, receive=receive)
            found = judge.results()
        except FmdiffError as error:  # a figure is not worth a run
            log.warning("no metrics at step %d: %s", module.step, error)
            return
        module.measured = {name: metric.value for name, metric in found.items()}
        shown = ", ".join(f"{name} {value:.4g}" for name, value in module.measured.items())
        log.info("step %d: %s", module.step, shown)
        if self.by is not None and (rank := self._rank(module.measured[self.by])) < self.best:
            try:
                checkpoint.write(self.folder / "best.ckpt", module.content())
                self.best = rank
            except OSError as error:
                log.warning("best.ckpt was not written, the last one is kept: %s", error)

    def _rank(self, value: float) -> float:
        """Less is better."""
        return -value if self.by in MORE else value


class Checkpoints(Callback):
    """{step:07d}.ckpt every so many steps and at the end, last.ckpt beside it, `keep` of them.

    Of power averages snapshots in averages/ too, all kept: see `reconstruction`. A failed write
    (a full disk) is warned of and tried again next time; of a checkpoint at the end an error.
    """

    def __init__(self, folder: Path, every: int, keep: int | None) -> None:
        self.folder, self.every, self.keep = folder, every, keep
        self.saved = -1

    def on_train_start(self, trainer, module) -> None:
        self.before = module.step
        if trainer.is_global_zero:
            averages.forget(self.folder, after=module.step)

    def on_train_batch_end(self, trainer, module, outputs, batch, batch_idx) -> None:
        every = module.options["snapshot_every"] or self.every
        last = module.step == module.options["max_steps"]
        due = last or module.step // every > self.before // every
        self.before = module.step
        try:
            if due and module.averages.widths and trainer.is_global_zero:
                averages.save(self.folder, module.step, module.averages)
            if module.step % self.every == 0 and not last:
                self.save(trainer, module)
        except OSError as error:
            log.warning("step %d was not saved, the last one is kept: %s", module.step, error)

    def on_train_end(self, trainer, module) -> None:
        self.save(trainer, module)

    def save(self, trainer, module) -> None:
        if self.saved == module.step or not trainer.is_global_zero:
            return
        board: Any = getattr(trainer.logger, "experiment", None)
        if hasattr(board, "flush"):  # no event of an earlier step is then lost with the process
            with contextlib.suppress(OSError):  # a full disk may have ended its thread for good
                board.flush()
        path = self.folder / checkpoint.name(module.step)
        checkpoint.write(path, module.content())
        checkpoint.link_last(path)
        self.saved = module.step
        numbered = sorted(self.folder.glob("[0-9]" * 7 + ".ckpt"))
        for old in numbered[: -self.keep] if self.keep else []:
            old.unlink(missing_ok=True)


class Profile(Callback):
    """trace.json.gz of a few Lightning batches, and a table of what took longest in them.

    To be opened in ui.perfetto.dev or chrome://tracing.
    """

    BEFORE, MEASURED = 5, 3  # batches

    def __init__(self, folder: Path) -> None:
        self.path = folder / "trace.json.gz"

    def on_train_start(self, trainer, module) -> None:
        self.profiler: Any = None
        self.batches = 0
        if trainer.is_global_zero:
            self.profiler = torch.profiler.profile(
                schedule=torch.profiler.schedule(
                    wait=self.BEFORE - 1, warmup=1, active=self.MEASURED, repeat=1
                ),
                on_trace_ready=self._write,
            )
            self.profiler.start()

    def _write(self, profiler) -> None:
        part = self.path.with_name(".part-trace.json.gz")
        profiler.export_chrome_trace(str(part))
        part.replace(self.path)
        log.info("%s holds the trace of %d batches", self.path, self.MEASURED)
        by = f"self_{'cuda' if torch.cuda.is_available() else 'cpu'}_time_total"
        log.info("%s", profiler.key_averages().table(sort_by=by, row_limit=15))

    def on_train_batch_end(self, trainer, module, outputs, batch, batch_idx) -> None:
        if self.profiler is not None:
            self.profiler.step()
            self.batches += 1

    def on_train_end(self, trainer, module) -> None:
        if self.profiler is not None:
            self.profiler.stop()
            if self.batches < self.BEFORE + self.MEASURED:
                log.warning("profile=true: no trace, the run was too short for one")
