"""docs/reliability.md: the promises, and what fmdiff prints to bad inputs and faults (3 minutes).

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

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))
sys.path.insert(0, str(Path(__file__).parents[1] / "tests" / "faults"))

import lightning.pytorch  # noqa: F401  so that no forked process has to import it
import torch
from faults import RUNS, Case, Row, prepared
from promises import PROMISES
from test_faults import DOCUMENT, ROWS, begin, in_process, shell

from fmdiff import cli

HEAD = """# Reliability

What you can rely on, how it is tested, and what fmdiff prints when something goes wrong.

## Ten promises
"""

AFTER = """## Exit codes

| code | meaning |
|---|---|
| 0 | done |
| 1 | it could not be done (memory, disk, another process), or there is a bug in fmdiff |
| 2 | there is a mistake in the command or in a file |
| 3 | the training diverged |
| 130, 143 | Ctrl-C or SIGTERM arrived, and the run was saved |
| 129, 138 | the terminal was closed, or SIGUSR1 arrived, and the run was saved |
| 137 | the process had to be killed, as native code kept it from ending |
| 141 | nobody reads the output any more |
"""

TRANSCRIPT = """## What fmdiff prints to bad inputs and faults

`scripts/reliability.py` ran every line below in a fresh folder and recorded what was printed and
the exit code. `make test-faults` tries the same lines again, checks that the important words are
still there, and runs every other test of a fault.

These runs lie in every folder:
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
    sections = {row.number: text for row, text in zip(ROWS, before[1:], strict=False)}
    text = [HEAD]
    text += [f"{i}. **{promise.title}** {promise.text}" for i, promise in enumerate(PROMISES, 1)]
    text += ["", AFTER]
    text.append("## How each promise is tested\n")
    for i, promise in enumerate(PROMISES, 1):
        text.append(f"{i}. " + ", ".join(f"`{test}`" for test in promise.tests))
    text += ["", TRANSCRIPT, "```"]
    text += [f"$ fmdiff train {words} out={name}" for name, words in RUNS.items()]
    text.append("```\n")
    with tempfile.TemporaryDirectory() as runs:
        begin(Path(runs))
        for row in ROWS:
            if not numbers or row.number in numbers:
                sections[row.number] = tried(row, Path(runs)) + "\n" * (row is not ROWS[-1])
                whole = "".join(sections[number] for number in sorted(sections))
                DOCUMENT.write_text("\n".join([*text, whole]), "utf-8")


if __name__ == "__main__":
    main([int(number) for number in sys.argv[1:]])
