"""Fields: changes of path, intervals, guidance, and networks that know the answer."""

import math

import pytest
import torch
from conftest import MEANS, PATHS, SOME, WEIGHTS, every_path
from torch import nn

from fmdiff.along import Along, Straight
from fmdiff.custom import Strength
from fmdiff.errors import FmdiffError
from fmdiff.exact import Mixture
from fmdiff.field import NetField
from fmdiff.guidance import CFG, Unguided
from fmdiff.guided import Guided
from fmdiff.path import VE, VP, CondOT, Cosine, LinearVP, Polynomial

KINDS = ("x", "eps", "v", "score", "v_sh", "straight")
PREDICTIONS = ("x", "eps", "v", "score", "v_sh")
COVS = torch.tensor([[[0.6, 0.3], [0.3, 0.4]]] * 2 + [[[0.2, 0], [0, 0.1]]], dtype=torch.float64)
LABELS = torch.arange(3)


def mixture(path, y=None):
    return Mixture(path, WEIGHTS, MEANS, COVS, LABELS, y)


def at(path, t, n=9):
    generator = torch.Generator().manual_seed(0)
    noise = torch.randn(2, n, 2, generator=generator, dtype=torch.float64)
    t = torch.as_tensor(t, dtype=torch.float64)
    return path.mix(MEANS.repeat(n // 3, 1) + noise[0], noise[1], t), t


def r_of(path, t):
    return path.alpha(t) / (path.alpha(t) + path.beta(t))


# --- another path ---------------------------------------------------------------------------


@pytest.mark.parametrize("inner", PATHS.values(), ids=PATHS)
@pytest.mark.parametrize(
    "outer",
    [
        pytest.param(path, id=name, marks=[pytest.mark.slow] * (name not in SOME))
        for name, path in PATHS.items()
    ],
)
def test_along_another_path_is_the_field_of_that_path(inner, outer):
    """The mixture has a closed form on every path: Along must reproduce it."""
    seen, truth = Along(mixture(inner), outer), mixture(outer)
    ends = torch.tensor([0.05, 0.95]).double()
    inside = torch.stack([r_of(inner, ends), r_of(outer, ends)])  # common range of r
    for share in (0.02, 0.5, 0.98):
        r = inside[:, 0].max() + share * (inside[:, 1].min() - inside[:, 0].max())
        x_t, t = at(outer, outer.time_of_r(r))
        for kind in KINDS:
            wanted = truth.predict(x_t, t, kind)
            torch.testing.assert_close(seen.predict(x_t, t, kind), wanted, rtol=1e-7, atol=1e-8)
        each = seen.predict(x_t, t.expand(len(x_t)), "v")
        torch.testing.assert_close(each, truth(x_t, t), rtol=1e-7, atol=1e-8)


@every_path
def test_straight_is_condot_and_its_start_the_same_samples_rescaled(path):
    seen = Straight(mixture(path))
    assert isinstance(seen.path, CondOT)
    x_t, t = at(CondOT(), 0.4)
    torch.testing.assert_close(seen(x_t, t), mixture(CondOT())(x_t, t), rtol=1e-8, atol=1e-8)
    eps = torch.randn(5, 2, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    wanted = mixture(CondOT()).start(eps, t, 0, 7)
    torch.testing.assert_close(seen.start(eps, t, 0, 7), wanted, rtol=1e-9, atol=1e-9)


def test_straight_leaves_a_straight_field_alone():
    field = mixture(CondOT())
    assert Straight(field) is field


# --- intervals ------------------------------------------------------------------------------


def netfield(path, prediction, net=None, t_eps=1e-5, **more):
    return NetField(net or nn.Identity(), path, prediction, 1.0, t_eps, (2,), **more)


VP_LO = math.exp(-5.025) / (
    math.exp(-5.025) + math.sqrt(1 - math.exp(-10.05))
)  # alpha(0) = exp(-5.025)
INTERVALS = [
    (CondOT(), "v", "v", 0.0, 1.0),
    (CondOT(), "v", "straight", 0.0, 1.0),
    (CondOT(), "x", "v", 0.0, 0.99),
    (CondOT(), "x", "x", 0.0, 1.0),
    (CondOT(), "eps", "v", 0.01, 1.0),
    (CondOT(), "score", "v", 0.01, 0.99),
    (CondOT(), "v_sh", "v", 0.0, 1.0),
    (Polynomial(2), "v", "v", 0.0, 1.0),
    (Polynomial(2), "v", "straight", 0.01, 1.0),
    (Polynomial(3), "x", "straight", 0.0, 0.99),
    (Cosine(), "v", "v", 0.0, 1.0),
    (Cosine(), "eps", "straight", 0.01, 1.0),
    (Cosine(), "v_sh", "straight", 0.0, 1.0),
    (LinearVP(), "v", "v", 0.0, 0.99),
    (VP(), "v", "v", VP_LO, 0.99),
    (VP(), "v_sh", "straight", VP_LO, 1.0),
    (VP(), "eps", "straight", 0.01, 1.0),
    (VP(), "x", "straight", VP_LO, 0.99),
    (VE(), "v", "v", 1 / 51, 1 / 1.01),
    (VE(), "eps", "straight", 1 / 51, 1 / 1.01),
    (VE(), "score", "straight", 1 / 51, 1 / 1.01),
]


@pytest.mark.parametrize(("path", "prediction", "kind", "lo", "hi"), INTERVALS)
def test_interval_of_a_network(path, prediction, kind, lo, hi):
    """lo and hi are given as r = alpha / (alpha + beta)."""
    ends = torch.tensor(netfield(path, prediction).interval(kind), dtype=torch.float64)
    assert r_of(path, ends).tolist() == pytest.approx([lo, hi], abs=2e-5)
    assert (ends >= 0).all() and (ends <= 1).all()


def test_interval_stays_within_the_trained_times():
    assert netfield(CondOT(), "score", t_eps=0.1).interval() == pytest.approx((0.1, 0.9))
    assert netfield(CondOT(), "v", t_eps=0.1).interval() == (0, 1)


@every_path
@pytest.mark.parametrize("prediction", PREDICTIONS)
def test_a_network_is_finite_over_its_interval(path, prediction):
    class Some(nn.Module):
        def forward(self, x_t, t, y):
            return torch.sin(x_t) + 0.3

    field = netfield(path, prediction, Some())
    for kind in ("v", "straight"):
        for t in field.interval(kind):
            value = field.predict(*at(path, t), kind)
            assert value.isfinite().all()
    lo, hi = Straight(field).interval()
    assert 0 <= lo < hi <= 1
    for t in (lo, hi):
        assert Straight(field)(*at(CondOT(), t)).isfinite().all()


def test_interval_along_a_path_that_ends_in_infinity():
    lo, hi = Along(mixture(CondOT()), VP()).interval("v")
    assert 0 <= lo < 1e-9 and 0.9 < hi < 1
    assert Along(mixture(CondOT()), VP())(*at(VP(), hi)).isfinite().all()
    assert Along(mixture(CondOT()), VP()).interval("straight") == pytest.approx((0, 1), abs=1e-12)
    assert Along(mixture(CondOT()), Cosine()).interval("v") == pytest.approx((0, 1))


# --- networks -------------------------------------------------------------------------------


class Knows(nn.Module):
    """The network that predicts a mixture's quantity exactly, through NetField's scales."""

    def __init__(self, path, prediction, std):
        super().__init__()
        self.path, self.prediction, self.std = path, prediction, std
        self.seen = []

    def forward(self, x_t, t, y):
        self.seen.append((x_t, t, y))
        t = t[:, None] / 1000
        a, b = self.path.alpha(t), self.path.beta(t)
        x_t = x_t * (a**2 * self.std**2 + b**2).sqrt()
        field = mixture(self.path, y)
        return field.predict(x_t, t[:, 0], self.prediction) / self.scale(t)

    def scale(self, t):
        a, b, s = self.path.alpha(t), self.path.beta(t), self.std
        if self.prediction == "v":
            return (self.path.d_alpha(t) ** 2 * s**2 + self.path.d_beta(t) ** 2).sqrt()
        one = torch.ones_like(t)
        scales = {"x": s * one, "eps": one, "score": 1 / b}
        return {**scales, "v_sh": (b**2 * s**2 + a**2).sqrt()}[self.prediction]


@every_path
@pytest.mark.parametrize("prediction", PREDICTIONS)
def test_a_perfect_network_is_the_exact_field(path, prediction):
    y = torch.tensor([0, 1, 2, 3, 0, 1, 2, 3, 3])
    net = Knows(path, prediction, 1.7)
    field = NetField(net, path, prediction, 1.7, 1e-5, (2,), 3).bind(y)
    for t in (0.1, 0.5, 0.9):
        x_t, t = at(path, t)
        for kind in KINDS:
            wanted = mixture(path, y).predict(x_t, t, kind)
            got = field.predict(x_t, t, kind)
            torch.testing.assert_close(got, wanted, rtol=1e-6, atol=1e-6)
        each = field.predict(x_t, t.expand(9), "v")
        torch.testing.assert_close(each, mixture(path, y)(x_t, t), rtol=1e-6, atol=1e-6)


@every_path
def test_the_network_sees_unit_scale_time_in_thousands_and_the_labels(path):
    y = torch.arange(4).repeat(5000)
    generator = torch.Generator().manual_seed(0)
    x, eps = torch.randn(2, 20_000, 2, generator=generator)
    net = nn.Module()
    net.forward = lambda *seen: (calls.append(seen), seen[0])[1]
    calls = []
    t = torch.tensor(0.3, dtype=torch.float64)
    field = NetField(net, path, "v", 3.0, 1e-5, (2,), 3, y)
    field(path.mix(3 * x, eps, t), t)
    scaled, time, labels = calls[0]
    assert scaled.std().item() == pytest.approx(1, abs=0.02)
    assert scaled.dtype == time.dtype == torch.float32
    assert time.shape == (20_000,) and time.unique().tolist() == pytest.approx([300])
    assert torch.equal(labels, y)


@every_path
@pytest.mark.parametrize("prediction", PREDICTIONS)
def test_the_network_predicts_at_unit_scale(path, prediction):
    """The quantity divided by the scale a network's output is given has variance 1."""
    generator = torch.Generator().manual_seed(0)
    x, eps = torch.randn(2, 20_000, 2, generator=generator, dtype=torch.float64)
    for t in (0.1, 0.8):
        x_t = path.mix(1.7 * x, eps, torch.tensor(t))
        value = path.mix(1.7 * x, eps, torch.tensor(t), prediction)
        ones = nn.Module()
        ones.forward = lambda x_t, t, y: torch.ones_like(x_t)
        field = NetField(ones, path, prediction, 1.7, 1e-5, (2,))
        scale = field.output(x_t, torch.tensor(t))
        assert (value / scale).std().item() == pytest.approx(1, abs=0.03)


@every_path
def test_a_network_starts_with_the_second_moment_of_the_path(path):
    eps = torch.randn(40_000, 2, generator=torch.Generator().manual_seed(0))
    field = NetField(nn.Identity(), path, "v", 3.0, 1e-5, (2,))
    for t in (0.0, 0.5):
        t = torch.tensor(t, dtype=torch.float64)
        wanted = ((3 * path.alpha(t)) ** 2 + path.beta(t) ** 2).sqrt().item()
        start = field.start(eps, t, 0, 0)
        assert start.dtype == torch.float32
        assert start.std().item() == pytest.approx(wanted, rel=0.02)


# --- guidance -------------------------------------------------------------------------------


@every_path
@pytest.mark.parametrize("w", [0.0, 0.3, 2.0, 7.0])
def test_guidance_is_the_same_in_every_space(path, w):
    field, y = mixture(path), torch.tensor([0, 1, 2] * 3)
    for t in (0.2, 0.8):
        x_t, t = at(path, t)
        null = field.bind(torch.full_like(y, 3))(x_t, t)
        wanted = (1 - w) * null + w * field.bind(y)(x_t, t)
        guided = Guided(field, y, Strength(w))
        torch.testing.assert_close(guided(x_t, t), wanted, rtol=1e-9, atol=1e-9)
        torch.testing.assert_close(guided(x_t, t.expand(9)), wanted, rtol=1e-9, atol=1e-9)
        for kind in KINDS:
            v = path.convert(guided.predict(x_t, t, kind), x_t, t, kind, "v")
            torch.testing.assert_close(v, wanted, rtol=1e-6, atol=1e-6)
        seen = Along(guided, Cosine())  # guide, then change the path, or the other way round
        other = Guided(mixture(Cosine()), y, Strength(w))
        x_t, t = at(Cosine(), 0.5)
        torch.testing.assert_close(seen(x_t, t), other(x_t, t), rtol=1e-7, atol=1e-7)


def test_w_1_asks_the_conditional_branch_alone_and_w_2_both():
    y, (x_t, t) = torch.tensor([0, 1, 2] * 3), at(CondOT(), 0.5)
    for field in (mixture(CondOT()), netfield(CondOT(), "v", Knows(CondOT(), "v", 1), classes=3)):
        one, two = CFG(1)(field, y), CFG(2)(field, y)
        torch.testing.assert_close(one(x_t, t), Unguided()(field, y)(x_t, t), rtol=0, atol=0)
        two(x_t, t)
        assert (one.evaluations, one.branches) == (9, 1)
        assert (two.evaluations, two.branches) == (18, 2)
        assert Along(two, VP()).branches == 2
        two.reset()
        assert two.evaluations == 0


def test_guidance_needs_classes():
    with pytest.raises(FmdiffError, match="conditional=true"):
        CFG(2)(netfield(CondOT(), "v"), None)
    field = netfield(CondOT(), "v")
    assert Unguided()(field, None) is field


def test_labels_go_round_and_unknown_classes_are_refused():
    field = mixture(CondOT())
    assert field.labels(None, 2, 8, 0).tolist() == [2, 0, 1, 2, 0, 1]
    assert field.labels([2, 0], 3, 7, 0).tolist() == [0, 2, 0, 2]
    assert field.labels(1, 0, 3, 0).tolist() == [1, 1, 1]
    for bad in ([3], -1, [0, 7]):
        with pytest.raises(FmdiffError, match=r"0\.\.2"):
            field.labels(bad, 0, 3, 0)
    assert netfield(CondOT(), "v").labels(None, 0, 3, 0) is None
    with pytest.raises(FmdiffError, match="without classes"):
        netfield(CondOT(), "v").labels([1], 0, 3, 0)
