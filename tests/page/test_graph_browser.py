"""graph.js in a real Chromium gives what fields give in Python."""

import base64
from pathlib import Path

import pytest
import torch
from omegaconf import OmegaConf
from test_graph import MODELS, network

from fmdiff import page
from fmdiff.build import locate, named
from fmdiff.codec import Codec
from fmdiff.exact import exact
from fmdiff.page.graph import field_graph, rounded
from fmdiff.path import EDM, VP, CondOT, Cosine
from fmdiff.systems import Circular, Formulas, Linear, Mixed, Saddle

pytestmark = pytest.mark.slow

FILES = ("graph.js", "kernels.js", "ops.js")
POLICY = (
    "default-src 'none'; worker-src blob:; script-src 'unsafe-inline' 'wasm-unsafe-eval'; "
    "img-src data:"
)
LOAD = """async ([data, text]) => {
    const bytes = Uint8Array.from(atob(text), c => c.charCodeAt(0));
    globalThis.graph = await fm.graph(data, bytes);
    return graph.inputs;
}"""
RUN = "async ([way, inputs, B]) => [...await graph[way](inputs, B)]"
# what makes the networks of configs/model small; the classes stay
SMALL = {
    "mlp": {},
    "unet": {},
    "unet_cifar": {"channels": 16, "head_channels": 16},
    "unet_flow_matching": {"channels": 16, "head_channels": 16, "time_features": 16, "blocks": 1},
    "ddpmpp": {"channels": 16, "blocks": 1},
    "dit_b": {"depth": 1, "width": 96},
    "dit_l": {"depth": 1, "width": 128},
    "dit_s": {"depth": 1, "width": 48},
    "dit_cifar10": {"depth": 2, "width": 64},
    "jit_b": {"depth": 5, "width": 96, "patch": 4},
    "jit_cifar10": {"depth": 3, "width": 48},
    "jit_mnist": {"depth": 3},
    "residual_mlp": {"width": 32, "blocks": 2},
}
MAP = {"second_time": True, "guided": True}


@pytest.fixture(scope="module")
def blank(chromium, tmp_path_factory):
    """An empty page with the scripts, opened as a file, under the policy of live pages."""
    code = "\n".join((Path(page.__file__).parent / name).read_text("utf-8") for name in FILES)
    file = tmp_path_factory.mktemp("page") / "blank.html"
    file.write_text(
        f'<!doctype html><meta http-equiv="Content-Security-Policy" content="{POLICY}">'
        f'<link rel="icon" href="data:,"><title>blank</title>'
        f"<script>const fm = {{}};\n{code}</script>"
    )
    shown, said = chromium.new_page(), []
    shown.on("console", lambda message: said.append(message.text))
    shown.on("pageerror", lambda error: said.append(str(error)))
    shown.goto(file.as_uri())
    yield shown
    shown.close()
    assert said == []


def load(blank, graph):
    return blank.evaluate(LOAD, [graph.data(), base64.b64encode(graph.blob()).decode()])


def agree(blank, field, kind, size, bound, way="run", names=None):
    """Page and Python differ by less than `bound`, of the greatest number if that is above 1."""
    draws = torch.Generator().manual_seed(size)
    dtype = torch.float64 if len(field.shape) == 1 else torch.float32
    x = torch.randn(size, *field.shape, dtype=dtype, generator=draws)
    t, s, w = (torch.tensor(v, dtype=torch.float64) for v in (0.3, 0.7, 2.5))
    names = blank.evaluate("graph.inputs") if names is None else names
    inputs, more, bound_field = {"x": x.flatten().tolist(), "t": 0.3}, {}, field
    if field.net is not None:
        bound_field = field.to("cpu", dtype)
    if "y" in names:
        y = torch.arange(size) % (field.classes + 1)
        inputs["y"], bound_field = y.tolist(), bound_field.bind(y)
    if "w" in names:
        inputs["w"], bound_field = 2.5, bound_field.at_scale(w)
    if "s" in names:
        inputs["s"], more["s"] = 0.7, s
    with torch.no_grad():
        answer = bound_field.predict(x, t, kind, **more).double()
    got = torch.tensor(blank.evaluate(RUN, [way, inputs, size]), dtype=torch.float64)
    assert answer.abs().max() > 0.005
    difference = (got.view(answer.shape) - answer).abs().max()
    assert difference < bound * max(1, answer.abs().max()), f"they differ by {difference:.1e}"


@pytest.mark.parametrize("name", SMALL)
@pytest.mark.parametrize("maps", [False, True], ids=["velocity", "map"])
def test_networks(blank, name, maps):
    points = "mlp" in name
    shape = (2,) if points else (1, 28, 28) if name in ("unet", "jit_mnist") else (3, 16, 16)
    field = network(name, shape, 3, **SMALL[name], **(MAP if maps else {}))
    field = field if points else rounded(field)
    names = load(blank, field_graph(field, "v"))
    assert names == ["x", "t", "y", *("s", "w")[: 2 * maps]]
    for size in (1, 3, 500) if points else (1, 3):
        agree(blank, field, "v", size, 1e-10 if points else 1e-5)


def test_the_list_of_networks_is_that_of_the_configs():
    """Networks of points and of images: pages show no series."""
    parts = {
        path.stem: locate(OmegaConf.load(path)._target_)
        for path in MODELS.glob("*.yaml")
        if "fmdiff.models" in path.read_text()
    }
    networks = {
        name
        for name, part in parts.items()
        if not (part.logits or issubclass(part, Codec) or part.axes == 2)
    }
    assert networks == set(SMALL)


def test_a_batch_of_500_images(blank):
    field = rounded(network("unet", (1, 8, 8), 10, channels=16))
    load(blank, field_graph(field, "v"))
    agree(blank, field, "v", 500, 1e-5)


@pytest.mark.parametrize("kind", ["v", "x", "eps", "score", "straight"])
@pytest.mark.parametrize("path", [VP(0.1, 20.0), Cosine(), EDM(0.002, 80.0, 7.0)])
def test_kinds_and_paths(blank, path, kind):
    field = network("mlp", (2,), 0, "x", path, hidden=16)
    load(blank, field_graph(field, kind))
    agree(blank, field, kind, 3, 1e-9)


@pytest.mark.parametrize("kind", ["v", "x"])
@pytest.mark.parametrize("data", ["gmm4", "8gaussians"])
@pytest.mark.parametrize("path", [CondOT(), VP(0.1, 20.0)], ids=["condot", "vp"])
def test_mixtures(blank, data, path, kind):
    field = exact(named("data", data), path)
    load(blank, field_graph(field, kind))
    for size in (1, 3, 500):
        agree(blank, field, kind, size, 1e-12)


def test_a_mixture_with_classes(blank):
    source = named("data", "gmm4")
    field = exact(source, CondOT())
    field.component_labels, field.classes = torch.arange(len(field.means)) % 2, 2
    assert load(blank, field_graph(field, "v")) == ["x", "t", "y"]
    agree(blank, field, "v", 500, 1e-12)


@pytest.mark.parametrize(
    "system",
    [
        Linear(1.0, 0.5, 1.0),
        Circular(1.0, 2.0, [1.0, 0.0]),
        Saddle(1.0, 1.5, [1.0, 0.0]),
        Formulas(1.0, ["x2^2/2 + pi*t", "-sin(x1) + abs(t)*tanh(x2) - sqrt(t)"], [1.0, 0.0]),
        Formulas(1.0, "exp(-x^2)*cos(t) + tan(t)*log(2+t)*sigmoid(x)", 1.0),
        Mixed(1.0, "gmm4", None),
    ],
    ids=lambda system: type(system).__name__,
)
def test_systems(blank, system):
    system.shape = (system.dimension,)
    load(blank, field_graph(system, "v"))
    for size in (1, 3, 500):
        agree(blank, system, "v", size, 1e-12)


@pytest.mark.parametrize("size", [1, 7])
def test_workers_give_the_same_numbers(blank, size):
    field = rounded(network("unet", (1, 8, 8), 10, channels=16, **MAP))
    load(blank, field_graph(field, "v"))
    agree(blank, field, "v", size, 1e-5, way="ask")


def test_one_label_stands_for_all(blank):
    field = network("mlp", (2,), 3, hidden=16, frequencies=4)
    load(blank, field_graph(field, "v"))
    x = [0.1 * i for i in range(10)]
    each, all_of_them = (
        blank.evaluate(RUN, ["run", {"x": x, "t": 0.5, "y": y}, 5]) for y in ([2] * 5, 2)
    )
    assert each == all_of_them


def test_a_missing_input_is_named(blank):
    load(blank, field_graph(network("mlp", (2,), 3, hidden=16), "v"))
    with pytest.raises(Exception, match="the input y is missing"):
        blank.evaluate(RUN, ["run", {"x": [0, 0], "t": 0.5}, 1])
    with pytest.raises(Exception, match="the input x has 3 numbers, and 2 are needed"):
        blank.evaluate(RUN, ["ask", {"x": [0, 0, 0], "t": 0.5, "y": 0}, 1])


def test_each_operation_counts(blank):
    """A result that is 1 % larger shows in the answer, for every operation with numbers."""
    field = rounded(network("unet", (1, 8, 8), 10, channels=16, **MAP))
    graph = field_graph(field, "v")
    load(blank, graph)
    change = """([name, inputs]) => {
        const usual = fm.ops[name];
        const other = (form, ...args) => usual(form, ...args).map(v => v * 1.01);
        const before = graph.run(inputs, 1);
        fm.ops[name] = Object.assign(other, { broadcasts: usual.broadcasts });
        const after = graph.run(inputs, 1);
        fm.ops[name] = usual;
        return Math.max(...after.map((v, i) => Math.abs(v - before[i])));
    }"""
    inputs = {"x": torch.linspace(-1, 1, 64).tolist(), "t": 0.3, "s": 0.7, "w": 2.5, "y": 3}
    lists = {"chunk", "unbind"}
    names = {op["op"] for op in graph.ops if op["type"] != "i32"} - lists - {"zeros_like"}
    assert {"conv2d", "group_norm", "silu", "scaled_dot_product_attention"} <= names
    for name in sorted(names):
        assert blank.evaluate(change, [name, inputs]) > 3e-5, name
