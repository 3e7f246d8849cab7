import copy
import functools
import itertools
import math
import signal
import time
from dataclasses import fields, replace
from pathlib import Path
from typing import get_args, get_origin, get_type_hints

import pytest
import torch
from conftest import IMAGES, PLAIN, POINTS, metrics, vector
from lightning import pytorch as pl
from omegaconf import OmegaConf
from torch import nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from fmdiff import generate, load
from fmdiff.build import build, config_folder, named
from fmdiff.custom import from_spec
from fmdiff.ema import Averages
from fmdiff.errors import FmdiffError
from fmdiff.objectives.flow_matching import PREDICTIONS
from fmdiff.runs import checkpoint
from fmdiff.runs.find import find
from fmdiff.training import pictures
from fmdiff.training.batches import Batches
from fmdiff.training.module import Training
from fmdiff.training.options import TrainerOptions
from fmdiff.training.trainer import Chunks, quiet

PATHS = sorted(path.stem for path in (config_folder() / "path").glob("*.yaml"))
INTERVALS = tuple(f"trainer.{name}_every=10" for name in ("log", "validate", "checkpoint"))


def yaml(group, name, **changes):
    return (
        OmegaConf.to_container(OmegaConf.load(config_folder() / group / f"{name}.yaml")) | changes
    )


def module(data=None, path="condot", model=None, objective=None, optim=None, **trainer):
    """The module `fmdiff train` fits, small, without a run folder."""
    settings = {
        "seed": 0,
        "choices": {"data": "moons", "model": "mlp"},
        "data": yaml("data", "moons", **{"batch_size": 32, **(data or {})}),
        "path": yaml("path", path),
        "model": yaml("model", "mlp", **{"hidden": 16, **(model or {})}),
        "objective": yaml("objective", "flow_matching", **(objective or {})),
        "optim": yaml("optim", "adam", **(optim or {})),
        "trainer": yaml("trainer", "default", **{"max_steps": 10, "warmup": 0, **trainer}),
    }
    data = build(settings["data"])
    torch.manual_seed(0)
    net = build(settings["model"], shape=data.shape, classes=data.classes)
    objective = build(settings["objective"], path=from_spec(settings["path"]), data_std=data.std)
    options = TrainerOptions(**settings["trainer"])
    batches = Batches(
        data,
        objective,
        named("time", "uniform"),
        named("coupling", "independent"),
        settings["seed"],
        (options.label_dropout, 0.0),
        options.accumulate,
    )
    return Training(settings, options, net, objective, batches)


def fit(module, steps):
    """Carry out optimiser steps; Lightning's trainer."""
    quiet()
    trainer = pl.Trainer(
        accelerator="cpu",
        max_epochs=1,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.fit(module, Chunks(0, steps, 1))
    return trainer


# Averages


def networks(count):
    torch.manual_seed(1)
    return [named("model", "mlp", shape=(2,), classes=0, hidden=8, layers=1) for _ in range(count)]


@pytest.mark.parametrize("warmup", [False, True])
def test_averages_follow_their_recursion(warmup):
    first, *nets = networks(6)
    averages = Averages(first, [0.5, 0.9999], warmup)
    expected = [vector(dict(first.named_parameters())).double().detach()] * 2
    for k, net in enumerate(nets, start=1):
        averages.update(net.parameters(), k)
        now = vector(dict(net.named_parameters())).double().detach()
        for i, decay in enumerate([0.5, 0.9999]):
            d = min(decay, (1 + k) / (10 + k)) if warmup else decay
            expected[i] = d * expected[i] + (1 - d) * now
    for average, want in zip(averages, expected, strict=True):
        got = vector(dict(average.named_parameters())).double()
        torch.testing.assert_close(got, want, rtol=1e-5, atol=1e-6)


def test_constant_decay_is_that_of_torch():
    first, *nets = networks(5)
    averages = Averages(first, [0.9], warmup=False)
    torchs = AveragedModel(first, multi_avg_fn=get_ema_multi_avg_fn(0.9))
    torchs.update_parameters(first)
    for k, net in enumerate(nets, start=1):
        averages.update(net.parameters(), k)
        torchs.update_parameters(net)
    for ours, theirs in zip(averages[0].parameters(), torchs.module.parameters(), strict=True):
        assert torch.equal(ours, theirs)
        assert not ours.requires_grad and not averages[0].training


def test_a_run_averages_every_step(train, tmp_path):
    words = ("trainer.max_steps=4", "trainer.checkpoint_every=1", "trainer.keep=null")
    train(tmp_path / "run", *POINTS, *words, "trainer.ema=[0.2,0.9999]")
    raw, short, long = ([] for _ in range(3))
    for k in range(1, 5):
        weights = checkpoint.read(tmp_path / "run" / checkpoint.name(k))["weights"]
        for seen, name in zip((raw, short, long), ("raw", "0.2", "0.9999"), strict=True):
            seen.append(vector(weights[name]))
    for seen, decay in ((short, 0.2), (long, 0.9999)):
        for k in range(2, 5):
            d = min(decay, (1 + k) / (10 + k))
            expected = d * seen[k - 2] + (1 - d) * raw[k - 1]
            torch.testing.assert_close(seen[k - 1], expected, rtol=1e-5, atol=1e-6)


# One optimiser step


def test_loss_at_the_start_is_that_of_a_network_of_zeros():
    """The output is zero at first: E|v|^2 / d = E x^2 + 1, over s^2 + 1 at unit scale."""
    m = module(data={"batch_size": 8192})
    x, y, eps, t, _ = m.batches.draw(range(0, 1), slice(None))
    loss = m.objective(m.net, x, y, eps, t).mean().item()
    wanted = (x.square().mean().item() + 1) / (m.data.std**2 + 1)
    assert loss == pytest.approx(wanted, rel=0.05)


@pytest.mark.parametrize("clip", [1e-3, None])
def test_gradient_is_clipped_to_its_norm(clip):
    m = module(clip=clip, optim={"_target_": "torch.optim.SGD", "lr": 1.0}, decay="constant")
    for name in ("betas", "fused"):
        m.settings["optim"].pop(name)
    before = vector(dict(m.net.named_parameters())).detach().clone()
    fit(m, 1)
    moved = (vector(dict(m.net.named_parameters())) - before).norm().item()
    norm = m.tally.norm
    assert norm > 0.01
    assert moved == pytest.approx(norm if clip is None else clip, rel=1e-2)


@pytest.mark.parametrize("fused", [True, False])
def test_adam_gets_clipped_gradients(fused):
    """Weights after two steps are those of gradients clipped before; eps is large, so it shows."""
    optim = {"_target_": "fmdiff.optim.Adam", "lr": 0.1, "eps": 1.0, "fused": fused}
    m = module(clip=1e-2, optim=optim, decay="constant", warmup=0)
    net, seen = copy.deepcopy(m.net), []
    fit(m, 2)
    other = torch.optim.Adam(net.parameters(), lr=0.1, eps=1.0)
    for k in range(2):
        x, y, eps, t, _ = m.batches.draw(range(k, k + 1), slice(None))
        other.zero_grad()
        m.objective(net, x, y, eps, t).mean().backward()
        seen.append(nn.utils.clip_grad_norm_(net.parameters(), 1e-2))
        other.step()
    assert min(seen) > 0.02
    torch.testing.assert_close(
        vector(dict(m.net.named_parameters())), vector(dict(net.named_parameters()))
    )
    assert m.divides == fused


@pytest.mark.parametrize("parts", [2, 4])
def test_accumulated_micro_batches_give_the_same_update(parts):
    whole, split = module(), module(accumulate=parts)
    fit(whole, 5)
    fit(split, 5)
    a, b = (vector(dict(m.net.named_parameters())) for m in (whole, split))
    assert ((a - b).norm() / a.norm()).item() < 1e-5
    torch.testing.assert_close(whole.tally.tensor(), split.tally.tensor(), rtol=1e-5, atol=1e-6)


def test_the_plain_loss_is_logged_beside_the_scaled_one(train, tmp_path):
    """mse is the mean of |v_theta - v|^2 as TorchCFM prints it; loss has it at unit scale."""
    m = module(max_steps=1, clip=None)
    x, _, eps, t, _ = m.batches.draw(range(1), slice(None))
    v = x - eps
    plain = (
        m.objective.field(m.net, (2,)).output(m.objective.path.mix(x, eps, t), t) - v
    ).square()
    fit(m, 1)
    assert m.tally.mse == pytest.approx(plain.mean().item(), rel=1e-5)
    assert m.tally.mse == pytest.approx(v.square().mean().item(), rel=1e-5)  # the network is zero
    assert m.tally.mse == pytest.approx(m.tally.loss * (1 + m.data.std**2), rel=1e-4)
    words = (*POINTS, *INTERVALS, "trainer.max_steps=20")
    train(tmp_path / "run", *words, "trainer.accumulate=2")
    for row in metrics(tmp_path / "run"):
        for name in ("", "val_"):
            ratio = float(row[f"{name}mse"]) / float(row[f"{name}loss"])
            assert ratio == pytest.approx(1 + 0.705**2, rel=0.01)
    train(tmp_path / "l1", *words, "objective.distance=l1")
    assert all(row["mse"] == row["val_mse"] == "" for row in metrics(tmp_path / "l1"))


@pytest.mark.parametrize(("dropout", "parts"), [(0.3, 2), (0.3, 1), (0.0, 2)])
def test_that_masks_depend_on_parts_is_said(train, tmp_path, capfd, dropout, parts):
    words = (*IMAGES, *INTERVALS, "trainer.max_steps=1", f"model.dropout={dropout}")
    train(tmp_path / "run", *words, f"trainer.accumulate={parts}")
    said = "dropout draws its masks anew for each of trainer.accumulate=2 parts"
    assert (said in capfd.readouterr().err) == (dropout > 0 and parts > 1)


def test_learning_rate_warms_up_and_falls():
    m = module(warmup=4, max_steps=12, decay="cosine")
    m.configure_optimizers()
    rates = [m.learning_rate(k) for k in range(13)]
    assert rates[:4] == pytest.approx([0.25e-3, 0.5e-3, 0.75e-3, 1e-3])
    assert rates[4] == pytest.approx(1e-3) and rates[8] == pytest.approx(0.5e-3)
    assert rates[12] == pytest.approx(0, abs=1e-12)
    assert all(a >= b for a, b in itertools.pairwise(rates[4:]))
    m.options = replace(m.options, decay="constant")
    assert m.learning_rate(11) == 1e-3


def test_global_step_counts_optimiser_steps():
    m = module(accumulate=4)
    assert fit(m, 6).global_step == 6 == m.step


def test_validation_asks_the_average():
    m = module(ema=[0.5])
    assert m.field().net is m.averages[0]
    dropping = module(ema=[])
    assert not dropping.field().net.training and dropping.net.training


def test_ranges_cover_each_step_once_and_meet_every_interval():
    ranges = list(Chunks(130, 312, 25))
    assert ranges[0] == (130, 150) and ranges[-1] == (300, 312)
    assert [k for r in ranges for k in range(*r)] == list(range(130, 312))
    options = TrainerOptions(**yaml("trainer", "default"))
    assert options.steps_per_batch(points=True) == 25
    assert options.steps_per_batch(points=False) == 1
    assert replace(options, log_every=10).steps_per_batch(points=True) == 5


def test_the_options_are_the_keys_of_the_yaml():
    """In its order too, and each of a type that the default has or that null stands for."""
    keys = yaml("trainer", "default")
    assert [field.name for field in fields(TrainerOptions)] == list(keys)
    for name, kind in get_type_hints(TrainerOptions).items():
        kinds = tuple(get_origin(k) or k for k in get_args(kind) or (kind,))
        kinds = (list,) if get_origin(kind) is list else kinds
        assert isinstance(keys[name], (*kinds, int) if float in kinds else kinds), name


@pytest.mark.parametrize("prediction", PREDICTIONS)
@pytest.mark.parametrize("path", PATHS)
def test_every_prediction_on_every_path_trains_and_samples(path, prediction):
    m = module(path=path, objective={"prediction": prediction})
    fit(m, 2)
    assert m.tally.tensor().isfinite().all() and m.tally.steps == 2
    x = generate(m.field(), n=16, steps=3).x
    assert x.shape == (16, 2) and x.isfinite().all()


# Runs


def test_metrics_log_what_happened(train, tmp_path):
    train(tmp_path / "run", *POINTS, *INTERVALS, "trainer.max_steps=25", "trainer.warmup=0")
    found = metrics(tmp_path / "run")
    assert [row["step"] for row in found] == ["10", "20", "25"]
    for row in found:
        assert float(row["loss"]) > 0 and float(row["grad_norm"]) > 0
        bins = [float(row[f"val_loss_{i}"]) for i in range(5)]
        assert sum(bins) / 5 == pytest.approx(float(row["val_loss"]), rel=1e-4)
    m = module(max_steps=25)
    m.configure_optimizers()
    assert float(found[0]["lr"]) == pytest.approx(m.learning_rate(9), rel=1e-6)


def test_equal_seeds_give_equal_runs_and_others_do_not(train, tmp_path):
    words = (*POINTS, *INTERVALS, "trainer.max_steps=20")
    a, b = (train(tmp_path / name, *words) for name in "ab")
    assert a["checksums"] == b["checksums"] and metrics(tmp_path / "a") == metrics(tmp_path / "b")
    picture = "samples/step_0000020.png"
    assert (tmp_path / "a" / picture).read_bytes() == (tmp_path / "b" / picture).read_bytes()
    assert train(tmp_path / "c", *words, "seed=1")["checksums"] != a["checksums"]


def interrupt(monkeypatch, at, action):
    """Call action at the end of optimiser step `at`, once."""
    step = Training.optimiser_step

    @functools.wraps(step)
    def interrupted(self, k, parts):
        step(self, k, parts)
        if k + 1 == at:
            action()

    monkeypatch.setattr(Training, "optimiser_step", interrupted)


@pytest.mark.parametrize(
    ("signum", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)], ids=["TERM", "INT"]
)
@pytest.mark.fault
def test_a_signal_saves_and_the_rest_is_bit_identical(train, tmp_path, monkeypatch, signum, code):
    words = (*POINTS, *INTERVALS, "trainer.max_steps=40", "trainer.inner_steps=1")
    whole = train(tmp_path / "whole", *words)
    with monkeypatch.context() as patch:
        interrupt(patch, 17, lambda: signal.raise_signal(signum))
        stopped = train(tmp_path / "run", *words, code=code)
    assert stopped["step"] == 17
    resumed = train(tmp_path / "run", *words, "resume=last")
    assert resumed["step"] == 40 and resumed["checksums"] == whole["checksums"]
    assert metrics(tmp_path / "run") == metrics(tmp_path / "whole")


@pytest.mark.slow
@pytest.mark.fault
def test_a_network_with_dropout_and_micro_batches_resumes_bit_identically(
    train, tmp_path, monkeypatch
):
    words = (*IMAGES, *INTERVALS, "model.dropout=0.3", "trainer.accumulate=2")
    words += ("trainer.max_steps=10", "trainer.picture_every=100")
    whole = train(tmp_path / "whole", *words)
    with monkeypatch.context() as patch:
        interrupt(patch, 5, lambda: signal.raise_signal(signal.SIGTERM))
        assert train(tmp_path / "run", *words, code=143)["step"] == 5
    assert train(tmp_path / "run", *words, "resume=true")["checksums"] == whole["checksums"]
    assert metrics(tmp_path / "run") == metrics(tmp_path / "whole")


@pytest.mark.fault
def test_an_error_in_mid_run_loses_only_what_came_after_the_last_checkpoint(
    train, tmp_path, monkeypatch
):
    def crash():
        raise ZeroDivisionError("a bug")

    words = (*POINTS, *INTERVALS, "trainer.max_steps=40")
    whole = train(tmp_path / "whole", *words)
    with monkeypatch.context() as patch:
        interrupt(patch, 37, crash)
        assert train(tmp_path / "run", *words, code=1)["step"] == 30
    assert train(tmp_path / "run", *words, "resume=true")["checksums"] == whole["checksums"]
    assert metrics(tmp_path / "run") == metrics(tmp_path / "whole")


def test_a_longer_run_goes_on(train, command, tmp_path):
    words = (*POINTS, "trainer.decay=constant")
    whole = train(tmp_path / "whole", *words, "trainer.max_steps=20")
    train(tmp_path / "run", *words, "trainer.max_steps=10")
    longer = train(tmp_path / "run", *words, "trainer.max_steps=20", "resume=true")
    assert longer["step"] == 20 and longer["checksums"] == whole["checksums"]
    again = train(tmp_path / "run", *words, "trainer.max_steps=20", "resume=true")
    assert again["checksums"] == longer["checksums"]


def test_init_takes_the_weights_and_starts_at_zero(train, tmp_path, moons_run):
    words = (*POINTS, "trainer.max_steps=1", "optim.lr=1e-12", "trainer.ema=[0.9999,0.5]")
    begun = train(tmp_path / "run", *words, f"init={moons_run}")
    source = checkpoint.read(find(moons_run))["weights"]
    assert begun["step"] == 1
    for name, origin in (("raw", "raw"), ("0.5", "raw")):
        torch.testing.assert_close(vector(begun["weights"][name]), vector(source[origin]))
    drift = vector(begun["weights"]["0.9999"]) - vector(source["0.9999"])
    assert drift.norm() < (vector(source["raw"]) - vector(source["0.9999"])).norm()


def test_init_of_another_shape_is_refused(command, moons_run, capfd):
    words = (*PLAIN, "data=moons", "model.hidden=32", f"init={moons_run}")
    assert command("train", *words) == 2
    assert "do not fit model=mlp" in capfd.readouterr().err


def test_max_time_stops_and_saves(train, tmp_path):
    begin = time.monotonic()
    stopped = train(tmp_path / "run", *POINTS, "trainer.max_steps=1000000", "trainer.max_time=1")
    assert 0 < stopped["step"] < 1000000 and time.monotonic() - begin < 20


def test_keep_leaves_the_newest_checkpoints(train, tmp_path):
    words = ("trainer.max_steps=25", "trainer.keep=2", *INTERVALS)
    train(tmp_path / "run", *POINTS, *words)
    left = sorted(path.name for path in (tmp_path / "run").glob("*.ckpt"))
    assert left == ["0000020.ckpt", "0000025.ckpt", "last.ckpt"]
    assert (tmp_path / "run" / "last.ckpt").samefile(tmp_path / "run" / "0000025.ckpt")


@pytest.mark.fault
def test_a_picture_that_fails_does_not_end_the_run(train, tmp_path, monkeypatch, capfd):
    def generate(*_, **__):
        raise FmdiffError("3 of 64 samples are not finite")

    monkeypatch.setattr(pictures, "generate", generate)
    assert train(tmp_path / "run", *POINTS, "trainer.max_steps=2")["step"] == 2
    assert "no picture at step 2: 3 of 64" in capfd.readouterr().err


def spoil(monkeypatch, *steps):
    """Let the loss of these steps be NaN."""
    noise = Batches.noise

    def spoiled(self, k):
        return noise(self, k) * (math.nan if k in steps else 1)

    monkeypatch.setattr(Batches, "noise", spoiled)


@pytest.mark.fault
def test_a_loss_that_is_not_finite_ends_the_run(train, tmp_path, monkeypatch, capfd):
    spoil(monkeypatch, 17)
    kept = train(tmp_path / "run", *POINTS, *INTERVALS, "trainer.max_steps=40", code=3)
    assert kept["step"] == 10 and vector(kept["weights"]["raw"]).isfinite().all()
    said = capfd.readouterr().err
    assert "step 17 (seed 0): loss nan" in said and "Traceback" not in said


@pytest.mark.fault
def test_a_learning_rate_too_large_diverges(command, tmp_path, capfd):
    words = (*PLAIN, *POINTS, "optim.lr=1e30", "trainer.clip=null", "trainer.max_steps=40")
    assert command("train", *words, "out=run") == 3
    assert "is not finite" in capfd.readouterr().err


@pytest.mark.fault
def test_some_steps_may_be_skipped(train, tmp_path, monkeypatch, capfd):
    spoil(monkeypatch, 3, 5)
    words = (*POINTS, *INTERVALS, "trainer.max_steps=10")
    done = train(tmp_path / "run", *words, "trainer.skip_nonfinite=2")
    assert done["step"] == 10 and vector(done["weights"]["raw"]).isfinite().all()
    assert "skipped" in capfd.readouterr().err
    train_again = train(tmp_path / "less", *words, "trainer.skip_nonfinite=8")
    assert train_again["checksums"] == done["checksums"]


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("trainer.accumulate=3",), "data.batch_size=64"),
        (("trainer.devices=3",), "data.batch_size=64"),
        (("trainer.inner_steps=7",), "trainer.inner_steps=7"),
        (("device=cuda:7",), "device=cuda:7"),
    ],
    ids=["accumulate", "devices", "inner_steps", "cuda"],
)
def test_what_cannot_be_run_is_refused(command, tmp_path, capfd, words, said):
    assert command("train", *PLAIN, *POINTS, *words, "out=run") == 2
    err = capfd.readouterr().err
    assert said in err and err.count("\n") == 1
    assert not (tmp_path / "run").exists()


def test_bf16_and_other_loggers(train, tmp_path):
    words = (
        *POINTS,
        "trainer.max_steps=2",
        "trainer.precision=bf16",
        "trainer.logger=tensorboard",
    )
    done = train(tmp_path / "run", *words)
    assert all(value.dtype == torch.float32 for value in done["weights"]["raw"].values())
    assert list((tmp_path / "run" / "tensorboard").glob("events*"))


# Optimisers

OTHERS = {
    "muon": ("optim=muon",),
    "schedule_free": ("optim=schedule_free", "trainer.decay=constant"),
    "averages of every third step": ("trainer.ema_every=3",),
}


@pytest.mark.parametrize("other", OTHERS)
@pytest.mark.fault
def test_a_run_of_another_optimiser_goes_on_bit_by_bit(train, tmp_path, monkeypatch, other):
    """Stopped by SIGTERM at step 17 of 40."""
    if other == "schedule_free":
        pytest.importorskip("schedulefree")
    words = (*POINTS, *INTERVALS, "trainer.max_steps=40", "trainer.inner_steps=1")
    words += OTHERS[other]
    whole = train(tmp_path / "whole", *words)
    with monkeypatch.context() as patch:
        interrupt(patch, 17, lambda: signal.raise_signal(signal.SIGTERM))
        stopped = train(tmp_path / "run", *words, code=143)
    assert stopped["step"] == 17
    resumed = train(tmp_path / "run", *words, "resume=last")
    assert resumed["step"] == 40 and resumed["checksums"] == whole["checksums"]
    assert metrics(tmp_path / "run") == metrics(tmp_path / "whole")


def test_samples_on_the_way_and_checkpoints_are_of_the_schedule_free_average(train, tmp_path):
    pytest.importorskip("schedulefree")
    optim = yaml("optim", "schedule_free")
    m = module(optim=None, decay="constant", ema=[0.9])
    m = Training(m.settings | {"optim": optim}, m.options, m.net, m.objective, m.batches)
    fit(m, 3)
    wanted = m.optimizer.average()
    got = list(m.average().parameters())
    assert all(torch.equal(a, b) for a, b in zip(wanted, got, strict=True))
    assert not any(torch.equal(a, b) for a, b in zip(wanted, m.net.parameters(), strict=True))
    assert list(m.states()) == ["raw", "schedule_free", "0.9"]
    words = (*POINTS, "optim=schedule_free", "trainer.decay=constant", "trainer.max_steps=3")
    stored = train(tmp_path / "run", *words)["weights"]
    first = load(tmp_path / "run").net.state_dict()
    assert all(torch.equal(first[k], v) for k, v in stored["schedule_free"].items())
    named = load(tmp_path / "run", weights="schedule_free").net.state_dict()
    assert all(torch.equal(named[k], v) for k, v in first.items())


def test_moments_of_another_optimiser_are_refused(command, train, tmp_path, capfd):
    words = (*POINTS, "trainer.max_steps=2")
    train(tmp_path / "run", *words)
    more = (*PLAIN, *POINTS, "trainer.max_steps=4", "resume=true", f"out={tmp_path / 'run'}")
    assert command("train", *more, "optim=muon") == 2
    assert "is a run of other settings: optim._target_" in capfd.readouterr().err
    assert command("train", *more, "optim=muon", "overwrite=true") == 2
    assert "its moments are of Adam, and this run has Muon" in capfd.readouterr().err
    assert command("train", *more, "optim=adamw", "overwrite=true") == 0


SPY = """
import hashlib
import os
from pathlib import Path

from fmdiff.optim import Muon


class Spy(Muon):
    def step(self, closure=None):
        super().step(closure)
        weights = [p for group in self.param_groups for p in group["params"]]
        bytes_ = b"".join(p.detach().numpy().tobytes() for p in weights)
        with Path(f"rank{os.environ.get('RANK', 0)}").open("a") as file:
            file.write(hashlib.sha256(bytes_).hexdigest() + "\\n")
"""


@pytest.mark.slow
def test_muon_moves_the_weights_of_all_devices_alike(command, tmp_path):
    folder = tmp_path / "configs"
    (folder / "optim").mkdir(parents=True)
    (folder / "optim" / "spy.yaml").write_text("_target_: spy.Spy\nlr: 1e-3\nmomentum: 0.9\n")
    (tmp_path / "spy.py").write_text(SPY)
    words = (*PLAIN, *POINTS, "trainer.max_steps=12", "trainer.warmup=0", "optim=spy")
    words = ("train", f"--config-dir={folder}", *words)
    assert command(*words, "trainer.devices=2", "out=two") == 0
    one, other = (Path(f"rank{k}").read_text().splitlines() for k in (0, 1))
    assert one == other and len(set(one)) == 12
    assert command(*words, "trainer.decay=constant", "out=one") == 0
