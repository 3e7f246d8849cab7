"""The device and the number of threads that a command computes with."""

import contextlib
import os
from pathlib import Path

import torch

from fmdiff.errors import FmdiffError

# with fewer multiply-adds, a forward pass is too short for a second thread to help
ONE_THREAD = 2e8


def pick(name: str) -> torch.device:
    """The device that `device=` names. auto is CUDA if the machine has it, else the CPU.

    Raises FmdiffError for a device that this machine does not have.
    """
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    device = torch.device(name)
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise FmdiffError(
            f"device={name}: this machine has {torch.cuda.device_count()} CUDA devices; "
            "choose device=cpu or device=auto"
        )
    return device


def memory() -> int:
    """The bytes of main memory of this machine, or of its control group if that is limited."""
    whole = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    with contextlib.suppress(OSError, ValueError):  # no control group, or "max"
        return min(whole, int(Path("/sys/fs/cgroup/memory.max").read_text("utf-8")))
    return whole


def enough(where: torch.device, count: int, key: str) -> None:
    """Raises FmdiffError if this machine does not have `count` devices for the option `key`."""
    if where.index is not None and count > 1:
        raise FmdiffError(f"device={where} is one device: {key} must be 1")
    if where.type == "cuda" and count > torch.cuda.device_count():
        raise FmdiffError(
            f"{key}={count}: this machine has {torch.cuda.device_count()} CUDA devices; choose "
            f"that many at most, or device=cpu"
        )


def cores() -> int:
    """The number of CPU cores that this process may use."""
    return (
        len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    )


def threads(parameters: int, batch_size: int, shape: tuple[int, ...]) -> int:
    """The number of threads for `threads=null`: one for tiny networks, all cores for others.

    On one machine it depends on the network and the batch alone, so equal settings give equal
    bits. parameters x batch x pixels bounds the multiply-adds of a forward pass.
    """
    pixels = 1
    for size in shape[1:]:
        pixels *= size
    return 1 if parameters * batch_size * pixels < ONE_THREAD else cores()
