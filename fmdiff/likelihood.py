r"""Log-likelihood: log p(x) by the probability-flow ODE, run from data to noise.

With x_t following dx/dt = v(x_t, t) (Chen et al. 2018, arXiv:1806.07366, eq. 8; Song et al. 2021,
arXiv:2011.13456, appendix D.2)

    log p_hi(x_hi) = log p_lo(x_lo) - \int_lo^hi div v(x_t, t) dt.

log p_lo is the source's density at the scale of x_lo, or what an exact field knows itself. Where
the field ends before all noise is gone (hi < 1, or beta(1) > 0) there is no density of clean data
in the model: what is given is that of x_hi / alpha(hi), data with noise of std beta / alpha, at x:

    log p(x) = log p_hi(alpha x) + d log alpha,

a proper density of x in which nothing is corrected; `t` and `noise` = beta / alpha say so. At
alpha = 1, beta = 0 this is p(x) itself. Any coordinates give the same, as the volume changes of
x_hi = alpha x and of the density at lo are those of the coordinates (alpha + beta in straight
ones: field.Along).

Images are 8 bits: pixel p stands for x = p / 127.5 - 1, so its bin is 1/127.5 wide and centred
there. With u ~ U(0, 1) for each element (Theis et al. 2016, arXiv:1511.01844)

    x_u = (p + u - 1/2) / 127.5 - 1,
    P(p) = \int_bin p(x) dx = 127.5^-d E_u p(x_u),    -log P(p) <= E_u[-log p(x_u)] + d log 127.5,

so bits per dimension, a bound on those of the pixels, are nll / (d ln 2) + log2(127.5), d the
number of elements. Of points they are nll / (d ln 2), and need no bins.
"""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from fmdiff import randomness
from fmdiff.build import named
from fmdiff.errors import FmdiffError
from fmdiff.exact import Empirical, Mixture
from fmdiff.field import Along, Field, NetField
from fmdiff.guidance import ByClassifier, Guided, Unguided
from fmdiff.integration import Backward, integrate
from fmdiff.sampling import UNGUIDED, check_steps, default_batch_size, plan, view

EXACT = 32  # dimensions up to which divergence=auto takes every entry of the trace
LEVELS = 127.5  # levels of a pixel in a unit of x


class Augmented:
    """States (B, d + P) of x and P logarithms of volume: dx/dt = v, dl_j/dt = div v by probe j.

    probes (P, B, *shape) give w^T (dv/dx) w for each w (Hutchinson 1990; Grathwohl et al. 2019,
    arXiv:1810.01367), one pass backwards each; None gives P = 1 and the trace itself by d passes.
    They are drawn before and stay the same, else the solvers' slopes would not be of one function.
    """

    def __init__(self, field: Field, probes: Tensor | None) -> None:
        self.field, self.probes, self.branches = field, probes, field.branches

    def __call__(self, state: Tensor, t: Tensor) -> Tensor:
        d = math.prod(self.field.shape)
        with torch.enable_grad():
            x = state[:, :d].reshape(-1, *self.field.shape).detach().requires_grad_()
            v = self.field(x, t)

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


def need_ode(solver) -> None:
    """Raises FmdiffError for a solver that cannot run from data to noise."""
    name = type(solver).__name__
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
    """Raises FmdiffError for a classifier's guidance, which cannot be differentiated again."""
    if isinstance(guidance, ByClassifier):
        raise FmdiffError(
            "guidance=classifier has no way back from data to noise here, as its gradient would "
            "have to be differentiated: choose guidance=none, cfg or autoguidance"
        )


def prior(field: Field, z: Tensor, t: Tensor) -> Tensor:
    """log p_t(z) (B,) where the field begins, at t (), for states z (B, *shape).

    Raises FmdiffError for a source, or a field, without a known density.
    """
    d = math.prod(field.shape)
    if isinstance(field, Along):
        inner = field.field
        u = inner.path.time_of_r(field.path.r(t))
        (a, b), (alpha, beta) = inner.path.row("x_t", u), field.path.row("x_t", t)
        scale = (a + b) / (alpha + beta)
        return prior(inner, scale * z, u) + d * scale.log()
    if isinstance(field, Guided):
        return prior(field.field if field.y is None else field.field.bind(field.y), z, t)
    if isinstance(field, NetField):
        scale = field.rms("x_t", t) / field.source.std
        return field.source.log_prob(z / scale) - d * scale.log()
    if isinstance(field, Mixture | Empirical):
        return field.log_prob(z, t)
    raise FmdiffError(
        f"{type(field).__name__} has no density at t = 0: give ckpt=RUN, or model=exact or "
        "empirical with data=NAME"
    )


class Estimates(NamedTuple):
    each: Tensor  # log p(x) by each probe, (n, P) float64 on the CPU; P = 1 for the exact trace
    nfe: float  # evaluations per sample
    t: float  # the path's time at which the density is given
    noise: float  # the std beta / alpha of the noise left there, in units of x
    exact: bool  # whether the divergence is


@torch.no_grad()
def estimates(
    field: Field,
    x: Tensor,
    y: Tensor | None = None,
    *,
    solver="rk4",
    steps: int | None = None,
    divergence: str = "auto",
    probes: int = 1,
    probe: str = "rademacher",
    seed: int = 0,
    first: int = 0,
    guidance: Unguided = UNGUIDED,
    coordinates: str = "straight",
    batch_size: int | None = None,
    device="cpu",
    dtype: torch.dtype = torch.float32,
    progress: Callable[[int], None] | None = None,
) -> Estimates:
    """log p(x), or log p(x | y), of x (n, *shape); y (n,), None for the null label or no classes.

    divergence: exact, hutchinson, or auto, exact up to 32 dimensions. Probe j of sample i depends
    on (seed, first + i, j). solver: a solver or the name of one; steps: 28 unless it is adaptive.

    Raises FmdiffError for what has no likelihood (see prior and need_ode) and for unknown words.
    """
    solver = named("solver", solver) if isinstance(solver, str) else solver
    need_ode(solver)
    need_field(guidance)
    check_steps(solver, steps)
    for name, value, known in (
        ("divergence", divergence, ("auto", "exact", "hutchinson")),
        ("probe", probe, ("rademacher", "gaussian")),
    ):
        if value not in known:
            raise FmdiffError(f"{name}={value}: choose {', '.join(known)}")
    if tuple(x.shape[1:]) != field.shape:
        raise FmdiffError(f"x of shape {list(x.shape[1:])}: the model's is {list(field.shape)}")
    d = math.prod(field.shape)
    exact = divergence == "exact" or (divergence == "auto" and d <= EXACT)
    if y is None and field.classes:
        y = torch.full((len(x),), field.classes)
    field = field.to(device, dtype)
    size, found, counted = batch_size or default_batch_size(field.shape), [], 0
    t = noise = math.nan
    for i in range(0, len(x), size):
        part = x[i : i + size].to(device, dtype)
        bound = guidance(field, None if y is None else y[i : i + size].to(device))
        bound.reset()
        asked = view(bound, coordinates)
        drawn = None if exact else draw(probe, probes, first + i, part, seed)
        lo, *_, hi = times = ode_times(asked, solver, steps)
        alpha, beta = asked.path.row("x_t", hi)
        z = alpha * part
        prior(asked, z, lo)  # refuses before the work
        volumes = torch.zeros(len(z), 1 if exact else probes, device=z.device, dtype=dtype)
        state = torch.cat([z.flatten(1), volumes], 1)
        state = integrate(solver, Backward(Augmented(asked, drawn)), state, -times.flip(0))
        z, volumes = state[:, :d].reshape(part.shape), state[:, d:]
        found.append((prior(asked, z, lo)[:, None] + volumes + d * alpha.log()).double().cpu())
        counted += bound.evaluations
        t = bound.path.time_of_r(asked.path.r(hi)).item()
        noise = (beta / alpha).item()
        if progress:
            progress(len(part))
    return Estimates(torch.cat(found), counted / len(x), t, noise, exact)


def log_prob(field: Field, x: Tensor, y: Tensor | None = None, **options: Any) -> Tensor:
    """log p(x), or log p(x | y), in nats: (n,) float64; the options of `estimates`.

    fmdiff.log_prob(field, x, solver="rk4", steps=50, divergence="hutchinson", probes=4, seed=0)
    """
    return estimates(field, x, y, **options).each.mean(1)


def ode_times(field: Field, solver, steps: int | None) -> Tensor:
    """The times a solver goes through, increasing, from one end of the interval to the other."""
    times = plan(field, solver, steps, final="solver").times
    return times if len(times) > 1 else times.expand(2)


def draw(probe: str, probes: int, first: int, x: Tensor, seed: int) -> Tensor:
    """Probes (P, B, *shape) for samples first ...: of mean 0 and covariance I."""
    rows = first, first + len(x), tuple(x.shape[1:])
    drawn = torch.stack([randomness.noise(*rows, seed, "probe", j) for j in range(probes)])
    drawn = drawn if probe == "gaussian" else torch.where(drawn < 0, -1.0, 1.0)
    return drawn.to(x)


def dequantised(x: Tensor, seed: int, first: int = 0) -> Tensor:
    """x + (u - 1/2) / 127.5, u ~ U(0, 1) by seed and index: float64 (B, C, H, W)."""
    z = randomness.noise(first, first + len(x), tuple(x.shape[1:]), seed, "dequantise")
    return x.double() + (torch.special.ndtr(z.double()) - 0.5) / LEVELS


def bits_per_dim(nll: float, shape: tuple[int, ...]) -> float:
    """Of points (d,) and of dequantised images (C, H, W), from nats per sample."""
    bits = nll / (math.prod(shape) * math.log(2))
    return bits + math.log2(LEVELS) if len(shape) == 3 else bits
