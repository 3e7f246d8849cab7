"""fmdiff simulate with a list of steps: errors and orders of solvers, errors at equal NFE."""

from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fmdiff import tables
from fmdiff.build import named
from fmdiff.errors import FmdiffError
from fmdiff.integration import integrate
from fmdiff.pictures import flowplots
from fmdiff.solvers.solver import Solver
from fmdiff.systems import System, truth

Row = list[float | str | None]
Table = list[Row]  # the first row is the header
Curves = dict[str, tuple[list[float], list[float]]]  # {solver: (x, error)}


def compare(
    settings: dict[str, Any], system: System, solvers: dict[str, Solver]
) -> tuple[dict[str, Table], partial]:
    """Print and return tables of errors, with the picture of all solvers and numbers of steps.

    Raises FmdiffError for settings that do not go together.
    """
    steps = settings["steps"]
    steps = steps if isinstance(steps, list) else [steps or 10]
    _check(settings, system, solvers, steps)
    trial = Trial(settings, system)
    errors, curves = _errors(trial, solvers, steps)
    paths = f", root mean square of {trial.n} paths" if trial.n > 1 else ""
    print(f"{settings['choices']['system']}, errors at t = {trial.t_end:g}{paths}")
    print(tables.numbers(errors, limit=1000))
    print("fitted orders: one-step error ~ h^local_order, error ~ h^global_order")
    solvers = {name: named("solver", name) for name in ("euler", "heun")} | solvers
    equal, costs = _at_equal_nfe(trial, solvers, sorted({2 * count for count in steps}))
    print("at equal NFE\n" + tables.numbers(equal, limit=1000))
    picture = partial(flowplots.errors_plot, errors=curves, costs=costs)
    return {"errors": errors, "equal_nfe": equal}, picture


def _check(
    settings: dict[str, Any], system: System, solvers: dict[str, Solver], steps: list[int]
) -> None:
    for name, solver in solvers.items():
        if solver.stochastic or solver.adaptive:
            raise FmdiffError(
                f"steps={steps}: a table of errors is for an ODE and a solver of fixed steps, "
                f"not for solver={name} here"
            )
    if system.steps:
        raise FmdiffError(f"steps={steps}: system.u gives one velocity a step, so no other steps")
    if settings["noise"] is not None or settings["animation"]:
        raise FmdiffError(f"steps={steps}: noise= and animation= are for one run, steps=N")


class Trial:
    """A system with its starts x (n, d) and the exact states at t_end, to measure errors with.

    There is one path from each start. Prints a line if there is no formula for these states.
    Raises FmdiffError for several paths from one start.
    """

    def __init__(self, settings: dict[str, Any], system: System) -> None:
        self.system, self.t_end = system, settings["t_end"]
        starts = 100 if system.origins is None else len(system.origins)
        self.n = settings["n"] or starts
        if self.n != starts and system.origins is not None:
            raise FmdiffError(f"n={self.n} paths: all are the same from one start without noise")
        self.x = system.starts(0, self.n, settings["seed"])
        self.exact = finite(self.truth(self.t_end), "in the exact solution")
        if system.solution(self.x, torch.zeros(())) is None:
            print("exact: no formula is known, so it is a fine Runge-Kutta 4 solve")

    def truth(self, t: float) -> Tensor:
        """The exact states at time t."""
        return truth(self.system, self.x, torch.tensor([0, t], dtype=torch.float64))[-1]

    def end(self, solver: Solver, steps: int, t: float) -> Tensor:
        """The states at time t after `steps` steps of a solver."""
        times = torch.linspace(0, t, steps + 1, dtype=torch.float64)
        return finite(integrate(solver, self.system, self.x, times), f"after {steps} steps")


def finite(x: Tensor, where: str) -> Tensor:
    """Return x. Raises FmdiffError, naming the place `where`, if it is not finite."""
    if not x.isfinite().all():
        raise FmdiffError(f"the state is not finite {where}: take more steps= or a smaller t_end=")
    return x


def components(name: str, d: int) -> list[str]:
    """The names of the d components of a state in a table."""
    return [name] if d == 1 else [f"{name}{i + 1}" for i in range(d)]


def _distance(a: Tensor, b: Tensor | float) -> float:
    return (a - b).square().sum(1).mean().sqrt().item()


def _errors(trial: Trial, solvers: dict[str, Solver], steps: list[int]) -> tuple[Table, Curves]:
    """A row for each solver and number of steps, and the errors at the end by the step h."""
    d, exact, size = trial.x.shape[1], trial.exact, _distance(trial.exact, 0.0)
    after_one = {count: trial.truth(trial.t_end / count) for count in steps}
    states = [*components("x", d), *components("exact", d)] if trial.n == 1 else []
    header = ["solver", "steps", "h", *states, "error", "relative_error", "nfe", "one_step_error"]
    table: Table = [[*header, "local_order", "global_order"]]
    curves: Curves = {}
    hs = [trial.t_end / count for count in steps]
    for name, solver in solvers.items():
        rows: list[Row] = []
        ends, one_step = [], []
        for count, h in zip(steps, hs, strict=True):
            trial.system.evaluations = 0
            end = trial.end(solver, count, trial.t_end)
            nfe, error = trial.system.evaluations / trial.n, _distance(end, exact)
            state = [*end[0].tolist(), *exact[0].tolist()] if trial.n == 1 else []
            local = _distance(trial.end(solver, 1, h), after_one[count])
            relative = error / size if size else None
            rows.append([name, count, h, *state, error, relative, nfe, local])
            ends.append(error)
            one_step.append(local)
        curves[name] = hs, ends
        orders = [order(hs, one_step, size), order(hs, ends, size)]
        table += [[*row, *orders] for row in rows]
    return table, curves


def _at_equal_nfe(
    trial: Trial, solvers: dict[str, Solver], budgets: list[int]
) -> tuple[Table, Curves]:
    """A row of errors for each number of evaluations, and each solver's errors by that.

    A solver whose steps do not use up a budget has no error there.
    """
    table: Table = [["nfe", *(f"error_{name}" for name in solvers)]]
    curves: Curves = {name: ([], []) for name in solvers}
    for nfe in budgets:
        row: Row = [nfe]
        for name, solver in solvers.items():
            count = nfe // solver.nfe(1) if nfe % solver.nfe(1) == 0 else None
            error = (
                _distance(trial.end(solver, count, trial.t_end), trial.exact) if count else None
            )
            row.append(error)
            if error:
                curves[name][0].append(nfe)
                curves[name][1].append(error)
        table.append(row)
    return table, curves


def order(h: list[float], errors: list[float], size: float) -> float | None:
    """Fit p in error ~ h^p by least squares on logarithms. Ignores mere rounding errors."""
    points = {a: e for a, e in zip(h, errors, strict=True) if e > 1e-13 * max(size, 1e-300)}
    if len(points) < 2:
        return None
    return float(np.polyfit(np.log(list(points)), np.log(list(points.values())), 1)[0])
