"""Randomness as a function of (seed, purpose, counters), never of hidden generator state.

Every draw of the code base starts from one of the three functions below, so a run resumed at
step k draws what the uninterrupted run drew, a batch is the same on 1 or N devices, and sample i
of a seed gets the same noise whatever the batch size.
"""

import hashlib
from functools import lru_cache

import torch
from torch import Tensor

BLOCK = 64  # sampling noise is drawn for this many consecutive sample indices at a time


def key(seed: int, purpose: str, *counters: int) -> int:
    """A 63-bit seed from (seed, purpose, counters); the same on every machine and version."""
    text = "/".join(map(str, (seed, purpose, *counters)))
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "little") >> 1


def generator(seed: int, purpose: str, *counters: int, device="cpu") -> torch.Generator:
    """A fresh generator seeded by (seed, purpose, counters)."""
    return torch.Generator(device).manual_seed(key(seed, purpose, *counters))


@lru_cache(maxsize=4)
def permutation(seed: int, epoch: int, n: int) -> Tensor:
    """The order (n,) in which epoch visits the n training examples."""
    return torch.randperm(n, generator=generator(seed, "permutation", epoch))


def positions(seed: int, step: int, batch_size: int, n: int) -> Tensor:
    """Indices (batch_size,) of the examples that training step `step` takes.

    Step k takes places k*B ... k*B + B - 1 of the endless sequence of permuted epochs, so an
    example is seen once per epoch whatever the batch size, and a batch may straddle two epochs.
    """
    places = torch.arange(step * batch_size, (step + 1) * batch_size)
    epochs = places // n
    return torch.cat(
        [permutation(seed, e, n)[places[epochs == e] % n] for e in epochs.unique().tolist()]
    )


def noise(
    start: int, stop: int, shape: tuple[int, ...], seed: int, purpose: str, step: int = 0
) -> Tensor:
    """Standard normal noise (stop - start, *shape), float32, of samples start ... stop - 1.

    Drawn on the CPU in blocks of 64 indices, each by its own generator: row i depends on
    (seed, purpose, step, i) alone.
    """
    blocks = range(start // BLOCK, -(-stop // BLOCK))
    drawn = [
        torch.randn(BLOCK, *shape, generator=generator(seed, purpose, block, step))
        for block in blocks
    ]
    first = start - blocks.start * BLOCK
    return torch.cat(drawn)[first : first + stop - start]
