"""Rebuild models of the zoo from their recipes: train, export, evaluate, describe in zoo.json.

python scripts/zoo.py NAME... [--out outputs/zoo] [--hardware TEXT] [--commit ID] [--trained]

The run of a model lies in OUT/NAME; a run that is there already goes on, and so do its figures.
The first figures are computed from the run's float32 weights, too, and zoo.json keeps both.
mnist_map needs the run of mnist. --trained takes the newest checkpoint of each run as it is.
"""

import argparse
import csv
import hashlib
import json
import shlex
import subprocess
import sys
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path
from typing import Any

from fmdiff import files
from fmdiff.errors import word
from fmdiff.loading import load
from fmdiff.runs import averages, checkpoint, safetensors, zoo
from fmdiff.runs.config import load_config
from fmdiff.runs.content import Checkpoint
from fmdiff.runs.find import find

POINTS = "sw2,off_support"
IMAGES = "fid,agreement"


@dataclass(frozen=True)
class Recipe:
    """How a model is trained, judged and sampled; {out} stands for the folder of all runs."""

    what: str
    train: str  # words of fmdiff train
    metrics: str
    evaluate: dict[str, str]  # how the samples are drawn: words of fmdiff evaluate
    sample: str = ""  # words of fmdiff sample
    steps: int | None = None  # of fmdiff sample by default


def points(what: str, train: str) -> Recipe:
    """A model of points, small enough for a browser; judged by five seeds of 10,000."""
    words = f"{train} model.hidden=64 trainer.max_steps=24000 optim.lr=2e-3"
    return Recipe(what, words, POINTS, {"Heun, 28 steps, 5 seeds": "solver=heun repeats=5"})


RECIPES = {
    "moons": points("two moons, velocity field, MLP 3 x 64", "data=moons model.frequencies=16"),
    "8gaussians": points(
        "eight Gaussians, velocity field, MLP 3 x 64",
        "data=8gaussians model.frequencies=16",
    ),
    "checkerboard": points(
        "checkerboard, velocity field, MLP 3 x 64",
        "data=checkerboard model.scale=4",
    ),
    "digits": Recipe(
        "8x8 digits by class, velocity field, U-Net (the judge agrees for 62.6 % of real ones)",
        "data=digits model=unet trainer.max_steps=1400 optim.lr=2e-3",
        IMAGES,
        {
            "w=1, Heun, 10 steps": "solver=heun n=1000 steps=10",
            "w=2, Heun, 10 steps": "solver=heun n=1000 steps=10 guidance=cfg guidance.w=2",
        },
        "guidance=cfg guidance.w=2",
    ),
    "mnist": Recipe(
        "MNIST by class, velocity field, U-Net",
        "experiment=mnist_cond trainer.precision=bf16",
        IMAGES,
        {
            "w=1, Adams, 8 evaluations": "n=1000 solver=adams nfe=8",
            "w=2, Adams, 10 evaluations": "n=1000 solver=adams nfe=10 guidance=cfg guidance.w=2",
        },
        "guidance=cfg guidance.w=2",
        steps=10,
    ),
    "mnist_map": Recipe(
        "MNIST by class, flow map, U-Net: a digit in one evaluation",
        "experiment=mnist_map init={out}/mnist objective.teacher={out}/mnist",
        IMAGES,
        {
            "1 jump": "n=1000 steps=1",
            "2 jumps": "n=1000 steps=2",
            "4 jumps": "n=1000 steps=4",
        },
        "steps=2",
    ),
    "cifar10": Recipe(
        "CIFAR-10 by class, velocity field, transformer",
        "experiment=cifar10_dit_cpu",
        "fid",
        {
            "w=1, Adams, 8 evaluations": "n=2000 solver=adams nfe=8",
        },
        "guidance=cfg guidance.w=2",
        steps=10,
    ),
}


def fmdiff(*words: str) -> None:
    print(shlex.join(("fmdiff", *words)), flush=True)
    subprocess.run([sys.executable, "-m", "fmdiff", *words], check=True)


def train(name: str, out: Path) -> None:
    """Train a model in OUT/NAME, or go on with the run that is there."""
    run = out / name
    if (run / "config.yaml").is_file():
        fmdiff("train", f"resume={run}", "threads=1")
    else:
        words = RECIPES[name].train.format(out=out).split()
        fmdiff("train", *words, "threads=1", f"out={run}")


def seconds(run: Path) -> float:
    """The wall time of a training; it counts from 0 again after each interruption."""
    with (run / "metrics.csv").open(newline="") as file:
        times = [float(row["seconds"]) for row in csv.DictReader(file) if row["seconds"]]
    return sum(now for now, then in pairwise([*times, 0]) if then < now)


def export(name: str, run: Path) -> dict[str, Any]:
    """Write the averaged weights of a run as the model's file. Returns its part of zoo.json."""
    file, path = find(run), zoo.FOLDER / f"{name}.safetensors"
    content = Checkpoint.of(checkpoint.read(file), file)
    if "teacher" in content.spec["objective"]:  # a path on this machine
        objective = content.spec["objective"] | {"teacher": "zoo:mnist"}
        content = replace(content, spec=content.spec | {"objective": objective})
    average = content.name_of("ema")
    state = averages.weights_of(content, "ema", run)
    safetensors.write(path, content, average, state, overwrite=True, half=True)
    net = load(path).net
    assert net is not None
    return {
        "sha256": hashlib.sha256(path.read_bytes()).hexdigest(),
        "bytes": path.stat().st_size,
        "parameters": sum(p.numel() for p in net.parameters()),
        "step": content.step,
        "weights": average,
    }


def judge(words: str, metrics: str, ckpt: str, out: Path) -> dict[str, Any]:
    """The metrics of samples of a checkpoint; those of the same weights in OUT are taken."""
    path, sha256 = out / "results.json", load(ckpt).sha256
    if not path.is_file() or json.loads(path.read_text())["checkpoint"]["sha256"] != sha256:
        fmdiff(
            "evaluate",
            word("ckpt", ckpt),
            f"metrics=[{metrics}]",
            *words.split(),
            "threads=1",
            f"out={out}",
            "overwrite=true",
        )
    content: dict[str, Any] = json.loads(path.read_text())
    return content["metrics"]


def figures(name: str, run: Path) -> list[dict[str, Any]]:
    """The figures of a model in half precision; the first by the same noise in float32, too."""
    recipe, rows = RECIPES[name], []
    for number, (settings, words) in enumerate(recipe.evaluate.items()):
        half = judge(words, recipe.metrics, f"zoo:{name}", run / f"half-{number}")
        single = {} if number else judge(words, recipe.metrics, str(run), run / "float32")
        command = f"fmdiff evaluate ckpt=zoo:{name} metrics=[{recipe.metrics}] {words}"
        for metric, result in half.items():
            # a sliced distance is told in floors, the distance between sets of real points
            scale = result["floor"] if metric == "sw2" else 1.0
            rows.append(
                {
                    "metric": metric,
                    "value": result["value"] / scale,
                    # a Frechet distance of few samples has none
                    "interval": [max(0.0, end) / scale for end in result.get("interval", ())],
                    "unit": "floors" if metric == "sw2" else "",
                    "n": result["n"],
                    "settings": settings,
                    "float32": single[metric]["value"] / scale if single else None,
                    "command": command,
                }
            )
    return rows


def describe(name: str, entry: dict[str, Any]) -> None:
    """Put a model into zoo.json, in the order of the recipes."""
    path = zoo.FOLDER / "zoo.json"
    entries = (zoo.models() if path.is_file() else {}) | {name: entry}
    ordered = {name: entries[name] for name in RECIPES if name in entries}
    files.write_text(path, json.dumps(ordered, indent=2) + "\n")


def head() -> str:
    """The commit that is checked out."""
    words = ["git", "rev-parse", "--short=10", "HEAD"]
    return subprocess.run(words, check=True, capture_output=True, text=True).stdout.strip()


def build(name: str, out: Path, hardware: str, commit: str) -> None:
    """Write the file and the entry of a trained run. commit: of the fmdiff that trained it."""
    recipe, run = RECIPES[name], out / name
    entry: dict[str, Any] = {"what": recipe.what, **export(name, run)}
    sample = f"fmdiff sample ckpt=zoo:{name} {recipe.sample}".strip()
    words = recipe.train.format(out="outputs/zoo")
    whole = load_config(run).trainer.max_steps == entry["step"]
    stopped = "" if whole else f"  # stopped at step {entry['step']:,}"
    entry |= {
        "figures": [],
        "recipe": f"fmdiff train {words} threads=1 out=outputs/zoo/{name}{stopped}",
        "seconds": round(seconds(run)),
        "hardware": hardware,
        "commit": commit,
        "sample": sample,
        "steps": recipe.steps,
    }
    describe(name, entry)  # zoo:NAME is what its figures are computed from
    describe(name, entry | {"figures": figures(name, run)})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("names", nargs="*", choices=RECIPES, default=list(RECIPES))
    parser.add_argument("--out", type=Path, default=Path("outputs/zoo"))
    parser.add_argument("--hardware", default="1 core")
    parser.add_argument("--commit", default=head())
    parser.add_argument("--trained", action="store_true")
    args = parser.parse_args()
    for name in args.names:
        if not args.trained:
            train(name, args.out)
        build(name, args.out, args.hardware, args.commit)


if __name__ == "__main__":
    main()
