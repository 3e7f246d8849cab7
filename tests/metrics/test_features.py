import hashlib
import importlib.util
import json
import sys
from importlib.resources import files as package_files
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors import safe_open

from fmdiff.build import build, config_folder, named
from fmdiff.data.files import SOURCES, available
from fmdiff.data.images import from_uint8
from fmdiff.errors import FmdiffError
from fmdiff.metrics.features import (
    EMBEDDED,
    Classifier,
    Features,
    Network,
    exactly,
    extractor_of,
    for_data,
    read,
)

WEIGHTS = package_files("fmdiff.metrics").joinpath("weights")
embedded = pytest.mark.parametrize("name", EMBEDDED)


def pixels(n, name, seed=0):
    channels, height, width = EMBEDDED[name]
    draw = torch.Generator().manual_seed(seed)
    return torch.randint(256, (n, height, width, channels), generator=draw, dtype=torch.uint8)


def script(name):
    path = config_folder().parent / "scripts" / f"{name}.py"
    spec = importlib.util.spec_from_file_location(name, path)
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("count", [1000, pytest.param(None, marks=pytest.mark.slow)])
@embedded
def test_accuracy_is_the_stated_one(name, count):
    """Recomputed on real test images; other machines may round otherwise."""
    if not available(name):
        pytest.skip(f"needs {name} in FMDIFF_DATA")
    extractor = named("features", name)
    images, labels = (part[:count] for part in named("data", name).test)
    read = [extractor(part)[1].argmax(1) for part in images.permute(0, 2, 3, 1).split(500)]
    accuracy = (torch.cat(read) == labels).double().mean().item()
    assert accuracy >= {"mnist": 0.98, "fashion_mnist": 0.89, "cifar10": 0.86}[name]
    stated = extractor.about["accuracy"]
    spread = 3 * (stated * (1 - stated) / count) ** 0.5 if count else 1e-3  # of a share of count
    assert accuracy == pytest.approx(stated, abs=spread)


@embedded
def test_weights_file(name):
    path = WEIGHTS / f"{name}.safetensors"
    content = path.read_bytes()
    assert len(content) < 2_000_000
    extractor = named("features", name)
    assert extractor.sha256 == hashlib.sha256(content).hexdigest()
    with safe_open(path, "pt") as file:
        about = json.loads(file.metadata()["fmdiff"])
    assert about == extractor.about and about["data"] == name
    assert tuple(about["architecture"]["shape"]) == EMBEDDED[name]
    assert set(about["md5"].items()) == {(k, v[1]) for k, v in SOURCES[name].files.items()}


@embedded
def test_interface(name):
    extractor = named("features", name)
    assert extractor.to("cpu") is extractor
    features, logits = extractor(pixels(3, name))
    assert (extractor.name, extractor.distance) == (name, f"fd_{name}")
    assert 64 <= extractor.dimension <= 256 and extractor.classes == 10
    assert features.shape == (3, extractor.dimension) and logits.shape == (3, 10)
    assert features.dtype == logits.dtype == torch.float32
    assert not features.requires_grad and features.std() > 0.01


@embedded
def test_an_image_has_its_features_whatever_stands_beside(name):
    extractor, images = Classifier(name), pixels(40, name)
    together = extractor(images)
    for alone in (0, 17, 39):
        for all_of, one in zip(together, extractor(images[alone : alone + 1]), strict=True):
            torch.testing.assert_close(all_of[alone : alone + 1], one, atol=1e-5, rtol=1e-5)


def test_loading_needs_no_pickle(monkeypatch):
    def refuse(*args, **keys):
        raise AssertionError("unpickled")

    monkeypatch.setattr("pickle.load", refuse)
    monkeypatch.setattr("pickle.loads", refuse)
    monkeypatch.setattr("pickle.Unpickler", refuse)
    monkeypatch.setattr(torch, "load", refuse)
    assert Classifier("mnist").dimension


@pytest.mark.parametrize("shape", [(2, 32, 32, 3), (2, 1, 28, 28), (2, 28, 28, 3), (28, 28, 1)])
def test_wrong_shapes_are_refused(shape):
    with pytest.raises(FmdiffError) as error:
        Classifier("mnist")(torch.zeros(shape, dtype=torch.uint8))
    assert "features=mnist takes images of 28 x 28 x 1" in str(error.value)


def test_pixels_in_minus_one_to_one_are_refused():
    with pytest.raises(TypeError, match="uint8"):
        Classifier("mnist")(torch.zeros(2, 28, 28, 1))


def test_unknown_name_is_refused():
    with pytest.raises(FmdiffError, match=r"features.name=minst.*'mnist'"):
        Classifier("minst")


def test_the_default_of_a_data_set():
    for name, shape in EMBEDDED.items():
        assert for_data(name, shape) == name
    assert for_data("digits", (1, 8, 8)) == for_data(None, (1, 28, 28)) == "mnist"
    assert for_data("folder", (3, 32, 32)) == for_data(None, (3, 64, 48)) == "cifar10"
    assert for_data("moons", (2,)) is for_data(None, (4, 8, 8)) is None


@pytest.mark.parametrize("name", ["mnist", "cifar10"])
@pytest.mark.parametrize("size", [(10, 12), (40, 64), (10, 64)])
def test_images_of_another_size_are_resized_under_another_name(name, size):
    """As Pillow does: first the sides that are too long, then those that are too short."""
    height, width = size
    channels, *own = EMBEDDED[name]
    extractor = Classifier(name).for_shape((channels, height, width))
    assert extractor.name == f"{name}@{height}x{width}"
    assert extractor.distance == f"fd_{name}@{height}x{width}"
    draw = torch.Generator().manual_seed(0)
    images = torch.randint(256, (5, height, width, channels), generator=draw, dtype=torch.uint8)
    features, _ = extractor(images)
    torch.testing.assert_close(extractor(images[2:3])[0], features[2:3], atol=1e-4, rtol=1e-3)
    resized = []
    for image in images:
        less = Image.fromarray(image.numpy().squeeze()).resize(
            (min(width, own[1]), min(height, own[0])), Image.Resampling.BILINEAR
        )
        resized.append(np.asarray(less.resize((own[1], own[0]), Image.Resampling.NEAREST)))
    pixels = torch.from_numpy(np.stack(resized)).view(5, *own, channels)
    expected, _ = Classifier(name)(pixels)
    assert (features - expected).norm() < 0.02 * expected.norm()  # Pillow rounds to levels
    assert Classifier(name).for_shape(EMBEDDED[name]).name == name
    with pytest.raises(FmdiffError, match=f"takes images of {height} x {width} x {channels}"):
        extractor(images[:, :4])
    with pytest.raises(FmdiffError, match="not of 2"):
        Classifier(name).for_shape((2, 8, 8))


def test_every_choice_is_a_yaml():
    choices = {path.stem for path in (config_folder() / "features").glob("*.yaml")}
    assert choices == {*EMBEDDED, "inception"}


class Mean(Features):
    """The least a user's own extractor can be."""

    name, distance, dimension = "mean", "fd_mean", 3

    def __init__(self, scale: float) -> None:
        self.scale = scale

    def __call__(self, pixels):
        return pixels.float().mean((1, 2)) * self.scale, None


def test_a_module_of_the_user(monkeypatch):
    extractor = build({"_target_": f"{__name__}.Mean", "scale": 2.0})
    images = torch.full((4, 8, 8, 3), 5, dtype=torch.uint8)
    features, logits = read(extractor_of(extractor), images)
    assert torch.equal(features, torch.full((4, 3), 10.0)) and logits is None
    with pytest.raises(FmdiffError, match=r"Mean must return features .*\[4, 3\].* \[4, 1\]"):
        read(extractor, images[..., :1])
    monkeypatch.delattr(Mean, "distance")
    with pytest.raises(FmdiffError, match="Mean lacks distance"):
        extractor_of(extractor)
    with pytest.raises(FmdiffError, match=r"Net must derive from fmdiff\.metrics\.features"):
        extractor_of(type("Net", (), {})())


def test_whitened_patches_have_unit_covariance():
    """Independent unit patches mixed by one matrix come out as independent again."""
    draw = torch.Generator().manual_seed(0)
    x = torch.randn(50, 1, 9, 9, generator=draw)
    x[:, :, 1:] += 0.9 * x[:, :, :-1]  # correlated rows
    net = Network((1, 9, 9), (4,), 2).whitened(x + 3)
    y = net.whiten(x + 3)[:, :4].transpose(0, 1).flatten(1)
    torch.testing.assert_close(y.cov(), torch.eye(4), atol=2e-2, rtol=0)
    torch.testing.assert_close(y.mean(1), torch.zeros(4), atol=1e-3, rtol=0)
    both = net.whiten(x)
    torch.testing.assert_close(both[:, :4], -both[:, 4:], atol=1e-4, rtol=0)


def test_exactly_is_undone():
    before = torch.backends.cudnn.allow_tf32
    with exactly():
        assert not torch.backends.cudnn.allow_tf32 and not torch.is_grad_enabled()
    assert torch.backends.cudnn.allow_tf32 == before and torch.is_grad_enabled()


@pytest.fixture
def small():
    """The training script, and a data set of 8 x 8 digits for it."""
    module = script("train_features")
    return module, named("data", "digits", batch_size=module.BATCH)


def weights(net):
    return {name: value.clone() for name, value in net.state_dict().items()}


def same(a, b):
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def test_training_again_gives_the_same_bits(small):
    module, data = small
    recipe = module.Recipe((16, 32), 1, flip=False, least=0)
    first = weights(module.train(data, recipe, 12))
    torch.rand(7)  # hidden generator state changes nothing
    assert same(first, weights(module.train(data, recipe, 12)))
    assert not same(first, weights(module.train(data, recipe, 11)))


def test_interrupted_training_gives_the_same_bits(small, tmp_path, monkeypatch):
    module, data = small
    recipe, state = module.Recipe((16, 32), 1, flip=False, least=0), tmp_path / "state.pt"
    whole = weights(module.train(data, recipe, 12))
    monkeypatch.setattr(module, "SAVE_EVERY", 5)
    batch = data.batch

    def stopping(seed, step):
        if step == 7:
            raise KeyboardInterrupt
        return batch(seed, step)

    data.batch = stopping
    with pytest.raises(KeyboardInterrupt):
        module.train(data, recipe, 12, state)
    data.batch = batch
    assert torch.load(state, weights_only=True)["step"] == 5
    assert same(whole, weights(module.train(data, recipe, 12, state)))
    with pytest.raises(SystemExit, match="remove it"):
        module.train(data, recipe, 13, state)


def test_shifts_move_whole_images(small):
    module, _ = small
    x = torch.arange(64 * 8 * 8).view(64, 1, 8, 8).float()
    moved = module.shifted(x, 0)
    seen = set()
    for before, after in zip(x, moved, strict=True):
        # reading (r, c) of `after` tells the shift, as every value of x is its place
        row, column = divmod(int(after[0, 4, 4] - before[0, 0, 0]), 8)
        dy, dx = row - 4, column - 4
        seen.add((dy, dx))
        assert max(abs(dy), abs(dx)) <= module.SHIFT
        inner = slice(2, -2)
        rolled = before[0].roll((-dy, -dx), (0, 1))
        assert torch.equal(after[0, inner, inner], rolled[inner, inner])
    assert len(seen) > 15
    assert not torch.equal(module.shifted(x, 1), moved)


def test_written_weights_are_what_was_trained(small, tmp_path, monkeypatch):
    module, data = small
    monkeypatch.setattr(module, "FOLDER", tmp_path)
    monkeypatch.setitem(module.SOURCES, "digits", SOURCES["mnist"])
    recipe = module.Recipe((16, 32), 1, flip=False, least=0.5)
    net = module.train(data, recipe, 25)
    module.write("digits", net, data, recipe)
    first = (tmp_path / "digits.safetensors").read_bytes()
    monkeypatch.setitem(EMBEDDED, "digits", (1, 8, 8))
    monkeypatch.setattr("fmdiff.metrics.features.package_files", lambda _: _Package(tmp_path))
    extractor = Classifier("digits")
    images = data.test[0][:50].permute(0, 2, 3, 1)
    with torch.no_grad():
        expected = net.eval()(from_uint8(data.test[0][:50]))
    for ours, theirs in zip(extractor(images), expected, strict=True):
        torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-5)
    with pytest.raises(SystemExit, match="nothing is written"):
        module.write("digits", net, data, module.Recipe((16, 32), 1, flip=False, least=1.01))
    assert (tmp_path / "digits.safetensors").read_bytes() == first
    module.write("digits", net, data, recipe)
    assert (tmp_path / "digits.safetensors").read_bytes() == first


class _Package(type(Path())):
    def joinpath(self, *parts):
        return Path(self, *parts[1:])
