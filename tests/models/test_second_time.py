"""Networks with a second time: flow maps that are the velocity network on their diagonal."""

import math

import pytest
import torch
from test_models import NETWORKS
from torch.nn import functional as F

from fmdiff.build import locate, named, spec_of
from fmdiff.errors import FmdiffError
from fmdiff.models.layers import MapInputs, Offset, attend
from fmdiff.models.network import answer, takes

SMALL = {
    "MLP": {"hidden": 24, "frequencies": 6},
    "UNet": {"channels": 16, "multipliers": [1, 2], "blocks": 1, "attention": [-1]},
    "DDPMpp": {"channels": 16, "multipliers": [1, 2], "blocks": 1, "attention": [-1]},
    "DiT": {"width": 32, "heads": 2, "depth": 2, "patch": 2},
    "UNet1d": {"channels": 16, "multipliers": [1, 2], "blocks": 1, "attention": [-1]},
    "DiT1d": {"width": 32, "heads": 2, "depth": 2, "patch": 2},
    "ResidualMLP": {"width": 24, "blocks": 2},
    "JiT": {"width": 32, "heads": 2, "depth": 2, "patch": 2, "label_tokens": 2, "start": 1},
}
CLASSES = {name: locate(spec_of("model", name)["_target_"]) for name in NETWORKS}
MAPS = [name for name in NETWORKS if not CLASSES[name].logits]
SHAPES = {1: (2,), 2: (1, 9), 3: (1, 8, 8)}  # by the axes of a sample
MAP = {"second_time": True, "guided": True}
every_map = pytest.mark.parametrize("name", MAPS)
precisions = pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=["f32", "f64"])


def network(name, classes=3, seed=0, **keys):
    """The network of a YAML, made small, at its initialisation."""
    shape = SHAPES[CLASSES[name].axes]
    torch.manual_seed(seed)
    small = {**SMALL[CLASSES[name].__name__], **keys}
    return named("model", name, **small, shape=shape, classes=classes).eval()


def trained(net, seed=3):
    """The same network with random weights everywhere."""
    draws = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in net.parameters():
            normal = torch.randn(parameter.shape, generator=draws, dtype=parameter.dtype)
            parameter.add_(0.1 * normal)
    return net


def inputs(name, n=4, dtype=torch.float32):
    """x_t, t, y, s > t and w > 1."""
    draws = torch.Generator().manual_seed(1)
    shape = SHAPES[CLASSES[name].axes]
    x = torch.randn(n, *shape, generator=draws, dtype=dtype)
    t, gap, w = torch.rand(3, n, generator=draws, dtype=dtype)
    return x, 500 * t, torch.arange(n) % 4, 500 * t + 500 * gap, 1 + 5 * w


def test_all_networks_but_classifiers_can_be_maps():
    assert [name for name in NETWORKS if takes(CLASSES[name], "second_time")] == MAPS
    assert [name for name in NETWORKS if takes(CLASSES[name], "guided")] == MAPS
    assert {CLASSES[name].__name__ for name in MAPS} == set(SMALL)
    assert all(not {"second_time", "guided"} & set(spec_of("model", name)) for name in MAPS)
    assert takes(lambda **keys: None, "second_time") and not takes(lambda x: x, "second_time")


@every_map
def test_a_map_starts_with_the_weights_of_the_velocity_network(name):
    velocity, single, both = (
        network(name, **keys).state_dict() for keys in ({}, {"second_time": True}, MAP)
    )
    assert velocity.keys() <= single.keys() <= both.keys()
    assert all(torch.equal(value, both[key]) for key, value in velocity.items())
    assert all(torch.equal(value, both[key]) for key, value in single.items())
    branches = {key.rpartition(".")[2] for key in both.keys() - velocity.keys()}
    assert branches == {"inner", "outer"}
    for key in both.keys() - velocity.keys():
        assert ".second." in key or ".guidance." in key
        assert bool(both[key].abs().max() > 0) == key.endswith("inner")


@every_map
def test_a_checkpoint_of_the_velocity_network_lacks_the_branches_alone(name):
    velocity, net = trained(network(name)), network(name, seed=1, **MAP)
    new = net.state_dict().keys() - velocity.state_dict().keys()
    missing, unexpected = net.load_state_dict(velocity.state_dict(), strict=False)
    assert set(missing) == new and not unexpected
    x, t, y, s, w = inputs(name)
    assert torch.equal(net(x, t, y, s=s, w=w), velocity(x, t, y))  # the branches start at zero
    assert torch.equal(net(x, t, y), velocity(x, t, y))


@every_map
@precisions
def test_the_diagonal_is_the_velocity_network_to_the_bit_after_training_too(name, dtype):
    net, velocity = trained(network(name, **MAP).to(dtype)), network(name).to(dtype)
    state = net.state_dict()
    velocity.load_state_dict({key: state[key] for key in velocity.state_dict()})
    x, t, y, s, w = inputs(name, dtype=dtype)
    expected = velocity(x, t, y)
    assert expected.std() > 1e-2
    for further in ({}, {"s": t}, {"w": torch.ones_like(w)}, {"s": t, "w": torch.ones_like(w)}):
        assert torch.equal(net(x, t, y, **further), expected)
    for further in ({"s": s}, {"w": w}):
        apart = (net(x, t, y, **further) - expected).flatten(1).norm(dim=1)
        assert apart.min() > 1e-3, further


@every_map
def test_the_second_time_is_learnt_from_the_first_step(name):
    net = network(name, **MAP)
    rest = {key: p for key, p in net.named_parameters() if not key.endswith("outer")}
    draws = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for parameter in rest.values():
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=draws))
    x, t, y, s, w = inputs(name)
    net(x, t, y, s=s, w=w).square().sum().backward()
    outer = [p for key, p in net.named_parameters() if key.endswith("outer")]
    assert all(p.grad.abs().max() > 0 for p in outer)
    assert len(outer) == (4 if name == "mlp" else 2)  # the MLP's skip has its own


@every_map
def test_a_network_without_a_second_time_refuses_it(name):
    net = network(name)
    x, t, y, s, w = inputs(name)
    for further, keyword in (({"s": s}, "second_time"), ({"w": w}, "guided")):
        with pytest.raises(FmdiffError, match=f"built without {keyword}=True"):
            net(x, t, y, **further)


@every_map
@precisions
def test_forward_derivatives_agree_with_central_differences(name, dtype):
    exact = trained(network(name, **MAP).double())
    same = network(name, **MAP).to(dtype)
    same.load_state_dict(exact.state_dict())
    x, t, y, s, w = inputs(name, dtype=torch.float64)
    draws = torch.Generator().manual_seed(2)
    along = torch.randn(x.shape, generator=draws, dtype=x.dtype)
    unit, still = 1000 * torch.ones_like(t), torch.zeros_like(t)
    h, tolerance = 1e-6, 1e-6 if dtype == torch.float64 else 2e-3

    def of(net):
        return lambda x, t, s, w: net(x, t, y, s=s, w=w)

    with torch.no_grad():
        for change in (
            (along, still, still, still),
            (0 * along, unit, still, still),
            (0 * along, still, unit, still),
            (0 * along, still, still, unit / 1000),
            (along, unit, unit, still),
        ):
            point = (x, t, s, w)
            ahead, behind = (
                of(exact)(*(a + sign * h * b for a, b in zip(point, change, strict=True)))
                for sign in (1, -1)
            )
            expected = (ahead - behind) / (2 * h)
            _, slope = torch.func.jvp(
                of(same),
                tuple(part.to(dtype) for part in point),
                tuple(part.to(dtype) for part in change),
            )
            assert expected.abs().max() > 1e-2
            error = (slope - expected).abs().max() / expected.abs().max()
            assert slope.dtype == dtype and error < tolerance, error


@precisions
def test_attention_is_the_same_with_and_without_forward_derivatives(dtype, monkeypatch):
    q, k, v = torch.randn(3, 2, 4, 50, 8, generator=torch.Generator().manual_seed(0)).to(dtype)
    fused = F.scaled_dot_product_attention(q, k, v)
    assert torch.equal(attend(q, k, v), fused)
    directions = torch.randn(3, *q.shape, generator=torch.Generator().manual_seed(1)).double()
    for shares in ((1, 0, 0), (0, 1, 0), (0, 0, 1)):  # a tangent of any of the three counts
        change = [share * part for share, part in zip(shares, directions, strict=True)]
        plain, slope = torch.func.jvp(attend, (q, k, v), tuple(part.to(dtype) for part in change))
        torch.testing.assert_close(plain, fused, rtol=0, atol=1e-6)
        ahead, behind = (
            F.scaled_dot_product_attention(
                *(a.double() + sign * 1e-5 * b for a, b in zip((q, k, v), change, strict=True))
            )
            for sign in (1, -1)
        )
        expected = (ahead - behind) / 2e-5
        tolerance = 1e-5 if dtype == torch.float32 else 1e-8
        torch.testing.assert_close(slope.double(), expected, rtol=0, atol=tolerance)
        assert expected.abs().max() > 0.1
    monkeypatch.setattr(F, "scaled_dot_product_attention", None)
    torch.func.jvp(lambda v: attend(q, k, v), (v,), (v,))
    with pytest.raises(TypeError):  # the fused kernel serves all but forward derivatives
        attend(q, k, v)


def test_an_offset_is_the_written_out_formula():
    offset = Offset(8, 5, "second_time")
    torch.nn.init.normal_(offset.outer, generator=torch.Generator().manual_seed(0))
    d = torch.tensor([-300.0, 0.0, 1e-3, 20.0, 1000.0])
    w = [math.pi / 2 * (5 * 2 / math.pi) ** (i / 3) for i in range(4)]
    angles = d.double()[:, None] / 1000 * torch.tensor(w, dtype=torch.float64)
    features = torch.cat([angles.sin(), 1 - angles.cos()], dim=1)
    h = features @ offset.inner.double().T
    expected = (h / (1 + torch.exp(-h))) @ offset.outer.double().T
    torch.testing.assert_close(offset(d).double(), expected, rtol=1e-4, atol=1e-5)
    assert torch.equal(offset(d)[1], torch.zeros(5))
    assert offset.inner.std().item() == pytest.approx(8**-0.5, rel=0.2)
    assert set(offset.state_dict()) == {"inner", "outer"}


def test_no_feature_of_the_second_time_is_steeper_than_the_bound():
    offset = Offset(64, 64, "second_time")
    with torch.no_grad():
        offset.inner.copy_(torch.eye(64))
        offset.outer.copy_(torch.eye(64))
    d = torch.linspace(0, 1000, 20_001, dtype=torch.float64)
    slopes = offset.double()(d).diff(dim=0) / (d[1] - d[0])
    assert 0.004 < slopes.abs().max() < 1.1 * 5 / 1000  # SiLU is at most 1.1 times as steep


def test_map_inputs_tell_the_two_differences_apart():
    inputs = MapInputs(8, 5, True, True)
    for parameter in inputs.parameters():
        torch.nn.init.normal_(parameter, generator=torch.Generator().manual_seed(0))
    assert not torch.equal(Offset(8, 5, "guided").inner, Offset(8, 5, "second_time").inner)
    vector, t, s = torch.zeros(1, 5), torch.tensor([300.0]), torch.tensor([700.0])
    second = inputs(vector, t, s, None)
    assert torch.equal(second, inputs.second(s - t))
    scale = inputs(vector, t, None, torch.tensor([3.0]))
    assert torch.equal(scale, inputs.guidance(torch.tensor([200.0])))
    torch.testing.assert_close(inputs(vector, t, s, torch.tensor([3.0])), second + scale)


def test_answer_passes_on_what_there_is():
    def old(x_t, t, y=None):
        return x_t

    def new(x_t, t, y=None, s=None, w=None):
        return x_t * (1 if s is None else s[:, None]) * (1 if w is None else w[:, None])

    x, t = torch.ones(2, 3), torch.zeros(2)
    s, w = torch.tensor([2.0, 3.0]), torch.tensor([5.0, 7.0])
    assert torch.equal(answer(old, x, t, None), x) and torch.equal(answer(new, x, t, None), x)
    assert torch.equal(answer(new, x, t, None, s)[:, 0], s)
    assert torch.equal(answer(new, x, t, None, w=w)[:, 0], w)
    assert torch.equal(answer(new, x, t, None, s, w)[:, 0], s * w)
