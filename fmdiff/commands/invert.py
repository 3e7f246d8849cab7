"""fmdiff invert: maps real samples to noise and back, and interpolates between them."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from omegaconf import DictConfig, OmegaConf
from torch import Tensor

from fmdiff import tables
from fmdiff.build import named
from fmdiff.commands.likelihood import POINTS, Subject, subject, write
from fmdiff.condition import Given
from fmdiff.data.images import to_uint8
from fmdiff.errors import FmdiffError
from fmdiff.field import Field
from fmdiff.inversion import Shape, decode, encode, inpaint, outside, slerp, straightness
from fmdiff.likelihood import need_ode, ode_times
from fmdiff.machine.progress import Bar
from fmdiff.pictures import plots
from fmdiff.solvers.solver import Solver

IMAGES, GRID, PAIRS = 16, 32, 8  # default images, images in the grid, pairs in the strip
WIDTHS = (11, 5, 7, 11, 11)  # column widths of the printed table
Act = Callable[[Field, Tensor, int], Tensor]


class Batches:
    """Applies functions to a subject's field batch by batch, and counts the evaluations."""

    def __init__(self, of: Subject) -> None:
        self.of, self.sampler = of, of.sampler()
        self.field = of.field.to(of.where, self.sampler.dtype)
        self.evaluations = 0

    def __call__(self, act: Act, x: Tensor, y: Given | None) -> Tensor:
        """Apply act(field as a solver sees it, rows of x, number of the first row) to all batches.

        The results are concatenated on the CPU.
        """
        parts, size, sampler = [], self.of.size, self.sampler
        for i in range(0, len(x), size):
            labels = None if y is None else y[i : i + size].to(sampler.device)
            view = sampler.seen(self.field, labels)
            view.reset()
            rows = x[i : i + size].to(sampler.device, sampler.dtype)
            parts.append(act(view, rows, i).cpu())
            self.evaluations += view.evaluations
        return torch.cat(parts)


def round_trips(
    batches: Batches,
    solvers: dict[str, Solver],
    steps: list[int],
    progress: Callable[[int], None],
) -> tuple[list[dict[str, Any]], Tensor, Tensor]:
    """Each solver's evaluations and errors with each number of steps, each way.

    A row has the largest and the rms error of an element. Also returns the codes and the
    reconstruction (n, *shape) of the last row.
    """
    of, rows = batches.of, list[dict[str, Any]]()
    y, noise, back = of.y, of.learned, of.x
    x = of.decoded(of.learned)  # what a perfect round trip of a latent ends at
    for name, solver in solvers.items():
        for n in own_steps(solver, steps):
            batches.evaluations = 0
            noise = _encode(batches, of.learned, y, solver, n)
            back = _decode(batches, noise, y, solver, n)
            off = back.double() - x.double()
            error = {"max": off.abs().max().item(), "rms": off.square().mean().sqrt().item()}
            nfe = batches.evaluations / len(x)
            rows.append({"solver": name, "steps": n, "nfe": nfe, **error})
            progress(1)
    return rows, noise, back


def _encode(
    batches: Batches, x: Tensor, y: Given | None, solver: Solver, steps: int | None
) -> Tensor:
    return batches(lambda field, rows, _: encode(field, rows, solver, steps), x, y)


def _decode(
    batches: Batches, z: Tensor, y: Given | None, solver: Solver, steps: int | None
) -> Tensor:
    learned = batches(lambda field, rows, _: decode(field, rows, solver, steps), z, y)
    return batches.of.decoded(learned)


def own_steps(solver: Solver, steps: list[int]) -> list[int] | list[None]:
    """The numbers of steps that a solver takes. An adaptive one chooses its own: [None]."""
    return [None] if solver.adaptive else steps


def trajectories(batches: Batches, noise: Tensor, solver: Solver, steps: int | None) -> Shape:
    """The shape of the trajectories from codes to data, for the first batch."""
    states: list[Tensor] = []
    times: list[Tensor] = []

    def act(field: Field, z: Tensor, _: int) -> Tensor:
        states.append(z.cpu())
        times.append(ode_times(field, solver, steps)[0])

        def observe(t: Tensor, state: Tensor) -> None:
            states.append(state.cpu())
            times.append(t)

        return decode(field, z, solver, steps, observe)

    y, size = batches.of.y, batches.of.size
    batches(act, noise[:size], None if y is None else y[:size])
    return straightness(torch.stack(states), torch.stack(times))


def invert(cfg: DictConfig, folder: Path) -> None:
    """Encode cfg.n real samples under ckpt= or model=, decode them, and print a table of errors.

    Writes invert.json and invert.npz: x; noise and reconstruction of the last solver and number of
    steps; labels if they were used; cond_NAME of conditions; interpolated (N, pairs, *shape);
    inpainted. For images it also writes invert.png, original beside reconstruction, and on request
    strip.png and inpaint.png.
    """
    settings: dict[str, Any] = OmegaConf.to_container(cfg)  # type: ignore[assignment]
    solvers = {name: named("solver", name) for name in settings["solvers"]}
    for solver in solvers.values():
        need_ode(solver)
    of, steps = subject(settings, POINTS, IMAGES), settings["steps"]
    _check(of, solver, steps)
    batches = Batches(of)
    with Bar(sum(len(own_steps(s, steps)) for s in solvers.values()), "round trip") as bar:
        rows, noise, back = round_trips(batches, solvers, steps, bar)
    finest = own_steps(solver, steps)[-1]
    _print(of, rows)
    report: dict[str, Any] = {"rows": rows, "n": of.n, "quantity": of.quantity}
    arrays: dict[str, Tensor | None] = {"x": of.x, "noise": noise, "reconstruction": back}
    arrays |= of.given
    names = ["invert.npz", "invert.json"]
    if of.images:
        _grid([of.x, back], 8, folder / "invert.png")
        names.append("invert.png")
    if settings["straightness"]:
        shape = trajectories(batches, noise, solver, finest)
        report["trajectories"] = shape._asdict() | {"coordinates": settings["coordinates"]}
        print(
            f"trajectories: straightness {shape.straightness:.4g} ({shape.relative:.2%} of the "
            f"distance squared), turning {shape.turning:.3g} rad"
        )
    if count := settings["interpolate"]:
        strip = _interpolated(batches, noise, count, solver, finest)
        arrays["interpolated"] = strip
        tiles = strip.transpose(0, 1)[:PAIRS].flatten(0, 1)
        plots.save(plots.grid(to_uint8(tiles).numpy(), columns=count), folder / "strip.png")
        names.append("strip.png")
    if settings["inpaint"] is not None:
        arrays["inpainted"] = _inpainted(batches, solver, finest, folder / "inpaint.png")
        names.append("inpaint.png")
    write(folder, "invert", report, arrays, of)
    for name in names:
        print(f"  {folder / name}")


def _check(of: Subject, last: Solver, steps: list[int]) -> None:
    """Raises FmdiffError for settings that do not fit the samples or the last solver."""
    settings, count = of.settings, of.settings["interpolate"]
    if settings["inpaint"] is not None:
        if of.field.codec is not None:
            raise FmdiffError(
                "inpaint= keeps a part of what the model learns, and this one learns samples that "
                "a codec translates"
            )
        outside(settings["inpaint"], of.field.shape)
    if count and (not of.images or of.n < 2):
        raise FmdiffError(
            f"interpolate={count} needs two images or more, and n={of.n} of {of.kind} are given"
        )
    if settings["straightness"] and own_steps(last, steps) == [None]:
        raise FmdiffError("straightness=true needs a last solver that takes equal steps, like rk4")


def _print(of: Subject, rows: list[dict[str, Any]]) -> None:
    unit = "of an element, data in [-1, 1]" if of.images else "of a coordinate"
    print(f"{of.n} {of.kind} to noise and back; error {unit}")
    cells = [["solver", "steps", "nfe", "max", "rms"]]
    for row in rows:
        errors = [f"{row[name]:.3g}" for name in ("max", "rms")]
        cells.append([row["solver"], row["steps"] or "-", f"{row['nfe']:g}", *errors])
    print(tables.aligned(cells, left=1, widths=WIDTHS, gap=" "))


def _inpainted(batches: Batches, solver: Solver, steps: int | None, picture: Path) -> Tensor:
    """Sample the box of inpaint= in the images anew. Also writes a picture of the result."""
    of = batches.of
    settings, x = of.settings, of.x
    rest, seed = outside(settings["inpaint"], of.field.shape), settings["seed"]
    images = batches(lambda f, x, i: inpaint(f, x, rest, solver, steps, seed, i), x, of.y)
    _grid([x, torch.where(rest, x, torch.zeros(())), images], 9, picture)
    return images


def _interpolated(
    batches: Batches, noise: Tensor, n: int, solver: Solver, steps: int | None
) -> Tensor:
    """n images from each of the first few to the next, (n, pairs, *shape), with both ends.

    If the two labels or conditions differ, an image has those of the nearer end.
    """
    a, b = noise[:-1][:PAIRS], noise[1:][:PAIRS]
    s = torch.linspace(0, 1, n)
    codes, y = slerp(a, b, s), batches.of.y
    if y is not None:
        pairs = torch.arange(len(a))
        y = y[(pairs + (s > 0.5).long()[:, None]).flatten()]
    images = _decode(batches, codes.flatten(0, 1), y, solver, steps)
    return images.view(*codes.shape[:2], *images.shape[1:])


def _grid(columns: list[Tensor], width: int, path: Path) -> None:
    """Write a picture with the first images of each column (N, C, H, W) side by side."""
    tiles = torch.stack([images[:GRID].float() for images in columns], 1).flatten(0, 1)
    plots.save(plots.grid(to_uint8(tiles).numpy(), columns=width), path)
