"""The reference of settings and commands, from the YAML files, their comments and docstrings."""

import inspect
import re
from pathlib import Path

from plain import code, paragraphs, sentence, table

from fmdiff.build import config_folder
from fmdiff.commands.table import COMMANDS
from fmdiff.settings import help


def choices(group: str) -> list[Path]:
    """The YAML files of a group."""
    return sorted((config_folder() / group).glob("*.yaml"))


def groups() -> list[str]:
    """The config groups."""
    return sorted(path.name for path in config_folder().iterdir() if any(path.glob("*.yaml")))


def summary(path: Path) -> str:
    """What a choice is: the comment at the head of its YAML, else the docstring of its class."""
    text = path.read_text("utf-8")
    head = re.findall(r"^# (?!@)(.+)$", text, re.MULTILINE)
    if head:
        return "\n".join(head)
    target = re.search(r"^_target_: (\S+)", text, re.MULTILINE)
    return help.documentation(target[1]) if target else ""


def keys(path: Path, prefix: str) -> str:
    """A table of the keys of a YAML file."""
    rows = []
    for key, value, comment in help.entries(path.read_text("utf-8")):
        name = key.removeprefix("defaults.")
        if name != key:
            if name != "_self_" and value:
                rows.append([code(f"{name}={value}"), "", sentence(comment)])
        elif value and key != "_target_":
            default = "must be given" if value == "???" else code(value)
            rows.append([code(f"{prefix}{key}"), default, sentence(comment)])
    return table(["key", "default", "meaning"], rows) if rows else "It has no keys."


def choice(group: str, path: Path) -> str:
    """The section of a choice."""
    text = path.read_text("utf-8")
    prefix = "" if "# @package _global_" in text else f"{group}."
    target = re.search(r"^_target_: (\S+)", text, re.MULTILINE)
    parts = [f"## {path.stem}", paragraphs(summary(path)), keys(path, prefix)]
    if target:
        parts.append(f"Class: `{target[1]}`")
    return "\n\n".join(part for part in parts if part)


def group(name: str) -> str:
    """The page of a config group, below its heading."""
    files = choices(name)
    rows = [
        [f"[{path.stem}](#{path.stem.replace('.', '')})", sentence(help.sentence(summary(path)))]
        for path in files
    ]
    parts = [table(["choice", "what it is"], rows)] if len(files) > 1 else []
    parts += [choice(name, path) for path in files]
    return "\n\n".join(parts)


def command(name: str) -> str:
    """The section of a command: what it does, examples, groups and keys."""
    headline, *rest = (inspect.getdoc(COMMANDS[name]) or "").splitlines()
    examples = [line.strip() for line in rest if line.strip()]
    path = config_folder() / f"{name}.yaml"
    lines = list(help.entries(path.read_text("utf-8"))) if path.exists() else []
    known, chosen, rows = groups(), [], []
    for key, value, comment in lines:
        inner = key.removeprefix("defaults.")
        if inner != key and inner in known:
            chosen.append(f"[{inner}]({inner}.md) {code(value)}")
        elif inner == key and value and (comment or key not in known):
            rows.append([code(key), code(value), sentence(comment)])
    parts = [f"## fmdiff {name}", sentence(headline), "```text\n" + "\n".join(examples) + "\n```"]
    if chosen:
        parts.append(f"Groups and their defaults: {', '.join(chosen)}.")
    if rows:
        parts.append(table(["key", "default", "meaning"], rows))
    return "\n\n".join(parts)


def commands() -> str:
    """The page of commands, below its heading."""
    base = (config_folder() / "base.yaml").read_text("utf-8")
    rows = [
        [f"[fmdiff {name}](#fmdiff-{name})", sentence((inspect.getdoc(f) or "").splitlines()[0])]
        for name, f in COMMANDS.items()
    ]
    flags = [[code(flag), sentence(meaning)] for flag, meaning in help.FLAGS.items()]
    parts = [table(["command", "what it does"], rows), *map(command, COMMANDS)]
    parts += ["## Flags of every command", table(["flag", "meaning"], flags)]
    parts += ["## Keys of every command", f"```yaml\n{base}```"]
    return "\n\n".join(parts)


def index() -> str:
    """A table of the groups and their choices."""
    rows = [
        [f"[{name}]({name}.md)", " ".join(code(path.stem) for path in choices(name))]
        for name in groups()
    ]
    return table(["group", "choices"], rows)
