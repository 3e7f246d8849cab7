"""fmdiff info: describes a checkpoint, or exports its weights."""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from omegaconf import DictConfig

from fmdiff import tables
from fmdiff.build import named
from fmdiff.classifier import Classifier
from fmdiff.ema import POWER, SCHEDULE_FREE, gamma
from fmdiff.errors import word
from fmdiff.field import NetField
from fmdiff.loading import restore
from fmdiff.models.autoencoder import Latent
from fmdiff.runs import averages, checkpoint, safetensors, zoo
from fmdiff.runs.content import Checkpoint
from fmdiff.runs.find import find
from fmdiff.sampling import usual_solver

# the guidance scales of other code and papers in terms of fmdiff's w, which has no effect at 1
SCALES = {
    "DiT, SiT, JiT, minRF, EDM2, diffusers": "w, off at 1",
    "Ho & Salimans 2022, flow_matching's examples": "w - 1, off at 0",
    "classifier guidance, Dhariwal & Nichol 2021": "w, or w - 1 beside a conditional model",
}


def summary(spec: dict[str, Any]) -> str:
    """Format a spec in one line: the class and its settings."""
    keys = ", ".join(f"{k}={v}" for k, v in spec.items() if k != "_target_")
    return f"{spec['_target_'].rpartition('.')[2]}({keys})"


def _print(rows: Mapping[str, object], indent: str = "") -> None:
    print(tables.aligned([(indent + name, value) for name, value in rows.items()]))


def _names(names: Sequence[str], most: int = 10) -> str:
    """The names of classes in brackets, as `classes=` takes them, or nothing."""
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return f" ({', '.join(names[:most])}{more})" if names else ""


def average_rows(content: Checkpoint, run: Path) -> dict[str, str]:
    """Describe each average in a checkpoint, and those that can be reconstructed, in a line each.

    The half-life of a decay d is log 2 / log(1/d) steps. d is smaller during warm-up.
    """
    step, data = content.step, content.spec["data"]
    trainer = (content.training or {}).get("config", {}).get("trainer", {})
    size = data["source"].get("batch_size")
    noun = "images" if len(data["shape"]) == 3 else "points"
    rows = {}
    for name in content.weights:
        if name.startswith(POWER):
            width = float(name.removeprefix(POWER))
            centre = (gamma(width) + 1) / (gamma(width) + 2)
            rows[name] = (
                f"over steps {centre * step:,.0f} +- {width * step:,.0f}: mean {centre:.1%} and "
                f"standard deviation {width:.1%} of all, gamma {gamma(width):.4g}"
            )
        elif name == SCHEDULE_FREE:
            rows[name] = "the optimiser's own average"
        elif name != "raw":
            steps = math.log(2) / -math.log(float(name))
            samples = f", {steps * size:,.0f} {noun}" if isinstance(size, int) else ""
            rows[name] = f"half-life {steps:,.1f} steps{samples}"
            now = (1 + step) / (10 + step)
            if trainer.get("ema_warmup") and now < float(name):
                rows[name] += f"; warming up, {math.log(2) / -math.log(now):,.3g} steps now"
    count, ranges = averages.reach(content, run)
    if count:
        widths = averages.ranges_text(ranges) or "none"
        rows[f"{POWER}WIDTH"] = f"by {count} snapshots, widths {widths}"
    return rows


def map_text(field: NetField) -> str:
    """Describe what a flow map takes besides x_t and t."""
    end = "s = 1, the data" if field.consistency else "a time s"
    text = f"gives the mean velocity from t to {end}, for solver=jump; with s = t it is a field"
    if field.scales:
        lo, hi = field.scales
        text += f"; guidance.w from {lo:g} to {hi:g} is an input, at one evaluation"
    return text


def how_to_sample(field: NetField, spelling: str = "") -> str:
    """The words of a command line that sample the field of ckpt=spelling well."""
    name, keys = usual_solver(field)
    words = [f"solver={name}", *(f"solver.{k}={v:g}" for k, v in keys.items() if v)]
    words.append(f"steps={zoo.steps(spelling) or named('solver', name).default_steps}")
    words += [f"cond.{name}=data:test" for name in field.conditions]
    if field.classes or field.conditions:
        lo, hi = field.scales or (2.0, 2.0)
        words.append(f"guidance=cfg guidance.w={min(max(2.0, lo), hi):g}")
    return " ".join(words)


def how_to_use(model: Classifier | Latent, data: str, spelling: str) -> str:
    """A command that uses the classifier or the autoencoder of ckpt=spelling."""
    if isinstance(model, Latent):
        return f"fmdiff train data=latent data.of={data} {word('data.autoencoder', spelling)}"
    words = f"guidance=classifier {word('guidance.ckpt', spelling)} guidance.w=2"
    return f"fmdiff sample ckpt=RUN {words}"


def info(cfg: DictConfig) -> None:
    """Print what the checkpoint of `ckpt=` holds and how to sample it, or write export=."""
    path = find(cfg.ckpt)
    content = Checkpoint.of(checkpoint.read(path), path)
    if cfg.export is not None:
        restore(content, cfg.weights, tuple(cfg.trust), path.parent)  # raises if it cannot be used
        file, name = Path(cfg.export).expanduser(), content.name_of(cfg.weights)
        state = averages.weights_of(content, cfg.weights, path.parent)
        safetensors.write(file, content, name, state, cfg.overwrite, cfg.half)
        print(f"{file}: weights={name} at step {content.step:,}")
        print(f"fmdiff sample ckpt={file}")
        return
    field = restore(content, trust=tuple(cfg.trust), run=path.parent)
    spec, data = content.spec, content.spec["data"]
    spelling = zoo.spelling(path)
    net = field if isinstance(field, Latent) else field.net
    assert net is not None
    parameters = sum(p.numel() for p in net.parameters())
    of_field: dict[str, object] = {}
    if forms := data.get("conditions"):
        shapes = (f"{name} of shape {tuple(form['shape'])}" for name, form in forms.items())
        of_field["conditions"] = ", ".join(shapes)
    if codec := data.get("codec"):
        of_field["codec"] = f"{summary(codec)} decodes the samples"
    if isinstance(field, Latent):
        of_field["latent"] = f"shape {field.latent}"
    if isinstance(field, NetField):
        of_field["interval"] = "t in [{:.4g}, {:.4g}]".format(*field.interval("straight"))
        if field.two_times:
            of_field["flow map"] = map_text(field)
    rows: dict[str, object] = {
        "checkpoint": f"{spelling} ({path.stat().st_size / 1e6:.1f} MB, format {content.version})",
        "step": content.step,
        "model": f"{summary(spec['model'])}, {parameters:,} parameters",
        "path": summary(spec["path"]),
        "objective": summary(spec["objective"]),
        **{group: summary(spec[group]) for group in ("source", "coupling") if group in spec},
        "data": f"{data['name']}, shape {tuple(data['shape'])}, "
        f"{data['classes'] or 'no'} classes{_names(field.names)}, std {data['std']:.4g}",
        **of_field,
        "weights": ", ".join(content.weights) + " (weights=ema takes the first average)",
        "resumable": "no, weights only" if content.training is None else "yes",
    }
    _print(rows)
    if of_averages := average_rows(content, path.parent):
        print("\naverages, as weights=")
        _print(of_averages, "  ")
    if not isinstance(field, NetField):
        print(f"\n{how_to_use(field, data['name'], spelling)}")
        return
    if data["classes"]:
        print("\nguidance.w=w, off at 1, is elsewhere")
        _print(SCALES, "  ")
    print(f"\nfmdiff sample {word('ckpt', spelling)} {how_to_sample(field, spelling)}")
