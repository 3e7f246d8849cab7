"""Samples of a model under training whose conditions are those of data."""

import torch

from fmdiff.condition import Classes, Condition, Given, label, named
from fmdiff.data.base import Data
from fmdiff.field import Field


def asked(field: Field, y: Given | None, first: int = 0) -> tuple[Field, Classes]:
    """The field and the classes with which samples first, first + 1 ... have conditions y (B,).

    Labels alone, and None, leave the field as it is: classes take turns.
    """
    if not isinstance(y, Condition):
        return field, None
    # row (first + i) % B of what takes turns is that of sample first + i
    turned = {name: torch.roll(part, first, 0) for name, part in y.to("cpu").parts.items()}
    labels = label(Condition(turned))
    return field.given(**named(Condition(turned))), None if labels is None else labels.tolist()


def asked_of_data(field: Field, data: Data, n: int) -> tuple[Field, Classes]:
    """`asked` for n samples with the conditions of held-out data, in turn if these are fewer."""
    return asked(field, data.held_out(n)[1]) if field.conditions else (field, None)
