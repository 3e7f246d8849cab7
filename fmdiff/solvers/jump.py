r"""Jumps along a flow map.

Let X(x, t, s) be the flow of a field from time t to time s. A map that gives it in one evaluation
needs no solver: any times will do, and every jump ends where the flow does. A jump may also end
beyond s, at less noise, and the noise that is missing at s is added anew.
"""

from typing import Any

import torch
from torch import Tensor

from fmdiff.errors import FmdiffError
from fmdiff.field import Field
from fmdiff.path import Kind
from fmdiff.solvers.solver import Noise, Solver, Step
from fmdiff.solvers.stochastic import normals


class Jump(Solver):
    r"""x_s = X(x_t, t, s) by a flow map, one evaluation a jump.

    The last jump ends at the data. With `noise` g > 0 a jump ends at the time c whose noise level
    n = beta/alpha is sqrt(1 - g^2) n_s, or the last of the path. With z standard normal,

        x_s = alpha_s [x_c / alpha_c + sqrt(n_s^2 - n_c^2) z]

    has the law p_s if x_c has the law p_c. g = 1 jumps to the data and adds noise to them, which
    is multistep consistency sampling (Song et al. 2023, arXiv:2303.01469, algorithm 1). Values
    between are the gamma-sampling of consistency trajectory models (Kim et al. 2024,
    arXiv:2310.02279).

    Raises FmdiffError for a noise outside [0, 1].
    """

    order = torch.inf
    asks: Kind = "straight"
    maps = True
    default_steps = 4

    def __init__(self, noise: float = 0.0) -> None:
        if not 0 <= noise <= 1:
            raise FmdiffError(f"solver.noise={noise}: a number from 0 to 1 is needed")
        self.noise, self.stochastic = noise, noise > 0

    def step(
        self, field: Field, x: Tensor, t: Tensor, s: Tensor, state: Any, noise: Noise | None
    ) -> Step:
        if not self.noise:
            return field.flow(x, t, s), None
        # in straight coordinates, where the noise level is (1 - r) / r
        path = field.path
        r, q = path.r(t), path.r(s)
        c = q / (q + (1 - q) * (1 - self.noise**2) ** 0.5)
        c = c.clamp(max=field.end()).clamp(min=q)
        a_t, a_s = (path.alpha(time) + path.beta(time) for time in (t, s))
        ahead = x / a_t + (c - r) * field.predict(x, t, "straight", path.time_of_r(c))
        n_c, n_s = (1 - c) / c, (1 - q) / q
        (z,) = normals(noise, r, q)  # these times are the same in all coordinates
        return q * a_s * (ahead / c + (n_s**2 - n_c**2).sqrt() * z), None

    def arrival(self, field: Field, x: Tensor, t: Tensor) -> Tensor:
        """The end of the flow of x (B, *shape), at time t (), at the data."""
        return field.predict(x, t, "x", torch.ones_like(t))
