"""Exponential moving averages of a network's weights."""

import copy
import math
from collections.abc import Iterable
from itertools import filterfalse

import numpy as np
import torch
from torch import nn

from fmdiff.errors import FmdiffError

SCHEDULE_FREE = "schedule_free"  # the average of optim=schedule_free, in checkpoints and weights=
POWER = "power:"  # precedes the width in the name of a power average
STATISTICS = ("running_mean", "running_var")  # what torch's normalisation layers keep of batches
NARROWEST, WIDEST = 1e-6, 12**-0.5  # relative widths; the widest has gamma = 0, a plain mean


def gamma(width: float) -> float:
    """The exponent of the power profile whose standard deviation is `width` of the steps so far.

    It is the largest root of width = sqrt(gamma + 1) / ((gamma + 2) sqrt(gamma + 3)).
    Raises FmdiffError for a width not in (0, 1/sqrt(12)). Karras et al. 2024 (arXiv:2312.02696),
    algorithm 2; width is their sigma_rel.
    """
    if not NARROWEST <= width < WIDEST:
        raise FmdiffError(
            f"{POWER}{width}: the width must be a number above 0 and below 1/sqrt(12) = 0.2887"
        )
    square = width**-2
    roots = np.roots([1, 7, 16 - square, 12 - square])
    return max(0.0, float(roots.real.max()))


def power(width: float) -> str:
    """The name of the power average of a width, in weights= and in checkpoints."""
    return f"{POWER}{float(width)}"


Place = tuple[nn.Module, str]  # a layer, and the name of one of its buffers


def buffers(net: nn.Module) -> list[Place]:
    """The places of all buffers that a checkpoint of the network stores.

    A layer may put another tensor there at any step, so the tensors are looked up anew.
    """
    stored = net.state_dict(keep_vars=True)
    return [
        (layer, name)
        for prefix, layer in net.named_modules()
        for name, _ in layer.named_buffers(recurse=False)
        if f"{prefix}.{name}".removeprefix(".") in stored
    ]


def tensors(places: list[Place]) -> list[torch.Tensor]:
    """The tensors at these places, as they are now."""
    return [layer._buffers[name] for layer, name in places]  # type: ignore[misc]


def averaged(place: Place) -> bool:
    """Whether the buffer is averaged like a weight: the statistics of a normalisation layer."""
    return place[1] in STATISTICS and tensors([place])[0].is_floating_point()


class Averages(nn.ModuleList):
    """One full averaged copy of `net` per decay and per relative width.

    After step k = 1, 2, ...: theta_ema <- d theta_ema + (1 - d) theta. For a decay, d = decay or,
    during warm-up, min(decay, (1 + k) / (10 + k)), so that a short run is averaged over its last
    tenth. For a width, d = (1 - 1/k)^(gamma + 1): the weight of step j at step t is the integral
    over [j - 1, j] of p(tau) = (gamma + 1) tau^gamma / t^(gamma + 1), whose mean and standard
    deviation grow with t (Karras et al. 2024, section 3.1). At k = 1, d = 0 forgets the start.

    With every = n > 1 the averages are updated in each of the first n steps and then in every nth,
    by the product D of the n factors d, so n steps weigh exactly what they would one by one, in
    warm-up too. Between updates they are those of the last one. Weights theta_j that an update at
    step k leaves out count as theta_k, so an average is off by at most the largest
    |theta_k - theta_j|, k - n < j < k. If the weights move by v a step and d is constant, it is
    ahead by (d / (1 - d) - n D / (1 - D)) v, which is below (n - 1) / 2 v: 4.5 steps for n = 10,
    of the 10,000 that d = 0.9999 looks back.

    Buffers: the STATISTICS of normalisation layers are averaged like weights, as they belong to
    the activations of the weights that are averaged. All others are copied from the network: a
    count cannot be averaged, and neither can a unit vector as spectral norm keeps it.
    """

    def __init__(
        self,
        net: nn.Module,
        decays: list[float],
        warmup: bool,
        widths: list[float] | None = None,
        every: int = 1,
    ) -> None:
        widths = list(widths or ())
        count = len(decays) + len(widths)
        super().__init__(copy.deepcopy(net).eval().requires_grad_(False) for _ in range(count))
        self.decays, self.warmup, self.widths, self.every = decays, warmup, widths, every
        self.gammas = [gamma(width) for width in widths]
        self.names = [*map(str, decays), *map(power, widths)]
        # looking the parameters up takes longer than averaging those of a small network
        self.lists: list[list[torch.Tensor]] = [list(average.parameters()) for average in self]
        # the places of the network's buffers and of each average's
        models = (net, *self)
        self.statistics = [list(filter(averaged, buffers(model))) for model in models]
        self.copies = [list(filterfalse(averaged, buffers(model))) for model in models]

    def steps(self, k: int) -> range:
        """The steps that an update at step k stands for; none if no update is due."""
        if k <= self.every:
            return range(k, k + 1)
        return range(k - self.every + 1, k + 1) if k % self.every == 0 else range(0)

    def shares(self, k: int) -> list[float]:
        """d of every average at step k, the share of its old value."""
        most = (1 + k) / (10 + k) if self.warmup else 1.0
        return [min(d, most) for d in self.decays] + [(1 - 1 / k) ** (g + 1) for g in self.gammas]

    @torch.no_grad()
    def update(self, weights: Iterable[torch.Tensor], k: int) -> None:
        """Take the network after its k-th step (k >= 1) into every average, if that is due.

        weights: its parameters. Its buffers are looked up.
        """
        if not (steps := self.steps(k)):
            return
        now, shares = (
            list(weights),
            [math.prod(d) for d in zip(*map(self.shares, steps), strict=True)],
        )
        for d, average in zip(shares, self.lists, strict=True):
            torch._foreach_lerp_(average, now, 1 - d)
        if self.statistics[0]:
            now, *means = map(tensors, self.statistics)
            for d, average in zip(shares, means, strict=True):
                torch._foreach_lerp_(average, now, 1 - d)
        if self.copies[0]:
            now, *copies = map(tensors, self.copies)
            for average in copies:
                torch._foreach_copy_(average, now)

    def named(self, net: nn.Module) -> dict[str, dict[str, torch.Tensor]]:
        """The state dicts of a checkpoint: of the raw network and of each average, by name."""
        return {"raw": dict(net.state_dict())} | self.states()

    def states(self, powers: bool = False) -> dict[str, dict[str, torch.Tensor]]:
        """The state dicts of all averages, or of the power averages alone, by name."""
        return {
            name: dict(average.state_dict())
            for name, average in zip(self.names, self, strict=True)
            if name.startswith(POWER) or not powers
        }
