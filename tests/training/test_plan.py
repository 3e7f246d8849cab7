"""What a run would cost: counted operations, memory, the plan and its warnings."""

import multiprocessing
import re
import subprocess
import sys
import time

import pytest
import torch
from conftest import IMAGES, PLAIN, POINTS

from fmdiff import cli
from fmdiff.build import named
from fmdiff.machine import cost, precision
from fmdiff.training import trial
from fmdiff.training.module import Training


@pytest.mark.parametrize(
    ("name", "billions"), [("dit_s", 6.06), ("dit_b", 23.01), ("dit_l", 80.71)]
)
def test_operations_are_the_published_ones(name, billions):
    """Peebles & Xie 2023, table 4: multiply-adds of 32 x 32 x 4 latents, patch 2."""
    with torch.device("meta"):
        net = named("model", name, shape=(4, 32, 32), classes=1000)
    assert cost.operations(net, (4, 32, 32), 1000) / 2e9 == pytest.approx(billions, rel=0.01)


def test_operations_of_a_linear_layer_and_a_convolution():
    class Net(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.conv = torch.nn.Conv2d(3, 5, 3, padding=1)
            self.linear = torch.nn.Linear(5 * 64, 7)

        def forward(self, x_t, t, y=None):
            return self.linear(self.conv(x_t).flatten(1))

    assert cost.operations(Net(), (3, 8, 8), 0) == 2 * (64 * 5 * 3 * 9 + 5 * 64 * 7)


@pytest.mark.parametrize("name", ["unet", "jit_mnist", "mlp"])
def test_activations_are_those_of_a_real_pass(name):
    shape = (2,) if name == "mlp" else (1, 28, 28)
    classes = 0 if name == "mlp" else 10
    net = named("model", name, shape=shape, classes=classes)
    own = {p.untyped_storage().data_ptr() for p in net.parameters()}

    def held(n):
        storages = {}

        def keep(tensor):
            storage = tensor.untyped_storage()
            if storage.data_ptr() not in own:
                storages[storage.data_ptr()] = storage
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(keep, lambda t: t):
            net(*cost.example(shape, classes, n, "cpu"))
        return sum(storage.nbytes() for storage in storages.values())

    real = held(9) - held(1)
    assert cost.activations(net, shape, classes) == pytest.approx(real / 8, rel=0.1)
    before = cost.memory(net, shape, classes, 64, 1, False)
    if name != "mlp":
        precision.recompute(net)
        assert cost.memory(net, shape, classes, 64, 1, False) < before


def test_peaks_are_found_by_the_name_of_the_device(monkeypatch):
    assert cost.peak(torch.device("cpu"), "fp32") is None
    cuda = torch.device("cuda")
    for name, units, rate in (
        ("NVIDIA H100 80GB HBM3", "bf16", 989e12),
        ("NVIDIA H100 PCIe", "fp16", 756e12),
        ("NVIDIA A100-SXM4-80GB", "tf32", 156e12),
        ("NVIDIA L40S", "fp32", 91.6e12),
        ("NVIDIA L4", "bf16", 121e12),
        ("Some other card", "bf16", None),
    ):
        monkeypatch.setattr(torch.cuda, "get_device_name", lambda _, name=name: name)
        assert cost.peak(cuda, units) == rate


@pytest.fixture
def planned(command, capfd, monkeypatch):
    """The lines of a plan by their first word; `note` has all of them."""
    monkeypatch.setattr(trial, "SECONDS", 0.2)

    def run(*words):
        capfd.readouterr()
        assert command("train", *PLAIN, *words, "plan=true") == 0
        said: dict[str, str] = {"note": ""}
        for line in capfd.readouterr().out.splitlines():
            first, _, rest = line.partition(" ")
            said[first] = f"{said.get('note')}\n{rest}" if first == "note" else rest.strip()
        return said

    return run


def test_a_plan_of_images(planned, tmp_path):
    words = ("trainer.max_steps=300", "trainer.accumulate=2", "trainer.checkpoint_every=100")
    words = (*words, "trainer.ema=[0.99]")
    said = planned(*IMAGES, *words)
    net = named(
        "model",
        "unet",
        shape=(1, 8, 8),
        classes=10,
        channels=8,
        multipliers=[1, 2],
        head_channels=8,
    )
    assert f"{sum(p.numel() for p in net.parameters()):,} parameters" in said["model"]
    assert said["batch"] == "8 images a step: 1 device x 2 x 4"
    assert said["length"] == "300 steps from the start, 2,400 images = 1.6 epochs of 1,500"
    # 0.99^68.97 = 1/2
    assert said["half-life"].startswith("0.99: 69 steps = 552 samples")
    speed = float(re.search(r"\(([\d.]+) steps/s", said["speed"])[1])
    hours, minutes, seconds = (
        float(number[1]) if (number := re.search(rf"(\d+) {unit}\b", said["time"])) else 0
        for unit in ("h", "min", "s")
    )
    whole = 3600 * hours + 60 * minutes + seconds
    assert whole == pytest.approx(300 / speed, rel=0.05, abs=0.6 if seconds else 31)
    assert "busy" in said["note"] or said["note"] == ""
    assert not list(tmp_path.iterdir())  # nothing is left behind


def test_a_plan_of_points(planned):
    said = planned(*POINTS, "trainer.max_steps=50")
    assert said["length"] == "50 steps from the start, 3,200 points, each drawn anew"
    assert "checkpoint_every is beyond the end" in said["note"]


def test_a_step_that_is_slow_is_tried_with_fewer_samples(planned, monkeypatch):
    """Forward and backward cost what the samples cost, the update of the weights what it costs."""
    pace = trial.Pace(0.5, 0.4, {"forward": 150, "backward": 250, "optimiser": 100}, 8, (1, 1))
    whole = pace.of(64)
    assert whole.seconds == pytest.approx(8 * 0.4 + 0.1)
    assert whole.cpu == pytest.approx(whole.seconds * 0.8)
    assert whole.parts == {"forward": 1200, "backward": 2000, "optimiser": 100}
    assert trial._absent(8, 64, 10_000, None) == 56 * 12_500
    monkeypatch.setattr(trial, "HEAVY", 0)
    monkeypatch.setattr(trial, "SLOW", 1e-9)
    said = planned(*IMAGES, "data.batch_size=16", "trainer.accumulate=2")
    assert said["batch"] == "16 images a step: 1 device x 2 x 8"
    assert "; tried with 2 images and scaled)" in said["speed"]


def cpu_of_steps(monkeypatch):
    """The seconds of CPU of the steps of a run, after the first ones."""
    marks, step = [], Training.training_step

    def marked(self, batch, index):
        marks.append((batch[0], time.process_time()))
        step(self, batch, index)

    monkeypatch.setattr(Training, "training_step", marked)
    return lambda: (marks[-1][1] - marks[2][1]) / (marks[-1][0] - marks[2][0])


@pytest.mark.parametrize(
    "words",
    [
        ("data=moons", "model.hidden=256", "data.batch_size=512", "trainer.max_steps=300"),
        pytest.param(
            (*IMAGES, "data.batch_size=64", "model.channels=16", "trainer.max_steps=20"),
            marks=pytest.mark.slow,
        ),
    ],
    ids=["points", "images"],
)
def test_a_plan_tells_the_time_of_a_step(planned, train, monkeypatch, tmp_path, words):
    """Within 15 % of a real run by CPU time, the best of three: others share the caches."""
    monkeypatch.setattr(trial, "SECONDS", 1.0)
    off = []
    for i in range(3):
        plan = float(re.search(r"([\d.e+]+) of CPU", planned(*words)["speed"])[1]) / 1e3
        with monkeypatch.context() as patch:
            cpu = cpu_of_steps(patch)
            train(tmp_path / str(i), *words, "trainer.checkpoint_every=1000")
            off.append(abs(plan / cpu() - 1))
        if off[-1] <= 0.15:
            return
    raise AssertionError(off)


@pytest.mark.slow
def test_a_plan_of_two_processes_tries_both(tmp_path):
    words = (*IMAGES, "trainer.devices=2", "trainer.max_steps=300")
    code = subprocess.run(
        [sys.executable, "-m", "fmdiff", "train", *PLAIN, *words, "plan=true"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
    )
    assert code.returncode == 0, code.stderr
    rows = dict(line.split(maxsplit=1) for line in code.stdout.splitlines())
    assert rows["batch"] == "8 images a step: 2 devices x 1 x 4"
    assert "on 2 processes of 1 CPU thread" in rows["speed"]
    assert code.stdout.count("parameters") == 1 and not list(tmp_path.iterdir())


def test_the_start_of_a_command_is_that_of_its_process():
    """Against the clock around the process; a second command begins where the first one ended."""
    code = (
        "import time; time.sleep(0.3)\n"
        "from fmdiff.machine import startup\n"
        "a = startup.elapsed(); startup.over(); print(*a, *startup.elapsed())"
    )
    begin = time.monotonic()
    said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    whole = time.monotonic() - begin
    clock, cpu, again, cpu_again = map(float, said.stdout.split())
    assert 0.3 <= clock <= whole + 0.02 and 0 < cpu < whole
    assert 0 <= again < clock - 0.2 and 0 <= cpu_again < 0.1


def test_a_sweep_of_plans_leaves_nothing(command, capfd, monkeypatch, tmp_path):
    monkeypatch.setattr(trial, "SECONDS", 0.0)
    words = ("-m", *PLAIN, *POINTS, "trainer.max_steps=50", "seed=0,1", "plan=true")
    for out in ((), ("out=swept",)):
        assert command("train", *words, *out) == 0
        assert capfd.readouterr().out.count("half-life") == 2 and not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("words", "slip"),
    [
        pytest.param(
            (*POINTS, "trainer.warmup=8000"),
            "is not over when the run ends",
            marks=pytest.mark.slow,
        ),
        ((*POINTS, "trainer.ema_warmup=false"), "remembers 6,931 steps of 8,000"),
        ((*POINTS, "trainer.max_time=1"), "the cosine never reaches 0"),
        pytest.param(
            (*POINTS, "trainer.max_steps=100"),
            "a killed run would start anew",
            marks=pytest.mark.slow,
        ),
        pytest.param(
            (*IMAGES, "data.batch_size=2000"),
            "more than the 1,500 training samples",
            marks=pytest.mark.slow,
        ),
        pytest.param(
            (*IMAGES, "trainer.max_steps=100"),
            "before it has seen all 1,500",
            marks=pytest.mark.slow,
        ),
        ((*IMAGES, "data.flip=true"), "a mirrored 2 is none"),
        pytest.param(
            (*IMAGES, "trainer.label_dropout=0"), "no unconditional branch", marks=pytest.mark.slow
        ),
        ((*IMAGES, "coupling=ot"), "pairs within a class, and a batch has 0 of each"),
        (
            (*POINTS, "path=vp", "objective.loss=v", "objective.t_eps=0"),
            "the v of path=vp is infinite at an end",
        ),
        (("data=mnist", *IMAGES[1:], "model.attention=[0]"), "attention is dear"),
    ],
)
def test_slips_are_told(planned, monkeypatch, words, slip, request):
    if "data=mnist" in words:
        request.getfixturevalue("mnist")
    # the trial is timed elsewhere: here two steps will do
    monkeypatch.setattr(trial, "SECONDS", 0.0)
    assert slip in planned(*words)["note"]


# processes with all imports and no memory of earlier tests, which they would use without growing
FORK = multiprocessing.get_context("forkserver")
FORK.set_forkserver_preload(["fmdiff.commands.train", "fmdiff.commands.plan", "fmdiff.report"])


def grow(sender, words, said):
    """Send the exit code of a command and by how many bytes the memory grew at most."""
    sys.stdout = sys.stderr = said.open("w")
    torch.set_num_threads(1)
    growth = cost.Growth()
    code = cli.main(list(words))
    sys.stdout.flush()
    sender.send((code, growth(torch.device("cpu"))))


def forked(words, said):
    """Run a command in a process of its own: by how many bytes its memory grew at most."""
    receiver, sender = FORK.Pipe()
    child = FORK.Process(target=grow, args=(sender, words, said))
    child.start()
    sender.close()
    code, size = receiver.recv()
    child.join()
    assert code == 0, said.read_text()
    return size


LARGE_DIT = ("model=dit_s", "model.width=96", "model.depth=3", "model.heads=3", "model.patch=1")


@pytest.mark.parametrize(
    ("words", "averages"),
    [
        (("data=moons", "model.hidden=1024", "data.batch_size=2048"), 1),
        pytest.param(
            ("data=moons", "model.hidden=2048", "data.batch_size=64"), 0, marks=pytest.mark.slow
        ),
        pytest.param(
            ("data=digits", "model=unet", "data.batch_size=128"), 2, marks=pytest.mark.slow
        ),
        pytest.param(("data=digits", *LARGE_DIT, "data.batch_size=64"), 0, marks=pytest.mark.slow),
    ],
    ids=["points", "wide", "unet", "dit"],
)
def test_a_plan_has_room_for_what_a_run_takes(tmp_path, words, averages):
    """The largest resident memory of a real run, with validation, pictures and checkpoints.

    Equal runs differ by up to a third, by the luck of the allocator: the least of three counts.
    """
    words = ("train", *PLAIN, *words, f"trainer.ema={[0.9, 0.99][:averages]}".replace(" ", ""))
    words += ("trainer.max_steps=4", "trainer.inner_steps=1")
    forked([*words, "plan=true", f"out={tmp_path / 'run'}"], tmp_path / "plan")
    line = re.search(r"memory +about ([\d.]+) (\w)B a device", (tmp_path / "plan").read_text())
    plan = float(line[1]) * {"M": 1e6, "G": 1e9}[line[2]]
    runs = [forked([*words, f"out={tmp_path / str(i)}"], tmp_path / "said") for i in range(3)]
    assert 0.5 * plan < min(runs) <= plan


def test_an_estimate_of_memory_has_room_too():
    """What the resident memory grew by in runs of 2 steps, in MB, with one CPU thread."""
    for name, keys, samples, averages, data, real in (
        ("mlp", {"hidden": 1024}, 4096, 0, (2,), 250),
        ("mlp", {"hidden": 1024}, 4096, 2, (2,), 276),
        ("mlp", {"hidden": 2048}, 64, 0, (2,), 233),
        ("mlp", {"hidden": 2048}, 64, 2, (2,), 268),
        ("unet", {}, 32, 0, (1, 8, 8), 97),
        ("unet", {}, 128, 1, (1, 8, 8), 177),
        ("unet", {}, 16, 1, (1, 28, 28), 286 - 55),  # without the data, as below
        ("unet", {}, 8, 1, (3, 32, 32), 370 - 184),
    ):
        classes = 0 if name == "mlp" else 10
        net = named("model", name, shape=data, classes=classes, **keys)
        estimate = cost.memory(net, data, classes, samples, averages, False) / 1e6
        assert real < 1.02 * estimate < 1.7 * real, (name, keys, samples, averages, estimate)


@pytest.fixture
def mnist():
    from fmdiff.data.files import available

    if not available("mnist"):
        pytest.skip("MNIST is not at hand: set FMDIFF_DATA")
