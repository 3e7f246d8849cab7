"""fmdiff likelihood: log p of real samples under a model, and what it cost."""

import json
import math
import time
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from omegaconf import OmegaConf
from torch import Tensor

from fmdiff import __version__
from fmdiff.build import build
from fmdiff.commands.sample import use_threads
from fmdiff.errors import FmdiffError
from fmdiff.field import Field
from fmdiff.guidance import Unguided
from fmdiff.likelihood import bits_per_dim, dequantised, estimates, need_field
from fmdiff.loading import guidance, opened
from fmdiff.machine import device, precision
from fmdiff.machine.progress import Bar
from fmdiff.sampling import Sampler, default_batch_size

POINTS, IMAGES = 1000, 64


class Subject(NamedTuple):
    """What likelihood and invert are about."""

    field: Field
    x: Tensor
    y: Tensor | None  # None: no classes
    guidance: Unguided
    about: dict[str, Any] | None  # of a checkpoint
    labelled: str  # how the labels enter, in words


def subject(cfg, settings: dict[str, Any], where: torch.device, images: int) -> Subject:
    """The field that settings name, on `where`, and the first n real samples of the test split.

    Raises FmdiffError for settings that do not go together.
    """
    own = settings["data"] is None or not settings["ckpt"]
    field, data, about = opened(settings, data=own)
    if not own:
        data = build(settings["data"])
        data.prepare()
    if tuple(data.shape) != field.shape:
        raise FmdiffError(
            f"data={cfg.choices.data} has shape {list(data.shape)}, the model {list(field.shape)}"
        )
    n = settings["n"]
    if n is None:
        n = images if len(field.shape) == 3 else POINTS
        n = min(n, data.references or n)
    x, y = data.sample(0, n, settings["seed"])
    if not field.classes:
        y, labelled = None, "log p(x)"
    elif settings["label"] == "none":
        y, labelled = torch.full((n,), field.classes), "log p(x) by the null label"
    elif y is None or y.max() >= field.classes:
        raise FmdiffError(
            "label=own needs data with the model's classes: data.conditional=true, or label=none"
        )
    else:
        labelled = "log p(x | y) of each sample's own label"
    size = settings["batch_size"] or default_batch_size(field.shape)
    use_threads(settings["threads"], field, min(size, n), where)
    leader = guidance(settings["guidance"])
    need_field(leader)
    for part in filter(None, (field, leader.guide)):
        precision.hasten(part, "fp32", False, where)
    return Subject(field, x, y, leader, about, labelled)


def likelihood(cfg, folder: Path) -> None:
    """log p of cfg.n real samples under ckpt= or model=; prints it and what it cost.

    Writes likelihood.json (see Estimates) and likelihood.npz: log_prob (n,), se (n,) where two
    probes or more tell it, labels where they were used.
    """
    where = device.pick(cfg.device)
    settings: dict[str, Any] = OmegaConf.to_container(cfg)  # type: ignore[assignment]
    field, x, y, leader, about, labelled = subject(cfg, settings, where, IMAGES)
    images, n, d = len(field.shape) == 3, len(x), math.prod(field.shape)
    x = dequantised(x, cfg.seed) if images else x
    print(f"{labelled}: {n} {'dequantised images' if images else 'points'}, {cfg.choices.solver}")
    bar = Bar(n)
    begin = time.perf_counter()
    sampler = Sampler(
        **{name: settings[name] for name in ("steps", "coordinates", "batch_size")},
        solver=build(settings["solver"]),
        guidance=leader,
        device=where,
        dtype=getattr(torch, settings["dtype"]),
    )
    names = ("divergence", "probes", "probe", "seed")
    options = {name: settings[name] for name in names}
    found = estimates(field, x, y, sampler, **options, progress=bar)
    seconds = time.perf_counter() - begin
    bar.close()
    log_p = found.each.mean(1)
    bad = int((~log_p.isfinite()).sum())
    if bad:
        raise FmdiffError(
            f"{bad} of {n} samples have no finite log p(x): try more steps or dtype=float64; with "
            "source=truncated they are carried to where the source has none"
        )
    probes = 0 if found.exact else settings["probes"]
    nll, bits = -log_p.mean().item(), bits_per_dim(-log_p.mean().item(), field.shape)
    se = log_p.std().item() / math.sqrt(n) if n > 1 else None
    bits_se = None if se is None else se / (d * math.log(2))
    each_se = found.each.std(1) / math.sqrt(probes) if probes > 1 else None
    way = "exact divergence" if found.exact else f"{probes} {settings['probe']} probes"
    said = "" if se is None else f" +- {se:.2g}"
    said_bits = "" if bits_se is None else f" +- {bits_se:.2g}"
    print(f"nll {nll:.4f}{said} nats, {bits:.4f}{said_bits} bits per dimension, {way}")
    if each_se is not None:
        print(f"of which the probes leave {each_se.mean():.2g} nats in each sample")
    if found.noise > 0:
        print(
            f"given at t={found.t:.5g}, where the model ends with noise of std {found.noise:.3g}: "
            "the density is that of data with this noise, at the data"
        )
    print(f"{found.nfe:g} evaluations per sample counted, {seconds:.1f} s")
    report = {
        **{"nll": nll, "nll_se": se, "bits_per_dim": bits, "bits_per_dim_se": bits_se},
        **{"n": n, "nfe": found.nfe, "solver": cfg.choices.solver},
        **{"divergence": "exact" if found.exact else "hutchinson", "probes": probes},
        **{"t": found.t, "noise": found.noise, "quantity": labelled, "dequantised": images},
        "probe_se": None if each_se is None else each_se.mean().item(),
        **{"seconds": seconds, "device": str(where), "checkpoint": about, "config": settings},
        "versions": {"torch": torch.__version__, "fmdiff": __version__},
    }
    arrays = {"log_prob": log_p, "se": each_se, "labels": y if cfg.label == "own" else None}
    put(folder, "likelihood", report, arrays)
    for name in ("likelihood.npz", "likelihood.json"):
        print(f"  {folder / name}")


def put(folder: Path, name: str, report: dict, arrays: dict[str, Tensor | None]) -> None:
    """Write NAME.npz of the arrays that are there and NAME.json, each whole or not at all."""
    kept = {key: value.numpy() for key, value in arrays.items() if value is not None}
    text = json.dumps(report, indent=2, default=str) + "\n"
    for path, write in (
        (folder / f"{name}.npz", lambda part: np.savez(part, **kept)),  # type: ignore[arg-type]
        (folder / f"{name}.json", lambda part: part.write_text(text)),
    ):
        part = path.with_name(f".part-{path.name}")
        write(part)
        part.replace(path)
