"""The result of a metric: a value with its error, its noise floor and its reference."""

import contextlib
import math
from collections.abc import Iterator
from dataclasses import dataclass, field, fields
from typing import Any

from fmdiff import tables
from fmdiff.errors import FmdiffError

Z = 1.96  # a normal variable is within +-Z with probability 95 %

Interval = tuple[float, float]


@dataclass(frozen=True)
class Metric:
    """One number about n samples.

    se: the standard error. interval: the 95 % interval of the value at infinitely many samples.
    floor: the median value of fresh real sets of the same n, which no sampler can beat. extractor,
    weights_sha256: those of the features. reference: what the samples were compared with.
    extra: details by name.
    """

    value: float
    n: int
    se: float | None = None
    interval: Interval | None = None
    floor: float | None = None
    extractor: str | None = None
    weights_sha256: str | None = None
    reference: str | None = None
    extra: dict[str, Any] = field(default_factory=dict)

    def as_dict(self) -> dict[str, Any]:
        """A dict for JSON. None and empty values are left out; non-finite numbers become None."""
        row = {f.name: _plain(getattr(self, f.name)) for f in fields(self)}
        absent = {f.name for f in fields(self) if getattr(self, f.name) in (None, {})}
        return {name: value for name, value in row.items() if name not in absent}

    def _repr_html_(self) -> str:
        return Metrics(metric=self)._repr_html_()


class Metrics(dict[str, Metric]):
    """Metrics by name, which a notebook shows as a table."""

    def _repr_html_(self) -> str:
        rows: list[list[object]] = [["", "value", "95 % interval", "n", "real data", "against"]]
        for name, metric in self.items():
            low_high = metric.interval or (metric.se and normal_interval(metric.value, metric.se))
            interval = "[{:.4g}, {:.4g}]".format(*low_high) if low_high else ""
            floor = "" if metric.floor is None else f"{metric.floor:.4g}"
            value, n = f"{metric.value:.4g}", f"{metric.n:,}"
            rows.append([name, value, interval, n, floor, metric.reference or ""])
        return tables.as_html(rows, header=True)


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _plain(entry) for name, entry in value.items()}
    if isinstance(value, tuple | list):
        return [_plain(entry) for entry in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


@contextlib.contextmanager
def impossible(name: str, reasons: list[str] | None) -> Iterator[None]:
    """Add the reason to `reasons` if the metric `name` cannot be computed inside the block.

    Without `reasons` the error is raised.
    """
    try:
        yield
    except (FmdiffError, ArithmeticError, ValueError, RuntimeError) as error:
        if reasons is None:
            raise
        reasons.append(f"{name}: {error}")


def normal_interval(value: float, se: float) -> Interval:
    """value +- 1.96 se."""
    return value - Z * se, value + Z * se


def wilson(share: float, n: float, z: float = Z) -> Interval:
    """Wilson's interval of a probability from a share of n; it has width even at 0 and 1.

    (s + z^2/2n +- z sqrt(s (1 - s)/n + z^2/4n^2)) / (1 + z^2/n)   (Wilson, 1927)
    """
    root = z * math.sqrt(share * (1 - share) / n + z**2 / (4 * n**2))
    low, high = ((share + z**2 / (2 * n) + sign * root) / (1 + z**2 / n) for sign in (-1, 1))
    return max(low, 0.0), min(high, 1.0)
