"""Series through paths, solvers and likelihood, against the exact field of an autoregression."""

import math

import numpy as np
import pytest
import torch
from scipy.optimize import linear_sum_assignment

import fmdiff
from fmdiff.build import named, spec_of
from fmdiff.custom import from_spec
from fmdiff.exact import ArrayMixture, Mixture, exact
from fmdiff.inversion import decode, encode
from fmdiff.sampling import Sampler

LENGTH = 8


def series(path="condot"):
    """The data, and their exact field along a path."""
    data = named("data", "ar1", length=LENGTH)
    return data, exact(data, from_spec(spec_of("path", path)))


def covariance(data):
    places = torch.arange(LENGTH)
    return data.autocovariance((places[:, None] - places).abs())


def test_the_field_of_series_is_that_of_the_points_they_are():
    data, field = series("vp")
    points = Mixture(field.path, *data.mixture())
    draws = torch.Generator().manual_seed(0)
    x = torch.randn(5, 1, LENGTH, generator=draws, dtype=torch.float64)
    t, s = torch.rand(2, 5, generator=draws, dtype=torch.float64)
    assert isinstance(field, ArrayMixture) and field.shape == (1, LENGTH)
    for kind in ("x", "eps", "v", "score"):
        expected = points.predict(x[:, 0], t, kind)[:, None]
        assert torch.equal(field.predict(x, t, kind), expected)
    jump = points.flow(x[:, 0], t, s)[:, None]
    torch.testing.assert_close(field.flow(x, t, s), jump, rtol=0, atol=1e-12)
    assert torch.equal(field.log_prob(x, t), points.log_prob(x[:, 0], t))
    assert torch.equal(field.sample(3, 9, 1), points.sample(3, 9, 1)[:, None])


@pytest.mark.parametrize("path", ["condot", "cosine", "vp", "edm"])
@pytest.mark.parametrize("solver", ["heun", "rk4", "adams", "dopri5", "dpm_2"])
def test_solvers_carry_noise_to_the_covariance_of_the_series(solver, path):
    """The flow of one Gaussian is linear, so its matrix follows from the unit vectors."""
    data, field = series(path)
    sampler = Sampler(solver=solver, steps=60, dtype=torch.float64)
    unit = torch.eye(LENGTH, dtype=torch.float64)[:, None]
    start = field.path.mix(0 * unit, unit, torch.zeros(()).double())
    if path in ("vp", "edm"):  # their start is a sample of p_0, which is nearly the noise
        start = unit * field.path.row("x_t", torch.zeros(()).double())[1]
    flow = sampler.draw(field, x_start=start).x.double()[:, 0]
    error = (flow.T @ flow - covariance(data)).abs().max()
    assert error < 0.02, error


def test_the_likelihood_of_series_is_the_exact_density():
    data, field = series()
    x = data.sample(0, 20, 0)[0]
    normal = torch.distributions.MultivariateNormal(
        torch.zeros(LENGTH, dtype=torch.float64), covariance(data)
    )
    expected = normal.log_prob(x[:, 0].double())
    found = fmdiff.log_prob(field, x, steps=60, dtype=torch.float64)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-3)


def test_series_go_to_noise_and_back():
    data, field = series()
    x = data.sample(0, 20, 0)[0].double()
    view = Sampler(dtype=torch.float64).seen(field, None)
    noise = encode(view, x, named("solver", "rk4"), 60)
    white = torch.linalg.solve_triangular(
        torch.linalg.cholesky(covariance(data)), x[:, 0].T, upper=False
    )
    lengths = white.square().sum(0)  # of one Gaussian the flow keeps the Mahalanobis distance
    torch.testing.assert_close(noise[:, 0].square().sum(1), lengths, rtol=1e-3, atol=0)
    torch.testing.assert_close(
        decode(view, noise, named("solver", "rk4"), 60), x, atol=1e-4, rtol=0
    )


def test_transport_pairs_series_by_all_their_places():
    draws = torch.Generator().manual_seed(0)
    x, eps = torch.randn(2, 12, 3, 5, generator=draws)
    index = named("coupling", "ot")(x, eps, None, 0, 0)
    cost = (x.flatten(1)[:, None] - eps.flatten(1)).square().sum(2).numpy()
    assert index.tolist() == linear_sum_assignment(cost)[1].tolist()


@pytest.mark.parametrize("name", ["hypersphere", "truncated"])
def test_sources_make_series(name):
    source = named("source", name)
    source.check((3, 5))
    eps = source.push(torch.randn(2000, 3, 5, generator=torch.Generator().manual_seed(0)))
    assert eps.shape == (2000, 3, 5)
    if name == "hypersphere":
        norms = eps.flatten(1).norm(dim=1)
        torch.testing.assert_close(norms, torch.full((2000,), math.sqrt(15)))
    else:
        assert eps.abs().max() <= source.bound
        assert eps.std().item() == pytest.approx(source.std, rel=0.02)


def test_the_empirical_field_of_series_ends_at_one_of_them():
    data = named("data", "ar1", length=LENGTH)
    field = named("model", "empirical", data=data, path=fmdiff.path.CondOT(), n=10)
    known = data.examples(10)[0]
    samples = fmdiff.generate(field, n=6, steps=40).x
    nearest = torch.cdist(samples.flatten(1), known.flatten(1)).amin(1)
    assert samples.shape == (6, 1, LENGTH) and nearest.max() < 0.05
    assert np.isfinite(samples.numpy()).all()
