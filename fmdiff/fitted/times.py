"""schedule=fitted: times optimised for one model, one solver and one number of steps.

The fit minimises the error at the end: the RMS distance, over some trajectories of the model,
between the solver's result and the model's own fine solution from the same noise. It first
searches the two exponents of the law `ratio` (Nelder & Mead 1965). Then it searches the lengths
of the single steps (COBYLA, Powell 1994), from the best times so far, fixed laws included. At the
end it compares the result with the best fixed law on other noise and takes the better one.

`fmdiff sample` stores the times beside the checkpoint. They are valid for its weights alone.
"""

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fmdiff import randomness
from fmdiff.build import named
from fmdiff.errors import FmdiffError
from fmdiff.field import Field
from fmdiff.guidance import APG
from fmdiff.integration import Law, Plan, plan, span
from fmdiff.sampling import Sampler, default_batch_size
from fmdiff.schedules import Explicit, Karras, LogSNR, Power, Ratio, Schedule, Uniform

FIXED: dict[str, Law] = {
    "uniform": Uniform(),
    "ratio(1.1,1.4)": Ratio(1.1, 1.4),
    "power(1.5)": Power(1.5),
    "karras": Karras(0.002, 80.0, 7.0),
    "logsnr": LogSNR(0.002, 80.0),
}
LAW, LENGTHS = 25, 40  # the most solver runs of each of the two searches
RUNS = LAW + LENGTHS + len(FIXED) + 2  # with the fixed laws, and two runs on other noise
FREE = 10  # the most free lengths; for more steps they are interpolated
LEAST = 1e-3  # the shortest step that a search starts from, as a share of the interval


Progress = Callable[[int], None]  # is called with the number of further evaluations


class Fitted(Schedule):
    """The schedule whose times are fitted to a model.

    n trajectories are fitted to, and as many again decide; null takes 16 to 1,024, by their size.
    The fine solution takes `reference` steps. Noise by `seed` differs from that of all samples.
    """

    def __init__(self, n: int | None, reference: int, seed: int) -> None:
        for option, value, least in (("n", n or 2, 2), ("reference", reference, 20)):
            if value < least:
                raise FmdiffError(f"schedule.{option}={value}: {least} or more are needed")
        self.n, self.reference, self.seed = n, reference, seed

    def __call__(self, u: Tensor) -> Tensor:
        """Raises FmdiffError: there is no law before times are fitted to a model."""
        raise FmdiffError(
            "schedule=fitted has no times before they are fitted: sample by the command line, or "
            "with Explicit(schedule.fit(schedule.model(field, sampler))['times'])"
        )

    def model(self, field: Field, sampler: Sampler) -> "Model":
        """The model that the times are fitted to."""
        return Model(field, sampler, randomness.key(self.seed, "fitted"))

    def trajectories(self, model: "Model") -> int:
        """The number of trajectories that the times are fitted to."""
        return self.n or max(16, min(1024, 2**13 // torch.Size(model.field.shape).numel()))

    def cost(self, model: "Model") -> int:
        """The most evaluations that each of the trajectories takes."""
        return RUNS * (model.base.nfe or 0) + 2 * self.reference

    @torch.no_grad()
    def fit(self, model: "Model", progress: Progress | None = None) -> dict[str, Any]:
        """Draw trajectories and return what `compare` finds on them."""
        n = self.trajectories(model)
        training = Trajectories(model, 0, n, self.reference, progress)
        test = Trajectories(model, n, 2 * n, self.reference, progress)
        return compare(model, training, test)


def compare(model: "Model", training: "Trajectories", test: "Trajectories") -> dict[str, Any]:
    """Return the fitted times, or those of the fixed law best in training if the test prefers it.

    `times` are as in schedule.times=. `of` is fitted or the law's name. `error` is the RMS
    distance of both to the fine solution, in the test.
    """
    laws = {name: model.layout(law) for name, law in FIXED.items()}
    fixed = {name: layout for name, layout in laws.items() if layout is not None}
    errors = {name: training.error(model.sampler, layout) for name, layout in fixed.items()}
    best = min(errors, key=errors.__getitem__)
    plans = {"fitted": search(model, training, [(errors[k], fixed[k]) for k in fixed])}
    plans[best] = fixed[best]
    error = {name: test.error(model.sampler, layout) for name, layout in plans.items()}
    of = "fitted" if error["fitted"] < error[best] else best
    return {"times": model.explicit(plans[of].times), "of": of, "error": error}


def search(model: "Model", training: "Trajectories", trials: list[tuple[float, Plan]]) -> Plan:
    """Search for the plan of the least error, starting from the trials made before."""
    from scipy.optimize import minimize

    trials = list(trials)

    def of(layout: Plan) -> float:
        trials.append((training.error(model.sampler, layout), layout))
        return math.log(max(trials[-1][0], 1e-12))

    def of_law(q: np.ndarray) -> float:
        layout = model.layout(Ratio(*np.exp(q.clip(-3, 3)).tolist()))
        assert layout is not None
        return of(layout)

    first = np.log([[1, 1.3], [1.3, 1.3], [1, 1.8]])
    method = {"maxfev": LAW, "initial_simplex": first, "xatol": 0.02, "fatol": 1e-3}
    minimize(of_law, first[0], method="Nelder-Mead", options=method)
    start = model.lengths(min(trials, key=lambda pair: pair[0])[1])
    places = np.linspace(0, 1, len(start))
    knots = np.linspace(0, 1, min(len(start), FREE))

    def of_lengths(stretch: np.ndarray) -> float:
        powers = np.interp(places, knots, np.append(stretch, 0.0).clip(-5, 5))
        return of(model.of_lengths(start * np.exp(powers)))

    method = {"maxiter": LENGTHS, "rhobeg": 0.2, "tol": 0.01}
    minimize(of_lengths, np.zeros(len(knots) - 1), method="COBYLA", options=method)
    return min(trials, key=lambda pair: pair[0])[1]


class Model:
    """A field and its sampler, as a function of the times.

    `what` is fitted, in messages. Raises FmdiffError for a solver without fixed steps, and for
    fewer than two steps.
    """

    def __init__(
        self, field: Field, sampler: Sampler, seed: int, what: str = "schedule=fitted"
    ) -> None:
        solver, nfe = sampler.solver_of(field), sampler.nfe
        if solver.stochastic or solver.adaptive:
            kind = "stochastic" if solver.stochastic else "adaptive"
            raise FmdiffError(
                "schedule=fitted is for solvers whose end follows from their steps, and this one "
                f"is {kind}: choose euler, heun, adams, dpmpp_2m or another ODE solver"
            )
        if isinstance(sampler.guidance, APG) and sampler.guidance.momentum:
            raise FmdiffError(
                f"{what} needs a velocity that depends on x and t alone, and guidance.momentum "
                "remembers the way: choose guidance.momentum=0"
            )
        sampler = replace(sampler, solver=solver)
        self.field = field.to(sampler.device, sampler.dtype)
        self.sampler, self.solver, self.seed = sampler, solver, seed
        self.flow = self.of_samples(0, 1)
        self.base = replace(sampler, schedule=Uniform()).plan(self.flow)
        if self.base.steps < 2:
            raise FmdiffError(f"{what} needs two steps or more, and this is {self.base.steps}")
        self.lo, self.hi = span(self.flow, solver, sampler.final)
        ends = torch.tensor([self.lo, self.hi], dtype=torch.float64)
        if nfe is not None and len({self.flow.price(t) for t in [*self.base.times, *ends]}) > 1:
            raise FmdiffError(
                f"nfe={nfe}: under this guidance what steps cost depends on the times, which are "
                "to be fitted: give steps= in its place"
            )
        self.clean = bool(self.flow.path.beta(ends[1]) == 0)

    def of_samples(self, start: int, stop: int) -> Field:
        """The field of samples start ... stop - 1, of all classes in turn."""
        y = self.sampler.guidance.labels(self.field, None, start, stop, self.seed)
        return self.sampler.seen(self.field, None if y is None else y.to(self.sampler.device))

    def layout(self, law: Law) -> Plan | None:
        """The plan of a law, or None if the law does not apply."""
        sampler = self.sampler
        try:
            return plan(self.flow, self.solver, self.base.steps, law, sampler.final)
        except FmdiffError:
            return None

    def explicit(self, times: Tensor) -> list[float]:
        """The value of schedule.times= that gives a plan of these times."""
        ends_with_1 = self.base.jump and (self.hi < 1 or self.clean)
        return times.tolist() + [1.0] * ends_with_1

    def lengths(self, layout: Plan) -> np.ndarray:
        """The lengths (S,) of all steps over [lo, hi], including one that a jump replaces."""
        times = layout.times.numpy()
        edges = np.concatenate([[self.lo], times[1:], [self.hi] * layout.jump])
        return np.diff(edges).clip(LEAST * (self.hi - self.lo))

    def of_lengths(self, lengths: np.ndarray) -> Plan:
        """The plan whose steps are proportional to `lengths` (S,)."""
        share = np.concatenate([[0.0], lengths.cumsum() / lengths.sum()])
        times = self.lo + (self.hi - self.lo) * torch.from_numpy(share)
        times[-1] = self.hi
        law = Explicit(self.explicit(times[:-1] if self.base.jump else times))
        return plan(self.flow, self.solver, None, law, self.sampler.final)


class Trajectories:
    """Samples start ... stop - 1 of a model and their fine solutions.

    Raises FmdiffError if a fine solution is not finite.
    """

    def __init__(
        self,
        model: Model,
        start: int,
        stop: int,
        reference: int,
        progress: Progress | None = None,
    ) -> None:
        self.model, self.progress = model, progress
        size = default_batch_size(model.field.shape)
        solver = named("solver", "adams")
        fine = replace(model.sampler, solver=solver)
        final = "solver" if fine.final == "solver" else "auto"
        layout = plan(model.flow, solver, reference, FIXED["ratio(1.1,1.4)"], final)
        self.parts: list[tuple[Field, range, Tensor]] = []
        for first in range(start, stop, size):
            rows = range(first, min(first + size, stop))
            field = model.of_samples(rows.start, rows.stop)
            truth = self._ends(field, fine, layout, rows)
            if not truth.isfinite().all():
                raise FmdiffError(
                    f"reference={reference}: the fine solution is not finite; it needs more steps"
                )
            self.parts.append((field, rows, truth))

    def start(self, field: Field, rows: range, t: Tensor) -> Tensor:
        """The states (B, *shape) of these samples at the first time t ()."""
        model = self.model
        noise = randomness.noise(rows.start, rows.stop, field.shape, model.seed, "start")
        noise = noise.to(model.sampler.device, model.sampler.dtype)
        return field.start(noise, t, rows.start, model.seed)

    def _ends(self, field: Field, sampler: Sampler, layout: Plan, rows: range) -> Tensor:
        x = sampler.carry(field, layout, rows, self.model.seed)
        if self.progress:
            self.progress(len(rows) * (layout.nfe or 0))
        return x.double().cpu()

    def error(self, sampler: Sampler, layout: Plan) -> float:
        """The RMS distance per coordinate to the fine solutions, or 1e6 if it is not finite."""
        total, count = 0.0, 0
        for field, rows, truth in self.parts:
            off = self._ends(field, sampler, layout, rows) - truth
            total += off.square().sum().item()
            count += off.numel()
        return math.sqrt(total / count) if math.isfinite(total) else 1e6
