"""The page that shows runs, or the jobs of a sweep, side by side."""

from collections.abc import Callable, Sequence
from typing import Any

from fmdiff.report.charts import Line, chart, short
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
from fmdiff.report.quality import LOOKS, grid_of, nfe_charts
from fmdiff.report.read import Run
from fmdiff.report.results import first_picture, metrics_of, value_of
from fmdiff.report.run import (
    duration,
    footer,
    look_of,
    repeat,
    repeat_sweep,
    sample_metrics,
    steps_of,
)
from fmdiff.runs.config import leaves
from fmdiff.runs.resume import CHANGEABLE

OF_LOSS = ("data", "path", "objective", "source", "coupling", "time")
UNRELATED = ("data.batch_size", "data.root")
ROWS = 30  # differing settings that are shown
PICTURED = 24  # runs whose samples are shown
FILMED = 4  # for up to so many runs, all pictures over training are shown
# settings that do not change results
IRRELEVANT = ("choices.", *(CHANGEABLE - {"optim.lr"}))


def page_of_runs(runs: Sequence[Run], title: str, above: str, sweep: bool = False) -> str:
    """The whole page. It never raises, whatever the runs hold."""
    album, figures, notes = Album(), Figures(), []
    if sweep:
        for run, *values in zip(runs, *varying(runs).values(), strict=True):
            run.label = " ".join([run.label, *map(_value, values[:3])])

    def part(write: Callable[[], str], name: str) -> str:
        try:
            return write()
        except Exception as error:
            notes.append(f"{name} cannot be shown: {type(error).__name__}: {error}")
            return ""

    body = [
        part(lambda: _summary(runs, sweep), "the summary"),
        listing(_warnings(runs), "warnings", "Warnings"),
        command(line) if sweep and runs and (line := repeat_sweep(runs[0])) else "",
        part(lambda: section("Jobs" if sweep else "Runs", _table(runs, sweep)), "the runs"),
        part(lambda: section("Samples", _samples(runs, album, figures)), "the samples"),
        part(lambda: section("Training", _curves(runs, figures)), "the curves"),
        part(lambda: section("Quality", _quality(runs, figures)), "the metrics"),
        part(lambda: section("Settings", _settings(runs)), "the settings"),
    ]
    notes += [f"{run.label}: {note}" for run in runs for note in run.notes] + album.notes
    body.append(listing(notes, "notes", "Left out of this page"))
    folders = [run.folder for run in runs[:6]]
    return page(title, above, "".join(body), footer(*folders))


def _warnings(runs: Sequence[Run]) -> list[str]:
    return [f"{run.label}: {line}" for run in runs for line in run.warnings]


def varying(runs: Sequence[Run]) -> dict[str, list[Any]]:
    """{key: its value in each run} for the settings that differ between runs."""
    flat = [dict(leaves(run.config)) for run in runs]
    keys = dict.fromkeys(key for one in flat for key in one)
    settings = {key: [one.get(key) for one in flat] for key in keys}
    settings = {k: values for k, values in settings.items() if len(set(map(str, values))) > 1}
    choices = {k.partition(".")[2]: v for k, v in settings.items() if k.startswith("choices.")}
    others = {
        key: values
        for key, values in settings.items()
        if not key.startswith(IRRELEVANT) and key.partition(".")[0] not in choices
    }
    return choices | others


def incomparable(runs: Sequence[Run]) -> str:
    """A sentence if the losses of runs do not compare, which names the reason; '' if they do.

    A loss is the mean over data, noise and times of a distance to what the objective predicts, so
    each of these groups gives it another size.
    """
    differ = [group for group in OF_LOSS if len({_part(run, group) for run in runs}) > 1]
    if not differ:
        return ""
    return f"The validation losses do not compare: these runs differ in {' and '.join(differ)}."


def _part(run: Run, group: str) -> str:
    """The settings of a group that a loss depends on, as text."""
    settings = [(k, v) for k, v in leaves({group: run.get(group)}) if k not in UNRELATED]
    return str((run.get(f"choices.{group}"), sorted(map(str, settings))))


def _summary(runs: Sequence[Run], sweep: bool) -> str:
    good = sum(run.outcome in (None, "ok") for run in runs)
    keys = list(varying([run for run in runs if run.config]))
    words = f"{len(runs)} {'jobs' if sweep else 'runs'}"
    words += f", {good} of them ended well" if sweep and good < len(runs) else ""
    if keys:
        words += f", which differ in <b>{text(', '.join(keys[:6]))}</b>"
        words += f" and {len(keys) - 6} more settings" if len(keys) > 6 else ""
    losses = [(loss, run) for run in runs if (loss := run.last("val_loss")) is not None]
    best = ""
    if len(losses) > 1:
        loss, run = min(losses, key=lambda pair: pair[0])
        best = (
            f" The lowest validation loss at the end, {short(loss)}, is that of "
            f"<b>{text(run.label)}</b>."
        )
        if apart := incomparable([run for _, run in losses]):
            best = f" {apart}"
    return f'<p class="summary">{words}.{best}</p>'


def _metrics(run: Run) -> dict[str, Any]:
    newest: dict[str, Any] = {}
    for result in run.results:
        for name, metric in metrics_of(result).items():
            newest.setdefault(name, metric)
    return newest


def _table(runs: Sequence[Run], sweep: bool) -> str:
    """A row per run: its differing settings, its outcome and its results."""
    differs = varying(runs) if len(runs) > 1 else {}
    keys = list(differs)[:4]
    names = list(dict.fromkeys(name for run in runs for name in _metrics(run)))[:2]
    names = names if sweep else []  # the metrics of few runs follow below
    head = ["job" if sweep else "run", *keys, *(["result"] if sweep else []), "steps"]
    head += ["validation loss", "time", *names]
    rows = []
    for i, run in enumerate(runs):
        loss, seconds = run.last("val_loss"), run.seconds
        metrics = _metrics(run)
        row = [text(run.label.split(" ")[0] if sweep else run.label)]
        row += [text(_value(differs[key][i])) for key in keys]
        row += [text(run.outcome or "")] if sweep else []
        row += [
            f"{steps_of(run):,}" if steps_of(run) else "",
            short(loss) if loss is not None else "",
            duration(seconds) if seconds else "",
            *(value_of(metrics.get(name)).partition(" <")[0] for name in names),
        ]
        rows.append(row)
    columns = [0, *(i for i in range(1, len(head)) if any(row[i] for row in rows))]
    cells = [[row[i] for i in columns] for row in rows]
    with_loss = [run for run in runs if run.last("val_loss") is not None]
    return table([head[i] for i in columns], cells, text(incomparable(with_loss)))


def _value(value: Any) -> str:
    return "" if value is None else str(value)


def _samples(runs: Sequence[Run], album: Album, figures: Figures) -> str:
    """Show each run's newest samples and, for a few runs, their pictures over training."""
    parts = []
    for run in runs[:PICTURED]:
        path = next((p for result in run.results if (p := first_picture(result))), None)
        name, caption = "newest samples", "newest samples"
        if path is None and run.pictures and len(runs) > FILMED:
            step, path = run.pictures[-1]
            name, caption = "samples", f"samples after {step:,} steps"
        if path and (picture := album.still(path, f"{run.label}: {path.name}")):
            alt = f"{run.label}: {name}"
            caption = f"{text(run.label)}: {caption}."
            parts.append(figures(picture.tag(alt), caption, look_of(run)))
    tracks = []
    if len(runs) <= FILMED:
        for run in runs:
            pictures = album.over_training(run.pictures, len(runs))
            tracks.append((run.label, look_of(run), pictures))
    over = film(tracks, "samples")
    if len(runs) > PICTURED and parts:
        album.notes.append(f"samples of {PICTURED} of {len(runs)} runs are shown")
    return (f'<div class="many">{"".join(parts)}</div>' if parts else "") + figures(
        over, "The runs as they learn; arrow keys move the slider."
    )


def _curves(runs: Sequence[Run], figures: Figures) -> str:
    charts = []
    metrics = dict.fromkeys(name for run in runs for name in sample_metrics(run))
    for column, title in (
        ("val_loss", "Validation loss"),
        ("loss", "Training loss"),
        *((name, f"{text(name)} of samples drawn in training") for name in metrics),
        ("lr", "Learning rate"),
        ("samples_per_second", "Training samples a second"),
    ):
        curves = [(run, run.metrics.get(column) or []) for run in runs]
        lines = [
            Line(run.label, curve, f"s{i % LOOKS}")
            for i, (run, curve) in enumerate(curves)
            if curve
        ]
        if column == "lr" and len({tuple(line.points) for line in lines}) <= 1:
            continue
        if svg := chart(lines[: 2 * LOOKS], title, log_y=False if column == "lr" else None):
            more = len(lines) - 2 * LOOKS
            left = f" {more} more runs are not drawn." if more > 0 else ""
            charts.append(figures(svg, f'{title}.{left} <span class="readout"></span>'))
    return f'<div class="pair">{"".join(charts)}</div>' if charts else ""


def _quality(runs: Sequence[Run], figures: Figures) -> str:
    """Show all metrics, with a column per run, and the runs' NFE curves in one chart."""
    names = list(dict.fromkeys(name for run in runs for name in _metrics(run)))
    few = runs[:6]
    rows = [(text(name), *(value_of(_metrics(run).get(name)) for run in few)) for name in names]
    metrics = table(["metric", *(run.label for run in few)], rows) if rows else ""
    points = []
    for run in runs:
        points += [(f"{run.label} {line}", *rest) for line, *rest in grid_of(run)]
    return metrics + (nfe_charts(points, figures) if points else "")  # type: ignore[arg-type]


def _settings(runs: Sequence[Run]) -> str:
    differs = varying(runs) if len(runs) > 1 else {}
    few = runs[:6]
    rows = [
        (text(key), *(text(_value(value)) for value in values[:6]))
        for key, values in list(differs.items())[:ROWS]
    ]
    parts = [details("What differs", table(["setting", *(r.label for r in few)], rows))]
    for run in runs:
        body = (command(line) if (line := repeat(run)) else "") + plain(run.config_text)
        parts.append(details(run.label, body))
    return "".join(parts[0 if rows else 1 :])
