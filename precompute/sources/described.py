"""Fields of the `.json` beside the images of shards -> labels, splits and further columns, in the order of rows."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from precompute.errors import SourceError
from precompute.sources.base import ascii_name
from precompute.sources.further import FurtherColumn, check_width
from precompute.sources.header import check_name
from precompute.sources.labels import SPLIT_NAMES
from precompute.sources.tar_index import ShardIndex

BLOCK_ROWS = 16_384  # so many are Python objects at once


@dataclass(frozen=True)
class DescribedSamples:
    """indexes: of all shards, with the values of `fields` · rows: (N,) of all their images together."""

    indexes: Sequence[ShardIndex]
    fields: tuple[str, ...]
    rows: NDArray[np.int64]
    shown: str

    def _values(self, name: str) -> NDArray[np.bytes_]:
        """(N,) as they are written. Raises SourceError where no sample has such a field."""
        place = self.fields.index(name)
        if not any(index.present[place] for index in self.indexes):
            raise SourceError(
                f"No .json in {self.shown} has a field {ascii_name(name)!r}.",
                hint="Write a .json beside each image, or name another field.",
            )
        columns = [index.values[:, place] for index in self.indexes]
        rows, widest = sum(map(len, columns)), max(column.dtype.itemsize for column in columns)
        letters = sum(int(np.char.str_len(column).sum()) for column in columns)
        check_width(self.shown, f"values of {ascii_name(name)!r}", rows=rows, width=widest, letters=letters)
        values: NDArray[np.bytes_] = np.concatenate(columns)[self.rows]
        return values

    def labels(self, name: str) -> tuple[NDArray[np.int32], tuple[bytes, ...]]:
        """Label of each row, -1 for none, and the classes."""
        names, found = np.unique(self._values(name), return_inverse=True)
        unlabelled = len(names) > 0 and names[0] == b""
        return (found - unlabelled).astype(np.int32), tuple(names.tolist()[unlabelled:])

    def splits(self, name: str, ids: NDArray[np.bytes_]) -> NDArray[np.uint8]:
        """(N,) codes. Raises SourceError for what names no split, with its sample."""
        words, found = np.unique(self._values(name), return_inverse=True)
        codes = []
        for number, word in enumerate(words.tolist()):
            code = SPLIT_NAMES.get(word.lower()) if word else 0
            if code is None:
                sample = ascii_name(os.fsdecode(bytes(ids[int(np.flatnonzero(found == number)[0])])))
                raise SourceError(
                    f"{self.shown}: the .json of {sample} has the split {ascii_name(os.fsdecode(word))!r}, which is "
                    "none.",
                    hint=f"Write one of {', '.join(known.decode() for known in SPLIT_NAMES)}, or nothing.",
                )
            codes.append(code)
        return np.array(codes, dtype=np.uint8)[found]

    def column(self, name: str) -> NDArray[Any]:
        """(N,) as `FurtherColumn` reads it."""
        check_name(name, self.shown)
        place = self.fields.index(name)
        column = FurtherColumn(is_text=any(bool(index.texts[place]) for index in self.indexes))
        values = self._values(name)
        for start in range(0, len(values), BLOCK_ROWS):
            encoded = values[start : start + BLOCK_ROWS].tolist()
            column.add([one.decode() for one in encoded], encoded)
        return column.array()
