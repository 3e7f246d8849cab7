"""fmdiff likelihood: computes log p of real samples under a model."""

import math
import time
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from omegaconf import DictConfig, OmegaConf
from torch import Tensor

from fmdiff import __version__, files
from fmdiff.build import build
from fmdiff.commands.arguments import compute, use_threads
from fmdiff.commands.given import of_samples
from fmdiff.commands.stage import Stage, set_up
from fmdiff.condition import Given, given, label, named
from fmdiff.data import values
from fmdiff.errors import FmdiffError
from fmdiff.field import Field
from fmdiff.guidance import Unguided
from fmdiff.likelihood import Estimates, bits_per_dim, dequantise, estimates, need_field
from fmdiff.loading import guidance
from fmdiff.machine import device
from fmdiff.machine.progress import Bar
from fmdiff.sampling import Sampler, default_batch_size

POINTS, IMAGES = 1000, 64


@dataclass(frozen=True, kw_only=True)
class Subject(Stage):
    """A stage with real samples, on which likelihood and invert work."""

    x: Tensor  # (n, *outer), as the user knows them
    y: Given | None  # of n rows; None without classes and conditions
    guidance: Unguided
    quantity: str  # the name of the density, which tells how the labels enter

    @property
    def given(self) -> dict[str, Tensor | None]:
        """What the samples are given, as arrays of a file: labels, unless null, and cond_NAME."""
        labels = None if self.settings["label"] == "none" else label(self.y)
        parts = {values.SAMPLES.format(name): part for name, part in named(self.y).items()}
        return {"labels": labels, **parts}

    @cached_property
    def learned(self) -> Tensor:
        """The samples (n, *shape) as the model learns them."""
        return self._batched("encode", self.x)

    def decoded(self, z: Tensor) -> Tensor:
        """What the model learns, z (m, *shape), as samples (m, *outer)."""
        return self._batched("decode", z)

    @torch.no_grad()
    def _batched(self, way: str, rows: Tensor) -> Tensor:
        codec = self.field.codec
        if codec is None:
            return rows
        codec = codec.to(self.where)
        act = codec.encode if way == "encode" else codec.decode
        parts = rows.split(default_batch_size(codec.outer))
        return torch.cat([act(part.to(self.where)).cpu() for part in parts])

    def sampler(self, **solution: Any) -> Sampler:
        """The sampler of the field. solution: the solver and its steps."""
        return Sampler(
            guidance=self.guidance,
            coordinates=self.settings["coordinates"],
            batch_size=self.size,
            device=self.where,
            dtype=getattr(torch, self.settings["dtype"]),
            **solution,
        )


def subject(settings: dict[str, Any], points: int, images: int) -> Subject:
    """The stage that settings describe, with the first n real samples of the test split.

    points, images: the default numbers of samples. Raises FmdiffError for settings that do not go
    together.
    """
    other = settings["data"] is not None and settings["ckpt"]
    stage = set_up(settings, device.pick(settings["device"]), points, images, data=not other)
    field, data = stage.field, stage.data
    if other:
        data = build(settings["data"])
        data.prepare()
    assert data is not None
    data = data.user
    if tuple(data.shape) != field.outer:
        raise FmdiffError(
            f"data={settings['choices']['data']} has shape {list(data.shape)}, the model "
            f"{list(field.outer)}"
        )
    n = stage.n if settings["n"] else min(stage.n, data.references or stage.n)
    x, own = data.sample(0, n, settings["seed"])
    y = label(own)
    quantity = "log p(x)"
    if not field.classes:
        y = None
    elif settings["label"] == "none":
        y, quantity = torch.full((n,), field.classes), "log p(x) by the null label"
    elif y is None or y.max() >= field.classes:
        raise FmdiffError(
            "label=own needs data with the model's classes: data.conditional=true, or label=none"
        )
    else:
        quantity = "log p(x | y) of each sample's own label"
    if field.conditions:
        quantity = f"{quantity} given {', '.join(field.conditions)}"
    use_threads(replace(stage, size=min(stage.size, n)))
    leader = guidance(settings["guidance"])
    need_field(leader)
    compute(stage, leader, "fp32", False)
    # more than n samples may be decoded, so n does not bound the batch size
    size = settings["batch_size"] or default_batch_size(field.shape)
    parts = vars(stage) | {"data": data, "n": n, "size": size}
    known = given(y, of_samples(field, own, n))
    return Subject(**parts, x=x, y=known, guidance=leader, quantity=quantity)


def likelihood(cfg: DictConfig, folder: Path) -> None:
    """Compute log p of cfg.n real samples under ckpt= or model=. Prints it with its cost.

    Writes likelihood.json (see Estimates) and likelihood.npz: log_prob (n,), se (n,) if there are
    two probes or more, labels if they were used, and cond_NAME of conditions.
    """
    settings: dict[str, Any] = OmegaConf.to_container(cfg)  # type: ignore[assignment]
    of = subject(settings, POINTS, IMAGES)
    solver, scale = settings["choices"]["solver"], log_det(of.field)
    print(f"{of.quantity}: {of.n} {'dequantised ' * of.images}{of.kind}, {solver}")
    x = dequantise(of.x, settings["seed"]) if of.images else of.learned
    sampler = of.sampler(solver=build(settings["solver"]), steps=settings["steps"])
    options = {name: settings[name] for name in ("divergence", "probes", "probe", "seed")}
    begin = time.perf_counter()
    with Bar(of.n) as bar:
        result = estimates(of.field, x, of.y, sampler, **options, progress=bar)
        seconds = time.perf_counter() - begin
    log_p = result.each.mean(1) + scale
    if bad := int((~log_p.isfinite()).sum()):
        raise FmdiffError(
            f"{bad} of {of.n} samples have no finite log p(x): try more steps or dtype=float64; "
            "with source=truncated they are carried to where the source has none"
        )
    probes = 0 if result.exact else settings["probes"]
    each_se = result.each.std(1) / math.sqrt(probes) if probes > 1 else None
    figures = _figures(log_p, of.field.shape)
    _print(figures, result, each_se, f"{probes} {settings['probe']} probes")
    print(f"{result.nfe:g} evaluations per sample counted, {seconds:.1f} s")
    report = figures | {
        "n": of.n,
        "nfe": result.nfe,
        "solver": solver,
        "divergence": "exact" if result.exact else "hutchinson",
        "probes": probes,
        "t": result.t,
        "noise": result.noise,
        "quantity": of.quantity,
        "dequantised": of.images,
        "probe_se": None if each_se is None else each_se.mean().item(),
        "seconds": seconds,
    }
    write(folder, "likelihood", report, {"log_prob": log_p, "se": each_se, **of.given}, of)
    for name in ("likelihood.npz", "likelihood.json"):
        print(f"  {folder / name}")


def log_det(field: Field) -> float:
    """log |dz/dx| of the codec of a field, 0.0 without one.

    Raises FmdiffError for a codec without inverse, like an autoencoder.
    """
    scale = 0.0 if field.codec is None else field.codec.log_det()
    if scale is None:
        raise FmdiffError(
            "this model learns the latents of an autoencoder, and nats or bits of latents are not "
            "of samples: likelihood needs a model of the samples themselves"
        )
    return scale


def _figures(log_p: Tensor, shape: tuple[int, ...]) -> dict[str, float | None]:
    """The mean of -log p in nats and bits per dimension, with standard errors."""
    n, nll = len(log_p), -log_p.mean().item()
    se = log_p.std().item() / math.sqrt(n) if n > 1 else None
    bits_se = None if se is None else se / (math.prod(shape) * math.log(2))
    bits = bits_per_dim(nll, shape)
    return {"nll": nll, "nll_se": se, "bits_per_dim": bits, "bits_per_dim_se": bits_se}


def _print(
    figures: dict[str, float | None], result: Estimates, each_se: Tensor | None, probes: str
) -> None:
    errors = {
        name: "" if figures[name] is None else f" +- {figures[name]:.2g}"
        for name in ("nll_se", "bits_per_dim_se")
    }
    print(
        f"nll {figures['nll']:.4f}{errors['nll_se']} nats, "
        f"{figures['bits_per_dim']:.4f}{errors['bits_per_dim_se']} bits per dimension, "
        f"{'exact divergence' if result.exact else probes}"
    )
    if each_se is not None:
        print(f"of which the probes leave {each_se.mean():.2g} nats in each sample")
    if result.noise > 0:
        print(
            f"given at t={result.t:.5g}, where the model ends with noise of std "
            f"{result.noise:.3g}: the density is that of data with this noise, at the data"
        )


def write(
    folder: Path,
    name: str,
    report: dict[str, Any],
    arrays: dict[str, Tensor | None],
    of: Subject,
) -> None:
    """Write NAME.npz of the arrays that are not None, and NAME.json of the report and subject."""
    present = {key: value.numpy() for key, value in arrays.items() if value is not None}
    files.write_npz(folder / f"{name}.npz", present)
    report |= {
        "device": str(of.where),
        "checkpoint": of.about,
        "config": of.settings,
        "versions": {"torch": torch.__version__, "fmdiff": __version__},
    }
    files.write_json(folder / f"{name}.json", report)
