"""Reads .parquet files, with pyarrow, which is an optional package."""

import os
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from fmdiff.data.columns import Column, coded
from fmdiff.errors import FmdiffError
from fmdiff.files import LARGE, UNPACKED, open_regular


class Parquet:
    """A .parquet file of numbers and texts. Raises FmdiffError where pyarrow is not installed."""

    def __init__(self, path: Path, title: str) -> None:
        self.path, self.title = path, title

    @cached_property
    def _file(self) -> Any:
        try:
            from pyarrow import parquet
        except ImportError:
            raise FmdiffError(
                f"{self.title}: a .parquet file needs pyarrow: pip install 'fmdiff[tables]', or "
                "save the table as .csv"
            ) from None
        try:
            return parquet.ParquetFile(open_regular(self.path))
        except OSError as error:
            reason = error.strerror or "it is no .parquet file"
            raise FmdiffError(f"{self.title} cannot be read: {reason}") from error
        except Exception as error:  # pyarrow meets damage with many kinds of exception
            raise self._damage(error) from error

    @property
    def names(self) -> tuple[str, ...]:
        """The names of the columns. Raises FmdiffError if two have one name."""
        names = tuple(self._file.schema_arrow.names)
        twice = [name for name in names if names.count(name) > 1]
        if twice:
            raise FmdiffError(f"{self.title}: several columns have the name {twice[0]}")
        return names

    def read(self, names: Sequence[str]) -> dict[str, Column]:
        """Some columns by name. Raises FmdiffError for what are neither numbers nor texts."""
        n = self._file.metadata.num_rows
        size = 8 * n * len(names)
        if size > max(LARGE, UNPACKED * os.path.getsize(self.path)):
            raise FmdiffError(f"{self.title} is refused: it would unpack to {size:,} bytes")
        if not n:
            raise FmdiffError(f"{self.title} has no rows")
        try:
            table = self._file.read(columns=list(names))
            columns = {name: table.column(name) for name in names}
        except Exception as error:
            raise self._damage(error) from error
        return {name: self._column(name, values) for name, values in columns.items()}

    def _column(self, name: str, values: Any) -> Column:
        """The column of a chunked array of pyarrow."""
        import pyarrow as pa
        from pyarrow import types

        kind = values.type
        if types.is_dictionary(kind):
            kind = kind.value_type
            values = values.cast(kind)
        if types.is_string(kind) or types.is_large_string(kind):
            values = values.combine_chunks().dictionary_encode()
            if isinstance(values, pa.ChunkedArray):
                values = values.unify_dictionaries().combine_chunks()
            texts = [text.strip() for text in values.dictionary.to_pylist()]
            places: dict[str, int] = {}
            same = [places.setdefault(text, len(places)) for text in texts]
            codes = values.indices.fill_null(-1).to_numpy(zero_copy_only=False)
            return coded(places, np.array([*same, -1], np.int64)[codes])
        checks = types.is_integer, types.is_floating, types.is_boolean, types.is_decimal
        if not (types.is_null(kind) or any(check(kind) for check in checks)):
            raise FmdiffError(
                f"{self.title}: the column {name} holds {kind}, and columns hold numbers or "
                "texts; choose others by data.columns=[...]"
            )
        if types.is_boolean(kind):
            values = values.cast(pa.int8())
        numbers = values.cast(pa.float64(), safe=False).to_numpy()
        return Column(np.array(numbers, np.float64))

    def _damage(self, error: Exception) -> FmdiffError:
        return FmdiffError(f"{self.title} is damaged or no .parquet file ({type(error).__name__})")
