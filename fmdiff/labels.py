"""Which classes are sampled."""

from typing import Any

import torch
from torch import Tensor

from fmdiff.errors import FmdiffError, number

# the labels to sample, as numbers or names; None means all in turn
Classes = list[int | str] | list[int] | list[str] | int | str | None


def in_turn(
    classes: Classes, of: Any, labels: tuple[int, ...], start: int, stop: int
) -> Tensor | None:
    """Labels of samples start ... stop - 1: `classes` in turn, by default `labels` or else all.

    of: the model whose `classes` and `names` count.
    """
    if not of.classes:
        if classes is not None:
            raise FmdiffError(f"classes={classes}: this model was trained without classes")
        return None
    single = [classes] if isinstance(classes, int | str) else classes
    choice: list[int] = [
        number(c, of.names, "classes") for c in single or labels or range(of.classes)
    ]
    if any(not 0 <= c < of.classes for c in choice):
        raise FmdiffError(f"classes={classes} must lie in 0..{of.classes - 1}")
    return torch.tensor(choice)[torch.arange(start, stop) % len(choice)]
