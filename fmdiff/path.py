r"""Gaussian probability paths: x_t = alpha(t) x + beta(t) eps.

Time runs from t = 0 (noise) to t = 1 (data); this is the one place where that is decided. `x` is
a data sample, `eps` standard normal noise independent of it. On such a path every quantity of
interest is linear in (x, eps), so it is a *row* (a, b) meaning a x + b eps:

    x_t = (alpha, beta)        x = (1, 0)              eps = (0, 1)
    v   = (alpha', beta')      score = (0, -1/beta)    v_sh = (-beta, alpha)
    straight = (1, -1)

`v` is the velocity (Lipman et al. 2023, arXiv:2210.02747), `score` is grad log p_t(x_t | x)
(Vincent 2011), `v_sh` is the v of Salimans & Ho 2022 (arXiv:2202.00512, appendix D), and
`straight` is the velocity in straight coordinates (see along.Along). Two rows and one 2x2 solve
convert any quantity into any other. Conditional expectations given x_t convert by the same rule,
because it is affine for fixed x_t.

Every path reaches the same straight path x_r = r x + (1 - r) eps by rescaling,
r = alpha / (alpha + beta), x_r = x_t / (alpha + beta).
"""

import math
from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor

from fmdiff.build import Described
from fmdiff.errors import FmdiffError

Kind = Literal["x_t", "x", "eps", "v", "score", "v_sh", "straight"]


def expand(t: Tensor, x: Tensor) -> Tensor:
    """Reshape t of shape () or (B,) so that it broadcasts against x (B, *)."""
    return t.reshape(-1, *[1] * (x.ndim - 1)) if t.ndim else t


def _slope(formula: Callable[[Tensor], Tensor], t: Tensor) -> Tensor:
    t = t.contiguous()  # forward mode refuses expanded tensors
    slope: Tensor = torch.func.jvp(formula, (t,), (torch.ones_like(t),))[1]
    return slope


class Path(Described):
    """A path, given by alpha(t) and beta(t). t has any shape and values in [0, 1].

    To write your own, derive from this class and define these two; `custom.check` tests them.
    """

    norm = 2  # a shift keeps alpha^norm + beta^norm
    leftover = 0.05  # the largest r(0) and 1 - r(1) allowed; 1 if the user's own rates decide

    def alpha(self, t: Tensor) -> Tensor:
        """The coefficient of x, shaped like t: near 0 at t = 0, 1 at t = 1."""
        raise NotImplementedError

    def beta(self, t: Tensor) -> Tensor:
        """The coefficient of eps, shaped like t, near 0 at t = 1."""
        raise NotImplementedError

    def d_alpha(self, t: Tensor) -> Tensor:
        """The derivative of alpha, by automatic differentiation unless overridden."""
        return _slope(self.alpha, t)

    def d_beta(self, t: Tensor) -> Tensor:
        """The derivative of beta, by automatic differentiation unless overridden."""
        return _slope(self.beta, t)

    def row(self, kind: Kind, t: Tensor) -> tuple[Tensor, Tensor]:
        """Return (a, b), each shaped like t, such that the quantity is a x + b eps."""
        zero, one = torch.zeros_like(t), torch.ones_like(t)
        if kind == "x_t":
            return self.alpha(t), self.beta(t)
        if kind == "x":
            return one, zero
        if kind == "eps":
            return zero, one
        if kind == "v":
            return self.d_alpha(t), self.d_beta(t)
        if kind == "score":
            return zero, -1 / self.beta(t)
        if kind == "v_sh":
            return -self.beta(t), self.alpha(t)
        if kind == "straight":
            return one, -one
        raise ValueError(f"unknown kind {kind!r}")

    def mix(self, x: Tensor, eps: Tensor, t: Tensor, kind: Kind = "x_t") -> Tensor:
        """Return a x + b eps, the quantity `kind` of pairs (x, eps) (B, *), at t () or (B,)."""
        a, b = self.row(kind, expand(t, x))
        return (a * x + b * eps).to(x)

    def convert(
        self,
        value: Tensor,
        x_t: Tensor,
        t: Tensor,
        source: Kind,
        target: Kind,
        floor: float = 0.0,
    ) -> Tensor:
        """Convert `value`, the quantity `source` at the point x_t (B, *), to `target`.

        With rows x_t = (a, b), source = (c, d), target = (p, q), Cramer's rule gives

            target = [(p d - q c) x_t + (q a - p b) source] / (a d - b c).

        The determinant is -beta for source x and alpha for eps. Its absolute value is kept at or
        above `floor` (0 while sampling; in a loss this is JiT's clamp, arXiv:2511.13720). The
        score is -eps / beta, and its beta has the same floor. If the determinant is 0 (eps at
        alpha = 0, x at beta = 0), the target is not determined and the result is not finite.
        """
        if source == target:
            return value
        t = expand(t, x_t)
        a, b = self.alpha(t), self.beta(t)
        if source == "score":
            return self.convert((-b * value).to(x_t), x_t, t, "eps", target, floor)
        if target == "score":
            eps = self.convert(value, x_t, t, source, "eps", floor)
            return (-eps / b.clamp(min=floor)).to(x_t)
        (c, d), (p, q) = self.row(source, t), self.row(target, t)
        det = a * d - b * c
        if floor:
            det = torch.where(det < 0, det.clamp(max=-floor), det.clamp(min=floor))
        return (((p * d - q * c) * x_t + (q * a - p * b) * value) / det).to(x_t)

    def logsnr(self, t: Tensor) -> Tensor:
        """log(alpha^2 / beta^2), increasing in t."""
        return 2 * (self.alpha(t).log() - self.beta(t).log())

    def time_of_logsnr(self, logsnr: Tensor) -> Tensor:
        """The inverse of logsnr, clamped to [0, 1]. By bisection unless overridden."""
        low, high = torch.zeros_like(logsnr), torch.ones_like(logsnr)
        for _ in range(60):
            middle = (low + high) / 2
            below = self.logsnr(middle) < logsnr
            low, high = torch.where(below, middle, low), torch.where(below, high, middle)
        return (low + high) / 2

    def r(self, t: Tensor) -> Tensor:
        """Straight time alpha / (alpha + beta)."""
        a = self.alpha(t)
        return a / (a + self.beta(t))

    def time_of_r(self, r: Tensor) -> Tensor:
        """The inverse of r, clamped to [0, 1]. It uses logit r = logsnr / 2."""
        return self.time_of_logsnr(2 * (r.log() - torch.log1p(-r))).clamp(0, 1)


class Shifted(Path):
    """A path whose noise level beta/alpha is multiplied by `shift` (> 1: more noise at each t).

    r becomes r / (r + shift (1 - r)), and alpha^norm + beta^norm stays the same. So a shifted
    CondOT is the timestep shift of Esser et al. 2024 (arXiv:2403.03206, eq. 23), and a shifted VP
    still preserves the variance.
    """

    def __init__(self, path: Path, shift: float) -> None:
        self.path, self.shift, self.norm = path, shift, path.norm

    def _size(self, t: Tensor, shift: float) -> tuple[Tensor, Tensor]:
        """The norm of (alpha, shift beta), and the derivative of its logarithm."""
        (a, b), (d_a, d_b), p = self.path.row("x_t", t), self.path.row("v", t), self.norm
        power = a**p + (shift * b) ** p
        slope = a ** (p - 1) * d_a + shift**p * b ** (p - 1) * d_b
        return power ** (1 / p), slope / power

    def _scale(self, t: Tensor) -> tuple[Tensor, Tensor]:
        """The common factor of alpha and shift beta, and its derivative."""
        (old, d_old), (new, d_new) = self._size(t, 1), self._size(t, self.shift)
        return old / new, old / new * (d_old - d_new)

    def alpha(self, t: Tensor) -> Tensor:
        return self._scale(t)[0] * self.path.alpha(t)

    def beta(self, t: Tensor) -> Tensor:
        return self._scale(t)[0] * self.shift * self.path.beta(t)

    def d_alpha(self, t: Tensor) -> Tensor:
        scale, slope = self._scale(t)
        return slope * self.path.alpha(t) + scale * self.path.d_alpha(t)

    def d_beta(self, t: Tensor) -> Tensor:
        scale, slope = self._scale(t)
        return self.shift * (slope * self.path.beta(t) + scale * self.path.d_beta(t))

    def time_of_logsnr(self, logsnr: Tensor) -> Tensor:
        return self.path.time_of_logsnr(logsnr + 2 * math.log(self.shift))


class _Linear(Path):
    """alpha = t."""

    def alpha(self, t: Tensor) -> Tensor:
        return t

    def d_alpha(self, t: Tensor) -> Tensor:
        return torch.ones_like(t)


class CondOT(_Linear):
    """alpha = t, beta = 1 - t: straight lines (Lipman et al. 2023; rectified flow)."""

    norm = 1

    def beta(self, t: Tensor) -> Tensor:
        return 1 - t

    def d_beta(self, t: Tensor) -> Tensor:
        return -torch.ones_like(t)

    def time_of_logsnr(self, logsnr: Tensor) -> Tensor:
        return torch.sigmoid(logsnr / 2)

    def r(self, t: Tensor) -> Tensor:
        return t

    def time_of_r(self, r: Tensor) -> Tensor:
        return r


class Polynomial(Path):
    """alpha = t^n, beta = 1 - t^n."""

    norm = 1

    def __init__(self, n: float = 2) -> None:
        self.n = n

    def alpha(self, t: Tensor) -> Tensor:
        return t**self.n

    def beta(self, t: Tensor) -> Tensor:
        return 1 - t**self.n

    def d_alpha(self, t: Tensor) -> Tensor:
        return self.n * t ** (self.n - 1)

    def d_beta(self, t: Tensor) -> Tensor:
        return -self.n * t ** (self.n - 1)

    def time_of_logsnr(self, logsnr: Tensor) -> Tensor:
        return torch.sigmoid(logsnr / 2) ** (1 / self.n)


class Lipman(_Linear):
    """alpha = t, beta = 1 - (1 - noise_min) t: the target path of Lipman et al. 2023, eq. 20.

    beta ends at noise_min instead of 0, and the final jump removes that noise.
    """

    leftover = 1.0

    def __init__(self, noise_min: float) -> None:
        self.noise_min = noise_min

    def beta(self, t: Tensor) -> Tensor:
        return 1 - (1 - self.noise_min) * t

    def d_beta(self, t: Tensor) -> Tensor:
        return torch.full_like(t, self.noise_min - 1)

    def time_of_logsnr(self, logsnr: Tensor) -> Tensor:
        return (1 / (torch.exp(-logsnr / 2) + 1 - self.noise_min)).clamp(max=1)


class Cosine(Path):
    """alpha = sin(pi t / 2), beta = cos(pi t / 2) (Nichol & Dhariwal 2021, without offset)."""

    def alpha(self, t: Tensor) -> Tensor:
        return torch.sin(math.pi / 2 * t)

    def beta(self, t: Tensor) -> Tensor:
        return torch.sin(math.pi / 2 * (1 - t))  # exactly 0 at t = 1, unlike cos

    def d_alpha(self, t: Tensor) -> Tensor:
        return math.pi / 2 * self.beta(t)

    def d_beta(self, t: Tensor) -> Tensor:
        return -math.pi / 2 * self.alpha(t)

    def time_of_logsnr(self, logsnr: Tensor) -> Tensor:
        return 2 / math.pi * torch.atan(torch.exp(logsnr / 2))


class LinearVP(_Linear):
    """alpha = t, beta = sqrt(1 - t^2): variance preserving and linear in t."""

    def beta(self, t: Tensor) -> Tensor:
        return ((1 - t) * (1 + t)).sqrt()

    def d_beta(self, t: Tensor) -> Tensor:
        return -t / self.beta(t)

    def time_of_logsnr(self, logsnr: Tensor) -> Tensor:
        return torch.sigmoid(logsnr).sqrt()


class VP(Path):
    """The variance-preserving diffusion of Song et al. 2021 (arXiv:2011.13456, eq. 32).

    alpha = exp(-T/2), beta = sqrt(1 - exp(-T)), T = (1-t)^2 (rate_max - rate_min)/2
    + (1-t) rate_min. alpha(0) is small but not 0: about 0.0066 with the usual rates.
    """

    leftover = 1.0

    def __init__(self, rate_min: float = 0.1, rate_max: float = 20.0) -> None:
        self.rate_min, self.rate_max = rate_min, rate_max

    def _integral(self, t: Tensor) -> Tensor:
        u = 1 - t
        return u * u * (self.rate_max - self.rate_min) / 2 + u * self.rate_min

    def alpha(self, t: Tensor) -> Tensor:
        return torch.exp(-self._integral(t) / 2)

    def beta(self, t: Tensor) -> Tensor:
        return (-torch.expm1(-self._integral(t))).sqrt()

    def d_alpha(self, t: Tensor) -> Tensor:
        rate = (1 - t) * (self.rate_max - self.rate_min) + self.rate_min
        return rate / 2 * self.alpha(t)

    def d_beta(self, t: Tensor) -> Tensor:
        return -self.alpha(t) * self.d_alpha(t) / self.beta(t)  # alpha^2 + beta^2 = 1

    def time_of_logsnr(self, logsnr: Tensor) -> Tensor:
        span = self.rate_max - self.rate_min
        integral = torch.nn.functional.softplus(-logsnr).clamp(max=span / 2 + self.rate_min)
        root = (self.rate_min**2 + 2 * span * integral).sqrt()
        return 1 - 2 * integral / (self.rate_min + root)


class _Exploding(Path):
    """alpha = 1, beta from noise_max to noise_min."""

    leftover = 1.0

    def __init__(self, noise_min: float, noise_max: float) -> None:
        if not 0 < noise_min < noise_max:
            raise FmdiffError(
                f"path.noise_min={noise_min} and path.noise_max={noise_max}: "
                "0 < noise_min < noise_max is needed"
            )
        self.noise_min, self.noise_max = noise_min, noise_max

    def alpha(self, t: Tensor) -> Tensor:
        return torch.ones_like(t)

    def d_alpha(self, t: Tensor) -> Tensor:
        return torch.zeros_like(t)


class VE(_Exploding):
    """The variance-exploding diffusion: alpha = 1, beta = noise_max^(1-t) noise_min^t.

    Song et al. 2021, eq. 30. The path starts with noise of std noise_max around the data. It ends
    with noise of std noise_min, which the final jump removes.
    """

    def __init__(self, noise_min: float = 0.01, noise_max: float = 50.0) -> None:
        super().__init__(noise_min, noise_max)

    def beta(self, t: Tensor) -> Tensor:
        level: Tensor = self.noise_max ** (1 - t) * self.noise_min**t
        return level

    def d_beta(self, t: Tensor) -> Tensor:
        return -math.log(self.noise_max / self.noise_min) * self.beta(t)

    def time_of_logsnr(self, logsnr: Tensor) -> Tensor:
        span = math.log(self.noise_max / self.noise_min)
        return ((math.log(self.noise_max) + logsnr / 2) / span).clamp(0, 1)


class EDM(_Exploding):
    """alpha = 1, beta = (noise_max^(1/rho) (1 - t) + noise_min^(1/rho) t)^rho.

    Equal steps of time give the noise levels of Karras et al. 2022 (arXiv:2206.00364, eq. 5).
    """

    def __init__(self, noise_min: float, noise_max: float, rho: float) -> None:
        super().__init__(noise_min, noise_max)
        self.rho = rho
        self.first: float = noise_max ** (1 / rho)
        self.last: float = noise_min ** (1 / rho)

    def beta(self, t: Tensor) -> Tensor:
        return (self.first + t * (self.last - self.first)) ** self.rho

    def d_beta(self, t: Tensor) -> Tensor:
        root = self.first + t * (self.last - self.first)
        return self.rho * (self.last - self.first) * root ** (self.rho - 1)

    def time_of_logsnr(self, logsnr: Tensor) -> Tensor:
        root = torch.exp(-logsnr / (2 * self.rho))
        return ((self.first - root) / (self.first - self.last)).clamp(0, 1)
