"""fmdiff train plan=true: what a run would cost, and known slips, before it begins."""

import math
import tempfile
import time
from collections.abc import Iterator
from typing import Any

import torch
from lightning.pytorch import Callback

from fmdiff.machine import cost
from fmdiff.runs.config import seconds as duration
from fmdiff.training.fit import Chunks, fitter, inner_steps, judged, prepared, quiet
from fmdiff.training.module import Training

TRIED = 5.0  # seconds of the timed trial, after its first steps
WARM = 2  # steps before it; one where a step takes longer than that


class _Trial(Callback):
    """Stops after TRIED seconds; steps a second."""

    speed = 0.0

    def on_train_start(self, trainer, module) -> None:
        self.begin, self.first = time.perf_counter(), 0

    def on_train_batch_end(self, trainer, module, outputs, batch, batch_idx) -> None:
        if module.device.type == "cuda":
            torch.cuda.synchronize()
        now = time.perf_counter()
        if not self.first and (module.step >= WARM or now - self.begin > TRIED):
            self.begin, self.first = now, module.step
            module.clock.take()
        elif self.first:
            self.speed = (module.step - self.first) / (now - self.begin)
            trainer.should_stop = now - self.begin > TRIED


def plan(cfg) -> None:
    """Print what training as cfg says takes, from a few steps that are tried and forgotten."""
    module, where = prepared(cfg)
    judged(module, where)
    options, data, net = module.options, module.data, module.net
    devices, batch, steps = options["devices"], data.batch_size, options["max_steps"]
    names = module.settings["choices"]
    parameters = sum(p.numel() for p in net.parameters())
    work = cost.operations(net, data.shape, data.classes)
    micro = batch // devices // options["accumulate"]
    half = options["precision"] in ("bf16", "fp16")
    copies = len(module.averages)
    needed = cost.memory(net, data.shape, data.classes, micro, copies, half)

    quiet()
    size = inner_steps(options, points=len(data.shape) == 1)
    options["log_every"] = 1  # on CUDA too, the parts of every step are timed
    trial = _Trial()
    with tempfile.TemporaryDirectory() as folder:
        alone = {**options, "devices": 1}
        trainer = fitter(alone, where, [trial], logger=False, default_root_dir=folder)
        try:
            trainer.fit(module, Chunks(0, max(steps, WARM + size), size))
        finally:
            module.ahead.close()
    speed = trial.speed
    parts = ", ".join(f"{name} {ms:.3g}" for name, ms in module.clock.take().items())
    rate, what = cost.peak(where, options["precision"]), _noun(data.shape)
    rows = {
        "model": f"{names['model']}, {parameters:,} parameters, "
        f"{_engineering(work)}FLOP forward and {_engineering(3 * work)}FLOP a step per {what}",
        "batch": f"{batch} {what}s a step: {devices} device{'s' * (devices > 1)} x "
        f"{options['accumulate']} x {micro}",
        "length": f"{steps:,} steps from the start, {steps * batch:,} {what}s"
        + _epochs(data, steps * batch),
        "memory": f"about {_engineering(needed)}B a device" + _measured(where),
        "speed": f"{speed * batch:,.4g} {what}s/s on {_place(where)} ({speed:.3g} steps/s; "
        f"ms a step: {parts})" + ("" if devices == 1 else "; tried on one device"),
        "used": ""
        if rate is None
        else f"{3 * work * batch * speed / rate:.1%} of the device's peak",
        "time": f"{_clock(steps / speed)} to finish, and pictures, validation, checkpoints",
        **_averages(options, batch, steps),
    }
    width = max(map(len, rows))
    for name, value in rows.items():
        if value:
            print(f"{name:<{width}}  {value}")
    for slip in slips(module, steps / speed):
        print(f"{'note':<{width}}  {slip}")


def slips(module: Training, seconds: float) -> Iterator[str]:
    """Known slips in the settings of a run that takes so long, a sentence each."""
    options, data, settings = module.options, module.data, module.settings
    steps, batch = options["max_steps"], data.batch_size
    names, per_class = settings["choices"], batch // max(1, data.classes)
    size = data.training_size
    if options["warmup"] >= steps:
        yield f"trainer.warmup={options['warmup']} is not over when the run ends"
    for decay in options["ema"]:
        if not options["ema_warmup"] and _half_life(decay) > steps / 4:
            yield (
                f"trainer.ema={decay} remembers {_half_life(decay):,.0f} steps of {steps:,}: the "
                "average holds much of the start; ema_warmup=true or a smaller decay"
            )
    limit = duration(options["max_time"])
    if limit and limit < seconds and options["decay"] == "cosine":
        yield (
            "trainer.max_time ends the run before max_steps: the cosine never reaches 0; lower "
            "max_steps, or trainer.decay=constant"
        )
    if options["checkpoint_every"] > steps:
        yield "trainer.checkpoint_every is beyond the end: a killed run would start anew"
    if size and batch > size:
        yield f"data.batch_size={batch} is more than the {size:,} training samples"
    if size and steps * batch < size:
        yield f"the run ends before it has seen all {size:,} training samples"
    if data.flip and names["data"] in ("mnist", "digits"):
        yield "data.flip=true mirrors digits, and a mirrored 2 is none"
    if data.classes and not module.classifies and not options["label_dropout"]:
        yield "trainer.label_dropout=0: guidance will have no unconditional branch"
    if not module.coupling.independent and data.classes and per_class < 8:
        yield (
            f"coupling={names['coupling']} pairs within a class, and a batch has {per_class} of "
            "each: hardly better than independent"
        )
    objective = module.objective
    ends = torch.tensor([0.0, 1.0], dtype=torch.float64)
    judged = getattr(objective, "loss", None) or getattr(objective, "prediction", None)
    if judged in ("v", "score", "eps", "x") and not objective.t_eps:
        rows = torch.stack(objective.path.row(judged, ends))
        if not torch.isfinite(rows).all():
            yield (
                f"the {judged} of path={names['path']} is infinite at an end, and so is the loss: "
                "objective.t_eps=1e-3, or objective.loss=null"
            )
    attention = settings["model"].get("attention")
    if attention is not None and 0 in attention and max(data.shape[-2:]) > 16:
        yield f"model.attention={attention}: level 0 is the full image, where attention is dear"
    units = module.device.type == "cuda" or torch.cpu._is_avx512_bf16_supported()
    if options["precision"] == "bf16" and not units:
        yield "trainer.precision=bf16: this processor has no bfloat16 units, fp32 is faster"


def _half_life(decay: float) -> float:
    """Steps after which a weight counts half."""
    return math.log(2) / -math.log(decay)


def _averages(options: dict[str, Any], batch: int, steps: int) -> dict[str, str]:
    said = [
        f"{decay}: {_half_life(decay):,.0f} steps = {_half_life(decay) * batch:,.0f} samples"
        for decay in options["ema"]
    ]
    short = ", less in their warm-up" if options["ema_warmup"] else ""
    widths = [f"{width:.1%} = {width * steps:,.0f} steps" for width in options["power_ema"]]
    return {
        "half-life": "; ".join(said) + f" of the averages{short}" if said else "",
        "power": "; ".join(widths) + ", standard deviation of the averages" if widths else "",
    }


def _epochs(data, samples: int) -> str:
    size = data.training_size
    return f" = {samples / size:,.3g} epochs of {size:,}" if size else ", each drawn anew"


def _noun(shape) -> str:
    return "image" if len(shape) == 3 else "point"


def _measured(where: torch.device) -> str:
    if where.type != "cuda":
        return ""
    return f", {_engineering(torch.cuda.max_memory_allocated(where))}B in the trial"


def _place(where: torch.device) -> str:
    if where.type == "cuda":
        return torch.cuda.get_device_name(where)
    return f"{torch.get_num_threads()} CPU thread{'s' * (torch.get_num_threads() > 1)}"


def _engineering(value: float) -> str:
    """1.23 M and the like, for a unit to follow."""
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
