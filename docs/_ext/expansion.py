"""What a page says differently on the site than on a code host, done to its text as it is read."""

import posixpath
import re

import api
import reference
from sphinx.application import Sphinx

# files of the repository that are pages of the site
PAGES = {
    "README.md": "index.md",
    "EXPERIMENTS.md": "project/experiments.md",
    "CONTRIBUTING.md": "project/contributing.md",
    "CHANGELOG.md": "project/changelog.md",
}


def links(docname: str, text: str) -> str:
    """The text with links to pages of the repository's root led to those of the site."""

    def other(match: re.Match[str]) -> str:
        place = posixpath.normpath(posixpath.join("docs", posixpath.dirname(docname), match[1]))
        page = PAGES.get(place)
        return f"](/{page}{match[2] or ''})" if page else match[0]

    return re.sub(r"\]\(([\w./-]+\.md)(#[\w-]*)?\)", other, text)


# what a block ```{reference} WORD ... ``` becomes
GENERATED = {
    "group": reference.group,
    "commands": reference.commands,
    "index": reference.index,
    "python": lambda *modules: "\n\n".join(map(api.module, modules)),
}


def generated(text: str) -> str:
    """The text with the blocks `{reference}` replaced by what they stand for."""

    def made(match: re.Match[str]) -> str:
        word, *rest = match[1].split()
        return GENERATED[word](*rest)

    return re.sub(r"^```\{reference\} (.+)\n(?:.*\n)*?```$", made, text, flags=re.MULTILINE)


def read(app: Sphinx, docname: str, source: list[str]) -> None:
    """Change the text of a page before it is parsed."""
    source[0] = links(docname, generated(source[0]))
    if source[0].startswith("---\n") and "\nkernelspec:" in source[0].partition("\n---\n")[0]:
        source[0] = source[0].replace("---\n", "---\nfile_format: mystnb\n", 1)
    if docname.endswith("/index") and "{toctree}" not in source[0]:
        source[0] += "\n```{toctree}\n:hidden:\n:glob:\n\n*\n```\n"


def setup(app: Sphinx) -> dict[str, bool]:
    """Listen to the reading of pages."""
    app.connect("source-read", read)
    return {"parallel_read_safe": True}
