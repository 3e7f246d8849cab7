"""fmdiff likelihood: what it writes, what it refuses, and the entropy of data it has learnt."""

import json
import math

import numpy as np
import pytest
import torch
from test_likelihood import FOUR, density

from fmdiff.build import named
from fmdiff.likelihood import log_prob
from fmdiff.loading import load
from fmdiff.path import CondOT

KEYS = {"nll", "nll_se", "bits_per_dim", "bits_per_dim_se", "n", "nfe", "solver", "divergence"}
KEYS |= {"probes", "t", "noise", "quantity", "dequantised", "checkpoint", "config", "seconds"}


def test_the_command_on_a_mixture(command, tmp_path, capsys):
    words = ("model=exact", "data=gmm4", "n=50", "device=cpu", "dtype=float64")
    assert command("likelihood", *words, "steps=50", "out=a") == 0
    assert "50 points, rk4" in (said := capsys.readouterr().out) and "200 evaluations" in said
    report = json.loads((tmp_path / "a" / "likelihood.json").read_text())
    assert report.keys() >= KEYS and report["checkpoint"] is None
    log_p = np.load(tmp_path / "a" / "likelihood.npz")["log_prob"]
    x = named("data", "gmm4").sample(0, 50, 0)[0].double()
    assert np.abs(log_p - density(FOUR, CondOT(), x).numpy()).max() < 1e-4
    assert report["nll"] == pytest.approx(-log_p.mean())
    assert report["nll_se"] == pytest.approx(log_p.std(ddof=1) / 50**0.5)
    assert report["bits_per_dim"] == pytest.approx(report["nll"] / 2 / math.log(2))
    assert (report["n"], report["nfe"], report["probes"]) == (50, 200, 0)
    labelled = ("data.conditional=true", "solver=dopri5", "path=ve")
    for label, labels in (("own", 1), ("none", 0)):
        assert command("likelihood", *words, *labelled, f"label={label}", f"out={label}") == 0
        kept = np.load(tmp_path / label / "likelihood.npz")
        assert ("labels" in kept) == bool(labels)
        assert np.abs(kept["log_prob"] - log_p).mean() > 1 if labels else True
        report = json.loads((tmp_path / label / "likelihood.json").read_text())
        assert report["noise"] == pytest.approx(0.01)
    assert "log p(x) by the null label" in (said := capsys.readouterr().out)
    assert "noise of std 0.01" in said


def test_the_command_on_images(command, tmp_path, digits_run, capsys):
    words = (f"ckpt={digits_run}", "n=3", "solver=heun", "steps=1", "device=cpu", "probes=3")
    assert command("likelihood", *words, "out=a") == 0
    assert "3 dequantised images" in capsys.readouterr().out
    report = json.loads((tmp_path / "a" / "likelihood.json").read_text())
    assert report.keys() >= KEYS and report["checkpoint"]["step"] == 3
    assert (report["divergence"], report["probes"], report["nfe"]) == ("hutchinson", 3, 2)
    arrays = np.load(tmp_path / "a" / "likelihood.npz")
    assert arrays["log_prob"].shape == arrays["se"].shape == (3,)
    assert all(np.isfinite(v).all() for v in arrays.values()) and (arrays["se"] > 0).all()
    bits = report["nll"] / 64 / math.log(2) + math.log2(127.5)
    assert report["bits_per_dim"] == pytest.approx(bits)
    assert not list((tmp_path / "a").glob(".part*"))
    assert command("likelihood", *words, "batch_size=2", "out=b") == 0
    again = np.load(tmp_path / "b" / "likelihood.npz")["log_prob"]
    np.testing.assert_allclose(again, arrays["log_prob"], rtol=1e-4)
    assert command("likelihood", *words[:-1], "divergence=exact", "out=c") == 0
    exact_ones = np.load(tmp_path / "c" / "likelihood.npz")["log_prob"]
    assert np.abs((exact_ones - again) / arrays["se"]).max() < 12  # of two degrees of freedom


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (("model=exact", "data=gmm4", "solver=euler_maruyama"), "is stochastic"),
        (("model=exact", "data=gmm4", "solver=unipc"), "steps by the estimate of x"),
        (("model=exact", "data=moons"), "Moons has none"),
        (("model=data", "data=gmm4"), "RealData has no density"),
        (("model=exact", "data=gmm4", "divergence=trace"), "divergence=trace: must be auto"),
        (("model=exact", "data=gmm4", "probes=0"), "probes=0"),
        (("model=exact", "data=gmm4", "label=all"), "label=all: must be own or none"),
        (("ckpt={moons}", "data=digits"), "data=digits has shape [1, 8, 8]"),
        (("ckpt={moons}", "guidance=cfg"), "needs a model trained with classes"),
    ],
)
def test_what_the_command_refuses(command, tmp_path, moons_run, capsys, words, says):
    words = [word.format(moons=moons_run) for word in words]
    assert command("likelihood", *words, "n=4", "device=cpu", "out=a") == 2
    assert says in capsys.readouterr().err
    assert not (tmp_path / "a").exists()


@pytest.mark.slow
def test_of_trained_moons_it_is_within_a_tenth_of_the_entropy(train, tmp_path):
    """The density of moons is an integral over the arcs; its mean logarithm is -the entropy."""
    train(tmp_path / "run", "data=moons")
    data = named("data", "moons")
    x = data.sample(0, 1000, 0)[0].double()
    u = (torch.arange(4000) + 0.5) / 4000
    arcs = torch.cat([data.curve(u, torch.full((4000,), k)) for k in (0, 1)]).double()
    squares = torch.cdist(x, arcs, compute_mode="donot_use_mm_for_euclid_dist").square()
    variance = data.noise**2
    true = (-squares / (2 * variance)).logsumexp(1) - math.log(8000 * 2 * math.pi * variance)
    off = true - log_prob(load(tmp_path / "run"), x)
    assert off.std() / 1000**0.5 < 0.03
    assert -0.03 < off.mean() < 0.1
