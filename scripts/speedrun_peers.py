"""Peers of scripts/speedrun.py: their own networks, losses, optimisers and solvers, timed.

    python scripts/speedrun_peers.py train torchcfm mnist --minutes 10 --out FOLDER
    python scripts/speedrun_peers.py sample torchcfm mnist --out FOLDER

torchcfm needs the packages torchcfm, POT and torchdiffeq. It trains as
examples/images/conditional_mnist.ipynb (its first section) and examples/images/cifar10 with their
default flags. flow_matching needs its package, torchdiffeq and torchmetrics, and --peers, a
checkout of github.com/facebookresearch/flow_matching: examples/image, whose own train_one_epoch is
called with the flags that its README gives for CIFAR-10. It has no script for MNIST.
What differs: data are in memory, so nobody waits for files, and training ends with the time.
Training goes on from FOLDER/state.pt, which is written every few minutes.
"""

import argparse
import copy
import hashlib
import json
import signal
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import fmdiff
from fmdiff import files
from fmdiff.build import named
from fmdiff.data.images import to_uint8

SAVE = 240  # seconds between two states
Velocity = Callable[[Tensor, Tensor, Tensor], Tensor]  # of x (B, C, H, W), t () and labels (B,)


class TimeOver(Exception):
    """The minutes are spent."""


@dataclass
class Training:
    """A training under way: all that a state on disk holds, and the clock."""

    parts: dict[str, Any]  # what has a state_dict
    folder: Path
    limit: float  # seconds
    threads: int
    cuda: bool
    steps: int = 0
    before: float = 0.0  # seconds that earlier goes took
    saved: float = 0.0  # the clock at the newest state
    stopped: int = 0  # by this signal

    def stop(self, signum: int, frame: object) -> None:
        self.stopped = signum

    def clock(self) -> float:
        """Seconds since the process started: of the clock on CUDA, else CPU time over threads."""
        return time.perf_counter() - START if self.cuda else time.process_time() / self.threads

    def resume(self, device: torch.device) -> None:
        path = self.folder / "state.pt"
        if path.is_file():
            state = torch.load(path, map_location=device, weights_only=True)
            for name, part in self.parts.items():
                part.load_state_dict(state[name])
            self.steps, self.before = state["steps"], state["seconds"]
            torch.set_rng_state(state["rng"].cpu())

    def save(self) -> None:
        state = {name: part.state_dict() for name, part in self.parts.items()}
        state |= {"steps": self.steps, "seconds": self.before + self.clock()}
        torch.save(state | {"rng": torch.get_rng_state()}, self.folder / "state.part")
        (self.folder / "state.part").replace(self.folder / "state.pt")
        self.saved = self.clock()

    def tick(self) -> None:
        """Count a step. Raises TimeOver when the time is spent, and SystemExit after a signal."""
        self.steps += 1
        if self.stopped:
            self.save()
            sys.exit(128 + self.stopped)
        if self.before + self.clock() >= self.limit:
            self.save()
            raise TimeOver
        if self.clock() - self.saved > SAVE:
            self.save()


START = time.perf_counter()


class Epochs:
    """Batches (x, y) of a data set in memory, shuffled anew in every epoch, the last one dropped.

    x (B, C, H, W): in [-1, 1], or in [0, 1] where the script scales it itself.
    """

    def __init__(self, name: str, size: int, flip: bool, unit: bool, device: torch.device) -> None:
        data: Any = named("data", name)
        data.prepare()
        self.x, self.y = (part.to(device) for part in data.train)
        self.size, self.flip, self.unit = size, flip, unit
        self.training: Training | None = None  # told of every batch but the first

    def __len__(self) -> int:
        return len(self.x) // self.size

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        for rows in torch.randperm(len(self.x), device=self.x.device).split(self.size):
            if len(rows) < self.size:
                return
            x = self.x[rows].float() / 255
            if self.flip:
                mirror = torch.rand(len(x), 1, 1, 1, device=x.device) < 0.5
                x = torch.where(mirror, x.flip(-1), x)
            yield x if self.unit else 2 * x - 1, self.y[rows]
            if self.training is not None:
                self.training.tick()


@dataclass
class Peer:
    """A peer on one data set: how it trains, and the velocity that it then samples by."""

    net: nn.Module
    averaged: nn.Module  # what is sampled from
    optimizer: torch.optim.Optimizer
    epochs: Epochs
    epoch: Callable[[], object]  # one epoch of training
    velocity: Velocity
    solve: Callable[[Velocity, Tensor, Tensor], Tensor]  # as published: noise and labels to data
    source: str
    sampler: str
    more: dict[str, Any] = field(default_factory=dict)  # schedulers


# --- TorchCFM ---------------------------------------------------------------------------------


def dopri5(tolerance: float) -> Callable[[Velocity, Tensor, Tensor], Tensor]:
    """torchdiffeq's dopri5 with this absolute and relative tolerance."""

    def solve(velocity: Velocity, noise: Tensor, y: Tensor) -> Tensor:
        from torchdiffeq import odeint

        times = torch.linspace(0, 1, 2, device=noise.device)
        limits = {"rtol": tolerance, "atol": tolerance}
        way: Tensor = odeint(
            lambda t, x: velocity(x, t, y), noise, times, method="dopri5", **limits
        )
        return way[-1]

    return solve


def torchcfm_mnist(device: torch.device) -> Peer:
    from torchcfm.conditional_flow_matching import ConditionalFlowMatcher
    from torchcfm.models.unet import UNetModel

    shape = (1, 28, 28)
    net = UNetModel(dim=shape, num_channels=32, num_res_blocks=1, num_classes=10, class_cond=True)
    net = net.to(device)
    optimizer = torch.optim.Adam(net.parameters())
    matcher = ConditionalFlowMatcher(sigma=0.0)
    epochs = Epochs("mnist", 128, flip=False, unit=False, device=device)

    def epoch() -> None:
        for x1, y in epochs:
            optimizer.zero_grad()
            t, xt, ut = matcher.sample_location_and_conditional_flow(torch.randn_like(x1), x1)
            torch.mean((net(t, xt, y) - ut) ** 2).backward()
            optimizer.step()

    return Peer(
        net,
        net,
        optimizer,
        epochs,
        epoch,
        velocity=lambda x, t, y: net(t, x, y),
        solve=dopri5(1e-4),
        source="TorchCFM's conditional_mnist.ipynb, class-conditional CFM",
        sampler="dopri5, 1e-4",
    )


def torchcfm_cifar10(device: torch.device) -> Peer:
    from torchcfm.conditional_flow_matching import ExactOptimalTransportConditionalFlowMatcher
    from torchcfm.models.unet.unet import UNetModelWrapper

    net: nn.Module = UNetModelWrapper(
        dim=(3, 32, 32),
        num_res_blocks=2,
        num_channels=128,
        channel_mult=[1, 2, 2, 2],
        num_heads=4,
        num_head_channels=64,
        attention_resolutions="16",
        dropout=0.1,
    ).to(device)
    averaged = copy.deepcopy(net)
    optimizer = torch.optim.Adam(net.parameters(), lr=2e-4)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda k: min(k, 5000) / 5000)
    matcher = ExactOptimalTransportConditionalFlowMatcher(sigma=0.0)
    epochs = Epochs("cifar10", 128, flip=True, unit=False, device=device)

    def epoch() -> None:
        for x1, _ in epochs:
            optimizer.zero_grad()
            t, xt, ut = matcher.sample_location_and_conditional_flow(torch.randn_like(x1), x1)
            torch.mean((net(t, xt) - ut) ** 2).backward()
            nn.utils.clip_grad_norm_(net.parameters(), 1.0)
            optimizer.step()
            schedule.step()
            with torch.no_grad():
                now, average = net.state_dict(), averaged.state_dict()
                for name, value in average.items():
                    value.copy_(value * 0.9999 + now[name] * (1 - 0.9999))

    return Peer(
        net,
        averaged,
        optimizer,
        epochs,
        epoch,
        velocity=lambda x, t, y: averaged(t, x),
        solve=dopri5(1e-5),
        source="TorchCFM's train_cifar10.py, otcfm",
        sampler="dopri5, 1e-5",
        more={"schedule": schedule},
    )


# --- flow_matching ----------------------------------------------------------------------------


def flow_matching_cifar10(device: torch.device, checkout: Path | None) -> Peer:
    if checkout is None:
        raise SystemExit("flow_matching needs --peers, a checkout of its repository")
    sys.path.insert(0, str((checkout / "examples" / "image").absolute()))
    from models.model_configs import instantiate_model
    from train_arg_parser import get_args_parser
    from training.grad_scaler import NativeScalerWithGradNormCount
    from training.train_loop import train_one_epoch

    flags = "--dataset=cifar10 --batch_size=64 --accum_iter=1 --class_drop_prob=1.0 "
    flags += "--cfg_scale=0.0 --use_ema --edm_schedule --skewed_timesteps"
    args = get_args_parser().parse_args(flags.split())
    net = instantiate_model(architechture="cifar10", is_discrete=False, use_ema=True).to(device)
    optimizer = torch.optim.AdamW(net.parameters(), lr=args.lr, betas=args.optimizer_betas)
    schedule = torch.optim.lr_scheduler.ConstantLR(optimizer, factor=1.0, total_iters=10**6)
    epochs = Epochs("cifar10", args.batch_size, flip=True, unit=True, device=device)
    scaler, number = NativeScalerWithGradNormCount(), iter(range(10**9))

    def epoch() -> None:
        train_one_epoch(
            model=net,
            data_loader=epochs,
            optimizer=optimizer,
            lr_schedule=schedule,
            device=device,
            epoch=next(number),
            loss_scaler=scaler,
            args=args,
        )

    def solve(velocity: Velocity, noise: Tensor, y: Tensor) -> Tensor:
        from flow_matching.solver import ODESolver
        from training.edm_time_discretization import get_time_discretization

        solver = ODESolver(velocity_model=lambda x, t: velocity(x, t, y))
        grid = get_time_discretization(nfes=50).to(noise.device, noise.dtype)
        way: Tensor = solver.sample(noise, step_size=None, method="heun2", time_grid=grid)
        return way

    return Peer(
        net,
        net,
        optimizer,
        epochs,
        epoch,
        velocity=lambda x, t, y: net(x, t.expand(len(x)), extra={}),
        solve=solve,
        source=f"flow_matching's examples/image, {flags.strip()}",
        sampler="heun2 on 51 times of EDM",
    )


def peer(who: str, data: str, device: torch.device, checkout: Path | None) -> Peer:
    if who == "torchcfm":
        return torchcfm_mnist(device) if data == "mnist" else torchcfm_cifar10(device)
    if data != "cifar10":
        raise SystemExit("flow_matching has no script for MNIST: it takes cifar10")
    return flow_matching_cifar10(device, checkout)


# --- training and sampling --------------------------------------------------------------------


def digest(net: nn.Module) -> str:
    """The SHA-256 of all weights, in the order of their names."""
    total = hashlib.sha256()
    for name, value in sorted(net.state_dict().items()):
        total.update(name.encode())
        total.update(value.detach().cpu().contiguous().numpy().tobytes())
    return total.hexdigest()


def train(rival: Peer, args: argparse.Namespace, device: torch.device) -> None:
    """Train until the minutes are over, and write about.json."""
    parts = {"net": rival.net, "optimizer": rival.optimizer, **rival.more}
    if rival.averaged is not rival.net:
        parts["averaged"] = rival.averaged
    cuda = device.type == "cuda"
    training = Training(parts, args.out, 60 * args.minutes, args.threads, cuda)
    training.resume(device)
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, training.stop)
    rival.epochs.training = training
    first, begin = training.steps, training.clock()
    try:
        while True:
            rival.epoch()
    except TimeOver:
        pass
    steps = training.steps - first
    about = {
        "recipe": rival.source,
        "sampler": rival.sampler if args.solver == "published" else ADAMS,
        "parameters": sum(p.numel() for p in rival.net.parameters() if p.requires_grad),
        "images": training.steps * rival.epochs.size,
        "ms_per_step": 1000 * (training.clock() - begin) / max(1, steps),
        "weights_sha256": digest(rival.averaged),
    }
    files.write_text(args.out / "about.json", json.dumps(about, indent=2) + "\n")


ADAMS = "fmdiff's adams, 10 evaluations"


@torch.no_grad()
def sample(rival: Peer, args: argparse.Namespace, device: torch.device) -> None:
    """Draw n samples, classes in turn, into samples.npz."""
    path = args.out / "state.pt"
    state = torch.load(path, map_location=device, weights_only=True)
    rival.net.load_state_dict(state["net"])
    if rival.averaged is not rival.net:
        rival.averaged.load_state_dict(state["averaged"])
    rival.net.eval()
    rival.averaged.eval()
    torch.manual_seed(args.seed)
    x, labels = rival.epochs.x, torch.arange(args.n, device=device) % 10
    images = []
    for y in labels.split(100):
        noise = torch.randn(len(y), *x.shape[1:], device=device)
        if args.solver == "published":
            drawn = rival.solve(rival.velocity, noise, y)
        else:
            flow = fmdiff.field(
                lambda x, t, y=y: rival.velocity(x, t, y), "condot", shape=x.shape[1:]
            )
            drawn = fmdiff.Sampler(solver="adams", nfe=10).draw(flow, eps=noise).x
        images.append(to_uint8(drawn).cpu())
        print(f"{sum(map(len, images))} of {args.n} samples", flush=True)
    arrays = {"arr_0": torch.cat(images).numpy()}
    if args.data == "mnist":  # on CIFAR-10 the peers have no classes
        arrays["labels"] = labels.cpu().numpy()
    files.write_npz(args.out / "samples.npz", arrays)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("what", choices=("train", "sample"))
    parser.add_argument("who", choices=("torchcfm", "flow_matching"))
    parser.add_argument("data", choices=("mnist", "cifar10"))
    parser.add_argument("--minutes", type=float, default=10.0)
    parser.add_argument("--n", type=int, default=2000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--peers", type=Path)
    parser.add_argument("--solver", choices=("published", "adams"), default="published")
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    torch.manual_seed(args.seed)
    device = torch.device(args.device)
    args.out.mkdir(parents=True, exist_ok=True)
    which = peer(args.who, args.data, device, args.peers)
    (train if args.what == "train" else sample)(which, args, device)


if __name__ == "__main__":
    main()
