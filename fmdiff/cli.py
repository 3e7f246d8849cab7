"""The command line: `fmdiff COMMAND group=choice key=value ...`.

A command is a function here and a YAML of its name. Its docstring is its help: the first line,
and the examples below it. Everything slow is imported where it is used.
"""

import contextlib
import inspect
import io
import json
import logging
import os
import re
import shutil
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

from fmdiff import __version__
from fmdiff.errors import OUTCOMES, PIPE, Diverged, FmdiffError, Interrupted, exhausted, nearest
from fmdiff.machine import processes, signals
from fmdiff.settings import help

COMMANDS: dict[str, Callable[..., None]] = {}
REPORTED = ("train", "sample", "evaluate")  # commands after which report.html is written
log = logging.getLogger("fmdiff")


def command(function: Callable[..., None]) -> Callable[..., None]:
    """Make a function of (cfg) or, if it writes, of (cfg, folder) a command of its name."""
    COMMANDS[function.__name__] = function
    return function


@command
def train(cfg: Any, folder: Path | None) -> None:
    """Fit a network to a data set along a path; resumable.

    fmdiff train
    fmdiff train model=unet data=mnist trainer.max_time=01:00:00 out=outputs/mnist
    fmdiff train resume=outputs/mnist trainer.max_steps=20000
    fmdiff train experiment=cifar10_cfm plan=true
    fmdiff train -m data=moons,rings optim.lr=1e-3,3e-4
    """
    if folder is None:
        from fmdiff.commands.plan import plan

        plan(cfg)
    else:
        from fmdiff.training.fit import train

        train(cfg, folder)


@command
def sample(cfg: Any, folder: Path) -> None:
    """Points or images from a checkpoint or from an exact field.

    fmdiff sample ckpt=last
    fmdiff sample ckpt=outputs/mnist classes=[3,7] guidance=cfg guidance.w=2 n=100
    fmdiff sample model=exact data=gmm4 solver=euler steps=10
    """
    from fmdiff.commands.sample import sample

    sample(cfg, folder)


@command
def evaluate(cfg: Any, folder: Path) -> None:
    """Samples against real data by metrics, or a field against the exact one.

    fmdiff evaluate ckpt=last metrics=[fid] n=2000
    fmdiff evaluate samples=images.npz against=cifar10 metrics=[fid]
    fmdiff evaluate ckpt=last against=exact
    fmdiff evaluate model=empirical data=gmm4 against=exact
    """
    from fmdiff.commands.evaluate import evaluate

    evaluate(cfg, folder)


@command
def likelihood(cfg: Any, folder: Path) -> None:
    """log p(x) of real data, in nats and bits per dimension, by the ODE run backwards.

    fmdiff likelihood ckpt=last
    fmdiff likelihood ckpt=outputs/mnist n=256 probes=4 label=none
    fmdiff likelihood model=exact data=gmm4 solver=rk4 steps=50
    """
    from fmdiff.commands.likelihood import likelihood

    likelihood(cfg, folder)


@command
def invert(cfg: Any, folder: Path) -> None:
    """Real data to noise and back: round-trip errors, interpolation, inpainting, straightness.

    fmdiff invert ckpt=last
    fmdiff invert ckpt=outputs/mnist interpolate=8 'inpaint=[7,7,21,21]'
    fmdiff invert model=exact data=gmm4 'steps=[10,20,40]' 'solvers=[euler,rk4]' dtype=float64
    """
    from fmdiff.commands.invert import invert

    invert(cfg, folder)


@command
def simulate(cfg: Any, folder: Path) -> None:
    """Textbook systems step by step: errors, orders, random paths against theory.

    fmdiff simulate system=linear system.theta=2 system.x0=4 solver=euler steps=4
    fmdiff simulate system=linear steps=[4,10,50,100] solvers=[euler,heun]
    fmdiff simulate system=two_modes solver=euler_maruyama solver.diffusion=1 steps=100
    """
    from fmdiff.commands.simulate import simulate

    simulate(cfg, folder)


@command
def info(cfg: Any) -> None:
    """What a checkpoint holds; its weights for other programs.

    fmdiff info ckpt=last
    fmdiff info ckpt=last export=model.safetensors
    """
    from fmdiff.commands.info import info

    info(cfg)


@command
def report(cfg: Any) -> None:
    """One page to look at, report.html: about a run, a sweep, or runs side by side.

    fmdiff report
    fmdiff report runs=outputs/mnist/2026-01-31_12-00-00
    fmdiff report runs=[outputs/a,outputs/b] out=compared.html
    """
    from fmdiff.report import report

    report(cfg)


def main(argv: list[str] | None = None) -> int:
    """Run a command line; the exit code: a key of OUTCOMES, or 141 for a closed pipe."""
    if not {"GOMP_SPINCOUNT", "OMP_WAIT_POLICY"} & os.environ.keys():
        os.environ["GOMP_SPINCOUNT"] = "20000"  # idle threads must not keep the cores busy
    # torch's own use of it, in forward-mode derivatives
    warnings.filterwarnings("ignore", message=".*torch.jit.script.* is deprecated")
    argv = sys.argv[1:] if argv is None else argv
    for stream in ("stdout", "stderr"):  # closed by the shell
        if getattr(sys, stream) is None:
            setattr(sys, stream, open(os.devnull, "w"))  # noqa: SIM115
    processes.adopt_srun()
    try:
        code = _dispatch(argv)
        sys.stdout.flush()
    except FmdiffError as error:
        where = f" {argv[0]}" if argv and argv[0] in COMMANDS else ""
        print(f"fmdiff{where}: {error}", file=sys.stderr)
        code = error.code
    except KeyboardInterrupt as error:
        code = getattr(error, "code", 130)
    except OSError as error:  # of stdout: `fmdiff ... | head`, a full disk
        code = PIPE if isinstance(error, BrokenPipeError) else 1
        if code == 1:
            if not (said := exhausted(error, "")):
                raise
            print(f"fmdiff: {said}", file=sys.stderr)
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return code


def _dispatch(argv: list[str]) -> int:
    if not argv or argv[0] in ("--help", "-h", "help"):
        print(help.overview(COMMANDS))
    elif "--version" in argv:
        print(f"fmdiff {__version__}")
    elif argv[0] in ("-sc", "--shell-completion"):
        return _complete(argv)
    elif argv[0] not in COMMANDS:
        what = "flag before the command" if argv[0].startswith("-") else "command"
        raise FmdiffError(f"unknown {what} {argv[0]!r}; {nearest(argv[0], COMMANDS)}")
    elif argv[1:2] == ["--worker"]:
        return _worker(argv[0], Path(argv[2]), *map(int, argv[3:]))
    else:
        return _hydra(argv[0], argv[1:])
    return 0


def _hydra(name: str, words: list[str]) -> int:
    """Run or show a command as `hydra.main` does, once its words are known to be right."""
    from fmdiff.settings import compose

    args, flags = compose.parse(words)
    if args.help:
        print(help.of_command(name, COMMANDS[name], compose.config_folders(args)))
        return 0
    overrides, sweep = args.overrides, None
    if not (args.hydra_help or args.info or args.shell_completion):
        overrides, sweep = compose.prepare(name, args)
    import hydra

    def task(cfg: Any) -> None:
        _job(name, cfg)

    run = hydra.main(str(compose.config_folder()), name, **compose.VERSION_BASE)(task)
    saved, sys.argv = sys.argv, [sys.argv[0], *flags, *overrides]
    try:
        run()
        code = 0
    except SystemExit as stop:
        code = stop.code if isinstance(stop.code, int) else int(stop.code is not None)
    finally:
        sys.argv = saved
    if sweep:
        code = max(code, _table(sweep))
        if sweep.name.startswith(compose.PLANNED):
            shutil.rmtree(sweep, ignore_errors=True)
        else:
            _report(name, sweep)
    return code


def _job(name: str, cfg: Any) -> None:
    """One job of `hydra.main`: SystemExit if it failed, except where a sweep goes on."""
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
    code = _run(name, cfg, overrides)
    if sweep:
        line = (
            settings.job.num,
            " ".join(overrides),
            code,
            None if cfg.get("plan") else cfg.get("out"),
        )
        with (Path(settings.sweep.dir) / JOBS).open("a") as file:
            file.write(json.dumps(line) + "\n")
    if code and (not sweep or code >= 128):  # what stops one job by a signal stops the sweep
        raise SystemExit(code)


def _run(name: str, cfg: Any, overrides: list[str]) -> int:
    """Call a command in its run folder; its exit code, the error said."""
    from fmdiff.runs.folder import open_run

    function, run, code = COMMANDS[name], None, 0
    nothing = False  # came of it
    with signals.handled(signals.end):
        try:
            if cfg.get("plan"):
                function(cfg, None)
            elif "folder" in inspect.signature(function).parameters:
                processes.settle(cfg)
                run = open_run(cfg, name, overrides)
                function(cfg, run.folder)
            else:
                function(cfg)
            sys.stdout.flush()
        except FmdiffError as error:
            code = error.code
            if processes.rank() and isinstance(error, Interrupted | Diverged):
                code = 0  # rank 0 says it, once it has saved
            else:
                log.error("fmdiff %s: %s", name, error)
            nothing = code == 2
        except KeyboardInterrupt as error:
            code, nothing = getattr(error, "code", 130), True
            log.error("fmdiff %s: %s", name, str(error) or "interrupted")
        except BrokenPipeError:
            code, nothing = PIPE, True
        except Exception as error:
            if said := exhausted(error, name):
                saved = f"; {run.saved()}" if name == "train" and run is not None else ""
                log.error("fmdiff %s: %s%s", name, said, saved)
            else:
                log.exception("fmdiff %s: this is a bug", name)
            code = 1
        finally:
            processes.leave()
            if run is not None:
                if code != 1 and not nothing and run.lock is not None:
                    _report(name, run.folder)
                run.close(discard=nothing)
    return code


def _worker(name: str, folder: Path, parent: int | None = None) -> int:
    """Another process of a run that is open already; rank 0 says what goes wrong in all."""
    from fmdiff.runs.config import load_config

    if parent is not None:
        processes.end_with(parent)
    with signals.handled(signals.end):
        try:
            COMMANDS[name](load_config(folder), folder)
        except (Interrupted, Diverged):  # as all ranks have agreed
            return 0
        finally:
            processes.leave()
    return 0


def _report(name: str, folder: Path) -> None:
    """Bring report.html up to date after a command that leaves something to look at."""
    if name in REPORTED:
        from fmdiff.report import update

        update(folder)


def _table(sweep: Path) -> int:
    """Print how the jobs of a sweep ended; the largest exit code."""
    from fmdiff.runs.folder import JOBS

    done = sweep / JOBS
    if not done.is_file():
        return 1  # no job came to its end, and why has been said
    jobs = sorted(json.loads(line) for line in done.read_text().splitlines())
    rows = [("job", "result", "folder", "overrides")]
    for num, words, code, folder in jobs:
        rows.append((str(num), OUTCOMES.get(code, str(code)), folder or "", words))
    *widths, _ = (max(map(len, column)) + 2 for column in zip(*rows, strict=True))
    for *cells, words in rows:
        print("".join(map(str.ljust, cells, widths)) + words)
    return max(code for _, _, code, _ in jobs)


def _complete(argv: list[str]) -> int:
    """Tab completion: the command itself, and after it what Hydra knows."""
    line = os.environ.get("COMP_LINE", "")
    if "query" not in argv[-1]:
        return _hydra(next(iter(COMMANDS)), argv)  # (un)install: the same for every command
    match = re.match(r"(\s*\S+)\s+(\S*)(?=(\s?))", line)
    if not match or not match[3]:
        given = match[2] if match else ""
        print("\n".join(name for name in COMMANDS if name.startswith(given)))
    elif match[2] in COMMANDS:
        rest = line[match.end() :]
        os.environ["COMP_LINE"] = match[1] + rest
        os.environ["COMP_POINT"] = str(len(match[1] + rest))
        folder = re.search(r"(?:--config-dir|-cd)[= ](\S+)", rest)
        own = ["--config-dir", folder[1]] if folder else []
        with contextlib.redirect_stderr(io.StringIO()):  # a half-typed word is no error
            _hydra(match[2], [*own, *argv])
    return 0
