"""How the end of a linear solver depends on its numbers, and solvers written as numbers."""

from itertools import accumulate, pairwise
from typing import NamedTuple

import torch
from torch import Tensor

from fmdiff.along import Around
from fmdiff.errors import FmdiffError
from fmdiff.field import Field
from fmdiff.fitted.times import Trajectories
from fmdiff.integration import Plan, integrate
from fmdiff.path import Kind
from fmdiff.solvers.linear import Basis, Linear, combine
from fmdiff.solvers.solver import Solver

MOVE, SHIFT = 1e-2, 0.02  # the differences: RMS of a state, and share of a step
LEAST = 1e-3  # the shortest step


def of_jacobian(steps: int) -> int:
    """The evaluations of a trajectory that all columns take."""
    return steps + sum((i + 2) * (steps - i) for i in range(1, steps))


class System(NamedTuple):
    """The normal equations of the least-squares problem at one solver."""

    square: Tensor  # J^T J (P, P)
    slope: Tensor  # J^T r (P,)
    moves: Tensor  # (numbers of the solver, P): what a unit of each unknown changes

    @staticmethod
    def of(trajectories: Trajectories, solver: Linear) -> "System":
        """Compute J and r on these trajectories."""
        first = torch.tensor(solver.times[0], dtype=torch.float64)
        parts = [
            Runs(field, trajectories.start(field, rows, first), truth, solver)
            for field, rows, truth in trajectories.parts
        ]
        moves = directions(torch.stack([part.gram for part in parts]).sum(0), len(solver.weights))
        square, slope = torch.zeros(()), torch.zeros(())
        for part, (_, rows, _) in zip(parts, trajectories.parts, strict=True):
            columns = part.columns(moves)
            square, slope = square + columns.T @ columns, slope + columns.T @ part.rest
            if trajectories.progress:
                price = part.field.price(first)
                trajectories.progress(len(rows) * price * of_jacobian(len(solver.weights)))
        return System(square, slope, moves)

    def solution(self, solver: Linear, lam: float, hi: float) -> Linear | None:
        """The solver after a step of this damping; None if its times are not in order or > hi."""
        size = self.square.diagonal()
        damped = self.square + torch.diag(lam * size + 1e-12 * size.mean())
        if not damped.isfinite().all():
            return None
        ahead = numbers(solver) - self.moves @ torch.linalg.solve(damped, self.slope)
        try:
            trial = with_numbers(solver, ahead)
        except FmdiffError:
            return None
        short = any(s - t < LEAST for t, s in pairwise(trial.times))
        return None if short or trial.times[-2] > hi else trial


class Runs:
    """The run of a solver from x (B, *shape), as a function of the solver's numbers.

    `rest` (B * size,) is the end less the truth. `gram` (S+1, S+1) holds the mean products of x_0,
    v_0, v_1, ..., each summed over the samples.
    """

    def __init__(self, field: Field, x: Tensor, truth: Tensor, solver: Linear) -> None:
        self.field, self.solver = field, solver
        self.end, self.basis = self.on(solver.times, x, (x,))
        flat = torch.stack([vector.double().cpu().flatten() for vector in self.basis])
        self.gram = flat @ flat.T / truth[0].numel()
        self.rest = self._far(self.end, truth)

    def on(self, times: list[float], x: Tensor, basis: Basis) -> tuple[Tensor, Basis]:
        """The end, and x_0 and all slopes, from x_i on, of which `basis` has what is before."""
        for i in range(len(basis) - 1, len(self.solver.weights)):
            t = torch.tensor(times[i], dtype=torch.float64)
            basis = (*basis, self.field(x, t))
            x = combine(self.solver.weights[i], basis)
        return x, basis

    def columns(self, moves: Tensor) -> Tensor:
        """What each of the moves (numbers, P) changes of the end: (B * size, P)."""
        steps, columns = len(self.solver.weights), []
        for k in range(steps - 1):
            columns.append(self._of_time(k + 1))
        edges = list(accumulate((len(row) for row in self.solver.weights), initial=steps - 1))
        for move in moves.T[steps - 1 :]:
            i = next(i for i in range(steps) if move[edges[i] : edges[i + 1]].any())
            columns.append(self._of_row(i, move[edges[i] : edges[i + 1]].tolist()))
        return torch.stack(columns, 1)

    def _of_time(self, k: int) -> Tensor:
        times = list(self.solver.times)
        shift = -SHIFT * (times[k] - times[k - 1])  # to earlier times, where the field is defined
        times[k] += shift
        before = self.basis[: k + 1]
        return (
            self._far(self.on(times, combine(self.solver.weights[k - 1], before), before)[0])
            / shift
        )

    def _of_row(self, i: int, move: list[float]) -> Tensor:
        before = self.basis[: i + 2]
        change = combine(move, before)
        if i == len(self.solver.weights) - 1:
            return change.double().cpu().flatten()
        x = combine(self.solver.weights[i], before) + MOVE * change
        return self._far(self.on(self.solver.times, x, before)[0]) / MOVE

    def _far(self, end: Tensor, truth: Tensor | None = None) -> Tensor:
        other = self.end if truth is None else truth
        return (end.double().cpu() - other.double().cpu()).flatten()


def directions(gram: Tensor, steps: int) -> Tensor:
    """The moves (numbers, P): each inner time, and orthonormal combinations of each row's weights.

    gram (S+1, S+1): the products of x_0 and the slopes over all samples.
    """
    mean = gram / gram.diagonal().mean()
    blocks = [torch.eye(steps - 1, dtype=torch.float64)]
    for size in range(2, steps + 2):
        part = mean[:size, :size] + 1e-10 * torch.eye(size, dtype=torch.float64)
        blocks.append(torch.linalg.inv(torch.linalg.cholesky(part)).T)
    moves: Tensor = torch.block_diag(*blocks)  # type: ignore[no-untyped-call]
    return moves


def numbers(solver: Linear) -> Tensor:
    """The inner times and all weights of a solver, in one vector."""
    values = solver.times[1:-1] + [w for row in solver.weights for w in row]
    return torch.tensor(values, dtype=torch.float64)


def with_numbers(solver: Linear, values: Tensor) -> Linear:
    """The solver with other inner times and weights. Raises FmdiffError if these are none."""
    steps = len(solver.weights)
    inner, *rows = torch.split(values, [steps - 1, *map(len, solver.weights)])
    times = [solver.times[0], *inner.tolist(), solver.times[-1]]
    return Linear(times, [row.tolist() for row in rows])


def linear(field: Field, solver: Solver, layout: Plan) -> Linear:
    """A solver along a plan, as numbers. Its steps must be fixed sums of evaluations.

    The solver itself runs, on rows of weights: the start is the first unit vector, and the answer
    of evaluation j the unit vector j + 1.
    """
    rows = _Rows(field)
    count = solver.nfe(len(layout.times) - 1) + layout.jump
    x = torch.eye(1, count + 1, dtype=torch.float64)
    x = integrate(solver, rows, x, layout.times, jump=layout.jump)
    end = 1.0
    if layout.jump:
        x = solver.arrival(rows, x, layout.times[-1])
    else:
        end = layout.times[-1].item()
    states = [*rows.states[1:], x[0].tolist()]
    return Linear([*rows.times, end], [row[: i + 2] for i, row in enumerate(states)])


class _Rows(Around):
    """Answers with unit vectors, and keeps the times and the states at which it is asked."""

    def __init__(self, field: Field) -> None:
        super().__init__(field)
        self.times: list[float] = []
        self.states: list[list[float]] = []

    def predict(self, x_t: Tensor, t: Tensor, kind: Kind, s: Tensor | None = None) -> Tensor:
        self.times.append(t.item())
        self.states.append(x_t[0].tolist())
        v = torch.zeros_like(x_t)
        v[0, len(self.times)] = 1
        return self.path.convert(v, x_t, t, "v", kind)
