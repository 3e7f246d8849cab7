"""The objective: one loss for every prediction, loss space, weighting and path."""

import math
from functools import cache
from itertools import cycle, product

import pytest
import torch
from conftest import PATHS, every_path, some_paths
from torch import nn

from fmdiff.errors import FmdiffError
from fmdiff.exact import Mixture
from fmdiff.objectives.flow_matching import DISTANCES, PREDICTIONS, FlowMatching
from fmdiff.objectives.objective import Objective
from fmdiff.objectives.weighting import WEIGHTINGS
from fmdiff.path import EDM, VP, CondOT
from fmdiff.randomness import generator
from fmdiff.source import Normal, Truncated

LOSSES = (None, *PREDICTIONS)
S, GAMMA, BIAS = 1.3, 4.0, 1.5
# where the paper of a weighting writes its squared error, taken with loss=null
SPACES = {"snr": "x", "min_snr": "x", "edm": "x", "sigmoid": "eps", "likelihood": "eps"}


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


def slopes(path, t):
    """alpha' and beta', by reverse-mode autodiff."""
    t = t.detach().clone().requires_grad_()
    found = []
    for value in (path.alpha(t), path.beta(t)):
        moves = value.requires_grad
        found.append(torch.autograd.grad(value.sum(), t)[0] if moves else torch.zeros_like(t))
    return found


def rows(path, t):
    """x_t and each prediction as (a, b), from their definitions."""
    a, b = path.alpha(t), path.beta(t)
    zero, one = torch.zeros_like(t), torch.ones_like(t)
    return (a, b), {
        "x": (one, zero),
        "eps": (zero, one),
        "v": slopes(path, t),
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


def weights(path, t, floor):
    """Every weighting, from its paper, with alpha and beta bounded by the floor."""
    a, b = path.alpha(t).clamp(min=floor), path.beta(t).clamp(min=floor)
    d_a, d_b = slopes(path, t)
    snr, sigma = a * a / (b * b), b / a
    half_rate = d_a / a - d_b / b  # half the derivative of log snr = 2 (log alpha - log beta)
    return {
        "none": torch.ones_like(t),
        "snr": snr,
        "min_snr": torch.minimum(snr, torch.full_like(snr, GAMMA)),
        "edm": (sigma**2 + S**2) / (sigma * S) ** 2,
        "sigmoid": half_rate / (1 + torch.exp(torch.log(snr) - BIAS)),
        "likelihood": half_rate,
    }


def make(path, prediction, loss, floor=0.05, weighting="none", **more):
    return FlowMatching(
        path, S, prediction, loss, floor, 1e-3, weighting, gamma=GAMMA, bias=BIAS, **more
    )


def test_every_weighting_is_written_out_here():
    assert set(weights(CondOT(), torch.tensor([0.5]), 0.0)) == set(WEIGHTINGS)
    assert {k: v.space for k, v in WEIGHTINGS.items()} == {"none": None, **SPACES}


@some_paths
@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("prediction", PREDICTIONS)
def test_loss_and_gradient_are_those_of_the_explicit_form(path, prediction, loss):
    """Prediction and target are both converted, with one floor, compared and weighted."""
    x, eps, t = batch()
    net, column = Net(), t[:, None]
    (a, b), row = rows(path, column)
    (c, d), x_t = row[prediction], a * x + b * eps
    scale = (c**2 * S**2 + d**2).sqrt()
    output = net(x_t / (a**2 * S**2 + b**2).sqrt(), 1000 * t, None)
    pair = scale * output, c * x + d * eps

    @cache
    def squares(space, floor):
        if space:
            there, target = (
                to_loss_space(path, q, x_t, column, prediction, space, floor) for q in pair
            )
        elif prediction == "x":  # by the velocity x - eps of the straight path at r
            r = a / (a + b)
            there, target = (q / (1 - r).clamp(min=floor) for q in pair)
        else:  # by the network's own output
            there, target = output, pair[1] / scale
        return (there - target).square().mean(1)

    for floor in (0.0, 0.05):
        for weighting, weight in weights(path, t, floor).items():
            wanted = weight * squares(loss or SPACES.get(weighting), floor)
            got = make(path, prediction, loss, floor, weighting)(net, x, None, eps, t)
            assert got.shape == (16,)
            torch.testing.assert_close(got, wanted, rtol=1e-6, atol=1e-10)
            one, other = (
                torch.autograd.grad(value.mean(), net.a, retain_graph=True)[0]
                for value in (got, wanted)
            )
            torch.testing.assert_close(one, other, rtol=1e-6, atol=1e-8)


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
    for loss, scale in (("v", 1.0), (None, 2.0)):  # unit scale: |v|^2 is 2 for data_std = 1
        objective = FlowMatching(CondOT(), 1.0, "v", loss, 0.05, 1e-5)
        torch.testing.assert_close(objective(net, x, None, eps, t), wanted / scale)


@every_path
@pytest.mark.parametrize("prediction", ["eps", "v", "score", "v_sh"])
def test_without_a_loss_an_untrained_network_has_loss_one_at_every_time(path, prediction):
    """Its own output at unit scale: a network of zeros is off by the rms of the target, 1."""
    n = 4000
    x, eps = torch.randn(2, n, 2, generator=generator(0, "unit"), dtype=torch.float64)
    for t in (0.02, 0.5, 0.98):
        objective = make(path, prediction, None)
        time = torch.full((n,), t, dtype=torch.float64)
        got = objective(lambda x_t, *_: torch.zeros_like(x_t), S * x, None, eps, time)
        assert abs(got.mean().item() - 1) < 4 * got.std().item() / n**0.5


# EDM's preconditioning


@pytest.mark.parametrize("s", [0.5, 1.7])
def test_precondition_is_the_denoiser_of_edm(s):
    """D = c_skip x_t + c_out F(c_in x_t, c_noise), weight (sigma^2 + s^2) / (sigma s)^2."""
    path, net, seen = EDM(0.002, 80.0, 7.0), Net(), []

    def network(scaled, time, y):
        seen.append(time)
        return net(scaled, time, y)

    x, eps, t = batch()
    objective = FlowMatching(path, s, "x", "x", 0.0, 0.0, "edm", precondition=True)
    sigma = (80 ** (1 / 7) + t * (0.002 ** (1 / 7) - 80 ** (1 / 7))) ** 7
    noisy, column = x + sigma[:, None] * eps, sigma[:, None]
    c_skip = s**2 / (column**2 + s**2)
    c_out = column * s / (column**2 + s**2).sqrt()
    c_in = 1 / (column**2 + s**2).sqrt()
    c_noise = sigma.log() / 4
    feature = 500 * (1 - c_noise / 3)
    denoised = c_skip * noisy + c_out * net(c_in * noisy, feature, None)
    field = objective.field(network, (2,))
    torch.testing.assert_close(field.predict(noisy, t, "x"), denoised, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(seen[0], feature)
    wanted = (sigma**2 + s**2) / (sigma * s) ** 2 * (denoised - x).square().mean(1)
    got = objective(net, x, None, eps, t)
    torch.testing.assert_close(got, wanted, rtol=1e-7, atol=1e-9)
    # loss=null is that loss too: the weight is 1 / c_out^2, so F is judged at unit scale
    for weighting in ("edm", "none"):
        free = FlowMatching(path, s, "x", None, 0.0, 0.0, weighting, precondition=True)
        torch.testing.assert_close(free(net, x, None, eps, t), wanted, rtol=1e-7, atol=1e-9)


@every_path
def test_a_preconditioned_network_of_zeros_is_the_best_linear_denoiser(path):
    """c_skip x_t minimises |x - k x_t|^2 over k: the error is uncorrelated with x_t."""
    n = 20_000
    x, eps = torch.randn(2, n, 1, generator=generator(1, "linear"), dtype=torch.float64)
    field = make(path, "x", None, precondition=True).field(
        lambda x_t, *_: torch.zeros_like(x_t), (1,)
    )
    for t in torch.tensor([0.1, 0.5, 0.9], dtype=torch.float64):
        x_t = path.mix(S * x, eps, t)
        products = (S * x - field.predict(x_t, t, "x")) * x_t
        assert abs(products.mean()) < 4 * products.std() / n**0.5
        error = (S * x - field.predict(x_t, t, "x")).square()
        a, b = path.alpha(t), path.beta(t)
        c_out = b * S / (a**2 * S**2 + b**2).sqrt()
        assert abs(error.mean() - c_out**2) < 4 * error.std() / n**0.5


# Distances


@pytest.mark.parametrize(("prediction", "loss"), [("v", "v"), ("x", "v"), ("v", "eps")])
def test_distances_are_their_formulas(prediction, loss):
    x, eps, t = batch(shape=(1, 3, 3))
    net, path = Net(), CondOT()
    column = t.view(-1, 1, 1, 1)
    (a, b), row = rows(path, column)
    (c, d), x_t = row[prediction], a * x + b * eps
    value = (c**2 * S**2 + d**2).sqrt() * net(x_t / (a**2 * S**2 + b**2).sqrt(), 1000 * t, None)
    pair = value, c * x + d * eps
    there, target = (to_loss_space(path, q, x_t, column, prediction, loss, 0.05) for q in pair)
    error = (there - target).flatten(1)
    norm, huber = error.square().sum(1).sqrt(), 0.3
    weight = weights(path, t, 0.05)["edm"]
    for distance, wanted in (
        ("l1", error.abs().sum(1) / 9),
        # Song & Dhariwal's sqrt(|e|^2 + c^2) - c, with c = 0.3 sqrt(D), over sqrt(D)
        ("pseudo_huber", ((norm**2 + 9 * huber**2).sqrt() - 3 * huber) / 3),
        ("l2", norm**2 / 9),
    ):
        objective = make(path, prediction, loss, weighting="edm", distance=distance, huber=huber)
        torch.testing.assert_close(objective(net, x, None, eps, t), weight * wanted)


# The exact field minimises


def mixture(path):
    return Mixture(
        path,
        torch.tensor([0.4, 0.6]).double(),
        torch.tensor([[1.0, 0.0], [-0.5, 1.0]]).double(),
        0.1 * torch.eye(2).double().expand(2, 2, 2),
    )


def slope_errors(objective, outputs, directions, pairs):
    """Of the loss at these network outputs in each direction: slope / its standard error."""
    x, eps, t = pairs
    at = outputs.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(objective(lambda *_: at, x, None, eps, t).sum(), at)
    along = (gradient * directions).sum(-1)  # (directions, n)
    return along.mean(1) / (along.std(1) / len(x) ** 0.5)


@pytest.mark.parametrize("prediction", [*PREDICTIONS, "precondition"])
@some_paths
def test_the_exact_field_minimises_every_loss(path, prediction):
    """At the conditional expectation the slope in any direction is 0 within 4 standard errors,

    and 0.4 of the network's unit scale beside it, it is not.
    """
    n, precondition = 10_000, prediction == "precondition"
    prediction = "x" if precondition else prediction
    truth = mixture(path)
    x = truth.sample(0, n, 0).double()
    eps = torch.randn(n, 2, generator=generator(0, "eps"), dtype=torch.float64)
    t = 0.05 + 0.9 * torch.rand(n, generator=generator(0, "t"), dtype=torch.float64)
    column, x_t = t[:, None], path.mix(x, eps, t)
    field = make(path, prediction, None, precondition=precondition).field(nn.Identity(), (2,))
    blank = make(path, prediction, None, precondition=precondition).field(
        lambda scaled, *_: torch.zeros_like(scaled), (2,)
    )
    exact = truth.predict(x_t, t, prediction) - blank.output(x_t, t)
    exact = exact / field.scale(column)
    size = field.rms("x_t", column)
    directions = torch.stack(
        [torch.ones_like(x_t), torch.tanh(x_t / size), (2 * x_t / size).sin() * column]
    )
    for loss, weighting in product(LOSSES, WEIGHTINGS):
        objective = make(path, prediction, loss, 0.05, weighting, precondition=precondition)
        what = f"loss={loss} weighting={weighting}"
        there = slope_errors(objective, exact, directions, (x, eps, t))
        assert there.isfinite().all() and there.abs().max() < 4, what
        if loss not in (None, "x"):
            continue
        beside = slope_errors(objective, exact + 0.4 * directions[1], directions, (x, eps, t))
        assert beside[1] > 4, what


@pytest.mark.parametrize("prediction", ["x", "v"])
def test_l1_is_minimised_by_the_median_and_not_by_the_mean(prediction):
    """In 1-D on a skewed mixture: the posterior is a mixture too, with a CDF in closed form."""
    n, path = 20_000, CondOT()
    rho, m, c = torch.tensor([[0.85, 0.15], [-1.0, 2.5], [0.02, 0.02]]).double()
    truth = Mixture(path, rho, m[:, None], c[:, None, None])
    x = truth.sample(0, n, 0).double()
    eps = torch.randn(n, 1, generator=generator(0, "eps"), dtype=torch.float64)
    t = 0.1 + 0.6 * torch.rand(n, generator=generator(0, "t"), dtype=torch.float64)
    x_t, a, b = path.mix(x, eps, t), t[:, None], 1 - t[:, None]
    spread = a**2 * c + b**2
    logs = rho.log() - (x_t - a * m) ** 2 / (2 * spread) - spread.log() / 2
    posterior, mean = logs.softmax(1), m + a * c * (x_t - a * m) / spread
    std = (c * b**2 / spread).sqrt()
    low, high = torch.full((n, 1), -20.0).double(), torch.full((n, 1), 20.0).double()
    for _ in range(60):
        middle = (low + high) / 2
        below = (posterior * torch.special.ndtr((middle - mean) / std)).sum(1, True) < 0.5
        low, high = torch.where(below, middle, low), torch.where(below, high, middle)
    objective = FlowMatching(path, 1.0, prediction, prediction, 0.05, 1e-3, distance="l1")
    scale = objective.field(nn.Identity(), (1,)).scale(t[:, None])
    median = path.convert(middle, x_t, t, "x", prediction) / scale
    expectation = truth.predict(x_t, t, prediction) / scale
    one = torch.ones(1, n, 1, dtype=torch.float64)
    assert slope_errors(objective, median, one, (x, eps, t)).abs() < 4
    assert slope_errors(objective, expectation, one, (x, eps, t)).abs() > 20
    squares = FlowMatching(path, 1.0, prediction, prediction, 0.05, 1e-3)
    assert slope_errors(squares, expectation, one, (x, eps, t)).abs() < 4
    assert slope_errors(squares, median, one, (x, eps, t)).abs() > 20


# The fast form


@some_paths
def test_the_fast_form_is_the_loss(path):
    """Training compares terms that were worked out before: the same loss and gradient."""
    x, eps, t = batch(shape=(1, 2, 2))
    net, others = Net(), cycle(product(DISTANCES, (0.0, 0.05)))
    cells = [*product(PREDICTIONS, LOSSES, WEIGHTINGS, (False,))]
    cells += product(("x",), LOSSES, WEIGHTINGS, (True,))
    for cell, (distance, floor) in zip(cells, others, strict=False):
        prediction, loss, weighting, precondition = cell
        more = {"distance": distance, "precondition": precondition, "source": Truncated(1.5)}
        objective = make(path, prediction, loss, floor, weighting, **more)
        slow = objective(net, x, None, eps, t)
        fast = objective.compare(net, *objective.terms(x, None, eps, t))
        torch.testing.assert_close(fast, slow, rtol=1e-8, atol=1e-10)
        if weighting == "edm":
            pair = (torch.autograd.grad(value.mean(), net.a)[0] for value in (fast, slow))
            torch.testing.assert_close(*pair, rtol=1e-7, atol=1e-9)


@some_paths
def test_the_mean_squared_error_is_that_of_the_prediction(path):
    x, eps, t = batch(shape=(1, 2, 2))
    net = Net()
    for prediction, loss, weighting in product(PREDICTIONS, LOSSES, WEIGHTINGS):
        objective = make(path, prediction, loss, 0.05, weighting)
        terms = objective.terms(x, None, eps, t)
        got = objective.mse(objective.compare(net, *terms), *terms)
        error = objective.field(net, x.shape[1:]).output(path.mix(x, eps, t), t)
        error = error - path.mix(x, eps, t, prediction)
        torch.testing.assert_close(got, error.square().flatten(1).mean(1), rtol=1e-8, atol=1e-10)
    other = make(path, "v", None, 0.05, "none", distance="l1")
    terms = other.terms(x, None, eps, t)
    assert other.mse(other.compare(net, *terms), *terms).isnan().all()


class Plain(Objective):
    """An objective of one's own: `__call__` alone."""

    def __call__(self, net, x, y, eps, t):
        error = self.field(net, x.shape[1:], y=y).output(self.path.mix(x, eps, t), t)
        return (error - self.path.mix(x, eps, t, "v")).square().flatten(1).mean(1)


def test_an_objective_needs_a_loss_alone():
    x, eps, t = batch()
    plain, net = Plain(CondOT(), S, 0.1), Net()
    assert not plain.logits and isinstance(plain.source, Normal)
    assert plain.time(torch.tensor([0.0, 1.0])).tolist() == pytest.approx([0.1, 0.9])
    loss = plain.compare(net, *plain.terms(x, None, eps, t))
    assert torch.equal(loss, plain(net, x, None, eps, t))
    assert plain.mse(loss, *plain.terms(x, None, eps, t)).isnan().all()
    wanted = make(CondOT(), "v", "v", 0.0)(net, x, None, eps, t)
    torch.testing.assert_close(loss, wanted)


# What it refuses, and the rest


@pytest.mark.parametrize(("prediction", "loss"), [("velocity", None), ("v", "epss"), ("x_t", "v")])
def test_an_unknown_quantity_is_refused(prediction, loss):
    with pytest.raises(FmdiffError, match=r"objective\.(prediction|loss)=.*v_sh"):
        FlowMatching(CondOT(), 1.0, prediction, loss, 0.05, 1e-5)


@pytest.mark.parametrize(
    ("option", "given", "choice"),
    [("weighting", "minsnr", "min_snr"), ("distance", "huber", "pseudo_huber")],
)
def test_an_unknown_weighting_or_distance_is_refused(option, given, choice):
    with pytest.raises(FmdiffError, match=rf"objective\.{option}={given} is unknown.*{choice}"):
        FlowMatching(CondOT(), 1.0, "v", None, 0.05, 1e-5, **{option: given})


@pytest.mark.parametrize("t_eps", [-0.1, 0.5, 1.0])
def test_a_wrong_t_eps_is_refused(t_eps):
    with pytest.raises(FmdiffError, match="t_eps"):
        FlowMatching(CondOT(), 1.0, "v", None, 0.05, t_eps)


def test_times_are_kept_off_the_ends():
    objective = FlowMatching(CondOT(), 1.0, "v", None, 0.05, 0.1)
    assert objective.time(torch.tensor([0.0, 0.5, 1.0])).tolist() == pytest.approx([0.1, 0.5, 0.9])


@pytest.mark.parametrize("prediction", PREDICTIONS)
@pytest.mark.parametrize("name", PATHS)
def test_the_default_loss_is_finite_up_to_the_ends(name, prediction):
    x, eps, _ = batch(2)
    t = torch.tensor([1e-4, 1 - 1e-4], dtype=torch.float64)
    objective = FlowMatching(PATHS[name], S, prediction, None, 0.05, 1e-4)
    for dtype in (torch.float64, torch.float32):
        values = objective(Net(), x.to(dtype), None, eps.to(dtype), t.to(dtype))
        assert values.isfinite().all() and (values < 1e4).all()


def test_the_network_gets_the_labels():
    seen, y = [], torch.tensor([0, 3, 1])

    def net(scaled, time, labels):
        seen.append(labels)
        return scaled

    x, eps, t = batch(3)
    FlowMatching(CondOT(), 1.0, "v", None, 0.0, 1e-3)(net, x, y, eps, t)
    assert torch.equal(seen[0], y)


def test_another_source_is_scaled_by_its_own_std():
    source, seen = Truncated(0.5), []
    q = math.sqrt(1 - 2 * 0.5 * math.exp(-0.125) / math.sqrt(2 * math.pi) / math.erf(0.5**1.5))

    def net(scaled, time, labels):
        seen.append(scaled)
        return torch.ones_like(scaled)

    x, eps, t = batch()
    path, column = VP(), t[:, None]
    objective = FlowMatching(path, S, "v", "v", 0.0, 1e-3, source=source)
    (a, b), row = rows(path, column)
    (c, d), x_t = row["v"], a * x + b * eps
    got = objective(net, x, None, eps, t)
    torch.testing.assert_close(seen[0], x_t / (a**2 * S**2 + b**2 * q**2).sqrt())
    out = (c**2 * S**2 + d**2 * q**2).sqrt()
    torch.testing.assert_close(got, (out - c * x - d * eps).square().mean(1))
