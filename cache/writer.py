"""Rows go to disk with positional writes at known offsets; the structure of the file is never touched."""

from __future__ import annotations

import os
import time
from types import TracebackType

import numpy as np
from numpy.typing import ArrayLike, NDArray

from precompute.cache import provenance
from precompute.cache.checksum import row_checksums
from precompute.cache.columns import Column, Layout
from precompute.cache.provenance import Record
from precompute.errors import naming

SYNC_SECONDS = 20.0  # at most so much work is computed again after a power cut


class RowWriter:
    """Write finished rows into a laid-out file, checksums last.

    A row counts as there once its checksum matches its bytes, so no order of the writes on disk can fake one.
    Raises OSError as the file system gives it (ENOSPC, EIO): rows written before stay valid.
    """

    def __init__(self, path: str, layout: Layout) -> None:
        self._path = path
        self._layout = layout
        self._descriptor = os.open(path, os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW)
        self._synced = time.monotonic()

    def __enter__(self) -> RowWriter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def write(
        self,
        rows: NDArray[np.int64],
        features: dict[str, NDArray[np.floating]],
        *,
        digests: NDArray[np.uint8],
        statuses: NDArray[np.uint8],
        sizes: NDArray[np.int64],
        mtimes: NDArray[np.int64],
    ) -> None:
        """Write k rows: features by layer (k, *shape), digests (k, 32), and (k,) statuses, sizes and mtimes."""
        columns = self._layout.columns
        sums = {}
        for layer, values in features.items():
            stored = np.ascontiguousarray(values, dtype=columns[f"features/{layer}"].dtype)
            sums[layer] = row_checksums(digests, sizes, mtimes, statuses, stored)
            self._scatter(columns[f"features/{layer}"], rows, stored)
        self._scatter(columns["samples/digest"], rows, digests)
        self._scatter(columns["samples/status"], rows, statuses)
        self._scatter(columns["samples/size"], rows, sizes)
        self._scatter(columns["samples/mtime_ns"], rows, mtimes)
        for layer, checksums in sums.items():
            self._scatter(columns[f"checksums/{layer}"], rows, checksums)
        if time.monotonic() - self._synced > SYNC_SECONDS:
            self.sync()

    def forget(self, rows: NDArray[np.int64]) -> None:
        """Mark rows as not there, before they are computed again, so that no reader takes half of each for a row."""
        for layer in self._layout.layers:
            self._scatter(self._layout.columns[f"checksums/{layer}"], rows, np.zeros(len(rows), dtype=np.uint64))

    def _scatter(self, column: Column, rows: NDArray[np.int64], values: ArrayLike) -> None:
        """One write for each run of consecutive rows; none for no rows."""
        if not len(rows):
            return
        data = np.ascontiguousarray(values, dtype=column.dtype)
        starts = np.flatnonzero(np.diff(rows, prepend=-2) != 1)
        for start, stop in zip(starts, [*starts[1:], len(rows)], strict=True):
            self._pwrite(data[start:stop].tobytes(), column.offset + int(rows[start]) * column.row_bytes)

    def _pwrite(self, data: bytes, offset: int) -> None:
        view = memoryview(data)
        with naming(self._path):
            while view:
                written = os.pwrite(self._descriptor, view, offset)
                view, offset = view[written:], offset + written

    def append_provenance(self, records: list[Record]) -> bool:
        """Add one line for each record; False where the block is full and nothing was added."""
        column = self._layout.columns["provenance"]
        _, used = provenance.parse(os.pread(self._descriptor, column.nbytes, column.offset))
        data = b"".join(map(provenance.encode, records))
        if used + len(data) > column.nbytes:
            return False
        # A NUL behind the line cuts off what a torn append may have left there.
        self._pwrite((data + b"\0")[: column.nbytes - used], column.offset + used)
        return True

    def sync(self) -> None:
        """Return once everything written so far is on the disk."""
        with naming(self._path):
            os.fdatasync(self._descriptor)
        self._synced = time.monotonic()

    def close(self) -> None:
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1
