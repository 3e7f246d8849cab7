"""The run folder: chooses it, locks it for one process and writes its first files.

config.yaml       the resolved config
overrides         the overrides of the command line, one a line
environment.json  versions, machine and command
COMMAND.log       the messages of the command
.lock             locked by the process that writes here; holds its id

A run folder may come from someone else. Its owner chooses where it lies, by a link if need be, and
links inside it are not followed for writing.
"""

import contextlib
import fcntl
import functools
import io
import json
import logging
import os
import platform
import shutil
import socket
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import datetime
from importlib import metadata
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from fmdiff import files
from fmdiff.errors import FmdiffError, visible
from fmdiff.runs import zoo
from fmdiff.runs.config import load_config
from fmdiff.runs.resume import OUTPUTS, RESULTS, check_free, check_resume, resume_folder

LOCK, REPLACED = ".lock", ".replaced"
INNER = (REPLACED, "samples", "averages", "schedules", "tensorboard", "wandb")  # inner folders
JOBS = "jobs.jsonl"  # in the folder of a sweep, one line per finished job
PACKAGES = ("fmdiff", "torch", "torchvision", "lightning", "hydra-core", "omegaconf", "numpy")
log = logging.getLogger("fmdiff")


def write_config(folder: Path, cfg: DictConfig) -> None:
    """Write config.yaml, whole or not at all. Raises OSError."""
    files.write_text(folder / "config.yaml", OmegaConf.to_yaml(cfg))


def new_folder(parent: Path) -> Path:
    """Make a folder PARENT/DATE_TIME that no other process has, even if two start in one second.

    Raises FmdiffError if it cannot be made.
    """
    stamp = datetime.now().strftime("%Y-%m-%d_%H-%M-%S")
    try:
        parent.mkdir(parents=True, exist_ok=True)
        for attempt in range(1, 1000):
            folder = parent / (stamp if attempt == 1 else f"{stamp}-{attempt}")
            try:
                folder.mkdir()
            except FileExistsError:
                continue
            return folder
    except OSError as error:
        raise _unwritable(parent, error) from error
    raise FmdiffError(f"{parent} has no room for another folder of {stamp}")


def claim_sweep(folder: Path) -> "Run":
    """Make the folder of a sweep, lock it, and delete the job outcomes of an earlier sweep in it.

    Raises FmdiffError if it is in use, cannot be written to, or if a job's folder is a link.
    """
    sweep = _claim(folder, folder.parent)
    try:
        (folder / JOBS).unlink(missing_ok=True)
        (folder / "multirun.yaml").unlink(missing_ok=True)  # Hydra would write through a link
        if links := [path for path in folder.glob("[0-9]*") if path.is_symlink()]:
            raise _link(links[0])
    except OSError as error:
        raise _unwritable(folder, error) from error
    return sweep


def _unwritable(folder: Path, error: OSError) -> FmdiffError:
    inner = Path(error.filename) if error.filename else folder
    where = f" ({inner.name})" if folder in inner.parents else ""
    return FmdiffError(f"out={folder} cannot be written to: {error.strerror}{where}")


def _link(path: Path) -> FmdiffError:
    return FmdiffError(
        f"{path} is a link, and in a run folder fmdiff writes through none: remove it or put what "
        "it leads to in its place"
    )


def place(folder: Path) -> tuple[int, int] | None:
    """What tells a folder from another of the same name: device and inode; None if it is gone."""
    try:
        status = os.stat(folder)
    except FileNotFoundError:
        return None
    return status.st_dev, status.st_ino


def gone(folder: Path) -> str:
    """The sentence about a folder that is not where it was when the command began."""
    return f"{folder} is gone: it was deleted or moved while the command ran, so nothing is saved"


@dataclass
class Run:
    """A run folder that this process has locked."""

    folder: Path
    lock: Any = None
    new_folders: list[Path] = field(default_factory=list)  # made for the run, innermost first
    # the first files of a run, with their earlier content; None if they did not exist
    beginning: dict[Path, bytes | None] = field(default_factory=dict)
    earlier: set[Path] = field(default_factory=set)  # files in the folder before the run
    handler: logging.Handler | None = None
    place: tuple[int, int] | None = None

    def advice(self, again: str) -> str:
        """A sentence about the newest checkpoint. `again` is the command that goes on from it."""
        numbered = sorted(self.folder.glob("[0-9]" * 7 + ".ckpt"))
        if not numbered:
            return "there is no checkpoint yet"
        return f"{numbered[-1]} is kept: go on with {again}"

    def close(self, discard: bool = False) -> None:
        """Release the folder. `discard` restores it, unless the run has left results."""
        if self.handler is not None:
            logging.getLogger().removeHandler(self.handler)
            with contextlib.suppress(OSError):  # the disk may be full
                self.handler.close()
        replaced = self.folder / REPLACED
        ours = {*self.beginning, *self.earlier}
        here = self.place == place(self.folder)
        if discard and here and self.beginning and set(self.folder.iterdir()) <= ours:
            self._undo(replaced)
        if self.lock is not None:
            if here:
                shutil.rmtree(replaced, ignore_errors=True)
            self.lock.close()

    def _undo(self, replaced: Path) -> None:
        for path, before in self.beginning.items():
            path.unlink(missing_ok=True)
            if before is not None:
                with files.blank(path) as file:
                    file.write(before)
        _move(replaced, self.folder)
        for path in self.new_folders:
            with contextlib.suppress(OSError):  # another run may use it by now
                path.rmdir()


def _move(source: Path, target: Path) -> None:
    """Move the results in one folder to another."""
    for old in [path for pattern in RESULTS for path in source.glob(pattern)]:
        files.make_folder(target)
        old.replace(target / old.name)


def open_run(cfg: DictConfig, command: str, overrides: Sequence[str] = ()) -> Run:
    """Choose, lock and begin the folder of a run.

    Fills in values that cfg leaves open: the checkpoint that ckpt= names and, in a resumed run,
    the values that replaced null at its start. Under torchrun rank 0 does all this, and the others
    follow without writing. Raises FmdiffError, before anything is written, for a folder that holds
    results of other settings, is in use or cannot be written to.
    """
    rank = _torchrun_rank()
    if rank is not None:
        _store()  # it may fail, and nothing is written yet
    if rank:
        run = Run(Path(_share_folder(None)))
        cfg.merge_with(load_config(run.folder))
        return run
    parent = _parent(cfg)
    resumed = resume_folder(cfg) if "resume" in cfg else None
    folder = None if cfg.out is None else Path(cfg.out).expanduser()
    if resumed is not None:
        check_resume(resumed, cfg)
    elif folder is not None:
        check_free(folder, cfg)
    run = _claim(resumed or folder, parent)
    texts = {
        "config.yaml": OmegaConf.to_yaml(cfg),
        "overrides": "".join(f"{line}\n" for line in overrides),
        "environment.json": json.dumps(environment(), indent=2) + "\n",
    }
    try:
        if resumed is None and cfg.overwrite:
            shutil.rmtree(run.folder / REPLACED, ignore_errors=True)
            _move(run.folder, run.folder / REPLACED)
        run.earlier = set(run.folder.iterdir()) - {run.folder / LOCK}
        for path in (run.folder / name for name in (*texts, LOCK, f"{command}.log")):
            run.beginning[path] = files.read_bytes(path) if path in run.earlier else None
        for name, text in texts.items():
            files.write_text(run.folder / name, text)
        run.handler = LogFile(run.folder / f"{command}.log")
        logging.getLogger().addHandler(run.handler)
    except OSError as error:
        run.close(discard=True)
        raise _unwritable(run.folder, error) from error
    if rank is not None:
        _share_folder(run.folder)
    return run


class LogFile(logging.StreamHandler):
    """Writes log messages at the end of a file, with control characters as escapes."""

    def __init__(self, path: Path) -> None:
        """Open the file. Raises OSError."""
        raw: Any = files.append(path)
        if files.shared(raw):
            raw.close()
            with files.whole(path) as copy:
                copy.write(files.read_bytes(path))
            raw = files.append(path)
        super().__init__(io.TextIOWrapper(raw, "utf-8", "backslashreplace", write_through=True))
        self.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s"))

    def format(self, record: logging.LogRecord) -> str:
        """The lines of a record."""
        return visible(super().format(record))

    def handleError(self, record: logging.LogRecord) -> None:
        """Do nothing: a full disk would give a traceback per line, and the screen has the line."""

    def close(self) -> None:
        """Close the file."""
        self.stream.close()
        super().close()


def _parent(cfg: DictConfig) -> Path:
    """The parent of a new folder if `out` is not given."""
    if cfg.get("ckpt") is not None:
        from fmdiff.runs.find import find  # imports torch, which --help need not wait for

        file = find(cfg.ckpt)
        cfg.ckpt = zoo.spelling(file)
        if cfg.ckpt.startswith(zoo.PREFIX):  # the package is not written to
            return OUTPUTS / cfg.ckpt.replace(":", "-")
        samples = file.parent / "samples"
        if samples.is_symlink():
            raise _link(samples)
        return samples
    choices = [cfg.choices.get(group) for group in ("model", "data", "system")]
    # with samples= and result= nothing is chosen
    return OUTPUTS / (cfg.name or "-".join(filter(None, choices)) or "evaluation")


def _claim(folder: Path | None, parent: Path) -> Run:
    """Make the folder if needed, and lock it against a second run."""
    inner = parent / "new" if folder is None else folder
    new_folders = [path for path in (inner, *inner.parents) if not path.exists()]
    if folder is None:
        new_folders[0] = folder = new_folder(parent)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        board = (folder / "tensorboard").rglob("*")  # of its files Lightning chooses the names
        logs = folder.glob("*.log")
        for path in (folder / LOCK, *(folder / name for name in INNER), *logs, *board):
            if path.is_symlink():
                raise _link(path)
        lock = files.append(folder / LOCK)
    except OSError as error:
        raise _unwritable(folder, error) from error
    try:
        # the system releases the lock when the process ends in any way
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        lock.close()
        holder = files.read_text(folder / LOCK, folder, "replace").strip() or "another process"
        raise FmdiffError(
            f"{folder} is in use by {holder}: wait for it or choose another"
        ) from None
    except OSError as error:
        log.warning("%s cannot be locked (%s): start no second run in it", folder, error.strerror)
    if not files.shared(lock):
        lock.truncate(0)
        lock.write(f"process {os.getpid()} on {socket.gethostname()}\n".encode())
    return Run(folder, lock, new_folders, place=place(folder))


def environment() -> dict[str, Any]:
    """The versions, machine and command, on which results may depend beside the config."""
    versions = {}
    for package in PACKAGES:
        with contextlib.suppress(metadata.PackageNotFoundError):
            versions[package] = metadata.version(package)
    return {
        "python": platform.python_version(),
        "platform": platform.platform(),
        "host": socket.gethostname(),
        "cpus": os.cpu_count(),
        "packages": versions,
        "command": sys.argv,
        "started": datetime.now().astimezone().isoformat(timespec="seconds"),
    }


# torchrun starts several processes with the same command line


def _torchrun_rank() -> int | None:
    alone = int(os.environ.get("WORLD_SIZE", 1)) == 1
    return None if alone or "RANK" not in os.environ else int(os.environ["RANK"])


@functools.cache  # rank 0 keeps it open for the others if torchrun's agent does not
def _store() -> Any:
    import torch.distributed

    try:
        return next(torch.distributed.rendezvous("env://"))[0]
    except torch.distributed.DistNetworkError as error:
        if "EADDRINUSE" not in str(error):
            raise
        raise FmdiffError(
            f"MASTER_PORT={os.environ['MASTER_PORT']} is in use on this machine; choose another, "
            "as by torchrun --master_port=N"
        ) from error


def _share_folder(folder: Path | None) -> str:
    """Rank 0 puts the run folder into torchrun's store, and the other ranks wait for it."""
    store = _store()
    key = f"fmdiff/folder/{os.environ.get('TORCHELASTIC_RESTART_COUNT', 0)}"
    if folder is not None:
        store.set(key, str(folder.absolute()))
    return store.get(key).decode()
