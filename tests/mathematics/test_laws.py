"""Laws of flow matching on exact mixtures: two losses with one gradient, the Fokker-Planck
equation of every SDE, and one straight path behind all paths."""

import pytest
import torch
from conftest import COVS, MEANS, PATHS, WEIGHTS, every_path, some_paths

from fmdiff import generate, load
from fmdiff.along import Along
from fmdiff.exact import Mixture
from fmdiff.path import VE, VP, CondOT, Cosine, Polynomial
from fmdiff.randomness import generator
from fmdiff.solvers.stochastic import DIFFUSIONS, EulerMaruyama


def mixture(path):
    return Mixture(path, WEIGHTS, MEANS, COVS)


def gmm4(path):
    means = torch.tensor([[-2.0, -2], [-2, 2], [2, -2], [2, 2]], dtype=torch.float64)
    covs = 0.16 * torch.eye(2, dtype=torch.float64).expand(4, 2, 2)
    return Mixture(path, torch.full((4,), 0.25).double(), means, covs)


# Flow matching and conditional flow matching have one gradient (Lipman et al. 2023, theorem 2)


def model(parameters, x_t, t):
    """A small network of 16 hidden units from one vector of 16 * 3 + 16 + 32 parameters."""
    into, bias, out = parameters.split([48, 16, 32])
    hidden = torch.tanh(into.view(16, 3) @ torch.cat([x_t, t[None]]) + bias)
    return out.view(2, 16) @ hidden


@pytest.mark.parametrize("kind", ["v", "x", "eps", "v_sh"])
@pytest.mark.parametrize("path", ["condot", "cosine", "vp", "polynomial", "ve"])
def test_gradients_of_the_marginal_and_the_conditional_loss_agree(path, kind):
    """Each parameter's within 4 standard errors of the difference, sample by sample."""
    n, path, draws = 10_000, PATHS[path], generator(0, "gradients")
    truth = mixture(path)
    x = truth.sample(0, n, 0).double()
    eps = torch.randn(n, 2, generator=draws, dtype=torch.float64)
    t = 0.05 + 0.9 * torch.rand(n, generator=draws, dtype=torch.float64)
    parameters = 0.4 * torch.randn(96, generator=draws, dtype=torch.float64)
    x_t, c = path.mix(x, eps, t), path.mix(x, eps, t, kind)
    u = truth.predict(x_t, t, kind)
    size = (path.alpha(t) ** 2 * 3 + path.beta(t) ** 2).sqrt()[:, None]

    def loss(parameters, x_t, t, target):
        return (model(parameters, x_t, t) - target).square().sum()

    gradients = torch.func.vmap(torch.func.grad(loss), (None, 0, 0, 0))
    marginal, conditional, wrong = (
        gradients(parameters, x_t / size, t, target) for target in (u, c, 1.5 * c)
    )

    def distance(a, b):
        gap = a - b
        return (gap.mean(0) / (gap.std(0) / n**0.5)).abs().max()

    assert distance(conditional, marginal) < 4
    assert distance(marginal, torch.zeros_like(marginal)) > 10
    assert distance(wrong, marginal) > 6


# Every SDE x' = v + g^2/2 score, with noise g, has the marginals of the ODE


@pytest.mark.parametrize("diffusion", [*DIFFUSIONS, 0.7, 0])
@some_paths
def test_fokker_planck_equation(path, diffusion):
    """dp/dt + div(p (v + g^2/2 score)) - g^2/2 laplacian p = 0, every derivative by autodiff."""
    field, solver = mixture(path), EulerMaruyama(diffusion)

    def density(x, t):
        return field.log_prob(x[None], t).exp()[0]

    def flux(x, t):
        half = solver.squared(path, t) / 2
        drift = field(x[None], t)[0] + half * field.predict(x[None], t, "score")[0]
        return density(x, t) * drift

    def residual(x, t):
        rate = torch.func.jacrev(density, argnums=1)(x, t)
        divergence = torch.func.jacrev(flux)(x, t).trace()
        curvature = torch.func.jacfwd(torch.func.jacrev(density))(x, t).trace()
        return rate, rate + divergence - solver.squared(path, t) / 2 * curvature

    for t in torch.tensor([0.05, 0.3, 0.6, 0.95], dtype=torch.float64):
        x = path.mix(
            mixture(path).sample(0, 16, 3).double(),
            torch.randn(16, 2, generator=generator(0, "points"), dtype=torch.float64),
            t,
        )
        rate, left = torch.func.vmap(residual)(x, t.repeat(len(x)))
        assert left.abs().max() < 1e-6 * rate.abs().max()


# One straight path behind all


def ends(field, path, coordinates, steps=400, n=128):
    made = generate(
        field,
        n,
        path=path,
        coordinates=coordinates,
        solver="rk4",
        steps=steps,
        dtype=torch.float64,
    )
    return made.x


@pytest.mark.parametrize(
    "path",
    [Cosine(), pytest.param(Polynomial(2), marks=pytest.mark.slow)],
    ids=["cosine", "polynomial"],
)
def test_a_change_of_path_keeps_where_samples_end(path):
    field = gmm4(CondOT())
    wanted = ends(field, None, "straight")
    for coordinates in ("native", "straight"):
        got = ends(field, path, coordinates)
        assert (got - wanted).abs().max() < 1e-6
    assert wanted.std() > 1  # and not all in one place
    coarse = ends(field, path, "native", steps=10)
    assert (coarse - wanted).abs().max() > 1e-4  # the ODE of the path itself was solved


@pytest.mark.parametrize(
    "coordinates", [pytest.param("native", marks=pytest.mark.slow), "straight"]
)
def test_a_path_that_begins_with_data_ends_there_up_to_its_share_of_data(coordinates):
    """VP and VE begin with r(0) = alpha(0) / (alpha(0) + beta(0)) of the sample itself, so that

    the ends are moved, and now and then end in another mode: a mean distance of 4 to 7 r(0).
    """
    field, zero = gmm4(CondOT()), torch.tensor(0.0, dtype=torch.float64)
    wanted, found = ends(field, None, "straight"), {}
    for name, path in {"vp": VP(), "ve": VE(), "wide": VE(0.01, 500.0)}.items():
        got = ends(field, path, coordinates)
        found[name] = (got - wanted).norm(dim=1).mean().item(), path.r(zero).item()
    for distance, r in found.values():
        assert 0 < distance < 10 * r
    assert found["wide"][0] < found["ve"][0] / 4


@every_path
@pytest.mark.parametrize("coordinates", ["native", "straight"])
def test_a_checkpoint_is_sampled_along_every_path(moons_run, path, coordinates):
    field = load(moons_run)
    for solver in ("heun", "euler_maruyama"):
        made = generate(field, 32, path=path, coordinates=coordinates, solver=solver, steps=6)
        assert made.x.shape == (32, 2) and made.x.isfinite().all()
        assert made.nfe_counted == made.nfe_planned > 0


@every_path
def test_a_field_along_another_path_and_back_is_the_field(path):
    field = mixture(CondOT())
    there = Along(Along(field, path), CondOT())
    lo, hi = Along(field, path).path.r(torch.tensor([0.0, 1.0], dtype=torch.float64)).tolist()
    t = torch.linspace(max(0.05, lo), min(0.95, hi), 12, dtype=torch.float64)
    x_t = 2 * torch.randn(12, 2, generator=generator(0, "points"), dtype=torch.float64)
    for kind in ("v", "x", "eps", "score"):
        torch.testing.assert_close(
            there.predict(x_t, t, kind), field.predict(x_t, t, kind), rtol=1e-6, atol=1e-6
        )
