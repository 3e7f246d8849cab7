"""fmdiff evaluate: the three mean squares, their identity, the irreducible one as an integral.

The checkpoints it refuses are in test_combinations.
"""

import csv
import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import POINTS
from PIL import Image

from fmdiff.build import named
from fmdiff.exact import Empirical, exact
from fmdiff.metrics.field_error import Errors, compare
from fmdiff.path import VP, CondOT
from fmdiff.path import Path as Curve

QUICK = ("against=exact", "times=5", "n=4000", "device=cpu", "threads=1", "out=result")
FEW = ("against=exact", "times=3", "n=100", "device=cpu", "threads=1", "out=result")  # with maps


def report():
    """results.json, checked against errors.csv and for what must hold of any field.

    The means over time are put together again in `mean`.
    """
    content = json.loads(Path("result/results.json").read_text())
    with Path("result/errors.csv").open(newline="") as file:
        table = [{k: float(v) for k, v in row.items()} for row in csv.DictReader(file)]
    assert table == content["rows"] and tuple(table[0]) == Errors._fields
    assert Image.open("result/errors.png").size > (200, 100)
    metrics = content["metrics"]
    content["mean"] = {name: metric["value"] for name, metric in metrics.items()}
    content["mean"] |= {"size": metrics["fm"]["extra"]["size"], "gap_error": metrics["gap"]["se"]}
    for row in [*content["rows"], content["mean"]]:
        assert row["gap"] == pytest.approx(
            row["cfm"] - row["fm"] - row["irreducible"], abs=1e-8 * row["cfm"]
        )
        # 4 standard errors: the identity cfm = fm + irreducible
        assert abs(row["gap"]) <= 4 * row["gap_error"] + 1e-12 * row["cfm"]
    return content


@pytest.fixture
def gmm4_run(train, tmp_path):
    words = (*POINTS[1:], "data=gmm4", "trainer.max_steps=40", "trainer.warmup=0")
    train(tmp_path / "run", *words)
    return tmp_path / "run"


def test_a_checkpoint_against_the_exact_field(command, gmm4_run, capfd):
    capfd.readouterr()
    words = (f"ckpt={gmm4_run}", "against=exact")
    assert command("evaluate", *words, *QUICK) == 0
    found = report()
    assert found["config"]["against"] == "exact" and found["kind"] == "v"
    assert [row["t"] for row in found["rows"]] == pytest.approx([0.1, 0.3, 0.5, 0.7, 0.9])
    for row in found["rows"]:
        assert (
            row["fm"] > 10 * row["fm_error"] > 0 and row["cfm"] > row["fm"] + 4 * row["fm_error"]
        )
        assert row["gap_error"] > 0
    told = capfd.readouterr().out
    assert "FM loss" in told and "result/results.json" in told
    # the other kinds are fields too, and the raw weights are another network
    for more in ("kind=x", "kind=eps", "kind=score", "weights=raw"):
        assert command("evaluate", *words, *QUICK, more, "overwrite=true") == 0
        assert report()["mean"]["fm"] != found["mean"]["fm"]


def test_errors_against_the_exact_field_are_repeated_from_their_results(command, capfd):
    words = ("model=empirical", "model.n=50", "data=gmm4")
    assert command("evaluate", *words, *QUICK) == 0
    before = report()
    words = ("result=result/results.json", "device=cpu", "out=again")
    capfd.readouterr()
    assert command("evaluate", *words) == 0
    after = json.loads(Path("again/results.json").read_text())
    assert after["rows"] == before["rows"] and after["metrics"] == before["metrics"]
    lines = capfd.readouterr().out.splitlines()
    for name in ("fm", "cfm", "irreducible", "gap"):
        (line,) = [line for line in lines if line.startswith(f"  {name}: ")]
        then, now = line.replace(",", "").split()[1::2][:2]
        assert then == now == f"{before['mean'][name]:.6g}"


def test_the_errors_lie_with_the_samples_of_a_run(command, gmm4_run):
    assert command("evaluate", f"ckpt={gmm4_run}", *QUICK[:-1]) == 0
    assert len(list(gmm4_run.glob("samples/*/results.json"))) == 1


@pytest.mark.parametrize("seed", [0, pytest.param(1, marks=pytest.mark.slow)])
def test_the_field_of_a_finite_data_set_is_near_the_exact_one(command, seed):
    """The pairs are fresh ones: on its own members the field would know more than x_t tells."""
    means = []
    for n in (20, 2000):
        words = ("model=empirical", f"model.n={n}", "data=gmm4", "against=exact", f"seed={seed}")
        assert command("evaluate", *words, *QUICK, "overwrite=true") == 0
        means.append(report()["mean"])
    few, many = means
    assert many["fm"] < few["fm"] / 3
    assert many["irreducible"] == few["irreducible"]  # of the data, not of the field


@pytest.mark.parametrize("path", ["condot", "vp", "ve"])
def test_the_exact_field_has_no_error_of_its_own(command, path):
    words = ("model=exact", "data=gmm4", f"path={path}", "against=exact")
    assert command("evaluate", *words, *FEW) == 0
    mean = report()["mean"]
    assert mean["fm"] <= 1e-20 * mean["size"] and mean["cfm"] > 0.1
    assert mean["cfm"] == pytest.approx(mean["irreducible"], rel=1e-12)


def test_a_conditional_field_is_compared_class_by_class(command):
    """Within a class gmm4 is one Gaussian: less is irreducible than without labels."""
    found = []
    for conditional in ("true", "false"):
        words = ("model=exact", "data=gmm4", f"data.conditional={conditional}", "kind=x")
        few = ("n=1000",) * (conditional == "false")  # the map of a mixture takes its time
        assert command("evaluate", *words, *QUICK, *few, "overwrite=true") == 0
        found.append(report())
    for row, mixed in zip(found[0]["rows"], found[1]["rows"], strict=True):
        t, s = row["t"], 0.16
        wanted = 2 * s * (1 - t) ** 2 / (t * t * s + (1 - t) ** 2)  # posterior variance, 2-D
        assert row["irreducible"] == pytest.approx(wanted, rel=4 / math.sqrt(4000))
        assert row["irreducible"] < mixed["irreducible"] * 1.1
    assert found[0]["mean"]["irreducible"] < found[1]["mean"]["irreducible"] / 2


def moments_of_the_error(path: Curve, kind: str, t: float):
    """E (c - u)^2 and E (c - u)^4 on two_modes, 1-D, by sums over a grid of (x, x_t).

    Given x_t, c = k x + const: k = a - b alpha/beta for the row (a, b) of the kind.
    """
    at = torch.tensor(t, dtype=torch.float64)
    alpha, beta = (c.item() for c in path.row("x_t", at))
    a, b = (c.item() for c in path.row(kind, at))
    near = np.linspace(-2.1, 2.1, 1401)
    x = np.concatenate([near - 5, near + 5])
    prior = np.exp(-(near**2) / (2 * 0.3**2))
    prior = np.concatenate([prior, prior]) / (2 * prior.sum())
    reach = 5 * alpha + 7 * math.sqrt((0.3 * alpha) ** 2 + beta**2)
    x_t = np.linspace(-reach, reach, 1501)[:, None]
    joint = prior * np.exp(-((x_t - alpha * x) ** 2) / (2 * beta**2))
    density = joint.sum(1, keepdims=True)
    off = x - joint @ x[:, None] / density
    slope = a - b * alpha / beta
    density, joint = density / density.sum(), joint / joint.sum()
    return (slope**2 * (joint * off**2).sum(), slope**4 * (joint * off**4).sum())


@pytest.mark.parametrize(
    "kind", ["v", *(pytest.param(kind, marks=pytest.mark.slow) for kind in ("x", "eps"))]
)
@pytest.mark.parametrize(
    "path", [pytest.param(CondOT(), marks=pytest.mark.slow), VP()], ids=["condot", "vp"]
)
def test_the_irreducible_part_is_an_integral(path, kind):
    data, n = named("data", "two_modes"), 8000
    truth = exact(data, path)
    # the field compared does not matter to it
    field = Empirical(path, *data.examples(50), 0)
    for row in compare(field, truth, data, kind, 4, n):
        second, fourth = moments_of_the_error(path, kind, row.t)
        error = math.sqrt((fourth - second**2) / n)
        assert row.irreducible == pytest.approx(second, abs=4 * error + 1e-5 * second)
        assert error < 0.2 * second and row.fm > 0


def test_equal_seeds_give_equal_results(command):
    found = []
    for seed in (0, 0, 1):
        words = ("model=empirical", "model.n=50", "data=gmm4", f"seed={seed}")
        assert command("evaluate", *words, *QUICK, "overwrite=true") == 0
        found.append(report()["rows"])
    assert found[0] == found[1] != found[2]


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("model=empirical", "data=moons", "against=exact"), "Moons has none"),
        (("model=exact", "data=moons", "against=exact"), "Moons has none"),
        (("model=empirical", "data=gmm4", "against=exakt"), "against=exakt"),
        (("model=empirical", "data=gmm4", "kind=velocity"), "kind=velocity"),
        (("model=empirical", "data=gmm4", "times=0"), "times=0"),
        (("model=empirical", "data=gmm4", "n=1"), "n=1"),
    ],
)
def test_what_cannot_be_compared_is_refused(command, tmp_path, capfd, words, said):
    assert command("evaluate", *words, "device=cpu", "out=result") == 2
    err = capfd.readouterr().err
    assert said in err and err.count("\n") == 1 and err.startswith("fmdiff evaluate: ")
    assert not (tmp_path / "result").exists()
