"""The optimiser step, as a LightningModule."""

import copy
import logging
import math
from contextlib import nullcontext
from functools import partial
from typing import Any

import torch
from lightning import pytorch as pl
from omegaconf import OmegaConf
from torch import Tensor, nn

from fmdiff.build import build
from fmdiff.coupling import transport_cost
from fmdiff.data.base import joined
from fmdiff.ema import Averages
from fmdiff.errors import Diverged, FmdiffError
from fmdiff.machine import precision
from fmdiff.machine.ahead import Ahead
from fmdiff.machine.clock import Clock
from fmdiff.randomness import generator, key
from fmdiff.runs.config import differences, listed
from fmdiff.runs.content import Checkpoint

log = logging.getLogger("fmdiff")
FITTING = ("data.shape", "data.classes")  # beside the model's keys: what its weights depend on


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
        # an objective may part what needs the network from what does not, or be asked as a whole
        self.terms = getattr(objective, "terms", lambda *batch: batch)
        self.compare = getattr(objective, "judge", objective)
        self.classifies = getattr(objective, "logits", False)  # what it trains gives no samples
        ema, warmup, powers = (self.options[k] for k in ("ema", "ema_warmup", "power_ema"))
        self.averages = Averages(net, ema, warmup, powers)
        self.seed, self.step, self.skipped = settings["seed"], 0, 0
        self.optimizer_state: dict | None = None
        self.scaler_state: dict | None = None
        # the coupling is no function of the weights: it is found in threads beside the steps
        # before; where it takes milliseconds, for as many steps at once as are drawn at once
        points = len(data.shape) == 1
        self.block = 25 if points and data.batch_size <= 512 else 1
        self.ahead = Ahead(self.match, depth=(50 if points else 4) // self.block)
        self.pairing: tuple[int, Any] = (-1, None)  # of a block
        self.costed = -1  # the last step whose transport cost was counted
        # since the last report: loss, gradient norm, steps, transport cost, that of no coupling
        self.sums = [0.0] * 5
        # a loss above which a step counts as a spike, and the steps (k, loss) that were: see Log
        self.spike_above, self.spikes = math.inf, list[tuple[int, float]]()
        self.judge: Any = None  # of trainer.metrics=
        self.measured: dict[str, float] = {}  # its figures, until they are written down
        self.drops = any(isinstance(m, nn.Dropout) and m.p > 0 for m in net.modules())
        if self.options["recompute"]:
            precision.recompute(net)

    def field(self, y: Tensor | None = None) -> Any:
        """The averaged network (the first decay; raw where there is none) as a field or, of
        objective=classification, a classifier."""
        net = self.averages[0] if len(self.averages) else copy.deepcopy(self.net).eval()
        return self.objective.field(net, self.data.shape, self.data.classes, y)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """On the device by now: how it computes is settled here too."""
        options, where = self.options, self.device
        self.weights = list(self.net.parameters())  # found once: it takes as long as their update
        self.optimizer = build(self.settings["optim"], self.weights)
        # torch's fused optimisers can divide the gradients by a number
        self.divides = getattr(self.optimizer, "_step_supports_amp_scaling", False)
        self.rate = self.settings["optim"]["lr"]
        if self.optimizer_state is not None:
            self.optimizer.load_state_dict(self.optimizer_state)
        self.dtype_of_products = precision.precise(options["precision"], where)
        self.scaler = torch.amp.GradScaler(
            where.type, enabled=self.dtype_of_products == torch.float16
        )
        if self.scaler_state:
            self.scaler.load_state_dict(self.scaler_state)
        if precision.by_pixel(options["channels_last"], self.net, where):
            self.net.to(memory_format=torch.channels_last)
        self.mean_loss = self.eager_loss
        if precision.compiles(options["compile"], where):
            self.mean_loss = torch.compile(self.eager_loss)
        self.clock = Clock(where, options["log_every"])
        return self.optimizer

    def learning_rate(self, k: int) -> float:
        """Linear warm-up, then constant or half a cosine down to 0 at max_steps."""
        warmup, last = self.options["warmup"], self.options["max_steps"]
        if k < warmup:
            return self.rate * (k + 1) / warmup
        if self.options["decay"] == "constant":
            return self.rate
        return self.rate / 2 * (1 + math.cos(math.pi * (k - warmup) / max(1, last - warmup)))

    def training_step(self, batch: tuple[int, int], batch_idx: int) -> None:
        steps = range(*batch)
        self.clock.start(steps)
        for k, parts in zip(steps, self.prepared(steps), strict=True):
            self.optimiser_step(k, parts)
            self.step = k + 1
        loop = self.trainer.fit_loop.epoch_loop.manual_optimization
        loop.optim_step_progress.total.completed = self.step  # Lightning's global_step

    def sources(self, k: int) -> Tensor:
        """eps of the global batch of step k, as drawn."""
        size, where = (self.data.batch_size, *self.data.shape), self.device
        draws = generator(self.seed, "eps", k, device=where)
        return self.source.batch(torch.randn(size, device=where, generator=draws), self.seed, k)

    def draw(
        self, steps: range, rows: slice
    ) -> tuple[Tensor, Tensor | None, Tensor, Tensor, Tensor | None]:
        """x, y, eps, t and the augmentation's labels of these rows of the global batch of each
        step, one step after another."""
        size, where = self.data.batch_size, self.device
        x, y, a = self.data.batches(self.seed, steps, rows, where)
        eps = [self.sources(k) for k in steps]
        if not self.coupling.independent:
            eps = [self.paired(k, drawn) for k, drawn in zip(steps, eps, strict=True)]
        u = [self.time(size, generator(self.seed, "time", k, device=where))[rows] for k in steps]
        if y is not None and not self.classifies:  # per sample, for classifier-free guidance
            drawn = [
                torch.rand(size, generator=generator(self.seed, "label_dropout", k)) for k in steps
            ]
            drop = joined([d[rows] for d in drawn]) < self.options["label_dropout"]
            y = torch.where(drop.to(where), torch.full_like(y, self.data.classes), y)
        return x, y, joined([e[rows] for e in eps]), self.objective.time(joined(u)), a

    def paired(self, k: int, eps: Tensor) -> Tensor:
        """eps of the global batch in the order the coupling gives it; counts its cost once."""
        block, i = divmod(k, self.block)
        if self.pairing[0] != block:
            self.pairing = block, self.ahead(block)
        index, costs = self.pairing[1]
        if k != self.costed:
            self.costed = k
            for place, cost in enumerate(costs[i], start=3):
                self.sums[place] += cost
        return eps[index[i]]

    def match(self, block: int) -> tuple[list[Tensor], list[list[float]]]:
        """The coupling of each step of a block, and the transport cost with and without it."""
        steps = range(block * self.block, (block + 1) * self.block)
        x, y, _ = self.data.batches(self.seed, steps, device=self.device)
        xs = x.split(self.data.batch_size)
        ys = [None] * len(xs) if y is None else y.split(self.data.batch_size)
        index, costs = [], []
        for k, x, y in zip(steps, xs, ys, strict=True):
            eps = self.sources(k)
            index.append(self.coupling(x, eps, y, self.seed, k))
            costs += [transport_cost(x, eps[index[-1]]), transport_cost(x, eps)]
        return index, torch.stack(costs).view(-1, 2).tolist()

    def prepared(self, steps: range) -> list[list[tuple]]:
        """What these steps ask the network and compare it with, by step and micro-batch.

        All is drawn before: none of it depends on the weights.
        """
        share = self.data.batch_size // self.trainer.world_size
        rows = slice(self.global_rank * share, (self.global_rank + 1) * share)
        *batch, a = self.draw(steps, rows)
        size, accumulate = share // self.options["accumulate"], self.options["accumulate"]
        count = accumulate * len(steps)
        cut = [
            [None] * count if term is None else term.split(size)
            for term in (*self.terms(*batch), a)
        ]
        parts = list(zip(*cut, strict=True))
        self.clock.lap("data")
        return [parts[i : i + accumulate] for i in range(0, count, accumulate)]

    def eager_loss(self, *terms: Tensor | None) -> Tensor:
        *terms, a = terms  # type: ignore[assignment]
        net = self.net if a is None else partial(self.net, augment=a)
        with precision.cast(self.device, self.dtype_of_products):
            loss = self.compare(net, *terms).mean()
        parts = self.options["accumulate"]
        return loss if parts == 1 else loss / parts

    def optimiser_step(self, k: int, parts: list[tuple]) -> None:
        for group in self.optimizer.param_groups:
            group["lr"] = self.learning_rate(k)
        for weight in self.weights:  # zero_grad() without its record for the profiler
            weight.grad = None
        if self.drops:
            torch.manual_seed(key(self.seed, "dropout", k, self.global_rank))
        losses = []
        for part in parts:
            # the gradients of several devices are averaged once, with the last micro-batch
            with nullcontext() if part is parts[-1] else self.unsynchronised():
                loss = self.mean_loss(*part)
                self.clock.lap("forward")
                scaled = self.scaler.scale(loss)
                self.trainer.strategy.pre_backward(scaled)
                scaled.backward()
                self.clock.lap("backward")
            losses.append(loss.detach())
        # all ranks judge alike
        total = self.trainer.strategy.reduce(torch.stack(losses).sum(), reduce_op="mean")
        self.scaler.unscale_(self.optimizer)
        clip = self.options["clip"]
        norms = torch._foreach_norm([w.grad for w in self.weights if w.grad is not None])
        norm = torch.linalg.vector_norm(torch.stack(norms))
        seen = torch.stack([total, norm]).tolist()
        if not all(map(math.isfinite, seen)):
            self.skip(k, *seen)
            return
        if seen[0] > self.spike_above:
            self.spikes.append((k, seen[0]))
        long = clip and seen[1] > clip
        if self.divides:  # on the way, without a pass over all gradients before
            self.optimizer.grad_scale = norm / clip if long else None
        elif long:
            nn.utils.clip_grads_with_norm_(self.weights, clip, norm)
        self.optimizer.step()
        self.scaler.update()
        self.clock.lap("optimiser")
        self.averages.update(self.weights, k + 1)
        for i, value in enumerate((*seen, 1.0)):
            self.sums[i] += value
        self.clock.lap("ema")

    def unsynchronised(self) -> Any:
        blocked = getattr(self.trainer.strategy, "block_backward_sync", nullcontext)
        return blocked()

    def skip(self, k: int, loss: float, norm: float) -> None:
        """Leave the weights as they are after a non-finite step; too many: the run diverged.

        With fp16 the gradients overflow now and then until their scale fits: that is no sign.
        """
        scale = self.scaler.get_scale()
        self.scaler.update()
        if self.scaler.is_enabled() and scale > 1:
            return
        self.skipped += 1
        what = f"step {k} (seed {self.seed}): loss {loss}, gradient norm {norm}"
        if self.skipped > self.options["skip_nonfinite"]:
            raise Diverged(
                f"{what} is not finite; earlier checkpoints are kept. "
                "Try a smaller optim.lr, trainer.clip or a larger objective.t_eps"
            )
        if self.trainer.is_global_zero:
            log.warning("%s is not finite, skipped", what)

    def spec(self) -> dict[str, Any]:
        """What the weights are of."""
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
        return spec

    def content(self) -> dict[str, Any]:
        """The checkpoint: what sampling needs, and what going on needs."""
        training = {
            "optimizer": self.optimizer.state_dict(),
            "scaler": self.scaler.state_dict(),
            "sums": torch.tensor(self.sums, dtype=torch.float64),
            "config": self.settings,
        }
        weights = self.averages.named(self.net)
        return Checkpoint(self.step, self.spec(), weights, training).content()

    def restore(self, content: dict[str, Any], optimizer: bool = True) -> None:
        """Take weights and averages (and with `optimizer` step and optimiser) from a checkpoint.

        Raises FmdiffError when the weights do not fit this network.
        """
        Checkpoint.of(content)
        stored = content["weights"]
        raw = stored.get("raw") or next(iter(stored.values()))  # an exported file has one
        try:
            self.net.load_state_dict(raw)
            for name, average in zip(self.averages.names, self.averages, strict=True):
                average.load_state_dict(stored.get(name, raw))
        except RuntimeError as error:
            saved, now = (OmegaConf.create(spec) for spec in (content["spec"], self.spec()))
            changes = differences(saved, now)
            model = ["model._target_"]
            if model[0] not in changes:
                model = [key for key in changes if key.startswith("model.")]
            why = {key: changes[key] for key in (*model, *FITTING) if key in changes}
            raise FmdiffError(
                f"the checkpoint's weights do not fit model={self.settings['choices']['model']}: "
                + (listed(why) or " ".join(str(error).split())[:300])
            ) from error
        if optimizer:
            self.step = content["step"]
            self.optimizer_state = content["training"]["optimizer"]
            self.scaler_state = content["training"].get("scaler")
            sums = content["training"]["sums"]
            self.sums[: len(sums)] = sums.tolist()
