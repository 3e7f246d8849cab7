"""Help texts, made from what the commands, the YAML files and their comments say. No Hydra."""

import inspect
import re
import textwrap
from collections.abc import Callable, Mapping
from pathlib import Path

from fmdiff import __version__

FLAGS = {
    "-m": "sweep: run every combination of key=a,b values",
    "--cfg job [--resolve]": "print the config and stop",
    "--config-dir DIR": "a folder of your own YAML files beside fmdiff's",
    "--hydra-help": "Hydra's other flags",
}
INSTALL = 'eval "$(fmdiff -sc install=bash)"'


def overview(commands: Mapping[str, Callable]) -> str:
    """What `fmdiff --help` says."""
    return f"""fmdiff {__version__}: train and sample flow-matching and diffusion models

usage: fmdiff COMMAND [group=choice] [key=value] [flags]

commands
{_table({name: _doc(function)[0] for name, function in commands.items()})}

fmdiff COMMAND --help shows its groups, keys and examples, fmdiff --version the version.
Tab completion: {INSTALL}"""


def of_command(name: str, function: Callable, folders: list[Path]) -> str:
    """What `fmdiff NAME --help` says; folders: fmdiff's own and the user's YAML files."""
    text = (folders[0] / f"{name}.yaml").read_text()
    groups = dict(re.findall(r"^  - ([a-z]\w*): (\w+)$", text, re.MULTILINE))
    keys = _commented(text)
    for group, choice in groups.items():
        default = folders[0] / group / f"{choice}.yaml"
        if default.is_file() and "_target_" not in default.read_text():  # no object, plain keys
            keys |= {
                f"{group}.{key}": says for key, says in _commented(default.read_text()).items()
            }
    summary, examples = _doc(function)
    choices = {
        f"{group}={choice}": " ".join(
            sorted({path.stem for folder in folders for path in (folder / group).glob("*.yaml")})
        )
        for group, choice in groups.items()
    }
    parts = {"groups": _table(choices), "keys": _table(keys), "flags": _table(FLAGS)}
    parts["examples"] = "\n".join(f"  {example}" for example in examples)
    sections = "\n\n".join(f"{title}\n{lines}" for title, lines in parts.items() if lines)
    return f"""fmdiff {name}: {summary}

usage: fmdiff {name} [group=choice] [key=value] [flags]

{sections}

A text with = ( ) or , needs both quotes: 'key="sin(pi*t/2)"'.
--cfg job shows every key of the chosen groups."""


def _doc(function: Callable) -> tuple[str, list[str]]:
    first, *rest = (inspect.getdoc(function) or "").splitlines()
    return first, [line.strip() for line in rest if line.strip()]


def _commented(text: str) -> dict[str, str]:
    """{key=default: comment} of the commented lines of a YAML."""
    lines = re.findall(r"^(\w+): (.*?) +# (.+)$", text, re.MULTILINE)
    return {key if "${" in value else f"{key}={value}": says for key, value, says in lines}


def _table(rows: Mapping[str, str]) -> str:
    width = min(32, max(map(len, rows), default=0))
    indent = " " * (width + 4)
    lines = (f"  {left:<{width}}  {right}".rstrip() for left, right in rows.items())
    return "\n".join(textwrap.fill(line, 99, subsequent_indent=indent) for line in lines)
