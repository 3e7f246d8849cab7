"""docs/reliability.md: what fmdiff prints to 50 bad inputs and faults, run anew (3 minutes).

python scripts/reliability.py           all rows
python scripts/reliability.py 26 47     these alone
"""

import contextlib
import os
import re
import shlex
import shutil
import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1] / "tests" / "faults"))

import lightning.pytorch  # noqa: F401  so that no forked process has to import it
import torch
from faults import PROMISES, RUNS, Case, Row, prepared
from test_faults import DOCUMENT, ROWS, begin, in_process, shell

from fmdiff import cli

HEAD = """# Reliability

What fmdiff promises, and what it does with 50 bad inputs and faults. `scripts/reliability.py` ran
every line below in a fresh folder and wrote down the exit code and all that was printed; the
tests, `tests/test_faults.py`, try the same lines and look for the sentences that matter. After an
exit code of 2 they find every file as it was, and after none a traceback. `make test-faults` runs
them, and every other test of a fault, and prints a line for each.

Exit codes: 0 done, 1 it could not be done or a bug, 2 a bad input, 3 training diverged, 130, 138
and 143 interrupted by Ctrl-C, SIGUSR1 or SIGTERM and saved, 141 nobody reads on.
"""


def forked(case: Case) -> tuple[int, str]:
    """Run a line in a child of this process: the exit code and all that was printed."""
    with tempfile.TemporaryFile("w+") as said:
        pid = os.fork()
        if pid == 0:
            for stream in (1, 2):
                os.dup2(said.fileno(), stream)
            code = cli.main(shlex.split(case.line)[1:])
            sys.stdout.flush()
            os._exit(code)
        code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
        said.seek(0)
        return code, said.read()


def tried(row: Row, runs: Path) -> str:
    """The section of a row: its lines, run one after the other in a copy of the runs."""
    parts = [f"### {row.number}. {row.title}", *filter(None, [row.note])]
    with tempfile.TemporaryDirectory() as parent:
        folder = Path(parent, "here")
        with contextlib.chdir(shutil.copytree(runs, folder)):
            for case in row.cases:
                with prepared(case):
                    code, said = forked(case) if in_process(case) else shell(case.line)
                assert code == case.code, (case, code, said)
                how = f"With {case.how}:\n\n" if case.how else ""
                said = said.replace(f"{folder}/", "").replace(str(Path.home()), "~")
                said = re.sub(
                    r"(?!2026-01-31_12)\d{4}(-\d\d){2}_\d\d(-\d\d){2}", "DATE_TIME", said
                )
                said = re.sub(r"process \d+ on \S+?:", "process PID on HOST:", said)
                parts.append(f"{how}```\n$ {case.line}\n{said.rstrip()}\nexit {code}\n```")
    if row.tests:
        parts.append("Tests: " + ", ".join(f"`{test}`" for test in row.tests))
    return "\n\n".join(parts) + "\n"


def main(numbers: list[int]) -> None:
    torch.set_num_threads(1)
    before = re.split(r"(?=^### \d+\. )", DOCUMENT.read_text(), flags=re.M) if numbers else []
    sections = dict(zip(range(1, 51), before[1:], strict=False))
    text = [HEAD, "## Promises\n"]
    for promise, tests in PROMISES.items():
        text.append(f"- {promise} " + ", ".join(f"`{test}`" for test in tests))
    text.append("\n## Bad inputs and faults\n\nThe runs in every folder:\n\n```")
    text += [f"$ fmdiff train {words} out={name}" for name, words in RUNS.items()]
    text.append("```\n")
    with tempfile.TemporaryDirectory() as runs:
        begin(Path(runs))
        for row in ROWS:
            if not numbers or row.number in numbers:
                sections[row.number] = tried(row, Path(runs)) + "\n" * (row.number < 50)
                DOCUMENT.write_text("\n".join([*text, "".join(sections.values())]))


if __name__ == "__main__":
    main([int(number) for number in sys.argv[1:]])
