"""Power averages of any width after training, combined from snapshots of a few widths.

RUN/averages/{step:07d}.pt   format, version and checksums as in a checkpoint, and
    step       int, optimiser steps done
    widths     [0.05, ...]
    weights    {"power:0.05": state_dict, ...}
"""

import logging
from itertools import groupby
from pathlib import Path

import torch
from torch import Tensor

from fmdiff.ema import POWER, WIDEST, Averages, gamma, power
from fmdiff.errors import FmdiffError
from fmdiff.files import inside, make_folder
from fmdiff.runs.checkpoint import read, write
from fmdiff.runs.content import Checkpoint

FOLDER = "averages"
TOLERANCE = 0.05  # largest relative L2 error of a reconstructed profile
WIDTHS = [k / 200 for k in range(1, 1 + int(200 * WIDEST))]  # the widths that `reach` tries

log = logging.getLogger("fmdiff")


# Snapshots


def snapshots(run: Path) -> dict[int, Path]:
    """The snapshots in a run folder by step, the earliest first. Links out of it are left out."""
    files = (file for file in (run / FOLDER).glob("*.pt") if inside(file, run))
    return dict(sorted((int(file.stem), file) for file in files if file.stem.isdigit()))


def save(run: Path, step: int, averages: Averages) -> None:
    """Write the snapshot of a step in float32. Combining magnifies rounding errors up to tenfold.

    Its extension differs from that of checkpoints, which `ckpt=` looks for. Raises OSError.
    """
    make_folder(run / FOLDER)
    states = averages.states(powers=True)
    content = {"step": step, "widths": averages.widths, "weights": states}
    write(run / FOLDER / f"{step:07d}.pt", content)


def forget(run: Path, after: int) -> None:
    """Delete the snapshots of steps later than `after`, from which the run continues."""
    for step, file in snapshots(run).items():
        if step > after:
            file.unlink(missing_ok=True)


# Profiles: p(tau) = (gamma + 1) tau^gamma / t^(gamma + 1) on [0, t], float64


def products(t: Tensor, g: Tensor, s: Tensor, h: Tensor) -> Tensor:
    """Inner products of the profiles of exponents g (N,) at t (N,) and h (M,) at s (M,): (N, M).

    (g + 1) (h + 1) / (g + h + 1) / max(t, s) times (min / max)^(the exponent of the later one).
    """
    t, g = t[:, None], g[:, None]
    later = torch.where(t > s, g, h)
    ratio = torch.minimum(t, s) / torch.maximum(t, s)
    return (g + 1) * (h + 1) / (g + h + 1) / torch.maximum(t, s) * ratio**later


def combine(t: Tensor, g: Tensor, step: int, widths: list[float]) -> tuple[Tensor, Tensor]:
    """Factors (N, K) by which profiles (t, g) give those of K widths at `step`, and errors (K,).

    Solves min |sum_i c_i p_i - p|^2 with sum_i c_i = 1 by its normal equations. The errors are the
    square roots of the minima, relative to |p|. This is algorithm 3 of Karras et al. 2024 with one
    more constraint, that of the sum. Without it, weights from few snapshots would be some per cent
    too small.
    """
    h = torch.tensor([gamma(width) for width in widths], dtype=torch.float64)
    s = torch.full_like(h, step)
    gram = products(t, g, t, g)
    unit = gram.diagonal().rsqrt()
    inverse = torch.linalg.pinv(unit[:, None] * gram * unit, hermitian=True, rtol=1e-13)
    inverse = unit[:, None] * inverse * unit
    target = products(t, g, s, h)
    c = inverse @ target
    ones = inverse.sum(1, keepdim=True)
    c = c + ones * (1 - c.sum(0)) / ones.sum()
    square = (h + 1) ** 2 / (2 * h + 1) / step
    off = square - 2 * (c * target).sum(0) + (c * (gram @ c)).sum(0)
    return c, (off.clamp(min=0) / square).sqrt()


# From a checkpoint


def weights_of(
    checkpoint: Checkpoint, weights: str | float, run: Path | None
) -> dict[str, Tensor]:
    """The state dict that `weights=` names, stored or reconstructed from power averages.

    run: the folder of the checkpoint. Raises FmdiffError for weights that cannot be had.
    """
    name = checkpoint.name_of(weights)
    if name in checkpoint.weights:
        return checkpoint.weights[name]
    if name.startswith(POWER):
        return reconstruct(checkpoint, run, float(name.removeprefix(POWER)))
    held = ", ".join(checkpoint.weights)
    raise FmdiffError(f"weights={weights}: {checkpoint.title} holds {held}")


def _widths(checkpoint: Checkpoint) -> list[float]:
    """The widths of the power averages in a checkpoint."""
    names = (name for name in checkpoint.weights if name.startswith(POWER))
    return [float(name.removeprefix(POWER)) for name in names]


def _sources(checkpoint: Checkpoint, run: Path | None) -> tuple[list[Path | None], Tensor, Tensor]:
    """The files with averages up to the checkpoint's step, and the profiles of these averages.

    None stands for the checkpoint. One profile (t, gamma) per file and width; widths run fastest.
    """
    files: dict[int, Path | None] = {checkpoint.step: None}
    for step, file in snapshots(run).items() if run else ():
        if 0 < step < checkpoint.step:
            files[step] = file
    gammas = [gamma(width) for width in _widths(checkpoint)]
    t = torch.tensor([float(step) for step in files for _ in gammas], dtype=torch.float64)
    return list(files.values()), t, torch.tensor(gammas * len(files), dtype=torch.float64)


def reach(checkpoint: Checkpoint, run: Path | None) -> tuple[int, list[tuple[float, float]]]:
    """How many snapshots a checkpoint has, and the ranges of widths that they can give."""
    files, t, g = _sources(checkpoint, run)
    if not len(g) or len(files) == 1:
        return 0, []
    good = combine(t, g, checkpoint.step, WIDTHS)[1] <= TOLERANCE
    pairs = zip(good.tolist(), WIDTHS, strict=True)
    ranges = [[width for _, width in part] for ok, part in groupby(pairs, lambda p: p[0]) if ok]
    return len(files) - 1, [(part[0], part[-1]) for part in ranges]


def ranges_text(ranges: list[tuple[float, float]]) -> str:
    """Ranges of widths in words: "0.05 to 0.1, 0.2"."""
    return ", ".join(f"{low:g} to {high:g}" if low < high else f"{low:g}" for low, high in ranges)


def reconstruct(checkpoint: Checkpoint, run: Path | None, width: float) -> dict[str, Tensor]:
    """The state dict of the power average of `width` at the step of a checkpoint.

    run: the folder of the checkpoint, which holds the snapshots. Raises FmdiffError if there are
    none, or if they do not give the profile to within 5 %.
    """
    gamma(width)  # raises for an invalid width
    option, widths = f"weights={power(width)}", _widths(checkpoint)
    holds = f"{option}: {checkpoint.title} holds {', '.join(checkpoint.weights)}"
    if not widths:
        raise FmdiffError(
            f"{holds}; widths are reconstructed from runs of trainer.power_ema=[0.05,0.1]"
        )
    files, t, g = _sources(checkpoint, run)
    if len(files) == 1:
        raise FmdiffError(
            f"{holds}, and {(run or Path()) / FOLDER} no snapshots of earlier steps, from which "
            "other widths are reconstructed"
        )
    factors, off = combine(t, g, checkpoint.step, [width])
    if off.item() > TOLERANCE:
        raise FmdiffError(
            f"{option}: the {len(files) - 1} snapshots in {run}/{FOLDER} give its profile only to "
            f"within {off.item():.1%}, and {TOLERANCE:.0%} is allowed; they give widths of "
            f"{ranges_text(reach(checkpoint, run)[1])}"
        )
    names = [power(w) for w in widths]
    like, raw = checkpoint.weights[names[0]], checkpoint.weights.get("raw", {})
    # buffers are copied, not averaged (see `fmdiff.ema.Averages`), if they equal the network's
    copied = {key for key, value in raw.items() if torch.equal(value, like[key])}
    total: dict[str, Tensor] = {}
    for file, row in zip(files, factors.reshape(len(files), -1).tolist(), strict=True):
        weights = checkpoint.weights if file is None else read(file).get("weights", {})
        if missing := [name for name in names if name not in weights]:
            raise FmdiffError(f"{option}: {file} lacks {missing[0]}, which the checkpoint holds")
        if any(_shapes(weights[name]) != _shapes(checkpoint.weights[name]) for name in names):
            raise FmdiffError(
                f"{option}: {file} holds weights of other shapes than the checkpoint"
            )
        for name, factor in zip(names, row, strict=True):
            for key, value in weights[name].items():
                if value.is_floating_point() and key not in copied:
                    total[key] = total.get(key, 0) + factor * value.double()
    log.info(
        "%s: reconstructed from %d snapshots, its profile to within %.2g %%",
        option,
        len(files) - 1,
        100 * off.item(),
    )
    return {k: total[k].to(v.dtype) if k in total else v for k, v in like.items()}


def _shapes(state: dict[str, Tensor]) -> dict[str, torch.Size]:
    return {key: value.shape for key, value in state.items()}
