"""The rows of docs/reliability.md: each bad input and fault, its exit code and its sentence.

A user error leaves every file as it was; no failure shows a traceback.
"""

import contextlib
import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import fault_files
import fault_inputs
import fault_surroundings
import pytest
from conftest import logging_restored
from faults import RUNS, prepared

from fmdiff import cli

ROWS = (*fault_inputs.ROWS, *fault_surroundings.ROWS, *fault_files.ROWS)
DOCUMENT = Path(__file__).parents[2] / "docs" / "reliability.md"


def in_process(case):
    """Whether the line is a command of fmdiff alone, with nothing for a shell to do."""
    return case.line.startswith("fmdiff ") and not set("|>;&") & set(case.line)


def tries(shell):
    """Rows with the cases that need a shell, or those that do not."""
    found = []
    for row in ROWS:
        cases = [case for case in row.cases if in_process(case) != shell]
        if cases:
            marks = pytest.mark.fault(count=len(cases))
            found.append(pytest.param(cases, id=f"{row.number}: {row.title}", marks=marks))
    return found


def begin(folder):
    """Train the runs that every row begins with."""
    with contextlib.chdir(folder), logging_restored():
        for name, words in RUNS.items():
            words = f"train {words} device=cpu threads=1 out={name}".split()
            assert cli.main(words) == 0


@pytest.fixture(scope="session")
def runs(tmp_path_factory):
    folder = tmp_path_factory.mktemp("faults")
    begin(folder)
    return folder


@pytest.fixture
def folder(runs, tmp_path, monkeypatch):
    """A copy of them, where we are."""
    monkeypatch.chdir(shutil.copytree(runs, tmp_path / "here"))


def shell(line):
    """Run by bash: the exit code and all that was printed."""
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    done = subprocess.run(
        ["bash", "-c", line],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=300,
        env=os.environ | {"PATH": path, "CUDA_VISIBLE_DEVICES": ""},
    )
    return done.returncode, done.stdout


def contents():
    """Every file and what is in it, but for the locks and the cache."""
    files = (path for path in Path().rglob("*") if path.is_file() and path.name != ".lock")
    files = (path for path in files if path.parts[0] != "cache")
    return {path: path.read_bytes() for path in files}


def check(case, code, said, before):
    assert code == case.code, said
    for words in case.says:
        assert words in said
    assert "Traceback" not in said and "weights_only" not in said
    if code == 2:
        assert contents() == before


@pytest.mark.slow
@pytest.mark.parametrize("cases", tries(shell=False))
def test_fault(cases, command, folder, capfd):
    for case in cases:
        with prepared(case):
            before = contents()
            code = command(*shlex.split(case.line)[1:])
        out, err = capfd.readouterr()
        check(case, code, out + err, before)


@pytest.mark.slow
@pytest.mark.parametrize("cases", tries(shell=True))
def test_fault_in_a_shell(cases, folder):
    for case in cases:
        if case.line.startswith("unshare") and shell("unshare -rm true")[0]:
            pytest.skip("no disk can be mounted here")
        with prepared(case):
            before = contents()
            code, said = shell(case.line)
        check(case, code, said, before)


def test_rows_are_numbered():
    assert [row.number for row in ROWS] == list(range(1, len(ROWS) + 1))
    assert all(row.cases or row.tests for row in ROWS)


def test_the_document_says_what_is_tried():
    sections = re.split(r"^### (\d+)\. ", DOCUMENT.read_text(), flags=re.MULTILINE)
    assert [int(number) for number in sections[1::2]] == [row.number for row in ROWS]
    for row, text in zip(ROWS, sections[2::2], strict=True):
        assert text.startswith(f"{row.title}\n") and row.note in text
        rest = text
        for case in row.cases:
            said, _, rest = rest.partition(f"$ {case.line}\n")[2].partition("\nexit ")
            assert rest.startswith(f"{case.code}\n") and case.how in text
            assert all(words in said for words in case.says)
        assert all(f"`{test}`" in text for test in row.tests)


def test_every_test_the_document_names_exists():
    for file, _, name in re.findall(r"`(test_\w+)(::(\w+))?`", DOCUMENT.read_text()):
        [path] = Path(__file__).parents[1].rglob(f"{file}.py")
        text = path.read_text()
        assert not name or f"def {name}(" in text
