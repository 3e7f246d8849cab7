"""Builds the module that is trained from settings."""

import math
from collections.abc import Mapping
from typing import Any

import torch
from omegaconf import DictConfig, OmegaConf
from torch import Tensor, nn

from fmdiff.build import build, locate
from fmdiff.coupling import Coupling, Reflow
from fmdiff.custom import from_spec
from fmdiff.data.base import Data
from fmdiff.errors import FmdiffError
from fmdiff.machine import device, precision, processes
from fmdiff.metrics.features import Classifier, for_data
from fmdiff.models.autoencoder import Latent
from fmdiff.models.network import Network, answers_logits, takes
from fmdiff.objectives.autoencoding import Autoencoding
from fmdiff.objectives.objective import Objective
from fmdiff.randomness import key
from fmdiff.runs.bounded import bounded
from fmdiff.runs.content import TITLE
from fmdiff.training import reflow
from fmdiff.training.batches import Batches
from fmdiff.training.module import Training
from fmdiff.training.options import TrainerOptions
from fmdiff.training.teacher import teach


def assemble(
    cfg: DictConfig,
    state: Mapping[str, Tensor] | None = None,
    title: str = TITLE,
    before: Mapping[str, Any] | None = None,
) -> tuple[Training, torch.device]:
    """Build the module that cfg describes, and choose its device. Fills in cfg.threads.

    state, title: the weights of the checkpoint that is resumed and its name in messages; see
    `bounded`. before: its training part, for `teach` and coupling=reflow.
    Raises FmdiffError for settings that do not go together.
    """
    settings: dict[str, Any] = OmegaConf.to_container(cfg)  # type: ignore[assignment]
    options = TrainerOptions(**settings["trainer"])
    where = place(settings["device"], options)
    data = ready_data(cfg, settings, options)
    path, coupling = from_spec(settings["path"]), build(settings["coupling"])
    coupling.check(data.batch_size // max(1, data.classes), data.shape, device.memory())
    source = build(settings["source"])
    source.check(data.shape)
    source.prepare()
    run = {"path": path, "source": source, "coupled": not coupling.independent}
    objective = objective_of(settings["objective"], data, where, run)
    torch.manual_seed(key(settings["seed"], "init"))
    context = {"shape": data.shape, "classes": data.classes, **objective.inputs}
    check_conditions(settings, objective, coupling)
    check_inputs(settings, objective)
    with bounded(settings["model"], state, title):
        net = build(settings["model"], **context)
    check_network(settings, net)
    check_pair(settings, net, objective)
    if where.type == "cpu":
        cfg.threads = settings["threads"] = settings["threads"] or threads(net, data, options)
        torch.set_num_threads(settings["threads"])
    pairs = None
    if isinstance(coupling, Reflow):
        former = (before or {}).get("pairs")
        parts = reflow.parts(settings, coupling, data, source, where, former)
        pairs = None if settings["plan"] else reflow.pairs(*parts)
    batches = Batches(
        data,
        objective,
        build(settings["time"], path=path),
        coupling,
        settings["seed"],
        (options.label_dropout, options.condition_dropout) if objective.samples else (0.0, 0.0),
        options.accumulate,
        options.max_steps,
        pairs,
    )
    module = Training(settings, options, net, objective, batches)
    teach(module, where, before)
    return module, where


def objective_of(
    spec: dict[str, Any], data: Data, where: torch.device, run: dict[str, Any]
) -> Objective:
    """The objective that a YAML describes, with what it knows of the data. run: other arguments.

    Raises FmdiffError for data without spread, and as `give_maps` does.
    """
    objective = build(spec, base=Objective, data_std=spread(data), **run)
    objective.data_mean, objective.classes = data.centre, data.classes
    objective.conditions, objective.codec = data.conditions, data.codec
    give_maps(objective, data, where)
    return objective


def give_maps(objective: Objective, data: Data, where: torch.device) -> None:
    """Give a perceptual loss the maps of a classifier of the package.

    It is the one that the objective names, or else the one for the data's metrics. Raises
    FmdiffError for data that none of them takes.
    """
    if not (isinstance(objective, Autoencoding) and objective.perceptual_weight):
        return
    choice = objective.features or for_data(data.name, data.shape)
    if choice is None or len(data.shape) != 3:
        raise FmdiffError(
            "objective.perceptual_weight needs images of 1 or 3 channels, as its features are of "
            f"such, and the data has shape {list(data.shape)}"
        )
    objective.maps = Classifier(choice).for_shape(data.shape).to(where).maps


def place(name: str, options: TrainerOptions) -> torch.device:
    """The device that `device=` names. This process joins the group that trains there.

    Raises FmdiffError if the machine has too few devices, or if they lack units for the options.
    """
    where = device.pick(name)
    device.enough(where, options.devices, "trainer.devices")
    processes.join(where)
    precision.precise(options.precision, where, "trainer.")
    precision.compiles(options.compile, where, "trainer.")
    return where


def threads(net: nn.Module, data: Data, options: TrainerOptions) -> int:
    """The number of threads for each process that trains a network on the CPU."""
    parameters = sum(p.numel() for p in net.parameters())
    rule = device.threads(parameters, data.batch_size, data.shape) // options.devices
    return max(1, rule)


def ready_data(cfg: DictConfig, settings: dict[str, Any], options: TrainerOptions) -> Data:
    """The data, once their files are there.

    Fills in cfg.data.stream: whether they are read ahead, as that decides their order. Raises
    FmdiffError if the machines of a run would decide differently.
    """
    data: Data = build(settings["data"], base=Data)
    check_sizes(data, options)
    with processes.after_rank_0():
        data.prepare()
    if "stream" in settings["data"]:
        stream = data.shards is not None
        if processes.differ(stream):
            raise FmdiffError(
                "data.stream=null: the data fit into the memory of some machines of this run and "
                "not into that of others; choose data.stream=true"
            )
        cfg.data.stream = settings["data"]["stream"] = stream
    return data


def check_sizes(data: Data, options: TrainerOptions) -> None:
    """Raise FmdiffError unless batches divide among devices, and intervals into batches."""
    ranks = max(processes.world(), options.devices)  # this machine's may not be started yet
    if data.batch_size % (ranks * options.accumulate):
        raise FmdiffError(
            f"data.batch_size={data.batch_size} must be a multiple of trainer.devices x "
            f"trainer.accumulate = {ranks * options.accumulate}"
        )
    options.steps_per_batch(points=len(data.shape) == 1)


def spread(data: Data) -> float:
    """The standard deviation of the data. Raises FmdiffError if they have none."""
    std = float(data.std)
    if not 0 < std < math.inf:
        raise FmdiffError(
            f"data: the standard deviation of {type(data).__name__} is {std:g}, and a positive "
            "number is needed; samples that are all equal cannot be learnt"
        )
    return std


def check_network(settings: dict[str, Any], net: Any) -> None:
    """Raise FmdiffError unless `model=` names a network with a `forward`."""
    fault = None
    if not isinstance(net, nn.Module):
        fault = "is no torch.nn.Module"
    elif type(net).forward in (nn.Module.forward, Network.forward):
        fault = "has no forward(x_t, t, y=None)"
    if fault:
        raise FmdiffError(
            f"model={settings['choices']['model']} cannot be trained: {type(net).__name__} {fault}"
        )


def check_inputs(settings: dict[str, Any], objective: Objective) -> None:
    """Raise FmdiffError for a network that does not take what the objective asks it with."""
    target, choices = locate(settings["model"]["_target_"]), settings["choices"]
    for keyword in objective.inputs:
        if not takes(target, keyword):
            if keyword == "conditions":
                raise FmdiffError(
                    f"model={choices['model']} takes no conditions, and data={choices['data']} "
                    f"has {', '.join(objective.conditions)}; choose model=mlp for points, "
                    "model=unet_1d for series, model=unet for images"
                )
            raise FmdiffError(
                f"model={choices['model']} cannot be trained with objective="
                f"{choices['objective']}: {target.__name__} takes no {keyword}, as networks of "
                "flow maps do; choose model=mlp for points, model=unet_1d for series, model=unet "
                "for images"
            )


def check_conditions(settings: dict[str, Any], objective: Objective, coupling: Coupling) -> None:
    """Raise FmdiffError for conditions besides the label with what cannot regard them."""
    choices, forms = settings["choices"], objective.conditions
    if objective.guidance is not None and not (objective.classes or forms):
        raise FmdiffError(
            f"objective.guidance={objective.guidance} needs classes or conditions, and data="
            f"{choices['data']} has none; set objective.guidance=null"
        )
    if not forms:
        return
    what = f"data={choices['data']} has the condition{'s' * (len(forms) > 1)} {', '.join(forms)}"
    if objective.logits:
        raise FmdiffError(
            f"objective={choices['objective']} learns p(label | x) alone, and {what}: choose data "
            "without conditions besides the label"
        )
    if coupling.permutes:
        raise FmdiffError(
            f"coupling={choices['coupling']} pairs noise with x whatever its conditions, so that "
            f"the noise would tell them, and {what}: choose coupling=independent"
        )
    maps = [name for name, form in forms.items() if len(form.shape) > 1]
    if settings["data"].get("augment") and maps:
        raise FmdiffError(
            f"data.augment={settings['data']['augment']} changes images and not the conditions "
            f"that belong to them ({', '.join(maps)}): set data.augment=0"
        )


def check_pair(settings: dict[str, Any], net: nn.Module, objective: Objective) -> None:
    """Raise FmdiffError for a network of another kind than the objective trains."""
    if isinstance(net, Latent) != objective.autoencodes:
        raise FmdiffError(
            f"objective={settings['choices']['objective']} does not go with "
            f"model={settings['choices']['model']}: objective=autoencoder takes model=autoencoder "
            "(images) or linear_autoencoder, and these no other objective"
        )
    if answers_logits(net) != objective.logits:
        raise FmdiffError(
            f"objective={settings['choices']['objective']} does not go with "
            f"model={settings['choices']['model']}: classification takes model=classifier "
            "(images) or mlp_classifier (points), and these no other objective"
        )
