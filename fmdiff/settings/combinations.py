"""What cannot be combined, command by command: the one list, read before a run starts.

A refusal is a test of a resolved config and a sentence, in which {choices[group]} and {key.key}
are filled in. What only a checkpoint can tell is refused where it is loaded (field.need_gaussian,
field.cfg, Field.labels, exact.exact, Source.check).
"""

from collections.abc import Callable
from typing import Any, NamedTuple

from omegaconf import DictConfig

from fmdiff.build import locate
from fmdiff.errors import FmdiffError


class Refusal(NamedTuple):
    when: Callable[[Any], bool]
    says: str


def _target(cfg: Any, group: str) -> str:
    return str((cfg.get(group) or {}).get("_target_"))


def _gaussian(cfg: Any) -> bool:
    """Whether the source is standard normal and independent of x; imports only if it must."""
    source, coupling = _target(cfg, "source"), _target(cfg, "coupling")
    return (source == "fmdiff.source.Normal" or locate(source).gaussian) and (
        coupling == "fmdiff.coupling.Independent" or locate(coupling).independent
    )


def _classifies(cfg: Any) -> bool:
    return _target(cfg, "objective") == "fmdiff.objectives.classification.Classification"


def _source_out_of_reach(cfg: Any) -> bool:
    """Another source, on a path that never reaches it: alpha(0) beside beta(0) is not 0."""
    if _target(cfg, "source") == "fmdiff.source.Normal":
        return False
    import torch

    from fmdiff.custom import from_spec

    return bool(from_spec(cfg.path).r(torch.zeros((), dtype=torch.float64)) > 0.01)


TRAIN = (
    Refusal(
        lambda c: _target(c, "model").startswith("fmdiff.exact."),
        "model={choices[model]} has nothing to train: choose a network, mlp or unet",
    ),
    Refusal(
        lambda c: (
            "score" in (c.objective.get("prediction"), c.objective.get("loss"))
            and not _gaussian(c)
        ),
        "the score in objective.prediction or objective.loss needs source=normal and "
        "coupling=independent, not source={choices[source]} coupling={choices[coupling]}; "
        "choose v, x, eps or v_sh",
    ),
    Refusal(
        lambda c: c.objective.get("weighting") == "likelihood" and not _gaussian(c),
        "objective.weighting=likelihood needs source=normal and coupling=independent, not "
        "source={choices[source]} coupling={choices[coupling]}",
    ),
    Refusal(
        lambda c: bool(c.objective.get("precondition")) and c.objective.get("prediction") != "x",
        "objective.precondition=true goes with objective.prediction=x, not {objective.prediction}",
    ),
    Refusal(
        _source_out_of_reach,
        "source={choices[source]} needs a path with alpha(0) = 0, which path={choices[path]} has "
        "not; choose condot, cosine, polynomial, linear_vp or lipman",
    ),
    Refusal(
        lambda c: _classifies(c) and not c.data.get("conditional"),
        "objective=classification needs classes: data with labels and data.conditional=true",
    ),
    Refusal(
        lambda c: _classifies(c) and not _gaussian(c),
        "objective=classification needs source=normal and coupling=independent, as the guidance "
        "it serves; not source={choices[source]} coupling={choices[coupling]}",
    ),
    Refusal(
        lambda c: bool(c.data.get("augment")) and not c.model.get("augment"),
        "data.augment={data.augment} needs a network told of it by model.augment=9, which "
        "ddpmpp, unet, dit and jit networks take; model={choices[model]} is not told",
    ),
    Refusal(
        lambda c: c.trainer.get("snapshot_every") is not None and not c.trainer.get("power_ema"),
        "trainer.snapshot_every={trainer.snapshot_every} goes with trainer.power_ema=[0.05,0.1], "
        "whose snapshots those are",
    ),
)
SAMPLE = (
    Refusal(
        lambda c: c.ckpt is None and c.model is None,
        "ckpt=RUN, or model=exact with data=NAME, is needed, one of them; neither is given",
    ),
    Refusal(
        lambda c: c.ckpt is not None and c.model is not None,
        "ckpt=RUN, or model=exact with data=NAME, is needed, one of them; both are given",
    ),
    Refusal(
        lambda c: _target(c, "model").startswith("fmdiff.models."),
        "model={choices[model]} is a network, which samples only after training: give ckpt=RUN, "
        "or a model without training, exact, empirical or data",
    ),
    Refusal(
        lambda c: c.model is not None and c.data is None,
        "model={choices[model]} needs data=NAME, the data it is to describe",
    ),
    Refusal(
        lambda c: c.ckpt is not None and c.data is not None,
        "data={choices[data]} goes with model=; ckpt={ckpt} has its own",
    ),
)
EVALUATE = (
    Refusal(
        lambda c: sum(v is not None for v in (c.ckpt, c.model, c.samples, c.result)) != 1,
        "one of ckpt=RUN, model=exact with data=NAME, samples=FILE and result=FILE is needed",
    ),
    *SAMPLE[2:],
    Refusal(
        lambda c: c.samples is not None and (c.repeats > 1 or any(c.grid.values())),
        "samples={samples} are there already: repeats= and grid= go with ckpt= or model=",
    ),
    Refusal(
        lambda c: c.samples is not None and c.against in (None, "exact"),
        "samples={samples} need against=: a data set, a .npz, a folder or a statistics file",
    ),
    Refusal(
        lambda c: c.against == "exact" and c.ckpt is not None and c.path is not None,
        "path={choices[path]} goes with model=; ckpt={ckpt} is compared along its own path",
    ),
    Refusal(
        lambda c: c.against == "exact" and _target(c, "model") == "fmdiff.exact.real_data",
        "model=data has no field to evaluate: choose exact or empirical, or give ckpt=RUN",
    ),
)
REAL_DATA = (  # likelihood and invert
    *SAMPLE[:4],
    Refusal(
        lambda c: c.ckpt is not None and c.path is not None,
        "path={choices[path]} goes with model=; ckpt={ckpt} has its own",
    ),
)
REFUSALS = {
    "train": TRAIN,
    "sample": SAMPLE,
    "evaluate": EVALUATE,
    "likelihood": REAL_DATA,
    "invert": REAL_DATA,
}


def check(command: str, cfg: DictConfig) -> None:
    """Raises FmdiffError for the first refusal of a command that applies."""
    for refusal in REFUSALS.get(command, ()):
        if refusal.when(cfg):
            raise FmdiffError(refusal.says.format_map(cfg))
