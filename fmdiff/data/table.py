"""The codec of tables: columns of numbers and categories as the components of a point."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from fmdiff.codec import Codec
from fmdiff.errors import FmdiffError

LARGEST = 2**20  # columns, and levels of a column


class Table(Codec):
    """Rows of a table (B, d) as points: columns of numbers standardised, categories one-hot.

    In a row the value of a category is its number among the levels of its column. A column that is
    `constant` has no component, and comes back as its `mean`. `decode` takes the category of the
    largest component.

    names: those of the columns. levels: the names of the categories, by the name of the column.
    mean and scale are buffers (d,) float64; those of categories are 0 and 1.
    """

    mean: Tensor
    scale: Tensor

    def __init__(
        self,
        names: Sequence[str],
        levels: Mapping[str, Sequence[str]] | None = None,
        constant: Sequence[str] = (),
    ) -> None:
        super().__init__()
        texts = [names, constant, *(levels or {}).values()]
        if not names or not all(_texts(part) for part in texts) or set(levels or {}) - set(names):
            raise FmdiffError(f"a codec of a table with the columns {names!r:.80} cannot be built")
        self.outer, self.column_names = (len(names),), tuple(names)
        self.levels = {name: tuple(part) for name, part in (levels or {}).items()}
        self.constant = tuple(constant)
        self.register_buffer("mean", torch.zeros(len(names), dtype=torch.float64))
        self.register_buffer("scale", torch.ones(len(names), dtype=torch.float64))

    @classmethod
    def of(
        cls,
        x: Tensor,
        names: Sequence[str],
        levels: Mapping[str, Sequence[str]] | None = None,
        standardise: bool = True,
    ) -> "Table":
        """The codec of the rows x (N, d) float64. standardise: or numbers stay as they are."""
        same = (x == x[0]).all(0)
        constant = [name for name, alone in zip(names, same.tolist(), strict=True) if alone]
        codec = cls(names, levels, constant)
        numbers = torch.tensor([name not in codec.levels for name in names]) & ~same
        if standardise:
            codec.mean[numbers] = x.mean(0)[numbers]
            codec.scale[numbers] = x.std(0, correction=0)[numbers]
        codec.mean[same] = x[0, same]
        return codec

    @property
    def blocks(self) -> list[tuple[int, slice]]:
        """The columns that vary: the place of each, and of its components."""
        blocks, stop = [], 0
        for column, name in enumerate(self.column_names):
            if name not in self.constant:
                start, stop = stop, stop + len(self.levels.get(name, " "))
                blocks.append((column, slice(start, stop)))
        return blocks

    @property
    def width(self) -> int:
        """The number of components."""
        return self.blocks[-1][1].stop if self.blocks else 0

    def _split(self) -> tuple[list[tuple[int, slice]], list[int], list[int]]:
        """The blocks of categories; the columns of numbers, and their components."""
        categories = [b for b in self.blocks if self.column_names[b[0]] in self.levels]
        numbers = [b for b in self.blocks if b not in categories]
        return categories, [j for j, _ in numbers], [block.start for _, block in numbers]

    def encode(self, x: Tensor) -> Tensor:
        mean, scale = self.mean.to(x.device), self.scale.to(x.device)
        categories, columns, places = self._split()
        z = x.new_empty(len(x), self.width)
        z[:, places] = ((x[:, columns] - mean[columns]) / scale[columns]).to(x.dtype)
        for column, block in categories:
            levels = block.stop - block.start
            z[:, block] = F.one_hot(x[:, column].long().clamp(0, levels - 1), levels).to(x.dtype)
        return z

    def decode(self, z: Tensor) -> Tensor:
        mean, scale = self.mean.to(z.device), self.scale.to(z.device)
        categories, columns, places = self._split()
        x = mean.to(z.dtype).repeat(len(z), 1)  # what is constant stays so
        x[:, columns] = (z[:, places] * scale[columns] + mean[columns]).to(z.dtype)
        for column, block in categories:
            x[:, column] = z[:, block].argmax(1).to(z.dtype)
        return x

    def log_det(self) -> float | None:
        """log |det dz/dx| of the columns that vary; None if one of them is a category."""
        if set(self.levels) - set(self.constant):
            return None
        return -self.scale.log().sum().item()

    def spec(self) -> dict[str, Any]:
        return {
            "_target_": "fmdiff.data.table.Table",
            "names": list(self.column_names),
            "levels": {name: list(part) for name, part in self.levels.items()},
            "constant": list(self.constant),
        }


def rows_of(
    codec: Codec, x: np.ndarray, labels: np.ndarray | None = None, names: Sequence[str] = ()
) -> list[list[object]]:
    """Samples x (n, d) as rows of a table, below a row with the names of the columns.

    Categories are given by name. Class labels (n,) are a further column, `label`; names: theirs.
    """
    head: list[object] = list(codec.column_names)
    columns: list[list[object]] = []
    for name, values in zip(codec.column_names, x.T, strict=True):
        levels = codec.levels.get(name)
        columns.append([v if levels is None else levels[int(v)] for v in values])
    if labels is not None:
        head.append("label")
        columns.append([names[k] if names else k for k in labels.tolist()])
    return [head, *map(list, zip(*columns, strict=True))]


def _texts(values: Any) -> bool:
    """Whether the values are a list of texts, not too long."""
    listed = isinstance(values, list | tuple) and len(values) <= LARGEST
    return listed and all(isinstance(value, str) for value in values)
