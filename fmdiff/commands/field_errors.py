"""fmdiff evaluate against=exact: measures the error of a field by time, and that of its map."""

from pathlib import Path
from typing import Any

import torch

from fmdiff import files, tables
from fmdiff.commands.map_errors import NAMES, map_errors
from fmdiff.commands.stage import set_up
from fmdiff.exact import exact
from fmdiff.metrics import field_error, results
from fmdiff.metrics.field_error import Errors
from fmdiff.metrics.metric import Metric
from fmdiff.pictures import field_error as picture
from fmdiff.pictures import plots

TIMES, PARTS = 20, 10  # times of a velocity field, and of a flow map
HEADER = ("t", "E|m - u|^2", "+-", "relative", "E|m - c|^2", "E|c - u|^2")
WIDTHS = (6, 12, 9, 9, 12, 12)


def field_errors(settings: dict[str, Any], where: torch.device, folder: Path, points: int) -> None:
    """Write errors.csv, errors.png and results.json, and print the table; of a map, two more.

    points: the default number of pairs. Raises FmdiffError for data without a closed form.
    """
    stage = set_up(settings, where, points, points)
    # an exact field has a map as well, whose errors would cost minutes to hours and are known
    is_map = stage.field.two_times and stage.field.net is not None
    settings["times"] = settings["times"] or (PARTS if is_map else TIMES)
    assert stage.data is not None
    kind, n = settings["kind"], stage.n
    truth = exact(stage.data, stage.field.path)
    field = stage.field.to(where, torch.float64)
    times, seed = settings["times"], settings["seed"]
    metrics, more = dict[str, Metric](), dict[str, Any]()
    if is_map:
        metrics, more = map_errors(stage, field, truth, folder)
    rows = field_error.compare(field, truth, stage.data, kind, times, n, seed, where)
    table = [row._asdict() for row in rows]
    metrics |= results.over_time(table, n)
    _print(rows, metrics)
    files.write_text(folder / "errors.csv", tables.as_csv([Errors._fields, *rows]))
    about = {"checkpoint": stage.about, "kind": kind, "rows": table, **more}
    results.write(folder, "evaluate", settings, metrics, **about)
    cfm, rest, fm = ([row[name] for row in table] for name in ("cfm", "irreducible", "fm"))
    figure = picture.figure([row.t for row in rows], cfm, rest, fm, kind)
    plots.save(figure, folder / "errors.png")
    for name in ("errors.csv", "results.json", "errors.png", *(NAMES if more else ())):
        print(f"  {folder / name}")


def _print(rows: list[Errors], metrics: dict[str, Metric]) -> None:
    cells: list[list[str]] = [list(HEADER)]
    for row in rows:
        relative = f"{row.fm / row.size:.2%}"
        error = f"{row.fm_error:.1g}"
        others = [f"{value:.4g}" for value in (row.cfm, row.irreducible)]
        cells.append([f"{row.t:.3f}", f"{row.fm:.4g}", error, relative, *others])
    print(tables.aligned(cells, left=0, widths=WIDTHS, gap=" "))
    mean = {name: metric.value for name, metric in metrics.items()}
    print(
        f"over time: FM loss {mean['fm']:.4g} = CFM loss {mean['cfm']:.4g} - irreducible "
        f"{mean['irreducible']:.4g}, to {mean['gap']:+.1g} +- {metrics['gap'].se:.1g}"
    )
