"""fmdiff info: what a checkpoint holds."""

from fmdiff import checkpoint
from fmdiff.classifier import Classifier
from fmdiff.loading import restore

# guidance scales of other code and papers at our w; theirs is off at the value of w = 1
SCALES = {
    "DiT, SiT, JiT, minRF, EDM2, diffusers": "w, off at 1",
    "Ho & Salimans 2022, flow_matching's examples": "w - 1, off at 0",
    "classifier guidance, Dhariwal & Nichol 2021": "w, or w - 1 beside a conditional model",
}


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
    classifier = isinstance(field, Classifier)
    span = None if classifier else "t in [{:.4g}, {:.4g}]".format(*field.interval("straight"))
    rows = {
        "checkpoint": f"{path} ({path.stat().st_size / 1e6:.1f} MB, format {content['version']})",
        "step": content["step"],
        "model": f"{described(spec['model'])}, {parameters:,} parameters",
        "path": described(spec["path"]),
        "objective": described(spec["objective"]),
        **{group: described(spec[group]) for group in ("source", "coupling") if group in spec},
        "data": f"{data['name']}, shape {tuple(data['shape'])}, "
        f"{data['classes'] or 'no'} classes, std {data['std']:.4g}",
        **({} if span is None else {"interval": span}),
        "weights": ", ".join(content["weights"]) + " (weights=ema takes the first average)",
        "resumable": "yes" if "training" in content else "no, weights only",
    }
    width = max(map(len, rows))
    for name, value in rows.items():
        print(f"{name:<{width}}  {value}")
    if classifier:
        print(f"\nfmdiff sample ckpt=RUN guidance=classifier guidance.ckpt={path} guidance.w=2")
        return
    if data["classes"]:
        print("\nguidance.w=w, off at 1, is elsewhere")
        for name, scale in SCALES.items():
            print(f"  {name:<{max(map(len, SCALES))}}  {scale}")
    guided = " guidance=cfg guidance.w=2" if data["classes"] else ""
    print(f"\nfmdiff sample ckpt={path} solver=heun steps=28{guided}")
