"""What the tests of flow maps share: an objective, its points, a network, and exact maps."""

import pytest
import torch
from conftest import PATHS
from torch import nn

from fmdiff.build import spec_of
from fmdiff.field import Field
from fmdiff.objectives.flow_map import FlowMap
from fmdiff.path import expand
from fmdiff.randomness import generator
from fmdiff.times import Uniform

FOUR = {name: PATHS[name] for name in ("condot", "vp", "cosine", "edm")}
four_paths = pytest.mark.parametrize("path", FOUR.values(), ids=FOUR)
SPEC = {key: value for key, value in spec_of("objective", "flow_map").items() if key[0] != "_"}
HOW = ("forward", "difference")
UNIFORM = Uniform(stratified=False)


def make(path, kind=FlowMap, **options):
    """The objective. velocity=teacher needs the name of a run."""
    if options.get("velocity") == "teacher":
        options = {"teacher": "RUN", **options}
    return kind(path=path, data_std=1.3, **{**SPEC, **options})


def draws(seed, step=0):
    return lambda purpose: generator(seed, purpose, step)


class Gaussians(Field):
    """The map of a Gaussian for each class, in closed form. Along each axis of its covariance

    X = alpha_s m + sqrt(S_s / S_t) (x - alpha_t m), S = alpha^2 c + beta^2.
    """

    two_times = True
    classes = 2
    shape = (2,)
    m = torch.tensor([[1.0, -0.5], [-1.5, 2.0]], dtype=torch.float64)
    c = torch.tensor([[0.3, 2.0], [0.9, 0.1]], dtype=torch.float64)

    def interval(self, kind="v"):
        return 0.0, 1.0

    def __init__(self, path, y=None, c=None):
        self.path, self.y = path, y
        self.c = self.c if c is None else c

    def bind(self, y):
        return Gaussians(self.path, y, self.c)

    def rows(self):
        y = torch.zeros(1, dtype=torch.long) if self.y is None else self.y
        return self.m[y], self.c[y]

    def spread(self, t, like):
        a, b = (expand(part, like) for part in self.path.row("x_t", t))
        return a, b, a * a * self.rows()[1].to(like) + b * b

    def predict(self, x_t, t, kind, s=None):
        m, c = (part.to(x_t) for part in self.rows())
        a, b, spread = self.spread(t, x_t)
        score = (x_t - a * m) / spread
        u = m + a * c * score - b * score
        if s is not None:
            a_s, b_s, later = self.spread(s, x_t)
            end = (a_s * m + (later / spread).sqrt() * (x_t - a * m)) / (a_s + b_s)
            h = expand(self.path.r(s) - self.path.r(t), x_t)
            u = torch.where(h == 0, u, (end - x_t / (a + b)) / torch.where(h == 0, 1, h))
        return self.path.convert(u, x_t, t, "straight", kind)

    def jacobian(self, t, s, like):
        """dX/dx of the flow in straight coordinates, diagonal."""
        (a, b, before), (a_s, b_s, later) = self.spread(t, like), self.spread(s, like)
        return (later / before).sqrt() * (a + b) / (a_s + b_s)


def points(objective, n=32, seed=0, progress=0.5, data=None):
    """x_t, the pairs' velocities, t, s, a and progress of rows off the diagonal, in float64."""
    columns = objective.times(n, UNIFORM, draws(seed), progress)
    rows = columns[1] > columns[0]
    t, s, a, p = (part[rows].double() for part in columns[:4])
    draw = torch.Generator().manual_seed(seed)
    x, eps = torch.randn(2, len(t), 2, generator=draw, dtype=torch.float64)
    x = 1.3 * x if data is None else data[: len(t)].double()
    return objective.path.mix(x, eps, t), x - eps, t, s, a, p


class Net(nn.Module):
    """A small network of two times and a guidance scale in float64, for points of two classes."""

    def __init__(self):
        super().__init__()
        draw = torch.Generator().manual_seed(0)
        self.a = nn.Parameter(torch.randn(4, 2, generator=draw, dtype=torch.float64))
        self.b = nn.Parameter(torch.randn(3, 2, generator=draw, dtype=torch.float64))

    def forward(self, x_t, t, y=None, s=None, w=None):
        t = t[:, None] / 1000
        d = 0 if s is None else s[:, None] / 1000 - t
        scale = 0 if w is None else w[:, None] - 1
        inner = self.a[0] * x_t.flip(1) + self.a[1] * t
        if y is not None:
            inner = inner + self.b[y]
        return torch.tanh(inner) + torch.sin(self.a[2] * x_t + d) * d + self.a[3] * scale * x_t
