"""Linear solvers: each state is a sum of the start and of the slopes so far, by given weights."""

import math
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fmdiff.errors import FmdiffError
from fmdiff.field import Field
from fmdiff.solvers.solver import Noise, Solver, Step

Basis = tuple[Tensor, ...]  # the start and the slopes so far


class Linear(Solver):
    """A solver whose times and weights are numbers:

        x_i = a_i x_0 + sum_{j < i} b_ij v(x_j, t_j),   i = 1 ... S.

    times: t_0 ... t_S, in [0, 1], which do not decrease. weights: S rows, of which row i is a_i,
    b_i0 ... b_i,i-1. The end x_S may stand for a jump to the estimate of x, which is such a sum,
    too.

    With a row for each evaluation, every solver whose step is a fixed sum is one of these:
    Runge-Kutta and multistep methods, their correctors, exponential integrators, DDIM (Shaul et
    al. 2024, arXiv:2403.01329, call the family non-stationary solvers).

    Raises FmdiffError for numbers that are no such times and weights.
    """

    one_way = True
    times: list[float]

    def __init__(self, times: list[float], weights: list[list[float]]) -> None:
        if not (_numbers(times) and len(times) > 1 and times[0] >= 0 and times[-1] <= 1):
            raise FmdiffError("times must be two numbers or more, from 0 to 1")
        if not all(t <= s for t, s in pairwise(times)):
            raise FmdiffError("times must not decrease")
        rows = isinstance(weights, list) and all(map(_numbers, weights))
        if not rows or [len(row) for row in weights] != list(range(2, len(times) + 1)):
            raise FmdiffError(f"weights must be {len(times) - 1} rows, of 2, 3, ... numbers")
        self.times, self.weights = times, weights

    def begin(self, times: Tensor, jump: bool = False) -> Basis:
        """No slope yet. Raises FmdiffError for other times than the solver's own."""
        if jump or times.tolist() != self.times:
            raise FmdiffError(
                "this solver has its own times, from noise to data: leave schedule out, or choose "
                "another solver, like heun"
            )
        return ()

    def step(
        self,
        field: Field,
        x: Tensor,
        t: Tensor,
        s: Tensor,
        state: Basis,
        noise: Noise | None,
    ) -> Step:
        basis = (*(state or (x,)), field(x, t))
        return combine(self.weights[len(basis) - 2], basis), basis


def combine(weights: list[float], basis: Basis) -> Tensor:
    """The sum (B, *shape) of the first vectors of a basis, each times its weight."""
    x = basis[0] * weights[0]
    for weight, vector in zip(weights[1:], basis[1:], strict=False):
        x = torch.add(x, vector, alpha=weight)
    return x


def bashforth(grid: Tensor, order: int, jump: bool) -> Linear:
    """The Adams-Bashforth method of this order along times (S+1,), at first of lower order.

    x_{i+1} = x_i + the integral of the polynomial through the last `order` slopes. A jump to the
    estimate of x, on the straight path, may follow.
    """
    times, steps = grid.tolist(), len(grid) - 1 + jump
    row, rows = np.eye(steps + 1)[0], []
    for i, (t, s) in enumerate(pairwise(times)):
        nodes = np.array(times[max(0, i + 1 - order) : i + 1])
        powers = np.arange(len(nodes))
        integrals = (s ** (powers + 1) - t ** (powers + 1)) / (powers + 1)
        row = row.copy()
        row[i + 2 - len(nodes) : i + 2] += np.linalg.solve(nodes ** powers[:, None], integrals)
        rows.append(row[: i + 2].tolist())
    if jump:
        row[steps] += 1 - times[-1]
        rows.append(row.tolist())
        times.append(1.0)
    return Linear(times, rows)


def _numbers(values: Any) -> bool:
    return isinstance(values, list) and all(
        isinstance(v, int | float) and not isinstance(v, bool) and math.isfinite(v) for v in values
    )
