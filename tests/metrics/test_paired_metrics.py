"""Metrics of pairs of a sample and a real image."""

import math

import numpy as np
import pytest
import torch

from fmdiff.build import named
from fmdiff.data import saved
from fmdiff.errors import FmdiffError
from fmdiff.metrics.images import real_images
from fmdiff.metrics.paired import PairedMetrics


@pytest.fixture(scope="module")
def extractor():
    return named("features", "mnist").for_shape((1, 8, 8))


def metrics(extractor, names, batches):
    """The metrics of batches of (pixels, real) or (pixels, real, known)."""
    pixels = torch.zeros(4, 8, 8, 1, dtype=torch.uint8)
    jury = PairedMetrics(names, extractor, real_images(extractor, pixels, "none", "all"))
    for x, *pair in batches:
        jury.add(x, None, *pair)
    return jury.results()


def noisy(n, sigma, seed=0):
    rng = np.random.default_rng(seed)
    real = rng.integers(60, 190, (n, 8, 8, 1))
    off = np.rint(rng.normal(size=real.shape) * sigma)
    return torch.from_numpy((real + off).astype(np.uint8)), torch.from_numpy(real.astype(np.uint8))


def test_the_ratio_is_that_of_the_largest_level_to_the_error(extractor):
    """Normal errors of standard deviation 8, rounded: MSE = 64 + 1/12, at n = 200."""
    x, real = noisy(200, 8)
    [(name, value)] = metrics(
        extractor, ["psnr"], [(x[:120], real[:120]), (x[120:], real[120:])]
    ).items()
    wanted = 10 * math.log10(255**2 / (64 + 1 / 12))
    assert name == "psnr" and value.n == 200
    # the relative error of a variance of N normal numbers is sqrt(2 / N)
    se = 10 / math.log(10) * math.sqrt(2 / (200 * 64))
    assert abs(value.value - wanted) < 4 * se
    assert value.se == pytest.approx(se, rel=0.25)


def test_the_known_pixels_alone_count_among_those_given(extractor):
    x, real = noisy(20, 8)
    known = torch.rand(20, 8, 8, 1, generator=torch.Generator().manual_seed(0)) < 0.5
    x = torch.where(known, real.int() + 2, x.int()).to(torch.uint8)
    value = metrics(extractor, ["psnr_known"], [(x, real, known)])["psnr_known"]
    assert value.value == pytest.approx(20 * math.log10(255 / 2))
    exact = metrics(extractor, ["psnr_known"], [(torch.where(known, real, x), real, known)])
    assert exact["psnr_known"].value == 100
    assert exact["psnr_known"].as_dict()["extra"] == {"exact": True}


def test_agreement_is_with_what_is_seen_in_the_real_image(extractor):
    """All agree with themselves; in reverse order, as often as two images of the set agree."""
    pixels, _ = named("data", "digits").test
    x = pixels.permute(0, 2, 3, 1)[:120]
    same = metrics(extractor, ["agreement"], [(x, x)])["agreement"]
    assert same.value == 1 and same.n == 120
    seen = extractor(x)[1].argmax(1)
    share = (seen == seen.flip(0)).double().mean().item()
    assert 0 < share < 0.5
    assert metrics(extractor, ["agreement"], [(x, x.flip(0))])["agreement"].value == share


def test_what_is_missing_is_said(extractor):
    x, real = noisy(4, 8)
    with pytest.raises(FmdiffError, match="need the real image of each sample"):
        metrics(extractor, ["psnr"], [(x,)])
    with pytest.raises(FmdiffError, match=r"metrics=\[psnr_known\] needs samples whose pixels"):
        metrics(extractor, ["psnr_known"], [(x, real)])
    with pytest.raises(FmdiffError, match=r"metrics=\[psmr\] is unknown"):
        metrics(extractor, ["psmr"], [(x, real)])


def test_files_hold_the_real_images(tmp_path):
    x, real = noisy(3, 8)
    known = np.where(
        np.arange(64).reshape(1, 8, 8) < 10, np.nan, np.zeros((3, 1, 8, 8), np.float32)
    )
    path = tmp_path / "samples.npz"
    np.savez(path, arr_0=x, real=real, cond_known=known)
    same, there = saved.partners(tmp_path, x, "samples")
    assert torch.equal(same, real) and there.shape == x.shape and there.sum() == 3 * 54
    np.savez(path, arr_0=x, real=real, cond_low=known)
    assert saved.partners(path, x, "samples")[1] is None
    np.savez(path, arr_0=x)
    assert saved.partners(path, x, "samples") is None
    np.savez(path, arr_0=x, real=real[:2])
    with pytest.raises(FmdiffError, match=r"holds real of uint8 \(2, 8, 8, 1\)"):
        saved.partners(path, x, "samples")
