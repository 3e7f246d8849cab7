"""The scenes of a live page: each control is moved, and the numbers are those of Python."""

import csv
import math

import pytest
import torch

from fmdiff.along import Around
from fmdiff.build import build, named, spec_of
from fmdiff.errors import FmdiffError
from fmdiff.exact import exact
from fmdiff.formula import FUNCTIONS, Formula
from fmdiff.integration import integrate
from fmdiff.loading import load
from fmdiff.page import euler, field
from fmdiff.page.brownian import brownian_scene
from fmdiff.page.ode_sde import ode_sde_scene
from fmdiff.page.page import write_page
from fmdiff.page.velocity import GRAMMAR, METHODS
from fmdiff.path import CondOT
from fmdiff.solvers.runge_kutta import RK4, Euler
from fmdiff.solvers.stochastic import EulerMaruyama
from fmdiff.systems import Circular, Formulas, Linear, Saddle, truth

pytestmark = pytest.mark.slow


def opened(show, tmp_path, scene, **settings):
    """A page of one scene, and a function that returns its state."""
    path = tmp_path / "page.html"
    write_page([scene], path, "A scene", "fmdiff page")
    page = show(path, **settings)
    # typed arrays become lists
    return page, lambda: page.evaluate(
        """kind => JSON.parse(JSON.stringify(fm.state[kind],
          (key, value) => ArrayBuffer.isView(value) ? [...value] : value))""",
        scene.kind,
    )


def steps_of(folder):
    """steps.csv of `fmdiff simulate` as a list of rows of numbers."""
    with (folder / "steps.csv").open(newline="") as file:
        return [{k: float(v) for k, v in row.items()} for row in csv.DictReader(file)]


def test_brownian_paths_are_those_of_simulate(show, tmp_path, command):
    page, state = opened(show, tmp_path, brownian_scene())
    start = state()
    assert len(start["paths"]) == 3 and start["theta"] == 0 and start["steps"] == 200
    page.get_by_role("slider", name="pull back").fill("3")
    page.get_by_role("slider", name="noise").fill("0.7")
    page.get_by_role("slider", name="start x").fill("2.5")
    page.get_by_role("slider", name="steps").fill("2")
    page.get_by_role("button", name="New path").click()
    now = state()
    assert (now["theta"], now["sigma"], now["x0"], now["steps"]) == (2, 0.7, [2.5], 20)
    assert len(now["paths"]) == 4
    noise = ",".join(map(repr, now["noise"][3]))
    words = ("system=ou", "system.theta=2", "system.diffusion=0.7", "system.x0=2.5")
    assert command("simulate", *words, f"noise=[{noise}]", "out=run") == 0
    python = [row["x_next"] for row in steps_of(tmp_path / "run")]
    assert now["paths"][3] == pytest.approx([2.5, *python], abs=1e-9)
    assert now["mean"][-1] == pytest.approx(2.5 * math.exp(-2), abs=1e-9)
    assert now["variance"][-1] == pytest.approx(0.49 * (1 - math.exp(-4)) / 4, abs=1e-9)


def test_brownian_paths_have_their_law(show, tmp_path):
    page, state = opened(show, tmp_path, brownian_scene())
    for _ in range(10):
        page.get_by_role("button", name="100 paths").click()
    sample = state()["sample"]
    n = sample["n"]
    assert n == 1003
    assert abs(sample["mean"]) < 4 / n**0.5 and abs(sample["variance"] - 1) < 4 * (2 / n) ** 0.5
    for share, law in zip(sample["inside"], (0.6827, 0.9545), strict=True):
        assert abs(share - law) < 4 * (law * (1 - law) / n) ** 0.5
    assert (
        page.get_by_role("table").locator("tr", has_text="variance").inner_text().split()[1] == "1"
    )
    page.get_by_role("button", name="Clear").click()
    assert state()["paths"] == []
    page.locator("canvas").first.click()
    assert len(state()["paths"]) == 1


# --- formulas ------------------------------------------------------------------------------------

FORMULAS = [
    "1",
    "x",
    "  -x + 2*t ",
    "x^2",
    "-x^2",
    "(-x)^2",
    "2**-x**2",
    "2^3^x",
    "x^-t",
    "--x",
    "+-+x",
    "2*-x",
    "x - t - 1",
    "x/t/2*3",
    "x - (t - (1 - x))",
    "1e-3*x + .5 + 5. + 1_000",
    "0x1f + 0b101 + 0o17 + 00",
    "1.5E+2*x",
    "pi*e",
    "x\t*\tt",
    "sqrt(-x)",
    "log(0)/x",
    "(2 + (3*(x - t)^2))^0.5",
    *(f"{name}(x - t^2) + {name}({name}(0.3*x))" for name in FUNCTIONS),
]
WRONG = [
    "",
    "x +",
    "2x",
    "(x",
    "x)",
    "sin x",
    "x t",
    "x ** ** 2",
    "1..2",
    "1e",
    "012",
    "x $ t",
    "1e39",
    f"0x{'f' * 60}",
    "y",
    "X",
    "sin",
    "y(x)",
    "x(2)",
    "arctan(x)",
    "sin()",
    "sin(x, t)",
    "x // 2",
    "x % 2",
    "x < t",
    "x if t else 1",
    "True",
    "'a'",
    "[x]",
    "1j",
    "x.real",
    "x" * 301,
]


@pytest.fixture
def formula(show, tmp_path):
    """Evaluates a formula of x and t in the page at some points, or gives the sentence."""
    page, _ = opened(show, tmp_path, brownian_scene())
    code = """([text, points, grammar]) => {
      try {
        const f = fm.formula(text, ["x", "t"], grammar, "u");
        return points.map(([x, t]) => String(f(x, t)));
      } catch (error) {
        return error.message;
      }
    }"""
    return lambda text, points: page.evaluate(code, [text, points, GRAMMAR])


def test_a_formula_has_in_the_page_the_value_of_python(formula):
    points = torch.tensor([[0.5, 0.5], [-1.25, 0.1], [3.0, 0.0], [0.0, 1.0]], dtype=torch.float64)
    for text in FORMULAS:
        python = Formula(text, ("x", "t"), "u")(*points.unbind(1))
        page = torch.tensor(
            [float(v.replace("Infinity", "inf")) for v in formula(text, points.tolist())]
        )
        assert torch.allclose(page.double(), python, 1e-6, 1e-12, equal_nan=True), text


def test_a_wrong_formula_is_refused_in_the_words_of_python(formula):
    for text in WRONG:
        said = formula(text, [])
        with pytest.raises(FmdiffError) as refused:
            Formula(text, ("x", "t"), "u")
        python = str(refused.value)
        if "did you mean" in python:
            head, _, tail = python.partition("did you mean")
            python = head + "c" + tail.partition("C")[2]
        assert said == python, text
    assert formula("__import__('os')", []).startswith("u=\"__import__('os')\" may hold numbers, x")


# --- the explorer --------------------------------------------------------------------------------


def followed(system, at, k, times):
    """The way of a particle at times[k]: RK4 to both ends, by the loop of fmdiff."""
    t = torch.tensor(times, dtype=torch.float64)
    x = torch.tensor([at], dtype=torch.float64)
    ways = []
    for grid in (t[: k + 1].flip(0), t[k:]):
        states = [x]
        integrate(RK4(), system, x, grid, observe=lambda s, y, states=states: states.append(y))
        ways.append(torch.cat(states))
    return torch.cat([ways[0].flip(0)[:-1], ways[1]])


def same_ways(state, system, atol=1e-9):
    """Every particle of the page is where Python says, at all times."""
    assert state["particles"]
    for particle in state["particles"]:
        python = followed(system, particle["at"], particle["k"], state["times"])
        page = torch.tensor(particle["way"], dtype=torch.float64)
        assert torch.allclose(page, python, 0, atol)
    now = torch.stack([torch.tensor(p["way"][int(state["k"])]) for p in state["particles"]])
    assert torch.allclose(torch.tensor(state["positions"]), now)


def test_particles_follow_the_systems_of_python(show, tmp_path):
    page, state = opened(show, tmp_path, field.field_scene(field.tour_systems()), width=1280)
    rate = page.get_by_role("slider", name="rate")
    for name, system in {
        "circular": lambda rate: Circular(6.0, rate, (0.0, 0.0)),
        "linear": lambda rate: Linear(2.0, rate, 0.0),
        "saddle": lambda rate: Saddle(2.0, rate, (0.0, 0.0)),
    }.items():
        option = page.get_by_role("option", name=name).get_attribute("value")
        page.get_by_label("field", exact=True).select_option(option)
        rate.fill("-1.3")
        page.get_by_role("slider", name="time t").fill("40")
        page.get_by_role("button", name="Drop 20").click()
        now = state()
        assert (now["theta"], now["k"], len(now["particles"])) == (-1.3, 40, 21)
        same_ways(now, system(-1.3))
        arrows = torch.tensor(now["arrows"]["points"], dtype=torch.float64)
        python = system(-1.3).u(arrows, torch.tensor(now["t"], dtype=torch.float64))
        assert torch.allclose(torch.tensor(now["arrows"]["velocities"]), python.flatten().float())


def test_a_field_of_ones_own(show, tmp_path):
    system = Formulas(3.0, ["x2", "-x1 + t"], [[1.0, 0.0]])
    page, state = opened(show, tmp_path, field.field_scene([system]))
    same_ways(state(), system)
    second = page.get_by_role("textbox", name="u2")
    second.fill("-sin(x1) - 0.2*x2 + cos(t)")
    same_ways(state(), Formulas(3.0, ["x2", "-sin(x1) - 0.2*x2 + cos(t)"], [[1.0, 0.0]]))
    before = state()["particles"]
    second.fill("-sin(x1) - y")
    assert "unknown name 'y'; choose from: e, pi, t, x1, x2" in state()["problem"]
    alert = page.get_by_role("alert").filter(has_text="unknown name")
    assert alert.is_visible() and second.get_attribute("aria-invalid") == "true"
    assert state()["particles"] == before
    second.fill("x1")
    assert state()["problem"] == "" and second.get_attribute("aria-invalid") == "false"


def test_a_click_drops_a_particle_and_a_drag_moves_it(show, tmp_path):
    system = Circular(6.0, 1.0, (2.0, 0.0))
    page, state = opened(show, tmp_path, field.field_scene([system]), reduced_motion="reduce")
    canvas = page.locator("canvas")
    page.get_by_role("button", name="Clear").click()
    canvas.click(position={"x": 300, "y": 200})
    dropped = state()["particles"]
    assert len(dropped) == 1
    box = canvas.bounding_box()
    page.mouse.move(box["x"] + 303, box["y"] + 198)
    page.mouse.down()
    page.mouse.move(box["x"] + 350, box["y"] + 260)
    page.mouse.up()
    page.wait_for_timeout(300)  # a frame or two
    dragged = state()["particles"]
    assert len(dragged) == 1
    scale = 8 / (box["width"] - 62)
    shift = [b - a for a, b in zip(dropped[0]["at"], dragged[0]["at"], strict=True)]
    assert shift == pytest.approx([50 * scale, -60 * scale], abs=3 * scale)
    same_ways(state(), system)


def test_the_keyboard_places_particles(show, tmp_path):
    system = Saddle(2.0, 1.0, (0.2, 1.0))
    page, state = opened(show, tmp_path, field.field_scene([system]))
    canvas = page.get_by_role("application", name="The plane with its arrows")
    canvas.focus()
    for key in ("ArrowRight", "ArrowRight", "ArrowUp", "Shift+ArrowDown", "Enter"):
        page.keyboard.press(key)
    assert state()["particles"][1]["at"] == pytest.approx([0.4, 0.2 - 1.0])
    same_ways(state(), system)
    page.get_by_role("status").filter(has_text="2 particles").wait_for()
    page.keyboard.press("Delete")
    assert len(state()["particles"]) == 1


def test_particles_follow_an_exact_field(show, tmp_path):
    data = named("data", "8gaussians")
    mixture = exact(data, CondOT())
    scene = field.field_scene(fields=[("exact field of 8gaussians", mixture, data)])
    page, state = opened(show, tmp_path, scene, reduced_motion="reduce")
    assert [p["at"] for p in state()["particles"]] == scene.data["fields"][0]["noise"][:12]
    page.get_by_role("slider", name="time t").fill("35")
    page.locator("canvas").click(position={"x": 200, "y": 200})
    now = state()
    assert len(now["particles"]) == 13 and now["particles"][12]["k"] == 35
    same_ways(now, mixture)
    arrows = torch.tensor(now["arrows"]["points"], dtype=torch.float64)
    python = mixture(arrows, torch.tensor(now["t"], dtype=torch.float64)).flatten()
    velocities = torch.tensor(now["arrows"]["velocities"], dtype=torch.float64)
    assert torch.allclose(velocities, python, 1e-9, 1e-9)


def test_particles_follow_a_trained_field(show, tmp_path, moons_run):
    trained = load(moons_run)
    scene = field.field_scene(fields=[("a run", trained, named("data", "moons"))])
    page, state = opened(show, tmp_path, scene, reduced_motion="reduce")
    page.get_by_role("slider", name="time t").fill("27")
    page.locator("canvas").click(position={"x": 150, "y": 250})
    now = state()
    assert len(now["particles"]) == 13
    same_ways(now, trained.to("cpu", torch.float64), atol=1e-7)


def test_the_field_of_a_class(show, tmp_path):
    data = build({**spec_of("data", "8gaussians"), "conditional": True})
    mixture = exact(data, CondOT())
    scene = field.field_scene(fields=[("classes", mixture, data)])
    page, state = opened(show, tmp_path, scene)
    for label in ("all", "class 3"):
        page.get_by_label("class").select_option(label=label)
        now = state()
        y = torch.tensor([8 if label == "all" else 3])
        assert torch.isfinite(torch.tensor(now["particles"][0]["way"])).all()
        same_ways(now, OfLabel(mixture, y))


class OfLabel(Around):
    """A field of one label, for any number of points."""

    def __init__(self, of, y):
        super().__init__(of)
        self.label = y

    def predict(self, x_t, t, kind, s=None):
        return self.field.bind(self.label.expand(len(x_t))).predict(x_t, t, kind, s)


@pytest.mark.parametrize("motion", ["reduce", "no-preference"])
def test_play_moves_the_particles_unless_less_motion_is_wanted(show, tmp_path, motion):
    scene = field.field_scene([Circular(6.0, 1.0, (2.0, 0.0))])
    page, state = opened(show, tmp_path, scene, reduced_motion=motion)
    page.get_by_role("button", name="Play").click()
    if motion == "reduce":
        assert state()["k"] == 100
        return
    while state()["k"] < 10:
        page.wait_for_timeout(50)
    page.get_by_role("button", name="Pause").click()
    now = state()
    assert 10 <= now["k"] < 100
    (x, y), t = now["positions"][0], now["t"]
    assert [x, y] == pytest.approx([2 * math.cos(t), 2 * math.sin(t)], abs=5e-3)  # in between


# --- step by step --------------------------------------------------------------------------------


def same_steps(state, system):
    """Every method of the page against the loop of fmdiff, and the exact solution."""
    times = torch.linspace(0, state["end"], state["steps"] + 1, dtype=torch.float64)
    x = torch.tensor([state["x0"]], dtype=torch.float64)
    exact = torch.tensor(state["exact"], dtype=torch.float64)
    assert torch.allclose(exact, truth(system, x, times)[:, 0], 0, 1e-9)
    assert [method["name"] for method in state["methods"]] == list(METHODS)
    for method in state["methods"]:
        states = [x]
        integrate(
            METHODS[method["name"]](),
            system,
            x,
            times,
            observe=lambda s, y, states=states: states.append(y),
        )
        python = torch.cat(states)
        page = torch.tensor(method["states"], dtype=torch.float64)
        assert torch.allclose(page, python, 0, 1e-11), method["name"]
        errors = (python - exact).norm(dim=1)
        assert method["errors"] == pytest.approx(errors.tolist(), abs=1e-9)


def test_the_table_of_steps_is_that_of_simulate(show, tmp_path, command):
    page, state = opened(show, tmp_path, euler.euler_scene(euler.textbook()))
    assert [row[4] for row in state()["table"]] == [2, 1, 0.5, 0.25]  # the course's table
    same_steps(state(), Linear(1.0, 2.0, 4.0))
    page.get_by_role("slider", name="rate").fill("-1.5")
    page.get_by_role("slider", name="start x").fill("-0.7")
    page.get_by_role("slider", name="end time").fill("2.5")
    page.get_by_role("slider", name="steps n").fill("13")
    page.get_by_label("the steps of").select_option(label="Heun")
    now = state()
    assert (now["theta"], now["x0"], now["end"], now["steps"]) == (-1.5, [-0.7], 2.5, 13)
    assert now["shown"]["methods"] == ["euler", "heun"]
    same_steps(now, Linear(2.5, -1.5, -0.7))
    words = ("system=linear", "system.theta=-1.5", "system.x0=-0.7", "t_end=2.5", "steps=13")
    assert command("simulate", *words, "solver=heun", "out=run") == 0
    python = [list(row.values()) for row in steps_of(tmp_path / "run")]
    table = torch.tensor(now["table"], dtype=torch.float64)
    assert torch.allclose(table, torch.tensor(python, dtype=torch.float64), 1e-6, 1e-6)
    row = page.get_by_role("table", name="The steps").locator("tbody tr").nth(12)
    cells = [text.replace("\u2212", "-") for text in row.locator("th, td").all_inner_texts()]
    assert list(map(float, cells)) == pytest.approx(python[12], rel=1e-5)
    end = page.get_by_role("table", name="The end of each").locator("tr", has_text="Heun")
    assert end.locator("td").first.inner_text() == "26"  # evaluations


def test_steps_in_the_plane_and_of_ones_own_formula(show, tmp_path):
    page, state = opened(show, tmp_path, euler.euler_scene(euler.textbook()))
    page.get_by_label("system", exact=True).select_option("1")
    page.get_by_role("slider", name="start x2").fill("-1.5")
    assert state()["x0"] == [1, -1.5]
    same_steps(state(), Circular(6.0, 1.0, (1.0, -1.5)))
    page.get_by_label("system", exact=True).select_option("2")
    text = page.get_by_role("textbox", name="u(x, t)")
    same_steps(state(), Formulas(4.0, text.input_value(), 0.1))
    text.fill("sin(3*t) - x^3")
    page.get_by_role("slider", name="steps n").fill("20")
    same_steps(state(), Formulas(4.0, "sin(3*t) - x^3", 0.1))
    text.fill("sin(3*t) - x^")
    assert "cannot be read as a formula" in state()["problem"]


def test_steps_appear_one_by_one(show, tmp_path):
    page, state = opened(show, tmp_path, euler.euler_scene(euler.textbook()))
    page.get_by_role("slider", name="steps shown").fill("0")
    assert state()["table"] == [] and page.get_by_role("button", name="Step back").is_disabled()
    forth = page.get_by_role("button", name="Step", exact=True)
    forth.focus()
    for k in range(4):
        page.keyboard.press("Enter")
        assert len(state()["table"]) == k + 1
    assert forth.is_disabled()
    page.get_by_role("status").filter(has_text="Euler: x = 0.25 at t = 1").wait_for()


# --- the ODE and the SDE -------------------------------------------------------------------------


@pytest.fixture(scope="module")
def mixtures():
    return {name: exact(named("data", name), CondOT()) for name in ("two_modes", "gmm4")}


def settled(page, state):
    """The state after the samples of the last change have been computed."""
    page.wait_for_timeout(50)
    while not state()["ready"]:
        page.wait_for_timeout(50)
    return state()


def same_samples(state, mixture):
    """The states of both are those of fmdiff's solvers, with the noise that the page drew."""
    shape = (-1, *mixture.shape)
    x = torch.tensor(state["starts"], dtype=torch.float64).view(shape)
    times = torch.linspace(0, 1, state["steps"] + 1, dtype=torch.float64)
    assert state["times"] == pytest.approx(times.tolist(), abs=1e-12)
    draws = iter(torch.tensor(state["noise"], dtype=torch.float64))

    def brownian(t, s):
        return next(draws).view(shape) * (s - t).sqrt()

    for name, solver in (("ode", Euler()), ("sde", EulerMaruyama(state["sigma"]))):
        states = [x]
        observe = [lambda s, y, states=states: states.append(y)]
        integrate(solver, mixture, x, times, brownian, observe[0])
        page = torch.tensor(state[name], dtype=torch.float64)
        assert torch.allclose(page, torch.stack(states).flatten(1), 0, 1e-9), name


def test_the_ode_and_the_sde_are_those_of_python(show, tmp_path, mixtures):
    page, state = opened(show, tmp_path, ode_sde_scene(list(mixtures.items()), x0=(0.1,)))
    page.get_by_role("slider", name="samples").fill("100")
    now = settled(page, state)
    assert set(now["starts"]) == {0.1} and (now["sigma"], now["steps"]) == (1, 50)
    same_samples(now, mixtures["two_modes"])
    assert (
        now["shares"][0] == pytest.approx([0, 1]) and 0.2 < now["shares"][1][0] < 0.8
    )  # as the course tells
    page.get_by_role("slider", name="start x").fill("-0.4")
    page.get_by_role("slider", name="noise").fill("5")
    page.get_by_role("slider", name="steps").fill("0")
    now = settled(page, state)
    assert (now["sigma"], now["steps"], now["starts"][0]) == (2, 20, -0.4)
    same_samples(now, mixtures["two_modes"])
    page.get_by_label("law at t = 1").select_option("1")
    page.get_by_role("checkbox", name="all from one start").uncheck()
    now = settled(page, state)
    assert now["mixture"] == "gmm4" and len(set(now["starts"])) == 200
    same_samples(now, mixtures["gmm4"])
    before = now["noise"]
    page.get_by_role("button", name="New noise").click()
    now = settled(page, state)
    assert now["noise"] != before
    same_samples(now, mixtures["gmm4"])
    page.get_by_role("slider", name="noise").fill("0")
    now = settled(page, state)
    assert torch.allclose(torch.tensor(now["ode"]), torch.tensor(now["sde"]))  # the SDE is the ODE


def test_the_ode_and_the_sde_reach_the_same_law(show, tmp_path, mixtures):
    scene = ode_sde_scene([("two_modes", mixtures["two_modes"])])
    page, state = opened(show, tmp_path, scene)
    page.get_by_role("slider", name="samples").fill("1000")
    page.get_by_role("slider", name="steps").fill("2")
    page.get_by_role("slider", name="time").fill("30")
    now = settled(page, state)
    assert now["k"] == 30 and now["sigma"] == 1
    for name, shares in zip(("ode", "sde"), now["shares"], strict=True):
        assert shares == pytest.approx([0.5, 0.5], abs=4 * 0.5 / 1000**0.5)
        ends = torch.tensor(now[name][-1], dtype=torch.float64)
        assert ends.abs().mean().item() == pytest.approx(5, abs=4 * 0.3 / 1000**0.5 + 0.02)
        assert ends.abs().std().item() == pytest.approx(0.3, abs=0.04)
    row = page.get_by_role("table").locator("tbody tr").first
    assert row.locator("td").first.inner_text() == "50.0 %"
