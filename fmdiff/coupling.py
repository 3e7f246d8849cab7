"""Couplings: which source sample of a batch is paired with which data sample.

A coupling reorders only eps, so labels stay with their x. With labels it pairs within each class.
Otherwise the noise would tell the class, and the source of a class would not be the source (Tong
et al. 2024, arXiv:2302.00482; Pooladian et al. 2023, arXiv:2304.14772). `Reflow` is another kind:
its pairs come from a teacher and take the place of data and noise. The score is known only for the
independent coupling.
"""

from abc import ABC, abstractmethod
from dataclasses import dataclass

import torch
from torch import Generator, Tensor

from fmdiff.build import Described
from fmdiff.condition import Given
from fmdiff.errors import FmdiffError
from fmdiff.randomness import generator, positions


def transport_cost(x: Tensor, eps: Tensor) -> Tensor:
    """Mean over the batch of |x_i - eps_i|^2, summed over all dimensions: ()."""
    return (x - eps).square().flatten(1).sum(1).mean()


class Coupling(Described, ABC):
    """Gives index (B,) int64, a function of batch, seed and step; eps[index] is paired with x.

    x, eps (B, *shape) are the global batch of a step, over all devices. y (B,) are the labels
    before any is dropped, or None. To write your own, derive from this class and define `pair`.
    """

    independent = False  # whether eps stays independent of x
    permutes = True  # whether it reorders the noise of a batch

    def __call__(self, x: Tensor, eps: Tensor, y: Tensor | None, seed: int, step: int) -> Tensor:
        draws = generator(seed, "coupling", step)
        index = torch.arange(len(x), device=x.device)
        groups = [index]
        if y is not None:
            groups = [torch.where(y == c)[0] for c in torch.unique(y)]
        index = index.clone()
        for places in groups:
            pairs = self.pair(x[places].flatten(1), eps[places].flatten(1), draws)
            index[places] = places[pairs.to(x.device)]
        return index

    def block(
        self, x: Tensor, eps: Tensor, y: Tensor | None, seed: int, steps: range
    ) -> tuple[Tensor, Tensor]:
        """The index (K, B) of each of K steps, and (K, 2) its transport cost and that without it.

        x, eps (K B, *shape), y (K B,) or None are the batches of the steps, one after another.
        """
        count, index, costs = len(steps), [], []
        labels = [None] * count if y is None else y.chunk(count)
        for k, a, b, c in zip(steps, x.chunk(count), eps.chunk(count), labels, strict=True):
            index.append(self(a, b, c, seed, k))
            costs += [transport_cost(a, b[index[-1]]), transport_cost(a, b)]
        return torch.stack(index), torch.stack(costs).view(-1, 2)

    def check(self, n: int, shape: tuple[int, ...], memory: int) -> None:
        """Raises FmdiffError if pairing n samples of this shape takes more bytes than `memory`."""
        need = 24 * n * n  # three matrices of float64
        if need > memory:
            raise FmdiffError(
                f"data.batch_size={n}: to pair {n:,} samples takes {need / 1e9:,.0f} GB, and this "
                f"machine has {memory / 1e9:,.0f} GB; choose a smaller one, "
                "or coupling=independent"
            )

    @abstractmethod
    def pair(self, x: Tensor, eps: Tensor, draws: Generator) -> Tensor:
        """The row of eps (n, d) for each row of x (n, d): (n,) int64."""


class Independent(Coupling):
    """Leaves eps as it was drawn."""

    independent = True
    permutes = False

    def check(self, n: int, shape: tuple[int, ...], memory: int) -> None:
        pass

    def pair(self, x: Tensor, eps: Tensor, draws: Generator) -> Tensor:
        return torch.arange(len(x))


class OT(Coupling):
    """The permutation pi that minimises sum_i |x_i - eps_pi(i)|^2, exactly.

    On the line it sorts. Otherwise it minimises sum_i C_i,pi(i) for C = -x eps^T, in float64 on
    the CPU. A number subtracted from a row or a column of C changes the cost of every permutation
    by the same sum. So the `potentials` are subtracted first: the optimum stays, and the search
    for it is shorter.

    On one core, 256 points of the plane take 2 ms, and 1024 take 45 to 65 ms.
    Raises FmdiffError without SciPy.
    """

    FEW = 96  # up to this many points the plain search is as fast

    def check(self, n: int, shape: tuple[int, ...], memory: int) -> None:
        if torch.Size(shape).numel() > 1:  # on the line there is no matrix
            super().check(n, shape, memory)

    def pair(self, x: Tensor, eps: Tensor, draws: Generator) -> Tensor:
        if x.shape[1] == 1:
            index = torch.empty(len(x), dtype=torch.int64, device=x.device)
            index[x[:, 0].argsort(stable=True)] = eps[:, 0].argsort(stable=True)
            return index
        try:
            from scipy.optimize import linear_sum_assignment
        except ImportError as error:
            raise FmdiffError("coupling=ot needs SciPy: pip install scipy") from error
        cost = -(x.double() @ eps.double().T).cpu()
        if len(x) > self.FEW:
            f, g = potentials(cost.float())
            cost = cost.sub_(f[:, None]).sub_(g)
        return torch.from_numpy(linear_sum_assignment(cost.numpy())[1])


@torch.no_grad()
def potentials(cost: Tensor) -> tuple[Tensor, Tensor]:
    r"""Nearly the dual optimum f, g (n,), float64: cost_ij - f_i - g_j is near 0 for its pairs.

    cost (n, n), float32, is changed in place. float32 suffices because f and g need not be exact.
    They begin as the minima of the rows, then of the columns. The remaining cost, of mean m, has
    the entropic plan

        P_ij = exp((f_i + g_j - cost_ij) / r),   rows and columns of sum 1,

    reached by 6 alternating scalings of columns and rows for each of r = m / 4, m / 16 ...
    m / 1024. While f and g stay, a quarter of r turns P into P^4 (Schmitzer 2019,
    arXiv:1610.06519). Both are zeros if the costs are beyond what float32 can hold.
    """
    rows = cost.amin(1)
    cost -= rows[:, None]
    columns = cost.amin(0)
    cost -= columns
    mean, r = cost.mean(), 1.0
    plan = cost.div_(-mean).exp_()
    f, g = torch.zeros(2, len(cost))
    u = v = ones = torch.ones(len(cost))
    for _ in range(5):
        r /= 4
        # the lower bound keeps the sums above 0 and avoids slow subnormal numbers
        plan.mul_(u[:, None]).mul_(v).clamp_(min=1e-9).square_().square_()
        u = ones
        for _ in range(6):
            v = (u @ plan).reciprocal_()
            u = (plan @ v).reciprocal_()
        f += r * u.log()
        g += r * v.log()
    f, g = (rows + f * mean).double(), (columns + g * mean).double()
    if f.isfinite().all() and g.isfinite().all():
        return f, g
    zero = torch.zeros(len(cost), dtype=torch.float64)
    return zero, zero


class Sinkhorn(Coupling):
    r"""Draws eps_j for x_i from row i of the entropic plan P, which gives no permutation.

    P minimises sum_ij P_ij C_ij + r sum_ij P_ij log P_ij over plans with marginals 1/n, with
    C_ij = |x_i - eps_j|^2 and r = reg mean(C) (Cuturi 2013, arXiv:1306.0895), by alternating
    scalings of rows and columns in the log domain. reg -> 0 is OT, but needs ever more
    iterations; reg -> infinity pairs at random. 50 iterations on 256 points take 13 ms.

    Raises FmdiffError unless reg > 0 and iterations >= 1.
    """

    def __init__(self, reg: float, iterations: int) -> None:
        if not isinstance(reg, int | float) or not 0 < reg < float("inf"):
            raise FmdiffError(f"coupling.reg={reg} must be a finite number > 0")
        if not (isinstance(iterations, int) and iterations >= 1):
            raise FmdiffError(f"coupling.iterations={iterations} must be an integer >= 1")
        self.reg, self.iterations = reg, iterations

    def plan(self, x: Tensor, eps: Tensor) -> Tensor:
        """P (n, n), float64, of x and eps (n, d); its rows sum to 1/n up to rounding."""
        x, eps = x.double(), eps.double()
        cost = torch.cdist(x, eps, compute_mode="donot_use_mm_for_euclid_dist").square()
        scaled = -cost / (self.reg * cost.mean())
        f = g = scaled.new_zeros(len(x))
        for _ in range(self.iterations):
            g = -(scaled + f[:, None]).logsumexp(0)
            f = -(scaled + g).logsumexp(1)
        return (scaled + f[:, None] + g).exp() / len(x)

    def pair(self, x: Tensor, eps: Tensor, draws: Generator) -> Tensor:
        return torch.multinomial(self.plan(x, eps).cpu(), 1, generator=draws)[:, 0]


class Reflow(Coupling):
    """Pairs (eps, X(eps)) of the ODE of a teacher, as in rectified flow.

    X(eps) is where the teacher's flow leads the noise eps (Liu et al. 2023, arXiv:2209.03003). The
    lines from eps to X(eps) cross less than those of independent pairs. So a network trained on
    them has straighter trajectories, with the same marginals (section 3 there). It may be the
    teacher of another (RF-3).

    The keys only describe the pairs. `fmdiff.training.reflow` makes them, so that a checkpoint can
    be sampled without its teacher. The pairs themselves are `Pairs`.
    """

    permutes = False

    def __init__(
        self,
        ckpt: str | None,
        weights: str | float,
        n: int | None,
        solver: str,
        steps: int | None,
        w: float,
        seed: int,
        trust: list[str],
    ) -> None:
        self.ckpt, self.weights, self.trust = ckpt, weights, trust
        self.n, self.solver, self.steps, self.w, self.seed = n, solver, steps, w, seed

    def check(self, n: int, shape: tuple[int, ...], memory: int) -> None:
        pass

    def pair(self, x: Tensor, eps: Tensor, draws: Generator) -> Tensor:
        return torch.arange(len(x))


@dataclass(frozen=True, eq=False)
class Pairs:
    """The pairs of a teacher, which take the place of data and noise.

    The first n are for training, and the others are held out. All are on the CPU.
    """

    eps: Tensor  # (m, *shape), float32, m > n
    x: Tensor  # (m, *shape), float32: X(eps)
    y: Given | None  # the labels (m,), int64, and conditions for which the teacher was asked
    n: int
    teacher: str  # the SHA-256 of the teacher
    straightness: float  # of the teacher: `inversion.Shape.relative`

    def batches(
        self, seed: int, steps: range, size: int, rows: slice, device: torch.device
    ) -> tuple[Tensor, Given | None, Tensor]:
        """x, y and eps of `rows` of the global batches of these steps; each pair once an epoch."""
        index = [positions(seed, k, size, self.n)[rows] for k in steps]
        return self.take(torch.cat(index), device)

    def held_out(self, device: torch.device) -> tuple[Tensor, Given | None, Tensor]:
        """x, y and eps of the pairs that are never trained on."""
        return self.take(torch.arange(self.n, len(self.x)), device)

    def take(self, index: Tensor, device: torch.device) -> tuple[Tensor, Given | None, Tensor]:
        """x, y and eps of the pairs of these numbers, on a device."""
        y = None if self.y is None else self.y[index].to(device)
        return self.x[index].to(device), y, self.eps[index].to(device)
