"""The error of a field against the exact one, by time."""

import math
from typing import NamedTuple

import torch
from torch import Tensor
from tqdm import tqdm

from fmdiff.field import Field, need_gaussian
from fmdiff.path import Kind
from fmdiff.pictures import plots
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


def figure(rows: list[Errors], kind: str):
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
