"""Further columns of a table: groups, targets, texts, as they go into the file next to label and split."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from precompute.errors import SourceError

PADDED_BYTES, PADDED_TIMES = 2**30, 32  # columns may be larger than the one, or so many times their strings, not both
WHOLE = re.compile(r"-?(0|[1-9][0-9]*)")
NUMBER = re.compile(r"-?(0|[1-9][0-9]*)(\.[0-9]*)?([eE][-+]?[0-9]+)?|[nN]a[nN]")
"""Numbers as programs write them. 007 and 00.5 are none, but names."""


def check_width(shown: str, what: str, *, rows: int, width: int, letters: int) -> None:
    """Raise SourceError where a column as wide as its longest string would be nearly all padding, and large."""
    if rows * width > max(PADDED_BYTES, PADDED_TIMES * letters):
        raise SourceError(
            f"{shown} has {rows:,} {what} so far, the longest of {width:,} bytes and most far shorter.",
            hint="Each row takes as much memory as the longest. Shorten that one.",
        )


class FurtherColumn:
    """The values of one column, of which all are seen before it is known what it holds.

    is_text: they are strings whatever they look like.
    """

    def __init__(self, *, is_text: bool) -> None:
        self._blocks: list[NDArray[np.bytes_]] = []
        self._is_whole = self._is_number = not is_text
        self._gaps = self._values = 0
        self.width = self.letters = 0  # of the longest value, and of all

    def add(self, values: Sequence[str], encoded: Sequence[bytes]) -> None:
        """Take some values, also as UTF-8."""
        gaps = values.count("")
        self._gaps += gaps
        self._values += len(values) - gaps
        self._is_number = self._is_number and all(not value or NUMBER.fullmatch(value) for value in values)
        self._is_whole = self._is_whole and self._is_number and all(map(WHOLE.fullmatch, values))
        self.width = max(self.width, *map(len, encoded))
        self.letters += sum(map(len, encoded))
        self._blocks.append(np.array(encoded, dtype=np.bytes_))

    def array(self) -> NDArray[Any]:
        """(N,) int64 where all are whole numbers, float64 where all are numbers or nothing (NaN), else strings."""
        values: NDArray[np.bytes_] = np.concatenate(self._blocks)
        self._blocks = []
        try:
            if self._is_whole:
                return values.astype(np.int64)
        except OverflowError:  # longer than int64 holds: float64 would lose digits
            return values
        if self._is_number and self._values:
            return np.where(values == b"", b"nan", values).astype(np.float64)
        return values
