"""The latent space of an autoencoder as a data set: what models learn is what it encodes.

Images are encoded once. The folder `files.data_root()`/latents/DATA-HASH holds

    latents.npy  (N, *shape) float32, mapped into memory: the encoded training images and, if these
                 are mirrored in training, the encoded mirror images after them
    about.json   mean and scale of the channels, and the SHA-256 of latents.npy

HASH is made of the autoencoder's weights and of the images. The folder can be deleted at any time;
then the images are encoded again.
"""

import hashlib
import json
import logging
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from fmdiff import files
from fmdiff.build import named
from fmdiff.codec import Codec, frozen
from fmdiff.condition import Form
from fmdiff.data.base import Batch, Data, Device
from fmdiff.data.files import data_root
from fmdiff.data.images import Images, from_uint8
from fmdiff.errors import FmdiffError
from fmdiff.loading import Latent, latent_axes, load_codec
from fmdiff.machine import device as machine
from fmdiff.machine.progress import Bar
from fmdiff.randomness import generator, positions

log = logging.getLogger("fmdiff")

FORMAT = 1  # version of the cache; other versions are ignored
AT_ONCE = 100  # images that are encoded together
DRAWS = 10_000  # samples whose latents are standardised, if the data are drawn from a formula


class Encoded(NamedTuple):
    """The latents of the training images."""

    z: Tensor  # (N, *shape) float32 as the autoencoder gives them, or (2 N, ...): see Latents
    mean: Tensor  # (C,) float64
    scale: Tensor  # (C,) float64


@dataclass(kw_only=True, eq=False)
class Latents(Data):
    """The latents of the data set `of` by an autoencoder, with mean 0 and variance 1 by channel.

    of: the name of a data set, or the data set. autoencoder: a run of objective=autoencoder, or
    diffusers:FOLDER with an AutoencoderKL. weights, trust: as `loading.load` takes them. Labels
    and conditions are those of `of`. Where `of` mirrors half of its images, half of the latents
    are those of mirror images. Images without conditions are encoded once; other data are encoded
    batch by batch.

    The autoencoder is read when the latents are first needed, so samples can be compared with `of`
    without it. Raises FmdiffError for data that have a codec of their own, or are augmented.
    """

    of: Any
    autoencoder: str
    weights: str | float = "ema"
    trust: tuple[str, ...] | list[str] = ()

    axes = None
    undecided = True

    def __post_init__(self) -> None:
        self.require("autoencoder", str, "a run, or diffusers:FOLDER", lambda v: v != "")
        if isinstance(self.of, str):
            keys = {"conditional": self.conditional, "only": self.only}
            self.of = named("data", self.of, **{k: v for k, v in keys.items() if v is not None})
        if not isinstance(self.of, Data) or isinstance(self.of, Latents):
            raise FmdiffError(f"data.of={self.of} must be another data set, like cifar10")
        if isinstance(self.of, Images) and self.of.augment:
            raise FmdiffError(
                f"data.of.augment={self.of.augment} changes each image anew, and latents are "
                "encoded once: choose augment=0.0"
            )
        self.conditional, self.only, self.labels = self.of.conditional, self.of.only, 1
        super().__post_init__()

    @classmethod
    def axes_of(cls, settings: Mapping[str, Any]) -> int | None:
        keys = settings.get("weights", "ema"), tuple(settings.get("trust") or ())
        try:
            return latent_axes(str(settings.get("autoencoder")), *keys)
        except FmdiffError:
            return None  # the error is raised when the autoencoder is needed

    def check_labels(self) -> None:
        """Does nothing: `of` has checked them."""

    # What the data are: as `of` says

    @property
    def user(self) -> Data:
        return self.of.user

    @property
    def classes(self) -> int:
        return self.of.classes

    @cached_property
    def label_numbers(self) -> Tensor:
        return self.of.label_numbers

    @property
    def names(self) -> Any:  # type: ignore[override]
        return self.of.names

    @property
    def name(self) -> str | None:  # type: ignore[override]
        return self.of.name

    @property
    def references(self) -> int | None:  # type: ignore[override]
        return self.of.references

    @property
    def splits(self) -> tuple[str, ...]:  # type: ignore[override]
        return self.of.splits

    @property
    def training_size(self) -> int | None:
        return self.of.training_size

    @property
    def conditions(self) -> dict[str, Form]:
        return self.of.conditions

    def fingerprint(self) -> dict[str, Any] | None:
        return self.of.fingerprint()

    def sample(self, start: int, stop: int, seed: int) -> Batch:
        return self.of.sample(start, stop, seed)

    # The latent space

    @cached_property
    def autoencoding(self) -> Latent:
        """The autoencoder, frozen; its latents are not standardised."""
        if self.of.codec is not None:
            raise FmdiffError(
                f"data.of={type(self.of).__name__} is translated by a codec of its own; "
                "data=latent takes images, and points as they are"
            )
        self.of.prepare()
        trust, option = tuple(self.trust), "data.autoencoder"
        codec = load_codec(self.autoencoder, self.weights, trust, option, self.of.shape)
        if codec.outer != tuple(self.of.shape):
            raise FmdiffError(
                f"data.autoencoder={self.autoencoder} encodes samples of shape "
                f"{list(codec.outer)}, and those of data.of have {list(self.of.shape)}"
            )
        return codec

    @cached_property
    def codec(self) -> Codec:  # type: ignore[override]
        """The autoencoder with standardised latents."""
        codec, moments = self.autoencoding, self.encoded
        codec.standardise(moments.mean, moments.scale)
        return frozen(codec).cpu()

    @cached_property  # type: ignore[misc]
    def shape(self) -> tuple[int, ...]:  # type: ignore[override]
        return self.autoencoding.latent

    @cached_property
    def std(self) -> float:
        scale = self.encoded.scale
        # a channel that is constant has scale 0 and counts as it is
        return (scale > 0).double().mean().sqrt().item()

    def prepare(self) -> None:
        _ = self.codec

    @property
    def stored(self) -> bool:
        """Whether the latents are encoded once, rather than batch by batch."""
        return isinstance(self.of, Images) and not self.of.conditions

    @cached_property
    def encoded(self) -> Encoded:
        """The latents of the training images, from the cache; logs if they must be encoded first.

        Of other data, those of a few samples.
        """
        if self.stored:
            return self._from_cache()
        x = self.of.examples(DRAWS)[0]
        z = torch.cat(list(self._encode(x.split(AT_ONCE))))
        return Encoded(z, *moments([z]))

    def batch(
        self, seed: int, step: int, rows: slice = slice(None), device: Device = "cpu"
    ) -> Batch:
        if not self.stored:
            self.of.batch_size = self.batch_size
            return self._learned(self.of.batch(seed, step, rows, device), device)
        _ = self.codec  # with its moments
        size, labels = self.batch_size, self.of.train[1]
        index = positions(seed, step, size, len(labels))[rows]
        place = index
        if self.of.flip:
            draws = torch.rand(size, generator=generator(seed, "flip", step))[rows]
            place = torch.where(draws < 0.5, index + len(labels), index)
        z = self.autoencoding.standard.encode(self.encoded.z[place].to(device))
        return self.with_labels(z, labels[index.to(labels.device)], device)

    @torch.no_grad()
    def _learned(self, batch: Batch, device: Device) -> Batch:
        x, y = batch
        return self.codec.to(device).encode(x.to(device)), y

    def held_out(self, n: int, device: Device = "cpu") -> Batch:
        return self._learned(self.of.held_out(n, device), device)

    def examples(self, n: int) -> Batch:
        return self._learned(self.of.examples(n), "cpu")

    # The cache

    @torch.no_grad()
    def _encode(self, parts: Any) -> Iterator[Tensor]:
        """The latents of each part (B, *outer) on the CPU, before they are standardised."""
        where = machine.pick("auto")
        codec = self.autoencoding.to(where)
        for part in parts:
            yield codec.posterior(part.to(where))[0].float().cpu()

    def _images(self) -> Iterator[Tensor]:
        """The training images in parts and, if they are mirrored in training, their mirrors."""
        for mirrored in (False, True)[: 1 + self.of.flip]:
            for pixels in self.of.train[0].split(AT_ONCE):
                x = from_uint8(pixels)
                yield x.flip(-1) if mirrored else x

    @cached_property
    def folder(self) -> Path:
        """The folder of the latents in the cache."""
        facts = self.of.fingerprint()
        if facts is None:
            facts = {"digest": hashlib.sha256(self.of.train[0].cpu().numpy().data).hexdigest()}
        key = [FORMAT, self.autoencoding.sha256, facts, len(self.of.train[1]), self.of.flip]
        digest = hashlib.blake2b(json.dumps(key).encode(), digest_size=8).hexdigest()
        name = self.of.name or type(self.of).__name__.lower()
        return data_root().absolute() / "latents" / f"{name}-{digest}"

    def _from_cache(self) -> Encoded:
        folder = self.folder
        rows = len(self.of.train[1]) * (1 + self.of.flip)
        shape = (rows, *self.autoencoding.latent)
        encoded = load(folder, shape)
        if encoded is None:
            try:
                folder.mkdir(parents=True, exist_ok=True)
                with files.lock(folder.with_name(f"{folder.name}.lock")):
                    encoded = load(folder, shape)  # another process may have been faster
                    if encoded is None:
                        log.info("data=latent: encoding %d images into %s", rows, folder)
                        with Bar(rows, "image") as bar:
                            write(folder, shape, self._encode(self._images()), bar)
                        encoded = load(folder, shape)
            except OSError as error:
                raise FmdiffError(
                    f"data=latent: {folder} cannot be written ({error.strerror or error}); make "
                    "room there, or point FMDIFF_DATA to another folder"
                ) from error
        if encoded is None:
            raise FmdiffError(f"data=latent: {folder} cannot be read back; is the disk whole?")
        return encoded


def moments(parts: Any) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation (C,), float64, of the channels of latents (B, C, ...)."""
    count, total, squares = 0, torch.zeros(()), torch.zeros(())
    for part in parts:
        z = part.double().flatten(2) if part.ndim > 2 else part.double()[..., None]
        count += z.shape[0] * z.shape[2]
        total, squares = total + z.sum((0, 2)), squares + z.square().sum((0, 2))
    mean = total / count
    return mean, (squares / count - mean.square()).clamp(min=0).sqrt()


def write(folder: Path, shape: tuple[int, ...], parts: Iterator[Tensor], bar: Any) -> None:
    """Write latents.npy of these parts (B, *shape[1:]) and about.json. Raises OSError.

    Raises FmdiffError for latents that are not finite.
    """
    digest = hashlib.sha256()

    def written(file: Any) -> Iterator[Tensor]:
        head = {"descr": "<f4", "fortran_order": False, "shape": shape}
        np.lib.format.write_array_header_1_0(file, head)
        for part in parts:
            if not part.isfinite().all():
                raise FmdiffError("data.autoencoder gives latents that are not finite")
            content = part.contiguous().numpy().astype("<f4", copy=False)
            digest.update(content.data)
            file.write(content.data)
            yield part
            bar(len(part))

    with files.whole(folder / "latents.npy") as file:
        mean, scale = moments(written(file))
    about = {"sha256": digest.hexdigest(), "mean": mean.tolist(), "scale": scale.tolist()}
    files.write_text(folder / "about.json", json.dumps(about))


def load(folder: Path, shape: tuple[int, ...]) -> Encoded | None:
    """The latents of a cache folder, mapped into memory; None if they are missing or damaged."""
    try:
        about = json.loads(files.read_text(folder / "about.json", folder))
        # "c" is copy on write: the tensor is writable and the file stays as it is
        z = np.load(folder / "latents.npy", mmap_mode="c", allow_pickle=False)
        mean, scale = (torch.tensor(about[k], dtype=torch.float64) for k in ("mean", "scale"))
        right = z.shape == shape and z.dtype == np.float32
        right = right and mean.shape == scale.shape == shape[1:2] and math.isfinite(sum(scale))
        if not right or hashlib.sha256(z.data).hexdigest() != about["sha256"]:
            return None
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return Encoded(torch.from_numpy(z), mean, scale)
