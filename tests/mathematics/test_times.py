"""Laws of the training time: densities against scipy, draws against densities."""

import math
from functools import lru_cache
from pathlib import Path

import numpy as np
import pytest
import scipy.stats
import torch
from omegaconf import OmegaConf
from scipy.integrate import cumulative_simpson, quad

from fmdiff.build import build
from fmdiff.errors import FmdiffError
from fmdiff.path import VE, VP, CondOT, Cosine, LinearVP
from fmdiff.path import Path as Curve
from fmdiff.randomness import generator
from fmdiff.times import Beta, Law

CONFIGS = Path(__file__).parents[2] / "configs" / "time"
NAMES = sorted(path.stem for path in CONFIGS.glob("*.yaml"))
N = 20_000


def make(name, path=None, **keys):
    spec = OmegaConf.to_container(OmegaConf.load(CONFIGS / f"{name}.yaml"))
    return build(spec | keys, path=path or CondOT())


class Triangle(Law):
    """A user's law: a density and nothing else."""

    def density(self, t):
        return 2 * t


class Warped(Curve):
    """A user's path: alpha / beta is no closed form of t."""

    def alpha(self, t):
        return torch.exp(t) * t / math.e

    def beta(self, t):
        return (1 - t) ** 2


LAWS = {
    "uniform": {},
    "logit_normal": {"mean": -0.8, "std": 0.8},
    "log_normal": {},
    "cosmap": {},
    "mode": {},
    "u_shaped": {},
    "beta": {"a": 2.5},
}
CASES = {name: (name, CondOT(), keys) for name, keys in LAWS.items()} | {
    "mode_ends": ("mode", CondOT(), {"scale": -0.6}),
    "beta_ends": ("beta", CondOT(), {"a": 0.5, "b": 0.7}),
    "log_normal_vp": ("log_normal", VP(), {}),
    "log_normal_cosine": ("log_normal", Cosine(), {"mean": -0.4, "std": 1.0}),
    "log_normal_ve": ("log_normal", VE(0.2, 50.0), {}),  # cuts 38 % off the law
    "log_normal_warped": ("log_normal", Warped(), {}),
}
every_law = pytest.mark.parametrize("case", [*CASES, "triangle"])


@lru_cache
def law_of(case, stratified=False):
    if case == "triangle":
        return Triangle(stratified=stratified)
    name, path, keys = CASES[case]
    return make(name, path, stratified=stratified, **keys)


def draws(law, n=N, seed=0):
    return law(n, generator(seed, "time"))


@lru_cache
def cdf_of(case):
    """The integral of p, on a grid of z with t = sigmoid(z): an interpolating function of t."""
    z = np.linspace(-32, 32, 20_001)
    t = scipy.special.expit(z)
    p = law_of(case).density(torch.from_numpy(t)).numpy()
    below = cumulative_simpson(p * t * scipy.special.expit(-z), x=z, initial=0)
    return lambda s: np.interp(scipy.special.logit(np.asarray(s, np.float64)), z, below)


def test_every_config_is_tested_with_its_own_density():
    assert set(NAMES) == {*LAWS, "discrete"}


@every_law
def test_the_density_integrates_to_1(case):
    law = law_of(case)

    def integrand(z):  # in z = logit t, where infinite ends are no trouble
        t = float(scipy.special.expit(z))
        value = law.density(t)
        assert isinstance(value, float) and value >= 0
        return value * t * float(scipy.special.expit(-z))

    total = sum(quad(integrand, *ends, limit=400)[0] for ends in ((-32, -3), (-3, 3), (3, 32)))
    assert total == pytest.approx(1, abs=1e-6)


@every_law
def test_draws_follow_the_density(case):
    plain, even = draws(law_of(case)), draws(law_of(case, stratified=True))
    for t in (plain, even):
        assert t.shape == (N,) and t.dtype == torch.float32
        assert t.min() >= 0 and t.max() <= 1
    assert scipy.stats.kstest(plain.numpy(), cdf_of(case)).pvalue > 1e-3
    assert scipy.stats.kstest(even.numpy(), cdf_of(case)).statistic <= 2 / N


@every_law
def test_the_quantile_is_the_increasing_inverse_of_the_cdf(case):
    law = law_of(case)
    u = torch.linspace(0.001, 0.999, 999, dtype=torch.float64)
    t = law.quantile(u)
    assert t.dtype == torch.float64 and (t.diff() > 0).all()
    np.testing.assert_allclose(cdf_of(case)(t.numpy()), u.numpy(), atol=5e-6)
    ends = law.quantile(torch.tensor([0.0, 1.0]))
    assert ends.dtype == torch.float32 and ((ends >= 0) & (ends <= 1)).all()


@pytest.mark.parametrize("name", NAMES)
def test_draws_depend_on_the_generator_alone(name):
    for stratified in (False, True):
        one = draws(make(name, stratified=stratified), 500)
        torch.rand(3)
        assert torch.equal(one, draws(make(name, stratified=stratified), 500))
        assert not torch.equal(one, draws(make(name, stratified=stratified), 500, seed=1))


@pytest.mark.parametrize("name", NAMES)
def test_stratified_draws_have_steadier_means(name):
    def spread(stratified):
        law = make(name, stratified=stratified)
        return np.std([draws(law, 100, seed).mean().item() for seed in range(100)])

    # sqrt(100) from the strata alone if the mean over a stratum is about its middle
    assert spread(True) < spread(False) / 30


def test_densities_are_those_of_scipy():
    t = torch.linspace(0.001, 0.999, 999, dtype=torch.float64)
    normal = scipy.stats.norm(-0.7, 1.3)
    logit = normal.pdf(scipy.special.logit(t.numpy())) / (t * (1 - t)).numpy()
    expected = {
        "logit_normal": ({"mean": -0.7, "std": 1.3}, logit),
        "beta": ({"a": 2.5, "b": 0.6}, scipy.stats.beta(2.5, 0.6).pdf(t)),
        "mode": ({"scale": -1.0}, scipy.stats.arcsine.pdf(t)),  # t = sin^2(pi u / 2)
    }
    for name, (keys, values) in expected.items():
        np.testing.assert_allclose(make(name, **keys).density(t), values, rtol=1e-9)


def test_quantiles_are_those_of_scipy():
    u = torch.linspace(0.0005, 0.9995, 1000, dtype=torch.float64)
    beta, mode = make("beta", a=2.5, b=0.6), make("mode", scale=-1.0)
    np.testing.assert_allclose(beta.quantile(u), scipy.stats.beta(2.5, 0.6).ppf(u), atol=1e-6)
    np.testing.assert_allclose(mode.quantile(u), scipy.stats.arcsine.ppf(u), atol=1e-12)


def test_published_formulas_mirrored_to_our_time():
    """Term by term from the papers, whose t is 1 - t here."""
    u = torch.linspace(0.01, 0.99, 99, dtype=torch.float64)
    s = 1.29
    mode = 1 - u - s * (torch.cos(math.pi / 2 * u) ** 2 - 1 + u)
    torch.testing.assert_close(make("mode", scale=s).quantile(u), 1 - mode)
    cosmap = 1 - 1 / (torch.tan(math.pi / 2 * u) + 1)
    torch.testing.assert_close(make("cosmap").quantile(1 - u), 1 - cosmap)
    torch.testing.assert_close(make("cosmap").quantile(u), Cosine().r(u))
    both = torch.exp(4 * u) + torch.exp(4 * (1 - u))  # half of the draws mirrored, a = 4
    ratio = make("u_shaped").density(u) / both
    torch.testing.assert_close(ratio, ratio[:1].expand_as(ratio))


def test_signs_point_where_the_comments_say():
    assert draws(make("logit_normal", mean=-1.0)).mean() < 0.4  # noise
    assert draws(make("beta", a=1.0, b=3.0)).mean() < 0.4
    assert draws(make("log_normal", mean=-1.2)).mean() > 0.6  # little noise: data


def test_log_normal_noise_on_condot_is_logit_normal():
    t = torch.linspace(0.001, 0.999, 999, dtype=torch.float64)
    ours, other = make("log_normal", CondOT()), make("logit_normal", mean=1.2, std=1.2)
    torch.testing.assert_close(ours.density(t), other.density(t), rtol=1e-9, atol=0)
    torch.testing.assert_close(ours.quantile(t), other.quantile(t), rtol=1e-9, atol=0)


@pytest.mark.parametrize(
    ("path", "mean", "std"),
    [
        *((path, -1.2, 1.2) for path in (VE(), VP(), Cosine(), LinearVP(), VE(0.2, 2.0))),
        (VE(1.0, 50.0), -9.0, 1.0),  # the path has only the far tails of the law
        (VE(0.002, 0.05), 4.0, 0.8),
    ],
)
def test_the_log_of_the_noise_level_is_a_truncated_normal(path, mean, std):
    law = make("log_normal", path, mean=mean, std=std)
    t = law.quantile(torch.rand(N, generator=generator(0, "time")).double())
    noise = (path.beta(t) / path.alpha(t)).log().numpy()
    zero, one = torch.tensor(0.0).double(), torch.tensor(1.0).double()
    low, high = ((path.beta(s) / path.alpha(s)).log().item() for s in (one, zero))
    exact = scipy.stats.truncnorm((low - mean) / std, (high - mean) / std, mean, std)
    assert scipy.stats.kstest(noise, exact.cdf).pvalue > 1e-3
    assert noise.min() >= low - 1e-6 and noise.max() <= high + 1e-6


def test_discrete_times_are_the_steps_of_ddpm():
    k = torch.arange(1, 1001)
    law = make("discrete", stratified=True)
    t = law(1000, generator(0, "time"))
    torch.testing.assert_close(t.sort(descending=True).values, (1 - k / 1000.0))
    counts = torch.bincount((draws(make("discrete", steps=10)) * 10).round().long(), minlength=10)
    assert len(counts) == 10  # t = 1 is no step
    assert scipy.stats.chisquare(counts.numpy()).pvalue > 1e-3
    assert law.quantile(torch.tensor([0.0, 1.0])).tolist() == pytest.approx([0, 0.999])
    with pytest.raises(FmdiffError, match="no density"):
        law.density(0.5)


@pytest.mark.parametrize(
    ("name", "key", "value"),
    [
        ("uniform", "stratified", "yes"),
        ("uniform", "stratified", 1),
        ("logit_normal", "mean", math.inf),
        ("logit_normal", "std", 0.0),
        ("log_normal", "std", -1.2),
        ("log_normal", "mean", None),
        ("mode", "scale", -1.01),
        ("mode", "scale", 1.76),
        ("u_shaped", "a", 0),
        ("beta", "a", 0.4),
        ("beta", "b", "much"),
        ("discrete", "steps", 0),
        ("discrete", "steps", 2.5),
        ("discrete", "steps", True),
    ],
)
def test_bad_keys_are_refused_by_name(name, key, value):
    with pytest.raises(FmdiffError, match=rf"time\.{key}={value} must be"):
        make(name, **{key: value})


def test_noise_levels_beyond_the_path_are_refused():
    with pytest.raises(FmdiffError, match=r"time\.mean=-60.* -4\.61 to 3\.91"):
        make("log_normal", VE(), mean=-60.0, std=0.5)


def test_the_path_is_optional():
    assert isinstance(Beta(a=1.0, b=1.0, stratified=False).path, CondOT)
