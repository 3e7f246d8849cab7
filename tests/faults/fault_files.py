"""Rows 51 to 65: files from others, files of others' making, and what happens to one's own."""

import json
import shutil
import zlib
from pathlib import Path

import numpy as np
from faults import SAMPLE, TRAIN, Case, Row

EVALUATE = "fmdiff evaluate device=cpu threads=1"
BY_CLASS = "fmdiff train data=folder data.root=animals model.channels=8"
RESULT = {"format": 1, "command": "evaluate", "metrics": {"sw2": {"value": 1.0}}}


# What is done to files


def strange_result() -> None:
    """A results.json whose solver is a file of its author."""
    Path("evil.yaml").write_text("_target_: os.system\ncommand: touch it_was_run\n")
    config = {"ckpt": "moons", "n": 64, "grid": {"solver": ["../../../evil"]}}
    Path("received.json").write_text(json.dumps(RESULT | {"config": config}))


def strange_words() -> None:
    """A run folder whose recorded command names a file of its author."""
    shutil.copytree("moons", "received")
    with Path("received/overrides").open("a", encoding="utf-8") as file:
        file.write("source=../../../evil\n")


def aliases() -> None:
    """A config.yaml whose nine lines of aliases stand for 10^9 values."""
    shutil.copytree("moons", "received")
    lines = ["a0: &a0 [x,x,x,x,x,x,x,x,x,x]"]
    lines += [f"a{i}: &a{i} [{','.join([f'*a{i - 1}'] * 10)}]" for i in range(1, 9)]
    Path("received/config.yaml").unlink()
    Path("received/config.yaml").write_text("\n".join(lines))


def postscript() -> None:
    """A PostScript program under the name of a picture."""
    Path("received").mkdir()
    Path("received/a.png").write_text(
        "%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 8 8\n(it_was_run) (w) file\n"
    )


def huge_picture() -> None:
    """A PNG of a few kilobytes and of 60,000 x 60,000 pixels."""

    def chunk(name: bytes, content: bytes) -> bytes:
        check = zlib.crc32(name + content).to_bytes(4, "big")
        return len(content).to_bytes(4, "big") + name + content + check

    size = (60_000).to_bytes(4, "big")
    head, rows = chunk(b"IHDR", size + size + b"\1\0\0\0\0"), zlib.compress(bytes(100_000))
    Path("received").mkdir()
    Path("received/a.png").write_bytes(
        b"\x89PNG\r\n\x1a\n" + head + chunk(b"IDAT", rows) + chunk(b"IEND", b"")
    )


def link() -> None:
    """A run folder whose log is a link to a file of the user."""
    Path("thesis.tex").write_text("Years of work\n")
    shutil.copytree("moons", "received")
    Path("received/train.log").unlink()
    Path("received/train.log").symlink_to("../thesis.tex")


def empty_config() -> None:
    shutil.copytree("moons", "received")
    Path("received/config.yaml").unlink()
    Path("received/config.yaml").write_text("")


def zeros_after() -> None:
    """What a power cut leaves of a file that grows."""
    with Path("moons/metrics.csv").open("ab") as file:
        file.write(bytes(500))


def two_classes() -> None:
    from PIL import Image

    draws = np.random.default_rng(0)
    for name in ("cats", "dogs"):
        Path("animals", name).mkdir(parents=True)
        for i in range(20):
            pixels = draws.integers(0, 256, (8, 8), np.uint8)
            Image.fromarray(pixels).save(f"animals/{name}/{i}.png")


def renamed() -> None:
    Path("animals/cats").rename("animals/zebras")


def odd_points() -> None:
    draws = np.random.default_rng(0)
    points = draws.normal(size=(100, 2))
    np.savez("made.npz", arr_0=points)
    points[7, 1] = np.nan
    np.savez("nan.npz", arr_0=points)
    pixels = draws.integers(0, 256, (40, 28, 28, 1), np.uint8)
    np.savez("images.npz", arr_0=pixels)
    np.savez("labels.npz", arr_0=pixels, labels=np.full(40, -1))
    np.savez("negative.npz", mu=np.zeros(64), sigma=-np.eye(64))


ROWS = (
    Row(
        51,
        "a results.json from someone else that names a file as its solver",
        (
            Case(
                f"{EVALUATE} result=received.json out=new", 2, ("'../../../evil'",), strange_result
            ),
        ),
        tests=("test_received::test_a_recipe_chooses_by_name_alone",),
    ),
    Row(
        52,
        "a run folder from someone else whose command names a file",
        (
            Case(
                "fmdiff train resume=received trainer.max_steps=80",
                2,
                ("received/overrides: source=../../../evil is no choice of source",),
                strange_words,
            ),
        ),
    ),
    Row(
        53,
        "a config.yaml of aliases, which stand for 10^9 values",
        (
            Case("fmdiff train resume=received trainer.max_steps=80", 2, ("alias",), aliases),
            Case("fmdiff report runs=received", 0, ("received/report.html",)),
        ),
    ),
    Row(
        54,
        "a program under the name of a picture",
        (
            Case(
                f"{EVALUATE} samples=received against=digits",
                2,
                ("received/a.png cannot be read as an image (it is no picture in the format PNG",),
                postscript,
            ),
        ),
        tests=("test_hostile_pictures",),
    ),
    Row(
        55,
        "a picture of 3.6 billion pixels",
        (
            Case(
                f"{EVALUATE} samples=received against=digits",
                2,
                ("its 3,600,000,000 pixels are more than 64 million",),
                huge_picture,
            ),
        ),
    ),
    Row(
        56,
        "a run folder from someone else whose log is a link",
        (
            Case(
                "fmdiff train resume=received trainer.max_steps=80",
                2,
                ("received/train.log is a link",),
                link,
            ),
        ),
        tests=("test_links",),
    ),
    Row(
        57,
        "a run whose config.yaml is empty, resumed with another network",
        (
            Case(
                "fmdiff train resume=received model.hidden=32 trainer.max_steps=80",
                2,
                ("model.hidden",),
                empty_config,
            ),
        ),
    ),
    Row(
        58,
        "a metrics.csv that ends in zeros after a power cut",
        (
            Case(
                "fmdiff train resume=moons trainer.max_steps=62",
                0,
                ("62 steps done",),
                zeros_after,
            ),
        ),
        tests=("test_damaged",),
    ),
    Row(
        59,
        "a class folder that has another name than when training began",
        (
            Case(
                f"{BY_CLASS} data.size=8 data.batch_size=8 trainer.max_steps=1 out=new",
                0,
                ("1 steps done",),
                two_classes,
            ),
            Case("fmdiff train resume=new trainer.max_steps=2", 2, ("cats", "zebras"), renamed),
        ),
        tests=("test_classes",),
    ),
    Row(
        60,
        "a point that is not finite, labels below 0, and a covariance that is none",
        (
            Case(
                f"{EVALUATE} samples=nan.npz against=made.npz", 2, ("nan.npz", "row 7"), odd_points
            ),
            Case(f"{EVALUATE} samples=made.npz against=nan.npz", 2, ("nan.npz", "row 7")),
            Case(
                f"{EVALUATE} samples=labels.npz features=mnist against=images.npz",
                2,
                ("labels.npz",),
            ),
            Case(
                f"{EVALUATE} samples=images.npz features=mnist against=negative.npz",
                2,
                ("negative.npz",),
            ),
        ),
    ),
    Row(
        61,
        "a name that YAML reads as a number",
        (
            Case(f"{TRAIN} trainer.max_steps=1 out=2024", 0, ("writing to 2024",)),
            Case(f"{TRAIN} trainer.max_steps=1e0 out=nan", 0, ("writing to nan",)),
        ),
    ),
    Row(
        62,
        "a package that is not installed",
        (Case(f"{TRAIN} trainer.logger=wandb out=new", 2, ("pip install 'fmdiff[wandb]'",)),),
        tests=("test_extras",),
    ),
    Row(
        63,
        "a run folder that is moved while training",
        tests=("test_gone",),
    ),
    Row(
        64,
        "a terminal that is closed, and a process that hangs",
        tests=("test_blocking", "test_processes"),
    ),
    Row(
        65,
        "several solvers without -m",
        (Case(f"{SAMPLE} solver=euler,heun", 2, ("-m",)),),
    ),
)
