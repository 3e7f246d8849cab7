"""The error of a flow map against the exact one, by its two times, and what it bounds."""

import math
from collections.abc import Sequence
from itertools import pairwise
from typing import NamedTuple

import torch
from torch import Tensor
from tqdm import tqdm

from fmdiff.data.base import Data
from fmdiff.errors import FmdiffError
from fmdiff.field import Field
from fmdiff.metrics.metric import Metric, normal_interval
from fmdiff.path import Path
from fmdiff.randomness import noise
from fmdiff.source import need_gaussian

COUNTS = (1, 2, 4, 8)  # jumps in a row from noise to data
EXACT = "the exact map"


class Jump(NamedTuple):
    """The errors |X_theta(x_t, t, s) - X(x_t, t, s)| over x_t of the exact p_t.

    They are Euclidean distances in straight coordinates, in units of the data's std.
    """

    t: float
    s: float
    jumps: int  # in a row, in equal steps of straight time
    rms: float
    rms_error: float  # standard error of rms
    median: float
    outliers: float | None  # share beyond half the least distance of two modes; None for one mode


class MapErrors(NamedTuple):
    """The errors of a map: of single jumps over a grid of (t, s), and of jumps in a row."""

    pairs: list[Jump]
    rows: list[Jump]  # from the first time to the last one, by 1, 2, 4 and 8 jumps
    std: float  # of the data, the unit of the errors
    apart: float | None  # from where on an error is an outlier, in this unit


def apart(data: Data) -> float | None:
    """Half the least distance of two modes of a mixture in units of the std; None for one mode."""
    mixture = data.mixture()
    assert mixture is not None  # the exact field needs one
    weights, means, _ = mixture
    distances = torch.pdist(means[weights > 0].double())
    least = distances[distances > 0]
    return least.min().item() / 2 / data.std if len(least) else None


def scale(path: Path, t: Tensor) -> float:
    """The factor of the straight state in x_t at t ()."""
    return (path.alpha(t) + path.beta(t)).item()


def equal(path: Path, t: float, s: float, parts: int) -> Tensor:
    """The ends (parts + 1,) of parts of [t, s] that are equal in straight time."""
    ends = torch.tensor([t, s], dtype=torch.float64)
    first, last = path.r(ends).tolist()
    inner = torch.linspace(first, last, parts + 1, dtype=torch.float64)[1:-1]
    return torch.cat([ends[:1], path.time_of_r(inner), ends[1:]])


@torch.no_grad()
def compare(
    field: Field,
    truth: Field,
    data: Data,
    times: int = 10,
    n: int = 10_000,
    seed: int = 0,
    device: torch.device | str = "cpu",
) -> MapErrors:
    """Compare the maps of two fields with `two_times` between the ends of `times` parts of time.

    The parts are equal in straight time, as the steps of a solver are. All x_t lie on n exact
    trajectories: one that starts from a sample of the first p_t is a sample of every later one,
    and its later states are where the exact map leads. A map that was trained to jump to the data
    alone is compared at s = 1, and by one jump.

    Raises FmdiffError unless the source is normal and independent of x, and for states of the map
    that are not finite.
    """
    need_gaussian(field, "against=exact")
    lo = max(each.interval("straight")[0] for each in (field, truth))
    knots = equal(field.path, lo, 1, times)
    x, y = data.sample(0, n, seed)
    x = x.to(device, torch.float64)
    if y is not None:
        field, truth = field.bind(y.to(device)), truth.bind(y.to(device))
    eps = noise(0, n, field.shape, seed, "evaluate", times).to(x)
    first = field.path.mix(x, eps, knots[0])
    states = [first]
    for t, s in pairwise(knots):
        states.append(truth.flow(states[-1], t, s))
    limit = apart(data)

    def row(ends: Tensor, t: Tensor, j: int, jumps: int = 1) -> Jump:
        """The errors of states (n, *shape) to which the map leads from time t to knot j."""
        s = knots[j]
        if not ends.isfinite().all():
            raise FmdiffError(
                f"the map leads to states that are not finite, from t={t:.3g} to s={s:.3g}: its "
                "weights are damaged, or its training diverged"
            )
        unit = data.std * scale(field.path, s)
        distances = (ends - states[j]).flatten(1).norm(dim=1) / unit
        return _row(distances, t.item(), s.item(), jumps, limit)

    pairs = []
    for i in tqdm(range(times), unit="time", disable=None, leave=False):
        for j in range(times if field.consistency else i + 1, times + 1):
            pairs.append(row(field.flow(states[i], knots[i], knots[j]), knots[i], j))
    rows = []
    for jumps in COUNTS[:1] if field.consistency else COUNTS:
        way, state = equal(field.path, lo, 1, jumps), first
        for t, s in pairwise(way):
            state = field.flow(state, t, s)
        rows.append(row(state, way[0], times, jumps))
    return MapErrors(pairs, rows, data.std, limit)


def _row(errors: Tensor, t: float, s: float, jumps: int, limit: float | None) -> Jump:
    squares = errors.square()
    rms = squares.mean().sqrt().item()
    # d sqrt(m) = dm / (2 sqrt(m))
    error = squares.std().item() / math.sqrt(len(errors)) / (2 * rms) if rms else 0.0
    outliers = None if limit is None else (errors > limit).double().mean().item()
    return Jump(t, s, jumps, rms, error, errors.median().item(), outliers)


def metrics(errors: MapErrors, path: Path, n: int) -> dict[str, Metric]:
    """w2_bound in the units of the data, and map_rms over all pairs in those of their std.

    All pairs are of the same n trajectories, so map_rms has the mean of their errors.
    """
    first, pairs = errors.rows[0], errors.pairs
    unit = errors.std * scale(path, torch.tensor(first.s, dtype=torch.float64))
    bound, se = unit * first.rms, unit * first.rms_error
    rms = math.sqrt(sum(pair.rms**2 for pair in pairs) / len(pairs))
    slope = sum(pair.rms * pair.rms_error for pair in pairs) / len(pairs)
    extra = {"median": unit * first.median, "outliers": first.outliers, "std": errors.std}
    return {
        "w2_bound": Metric(bound, n, se, normal_interval(bound, se), reference=EXACT, extra=extra),
        "map_rms": Metric(rms, n, slope / rms if rms else 0.0, reference=EXACT),
    }


def certificate(errors: MapErrors, bound: Metric, path: Path) -> str:
    """A sentence that says what `w2_bound` bounds.

    The samples X_theta(eps, 0, 1) and the exact X(eps, 0, 1), which are data, are a coupling, and
    W2 is the least root mean square distance of all couplings. A path that holds data at t = 0 is
    started from exact states of p_t, and one that holds noise at t = 1 leads to data with it.
    """
    ends = torch.tensor([errors.rows[0].t, errors.rows[0].s], dtype=torch.float64)
    first, last = path.r(ends).tolist()
    start = "noise" if first == 0 else f"exact states at t={ends[0]:.3g} (r={first:.3g})"
    end = "data" if last == 1 else f"data with the noise of t=1 (1-r={1 - last:.2g})"
    return (
        f"one jump from {start}: W2(samples, {end}) <= {bound.value:.4g} +- {bound.se:.1g}, "
        f"{errors.rows[0].rms:.3g} of the data's std"
    )


def triangle(
    pairs: Sequence[Jump], name: str
) -> tuple[list[float], list[float], list[list[float]]]:
    """The starts t (N), the ends s (N), and a field of each Jump: values[s][t], or NaN."""
    starts, ends = sorted({pair.t for pair in pairs}), sorted({pair.s for pair in pairs})
    of = {(pair.s, pair.t): pair._asdict()[name] for pair in pairs}
    return starts, ends, [[of.get((s, t), math.nan) for t in starts] for s in ends]
