"""fmdiff train plan=true: estimates the cost of a run and warns of common mistakes."""

import math
from collections.abc import Iterator

import torch
from omegaconf import DictConfig

from fmdiff.commands.train import passes
from fmdiff.coupling import Reflow
from fmdiff.data.base import Data
from fmdiff.machine import cost
from fmdiff.objectives.flow_matching import FlowMatching
from fmdiff.runs.config import seconds as duration
from fmdiff.training import reflow
from fmdiff.training.assemble import assemble
from fmdiff.training.judged import judge_of
from fmdiff.training.module import Training
from fmdiff.training.options import TrainerOptions
from fmdiff.training.trial import steps_per_second

HEAD_ROOM = 1.15  # validation and pictures take a little more than the steps of the trial


def plan(cfg: DictConfig) -> None:
    """Print the cost of training as cfg says, measured in a few steps that are discarded."""
    growth = cost.Growth()
    module, device = assemble(cfg)
    coupling = module.batches.coupling
    judge_of(module, device)  # raises for metrics that it cannot judge
    options, data, net = module.options, module.data, module.net
    forms = data.conditions
    work = cost.operations(net, data.shape, data.classes, forms)
    micro, half = _micro(options, data), options.precision in ("bf16", "fp16")
    copies = len(module.averages)
    needed = cost.memory(net, data.shape, data.classes, micro, copies, half, forms)
    speed = steps_per_second(module, device)
    with torch.no_grad():  # as many at once as validation and pictures take
        at_once = 2000 if len(data.shape) == 1 else 100
        module.average()(*cost.example(data.shape, data.classes, at_once, device, forms))
    if module.teacher is not None and module.teacher.field.net is not None:
        needed += sum(4 * p.numel() for p in module.teacher.field.net.parameters())
    needed += _size(data)
    trial = growth(device) if options.devices == 1 else None  # the trial is of one device
    rows = table(module, options, device, work, _memory(needed, trial), speed)
    if isinstance(coupling, Reflow):
        source = module.objective.source
        rows["pairs"] = reflow.plan(*reflow.parts(module.settings, coupling, data, source, device))
    width = max(map(len, rows))
    for name, value in rows.items():
        if value:
            print(f"{name:<{width}}  {value}")
    for slip in slips(module, options, options.max_steps / speed):
        print(f"{'note':<{width}}  {slip}")


def table(
    module: Training,
    options: TrainerOptions,
    device: torch.device,
    work: int,
    memory: str,
    speed: float,
) -> dict[str, str]:
    """The lines of a plan by their first word. Empty lines are not shown.

    work: operations of one sample's forward pass. speed: steps a second.
    """
    data, net, devices = module.data, module.net, options.devices
    batch, steps, noun = data.batch_size, options.max_steps, _noun(data.shape)
    parameters = sum(p.numel() for p in net.parameters())
    parts = ", ".join(f"{name} {ms:.3g}" for name, ms in module.clock.take().items())
    rate = cost.peak(device, options.precision)
    of_step = module.operations()
    used = "" if rate is None else f"{of_step * batch * speed / rate:.1%} of the device's peak"
    return {
        "model": f"{module.settings['choices']['model']}, {parameters:,} parameters, "
        f"{_engineering(work)}FLOP forward and {_engineering(of_step)}FLOP a step per {noun}",
        "passes": passes(module),
        "batch": f"{batch} {noun}s a step: {devices} device{'s' * (devices > 1)} x "
        f"{options.accumulate} x {_micro(options, data)}",
        "length": f"{steps:,} steps from the start, {steps * batch:,} {noun}s"
        + _epochs(data, steps * batch),
        "memory": memory,
        "speed": f"{speed * batch:,.4g} {noun}s/s on {_place(device)} ({speed:.3g} steps/s; "
        f"ms a step: {parts})" + ("" if devices == 1 else "; tried on one device"),
        "used": used,
        "time": f"{_clock(steps / speed)} to finish, and pictures, validation, checkpoints",
        **_averages(options, batch),
    }


def slips(module: Training, options: TrainerOptions, seconds: float) -> Iterator[str]:
    """Yields a sentence for each common mistake in the settings of a run of these seconds."""
    yield from _slips_of_length(module, options, seconds)
    yield from _slips_of_data(module, options)
    yield from _slips_of_loss(module)
    attention = module.settings["model"].get("attention")
    if attention is not None and 0 in attention and max(module.data.shape[-2:]) > 16:
        yield f"model.attention={attention}: level 0 is the full image, where attention is dear"
    units = module.device.type == "cuda" or torch.cpu._is_avx512_bf16_supported()
    if options.precision == "bf16" and not units:
        yield "trainer.precision=bf16: this processor has no bfloat16 units, fp32 is faster"


def _slips_of_length(module: Training, options: TrainerOptions, seconds: float) -> Iterator[str]:
    steps, batch = options.max_steps, module.data.batch_size
    size = module.data.training_size
    if options.warmup >= steps:
        yield f"trainer.warmup={options.warmup} is not over when the run ends"
    for decay in options.ema:
        if not options.ema_warmup and _half_life(decay) > steps / 4:
            yield (
                f"trainer.ema={decay} remembers {_half_life(decay):,.0f} steps of {steps:,}: the "
                "average holds much of the start; ema_warmup=true or a smaller decay"
            )
    limit = duration(options.max_time)
    if limit and limit < seconds and options.decay == "cosine":
        yield (
            "trainer.max_time ends the run before max_steps: the cosine never reaches 0; lower "
            "max_steps, or trainer.decay=constant"
        )
    if options.checkpoint_every > steps:
        yield "trainer.checkpoint_every is beyond the end: a killed run would start anew"
    if size and batch > size:
        yield f"data.batch_size={batch} is more than the {size:,} training samples"
    if size and steps * batch < size:
        yield f"the run ends before it has seen all {size:,} training samples"


def _slips_of_data(module: Training, options: TrainerOptions) -> Iterator[str]:
    data, choices = module.data, module.settings["choices"]
    per_class = data.batch_size // max(1, data.classes)
    if data.flip and choices["data"] in ("mnist", "digits"):
        yield "data.flip=true mirrors digits, and a mirrored 2 is none"
    if data.classes and module.samples and not options.label_dropout:
        yield "trainer.label_dropout=0: guidance will have no unconditional branch"
    if module.batches.coupling.permutes and data.classes and per_class < 8:
        yield (
            f"coupling={choices['coupling']} pairs within a class, and a batch has {per_class} of "
            "each: hardly better than independent"
        )


def _slips_of_loss(module: Training) -> Iterator[str]:
    objective = module.objective
    if not isinstance(objective, FlowMatching) or objective.t_eps:
        return
    space = objective.loss or objective.prediction
    ends = torch.tensor([0.0, 1.0], dtype=torch.float64)
    if space != "v_sh" and not torch.stack(objective.path.row(space, ends)).isfinite().all():
        path = module.settings["choices"]["path"]
        yield (
            f"the {space} of path={path} is infinite at an end, and so is the loss: "
            "objective.t_eps=1e-3, or objective.loss=null"
        )


def _micro(options: TrainerOptions, data: Data) -> int:
    return data.batch_size // options.devices // options.accumulate


def _half_life(decay: float) -> float:
    """The number of steps after which a weight counts half."""
    return math.log(2) / -math.log(decay)


def _averages(options: TrainerOptions, batch: int) -> dict[str, str]:
    decays = [
        f"{decay}: {_half_life(decay):,.0f} steps = {_half_life(decay) * batch:,.0f} samples"
        for decay in options.ema
    ]
    short = ", less in their warm-up" if options.ema_warmup else ""
    widths = [
        f"{width:.1%} = {width * options.max_steps:,.0f} steps" for width in options.power_ema
    ]
    return {
        "half-life": "; ".join(decays) + f" of the averages{short}" if decays else "",
        "power": "; ".join(widths) + ", standard deviation of the averages" if widths else "",
    }


def _epochs(data: Data, samples: int) -> str:
    size = data.training_size
    return f" = {samples / size:,.3g} epochs of {size:,}" if size else ", each drawn anew"


def _noun(shape: tuple[int, ...]) -> str:
    return {1: "point", 3: "image"}.get(len(shape), "sample")


def _memory(estimate: int, trial: int | None) -> str:
    """The memory of a device: that of the trial with head-room, or else the estimate."""
    what = "weights, gradients, moments, averages, activations, data and workspace"
    origin = "estimated"
    if trial is not None:
        estimate, origin = int(HEAD_ROOM * trial), f"{_engineering(trial)}B in the trial"
    return f"about {_engineering(estimate)}B a device ({origin}): {what}; Python itself on top"


def _size(data: Data) -> int:
    """The bytes of the tensors that a data set holds."""
    values = [
        v for value in vars(data).values() for v in (value if type(value) is tuple else [value])
    ]
    return sum(v.numel() * v.element_size() for v in values if isinstance(v, torch.Tensor))


def _place(where: torch.device) -> str:
    if where.type == "cuda":
        return torch.cuda.get_device_name(where)
    return f"{torch.get_num_threads()} CPU thread{'s' * (torch.get_num_threads() > 1)}"


def _engineering(value: float) -> str:
    """Format a number like 1.23 M, to be followed by a unit."""
    for factor, prefix in ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k")):
        if value >= factor:
            return f"{value / factor:.3g} {prefix}"
    return f"{value:.3g} "


def _clock(seconds: float) -> str:
    if seconds < 120:
        return f"{seconds:.0f} s"
    hours, minutes = divmod(round(seconds / 60), 60)
    days, hours = divmod(hours, 24)
    return f"{days} d {hours} h" if days else f"{hours} h {minutes:02d} min"
