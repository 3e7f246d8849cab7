"""The objective: one loss for every prediction, loss space and path, and the laws of its times."""

import pytest
import torch
from conftest import every_path
from scipy.stats import kstest, norm
from torch import nn

from fmdiff.errors import FmdiffError
from fmdiff.exact import Mixture
from fmdiff.objectives.flow_matching import PREDICTIONS, FlowMatching
from fmdiff.path import VP, CondOT, Cosine
from fmdiff.randomness import generator
from fmdiff.times import LogitNormal, Uniform

torch.set_num_threads(1)


class Net(nn.Module):
    """A small smooth network in float64, for points of any shape."""

    def __init__(self):
        super().__init__()
        self.a = nn.Parameter(torch.tensor([0.7, -0.4, 0.3], dtype=torch.float64))

    def forward(self, x_t, t, y):
        t = t.view(-1, *[1] * (x_t.ndim - 1)) / 1000
        return torch.tanh(self.a[0] * x_t + self.a[1] * t) + self.a[2]


def batch(n=16, shape=(2,)):
    draw = torch.Generator().manual_seed(0)
    x, eps = torch.randn(2, n, *shape, generator=draw, dtype=torch.float64)
    return 1.3 * x, eps, torch.linspace(0.01, 0.99, n, dtype=torch.float64)


def rows(path, t):
    """x_t and each prediction as (a, b), from their definitions."""
    a, b = path.alpha(t), path.beta(t)
    zero, one = torch.zeros_like(t), torch.ones_like(t)
    return (a, b), {
        "x": (one, zero),
        "eps": (zero, one),
        "v": (path.d_alpha(t), path.d_beta(t)),
        "score": (zero, -1 / b),
        "v_sh": (-b, a),
    }


def to_loss_space(path, value, x_t, t, source, target, floor):
    """Solve for x and eps with floored determinants, then combine: the loss written out."""
    if source == target:
        return value
    (a, b), row = rows(path, t)
    if source == "score":
        source, value = "eps", -b * value
    (c, d), score = row[source], target == "score"
    det = a * d - b * c
    det = torch.where(det < 0, -1.0, 1.0) * det.abs().clamp(min=floor)
    if score:
        eps = value if source == "eps" else (a * value - c * x_t) / det
        return -eps / b.clamp(min=floor)
    if source == target:
        return value
    x, eps = (d * x_t - b * value) / det, (a * value - c * x_t) / det
    p, q = row[target]
    return p * x + q * eps


@every_path
@pytest.mark.parametrize("loss", PREDICTIONS)
@pytest.mark.parametrize("prediction", PREDICTIONS)
@pytest.mark.parametrize("floor", [0.0, 0.05])
def test_loss_and_gradient_are_those_of_the_explicit_form(path, prediction, loss, floor):
    """Prediction and target are both converted, with one floor, and compared."""
    x, eps, t = batch()
    objective, net = FlowMatching(path, 1.3, prediction, loss, floor, 1e-3), Net()
    got = objective(net, x, None, eps, t)
    grads = torch.autograd.grad(got.mean(), net.a)[0]
    column = t[:, None]
    (a, b), row = rows(path, column)
    x_t = a * x + b * eps
    c, d = row[prediction]
    scale = (c**2 * 1.3**2 + d**2).sqrt()
    value = scale * net(x_t / (a**2 * 1.3**2 + b**2).sqrt(), 1000 * t, None)
    there, target = (
        to_loss_space(path, q, x_t, column, prediction, loss, floor)
        for q in (value, c * x + d * eps)
    )
    wanted = (there - target).square().mean(1)
    assert got.shape == (16,)
    torch.testing.assert_close(got, wanted, rtol=1e-6, atol=1e-10)
    explicit = torch.autograd.grad(wanted.mean(), net.a)[0]
    torch.testing.assert_close(grads, explicit, rtol=1e-6, atol=1e-8)


def test_x_prediction_with_v_loss_is_that_of_jit():
    x, eps, t = batch(shape=(1, 4, 4))
    objective, net = FlowMatching(CondOT(), 1.0, "x", "v", 0.05, 1e-5), Net()
    column = t.view(-1, 1, 1, 1)
    z = column * x + (1 - column) * eps
    x_hat = net(z / (column**2 + (1 - column) ** 2).sqrt(), 1000 * t, None)
    wanted = ((x_hat - x) / (1 - column).clamp(min=0.05)).square().flatten(1).mean(1)
    torch.testing.assert_close(objective(net, x, None, eps, t), wanted)


def test_v_prediction_on_condot_is_conditional_flow_matching():
    x, eps, t = batch()
    column = t[:, None]
    net = Net()
    v = net(
        (column * x + (1 - column) * eps) / (column**2 + (1 - column) ** 2).sqrt(), 1000 * t, 0
    )
    wanted = (2**0.5 * v - (x - eps)).square().mean(1)
    objective = FlowMatching(CondOT(), 1.0, "v", None, 0.05, 1e-5)
    torch.testing.assert_close(objective(net, x, None, eps, t), wanted)


@pytest.mark.parametrize("prediction", PREDICTIONS)
def test_without_a_loss_the_prediction_is_judged_in_its_own_space(prediction):
    t = torch.linspace(0.1, 0.9, 5, dtype=torch.float64)
    weight = FlowMatching(Cosine(), 1.0, prediction, None, 0.0, 1e-3).weight(t)
    wanted = Cosine().beta(t) ** 2 if prediction == "score" else torch.ones_like(t)
    torch.testing.assert_close(weight, wanted)


@pytest.mark.parametrize(
    ("path", "prediction", "loss"),
    [(CondOT(), "x", "v"), (VP(), "eps", "eps"), (Cosine(), "v", "x"), (CondOT(), "score", None)],
)
def test_the_exact_field_minimises(path, prediction, loss):
    """At the conditional expectation the derivative in any direction is 0 within 4 errors."""
    n = 40_000
    mixture = Mixture(
        path,
        torch.tensor([0.4, 0.6]).double(),
        torch.tensor([[1.0, 0.0], [-0.5, 1.0]]).double(),
        0.1 * torch.eye(2).double().expand(2, 2, 2),
    )
    x = mixture.sample(0, n, 0).double()
    eps = torch.randn(n, 2, generator=generator(0, "eps"), dtype=torch.float64)
    t = 0.05 + 0.9 * torch.rand(n, generator=generator(0, "t"), dtype=torch.float64)
    objective = FlowMatching(path, 1.0, prediction, loss, 0.05, 1e-3)
    field = objective.field(nn.Identity(), (2,))
    x_t = path.mix(x, eps, t)
    exact = mixture.predict(x_t, t, prediction) / field.rms(prediction, t[:, None])
    for direction in (torch.ones_like(x_t), torch.tanh(x_t), x_t.sin() * t[:, None]):
        size = torch.zeros(n, dtype=torch.float64, requires_grad=True)

        def net(scaled, time, y, size=size, direction=direction):
            return exact + size[:, None] * direction

        (slope,) = torch.autograd.grad(objective(net, x, None, eps, t).sum(), size)
        error = (slope.std() / n**0.5).item()
        assert error > 0 and abs(slope.mean().item()) < 4 * error
        moved = objective(lambda *_, d=direction: exact + 0.3 * d, x, None, eps, t)
        assert moved.mean() > objective(lambda *_: exact, x, None, eps, t).mean()


@pytest.mark.parametrize(("prediction", "loss"), [("velocity", None), ("v", "epss"), ("x_t", "v")])
def test_an_unknown_quantity_is_refused(prediction, loss):
    with pytest.raises(FmdiffError, match=r"objective\.(prediction|loss)=.*v_sh"):
        FlowMatching(CondOT(), 1.0, prediction, loss, 0.05, 1e-5)


@pytest.mark.parametrize("t_eps", [-0.1, 0.5, 1.0])
def test_a_wrong_t_eps_is_refused(t_eps):
    with pytest.raises(FmdiffError, match="t_eps"):
        FlowMatching(CondOT(), 1.0, "v", None, 0.05, t_eps)


def test_times_are_kept_off_the_ends():
    objective = FlowMatching(CondOT(), 1.0, "v", None, 0.05, 0.1)
    assert objective.time(torch.tensor([0.0, 0.5, 1.0])).tolist() == pytest.approx([0.1, 0.5, 0.9])


def test_the_network_gets_the_labels():
    seen, y = [], torch.tensor([0, 3, 1])

    def net(scaled, time, labels):
        seen.append(labels)
        return scaled

    x, eps, t = batch(3)
    FlowMatching(CondOT(), 1.0, "v", None, 0.0, 1e-3)(net, x, y, eps, t)
    assert torch.equal(seen[0], y)


@pytest.mark.parametrize(
    ("law", "cdf"),
    [
        (Uniform(), lambda u: u.clip(0, 1)),
        (LogitNormal(0.0, 1.0), lambda u: norm.cdf(torch.logit(torch.as_tensor(u)).numpy())),
        (
            LogitNormal(-0.8, 0.5),
            lambda u: norm.cdf((torch.logit(torch.as_tensor(u)).numpy() + 0.8) / 0.5),
        ),
    ],
    ids=["uniform", "logit_normal", "logit_normal_shifted"],
)
def test_time_laws(law, cdf):
    """Kolmogorov-Smirnov over 20,000 draws; a true law fails at p < 1e-3 once in 1,000 seeds."""
    t = law(20_000, generator(0, "time"))
    assert ((t >= 0) & (t <= 1)).all()
    assert torch.equal(t, law(20_000, generator(0, "time")))
    assert kstest(t.double().numpy(), cdf).pvalue > 1e-3
