"""The optimiser step, as a LightningModule."""

import copy
import logging
import math
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from typing import Any

import torch
from lightning import pytorch as pl
from lightning.pytorch.strategies import ParallelStrategy
from torch import Tensor, nn

from fmdiff.build import kind
from fmdiff.ema import SCHEDULE_FREE, Averages, buffers, tensors
from fmdiff.errors import Diverged
from fmdiff.loading import Teacher
from fmdiff.machine import cost, precision
from fmdiff.machine.clock import Clock
from fmdiff.objectives.objective import Objective
from fmdiff.optim import ScheduleFree, built
from fmdiff.randomness import key
from fmdiff.training.batches import Batches, Terms
from fmdiff.training.options import TrainerOptions

log = logging.getLogger("fmdiff")

BATCH_NORMS = nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d
# said of networks whose update is not that of a whole batch on one device
DROPOUT = (
    "dropout draws its masks anew for each of trainer.accumulate=%d parts and %d devices (%d "
    "samples): other numbers of them give other masks of the same law, not the same update"
)
NORMED = (
    "batch normalisation sees one of trainer.accumulate=%d parts on one of %d devices at a time "
    "(%d samples): other numbers of them give another update"
)


class Training(pl.LightningModule):
    """Optimiser step k is a function of (weights, optimiser state, seed, k) and nothing else.

    settings: the resolved config. options: its part `trainer`.
    """

    def __init__(
        self,
        settings: dict[str, Any],
        options: TrainerOptions,
        net: nn.Module,
        objective: Objective,
        batches: Batches,
    ) -> None:
        super().__init__()
        self.automatic_optimization = False
        self.settings, self.options = settings, options
        self.net, self.objective, self.batches = net, objective, batches
        self.data, self.tally = batches.data, batches.tally
        # neither a classifier nor an autoencoder gives samples
        self.classifies, self.autoencodes = objective.logits, objective.autoencodes
        self.teacher: Teacher | None = None  # of a flow map
        kinds = options.ema, options.ema_warmup, options.power_ema
        self.averages = Averages(net, *kinds, options.ema_every)
        # without averages, or with that of the optimiser: what `field` copies weights to; some
        # networks cannot be deep-copied once they have been called
        self.schedule_free = issubclass(kind(settings["optim"]["_target_"]), ScheduleFree)
        self.own_average: Callable[[], list[Tensor]] | None = None
        alone = len(self.averages) and not self.schedule_free
        self.twin = None if alone else copy.deepcopy(net).eval().requires_grad_(False)
        self.seed, self.step, self.skips = settings["seed"], 0, 0
        # states of a resumed run, until the optimiser and the scaler exist
        self.optimizer_state: dict | None = None
        self.scaler_state: dict | None = None
        # the loss above which a step is a spike, and the spikes (k, loss) so far: see Log
        self.spike_above, self.spikes = math.inf, list[tuple[int, float]]()
        self.drops = any(isinstance(m, nn.Dropout) and m.p > 0 for m in net.modules())
        if options.recompute:
            precision.recompute(net)

    @property
    def samples(self) -> bool:
        """Whether the network is a field, which can be sampled."""
        return self.objective.samples

    def average(self) -> nn.Module:
        """The averaged network: the first of several averages, or a copy of the network itself."""
        if self.twin is None:
            return self.averages[0]
        self.twin.load_state_dict(self.net.state_dict())
        if self.own_average is not None:
            for weight, value in zip(self.twin.parameters(), self.own_average(), strict=True):
                weight.copy_(value)
        return self.twin

    @property
    def copies(self) -> int:
        """How many networks are kept beside the one that is trained."""
        return len(self.averages) + (self.twin is not None)

    def states(self) -> dict[str, dict[str, Tensor]]:
        """The state dicts of a checkpoint by name: raw, then all averages.

        The first is the optimiser's own, if it has one.
        """
        raw, *others = self.averages.named(self.net).items()
        own = {SCHEDULE_FREE: dict(self.average().state_dict())} if self.schedule_free else {}
        return dict([raw]) | own | dict(others)

    def field(self) -> Any:
        """The averaged network as a field; as a classifier or a codec if the objective says so."""
        return self.objective.field(self.average(), self.data.shape, self.data.classes)

    def operations(self) -> int:
        """The additions and multiplications of a training step for one sample.

        A pass with gradient takes three times those of a forward pass.
        """
        data, taught = self.data, 0
        without, differentiated, by_teacher = self.objective.evaluations
        of_sample = data.shape, data.classes, data.conditions
        own = cost.operations(self.net, *of_sample)
        if self.teacher is not None and self.teacher.field.net is not None:
            taught = cost.operations(self.teacher.field.net, *of_sample)
        return round((without + 3 * differentiated) * own + by_teacher * taught)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """Make the optimiser, and set up how to compute, as the module is on its device by now."""
        options, device = self.options, self.device
        self.batches.device = device
        # looking up the parameters takes as long as their update
        self.weights = list(self.net.parameters())
        self.optimizer = built(self.settings["optim"], self.net)
        if isinstance(self.optimizer, ScheduleFree):
            self.own_average = self.optimizer.average
        # torch's fused optimisers can divide the gradients by a number
        self.divides = bool(self.optimizer.defaults.get("fused"))
        self.rate = self.settings["optim"]["lr"]
        if self.optimizer_state is not None:
            self.optimizer.load_state_dict(self.optimizer_state)
        self.dtype_of_products = precision.precise(options.precision, device)
        self.scaler = torch.amp.GradScaler(
            device.type, enabled=self.dtype_of_products == torch.float16
        )
        if self.scaler_state:
            self.scaler.load_state_dict(self.scaler_state)
        # what a forward pass may change in a step that is then skipped
        skips = options.skip_nonfinite or self.scaler.is_enabled()
        self.buffers_to_restore = buffers(self.net) if skips else []
        if precision.by_pixel(options.channels_last, self.net, device):
            self.net.to(memory_format=torch.channels_last)
        self.mean_loss: Callable[..., Tensor] = self.eager_loss
        # in a tuple, so that a compiled network is no second part of this module
        self.asked: tuple[nn.Module] = (self.net,)
        if precision.compiles(options.compile, device):
            if self.objective.two_times:  # asks several times a step, of other rows each time
                self.asked = (torch.compile(self.net, dynamic=True),)  # type: ignore[assignment]
            else:
                self.mean_loss = torch.compile(self.eager_loss)
        self.clock = Clock(device, options.log_every)
        return self.optimizer

    def on_train_start(self) -> None:
        """Find out which rows of every batch are this device's, and say what depends on parts."""
        self.strategy = self.trainer.strategy
        share = self.data.batch_size // self.trainer.world_size
        self.rows = slice(self.global_rank * share, (self.global_rank + 1) * share)
        accumulate, devices = self.options.accumulate, self.trainer.world_size
        if accumulate * devices > 1 and self.trainer.is_global_zero:
            normed = any(isinstance(m, BATCH_NORMS) for m in self.net.modules())
            for what, which in ((DROPOUT, self.drops), (NORMED, normed)):
                if which:
                    log.info(what, accumulate, devices, share // accumulate)

    def learning_rate(self, k: int) -> float:
        """The rate of step k: linear warm-up, then constant or half a cosine to 0 at max_steps."""
        warmup, last = self.options.warmup, self.options.max_steps
        if k < warmup:
            return self.rate * (k + 1) / warmup
        if self.options.decay == "constant":
            return self.rate
        return self.rate / 2 * (1 + math.cos(math.pi * (k - warmup) / max(1, last - warmup)))

    def training_step(self, batch: tuple[int, int], batch_idx: int) -> None:
        """Do the optimiser steps batch[0] ... batch[1] - 1. All their inputs are drawn first."""
        steps = range(*batch)
        self.clock.start(steps)
        batches = self.batches(steps, self.rows)
        self.clock.lap("data")
        for k, parts in zip(steps, batches, strict=True):
            self.optimiser_step(k, parts)
            self.step = k + 1
        loop = self.trainer.fit_loop.epoch_loop.manual_optimization
        loop.optim_step_progress.total.completed = self.step  # Lightning's global_step

    def optimiser_step(self, k: int, parts: list[Terms]) -> None:
        """Update the weights theta and their averages, given the gradient g of the mean loss:

            g     <- g min(1, clip / |g|)
            theta <- theta - rate(k) direction(g)             direction: the optimiser's
            mean  <- d(k) mean + (1 - d(k)) theta             for each average

        A step whose loss or |g| is not finite changes nothing.
        """
        for group in self.optimizer.param_groups:
            group["lr"] = self.learning_rate(k)
        if self.drops:
            torch.manual_seed(key(self.seed, "dropout", k, self.global_rank))
        before = [buffer.clone() for buffer in tensors(self.buffers_to_restore)]
        means, length = self.gradient(parts)
        loss, mse, norm = torch.cat([means, length[None]]).tolist()
        if not (math.isfinite(loss) and math.isfinite(norm)):
            for now, then in zip(tensors(self.buffers_to_restore), before, strict=True):
                now.copy_(then)
            self.skip(k, loss, norm)
            return
        if loss > self.spike_above:
            self.spikes.append((k, loss))
        clip = self.options.clip or math.inf
        too_long = norm > clip
        if self.divides:  # the optimiser scales them, which saves a pass
            scale = length / clip if too_long else None
            self.optimizer.grad_scale = scale  # type: ignore[attr-defined]
        elif too_long:
            nn.utils.clip_grads_with_norm_(self.weights, clip, length)
        self.optimizer.step()
        self.scaler.update()
        self.clock.lap("optimiser")
        self.averages.update(self.weights, k + 1)
        self.tally.add(loss, norm, mse)
        self.clock.lap("ema")

    def gradient(self, parts: list[Terms]) -> tuple[Tensor, Tensor]:
        """Compute the gradient of the mean loss into the weights.

        Returns loss and mean squared error (2,), and the norm of the gradient (). All are of the
        global batch, so that all devices decide alike.
        """
        for weight in self.weights:  # zero_grad() without its record for the profiler
            weight.grad = None
        losses = []
        for part in parts:
            # the gradients of several devices are averaged once, with the last micro-batch
            with nullcontext() if part is parts[-1] else self.unsynchronised():
                loss = self.mean_loss(*part)
                self.clock.lap("forward")
                scaled = self.scaler.scale(loss[0])
                self.strategy.pre_backward(scaled)
                scaled.backward()
                self.clock.lap("backward")
            losses.append(loss.detach())
        total = self.strategy.reduce(torch.stack(losses).sum(0), reduce_op="mean")
        self.scaler.unscale_(self.optimizer)
        norms = torch._foreach_norm([w.grad for w in self.weights if w.grad is not None])
        return total, torch.linalg.vector_norm(torch.stack(norms))

    def eager_loss(self, *terms: Tensor | None) -> Tensor:
        """The mean loss and squared error (2,) of a micro-batch, divided by their number."""
        *terms, augmentation = terms  # type: ignore[assignment]
        (net,) = self.asked
        call: Any = net if augmentation is None else partial(net, augment=augmentation)
        with precision.cast(self.device, self.dtype_of_products):
            losses, squares = self.objective.assess(call, *terms)
        loss = torch.stack([losses.mean(), squares.mean()])
        parts = self.options.accumulate
        return loss if parts == 1 else loss / parts

    def unsynchronised(self) -> AbstractContextManager[Any]:
        """A context in which devices do not exchange gradients."""
        if isinstance(self.strategy, ParallelStrategy):
            return self.strategy.block_backward_sync()
        return nullcontext()

    def skip(self, k: int, loss: float, norm: float) -> None:
        """Leave the weights as they are after a step that is not finite.

        With fp16 the gradients overflow now and then until their scale fits, and such steps do not
        count. Raises Diverged after more than `skip_nonfinite` other steps.
        """
        scale = self.scaler.get_scale()
        self.scaler.update()
        if self.scaler.is_enabled() and scale > 1:
            return
        self.skips += 1
        event = f"step {k} (seed {self.seed}): loss {loss}, gradient norm {norm}"
        if self.skips > self.options.skip_nonfinite:
            raise Diverged(
                f"{event} is not finite; earlier checkpoints are kept. "
                "Try a smaller optim.lr, trainer.clip or a larger objective.t_eps"
            )
        if self.trainer.is_global_zero:
            log.warning("%s is not finite, skipped", event)
