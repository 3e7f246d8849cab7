"""fmdiff train: the optimiser step, as a LightningModule, and the run around it."""

import copy
import logging
import math
import os
import warnings
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from lightning import pytorch as pl
from omegaconf import OmegaConf
from torch import Tensor, nn

from fmdiff import checkpoint, device, schema
from fmdiff.build import build
from fmdiff.callbacks import Checkpoints, Judged, Log, Pictures, Stop
from fmdiff.coupling import transport_cost
from fmdiff.ema import Averages
from fmdiff.errors import Diverged, FmdiffError
from fmdiff.path import from_spec
from fmdiff.randomness import generator, key
from fmdiff.run import write_config

log = logging.getLogger("fmdiff")
INTERVALS = ("log", "validate", "picture", "metrics", "checkpoint")  # of steps: NAME_every


class Training(pl.LightningModule):
    """Optimiser step k is a function of (weights, optimiser state, seed, k) and nothing else."""

    def __init__(
        self, settings: dict[str, Any], data, net: nn.Module, objective, time, coupling
    ) -> None:
        super().__init__()
        self.automatic_optimization = False
        self.settings, self.options, self.data = settings, settings["trainer"], data
        self.net, self.objective, self.time = net, objective, time
        self.source, self.coupling = objective.source, coupling
        self.classifies = getattr(objective, "logits", False)  # what it trains gives no samples
        self.averages = Averages(net, self.options["ema"], self.options["ema_warmup"])
        self.seed, self.step, self.skipped = settings["seed"], 0, 0
        self.optimizer_state: dict | None = None
        # the step, its coupling, and the transport cost with and without it
        self.pairing: tuple[int, Any, Tensor] = (-1, None, torch.zeros(2))
        # since the last report: loss, gradient norm, steps, transport cost, that of no coupling
        self.sums = torch.zeros(5)
        self.judge: Any = None  # of trainer.metrics=
        self.measured: dict[str, float] = {}  # its figures, until they are written down
        self.drops = any(isinstance(m, nn.Dropout) and m.p > 0 for m in net.modules())

    def field(self, y: Tensor | None = None) -> Any:
        """The averaged network (the first decay; raw where there is none) as a field or, of
        objective=classification, a classifier."""
        net = self.averages[0] if len(self.averages) else copy.deepcopy(self.net).eval()
        return self.objective.field(net, self.data.shape, self.data.classes, y)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        optimizer = build(self.settings["optim"], self.net.parameters())
        self.rate = self.settings["optim"]["lr"]
        if self.optimizer_state is not None:
            optimizer.load_state_dict(self.optimizer_state)
        return optimizer

    def learning_rate(self, k: int) -> float:
        """Linear warm-up, then constant or half a cosine down to 0 at max_steps."""
        warmup, last = self.options["warmup"], self.options["max_steps"]
        if k < warmup:
            return self.rate * (k + 1) / warmup
        if self.options["decay"] == "constant":
            return self.rate
        return self.rate / 2 * (1 + math.cos(math.pi * (k - warmup) / max(1, last - warmup)))

    def training_step(self, batch: tuple[int, int], batch_idx: int) -> None:
        for k in range(*batch):
            self.optimiser_step(k)
            self.step = k + 1

    def draw(self, k: int, rows: slice) -> tuple[Tensor, Tensor | None, Tensor, Tensor]:
        """x, y, eps and t of step k: these rows of the global batch, whoever asks."""
        size, where = self.data.batch_size, self.device
        x, y = self.data.batch(self.seed, k, rows, where)
        z = torch.randn(
            size,
            *self.data.shape,
            device=where,
            generator=generator(self.seed, "eps", k, device=where),
        )
        eps = self.source.batch(z, self.seed, k)
        if not self.coupling.independent:
            eps = self.paired(k, eps)
        u = self.time(size, generator(self.seed, "time", k, device=where))
        if y is not None and not self.classifies:  # per sample, for classifier-free guidance
            drop = torch.rand(size, generator=generator(self.seed, "label_dropout", k))[rows]
            null = torch.full_like(y, self.data.classes)
            y = torch.where((drop < self.options["label_dropout"]).to(where), null, y)
        return x, y, eps[rows], self.objective.time(u)[rows]

    def paired(self, k: int, eps: Tensor) -> Tensor:
        """eps of the global batch in the order the coupling gives it; found once per step."""
        if self.pairing[0] != k:
            x, y = self.data.batch(self.seed, k, device=self.device)
            index = self.coupling(x, eps, y, self.seed, k)
            costs = transport_cost(x, eps[index]), transport_cost(x, eps)
            self.pairing = k, index, torch.stack(costs).cpu()
        return eps[self.pairing[1]]

    def optimiser_step(self, k: int) -> None:
        optimizer: Any = self.optimizers()
        for group in optimizer.param_groups:
            group["lr"] = self.learning_rate(k)
        optimizer.zero_grad()
        if self.drops:
            torch.manual_seed(key(self.seed, "dropout", k, self.global_rank))
        share = self.data.batch_size // self.trainer.world_size
        size = share // self.options["accumulate"]
        first = self.global_rank * share
        total = torch.zeros((), device=self.device)
        for start in range(first, first + share, size):
            x, y, eps, t = self.draw(k, slice(start, start + size))
            loss = self.objective(self.net, x, y, eps, t).mean() * (size / share)
            self.manual_backward(loss)
            total += loss.detach()
        total = self.trainer.strategy.reduce(total, reduce_op="mean")  # all ranks judge alike
        norm = nn.utils.clip_grad_norm_(self.net.parameters(), self.options["clip"] or math.inf)
        if not torch.isfinite(norm + total):
            self.skip(k, total.item(), norm.item())
            return
        optimizer.step()
        self.averages.update(self.net, k + 1)
        done = torch.stack([total, norm, torch.ones_like(norm)]).cpu()
        self.sums += torch.cat([done, self.pairing[2]])

    def skip(self, k: int, loss: float, norm: float) -> None:
        """Leave the weights as they are after a non-finite step; too many: the run diverged."""
        self.skipped += 1
        what = f"step {k} (seed {self.seed}): loss {loss}, gradient norm {norm}"
        if self.skipped > self.options["skip_nonfinite"]:
            raise Diverged(
                f"{what} is not finite; earlier checkpoints are kept. "
                "Try a smaller optim.lr, trainer.clip or a larger objective.t_eps"
            )
        if self.trainer.is_global_zero:
            log.warning("%s is not finite, skipped", what)

    def content(self) -> dict[str, Any]:
        """The checkpoint: what sampling needs, and what going on needs."""
        data = self.data
        parts = ("model", "path", "objective", "source", "coupling")
        spec = {name: self.settings[name] for name in parts}
        spec["data"] = {
            "name": self.settings["choices"]["data"],
            "shape": list(data.shape),
            "classes": data.classes,
            "std": self.objective.data_std,
            "source": self.settings["data"],
        }
        optimizer: Any = self.optimizers(use_pl_optimizer=False)
        return {
            "step": self.step,
            "spec": spec,
            "weights": self.averages.named(self.net),
            "training": {
                "optimizer": optimizer.state_dict(),
                "sums": self.sums,
                "config": self.settings,
            },
        }

    def restore(self, content: dict[str, Any], optimizer: bool = True) -> None:
        """Take weights and averages (and with `optimizer` step and optimiser) from a checkpoint.

        Raises FmdiffError when the weights do not fit this network.
        """
        stored = content["weights"]
        try:
            self.net.load_state_dict(stored["raw"])
            for decay, average in zip(self.averages.decays, self.averages, strict=True):
                average.load_state_dict(stored.get(str(decay), stored["raw"]))
        except RuntimeError as error:
            raise FmdiffError(
                f"the checkpoint's weights do not fit model={self.settings['choices']['model']}: "
                + " ".join(str(error).split())[:300]
            ) from error
        if optimizer:
            self.step = content["step"]
            self.optimizer_state = content["training"]["optimizer"]
            sums = content["training"]["sums"]
            self.sums[: len(sums)] = sums


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


def train(cfg, folder: Path) -> None:
    """Train as cfg says in the run folder, from its newest good checkpoint if there is one."""
    settings: dict[str, Any] = OmegaConf.to_container(cfg)  # type: ignore[assignment]
    options = settings["trainer"]
    where = device.pick(settings["device"])
    if where.index is not None and options["devices"] > 1:
        raise FmdiffError(f"device={where} is one device: trainer.devices must be 1")
    if where.type == "cuda" and options["devices"] > torch.cuda.device_count():
        raise FmdiffError(
            f"trainer.devices={options['devices']}: this machine has {torch.cuda.device_count()}"
        )
    data = build(settings["data"])
    if data.batch_size % (options["devices"] * options["accumulate"]):
        raise FmdiffError(
            f"data.batch_size={data.batch_size} must be a multiple of trainer.devices x "
            f"trainer.accumulate = {options['devices'] * options['accumulate']}"
        )
    size = inner_steps(options, points=len(data.shape) == 1)
    data.prepare()
    torch.manual_seed(key(settings["seed"], "init"))
    net = build(settings["model"], shape=data.shape, classes=data.classes)
    if not isinstance(net, nn.Module):
        raise FmdiffError(f"model={settings['choices']['model']} cannot be trained")
    path, coupling = from_spec(settings["path"]), build(settings["coupling"])
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
    time = build(settings["time"], path=path)
    module = Training(settings, data, net, objective, time, coupling)
    leads = os.environ.get("LOCAL_RANK", "0") == "0"  # the other processes judge nothing
    if options["metrics"] and leads and not module.classifies:
        from fmdiff.judge import judge

        said = {name: settings.get(name) for name in ("features", "against")}
        said["metrics"] = options["metrics"]
        module.judge = judge(said, data, data.shape, data.classes, 0, where)
    if (
        options["best"]
        and leads
        and options["best"] not in (module.judge.columns if module.judge else ())
    ):
        known = ", ".join(module.judge.columns) if module.judge else "none: say trainer.metrics="
        raise FmdiffError(f"trainer.best={options['best']}: the metrics of this run are {known}")
    parameters = sum(p.numel() for p in net.parameters())
    if where.type == "cpu":
        rule = device.threads(parameters, data.batch_size, data.shape) // options["devices"]
        cfg.threads = settings["threads"] = settings["threads"] or max(1, rule)
        torch.set_num_threads(settings["threads"])

    found = checkpoint.newest_good(folder) if settings["resume"] else None
    if found:
        module.restore(found[1])
        log.info("resuming %s at step %d", found[0], module.step)
    elif settings["init"]:
        module.restore(checkpoint.read(checkpoint.find(settings["init"])), optimizer=False)
    if module.step >= options["max_steps"]:
        log.info("%s has its %d steps already; raise trainer.max_steps", folder, module.step)
        return

    quiet()
    stop = Stop(schema.seconds(options["max_time"]))
    saver = Checkpoints(folder, options["checkpoint_every"], options["keep"])
    trainer = pl.Trainer(
        accelerator="gpu" if where.type == "cuda" else "cpu",
        devices=[where.index] if where.index is not None else options["devices"],
        strategy="ddp" if options["devices"] > 1 else "auto",
        precision="bf16-mixed" if options["precision"] == "bf16" else "32-true",
        max_epochs=1,
        logger=logger(folder, options["logger"]),
        callbacks=[
            Judged(folder, options),
            Log(folder, options),
            Pictures(folder, options["picture_every"]),
            saver,
            stop,
        ],
        default_root_dir=folder,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        log_every_n_steps=1,
        use_distributed_sampler=False,
    )
    if trainer.is_global_zero:
        write_config(folder, cfg)
        shown = ", ".join(
            f"{group} {settings['choices'][group]}"
            for group in ("data", "path", "model", "objective")
        )
        log.info("%s; %s parameters; writing to %s", shown, f"{parameters:,}", folder)
    trainer.fit(module, Chunks(module.step, options["max_steps"], size))
    stop.conclude(module.step, folder)
    if trainer.is_global_zero:
        log.info("%d steps done; next: fmdiff sample ckpt=%s", module.step, folder)


def logger(folder: Path, name: str):
    """The experiment logger of `trainer.logger=`; metrics.csv is written in any case."""
    if name == "csv":
        return False
    if name == "wandb":
        from lightning.pytorch.loggers import WandbLogger

        return WandbLogger(save_dir=folder, project="fmdiff")
    from lightning.pytorch.loggers import TensorBoardLogger

    return TensorBoardLogger(save_dir=folder, name="tensorboard", version="")


def quiet() -> None:
    """Keep Lightning's tips and its doubled lines out of the user's sight; warnings stay."""
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
