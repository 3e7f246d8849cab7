"""The table and the figure of scripts/jit_toy.sh, from its runs."""

import sys
from pathlib import Path

import numpy as np
import torch
from matplotlib.figure import Figure
from omegaconf import OmegaConf

from fmdiff.build import build
from fmdiff.metrics.distances import noise_floor, sliced_wasserstein2
from fmdiff.pictures import plots, style

N = 10_000
DIMS, PREDICTIONS = (2, 8, 16, 512), ("x", "eps", "v")


def main(out: Path) -> None:
    found: dict[tuple, list] = {}
    clouds: dict[tuple, np.ndarray] = {}
    for file in sorted(out.glob("*-*/[0-9]/points/samples.npz")):
        cfg = OmegaConf.load(file.parents[1] / "config.yaml")
        data = build(OmegaConf.to_container(cfg.data))
        x = torch.from_numpy(np.load(file)["arr_0"])
        flat = data.project(x)
        real = data.plane.sample(0, N, 1)[0]
        cell = (cfg.data.ambient_dim, cfg.objective.prediction)
        found.setdefault(cell, []).append(
            (
                sliced_wasserstein2(flat, real),
                data.off_plane(x),
                data.plane.off_support(flat).double().mean().item(),
            )
        )
        if cfg.seed == 0:
            clouds[cell] = flat[:3000].numpy()
    floor = noise_floor(lambda n, seed: data.plane.sample(0, n, seed)[0], N)
    lines = [
        f"Sliced W2 of the projected samples over the floor {floor:.4f}, energy outside the plane "
        "and points off the curve; median (lowest-highest) over the seeds.",
        "",
        "| D | prediction | SW2 in floors | energy outside | off the curve | runs |",
        "|---|---|---|---|---|---|",
    ]
    for dim in DIMS:
        for prediction in PREDICTIONS:
            runs = np.array(found.get((dim, prediction), []))
            if not len(runs):
                continue
            low, middle, high = np.quantile(runs, (0, 0.5, 1), axis=0)
            lines.append(
                f"| {dim} | {prediction} | {middle[0] / floor:.2f} "
                f"({low[0] / floor:.2f}-{high[0] / floor:.2f}) "
                + "".join(
                    f"| {100 * middle[i]:.3g} % ({100 * low[i]:.3g}-{100 * high[i]:.3g}) "
                    for i in (1, 2)
                )
                + f"| {len(runs)} |"
            )
    (out / "table.md").write_text("\n".join(lines) + "\n")
    print("\n".join(lines))
    plots.save(figure(clouds, real[:3000].numpy()), out / "jit_toy.png")
    print(out / "jit_toy.png")


def figure(clouds: dict[tuple, np.ndarray], real: np.ndarray) -> Figure:
    """A row for each D: the data, then the samples of each prediction, seen in the plane."""
    picture = Figure(figsize=(7.2, 7.4), dpi=130, facecolor="white", layout="constrained")
    axes = picture.subplots(len(DIMS), 1 + len(PREDICTIONS))
    reach = 1.4 * np.abs(real).max()
    for row, dim in zip(axes, DIMS, strict=True):
        columns = [("data", real), *((p, clouds.get((dim, p))) for p in PREDICTIONS)]
        for ax, (name, points) in zip(row, columns, strict=True):
            color = style.DATA if name == "data" else style.SAMPLES
            if points is not None:
                ax.plot(*points.T, ".", markersize=1, markeredgewidth=0, color=color)
            ax.set(
                xlim=(-reach, reach), ylim=(-reach, reach), aspect="equal", xticks=[], yticks=[]
            )
            what = name if name == "data" else f"{name}-prediction"
            ax.set_title(f"{what}, D = {dim}", fontsize=8, color=style.INK)
    return picture


if __name__ == "__main__":
    main(Path(sys.argv[1] if len(sys.argv) > 1 else "outputs/jit_toy"))
