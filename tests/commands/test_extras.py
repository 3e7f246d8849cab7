"""Optional packages: named before anything is made, and what TensorBoard shows of the settings."""

import importlib.util

import pytest
from conftest import PLAIN, POINTS
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.plugins.hparams.plugin_data_pb2 import HParamsPluginData

from fmdiff.settings import extras

SAMPLE = ("sample", "model=exact", "data=gmm4")
CASES = [
    (("train", "trainer.logger=wandb"), "trainer.logger=wandb needs wandb", "wandb"),
    (("train", "-m", "seed=1,2", "trainer.logger=csv,wandb"), "needs wandb", "wandb"),
    (
        ("train", "optim=schedule_free", "trainer.decay=constant"),
        "optim=schedule_free needs schedulefree",
        "schedule-free",
    ),
    (
        ("evaluate", "samples=x.npz", "against=mnist", "metrics=[fid]", "features=inception"),
        "features=inception needs torch-fidelity",
        "fid",
    ),
    (
        ("train", "-m", "hydra/launcher=submitit_slurm", "seed=1,2"),
        "hydra/launcher=submitit_slurm needs submitit",
        "slurm",
    ),
    (
        ("train", "hydra/launcher=submitit_local", "seed=1"),
        "hydra/launcher=submitit_local needs submitit",
        "slurm",
    ),
]


@pytest.mark.fault
@pytest.mark.parametrize(("words", "sentence", "extra"), CASES)
def test_a_missing_package_is_named_before_anything_is_made(
    command, capfd, tmp_path, monkeypatch, words, sentence, extra
):
    there = importlib.util.find_spec
    missing = ("wandb", "torch_fidelity", "submitit", "schedulefree")
    monkeypatch.setattr(extras, "find_spec", lambda n: None if n in missing else there(n))
    assert command(*words, "out=run") == 2
    said = capfd.readouterr().err
    assert sentence in said and f"pip install 'fmdiff[{extra}]'" in said
    assert "Traceback" not in said and not list(tmp_path.iterdir())


def test_tensorboard_has_the_settings_of_a_resumed_run(command, tmp_path):
    words = (*PLAIN, *POINTS, "trainer.logger=tensorboard", "optim.lr=0.003", "out=run")
    for steps in (20, 40):
        again = ["resume=true"] if steps == 40 else []
        assert command("train", *words, *again, f"trainer.max_steps={steps}") == 0
        events = EventAccumulator(str(tmp_path / "run" / "tensorboard")).Reload()
        content = events.SummaryMetadata("_hparams_/session_start_info").plugin_data.content
        table = HParamsPluginData.FromString(content).session_start_info.hparams
        shown = {name: getattr(value, value.WhichOneof("kind")) for name, value in table.items()}
        assert shown["optim.lr"] == 0.003 and shown["trainer.max_steps"] == 20
        assert shown["choices.data"] == "moons" and shown["trainer.ema"] == "[0.9999]"
        text = events.Tensors("settings/text_summary")[-1]
        lines = text.tensor_proto.string_val[0].decode().splitlines()
        assert f"    trainer.max_steps: {steps}" in lines and "    optim.lr: 0.003" in lines
        assert text.step == steps - 20
