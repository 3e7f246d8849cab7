"""fmdiff simulate: textbook systems step by step, tables of errors, random paths against theory.

steps.csv       step,t,x,u,x_next,exact,error of the first path. With d > 1 components: x1,x2,...,
                u1,...,x_next1,...,exact1,... and the error's Euclidean norm. Of a random path:
                step,t,x,u,noise,x_next, where noise is its standard normal number. Of several
                starts: a column start, 1, 2, ... in the order of system.x0, before these
errors.csv      for a list of steps: each solver's error at t_end and after one step
equal_nfe.csv   the errors of the same solvers, of Euler and of Heun at equal NFE
statistics.csv  of several paths from a start: moments, shares, standard errors, and the theory
"""

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from omegaconf import DictConfig, OmegaConf
from torch import Tensor
from tqdm import tqdm

from fmdiff import files, randomness, tables
from fmdiff.build import build, named
from fmdiff.commands import moments, orders
from fmdiff.commands.orders import Table, components, finite
from fmdiff.errors import FmdiffError
from fmdiff.integration import integrate
from fmdiff.pictures import animate, flowplots, plots
from fmdiff.solvers.runge_kutta import Euler
from fmdiff.solvers.solver import Solver
from fmdiff.solvers.stochastic import EulerMaruyama
from fmdiff.systems import Additive, Mixed, OrnsteinUhlenbeck, System, truth

PATHS, BATCH = 2000, 4096  # random paths from a start, and how many at a time
FIRST = 200  # paths of which every state is stored, or one of each start if these are more
FRAMES = 40
Normals = Callable[[int, int, int], Tensor]  # step k, first, stop -> (stop - first, d)


def simulate(cfg: DictConfig, folder: Path) -> None:
    """Follow a system from its start. Prints tables, and writes them and a picture.

    Raises FmdiffError for settings that do not go together, before anything is written.
    """
    settings: dict[str, Any] = OmegaConf.to_container(cfg)  # type: ignore[assignment]
    system: System = build(settings["system"], settings["t_end"])
    name, names = settings["choices"]["solver"], settings["solvers"]
    solvers = {n: named("solver", n) for n in names or []} or {name: build(settings["solver"])}
    solvers = {n: usable(solver, n, system) for n, solver in solvers.items()}
    with torch.no_grad():
        if names or isinstance(settings["steps"], list):
            contents, draw = orders.compare(settings, system, solvers)
        else:
            contents, draw = follow(settings, system, name, solvers[name])
    names = [f"{table}.csv" for table in contents]
    for file, rows in zip(names, contents.values(), strict=True):
        files.write_text(folder / file, tables.as_csv(rows))
    names.append(f"{next(iter(contents))}.png")
    plots.save(draw(), folder / names[-1])
    if settings["animation"]:
        times = draw.args[0]
        steps = np.unique(np.linspace(1, len(times) - 1, FRAMES).astype(int))
        bar = tqdm(steps, unit="frame", disable=None, leave=False)
        frames = [plots.render(draw(upto=int(k))) for k in bar]
        names.append("animation.gif")
        animate.animation(frames, folder / names[-1], times=times[steps].tolist())
    for file in names:
        print(f"  {folder / file}")


def usable(solver: Solver, name: str, system: System) -> Solver:
    """The solver as the system uses it. Raises FmdiffError if the two do not go together."""
    plain = "choose euler, midpoint, heun or rk4"
    if system.noisy:
        if not isinstance(solver, Euler | EulerMaruyama):
            raise FmdiffError(
                f"solver={name} takes no noise: this system is a stochastic one, for "
                "solver=euler_maruyama (or euler, the same here)"
            )
        default = named("solver", "euler_maruyama").diffusion
        if isinstance(solver, EulerMaruyama) and solver.diffusion != default:
            raise FmdiffError(
                f"solver.diffusion={solver.diffusion}: this system has its own, system.diffusion"
            )
        return Additive()
    if solver.one_way:
        raise FmdiffError(f"solver={name} is fitted to a model, and systems are none; {plain}")
    if solver.maps:
        raise FmdiffError(f"solver={name} needs a flow map, and systems are none; {plain}")
    if system.has_score and solver.stochastic and not isinstance(solver, EulerMaruyama):
        raise FmdiffError(
            f"solver={name}: here the noise is one draw a step, for solver=euler_maruyama"
        )
    if not system.has_score and solver.stochastic:
        raise FmdiffError(
            f"solver={name} is for random systems, like system=ou, and this one is an ODE; {plain}"
        )
    if not system.has_score and solver.asks != "v":
        raise FmdiffError(f"solver={name} needs a score, and this system has none; {plain}")
    if system.steps and not isinstance(solver, Euler):
        raise FmdiffError(f"solver={name}: velocities given one a step are for solver=euler")
    return solver


def follow(
    settings: dict[str, Any], system: System, name: str, solver: Solver
) -> tuple[dict[str, Table], partial]:
    """The tables and the picture of paths in equal steps. Prints a part of the tables.

    Raises FmdiffError for settings that do not go together.
    """
    t_end, seed = settings["t_end"], settings["seed"]
    steps, n = _counts(settings, system, name, solver)
    m = system.count
    normals = _normals(settings, system)
    times = torch.linspace(0, t_end, steps + 1, dtype=torch.float64)
    marks = sorted({round(k * steps / 4) for k in range(1, 5)} - {0})
    travel = partial(paths, system, times=times, n=n * m, seed=seed, marks=marks, normals=normals)
    states, at_marks, evaluations = travel(solver)
    print(
        f"{settings['choices']['system']}, solver {name}, {steps} steps of h = "
        f"{t_end / steps:.6g} to t = {t_end:g}, {evaluations:g} evaluations each, "
        f"{n} path{'s' if n > 1 else ''}{f' from each of {m} starts' if m > 1 else ''}"
    )
    first, exact = states[:, :m], None
    if not solver.stochastic:
        exact = finite(truth(system, first[0], times), "in the exact solution")
        if system.solution(first[0], times[0]) is None:
            print("exact: no formula is known, so it is a fine Runge-Kutta 4 solve")
    contents = {"steps": _steps(system, solver, first, times, exact, normals)}
    if n == 1:
        _print_paths(contents["steps"], first, times, exact)
    else:
        ode = travel(Euler())[1][-1] if solver.stochastic else None
        contents["statistics"] = moments.statistics(system, times[marks], at_marks, ode)
        print(tables.numbers(contents["statistics"], limit=100))
    if isinstance(system, OrnsteinUhlenbeck) and system.theta > 0:
        variance = system.diffusion**2 / (2 * system.theta)
        print(f"stationary law: normal, mean 0, variance {variance:.6g}")
    return contents, _picture(system, name, times, states, at_marks[-1], exact)


def _print_paths(steps: Table, states: Tensor, times: Tensor, exact: Tensor | None) -> None:
    """Print the steps of a path and its error; of paths from several starts, their ends."""
    m, d = states.shape[1:]
    if m == 1:
        print(tables.numbers(steps))
        if exact is not None:
            error, size = (exact[-1] - states[-1]).norm(), exact[-1].norm()
            share = f", {error / size:.2%} of the exact value" if size > 0 else ""
            print(f"error at t = {times[-1]:g}: {error:.6g}{share}")
        return
    columns = [*components("x_start", d), *components("x_end", d)]
    parts = [states[0], states[-1]]
    if exact is not None:
        columns += [*components("exact", d), "error"]
        parts += [exact[-1], (exact[-1] - states[-1]).norm(dim=1, keepdim=True)]
    rows = torch.cat(parts, 1).tolist()
    print(tables.numbers([["start", *columns], *([i, *row] for i, row in enumerate(rows, 1))]))


def _counts(
    settings: dict[str, Any], system: System, name: str, solver: Solver
) -> tuple[int, int]:
    """The number of steps, and the number of paths from each start."""
    noise = settings["noise"]
    if noise is not None and not solver.stochastic:
        raise FmdiffError(f"noise={noise}: solver={name} on this system takes no noise")
    by_hand = system.steps or (len(noise) if noise else None)
    steps = settings["steps"] or by_hand or (100 if solver.stochastic else 10)
    if by_hand and steps != by_hand:
        raise FmdiffError(f"steps={steps}, but {by_hand} numbers are given, one a step")
    several = system.count > 1
    random = system.noisy or (system.has_score and (solver.stochastic or not several))
    n = settings["n"] or (PATHS if random and noise is None else 1)
    if n > 1 and not (random and noise is None):
        why = "noise= is for one" if random else "all are the same from one start without noise"
        raise FmdiffError(f"n={n} paths: {why}")
    if several and noise is not None:
        raise FmdiffError(f"noise={noise} is for one start, and system.x0= gives several")
    return steps, n


def _normals(settings: dict[str, Any], system: System) -> Normals:
    """The standard normal numbers of each step and path, random or from noise=."""
    noise, seed = settings["noise"], settings["seed"]
    d = system.starts(0, 1, seed).shape[1]
    if noise is not None and d != 1:
        raise FmdiffError(f"noise={noise} is for a system of one dimension, this has {d}")

    def normals(k: int, first: int, stop: int) -> Tensor:
        if noise is not None:
            return torch.full((1, 1), float(noise[k]), dtype=torch.float64)
        return randomness.noise(first, stop, (d,), seed, "brownian", k).double()

    return normals


def paths(
    system: System,
    solver: Solver,
    times: Tensor,
    n: int,
    seed: int,
    marks: list[int],
    normals: Normals,
) -> tuple[Tensor, Tensor, float]:
    """Follow n paths along times (S+1,): all states of the first few, all at the marks, NFE.

    marks: step numbers >= 1; the states after these steps are (M, n, d). normals(k, first, stop):
    standard normal numbers (stop - first, d) of step k.
    """
    first_states, at_marks = [], []
    before = system.evaluations
    size = max(BATCH, system.count)
    bar = tqdm(total=n, unit="path", disable=None, leave=False, delay=1)
    for first in range(0, n, size):
        rows = range(first, min(n, first + size))
        states, of_batch = _batch(system, solver, times, rows, seed, marks, normals)
        if first == 0:
            first_states = states
        at_marks.append(of_batch)
        bar.update(len(rows))
    bar.close()
    return torch.stack(first_states), torch.cat(at_marks, 1), (system.evaluations - before) / n


def _batch(
    system: System,
    solver: Solver,
    times: Tensor,
    rows: range,
    seed: int,
    marks: list[int],
    normals: Normals,
) -> tuple[list[Tensor], Tensor]:
    """Follow the paths `rows`: all states of the first few, and all paths at the marks."""
    x = system.starts(rows.start, rows.stop, seed)
    stored = max(FIRST, system.count) if rows.start == 0 else 1
    states, at_marks, steps = [x[:stored]], list[Tensor](), iter(range(len(times)))

    def brownian(t: Tensor, s: Tensor) -> Tensor:
        return (s - t).sqrt() * normals(next(steps), rows.start, rows.stop)

    def observe(t: Tensor, x: Tensor) -> None:
        states.append(x[:stored])
        if len(states) - 1 in marks:
            at_marks.append(x)

    integrate(solver, system, x, times, brownian, observe)
    for k, state in enumerate(states):
        finite(state, f"after step {k} of {len(times) - 1}")
    finite(at_marks[-1], f"at t = {times[-1]:g}")
    return states, torch.stack(at_marks)


def _steps(
    system: System,
    solver: Solver,
    states: Tensor,
    times: Tensor,
    exact: Tensor | None,
    normals: Normals,
) -> Table:
    """The steps of the first path of each start (S+1, m, d). exact: None if they are random."""
    names = ("x", "u", "noise", "x_next") if exact is None else ("x", "u", "x_next", "exact")
    columns = [part for name in names for part in components(name, states.shape[2])]
    m = states.shape[1]
    table: Table = [["step", "t", *columns, *([] if exact is None else ["error"])]]
    table[0][:0] = ["start"] if m > 1 else []
    zero = torch.zeros_like(states[0])
    rows: list[Table] = [[] for _ in range(m)]
    for k in range(len(times) - 1):
        (x, x_next), t, s = states[k : k + 2], times[k], times[k + 1]
        if exact is None:
            still = solver.step(system, x, t, s, None, lambda *_: zero)[0]
            u = (still - x) / (s - t)  # the drift, a score's part included
            values = [x, u, normals(k, 0, m), x_next]
        else:
            error = (x_next - exact[k + 1]).norm(dim=1, keepdim=True)
            values = [x, system.u(x, t), x_next, exact[k + 1], error]
        for i, numbers in enumerate(torch.cat(values, 1).tolist()):
            rows[i].append([*([i + 1] if m > 1 else []), k + 1, t.item(), *numbers])
    return table + [row for path in rows for row in path]


def _picture(
    system: System,
    name: str,
    times: Tensor,
    states: Tensor,
    ends: Tensor,
    exact: Tensor | None,
) -> partial:
    """A function that draws states (S+1, N, d) up to a step, and all ends (n, d)."""

    def velocity(x: np.ndarray, t: float) -> np.ndarray:
        return system.u(torch.from_numpy(x), torch.tensor(t, dtype=torch.float64)).numpy()

    grid = torch.linspace(0, system.t_end, 51, dtype=torch.float64)
    m = system.count
    starts, last = states[0, :m], times[-1]
    arrays = times.numpy(), states.numpy()
    d = states.shape[2]
    if isinstance(system, OrnsteinUhlenbeck | Mixed) and d == 1:
        band = None
        ode = (truth(system, starts, times) if exact is None else exact)[..., 0].numpy()
        if isinstance(system, OrnsteinUhlenbeck):
            variance = torch.stack([system.covariance(t, t) for t in times])
            band = (ode, variance.sqrt().numpy())

        def density(x: np.ndarray) -> np.ndarray:
            return system.density(torch.from_numpy(x), last).numpy()

        ends_1d = ends[:, 0].numpy()
        return partial(flowplots.paths_plot, *arrays, ends_1d, ode, density, band, name)
    if d == 2:
        line = None if exact is None or len(ends) > m else truth(system, starts, grid).numpy()
        return partial(flowplots.phase_plot, *arrays, ends.numpy(), line, velocity, name, starts=m)
    fine = (grid.numpy(), truth(system, starts, grid).numpy())
    return partial(flowplots.time_plot, *arrays, fine, velocity, name)
