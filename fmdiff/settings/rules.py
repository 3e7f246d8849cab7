"""Rules of the values of keys: a test, and words for what passes it."""

import math
import os
import re
from collections.abc import Callable
from typing import Any, NamedTuple

from fmdiff.runs.config import seconds


class Rule(NamedTuple):
    """A test of a value, and a description of the values that pass it."""

    passes: Callable[[Any], bool]
    says: str


def is_int(value: Any) -> bool:
    """Whether a value is an integer, which true and false are not."""
    return isinstance(value, int) and not isinstance(value, bool)


def is_number(value: Any) -> bool:
    """Whether a value is a finite number."""
    return is_int(value) or (isinstance(value, float) and math.isfinite(value))


def is_list(value: Any, item: Callable[[Any], bool]) -> bool:
    """Whether a value is a list whose items pass a test."""
    return isinstance(value, list) and all(map(item, value))


def _is_decay(value: Any) -> bool:
    return is_number(value) and 0 < value < 1


def _is_width(value: Any) -> bool:
    return is_number(value) and 1e-6 <= value < 12**-0.5


def _is_average(value: Any) -> bool:
    power, colon, width = str(value).partition(":")
    try:
        named = ("ema", "raw", "schedule_free")
        return value in named or (power + colon == "power:" and _is_width(float(width)))
    except ValueError:
        return False


def is_w(value: Any) -> bool:
    """Whether a value is a scale of guidance: a number or a formula."""
    return is_number(value) or TEXT.passes(value)


def _is_path(value: str) -> bool:
    names = os.fsencode(value).split(b"/")
    return b"\0" not in os.fsencode(value) and len(names) < 100 and max(map(len, names)) <= 255


def integer(low: int) -> Rule:
    """The rule for integers that are at least `low`."""
    return Rule(lambda v: is_int(v) and v >= low, f"an integer >= {low}")


def number(low: float | None = None, above: float | None = None) -> Rule:
    """The rule for finite numbers that are at least `low` or greater than `above`."""
    says = "a finite number" if low is None and above is None else "a number"
    says += f" >= {low}" if low is not None else ""
    says += f" > {above}" if above is not None else ""
    return Rule(
        lambda v: is_number(v) and (low is None or v >= low) and (above is None or v > above),
        says,
    )


def one_of(*choices: str) -> Rule:
    """The rule for one of a few strings."""
    return Rule(lambda v: v in choices, " or ".join(choices))


def or_null(rule: Rule) -> Rule:
    """The rule for null and for values that pass another rule."""
    return Rule(lambda v: v is None or rule.passes(v), f"{rule.says}, or null")


FLAG = Rule(lambda v: isinstance(v, bool), "true or false")
TEXT = Rule(lambda v: isinstance(v, str) and v != "", "a text")
PATH = Rule(
    lambda v: TEXT.passes(v) and _is_path(v), "a path, of names no longer than file systems take"
)
TEXTS = Rule(lambda v: is_list(v, TEXT.passes), "a list of texts like [mypackage.]")
NAMES = Rule(lambda v: bool(v) and is_list(v, TEXT.passes), "a list of names like [fid,kid]")
COUNTS = Rule(
    lambda v: bool(v) and is_list(v, integer(1).passes), "a list of integers >= 1 like [5,10]"
)
DEVICE = Rule(
    lambda v: isinstance(v, str) and bool(re.fullmatch(r"auto|cpu|cuda(:\d+)?", v)),
    "auto, cpu, cuda or cuda:N",
)
FRACTION = Rule(lambda v: is_number(v) and 0 <= v <= 1, "a number from 0 to 1")
RESUME = Rule(
    lambda v: v is None or v is True or PATH.passes(v), "true, last, a run folder, or null"
)
CLASSES = Rule(
    lambda v: (
        v is None
        or (
            v != []
            and is_list(
                v if isinstance(v, list) else [v], lambda c: integer(0).passes(c) or TEXT.passes(c)
            )
        )
    ),
    "a class, a list of classes like [0,1] or [cats,dogs], or null",
)
WEIGHTS = Rule(
    lambda v: _is_average(v) or _is_decay(v),
    "ema, raw or the decay of one average, power:WIDTH with a width between 0 and 0.2887, or "
    "schedule_free",
)
EMA = Rule(
    lambda v: is_list(v, _is_decay) and len(set(v)) == len(v),
    "a list of numbers between 0 and 1 like [0.9999]",
)
WIDTHS = Rule(
    lambda v: is_list(v, _is_width) and len(set(v)) == len(v),
    "a list of relative widths between 0 and 1/sqrt(12) = 0.2887 like [0.05,0.1]",
)


def is_duration(value: Any) -> bool:
    """Whether `config.seconds` can read a value."""
    try:
        seconds(value)
    except ValueError:
        return False
    return True
