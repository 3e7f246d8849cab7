"""Damaged files of a run, as after a power cut: a sentence or a warning, and no traceback."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import PLAIN, POINTS, metrics

from fmdiff.report import write_report
from fmdiff.runs.rows import Rows, rows_up_to

GO_ON = ("train", "resume=run", "trainer.max_steps=70", *PLAIN)
DAMAGE = {
    "NULs": lambda content: content + bytes(4096),
    "NULs at the end": lambda content: content[:-9] + bytes(9),
    "cut": lambda content: content[: len(content) // 2],
    "binary": lambda content: bytes(range(256)) * 4,
    "latin-1": lambda content: content + "größe: 1\n".encode("latin-1"),
    "utf-16": lambda content: content.decode().encode("utf-16"),
    "empty": lambda content: b"",
}


@pytest.fixture
def run(moons_run, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    shutil.copytree(moons_run, tmp_path / "run")
    return tmp_path / "run"


@pytest.mark.fault(count=3)
@pytest.mark.parametrize("damage", DAMAGE)
def test_a_run_goes_on_without_what_it_does_not_need(run, command, capfd, damage):
    for name in ("metrics.csv", "environment.json", "train.log"):
        (run / name).write_bytes(DAMAGE[damage]((run / name).read_bytes()))
    write_report(run)
    assert command(*GO_ON) == 0
    said = "".join(capfd.readouterr())
    assert "Traceback" not in said
    write_report(run)


@pytest.mark.fault(count=2)
@pytest.mark.parametrize("damage", DAMAGE)
def test_damaged_settings_end_in_a_sentence(run, command, capfd, damage):
    for name in ("overrides", "config.yaml"):
        before = (run / name).read_bytes()
        (run / name).write_bytes(DAMAGE[damage](before))
        code = command(*GO_ON)
        said = "".join(capfd.readouterr())
        assert code in (0, 2) and "Traceback" not in said, said
        assert code == 0 or "run" in said.splitlines()[-1]
        write_report(run)
        (run / name).write_bytes(before)


@pytest.mark.fault(count=4)
def test_rows_after_a_power_cut(run, command, capfd):
    """NULs, half a row and rows of another file: the whole rows stay, and a warning tells"""
    path = run / "metrics.csv"
    before, text = rows_up_to(path, 60), path.read_text("utf-8")
    head, first, *_ = text.splitlines()
    cut = first[: len(first) // 2]
    odd = ",".join(["abc"] * (head.count(",") + 1))
    damaged = f'{text}{odd}\n1,2\n"{cut}\n{cut}'.encode() + bytes(512)
    path.write_bytes(damaged)
    capfd.readouterr()
    assert command(*GO_ON) == 0
    assert "4 damaged lines are left out" in capfd.readouterr().err
    assert b"\0" not in path.read_bytes() and metrics(run)[-1]["step"] == "70"
    path.write_bytes(damaged)
    assert before and rows_up_to(path, 60) == before


def test_rows_without_damage_are_all_there(tmp_path):
    rows = [{"step": k, "loss": f"{1 / k:.7g}", "x": ""} for k in range(1, 9)]
    Rows(tmp_path / "a.csv", ("step", "loss", "x"), rows)
    assert [int(row["step"]) for row in rows_up_to(tmp_path / "a.csv", 5)] == [1, 2, 3, 4, 5]
    assert rows_up_to(tmp_path / "a.csv", 0) == [] == rows_up_to(tmp_path / "b.csv", 5)
    (tmp_path / "c.csv").write_text("")
    assert rows_up_to(tmp_path / "c.csv", 5) == []


@pytest.mark.fault
@pytest.mark.parametrize("name", ["config.yaml", "overrides"])
def test_a_broken_neighbour_does_not_stop_resume_last(command, train, capfd, name):
    """The newest run of the same settings is found beside broken ones"""
    words = (*POINTS, "trainer.warmup=0", "trainer.max_steps=1")
    train("outputs/moons-condot-mlp/2001-01-01_00-00-00", *words)
    other = Path("outputs/moons-condot-mlp/2002-01-01_00-00-00")
    shutil.copytree("outputs/moons-condot-mlp/2001-01-01_00-00-00", other)
    (other / name).write_bytes(b"\xff\xfe\0: [")
    capfd.readouterr()
    words = (*PLAIN, *POINTS, "trainer.warmup=0", "trainer.max_steps=2", "resume=last")
    assert command("train", *words) == 0
    said = "".join(capfd.readouterr())
    assert "resuming" in said and "Traceback" not in said


@pytest.mark.fault
@pytest.mark.parametrize("damage", ["cut", "NULs", "binary", "empty"])
def test_a_cut_list_of_jobs(command, tmp_path, damage):
    lines = [json.dumps([k, f"seed={k}", 0, None]) + "\n" for k in range(3)]
    (tmp_path / "sweep").mkdir()
    jobs = DAMAGE[damage]("".join(lines).encode())
    (tmp_path / "sweep" / "jobs.jsonl").write_bytes(jobs)
    assert command("report", f"runs={tmp_path / 'sweep'}") == 0
    page = (tmp_path / "sweep" / "report.html").read_text("utf-8")
    assert "<title>" in page


@pytest.mark.fault
def test_files_are_utf_8_in_any_locale(command, train, tmp_path):
    """In a fresh process: a run with letters beyond ASCII, in a locale that has none"""
    train("run", *POINTS, "trainer.warmup=0", "trainer.max_steps=1")
    with (tmp_path / "run" / "train.log").open("a", encoding="utf-8") as file:
        file.write("2026-01-01 10:00:00,000 WARNING fmdiff: Größe 模型\n")
    with (tmp_path / "run" / "config.yaml").open("a", encoding="utf-8") as file:
        file.write("# Größe 模型\n")
    locale = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
    words = ("train", "resume=run", "trainer.max_steps=2", "threads=1")
    run = subprocess.run(
        [sys.executable, "-m", "fmdiff", *words],
        env=os.environ | locale,
        capture_output=True,
        timeout=300,
    )
    assert run.returncode == 0, run.stderr
    assert "Größe 模型" in (tmp_path / "run" / "report.html").read_text("utf-8")
