"""fmdiff evaluate: a field against the truth."""

import csv
import json
import math
from pathlib import Path
from typing import Any, NamedTuple

import torch
from omegaconf import OmegaConf
from torch import Tensor
from tqdm import tqdm

from fmdiff import device, plots
from fmdiff.exact import exact
from fmdiff.field import Field, need_gaussian
from fmdiff.loading import opened
from fmdiff.path import Kind
from fmdiff.randomness import noise


class Errors(NamedTuple):
    """Mean squares over pairs (x, eps) at one time t, summed over dimensions.

    With c the conditional quantity of a pair, u = E[c | x_t] the marginal one and m the model's:

        fm = E|m - u|^2,    cfm = E|m - c|^2,    irreducible = E|c - u|^2,

    and cfm = fm + irreducible (Lipman et al. 2023, theorem 2): training cannot go below the
    irreducible part. `gap` estimates cfm - fm - irreducible, 0 up to its standard error.
    """

    t: float
    fm: float
    fm_error: float  # standard error of fm
    cfm: float
    irreducible: float
    size: float  # E|u|^2
    gap: float
    gap_error: float


def errors(field: Field, truth: Field, x: Tensor, y: Tensor | None, eps: Tensor, t: Tensor, kind):
    """The Errors of `field` against `truth` at time t () for pairs x, eps (n, *shape)."""
    x_t = field.path.mix(x, eps, t)
    c = field.path.mix(x, eps, t, kind)
    if y is not None:
        field, truth = field.bind(y), truth.bind(y)
    m, u = field.predict(x_t, t, kind), truth.predict(x_t, t, kind)

    def square(difference: Tensor) -> Tensor:
        return difference.square().flatten(1).sum(1)

    fm, cfm, irreducible = square(m - u), square(m - c), square(c - u)
    gap = cfm - fm - irreducible
    root = math.sqrt(len(x))
    return Errors(
        *(t.item(), fm.mean().item(), (fm.std() / root).item(), cfm.mean().item()),
        *(irreducible.mean().item(), square(u).mean().item()),
        *(gap.mean().item(), (gap.std() / root).item()),
    )


@torch.no_grad()
def compare(
    field: Field,
    truth: Field,
    data,
    kind: Kind = "v",
    times: int = 20,
    n: int = 10_000,
    seed: int = 0,
    device="cpu",
) -> list[Errors]:
    """Errors at the middles of `times` equal parts of the interval both fields share.

    Raises FmdiffError when the source is not normal and independent of x.
    """
    need_gaussian(field, "against=exact")
    (lo, hi), (first, last) = field.interval(kind), truth.interval(kind)
    lo, hi = max(lo, first), min(hi, last)
    x, y = data.sample(0, n, seed)
    x, y = x.to(device, torch.float64), None if y is None else y.to(device)
    rows = []
    for i in tqdm(range(times), unit="time", disable=None, leave=False):
        t = torch.tensor(lo + (hi - lo) * (i + 0.5) / times, dtype=torch.float64)
        eps = noise(0, n, field.shape, seed, "evaluate", i).to(x)
        rows.append(errors(field, truth, x, y, eps, t, kind))
    return rows


def evaluate(cfg, folder: Path) -> None:
    """Write errors.csv, errors.png and results.json of ckpt= or model= against the exact field."""
    where = device.pick(cfg.device)
    if where.type == "cpu":
        torch.set_num_threads(cfg.threads or torch.get_num_threads())
    settings: dict[str, Any] = OmegaConf.to_container(cfg)  # type: ignore[assignment]
    field, data = opened(settings)
    truth = exact(data, field.path)
    field = field.to(where, torch.float64)
    rows = compare(field, truth, data, cfg.kind, cfg.times, cfg.n, cfg.seed, where)
    mean = {
        name: sum(values) / len(rows)
        for name, values in zip(Errors._fields, zip(*rows, strict=True), strict=True)
    }
    print("     t   E|m - u|^2        +-  relative   E|m - c|^2   E|c - u|^2")
    for row in rows:
        print(
            f"{row.t:6.3f} {row.fm:12.4g} {row.fm_error:9.1g} {row.fm / row.size:9.2%} "
            f"{row.cfm:12.4g} {row.irreducible:12.4g}"
        )
    error = math.sqrt(sum(row.gap_error**2 for row in rows)) / len(rows)
    print(
        f"over time: FM loss {mean['fm']:.4g} = CFM loss {mean['cfm']:.4g} - irreducible "
        f"{mean['irreducible']:.4g}, to {mean['gap']:+.1g} +- {error:.1g}"
    )
    with (folder / "errors.csv").open("w", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(Errors._fields)
        writer.writerows(rows)
    report = {
        "against": cfg.against,
        "kind": cfg.kind,
        "mean": mean | {"gap_error": error},
        "rows": [row._asdict() for row in rows],
        "config": settings,
    }
    (folder / "results.json").write_text(json.dumps(report, indent=2, default=str) + "\n")
    plots.save(_figure(rows, cfg.kind), folder / "errors.png")
    for name in ("errors.csv", "results.json", "errors.png"):
        print(f"  {folder / name}")


def _figure(rows: list[Errors], kind: str):
    figure, [ax] = plots.panels(4.6, 3.0)
    t = [row.t for row in rows]
    for name, label, look in (
        ("cfm", "CFM loss", {"color": plots.DATA}),
        ("irreducible", "irreducible", {"color": plots.DATA, "linestyle": "--"}),
        ("fm", "FM loss", {"color": plots.SAMPLES}),
    ):
        ax.semilogy(t, [max(getattr(row, name), 1e-20) for row in rows], label=label, **look)
    ax.set_title(f"squared error of {kind} by time", fontsize=9, color=plots.INK)
    ax.set_xlabel("$t$", fontsize=8, color=plots.INK)
    ax.legend(frameon=False, fontsize=7, labelcolor=plots.INK)
    return figure
