"""The parts of one visit to a GPU, one after the other, each within its share of the time.

    python scripts/gpu.py OUT [PART...]      what scripts/gpu.sh runs; docs/gpu.md explains it

OUT holds log.txt, a JSON file per part, table.md and grid.png; OUT/work holds what only the next
visit needs. A part whose file says "finished" is not run again.
"""

import csv
import json
import os
import re
import shlex
import shutil
import signal
import statistics
import subprocess
import sys
import time
import traceback
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from gpu_table import table

from fmdiff import files

SCRIPTS = Path(__file__).resolve().parent
BROKEN = 3  # the exit code of gpu_throughput.py after a failure that may have left harm
GRACE = 15.0  # seconds between SIGTERM and SIGKILL: a training saves in these
# seconds of each visit that are kept for what comes after training: its judgement and the grid
JUDGEMENT, SMALL_JUDGEMENT = 120.0, 30.0
START = 45.0  # seconds of a training before its first step of full speed
PACE = 0.93  # the speed of training, with validation, pictures and checkpoints, over that of steps
RECIPE = "experiment=cifar10_gpu"  # as in scripts/speedrun.py on CUDA
# words of `fmdiff evaluate`: as the speedrun judges, and with more samples and evaluations
JUDGES = (("n=2000", "solver=adams", "nfe=10"), ("n=10000",))
SMALL_JUDGES = (("n=32", "nfe=4"),)


@dataclass(frozen=True)
class Visit:
    """A stay at a device: where the results go, and when it ends (in the seconds of time.time)."""

    out: Path
    device: str
    small: bool
    recipe: str
    end: float

    @property
    def work(self) -> Path:
        """The folder of what only the next visit needs."""
        return self.out / "work"

    @property
    def left(self) -> float:
        """The seconds that are left."""
        return self.end - time.time()

    def file(self, part: str) -> Path:
        """The JSON file of a part."""
        return self.out / f"{part}.json"

    def read(self, part: str) -> dict[str, Any]:
        """The content of the JSON file of a part; empty if there is none."""
        path = self.file(part)
        return json.loads(path.read_text("utf-8")) if path.exists() else {}

    def write(self, part: str, **entries: Any) -> dict[str, Any]:
        """Add entries to the JSON file of a part, and return its content."""
        content = self.read(part) | entries
        files.write_json(self.file(part), content)
        return content


def run(words: list[str], log: Path, seconds: float) -> int | None:
    """Run a command whose output is added to the log: its exit code, or None if time was over.

    Then it gets SIGTERM, and SIGKILL after GRACE seconds. Both are within `seconds`.
    """
    with log.open("ab") as output:
        output.write(f"\n$ {' '.join(words)}\n".encode())
        output.flush()
        process = subprocess.Popen(words, stdout=output, stderr=output, process_group=0)
        try:
            return process.wait(max(1.0, seconds - GRACE))
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGTERM)
            with suppress(subprocess.TimeoutExpired):
                process.wait(GRACE)
            return None
        finally:  # also what it has started, and if this process is ended
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def script(name: str, *words: object) -> list[str]:
    """The command line of a script of this folder."""
    return [sys.executable, str(SCRIPTS / f"{name}.py"), *map(str, words)]


def fmdiff(*words: object) -> list[str]:
    """A command line of fmdiff."""
    return [sys.executable, "-m", "fmdiff", *map(str, words)]


def concluded(visit: Visit, part: str, code: int | None) -> bool:
    """Whether the command of a part did all of it. An exit code that says otherwise is noted."""
    visit.write(part, failure=failure_of(visit, code))
    return code == 0


def failure_of(visit: Visit, code: int | None) -> str | None:
    """What to say of a command that ended with this exit code; None for 0 and if time was over."""
    if not code:
        return None
    lines = (visit.out / "log.txt").read_text("utf-8", "replace").strip().splitlines()
    return f"exit code {code}, after `{lines[-1][:300]}`"


# --- parts: each returns whether it is finished ---------------------------------------------


def tests(visit: Visit, seconds: float) -> bool:
    """The tests that need CUDA, or their forms for a CPU."""
    words = script("gpu_tests", visit.file("tests"), f"--device={visit.device}")
    code = run(words, visit.out / "log.txt", seconds)
    return concluded(visit, "tests", code)


def throughput(visit: Visit, seconds: float) -> bool:
    """Images a second of each network, in a new process after a failure."""
    end = time.monotonic() + seconds
    words = script("gpu_throughput", visit.file("throughput"), f"--device={visit.device}")
    words += [f"--recipe={visit.recipe}"] + ["--small"] * visit.small
    while (left := end - time.monotonic()) > GRACE:
        code = run(words, visit.out / "log.txt", left)
        content = visit.read("throughput")
        rows, begun = content.get("cases", {}), content.get("begun")
        if code in (0, None) or (code != BROKEN and begun in {None, *rows}):
            return concluded(visit, "throughput", code)
        if code != BROKEN:
            rows[begun] = {"missing": f"its process ended with {code}"}
            visit.write("throughput", cases=rows)
    return False


def training(visit: Visit, seconds: float) -> bool:
    """CIFAR-10 by the recipe for the time there is, judged, with a grid of samples."""
    log, judgement = visit.out / "log.txt", SMALL_JUDGEMENT if visit.small else JUDGEMENT
    for_steps = seconds - judgement
    if for_steps < (GRACE if visit.small else 2 * START):
        return False
    steps = visit.read("training").get("max_steps") or planned(visit, for_steps)
    folder = visit.work / "training"
    words = [*shlex.split(visit.recipe), f"out={folder}", f"device={visit.device}"]
    words += [f"trainer.max_time={max(1.0, for_steps - START):.0f}", "trainer.progress=false"]
    words += [f"trainer.max_steps={steps}"] * bool(steps) + small_words(visit)
    begin = time.time()
    code = run(fmdiff("train", *words, "resume=true", "trainer.logger=csv"), log, for_steps)
    content = visit.read("training")
    spent = content.get("seconds_of_training", 0.0) + time.time() - begin
    done, last = came_to(folder)
    speeds = [float(row["samples_per_second"]) for row in rows_of(folder)]
    visit.write(
        "training",
        recipe=visit.recipe,
        steps=done,
        max_steps=last,
        images_per_second=statistics.median(speeds) if speeds else None,
        seconds_of_training=round(spent, 1),
        failure=failure_of(visit, code),
    )
    return bool(done) and conclude(visit, folder) and done == last


def planned(visit: Visit, seconds: float) -> int | None:
    """The steps for which there is time, so that the learning rate reaches 0; None if unknown.

    The speed is that of the recipe among the cases of throughput.
    """
    if visit.small:
        return 4
    rows = visit.read("throughput").get("cases", {}).values()
    measured = [row for row in rows if "seconds" in row]
    of_step = [row["seconds"] for row in measured if row["network"] == "the recipe"]
    if not of_step:
        return None
    return max(1, int(PACE * (seconds - START - GRACE) / of_step[0]))


def small_words(visit: Visit) -> list[str]:
    """What makes a recipe small enough for a minute of one core."""
    if not visit.small:
        return []
    network = ["model.channels=8", "model.multipliers=[1,2]", "model.head_channels=8"]
    every = [f"trainer.{name}_every=2" for name in ("validate", "picture", "checkpoint")]
    return ["data=digits", "data.batch_size=8", *network, *every, "trainer.warmup=1", "threads=1"]


def rows_of(folder: Path) -> list[dict[str, str]]:
    """The rows of the metrics.csv of a run; none if there is no run."""
    path = folder / "metrics.csv"
    if not path.exists():
        return []
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def came_to(folder: Path) -> tuple[int, int]:
    """The step of the newest row of a run, and that at which it ends; 0 if nothing is known."""
    rows, config = rows_of(folder), folder / "config.yaml"
    if not rows or not config.exists():
        return 0, 0
    last = yaml.safe_load(config.read_text("utf-8"))["trainer"]["max_steps"]
    return int(rows[-1]["step"]), last


def conclude(visit: Visit, folder: Path) -> bool:
    """Draw a grid of samples, and measure their distance to real images, in the time left."""
    log = visit.out / "log.txt"
    words = [f"ckpt={folder}", f"device={visit.device}", "overwrite=true"]
    words += ["threads=1"] if visit.small else ["precision=bf16", "batch_size=1000"]
    each = 2 if visit.small else 10
    classes = ",".join(str(label) for label in range(10) for _ in range(each))
    of_grid = [f"classes=[{classes}]", f"n={10 * each}", f"out={visit.work / 'grid'}"]
    if code := run(fmdiff("sample", *words, *of_grid), log, visit.left):
        visit.write("training", failure=failure_of(visit, code))
    if code != 0:
        return False
    shutil.copy(visit.work / "grid" / "grid.png", visit.out / "grid.png")
    judges = SMALL_JUDGES if visit.small else JUDGES
    if "FMDIFF_INCEPTION" in os.environ:
        judges += ((*judges[-1], "features=inception"),)
    judgements: list[dict[str, Any]] = []
    for number, more in enumerate(judges):
        out, begin = visit.work / f"judgement{number}", time.time()
        of_judge = [*more, "metrics=[fid]", f"out={out}"]
        if code := run(fmdiff("evaluate", *words, *of_judge), log, visit.left):
            visit.write("training", failure=failure_of(visit, code))
        if code != 0:
            return False
        results = json.loads((out / "results.json").read_text("utf-8"))
        judgements.append(
            {
                "metrics": {name: metric["value"] for name, metric in results["metrics"].items()},
                "n": results["config"]["n"],
                "nfe": results["nfe_counted"],
                "seconds": round(time.time() - begin, 1),
            }
        )
        step = results["checkpoint"]["step"]
        visit.write("training", judgements=judgements, steps=step)
    return True


# part -> its function, and its share of the visit at most; the last of a visit has what is left
PARTS: dict[str, tuple[Callable[[Visit, float], bool], float]] = {
    "tests": (tests, 0.25),
    "throughput": (throughput, 0.45),
    "training": (training, 0.3),
}


def attempt(part: Callable[[Visit, float], bool], visit: Visit, name: str, seconds: float) -> bool:
    """Whether a part is finished. An error in it is noted, and is not the end of the others."""
    try:
        return part(visit, seconds)
    except Exception as error:
        with (visit.out / "log.txt").open("a", encoding="utf-8") as file:
            traceback.print_exc(file=file)
        visit.write(name, failure=f"{type(error).__name__}: {error}")
        return False


def attend(visit: Visit, names: list[str], parts: Any = None) -> list[str]:
    """Run the parts that are not finished; the names of those that still are not."""
    whole, open_parts = visit.left, []
    for name, (part, share) in (parts or PARTS).items():
        if name not in names:
            continue
        if visit.read(name).get("finished"):
            print(f"{name}: finished before", flush=True)
            continue
        begin = time.time()
        seconds = visit.left if name == names[-1] else min(share * whole, visit.left)
        print(f"{name}: at most {seconds:.0f} s ...", flush=True)
        finished = seconds > GRACE and attempt(part, visit, name, seconds)
        spent = visit.read(name).get("spent", 0.0) + time.time() - begin
        visit.write(name, finished=finished, spent=round(spent, 1))
        ending = "finished" if finished else "not finished: the same command goes on with it"
        print(f"{name}: {ending}, after {spent:.0f} s", flush=True)
        open_parts += [] if finished else [name]
        files.write_text(visit.out / "table.md", table(visit.out))
    return open_parts


def planned_visit(out: Path, variables: Mapping[str, str]) -> Visit | str:
    """The visit that the variables of the environment describe, or what is wrong with them."""
    minutes, device = variables.get("GPU_MINUTES", "13"), variables.get("GPU_DEVICE", "cuda")
    if not re.fullmatch(r"\d+(\.\d+)?", minutes) or not float(minutes):
        return f"GPU_MINUTES={minutes}: must be a positive number"
    if device not in ("cuda", "cpu"):
        return f"GPU_DEVICE={device}: must be cuda or cpu"
    small = variables.get("GPU_SMALL", "") not in ("", "0")
    began = float(variables.get("GPU_BEGAN", time.time()))
    end = began + 60 * float(minutes)
    return Visit(out, device, small, variables.get("GPU_RECIPE", RECIPE), end)


def main(words: list[str]) -> int:
    """Run the parts named, or all; 1 if one is not finished or a test failed."""
    names = [name for name in PARTS if name in (words[1:] or PARTS)]
    if not words or (unknown := sorted(set(words[1:]) - set(PARTS))):
        which = f"{', '.join(unknown)}: no such part. " if words else ""
        print(f"{which}gpu.py OUT [PART...], the parts are {', '.join(PARTS)}", file=sys.stderr)
        return 2
    visit = planned_visit(Path(words[0]).resolve(), os.environ)
    if isinstance(visit, str):
        print(f"gpu.py: {visit}", file=sys.stderr)
        return 2
    visit.work.mkdir(parents=True, exist_ok=True)
    os.environ.setdefault("TORCHINDUCTOR_CACHE_DIR", str(visit.work / "compiled"))
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that `run` ends its command
    open_parts = attend(visit, names)
    print((visit.out / "table.md").read_text("utf-8"))
    failed = [t for t in visit.read("tests").get("tests", {}).values() if t["outcome"] == "failed"]
    return int(bool(open_parts or failed))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
