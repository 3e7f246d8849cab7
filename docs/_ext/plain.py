"""Plain text, as in comments and docstrings, as Markdown that looks the same."""

import re
import textwrap

# an *emphasis*, which stays; the head of a list or heading; any mark of Markdown
MARKS = re.compile(
    r"(?<!\w)\*\w+\*(?!\w)|^(?:[-+#=]|\d+[.)])(?=\s)|[\\*_<>\[\]$|~^]", re.MULTILINE
)


def escaped(match: re.Match[str]) -> str:
    """A mark as Markdown shows it."""
    mark = match[0]
    return mark if mark[0] == "*" and len(mark) > 1 else f"{mark[:-1]}\\{mark[-1]}"


def sentence(text: str) -> str:
    """Text with what Markdown would read as marks escaped; `code` stays code."""
    parts = text.split("`")
    if len(parts) % 2 == 0:  # a single backtick is no code
        return MARKS.sub(escaped, text).replace("`", "\\`")
    return "`".join(
        part if place % 2 else MARKS.sub(escaped, part) for place, part in enumerate(parts)
    )


def code(text: str) -> str:
    """A word as code, also within a table."""
    return f"`{text}`".replace("|", "\\|") if text else ""


def paragraphs(text: str) -> str:
    """A docstring as paragraphs, lists and, where it is indented, blocks of text."""
    blocks: list[list[str]] = []
    for line in text.splitlines():
        before = blocks[-1][0] if blocks else "gap"
        item = line.startswith("- ") and (before != "text" or blocks[-1][-1].endswith(":"))
        kind = "code" if line.startswith("    ") else "list" if item else "text"
        if not line.strip():
            blocks.append(["gap"])
        elif before == kind or (before == "list" and line.startswith("  ")):
            blocks[-1].append(line)
        elif before == "gap" and kind == "code" and len(blocks) > 1 and blocks[-2][0] == "code":
            blocks.pop()
            blocks[-1] += ["", line]
        else:
            blocks.append([kind, line])
    parts = []
    for kind, *lines in blocks:
        if kind == "code":
            parts.append("```text\n" + textwrap.dedent("\n".join(lines)) + "\n```")
        elif kind == "list":
            parts.append("\n".join(line[:2] + sentence(line[2:]) for line in lines))
        elif kind == "text":
            parts.append(sentence("\n".join(lines)))
    return "\n\n".join(parts)


def table(head: list[str], rows: list[list[str]]) -> str:
    """A table of cells that are Markdown already."""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(cells) + " |" for cells in lines)
