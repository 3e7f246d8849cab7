"""What must hold on a CUDA device. Each test compares it with float64 on the CPU or with itself.

Every test also runs on the CPU, where that says something, so that it is known to work before it
meets a GPU. `pytest -m cuda tests/gpu` runs the others; scripts/gpu.sh does that first.
"""

import copy

import numpy as np
import pytest
import torch
from conftest import IMAGES, POINTS, vector
from torch.nn.attention import SDPBackend, sdpa_kernel

from fmdiff import FmdiffError, Sampler, load, log_prob
from fmdiff.build import config_folder, named
from fmdiff.machine import cost, precision, processes
from fmdiff.metrics.features import Classifier
from fmdiff.models.layers import attend
from fmdiff.objectives.flow_matching import FlowMatching
from fmdiff.path import CondOT
from fmdiff.runs import checkpoint
from fmdiff.runs.find import find

GPUS = torch.cuda.device_count()
CUDA = pytest.param(
    "cuda",
    marks=[pytest.mark.cuda, pytest.mark.skipif(not GPUS, reason="needs a CUDA device")],
)
SLOW_CPU = pytest.param("cpu", marks=pytest.mark.slow)
on_both = pytest.mark.parametrize("device", ["cpu", CUDA])
only_cuda = pytest.mark.parametrize("device", [CUDA])
NETWORKS = {
    "unet": {"channels": 16, "multipliers": [1, 2], "head_channels": 16},
    "dit_cifar10": {"width": 32, "depth": 2, "heads": 2},
    "jit_mnist": {"width": 32, "depth": 3, "heads": 2, "bottleneck": 8},
    "ddpmpp": {"channels": 16, "multipliers": [1, 2], "blocks": 1, "dropout": 0.0},
}
# relative distance to float64: digits of the format, over some tens of layers
TOLERANCES = {"fp32": 1e-4, "tf32": 1e-2, "bf16": 3e-2, "fp16": 1e-2}
ON_CPU = ("fp32", "bf16")
COMPUTED = [("cpu", name) for name in ON_CPU] + [
    pytest.param("cuda", name, marks=CUDA.marks) for name in TOLERANCES
]
# of these solvers a step is something else than one or two evaluations of a plain field
ODD = ("jump", "edm_churn", "predictor_corrector")


@pytest.fixture(autouse=True)
def torch_defaults():
    """`precise` sets them for the whole process."""
    yield
    torch.set_float32_matmul_precision("highest")
    torch.backends.cudnn.allow_tf32 = True


def far(a, b):
    a, b = a.double().cpu(), b.double().cpu()
    return ((a - b).norm() / b.norm()).item()


# the gradient of a step


def network(name):
    """A small one whose output is not zero."""
    torch.manual_seed(0)
    net = named("model", name, shape=(1, 8, 8), classes=3, **NETWORKS[name])
    with torch.no_grad():
        for parameter in net.parameters():
            parameter += 0.05 * torch.randn_like(parameter)
    return net


def gradient(net, device="cpu", dtype=None, call=None):
    """That of 1024 times the mean loss of 16 images, in the network's own dtype.

    fp16 would round the gradient of the mean itself to 0 here and there.
    """
    draws = torch.Generator().manual_seed(1)
    own = next(net.parameters()).dtype
    x, eps = (torch.randn(16, 1, 8, 8, generator=draws).to(device, own) for _ in range(2))
    t, y = torch.rand(16, generator=draws).to(device, own), (torch.arange(16) % 4).to(device)
    objective = FlowMatching(CondOT(), 0.5, "v", None, 0.0, 0.0)
    with precision.cast(torch.device(device), dtype):
        loss = 1024 * objective(net if call is None else call, x, y, eps, t).mean()
    return torch.cat([g.flatten() for g in torch.autograd.grad(loss, list(net.parameters()))])


@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.parametrize(("device", "units"), COMPUTED)
def test_a_gradient_is_that_of_float64_to_the_digits_of_its_precision(name, device, units):
    where = torch.device(device)
    net = network(name)
    exact = gradient(copy.deepcopy(net).double())
    dtype = precision.precise(units, where)
    if precision.by_pixel(None, net, where):
        net.to(memory_format=torch.channels_last)
    error = far(gradient(net.to(where), where, dtype), exact)
    assert 0 < error < TOLERANCES[units]


@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.parametrize("device", [SLOW_CPU, CUDA])
def test_a_compiled_gradient_is_that_of_float64_too(name, device):
    where = torch.device(device)
    net = network(name)
    exact = gradient(copy.deepcopy(net).double())
    precision.precise("fp32", where)
    net = net.to(where)
    torch._dynamo.reset()
    assert far(gradient(net, where, call=torch.compile(net)), exact) < 1e-4


@pytest.mark.parametrize(("device", "units"), COMPUTED)
def test_attention_and_its_gradient_are_those_of_the_formula(device, units):
    """64 tokens in heads of 64, as in the U-Net of CIFAR-10; the fused kernel takes the layout."""
    where = torch.device(device)
    dtype = precision.precise(units, where) or torch.float32
    draws = torch.Generator().manual_seed(0)
    q, k, v, g = (torch.randn(2, 4, 64, 64, generator=draws).double() for _ in range(4))

    def both(formula, *tensors):
        tensors = [tensor.requires_grad_() for tensor in tensors]
        mixed = formula(*tensors)
        grads = torch.autograd.grad(mixed, tensors, g.to(mixed))
        return torch.cat([part.detach().double().cpu().flatten() for part in (mixed, *grads)])

    exact = both(lambda q, k, v: (q @ k.mT / 8).softmax(-1) @ v, q, k, v)
    fused = [SDPBackend.FLASH_ATTENTION, SDPBackend.EFFICIENT_ATTENTION]
    with sdpa_kernel(fused):  # raises where neither takes it
        mine = both(attend, *(part.detach().to(where, dtype) for part in (q, k, v)))
    assert 0 < far(mine, exact) < TOLERANCES[units]


# runs


def trained(train, folder, device, *words):
    return train(folder, *words, f"device={device}", "trainer.warmup=0")


@pytest.mark.parametrize(
    ("device", "units"),
    [("cpu", "bf16")]
    + [pytest.param("cuda", name, marks=CUDA.marks) for name in ("tf32", "bf16", "fp16")],
)
def test_a_run_in_another_precision_keeps_float32_weights_near_those_of_fp32(
    train, tmp_path, device, units
):
    words = (*IMAGES, "trainer.max_steps=6", "trainer.compile=false")
    runs = [
        trained(train, tmp_path / name, device, *words, f"trainer.precision={name}")
        for name in ("fp32", units)
    ]
    plain, other = (vector(run["weights"]["raw"]) for run in runs)
    assert other.dtype == torch.float32
    assert 0 < far(other, plain) < 2e-2


# words of runs that use different parts of a device: fused optimisers, threads that pair, masks
# of dropout, compiled losses
RESUMED = {
    "points": (*POINTS, "trainer.inner_steps=5"),
    "pairs": (*POINTS, "trainer.inner_steps=5", "coupling=ot"),
    "images": (*IMAGES, "model.dropout=0.1"),
}


@on_both
@pytest.mark.parametrize("kind", RESUMED)
def test_a_resumed_run_ends_where_the_whole_one_does(
    train, tmp_path, device, kind, record_property
):
    """Bit for bit on the CPU; on CUDA some kernels add in any order."""
    words = (*RESUMED[kind], "trainer.checkpoint_every=5", "trainer.log_every=5")
    whole = trained(train, tmp_path / "whole", device, *words, "trainer.max_steps=10")
    trained(
        train, tmp_path / "part", device, *words, "trainer.max_steps=10", "trainer.max_time=0.01"
    )
    assert checkpoint.read(find(tmp_path / "part"))["step"] < 10
    more = ("trainer.max_steps=10", "trainer.max_time=null", "resume=true")
    rest = trained(train, tmp_path / "part", device, *words, *more)
    a, b = (vector(run["weights"]["raw"]) for run in (whole, rest))
    record_property("equal bits", torch.equal(a, b))
    assert torch.equal(a, b) or (device == "cuda" and far(b, a) < 1e-4)


@on_both
@pytest.mark.parametrize(
    "name", sorted(path.stem for path in (config_folder() / "optim").glob("*.yaml"))
)
def test_every_optimiser_lowers_the_loss(train, tmp_path, device, name):
    if name == "schedule_free":
        pytest.importorskip("schedulefree", reason="needs the package schedulefree")
    words = (*POINTS, f"optim={name}", "trainer.log_every=25", "trainer.compile=false")
    words += ("trainer.decay=constant",)  # which schedule_free needs
    trained(train, tmp_path / "run", device, *words, "trainer.max_steps=50")
    rows = (tmp_path / "run" / "metrics.csv").read_text().splitlines()
    columns = [dict(zip(rows[0].split(","), row.split(","), strict=True)) for row in rows[1:]]
    losses = [float(row["loss"]) for row in columns]
    assert len(losses) == 2 and losses[1] < losses[0]


@on_both
@pytest.mark.parametrize(
    ("objective", "words"),
    [
        ("lsd", POINTS),
        pytest.param("meanflow", IMAGES, id="meanflow of images"),
    ],
)
def test_a_flow_map_trains_and_jumps(train, command, tmp_path, device, objective, words):
    """Forward-mode derivatives of the network, which fused kernels lack; compiled on CUDA."""
    words = (*words, f"objective={objective}", "trainer.max_steps=3")
    run = trained(train, tmp_path / "run", device, *words)
    assert vector(run["weights"]["raw"]).isfinite().all()
    words = (f"ckpt={tmp_path / 'run'}", f"device={device}", "n=8", "steps=2")
    assert command("sample", *words, f"out={tmp_path / 'jumps'}") == 0


@only_cuda
def test_a_plan_knows_the_memory_and_the_peak(command, capfd, device, monkeypatch):
    monkeypatch.setattr("fmdiff.training.trial.SECONDS", 1.0)
    assert command("train", *IMAGES, f"device={device}", "plan=true") == 0
    lines = capfd.readouterr().out
    assert "B in the trial" in lines and torch.cuda.get_device_name() in lines
    known = cost.peak(torch.device(device), "fp32") is not None
    assert ("of the device's peak" in lines) == known


# samples and densities

solvers = sorted(path.stem for path in (config_folder() / "solver").glob("*.yaml"))


@on_both
@pytest.mark.parametrize("name", [name for name in solvers if name not in ODD])
def test_samples_in_float32_are_those_of_float64(device, name):
    """The noise is the same on all devices. An adaptive solver keeps its tolerance."""
    field = load("zoo:moons")
    plan = {"solver": name} | ({} if named("solver", name).adaptive else {"steps": 8})
    try:
        exact = Sampler(**plan, dtype=torch.float64).draw(copy.deepcopy(field), 32).x
    except FmdiffError as refusal:
        pytest.skip(str(refusal))
    mine = Sampler(**plan, device=device).draw(field, 32).x
    assert 0 < far(mine, exact) < 1e-3


@on_both
def test_guided_images_in_float32_are_those_of_float64(command, tmp_path, device):
    words = ("ckpt=zoo:digits", "n=20", "nfe=16", "guidance=cfg", "guidance.w=2", "threads=1")
    images = []
    for where, dtype in (("cpu", "float64"), (device, "float32")):
        out = tmp_path / dtype
        assert command("sample", *words, f"device={where}", f"dtype={dtype}", f"out={out}") == 0
        with np.load(out / "samples.npz") as archive:
            images.append(archive["arr_0"].astype(int))
    difference = np.abs(images[0] - images[1])
    assert images[0].std() > 10
    assert difference.max() <= 1 and (difference > 0).mean() < 1e-3


@only_cuda
@pytest.mark.parametrize("words", [("precision=bf16",), ("precision=fp16",), ("compile=true",)])
def test_fast_samples_are_near(command, tmp_path, device, words):
    images = []
    for name, more in (("plain", ("compile=false",)), ("fast", words)):
        words = (
            "ckpt=zoo:digits",
            "n=20",
            "steps=6",
            f"device={device}",
            f"out={tmp_path / name}",
        )
        assert command("sample", *words, *more) == 0
        with np.load(tmp_path / name / "samples.npz") as archive:
            images.append(archive["arr_0"].astype(int))
    difference = np.abs(images[0] - images[1])
    assert difference.mean() < 1 and difference.max() <= 16


@on_both
@pytest.mark.parametrize("divergence", ["exact", "hutchinson"])
def test_densities_in_float32_are_those_of_float64(device, divergence):
    field = load("zoo:moons")
    x = torch.randn(16, 2, generator=torch.Generator().manual_seed(0)) / 2
    options = {"steps": 8, "divergence": divergence}
    exact = log_prob(copy.deepcopy(field), x, **options, dtype=torch.float64)
    mine = log_prob(field, x, **options, device=device, dtype=torch.float32)
    error = (mine.cpu() - exact.cpu()).abs().max().item()
    assert 0 < error < 1e-2


@on_both
def test_features_are_those_of_float64(device):
    draws = torch.Generator().manual_seed(0)
    pixels = torch.randint(256, (8, 32, 32, 3), dtype=torch.uint8, generator=draws)
    judge = Classifier("cifar10").to(device)
    mine, _ = judge(pixels)
    x = pixels.permute(0, 3, 1, 2).double() / 127.5 - 1
    exact, _ = copy.deepcopy(judge.net).cpu().double()(x)
    assert 0 < far(mine, exact) < 1e-4


@on_both
def test_images_stay_on_the_device(device):
    data = named("data", "digits")
    x, y = data.batch(0, 0, device=device)
    assert {part.device.type for part in (x, y, *data.train)} == {device}
    again, _ = named("data", "digits").batch(0, 0)
    assert torch.equal(x.cpu(), again)


# processes


@on_both
def test_one_process_exchanges_what_it_has(device):
    """The collectives of a run of several devices, in a world of one: NCCL, or gloo on the CPU."""
    where = torch.device(device)
    store = torch.distributed.HashStore()
    backend = "cpu:gloo,cuda:nccl" if device == "cuda" else "gloo"
    torch.distributed.init_process_group(backend, store=store, rank=0, world_size=1)
    try:
        net = network("unet").to(where)
        alone = gradient(net, where)
        parallel = torch.nn.parallel.DistributedDataParallel(net)
        assert far(gradient(net, where, call=parallel), alone) < 1e-5
        flag = torch.tensor(3, device=where)
        torch.distributed.all_reduce(flag, op=torch.distributed.ReduceOp.MAX)
        values = [None]
        torch.distributed.all_gather_object(values, {"loss": 0.5})
        torch.distributed.barrier()
        assert flag.item() == 3 and values == [{"loss": 0.5}]
    finally:
        processes.leave()


@pytest.mark.parametrize(
    "device",
    [
        pytest.param(
            "cuda",
            marks=[
                pytest.mark.cuda,
                pytest.mark.skipif(GPUS < 2, reason="needs two CUDA devices"),
            ],
        )
    ],
)
def test_two_devices_make_the_same_run(train, tmp_path, device):
    words = (*IMAGES, "trainer.max_steps=6", "trainer.compile=false")
    one, two = (
        trained(train, tmp_path / str(count), device, *words, f"trainer.devices={count}")
        for count in (1, 2)
    )
    assert far(vector(two["weights"]["raw"]), vector(one["weights"]["raw"])) < 1e-4
