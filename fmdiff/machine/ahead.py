"""Computes the inputs of later steps in threads while the current step runs."""

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Generic, TypeVar

from fmdiff.machine.device import cores

T = TypeVar("T")
SPARE = max(1, min(4, cores() - 1))  # threads beside the one that runs the steps


class Ahead(Generic[T]):
    """ahead(k) is compute(k) for integers k; threads compute k + 1 ... k + depth meanwhile.

    compute must be a function of k alone, so that results do not depend on the threads. It pays
    if compute releases Python's lock, as SciPy's and torch's longer calls do. The threads call
    `beside` for it, which gives the same, for instance with the help of another process.

    While a thread still computes k, ahead(k) computes a later step that no thread has begun. It
    raises the exception of compute(k), and an exception of a step that is never requested is not
    seen. A k that is not under way is computed at once, and the work on other steps is dropped.
    The first call starts the threads. close() ends them, and a later call starts new ones.
    """

    def __init__(
        self,
        compute: Callable[[int], T],
        depth: int,
        workers: int = SPARE,
        beside: Callable[[int], T] | None = None,
    ) -> None:
        self.compute, self.depth, self.workers = compute, depth, workers
        self.beside = beside or compute
        self.pool: ThreadPoolExecutor | None = None
        self.pending: dict[int, Future[T]] = {}

    def __call__(self, k: int) -> T:
        window = range(k, k + self.depth + 1)
        for step in self.pending.keys() - window:
            self.pending.pop(step).cancel()
        future = self.pending.pop(k, None)
        if self.depth and self.pool is None:
            self.pool = ThreadPoolExecutor(self.workers, "fmdiff-ahead")
        for step in window[1:]:
            if step not in self.pending:
                assert self.pool is not None
                self.pending[step] = self.pool.submit(self.beside, step)
        if future is None or future.cancel():
            return self.compute(k)
        for step in window[1:]:
            if future.done():
                break
            if self.pending[step].cancel():
                self.pending[step] = self._computed(step)
        return future.result()

    def _computed(self, k: int) -> Future[T]:
        """compute(k) or its exception, as of a thread that has ended."""
        future: Future[T] = Future()
        try:
            future.set_result(self.compute(k))
        except Exception as error:
            future.set_exception(error)
        return future

    def close(self) -> None:
        """Drop the work under way, and wait for the threads to end."""
        self.pending.clear()
        if self.pool is not None:
            self.pool.shutdown(cancel_futures=True)
            self.pool = None
