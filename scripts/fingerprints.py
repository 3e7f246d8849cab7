"""Whether another version of fmdiff gives the same results, bit for bit.

python scripts/fingerprints.py record FOLDER [--fmdiff FILE] [--only NAME ...]
python scripts/fingerprints.py continue OLD_FOLDER NEW_FOLDER [--fmdiff FILE]
python scripts/fingerprints.py compare A/fingerprints.json B/fingerprints.json [--only NAME ...]

`record` runs the commands of TABLE in FOLDER by the executable FILE and writes down what each
printed and left: FOLDER/fingerprints.json. `continue` copies runs of such a folder, whichever
version made them, and goes on with them. `compare` says what differs and exits 1 if anything does.

Commands and files alone are used, so it works on any version. Left out are times, speeds, versions
and places; MNIST and CIFAR-10 are used if FMDIFF_DATA says where they are. `record --only` runs
some commands anew in a folder that holds the earlier ones they build on. Seven minutes of a core.
"""

import argparse
import csv
import hashlib
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml
from PIL import Image, ImageSequence
from safetensors import safe_open

TINY = "model.channels=8 model.multipliers=[1,2] model.head_channels=8"
POINTS, PIXELS = "steps=5 n=60", "steps=3 n=6"
# NAME: words of a command, to which `commands` adds what is usual. A name that begins with real-
# needs FMDIFF_DATA; of one that begins with plan- only the exit code counts.
TABLE = f"""
toy: train data=gmm4 data.conditional=true trainer.ema=[0.9,0.99] trainer.max_steps=30
  trainer.metrics=[sw2] trainer.metrics_every=10 trainer.metrics_n=200 trainer.best=sw2
  trainer.logger=tensorboard
toy-resumed: train resume=toy trainer.max_steps=60
toy-init: train init=toy data=gmm4 data.conditional=true optim=adamw trainer.decay=constant
  trainer.clip=null trainer.ema=[]
paths: train -m path=condot,vp,cosine,polynomial,linear_vp,ve,edm,lipman,custom data=two_modes
  model.hidden=32
predictions: train -m objective.prediction=x,eps,v,score,v_sh path=condot,vp data=gmm4
  model.hidden=32
losses: train -m objective.loss=x,eps,v,score,v_sh objective.distance=pseudo_huber
  trainer.accumulate=2 model.hidden=32
weightings: train -m objective.weighting=none,snr,min_snr,edm,sigmoid,likelihood
  objective.prediction=x objective.distance=l1 model.activation=relu model.skip=false
  model.hidden=32
couplings: train -m coupling=independent,ot,sinkhorn source=hypersphere,truncated
  data=8gaussians data.conditional=true model.hidden=32
ot: train coupling=ot source=data source.data=8gaussians
times: train -m time=beta,cosmap,discrete,log_normal,logit_normal,mode,u_shaped,uniform
  time.stratified=true model.hidden=32
datas: train -m data=checkerboard,swissroll,rings,pinwheel,spirals,gmm,embedded
  model.activation=selu model.frequencies=0 model.hidden=32
experiments: train -m experiment=ddpm,dsm,rectified_flow,jit_toy path.shift=2
power: train trainer.power_ema=[0.05,0.1] trainer.snapshot_every=5 trainer.max_steps=60
classifier: train data=gmm4 data.conditional=true model=mlp_classifier objective=classification
unet: train data=digits model=unet {TINY} trainer.ema=[0.9]
unet-bf16: train data=digits model=unet_flow_matching {TINY} trainer.precision=bf16
  trainer.recompute=true trainer.accumulate=2
dit: train data=digits data.augment=0.2 model=dit_s model.augment=9 model.width=32 model.depth=2
  model.heads=2
jit: train experiment=jit data=digits model=jit_mnist model.patch=2 model.bottleneck=8
  model.width=32 model.depth=3 model.heads=2 model.label_tokens=2 model.start=1
ddpmpp: train experiment=edm data=digits data.augment=0.12 model=ddpmpp model.channels=16
  model.multipliers=[1,2] model.blocks=1
digits-classifier: train data=digits model=classifier model.channels=8 model.multipliers=[1,2]
  objective=classification
folder: train data=folder data.root=pictures data.size=28 data.channels=1 data.flip=true
  data.skip_broken=true data.batch_size=8 model=unet_cifar {TINY}
real-mnist: train data=mnist data.only=[5] model=unet {TINY} trainer.max_steps=10
  trainer.metrics=[fid,kid] trainer.metrics_n=32 trainer.best=fd_mnist
processes: train trainer.devices=2 model.hidden=32
plan-digits: train data=digits model=unet {TINY} plan=true
solvers: sample -m ckpt=toy n=60 steps=6 classes=[0,2] solver=adams,ddpm,deis,dpm_2,dpmpp_2m,\
dpmpp_2m_sde,dpmpp_3m,edm_churn,euler,euler_maruyama,heun,midpoint,predictor_corrector,rk4,unipc
schedules: sample -m ckpt=toy schedule=cosine,explicit,karras,logsnr,power,quadratic,ratio,\
shifted,uniform solver=adams n=60
fitted: sample -m ckpt=toy schedule=fitted schedule.n=8 schedule.reference=20 seed=0,1
  steps=3 n=60
coordinates: sample -m model=exact data=gmm4 coordinates=straight,native
  final=auto,solver,denoise {POINTS}
untrained: sample -m model=exact,empirical,data data=two_modes path=condot,ve {POINTS}
guidances: sample -m ckpt=toy guidance=none,cfg,interval,rescale,autoguidance solver=dpmpp_2m
  {POINTS}
by-classifier: sample ckpt=toy guidance=classifier guidance.ckpt=classifier guidance.w='"1 + r"'
  solver=dopri5 dtype=float64 n=60
weights: sample -m ckpt=toy weights=raw,0.99 path=vp,ve,custom nfe=9 n=60
power-sampled: sample ckpt=power weights=power:0.07 {POINTS}
film: sample ckpt=toy trajectory=true classes=1 steps=3 n=60
fan: sample ckpt=paths/0 trajectory=true animation=webp steps=3 n=60
images: sample ckpt=unet png=true clip=dynamic guidance=cfg trajectory=true animation=apng
  {PIXELS}
networks: sample -m ckpt=unet-bf16,dit,jit,ddpmpp clip=none,data precision=bf16 {PIXELS}
digits-guided: sample ckpt=unet guidance=classifier guidance.ckpt=digits-classifier {PIXELS}
judged: sample ckpt=toy metrics=[sw2,w2,mmd2,energy,nll,modes,off_support] steps=5 n=300
folder-sampled: sample ckpt=folder metrics=[fid,kid] features=mnist against=pictures/a steps=3
  n=24
real-cifar10: sample model=data data=cifar10 n=8
grid: evaluate ckpt=toy metrics=[sw2,mmd2] grid.solver=[euler,adams] grid.nfe=[4,8] repeats=2
  n=200
single: evaluate ckpt=toy guidance=cfg steps=5 n=200
again: evaluate result=single/results.json
points: evaluate samples=judged/samples.npz against=weights/0/samples.npz metrics=[sw2,w2,energy]
field: evaluate -m ckpt=predictions/5 against=exact kind=x,eps,v,score,v_sh times=3 n=200
pictures-judged: evaluate samples=folder-sampled/samples.npz against=pictures/a features=mnist
  metrics=[fid,kid,is,precision,recall,confidence,classes]
real-mnist-judged: evaluate ckpt=real-mnist against=mnist:test guidance=cfg grid.w=[1,2] steps=3
  n=32 metrics=[fid,kid,is,precision,recall,memorisation,agreement,confidence,classes]
likelihoods: likelihood -m ckpt=toy,unet divergence=auto,hutchinson probe=rademacher,gaussian
  probes=2 steps=3 n=4
inverted: invert ckpt=toy straightness=true steps=[3,6] n=20
images-inverted: invert ckpt=unet interpolate=3 inpaint=[2,2,6,6] steps=[3] n=3
systems: simulate -m system=linear,circular,saddle,gmm4,two_modes solver=heun steps=5
noisy-systems: simulate -m system=brownian,ou,two_modes solver=euler_maruyama steps=8 n=50
orders: simulate system=formula system.u='"x*t"' system.x0=1 steps=[4,8] solvers=[euler,heun,rk4]
velocities: simulate system=velocities system.u=[1,2,3] animation=true
infos: info -m ckpt=toy,ot,power,classifier,unet,jit
export: info ckpt=unet export=unet.safetensors weights=raw overwrite=true
imported: sample ckpt=unet.safetensors {PIXELS}
reported: report runs=toy
compared: report runs=[toy,power,unet] out=compared.html
"""
CONTINUED = "toy", "ot", "power", "classifier", "unet", "real-mnist"
AFTER = """
RUN-before: info ckpt=RUN
RUN-old: sample ckpt=RUN steps=4 n=40
RUN-resumed: train resume=RUN trainer.max_steps=LAST
RUN-new: sample ckpt=RUN steps=4 n=40
RUN-after: info ckpt=RUN
"""
TRAIN = (
    "trainer.max_steps=20 trainer.warmup=5 trainer.log_every=5 trainer.validate_every=10 "
    "trainer.checkpoint_every=10 trainer.logger=csv trainer.progress=false"
)
FILE, OWN = "fingerprints.json", {"data", "outputs", "pictures", "printed"}
SKIPPED = {".lock", "environment.json", "multirun.yaml", "hparams.yaml"}
TIMES = {"seconds", "samples_per_second", "utilisation", "versions", "host", "started"}
SPEED = re.compile(r"\d[\d.,e+-]*(?= ?(?:m?s|min|h|samples/s)\b)")
Items = Iterator[tuple[str, str]]  # (what, fingerprint)


def commands(table: str) -> dict[str, list[str]]:
    """{NAME: words} of a table, out= and what keeps the command small included."""
    found = {}
    for line in re.sub(r"\n +", " ", table).strip().splitlines():
        name, _, said = line.partition(": ")
        words = shlex.split(said)
        given = {word.partition("=")[0] for word in words}
        usual = "" if words[0] in ("info", "report") or "resume" in given else f"out={name}"
        if usual and words[0] != "simulate":
            usual += " device=cpu threads=1" + f" {TRAIN}" * (words[0] == "train")
        words += [word for word in usual.split() if word.partition("=")[0] not in given]
        found[name] = words
    return found


def digest(shape: object, content: bytes) -> str:
    return f"{shape} {hashlib.sha256(content).hexdigest()}"


def of_array(array: np.ndarray) -> str:
    return digest(f"{array.dtype} {array.shape}", np.ascontiguousarray(array).tobytes())


def of_tensor(tensor: torch.Tensor) -> str:
    content = tensor.contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()
    return digest(f"{tensor.dtype} {tuple(tensor.shape)}", content)


def masked(text: str, folder: Path) -> str:
    """The text without times, speeds and the folder's place."""
    text = re.sub(re.escape(str(folder.resolve())) + r"(\S*) *", r"FOLDER\1 ", text)
    text = re.sub(r"(?m)^(job +result +folder) +", r"\1 ", text)  # as wide as the places below it
    text = re.sub(r"(?m)^[\d,]+/[\d,]+ .* s left\n", "", text)  # said every ten seconds
    text = re.sub(r"(/data/folder/pictures-)\w+", r"\1#", text)  # named after the place and times
    return SPEED.sub("#", text)


def of_text(text: str, folder: Path) -> str:
    """The masked text itself where it is short."""
    text = masked(text, folder)
    return text if len(text) <= 100 else digest(len(text), text.encode())


def leaves(value: Any, folder: Path, *keys: str) -> Items:
    """All that dicts and lists hold, by dotted keys; without times."""
    if keys and (keys[-1] in TIMES or keys[-1].startswith("ms_")):
        return
    if isinstance(value, dict | list | tuple) and value:
        for key, inner in value.items() if isinstance(value, dict) else enumerate(value):
            yield from leaves(inner, folder, *keys, str(key))
    elif isinstance(value, torch.Tensor):
        yield ".".join(keys), of_tensor(value)
    else:
        said = value if isinstance(value, str) else json.dumps(value)
        yield ".".join(keys), of_text(said, folder)


def columns(rows: list[list[str]]) -> Items:
    for name, *cells in zip(*rows, strict=True):
        if name not in TIMES and not name.startswith("ms_"):
            yield name, digest(len(cells), "\n".join(cells).encode())


def page(text: str) -> str:
    """A report without its numbers, dates and pictures, which other files hold, and speeds."""
    text = re.sub(
        r'<svg[^>]*aria-label="Training samples a second.*?</svg>', "SPEED", text, flags=re.S
    )
    text = re.sub(r"# (?:min|h) # (?:s|min)", "# s", text)
    text = re.sub(r"base64,[\w+/=]+", "base64", text)
    text = re.sub(r"\d+ [A-Z][a-z]+ \d{4}, \d\d:\d\d", "DATE", text)
    text = re.sub(r"-?\d[\d.,]*(?:e[+-]?\d+)?", "#", text)
    return re.sub(r"(?:[ML]?#[ ,]*){2,}", "#", text)


def items(path: Path, folder: Path) -> Items:
    """The results in a file."""
    kind = path.suffix
    if kind == ".npz":
        with np.load(path) as arrays:
            yield from ((name, of_array(arrays[name])) for name in arrays)
    elif kind in (".ckpt", ".pt"):
        yield from leaves(torch.load(path, map_location="cpu", weights_only=True), folder)
    elif kind == ".safetensors":
        with safe_open(path, framework="pt") as file:
            names = file.keys()
            yield from leaves({name: file.get_tensor(name) for name in names}, folder)
            yield from leaves({k: json.loads(v) for k, v in file.metadata().items()}, folder)
    elif kind in (".json", ".yaml"):
        read = json.loads if kind == ".json" else yaml.safe_load
        yield from leaves(read(path.read_text()), folder)
    elif kind == ".csv":
        with path.open(newline="") as file:
            yield from columns(list(csv.reader(file)))
    elif kind == ".md":
        lines = path.read_text().splitlines()
        yield from columns([[cell.strip() for cell in line.split("|")[1:-1]] for line in lines])
    elif kind in (".png", ".apng", ".gif", ".webp"):
        with Image.open(path) as image:
            for i, frame in enumerate(ImageSequence.Iterator(image)):
                yield f"frame {i}", of_array(np.asarray(frame.convert("RGBA")))
    else:
        text = masked(path.read_text(), folder)
        if kind == ".log":  # the time and the name of the logger
            text = re.sub(r"(?m)^\S+ \S+ (\w+) [\w.]+: ", r"\1: ", text)
        yield "text", of_text(page(text) if kind == ".html" else text, folder)


def files(folder: Path) -> dict[Path, tuple[int, int]]:
    """The results in a folder, and what changes when one is written anew."""
    found = {}
    for path in sorted(folder.rglob("*")):
        first = path.relative_to(folder).parts[0]
        if first == FILE or first in OWN or path.name in SKIPPED or not path.is_file():
            continue
        if not path.name.startswith("events.out.tfevents"):
            found[path] = path.stat().st_mtime_ns, path.stat().st_ino
    return found


def written(folder: Path, before: dict[Path, tuple[int, int]]) -> Items:
    """The results in files that are new or other than before; of hard links the first alone."""
    now = files(folder)
    new = {of: path for path, of in reversed(now.items()) if before.get(path) != of}
    for path in sorted(new.values()):
        for what, fingerprint in items(path, folder):
            yield f"{path.relative_to(folder)}: {what}", fingerprint


def surroundings(folder: Path) -> dict[str, str]:
    """One thread, no GPU, caches and data of the folder's own: pictures, links to real data."""
    data, real = folder.resolve() / "data", os.environ.get("FMDIFF_DATA")
    data.mkdir(parents=True, exist_ok=True)
    for path in Path(real).resolve().iterdir() if real else ():
        if not path.name.startswith(".") and not (data / path.name).exists():
            (data / path.name).symlink_to(path)
    x, y = np.meshgrid(np.arange(28), np.arange(28))
    for label, name in enumerate("ab"):
        (folder / "pictures" / name).mkdir(parents=True, exist_ok=True)
        for k in range(24):
            pixels = (x * (k + 3) + y * (k % 5) * 7 + label * x * y) % 256
            image = Image.fromarray(pixels.astype(np.uint8))
            image.save(folder / "pictures" / name / f"{k:02d}.png")
    (folder / "pictures" / "b" / "broken.png").write_bytes(b"no picture")
    own = dict.fromkeys(("FMDIFF_DATA", "XDG_CACHE_HOME"), str(data))
    one = dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS"), "1")
    return os.environ | own | one | {"CUDA_VISIBLE_DEVICES": "", "COLUMNS": "100"}


def record(table: dict[str, list[str]], folder: Path, fmdiff: str, only: list[str]) -> int:
    """Run commands in the folder and write fingerprints.json; 1 if one failed.

    {NAME: {exit: code, items: {what: fingerprint}}}; `only` takes the place of those there.
    """
    path, around = folder / FILE, surroundings(folder)
    found = json.loads(path.read_text()) if only and path.is_file() else {}
    (folder / "printed").mkdir(exist_ok=True)
    for name in only or table:
        if name.startswith("real-") and "FMDIFF_DATA" not in os.environ:
            print(f"{name}: left out, FMDIFF_DATA is not set")
            continue
        shutil.rmtree(folder / name, ignore_errors=True)
        before, begin = files(folder), time.perf_counter()
        words = table[name].copy()
        words.insert(0, fmdiff)
        done = subprocess.run(words, cwd=folder, env=around, capture_output=True, text=True)
        said = masked(done.stdout, folder)
        (folder / "printed" / f"{name}.txt").write_text(said)
        left = {"printed": digest(len(said), said.encode())} | dict(written(folder, before))
        left = {} if name.startswith("plan-") else left
        found[name] = {"exit": done.returncode, "items": left}
        seconds = time.perf_counter() - begin
        print(f"{name}: exit {done.returncode}, {len(left)} items, {seconds:.1f} s", flush=True)
        if done.returncode:
            print(done.stderr[-3000:], file=sys.stderr)
    path.write_text(json.dumps(found, indent=0) + "\n")
    count = sum(len(of["items"]) for of in found.values())
    print(f"{path}: {len(found)} commands, {count:,} items")
    return int(any(of["exit"] for of in found.values()))


def following(old: Path, folder: Path) -> dict[str, list[str]]:
    """Copies runs and gives the commands that go on with them, twenty steps more."""
    table = ""
    for name in CONTINUED:
        if (old / name).is_dir():
            shutil.copytree(old / name, folder / name)
            last = max(int(path.stem) for path in (folder / name).glob("[0-9]*.ckpt"))
            lines = AFTER.replace("RUN", name).replace("LAST", str(last + 20))
            if name == "classifier":  # it gives no samples, it guides
                guided = f"sample ckpt=toy guidance=classifier guidance.ckpt={name}"
                lines = lines.replace(f"sample ckpt={name}", guided)
            if name == "power":
                lines = lines.replace(" steps=4", " weights=power:0.07 steps=4")
            table += lines.lstrip()
    return commands(table)


def compare(was: dict[str, Any], now: dict[str, Any], shown: int) -> int:
    """Print what differs and, apart, what is new; 1 if anything differs."""
    commands_off, items_off, new = 0, 0, []
    for name, of in was.items():
        before, other = of["items"], now.get(name, {"exit": None, "items": {}})
        after = other["items"]
        off = [key for key, value in before.items() if after.get(key) != value]
        new += [f"{name}, {key}" for key in after if key not in before]
        if off or of["exit"] != other["exit"]:
            commands_off, items_off = commands_off + 1, items_off + len(off)
            codes = f"exit {of['exit']} and {other['exit']}"
            print(f"{name}: {codes}, {len(off):,} of {len(before):,} items differ")
            for key in off[:shown]:
                print(f"  {key}\n    {before[key]}\n    {after.get(key, '(lacking)')}")
    new += [f"{name}, a command" for name in now if name not in was]
    print(f"{len(new):,} new", *new[:shown], sep="\n  ")
    count = sum(len(of["items"]) for of in was.values())
    print(f"{commands_off} of {len(was)} commands and {items_off:,} of {count:,} items differ")
    return int(commands_off > 0)


def main() -> int:
    parser = argparse.ArgumentParser(description=str(__doc__).partition("\n")[0])
    modes = parser.add_subparsers(dest="mode", required=True)
    for mode, places in (("record", 1), ("continue", 2), ("compare", 2)):
        of = modes.add_parser(mode)
        of.add_argument("places", nargs=places, type=Path)
        of.add_argument("--fmdiff", default="fmdiff", help="the executable")
        of.set_defaults(only=[])
        if mode != "continue":
            of.add_argument("--only", nargs="+", metavar="NAME")
        of.add_argument("--shown", type=int, default=8, help="differences of a command")
    args = parser.parse_args()
    *others, folder = args.places
    if args.mode == "compare":
        was, now = (json.loads(path.read_text()) for path in args.places)
        if args.only:
            was, now = ({k: v for k, v in of.items() if k in args.only} for of in (was, now))
        return compare(was, now, args.shown)
    fmdiff = shutil.which(args.fmdiff)
    if fmdiff is None:
        sys.exit(f"--fmdiff={args.fmdiff} is no executable")
    if not args.only and folder.exists() and any(folder.iterdir()):
        sys.exit(f"{folder} is not empty")
    table = commands(TABLE) if args.mode == "record" else following(others[0], folder)
    if unknown := set(args.only) - table.keys():
        sys.exit(f"no such command: {', '.join(sorted(unknown))}")
    return record(table, folder, os.path.abspath(fmdiff), args.only)


if __name__ == "__main__":
    sys.exit(main())
