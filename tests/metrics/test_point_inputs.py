"""Points of any kind give a number with its reason, or a sentence."""

import json
import math
from dataclasses import astuple
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import POINTS, metrics

from fmdiff.data import saved
from fmdiff.errors import FmdiffError
from fmdiff.metrics import distances
from fmdiff.metrics.points import outlier, point_metrics
from fmdiff.randomness import generator

NAMES = ("sw2", "w2", "mmd2", "energy")
CPU = ("device=cpu", "threads=1", "overwrite=true", "out=result")


def points(n, seed, d=2):
    return torch.randn(n, d, dtype=torch.float64, generator=generator(seed, "points"))


def numbers(metric):
    value, _, se, interval, *_ = astuple(metric)
    return value, se, *interval


# --- where the sets lie, and their size ----------------------------------------------------------


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("shift", [3e7, -1e8])
def test_a_common_shift_changes_nothing(name, shift):
    a, b = points(200, 0), points(200, 1) + 1
    measure = getattr(distances, name)
    assert numbers(measure(a + shift, b + shift)) == pytest.approx(
        numbers(measure(a, b)), rel=1e-5
    )


@pytest.mark.parametrize("name", NAMES)
def test_a_common_scale_scales(name):
    a, b = points(200, 0), points(200, 1) + 1
    measure = getattr(distances, name)
    for scale in (2.0**-40, 2.0**60):
        expected = [(1 if name == "mmd2" else scale) * x for x in numbers(measure(a, b))]
        assert numbers(measure(scale * a, scale * b)) == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("size", [1e30, 1e150])
def test_one_far_point_gives_finite_numbers(name, size):
    for precision in (torch.float64, torch.float32):
        if size > 1e38 and precision == torch.float32:
            continue
        a, b = points(200, 0).to(precision), points(200, 1).to(precision)
        far = a.clone()
        far[3, 1] = size
        for pair in ((far, b), (b, far), (far, far.flip(0))):
            assert all(map(math.isfinite, numbers(getattr(distances, name)(*pair))))
    if name == "mmd2":  # the kernel sees the other points as before
        assert distances.mmd2(far, b).value == pytest.approx(distances.mmd2(a, b).value, abs=0.01)
    elif name == "w2":
        assert distances.w2(far, b).value == pytest.approx(size / math.sqrt(200))


def test_a_far_point_in_both_sets_leaves_the_distance_of_the_rest():
    """A reference in integers: the set moved by 1 but for one point at 2^70."""
    a = points(100, 0)
    a[7] = 2.0**70
    b = a + 1
    b[7] = 2.0**70
    assert distances.w2(a, b).value == pytest.approx(math.sqrt(2 * 99 / 100), rel=1e-6)
    assert distances.sw2(a, b).value == pytest.approx(math.sqrt(99 / 100), rel=0.1)


# --- equal points --------------------------------------------------------------------------------


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("d", [1, 3])
def test_equal_points_give_finite_numbers(name, d):
    one, other = torch.full((50, d), 3.0), torch.full((50, d), 5.0)
    measure = getattr(distances, name)
    assert measure(one, one).value == 0
    for pair in ((one, one), (one, other), (points(50, 0, d), one), (one, points(50, 0, d))):
        assert all(map(math.isfinite, numbers(measure(*pair))))
    assert measure(one, other).value > 0.3


@pytest.mark.parametrize(
    ("name", "noise"), [("mmd2", 0.0), ("energy", 0.0), ("energy", 1e-12), ("energy", 1e-6)]
)
def test_nearly_equal_sets_have_an_interval_of_the_size_of_the_noise(name, noise):
    """The square vanishes with its error, so that neither is divided by rounding."""
    a = points(200, 0).double()
    a[:160] = 1
    measure = getattr(distances, name)
    other = a[torch.randperm(200, generator=generator(0, "order"))] + noise * points(200, 1)
    low, high = measure(other, a).interval
    fresh = measure(points(200, 2), a).interval
    assert low <= 0 <= high < fresh[1] - fresh[0]


def test_a_median_distance_of_zero_is_said():
    mostly = points(200, 0)
    mostly[:160] = 0
    metric = distances.mmd2(points(200, 1), mostly)
    assert "half of the pairs of reference points are equal" in metric.extra["note"]
    assert 0.1 < metric.value < 1 and metric.extra["bandwidths"][-1] > 0.5
    assert "note" not in distances.mmd2(mostly, points(200, 1)).extra


def test_few_points_are_refused_in_a_sentence():
    with pytest.raises(FmdiffError, match="from 4 to the number of samples, 9, and of reference"):
        point_metrics(["sw2"], points(9, 0), None, 2, points=points(2, 1))
    for name in NAMES:
        metric = point_metrics([name], points(4, 0), None, 4, points=points(4, 1))[name]
        assert all(map(math.isfinite, numbers(metric)))


# --- files ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kind", "wanted"),
    [
        ("f2", "float32"),
        ("f4", "float32"),
        ("f8", "float64"),
        (">f8", "float64"),
        ("g", "float64"),
    ],
)
def test_files_keep_their_precision(tmp_path, kind, wanted):
    np.savez(tmp_path / "x.npz", arr_0=np.ones((5, 2), kind) / 3)
    x, _ = saved.read(tmp_path / "x.npz", "samples")
    assert str(x.dtype) == f"torch.{wanted}"
    assert x[0, 0].item() == pytest.approx(1 / 3, rel=1e-3)


@pytest.mark.parametrize("number", [math.nan, math.inf, -math.inf, -1e200])
@pytest.mark.parametrize("option", ["samples", "against"])
def test_a_wrong_number_is_named_with_its_file_and_row(command, capfd, number, option):
    x = points(50, 0).numpy()
    np.savez("right.npz", arr_0=x)
    x[[17, 30], 1] = number
    np.savez("wrong.npz", arr_0=x)
    files = {"samples": "right.npz", "against": "right.npz"} | {option: "wrong.npz"}
    assert command("evaluate", *(f"{k}={v}" for k, v in files.items()), *CPU) == 2
    err = capfd.readouterr().err
    assert f"{option}=wrong.npz holds {number} in row 17 (the first is row 0)" in err
    assert "2 of its 50 rows" in err and err.count("\n") == 1
    assert not Path("result").exists()


@pytest.mark.parametrize(
    ("arrays", "says"),
    [
        ({"arr_0": np.ones((5, 2)), "labels": [0, 1, -1, 2, -3]}, "the label -3 in row 4"),
        ({"arr_0": np.ones((0, 2))}, "holds arr_0 of float64 (0, 2)"),
        ({"arr_0": np.ones((5, 0))}, "holds arr_0 of float64 (5, 0)"),
        ({"arr_0": np.ones((5, 2), int)}, "holds arr_0 of int64 (5, 2)"),
    ],
)
def test_other_files_are_refused_in_a_sentence(tmp_path, arrays, says):
    np.savez(tmp_path / "x.npz", **arrays)
    with pytest.raises(FmdiffError) as error:
        saved.read(tmp_path / "x.npz", "samples")
    assert says in str(error.value)


def test_a_far_point_is_named_and_moved_files_agree(command, capfd):
    a, b = points(60, 0).numpy(), points(60, 1).numpy() + 1
    values = []
    for shift in (0, 1e8):
        np.savez("a.npz", arr_0=a + shift)
        np.savez("b.npz", arr_0=b + shift)
        assert command("evaluate", "samples=a.npz", "against=b.npz", *CPU) == 0
        results = json.loads(Path("result/results.json").read_text())
        assert results["warnings"] == []
        values.append({name: metric["value"] for name, metric in results["metrics"].items()})
    assert values[0] == pytest.approx(values[1], rel=1e-6)
    a[9, 0] = 1e30
    np.savez("a.npz", arr_0=a)
    for names in (("a", "b"), ("b", "a")):
        words = [f"{k}={v}.npz" for k, v in zip(("samples", "against"), names, strict=True)]
        assert command("evaluate", *words, *CPU) == 0
        out = capfd.readouterr().out
        option = next(word for word in words if "a.npz" in word)
        assert f"note: {option}: row 9 (the first is row 0) is 1e+30 from the median" in out
        assert "nan" not in out and "inf" not in out


def test_points_that_lie_near_each_other_have_no_note():
    x = points(100, 0)
    assert outlier(x, "x") == outlier(torch.zeros(9, 2), "x") == []
    assert outlier(torch.cat([torch.zeros(80, 2), x[:20]]), "x") == []


# --- while training ------------------------------------------------------------------------------


@pytest.mark.parametrize("error", [ValueError("no such thing"), FmdiffError("no such thing")])
def test_a_metric_that_fails_does_not_end_a_training(train, tmp_path, monkeypatch, capfd, error):
    def broken(a, b):
        raise error

    monkeypatch.setattr(distances, "energy", broken)
    broken.__name__ = "energy"
    words = ("trainer.max_steps=4", "trainer.metrics=[sw2,energy]", "trainer.metrics_every=2")
    last = train(tmp_path / "run", *POINTS, *words, "trainer.metrics_n=50")
    assert last["step"] == 4
    rows = metrics(tmp_path / "run")
    assert [float(row["sw2"]) > 0 for row in rows if row["sw2"]] == [True, True]
    assert not any(row["energy"] for row in rows)
    assert "step 2: no energy: no such thing" in capfd.readouterr().err


def test_an_error_of_all_metrics_does_not_end_a_training(train, tmp_path, monkeypatch, capfd):
    def broken(*args, **keys):
        raise RuntimeError("the sampler is broken")

    monkeypatch.setattr("fmdiff.training.judged.generate", broken)
    words = ("trainer.max_steps=2", "trainer.metrics=[sw2]", "trainer.metrics_every=2")
    last = train(tmp_path / "run", *POINTS, *words, "trainer.best=sw2")
    assert last["step"] == 2
    assert "no metrics at step 2: RuntimeError('the sampler is broken')" in capfd.readouterr().err
