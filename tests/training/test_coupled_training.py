"""Training with couplings and other sources: what is paired, what is kept, what is sampled."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import PLAIN, POINTS, metrics, vector
from omegaconf import OmegaConf

from fmdiff import generate, load
from fmdiff.build import build, config_folder, named
from fmdiff.coupling import transport_cost
from fmdiff.machine import aside
from fmdiff.objectives.flow_matching import FlowMatching
from fmdiff.path import CondOT
from fmdiff.randomness import generator, noise
from fmdiff.runs import checkpoint
from fmdiff.training.batches import Batches

BRIEF = ("trainer.warmup=0", "trainer.picture_every=1000")
OT = (*POINTS, *BRIEF, "coupling=ot")
SAMPLE = ("device=cpu", "threads=1", "out=samples")


def batches(
    coupling="ot", source="normal", data=None, source_keys=None, label_dropout=0.1, accumulate=1
):
    """What the steps of fmdiff train are given, of small batches."""

    def spec(group, name, **changes):
        found = OmegaConf.load(config_folder() / group / f"{name}.yaml")
        return OmegaConf.to_container(found) | changes

    data = build(spec("data", "gmm4", **{"batch_size": 60, **(data or {})}))
    pairs = named("coupling", coupling)
    objective = FlowMatching(
        CondOT(),
        data.std,
        "v",
        None,
        0.05,
        1e-4,
        source=named("source", source, **(source_keys or {})),
        coupled=not pairs.independent,
    )
    return Batches(
        data, objective, named("time", "uniform"), pairs, 0, (label_dropout, 0.0), accumulate
    )


# The draws of a step


@pytest.mark.parametrize("coupling", ["ot", "sinkhorn"])
@pytest.mark.parametrize("conditional", [False, True])
def test_rows_of_any_part_are_those_of_the_whole_batch_paired_at_once(coupling, conditional):
    """So micro-batches and devices take rows of one pairing, not a pairing of their rows."""
    whole = batches(coupling, data={"conditional": conditional}).draw(range(3, 4), slice(None))
    asked = batches(coupling, data={"conditional": conditional})
    for rows in (slice(0, 20), slice(20, 40), slice(40, 60), slice(7, 9)):
        for part, all_ in zip(asked.draw(range(3, 4), rows), whole, strict=True):
            assert (part is None and all_ is None) or torch.equal(part, all_[rows])
    # a device that begins with the last rows finds the same
    other = batches(coupling, data={"conditional": conditional}).draw(range(3, 4), slice(40, 60))
    assert torch.equal(other[2], whole[2][40:60])
    free = batches("independent", data={"conditional": conditional}).draw(range(3, 4), slice(None))
    assert torch.equal(free[0], whole[0]) and torch.equal(free[3], whole[3])
    assert not torch.equal(free[2], whole[2])
    assert transport_cost(whole[0], whole[2]) < 0.95 * transport_cost(free[0], free[2])


def test_the_noise_is_permuted_and_the_whole_is_cheapest():
    from scipy.optimize import linear_sum_assignment

    x, _, eps, _, _ = batches().draw(range(2, 3), slice(None))
    z = torch.randn(60, 2, generator=generator(0, "eps", 2))
    assert torch.equal(eps.sort(0).values, z.sort(0).values)
    table = torch.cdist(x.double(), z.double()).square().numpy()
    best = table[linear_sum_assignment(table)].mean()
    assert transport_cost(x, eps).item() == pytest.approx(best, rel=1e-5)


def test_pairs_are_made_within_each_class_before_labels_are_dropped():
    """The noise at the places of a class stays there, so noise and label are independent."""
    m = batches(data={"conditional": True}, label_dropout=0.5)
    x, y, eps, _, _ = m.draw(range(4, 5), slice(None))
    label = m.data.batch(0, 4)[1]
    assert (y == m.data.classes).any() and torch.equal(y[y != 4], label[y != 4])
    z = torch.randn(60, 2, generator=generator(0, "eps", 4))
    for c in label.unique():
        at = label == c
        assert torch.equal(eps[at].sort(0).values, z[at].sort(0).values)
        table = torch.cdist(x[at], z[at]).square()
        assert table.diagonal().mean() > transport_cost(x[at], eps[at])
    pairs = batches().draw(range(4, 5), slice(None))  # without labels the classes mix
    assert transport_cost(*pairs[:4:2]) < transport_cost(x, eps)


@pytest.mark.parametrize("coupling", ["ot", "sinkhorn"])
@pytest.mark.parametrize(("source", "size"), [("normal", 60), ("data", 60), ("normal", 520)])
def test_pairs_found_ahead_are_those_found_at_once(coupling, source, size):
    """By blocks of 25 steps, or one by one where a batch is large."""
    keys = {"source_keys": {"data": "8gaussians"}} if source == "data" else {}
    keys |= {"data": {"batch_size": size}}
    ahead, at_once = (batches(coupling, source, **keys) for _ in range(2))
    at_once.ahead = at_once.match
    assert ahead.block == (25 if size == 60 else 1)
    spent, last = 0.0, -1
    for k in (0, 1, 2, 3, 4, 9, 8, 8):
        for a, b in zip(
            ahead.draw(range(k, k + 1), slice(None)),
            at_once.draw(range(k, k + 1), slice(None)),
            strict=True,
        ):
            assert (a is None and b is None) or torch.equal(a, b)
        assert ahead.tally == at_once.tally
        spent += (
            0
            if k == last
            else transport_cost(*at_once.draw(range(k, k + 1), slice(None))[:4:2]).item()
        )
        last = k
        # once a step, however often it is asked for
        assert ahead.tally.transport == pytest.approx(spent)
    ahead.close()


@pytest.mark.parametrize(("coupling", "conditional"), [("ot", False), ("sinkhorn", True)])
def test_pairs_of_another_process_are_those_found_here(monkeypatch, coupling, conditional):
    monkeypatch.setattr(aside, "START", 0.0)
    monkeypatch.setattr(aside, "SHARE", 0.0)
    one = batches(coupling, data={"conditional": conditional})
    one.match_aside(0)
    (process,) = one.aside.processes.values()
    deadline = time.monotonic() + 200
    while not process.ready():
        assert time.monotonic() < deadline and not process.refuses
        time.sleep(0.02)
    spent = one.aside.spent
    for block in (7, 0, 3):
        (index, costs), (here, costs_here) = one.match_aside(block), one.match(block)
        assert torch.equal(index, here) and costs == costs_here
    assert one.aside.spent == spent  # nothing was computed here
    one.close()
    assert not one.aside.processes


# Runs


@pytest.mark.parametrize("coupling", ["ot", pytest.param("sinkhorn", marks=pytest.mark.slow)])
def test_a_coupling_saves_transport(train, tmp_path, coupling):
    words = (*OT[:-1], f"coupling={coupling}", "trainer.log_every=5", "trainer.max_steps=10")
    content = train(tmp_path / "run", *words)
    found = metrics(tmp_path / "run")
    assert [row["step"] for row in found] == ["5", "10"]
    for row in found:
        assert 0 < float(row["transport_cost"]) < 0.7 * float(row["independent_cost"])
    # E|x - eps|^2 = E|x|^2 + 2 without a coupling, over 5 x 64 pairs
    x = named("data", "moons").sample(0, 20_000, 5)[0].double().square().sum(1)
    mean = np.mean([float(row["independent_cost"]) for row in found])
    assert mean == pytest.approx(x.mean().item() + 2, rel=0.15)
    assert content["spec"]["coupling"]["_target_"].lower().endswith(coupling)
    train(tmp_path / "free", *OT[:-1], "trainer.max_steps=2")
    assert "transport_cost" not in metrics(tmp_path / "free")[0]


@pytest.mark.parametrize(
    "words",
    [
        pytest.param(words, id=" ".join(words), marks=[pytest.mark.slow] * (i > 0))
        for i, words in enumerate(
            (
                ("coupling=ot", "source=data", "source.data=8gaussians"),
                ("coupling=ot",),
                ("coupling=sinkhorn", "data.conditional=true"),
            )
        )
    ],
)
def test_a_resumed_run_is_bit_identical(train, tmp_path, words):
    words = (*POINTS, *BRIEF, *words, "trainer.decay=constant", "trainer.log_every=4")
    whole = train(tmp_path / "whole", *words, "trainer.max_steps=12")
    first = train(tmp_path / "run", *words, "trainer.max_steps=6")
    resumed = train(tmp_path / "run", *words, "trainer.max_steps=12", "resume=true")
    assert first["step"] == 6 and resumed["step"] == 12
    assert resumed["checksums"] == whole["checksums"] != first["checksums"]
    ends = [
        {k: v for k, v in metrics(tmp_path / name)[-1].items() if "val" not in k}
        for name in ("whole", "run")
    ]
    assert ends[0] == ends[1]


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="looks into /proc")
@pytest.mark.parametrize("by", [signal.SIGINT, signal.SIGKILL])
def test_a_run_paired_by_a_process_ends_with_it_and_resumes(train, tmp_path, by):
    """Whatever ends the run, no process is left, and the rest is bit-identical."""
    words = (*PLAIN, *OT, "trainer.decay=constant", "trainer.checkpoint_every=25")
    code = (
        "import sys\n"
        "from fmdiff.machine import aside\n"
        "aside.START = aside.SHARE = 0.0\n"
        "from fmdiff.cli import main\n"
        "sys.exit(main(sys.argv[1:]))"
    )
    command = [sys.executable, "-c", code, "train", *words, "trainer.max_steps=1000000"]
    with subprocess.Popen([*command, "out=run"], cwd=tmp_path, start_new_session=True) as run:

        def children():
            lists = Path(f"/proc/{run.pid}/task").glob("*/children")
            every = {int(n) for path in lists for n in path.read_text().split()}
            return [n for n in every if b"serve(" in Path(f"/proc/{n}/cmdline").read_bytes()]

        def busy():
            """Whether a process has paired for a second, so that it is in use."""
            return any(time.clock_gettime(~n << 3 | 2) > 4 for n in children())

        deadline = time.monotonic() + 500
        while not busy():
            assert time.monotonic() < deadline and run.poll() is None
            time.sleep(0.1)
        pairing = children()
        os.killpg(run.pid, by)
        assert run.wait(100) == (130 if by == signal.SIGINT else -by)
        deadline = time.monotonic() + 20
        while any(Path(f"/proc/{n}").exists() for n in pairing):
            assert time.monotonic() < deadline
            time.sleep(0.1)
    step = checkpoint.read(tmp_path / "run" / "last.ckpt")["step"]
    steps = f"trainer.max_steps={step + 30}"
    resumed = train(tmp_path / "run", *words, steps, "resume=true")
    assert resumed["checksums"] == train(tmp_path / "whole", *words, steps)["checksums"]


@pytest.mark.slow
def test_accumulated_micro_batches_are_paired_as_one_batch(train, tmp_path):
    words = (*OT, "trainer.max_steps=6", "trainer.log_every=2")
    one = train(tmp_path / "one", *words)
    two = train(tmp_path / "two", *words, "trainer.accumulate=2")
    a, b = (vector(content["weights"]["raw"]) for content in (one, two))
    assert ((a - b).norm() / a.norm()).item() < 1e-5
    for ours, theirs in zip(metrics(tmp_path / "one"), metrics(tmp_path / "two"), strict=True):
        for name in ("transport_cost", "independent_cost"):
            assert ours[name] == theirs[name]


@pytest.mark.slow
@pytest.mark.parametrize(
    "words",
    [
        ("coupling=ot",),
        ("coupling=sinkhorn", "data.conditional=true"),
        ("coupling=ot", "source=data", "source.data=8gaussians"),
    ],
    ids=" ".join,
)
def test_two_processes_pair_the_global_batch(train, tmp_path, words):
    words = (*PLAIN, *POINTS, *BRIEF, *words, "trainer.max_steps=8", "trainer.log_every=4")
    one = train(tmp_path / "one", *words)
    command = [sys.executable, "-m", "fmdiff", "train", *words, "trainer.devices=2", "out=two"]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    subprocess.run(command, cwd=tmp_path, env=environment, check=True, timeout=200)
    two = checkpoint.read(tmp_path / "two" / "last.ckpt")
    for name, weights in one["weights"].items():
        a, b = vector(weights), vector(two["weights"][name])
        assert ((a - b).norm() / a.norm()).item() < 1e-6
    for ours, theirs in zip(metrics(tmp_path / "one"), metrics(tmp_path / "two"), strict=True):
        for name in ("transport_cost", "independent_cost", "loss"):
            assert float(ours[name]) == pytest.approx(float(theirs[name]), rel=1e-6)


# Sources


@pytest.mark.parametrize("coupling", [pytest.param("independent", marks=pytest.mark.slow), "ot"])
def test_data_to_data(train, command, tmp_path, coupling):
    words = ("source=data", "source.data=8gaussians", f"coupling={coupling}")
    train(tmp_path / "run", *POINTS, *BRIEF, *words, "trainer.max_steps=3")
    more = ("n=400", "steps=3", "trajectory=true")
    assert command("sample", "ckpt=run", *more, *SAMPLE) == 0
    samples = np.load("samples/samples.npz")["arr_0"]
    assert samples.shape == (400, 2) and np.isfinite(samples).all()
    field = load(tmp_path / "run")
    made = generate(field, 400, steps=3, trajectory=True)
    np.testing.assert_allclose(made.x.numpy(), samples, rtol=1e-4, atol=1e-5)
    start = made.trajectory[0][0]
    source = named("data", "8gaussians")
    assert source.off_support(start).float().mean() < 0.02
    modes = torch.cdist(start.double(), source.mixture()[1]).argmin(1).bincount(minlength=8)
    assert (modes > 20).all()  # of 50 each
    assert len(start.unique(dim=0)) == 400
    assert not field.gaussian
    # a start of its own for each seed and none of the data's own references
    other = generate(field, 400, steps=3, seed=1, trajectory=True).trajectory[0][0]
    assert not torch.equal(other, start)


@pytest.mark.parametrize(
    "source", [pytest.param("hypersphere", marks=pytest.mark.slow), "truncated"]
)
def test_other_sources_train_and_sample(train, command, tmp_path, source):
    words = (f"source={source}", "trainer.max_steps=3")
    content = train(tmp_path / "run", *POINTS, *BRIEF, *words)
    assert content["spec"]["source"] == OmegaConf.to_container(
        OmegaConf.load(config_folder() / "source" / f"{source}.yaml")
    )
    assert command("sample", "ckpt=run", "n=50", "steps=3", "trajectory=true", *SAMPLE) == 0
    report = json.loads(Path("samples/sample.json").read_text())
    assert report["nfe_planned"] == report["nfe_counted"]
    start = generate(load(tmp_path / "run"), 300, steps=2, trajectory=True).trajectory[0][0]
    if source == "hypersphere":
        torch.testing.assert_close(start.norm(dim=1), torch.full((300,), 2**0.5))
    else:
        assert 1.5 < start.abs().max() <= 2
    drawn = batches("independent", source).draw(range(0, 1), slice(None))[2]
    assert (drawn.norm(dim=1) < 2 * 2**0.5 + 1e-6).all()


def test_digits_of_one_label_to_another(train, command, tmp_path):
    words = ("data=digits", "data.only=[8]", "source=data", "source.data=digits")
    images_to_images(train, command, tmp_path, *words)


@pytest.mark.slow
def test_mnist_of_one_label_to_another(train, command, tmp_path):
    if not os.environ.get("FMDIFF_DATA"):
        pytest.skip("data=mnist needs $FMDIFF_DATA")
    if not (Path(os.environ["FMDIFF_DATA"]) / "MNIST" / "raw").exists():
        pytest.skip("no mnist in $FMDIFF_DATA")
    words = ("data=mnist", "data.only=[8]", "source=data", "source.data=mnist")
    images_to_images(train, command, tmp_path, *words)


def images_to_images(train, command, tmp_path, *words):
    """From images of zeros to images of eights: two steps, and samples that begin with zeros."""
    tiny = ("model=unet", "model.channels=8", "model.multipliers=[1,2]", "model.head_channels=8")
    run = tmp_path / "run"
    size = ("data.batch_size=8", "trainer.max_steps=2", "coupling=ot")
    content = train(run, *words, "source.only=[0]", *tiny, *size, *BRIEF)
    assert content["step"] == 2
    assert float(metrics(run)[-1]["transport_cost"]) < float(metrics(run)[-1]["independent_cost"])
    more = ("n=4", "steps=2", "trajectory=true")
    assert command("sample", f"ckpt={run}", *more, *SAMPLE) == 0
    arrays = np.load("samples/samples.npz")
    assert arrays["arr_0"].shape[0] == 4 and arrays["labels"].tolist() == [8, 8, 8, 8]
    start = generate(load(run), 4, steps=2, trajectory=True).trajectory[0][0]
    zeros = named("data", words[-1].partition("=")[2], only=[0]).test[0]
    zeros = zeros.float() / 127.5 - 1
    for image in start:
        assert (zeros - image).abs().flatten(1).amax(1).min() < 1e-5


def test_a_validation_and_a_picture_of_a_coupled_run_use_its_source(train, tmp_path):
    """The held-out loss is of pairs that are not coupled: it is finite and written."""
    train(tmp_path / "run", *OT, "trainer.max_steps=4", "trainer.validate_every=2")
    for row in metrics(tmp_path / "run"):
        assert float(row["val_loss"]) > 0
    assert list((tmp_path / "run" / "samples").glob("step_*.png"))
    z = noise(0, 5, (2,), 0, "start")
    field = load(tmp_path / "run")
    assert torch.equal(field.start(z, torch.tensor(0.0), 0, 0), z)
