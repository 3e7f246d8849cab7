"""The checkpoints of a run: their content, when they are written, and how a run resumes."""

import contextlib
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from lightning import pytorch as pl

from fmdiff.build import build, locate
from fmdiff.condition import alike, described
from fmdiff.errors import Failed, FmdiffError
from fmdiff.models.autoencoder import Latent
from fmdiff.models.network import takes
from fmdiff.objectives.flow_map import FlowMap
from fmdiff.runs import averages, checkpoint
from fmdiff.runs.config import changes_text, differences
from fmdiff.runs.content import Checkpoint, data_mean, forms
from fmdiff.runs.folder import gone, place
from fmdiff.training.module import Training
from fmdiff.training.options import TrainerOptions
from fmdiff.training.trainer import Hooks, board

log = logging.getLogger("fmdiff")

PARTS = ("model", "path", "objective", "source", "coupling", "time")
TIME = "time_frequency"
# the inputs of a network that only flow maps have, by the keyword that it is built with
MAP_INPUTS = {"second_time": "the end of a jump", "guided": "the scale of guidance"}
FITTING = ("data.shape", "data.classes")  # keys on which the weights depend, beside the model's


def spec(module: Training) -> dict[str, Any]:
    """Everything that is needed to rebuild the module, except its weights."""
    data, mean = module.data, module.objective.data_mean
    parts = {name: module.settings[name] for name in PARTS}
    parts["data"] = {
        "name": module.settings["choices"]["data"],
        "shape": list(data.shape),
        "classes": data.classes,
        "std": module.objective.data_std,
        "mean": None if mean is None else mean.tolist(),
        "source": module.settings["data"],
    }
    if data.names:
        parts["data"]["names"] = list(data.names)
    if conditions := module.objective.conditions:
        parts["data"]["conditions"] = {name: form.spec() for name, form in conditions.items()}
    if (codec := module.objective.codec) is not None:
        parts["data"]["codec"] = codec.spec()
    if files := data.fingerprint():
        parts["data"]["files"] = files
    return parts


def content(module: Training) -> dict[str, Any]:
    """The content of a checkpoint, enough to sample and to resume."""
    training = {
        "optimizer": module.optimizer.state_dict(),
        "scaler": module.scaler.state_dict(),
        "sums": module.tally.tensor(),
        "config": module.settings,
    }
    if module.batches.pairs is not None:
        training["pairs"] = module.batches.pairs.teacher
    if module.teacher is not None:
        training["teacher"] = module.teacher.about
    weights, codec = module.states(), module.objective.codec
    state = None if codec is None else codec.state_dict()
    return Checkpoint(module.step, spec(module), weights, training, state).content()


def resume(module: Training, stored: dict[str, Any], path: Path) -> None:
    """Continue from the content of the checkpoint at `path`.

    Logs a warning if the files of the data differ. Raises FmdiffError if the weights do not fit
    or the classes have other names, and for a checkpoint of weights alone.
    """
    check_conditions(module, stored["spec"], path)
    _load(module, stored, path)
    check_data(stored["spec"]["data"], spec(module)["data"])
    check_codec(module, stored)
    # as the weights were trained with them; runs of earlier versions did not centre their data
    module.objective.data_std = stored["spec"]["data"]["std"]
    module.objective.data_mean = data_mean(stored["spec"])
    module.objective.conditions = forms(stored["spec"])
    module.step = stored["step"]
    training = stored.get("training") or {}
    if lack := [name for name in ("optimizer", "sums") if name not in training]:
        raise FmdiffError(
            f"checkpoint {path} cannot be resumed, it lacks training.{lack[0]}; init= takes "
            "weights"
        )
    check_optimiser(module, training.get("config") or {}, path)
    check_progress(module, training.get("config") or {})
    module.optimizer_state = training["optimizer"]
    module.scaler_state = training.get("scaler")
    module.tally.load(training["sums"])


def check_codec(module: Training, stored: Mapping[str, Any]) -> None:
    """Raises FmdiffError if a run would go on in the latent space of another autoencoder."""
    codec = module.objective.codec
    if not isinstance(codec, Latent):
        return
    saved, now = stored.get("codec") or {}, codec.state_dict()
    if saved.keys() != now.keys() or any(
        not torch.equal(saved[name], value.cpu())
        for name, value in now.items()
        if not name.startswith("standard.")
    ):
        raise FmdiffError(
            "the autoencoder is another than when this run began, so its latents mean something "
            "else: name a checkpoint file of the old one by data.autoencoder=, or begin a new run"
        )


def check_optimiser(module: Training, saved: Mapping[str, Any], path: Path) -> None:
    """Raise FmdiffError unless a state is of the optimiser of this run. Adam's are AdamW's too.

    saved: the settings that the run had.
    """
    before, now = (
        str((config.get("optim") or {}).get("_target_", "")).rpartition(".")[2]
        for config in (saved, module.settings)
    )
    if before and before != now and not {before, now} <= {"Adam", "AdamW"}:
        raise FmdiffError(
            f"checkpoint {path}: its moments are of {before}, and this run has {now}: choose the "
            "optimiser that the run began with, or start from its weights, init="
        )


def check_progress(module: Training, saved: Mapping[str, Any]) -> None:
    """Warn if another length of the run changes what depends on its progress.

    saved: the settings that the run had.
    """
    before = (saved.get("trainer") or {}).get("max_steps")
    now = module.options.max_steps
    objective = module.objective
    if before in (None, now) or not isinstance(objective, FlowMap):
        return
    if objective.finite or objective.warmup:
        log.warning(
            "trainer.max_steps was %d and is %d: the progress p of objective.gap and warmup goes "
            "on from %.3g instead of %.3g",
            before,
            now,
            module.step / now,
            module.step / before,
        )


def check_data(saved: dict[str, Any], now: dict[str, Any]) -> None:
    """Compare the data of a run with those that it would go on with; see `resume`.

    Checkpoints of version 0.1.0 hold neither names nor a digest of files.
    """
    if "names" in saved and saved["names"] != now.get("names"):
        raise FmdiffError(
            f"this run was trained on the classes {saved['names']}, and the data now hold "
            f"{now.get('names') or 'none by name'}: give the folders their names again, as a "
            "class keeps its number"
        )
    if "files" in saved and saved["files"] != now.get("files"):
        before, after = (dict(part.get("files") or {}).get("count", 0) for part in (saved, now))
        log.warning(
            "the files of the data are others than when this run began: %s then, %s now; names "
            "or sizes differ, and what was held out may be trained on",
            before,
            after,
        )


def init(module: Training, stored: dict[str, Any], path: Path) -> None:
    """Start from the weights and the averages in the content of the checkpoint at `path`.

    A velocity network becomes a flow map: the weights that only a map has keep their start, at
    which they have no effect. A map becomes a velocity network: they are left out. Logs which, and
    a warning if time means another noise level than before. Raises FmdiffError if the weights do
    not fit this network, or predict another quantity than its objective.
    """
    check_meaning(module, stored["spec"], path)
    check_conditions(module, stored["spec"], path)
    weights = Checkpoint.of(stored, path).weights
    own, held = module.net.state_dict(), next(iter(weights.values())).keys()
    for keyword, what in MAP_INPUTS.items() if held != own.keys() else ():
        names = only_in_maps(module, keyword)
        if names and names <= own.keys() - held:
            weights = {k: state | {n: own[n] for n in names} for k, state in weights.items()}
            log.info("init=%s: its network learns %s, which it did not know", path, what)
        elif names and names <= held - own.keys():
            weights = {
                k: {n: value for n, value in state.items() if n not in names}
                for k, state in weights.items()
            }
            log.info("init=%s: what its network knows of %s is left out", path, what)
    _load(module, {**stored, "weights": weights}, path)


def check_meaning(module: Training, saved: Mapping[str, Any], path: Path) -> None:
    """Compare what weights predict, and along which path, with the settings of a run.

    saved: the spec of the checkpoint at `path`. See `init`.
    """
    parts = [{"precondition": False, **s["objective"]} for s in (saved, module.settings)]
    for key in ("prediction", "precondition"):
        before, now = (part.get(key) for part in parts)
        if before != now and None not in (before, now):  # an objective of one's own may lack it
            raise FmdiffError(
                f"checkpoint {path}: its weights are of objective.{key}={_word(before)}, and here "
                f"it is {_word(now)}; say objective.{key}={_word(before)}"
            )
    paths = [{"path": {"shift": 1.0, **s["path"]}} for s in (saved, module.settings)]
    changes = differences(*paths)
    if changes and not module.objective.precondition:
        log.warning(
            "init=%s: a time is another noise level along this path than along its own (%s), so "
            "its weights are far off at first",
            path,
            changes_text(changes),
        )


def check_conditions(module: Training, saved: Mapping[str, Any], path: Path) -> None:
    """Raise FmdiffError unless weights know the conditions of a run, by name, shape and levels.

    saved: the spec of the checkpoint at `path`. Their means and spreads are those of the weights.
    """
    before, now = forms(saved), module.objective.conditions
    if not alike(before, now):
        raise FmdiffError(
            f"checkpoint {path}: its weights are of {described(before)}, and the data of this run "
            f"have {described(now)}: choose data of the same ones"
        )


def only_in_maps(module: Training, keyword: str) -> set[str]:
    """The names of the weights that the network has if it is built with a keyword of flow maps."""
    spec, data = module.settings["model"], module.data
    if not takes(locate(spec["_target_"]), keyword):
        return set()
    context: dict[str, Any] = {"shape": data.shape, "classes": data.classes}
    with torch.device("meta"), torch.random.fork_rng(devices=[]):
        plain, larger = (
            build(spec, **keys).state_dict() for keys in (context, context | {keyword: True})
        )
    names: set[str] = larger.keys() - plain.keys()
    return names


def _load(module: Training, stored: dict[str, Any], path: Path) -> None:
    """Load the weights and the averages. Raises FmdiffError if they do not fit."""
    weights = Checkpoint.of(stored, path).weights
    saved, now = (m.get(TIME) for m in (stored["spec"]["model"], module.settings["model"]))
    if saved != now:  # shapes do not tell
        raise FmdiffError(
            f"checkpoint {path}: its weights do not fit: model.{TIME} is {_word(saved)} in it "
            f"and {_word(now)} here; say model.{TIME}={_word(saved)}"
        )
    if "mean" not in stored["spec"]["data"]:
        module.objective.data_mean = None  # the weights were trained on data that kept their mean
    raw = weights.get("raw") or next(iter(weights.values()))  # an exported file has one
    try:
        module.net.load_state_dict(raw)
        for name, average in zip(module.averages.names, module.averages, strict=True):
            average.load_state_dict(weights.get(name, raw))
    except RuntimeError as error:
        reason = _misfit(module, stored) or " ".join(str(error).split())[:300]
        choice = module.settings["choices"]["model"]
        raise FmdiffError(
            f"checkpoint {path}: its weights do not fit model={choice}: {reason}"
        ) from error


def _word(value: Any) -> str:
    return "null" if value is None else str(value)


def _misfit(module: Training, stored: dict[str, Any]) -> str:
    """Describe how a checkpoint differs in settings on which the shapes of weights depend."""
    changes = differences(stored["spec"], spec(module))
    model = ["model._target_"]
    if model[0] not in changes:
        model = [key for key in changes if key.startswith("model.")]
    return changes_text({key: changes[key] for key in (*model, *FITTING) if key in changes})


class Checkpoints(Hooks):
    """Writes {step:07d}.ckpt at intervals and at the end, and last.ckpt. Keeps `keep` of them.

    Snapshots of power averages go to averages/ and are all kept: see `fmdiff.runs.averages`. If
    writing fails (a full disk), it warns and tries again next time; at the end it is an error.
    It raises Failed if the folder is gone.
    """

    def __init__(self, folder: Path, options: TrainerOptions) -> None:
        self.folder, self.every, self.keep = folder, options.checkpoint_every, options.keep
        self.place = place(folder)
        self.snapshot_every = options.snapshot_every or options.checkpoint_every
        self.last = options.max_steps
        self.newest = -1

    def start(self, trainer: pl.Trainer, module: Training) -> None:
        self.before = module.step
        if trainer.is_global_zero:
            averages.forget(self.folder, after=module.step)

    def after_batch(self, trainer: pl.Trainer, module: Training) -> None:
        last = module.step == self.last
        due = module.step // self.snapshot_every > self.before // self.snapshot_every
        self.before = module.step
        try:
            if (due or last) and module.averages.widths and trainer.is_global_zero:
                averages.save(self.folder, module.step, module.averages)
            if module.step % self.every == 0 and not last:
                self.save(trainer, module)
        except OSError as error:
            self.check_folder()
            log.warning("step %d was not saved, the last one is kept: %s", module.step, error)

    def finish(self, trainer: pl.Trainer, module: Training) -> None:
        self.save(trainer, module)

    def save(self, trainer: pl.Trainer, module: Training) -> None:
        """Write the checkpoint of this step, unless it exists. Raises OSError."""
        if self.newest == module.step or not trainer.is_global_zero:
            return
        self.check_folder()
        writer = board(trainer)
        if writer is not None:  # so the process cannot lose events of earlier steps
            with contextlib.suppress(OSError):  # its thread may have died of a full disk
                writer.flush()
        path = self.folder / checkpoint.name(module.step)
        checkpoint.write(path, content(module))
        checkpoint.link_last(path)
        self.newest = module.step
        numbered = sorted(self.folder.glob("[0-9]" * 7 + ".ckpt"))
        for old in numbered[: -self.keep] if self.keep else []:
            old.unlink(missing_ok=True)

    def check_folder(self) -> None:
        """Raise Failed if the folder was deleted or moved while training."""
        if place(self.folder) != self.place:
            raise Failed(gone(self.folder))
