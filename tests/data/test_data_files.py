import hashlib
import os
import pickle
import struct
import subprocess
import sys
from pathlib import Path
from urllib.error import URLError

import numpy as np
import pytest
import torch

from fmdiff.data import files
from fmdiff.data.images import CIFAR10, MNIST, FashionMNIST
from fmdiff.errors import FmdiffError

DATA = {data.name: data for data in (MNIST, FashionMNIST, CIFAR10)}


def make(name, root=None):
    return DATA[name](root=root, batch_size=32, flip=False, conditional=True)


def small_mnist(folder, monkeypatch):
    """MNIST's four files with 20 + 10 images, declared to be the published ones."""
    raw = folder / "MNIST" / "raw"
    raw.mkdir(parents=True)
    rng = np.random.default_rng(0)
    arrays = {}
    for split, n in (("train", 20), ("t10k", 10)):
        arrays[f"{split}-images-idx3-ubyte"] = rng.integers(0, 256, (n, 28, 28), dtype=np.uint8)
        arrays[f"{split}-labels-idx1-ubyte"] = rng.integers(0, 10, n, dtype=np.uint8)
    known = {}
    for name, array in arrays.items():
        header = struct.pack(f">I{array.ndim}I", 0x800 + array.ndim, *array.shape)
        content = header + array.tobytes()
        (raw / name).write_bytes(content)
        known[name] = len(content), hashlib.md5(content).hexdigest()
    source = files.SOURCES["mnist"]
    monkeypatch.setitem(
        files.SOURCES,
        "mnist",
        files.Source(source.url, source.archive_folder, source.archives, source.folder, known),
    )
    return raw, arrays


def no_network(*args, **keys):
    raise URLError("Name or service not known")


def test_mnist_is_read_as_it_lies(tmp_path, monkeypatch):
    _, arrays = small_mnist(tmp_path, monkeypatch)
    monkeypatch.setenv("FMDIFF_DATA", str(tmp_path))
    data = make("mnist")
    assert torch.equal(data.train[0][:, 0], torch.from_numpy(arrays["train-images-idx3-ubyte"]))
    assert torch.equal(data.test[1], torch.from_numpy(arrays["t10k-labels-idx1-ubyte"]).long())
    assert data.train[0].dtype == torch.uint8 and data.train[0].shape == (20, 1, 28, 28)
    assert data.batch(0, 0)[0].shape == (32, 1, 28, 28)


@pytest.mark.parametrize("damage", ["bit", "truncated", "longer"])
def test_a_damaged_mnist_file_is_named(tmp_path, monkeypatch, damage):
    raw, _ = small_mnist(tmp_path, monkeypatch)
    path = raw / "t10k-labels-idx1-ubyte"
    content = bytearray(path.read_bytes())
    if damage == "bit":
        content[-1] ^= 1
    path.write_bytes(
        content[:-3] if damage == "truncated" else content + b"0" * (damage == "longer")
    )
    assert files.available("mnist", str(tmp_path))
    with pytest.raises(FmdiffError, match=rf"data=mnist: {path} is damaged .* md5") as caught:
        _ = make("mnist", str(tmp_path)).train
    assert len(str(caught.value).splitlines()) == 1


@pytest.mark.parametrize("name", ["mnist", "fashion_mnist", "cifar10"])
def test_missing_data_without_a_network(name, tmp_path, monkeypatch):
    from torchvision.datasets import cifar, mnist

    monkeypatch.setattr(mnist, "download_and_extract_archive", no_network)
    monkeypatch.setattr(cifar, "download_and_extract_archive", no_network)
    assert not files.available(name, str(tmp_path))
    with pytest.raises(FmdiffError) as caught:
        make(name, str(tmp_path)).prepare()
    message, source = str(caught.value), files.SOURCES[name]
    assert str(tmp_path / source.folder) in message and source.url in message
    assert all(archive in message and md5 in message for archive, md5 in source.archives.items())
    assert "data=digits" in message and "Name or service not known" in message
    assert len(message.splitlines()) == 1
    assert list(tmp_path.iterdir()) == []  # a refused command writes nothing


def test_a_damaged_archive_is_mentioned(tmp_path, monkeypatch):
    from torchvision.datasets import cifar

    monkeypatch.setattr(cifar, "download_and_extract_archive", no_network)
    (tmp_path / "cifar-10-python.tar.gz").write_bytes(b"half")
    with pytest.raises(FmdiffError, match="there but damaged"):
        make("cifar10", str(tmp_path)).prepare()


def test_known_files_are_torchvision_s():
    from torchvision import datasets

    for name, dataset in (("mnist", datasets.MNIST), ("fashion_mnist", datasets.FashionMNIST)):
        source = files.SOURCES[name]
        assert source.archives == dict(dataset.resources) and source.url in dataset.mirrors
    cifar, source = datasets.CIFAR10, files.SOURCES["cifar10"]
    assert source.archives == {cifar.filename: cifar.tgz_md5} and cifar.url.startswith(source.url)
    batches = {name: md5 for name, (_, md5) in source.files.items() if name != "batches.meta"}
    assert batches == dict(cifar.train_list + cifar.test_list)


def test_data_root(monkeypatch):
    monkeypatch.setenv("FMDIFF_DATA", "/data")
    assert files.data_root("~/mine") == Path.home() / "mine"
    assert files.data_root() == Path("/data")
    monkeypatch.delenv("FMDIFF_DATA")
    monkeypatch.setenv("XDG_CACHE_HOME", "/cache")
    assert files.data_root() == Path("/cache/fmdiff")


def test_looking_for_files_is_instant_and_sampling_needs_no_torchvision():
    code = (
        "import sys, fmdiff.data.files; assert 'torch' not in sys.modules\n"
        "import fmdiff.data.images; assert 'torchvision' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def real(name):
    if not os.environ.get("FMDIFF_DATA"):
        pytest.skip("FMDIFF_DATA is not set")
    if not files.available(name):
        pytest.skip(f"{name} is not in FMDIFF_DATA")
    return make(name)


def test_real_mnist():
    data = real("mnist")
    assert data.train[0].shape == (60_000, 1, 28, 28) and data.test[0].shape == (10_000, 1, 28, 28)
    counts = [5923, 6742, 5958, 6131, 5842, 5421, 5918, 6265, 5851, 5949]
    assert data.train[1].bincount().tolist() == counts
    counts = [980, 1135, 1032, 1010, 982, 892, 958, 1028, 974, 1009]
    assert data.test[1].bincount().tolist() == counts
    assert data.std == pytest.approx(2 * 0.3081, abs=1e-4)  # the usual normalisation constant


def test_real_fashion_mnist():
    data = real("fashion_mnist")
    assert data.train[0].shape == (60_000, 1, 28, 28)
    assert data.train[1].bincount().tolist() == [6000] * 10
    assert data.test[1].bincount().tolist() == [1000] * 10
    assert data.std == pytest.approx(2 * 0.3530, abs=1e-4)


def test_real_cifar10():
    data = real("cifar10")
    images, labels = data.train
    assert images.shape == (50_000, 3, 32, 32) and data.test[0].shape == (10_000, 3, 32, 32)
    assert labels.bincount().tolist() == [5000] * 10
    assert data.test[1].bincount().tolist() == [1000] * 10
    mean = [channel.sum().item() / channel.numel() / 255 for channel in images.unbind(1)]
    assert mean == pytest.approx([0.4914, 0.4822, 0.4465], abs=1e-4)
    assert labels[:5].tolist() == [6, 9, 9, 4, 1]  # frog, truck, truck, deer, car


class Trap:
    def __reduce__(self):
        return Path.touch, (Path(os.environ["FMDIFF_TRAP"]),)


def test_a_foreign_cifar_batch_is_named_and_never_unpickled(tmp_path, monkeypatch):
    real("cifar10")
    source = files.SOURCES["cifar10"]
    original, copy = files.data_root() / source.folder, tmp_path / source.folder
    copy.mkdir()
    for name in source.files:
        (copy / name).symlink_to(original / name)
    monkeypatch.setenv("FMDIFF_TRAP", str(tmp_path / "sprung"))
    (copy / "data_batch_1").unlink()
    (copy / "data_batch_1").write_bytes(pickle.dumps(Trap()))
    with pytest.raises(FmdiffError, match="data_batch_1 is damaged"):
        _ = make("cifar10", str(tmp_path)).train
    assert not (tmp_path / "sprung").exists()
