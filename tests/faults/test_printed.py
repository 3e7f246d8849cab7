"""What others have named reaches the terminal and the logs as visible characters alone."""

import fcntl
import io
import json
import logging
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import PLAIN, POINTS
from test_folder import save

from fmdiff import tables
from fmdiff.errors import FmdiffError, Screen, printable, screens, visible
from fmdiff.runs import checkpoint
from fmdiff.runs.find import find
from fmdiff.runs.folder import LogFile

# colour, title and clipboard of a terminal; C1; bidi; line ends; DEL; backspace; no character
HOSTILE = [
    "\x1b[31mred",
    "\x1b]0;title\x07",
    "\x1b]52;c;cm0gLXJmIC8=\x07",
    "\x9b31m",
    "\x85next",
    "\u202egnp.exe",
    "\u2066left",
    "\u200bnone",
    "a\nfmdiff: all is well",
    "a\rfmdiff: all is well",
    "a\u2028b",
    "a\x0bb\x0cc",
    "\x7f\x7f",
    "ok\b\bno",
    "\x00",
    "\udc9b",
    "\ue000",
]
SAFE = ["plain", "Größe", "模型", "é", "a 'b' \"c\" \\ d", "½ ± 0.2 → λ", "😀"]


def harmless(text):
    """Whether a terminal would show a text as it is."""
    return all(c.isprintable() or c in "\n\t\xa0" for c in text)


@pytest.mark.parametrize("text", HOSTILE, ids=ascii)
def test_escapes(text):
    said = printable(text)
    assert said.isprintable() and "\n" not in said
    assert harmless(visible(text)) and harmless(str(FmdiffError(text)))
    lines = tables.aligned([["name", text], [text, "1"]]).splitlines()
    assert len(lines) == 2 and all(map(harmless, lines))
    assert len(tables.as_csv([["a", "b"], [text, 1.5]]).splitlines()) == 2
    assert len(tables.as_markdown([["a", "b"], [text, "x|y"]]).splitlines()) == 3


@pytest.mark.parametrize("text", SAFE, ids=ascii)
def test_what_can_be_seen_stays(text):
    assert printable(text) == visible(text) == text
    assert tables.as_csv([["a"], [text]]).splitlines()[1].replace('""', '"').strip('"') == (
        text if '"' not in text else text.strip('"')
    )


def test_numbers_in_a_csv_stay_as_they_were():
    assert tables.as_csv([["a", "b", "c"], [1, 0.1, None]]) == "a,b,c\n1,0.1,\n"


def test_screens(monkeypatch):
    out, err = io.StringIO(), io.StringIO()
    monkeypatch.setattr(sys, "stdout", out)
    monkeypatch.setattr(sys, "stderr", err)
    with screens(), screens():
        print("\x1b[2Jaé\tb")
        print("\u202e", file=sys.stderr)
        sys.stdout.writelines(["\r 50%", "\x9b\n"])
        logging.StreamHandler().emit(logging.LogRecord("x", 30, "", 0, "\x1b%s", ("y",), None))
        assert isinstance(sys.stdout, Screen) and sys.stdout.getvalue
    assert sys.stdout is out and sys.stderr is err
    assert out.getvalue() == "\\x1b[2Jaé\tb\n\r 50%\\x9b\n"
    assert err.getvalue() == "\\u202e\n\\x1by\n"


def test_a_record_is_one_line(caplog, tmp_path):
    handler = LogFile(tmp_path / "a.log")
    logging.getLogger().addHandler(handler)
    try:
        for text in HOSTILE:
            logging.getLogger("fmdiff").warning("class %s of %d", text, 3)
        logging.getLogger("other").warning("a\n\x1b[31mb")
        raise ValueError("\x1b[31m")
    except ValueError as error:
        logging.getLogger("fmdiff").error("a bug", exc_info=error)
    finally:
        logging.getLogger().removeHandler(handler)
        handler.close()
    text = (tmp_path / "a.log").read_text("utf-8")
    assert harmless(text) and len(text.splitlines()) >= len(HOSTILE) + 3
    assert text.count(" WARNING fmdiff: class ") == len(HOSTILE)
    assert "Traceback" in text and "ValueError: \\x1b[31m" in text
    assert all(record.getMessage().isprintable() for record in caplog.records[: len(HOSTILE)])


# Through the commands


@pytest.mark.fault(count=3)
@pytest.mark.parametrize("text", ["\x1b[31m\x9b1m", "\u202etxt\x7f", "x\ny: fmdiff\rz"], ids=ascii)
def test_names_of_classes_and_files(command, tmp_path, capfd, text):
    for name in (text, "b"):
        for i in range(12):
            save(tmp_path / "mine" / name / f"{i}.png", np.full((8, 8), 9 * i, np.uint8))
    words = ("data=folder", "data.root=mine", "data.size=8", "data.channels=1", "model=unet")
    words += ("data.batch_size=4", "model.channels=8", "model.multipliers=[1]")
    words += ("model.head_channels=8", "trainer.max_steps=1", "trainer.warmup=0", *PLAIN)
    assert command("train", *words, "out=run") == 0
    assert command("info", "ckpt=run") == 0
    assert command("sample", "ckpt=run", "classes=[c]", "out=other") == 2
    (tmp_path / "mine" / text / f"{text}.png").write_text("no picture")
    assert command("train", *words, "out=second") == 2
    said = "".join(capfd.readouterr())
    assert repr(text)[1:-1] in said and text not in said
    assert all(harmless(line.replace("\r", "")) for line in said.split("\n"))
    log = (tmp_path / "run" / "train.log").read_text("utf-8")
    assert repr(text)[1:-1] in log and harmless(log)
    assert text not in (tmp_path / "run" / "report.html").read_text("utf-8")


@pytest.mark.fault(count=len(HOSTILE))
def test_info_of_a_received_checkpoint(command, moons_run, tmp_path, capfd):
    """What a checkpoint's spec says is shown on its own line, as visible characters"""
    content = checkpoint.read(find(moons_run))
    spec = content["spec"]
    spec["data"] |= {"name": "".join(HOSTILE[:-2]), "names": HOSTILE[:-2]}
    spec["coupling"] = {"_target_": "fmdiff.coupling.Independent"}
    content["weights"]["0.5"] = content["weights"]["raw"]
    checkpoint.write(tmp_path / "a.ckpt", content)
    assert command("info", "ckpt=a.ckpt") == 0
    said = "".join(capfd.readouterr())
    assert harmless(said) and "fmdiff: all is well" not in [
        line.strip() for line in said.splitlines()
    ]
    spec["model"]["_target_"] = "os.\x1b[31mpath"
    checkpoint.write(tmp_path / "b.ckpt", content)
    assert command("info", "ckpt=b.ckpt") == 2
    assert harmless("".join(capfd.readouterr()))


@pytest.mark.fault
def test_files_of_a_received_run(command, moons_run, tmp_path, capfd):
    shutil.copytree(moons_run, tmp_path / "run")
    (tmp_path / "run" / ".lock").write_text("\x1b[31m process\n")
    hostile = "".join(HOSTILE[:-2])
    lines = [json.dumps([0, hostile, 0, None]), "no json \x1b"]
    (tmp_path / "run" / "jobs.jsonl").write_text("\n".join(lines))
    metrics = (tmp_path / "run" / "metrics.csv").read_text()
    (tmp_path / "run" / "metrics.csv").write_text(metrics.replace("loss", "\u202eloss\x9b", 1))
    command("report", "runs=run")
    command("train", "resume=run", "trainer.max_steps=61", *PLAIN)
    (tmp_path / "results.json").write_text(json.dumps({"format": hostile, "command": hostile}))
    command("evaluate", "result=results.json")
    np.savez(tmp_path / "x.npz", **{"a\x1b[31m": np.ones(2)})
    command("evaluate", "samples=x.npz", "against=moons")
    torch.save({"\x1b[31m": 1}, tmp_path / "x.ckpt")
    command("info", "ckpt=x.ckpt")
    said = "".join(capfd.readouterr())
    assert harmless(said.replace("\r", "")), ascii(said)
    assert harmless((tmp_path / "run" / "train.log").read_text("utf-8"))


@pytest.mark.fault
def test_a_lock_that_was_received_is_escaped(command, tmp_path, capfd):
    Path("run").mkdir()
    with Path("run/.lock").open("w") as file:
        file.write("\x1b[31m process\n")
        file.flush()
        fcntl.flock(file, fcntl.LOCK_EX)
        assert command("train", *PLAIN, *POINTS, "out=run") == 2
    assert "in use by \\x1b[31m process" in capfd.readouterr().err
