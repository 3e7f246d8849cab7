"""The results of `likelihood`, `invert` and `simulate` on the page of their run."""

import csv
from pathlib import Path
from typing import Any

from fmdiff.files import read_text
from fmdiff.report.charts import Line, chart, in_words, short
from fmdiff.report.page import Album, Figures, details, section, table, text
from fmdiff.report.read import Result, Run, finite, mapping, when
from fmdiff.report.results import movie

RESULTS = 3  # likelihoods, and inversions, that are shown
ROWS = 60  # rows of a table of steps
OF_INVERT = {
    "invert.png": "Images, each beside its reconstruction from noise.",
    "strip.png": "From one image to the next: decoded interpolations of their noise.",
    "inpaint.png": "Images, with a box cut out, and with that box drawn anew.",
}
TABLES = {
    "statistics.csv": "Moments of the paths",
    "errors.csv": "Errors of the solvers",
    "equal_nfe.csv": "Errors at equal numbers of evaluations",
    "steps.csv": "Steps",
}
STILLS = {
    "steps.png": "The paths.",
    "errors.png": "The error at the end, by the step and by the evaluations.",
}


def _subject(content: dict[str, Any], written: float) -> str:
    """What a result is of: the quantity, the checkpoint and the date."""
    of = mapping(content.get("checkpoint"))
    name = Path(str(of.get("path"))).name if of.get("path") else ""
    step = f", step {of['step']}" if of.get("step") is not None else ""
    source = f" of {name} ({of.get('weights', 'ema')} weights{step})" if name else ""
    return f"{content.get('quantity', '')}{source}, {when(written)}."


def likelihoods(results: list[Result]) -> str:
    """The newest likelihoods: -log p in nats and bits per dimension, and their cost."""
    tables = []
    for result in [r for r in results if r.likelihood][:RESULTS]:
        content = result.likelihood
        rows = []
        for key, name in (("nll", "-log p in nats"), ("bits_per_dim", "bits per dimension")):
            value, se = finite(content.get(key)), finite(content.get(f"{key}_se"))
            if value is not None:
                error = "" if se is None else f" <small>± {se:.2g}</small>"
                rows.append((text(name), short(value) + error))
        for key, name in (("n", "samples"), ("nfe", "evaluations per sample"), ("seconds", "s")):
            if (value := finite(content.get(key))) is not None:
                rows.append((text(name), in_words(value)))
        for key in ("solver", "divergence"):
            if content.get(key):
                rows.append((text(key), text(content[key])))
        tables.append(table(("", ""), rows, text(_subject(content, result.written))))
    return section("Likelihood", *tables)


def inversions(results: list[Result], album: Album, figures: Figures) -> str:
    """The newest inversions: the errors of the round trips to noise and back, and pictures."""
    parts = []
    for result in [r for r in results if r.invert][:RESULTS]:
        rows = result.invert.get("rows")
        trips = [mapping(row) for row in rows] if isinstance(rows, list) else []
        lines: dict[str, list[tuple[float, float]]] = {}
        cells = []
        for trip in trips:
            nfe, rms, most = (finite(trip.get(key)) for key in ("nfe", "rms", "max"))
            if nfe is None or rms is None or most is None:
                continue
            lines.setdefault(str(trip.get("solver")), []).append((nfe, rms))
            steps = trip.get("steps") or "adaptive"
            cells.append(
                (text(trip.get("solver")), text(steps), f"{nfe:g}", short(rms), short(most))
            )
        head = ("solver", "steps", "NFE", "rms error", "largest error")
        subject = f"To noise and back: {_subject(result.invert, result.written)}"
        parts.append(table(head, cells, text(subject)))
        curves = [
            Line(name, sorted(p), f"s{i % 8}", True) for i, (name, p) in enumerate(lines.items())
        ]
        svg = chart(curves, "Error of the round trip", "evaluations per sample", "rms", log_x=True)
        parts.append(figures(svg, 'Error of the round trip. <span class="readout"></span>'))
        shape = mapping(result.invert.get("trajectories"))
        if (value := finite(shape.get("straightness"))) is not None:
            turning = finite(shape.get("turning"))
            more = "" if turning is None else f", and they turn by {turning:.3g} rad"
            parts.append(f"<p>The trajectories have straightness {short(value)}{more}.</p>")
        for name, caption in OF_INVERT.items():
            path = result.folder / name
            if path.is_file() and (picture := album.still(path, name)):
                parts.append(figures(picture.tag(caption), caption, "pixels"))
    return section("Inversion", *parts)


def simulation(run: Run, album: Album, figures: Figures) -> str:
    """The pictures and tables of a run of `simulate`."""
    parts = []
    for name, caption in STILLS.items():
        path = run.folder / name
        if path.is_file() and (picture := album.still(path, name)):
            parts.append(figures(picture.tag(caption), caption, "drawn"))
    film = run.folder / "animation.gif"
    if film.is_file():
        parts.append(movie(film, album, figures, "drawn"))
    tables = [(name, title) for name, title in TABLES.items() if (run.folder / name).is_file()]
    for name, title in tables:
        head, *rows = read_table(run.folder / name)
        left = len(rows) - ROWS
        caption = f"{title} ({name})" + (f", the first {ROWS} rows" if left > 0 else "")
        body = table(head, [list(map(text, row)) for row in rows[:ROWS]], text(caption))
        parts.append(details(title, body) if name == "steps.csv" and len(rows) > 12 else body)
    return section("Results", *parts)


def read_table(path: Path) -> list[list[str]]:
    """The rows of a CSV file, all as long as the first, with numbers in four digits.

    Raises OSError for a file that cannot be read, and ValueError for an empty one.
    """
    rows = list(csv.reader(read_text(path, path.parent, "replace").replace("\0", "").splitlines()))
    if not rows or not rows[0]:
        raise ValueError(f"{path.name} is empty")
    head, *body = rows
    return [head, *([_cell(cell) for cell in row] for row in body if len(row) == len(head))]


def _cell(cell: str) -> str:
    value = finite(cell)
    return cell if value is None else short(value)
