# The judge reads 99.37 % of the 10,000 real test digits right (2 minutes of one core to train).
"""Judge generated MNIST digits by a classifier of real ones.

python scripts/judge.py SAMPLES.npz ...    arr_0 uint8 (N, 28, 28, 1), labels (N,) if conditional

Agreement: the share the classifier reads as the class that was asked for. Confidence: its largest
probability. 1,000 real test digits stand beside. The classifier is trained the first time and
kept in outputs/judge/mnist.pt.
"""

import sys
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from fmdiff.build import named
from fmdiff.data.images import from_uint8

WEIGHTS = Path("outputs/judge/mnist.pt")
EPOCHS, BATCH, LR, LEAST = 3, 100, 3e-3, 0.99


def network() -> nn.Sequential:
    """x (B, 1, 28, 28) in [-1, 1] -> logits (B, 10)."""

    def block(inputs: int, outputs: int) -> list[nn.Module]:
        conv = nn.Conv2d(inputs, outputs, 3, padding=1, bias=False)
        return [conv, nn.BatchNorm2d(outputs), nn.ReLU(), nn.MaxPool2d(2)]

    layers = [*block(1, 32), *block(32, 64), *block(64, 64)]
    return nn.Sequential(*layers, nn.Flatten(), nn.Dropout(0.3), nn.Linear(64 * 3 * 3, 10))


def train(data) -> nn.Module:
    """The classifier after EPOCHS of one-cycle Adam; SystemExit below LEAST test accuracy."""
    torch.manual_seed(0)
    net, steps = network(), EPOCHS * len(data.train[1]) // BATCH
    optimizer = torch.optim.Adam(net.parameters(), fused=True)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, LR, total_steps=steps)
    for step in range(steps):
        x, y = data.batch(0, step)
        loss = nn.functional.cross_entropy(net(x), y)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
        if (step + 1) % 100 == 0:
            print(f"judge: step {step + 1}/{steps}, loss {loss.item():.3f}", flush=True)
    x, y = data.held_out(len(data.test[1]))
    accuracy = (probabilities(net, x).argmax(1) == y).float().mean().item()
    print(f"judge: test accuracy {accuracy:.2%}")
    if accuracy < LEAST:
        raise SystemExit(f"the judge needs {LEAST:.0%} to be believed")
    WEIGHTS.parent.mkdir(parents=True, exist_ok=True)
    part = WEIGHTS.with_suffix(".part")
    torch.save(net.state_dict(), part)
    part.replace(WEIGHTS)
    return net


@torch.no_grad()
def probabilities(net: nn.Module, x: Tensor) -> Tensor:
    """Class probabilities (B, 10) of images x (B, 1, 28, 28) in [-1, 1]."""
    return torch.cat([net.eval()(part).softmax(1) for part in x.split(500)])


def row(net: nn.Module, name: str, x: Tensor, y: Tensor | None) -> str:
    confidence, read = probabilities(net, x).max(1)
    agreement = "-" if y is None else f"{(read == y).float().mean():.1%}"
    sure = (confidence >= 0.9).float().mean()
    return f"| {name} | {len(x)} | {agreement} | {confidence.mean():.3f} | {sure:.1%} |"


def main(paths: list[str]) -> None:
    torch.set_num_threads(1)  # the same bits on every machine of a kind
    data = named("data", "mnist", batch_size=BATCH)
    data.prepare()
    if WEIGHTS.is_file():
        net: nn.Module = network()
        net.load_state_dict(torch.load(WEIGHTS, weights_only=True))
    else:
        net = train(data)
    print("| digits | n | agreement | mean confidence | confidence >= 0.9 |")
    print("|---|---|---|---|---|")
    for path in paths:
        with np.load(path) as archive:
            x = from_uint8(torch.from_numpy(archive["arr_0"]).permute(0, 3, 1, 2))
            y = torch.from_numpy(archive["labels"]) if "labels" in archive else None
        print(row(net, path, x, y), flush=True)
    print(row(net, "real test digits", *data.sample(0, 1000, 0)))


if __name__ == "__main__":
    main(sys.argv[1:])
