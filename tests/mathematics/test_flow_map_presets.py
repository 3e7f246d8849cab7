"""Presets of flow maps, against the formulas of their papers in the papers' own time and letters.

Where their time runs from data to noise it is 1 - t, and velocities have the other sign.
"""

import math

import pytest
import torch
from conftest import PATHS
from exact_maps import SPEC, UNIFORM, Net, draws, make

from fmdiff.build import spec_of
from fmdiff.objectives.flow_matching import FlowMatching
from fmdiff.path import CondOT
from fmdiff.settings import compose

PRESETS = (
    "alphaflow",
    "consistency",
    "distill",
    "imf",
    "lsd",
    "meanflow",
    "progressive",
    "scm",
    "shortcut",
)


def preset(name, path=None, **changes):
    spec = spec_of("objective", name)
    options = {key: value for key, value in spec.items() if key != "defaults"} | changes
    return make(path or CondOT(), **options)


def batch(objective, n=24, progress=0.5, t=None, s=None):
    """x, eps and columns in float64."""
    draw = torch.Generator().manual_seed(1)
    x, eps = torch.randn(2, n, 2, generator=draw, dtype=torch.float64)
    columns = [part.double() for part in objective.times(n, UNIFORM, draws(2), progress)]
    columns[0] = columns[0] if t is None else t
    columns[1] = columns[1] if s is None else s
    return 1.3 * x, eps, columns


def losses(objective, net, x, eps, columns):
    """The loss of each row, and the gradient of their sum."""
    loss = objective(net, x, None, eps, *columns)
    return loss, torch.autograd.grad(loss.sum(), net.a)[0]


def agree(ours, net, loss):
    """Whether a loss (B,) has our values and our gradient."""
    gradient = torch.autograd.grad(loss.sum(), net.a)[0]
    assert torch.allclose(ours[0], loss, rtol=1e-9, atol=1e-12)
    assert torch.allclose(ours[1], gradient, rtol=1e-8, atol=1e-9 * gradient.abs().max())


@pytest.mark.parametrize("name", PRESETS)
def test_the_program_composes_a_preset_like_these_tests(name):
    composer = compose.Composer("train", compose.parse([])[0])
    composed = composer.compose([f"objective={name}"]).objective
    own = {key: value for key, value in spec_of("objective", name).items() if key != "defaults"}
    assert {key: composed[key] for key in SPEC} == {**SPEC, **own}


def test_meanflow():
    """u_tgt = v - (t - r) du/dt with the tangent (v, 0, 1), weight 1 / (|e|^2 + c)^p, c = 1e-3."""
    objective = preset("meanflow", derivative="forward")
    net, (x, eps, columns) = Net(), batch(objective)
    t, r = 1 - columns[0], 1 - columns[1]
    z, v = (1 - t)[:, None] * x + t[:, None] * eps, eps - x

    def u(z, r, t):
        return -objective.field(net, (2,)).predict(z, 1 - t, "straight", 1 - r)

    tangent = (v, torch.zeros_like(r), torch.ones_like(t))
    value, slope = torch.func.jvp(u, (z, r, t), tangent)
    error = value - (v - (t - r)[:, None] * slope).detach()
    square = error.square().sum(1)
    loss = square / (square.detach() + 1e-3) ** 0.75 / 2  # ours is a mean over the elements
    assert ((t > r).sum(), (t == r).sum()) == (6, 18)
    agree(losses(objective, net, x, eps, columns), net, loss)


def test_improved_meanflow():
    """V = u + (t - r) sg(du/dt) with the tangent (u(z, t, t), 0, 1), compared with e - x."""
    objective = preset("imf", derivative="forward")
    net, (x, eps, columns) = Net(), batch(objective)
    t, r = 1 - columns[0], 1 - columns[1]
    z = (1 - t)[:, None] * x + t[:, None] * eps

    def u(z, r, t):
        return -objective.field(net, (2,)).predict(z, 1 - t, "straight", 1 - r)

    tangent = (u(z, t, t).detach(), torch.zeros_like(r), torch.ones_like(t))
    value, slope = torch.func.jvp(u, (z, r, t), tangent)
    compound = value + (t - r)[:, None] * slope.detach()
    square = (compound - (eps - x)).square().sum(1)
    loss = square / (square.detach() + 1e-3) ** 0.75 / 2
    agree(losses(objective, net, x, eps, columns), net, loss)


@pytest.mark.parametrize("progress", [0.3, 0.5, 0.6])
def test_alphaflow(progress):
    """u_tgt = alpha v + (1 - alpha) u(z_s, r, s), s = alpha r + (1 - alpha) t.

    The gradient is that of alpha |e|^2 / (|e|^2 + alpha^2 c), with the weight held fixed.
    """
    objective = preset("alphaflow", diagonal=0.0)
    net, (x, eps, columns) = Net(), batch(objective, progress=progress)
    t, r = 1 - columns[0][:, None], 1 - columns[1][:, None]
    alpha = 1 - 1 / (1 + math.exp(-25 * (progress - 0.5)))
    z, v, s = (1 - t) * x + t * eps, eps - x, alpha * r + (1 - alpha) * t
    field = objective.field(net, (2,))

    def u(z, r, t):
        return -field.predict(z, 1 - t[:, 0], "straight", 1 - r[:, 0])

    target = alpha * v + (1 - alpha) * u(z - (t - s) * v, r, s)
    error = u(z, r, t) - target.detach()
    square = error.square().sum(1)
    loss = alpha * square / (square.detach() + alpha**2 * 1e-3) / 2
    gradient = torch.autograd.grad(loss.sum(), net.a)[0]
    ours = losses(objective, net, x, eps, columns)[1]
    assert torch.allclose(ours, gradient, rtol=1e-5, atol=1e-6 * gradient.abs().max())


def test_shortcut():
    """s(x, t, 2d) is the mean of s(x, t, d) and s(x + d s(x, t, d), t + d, d)."""
    objective = preset("shortcut", t_eps=0.0)
    net, (x, eps, columns) = Net(), batch(objective)
    t, d = columns[0], (columns[1] - columns[0]) / 2
    x_t, field = (1 - t)[:, None] * eps + t[:, None] * x, objective.field(net, (2,))

    def shortcut(x, t, d):
        return field.predict(x, t, "straight", t + d)

    first = shortcut(x_t, t, d)
    second = shortcut(x_t + d[:, None] * first, t + d, d)
    target = torch.where(d[:, None] > 0, (first + second) / 2, x - eps).detach()
    assert (d > 0).sum() == 6
    # the network is compared at unit scale: the velocity has the variance 1.3^2 + 1
    loss = (shortcut(x_t, t, 2 * d) - target).square().mean(1) / (1.3**2 + 1)
    agree(losses(objective, net, x, eps, columns), net, loss)


@pytest.mark.parametrize("progress", [0.0, 0.5, 0.75])
def test_consistency(progress):
    """f(x_t, t) is compared with f(x_t', t'), and t' = max(0, t (1 - 2^-a (1 + 8 sigmoid(-t)))).

    Their t is the noise level, and a goes from 1 to 8. f(x_t, t) = z + (1 - r) u has a skip
    connection, so that f is the identity on data. One noise eps gives both states.
    """
    objective = preset("consistency", t_eps=0.0)
    level = torch.tensor([6.0, 2.0, 1.0, 0.3, 0.02], dtype=torch.float64)
    time, one = 1 / (1 + level), torch.ones(5, dtype=torch.float64)
    net, (x, eps, columns) = Net(), batch(objective, 5, progress, time, one)
    n = 1 + 8 / (1 + torch.exp(level))
    after = (level * (1 - 2 ** -(1 + 7 * progress) * n)).clamp(min=0)
    field = objective.field(net, (2,))

    def f(state, level):
        """Of a state x + level eps."""
        r = 1 / (1 + level)
        z = state * r[:, None]
        return z + (1 - r)[:, None] * field.predict(z, r, "straight", one)

    target = f(x + after[:, None] * eps, after)
    state = CondOT().mix(x, eps, time)
    goal = objective.goal(field, state, x - eps, *columns[:4])
    ours = CondOT().convert(goal, state, time, "straight", "x")
    assert torch.allclose(ours, target, rtol=1e-9, atol=1e-9)
    data = torch.zeros_like(level)
    assert torch.allclose(f(x, data), x)
    assert (after == 0).any() == (progress == 0)


def test_scm():
    """On the trigonometric path x = cos(t) x_0 + sin(t) z, f = cos(t) x - sin(t) F:

    g = -cos(t)^2 (F - dx/dt) - cos(t) sin(t) (x + dF/dt) after the warm-up, and F is compared
    with F + g / (|g| + 0.1).
    """
    objective = preset("scm", PATHS["cosine"], derivative="forward", t_eps=0.0)
    ours = torch.linspace(0.05, 0.95, 24, dtype=torch.float64)
    one = torch.ones_like(ours)
    net, (x, eps, columns) = Net(), batch(objective, t=ours, s=one)
    t = math.pi / 2 * (1 - ours)
    cos, sin = torch.cos(t)[:, None], torch.sin(t)[:, None]
    state, speed = cos * x + sin * eps, cos * eps - sin * x

    def network(state, t):
        return objective.field(net, (2,)).predict(state, 1 - 2 * t / math.pi, "v_sh", one)

    value, slope = torch.func.jvp(network, (state, t), (speed, torch.ones_like(t)))
    g = -(cos**2) * (value - speed) - cos * sin * (state + slope)
    g = g / (g.norm(dim=1, keepdim=True) + 0.1)
    loss = (value - value.detach() - g.detach()).square().mean(1)
    agree(losses(objective, net, x, eps, columns), net, loss)


def test_progressive():
    """Two DDIM steps of the teacher, and the x with which one step leads to the same state."""
    path, steps = PATHS["cosine"], 16
    objective = preset("progressive", path, t_eps=0.0, teacher="RUN", diagonal=0.0)
    names = ("prediction", "loss", "floor", "t_eps")
    parent = FlowMatching(path, 1.3, **{name: SPEC[name] for name in names})
    net, (x, eps, columns) = Net(), batch(objective)
    objective.teacher = teacher = parent.field(net, (2,))
    assert not teacher.two_times
    time = 1 - columns[0]
    assert torch.equal((time * steps).round() / steps, time)

    def alpha(t):
        return torch.cos(math.pi / 2 * t)[:, None]

    def sigma(t):
        return torch.sin(math.pi / 2 * t)[:, None]

    def step(z, t, after):
        guess = teacher.predict(z, 1 - t, "x")
        return alpha(after) * guess + sigma(after) / sigma(t) * (z - alpha(t) * guess)

    z = alpha(time) * x + sigma(time) * eps
    half, whole = time - 0.5 / steps, time - 1 / steps
    last = step(step(z, time, half), half, whole)
    ratio = sigma(whole) / sigma(time)
    target = (last - ratio * z) / (alpha(whole) - ratio * alpha(time))
    goal = objective.goal(objective.field(net, (2,)), z, x - eps, *columns[:4])
    ours = path.convert(goal, z, columns[0], "straight", "x")
    assert torch.allclose(ours, target, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("name", ["lsd", "distill"])
def test_lagrangian(name):
    """|d/dt X_{s,t}(I_s) - b_t(X_{s,t}(I_s))|^2 with X_{s,t}(x) = x + (t - s) v_{s,t}(x).

    b is v_{t,t}, or a teacher's velocity. Our gradient is that of the first v_{s,t} alone.
    """
    more = {"teacher": "RUN"} if name == "distill" else {}
    objective = preset(name, derivative="forward", diagonal=0.0, **more)
    net, (x, eps, columns) = Net(), batch(objective)
    s, t = columns[:2]
    state, field = (1 - s)[:, None] * eps + s[:, None] * x, objective.field(net, (2,))
    other = Net()
    with torch.no_grad():
        other.a.mul_(0.5)
    if name == "distill":
        objective.teacher = objective.field(other, (2,))

    def v(x, s, t):
        return field.predict(x, s, "straight", t)

    def jump(t):
        return state + (t - s)[:, None] * v(state, s, t)

    arrival, speed = torch.func.jvp(jump, (t,), (torch.ones_like(t),))
    b = objective.teacher.predict(arrival, t, "v") if name == "distill" else v(arrival, t, t)
    average = v(state, s, t)
    residual = average + (speed - average - b).detach()
    assert torch.allclose(residual, speed - b)
    loss = residual.square().mean(1) / (1.3**2 + 1)
    agree(losses(objective, net, x, eps, columns), net, loss)
