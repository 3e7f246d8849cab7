import hashlib
import io
import os
import pickle
import re
import zipfile
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from fmdiff.errors import FmdiffError
from fmdiff.metrics.frechet import Moments, frechet_distance
from fmdiff.metrics.reference import Reference, cached, content_hash, load, save

EXTRACTOR = SimpleNamespace(name="tiny", sha256="ab" * 32, dimension=6)
FACTS = {
    "data": "digits",
    "split": "train",
    "count": 50,
    "pixels": "cd" * 32,
    "extractor": "tiny",
    "sha256": "ab" * 32,
}


def drawn(n=50, d=6):
    return torch.randn(n, d, generator=torch.Generator().manual_seed(0))


def reference(features=False, **changed):
    f = drawn()
    moments = Moments(6).add(f)
    facts = FACTS | changed
    return Reference(moments.mean, moments.cov, **facts, features=f if features else None)


@pytest.fixture
def path(tmp_path):
    return tmp_path / "statistics.npz"


def test_what_is_saved_is_loaded(path):
    save(path, reference(features=True))
    found = load(path, EXTRACTOR, features=True, data="digits", split="train", count=50)
    assert found.facts() == FACTS
    assert torch.equal(found.features, drawn())
    assert frechet_distance(found, Moments(6).add(drawn())) == pytest.approx(0, abs=1e-12)
    assert load(path, EXTRACTOR).features is None
    assert os.listdir(path.parent) == [path.name]


def test_other_programs_read_it(path):
    """pytorch-fid: f["mu"][:], f["sigma"][:]; EDM: dict(np.load(f)); neither allows pickles."""
    save(path, reference())
    with np.load(path) as file:
        mu, sigma = file["mu"][:], file["sigma"][:]
        assert set(dict(file)) == {"mu", "sigma", *FACTS}
    np.testing.assert_allclose(mu, drawn().double().numpy().mean(0), rtol=1e-12)
    np.testing.assert_allclose(sigma, np.cov(drawn().double().numpy().T), rtol=1e-12)
    assert mu.dtype == sigma.dtype == np.float64


@pytest.mark.parametrize("dtype", [">f8", ">f4", "<f8", "longdouble", "float16"])
def test_numbers_of_other_types_are_read(path, dtype):
    f = drawn().numpy()
    np.savez(path, mu=f.mean(0).astype(dtype), sigma=np.cov(f.T).astype(dtype))
    found = load(path, EXTRACTOR)
    assert found.mean.dtype == found.cov.dtype == torch.float64
    off = 1e-3 if dtype == "float16" else 1e-6
    np.testing.assert_allclose(found.cov, np.cov(f.T), atol=off)
    np.testing.assert_allclose(found.mean, f.mean(0), atol=off)


@pytest.mark.parametrize("dtype", ["int64", "uint8", ">i4"])
def test_whole_numbers_are_read(path, dtype):
    np.savez(path, mu=np.arange(3).astype(dtype), sigma=(2 * np.eye(3)).astype(dtype))
    assert load(path).mean.tolist() == [0, 1, 2] and load(path).cov.diagonal().tolist() == [2] * 3


@pytest.mark.parametrize("rank", [0, 1, 5, 50])
def test_singular_covariances_of_single_precision_are_read(path, rank):
    """Their smallest eigenvalues are a little below 0, by rounding."""
    f = np.random.default_rng(0).normal(size=(rank + 1, 60)).astype(np.float32) * 30
    cov = np.cov(f.T.astype(np.float32), dtype=np.float32) if rank else np.zeros((60, 60))
    np.savez(path, mu=f.mean(0), sigma=cov.astype(np.float32))
    assert load(path).cov.shape == (60, 60)


def test_a_count_or_name_of_another_kind_is_another_program_s(path):
    eye = {"mu": np.ones(3), "sigma": np.eye(3)}
    np.savez(path, **eye, count=np.array(3.5), data=np.array(7), sha256=np.array(b"x"))
    assert set(load(path).facts().values()) == {None}


@pytest.mark.parametrize("dtype", [np.float64, np.float32])
def test_files_of_other_programs_are_read(path, dtype):
    f = drawn().numpy()
    np.savez(path, mu=f.mean(0).astype(dtype), sigma=np.cov(f.T).astype(dtype))
    found = load(path, EXTRACTOR, data="digits", count=50)  # it contradicts nothing
    assert set(found.facts().values()) == {None}
    assert found.mean.dtype == found.cov.dtype == torch.float64
    assert frechet_distance(found, Moments(6).add(drawn())) == pytest.approx(0, abs=1e-6)


def test_other_keys_of_other_programs_are_left_alone(path):
    f = drawn().numpy()
    np.savez(path, mu=f.mean(0), sigma=np.cov(f.T), data=f, count=np.array([3]), logits=f)
    assert set(load(path).facts().values()) == {None}


def test_one_dimension(path):
    save(path, Reference(torch.tensor([2.0]).double(), torch.tensor([[3.0]]).double(), count=9))
    found = load(path)
    assert (found.mean.item(), found.cov.item(), found.count) == (2, 3, 9)


def refused(path, text, *args, **kwargs):
    with pytest.raises(FmdiffError) as caught:
        load(path, *args, **kwargs)
    message = str(caught.value)
    assert re.search(text, message), message
    assert message.startswith(str(path))
    assert "\n" not in message


@pytest.mark.parametrize(
    ("changed", "wanted", "text"),
    [
        ({"extractor": "inception"}, {}, "extractor=inception, and extractor=tiny is wanted"),
        ({"sha256": "ef"}, {}, "sha256=ef, and sha256=abab"),
        ({}, {"split": "test"}, "split=train, and split=test is wanted"),
        ({}, {"data": "mnist"}, "data=digits, and data=mnist is wanted"),
        ({}, {"count": 49}, "count=50, and count=49 is wanted"),
        ({}, {"pixels": "00"}, "pixels=cdcd.*, and pixels=00 is wanted"),
        ({}, {"features": True}, "holds no features"),
    ],
)
def test_another_thing_is_refused(path, changed, wanted, text):
    save(path, reference(**changed))
    load(path)
    refused(path, text, EXTRACTOR, **wanted)


def test_other_dimensions_are_refused(path):
    save(path, reference())
    other = SimpleNamespace(name="tiny", sha256="ab" * 32, dimension=7)
    refused(path, "6 dimensions, and tiny gives 7", other)


@pytest.mark.parametrize(
    ("arrays", "text"),
    [
        ({"mu": np.ones(3)}, "lacks sigma"),
        ({"images": np.ones(3)}, "lacks mu"),
        ({"mu": np.ones(3), "sigma": np.eye(4)}, r"mu \(3,\) and sigma \(4, 4\)"),
        ({"mu": np.ones((1, 3)), "sigma": np.eye(3)}, r"mu \(1, 3\)"),
        ({"mu": np.ones(()), "sigma": np.eye(3)}, r"mu \(\)"),
        ({"mu": np.ones(0), "sigma": np.ones((0, 0))}, r"mu \(0,\)"),
        ({"mu": np.full(3, np.nan), "sigma": np.eye(3)}, "mu that is not all finite"),
        ({"mu": np.ones(3), "sigma": np.full((3, 3), np.inf)}, "sigma that is not all finite"),
        ({"mu": np.array(["a"] * 3), "sigma": np.eye(3)}, "mu that is not all finite"),
        ({"mu": np.ones(3), "sigma": np.arange(9.0).reshape(3, 3)}, "not symmetric"),
        ({"mu": np.ones(3), "sigma": -np.eye(3)}, "has the negative eigenvalue -1$"),
        ({"mu": np.ones(3), "sigma": np.diag([5.0, 1, -0.01])}, "negative eigenvalue -0.01$"),
        ({"mu": np.ones(3), "sigma": np.eye(3) * 1j}, "sigma that is not all finite real"),
        ({"mu": np.ones(3) > 0, "sigma": np.eye(3)}, "mu that is not all finite real"),
        ({"mu": np.full(3, np.longdouble("1e999")), "sigma": np.eye(3)}, "mu that is not all fin"),
    ],
)
def test_wrong_contents_are_refused(path, arrays, text):
    np.savez(path, **arrays)
    refused(path, text)


def test_features_of_another_count_are_refused(path):
    save(path, reference(features=True, count=49))
    refused(path, r"features \(50, 6\), not \(49, 6\)", features=True)


class Trap:
    def __reduce__(self):
        return os.mkdir, ("trapped",)


@pytest.mark.parametrize("kind", ["pickle", "array", "npz"])
def test_pickles_are_refused_and_not_run(path, kind, monkeypatch):
    monkeypatch.chdir(path.parent)
    if kind == "pickle":
        path.write_bytes(pickle.dumps({"mu": Trap()}))
    elif kind == "array":
        with path.open("wb") as file:
            np.save(file, np.array([Trap()], dtype=object), allow_pickle=True)
    else:
        np.savez(path, mu=np.array([Trap()], dtype=object), sigma=np.eye(3))
    refused(path, "pickled" if kind == "npz" else "no .npz")
    assert not os.path.exists("trapped")


def test_damaged_files_are_refused(path):
    refused(path, "cannot be read: No such file")
    refused(path.parent, "cannot be read: Is a directory")
    path.write_bytes(b"")
    refused(path, "damaged or no .npz file")
    with path.open("wb") as file:
        np.save(file, np.ones(3))
    refused(path, "damaged or no .npz file")
    save(path, reference())
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    refused(path, "damaged")
    with zipfile.ZipFile(io.BytesIO(whole)) as archive:
        header = archive.getinfo("sigma.npy").header_offset
    place = header + 300  # in the numbers: found by the checksum of the archive
    path.write_bytes(whole[:place] + bytes([whole[place] ^ 1]) + whole[place + 1 :])
    refused(path, "damaged")


def test_a_failed_write_leaves_the_old_file(path, monkeypatch):
    save(path, reference())
    before = path.read_bytes()

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space"):
        save(path, reference(count=49))
    assert path.read_bytes() == before
    assert os.listdir(path.parent) == [path.name]


def test_the_cache_has_a_file_for_each_extractor_and_each_set(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    path = cached("mnist", "train", 60000, "cd", EXTRACTOR)
    assert path.parent == tmp_path / "fmdiff" / "statistics"
    assert re.fullmatch(r"mnist-train-60000-tiny-[0-9a-f]{16}\.npz", path.name)
    other = SimpleNamespace(name="tiny", sha256="00", dimension=6)
    paths = {path, cached("mnist", "train", 60000, "ce", EXTRACTOR)}
    paths |= {cached("mnist", "train", 60000, "cd", other)}
    assert len(paths) == 3
    save(path, reference())  # makes the folders
    assert load(path).count == 50
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", "/home/someone")
    assert str(cached("mnist", "test", 9, "cd", EXTRACTOR)).startswith(
        "/home/someone/.cache/fmdiff/statistics/mnist-test-9-tiny-"
    )


def test_the_hash_is_of_shape_order_and_bytes():
    pixels = torch.arange(48, dtype=torch.uint8).view(4, 1, 3, 4)
    exact = hashlib.sha256(b"(4, 1, 3, 4)" + bytes(range(48))).hexdigest()
    assert content_hash(pixels) == exact
    others = (pixels.flip(0), pixels.view(4, 1, 4, 3), pixels[:3], pixels + 1)
    assert len({exact, *map(content_hash, others)}) == 5
    # a view of other strides has the bytes of its elements in order
    assert content_hash(pixels.transpose(2, 3)) == content_hash(
        pixels.transpose(2, 3).contiguous()
    )
