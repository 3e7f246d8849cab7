"""Commands from Python: `fmdiff.train` takes the words of the command line and returns the run."""

import contextlib
import logging
import threading
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from omegaconf import OmegaConf

from fmdiff import loading, tables
from fmdiff.build import importable, own_modules
from fmdiff.commands import job
from fmdiff.errors import Complete, Failed, FmdiffError, shortage
from fmdiff.field import NetField
from fmdiff.runs.find import find
from fmdiff.settings import compose, prepare
from fmdiff.settings.sentences import key_of

LOGGERS = ("", "fmdiff", "lightning", "lightning.pytorch", "lightning.fabric")


@dataclass(frozen=True)
class Trained:
    """A trained run. `fmdiff.load` and every command also accept its `folder`.

    trust: the modules of the user's own classes, which its checkpoints may name.
    """

    folder: Path
    trust: tuple[str, ...] = ()

    @property
    def checkpoint(self) -> Path:
        """The newest good checkpoint."""
        return find(self.folder)

    def field(self, weights: str | float = "ema") -> NetField:
        """The trained field. Weights and errors are those of `fmdiff.load`."""
        return loading.load(self.folder, weights, self.trust)

    def _repr_html_(self) -> str:
        """The newest picture of its samples and a table, for notebooks."""
        from fmdiff.pictures import notebook
        from fmdiff.report.read import read_run
        from fmdiff.report.run import duration, steps_of

        run = read_run(self.folder)
        rows: list[list[object]] = [["run", self.folder], ["steps", f"{steps_of(run):,}"]]
        for column in ("loss", "val_loss"):
            if (value := run.last(column)) is not None:
                rows.append([column, f"{value:.4g}"])
        if run.seconds:
            rows.append(["training time", duration(run.seconds)])
        step, path = run.pictures[-1] if run.pictures else (0, None)
        picture = notebook.of_file(path, f"samples after {step:,} steps") if path else ""
        return picture + tables.as_html(rows)


def train(*words: str) -> Trained:
    """Train as `fmdiff train WORDS` does: fmdiff.train("data=moons", "trainer.max_steps=100").

    words: group=choice and key=value, and --config-dir=FOLDER. The command's output goes to the
    logger "fmdiff", and its warnings also to stderr if logging has not been set up. The global
    state of Hydra, logging, warnings and torch is restored afterwards.

    Raises FmdiffError if the command refuses or fails. Its `code` is 1, 3 or 128 + a signal's
    number if the command would exit with that. An error in one's own class is raised as it is.
    """
    args, flags = compose.parse(list(words))
    others = {n: v for n, v in vars(args).items() if v and n not in ("overrides", "config_dir")}
    keys = {key_of(word).partition("/")[0].partition(".")[0] for word in args.overrides}
    if others or "hydra" in keys:
        raise FmdiffError(
            "fmdiff.train takes group=choice, key=value and --config-dir=FOLDER, not "
            + " ".join(flags or (word for word in words if "hydra" in word))
        )
    with _restored(), compose.restored(), importable(*compose.import_folders(args)):
        overrides, (cfg,), _ = prepare.prepare("train", args)
        if cfg.plan:
            raise FmdiffError("plan=true trains nothing: fmdiff train plan=true prints the plan")
        outcome = job.run("train", cfg, overrides)
    error = outcome.error
    if error is not None and not isinstance(error, Complete):
        sentence = None if isinstance(error, FmdiffError) else shortage(error, "train")
        raise error if sentence is None else Failed(sentence) from error
    assert outcome.folder is not None
    trust = (*cfg.trust, *own_modules(OmegaConf.to_container(cfg)))
    return Trained(outcome.folder.absolute(), trust)


@contextlib.contextmanager
def _restored() -> Iterator[None]:
    """Restore logging, warnings and torch's global state after the block."""
    loggers = [logging.getLogger(name) for name in LOGGERS]
    before = [(logger, logger.handlers[:], logger.level) for logger in loggers]
    threads, hook = torch.get_num_threads(), threading.excepthook
    products, cudnn = torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32
    fmdiff = logging.getLogger("fmdiff")
    fmdiff.setLevel(logging.INFO)  # for train.log
    if not fmdiff.hasHandlers():
        fmdiff.addHandler(_warnings())
    try:
        with warnings.catch_warnings(), torch.random.fork_rng(devices=[]):
            yield
    finally:
        for logger, handlers, level in before:
            logger.handlers[:] = handlers
            logger.setLevel(level)
        torch.set_num_threads(threads)
        torch.set_float32_matmul_precision(products)
        torch.backends.cudnn.allow_tf32, threading.excepthook = cudnn, hook


def _warnings() -> logging.Handler:
    """A handler that shows warnings; errors are raised instead."""
    handler = logging.StreamHandler()
    handler.addFilter(lambda record: record.levelno == logging.WARNING)
    return handler
