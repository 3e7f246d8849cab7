"""Where training and sampling bend along an axis, and why: found by experiments on the network.

A cause is found by taking it away. Smaller parts of the same batch leave more of it in the caches;
where memory that is asked for anew is the reason, it is the system's time that grows. A U-Net
without attention has no square of the pixels. What does not depend on the batch is split into
operators that are started (their number times the time of one on a single number) and the update
of the weights, beside the bandwidth of a plain copy. Two processes that exchange nothing tell what
is due to shared memory and cores, and the rest is due to the exchange.
"""

import os
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from typing import Any

import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from fmdiff.build import named
from fmdiff.machine import cost

ENOUGH = 0.9  # share of the best speed from which an axis is said to have no bend
LOSS = 0.05  # of the best speed, that needs a reason
REPEATS = 5
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


def net_of(channels: int, size: int, attention: bool = True) -> nn.Module:
    """The U-Net of a cell."""
    keys: dict[str, Any] = {"channels": channels, "head_channels": channels}
    if not attention:
        keys["attention"] = []
    net = named("model", "unet", shape=(3, size, size), classes=0, **keys)
    return net.to(DEVICE)


def work(net: nn.Module, batch: int, size: int, train: bool, parts: int = 1) -> Callable[[], None]:
    """A forward pass, of training with its backward pass, of a batch in some parts."""
    inputs = [cost.example((3, size, size), 0, batch // parts, DEVICE) for _ in range(parts)]

    def run() -> None:
        for part in inputs:
            with torch.set_grad_enabled(train):
                loss = net(*part).square().mean()
            if train:
                loss.backward()

    return run


def seconds(cases: Mapping[str, Callable[[], Any]], repeats: int = REPEATS) -> dict[str, float]:
    """The median seconds of each case, which take turns: of CPU, or of events on CUDA."""
    spent: dict[str, list[float]] = {name: [] for name in cases}
    for k in range(repeats + 1):
        for name, case in cases.items():
            value = _events(case) if DEVICE == "cuda" else _cpu(case)
            if k:  # the first ones warm up
                spent[name].append(value)
    return {name: statistics.median(values) for name, values in spent.items()}


def _cpu(case: Callable[[], Any]) -> float:
    before = time.process_time()
    case()
    return time.process_time() - before


def _events(case: Callable[[], Any]) -> float:
    begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    torch.cuda.synchronize()
    begin.record()
    case()
    end.record()
    torch.cuda.synchronize()
    return begin.elapsed_time(end) / 1e3


class Operators(TorchDispatchMode):
    """Counts the operators that are started."""

    count = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.count += 1
        return func(*args, **(kwargs or {}))


def operators(case: Callable[[], Any]) -> int:
    """How many operators a case starts."""
    with Operators() as mode:
        case()
    return mode.count


def start_of_operator() -> float:
    """The seconds of CPU that it takes to start an operator, by one on a single number."""
    number = torch.ones(1, device=DEVICE)
    return min(_cpu(lambda: [number.neg() for _ in range(1000)]) for _ in range(5)) / 1000


def system_share(case: Callable[[], Any], repeats: int = 3) -> float:
    """The share of a case's CPU time that the system takes, on CPUs mostly for fresh pages."""
    case()
    before = os.times()
    for _ in range(repeats):
        case()
    after = os.times()
    user, system = after.user - before.user, after.system - before.system
    return system / max(user + system, 1e-9)


# --- the axes -------------------------------------------------------------------------------


def bend(values: Sequence[float], speeds: Sequence[float], unit: str) -> str:
    """Where speeds come near the best of them, and from where on they fall."""
    best = max(speeds)
    peak = speeds.index(best)
    first = next(i for i, speed in enumerate(speeds) if speed >= ENOUGH * best)
    text = f"best at {values[peak]:g} {unit}, {ENOUGH:.0%} of it from {values[first]:g} on"
    if speeds[-1] < (1 - LOSS) * best:
        text += f", {speeds[-1] / best:.0%} of it at {values[-1]:g}"
    return text


def along_batch(train: bool, along: Sequence[Any], speeds: Sequence[float]) -> str:
    """Samples a second: what does not depend on the batch, and what large batches lose."""
    small, large = along[0], along[-1]
    net = net_of(small.channels, small.size)
    parts = large.batch // 16
    one, whole = (work(net, cell.batch, cell.size, train) for cell in (small, large))
    middle = work(net, 16, large.size, train)
    in_parts = work(net, large.batch, large.size, train, parts)
    spent = seconds({"one": one, "whole": whole, "middle": middle, "parts": in_parts})
    count, start = operators(one), start_of_operator()
    each = (spent["middle"] - spent["one"]) / 15
    fixed = max(0.0, spent["one"] - each)
    text = (
        f"{bend([c.batch for c in along], speeds, 'samples')}; of {1e3 * spent['one']:.3g} ms for "
        f"one sample {1e3 * fixed:.3g} do not depend on their number, and starting {count} "
        f"operators takes {1e3 * count * start:.3g}"
    )
    if train:
        text += f"; the update of the weights takes {1e3 * update(net)[0]:.3g} more"
    lost = spent["whole"] / parts / spent["middle"] - 1
    saved = 1 - spent["parts"] / spent["whole"]
    pages = system_share(whole) - system_share(middle)
    cause = "nothing to explain" if lost < LOSS else "neither pages nor caches are why"
    if lost > LOSS and max(pages, saved) > lost / 2:
        cause = "fresh pages are why" if pages > saved / 2 else "the caches are why"
    return text + (
        f"; a sample of {large.batch} costs {lost:+.0%} beside one of 16, {saved:.0%} less in "
        f"{parts} parts, and the system's share of the time is {pages:+.0%}: {cause}"
    )


def along_resolution(train: bool, along: Sequence[Any], speeds: Sequence[float]) -> str:
    """Pixels a second: attention's square and the caches."""
    pixels = [speed * cell.size**2 for speed, cell in zip(speeds, along, strict=True)]
    large, usual = along[-1], max(c.size for c in along[:-1])
    cases, kinds = {}, {"with": True, "without": False}
    for name, attention in kinds.items():
        for size in (usual, large.size):
            net = net_of(large.channels, size, attention)
            cases[f"{name} {size}"] = work(net, 4, size, train)
    net = net_of(large.channels, large.size)
    cases["parts"] = work(net, 4, large.size, train, 4)
    spent = seconds(cases, 3)
    ratio = (large.size / usual) ** 2
    growth = {n: spent[f"{n} {large.size}"] / spent[f"{n} {usual}"] / ratio - 1 for n in kinds}
    whole = spent[f"with {large.size}"]
    share, saved = 1 - spent[f"without {large.size}"] / whole, 1 - spent["parts"] / whole
    square = growth["with"] - growth["without"]
    cause = "attention's square" if square > saved else "the caches"
    cause = cause if max(square, saved) > LOSS else "neither"
    return (
        f"{bend([c.size for c in along], pixels, 'px by pixels a second')}; from {usual} to "
        f"{large.size} px a pixel costs {growth['with']:+.0%}, without attention "
        f"{growth['without']:+.0%} (it is {share:.0%} at {large.size}), and one image at a time "
        f"saves {saved:.0%}: {cause}"
    )


def along_parameters(train: bool, along: Sequence[Any], speeds: Sequence[float]) -> str:
    """Operations a second: starting operators below, the update of the weights above."""
    rates, shares, start = [], [], start_of_operator()
    for cell, speed in zip(along, speeds, strict=True):
        net = net_of(cell.channels, cell.size)
        flops = cost.operations(net, (3, cell.size, cell.size), 0) * (3 if train else 1)
        rates.append(flops * speed / 1e9)
        case = work(net, cell.batch, cell.size, train)
        spent = seconds({"step": case}, 2)["step"]
        shares.append(operators(case) * start / spent)
    text = (
        f"{bend([c.channels for c in along], rates, 'channels by operations a second')} "
        f"({', '.join(f'{r:.3g}' for r in rates)} GFLOP/s where plan=true counts them); starting "
        f"operators is {shares[0]:.0%} of a step at {along[0].channels} and {shares[-1]:.0%} at "
        f"{along[-1].channels}"
    )
    if not train:
        return text
    took, rate = update(net)
    plain = copy_rate()
    return text + (
        f"; the update is {took / (spent + took):.0%} of it there, at {rate:.3g} GB/s beside "
        f"{plain:.3g} of a copy: bound by {'memory' if rate > plain / 2 else 'computing'}"
    )


def along_processes(train: bool, along: Sequence[Any], speeds: Sequence[float]) -> str:
    """Samples a second: the exchange of gradients, and the memory and cores that are shared."""
    one, two = along[0], along[-1]
    share = one.batch // two.processes if train else one.batch
    if DEVICE == "cuda":
        return f"{two.processes} processes: {speeds[-1] / speeds[0]:.2f} of the speed of one"
    with ProcessPoolExecutor(2, get_context("spawn")) as pool:
        job = (one.channels, share, one.size, train)
        list(pool.map(busy, [job] * 2))  # imports
        alone = next(pool.map(busy, [job]))
        beside = list(pool.map(busy, [job] * 2))
    net = net_of(one.channels, one.size)
    spent = seconds({"whole": work(net, one.batch, one.size, train)})["whole"]
    small = seconds({"share": work(net, share, one.size, train)})["share"]
    halves = small * one.batch / share / spent - 1
    slower = statistics.mean(beside) / alone - 1
    return (
        f"{two.processes} processes have {speeds[-1] / speeds[0]:.2f} of the speed of one; two "
        f"that exchange nothing are {slower:+.0%} slower side by side than alone (memory and "
        f"cores), a sample in a batch of {share} costs {halves:+.0%}; the rest is the exchange"
    )


def busy(job: tuple[int, int, int, bool]) -> float:
    """Seconds by the clock of a step. job: channels, batch, pixels, training."""
    torch.set_num_threads(1)
    channels, batch, size, train = job
    case = work(net_of(channels, size), batch, size, train)
    case()
    begin, count = time.perf_counter(), 0
    while time.perf_counter() - begin < 3:
        case()
        count += 1
    return (time.perf_counter() - begin) / count


def update(net: nn.Module) -> tuple[float, float]:
    """The seconds of Adam and an average, and the rate in GB/s of what they read and write."""
    weights = list(net.parameters())
    averages = [w.detach().clone() for w in weights]
    for weight in weights:
        weight.grad = torch.zeros_like(weight)
    optimiser = torch.optim.Adam(weights, fused=True)

    def step() -> None:
        optimiser.step()
        torch._foreach_lerp_(averages, [w.detach() for w in weights], 0.01)

    spent = seconds({"update": step})["update"]
    size = sum(4 * w.numel() for w in weights)
    return spent, 10 * size / spent / 1e9  # reads w g m v, writes w m v; reads a w, writes a


def copy_rate() -> float:
    """GB/s of a plain copy that no cache holds, what it reads and writes."""
    a = torch.zeros(2**26, device=DEVICE)
    b = torch.empty_like(a)
    return 2 * 4 * a.numel() / seconds({"copy": lambda: b.copy_(a)})["copy"] / 1e9


def line(command: str, axis: str, along: Sequence[Any], figures: Sequence[Any]) -> str:
    """What is to be said of an axis. figures: of each cell, as benchmark_scaling has them."""
    torch.set_num_threads(1)
    by = "cpu" if DEVICE == "cpu" and axis != "processes" else "clock"
    speeds = [1 / figure[by] for figure in figures]
    rule = {
        "batch": along_batch,
        "resolution": along_resolution,
        "parameters": along_parameters,
        "processes": along_processes,
    }[axis]
    return f"{command}, {axis}: {rule(command == 'train', along, speeds)}."
