"""Every relative link and every anchor of README and docs leads somewhere."""

import re
from pathlib import Path

import pytest
from blocks import ROOT

PLACES = [*ROOT.glob("*.md"), ROOT / "fmdiff" / "data" / "DIGITS.md"]
PLACES += [path for path in sorted((ROOT / "docs").rglob("*.md")) if "_build" not in path.parts]


def prose(text: str) -> str:
    """A page without its blocks of code and its code within sentences."""
    text = re.sub(r"^ *(`{3,}).*?^ *\1`*$", "", text, flags=re.MULTILINE | re.DOTALL)
    return re.sub(r"(`+)(?:(?!\1).)+\1", "code", text)


def links(text: str) -> list[str]:
    """The targets of the links and pictures of a page, but for those of the network."""
    targets = re.findall(r"\]\(([^)\s]+)(?: \"[^\"]*\")?\)", prose(text))
    targets += re.findall(r"(?:src|href)=\"([^\"]+)\"", prose(text))
    return [target for target in targets if not re.match(r"[a-z]+:", target)]


def anchors(text: str) -> set[str]:
    """The anchors that a code host and the site give to the headings of a page."""
    names = set(re.findall(r"^\(([\w-]+)\)=$", text, re.MULTILINE))
    code = re.sub(r"^ *(`{3,}).*?^ *\1`*$", "", text, flags=re.MULTILINE | re.DOTALL)
    for heading in re.findall(r"^#{1,4} (.+)$", code, re.MULTILINE):
        plain = re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", heading).lower().strip()
        name = re.sub(r"[^\w\- ]", "", plain).replace(" ", "-")
        count = sum(
            re.fullmatch(rf"{re.escape(name)}(-\d+)?", other) is not None for other in names
        )
        names.add(f"{name}-{count}" if count else name)
    return names


def broken(path: Path, text: str) -> list[str]:
    """The links of a page that lead nowhere."""
    faults = []
    for target in links(text):
        name, _, anchor = target.partition("#")
        file = (path.parent / name).resolve() if name else path
        if not file.exists():
            faults.append(f"{target}: no such file")
        elif anchor and anchor not in anchors(text if not name else file.read_text("utf-8")):
            faults.append(f"{target}: no such heading")
    return faults


@pytest.mark.parametrize("path", PLACES, ids=lambda path: str(path.relative_to(ROOT)))
def test_every_link_resolves(path):
    assert not broken(path, path.read_text("utf-8"))


@pytest.mark.parametrize(
    ("text", "faults"),
    [
        ("[a](docs/architecture.md#six-ideas) ![b](docs/gallery/moons.png) [c](#d)\n## D", 0),
        ("[a](docs/none.md)", 1),
        ("[a](docs/architecture.md#seven-ideas)", 1),
        ("[a](#b)", 1),
        ('![a](docs/gallery/none.png) <img src="none.png">', 2),
        ("`[a](none.md)` and\n```text\n[a](none.md)\n```", 0),
        ("[a](https://arxiv.org/abs/2209.03003)", 0),
        ("[a](#b-c-1)\n# B `c`!\n# B c", 0),
    ],
)
def test_a_broken_link_is_seen(text, faults):
    assert len(broken(ROOT / "README.md", text)) == faults
