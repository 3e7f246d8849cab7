"""Guidance by a classifier: exact posteriors, a trained one, and what it costs and refuses."""

import pytest
import torch
from conftest import PLAIN, every_path
from test_guidance import KINDS, MEANS, SOLVERS, STD, WEIGHTS, Answers, Y, at, mixture, scores

from fmdiff import load
from fmdiff.build import named
from fmdiff.classifier import Classifier, Tilted
from fmdiff.errors import FmdiffError
from fmdiff.exact import Mixture
from fmdiff.field import NetField
from fmdiff.guidance import ByClassifier, Strength
from fmdiff.loading import load_classifier
from fmdiff.path import VP, CondOT, Cosine
from fmdiff.runs import checkpoint
from fmdiff.runs.find import find
from fmdiff.sampling import generate


class Posterior(Classifier):
    """log p(y | x_t) of the mixture, by Bayes' rule written out here."""

    def __init__(self, path):
        super().__init__(torch.nn.Identity(), path, 1.0, (2,), 3)

    def logits(self, x_t, t):
        a, b = (c.reshape(-1, 1) for c in self.path.row("x_t", t))
        distance = (x_t[:, None] - a[..., None] * MEANS).square().sum(-1)
        return WEIGHTS.log() - distance / (2 * (a**2 * STD**2 + b**2))


def without_classes(path):
    covs = STD**2 * torch.eye(2, dtype=torch.float64).expand(3, 2, 2)
    return Mixture(path, WEIGHTS, MEANS, covs)


@every_path
@pytest.mark.parametrize("t", [0.15, 0.5, 0.9])
@pytest.mark.parametrize("w", [0.0, 1.0, 3.0])
def test_a_classifier_tilts_the_score_as_cfg_does(path, t, w):
    """(1-w) grad log p_t + w grad log p_t(. | y), from a model with and one without classes."""
    x_t, t = at(path, t)
    null, conditional = scores(path, x_t, t)
    wanted = (1 - w) * null + w * conditional
    for field in (mixture(path), without_classes(path)):
        for along in (path, CondOT(), VP()):  # the classifier may have another path
            led = Tilted(field, Y, Strength(w), Posterior(along))
            got = led.predict(x_t, t, "score")
            torch.testing.assert_close(got, wanted, rtol=1e-6, atol=1e-6)
        for kind in KINDS:
            answer = path.convert(wanted, x_t, t, "score", kind)
            got = Tilted(field, Y, Strength(w), Posterior(path)).predict(x_t, t, kind)
            torch.testing.assert_close(got, answer, rtol=1e-6, atol=1e-6)


def test_rows_may_have_their_own_times_and_w_may_be_a_formula():
    path = Cosine()
    t = torch.linspace(0.1, 0.9, 9, dtype=torch.float64)
    x_t, _ = at(path, 0.4)
    led = Tilted(mixture(path), Y, Strength("1 + 2*t"), Posterior(VP()))
    together = led(x_t, t)
    for k in range(9):
        w = Strength(1 + 2 * t[k].item())
        alone = Tilted(mixture(path), Y[k : k + 1], w, Posterior(VP()))
        row = alone(x_t[k : k + 1], t[k])
        torch.testing.assert_close(together[k : k + 1], row, rtol=1e-10, atol=1e-10)


def test_what_a_classifier_costs():
    """Beside a model with classes w = 1 is the conditional branch alone, without classes w = 0."""
    x_t, t = at(CondOT(), 0.5)
    for field, free in ((mixture(CondOT()), 1.0), (without_classes(CondOT()), 0.0)):
        bound = field.bind(Y) if field.classes else field
        alone = Tilted(field, Y, Strength(free), Posterior(CondOT()))
        assert torch.equal(alone(x_t, t), bound(x_t, t))
        assert alone.branches == alone.price(t) == 1 and alone.evaluations == 9
        assert alone.interval() == field.interval() == (0, 1)
        led = Tilted(field, Y, Strength(2.0), Posterior(CondOT()))
        led(x_t, t)
        assert led.branches == led.price(t) == 2 and led.evaluations == 18
        assert led.interval() == pytest.approx((0.01, 1))


class Linear(torch.nn.Linear):
    def __init__(self):
        super().__init__(16, 3)

    def forward(self, x_t, t):
        return super().forward(x_t.flatten(1))


@pytest.mark.parametrize("solver", SOLVERS)
def test_planned_is_counted_for_every_solver(solver):
    keys = {"rtol": 1e-2, "atol": 1e-2} if solver == "dopri5" else {}
    solver = named("solver", solver, **keys)
    logits = Classifier(Linear(), VP(), 0.5, (1, 4, 4), 3)
    for classes in (0, 3):
        field = NetField(Answers(), CondOT(), "v", 0.5, 1e-4, (1, 4, 4), classes)
        made = generate(field, 5, solver=solver, steps=5, guidance=ByClassifier(2.0, logits))
        assert made.x.isfinite().all() and made.y.tolist() == [0, 1, 2, 0, 1]
        if made.nfe_planned is not None:
            assert made.nfe_counted == made.nfe_planned > 0


def test_exact_classifiers_sample_the_class():
    """w = 1 from a model without classes: the law of the class, in mean and covariance."""
    n, k = 4000, 1
    made = generate(
        without_classes(CondOT()),
        n,
        solver="heun",
        steps=60,
        classes=[k],
        guidance=ByClassifier(1.0, Posterior(CondOT())),
        dtype=torch.float64,
    )
    mean, std = made.x.mean(0), made.x.std(0)
    assert (mean - MEANS[k]).abs().max() < 4 * STD / n**0.5 + 0.01
    assert (std - STD).abs().max() < 4 * STD / (2 * n) ** 0.5 + 0.01


# --- a trained one --------------------------------------------------------------------------

WORDS = ("data=gmm4", "data.conditional=true", "data.batch_size=256")
CLASSIFY = ("objective=classification", "model=mlp_classifier", "model.hidden=64")


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    from conftest import _trained

    folder = tmp_path_factory.mktemp("led")
    steps = ("trainer.max_steps=1500", "trainer.validate_every=500", "trainer.ema=[0.99]")
    _trained(folder / "classifier", *WORDS, *CLASSIFY, *steps)
    _trained(folder / "model", "data=gmm4", "trainer.max_steps=1")
    return folder


def test_the_trained_posterior_is_the_exact_one(runs):
    """Mean Kullback-Leibler divergence to Bayes' rule, by time; guessing has log 4 = 1.39."""
    found = load_classifier(runs / "classifier")
    truth = named("data", "gmm4", conditional=True)
    weights, means, covs = truth.mixture()
    field = Mixture(CondOT(), weights, means, covs, torch.arange(4))
    x, y = truth.sample(0, 2000, 5)
    eps = torch.randn(2000, 2, generator=torch.Generator().manual_seed(2))
    for t in (0.1, 0.4, 0.7, 0.95):
        t = torch.tensor(t, dtype=torch.float64)
        x_t = CondOT().mix(x, eps, t).float()
        joint = [field.bind(torch.full_like(y, k)).log_prob(x_t.double(), t) for k in range(4)]
        log_p = torch.stack(joint, 1).log_softmax(1)
        gap = (log_p.exp() * (log_p - found.logits(x_t, t).log_softmax(1))).sum(1).mean()
        assert 0 <= gap < 0.02, (t, gap)


def test_pictures_are_left_out_and_the_loss_is_cross_entropy(runs):
    assert not (runs / "classifier" / "samples").exists()
    lines = (runs / "classifier" / "metrics.csv").read_text().splitlines()
    last = dict(zip(lines[0].split(","), lines[-1].split(","), strict=True))
    # nothing is known at t = 0, nearly all at t = 1
    assert float(last["val_loss_0"]) > 0.8 and float(last["val_loss_4"]) < 0.1


def test_the_command_samples_led_by_the_classifier(runs, command, capfd):
    words = ("n=400", "solver=euler", "steps=50", "device=cpu", "out=led", "classes=[2]")
    led = ("guidance=classifier", f"guidance.ckpt={runs / 'classifier'}", "guidance.w=1")
    assert command("sample", "model=exact", "data=gmm4", *led, *words) == 0
    assert "guidance classifier included" in capfd.readouterr().out
    import numpy as np

    with np.load("led/samples.npz") as made:
        points, labels = made["arr_0"], made["labels"]
    assert (labels == 2).all()
    means = named("data", "gmm4").mixture()[1].float()
    near = torch.cdist(torch.from_numpy(points), means).argmin(1)
    assert (near == 2).float().mean() > 0.97


def test_what_is_no_classifier_or_no_model_is_refused(runs, command, capfd, moons_run, digits_run):
    exact = ("model=exact", "data=gmm4", "n=4", "device=cpu", "guidance=classifier")
    for words, says in (
        ((*exact,), "guidance=classifier needs guidance.ckpt=RUN"),
        ((*exact, f"guidance.ckpt={moons_run}"), "holds no classifier, and one is needed"),
        ((f"ckpt={runs / 'classifier'}", "n=4"), "holds a classifier, which cannot be sampled"),
        (
            (f"ckpt={digits_run}", "guidance=classifier", f"guidance.ckpt={runs / 'classifier'}"),
            "the guided model has shape [1, 8, 8] and 10 classes",
        ),
        ((*exact, f"guidance.ckpt={runs / 'classifier'}", "classes=[4]"), "must lie in 0..3"),
    ):
        assert command("sample", *words) == 2
        assert says in capfd.readouterr().err
    with pytest.raises(FmdiffError, match="cannot be sampled"):
        load(runs / "classifier")


@pytest.mark.parametrize(
    ("words", "says"),
    [
        ((*WORDS, "objective=classification"), "does not go with model=mlp"),
        ((*WORDS, "model=mlp_classifier"), "does not go with model=mlp_classifier"),
        (("data=digits", "model=mlp_classifier"), "choose model=classifier"),
        (("data=moons", "model=classifier"), "choose model=mlp_classifier"),
    ],
)
def test_networks_and_objectives_that_do_not_go_together(command, capfd, words, says):
    assert command("train", *PLAIN, "trainer.max_steps=1", *words, "out=none") == 2
    assert says in capfd.readouterr().err


def test_an_image_classifier_trains_and_info_tells_what_it_is(command, capfd):
    words = ("data=digits", "model=classifier", "model.channels=8", "trainer.max_steps=2")
    assert command("train", *PLAIN, *words, "objective=classification", "out=run") == 0
    capfd.readouterr()
    assert command("info", "ckpt=run") == 0
    told = capfd.readouterr().out
    assert "guidance=classifier guidance.ckpt=" in told and "Classification" in told
    found = load_classifier("run")
    assert found.logits(torch.zeros(3, 1, 8, 8), torch.tensor(0.5)).shape == (3, 10)
    assert checkpoint.read(find("run"))["step"] == 2
