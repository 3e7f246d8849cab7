"""The scene `euler`: a solver step by step, with the table of `fmdiff simulate` beside it."""

from collections.abc import Sequence

from fmdiff.errors import FmdiffError
from fmdiff.page.scene import Scene
from fmdiff.page.velocity import GRAMMAR, METHODS, as_data, tableau
from fmdiff.systems import REFERENCE, Circular, Formulas, Linear, System

SPAN = 20  # the exact solution takes at least this many steps to one of the solver


def textbook() -> list[System]:
    """The systems that a tour shows: the first is that of the textbook table."""
    return [
        Linear(1.0, 2.0, 4.0),
        Circular(6.0, 1.0, (1.0, 0.0)),
        Formulas(4.0, "x*(1 - x) + sin(2*t)/2", 0.1),
    ]


def euler_scene(systems: Sequence[System]) -> Scene:
    """Euler's method, step by step, beside the midpoint method, Heun's and RK4.

    Raises FmdiffError for a system that a page cannot follow, and for one of three or more
    dimensions.
    """
    entries = []
    for system in systems:
        if system.dimension > 2:
            raise FmdiffError(
                f"scenes=[euler] shows one or two dimensions, and this system has "
                f"{system.dimension}"
            )
        assert system.origin is not None
        ends = {"x0": system.origin.tolist(), "end": system.t_end}
        entries.append(as_data(system) | ends)
    return Scene(
        kind="euler",
        title="Euler's method, step by step",
        caption="Each step goes straight along the velocity at its start. The exact solution, "
        "dashed, bends, and the gap between the two is the error. Twice the steps halve the error "
        "of Euler's method, quarter that of the midpoint method and of Heun's, and leave "
        "a sixteenth of that of RK4.",
        data={
            "systems": entries,
            "grammar": GRAMMAR,
            "methods": [tableau(name) for name in METHODS],
            "reference": REFERENCE,
            "span": SPAN,
        },
    )
