"""Data sets of users: a class with one method, its traits, and what is refused."""

import pytest
import torch
from test_data import IMAGES, TOYS, make

from fmdiff.data.base import Data, Toy
from fmdiff.data.images import Images
from fmdiff.errors import FmdiffError


class Heart(Toy):
    """Points without labels, in double precision."""

    def draw(self, n, generator):
        a = 2 * torch.pi * torch.rand(n, generator=generator, dtype=torch.float64)
        return torch.stack([a.sin() ** 3, a.cos() - a.cos() ** 4], dim=1)


class Wrong(Toy):
    """Returns what a test gives it."""

    labels = 2
    value = None

    def draw(self, n, generator):
        return self.value


class Noise(Images):
    shape = (1, 4, 4)
    labels = 2
    dtype = torch.uint8

    def read(self, train):
        n = 20 if train else 10
        return torch.arange(n * 16).view(n, 1, 4, 4).to(self.dtype), torch.arange(n) % 2


def test_draw_alone_is_a_data_set():
    heart = Heart()
    x, y = heart.batch(0, 0)
    assert x.shape == (256, 2) and x.dtype == torch.float32 and y is None
    assert heart.axes == 1 and heart.classes == 0 and heart.mixture() is None
    assert torch.equal(heart.sample(0, 200, 1)[0][70:150], heart.sample(70, 150, 1)[0])
    many = heart.sample(0, 50_000, 0)[0]
    assert heart.std == pytest.approx(
        (many - many.mean(0)).square().mean().sqrt().item(), rel=0.02
    )
    with pytest.raises(FmdiffError, match="Heart has no classes"):
        Heart(conditional=True)


@pytest.mark.parametrize(
    ("value", "says"),
    [
        ([[0.0, 0.0]] * 3, r"floats of shape \(3, 2\), and returned list, which is no tensor"),
        (torch.zeros(3, 3), r"returned a tensor of float32 \(3, 3\); .* shape = \(d,\)"),
        (torch.zeros(2, 3), r"returned a tensor of float32 \(2, 3\)"),
        (torch.zeros(3, 2).long(), "floats of shape .* returned a tensor of int64"),
        (None, "returned None"),
        (torch.zeros(3, 2), "labels = 2, and returned None"),
        ((torch.zeros(3, 2), torch.zeros(3)), r"labels = 2, and returned a tensor of float32"),
        ((torch.zeros(3, 2), torch.full((3,), 2)), r"labels from 2 to 2, and .* among \[0, 1\]"),
    ],
)
def test_what_draw_may_not_return(value, says):
    data = Wrong(batch_size=3, conditional=True)
    data.value = value
    with pytest.raises(FmdiffError, match=rf"Wrong\.draw of 3 points .*{says}"):
        data.batch(0, 0)


def test_labels_of_another_integer_type_are_taken():
    data = Wrong(batch_size=3, conditional=True)
    data.value = torch.zeros(3, 2, dtype=torch.float16), torch.ones(3, dtype=torch.uint8)
    x, y = data.batch(0, 0)
    assert x.dtype == torch.float32 and y.tolist() == [1, 1, 1] and y.dtype == torch.int64


def test_read_alone_is_a_data_set_of_images():
    data = Noise(conditional=True, only=[1])
    assert data.axes == 3 and data.classes == 2 and data.training_size == 10
    assert Noise(batch_size=5).batch(0, 0)[0].shape == (5, 1, 4, 4)
    data = Noise()
    data.dtype = torch.int64
    with pytest.raises(FmdiffError, match=r"Noise\.read\(train=True\) must return images uint8"):
        _ = data.train


@pytest.mark.parametrize("name", [*TOYS, *(name for name in IMAGES if name != "latent")])
def test_traits_stand_in_the_class(name):
    data = make(name, **({"root": "images"} if name == "folder" else {}))
    axes = 2 if name in ("ar1", "two_tone") else 1 if name in TOYS else 3
    assert isinstance(data, Data) and type(data).axes == data.axes == axes
    assert data.splits == (() if name in TOYS else ("train", "test"))
    assert data.flip is (name == "cifar10")
    downloaded = {"mnist", "fashion_mnist", "cifar10", "folder"}
    assert data.name == (name if name in downloaded else None)
