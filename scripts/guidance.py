"""What each guidance does by w: to exact mixtures in the plane, and to MNIST.

    python scripts/guidance.py exact|mnist|digits [OUT] [W ...]

It writes OUT/exact.md, and so on (OUT: outputs/guidance), and goes on where it stopped.

exact: the sliced W2 of 2,000 samples of the guided flow to as many of the tilted density
p(x | y)^w p(x)^(1 - w), the median over 3 pairs of sets, in noise floors, and the RMS distance of
10 and 20 evaluations of adams to the fine solution of the same ODE. mnist, digits: the Frechet
distance of 500 samples of the zoo's model by 10 evaluations of adams in bf16, and the share that
shows its class.
"""

import functools
import json
import statistics
import sys
from collections.abc import Callable
from pathlib import Path

import torch
from conditional_mixture import Draw
from torch import Tensor

import fmdiff
from fmdiff import tables
from fmdiff.build import named
from fmdiff.condition import Condition, Given
from fmdiff.data.images import to_uint8
from fmdiff.exact import Mixture, exact
from fmdiff.field import Field
from fmdiff.files import write_json, write_text
from fmdiff.guidance import APG, CFG, CFGZero, Unguided
from fmdiff.integration import integrate, plan
from fmdiff.machine.precision import hasten
from fmdiff.metrics.distances import noise_floor, sliced_wasserstein2
from fmdiff.metrics.judge import Judge, judge
from fmdiff.path import CondOT
from fmdiff.randomness import generator

N, SETS, IMAGES = 2_000, 3, 500
FRESH = 1000  # the first seed that the noise floor does not use
SIDE, CELLS = 7.0, 400  # of the square on which the tilted density is drawn
SCALES = (1.5, 2.0, 3.0, 5.0, 7.0)
Rule = Callable[[float], Unguided]
RULES: dict[str, Rule] = {
    "none": lambda w: CFG(1.0),
    "cfg": CFG,
    "interval": lambda w: CFG(w, [0.2, 0.8]),
    "apg": APG,
    "apg, eta 1, threshold": lambda w: APG(w, 1.0, 0.5),
    "apg, eta 0, threshold": lambda w: APG(w, 0.0, 0.5),
    "cfg_zero, zero 0": CFGZero,
    "cfg_zero": lambda w: CFGZero(w, 0.04),
}
ON_IMAGES: dict[str, Rule] = {
    "cfg": CFG,
    "interval": lambda w: CFG(w, [0.2, 0.8]),
    "rescale": lambda w: CFG(w, phi=0.7),
    "apg": APG,
    "apg, threshold": lambda w: APG(w, threshold=5.0),
    "cfg_zero, zero 0": CFGZero,
    "cfg_zero": lambda w: CFGZero(w, 0.04),
}


# --- exact ----------------------------------------------------------------------------------


def gmm4(shift: float, n: int) -> tuple[Mixture, Given]:
    """Four Gaussians around 0, moved along the diagonal, and n labels of the class at (-2, -2)."""
    weights, means, covs = named("data", "gmm4").mixture()
    labels = torch.arange(len(weights))
    return Mixture(CondOT(), weights, means + shift, covs, labels), torch.zeros(n).long()


def gmm_cond(c: float, n: int) -> tuple[Mixture, Given]:
    """A mixture whose components overlap, and n rows of a condition."""
    return exact(named("data", "gmm_cond"), CondOT()), Condition({"c": torch.full((n, 1), c)})


TARGETS: dict[str, Callable[[int], tuple[Mixture, Given]]] = {
    "gmm4": functools.partial(gmm4, 0.0),
    "gmm4, class at 0": functools.partial(gmm4, 2.0),
    "gmm_cond, c = 1": functools.partial(gmm_cond, 1.0),
}


@functools.lru_cache
def logs(target: str) -> tuple[Tensor, Tensor, Tensor]:
    """The points of a fine grid, and log p(x) and log p(x | y) there."""
    middles = (torch.arange(CELLS, dtype=torch.float64) + 0.5) / CELLS * 2 * SIDE - SIDE
    grid, one = torch.cartesian_prod(middles, middles), torch.ones((), dtype=torch.float64)
    pairs = []
    for part in grid.split(40_000):
        field, y = TARGETS[target](len(part))
        pairs.append([each.log_prob(part, one) for each in (field, field.bind(y))])
    alone, conditional = (torch.cat(parts) for parts in zip(*pairs, strict=True))
    return grid, alone, conditional


def tilted(target: str, w: float) -> Draw:
    """Draws of the tilted density: a cell of the grid, and a uniform point in it."""
    grid, alone, conditional = logs(target)
    below = torch.lerp(alone, conditional, w).softmax(0).cumsum(0)

    def draw(n: int, seed: int) -> Tensor:
        draws = generator(seed, "tilted")
        uniform = torch.rand(n, dtype=torch.float64, generator=draws)
        cell = torch.searchsorted(below, uniform).clamp(max=len(grid) - 1)
        inside = torch.rand(n, 2, dtype=torch.float64, generator=draws) - 0.5
        return (grid[cell] + inside * (2 * SIDE / CELLS)).float()

    return draw


def flow(target: str, rule: Unguided, nfe: int, n: int, dtype=torch.float32) -> Tensor:
    """n samples of the guided flow by so many evaluations of adams."""
    field, y = TARGETS[target](n)
    guided, solver = rule(field, y), named("solver", "adams")
    layout = plan(guided, solver, nfe=nfe)
    eps = torch.randn(n, 2, generator=generator(0, "guided"), dtype=torch.float64).to(dtype)
    x = guided.start(eps, layout.times[0], 0, 0)
    x = integrate(solver, guided, x, layout.times, jump=layout.jump)
    return guided.predict(x, layout.times[-1], "x") if layout.jump else x


def moments(x: Tensor) -> dict[str, str]:
    return {
        "mean": f"({x[:, 0].mean():.2f}, {x[:, 1].mean():.2f})",
        "std": f"{x.std(0).mean():.2f}",
    }


def exactly(target: str, name: str, w: float) -> dict[str, str]:
    """The row of a guidance; `tilted` is a set of exact draws."""
    draw = tilted(target, w)
    if name == "tilted":
        return {"SW2": "1.0", **moments(draw(SETS * N, 0)), "NFE 10": "", "NFE 20": ""}
    rule, floor = RULES[name](w), noise_floor(draw, N, 16)
    x = flow(target, rule, 60, SETS * N)
    parts = enumerate(x.split(N), FRESH)
    far = statistics.median(sliced_wasserstein2(part, draw(N, seed)) for seed, part in parts)
    fine = flow(target, rule, 400, 128, torch.float64)
    few = {nfe: flow(target, rule, nfe, 128, torch.float64) - fine for nfe in (10, 20)}
    errors = {f"NFE {nfe}": f"{error.square().mean().sqrt():.4f}" for nfe, error in few.items()}
    return {"SW2": f"{far / floor:.1f}", **moments(x), **errors}


# --- images -------------------------------------------------------------------------------


@functools.lru_cache
def model(name: str) -> tuple[Field, Judge]:
    """The zoo's model of a data set, and the judge of its samples."""
    field, where = fmdiff.load(f"zoo:{name}"), torch.device("cpu")
    hasten(field, "bf16", False, where)
    metrics = ["fid", "agreement"] if name == "mnist" else ["fid"]  # its classifier is the judge
    words = {"metrics": metrics, "features": None, "against": None}
    return field, judge(words, named("data", name), field.shape, field.classes, 0, where)


def on_images(target: str, name: str, w: float) -> dict[str, str]:
    field, of = model(target)
    how = {"solver": "adams", "schedule": "uniform", "nfe": 10, "guidance": ON_IMAGES[name](w)}
    samples = fmdiff.generate(field, IMAGES, **how)
    of.clear()
    of.add(to_uint8(samples.x), samples.y)
    values = {key: f"{metric.value:.4g}" for key, metric in of.results().items()}
    return values | {"NFE": f"{samples.nfe_counted:g}"}


# --- tables ---------------------------------------------------------------------------------


def cells(out: Path, what: str, scales: list[float]) -> None:
    """The cells of all targets, w and guidances; those in the JSON file are not computed again."""
    file, compute = out / f"{what}.json", exactly if what == "exact" else on_images
    names = ["tilted", *RULES] if what == "exact" else [*ON_IMAGES]
    table: dict[str, dict[str, str]] = json.loads(file.read_text()) if file.exists() else {}
    for w in scales:
        for target in TARGETS if what == "exact" else [what]:
            for name in names if w != 1 else ["cfg"]:
                key = f"{target}; {w:g}; {name}"
                if key not in table:
                    table[key] = compute(target, name, w)
                    write_json(file, table)
                    print(key, *table[key].values(), flush=True)
    rows = [(*key.split("; "), *cell.values()) for key, cell in sorted(table.items())]
    head = ("target", "w", "guidance", *next(iter(table.values())))
    write_text(out / f"{what}.md", tables.as_markdown([head, *rows]))


@torch.no_grad()
def main(words: list[str]) -> None:
    torch.set_num_threads(1)
    scales = [float(word) for word in words if word.replace(".", "").isdigit()]
    names = [word for word in words if not word.replace(".", "").isdigit()]
    if not names or names[0] not in ("exact", "mnist", "digits"):
        raise SystemExit(__doc__)
    out = Path(names[1] if len(names) > 1 else "outputs/guidance")
    out.mkdir(parents=True, exist_ok=True)
    cells(out, names[0], scales or [1.0, *SCALES])


if __name__ == "__main__":
    main(sys.argv[1:])
