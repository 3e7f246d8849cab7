"""Stores the times of schedule=fitted beside the checkpoint: RUN/schedules/NAME.json."""

import hashlib
import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

from fmdiff import files
from fmdiff.errors import FmdiffError
from fmdiff.field import Field
from fmdiff.fitted import Fitted, Model
from fmdiff.guidance import Unguided
from fmdiff.machine.progress import Bar
from fmdiff.sampling import Sampler
from fmdiff.schedules import Explicit

GROUPS = ("solver", "guidance", "path", "schedule", "coordinates", "final", "clip", "precision")


def with_times(
    sampler: Sampler, field: Field, settings: dict[str, Any], about: dict[str, Any] | None
) -> Sampler:
    """Give the sampler explicit times if its schedule is fitted. They are fitted if need be.

    settings: the command's. about: describes the checkpoint, if there is one, beside which the
    times are looked up and stored. Prints what is done.

    Raises FmdiffError for a solver without fixed steps, and for less than two steps.
    """
    schedule = sampler.schedule
    if not isinstance(schedule, Fitted):
        return sampler
    model = schedule.model(field, sampler)
    if about is None:
        times = fit(schedule, model)["times"]
        print("not stored: there is no checkpoint")
        return _explicit(sampler, times)
    key = {name: settings[name] for name in GROUPS} | {"steps": model.base.steps}
    key["weights"] = about["average"]
    file = Path(about["path"]).parent / "schedules" / _file_name(key)
    sums = checksum(field, sampler.guidance)
    entry = _stored(file)
    if entry and entry["checksum"] == sums:
        print(f"schedule fitted: {file}")
        return _explicit(sampler, entry["times"])
    if entry:
        print(f"{file} is of other weights, those of step {entry['step']}: fitted anew")
    entry = fit(schedule, model) | {"step": about["step"], "checksum": sums, "for": key}
    try:
        files.make_folder(file.parent)
        with files.whole(file) as part:
            part.write(json.dumps(entry, indent=2).encode() + b"\n")
        print(f"stored in {file}")
    except OSError as error:
        print(f"not stored: {file} cannot be written ({error.strerror})")
    return _explicit(sampler, entry["times"])


def fit(schedule: Fitted, model: Model) -> dict[str, Any]:
    """The result of `Fitted.fit`. Prints its cost and its quality."""
    n, cost = schedule.trajectories(model), schedule.cost(model)
    print(
        f"fitting the times of {model.base.steps} steps to {n} trajectories, at most {cost:,} "
        "evaluations of each"
    )
    with Bar(n * cost, "evaluation") as bar:
        result = schedule.fit(model, bar)
    (_, error), (best, of_best) = result["error"].items()
    print(
        f"RMS distance to the fine solution, other noise: fitted {error:.3g}, schedule "
        f"{best}, the best of the fixed ones, {of_best:.3g}"
        + ("" if result["of"] == "fitted" else "; its times are taken")
    )
    return result


def _explicit(sampler: Sampler, times: list[float]) -> Sampler:
    return replace(sampler, schedule=Explicit(times), steps=None, nfe=None)


def checksum(field: Field, guidance: Unguided) -> str:
    """The SHA-256 of the model that a field was loaded from and, after it, its guiding model's."""
    return "/".join(part.sha256 for part in (field, guidance.guide, guidance.classifier) if part)


def _file_name(key: dict[str, Any]) -> str:
    """A readable name for the times of a key. Its last part alone makes it unique."""
    words = [*_words(key["solver"]), f"{key['steps']}-steps", key["coordinates"]]
    for group, usual in (("guidance", "Unguided"), ("path", None)):
        words += [word for word in _words(key[group] or {}) if word != usual]
    code = hashlib.sha256(json.dumps(key, sort_keys=True, default=str).encode()).hexdigest()
    return re.sub(r"[^\w.=+-]+", "_", "-".join(words))[:150] + f"-{code[:8]}.json"


def _words(spec: dict[str, Any]) -> list[str]:
    """Name a class and its options: Adams order=4 corrector limit=0.25."""
    keys = {k: v for k, v in spec.items() if v not in (None, False, []) and k != "_target_"}
    name = str(spec.get("_target_", "")).rpartition(".")[2]
    options = [k if v is True else f"{k}={v}" for k, v in keys.items() if type(v) is not dict]
    return [name, *options] if name else []


def _stored(file: Path) -> dict[str, Any] | None:
    """The result of an earlier fit; None if there is none that can be read."""
    try:
        entry = json.loads(files.read_text(file, file.parent.parent))
        Explicit(entry["times"])
        return {name: entry[name] for name in ("step", "checksum", "times")}
    except FileNotFoundError:
        return None
    except (OSError, ValueError, KeyError, TypeError, FmdiffError):
        print(f"{file} cannot be read: fitted anew")
        return None
