"""Reports the judging of samples: results.json, warnings, and nearest training images."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fmdiff.metrics import results
from fmdiff.metrics.images import ImageMetrics
from fmdiff.metrics.judge import Judge
from fmdiff.metrics.metric import Metric
from fmdiff.metrics.reconstruction import Reconstructions
from fmdiff.pictures import plots

NEIGHBOURS = 8  # samples shown with their nearest training images


def conclude(
    folder: Path,
    command: str,
    settings: dict[str, Any],
    judge: Judge | Reconstructions,
    metrics: dict[str, Metric],
    pixels: Tensor | None = None,
    **more: Any,
) -> None:
    """Print the warnings; write results.json and, if memorisation was judged, neighbours.png.

    pixels: the first samples if they are images, uint8 (N, H, W, C). more: arguments of
    `results.write`.
    """
    if isinstance(judge, ImageMetrics) and judge.neighbours is not None and pixels is not None:
        plots.save(_neighbours(judge, pixels), folder / "neighbours.png")
    for warning in dict.fromkeys(judge.warnings):
        print(f"note: {warning}")
    more["reference_sha256"] = judge.digest()
    results.write(folder, command, settings, metrics, judge.warnings, **more)


def _neighbours(judge: ImageMetrics, pixels: Tensor) -> Any:
    """A picture of the samples nearest to a training image, above those images."""
    assert judge.neighbours is not None
    assert judge.real.pixels is not None
    index, distance = judge.neighbours
    order = distance[: len(pixels)].argsort()[:NEIGHBOURS]
    pairs = torch.cat([pixels[order], judge.real.pixels[index[order]]])
    words = [f"sample {i}" for i in order.tolist()] + [f"{d:.3g}" for d in distance[order]]
    return plots.grid(pairs.numpy(), words, len(order))


def compare(before: Mapping[str, Any], now: Mapping[str, Any]) -> None:
    """Print the metrics of a results.json beside those of its repetition, a later results.json.

    Says so if they are of other weights, another reference or other samples.
    """
    for name, metric in now["metrics"].items():
        if name in before["metrics"]:
            then, value = before["metrics"][name]["value"], metric["value"]
            print(f"  {name}: {_number(then)} then, {_number(value)} now")
    for what, option in (("reference_sha256", "against"), ("samples_sha256", "samples")):
        if what in before and before[what] != now.get(what):
            path = f"={before['config'][option]}" if before["config"].get(option) else ""
            print(f"note: {option}{path} has another content now than then")
    then, later = before.get("checkpoint") or {}, now.get("checkpoint") or {}
    if any(name in then and then[name] != later.get(name) for name in ("step", "sha256")):
        steps = f"step {then.get('step')} then, step {later.get('step')} now"
        print(f"note: ckpt={then.get('path')} holds another model now than then: {steps}")


def _number(value: float | None) -> str:
    return "not finite" if value is None else f"{value:.6g}"
