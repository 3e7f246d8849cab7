r"""solver=fitted: times and weights optimised for one model and one number of steps.

The solver is `Linear`, x_i = a_i x_0 + sum_j b_ij v(x_j, t_j). Its inner times and its weights,
S (S + 3) / 2 + S - 1 numbers for S steps, are those of the least error at the end: the RMS
distance, over some trajectories of the model, to the model's own fine solution from the same
noise. So it is a Bespoke Non-Stationary solver (Shaul et al. 2024, arXiv:2403.01329; Frankel et
al. 2025, arXiv:2502.17423, call the idea S4S). These descend the gradient through the network,
for hours. Here it is a nonlinear least-squares problem of few unknowns:

    minimise |r(p)|^2,   (J^T J + lam diag(J^T J)) dp = -J^T r   (Levenberg-Marquardt).

A column of J is a difference quotient. A weight of row i changes x_i alone, so only the
evaluations after it are run again, and the last row costs none: about S^3 / 6 evaluations for all
columns. The weights of a row are changed along orthonormal combinations of x_0, v_0, v_1, ...,
which differ little from each other as they stand.

The search starts from the best of some solvers and laws of steps. Every accepted step is judged on
other noise, which stops the search before it fits the trajectories themselves, and which decides
between the result and the default solver in the end.
"""

import math
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from fmdiff import randomness
from fmdiff.build import named
from fmdiff.errors import FmdiffError
from fmdiff.field import Field
from fmdiff.fitted.sensitivity import System, linear, of_jacobian
from fmdiff.fitted.times import FIXED, Model, Progress, Trajectories
from fmdiff.integration import plan
from fmdiff.sampling import Sampler
from fmdiff.solvers.linear import Linear, bashforth
from fmdiff.solvers.runge_kutta import Euler
from fmdiff.solvers.solver import Noise, Solver, Step

USUAL = "adams"  # the solver that the fitted one has to beat
LAWS = ("uniform", "ratio(1.1,1.4)", "logsnr")  # that the search may start from
MOST = 17  # steps, which have 186 numbers
BUDGET = 450  # evaluations of a trajectory in all steps of the search, about
STEPS = 8  # the most steps of the search
LAM = 1e-2, 1e-3  # the first and the least damping
TRIALS = 12  # of larger damping, before the search ends
GAIN = 0.995  # the search ends where a step leaves more than this of the error


class FittedSolver(Solver):
    """The solver that is fitted to a model.

    n trajectories are fitted to, and as many again decide; null takes 32 to 4,096, by their size.
    The fine solution takes `reference` steps. Noise by `seed` differs from that of all samples.
    """

    one_way = True

    def __init__(self, n: int | None, reference: int, seed: int) -> None:
        for option, value, least in (("n", n or 2, 2), ("reference", reference, 20)):
            if value < least:
                raise FmdiffError(f"solver.{option}={value}: {least} or more are needed")
        self.n, self.reference, self.seed = n, reference, seed

    def begin(self, times: Tensor, jump: bool = False) -> Any:
        """Raises FmdiffError: there are no weights before they are fitted to a model."""
        raise FmdiffError(
            "solver=fitted has no weights before they are fitted to a model: use fmdiff sample or "
            "fmdiff evaluate, or, in Python, solver.fitted_to(field, Sampler(nfe=...))"
        )

    def step(
        self, field: Field, x: Tensor, t: Tensor, s: Tensor, state: Any, noise: Noise | None
    ) -> Step:
        """Raises FmdiffError, as `begin` does."""
        raise AssertionError(self.begin(t))

    def fitted_to(self, field: Field, sampler: Sampler) -> Sampler:
        """The sampler with the solver fitted to the field; its steps or nfe say for how many.

        Raises FmdiffError as `model` does.
        """
        model = self.model(field, sampler)
        return chosen(sampler, self.fit(model))

    def model(self, field: Field, sampler: Sampler) -> Model:
        """The model that the solver is fitted to.

        Raises FmdiffError for a flow map, and without steps or nfe of 2 to 17 steps.
        """
        if sampler.schedule is not None:
            raise FmdiffError("solver=fitted has its own times: leave schedule out")
        if sampler.coordinates != "straight":
            raise FmdiffError(
                f"coordinates={sampler.coordinates}: solver=fitted runs in straight coordinates"
            )
        if field.two_times and field.net is not None:
            raise FmdiffError(
                "solver=fitted is for velocities, and this is a flow map, which solver=jump takes "
                "to the data in fewer steps"
            )
        if sampler.steps is None and sampler.nfe is None:
            raise FmdiffError("solver=fitted is fitted to a number of steps: give nfe= or steps=")
        sampler = replace(sampler, solver=Euler())
        model = Model(field, sampler, randomness.key(self.seed, "fitted"), "solver=fitted")
        if model.base.steps > MOST:
            raise FmdiffError(
                f"solver=fitted has 2 to {MOST} steps, and this is {model.base.steps}: give fewer "
                f"by nfe= or steps=, or choose solver={USUAL}"
            )
        return model

    def trajectories(self, model: Model) -> int:
        """The number of trajectories that the solver is fitted to."""
        return self.n or max(32, min(4096, 2**13 // torch.Size(model.field.shape).numel()))

    def cost(self, model: Model) -> int:
        """The most evaluations that each of the trajectories takes, about."""
        steps, price = model.base.steps, (model.base.nfe or 0) // model.base.steps
        trials = (len(LAWS) * 4 + TRIALS) * steps
        return price * (trials + rounds(steps) * (of_jacobian(steps) + steps)) + 2 * self.reference

    @torch.no_grad()
    def fit(self, model: Model, progress: Progress | None = None) -> dict[str, Any]:
        """Draw trajectories and return what `compare` finds on them."""
        n = self.trajectories(model)
        training = Trajectories(model, 0, n, self.reference, progress)
        test = Trajectories(model, n, 2 * n, self.reference, progress)
        return compare(model, training, test)


def chosen(sampler: Sampler, entry: dict[str, Any]) -> Sampler:
    """The sampler with the solver that a fit has decided for. `entry` is what `compare` returns.

    Raises FmdiffError for an entry that is not like this.
    """
    if entry["weights"] is None:
        if entry["of"] != USUAL:
            raise FmdiffError(f"of={entry['of']!r}: a solver without weights is {USUAL}")
        return replace(sampler, solver=named("solver", USUAL))
    solver = Linear(entry["times"], entry["weights"])
    return replace(sampler, solver=solver, steps=None, nfe=None)


def compare(model: Model, training: Trajectories, test: Trajectories) -> dict[str, Any]:
    """Return the times and weights, or none where the default solver is better in the test.

    `of` is fitted or the name of the default solver. `error` is the RMS distance of both to the
    fine solution, in the test.
    """
    usual = replace(model.sampler, solver=named("solver", USUAL), steps=model.base.steps, nfe=None)
    default = test.error(usual, usual.plan(model.flow))
    error, solver = search(model, training, test)
    errors = {"fitted": error, USUAL: default}
    if error < default:
        return {
            "times": solver.times,
            "weights": solver.weights,
            "of": "fitted",
            "error": errors,
        }
    return {"times": None, "weights": None, "of": USUAL, "error": errors}


def search(model: Model, training: Trajectories, test: Trajectories) -> tuple[float, Linear]:
    """Search for the solver of the least error in the test; return that error and the solver."""
    trials = [(error_of(training, solver), solver) for solver in starts(model)]
    now, solver = min(trials, key=lambda pair: pair[0])
    best, lam = (error_of(test, solver), solver), LAM[0]
    for _ in range(rounds(model.base.steps)):
        system = System.of(training, solver)
        before = now
        for _ in range(TRIALS):
            trial = system.solution(solver, lam, model.hi)
            error = math.inf if trial is None else error_of(training, trial)
            if trial is not None and error < now:
                now, solver, lam = error, trial, max(lam / 5, LAM[1])
                break
            lam *= 4
        if now < before:
            best = min(best, (error_of(test, solver), solver), key=lambda pair: pair[0])
        if now > GAIN * before:
            break
    return best


def error_of(trajectories: Trajectories, solver: Linear) -> float:
    """The RMS distance per coordinate of a solver's ends to the fine ones."""
    model = trajectories.model
    return trajectories.error(replace(model.sampler, solver=solver), plan(model.flow, solver))


def rounds(steps: int) -> int:
    """The most steps of the search."""
    return max(2, min(STEPS, BUDGET // of_jacobian(steps)))


def starts(model: Model) -> list[Linear]:
    """The solvers that a search may start from, of as many steps as the model's."""
    solvers = []
    for name in LAWS:
        layout = model.layout(FIXED[name])
        if layout is not None:
            solvers += [bashforth(layout.times, order, layout.jump) for order in (2, 3)]
            for solver in (named("solver", "dpmpp_2m"), named("solver", USUAL, weigh=False)):
                solvers.append(linear(model.flow, solver, layout))
    return solvers
