"""Sampling: how a field is sampled, and the batches around the integration loop."""

import dataclasses
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from fmdiff import randomness
from fmdiff.along import Along, Straight, in_range
from fmdiff.build import build, locate, of_class, spec_of
from fmdiff.codec import Codec
from fmdiff.condition import Classes, Given, join, label, named
from fmdiff.custom import checked, from_spec
from fmdiff.errors import FmdiffError, nearest
from fmdiff.field import Field
from fmdiff.guidance import Unguided
from fmdiff.integration import Law, Plan, Tally, integrate, need_positive, plan
from fmdiff.path import Path
from fmdiff.solvers.jump import Jump
from fmdiff.solvers.solver import Noise, Solver
from fmdiff.trajectory import Witness, joined, watch_size

UNGUIDED = Unguided()
JOINED = (
    "guidance joins the ends of two jumps, which is an approximation: the mean velocity of the "
    "guided flow is no sum of theirs; more steps come nearer to it"
)
AHEAD = (
    "this map was trained to jump to the data alone (objective.ends=data), and these jumps end "
    "before: choose solver.noise=1, or steps=1"
)
COORDINATES, FINALS = ("straight", "native"), ("auto", "solver", "denoise")
Frames = tuple[Tensor, Tensor] | None  # states (frames, n, *shape) and their times (frames,)
Receive = Callable[[Tensor, Given | None], None]  # samples and conditions of a batch


@dataclass
class Samples:
    """Samples x (n, *outer) as a user knows them, labels y (n,) int64 or None, and their cost."""

    x: Tensor
    y: Tensor | None
    nfe_planned: int | None  # None for an adaptive solver
    nfe_counted: float  # the mean over the samples
    nfe_most: float  # of the sample that costs most
    plan: Plan
    # all states (frames, n, *shape) of the first 20 images or 2,000 points at the scale of the
    # data, start and end included, and their times (frames,)
    trajectory: tuple[Tensor, Tensor] | None = None
    # their estimate of x in each interval, and its time (see trajectory.Witness)
    x_hat: tuple[Tensor, Tensor] | None = None
    # the conditions of the samples besides the label, by name: (n, *shape), NaN if not given
    given: dict[str, Tensor] = dataclasses.field(default_factory=dict)
    codec: Codec | None = None  # what has decoded them

    def _repr_html_(self) -> str:
        """A picture and a table for notebooks; their code is imported when they are shown."""
        cost = {"steps": self.plan.steps, "evaluations per sample": f"{self.nfe_counted:g}"}
        show = locate("fmdiff.pictures.notebook.of_samples")
        return str(show(self.x, self.y, cost, self.codec))


def default_batch_size(shape: tuple[int, ...]) -> int:
    """The batch size. It depends on the shape alone, so that equal seeds give equal bytes."""
    size = min(4096, 2**18 // torch.Size(shape).numel())
    return max(1, size // 64 * 64 or size)


def usual_solver(field: Field) -> tuple[str, dict[str, float]]:
    """The name of the default solver, and the keys of its YAML that differ.

    It is jump for a network that is a flow map, else adams. A map that jumps to the data alone
    gets there in every step, and noise is added again.
    """
    if not field.two_times or field.net is None:
        return "adams", {}
    return "jump", {"noise": float(field.consistency and field.gaussian)}


def preview_steps(field: Field) -> int:
    """The number of steps of the samples that a training run shows of itself."""
    return Jump.default_steps if usual_solver(field)[0] == "jump" else 20


def view(field: Field, coordinates: str, path: Path | None = None) -> Field:
    """The field in the coordinates in which the solver runs."""
    field = field if path is None else Along(field, path)
    if coordinates == "native":
        return field
    return Straight(field)


@dataclass(frozen=True)
class Sampler:
    """How a field is sampled.

    solver, schedule, guidance and path are objects. Each may also be a name, like solver="heun",
    or the content of its YAML, like schedule={"_target_": ..., "p": 1.5}.

    The default solver is adams, or jump for a network that is a flow map. Give steps, or the nfe
    they may cost; the default is 28 steps, or 4 jumps. The solver runs in straight or native
    `coordinates`. `path` replaces the field's own path. `clip` (none, data or dynamic) bounds the
    estimate of x of images. The default `batch_size` depends on the shape of the samples. For
    `final` see `plan`.

    Raises FmdiffError for any other value.
    """

    solver: Solver | None = None  # None: see usual_solver
    steps: int | None = None
    nfe: int | None = None
    schedule: Law | None = None  # see integration.law_of
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
            if part is not None:
                object.__setattr__(self, group, of_class(part, base))
        if self.path is not None:
            checked(self.path)
        object.__setattr__(self, "schedule", built("schedule", self.schedule))
        if self.schedule is not None and not callable(self.schedule):
            raise FmdiffError(f"schedule={self.schedule!r}: a law of u or its name is needed")
        need_positive(steps=self.steps, nfe=self.nfe, batch_size=self.batch_size)
        for option, choices in (("coordinates", COORDINATES), ("final", FINALS)):
            value = vars(self)[option]
            if value not in choices:
                raise FmdiffError(f"{option}={value}: {nearest(value, choices)}")

    def seen(self, field: Field, y: Given | None) -> Field:
        """The field as the solver sees it: guided to y of B rows, clipped, in `coordinates`.

        Raises FmdiffError for a guidance that does not go with the field or the solver.
        """
        if self.solver_of(field).maps:
            self.guidance.need_maps()
        guided = in_range(self.guidance(field, y), self.clip)
        return view(guided, self.coordinates, self.path)

    def solver_of(self, field: Field) -> Solver:
        """The solver of a field: the default one depends on it."""
        if self.solver is not None:
            return self.solver
        name, keys = usual_solver(field)
        solver: Solver = build(spec_of("solver", name) | keys)
        return solver

    def notes(self, field: Field, layout: Plan) -> list[str]:
        """What to know of samples of a field, as the solver sees it, by this plan for it."""
        solver = self.solver_of(field)
        if not isinstance(solver, Jump):
            return []
        joined = (layout.nfe or 0) > layout.steps
        ahead = field.consistency and layout.steps > 1 and solver.noise < 1
        return [JOINED] * joined + [AHEAD] * ahead

    def plan(self, field: Field, trajectory: bool = False) -> Plan:
        """The plan for a field as the solver sees it; see the function `plan`."""
        choice = self.solver_of(field), self.steps, self.schedule, self.final, self.nfe
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
        """Draw n samples of a field. Sample i depends on (seed, i), not on its batch.

        n is 64 by default, or the length of eps or x_start. `first` is the index i of the first
        sample. eps (n, *shape) replaces the source noise of the seed. x_start (n, *shape) holds
        the states at the first time, on the path of sampling. With `trajectory` the states of the
        first samples are kept, at no further evaluation. `receive` gets the samples and conditions
        of each batch, on the device. They are then not kept, and Samples.x is empty.

        Raises FmdiffError for n below 1, a start of another shape, or samples that are not finite.
        """
        n = self._count(field, n, eps, x_start)
        field = field.to(self.device, self.dtype)
        size = self.batch_size or default_batch_size(field.shape)
        layout: Plan | None = None
        harvest = _Harvest(field.codec, receive)
        for start in range(first, first + n, size):
            rows = range(start, min(start + size, first + n))
            y = self.guidance.labels(field, classes, rows.start, rows.stop, seed)
            flow = self.seen(field, None if y is None else y.to(self.device))
            flow.reset()
            layout = layout or self.plan(flow, trajectory)
            flow = tally = Tally(flow, len(rows))
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
            harvest.add(x, y, flow.evaluations, tally.each.max().item())
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
        """Carry the samples `rows` of a field, as the solver sees it, along a plan.

        x (B, *shape) holds their states at the first time, by default those of the seed. `watch`
        is the same field as a Witness.
        """
        field, times = watch or field, layout.times
        if x is None:
            noise = randomness.noise(rows.start, rows.stop, field.shape, seed, "start")
            x = field.start(self._own(noise), times[0], rows.start, seed)
        if watch:
            watch.observe(times[0], x)
        observe, solver = watch.observe if watch else None, self.solver_of(field)
        walk = self._noise(field, rows, seed) if solver.stochastic else None
        x = integrate(solver, field, x, times, walk, observe, layout.jump)
        if layout.jump:
            x = solver.arrival(field, x, times[-1])
            if watch:
                watch.keep(x)
        return x

    def _own(self, x: Tensor) -> Tensor:
        return x.to(self.device, self.dtype)

    def _noise(self, field: Field, rows: range, seed: int) -> Noise:
        walk = randomness.Brownian(rows.start, rows.stop, field.shape, seed)
        return lambda t, s: self._own(walk(t, s))

    def _count(
        self, field: Field, n: int | None, eps: Tensor | None, x_start: Tensor | None
    ) -> int:
        """The number of samples. Raises FmdiffError if it is 0 or the start does not fit."""
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
    """Collects the results of the batches."""

    def __init__(self, codec: Codec | None, receive: Receive | None) -> None:
        self.codec, self.receive = codec, receive
        self.xs: list[Tensor] = []
        self.ys: list[Given] = []
        self.watches: list[Witness] = []
        self.evaluations, self.most, self.bad = 0, 0.0, 0

    def add(self, x: Tensor, y: Given | None, evaluations: int, most: float) -> None:
        self.evaluations += evaluations
        self.most = max(self.most, most)
        self.bad += int((~x.flatten(1).isfinite()).any(1).sum())
        x = self.decoded(x)
        if self.receive:
            self.receive(x, y)
            return
        self.xs.append(x.cpu())
        if y is not None:
            self.ys.append(y)

    def decoded(self, x: Tensor) -> Tensor:
        """The samples, states or estimates x (..., *shape) as the user knows them."""
        if self.codec is None:
            return x
        size = default_batch_size(self.codec.outer)
        parts = [self.codec.decode(part) for part in torch.split(x, size)]
        return torch.cat(parts) if parts else x

    def samples(self, field: Field, n: int, layout: Plan) -> Samples:
        if self.bad:
            raise FmdiffError(
                f"{self.bad} of {n} samples are not finite; try more steps or final=denoise"
            )
        trajectory = x_hat = None
        if self.watches:
            trajectory, x_hat = joined(self.watches, layout.times, layout.steps)
            trajectory, x_hat = self._decoded_frames(trajectory), self._decoded_frames(x_hat)
        y = join(self.ys) if self.ys else None
        return Samples(
            torch.cat(self.xs) if self.xs else torch.empty(0, *field.outer),
            label(y),
            layout.nfe,
            self.evaluations / n,
            self.most,
            layout,
            trajectory,
            x_hat,
            named(y),
            self.codec,
        )

    def _decoded_frames(self, frames: Frames) -> Frames:
        if frames is None or self.codec is None:
            return frames
        states, times = frames
        x = self.decoded(states.flatten(0, 1))
        return x.view(*states.shape[:2], *x.shape[1:]), times


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
    """Draw n samples of a field, by Sampler(**sampler).draw(field, n, seed, ...); see there.

    fmdiff.generate(field, n=64, steps=28, seed=0, guidance=CFG(w=2))
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
    """The object for a name or for the content of a YAML. Any other value is returned as it is.

    Raises FmdiffError for a name without a YAML, and for one that needs the command line.
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
    """Convert states x of `path` to states of `other` at its time t (), of equal noise level."""
    u = path.time_of_r(other.r(t))
    return x * (other.alpha(t) + other.beta(t)) / (path.alpha(u) + path.beta(u))
