"""Shows the progress of a long job."""

import time
from types import TracebackType


class Bar:
    """A progress bar on a terminal; elsewhere, a line every ten seconds.

    n: the total number of units. visible: False for a process that shows nothing.
    """

    def __init__(self, n: int, unit: str = "sample", visible: bool = True) -> None:
        from tqdm import tqdm

        self.bar = tqdm(total=n, unit=unit, disable=None if visible else True, leave=False)
        self.unit, self.n, self.count, self.visible = unit, n, 0, visible
        self.begin = self.last_line = time.monotonic()

    def __call__(self, count: int) -> None:
        """Record that `count` more units are finished."""
        self.bar.update(count)
        self.count += count
        now = time.monotonic()
        if self.visible and self.bar.disable and now - self.last_line > 10:
            left = (now - self.begin) * (self.n / self.count - 1)
            print(f"{self.count:,}/{self.n:,} {self.unit}s, {left:.0f} s left", flush=True)
            self.last_line = now

    def close(self) -> None:
        """Remove the bar from the terminal."""
        self.bar.close()

    def __enter__(self) -> "Bar":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()
