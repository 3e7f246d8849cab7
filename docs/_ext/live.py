"""The directive `live`: a page of `fmdiff page` inside a page of the documentation.

pages.txt names the pages: a line is NAME, a tab, and the words after `fmdiff page`.
"""

import shutil
import subprocess
import sys
from html import escape
from pathlib import Path

from docutils import nodes
from docutils.parsers.rst import directives
from sphinx.application import Sphinx
from sphinx.errors import ExtensionError
from sphinx.util.docutils import SphinxDirective

FRAME = """<figure class="live">
<iframe src="{address}" title="live page: {name}" loading="lazy"
{style}></iframe>
<figcaption><a href="{address}">Open it alone</a>. Your own copy: <code>fmdiff page {words}</code>
</figcaption></figure>"""


def pages(file: Path) -> dict[str, str]:
    """{name: the words after `fmdiff page`} of pages.txt."""
    lines = file.read_text("utf-8").splitlines()
    rows = (line.split("\t", 1) for line in lines if line and not line.startswith("#"))
    return {name: words.strip() for name, words in rows}


class Live(SphinxDirective):
    """Shows the page of this name in a frame, and a link to it."""

    required_arguments = 1
    has_content = True  # what a code host shows in its place
    option_spec = {"height": directives.positive_int}  # noqa: RUF012

    def run(self) -> list[nodes.Node]:
        """The frame as raw HTML."""
        name = self.arguments[0]
        words = pages(self.config.live_pages)
        if name not in words:
            raise self.error(f"no live page {name!r} in pages.txt; there are {', '.join(words)}")
        address = "../" * self.env.docname.count("/") + f"live/{name}.html"
        height = self.options.get("height")
        style = f' style="height: {height}px"' if height else ""
        html = FRAME.format(address=address, name=name, words=escape(words[name]), style=style)
        return [nodes.raw("", html, format="html")]


def build(app: Sphinx) -> None:
    """Write the pages that the cache does not hold."""
    folder = Path(app.config.live_cache)
    folder.mkdir(parents=True, exist_ok=True)
    for name, words in pages(app.config.live_pages).items():
        page = folder / f"{name}.html"
        if not page.exists():
            command = [sys.executable, "-m", "fmdiff", "page", *words.split(), f"out={page}"]
            process = subprocess.run(command, capture_output=True, text=True)
            if process.returncode:
                raise ExtensionError(f"live page {name}: {process.stderr.strip()}")


def place(app: Sphinx, error: Exception | None) -> None:
    """Copy the pages beside the documentation."""
    if error is None and app.builder.format == "html":
        names = pages(app.config.live_pages)
        target = Path(app.outdir) / "live"
        target.mkdir(exist_ok=True)
        for name in names:
            shutil.copyfile(app.config.live_cache / f"{name}.html", target / f"{name}.html")


def setup(app: Sphinx) -> dict[str, bool]:
    """Register the directive and the building of the pages."""
    app.add_config_value("live_pages", None, "env", types=[type(Path())])
    app.add_config_value("live_cache", None, "", types=[type(Path())])
    app.add_directive("live", Live)
    app.connect("builder-inited", build)
    app.connect("build-finished", place)
    return {"parallel_read_safe": True}
