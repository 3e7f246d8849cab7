"""Likelihoods against closed forms: mixtures, Gaussians, normalisation, known bits."""

import math
from dataclasses import replace

import pytest
import torch
from conftest import PATHS, every_path
from torch import nn
from torch.distributions import MultivariateNormal, Normal

from fmdiff.build import named
from fmdiff.errors import FmdiffError
from fmdiff.exact import Empirical, Mixture, RealData
from fmdiff.field import Field, NetField
from fmdiff.guidance import CFG, ByClassifier
from fmdiff.likelihood import (
    Augmented,
    bits_per_dim,
    dequantise,
    draw,
    estimates,
    log_prob,
)
from fmdiff.path import VE, VP, CondOT, Cosine
from fmdiff.randomness import noise
from fmdiff.sampling import Sampler, view
from fmdiff.solvers.adaptive import Dopri5
from fmdiff.source import Hypersphere, Truncated
from fmdiff.source import Normal as NormalSource

F64 = {"dtype": torch.float64}
FINE = Dopri5(rtol=1e-6, atol=1e-6, max_nfe=5000)
SPREAD = (
    torch.tensor([0.5, 0.2, 0.3], dtype=torch.float64),
    torch.tensor([[1.0, 2.0, 0.0], [-2.0, 0.5, 1.0], [0.5, -1.5, -1.0]], dtype=torch.float64),
    torch.tensor(
        [
            [[0.6, 0.3, 0.0], [0.3, 0.4, 0.1], [0.0, 0.1, 0.2]],
            [[0.3, -0.2, 0.0], [-0.2, 0.9, 0.0], [0.0, 0.0, 0.5]],
            [[0.2, 0.0, 0.0], [0.0, 0.2, 0.0], [0.0, 0.0, 0.2]],
        ],
        dtype=torch.float64,
    ),
)
FOUR = named("data", "gmm4").mixture()


def density(mixture, path, x):
    """Of x_1 / alpha(1) at x, by torch's own normal laws."""
    t = torch.ones((), dtype=torch.float64)
    a, b = path.alpha(t), path.beta(t)
    terms = [
        w.log() + MultivariateNormal(m, c + (b / a) ** 2 * torch.eye(len(m)).double()).log_prob(x)
        for w, m, c in zip(*mixture, strict=True)
    ]
    return torch.stack(terms).logsumexp(0)


class Ideal(nn.Module):
    """What NetField needs to carry eps along CondOT to s eps, as the exact v of N(0, s^2 I) does.

    v = (t s^2 - (1 - t)) / (t^2 s^2 + (1 - t)^2) x_t; q is the source's std, known to NetField.
    """

    def __init__(self, s, q):
        super().__init__()
        self.s, self.q = s, q

    def forward(self, x, feature, y):
        t = (feature / 1000).view(-1, *[1] * (x.ndim - 1))
        gain = (t * self.s**2 - (1 - t)) / (t**2 * self.s**2 + (1 - t) ** 2)
        size = (t**2 * self.s**2 + (1 - t) ** 2 * self.q**2).sqrt()
        return gain * size / math.hypot(self.s, self.q) * x


def gaussian(s, shape, **more):
    q = more["source"].std if "source" in more else 1.0
    return NetField(Ideal(s, q), CondOT(), "v", s, 0.0, shape, **more)


@pytest.mark.parametrize("mixture", [FOUR, SPREAD], ids=["gmm4", "3d"])
@pytest.mark.parametrize("path", ["condot", "cosine", "polynomial", "vp", "ve", "edm"])
def test_of_a_mixture_it_is_its_density(mixture, path):
    field = Mixture(PATHS[path], *mixture)
    x = field.sample(0, 12, 1).double()
    found = estimates(field, x, None, Sampler(solver=FINE, **F64))
    assert found.exact and found.each.shape == (12, 1)
    wanted = density(mixture, PATHS[path], x)
    assert (found.each[:, 0] - wanted).abs().max() < 1e-4
    noise = PATHS[path].beta(torch.ones((), dtype=torch.float64)).item()
    assert found.t == pytest.approx(1) and found.noise == pytest.approx(noise)


def test_solvers_and_coordinates_agree_in_float32_too():
    field = Mixture(Cosine(), *SPREAD)
    x = field.sample(0, 8, 2)
    wanted = density(SPREAD, Cosine(), x.double())
    runs = (("rk4", 40), ("heun", 100), ("adams", 60), ("midpoint", 100))
    for solver, steps in runs:
        got = log_prob(field, x, solver=solver, steps=steps, **F64)
        assert (got - wanted).abs().max() < 1e-2, solver
    native = log_prob(field, x, solver="rk4", steps=40, coordinates="native", **F64)
    assert (native - wanted).abs().max() < 1e-3
    assert (log_prob(field, x) - wanted).abs().max() < 1e-3


def test_a_solver_converges_with_its_order():
    field = Mixture(CondOT(), *SPREAD)
    x = field.sample(0, 16, 2).double()
    wanted = density(SPREAD, CondOT(), x)
    for solver, order, steps in (("euler", 1, 100), ("heun", 2, 40), ("rk4", 4, 20)):
        coarse, fine = (
            (log_prob(field, x, solver=solver, steps=n, **F64) - wanted).abs().mean()
            for n in (steps, 2 * steps)
        )
        assert math.log2(coarse / fine) == pytest.approx(order, abs=0.5), solver


def test_a_sample_does_not_depend_on_its_batch():
    field = Mixture(VP(), *SPREAD)
    x = field.sample(0, 9, 3).double()
    options = {"divergence": "hutchinson", "probes": 3, "seed": 4}
    sampler = Sampler(solver="rk4", steps=5, **F64)
    whole = estimates(field, x, None, sampler, **options).each
    small = replace(sampler, batch_size=4)
    torch.testing.assert_close(estimates(field, x, None, small, **options).each, whole)
    part = estimates(field, x[5:], None, sampler, first=5, **options).each
    torch.testing.assert_close(part, whole[5:])
    fewer = estimates(field, x, None, sampler, **options | {"probes": 2}).each
    torch.testing.assert_close(fewer, whole[:, :2])


class Linear(Field):
    path, shape = CondOT(), (3,)

    def __init__(self, matrix):
        self.matrix = matrix

    def __call__(self, x_t, t):
        return torch.sin(5 * t) * x_t @ self.matrix.T


def test_divergence_of_a_linear_field():
    generator = torch.Generator().manual_seed(0)
    matrix = torch.randn(3, 3, generator=generator, dtype=torch.float64)
    state = torch.randn(5, 5, generator=generator, dtype=torch.float64)
    t = torch.tensor(0.3, dtype=torch.float64)
    slope = Augmented(Linear(matrix), None)(state[:, :4], t)
    torch.testing.assert_close(slope[:, 3], (torch.sin(5 * t) * matrix.trace()).expand(5))
    torch.testing.assert_close(slope[:, :3], Linear(matrix)(state[:, :3], t))
    probes = torch.randn(2, 5, 3, generator=generator, dtype=torch.float64)
    slope = Augmented(Linear(matrix), probes)(state, t)
    wanted = torch.sin(5 * t) * torch.einsum("pbi,ij,pbj->bp", probes, matrix, probes)
    torch.testing.assert_close(slope[:, 3:], wanted)


@pytest.mark.parametrize("probe", ["rademacher", "gaussian"])
def test_probes_have_mean_0_and_covariance_1(probe):
    w = draw(probe, 1, 0, torch.empty(20_000, 3), 0)[0].double()
    assert w.mean(0).abs().max() < 4 / 20_000**0.5
    assert (w.T @ w / len(w) - torch.eye(3)).abs().max() < 4 * 2**0.5 / 20_000**0.5
    assert probe == "gaussian" or (w.abs() == 1).all()


@pytest.mark.parametrize("probe", ["rademacher", "gaussian"])
def test_hutchinson_is_unbiased_and_knows_its_error(probe):
    field = Mixture(CondOT(), *SPREAD)
    x = field.sample(0, 1, 6).double().expand(400, 3)
    sampler = Sampler(solver="rk4", steps=12, batch_size=400, **F64)
    truth = estimates(field, x[:1], None, sampler).each
    options = {"divergence": "hutchinson", "probes": 12, "probe": probe, "seed": 8}
    each = estimates(field, x, None, sampler, **options).each
    all_of_them = each.flatten()
    error = all_of_them.std() / len(all_of_them) ** 0.5
    assert error > 0 and (all_of_them.mean() - truth).abs() < 4 * error
    # the squared error stated is, on average, the variance of what it is stated of
    stated, true = (each.var(1) / 12).mean(), (each.mean(1) - truth).square().mean()
    assert 0.6 < stated / true < 1.6


def test_fixed_probes_give_one_estimate_whatever_the_steps():
    field = Mixture(CondOT(), *SPREAD)
    x = field.sample(0, 20, 6).double()
    options = {"divergence": "hutchinson", "seed": 1, **F64}
    coarse, fine, adaptive = (
        log_prob(field, x, **options, **more)
        for more in (
            {"solver": "rk4", "steps": 40},
            {"solver": "rk4", "steps": 80},
            {"solver": FINE},
        )
    )
    other = log_prob(field, x, solver=FINE, **options | {"seed": 2})
    assert (coarse - fine).abs().max() < 1e-3
    assert (fine - adaptive).abs().max() < 1e-4
    assert (adaptive - other).abs().mean() > 0.05


# Networks, sources, guidance, labels


@pytest.mark.parametrize("coupled", [False, True])
def test_of_a_network_the_source_is_the_prior(coupled):
    field = gaussian(0.4, (2,), coupled=coupled)
    x = 0.4 * noise(0, 10, (2,), 0, "x").double()
    wanted = Normal(0.0, 0.4).log_prob(x).sum(1)
    assert (log_prob(field, x, **F64) - wanted).abs().max() < 1e-4


@every_path
def test_the_prior_is_the_law_of_the_states_a_network_starts_from(path):
    field = view(NetField(nn.Identity(), path, "v", 0.7, 1e-3, (2,)), "straight")
    lo = torch.tensor(field.interval()[0], dtype=torch.float64)
    eps = noise(0, 5, (2,), 0, "x").double()
    z = field.start(eps, lo, 0, 0)
    scale = (z / eps)[0, 0]
    torch.testing.assert_close(field.prior(z, lo), Normal(0.0, scale).log_prob(z).sum(1))


def test_of_a_truncated_source():
    source = Truncated(1.5)
    eps = source.push(noise(0, 50, (2,), 0, "x").double())
    eps[0, 0] = 1.6
    got = log_prob(gaussian(0.4, (2,), source=source), 0.4 * eps, **F64)
    inside = math.erf(1.5 / math.sqrt(2))
    wanted = (Normal(0.0, 1.0).log_prob(eps) - math.log(inside) - math.log(0.4)).sum(1)
    assert got[0] == -math.inf
    assert (got - wanted)[1:].abs().max() < 1e-4


@pytest.mark.parametrize("bound", [0.5, 1.5, 3.0])
def test_truncated_density_is_normalised_and_that_of_its_samples(bound):
    source = Truncated(bound)
    eps = torch.linspace(-bound, bound, 20_001, dtype=torch.float64)
    p = source.log_prob(eps[:, None]).exp()
    assert torch.trapezoid(p, eps).item() == pytest.approx(1, abs=1e-6)
    assert torch.trapezoid(p * eps**2, eps).item() == pytest.approx(source.std**2, abs=1e-6)
    assert source.log_prob(torch.tensor([[1.01 * bound]])).item() == -math.inf
    log_p = Normal(0.0, 1.0).log_prob(eps[:, None].expand(-1, 2)).sum(1)
    torch.testing.assert_close(NormalSource().log_prob(eps[:, None].expand(-1, 2)), log_p)


def test_a_guided_density_is_normalised():
    means = torch.tensor([[-1.0], [1.0]], dtype=torch.float64)
    weights, covs = torch.ones(2).double() / 2, 0.3 * torch.ones(2, 1, 1).double()
    field = Mixture(CondOT(), weights, means, covs, torch.arange(2))
    x = torch.linspace(-6, 10, 1601, dtype=torch.float64)
    y = torch.ones(len(x), dtype=torch.int64)
    densities = [
        log_prob(field, x[:, None], y, guidance=CFG(w), solver="rk4", steps=40, **F64).exp()
        for w in (1, 3)
    ]
    for p in densities:
        assert torch.trapezoid(p, x).item() == pytest.approx(1, abs=2e-3)
    wanted = Normal(1.0, 0.3**0.5).log_prob(x).exp()
    assert (densities[0] - wanted).abs().max() < 1e-4
    assert (densities[1] - wanted).abs().max() > 0.05


@pytest.mark.parametrize("path", [CondOT(), VE()], ids=["condot", "ve"])
def test_labels_pick_their_components_and_none_is_all(path):
    field = Mixture(path, *SPREAD, torch.tensor([0, 1, 0]))
    x = field.sample(0, 12, 1).double()
    y = torch.arange(12) % 2
    got = log_prob(field, x, y, solver=FINE, **F64)
    weights, means, covs = SPREAD
    for label, parts in ((0, [0, 2]), (1, [1])):
        own = weights[parts] / weights[parts].sum(), means[parts], covs[parts]
        wanted = density(own, path, x)
        assert (got - wanted)[y == label].abs().max() < 1e-4
    whole = log_prob(field, x, solver=FINE, **F64)
    assert (whole - density(SPREAD, path, x)).abs().max() < 1e-4


def test_of_a_finite_data_set_it_is_that_of_noisy_data():
    data = noise(0, 5, (2,), 0, "data").double()
    field = Empirical(CondOT(), data, torch.arange(5) % 2, 2)
    t = torch.tensor(field.interval()[1], dtype=torch.float64)
    spread = (1 - t) / t
    x = data + 0.5 * spread * noise(0, 5, (2,), 0, "off").double()
    found = estimates(field, x, None, Sampler(solver=FINE, **F64))
    assert found.t == pytest.approx(t.item()) and found.noise == pytest.approx(spread.item())
    eye = torch.eye(2).double()
    terms = torch.stack([MultivariateNormal(m, spread**2 * eye).log_prob(x) for m in data])
    assert (found.each[:, 0] - terms.logsumexp(0) + math.log(5)).abs().max() < 1e-3
    own = log_prob(field, x, torch.arange(5) % 2, solver=FINE, **F64)
    # the points are far apart: of its own label's 3 or 2 a sample has a larger share than of 5
    shares = torch.tensor([3, 2, 3, 2, 3]).log()
    assert (own - terms.logsumexp(0) + shares).abs().max() < 1e-3


# Bits


def test_bits_of_known_laws():
    shape = (1, 4, 4)
    # uniform over the 256 bins of width 1 / 127.5
    assert bits_per_dim(16 * math.log(256 / 127.5), shape) == pytest.approx(8)
    assert bits_per_dim(2 * math.log(2), (2,)) == pytest.approx(1)


def test_dequantised_pixels_are_uniform_over_their_bins():
    pixels = torch.arange(256).repeat(40).reshape(160, 1, 8, 8)
    x = dequantise(pixels / 127.5 - 1, 3)
    offset = (x + 1) * 127.5 - pixels
    assert offset.abs().max() <= 0.5 + 1e-4  # pixels come in float32
    u = (offset + 0.5).flatten().sort().values
    ranks = (torch.arange(len(u)) + 0.5) / len(u)
    assert (u - ranks).abs().max() < 1.95 / len(u) ** 0.5  # Kolmogorov and Smirnov, 0.1 %
    torch.testing.assert_close(dequantise(pixels[7:9] / 127.5 - 1, 3, 7), x[7:9])


def test_bits_of_pixels_under_a_gaussian():
    """Against the probability of each pixel's bin, which the bound meets as bins are narrow."""
    shape, s = (1, 8, 8), 0.5
    pixels = torch.randint(256, (32, *shape), generator=torch.Generator().manual_seed(0))
    x = pixels / 127.5 - 1
    sampler = Sampler(solver="rk4", steps=40, **F64)
    found = estimates(gaussian(s, shape), dequantise(x, 0), None, sampler, divergence="exact")
    bits = torch.tensor([bits_per_dim(-v, shape) for v in found.each[:, 0].tolist()])
    edges = (pixels.double() + torch.tensor([-0.5, 0.5]).view(2, 1, 1, 1, 1)) / 127.5 - 1
    low, high = torch.special.ndtr(edges / s)
    wanted = -(high - low).log2().flatten(1).mean(1)
    assert abs((bits - wanted).mean().item()) < 4 * (bits - wanted).std().item() / 32**0.5
    assert (bits - wanted).abs().max() < 0.02


# Refusals


def refusal(field=None, x=None, **options):
    field = field or Mixture(CondOT(), *SPREAD)
    with pytest.raises(FmdiffError) as caught:
        log_prob(field, torch.zeros(2, 3) if x is None else x, **options)
    return str(caught.value)


def test_refusals():
    assert "stochastic" in refusal(solver="euler_maruyama")
    assert "estimate of x" in refusal(solver="dpmpp_2m")
    assert "leave steps out" in refusal(solver="dopri5", steps=10)
    assert "divergence=trace" in refusal(divergence="trace")
    assert "probe=uniform" in refusal(probe="uniform")
    assert "shape" in refusal(x=torch.zeros(2, 2))
    sphere = gaussian(0.4, (3,), source=Hypersphere())
    assert "Hypersphere has no known density" in refusal(sphere)

    class Data:
        shape, classes, codec, conditions = (3,), 0, None, {}

    assert "RealData has no density" in refusal(RealData(Data()))
    assert "needs a model trained with classes" in refusal(guidance=CFG(2.0))
    classifier = object.__new__(ByClassifier)  # not loaded: refused before it is asked
    assert "guidance=classifier has no way back" in refusal(guidance=classifier)
