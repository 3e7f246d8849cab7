"""What users describe themselves, each of it checked.

A path by a YAML, a class or two formulas, and the strength of guidance by a number or a formula.
"""

import math
from collections.abc import Callable, Mapping
from numbers import Real
from typing import Any

import torch
from torch import Tensor

from fmdiff.build import build, of_class
from fmdiff.errors import FmdiffError
from fmdiff.formula import Formula
from fmdiff.path import Path, Shifted, expand


def from_spec(spec: Mapping[str, Any], trust: tuple[str, ...] | None = None) -> Path:
    """The path that a YAML or a checkpoint describes. Every path takes the key `shift`.

    Raises FmdiffError if it is no path (see `check`).
    """
    keys = {name: value for name, value in spec.items() if name != "shift"}
    path, shift = checked(build(keys, trust=trust)), spec.get("shift", 1.0)
    return path if shift == 1 else Shifted(path, shift)


def checked(path: object) -> Path:
    """The path itself. Raises FmdiffError unless it is a Path that passes `check`."""
    path = of_class(path, Path)
    # a shift multiplies the noise level, which still falls
    inner = path.path if isinstance(path, Shifted) else path
    check(f"{inner!r}:", type(inner).__name__, inner.alpha, inner.beta, inner.leftover)
    return path


class Custom(Path):
    """Two formulas of t (formula.Formula), e.g. alpha = "sin(pi*t/2)", beta = "cos(pi*t/2)".

    Raises FmdiffError for formulas that cannot be read or that make no path (see `check`).
    """

    def __init__(self, alpha: str, beta: str) -> None:
        self._alpha = Formula(alpha, ("t",), "path.alpha")
        self._beta = Formula(beta, ("t",), "path.beta")
        title = f'path.alpha="{alpha}" path.beta="{beta}":'
        check(title, "Custom", self._alpha, self._beta, self.leftover)

    def alpha(self, t: Tensor) -> Tensor:
        return self._alpha(t)

    def beta(self, t: Tensor) -> Tensor:
        b = self._beta(t)
        # cos(pi/2) is not 0 in floating point; detach keeps the slope
        return b + (torch.where(b < torch.finfo(b.dtype).eps, 0, b) - b).detach()


Coefficient = Callable[[Tensor], Tensor]


def check(title: str, name: str, alpha: Coefficient, beta: Coefficient, leftover: float) -> None:
    """Raises FmdiffError unless these coefficients carry noise to data.

    Both must be finite and >= 0 on [0, 1], alpha(1) must be 1, and r = alpha / (alpha + beta) must
    increase from at most `leftover` to at least 1 - leftover. `title` begins a message about the
    path, and `name` is the name of its class.
    """
    t = torch.linspace(0, 1, 1001, dtype=torch.float64)
    a = _values(title, f"{name}.alpha(t)", alpha, t)
    b = _values(title, f"{name}.beta(t)", beta, t)
    r = a / (a + b)
    if not (r[0] <= leftover and r[-1] >= 1 - leftover and abs(a[-1] - 1) < 1e-3):
        raise FmdiffError(
            f"{title} a path goes from noise (alpha near 0 beside beta) at t = 0 to the data "
            f"(alpha = 1, beta near 0) at t = 1, and here alpha = {a[0]:.3g} and "
            f"beta = {b[0]:.3g} at 0, {a[-1]:.3g} and {b[-1]:.3g} at 1"
        )
    lam = a.clamp(min=0).log() - b.clamp(min=0).log()  # unlike r, it is not rounded to 1
    # a high power of t is 0 in floating point near t = 0
    rising = (lam[1:] > lam[:-1]) | (lam[1:] == -torch.inf)
    if not rising.all():
        raise FmdiffError(
            f"{title} alpha / (alpha + beta) must increase, not so at t={t[:-1][~rising][0]:g}"
        )


def _values(title: str, call: str, formula: Callable[[Tensor], Any], t: Tensor) -> Tensor:
    """The formula at t. Raises FmdiffError unless it is as `check` requires."""
    try:
        value = formula(t)
    except NotImplementedError as error:
        raise FmdiffError(f"{call} is missing: a path defines alpha and beta") from error
    except Exception as error:
        raise FmdiffError(f"{call} fails: {type(error).__name__}: {error}") from error
    if not isinstance(value, Tensor):
        raise FmdiffError(f"{call} must return a tensor, not {value!r:.60}")
    if value.shape != t.shape or value.dtype != t.dtype:
        raise FmdiffError(
            f"{call} must have the shape and dtype of t, {list(t.shape)} and {t.dtype}, "
            f"not {list(value.shape)} and {value.dtype}"
        )
    bad = ~(value.isfinite() & (value > -1e-7))
    if bad.any():
        name = call.split(".")[1].removesuffix("(t)")
        raise FmdiffError(
            f"{title} {name}(t) must be finite and >= 0 on [0, 1], "
            f"but {name}({t[bad][0]:g}) = {value[bad][0]:g}"
        )
    return value


class Strength:
    """The guidance scale w: a number, or a formula of the path's time t and straight time r.

    Raises FmdiffError for anything else.
    """

    def __init__(self, w: float | str) -> None:
        self.value: float | Formula
        if isinstance(w, str):
            self.value = Formula(w, ("t", "r"), "guidance.w")
        elif isinstance(w, Real) and math.isfinite(w):
            self.value = float(w)
        else:
            raise FmdiffError(f"guidance.w={w}: a finite number or a formula of t and r is needed")

    def __repr__(self) -> str:
        return repr(self.value)

    def __eq__(self, w: object) -> bool:
        """Whether the scale is the number w at every time."""
        return self.value == w

    def __call__(self, path: Path, x: Tensor, t: Tensor) -> Tensor | float:
        """The scale at t, shaped to broadcast against x."""
        if isinstance(self.value, float):
            return self.value
        return expand(self.value(t, path.r(t)), x).to(x)
