"""One look for all figures: titles at the left, axes with names, a sentence, one frame."""

from itertools import pairwise

import numpy as np
import pytest
import torch

from fmdiff import looks
from fmdiff.pictures import animate, field_error, flowplots, map_error, plots, quality, style

TIMES = np.linspace(0, 1, 5)


def figures():
    """Every figure that fmdiff draws, by name."""
    rng = np.random.default_rng(0)
    cloud, line = rng.normal(size=(40, 2)), rng.normal(size=(5, 20, 1)).cumsum(0)
    fine = TIMES, line[:, :1]
    field = {"velocity": lambda x, t: -x, "label": "euler"}
    errors = {name: ([0.1, 0.2], [1e-3, 1e-2]) for name in ("euler", "heun")}
    two = rng.normal(size=(5, 1, 2))
    ode = np.zeros((5, 1))
    return {
        "scatter": plots.scatter(cloud, cloud + 0.1),
        "histogram": plots.scatter(line[-1], line[-1] + 0.1),
        "fan": plots.fan(line, TIMES, line[-1]),
        "time": flowplots.time_plot(TIMES, line[:, :1], fine, **field),
        "phase": flowplots.phase_plot(TIMES, two, two[-1], two, **field),
        "paths": flowplots.paths_plot(
            TIMES, line, line[-1, :, 0], ode, lambda x: np.exp(-(x[:, 0] ** 2)), None, "euler"
        ),
        "errors": flowplots.errors_plot(errors, errors),
        "field error": field_error.figure([0.1, 0.9], [2, 3], [1, 1], [1, 2], "v"),
        "map error": map_error.figure([0.0, 0.5], [1.0], [[0.1, 0.2]], [[0.1, 0.2]], "std"),
        "quality": quality.figure("sw2", {"heun": [(4, 0.3), (8, 0.2)]}, [(8, 0.2)], 0.1),
    }


FIGURES = figures()


@pytest.mark.parametrize("name", FIGURES)
def test_a_figure_says_what_it_shows(name):
    figure = FIGURES[name]
    first = figure.axes[0]
    assert first.get_title("left") and not first.get_title("center")
    assert first.get_xlabel() and first.get_ylabel()
    assert figure._supxlabel.get_text().endswith(".")
    sizes = {first.title.get_fontsize(), figure._supxlabel.get_fontsize()}
    labels = {ax.xaxis.label.get_fontsize() for ax in figure.axes if ax.get_xlabel()}
    assert sizes <= {style.TITLE, style.TICK, 12.0} and labels == {style.LABEL}


@pytest.mark.parametrize("name", FIGURES)
def test_nothing_is_cut_off(name):
    """Titles, numbers and the sentence lie inside the picture, and its edges are white."""
    pixels = np.asarray(plots.render(FIGURES[name]))
    edges = (pixels[:2], pixels[-2:], pixels[:, :2], pixels[:, -2:])
    assert all((edge == 255).all() for edge in edges)


@pytest.mark.parametrize("name", FIGURES)
def test_lines_have_the_colours_of_the_style_sheet(name):
    from matplotlib.colors import to_hex

    known = {value for value in looks.LIGHT.values() if value.startswith("#")}
    drawn = {to_hex(line.get_color()) for ax in FIGURES[name].axes for line in ax.lines}
    assert drawn <= known | {"#000000"}


def test_two_equal_lines_are_both_seen():
    """The later one is thinner, has another marker and lies above."""
    looks_of = [style.series(i) for i in range(12)]
    for a, b in pairwise(looks_of[:6]):
        assert a["linewidth"] > b["linewidth"] > 0.5 and a["markersize"] > b["markersize"]
        assert a["marker"] != b["marker"] and a["zorder"] < b["zorder"]
    assert len({(look["color"], look["linestyle"]) for look in looks_of}) == 12


# --- the frame of a way from noise to data


def states(noise, data):
    return np.stack([noise, (noise + data) / 2, data])


@pytest.mark.parametrize("d", [1, 2, 3])
def test_the_frame_shows_the_data_and_the_bulk_of_the_noise(d):
    rng = np.random.default_rng(0)
    noise, data = rng.normal(size=(4000, d)), rng.uniform(-2, 2, (4000, d))
    low, high = animate.box(states(noise, data), data)
    assert len(low) == min(d, 2)
    inside = ((noise[:, :2] >= low) & (noise[:, :2] <= high)).mean(0)
    assert (inside >= 0.98).all() and (data[:, :2] >= low).all() and (data[:, :2] <= high).all()


def test_an_outlier_of_the_noise_does_not_move_the_frame():
    rng = np.random.default_rng(0)
    noise, data = rng.normal(size=(4000, 2)), rng.uniform(-1.5, 1.5, (4000, 2))
    before = animate.box(states(noise, data), data)
    assert (before[1] > 1.1 * data.max(0)).all()  # the noise matters here
    noise[7] = 1e4
    np.testing.assert_allclose(animate.box(states(noise, data), data), before, rtol=0.01)


def test_the_data_fill_half_of_the_frame_whatever_the_noise():
    """The noise of VE, with standard deviation 80, in native coordinates."""
    rng = np.random.default_rng(0)
    noise, data = 80 * rng.normal(size=(4000, 2)), rng.uniform(-1, 1, (4000, 2))
    for low, high in (animate.box(states(noise, data), data), animate.box(states(noise, data))):
        assert (np.ptp(data, axis=0) >= 0.45 * (high - low)).all()
        assert (high - low > 1.9 * np.ptp(data, axis=0)).all()


def test_the_still_picture_has_the_frame_of_the_animation(tmp_path, monkeypatch):
    from fmdiff.build import named
    from fmdiff.pictures import samples

    frames = []

    def note(*args, **options):
        frames.append(options["within"] if "within" in options else args[3])
        return real(*args, **options)

    for module, name in ((plots, "scatter"), (animate, "point_frames")):
        real = getattr(module, name)
        monkeypatch.setattr(module, name, note)
        watch = torch.randn(3, 50, 2), torch.linspace(0, 1, 3)
        data = named("data", "gmm4")
        if name == "scatter":
            samples.point_files(watch[0][-1].numpy(), data, tmp_path, watch)
            still = plots.Box, watch
        else:
            samples.films({"trajectory": still[1]}, tmp_path, "gif", data)
        monkeypatch.undo()
    assert len(frames) == 2
    np.testing.assert_array_equal(frames[0], frames[1])
