"""What the scene `sampler` holds, without a browser."""

import json

import pytest
from test_program import mixture, network

from fmdiff.build import named
from fmdiff.errors import FmdiffError
from fmdiff.exact import empirical, exact
from fmdiff.page import sampler
from fmdiff.page.sampler import choices, sampler_scene
from fmdiff.path import VP, CondOT
from fmdiff.source import Hypersphere


@pytest.fixture(autouse=True)
def no_graph(monkeypatch):
    """The graph has tests of its own, and takes seconds."""
    monkeypatch.setattr(sampler, "field_graph", lambda field, kind: kind)


def test_the_solvers_go_with_the_field():
    plain = [choice.name for choice in choices(mixture(CondOT()), (1, 2))]
    assert plain == ["heun", "euler", "rk4", "dpmpp_2m", "euler_maruyama", "ddpm"]
    other = network(CondOT(), source=Hypersphere())
    assert [choice.name for choice in choices(other, (1, 2))] == plain[:4]
    first, *rest = choices(network(CondOT(), maps=True), (1, 2, 16))
    assert (first.name, first.steps) == ("jump", [1, 2])
    assert [choice.name for choice in rest] == plain


def test_the_page_stays_small():
    data = named("data", "8gaussians")
    scene = sampler_scene(exact(data, CondOT()), data)
    assert len(json.dumps(scene.data)) < 320_000
    assert scene.graphs == {"field": "straight"}
    assert [len(row) for solver in scene.data["solvers"] for row in solver["programs"]] == [7] * 9


def test_the_picture_shows_the_data_and_the_noise():
    data = named("data", "two_modes")
    scene = sampler_scene(exact(data, CondOT()), data, steps=(1,))
    assert scene.data["low"][0] < min(scene.data["points"])
    assert scene.data["high"][0] > max(scene.data["points"])
    wide = sampler_scene(mixture(VP()), steps=(1,)).data
    assert wide["points"] == []
    assert wide["low"][0] < -3
    assert wide["high"][1] - wide["low"][1] == wide["high"][0] - wide["low"][0]


@pytest.mark.parametrize(("n", "particles"), [(500, 1000), (2000, 500), (20_000, 100)])
def test_a_costly_field_begins_with_few_particles(n, particles):
    field = empirical(named("data", "moons"), CondOT(), n)
    assert sampler_scene(field, steps=(1,)).data["particles"] == particles


def test_images_are_refused_in_a_sentence():
    with pytest.raises(FmdiffError, match=r"1 or 2 coordinates, and this field is of shape \[1"):
        sampler_scene(empirical(named("data", "digits"), CondOT(), 10))
