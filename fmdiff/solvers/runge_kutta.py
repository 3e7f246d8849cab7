"""Explicit Runge-Kutta methods: a method is its tableau.

A solver is asked `step(field, x, t, s, state, noise) -> (x, state)`: x (B, *shape) at time t goes
to time s (0-dim float64 tensors). It declares its `order`, the field's quantities it `asks` for,
and by `nfe(intervals)` how many evaluations that many steps cost.
"""

from torch import Tensor


class RungeKutta:
    """x_s = x_t + h sum_i b_i k_i, k_i = v(x_t + h sum_j a_ij k_j, t + c_i h), c_i = sum_j a_ij.

    a holds the rows below the first of the tableau's lower triangle (Hairer, Norsett & Wanner,
    Solving Ordinary Differential Equations I, II.1).
    """

    order: float
    asks = "v"
    stochastic = False
    a: tuple[tuple[float, ...], ...]
    b: tuple[float, ...]

    def nfe(self, intervals: int) -> int:
        return intervals * len(self.b)

    def step(self, field, x: Tensor, t: Tensor, s: Tensor, state, noise):
        h = s - t
        slopes = [field(x, t)]
        for row in self.a:
            inner = x + h * sum(a * k for a, k in zip(row, slopes, strict=True) if a)
            slopes.append(field(inner, t + sum(row) * h))
        return x + h * sum(b * k for b, k in zip(self.b, slopes, strict=True) if b), None


class Euler(RungeKutta):
    """In straight coordinates this is DDIM (Song et al. 2021, arXiv:2010.02502)."""

    order = 1
    a = ()
    b = (1.0,)


class Midpoint(RungeKutta):
    order = 2
    a = ((0.5,),)
    b = (0.0, 1.0)


class Heun(RungeKutta):
    order = 2
    a = ((1.0,),)
    b = (0.5, 0.5)


class RK4(RungeKutta):
    order = 4
    a = ((0.5,), (0.0, 0.5), (0.0, 0.0, 1.0))
    b = (1 / 6, 1 / 3, 1 / 3, 1 / 6)
