"""The keys of trainer=, which comments in configs/trainer/default.yaml explain."""

import math
from dataclasses import dataclass

from fmdiff.errors import FmdiffError

# events that happen every NAME_every steps
INTERVALS = ("log", "validate", "picture", "metrics", "checkpoint")


@dataclass(frozen=True)
class TrainerOptions:
    """The settings of group trainer. Their values are checked when the config is composed."""

    max_steps: int
    max_time: str | float | None
    warmup: int
    decay: str
    clip: float | None
    accumulate: int
    ema: list[float]
    ema_warmup: bool
    power_ema: list[float]
    ema_every: int
    snapshot_every: int | None
    label_dropout: float
    condition_dropout: float
    precision: str
    compile: bool | None
    channels_last: bool | None
    recompute: bool
    devices: int
    inner_steps: int | None
    log_every: int
    validate_every: int
    picture_every: int
    metrics: list[str] | None
    metrics_every: int
    metrics_n: int
    best: str | None
    checkpoint_every: int
    keep: int | None
    logger: str
    skip_nonfinite: int
    spike: float | None
    progress: bool

    def every(self, name: str) -> int:
        """The number of steps between two events of a name in INTERVALS."""
        return vars(self)[f"{name}_every"]

    def steps_per_batch(self, points: bool) -> int:
        """Optimiser steps per Lightning batch, a divisor of all intervals so that none is missed.

        points: whether the data are points, not images. Raises FmdiffError if inner_steps does not
        divide the intervals.
        """
        intervals = [self.every(name) for name in INTERVALS]
        if self.inner_steps is None:
            return math.gcd(25 if points else 1, *intervals)
        if any(interval % self.inner_steps for interval in intervals):
            raise FmdiffError(
                f"trainer.inner_steps={self.inner_steps} must divide log_every, validate_every, "
                f"picture_every, metrics_every and checkpoint_every "
                f"({', '.join(map(str, intervals))})"
            )
        return self.inner_steps
