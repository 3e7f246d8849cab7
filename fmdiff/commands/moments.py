"""Moments of random paths of fmdiff simulate, with standard errors and what theory says."""

import math

from torch import Tensor

from fmdiff.commands.orders import Row, Table, components
from fmdiff.systems import Mixed, OrnsteinUhlenbeck, System


def statistics(system: System, times: Tensor, states: Tensor, ode: Tensor | None) -> Table:
    """Moments of states (M, n, d) at times (M,): value, standard error, 95 % interval, theory.

    The paths from each of several starts have rows of their own. ode: the ODE's states (n, d) at
    the last time, for the paths of a mixture.
    """
    header: list = ["quantity", "value", "standard_error", "low95", "high95", "theory", "ode"]
    if isinstance(system, OrnsteinUhlenbeck):
        header = header[:-1]
    m = system.count
    table: Table = [[*(["start"] if m > 1 else []), *header]]
    for i in range(m):
        own = None if ode is None else ode[i::m]
        rows = _of_start(system, system.starts(i, i + 1, 0), times, states[:, i::m], own)
        table += [[*([i + 1] if m > 1 else []), *row[: len(header)]] for row in rows]
    return table


def _of_start(
    system: System, start: Tensor, times: Tensor, states: Tensor, ode: Tensor | None
) -> list[Row]:
    n = states.shape[1]
    centred = (states - states.mean(1, keepdim=True)) * math.sqrt(n / (n - 1))
    if isinstance(system, OrnsteinUhlenbeck):
        return _moments_over_time(system, start, times, states, centred)
    assert isinstance(system, Mixed)
    return _moments_of_mixture(system, times[-1], states[-1], centred[-1], ode)


def _mean(
    name: str, each: Tensor, theory: float | Tensor | None, ode: Tensor | None = None
) -> Row:
    """The row of a quantity that is a mean over paths, each (n,)."""
    mean, error = each.mean().item(), each.std().item() / math.sqrt(len(each))
    ends = [mean - 1.96 * error, mean + 1.96 * error]
    rest = [None if value is None else float(value) for value in (theory, ode)]
    return [name, mean, error, *ends, *rest]


def _moments_over_time(
    system: OrnsteinUhlenbeck, start: Tensor, times: Tensor, states: Tensor, centred: Tensor
) -> list[Row]:
    """The means of states (M, n, 1) from a start (1, 1), and the covariances of all times."""
    rows = []
    for t, x in zip(times, states, strict=True):
        rows.append(_mean(f"mean({t:g})", x[:, 0], system.solution(start, t)))
    for i, s in enumerate(times):
        for t, c in zip(times[i:], centred[i:], strict=True):
            name = f"variance({t:g})" if s == t else f"covariance({s:g},{t:g})"
            rows.append(_mean(name, (centred[i] * c)[:, 0], system.covariance(s, t)))
    return rows


def _moments_of_mixture(
    system: Mixed, t: Tensor, x: Tensor, centred: Tensor, ode: Tensor | None
) -> list[Row]:
    """Means and variances of states x (n, d) at time t, and how many are near each mode."""
    rows, d = [], x.shape[1]
    lawful = system.origin is None  # the law p_t follows from normal starts alone
    mean, cov = system.moments(t)
    for i, (a, b) in enumerate(zip(components("mean", d), components("variance", d), strict=True)):
        rows.append(_mean(a, x[:, i], mean[i] if lawful else None))
        rows.append(_mean(b, centred[:, i] ** 2, cov[i, i] if lawful else None))
    weights = system.weights / system.weights.sum()
    near = system.nearest(x, t)
    near_by_ode = None if ode is None else system.nearest(ode, t)
    for k, centre in enumerate(system.means.tolist()):
        share = None if near_by_ode is None else (near_by_ode == k).double().mean()
        name = f"share of mode [{' '.join(f'{value:g}' for value in centre)}]"
        rows.append(_mean(name, (near == k).double(), weights[k] if lawful else None, share))
    return rows
