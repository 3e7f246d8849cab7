"""Pictures of two folders, matched by name."""

import numpy as np
import pytest
import torch
from PIL import Image

from fmdiff.build import named
from fmdiff.condition import label
from fmdiff.errors import FmdiffError


@pytest.fixture
def folders(tmp_path, monkeypatch):
    """40 random pictures of 8 x 8 in a and b, those in b negatives, with other suffixes."""
    monkeypatch.setenv("FMDIFF_DATA", str(tmp_path / "cache"))
    rng = np.random.default_rng(0)
    for i in range(40):
        pixels = rng.integers(0, 256, (8, 8), np.uint8)
        name = f"{'cd'[i % 2]}/{i}"
        for root, suffix, content in (("a", "png", pixels), ("b", "bmp", 255 - pixels)):
            path = tmp_path / root / f"{name}.{suffix}"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(content).save(path)
    return tmp_path


def pairs(folder, **changes):
    keys = {"size": 8, "channels": 1, "batch_size": 12} | changes
    roots = {"root": str(folder / "a"), "given_root": str(folder / "b")}
    return named("data", "paired_folders", **roots | keys)


def ways(data):
    yield data.batch(0, 0)
    yield data.batch(0, 4, slice(3, 9))
    yield data.held_out(3)
    yield data.sample(0, 2, 1)
    yield data.examples(9)


@pytest.mark.parametrize("flip", [False, True])
def test_each_picture_comes_with_its_partner(folders, flip):
    for x, y in ways(pairs(folders, flip=flip)):
        torch.testing.assert_close(y.parts["given"], -x, atol=1e-6, rtol=0)
        assert label(y) is None


def test_given_pictures_may_have_another_size_and_the_labels_are_the_folders(folders):
    data = pairs(folders, given_size=4, given_channels=3, conditional=True)
    x, y = data.batch(0, 0)
    given = y.parts["given"]
    assert given.shape == (12, 3, 4, 4) and set(label(y).tolist()) == {0, 1}
    assert data.conditions["given"].shape == (3, 4, 4) and data.names == ["c", "d"]
    mean = given.mean((2, 3))
    assert (mean[:, 0] + x.mean((1, 2, 3))).abs().max() < 0.05  # smaller, and still the negative


def test_every_pair_is_seen_once_an_epoch_and_none_is_held_out_too(folders):
    data = pairs(folders, batch_size=4)
    train, held = data.training_size, data.references
    assert train + held == 40 and held >= 2
    seen = torch.cat([data.batch(0, k)[0] for k in range(train // 4)])
    whole = torch.cat([seen, data.sample(0, held, 0)[0]]).flatten(1)
    assert len(torch.unique(whole, dim=0)) == train // 4 * 4 + held


def test_the_moments_are_those_of_the_given_pictures(folders):
    data = pairs(folders)
    [(name, form)] = data.conditions.items()
    given = data.examples(100)[1].parts["given"].double()
    assert name == "given" and form.mean == pytest.approx([given.mean().item()], abs=1e-6)
    assert form.std == pytest.approx([given.std(correction=0).item()], rel=1e-6)


def test_pairs_with_a_broken_picture_are_left_out_together(folders):
    for name in ("a/c/0.png", "b/d/7.bmp"):
        (folders / name).write_bytes(b"no picture")
    with pytest.raises(FmdiffError, match=r"1 of its 40 images cannot be read"):
        pairs(folders).prepare()
    data = pairs(folders, skip_broken=True)
    assert data.training_size + data.references == 38
    for x, y in ways(data):
        torch.testing.assert_close(y.parts["given"], -x, atol=1e-6, rtol=0)


def test_the_fingerprint_is_of_both_folders(folders):
    before = pairs(folders).fingerprint()
    assert before["count"] == 40 and before == pairs(folders).fingerprint()
    Image.new("L", (99, 99)).save(folders / "b/c/0.bmp")
    assert pairs(folders).fingerprint() != before


def test_each_missing_partner_is_named(folders):
    for name in ("a/c/0.png", "b/d/7.bmp"):
        (folders / name).unlink()
    with pytest.raises(FmdiffError, match=r"2 have no partner: .*/a/d/7.png, .*/b/c/0.bmp$"):
        pairs(folders).prepare()
    for i in range(8, 40):
        (folders / f"b/{'cd'[i % 2]}/{i}.bmp").unlink()
    with pytest.raises(FmdiffError, match=r"34 have no partner: .* and 24 more$"):
        pairs(folders).prepare()


def test_two_pictures_of_one_name_are_refused(folders):
    Image.new("L", (8, 8)).save(folders / "b/c/0.png")
    says = r"data.given_root=.*/b holds c/0.bmp and c/0.png, and a pair has one"
    with pytest.raises(FmdiffError, match=says):
        pairs(folders).prepare()


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"given_root": None}, "needs data.root=PATH, a folder of images to make, and data.given"),
        ({"given_root": "nowhere"}, "data.given_root=.*/nowhere does not exist"),
        ({"given_size": 0}, "data.given_size=0 must be an integer >= 1, or null"),
        ({"given_channels": 2}, "data.given_channels=2 must be 1, 3 or null"),
        ({"augment": 0.1}, "set data.augment=0"),
    ],
)
def test_slips_of_keys(folders, changes, says):
    with pytest.raises(FmdiffError, match=says):
        pairs(folders, **changes).prepare()
