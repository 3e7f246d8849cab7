"""What velocity.js and formula.js take from Python: systems, tableaux, the grammar of formulas."""

from typing import Any

import torch

from fmdiff.errors import FmdiffError
from fmdiff.formula import CONSTANTS, FUNCTIONS, LONGEST
from fmdiff.solvers.runge_kutta import RK4, Euler, Heun, Midpoint, RungeKutta
from fmdiff.systems import Circular, Formulas, Linear, Saddle, System

METHODS: dict[str, type[RungeKutta]] = {
    "euler": Euler,
    "midpoint": Midpoint,
    "heun": Heun,
    "rk4": RK4,
}
GRAMMAR = {
    "functions": list(FUNCTIONS),
    "constants": CONSTANTS,
    "longest": LONGEST,
    "largest": torch.finfo(torch.float32).max,  # a number that formula.py refuses is larger
}


def tableau(name: str) -> dict[str, Any]:
    """The Runge-Kutta method of this name."""
    method = METHODS[name]
    return {
        "name": name,
        "label": method.__name__,
        "order": method.order,
        "a": method.a,
        "b": method.b,
    }


def linear_system(system: System, name: str, text: str, rate: float) -> dict[str, Any]:
    """A system whose velocity is a rate times a matrix, which is that of rate 1.

    system: of rate 1.
    """
    basis = torch.eye(system.dimension, dtype=torch.float64)
    matrix = system.u(basis, torch.zeros((), dtype=torch.float64)).T
    return {"name": name, "text": text, "matrix": matrix.tolist(), "theta": rate}


def own_system(system: Formulas) -> dict[str, Any]:
    """A system of formulas, which the page reads anew."""
    texts = [formula.text for formula in system.formulas]
    return {"name": "formula", "text": "your own formula", "formulas": texts}


def as_data(system: System) -> dict[str, Any]:
    """A textbook system without noise. Raises FmdiffError for one that a page cannot follow."""
    if isinstance(system, Formulas):
        return own_system(system)
    if isinstance(system, Linear):
        unit: System = Linear(system.t_end, 1.0, 0.0)
        return linear_system(unit, "linear", "linear, u = -θ x", system.theta)
    if isinstance(system, Circular):
        unit = Circular(system.t_end, 1.0, (0.0, 0.0))
        return linear_system(unit, "circular", "circular, u = θ (-x2, x1)", system.omega)
    if isinstance(system, Saddle):
        unit = Saddle(system.t_end, 1.0, (0.0, 0.0))
        rate = system.rates[0].item()
        return linear_system(unit, "saddle", "saddle, u = (θ x1, -θ x2)", rate)
    raise FmdiffError(
        f"a page cannot follow the system {type(system).__name__}: choose linear, circular, "
        "saddle or formula"
    )
