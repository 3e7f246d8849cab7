"""fmdiff invert: real samples to noise and back, and what lies between two of them."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from omegaconf import OmegaConf
from torch import Tensor

from fmdiff import __version__
from fmdiff.build import named
from fmdiff.commands.likelihood import Subject, put, subject
from fmdiff.data.images import to_uint8
from fmdiff.errors import FmdiffError
from fmdiff.field import Field
from fmdiff.inversion import Shape, decode, encode, inpaint, outside, slerp, straightness
from fmdiff.likelihood import need_ode, ode_times
from fmdiff.machine import device
from fmdiff.machine.progress import Bar
from fmdiff.pictures import plots
from fmdiff.sampling import Sampler, default_batch_size

IMAGES, SHOWN, PAIRS = 16, 32, 8  # images by default, of them in the grid, pairs in the strip


class Bound:
    """The field of a subject bound to the labels of a batch, in a solver's coordinates."""

    def __init__(self, of: Subject, settings: dict[str, Any], where: torch.device) -> None:
        self.of = of
        self.sampler = Sampler(
            guidance=of.guidance,
            coordinates=settings["coordinates"],
            device=where,
            dtype=getattr(torch, settings["dtype"]),
        )
        self.field = of.field.to(where, self.sampler.dtype)
        self.size = settings["batch_size"] or default_batch_size(of.field.shape)
        self.counted = 0

    def __call__(self, act: Callable[..., Tensor], x: Tensor, y: Tensor | None) -> Tensor:
        """act(field, rows of x, the first one's number) of all batches, on the CPU."""
        found = []
        for i in range(0, len(x), self.size):
            sampler = self.sampler
            labels = None if y is None else y[i : i + self.size].to(sampler.device)
            seen = sampler.seen(self.field, labels)
            seen.reset()
            rows = x[i : i + self.size].to(sampler.device, sampler.dtype)
            found.append(act(seen, rows, i).cpu())
            self.counted += seen.evaluations
        return torch.cat(found)


def round_trips(
    bound: Bound, solvers: dict[str, Any], steps: list[int], progress: Callable[[int], None]
) -> tuple[list[dict[str, Any]], Tensor, Tensor]:
    """Each solver's evaluations and errors with each number of steps, each way.

    A row has the largest and the rms error of an element. Also the codes and the reconstruction
    (n, *shape) of the last row.
    """
    x, y, rows = bound.of.x, bound.of.y, []
    noise = back = x
    for name, solver in solvers.items():
        for n in own_steps(solver, steps):
            bound.counted = 0
            noise = bound(lambda f, x, _, s=solver, n=n: encode(f, x, s, n), x, y)
            back = bound(lambda f, z, _, s=solver, n=n: decode(f, z, s, n), noise, y)
            off = back.double() - x.double()
            error = {"max": off.abs().max().item(), "rms": off.square().mean().sqrt().item()}
            rows.append({"solver": name, "steps": n, "nfe": bound.counted / len(x), **error})
            progress(1)
    return rows, noise, back


def own_steps(solver, steps: list[int]) -> list[int] | list[None]:
    """The numbers of steps a solver is to take; an adaptive one chooses them: [None]."""
    return [None] if solver.adaptive else steps


def trajectories(bound: Bound, noise: Tensor, solver, steps: int | None) -> Shape:
    """Of the ways from codes to data; of the first batch, where there are several."""
    states: list[Tensor] = []
    times: list[Tensor] = []

    def act(field: Field, z: Tensor, _: int) -> Tensor:
        states.append(z.cpu())
        times.append(ode_times(field, solver, steps)[0])

        def observe(t: Tensor, state: Tensor) -> None:
            states.append(state.cpu())
            times.append(t)

        return decode(field, z, solver, steps, observe)

    y = bound.of.y
    bound(act, noise[: bound.size], None if y is None else y[: bound.size])
    return straightness(torch.stack(states), torch.stack(times))


def invert(cfg, folder: Path) -> None:
    """Encode cfg.n real samples under ckpt= or model= and decode them: prints the table of errors.

    Writes invert.json, invert.npz (x, noise and reconstruction, of the last solver and number of
    steps; labels where they were used; interpolated (N, pairs, *shape); inpainted), and of images
    invert.png, original beside reconstruction, and on request strip.png and inpaint.png.
    """
    where = device.pick(cfg.device)
    settings: dict[str, Any] = OmegaConf.to_container(cfg)  # type: ignore[assignment]
    solvers = {name: named("solver", name) for name in settings["solvers"]}
    for solver in solvers.values():
        need_ode(solver)
    steps = settings["steps"]
    of = subject(cfg, settings, where, IMAGES)
    shape, x, y = of.field.shape, of.x, of.y
    images = len(shape) == 3
    box = settings["inpaint"]
    known = None if box is None else outside(box, shape)
    between = settings["interpolate"]
    if between and (not images or len(x) < 2):
        raise FmdiffError(
            f"interpolate={between} needs two images or more, and n={len(x)} of "
            f"{'images' if images else 'points'} are given"
        )
    if settings["straightness"] and own_steps(solver, steps) == [None]:
        raise FmdiffError("straightness=true needs a last solver that takes equal steps, like rk4")
    bound = Bound(of, settings, where)
    with Bar(sum(len(own_steps(s, steps)) for s in solvers.values()), "round trip") as bar:
        rows, noise, back = round_trips(bound, solvers, steps, bar)
    finest = own_steps(solver, steps)[-1]
    unit = "of an element, data in [-1, 1]" if images else "of a coordinate"
    print(f"{len(x)} {'images' if images else 'points'} to noise and back; error {unit}")
    print("solver      steps     nfe         max         rms")
    for row in rows:
        print(
            f"{row['solver']:<11} {row['steps'] or '-':>5} {row['nfe']:>7g} "
            f"{row['max']:>11.3g} {row['rms']:>11.3g}"
        )
    used = None if y is None or cfg.label == "none" else y
    arrays: dict[str, Tensor | None] = {"x": x, "noise": noise, "reconstruction": back}
    arrays["labels"] = used
    written = ["invert.npz", "invert.json"]
    report: dict[str, Any] = {"rows": rows, "n": len(x), "quantity": of.labelled}
    if images:
        pairs = torch.stack([x[:SHOWN], back[:SHOWN].float()], 1).flatten(0, 1)
        grid(pairs, 8, folder / "invert.png")
        written.append("invert.png")
    if settings["straightness"]:
        found = trajectories(bound, noise, solver, finest)
        report["trajectories"] = found._asdict() | {"coordinates": settings["coordinates"]}
        print(
            f"trajectories: straightness {found.straightness:.4g} ({found.relative:.2%} of the "
            f"distance squared), turning {found.turning:.3g} rad"
        )
    if between:
        strip = _interpolated(bound, noise, between, solver, finest)
        arrays["interpolated"] = strip
        grid(strip.transpose(0, 1)[:PAIRS].flatten(0, 1), between, folder / "strip.png")
        written.append("strip.png")
    if known is not None:
        seed = settings["seed"]
        filled = bound(lambda f, x, i: inpaint(f, x, known, solver, finest, seed, i), x, y)
        arrays["inpainted"] = filled
        hidden = torch.where(known, x, torch.zeros(()))
        tiles = torch.stack([x[:SHOWN], hidden[:SHOWN], filled[:SHOWN].float()], 1)
        grid(tiles.flatten(0, 1), 9, folder / "inpaint.png")
        written.append("inpaint.png")
    report |= {
        **{"device": str(where), "checkpoint": of.about, "config": settings},
        "versions": {"torch": torch.__version__, "fmdiff": __version__},
    }
    put(folder, "invert", report, arrays)
    for name in written:
        print(f"  {folder / name}")


def _interpolated(bound: Bound, noise: Tensor, n: int, solver, steps: int | None) -> Tensor:
    """n images from each to the next (n, pairs, *shape), of the first pairs; 0 and 1 included.

    Of two labels an image takes that of the nearer end.
    """
    a, b = noise[:-1][:PAIRS], noise[1:][:PAIRS]
    s = torch.linspace(0, 1, n)
    codes, y = slerp(a, b, s), bound.of.y
    if y is not None:
        ends = torch.stack([y[:-1][:PAIRS], y[1:][:PAIRS]])
        y = ends[(s > 0.5).long()].flatten()
    found = bound(lambda f, z, _: decode(f, z, solver, steps), codes.flatten(0, 1), y)
    return found.view_as(codes)


def grid(x: Tensor, columns: int, path: Path) -> None:
    """Images x (N, C, H, W) as a picture."""
    plots.save(plots.grid(to_uint8(x).numpy(), columns=columns), path)
