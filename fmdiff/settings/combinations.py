"""The list of settings that cannot be combined, command by command, checked before a run starts.

A refusal is a test of a resolved config and a sentence, in which {choices[group]} and {key.key}
are filled in. Refusals that depend on a checkpoint are made where it is loaded
(field.need_gaussian, field.cfg, Field.labels, exact.exact, Source.check).
"""

from collections.abc import Callable
from typing import Any, NamedTuple

from omegaconf import DictConfig

from fmdiff.build import kind
from fmdiff.errors import FmdiffError


class Refusal(NamedTuple):
    """A combination that is refused, and the sentence that explains it."""

    when: Callable[[Any], bool]
    says: str


# The class of a choice tells its kind. Classes are imported late: importing torch takes a second,
# and only a job that passes all other checks should pay for it.


def kind_of(cfg: Any, group: str) -> type:
    """The class of the choice of a group; NoneType if nothing is chosen.

    Raises FmdiffError for a choice without a class, or with one that cannot be imported.
    """
    choice = cfg.get(group)
    if choice is None:
        return type(None)
    if not isinstance(choice, DictConfig) or choice.get("_target_") is None:
        raise FmdiffError(f"{group}: the chosen YAML names no class, as _target_: package.Class")
    return kind(choice._target_)


def _samples_alone(cfg: Any) -> bool:
    """Whether the model is already a field, with nothing to train."""
    from fmdiff.field import Field

    return issubclass(kind_of(cfg, "model"), Field)


def _network(cfg: Any) -> bool:
    """Whether the model is a network, which must be trained before it can sample."""
    from torch import nn

    return issubclass(kind_of(cfg, "model"), nn.Module)


def _real_data(cfg: Any) -> bool:
    from fmdiff.exact import RealData

    return issubclass(kind_of(cfg, "model"), RealData)


def _normal(cfg: Any) -> bool:
    """Whether the source is standard normal."""
    from fmdiff.source import Source

    source = kind_of(cfg, "source")
    return issubclass(source, Source) and source.gaussian


def _gaussian(cfg: Any) -> bool:
    """Whether the source is standard normal and independent of x."""
    from fmdiff.coupling import Coupling

    coupling = kind_of(cfg, "coupling")
    return _normal(cfg) and issubclass(coupling, Coupling) and coupling.independent


def _reflows(cfg: Any) -> bool:
    """Whether the pairs come from a teacher."""
    from fmdiff.coupling import Reflow

    return issubclass(kind_of(cfg, "coupling"), Reflow)


def _schedule_free(cfg: Any) -> bool:
    from fmdiff.optim import ScheduleFree

    return issubclass(kind_of(cfg, "optim"), ScheduleFree)


def _classifies(cfg: Any) -> bool:
    from fmdiff.objectives.objective import Objective

    objective = kind_of(cfg, "objective")
    return issubclass(objective, Objective) and objective.logits


def _conditions(cfg: Any) -> bool:
    """Whether the data may have conditions besides the label: their class defines some."""
    from fmdiff.data.base import Data

    data = kind_of(cfg, "data")
    return issubclass(data, Data) and data.conditions is not Data.conditions


def _autoencodes(cfg: Any) -> bool:
    from fmdiff.objectives.objective import Objective

    objective = kind_of(cfg, "objective")
    return issubclass(objective, Objective) and objective.autoencodes


def _source_out_of_reach(cfg: Any) -> bool:
    """Whether the path never reaches a source that is not normal: alpha(0) / beta(0) is not 0."""
    if _normal(cfg):
        return False
    import torch

    from fmdiff.custom import from_spec

    return bool(from_spec(cfg.path).r(torch.zeros((), dtype=torch.float64)) > 0.01)


TRAIN = (
    Refusal(
        _samples_alone,
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
        lambda c: _autoencodes(c) and not _gaussian(c),
        "objective=autoencoder takes its noise from source=normal and coupling=independent, not "
        "source={choices[source]} coupling={choices[coupling]}",
    ),
    Refusal(
        lambda c: bool(c.data.get("augment")) and not c.model.get("augment"),
        "data.augment={data.augment} needs a network told of it by model.augment=9, which "
        "ddpmpp, unet, dit and jit networks take; model={choices[model]} is not told",
    ),
    Refusal(
        lambda c: (
            c.trainer.get("precision") == "tf32"
            and c.objective.get("derivative") == "difference"
            and c.objective.get("target") != "semigroup"
            and str(c.objective.get("gap")) in ("0", "0.0")
        ),
        "objective.derivative=difference needs more digits than trainer.precision=tf32 leaves: "
        "choose derivative=forward, or fp32, bf16 or fp16, in which the target has all digits",
    ),
    Refusal(
        lambda c: (
            bool(c.objective.get("guidance"))
            and not (c.data.get("conditional") and c.trainer.get("label_dropout"))
            and not (_conditions(c) and c.trainer.get("condition_dropout"))
        ),
        "objective.guidance={objective.guidance} needs classes, and samples without label: data "
        "with labels, data.conditional=true and trainer.label_dropout=0.1",
    ),
    Refusal(
        lambda c: c.trainer.get("snapshot_every") is not None and not c.trainer.get("power_ema"),
        "trainer.snapshot_every={trainer.snapshot_every} goes with trainer.power_ema=[0.05,0.1], "
        "whose snapshots those are",
    ),
    Refusal(
        lambda c: _schedule_free(c) and c.trainer.get("decay") != "constant",
        "optim={choices[optim]} averages in place of a falling learning rate: say "
        "trainer.decay=constant",
    ),
    Refusal(
        lambda c: (
            bool(c.trainer.get("power_ema"))
            and (c.trainer.snapshot_every or c.trainer.checkpoint_every) % c.trainer.ema_every > 0
        ),
        "trainer.ema_every={trainer.ema_every} must divide trainer.snapshot_every and "
        "checkpoint_every, as snapshots of trainer.power_ema hold averages of their step",
    ),
    Refusal(
        lambda c: _reflows(c) and c.coupling.ckpt is None,
        "coupling={choices[coupling]} needs coupling.ckpt=RUN, the model whose ODE makes pairs",
    ),
    Refusal(
        lambda c: _reflows(c) and bool(c.data.get("augment")),
        "data.augment={data.augment} changes images, and coupling={choices[coupling]} trains on "
        "pairs of a teacher in their place: set data.augment=0",
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
        _network,
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
        lambda c: (
            c.samples is not None and (c.against == "exact" or (c.against or c.data) is None)
        ),
        "samples={samples} need against=: a data set, a .npz, a folder or a statistics file; or "
        "data=NAME, with keys of its own",
    ),
    Refusal(
        lambda c: c.samples is not None and c.against is not None and c.data is not None,
        "samples={samples} are compared with against={against} or with data={choices[data]}: "
        "give one of them",
    ),
    Refusal(
        lambda c: c.against == "exact" and c.ckpt is not None and c.path is not None,
        "path={choices[path]} goes with model=; ckpt={ckpt} is compared along its own path",
    ),
    Refusal(
        lambda c: c.against == "exact" and _real_data(c),
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
PAGE = (
    Refusal(
        lambda c: sum(v is not None for v in (c.ckpt, c.model, c.system)) > 1,
        "a page is of ckpt=RUN, model=exact with data=NAME, or system=NAME: give one of them",
    ),
    *SAMPLE[2:],
    *REAL_DATA[4:],
    Refusal(_real_data, "model=data has no field to show: choose exact or empirical"),
    Refusal(
        lambda c: c.data is not None and c.model is None,
        "data={choices[data]} needs model=exact or model=empirical, the field of it to show",
    ),
)
REFUSALS = {
    "page": PAGE,
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
