"""The scene `images`: a trained network draws images from noise, in the page."""

from typing import Any, NamedTuple

from fmdiff.errors import FmdiffError
from fmdiff.field import Field
from fmdiff.page.graph import field_graph, rounded
from fmdiff.page.program import asked, record
from fmdiff.page.scene import Scene, classes_and_guidance
from fmdiff.sampling import Sampler, usual_solver

COUNTS = (1, 4, 9, 16)  # images at once


class Choice(NamedTuple):
    """A solver to choose, with its numbers of steps."""

    name: str
    label: str
    steps: tuple[int, ...]


MAP = Choice("jump", "Jumps of the flow map", (1, 2, 4))
SOLVERS = (
    Choice("dpmpp_2m", "DPM-Solver++ 2M (ODE)", (4, 8, 14, 28)),
    Choice("heun", "Heun (ODE, order 2)", (4, 8, 14, 28)),
    Choice("euler", "Euler (ODE, order 1)", (4, 8, 14, 28)),
    Choice("ddpm", "DDPM (SDE)", (14, 28)),
)


def images_scene(field: Field, name: str = "this network", source: str = "ckpt=RUN") -> Scene:
    """The scene of a trained network of images: a velocity or a flow map, with classes or without.

    The page has the weights in half precision's digits: its numbers are those of
    `rounded(field)`. name: what the title calls the network. source: the words of a command line
    that name it. Raises FmdiffError for points, for a field that is no network and for what a
    page cannot play.
    """
    if len(field.shape) != 3 or field.net is None:
        raise FmdiffError(
            f"the scene images plays networks of images, and {type(field).__name__} of shape "
            f"{list(field.shape)} is none: choose ckpt=RUN of images"
        )
    field = rounded(field)
    return Scene(
        kind="images",
        title=f"Images of {name}, from noise",
        caption="On the left the state x_t, which is noise at t = 0 and an image at t = 1; on the "
        "right what the network takes the image to be, given that state. See how the estimate "
        "begins as a mean of many images, and settles. A slider walks from one noise to another.",
        data={
            "source": source,
            "shape": list(field.shape),
            "solvers": [_solver(field, choice) for choice in choices(field)],
            **classes_and_guidance(field),
            "counts": list(COUNTS),
        },
        graphs={"field": field_graph(field, asked(field))},
    )


def choices(field: Field) -> list[Choice]:
    """The solvers that a field can be sampled with, the one to begin with first."""
    solvers = [c for c in SOLVERS if c.name != "ddpm" or field.gaussian]
    if usual_solver(field)[0] != "jump":
        return solvers
    return [MAP] if field.consistency else [MAP, *solvers]


def _solver(field: Field, choice: Choice) -> dict[str, Any]:
    """A choice with its programs, one for each number of steps."""
    programs = []
    for n in choice.steps:
        sampler = Sampler(steps=n) if choice is MAP else Sampler(choice.name, steps=n)  # type: ignore[arg-type]
        program = record(sampler, field)
        if program.scale is None:
            raise FmdiffError("the scene images plays fields that start from noise alone")
        programs.append(program.data())
    return {
        "name": choice.name,
        "label": choice.label,
        "steps": list(choice.steps),
        "programs": programs,
    }
