"""Samples and evaluations: pictures, animations, metrics, quality against NFE."""

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from fmdiff.metrics.results import MORE, front
from fmdiff.report.charts import Line, chart, short
from fmdiff.report.page import Album, Figures, animation, details, section, table, text
from fmdiff.report.read import Result, Run, dig, finite, mapping, when

STILLS = {
    "grid.png": "Samples.",
    "scatter.png": "Samples in blue, data in grey.",
    "fan.png": "The way of each sample from noise to data.",
}
FILMS = {
    "trajectory": "From noise to data: the state <i>x<sub>t</sub></i>.",
    "x_hat": "The estimate of <i>x</i> along the way.",
    "field": "The velocity field along the way, and the samples in it.",
}
OF_QUALITY = {
    "neighbours.png": "Samples, each beside its nearest neighbours in the training data.",
    "quality.png": "Quality against the number of network evaluations.",
    "errors.png": "Error against the exact field over time.",
}
PLAIN = ("neighbours.png", "grid.png")  # these show pixels if the data are images
SUFFIXES = (".gif", ".apng", ".webp")
EVALUATIONS = 5
LOOKS = 8  # colours of lines; charts of more lines are unreadable
CHARTS = 4  # charts of quality against NFE
ALONG = ("nfe", "steps", "seed", "n")  # settings of a grid that vary along a line of the chart


def samples(run: Run, album: Album, figures: Figures, look: str) -> str:
    """Show the newest samples that have pictures. look: the style of the pictures."""
    for result in run.results:
        stills, films = _pictures(result.folder)
        if stills or films:
            break
    else:
        return ""
    how = _how(result)
    parts, small = [], []
    for path in stills:
        if picture := album.still(path, path.name):
            caption = STILLS.get(path.name, f"{text(path.name)}.")
            caption = f"{caption} {text(how)}"
            parts.append(figures(picture.tag(_alt(path, result)), caption, look))
    for path in films:
        if picture := album.film(path, path.name):
            caption = FILMS.get(path.stem, f"{text(path.name)}.")
            alt = f"animation: {path.stem}, its last frame at the data"
            small.append(figures(animation(picture, alt), caption, look))
    return section(
        "Samples", *parts, f'<div class="films">{"".join(small)}</div>' if small else ""
    )


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
    if path.name == "grid.png":
        return f"Grid of {min(n, 100) if isinstance(n, int) else ''} generated images"
    return path.stem.replace("_", " ")


def quality(results: Sequence[Result], album: Album, figures: Figures) -> str:
    """Show the metrics of the newest evaluations, their curves and pictures."""
    evaluations = [result for result in results if result.results][:EVALUATIONS]
    parts = [metrics_table(result) for result in evaluations]
    curves = next((_grid(r) for r in evaluations if _grid(r)), [])
    if curves:
        parts.append(nfe_charts(curves, figures))
        parts.append(details("All settings of the grid", _grid_table(curves)))
    for name, caption in OF_QUALITY.items():
        if name == "quality.png" and curves:
            continue  # the charts above show the same
        path = next((r.folder / name for r in results if (r.folder / name).is_file()), None)
        if path and (picture := album.still(path, name)):
            look = "pixels" if name in PLAIN else "drawn"
            parts.append(figures(picture.tag(caption), caption, look))
    return section("Quality", *parts)


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
    """The first two metrics of the newest evaluation that has any, as names and values."""
    for result in run.results:
        best = "best " if result.results.get("grid") else ""
        values = {k: finite(mapping(m).get("value")) for k, m in metrics_of(result).items()}
        if values:
            rows = [(best + k, short(v)) for k, v in values.items() if v is not None]
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
    whole = table([head[i] for i in columns], cells, text(_caption(result)))
    return (whole if rows else "") + _against(result)


def _caption(result: Result) -> str:
    """The date and the subject of an evaluation."""
    results = result.results
    of = mapping(results.get("checkpoint"))
    checkpoint = Path(str(of.get("path"))).name if of.get("path") else ""
    if of.get("step") is not None:
        weights = str(of.get("weights", "ema"))
        average = str(of.get("average", weights))
        which = f": {average}" if average != weights else ""
        checkpoint += f" (step {of['step']}, {weights} weights{which})"
    source = checkpoint or results.get("samples") or result.config.get("ckpt") or ""
    caption = f"Evaluated {when(result.written)}" + (f": {source}" if source else "")
    metrics, rows = mapping(results.get("metrics")), results.get("grid")
    for row in rows if isinstance(rows, list) else []:
        if metrics and mapping(row).get("metrics") == metrics:
            caption += f"; {_settings(mapping(mapping(row).get('settings')))}"
            break
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


# Quality against NFE

Point = tuple[str, float, dict[str, float], dict[str, Any]]  # line, NFE, metrics, settings


def _grid(result: Result) -> list[Point]:
    """The settings of a grid that have an NFE and a metric."""
    rows = result.results.get("grid")
    points: list[tuple[dict, float, dict]] = []
    for row in map(mapping, rows if isinstance(rows, list) else []):
        settings = mapping(row.get("settings"))
        nfe = finite(row.get("nfe_counted"))
        nfe = finite(settings.get("nfe")) if nfe is None else nfe
        metrics = {
            name: value
            for name, metric in mapping(row.get("metrics")).items()
            if (value := finite(mapping(metric).get("value"))) is not None
        }
        if nfe is not None and nfe > 0 and metrics:
            points.append((settings, nfe, metrics))
    varied = {
        key
        for settings, _, _ in points
        for key in settings
        if len({str(other.get(key)) for other, _, _ in points}) > 1
    } - set(ALONG)

    def line(settings: dict) -> str:
        words = [str(settings["solver"])] if "solver" in settings else []
        words += [f"{k}={settings.get(k)}" for k in sorted(varied - {"solver"})]
        return " ".join(words) or "all"

    return [(line(settings), nfe, metrics, settings) for settings, nfe, metrics in points]


def nfe_charts(points: list[Point], figures: Figures) -> str:
    """Draw each metric against NFE, a line per solver, with the Pareto front ringed."""
    names = list(dict.fromkeys(name for _, _, metrics, _ in points for name in metrics))
    charts = []
    for name in names[:CHARTS]:
        lines: dict[str, list[tuple[float, float]]] = {}
        for label, nfe, metrics, _ in points:
            if name in metrics:
                lines.setdefault(label, []).append((nfe, metrics[name]))
        curves = {label: sorted(curve) for label, curve in list(lines.items())[:LOOKS]}
        every = [point for curve in curves.values() for point in curve]
        best = [every[i] for i in front(every, more=name in MORE)]
        svg = chart(
            [Line(k, curve, f"s{i}", True) for i, (k, curve) in enumerate(curves.items())],
            f"{name} against network evaluations",
            "network evaluations per sample",
            name,
            log_x=True,
            log_y=True,
            front=best,
        )
        better = "more is better" if name in MORE else "less is better"
        left = len(lines) - len(curves)
        caption = (
            f"{text(name)} against cost; {better}. Ringed: no other setting is both cheaper and "
            f"better.{f' {left} more lines are not drawn.' if left else ''}"
        )
        charts.append(figures(svg, f'{caption} <span class="readout"></span>'))
    return f'<div class="pair">{"".join(charts)}</div>' if charts else ""


def _settings(settings: dict[str, Any]) -> str:
    return ", ".join(f"{k}={v}" for k, v in settings.items())


def _grid_table(points: list[Point]) -> str:
    names = list(dict.fromkeys(name for _, _, metrics, _ in points for name in metrics))
    rows = [
        (
            text(_settings(settings)) or "-",
            f"{nfe:g}",
            *(short(metrics[name]) if name in metrics else "" for name in names),
        )
        for _, nfe, metrics, settings in points
    ]
    return table(["settings", "NFE", *names], rows)


def grid_of(run: Run) -> list[Point]:
    """The newest grid of a run."""
    return next((points for result in run.results if (points := _grid(result))), [])
