"""Averages of networks whose buffers change: normalisation layers, spectral norm, one's own."""

import math
import signal

import pytest
import torch
from conftest import POINTS, metrics
from test_training import INTERVALS, interrupt, spoil
from torch import nn

import fmdiff
from fmdiff.ema import Averages
from fmdiff.metrics.distances import sliced_wasserstein2
from fmdiff.runs import averages
from fmdiff.runs.content import Checkpoint

OWN = """
import torch
from torch import nn


class Own(nn.Module):
    def __init__(self, shape, classes=0, kind="batch"):
        super().__init__()
        wide = 64
        spectral = {
            "spectral": nn.utils.parametrizations.spectral_norm, "old": nn.utils.spectral_norm
        }.get(kind, nn.Identity())
        norm = nn.BatchNorm1d if kind == "batch" else lambda _: nn.Identity()
        self.net = nn.Sequential(
            nn.Linear(shape[0] + 3, wide), norm(wide), nn.SiLU(),
            spectral(nn.Linear(wide, wide)), norm(wide), nn.SiLU(), nn.Linear(wide, shape[0]),
        )

    def forward(self, x, t, y=None):
        u = t[:, None] / 1000
        return self.net(torch.cat([x, u, (3 * u).sin(), (9 * u).sin()], dim=1))
"""


class Counted(nn.Module):
    """Every kind of buffer, and one that is replaced rather than written to."""

    def __init__(self):
        super().__init__()
        self.first = nn.BatchNorm1d(4)
        self.second = nn.utils.parametrizations.spectral_norm(nn.Linear(4, 4))
        self.third = nn.utils.spectral_norm(nn.Linear(4, 4))
        self.register_buffer("scale", torch.ones(()))
        self.register_buffer("absent", None)
        self.register_buffer("angles", torch.arange(4.0), persistent=False)

    def forward(self, x):
        self.scale = 0.9 * self.scale + 0.1 * x.detach().std()
        return self.third(self.second(self.first(x))) / self.scale


def steps(count, *averages):
    """Train `Counted` for some steps, and yield it after each of them, the averages updated."""
    net = averages[0][0]
    optimiser = torch.optim.SGD(net.parameters(), 0.1)
    for k in range(1, count + 1):
        optimiser.zero_grad()
        net(2 + torch.randn(8, 4)).square().mean().backward()
        optimiser.step()
        for _, average in averages:
            average.update(net.parameters(), k)
        yield net


@pytest.fixture
def net():
    torch.manual_seed(0)
    return Counted()


def test_an_average_of_decay_0_is_the_network_bit_for_bit(net):
    average = Averages(net, [0.0], False)
    for now in steps(5, (net, average)):
        state, raw = average[0].state_dict(), now.state_dict()
        assert list(state) == list(raw)
        assert all(torch.equal(value, raw[key]) for key, value in state.items())


def test_statistics_are_averaged_and_other_buffers_copied(net):
    average, expected = Averages(net, [0.8], False), {}
    keys = ("first.running_mean", "first.running_var", "first.weight")
    start = {key: net.state_dict()[key].double() for key in keys}
    expected.update(start)
    for now in steps(9, (net, average)):
        raw = {key: value.clone() for key, value in now.state_dict().items()}
        for key in keys:
            expected[key] = 0.8 * expected[key] + 0.2 * raw[key].double()
    state = average[0].state_dict()
    for key in keys:
        torch.testing.assert_close(state[key].double(), expected[key], rtol=1e-5, atol=1e-6)
        assert not torch.equal(state[key], raw[key])
    others = [key for key, _ in now.named_buffers() if key in raw and key not in keys]
    assert len(others) == 6 and "third.weight_u" in others and "scale" in others
    assert all(torch.equal(state[key], raw[key]) for key in others)
    assert state["first.num_batches_tracked"] == 9


def test_an_average_under_spectral_norm_has_norm_one(net):
    average = Averages(net, [0.99], True)
    for _ in steps(300, (net, average)):
        pass
    for layer in (average[0].second, average[0].third):
        layer(torch.zeros(1, 4))  # the older form computes its weight in a call
        assert torch.linalg.matrix_norm(layer.weight, 2).item() == pytest.approx(1, abs=0.05)


def test_buffers_of_a_power_average_are_reconstructed(net, tmp_path):
    net = nn.Sequential(
        nn.BatchNorm1d(4), nn.utils.parametrizations.spectral_norm(nn.Linear(4, 4))
    )
    both, truth = Averages(net, [], True, [0.05, 0.1]), Averages(net, [], True, [0.07])
    for k, _ in enumerate(steps(400, (net, both), (net, truth)), start=1):
        if k % 20 == 0:
            averages.save(tmp_path, k, both)
    content = Checkpoint(400, {}, both.named(net), {})
    state = averages.reconstruct(content, tmp_path, 0.07)
    for key, value in truth[0].state_dict().items():
        torch.testing.assert_close(state[key], value, rtol=0.02, atol=0.02)
    for key in ("0.num_batches_tracked", *(f"1.parametrizations.weight.0._{uv}" for uv in "uv")):
        assert torch.equal(state[key], net.state_dict()[key])


# Runs


@pytest.fixture
def own(tmp_path):
    """The words that choose the network above, for a command in tmp_path."""
    (tmp_path / "conf" / "model").mkdir(parents=True)
    (tmp_path / "own_buffers.py").write_text(OWN)
    for kind in ("batch", "spectral", "old"):
        text = f"_target_: own_buffers.Own\nkind: {kind}\n"
        (tmp_path / "conf" / "model" / f"own_{kind}.yaml").write_text(text)
    return (*POINTS[::2], "--config-dir=conf", *INTERVALS)


@pytest.mark.parametrize("kind", ["batch", "spectral"])
def test_an_average_samples_as_well_as_the_network(train, own, tmp_path, kind):
    words = (*own, f"model=own_{kind}", "trainer.max_steps=400", "optim.lr=3e-3")
    train(tmp_path / "run", *words, "trainer.decay=constant", "trainer.power_ema=[0.1]")
    real = fmdiff.build.named("data", "moons").sample(0, 2000, 5)[0]
    off = {}
    for weights in ("raw", "ema", "power:0.1"):
        field = fmdiff.load(tmp_path / "run", weights, trust=("own_buffers.",))
        x = fmdiff.generate(field, 2000, steps=10, seed=1).x
        off[weights] = sliced_wasserstein2(x, real)
    assert max(off["ema"], off["power:0.1"]) < 1.2 * off["raw"]
    losses = [float(row["val_loss"]) for row in metrics(tmp_path / "run") if row["val_loss"]]
    assert losses[-1] < 0.8 * losses[0]


@pytest.mark.parametrize("kind", ["batch", "spectral"])
def test_a_network_with_buffers_resumes_bit_identically(train, own, tmp_path, monkeypatch, kind):
    words = (*own, f"model=own_{kind}", "trainer.max_steps=20", "trainer.inner_steps=1")
    whole = train(tmp_path / "whole", *words)
    with monkeypatch.context() as patch:
        interrupt(patch, 7, lambda: signal.raise_signal(signal.SIGTERM))
        train(tmp_path / "run", *words, code=143)
    assert train(tmp_path / "run", *words, "resume=true")["checksums"] == whole["checksums"]
    assert metrics(tmp_path / "run") == metrics(tmp_path / "whole")


@pytest.mark.parametrize("ema", ["[]", "[0.9]"])
def test_a_network_that_cannot_be_copied_once_called_is_validated(train, own, tmp_path, ema):
    words = (*own, "model=own_old", "trainer.max_steps=20", f"trainer.ema={ema}")
    train(tmp_path / "run", *words)
    rows = [row["val_loss"] for row in metrics(tmp_path / "run") if row["val_loss"]]
    assert len(rows) == 2 and all(math.isfinite(float(loss)) for loss in rows)


@pytest.mark.fault
def test_a_step_that_is_skipped_leaves_no_trace_in_buffers(train, own, tmp_path, monkeypatch):
    """A skipped step leaves no NaN in the statistics of a normalisation layer."""
    spoil(monkeypatch, 3)
    words = (*own, "model=own_batch", "trainer.max_steps=10", "trainer.skip_nonfinite=1")
    weights = train(tmp_path / "run", *words)["weights"]
    for state in weights.values():
        assert all(value.isfinite().all() for value in state.values())
    assert weights["raw"]["net.1.num_batches_tracked"] == 9
    last = metrics(tmp_path / "run")[-1]
    assert math.isfinite(float(last["val_loss"]))
