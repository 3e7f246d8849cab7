"""Data far from 0: a translation of the data translates the samples, and changes nothing else."""

import copy
import json
from itertools import product

import pytest
import torch
from conftest import every_path, metrics
from test_objective import Net, batch
from test_training import INTERVALS

import fmdiff
from fmdiff.build import named
from fmdiff.classifier import Classifier
from fmdiff.data.base import Toy
from fmdiff.errors import FmdiffError
from fmdiff.field import NetField
from fmdiff.objectives.flow_matching import PREDICTIONS, FlowMatching
from fmdiff.path import VP
from fmdiff.runs import checkpoint
from fmdiff.runs.find import find

M = torch.tensor([1e3, -3e2], dtype=torch.float64)
MEANS = "data.means=[[{0},{1}],[{2},{1}]]"


def pair(path, prediction, precondition=False):
    """The field of data around M, and that of the same data around 0."""
    for mean in (M, None):
        yield NetField(
            Net(), path, prediction, 1.3, 1e-4, (2,), precondition=precondition, data_mean=mean
        )


@every_path
def test_a_field_follows_its_data(path):
    """Each quantity of data around m is that of data around 0, and its row times m."""
    x, eps, t = batch()
    cases = [(prediction, False) for prediction in PREDICTIONS]
    for (prediction, precondition), kind in product([*cases, ("x", True)], ("x", "eps", "v")):
        there, here = pair(path, prediction, precondition)
        x_t = path.mix(x, eps, t)
        a, _ = path.row(kind, t[:, None])
        alpha = path.alpha(t[:, None])
        torch.testing.assert_close(
            there.predict(x_t + alpha * M, t, kind),
            here.predict(x_t, t, kind) + a * M,
            rtol=1e-6,
            atol=1e-6 * (1 + a.abs().max().item()),
        )


@every_path
def test_start_and_prior_follow_the_data(path):
    there, here = pair(path, "v")
    z, t = torch.randn(5, 2, dtype=torch.float64), torch.tensor(0.3, dtype=torch.float64)
    shift = path.alpha(t) * M
    torch.testing.assert_close(there.start(z, t, 0, 0), here.start(z, t, 0, 0) + shift)
    torch.testing.assert_close(there.prior(z + shift, t), here.prior(z, t))


@pytest.mark.parametrize("precondition", [False, True])
@every_path
def test_the_loss_is_that_of_data_around_0(path, precondition):
    x, eps, t = batch()
    losses = []
    for mean in (None, M):
        objective = FlowMatching(
            path, 1.3, "x" if precondition else "v", None, 1e-3, 1e-4, precondition=precondition
        )
        objective.data_mean = mean
        at = x if mean is None else x + mean
        losses.append(objective(Net(), at, None, eps, t))
        fast = objective.compare(Net(), *objective.terms(at, None, eps, t))
        torch.testing.assert_close(fast, losses[-1], rtol=1e-5, atol=1e-8)
    torch.testing.assert_close(losses[1], losses[0], rtol=1e-5, atol=1e-8)


def test_a_classifier_follows_its_data():
    x, eps, t = batch()
    x_t, path = VP().mix(x, eps, t), VP()
    net = lambda z, time: z * time[:, None]  # noqa: E731
    there = Classifier(net, path, 1.3, (2,), 2, M).logits(x_t + path.alpha(t)[:, None] * M, t)
    torch.testing.assert_close(there, Classifier(net, path, 1.3, (2,), 2).logits(x_t, t))


# Data


def gmm(x, y, apart=4.0):
    return named("data", "gmm", means=[[x, y], [x + apart, y]], weights=None, cov=0.25)


def test_only_a_mean_that_can_be_told_from_0_is_subtracted():
    for name in ("8gaussians", "checkerboard", "rings", "spirals", "gmm4", "two_modes", "digits"):
        assert named("data", name).centre is None, name
    moons = named("data", "moons")
    torch.testing.assert_close(
        moons.centre, torch.tensor([0.5, 0.25], dtype=torch.float64), rtol=0, atol=0.02
    )
    data = gmm(1e3, -7.0)
    assert data.centre.tolist() == [1002.0, -7.0]
    assert data.std == pytest.approx(((4 + 2 * 0.25) / 2) ** 0.5, rel=1e-6)
    x = data.sample(0, 4000, 1)[0].double()
    assert data.std == pytest.approx((x - data.centre).square().mean().sqrt().item(), rel=0.03)
    assert gmm(-2.0, 0.0).centre is None


def test_the_plane_of_embedded_data_is_centred():
    data = named("data", "embedded", ambient_dim=16)
    x = data.sample(0, 4000, 1)[0].double()
    torch.testing.assert_close(data.centre, x.mean(0), rtol=0, atol=0.1)
    assert data.std == pytest.approx((x - data.centre).square().mean().sqrt().item(), rel=0.03)


# Runs


def words(x, y, steps=300):
    means = MEANS.format(x, y, x + 4)
    gmm = ("data=gmm", means, "data.weights=null", "data.cov=0.25", "data.batch_size=64")
    return (*gmm, "model.hidden=32", *INTERVALS, f"trainer.max_steps={steps}")


def test_data_far_away_are_learnt_as_well_as_data_around_0(train, tmp_path):
    """The runs see the same draws, so their losses and samples differ by rounding."""
    samples, losses = [], []
    for name, (x, y) in {"here": (-2, 0), "there": (998, -300)}.items():
        spec = train(tmp_path / name, *words(x, y))["spec"]["data"]
        losses.append([float(row["loss"]) for row in metrics(tmp_path / name)])
        samples.append(fmdiff.generate(fmdiff.load(tmp_path / name), 500, seed=1, steps=10).x)
    assert spec["mean"] == [1000.0, -300.0]
    assert losses[1] == pytest.approx(losses[0], rel=0.02)
    off = samples[1].double() - M - samples[0].double()
    assert off.square().mean().sqrt() < 0.05


def test_a_checkpoint_without_a_mean_is_loaded_as_before(train, tmp_path, command):
    train(tmp_path / "run", "data=moons", "model.hidden=16", "trainer.max_steps=5")
    file = find(tmp_path / "run")
    content = checkpoint.read(file)
    spec, x = content["spec"], torch.randn(4, 2)
    assert spec["data"]["mean"] == pytest.approx([0.5, 0.25], abs=0.02)
    old = copy.deepcopy(content)
    del old["spec"]["data"]["mean"]
    checkpoint.write(tmp_path / "old.ckpt", old)
    field = fmdiff.load(tmp_path / "old.ckpt")
    assert field.data_mean is None and field.data_std == spec["data"]["std"]
    t = torch.tensor(0.5)
    assert not torch.equal(field(x, t), fmdiff.load(file)(x, t))
    for mean in ([1.0], "far", [0.0, float("nan")], {"0": 1}):
        old["spec"]["data"]["mean"] = mean
        checkpoint.write(tmp_path / "old.ckpt", old)
        with pytest.raises(FmdiffError, match=r"spec\.data\.mean"):
            fmdiff.load(tmp_path / "old.ckpt")
    export = tmp_path / "model.safetensors"
    assert command("info", f"ckpt={file}", f"export={export}") == 0
    assert fmdiff.load(export).data_mean.tolist() == spec["data"]["mean"]


def test_a_run_from_before_goes_on_as_it_began(train, tmp_path, command, capfd):
    """Neither its data are centred nor its features of time bounded."""
    run = tmp_path / "run"
    known = ("data=moons", "model.hidden=16", *INTERVALS)
    train(run, *known, "trainer.max_steps=10", "model.time_frequency=null")
    for file in run.glob("*.ckpt"):
        old = checkpoint.read(file)
        del old["spec"]["data"]["mean"], old["spec"]["model"]["time_frequency"]
        del old["training"]["config"]["model"]["time_frequency"]
        old["spec"]["data"]["std"] = 0.9
        checkpoint.write(file, old)
    config = run / "config.yaml"
    lines = config.read_text().splitlines(keepends=True)
    config.write_text("".join(line for line in lines if "time_frequency" not in line))
    spec = train(run, *known, "trainer.max_steps=20", "resume=true")["spec"]
    assert spec["data"]["mean"] is None and spec["data"]["std"] == 0.9
    assert spec["model"]["time_frequency"] is None
    file = find(run)
    old = checkpoint.read(file)
    del old["spec"]["data"]["mean"]
    checkpoint.write(tmp_path / "old.ckpt", old)
    known += ("trainer.max_steps=2", f"init={tmp_path / 'old.ckpt'}")
    assert command("train", *known, "out=new") == 2
    assert "say model.time_frequency=null" in capfd.readouterr().err
    spec = train(tmp_path / "other", *known, "model.time_frequency=null")["spec"]
    assert spec["data"]["mean"] is None


OWN = """
import torch
from fmdiff.data.base import Toy

class Same(Toy):
    def draw(self, n, generator):
        return torch.full((n, 2), {value})

class Flat(Toy):
    def draw(self, n, generator):
        x = torch.randn(n, 2, generator=generator)
        return torch.stack([x[:, 0], torch.full((n,), 1e3)], 1)
"""


@pytest.fixture
def own(tmp_path):
    """Data of one point, and data of which one coordinate is constant."""
    (tmp_path / "conf" / "data").mkdir(parents=True)
    (tmp_path / "flat_data.py").write_text(OWN.replace("{value}", "5.0"))
    for name in ("Same", "Flat"):
        text = f"_target_: flat_data.{name}\nbatch_size: 64\nconditional: false\nonly: null\n"
        (tmp_path / "conf" / "data" / f"{name.lower()}.yaml").write_text(text)
    return "--config-dir=conf"


def test_data_of_one_point_are_refused_in_a_sentence(own, command, tmp_path, capfd):
    assert command("train", own, "data=same", "out=run") == 2
    said = capfd.readouterr().err
    assert "samples that are all equal" in said and "Traceback" not in said
    assert not list((tmp_path / "run").glob("*.ckpt"))


def test_a_constant_coordinate_is_learnt(train, own, tmp_path):
    train(tmp_path / "run", own, "data=flat", "trainer.max_steps=300", "model.hidden=32")
    field = fmdiff.load(tmp_path / "run", trust=("flat_data.",))
    x = fmdiff.generate(field, 500, seed=1, steps=10).x
    assert (x[:, 1] - 1e3).abs().median() < 0.1
    assert x[:, 0].std().item() == pytest.approx(1, abs=0.2)


def test_a_toy_tells_its_moments_from_its_draws():
    class Own(Toy):
        def draw(self, n, generator):
            return 7 + 2 * torch.randn(n, 2, generator=generator)

    data = Own()
    assert data.centre.tolist() == pytest.approx([7, 7], abs=0.05)
    assert data.std == pytest.approx(2, rel=0.02)
    assert json.loads(json.dumps(data.centre.tolist())) == data.centre.tolist()
