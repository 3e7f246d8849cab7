"""Encoders of conditions: a vector becomes an embedding, a picture or a series further channels.

What is not known is NaN. An encoder sees 0 in its place, which is the mean, and beside it which
numbers are known. A condition that is missing altogether counts as unknown.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from functools import reduce

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fmdiff.condition import Form, Given, named
from fmdiff.errors import FmdiffError

Forms = Mapping[str, Form] | None
# by the number of axes of a shape
KINDS = {1: "a vector", 2: "a series", 3: "a picture"}
PLURALS = {1: "points", 2: "series", 3: "images"}
OTHERS = {
    1: " alone; pictures go with images and model=unet",
    2: " and series",
    3: " and pictures",
}
ENLARGING = {1: "linear", 2: "bilinear"}  # by the number of the axes of places


class Standard(nn.Module):
    """(c - mean) / std where c is known and 0 elsewhere, and where it is known (0 or 1).

    c (B, n, *places) -> two of its shape. mean and std are those of a `Form`, one per entry of the
    first axis, and stored with the weights.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, form: Form) -> None:
        super().__init__()
        size, places = form.shape[0], [1] * (len(form.shape) - 1)
        mean, std = form.mean or [0.0] * size, form.std or [1.0] * size
        self.register_buffer("mean", torch.tensor(mean).view(size, *places))
        self.register_buffer("std", torch.tensor(std).view(size, *places))

    def forward(self, c: Tensor) -> tuple[Tensor, Tensor]:
        known = ~c.isnan()
        return torch.where(known, (c - self.mean) / self.std, 0.0), known.to(c)


class Vector(nn.Module):
    """W2 SiLU(W1 [z, known]) for a vector c (B, n) with `Standard`'s z and known -> (B, width)."""

    def __init__(self, form: Form, width: int) -> None:
        super().__init__()
        self.standard = Standard(form)
        self.first, self.last = nn.Linear(2 * form.shape[0], width), nn.Linear(width, width)

    def forward(self, c: Tensor) -> Tensor:
        out: Tensor = self.last(F.silu(self.first(torch.cat(self.standard(c), dim=1))))
        return out


class Several(nn.Module):
    """One encoder for each of several conditions, in the alphabetical order of their names."""

    def __init__(self, encoders: Mapping[str, nn.Module], forms: Mapping[str, Form]) -> None:
        super().__init__()
        self.shapes = {name: forms[name].shape for name in sorted(forms)}
        self.encoders = nn.ModuleList(encoders[name] for name in self.shapes)

    def encoded(self, y: Given | None, like: Tensor) -> Iterator[Tensor]:
        """What each encoder makes of its condition, NaN if y has none; B and dtype of `like`."""
        parts = named(y)
        for (name, shape), encoder in zip(self.shapes.items(), self.encoders, strict=True):
            c = parts.get(name)
            if c is None:
                c = like.new_full((len(like), *shape), math.nan)
            yield encoder(c.to(like))


class Embedded(Several):
    """The sum of a `Vector` for each condition that is a vector: y -> (B, width)."""

    def __init__(self, conditions: Mapping[str, Form], width: int) -> None:
        forms = {name: form for name, form in conditions.items() if len(form.shape) == 1}
        super().__init__({name: Vector(form, width) for name, form in forms.items()}, forms)

    def forward(self, y: Given | None, like: Tensor) -> Tensor:
        return reduce(torch.add, self.encoded(y, like))


class Map(nn.Module):
    """A picture or series c (B, C, *places) as C + 1 channels at the places of x_t.

    The channels are `Standard`'s z, then the share of the channels that is known at a place. At
    other places they are interpolated linearly, or are means over areas if a side has to shrink.
    """

    def __init__(self, form: Form, places: Sequence[int]) -> None:
        super().__init__()
        self.standard, self.places = Standard(form), tuple(places)
        grows = all(new >= old for new, old in zip(places, form.shape[1:], strict=True))
        self.mode = ENLARGING[len(self.places)] if grows else "area"

    def forward(self, c: Tensor) -> Tensor:
        z, known = self.standard(c)
        maps = torch.cat([z, known.mean(1, keepdim=True)], dim=1)
        if maps.shape[2:] == self.places:
            return maps
        return F.interpolate(maps, self.places, mode=self.mode)


class Channels(Several):
    """The conditions that are pictures or series as further channels of x_t: a `Map` of each.

    x_t (B, C, *places) of the shape of a sample -> (B, total, *places).
    """

    def __init__(self, conditions: Mapping[str, Form], shape: Sequence[int]) -> None:
        forms = {name: form for name, form in conditions.items() if len(form.shape) > 1}
        super().__init__({name: Map(form, shape[1:]) for name, form in forms.items()}, forms)
        self.total = shape[0] + sum(form.shape[0] + 1 for form in forms.values())

    def forward(self, x_t: Tensor, y: Given | None) -> Tensor:
        return torch.cat([x_t, *self.encoded(y, x_t)], dim=1)


def embedded(conditions: Forms, width: int) -> Embedded | None:
    """`Embedded`, or None without vectors."""
    vectors = any(len(form.shape) == 1 for form in (conditions or {}).values())
    return Embedded(conditions or {}, width) if vectors else None


def channels_of(
    conditions: Forms, shape: Sequence[int], model: str
) -> tuple[Channels | None, int]:
    """`Channels`, or None without pictures and series, and the channels of x_t with these.

    shape: that of a sample. model: names the network in messages. Raises FmdiffError for a
    condition that is neither a vector nor of as many axes as a sample.
    """
    forms = conditions or {}
    for name, form in forms.items():
        if len(form.shape) not in (1, len(shape)):
            raise FmdiffError(
                f"model={model}: the condition {name} is {KINDS[len(form.shape)]} of shape "
                f"{list(form.shape)}, and {PLURALS[len(shape)]} of shape {list(shape)} are "
                f"conditioned on vectors{OTHERS[len(shape)]}"
            )
    if all(len(form.shape) == 1 for form in forms.values()):
        return None, shape[0]
    channels = Channels(forms, shape)
    return channels, channels.total
