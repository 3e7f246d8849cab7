"""Stores what is fitted to a model beside its checkpoint: times and solvers.

schedule=fitted  RUN/schedules/NAME.json, the times of a solver
solver=fitted    RUN/solvers/NAME.json, times and weights
"""

import hashlib
import json
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from fmdiff import files
from fmdiff.errors import FmdiffError
from fmdiff.field import Field
from fmdiff.fitted.solver import FittedSolver, chosen
from fmdiff.fitted.times import Fitted, Model
from fmdiff.guidance import Unguided
from fmdiff.machine.progress import Bar
from fmdiff.runs import zoo
from fmdiff.runs.folder import OUTPUTS
from fmdiff.sampling import Sampler
from fmdiff.schedules import Explicit

GROUPS = ("solver", "guidance", "path", "schedule", "coordinates", "final", "clip", "precision")
Entry = dict[str, Any]  # what a fit returns, and what it holds for


def with_fits(
    sampler: Sampler, field: Field, settings: dict[str, Any], about: dict[str, Any] | None
) -> Sampler:
    """Give the sampler what is to be fitted to the field: the times, or the solver.

    settings: the command's. about: describes the checkpoint, if there is one, beside which fits
    are looked up and stored. Prints what is done.

    Raises FmdiffError for a sampler that nothing can be fitted for.
    """
    for fitted, kind, apply in (
        (sampler.solver, "solver", chosen),
        (sampler.schedule, "schedule", _explicit),
    ):
        if isinstance(fitted, FittedSolver | Fitted):
            model = fitted.model(field, sampler)
            sums = checksum(field, sampler.guidance)
            entry = _entry(kind, fitted, model, apply, settings, about, sums)
            return apply(sampler, entry)
    return sampler


def _entry(
    kind: str,
    fitted: FittedSolver | Fitted,
    model: Model,
    apply: Callable[[Sampler, Entry], Sampler],
    settings: dict[str, Any],
    about: dict[str, Any] | None,
    sums: str,
) -> Entry:
    """The stored fit of this kind, solver or schedule, or a new one, which is then stored."""
    if about is None:
        entry = fit(kind, fitted, model)
        print("not stored: there is no checkpoint")
        return entry
    key = {name: settings[name] for name in GROUPS} | {"steps": model.base.steps}
    key["weights"] = about["average"]
    file = _beside(about["path"]) / f"{kind}s" / _file_name(key)
    stored = _stored(file, lambda entry: apply(model.sampler, entry))
    if stored and stored["checksum"] == sums:
        print(f"{kind} fitted: {file}")
        return stored
    if stored:
        print(f"{file} is of other weights, those of step {stored['step']}: fitted anew")
    entry = fit(kind, fitted, model) | {"step": about["step"], "checksum": sums, "for": key}
    try:
        file.parents[1].mkdir(parents=True, exist_ok=True)
        files.make_folder(file.parent)
        with files.whole(file) as part:
            part.write(json.dumps(entry, indent=2).encode() + b"\n")
        print(f"stored in {file}")
    except OSError as error:
        print(f"not stored: {file} cannot be written ({error.strerror})")
    return entry


def _beside(path: str) -> Path:
    """The folder beside a checkpoint. The package, where the zoo lies, is not written to."""
    in_zoo = path.startswith(zoo.PREFIX)
    return OUTPUTS / path.replace(":", "-") if in_zoo else Path(path).parent


def fit(kind: str, fitted: FittedSolver | Fitted, model: Model) -> Entry:
    """The result of a fit. Prints its cost and its quality."""
    n, cost = fitted.trajectories(model), fitted.cost(model)
    what = "the times" if kind == "schedule" else "times and weights"
    print(
        f"fitting {what} of {model.base.steps} steps to {n} trajectories, at most {cost:,} "
        "evaluations of each"
    )
    with Bar(n * cost, "evaluation") as bar:
        result = fitted.fit(model, bar)
    (_, error), (best, of_best) = result["error"].items()
    rival = f"schedule {best}, the best of the fixed ones," if kind == "schedule" else best
    taken = "its times are taken" if kind == "schedule" else "that is taken"
    print(
        f"RMS distance to the fine solution, other noise: fitted {error:.3g}, {rival} "
        f"{of_best:.3g}" + ("" if result["of"] == "fitted" else f"; {taken}")
    )
    return result


def _explicit(sampler: Sampler, entry: Entry) -> Sampler:
    return replace(sampler, schedule=Explicit(entry["times"]), steps=None, nfe=None)


def checksum(field: Field, guidance: Unguided) -> str:
    """The SHA-256 of the model that a field was loaded from and, after it, its guiding model's."""
    return "/".join(part.sha256 for part in (field, guidance.guide, guidance.classifier) if part)


def _file_name(key: dict[str, Any]) -> str:
    """A readable name for the fit of a key. Its last part alone makes it unique."""
    words = [*_words(key["solver"]), f"{key['steps']}-steps", key["coordinates"]]
    for group, usual in (("guidance", "Unguided"), ("path", None)):
        words += [word for word in _words(key[group] or {}) if word != usual]
    code = hashlib.sha256(json.dumps(key, sort_keys=True, default=str).encode()).hexdigest()
    return re.sub(r"[^\w.=+-]+", "_", "-".join(words))[:150] + f"-{code[:8]}.json"


def _words(spec: dict[str, Any]) -> list[str]:
    """Name a class and its options: Adams order=5 corrector weigh."""
    keys = {k: v for k, v in spec.items() if v not in (None, False, []) and k != "_target_"}
    name = str(spec.get("_target_", "")).rpartition(".")[2]
    options = [k if v is True else f"{k}={v}" for k, v in keys.items() if type(v) is not dict]
    return [name, *options] if name else []


def _stored(file: Path, check: Callable[[Entry], object]) -> Entry | None:
    """The result of an earlier fit; None if there is none that can be read and passes `check`."""
    try:
        entry = json.loads(files.read_text(file, file.parent.parent))
        check(entry)
        names = {"step", "checksum", "times", "weights", "of"} & entry.keys()
        return {name: entry[name] for name in names | {"step", "checksum"}}
    except FileNotFoundError:
        return None
    except (OSError, ValueError, KeyError, TypeError, FmdiffError):
        print(f"{file} cannot be read: fitted anew")
        return None
