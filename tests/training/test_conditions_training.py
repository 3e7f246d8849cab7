"""Training with conditions: what is dropped, what is refused, and the same weights in any way."""

import math
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from conditional_data import CENTRE, MATRIX, NOISE, SPREAD, Holes, Linear, Scaled, configs
from conftest import PLAIN, vector
from scipy.integrate import solve_ivp
from test_coupled_training import batches as of_mixture

from fmdiff.build import build, named, spec_of
from fmdiff.condition import LABEL, Condition, Form, dropped, null
from fmdiff.condition import named as others
from fmdiff.errors import FmdiffError
from fmdiff.loading import load
from fmdiff.machine import cost
from fmdiff.models.mlp import MLP
from fmdiff.models.unet import UNet
from fmdiff.objectives.flow_matching import FlowMatching
from fmdiff.path import CondOT
from fmdiff.runs import checkpoint
from fmdiff.training import reflow
from fmdiff.training.assemble import check_conditions
from fmdiff.training.batches import Batches
from fmdiff.training.given import asked

ALL = slice(None)
SMALL = ("data=linear", "model.hidden=16", "trainer.max_steps=4", "trainer.warmup=0")
UNET = (
    "data=holes", "model=unet", "model.channels=8", "model.multipliers=[1,2]",
    "model.head_channels=8", "trainer.max_steps=3", "trainer.warmup=0",
)  # fmt: skip


def batches(size=64, rates=(0.1, 0.1), data=None, **keys):
    """The steps of a training on Linear, a class and two conditions."""
    data = data or Linear(batch_size=size, conditional=True)
    objective = FlowMatching(CondOT(), data.std, "v", None, 0.05, 1e-4)
    uniform, free = named("time", "uniform"), named("coupling", "independent")
    return Batches(data, objective, uniform, free, 0, rates, **keys)


@pytest.fixture
def own(train, command, tmp_path):
    """Trains on data=linear or data=holes: the content of the newest checkpoint."""
    places = configs(tmp_path / "configs")
    return lambda folder, *words: train(tmp_path / folder, *places, *words)


@pytest.fixture
def refused(command, tmp_path, capfd):
    """What a training that is refused says."""

    def run(*words):
        capfd.readouterr()
        words = (*configs(tmp_path / "configs"), *PLAIN, *words, f"out={tmp_path / 'refused'}")
        assert command("train", *words) == 2
        text = capfd.readouterr().err
        assert "Traceback" not in text
        return text

    return run


def close(a, b, share=1e-5):
    a, b = (vector(run["weights"]["raw"]) for run in (a, b))
    return ((a - b).norm() / b.norm()).item() < share


# What is dropped


def drops(one, steps=range(1)):
    """Which rows lost their label, c and d: {name: bool (B,)}."""
    y = one.draw(steps, ALL)[1]
    lost = {name: part.isnan().all(1) for name, part in others(y).items()}
    return {LABEL: y.parts[LABEL] == one.data.classes} | lost


def test_each_condition_is_dropped_at_its_rate_and_on_its_own():
    n, rates = 20_000, {LABEL: 0.3, "c": 0.2, "d": 0.2}
    lost = drops(batches(n, (0.3, 0.2)))
    for name, rate in rates.items():
        error = 4 * math.sqrt(rate * (1 - rate) / n)
        assert abs(lost[name].float().mean().item() - rate) < error, name
    for a, b in ((LABEL, "c"), (LABEL, "d"), ("c", "d")):
        both, rate = (lost[a] & lost[b]).float().mean().item(), rates[a] * rates[b]
        assert abs(both - rate) < 4 * math.sqrt(rate * (1 - rate) / n), (a, b)
    every = lost[LABEL] & lost["c"] & lost["d"]
    assert abs(every.float().mean().item() - 0.012) < 4 * math.sqrt(0.012 / n)


@pytest.mark.parametrize("rates", [(0.0, 0.0), (1.0, 0.0), (0.0, 1.0), (1.0, 1.0)])
def test_rates_of_zero_and_one_are_exact(rates):
    lost = drops(batches(500, rates))
    assert lost[LABEL].float().mean() == rates[0]
    assert lost["c"].float().mean() == lost["d"].float().mean() == rates[1]


def test_what_is_not_dropped_is_what_the_data_gave():
    one, free = batches(500, (0.5, 0.5)), batches(500, (0.0, 0.0))
    (x, y, eps, t, _), (x_0, y_0, eps_0, t_0, _) = (b.draw(range(2), ALL) for b in (one, free))
    assert torch.equal(x, x_0) and torch.equal(eps, eps_0) and torch.equal(t, t_0)
    half = y_0.parts["c"].isnan().any(1) & ~y_0.parts["c"].isnan().all(1)
    assert 100 < half.sum() < 300  # a fifth of the components is missing in the data
    for name, part in others(y).items():
        rest = ~part.isnan().all(1)
        torch.testing.assert_close(part[rest], y_0.parts[name][rest], equal_nan=True)
    rest = y.parts[LABEL] != 2
    assert torch.equal(y.parts[LABEL][rest], y_0.parts[LABEL][rest])


def test_drops_follow_from_seed_step_and_row():
    one = batches(60, (0.4, 0.4))
    whole = one.draw(range(3, 6), ALL)[1]
    for k, part in zip(range(3, 6), whole.split(60), strict=True):
        alone = one.draw(range(k, k + 1), ALL)[1]
        some = one.draw(range(k, k + 1), slice(7, 31))[1]
        for name, rows in part.parts.items():
            torch.testing.assert_close(alone.parts[name], rows, rtol=0, atol=0, equal_nan=True)
            cut = rows[7:31]
            torch.testing.assert_close(some.parts[name], cut, rtol=0, atol=0, equal_nan=True)
    first, second = drops(one, range(3, 4)), drops(one, range(4, 5))
    assert not any(torch.equal(first[name], second[name]) for name in first)


def test_labels_are_dropped_as_without_conditions():
    plain = of_mixture("independent", data={"conditional": True}, label_dropout=0.4)
    lost = plain.draw(range(5), ALL)[1] == plain.data.classes
    assert torch.equal(drops(batches(60, (0.4, 0.9)), range(5))[LABEL], lost)


def test_dropped_conditions_are_the_null_ones():
    one = batches(200, (1.0, 1.0))
    y = one.draw(range(1), ALL)[1]
    assert (
        dropped(y, 2).all() and not dropped(batches(200, (0, 0)).draw(range(1), ALL)[1], 2).any()
    )
    net = MLP(shape=(2,), classes=2, hidden=8, layers=1, frequencies=0, scale=1.0,
              conditions=one.data.conditions)  # fmt: skip
    torch.nn.init.normal_(net.rest[-1].weight)
    x, t = torch.randn(200, 2), torch.rand(200)
    known = one.data.held_out(200)[1]
    assert torch.equal(net(x, t, y), net(x, t, null(known, 2)))
    assert not torch.equal(net(x, t, known), net(x, t, y))


def test_micro_batches_are_the_rows_of_the_conditions_in_order():
    one = batches(60, accumulate=3)
    y = one.draw(range(4, 6), ALL)[1]
    parts = [micro for step in one(range(4, 6), ALL) for micro in step]
    pieces = [next(term for term in micro if isinstance(term, Condition)) for micro in parts]
    assert [len(piece) for piece in pieces] == [20] * 6
    for name, rows in y.parts.items():
        joined = torch.cat([piece.parts[name] for piece in pieces])
        torch.testing.assert_close(joined, rows, rtol=0, atol=0, equal_nan=True)


# The same weights in any way


@pytest.mark.parametrize(
    ("words", "way"),
    [
        (SMALL, ("trainer.accumulate=2",)),
        ((*SMALL, "objective=lsd"), ("trainer.accumulate=2",)),
        ((*UNET, "data.conditional=true"), ("trainer.accumulate=2", "trainer.recompute=true")),
    ],
    ids=["mlp", "lsd", "unet"],
)
def test_a_run_in_micro_batches_gives_the_same(own, words, way):
    assert close(own("parts", *words, *way), own("plain", *words))


@pytest.mark.slow
def test_a_compiled_run_gives_the_same(own):
    assert close(own("fast", *SMALL, "trainer.compile=true"), own("plain", *SMALL), 1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("words", [SMALL, UNET], ids=["mlp", "unet"])
def test_two_processes_give_the_same(own, tmp_path, words):
    plain = own("plain", *words)
    line = ("train", *configs(tmp_path / "configs"), *PLAIN, *words, "trainer.devices=2")
    tests = str(Path(__file__).parents[1])
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": tests}
    command = [sys.executable, "-m", "fmdiff", *line, f"out={tmp_path / 'two'}"]
    subprocess.run(command, env=environment, check=True, timeout=300)
    assert close(checkpoint.read(tmp_path / "two" / "last.ckpt"), plain)


@pytest.mark.parametrize(
    "words",
    [(*SMALL, "data.conditional=true"), pytest.param(UNET, marks=pytest.mark.slow)],
    ids=["mlp", "unet"],
)
def test_a_resumed_run_is_bit_identical(own, words):
    words = (*words, "trainer.decay=constant")
    whole = own("whole", *words, "trainer.max_steps=3")
    own("part", *words, "trainer.max_steps=2")
    rest = own("part", *words, "trainer.max_steps=3", "resume=true")
    assert torch.equal(vector(rest["weights"]["raw"]), vector(whole["weights"]["raw"]))
    assert set(rest["spec"]["data"]["conditions"]) in ({"c", "d"}, {"low", "rest"})


@pytest.mark.parametrize(
    "words",
    [
        ("objective=lsd",),
        ("objective=meanflow", "objective.derivative=forward"),
        ("objective=lsd", "objective.guidance=[1,3]"),
        ("objective=lsd", "objective.guidance=[1,3]", "data.conditional=true"),
    ],
    ids=" ".join,
)
def test_flow_maps_learn_with_conditions(own, tmp_path, words):
    own("run", *SMALL, *words)
    field = load(tmp_path / "run", "raw", ("conditional_data",))
    x, t, s = torch.randn(8, 2), 0.9 * torch.rand(8), torch.ones(8)
    y = Linear(batch_size=8, conditional="data.conditional=true" in words).held_out(8)[1]
    jump = field.bind(y).flow(x, t, s)
    assert jump.isfinite().all() and jump.shape == x.shape
    assert not torch.equal(jump, field.bind(null(y, field.classes)).flow(x, t, s))


def test_a_teacher_is_asked_for_the_conditions(own, refused, tmp_path):
    """A student of the weights of its teacher begins as the teacher, on any subset."""
    own("teacher", *SMALL, "data.conditional=true")
    words = ("objective=distill", f"objective.teacher={tmp_path / 'teacher'}")
    words += (f"init={tmp_path / 'teacher'}", "objective.guidance=[1,3]", "optim.lr=1e-12")
    words += ("trust=[conditional_data]", "data.conditional=true", "trainer.max_steps=1")
    own("student", *SMALL, *words)
    student, teacher = (
        load(tmp_path / name, "raw", ("conditional_data",)) for name in ("student", "teacher")
    )
    x, t, y = torch.randn(6, 2), torch.rand(6), Linear(conditional=True).held_out(6)[1]
    for names in ([], ["c"], [LABEL, "d"], None):
        known = null(y, 2, names)
        torch.testing.assert_close(student.bind(known)(x, t), teacher.bind(known)(x, t))
    text = refused("data=moons", "data.conditional=true", *SMALL[1:], *words[:2], words[-3])
    assert "is a model of the conditions c [2], d [1], and the data of this run have no" in text


@pytest.mark.parametrize("first", [0, 5, 7, 20])
@pytest.mark.parametrize("conditional", [False, True])
def test_samples_are_asked_for_the_conditions_of_data(conditional, first):
    """Whatever the number of the first sample, they are bound to the rows in order."""
    data = Linear(batch_size=7, conditional=conditional)
    objective = FlowMatching(CondOT(), data.std, "v", None, 0.05, 1e-4)
    objective.conditions = data.conditions
    field = objective.field(None, data.shape, data.classes)
    y = data.held_out(7)[1]
    whole, classes = asked(field, y, first)
    bound = whole.labels(classes, first, first + 7, 0)
    assert bound.parts.keys() == y.parts.keys()
    for name, part in y.parts.items():
        torch.testing.assert_close(bound.parts[name], part, rtol=0, atol=0, equal_nan=True)
    assert asked(field, torch.tensor([1, 0])) == (field, None)


@pytest.mark.parametrize(
    ("name", "conditional"),
    [pytest.param("linear", False, marks=pytest.mark.slow), ("linear", True), ("scaled", False)],
)
def test_pairs_of_a_teacher_have_the_conditions_of_training_samples(
    own, tmp_path, monkeypatch, name, conditional
):
    """Each pair against an accurate solution of the teacher's ODE, given its own condition.

    Pairs are of what a model learns, whatever units a user knows.
    """
    monkeypatch.setenv("FMDIFF_DATA", str(tmp_path / "cache"))
    more = (f"data={name}", f"data.conditional={str(conditional).lower()}")
    own("teacher", *SMALL, *more, "trainer.max_steps=60", "optim.lr=1e-2", "trainer.ema=[]")
    words = ("coupling=reflow", f"coupling.ckpt={tmp_path / 'teacher'}", "coupling.n=300")
    words += ("coupling.weights=raw", "coupling.trust=[conditional_data]", "coupling.steps=20")
    own("run", *SMALL, *more, *words)
    assert "straightness" in (tmp_path / "run" / "train.log").read_text()

    kind = {"linear": Linear, "scaled": Scaled}[name]
    data = kind(batch_size=64, conditional=conditional)
    spec = {**spec_of("coupling", "reflow"), "ckpt": str(tmp_path / "teacher"), "n": 300}
    spec |= {"weights": "raw", "trust": ["conditional_data"], "steps": 20}
    settings = {"choices": {"data": name}, "data": checkpoint_data(tmp_path / "run")}
    parts = (build(spec), data, named("source", "normal"), torch.device("cpu"))
    pairs = reflow.pairs(*reflow.parts(settings, *parts))
    field = load(tmp_path / "teacher", "raw", ("conditional_data",))
    batch = data.batch(spec["seed"], 2)[1]  # pairs 128 to 191
    for name, rows in others(batch).items():
        part = others(pairs.y)[name][128:192]
        torch.testing.assert_close(part, rows, rtol=0, atol=0, equal_nan=True)
    nothing = field.bind(null(pairs.y, field.classes))
    apart = field.bind(pairs.y)(pairs.eps, torch.tensor(0.5)) - nothing(
        pairs.eps, torch.tensor(0.5)
    )
    assert apart.square().mean().sqrt() > 0.2  # a pair of another condition would be far off
    for i in (0, 63, 64, 130, 299, 310):
        bound = field.bind(pairs.y[i : i + 1])

        def slope(t, x, bound=bound):
            point = torch.tensor(x, dtype=torch.float32)[None]
            with torch.no_grad():
                return bound(point, torch.tensor(t))[0].double().numpy()

        solved = solve_ivp(slope, (0, 1), pairs.eps[i].numpy(), rtol=1e-6, atol=1e-6).y[:, -1]
        assert (torch.tensor(solved) - pairs.x[i]).abs().max() < 0.02


def checkpoint_data(run):
    """The settings of the data of a run."""
    return checkpoint.read(run / "last.ckpt")["training"]["config"]["data"]


# What is refused


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (
            ("model=mlp_classifier",),
            "model=mlp_classifier takes no conditions, and data=linear has c",
        ),
        (("coupling=ot",), "data=linear has the conditions c, d: choose coupling=independent"),
        (("coupling=sinkhorn",), "coupling=sinkhorn pairs noise with x whatever its conditions"),
        (
            ("objective=classification", "model=mlp_classifier", "data.conditional=true"),
            "learns p(label | x) alone, and data=linear has the conditions c, d",
        ),
    ],
    ids=lambda words: words[0],
)
def test_what_cannot_regard_conditions_is_refused(refused, words, says):
    assert says in refused(*SMALL[:1], *words)


def test_an_augmentation_of_images_and_not_of_their_conditions_is_refused():
    data = Holes(batch_size=8)
    objective = FlowMatching(CondOT(), data.std, "v", None, 0.05, 1e-4)
    free = named("coupling", "independent")
    settings = {"choices": {"data": "holes"}, "data": {"augment": 0.5}}
    check_conditions(settings, objective, free)
    objective.conditions = Linear().conditions  # vectors stay as they are
    check_conditions(settings, objective, free)
    objective.conditions = data.conditions
    with pytest.raises(FmdiffError, match=r"data.augment=0.5 changes images .*\(low, rest\)"):
        check_conditions(settings, objective, free)


def test_weights_of_other_conditions_are_refused(own, refused, tmp_path):
    words = ("data=gmm4", *SMALL[1:])
    own("plain", *words)
    own("conditional", *SMALL)
    text = refused(*SMALL, f"init={tmp_path / 'plain'}")
    assert "its weights are of no conditions" in text
    assert "the data of this run have the conditions c [2], d [1]" in text
    text = refused(*words, f"init={tmp_path / 'conditional'}")
    assert "are of the conditions c [2], d [1], and the data of this run have no cond" in text


def test_pages_say_that_they_cannot_and_info_says_how_to_sample(own, command, tmp_path, capfd):
    own("run", *SMALL, "data.conditional=true", "trainer.max_steps=1")
    words = (f"ckpt={tmp_path / 'run'}", "trust=[conditional_data]")
    assert command("page", *words) == 2
    text = capfd.readouterr().err
    assert (
        "a page plays models of class labels alone, and this one has the conditions c, d" in text
    )
    assert command("info", *words) == 0
    text = capfd.readouterr().out
    assert "c of shape (2,), d of shape (1,)" in text
    assert "cond.c=data:test cond.d=data:test guidance=cfg guidance.w=2" in text


# What it costs


def test_operations_count_the_encoders():
    plain = MLP(shape=(2,), classes=0, hidden=16, layers=2, frequencies=0, scale=1.0)
    forms = {"c": Form((5,)), "d": Form((1,))}
    net = MLP(
        shape=(2,), classes=0, hidden=16, layers=2, frequencies=0, scale=1.0, conditions=forms
    )
    more = 2 * (2 * 5 * 16 + 16 * 16 + 2 * 1 * 16 + 16 * 16)
    assert cost.operations(net, (2,), 0, forms) == cost.operations(plain, (2,), 0) + more
    keys = {"channels": 8, "multipliers": [1], "blocks": 1, "attention": [], "head_channels": 8}
    keys |= {"dropout": 0.0, "scale_shift": True, "shape": (1, 8, 8), "classes": 2}
    forms = {"low": Form((1, 4, 4)), "rest": Form((3, 8, 8))}
    net, plain = UNet(**keys, conditions=forms), UNet(**keys)
    more = 2 * (1 + 1 + 3 + 1) * 8 * 9 * 64  # channels of the first convolution
    assert cost.operations(net, (1, 8, 8), 2, forms) == cost.operations(plain, (1, 8, 8), 2) + more
    assert cost.activations(net, (1, 8, 8), 2, forms) > cost.activations(plain, (1, 8, 8), 2)


# What is learnt


def expectation(x_t, t, c, label):
    """E[x | x_t, what is known of c and the label] of Linear, in closed form: (B, 2), float64.

    Given z and the label x is normal. An unknown component of z adds to the covariance, and an
    unknown label makes a mixture of two.
    """
    x_t, t = x_t.double(), t.double()
    z = ((c - CENTRE) / SPREAD).double()
    known = ~z.isnan()
    a = MATRIX.double()
    mean = z.nan_to_num(0.0) @ a.T
    unknown = torch.diag_embed((~known).double())
    cov = a @ unknown @ a.T + NOISE**2 * torch.eye(2)
    noisy = t[:, None, None] ** 2 * cov + (1 - t)[:, None, None] ** 2 * torch.eye(2)
    answers, logs = [], []
    for k in (0, 1):
        offset = x_t - t[:, None] * (mean + k)
        solved = torch.linalg.solve(noisy, offset)
        answers.append(mean + k + t[:, None] * (cov @ solved[..., None])[..., 0])
        log = -0.5 * (offset * solved).sum(1)
        logs.append(torch.where((label == k) | (label == 2), log, -math.inf))
    share = torch.stack(logs, 1).softmax(1)
    return share[:, :1] * answers[0] + share[:, 1:] * answers[1]


def test_the_closed_form_is_the_mean_of_draws():
    """Against a regression on draws: the error of E[x | ...] does not correlate with anything."""
    x, y = Linear(batch_size=1, conditional=True).held_out(200_000)
    t, eps = torch.rand(len(x)), torch.randn(x.shape)
    x_t = t[:, None] * x + (1 - t[:, None]) * eps
    label = torch.where(torch.rand(len(x)) < 0.5, 2, y.parts[LABEL])
    error = x - expectation(x_t, t, y.parts["c"], label)
    known = y.parts["c"].nan_to_num(0.0) - CENTRE
    for tests in (torch.ones(len(x), 1), x_t, known, x_t * t[:, None], known * t[:, None]):
        values = error[:, :, None] * tests[:, None]
        assert (values.mean(0).abs() < 5 * values.std(0) / math.sqrt(len(x))).all()


@pytest.mark.slow
def test_a_trained_network_predicts_the_mean_given_any_subset(own, tmp_path):
    words = ("data=linear", "data.conditional=true", "data.batch_size=256", "model.hidden=64")
    words += ("trainer.max_steps=6000", "trainer.label_dropout=0.3", "trainer.ema=[0.999]")
    own("run", *words, "trainer.condition_dropout=0.3")
    field = load(tmp_path / "run", trust=("conditional_data",))
    x, y = Linear(conditional=True).held_out(5000)
    g = torch.Generator().manual_seed(3)
    t = 0.98 * torch.rand(len(x), generator=g)
    x_t = t[:, None] * x + (1 - t[:, None]) * torch.randn(x.shape, generator=g)
    nothing = expectation(x_t, t, torch.full_like(y.parts["c"], math.nan), torch.full((5000,), 2))
    for names in ([], ["c"], [LABEL], ["d"], ["c", LABEL], None):
        known = null(y, 2, names)
        truth = expectation(x_t, t, known.parts["c"], known.parts[LABEL])
        error = (field.bind(known).predict(x_t, t, "x") - truth).square().mean().sqrt().item()
        apart = (truth - nothing).square().mean().sqrt().item()
        assert error < 0.06, names
        assert apart > 0.2 or names in (["c", LABEL], None), names
