"""The parts of a report: the document with its style, pictures as data: URIs, tables."""

import base64
import io
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from html import escape
from pathlib import Path
from typing import Any

from fmdiff.data import decode
from fmdiff.errors import visible
from fmdiff.files import read_bytes
from fmdiff.looks import CSS
from fmdiff.report.read import finite

LIMIT = 5_800_000  # bytes of pictures in a page; as text they take 4/3 of that
LARGE = 2_000_000  # bytes of one picture
ACROSS = 1000  # pixels to which larger pictures are reduced
FILM = 1_500_000  # bytes of the frames of one animation
FILM_ACROSS = 560  # pixels to which larger frames are reduced
FRAMES = 60  # frames of an animation that are shown
BASE = 60  # milliseconds that one frame lasts in fmdiff's animations
STEPS = 60  # pictures over training that are shown
TYPES = {".png": "png", ".apng": "apng", ".gif": "gif", ".webp": "webp", ".jpg": "jpeg"}
# the page may load nothing, whatever a config holds
POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src 'unsafe-inline'"


def text(value: Any) -> str:
    """Any value as HTML text."""
    return escape(visible(str(value)))


@dataclass
class Picture:
    """An embedded picture."""

    uri: str
    width: int
    height: int

    def tag(self, alt: str, more: str = "") -> str:
        """An <img> that is enlarged by a click, Enter or Space; more: attributes after a space."""
        return (
            f'<img src="{self.uri}" alt="{text(alt)}" width="{self.width}" '
            f'height="{self.height}" tabindex="0" class="enlarges"{more}>'
        )


@dataclass
class Album:
    """Embeds pictures while there is room, and notes which ones it leaves out and why."""

    room: int = LIMIT  # bytes of pictures that still fit
    notes: list[str] = field(default_factory=list)

    def still(self, path: Path, name: str) -> Picture | None:
        """Embed a picture, reduced if it is large. Returns None and adds a note if it fails."""
        try:
            data = read_bytes(path, path.parent)
            with decode.picture(io.BytesIO(data)) as picture:
                picture.verify()
            with decode.picture(io.BytesIO(data)) as picture:
                if len(data) > min(LARGE, self.room):
                    picture.thumbnail((ACROSS, 4 * ACROSS))
                    return self._take(_webp(picture), "webp", picture.size, name)
                return self._take(data, TYPES.get(path.suffix, "png"), picture.size, name)
        except Exception as error:  # Pillow meets a damaged file with many kinds of exception
            self.notes.append(f"{name} cannot be shown: {text_of(error)}")
            return None

    def film(self, path: Path, name: str) -> tuple[str, list[tuple[float, Picture]]]:
        """Embed frames of an animation, as many as fit; the last one always.

        Returns what their numbers are and the frames: "t" for times, which fmdiff's animations
        hold, or "frame".
        """
        try:
            data = read_bytes(path, path.parent)
            with decode.picture(io.BytesIO(data)) as picture:
                unit, times, frames = _frames(picture)
        except Exception as error:
            self.notes.append(f"{name} cannot be shown: {text_of(error)}")
            return "frame", []
        room, every = min(self.room // 2, FILM), 1
        while every < len(frames) and sum(len(frames[i][0]) for i in _every(frames, every)) > room:
            every += 1
        choice = _every(frames, every)
        if every > 1:
            self.notes.append(
                f"{len(choice)} of {len(frames)} frames of {name} are shown, to keep this page "
                "small"
            )
        stills = [(times[i], self._take(frames[i][0], "webp", frames[i][1], name)) for i in choice]
        return unit, [(t, still) for t, still in stills if still]

    def over_training(
        self, pictures: Sequence[tuple[int, Path]], share: int = 1
    ) -> list[tuple[int, Picture]]:
        """Embed all pictures, or as many at equal distances as fit, with a note."""
        room = min(self.room, LIMIT * 6 // 10) // share
        sizes = [path.stat().st_size for _, path in pictures]
        count = min(len(pictures), STEPS)
        while count > 1 and sum(sizes[i] for i in _spread(len(sizes), count)) > room:
            count -= 1
        if count < len(pictures):
            self.notes.append(
                f"{count} of {len(pictures)} pictures over training are shown, to keep this "
                "page small"
            )
        choice = [pictures[i] for i in _spread(len(pictures), count)]
        stills = [(step, self.still(path, f"samples/{path.name}")) for step, path in choice]
        return [(step, picture) for step, picture in stills if picture]

    def _take(self, data: bytes, kind: str, size: tuple[int, int], name: str) -> Picture | None:
        if len(data) > self.room:
            self.notes.append(f"{name} is left out, to keep this page small")
            return None
        self.room -= len(data)
        return Picture(_uri(data, kind), *size)


def _spread(n: int, count: int) -> list[int]:
    """`count` of n indices at equal distances, including the last."""
    if count == 1:
        return [n - 1]
    return sorted({round(i * (n - 1) / (count - 1)) for i in range(count)})


def _every(frames: Sequence[Any], every: int) -> list[int]:
    """The index of each `every`-th frame, counted from the last."""
    return list(range(len(frames) - 1, -1, -every))[::-1]


def _frames(picture: Any) -> tuple[str, list[float], list[tuple[bytes, tuple[int, int]]]]:
    """The unit and the numbers of an animation's frames, and these as WebP with their sizes.

    Pillow joins equal frames into one that lasts longer, and is seen at the last of their times.
    """
    comment = picture.info.get("comment") or picture.info.get("xmp") or ""
    words = comment.decode(errors="replace") if isinstance(comment, bytes) else str(comment)
    known = [finite(word) for word in words[2:].split()] if words[:2] == "t " else []
    count = decode.frames(picture)
    numbers = _spread(count, min(count, FRAMES))
    times, frames, index = [], [], -1
    for i in range(numbers[-1] + 1):
        picture.seek(i)
        if i in numbers:
            frame = picture.convert("RGB")
            frame.thumbnail((FILM_ACROSS, FILM_ACROSS))
            frames.append((_webp(frame), frame.size))
        index += max(1, round(picture.info.get("duration", 0) / BASE))
        index = len(known) - 1 if i == count - 1 else index  # it stands longer
        if i in numbers:
            times.append(known[index] if 0 <= index < len(known) else None)
    if None in times:
        return "frame", [float(i + 1) for i in numbers], frames
    return "t", times, frames  # type: ignore[return-value]


def _webp(picture: Any) -> bytes:
    store = io.BytesIO()
    picture.convert("RGB").save(store, "WEBP", quality=85, method=0)
    return store.getvalue()


def _uri(data: bytes, kind: str) -> str:
    return f"data:image/{kind};base64,{base64.b64encode(data).decode()}"


def text_of(error: Exception) -> str:
    """The first line of an error's message, or its kind if it has none."""
    return str(error).partition("\n")[0] or type(error).__name__


class Figures:
    """Numbers the figures of a page."""

    def __init__(self) -> None:
        self.count = 0

    def __call__(self, body: str, caption: str, look: str = "") -> str:
        """A <figure>; body and caption are HTML."""
        if not body:
            return ""
        self.count += 1
        return (
            f'<figure class="{look}">{body}<figcaption><b>Figure {self.count}.</b> {caption}'
            "</figcaption></figure>"
        )


Track = tuple[str, str, Sequence[tuple[float, Picture]]]  # label, look, [(step or t, picture)]


def film(tracks: Sequence[Track], name: str, unit: str = "step") -> str:
    """Show pictures side by side with one slider for all tracks: over training, or over time t.

    unit: the name of what the slider moves. Pictures over t play by themselves.
    """
    tracks = [track for track in tracks if track[2]]
    steps = sorted({step for _, _, pictures in tracks for step, _ in pictures})
    if not steps:
        return ""
    columns, attribute = [], "step" if unit == "step" else "at"
    for label, look, pictures in tracks:
        last = pictures[-1][0]
        images = "".join(
            picture.tag(
                f"{label + ', ' if len(tracks) > 1 else ''}{name} {_at(step, unit)}",
                f' data-{attribute}="{step:.6g}"{"" if step == last else " hidden"}',
            )
            for step, picture in pictures
        )
        head = f'<p class="track">{text(label)}</p>' if len(tracks) > 1 else ""
        columns.append(f'<div class="frames {look}">{head}{images}</div>')
    button = '<button type="button" class="play" hidden>Play</button>' if unit != "step" else ""
    shown = f"{steps[-1]:,}" if unit == "step" else f"{steps[-1]:.3g}"
    slider = (
        f'<div class="slider">{button}<label><span>{unit} <output>{shown}</output></span>'
        f'<input type="range" min="0" max="{len(steps) - 1}" value="{len(steps) - 1}" '
        f'data-unit="{unit}" data-steps="{" ".join(f"{step:.6g}" for step in steps)}" '
        f'aria-label="{"training step" if unit == "step" else text(f"{unit} of {name}")}">'
        "</label></div>"
        if len(steps) > 1
        else ""
    )
    return f'<div class="film"><div class="tracks">{"".join(columns)}</div>{slider}</div>'


def _at(step: float, unit: str) -> str:
    return f"after {step:,} steps" if unit == "step" else f"at {unit} = {step:.3g}"


def table(head: Sequence[str], rows: Iterable[Sequence[str]], caption: str = "") -> str:
    """A table of HTML cells. On a phone each row becomes a block of `name: value` lines."""
    titles = "".join(f'<th scope="col">{text(name)}</th>' for name in head)
    body = ""
    for first, *cells in rows:
        columns = zip(head[1:], cells, strict=True)
        body += f'<tr><th scope="row">{first}</th>' + "".join(
            f'<td data-name="{text(name)}"{"" if cell else " class=none"}><span>{cell}</span></td>'
            for name, cell in columns
        )
        body += "</tr>"
    above = f"<caption>{caption}</caption>" if caption else ""
    inner = f"{above}<thead><tr>{titles}</tr></thead><tbody>{body}</tbody>"
    return f'<div class="wide" tabindex="0"><table>{inner}</table></div>'


def command(line: str) -> str:
    """A command line with a button that copies it."""
    return (
        f'<div class="command"><pre tabindex="0"><code>{text(line)}</code></pre>'
        '<button type="button" class="copy" hidden>Copy</button></div>'
    )


def listing(lines: Iterable[str], look: str, title: str) -> str:
    """A titled list of plain texts; '' without any."""
    items = "".join(f"<li>{text(line)}</li>" for line in lines)
    return f'<aside class="{look}"><h2>{title}</h2><ul>{items}</ul></aside>' if items else ""


def details(title: str, body: str) -> str:
    """A part of the page that opens on a click."""
    return f"<details><summary>{text(title)}</summary>{body}</details>"


def plain(content: str) -> str:
    """Unchanged text in a fixed-width font."""
    return f'<pre tabindex="0">{text(content)}</pre>'


def section(title: str, *parts: str) -> str:
    """A section of the page; '' without any part."""
    body = "".join(parts)
    return f"<section><h2>{text(title)}</h2>{body}</section>" if body else ""


def page(title: str, above: str, body: str, below: str) -> str:
    """The whole document. title is plain text, and the rest is HTML."""
    style, script = ((Path(__file__).parent / f"page.{kind}").read_text("utf-8") for kind in CODE)
    return f"""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="{POLICY}">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<link rel="icon" href="data:,">
<title>{text(title)}</title>
<style>{CSS}{style}</style>
</head>
<body>
<main>
<header><p class="above">{above}</p><h1>{text(title)}</h1></header>
{body}
<footer>{below}</footer>
</main>
<dialog class="large" aria-label="enlarged picture"></dialog>
<script>{script}</script>
</body>
</html>
"""


CODE = ("css", "js")
