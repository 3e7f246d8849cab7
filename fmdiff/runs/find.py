"""Finds checkpoints: the one `ckpt=` names, the newest good one of a run, those nearby."""

import logging
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch

from fmdiff.errors import FmdiffError
from fmdiff.files import inside
from fmdiff.runs import checkpoint, zoo
from fmdiff.runs.checkpoint import LAST, NUMBERED
from fmdiff.runs.content import Damaged

GROUPS = ("data", "path", "model", "objective", "optim", "trainer")  # of every training

log = logging.getLogger("fmdiff")
# suffixes of the other files of a run
OTHERS = (".yaml", ".csv", ".json", ".log", ".html", ".png", ".gif", ".npz", ".md")


def find(spec: str | Path, outputs: str | Path = "outputs", option: str = "ckpt") -> Path:
    """The checkpoint file that `ckpt=spec` names, or another option than ckpt.

    spec: a checkpoint file (returned unread), a run folder (its newest good checkpoint), "last"
    (the newest run under outputs), or zoo:NAME (see `fmdiff.runs.zoo`). Raises FmdiffError naming
    spec and checkpoints nearby.
    """
    if str(spec).startswith(zoo.PREFIX):
        return zoo.find(str(spec), option)
    outputs = Path(outputs)
    if str(spec) == "last":
        files = _newest_first(_in_outputs(outputs))
        if not files:
            raise FmdiffError(f"{option}=last: no run under {outputs} holds a checkpoint")
        path = files[0].parent
    else:
        path = Path(spec).expanduser()
    if path.is_file() and path.suffix in OTHERS:
        raise FmdiffError(f"{option}={spec} is no checkpoint; {_nearby(path.parent, outputs)}")
    if path.is_file():
        return path
    good = newest_good(path) if path.exists() else None
    if good is None:
        choose_a_job(f"{option}={spec}", path)
        what = "is a folder without checkpoints" if path.exists() else "does not exist"
        raise FmdiffError(f"{option}={spec} {what}; {_nearby(path, outputs)}")
    log.info("%s=%s: using %s (step %s)", option, spec, good[0], good[1].get("step"))
    return good[0]


def choose_a_job(option: str, folder: Path) -> None:
    """Raises FmdiffError that lists the jobs with checkpoints if the folder is that of a sweep."""
    jobs = [path for path in folder.glob("[0-9]*") if path.name.isdecimal() and _checkpoints(path)]
    if jobs:
        names = ", ".join(str(path) for path in sorted(jobs, key=lambda path: int(path.name)))
        raise FmdiffError(f"{option} is the folder of a sweep; choose a job: {names}")


def newest_good(folder: str | Path) -> tuple[Path, dict[str, Any]] | None:
    """The undamaged checkpoint of the highest step in a run folder, and its content.

    None if the folder holds no checkpoint. Logs a warning for each damaged one it passes over.
    Raises FmdiffError if all are damaged, or if the newest can only be read by another fmdiff.
    """
    damages: list[str] = []
    for path in sorted(_checkpoints(Path(folder)), key=_step, reverse=True):
        try:
            content = checkpoint.read(path)
        except Damaged as error:
            damages.append(str(error))
            continue
        for damage in damages:
            log.warning("%s; falling back to %s", damage, path)
        return path, content
    if damages:
        raise FmdiffError(f"no checkpoint in {folder} can be read: {damages[0]}")
    return None


def newest_settings(folder: Path) -> dict[str, Any] | None:
    """The settings of the training that wrote the newest checkpoint of a run folder.

    The checkpoint is not verified. None if there is no checkpoint with settings. Raises
    FmdiffError if they lack a group of every training.
    """
    for path in sorted(_checkpoints(folder), key=_step, reverse=True):
        try:
            config = torch.load(path, mmap=True, weights_only=True)["training"]["config"]
            if checkpoint.shared(config):
                continue
        except Exception:  # `newest_good` says what is wrong with it
            continue
        if lack := [
            group for group in GROUPS if not isinstance(config, dict) or group not in config
        ]:
            raise FmdiffError(f"{path}: its training.config lacks {', '.join(lack)}")
        return config
    return None


def _checkpoints(folder: Path) -> list[Path]:
    """The numbered checkpoints of a run folder, and last.ckpt unless it links to one."""
    paths = [p for p in folder.glob("*.ckpt") if NUMBERED.fullmatch(p.name) or p.name == LAST]
    for path in paths:
        if not inside(path, folder):
            log.warning("%s is passed over: it is a link that leads out of the folder", path)
    own = [path for path in paths if path.is_file() and inside(path, folder)]
    numbered = [path for path in own if path.name != LAST]
    return numbered + [
        path
        for path in own
        if path.name == LAST and not any(path.samefile(other) for other in numbered)
    ]


def _step(path: Path) -> float:
    """The step of a checkpoint, without reading its tensors; inf if it cannot be told."""
    match = NUMBERED.fullmatch(path.name)
    if match:
        return int(match[1])
    try:
        return float(torch.load(path, mmap=True, weights_only=True)["step"])
    except Exception:
        return float("inf")  # sorted first, so that its damage is reported


def _in_outputs(outputs: Path) -> list[Path]:
    """The checkpoints of runs (NAME/DATE) and of the jobs of sweeps (NAME/DATE/N)."""
    paths = [*outputs.glob("*/*/*.ckpt"), *outputs.glob("*/*/*/*.ckpt")]
    return [p for p in paths if p.name == LAST or NUMBERED.fullmatch(p.name)]


def _newest_first(paths: Iterable[Path]) -> list[Path]:
    return sorted(paths, key=lambda p: p.stat().st_mtime, reverse=True)


def _nearby(path: Path, outputs: Path) -> str:
    """Up to five checkpoints near a path that is not one, the nearest folder first."""
    nearby: dict[Path, None] = {}
    for folder in (path, path.parent, path.parent.parent):
        nearby |= dict.fromkeys(_newest_first([*folder.glob("*.ckpt"), *folder.glob("*/*.ckpt")]))
    nearby |= dict.fromkeys(_newest_first(_in_outputs(outputs)))
    if not nearby:
        return f"no checkpoint was found nearby or under {outputs}"
    return "checkpoints nearby: " + ", ".join(map(str, list(nearby)[:5]))
