"""Run an fmdiff command and write what it costs: scaling_probe.py OUT.json COMMAND ...

The command is the real one. The file has its seconds of clock and of CPU until the first step, per
sample after that, and the most memory it had at once.
"""

import json
import resource
import sys
import time
from pathlib import Path
from typing import Any

from fmdiff import cli
from fmdiff.commands.table import COMMANDS
from fmdiff.machine import startup

WARM = 2  # steps or batches that are not counted, if there are more
marks: list[tuple[float, float, int]] = []  # clock and CPU at the start of a step, its samples
first: list[tuple[float, float]] = []  # seconds of clock and CPU until the first step


def mark(samples: int) -> None:
    """A step of so many samples begins, or with 0 samples the last one has ended."""
    if not first:
        first.append(startup.elapsed())
    marks.append((time.perf_counter(), time.process_time(), samples))


def watch_training() -> None:
    """Mark the Lightning batches: their data are drawn together."""
    from fmdiff.training.module import Training

    step = Training.training_step

    def training_step(self: Any, batch: tuple[int, int], batch_idx: int) -> None:
        mark(self.data.batch_size * (batch[1] - batch[0]))
        step(self, batch, batch_idx)
        if batch[1] == self.options.max_steps:
            mark(0)

    Training.training_step = training_step  # type: ignore[method-assign]


def watch_sampling() -> None:
    """Mark the batches."""
    from fmdiff.sampling import Sampler

    carry, draw = Sampler.carry, Sampler.draw

    def marked(self: Any, field: Any, layout: Any, rows: range, *more: Any) -> Any:
        mark(len(rows))
        return carry(self, field, layout, rows, *more)

    def drawn(self: Any, *given: Any, **more: Any) -> Any:
        samples = draw(self, *given, **more)
        mark(0)
        return samples

    Sampler.carry, Sampler.draw = marked, drawn  # type: ignore[method-assign]


def watched(name: str) -> None:
    """Put the marks into a command when it starts, so that it imports what it would import."""
    command = COMMANDS[name]

    def run(cfg: Any, folder: Path | None) -> None:
        {"train": watch_training, "sample": watch_sampling}[name]()
        command(cfg, folder)

    COMMANDS[name] = run


def most() -> dict[str, float]:
    """The most bytes of main memory of this process and of the others, and of CUDA memory."""
    import torch

    from fmdiff.machine import cost

    return {
        "memory": cost.most() or 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss,
        "others": 1024 * resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss,
        "cuda": torch.cuda.max_memory_reserved() if torch.cuda.is_available() else 0,
    }


def main() -> int:
    out, name, *words = sys.argv[1:]
    watched(name)
    code = cli.main([name, *words])
    if code == 0:
        warm = max(0, min(WARM, len(marks) - 2))
        samples = sum(count for *_, count in marks[warm:])
        clock, cpu = (marks[-1][i] - marks[warm][i] for i in (0, 1))
        figures = {
            "clock": clock / samples,
            "cpu": cpu / samples,
            "samples": samples,
            "startup": first[0],
            **most(),
        }
        Path(out).write_text(json.dumps(figures), encoding="utf-8")
    return code


if __name__ == "__main__":
    sys.exit(main())
