"""Autoencoders against principal components, torch.distributions and formulas written out."""

import math

import numpy as np
import pytest
import torch
from torch import distributions

from fmdiff.build import build, named
from fmdiff.errors import FmdiffError
from fmdiff.models.autoencoder import Autoencoder, Latent, LinearAutoencoder
from fmdiff.objectives.autoencoding import Autoencoding, divergence, perceptual
from fmdiff.path import CondOT


def objective(**keys):
    settings = {"distance": "l2", "kl_weight": 0.0, "perceptual_weight": 0.0} | keys
    return Autoencoding(path=CondOT(), data_std=1.0, **settings)


def small(shape=(1, 8, 8), **keys):
    torch.manual_seed(0)
    settings = {"channels": 8, "multipliers": [1, 2], "blocks": 1, "latent": 3, "patch": 1} | keys
    return Autoencoder(shape=shape, **settings)


class Doubled(Latent):
    """z = 2 x with a posterior of variance e^-2, and back."""

    def __init__(self):
        super().__init__((3,), (3,))

    def posterior(self, x):
        return 2 * x, torch.full_like(x, -2.0)

    def reconstruct(self, z):
        return z / 2 + 0.25


def test_the_best_linear_autoencoder_is_pca():
    """Trained on all data, it projects as the singular vectors of the centred data do."""
    rng = np.random.default_rng(0)
    turn = np.linalg.qr(rng.normal(size=(6, 6)))[0]
    data = rng.normal(size=(200, 6)) * [2, 1.5, 1.2, 0.5, 0.4, 0.2] @ turn + rng.normal(size=6)
    vectors = np.linalg.svd(data - data.mean(0), full_matrices=False)[2][:3]
    torch.manual_seed(0)
    net, loss = LinearAutoencoder(shape=(6,), latent=3).double(), objective()
    x = torch.tensor(data)
    keys = {"max_iter": 150, "tolerance_grad": 1e-10, "tolerance_change": 0, "history_size": 30}
    optimiser = torch.optim.LBFGS(net.parameters(), line_search_fn="strong_wolfe", **keys)

    def closure():
        optimiser.zero_grad()
        value = loss(net, x, None, x, x[:, 0]).mean()
        value.backward()
        return value

    optimiser.step(closure)
    back = (data - data.mean(0)) @ vectors.T @ vectors + data.mean(0)
    basis = torch.eye(6, dtype=torch.float64)
    with torch.no_grad():
        assert np.abs(net(x).numpy() - back).max() < 1e-4
        matrix = (net(basis) - net(0 * basis)).numpy()
    assert np.abs(matrix - vectors.T @ vectors).max() < 1e-4
    assert closure().item() == pytest.approx(((data - back) ** 2).mean(), rel=1e-8)


def test_the_loss_is_the_distance_and_the_price_of_the_latent():
    torch.manual_seed(0)
    x, eps = torch.randn(5, 3), torch.randn(5, 3)
    z = 2 * x + math.exp(-1) * eps
    error = z / 2 + 0.25 - x
    law = distributions.Normal(2 * x, math.exp(-1))
    price = distributions.kl_divergence(law, distributions.Normal(0.0, 1.0)).sum(1) / 3
    for distance, value in (
        ("l2", error.square().mean(1)),
        ("l1", error.abs().mean(1)),
        ("pseudo_huber", (error.square().mean(1) + 0.03**2).sqrt() - 0.03),
    ):
        loss = objective(distance=distance, kl_weight=0.7)
        losses, squares = loss.assess(Doubled(), x, None, eps, x[:, 0])
        torch.testing.assert_close(losses, value + 0.7 * price)
        torch.testing.assert_close(squares, error.square().mean(1))
        assert torch.equal(loss(Doubled(), x, None, eps, x[:, 0]), losses)


def test_without_a_price_the_noise_plays_no_part():
    x = torch.randn(5, 3, generator=torch.Generator().manual_seed(1))
    losses = objective()(Doubled(), x, None, torch.full_like(x, math.nan), x[:, 0])
    torch.testing.assert_close(losses, torch.full((5,), 0.0625))


def test_the_noise_is_that_of_the_step_in_its_order():
    """The first numbers of eps (B, *shape) are the noise of the latent."""
    net, x = small(), torch.rand(2, 1, 8, 8) * 2 - 1
    eps = torch.arange(128.0).view(2, 1, 8, 8) / 100
    mean, log_variance = net.posterior(x)
    noise = torch.stack([torch.arange(48.0), torch.arange(64.0, 112.0)]).view(2, 3, 4, 4) / 100
    z = mean + (log_variance / 2).exp() * noise
    value = (net.reconstruct(z) - x).square().mean((1, 2, 3)) + divergence(mean, log_variance) / 64
    torch.testing.assert_close(objective(kl_weight=1)(net, x, None, eps, x[:, 0, 0, 0]), value)


def test_the_perceptual_distance_is_that_of_directions():
    a, b = torch.randn(2, 3, 5, 4, 4, generator=torch.Generator().manual_seed(0))
    cosine = torch.nn.functional.cosine_similarity

    def maps(x):
        return [x, 3 * x[:, :, ::2, ::2]]

    pairs = zip(maps(a), maps(b), strict=True)
    parts = [(2 - 2 * cosine(f, g, dim=1)).mean((1, 2)) for f, g in pairs]
    torch.testing.assert_close(perceptual(maps, a, b), sum(parts) / 2, rtol=1e-4, atol=1e-4)
    loss = objective(perceptual_weight=0.5)
    loss.maps = lambda x: [x[:, :, None, None].expand(-1, -1, 2, 2)]
    x = a[:, :3, 0, 0]
    value = 0.0625 + 0.5 * (2 - 2 * cosine(x + 0.25, x, dim=1))
    torch.testing.assert_close(loss(Doubled(), x, None, x, x[:, 0]), value, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("shape", "keys", "latent"),
    [
        ((1, 8, 8), {}, (3, 4, 4)),
        ((3, 12, 8), {"patch": 2}, (3, 3, 2)),
        ((1, 5, 7), {"multipliers": [1]}, (3, 5, 7)),
    ],
)
def test_the_latent_has_the_shape_that_is_said(shape, keys, latent):
    net = small(shape, latent=1 if not keys.get("patch") and len(keys) else 3, **keys)
    latent = (net.latent[0], *latent[1:])
    x = torch.randn(2, *shape)
    assert net.latent == latent and net.encode(x).shape == (2, *latent)
    assert net.decode(net.encode(x)).shape == x.shape == net(x).shape
    assert net.outer == shape and net.pixels and net.log_det() is None


def test_standardised_latents_have_mean_0_and_variance_1():
    net, x = small(), torch.rand(50, 1, 8, 8) * 2 - 1
    with torch.no_grad():
        z, before = net.encode(x), net(x)
        channels = z.double().transpose(0, 1).flatten(1).numpy()
        net.standardise(torch.tensor(channels.mean(1)), torch.tensor(channels.std(1)))
        z = net.encode(x).double().transpose(0, 1).flatten(1).numpy()
        np.testing.assert_allclose(z.mean(1), 0, atol=1e-5)
        np.testing.assert_allclose(z.std(1), 1, atol=1e-5)
        torch.testing.assert_close(net(x), before, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("net", [small(), LinearAutoencoder(shape=(2, 3), latent=2)])
def test_a_spec_and_a_state_make_the_same_codec(net):
    net.standardise(torch.arange(net.latent[0]), torch.arange(1, net.latent[0] + 1))
    twin = build(net.spec(), trust=())
    twin.load_state_dict(net.state_dict())
    x = torch.randn(3, *net.outer)
    assert torch.equal(twin(x), net(x)) and torch.equal(twin.encode(x), net.encode(x))


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: small((2,)), "choose model=linear_autoencoder for points"),
        (lambda: small((1, 7, 8)), "divide each side by 2, and 7x8 pixels cannot be"),
        (lambda: small(latent=5), r"a latent of shape \[5, 4, 4\] has more numbers than a sample"),
        (lambda: LinearAutoencoder(shape=(3,), latent=4), "has more numbers than a sample"),
        (lambda: small(patch=0), "model.patch=0 must be an integer >= 1"),
        (lambda: objective(distance="l3"), "objective.distance=l3 is unknown"),
        (lambda: objective(kl_weight=-1), "objective.kl_weight=-1 must be a number >= 0"),
        (lambda: objective(perceptual_weight=True), "objective.perceptual_weight=True must be"),
    ],
)
def test_slips_are_one_sentence(make, words):
    with pytest.raises(FmdiffError, match=words):
        make()


def test_the_maps_of_the_classifiers_are_those_of_their_features():
    features = named("features", "mnist")
    x = torch.rand(3, 1, 28, 28) * 2 - 1
    maps = features.maps(x)
    pixels = ((x + 1) * 127.5).round().to(torch.uint8)
    again = features.maps(pixels.float() / 127.5 - 1)
    torch.testing.assert_close(again[-1].mean((2, 3)), features(pixels.permute(0, 2, 3, 1))[0])
    sizes = [m.shape[-1] for m in maps]
    assert sizes == sorted(sizes, reverse=True) and len(sizes) > 1
