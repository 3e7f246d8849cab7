"""Exponential moving averages of a network's weights."""

import copy

import torch
from torch import nn


class Averages(nn.ModuleList):
    """One averaged copy of `net` per decay, always whole: nothing is ever swapped.

    After step k = 1, 2, ...: theta_ema <- d theta_ema + (1 - d) theta, with d = decay or, during
    warm-up, min(decay, (1 + k) / (10 + k)), so that a short run is averaged over its last tenth.
    """

    def __init__(self, net: nn.Module, decays: list[float], warmup: bool) -> None:
        super().__init__(copy.deepcopy(net).eval().requires_grad_(False) for _ in decays)
        self.decays, self.warmup = decays, warmup

    @torch.no_grad()
    def update(self, net: nn.Module, k: int) -> None:
        """Take the weights of net after its k-th step (k >= 1) into every average."""
        now: list[torch.Tensor] = list(net.parameters())
        for decay, average in zip(self.decays, self, strict=True):
            d = min(decay, (1 + k) / (10 + k)) if self.warmup else decay
            kept: list[torch.Tensor] = list(average.parameters())
            torch._foreach_lerp_(kept, now, 1 - d)

    def named(self, net: nn.Module) -> dict[str, dict[str, torch.Tensor]]:
        """The state dicts of a checkpoint, the raw network's and each average's."""
        states = {str(d): a for d, a in zip(self.decays, self, strict=True)}
        return {name: dict(m.state_dict()) for name, m in [("raw", net), *states.items()]}
