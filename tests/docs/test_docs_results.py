"""The figures of docs/results.md and docs/choose.md are those of the diary, EXPERIMENTS.md."""

import re

import pytest
from blocks import ROOT

DIARY = (ROOT / "EXPERIMENTS.md").read_text("utf-8")
RESULTS = (ROOT / "docs/results.md").read_text("utf-8")
CHOOSE = (ROOT / "docs/choose.md").read_text("utf-8")
FIGURE = r"(?<![\w.])\d[\d,]*(?:\.\d+)?(?:e-?\d+)?(?!\w)|(?<![\w.])\.\d+"
NOT_MEASURED = ["things-learned"]


def anchor(heading):
    return re.sub(r"[^\w\- ]", "", heading.lower().strip()).replace(" ", "-")


def sections():
    """The text under each heading of the diary, by anchor; a day's also holds its sections."""
    parts = re.split(r"^(#{2,3}) (.+)$", DIARY, flags=re.MULTILINE)
    texts, day = {}, ""
    for level, heading, text in zip(parts[1::3], parts[2::3], parts[3::3], strict=True):
        day = anchor(heading) if level == "##" else day
        texts.setdefault(anchor(heading), "")
        for name in {day, anchor(heading)}:
            texts[name] += text
    return texts


SECTIONS = sections()
ROWS = [
    [cell.strip() for cell in line.strip("|").split(" | ")]
    for line in RESULTS.splitlines()
    if "EXPERIMENTS.md#" in line
]


def figures(text):
    return {number.rstrip(",").lstrip("0") or "0" for number in re.findall(FIGURE, text)}


def absent(figure, section):
    return figures(figure) - figures(SECTIONS[section])


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row[0].strip("| ")[:40])
def test_each_figure_stands_in_its_section(row):
    what, figure, time, command, link = row
    day, section = re.fullmatch(
        r"\[(\d\d)\]\(\.\./EXPERIMENTS\.md#(.+)\)", link.rstrip(" |")
    ).groups()
    assert command.startswith("`") and figures(figure)
    # names of metrics and orders of solvers are no figures
    assert not absent(figure, section), (what, section)
    assert not absent(time, section)
    days = re.findall(r"^## 2026-11-(\d\d)", DIARY[: DIARY.index(SECTIONS[section][:80])], re.M)
    assert days[-1] == day


def test_a_wrong_figure_is_seen():
    assert absent("0.087 / 1.52", "flow-maps-of-8-gaussians") == {"1.52"}
    assert absent("16,761 of 16,762", "what-it-survives") == set()
    assert absent("16,763", "what-it-survives") == {"16,763"}


def test_every_section_of_the_diary_has_a_row():
    linked = {row[-1].partition("#")[2].rstrip(" )|") for row in ROWS}
    days = {name for name in SECTIONS if re.match(r"\d{4}-", name)}
    alone = {name for name in days if name in linked}
    assert len(ROWS) >= 45 and len(alone) == 2
    assert SECTIONS.keys() - days - set(NOT_MEASURED) == linked - alone


def test_the_advice_rests_on_figures_of_the_diary():
    """All decimals of docs/choose.md outside its blocks, which a test runs."""
    prose = re.sub(r"```.*?```|`[^`]*`", "", CHOOSE, flags=re.DOTALL)
    decimals = {n for n in figures(prose) if "." in n}
    known = figures(DIARY)
    # of guidance: the values of w; of the data: 5 / sqrt(2), and gmm4's sqrt(0.16)
    assert len(decimals) > 60 and decimals - known <= {"1.5", "3.5", ".4"}
