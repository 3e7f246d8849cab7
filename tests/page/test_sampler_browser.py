"""The scene `sampler` in a real Chromium: each control moves, and Python agrees with it."""

from functools import cache
from itertools import pairwise
from types import SimpleNamespace

import pytest
import torch
from test_program import mixture, network

import fmdiff
from fmdiff.build import named
from fmdiff.exact import exact
from fmdiff.guidance import CFG
from fmdiff.page.page import write_page
from fmdiff.page.sampler import POOL, SIGMAS, sampler_scene
from fmdiff.path import VP, CondOT
from fmdiff.sampling import Sampler
from fmdiff.solvers.jump import Jump
from fmdiff.solvers.stochastic import EulerMaruyama

pytestmark = pytest.mark.slow

CLOSE = {"rtol": 1e-5, "atol": 1e-5}
READ = """() => {
    const s = fm.state.sampler, flat = (list) => list.map((x) => [...x]);
    return {
        ...s, program: null, start: [...s.start], noise: flat(s.noise), frames: flat(s.frames),
        x: [...s.x], y: [...s.y], estimate: null,
        estimates: s.estimates.map(({ t, x }) => [t, [...x]]),
    };
}"""


def subject(name):
    """(a field, its data), one of every sort that the scene plays."""
    if name == "pool":
        return mixture(VP(), labels=True), None
    if name == "network":
        return network(VP(), classes=4), named("data", "gmm4", conditional=True)
    if name in ("zoo", "map"):
        field = network(CondOT(), maps=True) if name == "map" else fmdiff.load("zoo:moons")
        return field, named("data", "moons")
    data = named("data", {"exact": "8gaussians", "line": "two_modes"}[name])
    return exact(data, CondOT()), data


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    """Writes the page of a field, once; returns the field and the file."""
    folder = tmp_path_factory.mktemp("sampler")

    @cache
    def written(name):
        field, data = subject(name)
        scene = sampler_scene(field, data, steps=(2, 4), particles=60)
        write_page([scene], folder / f"{name}.html", name, "fmdiff page")
        return field, folder / f"{name}.html"

    return written


@pytest.fixture
def scene(show, written):
    """Opens the page of a field: the page, the field, and `read`, which waits for its samples."""

    def scene(name, **settings):
        field, path = written(name)
        page = show(path, **settings)

        def read():
            for _ in range(300):
                if page.evaluate("!fm.state.sampler.busy && fm.state.sampler.x != null"):
                    return SimpleNamespace(**page.evaluate(READ))
                page.wait_for_timeout(20)
            pytest.fail("the samples do not come")

        return page, field, read

    return scene


def tensor(numbers, d):
    return torch.tensor(numbers, dtype=torch.float64).reshape(len(numbers), -1, d)


def same(state, field, monkeypatch):
    """Sampler.draw from the same start and noise gives all that the page holds."""
    d = field.shape[0]
    noise = iter(tensor(state.noise, d)) if state.noise else iter(())
    monkeypatch.setattr(Sampler, "_noise", lambda *_: lambda t, s: next(noise) * (s - t).sqrt())
    solver = {"euler_maruyama": EulerMaruyama(state.sigma or 0), "jump": Jump()}
    options = {} if state.w == 1 else {"guidance": CFG(state.w)}
    sampler = Sampler(
        solver=solver.get(state.name, state.name),
        steps=state.steps,
        dtype=torch.float64,
        **options,
    )
    t = field.path.time_of_r(torch.tensor(state.times[0], dtype=torch.float64))
    start = tensor([state.start], d)[0] * (field.path.alpha(t) + field.path.beta(t))
    classes = None if getattr(state, "class") == "all" else int(getattr(state, "class"))
    real = sampler.draw(field, x_start=start, classes=classes, trajectory=True)
    assert next(noise, None) is None
    states, times = real.trajectory
    assert state.times == times.tolist()
    torch.testing.assert_close(tensor(state.frames, d), states, **CLOSE)
    torch.testing.assert_close(tensor(state.frames, d)[-1], real.x, **CLOSE)
    estimates, at = real.x_hat
    assert [t for t, _ in state.estimates] == at.tolist()
    found = tensor([x for _, x in state.estimates], d)
    torch.testing.assert_close(found, estimates, **CLOSE)
    assert state.evaluations == real.nfe_planned == real.nfe_counted
    if real.y is not None:
        assert state.y == real.y.tolist()


@pytest.mark.parametrize("name", ["exact", "pool", "network", "zoo", "map", "line"])
def test_every_solver_gives_what_python_gives(scene, name, monkeypatch):
    page, field, read = scene(name)
    solvers = page.get_by_label("solver", exact=True)
    ends = []
    for label in solvers.locator("option").all_inner_texts():
        solvers.select_option(label=label)
        page.get_by_label("steps", exact=True).fill("1")
        state = read()
        assert (state.n, state.steps) == (60, 4)
        same(state, field, monkeypatch)
        ends.append(state.frames[-1])
    assert len(ends) == (7 if name == "map" else 6)
    for i, end in enumerate(ends):
        assert end not in ends[:i]


def test_steps_sigma_particles_and_noise(scene, monkeypatch):
    page, field, read = scene("exact")
    first = read()
    page.get_by_label("steps", exact=True).fill("0")
    state = read()
    assert (first.steps, state.steps) == (4, 2)
    assert state.start == first.start
    same(state, field, monkeypatch)
    page.get_by_label("solver", exact=True).select_option(label="Euler-Maruyama (SDE)")
    for i, sigma in enumerate(SIGMAS):
        page.get_by_label("of the SDE").fill(str(i))
        state = read()
        assert state.sigma == sigma
        same(state, field, monkeypatch)
    page.get_by_label("particles", exact=True).fill("2060")
    page.get_by_role("button", name="New noise").click()
    state = read()
    assert state.n == len(state.x) / 2 == 1960
    assert state.start[:120] != first.start
    same(state, field, monkeypatch)


@pytest.mark.parametrize("name", ["network", "pool"])
def test_classes_and_guidance(scene, name, monkeypatch):
    page, field, read = scene(name)
    state = read()
    assert state.y[: field.classes + 1] == [*range(field.classes), 0]
    for w, label in (("2.5", "all"), ("0", "1"), ("1", "2"), ("3", "0")):
        page.get_by_label("guidance w").fill(w)
        page.get_by_label("class", exact=True).select_option(label)
        state = read()
        assert state.w == float(w)
        same(state, field, monkeypatch)
        words = page.locator("code").first.inner_text()
        assert (f"guidance.w={w}" in words) == (w != "1")
        assert (f"classes={label}" in words) == (label != "all")
        assert f"costs {state.evaluations} evaluations" in page.inner_text("main")


def test_particles_of_a_pool_are_rows_of_their_class(scene):
    page, _, read = scene("pool")
    state = read()
    (held,) = page.evaluate("JSON.parse(document.getElementById('scenes').textContent)")
    (pool,) = held["data"]["pools"]
    rows = {(y, *x) for y, x in zip(pool["y"], batched(pool["x"], 2), strict=True)}
    starts = [(y, *x) for y, x in zip(state.y, batched(state.start, 2), strict=True)]
    assert set(starts) <= rows
    assert len(set(starts)) > 55  # of 60 draws among 4096


def batched(numbers, n):
    return [tuple(numbers[i : i + n]) for i in range(0, len(numbers), n)]


def test_a_pool_holds_states_of_the_field():
    """At t = 0, where alpha is not 0, the states hold a little of the data."""
    field, _ = subject("pool")
    (pool,) = sampler_scene(field, steps=(2,)).data["pools"]
    x = torch.tensor(pool["x"]).reshape(POOL, 2)
    for y in range(3):
        own = x[torch.tensor(pool["y"]) == y]
        r = field.path.r(torch.zeros(())).item()
        error = own.mean(0) - r * field.means[y]
        assert error.abs().max() < 5 / len(own) ** 0.5
        assert own.std(0).tolist() == pytest.approx([1 - r, 1 - r], abs=0.06)


def test_the_time_moves_the_particles(scene):
    page, _, read = scene("exact", reduced_motion="reduce")
    state = read()
    assert state.t == state.times[-1]
    assert state.x == state.frames[-1]
    page.get_by_label("time t").fill("0.6")
    state = read()
    assert state.t == 0.6
    frames = tensor(state.frames, 2)
    middle = frames[2].lerp(frames[3], 0.4)  # of four steps
    torch.testing.assert_close(tensor([state.x], 2)[0], middle)
    cells = page.locator("tbody tr").first.locator("td").all_inner_texts()
    numbers = [float(text.replace("\u2212", "-")) for text in cells]
    mean, spread = middle.mean(0), middle.std(0, correction=0)
    expected = torch.stack([mean, spread], 1).flatten().tolist()
    assert numbers == pytest.approx(expected, rel=1e-3, abs=1e-4)
    assert "60 particles at t = 0.6" in page.get_by_role("img").get_attribute("aria-label")
    page.wait_for_timeout(400)
    assert "60 particles at t = 0.6" in page.locator("#announcements").inner_text()


def test_it_plays_pauses_and_works_by_keyboard(scene):
    page, _, read = scene("exact")
    page.get_by_role("button", name="Pause").press("Space")  # it begins by itself
    stopped = read().t
    page.wait_for_timeout(100)
    assert read().t == stopped
    page.get_by_role("button", name="Play").press("Space")
    page.wait_for_timeout(300)
    assert read().t > stopped
    page.get_by_label("time t").press("Home")
    assert read().t == 0
    page.get_by_label("time t").press("End")
    assert read().t == 1
    page.get_by_label("steps", exact=True).press("ArrowLeft")
    assert read().steps == 2


def test_less_motion_means_no_motion(scene):
    page, _, read = scene("exact", reduced_motion="reduce")
    assert read().t == 1
    page.get_by_label("time t").fill("0.2")
    page.get_by_role("button", name="Play").click()
    assert read().t == 1
    page.get_by_role("button", name="New noise").click()
    assert read().t == 1


def picture(page):
    page.wait_for_timeout(100)
    return page.get_by_role("img").screenshot()


def test_ways_and_estimates_are_drawn(scene):
    for name in ("exact", "line"):
        page, _, read = scene(name, reduced_motion="reduce")
        read()
        page.get_by_label("time t").fill("0.6")
        shots = [picture(page)]
        for label in ("trajectories of the particles", "estimate of the data"):
            page.get_by_label(label).check()
            shots.append(picture(page))
        changed = [a != b for a, b in pairwise(shots)]
        assert changed == [name == "exact", True]  # on a line the ways are the picture


def test_a_phone_shows_it_whole(scene):
    page, _, read = scene("network", width=390, color_scheme="dark")
    read()
    assert page.evaluate("document.documentElement.scrollWidth") <= 390
