"""Which metrics images have by default, and what is refused before anything is sampled."""

import csv
import json
import os
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import IMAGES
from PIL import Image
from test_judge import Tiny

from fmdiff.build import named
from fmdiff.data.images import MNIST, Digits
from fmdiff.errors import FmdiffError
from fmdiff.metrics import judge as judges
from fmdiff.metrics.features import Classifier
from fmdiff.metrics.frechet import Moments, frechet_distance
from fmdiff.metrics.images import ImageMetrics, Real
from fmdiff.metrics.judge import judge
from fmdiff.metrics.metric import Metric
from fmdiff.metrics.results import as_text, over_seeds
from fmdiff.sampling import Sampler

CPU = ("device=cpu", "threads=1")


def report(folder="judged"):
    return json.loads(Path(folder, "results.json").read_text())


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("FMDIFF_DATA", str(tmp_path / "data"))


@pytest.fixture
def nothing_sampled(monkeypatch):
    def refuse(*args, **keys):
        raise AssertionError("sampled before it was checked")

    monkeypatch.setattr(Sampler, "draw", refuse)


def colours(classes, each, seed=0):
    """Images 32 x 32 of one plain colour a class, a little noisy, and their classes."""
    draw = np.random.default_rng(seed)
    labels = np.repeat(np.arange(classes), each)
    palette = np.random.default_rng(9).integers(20, 235, (classes, 3))
    noise = draw.integers(-15, 15, (len(labels), 32, 32, 3))
    return (palette[labels][:, None, None] + noise).astype(np.uint8), labels


def colour_folders(classes, each=12):
    pixels, labels = colours(classes, each)
    for i, (image, label) in enumerate(zip(pixels, labels, strict=True)):
        os.makedirs(f"pictures/kind{label:02}", exist_ok=True)
        Image.fromarray(image).save(f"pictures/kind{label:02}/{i}.png")
    return ("data=folder", "data.root=pictures", "data.size=32", "data.batch_size=8")


def test_ten_classes_are_not_taken_for_those_of_another_data_set(command):
    for name, seed in (("made.npz", 0), ("real.npz", 1)):
        pixels, labels = colours(10, 6, seed)
        np.savez(name, arr_0=pixels, labels=labels)
    words = ("evaluate", "samples=made.npz", "against=real.npz", *CPU, "overwrite=true")
    words = (*words, "out=judged")
    assert command(*words) == 0
    found = report()
    assert set(found["metrics"]) == {"fd_cifar10", "kid", "precision", "recall"}
    (text,) = [text for text in found["warnings"] if "classifier of cifar10" in text]
    assert "they rank models of these files" in text
    assert command(*words, "metrics=[agreement,confidence]") == 0
    found = report()
    assert set(found["metrics"]) == {"agreement", "confidence"}
    (text,) = found["warnings"]
    assert text.startswith("agreement, confidence: ") and "does not know the classes" in text


def test_a_folder_of_ten_classes_is_not_cifar10(command):
    words = ("evaluate", "model=data", *colour_folders(10), "n=6", *CPU)
    assert command(*words, "out=judged") == 0
    assert set(report()["metrics"]) == {"fd_cifar10", "kid", "precision", "recall"}


@pytest.mark.parametrize(
    ("metric", "says"),
    [
        ("agreement", "for the 10 of features=cifar10, and the samples have 12"),
        ("classes", "for the 10 of features=cifar10, and folder train"),
    ],
)
def test_more_classes_than_the_extractor_knows(command, capfd, nothing_sampled, metric, says):
    words = ("evaluate", "model=data", *colour_folders(12, 4), "n=8", *CPU, "features=cifar10")
    assert command(*words, f"metrics=[{metric}]", "out=judged") == 2
    err = capfd.readouterr().err.splitlines()[-1]
    assert says in err and not Path("judged").exists()


def test_twelve_classes_have_the_metrics_that_need_none(command):
    words = ("evaluate", "model=data", *colour_folders(12, 4), "n=8", *CPU)
    assert command(*words, "out=judged") == 0
    assert set(report()["metrics"]) == {"fd_cifar10", "kid", "precision", "recall"}
    pixels, labels = colours(12, 3)
    np.savez("made.npz", arr_0=pixels, labels=labels)
    words = ("evaluate", "samples=made.npz", "against=made.npz", *CPU)
    assert command(*words, "out=files") == 0
    found = report("files")["metrics"]
    assert "agreement" not in found
    assert found["kid"]["value"] < 0 <= found["kid"]["interval"][1]  # the sets are equal


def test_labels_of_a_file_are_taken_for_those_of_a_data_set_in_a_sentence(command, monkeypatch):
    class OfDigits(Tiny):
        data = "digits"

    monkeypatch.setattr(Digits, "name", "digits")
    monkeypatch.setattr(judges, "_extractor", lambda *_: OfDigits())
    pixels = np.random.default_rng(0).integers(0, 255, (40, 8, 8, 1), dtype=np.uint8)
    sentence = (
        "agreement, confidence: the labels of the samples are taken for the classes of digits"
    )
    np.savez("made.npz", arr_0=pixels, labels=np.arange(40) % 10)
    assert command("evaluate", "samples=made.npz", "against=digits", *CPU, "out=a") == 0
    assert "agreement" in report("a")["metrics"] and sentence in report("a")["warnings"]
    np.savez("plain.npz", arr_0=pixels)
    assert command("evaluate", "samples=plain.npz", "against=digits", *CPU, "out=b") == 0
    assert sentence not in report("b")["warnings"]


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (("n=3", "metrics=[precision]"), "n is 3, and metrics=[precision] needs 4 at least"),
        (("n=3", "metrics=[fid,recall]"), "n is 3, and metrics=[recall] needs 4 at least"),
        (("metrics=[agreement]", "data.conditional=false"), "and the samples have none"),
        (
            ("features=cifar10",),
            "of 3 channels, not of 1; choose features=mnist or fashion_mnist or inception",
        ),
    ],
)
def test_a_request_that_cannot_be_met_fails_early(command, capfd, nothing_sampled, words, says):
    words = ("model=data", "data=digits", "n=20", *CPU, *words)
    for name in ("evaluate", "sample"):
        metrics = () if any("metrics=" in word for word in words) else ("metrics=[fid]",)
        assert command(name, *words, *metrics, "out=judged") == 2
        assert says in capfd.readouterr().err and not Path("judged").exists()


def test_too_few_points_fail_early(command, capfd, nothing_sampled):
    assert command("evaluate", "model=exact", "data=gmm4", "n=3", *CPU, "out=judged") == 2
    assert "need 4 samples and 4 points at least" in capfd.readouterr().err


def small_mnist(monkeypatch):
    """MNIST's class with a few digits of the package, enlarged: no download."""
    digits = named("data", "digits", batch_size=1)

    def read(self, train):
        images, labels = digits.train if train else digits.test
        return torch.nn.functional.interpolate(images[:150], (28, 28)), labels[:150]

    monkeypatch.setattr(MNIST, "read", read)
    monkeypatch.setattr(MNIST, "prepare", lambda self: None)


def test_the_classes_of_a_data_set_of_the_package_are_its_own(command, monkeypatch):
    small_mnist(monkeypatch)
    words = ("evaluate", "model=data", "data=mnist", "n=20", *CPU)
    assert command(*words, "out=judged") == 0
    found = report()
    assert set(found["metrics"]) >= {"fd_mnist", "agreement", "confidence"}
    assert found["metrics"]["agreement"]["value"] > 0.3  # 0.1 by chance
    assert not any("classifier of mnist" in text for text in found["warnings"])
    x = to_pixels(named("data", "mnist", batch_size=1).test[0])
    np.savez("made.npz", arr_0=x.numpy(), labels=np.zeros(len(x), int))
    assert command("evaluate", "samples=made.npz", "against=mnist", *CPU, "out=files") == 0
    assert "agreement" in report("files")["metrics"]  # the file is said to be of MNIST


def to_pixels(images):
    return images.permute(0, 2, 3, 1).contiguous()


def test_digits_of_another_size_have_a_distance_by_default(command, tmp_path):
    words = ("evaluate", "model=data", "data=digits", "n=100", *CPU)
    assert command(*words, "out=judged") == 0
    found = report()
    assert set(found["metrics"]) == {"fd_mnist@8x8", "kid", "precision", "recall"}
    (text,) = [text for text in found["warnings"] if "which resizes the images" in text]
    assert "features=mnist@8x8" in text and "models of Digits" in text
    assert found["metrics"]["fd_mnist@8x8"]["extra"] == {"floor_sets": 9}
    cached = [path.name for path in (tmp_path / "cache").rglob("*.npz")]
    assert all("-mnist@8x8-" in name for name in cached) and len(cached) == 2


def test_the_distance_of_resized_digits_ranks_them():
    """Blurred, noisy and dark digits and half of the classes are far beyond fresh ones."""
    data = named("data", "digits", batch_size=1)
    extractor = Classifier("mnist").for_shape((1, 8, 8))
    train, test = data.train[0], data.test[0]

    def distance(images):
        parts = (extractor(to_pixels(part))[0] for part in (images, train))
        return frechet_distance(*(Moments(extractor.dimension).add(part) for part in parts))

    blurred = torch.nn.functional.avg_pool2d(test.float(), 3, 1, 1).round().to(torch.uint8)
    draws = torch.Generator().manual_seed(0)
    noise = torch.randn(test.shape, generator=draws)
    near = [distance((test + k * noise).clamp(0, 255).to(torch.uint8)) for k in (0, 20, 60)]
    assert distance(blurred) > 20 * near[0]
    assert near[2] > 2 * near[1] and near[2] > 2 * near[0]
    dark, few = (test * 0.8).to(torch.uint8), test[data.test[1] < 5]
    assert distance(dark) > 4 * near[0] and distance(few) > 4 * near[0]


def test_training_on_digits_is_judged_by_default_features(train, tmp_path):
    words = ("trainer.max_steps=2", "trainer.metrics=[fid]", "trainer.metrics_n=20")
    train(tmp_path / "run", *IMAGES, *words, "trainer.best=fd_mnist@8x8")
    with (tmp_path / "run/metrics.csv").open(newline="") as file:
        values = [row["fd_mnist@8x8"] for row in csv.DictReader(file)]
    assert float(values[-1]) > 0 and (tmp_path / "run/best.ckpt").is_file()


class Rows(Classifier):
    """Features of two numbers, for a reference by hand."""

    name = distance = data = "rows"
    dimension, classes = 2, 0

    def __init__(self):
        self.sha256 = ""


def test_the_floor_of_an_ordered_test_file_is_that_of_random_sets():
    """Its first rows are easier than the rest, as in MNIST: for them the distance is large."""
    draws = torch.Generator().manual_seed(0)
    train, test = (torch.randn(n, 2, generator=draws) for n in (20_000, 2_000))
    test = test[test[:, 0].argsort()]
    real = Real("real", Moments(2).add(train), train)
    images = ImageMetrics(["fid"], Rows(), real, Real("test", Moments(2).add(test), test))
    floors = images._floors(500)
    first = frechet_distance(Moments(2).add(test[:500]), real.moments)
    fresh = []
    for _ in range(200):
        rows = torch.randn(500, 2, generator=draws)
        fresh.append(frechet_distance(Moments(2).add(rows), real.moments))
    low, high = np.quantile(fresh, (0.05, 0.95))
    assert len(floors) == 9 and low < np.median(floors) < high < first / 20
    images.features = [test[::4]]
    metric = images.results()["rows"]
    assert metric.floor == np.median(floors) and metric.extra["floor_sets"] == 9
    order = torch.randperm(2_000, generator=draws)
    mixed = Real("test", Moments(2).add(test[order]), test[order])
    again = ImageMetrics(["fid"], Rows(), real, mixed)
    assert low < np.median(again._floors(500)) < high
    assert images._floors(2_000) == pytest.approx(again._floors(2_000))
    assert images._floors(2_001) == []


def test_a_floor_says_of_how_many_sets_it_is():
    metric = Metric(1.0, 5, floor=0.5, extra={"floor_sets": 9})
    assert "real data 0.5 (the median of 9 random sets)" in as_text({"fid": metric})
    assert "(the" not in as_text({"fid": Metric(1.0, 5, floor=0.5)})
    mean = over_seeds([{"fid": metric}] * 2, (0, 1))["fid"]
    assert mean.extra == {"floor_sets": 9, "values": [1.0, 1.0], "seeds": [0, 1]}


def test_images_of_two_channels_have_no_features():
    keys = {"against": None, "features": None, "metrics": None}
    data = named("data", "digits", batch_size=1)
    data.shape = (2, 8, 8)
    with pytest.raises(FmdiffError, match=r"no features of images of 2 channels.*extending\.md"):
        judge(keys, data, (2, 8, 8), 0, 0, "cpu")


def test_statistics_without_a_count_say_so_and_wrong_ones_are_refused(
    command, capfd, nothing_sampled
):
    pixels, _ = colours(10, 12)
    np.savez("made.npz", arr_0=pixels)
    features = Classifier("cifar10")(torch.from_numpy(pixels))[0].double().numpy()
    mean, cov = features.mean(0), np.cov(features.T)
    words = ("evaluate", "samples=made.npz", "against=theirs.npz", "features=cifar10", *CPU)
    for dtype in (">f8", "longdouble", "<f8"):
        np.savez("theirs.npz", mu=mean.astype(dtype), sigma=cov.astype(dtype))
        assert command(*words, "out=judged", "overwrite=true") == 0
        found = report()
        assert abs(found["metrics"]["fd_cifar10"]["value"]) < 1e-6
        assert any("does not say of how many images" in text for text in found["warnings"])
    np.savez("theirs.npz", mu=mean, sigma=-cov)
    assert command("evaluate", "model=data", *colour_folders(10), *words[2:], "out=b") == 2
    err = capfd.readouterr().err.splitlines()[-1]
    assert "theirs.npz holds a sigma that is no covariance: it has the negative" in err
    np.savez("few.npz", arr_0=pixels[::20])
    words = ("evaluate", "samples=made.npz", "against=few.npz", *CPU)
    assert command(*words, "out=few") == 0
    assert any(
        "the reference files all, 6 images: n=6" in text for text in report("few")["warnings"]
    )
