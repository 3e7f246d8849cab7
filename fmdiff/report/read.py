"""Reads a run folder for its report, and notes the files that cannot be read."""

import csv
import json
import math
import re
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import datetime
from itertools import pairwise
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from fmdiff.errors import OUTCOMES, FmdiffError
from fmdiff.files import inside, read_text
from fmdiff.runs.config import load_config
from fmdiff.runs.folder import JOBS

# a key that the config of one command alone has
SIGNS = {
    "trainer": "train",
    "system": "simulate",
    "probes": "likelihood",
    "interpolate": "invert",
    "repeats": "evaluate",
}
DRAWN = ("scatter.png", "corner.png", "series.png")  # pictures of samples on white
JSONS = ("sample", "results", "likelihood", "invert")  # what the commands write
LOGS = ("train", "sample", "evaluate", "likelihood", "invert", "simulate")
STARTED = re.compile(r"([\d-]+ [\d:]+),\d+ [A-Z]+ ")
STEP = re.compile(r"step_(\d+)\.png")
LOGGED = re.compile(r"([\d-]+ [\d:]+),\d+ (WARNING|ERROR) [\w.]+: (.+)")
WARNINGS = 10  # the last warnings of a log
RESULTS = 12  # folders of samples and evaluations that are read, the newest ones

Curve = list[tuple[float, float]]


@dataclass
class Result:
    """A folder that a command after training wrote."""

    folder: Path
    written: float  # seconds since the epoch
    config: dict[str, Any] = field(default_factory=dict)
    sample: dict[str, Any] = field(default_factory=dict)  # sample.json, and so on
    results: dict[str, Any] = field(default_factory=dict)
    likelihood: dict[str, Any] = field(default_factory=dict)
    invert: dict[str, Any] = field(default_factory=dict)


@dataclass
class Run:
    """The content of a run folder."""

    folder: Path
    label: str  # its name beside other runs
    config: dict[str, Any] = field(default_factory=dict)
    config_text: str = ""
    overrides: list[str] = field(default_factory=list)
    environment: dict[str, Any] = field(default_factory=dict)
    metrics: dict[str, Curve] = field(default_factory=dict)  # {column: [(step, value)]}
    pictures: list[tuple[int, Path]] = field(default_factory=list)  # over training
    results: list[Result] = field(default_factory=list)  # newest first
    warnings: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)  # what could not be read
    parameters: int | None = None
    outcome: str | None = None  # outcome of a job of a sweep
    started: str = ""  # when its first command began

    @property
    def command(self) -> str:
        """The name of the command that wrote the folder."""
        if self.metrics:
            return "train"
        for key, name in SIGNS.items():
            if key in self.config:
                return name
        evaluated = any(result.results for result in self.results)
        return "evaluate" if evaluated and not any(r.sample for r in self.results) else "sample"

    @property
    def is_training(self) -> bool:
        """Whether train wrote it, rather than another command."""
        return self.command == "train"

    @property
    def seconds(self) -> float | None:
        """The time of the whole training, with every time that it was resumed."""
        times = [value for _, value in self.metrics.get("seconds") or []]
        # earlier versions counted from 0 again in a resumed run
        ends = [a for a, b in pairwise(times) if b < a] + times[-1:]
        return sum(ends) if ends else None

    def last(self, column: str) -> float | None:
        """The last value in a column of metrics.csv."""
        curve = self.metrics.get(column)
        return curve[-1][1] if curve else None

    def get(self, key: str, default: Any = None) -> Any:
        """The setting under a dotted key."""
        return dig(self.config, key, default)


def dig(node: Any, key: str, default: Any = None) -> Any:
    """The value under a dotted key of nested mappings."""
    for part in key.split("."):
        if not isinstance(node, dict) or node.get(part) is None:
            return default
        node = node[part]
    return node


def mapping(value: Any) -> dict[str, Any]:
    """The value with strings as keys, if it is a dict; otherwise an empty dict."""
    return {str(k): v for k, v in value.items()} if isinstance(value, dict) else {}


def finite(value: Any) -> float | None:
    """A number that can be drawn, or None."""
    try:
        number = float(value)
    except (TypeError, ValueError, OverflowError):
        return None
    return number if math.isfinite(number) and not isinstance(value, bool) else None


def read_run(folder: Path, label: str | None = None) -> Run:
    """Read everything that a report shows of a run folder. It never raises."""
    run = Run(folder, label or folder.name)

    def attempt(name: str, read: Callable[[Path], None]) -> None:
        path = folder / name
        try:
            if path.exists():
                read(path)
        except Exception as error:  # whatever a file holds, the rest of the page is shown
            run.notes.append(f"{name or folder} cannot be read: {_reason(error)}")

    def config(path: Path) -> None:
        run.config_text = read_text(path, folder, "replace")
        run.config = _config(folder)

    def overrides(path: Path) -> None:
        text = read_text(path, folder, "replace")
        run.overrides = [line for line in text.splitlines() if line.strip()]

    def environment(path: Path) -> None:
        run.environment = mapping(json.loads(read_text(path, folder)))

    def metrics(path: Path) -> None:
        run.metrics, damaged = read_metrics(path)
        if damaged:
            run.notes.append(f"metrics.csv: {damaged} damaged lines are left out")

    def log(path: Path) -> None:
        text = read_text(path, folder, "replace")
        if begun := STARTED.match(text):  # a log goes on where environment.json is replaced
            run.started = min(filter(None, (run.started, begun[1][:16])))
        lines = dict.fromkeys(f"{m[2].lower()}: {m[3]}" for m in LOGGED.finditer(text))
        run.warnings += list(lines)[-WARNINGS:]
        if counts := re.findall(r"; ([\d,]+) parameters; writing to", text):
            run.parameters = int(counts[-1].replace(",", ""))

    def pictures(path: Path) -> None:
        own = [file for file in path.iterdir() if inside(file, folder)]
        matches = [(STEP.fullmatch(file.name), file) for file in own]
        run.pictures = sorted((int(match[1]), file) for match, file in matches if match)

    attempt("config.yaml", config)
    attempt("overrides", overrides)
    attempt("environment.json", environment)
    attempt("metrics.csv", metrics)
    run.started = str(run.environment.get("started") or "")[:16].replace("T", " ")
    for name in LOGS:
        attempt(f"{name}.log", log)
    attempt("samples", pictures)
    attempt("", lambda path: run.results.extend(_results(run, path)))
    for result in run.results:
        lines = result.results.get("warnings")
        run.warnings += [str(line) for line in lines] if isinstance(lines, list) else []
    run.warnings = list(dict.fromkeys(run.warnings))
    return run


def read_sweep(folder: Path) -> list[Run]:
    """The jobs of a sweep in their order. A job without a folder has an outcome alone."""
    runs = []
    for line in read_text(folder / JOBS, folder, "replace").splitlines():
        try:
            number, words, code, out = json.loads(line)
            place = folder / str(number)
            if not place.is_dir() and out:
                place = Path(out).expanduser()
            if inside(place, folder):
                run = read_run(place, str(number))
            else:
                note = f"{place} lies elsewhere and is not read: fmdiff report runs=[FOLDER,...]"
                run = Run(place, str(number), notes=[note])
            run.overrides = run.overrides or str(words).split(" ")
            run.outcome = OUTCOMES.get(code, str(code)) if isinstance(code, int) else str(code)
        except Exception as error:
            note = f"{JOBS} has a damaged line: {_reason(error)}"
            run = Run(folder, "?", notes=[note], outcome="not known")
        runs.append(run)
    return sorted(runs, key=lambda run: (not run.label.isdigit(), run.label.zfill(9)))


def is_sweep(folder: Path) -> bool:
    """Whether a folder is that of a sweep."""
    return (folder / JOBS).is_file()


def read_metrics(path: Path) -> tuple[dict[str, Curve], int]:
    """The curves of finite numbers in metrics.csv, and the number of damaged lines."""
    curves: dict[str, Curve] = {}
    damaged = 0
    text = read_text(path, path.parent, "replace").replace("\0", "")
    rows = csv.reader(text.splitlines())
    head = next(rows, [])
    for row in rows:
        step = finite(row[0]) if row and head[:1] == ["step"] else None
        if step is None or len(row) != len(head):
            damaged += 1
            continue
        for name, cell in zip(head[1:], row[1:], strict=True):
            value = finite(cell)
            if value is not None:
                curves.setdefault(name, []).append((step, value))
    return curves, damaged


def _config(folder: Path) -> dict[str, Any]:
    cfg = load_config(folder)
    return mapping(OmegaConf.to_container(cfg, resolve=False)) if cfg is not None else {}


def _results(run: Run, folder: Path) -> list[Result]:
    """The samples and evaluations in the folder itself and in its samples/DATE_TIME."""
    inner = (path for path in folder.glob("samples/*") if inside(path, folder) and path.is_dir())
    folders = [folder, *inner]
    names = (*(f"{name}.json" for name in JSONS), "grid.png", *DRAWN)
    dated = []
    for folder in folders:
        times = [(folder / name).stat().st_mtime for name in names if (folder / name).is_file()]
        if times:
            dated.append((max(times), folder))
    results = []
    for written, folder in sorted(dated, reverse=True)[:RESULTS]:
        result = Result(folder, written)
        for name in JSONS:
            file = folder / f"{name}.json"
            try:
                if file.is_file():
                    content = mapping(json.loads(read_text(file, folder)))
                    setattr(result, name, content)
                    result.config = result.config or mapping(content.get("config"))
            except Exception as error:
                place = file.relative_to(run.folder)
                run.notes.append(f"{place} cannot be read: {_reason(error)}")
        results.append(result)
    return results


def _reason(error: Exception) -> str:
    text = str(error).strip().partition("\n")[0] or type(error).__name__
    return text if isinstance(error, FmdiffError) else f"{text} ({type(error).__name__})"


def when(seconds: float) -> str:
    """Format a time, in seconds since the epoch: 3 May 2026, 14:05."""
    return datetime.fromtimestamp(seconds).strftime("%d %B %Y, %H:%M").lstrip("0")
