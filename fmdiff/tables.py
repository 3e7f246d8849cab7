"""Tables: one set of rows, for a terminal, a CSV file or a Markdown file."""

import csv
import io
import textwrap
from collections.abc import Mapping, Sequence

WIDTH = 99  # columns of a terminal


def aligned(
    rows: Sequence[Sequence[object]],
    left: int | None = None,
    widths: Sequence[int] = (),
    gap: str = "  ",
) -> str:
    """Rows of cells as text in columns, the first row being the header.

    left: how many of the first columns are aligned to the left, as words are read; the others are
    aligned to the right, as numbers are. None: all. widths: the least width of each column.
    """
    cells = [[str(cell) for cell in row] for row in rows]
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
    """Rows of numbers as text, the first row being the header: to six digits, None as a dash.

    limit: of more rows than that only both ends are given.
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
