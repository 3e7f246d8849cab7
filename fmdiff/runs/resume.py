"""Finds the run to resume, checks that its settings fit, and checks whether out= is free."""

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from fmdiff.errors import FmdiffError
from fmdiff.runs.config import (
    ABSENT,
    changes_text,
    check_plain,
    differences,
    leaves,
    load_config,
    settings_of,
)

OUTPUTS = Path("outputs")
# keys that do not change what a run computes
INCIDENTAL = frozenset(
    {"resume", "out", "overwrite", "device", "devices", "threads", "plan", "profile"}
    | {"trainer.max_steps", "trainer.max_time", "trainer.progress", "trainer.devices"}
)
# keys a resumed run may change; the change is logged
CHANGEABLE = INCIDENTAL | {
    "name",
    "optim.lr",
    "objective.teacher",  # where it lies; its weights may not change
    "trust",
    "coupling.ckpt",  # the teacher's weights are compared
    "coupling.trust",
    *(f"trainer.{key}_every" for key in ("log", "validate", "picture", "metrics", "checkpoint")),
    "trainer.logger",
    "trainer.keep",
    *(f"trainer.{key}" for key in ("compile", "channels_last", "recompute", "accumulate")),
    "trainer.snapshot_every",
    *(f"trainer.{key}" for key in ("metrics", "metrics_n", "best", "spike")),
}
# keys for which null means a rule; config.yaml holds the value that the rule gave
FILLED_IN = ("threads", "trainer.inner_steps", "data.stream")
# keys of later versions, with what was done before they could be chosen
FORMER = {"data.layout": 1, "data.stream": False, "model.time_frequency": None}
MOST = 10_000  # threads or inner steps that are taken from a file

# files that every command writes by itself; alone they are not results
BEGINNING = ("config.yaml", "overrides", "environment.json", "report.html")
# fmdiff's files in a run folder, which overwrite=true replaces
RESULTS = (
    "*.ckpt",
    "*.csv",
    "*.json",
    "*.npz",
    "*.npy",
    "*.pt",
    "*.png",
    "*.gif",
    "*.log",
    "*.apng",
    "*.webp",
    "*.md",
    "*.html",
    "events.out.tfevents.*",
    "overrides",
    "config.yaml",
)

log = logging.getLogger("fmdiff")


def resume_folder(cfg: DictConfig) -> Path | None:
    """The run that `resume` names; None, with a log message, to start a new one.

    true: the run in `out`. last: the same or, without `out`, the newest run of the same settings
    under outputs/NAME. Otherwise the folder itself. Raises FmdiffError for a folder that is not a
    run, for true without `out`, and for an `out` that is another folder.
    """
    if cfg.resume is None:
        return None
    out = None if cfg.out is None else Path(cfg.out).expanduser()
    if cfg.resume is True or cfg.resume == "last":
        if out is None and cfg.resume is True:
            raise FmdiffError("resume=true needs out=RUN; resume=last takes the newest like this")
        if out is None:
            run = _newest_like(cfg)
        else:
            run = out if holds_results(out) and load_config(out) else None
        if run is None:
            log.info("nothing to resume in %s: starting a new run", out or OUTPUTS / cfg.name)
        return run
    folder = Path(cfg.resume).expanduser()
    if out is not None and out.resolve() != folder.resolve():
        raise FmdiffError(f"resume={folder} and out={out} differ: leave out= away")
    if load_config(folder) is None:
        from fmdiff.runs.find import choose_a_job  # imports torch, which --help need not wait for

        choose_a_job(f"resume={folder}", folder)
        raise FmdiffError(f"resume={folder}: not a run folder, it has no config.yaml")
    return folder


def _newest_like(cfg: DictConfig) -> Path | None:
    for folder in sorted((OUTPUTS / cfg.name).glob("*/"), reverse=True):
        try:
            saved = load_config(folder)
        except FmdiffError as error:
            log.warning("%s; passed over", error)
            continue
        if saved is not None:
            _fill_in(saved, now := cfg.copy(), folder)
            if not differences(saved, now).keys() - INCIDENTAL:
                return folder
    return None


def check_resume(folder: Path, cfg: DictConfig) -> None:
    """Log the settings that a resumed run changes, and fill in the values that replaced null.

    The settings of the run are those in its newest checkpoint, or its config.yaml if it has none.
    Raises FmdiffError for a change that would make it another run.
    """
    from fmdiff.runs.find import newest_settings  # imports torch, which --help need not wait for

    saved = newest_settings(folder) or load_config(folder)
    assert saved is not None
    check_plain(settings_of(saved), folder)
    _fill_in(saved, cfg, folder)
    changes = differences(saved, cfg)
    for key, value in FORMER.items():
        if changes.get(key, ("",))[0] == ABSENT:
            OmegaConf.update(cfg, key, value)
    # a key that the run lacks came with a later version; the run used its default
    wrong = {
        key: change
        for key, change in changes.items()
        if key not in CHANGEABLE and change[0] != ABSENT
    }
    if wrong and not cfg.overwrite:
        raise FmdiffError(f"{folder} is a run of other settings: {changes_text(wrong)}")
    own = ("resume", "overwrite", "out")  # keys of the resuming command line alone
    others = {key: change for key, change in changes.items() if key not in own}
    log.info("resuming %s%s", folder, f" with {changes_text(others)}" if others else "")


def _fill_in(saved: Mapping[Any, Any] | DictConfig, cfg: DictConfig, folder: Path) -> None:
    values = dict(leaves(settings_of(saved)))
    for key in FILLED_IN:
        value = values.get(key)
        if OmegaConf.select(cfg, key) is not None or value is None:
            continue
        if key == "data.stream":
            right, says = isinstance(value, bool), "true or false"
        else:
            right = type(value) is int and 1 <= value <= MOST
            says = f"an integer from 1 to {MOST}"
        if not right:
            raise FmdiffError(f"{folder}: {key}={value!r:.60} must be {says}")
        OmegaConf.update(cfg, key, value)


def check_free(folder: Path, cfg: DictConfig) -> None:
    """Raises FmdiffError if the folder holds results that this command must not touch.

    A folder in which a command failed before it had results is free. A config.yaml that no fmdiff
    command wrote belongs to the user.
    """
    if not holds_results(folder):
        foreign = (folder / "config.yaml").exists() and not (folder / "environment.json").exists()
        if foreign and not cfg.overwrite:
            raise FmdiffError(
                f"out={folder} holds a config.yaml that fmdiff did not write: choose another "
                "folder, or say overwrite=true"
            )
        return
    saved = load_config(folder)
    if saved is None and not any(folder.glob("*.ckpt")):
        return
    if saved is not None and ("trainer" in saved) != ("trainer" in cfg):
        raise FmdiffError(f"out={folder} holds results of another command: choose another folder")
    if cfg.overwrite:
        return
    if "trainer" in cfg:
        raise FmdiffError(
            f"out={folder} holds a run already: resume=true goes on with it, overwrite=true "
            "replaces it"
        )
    changes = {
        key: change
        for key, change in differences(saved or OmegaConf.create(), cfg).items()
        if key not in INCIDENTAL
    }
    if changes:
        raise FmdiffError(
            f"out={folder} holds results of other settings ({changes_text(changes)}): choose "
            "another folder or say overwrite=true"
        )


def holds_results(folder: Path) -> bool:
    """Whether a folder holds more than the beginning of a command.

    Checkpoints, samples, averages, pictures, tables and results count. Settings, logs,
    TensorBoard's files and a metrics.csv without rows do not.
    """
    for pattern in RESULTS:
        for path in folder.glob(pattern):
            beginning = path.name in BEGINNING or path.suffix == ".log"
            if not (beginning or ".tfevents." in path.name or _empty(path)):
                return True
    return any(
        path.is_file() for part in ("samples", "averages") for path in (folder / part).rglob("*")
    )


def _empty(path: Path) -> bool:
    return path.name == "metrics.csv" and path.read_bytes().count(b"\n") <= 1
