"""Exact fields against densities, gradients, quadrature and the continuity equation."""

import math

import pytest
import torch
from conftest import COVS, MEANS, WEIGHTS, every_path
from torch.distributions import MultivariateNormal

from fmdiff.build import named
from fmdiff.condition import Form
from fmdiff.errors import FmdiffError
from fmdiff.exact import Empirical, Mixture, RealData, exact
from fmdiff.path import VE, VP, CondOT, Cosine

LABELS = torch.tensor([0, 1, 0])
KINDS = ("x", "eps", "v", "score", "v_sh", "straight")


def mixture(path, **more):
    return Mixture(path, WEIGHTS, MEANS, COVS, **more)


def points(n, path, t, seed=0):
    """Points where p_t has its mass, and t as float64."""
    generator = torch.Generator().manual_seed(seed)
    t = torch.as_tensor(t, dtype=torch.float64)
    x = MEANS[torch.randint(3, (n,), generator=generator)]
    noise = torch.randn(2, n, 2, generator=generator, dtype=torch.float64)
    return path.mix(x + 0.7 * noise[0], noise[1], t), t


def brute_log_prob(path, x, t):
    a, b = path.alpha(t), path.beta(t)
    terms = [
        w.log() + MultivariateNormal(a * m, a**2 * c + b**2 * torch.eye(2).double()).log_prob(x)
        for w, m, c in zip(WEIGHTS, MEANS, COVS, strict=True)
    ]
    return torch.stack(terms).logsumexp(0)


@every_path
@pytest.mark.parametrize("t", [0.0, 0.2, 0.7, 1.0])
def test_log_prob_and_score_are_those_of_the_density(path, t):
    x, t = points(20, path, t)
    x.requires_grad_()
    log_p = brute_log_prob(path, x, t)
    (score,) = torch.autograd.grad(log_p.sum(), x)
    field = mixture(path)
    torch.testing.assert_close(field.log_prob(x, t), log_p, rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(field.predict(x, t, "score"), score, rtol=1e-8, atol=1e-10)


@every_path
def test_posterior_mean_is_an_integral(path):
    weights, means = torch.tensor([0.3, 0.7]).double(), torch.tensor([[-1.0], [1.5]]).double()
    variances = torch.tensor([0.3, 0.1]).double()
    field = Mixture(path, weights, means, variances[:, None, None])
    x = torch.linspace(-8, 8, 40_001, dtype=torch.float64)
    prior = sum(
        w * torch.distributions.Normal(m, v.sqrt()).log_prob(x).exp()
        for w, m, v in zip(weights, means[:, 0], variances, strict=True)
    )
    for t in (0.1, 0.5, 0.85):
        t = torch.tensor(t, dtype=torch.float64)
        a, b = path.alpha(t), path.beta(t)
        for x_t in (-0.9, 0.1, 1.2):
            x_t = a * x_t
            density = prior * torch.exp(-0.5 * ((x_t - a * x) / b) ** 2)
            mean_x = (x * density).sum() / density.sum()
            mean_eps = ((x_t - a * x) / b * density).sum() / density.sum()
            at = x_t.view(1, 1)
            assert field.predict(at, t, "x").item() == pytest.approx(mean_x.item(), abs=1e-8)
            assert field.predict(at, t, "eps").item() == pytest.approx(mean_eps.item(), abs=1e-8)


@every_path
def test_the_kinds_agree_with_each_other(path):
    field, (x_t, t) = mixture(path), points(10, path, 0.6)
    for source in KINDS:
        value = field.predict(x_t, t, source)
        for target in KINDS:
            got = path.convert(value, x_t, t, source, target)
            torch.testing.assert_close(got, field.predict(x_t, t, target), rtol=1e-8, atol=1e-9)
    torch.testing.assert_close(field(x_t, t), field.predict(x_t, t, "v"))


@every_path
@pytest.mark.parametrize("y", [None, 1], ids=["all", "one_class"])
def test_continuity_equation(path, y):
    """dp/dt + div(p v) = 0, every derivative by autodiff."""
    bound = None if y is None else torch.tensor([y])
    field = mixture(path, labels=LABELS, y=bound)

    def density(x, t):
        return field.log_prob(x[None], t).exp()[0]

    def flux(x, t):
        return density(x, t) * field(x[None], t)[0]

    rate = torch.func.vmap(torch.func.jacrev(density, argnums=1))
    divergence = torch.func.vmap(torch.func.jacrev(flux, argnums=0))
    for t in (0.05, 0.3, 0.6, 0.95):
        x, t = points(40, path, t)
        d_p = rate(x, t.expand(len(x)))
        div = divergence(x, t.expand(len(x))).diagonal(dim1=1, dim2=2).sum(-1)
        assert (d_p + div).abs().max() < 1e-6 * d_p.abs().max()
        assert d_p.abs().max() > 0


@pytest.mark.parametrize("path", [CondOT(), VP(), VE()], ids=["condot", "vp", "ve"])
@pytest.mark.parametrize("t", [0.0, 0.4, 1.0])
def test_start_draws_from_p_t(path, t):
    n, t = 20_000, torch.tensor(t, dtype=torch.float64)
    eps = torch.randn(n, 2, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    x = mixture(path).start(eps, t, 0, seed=1)
    a, b = path.alpha(t), path.beta(t)
    mean = (WEIGHTS[:, None] * MEANS).sum(0)
    second = COVS + MEANS[:, :, None] * MEANS[:, None]
    cov = (WEIGHTS[:, None, None] * second).sum(0) - mean[:, None] * mean
    centred = x - a * mean
    products = centred[:, :, None] * centred[:, None]
    assert ((centred.mean(0)).abs() < 4 * centred.std(0) / n**0.5).all()
    wanted = a**2 * cov + b**2 * torch.eye(2)
    assert ((products.mean(0) - wanted).abs() < 4 * products.std(0) / n**0.5).all()


def test_sample_is_a_function_of_seed_and_index_and_has_the_right_modes():
    field = mixture(CondOT())
    x = field.sample(0, 20_000, 5)
    assert x.dtype == torch.float32
    assert torch.equal(field.sample(100, 131, 5), x[100:131])
    assert not torch.equal(field.sample(0, 10, 6), x[:10])
    shares = torch.cdist(x.double(), MEANS).argmin(1).bincount(minlength=3) / len(x)
    narrow = Mixture(CondOT(), WEIGHTS, MEANS, 1e-6 * COVS).sample(0, 20_000, 5).double()
    shares = torch.cdist(narrow, MEANS).argmin(1).bincount(minlength=3) / len(x)
    error = (WEIGHTS * (1 - WEIGHTS) / len(x)).sqrt()
    assert ((shares - WEIGHTS).abs() < 4 * error).all()


@every_path
def test_a_label_picks_its_components_and_the_null_label_all(path):
    whole = mixture(path, labels=LABELS)
    assert whole.classes == 2
    of_class_0 = Mixture(path, WEIGHTS[[0, 2]], MEANS[[0, 2]], COVS[[0, 2]])
    of_class_1 = Mixture(path, WEIGHTS[1:2], MEANS[1:2], COVS[1:2])
    x_t, t = points(6, path, 0.5)
    for kind in KINDS:
        got = whole.bind(torch.tensor([0, 1, 2, 0, 1, 2])).predict(x_t, t, kind)
        for i, reference in enumerate([of_class_0, of_class_1, mixture(path)] * 2):
            wanted = reference.predict(x_t[i : i + 1], t, kind)
            torch.testing.assert_close(got[i : i + 1], wanted, rtol=1e-10, atol=1e-12)


def test_starts_of_a_class_are_of_that_class():
    y = torch.tensor([0, 1, 2] * 200)
    eps, one = torch.zeros(600, 2).double(), torch.tensor(1.0).double()
    narrow = Mixture(CondOT(), WEIGHTS, MEANS, 1e-6 * COVS, LABELS).bind(y)
    nearest = torch.cdist(narrow.start(eps, one, 0, 0), MEANS).argmin(1)
    for label, members in ((0, {0, 2}), (1, {1}), (2, {0, 1, 2})):
        assert set(nearest[y == label].tolist()) == members
    data = Empirical(CondOT(), MEANS, LABELS, 2).bind(y)
    nearest = torch.cdist(data.start(eps, one, 0, 0), MEANS).argmin(1)
    for label, members in ((0, {0, 2}), (1, {1}), (2, {0, 1, 2})):
        assert set(nearest[y == label].tolist()) == members


@pytest.mark.parametrize("t", [0.3, 0.8])
def test_float32_and_every_shape_of_t_agree(t):
    field = mixture(VP(), labels=LABELS, y=torch.tensor([0, 1, 2]))
    x, t = points(3, VP(), t)
    wanted = field.predict(x, t, "v")
    torch.testing.assert_close(field.predict(x, t.expand(3), "v"), wanted)
    single = field.predict(x.float(), t, "v")  # what a solver asks
    assert single.dtype == torch.float32
    torch.testing.assert_close(single.double(), wanted, rtol=1e-4, atol=1e-4)
    assert field.predict(x.float(), t.float().expand(3), "v").dtype == torch.float32


@every_path
def test_exact_fields_are_finite_over_their_interval(path):
    field = mixture(path)
    for kind in KINDS:
        for t in field.interval(kind):
            x_t, t = points(10, path, t)
            assert field.predict(x_t, t, kind).isfinite().all()
    assert field.interval("straight") == (0, 1)
    if path.d_beta(torch.tensor(0.999999, dtype=torch.float64)) > -100:
        assert field.interval("v") == (0, 1)


@every_path
def test_empirical_is_a_mixture_of_points(path):
    generator = torch.Generator().manual_seed(2)
    data = torch.randn(7, 2, generator=generator, dtype=torch.float64)
    labels = torch.tensor([0, 1, 2, 0, 1, 2, 0])
    points_ = torch.full((7,), 1 / 7).double()
    reference = Mixture(path, points_, data, torch.zeros(7, 2, 2).double(), labels)
    field = Empirical(path, data, labels, 3)
    y = torch.tensor([0, 1, 2, 3] * 3)
    for t in (0.2, 0.7, 0.95):
        x_t, t = points(12, path, t)
        for one, other in ((field, reference), (field.bind(y), reference.bind(y))):
            for kind in ("x", "v", "score"):
                a, b = one.predict(x_t, t, kind), other.predict(x_t, t, kind)
                torch.testing.assert_close(a, b, rtol=1e-7, atol=1e-7)
                each = one.predict(x_t, t.expand(12), kind)
                torch.testing.assert_close(each, a, rtol=1e-10, atol=1e-10)


def test_empirical_is_a_softmax_over_images():
    generator = torch.Generator().manual_seed(2)
    images = torch.randn(5, 1, 3, 3, generator=generator, dtype=torch.float64)
    x_t = torch.randn(4, 1, 3, 3, generator=generator, dtype=torch.float64)
    t, path = torch.tensor(0.4).double(), Cosine()
    a, b = math.sin(math.pi * 0.2), math.cos(math.pi * 0.2)
    wanted = []
    for z in x_t:
        log_w = [-(((z - a * image) ** 2).sum()).item() / (2 * b * b) for image in images]
        w = [math.exp(v - max(log_w)) for v in log_w]
        wanted.append(sum(c * image for c, image in zip(w, images, strict=True)) / sum(w))
    got = Empirical(path, images, None, 0).predict(x_t, t, "x")
    torch.testing.assert_close(got, torch.stack(wanted), rtol=1e-6, atol=1e-6)


def test_empirical_does_not_depend_on_how_rows_are_split():
    data = torch.linspace(-3, 3, 2**21, dtype=torch.float64)[:, None]  # 8 rows at a time
    field = Empirical(CondOT(), data, torch.arange(2**21) % 2, 2)
    x_t = torch.linspace(-2, 2, 9, dtype=torch.float64)[:, None]
    t = torch.linspace(0.1, 0.5, 9, dtype=torch.float64)
    y = torch.tensor([0, 1, 2] * 3)
    whole = field.bind(y).predict(x_t, t, "x")
    for i in (8,):
        alone = field.bind(y[i : i + 1]).predict(x_t[i : i + 1], t[i : i + 1], "x")
        torch.testing.assert_close(whole[i : i + 1], alone, rtol=1e-9, atol=1e-9)


class Toy:
    classes, shape, only, codec, conditions = 3, (2,), None, None, {}

    def joint(self):
        return WEIGHTS, MEANS, COVS

    def sample(self, start, stop, seed):
        return torch.arange(start, stop)[:, None].expand(-1, 2).float(), torch.arange(start, stop)


def test_exact_takes_the_densities_of_a_data_set():
    field = exact(Toy(), CondOT())
    x_t, t = points(4, CondOT(), 0.5)
    torch.testing.assert_close(field.log_prob(x_t, t), mixture(CondOT()).log_prob(x_t, t))
    assert field.classes == 3
    with pytest.raises(FmdiffError, match="gmm4"):
        exact(named("data", "moons"), CondOT())


def test_conditions_without_a_closed_form_are_refused():
    data = Toy()
    data.conditions = {"low": Form((1, 2, 2))}
    with pytest.raises(FmdiffError, match="cannot be given low"):
        exact(data, CondOT())


def test_real_data_are_already_at_the_end():
    field = RealData(Toy())
    assert field.interval() == (1, 1)
    x = field.start(torch.zeros(3, 2), torch.tensor(1.0), 4, 0)
    assert x[:, 0].tolist() == [4, 5, 6]
    with pytest.raises(FmdiffError, match="classes"):
        field.labels([1], 0, 3, 0)
