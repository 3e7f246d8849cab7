"""A function computed in a process of its own, so that Python's lock stays with the caller.

Threads of one process hand Python's lock to and fro with every small operation of torch. Another
process has a lock of its own. It is no fork, as a fork of a process with threads or CUDA may hang.
"""

import contextlib
import io
import mmap
import os
import pickle
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from concurrent.futures import CancelledError
from itertools import accumulate
from multiprocessing.connection import Connection, Pipe
from typing import Any, BinaryIO, Generic, TypeVar

import torch

from fmdiff.machine import processes
from fmdiff.machine.processes import log

T = TypeVar("T")
START = 2.0  # seconds of CPU that it takes to start a process, most of them to import torch
SHARE = 0.1  # of the CPU time of this process: what takes less gains nothing from another
ALIGNMENT = 64  # bytes
FAILURE = b""  # the answer if the function raises


class Aside(Generic[T]):
    """aside(*arguments) is function(*arguments), computed in another process where that pays.

    Arguments and result are tensors on the CPU, or what else can be pickled, and the result is a
    function of the arguments alone. At first the calling threads compute. Once that has taken them
    START seconds of CPU, and SHARE of all CPU time of this process, each calling thread starts a
    process, and computes until it is ready. The process is used if its first result has the same
    bytes as the thread's.

    The calling threads go on by themselves if the function cannot be pickled, or imported by the
    process, if it raises an exception there, and if the process ends. The last is logged: `name`
    says what the process is for. close() ends the processes, and CancelledError is raised in the
    threads that wait for them. A process never outlives this one, however this one ends.
    """

    def __init__(self, function: Callable[..., T], name: str) -> None:
        self.function, self.name, self.start = function, name, START
        self.spent, self.began = 0.0, time.process_time()  # CPU seconds
        self.lock = threading.Lock()
        self.alone = False  # whether the threads stay by themselves
        self.processes: dict[int, Process] = {}  # by thread

    def __call__(self, *arguments: Any) -> T:
        process = self.processes.get(threading.get_ident())
        if process is not None and process.ready():
            return self._ask(process, arguments)
        before = time.thread_time()
        result = self.function(*arguments)
        with self.lock:
            self.spent += time.thread_time() - before
        if process is None:
            self._begin(arguments, result)
        elif process.refuses:
            self.alone = True
        return result

    def _begin(self, arguments: tuple[Any, ...], result: T) -> None:
        """Start a process for this thread, if that pays. It computes this result once more."""
        with self.lock:
            share = self.spent / max(time.process_time() - self.began, 1e-9)
            if self.alone or self.spent < self.start or share < SHARE:
                return
            try:
                process = Process(self.function, arguments, result)
            except Exception:  # whatever pickle raises of a class of the user's
                self.alone = True
            else:
                self.processes[threading.get_ident()] = process

    def _ask(self, process: "Process", arguments: tuple[Any, ...]) -> T:
        """The result of a process, or of this thread if the process ends or raises."""
        try:
            answer = process.ask(arguments)
        except (EOFError, OSError) as error:
            with self.lock:
                if self.processes.pop(threading.get_ident(), None) is not process:
                    raise CancelledError from error  # close() has ended it
                first, self.alone = not self.alone, True
            if first:
                how = processes.ending(process.end(seconds=1))
                log.warning("the process that %s %s; threads do so from now on", self.name, how)
            return self.function(*arguments)
        if answer == FAILURE:
            self.alone = process.refuses = True
            return self.function(*arguments)
        return pickle.loads(answer)

    def close(self) -> None:
        """End the processes, and start no more."""
        with self.lock:
            self.alone = True
            ended, self.processes = list(self.processes.values()), {}
        for process in ended:
            process.end()


class Process:
    """Another process that computes `function`, and first `function(*arguments)`, for one thread.

    Raises what pickle raises for a function that cannot be pickled, and OSError.
    """

    def __init__(
        self, function: Callable[..., Any], arguments: tuple[Any, ...], result: Any
    ) -> None:
        self.expected: bytes | None = dumps(result)  # None once the process has answered this
        self.refuses = False
        task = dumps((function, torch.get_num_threads()))
        self.here, there = Pipe()
        self.memory = Memory(_unnamed())
        files = there.fileno(), self.memory.file.fileno()
        # what the caller can import, the process can
        code = (
            f"import sys; sys.path[:] = {sys.path!r}\n"
            "from fmdiff.machine.aside import serve\n"
            f"serve({os.getpid()}, {files[0]}, {files[1]})"
        )
        # in a session of its own, which Ctrl-C does not reach
        self.popen = subprocess.Popen(
            [sys.executable, "-P", "-c", code],
            pass_fds=files,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
        there.close()
        try:
            self.here.send_bytes(task)
            self.here.send_bytes(self.memory.write(arguments))
        except BaseException:
            self.end()
            raise

    def ready(self) -> bool:
        """Whether the process has given the expected result, and so may be asked."""
        if self.expected is None:
            return True
        if not self.refuses and self.here.poll():
            try:
                self.refuses = self.here.recv_bytes() != self.expected
            except (EOFError, OSError):
                self.refuses = True
            if not self.refuses:
                self.expected = None
                return True
            self.end()
        return False

    def ask(self, arguments: tuple[Any, ...]) -> bytes:
        """The pickled result, or FAILURE. Raises EOFError or OSError if the process has ended."""
        self.here.send_bytes(self.memory.write(arguments))
        return self.here.recv_bytes()

    def end(self, seconds: float = 0.0) -> int:
        """Kill the process if it has not ended within these seconds. Returns its exit code."""
        with contextlib.suppress(subprocess.TimeoutExpired):
            return self.popen.wait(seconds)
        self.popen.kill()
        return self.popen.wait()


def serve(parent: int, connection: int, memory: int) -> None:
    """Answer process `parent` until it ends: the work of the other process."""
    processes.end_with(parent)
    pipe, shared = Connection(connection), Memory(os.fdopen(memory, "r+b", 0))
    try:
        function, threads = pickle.loads(pipe.recv_bytes())
        torch.set_num_threads(threads)
        while True:
            arguments = shared.read(pipe.recv_bytes())
            try:
                answer = dumps(function(*arguments))
            except Exception:
                answer = FAILURE
            pipe.send_bytes(answer)
    except (EOFError, OSError):
        return


class Memory:
    """Writes objects for another process. The elements of tensors lie in memory that both map."""

    def __init__(self, file: BinaryIO) -> None:
        self.file = file
        self.bytes: mmap.mmap | None = None

    def write(self, thing: Any) -> bytes:
        """The pickle of a thing, without the elements of its tensors. Those are in `file`."""
        buffers: list[pickle.PickleBuffer] = []
        message = dumps(thing, buffers.append)
        parts = [buffer.raw() for buffer in buffers]
        lengths = [len(part) for part in parts]
        for view, part in zip(self._views(lengths), parts, strict=True):
            view[:] = part
        return pickle.dumps((message, lengths))

    def read(self, message: bytes) -> Any:
        """What the other process has written. It lasts until that writes again."""
        inner, lengths = pickle.loads(message)
        return pickle.loads(inner, buffers=self._views(lengths))

    def _views(self, lengths: list[int]) -> list[memoryview]:
        """Pieces of these lengths, one after another. The file grows to hold them."""
        starts = [0, *accumulate(-(-n // ALIGNMENT) * ALIGNMENT for n in lengths)]
        size = starts.pop()
        if size and (self.bytes is None or len(self.bytes) < size):
            if os.fstat(self.file.fileno()).st_size < size:
                self.file.truncate(size)
            self.bytes = mmap.mmap(self.file.fileno(), size)
        view = memoryview(self.bytes or b"")
        return [view[start : start + n] for start, n in zip(starts, lengths, strict=True)]


class _Pickler(pickle.Pickler):
    """Pickles tensors on the CPU as arrays, whose elements may be kept apart."""

    def reducer_override(self, thing: Any) -> Any:
        if type(thing) is torch.Tensor:
            return torch.from_numpy, (thing.numpy(),)
        return NotImplemented


def dumps(thing: Any, apart: Callable[[pickle.PickleBuffer], Any] | None = None) -> bytes:
    """The pickle of a thing; the elements of tensors are given to `apart`, if there is one."""
    stream = io.BytesIO()
    _Pickler(stream, 5, buffer_callback=apart).dump(thing)
    return stream.getvalue()


def _unnamed() -> BinaryIO:
    """A file without a name, in memory where the system can: it goes when it is closed."""
    if sys.platform == "linux":
        return os.fdopen(os.memfd_create("fmdiff"), "r+b", 0)
    return tempfile.TemporaryFile(buffering=0)
