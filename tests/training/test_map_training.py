"""Training flow maps: the teacher, the start from other weights, and the cost of a step."""

import copy
import re
from pathlib import Path

import pytest
import torch
from conftest import IMAGES, PLAIN, POINTS, logging_restored, vector

from fmdiff import cli, loading
from fmdiff.along import along
from fmdiff.build import build, named, spec_of
from fmdiff.errors import FmdiffError
from fmdiff.objectives.flow_matching import FlowMatching
from fmdiff.path import CondOT, Cosine
from fmdiff.randomness import generator
from fmdiff.runs import checkpoint
from fmdiff.runs.find import find
from fmdiff.training import trial

MAP = (*POINTS, "objective=flow_map")

# The teacher


def pupil(run, **changes):
    """The spec of the run itself, with other values of some dotted keys."""
    spec = copy.deepcopy(checkpoint.read(find(run))["spec"])
    for key, value in changes.items():
        *parts, last = key.split("__")
        place = spec
        for part in parts:
            place = place[part]
        place[last] = value
    return spec


def test_a_teacher_is_the_frozen_average_of_its_run(moons_run):
    teacher = loading.teacher(moons_run, pupil(moons_run))
    own = loading.load(moons_run)
    x, t = torch.randn(8, 2), torch.rand(8)
    assert torch.equal(teacher.field(x, t), own(x, t))
    assert not any(p.requires_grad for p in teacher.field.net.parameters())
    assert not teacher.field.net.training
    assert teacher.about == {"file": str(find(moons_run).absolute()), "sha256": own.sha256}


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"data__shape": [3]}, "is a model of shape [2] with 0 classes; the data of this run"),
        ({"data__classes": 8}, "have shape [2] and 8 classes"),
        ({"source": {"_target_": "fmdiff.source.Hypersphere"}}, "its source is _target_="),
        ({"coupling": {"_target_": "fmdiff.coupling.OT"}}, "has another flow than this run"),
    ],
)
def test_a_teacher_of_other_data_or_of_another_flow_is_refused(moons_run, changes, says):
    with pytest.raises(FmdiffError) as refusal:
        loading.teacher(moons_run, pupil(moons_run, **changes))
    assert says in str(refusal.value)
    assert str(refusal.value).startswith(f"objective.teacher={moons_run} ")


def test_a_teacher_that_is_not_there_is_refused(moons_run, tmp_path):
    with pytest.raises(FmdiffError, match=r"objective\.teacher=.*/none does not exist"):
        loading.teacher(tmp_path / "none", pupil(moons_run))


def test_a_teacher_without_source_and_coupling_has_the_usual_ones(moons_run, tmp_path):
    content = checkpoint.read(find(moons_run))
    for name in loading.USUAL:
        content["spec"].pop(name)
    checkpoint.write(tmp_path / "old.ckpt", content)
    loading.teacher(tmp_path / "old.ckpt", pupil(moons_run))
    with pytest.raises(FmdiffError, match="has another flow"):
        spec = pupil(moons_run, coupling={"_target_": "fmdiff.coupling.OT"})
        loading.teacher(tmp_path / "old.ckpt", spec)


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (("objective.velocity=teacher",), "objective.teacher=RUN go together"),
        (("objective.teacher=last",), "objective.teacher=RUN go together"),
        (("objective=distill", "objective.teacher=last"), "objective.teacher=last: no run under"),
        (("objective=distill", "objective.teacher=RUN", "coupling=ot"), "has another flow than"),
        (("objective.velocity=exact",), "objective.velocity=exact: the exact field needs data"),
        (
            ("objective.velocity=exact", "data=8gaussians", "source=truncated"),
            "objective.velocity=exact needs a normal source independent of x",
        ),
    ],
)
def test_a_velocity_that_cannot_be_had_is_refused(command, moons_run, capfd, words, says):
    words = [word.replace("RUN", str(moons_run)) for word in words]
    words = (*MAP, *words, "out=run")
    assert command("train", *PLAIN, *words) == 2
    said = capfd.readouterr().err
    assert says in said and "Traceback" not in said and not Path("run").exists()


def test_a_classifier_is_no_teacher(train, command, tmp_path, capfd):
    words = ("data=8gaussians", "data.conditional=true", "data.batch_size=64", "model.hidden=16")
    small = (*words, "trainer.max_steps=1", "objective=classification", "model=mlp_classifier")
    train(tmp_path / "judge", *small)
    words = (*PLAIN, *words, "objective=distill", f"objective.teacher={tmp_path / 'judge'}")
    assert command("train", *words, "out=run") == 2
    assert "holds a classifier, and a teacher is a model that samples" in capfd.readouterr().err


def test_a_teacher_is_seen_along_the_path_of_the_run(moons_run):
    cosine, field = Cosine(), loading.load(moons_run)
    x, r = torch.randn(64, 2, dtype=torch.float64), torch.rand(64, dtype=torch.float64)
    t = cosine.time_of_r(r)
    scale = (cosine.alpha(t) + cosine.beta(t))[:, None]
    other = along(field.to("cpu", torch.float64), cosine)
    ours = other.predict(scale * x, t, "straight")
    torch.testing.assert_close(ours, field.predict(x, r, "straight"))
    assert along(field, CondOT()) is field


def test_the_exact_velocity_is_that_of_the_data(train, tmp_path):
    """lagrangian: along the exact field the network alone is asked for its jumps."""
    words = ("data=8gaussians", "data.batch_size=64", "model.hidden=16", "objective=flow_map")
    run = train(tmp_path / "run", *words, "objective.velocity=exact", "trainer.max_steps=2")
    assert run["step"] == 2 and "teacher" not in run["training"]


# The start from other weights

STILL = ("trainer.max_steps=1", "optim.lr=1e-12", "trainer.ema=[0.9999,0.9]")
BRANCH = {f"{a}.second.{b}" for a in ("map", "skip_map") for b in ("inner", "outer")}


@pytest.fixture(scope="module")
def map_run(moons_run, tmp_path_factory):
    """A few steps of a map that began as the velocity network of moons_run."""
    folder = tmp_path_factory.mktemp("map") / "run"
    words = ("train", *PLAIN, *MAP, "trainer.max_steps=20", "trainer.ema=[0.9999,0.9]")
    with logging_restored():
        assert cli.main([*words, f"init={moons_run}", f"out={folder}"]) == 0
    return folder


def test_a_velocity_network_becomes_a_map_and_is_its_diagonal(train, moons_run, tmp_path, capfd):
    begun = train(tmp_path / "run", *MAP, *STILL, f"init={moons_run}")
    source = checkpoint.read(find(moons_run))
    names = source["weights"]["raw"].keys()
    assert begun["weights"]["raw"].keys() - names == BRANCH
    torch.testing.assert_close(
        vector({k: begun["weights"]["raw"][k] for k in names}), vector(source["weights"]["raw"])
    )
    for name, state in begun["weights"].items():
        for key in BRANCH:
            start = torch.zeros(()) if "outer" in key else begun["weights"]["raw"][key]
            assert (state[key] - start).abs().max() < 1e-11, name
    assert "its network learns the end of a jump" in capfd.readouterr().err
    field, velocity = (loading.load(run, "raw") for run in (tmp_path / "run", moons_run))
    x, t = torch.randn(64, 2), torch.rand(64)
    assert field.two_times and not velocity.two_times
    torch.testing.assert_close(field(x, t), velocity(x, t))
    torch.testing.assert_close(field.predict(x, t, "v", torch.ones(64)), velocity(x, t))


def test_a_map_goes_on_as_a_map(train, map_run, tmp_path, capfd):
    begun = train(tmp_path / "run", *MAP, *STILL, f"init={map_run}")
    source = checkpoint.read(find(map_run))["weights"]["raw"]
    assert begun["weights"]["raw"].keys() == source.keys()
    torch.testing.assert_close(vector(begun["weights"]["raw"]), vector(source))
    assert source["map.second.outer"].abs().max() > 1e-6
    said = capfd.readouterr().err
    assert "learns" not in said and "left out" not in said


def test_a_map_becomes_the_velocity_network_of_its_diagonal(train, map_run, tmp_path, capfd):
    begun = train(tmp_path / "run", *POINTS, *STILL, f"init={map_run}")
    assert "what its network knows of the end of a jump is left out" in capfd.readouterr().err
    source = checkpoint.read(find(map_run))["weights"]["raw"]
    assert source.keys() - begun["weights"]["raw"].keys() == BRANCH
    x, t = torch.randn(64, 2), torch.rand(64)
    velocity, field = (loading.load(run, "raw") for run in (tmp_path / "run", map_run))
    torch.testing.assert_close(velocity(x, t), field(x, t))


def test_images_with_labels_are_taught_and_learn_the_scale_of_guidance(
    train, digits_run, tmp_path, capfd
):
    """The teacher is asked for the labels and for none, and the network begins as the teacher."""
    words = (*IMAGES, "objective=distill", f"objective.teacher={digits_run}", f"init={digits_run}")
    words += ("objective.guidance=[1,3]", "optim.lr=1e-12", "trainer.max_steps=1")
    begun = train(tmp_path / "run", *words)
    said = capfd.readouterr().err
    assert "learns the end of a jump" in said and "learns the scale of guidance" in said
    new = (
        begun["weights"]["raw"].keys() - checkpoint.read(find(digits_run))["weights"]["raw"].keys()
    )
    assert {name.split(".")[-2] for name in new} == {"second", "guidance"}
    field, teacher = (loading.load(run, "raw") for run in (tmp_path / "run", digits_run))
    assert field.scales == (1.0, 3.0)
    x, t, y = torch.randn(4, 1, 8, 8), torch.rand(4), torch.arange(4)
    torch.testing.assert_close(field.bind(y)(x, t), teacher.bind(y)(x, t))
    # from a map without guidance to one with it, and back
    words = (*IMAGES, "objective=lsd", "optim.lr=1e-12", "trainer.max_steps=1")
    train(tmp_path / "plain", *words, f"init={tmp_path / 'run'}")
    assert "of the scale of guidance is left out" in capfd.readouterr().err
    train(tmp_path / "back", *words, "objective.guidance=[1,3]", f"init={tmp_path / 'plain'}")
    said = capfd.readouterr().err
    assert "learns the scale of guidance" in said and "the end of a jump" not in said


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (("objective.prediction=x",), "objective.prediction=v, and here it is x; say objective."),
        (
            ("objective.prediction=x", "objective.precondition=true"),
            "its weights are of objective.prediction=v",
        ),
        (("model.hidden=32",), "do not fit model=mlp"),
    ],
)
@pytest.mark.parametrize("objective", ["flow_matching", "flow_map"])
def test_weights_of_another_quantity_or_shape_are_refused(
    command, moons_run, capfd, objective, words, says
):
    words = (*PLAIN, *POINTS, f"objective={objective}", *words, f"init={moons_run}", "out=run")
    assert command("train", *words) == 2
    assert says in capfd.readouterr().err and not Path("run").exists()


def test_weights_of_another_path_are_warned_of(train, moons_run, tmp_path, capfd):
    train(tmp_path / "run", *MAP, *STILL, "path=cosine", f"init={moons_run}")
    assert "a time is another noise level along this path" in capfd.readouterr().err


# The cost of a step


def flow_map(name="flow_map", **keys):
    """The objective of a preset with other keys, for data of unit spread on the straight path."""
    spec = {**spec_of("objective", "flow_map"), **spec_of("objective", name), **keys}
    spec.pop("defaults", None)
    return build(spec, path=CondOT(), data_std=1.0)


def rows_asked(net):
    """Counts the rows that a network is asked for, without gradient and with."""
    counts = [0, 0]

    def count(module, args, out):
        counts[torch.is_grad_enabled()] += len(args[0])

    net.register_forward_hook(count)
    return counts


@pytest.mark.parametrize(
    ("name", "keys"),
    [
        ("lsd", {}),
        ("lsd", {"diagonal": 0.75, "guidance": [1.0, 3.0]}),
        ("meanflow", {}),
        ("imf", {}),
        ("scm", {}),
        ("consistency", {}),
        ("alphaflow", {}),
        ("shortcut", {}),
        ("distill", {"teacher": "RUN"}),
        ("distill", {"teacher": "RUN", "guidance": [1.0, 3.0]}),
        ("progressive", {"teacher": "RUN", "diagonal": 0.5}),
        ("consistency", {"teacher": "RUN", "velocity": "teacher"}),
    ],
)
def test_the_evaluations_of_a_step_are_those_it_makes(name, keys):
    torch.manual_seed(0)
    objective = flow_map(name, **keys)
    objective.classes = 4
    model = spec_of("model", "mlp") | {"hidden": 8, "layers": 1}
    net = build(model, shape=(2,), classes=4, **objective.inputs)
    other = build(model, shape=(2,), classes=4)
    objective.teacher = FlowMatching(
        CondOT(), 1.0, prediction="v", loss=None, floor=0.05, t_eps=0.0
    ).field(other, (2,), 4)
    asked, taught = rows_asked(net), rows_asked(other)
    times = objective.times(64, named("time", "uniform"), lambda p: generator(0, p), 0.5)
    y = torch.randint(5, (64,))
    objective(net, torch.randn(64, 2), y, torch.randn(64, 2), *times).mean().backward()
    assert [*asked, sum(taught)] == [64 * share for share in objective.evaluations]


def test_a_plan_and_the_start_of_a_run_say_how_often_the_network_is_asked(
    train, command, tmp_path, monkeypatch, capfd
):
    monkeypatch.setattr(trial, "SECONDS", 0.0)
    says = "2.5 evaluations of the network a step and sample, 1 of them with gradient"
    assert command("train", *PLAIN, *MAP, "plan=true") == 0
    rows = dict(
        line.split("  ", 1) for line in capfd.readouterr().out.splitlines() if "  " in line
    )
    assert rows["passes"].strip() == says
    forward, step = map(float, re.findall(r"([\d.]+) kFLOP", rows["model"]))
    assert step / forward == pytest.approx(3 + 1.5, rel=0.01)
    train(tmp_path / "run", *MAP, "trainer.max_steps=1")
    assert f"parameters; {says}" in capfd.readouterr().err
    assert command("train", *PLAIN, *POINTS, "plan=true") == 0
    assert "passes" not in capfd.readouterr().out


def test_the_mse_of_a_map_is_that_of_its_diagonal():
    """It is what a velocity network is judged by, whatever weights a sample has in the loss."""
    plain = FlowMatching(CondOT(), 1.0, prediction="v", loss=None, floor=0.05, t_eps=1e-4)
    for name in ("lsd", "meanflow", "consistency", "scm"):
        objective = flow_map(name)
        torch.manual_seed(0)
        model = spec_of("model", "mlp") | {"hidden": 8, "layers": 1}
        net = build(model, shape=(2,), classes=0, **objective.inputs)
        times = objective.times(64, named("time", "uniform"), lambda p: generator(0, p), 0.5)
        x, eps = torch.randn(2, 64, 2)
        mse = objective.assess(net, *objective.terms(x, None, eps, *times))[1]
        t, s = times[:2]
        on = s == t
        assert 0 < on.sum() < 64
        field = objective.field(net, (2,))
        v = plain.path.mix(x, eps, t, objective.prediction)
        square = (field.output(plain.path.mix(x, eps, t), t) - v).square().mean(1)
        assert mse.mean().item() == pytest.approx(square[on].mean().item(), rel=1e-5), name
    none = flow_map(diagonal=0)
    times = none.times(8, named("time", "uniform"), lambda p: generator(0, p), 0.5)
    terms = none.terms(x[:8], None, eps[:8], *times)
    assert none.assess(net, *terms)[1].isnan().all()
