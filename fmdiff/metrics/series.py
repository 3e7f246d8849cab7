"""Metrics of series (N, C, L): their autocovariance, their spectrum, and features of them.

Both are means over series of a number per series, so their standard errors need no assumption on
how the places of one series depend on each other. The mean of each channel of the reference is
subtracted from both sets, and values are in units of the reference's variance of the channel.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from itertools import pairwise

import torch
from torch import Tensor

from fmdiff.metrics.differences import largest
from fmdiff.metrics.metric import Metric

LAGS = 20  # the largest lag of the autocovariance
BANDS = 32  # of the spectrum, at most
PLACES = 256  # numbers of a series that distances of points compare
BLOCK = 2**22  # numbers in memory at a time, as float64


def features(x: Tensor) -> Tensor:
    """What distances of points compare of series or arrays (N, C, ...): the values at 256 places.

    The places are spread evenly over all channels. Smaller samples are flattened as they are.
    """
    flat = x.flatten(1)
    if flat.shape[1] <= PLACES:
        return flat
    return flat[:, torch.linspace(0, flat.shape[1] - 1, PLACES).round().long()]


def features_text(shape: Sequence[int]) -> str:
    """What `features` takes of samples of a shape, in words; '' if it takes all."""
    total = math.prod(shape)
    if len(shape) == 1 or total <= PLACES:
        return ""
    return f"compares {PLACES} of the {total:,} numbers of a sample, spread evenly"


def autocovariance(samples: Tensor, reference: Tensor) -> Metric:
    """max over lags k and channels of |g(k) of samples - g(k) of reference| / variance.

    g(k) = mean over t and series of (x_t - m)(x_{t+k} - m), k = 0 ... 20, with the mean m and the
    variance of a channel of the reference. samples (N, C, L), reference (M, C, L).
    """
    lags = range(min(LAGS + 1, samples.shape[2]))
    words = [f"lag {k}" for k in lags]
    return _compared(lambda x: torch.stack(list(_products(x, lags)), 2), words, samples, reference)


def _products(x: Tensor, lags: range) -> Iterator[Tensor]:
    """The mean of x_t x_{t+k} over t, for each lag k: (n, C) from (n, C, L)."""
    length = x.shape[2]
    for k in lags:
        yield (x[..., : length - k] * x[..., k:]).mean(2)


def spectrum(samples: Tensor, reference: Tensor) -> Metric:
    """max over bands and channels of the difference of the power in a band / variance.

    The power at the frequencies j / L is |sum_t (x_t - m) e^(-2 pi i j t / L)|^2 / L^2, counted
    twice for 0 < j < L / 2, so that all of it sums to the mean of (x_t - m)^2. There are
    at most 32 bands with equal numbers of frequencies. samples (N, C, L), reference (M, C, L).
    """
    length = samples.shape[2]
    count = length // 2 + 1
    edges = torch.linspace(0, count, min(BANDS, count) + 1).round().long().tolist()
    bands = list(pairwise(edges))
    words = [
        f"frequency {a / length:.3g}" + (f" to {(b - 1) / length:.3g}" if b > a + 1 else "")
        for a, b in bands
    ]
    twice = torch.full((count,), 2.0, dtype=torch.float64)
    twice[0] = 1
    if length % 2 == 0:
        twice[-1] = 1

    def powers(x: Tensor) -> Tensor:
        power = torch.fft.rfft(x).abs().square() * twice / length**2
        return torch.stack([power[..., a:b].sum(2) for a, b in bands], 2)

    return _compared(powers, words, samples, reference)


def _compared(
    values: Callable[[Tensor], Tensor], words: list[str], samples: Tensor, reference: Tensor
) -> Metric:
    """The largest difference of means over series of `values`: (n, C, L) -> (n, C, K)."""
    channels = reference.double().transpose(0, 1).flatten(1)
    mean, variance = channels.mean(1)[:, None], channels.var(1, correction=0)[:, None]
    unit = torch.where(variance > 0, variance, 1.0)

    def name(k: int) -> str:
        channel, place = divmod(k, len(words))
        return words[place] + (f" of channel {channel + 1}" if len(mean) > 1 else "")

    def moments(x: Tensor) -> tuple[Tensor, Tensor]:
        rows = max(1, BLOCK // x[0].numel())
        each = torch.cat([values(part.double() - mean) / unit for part in x.split(rows)])
        return each.mean(0).flatten(), each.var(0).flatten() / len(each)

    (first, error), (second, other) = moments(samples), moments(reference)
    return largest(first, second, (error + other).sqrt(), len(samples), name)
