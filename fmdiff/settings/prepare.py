"""Checks a whole command line before any work is done."""

import os
import sys
import tempfile
from argparse import Namespace
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from hydra.types import RunMode
from omegaconf import DictConfig

from fmdiff.errors import FmdiffError
from fmdiff.runs.folder import Run, claim_sweep, new_folder
from fmdiff.runs.overrides import of_run
from fmdiff.runs.resume import OUTPUTS
from fmdiff.settings import sentences
from fmdiff.settings.combinations import kind_of
from fmdiff.settings.compose import Composer, config_folders, groups
from fmdiff.settings.sentences import choices_of, key_of

PLANNED = "fmdiff-plan-"  # prefix of the folder of a sweep that leaves nothing
CHECKED_JOBS = 200  # jobs of a sweep that are checked before the first starts


class Prepared(NamedTuple):
    """A command line ready to run.

    overrides: those typed, and those that follow from them. configs: those of a job, or of the
    first CHECKED_JOBS of a sweep; empty if a config is only shown. sweep: the folder of a sweep,
    locked.
    """

    overrides: list[str]
    configs: list[DictConfig]
    sweep: Run | None


def counterpart(
    composer: Composer, overrides: list[str], cfg: DictConfig | None = None
) -> str | None:
    """The override that fits data to the chosen model, or the model to the chosen data.

    cfg: the config of the groups alone, if it has been composed. None if data and model fit, if
    both or neither were chosen, or if a class does not tell how many axes a sample has. Points of
    a file are a table, and get residual blocks unless an experiment has chosen the model.
    """
    keys = {key_of(override) for override in overrides}
    if ("data" in keys) == ("model" in keys):
        return None
    cfg = composer.compose(groups(overrides)) if cfg is None else cfg
    choices = choices_of(cfg.hydra)
    if not (choices.get("data") and choices.get("model")):
        return None
    axes, taken = _axes(composer, overrides, cfg), _taken(cfg)
    if axes is None or taken is None:
        return None
    if "data" in keys:
        if axes == taken and ("experiment" in keys or not _table(cfg, axes)):
            return None
        return f"model={_usual(cfg, axes)}"
    if axes == taken or taken == 1:
        return None
    from fmdiff.data.files import available

    images = "data=mnist" if available("mnist") else "data=digits"
    return images if taken == 3 else "data=ar1"


def _usual(cfg: DictConfig, axes: int) -> str:
    """The network for data of so many axes; of more than images have, that of images."""
    from fmdiff.models.network import KINDS

    return "residual_mlp" if _table(cfg, axes) else KINDS[min(axes, max(KINDS))][1]


def _table(cfg: DictConfig, axes: int) -> bool:
    """Whether the data are points read from a file, as their class alone does not tell."""
    from fmdiff.data.base import Data

    data = kind_of(cfg, "data")
    return axes == 1 and issubclass(data, Data) and not isinstance(data.axes, int)


def _axes(composer: Composer, overrides: list[str], cfg: DictConfig) -> int | None:
    """How many axes a sample of the data has; None if their class and settings do not tell."""
    from fmdiff.data.base import Data

    data = kind_of(cfg, "data")
    if not issubclass(data, Data):
        return None
    if not isinstance(data.axes, int):  # the settings tell, such as the name of a file
        own = [override for override in overrides if key_of(override).startswith("data.")]
        cfg = composer.compose(groups(overrides) + own)
    return data.axes_of(cfg.data)


def _taken(cfg: DictConfig) -> int | None:
    """How many axes a sample of the model has; None if its class does not tell."""
    from fmdiff.models.network import Network

    model = kind_of(cfg, "model")
    return model.axes if issubclass(model, Network) else None


def saved_overrides(overrides: list[str], folders: Sequence[Path] = ()) -> list[str]:
    """The overrides of the run that `resume` names, except those given anew.

    folders: those of the user's YAML files. Raises FmdiffError for an override that is not taken
    from a file.
    """
    keys = {key_of(o): o.partition("=")[2].strip("'\"") for o in overrides}
    run = keys.get("resume", "")
    folder = keys.get("out", "") if run in ("true", "True", "last") else run
    if not folder or not os.path.isdir(os.path.expanduser(folder)):  # it accepts any text
        return []
    return of_run(Path(folder).expanduser(), set(keys), folders)


def prepare(command: str, args: Namespace) -> Prepared:
    """Complete and check the overrides, and find the folder of a sweep.

    Raises FmdiffError before anything is written.
    """
    composer = Composer(command, args)
    args.overrides = sentences.added(command, args.overrides)
    args.overrides = sentences.texts(composer.parser, args.overrides)
    folders = config_folders(args)[1:]
    overrides = [*saved_overrides(args.overrides, folders), *args.overrides]
    cfg = None if args.multirun else composer.compose(groups(overrides))
    sweep = cfg is None or cfg.hydra.mode == RunMode.MULTIRUN
    jobs = composer.jobs(overrides)[:CHECKED_JOBS] if sweep else [overrides]
    partners = {counterpart(composer, job, None if sweep else cfg) for job in jobs}
    if len(partners) > 1:
        raise FmdiffError(
            "this sweep mixes points and images, so no default fits all its jobs: "
            "give both data= and model="
        )
    partner = [override for override in partners if override]
    overrides = overrides + partner
    jobs = [job + partner for job in jobs]
    cfgs = [composer.compose(job) for job in jobs]
    if partner:
        print(f"{key_of(partner[0])} is not given: taking {partner[0]}", file=sys.stderr)
    if args.cfg:
        return Prepared(overrides, [], None)
    configs = [composer.check(cfg, job) for cfg, job in zip(cfgs, jobs, strict=True)]
    if not sweep:
        return Prepared(overrides, configs, None)
    if int(os.environ.get("WORLD_SIZE", 1)) > 1:
        raise FmdiffError("a sweep cannot run under torchrun: use trainer.devices=N")
    if all(cfg.get("plan") for cfg in configs):
        folder = Path(tempfile.mkdtemp(prefix=PLANNED))
    else:
        folder = composer.sweep_folder(overrides) or _sweep_folder(configs)
    literal = str(folder).replace("'", "\\'")
    overrides = [*overrides, f"hydra.sweep.dir='{literal}'"]
    return Prepared(overrides, configs, claim_sweep(folder))


def _sweep_folder(configs: list[DictConfig]) -> Path:
    """The `out` that all jobs share, or a new outputs/NAME/DATE_TIME."""
    outs = {cfg.get("out") for cfg in configs}
    names = {cfg.get("name") for cfg in configs}
    if len(outs) == 1 and None not in outs:
        return Path(outs.pop()).expanduser()
    shared = names.pop() if len(names) == 1 else None
    return new_folder(OUTPUTS / (shared or "sweep"))
