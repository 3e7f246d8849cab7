"""Loads a field from a checkpoint, or builds it from data; needs torch alone."""

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from fmdiff.build import CONTRACTS, build, locate, vouch
from fmdiff.classifier import Classifier
from fmdiff.codec import Codec, frozen
from fmdiff.condition import alike, described
from fmdiff.custom import from_spec
from fmdiff.errors import FmdiffError, class_number
from fmdiff.field import Field, NetField
from fmdiff.guidance import Unguided
from fmdiff.models.autoencoder import Latent
from fmdiff.models.diffusers_vae import VAE, DiffusersVAE, renamed
from fmdiff.runs import averages, checkpoint, vae_folder, zoo
from fmdiff.runs.bounded import bounded
from fmdiff.runs.content import Checkpoint, data_mean, forms, identity
from fmdiff.runs.find import find
from fmdiff.times import Discrete

log = logging.getLogger("fmdiff")

Model = NetField | Classifier | Latent  # what a checkpoint may hold
# defaults for checkpoints that were written before these parts could be chosen
USUAL = {"source": "fmdiff.source.Normal", "coupling": "fmdiff.coupling.Independent"}


def load(ckpt: str | Path, weights: str | float = "ema", trust: tuple[str, ...] = ()) -> NetField:
    """The field that a checkpoint holds.

    ckpt: a checkpoint or exported file, a run folder (its newest good checkpoint), `last` (the
    newest run under outputs/) or `zoo:NAME` (see `fmdiff.runs.zoo`). weights: `ema` (the first
    average), `raw`, the decay of one of the averages, or `power:WIDTH`. An average that is not
    stored is reconstructed from snapshots (see `fmdiff.runs.averages`). trust: prefixes of module
    names. The classes that the checkpoint names may come from these modules, from fmdiff and from
    torch.optim.

    The network is on the CPU, in evaluation mode and without gradients. Raises FmdiffError if the
    checkpoint is missing, damaged, a classifier's or not fmdiff's, if it lacks the weights, and if
    it names a class that is not trusted.
    """
    file = find(ckpt)
    content = Checkpoint.of(checkpoint.read(file), file)
    return _sampling(restore(content, weights, trust, file.parent), content.title)


def load_classifier(
    ckpt: str | Path, weights: str | float = "ema", trust: tuple[str, ...] = ()
) -> Classifier:
    """The classifier that a checkpoint of objective=classification holds; see `load`.

    Raises FmdiffError as `load` does, and for a checkpoint of a model that samples.
    """
    file = find(ckpt)
    model = restore(Checkpoint.of(checkpoint.read(file), file), weights, trust, file.parent)
    if not isinstance(model, Classifier):
        raise FmdiffError(
            f"guidance.ckpt={ckpt} holds no classifier, and one is needed: "
            "train one with objective=classification"
        )
    return model


LEADERS: dict[str, Any] = {"guide": load, "classifier": load_classifier}
NEEDS = {
    "guide": "guidance=autoguidance needs guidance.ckpt=RUN, the model to guide",
    "classifier": "guidance=classifier needs guidance.ckpt=RUN, a run of objective=classification",
}


def guidance(spec: Mapping[str, Any], trust: tuple[str, ...] | None = None) -> Unguided:
    """The guidance that a YAML describes; its guiding model is loaded from its `ckpt`.

    Raises FmdiffError if a guiding model is needed and not named, and as `load` does.
    """
    kind = locate(spec["_target_"], trust)
    leader = kind.leader if isinstance(kind, type) and issubclass(kind, Unguided) else None
    if leader is None:
        return build(spec, trust=trust)
    keys = {name: spec[name] for name in spec.keys() - {"ckpt", "weights", "trust"}}
    ckpt = spec.get("ckpt")
    if ckpt is None:
        raise FmdiffError(NEEDS[leader])
    model = LEADERS[leader](ckpt, spec.get("weights", "ema"), tuple(spec.get("trust") or ()))
    return build(keys, trust=trust, **{leader: model}, origin=f"guidance.ckpt={ckpt}")


def load_codec(
    ckpt: str | Path,
    weights: str | float = "ema",
    trust: tuple[str, ...] = (),
    option: str = "ckpt",
    shape: tuple[int, ...] = (),
) -> Latent:
    """The autoencoder that a checkpoint of objective=autoencoder holds; see `load`.

    ckpt: as there, or diffusers:FOLDER with an AutoencoderKL, built for samples of `shape`.
    option: the setting that names it, for messages. Raises FmdiffError as `load` and
    `vae_folder.read` do, and for a checkpoint of another objective.
    """
    if str(ckpt).startswith(vae_folder.PREFIX):
        return _diffusers(str(ckpt), option, shape)
    file = find(ckpt, option=option)
    model = restore(Checkpoint.of(checkpoint.read(file), file), weights, trust, file.parent)
    if not isinstance(model, Latent):
        raise FmdiffError(
            f"{option}={ckpt} holds no autoencoder: train one with objective=autoencoder "
            "model=autoencoder"
        )
    return model


def latent_axes(ckpt: str, weights: str | float = "ema", trust: tuple[str, ...] = ()) -> int:
    """How many axes the latents of an autoencoder have; see `load_codec`, also for its errors."""
    if ckpt.startswith(vae_folder.PREFIX):
        return 3  # those of images
    return len(load_codec(ckpt, weights, trust).latent)


def _diffusers(ckpt: str, option: str, shape: tuple[int, ...]) -> Latent:
    """The AutoencoderKL in a folder of the diffusers library."""
    folder, title = Path(ckpt.removeprefix(vae_folder.PREFIX)).expanduser(), f"{option}={ckpt}"
    config, weights = vae_folder.read(folder, option)
    spec: dict[str, Any] = {"_target_": VAE, "shape": list(shape), "config": config}
    state = renamed(weights)
    try:
        with bounded(spec, state, title):
            codec: DiffusersVAE = build(spec, trust=())
        codec.load_state_dict(state | codec.standard.state_dict(prefix="standard."))
    except (FmdiffError, MemoryError):
        raise
    except Exception as error:  # a forged config raises many kinds of exception
        reason = " ".join(f"{type(error).__name__}: {error}".split())
        raise FmdiffError(f"{title} is no AutoencoderKL: {reason:.300}") from error
    codec.sha256 = identity(codec.spec(), state)
    frozen(codec)
    return codec


class Encodes(FmdiffError):
    """A checkpoint holds an autoencoder, where a model that samples is needed."""

    data: Any = None  # the data set, as a user knows it
    about: dict[str, Any]  # as in `Subject`

    def __init__(self, title: str, codec: Latent) -> None:
        self.codec = codec
        super().__init__(
            f"{title} holds an autoencoder, which cannot be sampled; train a model in its latent "
            "space with data=latent data.autoencoder=RUN"
        )


def _sampling(model: Model, title: str) -> NetField:
    if isinstance(model, Latent):
        raise Encodes(title, model)
    if isinstance(model, Classifier):
        raise FmdiffError(
            f"{title} holds a classifier, which cannot be sampled; it leads another model "
            "by guidance=classifier guidance.ckpt=RUN"
        )
    return model


def restore(
    content: Checkpoint,
    weights: str | float = "ema",
    trust: tuple[str, ...] = (),
    run: Path | None = None,
) -> Model:
    """The model that the content of a checkpoint describes.

    run: the folder of the checkpoint, which holds the snapshots of its power averages. Raises
    FmdiffError as `load` does.
    """
    spec, state = content.spec, averages.weights_of(content, weights, run)
    shape, classes = tuple(spec["data"]["shape"]), spec["data"]["classes"]
    try:
        parts = {name: spec.get(name, {"_target_": usual}) for name, usual in USUAL.items()}
        parts |= {name: spec[name] for name in ("model", "path", "objective")}
        vouch(parts, trust, content.title)
        source, coupling = (build(parts[name], trust=trust) for name in USUAL)
        objective = build(
            spec["objective"],
            trust=trust,
            path=from_spec(spec["path"], trust),
            data_std=spec["data"]["std"],
            source=source,
            coupled=not coupling.independent,
        )
        objective.conditions = forms(spec, content.title)
        context = {"shape": shape, "classes": classes, **objective.inputs}
        with bounded(spec["model"], state, content.title):
            net = build(spec["model"], trust=trust, **context)
        net.load_state_dict(state)
        objective.data_mean = data_mean(spec, content.title)
        objective.codec = decoder(content, trust)
        field = objective.field(net.eval().requires_grad_(False), shape, classes)
        field.names = tuple(str(name) for name in spec["data"].get("names") or ())
        only = spec["data"]["source"].get("only") or ()
        field.only = tuple(class_number(label, field.names, "data.only") for label in only)
        field.sha256 = identity(spec, state)
        field.atoms = _atoms(content, objective)
    except (FmdiffError, MemoryError, torch.OutOfMemoryError):
        raise
    except Exception as error:  # a forged checkpoint raises many kinds of exception
        reason = " ".join(f"{type(error).__name__}: {error}".split())
        raise FmdiffError(
            f"the model of {content.title} cannot be built of it: {reason:.300}"
        ) from error
    return field


def decoder(content: Checkpoint, trust: tuple[str, ...] = ()) -> Codec | None:
    """The codec that a checkpoint carries, frozen, or None. Raises FmdiffError as `load` does."""
    spec = content.spec["data"].get("codec")
    if spec is None:
        return None
    if not isinstance(spec, Mapping) or content.codec is None:
        raise FmdiffError(f"{content.title} lacks the codec of its samples")
    vouch({"codec": spec}, trust, content.title)
    with bounded(spec, content.codec, content.title):
        codec: Codec = build(spec, trust=trust, base=Codec)
    codec.load_state_dict(content.codec)
    return frozen(codec)


class Teacher(NamedTuple):
    """The field that `objective.teacher=` names, and what a checkpoint keeps of it."""

    field: NetField
    about: dict[str, Any]  # file and sha256


def teacher(ckpt: str | Path, spec: Mapping[str, Any], trust: tuple[str, ...] = ()) -> Teacher:
    """The field of the run that teaches another one, with its first average as weights.

    spec: describes the run that is taught, as its checkpoints do. Raises FmdiffError as `load`
    does, and for a teacher whose data have another shape, other classes or conditions, or whose
    flow is another because its source or its coupling is.
    """
    option = f"objective.teacher={ckpt}"
    file = find(ckpt, option="objective.teacher")
    content = Checkpoint.of(checkpoint.read(file), file)
    field = restore(content, "ema", trust, file.parent)
    if not isinstance(field, NetField):
        kind = "a classifier" if isinstance(field, Classifier) else "an autoencoder"
        raise FmdiffError(f"{option} holds {kind}, and a teacher is a model that samples")
    ours, theirs = spec["data"], content.spec["data"]
    if (theirs["shape"], theirs["classes"]) != (ours["shape"], ours["classes"]):
        raise FmdiffError(
            f"{option} is a model of shape {theirs['shape']} with {theirs['classes']} classes; "
            f"the data of this run have shape {ours['shape']} and {ours['classes']} classes"
        )
    known, needed = (forms(part, content.title) for part in (content.spec, spec))
    if not alike(known, needed):
        raise FmdiffError(
            f"{option} is a model of {described(known)}, and the data of this run have "
            f"{described(needed)}"
        )
    names = theirs.get("names"), ours.get("names")
    if None not in names and names[0] != names[1]:
        raise FmdiffError(f"{option} has the classes {names[0]}, and this run has {names[1]}")
    for name, usual in USUAL.items():
        here, there = (part.get(name, {"_target_": usual}) for part in (spec, content.spec))
        if here != there:
            raise FmdiffError(
                f"{option} has another flow than this run: its {name} is {_listed(there)}, and "
                f"here it is {_listed(here)}; say {name}= as its run does"
            )
    return Teacher(field, {"file": str(file.absolute()), "sha256": field.sha256})


def _listed(spec: Mapping[str, Any]) -> str:
    """A part of a spec in words."""
    return " ".join(f"{name}={value}" for name, value in spec.items())


def _atoms(content: Checkpoint, objective: Any) -> Tensor | None:
    """The straight times of a model that was trained at finitely many, else None.

    Checkpoints of the first versions have their time law among the settings of training alone.
    """
    config = (content.training or {}).get("config") or {}
    law = content.spec.get("time") or config.get("time") or {}
    if law.get("_target_") != "fmdiff.times.Discrete":
        return None
    times = Discrete(steps=law["steps"], stratified=False).atoms
    atoms: Tensor = objective.path.r(objective.time(times))
    return atoms


class Subject(NamedTuple):
    """The field that a command works on, with what is known about it."""

    field: Field
    data: Any  # the data set that the field stands for, or None
    about: dict[str, Any] | None  # the checkpoint's path, step, weights, average and sha256


def subject(settings: dict[str, Any], data: bool = False) -> Subject:
    """The field named by `ckpt=`, or by `model=` and `data=`, and the data it stands for.

    data: whether the data of a checkpoint are needed. Sampling does not need them: pictures other
    than those of images show them if their file is there. Raises FmdiffError if the checkpoint,
    the model or the data cannot be loaded.
    """
    if settings["ckpt"]:
        file = find(settings["ckpt"])
        content = Checkpoint.of(checkpoint.read(file), file)
        trust, weights = tuple(settings["trust"]), settings["weights"]
        model = restore(content, weights, trust, file.parent)
        about = {"path": zoo.spelling(file), "step": content.step, "weights": weights}
        about |= {"average": content.name_of(weights), "sha256": model.sha256}
        try:
            field = _sampling(model, content.title)
        except Encodes as error:
            error.about = about
            error.data = _data(content, trust, error.codec.outer, data) if data else None
            raise
        needed = data or field.kind != "images"
        source = _data(content, trust, field.outer, data) if needed else None
        return Subject(field, source, about)
    source = build(settings["data"], base=locate(CONTRACTS["fmdiff.data"]))
    source.prepare()
    path = from_spec(settings["path"] or {"_target_": "fmdiff.path.CondOT"})
    field = build(settings["model"], source, path)
    field.names = tuple(source.names)
    return Subject(field, source, None)


def _data(
    content: Checkpoint, trust: tuple[str, ...], outer: tuple[int, ...], needed: bool
) -> Any:
    """The data set that a checkpoint names, as a user knows it. outer: the shape of a sample.

    It is None if its file cannot be read and it is not `needed`. Raises FmdiffError for points of
    another shape.
    """
    about = content.spec["data"]
    vouch({"data": about["source"]}, trust, content.title)
    source: Any = build(about["source"], trust=trust, base=locate(CONTRACTS["fmdiff.data"]))
    user = source.user
    try:
        if user.axes == 3:  # images of a folder that is gone have no shape, and need none here
            shape = outer if len(outer) == 3 else ()
        else:
            shape = tuple(user.shape) if user.codec is None else user.codec.outer
    except FmdiffError as error:
        if needed:
            raise
        log.warning("the data are not shown beside the samples: %s", error)
        return None
    if shape != outer:
        raise FmdiffError(
            f"{content.title} is of samples of shape {list(outer)}, and its data are others"
        )
    return user
