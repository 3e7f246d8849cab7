"""Points, series, images and arrays through train, sample, evaluate and report."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from fmdiff.codec import Standard
from fmdiff.data.base import Toy

CPU = ("device=cpu", "threads=1")
NAMES, LEVELS = ("height", "colour", "year"), ("red", "green")


class Waves(Toy):
    """Two channels of cosines with random phases."""

    shape = (2, 24)

    def draw(self, n, generator):
        phase = 6.2832 * torch.rand(n, 2, 1, generator=generator)
        return torch.cos(
            2 * torch.pi * torch.tensor([2, 5])[:, None] * torch.arange(24) / 24 + phase
        )


class Coded(Toy):
    """Draws what a user knows; a model learns it standardised."""

    @property
    def codec(self):
        ones = torch.ones(self.shape[0], dtype=torch.float64)
        return self.dressed(Standard.of(self.shape, 10 * ones, 2 * ones))

    def dressed(self, codec):
        return codec

    def sample(self, start, stop, seed):
        x, y = super().sample(start, stop, seed)
        return self.codec.decode(x), y

    def comparable(self, x):
        return self.codec.encode(x)


class Rows(Coded):
    """A normal column, categories 0 and 1, and a constant, 10 in the user's units."""

    shape = (3,)

    def dressed(self, codec):
        codec.column_names, codec.levels = NAMES, {"colour": LEVELS}
        return codec

    def draw(self, n, generator):
        x = torch.randn(n, 3, generator=generator)
        x[:, 1] = (x[:, 1] > 0) / 2 - 5
        x[:, 2] = 0
        return x


class Maps(Coded):
    """Two channels of smooth noise that are no pixels."""

    shape = (2, 6, 8)

    def draw(self, n, generator):
        return torch.randn(n, 2, 6, 1, generator=generator).expand(n, 2, 6, 8).contiguous()


@pytest.fixture(autouse=True)
def own(tmp_path):
    folder = tmp_path / "own/data"
    folder.mkdir(parents=True)
    for name in ("Waves", "Rows", "Maps"):
        text = f"_target_: test_kinds.{name}\nbatch_size: 64\nconditional: false\nonly: null\n"
        (folder / f"{name.lower()}.yaml").write_text(text)
    return (f"--config-dir={tmp_path / 'own'}", *CPU)


def report(folder):
    return json.loads(Path(folder, "results.json").read_text())


@pytest.mark.parametrize(
    ("data", "picture", "names"),
    [
        ("waves", "series.png", ("sw2", "energy", "autocovariance", "spectrum")),
        ("rows", "corner.png", ("sw2", "w2", "mmd2", "energy", "ks", "correlation")),
        ("maps", "grid.png", ("sw2", "energy")),
    ],
)
def test_real_data_are_drawn_and_judged_by_their_kind(command, own, data, picture, names, capfd):
    shape = {"waves": (2, 24), "rows": (3,), "maps": (2, 6, 8)}[data]
    words = ("model=data", f"data={data}", "n=40", *own)
    assert command("sample", *words, "out=drawn") == 0
    x = np.load("drawn/samples.npz")["arr_0"]
    assert x.shape == (40, *shape) and x.dtype == np.float32
    assert data == "waves" or abs(np.median(x) - 10) < 1  # in the user's units
    with Image.open(f"drawn/{picture}") as image:
        assert image.width > 100
    told = capfd.readouterr().out
    assert ("side by side" in told) == (data == "maps")
    assert command("evaluate", "samples=drawn", f"data={data}", *own, "out=judged") == 0
    found = report("judged")["metrics"]
    assert tuple(found) == names
    assert all(metric["floor"] is not None for metric in found.values())
    for metric in found.values():  # samples of the data themselves
        assert abs(metric["value"]) < 5 * metric["floor"] + 1e-6


def test_files_are_judged_by_the_kind_of_their_arrays(command, own, capfd):
    rng = np.random.default_rng(0)
    np.savez("a.npz", arr_0=rng.normal(size=(30, 1, 400)))
    np.savez("b.npz", arr_0=rng.normal(size=(30, 1, 400)))
    words = ("samples=a.npz", *own, "out=judged", "overwrite=true")
    assert command("evaluate", *words, "against=b.npz") == 0
    assert "sw2, energy: compares 256 of the 400 numbers" in capfd.readouterr().out
    assert set(report("judged")["metrics"]) == {"sw2", "energy", "autocovariance", "spectrum"}
    np.savez("short.npz", arr_0=rng.normal(size=(30, 1, 40)))
    assert command("evaluate", *words, "against=short.npz") == 2
    np.savez("maps.npz", arr_0=rng.normal(size=(30, 1, 8, 8)))
    np.savez("pixels.npz", arr_0=np.zeros((30, 8, 8, 1), np.uint8))
    assert command("evaluate", "samples=maps.npz", "against=pixels.npz", *own, "out=c") == 2
    told = capfd.readouterr().err
    assert "is data of shape [1, 40]" in told and "images are no reference of arrays" in told
    assert command("evaluate", *words, "against=b.npz", "metrics=[ks]") == 2
    assert "metrics=[ks] cannot be had for series of a file" in capfd.readouterr().err
    assert command("evaluate", *words, "against=b.npz", "data=waves") == 2
    assert "give one of them" in capfd.readouterr().err


def test_a_run_of_a_table_shows_columns_everywhere(command, own):
    words = ("model=mlp", "model.hidden=16", "trainer.max_steps=20", "trainer.logger=csv")
    more = ("trainer.metrics=[sw2,ks]", "trainer.metrics_every=20", "trainer.metrics_n=100")
    assert command("train", "data=rows", *words, *more, *own, "out=run") == 0
    assert len(list(Path("run/samples").glob("step_*.png"))) == 1
    trust = ("trust=[test_kinds.]", *CPU)
    drawn = ("n=50", "steps=2", "trajectory=true", "metrics=[ks]", "out=run/samples/one")
    assert command("sample", "ckpt=run", *drawn, *trust) == 0
    found = {path.name for path in Path("run/samples/one").iterdir()}
    assert {"corner.png", "trajectory.gif"} <= found and "field.gif" not in found
    assert report("run/samples/one")["metrics"]["ks"]["extra"]["worst"] in map(repr, NAMES)
    assert command("report", "runs=run") == 0
    page = Path("run/report.html").read_text()
    assert "generated rows" in page and "each column against" in page.lower()
