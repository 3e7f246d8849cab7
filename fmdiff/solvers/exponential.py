r"""Exponential integrators: they solve the linear part exactly and approximate the prediction.

With lam = log(alpha/beta) and rho = beta/alpha = exp(-lam), the ODE of every Gaussian path reads

    x_s = (beta_s / beta_t) x_t + beta_s integral of x_hat d(1/rho)        (data form)
        = (alpha_s / alpha_t) x_t + alpha_s integral of eps_hat d rho      (noise form)

over [t, s]. With the prediction held fixed both are DDIM, which is Euler in straight coordinates.
The methods below replace it by a polynomial through values at earlier times. They need only x_hat,
so they reach an end where v is infinite, and equal noise levels give equal samples in all
coordinates. At an end where lam is infinite (alpha = 0 or beta = 0) no polynomial in lam exists.
A step there is of first order, and into beta = 0 its result is x_hat.

Quantities of the times alone are Python floats, which cost less than 0-dim tensors.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from torch import Tensor

from fmdiff.errors import FmdiffError, nearest
from fmdiff.field import Field
from fmdiff.path import Kind, Path
from fmdiff.solvers.multistep import Recorder
from fmdiff.solvers.runge_kutta import RungeKutta
from fmdiff.solvers.solver import Noise, Solver, Step

# B(h) of UniPC: with two known values B(h) / 2 replaces the first moment. bh1 has no limit, so for
# an infinite h it takes that of bh2.
VARIANTS: dict[str, Callable[[float], float]] = {
    "bh1": lambda h: h if math.isfinite(h) else 1.0,
    "bh2": lambda h: -math.expm1(-h),
}


def log_ratio(path: Path, t: Tensor) -> float:
    """lam = log(alpha/beta), infinite if one of them is 0."""
    return path.logsnr(t).item() / 2


def ddim(path: Path, x: Tensor, t: Tensor, s: Tensor, x_hat: Tensor) -> Tensor:
    """The step with x_hat held fixed (Song et al. 2021, arXiv:2010.02502), for beta_t > 0."""
    share = path.beta(s) / path.beta(t)
    return share * x + (path.alpha(s) - share * path.alpha(t)) * x_hat


def moments(h: float, n: int) -> list[float]:
    """M_k = h * integral over [0, 1] of exp((u - 1) h) u^k du for k < n; h of either sign.

    M_k = k! h phi_{k+1}(-h) in the notation of Hochbruck & Ostermann 2010.
    """
    values = [-math.expm1(-h)]
    for k in range(1, n):
        values.append(1 - k * values[-1] / h)  # by parts
    return values


def weights(nodes: Sequence[float], lo: float, hi: float, moments: list[float]) -> list[float]:
    """w with sum_j w_j p(nodes_j) = sum_k c_k M_k for p = sum_k c_k u^k, u = 0 at lo, 1 at hi.

    lo = -inf is allowed if all nodes are lo or hi. The method of Bjorck & Pereyra 1970 (Golub &
    Van Loan, Matrix Computations, algorithm 4.6.2) solves the equations sum_j u_j^k w_j = M_k.
    """
    u = [0.0 if z == lo else 1.0 if z == hi else (z - lo) / (hi - lo) for z in nodes]
    w, n = list(moments), len(nodes)
    for k in range(n - 1):
        for i in range(n - 1, k, -1):
            w[i] -= u[k] * w[i - 1]
    for k in range(n - 2, -1, -1):
        for i in range(k + 1, n):
            w[i] /= u[i] - u[i - k - 1]
        for i in range(k, n - 1):
            w[i] -= w[i + 1]
    return w


class DPM2(Solver):
    """DPM-Solver-2 (Lu et al. 2022, arXiv:2206.00927, algorithm 1): the midpoint rule in lam.

    x_s = (alpha_s / alpha_t) x_t + alpha_s (rho_s - rho_t) eps_hat(x_m, m), with lam_m halfway and
    x_m by DDIM. If lam is infinite at t or s, the midpoint rule in r is used instead.
    """

    order = 2
    asks: Kind = "x"

    def nfe(self, steps: int) -> int:
        return 2 * steps

    def step(
        self, field: Field, x: Tensor, t: Tensor, s: Tensor, state: Any, noise: Noise | None
    ) -> Step:
        path = field.path
        (a_t, b_t), (a_s, b_s) = path.row("x_t", t), path.row("x_t", s)
        finite = a_t > 0 and b_s > 0
        if finite:
            m = path.time_of_logsnr((path.logsnr(t) + path.logsnr(s)) / 2)
        else:
            m = path.time_of_r((path.r(t) + path.r(s)) / 2)
        inner = ddim(path, x, t, m, field.predict(x, t, "x"))
        x_hat = field.predict(inner, m, "x")
        if finite:
            eps = path.convert(x_hat, inner, m, "x", "eps")
            return a_s / a_t * x + (b_s - a_s * b_t / a_t) * eps, None
        straight = path.convert(x_hat, inner, m, "x", "straight")
        z = x / (a_t + b_t) + (path.r(s) - path.r(t)) * straight
        return (a_s + b_s) * z, None


class Node(NamedTuple):
    """A point that the polynomial goes through."""

    z: float  # the polynomial's variable there
    value: Tensor  # the prediction there


class State(NamedTuple):
    """The memory from one step to the next."""

    history: tuple[Node, ...] = ()
    rest: int | None = None  # the number of steps to come, if it bounds the order
    last: tuple[Tensor, Tensor, list[Node]] | None = None  # the last step's x_t, t and nodes


class Multistep(Solver):
    """x_s from the polynomial through the predictions at the last `order` times.

    With lower_order_final the order is at most the number of steps left, which is safer with few
    steps. The Runge-Kutta solver `start` takes the first order - 1 steps; null takes lower orders.
    """

    order: int
    asks: Kind = "x"
    corrector = False

    def __init__(
        self, order: int, lower_order_final: bool, start: RungeKutta | None = None
    ) -> None:
        if order not in (1, 2, 3):
            raise FmdiffError(f"solver.order={order}: choose 1, 2 or 3")
        if start is not None and not isinstance(start, RungeKutta):
            raise FmdiffError(
                f"solver.start={type(start).__name__}: choose a Runge-Kutta solver or null"
            )
        self.order, self.lower_order_final, self.start = order, lower_order_final, start

    def nfe(self, steps: int) -> int:
        first = min(steps, self.order - 1) if self.start else 0
        return steps - first + (self.start.nfe(first) if self.start else 0)

    def begin(self, times: Tensor, jump: bool = False) -> State:
        """The number of steps along times (S+1,), a jump included, if it bounds the order."""
        return State(rest=len(times) - 1 + jump if self.lower_order_final else None)

    def step(
        self,
        field: Field,
        x: Tensor,
        t: Tensor,
        s: Tensor,
        state: State | None,
        noise: Noise | None,
    ) -> Step:
        history, rest, last = state or State()
        path, after = field.path, None if rest is None else rest - 1
        z_t, z_s = self.variable(path, t), self.variable(path, s)
        if self.start and len(history) < self.order - 1:
            first = Recorder(field)
            ahead, _ = self.start.step(first, x, t, s, None, noise)
            x_hat = path.convert(first.slope, x, t, "v", "x")
            node = Node(z_t, self.value(path, x_hat, x, t))
            return ahead, State((*history, node), after)
        x_hat = field.predict(x, t, "x")
        node = Node(z_t, self.value(path, x_hat, x, t))
        if self.corrector and last:
            before, since, used = last
            x = self.advance(path, before, since, t, used[-1].z, z_t, [*used, node])
        history = (*history, node)[-self.order :]
        order = self.order if rest is None else min(self.order, rest)
        nodes = [node]
        if math.isfinite(z_t) and math.isfinite(z_s):
            nodes = [n for n in history if math.isfinite(n.z)][-order:]
        if len(nodes) == 1:
            ahead = ddim(path, x, t, s, x_hat)
        else:
            ahead = self.advance(path, x, t, s, z_t, z_s, nodes)
        return ahead, State(history, after, (x, t, nodes))

    def variable(self, path: Path, t: Tensor) -> float:
        """The polynomial's variable at time t."""
        return log_ratio(path, t)

    def value(self, path: Path, x_hat: Tensor, x: Tensor, t: Tensor) -> Tensor:
        """The prediction that the polynomial goes through."""
        return x_hat

    def advance(
        self, path: Path, x: Tensor, t: Tensor, s: Tensor, lo: float, hi: float, nodes: list[Node]
    ) -> Tensor:
        """x_s from x_t = x and the polynomial in [lo, hi] through two or more nodes."""
        raise NotImplementedError


class DPMpp(Multistep):
    """DPM-Solver++ 2M and 3M (Lu et al. 2022b, arXiv:2211.01095): the data form in lam.

    x_s = (beta_s / beta_t) x_t + alpha_s sum_j w_j x_hat_j, with h = lam_s - lam_t and w_j from
    the moments M_k(h). With two known values the first moment is (1 - exp(-h))/2, as in the paper
    (algorithm 2). The third order uses the full polynomial. The common code for 3M halves its
    second derivative, which leaves an error of order 2.
    """

    def __init__(
        self, order: int, lower_order_final: bool, start: RungeKutta | None = None
    ) -> None:
        super().__init__(order, lower_order_final, start)
        self.first = VARIANTS["bh2"]

    def advance(
        self, path: Path, x: Tensor, t: Tensor, s: Tensor, lo: float, hi: float, nodes: list[Node]
    ) -> Tensor:
        m = moments(hi - lo, len(nodes))
        if len(nodes) == 2:
            m[1] = self.first(hi - lo) / 2
        w = weights([n.z for n in nodes], lo, hi, m)
        mean = sum(c * n.value for c, n in zip(w, nodes, strict=True))
        return path.beta(s) / path.beta(t) * x + path.alpha(s) * mean


class UniPC(DPMpp):
    """UniPC (Zhao et al. 2023, arXiv:2302.04867): a corrector for DPM-Solver++ that costs nothing.

    The next step evaluates x_hat at the predicted x_s. It then redoes the last step with the
    polynomial through that value too, which raises the order by one. `variant` is B(h) = h (bh1)
    or 1 - exp(-h) (bh2). With two known values the first moment is B(h) / 2; with more values B(h)
    cancels.
    """

    def __init__(
        self,
        order: int,
        corrector: bool,
        variant: str,
        lower_order_final: bool,
        start: RungeKutta | None = None,
    ) -> None:
        super().__init__(order, lower_order_final, start)
        if variant not in VARIANTS:
            raise FmdiffError(f"solver.variant={variant}: {nearest(variant, VARIANTS)}")
        self.corrector, self.variant, self.first = corrector, variant, VARIANTS[variant]


class DEIS(Multistep):
    """DEIS (Zhang & Chen 2023, arXiv:2204.13902): exponential Adams-Bashforth in the noise form.

    x_s = (alpha_s / alpha_t) x_t + alpha_s sum_j w_j eps_hat_j. Each w_j is the integral over rho
    of a Lagrange polynomial in `polynomial`: log_rho (= -lam) or rho (the paper's rhoAB).
    """

    def __init__(
        self, order: int, polynomial: str, lower_order_final: bool, start: RungeKutta | None = None
    ) -> None:
        super().__init__(order, lower_order_final, start)
        if polynomial not in ("log_rho", "rho"):
            choices = nearest(polynomial, ("log_rho", "rho"))
            raise FmdiffError(f"solver.polynomial={polynomial}: {choices}")
        self.polynomial = polynomial

    def variable(self, path: Path, t: Tensor) -> float:
        if self.polynomial == "rho":
            return (path.beta(t) / path.alpha(t)).item()
        return log_ratio(path, t)

    def value(self, path: Path, x_hat: Tensor, x: Tensor, t: Tensor) -> Tensor:
        return path.convert(x_hat, x, t, "x", "eps")

    def advance(
        self, path: Path, x: Tensor, t: Tensor, s: Tensor, lo: float, hi: float, nodes: list[Node]
    ) -> Tensor:
        if self.polynomial == "rho":
            m = [(hi - lo) / (k + 1) for k in range(len(nodes))]
        else:
            m = [math.exp(-hi) * c for c in moments(lo - hi, len(nodes))]
        w = weights([n.z for n in nodes], lo, hi, m)
        total = sum(c * n.value for c, n in zip(w, nodes, strict=True))
        return path.alpha(s) * (x / path.alpha(t) + total)
