"""What docs/clusters.md tells to type."""

import re
import shlex
import subprocess

import pytest

from fmdiff.build import config_folder
from fmdiff.settings.compose import Composer, parse
from fmdiff.settings.sentences import key_of

TEXT = (config_folder().parent / "docs" / "clusters.md").read_text()
BLOCKS = re.findall(r"```(?:sh|\{code-block\} shell)\n(.*?)```", TEXT, re.S)
LINES = re.findall(
    r"^.*fmdiff ((?:train|sample|evaluate) .*)$", "\n".join(BLOCKS).replace("\\\n", " "), re.M
)


@pytest.mark.parametrize("script", BLOCKS)
def test_scripts_are_bash(script):
    assert subprocess.run(["bash", "-n"], input=script, text=True).returncode == 0


@pytest.mark.parametrize("line", LINES)
def test_commands_compose(line):
    name, *words = shlex.split(line.partition("#")[0])
    args, _ = parse(words)
    kept = [word for word in args.overrides if not key_of(word).startswith("hydra")]
    composer = Composer(name, args)
    for job in composer.jobs(kept) if args.multirun else [kept]:
        composer.check(composer.compose(job), job)
    assert len(LINES) == 6
