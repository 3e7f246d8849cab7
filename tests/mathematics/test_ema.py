"""Power-function averages against their profiles, and reconstruction against direct tracking."""

import json
import signal
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import PLAIN, POINTS, metrics, vector
from scipy.integrate import quad
from test_training import interrupt, module
from torch import nn

import fmdiff
from fmdiff.ema import Averages, gamma, power
from fmdiff.errors import FmdiffError
from fmdiff.runs import averages, checkpoint
from fmdiff.runs.content import Checkpoint

WIDTHS = [0.05, 0.1]
RUN = (*POINTS, "trainer.max_steps=200", "trainer.power_ema=[0.05,0.10]", "trainer.ema=[0.9]")
SNAPSHOTS = ("trainer.snapshot_every=10", "trainer.checkpoint_every=100", "trainer.inner_steps=5")


def profile(tau, width, t):
    """p of equation 2 at tau, float64."""
    g = gamma(width)
    return (g + 1) * (np.asarray(tau, float) / t) ** g / t


class Walk(nn.Module):
    """Eleven weights that go their own way, and constants that an average must leave alone."""

    def __init__(self):
        super().__init__()
        self.weight, self.bias = nn.Parameter(torch.zeros(2, 5)), nn.Parameter(torch.zeros(1))
        self.register_buffer("scale", torch.tensor([0.1, 7e3]))
        self.register_buffer("count", torch.tensor(3))

    @torch.no_grad()
    def go(self, generator):
        for p in self.parameters():
            p += torch.randn(p.shape, generator=generator)


# Profiles


@pytest.mark.parametrize(("width", "published"), [(0.05, 16.97), (0.10, 6.94)])
def test_gamma_is_that_of_the_paper(width, published):
    assert gamma(width) == pytest.approx(published, abs=0.005)


@pytest.mark.parametrize("width", [0.001, 0.02, 0.05, 0.1, 0.2, 0.28, 0.2886751])
def test_gamma_gives_the_width_back(width):
    g = gamma(width)
    assert g >= 0
    assert (g + 1) ** 0.5 / ((g + 2) * (g + 3) ** 0.5) == pytest.approx(width, rel=1e-9)


@pytest.mark.parametrize("width", [0, -0.1, 0.3, 12**-0.5, float("nan"), 1e-300])
def test_what_is_no_width_is_refused(width):
    with pytest.raises(FmdiffError, match="above 0 and below"):
        gamma(width)


@pytest.mark.parametrize("width", [0.03, 0.1, 0.25])
def test_an_average_is_the_sum_over_the_profile(width):
    net, generator = Walk(), torch.Generator().manual_seed(0)
    averages, t, seen = Averages(net, [], True, [width]), 60, []
    for k in range(1, t + 1):
        net.go(generator)
        averages.update(net.parameters(), k)
        seen.append(vector(dict(net.named_parameters())).double().detach())
    shares = [quad(profile, k - 1, k, args=(width, t))[0] for k in range(1, t + 1)]
    assert sum(shares) == pytest.approx(1, abs=1e-10)
    expected = torch.tensor(shares, dtype=torch.float64) @ torch.stack(seen)
    got = vector(dict(averages[0].named_parameters())).double()
    torch.testing.assert_close(got, expected, rtol=1e-5, atol=1e-5)


def test_the_width_of_what_is_averaged_is_the_one_asked_for():
    net = nn.Linear(1, 2, bias=False).double()
    widths, t = [0.02, 0.05, 0.1, 0.2, 0.28], 4000
    averages = Averages(net, [], True, widths)
    for k in range(1, t + 1):
        net.weight.data = torch.tensor([[k / t], [(k / t) ** 2]], dtype=torch.float64)
        averages.update(net.parameters(), k)
    for width, average in zip(widths, averages, strict=True):
        first, second = average.weight.flatten().tolist()
        g = gamma(width)
        assert first == pytest.approx((g + 1) / (g + 2), abs=1 / t)
        assert (second - first**2) ** 0.5 == pytest.approx(width, rel=1e-3)


def test_decays_come_first_and_are_left_as_they_were():
    net, generator = Walk(), torch.Generator().manual_seed(0)
    both, alone = Averages(net, [0.5, 0.9], False, WIDTHS), Averages(net, [0.5, 0.9], False)
    for k in range(1, 9):
        net.go(generator)
        both.update(net.parameters(), k)
        alone.update(net.parameters(), k)
    names = ["raw", "0.5", "0.9", "power:0.05", "power:0.1"]
    assert list(both.named(net)) == names
    for name, state in alone.named(net).items():
        assert all(torch.equal(v, both.named(net)[name][k]) for k, v in state.items())
    m = module(ema=[], power_ema=WIDTHS)
    assert m.field().net is m.averages[0] and m.averages.gammas[0] == gamma(0.05)


# Every nth step


def shares_of_steps(t, decay=None, width=None):
    """What steps 1 ... t weigh in an average of every step, and its start (t + 1,), by hand."""
    d = np.array(
        [
            min(decay, (1 + k) / (10 + k)) if width is None else (1 - 1 / k) ** (gamma(width) + 1)
            for k in range(1, t + 1)
        ]
    )
    left = np.cumprod(np.append(d, 1.0)[::-1])[::-1]  # what is left of step k - 1 at t
    return np.concatenate([[left[0]], (1 - d) * left[1:]])


@pytest.mark.parametrize("every", [1, 2, 7])
@pytest.mark.parametrize("kind", [{"decay": 0.9}, {"decay": 0.5}, {"width": 0.1}])
def test_a_block_of_steps_weighs_what_its_steps_weigh(kind, every):
    net, generator, t = Walk(), torch.Generator().manual_seed(0), 61
    decays, widths = ([kind["decay"]], []) if "decay" in kind else ([], [kind["width"]])
    averages, seen = Averages(net, decays, True, widths, every), [np.zeros(11)]
    for k in range(1, t + 1):
        net.go(generator)
        averages.update(net.parameters(), k)
        seen.append(vector(dict(net.named_parameters())).double().detach().numpy())
    last = t - t % every
    shares, expected = shares_of_steps(last, **kind), np.zeros(11)
    for k in range(last + 1):
        block = k if k < every else min(last, -(-k // every) * every)
        expected += shares[k] * seen[block]
    got = vector(dict(averages[0].named_parameters())).double().numpy()
    np.testing.assert_allclose(got, expected, atol=2e-5)


@pytest.mark.parametrize("kind", [([0.99], []), ([], [0.1])])
def test_averages_of_every_nth_step_keep_a_constant(kind):
    net = nn.Linear(2, 2, bias=False).double()
    decays, widths = kind
    averages, constant = Averages(net, decays, True, widths, 5), net.weight.detach().clone()
    for k in range(1, 101):
        averages.update(net.parameters(), k)
    torch.testing.assert_close(averages[0].weight.data, constant, rtol=1e-12, atol=0)


@pytest.mark.parametrize("every", [2, 10])
def test_on_a_moving_weight_the_average_is_ahead_by_what_the_docstring_says(every):
    """Lags behind a weight that moves by 1 a step: d / (1 - d), and n d^n / (1 - d^n)."""
    net, d, t = nn.Linear(1, 1, bias=False).double(), 0.98, 2000
    one, other = Averages(net, [d], False), Averages(net, [d], False, None, every)
    for k in range(1, t + 1):
        net.weight.data.fill_(k)
        one.update(net.parameters(), k)
        other.update(net.parameters(), k)
    lags = [t - average[0].weight.item() for average in (one, other)]
    wanted = [d / (1 - d), every * d**every / (1 - d**every)]
    assert lags == pytest.approx(wanted, abs=1e-9)
    assert 0 < lags[0] - lags[1] < (every - 1) / 2


# Reconstruction


def doubles(*values):
    return torch.tensor(values, dtype=torch.float64)


def test_inner_products_are_the_integrals():
    cases = [(0.05, 300.0), (0.1, 300.0), (0.1, 500.0), (0.28, 80.0)]
    t, g = doubles(*(t for _, t in cases)), doubles(*(gamma(w) for w, _ in cases))
    got = averages.products(t, g, t, g)

    def both(tau, a, s, b, u):
        return profile(tau, a, s) * profile(tau, b, u)

    for i, one in enumerate(cases):
        for j, other in enumerate(cases):
            want = quad(both, 0, min(one[1], other[1]), args=(*one, *other))[0]
            assert got[i, j].item() == pytest.approx(want, rel=1e-7)


@pytest.mark.parametrize("width", [0.04, 0.07, 0.15, 0.25])
def test_factors_are_the_least_squares_of_the_profiles_on_a_grid(width):
    """Written out with numpy: midpoints for the integrals, the sum eliminated."""
    steps, end = [250.0, 500.0, 750.0, 1000.0], 1000
    t = doubles(*(s for s in steps for _ in WIDTHS))
    factors, off = averages.combine(t, doubles(*map(gamma, WIDTHS * len(steps))), end, [width])
    tau = (np.arange(40_000) + 0.5) / 40
    columns = [np.where(tau < s, profile(tau, w, s), 0) for s in steps for w in WIDTHS]
    basis, wanted = np.stack(columns, 1), profile(tau, width, end)
    free = np.linalg.lstsq(basis[:, 1:] - basis[:, :1], wanted - basis[:, 0], rcond=None)[0]
    expected = np.concatenate([[1 - free.sum()], free])
    np.testing.assert_allclose(factors[:, 0].numpy(), expected, atol=1e-3)
    assert factors.sum().item() == pytest.approx(1, abs=1e-12)
    error = np.linalg.norm(basis @ factors[:, 0].numpy() - wanted) / np.linalg.norm(wanted)
    assert off.item() == pytest.approx(error, rel=1e-3)


def test_a_width_that_is_there_is_given_back():
    t, g = doubles(50, 50, 100, 100), doubles(*map(gamma, WIDTHS * 2))
    factors, off = averages.combine(t, g, 100, WIDTHS)
    torch.testing.assert_close(factors, torch.eye(4, dtype=torch.float64)[:, 2:])
    assert off.max() < 1e-6


@pytest.fixture(scope="module")
def walked(tmp_path_factory):
    """A random walk of 1,000 steps: its folder of 20 snapshots, content, widths followed."""
    run, net, generator = tmp_path_factory.mktemp("walk"), Walk(), torch.Generator()
    generator.manual_seed(0)
    kept = Averages(net, [], True, WIDTHS)
    followed = Averages(net, [], True, [0.04, 0.07, 0.15])
    for k in range(1, 1001):
        net.go(generator)
        kept.update(net.parameters(), k)
        followed.update(net.parameters(), k)
        if k % 50 == 0:
            averages.save(run, k, kept)
    return run, Checkpoint(1000, {}, kept.named(net)), followed


@pytest.mark.parametrize(("i", "width"), list(enumerate([0.04, 0.07, 0.15])))
def test_a_width_in_between_is_reconstructed(walked, i, width):
    run, content, followed = walked
    state = averages.reconstruct(content, run, width)
    truth = followed[i].state_dict()
    weights = [name for name, _ in followed[i].named_parameters()]

    def distance(other):
        return sum((other[k].double() - truth[k].double()).square().sum() for k in weights) ** 0.5

    nearest = min(distance(content.weights[power(w)]) for w in WIDTHS)
    assert distance(state) < 0.01 * nearest
    assert torch.equal(state["scale"], truth["scale"]) and state["count"] == 3
    assert all(state[k].dtype == v.dtype for k, v in truth.items())


def test_snapshots_of_later_steps_are_not_asked(walked):
    run, content, _ = walked
    assert averages.reach(content, run)[0] == 19  # and the checkpoint's own averages
    assert averages.reach(replace(content, step=500), run)[0] == 9


def test_more_snapshots_reach_further(walked):
    run, content, _ = walked
    [(low, high)] = averages.reach(content, run)[1]
    [(less_low, less_high)] = averages.reach(replace(content, step=150), run)[1]
    assert low < less_low < 0.05 and 0.1 < less_high < high


def test_what_cannot_be_reconstructed_is_said(walked, tmp_path):
    run, content, _ = walked
    with pytest.raises(FmdiffError, match=r"power:0\.01: the 19 snapshots.*they give widths of"):
        averages.reconstruct(content, run, 0.01)
    for missing in (tmp_path, None):
        with pytest.raises(FmdiffError, match=r"power:0\.07: .*no snapshots of earlier steps"):
            averages.reconstruct(content, missing, 0.07)
    with pytest.raises(FmdiffError, match=r"power:0\.07: this checkpoint holds raw; .*power_ema"):
        averages.reconstruct(Checkpoint(9, {}, {"raw": {}}), run, 0.07)


def test_a_damaged_snapshot_is_named(walked, tmp_path):
    run, content, _ = walked
    (tmp_path / "averages").mkdir()
    for file in (run / "averages").iterdir():
        (tmp_path / "averages" / file.name).write_bytes(file.read_bytes())
    broken = tmp_path / "averages" / "0000500.pt"
    broken.write_bytes(broken.read_bytes()[:900])
    with pytest.raises(FmdiffError, match=r"0000500\.pt is damaged"):
        averages.reconstruct(content, tmp_path, 0.07)


# Runs


@pytest.fixture(scope="module")
def power_run(tmp_path_factory):
    """outputs/NAME/DATE of 200 steps; 0.07 followed in a run beside it."""
    from conftest import _trained

    outputs = tmp_path_factory.mktemp("work") / "outputs" / "power"
    outputs.mkdir(parents=True)
    _trained(outputs / "other", *RUN, *SNAPSHOTS, "trainer.power_ema=[0.07]")
    return _trained(outputs / "run", *RUN, *SNAPSHOTS)


def names(run):
    return sorted(path.name for path in (run / "averages").iterdir())


def test_a_run_keeps_snapshots_that_reconstruct(power_run):
    assert names(power_run) == [f"{step:07d}.pt" for step in range(10, 201, 10)]
    content = checkpoint.read(power_run / "averages" / "0000100.pt")
    assert content["step"] == 100 and content["widths"] == WIDTHS
    stored = checkpoint.read(power_run / "0000100.ckpt")["weights"]
    assert list(stored) == ["raw", "0.9", "power:0.05", "power:0.1"]
    for name, state in content["weights"].items():
        assert all(torch.equal(v, stored[name][k]) for k, v in state.items())
    truth = vector(fmdiff.load(power_run.parent / "other", weights="power:0.070").net.state_dict())
    got, stored = (
        vector(fmdiff.load(power_run, weights=f"power:{w}").net.state_dict()) for w in (0.07, 0.05)
    )
    assert (got - truth).norm() < 0.02 * (stored - truth).norm()
    first = fmdiff.load(power_run, weights="ema").net.state_dict()
    again = fmdiff.load(power_run, weights=0.9).net.state_dict()
    assert all(torch.equal(v, again[k]) for k, v in first.items())


def test_a_stored_width_needs_no_snapshots(power_run, tmp_path):
    alone = tmp_path / "alone.ckpt"
    alone.write_bytes((power_run / "last.ckpt").read_bytes())
    a = fmdiff.load(alone, weights="power:0.10").net.state_dict()
    stored = checkpoint.read(alone)["weights"]["power:0.1"]
    assert all(torch.equal(v, stored[k]) for k, v in a.items())
    with pytest.raises(FmdiffError, match="no snapshots"):
        fmdiff.load(alone, weights="power:0.07")
    with pytest.raises(FmdiffError, match="snapshot of averages"):
        fmdiff.load(power_run / "averages" / "0000100.pt")
    for text in ("power:", "power:wide"):
        with pytest.raises(FmdiffError, match="takes a number"):
            fmdiff.load(alone, weights=text)


def test_the_command_line_reconstructs_and_says_so(power_run, command, monkeypatch, capfd):
    monkeypatch.chdir(power_run.parents[2])
    newest = power_run / "last.ckpt"
    (power_run / "averages" / "0000200.pt").touch()  # ckpt=last looks for the newest checkpoint
    words = ("n=200", "steps=2", "device=cpu", "weights=power:0.07")
    assert command("sample", "ckpt=last", *words, "metrics=[sw2]", "out=drawn") == 0
    assert "power:0.07: reconstructed from 19 snapshots" in capfd.readouterr().err
    assert np.isfinite(np.load("drawn/samples.npz")["arr_0"]).all()
    for file in ("drawn/sample.json", "drawn/results.json"):
        of = json.loads(Path(file).read_text())["checkpoint"]
        assert of["average"] == "power:0.07" and Path(of["path"]).parent.samefile(newest.parent)
    assert command("sample", f"ckpt={power_run}", "n=4", "steps=2", "out=usual") == 0
    assert json.loads(Path("usual/sample.json").read_text())["checkpoint"]["average"] == "0.9"
    assert command("sample", f"ckpt={power_run}", "n=4", "weights=power:0.01", "out=none") == 2
    said = capfd.readouterr().err.splitlines()[-1]
    assert "power:0.01" in said and "5%" in said and "widths of 0.0" in said


def test_info_lists_the_averages(power_run, command, capfd):
    assert command("info", f"ckpt={power_run}") == 0
    rows = dict(
        line.split(maxsplit=1) for line in capfd.readouterr().out.splitlines() if " " in line
    )
    assert rows["0.9"].startswith("half-life 6.6 steps, 421 points")
    assert rows["power:0.05"].startswith("over steps 189 +- 10: mean 94.7% and standard deviation")
    assert rows["power:WIDTH"].startswith("by 19 snapshots, widths 0.0")


def test_a_resumed_run_has_the_same_averages(train, tmp_path, monkeypatch):
    words = (*RUN, "trainer.snapshot_every=30", "trainer.checkpoint_every=50")
    words += ("trainer.max_steps=100", "trainer.inner_steps=1")
    whole = train(tmp_path / "whole", *words)
    with monkeypatch.context() as patch:
        interrupt(patch, 67, lambda: signal.raise_signal(signal.SIGTERM))
        train(tmp_path / "run", *words, code=143)
    for step in (68, 90):  # of an abandoned continuation
        file = tmp_path / "run" / "averages" / f"{step:07d}.pt"
        file.write_bytes((tmp_path / "whole" / "averages" / "0000030.pt").read_bytes())
    resumed = train(tmp_path / "run", *words, "resume=last")
    assert resumed["checksums"] == whole["checksums"]
    assert names(tmp_path / "run") == names(tmp_path / "whole")
    assert names(tmp_path / "whole") == [f"{step:07d}.pt" for step in (30, 60, 90, 100)]
    for name in names(tmp_path / "whole"):
        a, b = (checkpoint.read(tmp_path / r / "averages" / name) for r in ("run", "whole"))
        assert a["checksums"] == b["checksums"] and a["step"] == b["step"]
    assert metrics(tmp_path / "run") == metrics(tmp_path / "whole")


def test_a_run_that_replaces_another_forgets_its_snapshots(train, tmp_path):
    words = (*POINTS, "trainer.max_steps=4", "trainer.checkpoint_every=2")
    train(tmp_path / "run", *words, "trainer.power_ema=[0.1]", "trainer.ema=[]")
    assert names(tmp_path / "run") == ["0000002.pt", "0000004.pt"]
    train(tmp_path / "run", *words, "overwrite=true")
    assert names(tmp_path / "run") == []


@pytest.mark.parametrize(
    "words",
    [
        "trainer.power_ema=[0]",
        "trainer.power_ema=[0.3]",
        "trainer.power_ema=[wide]",
        "trainer.power_ema=0.1",
        "trainer.snapshot_every=0",
        "sample weights=power:0",
        "sample weights=power:0.3",
        "sample weights=power:wide",
        "sample weights=power:",
        "sample weights=power:nan",
        "sample weights=powr:0.1",
    ],
)
def test_refused(command, tmp_path, capfd, words):
    name, option = words.split() if " " in words else ("train", words)
    more = ("ckpt=x",) if name == "sample" else PLAIN
    assert command(name, *more, option, "out=run") == 2
    said = capfd.readouterr().err
    assert option in said and said.count("\n") == 1 and not (tmp_path / "run").exists()
