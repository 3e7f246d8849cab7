"""Toy distributions: i.i.d. draws from a formula, unscaled, labelled by mode, ring or arm.

A new one is a class with `draw`, or with `curve` for a noisy curve, or with `pattern` for a
mixture of equal Gaussians, and a YAML in configs/data; any other Gaussian mixture is data=gmm.
"""

import math
from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import torch
from torch import Generator, Tensor

from fmdiff.data.base import Batch, Batches, Data, joined
from fmdiff.data.mixture import components
from fmdiff.errors import FmdiffError
from fmdiff.randomness import BLOCK, generator


class Toy(Data):
    shape = (2,)

    @abstractmethod
    def draw(self, n: int, generator: Generator) -> tuple[Tensor, Tensor]:
        """n i.i.d. points: x float32 (n, *shape) and label int64 (n,) among those kept."""

    def draw_labels(self, n: int, generator: Generator) -> Tensor:
        """n labels (n,), those kept equally likely."""
        return self.kept[torch.randint(len(self.kept), (n,), generator=generator)]

    @cached_property
    def std(self) -> float:
        return self.draw(65_536, generator(0, "std"))[0].std().item()

    def batch(self, seed: int, step: int, rows: slice = slice(None), device="cpu") -> Batch:
        x, label = self.draw(self.batch_size, generator(seed, "data", step))
        return self.labelled(x[rows], label[rows], device)

    def held_out(self, n: int, device="cpu") -> Batch:
        return self.labelled(*self._rows(0, n, 0, "held_out"), device)

    def sample(self, start: int, stop: int, seed: int) -> Batch:
        return self.labelled(*self._rows(start, stop, seed, "reference"), "cpu")

    def examples(self, n: int) -> Batch:
        return self.labelled(*self._rows(0, n, 0, "examples"), "cpu")

    def _rows(self, start: int, stop: int, seed: int, purpose: str) -> tuple[Tensor, Tensor]:
        blocks = range(start // BLOCK, -(-stop // BLOCK))
        drawn = [self.draw(BLOCK, generator(seed, purpose, block)) for block in blocks]
        rows = slice(start - blocks.start * BLOCK, stop - blocks.start * BLOCK)
        return torch.cat([x for x, _ in drawn])[rows], torch.cat([y for _, y in drawn])[rows]


def _plane(*coordinates: Tensor) -> Tensor:
    return torch.stack(coordinates, dim=-1)


# --- Gaussian mixtures ---------------------------------------------------------------------------


class GaussianMixture(Toy):
    """p(x) = sum_k w_k N(x; m_k, C_k); label k."""

    @abstractmethod
    def components(self) -> tuple[Tensor, Tensor, Tensor]:
        """w (K,), m (K, d) and C (K, d, d) of every label, float64."""

    def mixture(self) -> tuple[Tensor, Tensor, Tensor]:
        """The exact density: weights (K,), means (K, d) and covariances (K, d, d), float64.

        Component k is label k whatever `only` keeps: the other weights are 0.
        """
        weights, means, covs = self.components()
        weights = torch.zeros_like(weights).index_copy(0, self.kept, weights[self.kept])
        return weights / weights.sum(), means, covs

    @cached_property
    def std(self) -> float:
        weights, means, covs = self.mixture()
        square = weights @ (means.square() + covs.diagonal(dim1=1, dim2=2)).mean(1)
        return (square - (weights @ means.mean(1)) ** 2).sqrt().item()

    @cached_property
    def _means(self) -> Tensor:
        return self.components()[1].float()

    @cached_property
    def _factors(self) -> Tensor:
        """L_k with C_k = L_k L_k^T: (K, d, d), or (K, 1) numbers if they are multiples of I."""
        factors = torch.linalg.cholesky(self.components()[2])
        stds = factors[:, 0, 0]
        round_ones = torch.equal(factors, stds[:, None, None] * torch.eye(*self.shape))
        return (stds[:, None] if round_ones else factors).float()

    def draw(self, n: int, generator: Generator) -> tuple[Tensor, Tensor]:
        label = self.draw_labels(n, generator)
        eps = torch.randn(n, *self.shape, generator=generator)
        if self._factors.ndim == 2:
            return self._means[label] + self._factors[label] * eps, label
        moved = torch.einsum("kde,ne->nkd", self._factors, eps)
        return self._means[label] + moved[torch.arange(n), label], label

    def off_support(self, x: Tensor) -> Tensor:
        """Which of x (B, d) lie at a Mahalanobis distance > 4 from every component: bool (B,).

        Of exact draws of distant components this is P(chi^2_d > 16): 0.034 % in the plane,
        0.006 % on the line, and 100 % in hundreds of dimensions.
        """
        means, factors = self._means[self.kept].to(x), self._factors[self.kept].to(x)
        near = []
        for part in x.split(1024):
            offset = part - means[:, None]  # (K, B, d)
            if factors.ndim == 2:
                offset = offset / factors[:, None]
            else:
                offset = torch.linalg.solve_triangular(factors, offset.mT, upper=False).mT
            near.append(offset.norm(dim=-1).amin(0))
        return torch.cat(near) > 4


@dataclass(kw_only=True, eq=False)
class GMM(GaussianMixture):
    """The mixture of any `means`, `weights` and `cov`, in any dimension: see mixture.components.

    Raises FmdiffError for what describes no mixture.
    """

    means: list[list[float]]
    weights: list[float] | None
    cov: float | list

    def __post_init__(self) -> None:
        self._components = components(self.means, self.weights, self.cov)
        self.labels, dimension = self._components[1].shape
        self.shape = (dimension,)
        super().__post_init__()

    def components(self) -> tuple[Tensor, Tensor, Tensor]:
        return self._components

    @cached_property
    def _weights(self) -> Tensor:
        return self.mixture()[0]

    def draw_labels(self, n: int, generator: Generator) -> Tensor:
        return torch.multinomial(self._weights, n, replacement=True, generator=generator)


@dataclass(kw_only=True, eq=False)
class Pattern(GaussianMixture):
    """p(x) = 1/K sum_k N(x; scale m_k, noise^2 I), m_k the rows of `pattern`."""

    scale: float
    noise: float

    def __post_init__(self) -> None:
        super().__post_init__()
        self.require("scale", int | float, "a number > 0", lambda v: v > 0)
        self.require("noise", int | float, "a number > 0", lambda v: v > 0)

    @abstractmethod
    def pattern(self) -> Tensor:
        """The means (K, d) at scale 1, float64."""

    def components(self) -> tuple[Tensor, Tensor, Tensor]:
        means = self.scale * self.pattern()
        k, d = means.shape
        covs = self.noise**2 * torch.eye(d, dtype=torch.float64).repeat(k, 1, 1)
        return torch.full((k,), 1 / k, dtype=torch.float64), means, covs


class EightGaussians(Pattern):
    """m_k = (cos(pi k / 4), sin(pi k / 4)), k = 0 ... 7."""

    labels = 8

    def pattern(self) -> Tensor:
        angle = torch.arange(8, dtype=torch.float64) * math.pi / 4
        return _plane(angle.cos(), angle.sin())


class FourGaussians(Pattern):
    """m_k = (+-1, +-1)."""

    labels = 4

    def pattern(self) -> Tensor:
        return torch.tensor([[-1, -1], [-1, 1], [1, -1], [1, 1]], dtype=torch.float64)


class TwoModes(Pattern):
    """m_k = +-1 on the line: shape (1,)."""

    shape = (1,)
    labels = 2

    def pattern(self) -> Tensor:
        return torch.tensor([[-1], [1]], dtype=torch.float64)


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
        return self._joined(n, [generator])

    def _joined(self, n: int, generators: Sequence[Generator]) -> tuple[Tensor, Tensor]:
        """`draw` by each generator, one after another; a curve of many points costs as few."""
        label = joined([self.draw_labels(n, g) for g in generators])
        u = joined([torch.rand(n, generator=g) for g in generators])
        eps = joined([torch.randn(n, 2, generator=g) for g in generators])
        return self.curve(u, label).add_(eps, alpha=self.noise), label

    def batches(self, seed: int, steps: range, rows: slice = slice(None), device="cpu") -> Batches:
        x, label = self._joined(self.batch_size, [generator(seed, "data", k) for k in steps])
        if rows != slice(None):
            x, label = (
                v.unflatten(0, (len(steps), -1))[:, rows].flatten(0, 1) for v in (x, label)
            )
        return *self.labelled(x, label, device), None

    def off_support(self, x: Tensor) -> Tensor:
        """Which of x (B, 2) lie farther than 4 noise from every curve: bool (B,).

        The curves are taken at 501 values of u, closer together than the default noise.
        """
        u = torch.linspace(0, 1, 501).repeat(len(self.kept))
        points = self.curve(u, self.kept.repeat_interleave(501)).to(x)
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
        return _plane(sign * a.cos() + label, sign * a.sin() + label / 2)


class Rings(Curves):
    """k (cos a, sin a), a = 2 pi u, k = 1 ... 4: four concentric rings of equal weight."""

    labels = 4

    def curve(self, u: Tensor, label: Tensor) -> Tensor:
        a = 2 * math.pi * u
        return _plane(a.cos(), a.sin()) * (label + 1)[:, None]


class SwissRoll(Curves):
    """a (cos a, sin a) / 3.5, a = 3 pi / 2 (1 + 2 u): one spiral of radius 1.3 to 4."""

    def curve(self, u: Tensor, label: Tensor) -> Tensor:
        a = 1.5 * math.pi * (1 + 2 * u)
        return _plane(a * a.cos(), a * a.sin()) / 3.5


class Spirals(Curves):
    """+-a (cos a, sin a) / 3, a = 3 pi sqrt(u): two arms from the origin to radius pi."""

    labels = 2

    def curve(self, u: Tensor, label: Tensor) -> Tensor:
        a = 3 * math.pi * u.sqrt()
        radius = a * (1 - 2 * label) / 3
        return _plane(radius * a.cos(), radius * a.sin())


# --- others --------------------------------------------------------------------------------------


class Checkerboard(Toy):
    """Uniform on the 8 dark squares of a 4 x 4 board on [-4, 4]^2: density 1/32; label = square.

    Square (i, j), [2i - 4, 2i - 2) x [2j - 4, 2j - 2), is dark when i + j is even.
    """

    labels = 8

    def draw(self, n: int, generator: Generator) -> tuple[Tensor, Tensor]:
        label = self.draw_labels(n, generator)
        i = label // 2
        corner = _plane(i, 2 * (label % 2) + i % 2)
        return (torch.rand(n, 2, generator=generator) + corner).mul_(2).sub_(4), label

    def off_support(self, x: Tensor) -> Tensor:
        """Which of x (B, 2) lie in no dark square that is kept: bool (B,)."""
        square = (x / 2 + 2).floor()
        outside = (square < 0) | (square > 3)
        i, j = square.unbind(-1)
        dropped = ~torch.isin(2 * i + j // 2, self.kept.to(x))
        return outside.any(-1) | (square.sum(-1) % 2 != 0) | dropped


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
        x = _plane(cos * radial - sin * tangential, sin * radial + cos * tangential)
        return x.mul_(2), label


# --- a plane in a space of many dimensions -------------------------------------------------------


@dataclass(kw_only=True, eq=False)
class Embedded(Toy):
    """x = P x_2: points x_2 of the plane, drawn from `of`, in R^D, D = `ambient_dim`.

    P (D, 2) is random, the same for every run, and P^T P = I. The keys all data sets share are
    this one's, not those of `of`. Raises FmdiffError unless `of` draws points (2,) and D >= 2.
    Source: Li & He 2025 (arXiv:2511.13720), figure 2.
    """

    of: Toy
    ambient_dim: int

    def __post_init__(self) -> None:
        if not isinstance(self.of, Toy) or self.of.shape != (2,):
            given = self.of if isinstance(self.of, str) else type(self.of).__name__
            raise FmdiffError(
                f"data.of={given} must be a data set of points in the plane; choose one by its "
                "name, data.of.name=swissroll"
            )
        self.require("ambient_dim", int, "an integer >= 2", lambda v: v >= 2)
        self.shape, self.labels = (self.ambient_dim,), self.of.labels
        super().__post_init__()
        shared = {name: getattr(self, name) for name in ("batch_size", "conditional", "only")}
        self.plane = replace(self.of, **shared)

    @cached_property
    def basis(self) -> Tensor:
        """P (D, 2), float64: the Q of a QR decomposition whose R has a positive diagonal."""
        drawn = torch.randn(
            *(self.ambient_dim, 2),
            dtype=torch.float64,
            generator=generator(0, "embedding", self.ambient_dim),
        )
        q, r = torch.linalg.qr(drawn)
        return q * r.diagonal().sign()

    def draw(self, n: int, generator: Generator) -> tuple[Tensor, Tensor]:
        x, label = self.plane.draw(n, generator)
        return (x.double() @ self.basis.T).float(), label

    @cached_property
    def std(self) -> float:
        x = self.plane.draw(65_536, generator(0, "std"))[0].double()
        square = x.square().sum(1).mean() / self.ambient_dim
        return (square - (self.basis.mean(0) @ x.mean(0)) ** 2).sqrt().item()

    def project(self, x: Tensor) -> Tensor:
        """The coordinates x P (B, 2) of x (B, D) in the plane."""
        return x @ self.basis.to(x)

    def off_plane(self, x: Tensor) -> float:
        """The energy of x (B, D) outside the plane: sum |x - P P^T x|^2 / sum |x|^2."""
        x = x.double()
        outside = x - self.project(x) @ self.basis.to(x).T
        return (outside.square().sum() / x.square().sum()).item()
