"""Lightning's trainer, quiet and with all its own features off."""

import contextlib
import logging
import threading
import warnings
from collections.abc import Callable, Iterator, Sequence
from itertools import chain, pairwise
from pathlib import Path
from typing import Any

import torch
from lightning import pytorch as pl
from lightning.pytorch import Callback
from lightning.pytorch.loggers import Logger, TensorBoardLogger
from lightning.pytorch.plugins.environments import LightningEnvironment, TorchElasticEnvironment
from torch.utils.tensorboard.summary import hparams

from fmdiff.machine import processes
from fmdiff.runs.config import leaves
from fmdiff.training.module import Training
from fmdiff.training.options import INTERVALS, TrainerOptions


class Hooks(Callback):
    """The base class of work between optimiser steps, with the hooks that a run uses."""

    def start(self, trainer: pl.Trainer, module: Training) -> None:
        """Called before the first step. An earlier run has done `module.step` steps."""

    def after_batch(self, trainer: pl.Trainer, module: Training) -> None:
        """Called after each Lightning batch, a range of Chunks. `module.step` steps are done."""

    def finish(self, trainer: pl.Trainer, module: Training) -> None:
        """Called after the last step, also if a signal or the time limit ended training."""

    def on_train_start(self, trainer, module) -> None:
        """Lightning's name of `start`."""
        self.start(trainer, module)

    def on_train_batch_end(self, trainer, module, outputs, batch, batch_idx) -> None:
        """Lightning's name of `after_batch`."""
        self.after_batch(trainer, module)

    def on_train_end(self, trainer, module) -> None:
        """Lightning's name of `finish`."""
        self.finish(trainer, module)


class Chunks:
    """The trainer's data: ranges (k, stop) of optimiser steps, cut at multiples."""

    def __init__(self, first: int, last: int, size: int) -> None:
        self.first, self.last = first, last
        self.inner = range(first // size * size + size, last, size)

    def __len__(self) -> int:
        return len(self.inner) + 1

    def __iter__(self) -> Iterator[tuple[int, int]]:
        return pairwise(chain([self.first], self.inner, [self.last]))


def fitter(
    options: TrainerOptions,
    device: torch.device,
    hooks: Sequence[Hooks],
    folder: Path,
    logger: Logger | None = None,
) -> pl.Trainer:
    """Make Lightning's trainer, with all its own features off."""
    alone = processes.world() == 1
    trainer = pl.Trainer(
        accelerator="gpu" if device.type == "cuda" else "cpu",
        devices=[device.index] if device.index is not None else options.devices,
        num_nodes=processes.world() // options.devices,
        strategy="auto" if alone else "ddp",
        plugins=[LightningEnvironment() if alone else TorchElasticEnvironment()],
        max_epochs=1,
        callbacks=list(hooks),
        logger=logger or False,
        default_root_dir=folder,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        log_every_n_steps=1,
        use_distributed_sampler=False,
    )
    # its handler of SIGTERM calls other ranks, which do not answer
    trainer._signal_connector.register_signal_handlers = lambda: None  # type: ignore[method-assign]
    return trainer


def experiment_logger(folder: Path, options: TrainerOptions, step: int) -> Logger | None:
    """The logger of `trainer.logger=` for a run that continues from `step`.

    metrics.csv is written in any case.
    """
    if options.logger == "csv":
        return None
    if options.logger == "wandb":
        from lightning.pytorch.loggers import WandbLogger

        return WandbLogger(save_dir=folder, project="fmdiff")
    # hides events of steps that will be repeated, and the last values of the run that ended here
    # and now continues
    reported = any(step % options.every(name) == 0 for name in INTERVALS[:4])
    purge = step + (step > 0 and reported)
    return lenient(TensorBoardLogger)(
        save_dir=folder, name="tensorboard", version="", purge_step=purge
    )


def log_settings(logger: Logger | None, settings: dict[str, Any], step: int) -> None:
    """Show the settings of a run in TensorBoard or at Weights & Biases.

    TensorBoard's table of hyperparameters has those of the first start of a run, and its texts
    those of each start, at the step where it began.
    """
    flat = {k: v if type(v) in (int, float) else str(v) for k, v in leaves(settings)}
    if isinstance(logger, TensorBoardLogger):
        # the values of these scalars stand beside the hyperparameters
        summaries = hparams(flat, {"loss": 0.0, "val_loss": 0.0})
        with contextlib.suppress(OSError):
            for summary in summaries:
                logger.experiment.file_writer.add_summary(summary)
            text = "\n".join(f"    {key}: {value}" for key, value in flat.items())
            logger.experiment.add_text("settings", text, step)
    elif logger is not None:
        logger.log_hyperparams(flat)


def board(trainer: pl.Trainer) -> Any:
    """TensorBoard's writer, or None if the run has another logger."""
    logger = trainer.logger
    return logger.experiment if isinstance(logger, TensorBoardLogger) else None


def lenient(kind: type[Logger]) -> type[Any]:
    """A logger whose failure to write, on a full disk, does not end the run."""

    def forgiving(name: str) -> Callable[..., None]:
        def call(*args: Any, **kwargs: Any) -> None:
            try:
                getattr(kind, name)(*args, **kwargs)
            except Exception as error:  # Lightning turns some into ValueError
                if not isinstance(error.__cause__ or error, OSError):
                    raise

        return call

    names = ("log_metrics", "log_hyperparams", "save", "finalize")
    return type(kind.__name__, (kind,), {name: forgiving(name) for name in names})


def quiet() -> None:
    """Silence Lightning's tips and its repeated lines. Warnings stay."""
    # TensorBoard's thread error is raised again at the next write
    threading.excepthook = lambda args: (
        None if issubclass(args.exc_type, OSError) else threading.__excepthook__(args)
    )
    for name in ("lightning", "lightning.pytorch", "lightning.fabric"):
        logging.getLogger(name).handlers.clear()
        logging.getLogger(name).setLevel(logging.WARNING)
    for message in (
        ".*LeafSpec.*",
        ".*in eval mode at the start of training.*",  # the averages are in eval mode
        ".*does not have many workers.*",
        ".*val_dataloader.*",
        ".*GPU available but not used.*",
        ".*isinstance.treespec.*",
    ):
        warnings.filterwarnings("ignore", message=message)
