# moons, adams, NFE 5: 0.032 for 0.088 of the best fixed schedule; NFE 10: 0.0088 for 0.018.
"""Fitted step times beside the best fixed schedule, on noise that neither was chosen on.

    python scripts/fitted.py RUN [RUN ...] [n=16] [solvers=adams,euler] [nfe=5,10]

RMS distance, per coordinate, to the model's own fine solution (100 steps); `best fixed` is the
best on that very noise of uniform, ratio(1.1,1.4), power(1.5), karras and logsnr.
"""

import sys
import time

import torch

from fmdiff.build import named
from fmdiff.fitted import FIXED, Model, Trajectories, compare
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


if __name__ == "__main__":
    torch.set_num_threads(1)
    runs = [word for word in sys.argv[1:] if "=" not in word]
    given = dict(word.split("=") for word in sys.argv[1:] if "=" in word)
    for run in runs:
        table(
            run,
            int(given["n"]) if "n" in given else None,
            given["solvers"].replace("_order", " order").split(",")
            if "solvers" in given
            else [*SOLVERS],
            [int(k) for k in given.get("nfe", "5,10").split(",")],
        )
