"""Train every preset of flow maps on three toy data sets, and measure 1, 2, 4 and 8 evaluations.

python scripts/flow_maps.py [OUT] [key=value ...]
    writes OUT/table.md (OUT: outputs/flow_maps); goes on where it stopped
    data=8gaussians,moons,checkerboard  presets=lsd,imf  seeds=0,1,2  steps=4000

All runs have the default network and settings and equally many steps. Beside the maps stands a
velocity network with Euler, after as many steps (velocity) and after twice as many (velocity_2),
which take about the CPU time of a map. distill and progressive start from the velocity run, and
progressive has five rounds, for 16, 8, 4, 2 and 1 jumps, which share the steps. K samples of it
come from the round for K jumps. The maps that lead to the data alone (consistency, scm) add noise
after each jump (solver.noise=1), so their samples lie on no exact trajectory.

Of 10,000 samples: the median distance to the exact map of the same noise in units of the data's
std (8gaussians alone has a closed form); SW2, the sliced W2 to as many fresh real points (median
over 8 sets), in noise floors (the median between 32 pairs of real sets); and the share off
support. CPU seconds are those of the training commands, about 7 s of start each.
"""

import json
import resource
import statistics
import subprocess
import sys
from collections.abc import Callable, Iterable
from pathlib import Path

import torch
from torch import Tensor

import fmdiff
from fmdiff.build import named
from fmdiff.exact import exact
from fmdiff.metrics.distances import noise_floor, sliced_wasserstein2
from fmdiff.path import CondOT
from fmdiff.randomness import noise

COUNTS, N = (1, 2, 4, 8), 10_000
FRESH = range(1000, 1008)  # seeds the noise floor does not use
ROUNDS = (16, 8, 4, 2, 1)  # of progressive distillation
PLAIN = ("velocity", "velocity_2")
PRESETS = (
    *PLAIN,
    "lsd",
    "distill",
    "shortcut",
    "progressive",
    "meanflow",
    "imf",
    "alphaflow",
    "consistency",
    "scm",
)
QUIET = ("picture_every=100000", "validate_every=100000", "progress=false")
MEASURES = {
    "distance": ("median distance to the exact map, in std of the data", "{:.3f}"),
    "sw2": ("sliced W2, in noise floors", "{:.2f}"),
    "off": ("off support, %", "{:.1f}"),
}
Values = dict[str, list[float]]


def trained(run: Path, *words: str) -> float:
    """Train a run, unless it is there, and return the CPU seconds of the command."""
    cost = run / "cpu.json"
    if not cost.exists():
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        command = ["train", *words, f"out={run}", "resume=true", "threads=1"]
        command += [f"trainer.{word}" for word in QUIET]
        print("fmdiff", *command, flush=True)
        subprocess.run([sys.executable, "-m", "fmdiff", *command], check=True)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        cost.write_text(json.dumps(after.ru_utime - before.ru_utime))
    return float(json.loads(cost.read_text()))


def runs(out: Path, data: str, preset: str, seed: int, steps: int) -> tuple[list[Path], float]:
    """Train the map, or the velocity network, of a cell: its run for each count, CPU seconds."""
    run, velocity = (out / f"{data}-{name}-{seed}" for name in (preset, "velocity"))
    words = [f"data={data}", f"seed={seed}"]
    if preset in PLAIN:
        length = 2 * steps if preset == "velocity_2" else steps
        return [run] * len(COUNTS), trained(run, *words, f"trainer.max_steps={length}")
    words.append(f"objective={preset}")
    if preset == "progressive":
        cpu, teacher = 0.0, velocity
        words.append(f"trainer.max_steps={steps // len(ROUNDS)}")
        for jumps in ROUNDS:
            last, teacher = teacher, run.with_name(f"{run.name}-{jumps}")
            start = f"objective.teacher={last}", f"init={last}"
            cpu += trained(teacher, *words, f"objective.jumps={jumps}", *start)
        return [run.with_name(f"{run.name}-{count}") for count in COUNTS], cpu
    if preset == "distill":
        words += [f"objective.teacher={velocity}", f"init={velocity}"]
    return [run] * len(COUNTS), trained(run, *words, f"trainer.max_steps={steps}")


class Truth:
    """What the samples of a data set are compared with."""

    def __init__(self, name: str) -> None:
        self.data = named("data", name)
        self.eps = noise(0, N, self.data.shape, 0, "start")
        self.floor = noise_floor(self.real, N)
        self.fresh = [self.real(N, seed) for seed in FRESH]
        self.x: Tensor | None = None
        if self.data.mixture() is not None:
            ends = torch.tensor([0.0, 1.0], dtype=torch.float64)
            self.x = exact(self.data, CondOT()).flow(self.eps.double(), *ends)

    def real(self, n: int, seed: int) -> Tensor:
        """Real points (n, d) of a seed."""
        x: Tensor = self.data.sample(0, n, seed)[0]
        return x

    def measures(self, x: Tensor, pathwise: bool) -> dict[str, float]:
        """The measures of samples (N, d), with the distance if each belongs to its noise."""
        sw2 = statistics.median(sliced_wasserstein2(x, y) for y in self.fresh) / self.floor
        values = {"sw2": sw2, "off": 100 * self.data.off_support(x).float().mean().item()}
        if pathwise and self.x is not None:
            distances = (x - self.x).norm(dim=1) / self.data.std
            values["distance"] = distances.median().item()
        return values


def measured(places: list[Path], preset: str, truth: Truth) -> Values:
    """The measures by count of the samples that a cell's runs give."""
    values: Values = {}
    for run, count in zip(places, COUNTS, strict=True):
        field = fmdiff.load(run)
        solver = {"solver": "euler"} if preset in PLAIN else {}  # of a map it is jump
        x = fmdiff.generate(field, eps=truth.eps, steps=count, **solver).x
        pathwise = count == 1 or not field.consistency  # that adds noise after each jump
        for name, value in truth.measures(x, pathwise).items():
            values.setdefault(name, []).append(value)
    return values


def cell(means: Iterable[float], form: str) -> str:
    """The mean over seeds and, of several, the range."""
    values = list(means)
    if not values:
        return "-"
    text = form.format(statistics.mean(values))
    if len(values) == 1:
        return text
    return f"{text} ({form.format(min(values))} to {form.format(max(values))})"


def worse(values: list[float]) -> str:
    """The counts whose mean is at least a tenth above that of a smaller count."""
    above = [i for i in range(1, len(values)) if values[i] > 1.1 * min(values[:i])]
    return ", ".join(f"K={COUNTS[i]}" for i in above)


def table(rows: dict[tuple[str, str, int], Values]) -> str:
    """Markdown tables, one for each data set and measure, of {(data, preset, seed): values}."""
    lines = []
    for data in dict.fromkeys(data for data, _, _ in rows):
        for measure, (title, form) in MEASURES.items():
            of: dict[str, list[Values]] = {}
            for (name, preset, _), values in rows.items():
                if name == data and measure in values:
                    of.setdefault(preset, []).append(values)
            if not of:
                continue
            lines += [f"### {data}: {title}", ""]
            heads = [f"K={count}" for count in COUNTS]
            lines.append(f"| preset | seeds | CPU s | {' | '.join(heads)} | worse with more |")
            lines.append("|---" * (len(COUNTS) + 4) + "|")
            for preset, seeds in of.items():
                columns = list(zip(*(values[measure] for values in seeds), strict=True))
                cells = [cell(column, form) for column in columns]
                cells += ["-"] * (len(COUNTS) - len(cells))
                cpu = statistics.mean(values["cpu"][0] for values in seeds)
                rise = worse([statistics.mean(column) for column in columns])
                lines.append(
                    f"| {preset} | {len(seeds)} | {cpu:.0f} | {' | '.join(cells)} | {rise} |"
                )
            lines.append("")
    return "\n".join(lines)


def options(words: list[str]) -> dict[str, list[str]]:
    """The lists that the command line gives, or else the usual ones."""
    usual = {
        "data": "8gaussians,moons,checkerboard",
        "presets": ",".join(PRESETS),
        "seeds": "0,1,2",
        "steps": "4000",
    }
    return {k: v.split(",") for k, v in (usual | dict(w.split("=") for w in words)).items()}


def once(path: Path, make: Callable[[], Values]) -> Values:
    """The values in a file, which is made first if it is not there."""
    if not path.exists():
        path.write_text(json.dumps(make()))
    values: Values = json.loads(path.read_text())
    return values


def main(words: list[str]) -> None:
    """Train, measure and write the table after every cell, seed by seed."""
    torch.set_num_threads(1)
    out = Path(words.pop(0) if words and "=" not in words[0] else "outputs/flow_maps").absolute()
    out.mkdir(parents=True, exist_ok=True)
    chosen = options(words)
    steps = int(chosen["steps"][0])
    truths: dict[str, Truth] = {}
    rows: dict[tuple[str, str, int], Values] = {}
    for data in chosen["data"]:
        for seed in map(int, chosen["seeds"]):
            for preset in chosen["presets"]:

                def made(data: str = data, preset: str = preset, seed: int = seed) -> Values:
                    places, cpu = runs(out, data, preset, seed, steps)
                    if data not in truths:
                        truths[data] = Truth(data)
                    return measured(places, preset, truths[data]) | {"cpu": [cpu]}

                rows[data, preset, seed] = once(out / f"{data}-{preset}-{seed}.json", made)
                print(data, preset, seed, rows[data, preset, seed], flush=True)
                (out / "table.md").write_text(table(rows))
    print(table(rows))


if __name__ == "__main__":
    main(sys.argv[1:])
