"""The largest of several differences between samples and data, beside its sampling error."""

from collections.abc import Callable
from statistics import NormalDist
from typing import Any

import torch
from torch import Tensor

from fmdiff.metrics.metric import Metric

LISTED = 200  # values that results.json holds one by one


def largest(
    first: Tensor, second: Tensor, se: Tensor, n: int, name: Callable[[int], str]
) -> Metric:
    """max_k |first_k - second_k|, with the standard error of the worst difference.

    first, second, se: (K,) float64, se those of the differences. name: what difference k is of.
    The 95 % interval of the maximum follows from the normal intervals of all differences
    (Bonferroni). extra: the largest difference in its standard errors, all values and their
    errors, and a note that names the worst.
    """
    gap = (first - second).abs()
    worst = int(gap.argmax())
    z = NormalDist().inv_cdf(1 - 0.025 / len(gap))
    in_errors = torch.where(gap > 0, gap / se, 0.0)
    top = int(in_errors.argmax())
    note = (
        f"the largest difference is that of {name(worst)}; in standard errors it is that of "
        f"{name(top)}, {in_errors[top].item():.2g} of them"
    )
    extra: dict[str, Any] = {
        "standard_errors": in_errors[top].item(),
        "worst": name(worst),
        "note": note,
    }
    if len(gap) <= LISTED:
        lists = {"samples": first, "real": second, "errors": se}
        extra |= {key: values.tolist() for key, values in lists.items()}
    return Metric(
        value=gap[worst].item(),
        n=n,
        se=se[worst].item(),
        interval=((gap - z * se).max().clamp(min=0).item(), (gap + z * se).max().item()),
        extra=extra,
    )
