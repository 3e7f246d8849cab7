"""Linear multistep methods: earlier slopes stand in for further evaluations."""

from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from fmdiff.build import build
from fmdiff.errors import FmdiffError
from fmdiff.field import Field
from fmdiff.path import expand
from fmdiff.schedules import Ratio
from fmdiff.solvers.runge_kutta import RungeKutta
from fmdiff.solvers.solver import Noise, Solver, Step


def newton(nodes: list[np.ndarray], t: np.ndarray, s: np.ndarray) -> list[np.ndarray]:
    """Integrals over [t, s] of Newton's basis 1, (u - nodes_0), (u - nodes_0)(u - nodes_1), ...

    There is one more than nodes; all arrays are (S,). They are the factors of the divided
    differences.
    """
    at, w = np.polynomial.legendre.leggauss(len(nodes) // 2 + 1)
    u = t[:, None] + (s - t)[:, None] * (at + 1) / 2
    basis = [np.ones_like(u)]
    for node in nodes:
        basis.append(basis[-1] * (u - node[:, None]))
    return [(s - t) / 2 * (b @ w) for b in basis]


MANY = 13  # the limit is relaxed beyond this many steps


class Row(NamedTuple):
    """The part of the grid that one step needs."""

    gaps: list[float]  # t minus each earlier node, the last one first
    ahead: list[float]  # the predictor's integrals over [t, s], by order
    behind: list[float]  # the corrector's over the last step


class State(NamedTuple):
    """The memory from one step to the next."""

    rows: list[Row]  # of this step and those to come
    limit: float | None
    differences: tuple[Tensor, ...] = ()  # v_t, v[t, t'], v[t, t', t''], ... of the last step
    last: tuple[Tensor, Tensor, Tensor | None] | None = None  # its x_t, slope, and slope's size


class Adams(Solver):
    r"""Adams-Bashforth predictor with an Adams-Moulton corrector that costs no evaluation.

    x_s = x_t + integral over [t, s] of the polynomial through the last `order` slopes, in
    Newton's form with divided differences v[...]:

        x_s = x_t + sum_k D_k,   D_k = v[t, t', ..., t^(k-1)] \int (u - t) ... (u - t^(k-2)) du.

    The next step evaluates the slope at the predicted x_s. It redoes the last step with it (the
    polynomial through t', t, t'', ...), and predicts from the result. So a step takes one
    evaluation (PEC mode; Hairer, Norsett & Wanner I, III.1). Until `order` slopes are known, the
    method runs at lower order (start=null, measured order 3), or the Runge-Kutta solver `start`
    takes the steps (with RK4 the full order). With lower_order_final the order is at most the
    number of steps left.

    Trained networks are rough and strong guidance changes v fast, which makes high terms blow up.
    So with `limit` a sample's terms must satisfy |D_k| <= c max(|D_{k-1}|, c |D_{k-2}|, ...). At
    the first that does not, the predictor stops; the corrector adds its allowed part and stops.
    c = limit max(1, S / 13) for S steps in all, as many steps resolve more. limit=null is the
    classical method.

    Raises FmdiffError for an option out of range.
    """

    order: int
    law = Ratio(1.1, 1.4)

    def __init__(
        self,
        order: int,
        corrector: bool,
        start: RungeKutta | dict[str, Any] | None = None,
        lower_order_final: bool = False,
        limit: float | None = None,
    ) -> None:
        if order not in range(1, 7):
            raise FmdiffError(f"solver.order={order}: choose 1 to 6")
        start = build(start) if isinstance(start, dict) else start
        if start is not None and not isinstance(start, RungeKutta):
            raise FmdiffError(
                f"solver.start={type(start).__name__}: choose a Runge-Kutta solver or null"
            )
        if limit is not None and not 0 <= limit < float("inf"):
            raise FmdiffError(f"solver.limit={limit}: a number >= 0 or null is needed")
        self.order, self.corrector, self.start = order, corrector, start
        self.lower_order_final, self.limit = lower_order_final, limit

    def nfe(self, steps: int) -> int:
        first = min(steps, self.order - 1) if self.start else 0
        return steps - first + (self.start.nfe(first) if self.start else 0)

    def begin(self, times: Tensor, jump: bool = False) -> State:
        """The rows of all steps along times (S+1,). A jump counts for lower_order_final."""
        grid = times.double().cpu().numpy()
        steps = len(grid) - 1
        # column j holds t^(j) of every step, and an unused value where there is none yet
        at = [np.roll(grid[:-1], j) for j in range(self.order)]
        ahead = np.stack(newton(at[: self.order - 1], grid[:-1], grid[1:]), 1)
        behind = ahead
        if self.order > 1:
            behind = np.stack(newton([at[1], at[0], *at[2:-1]][: self.order - 1], at[1], at[0]), 1)
        gaps = np.stack([at[0] - node for node in at[1:]], 1) if self.order > 1 else ahead[:, :0]
        rows = []
        for i in range(steps):
            available = min(self.order, i + 1)
            order = min(available, steps + jump - i) if self.lower_order_final else available
            rows.append(
                Row(
                    gaps[i, : available - 1].tolist(),
                    ahead[i, :order].tolist(),
                    behind[i, :available].tolist(),
                )
            )
        limit = None if self.limit is None else self.limit * max(1, steps / MANY)
        return State(rows, limit)

    def step(
        self,
        field: Field,
        x: Tensor,
        t: Tensor,
        s: Tensor,
        state: State | None,
        noise: Noise | None,
    ) -> Step:
        (row, *rows), limit, old, last = state or self.begin(torch.stack([t, s]))
        if self.start and len(old) < self.order - 1:
            first = Recorder(field)
            x, _ = self.start.step(first, x, t, s, None, noise)
            return x, State(rows, limit, _differences(first.slope, old, row.gaps))
        v = field(x, t)
        new = _differences(v, old, row.gaps)
        sizes = []
        if limit is not None:
            sizes = [torch.linalg.vector_norm(d.flatten(1), dim=1) for d in new]
        if self.corrector and last:
            before, slope, size = last
            x = _sum(before, (slope, *new[1:]), row.behind, limit, [size, *sizes[1:]], True)
        ahead = _sum(x, new, row.ahead, limit, sizes, False)
        return ahead, State(rows, limit, new, (x, v, sizes[0] if sizes else None))


def _differences(v: Tensor, old: tuple[Tensor, ...], gaps: list[float]) -> tuple[Tensor, ...]:
    """The divided differences that end in the new slope v, from those of the step before."""
    new = [v]
    for difference, gap in zip(old, gaps, strict=False):
        new.append((new[-1] - difference) / gap)
    return tuple(new)


def _sum(
    x: Tensor,
    differences: tuple[Tensor, ...],
    integrals: list[float],
    limit: float | None,
    sizes: list[Any],
    partly: bool,
) -> Tensor:
    """x + sum_k D_k. With a limit each sample stops at the first D_k that is too large.

    `sizes` holds the norm (B,) of each difference. With `partly` that D_k's allowed part is added.
    """
    x = torch.add(x, differences[0], alpha=integrals[0])
    terms = list(zip(integrals, differences, strict=False))[1:]
    if limit is None:
        for c, d in terms:
            x = torch.add(x, d, alpha=c)
        return x
    allowed, on = sizes[0] * (limit * abs(integrals[0])), None
    for (c, d), norm in zip(terms, sizes[1:], strict=False):
        size = norm * abs(c)
        fits = size <= allowed
        share = (allowed / size).where(~fits, 1.0) if partly else fits.to(x)
        share = share if on is None else share * on
        x = torch.addcmul(x, expand(share, x), d, value=c)
        on = fits if on is None else on & fits
        allowed = limit * torch.maximum(size, allowed)
    return x


class Recorder(Field):
    """A field that remembers its first answer, the slope at the beginning of a step."""

    slope: Tensor

    def __init__(self, field: Field) -> None:
        self.field, self.empty = field, True

    def __call__(self, x_t: Tensor, t: Tensor) -> Tensor:
        v = self.field(x_t, t)
        if self.empty:
            self.slope, self.empty = v, False
        return v
