import math
import warnings

import pytest
import torch
import torch.nn.functional as F
from test_models import (
    check_a_sample_stands_alone,
    check_gradients,
    check_time_and_label_matter,
    check_zero_at_first,
    inputs,
    network,
    parameters,
)
from torch.nn.attention import SDPBackend, sdpa_kernel

from fmdiff.errors import FmdiffError
from fmdiff.models.dit import positions, tokens
from fmdiff.models.jit import RMSNorm, rotate, rotation

DIT = {"width": 48, "depth": 3, "heads": 2}  # enough for every law below
JIT = {**DIT, "bottleneck": 8, "label_tokens": 3, "start": 1}
CASES = [  # name, shape, classes, overrides
    ("dit_s", (1, 8, 8), 0, DIT),
    ("dit_b", (1, 28, 28), 10, {**DIT, "patch": 4}),
    ("dit_cifar10", (3, 32, 32), 3, {**DIT, "patch": 8}),
    ("dit_l", (2, 8, 12), 3, DIT),
    ("jit_b", (1, 8, 8), 0, {**JIT, "patch": 2}),
    ("jit_mnist", (1, 28, 28), 10, JIT),
    ("jit_cifar10", (3, 32, 32), 3, {**JIT, "start": 0}),
    ("jit_mnist", (2, 8, 12), 3, {**JIT, "start": 2}),
]
every_case = pytest.mark.parametrize(("name", "shape", "classes", "overrides"), CASES)
every_kind = pytest.mark.parametrize(
    ("name", "overrides"), [("dit_s", DIT), ("jit_mnist", {**JIT, "patch": 2})], ids=["dit", "jit"]
)


# Laws of every network


@every_case
def test_output_is_zero_at_initialisation_and_has_the_shape_of_the_data(
    name, shape, classes, overrides
):
    check_zero_at_first(name, shape, classes, overrides)


@every_case
def test_gradient_reaches_every_parameter_and_is_finite(name, shape, classes, overrides):
    check_gradients(name, shape, classes, overrides)


@every_case
def test_a_sample_does_not_depend_on_the_others(name, shape, classes, overrides):
    check_a_sample_stands_alone(name, shape, classes, overrides, least=1e-2)


@every_case
def test_output_depends_on_time_and_label(name, shape, classes, overrides):
    check_time_and_label_matter(name, shape, classes, overrides)


@every_case
def test_every_patch_sees_every_pixel(name, shape, classes, overrides):
    net = network(name, shape, classes, perturbed=True, **overrides).double()
    x, t, y = inputs(shape, classes, 1)
    for i, j in [(0, 0), (-1, 0), (3, -2)]:
        other = x.double().clone()
        other[0, 0, i, j] += 1
        change = (net(other, t.double(), y) - net(x.double(), t.double(), y)).abs()
        assert tokens(change, net.patch).amax(2).min() > 1e-6


@every_kind
def test_training_tells_the_labels_and_the_null_label_apart(name, overrides):
    net = network(name, (1, 4, 4), 3, **overrides)
    start = net.conditioning.label.weight.detach().clone()
    x, t, _ = inputs((1, 4, 4), 0, 12)
    y = torch.tensor([0, 1, 3]).repeat(4)  # never 2
    wanted = torch.tensor([-1.0, 0.5, 9.9, 1.0])[y][:, None, None, None].expand_as(x)
    optimiser = torch.optim.Adam(net.parameters(), lr=3e-3)
    for _ in range(60):
        optimiser.zero_grad()
        F.mse_loss(net(x, t, y), wanted).backward()
        optimiser.step()
    assert F.mse_loss(net(x, t, y), wanted) < 0.1  # one answer for all would leave 0.72
    moved = (net.conditioning.label.weight - start).abs().amax(1) > 0
    assert moved.tolist() == [True, True, False, True]


@every_kind
def test_every_block_starts_as_the_identity(name, overrides):
    net = network(name, (1, 8, 8), **overrides)
    h = torch.randn(2, 16, 48)
    where = () if name == "dit_s" else (net.turn,)
    for block in net.blocks:
        assert torch.equal(block(h, torch.randn(2, 48), *where), h)


@every_kind
def test_weights_start_as_published(name, overrides):
    net = network(name, (1, 8, 8), 10, **{**overrides, "width": 256})
    weight = net.blocks[1].attention.qkv.weight
    bound = math.sqrt(6 / (256 + 3 * 256))
    assert 0.99 * bound < weight.abs().max() <= bound
    for part in (net.conditioning.label, net.conditioning.time[1], net.conditioning.time[3]):
        assert part.weight.std().item() == pytest.approx(0.02, rel=0.05)


@every_kind
def test_weights_load_strictly_into_another_network(name, overrides):
    net = network(name, (3, 8, 8), 3, perturbed=True, **overrides)
    other = network(name, (3, 8, 8), 3, **overrides)
    other.load_state_dict(net.state_dict(), strict=True)
    arguments = inputs((3, 8, 8), 3)
    assert torch.equal(net(*arguments), other(*arguments))
    assert set(net.state_dict()) == {key for key, _ in net.named_parameters()}  # no tables


@every_kind
def test_derivative_forward_equals_a_difference_and_backward(name, overrides):
    net = network(name, (1, 8, 8), 3, perturbed=True, **overrides).double()
    x, t, y = inputs((1, 8, 8), 3)
    x, t = x.double(), t.double()
    towards, given = torch.randn_like(x), torch.randn_like(x)
    with sdpa_kernel(SDPBackend.MATH):  # the fused kernels have no forward mode
        found = torch.func.jvp(lambda x: net(x, t, y), (x,), (towards,))[1]
    h = 1e-5
    expected = (net(x + h * towards, t, y) - net(x - h * towards, t, y)) / (2 * h)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-8)
    back = torch.func.vjp(lambda x: net(x, t, y), x)[1](given)[0]
    assert (back * towards).sum().item() == pytest.approx((found * given).sum().item(), rel=1e-9)


@every_kind
def test_bfloat16_autocast_stays_close_and_silent(name, overrides):
    net = network(name, (1, 8, 8), 10, perturbed=True, **overrides)
    x, t, y = inputs((1, 8, 8), 10)
    exact = net(x, t, y)
    with torch.autocast("cpu", torch.bfloat16), warnings.catch_warnings():
        warnings.simplefilter("error")
        rough = net(x, t, y).float()
    assert (rough - exact).norm() / exact.norm() < 0.05


@pytest.mark.parametrize("classes", [0, 3])
@every_kind
def test_attention_gets_contiguous_heads_of_all_tokens(monkeypatch, name, overrides, classes):
    seen = []

    def spy(q, k, v):
        seen.append(q.shape)
        assert all(part.is_contiguous() and part.shape == q.shape for part in (q, k, v))
        return q

    monkeypatch.setattr(torch.nn.functional, "scaled_dot_product_attention", spy)
    network(name, (1, 8, 12), classes, **overrides)(*inputs((1, 8, 12), classes))
    labels = 3 if classes and name != "dit_s" else 0  # from block 1 on
    assert seen == [(3, 2, 24 + labels * (i > 0), 24) for i in range(3)]


# The parts


def test_tokens_with_a_linear_layer_are_the_convolution():
    x, weight = torch.randn(2, 3, 8, 12), torch.randn(5, 3, 4, 4)
    expected = F.conv2d(x, weight, stride=4).flatten(2).mT
    torch.testing.assert_close(tokens(x, 4) @ weight.flatten(1).T, expected, rtol=1e-4, atol=1e-4)


def test_positions_are_the_written_out_waves():
    found = positions((3, 5), 16)
    for i in range(3):
        for j in range(5):
            w = [10_000 ** (-k / 4) for k in range(4)]
            waves = [f(n * wk) for n in (j, i) for f in (math.sin, math.cos) for wk in w]
            torch.testing.assert_close(found[5 * i + j], torch.tensor(waves))


def test_rotated_products_depend_on_the_difference_of_places_alone():
    rows, columns, size = 5, 7, 12
    q, k = torch.randn(2, size, dtype=torch.float64)
    turn = rotation(rows, columns, size, 2).double()
    turned_q = rotate(q.expand(2 + rows * columns, size), turn)
    turned_k = rotate(k.expand(2 + rows * columns, size), turn)
    assert torch.equal(turned_q[:2], q.expand(2, size))  # the tokens that do not turn
    torch.testing.assert_close(turned_q.norm(dim=1), q.norm().expand(len(turned_q)))
    found = (turned_q[2:] @ turned_k[2:].T).view(rows, columns, rows, columns)
    w = 10_000.0 ** (-torch.arange(3, dtype=torch.float64) / 3)
    planes = torch.complex(q[:6], -q[6:]) * torch.complex(k[:6], k[6:])
    for down in range(1 - rows, rows):
        for across in range(1 - columns, columns):
            angle = torch.cat([down * w, across * w])
            expected = (planes * torch.exp(1j * angle)).real.sum()
            for i in range(max(0, -down), min(rows, rows - down)):
                for j in range(max(0, -across), min(columns, columns - across)):
                    assert abs(found[i, j, i + down, j + across] - expected) < 1e-5


def test_rms_norm_is_the_formula():
    norm, h = RMSNorm(6), 3 * torch.randn(4, 5, 6)
    torch.nn.init.normal_(norm.weight)
    expected = h / (h.square().sum(2, keepdim=True) / 6 + 1e-6).sqrt() * norm.weight
    torch.testing.assert_close(norm(h), expected)


def test_the_length_of_queries_and_keys_does_not_matter():
    attention = network("jit_mnist", (1, 8, 8), perturbed=True, **JIT).blocks[0].attention.double()
    h, turn = torch.randn(2, 4, 48).double(), rotation(2, 2, 24, 0).double()
    before = attention(h, turn)
    with torch.no_grad():
        for parameter in (attention.qkv.weight, attention.qkv.bias):
            parameter[:48] *= 7
            parameter[48:96] *= 3
    torch.testing.assert_close(attention(h, turn), before, rtol=1e-4, atol=1e-5)


# Sizes and refusals


def of_dit(w, depth, patch, channels, classes):
    block = (3 * w * w + 3 * w) + (w * w + w) + (4 * w * w + 4 * w) + (4 * w * w + w)
    block += 6 * w * w + 6 * w
    ends = channels * patch**2 * w + w + 2 * w * w + 2 * w + (w + 1) * channels * patch**2
    return depth * block + ends + (256 * w + w) + (w * w + w) + (classes > 0) * (classes + 1) * w


def of_jit(w, depth, heads, patch, bottleneck, labels, channels, classes):
    hidden, pixels = 8 * w // 3, channels * patch**2
    block = (3 * w * w + 3 * w) + (w * w + w) + 2 * hidden * (w + 1) + (hidden + 1) * w
    block += 6 * w * w + 6 * w + 2 * w + 2 * (w // heads)
    ends = pixels * bottleneck + bottleneck * w + w + w + 2 * w * w + 2 * w + (w + 1) * pixels
    time = (256 * w + w) + (w * w + w)
    return depth * block + ends + time + (classes > 0) * (classes + 1 + labels) * w


@pytest.mark.parametrize(
    ("name", "shape", "classes", "overrides", "count", "published"),
    [  # published counts: millions
        ("dit_s", (4, 32, 32), 1000, {}, of_dit(384, 12, 2, 4, 1000), 33),
        ("dit_b", (4, 32, 32), 1000, {}, of_dit(768, 12, 2, 4, 1000), 130),
        ("dit_l", (4, 32, 32), 1000, {}, of_dit(1024, 24, 2, 4, 1000), 458),
        ("dit_l", (4, 32, 32), 1000, {"width": 1152, "depth": 28}, None, 675),  # XL
        ("dit_cifar10", (3, 32, 32), 10, {}, of_dit(256, 10, 2, 3, 10), None),
        ("dit_s", (1, 28, 28), 0, {}, of_dit(384, 12, 2, 1, 0), None),
        ("jit_b", (3, 256, 256), 1000, {}, of_jit(768, 12, 12, 16, 128, 32, 3, 1000), 131),
        ("jit_b", (3, 256, 256), 1000, {"width": 1024, "depth": 24, "heads": 16}, None, 459),
        (
            "jit_b",
            (3, 256, 256),
            1000,
            {"width": 1280, "depth": 32, "heads": 16, "bottleneck": 256},
            None,
            953,
        ),
        ("jit_mnist", (1, 28, 28), 10, {}, of_jit(192, 6, 6, 4, 16, 8, 1, 10), None),
        ("jit_mnist", (1, 28, 28), 0, {}, of_jit(192, 6, 6, 4, 16, 8, 1, 0), None),
        ("jit_cifar10", (3, 32, 32), 10, {}, of_jit(192, 8, 6, 4, 32, 8, 3, 10), None),
    ],
)
def test_number_of_parameters(name, shape, classes, overrides, count, published):
    with torch.device("meta"):
        found = parameters(network(name, shape, classes, **overrides))
    assert count is None or found == count
    if published:
        assert found / 1e6 == pytest.approx(published, abs=0.6)  # rounded; DiT's sigma adds 0.02


@pytest.mark.parametrize(
    ("name", "shape", "overrides", "words"),
    [
        ("dit_s", (2,), {}, ["model=dit", "(2,)", "model=mlp"]),
        ("jit_b", (2,), {}, ["model=jit", "(2,)", "model=mlp"]),
        ("dit_s", (1, 28, 28), {"patch": 3}, ["model.patch=3", "28x28", "1, 2, 4, 7, 14, 28"]),
        ("dit_s", (1, 7, 7), {}, ["model.patch=2", "7x7", "from: 1, 7"]),
        ("jit_b", (1, 8, 12), {}, ["model.patch=16", "8x12", "from: 1, 2, 4"]),
        ("jit_mnist", (1, 8, 8), {"patch": 0}, ["model.patch=0", "from: 1, 2, 4, 8"]),
        ("dit_s", (1, 8, 8), {"width": 100}, ["model.width=100", "model.heads=6", "of 24"]),
        ("jit_mnist", (1, 8, 8), {"width": 36}, ["model.width=36", "of 24"]),  # heads of 6
        ("jit_mnist", (1, 8, 8), {"heads": 0}, ["model.heads=0", "integer >= 1"]),
        ("jit_mnist", (1, 8, 8), {"depth": 2}, ["model.start=2", "model.depth=2", "0 to 1"]),
    ],
)
def test_refusals_name_the_option_and_the_way_out(name, shape, overrides, words):
    with pytest.raises(FmdiffError) as refusal:
        network(name, shape, **overrides)
    assert all(word in str(refusal.value) for word in words), refusal.value
