"""Derivatives of a flow map, by a difference or by forward-mode differentiation."""

import torch
from torch import Tensor

from fmdiff.field import Field
from fmdiff.path import Path, expand


def derivative(
    field: Field,
    x_t: Tensor,
    t: Tensor,
    s: Tensor,
    how: str,
    u: Tensor | None = None,
    d: Tensor | None = None,
) -> Tensor:
    """du/dq of u(x_t, t, s) or, with a direction d, du/dr + d . grad u: (B, *shape).

    All is in straight coordinates, where r and q are the times t < s (B,). x_t and d are
    (B, *shape), and u is u(x_t, t, s) if it is at hand. how=forward differentiates the field.
    how=difference takes a difference of second order, in full precision. Its step
    h = eps^(1/3), 5e-3 in float32, balances rounding and curvature.
    """
    path = field.path
    moving, zero = s if d is None else t, torch.zeros_like(x_t)

    def at(change: Tensor, time: Tensor) -> Tensor:
        """u after a change of the straight state, with `time` in place of the moving one."""
        if d is None:
            return field.predict(x_t, t, "straight", time)
        return field.predict(moved(path, x_t, t, time, change), time, "straight", s)

    if how == "forward":
        tangents = zero if d is None else d, 1 / _d_r(path, moving)
        slope: Tensor = torch.func.jvp(at, (zero, moving), tangents)[1]
        return slope
    r, q = path.r(t), path.r(s)
    low, high = path.r(torch.tensor([0.0, 1.0]).to(t))
    h = torch.finfo(x_t.dtype).eps ** (1 / 3)
    one, two = stencil(q, r, high, h) if d is None else stencil(r, low, q, h)

    def after(e: Tensor) -> Tensor:
        change = zero if d is None else expand(e, x_t) * d
        return at(change, path.time_of_r((q if d is None else r) + e))

    with torch.autocast(x_t.device.type, enabled=False):
        u = at(zero, moving) if u is None else u
        first, second = ((after(e) - u) / expand(e, x_t) for e in (one, two))
    one, two = expand(one, x_t), expand(two, x_t)
    return ((two * first - one * second) / (two - one)).to(x_t)


def stencil(v: Tensor, low: Tensor, high: Tensor, h: float) -> tuple[Tensor, Tensor]:
    """Two changes of v (B,) for a difference of second order, strictly within (low, high).

    They are -h and h. Beside an end they are h and 2 h, or -h and -2 h, away from it, with a
    smaller h where there is no room.
    """
    inside = (v - h > low) & (v + h < high)
    down, up = ((room / 3).clamp(max=h) for room in (v - low, high - v))
    side = torch.where(up >= down, up, -down)
    return torch.where(inside, -h, side), torch.where(inside, h, 2 * side)


def moved(path: Path, x_t: Tensor, t: Tensor, s: Tensor, change: Tensor) -> Tensor:
    """The state at time s whose straight state is that of x_t at time t plus a change."""
    a_t, a_s = (expand(path.alpha(e) + path.beta(e), x_t) for e in (t, s))
    return (a_s * (x_t / a_t + change)).to(x_t)


def _d_r(path: Path, t: Tensor) -> Tensor:
    """dr/dt of straight time, shaped like t."""
    (a, b), (d_a, d_b) = path.row("x_t", t), path.row("v", t)
    return (d_a * b - a * d_b) / (a + b) ** 2
