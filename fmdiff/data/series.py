"""Toy series (1, L) whose autocovariance is known exactly: autoregressive ones and two tones."""

import math
from abc import abstractmethod
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Generator, Tensor

from fmdiff.data.base import Toy


@dataclass(kw_only=True, eq=False)
class Series(Toy):
    """Stationary series x (1, L) of mean 0, with L = `length`.

    Raises FmdiffError for a key of the wrong type or range.
    """

    length: int
    noise: float

    shape = (1, 64)  # type: ignore[assignment]  # that of points in the base class

    def __post_init__(self) -> None:
        self.require("length", int, "an integer >= 2", lambda v: v >= 2)
        self.require("noise", int | float, "a number > 0", lambda v: 0 < v < math.inf)
        self.shape = (1, self.length)
        super().__post_init__()

    @abstractmethod
    def autocovariance(self, lags: Tensor) -> Tensor:
        """E[x_i x_{i + k}] for integers k >= 0, `lags` (n,): (n,) float64, whatever i is."""

    @cached_property
    def moments(self) -> tuple[Tensor | None, float]:
        """No centre, as the mean is 0, and the exact standard deviation."""
        return None, self.autocovariance(torch.zeros(1)).sqrt().item()


@dataclass(kw_only=True, eq=False)
class AR1(Series):
    """x_i = phi x_{i-1} + noise e_i, e_i ~ N(0, 1), begun in its stationary law.

    The autocovariance at lag k is phi^k noise^2 / (1 - phi^2). x is one Gaussian, so its field is
    known exactly, as model=exact.
    """

    phi: float

    def __post_init__(self) -> None:
        self.require("phi", int | float, "a number between -1 and 1", lambda v: -1 < v < 1)
        super().__post_init__()

    def autocovariance(self, lags: Tensor) -> Tensor:
        return self.noise**2 / (1 - self.phi**2) * self.phi ** lags.double()

    def mixture(self) -> tuple[Tensor, Tensor, Tensor]:
        """One Gaussian of mean 0: weights (1,), means (1, L), covariances (1, L, L), float64."""
        places = torch.arange(self.length)
        covariance = self.autocovariance((places[:, None] - places).abs())
        one = torch.ones(1, dtype=torch.float64)
        return one, one.new_zeros(1, self.length), covariance[None]

    def draw(self, n: int, generator: Generator) -> Tensor:
        """n series (n, 1, L) float32.

        sum_j phi^j e_{i-j} is summed in log2 L steps: each doubles the number of its terms.
        """
        x = self.noise * torch.randn(n, 1, self.length, generator=generator, dtype=torch.float64)
        x[..., 0] /= math.sqrt(1 - self.phi**2)
        terms = 1
        while terms < self.length:
            x[..., terms:] += self.phi**terms * x[..., :-terms].clone()
            terms *= 2
        return x.float()


@dataclass(kw_only=True, eq=False)
class TwoTone(Series):
    """x_i = sum_j u_j a_j cos(2 pi f_j i + phase_j) + noise e_i: two tones, and white noise.

    The phases are uniform in (0, 2 pi), the u_j in 1 +- spread, and e_i ~ N(0, 1). `amplitudes`
    are a_1 and a_2 > 0, `frequencies` f_1 and f_2 in cycles per place, in (0, 0.5). The
    autocovariance at lag k is sum_j a_j^2 (1 + spread^2 / 3) / 2 cos(2 pi f_j k), and noise^2 more
    at lag 0.
    """

    frequencies: list[float]
    amplitudes: list[float]
    spread: float

    def __post_init__(self) -> None:
        self._pair("frequencies", "a list of two numbers between 0 and 0.5", 0.5)
        self._pair("amplitudes", "a list of two numbers > 0", math.inf)
        self.require("spread", int | float, "a number from 0 to 1", lambda v: 0 <= v <= 1)
        super().__post_init__()

    def _pair(self, name: str, allowed: str, below: float) -> None:
        def fits(values: list[float]) -> bool:
            return len(values) == 2 and all(
                type(v) in (int, float) and 0 < v < below for v in values
            )

        self.require(name, list, allowed, fits)

    def autocovariance(self, lags: Tensor) -> Tensor:
        lags = lags.double()
        tones = zip(self.amplitudes, self.frequencies, strict=True)
        waves = sum(a**2 / 2 * (2 * math.pi * f * lags).cos() for a, f in tones)
        return (1 + self.spread**2 / 3) * waves + self.noise**2 * (lags == 0)

    def draw(self, n: int, generator: Generator) -> Tensor:
        f, a = (torch.tensor(v, dtype=torch.float64) for v in (self.frequencies, self.amplitudes))
        turns, u = torch.rand(2, n, 1, 2, generator=generator, dtype=torch.float64)
        angles = 2 * math.pi * (f * torch.arange(self.length)[:, None] + turns)  # (n, L, 2)
        loudness = a * (1 + self.spread * (2 * u - 1))
        x = (loudness * angles.cos()).sum(2) + self.noise * torch.randn(
            n, self.length, generator=generator
        )
        return x[:, None].float()
