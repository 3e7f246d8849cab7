"""Fields of the members of a data set: the ideal one of finitely many, and the data themselves."""

import copy
import math
from typing import Any, Self

import torch
from torch import Tensor

from fmdiff.condition import Classes, Given, label
from fmdiff.errors import FmdiffError
from fmdiff.exact.closed_form import LAST, ClosedForm, label_mask
from fmdiff.field import Field
from fmdiff.path import CondOT, Kind, Path, expand
from fmdiff.randomness import noise


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
            mask = label_mask(
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
            mask = label_mask(
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
        y = label(self.y)
        if y is None or self.member_labels is None:
            index = (uniform[:, 0] * len(self.data)).long()
        else:
            allowed = (self.member_labels == y[:, None]) | (y[:, None] == self.classes)
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

    @property
    def kind(self) -> str:
        kind: str = self.data.kind
        return kind

    def interval(self, kind: Kind = "v") -> tuple[float, float]:
        return 1.0, 1.0

    def start(self, eps: Tensor, t: Tensor, first: int, seed: int) -> Tensor:
        rows: Tensor = self.data.sample(first, first + len(eps), seed)[0]
        return rows.to(eps)

    def labels(self, classes: Classes, start: int, stop: int, seed: int) -> Given | None:
        if classes is not None:
            raise FmdiffError(f"classes={classes}: model=data takes the data as they come")
        if self.values:
            name = next(iter(self.values))
            raise FmdiffError(f"cond.{name}: model=data takes the data as they come")
        y: Given | None = self.data.sample(start, stop, seed)[1]
        return y

    def bind(self, y: Given) -> "RealData":
        return self

    def to(self, device: torch.device | str, dtype: torch.dtype) -> "RealData":
        return self
