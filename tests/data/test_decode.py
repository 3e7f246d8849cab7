"""Pictures have the same pixels whichever way they come: data=folder, samples=, against=."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from test_folder import noise, own, save

from fmdiff.data import saved

SIDE = 8


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("FMDIFF_DATA", str(tmp_path / "cache"))


def camera():
    exif = Image.Exif()
    exif[0x0112] = 6  # the first row is the right-hand side
    return exif


def kinds(side=SIDE):
    rgb, grey = noise(side, side, 3), noise(side, side)
    clear = Image.fromarray(rgb).quantize(16)
    clear.info["transparency"] = 3
    return {
        "rgb.png": (rgb, {}),
        "grey.png": (grey, {}),
        "lossy.jpg": (rgb, {"quality": 80}),
        "alpha.png": (np.dstack([rgb, grey]), {}),
        "grey_alpha.png": (np.dstack([grey, rgb[..., 0]]), {}),
        "palette.png": (Image.fromarray(rgb).quantize(16), {}),
        "palette_alpha.png": (clear, {"transparency": 3}),
        "deep.png": ((grey.astype(np.uint16) << 8) + 77, {}),
        "deep.tif": ((grey.astype(np.uint16) << 8) + 77, {}),
        "held.jpg": (rgb, {"exif": camera()}),
        "held.png": (grey, {"exif": camera()}),
        "bits.png": (Image.fromarray(grey > 127), {}),
        "film.gif": (Image.fromarray(rgb), {"save_all": True, "append_images": [clear]}),
        "print.tif": (Image.fromarray(rgb).convert("CMYK"), {}),
    }


def pictures(folder, names=None, side=SIDE):
    for name, (pixels, keys) in kinds(side).items():
        if names is None or name in names:
            save(folder / name, pixels, **keys)
    return folder


def as_set(images):
    return sorted(np.ascontiguousarray(image).tobytes() for image in np.asarray(images))


def folder_pixels(root, **keys):
    data = own(root, **({"size": None, "channels": 3, "batch_size": 1} | keys))
    return torch.cat([data.train[0], data.test[0]]).permute(0, 2, 3, 1)


def test_pixels_of_every_kind_of_file_are_those_of_data_folder(tmp_path):
    root = pictures(tmp_path / "mine")
    x, labels = saved.read(root, "samples")
    assert x.shape == (len(kinds()), SIDE, SIDE, 3) and x.dtype == torch.uint8 and labels is None
    assert as_set(x) == as_set(folder_pixels(root))
    for i, name in enumerate(sorted(kinds())):  # in the order of their names
        plain = kinds()[name][0]
        if name in ("rgb.png", "grey.png"):
            expected = np.broadcast_to(plain.reshape(SIDE, SIDE, -1), (SIDE, SIDE, 3))
            assert np.array_equal(x[i], expected)


def test_grey_files_alone_are_one_channel_unless_three_are_asked_for(tmp_path):
    names = ("grey.png", "deep.png", "deep.tif", "grey_alpha.png", "held.png", "bits.png")
    root = pictures(tmp_path / "mine", names)
    x, _ = saved.read(root, "against")
    assert x.shape[-1] == 1 and as_set(x) == as_set(folder_pixels(root, channels=1))
    x, _ = saved.read(root, "against", channels=3)
    assert x.shape[-1] == 3 and as_set(x) == as_set(folder_pixels(root, channels=3))


def test_pictures_in_a_folder_and_in_its_folders_are_read_together(tmp_path):
    for k in range(3):
        pictures(tmp_path / "mine" / f"class {k}", ("rgb.png", "lossy.jpg", "held.jpg"))
    assert as_set(saved.read(tmp_path / "mine", "against")[0]) == as_set(
        folder_pixels(tmp_path / "mine")
    )
    save(tmp_path / "mine" / "a.png", noise(8, 8, 3))
    assert saved.read(tmp_path / "mine", "against")[0].shape == (10, 8, 8, 3)


def test_pictures_of_several_sizes_are_refused_by_name(tmp_path):
    root = pictures(tmp_path / "mine", ("grey.png",))
    save(root / "large.png", noise(9, 11))
    with pytest.raises(Exception, match=r"large\.png has 11x9 pixels, and grey\.png 8x8"):
        saved.read(root, "samples")


def test_the_distance_between_the_same_pictures_is_0(command):
    """As PNG and TIFF, deep and turned in one folder, plain in the other."""
    random = np.random.default_rng(1)
    for i in range(40):
        plain = random.integers(0, 256, (28, 28), dtype=np.uint8)
        save(Path("a") / f"{i:02d}.png", plain)
        if i % 3 == 0:
            save(Path("b") / f"{i:02d}.png", plain.astype(np.uint16) * 257)
        elif i % 3 == 1:
            save(Path("b") / f"{i:02d}.tif", plain)
        else:  # the camera was turned, and says so
            save(Path("b") / f"{i:02d}.png", np.rot90(plain), exif=camera())
    words = ("features=mnist", "metrics=[fid,kid]", "device=cpu", "threads=1")
    values = []
    for other in ("a", "b"):
        assert command("evaluate", "samples=a", f"against={other}", *words, f"out={other}2") == 0
        metrics = json.loads(Path(f"{other}2/results.json").read_text())["metrics"]
        values.append({name: metric["value"] for name, metric in metrics.items()})
    assert values[0] == values[1] and abs(values[1]["fd_mnist"]) < 1e-6
    assert values[1]["kid"] <= 0  # which is unbiased, and so below 0 for one and the same set
