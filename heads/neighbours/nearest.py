"""The search for nearest neighbours by cosine similarity: by brute force, in blocks, on the CPU or another device."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from precompute.heads.base import rows as reading
from precompute.heads.base.arrays import cast, namespace
from precompute.heads.base.unit import unit_rows

if TYPE_CHECKING:
    from collections.abc import Iterator

    import numpy.typing as npt

    from precompute.heads.base.arrays import Array, Arrays
    from precompute.heads.base.rows import RowView

__all__ = ["Candidates", "first_largest"]

PAIR_BYTES = 16  # of a pair of rows, beside its similarity three times: what finds the first of equal ones
DEVICE_BYTES = 2**30  # of similarities at once on a device: larger products gain nothing there


@dataclass(frozen=True)
class Candidates:
    """Rows among which neighbours are looked for.

    view: (n, d), as they are stored · arrays: where similarities are computed, and in which dtype · resident: (n, d) on
    the device, scaled to length 1; None where they are read in blocks from `view` · at_once: bytes that similarities
    to a block of them may take.
    """

    view: RowView
    arrays: Arrays
    resident: Array | None
    at_once: int

    @classmethod
    def on(cls, arrays: Arrays, view: RowView, at_once: int) -> Candidates:
        """The rows of `view`, held by the device where half of its free memory has room for them.

        With NumPy they stay where they are. at_once: bytes of similarities there; a device's follow from its memory.
        """
        if arrays.xp is np:
            return cls(view, arrays, None, at_once)
        resident = None
        if arrays.dtype.itemsize * len(view) * view.shape[1] <= arrays.free_bytes() // 2:
            resident = arrays.empty(*view.shape)
            for rows, block in view.blocks():
                resident[rows] = unit_rows(arrays.put(block))
        return cls(view, arrays, resident, min(DEVICE_BYTES, arrays.free_bytes() // 4))

    def nearest(self, block: npt.NDArray[np.floating], k: int) -> tuple[npt.NDArray[Any], npt.NDArray[np.intp]]:
        """Similarity (q, m) and position (q, m) of the `k` nearest of each row of `block` (q, d), or of all there are.

        Of equally similar ones the first; in the order of their positions.
        """
        xp = self.arrays.xp
        queries = self._unit(block)
        similarity = self.arrays.empty(len(block), 0)
        position = self.arrays.put(np.empty((len(block), 0), np.intp))
        for rows, training in self._blocks(self._rows_at_once(similarity, k)):
            similarity = xp.hstack([similarity, queries @ training.T])
            if similarity.shape[1] <= k:
                added = self.arrays.put(np.arange(rows.start, rows.stop))
                position = xp.hstack([position, xp.broadcast_to(added, (len(block), len(added)))])
                continue
            columns = first_largest(similarity, k)
            similarity, position = _columns(similarity, columns), _positions(position, columns, rows.start)
        return self.arrays.fetch(similarity), self.arrays.fetch(position)

    def _unit(self, block: npt.NDArray[np.floating]) -> Array:
        return cast(unit_rows(self.arrays.put(block)), self.arrays.dtype)

    def _blocks(self, n_rows: int) -> Iterator[tuple[slice, Array]]:
        """All rows in order: (positions, (b, d) of length 1), `n_rows` at a time."""
        if self.resident is None:
            for rows, block in self.view.blocks(min(n_rows, reading.BLOCK_BYTES // (4 * self.view.shape[1]) or 1)):
                yield rows, self._unit(block)
            return
        for start in range(0, len(self.resident), n_rows):
            rows = slice(start, min(start + n_rows, len(self.resident)))
            yield rows, self.resident[rows]

    def _rows_at_once(self, similarity: Array, k: int) -> int:
        """Rows that are compared with so many at once, next to the `k` kept of each; `similarity` is (q, 0)."""
        pairs = self.at_once // (3 * self.arrays.dtype.itemsize + PAIR_BYTES)
        return int(max(1, pairs // len(similarity) - k))


def first_largest(values: Array, k: int) -> Array:
    """The columns (n, k) of the k largest of each row, in ascending order; of equal ones the first.

    (argpartition and topk would take any of the equal ones, and so depend on how rows are cut into blocks.)
    """
    xp = namespace(values)
    least = np.partition(values, -k, axis=1)[:, -k, None] if xp is np else xp.topk(values, k).values[:, -1:]
    chosen = values >= least
    tied = xp.where(chosen.sum(axis=1) > k)[0]
    if len(tied):
        equal = values[tied] == least[tied]
        left = k - (chosen[tied].sum(axis=1) - equal.sum(axis=1))
        chosen[tied] &= ~equal | (xp.cumsum(equal, axis=1) <= left[:, None])
    return xp.where(chosen)[1].reshape(len(values), k)


def _columns(values: Array, columns: Array) -> Array:
    """Of each row of `values` (n, m) the entries at its `columns` (n, k)."""
    return np.take_along_axis(values, columns, axis=1) if namespace(values) is np else values.gather(1, columns)


def _positions(position: Array, columns: Array, start: int) -> Array:
    """Which rows the chosen `columns` (q, k) are: first come those at `position` (q, m), then those from `start` on."""
    kept = position.shape[1]
    if not kept:
        return columns + start
    xp = namespace(columns)
    before = _columns(position, xp.clip(columns, None, kept - 1))
    return xp.where(columns < kept, before, columns - kept + start)
