"""Sums over the optimiser steps since the last report."""

import math
from dataclasses import astuple, dataclass

import torch
from torch import Tensor


@dataclass
class Tally:
    """Sums over the optimiser steps since the last report; skipped steps do not count."""

    loss: float = 0.0
    norm: float = 0.0  # of the gradient, before it is clipped
    steps: int = 0
    transport: float = 0.0  # mean |x - eps|^2 of the pairs of the coupling
    independent: float = 0.0  # mean |x - eps|^2 without the coupling
    mse: float = 0.0  # mean squared error of the prediction; NaN if the objective has none

    def add(self, loss: float, norm: float, mse: float = math.nan) -> None:
        """Count one step."""
        self.loss += loss
        self.mse += mse
        self.norm += norm
        self.steps += 1

    def add_costs(self, transport: float, independent: float) -> None:
        """Count the transport costs of one step."""
        self.transport += transport
        self.independent += independent

    def mean(self, total: float) -> float:
        """One of the sums per step; NaN if every step was skipped."""
        return total / (self.steps or math.nan)

    def clear(self) -> None:
        """Reset all sums to zero."""
        self.load(torch.zeros(6, dtype=torch.float64))

    def tensor(self) -> Tensor:
        """The six sums as a checkpoint stores them, (6,) float64."""
        return torch.tensor(astuple(self), dtype=torch.float64)

    def load(self, sums: Tensor) -> None:
        """Load the sums of a checkpoint. Older ones hold the first three or five alone."""
        loss, norm, steps, *rest = sums.tolist()
        self.loss, self.norm, self.steps = loss, norm, round(steps)
        later = [0.0, 0.0, math.nan]
        self.transport, self.independent, self.mse = rest + later[len(rest) :]
