"""Measures how often the 95 % intervals that fmdiff prints cover the truth.

python scripts/coverage.py [TIMES] [NAME]    prints a table (TIMES: 400; NAME: metrics to measure)

Each row is of TIMES pairs of sets. The truth is known, from a formula or an integral. "below" and
"above" are the shares of intervals that end below the truth or begin above it. The effects range
from none through the size of the noise to many times it.
"""

import math
import sys
from collections.abc import Callable, Iterator
from typing import NamedTuple

import numpy as np
import torch
from scipy.special import gamma, hyp1f1
from scipy.stats import norm
from torch import Tensor

from fmdiff.metrics import distances
from fmdiff.metrics.metric import Metric
from fmdiff.randomness import generator

Draw = Callable[[int, int], Tensor]  # (n, seed) -> (n, d)


class Case(NamedTuple):
    """Samples of one law against a reference of another, and their true distance."""

    law: str
    samples: Draw
    reference: Draw
    truth: float


class Coverage(NamedTuple):
    """Shares of intervals."""

    covered: float
    below: float  # these end below the truth
    above: float  # these begin above the truth


def coverage(
    metric: Callable[[Tensor, Tensor], Metric],
    case: Case,
    n: int,
    times: int,
    m: int | None = None,
) -> Coverage:
    """The coverage of a metric's interval over `times` sets of n samples, m of the reference."""
    below = above = 0
    for i in range(times):
        interval = metric(case.samples(n, 2 * i), case.reference(m or n, 2 * i + 1)).interval
        assert interval is not None
        below += interval[1] < case.truth
        above += interval[0] > case.truth
    return Coverage(1 - (below + above) / times, below / times, above / times)


# --- laws ----------------------------------------------------------------------------------------


def gaussian(d: int, mean: float = 0.0, std: float = 1.0) -> Draw:
    """N(m, std^2 I), |m| = mean."""

    def draw(n: int, seed: int) -> Tensor:
        eps = torch.randn(n, d, generator=generator(seed, "gaussian"))
        return mean / math.sqrt(d) + std * eps

    return draw


def two_modes(weight: float, d: int = 1) -> Draw:
    """Modes of std 1/2 at -2 and 2 on the first axis; the weight is that of the first."""

    def draw(n: int, seed: int) -> Tensor:
        g = generator(seed, "modes")
        x = torch.randn(n, d, generator=g) / 2
        x[:, 0] += torch.where(torch.rand(n, generator=g) < weight, -2.0, 2.0)
        return x

    return draw


def exponential(mean: float) -> Draw:
    """The exponential law on the line."""

    def draw(n: int, seed: int) -> Tensor:
        return -mean * torch.rand(n, 1, generator=generator(seed, "exponential")).clamp(1e-9).log()

    return draw


# --- true distances ------------------------------------------------------------------------------

LINE = np.linspace(-12, 40, 400_001)


def modes_cdf(weight: float) -> np.ndarray:
    return weight * norm.cdf(LINE, -2, 0.5) + (1 - weight) * norm.cdf(LINE, 2, 0.5)


def w2_of_modes(weight: float) -> float:
    """W2 from the weights 1/2 and 1/2, by quantiles. The other dimensions have equal laws."""
    levels = (np.arange(200_000) + 0.5) / 200_000
    first, second = (np.interp(levels, modes_cdf(w), LINE) for w in (weight, 0.5))
    return math.sqrt(np.mean((first - second) ** 2))


def energy_on_the_line(first: np.ndarray, second: np.ndarray) -> float:
    """2 int (F - G)^2."""
    return float(2 * np.trapezoid((first - second) ** 2, LINE))


def energy_of_gaussians(d: int, mean: float, std: float) -> float:
    """By E|N(m, v I)| = sqrt(2 v) Gamma((d+1)/2) / Gamma(d/2) 1F1(-1/2, d/2, -|m|^2 / 2v)."""

    def size(square: float, v: float) -> float:
        ratio = gamma((d + 1) / 2) / gamma(d / 2)
        return math.sqrt(2 * v) * ratio * hyp1f1(-0.5, d / 2, -square / (2 * v))

    return 2 * size(mean**2, 1 + std**2) - size(0, 2) - size(0, 2 * std**2)


def mmd2_of_gaussians(d: int, mean: float, std: float, scale: float) -> float:
    """E k = (c^2/(c^2 + v))^(d/2) exp(-|m|^2 / (2 (c^2 + v))), v the variance of x - y."""

    def average(c: float, v: float, square: float = 0.0) -> float:
        return (c**2 / (c**2 + v)) ** (d / 2) * math.exp(-square / (2 * (c**2 + v)))

    widths = [c * scale for c in distances.BANDWIDTHS]
    own = [average(c, 2) + average(c, 2 * std**2) for c in widths]
    cross = [average(c, 1 + std**2, mean**2) for c in widths]
    return float(np.mean(own) - 2 * np.mean(cross))


EFFECTS = ((0, 1), (0.05, 1), (0.12, 1), (0.2, 1), (0.4, 1), (0, 1.15), (0.7, 1.5))


def of_gaussians(d: int, truth: Callable[[float, float], float]) -> Iterator[Case]:
    for mean, std in EFFECTS:
        law = f"N(0, I) and N({mean:g}, {std:g}^2 I), d={d}"
        yield Case(law, gaussian(d, mean, std), gaussian(d), truth(mean, std))


def of_modes(truth: Callable[[float], float], d: int = 1) -> Iterator[Case]:
    for weight in (0.5, 0.48, 0.45, 0.4, 0.3):
        law = f"two modes, weights {weight:g} and 0.5, d={d}"
        yield Case(law, two_modes(weight, d), two_modes(0.5, d), truth(weight))


def of_exponentials(truth: Callable[[float], float]) -> Iterator[Case]:
    for mean in (1.0, 1.05, 1.1, 1.2, 1.5):
        law = f"exponentials of means {mean:g} and 1"
        yield Case(law, exponential(mean), exponential(1.0), truth(mean))


def cases(name: str) -> Iterator[Case]:
    """The laws for which the true value of a distance is known."""

    def root(mean: float, std: float, d: int) -> float:
        square = mean**2 + d * (std - 1) ** 2
        return math.sqrt(square / (d if name == "sw2" else 1))

    def exponential_cdf(mean: float) -> np.ndarray:
        return np.where(LINE > 0, 1 - np.exp(-np.maximum(LINE, 0) / mean), 0)

    if name in ("sw2", "w2"):
        for d in (1, 2, 5):
            yield from of_gaussians(d, lambda mean, std, d=d: root(mean, std, d))
        yield from of_modes(w2_of_modes)
        if name == "w2":
            yield from of_modes(w2_of_modes, 2)
        yield from of_exponentials(lambda mean: math.sqrt(2) * abs(mean - 1))
    elif name == "energy":
        for d in (1, 2, 5):
            yield from of_gaussians(d, lambda mean, std, d=d: energy_of_gaussians(d, mean, std))
        yield from of_modes(lambda w: energy_on_the_line(modes_cdf(w), modes_cdf(0.5)))
        one = exponential_cdf(1)
        yield from of_exponentials(lambda m: energy_on_the_line(exponential_cdf(m), one))
    else:
        for d in (1, 2, 5):
            scale = 1.2 * math.sqrt(d)
            yield from of_gaussians(
                d, lambda mean, std, d=d, c=scale: mmd2_of_gaussians(d, mean, std, c)
            )


def metric_of(name: str) -> Callable[[Tensor, Tensor], Metric]:
    """The metric of that name. mmd2 has the bandwidths of `cases`."""
    if name == "mmd2":
        return lambda a, b: distances.mmd2(a, b, scale=1.2 * math.sqrt(a.shape[1]))
    metric: Callable[[Tensor, Tensor], Metric] = getattr(distances, name)
    return metric


def main(times: int, names: list[str]) -> None:
    for name in names:
        for case in cases(name):
            share = coverage(metric_of(name), case, 200, times)
            print(
                f"{name:<7} {case.law:<44} {case.truth:8.4f}  {share.covered:6.1%} covered, "
                f"{share.below:5.1%} below, {share.above:5.1%} above",
                flush=True,
            )


if __name__ == "__main__":
    torch.set_num_threads(1)
    main(int((sys.argv[1:] or ["400"])[0]), sys.argv[2:] or ["sw2", "w2", "mmd2", "energy"])
