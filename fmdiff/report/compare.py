"""The page that shows runs, or the jobs of a sweep, side by side."""

from collections.abc import Callable, Sequence
from typing import Any

from fmdiff.report.charts import Line, chart, short
from fmdiff.report.page import (
    Album,
    Figures,
    command,
    film,
    folded,
    listing,
    page,
    plain,
    section,
    table,
    text,
)
from fmdiff.report.read import Run
from fmdiff.report.results import LOOKS, first_picture, grid_of, metrics_of, nfe_charts, value_of
from fmdiff.report.run import duration, footer, is_points, measured, repeat, repeat_sweep, steps_of
from fmdiff.runs.config import leaves
from fmdiff.runs.resume import CHANGEABLE

ROWS = 30  # settings that differ
PICTURED = 24  # runs whose samples are shown
FILMED = 4  # runs up to which all pictures over training are shown
UNSAID = ("choices.", *(CHANGEABLE - {"optim.lr"}))  # what makes no other result


def compared(runs: Sequence[Run], title: str, above: str, sweep: bool = False) -> str:
    """The whole page. Raises nothing for what the runs hold."""
    album, figures, notes = Album(), Figures(), []
    if sweep:
        for run, *values in zip(runs, *differing(runs).values(), strict=True):
            run.label = " ".join([run.label, *map(_value, values[:3])])

    def part(write: Callable[[], str], name: str) -> str:
        try:
            return write()
        except Exception as error:
            notes.append(f"{name} cannot be shown: {type(error).__name__}: {error}")
            return ""

    body = [
        part(lambda: _summary(runs, sweep), "the summary"),
        listing(_said(runs), "warnings", "Warnings"),
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


def _said(runs: Sequence[Run]) -> list[str]:
    return [f"{run.label}: {line}" for run in runs for line in run.warnings]


def differing(runs: Sequence[Run]) -> dict[str, list[Any]]:
    """{key: its value in each run} of the settings that are not the same in all."""
    flat = [dict(leaves(run.config)) for run in runs]
    keys = dict.fromkeys(key for one in flat for key in one)
    found = {key: [one.get(key) for one in flat] for key in keys}
    found = {k: values for k, values in found.items() if len(set(map(str, values))) > 1}
    chosen = {k.partition(".")[2]: v for k, v in found.items() if k.startswith("choices.")}
    others = {
        key: values
        for key, values in found.items()
        if not key.startswith(UNSAID) and key.partition(".")[0] not in chosen
    }
    return chosen | others


def _summary(runs: Sequence[Run], sweep: bool) -> str:
    done = sum(run.outcome in (None, "ok") for run in runs)
    keys = list(differing([run for run in runs if run.config]))
    words = f"{len(runs)} {'jobs' if sweep else 'runs'}"
    words += f", {done} of them ended well" if sweep and done < len(runs) else ""
    if keys:
        words += f", which differ in <b>{text(', '.join(keys[:6]))}</b>"
        words += f" and {len(keys) - 6} more settings" if len(keys) > 6 else ""
    ended = [(loss, run) for run in runs if (loss := run.last("val_loss")) is not None]
    best = ""
    if len(ended) > 1:
        loss, run = min(ended, key=lambda pair: pair[0])
        best = (
            f" The lowest validation loss at the end, {short(loss)}, is that of "
            f"<b>{text(run.label)}</b>."
        )
        objectives = {str((r.get("objective"), r.get("choices.data"))) for _, r in ended}
        if len(objectives) > 1:
            best = " Their losses are of different objectives or data and do not compare."
    return f'<p class="summary">{words}.{best}</p>'


def _metrics(run: Run) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for result in run.results:
        for name, metric in metrics_of(result).items():
            found.setdefault(name, metric)
    return found


def _table(runs: Sequence[Run], sweep: bool) -> str:
    """A row per run: what differs, how it ended, what it reached."""
    differs = differing(runs) if len(runs) > 1 else {}
    keys = list(differs)[:4]
    names = list(dict.fromkeys(name for run in runs for name in _metrics(run)))[:2]
    names = names if sweep else []  # where there are few runs, all metrics follow below
    head = ["job" if sweep else "run", *keys, *(["result"] if sweep else []), "steps"]
    head += ["validation loss", "time", *names]
    rows = []
    for i, run in enumerate(runs):
        loss, seconds = run.last("val_loss"), run.last("seconds")
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
    kept = [0, *(i for i in range(1, len(head)) if any(row[i] for row in rows))]
    return table([head[i] for i in kept], [[row[i] for i in kept] for row in rows])


def _look(run: Run) -> str:
    return "drawn" if is_points(run) else "pixels"


def _value(value: Any) -> str:
    return "" if value is None else str(value)


def _samples(runs: Sequence[Run], album: Album, figures: Figures) -> str:
    """Each run's newest samples; then, for a few runs, their pictures over training together."""
    shown = []
    for run in runs[:PICTURED]:
        path = next((p for result in run.results if (p := first_picture(result))), None)
        name, says = "newest samples", "newest samples"
        if path is None and run.pictures and len(runs) > FILMED:
            step, path = run.pictures[-1]
            name, says = "samples", f"samples after {step:,} steps"
        if path and (picture := album.still(path, f"{run.label}: {path.name}")):
            alt = f"{run.label}: {name}"
            shown.append(figures(picture.tag(alt), f"{text(run.label)}: {says}.", _look(run)))
    tracks = []
    if len(runs) <= FILMED:
        for run in runs:
            pictures = album.over_training(run.pictures, len(runs))
            tracks.append((run.label, _look(run), pictures))
    over = film(tracks, "samples")
    if len(runs) > PICTURED and shown:
        album.notes.append(f"samples of {PICTURED} of {len(runs)} runs are shown")
    return (f'<div class="many">{"".join(shown)}</div>' if shown else "") + figures(
        over, "The runs as they learn; arrow keys move the slider."
    )


def _curves(runs: Sequence[Run], figures: Figures) -> str:
    drawn = []
    judged = dict.fromkeys(name for run in runs for name in measured(run))
    for column, says in (
        ("val_loss", "Validation loss"),
        ("loss", "Training loss"),
        *((name, f"{text(name)} of samples drawn in training") for name in judged),
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
        if svg := chart(lines[: 2 * LOOKS], says, log_y=False if column == "lr" else None):
            more = len(lines) - 2 * LOOKS
            left = f" {more} more runs are not drawn." if more > 0 else ""
            drawn.append(figures(svg, f'{says}.{left} <span class="readout"></span>'))
    return f'<div class="pair">{"".join(drawn)}</div>' if drawn else ""


def _quality(runs: Sequence[Run], figures: Figures) -> str:
    """All metrics, a row each and a column per run; the runs' NFE curves in one chart."""
    names = list(dict.fromkeys(name for run in runs for name in _metrics(run)))
    few = runs[:6]
    rows = [(text(name), *(value_of(_metrics(run).get(name)) for run in few)) for name in names]
    shown = table(["metric", *(run.label for run in few)], rows) if rows else ""
    points = []
    for run in runs:
        points += [(f"{run.label} {line}", *rest) for line, *rest in grid_of(run)]
    return shown + (nfe_charts(points, figures) if points else "")  # type: ignore[arg-type]


def _settings(runs: Sequence[Run]) -> str:
    differs = differing(runs) if len(runs) > 1 else {}
    few = runs[:6]
    rows = [
        (text(key), *(text(_value(value)) for value in values[:6]))
        for key, values in list(differs.items())[:ROWS]
    ]
    parts = [folded("What differs", table(["setting", *(r.label for r in few)], rows))]
    for run in runs:
        body = (command(line) if (line := repeat(run)) else "") + plain(run.config_text)
        parts.append(folded(run.label, body))
    return "".join(parts[0 if rows else 1 :])
