"""Data sets around another, whose samples are conditioned on a part of themselves.

`low_resolution` teaches super-resolution, `masked` inpainting, outpainting and the distribution of
some coordinates given others.
"""

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.nn import functional as F

from fmdiff.build import kind, spec_of
from fmdiff.codec import Codec
from fmdiff.condition import Form, Given, given, label, named
from fmdiff.data.base import Batch, Data, Device
from fmdiff.data.images import Images
from fmdiff.data.shards import Shards
from fmdiff.errors import FmdiffError
from fmdiff.randomness import generator, noise

EXAMPLES = 4096  # training samples whose conditions tell the mean and scale of all
BOXES = ("center", "random", "outside")  # modes with a box of data.size places a side
NAMED = ("_target_", "group", "name")  # keys of a data set chosen by its name
MODES = (*BOXES, "half", "scattered")


def form_of(values: Tensor) -> Form:
    """The form of a condition (N, *shape), with the mean and scale of what is known of it.

    They are by channel, or by component of vectors. NaN is not known.
    """
    columns = values.double().movedim(1, 0).flatten(1)
    mean = columns.nanmean(1).nan_to_num()
    std = (columns - mean[:, None]).square().nanmean(1).sqrt().nan_to_num(1.0)
    std = torch.where(std > 0, std, 1.0)
    return Form(tuple(values.shape[1:]), tuple(mean.tolist()), tuple(std.tolist()))


@dataclass(kw_only=True, eq=False)
class Derived(Data):
    """The samples x of `of`, each with a condition that a subclass computes from x by `derive`.

    The keys common to all data sets are taken from here; conditional=null leaves classes as `of`
    has them. Random numbers of the condition are a function of (seed, step, row) in training, and
    of (seed, number of the sample) elsewhere.
    Raises FmdiffError if `of` is no data set, or changes its samples after they are drawn.
    """

    of: Data

    axes: ClassVar[int | None] = None
    condition: ClassVar[str]  # its name
    undecided: ClassVar[bool] = True

    def __post_init__(self) -> None:
        if not isinstance(self.of, Data):
            raise FmdiffError(
                f"data.of={self.of} must be a data set; choose one by its name, data.of.name=mnist"
            )
        if isinstance(self.of, Images) and self.of.augment:
            raise FmdiffError(
                f"data.of.augment={self.of.augment} changes images after their condition is "
                "known: set it to 0"
            )
        super().__post_init__()
        changes: dict[str, Any] = {"batch_size": self.batch_size, "only": self.only}
        if self.conditional is not None:
            changes["conditional"] = self.conditional
        self.inner = replace(self.of, **changes)
        self.axes = self.of.axes  # type: ignore[misc]  # an instance knows more than its class

    @abstractmethod
    def derive(self, x: Tensor, u: Tensor) -> Tensor:
        """The condition of samples x (B, *shape); u (B, `draws`) is uniform in [0, 1]."""

    @property
    def draws(self) -> int:
        """How many random numbers the condition of a sample takes."""
        return 0

    @cached_property
    def conditions(self) -> dict[str, Form]:
        """The condition by its name, with its mean and scale by channel, or by component."""
        x = self._outer(self.inner.examples(EXAMPLES)[0])
        form = form_of(self.derive(x, self._uniform(0, len(x), 0, "scale")))
        return {**self.inner.conditions, self.condition: form}

    @classmethod
    def axes_of(cls, settings: Mapping[str, Any]) -> int | None:
        spec = settings["of"]
        if spec["_target_"] == "fmdiff.build.named":
            changes = {key: spec[key] for key in spec if key not in NAMED}
            spec = spec_of(spec["group"], spec["name"]) | changes
        base = kind(spec["_target_"])
        return base.axes_of(spec) if issubclass(base, Data) else None

    def check_labels(self) -> None:
        """Does nothing, as `of` checks the keys of its labels."""

    def prepare(self) -> None:
        self.inner.prepare()

    @property  # type: ignore[misc]
    def shape(self) -> tuple[int, ...]:  # type: ignore[override]
        return self.inner.shape

    @property  # type: ignore[misc]
    def labels(self) -> int:  # type: ignore[override]
        return self.inner.labels

    @property
    def classes(self) -> int:
        return self.inner.classes

    @property
    def names(self) -> Sequence[str]:  # type: ignore[override]
        return self.inner.names

    @property
    def name(self) -> str | None:  # type: ignore[override]
        return self.inner.name

    @property
    def splits(self) -> tuple[str, ...]:  # type: ignore[override]
        return self.inner.splits

    @property
    def references(self) -> int | None:  # type: ignore[override]
        return self.inner.references

    @property
    def flip(self) -> bool:  # type: ignore[override]
        return self.inner.flip

    @property
    def label_numbers(self) -> Tensor:  # type: ignore[override]
        return self.inner.label_numbers

    @property
    def training_size(self) -> int | None:
        return self.inner.training_size

    def fingerprint(self) -> dict[str, Any] | None:
        return self.inner.fingerprint()

    @property
    def shards(self) -> Shards | None:
        return self.inner.shards

    def mixture(self) -> tuple[Tensor, Tensor, Tensor] | None:
        return self.inner.mixture()

    def joint(self) -> tuple[Tensor, Tensor, Tensor] | None:
        return self.inner.joint()

    def off_support(self, x: Tensor) -> Tensor | None:
        return self.inner.off_support(x)

    @property
    def train(self) -> tuple[Tensor, Tensor]:
        """The training images and labels of `of`. Raises FmdiffError if it has no images."""
        return self._images.train

    @property
    def test(self) -> tuple[Tensor, Tensor]:
        """The held-out images and their labels, like `train`."""
        return self._images.test

    @property
    def _images(self) -> "Images | Derived":
        if not isinstance(self.inner, Images | Derived):
            raise FmdiffError(f"data.of: {type(self.inner).__name__} has no images")
        return self.inner

    @property
    def std(self) -> float:  # type: ignore[override]
        return self.inner.std

    @property
    def centre(self) -> Tensor | None:
        return self.inner.centre

    @property
    def codec(self) -> Codec | None:
        return self.inner.codec

    def comparable(self, x: Tensor) -> Tensor:
        return self.inner.comparable(x)

    def batch(
        self, seed: int, step: int, rows: slice = slice(None), device: Device = "cpu"
    ) -> Batch:
        draws = generator(seed, self.condition, step)
        u = torch.rand(self.batch_size, self.draws, generator=draws)[rows]
        x, y = self.inner.batch(seed, step, rows, device)
        return x, self._given(self._outer(x), y, u)

    def held_out(self, n: int, device: Device = "cpu") -> Batch:
        x, y = self.inner.held_out(n, device)
        return x, self._given(self._outer(x), y, self._uniform(0, len(x), 0, "held_out"))

    def sample(self, start: int, stop: int, seed: int) -> Batch:
        u = self._uniform(start, stop, seed, "reference")
        x, y = self.inner.sample(start, stop, seed)
        return x, self._given(x, y, u)

    def examples(self, n: int) -> Batch:
        x, y = self.inner.examples(n)
        return x, self._given(self._outer(x), y, self._uniform(0, len(x), 0, "examples"))

    def _outer(self, x: Tensor) -> Tensor:
        """What a model learns as the user knows it: conditions are in the user's units."""
        return x if self.codec is None else self.codec.decode(x)

    def _given(self, x: Tensor, y: Given | None, u: Tensor) -> Given | None:
        """What samples x (B, *outer) have already, y, and the condition."""
        return given(label(y), named(y) | {self.condition: self.derive(x, u.to(x.device))})

    def _uniform(self, start: int, stop: int, seed: int, purpose: str) -> Tensor:
        """Uniform numbers (stop - start, draws): row i depends on (seed, purpose, i) alone."""
        if not self.draws:
            return torch.empty(stop - start, 0)
        z = noise(start, stop, (self.draws,), seed, f"{self.condition}_{purpose}")
        return torch.special.ndtr(z)


@dataclass(kw_only=True, eq=False)
class LowResolution(Derived):
    """Images with the condition `low`: x averaged down to `size` x `size` pixels.

    Raises FmdiffError unless `of` has images of more pixels a side.
    """

    size: int

    axes: ClassVar[int | None] = 3
    condition: ClassVar[str] = "low"

    def __post_init__(self) -> None:
        self.require("size", int, "an integer >= 1", lambda v: v >= 1)
        super().__post_init__()

    def derive(self, x: Tensor, u: Tensor) -> Tensor:
        """`low` (B, C, size, size) of images x (B, C, H, W)."""
        if x.ndim != 4 or min(x.shape[2:]) <= self.size:
            raise FmdiffError(
                f"data.size={self.size}: low_resolution needs images of more pixels a side, and "
                f"data.of has samples of shape {list(x.shape[1:])}"
            )
        return F.adaptive_avg_pool2d(x, self.size)


@dataclass(kw_only=True, eq=False)
class Masked(Derived):
    """Samples with the condition `known`: x itself, and NaN in a hole, in all channels at once.

    mode says where the hole is: `center`, a box of `size` places a side in the middle; `random`,
    such a box anywhere; `outside`, all but the box in the middle (outpainting); `half`, any of the
    halves; `scattered`, each place, or coordinate of a point, with probability `rate`.

    Raises FmdiffError for a mode that points do not have, and for a box larger than the samples.
    """

    mode: str
    size: int
    rate: float

    condition: ClassVar[str] = "known"

    def __post_init__(self) -> None:
        self.require("mode", str, ", ".join(MODES), lambda v: v in MODES)
        self.require("size", int, "an integer >= 1", lambda v: v >= 1)
        self.require("rate", int | float, "a number from 0 to 1", lambda v: 0 <= v <= 1)
        super().__post_init__()

    @cached_property
    def places(self) -> tuple[int, ...]:
        """The axes of a sample that holes have: without channels, (d,), (L,) or (H, W)."""
        shape = self.shape if self.codec is None else self.codec.outer
        places = shape if len(shape) == 1 else shape[1:]
        if len(shape) == 1 and self.mode != "scattered":
            raise FmdiffError(
                f"data.mode={self.mode} is a hole in images or series, and data.of has points of "
                f"{shape[0]} coordinates; choose data.mode=scattered"
            )
        if self.mode in BOXES and self.size > min(places):
            raise FmdiffError(
                f"data.size={self.size}: the box must fit into samples of shape {list(shape)}"
            )
        return places

    @property
    def draws(self) -> int:
        if self.mode == "scattered":
            return torch.Size(self.places).numel()
        return {"random": len(self.places), "half": 1}.get(self.mode, 0)

    def hole(self, u: Tensor) -> Tensor:
        """Where samples are hidden (B, *places), bool; u (B, `draws`) as in `derive`."""
        if self.mode == "scattered":
            return (u < self.rate).view(len(u), *self.places)
        axes, hidden = len(self.places), torch.ones(1, dtype=torch.bool, device=u.device)
        for axis, length in enumerate(self.places):
            place, start = torch.arange(length, device=u.device), (length - self.size) // 2
            low, high = u.new_full((len(u), 1), start), u.new_full((len(u), 1), start + self.size)
            if self.mode == "random":
                low = (u[:, axis, None] * (length - self.size + 1)).floor()
                low = low.clamp(max=length - self.size)  # u may be 1
                high = low + self.size
            elif self.mode == "half":
                choice = (u * 2 * axes).floor().clamp(max=2 * axes - 1)  # an axis and a side
                mine, second = choice // 2 == axis, choice % 2 == 1
                low = torch.where(mine & second, length // 2, 0)
                high = torch.where(mine & ~second, length // 2, length)
            within = (place >= low) & (place < high)
            within = within.view(len(u), *(length if k == axis else 1 for k in range(axes)))
            hidden = hidden & within
        return ~hidden if self.mode == "outside" else hidden

    def derive(self, x: Tensor, u: Tensor) -> Tensor:
        """`known` (B, *shape) of samples x (B, *shape)."""
        hole = self.hole(u)
        hole = hole if x.ndim == 2 else hole.unsqueeze(1)
        return x.masked_fill(hole, torch.nan)
