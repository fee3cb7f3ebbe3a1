"""Fields of the `.json` next to the images of shards -> labels, splits and further columns, in the order of rows."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from dataclasses import field as dataclass_field
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


@dataclass
class ShardField:
    """One field in all shards. columns: its values by shard, each as wide as its longest."""

    name: str
    columns: list[NDArray[np.bytes_]] = dataclass_field(default_factory=list)
    present: bool = False
    is_text: bool = False
    _rows: int = 0
    _letters: int = 0
    _widest: int = 1

    def add(self, index: ShardIndex, place: int, shown: str) -> None:
        """Use the values of one shard. Raises SourceError where all of them would be nearly all padding, and large."""
        values = index.values[:, place]
        lengths = np.char.str_len(values)
        width = max(1, int(lengths.max(initial=0)))
        self._rows += len(values)
        self._letters += int(lengths.sum())
        self._widest = max(self._widest, width)
        what = f"values of {ascii_name(self.name)!r}"
        check_width(shown, what, rows=self._rows, width=self._widest, letters=self._letters)
        self.columns.append(values.astype(f"S{width}"))
        self.present = self.present or bool(index.present[place])
        self.is_text = self.is_text or bool(index.texts[place])


@dataclass(frozen=True)
class DescribedSamples:
    """fields: what is known of each, by its name · rows: (N,) of all images of all shards together."""

    fields: Mapping[str, ShardField]
    rows: NDArray[np.int64]
    shown: str

    def _values(self, name: str) -> NDArray[np.bytes_]:
        """(N,) as they are written. Raises SourceError where no sample has such a field."""
        if not self.fields[name].present:
            raise SourceError(
                f"No .json in {self.shown} has a field {ascii_name(name)!r}.",
                hint="Write a .json for each image, or name another field.",
            )
        values: NDArray[np.bytes_] = np.concatenate(self.fields[name].columns)[self.rows]
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
        column = FurtherColumn(is_text=self.fields[name].is_text)
        values = self._values(name)
        for start in range(0, len(values), BLOCK_ROWS):
            encoded = values[start : start + BLOCK_ROWS].tolist()
            column.add([one.decode() for one in encoded], encoded)
        return column.array()
