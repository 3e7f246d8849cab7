"""Composes configs from a command line, or explains in one sentence what Hydra refuses.

Hydra composes twice: here, and again in `hydra.main`, which runs the job. Both times it gets the
same words and the same folders.
"""

import contextlib
import copy
import os
import re
import shlex
from argparse import Namespace
from collections.abc import Iterator
from pathlib import Path
from typing import NoReturn

import hydra
from hydra import version
from hydra._internal.config_loader_impl import ConfigLoaderImpl
from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra._internal.utils import create_config_search_path, get_args_parser
from hydra.core.config_search_path import SearchPathQuery
from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.singleton import Singleton
from hydra.core.utils import JobRuntime, setup_globals
from hydra.errors import HydraException
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf, flag_override
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError

from fmdiff.build import config_folder
from fmdiff.errors import FmdiffError, word
from fmdiff.settings import schema, sentences
from fmdiff.settings.sentences import choices_of, key_of

# Hydra 1.4 deprecates what 1.3 needs, here and below
VERSION_BASE = {"version_base": "1.3"} if hydra.__version__ < "1.4" else {}


def config_folders(args: Namespace) -> list[Path]:
    """fmdiff's YAML files and the user's, in Hydra's order."""
    return [config_folder(), *([Path(args.config_dir)] if args.config_dir else [])]


def import_folders(args: Namespace) -> list[Path]:
    """Folders of the user's own classes: the working folder and that of --config-dir."""
    return [Path(), *config_folders(args)[1:]]


def going_on(folder: Path) -> str:
    """The command that goes on with a run, with the --config-dir of this one."""
    words = ["fmdiff train", word("resume", folder)]
    if HydraConfig.initialized():
        for source in HydraConfig.get().runtime.config_sources:
            if source.provider == "command-line":
                words.append(shlex.quote(f"--config-dir={os.path.relpath(source.path)}"))
    return " ".join(words)


@contextlib.contextmanager
def restored() -> Iterator[None]:
    """Restore Hydra's global state after the block."""
    state = Singleton.get_state()
    try:
        yield
    finally:
        Singleton.set_state(state)


def parse(words: list[str]) -> tuple[Namespace, list[str]]:
    """Parse Hydra's flags. Returns them, and the words of the command line that make them up."""

    def refuse(message: str) -> NoReturn:
        key = re.search(r"arguments: -+([A-Za-z][\w.]*)", message)
        more = f"; a setting is written {key[1]}=VALUE, without dashes" if key else ""
        raise FmdiffError(f"{message}{more}; --help shows the flags")

    parser = get_args_parser()
    parser.error = refuse  # type: ignore[method-assign]
    args = parser.parse_intermixed_args(words)
    if args.experimental_rerun is not None:
        raise FmdiffError("--experimental-rerun is not supported: resume=RUN goes on with a run")
    if args.resolve and not args.cfg:
        raise FmdiffError("--resolve goes with --cfg job")
    if sum(map(bool, (args.run, args.multirun, args.cfg, args.info))) > 1:
        raise FmdiffError("give only one of --run, --multirun, --cfg and --info")
    return args, [word for word in words if word not in args.overrides]


def groups(overrides: list[str]) -> list[str]:
    """The overrides without keys inside a group, which may not exist before its final choice."""
    return [o for o in overrides if "." not in key_of(o) or key_of(o).startswith("hydra.")]


def register_resolvers() -> None:
    """Define `${choices:}` for YAML files: {group: chosen name} of this composition."""
    name = "register_new_resolver" if VERSION_BASE else "register_resolver"
    register = getattr(OmegaConf, name)
    register("choices", lambda: OmegaConf.create(choices_of(HydraConfig.get())), replace=True)


class Composer:
    """Composes the configs of one command. Raises FmdiffError for whatever Hydra refuses."""

    def __init__(self, command: str, args: Namespace) -> None:
        if VERSION_BASE:
            version.setbase(VERSION_BASE["version_base"])
        setup_globals()
        register_resolvers()
        JobRuntime().set("name", "fmdiff")
        path = create_config_search_path(args.config_path or str(config_folder()))
        if args.config_dir is not None:
            folder = Path(args.config_dir).absolute()
            if not folder.is_dir():
                raise FmdiffError(f"--config-dir {args.config_dir} is not a folder")
            path.prepend("command-line", f"file://{folder}", SearchPathQuery(provider="schema"))
        self.command = command
        self.config_name = args.config_name or command
        self.loader = ConfigLoaderImpl(path)
        self.parser = OverridesParser.create(config_loader=self.loader)

    def compose(self, overrides: list[str], mode: RunMode = RunMode.RUN) -> DictConfig:
        """The config that Hydra composes for these overrides, with its `hydra` node."""
        for override in overrides:
            sentences.check_grammar(self.parser, self.loader, self.command, override, mode)
        try:
            return self.loader.load_configuration(self.config_name, overrides, mode)
        except (HydraException, ValueError, OSError, YAMLError) as error:
            sentence = sentences.refusal(self.compose, self.loader, error, overrides)
            raise FmdiffError(sentence) from error

    def resolve(self, cfg: DictConfig) -> DictConfig:
        """The config that the job gets: without the `hydra` node, and with `${...}` filled in."""
        HydraConfig.instance().set_config(cfg)
        job = copy.deepcopy(cfg)
        try:
            with flag_override(job, ["struct", "readonly"], [False, False]):
                del job["hydra"]
            OmegaConf.resolve(job)
        except OmegaConfBaseException as error:
            sentence = sentences.one_line(error)
            raise FmdiffError(f"a ${{...}} cannot be filled in: {sentence}") from error
        finally:
            HydraConfig.instance().cfg = None
        return job

    def jobs(self, overrides: list[str]) -> list[list[str]]:
        """The overrides of each job of a sweep."""
        for override in overrides:
            sentences.check_grammar(
                self.parser, self.loader, self.command, override, RunMode.MULTIRUN
            )
        settings = self.compose(groups(overrides), RunMode.MULTIRUN).hydra
        own = [override for override in overrides if not key_of(override).startswith("hydra")]
        words = self.parser.parse_overrides(own)
        if not settings.sweeper._target_.endswith(".BasicSweeper"):  # its values are not known yet
            fixed = [o.input_line for o in words if not o.is_sweep_override()]
            return [[*settings.overrides.hydra, *fixed]]
        default = [f"{key}={value}" for key, value in (settings.sweeper.params or {}).items()]
        words = self.parser.parse_overrides(default) + words
        jobs = BasicSweeper.split_arguments(words, None)[0]
        return [[*settings.overrides.hydra, *job] for job in jobs]

    def sweep_folder(self, overrides: list[str]) -> Path | None:
        """The folder of a sweep if the command line gives it by hydra.sweep.dir."""
        if "hydra.sweep.dir" not in map(key_of, overrides):
            return None
        cfg = self.compose(overrides, RunMode.MULTIRUN)
        HydraConfig.instance().set_config(cfg)
        try:
            return Path(cfg.hydra.sweep.dir)
        finally:
            HydraConfig.instance().cfg = None

    def check(self, cfg: DictConfig, overrides: list[str]) -> DictConfig:
        """Check the types and ranges of a composed config. Returns its resolved job."""
        job = self.resolve(cfg)
        self._check_deletions(job, overrides)
        schema.check(self.command, job)
        keys = map(key_of, overrides)
        inner = {key for key in keys if "." in key and not key.startswith("hydra.")}
        if inner:
            groups = [o for o in overrides if key_of(o) in cfg.hydra.runtime.choices]
            schema.check_types(job, self.resolve(self.compose(groups)), inner)
        return job

    def _check_deletions(self, job: DictConfig, overrides: list[str]) -> None:
        """Refuse deletions, except of an object's keyword, for which its class has a default."""
        for key in (key_of(o) for o in overrides if o.startswith("~")):
            parent = key.rpartition(".")[0]
            holder = OmegaConf.select(job, parent) if parent else None
            keyword = isinstance(holder, DictConfig) and "_target_" in holder
            if not (keyword or key.partition(".")[0].partition("/")[0] == "hydra"):
                raise FmdiffError(f"~{key}: {self.command} needs it; {key}=null may turn it off")
