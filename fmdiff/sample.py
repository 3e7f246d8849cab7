"""fmdiff sample: a checkpoint or an exact field into points, images and pictures."""

import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from omegaconf import OmegaConf
from PIL import Image
from torch import Tensor

from fmdiff import __version__, device, plots
from fmdiff.build import build
from fmdiff.data.images import to_uint8
from fmdiff.field import Field
from fmdiff.guidance import clipped
from fmdiff.loading import opened
from fmdiff.path import from_spec
from fmdiff.sampling import Plan, Samples, default_batch_size, generate, plan, view


def sample(cfg, folder: Path) -> None:
    """Draw cfg.n samples of ckpt= or model= into the folder; prints what it cost and where it is.

    Writes samples.npz (arr_0: uint8 images (N, H, W, C) or float32 points (N, d); labels where
    there are classes), grid.png or scatter.png, trajectory.gif and 000000.png ... on request, and
    sample.json.
    """
    where = device.pick(cfg.device)
    settings: dict[str, Any] = OmegaConf.to_container(cfg)  # type: ignore[assignment]
    field, data = opened(settings)
    images = len(field.shape) == 3
    n = cfg.n or (64 if images else 10_000)
    size = min(cfg.batch_size or default_batch_size(field.shape), n)
    net = getattr(field, "net", None)
    parameters = sum(p.numel() for p in net.parameters()) if net else 0
    if where.type == "cpu":
        rule = device.threads(parameters, size, field.shape) if net else torch.get_num_threads()
        torch.set_num_threads(cfg.threads or rule)

    path = from_spec(settings["path"]) if cfg.path and cfg.ckpt else None
    solver, schedule = build(settings["solver"]), build(settings["schedule"])

    def guidance(field: Field, y: Tensor | None) -> Field:
        return build(settings["guidance"], field, y)

    settings_of_plan = (cfg.steps, schedule, cfg.final, cfg.nfe, cfg.trajectory)
    bound = clipped(guidance(field, field.labels(settings["classes"], 0, 1, cfg.seed)), cfg.clip)
    laid_out = plan(view(bound, cfg.coordinates, path), solver, *settings_of_plan)
    print(f"{n} samples, {describe(cfg, solver, laid_out, bound.branches)}")
    bar = _Bar(n)
    begin = time.perf_counter()
    samples = generate(
        field,
        n,
        solver=solver,
        steps=cfg.steps,
        nfe=cfg.nfe,
        seed=cfg.seed,
        classes=settings["classes"],
        guidance=guidance,
        schedule=schedule,
        coordinates=cfg.coordinates,
        final=cfg.final,
        path=path,
        clip=cfg.clip,
        batch_size=size,
        device=where,
        dtype=getattr(torch, cfg.dtype),
        trajectory=cfg.trajectory,
        progress=bar,
    )
    seconds = time.perf_counter() - begin
    bar.close()
    written = write(samples, folder, data, png=cfg.png)
    report = {
        "nfe_planned": samples.nfe_planned,
        "nfe_counted": samples.nfe_counted,
        "n": n,
        "batch_size": size,
        "seconds": seconds,
        "device": str(where),
        "threads": torch.get_num_threads(),
        "config": settings,
        "versions": {
            "torch": torch.__version__,
            "numpy": np.__version__,
            "fmdiff": __version__,
        },
    }
    text = json.dumps(report, indent=2, default=str) + "\n"
    _replace(folder / "sample.json", lambda part: part.write_text(text))
    print(
        f"{samples.nfe_counted:g} evaluations per sample counted, {seconds:.1f} s, "
        f"{1000 * seconds / n:.3g} ms per sample"
    )
    for name in [*written, "sample.json"]:
        print(f"  {folder / name}")


def describe(cfg, solver, plan: Plan, branches: int) -> str:
    """The plan in one line: solver, order, steps, where they lie, what they cost."""
    order = getattr(solver, "order", None)
    name = cfg.choices.solver + (f" (order {order:g})" if order else "")
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


def write(samples: Samples, folder: Path, data=None, png: bool = False) -> list[str]:
    """Write samples and their pictures into the folder; the names of what was written."""
    labels: dict[str, Any] = {} if samples.y is None else {"labels": samples.y.numpy()}
    if samples.x.ndim == 4:
        pixels = to_uint8(samples.x).numpy()
        arrays, written = {"arr_0": pixels, **labels}, ["samples.npz", "grid.png"]
        shown = slice(0, 100)
        y = None if samples.y is None else samples.y[shown].tolist()
        plots.save(plots.grid(pixels[shown], y), folder / "grid.png")
        if png:
            for i, image in enumerate(pixels):
                plain = image[..., 0] if image.shape[-1] == 1 else image
                plots.save(Image.fromarray(plain), folder / f"{i:06d}.png")
            written.append(f"000000.png ... {len(pixels) - 1:06d}.png")
    else:
        points = samples.x.float().numpy()
        arrays, written = {"arr_0": points, **labels}, ["samples.npz", "scatter.png"]
        real = None if data is None else data.sample(0, len(points), 1)[0].numpy()
        plots.save(plots.scatter(points, real), folder / "scatter.png")
        if samples.trajectory is not None and points.shape[1] == 1:
            states, times = samples.trajectory
            plots.save(plots.fan(states.float().numpy(), times.numpy(), real), folder / "fan.png")
            written.append("fan.png")
    if samples.trajectory is not None:
        plots.animation(_frames(*samples.trajectory, data), folder / "trajectory.gif")
        written.append("trajectory.gif")
    _replace(folder / "samples.npz", lambda part: np.savez(part, **arrays))
    return written


def _frames(states: Tensor, times: Tensor, data) -> list:
    if states.ndim == 5:
        few = states[:, :36]
        pixels = np.stack([to_uint8(frame).numpy() for frame in few])
        return plots.image_frames(pixels, times.tolist())
    real = None if data is None else data.sample(0, 2000, 1)[0].numpy()
    return plots.point_frames(states[:, :2000].float().numpy(), times.tolist(), real)


def _replace(path: Path, write: Callable[[Path], object]) -> None:
    """Let `write` fill a file beside path, then put it in path's place."""
    part = path.with_name(f".part-{path.name}")
    write(part)
    part.replace(path)


class _Bar:
    """A progress bar on a terminal, a line every ten seconds elsewhere."""

    def __init__(self, n: int) -> None:
        from tqdm import tqdm

        self.bar = tqdm(total=n, unit="sample", disable=None, leave=False)
        self.n, self.done, self.begin = n, 0, time.monotonic()
        self.said = self.begin

    def __call__(self, done: int) -> None:
        self.bar.update(done)
        self.done += done
        now = time.monotonic()
        if self.bar.disable and now - self.said > 10:
            left = (now - self.begin) * (self.n / self.done - 1)
            print(f"{self.done}/{self.n} samples, {left:.0f} s left", flush=True)
            self.said = now

    def close(self) -> None:
        self.bar.close()
