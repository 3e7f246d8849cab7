"""From an autoencoder to a model of its latents, as the commands do it."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import PLAIN, _trained, metrics, vector
from PIL import Image

import fmdiff
from fmdiff.build import named
from fmdiff.data.latent import Latents
from fmdiff.loading import load_codec
from fmdiff.runs import checkpoint
from fmdiff.runs.find import find

AUTOENCODER = (
    "data=digits",
    "model=autoencoder",
    "objective=autoencoder",
    "data.batch_size=16",
    "model.channels=8",
    "trainer.warmup=0",
    "trainer.ema=[0.5]",
)
BRIEF = ("trainer.max_steps=4", "trainer.log_every=2", "trainer.validate_every=4")
SMALL = ("model=unet", "model.channels=16", "data.batch_size=16", *BRIEF)


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("FMDIFF_DATA", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(scope="module")
def autoencoder(tmp_path_factory, cache):
    folder = tmp_path_factory.mktemp("autoencoder") / "run"
    metric = ("trainer.metrics=[psnr,fid]", "trainer.metrics_n=100", "trainer.metrics_every=40")
    return _trained(
        folder,
        *AUTOENCODER,
        *metric,
        "trainer.max_steps=40",
        "trainer.picture_every=40",
        "trainer.validate_every=20",
        "trainer.checkpoint_every=20",
        "trainer.log_every=20",
    )


@pytest.fixture(scope="module")
def latents(tmp_path_factory, autoencoder):
    """A run that learns latents, whose autoencoder is gone."""
    folder = tmp_path_factory.mktemp("latents")
    copy = shutil.copytree(autoencoder, folder / "autoencoder")
    run = _trained(
        folder / "run", "data=latent", "data.of=digits", f"data.autoencoder={copy}", *SMALL
    )
    codec = load_codec(copy)
    shutil.rmtree(copy)
    return run, codec


def test_an_autoencoder_learns_to_reconstruct(autoencoder):
    rows = [row for row in metrics(autoencoder) if row["loss"]]
    assert float(rows[-1]["loss"]) < 0.8 * float(rows[0]["loss"])
    last = metrics(autoencoder)[-1]
    x = named("data", "digits").sample(0, 100, 0)[0]
    with torch.no_grad():
        x_hat = load_codec(autoencoder)(x).clamp(-1, 1)
    mse = ((x_hat - x).double().numpy() ** 2).mean((1, 2, 3))
    assert float(last["psnr"]) == pytest.approx((10 * np.log10(4 / mse)).mean(), rel=1e-4)
    assert float(last["fd_mnist@8x8"]) > 0
    picture = Image.open(autoencoder / "samples" / "step_0000040.png")
    assert picture.width > picture.height  # rows of 16


def test_training_goes_on_bit_for_bit(train, autoencoder):
    words = ("trainer.max_steps=20", "trainer.decay=constant", "trainer.checkpoint_every=7")
    whole = train("whole", *AUTOENCODER, *words)
    train("halves", *AUTOENCODER, *words[1:], "trainer.max_steps=7")
    halves = train("halves", *AUTOENCODER, *words, "resume=true")
    for name, weights in whole["weights"].items():
        assert torch.equal(vector(weights), vector(halves["weights"][name])), name


def test_an_autoencoder_gives_no_samples(command, autoencoder, capfd):
    for words in (
        ("sample", f"ckpt={autoencoder}", "out=a"),
        ("likelihood", f"ckpt={autoencoder}", "out=b"),
        ("invert", f"ckpt={autoencoder}", "out=c"),
    ):
        assert command(*words) == 2
        assert "holds an autoencoder, which cannot be sampled" in capfd.readouterr().err
    assert command("sample", "model=exact", "data=gmm4", f"guidance.ckpt={autoencoder}",
                   "guidance=classifier", "out=d") == 2  # fmt: skip
    assert "holds no classifier" in capfd.readouterr().err
    with pytest.raises(fmdiff.FmdiffError, match="holds an autoencoder"):
        fmdiff.load(autoencoder)


def test_info_says_how_to_go_on(command, autoencoder, capfd):
    assert command("info", f"ckpt={autoencoder}") == 0
    said = capfd.readouterr().out
    assert "shape (4, 2, 2)" in said
    assert f"fmdiff train data=latent data.of=digits data.autoencoder={autoencoder}" in said


def test_evaluate_judges_reconstructions(command, autoencoder, capfd):
    assert command("evaluate", f"ckpt={autoencoder}", "n=100", "out=judged", "device=cpu") == 0
    report = json.loads(Path("judged/results.json").read_text())
    assert report["metrics"]["psnr"]["value"] == pytest.approx(
        float(metrics(autoencoder)[-1]["psnr"]), rel=1e-6
    )
    assert report["metrics"]["fd_mnist@8x8"]["n"] == 100
    assert Path("judged/reconstructions.png").stat().st_size > 0
    assert command("evaluate", f"ckpt={autoencoder}", "classes=1", "out=other") == 2
    assert command("evaluate", f"ckpt={autoencoder}", "metrics=[mse]", "out=other") == 2
    assert "metrics=[mse] is of points; choose psnr" in capfd.readouterr().err


def test_a_checkpoint_carries_the_whole_codec(latents):
    run, codec = latents
    content = checkpoint.read(find(run))
    field = fmdiff.load(run)
    assert content["spec"]["data"]["shape"] == [4, 2, 2] and field.outer == (1, 8, 8)
    x = named("data", "digits").train[0][:300].float() / 127.5 - 1
    with torch.no_grad():
        z = codec.posterior(x)[0]
        learned = field.codec.encode(x)
        torch.testing.assert_close(field.codec.decode(learned), codec.reconstruct(z))
    slopes = learned.std((0, 2, 3)) / z.std((0, 2, 3))
    scale = 1 / field.codec.standard.scale
    torch.testing.assert_close(slopes.double(), scale, rtol=1e-3, atol=0)


def test_samples_are_decoded(command, latents):
    run, codec = latents
    samples = fmdiff.generate(fmdiff.load(run), n=5, steps=2, seed=3)
    assert samples.x.shape == (5, 1, 8, 8)
    field = fmdiff.load(run)
    field.codec = None
    z = fmdiff.generate(field, n=5, steps=2, seed=3).x
    codec.standardise(*(v for v in vars(fmdiff.load(run).codec.standard)["_buffers"].values()))
    with torch.no_grad():
        torch.testing.assert_close(samples.x, codec.decode(z), rtol=1e-4, atol=1e-5)
    assert command("sample", f"ckpt={run}", "n=4", "steps=2", "out=drawn", "dtype=float64") == 0
    assert np.load("drawn/samples.npz")["arr_0"].shape == (4, 8, 8, 1)


def test_evaluate_names_the_bound(command, latents, capfd):
    run, _ = latents
    words = ("n=100", "steps=2", "metrics=[fid]", "device=cpu")
    assert command("evaluate", f"ckpt={run}", *words, "out=judged") == 0
    report = json.loads(Path("judged/results.json").read_text())
    bound = report["reconstruction"]
    assert report["metrics"]["fd_mnist@8x8"]["n"] == 100 == bound["psnr"]["n"]
    said = capfd.readouterr().out
    assert f"psnr {bound['psnr']['value']:.4g}, fd_mnist@8x8" in said
    assert "samples of this latent space can hardly be better" in said


def test_likelihood_of_latents_is_refused(command, latents, capfd):
    assert command("likelihood", f"ckpt={latents[0]}", "n=2", "out=judged") == 2
    assert "nats or bits of latents are not of samples" in capfd.readouterr().err


def test_invert_decodes(command, latents):
    words = ("n=3", "solvers=[rk4]", "steps=[40]", "interpolate=3", "device=cpu")
    assert command("invert", f"ckpt={latents[0]}", *words, "out=back") == 0
    arrays, field = np.load("back/invert.npz"), fmdiff.load(latents[0])
    assert arrays["noise"].shape == (3, 4, 2, 2) and arrays["interpolated"].shape[2:] == (1, 8, 8)
    x = named("data", "digits").sample(0, 3, 0)[0]
    np.testing.assert_array_equal(arrays["x"], x)
    with torch.no_grad():
        best = field.codec.decode(field.codec.encode(x))
    np.testing.assert_allclose(arrays["reconstruction"], best, atol=2e-2)
    assert command("invert", f"ckpt={latents[0]}", "inpaint=[0,0,2,2]", "out=other") == 2


def test_a_run_of_latents_goes_on_only_in_its_space(train, autoencoder, command, capfd):
    """Another autoencoder, or the same one trained on, is another space."""
    copy = Path(shutil.copytree(autoencoder, "copy"))
    words = ("data=latent", "data.of=digits", f"data.autoencoder={copy}", *SMALL)
    first = train("run", *words)
    more = [*PLAIN, "trainer.max_steps=6", "resume=true", "out=run"]
    assert command("train", *words, *more) == 0
    then = checkpoint.read(find("run"))
    assert torch.equal(vector(first["codec"]).double(), vector(then["codec"]).double())
    for file in copy.glob("*.ckpt"):
        if file.name != "0000020.ckpt":
            file.unlink()
    assert command("train", *words, *more, "trainer.max_steps=8") == 2
    assert "the autoencoder is another than when this run began" in capfd.readouterr().err


def test_a_perceptual_loss_trains(train, capfd, command):
    words = ("objective.perceptual_weight=0.1", "trainer.max_steps=2")
    assert train("run", *AUTOENCODER, *words)["step"] == 2
    assert load_codec("run").latent == (4, 2, 2)
    points = ("data=moons", "model=linear_autoencoder", "objective=autoencoder")
    assert command("train", *PLAIN, *points, *words, "model.latent=1", "out=other") == 2
    assert "perceptual_weight needs images of 1 or 3 channels" in capfd.readouterr().err


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("model=unet",), "objective=autoencoder takes model=autoencoder"),
        (("source=data", "source.data=8gaussians"), "takes its noise from source=normal"),
        (("coupling=ot",), "takes its noise from source=normal and coupling=independent"),
    ],
)
def test_what_does_not_go_together_is_a_sentence(command, capfd, words, said):
    assert command("train", *PLAIN, *AUTOENCODER, *words, "out=run") == 2
    assert said in capfd.readouterr().err
    assert command("train", "data=digits", "model=autoencoder", "out=run") == 2
    assert "takes model=autoencoder (images) or linear_autoencoder" in capfd.readouterr().err


def test_an_autoencoder_must_be_named(command, capfd, moons_run):
    assert command("train", "data=latent", "model=unet", "out=run") == 2
    assert "data.autoencoder= is needed" in capfd.readouterr().err
    words = ("data=latent", "data.of=digits", f"data.autoencoder={moons_run}", "model=unet")
    assert command("train", *words, "out=run") == 2
    assert "holds no autoencoder" in capfd.readouterr().err


def test_the_axes_of_latents_are_those_of_their_autoencoder(autoencoder, tmp_path):
    assert Latents.axes_of({"autoencoder": str(autoencoder)}) == 3
    assert Latents.axes_of({"autoencoder": "diffusers:anything"}) == 3
    assert Latents.axes_of({"autoencoder": str(tmp_path / "absent")}) is None
