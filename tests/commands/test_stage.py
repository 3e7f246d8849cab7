"""What commands work on by their settings: the field, its data, the sizes, the way of sampling."""

import pytest
import torch

from fmdiff.build import build, spec_of
from fmdiff.commands import arguments
from fmdiff.commands.likelihood import subject
from fmdiff.commands.stage import place, set_up
from fmdiff.data.toy import Moons
from fmdiff.errors import FmdiffError
from fmdiff.sampling import default_batch_size

CPU = torch.device("cpu")


def settings(**changes):
    """Those of a command that draws 300 samples of the exact field of gmm4."""
    groups = {"solver": "heun", "schedule": "uniform", "guidance": "none"}
    return {
        "ckpt": None,
        "model": spec_of("model", "exact"),
        "data": spec_of("data", "gmm4") | {"batch_size": 64},
        "path": None,
        "n": 300,
        "batch_size": None,
        "seed": 0,
        "device": "cpu",
        "devices": 1,
        "threads": None,
        "weights": "ema",
        "trust": [],
        "label": "own",
        "steps": None,
        "nfe": None,
        "coordinates": "straight",
        "final": "auto",
        "clip": "none",
        "precision": "fp32",
        "compile": None,
        "dtype": "float32",
        "choices": groups | {"data": "gmm4"},
        **{group: spec_of(group, name) for group, name in groups.items()},
        **changes,
    }


def test_a_stage_has_the_field_its_data_and_the_sizes():
    stage = set_up(settings(), CPU, 10_000, 64)
    assert stage.field.shape == stage.data.shape == (2,) and not stage.images
    assert (stage.n, stage.size, stage.about, stage.where) == (300, 300, None, CPU)
    stage = set_up(settings(n=None), CPU, 10_000, 64)
    assert (stage.n, stage.size) == (10_000, default_batch_size((2,)))
    assert set_up(settings(batch_size=7), CPU, 10_000, 64).size == 7


def test_a_stage_of_a_checkpoint_says_which_weights_it_has(moons_run, digits_run):
    stage = set_up(settings(ckpt=str(moons_run), weights="0.9", data=None), CPU, 50, 3)
    assert stage.about["step"] == 60 and stage.about["average"] == "0.9"
    assert isinstance(stage.data, Moons)
    # images are sampled without their data, which may not be on this machine
    of_images = settings(ckpt=str(digits_run), n=None, data=None)
    stage = set_up(of_images, CPU, 50, 3, data=False)
    assert stage.images and stage.n == 3 and stage.data is None


def test_what_one_process_must_do_is_refused_to_several():
    with pytest.raises(FmdiffError, match=r"^this is for one process: devices must be 1$"):
        place(settings(devices=2), "this is for")
    assert place(settings(), "this is for") == CPU


def test_a_subject_is_a_stage_with_real_samples():
    of = subject(settings(), 1000, 64)
    x, _ = of.data.sample(0, 300, 0)
    assert torch.equal(of.x, x) and of.y is None and of.quantity == "log p(x)"
    assert len(subject(settings(n=None), 40, 64).x) == 40
    labelled = settings(data=settings()["data"] | {"conditional": True})
    of = subject(labelled, 1000, 64)
    assert "own label" in of.quantity and of.y.max() < of.field.classes == 4
    of = subject(labelled | {"label": "none"}, 1000, 64)
    assert "null label" in of.quantity and (of.y == 4).all()


def test_a_subject_of_other_data_than_the_model(moons_run):
    ckpt = str(moons_run)
    of = subject(settings(ckpt=ckpt), 1000, 64)
    assert torch.equal(of.x, build(settings()["data"]).sample(0, 300, 0)[0])
    other = settings(ckpt=ckpt, data=spec_of("data", "two_modes") | {"batch_size": 64})
    with pytest.raises(FmdiffError, match=r"data=gmm4 has shape \[1\], the model \[2\]"):
        subject(other, 1000, 64)


def test_settings_say_how_the_field_is_sampled():
    stage = set_up(settings(steps=5, dtype="float64", batch_size=100), CPU, 10_000, 64)
    sampler = arguments.sampler(stage, stage.settings)
    assert (sampler.steps, sampler.batch_size, sampler.dtype) == (5, 100, torch.float64)
    assert type(sampler.solver).__name__ == "Heun" and sampler.path is None
    other = stage.settings | {"solver": spec_of("solver", "euler"), "nfe": 9, "steps": None}
    sampler = arguments.sampler(stage, other)
    assert type(sampler.solver).__name__ == "Euler" and sampler.nfe == 9
    with pytest.raises(FmdiffError, match="precision=bf16 does not go with dtype=float64"):
        arguments.sampler(stage, stage.settings | {"precision": "bf16"})
    adaptive = settings(solver=spec_of("solver", "dopri5"), steps=5)
    with pytest.raises(FmdiffError, match="steps=5"):
        arguments.sampler(stage, adaptive)
    arguments.sampler(stage, adaptive | {"trajectory": True})  # the steps are its frames


def test_threads_are_as_many_as_settings_or_the_rule_say(moons_run):
    for count in (2, 1):
        arguments.use_threads(set_up(settings(threads=count), CPU, 10_000, 64))
        assert torch.get_num_threads() == count
    torch.set_num_threads(2)
    arguments.use_threads(set_up(settings(), CPU, 10_000, 64))
    assert torch.get_num_threads() == 2  # without a network they stay
    arguments.use_threads(set_up(settings(ckpt=str(moons_run)), CPU, 10_000, 64))
    assert torch.get_num_threads() == 1  # the network is tiny
