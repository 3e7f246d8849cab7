"""From a field to samples: the plan, the one loop, and the batches around it."""

from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor

from fmdiff import randomness
from fmdiff.build import named
from fmdiff.errors import FmdiffError
from fmdiff.field import Along, Field, Straight, need_gaussian, unguided
from fmdiff.path import Path


class Uniform:
    """The step schedule u -> u: equal steps of the solver's time."""

    def __call__(self, u: Tensor) -> Tensor:
        return u


UNIFORM = Uniform()


@dataclass(frozen=True)
class Plan:
    """What a solver will do: its times, whether a jump to the estimate of x follows, the price."""

    times: Tensor  # (S+1,) float64, increasing, in the coordinates of the field
    jump: bool
    nfe: int  # network evaluations per sample; both branches of a guided step count


def plan(
    field: Field, solver, steps: int, schedule: Callable = UNIFORM, final: str = "auto"
) -> Plan:
    """Lay out `steps` intervals over the field's interval.

    final=denoise: the last interval is one jump to the estimate of x. final=solver: no jump.
    final=auto: a jump where the interval ends before all noise is gone. A jump from an end that
    still has noise comes after steps - 1 solver steps; else it replaces the last one.
    """
    if solver.stochastic:
        need_gaussian(field, "a stochastic solver (heun and the other ODE solvers do not)")
    lo, hi = field.interval(solver.asks)
    if lo == hi:
        return Plan(torch.tensor([hi], dtype=torch.float64), False, 0)
    noisy = bool(field.path.beta(torch.tensor(hi, dtype=torch.float64)) > 0)
    jump = final == "denoise" or (final == "auto" and noisy)
    intervals = steps - 1 if jump and noisy else steps
    u = torch.linspace(0, 1, intervals + 1, dtype=torch.float64)
    times = lo + (hi - lo) * schedule(u)
    if jump and not noisy:
        times = times[:-1]
    branches = field.branches
    return Plan(times, jump, branches * (solver.nfe(len(times) - 1) + jump))


def integrate(
    solver,
    field: Field,
    x: Tensor,
    times: Tensor,
    noise: Callable | None = None,
    observe: Callable[[Tensor, Tensor], None] | None = None,
) -> Tensor:
    """Carry the states x (B, *shape) along times (S+1,): the one loop.

    noise(t, s) gives the Brownian increment W_s - W_t of these samples, observe(t, x) sees every
    state but the first.
    """
    state = None
    for t, s in pairwise(times):
        x, state = solver.step(field, x, t, s, state, noise)
        if observe:
            observe(s, x)
    return x


@dataclass
class Samples:
    """x (n, *shape) float32 or float64, y (n,) int64 or None, and what they cost."""

    x: Tensor
    y: Tensor | None
    nfe_planned: int
    nfe_counted: float
    plan: Plan
    # every state, start and end included (frames, n, *shape), and its time (frames,)
    trajectory: tuple[Tensor, Tensor] | None = None


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
    solver="heun",
    steps: int = 28,
    seed: int = 0,
    classes: list[int] | int | None = None,
    guidance: Callable[[Field, Tensor | None], Field] = unguided,
    schedule: Callable = UNIFORM,
    coordinates: str = "straight",
    final: str = "auto",
    path: Path | None = None,
    batch_size: int | None = None,
    device="cpu",
    dtype: torch.dtype = torch.float32,
    trajectory: bool = False,
    progress: Callable[[int], None] | None = None,
) -> Samples:
    """Draw n samples of a field; sample i depends on (seed, i), not on the batch it is in.

    solver: a solver or the name of one (its YAML). guidance: what makes of a field and labels the
    field to integrate. path: sample along another path than the field's own.
    """
    if isinstance(solver, str):
        solver = named("solver", solver)
    field = field.to(device, dtype)
    size = batch_size or default_batch_size(field.shape)
    xs, ys, frames, counted = [], [], [], 0
    for start in range(0, n, size):
        stop = min(start + size, n)
        y = field.labels(classes, start, stop, seed)
        bound = guidance(field, None if y is None else y.to(device))
        bound.reset()
        asked = view(bound, coordinates, path)
        the_plan = plan(asked, solver, steps, schedule, final)
        seen: list[Tensor] = []
        x = _one_batch(asked, solver, the_plan, start, stop, seed, device, dtype, seen, trajectory)
        counted += bound.evaluations
        xs.append(x.cpu())
        ys.append(y)
        frames.append(seen)
        if progress:
            progress(stop - start)
    x = torch.cat(xs)
    bad = int((~x.flatten(1).isfinite()).any(1).sum())
    if bad:
        raise FmdiffError(f"{bad} of {n} samples are not finite; try more steps or final=denoise")
    times = torch.cat([the_plan.times, torch.ones(int(the_plan.jump), dtype=torch.float64)])
    return Samples(
        x,
        None if ys[0] is None else torch.cat([y for y in ys if y is not None]),
        the_plan.nfe,
        counted / n,
        the_plan,
        (torch.cat([torch.stack(f) for f in frames], 1), times) if trajectory else None,
    )


def _one_batch(field, solver, plan, start, stop, seed, device, dtype, seen, trajectory) -> Tensor:
    def draw(purpose: str, step: int = 0) -> Tensor:
        drawn = randomness.noise(start, stop, field.shape, seed, purpose, step)
        return drawn.to(device, dtype)

    increments = iter(range(10**9))

    def brownian(t: Tensor, s: Tensor) -> Tensor:
        return (s - t).sqrt() * draw("brownian", next(increments))

    def observe(t: Tensor, x: Tensor) -> None:
        # shown at the scale of the data, whatever the path's own scale is
        scale = field.path.alpha(t) + field.path.beta(t)
        seen.append((x / scale).cpu())

    times = plan.times
    x = field.start(draw("start"), times[0], start, seed)
    if trajectory:
        observe(times[0], x)
    x = integrate(solver, field, x, times, brownian, observe if trajectory else None)
    if plan.jump:
        x = field.predict(x, times[-1], "x")
        if trajectory:
            seen.append(x.cpu())
    return x
