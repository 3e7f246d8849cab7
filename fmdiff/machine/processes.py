"""The processes of a command, one per device: started here, by torchrun or by srun.

torchrun's variables (RANK, WORLD_SIZE ...) tell each process which one it is. Rank 0 writes the
files and prints. Other processes that are started here print to RUN/rankN.log, which is kept only
if the process failed.
"""

import contextlib
import ctypes
import logging
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar

from fmdiff import files
from fmdiff.errors import Died, FmdiffError
from fmdiff.machine import signals

PDEATHSIG = 1  # Linux: the signal that a process gets when its parent ends
GRACE = 20.0  # seconds that rank 0 has to end by itself after another has failed
OURS = "FMDIFF_STARTED"  # set if `group` has started the others
VARIABLES = (
    "RANK",
    "LOCAL_RANK",
    "WORLD_SIZE",
    "LOCAL_WORLD_SIZE",
    "MASTER_ADDR",
    "MASTER_PORT",
    "TORCHELASTIC_USE_AGENT_STORE",
    "OMP_NUM_THREADS",
    OURS,
)
T = TypeVar("T")
log = logging.getLogger("fmdiff")


def world() -> int:
    """The number of processes on all machines."""
    return int(os.environ.get("WORLD_SIZE", 1))


def rank() -> int:
    """The number of this process. Rank 0 leads."""
    return int(os.environ.get("RANK", 0)) if world() > 1 else 0


def adopt_srun() -> None:
    """Translate the variables that SLURM sets for the tasks of `srun` to torchrun's."""
    variables = os.environ
    tasks = int(variables.get("SLURM_STEP_NUM_TASKS", 1))
    if tasks == 1 or "RANK" in variables:
        return
    first = re.match(r"[^\[,]+(\[\d+)?", variables["SLURM_STEP_NODELIST"])
    assert first is not None
    variables |= {
        "RANK": variables["SLURM_PROCID"],
        "LOCAL_RANK": variables["SLURM_LOCALID"],
        "WORLD_SIZE": str(tasks),
        "LOCAL_WORLD_SIZE": str(tasks // int(variables["SLURM_STEP_NUM_NODES"])),
    }
    variables.setdefault("MASTER_ADDR", first[0].replace("[", ""))
    variables.setdefault("MASTER_PORT", str(20000 + int(variables["SLURM_JOB_ID"]) % 10000))


def settle(cfg: Any) -> None:
    """Fill in the number of processes that torchrun or srun has started on this machine.

    Raises FmdiffError if cfg has another number, or if the command runs in one process.
    """
    from omegaconf import OmegaConf

    if world() == 1:
        return
    here = int(os.environ.get("LOCAL_WORLD_SIZE", world()))
    key = "trainer.devices" if "trainer" in cfg else "devices"
    devices = OmegaConf.select(cfg, key)
    if devices is None:
        raise FmdiffError(f"this runs in one process, and {world()} were started")
    if devices not in (1, here):
        raise FmdiffError(f"{key}={devices}: {here} processes were started on this machine")
    OmegaConf.update(cfg, key, here)


def join(where: Any) -> Any:
    """Join the default group, if there are several processes. Returns the device."""
    import torch

    if world() == 1:
        return where
    if where.type == "cuda":
        where = torch.device("cuda", int(os.environ["LOCAL_RANK"]))
        torch.cuda.set_device(where)
    if not torch.distributed.is_initialized():
        backend = "cpu:gloo,cuda:nccl" if where.type == "cuda" else "gloo"
        torch.distributed.init_process_group(backend)
    return where


def leave() -> None:
    """Undo `join`."""
    distributed = sys.modules.get("torch.distributed")
    if distributed and distributed.is_available() and distributed.is_initialized():
        distributed.destroy_process_group()


def apart() -> bool:
    """Whether there are several processes, each of which was started by itself."""
    return world() > 1 and OURS not in os.environ


@contextlib.contextmanager
def after_rank_0() -> Iterator[None]:
    """Let rank 0 run the block before the others, for instance to download data."""
    from torch import distributed

    # processes that are started here come after rank 0 anyway
    if apart() and rank():
        distributed.barrier()
    yield
    if apart() and not rank():
        distributed.barrier()


def gather(value: Any) -> list[Any]:
    """The values of all ranks, in their order, on each of them."""
    from torch import distributed

    if world() == 1:
        return [value]
    values = [None] * world()
    distributed.all_gather_object(values, value)
    return values


def differ(value: Any) -> bool:
    """Whether this value is another in another process, where each was started by itself."""
    return apart() and any(other != value for other in gather(value))


def agree(work: Callable[[], T]) -> T:
    """Return work() of this rank. The first FmdiffError of any rank is raised in all."""
    if world() == 1:
        return work()
    failure: tuple[str, int] | None = None
    try:
        result = work()
    except FmdiffError as error:
        failure = str(error), error.code
    for first in gather(failure):
        if first is not None:
            refusal = FmdiffError(first[0])
            refusal.code = first[1]
            raise refusal
    return result


def divisible(n: int, size: int, count: int) -> None:
    """Raises FmdiffError if n samples in batches of `size` are not enough for all processes."""
    batches, ranks = -(-n // size), max(count, world())
    if batches < ranks:
        raise FmdiffError(
            f"devices={count}: {n} samples in batches of {size} are work for {batches} of "
            f"{ranks} processes; choose a smaller batch_size="
        )


def share(n: int, size: int) -> range:
    """This rank's share of n samples, in the batches of `size` that one process would make."""
    batches = -(-n // size)
    first, last = (batches * k // world() * size for k in (rank(), rank() + 1))
    return range(first, min(n, last))


@contextlib.contextmanager
def group(command: str, folder: Path, count: int, where: Any) -> Iterator[None]:
    """Run the block as rank 0 of `count` processes that have all joined the default group.

    The others run `fmdiff COMMAND --worker FOLDER` and enter this context too. If one of them
    fails, this raises Died, or signals.SignalEnd if a signal ended it.
    """
    if count == 1 or world() > 1:
        join(where)
        yield
        return
    from torch.distributed import TCPStore

    store = TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    before = {name: os.environ.get(name) for name in VARIABLES}
    os.environ |= {
        "RANK": "0",
        "LOCAL_RANK": "0",
        "WORLD_SIZE": str(count),
        "LOCAL_WORLD_SIZE": str(count),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(store.port),
        "TORCHELASTIC_USE_AGENT_STORE": "True",
        OURS: "1",
        "OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", "1"),
    }
    others = Others(command, folder, count)
    failure = None
    try:
        join(where)
        yield
        others.wait()
    except FmdiffError:
        raise
    except Exception as error:
        failure = others.failure(seconds=5)
        if failure is None:
            raise
        raise failure from error
    finally:
        others.end(keep=isinstance(failure, Died))
        leave()
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


class Others:
    """The processes of ranks 1 ... count - 1, and a thread that watches them."""

    def __init__(self, command: str, folder: Path, count: int) -> None:
        self.command, self.folder, self.end_event = command, folder, threading.Event()
        self.processes: dict[int, subprocess.Popen] = {}
        self.first_lost: int | None = None  # the rank that failed first
        words = [sys.executable, "-m", "fmdiff", command, "--worker", str(folder)]
        for number in range(1, count):
            with files.blank(self._log(number)) as output:
                self.processes[number] = subprocess.Popen(
                    [*words, str(os.getpid())],
                    env=os.environ | {"RANK": str(number), "LOCAL_RANK": str(number)},
                    stdin=subprocess.DEVNULL,
                    stdout=output,
                    stderr=output,
                )
        self.watch = threading.Thread(target=self._watch, daemon=True)
        self.watch.start()

    def _log(self, number: int) -> Path:
        return self.folder / f"rank{number}.log"

    def failure(self, seconds: float = 0.0) -> Died | signals.SignalEnd | None:
        """The exception for the first process that has failed or fails within these seconds."""
        end = time.monotonic() + seconds
        while True:
            for number, process in self.processes.items():
                code = process.poll()
                if code is not None and (by := _signal(code)):
                    return signals.SignalEnd(by)
                if code:
                    self.first_lost = number
                    what = f"rank {number} {ending(code)}; {self._log(number)} says more"
                    if self.command == "train":
                        what += f"; resume={self.folder} goes on from the last checkpoint"
                    return Died(what)
            if time.monotonic() >= end:
                return None
            time.sleep(0.1)

    def _watch(self) -> None:
        """End rank 0 if another process has failed and rank 0 hangs, as it may in NCCL."""
        while (failure := self.failure()) is None:
            if self.end_event.wait(0.5):
                return
        if isinstance(failure, signals.SignalEnd):
            os.kill(os.getpid(), failure.code - 128)
        if not self.end_event.wait(GRACE):
            log.error("%s", failure)
            self._kill()
            os._exit(failure.code)

    def wait(self) -> None:
        """Wait for each to end, a minute at most. They end when rank 0 does."""
        for process in self.processes.values():
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(60)

    def _kill(self) -> None:
        for process in self.processes.values():
            process.kill()

    def end(self, keep: bool) -> None:
        """Kill the processes that still run. `keep` keeps the log of the one that failed."""
        self.end_event.set()
        self._kill()
        for number, process in self.processes.items():
            process.wait()
            if not keep or number != self.first_lost:
                self._log(number).unlink(missing_ok=True)


def _signal(code: int) -> int | None:
    """The signal of ENDING that ended a process with this exit code, if one did."""
    number = -code if code < 0 else code - 128
    return number if number in signals.ENDING else None


def ending(code: int) -> str:
    """What an exit code of `subprocess` says of the end of a process."""
    return f"was killed by {signal.Signals(-code).name}" if code < 0 else f"ended with {code}"


def end_with(parent: int) -> None:
    """End this process soon after process `parent` has ended, whatever it is doing."""
    with contextlib.suppress(OSError, AttributeError):  # Linux ends it even in a native call
        ctypes.CDLL(None).prctl(PDEATHSIG, signal.SIGKILL)

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(0.5)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()
