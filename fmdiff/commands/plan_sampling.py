"""fmdiff sample plan=true: estimates the cost of samples from a few that are discarded."""

import math
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from omegaconf import DictConfig, OmegaConf

from fmdiff import randomness
from fmdiff.commands import forecast
from fmdiff.commands.sample import describe, laid_out, ready
from fmdiff.commands.stage import Stage
from fmdiff.condition import Given
from fmdiff.data.images import to_uint8
from fmdiff.integration import Plan
from fmdiff.machine import cost, processes, startup
from fmdiff.sampling import Sampler

SECONDS = 3.0  # seconds of the timed trial, after the warm-up
# seconds, without other programs: of a batch above which it is not drawn, but its evaluations are
# timed, and of an evaluation above which it is of fewer samples
SLOW, LONG = 5.0, 1.0
ADAPTIVE = 100  # evaluations of an adaptive solver, as long as they are not counted
PICTURES = 60_000_000  # bytes of main memory for pictures of the samples


@dataclass(frozen=True)
class Trial:
    """What a trial measured in this process of batches as large as those to be drawn."""

    seconds: float  # of a batch
    cpu: float  # seconds of CPU of a batch
    nfe: float | None  # evaluations per sample; None if unknown
    samples: int  # at a time in the trial
    absent: int = 0  # bytes that a batch takes beyond one of the trial

    @property
    def alone(self) -> float:
        """The seconds that it would take without other programs, on CPUs."""
        return min(self.seconds, self.cpu / torch.get_num_threads())


def plan(cfg: DictConfig) -> None:
    """Print the cost of the samples that cfg describes. Some are drawn and discarded."""
    settings: dict[str, Any] = OmegaConf.to_container(cfg)  # type: ignore[assignment]
    growth = cost.Growth()
    stage, sampler, _ = ready(settings, judged=False)
    view, layout = laid_out(stage, sampler)
    with forecast.together("sample", cfg, settings["devices"], stage.where):
        begun, loaded = startup.elapsed(), growth(torch.device("cpu"))
        trial = tried(stage, sampler, layout)
    if processes.rank():
        return
    devices = max(settings["devices"], processes.world())
    rows = table(stage, layout, trial, devices, begun)
    rows["solver"] = describe(settings, sampler, layout, view)
    rows["memory"] = _memory(stage, growth, loaded, trial.absent)
    forecast.show(rows, forecast.busy(stage.where, trial.seconds, trial.cpu))


def table(
    stage: Stage, layout: Plan, trial: Trial, devices: int, begun: tuple[float, float]
) -> dict[str, str]:
    """The lines of a plan by their first word. begun: seconds of clock and CPU of the start."""
    n, size, noun = stage.n, stage.size, forecast.noun(stage.field.outer)
    batches, net = -(-n // size), stage.field.net
    drawing = min(n, -(-batches // devices) * size) / size * trial.seconds
    nfe = trial.nfe if layout.nfe is None else layout.nfe
    asked = "evaluations are known after the run" if nfe is None else f"{nfe:g} evaluations each"
    fewer = "" if trial.samples == size else f"; tried with {trial.samples} and scaled"
    parameters = 0 if net is None else sum(p.numel() for p in net.parameters())
    each = "" if not nfe else f", {1e3 * trial.seconds / size / nfe:.3g} ms an evaluation"
    judged = ", and metrics" if stage.settings["metrics"] else ""
    return {
        "model": f"{stage.settings['choices']['model'] or stage.settings['ckpt']}, "
        f"{parameters:,} parameters",
        "solver": "",
        "samples": f"{n:,} {noun}s: {batches:,} batch{'es' * (batches > 1)} of {size:,}, {asked}",
        "memory": "",
        "start-up": forecast.begun(begun),
        "speed": f"{n / drawing:,.4g} {noun}s/s on {forecast.place(stage.where, devices)} "
        f"({trial.seconds:.3g} s a batch, {trial.cpu:.3g} of CPU{each}{fewer})",
        "time": f"{forecast.clock(begun[0] + drawing)} to finish, and pictures{judged}",
        "files": f"samples.npz of {forecast.engineering(_file(stage))}B, and pictures",
    }


def tried(stage: Stage, sampler: Sampler, layout: Plan) -> Trial:
    """Measure a batch, in all processes at once.

    One that takes long is measured by evaluations of its field, of fewer samples on CPUs if an
    evaluation takes long too.
    """
    size = stage.size
    nfe: float | None = layout.nfe
    each = _evaluation(stage, sampler, layout)
    one = each.seconds if stage.where.type == "cuda" else each.alone
    long = one * size / each.samples * (nfe or ADAPTIVE) > SLOW
    if not any(processes.gather(long)):
        return _draws(stage, sampler, size)
    if nfe is None:
        nfe = _draws(stage, sampler, min(each.samples, 4)).nfe
    factor = (nfe or ADAPTIVE) * size / each.samples
    absent = round(each.absent / each.samples * (size - each.samples))
    return replace(
        each, seconds=each.seconds * factor, cpu=each.cpu * factor, nfe=nfe, absent=absent
    )


def _evaluation(stage: Stage, sampler: Sampler, layout: Plan) -> Trial:
    """The time of an evaluation of as many samples of a batch as it can have within LONG."""
    size = stage.size
    if stage.where.type == "cuda":
        return _evaluations(stage, sampler, layout, size, LONG)
    rows, smaller = min(size, 64 if stage.kind == "points" else 1), None
    while True:
        each = _evaluations(stage, sampler, layout, rows, 0.0)
        slope = each.alone / rows
        if smaller is not None:  # what does not depend on the number of samples is no part of it
            slope = (each.alone - smaller.alone) / (rows - smaller.samples)
        more = (LONG - each.alone) / max(slope, each.alone / rows / 4)
        more = min(processes.gather(more))
        if rows == size or more < rows:
            return _evaluations(stage, sampler, layout, rows, LONG)
        rows, smaller = min(size, rows + int(more)), each


def _draws(stage: Stage, sampler: Sampler, n: int) -> Trial:
    """The time of a batch of n samples."""
    counts: list[float] = []

    def receive(x: torch.Tensor, y: Given | None) -> None:
        (to_uint8(x) if stage.images else x).cpu()

    def draw() -> None:
        settings = stage.settings
        samples = sampler.draw(
            stage.field, n, settings["seed"], classes=settings["classes"], receive=receive
        )
        counts.append(samples.nfe_counted)

    seconds, cpu = _timed(draw, stage.where, SECONDS)
    return Trial(seconds, cpu, counts[-1], n)


def _evaluations(stage: Stage, sampler: Sampler, layout: Plan, rows: int, limit: float) -> Trial:
    """The time of an evaluation of the field for so many samples, guidance included.

    Its `absent` is the memory that they take.
    """
    field = stage.field.to(sampler.device, sampler.dtype)
    y = sampler.guidance.labels(field, stage.settings["classes"], 0, rows, 0)
    flow = sampler.seen(field, None if y is None else y.to(sampler.device))
    start, kind = layout.times[0], sampler.solver_of(flow).asks
    noise = randomness.noise(0, rows, flow.shape, 0, "start").to(sampler.device, sampler.dtype)
    x = flow.start(noise, start, 0, 0)
    flow.reset()
    growth, calls = cost.Growth(), [0]

    @torch.no_grad()
    def ask() -> None:
        calls[0] += 1
        flow.predict(x, start, kind)

    seconds, cpu = _timed(ask, stage.where, limit)
    each = max(1.0, flow.evaluations / calls[0] / rows)  # guidance asks twice
    grown = growth(torch.device("cpu")) if stage.where.type == "cpu" else None
    return Trial(seconds / each, cpu / each, None, rows, grown or 0)


def _timed(work: Callable[[], None], where: torch.device, limit: float) -> tuple[float, float]:
    """The median seconds of clock, and the mean of CPU, of calls after the first.

    They go on for `limit` seconds; on a busy machine until they have had half of them, at most
    three times as long. All processes begin together.
    """
    work()
    processes.gather(None)
    _wait(where)
    seconds, before = [], time.process_time()
    while True:
        begin = time.perf_counter()
        work()
        _wait(where)
        seconds.append(time.perf_counter() - begin)
        cpu, total = time.process_time() - before, sum(seconds)
        if total >= 3 * limit or (total >= limit and cpu >= limit / 2):
            return statistics.median(seconds), cpu / len(seconds)


def _wait(where: torch.device) -> None:
    if where.type == "cuda":
        torch.cuda.synchronize(where)


def _file(stage: Stage) -> int:
    """The bytes of samples.npz: images as pixels, others as floats, with label and conditions."""
    field = stage.field
    each = math.prod(field.outer) * (1 if stage.images else 4) + 8 * bool(field.classes)
    each += 4 * sum(math.prod(form.shape) for form in field.conditions.values())
    return stage.n * each


def _memory(stage: Stage, growth: cost.Growth, loaded: int | None, absent: int) -> str:
    """The line about memory.

    loaded: the growth of main memory before the trial, of which the largest is measured anew.
    absent: bytes that a batch takes beyond one of the trial.
    """
    where = stage.where
    host, trial = growth(torch.device("cpu")), growth(where)
    if host is not None and loaded is not None:
        host = max(host, loaded)
        trial = host if where.type == "cpu" else trial
    # samples are collected, and joined at the end
    collected = 2 * stage.n * math.prod(stage.field.outer) * (1 if stage.images else 4)
    net = stage.field.net
    share = 4 * sum(p.numel() for p in net.parameters()) if net is not None else 0
    origin, main = "weights alone", None
    if trial is not None:
        share, origin = trial + absent, f"{forecast.engineering(trial)}B in the trial"
    if where.type == "cpu":
        share += collected
    if growth.before is not None and host is not None:
        main = growth.before + PICTURES + (share if where.type == "cpu" else host + collected)
    return forecast.memory(where, share, main, origin, "weights, states, activations and samples")
