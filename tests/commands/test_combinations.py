"""What cannot be combined: refused in one line that names the option, with nothing left behind."""

from pathlib import Path

import pytest
import torch
from conftest import PLAIN, POINTS, _trained

from fmdiff import load
from fmdiff.along import Straight
from fmdiff.errors import FmdiffError
from fmdiff.path import VP
from fmdiff.sampling import view
from fmdiff.settings import combinations

SMALL = (*PLAIN, "data.batch_size=64", "trainer.max_steps=1", "trainer.warmup=0")
OT = ("coupling=ot", "data=moons")

EXACT = ("against=exact",)
CLASSIFY = ("objective=classification", "model=mlp_classifier")
ENCODE = ("objective=autoencoder", "model=linear_autoencoder", "model.latent=1", "data=moons")
REFLOW = ("coupling=reflow", "coupling.ckpt=run")

# of real data in place of samples
REAL_DATA = [
    [((), "neither is given"), (("data=gmm4",), "neither is given")],
    [(("ckpt=run", "model=exact", "data=gmm4"), "both are given")],
    [(("model=mlp", "data=moons"), "model=mlp is a network")],
    [(("model=exact",), "model=exact needs data=NAME")],
    [(("ckpt=run", "path=vp"), "path=vp goes with model=; ckpt=run has its own")],
]
# command -> refusal number -> the command lines it refuses, and what the line on stderr says
REFUSED = {
    "train": [
        [
            (("model=exact", "data=gmm4"), "model=exact has nothing to train"),
            (("model=empirical", "data=gmm4"), "model=empirical has nothing"),
            (("model=data", "data=moons"), "model=data has nothing"),
        ],
        [
            ((*OT, "objective.prediction=score"), "objective.prediction"),
            ((*OT, "objective.loss=score"), "coupling=ot"),
            (("coupling=sinkhorn", "objective.loss=score"), "coupling=sinkhorn"),
            (("source=hypersphere", "objective.prediction=score"), "source=hypersphere"),
            (("source=truncated", "objective.loss=score"), "source=truncated"),
            (
                ("source=data", "source.data=8gaussians", "objective.prediction=score"),
                "source=data coupling=independent",
            ),
        ],
        [
            ((*OT, "objective.weighting=likelihood"), "objective.weighting=likelihood"),
            (("source=truncated", "objective.weighting=likelihood"), "source=truncated"),
        ],
        [
            (("objective.precondition=true",), "objective.prediction=x, not v"),
            (("objective.precondition=true", "objective.prediction=eps"), "not eps"),
        ],
        [
            (("source=hypersphere", "path=ve"), "path=ve"),
            (("source=truncated", "path=edm"), "path=edm"),
            (("source=data", "source.data=8gaussians", "path=ve"), "source=data"),
        ],
        [((*CLASSIFY, "data=moons"), "data.conditional=true")],
        [((*CLASSIFY, "data.conditional=true", "coupling=ot"), "coupling=ot")],
        [
            ((*ENCODE, "coupling=ot"), "objective=autoencoder takes its noise"),
            ((*ENCODE, "source=hypersphere"), "source=hypersphere"),
        ],
        [
            (("data=digits", "data.augment=0.1", "model=unet"), "model.augment=9"),
            (
                ("data=digits", "data.augment=1", "model=ddpmpp", "model.augment=0"),
                "model=ddpmpp is not told",
            ),
            (("data=digits", "data.augment=0.5", "model=classifier"), "model=classifier is not"),
        ],
        [
            (
                ("objective=lsd", "trainer.precision=tf32"),
                "more digits than trainer",
            ),
            (("objective=imf", "trainer.precision=tf32"), "choose derivative=forward"),
        ],
        [
            (("objective=lsd", "objective.guidance=[1,4]"), "needs classes"),
            (
                (
                    "data=gmm4",
                    "objective=lsd",
                    "objective.guidance=[1,4]",
                    "trainer.label_dropout=0",
                ),
                "label_dropout=0.1",
            ),
        ],
        [(("trainer.snapshot_every=10",), "snapshot_every=10 goes with trainer.power_ema")],
        [
            (
                ("optim=schedule_free",),
                "optim=schedule_free averages in place of a falling learning rate: say "
                "trainer.decay=constant",
            )
        ],
        [
            (
                ("trainer.power_ema=[0.1]", "trainer.ema_every=7"),
                "trainer.ema_every=7 must divide trainer.snapshot_every",
            )
        ],
        [(("coupling=reflow",), "coupling=reflow needs coupling.ckpt=RUN")],
        [
            (
                (*REFLOW, "data=digits", "data.augment=0.1", "model=unet", "model.augment=9"),
                "data.augment=0.1 changes images, and coupling=reflow",
            )
        ],
    ],
    "sample": [
        [((), "neither is given"), (("data=gmm4",), "neither is given")],
        [(("ckpt=run", "model=exact", "data=gmm4"), "both are given")],
        [(("model=mlp", "data=moons"), "model=mlp is a network")],
        [(("model=exact",), "model=exact needs data=NAME")],
        [(("ckpt=run", "data=gmm4"), "data=gmm4 goes with model=")],
    ],
    "evaluate": [
        [
            ((), "one of ckpt=RUN"),
            (("ckpt=run", "model=exact", "data=gmm4"), "one of ckpt=RUN"),
            (("ckpt=run", "samples=s.npz"), "one of ckpt=RUN"),
            (("result=r.json", "samples=s.npz"), "one of ckpt=RUN"),
        ],
        [(("model=mlp", "data=gmm4"), "model=mlp is a network")],
        [(("model=empirical",), "model=empirical needs data=NAME")],
        [(("ckpt=run", "data=gmm4"), "data=gmm4 goes with model=")],
        [
            (("samples=s.npz", "against=gmm4", "repeats=2"), "samples=s.npz are there already"),
            (("samples=s.npz", "against=gmm4", "grid.nfe=[4]"), "grid= go with ckpt="),
        ],
        [
            (("samples=s.npz",), "samples=s.npz need against="),
            (("samples=s.npz", "against=exact"), "samples=s.npz need against="),
        ],
        [(("samples=s.npz", "against=gmm4", "data=moons"), "give one of them")],
        [(("ckpt=run", "path=vp", "against=exact"), "path=vp goes with model=")],
        [(("model=data", "data=gmm4", "against=exact"), "model=data has no field")],
    ],
    "likelihood": REAL_DATA,
    "invert": REAL_DATA,
    "page": [
        [
            (("ckpt=run", "model=exact", "data=gmm4"), "give one of them"),
            (("ckpt=run", "system=saddle"), "give one of them"),
            (("model=exact", "data=gmm4", "system=saddle"), "give one of them"),
        ],
        [(("model=mlp", "data=gmm4"), "model=mlp is a network")],
        [(("model=exact",), "model=exact needs data=NAME")],
        [(("ckpt=run", "data=gmm4"), "data=gmm4 goes with model=")],
        [(("ckpt=run", "path=vp"), "path=vp goes with model=; ckpt=run has its own")],
        [(("model=data", "data=gmm4"), "model=data has no field to show")],
        [
            (("data=gmm4",), "data=gmm4 needs model=exact"),
            (("system=saddle", "data=gmm4"), "data=gmm4 needs model=exact"),
        ],
    ],
}


def cases(refused):
    return [
        pytest.param(name, i, words, said, id=f"{name}{i}-{'-'.join(words) or 'nothing'}")
        for name, refusals in refused.items()
        for i, lines in enumerate(refusals)
        for words, said in lines
    ]


def check_refused(command, capfd, name, words, said, out=("out=result",)):
    """Exit code 2, one line on stderr without a traceback, and no file or folder is left."""
    own = {"train": SMALL, "page": ()}.get(name, ("device=cpu", "threads=1"))
    words = (*own, *words)
    before = set(Path().rglob("*"))
    capfd.readouterr()
    assert command(name, *words, *out) == 2
    error = capfd.readouterr().err
    lines = error.splitlines()
    assert len(lines) == 1 and lines[0].startswith(f"fmdiff {name}: "), error
    assert said in error and "Traceback" not in error
    assert "{" not in error and "None" not in error  # every name is filled in
    assert not Path("result").exists()
    assert not {path for path in set(Path().rglob("*")) - before if path.is_file()}


def test_every_refusal_is_tried():
    assert {name: len(lines) for name, lines in REFUSED.items()} == {
        name: len(refusals) for name, refusals in combinations.REFUSALS.items()
    }


@pytest.mark.parametrize(("name", "number", "words", "said"), cases(REFUSED))
def test_a_combination_is_refused(command, capfd, monkeypatch, name, number, words, said):
    asked = []
    tables = {
        key: [
            combinations.Refusal(
                lambda cfg, i=i, r=r: r.when(cfg) and (asked.append(i) or True), r.says
            )
            for i, r in enumerate(refusals)
        ]
        for key, refusals in combinations.REFUSALS.items()
    }
    monkeypatch.setattr(combinations, "REFUSALS", tables)
    check_refused(command, capfd, name, words, said)
    assert set(asked) == {number}  # by this line of the table and no other


@pytest.mark.parametrize(
    ("name", "words", "said"),
    [
        ("train", ("objective.precondition=true",), "objective.precondition=true"),
        ("train", ("source=data", "source.data=digits"), "source.data=digits"),
        ("sample", ("model=exact", "data=moons"), "Moons has none"),
        ("evaluate", ("model=data", "data=gmm4", "against=exact"), "model=data"),
    ],
)
def test_nothing_is_left_in_outputs_either(command, capfd, name, words, said):
    check_refused(command, capfd, name, words, said, out=())
    assert not Path("outputs").exists()


@pytest.mark.slow
@pytest.mark.parametrize(
    "words",
    [
        ("coupling=ot", "objective.prediction=x"),
        ("source=hypersphere", "objective.weighting=snr"),
        ("source=truncated", "path=vp"),
        ("coupling=ot", "path=ve"),
        ("objective.prediction=x", "objective.precondition=true"),
        ("objective.prediction=score", "objective.weighting=likelihood"),
    ],
    ids=" ".join,
)
def test_neighbours_of_refusals_run(command, words, monkeypatch):
    assert command("train", *SMALL, *words, "out=run") == 0


# What only the data or a checkpoint can tell


@pytest.mark.parametrize(
    ("name", "words", "said"),
    [
        ("train", ("source=data",), "source.data"),
        ("train", ("source=data", "source.data=8gausians"), "source.data=8gausians"),
        ("train", ("source=data", "source.data=two_modes"), "source.data=two_modes"),
        ("train", ("source=data", "source.data=digits"), "source.data=digits"),
        ("train", ("source=truncated", "source.bound=-1"), "source.bound=-1"),
        ("train", ("coupling=sinkhorn", "coupling.reg=0"), "coupling.reg=0"),
        ("train", ("objective.weighting=minsnr",), "objective.weighting=minsnr"),
        ("train", ("objective.distance=l3",), "objective.distance=l3"),
        ("sample", ("model=exact", "data=moons"), "Moons has none"),
        ("evaluate", ("model=exact", "data=moons", "against=exact"), "Moons has none"),
        ("evaluate", ("model=exact", "data=gmm4", "n=1"), "n=1"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, tuple) else "",
)
def test_what_the_data_tell_is_refused(command, capfd, name, words, said):
    check_refused(command, capfd, name, words, said)


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Checkpoints of one step: coupled, of another source, with classes, score."""
    folder = tmp_path_factory.mktemp("runs")
    words = (*POINTS, "trainer.max_steps=1", "trainer.warmup=0")
    for name, more in {
        "coupled": ("data=gmm4", "coupling=ot"),
        "sphere": ("data=gmm4", "source=hypersphere"),
        "plain": (),
        "classes": ("data.conditional=true",),
    }.items():
        _trained(folder / name, *words, *more)
    return folder


@pytest.mark.parametrize(
    ("name", "run", "words", "said"),
    [
        ("sample", "coupled", ("solver=euler_maruyama",), "stochastic solver"),
        ("sample", "sphere", ("solver=euler_maruyama",), "stochastic solver"),
        ("evaluate", "coupled", (*EXACT,), "against=exact needs a normal source"),
        ("evaluate", "coupled", (*EXACT, "kind=score"), "against=exact needs a normal source"),
        ("evaluate", "sphere", (*EXACT, "kind=score"), "against=exact needs a normal source"),
        ("evaluate", "plain", (*EXACT,), "Moons has none"),
        ("sample", "plain", ("guidance=cfg",), "guidance=cfg needs a model trained with classes"),
        ("sample", "plain", ("classes=[0]",), "classes=[0]"),
        ("sample", "classes", ("classes=[2]",), "classes=[2] must lie in 0..1"),
        ("sample", "classes", ("classes=[0,-1]",), "classes=[0,-1]"),
        ("sample", "plain", ("weights=0.5",), "weights=0.5"),
    ],
)
def test_what_a_checkpoint_tells_is_refused(command, capfd, runs, name, run, words, said):
    before = sorted(runs.rglob("*"))
    more = ("n=4", "steps=2") if name == "sample" else ("n=8", "times=2")
    check_refused(command, capfd, name, (f"ckpt={runs / run / 'last.ckpt'}", *more, *words), said)
    assert sorted(path for path in runs.rglob("*") if path.is_file()) == [
        path for path in before if path.is_file()
    ]


@pytest.mark.parametrize("run", ["coupled", "sphere"])
def test_the_score_of_a_checkpoint_without_one_is_refused(runs, run):
    field, t = load(runs / run), torch.tensor(0.5)
    for seen in (field, view(field, "native", VP()), Straight(view(field, "native", VP()))):
        assert seen.predict(torch.zeros(3, 2), t, "v").isfinite().all()
        with pytest.raises(FmdiffError, match="the score needs a normal source"):
            seen.predict(torch.zeros(3, 2), t, "score")
    assert load(runs / "plain").predict(torch.zeros(3, 2), t, "score").isfinite().all()
