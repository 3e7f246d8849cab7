"""Encoders of conditions, and the networks that take them."""

import copy
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F

from fmdiff.condition import Condition, Form, null
from fmdiff.errors import FmdiffError
from fmdiff.models.condition import Channels, Embedded, channels_of, embedded
from fmdiff.models.ddpmpp import DDPMpp
from fmdiff.models.dit import DiT
from fmdiff.models.dit_1d import DiT1d
from fmdiff.models.jit import JiT
from fmdiff.models.layers import Conditioning
from fmdiff.models.mlp import MLP
from fmdiff.models.residual_mlp import ResidualMLP
from fmdiff.models.unet import UNet
from fmdiff.models.unet_1d import UNet1d

NAN = float("nan")
COLOUR = Form((3,), (1.0, -2.0, 0.0), (2.0, 0.5, 1.0))
SMALL = Form((1, 4, 4), (0.25,), (0.5,))
HOLE = Form((3, 8, 8), (0.1, 0.2, 0.3), (1.0, 2.0, 0.5))
VECTORS = {"colour": COLOUR, "age": Form((1,), (40.0,), (12.0,))}
MAPS = {"small": SMALL, "hole": HOLE}
ALL = VECTORS | MAPS
STILL = {"dropout": 0.0, "classes": 3}
SMALL_UNET = {"channels": 8, "multipliers": [1, 2], "blocks": 1, "attention": [-1]} | STILL
SMALL_DIT = {"patch": 2, "width": 16, "depth": 2, "heads": 2, "classes": 3}
WIDE = {"head_channels": 8, "scale_shift": True}
POINT, SERIES, IMAGE = (2,), (3, 8), (3, 8, 8)
MAKERS = {
    "mlp": (MLP, POINT, {"hidden": 16, "layers": 2, "frequencies": 4, "scale": 1.0, "classes": 3}),
    "residual_mlp": (ResidualMLP, POINT, {"width": 16, "blocks": 2} | STILL),
    "unet_1d": (UNet1d, SERIES, SMALL_UNET | WIDE),
    "dit_1d": (DiT1d, SERIES, SMALL_DIT),
    "unet": (UNet, IMAGE, SMALL_UNET | WIDE),
    "ddpmpp": (DDPMpp, IMAGE, SMALL_UNET),
    "dit": (DiT, IMAGE, SMALL_DIT),
    "jit": (JiT, IMAGE, SMALL_DIT | {"bottleneck": 8, "label_tokens": 2, "start": 1}),
}


def draw(forms, n, classes=0, seed=0):
    """Conditions of n rows, all of them known."""
    g = torch.Generator().manual_seed(seed)
    parts = {name: torch.randn(n, *form.shape, generator=g) for name, form in forms.items()}
    if classes:
        parts = {"label": torch.randint(classes, (n,), generator=g)} | parts
    return Condition(parts)


def stirred(net, seed=1):
    """The network with weights of which none is zero, so that every input reaches the output."""
    g = torch.Generator().manual_seed(seed)
    for p in net.parameters():
        p.data = 0.3 * torch.randn(p.shape, generator=g)
    return net.eval()


def fitting(shape):
    """The conditions that a network of samples of this shape takes: vectors, and maps of its axes.

    Those of series are the first rows of the pictures.
    """
    axes = len(shape)
    maps = {n: replace(f, shape=f.shape[:axes]) for n, f in MAPS.items()}
    return VECTORS | (maps if axes > 1 else {})


def make(name, backwards=False, bare=False, conditions=None, **keys):
    """A network without zero weights, the shape of its samples, and its conditions."""
    target, shape, usual = MAKERS[name]
    forms = fitting(shape) if conditions is None else conditions
    forms = {n: Form(form.shape) for n, form in forms.items()} if bare else forms
    forms = dict(reversed(forms.items())) if backwards else forms
    torch.manual_seed(0)
    return stirred(target(shape=shape, conditions=forms, **usual, **keys)), shape, forms


def inputs(shape, n, seed=0):
    g = torch.Generator().manual_seed(seed)
    return torch.randn(n, *shape, generator=g), 1000 * torch.rand(n, generator=g)


NETWORKS = pytest.mark.parametrize("name", MAKERS)


def test_a_vector_is_standardised_and_what_is_not_known_is_zero_with_a_flag():
    encoder = Embedded({"colour": COLOUR}, 5).encoders[0]
    z, known = encoder.standard(torch.tensor([[3.0, -2.0, 7.0], [NAN, -1.0, NAN]]))
    assert z.tolist() == [[1.0, 0.0, 7.0], [0.0, 2.0, 0.0]]
    assert known.tolist() == [[1.0, 1.0, 1.0], [0.0, 1.0, 0.0]]
    with torch.no_grad():  # W2 SiLU(W1 [z, known] + b1) + b2, written out
        both = torch.cat([z, known], 1)
        hidden = both @ encoder.first.weight.T + encoder.first.bias
        hidden = hidden / (1 + torch.exp(-hidden))
        expected = hidden @ encoder.last.weight.T + encoder.last.bias
        out = encoder(torch.tensor([[3.0, -2.0, 7.0], [NAN, -1.0, NAN]]))
    torch.testing.assert_close(out, expected)


def test_the_conditioning_adds_the_vectors_to_time_and_label():
    torch.manual_seed(0)
    net = Conditioning(8, 6, 3, conditions=ALL)
    y, t = draw(ALL, 4, 3), 1000 * torch.rand(4)
    with torch.no_grad():
        parts = net.time(t) + net.label(y.parts["label"])
        for name, encoder in zip(["age", "colour"], net.embedded.encoders, strict=True):
            parts = parts + encoder(y.parts[name])
        torch.testing.assert_close(net(t, y), parts)


@pytest.mark.parametrize("places", [(28, 28), (7, 7), (14, 10)])
def test_a_small_picture_is_enlarged_as_torch_does(places):
    form = Form((2, 7, 7), (0.5, -1.0), (2.0, 3.0))
    c = torch.randn(3, 2, 7, 7)
    out = Channels({"low": form}, (1, *places))(torch.zeros(3, 1, *places), Condition({"low": c}))
    z = torch.stack([(c[:, 0] - 0.5) / 2, (c[:, 1] + 1) / 3], 1)
    expected = F.interpolate(z, places, mode="bilinear", align_corners=False)
    assert out.shape == (3, 1 + 2 + 1, *places)
    torch.testing.assert_close(out[:, 1:3], expected)
    torch.testing.assert_close(out[:, 3], torch.ones(3, *places))


def test_a_large_picture_is_shrunk_to_the_means_of_its_areas():
    c = torch.randn(2, 1, 8, 12)
    c[0, 0, :4, :3] = NAN  # a whole area and half of another
    out = Channels({"high": Form((1, 8, 12))}, (1, 4, 4))(
        torch.zeros(2, 1, 4, 4), Condition({"high": c})
    )
    areas = c.nan_to_num(0.0).view(2, 4, 2, 4, 3).mean((2, 4))
    torch.testing.assert_close(out[:, 1], areas)
    known = torch.ones(2, 4, 4)
    known[0, :2, 0] = 0
    torch.testing.assert_close(out[:, 2], known)


def test_series_are_enlarged_linearly_and_shrunk_to_means():
    c = torch.randn(2, 3, 6)
    form = Form((3, 6))
    out = Channels({"s": form}, (1, 12))(torch.zeros(2, 1, 12), Condition({"s": c}))
    torch.testing.assert_close(out[:, 1:4], F.interpolate(c, 12, mode="linear"))
    out = Channels({"s": form}, (1, 3))(torch.zeros(2, 1, 3), Condition({"s": c}))
    torch.testing.assert_close(out[:, 1:4], c.view(2, 3, 3, 2).mean(3))


def test_a_hole_is_zero_and_its_channel_says_how_much_is_known():
    c = torch.randn(2, 3, 8, 8)
    c[0, :, 2:5, 3:6] = NAN  # a hole in all channels
    c[1, 1, 0] = NAN  # one of three channels
    x_t = torch.randn(2, 3, 8, 8)
    out = Channels({"hole": HOLE}, (3, 8, 8))(x_t, Condition({"hole": c}))
    assert torch.equal(out[:, :3], x_t)
    assert (out[0, 3:6, 2:5, 3:6] == 0).all() and (out[1, 4, 0] == 0).all()
    known = torch.ones(2, 8, 8)
    known[0, 2:5, 3:6] = 0
    known[1, 0] = 2 / 3
    torch.testing.assert_close(out[:, 6], known)
    torch.testing.assert_close(out[1, 3, 0], c[1, 0, 0] - 0.1)  # the channels known there stay


@NETWORKS
def test_each_condition_changes_the_answer_of_each_network(name):
    net, shape, forms = make(name)
    x_t, t = inputs(shape, 2)
    y = draw(forms, 2, 3)
    with torch.no_grad():
        before = net(x_t, t, y)
        assert before.shape == x_t.shape
        for part in y.parts:
            value = y.parts[part]
            another = (value + 1) % 3 if part == "label" else 1 - value
            for other in (null(y, 3, [part]), Condition(y.parts | {part: another})):
                assert (net(x_t, t, other) - before).abs().amax() > 1e-4, part


@NETWORKS
def test_a_missing_condition_a_dropped_one_and_nan_are_the_same(name):
    net, shape, forms = make(name)
    x_t, t = inputs(shape, 2)
    y = draw(forms, 2, 3)
    with torch.no_grad():
        dropped = net(x_t, t, null(y, 3, ["age", "small"]))
        nan = {n: torch.full_like(y.parts[n], NAN) for n in ("age", "small") if n in forms}
        assert torch.equal(net(x_t, t, Condition(y.parts | nan)), dropped)
        rest = {n: part for n, part in y.parts.items() if n not in ("age", "small")}
        assert torch.equal(net(x_t, t, Condition(rest)), dropped)
        nothing = net(x_t, t, torch.full((2,), 3))  # the null label alone, as a tensor
        assert torch.equal(net(x_t, t, null(y, 3)), nothing)
        assert nothing.isfinite().all()


@NETWORKS
def test_the_order_of_names_and_the_other_rows_do_not_matter(name):
    net, shape, forms = make(name)
    backwards, _, _ = make(name, backwards=True)
    for (key, a), (other, b) in zip(
        net.named_parameters(), backwards.named_parameters(), strict=True
    ):
        assert key == other and torch.equal(a, b)
    x_t, t = inputs(shape, 3)
    y = draw(forms, 3, 3)
    with torch.no_grad():
        out = net(x_t, t, y)
        swapped = Condition(dict(reversed(y.parts.items())))
        assert torch.equal(backwards(x_t, t, swapped), out)
        for i in range(3):
            row = net(x_t[i : i + 1], t[i : i + 1], y[i : i + 1])
            torch.testing.assert_close(row, out[i : i + 1], rtol=1e-4, atol=1e-4)


@NETWORKS
def test_the_statistics_are_those_of_the_weights(name):
    """A network built with other means takes those of the weights that it loads."""
    net, shape, forms = make(name)
    other, _, _ = make(name, bare=True)
    x_t, t = inputs(shape, 2)
    y = draw(forms, 2, 3)
    with torch.no_grad():
        assert not torch.equal(other(x_t, t, y), net(x_t, t, y))
        other.load_state_dict(net.state_dict())
        assert torch.equal(other(x_t, t, y), net(x_t, t, y))


@NETWORKS
def test_no_conditions_leave_no_trace(name):
    net, shape, _ = make(name, conditions={})
    assert not any("embedded" in key or "channels" in key for key in net.state_dict())
    x_t, t = inputs(shape, 2)
    labels = torch.tensor([0, 1])  # as a tensor, and as the one part of a condition
    assert torch.equal(net(x_t, t, labels), net(x_t, t, Condition({"label": labels})))
    assert embedded(None, 4) is None and channels_of(None, (3, 8, 8), "unet") == (None, 3)


@NETWORKS
def test_conditions_stand_lower_precision_and_double(name):
    net, shape, forms = make(name)
    x_t, t = inputs(shape, 2)
    y = draw(forms, 2, 3)
    with torch.no_grad():
        double = copy.deepcopy(net).double()(x_t.double(), t.double(), y)
        torch.testing.assert_close(net(x_t, t, y).double(), double, rtol=1e-3, atol=1e-3)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            out = net(x_t, t, y)
        assert ((out - double).abs() <= 0.1 * double.abs().amax()).all()


@NETWORKS
def test_derivatives_in_time_pass_by_conditions(name):
    """The forward derivative of a map in s, against a difference in double precision."""
    net, shape, forms = make(name, second_time=True)
    net = net.double()
    x_t, t = (part.double() for part in inputs(shape, 2))
    y, s = draw(forms, 2, 3), t + 100

    def at(time):
        return net(x_t, t, y, s=time)

    _, slope = torch.func.jvp(at, (s,), (torch.ones_like(s),))
    h = 1e-3
    with torch.no_grad():
        difference = (at(s + h) - at(s - h)) / (2 * h)
    size = slope.abs().amax()
    assert 1e-6 < size < 1e3 and (slope - difference).abs().amax() < 1e-4 * size


@pytest.mark.parametrize("name", ["mlp", "dit"])
def test_a_condition_passes_through_dynamo_in_one_graph(name):
    net, shape, forms = make(name)
    torch._dynamo.reset()
    graphs = []

    def backend(graph, example):
        graphs.append(graph)
        return graph.forward

    compiled = torch.compile(net, backend=backend, fullgraph=True)
    with torch.no_grad():
        for seed in (0, 1, 2):  # other objects and other values, and no other graph
            (x_t, t), y = inputs(shape, 2, seed), draw(forms, 2, 3, seed)
            torch.testing.assert_close(compiled(x_t, t, y), net(x_t, t, y))
    assert len(graphs) == 1
    torch._dynamo.reset()


def test_every_weight_has_a_gradient_whatever_is_dropped():
    """Several devices wait for the gradient of each parameter."""
    net, shape, forms = make("unet")
    x_t, t = inputs(shape, 2)
    net(x_t, t, null(draw(forms, 2, 3), 3)).square().sum().backward()
    assert all(p.grad is not None for p in net.parameters())


@pytest.mark.parametrize(
    ("name", "form", "words"),
    [
        ("mlp", SMALL, "model=mlp: the condition c is a picture of shape [1, 4, 4], and points"),
        ("residual_mlp", Form((1, 9)), "pictures go with images and model=unet"),
        ("unet", Form((1, 9)), "model=unet: the condition c is a series of shape [1, 9]"),
        ("dit_1d", SMALL, "model=dit_1d: the condition c is a picture of shape [1, 4, 4]"),
    ],
)
def test_conditions_that_do_not_fit_are_refused(name, form, words):
    with pytest.raises(FmdiffError) as error:
        make(name, conditions={"v": COLOUR, "c": form})
    assert words in str(error.value) and "\n" not in str(error.value)


def test_names_that_modules_use_are_no_trouble():
    forms = {name: COLOUR for name in ("type", "forward", "half", "a.b", "")}
    net, shape, _ = make("mlp", conditions=forms)
    x_t, t = inputs(shape, 2)
    assert net(x_t, t, draw(forms, 2, 3)).shape == (2, 2)
