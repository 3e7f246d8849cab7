"""The scene of images in a real Chromium: what its controls show is what fmdiff samples."""

import pytest
import torch
from test_graph import network

from fmdiff import load
from fmdiff.guidance import CFG
from fmdiff.inversion import slerp
from fmdiff.page.graph import rounded
from fmdiff.page.images import images_scene
from fmdiff.page.page import write_page
from fmdiff.page.program import record
from fmdiff.path import VP, CondOT
from fmdiff.sampling import Sampler

pytestmark = pytest.mark.slow

SHAPE, CLASSES = (1, 8, 8), 3
SMALL = {"channels": 16, "multipliers": [1, 2], "attention": [-1], "head_channels": 16}
STATE = """() => {
    const list = value => value && Array.from(value);
    const { y, eps, kicks, frames, x, estimate, estimates, ...plain } = fm.state.images;
    return { ...plain, y: list(y), eps: list(eps), kicks: kicks.map(list),
        frames: frames.map(list), x: list(x), estimate: list(estimate),
        estimates: estimates.map(e => [e.t, list(e.x)]) };
}"""


def velocity():
    return network("unet", SHAPE, CLASSES, "x", VP(0.1, 20.0), **SMALL)


def flow_map():
    return network("unet", SHAPE, CLASSES, **SMALL, second_time=True, guided=True)


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    folder = tmp_path_factory.mktemp("images")
    fields = {"velocity": velocity(), "map": flow_map()}
    for name, field in fields.items():
        write_page([images_scene(field, name)], folder / f"{name}.html", name, "fmdiff page")
    return {name: (folder / f"{name}.html", rounded(field)) for name, field in fields.items()}


class Player:
    """The page, moved by its controls."""

    def __init__(self, page, shape=SHAPE):
        self.page, self.shape = page, shape
        self.wait()

    def wait(self):
        for _ in range(600):
            if not self.page.evaluate("fm.state.images.busy"):
                break
            self.page.wait_for_timeout(50)
        assert not self.page.evaluate("fm.state.images.busy")

    def choose(self, name, text):
        self.page.get_by_label(name, exact=True).select_option(label=text)

    def slide(self, name, value):
        self.page.get_by_label(name, exact=True).fill(str(value))

    def press(self, name):
        self.page.get_by_role("button", name=name).click()

    def state(self):
        self.wait()
        state = self.page.evaluate(STATE)
        shape = (state["n"], *self.shape)
        for name in ("eps", "x", "estimate"):
            state[name] = torch.tensor(state[name]).view(shape)
        state["frames"] = torch.tensor(state["frames"]).view(-1, *shape)
        return state


def close(a, b, bound=1e-4):
    size = max(1.0, b.abs().max().item())
    assert (a - b).abs().max().item() < bound * size


def sampled(field, state, w, **sampler):
    """fmdiff's own samples from the noise and for the labels of the page."""
    guidance = {} if w is None else {"guidance": CFG(w=w)}
    maker = Sampler(steps=state["steps"], **guidance, **sampler)
    return maker.draw(field, eps=state["eps"], classes=state["y"], trajectory=True)


@pytest.mark.parametrize("name", ["dpmpp_2m", "heun", "euler"])
@pytest.mark.parametrize("w", [None, 2.5])
def test_solvers_guidance_and_classes(files, show, name, w):
    file, field = files["velocity"]
    player = Player(show(file))
    label = {"dpmpp_2m": "DPM-Solver++ 2M (ODE)", "heun": "Heun (ODE, order 2)"}
    player.choose("solver", label.get(name, "Euler (ODE, order 1)"))
    player.slide("steps", 1)
    if w:
        player.slide("guidance w", w)
        player.choose("class", "2")
    state = player.state()
    assert (state["steps"], state["solver"], state["w"]) == (8, name, w or 1)
    assert state["y"] == ([2, 2, 2, 2] if w else [0, 1, 2, 0])
    samples = sampled(field, state, w, solver=name)
    close(state["frames"], samples.trajectory[0])
    close(state["frames"][-1], samples.x)


@pytest.mark.parametrize("step, jumps", [(0, 1), (1, 2), (2, 4)])
def test_jumps_of_a_flow_map_at_a_scale_of_guidance(files, show, step, jumps):
    file, field = files["map"]
    player = Player(show(file))
    player.slide("steps", step)
    player.slide("guidance w", 2.5)
    player.choose("images", "9")
    state = player.state()
    assert (state["n"], state["steps"], state["solver"]) == (9, jumps, "jump")
    samples = sampled(field, state, 2.5)
    close(state["frames"], samples.trajectory[0])


def test_the_noise_of_an_sde_is_used_as_it_is_drawn(files, show):
    file, field = files["velocity"]
    player = Player(show(file))
    player.choose("solver", "DDPM (SDE)")
    player.slide("steps", 0)
    state = player.state()
    program = record(Sampler("ddpm", steps=14), field)
    kicks = iter(torch.tensor(k, dtype=torch.float64).view(-1, *SHAPE) for k in state["kicks"])
    bound = field.to("cpu", torch.float32).bind(torch.tensor(state["y"]))
    values = program.run(
        lambda x, t, kind, s: bound.predict(x.float(), t, kind).double(),
        program.scale * state["eps"].double(),
        lambda t, s: next(kicks) * (s - t) ** 0.5,
    )
    assert next(kicks, None) is None
    close(state["frames"][-1], values[-1] * program.states[-1].size)


def test_new_noise_and_a_walk_between_two(files, show):
    file, field = files["map"]
    player = Player(show(file))
    first = player.state()
    player.press("New noise")
    second = player.state()
    assert (first["seed"], second["seed"]) == (1, 2)
    assert player.page.get_by_text("Noise number 2", exact=True).is_visible()
    assert abs(second["eps"].std().item() - 1) < 0.1
    assert (first["eps"] - second["eps"]).abs().max() > 1
    player.slide("walk to the next noise", 0.4)
    walk = player.state()
    player.press("New noise")
    third = player.state()
    close(walk["eps"], slerp(second["eps"], third["eps"], torch.tensor([0.4]))[0], 1e-5)
    close(walk["frames"][-1], sampled(field, walk, 1.0).x)


def test_time_shows_states_and_estimates(files, show):
    file, field = files["velocity"]
    player = Player(show(file))
    state = player.state()
    samples = sampled(field, state, None, solver="dpmpp_2m")
    for share in (0.0, 0.35, 0.7, 1.0):
        player.slide("time t (0 noise, 1 data)", share)
        now = player.state()
        i = state["times"].index(now["t"])
        close(now["x"], samples.trajectory[0][i])
        estimates, at = samples.x_hat
        late = (at <= now["t"] + 1e-9).nonzero().flatten()
        close(now["estimate"], estimates[late[-1] if len(late) else 0])
    assert i == len(state["times"]) - 1


def test_pixels(files, show):
    file, _ = files["map"]
    page = show(file)
    state = Player(page).state()
    pixels = page.evaluate(
        "[...document.querySelector('canvas').getContext('2d').getImageData(0, 0, 8, 8).data]"
    )
    image = ((state["x"][0, 0] + 1) * 127.5).round().clamp(0, 255)
    shown = torch.tensor(pixels).view(8, 8, 4)
    for channel in range(3):
        assert (shown[..., channel] - image).abs().max() <= 1
    assert (shown[..., 3] == 255).all()
    scale = page.evaluate("parseFloat(document.querySelector('canvas').style.width) / 17")
    assert scale == int(scale) > 1


def test_keyboard_screen_reader_and_phone(files, show):
    file, _ = files["map"]
    page = show(file, width=390, height=800, reduced_motion="reduce", color_scheme="dark")
    player = Player(page)
    assert page.evaluate("document.documentElement.scrollWidth") <= 390
    slider = page.get_by_label("walk to the next noise")
    slider.focus()
    page.keyboard.press("ArrowRight")
    assert player.state()["walk"] == 0.01
    said = page.get_by_role("img").first.get_attribute("aria-label")
    assert said == "the state at time t: 4 images at t = 1"
    page.wait_for_timeout(500)
    assert (
        "4 images at t = 1, class every class in turn"
        in page.locator("#announcements").inner_text()
    )
    player.slide("time t (0 noise, 1 data)", 0)
    page.get_by_role("button", name="Play").press("Enter")
    assert player.state()["t"] == 1


def test_play_runs_from_noise_to_data(files, show):
    player = Player(show(files["velocity"][0]))
    player.press("Play")
    player.page.wait_for_timeout(700)
    assert 0 < player.state()["t"] < 1
    player.press("Pause")
    before = player.state()["t"]
    player.page.wait_for_timeout(300)
    assert player.state()["t"] == before


def test_the_last_of_many_wishes_counts(files, show):
    player = Player(show(files["velocity"][0]))
    for w in (1.5, 2.0, 3.0):
        player.slide("guidance w", w)
    assert player.state()["w"] == 3.0


def test_the_map_of_mnist_draws_a_digit_in_a_second_and_its_page_is_small(tmp_path, show):
    field = network("unet", (1, 28, 28), 10, path=CondOT(), second_time=True, guided=True)
    file = tmp_path / "page.html"
    write_page([images_scene(field)], file, "a", "b")
    assert sum(p.numel() for p in field.net.parameters()) > 1.9e6
    assert file.stat().st_size < 5e6
    page = show(file)
    player = Player(page)
    player.choose("images", "1")
    player.slide("steps", 0)
    player.wait()
    player.press("New noise")
    player.wait()
    assert page.evaluate("fm.state.images.steps") == 1
    assert page.evaluate("fm.state.images.seconds") < 1


@pytest.mark.parametrize("name", ["digits", "mnist", "mnist_map"])
def test_models_of_the_zoo(tmp_path, show, name):
    field, file = load(f"zoo:{name}"), tmp_path / "page.html"
    write_page([images_scene(field)], file, "a", "b")
    assert file.stat().st_size < 5e6
    player = Player(show(file), field.shape)
    player.slide("guidance w", 2)
    player.choose("class", "7")
    player.choose("images", "1")
    state = player.state()
    assert (state["y"], state["w"]) == ([7], 2)
    solver = {} if state["solver"] == "jump" else {"solver": state["solver"]}
    samples = sampled(rounded(field), state, 2.0, **solver)
    close(state["frames"], samples.trajectory[0])
    assert samples.x.max() > 0.9 and samples.x.min() < -0.9
