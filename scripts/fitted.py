# moons, adams, NFE 5: 0.032 for 0.088 of the best fixed schedule; NFE 10: 0.0088 for 0.018.
"""Fitted step times and fitted solvers beside fixed ones, on noise that neither was chosen on.

    python scripts/fitted.py RUN [RUN ...] [n=16] [solvers=adams,euler] [nfe=5,10]
    python scripts/fitted.py RUN [RUN ...] solvers=fitted [n=32] [nfe=4,5,6,8] [w=2] [test=128]

RMS distance, per coordinate, to the model's own fine solution (100 steps). `best fixed` is the
best on that very noise: of the laws uniform, ratio(1.1,1.4), power(1.5), karras and logsnr, or, of
solver=fitted, of the solvers that its search may start from. nfe counts steps of solver=fitted:
each costs two evaluations if w is not 1. A few trajectories that part company dominate the RMS, so
`median` compares the median trajectory of fitted with that of adams.
"""

import sys
import time
from dataclasses import replace

import torch

from fmdiff.build import named
from fmdiff.fitted.solver import FittedSolver, chosen, starts
from fmdiff.fitted.times import FIXED, Model, Trajectories, compare
from fmdiff.guidance import CFG
from fmdiff.loading import load
from fmdiff.machine.progress import Bar
from fmdiff.sampling import Sampler

SOLVERS = {"euler": {}, "heun": {}, "adams": {}, "adams order=5": {"order": 5}, "dpmpp_2m": {}}


@torch.no_grad()
def table(run: str, n: int | None, solvers: list[str], nfes: list[int]) -> None:
    field = load(run)
    n = n or max(16, min(1024, 2**13 // torch.Size(field.shape).numel()))

    def model(solver: str, nfe: int) -> Model:
        method = named("solver", solver.split()[0], **SOLVERS[solver])
        return Model(field, Sampler(solver=method, nfe=nfe), 1)

    bar = Bar(10**9, "evaluation")
    seen, other = (Trajectories(model("euler", 5), k * n, k * n + n, 100, bar) for k in (0, 1))
    print(f"{run}, {n} trajectories")
    print("| solver | NFE | uniform | best fixed | fitted | CPU s | times |")
    print("|---|---|---|---|---|---|---|")
    for nfe in nfes:
        for solver in solvers:
            began, asked = time.process_time(), model(solver, nfe)
            found = compare(asked, seen, other)
            spent = time.process_time() - began
            plans = {name: asked.layout(law) for name, law in FIXED.items()}
            fixed = {k: other.error(asked.sampler, made) for k, made in plans.items() if made}
            best = min(fixed, key=fixed.__getitem__)
            times = " ".join(f"{t:.3f}" for t in found["times"])
            print(
                f"| {solver} | {nfe} | {fixed['uniform']:.3g} | {fixed[best]:.3g} {best} | "
                f"{found['error']['fitted']:.3g} | {spent:.0f} | {times} |",
                flush=True,
            )


def distances(trajectories: Trajectories, sampler: Sampler) -> torch.Tensor:
    """The RMS distance per coordinate of each trajectory's end to the fine one."""
    model = trajectories.model
    layout = sampler.plan(model.flow)
    ends = [
        (sampler.carry(field, layout, rows, model.seed).double().cpu() - truth).flatten(1)
        for field, rows, truth in trajectories.parts
    ]
    return torch.cat(ends).square().mean(1).sqrt()


def rms(each: torch.Tensor) -> float:
    return each.square().mean().sqrt().item()


@torch.no_grad()
def solvers_table(run: str, n: int | None, nfes: list[int], w: float, test: int) -> None:
    field, fitted = load(run), FittedSolver(n, 50, 0)
    sampler = Sampler(guidance=CFG(w)) if w != 1 else Sampler()
    asked = fitted.model(field, replace(sampler, steps=nfes[0]))
    n = fitted.trajectories(asked)
    other = Trajectories(asked, 10 * n, 10 * n + test, 100)
    print(f"{run}, w={w:g}, {n} trajectories, judged on {test} others")
    print("| steps | adams | best fixed | fitted | of adams | median | CPU s | times |")
    print("|---|---|---|---|---|---|---|---|", flush=True)
    for steps in nfes:
        began, plain = time.process_time(), replace(sampler, steps=steps)
        asked = fitted.model(field, plain)
        entry = fitted.fit(asked)
        spent = time.process_time() - began
        adams = distances(other, replace(plain, solver="adams"))
        fixed = min(rms(distances(other, chosen(plain, vars(s)))) for s in starts(asked))
        ours = distances(other, chosen(plain, entry))
        times = " ".join(f"{t:.3f}" for t in entry["times"] or [])
        print(
            f"| {steps} | {rms(adams):.3g} | {fixed:.3g} | {rms(ours):.3g} | "
            f"{rms(ours) / rms(adams):.2f} | {(ours.median() / adams.median()).item():.2f} | "
            f"{spent:.0f} | {times} |",
            flush=True,
        )


if __name__ == "__main__":
    torch.set_num_threads(1)
    runs = [word for word in sys.argv[1:] if "=" not in word]
    given = dict(word.split("=") for word in sys.argv[1:] if "=" in word)
    count = int(given["n"]) if "n" in given else None
    for run in runs:
        if given.get("solvers") == "fitted":
            nfes = [int(k) for k in given.get("nfe", "4,5,6,8").split(",")]
            w, test = float(given.get("w", 1)), int(given.get("test", 128))
            solvers_table(run, count, nfes, w, test)
            continue
        table(
            run,
            count,
            given["solvers"].replace("_order", " order").split(",")
            if "solvers" in given
            else [*SOLVERS],
            [int(k) for k in given.get("nfe", "5,10").split(",")],
        )
