"""fmdiff info: what a checkpoint holds."""

from fmdiff import checkpoint
from fmdiff.loading import restore


def described(spec: dict) -> str:
    """A spec in one line: the class and its settings."""
    keys = ", ".join(f"{k}={v}" for k, v in spec.items() if k != "_target_")
    return f"{spec['_target_'].rpartition('.')[2]}({keys})"


def info(cfg) -> None:
    """Print what the checkpoint of `ckpt=` holds and how to sample it."""
    path = checkpoint.find(cfg.ckpt)
    content = checkpoint.read(path)
    spec, data = content["spec"], content["spec"]["data"]
    field = restore(content, trust=tuple(cfg.trust))
    parameters = sum(p.numel() for p in field.net.parameters())
    lo, hi = field.interval("straight")
    rows = {
        "checkpoint": f"{path} ({path.stat().st_size / 1e6:.1f} MB, format {content['version']})",
        "step": content["step"],
        "model": f"{described(spec['model'])}, {parameters:,} parameters",
        "path": described(spec["path"]),
        "objective": described(spec["objective"]),
        **{group: described(spec[group]) for group in ("source", "coupling") if group in spec},
        "data": f"{data['name']}, shape {tuple(data['shape'])}, "
        f"{data['classes'] or 'no'} classes, std {data['std']:.4g}",
        "interval": f"t in [{lo:.4g}, {hi:.4g}]",
        "weights": ", ".join(content["weights"]) + " (weights=ema takes the first average)",
        **(
            {"guidance.w": "1 is none; w of SiT, DiT, JiT and EDM2; FM's examples say w - 1"}
            if data["classes"]
            else {}
        ),
        "resumable": "yes" if "training" in content else "no, weights only",
    }
    width = max(map(len, rows))
    for name, value in rows.items():
        print(f"{name:<{width}}  {value}")
    print(f"\nfmdiff sample ckpt={path} solver=heun steps=28", end="")
    print(" guidance=cfg guidance.w=2" if data["classes"] else "")
