"""What a training step of fmdiff costs beside a bare loop, TorchCFM's and flow_matching's.

Used as `python scripts/benchmark.py training`; needs torchcfm and flow_matching. CPU time of this
process per step (CUDA: wall time, synchronised), the cases of one problem taking turns in rounds.
fmdiff runs fmdiff.commands.train.train with EMA, clipping, TensorBoard, metrics.csv, the progress
bar and checkpoints at their defaults, timed between the ends of two steps of one fit, all
callbacks included; the other loops do only what their functions say, with their data in memory.
"""

import copy
import io
import os
import platform
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stderr
from functools import partial
from pathlib import Path
from typing import NamedTuple
from unittest import mock

import torch
from lightning.pytorch import Callback, Trainer
from torch import Tensor, nn

from fmdiff.build import build, named
from fmdiff.commands.train import train
from fmdiff.settings import compose

CUDA = torch.cuda.is_available()
DEVICE = torch.device("cuda" if CUDA else "cpu")
NEVER = 10**9  # steps
NO_PICTURES = (f"trainer.picture_every={NEVER}", f"trainer.validate_every={NEVER}")
RESIDENT = 100_000  # points that the bare toy loop picks from

Step = Callable[[], object]
Case = Callable[[], float]  # one round: seconds per step


class Gate(NamedTuple):
    """The first quartile over the rounds of time(theirs) / time(ours) is at least `least`."""

    ours: str
    theirs: str
    least: float


def clock() -> float:
    if CUDA:
        torch.cuda.synchronize()
    return time.perf_counter() if CUDA else time.process_time()


# --- fmdiff ---------------------------------------------------------------------------------


class Marks(Callback):
    """Reads the clock after the steps `first` and `last`, behind all callbacks, and stops."""

    def __init__(self, first: int, last: int) -> None:
        self.first, self.last, self.times = first, last, [0.0, 0.0]

    def on_train_batch_end(self, trainer, module, outputs, batch, batch_idx) -> None:
        if module.step == self.first:
            self.times[0] = clock()
        if module.step == self.last:
            self.times[1] = clock()
            trainer.should_stop = True


class Terminal(io.StringIO):
    """What a progress bar takes for a terminal."""

    def isatty(self) -> bool:
        return True


@contextmanager
def marked(first: int, last: int) -> Iterator[Marks]:
    """Every fit inside has these marks as its last callback."""
    marks, fit = Marks(first, last), Trainer.fit

    def fit_marked(trainer, *args, **kwargs):
        trainer.callbacks.append(marks)
        return fit(trainer, *args, **kwargs)

    with mock.patch.object(Trainer, "fit", fit_marked):
        yield marks


def fmdiff(*words: str, span: tuple[int, int]) -> Case:
    """fmdiff train WORDS between the ends of the steps `span`."""
    # the last step of a run has its picture and its validation: it lies beyond the span
    words = (*words, f"trainer.max_steps={span[1] + 25}")
    composer = compose.Composer("train", compose.parse(list(words))[0])
    cfg = composer.check(composer.compose(list(words)), list(words))

    def case() -> float:
        with (
            tempfile.TemporaryDirectory() as folder,
            redirect_stderr(Terminal()),
            marked(*span) as marks,
        ):
            train(copy.deepcopy(cfg), Path(folder))
        return (marks.times[1] - marks.times[0]) / (span[1] - span[0])

    return case


# --- other loops ----------------------------------------------------------------------------


def loop(step: Step, n: int) -> Case:
    def case() -> float:
        # torch's defaults, which fmdiff's precision= changes
        torch.backends.cudnn.allow_tf32 = True
        torch.set_float32_matmul_precision("highest")
        step()
        before = clock()
        for _ in range(n):
            step()
        return (clock() - before) / n

    return case


def bare(net: nn.Module, data: Tensor, size: int, lr: float, fused: bool) -> Step:
    """Conditional flow matching in plain PyTorch: no EMA, no clipping, no log."""
    optimizer = torch.optim.Adam(net.parameters(), lr, fused=fused)

    def step() -> None:
        x = data[torch.randint(len(data), (size,), device=DEVICE)]
        eps = torch.randn_like(x)
        t = torch.rand(size, device=DEVICE)
        r = t.view(-1, *[1] * (data.ndim - 1))
        optimizer.zero_grad()
        loss = ((net(r * x + (1 - r) * eps, 1000 * t) - (x - eps)) ** 2).mean()
        loss.backward()
        optimizer.step()

    return step


class Plain(nn.Sequential):
    """TorchCFM's tutorial network: the time is a third coordinate."""

    def __init__(self) -> None:
        layers = [nn.Linear(3, 64), nn.SELU(), nn.Linear(64, 64), nn.SELU()]
        super().__init__(*layers, nn.Linear(64, 64), nn.SELU(), nn.Linear(64, 2))

    def forward(self, x_t: Tensor, t: Tensor) -> Tensor:  # type: ignore[override]
        return super().forward(torch.cat([x_t, t[:, None]], 1))


def torchcfm_tutorial(size: int) -> Step:
    """Flow_matching_tutorial.ipynb of its 2D_tutorials, first loop: 8gaussians to moons."""
    from torchcfm.conditional_flow_matching import ConditionalFlowMatcher
    from torchcfm.models.models import MLP
    from torchcfm.utils import sample_8gaussians, sample_moons

    model = MLP(dim=2, time_varying=True).to(DEVICE)
    optimizer = torch.optim.Adam(model.parameters())
    matcher = ConditionalFlowMatcher(sigma=0.1)

    def step() -> None:
        optimizer.zero_grad()
        x0 = sample_8gaussians(size).to(DEVICE)
        x1 = sample_moons(size).to(DEVICE)
        t, xt, ut = matcher.sample_location_and_conditional_flow(x0, x1)
        vt = model(torch.cat([xt, t[:, None]], dim=-1))
        loss = torch.mean((vt - ut) ** 2)
        loss.backward()
        optimizer.step()

    return step


def flow_matching_example(size: int) -> Step:
    """2d_flow_matching.ipynb of its examples, the small network: normal to checkerboard."""
    from flow_matching.path import AffineProbPath
    from flow_matching.path.scheduler import CondOTScheduler

    model = Plain().to(DEVICE)
    optimizer = torch.optim.Adam(model.parameters(), 1e-3)
    path = AffineProbPath(scheduler=CondOTScheduler())

    def checkerboard() -> Tensor:
        a = torch.rand(size, device=DEVICE) * 4 - 2
        b = torch.rand(size, device=DEVICE) - torch.randint(2, (size,), device=DEVICE) * 2
        return torch.stack([a, b + a.floor() % 2], 1) / 0.45

    def step() -> None:
        optimizer.zero_grad()
        x_1 = checkerboard()
        x_0 = torch.randn_like(x_1)
        t = torch.rand(size, device=DEVICE)
        sample = path.sample(t=t, x_0=x_0, x_1=x_1)
        loss = torch.pow(model(sample.x_t, sample.t) - sample.dx_t, 2).mean()
        loss.backward()
        optimizer.step()

    return step


def torchcfm_images(model: nn.Module, data: Tensor, size: int, lr: float, script: bool) -> Step:
    """TorchCFM's MNIST notebook or, of `script`, its train_cifar10.py with clipping and EMA."""
    from torchcfm.conditional_flow_matching import ConditionalFlowMatcher

    optimizer = torch.optim.Adam(model.parameters(), lr)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda k: min(k + 1, 5000) / 5000)
    matcher = ConditionalFlowMatcher(sigma=0.0)
    averaged = copy.deepcopy(model) if script else None

    def average(source: nn.Module, target: nn.Module, decay: float) -> None:
        """EMA by state dicts, as in its utils_cifar.py."""
        now, kept = source.state_dict(), target.state_dict()
        for name in now:
            kept[name].data.copy_(kept[name].data * decay + now[name].data * (1 - decay))

    def step() -> None:
        optimizer.zero_grad()
        x1 = data[torch.randint(len(data), (size,), device=DEVICE)]
        x0 = torch.randn_like(x1)
        t, xt, ut = matcher.sample_location_and_conditional_flow(x0, x1)
        loss = torch.mean((model(t, xt) - ut) ** 2)
        loss.backward()
        if averaged is not None:
            nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        if averaged is not None:
            schedule.step()
            average(model, averaged, 0.9999)

    return step


# --- problems -------------------------------------------------------------------------------


class Problem(NamedTuple):
    title: str
    threads: int
    cases: dict[str, Case]
    gates: list[Gate]


def network(name: str, shape: tuple[int, ...], words: tuple[str, ...]) -> nn.Module:
    """The network that the words model.KEY=VALUE make of configs/model/NAME.yaml."""
    composer = compose.Composer("train", compose.parse([])[0])
    model = composer.resolve(composer.compose([f"model={name}", *words])).model
    return build(dict(model), shape=shape, classes=0).to(DEVICE)


def toy() -> Problem:
    size, threads, span = 256, 1, (200, 1200)
    small = (
        "model.hidden=64",
        "model.layers=3",
        "model.activation=selu",
        "model.frequencies=0",
        "model.skip=false",
    )
    ours = partial(
        fmdiff,
        "data=moons",
        f"data.batch_size={size}",
        "model=mlp",
        *small,
        f"threads={threads}",
        span=span,
    )
    x = named("data", "moons").sample(0, RESIDENT, 0)[0].to(DEVICE)
    n = span[1] - span[0]
    cases = {
        "fmdiff": ours(*NO_PICTURES),
        "fmdiff, pictures and validation too": ours(),
        "fmdiff, 8gaussians to moons": ours("source=data", "source.data=8gaussians", *NO_PICTURES),
    }
    for fused, name in ((False, "Adam"), (True, "fused Adam")):
        net = network("mlp", (2,), small)
        cases[f"bare, {name}"] = loop(bare(net, x, size, 1e-3, fused), n)
        plain = Plain().to(DEVICE)
        cases[f"bare, {name}, plain network"] = loop(bare(plain, x, size, 1e-3, fused), n)
    cases["TorchCFM's tutorial"] = loop(torchcfm_tutorial(size), n // 4)
    cases["flow_matching's example"] = loop(flow_matching_example(size), n)
    gates = [
        Gate("fmdiff", "bare, Adam", 1.1),
        Gate("fmdiff, 8gaussians to moons", "TorchCFM's tutorial", 2.5),
        Gate("fmdiff", "bare, fused Adam", 1 / 1.05),
    ]
    return Problem("toy: MLP 3 x 64 SELU, batch 256, normal to moons", threads, cases, gates)


def images(
    title: str, data: str, model: str, words: tuple[str, ...], theirs, size: int, lr: float
) -> Problem:
    """One network of TorchCFM's, ours of the same shape, and the bare loop on ours."""
    script, n = data == "cifar10", 20 if CUDA else 3
    threads = int(os.environ.get("OMP_NUM_THREADS", 2))  # 1 where others use the cores
    ours = partial(
        fmdiff,
        f"data={data}",
        "data.conditional=false",
        f"data.batch_size={size}",
        f"optim.lr={lr}",
        f"model={model}",
        *words,
        f"threads={threads}",
        *NO_PICTURES,
        span=(10, 10 + n) if CUDA else (1, 1 + n),
    )
    source = named("data", data)
    source.prepare()
    x = source.examples(2000)[0].to(DEVICE)
    net = network(model, tuple(source.shape), words)
    counts = [sum(p.numel() for p in m.parameters()) for m in (theirs, net)]
    if counts[0] != counts[1]:
        raise SystemExit(f"{title}: {counts[0]:,} parameters of TorchCFM's, {counts[1]:,} of ours")
    cases = {"fmdiff": ours()}
    if CUDA:
        # convolutions of TorchCFM's script use TF32, torch's default: equal precision is tf32
        cases |= {f"fmdiff, {p}": ours(f"trainer.precision={p}") for p in ("tf32", "bf16")}
    else:
        cases["fmdiff, bf16"] = ours("trainer.precision=bf16")
    if script:  # ten steps from the tenth on have one update of the average
        tenth = ours("trainer.ema_every=10", span=(20, 40) if CUDA else (10, 20))
        cases["fmdiff, average of every tenth step"] = tenth
    cases |= {
        "bare, Adam": loop(bare(net, x, size, lr, False), n),
        "bare, fused Adam": loop(bare(copy.deepcopy(net), x, size, lr, True), n),
        "TorchCFM": loop(torchcfm_images(theirs.to(DEVICE), x, size, lr, script), n),
    }
    # the bare loops compute with torch's defaults, on CUDA those of tf32
    gates = [Gate("fmdiff, tf32" if CUDA else "fmdiff", "bare, fused Adam", 1 / 1.05)]
    if script and not CUDA:
        gates.append(Gate("fmdiff, average of every tenth step", "bare, fused Adam", 1 / 1.05))
    return Problem(f"{title}, {counts[0]:,} parameters, batch {size}", threads, cases, gates)


def mnist() -> Problem:
    from torchcfm.models.unet import UNetModel

    theirs = UNetModel(dim=(1, 28, 28), num_channels=32, num_res_blocks=1)
    words = (
        "model.multipliers=[1,2,2]",
        "model.attention=[0]",
        "model.head_channels=64",
        "model.scale_shift=false",
    )
    made = images("mnist: U-Net", "mnist", "unet", words, theirs, 16, 1e-3)
    return made._replace(gates=[Gate("fmdiff", "TorchCFM", 1.5), *made.gates])


def cifar() -> Problem:
    from torchcfm.models.unet.unet import UNetModelWrapper

    theirs = UNetModelWrapper(
        dim=(3, 32, 32),
        num_res_blocks=2,
        num_channels=128,
        channel_mult=[1, 2, 2, 2],
        num_heads=4,
        num_head_channels=64,
        attention_resolutions="16",
        dropout=0.1,
    )
    size = 128 if CUDA else 4
    made = images("cifar: U-Net", "cifar10", "unet_cifar", (), theirs, size, 2e-4)
    # on CPUs at equal precision, and in bf16
    ours = [("fmdiff, bf16", 2.0)] if CUDA else [("fmdiff", 1.08), ("fmdiff, bf16", 1.08)]
    return made._replace(gates=[*(Gate(name, "TorchCFM", k) for name, k in ours), *made.gates])


PROBLEMS: dict[str, Callable[[], Problem]] = {"toy": toy, "mnist": mnist, "cifar": cifar}

# --- rounds ---------------------------------------------------------------------------------


def quartiles(values: Tensor, digits: int) -> str:
    low, middle, high = values.quantile(torch.tensor([0.25, 0.5, 0.75]).double()).tolist()
    return f"{middle:.{digits}f} ({low:.{digits}f}-{high:.{digits}f})"


def measure(cases: dict[str, Case], rounds: int) -> dict[str, Tensor]:
    """Seconds per step (rounds,) of each case; each round begins with another one."""
    spent: dict[str, list[float]] = {name: [] for name in cases}
    names = list(cases)
    for k in range(rounds + 1):
        for name in names[k % len(names) :] + names[: k % len(names)]:
            seconds = cases[name]()
            if k:  # the first one warms up
                spent[name].append(seconds)
    return {name: torch.tensor(values, dtype=torch.float64) for name, values in spent.items()}


def training(rounds: int, only: list[str]) -> None:
    began = os.getloadavg()[0]
    for name in only:
        problem = PROBLEMS[name]()
        torch.set_num_threads(problem.threads)
        spent = measure(problem.cases, rounds)
        kind = "wall" if CUDA else "CPU"
        print(f"\n## {problem.title}\n\nms of {kind} time per step, {problem.threads} threads\n")
        print("| case | ms, median (quartiles) | its time / fmdiff's |")
        print("|---|---|---|")
        for case, seconds in spent.items():
            times = quartiles(seconds / spent["fmdiff"], 3)
            print(f"| {case} | {quartiles(1e3 * seconds, 3)} | {times} |")
        print("\n| ours | theirs | its time / ours | first quartile at least | holds |")
        print("|---|---|---|---|---|")
        for ours, theirs, least in problem.gates:
            speed = spent[theirs] / spent[ours]
            holds = "yes" if speed.quantile(0.25) >= least else "no"
            print(f"| {ours} | {theirs} | {quartiles(speed, 3)} | {least:.3f} | {holds} |")
        sys.stdout.flush()
    print(
        f"\n{rounds} rounds in turns, {os.cpu_count()} cores, {platform.machine()}, "
        f"{torch.cuda.get_device_name() if CUDA else 'no GPU'}, torch {torch.__version__}, "
        f"GOMP_SPINCOUNT={os.environ.get('GOMP_SPINCOUNT')}, "
        f"load average {began:.2f} at the start, {os.getloadavg()[0]:.2f} at the end"
    )
