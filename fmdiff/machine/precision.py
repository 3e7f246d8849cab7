"""How a network is computed: precision, compilation, memory layout, recomputation.

These options change results only by rounding.
"""

import logging
import os
import shutil
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from importlib.util import find_spec
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from fmdiff.condition import Given
from fmdiff.errors import FmdiffError

log = logging.getLogger("fmdiff")

DTYPES = {"fp32": None, "tf32": None, "bf16": torch.bfloat16, "fp16": torch.float16}


def precise(name: str, device: torch.device, group: str = "") -> torch.dtype | None:
    """The dtype to which matrix products and convolutions are cast; None casts nothing.

    fp32 is IEEE's float32 everywhere. tf32 lets CUDA round the factors of products to 10 bits, and
    this sets it for the whole process. group: the text before `precision=` on the command line.
    Raises FmdiffError if the device has no such units.
    """
    if device.type != "cuda":
        if name in ("fp16", "tf32"):
            raise FmdiffError(f"{group}precision={name} needs a CUDA device: choose fp32 or bf16")
        return DTYPES[name]
    if name == "bf16" and not torch.cuda.is_bf16_supported(including_emulation=False):
        raise FmdiffError(
            f"{group}precision=bf16: {torch.cuda.get_device_name(device)} has no bfloat16 units; "
            "choose fp16 or fp32"
        )
    torch.set_float32_matmul_precision("high" if name == "tf32" else "highest")
    torch.backends.cudnn.allow_tf32 = name == "tf32"
    return DTYPES[name]


def cast(device: torch.device, dtype: torch.dtype | None) -> AbstractContextManager[Any]:
    """A context in which the device casts to dtype where that is safe; None casts nothing."""
    return nullcontext() if dtype is None else torch.autocast(device.type, dtype)


def compiles(choice: bool | None, device: torch.device, group: str = "") -> bool:
    """Whether to compile. null compiles on CUDA, or warns why that is not possible.

    group: the text before `compile=` on the command line. Raises FmdiffError for compile=true if
    the machine cannot compile.
    """
    lacks = None
    if device.type == "cuda":
        major, minor = torch.cuda.get_device_capability(device)
        if major < 7:
            lacks = f"a device of compute capability 7.0 (this one has {major}.{minor})"
        elif find_spec("triton") is None:
            lacks = "the package triton"
    compilers = os.environ.get("CXX", "c++"), "g++", "clang++"
    if lacks is None and not any(map(shutil.which, compilers)):
        lacks = "a C++ compiler"
    if choice is None and device.type == "cuda" and lacks:
        log.warning("not compiled: that needs %s", lacks)
    if choice and lacks:
        raise FmdiffError(f"{group}compile=true needs {lacks}: choose {group}compile=false")
    return not lacks and (device.type == "cuda" if choice is None else choice)


def by_pixel(choice: bool | None, net: nn.Module, device: torch.device) -> bool:
    """Whether convolutions of images use the channels-last layout. null uses it on CUDA.

    On CPUs the speed differs by less than 10 %. Raises FmdiffError for true without any.
    """
    convolves = any(isinstance(part, nn.Conv2d) for part in net.modules())
    if choice and not convolves:
        raise FmdiffError(
            f"trainer.channels_last=true: {type(net).__name__} has no convolutions of images; "
            "leave it null"
        )
    return convolves and (device.type == "cuda" if choice is None else choice)


class FastNet(nn.Module):
    """A network that computes in another precision than that of its inputs and outputs.

    dtype: the dtype that products are cast to; None casts nothing. compiled: run the network
    through torch.compile.
    """

    def __init__(self, net: nn.Module, dtype: torch.dtype | None, compiled: bool) -> None:
        super().__init__()
        self.net, self.dtype = net, dtype
        self.run: Any = torch.compile(net) if compiled else net

    def forward(self, x_t: Tensor, t: Tensor, y: Given | None = None, **further: Tensor) -> Tensor:
        with cast(x_t.device, self.dtype):
            return self.run(x_t, t, y, **further).to(x_t.dtype)


def hasten(field: Any, precision: str, compiled: bool | None, device: torch.device) -> None:
    """Let a field's network compute in a precision, compiled or not. Its state keeps its dtype.

    A field without a network does not change. Raises FmdiffError as `precise` and `compiles` do.
    """
    net = field.net
    if net is None or isinstance(net, FastNet):
        return
    dtype, compiled = precise(precision, device), compiles(compiled, device)
    if by_pixel(None, net, device):
        net.to(memory_format=torch.channels_last)
    if dtype or compiled:
        field.net = FastNet(net, dtype, compiled)


def recompute(net: nn.Module) -> None:
    """Recompute the inside of every block of the network in the backward pass.

    A block is an element of a ModuleList. Only the activations between blocks are kept in memory,
    at the price of a second forward pass. Source: Chen et al. 2016, arXiv:1604.06174.
    Raises FmdiffError for a network without blocks.
    """
    if not any(isinstance(part, nn.ModuleList) for part in net.modules()):
        raise FmdiffError(
            f"trainer.recompute=true: {type(net).__name__} has no blocks to compute anew; "
            "choose trainer.recompute=false"
        )
    for part in list(net.modules()):
        if isinstance(part, nn.ModuleList):
            for block in part:
                if isinstance(block, nn.ModuleList):
                    continue
                # a bound method, so a deep copy of the network has its own
                block.forward = partial(checkpoint, block.forward, use_reentrant=False)
