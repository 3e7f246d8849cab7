"""Samples and their metrics: pictures, animations, tables."""

import re
from pathlib import Path
from typing import Any

from fmdiff.metrics.results import MORE
from fmdiff.report.charts import short
from fmdiff.report.page import Album, Figures, film, section, table, text
from fmdiff.report.read import Result, Run, dig, finite, mapping, when

STILLS = {
    "grid.png": "Samples.",
    "scatter.png": "Samples in blue, data in grey.",
    "corner.png": "Each column against each other one: samples in blue, data in grey.",
    "series.png": "Series and their quantiles: samples in blue, data in grey.",
    "fan.png": "The way of each sample from noise to data.",
}
FILMS = {
    "trajectory": "From noise to data: the state <i>x<sub>t</sub></i>.",
    "x_hat": "The estimate of <i>x</i> along the way.",
    "field": "The velocity field along the way, and the samples in it.",
    "animation": "The paths as they grow with <i>t</i>.",
}
OF_QUALITY = {
    "neighbours.png": "Samples, each beside its nearest neighbours in the training data.",
    "quality.png": "Quality against the number of network evaluations.",
    "errors.png": "Error against the exact field over time.",
    "map_errors.png": "Error of the map against the exact one, from each time to each later one.",
}
SUFFIXES = (".gif", ".apng", ".webp")


def samples(run: Run, album: Album, figures: Figures, look: str) -> str:
    """Show the newest samples that have pictures. look: the style of the pictures."""
    for result in run.results:
        stills, films = _pictures(result.folder)
        if (stills or films) and not result.invert:  # its pictures have their own section
            break
    else:
        return ""
    how = _how(result)
    parts = []
    for path in stills:
        if picture := album.still(path, path.name):
            caption = STILLS.get(path.name, f"{text(path.name)}.")
            caption = f"{caption} {text(how)}"
            parts.append(figures(picture.tag(_alt(path, result)), caption, look))
    small = [movie(path, album, figures, look) for path in films]
    return section(
        "Samples", *parts, f'<div class="films">{"".join(small)}</div>' if small else ""
    )


def movie(path: Path, album: Album, figures: Figures, look: str) -> str:
    """An animation as a figure with a slider of t, and a button that plays it."""
    unit, frames = album.film(path, path.name)
    caption = FILMS.get(path.stem, f"{text(path.name)}.")
    name = f"animation: {path.stem}"
    return figures(film([("", look, frames)], name, unit), caption, look)


def _pictures(folder: Path) -> tuple[list[Path], list[Path]]:
    """The still and the animated pictures of samples in a folder, the known ones first."""
    stills = [folder / name for name in STILLS if (folder / name).is_file()]
    own = {*STILLS, *OF_QUALITY}
    stills += sorted(
        path
        for path in folder.glob("*.png")
        if path.name not in own and not re.fullmatch(r"\.part.*|\d+\.png", path.name)
    )
    names = [*FILMS, *sorted({p.stem for p in folder.iterdir() if p.suffix in SUFFIXES})]
    films = []
    for name in dict.fromkeys(names):
        for suffix in SUFFIXES:
            if (folder / f"{name}{suffix}").is_file() and not name.startswith(".part"):
                films.append(folder / f"{name}{suffix}")
                break
    return stills, films


def first_picture(result: Result) -> Path | None:
    """The picture that represents the samples of a folder, if there is one."""
    stills, _ = _pictures(result.folder)
    return stills[0] if stills else None


def _how(result: Result) -> str:
    """Describe how samples were drawn, in a line."""
    config, sample = result.config, result.sample
    solver, guidance = dig(config, "choices.solver"), dig(config, "choices.guidance")
    words = []
    if isinstance(n := sample.get("n"), int):
        words.append(f"n = {n:,}")
    if solver:
        words.append(str(solver))
    if (nfe := finite(sample.get("nfe_counted"))) is not None:
        words.append(f"{nfe:g} evaluations each")
    if guidance not in (None, "none"):
        words.append(f"guidance {guidance}, w = {dig(config, 'guidance.w', '?')}")
    if config.get("weights") and config.get("ckpt"):
        words.append(f"{config['weights']} weights of {Path(str(config['ckpt'])).name}")
    if config.get("seed") is not None:
        words.append(f"seed {config['seed']}")
    if (seconds := finite(sample.get("seconds"))) is not None:
        words.append(f"{seconds:.1f} s")
    return f"{', '.join(words)}; {when(result.written)}."


def _alt(path: Path, result: Result) -> str:
    n = result.sample.get("n")
    count = f"{n:,} " if isinstance(n, int) else ""
    if path.name == "scatter.png":
        return f"Scatter plot of {count}generated points over points of the data"
    if path.name == "corner.png":
        return f"Histograms and scatter plots of the columns of {count}generated rows"
    if path.name == "series.png":
        return f"Lines and quantiles of {count}generated series beside those of the data"
    if path.name == "grid.png":
        return f"Grid of {min(n, 100) if isinstance(n, int) else ''} generated images"
    return path.stem.replace("_", " ")


def value_of(metric: Any) -> str:
    """Format a value with its interval or standard error as HTML."""
    metric = mapping(metric)
    value = finite(metric.get("value"))
    if value is None:
        return "not finite" if "value" in metric else ""
    interval = metric.get("interval")
    if isinstance(interval, list) and len(interval) == 2 and None not in map(finite, interval):
        return f"{short(value)} <small>[{short(interval[0])}, {short(interval[1])}]</small>"
    se = finite(metric.get("se"))
    return short(value) + (f" <small>± {se:.1g}</small>" if se is not None else "")


def metrics_of(result: Result) -> dict[str, Any]:
    """The metrics of a results.json by name; of a grid, the best value of each."""
    metrics = dict(mapping(result.results.get("metrics")))
    rows = result.results.get("grid")
    for row in map(mapping, rows if isinstance(rows, list) else []):
        for name, metric in mapping(row.get("metrics")).items():
            value, best = (finite(mapping(m).get("value")) for m in (metric, metrics.get(name)))
            sign = -1 if name in MORE else 1
            if value is not None and (best is None or sign * value < sign * best):
                metrics[name] = metric
    return metrics


def headline(run: Run) -> list[tuple[str, str]]:
    """The first two metrics of the newest evaluation that has any, as names and values.

    A name ends in the step of the weights if training has gone on since.
    """
    last = max((curve[-1][0] for curve in run.metrics.values() if curve), default=None)
    for result in run.results:
        best = "best " if result.results.get("grid") else ""
        values = {k: finite(mapping(m).get("value")) for k, m in metrics_of(result).items()}
        if values:
            step = finite(dig(result.results, "checkpoint.step"))
            at = f" at step {step:,.0f}" if step is not None and last not in (None, step) else ""
            rows = [(best + k + at, short(v)) for k, v in values.items() if v is not None]
            return rows[:2]
    return []


def metrics_table(result: Result) -> str:
    """The metrics of one results.json as HTML; '' without metrics."""
    metrics = mapping(result.results.get("metrics"))
    rows = []
    for name, metric in metrics.items():
        about = mapping(metric)
        n, floor = about.get("n"), finite(about.get("floor"))
        extractor = about.get("extractor") or ""
        sha = about.get("weights_sha256")
        rows.append(
            (
                text(name),
                value_of(metric),
                short(floor) if floor is not None else "",
                f"{n:,}" if isinstance(n, int) else "",
                text(about.get("reference") or ""),
                text(extractor) + (f" <small>{text(str(sha)[:12])}</small>" if sha else ""),
            )
        )
    head = ["metric", "value", "real data", "n", "reference", "extractor"]
    empty = [i for i in range(2, 6) if not any(row[i] for row in rows)]
    columns = [i for i in range(6) if i not in empty]
    cells = [[row[i] for i in columns] for row in rows]
    whole = table([head[i] for i in columns], cells, text(caption_of(result)))
    return _map(result) + (whole if rows else "") + _against(result)


def _map(result: Result) -> str:
    """The certificate of a flow map, and the errors of several jumps in a row; '' of a field."""
    rows = result.results.get("jumps")
    cells = []
    for row in map(mapping, rows if isinstance(rows, list) else []):
        jumps, rms, error, median, share = (
            finite(row.get(key)) for key in ("jumps", "rms", "rms_error", "median", "outliers")
        )
        if jumps is None or rms is None or median is None:
            continue
        more = "" if error is None else f" <small>± {error:.1g}</small>"
        beyond = "" if share is None else f"{share:.2%}"
        cells.append((f"{jumps:g}", short(rms) + more, short(median), beyond))
    head = ("jumps", "rms error", "median error", "outliers")
    caption = (
        "Jumps in a row against the exact map, in units of the data's std. Outliers are off by "
        "more than half the least distance of two modes."
    )
    sentence = str(result.results.get("certificate") or "")
    words = f"<p>{text(sentence[:1].upper() + sentence[1:])}.</p>"
    return (words if sentence else "") + (table(head, cells, caption) if cells else "")


def caption_of(result: Result) -> str:
    """The date and the subject of an evaluation."""
    results = result.results
    of = mapping(results.get("checkpoint"))
    checkpoint = Path(str(of.get("path"))).name if of.get("path") else ""
    if of.get("step") is not None:
        weights = str(of.get("weights", "ema"))
        average = str(of.get("average", weights))
        which = f": {average}" if average != weights else ""
        digest = f", {str(of['sha256'])[:12]}" if of.get("sha256") else ""
        checkpoint += f" (step {of['step']}, {weights} weights{which}{digest})"
    source = checkpoint or results.get("samples") or result.config.get("ckpt") or ""
    caption = f"Evaluated {when(result.written)}" + (f": {source}" if source else "")
    if results.get("kind"):  # from against=exact
        caption += f"; errors of {results['kind']}"
    return caption


def _against(result: Result) -> str:
    """The means that `evaluate against=exact` wrote before it had metrics."""
    mean = mapping(result.results.get("mean"))
    rows = [
        (text(name), short(number))
        for name, value in mean.items()
        if (number := finite(value)) is not None
    ]
    kind = text(f"{result.results.get('kind', '')} against {result.results.get('against', '')}")
    return table(("mean over time", "value"), rows, kind) if rows else ""
