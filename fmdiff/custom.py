"""A path of the user's own, from two formulas typed on the command line or in a YAML."""

import torch
from torch import Tensor

from fmdiff.formula import Formula
from fmdiff.path import Path


class Custom(Path):
    """Two formulas of t (formula.Formula), e.g. alpha = "sin(pi*t/2)", beta = "cos(pi*t/2)".

    Raises FmdiffError for formulas that cannot be read or that make no path (see `Path.check`).
    """

    def __init__(self, alpha: str, beta: str) -> None:
        self._alpha = Formula(alpha, ("t",), "path.alpha")
        self._beta = Formula(beta, ("t",), "path.beta")
        self.check()

    def alpha(self, t: Tensor) -> Tensor:
        return self._alpha(t)

    def beta(self, t: Tensor) -> Tensor:
        b = self._beta(t)
        # cos(pi/2) is not 0 in floating point; its slope stays
        return b + (torch.where(b < torch.finfo(b.dtype).eps, 0, b) - b).detach()

    def _formulas(self) -> tuple[Formula, Formula]:
        return self._alpha, self._beta  # as they are typed, before beta is rounded to 0

    def _title(self) -> str:
        return f'path.alpha="{self._alpha.text}" path.beta="{self._beta.text}":'
