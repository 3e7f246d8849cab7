"""What a run shows of itself: estimates of x for nothing, the field's arrows, and the films."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from fmdiff.build import config_folder, named
from fmdiff.commands.sample import arrow_field
from fmdiff.exact import Mixture
from fmdiff.field import NetField
from fmdiff.guidance import CFG, Unguided
from fmdiff.path import VE, VP, CondOT
from fmdiff.pictures import animate
from fmdiff.sampling import Sampler, generate, view
from fmdiff.solvers.solver import Solver
from fmdiff.trajectory import velocities

SOLVERS = sorted(path.stem for path in (config_folder() / "solver").glob("*.yaml"))
SOLVERS.remove("jump")  # of maps, in test_jump
SOLVERS.remove("fitted")  # to a model, in test_fitted_solver
MEANS = torch.tensor([[-2.0, -2], [-2, 2], [2, -2], [2, 2]], dtype=torch.float64)
VARIANCE = 0.16
UNGUIDED = Unguided()


def gmm4(path, labelled=False):
    covs = VARIANCE * torch.eye(2, dtype=torch.float64).expand(4, 2, 2)
    weights = torch.full((4,), 0.25, dtype=torch.float64)
    return Mixture(path, weights, MEANS, covs, torch.arange(4) if labelled else None)


def mean_of_x(y, r, means=MEANS):
    """E[x | r x + (1 - r) eps = y] of the mixture, written out: y (B, 2), r ()."""
    spread = r**2 * VARIANCE + (1 - r) ** 2
    off = y[:, None] - r * means
    rho = (-off.square().sum(-1) / (2 * spread)).softmax(-1)
    return (rho[..., None] * (means + r * VARIANCE / spread * off)).sum(1)


class Sines(nn.Module):
    def forward(self, x_t, t, y):
        bias = 0 if y is None else 0.1 * y.view(-1, *[1] * (x_t.ndim - 1))
        return torch.sin(x_t + bias)


def network(shape, classes=0, prediction="v"):
    return NetField(Sines(), CondOT(), prediction, 1.0, 1e-5, shape, classes)


# --- estimates of x


@pytest.mark.parametrize("solver", [s for s in SOLVERS if s != "edm_churn"])
@pytest.mark.parametrize("coordinates", ["straight", "native"])
@pytest.mark.parametrize("path", [CondOT(), VP(), VE()], ids=["condot", "vp", "ve"])
def test_the_estimate_is_the_posterior_mean_at_the_state(solver, coordinates, path):
    """Whatever kind the solver asks for, in whatever coordinates; batches do not matter."""
    field = gmm4(path)
    how = {"solver": solver, "steps": 6, "coordinates": coordinates, "dtype": torch.float64}
    made = generate(field, 7, **how, batch_size=4, trajectory=True)
    (states, times), (x_hat, asked) = made.trajectory, made.x_hat
    assert len(x_hat) == made.plan.steps and x_hat.shape[1:] == (7, 2)
    torch.testing.assert_close(asked, times[: len(asked)], rtol=0, atol=1e-12)
    for k, t in enumerate(asked):
        r = t if coordinates == "straight" else path.r(t)
        torch.testing.assert_close(x_hat[k], mean_of_x(states[k], r), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("solver", SOLVERS)
@pytest.mark.parametrize("guidance", [UNGUIDED, CFG(2.0)], ids=["none", "cfg"])
def test_watching_costs_and_changes_nothing(solver, guidance):
    """But an adaptive solver, which is stopped at every frame."""
    for field in (gmm4(VP(), labelled=True), network((2,), classes=4)):
        how = {"solver": solver, "steps": 5, "guidance": guidance}
        alone, made = (generate(field, 6, **how, trajectory=flag) for flag in (False, True))
        assert alone.trajectory is alone.x_hat is None
        assert len(made.x_hat[0]) == len(made.x_hat[1]) == 5
        assert made.x_hat[0].isfinite().all() and (made.x_hat[1].diff() > 0).all()
        if made.nfe_planned is not None:
            assert made.nfe_counted == alone.nfe_counted == made.nfe_planned
            assert torch.equal(alone.x, made.x)


def test_churn_is_asked_at_more_noise():
    field, solver = gmm4(CondOT()), named("solver", "edm_churn")
    solver.s_churn, solver.s_min = 40, 0.0
    made = generate(field, 2000, solver=solver, steps=12, trajectory=True)
    (_, times), (x_hat, asked) = made.trajectory, made.x_hat
    assert (asked <= times[: len(asked)]).all() and (asked < times[: len(asked)]).any()
    for x, r in zip(x_hat, asked, strict=True):
        # of all samples: the variance of E[x | x_r], by the law of total variance below that of x
        assert x.double().var(0).max() < (4 + VARIANCE) * 1.1 and r < 1
    assert x_hat[0].abs().max() < 1 < x_hat[-1].abs().mean()


def test_an_answer_that_says_nothing_of_x_is_left_out():
    """eps at t = 0 is x_t itself."""

    class AsksEps(Solver):
        order, stochastic, asks = 1, False, "eps"

        def nfe(self, intervals):
            return intervals

        def step(self, field, x, t, s, state, noise):
            eps = field.predict(x, t, "eps")
            return x + (s - t) * ((x - eps) / t if t > 0 else -eps), state

    made = generate(gmm4(CondOT()), 5, solver=AsksEps(), steps=4, trajectory=True)
    assert made.trajectory[1].tolist() == [0, 0.25, 0.5, 0.75, 1]
    assert made.x_hat[1].tolist() == [0.25, 0.5, 0.75]
    for x, y, t in zip(made.x_hat[0], made.trajectory[0][1:], made.x_hat[1], strict=False):
        torch.testing.assert_close(x.double(), mean_of_x(y.double(), t), rtol=1e-4, atol=1e-4)


def test_the_way_is_kept_of_the_first_samples_only():
    for shape, few in (((1, 2, 2), 20), ((2,), 2000)):
        n = 2100 if few == 2000 else 100
        made = generate(network(shape), n, steps=2, batch_size=32, trajectory=True)
        fewer = generate(network(shape), few, steps=2, batch_size=32, trajectory=True)
        assert made.x.shape == (n, *shape)
        for watched, whole in ((made.trajectory, fewer.trajectory), (made.x_hat, fewer.x_hat)):
            assert watched[0].shape[1:] == (few, *shape)
            torch.testing.assert_close(watched[0], whole[0])
        torch.testing.assert_close(made.trajectory[0][-1], made.x[:few])


# --- arrows


@pytest.mark.parametrize("coordinates", ["straight", "native"])
def test_velocities_are_those_of_the_states_in_the_picture(coordinates):
    """Against the difference of two neighbouring states of the flow, and the closed form."""
    path = VP()
    field = view(gmm4(path), coordinates)
    made = generate(
        gmm4(path),
        5,
        solver="rk4",
        steps=400,
        coordinates=coordinates,
        dtype=torch.float64,
        trajectory=True,
    )
    states, times = made.trajectory
    r = times if coordinates == "straight" else path.r(times)
    for k in (40, 200, 300):
        [u] = velocities(field, states[k], times[k : k + 1])
        moved = (states[k + 1] - states[k - 1]) / (r[k + 1] - r[k - 1])
        torch.testing.assert_close(u, moved, rtol=1e-3, atol=1e-3)
        closed = (mean_of_x(states[k], r[k]) - states[k]) / (1 - r[k])
        torch.testing.assert_close(u, closed, rtol=1e-6, atol=1e-6)


def test_no_arrows_where_the_field_may_not_be_asked():
    field = network((2,), prediction="x")
    field.evaluations = 0
    u = velocities(field, torch.ones(3, 2), torch.tensor([0, 0.5, 0.99, 1], dtype=torch.float64))
    assert u[:3].isfinite().all() and u[3].isnan().all()
    assert field.evaluations == 9  # one batch per time


def test_whose_field_is_drawn():
    """Of one class the guided field; of several that of all data, unguided."""
    y, t = torch.tensor([[0.3, -0.2], [1.0, 1.0], [-1, 0]]).double(), torch.tensor(0.4).double()
    field = gmm4(CondOT(), labelled=True)

    def v(mean):
        return (mean - y) / (1 - t)

    null, one = v(mean_of_x(y, t)), v(mean_of_x(y, t, MEANS[2:3]))
    for labels, guidance, expected in (
        ([2, 2, 2, 2], CFG(3.0), 3 * one - 2 * null),
        ([2], UNGUIDED, one),
        ([0, 1, 2], CFG(3.0), null),
        ([0, 1, 2], UNGUIDED, null),
    ):
        drawn = arrow_field(field, Sampler(guidance=guidance), torch.tensor(labels), 3)
        torch.testing.assert_close(velocities(drawn, y, t[None])[0], expected)
    drawn = arrow_field(gmm4(CondOT()), Sampler(), None, 3)
    torch.testing.assert_close(velocities(drawn, y, t[None])[0], null)


def test_arrows_keep_direction_and_order_and_do_not_overlap():
    points = animate.mesh((np.array([-1.0, -1.0]), np.array([1.0, 0.5])))
    assert len(points) == 20 * 15
    u = np.random.default_rng(0).normal(size=(4, len(points), 2)) * 10
    u[0, 0], u[1, 1] = 0, np.nan
    drawn = animate.arrow_vectors(points, u)
    assert np.isnan(drawn[0, 0]).all() and np.isnan(drawn[1, 1]).all()
    whole = np.isfinite(drawn).all(-1)
    assert whole.sum() == 4 * len(points) - 2
    u, drawn = u[whole], drawn[whole]
    speed, length = np.linalg.norm(u, axis=1), np.linalg.norm(drawn, axis=1)
    np.testing.assert_allclose(drawn / length[:, None], u / speed[:, None])
    assert length.max() <= 0.1 and (np.diff(length[np.argsort(speed)]) >= 0).all()


def test_the_arrows_of_a_frame_are_the_ones_at_its_time(monkeypatch):
    seen, real = [], animate._quiver
    monkeypatch.setattr(animate, "_quiver", lambda ax, *a: (seen.append(a), real(ax, *a)))
    points = animate.mesh((np.array([-3.0, -3.0]), np.array([3.0, 3.0])))
    u = np.random.default_rng(1).normal(size=(3, len(points), 2))
    states = np.random.default_rng(2).normal(size=(3, 20, 2))
    u[2] = np.nan  # after the jump
    box = points.min(0), points.max(0)
    frames = animate.point_frames(states, [0, 0.5, 1], None, box, "samples", (points, u))
    plain = animate.point_frames(states, [0, 0.5, 1], None, box, "samples")
    vectors = animate.arrow_vectors(points, u)
    for k, (at, drawn) in enumerate(seen):
        assert (at == points).all() and np.array_equal(drawn, vectors[k], equal_nan=True)
    above = [np.stack([np.asarray(f)[:-18] for f in each]) for each in (frames, plain)]  # words
    same = [np.array_equal(a, b) for a, b in zip(*above, strict=True)]
    assert same == [False, False, True]


# --- films


@pytest.mark.parametrize(
    "form", ["gif", *(pytest.param(name, marks=pytest.mark.slow) for name in ("apng", "webp"))]
)
def test_films_of_points(command, capfd, form):
    words = ("model=exact", "data=gmm4", "n=40", "steps=4", "device=cpu", "solver=euler")
    assert command("sample", *words, "out=plain") == 0
    watch = ("trajectory=true", f"animation={form}", "out=watched")
    capfd.readouterr()
    assert command("sample", *words, *watch) == 0
    told = capfd.readouterr().out
    for name, frames in (("trajectory", 5), ("x_hat", 4), ("field", 5)):
        assert f"watched/{name}.{form}" in told
        with Image.open(Path("watched") / f"{name}.{form}") as film:
            assert film.format == {"gif": "GIF", "apng": "PNG", "webp": "WEBP"}[form]
            assert film.n_frames == frames and film.info["loop"] == 0
            durations = []
            for i in range(frames):
                film.seek(i)
                film.load()
                durations.append(film.info["duration"])
            assert durations == [60] * (frames - 1) + [1500]
    report = json.loads(Path("watched/sample.json").read_text())
    assert report["nfe_planned"] == report["nfe_counted"] == 4
    grid = [line for line in told.splitlines() if "for the arrows" in line]
    assert len(grid) == 1 and int(grid[0].split()[0]) % 5 == 0
    same = [Path(out, "samples.npz").read_bytes() for out in ("plain", "watched")]
    assert same[0] == same[1]


def test_films_of_images_and_lines(command, digits_run):
    words = ("n=5", "steps=3", "device=cpu", "threads=1", "trajectory=true")
    assert command("sample", f"ckpt={digits_run}", *words, "out=images") == 0
    assert command("sample", f"ckpt={digits_run}", *words[:-1], "out=plain") == 0
    assert Path("images/samples.npz").read_bytes() == Path("plain/samples.npz").read_bytes()
    assert command("sample", "model=exact", "data=two_modes", *words, "out=lines") == 0
    for out, others in (("images", {"grid.png"}), ("lines", {"scatter.png", "fan.png"})):
        found = {p.name for p in Path(out).iterdir() if p.suffix in (".gif", ".png")}
        assert found == {"trajectory.gif", "x_hat.gif"} | others
        for name, frames in (("trajectory", 4), ("x_hat", 3)):
            with Image.open(Path(out) / f"{name}.gif") as film:
                assert film.n_frames == frames
    assert command("sample", "model=data", "data=gmm4", *words, "out=data") == 0
    assert not Path("data/field.gif").exists() and not Path("data/x_hat.gif").exists()


@pytest.mark.parametrize("value", ["mp4", "true", "null", "[gif]"])
def test_another_format_is_refused(command, capfd, value):
    words = ("model=exact", "data=gmm4", "trajectory=true", f"animation={value}", "out=x")
    assert command("sample", *words) == 2
    assert f"animation={value}: must be gif or apng or webp" in capfd.readouterr().err


def test_help_explains_the_keys(command, capfd):
    assert command("sample", "--help") == 0
    told = capfd.readouterr().out
    for key in ("trajectory=false", "animation=gif"):
        [line] = [line for line in told.splitlines() if key in line]
        assert len(line.split()) > 4
