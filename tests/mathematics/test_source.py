"""Laws of the sources against scipy and closed forms."""

import math
from pathlib import Path

import numpy as np
import pytest
import scipy.stats
import torch

from fmdiff.build import named
from fmdiff.errors import FmdiffError
from fmdiff.randomness import noise
from fmdiff.source import Hypersphere, Normal, Source, Truncated

CONFIGS = Path(__file__).parents[2] / "configs" / "source"
NAMES = sorted(path.stem for path in CONFIGS.glob("*.yaml"))
N = 20_000


def make(name, **keys):
    return named("source", name, **({"data": "8gaussians"} | keys if name == "data" else keys))


def normal(n, shape=(2,), seed=0, first=0):
    return noise(first, first + n, shape, seed, "start")


every_source = pytest.mark.parametrize("name", NAMES)


@every_source
def test_a_source_keeps_shape_and_type_and_tells_its_std(name):
    source = make(name)
    assert isinstance(source, Source) and type(source).gaussian == (name == "normal")
    source.check((2,))
    z = normal(N)
    for eps in (source.batch(z, 0, 1), source.sample(z, 0, 0)):
        assert eps.shape == z.shape and eps.dtype == torch.float32
        squares = eps.double().square().mean(1)
        error = squares.std().item() / math.sqrt(N)
        # the std of a data set is itself of 10,000 draws
        assert squares.mean().item() == pytest.approx(source.std**2, abs=7 * error + 1e-6)
    assert source.sample(z[:5].double(), 0, 0).dtype == torch.float64


@every_source
def test_a_sample_does_not_depend_on_how_the_batches_are_split(name):
    source, z = make(name), normal(150)
    whole = source.sample(z, 40, 7)
    parts = [source.sample(z[i:j], 40 + i, 7) for i, j in ((0, 1), (1, 70), (70, 150))]
    torch.testing.assert_close(torch.cat(parts), whole, rtol=1e-6, atol=1e-6)
    assert torch.equal(whole, make(name).sample(z, 40, 7))


@every_source
def test_a_training_batch_is_a_function_of_z_seed_and_step(name):
    source, z = make(name), normal(90)
    one = source.batch(z, 3, 4)
    source.batch(normal(30), 3, 5)  # batches of another size in between
    assert torch.equal(one, source.batch(z, 3, 4))
    assert torch.equal(one, make(name).batch(z, 3, 4))


def test_the_normal_source_is_z():
    z = normal(4)
    assert Normal().batch(z, 0, 0) is z and Normal().sample(z, 0, 0) is z


@pytest.mark.parametrize("shape", [(2,), (5,), (3, 2, 2)])
def test_the_sphere_has_its_radius_and_is_uniform(shape):
    d = math.prod(shape)
    eps = Hypersphere().sample(normal(N, shape), 0, 0).double().flatten(1)
    torch.testing.assert_close(
        eps.norm(dim=1), torch.full((N,), d**0.5).double(), rtol=1e-6, atol=0
    )
    assert (eps.mean(0).abs() < 4 / math.sqrt(N)).all()
    second = (eps.T @ eps) / N - torch.eye(d)
    assert (second.abs() < 4 * math.sqrt(2) / math.sqrt(N)).all()
    # on a sphere of d dimensions (x_1 / radius)^2 ~ Beta(1/2, (d - 1)/2)
    square = (eps[:, 0].square() / d).numpy()
    assert scipy.stats.kstest(square, scipy.stats.beta(0.5, (d - 1) / 2).cdf).pvalue > 1e-3


@pytest.mark.parametrize("bound", [0.01, 0.5, 2.0, 9.0])
def test_truncated_elements_are_a_truncated_normal(bound):
    source = Truncated(bound)
    exact = scipy.stats.truncnorm(-bound, bound)
    eps = source.sample(normal(N), 0, 0)
    assert eps.abs().max() <= bound
    assert scipy.stats.kstest(eps.double().flatten().numpy(), exact.cdf).pvalue > 1e-3
    assert source.std == pytest.approx(exact.std(), rel=1e-6)


def test_truncation_is_increasing_and_exact_into_the_tails():
    z = torch.linspace(-9, 9, 181, dtype=torch.float64)[:, None]
    exact = scipy.stats.truncnorm(-2, 2)
    left = z[z <= 0].numpy()
    ours = Truncated(2.0).push(z)
    assert (ours.diff(dim=0) >= 0).all() and torch.equal(ours, -Truncated(2.0).push(-z))
    np.testing.assert_allclose(
        ours[z <= 0].numpy(), exact.ppf(scipy.stats.norm.cdf(left)), rtol=1e-9, atol=1e-15
    )
    torch.testing.assert_close(Truncated(30.0).push(z), z, rtol=1e-9, atol=1e-12)


def test_a_data_source_is_that_data_but_not_the_rows_of_the_target():
    """The same data set as source and target of one seed: no row is shared or correlated."""
    source, target = make("data"), named("data", "8gaussians", batch_size=N)
    z = normal(N)
    for eps, x in (
        (source.batch(z, 3, 5), target.batch(3, 5)[0]),
        (source.sample(z, 0, 3), target.sample(0, N, 3)[0]),
    ):
        assert not target.off_support(eps).float().mean() > 0.002
        for i in range(2):
            r, error = np.corrcoef(eps[:, i], x[:, i])[0, 1], 1 / math.sqrt(N)
            assert abs(r) < 4 * error
            assert scipy.stats.ks_2samp(eps[:, i], x[:, i]).pvalue > 1e-3
        assert not (eps == x).any()


def test_a_data_source_of_images_has_their_rows():
    source = make("data", data="digits")
    source.check((1, 8, 8))
    eps = source.batch(normal(16, (1, 8, 8)), 0, 0)
    assert eps.shape == (16, 1, 8, 8) and eps.abs().max() <= 1
    train = named("data", "digits").train[0]
    assert (eps[0] == (train.float() / 127.5 - 1)).flatten(1).all(1).any()


def test_only_keeps_the_chosen_labels():
    source = make("data", data="two_modes", only=[1])  # the mode at 5 of those at -5 and 5
    z = normal(500, (1,))
    for eps in (source.batch(z, 0, 0), source.sample(z, 0, 0)):
        assert eps.shape == (500, 1) and (eps > 0).all()
    assert source.std == pytest.approx(math.sqrt(5**2 + 0.3**2), rel=0.01)
    with pytest.raises(FmdiffError, match=r"source\.data=two_modes: .*only=\[9\]"):
        make("data", data="two_modes", only=[9])


def test_another_shape_is_refused():
    with pytest.raises(FmdiffError, match=r"source\.data=8gaussians .*\(2,\).*\(1, 8, 8\)"):
        make("data").check((1, 8, 8))


@pytest.mark.parametrize("bound", [0.0, -2.0, math.inf, math.nan, "wide"])
def test_a_bad_bound_is_refused(bound):
    with pytest.raises(FmdiffError, match=rf"source\.bound={bound} must be"):
        make("truncated", bound=bound)


def test_an_unknown_data_set_is_refused():
    with pytest.raises(FmdiffError, match=r"source\.data=8gausians.*did you mean '8gaussians'"):
        make("data", data="8gausians")
