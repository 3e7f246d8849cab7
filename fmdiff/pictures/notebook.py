"""How samples and runs show themselves in a notebook: a small picture and a table."""

import base64
import io
from collections.abc import Mapping
from html import escape
from pathlib import Path

from PIL import Image
from torch import Tensor

from fmdiff import tables
from fmdiff.codec import Codec, kind_of
from fmdiff.data import decode
from fmdiff.data.images import to_uint8
from fmdiff.errors import FmdiffError
from fmdiff.pictures import plots
from fmdiff.pictures.samples import figure

LIMIT = 100_000  # bytes of a picture
COUNTS = (64, 36, 16, 4, 1)  # images in the grid, as many as fit
ACROSS = 768  # pixels
TILE_WIDTH = 56  # pixels to which an image may be magnified
POINTS = 5000  # samples in a picture of points or series
DPI = 100
CLASSES = 10  # labels that are named


def of_samples(
    x: Tensor, y: Tensor | None, cost: Mapping[str, object], codec: Codec | None = None
) -> str:
    """The HTML of samples x (n, *outer) with labels y (n,): a picture and a table.

    cost: rows to add to the table. codec: that of the samples.
    """
    shape = " x ".join(map(str, x.shape[1:]))
    rows: list[list[object]] = [["samples", f"{len(x):,}"], ["shape", shape]]
    if y is not None:
        classes = y.unique().tolist()
        more = ", ..." if len(classes) > CLASSES else ""
        rows.append(["classes", ", ".join(map(str, classes[:CLASSES])) + more])
    rows += [[name, value] for name, value in cost.items()]
    try:
        kind = kind_of(x.shape[1:], codec)
        picture = _grid(x, y) if kind == "images" else _figure(x, kind, codec)
    except FmdiffError as error:
        picture = f"<p>{escape(str(error))}</p>"
    return picture + tables.as_html(rows)


def of_file(path: Path, alt: str) -> str:
    """The HTML of a picture in a file, reduced if it is large; '' if it cannot be read."""
    try:
        with path.open("rb") as file, decode.picture(file) as picture:
            return image(picture.convert("RGB"), alt)
    except (ValueError, OSError):
        return ""


def image(picture: Image.Image, alt: str) -> str:
    """An <img> that holds the picture itself, as a PNG of at most about 100 kB."""
    picture.thumbnail((ACROSS, ACROSS))
    while len(data := _png(picture)) > LIMIT and picture.width > 1:
        picture = picture.resize((picture.width * 3 // 4, picture.height * 3 // 4))
    uri = base64.b64encode(data).decode()
    size = f'width="{picture.width}" height="{picture.height}"'
    return f'<img src="data:image/png;base64,{uri}" alt="{escape(alt)}" {size}>'


def _png(picture: Image.Image) -> bytes:
    store = io.BytesIO()
    picture.save(store, "PNG", optimize=True)
    return store.getvalue()


def _grid(x: Tensor, y: Tensor | None) -> str:
    pixels = to_uint8(x[: COUNTS[0]]).cpu().numpy()
    for count in COUNTS:
        labels = None if y is None else y[:count].tolist()
        scale = max(1, TILE_WIDTH // pixels.shape[2])
        picture = plots.grid(pixels[:count], labels, scale=scale)
        if len(_png(picture)) <= LIMIT:
            break
    return image(picture, f"{min(count, len(pixels))} of {len(x)} samples")


def _figure(x: Tensor, kind: str, codec: Codec | None) -> str:
    points = x[:POINTS].double().cpu().numpy()
    picture = figure(kind, points, codec=codec)
    if not isinstance(picture, Image.Image):
        picture.set_dpi(DPI)
        picture = plots.render(picture)
    return image(picture, f"a picture of {len(points)} of {len(x)} samples")
