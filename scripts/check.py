"""Everything that guards fmdiff, one step after another, and a table of how each ended.

Used as `make check`. A step that fails does not stop the others; the exit code is 1 if any failed.
"""

import subprocess
import sys
import time

from fmdiff.tables import aligned

STEPS = ("lint", "test", "test-browser", "test-slow", "test-faults")


def run(step: str) -> tuple[str, str, str, str]:
    """Run `make STEP`: its name, result, minutes and the last line that it printed."""
    print(f"--- make {step}", flush=True)
    begin = time.monotonic()
    process = subprocess.Popen(
        ["make", step], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    assert process.stdout is not None
    last = ""
    for line in process.stdout:
        print(line, end="", flush=True)
        last = line.strip(" =\n") or last
    code = process.wait()
    minutes = (time.monotonic() - begin) / 60
    return step, "passed" if code == 0 else f"failed ({code})", f"{minutes:.1f} min", last


def main() -> int:
    """Run all steps; 1 if one of them failed."""
    results = [run(step) for step in STEPS]
    print()
    print(aligned([("step", "result", "time", "last line"), *results]))
    return int(any(result != "passed" for _, result, _, _ in results))


if __name__ == "__main__":
    sys.exit(main())
