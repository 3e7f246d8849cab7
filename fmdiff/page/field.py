"""The scene `field`: the arrows of a vector field in the plane, and particles that follow it."""

from collections.abc import Sequence
from typing import Any

import torch

from fmdiff.errors import FmdiffError
from fmdiff.field import Field
from fmdiff.page.graph import field_graph, usual_inputs
from fmdiff.page.scene import Network, Scene
from fmdiff.page.velocity import GRAMMAR, as_data, tableau
from fmdiff.randomness import noise
from fmdiff.systems import Circular, Formulas, Linear, Saddle, System

# RK4 steps of a particle from the first time to the last
STEPS_SYSTEM, STEPS_FIELD = 100, 50
SHOWN = 400  # samples of the data
NOISE, FIRST = 200, 12  # particles that start as noise, and how many are there at first
EXAMPLES = ["-x2 - 0.3*x1*(x1^2 + x2^2 - 4)", "x1 - 0.3*x2*(x1^2 + x2^2 - 4)"]  # a limit cycle
HALF = 4.0  # half of the side of the plane that is shown, for systems


def tour_systems() -> list[System]:
    """The systems of the plane that a tour shows."""
    return [
        Circular(6.0, 1.0, [[2.0, 0.0]]),
        Linear(2.0, 2.0, 3.0),
        Saddle(2.0, 1.0, [[0.2, 2.0]]),
        Formulas(10.0, EXAMPLES, [[0.5, 0.0], [3.5, 0.0]]),
    ]


def field_scene(
    systems: Sequence[System] = (), fields: Sequence[tuple[str, Field, Any]] = ()
) -> Scene:
    """The explorer of some systems and of some fields: (name, field, data), data or None.

    Raises FmdiffError for a field that does not lie in the plane and for a system that a page
    cannot follow.
    """
    graphs: dict[str, Network] = {}
    entries = [_of_field(*entry, graphs) for entry in fields]
    entries += [_of_system(system) for system in systems]
    return Scene(
        kind="field",
        title="Vector field explorer",
        caption="A vector field gives each point of the plane a velocity: the arrows. A particle "
        "follows them, and one trajectory goes through each point, so that trajectories never "
        "cross. Click to drop a particle, and drag it to see where it comes from and "
        "where it goes.",
        data={"fields": entries, "grammar": GRAMMAR, "method": tableau("rk4")},
        graphs=graphs,
    )


def _of_system(system: System) -> dict[str, Any]:
    entry = as_data(system)
    if entry["name"] == "linear":  # of any dimension
        entry["matrix"] = [[entry["matrix"][0][0], 0.0], [0.0, entry["matrix"][0][0]]]
    elif system.dimension != 2:
        raise FmdiffError(
            f"scenes=[field] shows the plane, and this system has {system.dimension} "
            f"dimension{'s' if system.dimension > 1 else ''}: give two formulas"
        )
    assert system.origins is not None
    starts = [[*origin, 0.0][:2] for origin in system.origins.tolist()]
    half = max(HALF, *(1.2 * abs(value) for start in starts for value in start))
    ends = {"x": [-half, half], "y": [-half, half], "t": [0.0, system.t_end]}
    return entry | ends | {"starts": starts, "inputs": [], "steps": STEPS_SYSTEM}


def _of_field(name: str, field: Field, data: Any, graphs: dict[str, Network]) -> dict[str, Any]:
    if tuple(field.shape) != (2,):
        shape = "x".join(map(str, field.shape))
        raise FmdiffError(f"scenes=[field] shows the plane, and this field has samples of {shape}")
    key = f"field{len(graphs)}"
    graphs[key] = field_graph(field, "v")
    points = torch.zeros(0, 2) if data is None else data.sample(0, SHOWN, 0)[0]
    far = points.abs().amax(0).tolist() if len(points) else [3.0, 3.0]
    half = max(3.0, *(1.15 * value for value in far))
    interval = field.interval("v")
    first = torch.tensor(interval[0], dtype=torch.float64)
    eps = noise(0, NOISE, (2,), 0, "start").double()
    starts = field.start(eps, first, 0, 0).tolist()
    return {
        "name": key,
        "text": name,
        "graph": key,
        "inputs": usual_inputs(field),
        "classes": field.classes and [*_names(field), "all"],
        "w": 1.0,
        "points": [[round(value, 4) for value in point] for point in points.tolist()],
        "x": [-half, half],
        "y": [-half, half],
        "t": interval,
        "noise": starts,
        "starts": starts[:FIRST],
        "steps": STEPS_FIELD,
    }


def _names(field: Field) -> list[str]:
    return list(field.names) or [f"class {i}" for i in range(field.classes)]
