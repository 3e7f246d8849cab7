"""fmdiff simulate: textbook systems step by step, tables of errors, random paths against theory.

steps.csv       step,t,x,u,x_next,exact,error of one path, the first; with d > 1 components
                x1,x2,...,u1,...,x_next1,...,exact1,... and the error's Euclidean norm; of a random
                path step,t,x,u,noise,x_next, noise being its standard normal number
errors.csv      for a list of steps: each solver's error at t_end and after one step
equal_nfe.csv   the errors of the same solvers, of Euler and of Heun at equal NFE
statistics.csv  of several paths: moments and shares with standard errors, beside the theory
"""

import csv
import io
import math
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from omegaconf import OmegaConf
from torch import Tensor
from tqdm import tqdm

from fmdiff import randomness
from fmdiff.build import build, named
from fmdiff.errors import FmdiffError
from fmdiff.integration import integrate
from fmdiff.pictures import flowplots, plots
from fmdiff.solvers.runge_kutta import Euler
from fmdiff.solvers.stochastic import EulerMaruyama
from fmdiff.systems import Additive, Mixed, OrnsteinUhlenbeck, System, Velocities, truth

PATHS, BATCH = 2000, 4096  # paths where something is random, and how many at a time
KEPT = 200  # paths of which every state is kept
PRINTED = 30  # rows of a table on the terminal
FRAMES = 40
Table = tuple[list[str], list[list]]


def simulate(cfg, folder: Path) -> None:
    """Follow a system from its start: tables and a picture, printed and in the folder.

    Raises FmdiffError for settings that do not go together, before anything is written.
    """
    settings: dict[str, Any] = OmegaConf.to_container(cfg)  # type: ignore[assignment]
    system: System = build(settings["system"], cfg.t_end)
    chosen, steps, wanted = cfg.choices.solver, settings["steps"], settings["solvers"]
    names = wanted or [chosen]
    found = [named("solver", name) for name in wanted] if wanted else [build(settings["solver"])]
    solvers = {n: usable(s, n, system) for n, s in zip(names, found, strict=True)}
    with torch.no_grad():
        if wanted or isinstance(steps, list):
            tables, draw = _errors(cfg, settings, system, solvers)
        else:
            tables, draw = _follow(cfg, settings, system, chosen, solvers[chosen])
    for name, (header, rows) in tables.items():
        (folder / f"{name}.csv").write_text(as_csv(header, rows))
    written = [f"{name}.csv" for name in tables]
    plots.save(draw(), folder / f"{written[0][:-4]}.png")
    written.append(f"{written[0][:-4]}.png")
    if cfg.animation:
        picks = np.unique(np.linspace(1, draw.keywords["times"].size - 1, FRAMES).astype(int))
        bar = tqdm(picks, unit="frame", disable=None, leave=False)
        frames = [plots.render(draw(upto=int(k))) for k in bar]
        plots.animation(frames, folder / "animation.gif")
        written.append("animation.gif")
    for name in written:
        print(f"  {folder / name}")


def usable(solver, name: str, system: System):
    """The solver as the system takes it; FmdiffError where the two do not go together."""
    plain = "choose euler, midpoint, heun or rk4"
    if system.noisy:
        if not isinstance(solver, Euler | EulerMaruyama):
            raise FmdiffError(
                f"solver={name} takes no noise: this system is a stochastic one, for "
                "solver=euler_maruyama (or euler, the same here)"
            )
        usual = named("solver", "euler_maruyama").diffusion
        if isinstance(solver, EulerMaruyama) and solver.diffusion != usual:
            raise FmdiffError(
                f"solver.diffusion={solver.diffusion}: this system has its own, system.diffusion"
            )
        return Additive()
    if isinstance(system, Mixed) and solver.stochastic and not isinstance(solver, EulerMaruyama):
        raise FmdiffError(
            f"solver={name}: here the noise is one draw a step, for solver=euler_maruyama"
        )
    if not isinstance(system, Mixed) and (solver.stochastic or solver.asks != "v"):
        raise FmdiffError(f"solver={name} needs a score or noise, this system is an ODE; {plain}")
    if isinstance(system, Velocities) and not isinstance(solver, Euler):
        raise FmdiffError(f"solver={name}: velocities given one a step are for solver=euler")
    return solver


def _follow(cfg, settings: dict, system: System, name: str, solver) -> tuple[dict, partial]:
    """A run of equal steps: its tables and picture."""
    given, by_hand = settings["noise"], settings["noise"]
    if given is not None and not solver.stochastic:
        raise FmdiffError(f"noise={given}: solver={name} on this system takes no noise")
    if isinstance(system, Velocities):
        by_hand = system.given.tolist()
    steps = cfg.steps or (len(by_hand) if by_hand else 100 if solver.stochastic else 10)
    if by_hand and steps != len(by_hand):
        raise FmdiffError(f"steps={steps}, but {len(by_hand)} numbers are given, one a step")
    random = isinstance(system, Mixed) or system.noisy
    n = cfg.n or (PATHS if random and given is None else 1)
    if n > 1 and not (random and given is None):
        why = "noise= is for one" if random else "all are the same from one start without noise"
        raise FmdiffError(f"n={n} paths: {why}")
    d = system.starts(0, 1, cfg.seed).shape[1]
    if given is not None and d != 1:
        raise FmdiffError(f"noise={given} is for a system of one dimension, this has {d}")

    def normals(k: int, first: int, stop: int) -> Tensor:
        if given is not None:
            return torch.full((1, 1), float(given[k]), dtype=torch.float64)
        return randomness.noise(first, stop, (d,), cfg.seed, "brownian", k).double()

    times = torch.linspace(0, cfg.t_end, steps + 1, dtype=torch.float64)
    marks = sorted({round(k * steps / 4) for k in range(1, 5)} - {0})
    travel = partial(paths, system, times=times, n=n, seed=cfg.seed, marks=marks)
    states, marked, evaluations = travel(solver, normals=normals)
    print(
        f"{cfg.choices.system}, solver {name}, {steps} steps of h = {cfg.t_end / steps:.6g} to "
        f"t = {cfg.t_end:g}, {evaluations:g} evaluations each, {n} path{'s' if n > 1 else ''}"
    )
    first, exact = states[:, :1], None
    if not solver.stochastic:
        exact = _finite(truth(system, first[0], times), "in the exact solution")
        if system.flow(first[0], times[0]) is None:
            print("exact: no formula is known, so it is a fine Runge-Kutta 4 solve")
    tables = {"steps": _steps(system, solver, first, times, exact, normals)}
    if n == 1:
        print(as_text(*tables["steps"]))
        if exact is not None:
            error, size = (exact[-1] - first[-1]).norm(), exact[-1].norm()
            share = f", {error / size:.2%} of the exact value" if size > 0 else ""
            print(f"error at t = {times[-1]:g}: {error:.6g}{share}")
    else:
        ode = travel(Euler(), normals=normals)[1][-1] if solver.stochastic else None
        statistics = _statistics(system, times[marks], marked, ode)
        tables["statistics"] = statistics
        print(as_text(*statistics, limit=100))
    if isinstance(system, OrnsteinUhlenbeck) and system.theta > 0:
        variance = system.diffusion**2 / (2 * system.theta)
        print(f"stationary law: normal, mean 0, variance {variance:.6g}")
    return tables, _picture(system, name, times, states, marked[-1], exact)


def paths(
    system: System,
    solver,
    times: Tensor,
    n: int,
    seed: int,
    marks: list[int],
    normals: Callable[[int, int, int], Tensor],
) -> tuple[Tensor, Tensor, float]:
    """n paths along times (S+1,): all states of the first few, those of all at the marks, NFE.

    marks: step numbers >= 1, the states after them: (M, n, d). normals(k, first, stop): standard
    normal numbers (stop - first, d) of step k.
    """
    kept, marked = [], []
    before = system.evaluations
    bar = tqdm(total=n, unit="path", disable=None, leave=False, delay=1)
    for first in range(0, n, BATCH):
        stop = min(n, first + BATCH)
        x = system.starts(first, stop, seed)
        seen, drawn = [x[:KEPT]], iter(range(len(times)))
        at_marks: list[Tensor] = []

        def brownian(t: Tensor, s: Tensor, first=first, stop=stop, drawn=drawn) -> Tensor:
            return (s - t).sqrt() * normals(next(drawn), first, stop)

        def observe(t: Tensor, x: Tensor, first=first, seen=seen, at_marks=at_marks) -> None:
            seen.append(x[: KEPT if first == 0 else 1])
            if len(seen) - 1 in marks:
                at_marks.append(x)

        integrate(solver, system, x, times, brownian, observe)
        for k, states in enumerate(seen):
            _finite(states, f"after step {k} of {len(times) - 1}")
        _finite(at_marks[-1], f"at t = {times[-1]:g}")
        if first == 0:
            kept = seen
        marked.append(torch.stack(at_marks))
        bar.update(stop - first)
    bar.close()
    return torch.stack(kept), torch.cat(marked, 1), (system.evaluations - before) / n


def _finite(x: Tensor, where: str) -> Tensor:
    if not x.isfinite().all():
        raise FmdiffError(f"the state is not finite {where}: take more steps= or a smaller t_end=")
    return x


def _parts(name: str, d: int) -> list[str]:
    return [name] if d == 1 else [f"{name}{i + 1}" for i in range(d)]


def _steps(system: System, solver, states: Tensor, times: Tensor, exact, normals) -> Table:
    """The steps of the first path (S+1, 1, d); exact: None for a random one."""
    names = ("x", "u", "noise", "x_next") if exact is None else ("x", "u", "x_next", "exact")
    columns = [part for name in names for part in _parts(name, states.shape[2])]
    rows: list[list] = []
    for k in range(len(times) - 1):
        (x, x_next), t, s = states[k : k + 2], times[k], times[k + 1]
        if exact is None:
            still = solver.step(system, x, t, s, None, lambda t, s, x=x: torch.zeros_like(x))[0]
            u = (still - x) / (s - t)  # the drift, a score's part included
            values, error = [x, u, normals(k, 0, 1), x_next], []
        else:
            values = [x, system.u(x, t), x_next, exact[k + 1]]
            error = [(x_next - exact[k + 1]).norm().item()]
        rows.append([k + 1, t.item(), *torch.cat(values, 1)[0].tolist(), *error])
    return ["step", "t", *columns, *(["error"] if exact is not None else [])], rows


def _statistics(system: System, times: Tensor, marked: Tensor, ode: Tensor | None) -> Table:
    """Moments of marked (M, n, d) at times (M,): value, standard error, 95 % interval, theory."""
    rows: list[list] = []

    def row(what: str, each: Tensor, theory: float | Tensor | None, ode=None) -> None:
        """A quantity that is the mean of one number for each path, each (n,)."""
        mean, error = each.mean().item(), each.std().item() / math.sqrt(len(each))
        ends = [mean - 1.96 * error, mean + 1.96 * error]
        rest = [None if value is None else float(value) for value in (theory, ode)]
        rows.append([what, mean, error, *ends, *rest])

    header = ["quantity", "value", "standard_error", "low95", "high95", "theory", "ode"]
    centred = (marked - marked.mean(1, keepdim=True)) * math.sqrt(
        marked.shape[1] / (marked.shape[1] - 1)
    )
    if isinstance(system, OrnsteinUhlenbeck):
        for t, x in zip(times, marked, strict=True):
            row(f"mean({t:g})", x[:, 0], system.flow(system.starts(0, 1, 0), t))
        for i, s in enumerate(times):
            for t, c in zip(times[i:], centred[i:], strict=True):
                what = f"variance({t:g})" if s == t else f"covariance({s:g},{t:g})"
                row(what, (centred[i] * c)[:, 0], system.covariance(s, t))
        return header[:-1], [line[:-1] for line in rows]
    assert isinstance(system, Mixed)
    t, x, c = times[-1], marked[-1], centred[-1]
    known = system.origin is None  # the law p_t follows from normal starts alone
    mean, cov = system.moments(t)
    for i in range(x.shape[1]):
        row(_parts("mean", x.shape[1])[i], x[:, i], mean[i] if known else None)
        row(_parts("variance", x.shape[1])[i], c[:, i] ** 2, cov[i, i] if known else None)
    weights = system.weights / system.weights.sum()
    near = system.nearest(x, t)
    other = None if ode is None else system.nearest(ode, t)
    for k, centre in enumerate(system.means.tolist()):
        of_ode = None if other is None else (other == k).double().mean()
        place = " ".join(f"{value:g}" for value in centre)
        row(
            f"share of mode [{place}]", (near == k).double(), weights[k] if known else None, of_ode
        )
    return header, rows


def _picture(system: System, name: str, times, states, ends, exact) -> partial:
    def velocity(x: np.ndarray, t: float) -> np.ndarray:
        return system.u(torch.from_numpy(x), torch.tensor(t, dtype=torch.float64)).numpy()

    grid = torch.linspace(0, system.t_end, 51, dtype=torch.float64)
    common = {"times": times.numpy(), "states": states.numpy(), "label": name}
    start = states[0, :1]
    d = states.shape[2]
    if isinstance(system, OrnsteinUhlenbeck | Mixed) and d == 1:
        end, band = times[-1], None
        ode = (truth(system, start, times) if exact is None else exact)[:, 0, 0]
        if isinstance(system, OrnsteinUhlenbeck):
            variance = torch.stack([system.covariance(t, t) for t in times])
            band = (ode.numpy(), variance.sqrt().numpy())
        density = lambda x: system.density(torch.from_numpy(x), end).numpy()  # noqa: E731
        extra = {"ends": ends[:, 0].numpy(), "ode": ode.numpy(), "density": density, "band": band}
        return partial(flowplots.paths_plot, **common, **extra)
    if d == 2:
        line = None if exact is None or len(ends) > 1 else truth(system, start, grid).numpy()
        clouds = {"exact": line, "ends": ends.numpy(), "velocity": velocity}
        return partial(flowplots.phase_plot, **common, **clouds)
    fine = (grid.numpy(), truth(system, start, grid).numpy())
    return partial(flowplots.time_plot, **common, fine=fine, velocity=velocity)


# A list of steps: errors and orders


def _errors(cfg, settings: dict, system: System, solvers: dict) -> tuple[dict, partial]:
    steps = settings["steps"] if isinstance(settings["steps"], list) else [cfg.steps or 10]
    for name, solver in solvers.items():
        if solver.stochastic or getattr(solver, "adaptive", False):
            raise FmdiffError(
                f"steps={steps}: a table of errors is for an ODE and a solver of fixed steps, "
                f"not for solver={name} here"
            )
    if isinstance(system, Velocities):
        raise FmdiffError(f"steps={steps}: system.u gives one velocity a step, so no other steps")
    if settings["noise"] is not None or cfg.animation:
        raise FmdiffError(f"steps={steps}: noise= and animation= are for one run, steps=N")
    n = cfg.n or (100 if system.origin is None else 1)
    if n > 1 and system.origin is not None:
        raise FmdiffError(f"n={n} paths: all are the same from one start without noise")
    x, d = system.starts(0, n, cfg.seed), system.starts(0, 1, cfg.seed).shape[1]
    exact = _finite(
        truth(system, x, torch.tensor([0, cfg.t_end], dtype=torch.float64))[-1],
        "in the exact solution",
    )
    if system.flow(x, torch.zeros(())) is None:
        print("exact: no formula is known, so it is a fine Runge-Kutta 4 solve")

    def end(solver, steps: int, t_end: float) -> Tensor:
        times = torch.linspace(0, t_end, steps + 1, dtype=torch.float64)
        return _finite(integrate(solver, system, x, times), f"after {steps} steps")

    def distance(a: Tensor, b: Tensor | float) -> float:
        return (a - b).square().sum(1).mean().sqrt().item()

    size = distance(exact, 0.0)
    one = {
        count: truth(system, x, torch.tensor([0, cfg.t_end / count], dtype=torch.float64))[-1]
        for count in steps
    }
    states = [*_parts("x", d), *_parts("exact", d)] if n == 1 else []
    header = ["solver", "steps", "h", *states, "error", "relative_error", "nfe", "one_step_error"]
    rows: list[list] = []
    curves: dict[str, tuple[list[float], list[float]]] = {}
    for name, solver in solvers.items():
        lines, hs = [], [cfg.t_end / count for count in steps]
        for count, h in zip(steps, hs, strict=True):
            system.evaluations = 0
            got = end(solver, count, cfg.t_end)
            nfe, error = system.evaluations / n, distance(got, exact)
            shown = [*got[0].tolist(), *exact[0].tolist()] if n == 1 else []
            local = distance(end(solver, 1, h), one[count])
            relative = error / size if size else None
            lines.append([name, count, h, *shown, error, relative, nfe, local])
        curves[name] = hs, [line[-4] for line in lines]
        orders = [order(hs, [line[-1] for line in lines], size), order(*curves[name], size)]
        rows += [[*line, *orders] for line in lines]
    header += ["local_order", "global_order"]
    print(
        f"{cfg.choices.system}, errors at t = {cfg.t_end:g}"
        + (f", root mean square of {n} paths" if n > 1 else "")
    )
    print(as_text(header, rows, limit=1000))
    print("fitted orders: one-step error ~ h^local_order, error ~ h^global_order")
    fair = {name: named("solver", name) for name in ("euler", "heun")} | solvers
    budgets = sorted({2 * count for count in steps})
    table: list[list] = []
    for nfe in budgets:
        counts = [nfe // s.nfe(1) if nfe % s.nfe(1) == 0 else None for s in fair.values()]
        found = [
            distance(end(s, count, cfg.t_end), exact) if count else None
            for s, count in zip(fair.values(), counts, strict=True)
        ]
        table.append([nfe, *found])
    equal = ["nfe", *(f"error_{name}" for name in fair)]
    print("at equal NFE\n" + as_text(equal, table, limit=1000))
    costs = {
        name: ([r[0] for r in table if r[i + 1]], [r[i + 1] for r in table if r[i + 1]])
        for i, name in enumerate(fair)
    }
    picture = partial(flowplots.errors_plot, errors=curves, costs=costs)
    return {"errors": (header, rows), "equal_nfe": (equal, table)}, picture


def order(h: list[float], errors: list[float], size: float) -> float | None:
    """The p of error ~ h^p by least squares on logarithms, leaving out what is rounding alone."""
    points = {a: e for a, e in zip(h, errors, strict=True) if e > 1e-13 * max(size, 1e-300)}
    if len(points) < 2:
        return None
    return float(np.polyfit(np.log(list(points)), np.log(list(points.values())), 1)[0])


def as_csv(header: list[str], rows: list[list]) -> str:
    """Comma-separated, numbers in full, None empty."""
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows([header, *rows])
    return text.getvalue()


def as_text(header: list[str], rows: list[list], limit: int = PRINTED) -> str:
    """Columns for the terminal, numbers to six digits; of a long table its two ends."""
    cells = [
        ["-" if v is None else v if isinstance(v, str) else f"{v + 0:.6g}" for v in r]
        for r in rows
    ]
    if len(cells) > limit:
        cells = [*cells[: limit // 2], ["..."] * len(header), *cells[-limit // 2 :]]
    widths = [max(map(len, column)) for column in zip(header, *cells, strict=True)]
    lines = [[h.rjust(w) for h, w in zip(line, widths, strict=True)] for line in [header, *cells]]
    return "\n".join("  ".join(line) for line in lines)
