"""Tables: one set of rows, for a terminal, a CSV file or a Markdown file."""

import csv
import io
import textwrap
from collections.abc import Mapping, Sequence

WIDTH = 99  # columns of a terminal


def aligned(rows: Sequence[Sequence[object]], right: bool = False) -> str:
    """Rows of cells as text in columns two spaces apart, the first row being the header.

    right: align all columns but the first to the right, as numbers are read.
    """
    cells = [[str(cell) for cell in row] for row in rows]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    lines = []
    for row in cells:
        padded = [
            cell.rjust(width) if right and i else cell.ljust(width)
            for i, (cell, width) in enumerate(zip(row, widths, strict=True))
        ]
        lines.append("  ".join(padded).rstrip())
    return "\n".join(lines)


def described(rows: Mapping[str, str], indent: str = "  ", widest: int = 32) -> str:
    """Names and what is said of them, a name a line; long texts are wrapped and indented."""
    width = min(widest, max(map(len, rows), default=0))
    hanging = " " * (width + 2 * len(indent))
    lines = (f"{indent}{name:<{width}}{indent}{text}".rstrip() for name, text in rows.items())
    return "\n".join(textwrap.fill(line, WIDTH, subsequent_indent=hanging) for line in lines)


def as_csv(rows: Sequence[Sequence[object]]) -> str:
    """Rows of cells, the first being the header, as CSV text."""
    text = io.StringIO(newline="")
    csv.writer(text, lineterminator="\n").writerows(rows)
    return text.getvalue()


def as_markdown(rows: Sequence[Sequence[object]]) -> str:
    """Rows of cells, the first being the header, as a Markdown table."""
    lines = ["| " + " | ".join(map(str, row)) + " |" for row in rows]
    lines.insert(1, "|" + "---|" * len(rows[0]))
    return "\n".join(lines) + "\n"
