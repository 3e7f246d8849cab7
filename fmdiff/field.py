"""Fields: what solvers, plots and metrics see of a model.

`field(x_t, t)` is v and `field.predict(x_t, t, kind)` any quantity, for x_t (B, *shape) and t of
shape () or (B,). `field.interval(kind)` gives the times at which they are defined. A network, a
guided pair, an exact mixture (exact/) and a plain function are fields, among others.
"""

import copy
import inspect
import math
import sys
from collections.abc import Callable, Mapping
from types import MappingProxyType, ModuleType
from typing import Any, Self

import torch
from torch import Tensor, nn

from fmdiff.build import spec_of
from fmdiff.codec import Codec, kind_of
from fmdiff.condition import Classes, Form, Given, classes_in_turn, form_of, given, in_turn
from fmdiff.custom import checked, from_spec
from fmdiff.errors import FmdiffError
from fmdiff.models.network import answer
from fmdiff.path import Kind, Path, expand
from fmdiff.source import Normal, Source, need_gaussian

# A field that is singular at t = 0 or 1 is used only this far (in straight time) from that end.
# Beyond it a single jump to the estimate of x loses less than the network's error.
EDGE = 0.01


class Field:
    """The interface. `shape` and `classes` describe the data, `evaluations` counts rows of x_t."""

    net: nn.Module | None = None  # the network inside, if there is one
    path: Path
    shape: tuple[int, ...]
    classes: int = 0
    only: tuple[int, ...] = ()  # the labels the data were restricted to; empty means all
    names: tuple[str, ...] = ()  # the names of the classes, if they have names
    sha256: str = ""  # of a checkpoint's spec and these weights; empty for other fields
    by_estimate: bool = False  # whether a network predicts x, so that v = (x_hat - x_r) / (1 - r)
    two_times: bool = False  # whether it gives mean velocities, from a time t to a time s
    consistency: bool = False  # whether its jumps are to the data, s = 1, alone
    scales: tuple[float, float] | None = None  # of guidance as an input of the network
    gaussian: bool = True  # eps is normal and independent of x; then score = -E[eps | x_t] / beta
    y: Given | None = None  # the labels (B,) of a batch, or its conditions
    conditions: Mapping[str, Form] = MappingProxyType({})  # those it takes besides the label
    values: Mapping[str, Tensor] = MappingProxyType({})  # those that its samples have in turn
    codec: Codec | None = None  # between x and the samples that a user knows
    atoms: Tensor | None = None  # straight times r (T,), if it was trained at finitely many
    branches: int = 1  # the most model evaluations that one call costs
    evaluations: int = 0

    def __call__(self, x_t: Tensor, t: Tensor) -> Tensor:
        """The velocity v (B, *shape)."""
        return self.predict(x_t, t, "v")

    def predict(self, x_t: Tensor, t: Tensor, kind: Kind, s: Tensor | None = None) -> Tensor:
        """The conditional expectation of the quantity `kind` given x_t: (B, *shape).

        With s () or (B,) it is of the mean from t to s along the flow: a straight velocity
        u(x_t, t, s), converted to `kind` like one at (x_t, t). s = t gives the field itself.
        Raises FmdiffError for s and a field without `two_times`.
        """
        raise NotImplementedError

    def flow(self, x_t: Tensor, t: Tensor, s: Tensor) -> Tensor:
        """The flow X(x_t, t, s): the state (B, *shape) at time s of what is at x_t at time t.

        In straight coordinates it is x + (s - t) u(x, t, s). Raises FmdiffError for a field
        without `two_times`.
        """
        need_map(self, "a jump from one time to another")
        a_t, a_s = (expand(self.path.alpha(a) + self.path.beta(a), x_t) for a in (t, s))
        u = self.predict(x_t, t, "straight", s)
        h = expand(self.path.r(s) - self.path.r(t), x_t)
        return (a_s * (x_t / a_t + h * u)).to(x_t)

    def mean_velocity(self, x_t: Tensor, t: Tensor, s: Tensor) -> Tensor:
        """(X(x_t, t, s) - x_t) / (s - t), and the velocity where s = t. Raises as `flow` does."""
        h = expand((s - t).expand(len(x_t)), x_t)
        mean = (self.flow(x_t, t, s) - x_t) / torch.where(h == 0, 1, h)
        return torch.where(h == 0, self(x_t, t), mean).to(x_t)

    def price(self, t: Tensor) -> int:
        """The number of model evaluations that a call at time t () costs."""
        return self.branches

    def interval(self, kind: Kind = "v") -> tuple[float, float]:
        """[lo, hi], the times at which `kind` is finite and trained."""
        raise NotImplementedError

    def end(self) -> Tensor:
        """The straight time r () at which the model's own path ends, below 1 if noise is left."""
        return self.path.r(torch.ones((), dtype=torch.float64))

    def start(self, eps: Tensor, t: Tensor, first: int, seed: int) -> Tensor:
        """The states at time t of samples first, first + 1, ... with noise eps (B, *shape)."""
        raise NotImplementedError

    def prior(self, z: Tensor, t: Tensor) -> Tensor:
        """log p_t(z) (B,) of states z (B, *shape) at the field's first time t ().

        Raises FmdiffError for a field, or a source, without a known density.
        """
        raise FmdiffError(
            f"{type(self).__name__} has no density at t = 0: give ckpt=RUN, or model=exact or "
            "empirical with data=NAME"
        )

    def bind(self, y: Given) -> "Field":
        """The same field with the class labels y (B,), or conditions of B rows, fixed."""
        raise NotImplementedError

    def select(self, rows: Tensor) -> "Field":
        """The same field for the samples `rows` (R,) of its batch. It may count apart."""
        return self if self.y is None else self.bind(self.y[rows])

    @property
    def outer(self) -> tuple[int, ...]:
        """The shape of a sample as the user knows it."""
        return self.shape if self.codec is None else self.codec.outer

    @property
    def kind(self) -> str:
        """What its samples are to a user: points, series, images or arrays."""
        return kind_of(self.outer, self.codec)

    def given(self, **values: Any) -> Self:
        """The same field, whose samples have these conditions in turn; others are unknown.

        Each value is a row of the condition's shape or several, as `condition.Form.rows` takes
        them. Raises FmdiffError for a name that the field does not know and for another shape.
        """
        twin, parts = copy.copy(self), dict(self.values)
        for name, value in values.items():
            parts[name] = form_of(name, self.conditions).rows(value, f"cond.{name}")
        twin.values = parts
        return twin

    def labels(self, classes: Classes, start: int, stop: int, seed: int) -> Given | None:
        """What samples start ... stop - 1 are bound to: `classes` in turn, and given conditions.

        It is None without classes and conditions. Raises FmdiffError for a class that the model
        does not have.
        """
        labels = classes_in_turn(classes, self, self.only, start, stop)
        return given(labels, dict(in_turn(self.conditions, self.values, range(start, stop))))

    def to(self, device: torch.device | str, dtype: torch.dtype) -> "Field":
        """The field on this device and in this dtype. A network is moved in place."""
        raise NotImplementedError

    def reset(self) -> None:
        """Count evaluations from 0."""
        self.evaluations = 0

    def __repr__(self) -> str:
        values = vars(self)
        names = [name for name in ("path", "shape", "classes") if values.get(name)]
        return f"{type(self).__name__}({', '.join(f'{name}={values[name]!r}' for name in names)})"


def need_map(field: Field, what: str) -> None:
    """Raises FmdiffError, naming `what` needs it, for a field without mean velocities."""
    if not field.two_times:
        raise FmdiffError(
            f"{what} needs a flow map, and this is a velocity alone: choose another solver, like "
            "heun, or train a map with objective=flow_map init=RUN"
        )


class NetField(Field):
    """A trained network as a field.

    The network sees x_t and predicts its quantity at unit scale. Let s = data_std, let q be the
    std of the source (1 if normal), let m = data_mean (0 if None), and let (a, b) be the row of a
    quantity. Then the root mean square of its distance to a m is rms = sqrt(a^2 s^2 + b^2 q^2),

        prediction = a m + rms(prediction) net((x_t - alpha m) / rms(x_t), 1000 t, y),

    and a translation of the data translates the samples. 1 / rms(x_t) is EDM's c_in on every path
    (Karras et al. 2022, arXiv:2206.00364, table 1). For the score the scale of the output is about
    1 / beta, as in Song et al. 2021. With `precondition` a prediction of x is EDM's denoiser, on
    every path (here for m = 0):

        x = c_skip x_t + c_out net(c_in x_t, 500 (1 - c_noise / 3), y),
        c_skip = alpha s^2 / rms(x_t)^2, c_out = beta q s / rms(x_t), c_noise = log(beta/alpha)/4.
    """

    w: Tensor | None = None  # the guidance scale () or (B,), if it is an input

    def __init__(
        self,
        net: nn.Module | None,
        path: Path,
        prediction: Kind,
        data_std: float,
        t_eps: float,
        shape: tuple[int, ...],
        classes: int = 0,
        y: Given | None = None,
        precondition: bool = False,
        source: Source | None = None,
        coupled: bool = False,
        data_mean: Tensor | None = None,
    ) -> None:
        self.data_mean = data_mean
        self.net, self.path, self.prediction = net, path, prediction
        self.by_estimate = prediction == "x"
        self.data_std, self.t_eps = data_std, t_eps
        self.shape, self.classes, self.y = tuple(shape), classes, y
        self.precondition, self.source = precondition, source or Normal()
        self.gaussian = self.source.gaussian and not coupled

    def rms(self, kind: Kind, t: Tensor) -> Tensor:
        """The root mean square of a quantity about its mean at t, shaped like t."""
        a, b = self.path.row(kind, t)
        return (a * a * self.data_std**2 + b * b * self.source.std**2).sqrt()

    def mean(self, kind: Kind, t: Tensor, x_t: Tensor) -> Tensor | float:
        """The mean of a quantity at t () or (B,), of a shape and type that add to x_t."""
        if self.data_mean is None:
            return 0.0
        return (self.path.row(kind, expand(t, x_t))[0] * self.data_mean.to(t.device)).to(x_t)

    def scale(self, t: Tensor) -> Tensor:
        """The factor of the network's output, shaped like t."""
        if self.precondition:
            return self.path.beta(t) * self.source.std * self.data_std / self.rms("x_t", t)
        return self.rms(self.prediction, t)

    def inputs(self, x_t: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
        """The inputs of the network: the state at unit scale and the feature of time (B,)."""
        z = (x_t - self.mean("x_t", t, x_t)) / self.rms("x_t", expand(t, x_t))
        return z.to(x_t), self.feature(t, x_t)

    def feature(self, t: Tensor, x_t: Tensor) -> Tensor:
        """The feature (B,) of a time t () or (B,), in the dtype of x_t (B, *shape)."""
        feature = 1000 * t
        if self.precondition:
            c_noise = (-self.path.logsnr(t) / 8).clamp(-3, 3)
            feature = 500 * (1 - c_noise / 3)
        return feature.to(x_t).expand(len(x_t))

    def skip(self, x_t: Tensor, t: Tensor) -> Tensor | float:
        """The term added to the scaled output."""
        mean = self.mean(self.prediction, t, x_t)
        if not self.precondition:
            return mean
        time = expand(t, x_t)
        share = self.path.alpha(time) * (self.data_std / self.rms("x_t", time)) ** 2
        return share * (x_t - self.mean("x_t", t, x_t)) + mean

    def output(self, x_t: Tensor, t: Tensor, s: Tensor | None = None) -> Tensor:
        """The network's own prediction at x_t."""
        assert self.net is not None
        self.evaluations += len(x_t)
        x_in, time = self.inputs(x_t, t)
        end = None if s is None else self.feature(s, x_t)
        w = None if self.w is None else self.w.to(x_t).expand(len(x_t))
        return self.scaled(answer(self.net, x_in, time, self.y, end, w), x_t, t)

    def scaled(self, out: Tensor, x_t: Tensor, t: Tensor) -> Tensor:
        """The prediction at x_t from the network's output, both (B, *shape)."""
        out = out.to(x_t)
        return (out * self.scale(expand(t, x_t)) + self.skip(x_t, t)).to(x_t)

    def predict(self, x_t: Tensor, t: Tensor, kind: Kind, s: Tensor | None = None) -> Tensor:
        if kind == "score":
            need_gaussian(self, "the score")
        if s is not None:
            need_map(self, "a jump from one time to another")
        return self.path.convert(self.output(x_t, t, s), x_t, t, self.prediction, kind)

    def interval(self, kind: Kind = "v") -> tuple[float, float]:
        ends = torch.tensor([0.0, 1.0], dtype=torch.float64)
        # the conversion is affine: its slope at the two ends tells where it is finite
        slope = self.path.convert(
            torch.ones_like(ends), torch.zeros_like(ends), ends, self.prediction, kind
        ).abs()
        trained = torch.tensor([self.t_eps, 1 - self.t_eps], dtype=torch.float64)
        edges = self.path.time_of_r(torch.tensor([EDGE, 1 - EDGE], dtype=torch.float64))
        lo = 0.0 if slope[0] < 1 / EDGE else max(edges[0], trained[0]).item()
        finite = torch.isfinite(self.rms(self.prediction, ends[1])) and slope[1] < 1 / EDGE
        hi = 1.0 if finite else min(edges[1], trained[1]).item()
        return lo, hi

    def start(self, eps: Tensor, t: Tensor, first: int, seed: int) -> Tensor:
        """A source sample at the mean and scale of x_t, which is beta eps if alpha is 0."""
        sample = self.rms("x_t", t) / self.source.std * self.source.sample(eps, first, seed)
        return sample + self.mean("x_t", t, eps)

    def bind(self, y: Given) -> "NetField":
        twin = copy.copy(self)
        twin.y, twin.evaluations = y, 0
        return twin

    def at_scale(self, w: Tensor) -> "NetField":
        """The same field at guidance scales w () or (B,), an input of a network with `scales`."""
        twin = copy.copy(self)
        twin.w, twin.evaluations = w, 0
        return twin

    def prior(self, z: Tensor, t: Tensor) -> Tensor:
        scale = self.rms("x_t", t) / self.source.std
        return (
            self.source.log_prob((z - self.mean("x_t", t, z)) / scale)
            - math.prod(self.shape) * scale.log()
        )

    def to(self, device: torch.device | str, dtype: torch.dtype) -> Self:
        assert self.net is not None
        self.net.to(device=device, dtype=dtype)
        if self.codec is not None:
            self.codec.to(device=device)
        return self

    def __repr__(self) -> str:
        words = f"{type(self.net).__name__}, prediction={self.prediction!r}, path={self.path!r}"
        classes = f", classes={self.classes}" if self.classes else ""
        return f"NetField({words}, shape={self.shape}{classes})"


class FunctionField(NetField):
    """A plain function in place of a network; its result is used as it is.

    fn(x_t, t) returns the quantity `kind` of x_t (B, *shape) at t. t has shape (), or (B,) if the
    solver is adaptive, which asks for any B of the samples. `interval` gives the times at which fn
    may be called, by default all that the path allows. Sampling starts from beta eps, or from
    noise of std sqrt(alpha^2 data_std^2 + beta^2) if alpha is not 0.

    Raises FmdiffError for an interval outside [0, 1] and, when called, if fn does not return a
    tensor of the shape of x_t.
    """

    def __init__(
        self,
        fn: Callable[[Tensor, Tensor], Tensor],
        path: Path,
        shape: tuple[int, ...],
        kind: Kind = "v",
        interval: tuple[float, float] = (0.0, 1.0),
        data_std: float = 1.0,
    ) -> None:
        super().__init__(None, path, kind, data_std, 0.0, shape)
        self.fn, self.times = fn, interval
        if not 0 <= interval[0] < interval[1] <= 1:
            raise FmdiffError(f"interval={interval}: (lo, hi) with 0 <= lo < hi <= 1 is needed")

    def output(self, x_t: Tensor, t: Tensor, s: Tensor | None = None) -> Tensor:
        self.evaluations += len(x_t)
        value: Any = self.fn(x_t, t.to(x_t) if t.ndim else t)
        name = f"the field's function {self._name()}"
        if not isinstance(value, Tensor):
            raise FmdiffError(f"{name} must return a tensor and returned a {type(value).__name__}")
        if value.shape != x_t.shape:
            raise FmdiffError(
                f"{name} must return the shape of x_t, {list(x_t.shape)}, and returned "
                f"{list(value.shape)}"
            )
        return value.to(x_t)

    def interval(self, kind: Kind = "v") -> tuple[float, float]:
        lo, hi = super().interval(kind)
        return max(lo, self.times[0]), min(hi, self.times[1])

    def to(self, device: torch.device | str, dtype: torch.dtype) -> Self:
        if isinstance(self.fn, nn.Module):
            self.fn.to(device=device, dtype=dtype)
        return self

    def _name(self) -> str:
        return self.fn.__name__ if inspect.isroutine(self.fn) else type(self.fn).__name__

    def __repr__(self) -> str:
        words = f"{self._name()}, kind={self.prediction!r}, path={self.path!r}"
        return f"FunctionField({words}, shape={self.shape})"


class _Module(ModuleType):
    """A module that can be called, as `fmdiff.field` is both this module and a function."""

    def __call__(
        self,
        fn: Callable[[Tensor, Tensor], Tensor],
        path: Path | str,
        shape: tuple[int, ...],
        **options: Any,
    ) -> FunctionField:
        """A plain function v(x_t, t) as a field: fmdiff.field(fn, "condot", (2,)).

        path: a path or its name. The options are those of `FunctionField`.
        """
        path = from_spec(spec_of("path", path)) if isinstance(path, str) else path
        return FunctionField(fn, checked(path), shape, **options)


sys.modules[__name__].__class__ = _Module
