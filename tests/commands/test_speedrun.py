"""scripts/speedrun.py: what a job costs, how many steps fill the minutes, and the table."""

import json
import sys
from dataclasses import asdict, replace
from pathlib import Path

import pytest
import torch

sys.path.insert(0, str(Path(__file__).parents[2] / "scripts"))
import speedrun
import speedrun_peers

BUSY = "import time\nwhile time.process_time() < 0.3: pass"
ENTRY = speedrun.Entry(
    who="fmdiff",
    data="mnist",
    seed=0,
    recipe="fmdiff train",
    sampler="solver=adams nfe=10",
    parameters=1000,
    images=320,
    ms_per_step=10.0,
    cpu_minutes=1.0,
    minutes=2.0,
    sampling_minutes=0.5,
    weights_sha256="0",
    n=2000,
    fd=0.5,
    agreement=0.9,
)


def course(folder, **options):
    defaults = {
        "data": "mnist",
        "minutes": 10.0,
        "n": 2000,
        "device": "cpu",
        "threads": 2,
        "out": folder,
        "peers": None,
        "solver": "published",
        "more": (),
    }
    return speedrun.Course(**(defaults | options))


def test_the_cost_of_all_goes_is_counted_and_a_job_is_done_once(tmp_path):
    job = speedrun.Spent(tmp_path / "job")
    with pytest.raises(SystemExit, match="exit code 3"):
        job.run([sys.executable, "-c", f"{BUSY}\nraise SystemExit(3)"], 1)
    first = job.cpu
    assert first >= 0.3
    job = speedrun.Spent(tmp_path / "job")
    assert job.cpu == first and not job.done
    job.run([sys.executable, "-c", BUSY], 1)
    assert job.cpu >= first + 0.3 and job.clock >= 0.6
    job = speedrun.Spent(tmp_path / "job")
    before = job.cpu
    job.run([sys.executable, "-c", "raise SystemExit(1)"], 1)
    assert job.done and job.cpu == before


def test_a_job_whose_cost_is_not_known_begins_again(tmp_path):
    (tmp_path / "weights").write_text("half trained")
    state = {"cpu": 5.0, "clock": 5.0, "done": False, "open": True}
    (tmp_path / "spent.json").write_text(json.dumps(state))
    assert speedrun.Spent(tmp_path).cpu == 0.0
    assert not (tmp_path / "weights").exists()


def test_the_pace_tells_start_up_from_steps(tmp_path, monkeypatch):
    """Start-up of 20 s with code to compile and 8 s without, steps of 0.5 s."""
    costs = {"0": 20 + 0.5 * speedrun.SHORT, "1": 8 + 0.5 * speedrun.SHORT}
    costs["2"] = 8 + 0.5 * speedrun.LONG
    monkeypatch.setattr(speedrun.Course, "_probe", lambda self, name, steps: costs[name])
    course(tmp_path).folder.mkdir(parents=True)
    assert course(tmp_path).pace() == {"start": 20.0, "step": 0.5}
    costs.clear()  # measured once for all seeds
    assert course(tmp_path).pace() == {"start": 20.0, "step": 0.5}


def test_minutes_are_of_a_thread_on_a_cpu_and_of_the_clock_on_cuda(tmp_path):
    spent = speedrun.Spent(tmp_path)
    spent.cpu, spent.clock = 60.0, 40.0
    assert course(tmp_path).seconds(spent) == 30.0
    assert course(tmp_path, device="cuda").seconds(spent) == 40.0


def test_the_table_has_medians_over_seeds():
    distances = (0.9, 0.4, 0.6)
    entries = [replace(ENTRY, seed=k, fd=fd) for k, fd in enumerate(distances)]
    peer = replace(ENTRY, who="torchcfm", fd=None, agreement=None)
    _, _, ours, theirs = speedrun.table([*entries, peer], "mnist").strip().splitlines()
    assert "0.600 (0.400 to 0.900) | 90.0% (90.0% to 90.0%) | 3 |" in ours
    assert theirs.startswith("| torchcfm |") and theirs.endswith("| - | - | 1 |")


def test_the_table_has_all_that_has_run_of_one_recipe(tmp_path):
    for entry in (replace(ENTRY, who="torchcfm"), replace(ENTRY, seed=1), ENTRY):
        folder = course(tmp_path).folder / f"{entry.who}-{entry.seed}"
        folder.mkdir(parents=True)
        (folder / "entry.json").write_text(json.dumps(asdict(entry)))
    all_three = speedrun.everything(course(tmp_path))
    assert [(entry.who, entry.seed) for entry in all_three] == [
        ("fmdiff", 0),
        ("fmdiff", 1),
        ("torchcfm", 0),
    ]
    assert course(tmp_path).entry("torchcfm", 0) == all_three[2]  # it is not trained again
    with pytest.raises(SystemExit, match="choose another --out"):
        course(tmp_path).entry("fmdiff", 0)


def test_a_peer_sees_each_image_once_an_epoch(monkeypatch):
    pixels = torch.arange(12, dtype=torch.uint8).view(6, 1, 1, 2)

    class Six:
        train = (pixels, torch.arange(6))

        def prepare(self):
            pass

    monkeypatch.setattr(speedrun_peers, "named", lambda *_: Six())
    cpu = torch.device("cpu")
    plain = speedrun_peers.Epochs("six", 2, flip=False, unit=True, device=cpu)
    x, y = map(torch.cat, zip(*plain, strict=True))
    assert sorted(y.tolist()) == list(range(6)) and len(plain) == 3
    assert torch.equal((255 * x).round().to(torch.uint8), pixels[y])
    mirrored = speedrun_peers.Epochs("six", 6, flip=True, unit=False, device=cpu)
    ((x, y),) = mirrored
    back = (127.5 * (x + 1)).round().to(torch.uint8)
    same = (back == pixels[y]).flatten(1).all(1)
    assert (same | (back == pixels[y].flip(-1)).flatten(1).all(1)).all()


def test_a_peer_stops_when_its_time_is_over_and_goes_on_from_its_state(tmp_path):
    net = torch.nn.Linear(2, 2)
    training = speedrun_peers.Training({"net": net}, tmp_path, 1e9, 1, False)
    training.tick()
    training.stop(15, None)
    with pytest.raises(SystemExit):
        training.tick()
    again = speedrun_peers.Training({"net": net}, tmp_path, 0.0, 1, False)
    again.resume(torch.device("cpu"))
    assert again.steps == 2 and again.before > 0
    with pytest.raises(speedrun_peers.TimeOver):
        again.tick()
