"""The run folder: which one it is, whose it is and what it begins with.

config.yaml       the resolved config
overrides         what the command line said, one override per line
environment.json  versions, machine and command
COMMAND.log       what was said on the way
.lock             held by the process that writes here; names it
"""

import contextlib
import fcntl
import functools
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

from fmdiff.errors import FmdiffError, word
from fmdiff.runs.resume import (
    INCIDENTAL,
    OUTPUTS,
    check_resume,
    differences,
    listed,
    load_config,
    resume_folder,
)

LOCK, REPLACED = ".lock", ".replaced"
JOBS = "jobs.jsonl"  # in the folder of a sweep, one line per finished job
PACKAGES = ("fmdiff", "torch", "torchvision", "lightning", "hydra-core", "omegaconf", "numpy")
RESULTS = (
    *("*.ckpt", "*.csv", "*.json", "*.npz", "*.npy", "*.pt", "*.png", "*.gif", "*.log"),
    *("*.apng", "*.webp", "*.md", "*.html"),
    *("events.out.tfevents.*", "overrides", "config.yaml"),
)
log = logging.getLogger("fmdiff")


def write_config(folder: Path, cfg: DictConfig) -> None:
    """Write config.yaml, the old one whole until the new one is."""
    _write(folder / "config.yaml", OmegaConf.to_yaml(cfg))


def _write(path: Path, text: str) -> None:
    temporary = path.with_name(f"{path.name}.tmp-{os.getpid()}")
    temporary.write_text(text)
    temporary.replace(path)


def new_folder(parent: Path) -> Path:
    """A new folder PARENT/DATE_TIME, this process's own even if two start in one second."""
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


def claim_sweep(folder: Path) -> Path:
    """Make the folder of a sweep and forget how the jobs of an earlier one ended."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        (folder / JOBS).unlink(missing_ok=True)
    except OSError as error:
        raise _unwritable(folder, error) from error
    return folder


def _unwritable(folder: Path, error: OSError) -> FmdiffError:
    return FmdiffError(f"out={folder} cannot be written to: {error.strerror}")


@dataclass
class Run:
    """A run folder in the hands of this process."""

    folder: Path
    lock: Any = None
    created: list[Path] = field(default_factory=list)  # folders made for it, innermost first
    # files a run begins with, and what was in them before, None if nothing
    written: dict[Path, bytes | None] = field(default_factory=dict)
    kept: set[Path] = field(default_factory=set)  # what lay in the folder before
    handler: logging.Handler | None = None

    def saved(self) -> str:
        """Which checkpoint there is to go on with, in words."""
        numbered = sorted(self.folder.glob("[0-9]" * 7 + ".ckpt"))
        if not numbered:
            return "there is no checkpoint yet"
        return f"{numbered[-1]} is kept: go on with fmdiff train {word('resume', self.folder)}"

    def close(self, discard: bool = False) -> None:
        """Let go of the folder; `discard` leaves all as it was, if nothing came of the run."""
        if self.handler is not None:
            logging.getLogger().removeHandler(self.handler)
            with contextlib.suppress(OSError):  # a full disk
                self.handler.close()
        replaced = self.folder / REPLACED
        if discard and self.written and set(self.folder.iterdir()) <= {*self.written, *self.kept}:
            for path, before in self.written.items():
                path.unlink(missing_ok=True) if before is None else path.write_bytes(before)
            _move(replaced, self.folder)
            for path in self.created:
                with contextlib.suppress(OSError):  # another run moved in
                    path.rmdir()
        if self.lock is not None:
            shutil.rmtree(replaced, ignore_errors=True)
            self.lock.close()


def _move(source: Path, target: Path) -> None:
    """Move the results in one folder to another."""
    for old in [path for pattern in RESULTS for path in source.glob(pattern)]:
        target.mkdir(exist_ok=True)
        old.replace(target / old.name)


def open_run(cfg: DictConfig, command: str, overrides: Sequence[str] = ()) -> Run:
    """Decide on, claim and begin the folder of a run; FmdiffError before anything is written.

    Fills into cfg what is known now: the checkpoint that ckpt= means and, of a resumed run, what
    a null stood for. Under torchrun rank 0 does so and the other ranks follow without writing.
    """
    rank = _torchrun_rank()
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
        _check_free(folder, cfg)
    run = _claim(resumed or folder, parent)
    files = {
        "config.yaml": OmegaConf.to_yaml(cfg),
        "overrides": "".join(f"{line}\n" for line in overrides),
        "environment.json": json.dumps(environment(), indent=2) + "\n",
    }
    try:
        if resumed is None and cfg.overwrite:
            shutil.rmtree(run.folder / REPLACED, ignore_errors=True)
            _move(run.folder, run.folder / REPLACED)
        run.kept = set(run.folder.iterdir()) - {run.folder / LOCK}
        for path in (run.folder / name for name in (*files, LOCK, f"{command}.log")):
            run.written[path] = path.read_bytes() if path in run.kept else None
        for name, text in files.items():
            _write(run.folder / name, text)
        run.handler = logging.FileHandler(run.folder / f"{command}.log")
        run.handler.handleError = lambda record: None  # type: ignore[method-assign]  # a full disk
    except OSError as error:
        run.close(discard=True)
        raise _unwritable(run.folder, error) from error
    # a full disk is not to be told by a traceback per line; the screen has the line
    run.handler.handleError = lambda record: None  # type: ignore[method-assign]
    run.handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s"))
    logging.getLogger().addHandler(run.handler)
    if rank is not None:
        _share_folder(run.folder)
    return run


def _parent(cfg: DictConfig) -> Path:
    """Where a new folder goes if `out` does not say."""
    if cfg.get("ckpt") is not None:
        from fmdiff.runs.find import find

        cfg.ckpt = str(find(cfg.ckpt))
        return Path(cfg.ckpt).parent / "samples"
    named = [cfg.choices.get(group) for group in ("model", "data", "system")]
    # of samples= and result= nothing is named
    return OUTPUTS / (cfg.name or "-".join(filter(None, named)) or "evaluation")


def _check_free(folder: Path, cfg: DictConfig) -> None:
    """FmdiffError if the folder holds results that this command must not touch."""
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
            f"out={folder} holds results of other settings ({listed(changes)}): choose another "
            "folder or say overwrite=true"
        )


def _claim(folder: Path | None, parent: Path) -> Run:
    """Make the folder where needed and lock it against a second run."""
    inner = parent / "new" if folder is None else folder
    created = [path for path in (inner, *inner.parents) if not path.exists()]
    if folder is None:
        created[0] = folder = new_folder(parent)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock = (folder / LOCK).open("a+")
    except OSError as error:
        raise _unwritable(folder, error) from error
    try:
        # the system lets go of it when the process ends, however it ends
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        lock.seek(0)
        holder = lock.read().strip() or "another process"
        lock.close()
        raise FmdiffError(
            f"{folder} is in use by {holder}: wait for it or choose another"
        ) from None
    except OSError as error:
        log.warning("%s cannot be locked (%s): start no second run in it", folder, error.strerror)
    lock.truncate(0)
    print(f"process {os.getpid()} on {socket.gethostname()}", file=lock, flush=True)
    return Run(folder, lock, created)


def environment() -> dict[str, Any]:
    """What a result may depend on beside the config."""
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


# torchrun: processes started from outside, each with the same command line


def _torchrun_rank() -> int | None:
    alone = int(os.environ.get("WORLD_SIZE", 1)) == 1
    return None if alone or "RANK" not in os.environ else int(os.environ["RANK"])


@functools.cache  # rank 0 keeps it open for the others, where no agent of torchrun does
def _store() -> Any:
    import torch.distributed

    return next(torch.distributed.rendezvous("env://"))[0]


def _share_folder(folder: Path | None) -> str:
    """Rank 0 gives, and the other ranks wait for, the run folder through torchrun's store."""
    store = _store()
    key = f"fmdiff/folder/{os.environ.get('TORCHELASTIC_RESTART_COUNT', 0)}"
    if folder is not None:
        store.set(key, str(folder.absolute()))
    return store.get(key).decode()
