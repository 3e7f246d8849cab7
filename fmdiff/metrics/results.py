"""results.json: metrics with what they were taken of, and the recipe that gives them again."""

import json
import math
from collections.abc import Sequence
from dataclasses import replace
from importlib import metadata
from pathlib import Path
from typing import Any

from fmdiff.errors import FmdiffError
from fmdiff.metrics.metric import Metric

FORMAT = 1
# metrics of which more is better; of the others less is
MORE = ("is", "precision", "recall", "agreement", "confidence")
PACKAGES = ("fmdiff", "torch", "numpy", "scipy", "safetensors", "torch-fidelity")


def combined(runs: Sequence[dict[str, Metric]], seeds: Sequence[int]) -> dict[str, Metric]:
    """Of several seeds: means, standard errors and 95 % intervals over the seeds (Student)."""
    if len(runs) == 1:
        return dict(runs[0])
    from scipy.special import stdtrit

    found = {}
    for name, first in runs[0].items():
        values = [run[name].value for run in runs]
        k, mean = len(values), sum(values) / len(values)
        se = math.sqrt(sum((v - mean) ** 2 for v in values) / (k - 1) / k)
        reach = float(stdtrit(k - 1, 0.975)) * se
        extra = {"values": values, "seeds": list(seeds)}
        found[name] = replace(
            first, value=mean, se=se, interval=(mean - reach, mean + reach), extra=extra
        )
    return found


def shown(metrics: dict[str, Metric], indent: str = "  ") -> str:
    """A line per metric: value, error or interval, n, floor, reference."""
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
        if metric.reference:
            text += f", against {metric.reference}"
        lines.append(text)
    return "\n".join(lines)


def write(
    folder: Path,
    command: str,
    settings: dict[str, Any],
    metrics: dict[str, Metric],
    warnings: Sequence[str] = (),
    **more: Any,
) -> Path:
    """Write folder/results.json, the old one whole until the new one is; its path."""
    content = {
        "format": FORMAT,
        "command": command,
        "metrics": {name: metric.as_dict() for name, metric in metrics.items()},
        "warnings": list(dict.fromkeys(warnings)),
        **{key: value for key, value in more.items() if value is not None},
        "config": settings,
        "versions": versions(),
    }
    path = folder / "results.json"
    part = path.with_name(".part-results.json")
    part.write_text(json.dumps(content, indent=2, default=str) + "\n")
    part.replace(path)
    return path


def recipe(file: Path) -> dict[str, Any]:
    """The content of a results.json that `fmdiff evaluate result=FILE` is to repeat.

    Raises FmdiffError for a file that is none.
    """
    try:
        content = json.loads(file.read_text())
        known = content["format"] == FORMAT and content["command"] == "evaluate"
        _ = {**content["config"], **content["metrics"]}
    except OSError as error:
        raise FmdiffError(f"result={file} cannot be read: {error.strerror}") from error
    except (ValueError, KeyError, TypeError) as error:
        raise FmdiffError(f"result={file} is no results.json of fmdiff evaluate") from error
    if not known:
        raise FmdiffError(
            f"result={file} is of format {content['format']} by fmdiff {content['command']}; "
            f"format {FORMAT} by fmdiff evaluate can be repeated"
        )
    return content


def versions() -> dict[str, str]:
    found = {}
    for package in PACKAGES:
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return found


def front(points: Sequence[tuple[float, float]], more: bool = False) -> list[int]:
    """The Pareto front of (cost, value): the indices of those that no other is better than.

    Less cost is better; less value, or with `more` more of it.
    """
    sign = -1 if more else 1
    kept = []
    for i, (cost, value) in enumerate(points):
        worse = any(
            c <= cost and sign * v <= sign * value and (c < cost or sign * v < sign * value)
            for c, v in points
        )
        if not worse and math.isfinite(value):
            kept.append(i)
    return sorted(kept, key=lambda i: points[i])
