"""Two kinds of features of time at equal steps: bounded frequencies, and those of 1000 t.

python scripts/time_features.py [OUT] [CASE ...]    OUT: outputs/time_features; goes on where it
stopped. It trains what is missing, measures everything again, and prints and writes OUT/table.md.

python scripts/time_features.py OUT maps    how steep flow maps are in their two times: the rms of
du/dt and du/ds at x_t of 8gaussians and t < s, beside those of the exact map.

Quality is that of 20 steps of adams: SW2 of 10,000 points, or the Frechet distance (of pixels for
898 digits, of features=mnist for 500 MNIST images), in floors: the same distance of as many real
samples. dopri5 is asked at its default tolerances. Batches: the largest difference that a sample
has when it is drawn alone, by 7 and with all others.
"""

import csv
import statistics
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from fmdiff.build import named
from fmdiff.data.images import to_uint8
from fmdiff.exact import exact
from fmdiff.field import Field
from fmdiff.loading import load
from fmdiff.metrics.distances import sliced_wasserstein2
from fmdiff.metrics.frechet import frechet_of_features
from fmdiff.path import CondOT
from fmdiff.randomness import generator
from fmdiff.sampling import Sampler

SEEDS, FREQUENCIES = (0, 1, 2), ("null", "50")


class Case(NamedTuple):
    """What is trained, and how many samples are judged, integrated by dopri5 and drawn alone."""

    words: tuple[str, ...]
    judged: int
    solved: int
    alone: int

    @property
    def data(self) -> str:
        return self.words[0].removeprefix("data=")


SMALL = ("model=unet", "model.channels=16")
DIGITS = ("data=digits", *SMALL, "trainer.max_steps=800", "optim.lr=2e-3")
MNIST = ("data=mnist", *SMALL, "trainer.max_steps=500", "trainer.validate_every=250")
MNIST += ("trainer.precision=bf16",)
CASES = {
    "moons": Case(("data=moons",), 10_000, 1000, 64),
    "digits": Case(DIGITS, 1000, 100, 16),
    "mnist": Case(MNIST, 500, 32, 8),
    "moons-edm": Case(("data=moons", "experiment=edm"), 10_000, 1000, 64),
    "moons-vp": Case(("data=moons", "path=vp"), 10_000, 1000, 64),
}
MAPS = {name: ("data=8gaussians", f"objective={name}") for name in ("lsd", "meanflow")}
STEP = 1e-4  # of the differences that tell the slopes


def train(of: tuple[str, ...], frequency: str, seed: int, run: Path) -> float:
    """Train the run if it is not whole, and return its last validation loss."""
    words = (*of, f"model.time_frequency={frequency}", f"seed={seed}", "threads=1")
    command = [sys.executable, "-m", "fmdiff", "train", *words, f"out={run}", "resume=true"]
    subprocess.run(command, check=True)
    with (run / "metrics.csv").open(newline="") as file:
        return [float(row["val_loss"]) for row in csv.DictReader(file) if row["val_loss"]][-1]


def distance(data: str, a: Tensor, b: Tensor) -> float:
    """SW2 of points, or the Frechet distance of images."""
    if data == "moons":
        return sliced_wasserstein2(a, b)
    if data == "digits":
        return frechet_of_features(a.flatten(1).double(), b.flatten(1).double())
    extractor = named("features", "mnist")
    with torch.no_grad():
        a, b = (torch.cat([extractor(to_uint8(part))[0] for part in x.split(200)]) for x in (a, b))
    return frechet_of_features(a.double(), b.double())


def measure(case: Case, run: Path) -> tuple[float, float, float]:
    """Quality in floors, evaluations of dopri5 per sample, and the largest difference."""
    data, field = named("data", case.data), load(run)
    # digits and MNIST have few samples, so those judged are set against the training examples
    real = data.examples(max(2 * case.judged, 1797))[0]
    # the digits stand in the order of their writers
    a, b = real[torch.randperm(len(real), generator=generator(0, "halves"))].tensor_split(2)
    n = min(case.judged, len(a))
    samples = Sampler(solver="adams", steps=20).draw(field, n, 1).x
    quality = distance(case.data, samples, b) / distance(case.data, a[:n], b)
    adaptive = Sampler(solver="dopri5").draw(field, case.solved, 1)
    draws = [
        Sampler(solver="dopri5", batch_size=size).draw(field, case.alone, 1).x
        for size in (1, 7, case.alone)
    ]
    gap = max((x - draws[-1]).abs().max().item() for x in draws)
    return quality, adaptive.nfe_counted, gap


def slopes(field: Field, x_t: Tensor, t: Tensor, s: Tensor) -> tuple[float, float]:
    """The rms of du/dt and du/ds over samples, at x_t (B, d) and t < s (B,)."""

    def u(t: Tensor, s: Tensor) -> Tensor:
        return field.predict(x_t, t, "straight", s)

    start, end = (u(t + STEP, s) - u(t - STEP, s), u(t, s + STEP) - u(t, s - STEP))
    squares = [(change / (2 * STEP)).square().sum(1).mean() for change in (start, end)]
    return squares[0].sqrt().item(), squares[1].sqrt().item()


def maps(out: Path, steps: str = "500") -> None:
    """Print the slopes of maps trained with both kinds of features, and of the exact map."""
    torch.set_num_threads(1)
    data, draws = named("data", "8gaussians"), generator(0, "slopes")
    x = data.examples(500)[0].double()
    eps = torch.randn(x.shape, generator=draws, dtype=x.dtype)
    times = 0.01 + 0.98 * torch.rand(2, len(x), generator=draws, dtype=x.dtype)
    t, s = times.sort(dim=0).values
    x_t = CondOT().mix(x, eps, t)
    print("| | features of time | du/dt | du/ds |\n|---|---|---|---|")
    print("| exact map | | {:.1f} | {:.1f} |".format(*slopes(exact(data, CondOT()), x_t, t, s)))
    for name, words in MAPS.items():
        for frequency in FREQUENCIES:
            run = out / f"{name}-{frequency}-{steps}"
            train((*words, f"trainer.max_steps={steps}"), frequency, 0, run)
            field = load(run).to("cpu", torch.float64)
            kind = "1000 t" if frequency == "null" else f"up to {frequency} rad"
            print("| {} | {} | {:.1f} | {:.1f} |".format(name, kind, *slopes(field, x_t, t, s)))


def main(out: Path, cases: list[str]) -> None:
    torch.set_num_threads(1)
    rows = {
        (name, frequency): [
            (train(CASES[name].words, frequency, seed, run), *measure(CASES[name], run))
            for seed in SEEDS
            for run in [out / f"{name}-{frequency}-{seed}"]
        ]
        for name in cases
        for frequency in FREQUENCIES
    }
    lines = [
        "| | features of time | quality in floors, by seed | validation loss "
        "| dopri5, evaluations | batches of 1, 7, all |",
        "|---|---|---|---|---|---|",
    ]
    for (name, frequency), seeds in rows.items():
        quality, loss, evaluations, gap = zip(*seeds, strict=True)
        kind = "1000 t" if frequency == "null" else f"up to {frequency} rad"
        lines.append(
            f"| {name} | {kind} | {', '.join(f'{q:.2f}' for q in quality)} "
            f"| {statistics.mean(loss):.4f} | {', '.join(f'{e:.0f}' for e in evaluations)} "
            f"| {max(gap):.1e} |"
        )
    (out / "table.md").write_text("\n".join(lines) + "\n")
    print("\n".join(lines))


if __name__ == "__main__":
    words = sys.argv[1:]
    if words[1:2] == ["maps"]:
        sys.exit(maps(Path(words[0]), *words[2:]))
    main(Path(words[0] if words else "outputs/time_features"), words[1:] or list(CASES))
