"""The quality of samples: metrics, and grids of settings with their metrics against NFE."""

from collections.abc import Sequence
from typing import Any

from fmdiff.metrics.results import MORE, front
from fmdiff.report.charts import Line, chart, short
from fmdiff.report.page import Album, Figures, details, section, table, text
from fmdiff.report.read import Result, Run, finite, mapping
from fmdiff.report.results import OF_QUALITY, caption_of, metrics_table, value_of

PLAIN = ("neighbours.png", "grid.png")  # these show pixels if the data are images
EVALUATIONS = 5
LOOKS = 8  # colours of lines; charts of more lines are unreadable
CHARTS = 4  # charts of quality against NFE
ALONG = ("nfe", "steps", "seed", "n")  # settings of a grid that vary along a line of the chart

Point = tuple[str, float, dict[str, float], dict[str, Any]]  # line, NFE, metrics, settings


def quality(results: Sequence[Result], album: Album, figures: Figures) -> str:
    """Show the metrics of the newest evaluations, with their tables, curves and pictures.

    A grid that is the newest result opens the page instead.
    """
    evaluations = [result for result in results if result.results][:EVALUATIONS]
    parts, first = [], True
    for result in evaluations:
        if not points_of(result):
            parts.append(metrics_table(result))
        elif result is not results[0]:
            part = grid_part(result, figures)
            parts.append(part if first else details(f"Grid. {caption_of(result)}", part))
            first = False
    curves = any(map(points_of, evaluations))
    for name, caption in OF_QUALITY.items():
        if name == "quality.png" and curves:
            continue  # the charts show the same
        path = next((r.folder / name for r in results if (r.folder / name).is_file()), None)
        if path and (picture := album.still(path, name)):
            look = "pixels" if name in PLAIN else "drawn"
            parts.append(figures(picture.tag(caption), caption, look))
    return section("Quality", *parts)


def opening(run: Run, figures: Figures) -> str:
    """The grid that is the newest result of a run, for the top of its page; '' without one."""
    if not (run.results and points_of(run.results[0])):
        return ""
    return section("Grid", grid_part(run.results[0], figures))


def rows_of(result: Result) -> list[dict[str, Any]]:
    """The rows of a grid."""
    rows = result.results.get("grid")
    return [mapping(row) for row in rows] if isinstance(rows, list) else []


def points_of(result: Result) -> list[Point]:
    """The settings of a grid that have an NFE and a metric."""
    points: list[tuple[dict, float, dict]] = []
    for row in rows_of(result):
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


def grid_part(result: Result, figures: Figures) -> str:
    """A grid: its best setting, the table of all, and the charts of its metrics against NFE."""
    points = points_of(result)
    return _best(points) + _table(result, points) + nfe_charts(points, figures)


def _best(points: list[Point]) -> str:
    """A paragraph that names the best setting by each metric, the cheapest of equals."""
    sentences = []
    for name in dict.fromkeys(name for _, _, metrics, _ in points for name in metrics):
        sign = -1 if name in MORE else 1
        rows = [(sign * m[name], nfe, settings) for _, nfe, m, settings in points if name in m]
        value, nfe, settings = min(rows, key=lambda row: row[:2])
        words = ", ".join(f"{key}={setting}" for key, setting in settings.items())
        sentences.append(
            f"The best {text(name)}, {short(sign * value)}, has <b>{text(words or 'the one')}</b> "
            f"({nfe:g} evaluations per sample)."
        )
    return f'<p class="best">{" ".join(sentences)}</p>'


def _table(result: Result, points: list[Point]) -> str:
    """A row for every setting, with the intervals of its metrics. Best values are bold."""
    rows = rows_of(result)
    keys = dict.fromkeys(key for row in rows for key in mapping(row.get("settings")))
    names = dict.fromkeys(name for row in rows for name in mapping(row.get("metrics")))
    best = {
        name: (max if name in MORE else min)(values)
        for name in names
        if (values := [metrics[name] for _, _, metrics, _ in points if name in metrics])
    }
    body = []
    for row in rows:
        nfe, metrics = finite(row.get("nfe_counted")), mapping(row.get("metrics"))
        cells = [text(mapping(row.get("settings")).get(key, "")) for key in keys]
        cells.append("" if nfe is None else f"{nfe:g}")
        for name in names:
            value = value_of(metrics.get(name))
            top = name in best and finite(mapping(metrics.get(name)).get("value")) == best[name]
            cells.append(f"<b>{value}</b>" if top else value)
        body.append(cells)
    return table([*keys, "NFE", *names], body, text(caption_of(result)))


def nfe_charts(points: Sequence[Point], figures: Figures) -> str:
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


def grid_of(run: Run) -> list[Point]:
    """The newest grid of a run."""
    return next((points for result in run.results if (points := points_of(result))), [])
