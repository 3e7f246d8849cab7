"""The table of scripts/grid_toy.sh: how far each path x prediction is from gmm4, exactly."""

import csv
import statistics
import sys
from pathlib import Path

import numpy as np
import torch

from fmdiff.build import named
from fmdiff.exact import exact
from fmdiff.metrics.distances import noise_floor, sliced_wasserstein2
from fmdiff.path import CondOT

N, PAIRS = 10_000, 8


def training_seconds(run: Path) -> float:
    with (run / "metrics.csv").open() as file:
        return float(list(csv.DictReader(file))[-1]["seconds"])


def main(out: Path) -> None:
    data = named("data", "gmm4")
    mixture = exact(data, CondOT())
    one = torch.tensor(1.0, dtype=torch.float64)
    real = data.sample(0, 1_000_000, 1)[0].double()
    log_p = mixture.log_prob(real, one).mean()
    fresh = [data.sample(0, N, 100 + i)[0] for i in range(PAIRS)]
    floor = noise_floor(lambda n, seed: data.sample(0, n, seed)[0], N)
    bound = 4 * (0.25 * 0.75 / N) ** 0.5
    lines = [
        f"Limits: mode weights within 4 standard errors ({bound:.4f}) of 1/4, "
        "difference of E log p below 0.05 nats.",
        "",
        "| path | prediction | training s | largest weight error | log p difference "
        "| SW2 in floors | |",
        "|---|---|---|---|---|---|---|",
    ]
    missed = 0
    for run in sorted(out.glob("*-*/points"), key=lambda p: p.parent.name):
        path, _, prediction = run.parent.name.partition("-")
        x = torch.from_numpy(np.load(run / "samples.npz")["arr_0"])
        mode = torch.cdist(x.double(), mixture.means).argmin(1)
        worst = (mode.bincount(minlength=4) / N - 0.25).abs().max().item()
        nats = (mixture.log_prob(x.double(), one).mean() - log_p).item()
        sw2 = statistics.median(sliced_wasserstein2(x, y) for y in fresh) / floor
        held = worst < bound and abs(nats) < 0.05
        missed += not held
        lines.append(
            f"| {path} | {prediction} | {training_seconds(run.parent):.0f} | {worst:.4f} "
            f"| {nats:+.3f} | {sw2:.2f} | {'' if held else 'missed'} |"
        )
    lines += ["", f"{len(lines) - 4} cells, {missed} missed."]
    (out / "table.md").write_text("\n".join(lines) + "\n")
    print("\n".join(lines))


if __name__ == "__main__":
    main(Path(sys.argv[1] if len(sys.argv) > 1 else "outputs/grid_toy"))
