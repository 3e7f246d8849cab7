"""A field as a list of operations: what is stored, and what is refused."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from omegaconf import OmegaConf
from torch import nn

from fmdiff.build import build, config_folder
from fmdiff.errors import FmdiffError
from fmdiff.field import NetField
from fmdiff.page.graph import SIZES, Graph, field_graph, rounded, vocabulary
from fmdiff.path import CondOT

MODELS = Path(config_folder()) / "model"
NUMBERS = {"f16": np.float16, "f32": np.float32, "f64": np.float64, "i32": np.int32}


def network(model, shape, classes=0, prediction="v", path=None, **changes):
    """A field of a network of configs/model with random weights, none of them 0."""
    spec = {**OmegaConf.to_container(OmegaConf.load(MODELS / f"{model}.yaml")), **changes}
    torch.manual_seed(0)
    net = build(spec, shape=shape, classes=classes).eval().requires_grad_(False)
    for weight in net.parameters():
        nn.init.normal_(weight, std=0.1 if weight.ndim < 2 else weight[0].numel() ** -0.5)
    field = NetField(net, path or CondOT(), prediction, 0.5, 1e-3, shape, classes)
    field.two_times = "second_time" in changes
    field.scales = (0.0, 4.0) if "guided" in changes else None
    return field


def stored(graph):
    """The tensors as they lie in the blob."""
    blob, tensors = np.frombuffer(graph.blob(), np.uint8), []
    for form in graph.data()["tensors"]:
        number, count = np.dtype(NUMBERS[form["storage"]]), int(np.prod(form["shape"]))
        part = blob[form["offset"] : form["offset"] + count * number.itemsize]
        whole = part.reshape(number.itemsize, count).T.tobytes()
        tensors.append(torch.tensor(np.frombuffer(whole, number).reshape(form["shape"])))
    return tensors


def test_the_blob_holds_every_weight_exactly_and_halves_where_they_suffice():
    field = network("mlp", (2,), hidden=8, frequencies=4)
    graph, half = field_graph(field, "v"), field_graph(rounded(field), "v")
    for exact, values in zip(graph.tensors, stored(graph), strict=True):
        assert torch.equal(exact, values.to(exact))
    halves = [v for v in stored(half) if v.dtype == torch.float16]
    for weight in field.net.parameters():
        assert any(torch.equal(weight.half(), v) for v in halves)
    sizes = {form["storage"] for form in graph.data()["tensors"] if len(form["shape"]) > 1}
    assert sizes == {"f32"}


def test_the_graph_leaves_the_field_and_its_weights_alone():
    field = network("mlp", (2,), hidden=8)
    before = {name: w.clone() for name, w in field.net.state_dict().items()}
    field_graph(rounded(field), "v")
    assert field.evaluations == 0
    for name, weight in field.net.state_dict().items():
        assert weight.dtype == torch.float32
        assert torch.equal(weight, before[name])


def test_the_graph_is_json_and_holds_for_every_batch():
    graph = field_graph(network("mlp", (2,), hidden=8), "v")
    data = graph.data()
    assert json.loads(json.dumps(data, allow_nan=False)) == data
    assert data["inputs"][0] == {"name": "x", "shape": [{"B": 1}, 2], "type": "f64"}
    assert data["ops"][-1]["shape"] == [{"B": 1}, 2]


def test_numbers_that_grow_with_the_batch_are_multiples_of_it():
    graph = Graph.of(lambda v: v["x"].reshape(-1).expand(3, v["x"].numel()), example(4))
    assert [op["shape"] for op in graph.ops] == [[{"B": 4}], [3, {"B": 4}]]
    assert graph.ops[1]["args"][1] == [3, {"B": 4}]


def example(width):
    return {"x": torch.ones(SIZES[0], width)}


def test_an_unknown_operation_is_named():
    with pytest.raises(FmdiffError, match=r"operation aten\.erfinv\.default is none of those"):
        Graph.of(lambda v: torch.erfinv(v["x"]), example(1))


@pytest.mark.parametrize(
    "function",
    [
        lambda v: v["x"].sin() if len(v["x"]) == 2 else v["x"].cos(),
        lambda v: v["x"] + 1 if len(v["x"]) == 2 else (v["x"] + 1) + 1,
    ],
)
def test_a_course_that_depends_on_the_batch_is_refused(function):
    with pytest.raises(FmdiffError, match="depend on the size of the batch"):
        Graph.of(function, example(1))


def test_the_vocabulary_is_that_of_the_code_of_the_page():
    assert {"conv2d", "silu", "einsum", "getitem", "__or__"} <= vocabulary()
    assert "erfinv" not in vocabulary()
