"""Laws of the training time t in [0, 1].

A law is a density p(t) with its inverse CDF: t = quantile(u) for uniform u. As everywhere, t = 0
is noise and t = 1 is data. Papers with the opposite time have the mirrored law; docstrings tell
where it differs. A new law is a dataclass with `density` and a YAML in configs/time.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, TypeVar

import torch
from torch import Tensor

from fmdiff.errors import FmdiffError
from fmdiff.path import CondOT, Path

MOST = 10**6  # atoms of a discrete law
Time = TypeVar("Time", Tensor, float)


def also_of_floats(density: Callable[[Any, Tensor], Tensor]) -> Callable[[Any, Time], Time]:
    """Let a density of tensors also take a float and return a float."""

    def either(self: Any, t: Time) -> Time:
        if isinstance(t, Tensor):
            return density(self, t)
        return density(self, torch.tensor(t, dtype=torch.float64)).item()

    # a docstring is inherited by name
    either.__name__, either.__qualname__ = density.__name__, density.__qualname__
    return either


@dataclass(kw_only=True)
class Law(ABC):
    """A law of t on [0, 1]. With `stratified`, draw i of n takes u from [i/n, (i+1)/n).

    To write your own, derive a dataclass from this class and define `density`. A batch of
    stratified draws follows the same law as a whole, and its mean varies far less (as in Kingma
    et al. 2021, arXiv:2107.00630, but each draw has its own offset).
    Raises FmdiffError for a key of the wrong type or range.
    """

    stratified: bool
    path: Path = field(default_factory=CondOT)

    @property
    def atoms(self) -> Tensor | None:
        """The times (S,) float64, increasing, if they are finitely many; None with a density."""
        return None

    def __post_init__(self) -> None:
        if not isinstance(self.stratified, bool):
            raise FmdiffError(f"time.stratified={self.stratified} must be true or false")

    def require(
        self,
        name: str,
        allowed: str = "a finite number",
        test: Callable[[Any], bool] = lambda value: True,
    ) -> None:
        """Raises FmdiffError unless the key `name` is a finite number that passes the test."""
        value = getattr(self, name)
        number = isinstance(value, int | float) and not isinstance(value, bool)
        if not number or not math.isfinite(value) or not test(value):
            raise FmdiffError(f"time.{name}={value} must be {allowed}")

    def __call__(self, n: int, generator: torch.Generator) -> Tensor:
        """(n,) float32 draws in [0, 1], on the generator's device."""
        u = torch.rand(n, generator=generator, device=generator.device).double()
        if self.stratified:
            u = (torch.arange(n, device=u.device) + u) / n
        return self.quantile(u).float()

    @abstractmethod
    def density(self, t: Time) -> Time:
        """p(t) for t in (0, 1), a tensor of any shape or a float."""

    def quantile(self, u: Tensor) -> Tensor:
        """The inverse CDF at u (any shape) in [0, 1], by default from a table of the density."""
        z, below = self._table = [c.to(u.device) for c in self._table]
        p = u.double().contiguous()
        i = torch.searchsorted(below, p).clamp(1, len(below) - 1)
        part = (p - below[i - 1]) / (below[i] - below[i - 1])
        return torch.sigmoid(z[i - 1] + part.clamp(0, 1) * (z[i] - z[i - 1])).to(u.dtype)

    @cached_property
    def _table(self) -> list[Tensor]:
        """z and P(t <= sigmoid(z)), on the grid of z at which float64 tells t from 0 and 1.

        dP/dz = p(t) t (1 - t) falls exponentially at both ends even if p itself is infinite there.
        """
        z = torch.linspace(-36, 36, 36_001, dtype=torch.float64)
        t = torch.sigmoid(z)
        below = torch.cumulative_trapezoid(self.density(t) * t * torch.sigmoid(-z), z)
        below = torch.cat([below.new_zeros(1), below]) / below[-1]
        rising = torch.cat([below.diff() > 0, torch.tensor([True])])
        return [z[rising], below[rising]]


class Uniform(Law):
    """p(t) = 1."""

    @also_of_floats
    def density(self, t: Tensor) -> Tensor:
        return torch.ones_like(t)

    def quantile(self, u: Tensor) -> Tensor:
        return u


@dataclass(kw_only=True)
class LogitNormal(Law):
    """t = sigmoid(mean + std z), z standard normal (Esser et al. 2024, arXiv:2403.03206).

    The paper's mean is -mean here. A negative mean draws more times near noise.
    """

    mean: float
    std: float

    def __post_init__(self) -> None:
        super().__post_init__()
        self.require("mean")
        self.require("std", "a number > 0", lambda v: v > 0)

    @also_of_floats
    def density(self, t: Tensor) -> Tensor:
        z = (torch.logit(t) - self.mean) / self.std
        return torch.exp(-z * z / 2) / (math.sqrt(2 * math.pi) * self.std * t * (1 - t))

    def quantile(self, u: Tensor) -> Tensor:
        z = torch.special.ndtri(u.double())
        return torch.sigmoid(self.mean + self.std * z).to(u.dtype)


@dataclass(kw_only=True)
class LogNormal(LogitNormal):
    r"""ln(beta / alpha) ~ N(mean, std^2) on any path (EDM, arXiv:2206.00364, table 1).

    The law is truncated to the path's noise levels on [0, 1]. With z = (ln(beta/alpha) - mean) /
    std, and Z the normal mass between the path's ends,

        p(t) = N(z; 0, 1) / (std Z) (alpha' / alpha - beta' / beta).

    Raises FmdiffError when the path has none of these noise levels.
    """

    def __post_init__(self) -> None:
        super().__post_init__()
        ends = torch.tensor([1.0, 0.0], dtype=torch.float64)
        low, high = self._z(ends).tolist()
        # an interval in the right tail of the normal is mirrored, so that no digits are lost
        self.sign = -1 if low + high > 0 else 1
        # log_ndtr, because ndtr is 0 below -8.3
        z = self._z(ends).mul(self.sign).sort().values
        self.below, up_to = torch.special.log_ndtr(z).exp().tolist()
        self.mass: float = up_to - self.below
        if self.mass <= 0:
            levels = (self.std * z + self.mean for z in (low, high))
            raise FmdiffError(
                f"time.mean={self.mean} with time.std={self.std} is out of this path's ln(beta / "
                "alpha), {:.3g} to {:.3g}; choose a time.mean between them".format(*levels)
            )

    def _z(self, t: Tensor) -> Tensor:
        return (-self.path.logsnr(t) / 2 - self.mean) / self.std

    @also_of_floats
    def density(self, t: Tensor) -> Tensor:
        a, b, path = self.path.alpha(t), self.path.beta(t), self.path
        rate: Tensor = path.d_alpha(t) / a - path.d_beta(t) / b
        normal = torch.exp(-(self._z(t) ** 2) / 2) / math.sqrt(2 * math.pi)
        return normal * rate / (self.std * self.mass)

    def quantile(self, u: Tensor) -> Tensor:
        p = u.double() if self.sign < 0 else 1 - u.double()  # noise falls as t grows
        z = self.sign * torch.special.ndtri(self.below + p * self.mass)
        logsnr = -2 * (self.mean + self.std * z)
        return self.path.time_of_logsnr(logsnr).clamp(0, 1).to(u.dtype)


class Cosmap(Law):
    """t = tan(pi u / 2) / (tan(pi u / 2) + 1): uniform on the Cosine path, in straight time.

    p(t) = 2 / (pi - 2 pi t + 2 pi t^2) is symmetric (Esser et al. 2024, section 3.1).
    """

    @also_of_floats
    def density(self, t: Tensor) -> Tensor:
        return 2 / (math.pi * (1 - 2 * t * (1 - t)))

    def quantile(self, u: Tensor) -> Tensor:
        a, b = torch.sin(math.pi / 2 * u), torch.sin(math.pi / 2 * (1 - u))
        return a / (a + b)


@dataclass(kw_only=True)
class Mode(Law):
    """t = u + scale (u - sin^2(pi u / 2)): more middle for scale > 0, more ends for scale < 0.

    It is symmetric (Esser et al. 2024, section 3.1), and increasing for scale in [-1, 2/(pi-2)].
    p(t) = 1 / (1 + scale - scale pi/2 sin(pi u)) at the u of t. scale = -1 is the arcsine law.
    """

    scale: float

    def __post_init__(self) -> None:
        super().__post_init__()
        top = 2 / (math.pi - 2)
        allowed = f"a number from -1 to 2/(pi-2) = {top:.4f}"
        self.require("scale", allowed, lambda v: -1 <= v <= top)

    @also_of_floats
    def density(self, t: Tensor) -> Tensor:
        low, high = torch.zeros_like(t), torch.ones_like(t)
        for _ in range(60):
            u = (low + high) / 2
            before = self.quantile(u) < t
            low, high = torch.where(before, u, low), torch.where(before, high, u)
        return 1 / (1 + self.scale - self.scale * math.pi / 2 * torch.sin(math.pi * low))

    def quantile(self, u: Tensor) -> Tensor:
        return u + self.scale * (u - torch.sin(math.pi / 2 * u) ** 2)


@dataclass(kw_only=True)
class UShaped(Law):
    """p(t) = a cosh(a (t - 1/2)) / (2 sinh(a/2)), which favours the ends over the middle.

    t = 1/2 + asinh((2u - 1) sinh(a/2)) / a (Lee et al. 2024, arXiv:2405.20320).
    """

    a: float

    def __post_init__(self) -> None:
        super().__post_init__()
        self.require("a", "a number > 0 and <= 100", lambda v: 0 < v <= 100)

    @also_of_floats
    def density(self, t: Tensor) -> Tensor:
        return self.a * torch.cosh(self.a * (t - 0.5)) / (2 * math.sinh(self.a / 2))

    def quantile(self, u: Tensor) -> Tensor:
        return 0.5 + torch.asinh((2 * u - 1) * math.sinh(self.a / 2)) / self.a


@dataclass(kw_only=True)
class Beta(Law):
    """p(t) = t^(a-1) (1-t)^(b-1) / B(a, b). a < b draws more times near noise."""

    a: float
    b: float

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("a", "b"):  # below 1/2, float32 cannot tell many draws from an end
            self.require(name, "a number >= 0.5", lambda v: v >= 0.5)

    @also_of_floats
    def density(self, t: Tensor) -> Tensor:
        log_b = math.lgamma(self.a) + math.lgamma(self.b) - math.lgamma(self.a + self.b)
        return torch.exp((self.a - 1) * t.log() + (self.b - 1) * torch.log1p(-t) - log_b)


@dataclass(kw_only=True)
class Discrete(Law):
    """t = 1 - k / steps, k = 1 ... steps, equally likely: the times of DDPM (arXiv:2006.11239).

    k is the paper's step, its t. The law has atoms of mass 1 / steps each and no density.
    """

    steps: int

    def __post_init__(self) -> None:
        super().__post_init__()
        whole = f"an integer from 1 to {MOST}"
        self.require("steps", whole, lambda v: isinstance(v, int) and 1 <= v <= MOST)

    @property
    def atoms(self) -> Tensor:
        return torch.arange(self.steps, dtype=torch.float64) / self.steps

    def density(self, t: Time) -> Time:
        raise FmdiffError(f"time=discrete has {self.steps} atoms of equal mass and no density")

    def quantile(self, u: Tensor) -> Tensor:
        return (u * self.steps).floor().clamp(max=self.steps - 1) / self.steps
