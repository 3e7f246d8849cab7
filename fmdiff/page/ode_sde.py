"""The scene `ode_sde`: the ODE and the SDE of one exact field, from the same starts."""

from collections.abc import Sequence
from typing import Any

import torch

from fmdiff import randomness
from fmdiff.errors import FmdiffError
from fmdiff.exact import Mixture
from fmdiff.page.graph import field_graph
from fmdiff.page.program import Program, asked, record
from fmdiff.page.scene import Network, Scene
from fmdiff.sampling import Sampler
from fmdiff.solvers.runge_kutta import Euler
from fmdiff.solvers.solver import Solver
from fmdiff.solvers.stochastic import EulerMaruyama

DIFFUSIONS = (0.0, 0.25, 0.5, 1.0, 1.5, 2.0, 3.0)
STEPS = (20, 50, 100)
STARTS = 1000
GRID = 200  # intervals of the density
SHOWN = 300  # samples of the data


def ode_sde_scene(
    mixtures: Sequence[tuple[str, Mixture]], diffusion: float = 1.0, x0: Sequence[float] = ()
) -> Scene:
    """Euler's method and Euler-Maruyama's along mixtures (name, field) of one or two dimensions.

    All mixtures have one path. x0: the start of all samples, or () for normal starts. Raises
    FmdiffError for mixtures of other dimensions.
    """
    for name, field in mixtures:
        if len(field.shape) != 1 or field.shape[0] > 2:
            raise FmdiffError(
                f"scenes=[ode_sde] shows one or two dimensions, and {name} has "
                f"{torch.Size(field.shape).numel()}"
            )
    graphs: dict[str, Network] = {}
    for i, (_, field) in enumerate(mixtures):
        graphs[f"mixture{i}"] = field_graph(field, asked(field), ())
    sigmas = sorted({*DIFFUSIONS, diffusion})
    first = mixtures[0][1]
    return Scene(
        kind="ode_sde",
        title="ODE against SDE",
        caption="Both go from the same starts. Without noise on the way, each start has one end, "
        "and trajectories never cross. With noise each is rough and its end random. The drift of "
        "the SDE has one more part, which pulls back what the noise spreads, so from normal "
        "starts both reach the same law at t = 1, whatever the diffusion.",
        data={
            "mixtures": [_about(*entry) for entry in mixtures],
            "sigmas": sigmas,
            "steps": STEPS,
            "ode": [_program(Euler(), n, first).data() for n in STEPS],
            "sde": [
                [_program(EulerMaruyama(sigma), n, first).data() for n in STEPS]
                for sigma in sigmas
            ],
            "start": {"sigma": diffusion, "x0": list(x0)},
        },
        graphs=graphs,
    )


def _program(solver: Solver, steps: int, field: Mixture) -> Program:
    """The steps of a solver in equal times, as `fmdiff simulate` takes them."""
    return record(Sampler(solver=solver, steps=steps, coordinates="native", final="solver"), field)


def _about(name: str, field: Mixture) -> dict[str, Any]:
    """What the page shows of a mixture beside its field."""
    shape = tuple(field.shape)
    one = torch.ones((), dtype=torch.float64)
    x = field.sample(0, 2 * SHOWN, 0).double()
    half = max(3.5, 1.15 * x.abs().max().item())
    about: dict[str, Any] = {
        "name": name,
        "d": shape[0],
        "half": half,
        "means": field.means.tolist(),
        "weights": field.log_weights.exp().tolist(),
        "samples": x[:SHOWN].tolist(),
        "starts": randomness.noise(0, STARTS, shape, 0, "start").double().flatten().tolist(),
    }
    if shape[0] == 1:
        grid = torch.linspace(-half, half, GRID + 1, dtype=torch.float64)
        density = field.log_prob(grid[:, None], one).exp()
        about["density"] = [grid.tolist(), density.tolist()]
    return about
