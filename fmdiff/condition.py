"""Conditions: what samples are conditioned on, besides or in place of a class label.

The argument y of data sets, objectives, networks and fields is None, class labels int64 (B,), or a
`Condition`, a dict of named tensors. What is not known is NaN: a dropped condition, a missing
value of a table, the hole of a picture. No mask goes beside it.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from fmdiff.errors import FmdiffError, class_number, nearest

LABEL = "label"  # the name of the class label among the parts
LARGEST = 2**26  # numbers in one condition of one sample


class Condition:
    """Named tensors of B rows each: `label` int64 (B,), others float (B, *shape), NaN if unknown.

    c[rows] takes rows of all, by an index, a slice or a mask; len(c) is B.
    """

    def __init__(self, parts: Mapping[str, Tensor]) -> None:
        self.parts = dict(parts)

    def __len__(self) -> int:
        return len(next(iter(self.parts.values())))

    def __getitem__(self, rows: Any) -> "Condition":
        return Condition({name: part[rows] for name, part in self.parts.items()})

    def to(self, *where: Any) -> "Condition":
        """The same on a device or in a floating-point dtype, which labels do not take."""
        return Condition(
            {
                name: part.to(*[w for w in where if name != LABEL or not _is_dtype(w)])
                for name, part in self.parts.items()
            }
        )

    def split(self, size: int) -> tuple["Condition", ...]:
        """Parts of `size` rows each; the last may have fewer."""
        return tuple(self[start : start + size] for start in range(0, len(self), size))

    def __repr__(self) -> str:
        words = (f"{name}={tuple(part.shape)}" for name, part in self.parts.items())
        return f"Condition({', '.join(words)})"


def _is_dtype(value: Any) -> bool:
    return isinstance(value, torch.dtype)


Given = Tensor | Condition
# the labels to sample, as numbers or names; None means all in turn
Classes = list[int | str] | list[int] | list[str] | int | str | None


def label(y: Given | None) -> Tensor | None:
    """The class labels (B,) of a condition, or None."""
    return y.parts.get(LABEL) if isinstance(y, Condition) else y


def named(y: Given | None) -> dict[str, Tensor]:
    """The parts of a condition other than the class label."""
    if not isinstance(y, Condition):
        return {}
    return {name: part for name, part in y.parts.items() if name != LABEL}


def given(label: Tensor | None, parts: Mapping[str, Tensor]) -> Given | None:
    """The argument y of labels (B,) and named parts: labels alone stay a tensor."""
    if not parts:
        return label
    return Condition(({} if label is None else {LABEL: label}) | dict(parts))


def join(ys: Sequence[Given | None]) -> Given | None:
    """Conditions of the same parts, one after another."""
    first = ys[0]
    if first is None or len(ys) == 1:
        return first
    if isinstance(first, Tensor):
        return torch.cat([y for y in ys if isinstance(y, Tensor)])
    columns = [y.parts for y in ys if isinstance(y, Condition)]
    return Condition({name: torch.cat([c[name] for c in columns]) for name in first.parts})


def null(y: Given, classes: int, names: Sequence[str] | None = None) -> Given:
    """The same with the parts `names` dropped: the null label, and NaN. names: None for all."""
    if isinstance(y, Tensor):
        return y if names is not None and LABEL not in names else torch.full_like(y, classes)
    return Condition(
        {
            name: torch.full_like(part, classes if name == LABEL else math.nan)
            if names is None or name in names
            else part
            for name, part in y.parts.items()
        }
    )


def dropped(y: Given, classes: int) -> Tensor:
    """Which rows know nothing, neither label nor any other condition: bool (B,)."""
    if isinstance(y, Tensor):
        return y == classes
    unknown = [
        part == classes if name == LABEL else part.flatten(1).isnan().all(1)
        for name, part in y.parts.items()
    ]
    return torch.stack(unknown).all(0)


def chosen(rows: Tensor, ones: Given, others: Given) -> Given:
    """The rows of `ones` where `rows` bool (B,) is true, and those of `others` elsewhere."""
    if isinstance(ones, Tensor) and isinstance(others, Tensor):
        return torch.where(rows.to(ones.device).view(-1, *(1,) * (ones.ndim - 1)), ones, others)
    assert isinstance(ones, Condition) and isinstance(others, Condition)
    parts = {name: chosen(rows, part, others.parts[name]) for name, part in ones.parts.items()}
    return Condition(parts)  # type: ignore[arg-type]  # of tensors it is a tensor


@dataclass(frozen=True)
class Form:
    """What is known of one condition: the shape of a row, and how its numbers spread.

    shape: (n,) of a vector, (C, L) of a series or (C, H, W) of a picture. mean, std: of each
    component of a vector or each channel, which networks standardise by; None for 0 and 1. levels:
    the names that stand for the components of a vector in which one is 1 and the others are 0.
    """

    shape: tuple[int, ...]
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None
    levels: tuple[str, ...] = ()

    def spec(self) -> dict[str, Any]:
        """The same as plain containers, for a checkpoint."""
        return {
            "shape": list(self.shape),
            "mean": None if self.mean is None else list(self.mean),
            "std": None if self.std is None else list(self.std),
            "levels": list(self.levels),
        }

    @classmethod
    def of(cls, spec: Any, title: str) -> "Form":
        """The form that a checkpoint describes. Raises FmdiffError if it describes none.

        title: what a message calls the checkpoint.
        """
        spec = spec if isinstance(spec, Mapping) else {}
        shape, levels = spec.get("shape"), spec.get("levels") or []
        right = isinstance(shape, list) and 1 <= len(shape) <= 3 and isinstance(levels, list)
        right = right and all(type(n) is int and 1 <= n <= LARGEST for n in shape or ())
        if not right or not shape or math.prod(shape) > LARGEST:
            raise FmdiffError(f"{title} describes a condition of shape {shape!r:.80}")
        moments = []
        for name in ("mean", "std"):
            values = spec.get(name)
            if values is not None and not (
                isinstance(values, list)
                and len(values) == shape[0]
                and all(type(v) in (int, float) and math.isfinite(v) for v in values)
                and (name == "mean" or all(v > 0 for v in values))
            ):
                raise FmdiffError(f"{title} describes a condition with the {name} {values!r:.80}")
            moments.append(None if values is None else tuple(map(float, values)))
        if levels and len(levels) != shape[0]:
            raise FmdiffError(f"{title} describes a condition with the levels {levels!r:.80}")
        return cls(tuple(shape), moments[0], moments[1], tuple(str(v) for v in levels))

    def rows(self, value: Any, option: str) -> Tensor:
        """The rows (K, *shape) float32 that a value stands for; None and NaN are unknown.

        value: a number, a name of `levels`, or lists of them: one row or several. option: names it
        in messages. Raises FmdiffError for anything else.
        """
        if isinstance(value, Tensor):
            x = value.float()
        elif self.levels and (names := _texts(value)):
            x = torch.stack([self._level(name, option) for name in names])
        else:
            x = self._numbers(value, option)
        if x.shape == self.shape:
            x = x[None]
        elif self.shape == (1,) and x.ndim <= 1:
            x = x.reshape(-1, 1)
        elif not x.ndim:
            x = x.expand(1, *self.shape)
        if x.shape[1:] != self.shape or not len(x):
            raise FmdiffError(
                f"{option} has the shape {list(x.shape)}: {self} is needed, or a list of them"
            )
        if x.isinf().any():
            raise FmdiffError(f"{option} holds an infinite number")
        return x

    def _level(self, name: str, option: str) -> Tensor:
        if name not in self.levels:
            raise FmdiffError(f"{option}={name}: {nearest(name, self.levels)}")
        return torch.eye(len(self.levels))[self.levels.index(name)]

    def _numbers(self, value: Any, option: str) -> Tensor:
        try:
            return torch.tensor(_with_nan(value), dtype=torch.float32)
        except (TypeError, ValueError, RuntimeError, OverflowError):
            names = f", or a name ({', '.join(self.levels)})" if self.levels else ""
            raise FmdiffError(f"{option}={value!r:.80}: {self}{names} is needed") from None

    def __str__(self) -> str:
        if self.shape == (1,):
            return "a number"
        if len(self.shape) == 1:
            return f"a list of {self.shape[0]} numbers"
        return f"an array of shape {list(self.shape)}"


def _texts(value: Any) -> list[str]:
    """The names of a list of names, or of a single one; empty for anything else."""
    values = value if isinstance(value, list | tuple) else [value]
    return list(values) if all(isinstance(v, str) for v in values) else []


def _with_nan(value: Any) -> Any:
    """Nested lists of numbers, with NaN for None and the text nan."""
    if isinstance(value, list | tuple):
        return [_with_nan(item) for item in value]
    if value is None or (isinstance(value, str) and value.lower() == "nan"):
        return math.nan
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise TypeError
    return value


def in_turn(
    forms: Mapping[str, Form], values: Mapping[str, Tensor], rows: range
) -> Iterator[tuple[str, Tensor]]:
    """The conditions of samples `rows`: those of `values` (K, *shape) in turn, else NaN."""
    index = torch.arange(rows.start, rows.stop)
    for name, form in forms.items():
        value = values.get(name)
        if value is None:
            yield name, torch.full((len(rows), *form.shape), math.nan)
        else:
            yield name, value[index % len(value)]


def alike(ones: Mapping[str, Form], others: Mapping[str, Form]) -> bool:
    """Whether these are conditions of the same names, shapes and levels, in any order."""
    first, second = (
        {name: (form.shape, form.levels) for name, form in forms.items()}
        for forms in (ones, others)
    )
    return first == second


def described(forms: Mapping[str, Form]) -> str:
    """The names of conditions in words, with their shapes and levels."""
    if not forms:
        return "no conditions"
    levels = {n: f" ({', '.join(form.levels)})" * bool(form.levels) for n, form in forms.items()}
    words = (f"{name} {list(forms[name].shape)}{levels[name]}" for name in sorted(forms))
    return f"the conditions {', '.join(words)}"


def within(y: Given | None, classes: int, forms: Mapping[str, Form]) -> Given | None:
    """What of y a model takes that has these classes, if any, and conditions of these forms."""
    parts = {name: part for name, part in named(y).items() if name in forms}
    return given(label(y) if classes else None, parts)


def classes_in_turn(
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
        class_number(c, of.names, "classes") for c in single or labels or range(of.classes)
    ]
    if any(not 0 <= c < of.classes for c in choice):
        raise FmdiffError(f"classes={classes} must lie in 0..{of.classes - 1}")
    return torch.tensor(choice)[torch.arange(start, stop) % len(choice)]


def form_of(name: str, forms: Mapping[str, Form]) -> Form:
    """The form of a condition. Raises FmdiffError for a name that is not among them."""
    if not forms:
        raise FmdiffError(f"cond.{name}: this model was trained without conditions")
    if name not in forms:
        raise FmdiffError(f"cond.{name} is unknown; {nearest(name, forms)}")
    return forms[name]
