"""Runs the tests of tests/gpu on one device, and writes what became of each.

    python scripts/gpu_tests.py FILE [--device cuda]

FILE is JSON: {"tests": {NAME: {"outcome", "seconds", "text"}}}. It is written after each test, and
tests that it holds are not run again. On CUDA four processes share the work where pytest-xdist is
installed, because most of the time goes into compiling.
"""

import argparse
import json
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
from gpu_machine import describe

from fmdiff import files
from fmdiff.errors import FmdiffError
from fmdiff.machine import device

ROOT = Path(__file__).resolve().parents[1]
TESTS = "tests/gpu/test_cuda.py"
LONGEST = 400  # characters of a reason


class Record:
    """A pytest plugin that writes the outcome of each test to a file at once."""

    def __init__(self, path: Path, content: dict[str, Any]) -> None:
        self.path, self.content = path, content

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """The call of a test, or whatever kept it from being called."""
        if report.when == "call" or not report.passed:
            self.content["tests"][report.nodeid] = {
                "outcome": report.outcome,
                "seconds": round(report.duration, 2),
                "text": reason(report)[:LONGEST],
            }
            files.write_json(self.path, self.content)


def reason(report: pytest.TestReport) -> str:
    """Why a test was skipped or failed, in a line; empty if it passed."""
    if report.passed:
        return ""
    if isinstance(report.longrepr, tuple):  # of a skipped test: file, line, reason
        return report.longrepr[2].removeprefix("Skipped: ")
    crash = getattr(report.longrepr, "reprcrash", None)
    text = report.longreprtext if crash is None else crash.message
    return " ".join(text.split())


def main() -> int:
    """Run the tests that the file lacks."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("file", type=Path)
    parser.add_argument("--device", default="cuda")
    options = parser.parse_args()
    content = json.loads(options.file.read_text("utf-8")) if options.file.exists() else {}
    done = content.setdefault("tests", {})
    try:
        content["machine"] = describe(device.pick(options.device))
    except FmdiffError as error:
        print(error, file=sys.stderr)
        return error.code
    on_gpu = options.device != "cpu"
    words = [
        str(ROOT / TESTS),
        f"--rootdir={ROOT}",
        "-m",
        "cuda" if on_gpu else "not cuda and not slow",
    ]
    words += ["-p", "no:cacheprovider", *(f"--deselect={name}" for name in done)]
    words += ["-n", "4"] if on_gpu and find_spec("xdist") else []
    code = pytest.main(words, plugins=[Record(options.file, content)])
    # failed tests are in the file; 5: all of them had been run before
    return 0 if code in (0, 1, 5) else int(code)


if __name__ == "__main__":
    sys.exit(main())
