"""Adaptive steps: each sample has its own time, step and error."""

import math

import torch
from torch import Tensor

from fmdiff.errors import Failed, FmdiffError
from fmdiff.field import Field
from fmdiff.path import expand
from fmdiff.solvers.solver import Noise, Solver, Step

TILE, SMALL = 16, 32  # see _slope


class Dopri5(Solver):
    """Dormand & Prince 5(4): x_s = x_t + h sum_i b_i k_i, with the error h sum_i d_i k_i.

    A step is accepted if the root mean square of the error over a sample is at most 1, each entry
    divided by atol + rtol max(|x_t|, |x_s|). The next step is 0.9 error^(-1/5) times as long, 0.2
    to 10 times, and not longer after a rejection (Hairer, Norsett & Wanner I, II.4 and table 5.2).
    The last slope is the next step's first. Samples do not influence each other: a sample that
    has arrived is not asked any more, and lengths of steps are powers of 2^(1/4), so that the
    rounding of another batch rarely changes them. `max_nfe` counts calls of the field.

    Raises Failed when a sample needs more than `max_nfe` evaluations.
    """

    order = 5
    adaptive = True
    a = (
        (1 / 5,),
        (3 / 40, 9 / 40),
        (44 / 45, -56 / 15, 32 / 9),
        (19372 / 6561, -25360 / 2187, 64448 / 6561, -212 / 729),
        (9017 / 3168, -355 / 33, 46732 / 5247, 49 / 176, -5103 / 18656),
        (35 / 384, 0.0, 500 / 1113, 125 / 192, -2187 / 6784, 11 / 84),  # b, which gives x_s
    )
    d = (71 / 57600, 0.0, -71 / 16695, 71 / 1920, -17253 / 339200, 22 / 525, -1 / 40)

    def __init__(self, rtol: float, atol: float, max_nfe: int) -> None:
        for name, value in (("rtol", rtol), ("atol", atol)):
            if not 0 < value < math.inf:
                raise FmdiffError(f"solver.{name}={value}: a positive number is needed")
        self.rtol, self.atol, self.max_nfe = rtol, atol, max_nfe

    def nfe(self, steps: int) -> int:
        """0 without a step. Otherwise raises FmdiffError, as the run alone tells the cost."""
        if steps:
            raise FmdiffError(
                "Dopri5 chooses its own steps: what they cost is known after the run"
            )
        return 0

    def step(
        self,
        field: Field,
        x: Tensor,
        t: Tensor,
        s: Tensor,
        state: tuple[Tensor, Tensor, Tensor] | None,
        noise: Noise | None,
    ) -> Step:
        # times are float64 whatever the states are, and steps are controlled on the CPU
        end, time = (u.double().cpu().expand(len(x)) for u in (s, t))
        if state is None:
            k = _slope(field, x, time)
            h = self._first_length(field, x, time, k, end)
            state = k, h, torch.full_like(end, 2)
        # samples that have arrived keep their values, the others are overwritten
        x, time, k, h, spent = (part.clone() for part in (x, time, *state))
        while len(rows := (time < end).nonzero().flatten()):
            spent[rows] += 6
            if (spent > self.max_nfe).any():
                behind = time.argmin()
                raise Failed(
                    f"solver.max_nfe={self.max_nfe} evaluations do not reach t={s.item():g}: at "
                    f"t={time[behind].item():.4g} the steps are {h[behind].item():.2g} long; "
                    f"raise it, or solver.rtol={self.rtol:g} and solver.atol={self.atol:g}"
                )
            now, goal, length, before = time[rows], end[rows], h[rows], x[rows]
            last = length >= goal - now
            span = torch.where(last, goal - now, length)
            ahead, slope, off = self._attempt(field, rows, before, k[rows], now, span, goal)
            error = self._norm(off, torch.maximum(before.abs(), ahead.abs()))
            passes = error <= 1
            x[rows[passes]], k[rows[passes]] = ahead[passes], slope[passes]
            time[rows[passes]] = torch.where(last, goal, now + span)[passes]
            factor = (0.9 * error ** (-1 / 5)).nan_to_num(nan=0.2, posinf=10.0).clamp(0.2, 10)
            wish = _rounded(span * torch.where(passes, factor, factor.clamp(max=1)))
            # a step that s cut short does not shorten the steps after it
            h[rows] = torch.where(passes & last, torch.maximum(wish, length), wish)
        return x, (k, h, spent)

    def _attempt(
        self,
        field: Field,
        rows: Tensor,
        x: Tensor,
        k: Tensor,
        time: Tensor,
        span: Tensor,
        end: Tensor,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """One step of the samples `rows` (R,) of the field's batch.

        x and the slope k are (R, *shape), the others (R,). Returns x_s, its slope, and the error.
        """
        length, slopes, ahead = expand(span.to(x), x), [k], x
        for row in self.a:
            ahead = x + length * sum(a * k for a, k in zip(row, slopes, strict=True) if a)
            slopes.append(_slope(field, ahead, (time + sum(row) * span).minimum(end), rows))
        off = length * sum(d * k for d, k in zip(self.d, slopes, strict=True) if d)
        return ahead, slopes[-1], off

    def _norm(self, value: Tensor, size: Tensor) -> Tensor:
        """The scaled root mean square of each sample: (B,) float64 on the CPU."""
        scaled = value / (self.atol + self.rtol * size)
        return scaled.flatten(1).double().square().mean(1).sqrt().cpu()

    def _first_length(
        self, field: Field, x: Tensor, time: Tensor, k: Tensor, end: Tensor
    ) -> Tensor:
        """Each sample's first step, at the price of one evaluation (II.4, page 169)."""
        d0, d1 = self._norm(x, x.abs()), self._norm(k, x.abs())
        guess = torch.where((d0 < 1e-5) | (d1 < 1e-5), 1e-6, 0.01 * d0 / d1).minimum(end - time)
        other = _slope(field, x + expand(guess.to(x), x) * k, time + guess)
        d2 = self._norm(other - k, x.abs()) / guess
        sharp = torch.maximum(d1, d2)
        h = torch.where(sharp <= 1e-15, guess * 1e-3, (0.01 / sharp) ** (1 / 5))
        return _rounded(torch.minimum(100 * guess, h).clamp(min=1e-6))


def _rounded(h: Tensor) -> Tensor:
    """The next smaller power of 2^(1/4): rounding of the error then rarely changes a step."""
    return torch.exp2((4 * h.log2()).floor() / 4)


def _slope(field: Field, x: Tensor, time: Tensor, rows: Tensor | None = None) -> Tensor:
    """v (R, *shape) of the samples `rows` of the field's batch, by default of all of them.

    Other numbers of rows are multiplied by other kernels, which round otherwise. Points come in
    whole tiles of 16 rows for that reason, which costs nothing. The rows that fill the last tile
    are no evaluations.
    """
    n, time = len(x), time.to(x.device)
    if not isinstance(field, Field):  # a plain function v(x_t, t)
        return field(x, time).to(x)
    rows = torch.arange(n) if rows is None else rows
    if x[0].numel() <= SMALL:
        fill = torch.arange(-(-n // TILE) * TILE).clamp(max=n - 1)
        x, time, rows = x[fill], time[fill], rows[fill]
    part, before = field.select(rows), field.evaluations
    own = part.evaluations
    value = part(x, time).to(x)
    filling = (len(x) - n) * part.price(time[-1]) if len(x) > n else 0
    field.evaluations = before + part.evaluations - own - filling
    return value[:n]
