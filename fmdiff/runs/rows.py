"""metrics.csv: a row per report, whole rows alone, none lost to a disk full for a while."""

import csv
import errno
import io
import logging
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

log = logging.getLogger("fmdiff")


def rows_up_to(path: Path, step: int) -> list[dict]:
    """The rows of a file that may be, up to a step."""
    if not (path.is_file() and step):
        return []
    with path.open(newline="") as file:
        return [row for row in csv.DictReader(file) if int(row["step"]) <= step]


class Rows:
    """The rows of a run's metrics.csv; what a later run leaves out of them is forgotten."""

    def __init__(self, path: Path, columns: Sequence[str], rows: list[dict]) -> None:
        """Begin the file with these rows."""
        self.path, self.columns = path, columns
        self.unwritten: list[dict[str, Any]] = []
        part = path.with_suffix(".part")
        part.write_bytes(self._lines(rows, header=True))
        part.replace(path)

    def add(self, row: dict[str, Any]) -> None:
        self.unwritten.append(row)
        self.write()

    def write(self) -> None:
        """Add what is not in the file yet, all of it or, with a warning, nothing."""
        data = self._lines(self.unwritten)
        try:
            with self.path.open("ab", buffering=0) as file:
                size = file.tell()
                if file.write(data) < len(data):
                    file.truncate(size)
                    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            self.unwritten.clear()
        except OSError as error:
            log.warning("%s is behind, its rows are kept: %s", self.path, error.strerror)

    def _lines(self, rows: list[dict[str, Any]], header: bool = False) -> bytes:
        text = io.StringIO()
        writer = csv.DictWriter(text, self.columns, lineterminator="\n", extrasaction="ignore")
        if header:
            writer.writeheader()
        writer.writerows(rows)
        return text.getvalue().encode()
