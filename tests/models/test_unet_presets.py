"""The networks of TorchCFM, flow_matching and EDM: their sizes, and what they compute."""

import math

import pytest
import torch
import torch.nn.functional as F
from test_models import (
    CIFAR,
    check_a_sample_stands_alone,
    check_gradients,
    check_time_and_label_matter,
    check_zero_at_first,
    inputs,
    network,
    parameters,
)
from torch import nn

from fmdiff.errors import FmdiffError
from fmdiff.models.layers import Attention

PLUS = {"channels": 16, "multipliers": [1, 2], "blocks": 1}  # enough for every law below
PLAIN = {"channels": 16, "blocks": 1, "time_features": 8}
CASES = [  # name, shape, classes, overrides
    ("ddpmpp", (1, 8, 8), 0, PLUS),
    ("ddpmpp", (3, 8, 12), 3, {**PLUS, "blocks": 2, "attention": [0, -1]}),
    ("unet_flow_matching", (1, 8, 8), 0, PLAIN),
    ("unet_flow_matching", (3, 16, 24), 3, PLAIN),
]
every_case = pytest.mark.parametrize(("name", "shape", "classes", "overrides"), CASES)


# Sizes


@pytest.mark.parametrize(
    ("name", "classes", "count"),
    [
        ("unet_cifar", 0, 35_746_307),  # TorchCFM's example
        ("unet_flow_matching", 0, 55_676_419),  # flow_matching's example
        ("ddpmpp", 0, 55_733_891),  # NVlabs/edm, its 9 labels of the augmentation included
        ("ddpmpp", 10, 55_735_299),
    ],
)
def test_number_of_parameters_is_the_published_one(name, classes, count):
    with torch.device("meta"):
        assert parameters(network(name, CIFAR, classes)) == count


def test_keys_of_the_weights_are_those_of_version_0_1_0():
    def block(name, shortcut, attention):
        parts = ["norm_in", "conv_in", "embed", "norm_out", "conv_out"]
        parts += ["shortcut"] if shortcut else []
        parts += ["attention.norm", "attention.qkv", "attention.out"] if attention else []
        return [f"{name}.{part}" for part in parts]

    layers = ["conditioning.time.1", "conditioning.time.3", "first", "shrink.0", "grow.0"]
    layers += block("down.0.0", False, False) + block("down.1.0", True, True)
    layers += block("middle.0", False, True) + block("middle.1", False, False)
    layers += block("up.0.0", True, True) + block("up.0.1", True, True)
    layers += block("up.1.0", True, False) + block("up.1.1", True, False)
    layers += ["last.0", "last.2"]
    expected = {f"{layer}.{leaf}" for layer in layers for leaf in ("weight", "bias")}
    with torch.device("meta"):
        assert set(network("unet", (1, 8, 8)).state_dict()) == expected
        labelled = set(network("unet", (1, 8, 8), 10).state_dict())
    assert labelled == expected | {"conditioning.label.weight"}


# Laws of every network


@every_case
def test_output_is_zero_at_initialisation_and_has_the_shape_of_the_data(
    name, shape, classes, overrides
):
    check_zero_at_first(name, shape, classes, overrides)


@every_case
def test_gradient_reaches_every_parameter_and_is_finite(name, shape, classes, overrides):
    told = {"augment": torch.ones(3, 9)} if name == "ddpmpp" else {}
    check_gradients(name, shape, classes, overrides, **told)


@every_case
def test_a_sample_does_not_depend_on_the_others(name, shape, classes, overrides):
    check_a_sample_stands_alone(name, shape, classes, overrides)


@every_case
def test_output_depends_on_time_and_label(name, shape, classes, overrides):
    check_time_and_label_matter(name, shape, classes, overrides)


@pytest.mark.parametrize(
    ("shape", "overrides", "words"),
    [
        ((2,), {}, ["model=ddpmpp", "(2,)", "model=mlp"]),
        ((1, 7, 7), {}, ["model.attention=[1]", "level 1", "(1, 7, 7)", "0 to 0"]),
        ((1, 8, 8), {"attention": [-3]}, ["level -3", "0 to 1"]),
    ],
)
def test_refusals_name_the_option_and_the_way_out(shape, overrides, words):
    with pytest.raises(FmdiffError) as refusal:
        network("ddpmpp", shape, **overrides)
    assert all(word in str(refusal.value) for word in words), refusal.value


# The same function as TorchCFM's network


def as_they_run(net):
    """The parts of our U-Net in the order in which they act."""
    yield from (net.conditioning, net.first, net.down[0])
    for shrink, stage in zip(net.shrink, net.down[1:], strict=True):
        yield from (shrink, stage)
    yield from (net.middle, net.up[0])
    for grow, stage in zip(net.grow, net.up[1:], strict=True):
        yield from (grow, stage)
    yield net.last


def copied(theirs, ours, heads_first):
    """Random weights in `theirs`, the same in `ours`; heads_first: (head, q k v, d) in theirs."""
    torch.manual_seed(2)
    heads = {id(m.qkv): m.heads for m in ours.modules() if isinstance(m, Attention)}
    layers = [m for part in as_they_run(ours) for m in part.modules() if hasattr(m, "weight")]
    others = [m for m in theirs.modules() if hasattr(m, "weight")]
    with torch.no_grad():
        for mine, other in zip(layers, others, strict=True):
            for name, value in mine.named_parameters():
                source = other.get_parameter(name)
                source.add_(0.02 * torch.randn_like(source))
                rows = source.reshape(value.shape)
                if heads_first and id(mine) in heads:
                    rows = (
                        rows.unflatten(0, (heads[id(mine)], 3, -1)).transpose(0, 1).flatten(0, 2)
                    )
                value.copy_(rows)


def test_the_network_of_torchcfm():
    unet = pytest.importorskip("torchcfm.models.unet.unet")
    theirs = unet.UNetModelWrapper(
        dim=(3, 32, 32),
        num_channels=128,
        num_res_blocks=2,
        channel_mult=[1, 2, 2, 2],
        attention_resolutions="16",
        num_heads=4,
        num_head_channels=64,
        dropout=0.1,
    ).eval()
    ours = network("unet_cifar", CIFAR, time_frequency=None)
    copied(theirs, ours, heads_first=True)
    x, t, _ = inputs(CIFAR, 0, 2)
    with torch.no_grad():
        expected, found = theirs(t, x), ours(x, t)
    assert expected.std() > 0.1
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5 * expected.abs().max())


def test_the_network_of_flow_matching():
    # flow_matching's examples and TorchCFM both have guided-diffusion's network
    unet = pytest.importorskip("torchcfm.models.unet.unet")
    shape = (3, 16, 16)
    theirs = unet.UNetModel(
        image_size=16,
        in_channels=3,
        model_channels=128,
        out_channels=3,
        num_res_blocks=4,
        attention_resolutions=[2],
        dropout=0.3,
        channel_mult=[2, 2, 2],
        conv_resample=False,
        num_heads=1,
        use_scale_shift_norm=True,
        use_new_attention_order=True,
    ).eval()
    ours = network("unet_flow_matching", shape, time_frequency=None)
    copied(theirs, ours, heads_first=False)
    x, t, _ = inputs(shape, 0, 1)
    with torch.no_grad():
        expected, found = theirs(t, x), ours(x, t)
    assert expected.std() > 0.1
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5 * expected.abs().max())


# The same function as EDM's


class WrittenOut:
    """DDPM++ from its weights: the filter [1, 1] x [1, 1] as a convolution, attention in full."""

    def __init__(self, weights, levels, blocks, attentive):
        self.weights, self.levels = weights, levels
        self.blocks, self.attentive = blocks, attentive

    def layer(self, name, h, **options):
        weight, bias = self.weights[f"{name}.weight"], self.weights[f"{name}.bias"]
        if weight.ndim == 1:
            groups = min(32, h.shape[1] // 4)
            return F.group_norm(h, groups, weight, bias, eps=1e-6)
        if weight.ndim == 2:
            return h @ weight.T + bias
        return F.conv2d(h, weight, bias, padding=weight.shape[-1] // 2)

    def resample(self, h, change):
        box = torch.full((h.shape[1], 1, 2, 2), 1 / 4)
        if change == "half":
            return F.conv2d(h, box, stride=2, groups=h.shape[1])
        if change == "double":
            return F.conv_transpose2d(h, 4 * box, stride=2, groups=h.shape[1])
        return h

    def block(self, name, h, embedding, attend=False, change=""):
        residual = self.resample(F.silu(self.layer(f"{name}.norm_in", h)), change)
        residual = self.layer(f"{name}.conv_in", residual)
        residual = residual + self.layer(f"{name}.embed", embedding)[:, :, None, None]
        residual = F.silu(self.layer(f"{name}.norm_out", residual))
        residual = self.layer(f"{name}.conv_out", residual)
        shortcut = self.resample(h, change)
        if change or shortcut.shape[1] != residual.shape[1]:
            shortcut = self.layer(f"{name}.shortcut", shortcut)
        h = math.sqrt(0.5) * (shortcut + residual)
        assert (f"{name}.mix.qkv.weight" in self.weights) == attend
        if attend:
            qkv = self.layer(f"{name}.mix.qkv", self.layer(f"{name}.mix.norm", h))
            q, k, v = qkv.flatten(2).chunk(3, dim=1)
            scores = torch.einsum("bcq,bck->bqk", q, k) / math.sqrt(h.shape[1])
            mixed = torch.einsum("bqk,bck->bcq", scores.softmax(dim=2), v)
            h = math.sqrt(0.5) * (h + self.layer(f"{name}.mix.out", mixed.reshape(h.shape)))
        return h

    def __call__(self, x, t, y):
        half = self.weights["first.weight"].shape[0] // 2
        angles = t[:, None] * 10_000 ** (-torch.arange(half) / half)
        features = torch.cat([angles.cos(), angles.sin()], dim=1) + self.weights["label.weight"][y]
        embedding = F.silu(self.layer("embed.0", features))
        embedding = F.silu(self.layer("embed.2", embedding))
        skips, place = [h := self.layer("first", x)], 0
        for level in range(self.levels):
            for i in range(-(level > 0), self.blocks):
                attend, change = (i >= 0 and level in self.attentive), "half" if i < 0 else ""
                h = self.block(f"down.{place}", h, embedding, attend, change)
                skips.append(h)
                place += 1
        h = self.block("middle.0", h, embedding, attend=True)
        h, place = self.block("middle.1", h, embedding), 0
        for level in reversed(range(self.levels)):
            if level < self.levels - 1:
                h = self.block(f"up.{place}", h, embedding, change="double")
                place += 1
            for i in range(self.blocks + 1):
                attend = level in self.attentive and i == self.blocks
                h = torch.cat([h, skips.pop()], dim=1)
                h = self.block(f"up.{place}", h, embedding, attend)
                place += 1
        assert not skips
        return self.layer("last.2", F.silu(self.layer("last.0", h)))


@pytest.mark.parametrize("attention", [[1], [0, -1], []])
def test_the_network_of_edm_written_out(attention):
    # Below 128 channels our norm can have fewer groups: their number divides the channels.
    shape, size = (3, 16, 24), {"channels": 128, "multipliers": [1, 2, 2], "blocks": 2}
    net = network("ddpmpp", shape, 5, True, **size, attention=attention, time_frequency=None)
    written = WrittenOut(net.state_dict(), 3, 2, {level % 3 for level in attention})
    with torch.no_grad():
        found, expected = net(*inputs(shape, 5)), written(*inputs(shape, 5))
    assert expected.std() > 0.1
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5 * expected.abs().max())


def test_ddpmpp_starts_as_edm_does():
    """Xavier-uniform: weights of variance 2 / (fan in + fan out), a fifth of it for q, k, v."""
    net = network("ddpmpp", (3, 8, 8), channels=32, multipliers=[2, 2], blocks=1)
    seen = {"zero": 0, "qkv": 0, "other": 0}
    for name, layer in net.named_modules():
        if not isinstance(layer, nn.Conv2d | nn.Linear):
            continue
        assert name == "augment" if layer.bias is None else (layer.bias == 0).all(), name
        weight = layer.weight.flatten(2) if layer.weight.ndim == 4 else layer.weight[..., None]
        places = weight.shape[2]
        variance = 2 / (weight.shape[0] * places + weight.shape[1] * places)
        kind = "qkv" if name.endswith("qkv") else "other" if weight.any() else "zero"
        seen[kind] += 1
        assert (kind == "zero") == name.endswith(("conv_out", "mix.out", "last.2")), name
        expected = {"zero": 0.0, "qkv": 0.2, "other": 1.0}[kind] * variance
        # The mean square of n uniform numbers has relative deviation sqrt(0.8 / n).
        assert weight.square().mean().item() == pytest.approx(
            expected, rel=5 * math.sqrt(0.8 / weight.numel())
        ), name
        bound = math.sqrt(3 * expected)
        assert weight.abs().max() <= bound * (1 + 1e-6), name
    assert all(seen.values()), seen
