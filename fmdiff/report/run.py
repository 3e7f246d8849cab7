"""The page about one run."""

import shlex
import statistics
import time
from collections.abc import Callable
from pathlib import Path

from fmdiff import __version__
from fmdiff.data import decode
from fmdiff.errors import word
from fmdiff.report.analyses import inversions, likelihoods, simulation
from fmdiff.report.charts import Line, chart, in_words, short
from fmdiff.report.page import (
    Album,
    Figures,
    command,
    details,
    film,
    listing,
    page,
    plain,
    section,
    table,
    text,
)
from fmdiff.report.quality import opening, quality
from fmdiff.report.read import DRAWN, Curve, Result, Run, dig, finite, mapping, when
from fmdiff.report.results import headline, samples
from fmdiff.runs.config import leaves
from fmdiff.runs.overrides import omissions, repeatable

# prefixes of the columns of metrics.csv that are not metrics of samples
COLUMNS = (
    "loss",
    "mse",
    "grad_norm",
    "lr",
    "val_loss",
    "val_mse",
    "seconds",
    "samples_per_second",
    "transport_cost",
    "independent_cost",
    "utilisation",
    "ms_",
)
LIVE = "page.html"  # what fmdiff page writes
WORDS = {
    "x": "the data\u00a0x",
    "eps": "the noise\u00a0eps",
    "v": "the velocity\u00a0v",
    "score": "the score",
    "v_sh": "Salimans and Ho's v",
}


ABOVE = {  # what a page is of, by the command that wrote the folder
    "train": "training run",
    "sample": "samples",
    "evaluate": "evaluation",
    "likelihood": "likelihood",
    "invert": "inversion",
    "simulate": "simulation",
}


def page_of_run(run: Run, beside: bool = False) -> str:
    """The whole page. It never raises, whatever the run holds."""
    album, figures = Album(), Figures()

    def part(write: Callable[[], str], name: str) -> str:
        try:
            return write()
        except Exception as error:  # an odd value in a file must not hide the other parts
            run.notes.append(f"{name} cannot be shown: {type(error).__name__}: {error}")
            return ""

    summary = part(lambda: _summary(run), "the summary")
    facts = part(lambda: _facts(run), "the figures of the run")
    look = look_of(run)
    first = part(lambda: opening(run, figures), "the grid")
    parts = [
        part(lambda: simulation(run, album, figures), "the results"),
        part(lambda: samples(run, album, figures, look), "the samples"),
        part(lambda: _training(run, album, figures, look), "the curves"),
        part(lambda: quality(run.results, album, figures), "the metrics"),
        part(lambda: likelihoods(run.results), "the likelihood"),
        part(lambda: inversions(run.results, album, figures), "the inversion"),
        part(lambda: _settings(run), "the settings"),
    ]
    above = f"fmdiff {ABOVE[run.command]}"
    body = [
        summary,
        first,
        listing(run.warnings, "warnings", "Warnings"),
        facts,
        command(line) if (line := repeat(run)) else "",
        part(lambda: live(run, beside), "the live page"),
        *parts,
        listing(
            [*run.notes, *omissions(run.overrides), *album.notes], "notes", "Left out of this page"
        ),
    ]
    return page(
        run.label, above + f" {text(run.started)}".rstrip(), "".join(body), footer(run.folder)
    )


def footer(*folders: Path) -> str:
    """The date of a page, and the folders it was made from."""
    places = text(", ".join(map(str, folders)))
    return f"Written by fmdiff {__version__} on {when(time.time())} from {places}"


def look_of(run: Run) -> str:
    """The style of a run's pictures: "drawn" for figures on white, "pixels" for image grids."""
    if any((result.folder / name).exists() for result in run.results for name in DRAWN):
        return "drawn"
    try:
        with decode.open_picture(run.pictures[-1][1]) as picture:
            return "drawn" if "dpi" in picture.info else "pixels"  # only figures have a resolution
    except Exception:  # a damaged picture, or none
        return "pixels"


def repeat(run: Run) -> str:
    """The command line that does the same again, in another folder.

    What a file may not say is left out: see `overrides.refusal`.
    """
    settings = [shlex.quote(line) for line in repeatable(run.overrides)]
    if not run.overrides and not run.config:
        return ""
    return " ".join(["fmdiff", run.command, *settings])


def live(run: Run, beside: bool) -> str:
    """The command that writes the live page of a run, and a link to it.

    There is a link if the page is there and the report lies beside it.
    """
    if run.is_training and run.get("choices.objective") != "classification":
        words = [word("ckpt", run.folder)]
    elif run.command == "simulate" and run.get("choices.system") != "velocities":
        own = [line for line in run.overrides if line.startswith(("system.", "t_end="))]
        lines = repeatable([f"system={run.get('choices.system')}", *own])
        words = [shlex.quote(line) for line in lines]
    else:
        return ""
    there = beside and (run.folder / LIVE).is_file()
    link = f'<p><a href="{LIVE}">The page to play with</a></p>' if there else ""
    return command(" ".join(["fmdiff page", *words])) + link


def repeat_sweep(run: Run) -> str:
    """The command line of the sweep that a job belongs to; '' if the job does not hold it."""
    command = run.environment.get("command")
    words = [str(word) for word in command[1:]] if isinstance(command, list) else []
    if not {"-m", "--multirun"} & set(words):
        return ""
    return " ".join(["fmdiff", run.command, "-m", *map(shlex.quote, repeatable(words))])


def _summary(run: Run) -> str:
    sentences = []
    if run.is_training:
        network = f"network <b>{text(run.get('choices.model', ''))}</b>"
        if run.parameters:
            network += f", with {run.parameters:,} parameters,"
        task = run.get("objective.prediction")
        verb = f"learned to predict {text(WORDS.get(str(task), task))}" if task else "was trained"
        on = run.get("choices.data")
        way = run.get("choices.path")
        sentences.append(
            f"The {network} {verb}"
            + (f" on <b>{text(on)}</b>" if on else "")
            + (f", along the path <b>{text(way)}</b>" if way else "")
            + "."
        )
        sentences.append(_effort(run))
        values = run.metrics.get("val_loss")
        if values:
            best = min(values, key=lambda point: point[1])
            ended = values[-1][1]
            sentences.append(
                f"The validation loss is {short(ended)} at the end"
                + (
                    "."
                    if best[1] == ended
                    else f" and was lowest, {short(best[1])}, at step {best[0]:,.0f}."
                )
            )
    if run.command == "simulate":
        sentences.append(_simulated(run))
    newest = next((result for result in run.results if result.sample), None)
    if newest:
        sentences.append(_sampling(run, newest))
    if not any(sentences):
        return ""
    return f'<p class="summary">{" ".join(filter(None, sentences))}</p>'


def _simulated(run: Run) -> str:
    """Describe a simulation in a sentence of HTML."""
    solvers = run.get("solvers")
    names = solvers if isinstance(solvers, list) else [run.get("choices.solver", "?")]
    keys = {k: v for k, v in mapping(run.get("system")).items() if k != "_target_"}
    settings = ", ".join(f"{key} = {value}" for key, value in keys.items())
    words = f" ({settings})" if settings else ""
    solver = f"solver{'s' if len(names) > 1 else ''} <b>{text(', '.join(map(str, names)))}</b>"
    return (
        f"The system <b>{text(run.get('choices.system', ''))}</b>{text(words)}, from t = 0 to "
        f"{text(run.get('t_end', '?'))}, by the {solver}."
    )


def speed_of(run: Run) -> float | None:
    """The samples a second of the whole training, with every time that it was resumed."""
    size, seconds = finite(run.get("data.batch_size")), run.seconds
    if size and seconds:
        return steps_of(run) * size / seconds
    speeds = run.metrics.get("samples_per_second")
    return statistics.median(v for _, v in speeds) if speeds else None


def _effort(run: Run) -> str:
    steps = steps_of(run)
    if not steps:
        return "No step has been logged."
    planned = run.get("trainer.max_steps")
    size = run.get("data.batch_size")
    words = f"{steps:,} steps" if steps == planned else f"{steps:,} of {planned or '?':,} steps"
    words += f" of {size} samples" if size else ""
    seconds, speed = run.seconds, speed_of(run)
    words += f" took {duration(seconds)}" if seconds else " were done"
    if speed:
        words += f", {in_words(speed)} samples a second"
    machine = run.environment.get("gpu") or ""
    cpus = run.environment.get("cpus")
    where = str(machine) if machine else f"{cpus} CPU cores" if cpus else ""
    device = run.get("device")
    where += f" ({device})" if where and device and device not in ("auto", "cpu") else ""
    return text(words + (f", on {where}" if where else "")) + "."


def _sampling(run: Run, result: Result) -> str:
    """Describe how the samples of a folder were drawn, in a sentence of HTML."""
    config, sample = result.config, result.sample
    n = sample.get("n") or config.get("n")
    solver = dig(config, "choices.solver")
    if not n or not solver:
        return ""
    words = f"{n:,} samples" if isinstance(n, int) else f"{n} samples"
    words = f"The newest {words} came" if run.is_training else f"{words} came"
    nfe = sample.get("nfe_counted")
    cost = f", {nfe:g} evaluations each" if isinstance(nfe, int | float) else ""
    weights = f", from the {config['weights']} weights" if config.get("ckpt") else ""
    guidance = dig(config, "choices.guidance")
    guided = f", with guidance {guidance}" if guidance not in (None, "none") else ""
    return text(words) + f" from the solver <b>{text(solver)}</b>{text(cost + guided + weights)}."


def duration(seconds: float) -> str:
    """Format a duration: 12 s, 3 min 5 s, 2 h 10 min."""
    if seconds < 60:
        return f"{seconds:.3g} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest} s"
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min"


def steps_of(run: Run) -> int:
    """The last step with a row in metrics.csv, 0 without rows."""
    return int(max((curve[-1][0] for curve in run.metrics.values() if curve), default=0))


def _facts(run: Run) -> str:
    rows: list[tuple[str, str]] = []
    if run.is_training and steps_of(run):
        rows.append(("steps", f"{steps_of(run):,}"))
        if (loss := run.last("val_loss")) is not None:
            rows.append(("validation loss", short(loss)))
        elif (loss := run.last("loss")) is not None:
            rows.append(("training loss", short(loss)))
        if seconds := run.seconds:
            rows.append(("training time", duration(seconds)))
        if speed := speed_of(run):
            rows.append(("samples a second", in_words(speed)))
        if share := run.last("utilisation"):
            rows.append(("of the device's peak", f"{share:.0%}"))
        times = {name: run.last(name) or 0.0 for name in run.metrics if name.startswith("ms_")}
        if whole := sum(times.values()):
            split = ", ".join(f"{k[3:]} {v / whole:.0%}" for k, v in times.items())
            rows.append(("time of a step", f"{short(whole)} ms: {split}"))
    rows += headline(run)
    items = "".join(f"<div><dt>{text(k)}</dt><dd>{text(v)}</dd></div>" for k, v in rows)
    return f'<dl class="facts">{items}</dl>' if items else ""


def sample_metrics(run: Run) -> list[str]:
    """The columns of metrics.csv that are metrics of samples."""
    return [name for name in run.metrics if not name.startswith(COLUMNS)]


def _training(run: Run, album: Album, figures: Figures, look: str) -> str:
    over = figures(
        film([("", look, album.over_training(run.pictures))], "samples"),
        "The same noise, carried to samples by the averaged network as it learns. Arrow keys move "
        "the slider.",
    )
    readout = '<span class="readout"></span>'

    def curve_of(column: str) -> Curve:
        return run.metrics.get(column) or []

    def one(column: str, log_y: bool | None = None) -> str:
        return chart([Line(column, curve_of(column), "s0")], column, log_y=log_y)

    bins = [(i, curve_of(f"val_loss_{i}")) for i in range(20)]
    bins = [(i, curve) for i, curve in bins if curve]
    count = len(bins)
    by_time = [
        Line(f"t {i / count:.1f}-{(i + 1) / count:.1f}", curve, f"r{min(4, i * 5 // count)}")
        for i, curve in bins
    ]
    losses = [
        Line("training", curve_of("loss"), "faint"),
        Line("validation", curve_of("val_loss"), "s0"),
    ]
    squares = [
        Line("training", curve_of("mse"), "faint"),
        Line("validation", curve_of("val_mse"), "s0"),
    ]
    coupled = [
        Line("independent", curve_of("independent_cost"), "s7"),
        Line("coupled", curve_of("transport_cost"), "s0"),
    ]
    metrics = [
        (one(name), f"{text(name)} of samples drawn in training.") for name in sample_metrics(run)
    ]
    charts = [
        (chart(losses, "Loss", y_label="loss"), "Loss in training and on held-out data."),
        (
            chart(by_time, "Validation loss by time", y_label="loss"),
            "Validation loss by time: t = 0 is noise, t = 1 is data.",
        ),
        *metrics,
        (
            chart(squares, "Mean squared error", y_label="mse"),
            "Mean squared error of the prediction, without the weights and scales of the loss.",
        ),
        (one("lr", log_y=False), "Learning rate."),
        (one("grad_norm"), "Norm of the gradient, before it is clipped."),
        (chart(coupled, "Transport cost"), "Mean squared distance of x and eps."),
    ]
    drawings = "".join(figures(svg, f"{caption} {readout}") for svg, caption in charts if svg)
    return section("Training", over, f'<div class="pair">{drawings}</div>' if drawings else "")


def _settings(run: Run) -> str:
    versions = mapping(run.environment.get("packages"))
    machine = {k: v for k, v in run.environment.items() if k not in ("packages", "command")}
    rows = [(text(k), text(v)) for k, v in (machine | versions).items()]
    parts = [
        details("Overrides", plain("\n".join(run.overrides))) if run.overrides else "",
        details("Full config", plain(run.config_text)) if run.config_text else "",
        details("Versions and machine", table(("", ""), rows)) if rows else "",
    ]
    for result in run.results[:1]:
        if result.config:
            lines = "\n".join(f"{key}: {value}" for key, value in leaves(result.config))
            parts.append(details("Settings of the newest samples", plain(lines)))
    return section("Settings", *parts)
