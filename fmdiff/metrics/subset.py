"""Random subsets of rows that depend on the set of rows alone, never on their order in a file."""

import numpy as np
import torch
from torch import Tensor

from fmdiff.randomness import generator

WIDE = 256  # numbers in a row
CHOICE = "a random choice with a fixed seed, the same for any order of the rows"


def choice(x: Tensor, n: int, role: str = "samples", seed: int = 0) -> Tensor:
    """Indices (n,) of n rows of x (N, ...), a random subset in random order.

    The rows are sorted, by their numbers or, if they are bytes or more than 256 numbers, by their
    bytes, and then permuted by the seed and the role. So a set in another order gives the same
    rows in the same order, and a set that is moved or scaled has the same choice, unless it is
    sorted by bytes. The choices of two roles are independent.
    """
    rows = x.flatten(1).numpy(force=True)
    if rows.dtype == np.uint8 or rows.shape[1] > WIDE:  # lexsort would sort column by column
        width = rows.shape[1] * rows.itemsize
        order = np.ascontiguousarray(rows).view(f"V{width}")[:, 0].argsort(kind="stable")
    else:
        order = np.lexsort(rows.T[::-1])
    permutation = torch.randperm(len(x), generator=generator(seed, f"subset of {role}"))
    return torch.from_numpy(order)[permutation[:n]]


def thin(a: Tensor, b: Tensor, n: int | None = None) -> tuple[Tensor, Tensor]:
    """At most n rows each of samples a and reference b, chosen as by `choice`; None takes all.

    Equal sets are thinned alike, so that their distance stays 0.
    """
    first = a[choice(a, len(a))]
    same = b[choice(b, len(b))]
    if not torch.equal(first, same):
        same = b[choice(b, len(b), "reference")]
    return first[:n], same[:n]


def part(n: int, total: int) -> str:
    """The words "2,000 of 6,000", or "6,000" for all of them."""
    return f"{n:,}" if n == total else f"{n:,} of {total:,}"
