# Moons, two cores, if nobody waits: ot takes 1.45 times independent's time, TorchCFM's 4.0.
"""Measure what exact minibatch optimal transport adds to a training step.

python scripts/ot_ahead.py [--rounds 9] [--steps 200]     needs torchcfm for its own loops
taskset -c 0-3 python scripts/ot_ahead.py                 on four cores

Problems: moons, and 8gaussians to moons; 3 x 64 SELU, batch 256, one thread for the step. fmdiff
is its LightningModule under pl.Trainer, timed over `steps` steps of each fit, after the first 50,
and after the process that pairs is ready. "threads" is fmdiff without that process. TorchCFM is
the loop of its tutorial with its matchers, on the same data and a like network. The cases take
turns, and each figure is the median (quartiles) over the rounds of ms per step:

wall      of the clock, which counts what else runs on the machine
main      CPU time of the thread that makes the steps
others    CPU time of all other threads and processes, the pairing of fmdiff
ratio     wall of ot over that of independent in the same round; "bound": the larger of main and
          others of ot over main of independent, the ratio of an idle machine with two cores if
          nobody waits
"""

import argparse
import logging
import math
import platform
import time
import warnings
from collections.abc import Callable

import torch
from lightning import pytorch as pl
from omegaconf import OmegaConf
from torch import nn

from fmdiff.build import build, config_folder, named
from fmdiff.objectives.flow_matching import FlowMatching
from fmdiff.path import CondOT
from fmdiff.randomness import generator
from fmdiff.training.batches import Batches
from fmdiff.training.module import Training
from fmdiff.training.options import TrainerOptions
from fmdiff.training.trainer import Chunks

WARM, CHUNK = 50, 25  # steps
MOST = 100_000  # steps of a fit whose process is never ready
Times = tuple[float, float, float]  # ms per step: wall, this thread, the others


def now(*others: int) -> Times:
    """The clocks in ms, with the CPU time of the processes of these numbers."""
    main = time.thread_time()
    # Linux's number for the clock of another process: clock_getcpuclockid(3)
    apart = sum(time.clock_gettime(~process << 3 | 2) for process in others)
    beside = time.process_time() - main + apart
    return 1e3 * time.perf_counter(), 1e3 * main, 1e3 * beside


def since(start: Times, end: Times, steps: int) -> Times:
    wall, main, others = ((b - a) / steps for a, b in zip(start, end, strict=True))
    return wall, main, others


class Watch(pl.Callback):
    """ms per step over `steps` steps from step WARM on, and from when all processes are ready."""

    def __init__(self, batches: Batches, steps: int) -> None:
        self.batches, self.steps, self.first = batches, steps, 0

    def on_train_batch_end(self, trainer, module, outputs, batch, index) -> None:
        processes = list(self.batches.aside.processes.values())
        needed = self.batches.coupling.permutes and self.batches.aside.start < math.inf
        if not self.first:
            ready = all(process.expected is None for process in processes)
            if batch[1] >= WARM and (processes or not needed) and ready:
                self.first = batch[1]
                self.numbers = [process.popen.pid for process in processes]
                self.start = now(*self.numbers)
        elif batch[1] >= self.first + self.steps:
            self.times = since(self.start, now(*self.numbers), batch[1] - self.first)
            trainer.should_stop = True


def ours(coupling: str, source: str) -> Callable[[int], Times]:
    def spec(group: str, name: str, **changes):
        found = OmegaConf.load(config_folder() / group / f"{name}.yaml")
        return OmegaConf.to_container(found) | changes

    settings = {
        "seed": 0,
        "trainer": spec("trainer", "default"),
        "data": spec("data", "moons"),
        "optim": spec("optim", "adam"),
    }
    start = math.inf if coupling == "threads" else 0.1
    coupling = coupling.replace("threads", "ot")
    of_source = named("source", "normal") if not source else named("source", "data", data=source)

    def run(steps: int) -> Times:
        data, pairs = build(settings["data"]), named("coupling", coupling)
        keys = dict(hidden=64, layers=3, activation="selu", frequencies=0, skip=False)
        net = named("model", "mlp", shape=data.shape, classes=0, **keys)
        objective = FlowMatching(
            CondOT(),
            data.std,
            "v",
            None,
            0.05,
            1e-4,
            source=of_source,
            coupled=not pairs.independent,
        )
        batches = Batches(data, objective, named("time", "uniform"), pairs, seed=0)
        options = TrainerOptions(**settings["trainer"])
        module = Training(settings, options, net, objective, batches)
        batches.aside.start = start
        watch = Watch(batches, steps)
        trainer = pl.Trainer(
            accelerator="cpu",
            max_epochs=1,
            logger=False,
            callbacks=[watch],
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
        )
        trainer.fit(module, Chunks(0, MOST, CHUNK))
        batches.close()
        return watch.times

    return run


def torchcfm(coupling: str, source: str) -> Callable[[int], Times]:
    import torchcfm.conditional_flow_matching as theirs

    kind = "ExactOptimalTransport" if coupling == "ot" else ""
    matcher = getattr(theirs, f"{kind}ConditionalFlowMatcher")(sigma=0.0)
    data = named("data", "moons")
    start = named("data", source) if source else None

    def run(steps: int) -> Times:
        layers: list[nn.Module] = []
        for width in (3, 64, 64):
            layers += [nn.Linear(width, 64), nn.SELU()]
        net = nn.Sequential(*layers, nn.Linear(64, 2))
        optimizer = torch.optim.Adam(net.parameters())
        for k in range(WARM + steps):
            if k == WARM:
                start_times = now()
            optimizer.zero_grad()
            x1 = data.batch(0, k)[0]
            if start:
                x0 = start.batch(1, k)[0]
            else:
                x0 = torch.randn(256, 2, generator=generator(0, "eps", k))
            t, xt, ut = matcher.sample_location_and_conditional_flow(x0, x1)
            loss = (net(torch.cat([xt, t[:, None]], 1)) - ut).square().mean()
            loss.backward()
            optimizer.step()
        return since(start_times, now(), steps)

    return run


CASES = (
    (ours, "independent"),
    (ours, "ot"),
    (ours, "threads"),
    (torchcfm, "independent"),
    (torchcfm, "ot"),
)


def quartiles(values: torch.Tensor) -> str:
    low, middle, high = values.quantile(torch.tensor([0.25, 0.5, 0.75])).tolist()
    return f"{middle:.2f} ({low:.2f}-{high:.2f})"


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--steps", type=int, default=200)
    asked = parser.parse_args()
    warnings.simplefilter("ignore")
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    torch.set_num_threads(1)
    print(f"{platform.processor() or platform.machine()}, torch {torch.__version__}")
    for source, name in (("", "moons"), ("8gaussians", "8gaussians -> moons")):
        cases = {(who.__name__, c): who(c, source) for who, c in CASES}
        rows: dict[tuple[str, str], list[Times]] = {case: [] for case in cases}
        for _ in range(asked.rounds):
            for case, run in cases.items():
                rows[case].append(run(asked.steps))
        print(f"\n{name}: ms per step")
        times = {case: torch.tensor(values).T for case, values in rows.items()}
        for (who, coupling), values in times.items():
            wall, main, others = map(quartiles, values)
            print(f"{who:9} {coupling:12} wall {wall}  main {main}  others {others}")
        for (who, coupling), values in times.items():
            if coupling != "independent":
                free = times[who, "independent"]
                bound = values[1:].amax(0) / free[1]
                ratio = quartiles(values[0] / free[0])
                print(f"{who:9} {coupling:12} ratio {ratio}  bound {quartiles(bound)}")


if __name__ == "__main__":
    main()
