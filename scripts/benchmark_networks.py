"""Solvers of fmdiff beside other packages' on trained networks: their fields are not smooth.

Used as `python scripts/benchmark.py networks --ckpt RUN`: first the RMS distance per coordinate to
the network's own fine solution from the same noise (targets.network), then fd_DATA of `--fd`
samples by evaluations, and how many it takes to come within 2 % of the fine solution's. The
methods are those of benchmark_solvers and what its head says of them holds here.
"""

import sys
import time
import warnings
from contextlib import suppress

import targets
import torch
from benchmark_solvers import (
    FIXED,
    OURS,
    Ask,
    Cell,
    Cells,
    our_errors,
    peers,
    summary,
    table,
    their_errors,
)
from torch import Tensor

from fmdiff.build import named
from fmdiff.data.images import to_uint8
from fmdiff.errors import FmdiffError
from fmdiff.integration import plan
from fmdiff.loading import load
from fmdiff.metrics.judge import judge

NEAR = 0.02
FEW = [4, 5, 6, 8, 10, 12, 14, 16, 20, 24, 28, 40]  # evaluations tried
JUDGED = ("euler", "midpoint", "heun", "rk4", "dpmpp_2m", "unipc", "deis", "adams, uniform", FIXED)
THEIRS = (
    "torchdiffeq rk4, straight",
    "diffusers DPM++ 2",
    "diffusers UniPC 2",
    "k-diffusion lms",
    "azula vAB 3",
)


def distances(ckpt: str, paths: list[str], nfes: list[int], scales: list[float], n: int) -> Cells:
    """Print a table a path and scale; return their cells."""
    cells: Cells = {}
    for path in paths:
        for w in scales:
            case = targets.network(ckpt, path, w, n)
            ours: dict[int, Cell] = {nfe: our_errors(case, nfe) for nfe in nfes}
            theirs = {nfe: their_errors(case, path, nfe) for nfe in nfes}
            print(f"\n### {ckpt}, {path}, w = {w:g}: RMS distance, {n} samples\n")
            table(ours, theirs)
            sys.stdout.flush()
            cells |= {(ckpt, path, w, k): (ours[k], theirs[k]) for k in nfes}
    return cells


def frechet(ckpt: str, path: str, w: float, n: int, precision: str) -> None:
    """A row a method: its distances, and the evaluations after which all are near."""
    field = load(ckpt)
    data = named("data", {(1, 28, 28): "mnist", (3, 32, 32): "cifar10"}[field.shape])
    said = {"metrics": ["fid"], "features": None, "against": None}
    of = judge(said, data, field.shape, field.classes, 0, torch.device("cpu"))
    case = targets.network(ckpt, path, w, n, precision)

    def distance(x: Tensor) -> float:
        of.clear()
        of.add(to_uint8(x.float().reshape(-1, *field.shape)), None)
        return next(iter(of.results().values())).value

    fine, methods = distance(case.truth), {}
    for name in JUDGED:
        solver, schedule = OURS[name]

        def ours(nfe: int, solver=solver, schedule=schedule) -> Tensor | None:
            with suppress(FmdiffError):
                made = plan(case.field, solver, nfe=nfe, schedule=schedule)
                start = case.field.start(case.eps, made.times[0], 0, 0)
                return targets.solve(case.field, solver, start, made)
            return None

        methods[f"fmdiff {name}"] = ours
    for name in THEIRS:
        if name in peers():
            peer = peers()[name]
            methods[name] = lambda nfe, peer=peer: peer(
                Ask(case, path), nfe // case.field.branches
            )
    print(f"\n### {ckpt}, {path}, w = {w:g}, {precision}: fd of {n} samples, fine {fine:.4f}\n")
    print("| method | " + " | ".join(f"NFE {k}" for k in FEW) + f" | within {NEAR:.0%} from |")
    print("|---" * (len(FEW) + 2) + "|")
    for name, method in methods.items():
        found: dict[int, float] = {}
        for nfe in FEW:
            x = method(nfe * case.field.branches)
            if x is not None:
                found[nfe] = distance(x)
            # two in a row are not there by chance
            if len(found) > 1 and all(abs(v / fine - 1) <= NEAR for v in [*found.values()][-2:]):
                break
        near = [k for k, v in found.items() if abs(v / fine - 1) > NEAR]
        first = next((k for k in found if not near or k > near[-1]), None)
        cells = " | ".join(f"{found[k]:.3f}" if k in found else "" for k in FEW)
        print(f"| {name} | {cells} | {first or '-'} |")
        sys.stdout.flush()


@torch.no_grad()
def networks(
    ckpts: list[str],
    paths: list[str],
    nfes: list[int],
    scales: list[float],
    n: int,
    fd: int,
    precision: str,
) -> None:
    warnings.simplefilter("ignore")
    began = time.process_time()
    cells: Cells = {}
    for ckpt in ckpts:
        if n:
            cells |= distances(ckpt, paths, nfes, scales, n)
        if fd:
            frechet(ckpt, "condot", scales[0], fd, precision)
    if cells:
        summary(cells)
    print(f"\n{time.process_time() - began:.0f} CPU s.")
