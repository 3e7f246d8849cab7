r"""Solvers of the SDE that has the same marginals as the field's ODE.

dX = [v + g^2/2 score] dt + g dW has the marginals p_t for every g(t) >= 0: the score term cancels
the spread that the noise adds (Song et al. 2021, arXiv:2011.13456; SiT, arXiv:2401.08740, eq. 5).
From the solver's time `until` on there is no noise, and the steps are those of the ODE.
"""

import math
from collections.abc import Callable
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from fmdiff.build import named
from fmdiff.errors import FmdiffError, nearest
from fmdiff.field import Field
from fmdiff.formula import CONSTANTS, Formula
from fmdiff.path import Kind, Path
from fmdiff.solvers.exponential import DPM2, ddim, log_ratio
from fmdiff.solvers.solver import Noise, Solver, Step

# g^2 by name, where g(t) = sigma_t is the coefficient of the Brownian term
DIFFUSIONS: dict[str, Callable[[Path, Tensor], Tensor]] = {
    "path": lambda p, t: 2 * p.beta(t) * (p.beta(t) * p.d_alpha(t) / p.alpha(t) - p.d_beta(t)),
    "beta": lambda p, t: p.beta(t),
    "linear": lambda p, t: 1 - t,
    "inc_dec": lambda p, t: torch.sin(torch.pi * t) ** 2,
}
LAST = ("mean", "tweedie", "euler")
PREDICTORS = ("ddpm", "euler_maruyama")
VARIANCES = ("smaller", "larger")


def at_least_0(**options: float) -> None:
    """Raises FmdiffError, naming the option, for a value that is not a number >= 0."""
    for name, value in options.items():
        if not value >= 0:
            raise FmdiffError(f"solver.{name}={value}: a number >= 0 is needed")


def normals(noise: Noise | None, t: Tensor, s: Tensor, n: int = 1) -> list[Tensor]:
    """n independent standard normal draws: the increments over n equal parts of [t, s]."""
    assert noise is not None
    times = [t, *(t + (s - t) * (k / n) for k in range(1, n)), s]
    return [noise(a, b) / (b - a).sqrt() for a, b in pairwise(times)]


class EulerMaruyama(Solver):
    """x_s = x_t + [v + g^2/2 score] h + g (W_s - W_t).

    `diffusion` is a constant g >= 0, a formula of t for g, or the name of a g^2: path (2 (beta^2
    alpha'/alpha - beta beta'), the textbook reverse SDE), beta, linear (1 - t) or inc_dec
    (sin^2 pi t). The weak and strong order is 1, since the noise is additive. `last` is another
    rule for the last step (SiT, section 3.3): mean leaves its noise out, euler is the ODE's step,
    and tweedie goes to x_hat, or by DDIM if beta_s is not 0.

    Raises FmdiffError for a diffusion that cannot be read, or is infinite inside (0, 1).
    """

    order = 1
    asks: Kind = (
        "straight"  # finite in more places than v or score, and gives both in one evaluation
    )
    stochastic = True

    def __init__(
        self, diffusion: float | str, until: float = 1.0, last: str | None = None
    ) -> None:
        at_least_0(until=until)
        if last is not None and last not in LAST:
            raise FmdiffError(f"solver.last={last}: choose null, {', '.join(LAST)}")
        self.diffusion, self.until, self.last = diffusion, until, last
        self.formula = None
        if not isinstance(diffusion, str):
            if not 0 <= diffusion < float("inf"):
                raise FmdiffError(
                    f"solver.diffusion={diffusion}: a constant must be finite and >= 0"
                )
        elif diffusion not in DIFFUSIONS:
            if diffusion.isidentifier() and diffusion not in ("t", *CONSTANTS):
                raise FmdiffError(
                    f"solver.diffusion={diffusion} is neither a number, nor a formula of t, nor a "
                    f"known name; {nearest(diffusion, DIFFUSIONS)}"
                )
            self.formula = Formula(diffusion, ("t",), "solver.diffusion")
            if not self.formula(torch.arange(1, 100, dtype=torch.float64) / 100).isfinite().all():
                raise FmdiffError(f'solver.diffusion="{diffusion}" is not finite for 0 < t < 1')

    def squared(self, path: Path, t: Tensor) -> Tensor:
        """g^2, shaped like t."""
        if self.formula:
            return self.formula(t) ** 2
        if isinstance(self.diffusion, str):
            return DIFFUSIONS[self.diffusion](path, t)
        return torch.full_like(t, self.diffusion**2)

    def begin(self, times: Tensor, jump: bool = False) -> Tensor:
        """The time at which the last of the steps along times (S+1,) ends."""
        return times[-1]

    def step(
        self,
        field: Field,
        x: Tensor,
        t: Tensor,
        s: Tensor,
        state: Tensor | None,
        noise: Noise | None,
    ) -> Step:
        path = field.path
        straight = field.predict(x, t, "straight")
        last = self.last if s == (1 if state is None else state) else None
        if last == "tweedie":
            x_hat = path.convert(straight, x, t, "straight", "x")
            return ddim(path, x, t, s, x_hat), state
        ahead = x + (s - t) * path.convert(straight, x, t, "straight", "v")
        if t >= self.until or last == "euler":
            return ahead, state
        # `path` is infinite at alpha = 0; every g keeps the marginals, so g is 0 there
        g2 = self.squared(path, t).nan_to_num(nan=0.0, posinf=0.0)
        score = path.convert(straight, x, t, "straight", "score")
        ahead = ahead + (s - t) * g2 / 2 * score
        if last == "mean":
            return ahead, state
        assert noise is not None
        return ahead + g2.sqrt() * noise(t, s), state


class DPMppSDE(Solver):
    """DPM-Solver++ for the SDE (Lu et al. 2022b, arXiv:2211.01095, section 5).

    With q = exp(-eta h), h = lam_s - lam_t, lam = log(alpha/beta), z standard normal,

        x_s = q (beta_s / beta_t) x_t + (alpha_s - q alpha_t beta_s / beta_t) x_hat
              + beta_s sqrt(1 - q^2) z

    is exact for fixed x_hat. Order 1 with eta = 1 is ancestral sampling: a draw of x_s given x_t
    and x = x_hat (DDPM, Ho et al. 2020, arXiv:2006.11239, eq. 7). That is the `smaller` of its two
    variances, right if x is a point. The `larger` one, beta_t of its section 3.2, is right if x is
    standard normal: z is multiplied by (beta_t / beta_s) sqrt((alpha_s^2 + beta_s^2) / (alpha_t^2
    + beta_t^2)).
    Order 2 extends the line through the last two x_hat to the middle of the step in lam. eta
    scales g^2 of the diffusion `path`. eta = 0 is DDIM and, at order 2, DPM-Solver++ 2M. If lam is
    infinite at t or s, the order is 1. Into beta_s = 0 the result is x_hat.
    """

    asks: Kind = "x"
    stochastic = True

    def __init__(
        self, order: int, eta: float, until: float = 1.0, variance: str = "smaller"
    ) -> None:
        if order not in (1, 2):
            raise FmdiffError(f"solver.order={order}: choose 1 or 2")
        if variance not in VARIANCES:
            raise FmdiffError(f"solver.variance={variance}: {nearest(variance, VARIANCES)}")
        if variance == "larger" and order == 2:
            raise FmdiffError("solver.variance=larger is DDPM's: it goes with solver.order=1")
        at_least_0(eta=eta, until=until)
        self.order, self.eta, self.until, self.variance = order, eta, until, variance
        self.ancestral = order == 1

    def step(
        self, field: Field, x: Tensor, t: Tensor, s: Tensor, state: Any, noise: Noise | None
    ) -> Step:
        path = field.path
        (a_t, b_t), (a_s, b_s) = path.row("x_t", t), path.row("x_t", s)
        x_hat = middle = field.predict(x, t, "x")
        if self.order == 2:
            lam, before = log_ratio(path, t), state
            h = log_ratio(path, s) - lam
            state = x_hat, lam
            if before and math.isfinite(h):
                middle = x_hat + h / (lam - before[1]) / 2 * (x_hat - before[0])
        eta = 0.0 if t >= self.until else self.eta
        q = (a_t * b_s / (a_s * b_t)) ** eta
        share = q * b_s / b_t
        ahead = share * x + (a_s - share * a_t) * middle
        if q < 1 and b_s > 0:
            (z,) = normals(noise, t, s)
            std = b_s * (1 - q**2).sqrt()
            if self.variance == "larger":
                std = std * b_t / b_s * ((a_s**2 + b_s**2) / (a_t**2 + b_t**2)).sqrt()
            ahead = ahead + std * z
        return ahead, state


class Churn(Solver):
    """The stochastic sampler of EDM (Karras et al. 2022, arXiv:2206.00364, algorithm 2).

    Let y = x_t / alpha and let n = beta / alpha be the noise level. Noise, its std multiplied by
    s_noise, is added up to (1 + c) n, with c = min(s_churn / steps, sqrt(2) - 1) if
    s_min <= n <= s_max and else 0, but not beyond the path's first level. Then comes one step of
    Heun on dy/dn = (y - x_hat) / n. That slope does not exist out of alpha = 0 and into beta = 0,
    where DPM-Solver-2 takes the step (the paper ends with an Euler step: final=denoise).
    """

    order = 2
    asks: Kind = "x"
    stochastic = True

    def __init__(
        self, s_churn: float, s_min: float, s_max: float, s_noise: float, until: float = 1.0
    ) -> None:
        at_least_0(s_churn=s_churn, s_min=s_min, s_max=s_max, s_noise=s_noise, until=until)
        self.s_churn, self.s_min, self.s_max, self.s_noise = s_churn, s_min, s_max, s_noise
        self.until, self.ends = until, DPM2()

    def nfe(self, steps: int) -> int:
        return 2 * steps

    def begin(self, times: Tensor, jump: bool = False) -> int:
        """The paper's N: the number of steps along times (S+1,), a jump to the data included."""
        return len(times) - 1 + jump

    def step(
        self,
        field: Field,
        x: Tensor,
        t: Tensor,
        s: Tensor,
        state: int | None,
        noise: Noise | None,
    ) -> Step:
        path = field.path

        def level(t: Tensor) -> Tensor:
            return path.beta(t) / path.alpha(t)

        def slope(y: Tensor, t: Tensor) -> Tensor:
            return (y - field.predict(path.alpha(t) * y, t, "x")) / level(t)

        now, u, churn = level(t), t, 0.0
        if self.s_min <= now <= self.s_max and now.isfinite() and t < self.until:
            # if their number is not known, assume equal steps from 0 to 1
            churn = min(self.s_churn / (state or float(1 / (s - t))), 2**0.5 - 1)
        if churn > 0:
            u = path.time_of_logsnr(-2 * ((1 + churn) * now).log())
            (z,) = normals(noise, t, s)
            added = (level(u) ** 2 - now**2).clamp(min=0).sqrt()
            x = path.alpha(u) * (x / path.alpha(t) + self.s_noise * added * z)
        if path.alpha(u) == 0 or path.beta(s) == 0:
            return self.ends.step(field, x, u, s, None, noise)[0], state
        y, h = x / path.alpha(u), level(s) - level(u)
        k = slope(y, u)
        return path.alpha(s) * (y + h / 2 * (k + slope(y + h * k, s))), state


class PredictorCorrector(Solver):
    """`corrections` steps of Langevin dynamics at t, then one step of `predictor` from t to s.

    x <- x + e score + sqrt(2 e) z (Song et al. 2021, arXiv:2011.13456, algorithms 4 and 5), with
    e = 2 (snr beta)^2. The paper measures e = 2 (snr |z| / |score|)^2 on the batch. Here |score|
    is that of the noise, |z| / beta, so that e depends on no sample: a step that varies with x
    does not keep p_t. The variance S of a normal law at t then becomes too large by the fraction
    e / (2 S). The correction comes before the step, so that it needs no score where beta = 0.
    """

    order = 1
    stochastic = True

    def __init__(self, predictor: str, corrections: int, snr: float) -> None:
        if predictor not in PREDICTORS:
            raise FmdiffError(f"solver.predictor={predictor}: {nearest(predictor, PREDICTORS)}")
        if corrections not in range(10**6):
            raise FmdiffError(f"solver.corrections={corrections}: a whole number is needed")
        if not 0 <= snr < 1:
            raise FmdiffError(f"solver.snr={snr}: choose a number from 0 to below 1")
        self.predictor: Solver = named("solver", predictor)
        self.corrections, self.snr = corrections, snr
        self.asks = self.predictor.asks

    def nfe(self, steps: int) -> int:
        return steps * (1 + self.corrections)

    def step(
        self, field: Field, x: Tensor, t: Tensor, s: Tensor, state: Any, noise: Noise | None
    ) -> Step:
        path, size = field.path, self.snr * field.path.beta(t)
        *draws, own = normals(noise, t, s, self.corrections + 1)
        for z in draws:
            value = field.predict(x, t, self.asks)
            eps = path.convert(value, x, t, self.asks, "eps")
            x = x + 2 * size * (z - self.snr * eps)
        step: Step = self.predictor.step(field, x, t, s, state, lambda t, s: (s - t).sqrt() * own)
        return step
