"""Flow maps: a network of two times that jumps along the flow, trained towards three targets."""

import copy
import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from fmdiff.condition import Given, dropped, null
from fmdiff.errors import FmdiffError, nearest
from fmdiff.field import Field, NetField
from fmdiff.formula import Formula
from fmdiff.models.network import answer
from fmdiff.objectives.derivative import derivative, moved
from fmdiff.objectives.flow_matching import FlowMatching
from fmdiff.objectives.objective import Generators, Law
from fmdiff.path import Path, expand

CHOICES = {
    "target": ("lagrangian", "eulerian", "semigroup"),
    "velocity": ("data", "network", "teacher", "exact"),
    "ends": ("any", "data"),
    "split": ("uniform", "middle", "dyadic"),
    "derivative": ("difference", "forward"),
}
LEVELS = 7  # of split=dyadic: 1, 2, 4 ... 64 equal jumps, so that the shortest half is 1/128
SMALL = 1e-3  # c in the weight 1 / (|e|^2 + c)^adapt


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
        self.finite = str(gap) not in ("0", "0.0")  # whether the eulerian target is a finite step
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
            if type(value) not in (int, float) or not least <= value <= most:
                raise FmdiffError(
                    f"objective.{option}={value} must be a number from {least} to {most}"
                )
        if self.tangent is not None and not (_number(self.tangent) and self.tangent > 0):
            raise FmdiffError(
                f"objective.tangent={self.tangent} must be a positive number or null"
            )
        if self.velocity == "data" and self.target != "eulerian":
            raise FmdiffError(
                f"objective.velocity=data goes with objective.target=eulerian, not {self.target}, "
                "which needs velocities away from the pairs; choose network, teacher or exact"
            )
        values = {**vars(self), "gap": self.gap.text if self.finite else 0}
        for option in ("direction", "gap", "warmup"):
            if values[option] != 0 and self.target != "eulerian":
                raise FmdiffError(
                    f"objective.{option}={values[option]} goes with objective.target=eulerian, "
                    f"not {self.target}"
                )
        gap = self.gap(torch.linspace(0, 1, 9)[:, None], torch.linspace(0.01, 0.99, 9))
        if not (gap.isfinite().all() and ((gap >= 0) & (gap <= 1)).any()):
            raise FmdiffError(
                f"objective.gap={self.gap.text} must be a share of s - t: a number from 0 to 1, "
                "or a formula of p and r with finite values"
            )
        if (self.velocity == "teacher") != (self.origin is not None):
            raise FmdiffError(
                "objective.velocity=teacher and objective.teacher=RUN go together: "
                f"velocity={self.velocity} and teacher={self.origin} are given"
            )
        if self.jumps is not None and (type(self.jumps) is not int or self.jumps < 1):
            raise FmdiffError(f"objective.jumps={self.jumps} must be an integer >= 1 or null")
        if self.jumps is not None and self.split != "dyadic":
            raise FmdiffError(f"objective.jumps={self.jumps} goes with objective.split=dyadic")
        if self.guidance is not None and not _interval(self.guidance):
            raise FmdiffError(
                f"objective.guidance={self.guidance} must be [lo,hi] with 1 <= lo <= hi, or null"
            )

    def field(self, *args: Any, **options: Any) -> NetField:
        field = super().field(*args, **options)
        field.two_times, field.consistency = True, self.ends == "data"
        if self.guidance is not None:
            field.scales = (float(self.guidance[0]), float(self.guidance[1]))
        return field

    @property
    def evaluations(self) -> tuple[float, float, float]:  # type: ignore[override]
        """See Objective. A derivative counts as two passes, as many as a difference takes."""
        passes, jumps = {"semigroup": (0, 2), "lagrangian": (2, 1)}.get(self.target, (1, 1))
        if self.target == "eulerian":
            jumps = int(self.velocity != "data")
            passes = 1 if self.finite else 2 + (self.direction < 1)
        guided = int(self.guidance is not None and bool(self.classes or self.conditions))
        taught = jumps * (1 + guided) if self.velocity == "teacher" else 0
        own = passes + (jumps if self.velocity == "network" else 0)
        off = 1 - self.diagonal
        return off * own + guided, 1.0, off * taught

    # What is drawn for a step

    def times(
        self,
        n: int,
        law: Law,
        generators: Generators,
        progress: float,
    ) -> tuple[Tensor, ...]:
        """t and s, then a = (m - t) / (s - t), the progress and the scale w of guidance: (n,).

        On the diagonal, and with ends=data, t is what FlowMatching draws.
        """
        t = start = law(n, generators("time"))
        # a stratified law is sorted, so the ends are shuffled
        order = torch.randperm(n, generator=generators("order"), device=t.device)
        other = law(n, generators("end"))[order]
        a = torch.rand(n, generator=generators("split"), device=t.device)
        if self.split == "dyadic":
            levels = torch.rand(n, generator=generators("level"), device=t.device)
            count = 2.0 ** (LEVELS * levels).floor() if self.jumps is None else self.jumps
            index = (t * count).floor().clamp(max=count - 1)
            t, s = index / count, (index + 1) / count
        elif self.ends == "any":
            t, s = torch.minimum(t, other), torch.maximum(t, other)
        if self.ends == "data":
            s = torch.ones_like(t)
        if self.split != "uniform":
            a = torch.full_like(a, 0.5)
        w = torch.rand(n, generator=generators("scale"), device=t.device)
        if self.guidance is not None:
            w = self.guidance[0] + (self.guidance[1] - self.guidance[0]) * w
        # the diagonal's rows lie evenly among the others, so that each device has its share
        before = torch.arange(n + 1, device=t.device, dtype=torch.float64) * (1 - self.diagonal)
        off = (before + 0.5).floor().diff() > 0
        t, s = torch.where(off, t, start), torch.where(off, s, start)
        return self.time(t), self.time(s), a, torch.full_like(t, progress), w

    # The loss

    def terms(
        self, x: Tensor, y: Given | None, eps: Tensor, t: Tensor, *columns: Tensor
    ) -> tuple[Given | None, ...]:
        one, zero = torch.ones_like(t), torch.zeros_like(t)
        slope = self.slope(t) * self.path.convert(one, zero, t, "straight", self.prediction)
        pair = expand(slope, x), self.path.mix(x, eps, t), x - eps, t
        return *super().terms(x, y, eps, t), *pair, *columns

    def __call__(
        self, net: nn.Module, x: Tensor, y: Given | None, eps: Tensor, t: Tensor, *columns: Tensor
    ) -> Tensor:
        return self.compare(net, *self.terms(x, y, eps, t, *columns))

    def compare(self, net: nn.Module, *terms: Any) -> Tensor:
        return self.assess(net, *terms)[0]

    def assess(self, net: nn.Module, *terms: Any) -> tuple[Tensor, Tensor]:
        z, time, y, c, g, weight, factor, slope, x_t, pair, t, s, a, progress, w = terms
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
            if len(rows):  # a small part of a batch may lie on the diagonal
                some = (part[rows] for part in (x_t, goal, t, s, a, progress))
                aim = self.goal(_rows(field, rows), *some, u=u)
                goal = goal.index_copy(0, rows, aim.to(goal))
        error = error + slope * (pair - goal)
        mse = self.mse_of(error.detach(), s == t, weight, factor)
        if self.finite or self.tangent is not None:
            value = torch.where(
                expand(s > t, error), self.value(error.detach(), t, progress), error
            )
            error = error - error.detach() + value.detach()
        square = error.detach().flatten(1).square().sum(1)
        loss: Tensor = weight * self.distance(error) / (square + SMALL) ** self.adapt
        return loss, mse

    def mse_of(self, error: Tensor, on: Tensor, weight: Tensor, factor: Tensor) -> Tensor:
        """Squared errors (B,) whose mean is that of the rows (B,) `on` the diagonal, as `mse`.

        Elsewhere a target depends on the network, and its error tells nothing. NaN without rows.
        """
        squares = weight * error.flatten(1).square().mean(1) / factor
        return torch.where(on & (factor > 0), squares, 0.0) * (len(on) / on.sum())

    def value(self, e: Tensor, t: Tensor, progress: Tensor) -> Tensor:
        """What the loss takes for the value e of the error of a jump, with the error's gradient.

        A finite step of share g has an error proportional to g, and e / g tends to the error of
        the derivative. With a tangent it is r e / (|r e| + tangent), |.| over a sample (sCM,
        Lu & Song 2025, arXiv:2410.11081, section 4).
        """
        if self.finite:
            e = e / expand(self.share(progress, t), e)
        if self.tangent is not None:
            e = e * expand(self.path.r(t), e)
            norm = expand(torch.linalg.vector_norm(e.flatten(1), dim=1), e)
            e = e / (norm + self.tangent)
        return e

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
        jump from t to s in full precision, if it is at hand.
        """
        r, h = self.path.r(t), self.path.r(s) - self.path.r(t)
        length = expand(h, x_t)
        if self.target == "semigroup":
            m = t + a * (s - t)
            first, part = self.jump(field, x_t, t, m), expand(self.path.r(m) - r, x_t)
            second = self.jump(field, moved(self.path, x_t, t, m, part * first), m, s)
            # s may follow t so closely that their straight times are equal
            return torch.lerp(second, first, part / length.clamp(min=torch.finfo(r.dtype).tiny))
        if self.target == "lagrangian":
            if u is None:
                with torch.autocast(x_t.device.type, enabled=False):
                    u = field.predict(x_t, t, "straight", s)
            end = self.jump(field, moved(self.path, x_t, t, s, length * u), s)
            return end - length * derivative(field, x_t, t, s, self.derivative, u)
        w = w if self.velocity == "data" else self.jump(field, x_t, t)
        if self.finite:
            g = self.share(progress, t)
            m, g = self.path.time_of_r(r + g * h), expand(g, x_t)
            ahead = moved(self.path, x_t, t, m, g * length * w)
            return torch.lerp(field.predict(ahead, m, "straight", s), w, g)
        d = w
        if self.direction != 1 and self.velocity != "network":
            d = torch.lerp(field.predict(x_t, t, "straight"), w, self.direction)
        slope = derivative(field, x_t, t, s, self.derivative, u, d)
        if self.warmup:
            length = length * expand((progress / self.warmup).clamp(max=1), w)
        return w + length * slope

    def share(self, progress: Tensor, t: Tensor) -> Tensor:
        """The gap as a share of q - r, in [1e-3, 1]: (B,)."""
        return self.gap(progress, self.path.r(t)).clamp(1e-3, 1)

    def jump(self, field: Field, x_t: Tensor, t: Tensor, s: Tensor | None = None) -> Tensor:
        """u(x_t, t, s) of network, teacher or exact field, or v without s.

        Teacher and exact field are along this path. A teacher without second time answers v. It is
        guided if the network is. Raises FmdiffError if the teacher or the exact field was not set.
        """
        if self.velocity in ("data", "network"):
            x_t, t = self.inside(field, x_t, t) if s is None else (x_t, t)
            return field.predict(x_t, t, "straight", s)
        other = self.teacher if self.velocity == "teacher" else self.truth
        if other is None:
            name = "teacher" if self.velocity == "teacher" else "truth"
            raise FmdiffError(f"objective.velocity={self.velocity}: set `{name}`, a field, first")
        s = s if other.two_times else None
        x_t, t = self.inside(other, x_t, t) if s is None else (x_t, t)
        if field.y is None or not (other.classes or other.conditions):
            return other.predict(x_t, t, "straight", s)
        u = other.bind(field.y).predict(x_t, t, "straight", s)
        if not (isinstance(field, NetField) and field.w is not None):
            return u
        guide = other.bind(null(field.y, other.classes))
        return torch.lerp(guide.predict(x_t, t, "straight", s), u, expand(field.w, u))

    def inside(self, field: Field, x_t: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
        """The state and time where to ask for a velocity, of the same straight state.

        Beside an end at which a prediction gives no finite velocity, as of x at the data, it is
        that of the end of the field's interval. Its error would grow without bound.
        """
        if self.prediction in ("v", "v_sh") and self.velocity != "teacher":
            return x_t, t
        low, high = field.interval("straight")
        m = t.clamp(low, high)
        return moved(self.path, x_t, t, m, torch.zeros_like(x_t)), m

    def guided(self, field: NetField, x_t: Tensor, t: Tensor, w: Tensor) -> Tensor:
        """null + scale (w - null), the pair's velocity w for a network that is told the scale."""
        if field.y is None or field.w is None:
            return w
        guide = copy.copy(field)
        guide.w, guide.y = None, null(field.y, self.classes)
        scale = torch.where(dropped(field.y, self.classes), 1, field.w)
        return torch.lerp(guide.predict(x_t, t, "straight"), w, expand(scale, w))


def _number(value: object) -> bool:
    return type(value) in (int, float) and math.isfinite(value)  # type: ignore[arg-type]


def _interval(value: object) -> bool:
    """Whether this is a list of two numbers, 1 <= lo <= hi."""
    if not isinstance(value, Sequence) or len(value) != 2 or not all(map(_number, value)):
        return False
    return bool(1 <= value[0] <= value[1])


def _rows(field: NetField, rows: Tensor) -> NetField:
    """The field for some rows of its batch."""
    part = copy.copy(field)
    part.y = None if field.y is None else field.y[rows]
    part.w = None if field.w is None else field.w[rows]
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
