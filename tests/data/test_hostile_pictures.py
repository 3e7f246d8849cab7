"""Pictures that ask for other programs, for memory or for time; and those of a few kinds."""

import os
import struct
import subprocess
import sys
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from test_folder import cache, noise, own, save  # noqa: F401

from fmdiff.data import decode, saved
from fmdiff.errors import FmdiffError
from fmdiff.report.page import Album

EPS = b"""%!PS-Adobe-3.0 EPSF-3.0
%%BoundingBox: 0 0 8 8
%%EndComments
(CANARY) (w) file closefile
showpage
%%EOF
"""


def png(width, height, kind, data, chunks=()):
    """A PNG of these chunks; kind: its colour type."""

    def chunk(name, content):
        code = zlib.crc32(name + content)
        return struct.pack(">I", len(content)) + name + content + struct.pack(">I", code)

    head = struct.pack(">IIBBBBB", width, height, 8, kind, 0, 0, 0)
    parts = [(b"IHDR", head), *chunks, (b"IDAT", data), (b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunk(*part) for part in parts)


def bomb(side=7900):
    """A small PNG with transparency of side x side pixels."""
    squeeze = zlib.compressobj(9)
    rows = bytes(1 + 4 * side)
    data = b"".join(squeeze.compress(rows) for _ in range(side)) + squeeze.flush()
    return png(side, side, 6, data)


@pytest.fixture
def programs(tmp_path, monkeypatch):
    """Each program that Pillow might call, as one that leaves a file behind."""
    (tmp_path / "bin").mkdir()
    for name in ("gs", "gswin64c", "fig2dev", "djpeg", "xv", "display"):
        program = tmp_path / "bin" / name
        program.write_text(f"#!/bin/sh\n: > {tmp_path}/ran\n")
        program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}:{os.environ['PATH']}")
    yield
    assert not (tmp_path / "ran").exists()


@pytest.mark.fault
@pytest.mark.parametrize("suffix", decode.SUFFIXES)
def test_postscript_reaches_no_other_program(tmp_path, programs, suffix):
    path = tmp_path / "mine" / f"a{suffix}"
    path.parent.mkdir()
    path.write_bytes(EPS.replace(b"CANARY", str(tmp_path / "ran").encode()))
    with pytest.raises(FmdiffError, match="cannot be read as an image"):
        saved.read(path.parent, "samples")
    with pytest.raises(FmdiffError, match="can be read"):
        own(path.parent).prepare()
    album = Album()
    assert album.still(path, "a") is None and album.film(path, "a") == ("frame", [])
    assert len(album.notes) == 2


@pytest.mark.fault
def test_a_picture_in_another_format_than_its_name_is_read_if_it_is_one_of_ours(tmp_path):
    save(tmp_path / "a.png", noise(8, 8), format="BMP")
    assert np.array_equal(decode.pixels_of(tmp_path / "a.png")[0], noise(8, 8))
    for form in ("ICO", "TGA", "PCX", "SGI", "ICNS", "JPEG2000", "PDF"):
        Image.fromarray(noise(16, 16, 3)).save(tmp_path / "b.png", format=form)
        with pytest.raises(OSError, match="cannot identify"):
            decode.pixels_of(tmp_path / "b.png")


PEAK = """
import resource, sys
from pathlib import Path
from fmdiff.data import decode
decode.pixels_of(Path("small.png"), 32, 3)
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
try:
    decode.pixels_of(Path(sys.argv[1]), 32, 3)
except ValueError as error:
    print(error)
print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) // 1024)
"""


@pytest.mark.fault
@pytest.mark.parametrize("kind", ["bomb", "text", "frames", "tile"])
def test_small_files_take_little_memory(tmp_path, monkeypatch, kind):
    monkeypatch.chdir(tmp_path)
    save(tmp_path / "small.png", noise(8, 8))
    path = tmp_path / "a.png"
    pixel = zlib.compress(bytes(5))
    if kind == "bomb":
        path.write_bytes(bomb())
        assert path.stat().st_size < 300_000
    elif kind == "text":
        words = zlib.compress(bytes(900_000_000 // 20))
        path.write_bytes(png(1, 1, 6, pixel, [(b"zTXt", b"a\0\0" + words)] * 20))
    elif kind == "frames":
        first = Image.new("P", (4000, 4000))
        first.save(path, "GIF", save_all=True, append_images=[first] * 20)
    else:
        head = struct.pack("<2sHIH", b"II", 42, 8, 9)
        tags = [(256, 16), (257, 16), (258, 8), (259, 1), (262, 1), (277, 1)]
        tags += [(322, 60_000), (323, 60_000), (324, 200)]
        entries = b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in tags)
        path.write_bytes(head + entries + bytes(400))
    run = subprocess.run(
        [sys.executable, "-c", PEAK, str(path)], capture_output=True, text=True, timeout=300
    )
    megabytes = int(run.stdout.splitlines()[-1])
    assert megabytes < 120, run.stdout


def test_a_large_photograph_is_read(tmp_path):
    """20 million pixels with transparency, at a size that cameras give."""
    pixels = np.repeat(noise(1000, 1250, 4), 4, 0).repeat(4, 1)
    save(tmp_path / "a.png", pixels, compress_level=1)
    assert decode.pixels_of(tmp_path / "a.png", 32, 3).shape == (3, 32, 32)


def test_strips_change_no_pixel(tmp_path, monkeypatch):
    pixels = noise(57, 61, 4)
    save(tmp_path / "a.png", pixels)
    whole = decode.pixels_of(tmp_path / "a.png")
    monkeypatch.setattr(decode, "AT_ONCE", 4 * 61 * 3)
    assert np.array_equal(decode.pixels_of(tmp_path / "a.png"), whole)
    white = Image.new("RGBA", (61, 57), "white")
    flat = Image.alpha_composite(white, Image.fromarray(pixels)).convert("RGB")
    assert np.array_equal(whole, np.asarray(flat).transpose(2, 0, 1))


def special(kind, path):
    if kind == "pipe":
        os.mkfifo(path)
    elif kind == "link to a pipe":
        os.mkfifo(path.with_name("pipe"))
        path.symlink_to("pipe")
    elif kind == "device":
        path.symlink_to("/dev/zero")
    else:
        path.symlink_to("/dev/tty")


@pytest.mark.fault
@pytest.mark.parametrize("kind", ["pipe", "link to a pipe", "device", "terminal"])
def test_what_is_no_regular_file_is_not_waited_for(tmp_path, kind):
    """In a fresh process: reading a folder with a pipe or a device named .png"""
    for i in range(20):
        save(tmp_path / "mine" / f"{i}.png", noise(8, 8))
    special(kind, tmp_path / "mine" / "x.png")
    code = (
        "from pathlib import Path\n"
        "from fmdiff.data import saved\n"
        "try:\n    saved.read(Path('mine'), 'samples')\n"
        "except Exception as error:\n    print(error)\n"
    )
    run = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, timeout=200
    )
    assert "x.png cannot be read as an image" in run.stdout, run.stderr
    with pytest.raises(FmdiffError, match=r"1 of its 21 images cannot be read: x\.png"):
        own(tmp_path / "mine").prepare()
    album = Album()
    assert album.still(tmp_path / "mine" / "x.png", "x") is None and len(album.notes) == 1


def test_links_of_a_folder_lead_to_pictures_but_not_around_it(tmp_path):
    save(tmp_path / "store" / "cats" / "a.png", noise(8, 8))
    save(tmp_path / "store" / "b.png", noise(8, 8))
    mine = tmp_path / "mine"
    mine.mkdir()
    (mine / "cats").symlink_to(tmp_path / "store" / "cats")
    (mine / "b.png").symlink_to(tmp_path / "store" / "b.png")
    (mine / "root").symlink_to("/")
    (mine / "up").symlink_to(tmp_path)
    (mine / "loop").symlink_to(mine)
    assert [file.name for file in decode.walk(mine)] == ["b.png", "cats/a.png"]


# Kinds of grey


def blobs(n):
    y, x = np.mgrid[:28, :28]
    return [np.uint8(255 * np.exp(-((x - 9 - i) ** 2 + (y - 14) ** 2) / 30)) for i in range(n)]


def test_grey_with_alpha_or_a_palette_has_one_channel(tmp_path):
    for i, grey in enumerate(blobs(12)):
        plain = Image.fromarray(grey)
        alpha = Image.merge("LA", (plain, Image.new("L", plain.size, 255)))
        save(tmp_path / "la" / f"{i:02}.png", alpha)
        save(tmp_path / "palette" / f"{i:02}.png", plain.convert("P"))
        palette = plain.quantize(16)
        save(tmp_path / "few" / f"{i:02}.png", palette)
        palette.info["transparency"] = 3
        save(tmp_path / "clear" / f"{i:02}.gif", palette)
    for name in ("la", "palette", "few", "clear"):
        x, y = saved.read(tmp_path / name, "samples")
        assert x.shape == (12, 28, 28, 1) and y is None
        data = own(tmp_path / name, size=28)
        both = sorted(i.tobytes() for part in (data.train, data.test) for i in part[0].numpy())
        assert both == sorted(i.tobytes() for i in x[..., 0].numpy())
    x, _ = saved.read(tmp_path / "la", "samples")
    assert np.array_equal(x[..., 0].numpy(), np.stack(blobs(12)))
    colours = Image.fromarray(noise(28, 28, 3)).quantize(16)
    save(tmp_path / "colour" / "a.png", colours)
    assert saved.read(tmp_path / "colour", "samples")[0].shape == (1, 28, 28, 3)


def test_pictures_of_several_suffixes_and_folders_are_all_samples(tmp_path):
    for i, grey in enumerate(blobs(24)):
        suffix = ("png", "tif", "ppm", "png")[i // 6]
        place = tmp_path / "mine" / ("sub" if i >= 18 else "")
        save(place / f"{i}.{suffix}", grey)
    assert len(saved.read(tmp_path / "mine", "samples")[0]) == 24
    data = own(tmp_path / "mine", size=28)
    assert len(data.train[1]) + len(data.test[1]) == 24 and not data.classes


def test_only_paths_are_read(tmp_path):
    save(tmp_path / "a.png", noise(8, 8))
    with decode.open_picture(Path(tmp_path / "a.png")) as image:
        assert image.size == (8, 8)
