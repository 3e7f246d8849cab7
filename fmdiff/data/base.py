"""The base class of data sets, with the defaults of what training and evaluation need.

A data set is a class below `Data` and a YAML in configs/data. Points are easiest as a `Toy` with
`draw` (data/toy.py), images as an `Images` with `read` (data/images.py).
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from types import UnionType
from typing import Any, ClassVar

import torch
from torch import Generator, Tensor

from fmdiff.codec import Codec, kind_of
from fmdiff.condition import Form, Given, given, join
from fmdiff.data.shards import Shards
from fmdiff.errors import FmdiffError, class_number
from fmdiff.randomness import BLOCK, generator

Batch = tuple[Tensor, Given | None]
Batches = tuple[Tensor, Given | None, Tensor | None]
Device = torch.device | str
INTEGERS = (torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8)


def concatenate(parts: Sequence[Tensor]) -> Tensor:
    """Concatenates tensors along their first axis; a single one is not copied."""
    return parts[0] if len(parts) == 1 else torch.cat(list(parts))


@dataclass(kw_only=True, eq=False)
class Data(ABC):
    """A data set: x float32 (B, *shape), y int64 (B,), or None without classes.

    With `conditions` y is a `condition.Condition`. What a model learns is `batch`, `held_out` and
    `examples`; `sample` gives what a user knows, which `codec` translates.

    `only` keeps the samples of the given labels, as numbers or names. The labels are not
    renumbered, and `classes` does not change. Raises FmdiffError for a key of the wrong type or
    range.
    """

    batch_size: int = 256  # samples per optimiser step, over all devices
    conditional: bool | None = False  # None: the data decide, if `undecided`
    only: list[Any] | None = None  # checkpoints of 0.1.0 lack it

    shape: tuple[int, ...] = field(init=False)  # of one sample: (d,), (C, L) or (C, H, W)
    labels: int = field(init=False, default=1)  # how many labels the data have

    # how many axes a sample has: 1 for points (d,), 2 for series (C, L), 3 for images (C, H, W)
    axes: ClassVar[int | None] = 1
    names: ClassVar[Sequence[str]] = ()  # the names of the labels, if they have names
    name: ClassVar[str | None] = None  # name of its YAML, if fmdiff manages its files
    undecided: ClassVar[bool] = False  # whether conditional may be null
    references: ClassVar[int | None] = None  # how many samples `sample` has; None: any number
    splits: ClassVar[tuple[str, ...]] = ()  # what `against=NAME:SPLIT` may name
    flip = False  # whether half of the training images are mirrored

    def __init_subclass__(cls) -> None:
        """Infer `axes` from the class attribute `shape`, if the class has one."""
        shape = vars(cls).get("shape")
        if isinstance(shape, tuple):
            cls.axes = len(shape)

    @classmethod
    def axes_of(cls, settings: Mapping[str, Any]) -> int | None:
        """How many axes a sample of these settings has; None if only the data tell."""
        return cls.axes

    def __post_init__(self) -> None:
        self.require("batch_size", int, "an integer >= 1", lambda v: v >= 1)
        if not (self.undecided and self.conditional is None):
            self.require("conditional", bool, "true or false")
        self.check_labels()

    def check_labels(self) -> None:
        """Raises FmdiffError if the keys name labels that the data do not have."""
        if self.conditional and self.labels == 1:
            raise FmdiffError(
                f"data.conditional=true: {type(self).__name__} has no classes; "
                "set data.conditional=false"
            )
        if self.only is not None:
            if isinstance(self.only, list) and self.names:
                self.only = [class_number(label, self.names, "data.only") for label in self.only]
            self.require(
                "only",
                list,
                f"null or a list of labels from 0 to {self.labels - 1} like [0]"
                + (" or of their names" if self.names else ""),
                lambda v: v and all(type(k) is int and 0 <= k < self.labels for k in v),
            )

    def require(
        self,
        name: str,
        kind: type | UnionType,
        allowed: str,
        test: Callable[[Any], bool] = lambda value: True,
    ) -> None:
        """Raises FmdiffError unless the key `name` has the type and passes the test."""
        value = getattr(self, name)
        # bool is a subclass of int, but `true` is not a batch size
        right = isinstance(value, kind) and (kind is bool or not isinstance(value, bool))
        if not right or not test(value):
            raise FmdiffError(f"data.{name}={value} must be {allowed}")

    @property
    def conditions(self) -> dict[str, Form]:
        """What samples are conditioned on besides the label, by name."""
        return {}

    @property
    def codec(self) -> Codec | None:
        """What translates between the samples of `sample` and those of `batch`; None: nothing."""
        return None

    @property
    def user(self) -> "Data":
        """The data set as a user knows it: itself, or the one whose latents it consists of."""
        return self

    @property
    def outer(self) -> tuple[int, ...]:
        """The shape of a sample as a user knows it, that of `sample`."""
        return tuple(self.shape) if self.codec is None else self.codec.outer

    @property
    def kind(self) -> str:
        """What its samples are to a user: points, series, images or arrays."""
        return kind_of(self.outer, self.codec)

    @property
    def column_names(self) -> tuple[str, ...]:
        """The names of the components of points, or of channels; () if they have none."""
        return () if self.codec is None else self.codec.column_names

    def comparable(self, x: Tensor) -> Tensor:
        """Samples x (B, ...) as a user knows them, scaled so that distances mean something."""
        return x

    @property
    def classes(self) -> int:
        """Number of classes, 0 when unconditional; `classes` itself is the null label."""
        return self.labels if self.conditional else 0

    @cached_property
    def label_numbers(self) -> Tensor:
        """The labels that occur among the samples, in increasing order, int64."""
        return torch.tensor(sorted(set(self.only or range(self.labels))))

    @property
    def training_size(self) -> int | None:
        """Number of training samples; None if they are drawn from a formula."""
        return None

    def fingerprint(self) -> dict[str, Any] | None:
        """The number of files of the data, and a digest of them; None if they cannot change."""
        return None

    @property
    def shards(self) -> Shards | None:
        """What reads the training samples ahead, in windows; None if they fit into the memory."""
        return None

    def mixture(self) -> tuple[Tensor, Tensor, Tensor] | None:
        """A Gaussian mixture: weights (K,), means (K, d), covariances (K, d, d), float64.

        None if the data are not one.
        """
        return None

    def joint(self) -> tuple[Tensor, Tensor, Tensor] | None:
        """The mixture of x and, if there is a condition `c`, of its numbers after those of x.

        As in `mixture`, which is that of x alone.
        """
        return self.mixture()

    def off_support(self, x: Tensor) -> Tensor | None:
        """Which of x (B, *shape) lie where there are (almost) no real samples: bool (B,).

        None if the data set cannot tell.
        """
        return None

    def prepare(self) -> None:  # noqa: B027 - most data sets have nothing to fetch
        """Download missing files. Call it once per machine before several processes read them."""

    @cached_property
    @abstractmethod
    def std(self) -> float:
        """Standard deviation of all elements of the training data, about `centre`."""

    @property
    def centre(self) -> Tensor | None:
        """The mean of the training data (*shape), float64, subtracted before a network sees them.

        None stands for 0, as for images, which lie in [-1, 1] wherever their mean is.
        """
        return None

    @abstractmethod
    def batch(
        self, seed: int, step: int, rows: slice = slice(None), device: Device = "cpu"
    ) -> Batch:
        """`rows` of the global batch of training step `step`, a pure function of (seed, step)."""

    def augmented(
        self, x: Tensor, seed: int, step: int, rows: slice = slice(None)
    ) -> tuple[Tensor, Tensor | None]:
        """x of `batch`, changed at random, and labels (B, 9) float32 that describe the change.

        The network must be given the labels. Without augmentation this returns x itself and None.
        """
        return x, None

    def batches(
        self, seed: int, steps: range, rows: slice = slice(None), device: Device = "cpu"
    ) -> Batches:
        """x, y and augmentation labels of `rows` of these steps, one step after another."""
        parts: list[Batches] = []
        a: Tensor | None = None
        for k in steps:
            plain, y = self.batch(seed, k, rows, device)
            x, a = self.augmented(plain, seed, k, rows)
            parts.append((x, y, a))
        xs, ys, augmentations = zip(*parts, strict=True)
        return concatenate(xs), join(ys), None if a is None else concatenate(augmentations)

    @abstractmethod
    def held_out(self, n: int, device: Device = "cpu") -> Batch:
        """n samples that are never trained on, always the same (fewer if there are fewer).

        They are a random choice, whatever the order of the data.
        """

    @abstractmethod
    def sample(self, start: int, stop: int, seed: int) -> Batch:
        """Real samples number start ... stop - 1 of a seed, for use as a reference.

        Sample i depends on (seed, i) alone.
        """

    @abstractmethod
    def examples(self, n: int) -> Batch:
        """The first n training examples (fewer if there are fewer)."""

    def with_labels(self, x: Tensor, label: Tensor, device: Device, **parts: Tensor) -> Batch:
        """x and y on a device, from labels (B,) and named conditions (B, *). y may be None."""
        labels = label.to(device) if self.classes else None
        return x.to(device), given(labels, {name: part.to(device) for name, part in parts.items()})


def far(mean: Tensor, std: float) -> bool:
    """Whether a mean is further from 0 than 4 standard errors of that of 65,536 points."""
    return mean.abs().max().item() > std / 64


class Toy(Data):
    """Points drawn from a formula, in any number. A subclass defines `draw`.

    `shape` (d,) and the number of `labels` are class attributes.
    """

    shape = (2,)

    @property
    def drawn(self) -> tuple[int, ...]:
        """The shape of a row of `draw`: that of x, or more if conditions follow its numbers."""
        return self.shape

    @abstractmethod
    def draw(self, n: int, generator: Generator) -> tuple[Tensor, Tensor] | Tensor:
        """Draw n i.i.d. points with the generator: x (n, *shape) and label (n,).

        The labels are int64 and among `label_numbers`. A data set without labels returns x alone.
        """

    def draw_labels(self, n: int, generator: Generator) -> Tensor:
        """n labels (n,) int64, each of `label_numbers` with equal probability."""
        numbers = self.label_numbers
        return numbers[torch.randint(len(numbers), (n,), generator=generator)]

    def pairs(self, n: int, generator: Generator) -> tuple[Tensor, Tensor]:
        """The result of `draw`, as x float32 and label int64. Missing labels become 0.

        Raises FmdiffError if `draw` returns something else.
        """
        value = self.draw(n, generator)
        x, label = value if isinstance(value, tuple) and len(value) == 2 else (value, None)
        if label is None and self.labels == 1:
            label = torch.zeros(n, dtype=torch.int64)
        return self.check_points(n, x, label)

    def check_points(
        self, n: int, x: Any, label: Any, method: str = "draw"
    ) -> tuple[Tensor, Tensor]:
        """x as float32 and label as int64. Raises FmdiffError if they are not n points."""
        shape, where = (n, *self.drawn), f"data: {type(self).__name__}.{method} of {n} points"
        if not isinstance(x, Tensor) or not x.is_floating_point() or x.shape != shape:
            hint = "; points of another dimension d need shape = (d,) in the class"
            raise FmdiffError(
                f"{where} must return x, floats of shape {shape}, and returned {_kind(x)}"
                + (hint if isinstance(x, Tensor) else "")
            )
        if not isinstance(label, Tensor) or label.dtype not in INTEGERS or label.shape != (n,):
            raise FmdiffError(
                f"{where} must return labels beside x, integers of shape ({n},), as the class has "
                f"labels = {self.labels}, and returned {_kind(label)}"
            )
        numbers = self.label_numbers
        if (self.classes or self.only) and not (label[:, None] == numbers).any(1).all():
            raise FmdiffError(
                f"{where} returned labels from {label.min()} to {label.max()}, and they must be "
                f"among {numbers.tolist()} (labels = {self.labels} in the class, "
                f"data.only={self.only}); draw_labels(n, generator) draws such labels"
            )
        return x.float(), label.long()

    @cached_property
    def moments(self) -> tuple[Tensor | None, float]:
        """`centre` and `std`. A mean that 65,536 points hardly tell from 0 counts as 0.

        So data around 0 are not moved for nothing. The standard deviation is taken over all
        coordinates, about the mean of each or, if that counts as 0, about their common mean.
        """
        x = self.pairs(65_536, generator(0, "std"))[0]
        mean = x.double().mean(0)
        std = (x - mean).square().mean().sqrt().item()
        return (mean, std) if far(mean, std) else (None, x.std().item())

    @property
    def centre(self) -> Tensor | None:
        return self.moments[0]

    @cached_property
    def std(self) -> float:
        return self.moments[1]

    def batch(
        self, seed: int, step: int, rows: slice = slice(None), device: Device = "cpu"
    ) -> Batch:
        x, label = self.pairs(self.batch_size, generator(seed, "data", step))
        return self.with_labels(x[rows], label[rows], device)

    def held_out(self, n: int, device: Device = "cpu") -> Batch:
        x, label = self._rows(0, n, 0, "held_out")
        return self.with_labels(x, label, device)

    def sample(self, start: int, stop: int, seed: int) -> Batch:
        x, label = self._rows(start, stop, seed, "reference")
        return self.with_labels(x, label, "cpu")

    def examples(self, n: int) -> Batch:
        x, label = self._rows(0, n, 0, "examples")
        return self.with_labels(x, label, "cpu")

    def _rows(self, start: int, stop: int, seed: int, purpose: str) -> tuple[Tensor, Tensor]:
        blocks = range(start // BLOCK, -(-stop // BLOCK))
        parts = [self.pairs(BLOCK, generator(seed, purpose, block)) for block in blocks]
        rows = slice(start - blocks.start * BLOCK, stop - blocks.start * BLOCK)
        return torch.cat([x for x, _ in parts])[rows], torch.cat([y for _, y in parts])[rows]


def _kind(value: Any) -> str:
    """Describe a value's kind, for a message."""
    if isinstance(value, Tensor):
        return f"a tensor of {str(value.dtype).removeprefix('torch.')} {tuple(value.shape)}"
    return "None" if value is None else f"{type(value).__name__}, which is no tensor"
