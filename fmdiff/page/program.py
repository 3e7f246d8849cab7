"""A sampling as data: the real solver runs on rows of coefficients.

Solvers with fixed steps only add: each state is a sum of earlier states, of answers of the field
and of noise, with numbers that do not depend on the samples. To find these numbers, the solver
runs on rows in place of samples, and each thing that enters is a unit vector. A page then needs
sums alone, whatever the solver, the schedule, the path and the coordinates are.
"""

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from fmdiff import randomness
from fmdiff.along import Around
from fmdiff.errors import FmdiffError
from fmdiff.field import Field, NetField
from fmdiff.guidance import CFG, Unguided
from fmdiff.integration import Plan, integrate
from fmdiff.path import Kind
from fmdiff.sampling import Sampler
from fmdiff.solvers.solver import Noise, Solver, Step, check_step
from fmdiff.trajectory import Witness

Row = tuple[tuple[int, float], ...]  # (the number of an earlier item, its coefficient)
Ask = Callable[[Tensor, Tensor, Kind, Tensor | None], Tensor]  # (x_t, t, kind, s) -> an answer
CLOSE = 1e-9  # how far a program may be from its solver, relative to the largest number


@dataclass(frozen=True)
class Question:
    """Asks the field at the state `row` and its own time t, or from t to its own time s."""

    row: Row
    t: float
    s: float | None


@dataclass(frozen=True)
class Normal:
    """A standard normal draw: (W_s - W_t) / sqrt(s - t) of the Brownian motion."""

    t: float
    s: float


@dataclass(frozen=True)
class State:
    """The state at time t, in the solver's coordinates; `size` takes it to the scale of data."""

    row: Row
    t: float
    size: float


Item = Question | Normal | State


@dataclass(frozen=True)
class Program:
    """The items of a sampling in their order: item 0 is the start, and rows speak of these.

    All answers are of one `kind`, that of `asked(field)`; the rows convert them. `estimates`
    holds, for each interval in which it is finite, the time of the solver's estimate of x and its
    row. The states at the first time are scale * eps + shift for standard normal eps; `scale` is
    None for a field whose start is more than that. w is the strength of classifier-free guidance
    that was asked for, or None without guidance.
    """

    items: tuple[Item, ...]
    kind: Kind
    estimates: tuple[tuple[float, Row], ...]
    scale: float | None
    shift: Tensor  # (*shape)
    w: float | None = None

    @property
    def states(self) -> list[State]:
        """The states, of which the first is the start and the last the samples."""
        return [item for item in self.items if isinstance(item, State)]

    def run(self, ask: Ask, x: Tensor, noise: Noise | None = None) -> list[Tensor]:
        """The value of every item, for states x (B, *shape) at the first time.

        ask answers for the field, and noise(t, s) gives W_s - W_t, as for a solver.
        """
        values = [x]
        for item in self.items[1:]:
            if isinstance(item, Normal):
                assert noise is not None
                value = (noise(_time(item.t), _time(item.s)) / (item.s - item.t) ** 0.5).to(x)
            else:
                value = total(item.row, values)
            if isinstance(item, Question):
                s = None if item.s is None else _time(item.s)
                value = ask(value, _time(item.t), self.kind, s)
            values.append(value)
        return values

    def data(self) -> dict[str, Any]:
        """The program for a page, which program.js runs. A row lies flat: number, coefficient."""
        return {
            "kind": self.kind,
            "items": [_data(item) for item in self.items],
            "estimates": [{"t": t, "row": _flat(row)} for t, row in self.estimates],
            "scale": self.scale,
            "shift": self.shift.flatten().tolist() if self.shift.any() else None,
        }


def total(row: Row, values: list[Tensor]) -> Tensor:
    """The sum of a row over the values of the items."""
    parts = [c * values[i] for i, c in row]
    return torch.stack(parts).sum(0) if parts else torch.zeros_like(values[0])


def _time(t: float) -> Tensor:
    return torch.tensor(t, dtype=torch.float64)


def _flat(row: Row) -> list[float]:
    return [number for term in row for number in term]


def _data(item: Item) -> dict[str, Any]:
    if isinstance(item, Normal):
        return {"t": item.t, "s": item.s}
    if isinstance(item, State):
        return {"t": item.t, "row": _flat(item.row), "size": item.size}
    return {"t": item.t, "row": _flat(item.row)} | ({} if item.s is None else {"s": item.s})


def asked(field: Field) -> Kind:
    """The kind that a program asks a field for: a network for its own prediction."""
    return field.prediction if isinstance(field, NetField) else "straight"


class _Answers(Around):
    """A field whose answers, all of one kind, a function gives."""

    def __init__(self, field: Field, answered: Kind, ask: Ask) -> None:
        super().__init__(field)
        self.answered, self.ask = answered, ask

    def predict(self, x_t: Tensor, t: Tensor, kind: Kind, s: Tensor | None = None) -> Tensor:
        answer = self.ask(x_t, t, self.answered, s)
        return self.path.convert(answer, x_t, t, self.answered, kind)


class _Marked(Solver):
    """A solver whose every state becomes a thing of its own, so that rows stay short."""

    def __init__(self, solver: Solver, mark: Callable[[Tensor, Tensor], Tensor]) -> None:
        self.solver, self.mark = solver, mark

    def begin(self, times: Tensor, jump: bool = False) -> Any:
        return self.solver.begin(times, jump)

    def step(
        self, field: Field, x: Tensor, t: Tensor, s: Tensor, state: Any, noise: Noise | None
    ) -> Step:
        result = self.solver.step(field, x, t, s, state, noise)
        check_step(self.solver, result, x)
        return self.mark(result[0], s), result[1]


@dataclass
class _Tape:
    """The items so far. Rows have `width` columns; a unit vector beyond these is 0."""

    width: int
    items: list[Item] = field(default_factory=list)

    def put(self, item: Item) -> Tensor:
        """Append an item; return its unit vector (1, width)."""
        unit = torch.zeros(1, self.width, dtype=torch.float64)
        unit[:, len(self.items) : len(self.items) + 1] = 1
        self.items.append(item)
        return unit

    def ask(self, x_t: Tensor, t: Tensor, kind: Kind, s: Tensor | None) -> Tensor:
        return self.put(Question(_row(x_t), t.item(), None if s is None else s.item()))

    def noise(self, t: Tensor, s: Tensor) -> Tensor:
        return self.put(Normal(t.item(), s.item())) * (s - t).sqrt()

    def mark(self, x: Tensor, t: Tensor) -> Tensor:
        return self.put(State(_row(x), t.item(), 1.0))


def _row(x: Tensor) -> Row:
    columns = x[0].nonzero().flatten().tolist()
    return tuple((i, x[0, i].item()) for i in columns)


def record(sampler: Sampler, field: Field) -> Program:
    """The program of a sampler for a field: `Sampler.draw` without the field and the noise.

    The answers that it asks for are those of the guided field, `sampler.guidance(field, y)`, in
    the field's own coordinates and times, and of the kind `asked(field)`.

    Raises FmdiffError for a solver whose steps are no fixed sums, as of adaptive ones, and for
    clipped estimates and guidance other than none and cfg with a constant w.
    """
    w, kind = _strength(sampler), asked(field)
    sampler = replace(sampler, device="cpu", dtype=torch.float64)
    field = sampler.guidance(field, sampler.guidance.labels(field, None, 0, 2, 0))
    alone = replace(sampler, guidance=Unguided())
    layout = alone.plan(alone.seen(field, None))
    if layout.nfe is None:
        raise FmdiffError(_refusal(alone.solver_of(field)))
    tape, _ = _tape(alone, field, kind, layout, 1)  # to count the items
    tape, watch = _tape(alone, field, kind, layout, len(tape.items))
    estimates = [(time.item(), _row(row)) for row, time in watch.estimates if row.isfinite().all()]
    sizes = iter(state[state != 0].item() for state in watch.states)
    items = [replace(i, size=next(sizes)) if isinstance(i, State) else i for i in tape.items]
    scale, shift = _start(watch, layout.times[0])
    program = Program(tuple(items), kind, tuple(estimates), scale, shift, w)
    _check(program, alone, field, layout)
    return program


def _strength(sampler: Sampler) -> float | None:
    """The w of cfg, or None without guidance. Raises FmdiffError for what a page cannot do."""
    guidance = sampler.guidance
    if sampler.clip != "none":
        raise FmdiffError(f"clip={sampler.clip}: a page cannot clip estimates; choose clip=none")
    if type(guidance) is Unguided:
        return None
    if isinstance(guidance, CFG) and not guidance.phi:
        w, parts = guidance.w.value, (guidance.interval, guidance.on)
        if isinstance(w, float) and parts == (None, None):
            return w
    raise FmdiffError(
        f"guidance={type(guidance).__name__}: a page guides by guidance=none or by cfg with a "
        "number for w"
    )


def _refusal(solver: Solver) -> str:
    return (
        f"{type(solver).__name__} takes steps that depend on the samples, and a page plays fixed "
        "steps: choose another solver, like heun, or solver.weigh=false for adams"
    )


def _tape(
    sampler: Sampler, field: Field, kind: Kind, layout: Plan, width: int
) -> tuple[_Tape, Witness]:
    """The items of a sampling, and what a witness saw of their rows."""
    tape = _Tape(width)
    flow = Witness(sampler.seen(_Answers(field, kind, tape.ask), None), 1)
    solver = sampler.solver_of(field)
    x = tape.put(State((), layout.times[0].item(), 1.0))
    flow.observe(layout.times[0], x)
    marked = _Marked(solver, tape.mark)
    x = integrate(marked, flow, x, layout.times, tape.noise, flow.observe, layout.jump)
    if layout.jump:
        flow.keep(tape.mark(solver.arrival(flow, x, layout.times[-1]), _time(1.0)))
    return tape, flow


def _start(flow: Field, t: Tensor) -> tuple[float | None, Tensor]:
    """(scale, shift) of the states at t; no scale if these are not scale * eps + shift."""
    zero, one = (torch.full((2, *flow.shape), c, dtype=torch.float64) for c in (0.0, 1.0))
    shift, sum_ = (flow.start(eps, t, 0, 0) for eps in (zero, one))
    other = flow.start(-2 * one, t, 5, 1)
    slope = sum_ - shift
    scale = slope.flatten()[0]
    plain = torch.allclose(slope, scale.expand_as(slope)) and torch.allclose(shift[:1], shift)
    if plain and torch.allclose(other, shift - 2 * scale):
        return scale.item(), shift[0]
    return None, torch.zeros(flow.shape, dtype=torch.float64)


def _check(program: Program, sampler: Sampler, field: Field, layout: Plan) -> None:
    """Raises FmdiffError unless the program does on random answers what the solver does."""

    def draws(purpose: str) -> Callable[..., Tensor]:
        chance = randomness.generator(0, purpose)
        return lambda *_: torch.randn(3, 2, dtype=torch.float64, generator=chance)

    x, solver = draws("start")(), sampler.solver_of(field)
    flow = sampler.seen(_Answers(field, program.kind, draws("answers")), None)
    end = integrate(solver, flow, x, layout.times, draws("noise"), jump=layout.jump)
    if layout.jump:
        end = solver.arrival(flow, end, layout.times[-1])
    values = program.run(draws("answers"), x, draws("noise"))
    size = max(value.abs().max().item() for value in values)
    if not (values[-1] - end).abs().max() <= CLOSE * size:
        raise FmdiffError(_refusal(solver))
