"""Guided fields: what a solver sees under guidance, and the rules that join the two branches."""

import copy
import math

import torch
import torch.nn.functional as F
from torch import Tensor

from fmdiff.along import Around, of_estimate
from fmdiff.condition import Given, join, null, within
from fmdiff.custom import Strength
from fmdiff.errors import FmdiffError
from fmdiff.field import Field
from fmdiff.path import Kind, expand

FLAT = 1e-5  # an image whose std is a smaller share of its size is constant up to rounding


class Guided(Around):
    """The guided field guide + w (v(x_t, y) - guide).

    The guide is another field or, in classifier-free guidance (Ho & Salimans 2022,
    arXiv:2207.12598), the same field without the label and conditions of y, or without those of
    `on`. If r lies outside `interval` = [lo, hi], only the conditional branch is computed
    (Kynkaanniemi et al. 2024, arXiv:2404.07724; their noise levels are (1 - r) / r).

    `joint` is the kind of quantity in which the branches are joined. None is any, for this rule
    is the same in all of them. A subclass has another rule, `joined`.
    """

    evaluations = 0  # rows evaluated by either network
    joint: Kind | None = None

    def __init__(
        self,
        field: Field,
        y: Given | None,
        w: Strength,
        interval: list[float] | None = None,
        guide: Field | None = None,
        on: list[str] | None = None,
    ) -> None:
        super().__init__(field)
        self.branches, self.y, self.w, self.guide, self.on = 2, y, w, guide, on
        self.gaussian = field.gaussian and (guide is None or guide.gaussian)
        self.ends = interval

    def joined(self, guide: Tensor, conditional: Tensor, x_t: Tensor, t: Tensor) -> Tensor:
        """The guided quantity of kind `joint` at x_t, from those of the two branches."""
        return torch.lerp(guide, conditional, self.w(self.path, x_t, t))

    def reset(self) -> None:
        self.evaluations = 0

    def select(self, rows: Tensor) -> "Guided":
        part = copy.copy(self)
        part.y = None if self.y is None else self.y[rows]
        return part

    def prior(self, z: Tensor, t: Tensor) -> Tensor:
        return self._branch().prior(z, t)

    def inside(self, t: Tensor) -> Tensor:
        """Whether there is guidance at t: bool, shaped like t."""
        if self.ends is None:
            return torch.ones_like(t, dtype=torch.bool)
        r = self.path.r(t)
        return (self.ends[0] <= r) & (r <= self.ends[1])

    def price(self, t: Tensor) -> int:
        return 2 if self.inside(t) else 1

    def predict(self, x_t: Tensor, t: Tensor, kind: Kind, s: Tensor | None = None) -> Tensor:
        inside, answered = self.inside(t), self.joint or kind
        if inside.all():
            value = self._guided(x_t, t, self.y, answered, s)
        elif not inside.any():
            value = self._ask(self.field, x_t, t, self.y, kind, s)
            answered = kind
        else:  # an adaptive solver's rows, each at its own time
            rows = inside.to(x_t.device)
            value = torch.empty_like(x_t)
            for some, answer in ((rows, self._guided), (~rows, self._conditional)):
                y = None if self.y is None else self.y[some]
                end = s if s is None or not s.ndim else s[some.to(s.device)]
                value[some] = answer(x_t[some], t[some.to(t.device)], y, answered, end)
        return self.path.convert(value, x_t, t, answered, kind)

    def _guided(
        self, x_t: Tensor, t: Tensor, y: Given | None, kind: Kind, s: Tensor | None
    ) -> Tensor:
        if self.guide is None:
            assert y is not None
            twice, ends = (torch.cat([a, a]) if a is not None and a.ndim else a for a in (t, s))
            assert twice is not None
            both = join([null(y, self.classes, self.on), y])
            answer = self._ask(self.field, torch.cat([x_t, x_t]), twice, both, kind, ends)
            guide, conditional = answer.chunk(2)
        else:
            guide = self._ask(
                self.guide, x_t, t, within(y, self.guide.classes, self.guide.conditions), kind, s
            )
            conditional = self._conditional(x_t, t, y, kind, s)
        return self.joined(guide, conditional, x_t, t)

    def _conditional(
        self, x_t: Tensor, t: Tensor, y: Given | None, kind: Kind, s: Tensor | None
    ) -> Tensor:
        return self._ask(self.field, x_t, t, y, kind, s)

    def _ask(
        self,
        field: Field,
        x_t: Tensor,
        t: Tensor,
        y: Given | None,
        kind: Kind,
        s: Tensor | None,
    ) -> Tensor:
        branch = field if y is None else field.bind(y)
        before = branch.evaluations
        answer = branch.predict(x_t, t, kind, s)
        self.evaluations += branch.evaluations - before
        return answer

    def interval(self, kind: Kind = "v") -> tuple[float, float]:
        fields, kinds = filter(None, (self.field, self.guide)), {kind, self.joint or kind}
        ends = [field.interval(each) for field in fields for each in kinds]
        return max(lo for lo, _ in ends), min(hi for _, hi in ends)

    def start(self, eps: Tensor, t: Tensor, first: int, seed: int) -> Tensor:
        return self._branch().start(eps, t, first, seed)

    def _branch(self) -> Field:
        return self.field if self.y is None else self.field.bind(self.y)


class Rescaled(Guided):
    """The estimate of x becomes phi x std(conditional) / std(x) + (1 - phi) x.

    The std is taken over each sample (Lin et al. 2023, arXiv:2305.08891, section 3.4).
    """

    joint = "x"

    def __init__(
        self,
        field: Field,
        y: Given | None,
        w: Strength,
        phi: float,
        interval: list[float] | None = None,
        on: list[str] | None = None,
    ) -> None:
        super().__init__(field, y, w, interval, on=on)
        self.phi = phi

    def joined(self, guide: Tensor, conditional: Tensor, x_t: Tensor, t: Tensor) -> Tensor:
        value = super().joined(guide, conditional, x_t, t)
        usual, std = (v.flatten(1).std(1) for v in (conditional, value))
        least = FLAT * value.flatten(1).square().mean(1).sqrt()
        ratio = torch.where(std > least, usual / std, 1)  # a constant image stays as it is
        return value * expand(self.phi * ratio + 1 - self.phi, value)

    def interval(self, kind: Kind = "v") -> tuple[float, float]:
        (lo, hi), (first, last) = super().interval(kind), of_estimate(self.field, kind)
        return max(lo, first), min(hi, last)


class Projected(Guided):
    r"""Adaptive projected guidance (Sadat et al. 2024, arXiv:2410.02416, algorithm 1).

    With D the estimates of x of the two branches and d = D(x_t, y) - guide,

        d <- d + momentum d of the question before,     d <- d min(1, threshold / |d|),
        x = D(x_t, y) + (w - 1) (d_orthogonal + eta d_parallel),

    where d_parallel is the part of d along D(x_t, y). Norms and products are of a whole sample.
    The parallel part depends on where 0 lies in the space of the data. eta = 1 without threshold
    and momentum is the linear rule. The straight velocity v changes with x, d = (1 - r) dv, and
    the rule is computed in v: nothing is divided by the noise unless there is momentum.

    The sum is a memory of the trajectory, so with momentum v is no function of x and t. In the
    limit of many steps it is d / (1 - momentum), a change of w and threshold alone. It needs a
    solver that asks at growing times; `reset` forgets.

    Raises FmdiffError when asked otherwise with momentum.
    """

    joint = "straight"

    def __init__(
        self,
        field: Field,
        y: Given | None,
        w: Strength,
        eta: float,
        threshold: float | None = None,
        momentum: float = 0.0,
        interval: list[float] | None = None,
        on: list[str] | None = None,
    ) -> None:
        super().__init__(field, y, w, interval, on=on)
        self.eta, self.threshold, self.momentum = eta, threshold, momentum
        self.memory: tuple[Tensor, Tensor] | None = None  # the sum (B, *shape) and its time ()

    def joined(self, guide: Tensor, conditional: Tensor, x_t: Tensor, t: Tensor) -> Tensor:
        share = expand(1 - self.path.r(t), x_t).to(x_t)
        change = conditional - guide
        if self.momentum:
            change = self._sum(share * change, t) / share
        if self.threshold is not None:
            size = torch.linalg.vector_norm((share * change).flatten(1), dim=1)
            change = change * expand(self.threshold / size.clamp(min=self.threshold), change)
        x = self.path.convert(conditional, x_t, t, "straight", "x")
        axis = F.normalize(x.flatten(1), dim=1).view_as(x)
        parallel = expand((change * axis).flatten(1).sum(1), x) * axis
        return conditional + (self.w(self.path, x_t, t) - 1) * (change - (1 - self.eta) * parallel)

    def _sum(self, change: Tensor, t: Tensor) -> Tensor:
        """The sum of the changes (B, *shape) of x up to time t ()."""
        if t.ndim or (self.memory is not None and not t > self.memory[1]):
            raise self._out_of_order()
        if self.memory is not None:
            change = change + self.momentum * self.memory[0]
        self.memory = change, t
        return change

    def _out_of_order(self) -> FmdiffError:
        return FmdiffError(
            f"guidance.momentum={self.momentum:g} adds up the changes on the way from noise to "
            "data, so it needs a solver that asks at growing times: choose euler, adams, "
            "dpmpp_2m, unipc or deis, or guidance.momentum=0"
        )

    def reset(self) -> None:
        super().reset()
        self.memory = None

    def select(self, rows: Tensor) -> Guided:
        if self.momentum:
            raise self._out_of_order()
        return super().select(rows)

    def interval(self, kind: Kind = "v") -> tuple[float, float]:
        ends = [super().interval(kind)] + [of_estimate(self.field, kind)] * bool(self.momentum)
        return max(lo for lo, _ in ends), min(hi for _, hi in ends)


class Scaled(Guided):
    """CFG-Zero* (Fan et al. 2025, arXiv:2503.18886): s guide + w (v(x_t, y) - s guide).

    s = <v(x_t, y), guide> / |guide|^2 of each sample makes |v(x_t, y) - s guide| least. v is the
    straight velocity E[x - eps | x_t], as in the paper, whatever the path is. s guide keeps only
    the direction of the guide, so v jumps where the guide is 0, which matters in few dimensions.
    """

    joint = "straight"

    def joined(self, guide: Tensor, conditional: Tensor, x_t: Tensor, t: Tensor) -> Tensor:
        product, square = ((v * guide).flatten(1).sum(1) for v in (conditional, guide))
        least = torch.finfo(guide.dtype).eps ** 2  # of a guide that is 0
        scale = product / square.clamp(min=least)
        return super().joined(expand(scale, guide) * guide, conditional, x_t, t)


class Late(Around):
    """The field that begins at the straight time `begin`, with the states of its first time.

    So the straight velocity is 0 before, which is CFG-Zero*'s zero-init: N steps of euler of
    which the first K stand still are N - K steps from begin = K / N.
    """

    def __init__(self, field: Field, begin: float) -> None:
        super().__init__(field)
        self.begin = begin

    def predict(self, x_t: Tensor, t: Tensor, kind: Kind, s: Tensor | None = None) -> Tensor:
        return self.field.predict(x_t, t, kind, s)

    def interval(self, kind: Kind = "v") -> tuple[float, float]:
        lo, hi = self.field.interval(kind)
        begin = self.path.time_of_r(torch.tensor(self.begin, dtype=torch.float64)).item()
        return min(max(lo, begin), hi), hi

    def start(self, eps: Tensor, t: Tensor, first: int, seed: int) -> Tensor:
        before, scale = self._before(t)
        return scale.to(eps) * self.field.start(eps, before, first, seed)

    def prior(self, z: Tensor, t: Tensor) -> Tensor:
        before, scale = self._before(t)
        return self.field.prior(z / scale.to(z), before) - math.prod(self.shape) * scale.log()

    def _before(self, t: Tensor) -> tuple[Tensor, Tensor]:
        """The time of which the states at t () are, and by how much those at t are larger."""
        if self.path.r(t) > self.begin + 1e-6:  # a law of steps may begin later
            return t, torch.ones_like(t)
        before = torch.tensor(self.field.interval("straight")[0], dtype=torch.float64)
        sizes = [self.path.alpha(at) + self.path.beta(at) for at in (t, before)]
        return before, sizes[0] / sizes[1]
