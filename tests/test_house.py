"""The shape of the package: what import-linter's contracts in pyproject.toml cannot say."""

import ast
import importlib
import inspect
import os
import subprocess
import sys
from graphlib import CycleError, TopologicalSorter
from pathlib import Path
from types import SimpleNamespace

import pytest

from fmdiff.build import config_folder, locate
from fmdiff.data import decode

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "fmdiff"
LONGEST = 60  # lines of a function
TREES = {path: ast.parse(path.read_text()) for path in sorted(PACKAGE.rglob("*.py"))}


def module_name(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {module_name(path): tree for path, tree in TREES.items()}


def imports(tree: ast.Module) -> set[str]:
    """The modules of fmdiff that a file imports, at its top or in a function."""
    names = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            for alias in node.names:
                inner = f"{node.module}.{alias.name}"
                names.add(inner if inner in MODULES else node.module)
    return names & MODULES.keys()


def test_no_circle_between_files():
    graph = {name: imports(tree) - {"fmdiff", name} for name, tree in MODULES.items()}
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        pytest.fail(" -> ".join(error.args[1]))


def test_the_first_page_is_short():
    assert len([path for path in PACKAGE.glob("*.py")]) <= 32


@pytest.mark.parametrize("path", TREES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_functions_fit_on_a_screen(path):
    for node in ast.walk(TREES[path]):
        if isinstance(node, ast.FunctionDef):
            lines = node.end_lineno - node.lineno + 1
            assert lines <= LONGEST, f"{path}:{node.lineno} {node.name} has {lines} lines"


@pytest.mark.parametrize("path", TREES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_what_a_thing_is_stands_in_its_class(path):
    """No `getattr(x, "name", default)`, no `*(a, b)` to save lines."""
    for node in ast.walk(TREES[path]):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
            constant = len(node.args) == 3 and isinstance(node.args[1], ast.Constant)
            assert not (node.func.id == "getattr" and constant), f"{path}:{node.lineno}"
        if isinstance(node, ast.Starred):
            assert not isinstance(node.value, ast.Tuple | ast.List), f"{path}:{node.lineno}"


@pytest.mark.parametrize("name", [n for n in MODULES if n != "fmdiff.__main__"])
def test_public_names_have_docstrings(name):
    module = importlib.import_module(name)
    assert module.__doc__, f"{name} has no docstring"
    for public, value in vars(module).items():
        if public.startswith("_") or getattr(value, "__module__", None) != name:
            continue
        if inspect.isclass(value):
            assert value.__doc__, f"{name}.{public}"
            for method, function in vars(value).items():
                if not method.startswith("_") and inspect.isfunction(function):
                    documented = inspect.getdoc(getattr(value, method))
                    assert documented, f"{name}.{public}.{method}"
        elif inspect.isfunction(value):
            assert value.__doc__, f"{name}.{public}"


def targets() -> list[str]:
    names = set()
    for path in config_folder().rglob("*.yaml"):
        for line in path.read_text().splitlines():
            key, _, value = line.strip().partition(":")
            if key == "_target_":
                names.add(value.split("#")[0].strip())
    return sorted(names)


@pytest.mark.parametrize("target", targets())
def test_every_target_resolves_without_trust(target):
    assert callable(locate(target, trust=()))


def test_the_mathematics_stands_alone():
    """Neither Hydra nor Lightning nor a plotting library comes with it."""
    code = (
        "import sys\n"
        "import fmdiff.path, fmdiff.exact, fmdiff.sampling, fmdiff.likelihood, fmdiff.loading\n"
        "heavy = {'hydra', 'omegaconf', 'lightning', 'matplotlib', 'PIL', 'torchvision'}\n"
        "sys.exit(' '.join(heavy & sys.modules.keys()) or 0)"
    )
    process = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert process.returncode == 0, process.stderr


def calls(tree: ast.Module) -> list[tuple[str, ast.Call]]:
    """The calls in a file with the name or the dotted name of what is called."""
    return [(ast.unparse(n.func), n) for n in ast.walk(tree) if isinstance(n, ast.Call)]


@pytest.mark.parametrize("path", TREES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_text_is_utf_8_by_name(path):
    """Without a name the machine's locale would decide."""
    for name, call in calls(TREES[path]):
        method = name.rpartition(".")[2]
        words = [word.value for word in call.args if isinstance(word, ast.Constant)]
        named = "utf-8" in words or any(k.arg == "encoding" for k in call.keywords)
        if method in ("read_text", "write_text") and "." in name:
            assert named or name.startswith("files."), f"{path}:{call.lineno}"
        elif method in ("open", "fdopen") and name != "os.open":
            of_file = not call.args or words or name == "open"  # not a member of an archive
            binary = any("b" in str(word) for word in words)
            assert named or binary or not of_file, f"{path}:{call.lineno}"


def test_pictures_are_opened_in_one_place():
    """Pillow would run other programs for some formats, and fill the memory."""
    homes = [
        (name, [k.arg for k in call.keywords])
        for name, tree in MODULES.items()
        for function, call in calls(tree)
        if function.endswith("Image.open")
    ]
    assert homes == [("fmdiff.data.decode", ["formats"])]
    assert not {"EPS", "FITS", "WMF"} & set(decode.FORMATS)


def test_hydra_internals_have_one_home():
    for name, tree in MODULES.items():
        for node in ast.walk(tree):
            module = (isinstance(node, ast.ImportFrom) and node.module) or ""
            assert "hydra._internal" not in module or name.startswith("fmdiff.settings"), name


@pytest.mark.slow
def test_every_script_finds_what_it_imports():
    code = (
        "import runpy, sys; [runpy.run_path(path, run_name='imported') for path in sys.argv[1:]]"
    )
    paths = sorted(map(str, (ROOT / "scripts").glob("*.py")))
    scripts = {"PYTHONPATH": str(ROOT / "scripts")}
    ran = subprocess.run([sys.executable, "-c", code, *paths], env=os.environ | scripts)
    assert paths and ran.returncode == 0


def test_a_file_of_tests_that_cannot_be_collected_is_no_fault():
    """The summary of the faults has no line for it, and does not end the run of the others."""
    from conftest import pytest_terminal_summary

    report = pytest.CollectReport("tests/broken.py", "failed", "ImportError", [])
    lines: list[str] = []
    pytest_terminal_summary(SimpleNamespace(stats={"error": [report]}, write_line=lines.append))
    assert lines == []


def test_no_two_files_of_tests_share_a_name():
    """Pytest imports each file by its name alone."""
    names = sorted(path.name for path in Path(__file__).parent.rglob("test_*.py"))
    assert len(names) == len({*names})
