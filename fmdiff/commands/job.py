"""Runs a command and finds its exit code: one job of `hydra.main`, or those of a sweep."""

import gc
import inspect
import json
import logging
import os
import shutil
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fmdiff import files, tables
from fmdiff.build import importable
from fmdiff.commands.table import COMMANDS, REPORTED
from fmdiff.errors import (
    OUTCOMES,
    PIPE,
    Complete,
    Diverged,
    FmdiffError,
    Interrupted,
    culprit,
    screens,
    shortage,
)
from fmdiff.machine import processes, progress, signals, startup
from fmdiff.settings import help

log = logging.getLogger("fmdiff")


@dataclass
class Outcome:
    """The outcome of a job: its exit code, the error that ended it, and its run folder."""

    code: int = 0
    error: BaseException | None = None
    folder: Path | None = None

    @property
    def void(self) -> bool:
        """Whether the job did nothing, so that its folder can be restored."""
        harmless = KeyboardInterrupt | BrokenPipeError | Complete
        return self.code == 2 or isinstance(self.error, harmless)


def launch(name: str, words: list[str]) -> int:
    """Check the words of a command, and let `hydra.main` run it or show its config."""
    from fmdiff.settings import compose

    args, flags = compose.parse(words)
    folders = compose.config_folders(args)
    if args.help:
        choices = help.of_choices(name, args.overrides, folders)
        print(choices or help.of_command(name, COMMANDS[name], folders))
        return 0
    from fmdiff.settings import prepare

    own = compose.import_folders(args)
    with importable(*own):
        overrides, sweep = args.overrides, None
        if not (args.hydra_help or args.info or args.shell_completion):
            overrides, _, sweep = prepare.prepare(name, args)
        code = _hydra(name, [*flags, *overrides], own)
    if sweep:
        code = max(code, print_sweep(sweep.folder))
        if sweep.folder.name.startswith(prepare.PLANNED):
            shutil.rmtree(sweep.folder, ignore_errors=True)
        else:
            update_report(name, sweep.folder)
        sweep.close()
    return code


def _hydra(name: str, words: list[str], folders: list[Path]) -> int:
    """Pass words to `hydra.main`. Returns the exit code. folders: those of the user's classes."""
    import hydra

    from fmdiff.settings import compose

    def task(cfg: Any) -> None:
        with importable(*folders), screens():  # a launcher may run this in another process
            job(name, cfg)

    run = hydra.main(str(compose.config_folder()), name, **compose.VERSION_BASE)(task)
    before, sys.argv = sys.argv, [sys.argv[0], *words]
    try:
        run()
    except SystemExit as stop:
        return stop.code if isinstance(stop.code, int) else int(stop.code is not None)
    finally:
        sys.argv = before
    return 0


def job(name: str, cfg: Any) -> None:
    """Run one job of `hydra.main`. Raises SystemExit if it failed, unless a sweep continues."""
    from hydra.core.hydra_config import HydraConfig
    from hydra.types import RunMode
    from omegaconf import OmegaConf

    from fmdiff.runs.folder import JOBS
    from fmdiff.settings import compose

    compose.register_resolvers()
    OmegaConf.resolve(cfg)
    settings = HydraConfig.get()
    overrides = list(settings.overrides.task)
    sweep = settings.mode == RunMode.MULTIRUN
    if sweep and "out" in cfg:
        folder = Path(settings.sweep.dir)
        if cfg.out is None or Path(cfg.out).expanduser() == folder:
            cfg.out = settings.runtime.output_dir
    code = run(name, cfg, overrides).code
    if sweep:
        gc.collect()  # Lightning's objects refer to each other, and the next job needs the room
        out = None if cfg.get("plan") else cfg.get("out")
        line = (settings.job.num, " ".join(overrides), code, out)
        with files.append(Path(settings.sweep.dir) / JOBS) as file:
            file.write(json.dumps(line).encode() + b"\n")
    if code and (not sweep or code >= 128):  # a signal that stops a job stops the sweep
        raise SystemExit(code)


def run(name: str, cfg: Any, overrides: list[str]) -> Outcome:
    """Call a command in its run folder and log its errors."""
    from fmdiff.runs.folder import open_run
    from fmdiff.settings import schema

    function, opened, outcome = COMMANDS[name], None, Outcome()
    with signals.handling(signals.end), progress.pulse(name):
        try:
            schema.check(name, cfg)  # Hydra has composed it anew
            if cfg.get("plan"):
                processes.settle(cfg)
                function(cfg, None)
            elif "folder" in inspect.signature(function).parameters:
                processes.settle(cfg)
                opened = open_run(cfg, name, overrides)
                outcome.folder = opened.folder
                function(cfg, opened.folder)
            else:
                function(cfg)
            sys.stdout.flush()
        except (Exception, KeyboardInterrupt) as error:
            outcome.error = error
            outcome.code = _log(name, error, opened)
        finally:
            processes.leave()
            startup.over()
            if opened is not None:
                if outcome.code != 1 and not outcome.void and opened.lock is not None:
                    update_report(name, opened.folder)
                opened.close(discard=outcome.void)
    return outcome


def _log(name: str, error: BaseException, opened: Any) -> int:
    """Log the error that ended a job. Returns the exit code. opened: the run, if there is one."""
    from fmdiff.runs.folder import gone, place
    from fmdiff.settings.compose import going_on

    if isinstance(error, FmdiffError):
        if processes.rank() and isinstance(error, Interrupted | Diverged):
            return 0  # rank 0 logs it after saving
        if isinstance(error, Complete):
            log.info("%s", error)
            return 0
        log.error("fmdiff %s: %s", name, error)
        return error.code
    if isinstance(error, KeyboardInterrupt):
        log.error("fmdiff %s: %s", name, str(error) or "interrupted")
        return signals.exit_code(error)
    if isinstance(error, BrokenPipeError):
        return PIPE
    if isinstance(error, OSError) and opened is not None and opened.place != place(opened.folder):
        log.error("fmdiff %s: %s", name, gone(opened.folder))
    elif sentence := shortage(error, name):
        if name == "train" and opened is not None:
            sentence += f"; {opened.advice(going_on(opened.folder))}"
        log.error("fmdiff %s: %s", name, sentence)
    elif line := culprit(error):
        log.error("fmdiff %s: an error in your own code, %s", name, line, exc_info=error)
    else:
        log.error("fmdiff %s: this is a bug", name, exc_info=error)
    return 1


def worker(name: str, folder: Path, parent: int | None = None) -> int:
    """Run another process of a run that is already open. Rank 0 reports the errors of all."""
    from fmdiff.runs.config import load_config

    if parent is not None:
        processes.end_with(parent)
    with importable(Path()), signals.handling(signals.end):
        try:
            COMMANDS[name](load_config(folder), folder)
        except (Interrupted, Diverged):  # all ranks have agreed on it
            return 0
        except Exception as error:
            code = _log(name, error, None)
            sys.stderr.flush()
            os._exit(code)  # at once, so that rank 0 finds out before its collectives fail
        finally:
            processes.leave()
    return 0


def update_report(name: str, folder: Path) -> None:
    """Update report.html after a command that leaves something to show."""
    if name in REPORTED:
        from fmdiff.report import update

        update(folder)


def print_sweep(sweep: Path) -> int:
    """Print how the jobs of a sweep ended. Returns the largest exit code."""
    from fmdiff.runs.folder import JOBS

    file = sweep / JOBS
    if not file.is_file():
        return 1  # no job ended, and the reason has been logged
    from fmdiff.report import losses

    jobs = sorted(json.loads(line) for line in files.read_text(file, sweep).splitlines())
    values, note = losses(sweep)
    rows = [["job", "result", *(["validation loss"] if values else []), "folder", "overrides"]]
    for number, words, code, folder in jobs:
        loss = [values.get(number, "-")] if values else []
        outcome = OUTCOMES.get(code, str(code))
        rows.append([str(number), outcome, *loss, folder or "", words])
    print(tables.aligned(rows))
    if note:
        print(note)
    return max(code for _, _, code, _ in jobs)
