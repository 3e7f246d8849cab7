"""Writes metrics.csv, a row per report. Rows are whole, and none is lost on a full disk."""

import csv
import errno
import io
import logging
import math
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from fmdiff import files

log = logging.getLogger("fmdiff")


def rows_up_to(path: Path, step: int) -> list[dict[str, Any]]:
    """The rows of a metrics.csv up to a step. Empty if there is no such file.

    Damaged lines, as a power cut may leave them, are left out with a warning. A file that cannot
    be read counts as missing, with a warning.
    """
    if not step:
        return []
    try:
        lines = files.read_text(path, path.parent, "replace").splitlines(keepends=True)
    except FileNotFoundError:
        return []
    except OSError as error:
        log.warning("%s cannot be read, its rows are lost: %s", path, error.strerror)
        return []
    head, *cells = [next(csv.reader([line]), []) for line in lines] or [[]]
    rows = [
        dict(zip(head, row, strict=True))
        for line, row in zip(lines[1:], cells, strict=True)
        if line.endswith("\n") and len(row) == len(head) and all(map(_is_number, row))
    ]
    rows = [row for row in rows if row.get("step", "").isdigit()]
    if len(rows) < len(cells):
        log.warning("%s: %d damaged lines are left out", path, len(cells) - len(rows))
    return [row for row in rows if int(row["step"]) <= step]


def _is_number(cell: str) -> bool:
    """Whether a cell holds a number or nothing."""
    try:
        return cell == "" or float(cell) is not None
    except ValueError:
        return False


def elapsed(rows: Sequence[Mapping[str, Any]]) -> float:
    """The seconds of training up to the last row, 0 without rows or in a damaged one."""
    try:
        seconds = float(rows[-1]["seconds"])
    except (IndexError, KeyError, TypeError, ValueError):
        return 0.0
    return seconds if math.isfinite(seconds) else 0.0


class Rows:
    """The rows of a run's metrics.csv.

    rows: the first rows of the file. Other rows of an earlier run are dropped. Raises OSError.
    """

    def __init__(self, path: Path, columns: Sequence[str], rows: list[dict[str, Any]]) -> None:
        self.path, self.columns = path, columns
        self.pending: list[dict[str, Any]] = []  # rows that are not in the file yet
        with files.whole(path) as file:
            file.write(self._lines(rows, header=True))

    def add(self, row: dict[str, Any]) -> None:
        """Add a row, and write it with the pending ones."""
        self.pending.append(row)
        self.write()

    def write(self) -> None:
        """Add the pending rows to the file: all of them or, with a warning, none."""
        data = self._lines(self.pending)
        try:
            with files.append(self.path) as file:
                size = file.seek(0, os.SEEK_END)
                if file.write(data) < len(data):
                    file.truncate(size)
                    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            self.pending.clear()
        except OSError as error:
            log.warning("%s is behind, its rows are kept: %s", self.path, error.strerror)

    def _lines(self, rows: list[dict[str, Any]], header: bool = False) -> bytes:
        text = io.StringIO()
        writer = csv.DictWriter(text, self.columns, lineterminator="\n", extrasaction="ignore")
        if header:
            writer.writeheader()
        writer.writerows(rows)
        return text.getvalue().encode()
