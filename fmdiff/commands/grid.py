"""The grid of fmdiff evaluate: its cells, the rows that are done, its table and picture."""

import json
import math
from collections.abc import Sequence
from itertools import product
from pathlib import Path
from typing import Any, NamedTuple

from fmdiff import files, tables
from fmdiff.build import spec_of
from fmdiff.errors import FmdiffError
from fmdiff.machine import processes
from fmdiff.metrics import results
from fmdiff.metrics.metric import Metric
from fmdiff.pictures import plots, quality

CELLS = "cells.json"  # the draws so far, from which an interrupted grid continues
VARIED = ("solver", "schedule", "guidance")  # groups whose choices a grid may list by name
COUNTS = {"nfe": "evaluations", "steps": "steps"}  # with more of them samples should get better
ERRORS = 2.6  # standard errors by which a value differs by chance in one of 100 cases
AXES = (*VARIED, *COUNTS, "w")
Cell = dict[str, Any]  # one combination of the values in grid=


class Draw(NamedTuple):
    """The metrics of the samples of one cell with one seed, and what they cost."""

    nfe: float
    seconds: float
    metrics: dict[str, dict[str, Any]]
    refused: str | None = None  # the reason why the cell cannot be sampled
    warnings: Sequence[str] = ()  # about the metrics

    def as_metrics(self) -> dict[str, Metric]:
        """The metrics as objects."""
        return {name: Metric(**metric) for name, metric in self.metrics.items()}


class Row(NamedTuple):
    """A cell with its metrics over all seeds, and what they cost."""

    cell: Cell
    nfe: float  # evaluations per sample
    seconds: float
    metrics: dict[str, Metric]

    def as_dict(self) -> dict[str, Any]:
        """The row as results.json holds it."""
        metrics = {name: metric.as_dict() for name, metric in self.metrics.items()}
        cost = {"nfe_counted": self.nfe, "seconds": self.seconds}
        return {"settings": self.cell, **cost, "metrics": metrics}


def check(recipe: dict[str, Any], where: object) -> None:
    """Raise FmdiffError unless the grid and the choices in a file name what fmdiff has.

    where: names the file in the message.
    """
    lists, choices = recipe.get("grid", {}), recipe.get("choices", {})
    if not isinstance(choices, dict):
        raise FmdiffError(f"{where}: choices must be a dict, not {choices!r:.60}")
    if not isinstance(lists, dict) or lists.keys() - AXES:
        raise FmdiffError(f"{where}: grid may hold lists of {', '.join(AXES)} alone")
    for group in VARIED:
        names = lists.get(group) or []
        for name in names if isinstance(names, list) else [names]:
            try:
                spec_of(group, str(name))
            except FmdiffError as error:
                raise FmdiffError(f"{where}: grid.{group}: {error}") from error


def cells(settings: dict[str, Any]) -> list[Cell]:
    """The cells of the grid: every combination of the lists in grid=.

    Raises FmdiffError for an unknown name and for steps beside nfe.
    """
    axes = {key: values for key, values in settings["grid"].items() if values is not None}
    if axes.keys() >= {"steps", "nfe"}:
        raise FmdiffError("grid.steps and grid.nfe are both given: choose one of them")
    for group in VARIED:
        for name in axes.get(group, ()):
            spec_of(group, name)
    return [dict(zip(axes, values, strict=True)) for values in product(*axes.values())]


def settings_of(cell: Cell, settings: dict[str, Any]) -> dict[str, Any]:
    """The settings of a cell. A solver that was chosen by solver= keeps its own keys."""
    changed = dict(settings)
    for key, value in cell.items():
        if key in VARIED:
            if value != settings["choices"].get(key):
                changed[key] = spec_of(key, value)
        elif key == "w":
            if "w" not in changed["guidance"]:
                raise FmdiffError(f"grid.w={value} needs a guidance: say guidance=cfg")
            changed["guidance"] = changed["guidance"] | {"w": value}
        else:
            changed |= {"steps": None, "nfe": None, key: value}
    return changed


def row(cell: Cell, draws: Sequence[Draw], seeds: Sequence[int]) -> Row | str:
    """The row of a cell from its draws over all seeds, or the reason why it has none."""
    for draw in draws:
        if draw.refused:
            return draw.refused
    metrics = results.over_seeds([draw.as_metrics() for draw in draws], seeds)
    return Row(cell, draws[0].nfe, sum(draw.seconds for draw in draws), metrics)


def key_of(cell: Cell, seed: int) -> str:
    """The key of a cell and a seed in the file of draws."""
    return json.dumps([cell, seed])


def read(folder: Path, of: dict[str, str]) -> dict[str, Draw]:
    """The draws in this folder whose origin is `of` (see `origin.origin`).

    Prints why draws in the folder cannot be used.
    """
    file = folder / CELLS
    try:
        content = json.loads(files.read_text(file, folder))
        before = content.get("of")
        draws = {key: Draw(**draw) for key, draw in content["draws"].items()} if before else {}
        others = [name for name in of if before and before.get(name) != of[name]]
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, TypeError, AttributeError, KeyError):
        reason = "cannot be read"
    else:
        if before and not others:
            return draws
        reason = f"holds figures of another {' and another '.join(others)}"
        if not before:
            reason = "does not say what its figures were computed from, as an earlier fmdiff"
    if processes.rank() == 0:
        print(f"{file} {reason}: all are computed anew")
    return {}


def write(folder: Path, of: dict[str, str], draws: dict[str, Draw]) -> None:
    """Write the draws and their origin, for an interrupted grid to continue from."""
    content = {"of": of, "draws": {key: draw._asdict() for key, draw in draws.items()}}
    files.write_text(folder / CELLS, json.dumps(content))


def words(cell: Cell) -> str:
    """Format a cell as words of a command line."""
    return " ".join(f"{key}={value}" for key, value in cell.items())


def _sampler(row: Row) -> str:
    """The settings of a row but for its number of steps or evaluations."""
    return words({key: value for key, value in row.cell.items() if key not in COUNTS})


def setbacks(rows: Sequence[Row]) -> list[str]:
    """A sentence for each sampler and metric with which more steps or evaluations are worse.

    A metric counts as worse than the best one with fewer steps if it differs by more than 2.6
    standard errors of the difference. The error is a fourth of the interval where it is not
    known. Metrics without an interval, and those in which less is not always better, say nothing.
    """
    axis = next((name for name in COUNTS if name in rows[0].cell), None)
    if axis is None:
        return []
    lines: dict[str, list[Row]] = {}
    for row in sorted(rows, key=lambda row: row.cell[axis]):
        lines.setdefault(_sampler(row), []).append(row)
    sentences = []
    for sampler, line in lines.items():
        for name in [name for name in line[0].metrics if name not in results.UNORDERED]:
            points = [(row.cell[axis], row.metrics[name]) for row in line]
            if counts := _worse(points, -1 if name in results.MORE else 1):
                where = f" ({sampler})" if sampler else ""
                sentences.append(f"more {COUNTS[axis]} are worse by {name}{where}: {counts}")
    return sentences


def _worse(points: Sequence[tuple[int, Metric]], sign: int) -> str:
    """Format the counts that are worse than a smaller one, and what they are compared with."""
    counts: dict[str, None] = {}  # in order
    best = math.inf, 0.0, ""
    for count, metric in points:
        if metric.interval is None:
            continue
        low, high = metric.interval
        value, error = sign * metric.value, (high - low) / 4 if metric.se is None else metric.se
        words = f"{metric.value:.4g} [{low:.4g}, {high:.4g}] at {count}"
        if value - best[0] > ERRORS * math.hypot(error, best[1]):
            counts |= dict.fromkeys((best[2], words))
        if value < best[0]:
            best = value, error, words
    return ", ".join(counts)


def conclude(rows: Sequence[Row], folder: Path) -> None:
    """Write table.csv, table.md and quality.png with the Pareto front of the first metric."""
    names = list(rows[0].metrics)
    first = names[0]
    points = [(row.nfe, row.metrics[first].value) for row in rows]
    best = results.front(points, first in results.MORE)
    columns = [column for name in names for column in (name, f"{name}_se")]
    table = [[*rows[0].cell, "nfe_counted", "seconds", *columns]]
    for row in rows:
        numbers = [v for name in names for v in (row.metrics[name].value, row.metrics[name].se)]
        values = ["" if v is None else f"{v:.6g}" for v in numbers]
        table.append([*row.cell.values(), f"{row.nfe:g}", f"{row.seconds:.2f}", *values])
    files.write_text(folder / "table.csv", tables.as_csv(table))
    marks = ["", *(f"best {first}" if i in best else "" for i in range(len(rows)))]
    cells = [[*line, mark] for line, mark in zip(table, marks, strict=True)]
    files.write_text(folder / "table.md", tables.as_markdown(cells))
    lines: dict[str, list[quality.Point]] = {}
    for row, point in zip(rows, points, strict=True):
        lines.setdefault(_sampler(row) or first, []).append(point)
    floor = rows[0].metrics[first].floor
    figure = quality.figure(first, lines, [points[i] for i in best], floor)
    plots.save(figure, folder / "quality.png")
    for file in ("table.csv", "table.md", "quality.png"):
        print(f"  {folder / file}")
    print(as_text(rows))


def as_text(rows: Sequence[Row]) -> str:
    """The table of all settings for a terminal, and the best of them by the first metric.

    It says how many other values lie within the interval of the best one.
    """
    names = list(rows[0].metrics)
    table = [[*rows[0].cell, "NFE", *names]]
    for row in rows:
        metrics = [row.metrics[name] for name in names]
        errors = ["" if m.se is None else f" ± {m.se:.2g}" for m in metrics]
        values = [f"{m.value:.4g}{error}" for m, error in zip(metrics, errors, strict=True)]
        table.append([*map(str, row.cell.values()), f"{row.nfe:g}", *values])
    first, sign = names[0], -1 if names[0] in results.MORE else 1
    finite = [row for row in rows if math.isfinite(row.metrics[first].value)]
    text = tables.aligned(table, left=len(rows[0].cell))
    if not finite:
        return text
    best = min(finite, key=lambda row: (sign * row.metrics[first].value, row.nfe))
    text += f"\nbest {first}: {best.metrics[first].value:.4g}, {words(best.cell)}"
    if (interval := best.metrics[first].interval) is None:
        return text
    low, high = interval
    near = sum(low <= row.metrics[first].value <= high for row in finite if row is not best)
    return f"{text}; {near} of {len(rows) - 1} others lie within its interval"
