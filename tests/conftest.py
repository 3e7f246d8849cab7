import os

os.environ.setdefault("GOMP_SPINCOUNT", "20000")  # as fmdiff does; read when torch is imported

import contextlib
import csv
import logging
import pickle
import shutil
import sys
from itertools import chain
from types import ModuleType

import pytest
import torch
from hydra._internal.config_loader_impl import ConfigLoaderImpl
from hydra._internal.config_repository import ConfigRepository
from omegaconf import flag_override

from fmdiff import cli
from fmdiff.build import config_folder
from fmdiff.custom import Custom
from fmdiff.machine.clock import PARTS
from fmdiff.path import (
    EDM,
    VE,
    VP,
    CondOT,
    Cosine,
    LinearVP,
    Lipman,
    Polynomial,
    Shifted,
)
from fmdiff.runs import checkpoint
from fmdiff.runs.find import find

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser"))), None)
PATHS = {
    "condot": CondOT(),
    "polynomial": Polynomial(2),
    "cosine": Cosine(),
    "linear_vp": LinearVP(),
    "vp": VP(),
    "ve": VE(),
    "edm": EDM(0.002, 80.0, 7.0),
    "lipman": Lipman(0.01),
    "custom": Custom("t^1.5", "cos(pi*t/2)"),
    "vp_shifted": Shifted(VP(), 3.0),
}
# the mixture of the exact laws: three components in the plane, none round or alike
WEIGHTS = torch.tensor([0.5, 0.2, 0.3], dtype=torch.float64)
MEANS = torch.tensor([[1.0, 2.0], [-2.0, 0.5], [0.5, -1.5]], dtype=torch.float64)
COVS = torch.tensor(
    [[[0.6, 0.3], [0.3, 0.4]], [[0.3, -0.2], [-0.2, 0.9]], [[0.2, 0.0], [0.0, 0.2]]],
    dtype=torch.float64,
)

every_path = pytest.mark.parametrize("path", PATHS.values(), ids=PATHS)
# the others are slow: for laws that hold along a path by the same lines as along any
SOME = ("condot", "vp", "edm")
some_paths = pytest.mark.parametrize(
    "path",
    [
        pytest.param(path, id=name, marks=[pytest.mark.slow] * (name not in SOME))
        for name, path in PATHS.items()
    ],
)

POINTS = ("data=moons", "model.hidden=16", "data.batch_size=64")
IMAGES = (
    "data=digits",
    "model=unet",
    "data.batch_size=8",
    "model.channels=8",
    "model.multipliers=[1,2]",
    "model.head_channels=8",
)
CLOCKED = ("seconds", "samples_per_second", "utilisation", *(f"ms_{part}" for part in PARTS))
PLAIN = ("device=cpu", "threads=1", "trainer.logger=csv", "trainer.progress=false")


OUTCOMES = ("passed", "failed", "error")
HUNG = ("TimeoutExpired", "hung")


def pytest_runtest_makereport(item, call):
    """What a test marked `fault` says of itself in the summary: its name, and its count."""
    mark = item.get_closest_marker("fault")
    if mark and call.when == "setup":
        said = item.function.__doc__ or item.originalname[5:].replace("_", " ")
        case = f" [{item.callspec.id}]" if hasattr(item, "callspec") else ""
        item.user_properties.append(("fault", said.splitlines()[0] + case))
        item.user_properties.append(("count", mark.kwargs.get("count", 1)))


def pytest_terminal_summary(terminalreporter):
    """A line per fault that was tried, and how many were survived."""
    counts = dict.fromkeys(("survived", "lost", "hung"), 0)
    reports = chain(*(terminalreporter.stats.get(k, []) for k in OUTCOMES))
    for report in reports:
        if not isinstance(report, pytest.TestReport):  # a file that cannot be imported
            continue
        said = dict(report.user_properties)
        if "fault" not in said or (report.passed and report.when != "call"):
            continue
        hung = report.failed and any(word in report.longreprtext for word in HUNG)
        outcome = "survived" if report.passed else "hung" if hung else "lost"
        counts[outcome] += said["count"]
        if terminalreporter.config.option.markexpr.startswith("fault"):
            times = f" x {said['count']:,}" if said["count"] > 1 else ""
            terminalreporter.write_line(f"{outcome}{times}: {said['fault']}")
    tried = sum(counts.values())
    if tried:
        told = ", ".join(f"{count:,} {outcome}" for outcome, count in counts.items())
        terminalreporter.write_line(f"faults: {tried:,} tried, {told}")


@pytest.fixture(autouse=True, scope="session")
def compositions():
    """Composes the same words once, and reads a YAML file once.

    A command asks Hydra for its config up to five times. This holds only where all YAML files
    are fmdiff's own, which no test changes.
    """
    compose, read = ConfigLoaderImpl._load_configuration_impl, ConfigRepository.load_config
    ours = {"pkg://hydra.conf", "structured://", str(config_folder())}
    configs, files = {}, {}

    def composed(self, config_name, overrides, run_mode, *flags, **named):
        places = {s.path.removeprefix("file://") for s in self.config_search_path.get_path()}
        if places != ours or "hydra.searchpath" in str(overrides):
            return compose(self, config_name, overrides, run_mode, *flags, **named)
        key = (config_name, tuple(overrides), run_mode)  # fmdiff checks the words before Hydra
        if key not in configs:
            cfg = compose(self, config_name, overrides, run_mode, *flags, **named)
            configs[key] = pickle.dumps(cfg)
        cfg = pickle.loads(configs[key])
        with flag_override(cfg, ["struct", "readonly"], [False, False]):
            cfg.hydra.runtime.cwd = os.getcwd()
        return cfg

    def file(self, config_path):
        if not {s.full_path().removeprefix("file://") for s in self.get_sources()} <= ours:
            return read(self, config_path)
        if config_path not in files:
            files[config_path] = pickle.dumps(read(self, config_path))
        return pickle.loads(files[config_path])

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ConfigLoaderImpl, "_load_configuration_impl", composed)
        patch.setattr(ConfigRepository, "load_config", file)
        yield


@pytest.fixture(autouse=True)
def one_thread():
    """A command leaves as many threads as it took, which would wait for the cores of others."""
    torch.set_num_threads(1)


@contextlib.contextmanager
def logging_restored():
    """Hydra configures the root logger anew for each job."""
    root, ours = logging.getLogger(), logging.getLogger("fmdiff")
    before = root.handlers[:], root.level, ours.level, ours.disabled
    try:
        yield
    finally:
        root.handlers[:] = before[0]
        root.setLevel(before[1])
        ours.setLevel(before[2])
        ours.disabled = before[3]


def forget_modules(folder):
    """Let modules of a user, which lie below a folder, be imported anew under the same names."""
    for name, module in list(sys.modules.items()):
        if isinstance(module, ModuleType):
            places = [vars(module).get("__file__"), *(vars(module).get("__path__") or ())]
            if any(str(place).startswith(str(folder)) for place in places):
                del sys.modules[name]


@pytest.fixture
def command(tmp_path, monkeypatch, tmp_path_factory):
    """Runs a command line in an empty folder, in this process; its exit code."""
    monkeypatch.chdir(tmp_path)
    forget_modules(tmp_path_factory.getbasetemp())
    with logging_restored():
        yield lambda *words: cli.main([str(word) for word in words])


@pytest.fixture
def train(command):
    """Trains with `words` in RUN: the content of the newest checkpoint."""

    def run(folder, *words, code=0):
        assert command("train", *PLAIN, *words, f"out={folder}") == code
        return checkpoint.read(find(folder))

    return run


def metrics(folder):
    """The rows of metrics.csv without what a clock says."""
    with (folder / "metrics.csv").open(newline="") as file:
        return [{k: v for k, v in row.items() if k not in CLOCKED} for row in csv.DictReader(file)]


def vector(weights):
    return torch.cat([value.flatten() for value in weights.values()])


def _trained(folder, *words):
    before = os.getcwd()
    with logging_restored():
        os.chdir(folder.parent)
        try:
            assert cli.main(["train", *PLAIN, *words, f"out={folder}"]) == 0
        finally:
            os.chdir(before)
    return folder


@pytest.fixture(scope="session")
def moons_run(tmp_path_factory):
    words = (*POINTS, "trainer.max_steps=60", "trainer.ema=[0.9999,0.9]")
    return _trained(tmp_path_factory.mktemp("moons") / "run", *words)


@pytest.fixture(scope="session")
def digits_run(tmp_path_factory):
    words = (*IMAGES, "trainer.max_steps=3")
    return _trained(tmp_path_factory.mktemp("digits") / "run", *words)


@pytest.fixture(scope="module")
def chromium():
    api = pytest.importorskip("playwright.sync_api", reason="needs the package playwright")
    if CHROMIUM is None:
        pytest.skip("needs chromium (apt-get install chromium)")
    with api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture
def show(chromium):
    """Opens a file as a live page whose scenes play.

    At the end nothing may have been written to the console or asked of a network.
    """
    opened, wrong = [], []

    def show(path, width=1000, height=900, **settings):
        page = chromium.new_page(viewport={"width": width, "height": height}, **settings)
        opened.append(page)
        page.on("console", lambda said: wrong.append(said.text))
        page.on("pageerror", lambda error: wrong.append(str(error)))
        page.on("request", lambda request: wrong.append(request.url[:99]))
        page.goto(path.as_uri())
        page.wait_for_selector("html[data-ready]", state="attached")
        assert page.get_by_text("cannot be played here").count() == 0
        return page

    yield show
    for page in opened:
        page.close()
    foreign = [text for text in wrong if not text.startswith(("file:", "data:", "blob:"))]
    assert foreign == []
