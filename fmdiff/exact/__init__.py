"""Ground truth: fields in closed form, which can replace a network everywhere.

They hold for every path. They compute conditional expectations given x_t from the posterior. Their
flow from one time to another is the ODE's solution to about 1e-12, or a formula for one Gaussian.
"""

from typing import Any

import torch

from fmdiff.condition import label
from fmdiff.errors import FmdiffError
from fmdiff.exact.closed_form import ClosedForm
from fmdiff.exact.members import Empirical, RealData
from fmdiff.exact.mixture import KNOWN, OTHERS, ArrayMixture, ByRows, Mixture
from fmdiff.path import Path

__all__ = [
    "ArrayMixture",
    "ByRows",
    "ClosedForm",
    "Empirical",
    "Mixture",
    "RealData",
    "empirical",
    "exact",
    "real_data",
]


def exact(data: Any, path: Path) -> Mixture:
    """model=exact, against=exact: the closed-form field of a data set that is a Gaussian mixture.

    Raises FmdiffError when the data set, or its law given one of its conditions, has none.
    """
    joint = None if data is None else data.joint()
    if joint is None:
        raise FmdiffError(
            "the exact field needs data with a closed form (gmm, gmm4, 8gaussians, two_modes or "
            f"ar1), and {'this' if data is None else type(data).__name__} has none"
        )
    weights, means, covs = joint
    if strange := data.conditions.keys() - ({OTHERS, KNOWN} if len(data.shape) == 1 else set()):
        raise FmdiffError(
            "the exact field of points is given c, the last coordinates of data=gmm, or known, "
            f"those of data=masked; it cannot be given {', '.join(sorted(strange))} here"
        )
    labels = torch.arange(len(weights)) if data.classes else None
    if len(data.shape) == 1:
        field = Mixture(path, weights, means, covs, labels, conditions=data.conditions)
    else:
        field = ArrayMixture(path, weights, means, covs, labels, data.shape)
    field.only = tuple(data.only or ())
    return field


def empirical(data: Any, path: Path, n: int) -> Empirical:
    """model=empirical: the ideal field of the first n examples (seed 0) of a data set."""
    x, y = data.examples(n)
    field = Empirical(path, x, label(y), data.classes)
    field.only = tuple(data.only or ())
    return field


def real_data(data: Any, path: Path) -> RealData:
    """model=data: the data set itself, so that a sample run writes real data in its files."""
    return RealData(data)
