"""Help texts, made from the commands, the YAML files and their comments, without Hydra."""

import ast
import inspect
import re
import sys
import textwrap
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

from fmdiff import __version__, tables
from fmdiff.errors import FmdiffError, nearest

FLAGS = {
    "-m": "sweep: run every combination of key=a,b values",
    "--cfg job [--resolve]": "print the config and stop",
    "--config-dir DIR": "a folder of your own YAML files beside fmdiff's; classes they name are "
    "looked for there and in the working folder",
    "--hydra-help": "Hydra's other flags",
}
INSTALL = 'eval "$(fmdiff -sc install=bash)"'


class Entry(NamedTuple):
    """A line of a YAML: a key with its parents, its value and the comment beside it."""

    key: str
    value: str
    comment: str


def overview(commands: dict[str, Callable]) -> str:
    """The text of `fmdiff --help`."""
    return f"""fmdiff {__version__}: train and sample flow-matching and diffusion models

usage: fmdiff COMMAND [group=choice] [key=value] [flags]

commands
{tables.described({name: _doc(function)[0] for name, function in commands.items()})}

fmdiff COMMAND --help shows its groups, keys and examples, fmdiff --version the version.
Tab completion: {INSTALL}"""


def of_command(name: str, function: Callable, folders: list[Path]) -> str:
    """The text of `fmdiff NAME --help`. folders: those of fmdiff's and the user's YAML files."""
    groups = _groups(name, folders)
    keys = _commented((folders[0] / f"{name}.yaml").read_text("utf-8"))
    for group, choice in groups.items():
        default = folders[0] / group / f"{choice}.yaml"
        text = default.read_text("utf-8") if default.is_file() else "_target_"
        if "_target_" not in text:  # plain keys of no object
            keys |= _commented(text, f"{group}.")
    summary, examples = _doc(function)
    choices = {
        f"{group}={choice}": " ".join(_choices(group, folders)) for group, choice in groups.items()
    }
    parts = {
        "groups": tables.described(choices),
        "keys": tables.described(keys),
        "flags": tables.described(FLAGS),
        "examples": "\n".join(f"  {example}" for example in examples),
    }
    sections = "\n\n".join(f"{title}\n{lines}" for title, lines in parts.items() if lines)
    hint = f"fmdiff {name} GROUP=CHOICE --help shows the keys of a choice.\n" if groups else ""
    return f"""fmdiff {name}: {summary}

usage: fmdiff {name} [group=choice] [key=value] [flags]

{sections}

A text with = ( ) or , needs both quotes: 'key="sin(pi*t/2)"'.
{hint}--cfg job shows every key of the chosen groups."""


def of_choices(name: str, words: list[str], folders: list[Path]) -> str | None:
    """The text of `fmdiff NAME GROUP=CHOICE --help`; None if no word chooses in a group.

    Raises FmdiffError for a group or a choice that does not exist.
    """
    groups = _groups(name, folders)
    keys = _commented((folders[0] / f"{name}.yaml").read_text("utf-8"), defaults=False)
    sections = []
    for word in words:
        key, _, choice = word.lstrip("+~").partition("=")
        group = key.partition("@")[0]
        if group not in {*groups, *keys} and not re.search(r"\.|^hydra\b", group):
            raise FmdiffError(f"unknown key {group!r}; {nearest(group, {*groups, *keys})}")
        if group in groups:
            sections.append(_section(group, choice, folders))
    return "\n\n".join(sections) or None


def _groups(name: str, folders: list[Path]) -> dict[str, str]:
    """{group: default choice} of a command."""
    text = (folders[0] / f"{name}.yaml").read_text("utf-8")
    return dict(re.findall(r"^  - ([a-z]\w*): (\w+)$", text, re.MULTILINE))


def _choices(group: str, folders: list[Path]) -> list[str]:
    return sorted({path.stem for folder in folders for path in (folder / group).glob("*.yaml")})


def _section(group: str, choice: str, folders: list[Path]) -> str:
    """Describe a choice of a group: its summary, keys, defaults and comments."""
    choices = _choices(group, folders)
    if choice in ("", "null"):
        return tables.described({f"{group}=": " ".join(choices)})
    if choice not in choices:
        raise FmdiffError(f"unknown {group} {choice!r}; {nearest(choice, choices)}")
    files = (folder / group / f"{choice}.yaml" for folder in reversed(folders))
    text = next(file for file in files if file.is_file()).read_text("utf-8")
    whole = "# @package _global_" in text  # it sets keys of the command and other groups
    rows, summary = {}, " ".join(re.findall(r"^# (?!@)(.+)$", text, re.MULTILINE))
    for key, value, comment in entries(text):
        if key == "_target_":
            summary = summary or sentence(documentation(value))
        elif key.startswith("defaults."):
            inner = key.removeprefix("defaults.")
            if inner != "_self_":
                rows[f"{inner}={value}" if value else f"{group}={inner}"] = comment
        elif value:
            row = f"{'' if whole else f'{group}.'}{key}"
            rows[row if value == "???" else f"{row}={value}"] = comment
    title = f"{group}={choice}: {summary}" if summary else f"{group}={choice}"
    title = textwrap.fill(title, tables.WIDTH, subsequent_indent="  ")
    return f"{title}\n{tables.described(rows) if rows else '  no keys'}"


def sentence(text: str) -> str:
    """The first sentence of a docstring."""
    paragraph = " ".join(text.partition("\n\n")[0].split())
    return re.split(r"(?<=[^.]\.)(?<!et al\.)\s", paragraph)[0]


def documentation(target: str) -> str:
    """The docstring of a class or function, which is not imported; "" if there is none."""
    module, _, name = target.rpartition(".")
    for folder in (Path(__file__).parents[2], *map(Path, sys.path)):
        file = folder.joinpath(*module.split(".")).with_suffix(".py")
        if file.is_file():
            for node in ast.parse(file.read_text("utf-8")).body:
                if isinstance(node, ast.ImportFrom) and name in {a.name for a in node.names}:
                    return documentation(f"{node.module}.{name}")
                if isinstance(node, ast.ClassDef | ast.FunctionDef) and node.name == name:
                    return ast.get_docstring(node) or ""
    return ""


def _doc(function: Callable) -> tuple[str, list[str]]:
    first, *rest = (inspect.getdoc(function) or "").splitlines()
    return first, [line.strip() for line in rest if line.strip()]


def _commented(text: str, prefix: str = "", defaults: bool = True) -> dict[str, str]:
    """{key=default: comment}, or {key: comment}, for the commented top-level lines of a YAML."""
    return {
        prefix + (f"{key}={value}" if defaults and "${" not in value else key): comment
        for key, value, comment in entries(text)
        if comment and "." not in key
    }


def entries(text: str) -> Iterator[Entry]:
    """Yields the lines of a YAML with a key; its defaults list gives keys of `defaults`."""
    parents: list[tuple[int, str]] = []
    for line in text.splitlines():
        # YAML wants quotes around a few keys, like "on"
        match = re.match(r"( *)(?:- |override /)*\"?(\w+)\"?(?:: *(.*?))?(?: +# (.+))?$", line)
        if match is None:
            continue
        indent, key, value, comment = len(match[1]), match[2], match[3], match[4]
        parents = [(depth, name) for depth, name in parents if depth < indent]
        path = ".".join([*(name for _, name in parents), key])
        if value is not None or path.startswith("defaults."):
            yield Entry(path, value or "", comment or "")
        parents.append((indent, key))
