"""The cost of a network in operations and memory, and the peak rates of devices."""

import contextlib
import copy
import re
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor, nn

from fmdiff.condition import Form, Given, given

Forms = Mapping[str, Form] | None

# dense peak rates in 10^12 operations a second, by part of the device's name: 16-bit formats with
# float32 sums, tf32, fp32. Source: the makers' data sheets, without sparsity.
PEAKS = {
    "B200": (2250, 1125, 75),
    "H200": (989, 494, 67),
    "H100 PCIe": (756, 378, 51),
    "H100 NVL": (835, 417, 60),
    "H100": (989, 494, 67),
    "A100": (312, 156, 19.5),
    "L40S": (362, 183, 91.6),
    "L4": (121, 60, 30.3),
    "A10": (125, 62.5, 31.2),
    "V100": (125, 15.7, 15.7),
    "T4": (65, 8.1, 8.1),
    "RTX 5090": (209.5, 104.8, 104.8),
    "RTX 4090": (165.2, 82.6, 82.6),
    "RTX 3090": (71, 35.6, 35.6),
}


WORKSPACE = 64_000_000  # bytes of a training step for buffers and kernels, with head-room


def peak(device: torch.device, precision: str) -> float | None:
    """The peak operations per second of a device at a precision; None if PEAKS lacks it."""
    if device.type != "cuda":
        return None
    name = torch.cuda.get_device_name(device)
    column = {"fp32": 2, "tf32": 1}.get(precision, 0)
    return next((1e12 * rates[column] for part, rates in PEAKS.items() if part in name), None)


def example(
    shape: tuple[int, ...],
    classes: int,
    n: int,
    device: torch.device | str,
    conditions: Forms = None,
) -> tuple[Given, ...]:
    """Arguments of a network: x_t (n, *shape), t (n,) and, with classes or conditions, y."""
    x_t, t = torch.zeros(n, *shape, device=device), torch.zeros(n, device=device)
    label = torch.zeros(n, dtype=torch.long, device=device) if classes else None
    forms = (conditions or {}).items()
    y = given(label, {name: torch.zeros(n, *form.shape, device=device) for name, form in forms})
    return (x_t, t) if y is None else (x_t, t, y)


def operations(
    net: nn.Module, shape: tuple[int, ...], classes: int, conditions: Forms = None
) -> int:
    """The additions and multiplications of one sample's forward pass in products and convolutions.

    A training step takes three times as many, as the backward pass takes two more. The tensors are
    on the meta device, so nothing is computed.
    """
    from torch.utils.flop_counter import FlopCounterMode

    hollow = copy.deepcopy(net).to("meta").eval()
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        hollow(*example(shape, classes, 1, "meta", conditions))
    return counter.get_total_flops()


def activations(
    net: nn.Module, shape: tuple[int, ...], classes: int, conditions: Forms = None
) -> int:
    """The bytes that one sample's forward pass keeps for the backward pass, in its precision."""
    hollow = copy.deepcopy(net).to("meta").train()
    own = {p.untyped_storage()._cdata for p in hollow.parameters()}
    storages: dict[int, torch.UntypedStorage] = {}

    def keep(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage._cdata not in own:
            storages[storage._cdata] = storage  # keeps it alive, so that its address is unique
        return tensor

    def sizes(n: int) -> int:
        storages.clear()
        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            hollow(*example(shape, classes, n, "meta", conditions))
        return sum(storage.nbytes() for storage in storages.values())

    return sizes(2) - sizes(1)


def kept(
    net: nn.Module,
    shape: tuple[int, ...],
    classes: int,
    half: bool,
    conditions: Forms = None,
) -> int:
    """The bytes of `activations` in the precision of training.

    In a 16-bit precision (`half`) they take about 0.6 of float32's.
    """
    whole = activations(net, shape, classes, conditions)
    return whole * 6 // 10 if half else whole


def memory(
    net: nn.Module,
    shape: tuple[int, ...],
    classes: int,
    samples: int,
    copies: int,
    half: bool,
    conditions: Forms = None,
    moments: int = 2,
) -> int:
    """The estimated bytes of a training step, without the data, Python and its packages.

    The sum of weights, gradients, the optimiser's `moments` of each weight, `copies` averaged
    networks (one is kept in any case, to sample from), activations of `samples` at a time, and
    workspace. The workspace holds gradients of activations and copies in other layouts. It took
    up to 0.4 of the activations of MLPs and U-Nets on a CPU, less of transformers', and 30 MB.
    """
    weights = sum(p.numel() * p.element_size() for p in net.parameters())
    inner = kept(net, shape, classes, half, conditions) * samples
    return weights * (2 + moments + max(1, copies)) + inner * 3 // 2 + WORKSPACE


class Growth:
    """Measures by how much the memory of this process grows at most, from here on."""

    def __init__(self) -> None:
        with contextlib.suppress(OSError):  # Linux: the largest is what there is now
            Path("/proc/self/clear_refs").write_text("5", encoding="utf-8")
        self.before = _resident("VmRSS")

    def __call__(self, device: torch.device) -> int | None:
        """The bytes, on a CUDA device with what its allocator reserves; None if unknown."""
        if device.type == "cuda":
            return torch.cuda.max_memory_reserved(device)
        largest = most()
        return None if largest is None or self.before is None else largest - self.before


def most() -> int | None:
    """The most memory that this process has had at once, in bytes; None if unknown."""
    return _resident("VmHWM")


def _resident(name: str) -> int | None:
    """A size that /proc/self/status states; None on other systems than Linux."""
    try:
        text = Path("/proc/self/status").read_text(encoding="utf-8")
    except OSError:
        return None
    line = re.search(rf"{name}:\s*(\d+) kB", text)
    return 1024 * int(line[1]) if line else None
