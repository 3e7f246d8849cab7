"""evaluate, sample metrics= and trainer.metrics= through the command line, on embedded data."""

import csv
import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import IMAGES, POINTS, metrics

from fmdiff.build import named
from fmdiff.commands import grid
from fmdiff.data.images import Digits
from fmdiff.errors import FmdiffError
from fmdiff.metrics import results
from fmdiff.metrics.features import Features
from fmdiff.metrics.frechet import Moments
from fmdiff.metrics.images import ImageMetrics, Real
from fmdiff.metrics.judge import against
from fmdiff.metrics.metric import Metric
from fmdiff.runs import checkpoint
from fmdiff.sampling import Sampler

CPU = ("device=cpu", "threads=1")


class Tiny(Features):
    """Features of any image by a fixed random projection of its pixels; logits the first ten."""

    name, distance, dimension, classes, sha256 = "tiny", "fd_tiny", 12, 10, "0" * 64

    def __init__(self, scale: float = 1.0) -> None:
        self.scale = scale

    def to(self, device):
        return self

    def __call__(self, pixels):
        x = pixels.flatten(1).float() / 255
        draws = torch.Generator().manual_seed(x.shape[1])
        features = self.scale * x @ torch.randn(x.shape[1], 12, generator=draws)
        return features, features[:, :10]


@pytest.fixture(autouse=True)
def tiny(tmp_path, monkeypatch):
    """features=tiny, and a cache of its own."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    (tmp_path / "own/features").mkdir(parents=True)
    (tmp_path / "own/features/tiny.yaml").write_text("_target_: test_judge.Tiny\nscale: 1.0\n")
    return f"--config-dir={tmp_path / 'own'}", "features=tiny"


def report(folder="result"):
    return json.loads(Path(folder, "results.json").read_text())


def frechet(a, b):
    """By scipy's matrix root."""
    linalg = pytest.importorskip("scipy.linalg")
    root = linalg.sqrtm(np.cov(a.T) @ np.cov(b.T)).real
    gap = ((a.mean(0) - b.mean(0)) ** 2).sum()
    return gap + np.trace(np.cov(a.T)) + np.trace(np.cov(b.T)) - 2 * np.trace(root)


# --- images ----------------------------------------------------------------------------------


def test_real_images_against_real_ones(command, tiny, capfd):
    """The test images of digits against the training images, by a formula that is not ours."""
    names = "metrics=[fid,kid,is,precision,recall,memorisation,agreement,confidence,classes]"
    words = ("model=data", "data=digits", "n=200", *CPU, *tiny, names, "out=result")
    assert command("evaluate", *words) == 0
    found = report()
    data = Digits(batch_size=1, conditional=True, flip=False)
    order = data.sample(0, 200, 0)[0]
    test = ((order + 1) * 127.5).round().to(torch.uint8).permute(0, 2, 3, 1)
    train = data.train[0].permute(0, 2, 3, 1)
    wanted = frechet(*(Tiny()(pixels)[0].double().numpy() for pixels in (test, train)))
    fd = found["metrics"]["fd_tiny"]
    assert fd["value"] == pytest.approx(wanted, rel=1e-6)
    assert fd["n"] == 200 and fd["extractor"] == "tiny" and fd["weights_sha256"] == "0" * 64
    assert fd["reference"] == "digits train, 1,500 images"
    lo, hi = fd["interval"]
    assert lo < hi and fd["se"] > 0 and fd["floor"] > 0
    kid = found["metrics"]["kid"]
    assert abs(kid["value"]) < 4 * kid["se"]
    assert 0.5 < found["metrics"]["precision"]["value"] <= 1
    share = found["metrics"]["memorisation"]
    assert share["value"] < 0.01 + 4 * share["se"]  # fresh images are no copies
    assert Path("result/neighbours.png").is_file()
    assert any("only features=inception gives FID" in text for text in found["warnings"])
    told = capfd.readouterr().out
    assert "fd_tiny" in told and "note: " in told


def test_copies_of_training_images_are_noticed(command, tiny):
    data = Digits(batch_size=1, conditional=True, flip=False)
    np.savez("copies.npz", arr_0=data.train[0][:150].permute(0, 2, 3, 1).numpy())
    words = ("samples=copies.npz", "against=digits", "metrics=[memorisation]", *CPU, *tiny)
    assert command("evaluate", *words, "out=result") == 0
    found = report()
    assert found["metrics"]["memorisation"]["value"] > 0.99
    assert any("nearer to a training image" in text for text in found["warnings"])


def test_equal_sets_are_at_no_distance_and_statistics_files_serve(command, tiny):
    data = Digits(batch_size=1, conditional=True, flip=False)
    pixels = data.test[0].permute(0, 2, 3, 1)
    np.savez("same.npz", arr_0=pixels.numpy())
    words = ("samples=same.npz", "metrics=[fid]", *CPU, *tiny, "overwrite=true", "out=result")
    assert command("evaluate", *words, "against=same.npz") == 0
    assert abs(report()["metrics"]["fd_tiny"]["value"]) < 1e-6
    features = Tiny()(pixels)[0].double().numpy()
    np.savez("theirs.npz", mu=features.mean(0), sigma=np.cov(features.T))
    assert command("evaluate", *words, "against=theirs.npz") == 0
    found = report()["metrics"]["fd_tiny"]
    assert abs(found["value"]) < 1e-6 and found["reference"] == "the statistics theirs.npz"
    assert command("evaluate", *words, "against=theirs.npz", "metrics=[kid]") == 2


def test_the_reference_is_taken_from_the_cache(command, tiny, tmp_path, monkeypatch):
    words = ("model=data", "data=digits", "n=50", "metrics=[fid]", *CPU, *tiny, "out=result")
    assert command("evaluate", *words) == 0
    before = report()["metrics"]
    assert len(list((tmp_path / "cache").rglob("*.npz"))) == 2  # train and test
    calls = []
    plain = Tiny.__call__
    monkeypatch.setattr(Tiny, "__call__", lambda s, p: (calls.append(len(p)), plain(s, p))[1])
    assert command("evaluate", *words, "overwrite=true") == 0
    assert sum(calls) == 50 and report()["metrics"] == before


def test_metrics_right_after_sampling_and_a_recipe_that_repeats(command, tiny, digits_run, capfd):
    words = (f"ckpt={digits_run}", "n=60", "steps=2", "metrics=[fid,precision]", *CPU, *tiny)
    assert command("sample", *words, "out=one") == 0
    assert command("sample", *words, "batch_size=7", "out=two") == 0
    one, two = report("one"), report("two")
    assert one["command"] == "sample" and one["checkpoint"]["step"] == 3
    assert one["nfe_counted"] == 2
    for name, metric in one["metrics"].items():
        assert two["metrics"][name]["value"] == pytest.approx(metric["value"], rel=1e-3)
    with np.load("one/samples.npz") as made:
        pixels = torch.from_numpy(made["arr_0"])
    train = Digits(batch_size=1, conditional=True, flip=False).train[0].permute(0, 2, 3, 1)
    wanted = frechet(*(Tiny()(p)[0].double().numpy() for p in (pixels, train)))
    assert one["metrics"]["fd_tiny"]["value"] == pytest.approx(wanted, rel=1e-6)
    assert command("evaluate", *words, "out=three") == 0
    assert report("three")["metrics"] == one["metrics"]
    capfd.readouterr()
    assert (
        command(
            "evaluate",
            "result=three/results.json",
            "trust=[test_judge.]",
            *CPU,
            tiny[0],
            "out=four",
        )
        == 0
    )
    assert report("four")["metrics"] == one["metrics"]
    told = capfd.readouterr().out
    value = f"{one['metrics']['fd_tiny']['value']:.6g}"
    assert f"fd_tiny: {value} then, {value} now" in told
    assert command("evaluate", "result=one/results.json", "out=five") == 2


class Reads(Tiny):
    """Its logits are those of a table, by the first pixel."""

    dimension, classes = 1, 2
    table = torch.tensor([[9.0, 0], [9, 0], [0, 9], [0, 1]])

    def __call__(self, pixels):
        first = pixels[:, 0, 0, 0]
        return first[:, None].float(), self.table[first.long()]


def test_what_compares_with_no_real_images_reads_none(command, tmp_path, monkeypatch):
    monkeypatch.setenv("FMDIFF_DATA", str(tmp_path / "none"))
    words = ("ckpt=zoo:mnist", "n=4", "steps=1", *CPU, "metrics=[agreement,confidence,is]")
    assert command("evaluate", *words, "out=result") == 0
    assert report()["metrics"].keys() == {"agreement", "confidence", "is"}
    assert not (tmp_path / "none").exists()


def test_agreement_confidence_and_classes_by_hand():
    """Of four images one is read as another class, one with a probability below 0.9."""
    images = torch.arange(4, dtype=torch.uint8).view(4, 1, 1, 1).expand(-1, 8, 8, -1)
    labels = torch.tensor([0, 0, 0, 1])
    real = Real("given", Moments(1).add(torch.zeros(2, 1)), None, labels)
    judged = ImageMetrics(["agreement", "confidence", "classes", "is"], Reads(), real)
    judged.add(images, torch.tensor([0, 1, 1, 1]))
    found = judged.results()
    assert found["agreement"].value == found["confidence"].value == 0.75
    high, low = 1 / (1 + math.exp(-9)), 1 / (1 + math.exp(-1))
    assert found["confidence"].extra["mean"] == pytest.approx((3 * high + low) / 4)
    assert found["classes"].value == pytest.approx(0.25)  # 1/2, 1/2 for 3/4, 1/4
    assert found["agreement"].se == pytest.approx((0.75 * 0.25 / 4) ** 0.5)
    with pytest.raises(FmdiffError, match="needs samples with classes"):
        judged.clear()
        judged.add(images)
        judged.results()


def test_fewer_images_than_dimensions_warn_and_one_is_refused(command, tiny, capfd):
    data = Digits(batch_size=1, conditional=True, flip=False)
    pixels = data.test[0].permute(0, 2, 3, 1).numpy()
    words = ("against=digits", "metrics=[fid]", *CPU, *tiny, "overwrite=true", "out=result")
    np.savez("few.npz", arr_0=pixels[:8])
    assert command("evaluate", "samples=few.npz", *words) == 0
    assert any("rank-deficient" in text for text in report()["warnings"])
    np.savez("one.npz", arr_0=pixels[:1])
    assert command("evaluate", "samples=one.npz", *words) == 2
    assert "holds 1 sample" in capfd.readouterr().err


def test_missing_and_foreign_inception_weights_are_refused(command, capfd, monkeypatch, tmp_path):
    pytest.importorskip("torch_fidelity")
    monkeypatch.delenv("FMDIFF_INCEPTION", raising=False)
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    words = ("model=data", "data=digits", "n=4", *CPU, "features=inception", "out=result")
    assert command("evaluate", *words) == 2
    err = capfd.readouterr().err
    for part in ("pt_inception-2015-12-05", "https://", "95,628,359", "6726825d0af5f729", "torch"):
        assert part in err
    Path("other.pth").write_bytes(b"no weights")
    assert command("evaluate", *words, "features.weights=other.pth") == 2
    err = capfd.readouterr().err
    assert "other.pth" in err and "6726825d0af5f729" in err and err.count("\n") == 1


# --- points ----------------------------------------------------------------------------------


@pytest.mark.slow
def test_points_against_their_data_and_against_a_file(command):
    words = ("model=data", "data=gmm4", "n=2000", *CPU, "overwrite=true", "out=result")
    assert command("evaluate", *words) == 0
    found = report()["metrics"]
    assert set(found) >= {"sw2", "mmd2", "energy", "nll", "modes"}
    assert found["sw2"]["value"] < 4 * found["sw2"]["floor"]
    assert found["modes"]["value"] < 0.05
    np.savez(
        "far.npz",
        arr_0=named("data", "gmm4").sample(0, 2000, 9)[0].add(torch.tensor([10.0, 0.0])).numpy(),
    )
    assert command("evaluate", *words, "against=far.npz", "metrics=[w2]", "n=500") == 0
    assert report()["metrics"]["w2"]["value"] == pytest.approx(10, abs=0.3)


def test_several_seeds_give_a_mean_and_an_interval(command):
    words = ("model=exact", "data=gmm4", "n=400", "steps=8", "metrics=[sw2]", "repeats=3", *CPU)
    assert command("evaluate", *words, "seed=4", "out=result") == 0
    found = report()["metrics"]["sw2"]
    values = found["extra"]["values"]
    assert found["extra"]["seeds"] == [4, 5, 6] and len(set(values)) == 3
    assert found["value"] == pytest.approx(np.mean(values))
    half = 4.302653 * np.std(values, ddof=1) / 3**0.5  # Student's quantile of 2 degrees
    assert found["interval"] == pytest.approx(
        [np.mean(values) - half, np.mean(values) + half], rel=1e-4
    )


GRID = ("grid.solver=[euler,heun,rk4]", "grid.nfe=[2,8,16]", "metrics=[sw2]", "n=400")


def test_a_grid_is_one_table_and_can_be_gone_on_with(command, monkeypatch, capfd):
    words = ("model=exact", "data=8gaussians", *GRID, *CPU, "out=result")
    assert command("evaluate", *words) == 0
    assert "solver=rk4 nfe=2: left out, nfe=2: one step costs 4" in capfd.readouterr().out
    found = report()
    assert [row["settings"] for row in found["grid"]] == [
        {"solver": solver, "nfe": nfe}
        for solver, allowed in (("euler", (2, 8, 16)), ("heun", (2, 8, 16)), ("rk4", (8, 16)))
        for nfe in allowed
    ]
    with Path("result/table.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 8 and float(rows[2]["nfe_counted"]) == 16
    by = {(r["solver"], r["nfe"]): float(r["sw2"]) for r in rows}
    assert by["euler", "16"] < by["euler", "2"]
    table = Path("result/table.md").read_text()
    assert table.count("best sw2") >= 1 and Path("result/quality.png").is_file()

    def refuse(*args, **keys):
        raise AssertionError("sampled again")

    # the same settings again: all is there already
    monkeypatch.setattr(Sampler, "draw", refuse)
    assert command("evaluate", *words) == 0
    assert report()["grid"] == found["grid"]


def test_a_grid_keeps_the_keys_of_the_chosen_solver():
    settings = {
        "solver": {"_target_": "mine", "order": 3},
        "guidance": {"_target_": "fmdiff.guidance.CFG", "w": 2.0},
        "choices": {"solver": "adams", "schedule": "uniform", "guidance": "cfg"},
        "steps": 4,
        "nfe": None,
    }
    same = grid.settings_of({"solver": "adams", "nfe": 10}, settings)
    assert same["solver"]["order"] == 3 and (same["steps"], same["nfe"]) == (None, 10)
    other = grid.settings_of({"solver": "euler", "w": 3}, settings)
    assert other["solver"]["_target_"].endswith("Euler") and other["guidance"]["w"] == 3
    with pytest.raises(FmdiffError, match=r"grid.w=2 needs a guidance"):
        grid.settings_of({"w": 2}, settings | {"guidance": {"_target_": "none"}})


@pytest.mark.parametrize(
    ("points", "more", "wanted"),
    [
        ([(1, 5.0), (2, 4.0), (2, 6.0), (3, 4.5), (4, 1.0)], False, [0, 1, 4]),
        ([(1, 0.5), (2, 0.4), (2, 0.9)], True, [0, 2]),
        ([(1, float("nan")), (2, 1.0)], False, [1]),
    ],
)
def test_the_pareto_front(points, more, wanted):
    assert results.front(points, more) == wanted


# --- while training --------------------------------------------------------------------------


def test_training_is_judged_on_the_way_and_keeps_its_best(train, tmp_path):
    words = (
        *POINTS,
        "trainer.max_steps=60",
        "trainer.log_every=20",
        "trainer.inner_steps=10",
        "trainer.metrics=[sw2]",
        "trainer.metrics_every=20",
        "trainer.metrics_n=300",
        "trainer.best=sw2",
        "trainer.validate_every=60",
        "trainer.picture_every=60",
        "trainer.checkpoint_every=20",
    )
    whole = train(tmp_path / "whole", *words)
    rows = metrics(tmp_path / "whole")
    values = {int(row["step"]): float(row["sw2"]) for row in rows}
    assert set(values) == {20, 40, 60}
    best = checkpoint.read(tmp_path / "whole" / "best.ckpt")["step"]
    assert best == min(values, key=lambda step: values[step])
    # a resumed run has the same figures
    train(tmp_path / "cut", *(w.replace("max_steps=60", "max_steps=40") for w in words))
    train(tmp_path / "cut", *words, "resume=true")
    again = {int(row["step"]): float(row["sw2"]) for row in metrics(tmp_path / "cut")}
    assert again.keys() == values.keys() and whole["step"] == 60
    assert checkpoint.read(tmp_path / "cut" / "best.ckpt")["step"] in values
    more = ("trainer.metrics=null", "trainer.best=null", "trainer.max_steps=80", "resume=true")
    kept = [
        word for word in words if word.partition("=")[0] not in {w.partition("=")[0] for w in more}
    ]
    assert train(tmp_path / "cut", *kept, *more)["step"] == 80


def test_images_are_judged_while_training(train, tmp_path, tiny):
    words = ("trainer.max_steps=2", "trainer.metrics=[fid]", "trainer.metrics_n=20", *tiny)
    train(tmp_path / "run", *IMAGES, *words, "trainer.best=fd_tiny")
    (row,) = [r for r in metrics(tmp_path / "run") if r["fd_tiny"]]
    assert float(row["fd_tiny"]) > 0 and (tmp_path / "run" / "best.ckpt").is_file()


# --- refusals --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (("data=digits", "features=cifar10"), "takes colour images, of 3 channels, not of 1"),
        (("data=digits", "features=minst"), "did you mean 'mnist'"),
        (("data=gmm4", "against=mnits"), "did you mean 'mnist'"),
        (("data=gmm4", "against=digits"), "against=digits is data of shape [1, 8, 8]"),
        (("data=digits", "against=mnist", "features=mnist"), "is data of shape [1, 28, 28]"),
        (("data=gmm4", "against=gmm4:test"), "gmm4 has no split 'test'"),
        (("data=digits", "against=digits:val"), "choose digits:train or digits:test"),
        (("data=gmm4", "metrics=[sw3]"), "metrics=[sw3] cannot be had"),
        (("data=moons", "metrics=[nll]"), "metrics=[nll] cannot be had"),
        (("data=gmm4", "metrics=[]"), "metrics=[]: must be a list of names"),
        (("data=gmm4", "grid.nfe=[0]"), "grid.nfe=[0]: must be"),
        (("data=gmm4", "grid.nfe=[4]", "grid.steps=[4]"), "choose one of them"),
        (("data=gmm4", "grid.solver=[hein]"), "did you mean 'heun'"),
        (("data=gmm4", "grid.w=[2]"), "grid.w=2 needs a guidance"),
    ],
)
def test_refusals_of_the_command_line(command, capfd, words, says):
    assert command("evaluate", "model=data", "n=20", *CPU, *words, "out=result") == 2
    err = capfd.readouterr().err
    assert says in err and err.count("\n") == 1
    assert not Path("result").exists()


def test_what_the_extractor_lacks_is_refused(command, capfd, tiny):
    words = ("model=data", "data=digits", "n=20", *CPU, *tiny, "out=result")
    assert command("evaluate", *words, "metrics=[fidd]") == 2
    assert "did you mean 'fid'" in capfd.readouterr().err
    assert command("train", *IMAGES, "trainer.best=fid", "out=run") == 2
    assert "say trainer.metrics=" in capfd.readouterr().err


def test_files_need_to_be_told_what_they_are_compared_with(command, capfd):
    np.savez("s.npz", arr_0=np.ones((20, 2)))
    assert command("evaluate", "samples=s.npz", *CPU) == 2
    assert "samples=s.npz need against=" in capfd.readouterr().err
    assert command("evaluate", "samples=s.npz", "against=gmm4", "metrics=[sw2]", *CPU) == 0
    assert len(list(Path("outputs/evaluation").glob("*/results.json"))) == 1
    assert command("evaluate", "samples=s.npz", "against=gmm4", "n=30", *CPU) == 2
    assert "holds 20 samples" in capfd.readouterr().err
    assert command("evaluate", "samples=gone.npz", "against=gmm4", *CPU) == 2
    assert "samples=gone.npz does not exist" in capfd.readouterr().err


def test_a_metric_survives_its_own_json():
    metric = Metric(1.0, 5, interval=(0.5, 1.5), extra={"a": [1, 2]})
    text = json.loads(json.dumps(metric.as_dict()))
    assert grid.Draw(1.0, 1.0, {"m": text}).as_metrics()["m"].as_dict() == metric.as_dict()


def test_against_nothing_is_refused():
    with pytest.raises(FmdiffError, match="against= is needed"):
        against(None, None)
