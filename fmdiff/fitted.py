"""schedule=fitted: times optimised for one model, one solver and one number of steps.

What is made small is the error at the end itself: the RMS distance, over some trajectories of the
model, between what the solver gives and the model's own fine solution from the same noise. First
the two exponents of the law `ratio` are searched (Nelder & Mead 1965), then the lengths of the
steps one by one (COBYLA, Powell 1994), from the best of all that was tried, fixed laws included.
Other noise decides at the end whether the result is better than the best fixed law; where it is
not, that law's times are taken.

The times lie beside the checkpoint, in schedules/NAME.json, and are valid for its weights alone.
"""

import hashlib
import json
import math
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fmdiff import files, randomness
from fmdiff.build import named
from fmdiff.errors import FmdiffError
from fmdiff.field import Field
from fmdiff.guidance import clipped
from fmdiff.machine.precision import FastNet
from fmdiff.machine.progress import Bar
from fmdiff.runs import checkpoint
from fmdiff.sampling import Plan, default_batch_size, one_batch, plan, view
from fmdiff.schedules import Explicit, Karras, LogSNR, Power, Ratio, Uniform

FIXED: dict[str, Callable] = {
    "uniform": Uniform(),
    "ratio(1.1,1.4)": Ratio(1.1, 1.4),
    "power(1.5)": Power(1.5),
    "karras": Karras(0.002, 80.0, 7.0),
    "logsnr": LogSNR(0.002, 80.0),
}
LAW, LENGTHS = 25, 40  # times the solver is run in each of the two searches, at most
RUNS = LAW + LENGTHS + len(FIXED) + 2  # and the fixed laws, and both on other noise
FREE = 10  # lengths that are free; those of more steps are interpolated
LEAST = 1e-3  # the shortest step that a search starts from, as a share of the interval


class Fitted:
    """What the times are fitted to; see `resolve` and `fit`.

    n: trajectories, as many again decide; null: 1,024 points or 16 images. reference: steps of
    the fine solution. seed: of their noise, which is not that of the samples of any seed.
    """

    def __init__(self, n: int | None, reference: int, seed: int) -> None:
        for option, value, least in (("n", n or 2, 2), ("reference", reference, 20)):
            if value < least:
                raise FmdiffError(f"schedule.{option}={value}: {least} or more are needed")
        self.n, self.reference, self.seed = n, reference, seed

    def resolve(
        self,
        field: Field,
        chosen: dict[str, Any],
        settings: dict[str, Any],
        about: dict[str, Any] | None,
        where: torch.device,
    ) -> dict[str, Any]:
        """What stands in place of this schedule among the keyword arguments of `generate`.

        chosen: those arguments; settings: the command's; about: of the checkpoint, if there is
        one, where the times are read and stored. Prints what is done.

        Raises FmdiffError for a solver that has no fixed steps, and for less than two steps.
        """
        model = Model(field, chosen, randomness.key(self.seed, "fitted"), where)
        groups = ("solver", "guidance", "path", "schedule", "coordinates", "final", "clip")
        key = {name: settings[name] for name in groups} | {"steps": model.base.steps}
        if about is None:
            times = self.fit(model)["times"]
            print("not stored: there is no checkpoint")
            return _explicit(times)
        key["weights"] = about["average"]
        file = Path(about["path"]).parent / "schedules" / _file_name(key)
        sums = checksum(field, chosen["guidance"])
        found = _stored(file)
        if found and found["checksum"] == sums:
            print(f"schedule fitted: {file}")
            return _explicit(found["times"])
        if found:
            print(f"{file} is of other weights, those of step {found['step']}: fitted anew")
        found = self.fit(model) | {"step": about["step"], "checksum": sums, "for": key}
        try:
            file.parent.mkdir(exist_ok=True)
            with files.whole(file) as part:
                part.write(json.dumps(found, indent=2).encode() + b"\n")
            print(f"stored in {file}")
        except OSError as error:
            print(f"not stored: {file} cannot be written ({error.strerror})")
        return _explicit(found["times"])

    @torch.no_grad()
    def fit(self, model: "Model") -> dict[str, Any]:
        """What `compare` finds on trajectories drawn for it; prints how good it is."""
        n = self.n or max(16, min(1024, 2**13 // torch.Size(model.field.shape).numel()))
        steps, cost = model.base.steps, (RUNS * (model.base.nfe or 0) + 2 * self.reference)
        print(
            f"fitting the times of {steps} steps to {n} trajectories, at most {cost:,} "
            "evaluations of each"
        )
        with Bar(n * cost, "evaluation") as bar:
            seen = Trajectories(model, 0, n, self.reference, bar)
            other = Trajectories(model, n, 2 * n, self.reference, bar)
            found = compare(model, seen, other)
        (_, error), (best, of_best) = found["error"].items()
        print(
            f"RMS distance to the fine solution, other noise: fitted {error:.3g}, schedule "
            f"{best}, the best of the fixed ones, {of_best:.3g}"
            + ("" if found["of"] == "fitted" else "; its times are taken")
        )
        return found


def compare(model: "Model", seen: "Trajectories", other: "Trajectories") -> dict[str, Any]:
    """Times fitted on `seen` or those of the best fixed law there: what `other` says is better.

    times: as schedule.times= takes them. of: fitted, or the law's name. error: of both, on other.
    """
    laid_out = {name: model.laid_out(law) for name, law in FIXED.items()}
    fixed = {name: made for name, made in laid_out.items() if made is not None}
    errors = {name: seen.error(model.solver, made) for name, made in fixed.items()}
    best = min(errors, key=errors.__getitem__)
    plans = {"fitted": search(model, seen, [(errors[k], fixed[k]) for k in fixed])}
    plans[best] = fixed[best]
    error = {name: other.error(model.solver, made) for name, made in plans.items()}
    of = "fitted" if error["fitted"] < error[best] else best
    return {"times": model.listed(plans[of].times), "of": of, "error": error}


def search(model: "Model", seen: "Trajectories", tried: list[tuple[float, Plan]]) -> Plan:
    """The plan of the least error; the search begins at the best of those tried before."""
    from scipy.optimize import minimize

    tried = list(tried)

    def of(made: Plan) -> float:
        tried.append((seen.error(model.solver, made), made))
        return math.log(max(tried[-1][0], 1e-12))

    def of_law(q: np.ndarray) -> float:
        made = model.laid_out(Ratio(*np.exp(q.clip(-3, 3)).tolist()))
        assert made is not None
        return of(made)

    first = np.log([[1, 1.3], [1.3, 1.3], [1, 1.8]])
    method = {"maxfev": LAW, "initial_simplex": first, "xatol": 0.02, "fatol": 1e-3}
    minimize(of_law, first[0], method="Nelder-Mead", options=method)
    start = model.lengths(min(tried, key=lambda pair: pair[0])[1])
    places = np.linspace(0, 1, len(start))
    knots = np.linspace(0, 1, min(len(start), FREE))

    def of_lengths(stretch: np.ndarray) -> float:
        powers = np.interp(places, knots, np.append(stretch, 0.0).clip(-5, 5))
        return of(model.of_lengths(start * np.exp(powers)))

    method = {"maxiter": LENGTHS, "rhobeg": 0.2, "tol": 0.01}
    minimize(of_lengths, np.zeros(len(knots) - 1), method="COBYLA", options=method)
    return min(tried, key=lambda pair: pair[0])[1]


class Model:
    """A field with all that `generate` is told of how it is sampled, as a function of times.

    chosen: the keyword arguments of `generate`.
    """

    def __init__(
        self, field: Field, chosen: dict[str, Any], seed: int, where: torch.device
    ) -> None:
        solver = chosen["solver"]
        if solver.stochastic or getattr(solver, "adaptive", False):
            kind = "stochastic" if solver.stochastic else "adaptive"
            raise FmdiffError(
                "schedule=fitted is for solvers whose end follows from their steps, and this one "
                f"is {kind}: choose euler, heun, adams, dpmpp_2m or another ODE solver"
            )
        self.field = field.to(where, chosen["dtype"])
        self.chosen, self.solver, self.seed, self.where = chosen, solver, seed, where
        self.final = chosen["final"]
        self.bound = self.seen(0, 1)
        steps, nfe = chosen["steps"], chosen["nfe"]
        self.base = plan(self.bound, solver, steps, Uniform(), self.final, nfe)
        if self.base.steps < 2:
            raise FmdiffError(
                f"schedule=fitted needs two steps or more, and this is {self.base.steps}"
            )
        self.lo, self.hi = self.bound.interval(solver.asks)
        ends = torch.tensor([self.lo, self.hi], dtype=torch.float64)
        if nfe is not None and len({self.bound.price(t) for t in [*self.base.times, *ends]}) > 1:
            raise FmdiffError(
                f"nfe={nfe}: under this guidance what steps cost depends on the times, which are "
                "to be fitted: give steps= in its place"
            )
        self.clean = bool(self.bound.path.beta(ends[1]) == 0)

    def seen(self, start: int, stop: int) -> Field:
        """The field of samples start ... stop - 1, of all classes in turn."""
        chosen, guidance = self.chosen, self.chosen["guidance"]
        y = guidance.labels(self.field, None, start, stop, self.seed)
        bound = guidance(self.field, None if y is None else y.to(self.where))
        return view(clipped(bound, chosen["clip"]), chosen["coordinates"], chosen["path"])

    def laid_out(self, law: Callable) -> Plan | None:
        """The plan of a law, None where it does not apply."""
        try:
            return plan(self.bound, self.solver, self.base.steps, law, self.final)
        except FmdiffError:
            return None

    def listed(self, times: Tensor) -> list[float]:
        """What schedule.times= is to be for a plan of these times."""
        ends_with_1 = self.base.jump and (self.hi < 1 or self.clean)
        return times.tolist() + [1.0] * ends_with_1

    def lengths(self, made: Plan) -> np.ndarray:
        """The lengths (S,) of all steps over [lo, hi], also of one that a jump replaces."""
        times = made.times.numpy()
        edges = np.concatenate([[self.lo], times[1:], [self.hi] * made.jump])
        return np.diff(edges).clip(LEAST * (self.hi - self.lo))

    def of_lengths(self, lengths: np.ndarray) -> Plan:
        """The plan whose steps are proportional to `lengths` (S,)."""
        share = np.concatenate([[0.0], lengths.cumsum() / lengths.sum()])
        times = self.lo + (self.hi - self.lo) * torch.from_numpy(share)
        times[-1] = self.hi
        given = self.listed(times[:-1] if self.base.jump else times)
        return plan(self.bound, self.solver, None, Explicit(given), self.final)


class Trajectories:
    """Samples start ... stop - 1 of a model and their fine solutions."""

    def __init__(self, model: Model, start: int, stop: int, reference: int, bar: Bar) -> None:
        self.model, self.bar = model, bar
        size = default_batch_size(model.field.shape)
        fine = named("solver", "adams")
        made = plan(model.bound, fine, reference, FIXED["ratio(1.1,1.4)"])
        self.parts: list[tuple[Field, int, int, Tensor]] = []
        for first in range(start, stop, size):
            last = min(first + size, stop)
            seen = model.seen(first, last)
            truth = self._ends(seen, fine, made, first, last)
            if not truth.isfinite().all():
                raise FmdiffError(
                    f"schedule.reference={reference}: the fine solution is not finite; more steps "
                    "are needed"
                )
            self.parts.append((seen, first, last, truth))

    def _ends(self, seen: Field, solver, made: Plan, first: int, last: int) -> Tensor:
        model = self.model
        where = model.where, model.chosen["dtype"]
        x = one_batch(seen, solver, made, first, last, model.seed, *where)
        self.bar((last - first) * (made.nfe or 0))
        return x.double().cpu()

    def error(self, solver, made: Plan) -> float:
        """RMS distance, per coordinate, to the fine solutions; 1e6 where it is not finite."""
        total, count = 0.0, 0
        for seen, first, last, truth in self.parts:
            off = self._ends(seen, solver, made, first, last) - truth
            total += off.square().sum().item()
            count += off.numel()
        return math.sqrt(total / count) if math.isfinite(total) else 1e6


def _explicit(times: list[float]) -> dict[str, Any]:
    return {"schedule": Explicit(times), "steps": None, "nfe": None}


def checksum(*parts: Any) -> str:
    """SHA-256 of the weights of fields and guidances, and of the networks they lead with."""
    digest = hashlib.sha256()
    for part in parts:
        for name in ("net", "guide", "classifier"):
            inner = getattr(part, name, None)
            inner = inner.net if isinstance(inner, FastNet) else inner
            if isinstance(inner, torch.nn.Module):
                for tensor in inner.state_dict().values():
                    digest.update(checkpoint.digest(tensor.float()).encode())
            elif inner is not None:
                digest.update(checksum(inner).encode())
    return digest.hexdigest()


def _file_name(key: dict[str, Any]) -> str:
    """A readable name of what times are for; the last part alone makes it one of a kind."""
    words = [*_words(key["solver"]), f"{key['steps']}-steps", key["coordinates"]]
    for group, usual in (("guidance", "Unguided"), ("path", None)):
        words += [word for word in _words(key[group] or {}) if word != usual]
    digest = hashlib.sha256(json.dumps(key, sort_keys=True, default=str).encode()).hexdigest()
    return re.sub(r"[^\w.=+-]+", "_", "-".join(words))[:150] + f"-{digest[:8]}.json"


def _words(spec: dict[str, Any]) -> list[str]:
    """A class and its options: Adams order=4 corrector limit=0.25."""
    given = {k: v for k, v in spec.items() if v not in (None, False, []) and k != "_target_"}
    name = str(spec.get("_target_", "")).rpartition(".")[2]
    options = [k if v is True else f"{k}={v}" for k, v in given.items() if type(v) is not dict]
    return [name, *options] if name else []


def _stored(file: Path) -> dict[str, Any] | None:
    """What an earlier fit left; None where there is none, or none that can be read."""
    try:
        found = json.loads(file.read_text())
        Explicit(found["times"])
        return {"step": found["step"], "checksum": found["checksum"], "times": found["times"]}
    except FileNotFoundError:
        return None
    except (OSError, ValueError, KeyError, TypeError, FmdiffError):
        print(f"{file} cannot be read: fitted anew")
        return None
