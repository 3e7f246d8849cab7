"""A scene of a live page: what it shows, and the data that its JavaScript plays."""

from dataclasses import dataclass, field
from typing import Any, Protocol

from fmdiff.field import Field

STRONGEST = 5.0  # strength of guidance that a page offers


class Network(Protocol):
    """A function as a list of operations and tensors, which a page can run."""

    def data(self) -> dict[str, Any]:
        """The operations, and where each tensor lies in the blob, as JSON."""

    def blob(self) -> bytes:
        """The numbers of all tensors, one after the other."""


@dataclass(frozen=True)
class Scene:
    """One part of a live page.

    `kind` is the name of its function in JavaScript, `fm.scenes.KIND`, which stands in a file of
    this folder. `title` is plain text, `caption` a sentence or two that say what to see, and
    `data` is JSON. A scene may run `graphs` by name.
    """

    kind: str
    title: str
    caption: str
    data: dict[str, Any]
    graphs: dict[str, Network] = field(default_factory=dict)


def classes_and_guidance(of: Field) -> dict[str, Any]:
    """What a page offers of a field's classes and guidance, as JSON."""
    return {
        "classes": of.classes,
        "labels": list(of.only or range(of.classes)),
        "names": list(of.names or map(str, range(of.classes))),
        "scales": list(of.scales) if of.scales else None,
        "strongest": STRONGEST,
    }
