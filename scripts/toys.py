# Reached, worst of three seeds (SW2 in noise floors, share off support): moons 1.25 and 1.0 %,
# 8gaussians 1.02 and 1.3 %, checkerboard 1.04 and 11.5 %; training 49 s at best on a busy CPU.
"""Train, sample and measure three toy data sets with the default settings, three seeds each.

python scripts/toys.py [OUT]    writes OUT/toys.md (OUT: outputs/toys); goes on where it stopped

SW2 is the sliced W2 of 10,000 samples to as many fresh real points (median over 8 sets), in noise
floors (the median between 32 pairs of real sets). Off support: farther than 4 noise from the
curves or means, or in a light square; beside it the share of real points.
"""

import csv
import statistics
import subprocess
import sys
from itertools import pairwise
from pathlib import Path

import numpy as np
import torch

from fmdiff.build import named
from fmdiff.metrics.distances import noise_floor, sliced_wasserstein2

DATA, SEEDS, N = ("moons", "8gaussians", "checkerboard"), (0, 1, 2), 10_000
FRESH = range(1000, 1008)  # seeds the noise floor does not use


def fmdiff(*words: str) -> None:
    print("fmdiff", *words, flush=True)
    subprocess.run([sys.executable, "-m", "fmdiff", *words], check=True)


def training_seconds(folder: Path) -> float:
    """The wall time of training; it counts from 0 again after each interruption."""
    with (folder / "metrics.csv").open(newline="") as file:
        seconds = [float(row["seconds"]) for row in csv.DictReader(file)]
    return sum(now for now, then in pairwise([*seconds, 0]) if then < now)


def main(out: Path) -> None:
    torch.set_num_threads(1)
    lines = [
        "| data | seed | training s | SW2 in floors | off support % | real % |",
        "|---|---|---|---|---|---|",
    ]
    for name in DATA:
        data = named("data", name)

        def real(n: int, seed: int, data=data) -> torch.Tensor:
            return data.sample(0, n, seed)[0]

        floor = noise_floor(real, N)
        fresh = [real(N, seed) for seed in FRESH]
        real_off = 100 * data.off_support(torch.cat(fresh)).float().mean()
        for seed in SEEDS:
            run = out / f"{name}-{seed}"
            fmdiff("train", f"data={name}", f"seed={seed}", f"out={run}", "resume=true")
            fmdiff("sample", f"ckpt={run}", f"n={N}", f"out={run}/points", "overwrite=true")
            with np.load(run / "points" / "samples.npz") as archive:
                x = torch.from_numpy(archive["arr_0"])
            sw2 = statistics.median(sliced_wasserstein2(x, y) for y in fresh) / floor
            off = 100 * data.off_support(x).float().mean()
            lines.append(
                f"| {name} | {seed} | {training_seconds(run):.0f} | {sw2:.2f} | {off:.2f} "
                f"| {real_off:.2f} |"
            )
            print(lines[-1], flush=True)
    (out / "toys.md").write_text("\n".join(lines) + "\n")
    print("\n".join(lines))


if __name__ == "__main__":
    main(Path(sys.argv[1] if len(sys.argv) > 1 else "outputs/toys"))
