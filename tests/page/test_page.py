"""`fmdiff page` and the HTML it writes, without a browser."""

import base64
import hashlib
import json
import re
import shlex
import shutil

import pytest
import torch

from fmdiff.build import build, spec_of
from fmdiff.commands.page import SCENES
from fmdiff.errors import FmdiffError
from fmdiff.exact import empirical
from fmdiff.page import page as pages
from fmdiff.page.brownian import brownian_scene
from fmdiff.page.field import field_scene
from fmdiff.page.scene import Scene
from fmdiff.path import CondOT

HOSTILE = "</script><script>alert(1)</script><!--<img src=x onerror=alert(2)>&amp;"


def contents(html):
    """The scenes of a page, as its script reads them."""
    text = re.search(r'<script type="application/json" id="scenes">(.*?)</script>', html)[1]
    return json.loads(text)


class Weights:
    """Stands in place of a network: 1000 numbers."""

    def data(self):
        return {"name": HOSTILE}

    def blob(self):
        return bytes(range(250)) * 4


def test_foreign_texts_are_texts():
    scene = Scene("brownian", HOSTILE, HOSTILE, {"names": [HOSTILE]}, {"net": Weights()})
    html = pages.page_of([scene, scene], HOSTILE, f"fmdiff page {shlex.quote(HOSTILE)}")
    assert "alert(1)</script>" not in html and "<img" not in html
    assert html.count("<script") == html.count("</script>") == 4  # blobs, scenes, code
    assert contents(html)[0]["data"]["names"] == [HOSTILE]
    assert contents(html)[1]["graphs"]["net"]["data"]["name"] == HOSTILE


def test_no_other_script_may_run_and_nothing_is_loaded():
    html = pages.page_of([brownian_scene()], "a", "b")
    policy = re.search(r'Content-Security-Policy" content="([^"]*)"', html)[1]
    code = re.search(r"<script>(.*?)</script>", html, re.DOTALL)[1]
    digest = base64.b64encode(hashlib.sha256(code.encode()).digest()).decode()
    assert policy.split("; ")[0] == "default-src 'none'"
    assert f"script-src 'sha256-{digest}' 'wasm-unsafe-eval'" in policy.split("; ")
    script = policy.partition("script-src")[2]
    assert "unsafe-inline" not in script and " 'unsafe-eval'" not in script
    assert "http" not in policy
    assert not re.search(r'(?:src|href)="(?!data:,|#)', html)


def test_a_page_that_is_too_large_is_not_written(tmp_path):
    scene = Scene("brownian", "a", "b", {"x": "1" * pages.LIMIT})
    with pytest.raises(FmdiffError, match=r"5\.\d MB, and a page may have 5"):
        pages.write_page([scene], tmp_path / "a.html", "a", "b")
    assert not list(tmp_path.iterdir())


def test_a_number_that_json_lacks_is_refused():
    with pytest.raises(ValueError, match="JSON"):
        pages.as_json({"x": float("nan")})


def test_every_scene_has_its_javascript():
    code = pages.script()
    for name in SCENES:
        assert f"fm.scenes.{name} = " in code


def test_files_fit_on_a_few_screens():
    for file in pages.FOLDER.glob("*.js"):
        assert len(file.read_text("utf-8").splitlines()) <= 400, file


def test_brownian_data_are_the_law_and_the_step():
    data = brownian_scene(theta=3.0, diffusion=2.0, x0=[1.0, -1.0], t_end=2.0).data
    row = data["thetas"].index(3.0)
    assert data["start"] == {"theta": 3.0, "sigma": 2.0, "x0": [1.0, -1.0]}
    t = torch.tensor(data["times"], dtype=torch.float64)
    assert torch.allclose(torch.tensor(data["means"][row]).double(), torch.exp(-3 * t))
    variance = (1 - torch.exp(-6 * t)) / 6
    assert torch.allclose(torch.tensor(data["variances"][row]).double(), variance, atol=1e-7)
    assert torch.allclose(torch.tensor(data["variances"][0]).double(), t)  # theta = 0
    h = 2.0 / data["steps"][1]
    assert data["rows"][row][1] == pytest.approx((1 - 3 * h, h**0.5), abs=1e-12)


def test_the_command_writes_a_page_and_says_where(command, tmp_path, capsys):
    assert command("page", "system=ou", "system.theta=2") == 0
    assert capsys.readouterr().out.splitlines()[-1] == "outputs/page.html"
    html = (tmp_path / "outputs/page.html").read_text()
    assert [scene["kind"] for scene in contents(html)] == ["brownian"]
    assert contents(html)[0]["data"]["start"] == {"theta": 2.0, "sigma": 1.0, "x0": [3.0]}
    assert "fmdiff page system=ou system.theta=2" in html
    assert command("page", "system=ou") == 2  # it exists
    assert "outputs/page.html exists: add overwrite=true" in capsys.readouterr().err
    assert (tmp_path / "outputs/page.html").read_text() == html
    assert command("page", "system=ou", "overwrite=true", "out=a/b.html") == 0
    assert (tmp_path / "a/b.html").is_file()
    assert {p.name for p in tmp_path.iterdir()} == {"outputs", "a"}


@pytest.mark.parametrize(
    "words, sentence",
    [
        (("scenes=[brownain]",), "did you mean 'brownian'?"),
        (
            ("system=velocities", "system.u=[1,2]"),
            "no scene can show the system velocities: field",
        ),
        (("scenes=brownian",), "must be a list of scenes like [field,euler], or null"),
        (
            ("system=saddle", "scenes=[brownian]"),
            "scenes=[brownian] shows brownian or ou, not the system",
        ),
        (("system=ou", "ckpt=x"), "give one of them"),
        (("data=moons",), "data=moons needs model=exact or model=empirical"),
        (("model=exact",), "model=exact needs data=NAME"),
        (("model=mlp", "data=moons"), "model=mlp is a network"),
        (("system=ou", "t_end=0"), "t_end=0: must be a number > 0"),
        (("system=ou", "out=/proc/page.html"), "out=/proc/page.html cannot be written to"),
    ],
)
def test_what_cannot_be_shown_is_refused(command, tmp_path, capsys, words, sentence):
    assert command("page", *words) == 2
    out, err = capsys.readouterr()
    assert sentence in err and len(err.splitlines()) == 1 and not out
    assert not list(tmp_path.iterdir())


def test_foreign_names_of_classes_are_texts():
    data = build({**spec_of("data", "moons"), "conditional": True})
    named = empirical(data, CondOT(), 5)
    named.names = (HOSTILE, "b")
    html = pages.page_of([field_scene(fields=[(HOSTILE, named, data)])], HOSTILE, "fmdiff page")
    assert "alert(1)</script>" not in html and html.count("<script") == html.count("</script>")
    about = contents(html)[0]["data"]["fields"][0]
    assert about["classes"] == [HOSTILE, "b", "all"] and about["text"] == HOSTILE


def test_the_page_of_a_run_lies_beside_it_and_its_report_says_so(
    command, tmp_path, capsys, moons_run
):
    shutil.copytree(moons_run, tmp_path / "run")
    assert command("report", "runs=run") == 0
    report = (tmp_path / "run/report.html").read_text()
    assert "fmdiff page ckpt=run<" in report and "page.html" not in report
    assert command("page", "ckpt=run") == 0
    assert capsys.readouterr().out.splitlines()[-1] == "run/page.html"
    html = (tmp_path / "run/page.html").read_text()
    assert [scene["kind"] for scene in contents(html)] == ["field", "sampler"]
    assert len(html) < 1_500_000
    assert command("report", "runs=run") == command("report", "runs=run", "out=far.html") == 0
    assert 'href="page.html"' in (tmp_path / "run/report.html").read_text()
    assert "page.html" not in (tmp_path / "far.html").read_text()


def test_the_report_of_a_simulation_has_the_page_of_its_system(command, tmp_path):
    words = ("system=saddle", "system.theta=0.5", "steps=5", "t_end=2")
    assert command("simulate", *words, "out=run") == 0
    line = "fmdiff page system=saddle system.theta=0.5 t_end=2<"
    assert line in (tmp_path / "run/report.html").read_text()
    assert command("simulate", "system=velocities", "system.u=[1,2]", "out=other") == 0
    assert "fmdiff page" not in (tmp_path / "other/report.html").read_text()
