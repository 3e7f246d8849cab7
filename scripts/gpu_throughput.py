"""Throughput, utilisation and memory of training on one device, beside TorchCFM's script.

    python scripts/gpu_throughput.py FILE [--device cuda] [--recipe WORDS] [--small]

FILE is JSON: {"cases": {NAME: {...}}}. It is written after each case, and cases that it holds are
not measured again. A case of fmdiff is the whole optimiser step of `fmdiff train`, with its log,
and a case of TorchCFM is the step of its train_cifar10.py. Images are random, as speed does not
depend on what they show, and lie on the device. The clock runs from the end of the warm-up, which
compiles, and waits for the device at both ends.

TFLOP/s counts the products and convolutions of fmdiff.machine.cost.operations, three forward
passes a step, for both. A failure other than a lack of memory ends the process with BROKEN, as it
may have broken the device's state: start it again for the remaining cases.
"""

import argparse
import gc
import json
import shlex
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from gpu import BROKEN, RECIPE
from gpu_machine import ceilings, describe
from lightning import pytorch as pl
from torch import Tensor

from fmdiff import files
from fmdiff.data.images import CIFAR10
from fmdiff.errors import FmdiffError
from fmdiff.machine import cost, device
from fmdiff.settings import compose
from fmdiff.training.assemble import assemble
from fmdiff.training.judged import SampleMetrics
from fmdiff.training.log import Log
from fmdiff.training.module import Training
from fmdiff.training.trainer import Chunks, Hooks, fitter, quiet

NEVER = 10**9  # steps
OWN = "tf32 convolutions"  # torch's defaults on CUDA, which TorchCFM's script leaves alone
UNET, SCRIPT = "U-Net of TorchCFM", "TorchCFM's script"
UNCONDITIONAL = ("model=unet_cifar", "data.conditional=false", "optim.lr=2e-4")
SMALL_UNET = ("model.channels=32", "model.multipliers=[1,2]", "model.blocks=1")
SMALL_DIT = ("model.width=32", "model.depth=2", "model.heads=2")
SMALL_JIT = (*SMALL_DIT, "model.start=1", "model.bottleneck=16")


class Random(CIFAR10):
    """Random pixels in the place of CIFAR-10."""

    def prepare(self) -> None:
        """There are no files."""

    def read(self, train: bool) -> tuple[Tensor, Tensor]:
        """The same 2,000 images for both splits."""
        draws = torch.Generator().manual_seed(0)
        images = torch.randint(256, (2000, *self.shape), dtype=torch.uint8, generator=draws)
        return images, torch.arange(2000) % 10


@dataclass(frozen=True)
class Case:
    """A network trained by fmdiff with these words, or TorchCFM's by its script."""

    network: str
    loop: str
    precision: str
    batch: int
    words: tuple[str, ...] = ()
    eager: bool = False
    small: tuple[str, ...] = field(default=(), compare=False)  # words that make it small

    @property
    def name(self) -> str:
        """What it is called in the file and in sentences."""
        return ", ".join(filter(None, (self.network, self.loop, self.how)))

    @property
    def how(self) -> str:
        """Its precision, and whether it is compiled."""
        return self.precision + (", not compiled" if self.eager else "")


def cases(recipe: str) -> list[Case]:
    """All of them, what matters most first, as time may run out."""

    def unet(precision: str, eager: bool) -> Case:
        return Case(UNET, "fmdiff", precision, 128, UNCONDITIONAL, eager, SMALL_UNET)

    def script(precision: str) -> Case:
        return Case(UNET, SCRIPT, precision, 128, eager=True)

    def transformer(title: str, words: tuple[str, ...], small: tuple[str, ...]) -> Case:
        return Case(title, "fmdiff", "bf16", 256, words, small=small)

    small_recipe = ("model.channels=8", "model.multipliers=[1,2]", "model.head_channels=8")
    return [
        Case("the recipe", "fmdiff", "", 0, tuple(shlex.split(recipe)), small=small_recipe),
        unet("bf16", False),
        script(OWN),
        transformer("DiT-B/2", ("model=dit_b",), SMALL_DIT),
        transformer("DiT-S/2", ("model=dit_s",), SMALL_DIT),
        # 256 tokens, as JiT-B/16 has of 256 x 256 pixels
        transformer("JiT-B/2", ("experiment=jit", "model=jit_b", "model.patch=2"), SMALL_JIT),
        unet("bf16", True),
        script("bf16"),
        unet("tf32", True),
        unet("fp32", True),
        script("fp32"),
    ]


@dataclass(frozen=True)
class Span:
    """How long a case is measured."""

    warm: int  # steps before the clock starts
    least: int  # steps
    seconds: float


LONG, SHORT = Span(8, 20, 4.0), Span(1, 2, 0.2)


def wait(where: torch.device) -> None:
    """Wait until the device has done all its work."""
    if where.type == "cuda":
        torch.cuda.synchronize(where)


class Timer(Hooks):
    """Measures the seconds of a step between the warm-up and the end of the span."""

    def __init__(self, span: Span) -> None:
        self.span, self.step_seconds = span, 0.0

    def start(self, trainer: pl.Trainer, module: Training) -> None:
        self.begin, self.first_step = time.perf_counter(), 0.0

    def after_batch(self, trainer: pl.Trainer, module: Training) -> None:
        if module.step == 1:
            wait(module.device)
            self.first_step = time.perf_counter() - self.begin
        if module.step == self.span.warm:
            wait(module.device)
            self.begin = time.perf_counter()
        steps = module.step - self.span.warm
        if steps >= self.span.least and time.perf_counter() - self.begin > self.span.seconds:
            wait(module.device)
            self.step_seconds = (time.perf_counter() - self.begin) / steps
            trainer.should_stop = True


def fmdiff(case: Case, where: torch.device, small: bool) -> dict[str, Any]:
    """Train with the case's words for the time of a span."""
    words = [*case.words, "data=cifar10", f"device={where}", f"trainer.max_steps={NEVER}"]
    words += ["data._target_=gpu_throughput.Random", f"threads={1 if small else 'null'}"]
    words += [f"trainer.precision={case.precision}"] * bool(case.precision)
    words += [f"trainer.{name}_every={NEVER}" for name in ("validate", "picture", "checkpoint")]
    words += ["trainer.compile=false"] * case.eager + [
        "trainer.progress=false",
        "trainer.logger=csv",
    ]
    words += [f"data.batch_size={4 if small else case.batch}"] * bool(small or case.batch)
    words += case.small * small
    composer = compose.Composer("train", compose.parse(words)[0])
    module, where = assemble(composer.check(composer.compose(words), words))
    timer = Timer(SHORT if small else LONG)
    quiet()
    with tempfile.TemporaryDirectory() as folder:
        log = Log(Path(folder), module.options, SampleMetrics(Path(folder), module.options, None))
        trainer = fitter(module.options, where, [log, timer], Path(folder))
        try:
            trainer.fit(module, Chunks(0, NEVER, 1))
        finally:
            module.batches.close()
    return {
        "precision": module.options.precision + ", not compiled" * case.eager,
        "batch": module.data.batch_size,
        "parameters": sum(p.numel() for p in module.net.parameters()),
        "operations": module.operations(),
        "first_step": timer.first_step,
        "seconds": timer.step_seconds,
    }


def torchcfm(case: Case, where: torch.device, small: bool) -> dict[str, Any]:
    """The step of TorchCFM's train_cifar10.py. bf16 runs its network under autocast."""
    from benchmark_training import torchcfm_images
    from torchcfm.models.unet.unet import UNetModelWrapper

    torch.backends.cudnn.allow_tf32 = case.precision != "fp32"
    torch.set_float32_matmul_precision("highest")
    model = UNetModelWrapper(
        dim=(3, 32, 32),
        num_res_blocks=1 if small else 2,
        num_channels=32 if small else 128,
        channel_mult=[1, 2] if small else [1, 2, 2, 2],
        num_heads=4,
        num_head_channels=64,
        attention_resolutions="16",
        dropout=0.1,
    ).to(where)
    batch, span = 4 if small else case.batch, SHORT if small else LONG
    if case.precision == "bf16":
        model.forward = torch.autocast(where.type, torch.bfloat16)(model.forward)
    draws = torch.Generator().manual_seed(0)
    images = torch.rand(2000, 3, 32, 32, generator=draws).mul(2).sub(1).to(where)
    step = torchcfm_images(model, images, batch, 2e-4, True)
    begin = time.perf_counter()
    step()
    wait(where)
    first = time.perf_counter() - begin
    return {
        "precision": case.how,
        "batch": batch,
        "parameters": sum(p.numel() for p in model.parameters()),
        "operations": None,  # of the same network by fmdiff
        "first_step": first,
        "seconds": timed(step, where, span),
    }


def timed(step: Callable[[], object], where: torch.device, span: Span) -> float:
    """Seconds per step."""
    for _ in range(span.warm):
        step()
    wait(where)
    begin, steps = time.perf_counter(), 0
    while steps < span.least or time.perf_counter() - begin < span.seconds:
        step()
        steps += 1
    wait(where)
    return (time.perf_counter() - begin) / steps


def measure(case: Case, where: torch.device, small: bool) -> dict[str, Any]:
    """A row of the table: what the case is, and its figures."""
    gc.collect()
    torch._dynamo.reset()
    if where.type == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(where)
    growth = cost.Growth()
    figures = (torchcfm if case.loop == SCRIPT else fmdiff)(case, where, small)
    precision = figures["precision"].partition(",")[0].partition(" ")[0]
    return {
        "network": case.network,
        "loop": case.loop,
        **figures,
        "memory": growth(where),
        "peak": cost.peak(where, precision),
    }


def main() -> int:
    """Measure the cases that the file lacks."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("file", type=Path)
    parser.add_argument("--recipe", default=RECIPE)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--small", action="store_true")
    options = parser.parse_args()
    try:
        where = device.pick(options.device)
    except FmdiffError as error:
        print(error, file=sys.stderr)
        return error.code
    content = json.loads(options.file.read_text("utf-8")) if options.file.exists() else {}
    rows = content.setdefault("cases", {})
    content["machine"] = describe(where) | ceilings(where)
    content["asked"] = [case.name for case in cases(options.recipe)]
    code = 0
    for case in cases(options.recipe):
        if case.name in rows:
            continue
        print(f"{case.name} ...", flush=True)
        files.write_json(options.file, content | {"begun": case.name})
        try:
            rows[case.name] = measure(case, where, options.small)
        except (FmdiffError, ImportError) as error:
            rows[case.name] = {"missing": str(error)}
        except torch.cuda.OutOfMemoryError:
            rows[case.name] = {"missing": "the device has too little memory for it"}
        except Exception as error:
            rows[case.name] = {"missing": f"it failed: {type(error).__name__}: {error}"[:500]}
            code = BROKEN
        files.write_json(options.file, content)
        if code:
            raise SystemExit(code)
        print(json.dumps(rows[case.name]), flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
