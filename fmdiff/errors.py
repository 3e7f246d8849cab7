"""The errors a user can cause or must hear about; the rest are bugs and keep their traceback."""


class FmdiffError(Exception):
    """A bad input: one sentence naming the option, what was given and what is allowed. Exit 2.

    It is one line whatever was given: what cannot be printed is shown as Python would write it.
    """

    code = 2

    def __init__(self, message: str) -> None:
        super().__init__("".join(c if c.isprintable() else repr(c)[1:-1] for c in message))


class Diverged(FmdiffError):
    """Training met a non-finite loss or gradient. Exit 3."""

    code = 3


class Interrupted(FmdiffError):
    """A signal arrived and the run was saved. Exit 128 + the signal's number (130, 143)."""

    def __init__(self, message: str, signum: int) -> None:
        super().__init__(message)
        self.code = 128 + signum


def nearest(given: str, choices) -> str:
    """The nearest name, if one is near, and the valid choices, for the end of a sentence."""
    import difflib

    names = sorted(map(str, choices))
    close = difflib.get_close_matches(str(given), names, n=1)
    listed = f"hoose from: {', '.join(names)}"
    return f"did you mean {close[0]!r}? C{listed}" if close else f"c{listed}"
