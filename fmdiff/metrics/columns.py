"""Metrics of the columns of points (N, d): their marginals and their correlations."""

import math
from collections.abc import Mapping, Sequence
from types import MappingProxyType

import numpy as np
import torch
from torch import Tensor

from fmdiff.errors import FmdiffError
from fmdiff.metrics.differences import LISTED, largest
from fmdiff.metrics.metric import Metric

LEVEL = 0.05  # one minus the coverage of the intervals


def column_words(names: Sequence[str], d: int) -> list[str]:
    """The names of d columns for sentences, from 1 if they have none."""
    return [f"{name!r}" for name in names] or [f"column {i + 1}" for i in range(d)]


def ks(samples: Tensor, reference: Tensor, names: Sequence[str] = ()) -> Metric:
    """max over columns of sup_x |F(x) of samples - F(x) of reference| (Kolmogorov, Smirnov).

    samples (n, d), reference (m, d). se is the binomial error at the worst x. The interval takes
    the 95 % quantile of Smirnov's law for equal laws, which is about right for others, for all
    columns at once (Bonferroni). The p-value in extra is that of equal laws, by the same law and
    times the number of columns. names: those of the columns.
    """
    n, m, d = len(samples), len(reference), samples.shape[1]
    rows = [_distance(a, b) for a, b in zip(_sorted(samples), _sorted(reference), strict=True)]
    distances = [row[0] for row in rows]
    worst = int(np.argmax(distances))
    value, first, second = rows[worst]
    unit = math.sqrt(1 / n + 1 / m)
    reach = unit * math.sqrt(-math.log(LEVEL / d / 2) / 2)
    p = min(1.0, d * smirnov(value / unit))
    word = column_words(names, d)[worst]
    note = f"the largest distance is that of {word}, p = {p:.2g} for equal laws"
    each = {"distances": distances} if d <= LISTED else {}
    return Metric(
        value=value,
        n=n,
        se=math.sqrt(first * (1 - first) / n + second * (1 - second) / m),
        interval=(max(value - reach, 0.0), min(value + reach, 1.0)),
        extra={"p": p, "worst": word, "note": note, **each},
    )


def smirnov(x: float) -> float:
    """P(sqrt(n m / (n + m)) sup |F - G| > x) for large sets of one law: 2 sum (-1)^(k-1) e^-2k²x².

    Source: Smirnov, 1948.
    """
    if x < 0.2:  # 1 to the last digit, where the sum converges slowly
        return 1.0
    terms = (-((-1) ** k) * math.exp(-2 * (k * x) ** 2) for k in range(1, 101))
    return min(1.0, 2 * sum(terms))


def _sorted(x: Tensor) -> np.ndarray:
    """The columns (d, n), each in increasing order."""
    return np.sort(x.double().T.numpy(force=True))


def _distance(a: np.ndarray, b: np.ndarray) -> tuple[float, float, float]:
    """sup |F - G| of sorted a (n,) and b (m,), and F and G where it is reached."""
    places = np.concatenate([a, b])
    first, second = (np.searchsorted(s, places, side="right") / len(s) for s in (a, b))
    k = int(np.abs(first - second).argmax())
    return float(abs(first[k] - second[k])), float(first[k]), float(second[k])


def correlation(
    samples: Tensor,
    reference: Tensor,
    names: Sequence[str] = (),
    levels: Mapping[str, Sequence[str]] = MappingProxyType({}),
) -> Metric:
    """max over pairs of columns of |r of samples - r of reference|, r Pearson's correlation.

    samples (n, d), reference (m, d). A column of categories, whose `levels` it holds the numbers
    of, counts as one column of 0 and 1 for each level. names: those of the columns.

    The error of r follows from the influence of each row, z_j z_k - r (z_j^2 + z_k^2) / 2 of
    standardised columns, which assumes no normal law. Columns that are constant in the reference
    have no correlation and are left out.
    Raises FmdiffError for fewer than two columns that vary.
    """
    words = column_words(names, samples.shape[1])
    if levels:
        categories = [levels.get(name, ()) for name in names]
        samples, reference = (_indicators(x, categories) for x in (samples, reference))
        words = [
            f"{word}{f' is {level!r}' if level else ''}"
            for word, parts in zip(words, categories, strict=True)
            for level in (parts or ("",))
        ]
    varies = torch.nonzero(_varying(reference))[:, 0]
    if len(varies) < 2:
        raise FmdiffError("correlation needs two columns that vary, and the data have fewer")
    (first, error), (second, other) = (_correlations(x[:, varies]) for x in (samples, reference))
    j, k = torch.triu_indices(len(varies), len(varies), 1)

    def name(pair: int) -> str:
        return f"{words[varies[j[pair]]]} and {words[varies[k[pair]]]}"

    se = (error + other)[j, k].sqrt()
    return largest(first[j, k], second[j, k], se, len(samples), name)


def _indicators(x: Tensor, categories: Sequence[Sequence[str]]) -> Tensor:
    """The columns of x (n, d); for those of categories, whether they are each of them."""
    parts = [
        torch.nn.functional.one_hot(
            x[:, j].round().long().clamp(0, len(names) - 1), len(names)
        ).double()
        if names
        else x[:, j : j + 1].double()
        for j, names in enumerate(categories)
    ]
    return torch.cat(parts, 1)


def _varying(x: Tensor) -> Tensor:
    """Which columns of x (n, d) are not constant up to rounding: bool (d,)."""
    low, high = x.double().amin(0), x.double().amax(0)
    return high - low > 1e-6 * torch.maximum(low.abs(), high.abs())


def _correlations(x: Tensor) -> tuple[Tensor, Tensor]:
    """The correlations of the columns of x (n, d) and their squared errors, both (d, d).

    A column that does not vary has correlation 0 with all.
    """
    x = x.double()
    centred = x - x.mean(0)
    std = centred.square().mean(0).sqrt()
    z = torch.where(_varying(x), centred / std.clamp(min=1e-300), 0.0)
    r = z.T @ z / len(z)
    half = z.square() / 2
    spread = torch.empty_like(r)
    for k in range(len(r)):  # a column at a time, as all pairs of all rows are too many
        influence = z * z[:, k : k + 1] - r[k] * (half + half[:, k : k + 1])
        spread[k] = influence.square().mean(0)
    return r, spread / (len(z) - 1)
