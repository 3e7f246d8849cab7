"""Solvers of fmdiff beside other packages' on exact fields.

Used as `python scripts/benchmark.py solvers`; needs torchdiffeq, flow_matching and diffusers, and
takes azula and k-diffusion along where they are installed (of k-diffusion its file sampling.py
alone is loaded). Every method solves the same guided ODEs (scripts/targets.py) from the same
states, and is asked how far its ends are from a fine solution, per coordinate and RMS.

A peer runs on the noise levels its own users would have: the path's time in equal steps (condot:
r, vp: t, edm: Karras levels from 80 to 0.002 and then 0), schedulers on vp also Karras levels down
to 0.01 (those of "karras" below), and what is a plain ODE solver also in our straight coordinates
("straight"). States, levels and predictions are converted in `Ask`, which counts the questions;
a method that asks more than it may is a fault of this file. float64, but for what diffusers does:
DPMSolverMultistep and the FlowMatch schedulers step in float32.

Left out: flow-matching schedulers beyond condot; k-diffusion's exponential methods on condot,
where its noise level is infinite (its ODE solvers run there as others run them, on the level
1 - r); azula's exponential ones on condot. diffusers' multistep schedulers begin on condot at the
level 1 - 1e-6 or 0.999 (theirs; better or worse, both are rows) since theirs cannot be 1.
"""

import functools
import math
import sys
import time
import types
import warnings
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from importlib.util import find_spec

import targets
import torch
from torch import Tensor

from fmdiff.build import named
from fmdiff.errors import FmdiffError
from fmdiff.integration import integrate
from fmdiff.schedules import UNIFORM

ONE = torch.ones((), dtype=torch.float64)
LATE = 1 - 1e-6  # the first noise level of multistep schedulers on condot
VP_END = 1 - 1e-3  # where native solvers of vp stop, as v is infinite at 1; then a jump
FIXED = "adams"  # the default solver with its own law of steps, whatever the case

# --- ours -----------------------------------------------------------------------------------

PLAIN = ["euler", "midpoint", "heun", "rk4", "dpmpp_2m", "dpmpp_3m", "unipc", "deis"]
RATIO = named("schedule", "ratio")
OURS: dict[str, tuple] = {  # without a schedule the solver's own law
    FIXED: (named("solver", "adams"), None),
    "adams, uniform": (named("solver", "adams"), UNIFORM),
    "adams weigh=false": (named("solver", "adams", weigh=False), None),
    "adams order=3 corrector=false weigh=false": (
        named("solver", "adams", order=3, corrector=False, weigh=False),
        UNIFORM,
    ),
    **{name: (named("solver", name), None) for name in PLAIN},
    "midpoint, ratio": (named("solver", "midpoint"), RATIO),
    "adams, logsnr": (named("solver", "adams"), named("schedule", "logsnr")),
    "unipc, logsnr": (named("solver", "unipc"), named("schedule", "logsnr")),
}


# --- the border -----------------------------------------------------------------------------


class Ask:
    """A case as a peer sees it: coordinates (a, b), x_t = a x + b eps; counts the questions."""

    def __init__(self, case: targets.Case, name: str) -> None:
        self.case, self.name, self.asked = case, name, 0
        self.path = targets.PATHS[name]
        self.first, self.last = case.field.interval("v")  # in r

    def straight(self, x: Tensor, r: Tensor) -> Tensor:
        """x - eps at the state x in straight coordinates."""
        self.asked += 1
        return self.case.field(x, r)

    def x_hat(self, x: Tensor, a: Tensor, b: Tensor) -> Tensor:
        self.asked += 1
        return self.case.field.predict(x / (a + b), a / (a + b), "x")

    def v(self, x: Tensor, t: Tensor) -> Tensor:
        """The velocity in the path's own coordinates and time, without dividing by beta."""
        (a, b), (d_a, d_b) = self.path.row("x_t", t), self.path.row("v", t)
        z, r = x / (a + b), a / (a + b)
        ahead = self.straight(z, r)
        return d_a * (z + (1 - r) * ahead) + d_b * (z - r * ahead)

    def levels(self, n: int, law: str) -> Tensor:
        """r at n + 1 times (n for n - 1 steps and a jump), the last one 1; see the file's head."""
        u = torch.linspace(0, 1, n + 1, dtype=torch.float64)
        if law == "time" and self.last == 1:
            return self.path.r(u)
        u = torch.linspace(0, 1, max(n, 2), dtype=torch.float64)[:n]
        if law == "time":
            return torch.cat([self.path.r(u), ONE[None]])
        ends = torch.tensor([1 / self.first - 1, 0.01], dtype=torch.float64) ** (1 / 7)
        return torch.cat([1 / (1 + torch.lerp(*ends, u) ** 7), ONE[None]])


Peer = Callable[[Ask, int], Tensor | None]  # the ends of the states, for n questions at most


# --- peers ----------------------------------------------------------------------------------

STAGES = {"euler": 1, "midpoint": 2, "heun2": 2, "rk4": 4}


def torchdiffeq(method: str, ask: Ask, n: int) -> Tensor | None:
    """In straight coordinates, equal steps of r."""
    from torchdiffeq import odeint

    jump = ask.last < 1
    steps = (n - jump) // STAGES[method]
    if steps < 1:
        return None
    times = torch.linspace(ask.first, ask.last, steps + 1, dtype=torch.float64)
    x = odeint(lambda r, x: ask.straight(x, r), ask.case.start, times, method=method)[-1]
    return ask.x_hat(x, times[-1], 1 - times[-1]) if jump else x


def flow_matching(method: str, ask: Ask, n: int) -> Tensor | None:
    """The path's own ODE, equal steps of t."""
    from flow_matching.solver import ODESolver

    end = VP_END if ask.name == "vp" else 1.0
    jump = ask.name != "condot"
    steps = (n - jump) // STAGES[method]
    if steps < 1:
        return None
    times = torch.linspace(0, end, steps + 1, dtype=torch.float64)
    (a, b), (p, q) = (ask.path.row("x_t", t) for t in times[[0, -1]])
    solver = ODESolver(lambda x, t: ask.v(x, t))
    x = solver.sample((a + b) * ask.case.start, None, method, time_grid=times)
    return ask.x_hat(x, p, q) if jump else x


def multistep(kind: str, law: str, order: int, first: float, ask: Ask, n: int):
    """A multistep scheduler of diffusers, whose levels are replaced by ours in float64."""
    import diffusers

    flow = ask.name == "condot"
    if (law == "karras" and ask.name != "vp") or (first == 0.999 and not flow):
        return None
    options = {"prediction_type": "sample", "use_flow_sigmas": flow, "solver_order": order}
    scheduler = getattr(diffusers, kind)(**options)
    scheduler.set_timesteps(n)
    r = ask.levels(n, law)
    sigmas = 1 - r if flow else (1 - r) / r
    if flow:
        sigmas[0] = first
    if kind.startswith("DEIS"):
        sigmas[-1] = 1e-6  # it takes logarithms
    scheduler.sigmas = sigmas
    alphas = 1 - sigmas if flow else (1 + sigmas**2) ** -0.5
    betas = sigmas if flow else sigmas * alphas
    x = ask.case.start * (alphas[0] + betas[0])
    for a, b, step in zip(alphas, betas, scheduler.timesteps, strict=False):
        x = scheduler.step(ask.x_hat(x, a, b), step, x).prev_sample
    return x


def flow_match(kind: str, ask: Ask, n: int) -> Tensor | None:
    """diffusers' FlowMatch schedulers, the levels given: their own end at 0.001 too early."""
    import diffusers

    if ask.name != "condot":
        return None
    scheduler = getattr(diffusers, f"FlowMatch{kind}DiscreteScheduler")()
    if kind == "Euler":
        scheduler.set_timesteps(sigmas=(1 - ask.levels(n, "time"))[:-1].tolist())
        levels = scheduler.sigmas.double()
    else:
        scheduler.set_timesteps((n + 1) // 2)
        sigmas = 1 - ask.levels((n + 1) // 2, "time")
        levels = torch.cat([sigmas[:1], sigmas[1:-1].repeat_interleave(2)])  # where it is asked
        scheduler.sigmas = torch.cat([levels, sigmas[-1:]])
    x = ask.case.start
    for level, step in zip(levels, scheduler.timesteps, strict=False):
        x = scheduler.step(-ask.straight(x, 1 - level), step, x).prev_sample
    return x


def k_sampling() -> types.ModuleType:
    """k_diffusion.sampling without its package's __init__, which wants what samplers do not."""
    import importlib

    if "k_diffusion" not in sys.modules:
        package, spec = types.ModuleType("k_diffusion"), find_spec("k_diffusion")
        package.__path__ = list(spec.submodule_search_locations or []) if spec else []
        sys.modules["k_diffusion"] = package
    return importlib.import_module("k_diffusion.sampling")


def k_diffusion(name: str, law: str, ask: Ask, n: int) -> Tensor | None:
    flow = ask.name == "condot"
    if (flow and name == "dpmpp_2m") or (law == "karras" and ask.name != "vp"):
        return None
    r = ask.levels((n + 1) // 2 if name in ("heun", "dpm_2") else n, law)
    sigmas = 1 - r if flow else (1 - r) / r

    def model(x: Tensor, sigma: Tensor) -> Tensor:
        return ask.x_hat(x, ONE - sigma[0] if flow else ONE, sigma[0])

    x = ask.case.start * (1 if flow else 1 / r[0])
    return getattr(k_sampling(), f"sample_{name}")(model, x, sigmas, disable=True)


def azula(name: str, law: str, order: int, ask: Ask, n: int) -> Tensor | None:
    """law=time: the path's own; law=straight: equal steps of r. Its time runs backwards."""
    import azula.denoise as denoise
    import azula.sample as sample
    from torch import nn

    class Exact(nn.Module):
        def schedule(self, t: Tensor) -> tuple[Tensor, Tensor]:
            r = ask.last + t * (ask.first - ask.last)
            return (r, 1 - r) if law == "straight" else ask.path.row("x_t", 1 - t)

        def forward(self, x: Tensor, t: Tensor):
            return denoise.DiracPosterior(ask.x_hat(x, *self.schedule(t)))

    ends = name == "vAB"  # may go to beta = 0 and start at alpha = 0
    if ask.name == "condot" and (law == "straight" or not ends):
        return None  # what law=time does already, or cannot do
    model = Exact()
    stop = 0.0 if ends or ask.last < 1 else 1 - VP_END
    jump = ask.last < 1 or stop > 0
    if n - jump < 1:
        return None
    kind = getattr(sample, f"{name}Sampler")
    solver = kind(model, order, stop=stop, steps=n - jump, silent=True, dtype=torch.float64)
    (a, b), (p, q) = (model.schedule(t) for t in solver.timesteps[[0, -1]])
    x = solver((a + b) * ask.case.start)
    return ask.x_hat(x, p, q) if jump else x


@functools.cache
def peers() -> dict[str, Peer]:
    found: dict[str, Peer] = {}
    for method in STAGES:
        found[f"torchdiffeq {method}, straight"] = partial(torchdiffeq, method)
        found[f"flow_matching {method}"] = partial(flow_matching, method)
    laws = (("time", LATE, ""), ("time", 0.999, ", 0.999"), ("karras", LATE, ", karras"))
    for kind, short in (("DPMSolver", "DPM++"), ("UniPC", "UniPC"), ("DEIS", "DEIS")):
        for order in (2, 3):
            for law, first, note in laws:
                peer = partial(multistep, f"{kind}MultistepScheduler", law, order, first)
                found[f"diffusers {short} {order}{note}"] = peer
    for kind in ("Euler", "Heun"):
        found[f"diffusers FlowMatch{kind}"] = partial(flow_match, kind)
    if find_spec("k_diffusion"):
        for name in ("euler", "heun", "dpm_2", "lms", "dpmpp_2m"):
            for law, note in (("time", ""), ("karras", ", karras")):
                found[f"k-diffusion {name}{note}"] = partial(k_diffusion, name, law)
    if find_spec("azula"):
        for order in (2, 3):
            found[f"azula xEAB {order}"] = partial(azula, "xEAB", "time", order)
        for order in (2, 3, 4):
            for law, note in (("time", ""), ("straight", ", straight")):
                found[f"azula vAB {order}{note}"] = partial(azula, "vAB", law, order)
    return found


# --- tables ---------------------------------------------------------------------------------

Cell = dict[str, float]  # by method


def our_errors(case: targets.Case, nfe: int) -> Cell:
    found = {}
    for name, (solver, schedule) in OURS.items():
        with suppress(FmdiffError):  # not one step for so few
            found[name] = targets.error(case, solver, nfe // case.field.branches, schedule)
    return found


def their_errors(case: targets.Case, path: str, nfe: int) -> Cell:
    found = {}
    for name, peer in peers().items():
        ask, may = Ask(case, path), nfe // case.field.branches
        x = peer(ask, may)
        if ask.asked > may:
            raise SystemExit(f"{name} asked {ask.asked} times, {may} were allowed")
        if x is not None:
            error = targets.distance(case, x.double())
            found[name] = error if math.isfinite(error) else math.inf
    return found


def figure(error: float | None) -> str:
    return "-" if error is None else f"{error:.1e}" if math.isfinite(error) else "inf"


def table(ours: dict[int, Cell], theirs: dict[int, Cell]) -> None:
    """A row a method; the best peer of each column in bold."""
    best = {nfe: min(cell, key=cell.__getitem__) for nfe, cell in theirs.items()}
    print("| method | " + " | ".join(f"NFE {nfe}" for nfe in ours) + " |")
    print("|---|" + "---|" * len(ours))
    for found, prefix in ((ours, "fmdiff "), (theirs, "")):
        for name in dict.fromkeys(name for cell in found.values() for name in cell):
            marks = {nfe: "**" if not prefix and best[nfe] == name else "" for nfe in found}
            cells = (f"{marks[n]}{figure(c.get(name))}{marks[n]}" for n, c in found.items())
            print(f"| {prefix}{name} | " + " | ".join(cells) + " |")


Key = tuple[str, str, float, int]  # a target or checkpoint, a path, w, evaluations
Cells = dict[Key, tuple[Cell, Cell]]  # ours and theirs

MOST = 1.5  # times the error of the best peer


def ratio(cell: tuple[Cell, Cell]) -> float:
    """The default solver's error over that of the best peer."""
    return cell[0].get(FIXED, math.inf) / min(cell[1].values())


def summary(cells: Cells) -> None:
    """The default solver beside the best peer of each cell, and heun."""
    print(f"\n### Error of {FIXED} over the best peer's: geometric mean, worst\n")
    nfes = sorted({key[3] for key in cells})
    print("| | " + " | ".join(f"NFE {nfe}" for nfe in nfes) + " |")
    print("|---" * (1 + len(nfes)) + "|")
    for w in [*sorted({key[2] for key in cells}), None]:
        row = []
        for nfe in nfes:
            some = [c for k, c in cells.items() if k[3] == nfe and w in (None, k[2])]
            ratios = torch.tensor([ratio(cell) for cell in some], dtype=torch.float64)
            row.append(f"{ratios.log().mean().exp():.2f}, {ratios.max():.1f}")
        print(f"| {'all' if w is None else f'w = {w:g}'} | " + " | ".join(row) + " |")
    missed = {key: cell for key, cell in cells.items() if ratio(cell) > MOST}
    print(f"\n### Beyond {MOST} times the best peer: {len(missed)} of {len(cells)} cells\n")
    print("| target | path | w | NFE | error | best peer | error | ratio |")
    print("|---" * 8 + "|")
    for (target, path, w, nfe), cell in missed.items():
        ours, theirs = cell
        peer = min(theirs, key=theirs.__getitem__)
        print(
            f"| {target} | {path} | {w:g} | {nfe} | {figure(ours.get(FIXED))} | {peer} "
            f"| {figure(theirs[peer])} | {ratio(cell):.2f} |"
        )
    worse = [
        k for k, (ours, _) in cells.items() if ours.get(FIXED, 0) > ours.get("heun", math.inf)
    ]
    print(f"\nWorse than heun in {len(worse)} of {len(cells)} cells: {worse}")


# our solver, the peer that does the same on the same levels, the path, the tolerance (1e-5 where
# the peer steps in float32)
PAIRS = [
    ("euler", "torchdiffeq euler, straight", "condot", 1e-11),
    ("euler", "flow_matching euler", "condot", 1e-11),
    ("euler", "diffusers FlowMatchEuler", "condot", 1e-5),
    ("euler", "k-diffusion euler", "vp", 1e-11),
    ("midpoint", "torchdiffeq midpoint, straight", "vp", 1e-11),
    ("heun", "torchdiffeq heun2, straight", "vp", 1e-11),
    ("dpmpp_2m", "diffusers DPM++ 2", "vp", 1e-5),
    ("dpmpp_2m", "k-diffusion dpmpp_2m", "vp", 1e-9),
    ("unipc", "diffusers UniPC 3", "vp", 1e-9),
    ("deis", "diffusers DEIS 3", "vp", 1e-5),  # which ends at the level 1e-6
    ("adams 4", "k-diffusion lms", "condot", 1e-9),
    ("adams 3", "azula vAB 3", "condot", 1e-9),
]


def agreement() -> None:
    print("\n### Counterparts: largest difference of a coordinate, 12 questions, w = 3\n")
    print("| fmdiff | peer | path | eight_gaussians | mixture64_1 | tolerance | |")
    print("|---" * 7 + "|")
    for name, peer, path, tolerance in (pair for pair in PAIRS if pair[1] in peers()):
        kind, _, order = name.partition(" ")
        plain = {"corrector": False, "weigh": False, "order": int(order)} if order else {}
        solver, off = named("solver", kind, **plain), []
        for target in ("eight_gaussians", "mixture64_1"):
            ask = Ask(case := targets.case(target, path, 3.0, 16), path)
            theirs = peers()[peer](ask, 12)
            assert theirs is not None
            times = ask.levels(12, "time")
            if "straight" in peer:
                times = torch.linspace(ask.first, 1, 12 // solver.nfe(1) + 1, dtype=torch.float64)
            x = integrate(solver, case.field, case.start, times)
            off.append((x - theirs).abs().max().item())
        shown = " | ".join(f"{value:.1e}" for value in off)
        verdict = "agrees" if max(off) <= tolerance else "DIFFERS"
        print(f"| {name} | {peer} | {path} | {shown} | {tolerance:g} | {verdict} |")


@torch.no_grad()
def solvers(chosen: list[str], nfes: list[int], scales: list[float], n: int) -> None:
    warnings.simplefilter("ignore")  # of diffusers, about numpy
    began = time.process_time()
    cells: Cells = {}
    for target in chosen:
        for path in targets.PATHS:
            for w in scales:
                case = targets.case(target, path, w, n)
                ours = {nfe: our_errors(case, nfe) for nfe in nfes}
                theirs = {nfe: their_errors(case, path, nfe) for nfe in nfes}
                print(f"\n### {target}, {path}, w = {w:g}\n")
                table(ours, theirs)
                sys.stdout.flush()
                cells |= {(target, path, w, k): (ours[k], theirs[k]) for k in nfes}
    summary(cells)
    agreement()
    print(f"\n{n} states a case, {time.process_time() - began:.0f} CPU s.")
