"""Toy distributions: i.i.d. draws from a formula, unscaled, labelled by mode, ring or arm.

To add one, write a class with `draw`, with `curve` for a noisy curve or with `pattern` for equal
Gaussians, and a YAML in configs/data. Any other Gaussian mixture is data=gmm.
"""

import math
from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import torch
from torch import Generator, Tensor

from fmdiff.data.base import Batches, Device, Toy, concatenate, far
from fmdiff.data.mixture import GMM, EightGaussians, FourGaussians, Pattern, TwoModes, plane
from fmdiff.errors import FmdiffError
from fmdiff.randomness import generator

__all__ = ["GMM", "EightGaussians", "FourGaussians", "Pattern", "Toy", "TwoModes"]


# --- noisy curves --------------------------------------------------------------------------------


@dataclass(kw_only=True, eq=False)
class Curves(Toy):
    """x = curve(u, label) + noise eps, u ~ U(0, 1), eps ~ N(0, I), every label equally likely."""

    noise: float

    def __post_init__(self) -> None:
        super().__post_init__()
        self.require("noise", int | float, "a number > 0", lambda v: v > 0)

    @abstractmethod
    def curve(self, u: Tensor, label: Tensor) -> Tensor:
        """The noiseless point (n, 2) at u (n,) in [0, 1] of curve number label (n,)."""

    def draw(self, n: int, generator: Generator) -> tuple[Tensor, Tensor]:
        return self._points(n, [generator])

    def _points(self, n: int, generators: Sequence[Generator]) -> tuple[Tensor, Tensor]:
        """The points of each generator, one after another; the curve is evaluated once for all."""
        label = concatenate([self.draw_labels(n, g) for g in generators])
        u = concatenate([torch.rand(n, generator=g) for g in generators])
        eps = concatenate([torch.randn(n, 2, generator=g) for g in generators])
        x, label = self.check_points(len(label), self.curve(u, label), label, "curve")
        return x.add_(eps, alpha=self.noise), label

    def batches(
        self, seed: int, steps: range, rows: slice = slice(None), device: Device = "cpu"
    ) -> Batches:
        x, label = self._points(self.batch_size, [generator(seed, "data", k) for k in steps])
        if rows != slice(None):
            x, label = (
                v.unflatten(0, (len(steps), -1))[:, rows].flatten(0, 1) for v in (x, label)
            )
        x, y = self.with_labels(x, label, device)
        return x, y, None

    def off_support(self, x: Tensor) -> Tensor:
        """Which of x (B, 2) lie farther than 4 noise from every curve: bool (B,).

        Each curve is sampled at 501 values of u, closer together than the default noise.
        """
        numbers = self.label_numbers
        u = torch.linspace(0, 1, 501).repeat(len(numbers))
        points = self.curve(u, numbers.repeat_interleave(501)).to(x)
        near = [
            torch.cdist(part, points, compute_mode="donot_use_mm_for_euclid_dist").amin(-1)
            for part in x.split(4096)  # 4096 x 2004 distances are 33 MB
        ]
        return torch.cat(near) > 4 * self.noise


class Moons(Curves):
    """(cos a, sin a) and (1 - cos a, 1/2 - sin a), a = pi u."""

    labels = 2

    def curve(self, u: Tensor, label: Tensor) -> Tensor:
        a, sign = math.pi * u, 1 - 2 * label
        return plane(sign * a.cos() + label, sign * a.sin() + label / 2)


class Rings(Curves):
    """k (cos a, sin a), a = 2 pi u, k = 1 ... 4: four concentric rings of equal weight."""

    labels = 4

    def curve(self, u: Tensor, label: Tensor) -> Tensor:
        a = 2 * math.pi * u
        return plane(a.cos(), a.sin()) * (label + 1)[:, None]


class SwissRoll(Curves):
    """a (cos a, sin a) / 3.5, a = 3 pi / 2 (1 + 2 u): one spiral of radius 1.3 to 4."""

    def curve(self, u: Tensor, label: Tensor) -> Tensor:
        a = 1.5 * math.pi * (1 + 2 * u)
        return plane(a * a.cos(), a * a.sin()) / 3.5


class Spirals(Curves):
    """+-a (cos a, sin a) / 3, a = 3 pi sqrt(u): two arms from the origin to radius pi."""

    labels = 2

    def curve(self, u: Tensor, label: Tensor) -> Tensor:
        a = 3 * math.pi * u.sqrt()
        radius = a * (1 - 2 * label) / 3
        return plane(radius * a.cos(), radius * a.sin())


# --- others --------------------------------------------------------------------------------------


class Checkerboard(Toy):
    """Uniform on the 8 dark squares of a 4 x 4 board on [-4, 4]^2: density 1/32; label = square.

    Square (i, j), [2i - 4, 2i - 2) x [2j - 4, 2j - 2), is dark when i + j is even.
    """

    labels = 8

    def draw(self, n: int, generator: Generator) -> tuple[Tensor, Tensor]:
        label = self.draw_labels(n, generator)
        i = label // 2
        corner = plane(i, 2 * (label % 2) + i % 2)
        return (torch.rand(n, 2, generator=generator) + corner).mul_(2).sub_(4), label

    def off_support(self, x: Tensor) -> Tensor:
        """Which of x (B, 2) lie in no dark square of `label_numbers`: bool (B,)."""
        square = (x / 2 + 2).floor()
        outside = (square < 0) | (square > 3)
        i, j = square.unbind(-1)
        other = ~torch.isin(2 * i + j // 2, self.label_numbers.to(x))
        return outside.any(-1) | (square.sum(-1) % 2 != 0) | other


class Pinwheel(Toy):
    """x = 2 R(2 pi k / 5 + exp(z_1) / 4) z, z ~ N((1, 0), diag(0.3^2, 0.1^2)): five bent arms.

    R(a) is the rotation by a, k the label (after Johnson et al., 2016).
    """

    labels = 5

    def draw(self, n: int, generator: Generator) -> tuple[Tensor, Tensor]:
        label = self.draw_labels(n, generator)
        radial, tangential = torch.randn(2, n, generator=generator)
        radial, tangential = 1 + 0.3 * radial, 0.1 * tangential
        a = label * (2 * math.pi / 5) + radial.exp() / 4
        cos, sin = a.cos(), a.sin()
        x = plane(cos * radial - sin * tangential, sin * radial + cos * tangential)
        return x.mul_(2), label


# --- a plane in a space of many dimensions -------------------------------------------------------


@dataclass(kw_only=True, eq=False)
class Embedded(Toy):
    """x = P x_2: points x_2 of the plane, drawn from `of`, in R^D, D = `ambient_dim`.

    P (D, 2) is random, the same for every run, and P^T P = I. The keys common to all data sets are
    taken from here, not from `of`. Raises FmdiffError unless `of` draws points (2,) and D >= 2.
    Source: Li & He 2025 (arXiv:2511.13720), figure 2.
    """

    of: Toy
    ambient_dim: int

    def __post_init__(self) -> None:
        if not isinstance(self.of, Toy) or self.of.shape != (2,) or self.of.conditions:
            name = self.of if isinstance(self.of, str) else type(self.of).__name__
            raise FmdiffError(
                f"data.of={name} must be a data set of points in the plane alone; choose one by "
                "its name, data.of.name=swissroll"
            )
        self.require("ambient_dim", int, "an integer >= 2", lambda v: v >= 2)
        self.shape, self.labels = (self.ambient_dim,), self.of.labels
        super().__post_init__()
        self.plane = replace(
            self.of, batch_size=self.batch_size, conditional=self.conditional, only=self.only
        )

    @cached_property
    def basis(self) -> Tensor:
        """P (D, 2), float64: the Q of a QR decomposition whose R has a positive diagonal."""
        draws = generator(0, "embedding", self.ambient_dim)
        normal = torch.randn(self.ambient_dim, 2, dtype=torch.float64, generator=draws)
        q, r = torch.linalg.qr(normal)
        return q * r.diagonal().sign()

    def draw(self, n: int, generator: Generator) -> tuple[Tensor, Tensor]:
        x, label = self.plane.pairs(n, generator)
        return (x.double() @ self.basis.T).float(), label

    @cached_property
    def moments(self) -> tuple[Tensor | None, float]:
        x = self.plane.pairs(65_536, generator(0, "std"))[0].double()
        mean = self.basis @ x.mean(0)
        std = ((x - x.mean(0)).square().sum(1).mean() / self.ambient_dim).sqrt().item()
        if far(mean, std):
            return mean, std
        square = x.square().sum(1).mean() / self.ambient_dim
        return None, (square - mean.mean() ** 2).sqrt().item()

    def project(self, x: Tensor) -> Tensor:
        """The coordinates x P (B, 2) of x (B, D) in the plane."""
        return x @ self.basis.to(x)

    def off_plane(self, x: Tensor) -> float:
        """The energy of x (B, D) outside the plane: sum |x - P P^T x|^2 / sum |x|^2."""
        x = x.double()
        outside = x - self.project(x) @ self.basis.to(x).T
        return (outside.square().sum() / x.square().sum()).item()
