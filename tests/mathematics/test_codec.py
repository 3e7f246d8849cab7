"""Codecs against numpy and autograd, and samples that come back as the user knows them."""

import numpy as np
import pytest
import torch
from conftest import COVS, MEANS, WEIGHTS

from fmdiff.build import build
from fmdiff.codec import Codec, Standard
from fmdiff.errors import FmdiffError
from fmdiff.exact import Mixture
from fmdiff.path import CondOT
from fmdiff.sampling import generate

SHAPES = [(3,), (2, 5), (3, 4, 2)]


def standard(shape):
    draws = torch.Generator().manual_seed(0)
    mean, scale = torch.randn(2, shape[0], generator=draws, dtype=torch.float64)
    return Standard.of(shape, 100 * mean, scale.exp())


@pytest.mark.parametrize("shape", SHAPES)
def test_channels_are_standardised(shape):
    x = 5 + 3 * np.random.default_rng(0).normal(size=(400, *shape))
    axes = (0, *range(2, x.ndim))
    mean, scale = (torch.from_numpy(f(x, axis=axes)) for f in (np.mean, np.std))
    codec = Standard.of(shape, mean, scale)
    z = codec.encode(torch.from_numpy(x))
    assert z.numpy().mean(axes) == pytest.approx(0, abs=1e-12)
    assert z.numpy().std(axes) == pytest.approx(1, abs=1e-12)
    torch.testing.assert_close(codec.decode(z), torch.from_numpy(x))


@pytest.mark.parametrize("shape", SHAPES)
def test_the_log_determinant_is_that_of_the_jacobian(shape):
    codec = standard(shape)
    jacobian = torch.autograd.functional.jacobian(
        lambda x: codec.encode(x.view(1, *shape)).flatten(),
        torch.randn(shape, dtype=torch.float64).flatten(),
    )
    assert codec.log_det() == pytest.approx(torch.linalg.slogdet(jacobian)[1].item())


def test_what_is_constant_is_returned_exactly():
    codec = Standard.of((2,), torch.tensor([7.25, 0.0]), torch.tensor([0.0, 2.0]))
    x = torch.tensor([[7.25, 3.0]])
    assert codec.encode(x)[0, 0] == 0 and torch.equal(codec.decode(codec.encode(x)), x)


@pytest.mark.parametrize("shape", SHAPES)
def test_spec_and_state_build_the_same_codec(shape):
    codec = standard(shape)
    twin = build(codec.spec(), trust=(), base=Codec)
    twin.load_state_dict(codec.state_dict())
    z = torch.randn(3, *shape)
    assert torch.equal(twin.decode(z), codec.decode(z)) and twin.outer == codec.outer == shape


@pytest.mark.parametrize("shape", [[], [0], [-1, 3], ["3"], [2.5], None])
def test_a_forged_shape_is_refused(shape):
    with pytest.raises(FmdiffError, match="codec of shape"):
        Standard(shape)


def test_samples_are_decoded_and_so_are_their_trajectories():
    field = Mixture(CondOT(), WEIGHTS, MEANS, COVS)
    plain = generate(field, n=50, steps=5, trajectory=True)
    field.codec = Standard.of((2,), torch.tensor([100.0, -3.0]), torch.tensor([10.0, 0.5]))
    batches = []
    decoded = generate(field, n=50, steps=5, trajectory=True)
    generate(field, n=50, steps=5, receive=lambda x, y: batches.append(x))
    scale, mean = torch.tensor([10.0, 0.5]), torch.tensor([100.0, -3.0])
    torch.testing.assert_close(decoded.x, plain.x * scale + mean)
    torch.testing.assert_close(torch.cat(batches), decoded.x)
    for ours, theirs in (
        (decoded.trajectory, plain.trajectory),
        (decoded.x_hat, plain.x_hat),
    ):
        torch.testing.assert_close(ours[0], theirs[0] * scale + mean)
        assert torch.equal(ours[1], theirs[1])
