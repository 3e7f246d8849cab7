"""Explicit Runge-Kutta methods, each given by its tableau."""

from typing import Any

from torch import Tensor

from fmdiff.field import Field
from fmdiff.solvers.solver import Noise, Solver, Step


class RungeKutta(Solver):
    """x_s = x_t + h sum_i b_i k_i, k_i = v(x_t + h sum_j a_ij k_j, t + c_i h), c_i = sum_j a_ij.

    a holds the rows below the first of the tableau's lower triangle (Hairer, Norsett & Wanner,
    Solving Ordinary Differential Equations I, II.1).
    """

    a: tuple[tuple[float, ...], ...]
    b: tuple[float, ...]

    def nfe(self, steps: int) -> int:
        return steps * len(self.b)

    def step(
        self, field: Field, x: Tensor, t: Tensor, s: Tensor, state: Any, noise: Noise | None
    ) -> Step:
        h = s - t
        slopes = [field(x, t)]
        for row in self.a:
            inner = x + h * sum(a * k for a, k in zip(row, slopes, strict=True) if a)
            slopes.append(field(inner, t + sum(row) * h))
        return x + h * sum(b * k for b, k in zip(self.b, slopes, strict=True) if b), None


class Euler(RungeKutta):
    """Euler's method. In straight coordinates it is DDIM (Song et al. 2021, arXiv:2010.02502)."""

    order = 1
    a = ()
    b = (1.0,)


class Midpoint(RungeKutta):
    """Takes the slope in the middle of the step, where half an Euler step leads."""

    order = 2
    a = ((0.5,),)
    b = (0.0, 1.0)


class Heun(RungeKutta):
    """Takes the mean of the slopes at both ends of an Euler step."""

    order = 2
    a = ((1.0,),)
    b = (0.5, 0.5)


class RK4(RungeKutta):
    """The classical method of order 4."""

    order = 4
    a = ((0.5,), (0.0, 0.5), (0.0, 0.0, 1.0))
    b = (1 / 6, 1 / 3, 1 / 3, 1 / 6)
