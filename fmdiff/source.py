"""Sources: the law of eps, the noise end of a path at t = 0.

Training and sampling draw a standard normal z, and a source turns it into eps. Only the standard
normal source keeps the path Gaussian and the score known.
"""

import math
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from fmdiff.build import Described, named
from fmdiff.errors import FmdiffError
from fmdiff.randomness import key


class Source(Described):
    """eps = push(z), sample by sample, for standard normal z (B, *shape).

    To write your own, derive from this class and define `push`, and `std` if it is not 1.
    """

    gaussian = False  # whether eps is standard normal
    std: float = 1.0  # the root mean square of the elements of eps

    def push(self, z: Tensor) -> Tensor:
        """eps (B, *shape) for standard normal z (B, *shape)."""
        raise NotImplementedError

    def batch(self, z: Tensor, seed: int, step: int) -> Tensor:
        """eps (B, *shape) of the global batch of a training step, on z's device."""
        return self.push(z)

    def sample(self, z: Tensor, first: int, seed: int) -> Tensor:
        """eps (B, *shape) of samples first, ... Row i depends on seed, first + i and z_i."""
        return self.push(z)

    def log_prob(self, eps: Tensor) -> Tensor:
        """The log density (B,) of eps (B, *shape), in the dtype of eps.

        Raises FmdiffError for a source without a known density.
        """
        raise FmdiffError(
            f"the source {type(self).__name__} has no known density; choose a model trained with "
            "source=normal or source=truncated"
        )

    def check(self, shape: tuple[int, ...]) -> None:
        """Raises FmdiffError unless the source makes samples of this shape."""

    def prepare(self) -> None:
        """Fetch missing data, once per machine."""


class Normal(Source):
    """eps = z."""

    gaussian = True

    def push(self, z: Tensor) -> Tensor:
        return z

    def log_prob(self, eps: Tensor) -> Tensor:
        return -0.5 * (eps.square() + math.log(2 * math.pi)).flatten(1).sum(1)


class Hypersphere(Source):
    """eps = sqrt(d) z / |z| for d elements per sample: uniform on the sphere of radius sqrt(d)."""

    def push(self, z: Tensor) -> Tensor:
        flat = z.flatten(1)
        unit = torch.nn.functional.normalize(flat, dim=1)
        return (math.sqrt(flat.shape[1]) * unit).view_as(z)


class Truncated(Source):
    """Each element is standard normal, given that it lies within +-bound.

    eps = F^{-1}(Phi(z)), where F is the CDF of eps. It is computed on the left half, where no
    digits are lost, and mirrored. std^2 = 1 - 2 bound phi(bound) / (2 Phi(bound) - 1).
    """

    def __init__(self, bound: float) -> None:
        if not isinstance(bound, int | float) or not 0.01 <= bound < float("inf"):
            raise FmdiffError(f"source.bound={bound} must be a finite number >= 0.01")
        self.bound = float(bound)
        self.inside, self.outside = math.erf(bound / math.sqrt(2)), math.erfc(bound / math.sqrt(2))
        peak = math.exp(-bound * bound / 2) * math.sqrt(2 / math.pi)
        self.std = math.sqrt(1 - bound * peak / self.inside)

    def push(self, z: Tensor) -> Tensor:
        # erfc, because ndtr loses the tail
        left = (torch.erfc(z.double().abs() / math.sqrt(2)) * self.inside + self.outside) / 2
        size = -torch.special.ndtri(left)
        return torch.copysign(size, z).to(z.dtype).clamp(-self.bound, self.bound)

    def log_prob(self, eps: Tensor) -> Tensor:
        """The log density: the normal one minus d log(2 Phi(bound) - 1), and -inf outside."""
        each = -0.5 * (eps.square() + math.log(2 * math.pi)) - math.log(self.inside)
        return each.masked_fill(eps.abs() > self.bound, -math.inf).flatten(1).sum(1)


class Dataset(Source):
    """Another data set as the source, so that data are carried to data. z only gives the shape.

    `data` names a YAML of configs/data, and `only` chooses some of its labels (null: all).
    Training takes the training data. Sampling takes the reference data over and over, which for
    images are the test split.
    Raises FmdiffError for an unknown data set or a label it does not have.
    """

    def __init__(self, data: str, only: list[int] | None) -> None:
        self.data, self.only = data, only
        try:
            self.dataset: Any = named("data", data, **({} if only is None else {"only": only}))
        except FmdiffError as error:
            raise FmdiffError(f"source.data={data}: {error}") from error

    @cached_property
    def std(self) -> float:  # type: ignore[override]
        square: Tensor = self.dataset.examples(10_000)[0].square().mean()
        return square.sqrt().item()

    def batch(self, z: Tensor, seed: int, step: int) -> Tensor:
        self.dataset.batch_size = len(z)
        # its own seed, so that one data set as source and target does not give the same rows
        rows: Tensor = self.dataset.batch(key(seed, "source"), step, device=z.device)[0]
        return rows.to(z)

    def sample(self, z: Tensor, first: int, seed: int) -> Tensor:
        seed, stop, whole = key(seed, "source"), first + len(z), self.dataset.references
        rows: Tensor
        if whole is None:
            rows = self.dataset.sample(first, stop, seed)[0]
        else:
            rows = self.dataset.sample(0, whole, seed)[0][torch.arange(first, stop) % whole]
        return rows.to(z)

    def check(self, shape: tuple[int, ...]) -> None:
        if tuple(self.dataset.shape) != tuple(shape):
            raise FmdiffError(
                f"source.data={self.data} has samples of shape {tuple(self.dataset.shape)}, "
                f"the data of shape {tuple(shape)}; choose a source.data of the same shape"
            )

    def prepare(self) -> None:
        self.dataset.prepare()


def need_gaussian(field: Any, what: str, instead: str = "") -> None:
    """Raises FmdiffError, naming `what` needs it, unless eps is normal and independent of x."""
    if not field.gaussian:
        raise FmdiffError(
            f"{what} needs a normal source independent of x, and this model was trained with "
            f"another source or coupling{instead}"
        )
