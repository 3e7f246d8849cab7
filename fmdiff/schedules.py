"""Step schedules: they place the intervals of a solver.

A schedule is a law `schedule(u) -> r` that increases from 0 to 1 for u in [0, 1]. Steps are equal
in u, and r is straight time (with coordinates=native the path's own time). A law knows nothing of
the field and is stretched over the interval on which the field is defined. Schedules of noise
levels (karras, logsnr), explicit times and the times of training are absolute instead.
"""

import math
from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor

from fmdiff.build import Described
from fmdiff.errors import FmdiffError, nearest
from fmdiff.path import Path


def _positive(option: str, value: float) -> float:
    if not 0 < value < math.inf:
        raise FmdiffError(f"schedule.{option}={value}: a finite number > 0 is needed")
    return value


class Schedule(Described):
    """A law r of u, both from 0 to 1. A plain function of u can take its place."""

    def __call__(self, u: Tensor) -> Tensor:
        """r (any shape) at u in [0, 1], increasing in u."""
        raise NotImplementedError

    def of(self, steps: int) -> "Schedule":
        """The law of that many steps, which is the same for most."""
        return self


class Uniform(Schedule):
    """r = u."""

    def __call__(self, u: Tensor) -> Tensor:
        return u


UNIFORM = Uniform()


class Quadratic(Schedule):
    """r = u^2 (end=start: dense at the noise) or 1 - (1-u)^2 (end=end: dense at the data)."""

    def __init__(self, end: str) -> None:
        if end not in ("start", "end"):
            raise FmdiffError(f"schedule.end={end}: {nearest(end, ('start', 'end'))}")
        self.end = end

    def __call__(self, u: Tensor) -> Tensor:
        return u**2 if self.end == "start" else 1 - (1 - u) ** 2


class Power(Schedule):
    """r = 1 - (1-u)^p: dense at the data for p > 1, at the noise for p < 1."""

    def __init__(self, p: float) -> None:
        self.p = _positive("p", p)

    def __call__(self, u: Tensor) -> Tensor:
        return 1 - (1 - u) ** self.p


class Ratio(Schedule):
    """r = u^p / (u^p + (1-u)^q): p > 1 is dense at the noise, q > 1 at the data."""

    def __init__(self, p: float, q: float) -> None:
        self.p, self.q = _positive("p", p), _positive("q", q)

    def __call__(self, u: Tensor) -> Tensor:
        up = u**self.p
        return up / (up + (1 - u) ** self.q)


class Gradual(Schedule):
    """r = u / (u + (1-u)^q) with q = 1 + (limit-1) S / (S+half) for S steps.

    A few steps are nearly uniform, as what they miss is lost in the middle, where samples choose
    where to go. Many steps are dense at the data, where the scales of fine detail follow each
    other and no step comes after the last to correct it.
    """

    def __init__(self, limit: float, half: float) -> None:
        self.limit, self.half = _positive("limit", limit), _positive("half", half)

    def of(self, steps: int) -> Schedule:
        return Ratio(1.0, 1 + (self.limit - 1) * steps / (steps + self.half))

    def __call__(self, u: Tensor) -> Tensor:
        """The law of infinitely many steps."""
        return Ratio(1.0, self.limit)(u)


class Cosine(Schedule):
    """r = (1 - cos(pi u)) / 2: dense at both ends."""

    def __call__(self, u: Tensor) -> Tensor:
        return torch.sin(math.pi / 2 * u) ** 2


class Shifted(Schedule):
    """r = u / (u + shift (1-u)): equal steps whose noise levels are multiplied by `shift`.

    This is the timestep shift of Esser et al. 2024 (arXiv:2403.03206, eq. 23). Above 1 it is dense
    at the noise. It applies on top of a shift of the path.
    """

    def __init__(self, shift: float) -> None:
        self.shift = _positive("shift", shift)

    def __call__(self, u: Tensor) -> Tensor:
        return u / (u + self.shift * (1 - u))


class NoiseLevels(Schedule):
    """A law of the noise level beta/alpha from noise_max to noise_min: r = 1 / (1 + level).

    Levels are absolute: solving starts at noise_max and stops at noise_min. If the field is not
    defined there, the law runs between the levels at which it is. The final jump removes the noise
    left at the end. It counts as a step, so `steps` is the number of levels.
    """

    def __init__(self, noise_min: float, noise_max: float) -> None:
        if not 0 < noise_min < noise_max < math.inf:
            raise FmdiffError(
                f"schedule.noise_min={noise_min:g} and schedule.noise_max={noise_max:g}: "
                "0 < noise_min < noise_max is needed"
            )
        self.noise_min, self.noise_max = noise_min, noise_max

    def level(self, u: Tensor, noise_min: float, noise_max: float) -> Tensor:
        """The noise level at u."""
        raise NotImplementedError

    def __call__(self, u: Tensor) -> Tensor:
        return 1 / (1 + self.level(u, self.noise_min, self.noise_max))

    def span(self, path: Path, lo: float, hi: float) -> tuple[float, float]:
        """The part of the field's interval [lo, hi] between the two noise levels.

        Raises FmdiffError if there is none.
        """
        ends = torch.tensor([self.noise_max, self.noise_min], dtype=torch.float64)
        first, last = path.time_of_r(1 / (1 + ends)).tolist()
        if not max(lo, first) < min(hi, last):
            least, most = _levels(path, lo, hi)
            raise FmdiffError(
                f"schedule.noise_min={self.noise_min:g} and schedule.noise_max="
                f"{self.noise_max:g} do not meet the noise levels {least:.3g} to {most:.3g} "
                "of this model"
            )
        return max(lo, first), min(hi, last)

    def times(self, u: Tensor, path: Path, lo: float, hi: float) -> Tensor:
        """The law between the noise levels of lo and hi, as times of the path."""
        return path.time_of_r(1 / (1 + self.level(u, *_levels(path, lo, hi))))


def _levels(path: Path, lo: float, hi: float) -> tuple[float, float]:
    """The noise levels at hi and at lo."""
    r = path.r(torch.tensor([hi, lo], dtype=torch.float64))
    least, most = ((1 - r) / r).tolist()
    return least, most


class Karras(NoiseLevels):
    """level^(1/rho) falls in equal steps (Karras et al. 2022, arXiv:2206.00364, eq. 5)."""

    def __init__(self, noise_min: float, noise_max: float, rho: float) -> None:
        super().__init__(noise_min, noise_max)
        self.rho = _positive("rho", rho)

    def level(self, u: Tensor, noise_min: float, noise_max: float) -> Tensor:
        first: float = noise_max ** (1 / self.rho)
        last: float = noise_min ** (1 / self.rho)
        return (first + u * (last - first)) ** self.rho


class LogSNR(NoiseLevels):
    """log-SNR = -2 log level in equal steps (Lu et al. 2022, arXiv:2206.00927, section 3.4)."""

    def level(self, u: Tensor, noise_min: float, noise_max: float) -> Tensor:
        level: Tensor = noise_max ** (1 - u) * noise_min**u
        return level


class Explicit(Schedule):
    """Explicit times, increasing in [0, 1]. They fix the number of steps."""

    def __init__(self, times: list[float]) -> None:
        numbers = all(isinstance(t, int | float) and not isinstance(t, bool) for t in times)
        if not numbers or len(times) < 2 or not all(0 <= t <= 1 for t in times):
            raise FmdiffError(
                f"schedule.times={_text(times)}: two numbers or more from 0 to 1 are needed"
            )
        if not all(t < s for t, s in pairwise(times)):
            raise FmdiffError(f"schedule.times={_text(times)} must increase")
        self.times = times
        self._grid = torch.tensor(times, dtype=torch.float64)

    @property
    def steps(self) -> int:
        """The number of intervals."""
        return len(self._grid) - 1

    def __call__(self, u: Tensor) -> Tensor:
        """The k-th time at u = k / steps, and linear in between."""
        place = u * self.steps
        k = place.floor().long().clamp(max=self.steps - 1)
        grid = self._grid.to(u)
        return torch.lerp(grid[k], grid[k + 1], place - k)

    def within(self, lo: float, hi: float, final: str) -> Tensor:
        """The times (S+1,) of a solver, without a last 1 that only the final jump can reach.

        Raises FmdiffError for times at which the field is not defined.
        """
        times = self._grid
        if times[-1] == 1 > hi and final != "solver":
            times = times[:-1]
        if not (lo <= times[0] and times[-1] <= hi):
            raise FmdiffError(
                f"schedule.times={_text(self.times)}: this model is solved from "
                f"{lo:.4g} to {hi:.4g}"
                + ("" if final == "solver" else ", and a last time 1 stands for the final jump")
            )
        return times


class Trained(Schedule):
    """The times that a model was trained at, if these are finitely many, as in DDPM.

    S steps take S of the T times, at equal strides from the first one on, and the last step is the
    jump to the estimate of x. S = T is the sampler of Ho et al. 2020 (arXiv:2006.11239).
    """

    def __call__(self, u: Tensor) -> Tensor:
        """Raises FmdiffError: the times are the model's."""
        raise FmdiffError("schedule=trained takes the times of a model, and is no law without one")

    def times(self, atoms: Tensor | None, steps: int) -> Tensor:
        """`steps` of the straight times `atoms` (T,). Raises FmdiffError if there are fewer."""
        if atoms is None:
            raise FmdiffError(
                "schedule=trained: this model was trained at all times from 0 to 1; choose "
                "another schedule, like uniform"
            )
        if steps > len(atoms):
            raise FmdiffError(
                f"steps={steps}: schedule=trained has the {len(atoms)} times of the model; give "
                "fewer steps, or schedule=uniform"
            )
        strides = torch.arange(steps, dtype=torch.float64) * len(atoms) / steps
        return atoms[strides.round().long()]


def _text(times: Sequence[object]) -> str:
    return f"[{','.join(f'{t:g}' if isinstance(t, int | float) else str(t) for t in times)}]"
