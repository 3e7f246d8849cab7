"""The variance of the eulerian target with the pair's velocity, by objective.direction.

python scripts/flow_map_variance.py [--data 8gaussians] [--n 2048] [--out FOLDER]

At a state x the target is u + (1 - direction) e + direction J e: e = w - v is the pair's velocity
without its mean, and J is the Jacobian of the flow over the jump. So it has no bias, and its
variance is quadratic in the direction, which is 1 in MeanFlow and 0 in iMF (arXiv:2605.09235
orders methods by it). Pairs and times are drawn as in training, and the flow is the exact one. A
figure is the mean of the squared deviation over that of e: 1 at direction 0, below it where the
flow contracts. The script writes table.md and variance.png, and prints the table.
"""

import argparse
from itertools import pairwise
from pathlib import Path

import torch
from matplotlib import pyplot as plt

from fmdiff.build import named, spec_of
from fmdiff.exact import exact
from fmdiff.objectives.flow_map import FlowMap
from fmdiff.path import CondOT
from fmdiff.randomness import generator, noise
from fmdiff.tables import as_markdown

DIRECTIONS = torch.linspace(0, 1, 11, dtype=torch.float64)
BOUNDS = (0.0, 0.25, 0.5, 0.75, 1.0)  # of the lengths of jumps


def deviations(name: str, n: int, ends: str) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """The lengths of n jumps (n,), e and J e (n, d)."""
    path = CondOT()
    field = exact(named("data", name), path)
    spec = {key: value for key, value in spec_of("objective", "flow_map").items() if key[0] != "_"}
    objective = FlowMap(path, 1.0, **(spec | {"ends": ends, "diagonal": 0.0}))
    columns = objective.times(n, named("time", "uniform"), lambda p: generator(0, p, 0), 0.0)
    t, s = columns[0].double(), columns[1].double()
    x, eps = field.sample(0, n, 0).double(), noise(0, n, field.shape, 0, "eps").double()
    x_t = path.mix(x, eps, t)
    e = x - eps - field.predict(x_t, t, "straight")
    step = 1e-4 * e
    ends_of_flow = [field.flow(x_t + sign * step, t, s) for sign in (1, -1)]
    return s - t, e, (ends_of_flow[0] - ends_of_flow[1]) / 2e-4


def rows(name: str, n: int) -> dict[str, list[float]]:
    """The figures by direction, for jumps of several lengths."""
    curves = {}
    for ends in ("any", "data"):
        length, e, moved = deviations(name, n, ends)
        groups = {f"ends={ends}": length > 0}
        if ends == "any":
            for low, high in pairwise(BOUNDS):
                groups[f"s - t from {low:g} to {high:g}"] = (length > low) & (length <= high)
        for words, part in groups.items():
            square = e[part].square().mean()
            mixed = [torch.lerp(e[part], moved[part], k).square().mean() for k in DIRECTIONS]
            curves[words] = [(value / square).item() for value in mixed]
    return curves


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", default="8gaussians")
    parser.add_argument("--n", type=int, default=2048)
    parser.add_argument("--out", type=Path, default=Path("outputs/flow_map_variance"))
    options = parser.parse_args()
    torch.set_num_threads(1)
    curves = rows(options.data, options.n)
    head = ["direction", *(f"{k:g}" for k in DIRECTIONS)]
    body = [[words, *(f"{value:.2f}" for value in curve)] for words, curve in curves.items()]
    table = as_markdown([head, *body])
    options.out.mkdir(parents=True, exist_ok=True)
    (options.out / "table.md").write_text(table)
    print(table)
    for words, curve in curves.items():
        plt.plot(DIRECTIONS, curve, label=words)
    plt.xlabel("direction (0: iMF, 1: MeanFlow)")
    plt.ylabel("variance, relative to that of the pair's velocity")
    plt.ylim(bottom=0)
    plt.legend()
    plt.savefig(options.out / "variance.png", dpi=150)


if __name__ == "__main__":
    main()
