"""Writes metrics.csv, a row per report. Rows are whole, and none is lost on a full disk."""

import csv
import errno
import io
import logging
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from fmdiff import files

log = logging.getLogger("fmdiff")


def rows_up_to(path: Path, step: int) -> list[dict[str, Any]]:
    """The rows of a metrics.csv up to a step. Empty if there is no such file."""
    if not (path.is_file() and step):
        return []
    with path.open(newline="") as file:
        return [row for row in csv.DictReader(file) if int(row["step"]) <= step]


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
            with self.path.open("ab", buffering=0) as file:
                size = file.tell()
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
