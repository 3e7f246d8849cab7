import csv
import math

import numpy as np
import pytest
import torch
from PIL import Image
from scipy.integrate import solve_ivp

from fmdiff.build import build, config_folder, named
from fmdiff.commands.orders import order
from fmdiff.commands.simulate import paths
from fmdiff.errors import FmdiffError
from fmdiff.randomness import noise
from fmdiff.systems import Additive, truth

DECAY = ("system=linear", "system.theta=2", "system.x0=4")
NEEDED = {
    "formula": ("system.u=-2*x+t", "system.x0=1"),
    "velocities": ("system.u=[1,-1]",),
}


def table(path):
    with path.open() as file:
        return list(csv.DictReader(file))


def column(path, name):
    return [float(row[name]) for row in table(path)]


def real(values):
    return torch.tensor(values, dtype=torch.float64)


@pytest.fixture
def simulate(command, tmp_path, capsys):
    """Runs the command: the folder with its results and what was printed."""

    def run(*words, code=0):
        folder = tmp_path / "run"
        got = command("simulate", *words, f"out={folder}", "overwrite=true")
        said = capsys.readouterr()
        assert got == code, said.err
        return folder, said.err if code else said.out

    return run


@pytest.mark.parametrize("name", sorted(p.stem for p in (config_folder() / "system").glob("*")))
def test_every_system_runs(simulate, name):
    folder, said = simulate(f"system={name}", *NEEDED.get(name, ()), "steps=2")
    assert len(table(folder / "steps.csv")) == 2
    assert Image.open(folder / "steps.png").width > 500
    assert str(folder / "steps.csv") in said


# Worked numbers


def test_euler_by_hand(simulate):
    folder, said = simulate(*DECAY, "solver=euler", "steps=4")
    first, *_ = rows = table(folder / "steps.csv")
    assert list(first) == ["step", "t", "x", "u", "x_next", "exact", "error"]
    assert [float(row["x_next"]) for row in rows] == [2, 1, 0.5, 0.25]
    assert [float(row["u"]) for row in rows] == [-8, -4, -2, -1]
    assert f"{float(rows[-1]['exact']):.4f}" == "0.5413"
    assert float(rows[-1]["error"]) == pytest.approx(4 * math.exp(-2) - 0.25, abs=1e-14)
    assert "0.541341" in said and "0.291341" in said


def test_the_table_of_errors_has_the_known_numbers(simulate):
    folder, said = simulate(*DECAY, "steps=[4,10,50,100]", "solvers=[euler,heun,midpoint,rk4]")
    rows = {(row["solver"], row["steps"]): row for row in table(folder / "errors.csv")}
    euler = [rows["euler", steps] for steps in ("4", "10", "50", "100")]
    assert [f"{float(r['x']):.4f}" for r in euler] == ["0.2500", "0.4295", "0.5195", "0.5305"]
    percent = [f"{100 * float(r['relative_error']):.1f}" for r in euler]
    assert percent == ["53.8", "20.7", "4.0", "2.0"]
    assert [f"{float(rows[s, '4']['x']):.5f}" for s in ("heun", "midpoint")] == ["0.61035"] * 2
    assert f"{float(rows['rk4', '4']['x']):.5f}" == "0.54220"
    assert [float(rows[s, "4"]["nfe"]) for s in ("euler", "heun", "rk4")] == [4, 8, 16]
    for name, p in (("euler", 1), ("heun", 2), ("midpoint", 2), ("rk4", 4)):
        assert float(rows[name, "4"]["global_order"]) == pytest.approx(p, abs=0.2)
        assert float(rows[name, "4"]["local_order"]) == pytest.approx(p + 1, abs=0.1)
    equal = {row["nfe"]: row for row in table(folder / "equal_nfe.csv")}
    # at 8 evaluations: Euler (1 - 2/8)^8, Heun (1 - 2/4 + (2/4)^2 / 2)^4
    exact = 4 * math.exp(-2)
    assert float(equal["8"]["error_euler"]) == pytest.approx(abs(4 * 0.75**8 - exact), abs=1e-13)
    assert float(equal["8"]["error_heun"]) == pytest.approx(abs(4 * 0.625**4 - exact), abs=1e-13)
    assert (folder / "errors.png").is_file() and "equal NFE" in said


@pytest.mark.parametrize(
    "words, digits",
    [
        (
            ("system=velocities", "system.u=[-3.2,-1.8,0.5,0.9]", "system.x0=1.5"),
            ["0.700", "0.250", "0.375", "0.600"],
        ),
        (
            ("system=ou", "system.theta=2", "t_end=0.3", "noise=[0.52,-1.31,0.88]"),
            ["2.564", "1.637", "1.588"],
        ),
        (
            ("system=brownian", "t_end=0.03", "noise=[0.83,-1.21,0.47]"),
            ["0.083", "-0.038", "0.009"],
        ),
    ],
    ids=["velocities", "ou", "brownian"],
)
def test_steps_by_hand(simulate, words, digits):
    folder, _ = simulate(*words)
    assert [f"{x:.3f}" for x in column(folder / "steps.csv", "x_next")] == digits


# Exact flows


@pytest.mark.parametrize(
    "name, keys",
    [
        ("linear", {"theta": 0.7, "x0": 2.0}),
        ("circular", {"omega": 2.0, "x0": [1.0, 0.5]}),
        ("saddle", {"theta": 0.8, "x0": [0.3, -1.0]}),
        ("formula", {"u": "-2*x+t", "x0": 1.0, "exact": "1.25*exp(-2*t) + t/2 - 1/4"}),
        ("formula", {"u": ["x2", "-x1+t"], "x0": [1.0, 0.0]}),
        ("gmm4", {"x0": [0.4, 0.1]}),
    ],
)
def test_the_exact_states_are_those_of_scipy(name, keys):
    system = named("system", name, 1.0, **keys)
    times = torch.linspace(0, 1, 4, dtype=torch.float64)

    def slope(t, x):
        return system.u(torch.from_numpy(x)[None], real(t))[0].numpy()

    start = system.origin.numpy()
    right = solve_ivp(slope, (0, 1), start, "DOP853", times.numpy(), rtol=1e-12, atol=1e-13)
    got = truth(system, system.starts(0, 1, 0), times)[:, 0].numpy()
    np.testing.assert_allclose(got, right.y.T, atol=1e-9)


def test_the_equations_are_the_stated_ones():
    x, t = real([[0.3, -2.0]]), real(0.2)
    circular = named("system", "circular", 1.0, omega=3.0)
    torch.testing.assert_close(circular(x, t), real([[6.0, 0.9]]))
    saddle = named("system", "saddle", 1.0, theta=3.0)
    torch.testing.assert_close(saddle(x, t), real([[0.9, 6.0]]))
    ou = named("system", "ou", 1.0, theta=3.0)
    torch.testing.assert_close(ou(x[:, :1], t), real([[-0.9]]))


def test_a_fitted_order_is_the_power():
    h = [0.1, 0.05, 0.02]
    assert order(h, [3 * a**2.5 for a in h], 1.0) == pytest.approx(2.5)
    assert order(h, [0.0, 1e-16, 0.1], 1.0) is None


# Random systems


@pytest.mark.parametrize("theta", [0.0, 1.5])
def test_moments_of_random_paths(theta):
    n, steps, g = 20_000, 40, 0.8
    keys = {"diffusion": g, "x0": 2.0}
    name = "ou" if theta else "brownian"
    system = named("system", name, 2.0, **keys, **({"theta": theta} if theta else {}))
    times = torch.linspace(0, 2, steps + 1, dtype=torch.float64)

    def normals(k, first, stop):
        return noise(first, stop, (1,), 0, "brownian", k).double()

    _, marked, nfe = paths(system, Additive(), times, n, 0, [20, 40], normals)
    early, late = marked[..., 0].numpy()
    assert nfe == steps
    # the recursion X <- a X + g sqrt(h) z has these moments exactly
    h = 2 / steps
    a = 1 - theta * h
    means = [2 * a**k for k in (20, 40)]
    variances = [g**2 * h * sum(a ** (2 * j) for j in range(k)) for k in (20, 40)]
    for x, mean, variance in zip((early, late), means, variances, strict=True):
        assert abs(x.mean() - mean) < 4 * math.sqrt(variance / n)
        assert abs(x.var() - variance) < 4 * variance * math.sqrt(2 / n)
    covariance = np.cov(early, late)[0, 1]
    right = a**20 * variances[0]
    spread = math.sqrt((variances[0] * variances[1] + right**2) / n)
    assert abs(covariance - right) < 4 * spread
    # and they tend to the law the tables call theory
    s, t = times[20], times[40]
    if not theta:
        assert system.covariance(s, t).item() == pytest.approx(g**2 * 1.0)
        assert system.covariance(t, t).item() == pytest.approx(g**2 * 2.0)


def test_the_law_of_ou_solves_its_equations():
    system = named("system", "ou", 9.0, theta=1.5, diffusion=0.8, x0=2.0)

    def variance(t):
        return system.covariance(t, t)

    t = real(0.4)
    slope = torch.func.grad(variance)(t)  # dV/dt = -2 theta V + g^2
    torch.testing.assert_close(slope, -3 * variance(t) + 0.64)
    assert variance(real(20.0)).item() == pytest.approx(0.64 / 3)
    ratio = system.covariance(t, t + 0.3) / variance(t)
    assert ratio.item() == pytest.approx(math.exp(-0.45))
    x = torch.linspace(-8, 8, 4001, dtype=torch.float64)[:, None]
    assert torch.trapezoid(system.density(x, t), x[:, 0]).item() == pytest.approx(1)


@pytest.mark.parametrize("name", ["brownian", "ou"])
def test_the_table_of_statistics_agrees_with_theory(simulate, name):
    folder, said = simulate(f"system={name}", "steps=200", "n=3000")
    rows = table(folder / "statistics.csv")
    assert len(rows) == 14 and "covariance(0.25,0.5)" in said
    for row in rows:
        value, error, theory = (float(row[k]) for k in ("value", "standard_error", "theory"))
        assert abs(value - theory) < 4.5 * error, row
    assert ("stationary law" in said) == (name == "ou")


def test_from_one_start_an_ode_reaches_one_mode_and_an_sde_both(simulate):
    words = ("system=two_modes", "n=400", "steps=40")
    folder, _ = simulate(*words, "solver=heun")
    assert column(folder / "statistics.csv", "value")[-2:] == [0, 1]
    words = (*words, "solver=euler_maruyama", "solver.diffusion=1")
    folder, _ = simulate(*words)
    rows = table(folder / "statistics.csv")[-2:]
    shares = [float(row["value"]) for row in rows]
    assert sum(shares) == pytest.approx(1) and min(shares) > 0.2
    assert [float(row["ode"]) for row in rows] == [0, 1]
    right = math.sqrt(shares[0] * shares[1] / 399)
    assert float(rows[0]["standard_error"]) == pytest.approx(right)


@pytest.mark.slow
@pytest.mark.parametrize("solver", ["heun", "euler_maruyama"])
def test_a_mixture_has_its_own_moments_at_the_end(simulate, solver):
    folder, _ = simulate("system=gmm4", f"solver={solver}", "steps=100", "n=1000")
    for row in table(folder / "statistics.csv"):
        value, error, theory = (float(row[k]) for k in ("value", "standard_error", "theory"))
        assert abs(value - theory) < 4.5 * error, row


def test_path_i_depends_on_seed_and_i_alone(simulate):
    one = column(simulate("system=ou", "n=1", "steps=3")[0] / "steps.csv", "x_next")
    many = column(simulate("system=ou", "n=70", "steps=3")[0] / "steps.csv", "x_next")
    other = column(simulate("system=ou", "n=1", "steps=3", "seed=1")[0] / "steps.csv", "x_next")
    assert one == many != other


# Several starts


def rotated(x, angle):
    c, s = math.cos(angle), math.sin(angle)
    return [c * x[0] - s * x[1], s * x[0] + c * x[1]]


def test_particles_are_dropped_into_a_field(simulate):
    starts = [[1.0, 0.0], [0.0, 2.0], [0.5, -0.5]]
    words = ("system=circular", f"system.x0={starts}".replace(" ", ""), "t_end=2", "steps=40")
    folder, said = simulate(*words, "solver=rk4", "animation=true")
    rows = table(folder / "steps.csv")
    assert [row["start"] for row in rows] == ["1"] * 40 + ["2"] * 40 + ["3"] * 40
    for i, start in enumerate(starts):
        own = rows[40 * i : 40 * (i + 1)]
        assert [float(own[0][k]) for k in ("x1", "x2")] == start
        end = [float(own[-1][k]) for k in ("x_next1", "x_next2")]
        assert end == pytest.approx(rotated(start, 2.0), abs=1e-5)
    assert "1 path from each of 3 starts" in said and len(said.splitlines()) >= 5
    assert Image.open(folder / "animation.gif").n_frames == 40


def test_each_start_is_followed_as_if_it_were_alone(simulate):
    words = ("system=gmm4", "solver=heun", "steps=5")
    both, _ = simulate(*words, "system.x0=[[1,0.5],[0,2]]")
    rows = [list(row.values())[1:] for row in table(both / "steps.csv")]
    alone = []
    for start in ("[1,0.5]", "[0,2]"):
        folder, _ = simulate(*words, "n=2", f"system.x0={start}")
        alone += [list(row.values()) for row in table(folder / "steps.csv")]
    np.testing.assert_allclose(np.array(rows, float), np.array(alone, float), atol=1e-12)


def test_a_picture_shows_every_start(simulate):
    def ink(starts):
        folder, _ = simulate("system=linear", "system.theta=0", f"system.x0={starts}", "steps=3")
        picture = np.asarray(Image.open(folder / "steps.png").convert("RGB")).astype(int)
        blue = np.abs(picture - (0, 114, 178)).sum(2) < 60
        return len({int(y) for y in np.nonzero(blue)[0] // 12})

    assert ink("[-3,0,3]") > ink("[-3]")


def test_moments_are_those_of_each_start(simulate):
    folder, _ = simulate("system=ou", "system.x0=[2,-1]", "steps=100", "n=1500")
    rows = table(folder / "statistics.csv")
    assert [row["start"] for row in rows] == ["1"] * 14 + ["2"] * 14
    for row in rows:
        value, error, theory = (float(row[k]) for k in ("value", "standard_error", "theory"))
        assert abs(value - theory) < 5 * error, row
    assert float(rows[3]["theory"]) == pytest.approx(2 * math.exp(-1))
    assert float(rows[17]["theory"]) == pytest.approx(-math.exp(-1))


def test_a_table_of_errors_is_of_all_starts(simulate):
    folder, said = simulate("system=circular", "system.x0=[[1,0],[0,2]]", "steps=[4,8]")
    error = float(table(folder / "errors.csv")[0]["error"])
    growth = np.linalg.matrix_power(np.array([[1, -0.25], [0.25, 1]]), 4)
    off = [np.linalg.norm(growth @ x - rotated(x, 1.0)) for x in ([1, 0], [0, 2])]
    assert error == pytest.approx(math.sqrt(np.mean(np.square(off))), rel=1e-9)
    assert "root mean square of 2 paths" in said


def test_an_animation_holds_its_times(simulate):
    folder, _ = simulate("system=circular", "steps=4", "animation=true", "t_end=2")
    assert Image.open(folder / "animation.gif").info["comment"] == b"t 0.5 1 1.5 2"


# Files and refusals


def test_two_dimensions_and_the_animation(simulate):
    words = ("system=circular", "steps=3", "animation=true")
    folder, _ = simulate(*words)
    parts = ["x1", "x2", "u1", "u2", "x_next1", "x_next2", "exact1", "exact2"]
    assert list(table(folder / "steps.csv")[0]) == ["step", "t", *parts, "error"]
    assert Image.open(folder / "animation.gif").n_frames == 3


@pytest.mark.parametrize(
    "words, says",
    [
        (("system=circular", "system.x0=[1,2,3]"), "2 numbers"),
        (("system=circular", "system.x0=[[1,2],[3]]"), "start 2 has 1"),
        (("system=circular", "system.x0=[[1,2],3]"), "a list of starts"),
        (("system=circular", "system.x0=[[1,2],[3,a]]"), "system.x0=[3, 'a']"),
        (("system=linear", "system.x0=[[1,2],[3,4]]"), "start 1 has 2"),
        (("system=linear", "system.x0=[]"), "system.x0=[]"),
        (("system=circular", "system.x0=[[1,2],[2,3]]", "n=3"), "n=3"),
        (("system=ou", "system.x0=[1,2]", "noise=[1,2]"), "for one start"),
        (
            ("system=formula", "system.u=x", "system.x0=[1,2]", "system.exact=exp(t)"),
            "system.exact",
        ),
        (("system=linear", "solver=euler_maruyama"), "solver=euler_maruyama"),
        (("system=ou", "solver=heun"), "solver=heun"),
        (("system=ou", "solver=euler_maruyama", "solver.diffusion=3"), "system.diffusion"),
        (("system=ou", "steps=[4,8]"), "table of errors"),
        (("system=ou", "steps=2", "noise=[1,2,3]"), "3 numbers"),
        (("system=ou", "n=2", "noise=[1,2,3]"), "n=2"),
        (("system=linear", "n=2"), "n=2"),
        (("system=linear", "noise=[1]"), "noise=[1"),
        (("system=linear", "steps=[4,8]", "solvers=[eular]"), "euler"),
        (("system=linear", "steps=0"), "steps=0"),
        (("system=linear", "t_end=0"), "t_end=0"),
        (("system=linear", "system.theta=1e300"), "not finite"),
        (("system=linear", "steps=[2,4]", "animation=true"), "animation"),
        (("system=velocities", "system.u=[1,2]", "steps=3"), "steps=3"),
        (("system=velocities", "system.u=[1,2]", "solver=heun"), "solver=heun"),
        (("system=velocities", "system.u=[1,a]"), "system.u"),
        (("system=formula", "system.u=x+y", "system.x0=1"), "system.u"),
        (("system=formula", "system.u=[x1,x2]", "system.x0=1"), "system.x0=1"),
        (("system=formula", "system.u=x", "system.x0=1", "system.exact=t"), "system.exact"),
        (("system=formula",), "system.u= is needed"),
        (("system=gmm4", "t_end=2"), "t_end=2"),
        (("system=gmm4", "system.data=moons"), "system.data"),
    ],
)
def test_what_does_not_go_together_is_refused_before_anything_is_written(simulate, words, says):
    folder, said = simulate(*words, code=2)
    assert says in said and "bug" not in said
    assert not folder.exists()


def test_states_are_checked_from_python_too():
    with pytest.raises(FmdiffError, match=r"system\.x0"):
        build({"_target_": "fmdiff.systems.Linear", "theta": 1.0, "x0": "a"}, 1.0)
    assert named("system", "linear", 1.0)(real([[2.0]]), real(0.0)).dtype == torch.float64
