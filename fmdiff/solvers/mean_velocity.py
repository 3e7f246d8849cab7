"""The mean velocity along the flow of a field, to about 1e-12: the reference for flow maps."""

from functools import cache

import torch
from torch import Tensor

from fmdiff.errors import Failed
from fmdiff.field import Field
from fmdiff.path import expand

TOLERANCE = 1e-12  # of a step's error, relative to 1 + |u|
FIRST = 0.02  # the first step, in the field's time
MOST = 10_000  # the most steps


def mean_velocity(field: Field, x: Tensor, t: Tensor, h: Tensor) -> Tensor:
    """u = (X(x, t, t + h) - x) / h (B, *shape) with the flow X of the field, h < 0 included.

    x (B, *shape), t and h (B,) are float64. The function D(tau) = (X(x, t, t + tau h) - x) / h is
    the solution of

        dD/dtau = v(x + h D, t + tau h),  D(0) = 0,

    and u = D(1). So nothing is divided by h, and h = 0 gives v(x, t). The method is that of order
    8 by Dormand & Prince (Hairer, Norsett & Wanner I, II.5 and II.10). Each sample has its own
    steps, chosen by values alone, so derivatives in x, t and h are those of the flow.

    Raises Failed when a sample needs more than 10,000 steps, or where the field is not finite.
    """
    mean, tau = torch.zeros_like(x), torch.zeros_like(h.detach())
    step = (FIRST / h.detach().abs()).clamp(max=1)
    rows = torch.arange(len(x), device=x.device)
    for _ in range(MOST):
        now = tau[rows]
        last = step[rows] >= 1 - now
        length = torch.where(last, 1 - now, step[rows])
        before = mean[rows]
        ahead, error = _step(field, rows, (x[rows], t[rows], h[rows]), before, now, length)
        passes = error <= 1
        mean = mean.index_copy(0, rows[passes], ahead[passes])
        tau[rows[passes]] = (now + length)[passes]
        factor = (0.8 * error ** (-1 / 8)).nan_to_num(nan=0.2, posinf=2.0).clamp(0.2, 2)
        step[rows] = length * torch.where(passes, factor, factor.clamp(max=1))
        rows = rows[~(passes & last)]
        if not len(rows):
            return mean
        if step[rows].min() < 1e-16:
            break
    behind = rows[tau[rows].argmin()]
    time = (t + tau * h)[behind].item()
    raise Failed(
        f"the exact flow does not get past the straight time {time:.6g}: the field is not finite "
        f"there, or {MOST:,} steps are too few"
    )


def _step(
    field: Field,
    rows: Tensor,
    start: tuple[Tensor, Tensor, Tensor],
    mean: Tensor,
    tau: Tensor,
    length: Tensor,
) -> tuple[Tensor, Tensor]:
    """D a step of `length` (R,) after tau (R,), and the size of its error: 1 is the tolerance.

    start: x, t and h of the samples `rows` (R,) of the field's batch. mean: D at tau.
    """
    (x, t, h), part, slopes = start, field.select(rows), mean[None][:0]
    a, c, b, d3, d5 = (table.to(x.device) for table in _tableau())
    size, wide = expand(h, x), expand(length, x)
    for row, node in zip(a, c, strict=True):
        middle = mean + wide * torch.tensordot(row[: len(slopes)], slopes, 1)
        slope = part(x + size * middle, t + (tau + node * length) * h)
        slopes = torch.cat([slopes, slope[None]])
    ahead = mean + wide * torch.tensordot(b, slopes, 1)
    with torch.no_grad():
        scale = TOLERANCE * (1 + torch.maximum(mean.abs(), ahead.abs()))
        off5, off3 = (
            (torch.tensordot(d, slopes, 1) / scale).flatten(1).square().mean(1) for d in (d5, d3)
        )
        error = length * off5 / (off5 + 0.01 * off3).sqrt().clamp(min=1e-300)
    return ahead, error


@cache
def _tableau() -> tuple[Tensor, ...]:
    """a (12, 12), c (12,), b (12,) and the two rows of the error (12,), as scipy has them."""
    from scipy.integrate import DOP853  # slow to import

    tables = DOP853.A, DOP853.C, DOP853.B, DOP853.E3[:12], DOP853.E5[:12]
    return tuple(torch.tensor(table, dtype=torch.float64) for table in tables)
