"""What the jobs of scripts/speedrun.py cost: CPU seconds and the clock's, over all their goes."""

import json
import os
import resource
import shlex
import shutil
import subprocess
import time
from pathlib import Path

from fmdiff import files


class Spent:
    """What one job has cost in all its goes, in FOLDER/spent.json: CPU seconds and the clock's."""

    def __init__(self, folder: Path) -> None:
        self.path = folder / "spent.json"
        now = json.loads(self.path.read_text()) if self.path.is_file() else {}
        if now.get("open"):  # it was killed, and what it had cost is not known: it begins again
            shutil.rmtree(folder)
            now = {}
        folder.mkdir(parents=True, exist_ok=True)
        self.cpu, self.clock = now.get("cpu", 0.0), now.get("clock", 0.0)
        self.done = now.get("done", False)

    def run(self, words: list[str], threads: int) -> None:
        """Run a process and count it. The log goes to FOLDER/log.txt."""
        if self.done:
            return
        print(shlex.join(words), flush=True)
        folder = self.path.parent
        self._write(open=True)
        before, began = usage(), time.perf_counter()
        try:
            with (
                (folder / "log.txt").open("ab") as log,
                subprocess.Popen(
                    words, stdout=log, stderr=log, env=limits(threads, folder)
                ) as process,
            ):
                try:
                    code = process.wait()
                except BaseException:  # stopped: the training is let write its checkpoint
                    process.terminate()
                    raise
            if code:
                raise SystemExit(f"exit code {code}: see {folder / 'log.txt'}")
            self.done = True
        finally:
            self.cpu += usage() - before
            self.clock += time.perf_counter() - began
            self._write(open=False)

    def _write(self, **state: bool) -> None:
        now = {"cpu": self.cpu, "clock": self.clock, "done": self.done, **state}
        files.write_text(self.path, json.dumps(now) + "\n")


def usage() -> float:
    """CPU seconds of all processes that have been run."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def limits(threads: int, folder: Path) -> dict[str, str]:
    """The environment of a job: threads for every library, and nothing compiled before."""
    return os.environ | {
        "OMP_NUM_THREADS": str(threads),
        "MKL_NUM_THREADS": str(threads),
        "TORCHINDUCTOR_CACHE_DIR": str((folder / "compiled").absolute()),
        "TORCHINDUCTOR_COMPILE_THREADS": str(threads),
    }
