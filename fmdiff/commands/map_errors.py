"""fmdiff evaluate against=exact, of a flow map: the triangle of errors, and the certificate."""

import math
from pathlib import Path
from typing import Any

from fmdiff import files, tables
from fmdiff.commands import grid
from fmdiff.commands.stage import Stage
from fmdiff.field import Field
from fmdiff.metrics import map_error
from fmdiff.metrics.map_error import Jump, MapErrors
from fmdiff.metrics.metric import Metric, normal_interval
from fmdiff.pictures import map_error as picture
from fmdiff.pictures import plots

NAMES = ("map_errors.csv", "map_errors.png")


def map_errors(
    stage: Stage, field: Field, truth: Field, folder: Path
) -> tuple[dict[str, Metric], dict[str, Any]]:
    """Write map_errors.csv and map_errors.png, and print the tables and the certificate.

    Returns the metrics, and more arguments of `results.write`.
    """
    assert stage.data is not None
    settings, n = stage.settings, stage.n
    errors = map_error.compare(
        field, truth, stage.data, settings["times"], n, settings["seed"], stage.where
    )
    metrics = map_error.metrics(errors, field.path, n)
    sentence = map_error.certificate(errors, metrics["w2_bound"], field.path)
    _print(errors)
    print(sentence)
    files.write_text(folder / NAMES[0], tables.as_csv([Jump._fields, *errors.pairs]))
    starts, ends, rms = map_error.triangle(errors.pairs, "rms")
    median = map_error.triangle(errors.pairs, "median")[2]
    figure = picture.figure(starts, ends, rms, median, "std of the data")
    plots.save(figure, folder / NAMES[1])
    warnings = grid.setbacks([_steps(jump, n) for jump in errors.rows])
    for warning in warnings:
        print(f"note: {warning}")
    jumps, pairs = ([row._asdict() for row in rows] for rows in (errors.rows, errors.pairs))
    more = {"certificate": sentence, "jumps": jumps, "pairs": pairs, "warnings": warnings}
    return metrics, more


def _steps(jump: Jump, n: int) -> grid.Row:
    """The jumps in a row as a row of a grid of steps."""
    interval = normal_interval(jump.rms, jump.rms_error)
    metric = {"the rms distance to the exact map": Metric(jump.rms, n, interval=interval)}
    return grid.Row({"steps": jump.jumps}, jump.jumps, 0.0, metric)


def _print(errors: MapErrors) -> None:
    starts, ends, rms = map_error.triangle(errors.pairs, "rms")
    print("rms |X_theta - X| of the map from t to s, in units of the data's std")
    cells = [["s \\ t", *(f"{t:.3g}" for t in starts)]]
    for s, row in zip(ends[::-1], rms[::-1], strict=True):
        cells.append([f"{s:.3g}", *("" if math.isnan(v) else f"{v:.2g}" for v in row)])
    print(tables.aligned(cells, left=0))
    beyond = "" if errors.apart is None else f"beyond {errors.apart:.2g}"
    cells = [["jumps", "rms", "+-", "median", beyond]]
    for jump in errors.rows:
        share = "" if jump.outliers is None else f"{jump.outliers:.2%}"
        values = f"{jump.rms:.4g}", f"{jump.rms_error:.1g}", f"{jump.median:.4g}"
        cells.append([str(jump.jumps), *values, share])
    print(f"the same of jumps in a row, from t={starts[0]:.3g} to {ends[-1]:.3g}")
    print(tables.aligned(cells, left=0))
