"""The overrides that a run folder holds, and which of them are taken from a file.

Anyone may have written a run folder. So its overrides choose among the YAML files that are there
already, and set keys to plain values. Whatever could name other code or another file of settings
is said by the user, on the command line.
"""

import re
from collections.abc import Sequence
from pathlib import Path

from fmdiff.build import config_folder
from fmdiff.errors import FmdiffError
from fmdiff.runs.config import small_text

NAME = "overrides"
OWN = ("out", "resume", "overwrite")  # keys of the command line that wrote them alone
KEY = re.compile(r"[A-Za-z]\w*(\.\w+)*")
CHOICE = re.compile(r"\w[\w-]*")
RESERVED = ("trust", "choices")  # keys that decide what a file may name


def refusal(override: str, folders: Sequence[Path] = ()) -> str | None:
    """Why an override is not taken from a file; None if it is.

    folders: those of YAML files that the user named, beside fmdiff's own.
    """
    key, equals, value = override.partition("=")
    parts = re.split("[/.@]", key.lstrip("+~"))
    if "_target_" in override or parts[0] == "hydra":
        return "names code"
    if parts[0] in RESERVED or parts[-1] == "trust":
        return "is for the user alone to say"
    if not equals or not KEY.fullmatch(key):
        return "is not of the form key=value"
    if "${" in override:
        return "asks for a value from elsewhere"
    places = [place for f in (config_folder(), *folders) if (place := f / key).is_dir()]
    for name in value.strip("'\"").split(",") if places else ():  # a sweep has several
        plain = name == "null" or CHOICE.fullmatch(name)
        if not plain or not (name == "null" or any(_holds(p, name) for p in places)):
            return f"is no choice of {key}"
    return None


def _holds(place: Path, name: str) -> bool:
    return (place / f"{name}.yaml").is_file()


def repeatable(lines: Sequence[str]) -> list[str]:
    """Those overrides out of a file that another run takes from it: see `refusal`."""
    return [line for line in lines if line.partition("=")[0] not in OWN and not refusal(line)]


def omissions(lines: Sequence[str]) -> list[str]:
    """Sentences about the overrides that `repeatable` leaves out for a reason."""
    reasons = {line: refusal(line) for line in lines if line.partition("=")[0] not in OWN}
    return [f"the command leaves out {k}: it {v}" for k, v in reasons.items() if v]


def of_run(folder: Path, keys: set[str], folders: Sequence[Path]) -> list[str]:
    """The overrides of a run folder, without those of `keys`, which are given anew.

    folders: as in `refusal`. Raises FmdiffError for a file that cannot be read, and for an
    override that is not taken from a file.
    """
    file = folder / NAME
    try:
        lines = small_text(file).split("\n")
    except FileNotFoundError:
        return []
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        raise FmdiffError(f"{file} cannot be read: {reason}") from error
    again = []
    for line in filter(str.strip, lines):
        key = re.split("[=@]", line.lstrip("+~"))[0]
        if key in keys or key in OWN:
            continue
        if reason := refusal(line, folders):
            raise FmdiffError(
                f"{file}: {line} {reason}, so it is not taken from a file: say it again on the "
                "command line if you trust it"
            )
        again.append(line)
    return again
