"""fmdiff sample: draws points, series, images or arrays from a checkpoint or an exact field."""

import time
from dataclasses import dataclass, replace
from functools import cached_property, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from omegaconf import DictConfig, OmegaConf
from torch import Tensor

from fmdiff import __version__, files, tables
from fmdiff.commands import arguments
from fmdiff.commands.given import Jury, Known, Partners, unknown
from fmdiff.commands.stage import Stage, place, set_up
from fmdiff.condition import Given, join, label, named, null
from fmdiff.data import values
from fmdiff.data.images import to_uint8
from fmdiff.data.table import rows_of
from fmdiff.field import Field
from fmdiff.integration import Plan, law_of
from fmdiff.machine import processes
from fmdiff.machine.progress import Bar
from fmdiff.pictures import given as beside
from fmdiff.pictures import plots
from fmdiff.pictures import samples as pictures
from fmdiff.pictures.arrays import SEE
from fmdiff.runs import zoo
from fmdiff.sampling import UNGUIDED, Sampler, Samples
from fmdiff.trajectory import velocities

if TYPE_CHECKING:
    from fmdiff.metrics.judge import Judge
    from fmdiff.metrics.metric import Metric

POINTS, SERIES, IMAGES = 10_000, 1_000, 64  # samples by default


def sample(cfg: DictConfig, folder: Path) -> None:
    """Draw cfg.n samples of ckpt= or model= into the folder. Prints the cost and the folder.

    Writes samples.npz (arr_0: uint8 images (N, H, W, C), or float32 points (N, d), series
    (N, C, L) or arrays (N, C, H, W); labels if there are classes), samples.csv of tables,
    grid.png, scatter.png, corner.png or series.png, and sample.json. On request it also writes
    png/000000.png ..., animations (trajectory.gif, x_hat.gif and, for 2-D data, field.gif) and
    results.json.
    """
    settings: dict[str, Any] = OmegaConf.to_container(cfg)  # type: ignore[assignment]
    stage, sampler, judge = ready(settings)
    view, layout = laid_out(stage, sampler)
    where = stage.where
    with processes.group("sample", folder, settings["devices"], where):
        if processes.rank() == 0:
            plan = describe(settings, sampler, layout, view)
            print(f"{stage.n} samples on {where}, {plan}")
            for note in unknown(stage.field) + sampler.notes(view, layout):
                print(f"note: {note}")
        output = draw(stage, sampler, judge)
    if processes.rank():
        return
    most = f", {output.most:g} at most" if layout.nfe is None else ""
    print(
        f"{output.nfe:g} evaluations per sample counted{most}, {output.seconds:.1f} s, "
        f"{1000 * output.seconds / stage.n:.3g} ms per sample"
    )
    names = write(stage, sampler, output, folder)
    if judge and output.metrics:
        from fmdiff.commands.conclude import conclude
        from fmdiff.metrics import results

        print(results.as_text(output.metrics))
        pixels = output.x if stage.images else None
        more = {"checkpoint": stage.about, "nfe_counted": output.nfe}
        conclude(folder, "sample", settings, judge, output.metrics, pixels, **more)
        names.append("results.json")
    files.write_json(folder / "sample.json", report(stage, output))
    for name in [*names, "sample.json"]:
        print(f"  {folder / name}")


def ready(settings: dict[str, Any], judged: bool = True) -> tuple[Stage, Sampler, "Judge | None"]:
    """The stage, the sampler and the judge of `metrics=` that settings describe.

    judged: False leaves the judge out. Fills in the defaults of settings that depend on the field.
    """
    devices, judge = settings["devices"], None
    if all(settings[name] is None for name in ("solver", "schedule", "steps", "nfe")):
        settings["steps"] = zoo.steps(settings["ckpt"] or "")
    where = place(settings, "trajectory=true is drawn by" if settings["trajectory"] else None)
    with processes.after_rank_0():
        needed = bool(settings["metrics"])
        stage = set_up(settings, where, POINTS, IMAGES, data=needed, series=SERIES)
        processes.divisible(stage.n, stage.size, devices)
        arguments.use_threads(stage, devices)
        sampler = arguments.sampler(stage, settings)
        if needed and judged:
            from fmdiff.metrics import judge as judges

            about = stage.data, stage.field.outer, stage.field.classes, settings["seed"]
            paired = stage.real is not None
            judge = judges.judge(settings, *about, where, True, paired, stage.kind)
            judge.check(stage.n)
    return stage, sampler, judge


def laid_out(stage: Stage, sampler: Sampler) -> tuple[Field, Plan]:
    """The field as the solver sees it, and the steps of the solver."""
    settings = stage.settings
    y = sampler.guidance.labels(stage.field, settings["classes"], 0, 1, settings["seed"])
    view = sampler.seen(stage.field, y)
    return view, sampler.plan(view, settings["trajectory"])


class Batches:
    """Collects samples: images as pixels, uint8 (n, H, W, C), others as floats (n, *outer)."""

    def __init__(self) -> None:
        self.xs: list[Tensor] = []
        self.ys: list[Given] = []

    def add(self, x: Tensor, y: Given | None) -> None:
        """Add a batch with its labels and conditions."""
        self.xs.append(x.cpu())
        if y is not None:
            self.ys.append(y)

    def gather(self) -> None:
        """Add the samples of all ranks, in their order."""
        pieces = processes.gather((self.xs, self.ys))
        self.xs = [x for xs, _ in pieces for x in xs]
        self.ys = [y for _, ys in pieces for y in ys]


@dataclass(frozen=True)
class Output:
    """The samples of all processes, and their cost."""

    batches: Batches
    samples: Samples  # samples of this process; their x are in `batches`
    nfe: float  # evaluations per sample, as counted
    most: float  # of the sample that took most
    seconds: float
    metrics: "dict[str, Metric] | None"
    known: float | None  # the error of the known parts as drawn

    @cached_property
    def x(self) -> Tensor:
        """Images uint8 (n, H, W, C), or floats (n, *outer)."""
        return torch.cat(self.batches.xs)

    @cached_property
    def labels(self) -> Tensor | None:
        """The labels (n,); None without classes."""
        return label(self.y)

    @cached_property
    def y(self) -> Given | None:
        """The labels and conditions of n rows; None without."""
        return join(self.batches.ys) if self.batches.ys else None


def draw(stage: Stage, sampler: Sampler, judge: "Judge | None") -> Output:
    """Draw the samples, each process its share, and judge them if there is a judge."""
    batches, settings = Batches(), stage.settings

    share = processes.share(stage.n, stage.size)
    known = Known(stage.field, settings["paste"])
    jury = Jury(judge, stage.real, share.start) if judge else None

    def receive(x: Tensor, y: Given | None) -> None:
        x = known(x, y)
        x = to_uint8(x) if stage.images else x
        batches.add(x, y)
        if jury:
            jury(x, y)

    with Bar(len(share), visible=processes.rank() == 0) as bar:
        begin = time.perf_counter()
        work = partial(
            sampler.draw,
            stage.field,
            len(share),
            settings["seed"],
            first=share.start,
            classes=settings["classes"],
            trajectory=settings["trajectory"],
            progress=bar,
            receive=receive,
        )
        samples = processes.agree(work)
        batches.gather()
        nfe = sum(processes.gather(samples.nfe_counted * len(share))) / stage.n
        most = max(processes.gather(samples.nfe_most))
        seconds = time.perf_counter() - begin
        error = known.gather()
    if error is not None and processes.rank() == 0:
        print(f"note: {known.note(error, stage.images)}")
    metrics = judge.results() if judge else None
    return Output(batches, samples, nfe, most, seconds, metrics, error)


def describe(settings: dict[str, Any], sampler: Sampler, plan: Plan, field: Field) -> str:
    """Describe the plan in one line: solver, order, steps, their times and their cost."""
    choices = settings["choices"]
    steps = f"{plan.steps} steps" if plan.steps != 1 else "1 step"
    if plan.nfe is None:
        steps, cost = "adaptive steps", "evaluations known after the run"
    else:
        cost = f"{plan.nfe} evaluations each"
    solver = sampler.solver_of(field)
    law = law_of(field, solver, sampler.schedule)
    schedule = choices["schedule"] or type(law).__name__.lower()
    kind, last, jump = f"order {solver.order:g}", plan.times[-1].item(), ""
    if solver.times is not None:
        kind, schedule = "fitted weights", "of its own"
    if solver.maps:
        kind, last = "of a flow map", 1.0 if plan.jump else last
    elif plan.jump:
        jump = " and a jump to the estimate of x"
    guided = f" (guidance {choices['guidance']} included)" if field.branches > 1 else ""
    return (
        f"solver {choices['solver']} ({kind}), {steps}, schedule "
        f"{schedule}, in {settings['coordinates']} coordinates from "
        f"{plan.times[0]:.4g} to {last:.4g}{jump}, {cost}{guided}"
    )


def write(stage: Stage, sampler: Sampler, output: Output, folder: Path) -> list[str]:
    """Write samples.npz and pictures of samples. Returns the names of the files."""
    settings, samples, labels = stage.settings, output.samples, output.labels
    codec = stage.codec
    x = output.x.numpy() if stage.images else output.x.float().numpy()
    more = {} if labels is None else {"labels": labels.numpy()}
    given = {name: part.float().cpu().numpy() for name, part in named(output.y).items()}
    more |= {values.SAMPLES.format(name): rows for name, rows in given.items()}
    if stage.real is not None:
        real = Partners(stage.real.x, 0)(stage.n)
        more["real"] = to_uint8(real).numpy() if stage.images else real.float().numpy()
    files.write_npz(folder / "samples.npz", {"arr_0": x, **more})
    names = ["samples.npz"]
    if codec is not None and codec.column_names:
        table = rows_of(codec, x, more.get("labels"), stage.field.names)
        files.write_text(folder / "samples.csv", tables.as_csv(table))
        names.append("samples.csv")
    if stage.images:
        classes = stage.field.names
        names += pictures.image_files(x, labels, folder, settings["png"], classes)
    elif stage.kind == "points":
        names += pictures.point_files(x, stage.data, folder, samples.trajectory, codec)
    else:
        names += pictures.array_files(x, stage.kind, stage.data, folder, codec)
    if stage.kind == "arrays":
        print(f"note: in grid.png {SEE}")
    if stage.field.values:
        names += _beside(stage, x, given, more.get("real"), labels, folder)
    if samples.trajectory is None:
        return names
    watches = {"trajectory": samples.trajectory}
    if samples.x_hat is not None:
        watches["x_hat"] = samples.x_hat
    arrows = None
    # with a codec the field is not in the user's space
    if samples.plan.steps and stage.field.codec is None:
        arrows = partial(_arrows, stage, sampler, output.y)
    form, kind = settings["animation"], stage.kind
    return names + pictures.films(watches, folder, form, stage.data, arrows, kind)


def _beside(
    stage: Stage,
    x: np.ndarray,
    given: dict[str, np.ndarray],
    real: np.ndarray | None,
    labels: Tensor | None,
    folder: Path,
) -> list[str]:
    """Write given.png, samples x (n, ...) beside what they were given. Returns its name."""
    forms, count = stage.field.conditions, max(map(len, stage.field.values.values()))
    if stage.images:
        words = pictures.captions(labels, stage.field.names)
        picture: Any = beside.images(x, given, forms, count, real, words)
    elif x.ndim == 2:
        points = None if stage.data is None else stage.data.sample(0, len(x), 1)[0].numpy()
        picture = beside.points(x, given, forms, count, points)
    else:
        picture = None
    if picture is None:
        return []
    plots.save(picture, folder / "given.png")
    return ["given.png"]


def _arrows(
    stage: Stage, sampler: Sampler, given: Given | None, points: Tensor, times: Tensor
) -> Tensor:
    """The velocities (F, G, 2) at points (G, 2) and times (F,); prints their cost."""
    target = stage.where, sampler.dtype
    y = None if given is None else given.to(stage.where)
    view = arrow_field(stage.field.to(*target), sampler, y, len(points))
    view.reset()
    u = velocities(view, points.to(*target), times)
    animation = stage.settings["animation"]
    print(f"{view.evaluations} more in all for the arrows of field.{animation}")
    return u


def arrow_field(field: Field, sampler: Sampler, y: Given | None, n: int) -> Field:
    """The field whose n arrows are drawn. It is guided if all samples have the same y.

    Samples of several move in several fields. The arrows are then those of all data, the field of
    the null label and of unknown conditions, without guidance.
    """
    plain = replace(sampler, clip="none")
    if y is None:
        return plain.seen(field, None)
    rows, parts = y[torch.zeros(n, dtype=torch.int64)], list(named(y).values())
    labels = label(y)
    parts += [] if labels is None else [labels]
    if all(((part == part[:1]) | (part != part)).all() for part in parts):
        return plain.seen(field, rows)
    return replace(plain, guidance=UNGUIDED).seen(field, null(rows, field.classes))


def report(stage: Stage, output: Output) -> dict[str, Any]:
    """The content of sample.json."""
    return {
        "nfe_planned": output.samples.nfe_planned,
        "nfe_counted": output.nfe,
        "nfe_most": output.most,
        "steps": output.samples.plan.steps,
        "n": stage.n,
        "batch_size": stage.size,
        "seconds": output.seconds,
        "device": str(stage.where),
        "threads": torch.get_num_threads(),
        "known_error": output.known,
        "checkpoint": stage.about,
        "config": stage.settings,
        "versions": {
            "torch": torch.__version__,
            "numpy": np.__version__,
            "fmdiff": __version__,
        },
    }
