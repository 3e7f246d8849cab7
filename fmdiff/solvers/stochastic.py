"""Solvers of the SDE that has the same marginals as the field's ODE."""

from collections.abc import Callable

import torch
from torch import Tensor

from fmdiff.errors import FmdiffError, nearest
from fmdiff.path import Path

# the coefficient g(t) = sigma_t of the Brownian term, by name, as g^2
DIFFUSIONS: dict[str, Callable[[Path, Tensor], Tensor]] = {
    "path": lambda p, t: 2 * p.beta(t) * (p.beta(t) * p.d_alpha(t) / p.alpha(t) - p.d_beta(t)),
    "beta": lambda p, t: p.beta(t),
    "linear": lambda p, t: 1 - t,
    "inc_dec": lambda p, t: torch.sin(torch.pi * t) ** 2,
}


class EulerMaruyama:
    """x_s = x_t + [v + g^2/2 score] h + g (W_s - W_t).

    The score term cancels the spread that the noise adds, so every g keeps the marginals p_t
    (Song et al. 2021, arXiv:2011.13456; SiT, arXiv:2401.08740, eq. 5). `diffusion` is a constant
    g >= 0 or a name: path (g^2 = 2 (beta^2 alpha'/alpha - beta beta'), the textbook reverse SDE),
    beta (g^2 = beta), linear (1 - t), inc_dec (sin^2 pi t). Weak and strong order 1, since the
    noise is additive.
    """

    order = 1
    asks = "straight"  # finite in more places than v or score, and gives both in one evaluation
    stochastic = True

    def __init__(self, diffusion: float | str) -> None:
        if isinstance(diffusion, str) and diffusion not in DIFFUSIONS:
            raise FmdiffError(
                f"solver.diffusion={diffusion} is neither a number nor a known name; "
                f"{nearest(diffusion, DIFFUSIONS)}"
            )
        if not isinstance(diffusion, str) and not 0 <= diffusion < float("inf"):
            raise FmdiffError(f"solver.diffusion={diffusion}: a constant must be finite and >= 0")
        self.diffusion = diffusion

    def nfe(self, intervals: int) -> int:
        return intervals

    def squared(self, path: Path, t: Tensor) -> Tensor:
        if isinstance(self.diffusion, str):
            return DIFFUSIONS[self.diffusion](path, t)
        return torch.full_like(t, self.diffusion**2)

    def step(self, field, x: Tensor, t: Tensor, s: Tensor, state, noise):
        straight = field.predict(x, t, "straight")
        v = field.path.convert(straight, x, t, "straight", "v")
        score = field.path.convert(straight, x, t, "straight", "score")
        # path is infinite where alpha = 0; as every g keeps the marginals, take none there
        g2 = self.squared(field.path, t).nan_to_num(nan=0.0, posinf=0.0)
        return x + (s - t) * (v + g2 / 2 * score) + g2.sqrt() * noise(t, s), None
