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
from fmdiff.pictures import plots

NEIGHBOURS = 8  # samples shown with their nearest training images


def conclude(
    folder: Path,
    command: str,
    settings: dict[str, Any],
    judge: Judge,
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


def compare(before: Mapping[str, dict[str, Any]], now: Mapping[str, Metric]) -> None:
    """Print the metrics of a results.json beside those of its repetition."""
    for name, metric in now.items():
        if name in before:
            print(f"  {name}: {before[name]['value']:.6g} then, {metric.value:.6g} now")
