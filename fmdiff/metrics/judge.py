"""What judges samples: metrics against real data, chosen by metrics=, features= and against=."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor

from fmdiff import files
from fmdiff.build import build, config_folder, named
from fmdiff.data import saved
from fmdiff.data.images import Images
from fmdiff.errors import FmdiffError, nearest
from fmdiff.machine.progress import Bar
from fmdiff.metrics import reference
from fmdiff.metrics.features import Features, extractor_of, for_data
from fmdiff.metrics.frechet import gather
from fmdiff.metrics.images import BOOTSTRAPPED, ImageMetrics, Real, real_images
from fmdiff.metrics.metric import Metric
from fmdiff.metrics.points import chosen, measures, point_metrics

SPLITS = ("train", "test")


class Judge(Protocol):
    """Takes batches of samples in and gives their metrics at the end."""

    warnings: list[str]

    @property
    def columns(self) -> list[str]:
        """What the metrics are called."""

    def add(self, x: Tensor, y: Tensor | None = None) -> None:
        """Images uint8 (B, H, W, C) or points (B, d), and the classes they were asked for."""

    def results(self) -> dict[str, Metric]: ...

    def clear(self) -> None:
        """Forget the samples, not the reference."""


class PointMetrics:
    """Metrics of points against fresh points of a data set, or against given ones (m, d).

    With `spread` those that all processes of the default group took in: see ImageMetrics.
    """

    def __init__(
        self,
        names: Sequence[str] | None,
        data,
        given: Tensor | None,
        seed: int,
        spread: bool = False,
    ) -> None:
        self.names = list(chosen(names or list(measures(data)), data))
        self.data, self.given, self.seed, self.spread = data, given, seed, spread
        self.warnings: list[str] = []
        self.clear()

    @property
    def columns(self) -> list[str]:
        return self.names

    def clear(self) -> None:
        self.points: list[Tensor] = []

    def add(self, x: Tensor, y: Tensor | None = None) -> None:
        self.points.append(x.float().cpu())

    def results(self) -> dict[str, Metric]:
        x = torch.cat(self.points)
        if self.spread:
            x = gather(x)
        n = len(x) if self.given is None else min(len(x), len(self.given))
        return point_metrics(self.names, x, self.data, n, self.seed, self.given)


class Against(NamedTuple):
    """What samples are compared with: a split of a data set, samples in files, or statistics."""

    data: Any = None
    split: str = "train"
    samples: Tensor | None = None
    statistics: Path | None = None


def against(said: str | None, data: Any, channels: int = 1) -> Against:
    """What against= means; data is the data set the samples stand for, which null stands for.

    channels: of the samples, which grey pictures of a folder take on.

    Raises FmdiffError for what is neither a file nor a folder nor the name of a data set.
    """
    if said is None:
        if data is None:
            raise FmdiffError("against= is needed: a data set, a .npz or a folder of images")
        return Against(data)
    path = Path(said).expanduser()
    if "mu" in files.npz_names(path):
        return Against(statistics=path)
    if path.exists():
        return Against(samples=saved.read(path, "against", channels)[0])
    name, _, split = said.partition(":")
    sets = sorted(file.stem for file in (config_folder() / "data").glob("*.yaml"))
    if name not in sets:
        raise FmdiffError(
            f"against={said} is no file or folder, no data set and not exact; "
            f"{nearest(name, sets)}"
        )
    found = data if name == _name(data) else named("data", name)
    if split and split not in found.splits:
        raise FmdiffError(
            f"against={said}: {name} has no split {split!r}; "
            + (f"choose {name}:train or {name}:test" if found.splits else f"say against={name}")
        )
    return Against(found, split or "train")


def judge(
    settings: dict[str, Any],
    data: Any,
    shape: tuple[int, ...],
    classes: int,
    seed: int,
    device,
    spread: bool = False,
) -> Judge:
    """The judge that the keys metrics, features and against ask for.

    data: the data set that samples of `shape` and `classes` stand for, or None. spread: each rank
    takes in its own samples, and all ask for the results.

    Raises FmdiffError for what does not go together.
    """
    channels = shape[0] if len(shape) == 3 else 1
    real, names = against(settings["against"], data, channels), settings["metrics"]
    other = tuple(shape if real.data is None else real.data.shape)
    if real.samples is not None:
        if len(real.samples) < 2:
            raise FmdiffError(
                f"against={settings['against']} holds one sample, and a metric needs 2 at least"
            )
        *size, last = real.samples.shape[1:]
        other = (last, *size)  # pixels are (N, H, W, C)
    if other != tuple(shape):
        raise FmdiffError(
            f"against={settings['against']} is data of shape {list(other)}, and the samples have "
            f"shape {list(shape)}"
        )
    if len(shape) == 1:
        if real.statistics is not None:
            raise FmdiffError(f"against={real.statistics}: points are compared with points")
        return PointMetrics(names, real.data, real.samples, seed, spread)
    extractor = _extractor(settings["features"], real.data or data, shape).to(device)
    names = names or _usual(real, classes, extractor)
    held_out = None
    if real.statistics is not None:
        compared = _statistics(real.statistics, extractor)
    elif real.samples is not None:
        compared = real_images(extractor, real.samples, "files", "all")
    else:
        compared = split_features(extractor, real.data, real.split)
        if "memorisation" in names or extractor.dimension <= BOOTSTRAPPED:
            held_out = split_features(extractor, real.data, SPLITS[real.split == "train"]).features
    made = ImageMetrics(names, extractor, compared, held_out, seed, spread)
    if settings["against"] and data is not None and _name(real.data) != _name(data):
        made.warnings.append(
            f"the samples stand for {_name(data)} and are compared with {compared.text}"
        )
    if "fid" in names and extractor.distance != "fid":
        made.warnings.append(
            f"the Frechet distance is {extractor.distance}, of the features of "
            f"features={extractor.name}; only features=inception gives FID"
        )
    return made


def _extractor(spec: dict | None, data: Any, shape: tuple[int, ...]) -> Features:
    if spec is not None:
        return extractor_of(build(spec))
    choice = for_data(_name(data), shape)
    if choice is None:
        raise FmdiffError(
            f"no feature extractor is known for images of shape {list(shape)}: choose "
            "features=mnist, fashion_mnist, cifar10 or inception"
        )
    return named("features", choice)


def _usual(real: Against, classes: int, extractor: Features) -> list[str]:
    """The metrics taken where none are named."""
    names = ["fid"] if real.statistics is not None else ["fid", "kid", "precision", "recall"]
    return names + ["agreement", "confidence"] * (classes == extractor.classes > 0)


def _statistics(path: Path, extractor: Features) -> Real:
    found = reference.load(path, extractor, features="features" in files.npz_names(path))
    text = f"the statistics {path.name}" + (f" of {found.count:,} images" if found.count else "")
    return Real(text, found, found.features)


def split_features(extractor: Features, data: Images, split: str) -> Real:
    data.prepare()
    pixels, labels = data.train if split == "train" else data.test
    name = _name(data) or type(data).__name__.lower()
    with Bar(len(pixels), f"{name} {split} image") as bar:
        return real_images(extractor, pixels.permute(0, 2, 3, 1), name, split, labels, bar)


def _name(data: Any) -> str | None:
    """The name of the YAML of a data set that is downloaded, or None."""
    return None if data is None else data.name
