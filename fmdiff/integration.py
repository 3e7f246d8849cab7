"""Integration of a field: the times of the steps, their cost, and the one loop over them."""

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor

from fmdiff.along import Around
from fmdiff.build import of_class
from fmdiff.errors import FmdiffError
from fmdiff.field import Field, need_map
from fmdiff.path import Kind
from fmdiff.schedules import Explicit, NoiseLevels, Schedule, Trained
from fmdiff.solvers.solver import Noise, Solver, check_step
from fmdiff.source import need_gaussian

Law = Callable[[Tensor], Tensor]  # a schedule, or a plain function of u in its place


def integrate(
    solver: Solver,
    field: Field,
    x: Tensor,
    times: Tensor,
    noise: Noise | None = None,
    observe: Callable[[Tensor, Tensor], None] | None = None,
    jump: bool = False,
) -> Tensor:
    """Carry the states x (B, *shape) along times (S+1,) float64.

    noise(t, s) gives the Brownian increment W_s - W_t of these samples. observe(t, x) is called
    with every state but the first. `jump` says that the caller takes one more step of order 1.

    Raises FmdiffError if `solver` is no Solver, or if a step does not return the next x and a
    state.
    """
    state = of_class(solver, Solver).begin(times, jump)
    for t, s in pairwise(times):
        result = solver.step(field, x, t, s, state, noise)
        check_step(solver, result, x)
        x, state = result
        if observe:
            observe(s, x)
    return x


class Backward(Around):
    """A field in the time u = -t, which runs from data to noise: dx/du = -v(x, -u)."""

    def __init__(self, field: Field) -> None:
        super().__init__(field)
        self.two_times = False

    def price(self, t: Tensor) -> int:
        return self.field.price(-t)

    def predict(self, x_t: Tensor, t: Tensor, kind: Kind, s: Tensor | None = None) -> Tensor:
        """-v at the time u = t, whatever the kind, since only v changes its sign with time."""
        return -self.field(x_t, -t)


class Tally(Around):
    """A field that counts what each of the n samples of its batch costs.

    The rows of a call share its cost, which differs only under guidance that ends on the way.
    """

    def __init__(self, field: Field, n: int) -> None:
        super().__init__(field)
        self.each = torch.zeros(n, dtype=torch.float64)
        self.rows: Tensor | slice = slice(None)

    def select(self, rows: Tensor) -> "Tally":
        part = copy.copy(self)
        part.field, part.rows = self.field.select(rows), rows
        return part

    def predict(self, x_t: Tensor, t: Tensor, kind: Kind, s: Tensor | None = None) -> Tensor:
        before = self.evaluations
        value = self.field.predict(x_t, t, kind, s)
        self.each[self.rows] += (self.evaluations - before) / len(x_t)
        return value


@dataclass(frozen=True)
class Plan:
    """The plan of a solver: its times, whether a jump to the estimate of x follows, its cost."""

    times: Tensor  # (S+1,) float64, increasing, in the coordinates of the field
    jump: bool
    # network evaluations per sample, counting each branch of guidance; None if the solver is
    # adaptive, as they are known only after the run
    nfe: int | None

    @property
    def steps(self) -> int:
        """The number of steps, the jump included."""
        return len(self.times) - 1 + self.jump


def plan(
    field: Field,
    solver: Solver,
    steps: int | None = None,
    schedule: Law | None = None,
    final: str = "auto",
    nfe: int | None = None,
    trajectory: bool = False,
) -> Plan:
    """Lay out `steps` intervals over the field's interval, or as many as `nfe` evaluations allow.

    final=denoise makes the last interval one jump to the estimate of x. final=solver has no jump.
    final=auto jumps if noise is left at the end of the interval. Such a jump comes after
    steps - 1 solver steps; a jump from a clean end replaces the last step. A solver of maps takes
    its last step to the data, from wherever it is, unless final=solver. An adaptive solver
    crosses the interval in one step, unless a trajectory has to show the `steps`. For the default
    schedule see `law_of`.

    Raises FmdiffError if steps and nfe are both given or not positive, if nfe does not pay for one
    step, if `solver` is no Solver, or if the field is not one that it can solve.
    """
    of_class(solver, Solver)
    need_positive(steps=steps, nfe=nfe)
    if solver.times is not None:
        return _own(field, solver, solver.times, (steps, nfe, schedule))
    schedule = law_of(field, solver, schedule)
    if solver.maps:
        need_map(field, "solver=jump")
    if solver.stochastic:
        instead = "solver.noise=0" if solver.maps else "one of an ODE, like heun or dopri5"
        need_gaussian(field, "a stochastic solver", f"; choose {instead}")
    if nfe is None:
        return _lay_out(field, solver, steps, schedule, final, trajectory)
    if steps is not None:
        raise FmdiffError(f"steps={steps} and nfe={nfe} are both given: choose one of them")
    if solver.adaptive:
        raise FmdiffError(
            f"nfe={nfe}: an adaptive solver chooses its own steps, bounded by solver.max_nfe; "
            "choose another solver, or leave nfe out"
        )

    if isinstance(schedule, Explicit):
        raise FmdiffError(f"nfe={nfe}: schedule=explicit has its own {schedule.steps} steps")
    most = len(_atoms(field, solver)) if isinstance(schedule, Trained) else nfe
    return _largest(lambda n: _lay_out(field, solver, n, schedule, final, trajectory), nfe, most)


def law_of(field: Field, solver: Solver, schedule: Law | None) -> Law:
    """The schedule itself, or the default for None.

    This is the solver's own law, which is uniform for most. For ancestral sampling (solver=ddpm)
    of a model that was trained at finitely many times it is those times.
    """
    if schedule is not None:
        return schedule
    return Trained() if solver.ancestral and field.atoms is not None else solver.law_of(field)


def _atoms(field: Field, solver: Solver) -> Tensor:
    """The straight times (T,) of training at which the solver's quantity is determined."""
    atoms = field.atoms
    if atoms is None:
        return torch.empty(0)
    pure_noise = atoms == 0  # there eps says nothing of x
    return atoms[~pure_noise] if field.interval(solver.asks)[0] > 0 else atoms


def need_positive(**numbers: int | None) -> None:
    """Raises FmdiffError, naming the option, for a number below 1. None is allowed."""
    for name, value in numbers.items():
        if value is not None and value < 1:
            raise FmdiffError(f"{name}={value}: 1 or more are needed")


def check_steps(solver: Solver, steps: int | None) -> None:
    """Raises FmdiffError if steps are given to a solver that chooses its own."""
    if steps is not None and solver.adaptive:
        raise FmdiffError(
            f"steps={steps}: {type(solver).__name__} chooses its own by solver.rtol and "
            "solver.atol; leave steps out, or choose rk4"
        )


def _largest(lay_out: Callable[[int], Plan], nfe: int, most: int) -> Plan:
    """The plan with the most steps, at most `most`, that costs at most nfe.

    More steps cost more: it bisects.
    """
    best = lay_out(1)
    if (best.nfe or 0) > nfe:
        raise FmdiffError(f"nfe={nfe}: one step costs {best.nfe} evaluations with this solver")
    # a step costs an evaluation, or there is nothing to solve
    over = min(nfe, most) + 1 if best.nfe else 0
    while over - best.steps > 1:
        middle = lay_out((best.steps + over) // 2)
        if (middle.nfe or 0) <= nfe:
            best = middle
        else:
            over = middle.steps
    return best


def _lay_out(
    field: Field, solver: Solver, steps: int | None, schedule: Law, final: str, trajectory: bool
) -> Plan:
    lo, hi = span(field, solver, final)
    if lo == hi:
        return Plan(torch.tensor([hi], dtype=torch.float64), False, 0)
    if isinstance(schedule, Explicit):
        if steps not in (None, schedule.steps):
            raise FmdiffError(f"steps={steps}, but schedule.times has {schedule.steps} steps")
        times = schedule.within(lo, hi, final)
        lo, hi = times[0].item(), times[-1].item()
        noisy, jump = _ending(field, solver, hi, final)
        jump = jump or len(times) <= schedule.steps
    elif isinstance(schedule, Trained):
        atoms = None if field.atoms is None else _atoms(field, solver)
        usual = min(solver.default_steps, 0 if atoms is None else len(atoms))
        r = schedule.times(atoms, usual if steps is None else steps)
        times = field.path.time_of_r(r)
        noisy = jump = final != "solver"
    else:
        if isinstance(schedule, NoiseLevels):
            lo, hi = schedule.span(field.path, *field.interval(solver.asks))
        noisy, jump = _ending(field, solver, 1.0 if solver.maps else hi, final)
        intervals = (solver.default_steps if steps is None else steps) - (jump and noisy)
        u = torch.linspace(0, 1, intervals + 1, dtype=torch.float64)
        if isinstance(schedule, NoiseLevels):
            times = schedule.times(u, field.path, lo, hi)
        else:
            law = schedule.of(intervals) if isinstance(schedule, Schedule) else schedule
            times = lo + (hi - lo) * law(u)
        times[0], times[intervals:] = lo, hi if intervals else lo  # exactly
    if jump and not noisy:
        times = times[:-1]
    if solver.adaptive and len(times) > 1:
        return Plan(times if trajectory else times[[0, -1]], jump, None)
    return Plan(times, jump, _price(field, solver, times, jump))


def _own(
    field: Field,
    solver: Solver,
    times: Sequence[float],
    choice: tuple[int | None, int | None, Law | None],
) -> Plan:
    """The plan of a solver that has its own times, which a choice of steps must agree with."""
    steps, nfe, schedule = choice
    grid = torch.tensor(times, dtype=torch.float64)
    lo, hi = field.interval(solver.asks)
    if times[0] < lo or times[-2] > hi:
        raise FmdiffError(
            f"this solver asks at times from {times[0]:.4g} to {times[-2]:.4g}, and the model is "
            f"solved from {lo:.4g} to {hi:.4g}: choose another solver"
        )
    layout = Plan(grid, False, _price(field, solver, grid, False))
    if schedule is not None or steps not in (None, layout.steps) or nfe not in (None, layout.nfe):
        raise FmdiffError(
            f"this solver has its own {layout.steps} steps, of {layout.nfe} evaluations: leave "
            "schedule, steps and nfe out"
        )
    return layout


def span(field: Field, solver: Solver, final: str) -> tuple[float, float]:
    """The first and the last time of a solver. A jump to the data need not ask at its end."""
    lo, hi = field.interval(solver.asks)
    return lo, 1.0 if solver.maps and final != "solver" and lo < hi else hi


def _ending(field: Field, solver: Solver, hi: float, final: str) -> tuple[bool, bool]:
    """Whether noise is left at hi, and whether a final jump follows.

    A solver of maps takes its last step to the data, so that nothing is left at t = 1.
    """
    if solver.maps:
        return hi < 1, final != "solver"
    noisy = bool(field.path.beta(torch.tensor(hi, dtype=torch.float64)) > 0)
    return noisy, final == "denoise" or (final == "auto" and noisy)


def _price(field: Field, solver: Solver, times: Tensor, jump: bool) -> int:
    """The number of evaluations along `times` and for the jump."""
    if field.branches == 1:
        return solver.nfe(len(times) - 1) + jump
    # the cost of guidance depends on the time, so a rehearsal finds the times of evaluation
    rehearsal = _Rehearsal(field)
    x = torch.zeros(1, 1, dtype=torch.float64)
    integrate(solver, rehearsal, x, times, lambda t, s: torch.zeros_like(x), jump=jump)
    if jump:
        solver.arrival(rehearsal, x, times[-1])
    return rehearsal.cost


class _Rehearsal(Around):
    """Returns 0 in place of a field and adds up the field's cost."""

    cost = 0

    def predict(self, x_t: Tensor, t: Tensor, kind: Kind, s: Tensor | None = None) -> Tensor:
        self.cost += self.field.price(t)
        return torch.zeros_like(x_t)
