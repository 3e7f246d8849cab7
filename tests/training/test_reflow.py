"""coupling=reflow: the pairs of a teacher, what is trained on them, and what is refused."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import IMAGES, PLAIN, POINTS, _trained, metrics, vector
from scipy.integrate import solve_ivp

from fmdiff import generate, load
from fmdiff.build import build, named, spec_of
from fmdiff.coupling import Pairs, Reflow
from fmdiff.errors import FmdiffError
from fmdiff.guidance import CFG
from fmdiff.inversion import shape_of
from fmdiff.randomness import key
from fmdiff.runs import checkpoint
from fmdiff.sampling import Sampler
from fmdiff.training import reflow

BRIEF = ("trainer.warmup=0", "trainer.picture_every=1000", "trainer.validate_every=1000")
FEW = ("coupling=reflow", "coupling.n=300", "coupling.steps=4")
TINY = (*POINTS, *BRIEF, *FEW)
LABELS = ("data=gmm4", "data.conditional=true", "model.hidden=16", "data.batch_size=64", *BRIEF)
SAMPLE = ("device=cpu", "threads=1", "n=40", "steps=2", "out=samples")
CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("FMDIFF_DATA", str(tmp_path / "cache"))
    return tmp_path / "cache" / "reflow"


@pytest.fixture(scope="module")
def labelled(tmp_path_factory):
    """A teacher with classes."""
    return _trained(tmp_path_factory.mktemp("labelled") / "run", *LABELS, "trainer.max_steps=60")


def started(cwd, *words):
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "fmdiff", *map(str, words)]
    return subprocess.Popen(command, cwd=cwd, env=environment, stderr=subprocess.PIPE, text=True)


def wait_for(process, due):
    end = time.monotonic() + 500
    while not due():
        assert process.poll() is None and time.monotonic() < end
        time.sleep(0.01)


def pairs_of(ckpt, data="moons", source="normal", data_keys=None, **changes):
    """The pairs of a run of these settings, as training makes them."""
    spec = spec_of("coupling", "reflow") | {"ckpt": str(ckpt), "trust": [], "n": 300, "steps": 4}
    settings = {"choices": {"data": data}}
    parts = (
        build(spec | changes),
        named("data", data, **(data_keys or {})),
        named("source", source),
    )
    return reflow.pairs(*reflow.parts(settings, *parts, CPU))


def content_of(cache):
    (folder,) = cache.glob("*/")
    return folder, (folder / "pairs.npy").read_bytes()


# The pairs


def test_a_pair_is_noise_and_where_the_ode_of_the_teacher_leads_it(moons_run, cache):
    pairs = pairs_of(moons_run, steps=50)
    field = load(moons_run)
    assert pairs.x.shape == pairs.eps.shape == (2300, 2) and pairs.y is None and pairs.n == 300
    assert pairs.teacher == field.sha256

    def velocity(t, x):
        x = torch.from_numpy(x).float().view(-1, 2)
        return field(x, torch.tensor(t)).double().flatten().numpy()

    start = pairs.eps[:40].double().flatten().numpy()
    end = solve_ivp(velocity, (0, 1), start, rtol=1e-6, atol=1e-6).y[:, -1]
    np.testing.assert_allclose(pairs.x[:40].flatten().numpy(), end, atol=2e-3)
    # the noise is standard normal, and none of the samples of seed 0
    assert abs(pairs.eps.mean().item()) < 4 / 4600**0.5
    assert pairs.eps.var().item() == pytest.approx(1, abs=4 * (2 / 4600) ** 0.5)
    assert not torch.isin(pairs.eps, generate(field, 300, steps=1, trajectory=True).x).any()
    stored = np.load(content_of(cache)[0] / "pairs.npy")
    assert np.array_equal(stored[:, 0], pairs.eps) and np.array_equal(stored[:, 1], pairs.x)


def test_guided_pairs_have_the_labels_that_their_teacher_was_given(labelled):
    keys = {"data_keys": {"conditional": True}}
    plain, guided = (pairs_of(labelled, "gmm4", w=w, **keys) for w in (1.0, 3.0))
    assert torch.equal(plain.y, torch.arange(2300) % 4) and torch.equal(guided.y, plain.y)
    assert torch.equal(guided.eps, plain.eps) and not torch.equal(guided.x, plain.x)
    for pairs, guidance in ((plain, "none"), (guided, CFG(w=3.0))):
        options = {"solver": "heun", "steps": 4, "guidance": guidance}
        again = generate(load(labelled), eps=pairs.eps, classes=[0, 1, 2, 3], **options)
        torch.testing.assert_close(again.x, pairs.x, rtol=0, atol=1e-5)


def test_pairs_of_some_labels_are_of_these_alone(labelled):
    pairs = pairs_of(labelled, "gmm4", data_keys={"conditional": True, "only": [1, 3]})
    assert pairs.y.unique().tolist() == [1, 3]


@pytest.mark.parametrize(
    "change", [{"steps": 5}, {"solver": "euler"}, {"n": 301}, {"seed": 1}, {"weights": "raw"}]
)
def test_other_settings_have_pairs_of_their_own(moons_run, cache, change):
    first = pairs_of(moons_run)
    assert torch.equal(pairs_of(moons_run).x, first.x) and len(list(cache.glob("*/"))) == 1
    other = pairs_of(moons_run, **change)
    assert len(list(cache.glob("*/"))) == 2
    assert torch.equal(other.x[:300], first.x[:300]) == (
        "n" in change
    )  # pair i is one of (seed, i)
    assert torch.equal(other.eps[:300], first.eps[:300]) == ("seed" not in change)


def test_a_source_of_data_gives_other_rows_than_sampling(train, tmp_path):
    words = (*POINTS, *BRIEF, "source=data", "source.data=8gaussians", "trainer.max_steps=3")
    train(tmp_path / "teacher", *words)
    field = load(tmp_path / "teacher")
    spec = spec_of("coupling", "reflow") | {"ckpt": str(tmp_path / "teacher"), "trust": []}
    coupling = build(spec | {"n": 300, "steps": 4})
    parts = coupling, named("data", "moons"), named("source", "data", data="8gaussians"), CPU
    pairs = reflow.pairs(*reflow.parts({"choices": {"data": "moons"}}, *parts))
    assert named("data", "8gaussians").off_support(pairs.eps).float().mean() < 0.02
    assert len(pairs.eps.unique(dim=0)) == 2300
    start = generate(field, 300, steps=1, trajectory=True).trajectory[0][0]
    assert not torch.isin(pairs.eps, start).any()
    drawn = reflow.Drawn(parts[2]).sample(torch.zeros(2300, 2), 0, key(0, "reflow"))
    assert torch.equal(pairs.eps, drawn)
    again = generate(field, x_start=pairs.eps, solver="heun", steps=4)
    torch.testing.assert_close(again.x, pairs.x, rtol=0, atol=1e-5)


def test_a_source_of_images_gives_those_of_training():
    """Samples begin with the test split, over and over, which is small."""
    source = named("source", "data", data="digits")
    train, test = (source.dataset._split(part)[0].flatten(1).float() for part in (True, False))
    eps = reflow.Drawn(source).sample(torch.zeros(400, 1, 8, 8), 800, 3).flatten(1)
    pixels = ((eps + 1) * 127.5).round()
    assert (torch.cdist(pixels, train).amin(1) < 1e-3).all() and len(pixels.unique(dim=0)) > 390
    assert (torch.cdist(pixels, test).amin(1) > 1).float().mean() > 0.9
    assert not torch.equal(pixels, ((reflow.Drawn(source).sample(eps, 0, 3) + 1) * 127.5).round())


def test_classes_of_another_order_are_other_classes(labelled, monkeypatch):
    field = load(labelled)
    field.names = ("a", "b", "c", "d")
    monkeypatch.setattr(reflow.loading, "load", lambda *_: field)
    monkeypatch.setattr(type(named("data", "gmm4")), "names", ("a", "b", "d", "c"))
    with pytest.raises(FmdiffError, match=r"4 classes \(a, b, c, d\), and .* \(a, b, d, c\)"):
        pairs_of(labelled, "gmm4", data_keys={"conditional": True})


# The cache


@pytest.fixture
def asked(monkeypatch):
    """The blocks that teachers of this process are asked for."""
    numbers, block = [], reflow.Maker.block

    def counted(self, recipe, rows):
        numbers.append(rows.start // recipe.size)
        if numbers == [0, 1, 2]:
            raise KeyboardInterrupt
        return block(self, recipe, rows)

    monkeypatch.setattr(reflow.Maker, "block", counted)
    return numbers


def test_blocks_that_are_done_are_not_made_again(moons_run, cache, asked):
    with pytest.raises(KeyboardInterrupt):
        pairs_of(moons_run, n=20000)
    with (content_of(cache)[0] / "pairs.npy").open("ab") as file:
        file.write(b"the beginning of a block")
    again = pairs_of(moons_run, n=20000)
    assert asked == [0, 1, 2, 2, 3, 4, 5]
    kept = content_of(cache)
    shutil.rmtree(kept[0])
    assert torch.equal(pairs_of(moons_run, n=20000).x, again.x)
    assert content_of(cache) == kept and asked[7:] == [0, 1, 2, 3, 4, 5]


@pytest.mark.slow
@pytest.mark.fault
def test_a_maker_that_is_killed_leaves_blocks_and_the_next_goes_on(moons_run, tmp_path, cache):
    words = ("train", *PLAIN, *TINY, f"coupling.ckpt={moons_run}", "coupling.n=40000", "out=run")
    process = started(tmp_path, *words, "trainer.max_steps=2", "coupling.steps=40")
    wait_for(process, lambda: len(list(cache.glob("*/about.json"))))
    process.kill()
    assert process.wait() == -signal.SIGKILL
    (folder,) = cache.glob("*/")
    before = json.loads((folder / "about.json").read_text())["checksums"]
    assert 1 <= len(before) < 11
    with (folder / "pairs.npy").open("ab") as file:
        file.write(b"half a block")
    resumed = pairs_of(moons_run, n=40000, steps=40)
    assert json.loads((folder / "about.json").read_text())["checksums"][: len(before)] == before
    kept = content_of(cache)[1]
    shutil.rmtree(folder)
    assert torch.equal(pairs_of(moons_run, n=40000, steps=40).x, resumed.x)
    assert content_of(cache)[1] == kept


@pytest.mark.slow
@pytest.mark.fault
def test_two_processes_that_meet_make_the_pairs_once(moons_run, tmp_path, cache):
    words = ("train", *PLAIN, *TINY, f"coupling.ckpt={moons_run}", "coupling.n=20000")
    words += ("trainer.max_steps=2", "coupling.steps=30")
    runs = [started(tmp_path, *words, f"out=run{i}") for i in range(2)]
    said = [run.communicate()[1] for run in runs]
    assert [run.returncode for run in runs] == [0, 0], said
    text = "".join(said)
    assert text.count("written to the cache") == text.count("found in the cache") == 1
    a, b = (checkpoint.read(tmp_path / f"run{i}" / "last.ckpt")["checksums"] for i in range(2))
    assert a == b and [path.name for path in cache.iterdir() if path.suffix == ".lock"] == []


@pytest.mark.parametrize("damage", ["bit", "short", "about", "header", "link", "checksum"])
def test_a_damaged_cache_is_made_again(moons_run, tmp_path, cache, damage):
    first = pairs_of(moons_run)
    x = first.x.clone()
    folder, content = content_of(cache)
    path, about = folder / "pairs.npy", folder / "about.json"
    if damage == "bit":
        path.write_bytes(content[:-5] + bytes([content[-5] ^ 1]) + content[-4:])
    elif damage == "short":
        path.write_bytes(content[:-8])
    elif damage == "header":
        path.write_bytes(b"\0" + content[1:])
    elif damage == "about":
        about.write_text('{"key": 1, "checksums": 7, "straightness": []}')
    elif damage == "checksum":
        told = json.loads(about.read_text())
        about.write_text(json.dumps(told | {"checksums": ["0"]}))
    else:
        path.rename(tmp_path / "elsewhere")
        path.symlink_to(tmp_path / "elsewhere")
    assert torch.equal(pairs_of(moons_run).x, x)
    assert content_of(cache)[1] == content and not path.is_symlink()
    if damage == "link":
        assert (tmp_path / "elsewhere").read_bytes() == content


def test_a_cache_that_cannot_be_written_is_told_in_a_sentence(moons_run, cache):
    cache.parent.mkdir(parents=True)
    cache.write_text("a file")
    with pytest.raises(
        FmdiffError, match=r"cannot be written .*; make room there, or point FMDIFF"
    ):
        pairs_of(moons_run)


# The draws of a step


def batches(labels=True, label_dropout=0.0, accumulate=1):
    from test_coupled_training import batches as plain

    one = plain("independent", data={"conditional": labels}, label_dropout=label_dropout)
    n = torch.arange(110.0)
    y = torch.arange(110) % 4 if labels else None
    one.pairs = Pairs(torch.stack([n, -n], 1), torch.stack([n + 0.5, n], 1), y, 100, "", 0.0)
    one.accumulate = accumulate
    return one


def test_each_pair_comes_once_an_epoch_with_its_label():
    x, y, eps, _, augmentation = batches().draw(range(0, 5), slice(None))  # 300: 3 epochs
    number = eps[:, 0]
    assert torch.equal(eps[:, 1], -number) and torch.equal(x[:, 0], number + 0.5)
    assert torch.equal(x[:, 1], number) and torch.equal(y, number.long() % 4)
    for epoch in number.split(100):
        assert torch.equal(epoch.sort().values, torch.arange(100.0))
    assert not torch.equal(number[:100], number[100:200]) and augmentation is None
    held = batches().pairs.held_out(CPU)[2][:, 0]
    assert torch.equal(held, torch.arange(100.0, 110))


@pytest.mark.parametrize("labels", [False, True])
def test_rows_and_steps_are_those_of_the_global_batch(labels):
    whole = batches(labels, 0.5).draw(range(1, 3), slice(None))
    for rows in (slice(0, 20), slice(20, 60), slice(7, 9)):
        part = batches(labels, 0.5).draw(range(1, 3), rows)
        for some, every in zip(part[:4], whole[:4], strict=True):
            if every is not None:
                steps = torch.cat([step[rows] for step in every.split(60)])
                assert torch.equal(some, steps)
    if labels:
        assert (whole[1] == 4).float().mean().item() == pytest.approx(0.5, abs=0.2)
    times = batches(labels).draw(range(1, 3), slice(None))[3]
    assert torch.equal(times, whole[3])


# Runs


def test_a_run_on_pairs_is_straighter_and_says_so(train, command, moons_run, tmp_path, capsys):
    words = (*TINY, f"coupling.ckpt={moons_run}", f"init={moons_run}", "coupling.steps=20")
    words += ("coupling.n=20000", "data.batch_size=1000", "trainer.max_steps=150")
    content = train(tmp_path / "run", *words)
    assert content["training"]["pairs"] == load(moons_run).sha256
    (line,) = [line for line in capsys.readouterr().err.splitlines() if "straightness" in line]
    field = load(tmp_path / "run")
    own, teacher = (shape_of(f, Sampler(steps=50), 0).relative for f in (field, load(moons_run)))
    assert f"{own:.3g}, of the teacher {teacher:.3g} (" in line
    assert own < teacher / 3
    assert not field.gaussian and "transport_cost" not in metrics(tmp_path / "run")[0]
    # the loss of held-out pairs is far below that of independent ones
    plain = train(tmp_path / "plain", *POINTS, *BRIEF, f"init={moons_run}", "trainer.max_steps=2")
    assert "pairs" not in plain["training"]
    losses = [float(metrics(tmp_path / name)[-1]["val_loss"]) for name in ("run", "plain")]
    assert losses[0] < 0.5 * losses[1]
    assert command("sample", f"ckpt={tmp_path / 'run'}", *SAMPLE, "solver=euler_maruyama") == 2
    assert "needs a normal source independent of x" in capsys.readouterr().err
    # it may be a teacher again
    again = (*TINY, f"coupling.ckpt={tmp_path / 'run'}", "trainer.max_steps=2")
    assert train(tmp_path / "third", *again)["training"]["pairs"] == field.sha256


def test_images_with_classes_and_guidance(train, command, tmp_path, cache, capsys):
    words = (*IMAGES, *BRIEF, "data.conditional=true", "trainer.max_steps=2", "data.flip=true")
    train(tmp_path / "teacher", *words)
    more = (*FEW, "coupling.w=2", f"coupling.ckpt={tmp_path / 'teacher'}")
    assert command("train", *PLAIN, *words, *more, "plan=true") == 0
    said = capsys.readouterr().out
    assert "300 and 200 held out, 0 MB in the cache; 16 evaluations of the teacher each" in said
    content = train(tmp_path / "run", *words, *more, f"init={tmp_path / 'teacher'}")
    assert content["step"] == 2 and list((tmp_path / "run" / "samples").glob("*.png"))
    stored = np.load(content_of(cache)[0] / "pairs.npy")
    assert stored.shape == (500, 2, 1, 8, 8) and np.isfinite(stored).all()
    assert command("sample", f"ckpt={tmp_path / 'run'}", *SAMPLE, "guidance=cfg") == 0


def test_a_checkpoint_needs_its_teacher_no_more(train, command, moons_run, tmp_path, cache):
    teacher = shutil.copytree(moons_run, tmp_path / "teacher")
    train(tmp_path / "run", *TINY, f"coupling.ckpt={teacher}", "trainer.max_steps=2")
    shutil.rmtree(teacher)
    shutil.rmtree(cache)
    os.mkfifo(teacher)  # whoever opened it would wait for ever
    assert command("sample", f"ckpt={tmp_path / 'run'}", *SAMPLE) == 0
    assert command("info", f"ckpt={tmp_path / 'run'}") == 0
    assert load(tmp_path / "run")(torch.zeros(3, 2), torch.tensor(0.5)).shape == (3, 2)
    assert not cache.exists()


@pytest.mark.slow
@pytest.mark.fault
def test_a_run_is_killed_and_ends_bit_identically(train, moons_run, tmp_path):
    words = (*TINY, f"coupling.ckpt={moons_run}", f"init={moons_run}", "trainer.log_every=40")
    words += ("trainer.checkpoint_every=100", "trainer.max_steps=600", "trainer.keep=null")
    whole = train(tmp_path / "whole", *words)
    run = tmp_path / "run"
    process = started(tmp_path, "train", *PLAIN, *words, f"out={run}")
    wait_for(process, (run / checkpoint.name(100)).exists)
    process.kill()
    assert process.wait() == -signal.SIGKILL
    resumed = train(run, "resume=true")
    assert resumed["step"] == 600 and resumed["checksums"] == whole["checksums"]
    assert metrics(run) == metrics(tmp_path / "whole")


def test_a_run_goes_on_without_its_teacher_but_not_with_another(
    train, moons_run, tmp_path, capsys, cache
):
    teacher = shutil.copytree(moons_run, tmp_path / "teacher")
    constant = (*TINY, "trainer.decay=constant", f"coupling.ckpt={teacher}")
    whole = train(tmp_path / "whole", *constant, "trainer.max_steps=12")
    train(tmp_path / "run", *constant, "trainer.max_steps=6")
    longer = ("resume=true", "trainer.max_steps=12")
    train(tmp_path / "other", *POINTS, *BRIEF, "trainer.max_steps=2")
    other = f"coupling.ckpt={tmp_path / 'other'}"
    assert train(tmp_path / "run", *longer, other, code=2)["step"] == 6
    assert "is another model than the teacher of this run" in capsys.readouterr().err
    # the same weights elsewhere are the same teacher
    moved = shutil.move(teacher, tmp_path / "moved")
    resumed = train(tmp_path / "run", *longer, f"coupling.ckpt={moved}")
    assert resumed["checksums"] == whole["checksums"]
    shutil.rmtree(moved)
    assert train(tmp_path / "run", "resume=true", "trainer.max_steps=14")["step"] == 14
    shutil.rmtree(cache)
    assert train(tmp_path / "run", "resume=true", "trainer.max_steps=16", code=2)["step"] == 14
    said = capsys.readouterr().err
    assert f"coupling.ckpt={moved}" in said and "does not exist" in said


@pytest.mark.slow
def test_parts_and_devices_take_rows_of_one_batch(train, labelled, tmp_path):
    words = (*LABELS, *FEW, f"coupling.ckpt={labelled}", "trainer.max_steps=8", "coupling.w=2")
    one = train(tmp_path / "one", *words)
    train(tmp_path / "two", *words, "trainer.accumulate=2")
    process = started(tmp_path, "train", *PLAIN, *words, "trainer.devices=2", "out=three")
    assert process.wait() == 0
    a = vector(one["weights"]["raw"])
    for name in ("two", "three"):
        b = vector(checkpoint.read(tmp_path / name / "last.ckpt")["weights"]["raw"])
        assert ((a - b).norm() / a.norm()).item() < 1e-5


def test_a_plan_counts_the_pairs_and_makes_none(command, moons_run, tmp_path, cache, capsys):
    words = ("train", *PLAIN, *TINY, f"coupling.ckpt={moons_run}", "trainer.max_steps=100")
    assert command(*words, "plan=true") == 0
    (line,) = [line for line in capsys.readouterr().out.splitlines() if line[:5] == "pairs"]
    assert "300 and 2,000 held out, 0 MB in the cache; 8 evaluations of the teacher each" in line
    assert "18,400 in all" in line and not cache.exists()
    assert command(*words, "out=run") == 0
    assert command(*words, "plan=true") == 0
    assert "made already" in capsys.readouterr().out


# What is refused


@pytest.fixture(scope="module")
def classifier(tmp_path_factory):
    words = ("data=gmm4", "data.conditional=true", "model=mlp_classifier", "trainer.max_steps=2")
    folder = tmp_path_factory.mktemp("classifier") / "run"
    return _trained(folder, *words, *BRIEF, "objective=classification")


REFUSED = [
    (("coupling.ckpt=absent",), "coupling.ckpt=absent: ckpt=absent does not exist"),
    (("coupling.ckpt=MOONS", "data=digits"), "is a model of samples of shape [2], and the data"),
    (("coupling.ckpt=MOONS", "data=gmm4", "data.conditional=true"), "no classes, and the data"),
    (("coupling.ckpt=LABELLED", "data=gmm4"), "is a model of 4 classes, and the data of this run"),
    (("coupling.ckpt=CLASSIFIER", "data=gmm4"), "holds a classifier"),
    (
        ("coupling.ckpt=MOONS", "source=truncated"),
        "was trained with the source Normal(), and this",
    ),
    (("coupling.ckpt=MOONS", "coupling.w=2"), "coupling.w=2: guidance needs a teacher with"),
    (("coupling.ckpt=MOONS", "coupling.solver=ddpm"), "coupling.solver=ddpm is stochastic"),
    (("coupling.ckpt=MOONS", "coupling.solver=fitted"), "fitted to a model, which is for fmdiff"),
    (("coupling.ckpt=MOONS", "coupling.solver=hein"), "did you mean 'heun'?"),
    (("coupling.ckpt=MOONS", "coupling.solver=dopri5"), "set coupling.steps=null"),
    (("coupling.ckpt=MOONS", "coupling.n=0"), "coupling.n=0: must be an integer >= 1"),
    (("coupling.ckpt=MOONS", "coupling.weights=0.5"), "0.5"),
    (("coupling.ckpt=MOONS", "objective.prediction=score"), "not source=normal coupling=reflow"),
]


@pytest.mark.parametrize(("words", "says"), REFUSED, ids=[" ".join(words) for words, _ in REFUSED])
@pytest.mark.parametrize("plan", [False, True])
def test_what_does_not_fit_is_refused_before_anything_is_written(
    command, moons_run, labelled, classifier, tmp_path, capsys, words, says, plan, cache
):
    places = {"MOONS": moons_run, "LABELLED": labelled, "CLASSIFIER": classifier}
    for name, place in places.items():
        words = [word.replace(name, str(place)) for word in words]
    more = ("plan=true",) if plan else ("out=new",)
    assert command("train", *PLAIN, "coupling=reflow", *words, *more) == 2
    said = capsys.readouterr().err
    assert says in said and "Traceback" not in said
    assert not (tmp_path / "new").exists() and not cache.exists()


def test_a_run_folder_names_no_trust_for_its_teacher(command, moons_run, tmp_path, capsys):
    words = (*TINY, f"coupling.ckpt={moons_run}", "trainer.max_steps=2", "out=run")
    assert command("train", *PLAIN, *words) == 0
    with (tmp_path / "run" / "overrides").open("a") as file:
        file.write("coupling.trust=[os.]\n")
    assert command("train", *PLAIN, "resume=run", "trainer.max_steps=4") == 2
    assert "coupling.trust=[os.] is for the user alone to say" in capsys.readouterr().err


def test_the_yaml_alone_opens_nothing(monkeypatch):
    monkeypatch.setattr(Path, "open", None)
    coupling = build(spec_of("coupling", "reflow") | {"ckpt": "/absent", "trust": []})
    assert isinstance(coupling, Reflow) and not coupling.independent
    assert repr(coupling).startswith("Reflow(ckpt='/absent', weights='ema', n=None")
