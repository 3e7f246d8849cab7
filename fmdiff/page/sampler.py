"""The scene `sampler`: particles of a field on a line or in the plane, from noise to data."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from fmdiff import randomness
from fmdiff.condition import label
from fmdiff.errors import FmdiffError
from fmdiff.exact import Empirical
from fmdiff.field import Field
from fmdiff.page.graph import field_graph
from fmdiff.page.program import Program, asked, record
from fmdiff.page.scene import Scene, classes_and_guidance
from fmdiff.sampling import Sampler
from fmdiff.solvers.jump import Jump
from fmdiff.solvers.solver import Solver
from fmdiff.solvers.stochastic import EulerMaruyama

STEPS = (1, 2, 4, 8, 16, 32, 64)
JUMPS = (1, 2, 4, 8)
SIGMAS = (0.25, 0.5, 1.0, 2.0)  # of Euler-Maruyama
PARTICLES, MOST = 1000, 2000
POOL = 4096  # states at the first time, for a field that does not start from noise alone
POINTS = 1000  # of the data, under the particles
NOISE = 3.3  # standard deviations of the noise that the picture shows
DIGITS = 5  # of points and pools
PLACES = {1: "to the right", 2: "underneath"}  # of the data in the picture


@dataclass(frozen=True)
class Choice:
    """A solver to choose: its words on the command line and, if these vary, its sigmas."""

    name: str
    label: str
    solvers: tuple[Solver | str, ...]
    steps: Sequence[int]
    sigmas: tuple[float, ...] = ()


def choices(field: Field, steps: Sequence[int]) -> list[Choice]:
    """The solvers that a field can be sampled with, the one to begin with first."""
    solvers = [
        Choice("heun", "Heun (ODE, order 2)", ("heun",), steps),
        Choice("euler", "Euler (ODE, order 1)", ("euler",), steps),
        Choice("rk4", "Runge-Kutta 4 (ODE, order 4)", ("rk4",), steps),
        Choice("dpmpp_2m", "DPM-Solver++ 2M (ODE)", ("dpmpp_2m",), steps),
    ]
    if field.gaussian:
        noisy = tuple(EulerMaruyama(sigma) for sigma in SIGMAS)
        solvers.append(Choice("euler_maruyama", "Euler-Maruyama (SDE)", noisy, steps, SIGMAS))
        solvers.append(Choice("ddpm", "DDPM (SDE)", ("ddpm",), steps))
    if field.two_times and field.net is not None:
        jumps = [n for n in steps if n in JUMPS] or list(steps)[:1]
        solvers.insert(0, Choice("jump", "Jumps of the flow map", (Jump(),), jumps))
    return solvers


def sampler_scene(
    field: Field,
    data: Any = None,
    steps: Sequence[int] = STEPS,
    particles: int | None = None,
    source: str = "ckpt=RUN",
) -> Scene:
    """The scene of a field of points of one or two coordinates, over its data if these are known.

    steps: the numbers of steps to choose from. particles: how many to begin with, by default as
    many as take seconds. source: the words of a command line that name the field. Raises
    FmdiffError for other fields.
    """
    if field.shape not in ((1,), (2,)):
        raise FmdiffError(
            f"the scene sampler shows points of 1 or 2 coordinates, and this field is of shape "
            f"{list(field.shape)}"
        )
    points, labels = (None, None) if data is None else data.sample(0, POINTS, 0)
    starts = _Starts(field)
    solvers = [_solver(field, choice, starts) for choice in choices(field, steps)]
    low, high = _extent(field.shape[0], points)
    return Scene(
        kind="sampler",
        title="From noise to data",
        caption="Each particle starts as noise at t = 0 and follows the field to the data at "
        f"t = 1; the data lie {PLACES[field.shape[0]]} in grey. With few steps, see which solver "
        "still lands on them. An SDE shakes the particles as they go, and yet they end with the "
        "same law.",
        data={
            "source": source,
            "solvers": solvers,
            "pools": starts.pools,
            **classes_and_guidance(field),
            "particles": particles or _usual(field),
            "most": MOST,
            "points": [] if points is None else _rounded(points),
            "pointLabels": [] if labels is None else labels.tolist(),
            "low": low,
            "high": high,
        },
        graphs={"field": field_graph(field, asked(field))},
    )


class _Starts:
    """The states at the first time of fields that do not start from noise alone, by that time."""

    def __init__(self, field: Field) -> None:
        self.field = field
        self.pools: list[dict[str, Any]] = []
        self.times: list[float] = []

    def number(self, sampler: Sampler, program: Program) -> int | None:
        """The number of the pool that a program starts from."""
        if program.scale is not None:
            return None
        t = program.states[0].t
        if t not in self.times:
            y = label(self.field.labels(None, 0, POOL, 0))
            eps = randomness.noise(0, POOL, self.field.shape, 0, "start").double()
            x = sampler.seen(self.field, y).start(eps, torch.tensor(t).double(), 0, 0)
            self.times.append(t)
            self.pools.append({"x": _rounded(x), "y": [] if y is None else y.tolist()})
        return self.times.index(t)


def _solver(field: Field, choice: Choice, starts: _Starts) -> dict[str, Any]:
    """A choice with its programs: for each solver, one for each number of steps."""
    programs = []
    for solver in choice.solvers:
        row = []
        for n in choice.steps:
            sampler = Sampler(solver=solver, steps=n, dtype=torch.float64)  # type: ignore[arg-type]
            program = record(sampler, field)
            row.append({**program.data(), "pool": starts.number(sampler, program)})
        programs.append(row)
    return {
        "name": choice.name,
        "label": choice.label,
        "steps": list(choice.steps),
        "sigmas": list(choice.sigmas),
        "programs": programs,
    }


def _usual(field: Field) -> int:
    """The number of particles that take seconds: each asks an Empirical for all its examples."""
    if not isinstance(field, Empirical):
        return PARTICLES
    return min(PARTICLES, max(100, PARTICLES * 1000 // len(field.data) // 100 * 100))


def _extent(d: int, points: Tensor | None) -> tuple[list[float], list[float]]:
    """The lowest and the highest corner of a square that shows the noise and the data."""
    low, high = (torch.full((d,), c, dtype=torch.float64) for c in (-NOISE, NOISE))
    if points is not None:
        low, high = low.minimum(points.double().amin(0)), high.maximum(points.double().amax(0))
    middle, half = (low + high) / 2, 1.03 * (high - low).max() / 2
    return (middle - half).tolist(), (middle + half).tolist()


def _rounded(x: Tensor) -> list[float]:
    return [float(f"{value:.{DIGITS}g}") for value in x.flatten().tolist()]
