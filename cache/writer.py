"""Rows go to disk with positional writes at known offsets; the structure of the file is never touched."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from types import TracebackType
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from precompute.cache import provenance
from precompute.cache.checksum import bytes_of, row_checksums
from precompute.cache.columns import Column, Layout
from precompute.cache.provenance import Record
from precompute.errors import naming

SYNC_SECONDS = 20.0  # at most so much work is computed again after a power cut
HASHED_AT_ONCE = 512 * 1024  # bytes; to hand fewer to another thread takes longer than to hash them

Runs = list[tuple[int, int, int]]  # of consecutive rows: start and stop among those given, first row in the file


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
        self._cores = len(os.sched_getaffinity(0))
        self._hashers = ThreadPoolExecutor(max(1, self._cores - 1), thread_name_prefix="checksum")

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
        columns, runs, sums = self._layout.columns, _runs(rows), {}
        for layer, values in features.items():
            stored = np.ascontiguousarray(values, dtype=columns[f"features/{layer}"].dtype)
            mine, *others = self._shares(digests, sizes, mtimes, statuses, stored)
            hashing = [self._hashers.submit(row_checksums, *share) for share in others]
            self._scatter(columns[f"features/{layer}"], runs, stored)
            sums[layer] = np.concatenate([row_checksums(*mine), *(share.result() for share in hashing)])
        self._scatter(columns["samples/digest"], runs, digests)
        self._scatter(columns["samples/status"], runs, statuses)
        self._scatter(columns["samples/size"], runs, sizes)
        self._scatter(columns["samples/mtime_ns"], runs, mtimes)
        for layer, checksums in sums.items():
            self._scatter(columns[f"checksums/{layer}"], runs, checksums)
        if time.monotonic() - self._synced > SYNC_SECONDS:
            self.sync()

    def forget(self, rows: NDArray[np.int64]) -> None:
        """Mark rows as not there, before they are computed again, so that no reader takes half of each for a row."""
        for layer in self._layout.layers:
            zeros = np.zeros(len(rows), dtype=np.uint64)
            self._scatter(self._layout.columns[f"checksums/{layer}"], _runs(rows), zeros)

    def _shares(self, *columns: NDArray[Any]) -> Iterator[tuple[NDArray[Any], ...]]:
        """The same columns of some of the rows each: one share a core, as long as it is worth another thread."""
        count = max(1, min(self._cores, columns[-1].nbytes // HASHED_AT_ONCE))
        return zip(*(np.array_split(values, count) for values in columns), strict=True)

    def _scatter(self, column: Column, runs: Runs, values: ArrayLike) -> None:
        """One write for each run of consecutive rows."""
        data, width = bytes_of(np.asarray(values, dtype=column.dtype)), column.row_bytes
        for start, stop, first in runs:
            self._pwrite(data[start * width : stop * width], column.offset + first * width)

    def _pwrite(self, data: bytes | memoryview, offset: int) -> None:
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
        self._hashers.shutdown()
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1


def _runs(rows: NDArray[np.int64]) -> Runs:
    if not len(rows):
        return []
    starts = np.flatnonzero(np.diff(rows, prepend=-2) != 1).tolist()
    return [(start, stop, int(rows[start])) for start, stop in zip(starts, [*starts[1:], len(rows)], strict=True)]
