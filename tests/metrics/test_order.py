"""No value and no interval depends on the order of the rows of a set."""

import json
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest
import torch

from fmdiff.build import named
from fmdiff.metrics import distances
from fmdiff.metrics.manifold import memorisation, precision_recall
from fmdiff.metrics.points import point_metrics
from fmdiff.metrics.subset import choice, thin
from fmdiff.randomness import generator

MEASURES = ("sliced_wasserstein2", "wasserstein2", "sw2", "w2", "mmd2", "energy")
CPU = ("device=cpu", "threads=1", "overwrite=true", "out=result")


def modes(n, seed, d=2):
    """Three far modes, in random order."""
    g = generator(seed, "order")
    x = torch.randn(n, d, generator=g)
    x[:, 0] += 6 * torch.randint(3, (n,), generator=g)
    return x


def ordered(x):
    return x[x[:, 0].argsort()]


@pytest.mark.parametrize("name", MEASURES)
@pytest.mark.parametrize("d", [1, 2])
def test_a_distance_is_of_sets(name, d, monkeypatch):
    """Bit for bit: the value, its error and its interval, with and without thinning."""
    measure = getattr(distances, name)
    a, b = modes(300, 0, d), modes(300, 1, d)
    for rows in (2000, 120):
        monkeypatch.setattr(distances, "ASSIGNED", rows)
        monkeypatch.setattr(distances, "PAIRED", rows)
        assert measure(a, b) == measure(ordered(a), b.flip(0)) == measure(a.flip(0), ordered(b))


@pytest.mark.parametrize("name", MEASURES)
def test_ordered_sets_are_thinned_at_random(name, monkeypatch):
    """The first rows of an ordered set are of one mode, at a distance of several units."""
    measure = getattr(distances, name)
    a, b = ordered(modes(900, 0)), ordered(modes(900, 1))
    whole = measure(a, b)
    monkeypatch.setattr(distances, "ASSIGNED", 300)
    monkeypatch.setattr(distances, "PAIRED", 300)
    part = measure(a, b)
    if not isinstance(part, float):
        assert part.interval[0] <= 0.2 and part.interval[1] > 0
        whole, part = whole.value, part.value
    assert abs(part) < abs(whole) + 0.8


def test_the_choices_of_samples_and_reference_are_independent():
    x = torch.arange(1000.0)[:, None]
    first, second = choice(x, 100), choice(x, 100, "reference")
    assert len(set(first.tolist())) == 100
    assert len(set(first.tolist()) & set(second.tolist())) < 30  # 10 expected
    assert not torch.equal(first, choice(x, 100, seed=1))
    moved = choice(4 * x + 2**20, 100)
    assert torch.equal(first, moved)


def test_equal_sets_are_thinned_alike():
    x = modes(500, 3)
    a, b = thin(x, x.flip(0), 100)
    assert torch.equal(a, b)
    a, b = thin(x, modes(500, 4), 100)
    assert not (a[:, None] == b).all(-1).any()


def test_images_are_chosen_by_their_bytes():
    pixels = torch.randint(256, (200, 8, 8, 3), generator=generator(0, "p"), dtype=torch.uint8)
    other = torch.randperm(200, generator=generator(1, "p"))
    mixed = pixels[other]
    assert torch.equal(pixels[choice(pixels, 50)], mixed[choice(mixed, 50)])


def test_every_point_metric_is_of_sets():
    data = named("data", "8gaussians")
    x = data.sample(0, 400, 5)[0]
    names = ["sw2", "w2", "mmd2", "energy", "nll", "modes", "off_support"]
    first, second = (
        {name: asdict(m) for name, m in point_metrics(names, s, data, 250).items()}
        for s in (x, ordered(x))
    )
    assert first == second
    against = data.sample(0, 600, 6)[0]
    names = ["sw2", "w2", "mmd2", "energy"]
    first = point_metrics(names, x, None, 400, points=against)
    assert first == point_metrics(names, x.flip(0), None, 400, points=ordered(against))
    assert first["sw2"].reference == "400 of 600 points of a file"


def test_neighbours_are_of_sets():
    a, b, c = (modes(n, seed).double() for n, seed in ((150, 0), (200, 1), (90, 2)))
    before = precision_recall(a, b)
    after = precision_recall(ordered(a), b.flip(0))
    assert after == pytest.approx(before, rel=1e-9)
    near, other = memorisation(a, b, c), memorisation(a.flip(0), ordered(b), ordered(c))
    assert near[:8] == pytest.approx(other[:8], rel=1e-9)


def evaluate(command, *words):
    assert command("evaluate", *words, *CPU) == 0
    return json.loads(Path("result/results.json").read_text())


def test_files_in_two_orders_have_the_same_figures(command, monkeypatch, capfd):
    monkeypatch.setattr(distances, "ASSIGNED", 100)
    x, y = modes(400, 0), modes(250, 1)
    np.savez("mixed.npz", arr_0=x.numpy())
    np.savez("ordered.npz", arr_0=ordered(x).numpy())
    np.savez("real.npz", arr_0=y.numpy())
    for n in ("n=null", "n=200"):
        words = ("against=real.npz", n)
        mixed = evaluate(command, "samples=mixed.npz", *words)
        assert evaluate(command, "samples=ordered.npz", *words)["metrics"] == mixed["metrics"]
    whole = evaluate(command, "samples=ordered.npz", "against=real.npz")
    assert whole["metrics"]["w2"]["n"] == 100 and whole["metrics"]["sw2"]["n"] == 250
    assert whole["metrics"]["w2"]["reference"] == "100 of 250 points of a file"
    out = capfd.readouterr().out
    assert "note: w2 takes 100 of 400 samples: a random choice with a fixed seed" in out


def test_each_of_several_seeds_has_a_reference_of_its_own(command):
    words = ("model=exact", "data=gmm4", "n=300", "steps=4", "metrics=[sw2]")
    both = evaluate(command, *words, "seed=4", "repeats=2")["metrics"]["sw2"]
    alone = [
        evaluate(command, *words, f"seed={seed}")["metrics"]["sw2"]["value"] for seed in (4, 5)
    ]
    assert both["extra"]["values"] == alone
    law = type(named("data", "gmm4")).__name__
    assert both["reference"] == f"300 fresh points of {law}, seed 4, and so on for each seed"
    np.savez("real.npz", arr_0=named("data", "gmm4").sample(0, 300, 1)[0].numpy())
    one = evaluate(command, *words, "against=real.npz", "repeats=2")["metrics"]["sw2"]
    assert one["reference"] == "300 points of a file, the same for all seeds"
