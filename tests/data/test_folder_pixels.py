"""One image file of data=folder: what becomes of its pixels."""

import numpy as np
from PIL import Image
from test_folder import noise, save

from fmdiff.data import decode


def test_every_kind_of_file_becomes_plain_pixels(tmp_path):
    rgb, grey = noise(8, 8, 3), noise(8, 8)
    alpha = np.where(np.arange(64).reshape(8, 8) % 2, 255, 0).astype(np.uint8)
    deep = (noise(8, 8).astype(np.uint16) << 8) + 77
    palette = Image.fromarray(rgb).quantize(16)
    clear = palette.copy()
    clear.info["transparency"] = 3
    white = np.where(np.asarray(clear)[..., None] == 3, 255, palette.convert("RGB"))
    cases = {
        "a.png": (rgb, {}, rgb),
        "b.png": (grey, {}, np.stack([grey] * 3, 2)),
        "c.png": (np.dstack([rgb, alpha]), {}, np.where(alpha[..., None], rgb, 255)),
        "d.png": (np.dstack([grey, alpha]), {}, np.where(alpha, grey, 255)[..., None]),
        "e.png": (deep, {}, np.round(deep / 257)[..., None]),
        "f.png": (palette, {}, palette.convert("RGB")),
        "g.png": (clear, {"transparency": 3}, white),
        "h.PNG": (Image.fromarray(grey > 127), {}, np.where(grey > 127, 255, 0)[..., None]),
        "i.gif": (palette, {"save_all": True, "append_images": [clear]}, palette.convert("RGB")),
        "j.tif": (Image.fromarray(rgb).convert("CMYK"), {}, rgb),
        "k.ppm": (rgb, {}, rgb),
    }
    for name, (pixels, keys, expected) in cases.items():
        path = save(tmp_path / "mine" / name, pixels, **keys)
        found = decode.pixels_of(path, 8, 3).transpose(1, 2, 0)
        assert found.dtype == np.uint8 and found.shape == (8, 8, 3)
        assert np.array_equal(found, np.broadcast_to(expected, (8, 8, 3))), name
    luma = decode.pixels_of(tmp_path / "mine" / "a.png", None, 1)[0]
    assert np.abs(luma - rgb @ [0.299, 0.587, 0.114]).max() < 1


def test_the_camera_says_how_it_was_held(tmp_path):
    pixels = noise(8, 12)
    exif = Image.Exif()
    exif[0x0112] = 6  # the first row is the right-hand side
    path = save(tmp_path / "a.png", pixels, exif=exif)
    assert np.array_equal(decode.pixels_of(path, None, 1)[0], np.rot90(pixels, -1))


def test_the_middle_is_cut_out_and_scaled_without_aliasing(tmp_path):
    pixels = noise(8, 13, 3)
    found = decode.pixels_of(save(tmp_path / "wide.png", pixels), 8, 3)
    assert np.array_equal(found.transpose(1, 2, 0), pixels[:, 2:10])
    found = decode.pixels_of(save(tmp_path / "high.png", pixels.swapaxes(0, 1)), 8, 3)
    assert np.array_equal(found.transpose(1, 2, 0), pixels.swapaxes(0, 1)[2:10])
    # a chessboard of single pixels is grey from afar, and of the dark stripes nothing is left
    board = np.indices((64, 80)).sum(0) % 2 * 255
    board[:, :6], board[:, -6:] = 0, 0
    found = decode.pixels_of(save(tmp_path / "board.png", board.astype(np.uint8)), 8, 1)
    assert found.shape == (1, 8, 8) and np.abs(found - 127.5).max() < 8
    # a slope stays one: the mean over the square that becomes a pixel
    slope = np.tile(np.arange(64, dtype=np.uint8) * 4, (64, 1))
    found = decode.pixels_of(save(tmp_path / "slope.png", slope), 8, 1)[0, 0]
    assert np.abs(found[1:-1] - slope[0].reshape(8, 8).mean(1)[1:-1]).max() <= 1
    large = decode.pixels_of(save(tmp_path / "small.png", noise(3, 4)), 8, 1)
    assert large.shape == (1, 8, 8)
