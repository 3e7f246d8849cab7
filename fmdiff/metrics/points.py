"""Metrics of samples that are no images: points, series, and arrays of other numbers."""

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import lru_cache, partial
from statistics import NormalDist
from typing import Any, NamedTuple

import torch
from torch import Tensor

from fmdiff.data.base import Data
from fmdiff.errors import FmdiffError, nearest
from fmdiff.exact import exact
from fmdiff.metrics import distances
from fmdiff.metrics.columns import correlation, ks
from fmdiff.metrics.metric import Metric, Metrics, impossible, normal_interval, wilson
from fmdiff.metrics.series import autocovariance, features, spectrum
from fmdiff.metrics.subset import part, thin
from fmdiff.path import CondOT
from fmdiff.randomness import key

KINDS = {1: "points", 2: "series", 3: "arrays"}  # by the axes of a sample
DISTANCES = ("sw2", "w2", "mmd2", "energy")  # between points, or features of series and arrays
USUAL = {2: ("sw2", "energy", "autocovariance", "spectrum"), 3: ("sw2", "energy")}  # by axes
ROWS = 1024  # points whose component densities are in memory at a time
FAR = 1e6  # a point this many times as far as half of the others decides what distances say


def nll(samples: Tensor, reference: Tensor, data: Data) -> Metric:
    """mean -log p(sample), p the exact density of `data`, a Gaussian mixture; sets (n, d).

    For exact samples this is the entropy of p, which mean -log p(reference) estimates beside it.
    A value below the entropy is not better: such samples crowd where p is large.
    """
    field, one = exact(data, CondOT()), torch.ones((), dtype=torch.float64)
    values, entropies = (
        -torch.cat([field.log_prob(part.double(), one) for part in x.split(ROWS)])
        for x in (samples, reference)
    )
    value, entropy = values.mean().item(), entropies.mean().item()
    se, entropy_se = _standard_error(values), _standard_error(entropies)
    difference = {"difference": value - entropy, "difference_se": math.hypot(se, entropy_se)}
    return Metric(
        value=value,
        n=len(samples),
        se=se,
        interval=normal_interval(value, se),
        extra={"entropy": entropy, "entropy_se": entropy_se, **difference},
    )


def _standard_error(values: Tensor) -> float:
    return values.std().item() / math.sqrt(len(values))


def modes(samples: Tensor, reference: Tensor, data: Data) -> Metric:
    """max_k |share_k - w_k|, share_k = mean over samples of the posterior of component k.

    For exact samples the expectation of share_k is w_k, even if components overlap. se is the
    binomial standard error of the worst component. The interval of the maximum follows from
    Wilson's intervals of all components (Bonferroni). `reference` is not used.
    """
    mixture = data.mixture()
    assert mixture is not None  # `measures` offers it for mixtures only
    weights, means, covs = (c[mixture[0] > 0] for c in mixture)
    components = torch.distributions.MultivariateNormal(means, covs)
    posterior = torch.cat(
        [
            (components.log_prob(part.double()[:, None]) + weights.log()).softmax(-1)
            for part in samples.split(ROWS)
        ]
    )
    n, shares = len(samples), posterior.mean(0).clamp(0, 1)
    errors = (shares - weights).abs()
    worst = errors.argmax()
    z = NormalDist().inv_cdf(1 - 0.025 / len(weights))
    bounds = [wilson(share, n, z) for share in shares.tolist()]
    # the bounds of |share_k - w_k|, from those of share_k
    low = [max(lo - w, w - hi, 0.0) for (lo, hi), w in zip(bounds, weights.tolist(), strict=True)]
    high = [max(hi - w, w - lo) for (lo, hi), w in zip(bounds, weights.tolist(), strict=True)]
    return Metric(
        value=errors[worst].item(),
        n=n,
        se=_binomial(shares[worst].item(), n),
        interval=(max(low), max(high)),
        reference="the weights of the mixture",
        extra={"shares": shares.tolist(), "weights": weights.tolist()},
    )


def _binomial(share: float, n: int) -> float:
    return math.sqrt(share * (1 - share) / n)


def off_support(samples: Tensor, reference: Tensor, data: Data) -> Metric:
    """The share of samples where there are (almost) no real points, by data.off_support."""
    # within what float32 can square, as data sets of users are written for float32
    outside, outside_real = (
        data.off_support(x.clamp(-1e18, 1e18).float()) for x in (samples, reference)
    )
    assert outside is not None and outside_real is not None  # `measures` checks this
    share, real = outside.double().mean().item(), outside_real.double().mean().item()
    n = len(samples)
    return Metric(
        value=share,
        n=n,
        se=_binomial(share, n),
        interval=wilson(share, n),
        extra={"real": real},
    )


class Measure(NamedTuple):
    """A metric, and how its noise floor is measured."""

    metric: Callable[[Tensor, Tensor], Metric]  # called with samples and reference
    value: Callable[[Tensor, Tensor], float]  # the value alone, or its size if it is unbiased
    pairs: int  # pairs of fresh sets for the floor


def measures(data: Data | None, shape: Sequence[int] = (2,)) -> dict[str, Measure]:
    """The metrics that a data set allows, by name. None stands for samples of a file.

    Distances compare `features` of `data.comparable` samples, other metrics the samples as they
    are. shape: that of samples of a file.
    """
    shape = shape if data is None else data.outer

    def view(x: Tensor) -> Tensor:
        return features(x if data is None else data.comparable(x))

    def seen(distance: Callable[[Tensor, Tensor], Any]) -> Callable[[Tensor, Tensor], Any]:
        return lambda a, b: distance(view(a), view(b))

    by_name = {
        "sw2": Measure(seen(distances.sw2), seen(distances.sliced_wasserstein2), 32),
        "w2": Measure(seen(distances.w2), seen(distances.wasserstein2), 8),
    }
    for kernel in (distances.mmd2, distances.energy):
        by_name[kernel.__name__] = Measure(seen(kernel), seen(partial(_size, kernel)), 8)
    for metric, pairs in _own(data, shape):
        by_name[metric.func.__name__] = Measure(metric, partial(_value, metric), pairs)
    return by_name


def _own(data: Data | None, shape: Sequence[int]) -> list[tuple[partial[Metric], int]]:
    """The metrics other than distances, and the number of pairs for the floor of each."""
    own: list[tuple[partial[Metric], int]] = []
    if data is not None and data.mixture() is not None:
        own += [(partial(nll, data=data), 32), (partial(modes, data=data), 32)]
    if data is not None and data.off_support(torch.zeros(1, *shape)) is not None:
        own.append((partial(off_support, data=data), 32))
    names = () if data is None else data.column_names
    if len(shape) == 1:
        own.append((partial(ks, names=names), 32))
    if len(shape) == 1 and shape[0] > 1:
        levels = {} if data is None or data.codec is None else data.codec.levels
        own.append((partial(correlation, names=names, levels=levels), 8))
    if len(shape) == 2:
        own += [(partial(autocovariance), 32), (partial(spectrum), 32)]
    return own


def usual(data: Data | None, shape: Sequence[int]) -> list[str]:
    """The metrics for metrics=null. Those of columns are for tables, whose columns have names."""
    axes = len(shape if data is None else data.outer)
    if axes > 1:
        return list(USUAL[axes])
    table = data is not None and bool(data.column_names)
    return [name for name in measures(data, shape) if table or name not in ("ks", "correlation")]


def measures_of(
    names: Sequence[str], data: Data | None, shape: Sequence[int] = (2,)
) -> dict[str, Measure]:
    """The `measures` of these names. Raises FmdiffError for one that `data` does not allow."""
    by_name = measures(data, shape)
    for name in names:
        if name not in by_name:
            of = (
                f"{KINDS[len(shape)]} of a file" if data is None else f"{type(data).__name__} data"
            )
            raise FmdiffError(f"metrics=[{name}] cannot be had for {of}; {nearest(name, by_name)}")
    return {name: by_name[name] for name in names}


def _value(metric: Callable[[Tensor, Tensor], Metric], a: Tensor, b: Tensor) -> float:
    return metric(a, b).value


def _size(metric: Callable[[Tensor, Tensor], Metric], a: Tensor, b: Tensor) -> float:
    return abs(metric(a, b).value)


@lru_cache(maxsize=64)
def floor(name: str, data: Data, n: int) -> float:
    """The median of a metric between pairs of fresh sets of n points of `data`.

    There are 32 pairs, but 8 for w2, mmd2, energy and correlation. mmd2 and energy may be
    negative, so the median of their size is taken. The sets of a pair of data of a finite number
    share no sample; see `floor_size`.
    """
    measure, finite = measures(data)[name], data.references is not None

    def draw(n: int, seed: int) -> Tensor:
        if not finite:
            return data.sample(0, n, key(seed, "floor"))[0]
        half = seed % 2 * n
        return data.sample(half, half + n, key(seed // 2, "floor"))[0]

    return distances.noise_floor(draw, n, measure.pairs, measure.value)


def floor_size(data: Data, n: int) -> int:
    """The size of the sets of `floor` beside a metric of n: at most half of the data."""
    return n if data.references is None else min(n, data.references // 2)


def _with_floor(name: str, metric: Metric, data: Data, n: int) -> Metric:
    """The metric with its floor, and a note if that is of smaller sets."""
    size = floor_size(data, n)
    if size < 4:
        return metric
    extra = {} if size == n else {"floor_n": size}
    return replace(metric, floor=floor(name, data, size), extra=metric.extra | extra)


def point_metrics(
    names: Sequence[str],
    samples: Tensor,
    data: Data | None,
    n: int,
    seed: int = 0,
    points: Tensor | None = None,
    reasons: list[str] | None = None,
) -> Metrics:
    """The metrics `names` of n random rows of `samples` (N, ...), against n of `data`.

    Fresh samples of data are a function of (seed, data, n), and model=data does not draw them. If
    data is None, n random rows of `points` (M, ...) take their place, without a floor. Rows are
    chosen as by `subset.thin`, so the order of neither set matters. With `reasons` a metric that
    cannot be computed is left out, and the reason is added to them.
    Raises FmdiffError for a name that `data` does not allow, for n < 4 or fewer than n samples,
    and for samples that are not finite.
    """
    if data is not None:
        shape, points = data.outer, data.sample(0, n, key(seed, "metrics"))[0]
    else:
        assert points is not None
        shape = tuple(points.shape[1:])
    by_name = measures_of(names, data, shape)
    if not 4 <= n <= min(len(samples), len(points)):
        raise FmdiffError(
            f"n={n} must be from 4 to the number of samples, {len(samples)}"
            + (f", and of reference points, {len(points)}" if data is None else "")
        )
    if samples.shape[1:] != shape:
        raise FmdiffError(f"samples of shape {tuple(samples.shape[1:])} are not of data {shape}")
    broken = int((~samples.isfinite()).flatten(1).any(1).sum())
    if broken:
        raise FmdiffError(
            f"metrics={list(names)}: {broken} of n={len(samples)} samples are not finite"
        )
    source = f"{KINDS[len(shape)]} of a file"
    total = len(points)
    if data is not None:
        fresh = "" if data.references else "fresh "
        source = f"{fresh}{KINDS[len(shape)]} of {type(data).__name__}, seed {seed}"
        total = data.references or total
    x, y = thin(samples.detach().cpu(), points, n)
    metrics = Metrics()
    for name in names:
        with impossible(name, reasons):
            metric = by_name[name].metric(x, y)
            if data is not None:
                metric = _with_floor(name, metric, data, n)
            against = f"{part(metric.n, total)} {source}"
            metrics[name] = replace(metric, reference=metric.reference or against)
    return metrics


def outlier(x: Tensor, name: str) -> list[str]:
    """A note about the row of x (n, ...) farthest from the median, if it decides distances.

    It does if it is a million times as far as half of the rows that differ from the median.
    """
    x = x.flatten(1).double()
    sizes = (x - x.median(0).values).abs().amax(1)
    others, row = sizes[sizes > 0], int(sizes.argmax())
    if not len(others) or sizes[row] <= FAR * others.median():
        return []
    return [
        f"{name}: row {row} (the first is row 0) is {sizes[row]:.3g} from the median of the set, "
        f"and half of the others are within {others.median():.3g}: it decides the distances"
    ]
