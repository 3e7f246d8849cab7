"""data=latent: what is cached, against a plain loop over the images, and what it passes on."""

import json
import threading

import numpy as np
import pytest
import torch
from torch import nn

from fmdiff.build import named
from fmdiff.data import latent
from fmdiff.data.latent import Latents
from fmdiff.errors import FmdiffError
from fmdiff.models.autoencoder import Autoencoder, LinearAutoencoder
from fmdiff.runs.content import identity


def autoencoder(shape=(1, 8, 8), seed=0):
    torch.manual_seed(seed)
    net = Autoencoder(shape=shape, channels=4, multipliers=[1, 2], blocks=1, latent=2, patch=1)
    net.sha256 = identity(net.spec(), net.state_dict())
    return net.eval()


class Loader:
    """Stands for `load_codec`: gives a new copy of a codec, and counts."""

    def __init__(self, make):
        self.make, self.count = make, 0

    def __call__(self, ckpt, weights, trust, option, shape):
        self.count += 1
        return self.make()


@pytest.fixture
def cache(tmp_path, monkeypatch):
    """The codec of every data set is `autoencoder()`, and the cache is empty."""
    monkeypatch.setenv("FMDIFF_DATA", str(tmp_path))
    monkeypatch.setattr(latent, "load_codec", Loader(autoencoder))
    return tmp_path / "latents"


def make(of="digits", **keys):
    return Latents(of=of, autoencoder="run", **{"batch_size": 16, **keys})


def encoded(data):
    """The posterior means of all training images, one by one."""
    net = autoencoder()
    images = data.of.train[0].double() / 127.5 - 1
    with torch.no_grad():
        return torch.cat([net.posterior(x[None].float())[0] for x in images]).double().numpy()


def files_of(cache):
    return sorted(path.relative_to(cache).as_posix() for path in cache.rglob("*"))


def test_each_channel_has_mean_0_and_variance_1(cache):
    data = make(of=named("data", "digits", only=[0, 3]))
    z = encoded(data)
    mean, std = z.mean((0, 2, 3)), z.std((0, 2, 3))
    learned = (z - mean[:, None, None]) / std[:, None, None]
    assert data.shape == (2, 4, 4) and data.std == 1 and data.centre is None
    np.testing.assert_allclose(data.examples(len(z))[0].numpy(), learned, atol=1e-4)
    x, y = data.batch(0, 5)
    distances = ((x[:, None].double().numpy() - learned) ** 2).sum((2, 3, 4))
    assert distances.min(1).max() < 1e-6  # each is one of them, with its own label
    nearest = torch.from_numpy(distances.argmin(1))
    assert torch.equal(x, data.batch(0, 5)[0]) and not torch.equal(x, data.batch(0, 6)[0])
    assert torch.equal(y, data.of.train[1][nearest]) and y.unique().tolist() == [0, 3]


@pytest.mark.parametrize("flip", [False, True])
def test_batches_are_those_of_the_images_encoded(cache, flip):
    """Order, mirrored images and labels are those of training on the images themselves."""
    data = make(of=named("data", "digits", flip=flip, batch_size=16, conditional=True))
    assert data.classes == 10 and data.training_size == 1500
    for step in (0, 200):
        rows = slice(3, 9)
        x, y = data.of.batch(7, step, rows)
        z, label = data.batch(7, step, rows)
        torch.testing.assert_close(z, data.codec.encode(x), rtol=1e-4, atol=1e-4)
        assert torch.equal(label, y)
    assert len(data.encoded.z) == 1500 * (1 + flip)


def test_references_are_images_and_held_out_samples_are_encoded(cache):
    data, digits = make(), named("data", "digits")
    assert torch.equal(data.sample(3, 8, 1)[0], digits.sample(3, 8, 1)[0])
    z = data.held_out(5)[0]
    torch.testing.assert_close(z, data.codec.encode(digits.held_out(5)[0]))
    assert data.codec.outer == (1, 8, 8) and data.codec.decode(z).shape == (5, 1, 8, 8)
    assert data.references == digits.references and data.splits == digits.splits
    assert data.user.shape == (1, 8, 8) and data.name == digits.name


def test_images_are_encoded_once(cache, monkeypatch):
    first = make()
    first.prepare()
    (folder,) = cache.iterdir()
    assert files_of(cache)[1:] == [f"{folder.name}/about.json", f"{folder.name}/latents.npy"]
    monkeypatch.setattr(Latents, "_images", None)  # nothing is encoded
    second = make()
    second.prepare()
    assert torch.equal(first.batch(0, 0)[0], second.batch(0, 0)[0])


def test_other_weights_and_other_images_have_another_place(cache, monkeypatch):
    make().prepare()
    make(of=named("data", "digits", only=[1])).prepare()
    make(of=named("data", "digits", flip=True)).prepare()
    monkeypatch.setattr(latent, "load_codec", Loader(lambda: autoencoder(seed=1)))
    make().prepare()
    assert len(list(cache.iterdir())) == 4


@pytest.mark.parametrize("harm", ["bytes", "cut", "about", "text", "gone"])
def test_what_is_damaged_is_made_again(cache, harm):
    first = make()
    first.prepare()
    (folder,) = cache.iterdir()
    npy, about = folder / "latents.npy", folder / "about.json"
    if harm == "bytes":
        content = bytearray(npy.read_bytes())
        content[-2] ^= 1
        npy.write_bytes(content)
    elif harm == "cut":
        npy.write_bytes(npy.read_bytes()[:-8])
    elif harm == "about":
        content = json.loads(about.read_text())
        about.write_text(json.dumps(content | {"mean": [1.0]}))
    elif harm == "text":
        about.write_text("[]")
    else:
        about.unlink()
    second = make()
    assert torch.equal(second.batch(0, 0)[0], make().batch(0, 0)[0])
    np.testing.assert_allclose(second.encoded.mean, first.encoded.mean, rtol=1e-6)


def test_a_process_that_is_stopped_leaves_nothing(cache, monkeypatch):
    images = Latents._images

    def stopped(self):
        for i, x in enumerate(images(self)):
            if i == 3:
                raise KeyboardInterrupt
            yield x

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(Latents, "_images", stopped)
        make().prepare()
    (folder,) = cache.iterdir()
    assert not list(folder.iterdir())
    make().prepare()


def test_of_two_at_once_one_waits(cache, monkeypatch):
    images, counts, begun = Latents._images, [], threading.Event()

    def counted(self):
        counts.append(1)
        begun.set()
        yield from images(self)

    monkeypatch.setattr(Latents, "_images", counted)
    data = [make(), make()]
    threads = [threading.Thread(target=one.prepare) for one in data]
    threads[0].start()
    begun.wait(60)
    threads[1].start()
    for thread in threads:
        thread.join()
    assert len(counts) == 1 and torch.equal(data[0].batch(0, 0)[0], data[1].batch(0, 0)[0])


def test_points_are_encoded_batch_by_batch(cache, monkeypatch):
    torch.manual_seed(0)
    net = LinearAutoencoder(shape=(6,), latent=2)
    monkeypatch.setattr(latent, "load_codec", Loader(lambda: net))
    data = make(of=named("data", "embedded", ambient_dim=6), batch_size=32)
    assert data.shape == (2,) and not cache.exists()
    z = data.batch(1, 4)[0]
    torch.testing.assert_close(z, data.codec.encode(data.of.batch(1, 4)[0]))
    z = torch.cat([data.batch(1, k)[0] for k in range(60)])
    assert len(z) == 60 * 32
    torch.testing.assert_close(z.mean(0), torch.zeros(2), atol=0.1, rtol=0)
    torch.testing.assert_close(z.std(0), torch.ones(2), atol=0.1, rtol=0)


def test_a_constant_channel_is_left_as_it_is(cache, monkeypatch):
    def flat():
        net = autoencoder()
        nn.init.zeros_(net.encoder[-1].weight[1])
        return net

    monkeypatch.setattr(latent, "load_codec", Loader(flat))
    data = make()
    z = data.examples(50)[0]
    assert (z[:, 1] == 0).all() and z[:, 0].std() == pytest.approx(1, rel=0.2)
    assert data.std == pytest.approx(0.5**0.5)


@pytest.mark.parametrize(
    ("keys", "words"),
    [
        ({"of": "no_data"}, "unknown data 'no_data'"),
        ({"of": named("data", "digits", augment=0.1)}, "latents are encoded once"),
        ({"autoencoder": ""}, "data.autoencoder= must be a run, or diffusers:FOLDER"),
        ({"of": 3}, "data.of=3 must be another data set"),
        ({"conditional": "yes"}, "data.conditional=yes must be"),
    ],
)
def test_slips_are_one_sentence(cache, keys, words):
    with pytest.raises(FmdiffError, match=words):
        Latents(**{"of": "digits", "autoencoder": "run", **keys})


def test_images_of_another_shape_are_refused(cache):
    data = make(of=named("data", "mnist"))
    data.of.prepare = lambda: None
    with pytest.raises(FmdiffError, match=r"samples of shape \[1, 8, 8\], and those of data.of"):
        data.prepare()
