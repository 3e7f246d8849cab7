import inspect
import math
from pathlib import Path

import pytest
import torch
from omegaconf import OmegaConf

from fmdiff.build import build, locate, spec_of
from fmdiff.errors import FmdiffError
from fmdiff.models.layers import Attention, Sinusoid, group_norm
from fmdiff.models.unet import resolutions

CONFIGS = Path(__file__).parents[2] / "configs" / "model"
CIFAR = (3, 32, 32)
SMALL = {"channels": 16}  # enough for every law below
CASES = [  # name, shape, classes, overrides
    ("mlp", (1,), 0, {}),
    ("mlp", (2,), 3, {}),
    ("mlp", (512,), 0, {"frequencies": 0, "layers": 1}),
    ("mlp", (512,), 0, {"frequencies": 0, "layers": 5, "activation": "relu"}),
    ("unet", (1, 7, 7), 0, {}),
    ("unet", (1, 8, 8), 10, {}),
    ("unet", (1, 28, 28), 10, SMALL),
    ("unet", (3, 12, 20), 0, {"channels": 12, "scale_shift": False}),
    ("unet", CIFAR, 10, SMALL),
    ("unet_cifar", CIFAR, 10, SMALL),
    ("unet_1d", (1, 64), 10, SMALL),
    ("unet_1d", (3, 37), 0, SMALL),
    ("unet_1d", (2, 3), 0, SMALL),
    ("dit_1d", (1, 64), 10, {"width": 32, "depth": 2}),
    ("dit_1d", (3, 37), 0, {"width": 32, "depth": 2}),
    ("dit_1d", (2, 1), 0, {"width": 32, "depth": 2}),
    ("residual_mlp", (7,), 3, {"width": 32}),
    ("residual_mlp", (1,), 0, {"width": 32, "blocks": 1}),
]
SHAPES = {1: (2,), 2: (3, 32), 3: CIFAR}  # by the axes of a sample
NETWORKS = sorted(
    file.stem
    for file in CONFIGS.glob("*.yaml")
    if "fmdiff.models" in file.read_text() and "autoencoder" not in file.stem
)
every_case = pytest.mark.parametrize(("name", "shape", "classes", "overrides"), CASES)


def network(name, shape, classes=0, perturbed=False, **overrides):
    torch.manual_seed(0)
    spec = OmegaConf.to_container(OmegaConf.load(CONFIGS / f"{name}.yaml"))
    net = build({**spec, **overrides}, shape=shape, classes=classes).eval()
    if perturbed:
        with torch.no_grad():
            for parameter in net.parameters():
                parameter.add_(0.05 * torch.randn_like(parameter))
    return net


def inputs(shape, classes, n=3):
    torch.manual_seed(1)
    y = torch.randint(0, classes + 1, (n,)) if classes else None
    return torch.randn(n, *shape), 1000 * torch.rand(n), y


def parameters(net):
    return sum(p.numel() for p in net.parameters())


def check_zero_at_first(name, shape, classes, overrides):
    out = network(name, shape, classes, **overrides)(*inputs(shape, classes))
    assert out.shape == (3, *shape)
    assert (out == 0).all()


def check_gradients(name, shape, classes, overrides, **told):
    net = network(name, shape, classes, perturbed=True, **overrides).train()
    net(*inputs(shape, classes), **told).square().sum().backward()
    for parameter_name, parameter in net.named_parameters():
        assert parameter.grad is not None and parameter.grad.isfinite().all(), parameter_name
        assert parameter.grad.abs().max() > 0, parameter_name


@every_case
def test_output_is_zero_at_initialisation_and_has_the_shape_of_the_data(
    name, shape, classes, overrides
):
    check_zero_at_first(name, shape, classes, overrides)


@every_case
def test_gradient_reaches_every_parameter_and_is_finite(name, shape, classes, overrides):
    check_gradients(name, shape, classes, overrides)


def check_a_sample_stands_alone(name, shape, classes, overrides, least=1e-3):
    net = network(name, shape, classes, perturbed=True, **overrides)
    x, t, y = inputs(shape, classes)
    together = net(x, t, y)
    alone = net(x[1:2], t[1:2], None if y is None else y[1:2])
    torch.testing.assert_close(together[1:2], alone, rtol=1e-4, atol=1e-5)
    assert together.std() > least


def check_time_and_label_matter(name, shape, classes, overrides):
    net = network(name, shape, classes, perturbed=True, **overrides)
    x = inputs(shape, classes, 1)[0].expand(classes + 1, *shape)
    t = torch.full((classes + 1,), 500.0)
    y = torch.arange(classes + 1) if classes else None
    out = net(x, t, y).flatten(1)
    apart = torch.cdist(out, out) + torch.eye(classes + 1)
    assert apart.min() > 1e-3  # every label, the null label included, has its own answer
    assert (net(x, t + 10, y).flatten(1) - out).abs().max() > 1e-3


@every_case
def test_a_sample_does_not_depend_on_the_others(name, shape, classes, overrides):
    check_a_sample_stands_alone(name, shape, classes, overrides)


@every_case
def test_output_depends_on_time_and_label(name, shape, classes, overrides):
    check_time_and_label_matter(name, shape, classes, overrides)


@pytest.mark.parametrize(
    ("name", "shape", "classes", "count"),
    [
        ("unet_cifar", CIFAR, 0, 35_746_307),  # the CIFAR-10 network of Tong et al. 2024
        ("unet", (1, 28, 28), 10, 1.91e6),
        ("unet", (1, 8, 8), 10, 0.76e6),
    ],
)
def test_number_of_parameters(name, shape, classes, count):
    with torch.device("meta"):
        found = parameters(network(name, shape, classes))
    assert found == count if isinstance(count, int) else abs(found - count) < 0.005e6


@pytest.mark.parametrize(("name", "shape"), [("mlp", (2,)), ("unet", (1, 8, 8))])
def test_the_null_label_is_one_more_row_than_the_classes(name, shape):
    with_classes = network(name, shape, 10)
    table = with_classes.get_submodule("label" if name == "mlp" else "conditioning.label")
    assert table.num_embeddings == 11
    assert parameters(with_classes) - parameters(network(name, shape)) == table.weight.numel()


@pytest.mark.parametrize(
    ("size", "levels", "expected"),
    [
        ((28, 28), 3, [(28, 28), (14, 14), (7, 7)]),
        ((28, 28), 4, [(28, 28), (14, 14), (7, 7)]),  # 7 is odd
        ((8, 8), 3, [(8, 8), (4, 4)]),  # 2 is too small
        ((32, 32), 2, [(32, 32), (16, 16)]),
        ((12, 20), 4, [(12, 20), (6, 10)]),  # 3 is too small
        ((7, 7), 3, [(7, 7)]),
        ((64,), 7, [(64,), (32,), (16,), (8,), (4,)]),
        ((1000,), 4, [(1000,), (500,), (250,), (125,)]),
        ((37,), 7, [(37,), (19,), (10,), (5,)]),  # half an odd length is rounded up
        ((3,), 7, [(3,)]),
    ],
)
def test_levels_fit_the_image(size, levels, expected):
    assert resolutions(size, levels) == expected


def test_attention_is_where_it_was_asked_for():
    def with_attention(net):
        return [i for i, stage in enumerate(net.down) if isinstance(stage[0].attention, Attention)]

    with torch.device("meta"):
        assert with_attention(network("unet", (1, 28, 28))) == [2]
        assert with_attention(network("unet", (1, 8, 8))) == [1]
        cifar = network("unet_cifar", CIFAR)
    assert with_attention(cifar) == [1]
    assert {m.heads for m in cifar.modules() if isinstance(m, Attention)} == {4}


def test_attention_equals_the_written_out_formula():
    torch.manual_seed(0)
    channels, d, side = 12, 4, 5
    attention = Attention(channels, d)
    torch.nn.init.normal_(attention.out.weight)
    h = torch.randn(2, channels, side, side)
    weight, bias = attention.qkv.weight[:, :, 0, 0], attention.qkv.bias
    tokens = attention.norm(h).flatten(2).mT @ weight.T + bias  # (B, places, 3 C)
    q, k, v = tokens.split(channels, dim=2)
    heads = []
    for i in range(0, channels, d):
        scores = q[..., i : i + d] @ k[..., i : i + d].mT / math.sqrt(d)
        heads.append(scores.softmax(dim=2) @ v[..., i : i + d])
    mixed = torch.cat(heads, dim=2) @ attention.out.weight[:, :, 0, 0].T
    torch.testing.assert_close(attention(h), h + mixed.mT.reshape(h.shape), rtol=1e-5, atol=1e-5)


def test_attention_asks_with_contiguous_heads(monkeypatch):
    seen = []

    def spy(q, k, v):
        seen.extend([q, k, v])
        return q

    monkeypatch.setattr(torch.nn.functional, "scaled_dot_product_attention", spy)
    h = torch.randn(2, 8, 6, 6).contiguous(memory_format=torch.channels_last)
    Attention(8, 4)(h)
    assert all(part.is_contiguous() and part.shape == (2, 2, 36, 4) for part in seen)


def test_time_features_tell_neighbours_apart():
    t = torch.arange(1001.0)
    features = torch.nn.functional.normalize(Sinusoid(128)(t), dim=1)
    assert (features[1:] * features[:-1]).sum(1).max() < 0.99  # t in [0, 1] gives 1 - 1e-7 here
    assert features[0] @ features[1000] < 0.6
    assert torch.linalg.matrix_rank(features[::100]) == 11


def test_features_of_time_have_the_frequencies_that_are_asked_for():
    t = torch.linspace(0, 1, 101, dtype=torch.float64)
    w = math.pi / 2 * (50 * 2 / math.pi) ** (torch.arange(32) / 31)
    angles = t[:, None] * w.double()
    bounded = Sinusoid(64, 50.0)(1000 * t)
    torch.testing.assert_close(
        bounded, torch.cat([angles.cos(), angles.sin()], dim=1), rtol=0, atol=1e-5
    )
    slope = (bounded[1:] - bounded[:-1]) * 100
    assert 45 < slope.abs().max() <= 50
    assert torch.linalg.matrix_rank(bounded[::10]) == 11
    first = 10_000 ** (-torch.arange(32) / 32)  # with None: those of checkpoints that lack the key
    torch.testing.assert_close(Sinusoid(64).frequencies, first, rtol=1e-6, atol=0)
    for wrong in (0, -3.0, math.inf, math.nan):
        with pytest.raises(FmdiffError, match=r"model\.time_frequency=.* positive number or null"):
            Sinusoid(64, wrong)


@pytest.mark.parametrize("name", NETWORKS)
def test_new_networks_have_bounded_features_of_time_and_old_ones_keep_theirs(name):
    settings = spec_of("model", name)
    assert settings["time_frequency"] == 50
    kind = locate(settings["_target_"])
    assert inspect.signature(kind).parameters["time_frequency"].default is None
    keys = {k: v for k, v in settings.items() if k not in ("_target_", "time_frequency")}
    with torch.device("meta"):
        new, old = (
            kind(shape=SHAPES[kind.axes], classes=3, **keys, **more)
            for more in ({"time_frequency": 50}, {})
        )
    shapes = [{k: v.shape for k, v in net.state_dict().items()} for net in (new, old)]
    assert shapes[0] == shapes[1]


def test_fourier_features_are_fixed_and_saved():
    first = network("mlp", (2,))
    torch.manual_seed(5)
    second = network("mlp", (2,))
    assert torch.equal(first.fourier, second.fourier)
    assert "fourier" in first.state_dict()
    wide = network("mlp", (1000,)).fourier
    assert wide.std() == pytest.approx(2, rel=0.02) and wide.shape == (1000, 32)


@pytest.mark.parametrize("skip", [True, False])
@pytest.mark.parametrize("name", ["silu", "relu", "selu"])
def test_mlp_is_the_written_out_formula(name, skip):
    net = network("mlp", (3,), layers=3, hidden=8, perturbed=True, activation=name, skip=skip)
    x, t, _ = inputs((3,), 0)
    act = {
        "silu": lambda h: h / (1 + torch.exp(-h)),
        "relu": lambda h: h.clamp(min=0),
        "selu": lambda h: (
            1.0507009873554805 * torch.where(h > 0, h, 1.6732632423543772 * h.expm1())
        ),
    }[name]  # Klambauer et al. 2017 for the constants
    state = net.state_dict()
    angles = x @ state["fourier"]
    time = Sinusoid(64, 50.0)(t)
    h = torch.cat([x, angles.cos(), angles.sin(), time], dim=1)
    h = h @ state["first.weight"].T + state["first.bias"]
    for layer in (1, 3, 5):
        h = act(h) @ state[f"rest.{layer}.weight"].T + state[f"rest.{layer}.bias"]
    if skip:
        h = h + x * (time @ state["skip.weight"].T + state["skip.bias"])
    torch.testing.assert_close(net(x, t), h, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("channels", [1, 2, 12, 32, 48, 96, 128, 160, 330])
def test_group_norm_divides_the_channels_in_groups_of_at_least_four(channels):
    norm = group_norm(channels)
    assert norm.num_groups <= 32
    assert channels < 4 or channels // norm.num_groups >= 4


def test_dropout_acts_in_training_only():
    net = network("unet", (1, 8, 8), perturbed=True, dropout=0.5)
    arguments = inputs((1, 8, 8), 0)
    assert torch.equal(net(*arguments), net(*arguments))
    net.train()
    assert not torch.equal(net(*arguments), net(*arguments))


@pytest.mark.parametrize(("name", "shape"), [("mlp", (2,)), ("unet", (1, 8, 8))])
def test_bfloat16_autocast_stays_close(name, shape):
    net = network(name, shape, 10, perturbed=True)
    x, t, y = inputs(shape, 10)
    exact = net(x, t, y)
    with torch.autocast("cpu", torch.bfloat16):
        rough = net(x, t, y).float()
    assert (rough - exact).norm() / exact.norm() < 0.05


@pytest.mark.parametrize(
    ("name", "shape", "overrides", "words"),
    [
        ("mlp", (1, 28, 28), {}, ["model=mlp", "(1, 28, 28)", "model=unet"]),
        ("mlp", (2,), {"activation": "rel"}, ["model.activation=rel", "'relu'", "selu, silu"]),
        ("unet", (2,), {}, ["model=unet", "(2,)", "model=mlp"]),
        ("unet", (2, 64), {}, ["model=unet takes images", "(2, 64)", "model=unet_1d for series"]),
        ("unet_1d", (1, 8, 8), {}, ["model=unet_1d takes series", "model=unet for images"]),
        ("dit_1d", (2,), {}, ["model=dit_1d takes series", "(2,)", "model=mlp for points"]),
        ("dit_1d", (1, 8), {"patch": 9}, ["model.patch=9", "1 to 8"]),
        ("residual_mlp", (1, 8), {}, ["model=residual_mlp takes points", "model=unet_1d"]),
        ("unet_cifar", (2,), {}, ["model=unet", "(2,)", "model=mlp"]),
        ("unet_cifar", (1, 7, 7), {}, ["model.attention=[1]", "level 1", "(1, 7, 7)", "0 to 0"]),
        ("unet", (1, 8, 8), {"attention": [-1, 16]}, ["level 16", "0 to 1"]),
    ],
)
def test_refusals_name_the_option_and_the_way_out(name, shape, overrides, words):
    with pytest.raises(FmdiffError) as refusal:
        network(name, shape, **overrides)
    assert all(word in str(refusal.value) for word in words), refusal.value
