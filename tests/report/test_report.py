import base64
import csv
import html
import io
import json
import os
import shlex
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
import yaml
from PIL import Image

from fmdiff import report
from fmdiff.pictures import animate
from fmdiff.report.run import COLUMNS
from fmdiff.training.log import Log

VOID = {"meta", "link", "img", "input", "br"}
FORMULA = 'path.alpha="sin(pi*t/2)"'
EVIL = "<img src=http://evil/x onerror=alert(1)>\"'&</script></title><b>"


class Page(HTMLParser):
    """A parsed page; AssertionError where a tag is not closed in its place."""

    def __init__(self, path):
        super().__init__()
        self.source = path.read_text()
        self.open, self.tags, self.text, self.scripts = [], [], "", ""
        self.feed(self.source)
        self.close()
        assert not self.open

    def handle_starttag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if self.open[-1:] in (["script"], ["style"]):
            self.scripts += data
        else:
            self.text += f" {data} "

    def all(self, tag, **wanted):
        return [a for t, a in self.tags if t == tag and all(a.get(k) == wanted[k] for k in wanted)]

    @property
    def words(self):
        return " ".join(self.text.split())

    def pictures(self):
        """The pictures of the page, each read by Pillow from its data: URI."""
        for image in self.all("img"):
            data = base64.b64decode(image["src"].partition("base64,")[2], validate=True)
            with Image.open(io.BytesIO(data)) as picture:
                picture.load()
                assert f"{picture.width} {picture.height}" == f"{image['width']} {image['height']}"
                yield image, picture.copy()


def picture(path, value=128, size=(96, 64)):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, (value, 40, 200)).save(path)


def made(folder, steps=500, every=100, **config):
    """A run folder as training and sampling leave it, made of known values."""
    folder.mkdir(parents=True)
    cfg = {
        "choices": {"data": "moons", "model": "mlp", "path": "condot"},
        "data": {"_target_": "fmdiff.data.toy.Moons", "batch_size": 64},
        "objective": {"prediction": "v"},
        "optim": {"lr": 1e-3},
        "trainer": {"max_steps": steps},
        **config,
    }
    (folder / "config.yaml").write_text(yaml.safe_dump(cfg))
    words = ["data=moons", f"trainer.max_steps={steps}", f"out={folder}", FORMULA]
    (folder / "overrides").write_text("".join(f"{word}\n" for word in words))
    machine = {"cpus": 2, "packages": {"torch": "2.99"}, "command": ["fmdiff", "data=moons"]}
    (folder / "environment.json").write_text(json.dumps(machine))
    (folder / "train.log").write_text(
        "2026-01-01 10:00:00,123 INFO fmdiff: data moons; 12,345 parameters; writing to X\n"
        "2026-01-01 10:00:01,123 WARNING fmdiff: 2 steps were skipped\n"
    )
    with (folder / "metrics.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        bins = [f"val_loss_{i}" for i in range(5)]
        head = ["step", "loss", "grad_norm", "lr", "val_loss", *bins, "seconds"]
        writer.writerow([*head, "samples_per_second"])
        for step in range(every, steps + 1, every):
            loss = 100 / step
            writer.writerow([step, loss, 1, 1e-3, loss / 2, 1, 2, 3, 4, 5, step / 50, 3200])
    for step in range(every, steps + 1, every):
        picture(folder / f"samples/step_{step:07d}.png", step % 256)
    return folder


def sampled(folder, name="2026-01-01_11-00-00", **results):
    to = folder / "samples" / name
    picture(to / "scatter.png", 7)
    frames = [Image.new("RGB", (40, 30), (value, 0, 0)) for value in (10, 90, 250)]
    frames[0].save(to / "trajectory.gif", save_all=True, append_images=frames[1:], duration=80)
    report = {"n": 1000, "nfe_counted": 56.0, "seconds": 1.5, "config": {"ckpt": "0000500.ckpt"}}
    report["config"] |= {"weights": "ema", "choices": {"solver": "heun", "guidance": "none"}}
    (to / "sample.json").write_text(json.dumps(report))
    if results:
        (to / "results.json").write_text(json.dumps({"format": 1, "command": "x"} | results))
    return to


def written(folder):
    return Page(report.write_report(folder))


METRICS = {
    "sw2": {"value": 0.03125, "interval": [0.03, 0.0325], "n": 1000, "reference": "fresh moons"},
    "fid": {"value": 12.5, "se": 0.25, "n": 5000, "floor": 0.5, "extractor": "mnist"},
}


# What a page says


def test_a_page_tells_what_the_files_hold(tmp_path):
    folder = made(tmp_path / "run")
    sampled(folder, metrics=METRICS, warnings=["n is small"])
    found = written(folder)
    for said in (
        "12,345 parameters",
        "the velocity v",
        "500 steps of 64 samples took 10 s, 3,200 samples a second, on 2 CPU cores",
        "The validation loss is 0.1 at the end",
        "1,000 samples came from the solver heun , 56 evaluations each, from the ema weights",
        "warning: 2 steps were skipped",
        "n is small",
        "0.03125 [0.03, 0.0325]",
        "12.5 ± 0.2",
        "fresh moons",
        "5,000",
        "torch 2.99",
        "batch_size: 64",
    ):
        assert said in found.words, said
    labels = [line["data-label"] for line in found.all("polyline") if "data-label" in line]
    assert labels == [
        "training",
        "validation",
        "t 0.0-0.2",
        "t 0.2-0.4",
        "t 0.4-0.6",
        "t 0.6-0.8",
        "t 0.8-1.0",
        "lr",
        "grad_norm",
    ]
    values = found.all("polyline", **{"data-label": "validation"})[0]["data-values"]
    assert values == "100,0.5 200,0.25 300,0.1667 400,0.125 500,0.1"
    assert [t for t, _ in found.tags].count("h1") == 1
    assert all(image.get("alt") for image in found.all("img"))


def test_the_page_of_a_real_run_and_its_samples(command, moons_run, tmp_path, capsys):
    words = ("n=20", "steps=2", "schedule=uniform", "trajectory=true", "device=cpu", "threads=1")
    assert command("sample", f"ckpt={moons_run}", "out=drawn", *words) == 0
    capsys.readouterr()
    assert command("report", f"runs={moons_run}", "out=page.html") == 0
    assert capsys.readouterr().out == "page.html\n"
    found = Page(tmp_path / "page.html")
    assert "60 steps of 64 samples" in found.words
    shown = [int(image["data-step"]) for image, _ in found.pictures() if "data-step" in image]
    assert shown == [60]
    drawn = written(tmp_path / "drawn")
    assert "20 samples came from the solver adams" in drawn.words
    # scatter.png, and the frames of trajectory, x_hat and field
    assert len(list(drawn.pictures())) == 1 + 3 + 2 + 3
    sliders = [(a["data-unit"], a["data-steps"]) for a in drawn.all("input")]
    assert sliders == [("t", "0 0.5 1"), ("t", "0 0.5"), ("t", "0 0.5 1")]


def test_the_shown_command_gives_the_overrides_back(tmp_path):
    found = written(made(tmp_path / "run"))
    line = found.source.partition("<code>")[2].partition("</code>")[0]
    words = shlex.split(html.unescape(line))
    wanted = ["data=moons", "trainer.max_steps=500", FORMULA]
    assert words == ["fmdiff", "train", *wanted]


def test_pictures_over_training_are_the_files_in_their_order(tmp_path):
    found = written(made(tmp_path / "run"))
    steps = [100, 200, 300, 400, 500]
    over = [(image, picture) for image, picture in found.pictures() if "data-step" in image]
    assert [int(image["data-step"]) for image, _ in over] == steps
    assert [picture.getpixel((5, 5))[0] for _, picture in over] == [s % 256 for s in steps]
    assert ["hidden" in image for image, _ in over] == [True] * 4 + [False]
    [slider] = found.all("input")
    assert slider["data-steps"] == "100 200 300 400 500" and slider["max"] == "4"


def film_of(found):
    """The numbers and the red of the frames of an animation, and its slider."""
    frames = [(i["data-at"], p.getpixel((9, 9))[0]) for i, p in found.pictures() if "data-at" in i]
    [slider] = [a for a in found.all("input") if a["data-unit"] != "step"]
    return frames, slider


@pytest.mark.parametrize("form", ["gif", "apng", "webp"])
def test_an_animation_has_a_slider_of_t(tmp_path, form):
    to = sampled(made(tmp_path / "run"))
    (to / "trajectory.gif").unlink()
    frames = [Image.new("RGB", (40, 30), (value, 0, 0)) for value in (10, 10, 10, 90, 250)]
    animate.animation(frames, to / f"trajectory.{form}", times=[0, 0.1, 0.2, 0.7, 1])
    found = written(tmp_path / "run")
    frames, slider = film_of(found)
    # the three equal frames are one in the file, which is last seen at t = 0.2
    assert [at for at, _ in frames] == ["0.2", "0.7", "1"]
    np.testing.assert_allclose([red for _, red in frames], [10, 90, 250], atol=8)
    assert slider["data-unit"] == "t" and slider["data-steps"] == "0.2 0.7 1"
    assert slider["max"] == slider["value"] == "2" and "t of" in slider["aria-label"]
    assert found.all("button", **{"class": "play"})
    check_self_contained(found)


def test_frames_without_times_have_their_numbers(tmp_path):
    sampled(made(tmp_path / "run"))
    frames, slider = film_of(written(tmp_path / "run"))
    assert [at for at, _ in frames] == ["1", "2", "3"] and slider["data-unit"] == "frame"


@pytest.mark.parametrize("comment", [b"t 0 x", b"t nan 1 2", b"t", b"\xff\xfe"])
def test_odd_times_in_a_file_are_not_believed(tmp_path, comment):
    to = sampled(made(tmp_path / "run"))
    frames = [Image.new("RGB", (40, 30), (value, 0, 0)) for value in (10, 90, 250)]
    frames[0].save(to / "trajectory.gif", save_all=True, append_images=frames[1:], comment=comment)
    _, slider = film_of(written(tmp_path / "run"))
    assert slider["data-unit"] == "frame"


def test_every_picture_and_chart_can_be_enlarged_by_keyboard(tmp_path):
    sampled(made(tmp_path / "run"), metrics=METRICS)
    found = written(tmp_path / "run")
    things = [*found.all("img"), *found.all("svg")]
    assert len(things) > 6
    assert all(thing["tabindex"] == "0" and "enlarges" in thing["class"] for thing in things)
    assert len(found.all("dialog")) == 1


# Nothing from outside


def check_self_contained(found):
    for tag, attributes in found.tags:
        for name in ("src", "href", "srcset", "data", "action", "poster", "xlink:href"):
            assert attributes.get(name, "data:").startswith("data:"), (tag, attributes)
        assert not any(name.startswith("on") for name in attributes)
    assert {t for t, _ in found.tags}.isdisjoint({"iframe", "object", "embed", "base", "form"})
    assert [t for t, _ in found.tags].count("script") == 1
    for word in ("url(", "@import", "fetch(", "XMLHttpRequest", "http:", "https:", "import("):
        assert word not in found.scripts
    [policy] = found.all("meta", **{"http-equiv": "Content-Security-Policy"})
    assert policy["content"].startswith("default-src 'none'; img-src data:;")


def test_what_the_user_names_is_text_and_never_markup(tmp_path):
    folder = made(tmp_path / EVIL.replace("/", "|"), name=EVIL, data={"_target_": EVIL})
    (folder / "overrides").write_text(f"name={EVIL}\n")
    (folder / "environment.json").write_text(json.dumps({"packages": {EVIL: EVIL}, EVIL: EVIL}))
    (folder / "train.log").write_text(f"2026-01-01 10:00:01,123 WARNING fmdiff: {EVIL}\n")
    quoted = '"' + EVIL.replace('"', '""') + '"'
    text = (folder / "metrics.csv").read_text().replace("grad_norm", quoted)
    (folder / "metrics.csv").write_text(text)
    metric = {"value": 1.0, "n": 5, "reference": EVIL, "extractor": EVIL}
    grid = [
        {"settings": {"solver": EVIL}, "nfe_counted": k, "metrics": {EVIL: {"value": 1 / k}}}
        for k in (5, 10)
    ]
    to = sampled(folder, metrics={EVIL: metric}, grid=grid, warnings=[EVIL], samples=EVIL)
    picture(to / f"{EVIL.replace('/', '|')}.png")
    for found in (
        written(folder),
        Page(report.compare([folder, made(tmp_path / "b", name="b")], tmp_path / "c.html")),
    ):
        check_self_contained(found)
        assert not any(image["src"].startswith("http") for image in found.all("img"))
        assert not found.all("b", onerror="alert(1)")
        assert found.text.count(EVIL) >= 3


def test_a_page_fetches_nothing(tmp_path):
    folder = made(tmp_path / "run")
    sampled(folder, metrics=METRICS)
    check_self_contained(written(folder))


# Whatever lies in a folder

DAMAGED = [b"", b"\x00\xff\xfe", b'{"a": [', b"null", b"[1, 2]", b"{}", b"a: ${b}\n", b"x" * 10]
FILES = (
    "config.yaml",
    "overrides",
    "environment.json",
    "metrics.csv",
    "train.log",
    "samples/step_0000300.png",
    "samples/2026-01-01_11-00-00/sample.json",
    *(f"samples/2026-01-01_11-00-00/{n}" for n in ("results.json", "scatter.png")),
    "samples/2026-01-01_11-00-00/trajectory.gif",
)


@pytest.mark.parametrize("name", FILES)
def test_a_damaged_file_costs_its_own_part_only(tmp_path, name):
    for i, content in enumerate(DAMAGED):
        folder = made(tmp_path / str(i))
        sampled(folder, metrics=METRICS)
        (folder / name).write_bytes(content)
        found = written(folder)
        assert "Training" in found.words and "Settings" in found.words
        if name.endswith((".png", ".gif")) or (name.endswith("json") and i < 3):
            assert Path(name).name in found.words  # said, in a line of its own
        (folder / name).unlink()
        (folder / name).mkdir()
        written(folder)


ODD = [None, 3, "x", [], {}, [[]], {"value": "nan"}, {"value": None}, float("nan"), True]


@pytest.mark.parametrize("odd", ODD, ids=repr)
def test_odd_values_in_results_never_stop_a_page(tmp_path, odd):
    folder = made(tmp_path / "run")
    for key in ("metrics", "grid", "warnings", "checkpoint", "samples", "config", "versions"):
        sampled(folder, key, **{"metrics": METRICS, key: odd})
    sampled(folder, "inner", metrics={"fid": odd}, grid=[odd, {"settings": odd, "metrics": odd}])
    sampled(folder, "deeper", metrics={"fid": {"value": 1, "interval": odd, "se": odd, "n": odd}})
    to = sampled(folder, "sample")
    (to / "sample.json").write_text(json.dumps({"n": odd, "config": odd, "nfe_counted": odd}))
    for key in ("choices", "data", "objective", "trainer", "device"):
        cfg = yaml.safe_load((folder / "config.yaml").read_text()) | {key: odd}
        (folder / "config.yaml").write_text(yaml.safe_dump(cfg))
        assert "Training" in written(folder).words


def test_a_folder_with_nothing_in_it_gives_a_page(tmp_path):
    (tmp_path / "empty").mkdir()
    assert written(tmp_path / "empty").words.startswith("empty")


def test_losses_that_are_not_finite_are_left_out(tmp_path):
    folder = made(tmp_path / "run")
    with (folder / "metrics.csv").open("a") as file:
        file.write("600,nan,inf,1e-3,nan,1,2,3,4,5,12,3200\n700,1\n")
    found = written(folder)
    assert "metrics.csv: 1 damaged lines are left out" in found.words
    assert found.all("polyline", **{"data-label": "training"})[0]["data-values"].endswith(
        "500,0.2"
    )


def test_a_page_stays_small_and_says_what_it_leaves_out(tmp_path):
    folder = made(tmp_path / "run", steps=100)
    noise = np.random.default_rng(0).integers(0, 256, (220, 300, 3), dtype=np.uint8)
    for step in range(1, 101):  # 200 kB each
        Image.fromarray(noise).save(folder / f"samples/step_{step:07d}.png")
    to = sampled(folder)
    big = np.random.default_rng(0).integers(0, 256, (1500, 1400, 3), dtype=np.uint8)
    Image.fromarray(big).save(to / "scatter.png")  # 6 MB
    frames = [Image.fromarray(np.roll(noise, i)) for i in range(40)]
    frames[0].save(to / "trajectory.webp", save_all=True, append_images=frames[1:], lossless=True)
    (to / "trajectory.gif").unlink()
    found = written(folder)
    assert len(found.source) < 8_000_000
    steps = [int(image["data-step"]) for image in found.all("img") if "data-step" in image]
    assert steps[0] == 1 and steps[-1] == 100 and 10 <= len(steps) <= 60
    assert np.ptp(np.diff(steps)) <= 1
    assert f"{len(steps)} of 100 pictures over training are shown" in found.words
    shown = len(film_of(found)[0])
    assert 2 < shown < 40
    assert f"{shown} of 40 frames of trajectory.webp are shown" in found.words
    assert [p.width for i, p in found.pictures() if "Scatter" in i["alt"]] == [1000]


def test_sixty_pictures_over_training_are_enough(tmp_path):
    found = written(made(tmp_path / "run", steps=200, every=1))
    steps = [int(image["data-step"]) for image in found.all("img") if "data-step" in image]
    assert len(steps) == 60 and steps[0] == 1 and steps[-1] == 200


def test_a_page_is_replaced_whole_or_not_at_all(tmp_path, monkeypatch):
    folder = made(tmp_path / "run")
    report.write_report(folder).write_text("old")
    before = set(folder.iterdir())

    def fail(source, target):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "replace", fail)
    with pytest.raises(OSError, match="No space"):
        report.write_report(folder)
    report.update(folder)  # logged only
    assert (folder / "report.html").read_text() == "old" and set(folder.iterdir()) == before


def test_update_writes_the_page_of_the_run(tmp_path):
    folder = made(tmp_path / "run")
    to = sampled(folder, metrics=METRICS)
    report.update(to)
    assert "sw2" in Page(folder / "report.html").words and not (to / "report.html").exists()
    report.update(tmp_path / "absent" / "folder")


def test_a_page_needs_no_heavy_import():
    code = (
        "import sys, fmdiff.report; "
        "print({'torch', 'matplotlib', 'lightning', 'torchvision'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"


def test_no_column_that_training_writes_is_taken_for_a_metric_of_samples():
    columns = (*Log.TRAINING, *Log.VALIDATION, *Log.CLOCK, *Log.COSTS)
    assert all(name.startswith(COLUMNS) for name in columns)
