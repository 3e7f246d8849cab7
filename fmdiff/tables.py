"""Formats rows as a table for a terminal, a CSV file, a Markdown file or a notebook.

A cell takes one line whatever it holds: see `errors.printable`.
"""

import csv
import io
import textwrap
from collections.abc import Mapping, Sequence
from html import escape

from fmdiff.errors import printable

WIDTH = 99  # columns of a terminal


def aligned(
    rows: Sequence[Sequence[object]],
    left: int | None = None,
    widths: Sequence[int] = (),
    gap: str = "  ",
) -> str:
    """Format rows of cells as text in columns. The first row is the header.

    left: how many of the first columns are aligned to the left, like words. The others are aligned
    to the right, like numbers. None aligns all to the left. widths: the columns' least widths.
    """
    cells = [[printable(cell) for cell in row] for row in rows]
    least = widths or [0] * len(cells[0])
    widths = [
        max(width, *map(len, column))
        for width, column in zip(least, zip(*cells, strict=True), strict=True)
    ]
    left = len(widths) if left is None else left
    lines = []
    for row in cells:
        padded = [
            cell.ljust(width) if i < left else cell.rjust(width)
            for i, (cell, width) in enumerate(zip(row, widths, strict=True))
        ]
        lines.append(gap.join(padded).rstrip())
    return "\n".join(lines)


def numbers(rows: Sequence[Sequence[float | str | None]], limit: int = 30) -> str:
    """Format rows of numbers with six digits, and None as a dash. The first row is the header.

    limit: if there are more rows than this, only the first and the last ones are shown.
    """
    header, *body = rows
    cells = [
        ["-" if v is None else v if isinstance(v, str) else f"{v + 0:.6g}" for v in row]
        for row in body
    ]
    if len(cells) > limit:
        cells = [*cells[: limit // 2], ["..."] * len(header), *cells[-limit // 2 :]]
    return aligned([header, *cells], left=0)


def described(rows: Mapping[str, str], indent: str = "  ", widest: int = 32) -> str:
    """Format names with their descriptions, one a line; long texts are wrapped and indented."""
    width = min(widest, max(map(len, rows), default=0))
    hanging = " " * (width + 2 * len(indent))
    lines = (f"{indent}{name:<{width}}{indent}{text}".rstrip() for name, text in rows.items())
    return "\n".join(textwrap.fill(line, WIDTH, subsequent_indent=hanging) for line in lines)


def as_csv(rows: Sequence[Sequence[object]]) -> str:
    """Format rows of cells as CSV text. The first row is the header."""
    text = io.StringIO(newline="")
    cells = ([printable(c) if isinstance(c, str) else c for c in row] for row in rows)
    csv.writer(text, lineterminator="\n").writerows(cells)
    return text.getvalue()


def as_markdown(rows: Sequence[Sequence[object]]) -> str:
    """Format rows of cells as a Markdown table. The first row is the header."""
    cells = [[printable(cell).replace("|", "\\|") for cell in row] for row in rows]
    lines = ["| " + " | ".join(row) + " |" for row in cells]
    lines.insert(1, "|" + "---|" * len(rows[0]))
    return "\n".join(lines) + "\n"


def as_html(rows: Sequence[Sequence[object]], header: bool = False) -> str:
    """Format rows of cells as an HTML table. The first cell of a row is its name.

    header: the first row names the columns.
    """
    cells = [[escape(printable(cell)) for cell in row] for row in rows]
    top = ""
    if header:
        names = "".join(f'<th scope="col">{cell}</th>' for cell in cells.pop(0))
        top = f"<thead><tr>{names}</tr></thead>"
    lines = (
        f'<tr><th scope="row">{first}</th>'
        + "".join(f"<td>{cell}</td>" for cell in rest)
        + "</tr>"
        for first, *rest in cells
    )
    return f"<table>{top}<tbody>{''.join(lines)}</tbody></table>"
