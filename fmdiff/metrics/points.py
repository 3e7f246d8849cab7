"""Metrics of samples of a point data set, and of all of them at once."""

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import lru_cache, partial
from statistics import NormalDist
from typing import NamedTuple

import torch
from torch import Tensor

from fmdiff.errors import FmdiffError, nearest
from fmdiff.exact import exact
from fmdiff.metrics import distances
from fmdiff.metrics.metric import Metric, normal_interval, wilson
from fmdiff.path import CondOT
from fmdiff.randomness import key

ROWS = 1024  # points whose densities under all components are held at a time


def nll(samples: Tensor, reference: Tensor, data) -> Metric:
    """mean -log p(sample), p the exact density of `data`, a Gaussian mixture; sets (n, d).

    For exact samples this is the entropy of p, estimated beside it by mean -log p(reference).
    A value below the entropy is no merit: it says that samples crowd where p is large.
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


def modes(samples: Tensor, reference: Tensor, data) -> Metric:
    """max_k |share_k - w_k|, share_k = mean over samples of the posterior of component k.

    The expectation of share_k is w_k for exact samples even where components overlap. se is the
    binomial standard error of the worst component, the interval the one that Wilson's intervals
    of all components (Bonferroni) leave for the maximum. reference is not used.
    """
    weights, means, covs = (c[data.mixture()[0] > 0] for c in data.mixture())
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
    # of |share_k - w_k|, given bounds of share_k
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


def off_support(samples: Tensor, reference: Tensor, data) -> Metric:
    """The share of samples where (almost) no real point is, as data.off_support says."""
    share = data.off_support(samples).double().mean().item()
    real = data.off_support(reference).double().mean().item()
    n = len(samples)
    return Metric(
        value=share,
        n=n,
        se=_binomial(share, n),
        interval=wilson(share, n),
        extra={"real": real},
    )


class Measure(NamedTuple):
    metric: Callable[[Tensor, Tensor], Metric]  # of samples and reference
    value: Callable[[Tensor, Tensor], float]  # its value alone, or its size if it is unbiased
    pairs: int  # of fresh sets for the floor


def measures(data) -> dict[str, Measure]:
    """The metrics `data` allows, by name."""
    found = {
        "sw2": Measure(distances.sw2, distances.sliced_wasserstein2, 32),
        "w2": Measure(distances.w2, distances.wasserstein2, 8),
    }
    for name in ("mmd2", "energy"):
        kernel = getattr(distances, name)
        found[name] = Measure(kernel, partial(_size, kernel), 8)
    allowed = []
    if data is not None and data.mixture() is not None:
        allowed += [nll, modes]
    if data is not None and data.off_support(torch.zeros(1, *data.shape)) is not None:
        allowed.append(off_support)
    for metric in allowed:
        bound = partial(metric, data=data)
        found[metric.__name__] = Measure(bound, partial(_value, bound), 32)
    return found


def chosen(names: Sequence[str], data) -> dict[str, Measure]:
    """Those of `measures` that are named. Raises FmdiffError for one `data` does not allow."""
    known = measures(data)
    for name in names:
        if name not in known:
            raise FmdiffError(
                f"metrics=[{name}] cannot be had for "
                f"{'points of a file' if data is None else f'{type(data).__name__} data'}; "
                f"{nearest(name, known)}"
            )
    return {name: known[name] for name in names}


def _value(metric: Callable[[Tensor, Tensor], Metric], a: Tensor, b: Tensor) -> float:
    return metric(a, b).value


def _size(metric: Callable[[Tensor, Tensor], Metric], a: Tensor, b: Tensor) -> float:
    return abs(metric(a, b).value)


@lru_cache(maxsize=64)
def floor(name: str, data, n: int) -> float:
    """The median of a metric between pairs of fresh sets of n points of `data`.

    32 pairs, 8 for w2, mmd2 and energy; of the last two, which may be negative, the median size.
    """
    measure = measures(data)[name]

    def draw(n: int, seed: int) -> Tensor:
        return data.sample(0, n, key(seed, "floor"))[0]

    return distances.noise_floor(draw, n, measure.pairs, measure.value)


def point_metrics(
    names: Sequence[str],
    samples: Tensor,
    data,
    n: int,
    seed: int = 0,
    given: Tensor | None = None,
) -> dict[str, Metric]:
    """The metrics `names` of the first n of `samples` (N, d), against n fresh points of `data`.

    The fresh points are a function of (seed, data, n) and no sample of model=data. given (M, d)
    takes their place with data=None, and no floor is known then. Raises FmdiffError for a name
    `data` does not allow, fewer than n samples, n < 4, or samples that are not finite.
    """
    known = chosen(names, data)
    if not 4 <= n <= len(samples):
        raise FmdiffError(f"n={n} must be from 4 to the number of samples, {len(samples)}")
    x = samples[:n].detach().cpu()
    shape = data.shape if given is None else tuple(given.shape[1:])
    if x.shape[1:] != shape:
        raise FmdiffError(f"samples of shape {(*x.shape[1:],)} are not of data {shape}")
    broken = int((~x.isfinite()).any(1).sum())
    if broken:
        raise FmdiffError(f"metrics={list(names)}: {broken} of n={n} samples are not finite")
    reference = data.sample(0, n, key(seed, "metrics"))[0] if given is None else given[:n]
    found = {}
    for name in names:
        metric = known[name].metric(x, reference)
        if given is None:
            against = f"{metric.n} fresh points of {type(data).__name__}, seed {seed}"
            metric = replace(metric, floor=floor(name, data, n))
        else:
            against = f"{metric.n} points of a file"
        found[name] = replace(metric, reference=metric.reference or against)
    return found
