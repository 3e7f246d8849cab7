# One evaluation costs at most 0.13 ms of solver, whatever the solver (one core, 2 minutes).
"""Measure what fmdiff's own code costs beside the network.

python scripts/benchmark.py sampling [--repeats 50]
python scripts/benchmark.py frechet [--repeats 3]
python scripts/benchmark.py training [--rounds 9] [--only toy,mnist,cifar]
python scripts/benchmark.py solvers [--targets NAME,...] [--nfe 5,10,20,50] [--w 0,1,1.5,3,7]
python scripts/benchmark.py networks --ckpt RUN,... [--nfe 5,10,20,50] [--w 1,2] [--fd 500]
python scripts/benchmark.py scaling [--only train,sample] [--axes batch,...] [--repeats 3]

sampling: CPU time of one process with one thread, per evaluation of a field that returns its
input, float32, 28 uniform steps along CondOT through fmdiff.integration.integrate. The cases take
turns, so that a ratio compares what ran side by side.

frechet: CPU time of one Frechet distance at 2,048 dimensions from means and covariances, beside
torchmetrics', torch-fidelity's and scipy's matrix root; the distances must agree to 1e-6.

training: a training step beside a bare loop, TorchCFM's and flow_matching's: benchmark_training.

solvers: errors on exact fields at equal price, beside other packages: benchmark_solvers.
networks: the same on trained networks, and their distance to real images: benchmark_networks.

scaling: speed, memory and start-up against batch, resolution, parameters and processes, beside
what plan=true says, and where they bend and why: benchmark_scaling.
"""

import os

if not {"GOMP_SPINCOUNT", "OMP_WAIT_POLICY"} & os.environ.keys():
    os.environ["GOMP_SPINCOUNT"] = "20000"  # as fmdiff does; read when torch is imported

import argparse
import platform
import time
import warnings
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor

from fmdiff.build import config_folder, named
from fmdiff.field import Field
from fmdiff.integration import integrate
from fmdiff.path import CondOT
from fmdiff.randomness import Brownian
from fmdiff.solvers.exponential import Multistep
from fmdiff.solvers.multistep import Adams
from fmdiff.solvers.stochastic import DPMppSDE

SHAPES = ((4, 1, 28, 28), (1024, 2))
STEPS = 28
LIMIT, LIMIT_MULTISTEP = 0.15, 0.3  # ms per evaluation


class Echo(Field):
    """A field that costs nothing: every quantity is x_t."""

    def __init__(self, shape: tuple[int, ...]) -> None:
        self.path, self.shape = CondOT(), shape

    def __call__(self, x_t: Tensor, t: Tensor) -> Tensor:
        self.evaluations += 1
        return x_t

    def predict(self, x_t: Tensor, t: Tensor, kind: str) -> Tensor:
        self.evaluations += 1
        return x_t


Case = Callable[[], Callable[[], int]]  # makes ready; what it gives is timed, and says its NFE


def rounds(cases: Mapping[str, Case], repeats: int) -> dict[str, Tensor]:
    """ms of CPU time per evaluation (repeats,) of each case."""
    spent: dict[str, list[float]] = {name: [] for name in cases}
    for k in range(repeats + 2):
        for name, case in cases.items():
            run = case()
            before = time.process_time()
            evaluations = run()
            elapsed = time.process_time() - before
            if k >= 2:  # the first ones warm up
                spent[name].append(1e3 * elapsed / evaluations)
    return {name: torch.tensor(values) for name, values in spent.items()}


def quartiles(values: Tensor) -> str:
    low, middle, high = values.quantile(torch.tensor([0.25, 0.5, 0.75])).tolist()
    return f"{middle:.3f} ({low:.3f}-{high:.3f})"


# --- sampling -------------------------------------------------------------------------------


def ours(solver, x: Tensor) -> Callable[[], int]:
    """One integration, the noise drawn before."""
    field = Echo(tuple(x.shape[1:]))
    times = torch.linspace(0, 1, 2 if solver.adaptive else STEPS + 1, dtype=torch.float64)

    def run() -> int:
        integrate(solver, field, x, times, lambda t, s: x)
        return field.evaluations

    return run


def tree(solver, x: Tensor) -> Callable[[], int]:
    """A Brownian path asked for what the solver asks it."""
    asked: list[tuple[Tensor, Tensor]] = []
    field = Echo(tuple(x.shape[1:]))

    def noise(t: Tensor, s: Tensor) -> Tensor:
        asked.append((t, s))
        return x

    integrate(solver, field, x, torch.linspace(0, 1, STEPS + 1, dtype=torch.float64), noise)

    def run() -> int:
        walk = Brownian(0, len(x), field.shape, 0)
        for t, s in asked:
            walk(t, s).to(x)
        return field.evaluations

    return run


def scheduler(kind: str, x: Tensor, **options) -> Callable[[], int]:
    """The steps of a scheduler of diffusers, the model's output being the state."""
    import diffusers

    diffusers.utils.logging.set_verbosity_error()  # that scale_model_input was not called
    made = getattr(diffusers, kind)(**options)
    made.set_timesteps(STEPS)
    noise = {"variance_noise": x} if "sde" in options.get("algorithm_type", "") else {}

    def run() -> int:
        state = x
        for t in made.timesteps:
            state = made.step(state, t, state, **noise).prev_sample
        return len(made.timesteps)

    return run


def odeint(method: str, x: Tensor) -> Callable[[], int]:
    """torchdiffeq, with the tolerances of solver=dopri5."""
    from torchdiffeq import odeint

    field = Echo(tuple(x.shape[1:]))
    times = torch.linspace(0, 1, 2 if method == "dopri5" else STEPS + 1)

    def run() -> int:
        odeint(lambda t, x: field(x, t), x, times, rtol=1e-5, atol=1e-5, method=method)
        return field.evaluations

    return run


ODE: dict[str, Any] = {"algorithm_type": "dpmsolver++"}
SDE: dict[str, Any] = {"algorithm_type": "sde-dpmsolver++"}
# what else does the same, by the name of our solver
PEERS: dict[str, dict[str, Callable]] = {
    "euler": {
        "diffusers EulerDiscrete": partial(scheduler, "EulerDiscreteScheduler"),
        "diffusers FlowMatchEuler": partial(scheduler, "FlowMatchEulerDiscreteScheduler"),
        "torchdiffeq euler": partial(odeint, "euler"),
    },
    "midpoint": {"torchdiffeq midpoint": partial(odeint, "midpoint")},
    "heun": {
        "diffusers HeunDiscrete": partial(scheduler, "HeunDiscreteScheduler"),
        "torchdiffeq heun2": partial(odeint, "heun2"),
    },
    "rk4": {"torchdiffeq rk4": partial(odeint, "rk4")},
    "dopri5": {"torchdiffeq dopri5": partial(odeint, "dopri5")},
    "adams": {"torchdiffeq explicit_adams": partial(odeint, "explicit_adams")},
    "dpm_2": {"diffusers KDPM2": partial(scheduler, "KDPM2DiscreteScheduler")},
    "dpmpp_2m": {
        "diffusers DPMSolverMultistep 2": partial(
            scheduler, "DPMSolverMultistepScheduler", solver_order=2, **ODE
        )
    },
    "dpmpp_3m": {
        "diffusers DPMSolverMultistep 3": partial(
            scheduler, "DPMSolverMultistepScheduler", solver_order=3, **ODE
        )
    },
    "dpmpp_2m_sde": {
        "diffusers DPMSolverMultistep 2 sde": partial(
            scheduler, "DPMSolverMultistepScheduler", solver_order=2, **SDE
        )
    },
    "unipc": {"diffusers UniPC 3": partial(scheduler, "UniPCMultistepScheduler", solver_order=3)},
    "deis": {"diffusers DEIS 3": partial(scheduler, "DEISMultistepScheduler", solver_order=3)},
}


def several_steps(solver) -> bool:
    """Whether a step looks back at earlier ones."""
    sde = isinstance(solver, DPMppSDE) and solver.order > 1
    return sde or isinstance(solver, Adams | Multistep)


@torch.no_grad()
def sampling(repeats: int) -> None:
    names = sorted(file.stem for file in (config_folder() / "solver").glob("*.yaml"))
    solvers = {name: named("solver", name) for name in names}
    warnings.simplefilter("ignore")  # of diffusers, about numpy
    for shape in SHAPES:
        x = torch.randn(shape, generator=torch.Generator().manual_seed(0))
        cases = {name: partial(ours, solver, x) for name, solver in solvers.items()}
        trees = {f"{n}, tree": partial(tree, s, x) for n, s in solvers.items() if s.stochastic}
        peers = {peer: name for name in PEERS for peer in PEERS[name]}
        theirs = {p: partial(make, x=x) for made in PEERS.values() for p, make in made.items()}
        spent = rounds(cases | trees | theirs, repeats)
        print(f"\nState {shape}: ms of CPU time per evaluation, median (quartiles)\n")
        print("| solver | fmdiff | limit | holds | Brownian tree |")
        print("|---|---|---|---|---|")
        for name, solver in solvers.items():
            limit = LIMIT_MULTISTEP if several_steps(solver) else LIMIT
            holds = "yes" if spent[name].median() <= limit else "no"
            walk = quartiles(spent[f"{name}, tree"]) if solver.stochastic else "-"
            print(f"| {name} | {quartiles(spent[name])} | {limit} | {holds} | {walk} |")
        print("\n| peer | its ms | solver | peer / fmdiff |")
        print("|---|---|---|---|")
        for peer, name in peers.items():
            ratio = spent[peer].median() / spent[name].median()
            print(f"| {peer} | {quartiles(spent[peer])} | {name} | {ratio:.2f} |")
    print(
        f"\n{STEPS} uniform steps (adaptive: tolerances 1e-5), float32, one thread, "
        f"{repeats} repeats in turns, {platform.machine()}, torch {torch.__version__}. "
        "Stochastic solvers get noise drawn before; the tree's column is what the Brownian path "
        "costs beside. Of a scheduler its steps alone are measured, of fmdiff all of integrate."
    )


# --- frechet --------------------------------------------------------------------------------


@torch.no_grad()
def frechet(repeats: int) -> None:
    from scipy.linalg import sqrtm
    from torch_fidelity.metric_fid import fid_statistics_to_metric
    from torchmetrics.image.fid import _compute_fid

    from fmdiff.metrics.frechet import Gaussian, Moments, frechet_distance

    n, d = 4096, 2048
    draws = torch.Generator().manual_seed(0)
    shape = torch.randn(d, d, generator=draws).double() / d**0.5
    sets = [torch.randn(n, d, generator=draws).double() @ shape + 0.1 * k for k in range(2)]
    a, b = (Moments(d).add(features) for features in sets)
    x, y = ({"mu": m.mean.numpy(), "sigma": m.cov.numpy()} for m in (a, b))

    def by_scipy() -> float:
        root = sqrtm(x["sigma"] @ y["sigma"]).real.trace()
        gap = ((x["mu"] - y["mu"]) ** 2).sum()
        return gap + x["sigma"].trace() + y["sigma"].trace() - 2 * root

    ways: dict[str, Callable[[], Any]] = {
        "fmdiff": lambda: frechet_distance(Gaussian(a.mean, a.cov), Gaussian(b.mean, b.cov)),
        "torchmetrics": lambda: _compute_fid(a.mean, a.cov, b.mean, b.cov).item(),
        "torch-fidelity": lambda: fid_statistics_to_metric(x, y, False).popitem()[1],
        "scipy sqrtm": by_scipy,
    }
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    found = {}
    for _ in range(repeats):
        for name, way in ways.items():
            before = time.process_time()
            found[name] = float(way())
            seconds[name].append(time.process_time() - before)
    ours = sorted(seconds["fmdiff"])[repeats // 2]
    print("| way | CPU s, median | over fmdiff | distance | relative difference |")
    print("|---|---|---|---|---|")
    for name, value in found.items():
        middle, off = sorted(seconds[name])[repeats // 2], value / found["fmdiff"] - 1
        print(f"| {name} | {middle:.2f} | {middle / ours:.1f} | {value:.8g} | {off:.1e} |")
        if abs(off) > 1e-6:
            raise SystemExit(f"{name} differs by {off:.1e}")


# --- training -------------------------------------------------------------------------------


def training(rounds: int, only: str) -> None:
    from benchmark_training import PROBLEMS, training

    names = only.split(",")
    if unknown := sorted(set(names) - set(PROBLEMS)):
        raise SystemExit(f"--only {','.join(unknown)}: choose from {', '.join(PROBLEMS)}")
    training(rounds, names)


# --- solvers --------------------------------------------------------------------------------


def networks(ckpt: str, paths: str, nfe: str, w: str, n: int, fd: int, precision: str) -> None:
    from benchmark_networks import networks

    networks(
        ckpt.split(","),
        paths.split(","),
        [int(k) for k in nfe.split(",")],
        [float(v) for v in w.split(",")],
        n,
        fd,
        precision,
    )


def scaling(only: str, axes: str, repeats: int, bends: bool, out: str) -> None:
    from benchmark_scaling import AXES, COMMANDS, scaling

    chosen = {"--only": only.split(","), "--axes": axes.split(",")}
    for option, allowed in (("--only", COMMANDS), ("--axes", AXES)):
        if unknown := sorted(set(chosen[option]) - set(allowed)):
            raise SystemExit(f"{option} {','.join(unknown)}: choose from {', '.join(allowed)}")
    scaling(*chosen.values(), repeats, bends, out)


def solvers(chosen: str, nfe: str, w: str, n: int) -> None:
    from benchmark_solvers import solvers
    from targets import TARGETS

    names = chosen.split(",") if chosen else list(TARGETS)
    if unknown := sorted(set(names) - set(TARGETS)):
        raise SystemExit(f"--targets {','.join(unknown)}: choose from {', '.join(TARGETS)}")
    nfes, scales = [int(k) for k in nfe.split(",")], [float(k) for k in w.split(",")]
    if min(nfes) < 4 or not all(w == 0 or w >= 1 for w in scales):
        raise SystemExit(f"--nfe {nfe} --w {w}: 4 evaluations, w = 0 or w >= 1")
    solvers(names, nfes, scales, n)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    commands = parser.add_subparsers(required=True)
    command = commands.add_parser("sampling", help="the solvers' own cost")
    command.add_argument("--repeats", type=int, default=50)
    command.set_defaults(run=sampling)
    command = commands.add_parser("frechet", help="the Frechet distance of 2,048 dimensions")
    command.add_argument("--repeats", type=int, default=3)
    command.set_defaults(run=frechet)
    command = commands.add_parser("training", help="a training step beside other loops")
    command.add_argument("--rounds", type=int, default=9)
    command.add_argument("--only", default="toy,mnist,cifar")
    command.set_defaults(run=training)
    command = commands.add_parser("solvers", help="errors on exact fields beside other packages")
    command.add_argument("--targets", dest="chosen", default="", help="names, all if none")
    command.add_argument("--nfe", default="5,10,20,50")
    command.add_argument("--w", default="0,1,1.5,3,7", help="guidance; 0: all classes, 1: none")
    command.add_argument("--n", type=int, default=64, help="states a case")
    command.set_defaults(run=solvers)
    command = commands.add_parser("networks", help="the same on trained networks")
    command.add_argument("--ckpt", required=True, help="checkpoints or runs of images")
    command.add_argument("--paths", default="condot,vp,edm")
    command.add_argument("--nfe", default="5,10,20,50")
    command.add_argument("--w", default="1,2")
    command.add_argument("--n", type=int, default=16, help="samples compared; 0: none")
    command.add_argument("--precision", default="fp32", help="of the network for --fd")
    command.add_argument("--fd", type=int, default=0, help="samples judged; 0: none")
    command.set_defaults(run=networks)
    command = commands.add_parser("scaling", help="speed, memory and start-up beside plan=true")
    command.add_argument("--only", default="train,sample")
    command.add_argument("--axes", default="batch,resolution,parameters,processes")
    command.add_argument("--repeats", type=int, default=3)
    command.add_argument("--no-bends", dest="bends", action="store_false", help="the table alone")
    command.add_argument("--out", default="", help="a .json for the figures")
    command.set_defaults(run=scaling)
    options = vars(parser.parse_args())
    torch.set_num_threads(1)
    options.pop("run")(**options)


if __name__ == "__main__":
    main()
