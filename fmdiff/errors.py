"""The errors that a user can cause or must know of. Others are bugs and keep a traceback.

Texts from elsewhere, such as names of files and classes, are printed by `printable` or `visible`:
no control character of theirs reaches a terminal.
"""

import contextlib
import errno
import logging
import re
import shlex
import sys
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

# exit code -> the outcome of a command
OUTCOMES = {
    0: "ok",
    1: "failed",
    2: "user error",
    3: "diverged",
    129: "interrupted",
    130: "interrupted",
    138: "interrupted",
    143: "interrupted",
}
PIPE = 128 + 13  # the exit code when nobody reads what is printed: SIGPIPE


def printable(value: object) -> str:
    """A value as text on one line. Characters that cannot be printed become Python escapes.

    These are control characters with line ends, marks that turn the direction of writing around,
    spaces other than the usual one, and what is no character.
    """
    text = str(value)
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else repr(c)[1:-1] for c in text)


def visible(text: str) -> str:
    """Text of several lines, printable but for line ends, tabs and spaces that break no line."""
    return re.sub(r"[^\n\t\xa0]+", lambda part: printable(part[0]), text)


class FmdiffError(Exception):
    """A bad input. The message names the option, its value and what is allowed. Exit 2.

    It is one sentence on one line, made `printable`.
    """

    code = 2

    def __init__(self, message: str) -> None:
        super().__init__(printable(message))


class Failed(FmdiffError):
    """Memory or disk ran out; the input and fmdiff are right. Exit 1."""

    code = 1


class Complete(FmdiffError):
    """There is nothing to do, and nothing is changed. Exit 0."""

    code = 0


class Diverged(FmdiffError):
    """Training met a non-finite loss or gradient. Exit 3."""

    code = 3


class Died(Failed):
    """Another process of the run ended too early. Exit 1."""


class Interrupted(FmdiffError):
    """A signal arrived and the run was saved. Exit 128 + the signal's number."""

    def __init__(self, message: str, signum: int) -> None:
        super().__init__(message)
        self.code = 128 + signum


DISK = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EIO)
LESS_MEMORY = {
    "train": "a smaller data.batch_size, trainer.accumulate=2 (the same batch in two parts), "
    "trainer.precision=bf16 or trainer.recompute=true",
    "sample": "a smaller batch_size or precision=bf16",
    "evaluate": "a smaller batch_size or precision=bf16",
}


def shortage(error: BaseException, command: str) -> str | None:
    """A sentence if an error says that memory or disk ran out; None for other errors."""
    if isinstance(error, OSError) and error.errno in DISK:
        where = f" ({error.filename})" if error.filename else ""
        return f"what was to be written could not be: {error.strerror}{where}"
    text = str(error)
    of_torch = type(error).__name__ == "OutOfMemoryError" or "can't allocate memory" in text
    if not (of_torch or isinstance(error, MemoryError)):
        return None
    size = re.search(r"(?i)tried to allocate ([\d.]+ \w+)", text)
    more = f", {size[1]} more were needed" if size else ""
    where = "the CUDA device" if "CUDA" in text else "this machine"
    return (
        f"{where} is out of memory{more}; try {LESS_MEMORY.get(command, 'a smaller batch_size')}"
    )


def users(file: str) -> bool:
    """Whether a file is the user's own, not Python's, fmdiff's or an installed package's."""
    import sysconfig

    path, ours = Path(file).absolute(), Path(__file__).parent
    paths = sysconfig.get_paths()
    python = [Path(paths[n]) for n in ("stdlib", "platstdlib", "purelib", "platlib", "scripts")]
    installed = {"site-packages", "dist-packages"} & set(path.parts)
    inside = any(folder in (path, *path.parents) for folder in (ours, *python))
    return path.exists() and not (installed or inside)


def culprit(error: BaseException, anyone: bool = False) -> str | None:
    """The file and line of the user's code that raised an error; None if the user's code did not.

    anyone: if no line is the user's, take the innermost line of Python code.
    """
    import traceback

    frames = [f for f in traceback.extract_tb(error.__traceback__) if f.filename[0] != "<"]
    own = [frame for frame in frames if users(frame.filename)] or (frames if anyone else [])
    return f"{own[-1].filename}, line {own[-1].lineno}" if own else None


def nearest(name: object, choices: Iterable[object]) -> str:
    """The end of a sentence: the choice nearest to a name, if one is near, and all choices."""
    import difflib

    names = sorted(map(str, choices))
    close = difflib.get_close_matches(str(name), names, n=1)
    advice = f"hoose from: {', '.join(names)}"
    return f"did you mean {close[0]!r}? C{advice}" if close else f"c{advice}"


def class_number(choice: Any, names: Sequence[str], option: str) -> Any:
    """The number of the class that a user names. What is no text is returned as it is.

    Raises FmdiffError, naming `option`, for a name that is not among `names`.
    """
    if not isinstance(choice, str):
        return choice
    if not names:
        raise FmdiffError(f"{option}={choice}: the classes have no names here, give their numbers")
    if choice not in names:
        raise FmdiffError(f"{option}={choice}: no class has this name; {nearest(choice, names)}")
    return names.index(choice)


def word(key: str, value: object) -> str:
    """KEY=VALUE as it is typed in a shell, with both kinds of quotes where Hydra needs them."""
    text = str(value)
    if re.fullmatch(r"[\w./:+-]+", text, re.ASCII):
        return f"{key}={text}"
    escaped = text.replace("\\", "\\\\").replace('"', '\\"')
    return shlex.quote(f'{key}="{escaped}"')


# What is printed


def one_line(record: logging.LogRecord) -> bool:
    """Make the message of a log record printable. It is the filter of fmdiff's logger."""
    record.msg, record.args = printable(record.getMessage()), None
    return True


class Screen:
    """A text stream whose texts are made visible. Progress bars still return to the line's start.

    Everything else is the stream's own.
    """

    def __init__(self, stream: Any) -> None:
        self.stream = stream

    def __getattr__(self, name: str) -> Any:
        return getattr(self.stream, name)

    def write(self, text: str) -> int:
        """Write a text, and return its length. What the encoding lacks becomes an escape too."""
        lines = "\r".join(map(visible, text.split("\r")))
        try:
            self.stream.write(lines)
        except UnicodeEncodeError:
            code = self.stream.encoding
            self.stream.write(lines.encode(code, "backslashreplace").decode(code))
        return len(text)

    def writelines(self, lines: Iterable[str]) -> None:
        """Write texts one after the other."""
        for line in lines:
            self.write(line)


@contextlib.contextmanager
def screens() -> Iterator[None]:
    """Make all that is printed to stdout and stderr visible."""
    before = sys.stdout, sys.stderr
    sys.stdout, sys.stderr = (s if isinstance(s, Screen) else Screen(s) for s in before)
    try:
        yield
    finally:
        sys.stdout, sys.stderr = before
