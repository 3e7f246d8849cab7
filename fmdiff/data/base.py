"""What every data set offers to training, sampling and evaluation."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import ClassVar

import torch
from torch import Tensor

from fmdiff.errors import FmdiffError

Batch = tuple[Tensor, Tensor | None]
Batches = tuple[Tensor, Tensor | None, Tensor | None]


def joined(parts: Sequence[Tensor]) -> Tensor:
    """One after another, without a copy of a single one."""
    return parts[0] if len(parts) == 1 else torch.cat(list(parts))


@dataclass(kw_only=True, eq=False)
class Data(ABC):
    """A data set: x float32 (B, *shape), y int64 (B,), or None without classes.

    `only` keeps the samples of some labels, which keep their numbers; `classes` stays.
    Raises FmdiffError for a key of the wrong type or range.
    """

    batch_size: int  # samples per optimiser step, over all devices
    conditional: bool | None  # None: as the data have it, where `undecided`
    only: list[int] | None = None  # checkpoints of 0.1.0 lack it

    undecided: ClassVar[bool] = False  # whether conditional may be null
    references: ClassVar[int | None] = None  # how many `sample` can give; None: any number
    shape: tuple[int, ...] = field(init=False)
    labels: int = field(init=False, default=1)  # kinds of label the data come with

    def __post_init__(self) -> None:
        self.require("batch_size", int, "an integer >= 1", lambda v: v >= 1)
        if not (self.undecided and self.conditional is None):
            self.require("conditional", bool, "true or false")
        self.check_labels()

    def check_labels(self) -> None:
        """Raises FmdiffError for labels asked for that the data do not come with."""
        if self.conditional and self.labels == 1:
            raise FmdiffError(
                f"data.conditional=true: {type(self).__name__} has no classes; "
                "set data.conditional=false"
            )
        if self.only is not None:
            self.require(
                "only",
                list,
                f"null or a list of labels from 0 to {self.labels - 1} like [0]",
                lambda v: v and all(type(k) is int and 0 <= k < self.labels for k in v),
            )

    def require(self, name: str, kind, allowed: str, test=lambda value: True) -> None:
        value = getattr(self, name)
        # bool is an int in Python, but `true` is no batch size
        right = isinstance(value, kind) and (kind is bool or not isinstance(value, bool))
        if not right or not test(value):
            raise FmdiffError(f"data.{name}={value} must be {allowed}")

    @property
    def classes(self) -> int:
        """Number of classes, 0 when unconditional; `classes` itself is the null label."""
        return self.labels if self.conditional else 0

    @cached_property
    def kept(self) -> Tensor:
        """The labels the samples have, in increasing order: int64."""
        return torch.tensor(sorted(set(self.only or range(self.labels))))

    def prepare(self) -> None:  # noqa: B027 - most data sets have nothing to fetch
        """Fetch what is missing: call once per machine before several processes read it."""

    @cached_property
    @abstractmethod
    def std(self) -> float:
        """Standard deviation of all elements of the training data as the network sees them."""

    @abstractmethod
    def batch(self, seed: int, step: int, rows: slice = slice(None), device="cpu") -> Batch:
        """`rows` of the global batch of training step `step`: a pure function of (seed, step)."""

    def augmented(
        self, x: Tensor, seed: int, step: int, rows: slice = slice(None)
    ) -> tuple[Tensor, Tensor | None]:
        """The x of `batch` as a network that is told so may train on it: x changed at random, and
        labels (B, 9) float32 that say how; x itself and None without augmentation."""
        return x, None

    def batches(self, seed: int, steps: range, rows: slice = slice(None), device="cpu") -> Batches:
        """x, y and the augmentation's labels of `rows` of these steps, one step after another."""
        drawn: list[Batches] = []
        for k in steps:
            plain, y = self.batch(seed, k, rows, device)
            x, a = self.augmented(plain, seed, k, rows)
            drawn.append((x, y, a))
        columns = zip(*drawn, strict=True)
        return tuple(None if c[0] is None else joined(c) for c in columns)  # type: ignore

    @abstractmethod
    def held_out(self, n: int, device="cpu") -> Batch:
        """The first n of fixed data never trained on (fewer if there are fewer)."""

    @abstractmethod
    def sample(self, start: int, stop: int, seed: int) -> Batch:
        """Real data number start ... stop - 1 of a seed, as a reference; row i depends on
        (seed, i) alone."""

    @abstractmethod
    def examples(self, n: int) -> Batch:
        """The first n training examples (fewer if there are fewer)."""

    def labelled(self, x: Tensor, label: Tensor, device) -> Batch:
        return x.to(device), label.to(device) if self.classes else None
