"""Linear multistep methods: earlier slopes stand in for further evaluations."""

import torch
from torch import Tensor

from fmdiff.build import build


def quadrature(nodes: list[Tensor], t: Tensor, s: Tensor) -> list[float]:
    """Weights w with sum_j w_j f(nodes_j) = integral of f over [t, s] for low polynomials f.

    Exact up to degree len(nodes) - 1, on any distinct nodes (0-dim float64).
    """
    h = s - t
    scaled = (torch.stack(nodes) - t) / h
    powers = torch.arange(len(nodes), dtype=torch.float64)
    moments = 1 / (powers + 1)
    return (h * torch.linalg.solve(scaled ** powers[:, None], moments)).tolist()


class Adams:
    """Adams-Bashforth predictor with an Adams-Moulton corrector that costs no evaluation.

    x_s = x_t + integral over [t, s] of the polynomial through the last `order` slopes. When the
    slope at the predicted x_s arrives, at the next step, the last step is redone with it (the
    implicit weights), and the next prediction starts from there: one evaluation a step (PEC mode;
    Hairer, Norsett & Wanner I, III.1). Until `order` slopes are known the method runs at lower
    order (start=null, measured order 3), or `start` is a one-step solver that takes those first
    steps (with RK4 the full order).
    """

    asks = "v"
    stochastic = False

    def __init__(self, order: int, corrector: bool, start=None) -> None:
        self.order, self.corrector = order, corrector
        self.start = build(start) if isinstance(start, dict) else start

    def nfe(self, intervals: int) -> int:
        first = min(intervals, self.order - 1) if self.start else 0
        return intervals - first + (self.start.nfe(first) if self.start else 0)

    def step(self, field, x: Tensor, t: Tensor, s: Tensor, state, noise):
        times, slopes, last = state or ([], [], None)
        if self.start and len(times) < self.order - 1:
            first = Recorded(field)
            x, _ = self.start.step(first, x, t, s, None, noise)
            return x, ([*times, t], [*slopes, first.slope], None)
        times, slopes = [*times, t][-self.order :], [*slopes, field(x, t)][-self.order :]
        if self.corrector and last is not None:
            before, since = last
            x = self._advance(before, since, t, times, slopes)
        ahead = self._advance(x, t, s, times, slopes)
        return ahead, (times, slopes, (x, t))

    @staticmethod
    def _advance(x: Tensor, t: Tensor, s: Tensor, times: list, slopes: list) -> Tensor:
        weights = quadrature(times, t, s)
        return x + sum(w * v for w, v in zip(weights, slopes, strict=True))


class Recorded:
    """A field that remembers the first slope it gave."""

    def __init__(self, field) -> None:
        self.field, self.slope = field, None

    def __call__(self, x: Tensor, t: Tensor) -> Tensor:
        v = self.field(x, t)
        self.slope = v if self.slope is None else self.slope
        return v
