"""The diffusion transformer for series: patches of places next to each other are its tokens."""

from collections.abc import Sequence
from typing import Any

from fmdiff.models.dit import DiT, check_tokens
from fmdiff.models.network import need_axes, require

TOKENS = 256  # at most, where the network chooses the patch


def usual_patch(length: int) -> int:
    """4 places, or the least power of 2 that leaves at most TOKENS patches; at most `length`."""
    patch = 4
    while length > patch * TOKENS:
        patch *= 2
    return min(patch, length)


class DiT1d(DiT):
    """The layers of `DiT` over the patches of a series of any length.

    x_t (B, C, L) -> (B, C, L); t, y, s and w as there. A patch is `patch` places of all channels;
    null takes `usual_patch`. The last one is filled with zeros, which are cut off again.

    Raises FmdiffError for other data, for a patch longer than the series, for a width that is not
    a multiple of 4 heads and for a size below 1.
    """

    axes = 2
    name = "dit_1d"

    def cut(
        self, shape: Sequence[int], patch: Any, width: int, heads: int
    ) -> tuple[int, tuple[int, ...]]:
        need_axes(self.name, shape, 2)
        length = shape[1]
        require(
            f"null or an integer from 1 to {length}, the places of a series",
            lambda v: v is None or (type(v) is int and 1 <= v <= length),
            patch=patch,
        )
        size = usual_patch(length) if patch is None else patch
        count = -(-length // size)
        check_tokens(count, size, width, heads)
        return size, (count,)
