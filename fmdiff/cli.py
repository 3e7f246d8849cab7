"""The command line: `fmdiff COMMAND group=choice key=value ...`, and its completion in a shell."""

import contextlib
import io
import os
import re
import sys
import warnings
from pathlib import Path

from fmdiff import __version__
from fmdiff.commands.table import COMMANDS
from fmdiff.errors import PIPE, FmdiffError, nearest, screens, shortage
from fmdiff.machine import processes, signals
from fmdiff.settings import help


def main(argv: list[str] | None = None) -> int:
    """Run a command line. Returns the exit code: a key of OUTCOMES, or 141 for a closed pipe."""
    if not {"GOMP_SPINCOUNT", "OMP_WAIT_POLICY"} & os.environ.keys():
        os.environ["GOMP_SPINCOUNT"] = "20000"  # idle threads must not keep the cores busy
    # torch itself uses it in forward-mode derivatives
    warnings.filterwarnings("ignore", message=".*torch.jit.script.* is deprecated")
    argv = sys.argv[1:] if argv is None else argv
    for stream in ("stdout", "stderr"):  # the shell may have closed them
        if getattr(sys, stream) is None:
            setattr(sys, stream, open(os.devnull, "w", encoding="utf-8"))  # noqa: SIM115
    processes.adopt_srun()
    with screens():
        return _run(argv)


def _run(argv: list[str]) -> int:
    """Run a command line and print the error that ends it. Returns the exit code."""
    try:
        code = _dispatch(argv)
        sys.stdout.flush()
    except FmdiffError as error:
        where = f" {argv[0]}" if argv and argv[0] in COMMANDS else ""
        print(f"fmdiff{where}: {error}", file=sys.stderr)
        code = error.code
    except KeyboardInterrupt as error:
        code = signals.exit_code(error)
    except OSError as error:  # from stdout: `fmdiff ... | head` or a full disk
        code = PIPE if isinstance(error, BrokenPipeError) else 1
        if code == 1:
            if not (sentence := shortage(error, "")):
                raise
            print(f"fmdiff: {sentence}", file=sys.stderr)
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
    else:
        from fmdiff.commands import job

        if argv[1:2] == ["--worker"]:
            return job.worker(argv[0], Path(argv[2]), *map(int, argv[3:]))
        return job.launch(argv[0], argv[1:])
    return 0


def _complete(argv: list[str]) -> int:
    """Complete the command itself, or let Hydra complete the words after it."""
    from fmdiff.commands import job

    line = os.environ.get("COMP_LINE", "")
    if "query" not in argv[-1]:
        return job.launch(next(iter(COMMANDS)), argv)  # installing is the same for every command
    match = re.match(r"(\s*\S+)\s+(\S*)(?=(\s?))", line)
    if not match or not match[3]:
        begun = match[2] if match else ""
        print("\n".join(name for name in COMMANDS if name.startswith(begun)))
    elif models := _zoo(line, bash="bash" in argv[-1]):
        print("\n".join(models))
    elif match[2] in COMMANDS:
        rest = line[match.end() :]
        os.environ["COMP_LINE"] = match[1] + rest
        os.environ["COMP_POINT"] = str(len(match[1] + rest))
        folder = re.search(r"(?:--config-dir|-cd)[= ](\S+)", rest)
        own = ["--config-dir", folder[1]] if folder else []
        with contextlib.redirect_stderr(io.StringIO()):  # a half-typed word is no error
            job.launch(match[2], [*own, *argv])
    return 0


def _zoo(line: str, bash: bool) -> list[str]:
    """The models of the zoo that complete the last word of a line, a key=z.. of a checkpoint.

    bash: breaks words at colons, and completes the part behind the last one.
    """
    match = re.search(r"\s(\S*(?:ckpt|init|teacher)=)(z\S*)$", line)
    if not match:
        return []
    from fmdiff.runs import zoo

    key, begun = match[1], match[2]
    words = [f"{zoo.PREFIX}{name}" for name in zoo.models()]
    fitting = [key + word for word in words if word.startswith(begun)]
    return [word.partition(":")[2] for word in fitting] if bash and ":" in begun else fitting
