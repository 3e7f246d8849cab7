"""Flow maps: the loss and the law of times around the targets, and what is refused."""

from itertools import product

import pytest
import torch
from conftest import PATHS
from exact_maps import HOW, SPEC, UNIFORM, Gaussians, Net, draws, make, points

from fmdiff.errors import FmdiffError
from fmdiff.objectives.derivative import derivative, stencil
from fmdiff.objectives.flow_map import LEVELS
from fmdiff.objectives.flow_matching import DISTANCES, PREDICTIONS, FlowMatching
from fmdiff.objectives.weighting import WEIGHTINGS
from fmdiff.path import CondOT
from fmdiff.times import Discrete, LogNormal, Uniform

# The loss


def batch(objective, n=16, progress=0.5):
    """x, y, eps and the columns of the objective."""
    draw = torch.Generator().manual_seed(1)
    x, eps = torch.randn(2, n, 2, generator=draw, dtype=torch.float64)
    columns = objective.times(n, UNIFORM, draws(2), progress)
    return 1.3 * x, None, eps, *(column.double() for column in columns)


@pytest.mark.parametrize("prediction", PREDICTIONS)
def test_the_diagonal_is_flow_matching_bit_for_bit(prediction):
    path = PATHS["vp"]
    names = ("floor", "t_eps", "gamma", "bias", "huber")
    for loss, weighting, distance in product((None, "v"), WEIGHTINGS, DISTANCES):
        options = {"prediction": prediction, "loss": loss, "weighting": weighting}
        options |= {"distance": distance, **{name: SPEC[name] for name in names}}
        plain, both = FlowMatching(path, 1.3, **options), make(path, diagonal=1.0, **options)
        x, y, eps, t, *columns = batch(both)
        assert torch.equal(t, plain.times(16, UNIFORM, draws(2), 0.5)[0].double())
        assert torch.equal(t, columns[0])
        net = Net()
        ours, theirs = both.terms(x, y, eps, t, *columns), plain.terms(x, y, eps, t)
        (loss, mse), (plain_loss, plain_mse) = both.assess(net, *ours), plain.assess(net, *theirs)
        losses = loss, plain_loss
        assert torch.equal(*losses)
        if distance == "l2":
            assert torch.allclose(mse, plain_mse.detach(), rtol=1e-6)
        grads = [torch.autograd.grad(part.sum(), [net.a])[0] for part in losses]
        assert torch.equal(*grads)


def written_out(objective, net, x, y, eps, t, s, a, progress, w):
    """The loss of each row, from the prediction and its target, and a sum with its gradient."""
    path = objective.path
    field = objective.field(net, x.shape[1:], y=y)
    x_t, pair = path.mix(x, eps, t), x - eps
    rows = s > t
    target = pair.clone()
    columns = (part[rows] for part in (x_t, pair, t, s, a, progress))
    target[rows] = objective.goal(field, *columns).detach()
    target = path.convert(target, x_t, t, "straight", objective.prediction)
    error = field.output(x_t, t, s) - target
    q = objective.slope(t)[:, None]
    error = q * error
    value = error.detach()
    if objective.finite:
        value = torch.where(rows[:, None], value / objective.share(progress, t)[:, None], value)
    if objective.tangent is not None:
        scaled = path.r(t)[:, None] * value
        short = scaled / (scaled.norm(dim=1, keepdim=True) + objective.tangent)
        value = torch.where(rows[:, None], short, value)
    weight = objective.weight(t) / (value.square().sum(1) + 1e-3) ** objective.adapt
    # the gradient of the distance at the value, times that of the error
    value.requires_grad_()
    loss = weight * objective.distance(value)
    slope = torch.autograd.grad(loss.sum(), value)[0]
    return loss.detach(), (slope * error).sum()


LOSSES = [
    {"target": "lagrangian", "velocity": "network"},
    {"target": "semigroup", "velocity": "network", "weighting": "min_snr"},
    {"target": "eulerian", "velocity": "data", "adapt": 0.75, "loss": "v"},
    {"target": "eulerian", "velocity": "data", "gap": "0.1 + r/2"},
    {"target": "eulerian", "velocity": "data", "gap": 0.2, "distance": "pseudo_huber"},
    {"target": "eulerian", "velocity": "data", "tangent": 0.1, "distance": "l1"},
]


@pytest.mark.parametrize("prediction", PREDICTIONS)
@pytest.mark.parametrize("options", LOSSES, ids=str)
def test_the_loss_is_that_of_the_prediction_and_its_target(options, prediction):
    objective = make(PATHS["vp"], prediction=prediction, **options)
    net, rows = Net(), batch(objective)
    terms = objective.terms(*rows)
    losses = objective.compare(net, *terms)
    assert torch.equal(losses, objective(net, *rows))
    expected, product_ = written_out(objective, net, *rows)
    assert torch.allclose(losses, expected, rtol=1e-6)
    grads = [torch.autograd.grad(part.sum(), net.a)[0] for part in (losses, product_)]
    assert torch.allclose(*grads, rtol=1e-6, atol=1e-9 * grads[1].abs().max())


def test_a_short_step_has_the_loss_of_the_derivative():
    """For every distance and power of the weight, up to the length of the step."""
    for options in ({"adapt": 0.75}, {"distance": "pseudo_huber"}, {"tangent": 0.1}, {}):
        spec = {"target": "eulerian", "velocity": "data", "direction": 1.0, **options}
        short, slope = (make(PATHS["condot"], gap=gap, **spec) for gap in (0.001, 0))
        net, rows = Net(), batch(short)
        losses = [each(net, *rows) for each in (short, slope)]
        assert torch.allclose(*losses, rtol=0.02)
        grads = [torch.autograd.grad(part.sum(), net.a)[0] for part in losses]
        assert torch.allclose(*grads, rtol=0.02, atol=0.01 * grads[1].abs().max())


# The law of times


def times(n=1000, law=UNIFORM, seed=0, step=0, progress=0.5, **options):
    objective = make(CondOT(), **options)
    return objective.times(n, law, draws(seed, step), progress)


@pytest.mark.parametrize("n, diagonal", [(256, 0.5), (256, 0.75), (100, 0.9), (64, 0), (10, 1)])
def test_the_share_of_the_diagonal_is_exact_and_spread(n, diagonal):
    t, s, *_ = times(n, diagonal=diagonal)
    assert (s >= t).all()
    off = s > t
    assert off.sum() == round(n * (1 - diagonal))
    first, second = off[: n // 2].sum(), off[n // 2 :].sum()
    assert abs(first - second) <= 1


def test_the_diagonal_and_the_starts_with_ends_at_the_data_follow_the_law():
    law = LogNormal(mean=-1.2, std=1.2, stratified=False)
    plain = make(CondOT()).time(law(1000, draws(0)("time")))
    t, s, *_ = times(law=law)
    assert torch.equal(t[s == t], plain[s == t])
    assert torch.equal(times(law=law, ends="data", diagonal=0.0)[0], plain)
    assert torch.equal(times(law=law, split="dyadic")[0][s == t], plain[s == t])


def test_the_ends_are_at_the_data():
    t, s, *_ = times(ends="data", diagonal=0.25)
    off = s > t
    assert off.sum() == 750
    assert (s[off] == make(CondOT()).time(torch.ones(()))).all()


@pytest.mark.parametrize("stratified", [False, True])
def test_two_times_are_the_smaller_and_the_larger_of_two_draws(stratified):
    """A stratified law is sorted, and the two draws are independent nevertheless."""
    t, s, *_ = times(n=4000, law=Uniform(stratified=stratified), diagonal=0.0)
    assert t.mean() == pytest.approx(1 / 3, abs=0.02)
    assert s.mean() == pytest.approx(2 / 3, abs=0.02)
    assert (s - t).std() == pytest.approx(18**-0.5, abs=0.02)


def test_equal_draws_of_a_discrete_law_are_on_the_diagonal():
    t, s, *_ = times(law=Discrete(steps=4, stratified=False), diagonal=0.0)
    assert (s >= t).all()
    assert (s == t).float().mean() == pytest.approx(1 / 4, abs=0.05)


def test_the_dyadic_grid():
    t, s, a, *_ = times(n=4000, split="dyadic", diagonal=0.0, t_eps=0.0)
    count = (1 / (s - t)).round()
    assert set(count.tolist()) == {2.0**k for k in range(LEVELS)}
    assert 2 ** (LEVELS - 1) == 64
    assert torch.equal((t * count).round() / count, t)
    shares = torch.stack([(count == 2.0**k).float().mean() for k in range(LEVELS)])
    assert (shares - 1 / LEVELS).abs().max() < 0.03
    assert (a == 0.5).all()
    t, s, *_ = times(n=4000, split="dyadic", jumps=49, diagonal=0.0, t_eps=0.0)
    assert len(t.unique()) == 49
    assert s.max() == 1


def test_halves_of_dyadic_jumps_are_dyadic_jumps():
    """On a path whose straight time is not its time, too."""
    path = PATHS["cosine"]
    objective = make(path, target="semigroup", split="dyadic", diagonal=0.0, t_eps=0.0)

    asked = []

    class Spy(Gaussians):
        def predict(self, x_t, t, kind, s=None):
            asked.append((t, s))
            return super().predict(x_t, t, kind, s)

    x_t, w, t, s, a, progress = points(objective)
    objective.goal(Spy(path), x_t, w, t, s, a, progress)
    (start, middle), (again, end) = asked
    assert torch.equal(start, t)
    assert torch.equal(middle, (t + s) / 2)
    assert torch.equal(again, middle)
    assert torch.equal(end, s)


def test_the_columns_depend_on_seed_and_step_alone():
    options = {"guidance": [1.5, 4.0], "split": "uniform"}
    first = times(**options)
    assert all(torch.equal(*pair) for pair in zip(first, times(**options), strict=True))
    _, _, _, progress, w = first
    for other in (times(seed=1, **options), times(step=1, **options)):
        assert not any(torch.equal(first[i], other[i]) for i in (0, 1, 2, 4))
    assert (progress == 0.5).all()
    assert w.min() >= 1.5
    assert w.max() <= 4
    assert w.mean() == pytest.approx(2.75, abs=0.1)


# Guidance as an input


def test_the_guided_pair_has_the_guided_velocity_as_its_mean():
    """null + w (pair - null): its mean is null + w (v - null). Rows without label stay."""
    objective = make(CondOT(), guidance=[1.0, 4.0], diagonal=1.0)
    objective.classes = 2
    net, n = Net(), 6
    draw = torch.Generator().manual_seed(0)
    x_t, w = torch.randn(2, n, 2, generator=draw, dtype=torch.float64)
    y, t = torch.tensor([0, 1, 2, 0, 1, 2]), torch.linspace(0.1, 0.9, n, dtype=torch.float64)
    field = objective.field(net, (2,), 2, y)
    field.w = torch.tensor([1.0, 2.0, 3.0, 4.0, 1.5, 2.5], dtype=torch.float64)
    null = objective.field(net, (2,), 2, torch.full_like(y, 2)).predict(x_t, t, "straight")
    guided = objective.guided(field, x_t, t, w)
    label = (y < 2)[:, None]
    expected = torch.where(label, null + field.w[:, None] * (w - null), w)
    assert torch.allclose(guided, expected)
    assert torch.equal(guided[y == 2], w[y == 2])
    assert torch.equal(guided[0], w[0])
    # affine in the pair, so that the mean of the guided pairs is that of the mean
    other = objective.guided(field, x_t, t, w + 1)
    assert torch.allclose(other - guided, torch.where(label, field.w[:, None], 1.0).expand(n, 2))


def test_a_guided_teacher_is_guided_like_the_network():
    path = CondOT()
    objective = make(path, target="semigroup", velocity="teacher", guidance=[1.0, 4.0])
    objective.classes = 2

    class Null(Gaussians):
        """Its null label 2 has the rows of label 0."""

        def bind(self, y):
            return Gaussians(self.path, torch.where(y == 2, 0, y))

    objective.teacher = Null(path)
    x_t = torch.ones(3, 2, dtype=torch.float64)
    t = torch.full((3,), 0.3, dtype=torch.float64)
    field = objective.field(Net(), (2,), 2, torch.tensor([0, 1, 2]))
    field.w = torch.tensor([3.0, 3.0, 3.0], dtype=torch.float64)
    null, label = (
        Gaussians(path, torch.tensor(y)).predict(x_t, t, "straight", t + 0.5)
        for y in ([0, 0, 0], [0, 1, 0])
    )
    u = objective.jump(field, x_t, t, t + 0.5)
    assert torch.allclose(u, null + 3 * (label - null))
    assert not torch.allclose(u[1], label[1])


# The sentences of the constructor


@pytest.mark.parametrize(
    "options, word",
    [
        ({"target": "lagrangean"}, "lagrangian"),
        ({"velocity": "net"}, "network"),
        ({"ends": "noise"}, "data"),
        ({"split": "half"}, "middle"),
        ({"derivative": "backward"}, "forward"),
        ({"direction": 1.5}, "from 0 to 1"),
        ({"direction": True}, "from 0 to 1"),
        ({"diagonal": -0.1}, "from 0 to 1"),
        ({"diagonal": float("nan")}, "from 0 to 1"),
        ({"adapt": "strong"}, "from 0 to 2"),
        ({"warmup": 2}, "from 0 to 1"),
        ({"tangent": 0}, "positive"),
        ({"tangent": "0.1"}, "positive"),
        ({"velocity": "data"}, "eulerian"),
        ({"gap": 0.1}, "objective.gap=0.1 goes with objective.target=eulerian"),
        ({"direction": 1.0}, "objective.direction=1.0 goes with objective.target=eulerian"),
        ({"warmup": 0.1}, "objective.warmup=0.1 goes with objective.target=eulerian"),
        ({"jumps": 4}, "objective.jumps=4 goes with objective.split=dyadic"),
        ({"target": "eulerian", "gap": 2}, "from 0 to 1"),
        ({"target": "eulerian", "gap": "log(p)"}, "finite"),
        ({"target": "eulerian", "gap": "q + 1"}, "unknown name"),
        ({"velocity": "teacher", "teacher": None}, "teacher=RUN"),
        ({"teacher": "runs/parent"}, "velocity=teacher"),
        ({"jumps": 0}, ">= 1"),
        ({"jumps": 2.5}, ">= 1"),
        ({"guidance": [0.5, 2]}, "1 <= lo <= hi"),
        ({"guidance": [3, 2]}, "1 <= lo <= hi"),
        ({"guidance": 2}, "1 <= lo <= hi"),
        ({"guidance": [1, float("inf")]}, "1 <= lo <= hi"),
        ({"prediction": "w"}, "eps"),
    ],
    ids=str,
)
def test_what_cannot_be_is_told(options, word):
    with pytest.raises(FmdiffError) as error:
        make(CondOT(), **options)
    message = str(error.value)
    assert word in message
    assert "\n" not in message
    assert f"objective.{next(iter(options))}" in message or "objective.gap" in message


def test_a_velocity_that_is_not_there_is_told():
    objective = make(CondOT(), velocity="exact")
    with pytest.raises(FmdiffError, match="truth"):
        objective(Net(), *batch(objective))


# The difference


@pytest.mark.parametrize("place", ["inside", "low", "high"])
def test_a_difference_is_of_second_order(place):
    low, high = torch.zeros(1, dtype=torch.float64), torch.ones(1, dtype=torch.float64)
    v = {"inside": low + 0.5, "low": low + 1e-3, "high": high - 1e-3}[place]
    errors = []
    for h in (0.04, 0.02, 0.01):
        one, two = stencil(v, low, high, h)
        assert ((v + one > low) & (v + two > low) & (v + one < high) & (v + two < high)).all()
        first, second = ((torch.exp(v + e) - torch.exp(v)) / e for e in (one, two))
        slope = (two * first - one * second) / (two - one)
        errors.append((slope - torch.exp(v)).abs())
    assert errors[0] / errors[1] == pytest.approx(4, rel=0.1)
    assert errors[1] / errors[2] == pytest.approx(4, rel=0.1)


def test_a_difference_has_room_between_close_ends():
    """The step follows the larger of two narrow sides, and neither end is touched."""
    v, h = torch.tensor([0.5, 0.5, 0.1], dtype=torch.float64), 0.1
    low, high = v - torch.tensor([0.01, 0.0, 0.001]), v + torch.tensor([0.0, 0.03, 0.2])
    one, two = stencil(v, low.double(), high.double(), h)
    assert one.tolist() == pytest.approx([-0.01 / 3, 0.01, 0.2 / 3])
    assert two.tolist() == pytest.approx([-0.02 / 3, 0.02, 0.4 / 3])


@pytest.mark.parametrize("direction", [None, "along"])
def test_a_difference_is_the_derivative(direction):
    path, field = PATHS["edm"], Gaussians(PATHS["edm"])
    objective = make(path, diagonal=0.0)
    x_t, w, t, s, *_ = points(objective, n=200)
    d = None if direction is None else w
    forward, difference = (derivative(field, x_t, t, s, how, d=d) for how in HOW)
    length = (path.r(s) - path.r(t))[:, None]
    assert torch.allclose(length * forward, length * difference, rtol=1e-7, atol=1e-8)
