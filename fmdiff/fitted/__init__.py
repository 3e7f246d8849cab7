"""What is fitted to one model, by the error of few steps against its own fine solution."""

from fmdiff.fitted.solver import FittedSolver
from fmdiff.fitted.times import Fitted

__all__ = ["Fitted", "FittedSolver"]
