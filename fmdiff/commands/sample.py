"""fmdiff sample: a checkpoint or an exact field into points, images and pictures."""

import json
import time
from collections.abc import Callable
from dataclasses import replace
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from omegaconf import OmegaConf
from PIL import Image
from torch import Tensor

from fmdiff import __version__
from fmdiff.build import build
from fmdiff.commands.schedules import with_times
from fmdiff.data.images import to_uint8
from fmdiff.errors import FmdiffError
from fmdiff.field import Field
from fmdiff.integration import Plan, check_steps
from fmdiff.loading import guidance, opened
from fmdiff.machine import device, processes
from fmdiff.machine.precision import hasten
from fmdiff.machine.progress import Bar
from fmdiff.path import from_spec
from fmdiff.pictures import animate, plots
from fmdiff.sampling import UNGUIDED, Sampler, Samples, default_batch_size
from fmdiff.solvers.solver import Solver
from fmdiff.trajectory import Watch, velocities

COMPILED = 5000  # samples from which on compiling is worth its minute on CUDA


def sample(cfg, folder: Path) -> None:
    """Draw cfg.n samples of ckpt= or model= into the folder; prints what it cost and where it is.

    Writes samples.npz (arr_0: uint8 images (N, H, W, C) or float32 points (N, d); labels where
    there are classes), grid.png or scatter.png, sample.json, and on request 000000.png ...,
    animations (trajectory.gif, x_hat.gif and, for 2-D data, field.gif) and results.json.
    """
    where = device.pick(cfg.device)
    device.enough(where, cfg.devices, "devices")
    if cfg.trajectory and cfg.devices > 1:
        raise FmdiffError("trajectory=true is drawn by one process: devices must be 1")
    where = processes.join(where)
    settings: dict[str, Any] = OmegaConf.to_container(cfg)  # type: ignore[assignment]
    with processes.after_rank_0():
        field, data, about = opened(settings, data=bool(settings["metrics"]))
        images = len(field.shape) == 3
        n = cfg.n or (64 if images else 10_000)
        size = min(cfg.batch_size or default_batch_size(field.shape), n)
        processes.divisible(n, size, cfg.devices)
        use_threads(cfg.threads, field, size, where, cfg.devices)

        sampler = options(settings | {"batch_size": size, "n": n}, field, where, about)
        judged, kept = None, Kept()
        if settings["metrics"]:
            from fmdiff.metrics.judge import judge

            about_data = (data, field.shape, field.classes, cfg.seed, where)
            judged = judge(settings, *about_data, spread=True)

    def receive(x: Tensor, y: Tensor | None) -> None:
        x = to_uint8(x) if images else x
        kept.add(x, y)
        if judged:
            judged.add(x, y)

    y = sampler.guidance.labels(field, settings["classes"], 0, 1, cfg.seed)
    seen = sampler.seen(field, y)
    layout = sampler.plan(seen, cfg.trajectory)
    with processes.started("sample", folder, cfg.devices, where):
        mine, lead = processes.share(n, size), processes.rank() == 0
        if lead:
            said = describe(cfg, sampler.solver, layout, seen.branches)
            print(f"{n} samples on {where}, {said}")
        bar = Bar(len(mine), visible=lead)
        begin = time.perf_counter()
        drawn = partial(
            sampler.draw,
            field,
            len(mine),
            cfg.seed,
            first=mine.start,
            classes=settings["classes"],
            trajectory=cfg.trajectory,
            progress=bar,
            receive=receive,
        )
        samples = processes.agreed(drawn)
        kept.gather()
        counted = sum(processes.gathered(samples.nfe_counted * len(mine))) / n
        seconds = time.perf_counter() - begin
        bar.close()
        metrics = judged.results() if judged else None
        if not lead:
            return
    print(
        f"{counted:g} evaluations per sample counted, {seconds:.1f} s, "
        f"{1000 * seconds / n:.3g} ms per sample"
    )

    def arrows(points: Tensor, times: Tensor) -> Tensor:
        y = kept.labels
        y = None if y is None else y.to(where)
        seen = pictured(field.to(where, sampler.dtype), sampler, y, len(points))
        seen.reset()
        u = velocities(seen, points.to(where, sampler.dtype), times)
        print(f"{seen.evaluations} more in all for the arrows of field.{cfg.animation}")
        return u

    written = write(kept.x, kept.labels, folder, data, cfg.png, samples.trajectory)
    if samples.trajectory is not None:
        asked = arrows if layout.steps else None
        written += movies(samples, folder, cfg.animation, data, asked)
    if judged and metrics:
        from fmdiff.commands.evaluate import conclude
        from fmdiff.metrics import results

        print(results.as_text(metrics))
        pixels = kept.x if images else None
        more = {"checkpoint": about, "nfe_counted": counted}
        conclude(folder, "sample", settings, judged, metrics, pixels, **more)
        written.append("results.json")
    report = {
        "nfe_planned": samples.nfe_planned,
        "nfe_counted": counted,
        "n": n,
        "batch_size": size,
        "seconds": seconds,
        "device": str(where),
        "threads": torch.get_num_threads(),
        "checkpoint": about,
        "config": settings,
        "versions": {
            "torch": torch.__version__,
            "numpy": np.__version__,
            "fmdiff": __version__,
        },
    }
    text = json.dumps(report, indent=2, default=str) + "\n"
    _replace(folder / "sample.json", lambda part: part.write_text(text))
    for name in [*written, "sample.json"]:
        print(f"  {folder / name}")


def describe(cfg, solver: Solver, plan: Plan, branches: int) -> str:
    """The plan in one line: solver, order, steps, where they lie, what they cost."""
    name = f"{cfg.choices.solver} (order {solver.order:g})"
    steps = f"{plan.steps} steps" if plan.steps != 1 else "1 step"
    if plan.nfe is None:
        steps, cost = "adaptive steps", "evaluations known after the run"
    else:
        cost = f"{plan.nfe} evaluations each"
    law = f"schedule {cfg.choices.schedule}"
    ends = f"from {plan.times[0]:.4g} to {plan.times[-1]:.4g}"
    jump = " and a jump to the estimate of x" if plan.jump else ""
    guided = f" (guidance {cfg.choices.guidance} included)" if branches > 1 else ""
    return (
        f"solver {name}, {steps}, {law}, in {cfg.coordinates} coordinates {ends}{jump}, "
        f"{cost}{guided}"
    )


def use_threads(
    asked: int | None, field: Field, size: int, where: torch.device, devices: int = 1
) -> None:
    """Compute with as many CPU threads as asked for, or as the rule has for batches of `size`."""
    net = field.net
    if where.type != "cpu" or (net is None and asked is None):
        return
    parameters = 0 if net is None else sum(p.numel() for p in net.parameters())
    rule = device.threads(parameters, size, field.shape) // devices
    torch.set_num_threads(asked or max(1, rule))


def options(
    settings: dict[str, Any],
    field: Field,
    where: torch.device,
    about: dict[str, Any] | None,
) -> Sampler:
    """How the settings of a sample say that the field is sampled.

    Sees to it that the networks compute on `where` as settings say. about: of the checkpoint, if
    it is one; times that are to be fitted are looked for, or left, beside it.
    """
    precision, compiled = settings["precision"], settings["compile"]
    if precision != "fp32" and settings["dtype"] == "float64":
        raise FmdiffError(f"precision={precision} does not go with dtype=float64: leave one out")
    if compiled is None and settings["n"] < COMPILED:
        compiled = False
    along = settings["path"] and settings["ckpt"]  # without a checkpoint the field has this path
    names = ("steps", "nfe", "coordinates", "final", "clip", "batch_size")
    sampler = Sampler(
        **{name: settings[name] for name in names},
        solver=build(settings["solver"]),
        schedule=build(settings["schedule"]),
        guidance=guidance(settings["guidance"]),
        path=from_spec(settings["path"]) if along else None,
        device=where,
        dtype=getattr(torch, settings["dtype"]),
    )
    if not settings.get("trajectory"):  # whose frames the steps are
        check_steps(sampler.solver, settings["steps"])
    for part in filter(None, (field, sampler.guidance.guide)):
        hasten(part, precision, compiled, where)
    return with_times(sampler, field, settings, about)


class Kept:
    """Samples as they arrive, images as pixels: (n, H, W, C) uint8, or points (n, d)."""

    def __init__(self) -> None:
        self.parts: list[Tensor] = []
        self.ys: list[Tensor] = []

    def add(self, x: Tensor, y: Tensor | None) -> None:
        self.parts.append(x.cpu())
        if y is not None:
            self.ys.append(y)

    def gather(self) -> None:
        """Keep those of all ranks, in their order."""
        pieces = processes.gathered((self.parts, self.ys))
        self.parts = [part for parts, _ in pieces for part in parts]
        self.ys = [y for _, ys in pieces for y in ys]

    @cached_property
    def x(self) -> Tensor:
        return torch.cat(self.parts)

    @cached_property
    def labels(self) -> Tensor | None:
        return torch.cat(self.ys) if self.ys else None


def write(
    x: Tensor,
    labels: Tensor | None,
    folder: Path,
    data=None,
    png: bool = False,
    trajectory: tuple[Tensor, Tensor] | None = None,
) -> list[str]:
    """Write pixels or points and their pictures into the folder; the names of what was written."""
    arrays = {} if labels is None else {"labels": labels.numpy()}
    if x.ndim == 4:
        pixels = x.numpy()
        arrays, written = {"arr_0": pixels, **arrays}, ["samples.npz", "grid.png"]
        shown = slice(0, 100)
        y = None if labels is None else labels[shown].tolist()
        plots.save(plots.grid(pixels[shown], y), folder / "grid.png")
        if png:
            for i, image in enumerate(pixels):
                plain = image[..., 0] if image.shape[-1] == 1 else image
                plots.save(Image.fromarray(plain), folder / f"{i:06d}.png")
            written.append(f"000000.png ... {len(pixels) - 1:06d}.png")
    else:
        points = x.float().numpy()
        arrays, written = {"arr_0": points, **arrays}, ["samples.npz", "scatter.png"]
        real = None if data is None else data.sample(0, len(points), 1)[0].numpy()
        plots.save(plots.scatter(points, real), folder / "scatter.png")
        if trajectory is not None and points.shape[1] == 1:
            states, times = (tensor.double().numpy() for tensor in trajectory)
            plots.save(plots.fan(states, times, real, points), folder / "fan.png")
            written.append("fan.png")
    _replace(folder / "samples.npz", lambda part: np.savez(part, **arrays))  # type: ignore[arg-type]
    return written


def movies(
    samples: Samples,
    folder: Path,
    form: str,
    data=None,
    arrows: Callable[[Tensor, Tensor], Tensor] | None = None,
) -> list[str]:
    """Write the animations of samples with a trajectory, in the format `form`; their names.

    arrows(points (G, 2), times (F,)) gives the velocities to draw (F, G, 2).
    """
    assert samples.trajectory is not None
    found = {"trajectory": _thinned(samples.trajectory)}
    if samples.x_hat is not None:
        found["x_hat"] = _thinned(samples.x_hat)
    films = {}
    if samples.trajectory[0].ndim == 5:
        for name, (images, times) in found.items():
            pixels = np.stack([to_uint8(frame).numpy() for frame in images])
            films[name] = animate.image_frames(pixels, times.tolist())
    else:
        real = None if data is None else data.sample(0, 2000, 1)[0].numpy()
        states, times = found["trajectory"]
        within = animate.box(states.numpy(), real)
        for name, (points, at) in found.items():
            what = {"trajectory": "samples", "x_hat": "estimates of x"}[name]
            films[name] = animate.point_frames(points.numpy(), at.tolist(), real, within, what)
        if arrows and states.shape[2] == 2:
            mesh = animate.mesh(within)
            u = mesh, arrows(torch.from_numpy(mesh), times).numpy()
            films["field"] = animate.point_frames(
                states.numpy(), times.tolist(), real, within, "velocity and samples", u
            )
    for name, frames in films.items():
        animate.animation(frames, folder / f"{name}.{form}")
    return [f"{name}.{form}" for name in films]


def _thinned(watch: Watch) -> Watch:
    frames, times = watch
    picked = torch.from_numpy(animate.frame_indices(len(times)))
    return frames[picked], times[picked]


def pictured(field: Field, sampler: Sampler, y: Tensor | None, n: int) -> Field:
    """The field whose n arrows are drawn: guided where all samples have one label y.

    Samples of several classes move in several fields; what is drawn is that of all data, the null
    label's, without guidance.
    """
    plain = replace(sampler, clip="none")
    if y is None or (y == y[0]).all():
        return plain.seen(field, None if y is None else y[:1].repeat(n))
    null = y.new_full((n,), field.classes) if field.classes else None
    return replace(plain, guidance=UNGUIDED).seen(field, null)


def _replace(path: Path, write: Callable[[Path], object]) -> None:
    """Let `write` fill a file beside path, then put it in path's place."""
    part = path.with_name(f".part-{path.name}")
    try:
        write(part)
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)
