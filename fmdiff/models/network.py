"""The contract of networks, which fields, classifiers and training steps call."""

import inspect
from collections.abc import Callable, Sequence
from typing import Any

from torch import Tensor, nn

from fmdiff.condition import Given
from fmdiff.errors import FmdiffError


class Network(nn.Module):
    """A network net(x_t, t, y), built with the keywords `shape` and `classes` and those of a YAML.

    x_t (B, *shape) of about unit variance, t (B,) in [0, 1000], y (B,) in 0..classes (`classes`
    is the null label) or None without classes -> (B, *shape). A plain nn.Module works too; only
    `axes` and `logits` need this class.

    A network for flow maps also takes the keyword `second_time`, and with it net(x_t, t, y, s=s)
    for the end s (B,) of a jump, on the scale of t. Without s, and where s = t, it answers the
    velocity. One that takes `guided` has w=w too, the scale of guidance (B,); w = 1 is none. One
    that takes `conditions`, a dict of `condition.Form` by name, gets them beside the label in y,
    which is then a `condition.Condition`.
    """

    # how many axes a sample has: 1 for points (d,), 2 for series (C, L), 3 for images (C, H, W);
    # None for any, as the data decide
    axes: int | None = None
    logits = False  # whether it returns (B, classes), as objective=classification trains it

    def forward(self, x_t: Tensor, t: Tensor, y: Given | None = None) -> Tensor:
        """The prediction at unit scale, or the logits (B, classes)."""
        raise NotImplementedError


# by the axes of a sample: what it is, and the usual network
KINDS = {1: ("points", "mlp"), 2: ("series", "unet_1d"), 3: ("images", "unet")}


def need_axes(name: str, shape: Sequence[int], axes: int) -> None:
    """Raises FmdiffError unless samples of this shape have so many axes, as model=name takes."""
    if len(shape) != axes:
        kind, usual = KINDS.get(len(shape), ("this shape", "a network of your own"))
        raise FmdiffError(
            f"model={name} takes {KINDS[axes][0]}, but the data has shape {tuple(shape)}; "
            f"choose model={usual} for {kind}"
        )


def require(allowed: str, test: Callable[[Any], bool], **values: object) -> None:
    """Raises FmdiffError for a key of the model whose value does not pass the test."""
    for key, value in values.items():
        if not test(value):
            raise FmdiffError(f"model.{key}={value} must be {allowed}")


def sizes(least: int = 1, **values: object) -> None:
    """Raises FmdiffError unless each value is an integer >= `least`."""
    require(f"an integer >= {least}", lambda v: type(v) is int and v >= least, **values)


def even(**values: object) -> None:
    """Raises FmdiffError unless each value is an even integer >= 2, half for cos, half for sin."""
    allowed = "an even integer >= 2, as time has a cosine and a sine of each frequency"
    require(allowed, lambda v: type(v) is int and v >= 2 and v % 2 == 0, **values)


def share(**values: object) -> None:
    """Raises FmdiffError unless each value is a number from 0 to 1."""
    require("a number from 0 to 1", lambda v: type(v) in (int, float) and 0 <= v <= 1, **values)


def flags(**values: object) -> None:
    """Raises FmdiffError unless each value is true or false."""
    require("true or false", lambda v: isinstance(v, bool), **values)


def integers(values: object, least: float = 1) -> bool:
    """Whether these are a list of integers >= `least`."""
    if not isinstance(values, Sequence) or isinstance(values, str):
        return False
    return all(type(v) is int and v >= least for v in values)


def answer(
    net: Callable[..., Tensor],
    x_t: Tensor,
    t: Tensor,
    y: Given | None,
    s: Tensor | None = None,
    w: Tensor | None = None,
) -> Tensor:
    """net(x_t, t, y), with s and w if these are there.

    Raises FmdiffError unless it is shaped like x_t.
    """
    more = {name: value for name, value in (("s", s), ("w", w)) if value is not None}
    out = net(x_t, t, y, **more)
    if not isinstance(out, Tensor) or out.shape != x_t.shape:
        what = list(out.shape) if isinstance(out, Tensor) else type(out).__name__
        raise FmdiffError(
            f"model: {type(net).__name__} must return a tensor of shape {list(x_t.shape)}, that "
            f"of x_t, and returned {what}"
        )
    return out


def takes(target: Callable[..., Any], keyword: str) -> bool:
    """Whether a network's class can be told `second_time`, `guided` or `conditions`."""
    parameters = inspect.signature(target).parameters
    return keyword in parameters or any(p.kind is p.VAR_KEYWORD for p in parameters.values())


def answers_logits(net: nn.Module) -> bool:
    """Whether a network classifies. A plain nn.Module predicts a quantity of the path."""
    return isinstance(net, Network) and net.logits
