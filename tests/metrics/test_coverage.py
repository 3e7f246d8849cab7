"""Intervals of 95 % cover the truth about as often as they say; alarms are as rare as they say."""

import sys
from itertools import combinations
from pathlib import Path

import numpy as np
import pytest
import torch
from test_judge import Tiny

from fmdiff.metrics import distances
from fmdiff.metrics.frechet import Moments
from fmdiff.metrics.images import ImageMetrics, Real
from fmdiff.metrics.manifold import FALSE_ALARM, memorisation, precision_recall
from fmdiff.randomness import generator

sys.path.insert(0, str(Path(__file__).parents[2] / "scripts"))
from coverage import (
    Case,
    cases,
    coverage,
    energy_of_gaussians,
    exponential,
    gaussian,
    metric_of,
)


def normal(n, d, seed, std=1.0):
    return std * torch.randn(n, d, generator=generator(seed, "normal"), dtype=torch.float64)


# --- distances -----------------------------------------------------------------------------------


@pytest.mark.parametrize("mean", [0.1, 0.2])
def test_energy_of_a_small_shift_is_covered(mean):
    """Of 200 intervals of 95 % fewer than 181 cover with probability 0.3 %."""
    case = Case("", gaussian(1, mean), gaussian(1), energy_of_gaussians(1, mean, 1))
    share = coverage(distances.energy, case, 100, 200)
    assert share.covered >= 0.905
    assert share.below < 0.06


def test_a_long_tail_is_covered():
    """Exponential laws of means 1.2 and 1: W2 = sqrt(2) 0.2."""
    case = Case("", exponential(1.2), exponential(1.0), 2**0.5 * 0.2)
    assert coverage(distances.sw2, case, 200, 200).covered >= 0.9


@pytest.mark.slow
@pytest.mark.parametrize("name", ["sw2", "w2", "mmd2", "energy"])
def test_every_distance_is_covered(name):
    """Of 150 intervals of 93 % fewer than 128 cover with probability 0.02 %."""
    for case in cases(name):
        share = coverage(metric_of(name), case, 200, 150)
        assert share.covered >= 128 / 150, case.law


# --- shares --------------------------------------------------------------------------------------


class Four(Tiny):
    dimension = 4


def judged(real):
    names = ["precision", "recall"]
    return ImageMetrics(names, Four(), Real("real", Moments(4).add(real), real, None))


@pytest.mark.parametrize(("n", "m", "std"), [(100, 200, 0.8), (200, 100, 1.0)])
def test_precision_and_recall_are_covered(n, m, std):
    """The truth is the mean over sets of these sizes, as no share is free of them."""
    found = []
    for i in range(200):
        real = normal(m, 4, 2 * i)
        judge = judged(real)
        judge.features.append(normal(n, 4, 2 * i + 1, std))
        found.append(judge.results())
    for name in ("precision", "recall"):
        mean = np.mean([metrics[name].value for metrics in found])
        spread = np.std([metrics[name].value for metrics in found])
        inside = [m[name].interval[0] <= mean <= m[name].interval[1] for m in found]
        assert np.mean(inside) >= 0.905
        assert 0.75 < np.mean([m[name].se for m in found]) / spread < 1.6


def test_the_errors_of_precision_and_recall_by_their_definition():
    """Each member left out in turn, and the squares of single queries taken away."""
    a, b, k = normal(40, 3, 0), normal(50, 3, 1, 1.3), 3

    def inside(queries, members):
        reach = torch.cdist(members, members).kthvalue(k + 1).values
        return (torch.cdist(queries, members) <= reach).any(1).double()

    def error(queries, members):
        m, whole = len(members), inside(queries, members)
        others = [members[torch.arange(m) != j] for j in range(m)]
        change = torch.stack([inside(queries, o) - whole for o in others])  # (m, queries)
        sums = change.sum(1)
        squares = (sums.square() - change.square().sum(1)).sum() - sums.sum() ** 2 / m
        p, n = whole.mean(), len(queries)
        return (p * (1 - p) / n + (squares * (m - 1) / m / n**2).clamp(min=0)).sqrt().item()

    found = precision_recall(a, b, k)
    assert found.precision == inside(a, b).mean() and found.recall == inside(b, a).mean()
    assert found.precision_error == pytest.approx(error(a, b))
    assert found.recall_error == pytest.approx(error(b, a))


# --- memorisation --------------------------------------------------------------------------------


def test_the_chance_of_a_share_by_counting():
    """All orders of 4 generated and 5 held-out distances are alike if nothing is copied."""
    n, held_out = 4, 5
    train = torch.tensor([[-9.0], [-8.0]])

    def of(places):
        at = torch.arange(n + held_out, dtype=torch.float64)[:, None]
        mine = torch.zeros(n + held_out, dtype=torch.bool)
        mine[list(places)] = True
        return memorisation(at[mine], train, at[~mine], level=1 / 3)

    found = [of(places) for places in combinations(range(n + held_out), n)]
    shares = torch.tensor([f.share for f in found])
    for f in found:
        assert f.level == pytest.approx(1 / 3)
        assert f.chance == pytest.approx((shares >= f.share).double().mean().item())
    assert shares.mean().item() == pytest.approx(1 / 3)


@pytest.mark.parametrize(("n", "held_out"), [(100, 50), (200, 180)])
def test_false_alarms_are_as_rare_as_is_said(n, held_out):
    """Fresh points for generated ones: alarms in less than 1 % of 400 tries, not in 7 %."""
    train = normal(20, 2, 1)
    sets = normal(400 * (n + held_out), 2, 2).view(400, n + held_out, 2)
    chances = np.array([memorisation(s[:n], train, s[n:]).chance for s in sets])
    for level in (0.5, 0.1):
        assert (chances <= level).mean() < level + 4 * (level * (1 - level) / 400) ** 0.5
    assert (chances < FALSE_ALARM).sum() <= 3
    copies = torch.cat([train, normal(n - 20, 2, 3)])
    assert memorisation(copies, train, normal(held_out, 2, 4)).chance < FALSE_ALARM
