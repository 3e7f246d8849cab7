"""The commands and Python blocks of a Markdown page, and how a test runs them.

docs/shorten.md says for readers what is made shorter, and its tables are read here.
"""

import itertools
import os
import re
import shlex
import subprocess
import traceback
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import fmdiff

ROOT = Path(fmdiff.__file__).parents[1]
SHORTEN = ROOT / "docs" / "shorten.md"
SHELL = ("sh", "shell", "bash")
COMPOSE = ["--cfg", "job"]
# the shell itself reads a block: loops, variables, quotes; a command only writes its words down
RECORDER = 'record() { printf \'%s\\0\' "$#" "${BASH_LINENO[1]}" "$@" >&9; }; '


@dataclass(frozen=True)
class Block:
    """A block of code: its language, the lines where its text begins and ends, and the text."""

    language: str
    line: int
    end: int
    text: str


@dataclass(frozen=True)
class Words:
    """A command of a page: its line and its words."""

    line: int
    words: list[str]


def blocks(page: str) -> Iterator[Block]:
    """Yields the fenced blocks of a page, and indented commands as blocks of shell."""
    lines = page.splitlines()
    number = 0
    while number < len(lines):
        fence = re.match(r" *(`{3,})\s*(\S*)", lines[number])
        indented = re.match(r" {4}(fmdiff|make) ", lines[number]) and not lines[number - 1].strip()
        end = number + 1
        if fence:
            while end < len(lines) and not re.match(rf" *{fence[1]}`*\s*$", lines[end]):
                end += 1
            yield Block(fence[2], number + 2, end, "\n".join(lines[number + 1 : end]))
            end += 1
        elif indented:
            while end < len(lines) and lines[end].startswith("    "):
                end += 1
            yield Block("shell", number + 1, end, "\n".join(lines[number:end]))
        number = end


def examples(page: str) -> Iterator[tuple[Block, str | None]]:
    """Yields the blocks of shell and Python, each with the text that the page says it prints."""
    lines, every = page.splitlines(), [*blocks(page), Block("", 0, 0, "")]
    for block, after in itertools.pairwise(every):
        if block.language in (*SHELL, "python"):
            between = "".join(lines[block.end : after.line - 2]).strip("` ")
            shown = after.language == "text" and not between
            yield block, after.text if shown else None


def is_notebook(page: str) -> bool:
    """Whether the building of the site runs a page, rather than a test."""
    head = page.partition("\n---\n")[0]
    return head.startswith("---\n") and "kernelspec:" in head


def inline(page: str) -> Iterator[Words]:
    """Yields the whole commands in sentences, but for those about files of the reader."""
    for number, line in enumerate(page.splitlines(), 1):
        for command in re.findall(r"(?<!`)`fmdiff ([a-z]+ [^`]*)`(?!`)", line):
            if not re.search(r"\.\.\.|=$|[A-Z]=|COMMAND|GROUP|--config-dir", command):
                yield Words(number, shlex.split(command.replace("\\|", "|")))


def table(heading: str) -> list[list[str]]:
    """The rows of the table below a heading of docs/shorten.md, without backticks."""
    section = SHORTEN.read_text("utf-8").partition(f"## {heading}\n")[2].partition("\n## ")[0]
    rows = [row for row in section.splitlines() if row.startswith("|")][2:]
    return [[cell.strip().strip("`") for cell in row.strip("|").split("|")] for row in rows]


def matches(pattern: str, words: list[str]) -> bool:
    """Whether each word of a pattern, with * for anything, is a word of the command."""
    rules = [re.escape(word).replace(r"\*", ".*") for word in pattern.split()]
    return all(any(re.fullmatch(rule, word) for word in words) for rule in rules)


def shortened(words: list[str], rules: list[list[str]]) -> list[str]:
    """The words of a command with the overrides of the table in docs/shorten.md."""
    for pattern, overrides, *_ in rules:
        for override in overrides.split() * matches(pattern, words):
            key = override.partition("=")[0] + "="
            if "=" in override and any(word.startswith(key) for word in words):
                words = [override if word.startswith(key) else word for word in words]
            else:
                words = [*words, override]
    return words


def composed(words: list[str]) -> list[str]:
    """The words that compose a command; of a sweep, its first job."""
    if "-m" in words:
        words = [re.sub(r"=([^,\[(\"']+),.*", r"=\1", word) for word in words if word != "-m"]
    return [*(word for word in words if word not in COMPOSE), *COMPOSE]


def missing(expected: str, printed: str) -> str | None:
    """The first line of the text that is not printed in this order; None if there is none.

    Three dots stand for what differs from run to run; a line of them alone stands for lines.
    """
    lines = [line.split("\r")[-1].rstrip() for line in printed.splitlines()]
    for line in expected.splitlines():
        if line.strip() in ("", "..."):
            continue
        rule = re.escape(line.rstrip()).replace(re.escape("..."), ".*")
        while lines and not re.fullmatch(rule, lines[0]):
            lines.pop(0)
        if not lines:
            return line
        lines.pop(0)
    return None


def recorded(block: Block, others: list[str]) -> list[Words]:
    """The commands that a shell would run for a block, none of which is run.

    others: commands beside fmdiff that a page may name. Raises ValueError for any other.
    """
    functions = "".join(f'{name}() {{ record {name} "$@"; }}; ' for name in ["fmdiff", *others])
    read, write = os.pipe()
    process = subprocess.run(
        ["/bin/bash", "-c", RECORDER + functions + "\n" * (block.line - 1) + block.text],
        env={"HOME": os.environ["HOME"], "PATH": ""},
        preexec_fn=lambda: os.dup2(write, 9),
        close_fds=False,
        capture_output=True,
        text=True,
    )
    os.close(write)
    with open(read, "rb") as file:
        parts = file.read().decode().split("\0")
    if process.returncode or process.stderr:
        raise ValueError(process.stderr.strip() or f"exit {process.returncode}")
    commands = []
    while len(parts) > 1:
        count = int(parts[0])
        commands.append(Words(int(parts[1]), parts[2 : 2 + count]))
        parts = parts[2 + count :]
    return commands


@dataclass
class Session:
    """Runs the examples of pages in the working folder, in this process.

    command: runs the words of fmdiff and returns the exit code. captured: what was printed since
    it was called last. absent: whether a command needs a data set that is not here. prepare: puts
    into the folder what a text names.
    """

    command: Callable[..., int]
    captured: Callable[[], str]
    absent: Callable[[list[str]], bool]
    prepare: Callable[[str], None]
    faults: list[str] = field(default_factory=list)
    counts: dict[str, int] = field(
        default_factory=lambda: dict.fromkeys(("run", "composed", "other", "python", "text"), 0)
    )

    def run(self, name: str, page: str) -> None:
        """Run all examples of a page in their order, and note what is wrong with them."""
        scope: dict[str, object] = {"__name__": "__main__"}
        for block, text in examples(page):
            self.captured()
            try:
                if block.language == "python":
                    printed, code = self.execute(name, block, scope), 0
                else:
                    printed, code = self.shell(name, block, shown=text is not None)
            except Exception:
                self.faults.append(f"{name}:{block.line}: {traceback.format_exc(limit=-2)}")
                continue
            expected = re.search(r"^exit (\d+)$", text or "", re.MULTILINE)
            if code != (int(expected[1]) if expected else 0):
                self.faults.append(f"{name}:{block.line}: exit {code}: {printed[-2000:]}")
            elif text is not None:
                self.counts["text"] += 1
                if (line := missing(text, f"{printed}\nexit {code}")) is not None:
                    self.faults.append(f"{name}:{block.line}: {line!r} is not in\n{printed}")

    def execute(self, name: str, block: Block, scope: dict[str, object]) -> str:
        """Run a block of Python in the scope of its page. Returns what it prints."""
        self.counts["python"] += 1
        self.prepare(block.text)
        exec(compile("\n" * (block.line - 1) + block.text, name, "exec"), scope)
        return self.captured()

    def shell(self, name: str, block: Block, shown: bool) -> tuple[str, int]:
        """Run the commands of a block of shell until one fails.

        shown: the page shows the output, so that nothing is made shorter. Returns what they print
        and the last exit code.
        """
        rules = table("Shorter commands")
        others = [row[0] for row in table("Commands that are not run")]
        printed = ""
        for entry in recorded(block, others):
            words = entry.words
            if words[0] != "fmdiff" and "fmdiff" in words:  # torchrun, srun
                words = [*words[words.index("fmdiff") :], *COMPOSE]
            if words[0] != "fmdiff":
                self.other(name, entry)
                continue
            words = words[1:] if shown else shortened(words[1:], rules)
            if COMPOSE[0] in words or (self.absent(words) and not shown):
                words = composed(words)
            self.prepare(" ".join(words))
            self.captured()
            self.counts["composed" if COMPOSE[0] in words else "run"] += 1
            code = self.command(*words)
            printed += self.captured()
            if code:
                where = f"{name}:{entry.line}: {shlex.join(['fmdiff', *words])}"
                return f"{printed}\n({where})", code
        return printed, 0

    def other(self, name: str, entry: Words) -> None:
        """Note a command that is not run; a script that it names must exist."""
        self.counts["other"] += 1
        for word in entry.words[1:]:
            if re.match(r"scripts/", word) and not (ROOT / word).exists():
                self.faults.append(f"{name}:{entry.line}: {word} does not exist")

    def compose(self, name: str, entry: Words) -> None:
        """Compose a command that stands within a sentence."""
        self.counts["composed"] += 1
        self.captured()
        if code := self.command(*composed(entry.words)):
            said = self.captured().strip()
            shown = shlex.join(["fmdiff", *entry.words])
            self.faults.append(f"{name}:{entry.line}: {shown}: exit {code}: {said}")
