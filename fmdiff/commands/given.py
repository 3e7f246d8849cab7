"""What samples are given: the words of cond. as tensors, to which a field is bound."""

import math
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor

from fmdiff.condition import Form, Given, form_of, in_turn, label, named
from fmdiff.data import values
from fmdiff.data.base import Data
from fmdiff.data.images import to_uint8
from fmdiff.errors import FmdiffError
from fmdiff.field import Field
from fmdiff.machine import processes

if TYPE_CHECKING:
    from fmdiff.metrics.judge import Judge

KNOWN = "known"  # the condition that says what parts of a sample are
OF_DATA = "data:"  # the beginning of the words that take the conditions of the model's data
SPLITS = ("test", "train")


class Real(NamedTuple):
    """Samples of the data whose conditions others are given."""

    x: Tensor  # (K, *outer)
    label: Tensor | None  # (K,)
    given: dict[str, Tensor]  # (K, *shape) by name


def needs_data(words: Mapping[str, Any]) -> bool:
    """Whether any of the words of cond. is about the model's data."""
    return any(_of_data(word) for word in words.values())


def _of_data(word: Any) -> bool:
    return isinstance(word, str) and word.startswith(OF_DATA)


def bound(
    field: Field, words: Mapping[str, Any], data: Data | None, n: int, seed: int
) -> tuple[Field, Real | None]:
    """The field with the conditions that the words of cond. name, for n samples.

    A word is a number, a list of numbers or of several rows, null (unknown), the name of a level,
    a file or a folder (see `values.read`), or data:test or data:train: sample i is then given what
    belongs to sample i of that split in the order of the seed. It has the label of that one too,
    unless `classes` are given. Also returns these samples, if there are any.

    Raises FmdiffError for a name that the model does not know, for words that are no values of it,
    and for several values of different numbers.
    """
    real: dict[str, Real] = {}
    rows: dict[str, Any] = {}
    for name, word in words.items():
        form = form_of(str(name), field.conditions)
        if _of_data(word):
            if word not in real:
                real[word] = _real(word, name, data, n, seed)
            if name not in real[word].given:
                raise FmdiffError(f"cond.{name}={word}: the data have no condition {name!r}")
            rows[name] = real[word].given[name]
        else:
            rows[name] = _rows(name, word, form)
    view = field.given(**rows)
    _check_counts(view.values)
    if len(real) > 1:
        raise FmdiffError(f"cond: {' and '.join(real)} are different samples: choose one of them")
    behind = next(iter(real.values()), None)
    if behind is not None and behind.label is not None and field.classes:
        view.only = tuple(behind.label.tolist())
    return view, behind


def _rows(name: str, word: Any, form: Form) -> Tensor:
    """The values (K, *shape) that a word, or a list of words, stands for."""
    option = f"cond.{name}"
    texts = word if isinstance(word, list) else [word]
    if not all(isinstance(text, str) and text.lower() != "nan" for text in texts) or not texts:
        return form.rows(word, option)
    if form.levels and not any(Path(text).expanduser().exists() for text in texts):
        return form.rows(word, option)  # names of levels
    return torch.cat([values.read(Path(text).expanduser(), name, form) for text in texts])


def _real(word: str, name: str, data: Data | None, n: int, seed: int) -> Real:
    """The n samples that data:test or data:train stands for, or as many as there are."""
    split = word.removeprefix(OF_DATA)
    if split not in SPLITS:
        raise FmdiffError(f"cond.{name}={word}: choose data:test or data:train")
    if data is None:
        raise FmdiffError(f"cond.{name}={word}: this model has no data; give values or a file")
    data.prepare()
    if split == "train":
        x, y = data.examples(n)
    else:
        x, y = data.sample(0, min(n, data.references or n), seed)
    return Real(x, label(y), named(y))


def _check_counts(rows: Mapping[str, Tensor]) -> None:
    """Raises FmdiffError unless all have as many rows, or one."""
    several = {name: len(value) for name, value in rows.items() if len(value) > 1}
    if len(set(several.values())) > 1:
        counts = ", ".join(f"{count} of cond.{name}" for name, count in several.items())
        raise FmdiffError(f"the values belong together row by row, and there are {counts}")


def unknown(field: Field) -> list[str]:
    """What to know of samples of a field that are not given all of its conditions."""
    names = [f"cond.{name}" for name in field.conditions if name not in field.values]
    if not names:
        return []
    return [f"{', '.join(names)} not given: the samples know nothing of it"]


def of_samples(field: Field, y: Given | None, n: int) -> dict[str, Tensor]:
    """The conditions of n real samples: those of cond. in turn, else their own in y, else NaN."""
    own, turns = named(y), dict(in_turn(field.conditions, field.values, range(n)))
    keep = {name for name in own if name not in field.values}
    return {name: own[name] if name in keep else turn for name, turn in turns.items()}


class Known:
    """Puts the known parts of samples in their place, and tells how near they were drawn.

    The condition `known` of the shape of a sample says what parts of it are. Models learn to draw
    these, too, and come near to them. paste: whether they are replaced.
    """

    def __init__(self, field: Field, paste: bool) -> None:
        form = field.conditions.get(KNOWN)
        self.active = form is not None and form.shape == field.outer and KNOWN in field.values
        self.paste, self.squares, self.count = paste, 0.0, 0

    def __call__(self, x: Tensor, y: Given | None) -> Tensor:
        """Samples x (B, *outer) with the parts that y knows."""
        if not self.active:
            return x
        known = named(y)[KNOWN].to(x)
        there = ~known.isnan()
        self.squares += (x - known)[there].double().square().sum().item()
        self.count += int(there.sum())
        return torch.where(there, known, x) if self.paste else x

    def gather(self) -> float | None:
        """The root mean square error of known parts as drawn, by all processes; None without."""
        squares, count = (sum(processes.gather(v)) for v in (self.squares, self.count))
        return math.sqrt(squares / count) if count else None

    def note(self, error: float, images: bool) -> str:
        """A sentence about that error."""
        drawn = f"an error of {error:.3g}"
        if images and error:
            drawn = f"a PSNR of {20 * math.log10(2 / error):.1f} dB"
        then = (
            "and are put in place as they are given" if self.paste else "and stay so (paste=false)"
        )
        return f"the known parts are drawn with {drawn} {then}"


class Jury:
    """Gives samples to a judge, with the real ones behind them if it compares pairs.

    start: the number of the first sample.
    """

    def __init__(self, judge: "Judge", real: Real | None, start: int) -> None:
        from fmdiff.metrics.paired import PairedMetrics

        self.judge = judge
        self.paired = judge if isinstance(judge, PairedMetrics) else None
        self.partners = None if real is None else Partners(real.x, start)

    def __call__(self, x: Tensor, y: Given | None) -> None:
        """Add images uint8 (B, H, W, C), or others (B, *outer), with what they were given."""
        if self.paired is None or self.partners is None:
            self.judge.add(x, label(y))
            return
        known = named(y).get(KNOWN)
        there = None
        if known is not None and known.shape[1:] == self.partners.real.shape[1:]:
            there = (~known.isnan()).permute(0, 2, 3, 1)
        self.paired.add(x, label(y), to_uint8(self.partners(len(x))), there)


class Partners:
    """The real samples behind those numbered from `start` on, batch by batch, in turn."""

    def __init__(self, real: Tensor, start: int) -> None:
        self.real, self.next = real, start

    def __call__(self, n: int) -> Tensor:
        """Those of the next n samples."""
        rows = torch.arange(self.next, self.next + n) % len(self.real)
        self.next += n
        return self.real[rows]
