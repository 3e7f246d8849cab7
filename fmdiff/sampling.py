"""From a field to samples: the plan, the one loop, and the batches around it."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from fmdiff import randomness
from fmdiff.build import named
from fmdiff.errors import FmdiffError
from fmdiff.field import Along, Field, Straight, need_gaussian
from fmdiff.guidance import Unguided, clipped
from fmdiff.integration import integrate
from fmdiff.path import Path
from fmdiff.schedules import UNIFORM, Explicit, NoiseLevels
from fmdiff.trajectory import Watched, gathered, watched_samples

UNGUIDED = Unguided()
STEPS = 28  # where neither steps nor nfe nor the schedule says it


@dataclass(frozen=True)
class Plan:
    """What a solver will do: its times, whether a jump to the estimate of x follows, the price."""

    times: Tensor  # (S+1,) float64, increasing, in the coordinates of the field
    jump: bool
    # network evaluations per sample, each branch of a guided step counted; None: the solver is
    # adaptive and they are known after the run
    nfe: int | None

    @property
    def steps(self) -> int:
        return len(self.times) - 1 + self.jump


def plan(
    field: Field,
    solver,
    steps: int | None = None,
    schedule: Callable = UNIFORM,
    final: str = "auto",
    nfe: int | None = None,
    trajectory: bool = False,
) -> Plan:
    """Lay out `steps` intervals over the field's interval, or as many as `nfe` evaluations allow.

    final=denoise: the last interval is one jump to the estimate of x. final=solver: no jump.
    final=auto: a jump where the interval ends before all noise is gone. A jump from an end that
    still has noise comes after steps - 1 solver steps; else it replaces the last one. An adaptive
    solver crosses it all in one step, unless a trajectory is to show the `steps`.

    Raises FmdiffError when steps and nfe are both given, or nfe does not pay for one step.
    """
    if solver.stochastic:
        need_gaussian(field, "a stochastic solver", "; choose one of an ODE, like heun or dopri5")
    if nfe is None:
        return _laid_out(field, solver, steps, schedule, final, trajectory)
    if steps is not None:
        raise FmdiffError(f"steps={steps} and nfe={nfe} are both given: choose one of them")
    if getattr(solver, "adaptive", False):
        raise FmdiffError(
            f"nfe={nfe}: an adaptive solver chooses its own steps, bounded by solver.max_nfe; "
            "choose another solver, or leave nfe out"
        )

    if isinstance(schedule, Explicit):
        raise FmdiffError(f"nfe={nfe}: schedule=explicit has its own {schedule.steps} steps")
    return _largest(lambda n: _laid_out(field, solver, n, schedule, final, trajectory), nfe)


def check_steps(solver, steps: int | None) -> None:
    """Raises FmdiffError for a number of steps given to a solver that chooses them."""
    if steps is not None and getattr(solver, "adaptive", False):
        raise FmdiffError(
            f"steps={steps}: {type(solver).__name__} chooses its own by solver.rtol and "
            "solver.atol; leave steps out, or choose rk4"
        )


def _largest(laid_out: Callable[[int], Plan], nfe: int) -> Plan:
    """The plan of the most steps that costs at most nfe; by bisection, as more steps cost more."""
    best = laid_out(1)
    if (best.nfe or 0) > nfe:
        raise FmdiffError(f"nfe={nfe}: one step costs {best.nfe} evaluations with this solver")
    over = nfe + 1 if best.nfe else 0  # a step costs an evaluation, or there is nothing to solve
    while over - best.steps > 1:
        middle = laid_out((best.steps + over) // 2)
        if (middle.nfe or 0) <= nfe:
            best = middle
        else:
            over = middle.steps
    return best


def _laid_out(
    field: Field, solver, steps: int | None, schedule: Callable, final: str, trajectory: bool
) -> Plan:
    lo, hi = field.interval(solver.asks)
    if lo == hi:
        return Plan(torch.tensor([hi], dtype=torch.float64), False, 0)
    if isinstance(schedule, Explicit):
        if steps not in (None, schedule.steps):
            raise FmdiffError(f"steps={steps}, but schedule.times has {schedule.steps} steps")
        times = schedule.within(lo, hi, final)
        lo, hi = times[0].item(), times[-1].item()
        noisy, jump = _ending(field, hi, final)
        jump = jump or len(times) <= schedule.steps
    else:
        if isinstance(schedule, NoiseLevels):
            lo, hi = schedule.span(field.path, lo, hi)
        noisy, jump = _ending(field, hi, final)
        intervals = (steps or STEPS) - (jump and noisy)
        u = torch.linspace(0, 1, intervals + 1, dtype=torch.float64)
        if isinstance(schedule, NoiseLevels):
            times = schedule.times(u, field.path, lo, hi)
        else:
            times = lo + (hi - lo) * schedule(u)
        times[0], times[intervals:] = lo, hi if intervals else lo  # exactly
    if jump and not noisy:
        times = times[:-1]
    if getattr(solver, "adaptive", False) and len(times) > 1:
        return Plan(times if trajectory else times[[0, -1]], jump, None)
    return Plan(times, jump, _price(field, solver, times, jump))


def _ending(field: Field, hi: float, final: str) -> tuple[bool, bool]:
    """Whether noise is left at hi, and whether a jump takes it away."""
    noisy = bool(field.path.beta(torch.tensor(hi, dtype=torch.float64)) > 0)
    return noisy, final == "denoise" or (final == "auto" and noisy)


def _price(field: Field, solver, times: Tensor, jump: bool) -> int:
    """Evaluations along `times` and for the jump."""
    if field.branches == 1:
        return solver.nfe(len(times) - 1) + jump
    # the price of guidance depends on the time: a rehearsal shows which times are asked
    rehearsal = _Rehearsal(field)
    x = torch.zeros(1, 1, dtype=torch.float64)
    integrate(solver, rehearsal, x, times, lambda t, s: torch.zeros_like(x))
    if jump:
        rehearsal.predict(x, times[-1], "x")
    return rehearsal.paid


class _Rehearsal:
    """Answers 0 in a field's place and adds up what the field would have cost."""

    def __init__(self, field: Field) -> None:
        self.field, self.path, self.paid = field, field.path, 0

    def __call__(self, x_t: Tensor, t: Tensor) -> Tensor:
        return self.predict(x_t, t, "v")

    def predict(self, x_t: Tensor, t: Tensor, kind: str) -> Tensor:
        self.paid += self.field.price(t)
        return torch.zeros_like(x_t)


@dataclass
class Samples:
    """x (n, *shape) float32 or float64, y (n,) int64 or None, and what they cost."""

    x: Tensor
    y: Tensor | None
    nfe_planned: int | None  # None: an adaptive solver
    nfe_counted: float
    plan: Plan
    # of the first 20 images or 2,000 points: every state, start and end included, at the scale of
    # the data (frames, n, *shape), and its time (frames,)
    trajectory: tuple[Tensor, Tensor] | None = None
    # of the same samples: the estimate of x in each interval and its time (see watching.Watched)
    x_hat: tuple[Tensor, Tensor] | None = None


def default_batch_size(shape: tuple[int, ...]) -> int:
    """Samples at a time, a function of the shape alone so that equal seeds give equal bytes."""
    size = min(4096, 2**18 // torch.Size(shape).numel())
    return max(1, size // 64 * 64 or size)


def view(field: Field, coordinates: str, path: Path | None = None) -> Field:
    """The field in the coordinates a solver is to run in."""
    field = field if path is None else Along(field, path)
    if coordinates == "native":
        return field
    return Straight(field)


@torch.no_grad()
def generate(
    field: Field,
    n: int = 64,
    *,
    first: int = 0,
    solver="heun",
    steps: int | None = None,
    nfe: int | None = None,
    seed: int = 0,
    classes: list[int] | int | None = None,
    guidance: Unguided = UNGUIDED,
    schedule: Callable = UNIFORM,
    coordinates: str = "straight",
    final: str = "auto",
    path: Path | None = None,
    clip: str = "none",
    batch_size: int | None = None,
    device="cpu",
    dtype: torch.dtype = torch.float32,
    trajectory: bool = False,
    progress: Callable[[int], None] | None = None,
    receive: Callable[[Tensor, Tensor | None], None] | None = None,
) -> Samples:
    """Draw n samples of a field; sample i depends on (seed, i), not on the batch it is in.

    first: the index i of the first. solver: a solver or the name of one (its YAML). steps, or the
    nfe they may cost; neither: 28.
    guidance: any of fmdiff.guidance, as CFG(w=2). path: sample along another path than the field's
    own. clip: none, data or dynamic, for the estimate of x of images. trajectory: keep the way of
    the first samples too, at no further evaluation. receive: is handed the samples and labels of
    each batch, on the device, in place of their being kept: Samples.x is then empty.
    """
    if isinstance(solver, str):
        solver = named("solver", solver)
    field = field.to(device, dtype)
    size = batch_size or default_batch_size(field.shape)
    xs, ys, counted, bad = [], [], 0, 0
    watched: list[Watched] = []
    the_plan: Plan | None = None
    for start in range(first, first + n, size):
        stop = min(start + size, first + n)
        y = guidance.labels(field, classes, start, stop, seed)
        bound = clipped(guidance(field, None if y is None else y.to(device)), clip)
        bound.reset()
        asked = view(bound, coordinates, path)
        if the_plan is None:
            the_plan = plan(asked, solver, steps, schedule, final, nfe, trajectory)
        if trajectory and (few := watched_samples(field.shape) - start) > 0:
            asked = Watched(asked, few)
            watched.append(asked)
        x = one_batch(asked, solver, the_plan, start, stop, seed, device, dtype)
        counted += bound.evaluations
        bad += int((~x.flatten(1).isfinite()).any(1).sum())
        if receive:
            receive(x, y)
        else:
            xs.append(x.cpu())
            ys.append(y)
        if progress:
            progress(stop - start)
    assert the_plan is not None
    if bad:
        raise FmdiffError(f"{bad} of {n} samples are not finite; try more steps or final=denoise")
    return Samples(
        torch.cat(xs) if xs else torch.empty(0, *field.shape),
        torch.cat([y for y in ys if y is not None]) if ys and ys[0] is not None else None,
        the_plan.nfe,
        counted / n,
        the_plan,
        *(gathered(watched, the_plan.times, the_plan.steps) if trajectory else ()),
    )


def one_batch(field, solver, plan, start, stop, seed, device, dtype) -> Tensor:
    def draw(purpose: str, step: int = 0) -> Tensor:
        drawn = randomness.noise(start, stop, field.shape, seed, purpose, step)
        return drawn.to(device, dtype)

    # only a stochastic solver asks for the path, which costs a draw to begin
    walk: Any = solver.stochastic and randomness.Brownian(start, stop, field.shape, seed)

    def brownian(t: Tensor, s: Tensor) -> Tensor:
        return walk(t, s).to(device, dtype)

    times = plan.times
    watched = field if isinstance(field, Watched) else None
    x = field.start(draw("start"), times[0], start, seed)
    if watched:
        watched.observe(times[0], x)
    observe = watched.observe if watched else None
    x = integrate(solver, field, x, times, brownian, observe, plan.jump)
    if plan.jump:
        x = field.predict(x, times[-1], "x")
        if watched:
            watched.keep(x)
    return x
