"""fmdiff train: the run around the optimiser step."""

import logging
import math
import threading
import warnings
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from lightning import pytorch as pl
from lightning.pytorch.plugins.environments import LightningEnvironment, TorchElasticEnvironment
from omegaconf import OmegaConf
from torch import nn

from fmdiff.build import build
from fmdiff.errors import FmdiffError, word
from fmdiff.machine import device, precision, processes
from fmdiff.path import from_spec
from fmdiff.randomness import key
from fmdiff.runs import checkpoint
from fmdiff.runs.config import seconds
from fmdiff.runs.find import find, newest_good
from fmdiff.runs.folder import write_config
from fmdiff.training.callbacks import Checkpoints, Judged, Log, Pictures, Profile
from fmdiff.training.module import Training
from fmdiff.training.stop import Stop

log = logging.getLogger("fmdiff")
INTERVALS = ("log", "validate", "picture", "metrics", "checkpoint")  # of steps: NAME_every


class Chunks:
    """What the trainer iterates over: (k, stop) ranges of optimiser steps, cut at multiples."""

    def __init__(self, first: int, last: int, size: int) -> None:
        edges = [first, *range(first // size * size + size, last, size), last]
        self.ranges = list(pairwise(edges))

    def __len__(self) -> int:
        return len(self.ranges)

    def __iter__(self):
        return iter(self.ranges)


def inner_steps(options: dict[str, Any], points: bool) -> int:
    """Optimiser steps per Lightning batch, dividing all intervals so that none is missed."""
    intervals = [options[f"{name}_every"] for name in INTERVALS]
    wanted = options["inner_steps"]
    if wanted is None:
        return math.gcd(25 if points else 1, *intervals)
    if any(interval % wanted for interval in intervals):
        raise FmdiffError(
            f"trainer.inner_steps={wanted} must divide log_every, validate_every, picture_every, "
            f"metrics_every and checkpoint_every ({', '.join(map(str, intervals))})"
        )
    return wanted


def prepared(cfg) -> tuple[Training, torch.device]:
    """The module that cfg describes, and where it is to be trained; fills in cfg.threads.

    Raises FmdiffError for what does not go together.
    """
    settings: dict[str, Any] = OmegaConf.to_container(cfg)  # type: ignore[assignment]
    options = settings["trainer"]
    where = device.pick(settings["device"])
    device.enough(where, options["devices"], "trainer.devices")
    processes.join(where)
    ranks = max(processes.world(), options["devices"])  # those of this machine may yet be started
    precision.precise(options["precision"], where, "trainer.")
    precision.compiles(options["compile"], where, "trainer.")
    data = build(settings["data"])
    if data.batch_size % (ranks * options["accumulate"]):
        raise FmdiffError(
            f"data.batch_size={data.batch_size} must be a multiple of trainer.devices x "
            f"trainer.accumulate = {ranks * options['accumulate']}"
        )
    inner_steps(options, points=len(data.shape) == 1)
    with processes.after_rank_0():
        data.prepare()
    torch.manual_seed(key(settings["seed"], "init"))
    net = build(settings["model"], shape=data.shape, classes=data.classes)
    if not isinstance(net, nn.Module):
        raise FmdiffError(f"model={settings['choices']['model']} cannot be trained")
    path, coupling = from_spec(settings["path"]), build(settings["coupling"])
    coupling.check(data.batch_size // max(1, data.classes), data.shape)
    source = build(settings["source"])
    source.check(data.shape)
    source.prepare()
    objective = build(
        settings["objective"],
        path=path,
        data_std=float(data.std),
        source=source,
        coupled=not coupling.independent,
    )
    if getattr(net, "logits", False) != getattr(objective, "logits", False):
        raise FmdiffError(
            f"objective={settings['choices']['objective']} does not go with "
            f"model={settings['choices']['model']}: classification takes model=classifier "
            "(images) or mlp_classifier (points), and these no other objective"
        )
    if where.type == "cpu":
        parameters = sum(p.numel() for p in net.parameters())
        rule = device.threads(parameters, data.batch_size, data.shape) // options["devices"]
        cfg.threads = settings["threads"] = settings["threads"] or max(1, rule)
        torch.set_num_threads(settings["threads"])
    module = Training(settings, data, net, objective, build(settings["time"], path=path), coupling)
    return module, where


def judged(module: Training, where: torch.device) -> None:
    """Give the module the judge of trainer.metrics=; only the leading process has one."""
    options, settings = module.options, module.settings
    if processes.rank():
        return
    if options["metrics"] and not module.classifies:
        from fmdiff.metrics.judge import judge

        said = {name: settings.get(name) for name in ("features", "against")}
        said["metrics"] = options["metrics"]
        data = module.data
        module.judge = judge(said, data, data.shape, data.classes, 0, where)
    known = module.judge.columns if module.judge else ()
    if options["best"] and options["best"] not in known:
        raise FmdiffError(
            f"trainer.best={options['best']}: the metrics of this run are "
            + (", ".join(known) or "none: say trainer.metrics=")
        )


def fitter(options: dict[str, Any], where: torch.device, callbacks: list, **more) -> pl.Trainer:
    """Lightning's trainer, with nothing of its own on."""
    alone = processes.world() == 1
    trainer = pl.Trainer(
        accelerator="gpu" if where.type == "cuda" else "cpu",
        devices=[where.index] if where.index is not None else options["devices"],
        num_nodes=processes.world() // options["devices"],
        strategy="auto" if alone else "ddp",
        plugins=[LightningEnvironment() if alone else TorchElasticEnvironment()],
        max_epochs=1,
        callbacks=callbacks,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        log_every_n_steps=1,
        use_distributed_sampler=False,
        **more,
    )
    # its handler of SIGTERM calls the other ranks, which are not listening
    trainer._signal_connector.register_signal_handlers = lambda: None  # type: ignore[method-assign]
    return trainer


def train(cfg, folder: Path) -> None:
    """Train as cfg says in the run folder, from its newest good checkpoint if there is one."""
    module, where = prepared(cfg)
    judged(module, where)
    settings, options, net, data = module.settings, module.options, module.net, module.data
    found = newest_good(folder) if settings["resume"] else None
    if found:
        module.restore(found[1])
        log.info("resuming %s at step %d", found[0], module.step)
    elif settings["init"]:
        module.restore(checkpoint.read(find(settings["init"])), optimizer=False)
    if module.step >= options["max_steps"]:
        log.info("%s has its %d steps already; raise trainer.max_steps", folder, module.step)
        return

    quiet()
    stop = Stop(seconds(options["max_time"]))
    callbacks = [
        Judged(folder, options),
        Log(folder, options),
        Pictures(folder, options["picture_every"]),
        Checkpoints(folder, options["checkpoint_every"], options["keep"]),
        stop,
    ]
    if settings["profile"]:
        callbacks.append(Profile(folder))
    size = inner_steps(options, points=len(data.shape) == 1)
    with stop.listening(), processes.started("train", folder, options["devices"], where):
        trainer = fitter(
            options,
            where,
            callbacks,
            logger=logger(folder, options, module.step),
            default_root_dir=folder,
        )
        if trainer.is_global_zero:
            write_config(folder, cfg)
            shown = ", ".join(
                f"{group} {settings['choices'][group]}"
                for group in ("data", "path", "model", "objective")
            )
            parameters = sum(p.numel() for p in net.parameters())
            log.info(
                "%s; %s parameters, on %s; writing to %s", shown, f"{parameters:,}", where, folder
            )
        try:
            trainer.fit(module, Chunks(module.step, options["max_steps"], size))
        finally:
            module.ahead.close()
        stop.conclude(module.step, folder)
        if trainer.is_global_zero:
            log.info("%d steps done; next: fmdiff sample %s", module.step, word("ckpt", folder))


def logger(folder: Path, options: dict[str, Any], step: int):
    """The experiment logger of `trainer.logger=`; metrics.csv is written in any case."""
    if options["logger"] == "csv":
        return False
    if options["logger"] == "wandb":
        from lightning.pytorch.loggers import WandbLogger

        return WandbLogger(save_dir=folder, project="fmdiff")
    from lightning.pytorch.loggers import TensorBoardLogger

    # what an earlier attempt wrote of the steps that come again is not shown, nor the last values
    # of a run that now goes on
    shown = step > 0 and any(step % options[f"{name}_every"] == 0 for name in INTERVALS[:4])
    return lenient(TensorBoardLogger)(
        save_dir=folder, name="tensorboard", version="", purge_step=step + shown
    )


def lenient(kind: type) -> type:
    """A logger that may fail to write, on a full disk, without ending the run."""

    def forgiven(name: str) -> Any:
        def call(*args, **kwargs):
            try:
                getattr(kind, name)(*args, **kwargs)
            except Exception as error:  # Lightning makes a ValueError of some
                if not isinstance(error.__cause__ or error, OSError):
                    raise

        return call

    names = ("log_metrics", "log_hyperparams", "save", "finalize")
    return type(kind.__name__, (kind,), {name: forgiven(name) for name in names})


def quiet() -> None:
    """Keep Lightning's tips and its doubled lines out of the user's sight; warnings stay."""
    # TensorBoard's thread raises it once more where something is written
    threading.excepthook = lambda args: (
        None if issubclass(args.exc_type, OSError) else threading.__excepthook__(args)
    )
    for name in ("lightning", "lightning.pytorch", "lightning.fabric"):
        logging.getLogger(name).handlers.clear()
        logging.getLogger(name).setLevel(logging.WARNING)
    for message in (
        ".*LeafSpec.*",
        ".*in eval mode at the start of training.*",  # the averages
        ".*does not have many workers.*",
        ".*val_dataloader.*",
        ".*GPU available but not used.*",
        ".*isinstance.treespec.*",
    ):
        warnings.filterwarnings("ignore", message=message)
