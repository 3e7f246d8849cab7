"""Commands with the exact field of a mixture given a condition, or some of x."""

import json

import numpy as np
import pytest
from scipy.stats import multivariate_normal

from fmdiff.build import named

CPU = ("device=cpu", "model=exact")
CONDITIONED, MASKED = (
    ("data=gmm_cond",),
    ("data=masked", "data.of.name=gmm", "data.mode=scattered"),
)
WEIGHTS, MEANS, COVS = (part.numpy() for part in named("data", "gmm_cond").joint())


def density(x, c):
    """log p(x | c) of rows x (n, 2), as the ratio of two densities by scipy."""
    both = np.column_stack([x, np.full(len(x), c)])
    parts = list(zip(WEIGHTS, MEANS, COVS, strict=True))
    joint = sum(w * multivariate_normal(m, s).pdf(both) for w, m, s in parts)
    alone = sum(w * multivariate_normal(m[2], s[2, 2]).pdf(c) for w, m, s in parts)
    return np.log(joint / alone)


def test_samples_and_densities_given_c(command, capsys):
    assert command("sample", *CPU, *CONDITIONED, "cond.c=0.7", "n=400", "out=drawn") == 0
    with np.load("drawn/samples.npz") as archive:
        x, c = archive["arr_0"], archive["cond_c"]
    assert np.allclose(c, 0.7)
    # the mean of -log p(x | c) over the samples, beside that over a fine grid
    axis = np.linspace(-6, 6, 301)
    grid = np.stack(np.meshgrid(axis, axis), -1).reshape(-1, 2)
    log_p = density(grid, 0.7)
    p = np.exp(log_p) / np.exp(log_p).sum()
    values, entropy = -density(x, 0.7), -(p * log_p).sum()
    assert abs(values.mean() - entropy) < 4 * values.std() / 20
    mean = p @ grid
    assert (abs(x.mean(0) - mean) < 4 * x.std(0) / 20).all()
    words = ("cond.c=0.7", "n=20", "steps=40", "out=densities")
    assert command("likelihood", *CPU, *CONDITIONED, *words) == 0
    with np.load("densities/likelihood.npz") as archive:
        got = archive["log_prob"]
    points = named("data", "gmm_cond").sample(0, 20, 0)[0].numpy()
    assert np.allclose(got, density(points, 0.7), atol=2e-3)


def test_an_evaluation_says_what_the_samples_are_given(command, capsys):
    words = ("n=40", "metrics=[nll]", "out=judged")
    assert command("evaluate", *CPU, *CONDITIONED, "cond.c=0.7", *words) == 0
    with open("judged/results.json", encoding="utf-8") as file:
        assert any(line.startswith("cond.c: ") for line in json.load(file)["warnings"])
    words = ("against=exact", "n=50", "times=2", "out=errors")
    assert command("evaluate", *CPU, *CONDITIONED, *words) == 0
    with open("errors/results.json", encoding="utf-8") as file:
        rows = json.load(file)["rows"]
    assert all(row["fm"] < 1e-20 < row["irreducible"] for row in rows)


def test_observed_coordinates_are_what_they_were(command):
    words = ("cond.known=[0.3,nan]", "paste=false", "n=8", "out=drawn")
    assert command("sample", *CPU, *MASKED, *words) == 0
    with np.load("drawn/samples.npz") as archive:
        x = archive["arr_0"]
    assert (x[:, 0] == np.float32(0.3)).all() and x[:, 1].std() > 0.1


def test_guidance_on_a_condition_by_its_name(command):
    words = ("guidance=cfg", "cond.c=1", "n=8", "steps=4")
    classes = ("data.conditional=true", "classes=[2]")
    drawn = {}
    for name, on in (("all", "null"), ("both", "[label,c]"), ("c", "[c]")):
        more = (*words, *classes, f"guidance.on={on}", f"out={name}")
        assert command("sample", *CPU, *CONDITIONED, *more) == 0
        with np.load(f"{name}/samples.npz") as archive:
            drawn[name] = archive["arr_0"]
    assert np.array_equal(drawn["all"], drawn["both"])
    assert not np.allclose(drawn["all"], drawn["c"], atol=1e-2)


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (
            ("guidance=cfg", "guidance.on=[d]"),
            "guidance.on=[d]: the conditions of this",
        ),
        (("guidance=cfg", "guidance.on=[]"), "guidance.on="),
        (("cond.d=1",), "cond.d is unknown"),
        (("cond.c=[[1,2]]",), "cond.c"),
        (("data.given=3",), "data.given=3 must be below 3"),
        (("data.given=-1",), "data.given=-1"),
        (("model=data", "cond.c=1"), "cond.c: model=data takes the data as they come"),
    ],
)
def test_slips_are_one_sentence(words, says, command, capsys):
    model = () if "model=data" in words else ("model=exact",)
    assert command("sample", *CONDITIONED, "n=4", "device=cpu", *model, *words) == 2
    text = capsys.readouterr().err
    assert says in text and "Traceback" not in text
