"""Millions of files as columns: names become an array a block at a time, and in the end one array in order."""

from __future__ import annotations

from array import array
from typing import Any

import numpy as np
from numpy.typing import NDArray

BLOCK_FILES = 16_384
"""So many files at most are Python objects. The names of so many are sorted inside the processor's cache, too."""

Columns = tuple[NDArray[np.bytes_], NDArray[np.int64], NDArray[np.int64], NDArray[np.int32]]


class FileList:
    """Files in any order -> columns in the order of their ids.

    A file is added by appending to `names`, `sizes` and `mtimes`, which the caller may hold on to; `settle` says where
    it lies. Files that arrive in nearly the right order are put in order much faster than others.
    """

    def __init__(self) -> None:
        self.names: list[bytes] = []
        self.sizes: array[int] = array("q")
        self.mtimes: array[int] = array("q")
        self._places: array[int] = array("i")
        self._blocks: list[Columns] = []

    def __len__(self) -> int:
        return len(self.names) + sum(len(block[0]) for block in self._blocks)

    def settle(self, place: int) -> None:
        """Note the number of the place of all files added since the last call; a full block becomes arrays."""
        self._places.extend(array("i", [place]) * (len(self.names) - len(self._places)))
        if len(self.names) >= BLOCK_FILES:
            self._close_block()

    def columns(self) -> Columns:
        """(N,) ids of the length of the longest, int64 sizes and modification times, int32 places; empties the list."""
        self._close_block()
        ids, sizes, mtimes, places = (_joined(self._blocks, number) for number in range(4))
        self._blocks = []
        if not np.all(ids[:-1] <= ids[1:]):
            order = np.argsort(ids, kind="stable")  # merges the blocks, each of which is in order
            ids, sizes, mtimes, places = ids[order], sizes[order], mtimes[order], places[order]
        return ids, sizes, mtimes, places

    def _close_block(self) -> None:
        if not self.names:
            return
        ids = np.array(self.names, dtype=np.bytes_)
        order = np.argsort(ids, kind="stable")
        numbers = [np.array(column)[order] for column in (self.sizes, self.mtimes, self._places)]
        self._blocks.append((ids[order], numbers[0], numbers[1], numbers[2]))
        for pending in (self.names, self.sizes, self.mtimes, self._places):
            del pending[:]


def _joined(blocks: list[Columns], number: int) -> NDArray[Any]:
    """One column of all blocks; for strings, as wide as the widest."""
    parts = [block[number] for block in blocks]
    return np.concatenate(parts) if parts else np.zeros(0, dtype="S1")
