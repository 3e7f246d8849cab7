import json
import os
import re
import shutil
import subprocess
import sys
from itertools import cycle
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import IMAGES, PLAIN, POINTS
from omegaconf import OmegaConf
from PIL import Image

import fmdiff
from fmdiff import sampling
from fmdiff.build import build, config_folder
from fmdiff.errors import FmdiffError
from fmdiff.runs import checkpoint
from fmdiff.runs.find import find
from fmdiff.training import pictures

BRIEF = ("trainer.max_steps=2", "trainer.warmup=0")
TRANSFORMER = ("model.width=32", "model.depth=2", "model.heads=2", "model.patch=4")
LABELLED = ("model.label_tokens=2", "model.start=1", "model.bottleneck=8")
LARGE = [path.stem for path in (config_folder() / "experiment").glob("cifar10_*.yaml")]
LARGE += ["mnist_unet", "mnist_cond", "mnist_dit", "mnist_jit", "mnist_latent", "mnist_speedrun"]
SMALL = {
    "mlp": ("model.hidden=16",),
    "mlp_classifier": ("model.hidden=16",),
    "residual_mlp": ("model.width=16",),
    "unet_1d": ("model.channels=8", "model.multipliers=[1,2]"),
    "dit_1d": ("model.width=32", "model.depth=2"),
    "unet": IMAGES[3:],
    "unet_cifar": ("model.channels=32",),
    "unet_flow_matching": ("model.channels=32", "model.blocks=1"),
    "ddpmpp": ("model.channels=16", "model.blocks=1"),
    "classifier": ("model.channels=8",),
    "autoencoder": ("model.channels=8",),
    "linear_autoencoder": (),
    **dict.fromkeys(("dit_s", "dit_b", "dit_l", "dit_cifar10"), TRANSFORMER),
    **dict.fromkeys(("jit_mnist", "jit_cifar10", "jit_b"), (*TRANSFORMER, *LABELLED)),
}
OWN = "own_images"  # a folder
OF_POINTS = ("mlp", "mlp_classifier", "residual_mlp", "linear_autoencoder")
OF_SERIES = ("unet_1d", "dit_1d")
AUTOENCODE = {"objective": "autoencoder"}
CLASSIFY = {"objective": "classification", "data.conditional": "true"}


def choices(*groups):
    return [
        pytest.param(group, path.stem, id=f"{group}={path.stem}")
        for group in groups
        for path in sorted((config_folder() / group).glob("*.yaml"))
    ]


def spec(group, choice):
    return OmegaConf.to_container(OmegaConf.load(config_folder() / group / f"{choice}.yaml"))


def need(data):
    """Skip the test where the files of a data set are absent; nothing is downloaded."""
    if data not in FILES:
        return
    if not os.environ.get("FMDIFF_DATA"):
        pytest.skip(f"data={data} needs $FMDIFF_DATA")
    folder = Path(os.environ["FMDIFF_DATA"])
    if not any((folder / part).exists() for part in FILES[data]):
        pytest.skip(f"no {data} in $FMDIFF_DATA")


FILES = {
    "mnist": ("MNIST/raw",),
    "fashion_mnist": ("FashionMNIST/raw",),
    "cifar10": ("cifar-10-batches-py",),
}


def axes_of(data):
    return 3 if data == "folder" else len(build(spec("data", data)).shape)


def data_for(model):
    """A data set that a network takes."""
    return "moons" if model in OF_POINTS else "ar1" if model in OF_SERIES else "digits"


@pytest.fixture
def own_images(command):
    """What data=folder is to read: a folder of digits."""
    for i, pixels in enumerate(build(spec("data", "digits")).train[0][:12, 0]):
        file = Path(OWN, str(i % 2), f"{i}.png")
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels.numpy()).save(file)


@pytest.fixture
def few_pictures(monkeypatch):
    """The pictures of a run show 4 samples of one step, whatever the network costs."""

    def generate(field, n, classes, steps, device):
        return sampling.generate(field, 4, classes=classes, solver="euler", steps=1, device=device)

    monkeypatch.setattr(pictures, "generate", generate)


def named(group):
    """The names of the YAML files of a group."""
    return sorted(path.stem for path in (config_folder() / group).glob("*.yaml"))


# these need a run that is there: their own tests train with them
TAUGHT = ("reflow", "distill", "progressive")
ENCODED = ("latent", "array", "paired_folders")  # of a run, a file or folders


def of_network(model):
    return not str(spec("model", model)["_target_"]).startswith("fmdiff.exact")


def named_conditions(data):
    return build(spec("data", data)).conditions


def every_choice():
    """Words of runs that make every choice of training, what goes together in one run."""
    known = [data for data in named("data") if data not in ENCODED]
    images, series, points = (
        [data for data in known if axes_of(data) == axes] for axes in (3, 2, 1)
    )
    along = {
        group: cycle([name for name in named(group) if name not in TAUGHT])
        for group in ("path", "time", "coupling", "optim")
    }
    assert all(len(named(group)) <= len(points) for group in along)
    runs = [{"data": data, **{g: next(names) for g, names in along.items()}} for data in points]
    for run in runs:
        if named_conditions(run["data"]):  # no other coupling goes with them
            run["coupling"] = "independent"
    runs += [{"data": "moons", "source": s} for s in named("source") if s != "normal"]
    runs += [{"data": data, "model": "unet"} for data in images]
    runs += [
        {"data": data, "model": "unet_1d", group: name}
        for data in series
        for group, name in (("path", "vp"), ("coupling", "ot"), ("source", "hypersphere"))
    ]
    runs += [{"data": "ar1", "model": "unet_1d", "objective": "lsd"}]
    runs += [
        {"data": data_for(model), "model": model} for model in filter(of_network, named("model"))
    ]
    assert named("trainer") == ["default"]  # which is in every run, as is the usual objective
    usual = (*TAUGHT, "flow_matching")
    return runs + [{"data": "moons", "objective": o} for o in named("objective") if o not in usual]


def in_small(words):
    """The words of a run of two steps, all else small."""
    if words.get("objective") == "classification":
        words = words | {"model": "mlp_classifier"}
    if words.get("objective") == "autoencoder":
        words = words | {"model": "linear_autoencoder"}
    if "classifier" in words.get("model", ""):
        words = words | CLASSIFY
    if "autoencoder" in words.get("model", ""):
        words = words | AUTOENCODE
    if words.get("source") == "data":
        words = words | {"source.data": "8gaussians"}
    if words.get("optim") == "schedule_free":
        pytest.importorskip("schedulefree")
        words = words | {"trainer.decay": "constant"}
    own = [f"data.root={OWN}", "data.size=8"] if words["data"] == "folder" else []
    small = SMALL[words.get("model", "mlp")]
    size = 8 if small == SMALL["mlp"] else 2
    return [*(f"{k}={v}" for k, v in words.items()), f"data.batch_size={size}", *small, *own]


# Every choice


@pytest.mark.parametrize(
    "choice", [pytest.param(c, id=" ".join(c.values())) for c in every_choice()]
)
def test_every_choice_of_training_runs(command, few_pictures, own_images, monkeypatch, choice):
    need(choice["data"])
    if choice["data"] == "folder":
        monkeypatch.setenv("FMDIFF_DATA", "cache")
    words = in_small(choice)
    assert command("train", *PLAIN, *BRIEF, *words, "out=run") == 0
    assert checkpoint.read(find("run"))["step"] == 2
    if {"objective=classification", "objective=autoencoder"} & {*words}:
        assert command("sample", "ckpt=run", "n=3", "out=samples") == 2  # it gives no samples
        return
    samples = fmdiff.generate(fmdiff.load("run"), n=3, steps=2)
    assert samples.x.isfinite().all() and len(samples.x) == 3


def written(choice):
    """The text of an experiment and of those it begins with."""
    text = (config_folder() / "experiment" / f"{choice}.yaml").read_text()
    bases = re.findall(r"^  - (\w+)$", text, re.MULTILINE)
    return text + "".join(written(base) for base in bases if base != "_self_")


# the networks of the papers take seconds to make
@pytest.mark.parametrize(
    ("group", "choice"),
    [
        pytest.param(*one.values, id=one.id, marks=[pytest.mark.slow] * (one.values[1] in LARGE))
        for one in choices("experiment")
    ],
)
def test_every_experiment_runs(command, few_pictures, group, choice):
    text = written(choice)
    for data in FILES:
        if f"/data: {data}" in text:
            need(data)
    words = ["data.batch_size=2", "trainer.accumulate=1", "trainer.devices=1"]
    for model, small in (
        ("unet", "channels=32"),
        ("ddpmpp", "channels=16"),
        ("[dj]it", "depth=3"),
    ):
        words += [f"model.{small}"] if re.search(f"/model: {model}", text) else []
    if "/data: latent" in text:  # which needs an autoencoder
        small = ("data=digits", "model=autoencoder", "model.channels=8", "objective=autoencoder")
        assert command("train", *PLAIN, *BRIEF, *small, "out=codec") == 0
        words += ["data.of=digits", "data.autoencoder=codec"]
    if "/objective: distill" in text:  # which needs a teacher
        words += ["objective=lsd"]
    words = [f"experiment={choice}", *PLAIN, *BRIEF, *words, "trainer.precision=fp32", "out=run"]
    assert command("train", *words) == 0


LAWS = [name for name in named("schedule") if name != "trained"]  # needs a model of such times


@pytest.mark.parametrize(
    ("solver", "schedule"),
    list(zip([name for name in named("solver") if name != "jump"], cycle(LAWS), strict=False)),
)
def test_every_solver_and_schedule_runs(command, moons_run, solver, schedule):
    words = [f"solver={solver}", "n=8", "device=cpu", "out=samples"]
    words += [] if solver == "dopri5" else ["steps=3"]
    words += [] if solver == "fitted" else [f"schedule={schedule}"]
    assert len(LAWS) <= len(named("solver"))
    assert command("sample", f"ckpt={moons_run}", *words) == 0
    assert np.isfinite(np.load("samples/samples.npz")["arr_0"]).all()


def test_ddpm_samples_at_the_times_of_training(command, moons_run, capsys):
    words = ["experiment=ddpm", "time.steps=6", *PLAIN, *BRIEF, "out=ddpm"]
    assert command("train", *words) == 0
    for choice, law in ([], "trained"), (["schedule=uniform", "steps=6"], "uniform"):
        words = ["solver=ddpm", "n=8", "device=cpu", "out=samples", "overwrite=true", *choice]
        capsys.readouterr()
        assert command("sample", "ckpt=ddpm", *words) == 0
        assert f"6 steps, schedule {law}, in straight" in capsys.readouterr().out
        assert json.loads(Path("samples/sample.json").read_text())["nfe_counted"] == 6
    words = ["solver=ddpm", "schedule=trained", "n=8", "device=cpu", "out=others"]
    assert command("sample", f"ckpt={moons_run}", *words) == 2
    assert "this model was trained at all times" in capsys.readouterr().err
    assert not Path("others").exists()


@pytest.mark.parametrize(("group", "choice"), choices("guidance"))
def test_every_guidance_runs(command, digits_run, group, choice):
    words = ["n=4", "steps=2", "device=cpu", "out=samples"]
    if choice == "classifier":
        small = (*SMALL["classifier"], "data.batch_size=2", *BRIEF, "out=led")
        led = ("data=digits", "model=classifier", "objective=classification")
        assert command("train", *PLAIN, *led, *small) == 0
        words.append("guidance.ckpt=led")
    assert command("sample", f"ckpt={digits_run}", f"{group}={choice}", *words) == 0
    report = json.loads(Path("samples/sample.json").read_text())
    assert report["nfe_planned"] == report["nfe_counted"]


@pytest.mark.parametrize("w", ["-1", "-0.5", "0", "2"])
def test_negative_guidance_is_warned_of(command, digits_run, capsys, w):
    words = ["n=2", "steps=1", "device=cpu", "out=samples", "guidance=cfg", f"guidance.w={w}"]
    assert command("sample", f"ckpt={digits_run}", *words) == 0
    text = "".join(capsys.readouterr())
    assert (f"guidance.w={w} is negative" in text) == w.startswith("-")


@pytest.mark.parametrize("data", ["gmm4", "moons", "digits"])
@pytest.mark.parametrize("model", ["exact", "empirical", "data"])
def test_every_model_without_training_samples(command, capfd, model, data):
    words = (f"data={data}", "n=6", "steps=3", "device=cpu", "out=samples")
    words += ("model.n=50",) if model == "empirical" else ()
    code = command("sample", f"model={model}", *words)
    if model == "exact" and data != "gmm4":
        assert code == 2 and "Traceback" not in capfd.readouterr().err
        return
    assert code == 0
    assert len(np.load("samples/samples.npz")["arr_0"]) == 6


# The command lines of the documentation


def test_the_four_command_lines(command, capfd, few_pictures, monkeypatch):
    monkeypatch.delenv("FMDIFF_DATA", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(Path("cache").absolute()))
    short = (*BRIEF, "trainer.logger=csv", "threads=1", "device=cpu")
    assert command("train", "path=condot", "model=unet", *short) == 0
    (run,) = Path("outputs").glob("*/*/")
    assert command("sample", f"ckpt={run}", "solver=heun", "steps=28", "n=2", "threads=1") == 0
    (folder,) = (run / "samples").glob("*_*-*/")
    assert np.load(folder / "samples.npz")["arr_0"].shape == (2, 8, 8, 1)
    sweep = ("-m", "data=moons", "path=condot,vp", "optim.lr=1e-3,3e-4")
    capfd.readouterr()
    assert command("train", *sweep, *short) == 0
    *table, caution = capfd.readouterr().out.splitlines()[-5:]
    assert caution == "The validation losses do not compare: these runs differ in path."
    folders = [Path(line.split()[3]) for line in table]
    assert len(set(folders)) == 4 and all((f / "last.ckpt").is_file() for f in folders)
    assert command("info", f"ckpt={run}") == 0
    told = capfd.readouterr().out
    for fact in ("UNet(", "CondOT", "shape (1, 8, 8), 10 classes", "raw, 0.9999", "2"):
        assert fact in told


# What sample writes


def test_points(command, moons_run, capfd):
    words = ("n=50", "steps=4", "trajectory=true", "device=cpu", "out=samples")
    assert command("sample", f"ckpt={moons_run}", *words) == 0
    found = sorted(path.name for path in Path("samples").iterdir() if path.name[0] != ".")
    assert {"samples.npz", "scatter.png", "trajectory.gif", "sample.json"} <= set(found)
    arrays = np.load("samples/samples.npz")
    assert arrays["arr_0"].shape == (50, 2) and arrays["arr_0"].dtype == np.float32
    assert "labels" not in arrays
    report = json.loads(Path("samples/sample.json").read_text())
    assert report["nfe_planned"] == report["nfe_counted"] == 4
    assert report["seconds"] > 0 and report["versions"]["torch"] == torch.__version__
    assert Image.open("samples/trajectory.gif").n_frames >= 5
    told = capfd.readouterr().out
    assert "4 evaluations each" in told and "samples/scatter.png" in told


def test_images(command, digits_run):
    words = ("classes=[3,7]", "guidance=cfg", "guidance.w=2", "n=6", "steps=2", "png=true")
    words += ("trajectory=true", "device=cpu", "out=samples")
    assert command("sample", f"ckpt={digits_run}", *words) == 0
    arrays = np.load("samples/samples.npz")
    assert arrays["arr_0"].shape == (6, 8, 8, 1) and arrays["arr_0"].dtype == np.uint8
    assert arrays["labels"].tolist() == [3, 7, 3, 7, 3, 7]
    names = [f"{i:06d}.png" for i in range(6)]
    assert Path("samples/grid.png").is_file()
    for name, pixels in zip(names, arrays["arr_0"], strict=True):
        image = np.asarray(Image.open(Path("samples/png") / name).convert("L"))
        assert np.array_equal(image, pixels[..., 0])
    report = json.loads(Path("samples/sample.json").read_text())
    assert report["nfe_planned"] == report["nfe_counted"] == 4  # two branches


def test_equal_seeds_give_equal_bytes(command, digits_run):
    for out in ("a", "b"):
        words = ("n=5", "steps=3", "batch_size=4", "device=cpu", "threads=1", f"out={out}")
        assert command("sample", f"ckpt={digits_run}", *words) == 0
    for name in ("samples.npz", "grid.png"):
        assert Path("a", name).read_bytes() == Path("b", name).read_bytes()
    assert command("sample", f"ckpt={digits_run}", *words[:-1], "seed=1", "out=c") == 0
    assert Path("c/samples.npz").read_bytes() != Path("a/samples.npz").read_bytes()


def test_samples_do_not_depend_on_the_batch_size(command, moons_run, digits_run):
    for run, n in ((moons_run, 100), (digits_run, 70)):
        arrays = []
        for size in (7, 64):
            words = (f"n={n}", f"batch_size={size}", "steps=4", "device=cpu", "threads=1")
            assert command("sample", f"ckpt={run}", *words, f"out={run.parent.name}{size}") == 0
            arrays.append(np.load(f"{run.parent.name}{size}/samples.npz")["arr_0"])
        if arrays[0].dtype == np.uint8:
            off = np.abs(arrays[0].astype(int) - arrays[1])
            assert off.max() <= 1 and (off > 0).mean() < 1e-3
        else:
            np.testing.assert_allclose(*arrays, atol=1e-4)
    field = fmdiff.load(digits_run)
    a, b = (fmdiff.generate(field, 70, steps=4, batch_size=size).x for size in (7, 64))
    torch.testing.assert_close(a, b, rtol=0, atol=1e-4)


def test_a_run_samples_along_another_path(command, moons_run):
    for out, path in (("a", "condot"), ("b", "vp")):
        words = ("n=20", "steps=64", "device=cpu", f"path={path}", f"out={out}")
        assert command("sample", f"ckpt={moons_run}", *words) == 0
    a, b = (np.load(f"{out}/samples.npz")["arr_0"] for out in "ab")
    assert np.abs(a - b).max() < 0.05


def test_weights_are_chosen(command, moons_run, capfd):
    stored = checkpoint.read(find(moons_run))["weights"]
    for weights, name in (("ema", "0.9999"), ("raw", "raw"), (0.9, "0.9"), ("0.9", "0.9")):
        state = fmdiff.load(moons_run, weights=weights).net.state_dict()
        assert all(torch.equal(state[key], stored[name][key]) for key in state)
    with pytest.raises(
        FmdiffError, match=r"weights=0.5: checkpoint .*\.ckpt holds raw, 0.9999, 0.9"
    ):
        fmdiff.load(moons_run, weights=0.5)
    for weights in ("raw", "0.9"):
        words = ("n=4", "steps=2", "device=cpu", f"weights={weights}", f"out=w{weights}")
        assert command("sample", f"ckpt={moons_run}", *words) == 0
    assert command("sample", f"ckpt={moons_run}", "n=4", "weights=0.5", "out=none") == 2


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("guidance=cfg",), "guidance=cfg"),
        (("classes=3",), "classes=3"),
        (("device=cuda:7",), "device=cuda:7"),
        (("ckpt=absent",), "ckpt=absent"),
    ],
    ids=["guidance", "classes", "device", "ckpt"],
)
def test_what_cannot_be_sampled_is_refused(command, moons_run, capfd, words, said):
    assert command("sample", f"ckpt={moons_run}", "n=4", *words, "out=samples") == 2
    err = capfd.readouterr().err
    assert said in err.splitlines()[-1] and "Traceback" not in err


# Python, and what is imported


def test_load_and_generate(digits_run):
    field = fmdiff.load(digits_run, weights="ema")
    samples = fmdiff.generate(field, n=5, steps=3, seed=0)
    assert samples.x.shape == (5, 1, 8, 8) and samples.y.tolist() == [0, 1, 2, 3, 4]
    assert samples.nfe_planned == samples.nfe_counted == 3
    again = fmdiff.generate(fmdiff.load(digits_run / "last.ckpt"), n=5, steps=3)
    assert torch.equal(samples.x, again.x)


def test_code_named_by_a_checkpoint_is_not_run(tmp_path, moons_run, command, capfd):
    content = checkpoint.read(find(moons_run))
    content["spec"]["model"]["_target_"] = "os.system"
    checkpoint.write(tmp_path / "other.ckpt", content)
    with pytest.raises(FmdiffError, match=r"os\.system.*trust"):
        fmdiff.load(tmp_path / "other.ckpt")
    for name in ("sample", "info"):
        assert command(name, f"ckpt={tmp_path / 'other.ckpt'}") == 2
        assert "os.system" in capfd.readouterr().err


def imported(tmp_path, code):
    code += "\nimport sys; print('MODULES', *{name.partition('.')[0] for name in sys.modules})"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=True
    )
    return set(done.stdout.rpartition("MODULES")[2].split())


def test_what_is_imported(tmp_path, moons_run, digits_run):
    """Sampling in Python needs torch alone; only training needs Lightning and torchvision."""
    code = (
        "import sys, fmdiff\n"
        f"field = fmdiff.load({str(moons_run)!r}, weights='ema')\n"
        "samples = fmdiff.generate(field, n=64, solver='heun', steps=4, seed=0)\n"
        "assert samples.x.shape == (64, 2) and 'torch' in sys.modules\n"
        "assert not {'hydra', 'lightning', 'torchvision', 'matplotlib'} & set(sys.modules)\n"
        "from fmdiff.cli import main\n"
        f"assert main(['sample', 'ckpt={digits_run}', 'n=2', 'steps=2', 'out=s']) == 0\n"
        f"assert main(['info', 'ckpt={digits_run}']) == 0\n"
        "assert not {'lightning', 'torchvision', 'tensorboard'} & set(sys.modules)\n"
    )
    subprocess.run([sys.executable, "-c", code], cwd=tmp_path, check=True)


LINES = (*PLAIN[:3], *POINTS, "trainer.max_steps=100", "trainer.picture_every=1000", "out=run")


def test_a_file_gets_plain_lines(command, capfd, recwarn):
    assert command("train", *LINES) == 0
    out, err = capfd.readouterr()
    first, progress, last = err.splitlines()
    assert first.startswith("data moons, path condot, model mlp, objective flow_matching; ")
    assert progress.startswith("step 100/100: loss ") and last.startswith("100 steps done")
    assert out == "" and not [str(w.message) for w in recwarn if "eval mode" in str(w.message)]


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("script") is None, reason="no script command")
def test_a_terminal_gets_a_bar(tmp_path):
    line = f"stty rows 40 cols 120; exec {sys.executable} -m fmdiff train {' '.join(LINES)}"
    done = subprocess.run(
        ["script", "-qec", line, "/dev/null"], cwd=tmp_path, capture_output=True, text=True
    )
    assert done.returncode == 0
    assert "100/100" in done.stdout and "step/s" in done.stdout and "Found " not in done.stdout
