"""1e5 is an integer where one is asked for; 2.5 and 1e400 are not."""

import itertools

import pytest
import yaml
from conftest import PLAIN, POINTS

from fmdiff.training.trainer import Chunks


def test_whole_numbers_are_integers_everywhere(command, tmp_path):
    words = ("data.batch_size=6.4e1", "model.hidden=1.6e1", "trainer.max_steps=2e1", "seed=1e0")
    assert command("train", *PLAIN, "data=moons", *words, "out=run") == 0
    cfg = yaml.safe_load((tmp_path / "run" / "config.yaml").read_text())
    values = cfg["data"]["batch_size"], cfg["model"]["hidden"], cfg["trainer"]["max_steps"]
    assert [*values, cfg["seed"]] == [64, 16, 20, 1] and not any(
        isinstance(value, float) for value in (*values, cfg["seed"])
    )
    assert command("train", *PLAIN, "resume=run", "trainer.max_steps=3e1") == 0
    assert command("sample", "ckpt=run", "n=1e1", "steps=2e0", "out=points") == 0
    exact = ("model=exact", "data=gmm4", "n=1e1", "device=cpu")
    assert command("invert", *exact, "steps=[2e0,4]", "out=there") == 0


def test_whole_numbers_in_a_sweep_and_in_a_file(command, tmp_path):
    (tmp_path / "own" / "experiment").mkdir(parents=True)
    text = "# @package _global_\ntrainer:\n  max_steps: 2.0e+1\nmodel:\n  layers: 2.0\n"
    (tmp_path / "own" / "experiment" / "mine.yaml").write_text(text)
    words = (*PLAIN, *POINTS, "--config-dir=own", "experiment=mine")
    assert command("train", "-m", *words, "data.batch_size=3.2e1,64", "out=swept") == 0
    for job, size in (("0", 32), ("1", 64)):
        cfg = yaml.safe_load((tmp_path / "swept" / job / "config.yaml").read_text())
        assert cfg["data"]["batch_size"] == size
        assert cfg["trainer"]["max_steps"] == 20 and cfg["model"]["layers"] == 2


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (("trainer.max_steps=2.5",), "trainer.max_steps=2.5: must be an integer >= 1"),
        (("trainer.max_steps=1e400",), "trainer.max_steps=inf: must be an integer >= 1"),
        (("trainer.max_steps=1e30",), "trainer.max_steps=1e+30: must be an integer >= 1"),
        (("model.hidden=2.5",), "model.hidden=2.5: must be an integer"),
        (("model.layers=1e400",), "model.layers=inf: must be an integer"),
        (
            ("data=digits", "model=unet", "model.multipliers=[1,1.5]"),
            "model.multipliers=[1, 1.5]: must be a list of integers",
        ),
    ],
)
def test_other_numbers_are_refused(command, capfd, tmp_path, words, sentence):
    assert command("train", *PLAIN, *words, "out=run") == 2
    said = capfd.readouterr().err
    assert sentence in said and "Traceback" not in said and not list(tmp_path.iterdir())


def test_a_long_run_takes_no_list_of_its_steps():
    chunks = Chunks(30, 10**15, 25)
    assert list(itertools.islice(chunks, 3)) == [(30, 50), (50, 75), (75, 100)]
    assert len(chunks) == 1 + len(range(50, 10**15, 25))
    assert list(Chunks(0, 60, 25)) == [(0, 25), (25, 50), (50, 60)]
    assert sum(b - a for a, b in Chunks(7, 1000, 25)) == 993
