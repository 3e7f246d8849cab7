"""fmdiff train: sets up and concludes the run around the optimiser steps."""

import logging
import os
import shlex
import sys
from pathlib import Path
from typing import Any

from omegaconf import DictConfig

from fmdiff.build import ADDED, own_modules
from fmdiff.errors import Complete, word
from fmdiff.machine import processes
from fmdiff.runs import averages, checkpoint
from fmdiff.runs.config import seconds
from fmdiff.runs.content import TITLE, Checkpoint
from fmdiff.runs.find import find, newest_good
from fmdiff.runs.folder import write_config
from fmdiff.settings.compose import going_on
from fmdiff.training import checkpoints, reflow
from fmdiff.training.assemble import assemble
from fmdiff.training.judged import SampleMetrics, judge_of
from fmdiff.training.log import Log
from fmdiff.training.module import Training
from fmdiff.training.pictures import Pictures
from fmdiff.training.profile import Profile
from fmdiff.training.stop import Stop
from fmdiff.training.trainer import Chunks, Hooks, experiment_logger, fitter, log_settings, quiet

log = logging.getLogger("fmdiff")


def train(cfg: DictConfig, folder: Path) -> None:
    """Train as cfg says in the run folder, from its newest good checkpoint if there is one."""
    newest = newest_good(folder) if cfg.resume else None
    state, title, before = None, TITLE, None
    if newest:
        content = Checkpoint.of(newest[1], newest[0])
        if content.step >= cfg.trainer.max_steps:
            raise Complete(
                f"{folder} has its {content.step} steps already; raise trainer.max_steps"
            )
        state, title = averages.weights_of(content, "raw", folder), content.title
        before = content.training
    module, device = assemble(cfg, state, title, before)
    options = module.options
    metrics = SampleMetrics(folder, options, judge_of(module, device))
    start(module, newest)
    quiet()
    stop = Stop(seconds(options.max_time))
    hooks: list[Hooks] = [metrics, Log(folder, options, metrics), Pictures(folder, options)]
    hooks += [checkpoints.Checkpoints(folder, options), stop]
    if module.settings["profile"]:
        hooks.append(Profile(folder))
    size = options.steps_per_batch(points=len(module.data.shape) == 1)
    with stop.listening(), processes.group("train", folder, options.devices, device):
        logger = experiment_logger(folder, options, module.step)
        trainer = fitter(options, device, hooks, folder, logger)
        if trainer.is_global_zero:
            write_config(folder, cfg)
            log_settings(logger, module.settings, module.step)
            log.info("%s, on %s; writing to %s", summary(module), device, folder)
        try:
            trainer.fit(module, Chunks(module.step, options.max_steps, size))
        finally:
            module.batches.close()
        stop.conclude(module.step, going_on(folder))
        if trainer.is_global_zero:
            if module.batches.pairs is not None:
                field, pairs = module.field(), module.batches.pairs
                log.info("%s", reflow.conclusion(field, module.data, pairs, device))
            log.info("%d steps done; next: %s", module.step, next_command(module, folder))


def start(module: Training, newest: tuple[Path, dict[str, Any]] | None) -> None:
    """Load the newest checkpoint of the run, or what `init=` names.

    Raises FmdiffError if it does not fit.
    """
    settings = module.settings
    if newest:
        path, content = newest
        checkpoints.resume(module, content, path)
        log.info("resuming %s at step %d", path, module.step)
    elif settings["init"]:
        path = find(settings["init"], option="init")
        checkpoints.init(module, checkpoint.read(path), path)


def summary(module: Training) -> str:
    """Describe the training in a line."""
    groups = ("data", "path", "model", "objective")
    choices = ", ".join(f"{group} {module.settings['choices'][group]}" for group in groups)
    words = f"{choices}; {sum(p.numel() for p in module.net.parameters()):,} parameters"
    return "; ".join(filter(None, (words, passes(module))))


def passes(module: Training) -> str:
    """How often a step asks the networks for a sample; empty for once, with its gradient."""
    without, differentiated, taught = module.objective.evaluations
    if not (without or taught):
        return ""
    teacher = f", and {taught:.3g} of the teacher" if taught else ""
    return (
        f"{without + differentiated:.3g} evaluations of the network a step and sample, "
        f"{differentiated:.3g} of them with gradient{teacher}"
    )


def next_command(module: Training, folder: Path) -> str:
    """The command that shows the result. A classifier is shown guiding another MODEL."""
    if module.autoencodes:
        of = module.settings["choices"]["data"]
        return f"fmdiff train data=latent data.of={of} {word('data.autoencoder', folder)}"
    words = [word("ckpt", folder)]
    if module.classifies:
        words = ["ckpt=MODEL", "guidance=classifier", word("guidance.ckpt", folder)]
    modules = own_modules(checkpoints.spec(module))
    if modules:
        words.append(shlex.quote(f"trust=[{','.join(modules)}]"))
    return " ".join(["fmdiff sample", *words, *_import_folder(modules)])


def _import_folder(modules: list[str]) -> list[str]:
    """The --config-dir in which these modules lie; empty if they are found without it."""
    files = [Path(sys.modules[name[:-1]].__file__ or "") for name in modules]
    for folder in os.environ.get(ADDED, "").split(os.pathsep):
        if folder != os.getcwd() and any(file.is_relative_to(folder) for file in files):
            return [shlex.quote(f"--config-dir={folder}")]
    return []
