"""Damaged and hostile input, thousands of times from fixed seeds: one sentence or right.

Never a traceback, and never a wrong success. The long versions are slow; each has a short one.
"""

import contextlib
import copy
import io
import math
import os
import random
import re
import struct
import zlib

import hydra
import numpy as np
import pytest
import torch
from conftest import logging_restored
from hydra._internal.core_plugins.file_config_source import FileConfigSource
from hydra._internal.core_plugins.importlib_resources_config_source import (
    ImportlibResourcesConfigSource,
)
from omegaconf import OmegaConf, flag_override
from PIL import Image
from test_checkpoint import content, same
from test_data import make

from fmdiff import cli, files
from fmdiff.commands import job
from fmdiff.commands.table import COMMANDS
from fmdiff.data import saved
from fmdiff.errors import FmdiffError
from fmdiff.metrics import reference
from fmdiff.runs import checkpoint
from fmdiff.settings import compose, schema
from fmdiff.settings.sentences import dotted


def sizes(short, long, name):
    """Seeds of a short test, and of slow ones that together make `long`."""
    rounds = [pytest.param(0, short, id="short", marks=pytest.mark.fault(count=short))]
    slow = [pytest.mark.slow, pytest.mark.fault(count=long // 4)]
    rounds += [pytest.param(k, long // 4, id=f"{name}-{k}", marks=slow) for k in range(1, 5)]
    return pytest.mark.parametrize(("seed", "count"), rounds)


def one_sentence(error, *parts):
    text = str(error)
    assert "\n" not in text and all(str(part) in text for part in parts), text


# Command lines

# fmt: off
ODD = [
    "nan", "-nan", "inf", "-inf", "1e999", "0", "-0", "-1", "1", "2", "3.0", "2.5", "1e3", "1e-3",
    "9" * 26, "9" * 400, "0x10", "1_000", "true", "false", "TRUE", "yes", "null", "NULL", "~",
    "none", "''", '""', "'", '"', "[]", "{}", "[", "]", "{", "}", "[[", "[1,2]", "[1,[2]]",
    "[nan]", "[true]", "[null]", "{a:1}", "{a:{b:[1]}}", "{_target_:os.system}", "${seed}",
    "${nope}", "${oc.env:HOME}", "${choices:}", "${out}", "$", "${", "${}", "${a${b}}", "@", "a@b",
    "+", "++", "~~", "moons", "heun", "unet", "ünï", "日本", "\u202e", "a b", " ", "\t", "\n",
    "a\nb", "\\", "\\n", "a=b", "a,b", "1,2", "range(3)", "choice(1,2)", "glob(*)",
    "interval(0,1)", "sort(1)", "f(x)", "sin(t)", "../x", "./x", "a/b", "1:2", "01:00:00", "auto",
    "cpu", "cuda:99", "ema", "raw", "power:0.1", "power:x", "x" * 5000, "[" * 200, "\x00",
    "\x1b[31m", "*", "%", "#", "!!python/object:os.system", "&a", "*a", "|", "- a", ": ", "?",
    "0o17", "1e", "e1", ".5", "5.", "+1", "--1", "1.e5", "3+0j", "1/2", "\xa0", "\udce4", "[,]",
    "[1,]", "{:}", "{1:2}", "x/" * 2000, "\u0661", "True", "on", "1e400", "[0.5,0.1]", "-1e-400",
]
# fmt: on
CHARACTERS = "abcdexyz0123456789=.,:[]{}()'\"$+~@-_/\\ \t\n*%#!&|<>?;^`é日"
NEEDED = dict.fromkeys(("sample", "evaluate", "info", "invert", "likelihood"), "ckpt=x")

# what some keys may be, in other words than fmdiff's
ORACLE = {
    **dict.fromkeys(
        ["n", "batch_size", "threads", "nfe", "trainer.keep", "trainer.inner_steps"],
        lambda v: v is None or (type(v) is int and v > 0),
    ),
    **dict.fromkeys(
        ["trainer.max_steps", "trainer.accumulate", "trainer.devices", "repeats", "times"],
        lambda v: type(v) is int and v > 0,
    ),
    **dict.fromkeys(["seed", "trainer.warmup"], lambda v: type(v) is int and v >= 0),
    **dict.fromkeys(
        ["plan", "profile", "overwrite", "trajectory", "png", "trainer.progress", "export_all"],
        lambda v: type(v) is bool,
    ),
    "dtype": lambda v: v in ("float32", "float64"),
    "final": lambda v: v in ("auto", "solver", "denoise"),
    "coordinates": lambda v: v in ("straight", "native"),
    "trainer.label_dropout": lambda v: type(v) in (int, float) and 0 <= v <= 1,
    "optim.lr": lambda v: type(v) in (int, float) and 0 < v < math.inf,
    "trainer.ema": lambda v: type(v) is list and all(0 < d < 1 for d in v),
    "trust": lambda v: type(v) is list and all(type(p) is str and p for p in v),
    "choices": lambda v: type(v) is dict,
    "out": lambda v: v is None or (type(v) is str and v != ""),
}


def leaf(tree, key):
    for part in key.split("."):
        if not isinstance(tree, dict) or part not in tree:
            return KeyError
        tree = tree[part]
    return tree


def numbers(tree):
    if isinstance(tree, dict | list):
        for item in tree.values() if isinstance(tree, dict) else tree:
            yield from numbers(item)
    elif isinstance(tree, float):
        yield tree


def wrong(cfg, override):
    """Why a config that was accepted is not what the override asked for, or None."""
    tree = OmegaConf.to_container(cfg)
    for key, right in ORACLE.items():
        value = leaf(tree, key)
        if value is not KeyError and not right(value):
            return f"{key}={value!r}"
    if any(value != value for value in numbers(tree)):
        return "nan"
    said = re.fullmatch(r"\+{0,2}([a-z_.]+)=(-?[1-9]\d{0,17}|0|true|false|null)", override)
    if said and not said[1].startswith("hydra"):
        meant = {"true": True, "false": False, "null": None}
        meant = meant[said[2]] if said[2] in meant else int(said[2])
        if said[1] in schema.PATHS and said[2] != "null":
            meant = said[2]
        value = leaf(tree, said[1])
        if (
            value is KeyError
            or value != meant
            or isinstance(value, bool) != (isinstance(meant, bool))
        ):
            return f"{said[1]} is {value!r}"
    return None


def remembered(monkeypatch):
    """Read each YAML, and compose what no override changes, once: four times as fast."""
    for source in (FileConfigSource, ImportlibResourcesConfigSource):
        load, files = source.load_config, {}

        def loaded(self, config_path, load=load, files=files):
            key = (self.path, config_path)
            if key not in files:
                files[key] = load(self, config_path)
            return copy.deepcopy(files[key])

        monkeypatch.setattr(source, "load_config", loaded)
    whole, defaults = compose.Composer.compose, {}

    def composed(self, overrides, mode=compose.RunMode.RUN):
        if any(override != "ckpt=x" for override in overrides):
            return whole(self, overrides, mode)
        key = (self.command, tuple(overrides), mode)
        if key not in defaults:
            defaults[key] = whole(self, overrides, mode)
        return copy.deepcopy(defaults[key])

    monkeypatch.setattr(compose.Composer, "compose", composed)


@pytest.fixture
def typed(tmp_path, monkeypatch):
    """Types a command line whose command does nothing: (exit code, stdout, stderr, configs)."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("FMDIFF_DATA", str(tmp_path / "no_data"))
    monkeypatch.setattr(job, "update_report", lambda *_: None)
    ran, checked = [], []
    for name in COMMANDS:
        monkeypatch.setitem(COMMANDS, name, lambda cfg: ran.append(cfg))
    remembered(monkeypatch)
    check, run = compose.Composer.check, hydra.main

    def recorded(self, cfg, overrides):
        resolved = check(self, cfg, overrides)
        checked.append(copy.deepcopy(resolved))
        return resolved

    monkeypatch.setattr(compose.Composer, "check", recorded)

    def main(*words, through):
        ran.clear(), checked.clear()
        monkeypatch.setattr(hydra, "main", run if through else lambda *_, **__: lambda _: int)
        out, err = io.StringIO(), io.StringIO()
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            code = cli.main(list(words))
        return code, out.getvalue(), err.getvalue(), list(ran if through else checked)

    with logging_restored():
        yield main


def known_keys():
    """By command: the keys it has, and the groups."""
    found = {}
    for name in COMMANDS:
        cfg = compose.Composer(name, compose.parse([])[0]).compose([])
        groups = [group for group in cfg.hydra.runtime.choices if "/" not in group]
        with flag_override(cfg, ["struct", "readonly"], [False, False]):
            del cfg["hydra"]
        keys = [key for key in dotted(cfg) if not key.startswith("choices.")]
        found[name] = keys, groups
    return found


def override(rng, known):
    """(command, one odd override): half of keys that exist, half of anything."""
    if rng.random() < 0.5:
        command = rng.choice(["train"] * 2 + ["sample"] * 2 + list(known))
        keys, groups = known[command]
        key = rng.choice(keys if rng.random() < 0.9 else groups or keys)
        value = rng.choice(ODD)
        if rng.random() < 0.2:
            shape = rng.choice(["[%]", "'%'", '"%"', "{a:%}", "[%,%]", "%%", "-%", "\\%"])
            value = shape.replace("%", value)
        prefix = rng.choice([""] * 12 + ["+", "++", "~"])
        return command, f"{prefix}{key}={value}" if rng.random() < 0.97 else f"~{key}"
    command = rng.choice(["info", "report", "simulate"] * 3 + list(known))
    text = "".join(rng.choice(CHARACTERS) for _ in range(rng.choice([1, 2, 3, 5, 8, 13, 30, 100])))
    if rng.random() < 0.6:
        start = rng.choice([*known[command][0], "hydra.mode", "hydra.sweep.dir", "choices", "x.y"])
        text = start + rng.choice(["=", "=", "=", "", "@", ".", "/", ":", "+="]) + text
    return command, text


@sizes(60, 10_000, "overrides")
def test_overrides(typed, tmp_path, seed, count):
    """Odd overrides: one sentence and exit 2, or the value that was given"""
    rng, known, accepted = random.Random(f"overrides {seed}"), known_keys(), 0
    for k in range(count):
        command, text = override(rng, known)
        needed = NEEDED.get(command)
        words = [command, *([needed] if needed and "ckpt" not in text else []), text]
        before = set(os.listdir(tmp_path))
        try:
            code, out, err, configs = typed(*words, through=k % 20 == 0)
        except BaseException as error:
            raise AssertionError(f"{words} raised {error!r}") from error
        if code == 2:
            assert err.startswith(f"fmdiff {command}: ") and err.count("\n") == 1, (words, err)
            assert not out and not configs and set(os.listdir(tmp_path)) == before, words
            assert err[:-1].isprintable(), (words, err)
        else:
            assert code == 0, (words, code, err)
            accepted += len(configs)
            for cfg in configs:
                assert wrong(cfg, text) is None, (words, wrong(cfg, text))
    assert accepted >= count // 50  # or nothing was tried that could be wrongly accepted


@pytest.mark.parametrize(
    ("words", "key", "value"),
    [("steps=0", "n", 0), ("n=3", "n", 4), ("seed=1", "seed", True), ("x=1", "a", math.nan)],
)
def test_the_oracle_sees_what_is_wrong(words, key, value):
    assert wrong(OmegaConf.create({key: value}), words)


# Checkpoints


def hurt(rng, whole, parts):
    """The bytes of a file that something happened to; parts: offsets where a part begins."""
    size = len(whole)
    kind = rng.randrange(9)
    a, b = sorted(rng.sample(range(size + 1), 2))
    if rng.random() < 0.3:  # near a header, where it hurts
        a = min(size - 1, max(0, rng.choice(parts) + rng.randrange(-8, 64)))
        b = min(size, a + rng.randrange(1, 64))
    if kind == 0:
        return whole[: rng.choice([a, b, size - 1 - rng.randrange(60)])]
    if kind in (1, 2, 3):
        found = bytearray(whole)
        for _ in range((1, 2, 8)[kind - 1]):
            at = rng.randrange(size) if rng.random() < 0.5 else rng.randrange(a, b)
            found[at] ^= 1 << rng.randrange(8)
        return bytes(found)
    if kind == 4:
        return whole[:a] + bytes(b - a) + whole[b:]
    if kind == 5:
        block = min(b - a, size - b) or 1
        return (
            whole[:a]
            + whole[b : b + block]
            + whole[a + block : b]
            + whole[a : a + block]
            + (whole[b + block :])
        )
    if kind == 6:
        return whole + (rng.randbytes(rng.randrange(1, 200)) if rng.random() < 0.5 else whole)
    if kind == 7:
        return whole[:a] + rng.randbytes(b - a) + whole[b:]
    return whole[:a] + whole[b:] if rng.random() < 0.5 else whole[:b] + whole[a:]


@sizes(200, 2000, "checkpoints")
def test_checkpoints(tmp_path, seed, count):
    """Damaged checkpoints: named as damaged, or the content is the same to the last bit"""
    path, rng = tmp_path / "0000007.ckpt", random.Random(f"checkpoints {seed}")
    checkpoint.write(path, content())
    whole, truth = path.read_bytes(), checkpoint.read(path)
    parts = [m.start() for m in re.finditer(rb"PK[\x01\x03\x05\x06\x07]", whole)]
    harmless = 0
    for _ in range(count):
        data = hurt(rng, whole, parts)
        if data == whole:
            continue
        path.write_bytes(data)
        try:
            read = checkpoint.read(path)
        except FmdiffError as error:
            one_sentence(error, path)
        else:
            assert same(read, truth)
            harmless += 1
    assert harmless < count // 2


@sizes(6, 80, "commands")
def test_checkpoints_of_commands(command, capfd, tmp_path, moons_run, seed, count):
    """Damaged checkpoints given to info and sample: exit 2 and a sentence, nothing written"""
    whole, rng = (moons_run / "last.ckpt").read_bytes(), random.Random(f"commands {seed}")
    parts = [m.start() for m in re.finditer(rb"PK[\x01\x03\x05\x06\x07]", whole)]
    truth = checkpoint.read(moons_run / "last.ckpt")
    path = tmp_path / "damaged.ckpt"
    for k in range(count):
        path.write_bytes(hurt(rng, whole, parts))
        words = ("info",) if k % 2 else ("sample", "n=2", "steps=1", "device=cpu", f"out=s{k}")
        code = command(*words, f"ckpt={path}")
        out, err = capfd.readouterr()
        if code == 0:
            assert same(checkpoint.read(path), truth)
            continue
        assert (code, out, err.count("\n")) == (2, "", 1) and "Traceback" not in err, err
        assert str(path) in err and not (tmp_path / f"s{k}").exists()


# Images


def png(width, height, data=b""):
    """A PNG that says it is of this size, whatever data it has."""
    found = b"\x89PNG\r\n\x1a\n"
    head = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    for kind, body in ((b"IHDR", head), (b"IDAT", zlib.compress(data)), (b"IEND", b"")):
        found += struct.pack(">I", len(body)) + kind + body
        found += struct.pack(">I", zlib.crc32(kind + body))
    return found


def encoded(rng, mode, kind, size=(8, 8)):
    levels = np.random.default_rng(rng.randrange(2**32)).integers(0, 256, (*size[::-1], 3))
    image = Image.fromarray(levels.astype(np.uint8)).convert("RGB")
    if mode == "I;16":
        image = Image.fromarray((levels[..., 0] * 257).astype(np.uint16))
    else:
        image = image.convert(mode)
    file = io.BytesIO()
    image.save(file, kind)
    return file.getvalue()


FORMATS = {"PNG": ["1", "L", "LA", "P", "RGB", "RGBA", "I;16"], "JPEG": ["L", "RGB", "CMYK"]}
FORMATS |= {"GIF": ["L", "P"], "BMP": ["1", "L", "P", "RGB"], "WEBP": ["RGB", "RGBA"]}
FORMATS |= {"TIFF": ["1", "L", "RGB", "CMYK", "F", "I;16", "LAB", "YCbCr"], "PPM": ["L", "RGB"]}
NAMES = ("a b", "ünï 日", "'quoted\"", "[x]=$y{z}", "-dash", "new\nline", "tab\t", "%s")


def damaged_image(rng):
    """(bytes, whether Pillow must be able to read them, suffix)"""
    kind = rng.choice(list(FORMATS))
    whole = encoded(rng, rng.choice(FORMATS[kind]), kind)
    suffix = {"JPEG": "jpg", "TIFF": "tif"}.get(kind, kind.lower())
    other = rng.choice(["png", "jpg", "gif", "bmp"])
    bombs = [(60_000, 60_000), (2**31 - 1, 1), (1, 100_000), (9_000, 9_000), (0, 8), (8, 0)]
    return rng.choice(
        [
            (whole, suffix),
            (hurt(rng, whole, [0]), suffix),
            (hurt(rng, whole, [0]), suffix),
            (whole[: rng.randrange(len(whole))], suffix),
            (b"", suffix),
            (b"this is a text\n" * rng.randrange(1, 99), other),
            (png(*rng.choice(bombs), b"\0" * 99), "png"),
            (encoded(rng, "RGB", "PNG", rng.choice([(1, 1), (1, 40), (33, 8)])), "png"),
            (whole, other),
            (rng.randbytes(300), other),
        ]
    )


@sizes(60, 500, "images")
def test_images(tmp_path, monkeypatch, seed, count):
    """Damaged images in a folder: named, or read as Pillow reads them"""
    monkeypatch.setenv("FMDIFF_DATA", str(tmp_path / "cache"))
    rng, read, named = random.Random(f"images {seed}"), 0, 0
    good = encoded(rng, "L", "PNG")
    for k in range(count):
        root = tmp_path / f"images {k}"
        root.mkdir()
        for name in ("good 1.png", "good 2.png"):
            (root / name).write_bytes(good)
        data, suffix = damaged_image(rng)
        file = root / f"{rng.choice(NAMES)}.{suffix}"
        if rng.random() < 0.1:
            (tmp_path / f"target {k}").write_bytes(data)
            file.symlink_to(rng.choice([tmp_path / f"target {k}", tmp_path / "no", root, file]))
        else:
            file.write_bytes(data)
        shown = repr(file.name)[1:-1] if not file.name.isprintable() else file.name
        folder = make("folder", root=str(root), size=8, channels=1, batch_size=1)
        try:
            pixels = torch.cat([folder.train[0], folder.test[0]])
        except FmdiffError as error:
            one_sentence(error, shown)
            named += 1
        else:
            assert pixels.shape == (2 + file.is_file(), 1, 8, 8) and pixels.dtype == torch.uint8
            read += 1
        try:
            x, _ = saved.read(root, "samples")
        except FmdiffError as error:
            one_sentence(error, shown)
        else:
            assert x.dtype == torch.uint8 and len(x) in (2, 3)
            assert x.shape[1:] in ((8, 8, 1), (8, 8, 3))
            if len(x) == 3:
                with Image.open(file) as image:
                    plain = image.mode in ("L", "RGB") and "transparency" not in image.info
                    mine = np.asarray(image.convert("RGB"))
                order = sorted(p.name for p in root.iterdir()).index(file.name)
                assert not plain or np.array_equal(x[order].expand(8, 8, 3), mine)
    assert read >= count // 20 and named >= count // 20


@pytest.mark.fault
@pytest.mark.parametrize("words", ["evaluate samples=mine against=digits", "train data=folder"])
def test_a_damaged_image_ends_a_command(command, capfd, tmp_path, monkeypatch, words):
    monkeypatch.setenv("FMDIFF_DATA", str(tmp_path / "cache"))
    (tmp_path / "mine").mkdir()
    for k in range(9):
        (tmp_path / "mine" / f"{k}.png").write_bytes(encoded(random.Random(k), "L", "PNG"))
    (tmp_path / "mine" / "bad one.png").write_bytes(png(50_000, 50_000))
    more = ("data.root=mine", "data.size=8", "model=unet") if "train" in words else ()
    code = command(*words.split(), *more, "out=run", "device=cpu")
    said = capfd.readouterr().err
    assert code == 2 and said.count("\n") == 1 and "bad one.png" in said, said
    assert not (tmp_path / "run").exists()


# Archives of arrays


def arrays(rng):
    """Arrays of a .npz, right or wrong."""
    good = {"arr_0": np.zeros((5, 2), np.float32), "mu": np.zeros(3), "sigma": np.eye(3)}
    found = dict(good)
    for name in list(found):
        found[name] = rng.choice(
            [
                *[good[name]] * 24,
                good[name].astype(rng.choice(["f2", "f4", "i4", "u1", "c8", "S3", "?", "M8[s]"])),
                good[name] * np.nan,
                good[name][None],
                good[name][:0],
                np.array("text"),
                np.array(3.5),
                np.zeros((2, 3, 4, 5), np.uint8),
                np.zeros((2, 4, 4, 3), np.uint8),
                np.array([{}, None], dtype=object),
                np.zeros(3, dtype=[("a", "f4"), ("b", "O")]),
                np.zeros(3, dtype=[("a", "f4")]),
            ]
        )
    if rng.random() < 0.3:
        found["labels"] = rng.choice(
            [np.arange(5), np.zeros(5), np.arange(4), np.array(["a"] * 5)]
        )
    if rng.random() < 0.3:
        found["count"] = rng.choice([np.array(5), np.array([5, 6]), np.array("x"), np.array({})])
    if rng.random() < 0.3:
        found["features"] = rng.choice([np.zeros((5, 3)), np.zeros(5), np.full((5, 3), np.inf)])
    for name in rng.sample(list(found), rng.randrange(2)):
        found[name + rng.choice(["x", ".npy", "/"])] = found.pop(name)
    return found


@sizes(200, 2000, "archives")
def test_archives_of_arrays(tmp_path, seed, count):
    """Damaged and wrong .npz files: named, or read as they are"""
    rng, path = random.Random(f"archives {seed}"), tmp_path / "file.npz"
    samples = statistics = 0
    for _ in range(count):
        file, found = io.BytesIO(), arrays(rng)
        rng.choice([np.savez, np.savez_compressed])(file, **found)
        whole = file.getvalue()
        broken = rng.random() < 0.5
        parts = [m.start() for m in re.finditer(rb"PK[\x01\x03\x05\x06\x07]|NUMPY", whole)]
        path.write_bytes(hurt(rng, whole, parts) if broken else whole)
        try:
            x, y = saved.read(path, "samples")
        except FmdiffError as error:
            one_sentence(error, path, "samples=")
        else:
            samples += 1
            assert x.dtype in (torch.uint8, torch.float32) and x.ndim in (2, 3, 4)
            assert np.array_equal(x.numpy(), found["arr_0"].astype(x.numpy().dtype), True)
            assert y is None or (y.dtype == torch.int64 and len(y) == len(x))
        try:
            got = reference.load(path, features=rng.random() < 0.3)
        except FmdiffError as error:
            one_sentence(error, path)
        else:
            statistics += 1
            assert np.array_equal(got.mean.numpy(), found["mu"].astype(float))
            assert np.array_equal(got.cov.numpy(), found["sigma"].astype(float))
            assert got.mean.isfinite().all() and got.cov.isfinite().all()
    assert samples > count // 50 and statistics > count // 50


@pytest.mark.fault
def test_an_archive_that_would_fill_the_memory(tmp_path, monkeypatch):
    path = tmp_path / "bomb.npz"
    zeros = np.zeros((3, 2000, 2000, 1), np.uint8)
    np.savez_compressed(path, arr_0=zeros, mu=np.zeros(10**6), sigma=np.eye(2))
    assert saved.read(path, "samples")[0].shape == zeros.shape
    monkeypatch.setattr(files, "LARGE", 10**6)
    for read in (lambda: saved.read(path, "samples"), lambda: reference.load(path)):
        with pytest.raises(FmdiffError, match="would unpack to"):
            read()
