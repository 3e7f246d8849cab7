"""fmdiff evaluate of an autoencoder, and the bound that it sets to samples of its latent space."""

from pathlib import Path
from typing import Any

import torch

from fmdiff.commands.conclude import conclude
from fmdiff.commands.stage import Stage
from fmdiff.errors import FmdiffError
from fmdiff.loading import Encodes
from fmdiff.machine import processes
from fmdiff.metrics import results
from fmdiff.metrics.judge import Judge
from fmdiff.metrics.metric import Metrics
from fmdiff.metrics.reconstruction import Reconstructions
from fmdiff.models.autoencoder import Latent
from fmdiff.pictures import plots
from fmdiff.pictures.samples import in_pairs

SHOWN = 64  # images in the picture, each above its reconstruction


def reconstructions(
    of: Encodes, settings: dict[str, Any], where: torch.device, folder: Path, default: int
) -> None:
    """Judge what an autoencoder makes of n real samples; see `Reconstructions`.

    Writes results.json and, for images, reconstructions.png. default: n if it is not given. Raises
    FmdiffError for settings of samples.
    """
    if settings["classes"] is not None:
        raise FmdiffError(
            f"classes={settings['classes']}: an autoencoder has no samples, so leave it out"
        )
    if settings["devices"] > 1:
        raise FmdiffError("an autoencoder is judged in one process: devices must be 1")
    judge = Reconstructions(settings["metrics"], settings, of.data, where, settings["seed"])
    n = min(settings["n"] or default, of.data.references or default)
    judge.check(n)
    metrics = judge.results(of.codec, n)
    print(results.as_text(metrics))
    if judge.images:
        x = of.data.sample(0, min(n, SHOWN), settings["seed"])[0].to(where)
        with torch.no_grad():
            picture = in_pairs(x, of.codec.decode(of.codec.encode(x)))
        plots.save(picture, folder / "reconstructions.png")
    conclude(folder, "evaluate", settings, judge, metrics, checkpoint=of.about)


def bound(stage: Stage, judge: Judge, where: torch.device) -> Metrics | None:
    """The usual metrics of the reconstructions beside which samples stand; None without any.

    Adds a note to `judge`.
    """
    codec, data = stage.field.codec, stage.data
    if not isinstance(codec, Latent) or data is None or processes.rank():
        return None
    of = Reconstructions(None, stage.settings, data, where, stage.settings["seed"])
    metrics = of.results(codec, stage.n)
    words = ", ".join(f"{name} {metric.value:.4g}" for name, metric in metrics.items())
    n = min(metric.n for metric in metrics.values())
    judge.warnings.append(
        f"{n:,} real samples, encoded and decoded, have {words}: samples of this latent space can "
        "hardly be better"
    )
    return metrics
