"""From a field to samples: how it is sampled, and the batches around the one loop."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from fmdiff import randomness
from fmdiff.build import build, of_class, spec_of
from fmdiff.custom import checked, from_spec
from fmdiff.errors import FmdiffError, nearest
from fmdiff.field import Along, Classes, Field, Straight
from fmdiff.guidance import Unguided, in_range
from fmdiff.integration import Law, Plan, integrate, need_positive, plan
from fmdiff.path import Path
from fmdiff.schedules import UNIFORM
from fmdiff.solvers.runge_kutta import Heun
from fmdiff.solvers.solver import Noise, Solver
from fmdiff.trajectory import Witness, join, watch_size

HEUN, UNGUIDED = Heun(), Unguided()
COORDINATES, FINALS = ("straight", "native"), ("auto", "solver", "denoise")
Receive = Callable[[Tensor, Tensor | None], None]  # samples and labels of a batch


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
    # of the same samples: the estimate of x in each interval and its time (see trajectory.Witness)
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


@dataclass(frozen=True)
class Sampler:
    """How a field is sampled.

    solver, schedule, guidance and path are objects. In place of each its name will do, as
    solver="heun", or what its YAML says, as schedule={"_target_": ..., "p": 1.5}.

    steps, or the nfe they may cost; neither: 28. coordinates: straight or native, those the solver
    runs in. final: see `plan`. path: another path than the field's own to sample along. clip:
    none, data or dynamic, for the estimate of x of images. batch_size: samples at a time, by
    default a function of their shape.

    Raises FmdiffError for a value that is none of these.
    """

    solver: Solver = HEUN
    steps: int | None = None
    nfe: int | None = None
    schedule: Law = UNIFORM
    guidance: Unguided = UNGUIDED
    coordinates: str = "straight"
    final: str = "auto"
    path: Path | None = None
    clip: str = "none"
    batch_size: int | None = None
    device: torch.device | str = "cpu"
    dtype: torch.dtype = torch.float32

    def __post_init__(self) -> None:
        part: Any
        for group, base in (("solver", Solver), ("guidance", Unguided), ("path", Path)):
            part = built(group, vars(self)[group])
            if part is not None or group != "path":
                object.__setattr__(self, group, of_class(part, base))
        if self.path is not None:
            checked(self.path)
        object.__setattr__(self, "schedule", built("schedule", self.schedule))
        if not callable(self.schedule):
            raise FmdiffError(f"schedule={self.schedule!r}: a law of u or its name is needed")
        need_positive(steps=self.steps, nfe=self.nfe, batch_size=self.batch_size)
        for option, choices in (("coordinates", COORDINATES), ("final", FINALS)):
            value = vars(self)[option]
            if value not in choices:
                raise FmdiffError(f"{option}={value}: {nearest(value, choices)}")

    def seen(self, field: Field, y: Tensor | None) -> Field:
        """The field as the solver sees it: guided to labels y (B,), clipped, in coordinates."""
        guided = in_range(self.guidance(field, y), self.clip)
        return view(guided, self.coordinates, self.path)

    def plan(self, field: Field, trajectory: bool = False) -> Plan:
        """The plan for a field as the solver sees it; see the function `plan`."""
        choice = self.solver, self.steps, self.schedule, self.final, self.nfe
        return plan(field, *choice, trajectory)

    @torch.no_grad()
    def draw(
        self,
        field: Field,
        n: int | None = None,
        seed: int = 0,
        *,
        first: int = 0,
        classes: Classes = None,
        eps: Tensor | None = None,
        x_start: Tensor | None = None,
        trajectory: bool = False,
        progress: Callable[[int], None] | None = None,
        receive: Receive | None = None,
    ) -> Samples:
        """Draw n samples of a field; sample i depends on (seed, i), not on the batch it is in.

        n: 64 by default, or as many as eps or x_start has. first: the index i of the first. eps
        (n, *shape): source noise in place of the seed's. x_start (n, *shape): the states to start
        from at the first time, on the path that is sampled along. trajectory: keep the way of the
        first samples too, at no further evaluation. receive: is handed the samples and labels of
        each batch, on the device, in place of their being kept: Samples.x is then empty.

        Raises FmdiffError for n below 1, a start of another shape, and samples not finite.
        """
        n = self._count(field, n, eps, x_start)
        field = field.to(self.device, self.dtype)
        size = self.batch_size or default_batch_size(field.shape)
        layout: Plan | None = None
        harvest = _Harvest(receive)
        for start in range(first, first + n, size):
            rows = range(start, min(start + size, first + n))
            y = self.guidance.labels(field, classes, rows.start, rows.stop, seed)
            flow = self.seen(field, None if y is None else y.to(self.device))
            flow.reset()
            layout = layout or self.plan(flow, trajectory)
            watch = None
            if trajectory and (few := watch_size(field.shape) - start) > 0:
                watch = Witness(flow, few)
                harvest.watches.append(watch)
            part, t = slice(start - first, rows.stop - first), layout.times[0]
            x = None
            if eps is not None:
                x = flow.start(self._own(eps[part]), t, start, seed)
            elif x_start is not None:
                path = self.path or field.path
                x = _moved(self._own(x_start[part]), path, flow.path, t)
            x = self.carry(flow, layout, rows, seed, x, watch)
            harvest.add(x, y, flow.evaluations)
            if progress:
                progress(len(rows))
        assert layout is not None
        return harvest.samples(field, n, layout)

    def carry(
        self,
        field: Field,
        layout: Plan,
        rows: range,
        seed: int,
        x: Tensor | None = None,
        watch: Witness | None = None,
    ) -> Tensor:
        """The samples `rows` of a field as the solver sees it, carried along a plan.

        x (B, *shape): their states at the first time, in place of those of the seed. watch: the
        same field, when it keeps what it sees.
        """
        field, times = watch or field, layout.times
        if x is None:
            noise = randomness.noise(rows.start, rows.stop, field.shape, seed, "start")
            x = field.start(self._own(noise), times[0], rows.start, seed)
        if watch:
            watch.observe(times[0], x)
        observe = watch.observe if watch else None
        x = integrate(
            self.solver, field, x, times, self._noise(field, rows, seed), observe, layout.jump
        )
        if layout.jump:
            x = field.predict(x, times[-1], "x")
            if watch:
                watch.keep(x)
        return x

    def _own(self, x: Tensor) -> Tensor:
        return x.to(self.device, self.dtype)

    def _noise(self, field: Field, rows: range, seed: int) -> Noise | None:
        if not self.solver.stochastic:  # the path costs a draw to begin
            return None
        walk = randomness.Brownian(rows.start, rows.stop, field.shape, seed)
        return lambda t, s: self._own(walk(t, s))

    def _count(
        self, field: Field, n: int | None, eps: Tensor | None, x_start: Tensor | None
    ) -> int:
        """How many samples. Raises FmdiffError for none, and for a start that does not fit."""
        need_positive(n=n)
        if eps is not None and x_start is not None:
            raise FmdiffError("eps and x_start are both given: choose one of them")
        name, start = ("x_start", x_start) if eps is None else ("eps", eps)
        if start is None:
            return 64 if n is None else n
        if not start.is_floating_point():
            raise FmdiffError(f"{name} is of {start.dtype}: floating-point numbers are needed")
        count = len(start) if n is None and start.ndim else n
        if tuple(start.shape) != (count, *field.shape) or not count:
            raise FmdiffError(
                f"{name} has shape {list(start.shape)}: [n, {', '.join(map(str, field.shape))}] "
                f"is needed, n={'1 or more' if n is None else n}"
            )
        return count


class _Harvest:
    """What batches of samples leave behind."""

    def __init__(self, receive: Receive | None) -> None:
        self.receive = receive
        self.xs: list[Tensor] = []
        self.ys: list[Tensor] = []
        self.watches: list[Witness] = []
        self.evaluations, self.bad = 0, 0

    def add(self, x: Tensor, y: Tensor | None, evaluations: int) -> None:
        self.evaluations += evaluations
        self.bad += int((~x.flatten(1).isfinite()).any(1).sum())
        if self.receive:
            self.receive(x, y)
            return
        self.xs.append(x.cpu())
        if y is not None:
            self.ys.append(y)

    def samples(self, field: Field, n: int, layout: Plan) -> Samples:
        if self.bad:
            raise FmdiffError(
                f"{self.bad} of {n} samples are not finite; try more steps or final=denoise"
            )
        trajectory = x_hat = None
        if self.watches:
            trajectory, x_hat = join(self.watches, layout.times, layout.steps)
        return Samples(
            torch.cat(self.xs) if self.xs else torch.empty(0, *field.shape),
            torch.cat(self.ys) if self.ys else None,
            layout.nfe,
            self.evaluations / n,
            layout,
            trajectory,
            x_hat,
        )


def generate(
    field: Field,
    n: int | None = None,
    seed: int = 0,
    *,
    first: int = 0,
    classes: Classes = None,
    eps: Tensor | None = None,
    x_start: Tensor | None = None,
    trajectory: bool = False,
    progress: Callable[[int], None] | None = None,
    receive: Receive | None = None,
    **sampler: Any,
) -> Samples:
    """Draw n samples of a field: Sampler(**sampler).draw(field, n, seed, ...), where it is told.

    fmdiff.generate(field, n=64, solver="heun", steps=28, seed=0, guidance=CFG(w=2))
    """
    return Sampler(**sampler).draw(
        field,
        n,
        seed,
        first=first,
        classes=classes,
        eps=eps,
        x_start=x_start,
        trajectory=trajectory,
        progress=progress,
        receive=receive,
    )


def built(group: str, value: Any) -> Any:
    """The object that a name or a YAML's keys stand for; any other value is that object.

    Raises FmdiffError for a name that no YAML has, and for one that needs the command line.
    """
    spec = spec_of(group, value) if isinstance(value, str) else value
    if not isinstance(spec, Mapping):
        return spec
    for key, word in spec.items():
        if isinstance(word, str) and word.startswith("${"):
            kind = str(spec["_target_"]).rpartition(".")[2]
            raise FmdiffError(
                f"{group}={value} takes its {key} from the command line: give an object, "
                f"fmdiff.{group}.{kind}(...), in its place"
            )
    return from_spec(spec) if group == "path" else build(spec)


def _moved(x: Tensor, path: Path, other: Path, t: Tensor) -> Tensor:
    """States x of a path as those of another, at whose time t () their noise is the same."""
    u = path.time_of_r(other.r(t))
    return x * (other.alpha(t) + other.beta(t)) / (path.alpha(u) + path.beta(u))
