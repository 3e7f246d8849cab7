"""The one loop that carries states along the times of a solver, forwards and backwards."""

from collections.abc import Callable
from itertools import pairwise

from torch import Tensor


def integrate(
    solver,
    field,
    x: Tensor,
    times: Tensor,
    noise: Callable | None = None,
    observe: Callable[[Tensor, Tensor], None] | None = None,
    jump: bool = False,
) -> Tensor:
    """Carry the states x (B, *shape) along times (S+1,): the one loop.

    noise(t, s) gives the Brownian increment W_s - W_t of these samples, observe(t, x) sees every
    state but the first; with `jump` the caller takes one more step, of order 1, afterwards. A
    solver that wants to know all that first has a `begin(times, jump)`.
    """
    state = solver.begin(times, jump) if hasattr(solver, "begin") else None
    for t, s in pairwise(times):
        x, state = solver.step(field, x, t, s, state, noise)
        if observe:
            observe(s, x)
    return x


class Backward:
    """A field in the time u = -t, which runs from data to noise: dx/du = -v(x, -u)."""

    def __init__(self, field) -> None:
        self.field, self.branches = field, getattr(field, "branches", 1)

    def __call__(self, x: Tensor, u: Tensor) -> Tensor:
        return -self.field(x, -u)
