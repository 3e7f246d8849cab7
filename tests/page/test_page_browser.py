"""The shell of a live page in a real Chromium: themes, a phone, the keyboard, a screen reader."""

import re

import pytest

from fmdiff.commands.page import Topic, scenes_of
from fmdiff.page.brownian import brownian_scene
from fmdiff.page.page import write_page
from fmdiff.page.scene import Scene

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def tour(tmp_path_factory):
    """The page of all scenes that need no checkpoint."""
    path = tmp_path_factory.mktemp("tour") / "page.html"
    topic = Topic("All <scenes>", "", path.parent)
    write_page(scenes_of(topic, None), path, "All", "fmdiff")
    return path


CONTRAST = """() => {
  const light = colour => {
    const [r, g, b] = colour.match(/[\\d.]+/g).map(Number).map(v => {
      v /= 255;
      return v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4;
    });
    return 0.2126 * r + 0.7152 * g + 0.0722 * b;
  };
  const behind = element => {
    for (; element; element = element.parentElement) {
      const colour = getComputedStyle(element).backgroundColor;
      if (!/, 0\\)$|transparent/.test(colour)) return colour;
    }
  };
  const poor = [];
  for (const element of document.querySelectorAll("main *")) {
    const own = [...element.childNodes].some(n => n.nodeType === 3 && n.textContent.trim());
    if (!own || element.closest(":disabled") || !element.checkVisibility()) continue;
    const pair = [getComputedStyle(element).color, behind(element)].map(light);
    const ratio = (Math.max(...pair) + 0.05) / (Math.min(...pair) + 0.05);
    if (ratio < 4.5) poor.push([element.textContent.slice(0, 40), ratio]);
  }
  return poor;
}"""


PICTURE = "document.querySelector('canvas.plot').toDataURL()"


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [1280, 390])
def test_a_page_can_be_read(show, tour, scheme, width):
    page = show(tour, width=width, color_scheme=scheme)
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    assert page.evaluate(CONTRAST) == []
    for canvas in page.locator("canvas.plot").all():
        box = canvas.bounding_box()
        assert box["width"] > 250 and box["height"] > 150
        assert canvas.evaluate("c => c.width") == round(box["width"])
        assert len(canvas.get_attribute("aria-label")) > 20


def test_each_control_has_a_name_and_a_role(show, tour):
    page = show(tour)
    controls = page.locator("main :is(input, select, button, canvas, [tabindex]):visible").all()
    assert len(controls) > 5
    for control in controls:
        tree = control.aria_snapshot()
        assert re.match(r"- '?(\w+) \"[^\"]+\"", tree), tree
    for scene in page.locator("section.scene").all():
        name = scene.locator("h2").inner_text()
        assert scene.aria_snapshot().startswith(f'- region "{name}"')


def test_the_keyboard_reaches_everything_in_the_order_of_the_page(show, tour):
    page = show(tour)
    reachable = page.locator(
        "main :is(a, input, select, button, [tabindex='0']):not(:disabled):visible"
    )
    tops = []
    for _ in range(reachable.count()):
        page.keyboard.press("Tab")
        tops.append(
            page.evaluate(
                "[...document.querySelectorAll('main *')].indexOf(document.activeElement)"
            )
        )
    assert -1 not in tops and tops == sorted(tops) and len(set(tops)) == len(tops)
    outline = page.evaluate("getComputedStyle(document.activeElement).outlineStyle")
    assert outline == "solid"


def test_the_theme_changes_while_the_page_is_open(show, tour):
    page = show(tour, color_scheme="light")
    page.wait_for_timeout(200)
    before = page.evaluate(PICTURE)
    page.emulate_media(color_scheme="dark")
    page.wait_for_timeout(200)
    assert page.evaluate(PICTURE) != before  # the canvas itself is transparent


def test_foreign_texts_run_no_script(show, tmp_path):
    hostile = "</script><script>document.title = 'taken'</script><img src=x onerror=alert(1)>"
    start = brownian_scene().data | {"names": [hostile]}
    path = tmp_path / "page.html"
    write_page([Scene("brownian", hostile, hostile, start)], path, hostile, hostile)
    page = show(path)
    assert page.title() == hostile and page.locator("h2").inner_text() == hostile
    assert page.locator("img").count() == 0
