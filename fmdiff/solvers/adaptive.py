"""Adaptive steps: each sample has its own time, step and error."""

import math
from collections.abc import Callable

import torch
from torch import Tensor

from fmdiff.errors import Failed, FmdiffError
from fmdiff.field import Field
from fmdiff.path import expand
from fmdiff.solvers.solver import Noise, Solver, Step

Slope = Callable[[Tensor, Tensor], Tensor]


class Dopri5(Solver):
    """Dormand & Prince 5(4): x_s = x_t + h sum_i b_i k_i, with the error h sum_i d_i k_i.

    A step is accepted if the root mean square of the error over a sample is at most 1, each entry
    divided by atol + rtol max(|x_t|, |x_s|). The next step is 0.9 error^(-1/5) times as long, 0.2
    to 10 times, and not longer after a rejection (Hairer, Norsett & Wanner I, II.4 and table 5.2).
    The last slope is the next step's first. Samples do not influence each other. All rows are
    evaluated, and counted, until the last one arrives.

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
        def slope(x: Tensor, time: Tensor) -> Tensor:
            return field(x, time.to(x))

        # times are float64 whatever the states are, and steps are controlled on the CPU
        end, time = (u.double().cpu().expand(len(x)) for u in (s, t))
        if state is None:
            k = slope(x, time)
            h = self._first_length(slope, x, time, k, end)
            spent = torch.full_like(end, 2)
        else:
            k, h, spent = state
        while (under_way := time < end).any():
            spent = spent + 6 * under_way
            if (spent > self.max_nfe).any():
                behind = time.argmin()
                raise Failed(
                    f"solver.max_nfe={self.max_nfe} evaluations do not reach t={s.item():g}: at "
                    f"t={time[behind].item():.4g} the steps are {h[behind].item():.2g} long; "
                    f"raise it, or solver.rtol={self.rtol:g} and solver.atol={self.atol:g}"
                )
            last = h >= end - time
            span = torch.where(last, end - time, h)
            length, slopes, ahead = expand(span.to(x), x), [k], x
            for row in self.a:
                ahead = x + length * sum(a * k for a, k in zip(row, slopes, strict=True) if a)
                slopes.append(slope(ahead, (time + sum(row) * span).minimum(end)))
            off = length * sum(d * k for d, k in zip(self.d, slopes, strict=True) if d)
            error = self._norm(off, torch.maximum(x.abs(), ahead.abs()))
            passes = (error <= 1) & under_way
            rows = expand(passes.to(x.device), x)
            x, k = torch.where(rows, ahead, x), torch.where(rows, slopes[-1], k)
            time = torch.where(passes, torch.where(last, end, time + span), time)
            factor = (0.9 * error ** (-1 / 5)).nan_to_num(nan=0.2, posinf=10.0).clamp(0.2, 10)
            wish = span * torch.where(passes, factor, factor.clamp(max=1))
            # a step that s cut short does not shorten the steps after it
            wish = torch.where(passes & last, torch.maximum(wish, h), wish)
            h = torch.where(under_way, wish, h)
        return x, (k, h, spent)

    def _norm(self, value: Tensor, size: Tensor) -> Tensor:
        """The scaled root mean square of each sample: (B,) float64 on the CPU."""
        scaled = value / (self.atol + self.rtol * size)
        return scaled.flatten(1).double().square().mean(1).sqrt().cpu()

    def _first_length(
        self, slope: Slope, x: Tensor, time: Tensor, k: Tensor, end: Tensor
    ) -> Tensor:
        """Each sample's first step, at the price of one evaluation (II.4, page 169)."""
        room = end - time
        d0, d1 = self._norm(x, x.abs()), self._norm(k, x.abs())
        guess = torch.where((d0 < 1e-5) | (d1 < 1e-5), 1e-6, 0.01 * d0 / d1).minimum(room)
        other = slope(x + expand(guess.to(x), x) * k, time + guess)
        d2 = self._norm(other - k, x.abs()) / guess
        sharp = torch.maximum(d1, d2)
        h = torch.where(sharp <= 1e-15, guess * 1e-3, (0.01 / sharp) ** (1 / 5))
        return torch.minimum(100 * guess, h).clamp(min=1e-6).minimum(room)
