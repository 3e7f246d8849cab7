"""results.json: the metrics of a command, what they were measured on, and how to repeat it.

sample metrics=, evaluate and evaluate against=exact all write this one form:

    format       1
    command      the command that wrote it: sample or evaluate
    metrics      {name: Metric.as_dict()}; of a grid, those of the first setting
    warnings     warnings about the metrics, for their reader
    config       the settings of the command, enough to repeat it
    versions     {package: version}

and, where they apply:

    checkpoint   path, step, weights and average of the model, and the SHA-256 of what was loaded
    reference_sha256
                 of everything that the samples are compared with
    nfe_counted  network evaluations per sample
    grid         [{settings, nfe_counted, seconds, metrics}], one for each setting
    reconstruction
                 of a model in a latent space: metrics of real samples, encoded and decoded
    samples      the file or folder of samples=
    samples_sha256
                 of its content
    kind, rows   for against=exact: the quantity compared, and its errors at each time
    pairs        of a flow map against=exact: its errors from each time t to each time s
    jumps        those of 1, 2, 4 and 8 jumps in a row, from the first time to the last
    certificate  a sentence that bounds W2 between the samples of one jump and the data
"""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from importlib import metadata
from pathlib import Path
from typing import Any

from fmdiff import files
from fmdiff.errors import FmdiffError
from fmdiff.metrics.metric import Metric, Metrics

NAME, FORMAT = "results.json", 1
EXACT = "the exact field"  # the reference of against=exact
# metrics for which more is better; for the others less is better
MORE = ("is", "precision", "recall", "agreement", "confidence", "psnr")
UNORDERED = ("nll",)  # below its value for real samples less is not better
PACKAGES = ("fmdiff", "torch", "numpy", "scipy", "safetensors", "torch-fidelity")


def over_seeds(runs: Sequence[dict[str, Metric]], seeds: Sequence[int]) -> Metrics:
    """The mean of each metric over several seeds, with its standard error and 95 % interval.

    runs: the metrics for each of `seeds`, all with the same names. The interval is Student's. It
    covers the choice of the reference if that was drawn for each seed; the reference says so.
    """
    if len(runs) == 1:
        return Metrics(runs[0])
    from scipy.special import stdtrit

    means = Metrics()
    for name, first in runs[0].items():
        values = [run[name].value for run in runs]
        k, mean = len(values), sum(values) / len(values)
        se = math.sqrt(sum((v - mean) ** 2 for v in values) / (k - 1) / k)
        reach = float(stdtrit(k - 1, 0.975)) * se
        extra = {k: v for k, v in first.extra.items() if k == "floor_sets"}
        extra |= {"values": values, "seeds": list(seeds)}
        reference = first.reference
        if reference:
            once = len({run[name].reference for run in runs}) == 1
            reference += ", the same for all seeds" if once else ", and so on for each seed"
        means[name] = replace(
            first,
            value=mean,
            se=se,
            interval=(mean - reach, mean + reach),
            reference=reference,
            extra=extra,
        )
    return means


def as_text(metrics: dict[str, Metric], indent: str = "  ") -> str:
    """Format metrics as text, one a line: value, error or interval, n, floor, reference."""
    width = max(map(len, metrics))
    lines = []
    for name, metric in metrics.items():
        text = f"{indent}{name:<{width}}  {metric.value:.4g}"
        if metric.interval is not None:
            text += " [{:.4g}, {:.4g}]".format(*metric.interval)
        elif metric.se is not None:
            text += f" +- {metric.se:.1g}"
        text += f", n={metric.n:,}"
        if metric.floor is not None:
            text += f", real data {metric.floor:.4g}"
            if (size := metric.extra.get("floor_n")) is not None:
                text += f" in sets of {size:,}"
            if (sets := metric.extra.get("floor_sets", 1)) > 1:
                text += f" (the median of {sets} random sets)"
        if metric.reference:
            text += f", against {metric.reference}"
        lines.append(text)
    return "\n".join(lines)


def over_time(rows: Sequence[Mapping[str, float]], n: int) -> Metrics:
    """The metrics of a field against the exact one: the means over time of its errors.

    rows: `field_error.Errors` as dicts, each of n pairs. The same data points are used at every
    time, so the standard error of fm is the mean of the rows' errors. The gap's noise is drawn
    anew at each time, so its rows are taken as independent.
    """
    means = {name: sum(row[name] for row in rows) / len(rows) for name in rows[0]}
    errors = {
        "fm": means["fm_error"],
        "gap": math.sqrt(sum(row["gap_error"] ** 2 for row in rows)) / len(rows),
    }
    metrics = Metrics()
    for name in ("fm", "cfm", "irreducible", "gap"):
        metrics[name] = Metric(means[name], n, se=errors.get(name), reference=EXACT)
    metrics["fm"].extra["size"] = means["size"]
    return metrics


def write(
    folder: Path,
    command: str,
    settings: dict[str, Any],
    metrics: Mapping[str, Metric],
    warnings: Sequence[str] = (),
    *,
    checkpoint: dict[str, Any] | None = None,
    nfe_counted: float | None = None,
    grid: list[dict[str, Any]] | None = None,
    reconstruction: dict[str, Any] | None = None,
    samples: str | None = None,
    samples_sha256: str | None = None,
    reference_sha256: str | None = None,
    kind: str | None = None,
    rows: Sequence[Mapping[str, float]] | None = None,
    pairs: Sequence[Mapping[str, float]] | None = None,
    jumps: Sequence[Mapping[str, float]] | None = None,
    certificate: str | None = None,
) -> Path:
    """Write folder/results.json in the form above and return its path. Raises OSError."""
    optional = {
        "checkpoint": checkpoint,
        "nfe_counted": nfe_counted,
        "grid": grid,
        "reconstruction": reconstruction,
        "samples": samples,
        "samples_sha256": samples_sha256,
        "reference_sha256": reference_sha256,
        "kind": kind,
        "rows": rows,
        "pairs": pairs,
        "jumps": jumps,
        "certificate": certificate,
    }
    content = {
        "format": FORMAT,
        "command": command,
        "metrics": {name: metric.as_dict() for name, metric in metrics.items()},
        "warnings": list(dict.fromkeys(warnings)),
        **{key: value for key, value in optional.items() if value is not None},
        "config": settings,
        "versions": versions(),
    }
    path = folder / NAME
    files.write_json(path, content)
    return path


def recipe(file: Path) -> dict[str, Any]:
    """The content of a results.json, for `fmdiff evaluate result=FILE` to repeat.

    Raises FmdiffError for a file that cannot be read or that fmdiff evaluate did not write.
    """
    try:
        content = json.loads(files.read_text(file))
        if "format" not in content and content["against"] == "exact":
            content = _upgraded(content)
        repeatable = content["format"] == FORMAT and content["command"] == "evaluate"
        _ = (
            {**content["config"]},
            [metric["value"] + 0.0 for metric in content["metrics"].values()],
        )
    except OSError as error:
        raise FmdiffError(f"result={file} cannot be read: {error.strerror}") from error
    except (ValueError, KeyError, TypeError, AttributeError, IndexError, RecursionError) as error:
        raise FmdiffError(f"result={file} is no results.json of fmdiff evaluate") from error
    if not repeatable:
        raise FmdiffError(
            f"result={file} is of format {content['format']} by fmdiff {content['command']}; "
            f"format {FORMAT} by fmdiff evaluate can be repeated"
        )
    return content


def _upgraded(content: dict[str, Any]) -> dict[str, Any]:
    """Convert the content of a file that against=exact wrote before it used the common form."""
    rows = [dict(row) for row in content["rows"]]
    metrics = over_time(rows, content["config"]["n"] or 10_000)
    return content | {
        "format": FORMAT,
        "command": "evaluate",
        "metrics": {name: metric.as_dict() for name, metric in metrics.items()},
    }


def versions() -> dict[str, str]:
    """The versions of the installed packages that a metric may depend on."""
    installed = {}
    for package in PACKAGES:
        try:
            installed[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return installed


def front(points: Sequence[tuple[float, float]], more: bool = False) -> list[int]:
    """The Pareto front of (cost, value): the indices of the points that no other one beats.

    Less cost is better. Less value is better too, or more value with `more`. The indices are
    sorted by cost. Points whose value is not finite are left out.
    """
    sign = -1 if more else 1
    best = []
    for i, (cost, value) in enumerate(points):
        worse = any(
            c <= cost and sign * v <= sign * value and (c < cost or sign * v < sign * value)
            for c, v in points
        )
        if not worse and math.isfinite(value):
            best.append(i)
    return sorted(best, key=lambda i: points[i])
