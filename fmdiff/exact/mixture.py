"""Gaussian mixtures in closed form, alone or given labels, other coordinates or some of x."""

import copy
from collections.abc import Callable, Mapping, Sequence
from typing import Self

import torch
from torch import Tensor

from fmdiff.condition import Form, Given, named
from fmdiff.exact.closed_form import LAST, ClosedForm, label_mask
from fmdiff.exact.conditional import Posterior, posteriors
from fmdiff.path import Kind, Path, expand
from fmdiff.randomness import noise
from fmdiff.solvers.mean_velocity import mean_velocity

OTHERS, KNOWN = "c", "known"  # the conditions of a mixture: see Mixture


class Mixture(ClosedForm):
    r"""The marginal field of a Gaussian mixture sum_k w_k N(m_k, C_k) along any path.

    p_t = sum_k w_k N(alpha m_k, S_k), S_k = alpha^2 C_k + beta^2 I. With posterior weights
    rho_k(x_t) and u_k = S_k^{-1} (x_t - alpha m_k):

        E[x | x_t] = sum_k rho_k (m_k + alpha C_k u_k),   E[eps | x_t] = beta sum_k rho_k u_k,
        score = -sum_k rho_k u_k.

    Nothing is divided by beta. weights (K,), means (K, d), covs (K, d, d). Component k has the
    label labels[k].

    `conditions` may name two. With `c`, of shape (m,), means and covs are those of the joint
    mixture of d + m coordinates (x, c), and a bound field is that of p(x | c). With `known`, of
    shape (d,), it is that of the posterior given the coordinates of x that are not NaN. NaN is
    unknown in `c` as well, and is integrated out. Known coordinates of x are points, towards which
    the flow ends at the straight time LAST.
    """

    whole: "Mixture | None" = None  # the field of a bound one before it was bound
    points: Tensor | None = None  # the known coordinates of x (B, d), NaN for the others

    def __init__(
        self,
        path: Path,
        weights: Tensor,
        means: Tensor,
        covs: Tensor,
        labels: Tensor | None = None,
        y: Tensor | None = None,
        conditions: Mapping[str, Form] | None = None,
    ) -> None:
        self.conditions = dict(conditions or {})
        others = self.conditions[OTHERS].shape[0] if OTHERS in self.conditions else 0
        d = means.shape[-1] - others
        self.path, self.shape = path, (d,)
        self.component_labels, self.y = labels, y
        self.classes = 0 if labels is None else int(labels.max()) + 1
        self.log_weights = (weights / weights.sum()).double().log()
        self.joint_means, self.joint_covs = means.double(), covs.double()
        self.means = self.joint_means[:, :d]  # (K, d), or (B, K, d) if conditions are bound
        self.variances, self.axes = torch.linalg.eigh(self.joint_covs[:, :d, :d])
        self.variances = self.variances.clamp(min=0)  # (K, d); axes (K, d, d)
        if KNOWN in self.conditions or (self.variances == 0).any():
            self.last = LAST

    @property
    def allowed(self) -> Tensor:
        """The log weights of the components that the labels allow, else -inf: (K,) or (B, K)."""
        return self.log_weights + label_mask(self.component_labels, self.y, self.classes)

    def bind(self, y: Given) -> ClosedForm:
        """The field given labels, coordinates c or some of x."""
        bound = copy.copy(self.whole or self)
        bound.y, bound.evaluations, bound.whole = y, 0, self.whole or self
        bound.path = self.path
        values = bound._values(named(y))
        if values is None:
            return bound
        joint = bound.log_weights, bound.joint_means, bound.joint_covs
        parts = [(p.rows, bound._given(p)) for p in posteriors(*joint, values, *self.shape)]
        return parts[0][1] if len(parts) == 1 else ByRows(bound, parts)

    def _values(self, parts: Mapping[str, Tensor]) -> Tensor | None:
        """The coordinates (B, d + m) that conditions give, NaN if unknown; None if none is."""
        d, whole = self.shape[0], self.joint_means.shape[1]
        rows = [len(parts[name]) for name in (KNOWN, OTHERS) if name in parts]
        if not rows:
            return None
        values = torch.full((rows[0], whole), torch.nan, dtype=torch.float64)
        if KNOWN in parts:
            values[:, :d] = parts[KNOWN]
        if OTHERS in parts and whole > d:
            values[:, d:] = parts[OTHERS]
        return None if bool(values.isnan().all()) else values

    def _given(self, posterior: Posterior) -> Self:
        """This field for the rows of a posterior."""
        part = copy.copy(self)
        part.y = None if self.y is None else self.y[posterior.rows]
        part.log_weights, part.means = posterior.log_weights, posterior.means
        part.variances, part.axes = posterior.variances, posterior.axes
        part.points = posterior.points
        return part

    def select(self, rows: Tensor) -> Self:
        if self.y is None:
            return self
        part = copy.copy(self)
        part.y, part.evaluations = self.y[rows], 0
        if self.means.ndim == 3:
            rows = rows.to(self.means.device)
            part.log_weights, part.means = self.log_weights[rows], self.means[rows]
            part.points = None if self.points is None else self.points[rows]
        return part

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
        log_p = log_p + label_mask(self.component_labels, self.y, self.classes).to(x_t)
        return log_p, u, variances * u, a

    def log_prob(self, x_t: Tensor, t: Tensor) -> Tensor:
        """log p_t(x_t), or log p_t(x_t | y) for a bound field: (B,)."""
        return self._posterior(x_t, t)[0].logsumexp(-1) - self.allowed.logsumexp(-1).to(x_t)

    def expectation(self, x_t: Tensor, t: Tensor, kind: Kind) -> Tensor:
        log_p, u, cu, a = self._posterior(x_t, t)
        rho = log_p.softmax(-1)
        axes = self.axes.to(x_t)
        # three operands would form the (B, K, d, d) product
        u = torch.einsum("kde,bke->bd", axes, rho[..., None] * u)
        if kind == "score":
            return -u
        spread = torch.einsum("kde,bke->bd", axes, rho[..., None] * cu)
        means = self.means.to(x_t)
        centre = rho @ means if means.ndim == 2 else (rho[..., None] * means).sum(1)
        x = centre + a[..., 0] * spread
        if self.points is not None:  # without the rounding of the weights
            points = self.points.to(x_t)
            x = torch.where(points.isnan(), x, points)
        return self.path.mix(x, expand(self.path.beta(t), x_t) * u, t, kind)

    def mean(self, z: Tensor, r: Tensor, q: Tensor) -> Tensor:
        """By the formula for samples that a single component explains, else along the flow."""
        possible = (self.allowed > -torch.inf).to(z.device).expand(len(z), -1)
        only = possible.int().argmax(1).masked_fill(possible.sum(1) > 1, -1)
        u = torch.zeros_like(z)
        for k in sorted(set(only.tolist())):
            rows = (only == k).nonzero().flatten()
            at, field = (z[rows], r[rows], q[rows]), self.select(rows)
            if k < 0:
                part = mean_velocity(field, at[0], at[1], at[2] - at[1])
            else:
                part = field._gaussian_mean(k, *at)
            u = u.index_copy(0, rows, part)
        return u

    def _gaussian_mean(self, k: int, z: Tensor, r: Tensor, q: Tensor) -> Tensor:
        """The mean velocity of component k alone, on the straight path.

        Z = q m + g (z - r m) along each axis, g^2 = S_q / S_r and S_r = r^2 c + (1 - r)^2. Here
        g - 1 is written with the factor q - r, by which it is divided.
        """
        r, q = r[:, None], q[:, None]
        m, c, axes = self.means[..., k, :].to(z), self.variances[k].to(z), self.axes[k].to(z)
        root, end = ((c * time**2 + (1 - time) ** 2).sqrt() for time in (r, q))
        slope = (c * (q + r) - (2 - q - r)) / (root * (end + root))
        mean: Tensor = m + (slope * ((z - r * m) @ axes)) @ axes.T
        return mean

    def interval(self, kind: Kind = "v") -> tuple[float, float]:
        one = torch.ones((), dtype=torch.float64)
        if self.last < 1:
            return 0.0, self.path.time_of_r(self.last * one).item()
        if kind == "score" or all(torch.isfinite(c) for c in self.path.row(kind, one)):
            return 0.0, 1.0
        return 0.0, self.path.time_of_r(1 - 1e-6 * one).item()

    def sample(self, start: int, stop: int, seed: int) -> Tensor:
        """Samples start ... stop - 1 of a seed, (n, d) float32. Sample i is always the same.

        They are those of the labels and conditions of a bound field, in their order.
        """
        return self.moved(*_draws(start, stop, self.shape, seed))

    def moved(self, uniform: Tensor, z: Tensor) -> Tensor:
        """Samples (n, d) float32 from uniform (n, 1) and standard normal (n, d) numbers."""
        below = self.allowed.softmax(-1).cumsum(-1).expand(len(z), -1)
        k = (uniform > below[:, :-1]).sum(-1)
        means = self.means.expand(len(z), -1, -1)[torch.arange(len(z)), k]
        spread = z * self.variances[k].sqrt()
        return (means + torch.einsum("bde,be->bd", self.axes[k], spread)).float()

    def start(self, eps: Tensor, t: Tensor, first: int, seed: int) -> Tensor:
        """Exact samples of p_t: a sample of the mixture, noised with eps."""
        return self.path.mix(self.sample(first, first + len(eps), seed).to(eps), eps, t)

    def to(self, device: torch.device | str, dtype: torch.dtype) -> Self:
        return self


class ArrayMixture(Mixture):
    """A mixture of series or arrays, whose numbers in order are its coordinates.

    shape: that of a sample. There are no conditions but the label.
    """

    def __init__(
        self,
        path: Path,
        weights: Tensor,
        means: Tensor,
        covs: Tensor,
        labels: Tensor | None,
        shape: Sequence[int],
    ) -> None:
        super().__init__(path, weights, means, covs, labels)
        self.shape = tuple(shape)

    def log_prob(self, x_t: Tensor, t: Tensor) -> Tensor:
        return super().log_prob(x_t.flatten(1), t)

    def expectation(self, x_t: Tensor, t: Tensor, kind: Kind) -> Tensor:
        return super().expectation(x_t.flatten(1), t, kind).view_as(x_t)

    def mean(self, z: Tensor, r: Tensor, q: Tensor) -> Tensor:
        return super().mean(z.flatten(1), r, q).view_as(z)

    def sample(self, start: int, stop: int, seed: int) -> Tensor:
        """Samples start ... stop - 1 of a seed, (n, *shape) float32: see Mixture.sample."""
        draws = _draws(start, stop, (self.means.shape[-1],), seed)
        return self.moved(*draws).view(-1, *self.shape)


class ByRows(ClosedForm):
    """A mixture bound to rows that know different coordinates: a field for each kind of row."""

    def __init__(self, bound: Mixture, parts: Sequence[tuple[Tensor, Mixture]]) -> None:
        self.bound, self.parts = bound, list(parts)
        self.path, self.shape, self.y, self.last = bound.path, bound.shape, bound.y, bound.last
        self.classes, self.only, self.names = bound.classes, bound.only, bound.names
        self.conditions, self.values = bound.conditions, bound.values

    def bind(self, y: Given) -> ClosedForm:
        return self.bound.bind(y)

    def straight(self) -> Self:
        twin = super().straight()
        twin.bound = self.bound.straight()
        twin.parts = [(rows, part.straight()) for rows, part in self.parts]
        return twin

    def select(self, rows: Tensor) -> Self:
        twin, size = copy.copy(self), sum(len(own) for own, _ in self.parts)
        assert self.y is not None
        twin.y, twin.parts, twin.evaluations = self.y[rows], [], 0
        rows = torch.arange(size)[rows.cpu()]
        for own, part in self.parts:
            place = torch.full((size,), -1).index_copy(0, own, torch.arange(len(own)))[rows]
            chosen = (place >= 0).nonzero().flatten()
            if len(chosen):
                twin.parts.append((chosen, part.select(place[chosen])))
        return twin

    def _joined(self, answer: Callable[..., Tensor], *at: Tensor) -> Tensor:
        """The answers (B, *) of the parts, each asked for its rows of the tensors `at`."""
        answers = [
            answer(part, *(a[rows.to(a.device)] if a.ndim else a for a in at))
            for rows, part in self.parts
        ]
        order = torch.cat([rows for rows, _ in self.parts]).argsort()
        return torch.cat(answers)[order.to(answers[0].device)]

    def expectation(self, x_t: Tensor, t: Tensor, kind: Kind) -> Tensor:
        return self._joined(lambda part, x, time: part.expectation(x, time, kind), x_t, t)

    def log_prob(self, x_t: Tensor, t: Tensor) -> Tensor:
        return self._joined(Mixture.log_prob, x_t, t)

    def mean(self, z: Tensor, r: Tensor, q: Tensor) -> Tensor:
        return self._joined(Mixture.mean, z, r, q)

    def interval(self, kind: Kind = "v") -> tuple[float, float]:
        return self.bound.interval(kind)

    def sample(self, start: int, stop: int, seed: int) -> Tensor:
        """Samples start ... stop - 1 of a seed, (n, d) float32: see Mixture.sample."""
        return self._joined(Mixture.moved, *_draws(start, stop, self.shape, seed))

    def start(self, eps: Tensor, t: Tensor, first: int, seed: int) -> Tensor:
        return self.path.mix(self.sample(first, first + len(eps), seed).to(eps), eps, t)

    def to(self, device: torch.device | str, dtype: torch.dtype) -> Self:
        return self


def _draws(start: int, stop: int, shape: tuple[int, ...], seed: int) -> tuple[Tensor, Tensor]:
    """The numbers behind samples start ... stop - 1: uniform (n, 1) and normal (n, d), float64."""
    uniform = torch.special.ndtr(noise(start, stop, (1,), seed, "component").double())
    return uniform, noise(start, stop, shape, seed, "mixture").double()
