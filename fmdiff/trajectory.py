"""Trajectories: the states, estimates of x and velocities along a run.

All are given in straight coordinates, x_t / (alpha + beta), which have the scale of the data
whatever the path's own scale is.
"""

import math

import torch
from torch import Tensor

from fmdiff.along import Around
from fmdiff.field import Field
from fmdiff.path import Kind

IMAGES, SERIES, POINTS = 20, 200, 2000  # the samples whose trajectory is kept
LONG = 2**18  # numbers of all series at one time, if that leaves more than are kept of images

Watch = tuple[Tensor, Tensor]  # frames (F, n, *shape) and their times (F,)


def watch_size(shape: tuple[int, ...]) -> int:
    """The number of samples whose trajectory is kept, so that memory does not grow with n."""
    if len(shape) == 2:
        return max(IMAGES, min(SERIES, LONG // math.prod(shape)))
    return POINTS if len(shape) == 1 else IMAGES


class Witness(Around):
    """A field that keeps the states of its first `rows` samples and its estimates of their x.

    The estimate E[x | x_t] of an interval is the field's first result there, converted to x, so
    it costs nothing. Most solvers begin at the state itself. If a solver reuses the last result of
    the interval before (first same as last), that result is taken. `churn` begins at more noise,
    and the estimate then has the time of that noise.
    """

    def __init__(self, field: Field, rows: int) -> None:
        super().__init__(field)
        self.rows = rows
        self.states: list[Tensor] = []
        self.estimates: list[tuple[Tensor, Tensor]] = []  # (x_hat, its time ())
        self.now: Tensor | None = None  # the interval's time, while its estimate is missing
        self.last: tuple[Tensor, Tensor, Tensor, Kind] | None = None

    def keep(self, x: Tensor) -> None:
        """Keep samples at the scale of the data."""
        self.states.append(x[: self.rows].to("cpu", copy=True))

    def observe(self, t: Tensor, x: Tensor) -> None:
        """The state x at time t () ends an interval and begins the next."""
        self.keep(x / (self.path.alpha(t) + self.path.beta(t)))
        self.now = t
        if self.last is not None:
            value, x_t, time, kind = self.last
            # an adaptive solver rounds its times
            if (time - t).abs().max() < 1e-6 and torch.equal(x_t, x):
                self._estimate(value, x_t, t, kind)

    def select(self, rows: Tensor) -> Around:
        return _Part(self, rows)

    def predict(self, x_t: Tensor, t: Tensor, kind: Kind, s: Tensor | None = None) -> Tensor:
        value = self.field.predict(x_t, t, kind, s)
        self.note(value, x_t, t, kind)
        return value

    def note(
        self, value: Tensor, x_t: Tensor, t: Tensor, kind: Kind, rows: Tensor | None = None
    ) -> None:
        """Take note of a result, or of that of some rows (R,): the others keep their last one."""
        if rows is not None:
            parts = value, x_t, t
            count = int(rows.max()) + 1  # the first call is for all
            old = self.last or [part.new_empty(count, *part.shape[1:]) for part in parts]
            pairs = zip(old[:3], parts, strict=True)
            value, x_t, t = (was.index_put((rows,), part) for was, part in pairs)
        self.last = value, x_t, t, kind
        if self.now is not None:
            self._estimate(value, x_t, t, kind)

    def _estimate(self, value: Tensor, x_t: Tensor, t: Tensor, kind: Kind) -> None:
        rows = slice(self.rows)
        x_hat = self.path.convert(value[rows], x_t[rows], t[rows] if t.ndim else t, kind, "x")
        time = self.now if t.ndim else t
        assert time is not None
        self.estimates.append((x_hat.to("cpu", copy=True), time.double().cpu()))
        self.now = None


class _Part(Around):
    """Some rows of a Witness, which an adaptive solver asks when the others have arrived."""

    def __init__(self, whole: Witness, rows: Tensor) -> None:
        super().__init__(whole.field.select(rows))
        self.whole, self.places = whole, rows

    def predict(self, x_t: Tensor, t: Tensor, kind: Kind, s: Tensor | None = None) -> Tensor:
        value = self.field.predict(x_t, t, kind, s)
        self.whole.note(value, x_t, t, kind, self.places)
        return value


def joined(batches: list[Witness], times: Tensor, steps: int) -> tuple[Watch, Watch | None]:
    """Join the states and the estimates of x (None if there are none) of all batches.

    A jump from times[-1] gets the time 1. Estimates that are not finite are left out.
    """
    states = torch.cat([torch.stack(batch.states) for batch in batches], 1)
    jump = torch.ones(len(states) - len(times), dtype=torch.float64)
    trajectory = states, torch.cat([times, jump])
    estimates = [batch.estimates[:steps] for batch in batches]
    if not all(estimates):
        return trajectory, None
    x_hat = torch.cat([torch.stack([x for x, _ in of]) for of in estimates], 1)
    at = torch.stack([time for _, time in estimates[0]])
    finite = x_hat.flatten(1).isfinite().all(1)
    return trajectory, (x_hat[finite], at[finite]) if finite.any() else None


@torch.no_grad()
def velocities(field: Field, points: Tensor, times: Tensor) -> Tensor:
    """The velocities (F, G, *) of points (G, *shape) of a picture at the field's times (F,).

    In straight coordinates y = x_t / (alpha + beta) and r = alpha / (alpha + beta),

        dy/dr = E[x - eps | x_t].

    This is v on the straight path, and it is finite wherever the field is. A solver in the path's
    own coordinates moves the picture along the same arrows. The result is NaN at times outside
    the field's interval. Each time takes one batch.
    """
    low, high = field.interval("straight")
    frames = []
    for t in times:
        if low - 1e-9 <= t <= high + 1e-9:  # the ends are rounded
            x_t = points * (field.path.alpha(t) + field.path.beta(t))
            frames.append(field.predict(x_t, t, "straight"))
        else:
            frames.append(torch.full_like(points, torch.nan))
    return torch.stack(frames).cpu()
