"""Image data sets, held as one uint8 tensor on the training device: a batch is an index gather."""

import contextlib
from abc import abstractmethod
from dataclasses import dataclass
from functools import cached_property
from http.client import HTTPException
from importlib.resources import files as package_files
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from fmdiff.data import augment, files
from fmdiff.data.base import Batch, Data, Device
from fmdiff.errors import FmdiffError
from fmdiff.files import lock
from fmdiff.randomness import generator, positions


def from_uint8(pixels: Tensor) -> Tensor:
    """x = pixels / 127.5 - 1: uint8 0 ... 255 of any shape to float32 in [-1, 1]."""
    return pixels.float().div_(127.5).sub_(1)


def to_uint8(x: Tensor) -> Tensor:
    """Pixels round(127.5 (x + 1)) of images x (B, C, H, W), clamped to [-1, 1]: (B, H, W, C)."""
    pixels = x.float().clamp(-1, 1).add(1).mul(127.5).round()
    return pixels.to(torch.uint8).permute(0, 2, 3, 1).contiguous()


@dataclass(kw_only=True, eq=False)
class Images(Data):
    """x (B, C, H, W) in [-1, 1], each training image once per epoch; `flip` mirrors half.

    augment: the probability of each transform of `augmented`. Above 0, its flips replace `flip`;
    the network is told of them.
    """

    batch_size: int = 64
    flip: bool = False
    augment: float = 0.0  # checkpoints of 0.1.0 lack it

    axes: ClassVar[int | None] = 3
    splits: ClassVar[tuple[str, ...]] = ("train", "test")
    resident: ClassVar[int] = 2 << 30  # data sets up to this many bytes are moved to the device

    labels = 10

    def __post_init__(self) -> None:
        super().__post_init__()
        self.require("flip", bool, "true or false")
        self.require("augment", int | float, "a number from 0 to 1", lambda v: 0 <= v <= 1)

    @abstractmethod
    def read(self, train: bool) -> tuple[Tensor, Tensor]:
        """One split: images uint8 (N, C, H, W) and labels int64 (N,)."""

    @cached_property
    def train(self) -> tuple[Tensor, Tensor]:
        """The training images (N, C, H, W), uint8, and their labels; `only` selects them.

        Raises FmdiffError if `read` returns something else.
        """
        return self._split(True)

    @cached_property
    def test(self) -> tuple[Tensor, Tensor]:
        """The held-out images and their labels, like `train`."""
        return self._split(False)

    def _split(self, train: bool) -> tuple[Tensor, Tensor]:
        images, labels = self.read(train)
        shape = tuple(images.shape[1:])
        if images.dtype != torch.uint8 or shape != self.shape or labels.shape != images.shape[:1]:
            raise FmdiffError(
                f"data: {type(self).__name__}.read(train={train}) must return images uint8 "
                f"{('N', *self.shape)} and labels int64 ('N',), and returned {images.dtype} "
                f"{tuple(images.shape)} and {labels.dtype} {tuple(labels.shape)}"
            )
        return self.select(images, labels)

    def select(self, images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """The images whose labels `only` keeps, and these labels."""
        if self.only is None:
            return images, labels
        rows = torch.isin(labels, self.label_numbers)
        return images[rows], labels[rows]

    @property
    def training_size(self) -> int:
        return len(self.train[1])

    @cached_property
    def levels(self) -> Tensor:
        """How often each of the 256 levels occurs in the training images."""
        return self.train[0].flatten().bincount(minlength=256)

    @cached_property
    def std(self) -> float:
        count = self.levels.double().cpu()
        value = torch.arange(256, dtype=torch.float64) / 127.5 - 1
        mean = (count * value).sum() / count.sum()
        return ((count * (value - mean) ** 2).sum() / count.sum()).sqrt().item()

    def batch(
        self, seed: int, step: int, rows: slice = slice(None), device: Device = "cpu"
    ) -> Batch:
        pixels, labels = self.pixels(seed, step, rows, device)
        x = self.mirrored(from_uint8(pixels.to(device)), seed, step, rows)
        return self.with_labels(x, labels, device, **self._batch_parts(seed, step, rows))

    def _batch_parts(self, seed: int, step: int, rows: slice) -> dict[str, Tensor]:
        if not self.conditions:
            return {}
        index = positions(seed, step, self.batch_size, self.training_size)[rows]
        parts = self.parts(index, train=True)
        return {name: self.mirrored(c, seed, step, rows) for name, c in parts.items()}

    def pixels(self, seed: int, step: int, rows: slice, device: Device) -> tuple[Tensor, Tensor]:
        """The images of `batch` as they are stored, uint8 (B, C, H, W), and their labels."""
        if self.shards is not None:
            (part,), numbers = self.shards.take(seed, step, self.batch_size, rows)
            return torch.as_tensor(part), self.train[1][numbers]
        images, labels = self.train
        if images.nbytes <= self.resident:
            images, labels = self.train = images.to(device), labels.to(device)
        index = positions(seed, step, self.batch_size, len(labels))[rows].to(images.device)
        return images[index], labels[index]

    def mirrored(self, x: Tensor, seed: int, step: int, rows: slice) -> Tensor:
        """Images x (B, C, H, W) of `batch`, half of them mirrored if `flip` says so."""
        if not self.flip or self.augment:
            return x
        draws = torch.rand(self.batch_size, generator=generator(seed, "flip", step))[rows]
        return torch.where((draws < 0.5).to(x.device).view(-1, 1, 1, 1), x.flip(-1), x)

    def parts(self, index: Tensor, train: bool) -> dict[str, Tensor]:
        """What the images `index` of a split are given beside labels, by name: pictures (B, ...).

        They are on the CPU.
        """
        return {}

    def augmented(
        self, x: Tensor, seed: int, step: int, rows: slice = slice(None)
    ) -> tuple[Tensor, Tensor | None]:
        if not self.augment:
            return x, None
        draws = generator(seed, "augment", step)
        labels = augment.draw(self.batch_size, self.augment, draws)[rows]
        return augment.transform(x, labels), labels.to(x.device)

    def held_out(self, n: int, device: Device = "cpu") -> Batch:
        images, labels = self.test
        order = torch.randperm(len(labels), generator=generator(0, "held_out"))[:n]
        parts = self.parts(order, train=False)
        return self.with_labels(from_uint8(images[order]), labels[order], device, **parts)

    @property
    def references(self) -> int:  # type: ignore[override]
        return len(self.test[1])

    def examples(self, n: int) -> Batch:
        images, labels = self.train
        parts = self.parts(torch.arange(min(n, len(labels))), train=True)
        return self.with_labels(from_uint8(images[:n]), labels[:n], "cpu", **parts)

    def sample(self, start: int, stop: int, seed: int) -> Batch:
        """Test images start ... stop - 1 in the order of a seed.

        Raises FmdiffError if the split has fewer.
        """
        images, labels = self.test
        if stop > self.references:
            raise FmdiffError(
                f"n={stop} real images were asked for as a reference, but the test split of "
                f"{type(self).__name__} has {len(labels)}; choose n <= {len(labels)}"
            )
        order = torch.randperm(len(labels), generator=generator(seed, "reference"))[start:stop]
        parts = self.parts(order, train=False)
        return self.with_labels(from_uint8(images[order]), labels[order], "cpu", **parts)


class Digits(Images):
    """1,797 digits of 8 x 8 pixels (UCI, see DIGITS.md), part of the package; 297 are the test."""

    shape = (1, 8, 8)

    def read(self, train: bool) -> tuple[Tensor, Tensor]:
        with (
            package_files("fmdiff.data").joinpath("digits.npz").open("rb") as file,
            np.load(file) as archive,
        ):
            levels, labels = archive["images"].astype(np.int64), archive["labels"]
        split = slice(None, -297) if train else slice(-297, None)
        pixels = (levels[split, None] * 255 + 8) // 16  # 0 ... 16 to the nearest of 0 ... 255
        return torch.from_numpy(pixels.astype(np.uint8)), torch.from_numpy(labels[split]).long()


@dataclass(kw_only=True, eq=False)
class Downloaded(Images):
    """A torchvision data set under `root` (null: $FMDIFF_DATA, else the user's cache folder).

    Raises FmdiffError when its files are missing and cannot be downloaded, or are damaged.
    """

    root: str | None = None

    name: ClassVar[str]  # the key in files.SOURCES; the class has torchvision's name

    def prepare(self) -> None:
        where = files.data_root(self.root)
        claim = where / f".{self.name}.lock"
        if files.has_files(self.name, where):
            try:
                return files.check(self.name, where)
            except FmdiffError:  # they are damaged, or another process still unpacks them
                with contextlib.suppress(OSError), lock(claim):
                    pass
        else:
            try:
                where.mkdir(parents=True, exist_ok=True)
                with lock(claim):
                    if not files.has_files(self.name, where):
                        self._torchvision(train=True, download=True)
            except (RuntimeError, OSError, EOFError, HTTPException) as error:
                files.remove_empty_folders(self.name, where)
                raise files.unavailable(self.name, where, error) from error
        files.check(self.name, where)

    def read(self, train: bool) -> tuple[Tensor, Tensor]:
        self.prepare()  # checks the files that torchvision will unpickle
        split = self._torchvision(train=train, download=False)
        channels, height, width = self.shape
        images = torch.as_tensor(split.data).view(-1, height, width, channels)
        return images.permute(0, 3, 1, 2).contiguous(), torch.as_tensor(split.targets)

    def _torchvision(self, train: bool, download: bool) -> Any:
        # imported here, as it takes seconds and sampling does not need it
        from torchvision import datasets

        dataset = getattr(datasets, type(self).__name__)
        return dataset(files.data_root(self.root), train=train, download=download)


class MNIST(Downloaded):
    """60,000 training and 10,000 test digits of 28 x 28 pixels (LeCun et al. 1998)."""

    name = "mnist"
    shape = (1, 28, 28)


class FashionMNIST(Downloaded):
    """60,000 training and 10,000 test garments of 28 x 28 pixels (Xiao et al. 2017)."""

    name = "fashion_mnist"
    shape = (1, 28, 28)
    # "top" is short for the published "T-shirt/top", "boot" for "Ankle boot"
    names = (
        "top",
        "trouser",
        "pullover",
        "dress",
        "coat",
        "sandal",
        "shirt",
        "sneaker",
        "bag",
        "boot",
    )


class CIFAR10(Downloaded):
    """50,000 training and 10,000 test photographs of 32 x 32 pixels (Krizhevsky 2009)."""

    name = "cifar10"
    shape = (3, 32, 32)
    names = (
        "airplane",
        "automobile",
        "bird",
        "cat",
        "deer",
        "dog",
        "frog",
        "horse",
        "ship",
        "truck",
    )
