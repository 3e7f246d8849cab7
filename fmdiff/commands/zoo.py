"""fmdiff zoo: lists the trained models that come with the package."""

from collections.abc import Mapping
from typing import Any

from omegaconf import DictConfig

from fmdiff import tables
from fmdiff.runs import zoo


def zoo_list(cfg: DictConfig) -> None:
    """Print what is known of each model of the zoo, or of the one that name= chooses.

    Raises FmdiffError for an unknown name.
    """
    models = (
        zoo.models() if cfg.name is None else {cfg.name: zoo.model(cfg.name, f"name={cfg.name}")}
    )
    print("\n\n".join(text(name, about) for name, about in models.items()))


def text(name: str, about: Mapping[str, Any]) -> str:
    """A paragraph about a model."""
    size = f"{about['parameters']:,} in {about['bytes'] / 1e6:.2f} MB"
    rows = [
        ("parameters", f"{size}, {about['weights']} weights of step {about['step']:,}"),
        ("sha256", about["sha256"]),
        *(("figure", figure(row)) for row in about["figures"]),
        ("recipe", about["recipe"]),
        (
            "time",
            f"{about['seconds'] / 60:.1f} min on {about['hardware']}, commit {about['commit']}",
        ),
        ("sample", about["sample"]),
    ]
    lines = tables.aligned([(f"  {label}", value) for label, value in rows])
    return f"{zoo.PREFIX}{name}: {about['what']}\n{lines}"


def figure(row: Mapping[str, Any]) -> str:
    """A figure with its interval, its number of samples and how these were drawn."""
    ends = ", ".join(f"{end:.4g}" for end in row["interval"])
    unit = f" {row['unit']}" if row["unit"] else ""
    text = f"{row['metric']} {row['value']:.4g}" + (f" [{ends}]" if ends else "") + unit
    return f"{text}, n={row['n']:,}, {row['settings']}"
