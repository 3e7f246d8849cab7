"""Features of images, which the Frechet, kernel and precision-recall metrics compare.

A feature extractor is a class below `Features` and a YAML in configs/features. The package has
three small classifiers, of digits, garments and CIFAR-10 objects. They need no download and take
milliseconds an image. A distance of their features is not an FID and is never called one.
"""

import contextlib
import hashlib
import json
from abc import ABC, abstractmethod
from collections.abc import Iterator
from importlib.resources import files as package_files
from typing import Any

import torch
from torch import Tensor, nn

from fmdiff.data.images import from_uint8
from fmdiff.errors import FmdiffError, nearest

# the data sets with a classifier in the package, and the shape (C, H, W) of their images
EMBEDDED = {"mnist": (1, 28, 28), "fashion_mnist": (1, 28, 28), "cifar10": (3, 32, 32)}


class Features(ABC):
    """The base class of feature extractors, with `__call__` and three attributes.

    The keys of the YAML (features.KEY=VALUE on the command line) are the keyword arguments. The
    features of an image must not depend on the other images of the batch.
    """

    name: str  # the extractor's name in reports
    distance: str  # the name of a Frechet distance of these features; "fid" is Inception's
    dimension: int  # d
    classes: int = 0  # K; 0 without logits
    data: str = ""  # the data set whose classes, in its numbering, the logits are of
    # hash of the file of weights; features of data sets are cached by it, or not at all if ""
    sha256: str = ""
    device = torch.device("cpu")

    @abstractmethod
    def __call__(self, pixels: Tensor) -> tuple[Tensor, Tensor | None]:
        """uint8 (B, H, W, C) on any device -> float32 features (B, d), logits (B, K) or None."""

    def for_shape(self, shape: tuple[int, ...]) -> "Features":
        """Prepare for images of a shape (C, H, W). Returns itself.

        Raises FmdiffError if there are no features of such images.
        """
        return self

    def to(self, device: str | torch.device) -> "Features":
        """Compute on `device`, and move the weights there, if any. Returns itself."""
        self.device = torch.device(device)
        return self


def extractor_of(value: Any) -> Features:
    """Return the value. Raises FmdiffError unless it is a `Features` with its attributes."""
    name = type(value).__name__
    if not isinstance(value, Features):
        raise FmdiffError(f"features: {name} must derive from {__name__}.Features")
    for attribute in ("name", "distance", "dimension"):
        if not hasattr(value, attribute):
            raise FmdiffError(
                f"features: {name} lacks {attribute}; it needs name, distance (what a Frechet "
                "distance of its features is called) and dimension (their number)"
            )
    return value


def read(extractor: Features, pixels: Tensor) -> tuple[Tensor, Tensor | None]:
    """Features float32 (B, d) and logits (B, K) or None of images uint8 (B, H, W, C).

    Raises FmdiffError if the extractor returns something else.
    """
    value = extractor(pixels)
    features, logits = value if isinstance(value, tuple) and len(value) == 2 else (value, None)
    for what, part, size in (
        ("features", features, extractor.dimension),
        ("logits", logits, extractor.classes),
    ):
        if part is None and what == "logits":
            continue
        if not isinstance(part, Tensor) or part.shape != (len(pixels), size):
            returned = list(part.shape) if isinstance(part, Tensor) else type(part).__name__
            raise FmdiffError(
                f"features={extractor.name}: {type(extractor).__name__} must return {what} of "
                f"shape [{len(pixels)}, {size}] for {len(pixels)} images, and returned {returned}"
            )
    return features.float(), logits


class Network(nn.Module):
    """A small residual classifier: x (B, C, H, W) in [-1, 1] -> (B, widths[-1]), (B, classes).

    The first layer maps 2 x 2 patches p to +-(p - mean) v_i / sqrt(lambda_i + 1e-3), v_i and
    lambda_i the eigenvectors and eigenvalues of their covariance. It is not trained. Every width
    adds h = relu(norm(pool(conv(h)))) and h = h + relu(norm(conv(h))). The features are the means
    of the last maps. Source: Page 2018; Jordan 2024 (whitening).
    """

    def __init__(self, shape: tuple[int, int, int], widths: tuple[int, ...], classes: int) -> None:
        super().__init__()
        self.whiten = nn.Conv2d(shape[0], 8 * shape[0], 2).requires_grad_(False)
        sizes = (8 * shape[0], *widths)
        self.down, self.same = nn.ModuleList(), nn.ModuleList()
        for before, width in zip(sizes, widths, strict=False):
            conv = nn.Conv2d(before, width, 3, padding=1, bias=False)
            pooled = nn.MaxPool2d(2)
            self.down.append(nn.Sequential(conv, pooled, nn.BatchNorm2d(width), nn.ReLU()))
            conv = nn.Conv2d(width, width, 3, padding=1, bias=False)
            self.same.append(nn.Sequential(conv, nn.BatchNorm2d(width), nn.ReLU()))
        self.head = nn.Linear(sizes[-1], classes)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Features (B, widths[-1]) and logits (B, classes) of images (B, C, H, W) in [-1, 1]."""
        features = self.maps(x)[-1].mean((2, 3))
        return features, self.head(features)

    def maps(self, x: Tensor) -> list[Tensor]:
        """The maps (B, widths[i], H_i, W_i) of images (B, C, H, W) in [-1, 1], finest first."""
        h, maps = self.whiten(x).relu(), list[Tensor]()
        for down, same in zip(self.down, self.same, strict=True):
            h = down(h)
            h = h + same(h)
            maps.append(h)
        return maps

    @torch.no_grad()
    def whitened(self, x: Tensor) -> "Network":
        """Fit the first layer to the patches of images x (B, C, H, W). Returns itself."""
        patches = nn.functional.unfold(x, 2).transpose(1, 2).flatten(0, 1).double()
        mean = patches.mean(0)
        values, vectors = torch.linalg.eigh((patches - mean).T.cov())
        rows = vectors.T / (values + 1e-3).sqrt()[:, None]
        rows = torch.cat([rows, -rows])
        self.whiten.weight.copy_(rows.view_as(self.whiten.weight))
        self.whiten.bias.copy_(-rows @ mean)  # type: ignore[union-attr]
        return self


class Classifier(Features):
    """The classifier of the package for a data set of EMBEDDED; a `Features`.

    It takes images of the data set's shape. After `for_shape` it takes those of another size, and
    its name and that of its distance end in @HxW. Larger sides are reduced (bilinear, antialiased)
    and the pixels of smaller ones repeated: interpolated ones would be too smooth for the first
    layer, which whitens, and hide noise in the images.

    `about` holds the metadata of the file: data, accuracy on the test images, architecture, fmdiff
    version and the files that trained it. Raises FmdiffError for another name.
    """

    def __init__(self, name: str) -> None:
        from safetensors.torch import load

        if name not in EMBEDDED:
            raise FmdiffError(f"features.name={name}: {nearest(name, EMBEDDED)}")
        file = package_files("fmdiff.metrics").joinpath("weights", f"{name}.safetensors")
        content = file.read_bytes()
        self.about = about(content)
        architecture = self.about["architecture"]
        self.net = Network(**architecture)
        self.net.load_state_dict({k: v.float() for k, v in load(content).items()})
        self.net.eval().requires_grad_(False).to(memory_format=torch.channels_last)
        self.name, self.distance, self.data = name, f"fd_{name}", name
        self.shape = EMBEDDED[name]
        self.dimension, self.classes = architecture["widths"][-1], architecture["classes"]
        self.sha256 = hashlib.sha256(content).hexdigest()
        self.device = torch.device("cpu")

    def __call__(self, pixels: Tensor) -> tuple[Tensor, Tensor]:
        """uint8 (B, H, W, C) -> features (B, d) and logits (B, K), float32 on its device.

        Raises FmdiffError for images of another shape than `shape`.
        """
        channels, height, width = self.shape
        if pixels.shape[1:] != (height, width, channels):
            size = " x ".join(map(str, pixels.shape[1:]))
            raise FmdiffError(
                f"features={self.name} takes images of {height} x {width} x {channels}, not {size}"
            )
        x, (_, *own) = from_uint8(on(self.device, pixels)), EMBEDDED[self.data]
        with exactly():
            return self.net(resized(x, *own))

    def maps(self, x: Tensor) -> list[Tensor]:
        """The maps of the network for images (B, C, H, W) in [-1, 1], with their gradients."""
        return self.net.maps(resized(x, *EMBEDDED[self.data][1:]))

    def for_shape(self, shape: tuple[int, ...]) -> "Classifier":
        """Take images of a shape (C, H, W) from now on. Returns itself.

        Raises FmdiffError for another number of channels than the data set's.
        """
        channels = EMBEDDED[self.data][0]
        if shape[0] != channels:
            colour = {1: "grey images, of 1 channel", 3: "colour images, of 3 channels"}
            fitting = [name for name, about in EMBEDDED.items() if about[0] == shape[0]]
            raise FmdiffError(
                f"features={self.data} takes {colour[channels]}, not of {shape[0]}; choose "
                f"features={' or '.join([*fitting, 'inception'])}"
            )
        self.shape = (channels, shape[1], shape[2])
        if self.shape != EMBEDDED[self.data]:
            self.name = f"{self.data}@{shape[1]}x{shape[2]}"
            self.distance = f"fd_{self.name}"
        return self

    def to(self, device: str | torch.device) -> "Classifier":
        """Move the network to a device. Returns itself."""
        self.device = torch.device(device)
        self.net.to(self.device)
        return self


def resized(x: Tensor, height: int, width: int) -> Tensor:
    """Images (B, C, H, W) as (B, C, height, width): `Classifier` says how."""
    less = (min(height, x.shape[2]), min(width, x.shape[3]))
    if less != x.shape[2:]:
        x = nn.functional.interpolate(x, less, mode="bilinear", antialias=True)
    # the pixel around the middle of each new one; integers, as rounding would differ by device
    rows, columns = (
        (2 * torch.arange(new, device=x.device) + 1) * old // (2 * new)
        for new, old in zip((height, width), less, strict=True)
    )
    return x if less == (height, width) else x[:, :, rows][:, :, :, columns]


def about(content: bytes) -> dict[str, Any]:
    """The metadata of fmdiff's safetensors files, which are JSON under the one key `fmdiff`."""
    header = json.loads(content[8 : 8 + int.from_bytes(content[:8], "little")])
    return json.loads(header["__metadata__"]["fmdiff"])


def on(device: str | torch.device, pixels: Tensor) -> Tensor:
    """Pixels uint8 (B, H, W, C) as (B, C, H, W) on a device. Raises TypeError for other dtypes."""
    if pixels.dtype != torch.uint8:
        raise TypeError(f"features are of uint8 pixels, not {pixels.dtype}")
    return pixels.to(device).permute(0, 3, 1, 2)


@contextlib.contextmanager
def exactly() -> Iterator[None]:
    """Compute without gradients, and on CUDA without TF32 and algorithms chosen by timing.

    With TF32's 10 bits, features would depend on the batch size in the fourth digit.
    """
    flags = torch.backends.cudnn.flags(enabled=True, deterministic=True, allow_tf32=False)
    with torch.no_grad(), flags:
        yield


def for_data(name: str | None, shape: tuple[int, ...]) -> str | None:
    """The default of `features` for a data set: its own, or by the channels of its images.

    shape: (C, H, W), or (d,) of points. Other grey images take MNIST's, other colour images
    CIFAR-10's. None for points and for images of neither 1 nor 3 channels.
    """
    if name in EMBEDDED:
        return name
    return {1: "mnist", 3: "cifar10"}.get(shape[0]) if len(shape) == 3 else None
