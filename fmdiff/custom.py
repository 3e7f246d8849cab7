"""A path of the user's own, from two formulas typed on the command line or in a YAML."""

import torch
from torch import Tensor

from fmdiff.errors import FmdiffError
from fmdiff.formula import Formula
from fmdiff.path import Path


class Custom(Path):
    """Two formulas of t (formula.Formula), e.g. alpha = "sin(pi*t/2)", beta = "cos(pi*t/2)".

    Raises FmdiffError unless alpha and beta are finite and >= 0, r = alpha / (alpha + beta)
    increases from at most 0.05 to at least 0.95, and alpha(1) = 1.
    """

    def __init__(self, alpha: str, beta: str) -> None:
        self._alpha = Formula(alpha, ("t",), "path.alpha")
        self._beta = Formula(beta, ("t",), "path.beta")
        t = torch.linspace(0, 1, 1001, dtype=torch.float64)
        a, b = self._alpha(t), self._beta(t)
        r = a / (a + b)
        where = f'path.alpha="{alpha}" path.beta="{beta}":'
        for name, value in (("alpha", a), ("beta", b)):
            bad = ~(value.isfinite() & (value > -1e-7))
            if bad.any():
                raise FmdiffError(
                    f"{where} {name}(t) must be finite and >= 0 on [0, 1], "
                    f"but {name}({t[bad][0]:g}) = {value[bad][0]:g}"
                )
        ends = f"alpha = {a[0]:.3g} and beta = {b[0]:.3g}", f"{a[-1]:.3g} and {b[-1]:.3g}"
        if not (r[0] <= 0.05 and r[-1] >= 0.95 and abs(a[-1] - 1) < 1e-3):
            raise FmdiffError(
                f"{where} a path goes from noise (alpha near 0 beside beta) at t = 0 to the data "
                f"(alpha = 1, beta near 0) at t = 1, and here {ends[0]} at 0, {ends[1]} at 1"
            )
        if not (r.diff() > 0).all():
            t_bad = t[:-1][r.diff() <= 0][0]
            raise FmdiffError(
                f"{where} alpha / (alpha + beta) must increase, not so at t={t_bad:g}"
            )

    def alpha(self, t: Tensor) -> Tensor:
        return self._alpha(t)

    def beta(self, t: Tensor) -> Tensor:
        b = self._beta(t)
        # cos(pi/2) is not 0 in floating point; its slope stays
        return b + (torch.where(b < torch.finfo(b.dtype).eps, 0, b) - b).detach()
