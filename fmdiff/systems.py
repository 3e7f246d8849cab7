"""The textbook systems of `fmdiff simulate`: dx = u(x, t) dt, with or without noise, from x0.

A system is called like a field, `system(x, t) -> u` for x (B, d) float64 and t of shape () or
(B,), so every solver and the one loop accept it.
"""

import math
from collections.abc import Sequence
from itertools import pairwise
from typing import Any, TypeGuard

import torch
from torch import Tensor

from fmdiff.build import named
from fmdiff.errors import FmdiffError
from fmdiff.exact import exact
from fmdiff.field import Field
from fmdiff.formula import Formula
from fmdiff.integration import integrate
from fmdiff.path import CondOT, Kind
from fmdiff.randomness import noise
from fmdiff.solvers.runge_kutta import RK4
from fmdiff.solvers.solver import Noise, Solver, Step

REFERENCE = 1000  # the least number of Runge-Kutta steps if no exact flow is known
Start = float | Sequence[float] | Sequence[Sequence[float]] | None


class System(Field):
    """dx = u(x, t) dt on [0, t_end] from the state x0, a number or d numbers, or from several.

    `origins` (m, d) holds the starts, and `origin` (d,) the first. Both are None if the start is
    random.

    Raises FmdiffError for an x0 of another kind or dimension.
    """

    dimension: int = 1  # d
    noisy: bool = False  # whether it has a Brownian term
    has_score: bool = False  # whether it is the field of a diffusion, so that SDEs apply too
    steps: int | None = None  # the only number of steps it can take, or None for any

    def __init__(self, t_end: float, x0: Start) -> None:
        self.t_end = t_end
        self.origins = None if x0 is None else start_states(x0, self.dimension)
        self.origin = None if self.origins is None else self.origins[0]

    @property
    def count(self) -> int:
        """The number of starts that are given; 1 if the start is random."""
        return 1 if self.origins is None else len(self.origins)

    def predict(self, x_t: Tensor, t: Tensor, kind: Kind, s: Tensor | None = None) -> Tensor:
        """u, whatever the kind, since only a diffusion has other quantities."""
        self.evaluations += len(x_t)
        return self.u(x_t, t)

    def u(self, x: Tensor, t: Tensor) -> Tensor:
        """The velocity (B, d), not counted as an evaluation."""
        raise NotImplementedError

    def solution(self, x: Tensor, t: Tensor) -> Tensor | None:
        """The state (B, d) at time t of the noiseless system that is at x (B, d) at time 0.

        It is None if no formula is known.
        """
        return None

    def starts(self, first: int, stop: int, seed: int) -> Tensor:
        """The states at time 0 of the paths first ... stop - 1: (n, d).

        Several starts take turns: of m starts, path i has start i mod m.
        """
        assert self.origins is not None
        return self.origins[torch.arange(first, stop) % len(self.origins)]


def numbers(value: Any, option: str) -> Tensor:
    """A finite number or a list of them as (d,) float64. Raises FmdiffError otherwise."""
    items = list(value) if _is_list(value) else [value]
    right = [isinstance(v, int | float) and not isinstance(v, bool) for v in items]
    if not items or not all(right) or not all(map(math.isfinite, items)):
        raise FmdiffError(f"{option}={value}: must be a finite number or a list of them")
    return torch.tensor(items, dtype=torch.float64)


def start_states(x0: Start, d: int) -> Tensor:
    """One start or several as (m, d) float64: d numbers, or a list of such lists.

    For d = 1 a start may be a plain number. Raises FmdiffError for another shape.
    """
    items = list(x0) if _is_list(x0) else [x0]
    nested = [_is_list(item) for item in items]
    if any(nested) and not all(nested):
        raise FmdiffError(f"system.x0={x0}: must be numbers, or a list of starts")
    several = bool(items) and (all(nested) or d == 1)
    starts = [numbers(start, "system.x0") for start in (items if several else [x0])]
    for i, start in enumerate(starts, 1):
        if len(start) != d:
            has = f"start {i} has {len(start)}, and " if len(starts) > 1 else ""
            need, like = ("one number", "[1,2]") if d == 1 else (f"{d} numbers", "[[...],[...]]")
            raise FmdiffError(
                f"system.x0={x0}: {has}this system's state is {need}; several starts are a list "
                f"of states, {like}"
            )
    return torch.stack(starts)


def _is_list(value: Any) -> TypeGuard[Sequence[Any]]:
    return isinstance(value, Sequence) and not isinstance(value, str)


def truth(system: System, x: Tensor, times: Tensor) -> Tensor:
    """The noiseless states at times (S+1,) from x (B, d) at times[0] = 0: (S+1, B, d).

    It uses the exact flow, or classical Runge-Kutta steps at least 20 times finer than the times.
    """
    flow = [system.solution(x, t) for t in times]
    if states := [state for state in flow if state is not None]:
        return torch.stack(states)
    fine, states = max(20, -(-REFERENCE // (len(times) - 1))), [x]
    for t, s in pairwise(times):
        grid = t + (s - t) * torch.linspace(0, 1, fine + 1, dtype=torch.float64)
        x = integrate(RK4(), system, x, grid)
        states.append(x)
    return torch.stack(states)


class Linear(System):
    """u = -theta x, with the flow x exp(-theta t)."""

    def __init__(self, t_end: float, theta: float, x0: Start) -> None:
        super().__init__(t_end, x0)
        self.theta = theta

    def u(self, x: Tensor, t: Tensor) -> Tensor:
        return -self.theta * x

    def solution(self, x: Tensor, t: Tensor) -> Tensor:
        return x * torch.exp(-self.theta * t)


class Circular(System):
    """u = omega (-x2, x1). The flow is the rotation by the angle omega t."""

    dimension = 2

    def __init__(self, t_end: float, omega: float, x0: Start) -> None:
        super().__init__(t_end, x0)
        self.omega = omega

    def u(self, x: Tensor, t: Tensor) -> Tensor:
        return self.omega * torch.stack([-x[:, 1], x[:, 0]], 1)

    def solution(self, x: Tensor, t: Tensor) -> Tensor:
        c, s = torch.cos(self.omega * t), torch.sin(self.omega * t)
        return torch.stack([c * x[:, 0] - s * x[:, 1], s * x[:, 0] + c * x[:, 1]], 1)


class Saddle(System):
    """u = (theta x1, -theta x2), with the flow (x1 exp(theta t), x2 exp(-theta t))."""

    dimension = 2

    def __init__(self, t_end: float, theta: float, x0: Start) -> None:
        super().__init__(t_end, x0)
        self.rates = torch.tensor([theta, -theta], dtype=torch.float64)

    def u(self, x: Tensor, t: Tensor) -> Tensor:
        return self.rates * x

    def solution(self, x: Tensor, t: Tensor) -> Tensor:
        return x * torch.exp(self.rates * t)


class Formulas(System):
    """A user's own system: u is one formula of x and t, or d formulas of x1 ... xd and t.

    `exact` gives the solution from x0 as one formula of t, or d of them. Without it the flow is
    unknown. Raises FmdiffError for a text that is no formula, for a wrong number of formulas, and
    if exact(0) is not x0.
    """

    def __init__(
        self,
        t_end: float,
        u: str | list[str],
        x0: Start,
        exact: str | list[str] | None = None,
    ) -> None:
        texts = u if isinstance(u, list) else [u]
        self.dimension = d = len(texts)
        super().__init__(t_end, x0)
        if self.origins is None:
            raise FmdiffError("system.x0= is needed: the state at time 0")
        names = ("x", "t") if not isinstance(u, list) else (*(f"x{i + 1}" for i in range(d)), "t")
        self.formulas = [Formula(text, names, "system.u") for text in texts]
        self.exact: list[Formula] = []
        if exact is not None and len(self.origins) > 1:
            raise FmdiffError(
                f"system.exact={exact} is the solution from one start, and system.x0= gives "
                f"{len(self.origins)}: leave system.exact away"
            )
        if exact is not None:
            texts = exact if isinstance(exact, list) else [exact]
            if len(texts) != d:
                raise FmdiffError(
                    f"system.exact={exact} has {len(texts)} components, the state {d}"
                )
            self.exact = [Formula(text, ("t",), "system.exact") for text in texts]
            at_zero = self._solution(torch.zeros((), dtype=torch.float64))
            if not torch.allclose(at_zero, self.origins[0], rtol=1e-6, atol=1e-9):
                raise FmdiffError(
                    f"system.exact={exact} is {at_zero.tolist()} at t=0, system.x0={x0} is not"
                )

    def u(self, x: Tensor, t: Tensor) -> Tensor:
        return torch.stack([formula(*x.unbind(1), t) for formula in self.formulas], 1)

    def _solution(self, t: Tensor) -> Tensor:
        return torch.stack([formula(t) for formula in self.exact], -1)

    def solution(self, x: Tensor, t: Tensor) -> Tensor | None:
        return self._solution(t).expand_as(x) if self.exact else None


class Velocities(System):
    """One velocity for each of equal steps, set by hand. The flow is their sum times h."""

    def __init__(self, t_end: float, u: float | Sequence[float], x0: Start) -> None:
        super().__init__(t_end, x0)
        self.velocities = numbers(u, "system.u")
        self.steps = len(self.velocities)

    def u(self, x: Tensor, t: Tensor) -> Tensor:
        step = (t * len(self.velocities) / self.t_end + 1e-9).floor().long()
        return torch.zeros_like(x) + self.velocities[
            step.clamp(max=len(self.velocities) - 1)
        ].view(-1, 1)

    def solution(self, x: Tensor, t: Tensor) -> Tensor:
        h = self.t_end / len(self.velocities)
        begins = h * torch.arange(len(self.velocities), dtype=torch.float64)
        return x + (self.velocities * (t - begins).clamp(0, h)).sum()


class OrnsteinUhlenbeck(System):
    """dX = -theta X dt + diffusion dW.

    X is normal at all times, with the mean x0 exp(-theta t) and the covariance
    diffusion^2 (exp(-theta |t - s|) - exp(-theta (t + s))) / (2 theta). For theta > 0 the
    stationary law is N(0, diffusion^2 / (2 theta)) (Uhlenbeck & Ornstein, 1930).
    """

    noisy = True

    def __init__(self, t_end: float, theta: float, diffusion: float, x0: Start) -> None:
        super().__init__(t_end, x0)
        self.theta, self.diffusion = theta, diffusion

    def u(self, x: Tensor, t: Tensor) -> Tensor:
        return -self.theta * x

    def solution(self, x: Tensor, t: Tensor) -> Tensor:
        return x * torch.exp(-self.theta * t)

    def covariance(self, s: Tensor, t: Tensor) -> Tensor:
        """The covariance of the states at times s and t, of broadcastable shapes."""
        if self.theta == 0:
            return self.diffusion**2 * torch.minimum(s, t)
        low, gap = torch.minimum(s, t), (t - s).abs()
        spread = -torch.expm1(-2 * self.theta * low) / (2 * self.theta)
        return self.diffusion**2 * torch.exp(-self.theta * gap) * spread

    def density(self, x: Tensor, t: Tensor) -> Tensor:
        """The density (B,) of the state at time t > 0 at x (B, 1), a mean over the starts."""
        assert self.origins is not None
        var = self.covariance(t, t)
        means = self.solution(self.origins, t).T
        return torch.exp(-((x - means) ** 2) / (2 * var)).mean(1) / (2 * torch.pi * var).sqrt()


class Brownian(OrnsteinUhlenbeck):
    """dX = diffusion dW, with the mean x0 and the covariance diffusion^2 min(s, t)."""

    def __init__(self, t_end: float, diffusion: float, x0: Start) -> None:
        super().__init__(t_end, 0.0, diffusion, x0)


class Additive(Solver):
    """The Euler-Maruyama step x_s = x_t + h u(x_t, t) + g (W_s - W_t) of a noisy system.

    g is the constant `diffusion` of the system.
    """

    stochastic = True

    def step(
        self, field: Field, x: Tensor, t: Tensor, s: Tensor, state: None, noise: Noise | None
    ) -> Step:
        assert isinstance(field, OrnsteinUhlenbeck) and noise is not None
        return x + (s - t) * field(x, t) + field.diffusion * noise(t, s), None


class Mixed(System):
    """The exact marginal field of a data set that is a Gaussian mixture, along CondOT.

    x0 is the start of all paths, or their starts. With None the starts are standard normal, and
    the state at time t has the law p_t. Raises FmdiffError for t_end > 1 and for data that are
    not a mixture.
    """

    has_score = True

    def __init__(self, t_end: float, data: str, x0: Start) -> None:
        source, self.path = named("data", data), CondOT()
        mixture = source.mixture()
        if mixture is None:
            raise FmdiffError(
                f"system.data={data} is no Gaussian mixture, gmm4 and 8gaussians are"
            )
        if t_end > 1:
            raise FmdiffError(f"t_end={t_end}: a mixture is reached at t=1, choose at most 1")
        self.mixture = exact(source, self.path)
        self.weights, self.means, self.covs = (part.double() for part in mixture)
        self.dimension = self.means.shape[1]
        super().__init__(t_end, x0)

    def u(self, x: Tensor, t: Tensor) -> Tensor:
        return self.mixture.predict(x, t, "v")

    def predict(self, x_t: Tensor, t: Tensor, kind: Kind, s: Tensor | None = None) -> Tensor:
        self.evaluations += len(x_t)
        return self.mixture.predict(x_t, t, kind)

    def starts(self, first: int, stop: int, seed: int) -> Tensor:
        if self.origin is not None:
            return super().starts(first, stop, seed)
        return noise(first, stop, self.means.shape[1:], seed, "start").double()

    def moments(self, t: Tensor) -> tuple[Tensor, Tensor]:
        """Mean (d,) and covariance (d, d) of p_t."""
        a, b = self.path.alpha(t), self.path.beta(t)
        w = self.weights / self.weights.sum()
        mean = w @ self.means
        spread = self.means - mean
        cov = torch.einsum("k,kde->de", w, self.covs)
        cov = cov + torch.einsum("k,kd,ke->de", w, spread, spread)
        return a * mean, a**2 * cov + b**2 * torch.eye(len(mean), dtype=torch.float64)

    def density(self, x: Tensor, t: Tensor) -> Tensor:
        """p_t(x): (B,)."""
        return self.mixture.log_prob(x, t).exp()

    def nearest(self, x: Tensor, t: Tensor) -> Tensor:
        """The index (B,) of the component whose mean at time t is nearest to x (B, d)."""
        return torch.cdist(x, self.path.alpha(t) * self.means).argmin(1)
