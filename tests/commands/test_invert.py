"""Inversion: round trips and their order, interpolation, straightness, inpainting."""

import json
import math

import numpy as np
import pytest
import torch
from PIL import Image

from fmdiff.build import named
from fmdiff.errors import FmdiffError
from fmdiff.exact import Empirical, Mixture
from fmdiff.inversion import decode, encode, inpaint, outside, slerp, straightness
from fmdiff.path import VE, VP, CondOT, Cosine
from fmdiff.randomness import noise
from fmdiff.sampling import view

ONE = torch.ones(1, dtype=torch.float64)


def normal(path, s=0.5, d=2):
    return Mixture(path, ONE, torch.zeros(1, d).double(), s**2 * torch.eye(d).double()[None])


def mixture(path):
    means = torch.tensor([[1.0, 0.5], [-1.0, 0.0]], dtype=torch.float64)
    return Mixture(path, 0.5 * torch.ones(2).double(), means, 0.2 * torch.eye(2).expand(2, 2, 2))


def rms(x):
    return x.square().mean().sqrt().item()


@pytest.mark.parametrize(
    "path", [CondOT(), VP(), VE(), Cosine()], ids=["condot", "vp", "ve", "cos"]
)
def test_the_code_of_a_gaussian_is_its_quantile(path):
    """x = s eps: alpha x + beta eps has std sqrt(alpha^2 s^2 + beta^2) along its trajectory."""
    field = view(normal(path), "straight")
    x = 0.5 * noise(0, 40, (2,), 0, "x").double()
    lo, hi = (torch.tensor(t, dtype=torch.float64) for t in field.interval())
    size = [(field.path.alpha(t) * 0.5) ** 2 + field.path.beta(t) ** 2 for t in (lo, hi)]
    wanted = field.path.alpha(hi) * x * (size[0] / size[1]).sqrt()
    z = encode(field, x, named("solver", "rk4"), 200)
    torch.testing.assert_close(z, wanted, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("path", [CondOT(), VP()], ids=["condot", "vp"])
@pytest.mark.parametrize("make", [normal, mixture])
@pytest.mark.parametrize(("solver", "order"), [("euler", 1), ("heun", 2), ("rk4", 4)])
def test_round_trips_converge_with_the_order(path, make, solver, order):
    field, solver = view(make(path), "straight"), named("solver", solver)
    x = make(path).sample(0, 30, 0).double()
    coarse, fine = (
        rms(decode(field, encode(field, x, solver, n), solver, n) - x) for n in (40, 80)
    )
    # the errors of the two ways may cancel to a higher order
    assert math.log2(coarse / fine) > order - 0.2


def test_rk4_comes_back():
    for make in (normal, mixture):
        field, solver = view(make(CondOT()), "straight"), named("solver", "rk4")
        x = make(CondOT()).sample(0, 30, 0).double()
        back = decode(field, encode(field, x, solver, 100), solver, 100)
        assert (back - x).abs().max() < 1e-6


def test_an_adaptive_solver_comes_back():
    field, solver = view(mixture(Cosine()), "straight"), named("solver", "dopri5")
    x = mixture(Cosine()).sample(0, 8, 0).double()
    back = decode(field, encode(field, x, solver, None), solver, None)
    assert (back - x).abs().max() < 1e-3


def test_slerp_keeps_norms_and_angles():
    drawn = (noise(0, 6, (5,), 0, name).double() for name in "ab")
    a, b = (torch.nn.functional.normalize(z, dim=1) for z in drawn)
    s = torch.linspace(0, 1, 5)
    between = slerp(3 * a, 3 * b, s)
    assert between.shape == (5, 6, 5)
    torch.testing.assert_close(between[0], 3 * a)
    torch.testing.assert_close(between[-1], 3 * b)
    torch.testing.assert_close(between.norm(dim=2), torch.full((5, 6), 3.0).double())
    whole = torch.arccos((a * b).sum(1))
    for i in range(4):
        cosine = (between[i] * between[i + 1]).sum(1) / 9
        torch.testing.assert_close(torch.arccos(cosine), whole / 4)
    torch.testing.assert_close(slerp(a, 2 * a, s)[2], 1.5 * a)


def test_the_way_to_a_single_point_is_straight():
    point = torch.tensor([[0.7, -0.3]], dtype=torch.float64)
    field, solver = Empirical(CondOT(), point, None, 0), named("solver", "rk4")
    states, times = [noise(0, 20, (2,), 0, "z").double()], [torch.zeros(()).double()]

    def observe(t, x):
        states.append(x)
        times.append(t)

    decode(field, states[0], solver, 40, observe)
    shape = straightness(torch.stack(states), torch.stack(times))
    assert max(shape) < 1e-6
    assert (states[-1] - point).abs().max() < 0.01


def test_straightness_of_known_curves():
    t = torch.linspace(0, 1, 2001, dtype=torch.float64)
    # half a circle of radius 2: speed 2 pi, chord 4, the mean of v is the chord
    half = 2 * torch.stack([torch.cos(math.pi * t), torch.sin(math.pi * t)], 1)[:, None]
    shape = straightness(half, t)
    assert shape.straightness == pytest.approx(4 * math.pi**2 - 16, rel=1e-3)
    assert shape.relative == pytest.approx((4 * math.pi**2 - 16) / 16, rel=1e-3)
    assert shape.turning == pytest.approx(math.pi, rel=1e-3)
    assert shape.curvature == pytest.approx(0.5, rel=1e-3)
    # x = t^2 over [0, 2]: straight, but of changing speed; (4 - 2 * 2 t)^2 has the mean 16 / 3
    line = ((2 * t) ** 2)[:, None, None]
    shape = straightness(line, 2 * t)
    assert shape.straightness == pytest.approx(16 / 3, rel=1e-3)
    assert shape.turning == pytest.approx(0, abs=1e-6)


class Pictures(Mixture):
    """Gaussian images whose four pixels are correlated."""

    def __init__(self, path):
        cov = 0.1 * torch.eye(4).double() + 0.4
        super().__init__(path, ONE, torch.zeros(1, 4).double(), cov[None])
        self.shape = (1, 2, 2)

    def predict(self, x_t, t, kind, s=None):
        return super().predict(x_t.flatten(1), t, kind).view_as(x_t)

    def start(self, eps, t, first, seed):
        x = self.sample(first, first + len(eps), seed).to(eps).view_as(eps)
        return self.path.mix(x, eps, t)

    def sample(self, start, stop, seed):
        z = noise(start, stop, (4,), seed, "pictures").double()
        return z @ torch.linalg.cholesky(0.1 * torch.eye(4).double() + 0.4).T


@pytest.mark.parametrize("path", [CondOT(), VP(), VE()], ids=["condot", "vp", "ve"])
def test_inpainting_leaves_what_is_known_and_hears_of_it(path):
    field = view(Pictures(path), "straight")
    x = Pictures(path).sample(0, 400, 5).view(-1, 1, 2, 2)
    known = outside([0, 0, 1, 1], (1, 2, 2))
    solver = named("solver", "heun")
    filled = inpaint(field, x, known, solver, 50, seed=1)
    assert torch.equal(filled[:, :, known], x[:, :, known])
    drawn = filled[:, 0, 0, 0]
    assert not torch.isclose(drawn, x[:, 0, 0, 0]).any()
    # the mean of the other three tells the pixel, correlation 0.86, of which the method keeps 0.6
    told = x[:, 0].flatten(1)[:, 1:].mean(1)
    assert 0.5 < torch.corrcoef(torch.stack([drawn, told]))[0, 1] < 0.9
    torch.testing.assert_close(inpaint(field, x[7:], known, solver, 50, 1, 7), filled[7:])
    assert not torch.allclose(inpaint(field, x, known, solver, 50, seed=2), filled)


@pytest.mark.parametrize("box", [[0, 0, 3, 1], [1, 0, 1, 2], [0, 2, 2, 1]])
def test_a_box_must_lie_in_the_image(box):
    with pytest.raises(FmdiffError, match="must lie in images of 2 x 2"):
        outside(box, (1, 2, 2))


# The command


def test_the_command_on_a_mixture(command, tmp_path, capsys):
    words = ("model=exact", "data=gmm4", "n=20", "device=cpu", "dtype=float64")
    lists = ("steps=[10,20]", "solvers=[euler,rk4,dopri5]")
    assert command("invert", *words, *lists, "out=a") == 0
    assert "20 points to noise and back" in (said := capsys.readouterr().out)
    report = json.loads((tmp_path / "a" / "invert.json").read_text())
    rows = report["rows"]
    assert [(row["solver"], row["steps"]) for row in rows] == [
        ("euler", 10),
        ("euler", 20),
        ("rk4", 10),
        ("rk4", 20),
        ("dopri5", None),
    ]
    assert [row["nfe"] for row in rows[:4]] == [20, 40, 80, 160] and rows[4]["nfe"] > 0
    assert rows[0]["rms"] > rows[1]["rms"] > rows[3]["rms"] > 0
    assert all(f"{row['max']:.3g}" in said for row in rows)
    arrays = np.load(tmp_path / "a" / "invert.npz")
    assert arrays["noise"].shape == arrays["x"].shape == arrays["reconstruction"].shape == (20, 2)
    off = np.abs(arrays["reconstruction"] - arrays["x"]).max()
    assert off == pytest.approx(rows[4]["max"]) and off < 1e-2
    assert command("invert", *words, "steps=[40]", "straightness=true", "out=b") == 0
    found = json.loads((tmp_path / "b" / "invert.json").read_text())["trajectories"]
    assert (
        found["straightness"] > 0
        and found["turning"] > 0
        and "straightness" in (capsys.readouterr().out)
    )


def test_the_command_on_images(command, tmp_path, digits_run):
    words = (f"ckpt={digits_run}", "n=3", "steps=[1,2]", "solvers=[euler,heun]", "device=cpu")
    more = ("interpolate=5", "inpaint=[2,2,6,6]", "straightness=true", "batch_size=2")
    assert command("invert", *words, *more, "out=a") == 0
    arrays = np.load(tmp_path / "a" / "invert.npz")
    assert arrays["noise"].shape == (3, 1, 8, 8)
    assert arrays["interpolated"].shape == (5, 2, 1, 8, 8)
    ends = arrays["interpolated"][[0, -1]]
    back = arrays["reconstruction"]
    np.testing.assert_allclose(ends, np.stack([back[:-1], back[1:]]), atol=1e-4)
    known = outside([2, 2, 6, 6], (1, 8, 8)).numpy()
    filled = arrays["inpainted"]
    assert (filled[:, :, known] == arrays["x"][:, :, known]).all()
    assert (filled[:, :, ~known] != arrays["x"][:, :, ~known]).any()
    for name in ("invert.png", "strip.png", "inpaint.png"):
        with Image.open(tmp_path / "a" / name) as picture:
            assert picture.width > 8
    report = json.loads((tmp_path / "a" / "invert.json").read_text())
    assert report["checkpoint"]["step"] == 3 and len(report["rows"]) == 4
    assert command("invert", *words, *more[:3], "out=b") == 0
    again = np.load(tmp_path / "b" / "invert.npz")
    for name in arrays:
        np.testing.assert_allclose(again[name], arrays[name], atol=1e-4)


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (("model=exact", "data=gmm4", "solvers=[ddpm]"), "is stochastic"),
        (("model=exact", "data=gmm4", "solvers=[dpmpp_2m]"), "steps by the estimate of x"),
        (("model=exact", "data=gmm4", "solvers=[rk5]"), "unknown solver 'rk5'"),
        (("model=exact", "data=gmm4", "steps=20"), "steps=20: must be a list"),
        (("model=exact", "data=gmm4", "inpaint=[0,0,1,1]"), "inpaint= needs images"),
        (("model=exact", "data=gmm4", "inpaint=[0,0,1]"), "four integers"),
        (("model=exact", "data=gmm4", "interpolate=4"), "needs two images or more"),
        (("model=exact", "data=gmm4", "interpolate=1"), "interpolate=1"),
        (
            ("model=exact", "data=gmm4", "solvers=[dopri5]", "straightness=true"),
            "straightness=true needs",
        ),
        (("ckpt={digits}", "inpaint=[0,0,9,8]"), "images of 8 x 8 pixels"),
    ],
)
def test_what_the_command_refuses(command, tmp_path, digits_run, capsys, words, says):
    words = [word.format(digits=digits_run) for word in words]
    assert command("invert", *words, "n=4", "device=cpu", "out=a") == 2
    assert says in capsys.readouterr().err
    assert not (tmp_path / "a").exists()
