"""Pictures: every pixel of a grid is accounted for, files are repeatable, bad input is named."""

import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

from fmdiff.errors import FmdiffError
from fmdiff.pictures import animate, plots


@pytest.fixture
def rng():
    return np.random.default_rng(0)


def pictures(rng, *shape):
    return rng.integers(0, 256, shape, dtype=np.uint8)


def seen(monkeypatch, name):
    """The figures' clouds or histograms as (points or values, axes) while a test draws."""
    calls, real = [], getattr(plots, name)

    def record(ax, points, *rest, **look):
        calls.append((np.array(points), ax))
        real(ax, points, *rest, **look)

    monkeypatch.setattr(plots, name, record)
    return calls


# --- grids


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("labelled", [False, True])
def test_every_pixel_of_a_grid(rng, channels, labelled):
    n, columns, scale, height, width = 7, 3, 5, 6, 9
    images = pictures(rng, n, height, width, channels)
    labels = list(range(n)) if labelled else None
    picture = np.asarray(plots.grid(images, labels, columns, scale))
    gap = 2
    caption = 9 + 3 if labelled else 0
    down, right = height * scale + caption + gap, width * scale + gap
    assert picture.shape == (gap + 3 * down, gap + 3 * right, 3)
    rest = np.ones(picture.shape[:2], bool)
    for i, image in enumerate(images):
        y, x = gap + i // columns * down, gap + i % columns * right
        tile = np.kron(image, np.ones((scale, scale, 1), np.uint8))
        place = np.s_[y : y + height * scale, x : x + width * scale]
        assert (picture[place] == tile).all()
        rest[place] = False
        strip = picture[y + height * scale : y + height * scale + caption, place[1]]
        rest[y + height * scale : y + height * scale + caption, place[1]] = False
        assert not labelled or strip.min() < 128
    assert (picture[rest] == 255).all()


@pytest.mark.parametrize(
    ("shape", "size"),
    [
        ((64, 8, 8, 1), (804, 804)),
        ((64, 28, 28, 1), (699, 699)),
        ((64, 32, 32, 3), (804, 804)),
        ((10, 28, 28, 1), (5 * 145 + 5, 2 * 145 + 5)),  # two full rows, not 4 + 4 + 2
        ((1, 8, 8, 1), (172, 172)),
        ((2, 400, 500, 3), (2 * 520 + 20, 440)),  # large images are never reduced
    ],
)
def test_default_size(shape, size):
    assert plots.grid(np.zeros(shape, np.uint8)).size == size


def test_fewer_images_than_a_row(rng):
    images = pictures(rng, 3, 8, 8, 1)
    assert plots.grid(images, columns=8, scale=2).size == plots.grid(images, None, 3, 2).size


def test_a_long_label_stays_under_its_tile(rng):
    images = pictures(rng, 2, 8, 8, 1)
    one = np.asarray(plots.grid(images, ["a very long label indeed", ""], scale=4))
    two = np.asarray(plots.grid(images, ["", ""], scale=4))
    changed = np.nonzero((one != two).any(axis=(0, 2)))[0]
    assert changed.size and changed.min() >= 2 and changed.max() < 2 + 8 * 4


@pytest.mark.parametrize(
    ("images", "options", "message"),
    [
        (np.zeros((2, 8, 8, 1), np.float32), {}, "uint8.*float32"),  # would wrap around
        (np.zeros((2, 8, 8, 2), np.uint8), {}, "1 or 3"),
        (np.zeros((0, 8, 8, 1), np.uint8), {}, "at least one"),
        (np.zeros((2, 8, 8, 1), np.uint8), {"labels": [1]}, "1 labels.*2 images"),
        (np.zeros((2, 8, 8, 1), np.uint8), {"columns": 0}, "columns=0"),
        (np.zeros((2, 8, 8, 1), np.uint8), {"scale": -1}, "scale=-1"),
    ],
)
def test_bad_grids(images, options, message):
    with pytest.raises(FmdiffError, match=message):
        plots.grid(images, **options)


# --- points


def test_samples_beside_the_data_on_the_same_axes(rng):
    points, data = rng.normal(size=(1500, 2)), rng.normal(size=(900, 2))
    left, right = plots.scatter(points, data, title="moons").axes
    assert (left.get_title("left"), right.get_title("left")) == ("moons (n=1,500)", "data")
    assert left.get_xlim() == right.get_xlim() and left.get_ylim() == right.get_ylim()
    assert left.get_aspect() == right.get_aspect() == 1
    assert (left.lines[0].get_xydata() == points).all()
    assert (right.lines[0].get_xydata() == data).all()


def test_strays_are_counted_and_do_not_shrink_the_picture(rng):
    points, data = rng.uniform(size=(500, 2)), rng.uniform(size=(500, 2))
    points[:3] = 1e6
    left = plots.scatter(points, data).axes[0]
    assert left.get_title("left") == "samples (n=500, 3 outside)"
    assert left.get_xlim()[1] < 1.5


def test_more_than_two_dimensions_are_named(rng):
    [ax] = plots.scatter(rng.normal(size=(50, 3))).axes
    assert "coordinates 1 and 2 of 3" in ax.get_title("left")


def test_one_dimension_is_two_overlaid_densities(rng):
    data = rng.normal(size=(4000, 1))
    [ax] = plots.scatter(rng.normal(size=(1000, 1)), data).axes
    legend = [text.get_text() for text in ax.get_legend().get_texts()]
    assert sorted(legend) == ["data", "samples"]
    area = sum(bar.get_width() * bar.get_height() for bar in ax.containers[0])
    assert area == pytest.approx(1, abs=1e-3)


@pytest.mark.parametrize("d", [1, 2, 3])
@pytest.mark.parametrize("n", [1, 2, 40])
def test_few_and_equal_points_can_be_drawn(d, n):
    picture = plots.render(plots.scatter(np.zeros((n, d), np.float32), np.zeros((n, d))))
    assert np.asarray(picture).min() < 255


def test_samples_that_are_not_finite_are_counted():
    points = np.zeros((10, 2), np.float32)
    points[2] = np.nan
    points[5, 1] = np.inf
    with pytest.raises(FmdiffError, match="2 of 10 samples are not finite"):
        plots.scatter(points)
    with pytest.raises(FmdiffError, match="2 of 10 data points are not finite"):
        plots.scatter(np.zeros((10, 2)), points)
    with pytest.raises(FmdiffError, match=r"2 of 10 samples at t = 1 "):
        animate.point_frames(np.stack([np.zeros((10, 2)), points]), [0, 1])
    with pytest.raises(FmdiffError, match="2 of 10 samples"):
        plots.fan(np.stack([np.zeros((10, 1)), points[:, :1] + points[:, 1:]]), [0, 1])


@pytest.mark.parametrize("shape", [(10,), (0, 2), (3, 2, 2)])
def test_other_shapes_are_refused(shape):
    with pytest.raises(FmdiffError, match=r"\(N, d\)"):
        plots.scatter(np.zeros(shape))


def test_fan_draws_trajectories_and_the_end(rng, monkeypatch):
    histograms = seen(monkeypatch, "histogram")
    trajectories, times = rng.normal(size=(5, 400, 1)), np.linspace(0, 1, 5)
    ax, _ = plots.fan(trajectories, times, data=rng.normal(size=(50, 1))).axes
    assert ax.get_title("left") == "trajectories (n=400), 300 drawn"
    segments = np.array(ax.collections[0].get_segments())
    assert segments.shape == (300, 5, 2)
    assert (segments[..., 0] == times).all()
    assert (trajectories[:, :300, 0] == segments[..., 1].T).all()
    assert (histograms[0][0] == trajectories[-1]).all()
    with pytest.raises(FmdiffError, match="1-D trajectories"):
        plots.fan(np.zeros((5, 4, 2)), times)
    with pytest.raises(FmdiffError, match="with 4"):
        plots.fan(trajectories, times[1:])


# --- animations


@pytest.mark.parametrize("d", [1, 2, 3])
def test_point_frames_keep_their_axes(rng, monkeypatch, d):
    calls = seen(monkeypatch, "histogram" if d == 1 else "cloud")
    trajectories = rng.normal(size=(3, 30, d)) * np.array([3, 2, 1])[:, None, None]
    frames = animate.point_frames(trajectories, [0, 0.5, 1])
    assert len(frames) == 3 and len({frame.size for frame in frames}) == 1
    assert all((c[0] == states).all() for c, states in zip(calls, trajectories, strict=True))
    pixels = np.stack([np.asarray(frame) for frame in frames])
    assert (pixels[:, -18:] == pixels[0, -18:]).all()  # the numbers of the ticks
    assert (pixels[:, :, :24] == pixels[0, :, :24])[:, 40:].all()
    assert not (pixels[1:] == pixels[:-1]).all(axis=(1, 2, 3)).any()


def test_a_gif_keeps_the_colours_of_all_its_frames(tmp_path):
    """One palette: exact for greys."""
    levels = np.arange(256, dtype=np.uint8).reshape(1, 16, 16, 1)
    fading = np.stack([levels, levels // 2, levels // 4])
    frames = animate.image_frames(fading, [0, 0.5, 1], scale=4)
    animate.animation(frames, tmp_path / "a.gif")
    with Image.open(tmp_path / "a.gif") as stored:
        for i, frame in enumerate(frames):
            stored.seek(i)
            assert (np.asarray(stored.convert("RGB")) == np.asarray(frame)).all()
    rng = np.random.default_rng(0)
    frames = animate.image_frames(rng.integers(0, 256, (3, 4, 16, 16, 3), np.uint8), [0, 0.5, 1])
    animate.animation(frames, tmp_path / "b.gif")
    with Image.open(tmp_path / "b.gif") as stored:
        for i, frame in enumerate(frames):
            stored.seek(i)
            found, drawn = np.asarray(stored.convert("RGB")), np.asarray(frame)
            white = (drawn == 255).all(-1)
            assert white.any() and (found[white] == 255).all()
            assert abs(found.astype(int) - drawn).mean() < 20  # 256 colours of 16 million


@pytest.mark.parametrize("suffix", [".gif", ".png", ".apng", ".webp"])
def test_animation_counts_and_holds(rng, tmp_path, suffix):
    trajectories = pictures(rng, 4, 6, 8, 8, 3)
    frames = animate.image_frames(trajectories, np.linspace(0, 1, 4), range(6), scale=2)
    path = tmp_path / f"a{suffix}"
    animate.animation(frames, path, milliseconds=80, hold=900)
    durations = []
    with Image.open(path) as stored:
        assert stored.n_frames == 4 and stored.size == frames[0].size
        assert stored.info["loop"] == 0
        for i in range(4):
            stored.seek(i)
            pixels = np.asarray(stored.convert("RGB"))
            durations.append(stored.info["duration"])
            if suffix != ".gif":
                assert (pixels == np.asarray(frames[i])).all()
    assert durations == [80, 80, 80, 900]
    first = path.read_bytes()
    animate.animation(frames, path, milliseconds=80, hold=900)
    assert path.read_bytes() == first


def test_bad_animations(tmp_path):
    with pytest.raises(FmdiffError, match="at least one frame"):
        animate.animation([], tmp_path / "a.gif")
    with pytest.raises(FmdiffError, match=r"mp4.*\.gif, \.png"):
        animate.animation([Image.new("RGB", (4, 4))], tmp_path / "a.mp4")


# --- files


@pytest.mark.parametrize("suffix", [".png", ".pdf", ".svg"])
def test_figures_are_repeatable_bytes(tmp_path, suffix, monkeypatch):
    stored = []
    for i, day in enumerate(("0", "1000000000")):
        monkeypatch.setenv("SOURCE_DATE_EPOCH", day)  # another date leaves no trace
        rng = np.random.default_rng(1)
        figure = plots.scatter(rng.normal(size=(60, 2)), rng.normal(size=(60, 2)))
        plots.save(figure, tmp_path / f"{i}{suffix}")
        stored.append((tmp_path / f"{i}{suffix}").read_bytes())
    assert stored[0] == stored[1]
    if suffix == ".png":
        with Image.open(tmp_path / f"0{suffix}") as picture:
            assert "Software" not in picture.info


def test_a_grid_is_stored_as_it_is(rng, tmp_path):
    picture = plots.grid(pictures(rng, 4, 8, 8, 3), labels="abcd")
    for name in ("new/a.png", "new/b.png", "new/a.webp", "new/a.jpg"):
        plots.save(picture, tmp_path / name)
    assert (tmp_path / "new/a.png").read_bytes() == (tmp_path / "new/b.png").read_bytes()
    assert (np.asarray(Image.open(tmp_path / "new/a.png")) == np.asarray(picture)).all()
    with pytest.raises(FmdiffError, match=r"a\.tiff' must end in one of \.png"):
        plots.save(picture, tmp_path / "a.tiff")


def test_a_write_that_fails_leaves_the_old_file_alone(tmp_path, monkeypatch):
    path = tmp_path / "a.png"
    path.write_bytes(b"old")
    picture = Image.new("RGB", (4, 4))

    def fail(self, target, **options):
        target.write(b"half")
        raise OSError("disk full")

    monkeypatch.setattr(Image.Image, "save", fail)
    with pytest.raises(OSError, match="disk full"):
        plots.save(picture, path)
    assert [(p.name, p.read_bytes()) for p in tmp_path.iterdir()] == [("a.png", b"old")]


def test_grids_need_no_matplotlib_and_points_no_pyplot():
    script = (
        "import sys, numpy as np; from fmdiff.pictures import plots\n"
        "plots.grid(np.zeros((2, 8, 8, 1), np.uint8), [0, 1])\n"
        "assert not {'matplotlib', 'torch', 'torchvision', 'lightning'} & set(sys.modules)\n"
        "plots.render(plots.scatter(np.zeros((2, 2))))\n"
        "assert 'matplotlib.pyplot' not in sys.modules\n"
    )
    subprocess.run([sys.executable, "-c", script], check=True)
