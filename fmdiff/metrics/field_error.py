"""The error of a field against the exact one, by time."""

import math
from typing import NamedTuple

import torch
from torch import Tensor
from tqdm import tqdm

from fmdiff.condition import Given
from fmdiff.data.base import Data
from fmdiff.field import Field
from fmdiff.path import Kind
from fmdiff.randomness import noise
from fmdiff.source import need_gaussian


class Errors(NamedTuple):
    """Mean squares over pairs (x, eps) at one time t, summed over dimensions.

    With c the conditional quantity of a pair, u = E[c | x_t] the marginal one and m the model's:

        fm = E|m - u|^2,    cfm = E|m - c|^2,    irreducible = E|c - u|^2,

    and cfm = fm + irreducible (Lipman et al. 2023, theorem 2). Training cannot go below the
    irreducible part. `gap` estimates cfm - fm - irreducible, which is 0 up to its standard error.
    """

    t: float
    fm: float
    fm_error: float  # standard error of fm
    cfm: float
    irreducible: float
    size: float  # E|u|^2
    gap: float
    gap_error: float


def errors(
    field: Field, truth: Field, x: Tensor, y: Given | None, eps: Tensor, t: Tensor, kind: Kind
) -> Errors:
    """Compare `field` with `truth` at time t () for pairs x, eps (n, *shape)."""
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
        t=t.item(),
        fm=fm.mean().item(),
        fm_error=(fm.std() / root).item(),
        cfm=cfm.mean().item(),
        irreducible=irreducible.mean().item(),
        size=square(u).mean().item(),
        gap=gap.mean().item(),
        gap_error=(gap.std() / root).item(),
    )


@torch.no_grad()
def compare(
    field: Field,
    truth: Field,
    data: Data,
    kind: Kind = "v",
    times: int = 20,
    n: int = 10_000,
    seed: int = 0,
    device: torch.device | str = "cpu",
) -> list[Errors]:
    """Compare fields at the middles of `times` equal parts of the interval that both share.

    Raises FmdiffError unless the source is normal and independent of x.
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
