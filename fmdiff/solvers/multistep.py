"""Linear multistep methods: earlier slopes stand in for further evaluations."""

from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from fmdiff.build import build
from fmdiff.errors import FmdiffError
from fmdiff.field import Field
from fmdiff.schedules import Gradual, Ratio, Schedule
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


# where v = (x_hat - x_r) / (1 - r), whose errors grow like 1 / (1 - r): dense at both ends
ESTIMATES = Ratio(1.5, 2.0)


class Row(NamedTuple):
    """The part of the grid that one step needs, for N_0, N_1, ... (see Adams)."""

    ratios: list[float]  # N_{k+1}(t) = N_k(t) - ratios[k] N_k(t')
    ahead: list[float]  # D_k / N_k of the predictor, over [t, s]
    behind: list[float]  # of the corrector, over the last step
    order: int  # the largest one allowed


class State(NamedTuple):
    """The memory from one step to the next."""

    rows: list[Row]  # of this step and those to come
    differences: tuple[Tensor, ...] = ()  # N_0, N_1, ... of the last step
    squares: Tensor | None = None  # |N_m|^2, ..., |N_0|^2 (m+1, B)
    before: Tensor | None = None  # the state at its beginning


class Adams(Solver):
    r"""Adams-Bashforth predictor with an Adams-Moulton corrector that costs no evaluation.

    x_s is x_t plus the integral over [t, s] of the polynomial through the last slopes. In Newton's
    form a polynomial of degree j is a sum of terms k = 0 to j,

        x_s = x_t + sum_k D_k,   D_k = v[t, t', ..., t^(k)] \int (u - t) ... (u - t^(k-1)) du.

    The next step evaluates the slope at the predicted x_s. It redoes the last step with it (the
    polynomial through t', t, t'', ...), and predicts from the result. So a step takes one
    evaluation (PEC mode; Hairer, Norsett & Wanner I, III.1). The divided differences v[...] are
    kept in the form of Shampine & Gordon (1975; ibid., III.5),

        N_k = v[t, t', ..., t^(k)] (t - t') ... (t - t^(k)).

    *Which degree.* N_{j+1} is what the polynomial of degree j through the earlier slopes missed
    the new slope by. On a smooth field these errors fall up to the last; on a rough one they grow
    from some j on. So each sample weighs the degrees by what they would have done: with E_j the
    sum of |N_{j+1}|^2 at this step and the one before (a single one may be small by chance),

        w_j ~ E_j^-2,   x_s = x_t + sum_k (sum of w_j over j >= k) D_k.

    Where the field is smooth, e_j = |N_{j+1}| falls like h^(j+1). A lower degree i then adds
    w_i e_i = e_j (e_j / e_i)^3, so that the order is that of the highest degree j. Where it is
    rough, degree 0 has most of the weight, and the step is nearly Euler's. The corrector knows all
    terms of the step that it redoes. An asymptotic series is best cut at its smallest term, so its
    degrees k have the weights |D_k|^-2: from Euler's step (k = 0), where the slope has changed by
    more than itself, to one degree more than the predictor's. Samples do not influence each other.

    With the corrector the measured order is order + 1. At the beginning degrees grow with the
    number of slopes (start=null, measured order 3), or the Runge-Kutta solver `start` takes the
    first order - 1 steps (with RK4 the full order). With lower_order_final the order is at most
    the number of steps left. weigh=false is the classical method, in which a step has `order`
    terms whatever they are.

    Without a schedule the law of steps is `gradual`, or ratio(1.5, 2) if a network predicts x.

    Raises FmdiffError for an option out of range.
    """

    order: int
    law = Gradual(1.6, 15.0)

    def __init__(
        self,
        order: int,
        corrector: bool,
        start: RungeKutta | dict[str, Any] | None = None,
        lower_order_final: bool = False,
        weigh: bool = True,
    ) -> None:
        if order not in range(1, 7):
            raise FmdiffError(f"solver.order={order}: choose 1 to 6")
        start = build(start) if isinstance(start, dict) else start
        if start is not None and not isinstance(start, RungeKutta):
            raise FmdiffError(
                f"solver.start={type(start).__name__}: choose a Runge-Kutta solver or null"
            )
        self.order, self.corrector, self.start = order, corrector, start
        self.lower_order_final, self.weigh = lower_order_final, weigh

    def law_of(self, field: Field) -> Schedule:
        return ESTIMATES if field.by_estimate else self.law

    def nfe(self, steps: int) -> int:
        first = min(steps, self.order - 1) if self.start else 0
        return steps - first + (self.start.nfe(first) if self.start else 0)

    def begin(self, times: Tensor, jump: bool = False) -> State:
        """The rows of all steps along times (S+1,). A jump counts for lower_order_final."""
        grid = times.double().cpu().numpy()
        steps, most = len(grid) - 1, self.order + self.weigh  # slopes in use
        # column j holds t^(j) of every step, and an unused value where there is none yet
        at = [np.roll(grid[:-1], j) for j in range(most + 1)]
        ahead = np.stack(newton(at[: most - 1], grid[:-1], grid[1:]), 1)
        behind = np.stack(newton([at[1], at[0], *at[2:]][: most - 1], at[1], at[0]), 1)
        rows = []
        for i in range(steps):
            slopes, left = min(most, i + 1), steps + jump - i
            spans = _spans(grid[i - slopes + 1 : i + 1])
            earlier = _spans(grid[i - slopes + 1 : i])
            rows.append(
                Row(
                    (spans[:-1] / earlier).tolist(),
                    (ahead[i, :slopes] / spans).tolist(),
                    (behind[i, :slopes] / spans).tolist(),
                    min(self.order, left) if self.lower_order_final else self.order,
                )
            )
        return State(rows)

    def step(
        self,
        field: Field,
        x: Tensor,
        t: Tensor,
        s: Tensor,
        state: State | None,
        noise: Noise | None,
    ) -> Step:
        (row, *rows), old, squares, before = state or self.begin(torch.stack([t, s]))
        if self.start and len(old) < self.order - 1:
            first = Recorder(field)
            x, _ = self.start.step(first, x, t, s, None, noise)
            return x, State(rows, _differences(first.slope, old, row.ratios))
        v = field(x, t)
        new = _differences(v, old, row.ratios)
        before = before if self.corrector else None
        if not self.weigh:
            if before is not None:
                x = _sum(before, (old[0], *new[1:]), row.behind)
            return _sum(x, new[: row.order], row.ahead), State(rows, new, None, x)
        ahead, behind, squares = _weighed(new, row, squares)
        if before is not None:
            x = torch.add(before, old[0], alpha=row.behind[0]) + behind
        return torch.add(x, v, alpha=row.ahead[0]) + ahead, State(rows, new, squares, x)


def _spans(nodes: np.ndarray) -> np.ndarray:
    """1, t - t', (t - t')(t - t''), ... for nodes that end in t, as many as there are nodes."""
    return np.cumprod([1.0, *(nodes[-1:] - nodes[-2::-1])])[: len(nodes)]


def _differences(v: Tensor, old: tuple[Tensor, ...], ratios: list[float]) -> tuple[Tensor, ...]:
    """N_0, N_1, ... of the new slope v, from those of the step before."""
    new = [v]
    for difference, ratio in zip(old, ratios, strict=False):
        new.append(torch.sub(new[-1], difference, alpha=ratio))
    return tuple(new)


def _sum(x: Tensor, differences: tuple[Tensor, ...], integrals: list[float]) -> Tensor:
    """x + D_0 + D_1 + ..."""
    for n, c in zip(differences, integrals, strict=False):
        x = torch.add(x, n, alpha=c)
    return x


def _weighed(
    differences: tuple[Tensor, ...], row: Row, old: Tensor | None
) -> tuple[Tensor | float, Tensor | float, Tensor]:
    """The sums of the predictor's and the corrector's terms from D_1 on, and |N_k|^2 (m+1, B).

    A term has the weights of all degrees that have it, so these come from the highest to the
    lowest: their running sum is what is needed.
    """
    high = torch.stack(differences[::-1])  # N_m to N_0
    kind, m = torch.promote_types(high.dtype, torch.float32), len(high) - 1
    squares = torch.linalg.vector_norm(high.flatten(2), dim=2, dtype=kind).square()
    if not m:
        return 0.0, 0.0, squares
    ahead, behind = row.ahead[m::-1], row.behind[m::-1]
    numbers = squares.new_tensor([[1.0] * (m + 1), [c * c for c in behind], ahead, behind])
    numbers = numbers[..., None]
    errors = squares * numbers[:2]  # (2, m+1, B): of the predictor's degrees and the corrector's
    if old is not None:
        errors[0, m + 1 - len(old) : m] += old[:-1]
        errors[1, m] = old[-1] * behind[-1] ** 2  # of D_0, which has the slope before
    errors[0, m] = torch.inf
    if m > row.order:
        errors[0, : m - row.order] = torch.inf
    logs = errors.clamp(min=torch.finfo(kind).tiny).log()
    logs[0] *= 2
    weights = torch.softmax(-logs, 1)
    shares = weights.cumsum(1)
    shares[0] -= weights[0]  # degree j misses N_{j+1}
    shares = (shares * numbers[2:])[:, :m].to(high.dtype)
    forward, back = (shares.reshape(2, m, -1, *[1] * (high.ndim - 2)) * high[:m]).sum(1)
    return forward, back, squares


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
