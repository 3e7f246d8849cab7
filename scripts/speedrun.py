"""From nothing to a Fréchet distance against the clock: fmdiff's recipe beside its peers.

    python scripts/speedrun.py mnist
    python scripts/speedrun.py mnist --who fmdiff,torchcfm --minutes 10 --peers CHECKOUTS
    python scripts/speedrun.py cifar10 --minutes 60 --seeds 0

The rules are in docs/speedrun.md. fmdiff trains by `fmdiff train`, and `fmdiff evaluate` judges
samples of all, drawn at w = 1, classes in turn. Peers train their published networks, losses and
optimisers, and draw by their published solvers: see speedrun_peers.py, which says what they need.
--minutes M is a time per training, start-up included: CPU minutes over threads on a CPU, minutes
of the clock on CUDA. fmdiff's number of steps is set by it, so that its learning rate ends at 0;
without it fmdiff trains its recipe to the end. --n 0 judges nothing, where a peer's sampling
would take hours.

What was trained or judged before in --out is not repeated, so the same command goes on after an
interruption. OUT/DATA/10min/WHO-SEED holds a run with its log (DATA/recipe without --minutes), and
results.json and table.md beside it hold all that have run.
"""

import argparse
import hashlib
import json
import os
import platform
import shlex
import shutil
import signal
import statistics
import sys
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from speedrun_cost import Spent

from fmdiff import files, tables
from fmdiff.loading import load
from fmdiff.runs.config import load_config

NAMES = ("fmdiff", "torchcfm", "flow_matching")
SHORT, LONG = 5, 35  # steps of the runs that measure the time of a step
NEVER = 10**9  # steps
QUIET = (f"trainer.validate_every={NEVER}", f"trainer.picture_every={NEVER}")
PEERS = Path(__file__).with_name("speedrun_peers.py")


@dataclass(frozen=True)
class Race:
    """What is asked, fmdiff's recipe for CPUs and for a GPU, and the words of the judge."""

    target: float
    cpu: str
    cuda: str
    judge: str = "solver=adams nfe=10"
    metrics: str = "fid,agreement"


RACES = {
    "mnist": Race(0.5, "experiment=mnist_speedrun", "experiment=mnist_speedrun"),
    "cifar10": Race(11.0, "experiment=cifar10_dit_cpu", "experiment=cifar10_gpu"),
}


@dataclass(frozen=True)
class Entry:
    """One training, and what the judge says of its samples."""

    who: str
    data: str
    seed: int
    recipe: str  # the words that trained it, or where the recipe was published
    sampler: str
    parameters: int
    images: int  # seen in training
    ms_per_step: float  # CPU time over threads on a CPU, the clock on CUDA
    cpu_minutes: float  # of training, from the start of the process to its end
    minutes: float  # of the clock
    sampling_minutes: float  # samples and their judgement, as --minutes counts
    weights_sha256: str
    n: int = 0
    fd: float | None = None
    interval: list[float] | None = None
    agreement: float | None = None


@dataclass(frozen=True)
class Course:
    """The options of the command line: what is run, and where."""

    data: str
    minutes: float | None
    n: int
    device: str
    threads: int
    out: Path
    peers: Path | None
    solver: str
    more: tuple[str, ...]  # words for fmdiff train

    @property
    def folder(self) -> Path:
        length = "recipe" if self.minutes is None else f"{self.minutes:g}min"
        return self.out / self.data / length

    @property
    def place(self) -> tuple[str, ...]:
        return f"device={self.device}", f"threads={self.threads}"

    def seconds(self, spent: Spent) -> float:
        """What a job has cost in the currency of --minutes."""
        return spent.cpu / self.threads if self.device == "cpu" else spent.clock

    def recipe(self) -> list[str]:
        race = RACES[self.data]
        return [race.cpu if self.device == "cpu" else race.cuda, *self.more]

    def pace(self) -> dict[str, float]:
        """Seconds that start-up and a step of the recipe take, by three short runs for all seeds.

        The first compiles, if the recipe does, and says what start-up costs. The other two find
        its code compiled, and differ by the steps alone.
        """
        key = hashlib.sha256(repr((self.recipe(), self.place)).encode()).hexdigest()[:8]
        path = self.folder / f"pace-{key}.json"
        if not path.is_file():
            cold, warm = self._probe("0", SHORT), self._probe("1", SHORT)
            step = (self._probe("2", LONG) - warm) / (LONG - SHORT)
            pace = {"start": cold - SHORT * step, "step": step}
            files.write_text(path, json.dumps(pace) + "\n")
        content: dict[str, float] = json.loads(path.read_text())
        return content

    def _probe(self, name: str, steps: int) -> float:
        folder = self.folder / "probe"
        if name == "0":
            shutil.rmtree(folder, ignore_errors=True)
        spent = Spent(folder)
        spent.done, before = False, self.seconds(spent)
        words = [*self.recipe(), *QUIET, *self.place, f"trainer.max_steps={steps}"]
        words += ["trainer.warmup=1", f"out={folder / name}"]
        spent.run(fmdiff("train", *words), self.threads)
        return self.seconds(spent) - before

    def ours(self, folder: Path, seed: int) -> tuple[dict[str, Any], Spent]:
        """fmdiff's training, which goes on if it was interrupted, and what is to be said of it."""
        run, words = folder / "run", [*self.recipe(), *QUIET, f"seed={seed}"]
        start = 0.0  # seconds; without --minutes it is among those of the steps
        if self.minutes is not None:
            start, step = (pace := self.pace())["start"], pace["step"]
            words.append(f"trainer.max_steps={max(1, int((60 * self.minutes - start) / step))}")
        spent = Spent(folder)
        if (run / "config.yaml").is_file():
            spent.run(fmdiff("train", f"resume={run}", *self.place), self.threads)
        else:
            spent.run(fmdiff("train", *words, *self.place, f"out={run}"), self.threads)
        field, config = load(run), load_config(run)
        assert field.net is not None
        return {
            "recipe": shlex.join(["fmdiff", "train", *words]),
            "sampler": RACES[self.data].judge,
            "parameters": sum(p.numel() for p in field.net.parameters()),
            "images": config.trainer.max_steps * config.data.batch_size,
            "ms_per_step": 1000 * (self.seconds(spent) - start) / config.trainer.max_steps,
            "weights_sha256": field.sha256,
        }, spent

    def theirs(self, who: str, folder: Path, seed: int) -> tuple[dict[str, Any], Spent]:
        """A peer's training, as `ours`."""
        if self.minutes is None:
            raise SystemExit(f"--who {who} needs --minutes: no peer publishes a recipe for a CPU")
        spent = Spent(folder)
        words = [
            sys.executable,
            str(PEERS),
            "train",
            who,
            self.data,
            "--minutes",
            str(self.minutes),
        ]
        spent.run([*words, *self.peer_words(folder, seed)], self.threads)
        return json.loads((folder / "about.json").read_text()), spent

    def peer_words(self, folder: Path, seed: int) -> list[str]:
        words = ["--seed", str(seed), "--out", str(folder), "--threads", str(self.threads)]
        words += ["--device", self.device, "--n", str(self.n), "--solver", self.solver]
        return words + (["--peers", str(self.peers)] if self.peers else [])

    def entry(self, who: str, seed: int) -> Entry:
        """One training and its judgement; what was done before is taken as it is."""
        folder = self.folder / f"{who}-{seed}"
        path = folder / "entry.json"
        if path.is_file():
            entry = Entry(**json.loads(path.read_text()))
            words = shlex.join(["fmdiff", "train", *self.recipe()])
            if who == "fmdiff" and not entry.recipe.startswith(words):
                raise SystemExit(f"{folder} holds {entry.recipe}: choose another --out")
            return entry
        about, spent = (
            self.ours(folder, seed) if who == "fmdiff" else self.theirs(who, folder, seed)
        )
        about |= {"who": who, "data": self.data, "seed": seed}
        about |= {"cpu_minutes": spent.cpu / 60, "minutes": spent.clock / 60}
        entry = Entry(**about, **self.judgement(who, folder, seed))
        files.write_text(path, json.dumps(asdict(entry), indent=2) + "\n")
        return entry

    def judgement(self, who: str, folder: Path, seed: int) -> dict[str, Any]:
        """What the judge says of n samples, and the minutes that drawing and judging took."""
        if not self.n:
            return {"sampling_minutes": 0.0}
        race, judged = RACES[self.data], folder / "judged"
        words = [f"ckpt={folder / 'run'}", *race.judge.split(), f"n={self.n}", f"seed={seed}"]
        drawing = Spent(folder / "samples")
        if who != "fmdiff":
            peer = [sys.executable, str(PEERS), "sample", who, self.data]
            drawing.run([*peer, *self.peer_words(folder, seed)], self.threads)
            words = [f"samples={folder / 'samples.npz'}", f"against={self.data}"]
        judging = Spent(judged)
        by_class = who == "fmdiff" or self.data == "mnist"  # peers have no classes of CIFAR-10
        words += [
            f"metrics=[fid{',agreement' * by_class}]",
            *self.place,
            f"out={judged}",
            "overwrite=true",
        ]
        judging.run(fmdiff("evaluate", *words), self.threads)
        metrics = json.loads((judged / "results.json").read_text())["metrics"]
        fd = metrics[f"fd_{self.data}"]
        return {
            "sampling_minutes": (self.seconds(drawing) + self.seconds(judging)) / 60,
            "n": fd["n"],
            "fd": fd["value"],
            "interval": fd.get("interval"),
            "agreement": metrics.get("agreement", {}).get("value"),
        }


def fmdiff(*words: str) -> list[str]:
    return [sys.executable, "-m", "fmdiff", *words]


def hardware(device: str, threads: int) -> dict[str, Any]:
    """The machine and the versions that the figures belong to."""
    model = platform.processor() or platform.machine()
    if (info := Path("/proc/cpuinfo")).is_file():
        rows = (line.partition(":") for line in info.read_text().splitlines())
        model = next(
            (value.strip() for key, _, value in rows if key.startswith("model name")), model
        )
    if device != "cpu":
        model = torch.cuda.get_device_name(device)
    return {
        "machine": model,
        "cores": os.cpu_count(),
        "threads": threads,
        "torch": torch.__version__,
        "fmdiff": version("fmdiff"),
    }


def quantities(entries: list[Entry]) -> list[str]:
    """A row of the table: the medians over the seeds of one participant."""

    def median(key: str, digits: str) -> str:
        values = [getattr(entry, key) for entry in entries]
        if None in values:
            return "-"
        middle = format(statistics.median(values), digits)
        ends = format(min(values), digits), format(max(values), digits)
        return middle if len(values) == 1 else f"{middle} ({ends[0]} to {ends[1]})"

    first = entries[0]
    return [
        first.who,
        f"{first.parameters:,}",
        f"{statistics.median(entry.images for entry in entries):,.0f}",
        median("ms_per_step", ".0f"),
        median("cpu_minutes", ".1f"),
        median("minutes", ".1f"),
        f"{first.sampler}, n={first.n:,}",
        median("fd", ".3f"),
        median("agreement", ".1%"),
        str(len(entries)),
    ]


def table(entries: list[Entry], data: str) -> str:
    header = ["who", "parameters", "images seen", "ms a step", "CPU min", "clock min"]
    header += ["sampled by", f"fd_{data}", "agreement", "seeds"]
    groups: dict[str, list[Entry]] = {}
    for entry in entries:
        groups.setdefault(entry.who, []).append(entry)
    return tables.as_markdown([header, *map(quantities, groups.values())])


def arguments() -> tuple[Course, list[str], list[int]]:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("data", choices=RACES)
    parser.add_argument("--seeds", default="0,1,2")
    parser.add_argument("--who", default="fmdiff", help=",".join(NAMES))
    parser.add_argument("--minutes", type=float)
    parser.add_argument("--n", type=int, default=2000, help="samples that are judged; 0: none")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--threads", type=int, default=min(2, os.cpu_count() or 1))
    parser.add_argument("--out", type=Path, default=Path("outputs/speedrun"))
    parser.add_argument("--peers", type=Path, help="a checkout of flow_matching")
    parser.add_argument("--solver", choices=("published", "adams"), default="published")
    parser.add_argument("--words", default="", help="more words for fmdiff train")
    args = parser.parse_args()
    who, seeds = args.who.split(","), [int(seed) for seed in args.seeds.split(",")]
    if unknown := set(who) - set(NAMES):
        parser.error(f"--who {unknown.pop()}: choose from {', '.join(NAMES)}")
    device = args.device
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    more = tuple(shlex.split(args.words))
    options = args.data, args.minutes, args.n, device, args.threads, args.out, args.peers
    return Course(*options, args.solver, more), who, seeds


def everything(course: Course) -> list[Entry]:
    """All that has been judged for this data and these minutes; fmdiff first."""
    paths = course.folder.glob("*/entry.json")
    entries = [Entry(**json.loads(path.read_text())) for path in paths]
    return sorted(entries, key=lambda entry: (NAMES.index(entry.who), entry.seed))


def main() -> None:
    course, who, seeds = arguments()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    machine = hardware(course.device, course.threads)
    print(", ".join(f"{key} {value}" for key, value in machine.items()), flush=True)
    for name in who:
        for seed in seeds:
            course.entry(name, seed)
            entries = everything(course)
            content = machine | {"entries": [asdict(entry) for entry in entries]}
            files.write_json(course.folder / "results.json", content)
            files.write_text(course.folder / "table.md", table(entries, course.data))
    print(table(entries, course.data), end="")
    distances = [entry.fd for entry in entries if entry.who == "fmdiff" and entry.fd is not None]
    if distances:
        middle, target = statistics.median(distances), RACES[course.data].target
        outcome = "holds" if middle <= target else "missed"
        print(f"fmdiff: {middle:.3f}, at most {target} asked: {outcome}")


if __name__ == "__main__":
    main()
