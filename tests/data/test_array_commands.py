"""data=array through the commands: tables, series, arrays and pictures of one's own."""

import csv
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import PLAIN
from test_array import COLOURS, N, write

from fmdiff.runs import checkpoint
from fmdiff.runs.find import find

BRIEF = (*PLAIN, "trainer.max_steps=3", "trainer.warmup=0", "data.batch_size=8")
MLP = ("model=mlp", "model.hidden=16")


@pytest.fixture
def table(tmp_path):
    """A table with a category, a constant column and a column of labels."""
    rng = np.random.default_rng(0)
    a = rng.standard_t(3, N)
    columns = {"a": a, "b": 1000 + 5 * a, "colour": rng.choice(COLOURS, N), "unit": np.full(N, 7)}
    columns["kind"] = rng.choice(["cat", "dog"], N)
    return write(tmp_path / "my table.csv", type("Rows", (), {})(), **columns)


def read(path):
    with Path(path).open(newline="") as file:
        return list(csv.DictReader(file))


def test_a_table_from_file_to_samples(command, table, capsys):
    own = ("data.file=my table.csv", "data.categorical=[colour]", "data.label=kind")
    assert command("train", *BRIEF, *MLP, "data=array", *own, "out=run") == 0
    assert command("info", "ckpt=run") == 0
    assert "Table(names=['a', 'b', 'colour', 'unit']" in capsys.readouterr().out
    assert command("sample", "ckpt=run", "n=6", "steps=2", "classes=[dog]", "out=first") == 0
    rows = read("first/samples.csv")
    assert list(rows[0]) == ["a", "b", "colour", "unit", "label"] and len(rows) == 6
    assert {row["colour"] for row in rows} <= set(COLOURS)
    assert all(float(row["unit"]) == 7 and row["label"] == "dog" for row in rows)
    assert all(900 < float(row["b"]) < 1100 for row in rows)  # in the units of the file
    x = np.load("first/samples.npz")["arr_0"]
    assert x.shape == (6, 4) and [COLOURS[int(c)] for c in x[:, 2]] == [r["colour"] for r in rows]
    table.rename("moved.csv")
    assert command("sample", "ckpt=run", "n=6", "steps=2", "classes=[dog]", "out=again") == 0
    assert Path("again/samples.csv").read_bytes() == Path("first/samples.csv").read_bytes()
    assert "are not shown beside the samples: data.file=my table.csv" in capsys.readouterr().err
    assert command("evaluate", "ckpt=run", "n=8", "out=judged") == 2
    assert "my table.csv cannot be read" in capsys.readouterr().err


def test_a_changed_file_is_told_on_resume(command, table, capsys):
    own = ("data=array", "data.file=my table.csv", "data.columns=[a,b]")
    assert command("train", *BRIEF, *MLP, *own, "out=run") == 0
    more = ("trainer.max_steps=5", "resume=run")
    table.write_bytes(table.read_bytes().replace(b",cat", b",cow"))  # in no column that is read
    assert command("train", *BRIEF[:-1], *more) == 0
    assert checkpoint.read(find("run"))["step"] == 5
    error = capsys.readouterr().err
    assert "the files of the data are others than when this run began: 200 then, 200 now" in error


def test_a_resumed_run_is_the_uninterrupted_one(command, table):
    own = ("data=array", "data.file=my table.csv", "data.columns=[a,b]", "data.cond=[colour]")
    steps = ("trainer.max_steps=6", "trainer.checkpoint_every=3")
    assert command("train", *BRIEF, *MLP, *own, *steps, "out=whole") == 0
    shutil.copytree("whole", "parts")
    for file in Path("parts").glob("*.ckpt"):
        if file.name != "0000003.ckpt":
            file.unlink()
    assert command("train", *PLAIN, "resume=parts") == 0
    assert checkpoint.read(find("parts"))["step"] == 6
    whole, parts = (checkpoint.read(find(run))["weights"] for run in ("whole", "parts"))
    for name, weights in whole["raw"].items():
        assert torch.equal(weights, parts["raw"][name])


@pytest.mark.parametrize(
    ("shape", "dtype", "model"),
    [
        ((2, 16), "<f2", "unet_1d"),
        ((4, 8, 8), ">f8", "unet"),
        ((3, 8, 8), "u1", "unet"),
        ((8, 8, 1), "u1", "unet"),
    ],
)
def test_arrays_of_every_shape_are_trained_and_sampled(command, shape, dtype, model):
    x = (100 + 20 * np.random.default_rng(0).normal(size=(40, *shape))).astype(dtype)
    np.savez("a.npz", x=x, y=np.arange(40) % 2)
    small = ("model.channels=8", "model.multipliers=[1,2]", "model.head_channels=8")
    size = small if model == "unet" else small[:2]
    own = ("data=array", "data.file=a.npz", "data.key=x", "data.label=y")
    assert command("train", *BRIEF, *own, *size, "out=run") == 0
    assert command("sample", "ckpt=run", "n=4", "steps=2", "out=drawn") == 0
    drawn = np.load("drawn/samples.npz")
    pixels = dtype == "u1"
    want = (8, 8, 1 if shape[-1] == 1 else 3) if pixels else shape or (1,)
    assert drawn["arr_0"].shape == (4, *want) and drawn["labels"].tolist() == [0, 1, 0, 1]
    assert drawn["arr_0"].dtype == (np.uint8 if pixels else np.float32)
    if not pixels:
        assert abs(drawn["arr_0"].mean() - 100) < 40  # in the units of the file


def test_slips_end_in_a_sentence_without_a_traceback(command, table, capsys):
    assert command("train", *BRIEF, *MLP, "data=array", "data.file=my table.csv", "out=run") == 2
    error = capsys.readouterr().err
    assert "the column colour holds texts" in error and "Traceback" not in error
    assert command("train", *BRIEF, "data=array", "out=run") == 2
    assert "data=array needs data.file=PATH" in capsys.readouterr().err
    assert command("train", *BRIEF, "data=array", "data.file=none.npy", "out=run") == 2
    assert "data.file=none.npy cannot be read: No such file" in capsys.readouterr().err
