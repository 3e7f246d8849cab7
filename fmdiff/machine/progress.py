"""How far a long job is."""

import time
from types import TracebackType


class Bar:
    """A progress bar on a terminal, a line every ten seconds elsewhere."""

    def __init__(self, n: int, unit: str = "sample", shown: bool = True) -> None:
        from tqdm import tqdm

        self.bar = tqdm(total=n, unit=unit, disable=None if shown else True, leave=False)
        self.shown = shown
        self.unit, self.n, self.done, self.begin = unit, n, 0, time.monotonic()
        self.said = self.begin

    def __call__(self, done: int) -> None:
        self.bar.update(done)
        self.done += done
        now = time.monotonic()
        if self.shown and self.bar.disable and now - self.said > 10:
            left = (now - self.begin) * (self.n / self.done - 1)
            print(f"{self.done:,}/{self.n:,} {self.unit}s, {left:.0f} s left", flush=True)
            self.said = now

    def close(self) -> None:
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
