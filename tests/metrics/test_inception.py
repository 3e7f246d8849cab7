import hashlib
import io
import os
import pickle
import sys

import pytest
import torch

from fmdiff.build import named
from fmdiff.errors import FmdiffError
from fmdiff.metrics import inception
from fmdiff.metrics.images import ImageMetrics, real_images
from fmdiff.metrics.inception import NAMES, SHA256, Inception

fidelity = pytest.importorskip("torch_fidelity.feature_extractor_inceptionv3")
LAYERS = ["2048", "logits_unbiased"]


@pytest.fixture(autouse=True)
def alone(tmp_path, monkeypatch):
    """No network, no variable and an empty cache."""

    def refuse(*args, **keys):
        raise AssertionError("a download was tried")

    monkeypatch.setattr("urllib.request.urlopen", refuse)
    monkeypatch.setattr(inception, "urlopen", refuse)
    monkeypatch.delenv("FMDIFF_INCEPTION", raising=False)
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    return tmp_path / "torch" / "hub" / "checkpoints"


@pytest.fixture(scope="module")
def random_weights(tmp_path_factory):
    """A file of the published layout; its random weights neither shrink nor grow a signal."""
    path = tmp_path_factory.mktemp("inception") / "random.pth"
    torch.save({}, path)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(fidelity.FeatureExtractorInceptionV3, "load_state_dict", lambda *_: None)
        net = fidelity.FeatureExtractorInceptionV3("random", LAYERS, str(path))
    draw = torch.Generator().manual_seed(0)
    for name, value in net.state_dict().items():
        if value.ndim > 1:
            value.normal_(std=(2 / value[0].numel()) ** 0.5, generator=draw)
        elif name.endswith("bias"):
            value.normal_(generator=draw)
    torch.save(net.state_dict(), path)
    return path


@pytest.fixture(scope="module")
def extractor(random_weights):
    return named("features", "inception", weights=str(random_weights), check=False)


@pytest.fixture(scope="module")
def theirs(random_weights):
    return fidelity.FeatureExtractorInceptionV3("theirs", LAYERS, str(random_weights))


def images(n, height, width, channels):
    draw = torch.Generator().manual_seed(1)
    return torch.randint(256, (n, height, width, channels), generator=draw, dtype=torch.uint8)


def test_equals_torch_fidelity(extractor, theirs):
    """Their extractor on (B, 3, H, W); the layers are what they compute FID and ISC with."""
    default = theirs.get_default_feature_layer_for_metric
    assert [default("fid"), default("isc")] == LAYERS
    pixels = images(2, 20, 32, 3)
    ours = extractor(pixels)
    for one, other in zip(ours, theirs(pixels.permute(0, 3, 1, 2)), strict=True):
        assert torch.equal(one, other)
    assert ours[0].shape == (2, extractor.dimension) and ours[1].shape == (2, extractor.classes)
    assert ours[0].std() > 1e-2 and (ours[0][0] - ours[0][1]).abs().max() > 1e-2
    assert not ours[0].requires_grad


def test_grey_images_are_repeated(extractor, theirs):
    pixels = images(1, 28, 28, 1)
    expected = theirs(pixels.permute(0, 3, 1, 2).repeat(1, 3, 1, 1))
    for one, other in zip(extractor(pixels), expected, strict=True):
        assert torch.equal(one, other)


def test_an_image_has_its_features_whatever_stands_beside(extractor):
    pixels = images(3, 32, 32, 3)
    for together, alone in zip(extractor(pixels), extractor(pixels[1:2]), strict=True):
        torch.testing.assert_close(together[1:2], alone, atol=1e-5, rtol=1e-5)


def test_interface(extractor, random_weights):
    assert (extractor.name, extractor.distance) == ("inception", "fid")
    assert extractor.sha256 == hashlib.sha256(random_weights.read_bytes()).hexdigest()
    assert extractor.to("cpu") is extractor


@pytest.mark.parametrize("shape", [(2, 32, 32, 2), (2, 3, 32, 32), (32, 32, 3)])
def test_wrong_shapes_are_refused(extractor, shape):
    with pytest.raises(FmdiffError, match="1 or 3 channels"):
        extractor(torch.zeros(shape, dtype=torch.uint8))


def test_another_file_is_refused_with_both_hashes(random_weights):
    with pytest.raises(FmdiffError) as error:
        Inception(weights=str(random_weights))
    actual = hashlib.sha256(random_weights.read_bytes()).hexdigest()
    assert actual in str(error.value) and SHA256 in str(error.value)
    assert "features.check=false" in str(error.value)


def test_missing_weights_are_not_fetched_unasked(alone):
    with pytest.raises(FmdiffError) as error:
        named("features", "inception")
    said = str(error.value)
    for part in ("features.weights=PATH", "FMDIFF_INCEPTION", str(alone), "95,628,359 bytes"):
        assert part in said
    assert "features.download=true" in said and SHA256 in said


def test_places_in_their_order(alone, tmp_path, monkeypatch):
    alone.mkdir(parents=True)
    for name in reversed(NAMES):
        (alone / name).touch()
        assert inception.find(None, True) == alone / name  # nothing is fetched
    monkeypatch.setenv("FMDIFF_INCEPTION", str(tmp_path / "b"))
    with pytest.raises(FmdiffError, match=r"FMDIFF_INCEPTION=.*is not a file"):
        inception.find(None, True)
    (tmp_path / "b").touch()
    assert inception.find(None, False) == tmp_path / "b"
    with pytest.raises(FmdiffError, match=r"features\.weights=.*is not a file"):
        inception.find(str(tmp_path / "a"), True)
    (tmp_path / "a").touch()
    assert inception.find(str(tmp_path / "a"), False) == tmp_path / "a"


def serving(content, monkeypatch):
    asked = []

    def urlopen(url, timeout):
        asked.append(url)
        return io.BytesIO(content)

    monkeypatch.setattr(inception, "urlopen", urlopen)
    return asked


def test_download(alone, monkeypatch):
    content = os.urandom(3 * 2**20)
    asked = serving(content, monkeypatch)
    monkeypatch.setattr(inception, "SIZE", len(content))
    monkeypatch.setattr(inception, "SHA256", hashlib.sha256(content).hexdigest())
    path = inception.find(None, True)
    assert path == alone / NAMES[0] and path.read_bytes() == content
    assert inception.find(None, True) == path and asked == [inception.URL]
    assert list(alone.iterdir()) == [path]


@pytest.mark.parametrize("damage", ["short", "changed", "long"])
def test_a_download_of_other_bytes_leaves_nothing(alone, monkeypatch, damage):
    content = os.urandom(2**20)
    monkeypatch.setattr(inception, "SIZE", len(content))
    monkeypatch.setattr(inception, "SHA256", hashlib.sha256(content).hexdigest())
    sent = {"short": content[:-1], "changed": bytes(2**20), "long": content + b"."}[damage]
    serving(sent, monkeypatch)
    with pytest.raises(FmdiffError, match=r"features\.download=true: .* gave"):
        inception.find(None, True)
    assert list(alone.iterdir()) == []


def test_no_network(alone, monkeypatch):
    def offline(url, timeout):
        raise OSError("Name or service not known")

    monkeypatch.setattr(inception, "urlopen", offline)
    with pytest.raises(FmdiffError, match=r"could not be fetched .*not known.*features\.weights"):
        inception.find(None, True)
    assert list(alone.iterdir()) == []


class Bomb:
    def __reduce__(self):
        return os.mkdir, ("exploded",)


@pytest.mark.parametrize(
    "content",
    [pickle.dumps(Bomb(), protocol=2), b"", b"not weights", None],
    ids=["code", "", "text", "other"],
)
def test_other_files_are_refused_and_run_nothing(tmp_path, monkeypatch, content):
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "weights.pth"
    if content is None:
        torch.save({"fc.weight": torch.zeros(3)}, path)
    else:
        path.write_bytes(content)
    with pytest.raises(FmdiffError, match=r"holds no weights of FID's Inception"):
        Inception(weights=str(path), check=False)
    assert list(tmp_path.iterdir()) == [path]


def test_a_saved_object_is_refused_and_not_run(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    torch.save(Bomb(), tmp_path / "weights.pth")
    with pytest.raises(FmdiffError, match="holds no weights"):
        Inception(weights="weights.pth", check=False)
    assert not (tmp_path / "exploded").exists()


def test_without_torch_fidelity(monkeypatch, random_weights):
    monkeypatch.setitem(sys.modules, "torch_fidelity.feature_extractor_inceptionv3", None)
    with pytest.raises(FmdiffError, match=r"pip install 'fmdiff\[fid\]'"):
        Inception(weights=str(random_weights), check=False)


# --- from pixels to numbers ------------------------------------------------------------------

N = 48


def pictures(seed, shift):
    """Smooth images uint8 (N, 32, 32, 3)."""
    draws = torch.Generator().manual_seed(seed)
    small = torch.randn(N, 3, 5, 5, generator=draws) * 50 + 128 + shift
    large = torch.nn.functional.interpolate(small, size=32, mode="bicubic")
    return large.round().clamp(0, 255).to(torch.uint8).permute(0, 2, 3, 1).contiguous()


class Pictures(torch.utils.data.Dataset):
    def __init__(self, pixels):
        self.pixels = pixels.permute(0, 3, 1, 2)

    def __len__(self):
        return len(self.pixels)

    def __getitem__(self, i):
        return self.pixels[i]


@pytest.mark.slow
def test_fid_kid_and_is_are_those_of_torch_fidelity_and_torchmetrics(
    random_weights, extractor, tmp_path, monkeypatch
):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    torch_fidelity = pytest.importorskip("torch_fidelity")
    image = pytest.importorskip("torchmetrics.image.fid")
    made, real = pictures(1, 20), pictures(2, 0)
    names = ["fid", "kid", "is"]
    metrics = ImageMetrics(names, extractor, real_images(extractor, real, "pictures", "all"))
    for part in made.split(7):
        metrics.add(part)
    ours = metrics.results()
    theirs = torch_fidelity.calculate_metrics(
        input1=Pictures(made),
        input2=Pictures(real),
        fid=True,
        kid=True,
        isc=True,
        cuda=False,
        verbose=False,
        kid_subset_size=N,
        kid_subsets=1,
        save_cpu_ram=True,
        feature_extractor_weights_path=str(random_weights),
    )
    assert ours["fid"].value == pytest.approx(theirs["frechet_inception_distance"], rel=1e-4)
    kid = theirs["kernel_inception_distance_mean"]
    # theirs adds cubes in float32; in float64 the two agree to 1e-9 (test_image_metrics)
    assert ours["kid"].value == pytest.approx(kid, rel=5e-3)
    assert ours["is"].value == pytest.approx(theirs["inception_score_mean"], rel=1e-4)
    other = image.FrechetInceptionDistance(
        feature=2048, feature_extractor_weights_path=str(random_weights), antialias=False
    )
    other.set_dtype(torch.float64)  # else it subtracts large traces in float32
    other.update(real.permute(0, 3, 1, 2), real=True)
    other.update(made.permute(0, 3, 1, 2), real=False)
    assert ours["fid"].value == pytest.approx(other.compute().item(), rel=1e-4)
    assert any("rank-deficient" in warning for warning in metrics.warnings)
