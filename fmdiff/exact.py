"""Ground truth: fields in closed form, which can replace a network everywhere.

They hold for every path. They compute conditional expectations given x_t from the posterior. Their
flow from one time to another is the ODE's solution to about 1e-12, or a formula for one Gaussian.
"""

import copy
import math
from collections.abc import Iterable
from typing import Any, Self

import torch
from torch import Tensor

from fmdiff.condition import Given, label
from fmdiff.errors import FmdiffError
from fmdiff.field import Classes, Field
from fmdiff.path import CondOT, Kind, Path, expand
from fmdiff.randomness import noise
from fmdiff.solvers.mean_velocity import mean_velocity

LAST = 1 - 1e-3  # the straight time at which the flow towards single points ends


def _label_mask(labels: Tensor | None, y: Given | None, classes: int) -> Tensor:
    """0 for components that may explain class y, else -inf: (B, K), or () if all of them may."""
    own = label(y)
    if own is None or labels is None:
        return torch.zeros((), dtype=torch.float64)
    own = own.to(labels.device)[:, None]
    allowed = (own == labels) | (own == classes)
    return torch.zeros_like(allowed, dtype=torch.float64).masked_fill(~allowed, -torch.inf)


class ClosedForm(Field):
    """A field in closed form, with its exact flow.

    `predict` with s gives the mean of the straight velocity over the flow from t to s, where s may
    be before t. It is computed in float64, and derivatives in x_t, t and s may be taken.

    The posterior of single points is singular at the data. There the flow ends at the straight
    time `last` < 1, and the final jump to E[x | x_t] follows, as in sampling: from `last` on the
    velocity of a sample stays what it is there. A flow that starts later begins with its own
    velocity and, at r = 1, with that of r = 1 - 1e-9.
    """

    two_times = True
    last = 1.0

    def predict(self, x_t: Tensor, t: Tensor, kind: Kind, s: Tensor | None = None) -> Tensor:
        self.evaluations += len(x_t)
        if s is None:
            return self.expectation(x_t, t, kind)
        x, t, s = x_t.double(), t.double(), s.double()
        z = x / expand(self.path.alpha(t) + self.path.beta(t), x)
        r, q = (self.path.r(time).expand(len(x)) for time in (t, s))
        u = self._mean_velocity(z, r, q)
        return self.path.convert(u, x, t, "straight", kind).to(x_t)

    def _mean_velocity(self, z: Tensor, r: Tensor, q: Tensor) -> Tensor:
        """The mean of the straight velocity from r (B,) to q (B,) at z (B, *shape), float64."""
        field = self.straight()
        if self.last == 1:
            return field.mean(z, r, q)
        begin = torch.where(r < 1 - 1e-9, r, 1 - 1e-9)
        latest = torch.where(begin < self.last, self.last, begin)
        end = torch.where(q <= latest, q, latest)
        u = field.mean(z, begin, end)
        jumps = q > latest
        if not bool(jumps.any()):
            return u
        whole = torch.where(jumps & (q > r), q - r, 1)
        share = torch.where(jumps, (end - begin) / whole, 1)
        final = field(z + expand(end - begin, z) * u, end)
        return torch.lerp(final, u, expand(share, z))

    def mean(self, z: Tensor, r: Tensor, q: Tensor) -> Tensor:
        """The mean velocity of a field on the straight path from r (B,) to q (B,), float64."""
        return mean_velocity(self, z, r, q - r)

    def expectation(self, x_t: Tensor, t: Tensor, kind: Kind) -> Tensor:
        """The conditional expectation of the quantity `kind` given x_t: (B, *shape)."""
        raise NotImplementedError

    def straight(self) -> Self:
        """The same field on the straight path, in float64."""
        twin = copy.copy(self)
        twin.path, twin.evaluations = CondOT(), 0
        return twin

    def flow(self, x_t: Tensor, t: Tensor, s: Tensor) -> Tensor:
        """The flow X(x_t, t, s) (B, *shape), s before or after t. Its error is below 1e-9."""
        return super().flow(x_t.double(), t.double(), s.double()).to(x_t)

    def flow_through(self, x_t: Tensor, t: Tensor, ends: Iterable[Tensor]) -> Tensor:
        """The states at the times `ends`, each () or (B,), of what is at x_t at t: (E, B, *shape).

        If the times are in order, this costs about twice as much as one flow to the last of them.
        """
        x, states = x_t.double(), []
        for s in ends:
            x, t = self.flow(x, t, s), s
            states.append(x)
        return torch.stack(states).to(x_t)

    def prior(self, z: Tensor, t: Tensor) -> Tensor:
        return self.log_prob(z, t)

    def log_prob(self, x_t: Tensor, t: Tensor) -> Tensor:
        """log p_t(x_t), or log p_t(x_t | y) for labelled samples: (B,)."""
        raise NotImplementedError

    def bind(self, y: Given) -> Self:
        bound = copy.copy(self)
        bound.y, bound.evaluations = y, 0
        return bound


class Mixture(ClosedForm):
    r"""The marginal field of a Gaussian mixture sum_k w_k N(m_k, C_k) along any path.

    p_t = sum_k w_k N(alpha m_k, S_k), S_k = alpha^2 C_k + beta^2 I. With posterior weights
    rho_k(x_t) and u_k = S_k^{-1} (x_t - alpha m_k):

        E[x | x_t] = sum_k rho_k (m_k + alpha C_k u_k),   E[eps | x_t] = beta sum_k rho_k u_k,
        score = -sum_k rho_k u_k.

    Nothing is divided by beta. weights (K,), means (K, d), covs (K, d, d). Component k has the
    label labels[k].
    """

    def __init__(
        self,
        path: Path,
        weights: Tensor,
        means: Tensor,
        covs: Tensor,
        labels: Tensor | None = None,
        y: Given | None = None,
    ) -> None:
        self.path, self.shape = path, (means.shape[-1],)
        self.component_labels, self.y = labels, y
        self.classes = 0 if labels is None else int(labels.max()) + 1
        self.log_weights = (weights / weights.sum()).double().log()
        self.means = means.double()
        self.variances, self.axes = torch.linalg.eigh(covs.double())  # (K, d), (K, d, d)
        self.variances = self.variances.clamp(min=0)
        if (self.variances == 0).any():
            self.last = LAST

    def _posterior(self, x_t: Tensor, t: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """log w_k N(x_t; alpha m_k, S_k) (B, K); along C_k's axes: u_k, C_k u_k; and alpha."""
        a, b = (expand(c, x_t)[..., None].to(x_t) for c in self.path.row("x_t", t))
        means, axes = self.means.to(x_t), self.axes.to(x_t)
        variances = self.variances.to(x_t)
        spread = a**2 * variances + b**2  # (K, d) or (B, K, d)
        offset = torch.einsum("kde,bkd->bke", axes, x_t[:, None] - a * means)
        u = offset / spread
        log_p = self.log_weights.to(x_t) - 0.5 * (
            (offset * u) + (2 * torch.pi * spread).log()
        ).sum(-1)
        log_p = log_p + _label_mask(self.component_labels, self.y, self.classes).to(x_t)
        return log_p, u, variances * u, a

    def log_prob(self, x_t: Tensor, t: Tensor) -> Tensor:
        """log p_t(x_t), or log p_t(x_t | y) for labelled samples: (B,)."""
        masked = self.log_weights + _label_mask(self.component_labels, self.y, self.classes)
        return self._posterior(x_t, t)[0].logsumexp(-1) - masked.logsumexp(-1).to(x_t)

    def expectation(self, x_t: Tensor, t: Tensor, kind: Kind) -> Tensor:
        log_p, u, cu, a = self._posterior(x_t, t)
        rho = log_p.softmax(-1)
        axes = self.axes.to(x_t)
        # three operands would form the (B, K, d, d) product
        u = torch.einsum("kde,bke->bd", axes, rho[..., None] * u)
        if kind == "score":
            return -u
        spread = torch.einsum("kde,bke->bd", axes, rho[..., None] * cu)
        x = rho @ self.means.to(x_t) + a[..., 0] * spread
        return self.path.mix(x, expand(self.path.beta(t), x_t) * u, t, kind)

    def mean(self, z: Tensor, r: Tensor, q: Tensor) -> Tensor:
        """By the formula for samples that a single component explains, else along the flow."""
        weights = self.log_weights + _label_mask(self.component_labels, self.y, self.classes)
        possible = (weights > -torch.inf).to(z.device).expand(len(z), -1)
        only = possible.int().argmax(1).masked_fill(possible.sum(1) > 1, -1)
        u = torch.zeros_like(z)
        for k in sorted(set(only.tolist())):
            rows = (only == k).nonzero().flatten()
            at = z[rows], r[rows], q[rows]
            if k < 0:
                part = mean_velocity(self.select(rows), at[0], at[1], at[2] - at[1])
            else:
                part = self._gaussian_mean(k, *at)
            u = u.index_copy(0, rows, part)
        return u

    def _gaussian_mean(self, k: int, z: Tensor, r: Tensor, q: Tensor) -> Tensor:
        """The mean velocity of component k alone, on the straight path.

        Z = q m + g (z - r m) along each axis, g^2 = S_q / S_r and S_r = r^2 c + (1 - r)^2. Here
        g - 1 is written with the factor q - r, by which it is divided.
        """
        r, q = r[:, None], q[:, None]
        m, c, axes = (part[k].to(z) for part in (self.means, self.variances, self.axes))
        root, end = ((c * time**2 + (1 - time) ** 2).sqrt() for time in (r, q))
        slope = (c * (q + r) - (2 - q - r)) / (root * (end + root))
        return m + (slope * ((z - r * m) @ axes)) @ axes.T

    def interval(self, kind: Kind = "v") -> tuple[float, float]:
        one = torch.ones((), dtype=torch.float64)
        if kind == "score" or all(torch.isfinite(c) for c in self.path.row(kind, one)):
            return 0.0, 1.0
        return 0.0, self.path.time_of_r(1 - 1e-6 * one).item()

    def sample(self, start: int, stop: int, seed: int) -> Tensor:
        """Samples start ... stop - 1 of a seed, (n, d) float32. Sample i is always the same."""
        uniform = torch.special.ndtr(noise(start, stop, (1,), seed, "component").double())
        masked = self.log_weights + _label_mask(self.component_labels, self.y, self.classes)
        below = masked.softmax(-1).cumsum(-1).expand(stop - start, -1)
        k = (uniform > below[:, :-1]).sum(-1)
        z = noise(start, stop, self.shape, seed, "mixture").double() * self.variances[k].sqrt()
        return (self.means[k] + torch.einsum("bde,be->bd", self.axes[k], z)).float()

    def start(self, eps: Tensor, t: Tensor, first: int, seed: int) -> Tensor:
        """Exact samples of p_t: a sample of the mixture, noised with eps."""
        return self.path.mix(self.sample(first, first + len(eps), seed).to(eps), eps, t)

    def to(self, device: torch.device | str, dtype: torch.dtype) -> "Mixture":
        return self


class Empirical(ClosedForm):
    """The ideal field of a finite data set: what a network with no error would learn from it.

    E[x | x_t] = sum_i softmax_i(-|x_t - alpha x_i|^2 / (2 beta^2)) x_i (Karras et al. 2022,
    appendix B.3). data (N, *shape), labels (N,) int64.
    """

    last = LAST

    def __init__(
        self,
        path: Path,
        data: Tensor,
        labels: Tensor | None,
        classes: int,
        y: Given | None = None,
    ) -> None:
        self.path, self.shape = path, tuple(data.shape[1:])
        self.data, self.norms = data.flatten(1), data.flatten(1).double().square().sum(1)
        self.member_labels, self.classes, self.y = labels, classes, y

    def expectation(self, x_t: Tensor, t: Tensor, kind: Kind) -> Tensor:
        rows = max(1, 2**24 // len(self.data))  # bounds the (rows, N) table of weights
        parts = []
        for i in range(0, len(x_t), rows):
            part, time = x_t[i : i + rows].flatten(1), t[i : i + rows] if t.ndim else t
            a, b = (expand(c, part) for c in (self.path.alpha(time), self.path.beta(time)))
            near = (a * (part @ self.data.to(part).T)).double() - a**2 * self.norms / 2
            mask = _label_mask(
                self.member_labels, None if self.y is None else self.y[i : i + rows], self.classes
            )
            weights = (near / b**2 + mask).softmax(-1).to(part)
            parts.append(weights @ self.data.to(part))
        x = torch.cat(parts).view_as(x_t)
        return self.path.convert(x, x_t, t, "x", kind)

    def log_prob(self, x_t: Tensor, t: Tensor) -> Tensor:
        """log p_t(x_t) (B,) at t () with beta > 0.

        p_t is the mean of N(alpha x_i, beta^2 I) over the data, or over the data of the label for
        labelled samples.
        """
        a, b = (c.item() for c in self.path.row("x_t", t))
        size = 0.5 * self.data.shape[1] * math.log(2 * math.pi * b * b)
        logs = []
        for i, z in enumerate(x_t.flatten(1).double()):
            mask = _label_mask(
                self.member_labels, None if self.y is None else self.y[i : i + 1], self.classes
            )
            squares = (z - a * self.data.double()).square().sum(1)
            shares = (torch.zeros_like(squares) + mask.to(z.device)).log_softmax(-1).flatten()
            logs.append((shares - squares / (2 * b * b)).logsumexp(0) - size)
        return torch.stack(logs).to(x_t)

    def straight(self) -> Self:
        return super().straight().to(self.data.device, torch.float64)

    def interval(self, kind: Kind = "v") -> tuple[float, float]:
        edge = torch.tensor(LAST, dtype=torch.float64)
        return 0.0, self.path.time_of_r(edge).item()

    def start(self, eps: Tensor, t: Tensor, first: int, seed: int) -> Tensor:
        """Exact samples of p_t: a member of the data set, noised with eps."""
        uniform = torch.special.ndtr(noise(first, first + len(eps), (1,), seed, "member").double())
        uniform = uniform.to(self.data.device)
        own = label(self.y)
        if own is None or self.member_labels is None:
            index = (uniform[:, 0] * len(self.data)).long()
        else:
            allowed = (self.member_labels == own[:, None]) | (own[:, None] == self.classes)
            rank = (uniform[:, 0] * allowed.sum(1)).long() + 1
            index = (allowed.cumsum(1) < rank[:, None]).sum(1)
        index = index.clamp(max=len(self.data) - 1)
        return self.path.mix(self.data[index].to(eps).view_as(eps), eps, t)

    def to(self, device: torch.device | str, dtype: torch.dtype) -> Self:
        moved = copy.copy(self)
        moved.data, moved.norms = self.data.to(device, dtype), self.norms.to(device)
        if self.member_labels is not None:
            moved.member_labels = self.member_labels.to(device)
        return moved


class RealData(Field):
    """Fresh real data as a field whose interval is the point t = 1, with nothing to solve."""

    def __init__(self, data: Any) -> None:
        self.path, self.data = CondOT(), data
        self.shape = data.shape if data.codec is None else data.codec.outer
        self.classes, self.conditions = data.classes, data.conditions

    def interval(self, kind: Kind = "v") -> tuple[float, float]:
        return 1.0, 1.0

    def start(self, eps: Tensor, t: Tensor, first: int, seed: int) -> Tensor:
        rows: Tensor = self.data.sample(first, first + len(eps), seed)[0]
        return rows.to(eps)

    def labels(self, classes: Classes, start: int, stop: int, seed: int) -> Given | None:
        if classes is not None:
            raise FmdiffError(f"classes={classes}: model=data takes the data as they come")
        labels: Given | None = self.data.sample(start, stop, seed)[1]
        return labels

    def bind(self, y: Given) -> "RealData":
        return self

    def to(self, device: torch.device | str, dtype: torch.dtype) -> "RealData":
        return self


def exact(data: Any, path: Path) -> Mixture:
    """model=exact, against=exact: the closed-form field of a data set that is a Gaussian mixture.

    Raises FmdiffError when the data set has no closed form.
    """
    mixture = None if data is None else data.mixture()
    if mixture is None:
        raise FmdiffError(
            "the exact field needs data with a closed form (gmm, gmm4, 8gaussians or two_modes), "
            f"and {'this' if data is None else type(data).__name__} has none"
        )
    weights, means, covs = mixture
    labels = torch.arange(len(weights)) if data.classes else None
    field = Mixture(path, weights, means, covs, labels)
    field.only = tuple(data.only or ())
    return field


def empirical(data: Any, path: Path, n: int) -> Empirical:
    """model=empirical: the ideal field of the first n examples (seed 0) of a data set."""
    x, y = data.examples(n)
    field = Empirical(path, x, y, data.classes)
    field.only = tuple(data.only or ())
    return field


def real_data(data: Any, path: Path) -> RealData:
    """model=data: the data set itself, so that a sample run writes real data in its files."""
    return RealData(data)
