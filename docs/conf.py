"""Settings of Sphinx. `make docs` builds the pages into docs/_build/html, without network."""

import hashlib
import os
import sys
from pathlib import Path

HERE = Path(__file__).parent
ROOT = HERE.parent
sys.path.insert(0, str(HERE / "_ext"))
# `fmdiff` in a tutorial is the command of this environment
os.environ["PATH"] = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])

from fmdiff import __version__  # noqa: E402


def code() -> str:
    """A hash of everything that a tutorial or a live page may depend on."""
    files = [*(ROOT / "fmdiff").rglob("*"), *(ROOT / "configs").rglob("*.yaml")]
    contents = (f.read_bytes() for f in sorted(files) if f.suffix != ".pyc" and f.is_file())
    return hashlib.sha256(b"".join(contents)).hexdigest()[:16]


def looks() -> Path:
    """The folder with fmdiff/looks/looks.css, whose dark colours follow the button of the site."""
    css = (ROOT / "fmdiff" / "looks" / "looks.css").read_text("utf-8")
    light, media, dark = css.partition("@media (prefers-color-scheme: dark)")
    colours = dark.partition(":root {")[2].partition("}")[0]
    system = f'{media} {{ body:not([data-theme="light"]) {{{colours}}} }}'
    folder = HERE / "_build" / "looks"
    folder.mkdir(parents=True, exist_ok=True)
    text = f'{light}{system}\nbody[data-theme="dark"] {{{colours}}}\n'
    (folder / "looks.css").write_text(text, "utf-8")
    return folder


CODE = code()

project = "fmdiff"
author = "the fmdiff developers"
copyright = author
release = version = __version__
language = "en"
smartquotes = False  # t' is a derivative or another time
extensions = ["myst_nb", "mathml", "live", "expansion"]
exclude_patterns = ["_build", "_ext", "gallery", "pages.txt"]

myst_enable_extensions = ["dollarmath", "amsmath", "deflist", "colon_fence"]
myst_heading_anchors = 4
myst_dmath_double_inline = True
# tutorials run when the page or the package has changed
nb_execution_mode = "cache"
nb_execution_cache_path = str(HERE / "_build" / "executed" / CODE)
nb_execution_timeout = 300
nb_execution_in_temp = True
nb_execution_raise_on_error = True
nb_merge_streams = True

live_pages = HERE / "pages.txt"
live_cache = HERE / "_build" / "pages" / CODE

html_theme = "furo"
html_title = "fmdiff"
html_static_path = ["_static", str(looks())]
html_css_files = ["looks.css", "site.css"]
html_show_sphinx = False
html_copy_source = False
# furo's names for the colours of looks.css
COLOURS = {
    "color-brand-primary": "accent",
    "color-brand-content": "accent",
    "color-brand-visited": "purple",
    "color-foreground-primary": "ink",
    "color-foreground-secondary": "muted",
    "color-foreground-muted": "muted",
    "color-foreground-border": "frame",
    "color-background-primary": "paper",
    "color-background-secondary": "surface",
    "color-background-hover": "line",
    "color-background-border": "line",
    "color-code-background": "surface",
    "color-code-foreground": "ink",
    "color-table-header-background": "surface",
    "color-table-border": "line",
    "color-highlight-on-target": "surface",
    "font-stack": "sans",
    "font-stack--monospace": "mono",
}
VARIABLES = {name: f"var(--{ours})" for name, ours in COLOURS.items()}
html_theme_options = {
    "navigation_with_keys": True,
    "light_css_variables": VARIABLES,
    "dark_css_variables": VARIABLES,
}
pygments_style = "a11y-high-contrast-light"
pygments_dark_style = "a11y-high-contrast-dark"
