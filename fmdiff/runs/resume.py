"""Which run a command line goes on with, and whether it is still the same run."""

import logging
from pathlib import Path

from omegaconf import DictConfig, OmegaConf

from fmdiff.errors import FmdiffError
from fmdiff.runs.config import ABSENT, differences, listed, load_config

OUTPUTS = Path("outputs")
# keys that do not make a run another run
INCIDENTAL = frozenset(
    {"resume", "out", "overwrite", "device", "devices", "threads", "plan", "profile"}
    | {"trainer.max_steps", "trainer.max_time", "trainer.progress", "trainer.devices"}
)
# keys a resumed run may change; the change is logged
CHANGEABLE = INCIDENTAL | {
    "name",
    "optim.lr",
    "trust",
    *(f"trainer.{key}_every" for key in ("log", "validate", "picture", "metrics", "checkpoint")),
    "trainer.logger",
    "trainer.keep",
    *(f"trainer.{key}" for key in ("compile", "channels_last", "recompute", "accumulate")),
    "trainer.snapshot_every",
    *(f"trainer.{key}" for key in ("metrics", "metrics_n", "best", "spike")),
}
# keys for which null means a rule, and the run has written down what the rule gave
FILLED_IN = ("threads", "trainer.inner_steps")

log = logging.getLogger("fmdiff")


def resume_folder(cfg: DictConfig) -> Path | None:
    """The run that `resume` means, None to start a new one; said so where that may surprise.

    true: the run in `out`; last: that one, else the newest of the same settings under
    outputs/NAME; else the named folder. Raises FmdiffError where there is nothing to name.
    """
    if cfg.resume is None:
        return None
    out = None if cfg.out is None else Path(cfg.out).expanduser()
    if cfg.resume is True or cfg.resume == "last":
        if out is None and cfg.resume is True:
            raise FmdiffError("resume=true needs out=RUN; resume=last takes the newest like this")
        found = out if out is not None and load_config(out) else None
        if out is None:
            found = _newest_like(cfg)
        if found is None:
            log.info("nothing to resume in %s: starting a new run", out or OUTPUTS / cfg.name)
        return found
    folder = Path(cfg.resume).expanduser()
    if out is not None and out.resolve() != folder.resolve():
        raise FmdiffError(f"resume={folder} and out={out} differ: leave out= away")
    if load_config(folder) is None:
        raise FmdiffError(f"resume={folder}: not a run folder, it has no config.yaml")
    return folder


def _newest_like(cfg: DictConfig) -> Path | None:
    for folder in sorted((OUTPUTS / cfg.name).glob("*/"), reverse=True):
        saved = load_config(folder)
        if saved is not None:
            _fill_in(saved, now := cfg.copy())
            if not differences(saved, now).keys() - INCIDENTAL:
                return folder
    return None


def check_resume(folder: Path, cfg: DictConfig) -> None:
    """Log what a resumed run changes; FmdiffError for a change that makes it another run.

    Takes over into cfg what a null stood for when the run began.
    """
    saved = load_config(folder)
    assert saved is not None
    _fill_in(saved, cfg)
    changes = differences(saved, cfg)
    # a key the run does not have came with a later version: what it was is what is the default
    wrong = {
        key: change
        for key, change in changes.items()
        if key not in CHANGEABLE and change[0] != ABSENT
    }
    if wrong and not cfg.overwrite:
        raise FmdiffError(f"{folder} is a run of other settings: {listed(wrong)}")
    told = ("resume", "overwrite", "out")
    shown = {key: change for key, change in changes.items() if key not in told}
    log.info("resuming %s%s", folder, f" with {listed(shown)}" if shown else "")


def _fill_in(saved: DictConfig, cfg: DictConfig) -> None:
    for key in FILLED_IN:
        if OmegaConf.select(cfg, key) is None and OmegaConf.select(saved, key) is not None:
            OmegaConf.update(cfg, key, OmegaConf.select(saved, key))
