"""The reference shows every YAML file with its keys, every public name with its docstring."""

import ast
import re
import sys

import pytest
from blocks import ROOT
from omegaconf import DictConfig, OmegaConf

from fmdiff.build import config_folder
from fmdiff.commands.table import COMMANDS

sys.path.insert(0, str(ROOT / "docs" / "_ext"))

import api
import plain
import reference

FILES = sorted(config_folder().rglob("*.yaml"))
STUBS = {path.stem: path.read_text("utf-8") for path in (ROOT / "docs/reference").glob("*.md")}


def leaves(node, prefix=""):
    """Yields (key, value) of a YAML as OmegaConf reads it, without its list of defaults."""
    for key in node:
        value = node._get_node(key)
        if isinstance(value, DictConfig) and len(value):
            yield from leaves(value, f"{prefix}{key}.")
        elif key != "defaults":
            yield f"{prefix}{key}", value._value()


def chosen(node):
    """Yields (group, choice) of the list of defaults of a YAML."""
    for entry in node.get("defaults", []):
        if isinstance(entry, DictConfig):
            yield from ((str(k).removeprefix("override /"), v) for k, v in entry.items())


def row_of(key, text):
    """The row of a key; for one in braces, {a: 1}, the row of what holds it."""
    found = re.search(rf"^\| `{re.escape(key)}` \|.*$", text, re.MULTILINE)
    parent, _, name = key.rpartition(".")
    return found or (
        parent and re.search(rf"^\| `{re.escape(parent)}` \| `{{.*{name}: ", text, re.M)
    )


def section(page, title):
    """The part of a page below a heading."""
    return page.partition(f"## {title}\n")[2].partition("\n## ")[0]


def test_every_group_has_a_page():
    groups = {path.parent.name for path in FILES if path.parent != config_folder()}
    assert groups <= STUBS.keys()
    for group in groups:
        assert f"```{{reference}} group {group}\n" in STUBS[group]
        assert re.search(rf"^{group}$", STUBS["index"], re.MULTILINE)


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(config_folder())))
def test_every_yaml_stands_there_with_all_its_keys(path):
    group, name = path.parent.name, path.stem
    if name == "base":
        assert path.read_text("utf-8") in reference.commands()
        return
    of_command = path.parent == config_folder()
    page = reference.commands() if of_command else reference.group(group)
    text = section(page, f"fmdiff {name}" if of_command else name)
    assert text.strip()
    whole = of_command or "@package _global_" in path.read_text("utf-8")
    content = OmegaConf.load(path)
    for key, value in leaves(content):
        if key == "_target_":
            assert f"Class: `{value}`" in text
        elif of_command and key in reference.groups():
            assert f"[{key}]({key}.md)" in text
        else:
            assert row_of(key if whole else f"{group}.{key}", text), key
    for key, value in chosen(content):
        shown = f"[{key}]({key}.md) `{'null' if value is None else value}`"
        assert (shown if of_command else f"`{key}={value}`") in text, key
    for comment in re.findall(r"[^#\n]: .*?# (.+)$", path.read_text("utf-8"), re.MULTILINE):
        assert plain.sentence(comment) in text, comment


def test_every_command_stands_there_with_its_examples():
    page = reference.commands()
    for name, function in COMMANDS.items():
        for line in filter(None, map(str.strip, function.__doc__.splitlines())):
            assert line in section(page, f"fmdiff {name}"), line


BLOCKS = re.findall(r"\{reference\} python (.+)", "\n".join(STUBS.values()))
MODULES = sorted(" ".join(BLOCKS).split())


@pytest.mark.parametrize("name", MODULES)
def test_every_public_name_stands_there(name):
    page = api.module(name)
    for node in ast.parse(api.source(name).read_text("utf-8")).body:
        if isinstance(node, ast.ClassDef | ast.FunctionDef) and not node.name.startswith("_"):
            assert f"### {node.name}\n" in page
            text = page.partition(f"### {node.name}\n")[2].partition("\n### ")[0]
            assert ast.get_docstring(node) is None or len(text) > 40
            if isinstance(node, ast.ClassDef):
                for method in api.documented(node.body):
                    assert f"`{method.name}" in text


def test_the_mathematics_is_all_there():
    lines = (ROOT / "docs" / "architecture.md").read_text("utf-8")
    part = lines.partition("**the mathematics**")[2].partition("**the wings**")[0]
    files = set(re.findall(r"`(\w+)\.py`", part)) - {
        "ema",
        "optim",
        "solver",
        "objective",
        "network",
    }
    assert files and {f"fmdiff.{file}" for file in files} <= set(MODULES)


@pytest.mark.parametrize(
    ("text", "markdown"),
    [
        ("x_t = a * b [t]", r"x\_t = a \* b \[t\]"),
        ("a *row* of `x_t`", "a *row* of `x_t`"),
        ("sum a\n+ b\n- c", "sum a\n\\+ b\n\\- c"),
        ("Gives:\n\n    y = a_b\n\n    z\n\nand\n- one\n- two_3", None),
    ],
)
def test_plain_text_looks_the_same(text, markdown):
    if markdown is None:
        parts = "Gives:\n\n```text\ny = a_b\n\nz\n```\n\nand\n\\- one\n\\- two\\_3"
        assert plain.paragraphs(text) == parts
    else:
        assert plain.paragraphs(text) == markdown


def test_a_signature_is_that_of_the_source():
    code = "def f(self, a: int, *rest: str, b: float = 1.5, **more: int) -> bool: ..."
    node = ast.parse(code).body[0]
    assert api.signature(node, "f") == "f(a: int, *rest: str, b: float=1.5, **more: int) -> bool"
    long = code.replace("a: int", ", ".join(f"argument_{i}: int = {i}" for i in range(4)))
    lines = api.signature(ast.parse(long).body[0], "f").splitlines()
    assert lines[0] == "f(" and lines[-1] == ") -> bool" and "    argument_2: int = 2," in lines
    assert "    b: float = 1.5," in lines and "    **more: int," in lines
