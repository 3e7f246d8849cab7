"""Live pages in a real Chromium, for the slow tests of this folder."""

import shutil

import pytest

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser"))), None)


@pytest.fixture(scope="module")
def chromium():
    api = pytest.importorskip("playwright.sync_api", reason="needs the package playwright")
    if CHROMIUM is None:
        pytest.skip("needs chromium (apt-get install chromium)")
    with api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture
def show(chromium):
    """Opens a file as a page whose scenes play.

    At the end nothing may have been written to the console or asked of a network.
    """
    opened, wrong = [], []

    def show(path, width=1000, height=900, **settings):
        page = chromium.new_page(viewport={"width": width, "height": height}, **settings)
        opened.append(page)
        page.on("console", lambda said: wrong.append(said.text))
        page.on("pageerror", lambda error: wrong.append(str(error)))
        page.on("request", lambda request: wrong.append(request.url[:99]))
        page.goto(path.as_uri())
        page.wait_for_selector("html[data-ready]", state="attached")
        assert page.get_by_text("cannot be played here").count() == 0
        return page

    yield show
    for page in opened:
        page.close()
    foreign = [text for text in wrong if not text.startswith(("file:", "data:", "blob:"))]
    assert foreign == []
