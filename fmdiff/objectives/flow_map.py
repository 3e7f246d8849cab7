"""Flow maps: a network of two times that jumps along the flow, trained towards three targets."""

import copy
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import Generator, Tensor, nn

from fmdiff.errors import FmdiffError, nearest
from fmdiff.field import Field, NetField
from fmdiff.formula import Formula
from fmdiff.models.network import answer
from fmdiff.objectives.derivative import derivative, moved
from fmdiff.objectives.flow_matching import FlowMatching
from fmdiff.path import Path, expand

CHOICES = {
    "target": ("lagrangian", "eulerian", "semigroup"),
    "velocity": ("data", "network", "teacher", "exact"),
    "ends": ("any", "data"),
    "split": ("uniform", "middle", "dyadic"),
    "derivative": ("difference", "forward"),
}
LEVELS = 8  # of split=dyadic: 1, 2, 4 ... 128 equal jumps
SMALL = 1e-3  # c in the weight 1 / (|e|^2 + c)^adapt
Columns = tuple[Tensor, ...]


class FlowMap(FlowMatching):
    r"""The network gives u(x, t, s), the mean velocity of the flow X from t to s >= t.

    In straight coordinates, where r and q are the times t and s, X(x, r, q) = x + (q - r) u and
    u(x, r, r) = v. A share `diagonal` of the batch has s = t and is trained as in FlowMatching.
    On the others the target takes the place of the pair's velocity w = x - eps. Prediction, loss
    space, weighting and distance are those of FlowMatching. The targets have no gradient:

        lagrangian  v(X(x, r, q), q) - (q - r) du/dq
        eulerian    w + (q - r) (du/dr + d . grad u),  d = direction w + (1 - direction) v
                    with a gap: g w + (1 - g) u(x + g (q - r) w, r + g (q - r), q)
        semigroup   a u(x, r, m) + (1 - a) u(X(x, r, m), m, q),  a = (m - r) / (q - r)

    Source: Boffi, Albergo & Vanden-Eijnden 2025, arXiv:2505.18825. `velocity` tells what v is, and
    for eulerian also w: the pair's, the network's own, the teacher's or the exact one. The targets
    of semigroup take the jumps of network, teacher or exact field.

    Raises FmdiffError for an unknown name, for a number out of range and for what cannot be
    combined.
    """

    two_times = True

    def __init__(
        self,
        path: Path,
        data_std: float,
        *,
        target: str,
        velocity: str,
        direction: float,
        ends: str,
        gap: float | str,
        split: str,
        jumps: int | None,
        diagonal: float,
        adapt: float,
        tangent: float | None,
        warmup: float,
        derivative: str,
        teacher: str | None,
        guidance: list[float] | None,
        **matching: Any,
    ) -> None:
        super().__init__(path, data_std, **matching)
        self.target, self.velocity, self.ends, self.split = target, velocity, ends, split
        self.derivative, self.jumps = derivative, jumps
        self.direction, self.diagonal, self.adapt = direction, diagonal, adapt
        self.tangent, self.warmup, self.guidance = tangent, warmup, guidance
        self.gap = Formula(str(gap), ("p", "r"), "objective.gap")
        self.finite = str(gap) != "0"  # whether the eulerian target is a finite step
        self.origin = teacher  # how messages call the teacher
        self.teacher: Field | None = None  # set by the run, as is the exact field
        self.truth: Field | None = None
        self._check()

    def _check(self) -> None:
        for option, choices in CHOICES.items():
            value = vars(self)[option]
            if value not in choices:
                raise FmdiffError(
                    f"objective.{option}={value} is unknown; {nearest(value, choices)}"
                )
        for option, least, most in (
            ("direction", 0, 1),
            ("diagonal", 0, 1),
            ("adapt", 0, 2),
            ("warmup", 0, 1),
        ):
            value = vars(self)[option]
            if not isinstance(value, int | float) or not least <= value <= most:
                raise FmdiffError(
                    f"objective.{option}={value} must be a number from {least} to {most}"
                )
        if self.tangent is not None and not 0 < self.tangent < float("inf"):
            raise FmdiffError(
                f"objective.tangent={self.tangent} must be a positive number or null"
            )
        if self.velocity == "data" and self.target != "eulerian":
            raise FmdiffError(
                f"objective.velocity=data goes with objective.target=eulerian, not {self.target}, "
                "which needs velocities away from the pairs; choose network, teacher or exact"
            )
        if self.finite and self.target != "eulerian":
            raise FmdiffError(
                f"objective.gap={self.gap.text} goes with objective.target=eulerian, not "
                f"{self.target}"
            )
        if (self.velocity == "teacher") != (self.origin is not None):
            raise FmdiffError(
                "objective.velocity=teacher and objective.teacher=RUN go together: "
                f"velocity={self.velocity} and teacher={self.origin} are given"
            )
        if self.jumps is not None and (type(self.jumps) is not int or self.jumps < 1):
            raise FmdiffError(f"objective.jumps={self.jumps} must be an integer >= 1 or null")
        if self.guidance is not None and not (
            len(self.guidance) == 2 and 1 <= self.guidance[0] <= self.guidance[1]
        ):
            raise FmdiffError(
                f"objective.guidance={self.guidance} must be [lo,hi] with 1 <= lo <= hi, or null"
            )

    def field(self, *args: Any, **options: Any) -> NetField:
        field = super().field(*args, **options)
        field.two_times = True
        if self.guidance is not None:
            field.scales = (float(self.guidance[0]), float(self.guidance[1]))
        return field

    # What is drawn for a step

    def times(
        self,
        n: int,
        law: Callable[[int, Generator], Tensor],
        draws: Callable[[str], Generator],
        progress: float,
    ) -> Columns:
        """t and s, then a = (m - r) / (q - r), the progress and the scale w of guidance: (n,)."""
        t, other = law(n, draws("time")), law(n, draws("end"))
        a = torch.rand(n, generator=draws("split"), device=t.device)
        if self.split == "dyadic":
            levels = torch.rand(n, generator=draws("level"), device=t.device)
            count = 2.0 ** (LEVELS * levels).floor() if self.jumps is None else self.jumps
            t = (t * count).floor().clamp(max=count - 1) / count
            s = t + 1 / count
        else:
            t, s = torch.minimum(t, other), torch.maximum(t, other)
        if self.ends == "data":
            s = torch.ones_like(t)
        if self.split != "uniform":
            a = torch.full_like(a, 0.5)
        w = torch.rand(n, generator=draws("scale"), device=t.device)
        if self.guidance is not None:
            w = self.guidance[0] + (self.guidance[1] - self.guidance[0]) * w
        # the diagonal's rows lie evenly among the others, so that each device has its share
        place = torch.arange(n, device=t.device)
        off = ((place + 1) * (1 - self.diagonal)).floor() > (place * (1 - self.diagonal)).floor()
        s = torch.where(off, s, t)
        return self.time(t), self.time(s), a, torch.full_like(t, progress), w

    # The loss

    def terms(
        self, x: Tensor, y: Tensor | None, eps: Tensor, t: Tensor, *columns: Tensor
    ) -> tuple[Tensor | None, ...]:
        one, zero = torch.ones_like(t), torch.zeros_like(t)
        slope = self.slope(t) * self.path.convert(one, zero, t, "straight", self.prediction)
        pair = expand(slope, x), self.path.mix(x, eps, t), x - eps, t
        return *super().terms(x, y, eps, t), *pair, *columns

    def __call__(
        self, net: nn.Module, x: Tensor, y: Tensor | None, eps: Tensor, t: Tensor, *columns: Tensor
    ) -> Tensor:
        return self.compare(net, *self.terms(x, y, eps, t, *columns))

    def compare(self, net: nn.Module, *terms: Any) -> Tensor:
        z, time, y, c, g, weight, _, slope, x_t, pair, t, s, a, progress, w = terms
        field = self.field(net, x_t.shape[1:], self.classes, y)
        field.w = None if self.guidance is None else w
        out = answer(net, z, time, y, field.feature(s, x_t), field.w)
        error = torch.addcmul(g, c, out)  # slope (u - pair)
        with torch.no_grad(), _evaluated(net) as drops:
            goal = pair if self.guidance is None else self.guided(field, x_t, t, pair)
            rows = (s > t).nonzero()[:, 0]
            u = None
            if not drops and not torch.is_autocast_enabled(x_t.device.type):
                u = field.scaled(out.detach(), x_t, t)
                u = self.path.convert(u, x_t, t, self.prediction, "straight")[rows]
            some = (part[rows] for part in (x_t, goal, t, s, a, progress))
            aim = self.goal(_rows(field, rows), *some, u=u)
            error = error + slope * (pair - goal.index_copy(0, rows, aim.to(goal)))
        if self.tangent is not None:
            error = torch.where(expand(s > t, error), self.normalised(error, t), error)
        square = error.detach().flatten(1).square().sum(1)
        loss: Tensor = weight * self.distance(error) / (square + SMALL) ** self.adapt
        if self.finite and not self.adapt:  # the error is about proportional to the gap
            loss = loss / torch.where(s > t, self.share(progress, t), 1)
        return loss

    def normalised(self, error: Tensor, t: Tensor) -> Tensor:
        """The error with its value e replaced by r e / (|r e| + tangent), |.| over a sample.

        It has the gradient of the error (sCM, Lu & Song 2025, arXiv:2410.11081, section 4).
        """
        e = error.detach() * expand(self.path.r(t), error)
        norm = expand(torch.linalg.vector_norm(e.flatten(1), dim=1), e)
        return error - error.detach() + e / (norm + (self.tangent or 0.0))

    def goal(
        self,
        field: Field,
        x_t: Tensor,
        w: Tensor,
        t: Tensor,
        s: Tensor,
        a: Tensor,
        progress: Tensor,
        *,
        u: Tensor | None = None,
    ) -> Tensor:
        """u* (B, *shape), in straight coordinates, for a field of two times.

        x_t, the pair's velocity w (B, *shape), t < s, a and progress (B,). u is the field's own
        jump from t to s, if it is at hand.
        """
        r, h = self.path.r(t), self.path.r(s) - self.path.r(t)
        if self.target == "semigroup":
            m, a = self.path.time_of_r(r + a * h), expand(a, x_t)
            first = self.jump(field, x_t, t, m)
            middle = moved(self.path, x_t, t, m, a * expand(h, x_t) * first)
            return torch.lerp(self.jump(field, middle, m, s), first, a)
        length = expand(h, x_t)
        if self.target == "lagrangian":
            u = field.predict(x_t, t, "straight", s) if u is None else u
            end = self.jump(field, moved(self.path, x_t, t, s, length * u), s)
            return end - length * derivative(field, x_t, t, s, self.derivative, u)
        w = w if self.velocity == "data" else self.jump(field, x_t, t)
        if self.finite:
            g = self.share(progress, t)
            m, g = self.path.time_of_r(r + g * h), expand(g, x_t)
            ahead = moved(self.path, x_t, t, m, g * length * w)
            return torch.lerp(field.predict(ahead, m, "straight", s), w, g)
        d = (
            w
            if self.direction == 1
            else torch.lerp(field.predict(x_t, t, "straight"), w, self.direction)
        )
        slope = derivative(field, x_t, t, s, self.derivative, u, d)
        if self.warmup:
            length = length * expand((progress / self.warmup).clamp(max=1), w)
        return w + length * slope

    def share(self, progress: Tensor, t: Tensor) -> Tensor:
        """The gap as a share of q - r, in [1e-3, 1]: (B,)."""
        return self.gap(progress, self.path.r(t)).clamp(1e-3, 1)

    def jump(self, field: Field, x_t: Tensor, t: Tensor, s: Tensor | None = None) -> Tensor:
        """u(x_t, t, s) of network, teacher or exact field, or v without s.

        A teacher without second time answers v. It is guided if the network is.
        """
        other = {"teacher": self.teacher, "exact": self.truth}.get(self.velocity)
        if other is None:
            return field.predict(x_t, t, "straight", s)
        s = s if other.two_times else None
        if field.y is None or not other.classes:
            return other.predict(x_t, t, "straight", s)
        u = other.bind(field.y).predict(x_t, t, "straight", s)
        if not (isinstance(field, NetField) and field.w is not None):
            return u
        null = other.bind(torch.full_like(field.y, self.classes))
        return torch.lerp(null.predict(x_t, t, "straight", s), u, expand(field.w, u))

    def guided(self, field: NetField, x_t: Tensor, t: Tensor, w: Tensor) -> Tensor:
        """null + scale (w - null), the pair's velocity w for a network that is told the scale."""
        if field.y is None or field.w is None:
            return w
        null = copy.copy(field)
        null.w, null.y = None, torch.full_like(field.y, self.classes)
        scale = torch.where(field.y == self.classes, 1, field.w)
        return torch.lerp(null.predict(x_t, t, "straight"), w, expand(scale, w))


def _rows(field: NetField, rows: Tensor) -> NetField:
    """The field for some rows of its batch."""
    part = copy.copy(field)
    part.y, part.w = (None if value is None else value[rows] for value in (field.y, field.w))
    if isinstance(field.net, partial):  # with the labels of an augmentation
        part.net = partial(field.net.func, augment=field.net.keywords["augment"][rows])
    return part


@contextmanager
def _evaluated(net: Any) -> Iterator[bool]:
    """The network in evaluation mode, without dropout. Gives whether it drops in training."""
    module: nn.Module = net.func if isinstance(net, partial) else net  # type: ignore[assignment]
    training = module.training
    module.eval()
    try:
        yield training and any(isinstance(m, nn.Dropout) and m.p > 0 for m in module.modules())
    finally:
        module.train(training)
