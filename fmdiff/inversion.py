r"""Inversion: the ODE run backwards, from data to noise, and its uses.

encode       maps x to the state at the noise end, by the ODE in the time -t
decode       maps it back to x; a round trip changes x by the solver's error
slerp        interpolates between two codes along the sphere they lie on
straightness measures how straight trajectories are, and how much they turn
shape_of     measures it of the trajectories of a field's own samples
inpaint      draws a box of an image anew, given the rest

If a model ends with noise (hi < 1), its state there is alpha(hi) x, as for the likelihood. A
round trip begins and ends there.
"""

import math
from collections.abc import Callable
from itertools import pairwise
from typing import NamedTuple

import torch
from torch import Tensor

from fmdiff import randomness
from fmdiff.condition import Classes
from fmdiff.errors import FmdiffError
from fmdiff.field import Field
from fmdiff.integration import Backward, integrate, plan
from fmdiff.likelihood import ode_times
from fmdiff.sampling import Sampler
from fmdiff.solvers.solver import Solver

Observe = Callable[[Tensor, Tensor], None]


@torch.no_grad()
def encode(field: Field, x: Tensor, solver: Solver, steps: int | None) -> Tensor:
    """The state (B, *shape) at the field's first time that the ODE leads to x (B, *shape)."""
    times = ode_times(field, solver, steps)
    return integrate(solver, Backward(field), field.path.alpha(times[-1]) * x, -times.flip(0))


@torch.no_grad()
def decode(
    field: Field, z: Tensor, solver: Solver, steps: int | None, observe: Observe | None = None
) -> Tensor:
    """x = x_hi / alpha(hi) (B, *shape) from the state z at the field's first time. No jump."""
    times = ode_times(field, solver, steps)
    return integrate(solver, field, z, times, observe=observe) / field.path.alpha(times[-1])


def slerp(a: Tensor, b: Tensor, s: Tensor) -> Tensor:
    r"""Interpolate between a and b (B, *) at s (S,) in [0, 1]: (S, B, *).

    [sin((1 - s) w) a + sin(s w) b] / sin w, with w the angle between a and b (Shoemake 1985),
    keeps equal norms. If a and b are parallel, the result is the straight line.
    """
    flat = torch.stack([a, b]).flatten(2)
    unit = torch.nn.functional.normalize(flat, dim=2)
    w = angle(*unit)
    s = s.to(a)[:, None]
    bent = w.sin().abs() > 1e-6
    parts = [
        torch.where(bent, (share * w).sin() / w.sin(), share.expand(-1, len(a)))
        for share in (1 - s, s)
    ]
    return (
        torch.einsum("nb,bd->nbd", parts[0], flat[0])
        .add_(torch.einsum("nb,bd->nbd", parts[1], flat[1]))
        .reshape(len(s), *a.shape)
    )


def angle(a: Tensor, b: Tensor) -> Tensor:
    """The angle between unit vectors along the last dimension; unlike arccos, exact if small."""
    return 2 * torch.atan2((a - b).norm(dim=-1), (a + b).norm(dim=-1))


class Shape(NamedTuple):
    """The shape of trajectories, averaged over them. All values are 0 for straight ones."""

    straightness: float  # the mean over time of E |z_hi - z_lo - (hi - lo) v|^2
    relative: float  # the same over E |z_hi - z_lo|^2
    turning: float  # the angle a trajectory turns by on its way, in radians
    curvature: float  # that angle per length of the trajectory


def straightness(states: Tensor, times: Tensor) -> Shape:
    """Shape of trajectories z (S + 1, B, *) at times (S + 1,) (Liu et al. 2023, arXiv:2209.03003).

    S = (1 / (hi - lo)) integral of E |z_hi - z_lo - (hi - lo) v|^2 dt, with the mean velocity v of
    each step. The turning is the sum of the angles between one step and the next.
    """
    z = states.flatten(2).double()
    steps, h = z.diff(dim=0), times.to(z).diff()
    whole, span = z[-1] - z[0], times[-1] - times[0]
    off = (whole - span * steps / h[:, None, None]).square().sum(2).mean(1)
    gap = ((h * off).sum() / span).item()
    unit = torch.nn.functional.normalize(steps, dim=2)
    angles = 2 * torch.atan2(
        (unit[1:] - unit[:-1]).norm(dim=2), (unit[1:] + unit[:-1]).norm(dim=2)
    )
    turning, length = angles.sum(0), steps.norm(dim=2).sum(0)
    return Shape(
        gap,
        gap / whole.square().sum(1).mean().item(),
        turning.mean().item(),
        (turning / length).mean().item(),
    )


@torch.no_grad()
def shape_of(
    field: Field, sampler: Sampler, seed: int, n: int | None = None, classes: Classes = None
) -> Shape:
    """The shape of the trajectories of samples 0 ... n - 1 of a seed, from noise to data.

    `sampler` gives guidance, coordinates, device and the solver, which must take fixed steps. n is
    by default 2,048 points or 64 images or series, fewer if they have more than 16,384 elements.
    classes: their labels, in turn; by default all.
    """
    points = len(field.shape) == 1
    n = n or (2048 if points else max(4, min(64, 2**20 // math.prod(field.shape))))
    field = field.to(sampler.device, sampler.dtype)
    y = sampler.guidance.labels(field, classes, 0, n, seed)
    view = sampler.seen(field, None if y is None else y.to(sampler.device))
    solver = sampler.solver_of(field)
    times = ode_times(view, solver, sampler.steps)
    noise = randomness.noise(0, n, field.shape, seed, "start").to(sampler.device, sampler.dtype)
    states = [view.start(noise, times[0], 0, seed)]
    integrate(solver, view, states[0], times, observe=lambda t, x: states.append(x))
    return straightness(torch.stack(states).cpu(), times)


def outside(box: list[int], shape: tuple[int, ...]) -> Tensor:
    """The mask (H, W), bool, of the pixels outside box = [top, left, bottom, right].

    Raises FmdiffError if the data are not images, or the box is not inside them.
    """
    if len(shape) != 3:
        raise FmdiffError(f"inpaint= needs images, and these data have shape {list(shape)}")
    top, left, bottom, right = box
    if not (0 <= top < bottom <= shape[1] and 0 <= left < right <= shape[2]):
        raise FmdiffError(
            f"inpaint=[{top},{left},{bottom},{right}]: [top,left,bottom,right] must lie in images "
            f"of {shape[1]} x {shape[2]} pixels, top above bottom and left before right"
        )
    mask = torch.ones(shape[1:], dtype=torch.bool)
    mask[top:bottom, left:right] = False
    return mask


@torch.no_grad()
def inpaint(
    field: Field,
    x: Tensor,
    mask: Tensor,
    solver: Solver,
    steps: int | None,
    seed: int,
    first: int = 0,
) -> Tensor:
    """x (B, C, H, W) with the pixels where the mask (H, W) is False drawn anew.

    This is the replacement method (Song et al. 2021, arXiv:2011.13456, section 5). Before each
    step it sets the known pixels to alpha x + beta eps, with the noise eps of the sample's start.
    It approximates p(unknown | known), since the unknown pixels see the rest only through the
    network. Sample i depends on (seed, first + i).
    """
    layout = plan(field, solver, steps)
    times, path = layout.times, field.path
    noise = randomness.noise(first, first + len(x), tuple(x.shape[1:]), seed, "inpaint").to(x)
    z = field.start(noise, times[0], first, seed)
    eps, mask = z / path.beta(times[0]), mask.to(x.device)
    for t, s in pairwise(times):
        z = torch.where(mask, path.mix(x, eps, t), z)
        z = integrate(solver, field, z, torch.stack([t, s]))
    if layout.jump:
        z = torch.where(mask, path.mix(x, eps, times[-1]), z)
        z = solver.arrival(field, z, times[-1])
    return torch.where(mask, x, z)
