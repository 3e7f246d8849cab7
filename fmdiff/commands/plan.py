"""fmdiff train plan=true: estimates the cost of a run and warns of common mistakes."""

import math
from collections.abc import Iterator
from itertools import chain

import torch
from omegaconf import DictConfig

from fmdiff.commands import forecast
from fmdiff.commands.train import passes
from fmdiff.coupling import Reflow
from fmdiff.data.base import Data
from fmdiff.machine import cost, processes, startup
from fmdiff.objectives.flow_matching import FlowMatching
from fmdiff.optim import moments
from fmdiff.runs.config import seconds as duration
from fmdiff.training import reflow, trial
from fmdiff.training.assemble import assemble
from fmdiff.training.judged import judge_of
from fmdiff.training.module import Training
from fmdiff.training.options import TrainerOptions

# validation, pictures and files take a little more than the steps of the trial
HEAD_ROOM, PICTURES = 1.15, 20_000_000


def plan(cfg: DictConfig) -> None:
    """Print the cost of training as cfg says, measured in a few steps that are discarded."""
    growth = cost.Growth()
    module, device = assemble(cfg)
    judge_of(module, device)  # raises for metrics that it cannot judge
    options, data, net = module.options, module.data, module.net
    whole, before = options, startup.elapsed()
    half = options.precision in ("bf16", "fp16")
    about = data.shape, data.classes, half, data.conditions
    work, of_step, kept = counted(module), module.operations(), cost.kept(net, *about)
    sizes = _micro(options, data), module.copies
    state = moments(module.settings["optim"])
    needed = cost.memory(net, *about[:2], *sizes, *about[2:], state)
    counting = [b - a for a, b in zip(before, startup.elapsed(), strict=True)]
    with forecast.together("train", cfg, options.devices, device):
        pace = trial.pace(module, device, of_step, kept)
    if processes.rank():
        return
    module.options = whole
    begun = max(0.0, pace.startup[0] - counting[0]), max(0.0, pace.startup[1] - counting[1])
    with torch.no_grad():  # as many at once as validation and pictures take
        at_once = 2000 if len(data.shape) == 1 else 100
        at_once = min(at_once, pace.samples) if pace.absent else at_once
        module.average()(*cost.example(data.shape, data.classes, at_once, device, data.conditions))
    if module.teacher is not None and module.teacher.field.net is not None:
        needed += sum(4 * p.numel() for p in module.teacher.field.net.parameters())
    rows = table(module, device, (work, of_step), pace)
    rows["start-up"] = forecast.begun(begun)
    rows["memory"] = _memory(needed + _size(data), growth, pace.absent, device)
    coupling = module.batches.coupling
    if isinstance(coupling, Reflow):
        source = module.objective.source
        rows["pairs"] = reflow.plan(*reflow.parts(module.settings, coupling, data, source, device))
    seconds = options.max_steps * pace.seconds
    notes = chain(forecast.busy(device, pace.seconds, pace.cpu), slips(module, options, seconds))
    forecast.show(rows, notes)


def counted(module: Training) -> int:
    """The operations of one sample's forward pass."""
    data = module.data
    return cost.operations(module.net, data.shape, data.classes, data.conditions)


def table(
    module: Training, device: torch.device, work: tuple[int, int], pace: trial.Pace
) -> dict[str, str]:
    """The lines of a plan by their first word. Empty lines are not shown.

    work: operations of one sample's forward pass and of a step for it.
    """
    data, net, options = module.data, module.net, module.options
    batch, steps, noun = data.batch_size, options.max_steps, forecast.noun(data.shape)
    devices, speed = options.devices, 1 / pace.seconds
    parameters = sum(p.numel() for p in net.parameters())
    parts = ", ".join(f"{name} {ms:.3g}" for name, ms in pace.parts.items())
    rate = cost.peak(device, options.precision)
    used = "" if rate is None else f"{work[1] * batch * speed / rate / devices:.1%} of the peak"
    fewer = "" if pace.samples == batch else f"; tried with {pace.samples} {noun}s and scaled"
    forward, of_step = map(forecast.engineering, work)
    return {
        "model": f"{module.settings['choices']['model']}, {parameters:,} parameters, "
        f"{forward}FLOP forward and {of_step}FLOP a step per {noun}",
        "passes": passes(module),
        "batch": f"{batch} {noun}s a step: {devices} device{'s' * (devices > 1)} x "
        f"{options.accumulate} x {_micro(options, data)}",
        "length": f"{steps:,} steps from the start, {steps * batch:,} {noun}s"
        + _epochs(data, steps * batch),
        "memory": "",
        "start-up": "",
        "speed": f"{speed * batch:,.4g} {noun}s/s on {forecast.place(device, devices)} "
        f"({speed:.3g} steps/s; ms a step: {parts}; {1e3 * pace.cpu:.3g} of CPU{fewer})",
        "used": used,
        "time": f"{forecast.clock(steps / speed)} to finish, and pictures, validation, "
        "checkpoints",
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


def _memory(estimate: int, growth: cost.Growth, absent: int, where: torch.device) -> str:
    """The line about memory: that of the trial with head-room, or else the estimate.

    absent: bytes that a step of the run takes beyond one of the trial.
    """
    what = "weights, gradients, moments, averages, activations, data and workspace"
    trial, host = growth(where), growth(torch.device("cpu"))
    share, origin = estimate, "estimated"
    if trial is not None:
        share = int(HEAD_ROOM * (trial + absent)) + PICTURES
        origin = f"{forecast.engineering(trial)}B in the trial"
    main = None
    if growth.before is not None and host is not None:
        own = share if where.type == "cpu" else int(HEAD_ROOM * host) + PICTURES
        main = growth.before + own
    return forecast.memory(where, share, main, origin, what)


def _size(data: Data) -> int:
    """The bytes of the tensors that a data set holds."""
    values = [
        v for value in vars(data).values() for v in (value if type(value) is tuple else [value])
    ]
    return sum(v.numel() * v.element_size() for v in values if isinstance(v, torch.Tensor))
