"""Nothing outside a run folder is read or written because something in it says so."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from conftest import PLAIN, POINTS
from PIL import Image

from fmdiff import cli, files
from fmdiff.errors import FmdiffError
from fmdiff.runs import averages, checkpoint
from fmdiff.runs.find import find, newest_good
from fmdiff.runs.folder import claim_sweep

SECRET = "canary: 6f1d2a\n"
GO_ON = ("train", "resume=run", "trainer.max_steps=4", "threads=1")


def shell(*words, seconds=300):
    """A command in a fresh process: its exit code, and what it printed."""
    process = subprocess.run(
        [sys.executable, "-m", "fmdiff", *map(str, words)],
        capture_output=True,
        text=True,
        timeout=seconds,
        stdin=subprocess.DEVNULL,
    )
    return process.returncode, process.stdout + process.stderr


@pytest.fixture(scope="session")
def two_steps(tmp_path_factory):
    """A run of two steps with all kinds of files in it."""
    folder = tmp_path_factory.mktemp("two")
    words = [*POINTS, "device=cpu", "threads=1", "trainer.progress=false", "trainer.warmup=0"]
    words += ["trainer.max_steps=2", "trainer.power_ema=[0.05]", f"out={folder / 'run'}"]
    assert cli.main(["train", *words]) == 0
    return folder / "run"


@pytest.fixture
def run(two_steps, tmp_path, monkeypatch):
    """A copy of that run, and beside it a folder whose content must not change."""
    monkeypatch.chdir(tmp_path)
    shutil.copytree(two_steps, tmp_path / "run")
    outside = tmp_path / "outside"
    (outside / "inner").mkdir(parents=True)
    (outside / "thesis.tex").write_text(SECRET)
    (outside / "inner" / "0000001.pt").write_text(SECRET)
    before = state(outside)
    yield tmp_path / "run"
    assert state(outside) == before


def state(folder):
    return {p: p.read_bytes() if p.is_file() else None for p in folder.rglob("*")}


def lead(path, target):
    """Put a link in the place of a file or folder."""
    if path.is_dir():
        shutil.rmtree(path)
    path.unlink(missing_ok=True)
    path.symlink_to(target)


THESIS, INNER, ABSENT = (Path("..", "outside", name) for name in ("thesis.tex", "inner", "new"))
REFUSED = {
    ".lock": THESIS,
    "train.log": THESIS,
    "samples": INNER,
    "averages": INNER,
    "tensorboard": INNER,
    "tensorboard/hparams.yaml": Path("..", ABSENT),
    "tensorboard/events.out.tfevents.1": Path("..", THESIS),
    ".replaced": INNER,
    "wandb": INNER,
    "schedules": INNER,
}


@pytest.mark.fault
@pytest.mark.parametrize("name", REFUSED)
def test_a_link_in_the_way_is_refused_before_anything_is_written(run, command, capfd, name):
    lead(run / name, REFUSED[name])
    before = state(run)
    capfd.readouterr()
    assert command(*GO_ON) == 2
    said = capfd.readouterr().err.splitlines()[-1]
    assert Path(name).name in said and "link" in said
    assert (run / name).is_symlink() and "a link, and" in said
    assert {p: v for p, v in state(run).items() if p.name != ".lock"} == {
        p: v for p, v in before.items() if p.name != ".lock"
    }


@pytest.mark.fault(count=8)
def test_links_at_the_places_of_files_are_replaced(run):
    """In a fresh process: the files of a run that are written whole"""
    names = ["metrics.csv", "report.html", "environment.json", "last.ckpt", "0000004.ckpt"]
    names += ["best.ckpt", "samples/step_0000004.png", "averages/0000004.pt"]
    for name in names:
        lead(run / name, Path("../" * name.count("/")) / THESIS)
    lead(run / "samples/step_0000003.png", Path("..") / THESIS)
    code, said = shell(*GO_ON, "trainer.picture_every=4")
    assert code == 0, said
    for name in names:
        assert name == "best.ckpt" or not (run / name).is_symlink(), name
    assert checkpoint.read(run / "last.ckpt")["step"] == 4
    page = (run / "report.html").read_text("utf-8")
    assert "canary" not in page and "canary" not in said


@pytest.mark.fault
def test_a_log_with_two_names_is_copied_before_it_grows(run, command, tmp_path):
    (run / "train.log").unlink()
    os.link(tmp_path / "outside" / "thesis.tex", run / "train.log")
    assert command(*GO_ON) == 0
    assert "4 steps done" in (run / "train.log").read_text("utf-8")


@pytest.mark.fault
def test_a_lock_with_two_names_is_not_written_to(run, command, tmp_path):
    (run / ".lock").unlink()
    os.link(tmp_path / "outside" / "thesis.tex", run / ".lock")
    assert command(*GO_ON) == 0


@pytest.mark.fault
@pytest.mark.parametrize("name", [".lock", "overrides"])
def test_a_pipe_in_the_way_does_not_hang(run, name):
    (run / name).unlink()
    os.mkfifo(run / name)
    code, said = shell(*GO_ON, seconds=200)
    assert code == 2 and "Traceback" not in said and name in said.splitlines()[-1], said


@pytest.mark.fault(count=9)
def test_what_a_folder_links_to_is_not_shown(run, command, tmp_path):
    """In a fresh process: report.html of a folder whose files are links to others"""
    secret = tmp_path / "outside"
    picture = tmp_path / "outside" / "grid.png"
    Image.fromarray(np.full((9, 9), 77, np.uint8)).save(picture)
    for name in ("config.yaml", "overrides", "environment.json", "train.log", "metrics.csv"):
        lead(run / name, THESIS)
    lead(run / "results.json", THESIS)
    lead(run / "grid.png", picture)
    lead(run / "sample.json", THESIS)
    lead(run / "samples", secret)
    code, said = shell("report", "runs=run")
    picture.unlink()
    assert code == 0 and "Traceback" not in said
    page = (run / "report.html").read_text("utf-8")
    assert "canary" not in page and "canary" not in said and "data:image" not in page
    assert "link leads out" in page


@pytest.mark.fault
def test_pipes_in_a_folder_do_not_keep_the_report(run):
    names = "config.yaml", "overrides", "metrics.csv", "train.log", "environment.json"
    for name in names:
        (run / name).unlink()
        os.mkfifo(run / name)
    (run / "sample.json").write_text("{}")
    code, said = shell("report", "runs=run", seconds=200)
    assert code == 0, said
    assert (run / "report.html").read_text("utf-8").count("no regular file") == len(names)


@pytest.mark.fault
def test_a_sweep_names_no_other_folders(run, command, tmp_path):
    other = tmp_path / "outside" / "run"
    shutil.copytree(run, other)
    (other / "config.yaml").write_text(f"trainer: {{x: '{SECRET.strip()}'}}\n")
    sweep = tmp_path / "sweep"
    sweep.mkdir()
    (sweep / "1").symlink_to(other)
    lines = [
        [0, "seed=0", 0, str(other)],
        [1, "seed=1", 0, "1"],
        [2, "seed=2", 0, "../outside/run"],
    ]
    (sweep / "jobs.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    assert command("report", f"runs={sweep}") == 0
    page = (sweep / "report.html").read_text("utf-8")
    shutil.rmtree(other)
    assert "canary" not in page and page.count("lies elsewhere") >= 3


@pytest.mark.fault
def test_a_sweep_goes_into_no_linked_folder(run, command, tmp_path, capfd):
    sweep = tmp_path / "sweep"
    sweep.mkdir()
    (sweep / "0").symlink_to(tmp_path / "outside" / "inner")
    words = ("train", *PLAIN, *POINTS, "trainer.max_steps=1", "seed=0,1", "-m")
    assert command(*words, f"out={sweep}") == 2
    assert "0 is a link" in capfd.readouterr().err
    (sweep / "0").unlink()
    for name in ("jobs.jsonl", "multirun.yaml"):
        (sweep / name).symlink_to(tmp_path / "outside" / "thesis.tex")
    assert command(*words, f"out={sweep}", "plan=true") == 0
    assert command(*words, f"out={sweep}") == 0
    assert (sweep / "multirun.yaml").is_file() and not (sweep / "multirun.yaml").is_symlink()


@pytest.mark.fault
def test_samples_go_into_no_linked_folder(run, command, capfd):
    lead(run / "samples", Path("..", "outside", "inner"))
    assert command("sample", "ckpt=run", "n=4", "steps=1", "device=cpu") == 2
    assert "samples is a link" in capfd.readouterr().err


@pytest.mark.fault
def test_checkpoints_that_are_links_are_passed_over(run, tmp_path, caplog):
    content = checkpoint.read(find(run))
    checkpoint.write(tmp_path / "elsewhere.ckpt", content | {"step": 9})
    (run / "0000009.ckpt").symlink_to(tmp_path / "elsewhere.ckpt")
    lead(run / "last.ckpt", tmp_path / "elsewhere.ckpt")
    path, newest = newest_good(run)
    assert path.name == "0000002.ckpt" and newest["step"] == 2
    assert "leads out of the folder" in caplog.text
    assert find(run / "0000009.ckpt") == run / "0000009.ckpt"  # the user named it
    assert checkpoint.read(run / "0000009.ckpt")["step"] == 9
    (run / "0000001.ckpt").symlink_to("0000002.ckpt")  # inside
    assert newest_good(run)[0].name == "0000002.ckpt"
    (run / "averages" / "0000003.pt").symlink_to(tmp_path / "elsewhere.ckpt")
    assert list(averages.snapshots(run)) == [2]


def test_the_users_own_links_are_followed(run, command, tmp_path):
    (tmp_path / "disk").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "disk")
    words = (*PLAIN, *POINTS, "trainer.max_steps=1", "trainer.warmup=0")
    assert command("train", *words, "out=link") == 0
    assert find("link").name == "0000001.ckpt" and (tmp_path / "disk" / "last.ckpt").exists()
    assert command("train", "resume=link", "trainer.max_steps=2", *PLAIN) == 0
    (tmp_path / "one.ckpt").symlink_to(tmp_path / "disk" / "0000002.ckpt")
    assert command("sample", "ckpt=one.ckpt", "n=4", "steps=1", "out=drawn") == 0
    assert command("report", "runs=link") == 0
    assert "n = 4" in (tmp_path / "drawn" / "report.html").read_text("utf-8")


# The parts


def test_names_of_temporary_files_cannot_be_guessed(tmp_path):
    path = tmp_path / "a.csv"
    names = {files.temporary(path).name for _ in range(50)}
    assert len(names) == 50 and not any(str(os.getpid()) == name[-5:] for name in names)
    with files.whole(path) as file:
        (part,) = tmp_path.iterdir()
        assert len(part.name) == len("a.csv.tmp-") + 16
        file.write(b"x")
    assert path.read_bytes() == b"x" and list(tmp_path.iterdir()) == [path]


def test_a_file_at_the_name_of_a_temporary_one_is_not_overwritten(tmp_path, monkeypatch):
    (tmp_path / "thesis").write_text(SECRET)
    part = tmp_path / "guessed"
    part.symlink_to(tmp_path / "thesis")
    monkeypatch.setattr(files, "temporary", lambda path: part)
    with pytest.raises(FileExistsError):
        files.write_text(tmp_path / "a", "x")
    assert part.is_symlink() and (tmp_path / "thesis").read_text() == SECRET


def test_reading_stays_in_the_root(tmp_path):
    root = tmp_path / "root"
    (root / "inner").mkdir(parents=True)
    (tmp_path / "secret").write_text(SECRET)
    (root / "a").write_text("a\r\nb")
    (root / "inner" / "up").symlink_to("../a")
    (root / "out").symlink_to("../secret")
    (root / "circle").symlink_to("circle")
    assert files.read_text(root / "inner" / "up", root) == "a\nb"
    assert files.read_text(root / "out") == SECRET  # where the user names a file
    for name in ("out", "circle", "../secret", "inner/../../secret"):
        with pytest.raises(OSError, match="link"):
            files.read_bytes(root / name, root)
    for name in ("/dev/zero", "/dev/tty", str(root)):
        with pytest.raises(OSError):
            files.read_bytes(Path(name))


def test_a_lock_is_for_one_at_a_time(tmp_path):
    code = (
        "import sys, time\n"
        "from pathlib import Path\n"
        "from fmdiff.files import lock\n"
        "for _ in range(20):\n"
        "    with lock(Path('lock')):\n"
        "        count = int(Path('count').read_text())\n"
        "        time.sleep(0.001)\n"
        "        Path('count').write_text(str(count + 1))\n"
    )
    (tmp_path / "count").write_text("0")
    both = [subprocess.Popen([sys.executable, "-c", code], cwd=tmp_path) for _ in range(3)]
    assert [process.wait(200) for process in both] == [0, 0, 0]
    assert (tmp_path / "count").read_text() == "60" and not (tmp_path / "lock").exists()


def test_two_sweeps_in_one_folder_take_turns(tmp_path):
    first = claim_sweep(tmp_path / "sweep")
    (first.folder / "jobs.jsonl").write_text("[0]\n")
    with pytest.raises(FmdiffError, match=f"in use by process {os.getpid()}"):
        claim_sweep(tmp_path / "sweep")
    assert (first.folder / "jobs.jsonl").exists()
    first.close()
    claim_sweep(tmp_path / "sweep").close()
