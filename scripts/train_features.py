# MNIST 99.65 %, Fashion-MNIST 93.16 %, CIFAR-10 90.01 % of the 10,000 test images right.
"""Train the small classifiers whose features the image metrics use.

python scripts/train_features.py NAME    mnist, fashion_mnist or cifar10

Writes fmdiff/metrics/weights/NAME.safetensors: the same bits each time on one machine. The state
is kept in outputs/features/NAME.pt, so the same command goes on where an earlier one ended.
"""

import argparse
import hashlib
import json
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

import torch
from safetensors.torch import save
from torch import Tensor
from torch.nn import functional as F

import fmdiff
from fmdiff.build import named
from fmdiff.data.files import SOURCES
from fmdiff.metrics.features import Network
from fmdiff.randomness import generator, key

FOLDER = Path(fmdiff.__file__).parent / "metrics" / "weights"
BATCH, MOMENTUM, DECAY, WARM, SHIFT, SAVE_EVERY = 250, 0.9, 5e-4, 0.25, 2, 100


@dataclass(frozen=True)
class Recipe:
    widths: tuple[int, ...]
    epochs: int
    flip: bool
    least: float  # test accuracy below which nothing is written
    lr: float = 0.2


RECIPES = {
    "mnist": Recipe((24, 48, 96), 8, flip=False, least=0.99),
    "fashion_mnist": Recipe((24, 48, 96), 10, flip=True, least=0.91),
    "cifar10": Recipe((48, 128, 192), 8, flip=True, least=0.88),
}


def shifted(x: Tensor, step: int) -> Tensor:
    """Images x (B, C, H, W), each moved by up to SHIFT pixels; the border is reflected."""
    batch, _, height, width = x.shape
    padded = F.pad(x, [SHIFT] * 4, mode="reflect")
    draws = torch.randint(2 * SHIFT + 1, (2, batch, 1), generator=generator(0, "shift", step))
    rows = (draws[0] + torch.arange(height))[:, None, :, None]
    columns = (draws[1] + torch.arange(width))[:, None, None, :]
    channels = torch.arange(x.shape[1])[None, :, None, None]
    return padded[torch.arange(batch)[:, None, None, None], channels, rows, columns]


def rate(step: int, steps: int) -> float:
    """The share of the largest learning rate at a step: up to 1 until WARM, then down to 0."""
    done = (step + 1) / (steps + 1)
    return min(done / WARM, (1 - done) / (1 - WARM))


def train(data, recipe: Recipe, steps: int, state: Path | None = None) -> Network:
    """The network after `steps` of SGD with Nesterov momentum, continued from file `state`."""
    torch.manual_seed(key(0, "features"))
    net = Network(data.shape, recipe.widths, data.labels)
    net = net.whitened(data.examples(5000)[0]).to(memory_format=torch.channels_last)
    trained = [p for p in net.parameters() if p.requires_grad]
    optimizer = torch.optim.SGD(
        trained, recipe.lr, momentum=MOMENTUM, weight_decay=DECAY, nesterov=True
    )
    first, of = 0, f"{recipe}, {steps} steps of {BATCH}"
    if state is not None and state.is_file():
        saved = torch.load(state, weights_only=True)
        if saved["of"] != of:
            raise SystemExit(f"{state} is of {saved['of']}, not of {of}: remove it to start anew")
        net.load_state_dict(saved["net"])
        optimizer.load_state_dict(saved["optimizer"])
        first = saved["step"]
    for step in range(first, steps):
        x, y = data.batch(0, step)
        optimizer.param_groups[0]["lr"] = recipe.lr * rate(step, steps)
        with torch.autocast("cpu", torch.bfloat16):
            _, logits = net(shifted(x, step).contiguous(memory_format=torch.channels_last))
        loss = F.cross_entropy(logits.float(), y)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if (step + 1) % SAVE_EVERY == 0:
            print(f"step {step + 1}/{steps}, loss {loss.item():.3f}", flush=True)
            if state is not None:
                keep(state, net, optimizer, step + 1, of)
    return net


def keep(state: Path, net: Network, optimizer: torch.optim.SGD, step: int, of: str) -> None:
    state.parent.mkdir(parents=True, exist_ok=True)
    part = state.with_suffix(".part")
    saved = {"net": net.state_dict(), "optimizer": optimizer.state_dict(), "step": step, "of": of}
    torch.save(saved, part)
    part.replace(state)


def write(name: str, net: Network, data, recipe: Recipe) -> None:
    """Write the weights file of a trained network, which states its accuracy.

    Raises SystemExit, and leaves the file as it was, below recipe.least.
    """
    x, y = data.held_out(len(data.test[1]))
    tensors = {
        k: (v.half() if v.ndim == 4 else v).contiguous() for k, v in net.state_dict().items()
    }
    net.load_state_dict({k: v.float() for k, v in tensors.items()})  # what will be read
    with torch.no_grad():
        right = [net.eval()(part)[1].argmax(1) for part in x.split(500)]
    accuracy = (torch.cat(right) == y).double().mean().item()
    print(f"{name}: {accuracy:.2%} of {len(y):,} test images")
    if accuracy < recipe.least:
        raise SystemExit(f"{name}: {recipe.least:.0%} was expected; nothing is written")
    source = SOURCES[name]
    about = {
        "data": name,
        "accuracy": accuracy,
        "architecture": {"shape": data.shape, "widths": recipe.widths, "classes": data.labels},
        "training": {"recipe": str(recipe), "images": len(data.train[1])},
        "md5": {file: md5 for file, (_, md5) in source.files.items()},
        "fmdiff": version("fmdiff"),
    }
    # one key, because several are written in an order that changes from run to run
    content = save(tensors, {"fmdiff": json.dumps(about)})
    path = FOLDER / f"{name}.safetensors"
    path.parent.mkdir(exist_ok=True)
    part = path.with_suffix(".part")
    part.write_bytes(content)
    part.replace(path)
    print(f"{path}: {len(content):,} bytes, sha256 {hashlib.sha256(content).hexdigest()}")


def main(name: str) -> None:
    torch.set_num_threads(1)  # the same bits each time
    recipe = RECIPES[name]
    data = named("data", name, batch_size=BATCH, flip=recipe.flip)
    data.prepare()
    steps = recipe.epochs * len(data.train[1]) // BATCH
    write(name, train(data, recipe, steps, Path(f"outputs/features/{name}.pt")), data, recipe)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("name", choices=RECIPES)
    main(parser.parse_args().name)
