"""fmdiff evaluate: samples against real data, a field against the exact one."""

import csv
import json
import math
import time
from itertools import product
from pathlib import Path
from typing import Any, NamedTuple

import torch
from omegaconf import OmegaConf
from torch import Tensor

from fmdiff.build import config_folder, vouch
from fmdiff.commands.sample import options, use_threads
from fmdiff.data import saved
from fmdiff.data.images import to_uint8
from fmdiff.errors import FmdiffError, nearest
from fmdiff.exact import exact
from fmdiff.loading import Opened, opened
from fmdiff.machine import device, processes
from fmdiff.machine.progress import Bar
from fmdiff.metrics import field_error, results
from fmdiff.metrics.images import ImageMetrics
from fmdiff.metrics.judge import Judge, judge
from fmdiff.metrics.metric import Metric
from fmdiff.pictures import field_error as field_error_picture
from fmdiff.pictures import plots, quality
from fmdiff.sampling import default_batch_size
from fmdiff.settings import schema

POINTS, IMAGES = 10_000, 2_000  # samples judged by default
CELLS = "cells.json"  # the settings of a grid that are done, so that it can be gone on with
SHOWN = 8  # samples drawn beside their nearest training images
VARIED = ("solver", "schedule", "guidance")  # groups a grid goes through by name


def evaluate(cfg, folder: Path) -> None:
    """Judge samples= or those of ckpt= or model=, or compare a field with against=exact.

    Writes results.json, for a grid table.csv, table.md and quality.png, for memorisation
    neighbours.png, for against=exact errors.csv and errors.png.
    """
    settings: dict[str, Any] = OmegaConf.to_container(cfg)  # type: ignore[assignment]
    before = None
    if settings["result"]:
        before = results.recipe(Path(settings["result"]).expanduser())
        now = {key: settings[key] for key in ("device", "devices")}
        said = vouch(before["config"], tuple(settings["trust"]))
        settings |= said | now | {"result": None}
        schema.check("evaluate", OmegaConf.create(settings))
    where = device.pick(settings["device"])
    device.enough(where, settings["devices"], "devices")
    if settings["devices"] > 1 and (settings["samples"] or settings["against"] == "exact"):
        raise FmdiffError("samples= and against=exact are for one process: devices must be 1")
    where = processes.join(where)
    if where.type == "cpu" and settings["threads"]:
        torch.set_num_threads(settings["threads"])
    if settings["against"] == "exact":
        _field_errors(settings, where, folder)
        return
    judged = _of_files if settings["samples"] else _of_model
    metrics = judged(settings, where, folder)
    if processes.rank():
        return
    if before is not None:
        _compare(before["metrics"], metrics)
    print(f"  {folder / 'results.json'}")


def _of_files(settings: dict[str, Any], where, folder: Path) -> dict[str, Metric]:
    path = Path(settings["samples"]).expanduser()
    if not path.exists():
        raise FmdiffError(f"samples={path} does not exist: give a .npz or a folder of images")
    x, y = saved.read(path, "samples")
    n = min(settings["n"] or len(x), len(x))
    if n < (settings["n"] or 0):
        raise FmdiffError(f"n={settings['n']}: {path} holds {len(x)} samples")
    if n < 2:
        raise FmdiffError(f"samples={path} holds {n} sample, and a metric needs 2 at least")
    images = x.ndim == 4
    shape = (x.shape[3], *x.shape[1:3]) if images else tuple(x.shape[1:])
    classes = 0 if y is None else int(y.max()) + 1
    judged = judge(settings, None, shape, classes, settings["seed"], where)
    for start in range(0, n, 1000):
        stop = min(start + 1000, n)
        judged.add(x[start:stop], None if y is None else y[start:stop])
    metrics = judged.results()
    print(results.as_text(metrics))
    shown = x[:n] if images else None
    conclude(folder, "evaluate", settings, judged, metrics, shown, samples=str(path))
    return metrics


def _of_model(settings: dict[str, Any], where, folder: Path) -> dict[str, Metric]:
    with processes.after_rank_0():
        model = opened(settings, data=True)
        field, devices = model.field, settings["devices"]
        images = len(field.shape) == 3
        n = settings["n"] or (IMAGES if images else POINTS)
        size = min(settings["batch_size"] or default_batch_size(field.shape), n)
        processes.divisible(n, size, devices)
        use_threads(settings["threads"], field, size, where, devices)
        about = (model.data, field.shape, field.classes, settings["seed"], where)
        judged = judge(settings, *about, spread=True)
    cells, seeds = grid(settings), range(settings["seed"], settings["seed"] + settings["repeats"])
    done, rows, pixels = _done(folder), list[Any](), None
    with processes.started("evaluate", folder, devices, where):
        mine, lead = processes.share(n, size), processes.rank() == 0
        say = print if lead else lambda _: None
        with Bar(len(mine) * len(cells) * len(seeds), visible=lead) as bar:
            for cell in cells:
                for seed in seeds:
                    key = json.dumps([cell, seed])
                    if key in done:
                        bar(len(mine))
                        continue
                    args = (model, settings | {"batch_size": size, "n": n}, cell, mine, seed)
                    done[key], pixels = _one(*args, judged, where, bar)
                    if lead and len(cells) * len(seeds) > 1:
                        kept = json.dumps({k: v._asdict() for k, v in done.items()})
                        _put(folder / CELLS, kept)
                of_cell = [done[json.dumps([cell, seed])] for seed in seeds]
                if refused := next((row.refused for row in of_cell if row.refused), None):
                    if len(cells) == 1:
                        raise FmdiffError(refused)
                    say(f"{_words(cell)}: left out, {refused}")
                    continue
                metrics = results.over_seeds([row.restored() for row in of_cell], seeds)
                nfe, seconds = of_cell[0].nfe, sum(row.seconds for row in of_cell)
                rows.append((cell, nfe, seconds, metrics))
                head = f"{_words(cell)}: " if cell else ""
                costs = f"{nfe:g} evaluations per sample, {seconds:.1f} s"
                say(f"{head}{costs}\n{results.as_text(metrics)}")
    if not rows:
        raise FmdiffError("no setting of the grid could be sampled; the lines above say why")
    if not lead:
        return rows[0][3]
    warnings = _warned(settings, model)
    more: dict[str, Any] = {"checkpoint": model.about, "nfe_counted": rows[0][1]}
    if len(cells) > 1:
        more["grid"] = [
            {
                "settings": cell,
                "nfe_counted": nfe,
                "seconds": seconds,
                "metrics": {name: metric.as_dict() for name, metric in metrics.items()},
            }
            for cell, nfe, seconds, metrics in rows
        ]
        _table(rows, folder)
    metrics = rows[0][3]
    judged.warnings[:0] = warnings
    conclude(folder, "evaluate", settings, judged, metrics, pixels, **more)
    return metrics


class Row(NamedTuple):
    """One setting of a grid with one seed."""

    nfe: float
    seconds: float
    metrics: dict[str, dict[str, Any]]
    refused: str | None = None

    def restored(self) -> dict[str, Metric]:
        return {name: Metric(**metric) for name, metric in self.metrics.items()}


def _one(model: Opened, settings, cell, mine: range, seed: int, judged: Judge, where, bar):
    """The Row of a cell, of the samples `mine` and those of the other ranks, and some pixels."""
    field, kept = model.field, list[Tensor]()
    images = len(field.shape) == 3
    judged.clear()

    def receive(x, y) -> None:
        x = to_uint8(x) if images else x
        judged.add(x, y)
        if images and sum(map(len, kept)) < 1000:
            kept.append(x.cpu())

    def drawn():
        sampler = options(changed(settings, cell), field, where, model.about)
        begin = time.perf_counter()
        made = sampler.draw(
            field,
            len(mine),
            seed,
            first=mine.start,
            classes=settings["classes"],
            receive=receive,
            progress=bar,
        )
        return made, time.perf_counter() - begin

    try:
        made, seconds = processes.agreed(drawn)
    except FmdiffError as error:
        return Row(math.nan, 0.0, {}, str(error)), None
    counted = sum(processes.gathered(made.nfe_counted * len(mine))) / settings["n"]
    metrics = {name: metric.as_dict() for name, metric in judged.results().items()}
    return Row(counted, seconds, metrics), torch.cat(kept) if kept else None


def grid(settings: dict[str, Any]) -> list[dict[str, Any]]:
    """The settings to go through: every combination of the lists in grid=.

    Raises FmdiffError for an unknown name and for steps beside nfe.
    """
    axes = {key: values for key, values in settings["grid"].items() if values is not None}
    if axes.keys() >= {"steps", "nfe"}:
        raise FmdiffError("grid.steps and grid.nfe are both given: choose one of them")
    for group in VARIED:
        for name in axes.get(group, ()):
            _file(group, name)
    return [dict(zip(axes, values, strict=True)) for values in product(*axes.values())]


def _file(group: str, name: str) -> Path:
    folder = config_folder() / group
    if not (folder / f"{name}.yaml").is_file():
        choices = sorted(path.stem for path in folder.glob("*.yaml"))
        raise FmdiffError(f"grid.{group}=[{name}]: {nearest(name, choices)}")
    return folder / f"{name}.yaml"


def changed(settings: dict[str, Any], cell: dict[str, Any]) -> dict[str, Any]:
    """The settings of a cell; a solver that was chosen by solver= keeps its own keys."""
    found = dict(settings)
    for key, value in cell.items():
        if key in VARIED:
            if value != settings["choices"][key]:
                found[key] = OmegaConf.to_container(OmegaConf.load(_file(key, value)))
        elif key == "w":
            if "w" not in found["guidance"]:
                raise FmdiffError(f"grid.w={value} needs a guidance: say guidance=cfg")
            found["guidance"] = found["guidance"] | {"w": value}
        else:
            found |= {"steps": None, "nfe": None, key: value}
    return found


def _done(folder: Path) -> dict[str, Row]:
    """What an earlier run of the same settings left in this folder."""
    try:
        return {k: Row(**row) for k, row in json.loads((folder / CELLS).read_text()).items()}
    except (OSError, ValueError, TypeError):
        return {}


def _words(cell: dict[str, Any]) -> str:
    return " ".join(f"{key}={value}" for key, value in cell.items())


def _warned(settings: dict[str, Any], model: Opened) -> list[str]:
    """What a reader of the figures must know of the model."""
    found = []
    if model.about and settings["weights"] == "raw":
        found.append("weights=raw: the averaged weights (ema) usually give better samples")
    if settings["classes"] is not None:
        found.append(
            f"classes={settings['classes']}: the samples are of these classes alone, and the "
            "reference is of all"
        )
    return found


def conclude(
    folder: Path,
    command: str,
    settings: dict[str, Any],
    judged: Judge,
    metrics: dict[str, Metric],
    pixels=None,
    **more,
) -> None:
    """Write results.json and, where memorisation was asked for, neighbours.png; say warnings."""
    if isinstance(judged, ImageMetrics) and judged.neighbours is not None and pixels is not None:
        index, distance = judged.neighbours
        order = distance[: len(pixels)].argsort()[:SHOWN]
        assert judged.real.pixels is not None
        pairs = torch.cat([pixels[order], judged.real.pixels[index[order]]])
        words = [f"sample {i}" for i in order.tolist()] + [f"{d:.3g}" for d in distance[order]]
        plots.save(plots.grid(pairs.numpy(), words, len(order)), folder / "neighbours.png")
    for warning in dict.fromkeys(judged.warnings):
        print(f"note: {warning}")
    results.write(folder, command, settings, metrics, judged.warnings, **more)


def _compare(before: dict[str, dict], now: dict[str, Metric]) -> None:
    for name, metric in now.items():
        if name in before:
            was = before[name]["value"]
            print(f"  {name}: {was:.6g} then, {metric.value:.6g} now")


def _table(rows, folder: Path) -> None:
    """table.csv, table.md and quality.png of a grid; the Pareto front of the first metric."""
    keys, names = list(rows[0][0]), list(rows[0][3])
    first, more = names[0], names[0] in results.MORE
    costs = [(nfe, metrics[first].value) for _, nfe, _, metrics in rows]
    best = results.front(costs, more)
    head = [*keys, "nfe_counted", "seconds", *(c for name in names for c in (name, f"{name}_se"))]
    lines = [
        [
            *cell.values(),
            f"{nfe:g}",
            f"{seconds:.2f}",
            *(
                "" if v is None else f"{v:.6g}"
                for name in names
                for v in (metrics[name].value, metrics[name].se)
            ),
        ]
        for cell, nfe, seconds, metrics in rows
    ]
    with (folder / "table.csv").open("w", newline="") as file:
        csv.writer(file, lineterminator="\n").writerows([head, *lines])
    marks = [f"best {first}" if i in best else "" for i in range(len(rows))]
    cells = [
        [*map(str, line), mark] for line, mark in zip([head, *lines], ["", *marks], strict=True)
    ]
    text = ["| " + " | ".join(line) + " |" for line in cells]
    text.insert(1, "|" + "---|" * len(cells[0]))
    _put(folder / "table.md", "\n".join(text) + "\n")
    curves: dict[str, list[tuple[float, float]]] = {}
    for (cell, *_), point in zip(rows, costs, strict=True):
        words = _words({k: v for k, v in cell.items() if k not in ("nfe", "steps")})
        curves.setdefault(words or first, []).append(point)
    rings, floor = [costs[i] for i in best], rows[0][3][first].floor
    plots.save(quality.figure(first, curves, rings, floor), folder / "quality.png")
    for name in ("table.csv", "table.md", "quality.png"):
        print(f"  {folder / name}")


def _put(path: Path, text: str) -> None:
    part = path.with_name(f".part-{path.name}")
    part.write_text(text)
    part.replace(path)


def _field_errors(settings: dict[str, Any], where, folder: Path) -> None:
    """errors.csv, errors.png and results.json of a field against the exact one."""
    field, data, _ = opened(settings, data=True)
    truth = exact(data, field.path)
    field = field.to(where, torch.float64)
    kind, n = settings["kind"], settings["n"] or POINTS
    rows = field_error.compare(
        field, truth, data, kind, settings["times"], n, settings["seed"], where
    )
    mean = {
        name: sum(values) / len(rows)
        for name, values in zip(field_error.Errors._fields, zip(*rows, strict=True), strict=True)
    }
    print("     t   E|m - u|^2        +-  relative   E|m - c|^2   E|c - u|^2")
    for row in rows:
        print(
            f"{row.t:6.3f} {row.fm:12.4g} {row.fm_error:9.1g} {row.fm / row.size:9.2%} "
            f"{row.cfm:12.4g} {row.irreducible:12.4g}"
        )
    error = math.sqrt(sum(row.gap_error**2 for row in rows)) / len(rows)
    print(
        f"over time: FM loss {mean['fm']:.4g} = CFM loss {mean['cfm']:.4g} - irreducible "
        f"{mean['irreducible']:.4g}, to {mean['gap']:+.1g} +- {error:.1g}"
    )
    with (folder / "errors.csv").open("w", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(field_error.Errors._fields)
        writer.writerows(rows)
    report = {
        "against": settings["against"],
        "kind": kind,
        "mean": mean | {"gap_error": error},
        "rows": [row._asdict() for row in rows],
        "config": settings,
    }
    _put(folder / "results.json", json.dumps(report, indent=2, default=str) + "\n")
    curves = {name: [getattr(row, name) for row in rows] for name in ("cfm", "irreducible", "fm")}
    picture = field_error_picture.figure([row.t for row in rows], **curves, kind=kind)
    plots.save(picture, folder / "errors.png")
    for name in ("errors.csv", "results.json", "errors.png"):
        print(f"  {folder / name}")
