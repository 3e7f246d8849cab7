"""What a device is called, what it holds, and the rates that it reaches on plain work."""

import os
import platform
import time
from collections.abc import Callable
from typing import Any

import torch


def describe(where: torch.device) -> dict[str, Any]:
    """The device and the software, for the head of the table."""
    about = {
        "python": platform.python_version(),
        "torch": torch.__version__,
        "cores": os.cpu_count(),
        "devices": torch.cuda.device_count(),
        "device": f"no GPU, {platform.machine()}",
        "memory": None,
    }
    if where.type == "cuda":
        properties = torch.cuda.get_device_properties(where)
        about |= {"device": properties.name, "memory": properties.total_memory}
    return about


def ceilings(where: torch.device) -> dict[str, float]:
    """Operations a second of a large bfloat16 product, and bytes a second of a large copy.

    Random factors, because zeros are faster. On a CPU both are small.
    """
    large = where.type == "cuda"
    size, count = (8192, 2**30) if large else (256, 2**20)
    a, b = (torch.randn(size, size, device=where).bfloat16() for _ in range(2))
    source = torch.empty(count, dtype=torch.uint8, device=where).random_()
    target = torch.empty_like(source)
    return {
        "product": 2 * size**3 / _seconds(lambda: a @ b, where),
        "copy": 2 * count / _seconds(lambda: target.copy_(source), where),  # read and written
    }


def _seconds(work: Callable[[], object], where: torch.device, repeats: int = 10) -> float:
    def wait() -> None:
        if where.type == "cuda":
            torch.cuda.synchronize(where)

    for _ in range(3):
        work()
    wait()
    begin = time.perf_counter()
    for _ in range(repeats):
        work()
    wait()
    return (time.perf_counter() - begin) / repeats
