"""The loss of a flow map is the same however it is computed: in parts, by blocks, in 16 bits."""

import os
import subprocess
import sys
from functools import partial

import pytest
import torch
from conftest import PLAIN, POINTS, vector
from test_map_training import flow_map

from fmdiff.build import build, named, spec_of
from fmdiff.machine import precision
from fmdiff.objectives.flow_matching import FlowMatching
from fmdiff.randomness import generator
from fmdiff.runs import checkpoint
from fmdiff.runs.find import find

SMALL = {
    "mlp": {"hidden": 16, "layers": 2},
    "unet": {"channels": 8, "multipliers": [1, 2], "attention": [1], "head_channels": 8},
    "dit_s": {"width": 32, "depth": 2, "heads": 2, "patch": 2},
    "jit_mnist": {"width": 32, "depth": 2, "heads": 2, "patch": 2, "bottleneck": 8, "start": 1},
}
TARGETS = {
    "lagrangian": ("lsd", {}),
    "eulerian": ("imf", {"adapt": 0.0}),
    "semigroup": ("shortcut", {}),
    "gap": ("consistency", {}),
}
HOW = ("difference", "forward")
EACH = [(target, how) for target in ("lagrangian", "eulerian") for how in HOW]


def network(name, objective, **keys):
    """A small network of a map, none of whose weights is zero."""
    shape = (2,) if name == "mlp" else (1, 8, 8)
    torch.manual_seed(0)
    spec = {**spec_of("model", name), **SMALL[name], **keys}
    net = build(spec, shape=shape, classes=3, **objective.inputs)
    with torch.no_grad():
        for parameter in net.parameters():
            parameter += 0.05 * torch.randn_like(parameter)
    return net, shape


def terms_of(objective, shape, n=8, dtype=torch.float32):
    torch.manual_seed(1)
    x, eps = torch.randn(2, n, *shape, dtype=dtype)
    times = objective.times(n, named("time", "uniform"), lambda p: generator(0, p), 0.5)
    y = torch.randint(4, (n,))
    return objective.terms(x, y, eps, *(column.to(dtype) for column in times))


def made(target, how="difference", **keys):
    name, others = TARGETS[target]
    objective = flow_map(name, derivative=how, **others, **keys)
    objective.classes = 3
    return objective


def gradient(net, loss):
    net.zero_grad()
    loss.mean().backward()
    return torch.cat([p.grad.flatten() for p in net.parameters() if p.grad is not None])


def close(a, b, share=1e-5):
    return ((a - b).norm() / b.norm()).item() < share


@pytest.mark.parametrize("name", SMALL)
@pytest.mark.parametrize(("target", "how"), EACH)
def test_a_batch_in_parts_has_the_loss_of_the_whole(name, target, how):
    """So have micro-batches and devices, and each row has the labels of its own augmentation."""
    objective = made(target, how)
    net, shape = network(name, objective, **({} if name == "mlp" else {"augment": 9}))
    terms = terms_of(objective, shape)
    labels = None if name == "mlp" else torch.randn(8, 9)

    def losses(rows):
        call = net if labels is None else partial(net, augment=labels[rows])
        return objective.assess(call, *(part[rows] for part in terms))[0]

    whole = losses(slice(0, 8))
    parts = torch.cat([losses(slice(0, 5)), losses(slice(5, 8))])
    assert close(parts, whole)
    # a difference of values divides their rounding by its step
    share = 5e-5 if how == "difference" else 1e-5
    assert close(gradient(net, parts), gradient(net, losses(slice(0, 8))), share)
    if labels is not None:  # the labels count, in the targets too
        labels = labels.roll(1, 0)
        assert not close(losses(slice(0, 8)), whole, 1e-3)


@pytest.mark.parametrize("name", SMALL)
def test_a_batch_on_the_diagonal_alone_has_the_loss_of_flow_matching(name):
    """As a micro-batch of a few rows may be; networks of patches take no empty batch."""
    objective = made("lagrangian", diagonal=1.0)
    net, shape = network(name, objective)
    terms = terms_of(objective, shape)
    loss, mse = objective.assess(net, *terms)
    assert close(loss, FlowMatching.compare(objective, net, *terms[:7]))
    assert close(mse, FlowMatching.mse(objective, loss, *terms[:7]))


def test_a_prediction_of_x_is_not_asked_for_velocities_where_they_are_infinite():
    """v = (x - z) / (1 - r): near r = 1 an error of x is magnified 10,000 times."""
    objective = made("lagrangian", prediction="x")
    net, shape = network("mlp", objective, hidden=64)
    terms = terms_of(objective, shape, n=4096)
    loss, on = objective.assess(net, *terms)[0], terms[10] == terms[11]
    assert loss[~on].mean() < loss[on].mean() and loss.max() < 1e5


@pytest.mark.parametrize("name", SMALL)
@pytest.mark.parametrize("target", ["lagrangian", "eulerian"])
def test_both_derivatives_give_the_same_loss(name, target):
    """Also through fused attention, which has no forward derivative of its own."""
    results = []
    for how in ("forward", "difference"):
        objective = made(target, how)
        net, shape = network(name, objective)
        terms = terms_of(objective, shape, dtype=torch.float64)
        results.append(objective.assess(net.double(), *terms)[0])
    assert close(*results)


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("how", ["difference", "forward"])
def test_targets_in_16_bits_are_those_of_32_up_to_their_rounding(target, how):
    """A difference of values of 8 bits over a step of 5e-3 would be noise."""
    objective, seen = made(target, how), []
    net, shape = network("mlp", objective)
    terms = terms_of(objective, shape, n=256)
    goal = objective.goal
    objective.goal = lambda *args, **keys: seen.append(goal(*args, **keys)) or seen[-1]
    objective.assess(net, *terms)
    with torch.autocast("cpu", torch.bfloat16):
        objective.assess(net, *terms)
    assert close(seen[1].float(), seen[0], 0.01) and not torch.equal(*seen)


def test_targets_have_no_dropout_and_the_network_goes_on_with_it():
    objective, seen = made("lagrangian"), []
    net, shape = network("unet", objective, dropout=0.5)
    terms, goal = terms_of(objective, shape), objective.goal
    objective.goal = lambda *args, **keys: seen.append(goal(*args, **keys)) or seen[-1]
    losses = []
    for seed in (0, 1):
        torch.manual_seed(seed)
        losses.append(objective.assess(net, *terms)[0])
        assert net.training and all(part.training for part in net.modules())
    assert torch.equal(*seen) and not torch.allclose(*losses)
    objective.assess(net.eval(), *terms)
    assert close(seen[2], seen[0]) and not net.training


@pytest.mark.parametrize("name", ["unet", "dit_s", "jit_mnist"])
@pytest.mark.parametrize(("target", "how"), EACH)
def test_blocks_that_are_computed_anew_give_the_same(name, target, how):
    objective = made(target, how)
    net, shape = network(name, objective)
    terms = terms_of(objective, shape)
    plain = gradient(net, objective.assess(net, *terms)[0])
    precision.recompute(net)
    assert close(gradient(net, objective.assess(net, *terms)[0]), plain)


@pytest.mark.slow
@pytest.mark.parametrize(("target", "how"), EACH)
def test_a_compiled_network_gives_the_same(target, how):
    objective = made(target, how)
    net, shape = network("dit_s", objective)
    terms = terms_of(objective, shape)
    plain = gradient(net, objective.assess(net, *terms)[0])
    fast = torch.compile(net, dynamic=True)
    assert close(gradient(net, objective.assess(fast, *terms)[0]), plain)


def trained(train, folder, *words):
    words = (*POINTS, "objective=lsd", "trainer.max_steps=3", "trainer.warmup=0", *words)
    return vector(train(folder, *words)["weights"]["raw"])


@pytest.mark.parametrize("how", HOW)
def test_a_run_in_micro_batches_gives_the_same(train, tmp_path, how):
    words = (f"objective.derivative={how}",)
    plain = trained(train, tmp_path / "plain", *words)
    assert close(trained(train, tmp_path / "parts", *words, "trainer.accumulate=2"), plain)


@pytest.mark.slow
@pytest.mark.parametrize("how", HOW)
def test_a_run_of_two_processes_or_compiled_gives_the_same(train, tmp_path, how):
    words = (f"objective.derivative={how}",)
    plain = trained(train, tmp_path / "plain", *words)
    assert close(trained(train, tmp_path / "fast", *words, "trainer.compile=true"), plain, 1e-4)
    words = (*PLAIN, *POINTS, "objective=lsd", "trainer.max_steps=3", "trainer.warmup=0", *words)
    words = ("train", *words, "trainer.devices=2", f"out={tmp_path / 'two'}")
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    subprocess.run([sys.executable, "-m", "fmdiff", *words], env=environment, check=True)
    assert close(vector(checkpoint.read(find(tmp_path / "two"))["weights"]["raw"]), plain)
