"""The page in a real Chromium: what a reader sees, in both themes, on a phone, by keyboard."""

import os
import re
from itertools import pairwise
from pathlib import Path

import pytest
from test_report import METRICS, made, picture, sampled

from fmdiff import report

pytestmark = pytest.mark.slow

GRID = [
    {"settings": {"solver": s}, "nfe_counted": k, "metrics": {"sw2": {"value": a / k}}}
    for s, a in (("euler", 4.0), ("heun", 2.0))
    for k in (5, 10, 20)
]


@pytest.fixture(scope="module")
def pages(tmp_path_factory):
    """{what: its page} of runs of points and of images, a comparison, and a sweep."""
    root = tmp_path_factory.mktemp("pages")
    points = made(root / ("a_run_with_quite_a_long_name_" * 3))
    to = sampled(points, metrics=METRICS, grid=GRID, warnings=["n is small"])
    picture(to / "scatter.png", size=(1200, 500))
    images = made(root / "images", data={"_target_": "fmdiff.data.images.MNIST"})
    (sampled(images) / "scatter.png").rename(images / "samples/2026-01-01_11-00-00/grid.png")
    jobs = root / "sweep"
    for i in range(2):
        made(jobs / str(i), optim={"lr": 10.0**-i})
    lines = (f'[{i}, "optim.lr=1", 0, "{jobs / str(i)}"]\n' for i in range(2))
    (jobs / "jobs.jsonl").write_text("".join(lines))
    return {
        "points": report.write_report(points),
        "images": report.write_report(images),
        "compared": report.compare([points, images], root / "compared.html"),
        "sweep": report.write_report(jobs),
    }


@pytest.fixture
def show(chromium, pages):
    """Opens a page; at the end nothing may have failed in it or been asked of a network."""
    opened, wrong = [], []

    def show(what, width=1000, height=800, **settings):
        shown = chromium.new_page(viewport={"width": width, "height": height}, **settings)
        opened.append(shown)
        shown.on("console", lambda said: wrong.append(said.text))
        shown.on("pageerror", lambda error: wrong.append(str(error)))
        shown.on("requestfailed", lambda request: wrong.append(request.url[:99]))
        shown.on(
            "request",
            lambda request: (
                None if request.url.startswith(("file:", "data:")) else wrong.append(request.url)
            ),
        )
        shown.goto(pages[what].as_uri())
        return shown

    yield show
    for shown in opened:
        shown.close()
    assert wrong == []


STEPS = 'input[data-unit="step"]'


def visible(page):
    return page.locator(".film img[data-step]:visible").evaluate_all(
        "all => all.map(i => i.dataset.step)"
    )


@pytest.mark.parametrize("what", ["points", "images", "compared", "sweep"])
def test_every_picture_is_there(show, what):
    page = show(what)
    page.wait_for_function("[...document.images].every(image => image.complete)")
    sizes = page.evaluate("[...document.images].map(i => [i.naturalWidth, i.naturalHeight])")
    assert len(sizes) >= 5 and all(w > 0 and h > 0 for w, h in sizes)
    for chart in page.locator("svg.chart").all():
        box = chart.bounding_box()
        assert box["width"] > 150 and box["height"] > 100
    assert page.locator("svg.chart").count() >= 2


def test_the_slider_shows_another_picture(show):
    page = show("points")
    slider = page.locator(STEPS)
    assert visible(page) == ["500"]
    slider.fill("1")
    assert (
        visible(page) == ["200"]
        and page.locator(f".slider:has({STEPS}) output").inner_text() == "200"
    )
    slider.focus()
    page.keyboard.press("ArrowLeft")
    assert visible(page) == ["100"]


def test_arrow_keys_move_the_slider_in_view_from_anywhere(show):
    page = show("points")
    page.keyboard.press("ArrowLeft")  # the film is below the window
    assert visible(page) == ["500"]
    page.locator(STEPS).scroll_into_view_if_needed()
    for pressed, step in (("Left", "400"), ("Left", "300"), ("Right", "400")):
        page.keyboard.press(f"Arrow{pressed}")
        assert visible(page) == [step]


def test_one_slider_moves_all_runs(show):
    page = show("compared")
    assert visible(page) == ["500", "500"]
    page.locator(STEPS).fill("0")
    assert visible(page) == ["100", "100"]


def test_an_animation_stands_still_where_motion_is_not_wanted(show):
    for wanted, first in (("no-preference", "Pause"), ("reduce", "Play")):
        page = show("points", reduced_motion=wanted)
        button = page.locator(".play").first
        assert button.inner_text() == first
        button.click()
        assert button.inner_text() == {"Pause": "Play", "Play": "Pause"}[first]


def test_a_picture_is_enlarged_by_click_and_by_key(show):
    page = show("points", reduced_motion="reduce")
    page.locator("img.enlarges:visible").first.click()
    assert page.locator("dialog[open] img").count() == 1
    page.keyboard.press("Escape")
    assert page.locator("dialog[open]").count() == 0
    page.locator("svg.enlarges").first.focus()
    page.keyboard.press("Enter")
    assert page.locator("dialog[open] svg").count() == 1
    page.keyboard.press("Enter")
    assert page.locator("dialog[open]").count() == 0


def test_the_command_is_copied(show, chromium):
    page = show("points", permissions=["clipboard-read", "clipboard-write"])
    page.locator(".copy").first.click()
    page.wait_for_function("document.querySelector('.copy').textContent != 'Copy'")
    selected = page.evaluate("getSelection().toString()")
    assert selected == page.locator(".command code").first.inner_text()
    assert page.locator(".copy").first.inner_text() == "Copied"


def test_the_pointer_reads_a_curve(show):
    page = show("points")
    figure = page.locator("figure:has(polyline[data-label=validation])").first
    chart = figure.locator("svg.chart")
    chart.scroll_into_view_if_needed()
    box = chart.bounding_box()
    line = chart.locator("polyline[data-label=validation]").get_attribute("points").split(" ")
    x = float(line[2].partition(",")[0]) * box["width"] / 344
    page.mouse.move(box["x"] + x, box["y"] + box["height"] / 2)
    said = figure.locator(".readout").inner_text()
    assert said == "step 300: training 0.3333, validation 0.1667"


# Colours

CONTRASTS = """() => {
  const rgb = text => text.match(/[\\d.]+/g).map(Number);
  const light = color => {
    const [r, g, b] = color.slice(0, 3).map(v => v / 255)
      .map(v => v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4);
    return 0.2126 * r + 0.7152 * g + 0.0722 * b;
  };
  const behind = element => {
    for (let e = element; e; e = e.parentElement) {
      const color = rgb(getComputedStyle(e).backgroundColor);
      if (color.length < 4 || color[3] > 0) return color;
    }
    return [255, 255, 255];
  };
  for (const details of document.querySelectorAll("details")) details.open = true;
  const found = [];
  for (const e of document.querySelectorAll("body *")) {
    const own = [...e.childNodes].some(n => n.nodeType === 3 && n.textContent.trim());
    if (!own || !e.getClientRects().length || e.closest("script, style")) continue;
    const style = getComputedStyle(e);
    const front = rgb(e instanceof SVGElement ? style.fill : style.color);
    const [a, b] = [light(front), light(behind(e))].sort((x, y) => y - x);
    found.push([(a + 0.05) / (b + 0.05), e.tagName + "." + e.getAttribute("class")]);
  }
  return found;
}"""


@pytest.mark.parametrize("what", ["points", "compared", "sweep"])
def test_text_can_be_read_in_both_themes(show, what):
    backgrounds = {}
    for scheme in ("light", "dark"):
        page = show(what, color_scheme=scheme)
        color = page.evaluate("getComputedStyle(document.body).backgroundColor")
        backgrounds[scheme] = sum(map(int, re.findall(r"\d+", color)))
        found = page.evaluate(CONTRASTS)
        assert len(found) > 40
        assert min(found)[0] >= 4.5, (scheme, sorted(found)[:5])
    assert backgrounds["light"] > 600 > 150 > backgrounds["dark"]


@pytest.mark.parametrize("what", ["points", "images", "compared", "sweep"])
@pytest.mark.parametrize("width", [320, 360, 768])
def test_nothing_is_wider_than_the_window(show, what, width):
    page = show(what, width=width)
    page.evaluate("for (const d of document.querySelectorAll('details')) d.open = true")
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    wide = page.evaluate(
        """() => [...document.querySelectorAll("main *")]
        .filter(e => !e.closest("pre, .wide, svg"))
        .filter(e => e.getBoundingClientRect().right > innerWidth + 1)
        .map(e => e.outerHTML.slice(0, 80))"""
    )
    assert wide == []


def test_the_headings_make_an_outline(show):
    page = show("points")
    levels = page.evaluate(
        "[...document.querySelectorAll('h1, h2, h3')].map(h => Number(h.tagName[1]))"
    )
    assert levels[0] == 1 and levels.count(1) == 1
    assert all(b <= a + 1 for a, b in pairwise(levels))
    assert page.evaluate("document.documentElement.lang") == "en"


def test_a_picture_of_the_page_for_the_readme(chromium):
    """Of the run $FMDIFF_REPORT_RUN, to $FMDIFF_REPORT_PICTURE."""
    names = ("FMDIFF_REPORT_RUN", "FMDIFF_REPORT_PICTURE")
    if not all(os.environ.get(name) for name in names):
        pytest.skip(f"needs ${' and $'.join(names)}")
    run, to = (Path(os.environ[name]) for name in names)
    page = chromium.new_page(viewport={"width": 900, "height": 1200}, reduced_motion="reduce")
    page.goto(report.write_report(run).absolute().as_uri())
    page.screenshot(path=to, full_page=True)
    page.close()
    assert to.stat().st_size > 10_000
