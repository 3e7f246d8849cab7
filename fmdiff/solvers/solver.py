"""The contract of a solver.

To add one, derive a class from `Solver`, define `step`, override what else differs, and describe
it in configs/solver/NAME.yaml.
"""

from collections.abc import Callable, Sequence
from typing import Any

from torch import Tensor

from fmdiff.build import Described
from fmdiff.errors import FmdiffError
from fmdiff.field import Field
from fmdiff.path import Kind
from fmdiff.schedules import UNIFORM, Schedule

Noise = Callable[[Tensor, Tensor], Tensor]  # (t, s) -> W_s - W_t (B, *shape) of these samples
Step = tuple[Tensor, Any]  # the next x (B, *shape) and the next state of the solver


class Solver(Described):
    """Carries samples from one time to the next. Its state is its memory between two steps.

    `order` is the order of convergence, which the tests measure. `asks` is the kind of quantity
    that it evaluates, which decides the field's interval. A `stochastic` solver draws noise and
    needs a field with a normal source. An `adaptive` one chooses its own steps between two times.
    An `ancestral` one is by default run at the times of training, if these are finitely many. One
    of `maps` needs a field of two times. One that is `one_way` leads from noise to data alone. Its
    own `times` take the place of a law of steps. `default_steps` and the `law` of the steps hold
    where nothing else decides.
    """

    order: float = 1
    asks: Kind = "v"
    stochastic: bool = False
    adaptive: bool = False
    ancestral: bool = False
    maps: bool = False
    one_way: bool = False
    times: Sequence[float] | None = None  # t_0 ... t_S, where the last step lands as a jump would
    default_steps: int = 28
    law: Schedule = UNIFORM

    def law_of(self, field: Field) -> Schedule:
        """The law of the steps through a field, where no other is chosen."""
        return self.law

    def begin(self, times: Tensor, jump: bool = False) -> Any:
        """The state before the first of the steps along times (S+1,).

        `jump` tells whether a jump to the estimate of x follows, which is no step of the solver.
        """
        return None

    def step(
        self, field: Field, x: Tensor, t: Tensor, s: Tensor, state: Any, noise: Noise | None
    ) -> Step:
        """Carry x (B, *shape) from time t to s, both () float64; return it and the next state.

        `noise` is None if there is none.
        """
        raise FmdiffError(
            f"{type(self).__name__} must define step(self, field, x, t, s, state, noise), "
            "which returns x at time s and a state"
        )

    def arrival(self, field: Field, x: Tensor, t: Tensor) -> Tensor:
        """The estimate of the data (B, *shape) from x at time t (), by which a plan may end."""
        return field.predict(x, t, "x")

    def nfe(self, steps: int) -> int:
        """The evaluations that these steps cost each sample; unknown for an adaptive solver."""
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
