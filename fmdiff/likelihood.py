r"""Log-likelihood: log p(x) by the probability-flow ODE, run from data to noise.

With x_t following dx/dt = v(x_t, t) (Chen et al. 2018, arXiv:1806.07366, eq. 8; Song et al. 2021,
arXiv:2011.13456, appendix D.2)

    log p_hi(x_hi) = log p_lo(x_lo) - \int_lo^hi div v(x_t, t) dt.

log p_lo is the source's density at the scale of x_lo, or an exact field's own density. If the
field ends before all noise is gone (hi < 1, or beta(1) > 0), the model has no density of clean
data. The result is then that of x_hi / alpha(hi), data with noise of std beta / alpha, at x:

    log p(x) = log p_hi(alpha x) + d log alpha.

This is a proper density of x without any correction, and `t` and `noise` = beta / alpha name it.
At alpha = 1, beta = 0 it is p(x) itself. All coordinates give the same result, because the volume
changes of x_hi = alpha x and of the density at lo are those of the coordinates (alpha + beta in
straight ones, see along.Along).

Images have 8 bits: pixel p stands for x = p / 127.5 - 1, so its bin is 1/127.5 wide and centred
there. With u ~ U(0, 1) for each element (Theis et al. 2016, arXiv:1511.01844)

    x_u = (p + u - 1/2) / 127.5 - 1,
    P(p) = \int_bin p(x) dx = 127.5^-d E_u p(x_u),    -log P(p) <= E_u[-log p(x_u)] + d log 127.5,

so bits per dimension, a bound on those of the pixels, are nll / (d ln 2) + log2(127.5), where d is
the number of elements. For points they are nll / (d ln 2), and there are no bins.
"""

import math
from collections.abc import Callable
from dataclasses import fields, replace
from typing import Any, NamedTuple

import torch
from torch import Tensor

from fmdiff import randomness
from fmdiff.along import Around
from fmdiff.build import of_class
from fmdiff.condition import Given
from fmdiff.errors import FmdiffError
from fmdiff.field import Field
from fmdiff.guidance import Unguided
from fmdiff.integration import Backward, Plan, check_steps, integrate, plan
from fmdiff.path import Kind
from fmdiff.sampling import Sampler, default_batch_size
from fmdiff.solvers.runge_kutta import RK4
from fmdiff.solvers.solver import Solver

EXACT = 32  # divergence=auto computes the exact trace up to this many dimensions
LEVELS = 127.5  # pixel levels per unit of x


class Augmented(Around):
    """States (B, d + P) of x and P log volumes: dx/dt = v and dl_j/dt = div v by probe j.

    Each w of probes (P, B, *shape) gives w^T (dv/dx) w by one backward pass (Hutchinson 1990;
    Grathwohl et al. 2019, arXiv:1810.01367). None gives P = 1 and the exact trace by d passes. The
    probes stay the same along the ODE, so that all slopes belong to one function.
    """

    def __init__(self, field: Field, probes: Tensor | None) -> None:
        super().__init__(field)
        self.two_times, self.probes = False, probes

    def select(self, rows: Tensor) -> "Augmented":
        return Augmented(
            self.field.select(rows), None if self.probes is None else self.probes[:, rows]
        )

    def predict(self, x_t: Tensor, t: Tensor, kind: Kind, s: Tensor | None = None) -> Tensor:
        d = math.prod(self.field.shape)
        with torch.enable_grad():
            x = x_t[:, :d].reshape(-1, *self.field.shape).detach().requires_grad_()
            v = self.field(x, t)
        if not v.requires_grad:
            raise FmdiffError(
                "v has no gradient with respect to x, which its divergence is made of: compute it "
                "from x without detach and no_grad"
            )

        def products(w: Tensor) -> Tensor:
            """w (dv/dx)^T w, element by element: (B, d)."""
            (pulled,) = torch.autograd.grad(v, x, w, retain_graph=True)
            return (pulled * w).flatten(1)

        if self.probes is None:
            ones = torch.eye(d, dtype=x.dtype, device=x.device).view(d, *self.field.shape)
            trace = torch.stack([products(w.expand_as(x)) for w in ones]).sum((0, 2))[None]
        else:
            trace = torch.stack([products(w).sum(1) for w in self.probes])
        return torch.cat([v.detach().flatten(1), trace.T], 1)


def need_ode(solver: Solver) -> None:
    """Raises FmdiffError for a solver that cannot run from data to noise."""
    name = type(of_class(solver, Solver)).__name__
    if solver.maps or solver.one_way:
        raise FmdiffError(
            f"{name} leads from noise to data alone: choose euler, midpoint, heun, rk4, adams or "
            "dopri5"
        )
    if solver.stochastic:
        raise FmdiffError(
            f"{name} is stochastic, and only the ODE leads back from data to noise: choose "
            "euler, midpoint, heun, rk4, adams or dopri5"
        )
    if solver.asks != "v":
        raise FmdiffError(
            f"{name} steps by the estimate of x, which says nothing of the noise at t = 1: "
            "choose euler, midpoint, heun, rk4, adams or dopri5"
        )


def need_field(guidance: Unguided) -> None:
    """Raises FmdiffError for a guidance that is not differentiable, like that by a classifier."""
    if not guidance.differentiable:
        raise FmdiffError(
            "guidance=classifier has no way back from data to noise here, as its gradient would "
            "have to be differentiated: choose guidance=none, cfg or autoguidance"
        )


class Estimates(NamedTuple):
    """Log-likelihoods, their cost, and the density they belong to."""

    each: Tensor  # log p(x) by each probe, (n, P) float64 on the CPU; P = 1 for the exact trace
    nfe: float  # evaluations per sample
    t: float  # the path's time at which the density is given
    noise: float  # the std beta / alpha of the noise left there, in units of x
    exact: bool  # whether the divergence is exact


RK4_SAMPLER = Sampler(solver=RK4())


@torch.no_grad()
def estimates(
    field: Field,
    x: Tensor,
    y: Given | None = None,
    sampler: Sampler = RK4_SAMPLER,
    *,
    divergence: str = "auto",
    probes: int = 1,
    probe: str = "rademacher",
    seed: int = 0,
    first: int = 0,
    progress: Callable[[int], None] | None = None,
) -> Estimates:
    """log p(x), or log p(x | y), of x (n, *shape); y of n rows, None for the null label, or none.

    `sampler` solves the ODE, without a jump. `divergence` is exact, hutchinson or auto, which is
    exact up to 32 dimensions. Probe j of sample i depends on (seed, first + i, j).

    Raises FmdiffError for a field, solver or guidance without a likelihood (see Field.prior,
    need_ode and need_field), for unknown options and for x of another shape.
    """
    exact = _check(field, x, sampler, divergence, probe)
    d = math.prod(field.shape)
    if y is None and field.classes:
        y = torch.full((len(x),), field.classes)
    field = field.to(sampler.device, sampler.dtype)
    size = sampler.batch_size or default_batch_size(field.shape)
    logs, evaluations = [], 0
    t = noise = math.nan
    for i in range(0, len(x), size):
        part = x[i : i + size].to(sampler.device, sampler.dtype)
        flow = sampler.seen(field, None if y is None else y[i : i + size].to(sampler.device))
        flow.reset()
        vectors = None if exact else draw(probe, probes, first + i, part, seed)
        lo, *_, hi = times = _through(replace(sampler, final="solver").plan(flow))
        alpha, beta = flow.path.row("x_t", hi)
        z = alpha * part
        flow.prior(z, lo)  # raises before the work begins
        volumes = z.new_zeros(len(z), 1 if exact else probes)
        state = torch.cat([z.flatten(1), volumes], 1)
        augmented = Backward(Augmented(flow, vectors))
        state = integrate(sampler.solver_of(field), augmented, state, -times.flip(0))
        z, volumes = state[:, :d].reshape(part.shape), state[:, d:]
        logs.append((flow.prior(z, lo)[:, None] + volumes + d * alpha.log()).double().cpu())
        evaluations += flow.evaluations
        t = field.path.time_of_r(flow.path.r(hi)).item()
        noise = (beta / alpha).item()
        if progress:
            progress(len(part))
    return Estimates(torch.cat(logs), evaluations / len(x), t, noise, exact)


def _check(field: Field, x: Tensor, sampler: Sampler, divergence: str, probe: str) -> bool:
    """Whether the divergence is exact. Raises FmdiffError as `estimates` does."""
    solver = sampler.solver_of(field)
    need_ode(solver)
    need_field(sampler.guidance)
    check_steps(solver, sampler.steps)
    for name, value, choices in (
        ("divergence", divergence, ("auto", "exact", "hutchinson")),
        ("probe", probe, ("rademacher", "gaussian")),
    ):
        if value not in choices:
            raise FmdiffError(f"{name}={value}: choose {', '.join(choices)}")
    if tuple(x.shape[1:]) != field.shape:
        raise FmdiffError(f"x of shape {list(x.shape[1:])}: the model's is {list(field.shape)}")
    return divergence == "exact" or (divergence == "auto" and math.prod(field.shape) <= EXACT)


def log_prob(field: Field, x: Tensor, y: Given | None = None, **options: Any) -> Tensor:
    """log p(x), or log p(x | y), in nats: (n,) float64.

    The options are those of `estimates` and of its Sampler, whose solver is rk4 by default:

    fmdiff.log_prob(field, x, solver="rk4", steps=50, divergence="hutchinson", probes=4, seed=0)
    """
    names = options.keys() & {part.name for part in fields(Sampler)}
    sampler = replace(RK4_SAMPLER, **{name: options.pop(name) for name in names})
    return estimates(field, x, y, sampler, **options).each.mean(1)


def ode_times(field: Field, solver: Solver, steps: int | None) -> Tensor:
    """The times a solver goes through, increasing, from one end of the interval to the other."""
    return _through(plan(field, solver, steps, final="solver"))


def _through(layout: Plan) -> Tensor:
    return layout.times if len(layout.times) > 1 else layout.times.expand(2)


def draw(probe: str, probes: int, first: int, x: Tensor, seed: int) -> Tensor:
    """Probes (P, B, *shape) of mean 0 and covariance I for samples first, first + 1, ..."""
    rows = first, first + len(x), tuple(x.shape[1:])
    normal = torch.stack([randomness.noise(*rows, seed, "probe", j) for j in range(probes)])
    signs = torch.where(normal < 0, -1.0, 1.0)
    return (normal if probe == "gaussian" else signs).to(x)


def dequantise(x: Tensor, seed: int, first: int = 0) -> Tensor:
    """x + (u - 1/2) / 127.5, u ~ U(0, 1) by seed and index: float64 (B, C, H, W)."""
    z = randomness.noise(first, first + len(x), tuple(x.shape[1:]), seed, "dequantise")
    u: Tensor = torch.special.ndtr(z.double())
    return x.double() + (u - 0.5) / LEVELS


def bits_per_dim(nll: float, shape: tuple[int, ...]) -> float:
    """Bits per dimension of points (d,) or dequantised images (C, H, W), from nats per sample."""
    bits = nll / (math.prod(shape) * math.log(2))
    return bits + math.log2(LEVELS) if len(shape) == 3 else bits
