"""Which row a picture's features come from: byte-identical images are computed once, also among millions.

A dictionary of digests would take some 200 bytes for each image. Here it is 16 for a row of an older file and, for a
row of this run, 32 for its digest and 16 to 32 for its slot, touched only as far as they are used.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

THIS_RUN = -1
FREE, FORGOTTEN = 0, -1  # what a slot holds where it does not hold a row's number + 1
PIECE_ROWS = 16_384


class DigestIndex:
    """Rows of one file by their SHA-256; of byte-identical ones the first.

    digests: (N, 32) uint8, such as a memory-mapped column · rows: (k,) int64, ascending, the rows to know.
    Found by the first 8 bytes, and then compared by all 32.
    """

    def __init__(self, digests: NDArray[np.uint8], rows: NDArray[np.int64]) -> None:
        self._digests = digests
        words = _words(digests[rows, :8])
        order = np.argsort(words, kind="stable")
        self._words, self.rows = words[order], rows[order]
        twins = np.flatnonzero(self._words[1:] == self._words[:-1]) + 1
        if len(twins):
            same = _equal(digests, self.rows[twins], digests, self.rows[twins - 1])
            self._words, self.rows = np.delete(self._words, twins[same]), np.delete(self.rows, twins[same])

    def find(self, digest: bytes) -> int | None:
        """Row with this digest."""
        word = np.frombuffer(digest, dtype="<u8", count=1)[0]
        for place in range(int(np.searchsorted(self._words, word)), len(self._words)):
            if self._words[place] != word:
                break
            if self._digests[self.rows[place]].tobytes() == digest:
                return int(self.rows[place])
        return None

    def holds(self, digests: NDArray[np.uint8], rows: NDArray[np.int64]) -> NDArray[np.bool_]:
        """(k,) bool: which of these rows of (M, 32) digests have a digest that is known here."""
        known = np.zeros(len(rows), dtype=bool)
        words = _words(digests[rows, :8])
        places = np.searchsorted(self._words, words)
        todo = np.arange(len(rows))
        while len(todo):  # more than once only where the first 8 bytes of different digests are the same
            todo = todo[places[todo] < len(self._words)]
            todo = todo[self._words[places[todo]] == words[todo]]
            same = _equal(digests, rows[todo], self._digests, self.rows[places[todo]])
            known[todo[same]] = True
            todo = todo[~same]
            places[todo] += 1
        return known


class Owners:
    """The row that each digest belongs to: of the first older file that knows it, else of the first of `rows` claiming.

    Claims may come from several threads at once; of those with the same digest exactly one is granted.
    """

    def __init__(self, olds: Sequence[DigestIndex], rows: int) -> None:
        self._olds = olds
        self._lock = threading.Lock()
        self._lost: set[bytes] = set()  # digests of older rows that turned out damaged
        self._mask = (1 << (2 * rows).bit_length()) - 1  # more than half of the slots stay free
        # Memory that is never touched costs nothing: numpy's zeros come from the system as they are.
        self._slots = np.zeros(self._mask + 1, dtype=np.int64).data
        self._digests = np.zeros(32 * rows, dtype=np.uint8).data

    def claim(self, digest: bytes, row: int) -> bool:
        """Whether `row` owns these bytes from now on; False where another row does."""
        with self._lock:
            if self._old(digest) is not None:
                return False
            slot, owner = self._probe(digest)
            if owner is not None:
                return owner == row
            self._digests[32 * row : 32 * row + 32] = digest
            self._slots[slot] = row + 1
            return True

    def owner(self, digest: bytes) -> tuple[int, int] | None:
        """(number of the older file or THIS_RUN, row) that has these bytes; None where none does."""
        found = self._old(digest)
        if found is None:
            row = self._probe(digest)[1]
            found = None if row is None else (THIS_RUN, row)
        return found

    def digest(self, row: int) -> bytes:
        """What `row` of this run claimed last."""
        return bytes(self._digests[32 * row : 32 * row + 32])

    def forget(self, digest: bytes, number: int) -> None:
        """What older files, or for THIS_RUN this run, hold of these bytes cannot be used: the next claim is granted."""
        with self._lock:
            if number != THIS_RUN:
                self._lost.add(digest)
                return
            slot, row = self._probe(digest)
            if row is not None:
                self._slots[slot] = FORGOTTEN

    def _old(self, digest: bytes) -> tuple[int, int] | None:
        if digest in self._lost:
            return None
        for number, old in enumerate(self._olds):
            row = old.find(digest)
            if row is not None:
                return number, row
        return None

    def _probe(self, digest: bytes) -> tuple[int, int | None]:
        """The slot of this digest and its row, or the slot to put it into and None. Linear probing."""
        slot = int.from_bytes(digest[:8], "little") & self._mask
        while (held := self._slots[slot]) != FREE:
            row = held - 1
            if held != FORGOTTEN and self._digests[32 * row : 32 * row + 32] == digest:
                return slot, row
            slot = (slot + 1) & self._mask
        return slot, None


def _words(heads: NDArray[np.uint8]) -> NDArray[np.uint64]:
    """(k, 8) bytes as (k,) numbers."""
    return np.ascontiguousarray(heads).view("<u8").reshape(len(heads))


def _equal(
    first: NDArray[np.uint8], first_rows: NDArray[np.int64], second: NDArray[np.uint8], second_rows: NDArray[np.int64]
) -> NDArray[np.bool_]:
    """(k,) bool: whether two rows have the same digest, looked at in pieces that stay small."""
    same = np.zeros(len(first_rows), dtype=bool)
    for start in range(0, len(same), PIECE_ROWS):
        piece = slice(start, start + PIECE_ROWS)
        same[piece] = (first[first_rows[piece]] == second[second_rows[piece]]).all(axis=1)
    return same
