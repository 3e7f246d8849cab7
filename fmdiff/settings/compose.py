"""From the words of a command line to composed and checked configs, before any work.

Hydra composes twice: here, to turn whatever it would refuse into one sentence, and then in
`hydra.main`, which runs the job. Both see the same words and the same folders.
"""

import copy
import os
import re
import sys
import tempfile
from argparse import Namespace
from pathlib import Path
from typing import Any, NoReturn

import hydra
from hydra import version
from hydra._internal.config_loader_impl import ConfigLoaderImpl
from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra._internal.utils import create_config_search_path, get_args_parser
from hydra.core.config_search_path import SearchPathQuery
from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.utils import JobRuntime, setup_globals
from hydra.errors import HydraException, MissingConfigException
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf, flag_override
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError

from fmdiff.build import config_folder
from fmdiff.errors import FmdiffError, nearest
from fmdiff.runs.folder import claim_sweep, new_folder
from fmdiff.runs.resume import OUTPUTS
from fmdiff.settings import schema

# Hydra 1.4 deprecates what 1.3 needs, here and below
VERSION_BASE = {"version_base": "1.3"} if hydra.__version__ < "1.4" else {}
POINT_DATA, POINT_MODELS = "fmdiff.data.toy.", "fmdiff.models.mlp."
PLANNED = "fmdiff-plan-"  # before the name of the folder of a sweep that leaves nothing
CHECKED_JOBS = 200  # of a sweep, before its first job starts


def config_folders(args: Namespace) -> list[Path]:
    """fmdiff's YAML files and the user's, in Hydra's order."""
    return [config_folder(), *([Path(args.config_dir)] if args.config_dir else [])]


def parse(words: list[str]) -> tuple[Namespace, list[str]]:
    """Hydra's own flags of a command line and, as they were given, the words they take."""

    def refuse(message: str) -> NoReturn:
        raise FmdiffError(f"{message}; --help shows the flags")

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


def key_of(override: str) -> str:
    """The key or group an override sets: `model` of `+model=unet`."""
    return override.partition("=")[0].lstrip("+~").partition("@")[0]


def groups(overrides: list[str]) -> list[str]:
    """Without the keys inside a group, which the group may lack until its choice is complete."""
    return [o for o in overrides if "." not in key_of(o) or key_of(o).startswith("hydra.")]


def register_resolvers() -> None:
    """`${choices:}` in a YAML: {group: chosen name} of this composition."""
    name = "register_new_resolver" if VERSION_BASE else "register_resolver"
    register = getattr(OmegaConf, name)
    register("choices", lambda: OmegaConf.create(_choices(HydraConfig.get())), replace=True)


def _choices(hydra_cfg: Any) -> dict[str, str | None]:
    choices = hydra_cfg.runtime.choices.items()
    return {group: name for group, name in choices if group.split("/")[0] != "hydra"}


class Composer:
    """Composes the configs of one command; raises FmdiffError for all that Hydra refuses."""

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
        """The config, its `hydra` node included, as Hydra composes it for these overrides."""
        for override in overrides:
            self._check_grammar(override, mode)
        try:
            return self.loader.load_configuration(self.config_name, overrides, mode)
        except (HydraException, ValueError, OSError, YAMLError) as error:
            raise FmdiffError(self._sentence(error, overrides)) from error

    def resolved(self, cfg: DictConfig) -> DictConfig:
        """What the job will get: without the `hydra` node, every `${...}` filled in."""
        HydraConfig.instance().set_config(cfg)
        job = copy.deepcopy(cfg)
        try:
            with flag_override(job, ["struct", "readonly"], [False, False]):
                del job["hydra"]
            OmegaConf.resolve(job)
        except OmegaConfBaseException as error:
            raise FmdiffError(f"a ${{...}} cannot be filled in: {_one_line(error)}") from error
        finally:
            HydraConfig.instance().cfg = None
        return job

    def jobs(self, overrides: list[str]) -> list[list[str]]:
        """The overrides of each job of a sweep."""
        for override in overrides:
            self._check_grammar(override, RunMode.MULTIRUN)
        settings = self.compose(groups(overrides), RunMode.MULTIRUN).hydra
        own = [override for override in overrides if not key_of(override).startswith("hydra")]
        parsed = self.parser.parse_overrides(own)
        if not settings.sweeper._target_.endswith(".BasicSweeper"):  # its values are not known yet
            fixed = [o.input_line for o in parsed if not o.is_sweep_override()]
            return [[*settings.overrides.hydra, *fixed]]
        default = [f"{key}={value}" for key, value in (settings.sweeper.params or {}).items()]
        parsed = self.parser.parse_overrides(default) + parsed
        jobs = BasicSweeper.split_arguments(parsed, None)[0]
        return [[*settings.overrides.hydra, *job] for job in jobs]

    def sweep_folder(self, overrides: list[str]) -> Path | None:
        """The folder the command line itself gives to a sweep, by hydra.sweep.dir."""
        if "hydra.sweep.dir" not in map(key_of, overrides):
            return None
        cfg = self.compose(overrides, RunMode.MULTIRUN)
        HydraConfig.instance().set_config(cfg)
        try:
            return Path(cfg.hydra.sweep.dir)
        finally:
            HydraConfig.instance().cfg = None

    def check(self, cfg: DictConfig, overrides: list[str]) -> DictConfig:
        """The resolved job of a composed config whose types and ranges are right."""
        job = self.resolved(cfg)
        self._check_deleted(job, overrides)
        schema.check(self.command, job)
        keys = map(key_of, overrides)
        inner = {key for key in keys if "." in key and not key.startswith("hydra.")}
        if inner:
            groups = [o for o in overrides if key_of(o) in cfg.hydra.runtime.choices]
            schema.check_types(job, self.resolved(self.compose(groups)), inner)
        return job

    def _check_deleted(self, job: DictConfig, overrides: list[str]) -> None:
        """Only the keyword of an object can be left out, for its class to say what it is then."""
        for key in (key_of(o) for o in overrides if o.startswith("~")):
            parent = key.rpartition(".")[0]
            holder = OmegaConf.select(job, parent) if parent else None
            keyword = isinstance(holder, DictConfig) and "_target_" in holder
            if not (keyword or key.partition(".")[0].partition("/")[0] == "hydra"):
                raise FmdiffError(f"~{key}: {self.command} needs it; {key}=null may turn it off")

    def _check_grammar(self, override: str, mode: RunMode) -> None:
        key, equals, value = override.partition("=")
        if not key or not (equals or key.startswith("~")):
            raise FmdiffError(f"{override!r} is not of the form key=value or group=choice")
        if key_of(override).partition(".")[0] == "choices":
            raise FmdiffError(f"{override}: choices says what was chosen; write GROUP=NAME")
        try:
            parsed = self.parser.parse_override(override)
        except HydraException as error:
            raise FmdiffError(_unreadable(key, value)) from error
        if parsed.is_sweep_override():
            if mode == RunMode.RUN:
                raise FmdiffError(
                    f"{override} asks for several runs: add -m to sweep, or write {key}=[...] for "
                    f"a list and '{key}=\"{value}\"', with both quotes, for a text"
                )
            return
        group = key_of(override)
        choices = self.loader.get_group_options(group)
        if choices and not parsed.is_delete() and not isinstance(parsed.value(), str):
            raise FmdiffError(f"{override}: {group} takes one name; {nearest(value, choices)}")

    def _sentence(self, error: Exception, overrides: list[str]) -> str:
        if isinstance(error, MissingConfigException) and error.options:
            group, _, name = str(error.missing_cfg_file).rpartition("/")
            return f"unknown {group} {name!r}; {nearest(name, error.options)}"
        said = re.match(r"Could not (override|delete|append)[^']*'([^'=]+)", str(error))
        if said and said[1] == "append":
            return f"{said[2]} exists: write {said[2]}= without the +"
        if said and (sentence := self._unknown_key(said[2], overrides)):
            return sentence
        return _one_line(error)

    def _unknown_key(self, key: str, overrides: list[str]) -> str | None:
        group = key.partition("@")[0]
        cfg = self.compose([o for o in overrides if key_of(o) not in (key, group)])
        choices = _choices(cfg.hydra)
        with flag_override(cfg, ["struct", "readonly"], [False, False]):
            del cfg["hydra"]
        keys = [name for name in _dotted(cfg) if not name.startswith("choices")]
        if key in keys:
            return None
        parent, _, last = key.rpartition(".")
        level = [name for name in keys if name.rpartition(".")[0] == parent]
        where = f" of {parent}={choices[parent]}" if choices.get(parent) else ""
        elsewhere = [name for name in keys if name.rpartition(".")[2] == last]
        if elsewhere:
            return f"unknown key {key!r}{where}; did you mean {elsewhere[0]!r}?"
        if level:
            return f"unknown key {key!r}{where}; {nearest(key, level)}"
        if where:
            others = ", ".join(self.loader.get_group_options(parent))
            return f"unknown key {key!r}{where}, which has none; another {parent} may: {others}"
        return f"unknown key {key!r}; {nearest(key, [k for k in keys if '.' not in k])}"


def _dotted(node: Any, prefix: str = "") -> list[str]:
    """The dotted names of all that can be overridden in a config."""
    if not isinstance(node, DictConfig) or node._is_none() or node._is_interpolation():
        return []
    names = []
    for key in node:
        if key != "_target_":
            names += [f"{prefix}{key!s}", *_dotted(node._get_node(key), f"{prefix}{key!s}.")]
    return names


def _unreadable(key: str, value: str) -> str:
    for opening, closing in ("[]", "{}"):
        if value.count(opening) != value.count(closing):
            return f"{key}={value}: an {opening} and a {closing} must close each other"
    return (
        f"{key}={value} cannot be read: a text with = ( ) or , needs both kinds of quotes in a "
        f"shell, '{key}=\"{value.strip(chr(34) + chr(39))}\"'"
    )


def _one_line(error: Exception) -> str:
    """The message of a library's error and of its cause, without advice on that library."""
    lines = [*str(error).splitlines(), *str(error.__cause__ or "").splitlines()]
    kept = [line.strip() for line in lines if line.strip() and "object_type=" not in line]
    return "; ".join(kept) or type(error).__name__


def counterpart(
    composer: Composer, overrides: list[str], composed: DictConfig | None = None
) -> str | None:
    """The override that fits data to the chosen model, or the model to the chosen data.

    composed: what the groups alone make, where it is known. None where they go together, or
    where both or neither were chosen.
    """
    given = {key_of(override) for override in overrides}
    if ("data" in given) == ("model" in given):
        return None
    cfg = composer.compose(groups(overrides)) if composed is None else composed
    choices = _choices(cfg.hydra)
    if not (choices.get("data") and choices.get("model")):
        return None
    points = str(cfg.data.get("_target_")).startswith(POINT_DATA)
    flat = str(cfg.model.get("_target_")).startswith(POINT_MODELS)
    if points == flat or (flat and "model" in given):
        return None
    if "data" in given:
        return "model=mlp" if points else "model=unet"
    from fmdiff.data.files import found

    return "data=mnist" if found("mnist") else "data=digits"


def saved_overrides(overrides: list[str]) -> list[str]:
    """Those of the run that `resume` names, apart from what this command line says anew."""
    given = {key_of(o): o.partition("=")[2].strip("'\"") for o in overrides}
    run = given.get("resume", "")
    folder = given.get("out", "") if run in ("true", "True", "last") else run
    file = Path(folder).expanduser() / "overrides"
    if not folder or not os.path.isfile(file):  # unlike file.is_file() of any text
        return []
    saved = file.read_text().splitlines()
    kept = [o for o in saved if key_of(o) not in {*given, "out", "resume", "overwrite"}]
    for override in kept:
        if "_target_" in override or key_of(override).partition("/")[0].startswith("hydra"):
            raise FmdiffError(
                f"{file} names code ({override}), which is not taken from a file: say it again "
                "on the command line if you trust it"
            )
    return kept


def prepare(command: str, args: Namespace) -> tuple[list[str], Path | None]:
    """The overrides to run, complete and checked, and the folder of a sweep.

    Raises FmdiffError before anything is written.
    """
    composer = Composer(command, args)
    overrides = [*saved_overrides(args.overrides), *args.overrides]
    composed = None if args.multirun else composer.compose(groups(overrides))
    sweep = composed is None or composed.hydra.mode == RunMode.MULTIRUN
    jobs = composer.jobs(overrides)[:CHECKED_JOBS] if sweep else [overrides]
    missing = {counterpart(composer, job, None if sweep else composed) for job in jobs}
    if len(missing) > 1:
        raise FmdiffError(
            "this sweep mixes points and images, so no default fits all its jobs: "
            "give both data= and model="
        )
    added = [override for override in missing if override]
    overrides = overrides + added
    jobs = [job + added for job in jobs]
    cfgs = [composer.compose(job) for job in jobs]
    if added:
        print(f"{key_of(added[0])} is not given: taking {added[0]}", file=sys.stderr)
    if args.cfg:
        return overrides, None
    configs = [composer.check(cfg, job) for cfg, job in zip(cfgs, jobs, strict=True)]
    if not sweep:
        return overrides, None
    if int(os.environ.get("WORLD_SIZE", 1)) > 1:
        raise FmdiffError("a sweep cannot run under torchrun: use trainer.devices=N")
    if all(cfg.get("plan") for cfg in configs):
        folder = Path(tempfile.mkdtemp(prefix=PLANNED))
    else:
        folder = composer.sweep_folder(overrides) or _sweep_folder(configs)
    quoted = str(folder).replace("'", "\\'")
    return [*overrides, f"hydra.sweep.dir='{quoted}'"], claim_sweep(folder)


def _sweep_folder(configs: list[DictConfig]) -> Path:
    """The `out` that all jobs share, else a new outputs/NAME/DATE_TIME."""
    outs = {cfg.get("out") for cfg in configs}
    names = {cfg.get("name") for cfg in configs}
    if len(outs) == 1 and None not in outs:
        return Path(outs.pop()).expanduser()
    shared = names.pop() if len(names) == 1 else None
    return new_folder(OUTPUTS / (shared or "sweep"))
