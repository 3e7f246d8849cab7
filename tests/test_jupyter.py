"""What a notebook shows: samples, runs and metrics by themselves, and a tutorial that runs."""

import ast
import base64
import io
import json
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path

import pytest
import torch
from PIL import Image

import fmdiff
from fmdiff.commands.python import Trained
from fmdiff.exact import Mixture
from fmdiff.metrics.metric import Metric, Metrics
from fmdiff.path import CondOT
from fmdiff.pictures import notebook
from fmdiff.sampling import Samples

NOTEBOOK = Path(__file__).parents[1] / "docs/tutorials/notebook.ipynb"
PLAN = fmdiff.generate(
    Mixture(
        CondOT(), torch.ones(1).double(), torch.zeros(1, 2).double(), torch.eye(2)[None].double()
    ),
    4,
    steps=2,
).plan


class Page(HTMLParser):
    """Collects cells, texts and pictures, and checks that every tag is closed."""

    def __init__(self, html):
        super().__init__()
        self.open, self.cells, self.images = [], [], []
        self.feed(html)
        assert not self.open

    def handle_starttag(self, tag, attrs):
        if tag == "img":
            self.images.append(dict(attrs))
            return
        self.open.append(tag)
        if tag in ("th", "td"):
            self.cells.append("")

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if self.open and self.open[-1] in ("th", "td"):
            self.cells[-1] += data


def picture(page):
    """The one picture of a page, and its size in bytes."""
    [image] = page.images
    kind, data = image["src"].split(",")
    assert kind == "data:image/png;base64" and image["alt"]
    content = base64.b64decode(data)
    stored = Image.open(io.BytesIO(content))
    assert (str(stored.width), str(stored.height)) == (image["width"], image["height"])
    return stored, len(content)


@pytest.mark.parametrize("d", [1, 2, 5])
def test_points_show_a_scatter_and_their_cost(d):
    x = torch.randn(6000, d, generator=torch.Generator().manual_seed(0))
    page = Page(Samples(x, None, 56, 56.0, 56.0, PLAN)._repr_html_())
    stored, size = picture(page)
    assert size < 150_000 and stored.width > 300
    rows = dict(zip(page.cells[::2], page.cells[1::2], strict=True))
    steps = str(PLAN.steps)
    names = {"samples": "6,000", "shape": str(d), "steps": steps, "evaluations per sample": "56"}
    assert rows == names


@pytest.mark.parametrize("shape", [(1, 8, 8), (1, 28, 28), (3, 32, 32), (3, 256, 256)])
def test_images_show_a_grid_of_some_100_kb(shape):
    x = torch.rand(70, *shape, generator=torch.Generator().manual_seed(0)) * 2 - 1
    page = Page(Samples(x, torch.arange(70) % 12, 8, 8.0, 8.0, PLAN)._repr_html_())
    stored, size = picture(page)
    assert size <= notebook.LIMIT and max(stored.size) <= notebook.ACROSS
    assert "classes" in page.cells and "0, 1, 2, 3, 4, 5, 6, 7, 8, 9, ..." in page.cells


def test_a_grid_shows_the_samples_themselves():
    x = torch.full((1, 1, 28, 28), -1.0)
    x[..., 14:] = 1.0
    stored, _ = picture(Page(Samples(x, None, 8, 8.0, 8.0, PLAN)._repr_html_()))
    pixels = stored.convert("L").load()
    middle = stored.height // 2
    assert pixels[stored.width // 4, middle] == 0 and pixels[3 * stored.width // 4, middle] == 255


def test_what_cannot_be_drawn_is_told():
    for x, word in (
        (torch.full((5, 2), torch.nan), "5 of 5 samples"),
        (torch.ones(0, 2), "shape"),
    ):
        page = Page(Samples(x, None, 8, 8.0, 8.0, PLAN)._repr_html_())
        assert not page.images and str(len(x)) in page.cells
        assert word in Samples(x, None, 8, 8.0, 8.0, PLAN)._repr_html_()
    five = Samples(torch.zeros(2, 5, 4, 4), None, 8, 8.0, 8.0, PLAN)._repr_html_()
    assert not Page(five).images and "1 or 3" in five


def test_metrics_show_a_table_with_intervals():
    metrics = Metrics(
        sw2=Metric(0.123456, 1000, interval=(0.1, 0.15), floor=0.05, reference="<b>'&"),
        w2=Metric(2.0, 10, se=0.1),
        bare=Metric(1.0, 5),
    )
    html = metrics._repr_html_()
    cells = Page(html).cells
    assert cells[:6] == ["", "value", "95 % interval", "n", "real data", "against"]
    assert cells[6:12] == ["sw2", "0.1235", "[0.1, 0.15]", "1,000", "0.05", "<b>'&"]
    assert "<b>" not in html  # escaped
    assert cells[12:18] == ["w2", "2", "[1.804, 2.196]", "10", "", ""]
    assert cells[18:] == ["bare", "1", "", "5", "", ""]
    assert "0.1235" in Page(metrics["sw2"]._repr_html_()).cells


def test_what_computes_metrics_returns_such_a_table():
    from fmdiff.build import named
    from fmdiff.metrics.points import point_metrics
    from fmdiff.metrics.results import over_seeds

    data = named("data", "gmm4")
    runs = [point_metrics(["sw2"], data.sample(0, 64, s + 2)[0], data, 64, s) for s in (0, 1)]
    assert isinstance(runs[0], Metrics) and "against" in runs[0]._repr_html_()
    assert isinstance(over_seeds(runs, [0, 1]), Metrics)
    assert isinstance(over_seeds(runs[:1], [0]), Metrics)


def test_a_run_shows_its_newest_picture_and_its_loss(tmp_path):
    folder = tmp_path / "<i>run"
    (folder / "samples").mkdir(parents=True)
    for step, color in ((10, "black"), (20, "white")):
        Image.new("RGB", (40, 30), color).save(folder / f"samples/step_{step:07d}.png")
    (folder / "metrics.csv").write_text("step,loss,seconds\n10,2.0,1\n20,0.5,3\n")
    html = Trained(folder)._repr_html_()
    page = Page(html)
    stored, _ = picture(page)
    assert stored.size == (40, 30) and stored.convert("L").getextrema() == (255, 255)
    rows = dict(zip(page.cells[::2], page.cells[1::2], strict=True))
    assert rows == {"run": str(folder), "steps": "20", "loss": "0.5", "training time": "3 s"}
    assert "<i>" not in html
    (folder / "samples/step_0000020.png").write_bytes(b"no picture")
    assert not Page(Trained(folder)._repr_html_()).images


def test_nothing_is_drawn_before_it_is_shown():
    """fmdiff, its samples and its metrics come without matplotlib and Pillow."""
    code = (
        "import sys, fmdiff, fmdiff.sampling, fmdiff.metrics.metric\n"
        "sys.exit(' '.join({'matplotlib', 'PIL'} & sys.modules.keys()) or 0)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


# --- the tutorial


def cells():
    return json.loads(NOTEBOOK.read_text("utf-8"))["cells"]


def test_the_notebook_holds_no_outputs():
    content = json.loads(NOTEBOOK.read_text("utf-8"))
    assert content["nbformat"] == 4 and content["metadata"]["kernelspec"]["name"] == "python3"
    code = [cell for cell in cells() if cell["cell_type"] == "code"]
    assert len(code) >= 4
    assert all(cell["outputs"] == [] and cell["execution_count"] is None for cell in code)
    assert len({cell["id"] for cell in cells()}) == len(cells())


def test_the_notebook_runs_from_top_to_bottom(tmp_path, monkeypatch):
    """As Jupyter runs it: a cell that ends in an expression shows its value."""
    monkeypatch.chdir(tmp_path)
    space, shown = {}, []
    for cell in cells():
        if cell["cell_type"] == "code":
            *body, last = ast.parse("".join(cell["source"])).body
            value = isinstance(last, ast.Expr)
            rest = ast.Module(body if value else [*body, last], [])
            exec(compile(rest, "cell", "exec"), space)
            if value:
                shown.append(eval(compile(ast.Expression(last.value), "cell", "eval"), space))
    tables = [thing for thing in shown if "<table>" in thing._repr_html_()]
    assert [type(thing) for thing in tables] == [Trained, Samples, Metrics, Samples, Samples]
