"""The contract of a solver.

To add one, derive a class from `Solver`, define `step`, override what else differs, and describe
it in configs/solver/NAME.yaml.
"""

from collections.abc import Callable
from typing import Any

from torch import Tensor

from fmdiff.build import Described
from fmdiff.errors import FmdiffError
from fmdiff.field import Field
from fmdiff.path import Kind

Noise = Callable[[Tensor, Tensor], Tensor]  # (t, s) -> W_s - W_t (B, *shape) of these samples
Step = tuple[Tensor, Any]  # the next x (B, *shape) and the next state of the solver


class Solver(Described):
    """Carries samples from one time to the next; what it remembers in between is its state.

    order: the order of convergence, which the tests measure. asks: the kind of quantity it asks
    the field for, which decides where it may ask. stochastic: it asks for noise, and so needs a
    field whose source is normal. adaptive: it chooses its own steps between two times.
    """

    order: float = 1
    asks: Kind = "v"
    stochastic: bool = False
    adaptive: bool = False

    def begin(self, times: Tensor, jump: bool = False) -> Any:
        """The state before the first of the steps along times (S+1,).

        jump: whether one more step, to the estimate of x, follows that is not the solver's own.
        """
        return None

    def step(
        self, field: Field, x: Tensor, t: Tensor, s: Tensor, state: Any, noise: Noise | None
    ) -> Step:
        """x (B, *shape) at time t carried to time s, both () float64, and the next state.

        noise: None where there is none to be had.
        """
        raise FmdiffError(
            f"{type(self).__name__} must define step(self, field, x, t, s, state, noise), "
            "which returns x at time s and a state"
        )

    def nfe(self, steps: int) -> int:
        """Evaluations that so many steps cost each sample; not known of an adaptive solver."""
        return steps


def check_step(solver: Solver, result: Any, x: Tensor) -> None:
    """Raises FmdiffError unless `result` is what a step from x (B, *shape) may return."""
    name = f"{type(solver).__name__}.step"
    if not (isinstance(result, tuple) and len(result) == 2 and isinstance(result[0], Tensor)):
        what = type(result).__name__
        raise FmdiffError(f"{name} must return a pair (x, state) and returned a {what}")
    ahead = result[0]
    if ahead.shape != x.shape or ahead.dtype != x.dtype:
        raise FmdiffError(
            f"{name} must return x of shape {list(x.shape)} and {x.dtype}, as it came: it "
            f"returned shape {list(ahead.shape)} and {ahead.dtype}"
        )
