"""Pictures of `fmdiff simulate`: fields with trajectories, paths against time, errors.

`upto` draws the states of the first `upto` steps on the axes of all states, as a frame of an
animation. All arrays are float64: times (S+1,), states (S+1, n, d).
"""

from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np

from fmdiff.pictures.style import (
    COLORS,
    DATA,
    EXACT,
    FRAME,
    INK,
    LINE,
    SAMPLES,
    THICK,
    THIN,
    TICK,
    entitle,
    logarithmic,
    panels,
    series,
)

if TYPE_CHECKING:
    from matplotlib.figure import Figure

NUMBERED = 20  # starts that are numbered in a picture

Velocity = Callable[[np.ndarray, float], np.ndarray]  # u(x (B, d), t) -> (B, d)


def time_plot(
    times: np.ndarray,
    states: np.ndarray,
    fine: tuple[np.ndarray, np.ndarray],
    velocity: Velocity,
    label: str,
    upto: int | None = None,
) -> "Figure":
    """Plot paths (S+1, m, d) against t with the exact (times, states) and, for d = 1, slopes."""
    see = "The gap between the lines is the solver's error."
    if states.shape[2] == 1:
        see = "Arrows: the slopes of the field. " + see
    figure, [ax] = panels(5.2, 3.2, see=see)
    both = np.concatenate([states, fine[1]])
    low, high = _box(both.reshape(-1, 1))
    if states.shape[2] == 1:
        t, x = np.meshgrid(
            np.linspace(times[0], times[-1], 17), np.linspace(low[0], high[0], 13), indexing="ij"
        )
        u = np.stack([velocity(x[i][:, None], t[i, 0])[:, 0] for i in range(len(t))])
        # arrows of equal length on the paper, with the slopes of one step
        across, along = np.full_like(u, 1 / np.ptp(times)), u / (high[0] - low[0])
        length = np.hypot(across, along)
        ax.quiver(t, x, across / length, along / length, color=FRAME, scale=32, width=0.003)
    last = _last(upto, times)
    for i in range(states.shape[2]):
        name = "" if states.shape[2] == 1 else f" $x_{{{i + 1}}}$"
        exact = ax.plot(fine[0], fine[1][..., i], color=COLORS[(i + 1) % len(COLORS)], lw=THICK)
        lines = ax.plot(
            times[:last], states[:last, :, i], "o-", color=COLORS[i % len(COLORS)], ms=3, lw=LINE
        )
        exact[0].set_label("exact" + name)
        lines[0].set_label(label + name)
    ax.set(xlim=(times[0], times[-1]), ylim=(low[0], high[0]))
    entitle(ax, f"{len(times) - 1} steps", "$t$", "$x$", legend=True)
    return figure


def phase_plot(
    times: np.ndarray,
    states: np.ndarray,
    ends: np.ndarray,
    exact: np.ndarray | None,
    velocity: Velocity,
    label: str,
    upto: int | None = None,
    starts: int = 1,
) -> "Figure":
    """Plot 2-D paths over the arrows of the field, and its streamlines with the states beside it.

    A field that depends on time is shown at the time of the last state in the picture. ends: the
    ends of all paths, (N, 2). exact: (F+1, m, 2), from the m `starts`, which have colours and,
    up to 20, numbers; path i is from start i mod m.
    """
    last = _last(upto, times)
    t = float(times[last - 1])
    parts = [states.reshape(-1, 2), ends] + ([] if exact is None else [exact.reshape(-1, 2)])
    low, high = _box(np.concatenate(parts), square=True)
    see = "Left: paths of the solver over the arrows of the field"
    see += ". " if exact is None else "; the gap to the exact path is its error. "
    see += "Right: the way a particle would flow, and where the paths are."
    figure, [left, right] = panels(7.2, 3.9, 2, see=see)
    x, y = (np.linspace(low[i], high[i], 25) for i in range(2))
    grid = np.stack(np.meshgrid(x, y), -1)
    u = velocity(grid.reshape(-1, 2), t).reshape(grid.shape)
    few = slice(1, None, 2)
    left.quiver(x[few], y[few], *np.moveaxis(u[few, few], -1, 0), color=DATA, width=0.004)
    if np.any(u):
        right.streamplot(x, y, u[..., 0], u[..., 1], color=FRAME, linewidth=THIN, arrowsize=0.7)
    many = states.shape[1] > starts
    look = {"lw": THIN, "alpha": 0.4} if many else {"marker": "o", "ms": 3, "lw": LINE}
    for i in range(states.shape[1]):
        name = label if i == 0 else None
        left.plot(*states[:last, i].T, color=_of_start(i % starts), label=name, **look)  # type: ignore[arg-type]
    if exact is not None:
        for ax in (left, right):
            lines = ax.plot(*np.moveaxis(exact, -1, 0), color=EXACT, lw=THICK)
            lines[0].set_label("exact")
    ends = ends if last == len(times) else states[last - 1]
    size = float(np.clip(60 / np.sqrt(len(ends)), 1.5, 5))
    for i in range(starts):
        right.plot(*ends[i::starts].T, "o", color=_of_start(i), ms=size, mew=0, alpha=0.7)
        if 1 < starts <= NUMBERED:
            at = tuple(states[0, i])
            left.annotate(
                str(i + 1), at, (3, 3), textcoords="offset points", fontsize=TICK, color=INK
            )
    for ax in (left, right):
        ax.set(xlim=(low[0], high[0]), ylim=(low[1], high[1]), aspect="equal")
    entitle(left, f"paths and velocities, {len(times) - 1} steps", "$x_1$", "$x_2$", legend=True)
    entitle(right, f"streamlines and states at $t = {t:.3g}$", "$x_1$")
    return figure


def paths_plot(
    times: np.ndarray,
    states: np.ndarray,
    ends: np.ndarray,
    ode: np.ndarray,
    density: Callable[[np.ndarray], np.ndarray],
    band: tuple[np.ndarray, np.ndarray] | None,
    label: str,
    upto: int | None = None,
) -> "Figure":
    """Plot random 1-D paths against t with the ODE's, and the histogram of their ends.

    ends: (N,), those of all paths. ode: (S+1, m), from the m starts; path i is from start i mod m.
    density: the theoretical one at the end. band: the theoretical means (S+1, m) and standard
    deviation (S+1,) at all times.
    """
    last = _last(upto, times)
    paths, m = states[..., 0], ode.shape[1]
    see = f"Each line is a random path. Right: where all {len(ends):,} end; black: the theory."
    figure, [ax, side] = panels(6.2, 3.2, 2, ratios=(4, 1), see=see)
    low, high = _box(np.concatenate([paths.reshape(-1, 1), ode.reshape(-1, 1)]))
    if band is not None:
        means, deviation = band
        for i, mean in enumerate(means.T):
            name = "mean ± 2 sd" if i == 0 else None
            for side_of_mean in (mean - 2 * deviation, mean + 2 * deviation):
                ax.plot(times, side_of_mean, color=INK, lw=THICK, ls=":", zorder=3, label=name)
                name = None
    alpha = float(np.clip(5 / np.sqrt(paths.shape[1]), 0.2, 0.9))
    for i in range(m):
        own = paths[:last, i::m]
        lines = ax.plot(times[:last], own, color=_of_start(i), lw=THIN, alpha=alpha)
        lines[0].set_label(label if i == 0 else None)
    ax.plot(times, ode, "--", color=EXACT, lw=THICK)[0].set_label("ODE")
    ax.set(xlim=(times[0], times[-1]), ylim=(low[0], high[0]))
    entitle(ax, f"{paths.shape[1]} of {len(ends):,} paths", "$t$", "$X_t$", legend=True)
    if last == len(times):
        bins = int(np.clip(1.5 * np.sqrt(len(ends)), 10, 80))
        side.hist(ends, bins, density=True, orientation="horizontal", color=SAMPLES, alpha=0.6)
    x = np.linspace(low[0], high[0], 300)
    side.plot(density(x[:, None]), x, color=INK, lw=LINE)
    side.set(ylim=(low[0], high[0]), xticks=[])
    side.tick_params(labelleft=False, left=False)
    entitle(side, f"$t = {times[-1]:.3g}$")
    return figure


def errors_plot(
    errors: dict[str, tuple[list[float], list[float]]],
    costs: dict[str, tuple[list[float], list[float]]],
) -> "Figure":
    """Plot errors at the end against the step h and the evaluations, {solver: (x, error)}."""
    see = "Lower is better. A solver of order p falls by 10^p where h falls by 10."
    figure, axes = panels(7.2, 3.2, 2, see=see)
    names = list({**costs, **errors})
    for ax, curves in zip(axes, (errors, costs), strict=True):
        for name, (x, y) in curves.items():
            ax.plot(x, y, label=name, **series(names.index(name)))
        if any(value > 0 for _, y in curves.values() for value in y):
            logarithmic(ax, (place for x, _ in curves.values() for place in x), up=True)
    distance = "distance from the exact end"
    entitle(axes[0], "error by length of a step", "step $h$", distance, legend=True)
    entitle(axes[1], "error at equal cost", "evaluations of the field", legend=True)
    return figure


def _box(points: np.ndarray, square: bool = False) -> tuple[np.ndarray, np.ndarray]:
    """The corners of a box with a margin around points (N, d)."""
    low, high = points.min(0), points.max(0)
    size = high - low
    if square:
        centre, size = (low + high) / 2, np.full_like(size, size.max())
        low, high = centre - size / 2, centre + size / 2
    margin = np.where(size > 0, 0.1 * size, 1.0)
    return low - margin, high + margin


def _of_start(i: int) -> str:
    """The colour of the paths from start i, which is not that of exact paths."""
    colors = [color for color in COLORS if color != EXACT]
    return colors[i % len(colors)]


def _last(upto: int | None, times: np.ndarray) -> int:
    return len(times) if upto is None else upto + 1
