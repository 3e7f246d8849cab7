"""Metrics of images in one pass. Only the features of the images are kept."""

import contextlib
import hashlib
import math
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from fmdiff.errors import FmdiffError, nearest
from fmdiff.metrics import reference
from fmdiff.metrics.features import Features, read
from fmdiff.metrics.frechet import (
    Moments,
    Normal,
    few_samples,
    frechet_distance,
    frechet_interval,
    gather,
)
from fmdiff.metrics.kernel import kernel_distance
from fmdiff.metrics.manifold import FALSE_ALARM, Coverage, memorisation, precision_recall
from fmdiff.metrics.metric import Metric, Metrics, impossible, normal_interval, wilson
from fmdiff.metrics.score import inception_score
from fmdiff.randomness import generator

BATCH = 250  # images given to an extractor at a time
BOOTSTRAPPED = 256  # up to this dimension, a Frechet interval costs seconds
FLOORS = 9  # random sets of held-out images whose median is the floor
SPAN = 10_000  # real images that span the manifold of precision and recall
SURE = 0.9  # the confidence above which a sample counts as clearly of a class
NAMES = (
    "fid",
    "kid",
    "is",
    "precision",
    "recall",
    "memorisation",
    "agreement",
    "confidence",
    "classes",
)
OF_CLASSES = ("is", "agreement", "confidence", "classes")  # all but is need the data's classes
ALONE = ("is", "agreement", "confidence")  # these need no real images
LEAST = {"fid": 2, "kid": 2, "precision": 4, "recall": 4, "memorisation": 2}  # images needed
OF_FEATURES = ("kid", "precision", "recall", "memorisation")  # these need the reference's features


class Real(NamedTuple):
    """The features of real images."""

    text: str  # name of the images, for reports
    moments: Normal
    features: Tensor | None  # (m, d); None if only their moments are known
    labels: Tensor | None = None
    pixels: Tensor | None = None  # uint8 (m, H, W, C)
    sha256: str = ""  # of the images with their labels, or of their moments


def features_of(
    extractor: Features, pixels: Tensor, progress: Callable[[int], None] | None = None
) -> Tensor:
    """Compute the features (n, d) of images uint8 (n, H, W, C). The result is on the CPU."""
    parts = []
    for part in pixels.split(BATCH):
        parts.append(read(extractor, part)[0].cpu())
        if progress:
            progress(len(part))
    return torch.cat(parts)


def real_images(
    extractor: Features,
    pixels: Tensor,
    name: str,
    split: str,
    labels: Tensor | None = None,
    progress: Callable[[int], None] | None = None,
) -> Real:
    """Use the split of a data set, uint8 (n, H, W, C), as reference; features are cached.

    The cache file is named by the hashes of the pixels and of the extractor's weights. Without
    weights, or if no file can be written, the features are computed every time.
    """
    text = f"{name} {split}, {len(pixels):,} images"
    facts: dict[str, Any] = {
        "data": name,
        "split": split,
        "count": len(pixels),
        "pixels": reference.content_hash(pixels.permute(0, 3, 1, 2)),
    }
    sha256 = facts["pixels"]
    if labels is not None:
        sha256 += reference.content_hash(labels)
    file = reference.cached(**facts, extractor=extractor)
    if extractor.sha256:
        try:
            stored = reference.load(file, extractor, features=True, **facts)
            return Real(text, stored, stored.features, labels, pixels, sha256)
        except FmdiffError:  # the file is missing or damaged: compute them again
            pass
    features = features_of(extractor, pixels, progress)
    moments = Moments(extractor.dimension).add(features)
    own: dict[str, Any] = {"extractor": extractor.name, "sha256": extractor.sha256}
    if extractor.sha256:
        whole = reference.Reference(moments.mean, moments.cov, **facts, **own, features=features)
        with contextlib.suppress(OSError):
            reference.save(file, whole)
    return Real(text, moments, features, labels, pixels, sha256)


class ImageMetrics:
    """Collects samples, and computes the metrics `names` against real images.

    fid: the Frechet distance, under the name that the extractor gives it (fd_mnist, ...; only
    Inception's is called fid). kid: the kernel distance. is: the Inception Score of the
    extractor's own classes. precision and recall, together precision_recall. memorisation: see
    `manifold.memorisation`; `held_out` are real images that were not trained on.
    agreement: the share of samples that are classified as the class they were drawn for.
    confidence: the share classified with a probability of 0.9 or more. classes: half the sum of
    the absolute differences between the class shares of samples and reference.

    classes: how many classes the samples have, if that is known. Only features are held, no
    images. With `spread` each process of the default group adds its own samples, and all must call
    `results`, which is of all samples. Raises FmdiffError for an unknown name, and for a metric
    that needs what the samples, the extractor or the reference lack.
    """

    of_labels: tuple[str, ...] = OF_CLASSES[1:]  # take the data's classes for the classifier's

    def __init__(
        self,
        names: Sequence[str],
        extractor: Features,
        real: Real,
        held_out: Real | None = None,
        seed: int = 0,
        spread: bool = False,
        classes: int | None = None,
    ) -> None:
        also = {extractor.distance: ("fid",), "precision_recall": ("precision", "recall")}
        names = [one for name in names for one in also.get(name, (name,))]
        for name in names:
            if name not in NAMES:
                raise FmdiffError(f"metrics=[{name}] is unknown; {nearest(name, NAMES)}")
            if name in OF_FEATURES and real.features is None:
                raise FmdiffError(
                    f"metrics=[{name}] needs the reference's images or features, and {real.text} "
                    "gives their mean and covariance alone; choose metrics=[fid]"
                )
            if name in OF_CLASSES and not extractor.classes:
                raise FmdiffError(
                    f"metrics=[{name}] needs classes, which features={extractor.name} lacks"
                )
            if name == "agreement" and classes is not None:
                _check_classes("the samples", name, classes, extractor)
            if name == "classes" and real.labels is not None:
                _check_classes(real.text, name, int(real.labels.max()) + 1, extractor)
            if name == "memorisation" and held_out is None:
                raise FmdiffError(
                    "metrics=[memorisation] needs against= a data set by name, for its held-out "
                    "images"
                )
        self.names, self.extractor, self.real = list(dict.fromkeys(names)), extractor, real
        self.held_out, self.seed, self.spread = held_out, seed, spread
        self.warnings: list[str] = []
        self.floors: dict[int, list[float]] = {}  # by the number of images
        self.clear()

    def clear(self) -> None:
        """Forget the samples, but not the reference."""
        self.features: list[Tensor] = []
        self.logits: list[Tensor] = []
        self.labels: list[Tensor] = []
        self.neighbours: tuple[Tensor, Tensor] | None = None  # after `results`: indices, distances

    def check(self, n: int) -> None:
        """Raises FmdiffError if n images, or those of the reference, are too few."""
        counts = {"n": n}
        if self.real.features is not None:
            counts["the number of real images"] = len(self.real.features)
        for what, count in counts.items():
            for name, least in LEAST.items():
                if name in self.names and count < least:
                    raise FmdiffError(
                        f"{what} is {count}, and metrics=[{name}] needs {least} at least"
                    )

    def digest(self) -> str:
        """A SHA-256 of the reference, of the held-out images and of the extractor."""
        held_out = self.held_out.sha256 if self.held_out else ""
        parts = (self.real.sha256, held_out, self.extractor.name, self.extractor.sha256)
        return hashlib.sha256("/".join(parts).encode()).hexdigest()

    @property
    def columns(self) -> list[str]:
        """The names of the metrics."""
        return [self.extractor.distance if name == "fid" else name for name in self.names]

    def add(self, pixels: Tensor, y: Tensor | None = None) -> None:
        """Add images uint8 (B, H, W, C) and the classes (B,) they were drawn for."""
        for part in pixels.split(BATCH):
            features, logits = read(self.extractor, part)
            self.features.append(features.cpu())
            if logits is not None:
                self.logits.append(logits.cpu())
        if y is not None:
            self.labels.append(y.cpu())

    def results(self, reasons: list[str] | None = None) -> Metrics:
        """The metrics of all images added, by their names in reports.

        With `reasons` a metric that cannot be computed is left out, and the reason is added.
        """
        parts = (self.features, self.logits, self.labels)
        rows = [torch.cat(part) if part else None for part in parts]
        if self.spread:
            rows = [part if part is None else gather(part) for part in rows]
        features, logits, y = rows
        assert features is not None
        moments = Moments(self.extractor.dimension).add(features)
        metrics = Metrics()
        samples = Pool(features, moments, logits, y)
        for name in self.names:
            with impossible(name, reasons):
                metrics |= getattr(self, f"_{name}")(samples)
        return metrics

    def _metric(self, value: float, n: int, **more: Any) -> Metric:
        return Metric(
            value,
            n,
            extractor=self.extractor.name,
            weights_sha256=self.extractor.sha256 or None,
            **{"reference": self.real.text} | more,
        )

    def _fid(self, samples: "Pool") -> dict[str, Metric]:
        n, real = len(samples.features), self.real.moments
        if warning := few_samples(n, self.extractor.dimension):
            self.warnings.append(f"{self.extractor.distance}: {warning}")
        value = frechet_distance(samples.moments, real)
        more: dict[str, Any] = {}
        if floors := self._floors(n):
            more |= {"floor": statistics.median(floors), "extra": {"floor_sets": len(floors)}}
        if self.extractor.dimension <= BOOTSTRAPPED and n >= 10 * self.extractor.dimension:
            estimate = frechet_interval(samples.features, real, seed=self.seed)
            # the distance at infinitely many samples cannot be below 0
            bounds = max(estimate.low, 0.0), max(estimate.high, 0.0)
            more |= {"se": estimate.error, "interval": bounds}
        return {self.extractor.distance: self._metric(value, n, **more)}

    def _floors(self, n: int) -> list[float]:
        """FD of random sets of n held-out images; none if there are fewer images."""
        rows = None if self.held_out is None else self.held_out.features
        if rows is None or len(rows) < n:
            return []
        if n not in self.floors:
            count = FLOORS if len(rows) > n else 1
            orders = [
                torch.randperm(len(rows), generator=generator(k, "floor")) for k in range(count)
            ]
            sets = [Moments(self.extractor.dimension).add(rows[order[:n]]) for order in orders]
            self.floors[n] = [frechet_distance(one, self.real.moments) for one in sets]
        return self.floors[n]

    def _kid(self, samples: "Pool") -> dict[str, Metric]:
        kernel = kernel_distance(samples.features, self._features())
        interval = normal_interval(kernel.mean, kernel.error) if kernel.error else None
        if interval:  # the distance at infinitely many samples cannot be below 0
            interval = interval[0], max(interval[1], 0.0)
        extra = {"subsets": kernel.subsets, "size": kernel.size}
        n = len(samples.features)
        metric = self._metric(kernel.mean, n, se=kernel.error, interval=interval, extra=extra)
        return {"kid": metric}

    def _is(self, samples: "Pool") -> dict[str, Metric]:
        assert samples.logits is not None
        n = len(samples.logits)
        score = inception_score(samples.logits, min(10, n))
        extra = {"splits": score.splits, "std_over_splits": score.std}
        return {"is": self._metric(score.mean, n, reference=None, extra=extra)}

    def _precision(self, samples: "Pool") -> dict[str, Metric]:
        near, n = self._coverage(samples), len(samples.features)
        return {"precision": self._share(near.precision, n, near.precision_error)}

    def _recall(self, samples: "Pool") -> dict[str, Metric]:
        near, n = self._coverage(samples), min(SPAN, len(self._features()))
        return {"recall": self._share(near.recall, n, near.recall_error)}

    def _features(self) -> Tensor:
        assert self.real.features is not None  # the constructor refuses such metrics
        return self.real.features

    def _coverage(self, samples: "Pool") -> Coverage:
        if samples.coverage is None:
            real = self._features()
            order = torch.randperm(len(real), generator=generator(0, "span"))
            samples.coverage = precision_recall(samples.features, real[order[:SPAN]])
        return samples.coverage

    def _share(self, value: float, n: int, se: float | None = None, **more: Any) -> Metric:
        """A share of n; se: its standard error, if others than the n were chosen too."""
        plain = math.sqrt(value * (1 - value) / n)
        se = plain if se is None else se
        # Wilson's interval of as many draws as have this error
        interval = wilson(value, n * (plain / se) ** 2 if plain else n)
        return self._metric(value, n, se=se, interval=interval, **more)

    def _memorisation(self, samples: "Pool") -> dict[str, Metric]:
        assert self.held_out is not None
        assert self.held_out.features is not None
        near = memorisation(samples.features, self._features(), self.held_out.features)
        self.neighbours = near.neighbour, near.distance
        extra = {
            k: v for k, v in near._asdict().items() if k not in ("neighbour", "distance", "share")
        }
        if near.chance < FALSE_ALARM:
            self.warnings.append(
                f"memorisation: {near.share:.1%} of the samples are nearer to a training image "
                f"than all but {near.level:.1%} of fresh real images; look at neighbours.png "
                f"(samples that copy nothing are warned of in {FALSE_ALARM:.1%} of evaluations)"
            )
        n = len(samples.features)
        return {"memorisation": self._metric(near.share, n, se=near.share_error, extra=extra)}

    def _agreement(self, samples: "Pool") -> dict[str, Metric]:
        if samples.y is None:
            raise FmdiffError("metrics=[agreement] needs samples with classes")
        assert samples.logits is not None
        right = (samples.logits.argmax(1) == samples.y).double().mean().item()
        return {"agreement": self._share(right, len(samples.y), reference="the classes asked for")}

    def _confidence(self, samples: "Pool") -> dict[str, Metric]:
        assert samples.logits is not None
        largest = samples.logits.double().softmax(1).amax(1)
        share, extra = (largest >= SURE).double().mean().item(), {"mean": largest.mean().item()}
        metric = self._share(share, len(largest), reference=None, extra=extra)
        return {"confidence": metric}

    def _classes(self, samples: "Pool") -> dict[str, Metric]:
        assert samples.logits is not None
        k, n = self.extractor.classes, len(samples.logits)
        shares = samples.logits.argmax(1).bincount(minlength=k).double() / n
        labels = self.real.labels
        reference = torch.full((k,), 1 / k).double()
        if labels is not None:
            reference = labels.bincount(minlength=k).double() / len(labels)
        extra = {"shares": shares.tolist(), "reference_shares": reference.tolist()}
        text = "equal shares" if labels is None else f"the labels of {self.real.text}"
        value = (shares - reference).abs().sum().item() / 2
        return {"classes": self._metric(value, n, reference=text, extra=extra)}


def _check_classes(of: str, name: str, classes: int, extractor: Features) -> None:
    if not classes:
        raise FmdiffError(f"metrics=[{name}] needs classes, and {of} have none")
    if classes > extractor.classes:
        raise FmdiffError(
            f"metrics=[{name}] takes classes for the {extractor.classes} of "
            f"features={extractor.name}, and {of} have {classes}"
        )


def foreign(judge: ImageMetrics, data: str) -> list[str]:
    """What a reader must know if the extractor's classes are not those of `data`, the samples'."""
    extractor, warnings = judge.extractor, []
    if extractor.data and set(judge.names) - set(OF_CLASSES):
        resized = ", which resizes the images" if "@" in extractor.name else ""
        warnings.append(
            f"features={extractor.name} are those of a classifier of {extractor.data}{resized}: "
            f"they rank models of {data}, and compare with no figures of other data"
        )
    names = [name for name in judge.names if name in judge.of_labels]
    if names:
        warnings.append(
            f"{', '.join(names)}: a class is that of the same number of features="
            f"{extractor.name}, which does not know the classes of {data}"
        )
    return warnings


@dataclass
class Pool:
    """The features of all samples that were added."""

    features: Tensor
    moments: Moments
    logits: Tensor | None
    y: Tensor | None
    coverage: Coverage | None = None
