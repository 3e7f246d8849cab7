"""Writes a live page: scenes, their style, their code and their data in one HTML file.

The file loads nothing, and a browser that opens it runs no script but the one written here: its
policy names the script's SHA-256.
"""

import base64
import gzip
import hashlib
import json
from collections.abc import Sequence
from html import escape
from pathlib import Path
from typing import Any

from fmdiff import looks
from fmdiff.errors import FmdiffError, visible
from fmdiff.files import write_text
from fmdiff.page.scene import Scene

LIMIT = 5_000_000  # bytes of a page
FOLDER = Path(__file__).parent
FIRST = "ui.js"  # it makes the object that the other files add to


def write_page(scenes: Sequence[Scene], path: Path, title: str, command: str) -> None:
    """Write the page of some scenes. command: the command line that writes it again.

    Raises FmdiffError if the page has more than LIMIT bytes, and OSError if it cannot be written.
    """
    html = page_of(scenes, title, command)
    if (size := len(html.encode())) > LIMIT:
        raise FmdiffError(
            f"the page would have {size / 1e6:.1f} MB, and a page may have {LIMIT / 1e6:g}: "
            "choose fewer scenes or a smaller network"
        )
    path.parent.mkdir(parents=True, exist_ok=True)
    write_text(path, html)


def page_of(scenes: Sequence[Scene], title: str, command: str) -> str:
    """The HTML of the page of some scenes."""
    blobs: list[str] = []
    contents = [_content(scene, blobs) for scene in scenes]
    sections = [_section(i, scene) for i, scene in enumerate(scenes)]
    links = [f'<li><a href="#scene-{i}">{_text(s.title)}</a></li>' for i, s in enumerate(scenes)]
    contents_list = f'<nav aria-label="scenes"><ul>{"".join(links)}</ul></nav>'
    code = script()
    digest = base64.b64encode(hashlib.sha256(code.encode()).digest()).decode()
    # foreign names may stand in the page, and no script but the one above may run
    policy = (
        "default-src 'none'; img-src data:; style-src 'unsafe-inline'; worker-src blob:; "
        f"script-src 'sha256-{digest}' 'wasm-unsafe-eval'"
    )
    return f"""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="{policy}">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<link rel="icon" href="data:,">
<title>{_text(title)}</title>
<style>{style()}</style>
</head>
<body>
<main>
<header><h1>{_text(title)}</h1>{contents_list if len(scenes) > 1 else ""}</header>
<noscript><p>This page plays its pictures by JavaScript, which is turned off here.</p></noscript>
{"".join(sections)}
<footer><p>Written by <code>{_text(command)}</code></p></footer>
</main>
<div id="announcements" class="unseen" role="status" aria-live="polite"></div>
{"".join(blobs)}
<script type="application/json" id="scenes">{as_json(contents)}</script>
<script>{code}</script>
</body>
</html>
"""


def style() -> str:
    """The style of a page."""
    return looks.CSS + (FOLDER / "page.css").read_text("utf-8")


def script() -> str:
    """The code of a page: ui.js, and all other files of this folder."""
    files = sorted(FOLDER.glob("*.js"), key=lambda file: (file.name != FIRST, file.name))
    return "\n".join(file.read_text("utf-8") for file in files)


def as_json(content: Any) -> str:
    """JSON that may stand in a <script>: no text in it can end that element.

    Raises ValueError for a number that is not finite, which JSON lacks.
    """
    text = json.dumps(content, allow_nan=False, separators=(",", ":"))
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


def _content(scene: Scene, blobs: list[str]) -> dict[str, Any]:
    """A scene as JSON. Adds the blobs of its graphs as elements."""
    graphs = {}
    for name, graph in scene.graphs.items():
        data, place = graph.data(), f"blob-{len(blobs)}"
        packed = base64.b64encode(gzip.compress(graph.blob(), mtime=0)).decode()
        blobs.append(f'<script type="text/plain" id="{place}">{packed}</script>\n')
        graphs[name] = {"data": data, "blob": place}
    return {"kind": scene.kind, "data": scene.data, "graphs": graphs}


def _section(i: int, scene: Scene) -> str:
    return f"""<section class="scene" id="scene-{i}" aria-labelledby="title-{i}">
<h2 id="title-{i}">{_text(scene.title)}</h2>
<p class="caption">{_text(scene.caption)}</p>
<div class="stage"></div>
</section>
"""


def _text(text: str) -> str:
    return escape(visible(text))
