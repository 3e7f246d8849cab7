"""The scene of images: what it offers, and what it refuses."""

import pytest
from test_graph import network

from fmdiff.errors import FmdiffError
from fmdiff.page.images import choices, images_scene

TINY = {"channels": 8, "multipliers": [1], "attention": [], "head_channels": 8}


def test_solvers_fit_the_field():
    field = network("unet", (1, 8, 8), 3, **TINY, second_time=True)
    assert [c.name for c in choices(field)] == ["jump", "dpmpp_2m", "heun", "euler", "ddpm"]
    field.two_times, field.gaussian = False, False
    assert [c.name for c in choices(field)] == ["dpmpp_2m", "heun", "euler"]
    field.two_times = field.consistency = True
    assert [c.name for c in choices(field)] == ["jump"]


def test_points_are_refused():
    with pytest.raises(FmdiffError, match=r"images plays networks of images, and NetField of"):
        images_scene(network("mlp", (2,), hidden=8))


def test_the_scene_holds_classes_and_programs():
    field = network("unet", (1, 8, 8), 3, **TINY)
    field.names, field.only = ("a", "b", "c"), (0, 2)
    data = images_scene(field).data
    assert (data["shape"], data["labels"], data["names"]) == ([1, 8, 8], [0, 2], ["a", "b", "c"])
    assert data["scales"] is None
    for solver in data["solvers"]:
        lengths = [sum("size" in item for item in p["items"]) - 1 for p in solver["programs"]]
        assert lengths == solver["steps"]
