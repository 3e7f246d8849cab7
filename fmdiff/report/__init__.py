"""report.html: a page about a run, a sweep or several runs, in one file that loads no others."""

import logging
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from fmdiff.errors import FmdiffError
from fmdiff.files import whole
from fmdiff.report.charts import short
from fmdiff.report.compare import incomparable, page_of_runs
from fmdiff.report.read import Run, is_sweep, read_run, read_sweep
from fmdiff.report.run import page_of_run
from fmdiff.runs.resume import OUTPUTS

NAME = "report.html"
log = logging.getLogger("fmdiff")


def report(cfg: Any) -> None:
    """Write the page of runs=, by default of the newest run, and print its path.

    Raises FmdiffError for a folder that is not a run, and if the page cannot be written.
    """
    runs = cfg.runs if cfg.runs is not None else [str(_newest())]
    folders = [_folder(str(run)) for run in ([runs] if isinstance(runs, str) else runs)]
    out = None if cfg.out is None else Path(cfg.out).expanduser()
    if out is not None and (out.is_dir() or not out.suffix):
        out = out / NAME
    try:
        if len(folders) == 1:
            page = write_report(folders[0], out)
        else:
            page = compare(folders, out or Path(NAME))
    except OSError as error:
        place = error.filename or out or folders[0]
        raise FmdiffError(f"out={place} cannot be written to: {error.strerror}") from error
    print(page)


def write_report(folder: Path, out: Path | None = None) -> Path:
    """Write the page of a run or a sweep, by default as folder/report.html, and return its path.

    Raises OSError if it cannot be written. Nothing in the folder makes it raise others.
    """
    folder = Path(folder)
    if is_sweep(folder):
        runs = read_sweep(folder)
        html = page_of_runs(runs, _name(folder), f"fmdiff sweep, {len(runs)} jobs", sweep=True)
    else:
        html = page_of_run(read_run(folder, _name(folder)), beside=out is None)
    return _write(out or folder / NAME, html)


def compare(folders: Sequence[Path], out: Path) -> Path:
    """Write one page that shows runs side by side, and return its path. Raises OSError."""
    runs = [
        read_run(Path(folder), label)
        for folder, label in zip(folders, _labels(folders), strict=True)
    ]
    return _write(out, page_of_runs(runs, " and ".join(_short(runs)), "fmdiff, runs side by side"))


def losses(sweep: Path) -> tuple[dict[int, str], str]:
    """The last validation loss of each job of a sweep, as text.

    Also returns a sentence if the losses do not compare, else ''.
    """
    ends = [(run, run.last("val_loss")) for run in read_sweep(sweep)]
    known = [(run, loss) for run, loss in ends if loss is not None]
    texts = {int(run.label): short(loss) for run, loss in known if run.label.isdigit()}
    return texts, incomparable([run for run, _ in known])


def update(folder: Path) -> None:
    """Write the page of a run folder, or of the run whose samples/ holds the folder.

    Train, sample and evaluate call it at their end, so errors are logged and not raised.
    """
    folder = Path(folder)
    owner = folder.parent.parent
    if folder.parent.name == "samples" and (owner / "config.yaml").is_file():
        folder = owner
    try:
        write_report(folder)
    except Exception as error:
        log.warning("%s could not be written: %s", folder / NAME, error)


def _write(path: Path, html: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with whole(path) as file:
        file.write(html.encode(errors="replace"))  # a path may hold bytes that are not text
    return path


def _newest() -> Path:
    """The newest run under outputs/, as ckpt=last finds it."""
    files = [path for depth in ("*/*", "*/*/*") for path in OUTPUTS.glob(f"{depth}/*.ckpt")]
    if not files:
        raise FmdiffError(f"no run was found under {OUTPUTS}: give runs=RUN or runs=[A,B]")
    return max(files, key=lambda path: path.stat().st_mtime).parent


def _folder(name: str) -> Path:
    """The folder that an entry of runs= names."""
    path = _newest() if name == "last" else Path(name).expanduser()
    path = path.parent if path.is_file() else path
    if not path.is_dir():
        raise FmdiffError(f"runs={name}: no such folder")
    signs = ("config.yaml", "metrics.csv", "sample.json", "results.json")
    if not is_sweep(path) and not any((path / sign).is_file() for sign in signs):
        raise FmdiffError(f"runs={name}: neither a run folder nor that of a sweep")
    return path


def _name(folder: Path) -> str:
    """The name of a run folder: moons/DATE for outputs/moons/DATE."""
    parts = Path(os.path.abspath(folder)).parts
    if "outputs" in parts[:-1]:
        return "/".join(parts[len(parts) - parts[::-1].index("outputs") :])
    return parts[-1]


def _labels(folders: Sequence[Path]) -> list[str]:
    """Distinct names of the folders: the ends of their paths, as short as possible."""
    parts = [Path(os.path.abspath(folder)).parts for folder in folders]
    for count in range(1, max(map(len, parts)) + 1):
        names = ["/".join(p[-count:]) for p in parts]
        if len(set(names)) == len(names):
            return names
    return [f"{name} ({i})" for i, name in enumerate(names, 1)]


def _short(runs: Sequence[Run]) -> list[str]:
    names = [run.label for run in runs]
    return names if len(names) <= 3 else [*names[:2], f"{len(names) - 2} more runs"]
