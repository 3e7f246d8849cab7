"""Pictures of series and of tables: what is drawn where, from arrays alone."""

import numpy as np
import pytest
from matplotlib.collections import PolyCollection

from fmdiff.errors import FmdiffError
from fmdiff.pictures import plots, series, table
from fmdiff.trajectory import watch_size


@pytest.fixture
def rng():
    return np.random.default_rng(0)


def texts(figure):
    return [ax.get_title(loc="left") for ax in figure.axes]


def bands(ax):
    """The lower and upper edges of the shaded bands of axes, the outer one first."""
    edges = []
    for shade in ax.findobj(PolyCollection):
        places, heights = shade.get_paths()[0].vertices.T
        length = int(places.max()) + 1
        at = [heights[places == p] for p in range(length)]
        edges.append((np.array([h.min() for h in at]), np.array([h.max() for h in at])))
    return edges


# --- series


def test_bands_are_quantiles_and_stand_beside_those_of_the_data(rng):
    """Uniform series on [0, place + 1]: the 5, 25, 75 and 95 % quantiles are known."""
    scale = np.arange(1, 13)
    x, y = (rng.uniform(0, 1, (4000, 1, 12)) * scale for _ in range(2))
    figure = series.series(x, y)
    assert texts(figure) == ["samples (n=4,000)", "data"]
    left, right = figure.axes
    for ax in (left, right):
        assert len(ax.findobj(PolyCollection)) == 2
        for (low, high), (a, b) in zip(bands(ax), ((0.05, 0.95), (0.25, 0.75)), strict=True):
            assert low / scale == pytest.approx(a * np.ones(12), abs=0.03)
            assert high / scale == pytest.approx(b * np.ones(12), abs=0.03)
    assert left.get_ylim() == right.get_ylim()
    dashed = [line.get_ydata() for line in left.lines if line.get_linestyle() == "--"]
    assert len(dashed) == 2 and dashed[1] / scale == pytest.approx(0.95 * np.ones(12), abs=0.03)


def test_each_channel_has_its_row_and_range(rng):
    x = rng.normal(size=(50, 6, 20)) * 10.0 ** np.arange(6)[:, None]
    names = ["heat", "$x", "a name that is much longer than its axis", "d\n", "e", "f"]
    figure = series.series(x, x, names=names)
    assert len(figure.axes) == 8
    assert texts(figure)[0].endswith("channels 1 to 4 of 6")
    heights = [np.ptp(ax.get_ylim()) for ax in figure.axes[::2]]
    assert np.divide(heights[1:], heights[:-1]) == pytest.approx(10 * np.ones(3), rel=0.5)
    words = [ax.get_ylabel() for ax in figure.axes[::2]]
    assert words[:2] == ["heat", "$x"] and words[3] == "d\\n"
    assert len(words[2]) == plots.NAME and words[2].endswith("…")
    plots.render(figure)  # a dollar sign in a name starts no formula


def test_series_that_leave_the_axes_are_counted(rng):
    y = rng.uniform(-1, 1, (500, 1, 30))
    x = y.copy()
    x[:3, 0, 5] = 50
    assert texts(series.series(x, y))[0] == "samples (n=500, 3 reach outside)"


def test_series_without_data_and_of_one_place(rng):
    assert len(series.series(rng.normal(size=(10, 1, 8))).axes) == 1
    plots.render(series.series(rng.normal(size=(1, 1, 1)), np.zeros((1, 1, 1))))


def test_series_that_cannot_be_drawn_are_named(rng):
    x = rng.normal(size=(10, 1, 8))
    x[2, 0, 1] = np.nan
    with pytest.raises(FmdiffError, match="1 of 10 samples are not finite"):
        series.series(x)
    with pytest.raises(FmdiffError, match=r"must have the shape \(N, C, L\)"):
        series.series(x[:, 0])


def test_frames_of_series_have_one_frame(rng):
    states = rng.normal(size=(3, 20, 2, 16)) * np.array([5, 2, 1])[:, None, None, None]
    frames = series.series_frames(states, [0, 0.5, 1], states[-1])
    assert len({frame.size for frame in frames}) == 1 and len(frames) == 3
    # the frame of the axes and the numbers at its side stay in their places
    sides = [np.asarray(frame)[40:-60, :45] for frame in frames]
    assert np.array_equal(sides[0], sides[1]) and np.array_equal(sides[0], sides[2])
    states[1, 0, 0, 0] = np.inf
    with pytest.raises(FmdiffError, match=r"samples at t = 0.5 are not finite"):
        series.series_frames(states, [0, 0.5, 1])


# --- tables


def columns(rng, n):
    z = rng.normal(size=n)
    return np.stack([z, z * 100 + 5, rng.choice(3, n, p=[0.6, 0.3, 0.1]), np.full(n, 7.0)], 1)


NAMES, LEVELS = ("a", "b$", "colour", "year"), {"colour": ("red", "green", "blue")}


def test_samples_lie_below_the_diagonal_and_data_above_it(rng):
    x, y = columns(rng, 300), columns(rng, 200)
    figure = table.corner(x, y, names=NAMES, levels=LEVELS)
    axes = np.array(figure.axes).reshape(4, 4)
    for i, j in np.ndindex(4, 4):
        if i == j:
            continue
        across, up = axes[i, j].lines[0].get_data()
        part = x if i > j else y
        for values, column in ((across, j), (up, i)):
            spread = 0.5 if column == 2 else 1e-9  # categories are spread about their number
            assert np.abs(values - part[:, column]).max() < spread
        assert axes[i, j].get_xlim() == axes[j, j].get_xlim()
    assert [ax.get_xlabel() for ax in axes[-1]] == [*NAMES]
    assert [ax.get_ylabel() for ax in axes[:, 0]] == [*NAMES]
    assert [t.get_text() for t in axes[2, 0].get_yticklabels()] == ["red", "green", "blue"]
    plots.render(figure)


def test_bars_of_categories_are_their_shares(rng):
    x, y = columns(rng, 3000), columns(rng, 2000)
    axes = np.array(table.corner(x, y, names=NAMES, levels=LEVELS).axes).reshape(4, 4)
    data = [patch.get_height() for patch in axes[2, 2].patches[:3]]
    assert data == pytest.approx([(y[:, 2] == k).mean() for k in range(3)])


def test_at_most_eight_columns_are_drawn_and_rows_outside_are_counted(rng):
    y = rng.uniform(0, 1, (400, 11))
    x = y.copy()
    x[:4, 0] = 30
    figure = table.corner(x, y)
    assert len(figure.axes) == 64
    assert figure.get_suptitle() == "samples (n=400, 4 outside), columns 1 to 8 of 11"
    assert "2,000 drawn" in table.corner(rng.normal(size=(2001, 2))).get_suptitle()


def test_tables_without_data_and_with_bad_rows(rng):
    figure = table.corner(columns(rng, 20), names=NAMES, levels=LEVELS)
    assert sum(ax.get_visible() for ax in figure.axes) == 10
    plots.render(table.corner(columns(rng, 1), columns(rng, 1)))
    bad = columns(rng, 5)
    bad[1, 1] = np.inf
    with pytest.raises(FmdiffError, match="1 of 5 samples are not finite"):
        table.corner(bad)


def test_equal_pictures_have_equal_bytes(tmp_path, rng):
    x = columns(rng, 50)
    for name in ("first.png", "second.png"):
        plots.save(table.corner(x, x, names=NAMES, levels=LEVELS), tmp_path / name)
    assert (tmp_path / "first.png").read_bytes() == (tmp_path / "second.png").read_bytes()


@pytest.mark.parametrize(("shape", "count"), [((1, 64), 200), ((2, 2048), 64), ((1, 10**6), 20)])
def test_the_way_of_fewer_series_is_kept_if_they_are_long(shape, count):
    assert watch_size(shape) == count
