"""Distances between point sets."""

import statistics
from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from fmdiff.randomness import generator


def sliced_wasserstein2(a: Tensor, b: Tensor, projections: int = 128, seed: int = 0) -> float:
    """SW2(a, b) = sqrt(mean_i mean_k (sorted(a u_k)_i - sorted(b u_k)_i)^2).

    a, b: (n, d) point sets of one size; u_k: `projections` unit vectors, uniform on the sphere,
    a function of (seed, d) alone. For d = 1 this is the exact W2 and one projection is used.
    Raises ValueError for sets of different shapes (Bonneel et al., 2015).
    """
    if a.shape != b.shape or a.ndim != 2:
        raise ValueError(f"point sets must be (n, d) of one shape, not {a.shape} and {b.shape}")
    d = a.shape[1]
    if d == 1:
        directions = torch.ones(1, 1)
    else:
        drawn = torch.randn(projections, d, generator=generator(seed, "directions"))
        directions = torch.nn.functional.normalize(drawn)
    # NumPy sorts 20 times faster than torch, which also returns the order
    sorted_a, sorted_b = (np.sort((directions.to(s) @ s.T).numpy(force=True)) for s in (a, b))
    return float(np.sqrt(np.mean((sorted_a - sorted_b) ** 2, dtype=np.float64)))


def noise_floor(
    draw: Callable[[int, int], Tensor], n: int, pairs: int = 32, projections: int = 128
) -> float:
    """Median SW2 of `pairs` pairs of fresh sets of one distribution: what no sampler can beat.

    draw(n, seed) -> (n, d) returns the set of a seed; seeds 0 ... 2 pairs - 1 are used. A
    measured distance at the same n and projections is told in multiples of it.
    """
    return statistics.median(
        sliced_wasserstein2(draw(n, 2 * pair), draw(n, 2 * pair + 1), projections)
        for pair in range(pairs)
    )
