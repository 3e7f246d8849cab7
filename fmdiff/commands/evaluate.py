"""fmdiff evaluate: compares samples with real data, or a field with the exact one."""

import json
import math
import time
from pathlib import Path
from typing import Any

import torch
from omegaconf import DictConfig, OmegaConf
from torch import Tensor

from fmdiff import files
from fmdiff.build import build, vouch
from fmdiff.commands import arguments, grid
from fmdiff.commands.conclude import compare, conclude
from fmdiff.commands.field_errors import field_errors
from fmdiff.commands.given import Jury, Known, unknown
from fmdiff.commands.grid import Cell, Draw, Row
from fmdiff.commands.origin import origin
from fmdiff.commands.reconstructions import bound, reconstructions
from fmdiff.commands.stage import Stage, place, set_up
from fmdiff.condition import Given
from fmdiff.data import saved
from fmdiff.data.base import Data
from fmdiff.data.images import to_uint8
from fmdiff.errors import FmdiffError
from fmdiff.loading import Encodes
from fmdiff.machine import processes
from fmdiff.machine.progress import Bar
from fmdiff.metrics import results
from fmdiff.metrics.judge import Judge, judge
from fmdiff.metrics.points import outlier
from fmdiff.metrics.reference import content_hash
from fmdiff.metrics.subset import choice
from fmdiff.sampling import Samples
from fmdiff.settings import schema

POINTS, SERIES, IMAGES = 10_000, 2_000, 2_000  # samples judged by default
PIXELS = 1000  # images that are searched for neighbours


def evaluate(cfg: DictConfig, folder: Path) -> None:
    """Judge samples= or those of ckpt= or model=, or compare a field with against=exact.

    Writes results.json. A grid adds table.csv, table.md and quality.png, memorisation adds
    neighbours.png, and against=exact adds errors.csv and errors.png.
    """
    settings: dict[str, Any] = OmegaConf.to_container(cfg)  # type: ignore[assignment]
    before = None
    if settings["result"]:
        file = Path(settings["result"]).expanduser()
        before = results.recipe(file)
        now = {key: settings[key] for key in ("device", "devices")}
        recipe = vouch(before["config"], tuple(settings["trust"]), f"result={file}")
        grid.check(recipe, f"result={file}")
        settings |= recipe | now | {"result": None}
        schema.check("evaluate", OmegaConf.create(settings))
    exact = settings["against"] == "exact"
    alone = settings["samples"] or exact
    where = place(settings, "samples= and against=exact are for" if alone else None)
    if where.type == "cpu" and settings["threads"]:
        torch.set_num_threads(settings["threads"])
    if exact:
        field_errors(settings, where, folder, POINTS)
    else:
        (_files if settings["samples"] else _model)(settings, where, folder)
    if processes.rank():
        return
    if before is not None:
        compare(before, json.loads(files.read_text(folder / results.NAME, folder)))
    if not exact:
        print(f"  {folder / 'results.json'}")


def _files(settings: dict[str, Any], where: torch.device, folder: Path) -> None:
    """Judge the samples in the files of samples=, or n of them chosen by the seed."""
    path = Path(settings["samples"]).expanduser()
    if not path.exists():
        raise FmdiffError(f"samples={path} does not exist: give a .npz or a folder of images")
    x, y = saved.read(path, "samples")
    n = min(settings["n"] or len(x), len(x))
    if n < (settings["n"] or 0):
        raise FmdiffError(f"n={settings['n']}: {path} holds {len(x)} samples")
    if n < 2:
        raise FmdiffError(f"samples={path} holds {n} sample, and a metric needs 2 at least")
    shape, kind = saved.shape_of(x)
    classes = 0 if y is None else int(y.max()) + 1
    pairs = saved.partners(path, x, "samples") if kind == "images" else None
    paired = pairs is not None
    data: Data | None = None
    if settings["data"]:
        data = build(settings["data"], base=Data)
        data.prepare()
    about = data, shape, classes, settings["seed"]
    jury = judge(settings, *about, where, paired=paired, kind=kind)
    jury.check(n)
    if kind != "images":
        jury.warnings += outlier(x, f"samples={path}")
    sha256 = content_hash(*(part for part in (x, y) if part is not None))
    columns: list[Any] = [x, y, *(pairs or ())]
    add: Any = jury.add  # a judge of pairs takes more columns
    if n < len(x):
        rows = choice(x, n, seed=settings["seed"])
        print(f"n={n:,} of the {len(x):,} samples of {path}, chosen by seed={settings['seed']}")
        columns = [part if part is None else part[rows] for part in columns]
    for start in range(0, n, 1000):
        batch = slice(start, min(start + 1000, n))
        add(*(part if part is None else part[batch] for part in columns))
    metrics = jury.results()
    print(results.as_text(metrics))
    pixels = columns[0] if kind == "images" else None
    of = {"samples": str(path), "samples_sha256": sha256}
    conclude(folder, "evaluate", settings, jury, metrics, pixels, **of)


def _model(settings: dict[str, Any], where: torch.device, folder: Path) -> None:
    """Judge samples of ckpt= or model=. The metrics of a grid are those of its first cell."""
    devices = settings["devices"]
    with processes.after_rank_0():
        try:
            stage = set_up(settings, where, POINTS, IMAGES, series=SERIES)
        except Encodes as error:
            return reconstructions(error, settings, where, folder, IMAGES)
        processes.divisible(stage.n, stage.size, devices)
        arguments.use_threads(stage, devices)
        about = stage.data, stage.field.outer, stage.field.classes, settings["seed"]
        jury = judge(settings, *about, where, True, stage.real is not None, stage.kind)
        jury.check(stage.n)
    evaluation = Evaluation(stage, jury, folder)
    with processes.group("evaluate", folder, devices, where):
        rows = evaluation.rows()
    if not rows:
        raise FmdiffError("no setting of the grid could be sampled; the lines above say why")
    first = rows[0]
    if processes.rank():
        return
    more: dict[str, Any] = {"checkpoint": stage.about, "nfe_counted": first.nfe}
    jury.warnings[:0] = _warnings(stage) + unknown(stage.field)
    if (limit := bound(stage, jury, where)) is not None:
        more["reconstruction"] = {name: metric.as_dict() for name, metric in limit.items()}
    if len(evaluation.cells) > 1:
        more["grid"] = [row.as_dict() for row in rows]
        grid.conclude(rows, folder)
        jury.warnings += grid.setbacks(rows)
    conclude(folder, "evaluate", settings, jury, first.metrics, evaluation.pixels, **more)


class Evaluation:
    """Draws and judges the samples of the cells of a grid, one after the other.

    Draws that an earlier run left in the folder are not repeated if they have the same origin.
    """

    def __init__(self, stage: Stage, jury: Judge, folder: Path) -> None:
        seed, repeats = stage.settings["seed"], stage.settings["repeats"]
        self.stage, self.jury, self.folder = stage, jury, folder
        self.cells, self.seeds = grid.cells(stage.settings), range(seed, seed + repeats)
        self.several = len(self.cells) * len(self.seeds) > 1
        self.of = origin(stage, jury) if self.several else {}
        self.draws = grid.read(folder, self.of) if self.several else {}
        self.pixels: Tensor | None = None  # images of the last draw

    def rows(self) -> list[Row]:
        """The rows of the cells that can be sampled. Prints each when it is done.

        Raises FmdiffError if there is one cell and it cannot be sampled.
        """
        share, lead, rows = (
            processes.share(self.stage.n, self.stage.size),
            not processes.rank(),
            [],
        )
        with Bar(len(share) * len(self.cells) * len(self.seeds), visible=lead) as bar:
            for cell in self.cells:
                draws = [self._draw(cell, seed, share, bar) for seed in self.seeds]
                row, words = grid.row(cell, draws, self.seeds), grid.words(cell)
                if isinstance(row, Row):
                    rows.append(row)
                    costs = f"{row.nfe:g} evaluations per sample, {row.seconds:.1f} s"
                    head = f"{words}: " if cell else ""
                    text = f"{head}{costs}\n{results.as_text(row.metrics)}"
                elif len(self.cells) == 1:
                    raise FmdiffError(row)
                else:
                    text = f"{words}: left out, {row}"
                if lead:
                    print(text)
        return rows

    def _draw(self, cell: Cell, seed: int, share: range, bar: Bar) -> Draw:
        """The Draw of a cell with a seed, from an earlier run if possible."""
        key = grid.key_of(cell, seed)
        if key in self.draws:
            self.jury.warnings += self.draws[key].warnings
            bar(len(share))
        else:
            self.draws[key] = self._judge(cell, seed, share, bar)
            if processes.rank() == 0 and self.several:
                grid.write(self.folder, self.of, self.draws)
        return self.draws[key]

    def _judge(self, cell: Cell, seed: int, share: range, bar: Bar) -> Draw:
        """Draw and judge the samples `share`, together with the other processes' shares."""
        stage, pixels = self.stage, list[Tensor]()
        self.jury.clear()
        self.jury.seed = seed  # fresh reference points for each of repeats=

        known = Known(stage.field, stage.settings["paste"])
        add = Jury(self.jury, stage.real, share.start)

        def receive(x: Tensor, y: Given | None) -> None:
            x = known(x, y)
            x = to_uint8(x) if stage.images else x
            add(x, y)
            if stage.images and sum(map(len, pixels)) < PIXELS:
                pixels.append(x.cpu())

        def draw() -> tuple[Samples, float]:
            sampler = arguments.sampler(stage, grid.settings_of(cell, stage.settings))
            begin = time.perf_counter()
            samples = sampler.draw(
                stage.field,
                len(share),
                seed,
                first=share.start,
                classes=stage.settings["classes"],
                receive=receive,
                progress=bar,
            )
            self.jury.warnings += sampler.notes(stage.field, samples.plan)
            return samples, time.perf_counter() - begin

        self.pixels = None
        try:
            samples, seconds = processes.agree(draw)
        except FmdiffError as error:
            return Draw(math.nan, 0.0, {}, str(error))
        if (off := known.gather()) is not None:
            self.jury.warnings.append(known.note(off, stage.images))
        nfe = sum(processes.gather(samples.nfe_counted * len(share))) / stage.n
        metrics = {name: metric.as_dict() for name, metric in self.jury.results().items()}
        self.pixels = torch.cat(pixels) if pixels else None
        return Draw(nfe, seconds, metrics, warnings=list(dict.fromkeys(self.jury.warnings)))


def _warnings(stage: Stage) -> list[str]:
    """Warnings about the model for readers of the metrics."""
    warnings, classes = [], stage.settings["classes"]
    if stage.about and stage.settings["weights"] == "raw":
        warnings.append("weights=raw: the averaged weights (ema) usually give better samples")
    if classes is not None:
        warnings.append(
            f"classes={classes}: the samples are of these classes alone, and the reference is of "
            "all"
        )
    given = stage.settings["cond"] or {}
    fixed = [f"cond.{name}" for name, value in given.items() if not str(value).startswith("data:")]
    if fixed:
        warnings.append(
            f"{', '.join(fixed)}: the samples are of this condition alone, and the reference is "
            "of all"
        )
    return warnings
