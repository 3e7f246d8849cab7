# A step of ot takes 2.7 to 2.8 times that of independent, TorchCFM's 3.9 to 4.1 (256 points).
"""Measure what exact minibatch optimal transport adds to a training step.

python scripts/ot_ahead.py [--rounds 9] [--steps 200]     needs torchcfm for its own loops

Problems: moons, and 8gaussians to moons; 3 x 64 SELU, batch 256, one thread for the step. fmdiff
is its LightningModule under pl.Trainer, timed over `steps` steps after the first 50 of each fit;
TorchCFM is the loop of its tutorial with its matchers, on the same data and a like network. The
cases take turns, and each figure is the median (quartiles) over the rounds of ms per step:

wall      of the clock, which counts what else runs on the machine
main      CPU time of the thread that makes the steps
others    CPU time of all other threads, the pairing of fmdiff
ratio     wall of ot over that of independent in the same round; "bound": the larger of main and
          others of ot over main of independent, the ratio of an idle machine if nobody waits
"""

import argparse
import logging
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
Times = tuple[float, float, float]  # ms per step: wall, this thread, the others


def now() -> Times:
    main = time.thread_time()
    return 1e3 * time.perf_counter(), 1e3 * main, 1e3 * (time.process_time() - main)


def since(start: Times, steps: int) -> Times:
    wall, main, others = ((b - a) / steps for a, b in zip(start, now(), strict=True))
    return wall, main, others


class Watch(pl.Callback):
    """ms per step from step WARM to the end of the fit."""

    def on_train_batch_end(self, trainer, module, outputs, batch, index) -> None:
        if batch[1] == WARM:
            self.start = now()
        elif index + 1 == trainer.num_training_batches:
            self.times = since(self.start, batch[1] - WARM)


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
        watch = Watch()
        trainer = pl.Trainer(
            accelerator="cpu",
            max_epochs=1,
            logger=False,
            callbacks=[watch],
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
        )
        trainer.fit(module, Chunks(0, WARM + steps, CHUNK))
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
                begun = now()
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
        return since(begun, steps)

    return run


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
        cases = {
            (who.__name__, coupling): who(coupling, source)
            for who in (ours, torchcfm)
            for coupling in ("independent", "ot")
        }
        found: dict[tuple[str, str], list[Times]] = {case: [] for case in cases}
        for _ in range(asked.rounds):
            for case, run in cases.items():
                found[case].append(run(asked.steps))
        print(f"\n{name}: ms per step")
        times = {case: torch.tensor(rows).T for case, rows in found.items()}
        for (who, coupling), rows in times.items():
            wall, main, others = map(quartiles, rows)
            print(f"{who:9} {coupling:12} wall {wall}  main {main}  others {others}")
        for who in ("ours", "torchcfm"):
            free, paired = times[who, "independent"], times[who, "ot"]
            bound = paired[1:].amax(0) / free[1]
            ratio = paired[0] / free[0]
            print(f"{who:9} ratio {quartiles(ratio)}  bound {quartiles(bound)}")


if __name__ == "__main__":
    main()
