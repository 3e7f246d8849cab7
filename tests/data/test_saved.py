"""Samples read from files: what fmdiff and others wrote, and what is refused."""

import numpy as np
import pytest
import torch
from PIL import Image

from fmdiff.data import decode, saved
from fmdiff.errors import FmdiffError


def images(n=5, channels=3, size=8):
    random = np.random.default_rng(0)
    return random.integers(0, 256, (n, size, size, channels), dtype=np.uint8)


@pytest.mark.parametrize("channels", [1, 3])
def test_images_of_an_npz_and_of_a_folder_are_the_same(tmp_path, channels):
    pixels, labels = images(12, channels), np.arange(12)
    np.savez(tmp_path / "s.npz", arr_0=pixels, labels=labels)
    x, y = saved.read(tmp_path / "s.npz", "samples")
    assert torch.equal(x, torch.from_numpy(pixels)) and y.tolist() == labels.tolist()
    folder = tmp_path / "pngs"
    folder.mkdir()
    for i, image in enumerate(pixels):
        Image.fromarray(image[..., 0] if channels == 1 else image).save(folder / f"{i:06d}.png")
    (folder / "notes.txt").write_text("no image")
    x, y = saved.read(folder, "samples")
    assert torch.equal(x, torch.from_numpy(pixels)) and y is None


def test_points_of_an_npz(tmp_path):
    np.savez(tmp_path / "p.npz", arr_0=np.ones((3, 2)))
    x, y = saved.read(tmp_path / "p.npz", "samples")
    assert x.dtype == torch.float64 and x.shape == (3, 2) and y is None


class Trap:
    def __reduce__(self):
        return (open, ("trapped", "w"))


def test_what_holds_no_samples_is_refused(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    np.savez("empty.npz", other=np.ones(3))
    np.savez("five_axes.npz", arr_0=np.ones((2, 4, 4, 3, 1)))
    np.savez("bytes.npz", arr_0=np.ones((2, 4, 4, 2), np.uint8))
    np.savez("labels.npz", arr_0=images(), labels=np.arange(4))
    np.savez("pickled.npz", arr_0=np.array([Trap()], dtype=object))
    (tmp_path / "text.npz").write_text("no archive")
    whole = (tmp_path / "labels.npz").read_bytes()
    (tmp_path / "cut.npz").write_bytes(whole[: len(whole) // 2])
    for name, says in (
        ("empty.npz", "holds other, and samples are arr_0"),
        ("five_axes.npz", "other arrays float \\(N, C, H, W\\)"),
        ("bytes.npz", "images are uint8"),
        ("labels.npz", "not \\(5,\\)"),
        ("pickled.npz", "no .npz of plain arrays"),
        ("text.npz", "damaged or no .npz file"),
        ("cut.npz", "damaged or no .npz file"),
        ("none.npz", "cannot be read"),
    ):
        with pytest.raises(FmdiffError, match=f"samples={name}.*{says}"):
            saved.read(tmp_path.relative_to(tmp_path) / name, "samples")
    assert not (tmp_path / "trapped").exists()


def test_folders_that_hold_no_set_of_images_are_refused(tmp_path, monkeypatch):
    with pytest.raises(FmdiffError, match="holds no images"):
        saved.read(tmp_path, "against")
    Image.fromarray(images()[0]).save(tmp_path / "0.png")
    Image.fromarray(images(size=9)[0]).save(tmp_path / "1.png")
    with pytest.raises(FmdiffError, match=r"1\.png has 9x9 pixels, and 0\.png 8x8"):
        saved.read(tmp_path, "against")
    (tmp_path / "1.png").write_bytes((tmp_path / "0.png").read_bytes()[:60])
    with pytest.raises(FmdiffError, match=r"1\.png cannot be read as an image"):
        saved.read(tmp_path, "against")
    monkeypatch.setattr(decode, "LARGEST", 63)
    with pytest.raises(FmdiffError, match=r"0\.png cannot .* 8x8 pixels are more than"):
        saved.read(tmp_path, "against")
