"""Precision, compilation, recomputation and memory layout change nothing but rounding."""

import copy
import csv
import gzip
import json
import math
import os
import subprocess
import sys

import numpy as np
import pytest
import torch
from conftest import IMAGES, PLAIN, POINTS, vector
from torch.nn.functional import scaled_dot_product_attention

from fmdiff import load
from fmdiff.build import named
from fmdiff.errors import FmdiffError
from fmdiff.machine import precision
from fmdiff.machine.clock import PARTS, Clock
from fmdiff.models.layers import attend
from fmdiff.objectives.flow_matching import FlowMatching
from fmdiff.path import CondOT
from fmdiff.runs import checkpoint
from fmdiff.runs.find import find

CPU = torch.device("cpu")
SMALL = {
    "unet": {"channels": 16, "multipliers": [1, 2], "head_channels": 16},
    "dit_cifar10": {"width": 32, "depth": 2, "heads": 2},
    "jit_mnist": {"width": 32, "depth": 3, "heads": 2, "bottleneck": 8},
    "ddpmpp": {"channels": 16, "multipliers": [1, 2], "blocks": 1, "dropout": 0.0},
}


def network(name):
    """A small one whose output is not zero."""
    torch.manual_seed(0)
    net = named("model", name, shape=(1, 8, 8), classes=3, **SMALL[name])
    with torch.no_grad():
        for parameter in net.parameters():
            parameter += 0.05 * torch.randn_like(parameter)
    return net


def batch(n=16):
    draws = torch.Generator().manual_seed(1)
    x, eps = (torch.randn(n, 1, 8, 8, generator=draws) for _ in range(2))
    return x, torch.arange(n) % 4, eps, torch.rand(n, generator=draws)


def loss_and_gradient(net, dtype=None, call=None):
    objective = FlowMatching(CondOT(), 0.5, "v", None, 0.0, 0.0)
    with precision.cast(CPU, dtype):
        loss = objective(net if call is None else call, *batch()).mean()
    return loss.item(), torch.cat(
        [g.flatten() for g in torch.autograd.grad(loss, list(net.parameters()))]
    )


def far(a, b):
    return ((a - b).norm() / b.norm()).item()


every_network = pytest.mark.parametrize("name", SMALL)


@every_network
def test_bfloat16_agrees_with_float32_to_its_rounding(name):
    """8 bits of mantissa: 2^-9 an operation, over some tens of layers."""
    net = network(name)
    loss, gradient = loss_and_gradient(net)
    rounded, rough = loss_and_gradient(net, torch.bfloat16)
    assert rounded != loss  # it was rounded
    assert rounded == pytest.approx(loss, rel=1e-2)
    assert far(rough, gradient) < 3e-2


@every_network
def test_recomputed_activations_give_the_same_gradient(name):
    net = network(name)
    copied = copy.deepcopy(net)
    calls = []
    precision.recompute(net)
    blocks = [m for m in net.modules() if "forward" in vars(m)]
    assert blocks
    blocks[0].register_forward_pre_hook(lambda *_: calls.append(1))
    assert loss_and_gradient(net)[0] == loss_and_gradient(copied)[0]
    assert torch.equal(loss_and_gradient(net)[1], loss_and_gradient(copied)[1])
    assert net.state_dict().keys() == copied.state_dict().keys()


def kept(net):
    """Bytes held for the backward pass."""
    storages = {}
    with torch.autograd.graph.saved_tensors_hooks(
        lambda t: storages.setdefault(t.data_ptr(), t), lambda t: t
    ):
        x, y, _, t = batch(64)
        net(x, t, y)
    return sum(t.untyped_storage().nbytes() for t in storages.values())


@every_network
def test_recomputing_keeps_less(name):
    net = network(name)
    before = kept(net)
    precision.recompute(net)
    assert kept(net) < 0.6 * before


def test_a_copy_of_a_recomputing_network_is_its_own():
    net = network("dit_cifar10")
    precision.recompute(net)
    other = copy.deepcopy(net)
    with torch.no_grad():
        for parameter in other.parameters():
            parameter.zero_()
    x, y, _, t = batch()
    assert other(x, t, y).abs().max() == 0 and net(x, t, y).abs().max() > 0


def test_dropout_is_repeated_when_recomputed():
    x, y, _, t = batch()
    gradients = []
    for recomputed in (False, True):
        torch.manual_seed(0)
        net = named("model", "unet", shape=(1, 8, 8), classes=3, **SMALL["unet"], dropout=0.5)
        torch.nn.init.ones_(net.last[-1].weight)
        if recomputed:
            precision.recompute(net)
        torch.manual_seed(3)
        net(x, t, y).square().mean().backward()
        gradients.append(torch.cat([p.grad.flatten() for p in net.parameters()]))
    torch.testing.assert_close(*gradients)


@pytest.mark.parametrize("name", ["unet", "ddpmpp"])
def test_channels_last_agrees(name):
    net = network(name)
    loss, gradient = loss_and_gradient(net)
    assert precision.by_pixel(True, net, CPU) and not precision.by_pixel(None, net, CPU)
    net.to(memory_format=torch.channels_last)
    other, its = loss_and_gradient(net)
    assert other == pytest.approx(loss, rel=1e-5) and far(its, gradient) < 1e-4
    with pytest.raises(FmdiffError, match=r"channels_last=true: \w+ has no convolutions"):
        precision.by_pixel(True, network("dit_cifar10"), CPU)


@pytest.mark.slow
@every_network
def test_compiled_agrees(name):
    net = network(name)
    loss, gradient = loss_and_gradient(net)
    fast, its = loss_and_gradient(net, call=torch.compile(net))
    assert fast == pytest.approx(loss, rel=1e-5) and far(its, gradient) < 1e-4


@pytest.mark.slow
def test_a_compiled_run_agrees_with_one_that_is_not(train, tmp_path):
    words = (*POINTS, "trainer.max_steps=20", "trainer.warmup=0", "trainer.checkpoint_every=20")
    runs = [train(tmp_path / str(on), *words, f"trainer.compile={on}") for on in ("false", "true")]
    plain, compiled = (vector(run["weights"]["raw"]) for run in runs)
    assert not torch.equal(plain, compiled)
    assert far(compiled, plain) < 1e-4


def test_a_bfloat16_run_keeps_float32_weights(train, tmp_path):
    words = (*IMAGES, "trainer.max_steps=6", "trainer.warmup=0")
    plain, rough = (
        train(tmp_path / name, *words, f"trainer.precision={name}") for name in ("fp32", "bf16")
    )
    a, b = (vector(run["weights"]["raw"]) for run in (plain, rough))
    assert b.dtype == torch.float32 and 0 < far(b, a) < 2e-2


def half(monkeypatch):
    """fp16 as on CUDA; the CPU can do it, only slowly."""
    monkeypatch.setattr(precision, "precise", lambda name, *_: precision.DTYPES[name])


@pytest.mark.slow
def test_fp16_scales_its_loss_and_resumes(train, tmp_path, monkeypatch):
    half(monkeypatch)
    words = (*POINTS, "trainer.precision=fp16", "trainer.checkpoint_every=10")
    whole = train(tmp_path / "whole", *words, "trainer.max_steps=20")
    assert whole["training"]["scaler"]["scale"] >= 1
    exact = train(tmp_path / "exact", *POINTS, "trainer.max_steps=20")
    a, b = (vector(run["weights"]["raw"]) for run in (whole, exact))
    assert 0 < far(a, b) < 2e-2

    train(tmp_path / "part", *words, "trainer.max_steps=20", "trainer.max_time=0.01")
    step = checkpoint.read(find(tmp_path / "part"))["step"]
    assert step < 20
    resumed = train(tmp_path / "part", *words, "trainer.max_time=null", "resume=true")
    assert torch.equal(vector(resumed["weights"]["raw"]), a)
    assert resumed["training"]["scaler"] == whole["training"]["scaler"]


def test_fp16_overflows_lower_the_scale_and_are_no_divergence(train, tmp_path, monkeypatch):
    half(monkeypatch)
    real = torch.amp.GradScaler

    def huge(device, enabled):
        return real(device, init_scale=2.0**40, enabled=enabled)

    monkeypatch.setattr(torch.amp, "GradScaler", huge)
    words = ("trainer.precision=fp16", "trainer.max_steps=40", "trainer.skip_nonfinite=0")
    run = train(tmp_path / "run", *POINTS, *words)
    scale = run["training"]["scaler"]["scale"]
    assert scale < 2.0**40 and run["step"] == 40
    assert vector(run["weights"]["raw"]).isfinite().all()


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("trainer.precision=fp16",), "trainer.precision=fp16 needs a CUDA device"),
        (("trainer.precision=tf32",), "trainer.precision=tf32 needs a CUDA device"),
        (("trainer.precision=int8",), "fp32 or tf32 or bf16 or fp16"),
    ],
)
def test_a_precision_this_device_lacks(command, capfd, words, said):
    assert command("train", *PLAIN, *POINTS, *words) == 2
    assert said in capfd.readouterr().err


def test_compiling_needs_a_compiler(monkeypatch):
    assert not precision.compiles(None, CPU) and not precision.compiles(False, CPU)
    assert precision.compiles(True, CPU)
    monkeypatch.setattr(precision.shutil, "which", lambda name: None)
    with pytest.raises(FmdiffError, match="needs a C\\+\\+ compiler"):
        precision.compiles(True, CPU, "trainer.")


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_attention_is_softmax_of_products(dtype):
    draws = torch.Generator().manual_seed(0)
    q, k, v = (torch.randn(2, 3, 17, 8, generator=draws).to(dtype) for _ in range(3))
    scores = q.double() @ k.double().mT / math.sqrt(8)
    wanted = scores.softmax(-1) @ v.double()
    with precision.cast(CPU, None if dtype == torch.float32 else dtype):
        mixed = attend(q, k, v)
    assert mixed.dtype == dtype
    tolerance = 1e-6 if dtype == torch.float32 else 4e-3
    assert far(mixed.double(), wanted) < tolerance
    # the fused kernel in bfloat16 rounds inside as well
    rough = scaled_dot_product_attention(q, k, v).double()
    assert far(mixed.double(), wanted) <= far(rough, wanted)


def test_the_clock_divides_the_time_of_a_step(train, tmp_path):
    words = (*POINTS, "trainer.max_steps=40", "trainer.log_every=20", "trainer.picture_every=40")
    train(tmp_path / "run", *words)
    with (tmp_path / "run" / "metrics.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    previous = 0.0
    for row in rows:
        spent = [float(row[f"ms_{part}"]) for part in PARTS]
        assert min(spent) > 0
        # nothing counts twice: the parts of 20 steps fit into the time that passed
        assert 20 * sum(spent) / 1e3 < float(row["seconds"]) - previous + 1e-2
        previous = float(row["seconds"])
        assert row["utilisation"] == ""  # no peak is known of a CPU


def test_a_clock_that_waits_measures_one_step_in_so_many(monkeypatch):
    waited = []
    monkeypatch.setattr(torch.cuda, "synchronize", lambda: waited.append(1))
    clock = Clock(torch.device("cuda"), 10)
    for k in range(20):
        clock.start(range(k, k + 1))
        clock.lap("forward")
    assert len(waited) == 4 and clock.steps == 2
    assert clock.take()["forward"] >= 0 and clock.take() == {}


def test_profile_writes_a_trace(train, tmp_path):
    train(tmp_path / "run", *POINTS, "trainer.max_steps=12", "trainer.inner_steps=1", *EVERY)
    assert not (tmp_path / "run" / "trace.json.gz").exists()
    words = (*POINTS, "trainer.max_steps=12", "trainer.inner_steps=1", *EVERY, "profile=true")
    train(tmp_path / "traced", *words)
    with gzip.open(tmp_path / "traced" / "trace.json.gz") as file:
        names = {event.get("name") for event in json.load(file)["traceEvents"]}
    assert {"aten::addmm", "aten::_fused_adam_"} <= names


def test_a_run_too_short_for_a_trace_says_so(train, tmp_path, capfd):
    train(tmp_path / "run", *POINTS, "trainer.max_steps=50", "profile=true")
    assert "profile=true: no trace" in capfd.readouterr().err


def test_a_network_without_blocks_cannot_recompute(command, capfd):
    assert command("train", *PLAIN, *POINTS, "trainer.recompute=true") == 2
    assert "trainer.recompute=true: MLP has no blocks" in capfd.readouterr().err


EVERY = tuple(f"trainer.{name}_every=12" for name in ("log", "validate", "picture", "checkpoint"))


def test_the_command_bounds_the_spinning_of_threads_before_torch(tmp_path):
    """GOMP_SPINCOUNT counts only if it is there when the library is loaded."""
    code = (
        "import os, sys\nfrom fmdiff import cli\nassert 'torch' not in sys.modules\n"
        "cli.main(['--version'])\nprint(os.environ['GOMP_SPINCOUNT'], 'torch' in sys.modules)"
    )
    for own, wanted in ((None, "20000"), ("7", "7")):
        environment = {k: v for k, v in os.environ.items() if not k.startswith(("GOMP", "OMP"))}
        environment |= {"GOMP_SPINCOUNT": own} if own else {}
        done = subprocess.run(
            [sys.executable, "-c", code], env=environment, capture_output=True, text=True
        )
        assert done.stdout.split()[-2:] == [wanted, "False"], done.stderr


# Sampling


def drawn(command, out, *words):
    assert command("sample", f"out={out}", *words) == 0
    with np.load(out / "samples.npz") as file:
        return file["arr_0"].astype(float)


def test_a_network_in_bfloat16_moves_a_float32_state(train, command, tmp_path):
    train(tmp_path / "run", *IMAGES, "trainer.max_steps=40", "trainer.warmup=0", "optim.lr=1e-2")
    words = (f"ckpt={tmp_path / 'run'}", "n=16", "steps=4", "device=cpu", "threads=1")
    exact, rough = (
        drawn(command, tmp_path / name, *words, f"precision={name}") for name in ("fp32", "bf16")
    )
    difference = np.abs(exact - rough)  # grey levels
    assert exact.std() > 10
    assert 0 < difference.max() <= 8 and difference.mean() < 1


def test_the_state_stays_float32_under_bfloat16(moons_run):
    field = load(moons_run)
    precision.hasten(field, "bf16", False, CPU)
    x_t = torch.randn(8, 2)
    v = field(x_t, torch.tensor(0.5))
    assert v.dtype == torch.float32
    assert not torch.equal(v, v.bfloat16().float())  # converted after the network, in float32
    precision.hasten(field, "bf16", False, CPU)
    assert not isinstance(field.net.net, precision.FastNet)  # once is enough


def test_both_models_of_a_guided_pair_are_hastened(moons_run, command, tmp_path, monkeypatch):
    nets = []

    class Counted(precision.FastNet):
        def __init__(self, net, *how):
            super().__init__(net, *how)
            nets.append(net)

    monkeypatch.setattr(precision, "FastNet", Counted)
    guide = ("guidance=autoguidance", f"guidance.ckpt={moons_run}", "guidance.w=2")
    words = (f"ckpt={moons_run}", "n=8", "steps=2", "precision=bf16", *guide, "device=cpu")
    drawn(command, tmp_path / "out", *words)
    assert len(nets) == 2 and nets[0] is not nets[1]


@pytest.mark.slow
def test_a_compiled_network_samples_the_same(command, digits_run, tmp_path):
    words = (f"ckpt={digits_run}", "n=16", "steps=4", "device=cpu", "batch_size=12")
    plain, fast = (
        drawn(command, tmp_path / str(on), *words, f"compile={on}") for on in ("false", "true")
    )
    assert np.abs(plain - fast).max() <= 1


def test_a_precision_for_float64_is_refused(command, digits_run, capfd):
    words = (f"ckpt={digits_run}", "n=1", "dtype=float64", "precision=bf16", "device=cpu")
    assert command("sample", *words) == 2
    assert "precision=bf16 does not go with dtype=float64" in capfd.readouterr().err
