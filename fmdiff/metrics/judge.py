"""Judges of samples: metrics against real data, chosen by metrics=, features= and against=."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor

from fmdiff import files
from fmdiff.build import build, config_folder, named
from fmdiff.codec import kind_of
from fmdiff.data import saved
from fmdiff.data.base import Data
from fmdiff.data.images import Images
from fmdiff.errors import FmdiffError, nearest
from fmdiff.machine.progress import Bar
from fmdiff.metrics import reference as statistics
from fmdiff.metrics.features import Features, extractor_of, for_data
from fmdiff.metrics.frechet import Moments, few_samples, gather
from fmdiff.metrics.images import (
    ALONE,
    BOOTSTRAPPED,
    OF_CLASSES,
    ImageMetrics,
    Real,
    foreign,
    real_images,
)
from fmdiff.metrics.metric import Metric
from fmdiff.metrics.paired import NAMES as OF_PAIRS
from fmdiff.metrics.paired import PairedMetrics
from fmdiff.metrics.points import DISTANCES, measures_of, outlier, point_metrics, usual
from fmdiff.metrics.series import features_text
from fmdiff.metrics.subset import CHOICE, part

SPLITS = ("train", "test")
STANDING = 1024  # points that stand for a data set in a digest


class Judge(Protocol):
    """Collects batches of samples and computes their metrics at the end."""

    warnings: list[str]  # what a reader of the metrics must know
    seed: int  # of what is drawn for the metrics: fresh reference points of a data set

    @property
    def columns(self) -> list[str]:
        """The names of the metrics."""

    def add(self, x: Tensor, y: Tensor | None = None) -> None:
        """Add samples and the classes (B,) they are for.

        Images are uint8 (B, H, W, C); points (B, d), series (B, C, L) and arrays (B, C, H, W)
        floats.
        """

    def results(self, reasons: list[str] | None = None) -> dict[str, Metric]:
        """The metrics of all samples added, by name.

        With `reasons` a metric that cannot be computed is left out, and the reason is added.
        """

    def clear(self) -> None:
        """Forget the samples, but not the reference."""

    def check(self, n: int) -> None:
        """Raises FmdiffError if n samples are too few for these metrics."""

    def digest(self) -> str:
        """A SHA-256 of everything that the samples are compared with."""


class PointMetrics:
    """Metrics of points, series or arrays against those of a data set, or those of a file.

    names: null takes the usual ones. shape: that of a sample. With `spread` each process of the
    default group adds its own samples, and all must call `results`, which is of all samples.
    Raises FmdiffError for a name that the data set does not allow.
    """

    def __init__(
        self,
        names: Sequence[str] | None,
        data: Data | None,
        reference: Tensor | None,
        seed: int,
        spread: bool = False,
        shape: Sequence[int] = (2,),
    ) -> None:
        self.names = list(measures_of(names or usual(data, shape), data, shape))
        self.data, self.reference, self.seed, self.spread = data, reference, seed, spread
        self.warnings: list[str] = []
        few = [name for name in self.names if name in DISTANCES]
        if few and (text := features_text(shape)):
            self.warnings.append(f"{', '.join(few)}: {text}")
        self.clear()

    @property
    def columns(self) -> list[str]:
        """The names of the metrics."""
        return self.names

    def clear(self) -> None:
        """Forget the samples, but not the reference."""
        self.points: list[Tensor] = []

    def check(self, n: int) -> None:
        """Raises FmdiffError for fewer than 4 samples, or fewer than 4 of the reference."""
        if min(n, self._limit() or n) < 4:
            raise FmdiffError(f"n={n}: metrics of points need 4 samples and 4 points at least")

    def _limit(self) -> int | None:
        """How many samples the reference has; None if they are drawn in any number."""
        if self.reference is not None:
            return len(self.reference)
        return None if self.data is None else self.data.references

    def digest(self) -> str:
        """A SHA-256 of the file's points, or of as many of the data set's as stand for it."""
        points = self.reference
        if points is None:
            assert self.data is not None
            points = self.data.sample(0, min(STANDING, self._limit() or STANDING), 0)[0]
        return statistics.content_hash(points)

    def add(self, x: Tensor, y: Tensor | None = None) -> None:
        """Add samples (B, *shape). Their classes are not used."""
        self.points.append((x if x.dtype == torch.float64 else x.float()).cpu())

    def results(self, reasons: list[str] | None = None) -> dict[str, Metric]:
        """The metrics of all points added, by name; see `point_metrics`."""
        x = torch.cat(self.points)
        if self.spread:
            x = gather(x)
        n = min(len(x), self._limit() or len(x))
        metrics = point_metrics(self.names, x, self.data, n, self.seed, self.reference, reasons)
        for name, metric in metrics.items():
            if metric.n < len(x):
                self.warnings.append(f"{name} takes {part(metric.n, len(x))} samples: {CHOICE}")
            if "note" in metric.extra:
                self.warnings.append(f"{name}: {metric.extra['note']}")
        return metrics


class Against(NamedTuple):
    """The reference of samples: a split of a data set, samples of a file, or statistics."""

    data: Data | None = None
    split: str = "train"
    samples: Tensor | None = None
    statistics: Path | None = None


def against(value: str | None, data: Data | None, channels: int = 1) -> Against:
    """The reference that `against=value` names.

    data: the data set that the samples stand for; null means this one. channels: those of the
    samples, which grey pictures of a folder take on. Raises FmdiffError if value is neither a file
    nor a folder nor the name of a data set.
    """
    if value is None:
        if data is None:
            raise FmdiffError("against= is needed: a data set, a .npz or a folder of images")
        return Against(data)
    path = Path(value).expanduser()
    if "mu" in files.npz_names(path):
        return Against(statistics=path)
    if path.exists():
        return Against(samples=saved.read(path, "against", channels)[0])
    name, _, split = value.partition(":")
    sets = sorted(file.stem for file in (config_folder() / "data").glob("*.yaml"))
    if name not in sets:
        raise FmdiffError(
            f"against={value} is no file or folder, no data set and not exact; "
            f"{nearest(name, sets)}"
        )
    other: Data = data if data is not None and name == data.name else named("data", name)
    if split and split not in other.splits:
        advice = f"choose {name}:train or {name}:test" if other.splits else f"say against={name}"
        raise FmdiffError(f"against={value}: {name} has no split {split!r}; {advice}")
    return Against(other, split or "train")


def judge(
    settings: dict[str, Any],
    data: Data | None,
    shape: tuple[int, ...],
    classes: int,
    seed: int,
    device: str | torch.device,
    spread: bool = False,
    paired: bool = False,
    kind: str | None = None,
) -> Judge:
    """The judge described by the keys metrics, features and against of the settings.

    data: the data set that samples of `shape` and `classes` stand for, or None. shape and kind:
    those of a sample to a user (see `codec.kind_of`). spread: each rank adds its own samples, and
    all call `results`. paired: each sample stands for a real image. Raises FmdiffError for
    settings that do not go together.
    """
    kind = kind or kind_of(shape)
    real = against(settings["against"], data, shape[0] if kind == "images" else 1)
    _check_shape(real, shape, kind, f"against={settings['against']}")
    if kind != "images":
        return _of_points(settings, real, shape, seed, spread)
    return _of_images(settings, data, real, shape, classes, seed, device, spread, paired)


def _of_points(
    settings: dict[str, Any], real: Against, shape: tuple[int, ...], seed: int, spread: bool
) -> PointMetrics:
    """See `judge`."""
    points = PointMetrics(settings["metrics"], real.data, real.samples, seed, spread, shape)
    if real.samples is not None:
        points.warnings += outlier(real.samples, f"against={settings['against']}")
    return points


def _of_images(
    settings: dict[str, Any],
    data: Data | None,
    real: Against,
    shape: tuple[int, ...],
    classes: int,
    seed: int,
    device: str | torch.device,
    spread: bool,
    paired: bool = False,
) -> ImageMetrics:
    """See `judge`."""
    extractor = _extractor(settings["features"], real.data or data, shape)
    extractor = extractor.for_shape(shape).to(device)
    owner = real.data if data is None else data
    own = bool(extractor.data) and extractor.data == _name(owner)
    names = settings["metrics"] or _usual(real, classes if own else 0, extractor)
    if paired and not settings["metrics"]:
        names = list(dict.fromkeys([*names, "psnr", *["agreement"] * own]))
    if not paired and (alone := [name for name in names if name in OF_PAIRS]):
        raise FmdiffError(
            f"metrics={alone} compares samples with the real images whose conditions they are "
            "given: say cond.NAME=data:test"
        )
    held_out: Real | None = None
    if real.statistics is not None:
        reference = _statistics(real.statistics, extractor)
    elif real.samples is not None:
        reference = real_images(extractor, real.samples, "files", "all")
    elif {*names} <= {*ALONE}:
        reference = Real("no images", Moments(extractor.dimension), None)
    else:
        images: Any = real.data
        reference = split_features(extractor, images, real.split)
        if "memorisation" in names or extractor.dimension <= BOOTSTRAPPED:
            held_out = split_features(extractor, images, SPLITS[real.split == "train"])
    metrics = PairedMetrics if paired else ImageMetrics
    judge = metrics(names, extractor, reference, held_out, seed, spread, classes=classes)
    if settings["against"] and data is not None and _name(real.data) != _name(data):
        judge.warnings.append(
            f"the samples stand for {_name(data)} and are compared with {reference.text}"
        )
    judge.warnings += _of_distance(judge, real)
    if own and data is None:  # samples of a file
        judge.warnings += _of_labels(judge.names, str(_name(owner)))
    if not own:
        kind = "these files" if owner is None else type(owner).__name__
        judge.warnings += foreign(judge, _name(owner) or kind)
    return judge


def _of_labels(names: list[str], data: str) -> list[str]:
    """What a reader must know if samples of a file are judged by the classes of a data set."""
    names = [name for name in names if name in OF_CLASSES[1:]]
    if not names:
        return []
    return [f"{', '.join(names)}: the labels of the samples are taken for the classes of {data}"]


def _of_distance(judge: ImageMetrics, real: Against) -> list[str]:
    """What a reader must know of the Frechet distance, before there are samples."""
    extractor, reference, warnings = judge.extractor, judge.real, list[str]()
    if "fid" in judge.names and extractor.distance != "fid":
        warnings.append(
            f"the Frechet distance is {extractor.distance}, of the features of "
            f"features={extractor.name}; only features=inception gives FID"
        )
    if real.statistics is not None and "count" not in files.npz_names(real.statistics):
        warnings.append(
            f"{real.statistics} does not say of how many images it is; if they were few, the "
            "distance is too large"
        )
    count = extractor.dimension + 1 if reference.features is None else len(reference.features)
    if "fid" in judge.names and (few := few_samples(count, extractor.dimension)):
        warnings.append(f"the reference {reference.text}: {few}")
    return warnings


def _check_shape(real: Against, shape: tuple[int, ...], kind: str, option: str) -> None:
    """Raises FmdiffError if samples of `shape` and `kind` cannot be compared with `real`."""
    other, theirs = tuple(shape), kind
    if real.data is not None:
        other, theirs = real.data.outer, real.data.kind
    if real.statistics is not None:
        theirs = "images"
    if real.samples is not None:
        if len(real.samples) < 2:
            raise FmdiffError(f"{option} holds one sample, and a metric needs 2 at least")
        other, theirs = saved.shape_of(real.samples)
    if other != tuple(shape):
        raise FmdiffError(
            f"{option} is data of shape {list(other)}, and the samples have shape {list(shape)}"
        )
    if theirs != kind:
        raise FmdiffError(f"{option}: {theirs} are no reference of {kind}")


def _extractor(spec: dict | None, data: Data | None, shape: tuple[int, ...]) -> Features:
    if spec is not None:
        return extractor_of(build(spec))
    choice = for_data(_name(data), shape)
    if choice is None:
        raise FmdiffError(
            f"there are no features of images of {shape[0]} channels: those of the package are of "
            "1 or 3, and docs/extending.md says how to add your own"
        )
    return named("features", choice)


def _usual(real: Against, classes: int, extractor: Features) -> list[str]:
    """The default metrics of images, for metrics=null.

    classes: those of the samples, if they are the extractor's, or 0.
    """
    names = ["fid"] if real.statistics is not None else ["fid", "kid", "precision", "recall"]
    return names + ["agreement", "confidence"] * (0 < classes <= extractor.classes)


def _statistics(path: Path, extractor: Features) -> Real:
    stored = statistics.load(path, extractor, features="features" in files.npz_names(path))
    text = f"the statistics {path.name}" + (f" of {stored.count:,} images" if stored.count else "")
    return Real(
        text, stored, stored.features, sha256=statistics.content_hash(stored.mean, stored.cov)
    )


def split_features(extractor: Features, data: Images, split: str) -> Real:
    """The features of the images of a split, train or test. Prepares the data first."""
    data.prepare()
    pixels, labels = data.train if split == "train" else data.test
    name = _name(data) or type(data).__name__.lower()
    with Bar(len(pixels), f"{name} {split} image") as bar:
        return real_images(extractor, pixels.permute(0, 2, 3, 1), name, split, labels, bar)


def _name(data: Data | None) -> str | None:
    """The name of the YAML of a data set whose files fmdiff looks after, or None."""
    return None if data is None else data.name
