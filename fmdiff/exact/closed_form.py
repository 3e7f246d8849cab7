"""Fields in closed form, with their exact flow: what every exact field has in common."""

import copy
from collections.abc import Iterable
from typing import Self

import torch
from torch import Tensor

from fmdiff.condition import Given, label
from fmdiff.field import Field
from fmdiff.path import CondOT, Kind, expand
from fmdiff.solvers.mean_velocity import mean_velocity

LAST = 1 - 1e-3  # the straight time at which the flow towards single points ends


def label_mask(labels: Tensor | None, y: Given | None, classes: int) -> Tensor:
    """0 for components that may explain class y, else -inf: (B, K), or () if all of them may."""
    y = label(y)
    if y is None or labels is None:
        return torch.zeros((), dtype=torch.float64)
    y = y.to(labels.device)[:, None]
    allowed = (y == labels) | (y == classes)
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
        """log p_t(x_t), or log p_t(x_t | y) for a bound field: (B,)."""
        raise NotImplementedError

    def bind(self, y: Given) -> "ClosedForm":
        bound = copy.copy(self)
        bound.y, bound.evaluations = y, 0
        return bound
