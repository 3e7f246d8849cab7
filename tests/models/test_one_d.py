"""Networks for series and tables, against the formulas of their layers."""

import math

import pytest
import torch
import torch.nn.functional as F
from test_models import inputs, network

from fmdiff.models.dit import joined, positions, tokens
from fmdiff.models.dit_1d import usual_patch
from fmdiff.models.layers import Attention, ResBlock
from fmdiff.models.unet import doubled
from fmdiff.models.unet_1d import Scales


@torch.no_grad()
def as_images(net, other):
    """Copy the weights of a network of series into one of images: kernels in the middle row."""
    state = other.state_dict()
    for name, value in net.state_dict().items():
        if value.ndim == 3:  # (out, in, places)
            wide = torch.zeros_like(state[name])
            wide[:, :, wide.shape[2] // 2] = value
            state[name] = wide
        else:
            state[name] = value
    other.load_state_dict(state)
    return other


def test_a_block_along_one_axis_is_the_block_of_images_of_one_row():
    torch.manual_seed(0)
    parts = [
        ResBlock(8, 16, 12, 0.0, scale_shift, Attention(16, 8, axes), axes=axes)
        for axes in (1, 2)
        for scale_shift in (True, False)
    ]
    h, embedding = torch.randn(3, 8, 11), torch.randn(3, 12)
    for series, images in zip(parts[:2], parts[2:], strict=True):
        with torch.no_grad():
            for parameter in series.parameters():
                parameter.add_(0.1 * torch.randn_like(parameter))
        expected = as_images(series, images)(h[:, :, None], embedding)[:, :, 0]
        torch.testing.assert_close(series(h, embedding), expected, rtol=1e-5, atol=1e-5)
        assert expected.std() > 0.1


def test_a_doubled_map_repeats_each_value_and_is_cut():
    h = torch.arange(6.0).view(1, 2, 3)
    assert doubled(h, 6)[0, 0].tolist() == [0, 0, 1, 1, 2, 2]
    assert doubled(h, 5)[0, 1].tolist() == [3, 3, 4, 4, 5]


@pytest.mark.parametrize("length", [37, 38, 64])
def test_the_maps_of_a_series_are_half_as_long_rounded_up(length):
    net = network("unet_1d", (2, length), channels=16, multipliers=[1, 1, 2])
    seen = []
    for stage in net.down:
        stage[0].register_forward_hook(lambda part, args, out: seen.append(out.shape[-1]))
    net(*inputs((2, length), 0))
    assert seen == [length, math.ceil(length / 2), math.ceil(math.ceil(length / 2) / 2)]


def test_every_place_of_a_series_reaches_every_other():
    for name, more in (("unet_1d", {"channels": 16}), ("dit_1d", {"width": 32, "depth": 2})):
        net = network(name, (1, 45), perturbed=True, **more).double()
        x, t, _ = inputs((1, 45), 0, 1)
        jacobian = torch.func.jacrev(lambda x, net=net, t=t: net(x, t.double()))(x.double())
        assert jacobian.view(45, 45).abs().min() > 1e-9, name


def test_the_last_patch_of_a_series_is_filled_with_zeros_and_cut_off():
    x = torch.arange(1.0, 15).view(1, 2, 7)
    cut = tokens(x, 3)
    assert cut.tolist() == [[[1, 2, 3, 8, 9, 10], [4, 5, 6, 11, 12, 13], [7, 0, 0, 14, 0, 0]]]
    assert torch.equal(joined(cut, 3, (7,)), x)


def test_patches_with_a_linear_layer_are_the_convolution():
    torch.manual_seed(0)
    x, weight = torch.randn(2, 3, 12), torch.randn(5, 3, 4)
    expected = F.conv1d(x, weight, stride=4).mT
    torch.testing.assert_close(tokens(x, 4) @ weight.flatten(1).T, expected)


def test_places_of_a_series_are_the_written_out_waves():
    waves = positions((9,), 8)
    for i in range(9):
        angles = [i * 10_000 ** (-k / 4) for k in range(4)]
        expected = [math.sin(a) for a in angles] + [math.cos(a) for a in angles]
        assert waves[i].tolist() == pytest.approx(expected, abs=1e-5)


@pytest.mark.parametrize(
    ("length", "patch"),
    [(1, 1), (3, 3), (4, 4), (64, 4), (1024, 4), (1025, 8), (16_384, 64), (16_385, 128)],
)
def test_the_usual_patch_leaves_at_most_256_tokens(length, patch):
    assert usual_patch(length) == patch
    assert math.ceil(length / patch) <= 256


def test_the_residual_network_is_the_written_out_formula():
    net = network("residual_mlp", (5,), width=16, blocks=2, perturbed=True)
    x, t, _ = inputs((5,), 0)
    weights = net.state_dict()

    def linear(name, h):
        return h @ weights[f"{name}.weight"].T + weights[f"{name}.bias"]

    def silu(h):
        return h / (1 + torch.exp(-h))

    def norm(h):
        centred = h - h.mean(1, keepdim=True)
        return centred / (centred.square().mean(1, keepdim=True) + 1e-5).sqrt()

    embedding = net.conditioning(t, None)
    h = linear("first", x)
    for i in range(2):
        a, b = linear(f"blocks.{i}.modulation", silu(embedding)).split(16, dim=1)
        inner = linear(f"blocks.{i}.first", norm(h) * (1 + a) + b)
        h = h + linear(f"blocks.{i}.second", silu(inner))
    out = linear("last", silu(norm(h) * weights["norm.weight"] + weights["norm.bias"]))
    out = out + linear("skip", silu(embedding)) * x
    torch.testing.assert_close(net(x, t), out, rtol=1e-4, atol=1e-5)


def test_dropout_of_the_residual_network_acts_in_training_only():
    net = network("residual_mlp", (5,), width=16, blocks=1, perturbed=True, dropout=0.5)
    arguments = inputs((5,), 0)
    assert torch.equal(net(*arguments), net(*arguments))
    net.train()
    assert not torch.equal(net(*arguments), net(*arguments))


@pytest.mark.parametrize("length", [1, 7, 8, 13])
def test_scales_are_means_over_ever_more_places(length):
    scales = Scales((2, length), 6)
    torch.manual_seed(0)
    torch.nn.init.normal_(scales.gains.weight)
    x, embedding = torch.randn(3, 2, length).double(), torch.randn(3, 6).double()
    out = scales.double()(x, embedding)
    gains = F.silu(embedding) @ scales.gains.weight.T
    count = 1 + math.ceil(math.log2(length))
    expected = torch.zeros_like(x)
    for j in range(count):
        for i in range(length):
            block = i // 2**j  # an odd end leaves a mean of one part alone
            parts = [x]
            for _ in range(j):
                last = parts[-1]
                pairs = [last[..., k : k + 2].mean(2) for k in range(0, last.shape[2], 2)]
                parts.append(torch.stack(pairs, 2))
            gain = gains.view(3, count, 2)[:, j]
            expected[..., i] += gain * parts[-1][..., block]
    torch.testing.assert_close(out, expected)


def test_a_linear_filter_is_the_same_at_any_size_of_a_series():
    net = network("unet_1d", (2, 13), channels=8)
    torch.nn.init.normal_(net.linear.gains.weight)
    x, t, _ = inputs((2, 13), 0)
    torch.testing.assert_close(net(1000 * x, t), 1000 * net(x, t), rtol=1e-4, atol=1e-2)
    assert net(x, t).std() > 1e-2
