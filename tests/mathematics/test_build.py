"""Objects of the mathematics show the call that makes them, and what is none of a kind is told."""

import inspect

import pytest
from omegaconf import OmegaConf

from fmdiff import coupling, custom, fitted, path, schedules, source, times
from fmdiff.build import Described, build, config_folder, named, of_class
from fmdiff.errors import FmdiffError
from fmdiff.objectives import flow_matching
from fmdiff.path import VP, CondOT, Shifted

GROUPS = {
    "path": (path, custom),
    "source": (source,),
    "coupling": (coupling,),
    "time": (times,),
    "schedule": (schedules, fitted),
}
MISSING = {"source/data.yaml": {"data": "gmm"}, "schedule/explicit.yaml": {"times": [0.0, 0.5, 1]}}


def files():
    for group in GROUPS:
        yield from sorted((config_folder() / group).glob("*.yaml"))


@pytest.mark.parametrize("file", [*files()], ids=lambda file: f"{file.parent.name}/{file.name}")
def test_an_object_shows_the_call_that_makes_it(file):
    spec = OmegaConf.to_container(OmegaConf.load(file))
    if file.parent.name == "path":
        spec.pop("shift")
    thing = build({**spec, **MISSING.get(f"{file.parent.name}/{file.name}", {})})
    assert isinstance(thing, Described | times.Law)
    names = {"CondOT": CondOT}
    for module in GROUPS[file.parent.name]:
        names |= vars(module)
    assert repr(eval(repr(thing), names)) == repr(thing)
    for name in inspect.signature(type(thing)).parameters:
        assert f"{name}=" in repr(thing)


def test_what_is_shown():
    assert repr(Shifted(VP(), 3.0)) == "Shifted(path=VP(rate_min=0.1, rate_max=20.0), shift=3.0)"
    assert repr(CondOT()) == "CondOT()"
    assert repr(custom.Custom("t^2", "1-t")) == "Custom(alpha='t^2', beta='1-t')"
    objective = named("objective", "flow_matching", CondOT(), 1.0)
    shown = repr(objective)
    assert shown.startswith(
        "FlowMatching(path=CondOT(), data_std=1.0, prediction='v', loss=None, "
    )
    assert shown.endswith(
        "distance='l2', huber=0.01, precondition=False, source=Normal(), coupled=False)"
    )
    assert isinstance(objective, flow_matching.FlowMatching)


def test_a_thing_of_another_class_is_told_the_one_it_needs():
    class Pairs:
        pass

    def pairs():
        pass

    assert of_class(CondOT(), path.Path)
    for thing, name in ((Pairs(), "Pairs"), (pairs, "pairs"), (3, "int")):
        message = f"^{name} must derive from fmdiff.coupling.Coupling$"
        with pytest.raises(FmdiffError, match=message):
            of_class(thing, coupling.Coupling)
